//! Spinning before sleeping, within a budget.
//!
//! Waking a thread that sleeps costs its waker a system call and the thread some 20 µs until it runs on another
//! core; a thread that looks at its parker in a loop goes on after 0.1 µs. So whoever runs out of work looks for a
//! while, but not at the expense of others:
//!
//! - At most as many threads spin at once as there are usable cores, less one: there is always one left for whoever
//!   is to bring the news. With one core nobody spins.
//! - What is spun in vain is paid for: after [`BURST`] of it, no more than one part in [`SHARE`] of the time. So
//!   whoever waits for what comes seldom, or from a thread of the same core, does not spin.
//! - A gap in the clock means that the spinner was descheduled while it spun, so that others want its core. It then
//!   stays away from spinning for a while, which doubles from [`AWAY_MIN`] up to [`AWAY_MAX`] as long as that goes on,
//!   and halves with each success. Within a second it has tried again.
//!
//! The seats are those of the whole tree: words in a page that the processes with a ring share, made by the first that offers one
//! and passed on beside each ring. A process without it has none, unless it is the root. A seat is taken for a time, which nobody spins
//! longer than; so one whose spinner was killed is free again by itself. What a process may spin in vain is its own.
//!
//! A process that writes nonsense into the page can keep the others from spinning, or make one of them too many spin within its own
//! share of the time. It can do no more than that: what is read there is compared with the clock and nothing else.

use crate::Result;
use offshoot_sys::map::SharedMap;
use offshoot_sys::{clock, limits, memfd};
use parking_lot::RwLock;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// How long one spins by default: what a wake-up costs, so that spinning in vain at most doubles that cost.
pub(crate) const WINDOW: Duration = Duration::from_micros(20);

/// Nobody spins for longer: that is what a thread's turn on a shared core is about.
pub(crate) const WINDOW_MAX: Duration = Duration::from_millis(1);

/// One part in so many of the time may be spun in vain.
const SHARE: u64 = 200;

/// So much may be spun in vain at once, in nanoseconds.
const BURST: u64 = 400_000;

/// Nobody but the kernel takes so long for one round of spinning, in nanoseconds.
const GAP: u64 = 50_000;

const AWAY_MIN: u64 = 5_000_000;
const AWAY_MAX: u64 = 500_000_000;

/// How often is looked between two looks at the clock.
const LOOKS: u32 = 16;

/// For how long a seat is taken, in nanoseconds: longer than anybody spins.
const SEAT: u64 = 2_000_000;
/// How many bytes of the page a seat has, so that no two are on one line.
const SEAT_BYTES: usize = 128;
/// The bytes of the page.
const PAGE: usize = 4096;

/// The seats of a tree.
struct Seats {
    file: OwnedFd,
    map: SharedMap,
}

/// The budget of a process.
pub(crate) struct Spin {
    window: u64,
    /// Those of the tree, once there are several processes that spin.
    tree: RwLock<Option<Seats>>,
    /// Without those of the tree there are none.
    in_child: bool,
    /// How many may spin at once; asked of the system when somebody wants to for the first time.
    spinners_max: OnceLock<u32>,
    spinners: AtomicU32,
    /// When all that was spun in vain is paid for.
    paid_at: AtomicU64,
    /// Until when nobody spins, as others want the cores.
    away_until: AtomicU64,
    /// For how long that will be the next time.
    away: AtomicU64,
}

impl Spin {
    /// Spins for `window` at a time; in a process isolate, once it was given the seats of the tree.
    pub(crate) fn new(window: Duration, in_child: bool) -> Spin {
        Spin {
            window: crate::time::nanos(window.min(WINDOW_MAX)),
            tree: RwLock::new(None),
            in_child,
            spinners_max: OnceLock::new(),
            spinners: AtomicU32::new(0),
            paid_at: AtomicU64::new(0),
            away_until: AtomicU64::new(0),
            away: AtomicU64::new(AWAY_MIN),
        }
    }

    /// The seats of the tree, to be given to another process. Made here if there are none yet.
    ///
    /// # Errors
    /// That there is no memory or descriptor for them.
    pub(crate) fn seats(&self) -> Result<OwnedFd> {
        let mut tree = self.tree.write();
        let seats = match &mut *tree {
            Some(seats) => seats,
            none => {
                let file = memfd::create(c"offshoot-seats", PAGE)?;
                let map = SharedMap::new(file.as_fd(), PAGE)?;
                none.insert(Seats { file, map })
            }
        };
        Ok(seats.file.try_clone()?)
    }

    /// The tree is over: gives the page back, which something that was leaked may keep otherwise.
    pub(crate) fn close(&self) {
        *self.tree.write() = None;
    }

    /// Takes the seats of the tree from another process of it.
    ///
    /// # Errors
    /// `InvalidData` if that is no such page; that it cannot be mapped.
    pub(crate) fn share(&self, file: OwnedFd) -> io::Result<()> {
        if memfd::sealed_length(file.as_fd())? != PAGE as u64 {
            let what = "the page of those who spin has another length";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let map = SharedMap::new(file.as_fd(), PAGE)?;
        // The first counts: there is one for the tree.
        self.tree.write().get_or_insert(Seats { file, map });
        Ok(())
    }

    /// Spins until `there` says that what is waited for has come; false if it was not in time, or must not spin.
    ///
    /// `until` is the next deadline of who waits, before which this returns.
    pub(crate) fn wait(&self, there: impl Fn() -> bool, until: Option<u64>) -> bool {
        if self.window == 0 {
            return false;
        }
        let begun = clock::now();
        let paid_at = self.paid_at.load(Ordering::Relaxed);
        let away_until = self.away_until.load(Ordering::Relaxed);
        if begun < paid_at.saturating_sub(BURST * SHARE) || begun < away_until {
            return false;
        }
        let Some(_seat) = self.take_seat(begun, &there) else {
            return there();
        };
        let end = (begun + self.window).min(until.unwrap_or(u64::MAX));
        let mut last = begun;
        loop {
            for _ in 0..LOOKS {
                if there() {
                    self.succeed();
                    return true;
                }
                std::hint::spin_loop();
            }
            let now = clock::now();
            if now - last > GAP {
                self.stay_away(now);
                return there();
            }
            if now >= end {
                self.pay(begun, now);
                return there();
            }
            last = now;
        }
    }

    fn take_seat(&self, now: u64, there: &impl Fn() -> bool) -> Option<Seat<'_>> {
        let max = *self.spinners_max.get_or_init(|| {
            let others = limits::usable_cores().saturating_sub(1);
            u32::try_from(others).unwrap_or(u32::MAX)
        });
        if max == 0 {
            return None;
        }
        // Whoever was just answered is about to leave its seat to the one who answered.
        for _ in 0..LOOKS {
            let seat = match &*self.tree.read() {
                Some(seats) => seats.take(max, now).map(|(place, until)| Seat {
                    spin: self,
                    of_tree: Some((place, until)),
                }),
                None if self.in_child => return None,
                None => self.take_own(max),
            };
            if seat.is_some() {
                return seat;
            }
            if there() {
                return None;
            }
            std::hint::spin_loop();
        }
        None
    }

    fn take_own(&self, max: u32) -> Option<Seat<'_>> {
        let taken = self.spinners.load(Ordering::Relaxed);
        let next = taken + 1;
        let free = taken < max
            && self
                .spinners
                .compare_exchange(taken, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        // Lazily: a seat that nobody takes would be given back.
        free.then(|| Seat {
            spin: self,
            of_tree: None,
        })
    }

    fn succeed(&self) {
        let away = self.away.load(Ordering::Relaxed);
        if away > AWAY_MIN {
            self.away.store((away / 2).max(AWAY_MIN), Ordering::Relaxed);
        }
    }

    fn stay_away(&self, now: u64) {
        let away = self.away.load(Ordering::Relaxed);
        self.away_until.store(now + away, Ordering::Relaxed);
        self.away.store((away * 2).min(AWAY_MAX), Ordering::Relaxed);
    }

    /// Charges what was spun in vain.
    fn pay(&self, begun: u64, now: u64) {
        let cost = (now - begun) * SHARE;
        // Two that pay at once may lose one of the payments, which the next one makes up for.
        let paid_at = self.paid_at.load(Ordering::Relaxed).max(now);
        self.paid_at.store(paid_at + cost, Ordering::Relaxed);
    }
}

impl Seats {
    /// Which, and until when.
    fn take(&self, max: u32, now: u64) -> Option<(usize, u64)> {
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let until = now + SEAT;
        let mut places = (0..PAGE).step_by(SEAT_BYTES).take(max);
        let place = places.find(|place| {
            let taken = self.map.load_u64(*place, Ordering::Relaxed);
            // Beyond what anybody takes it for, it is nonsense.
            let free = taken <= now || taken > now + 2 * SEAT;
            free && self
                .map
                .replace_u64(*place, taken, until, Ordering::Relaxed)
        });
        place.map(|place| (place, until))
    }
}

/// One of those who spin; no more once dropped.
struct Seat<'a> {
    spin: &'a Spin,
    of_tree: Option<(usize, u64)>,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        match self.of_tree {
            None => drop(self.spin.spinners.fetch_sub(1, Ordering::Relaxed)),
            // If it is another's by now, it was taken for longer than it may be.
            Some((place, until)) => {
                if let Some(seats) = &*self.spin.tree.read() {
                    seats.map.replace_u64(place, until, 0, Ordering::Relaxed);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use offshoot_mailbox::Parker;

    fn spin(cores: u32) -> Spin {
        let spin = Spin::new(WINDOW, false);
        spin.spinners_max.set(cores - 1).unwrap();
        spin
    }

    fn never() -> bool {
        false
    }

    fn notified() -> Parker {
        let parker = Parker::new();
        let _ = parker.unpark();
        parker
    }

    #[test]
    fn what_has_come_is_seen_and_left_to_the_parker_to_consume() {
        let (spin, parker) = (spin(2), notified());
        assert!(spin.wait(|| parker.is_notified(), None) && parker.is_notified());
        assert_eq!(spin.spinners.load(Ordering::Relaxed), 0);
        assert_eq!(spin.paid_at.load(Ordering::Relaxed), 0, "it cost nothing");
    }

    #[test]
    fn nobody_spins_on_one_core_without_a_window_or_beyond_the_seats() {
        for spin in [spin(1), Spin::new(Duration::ZERO, false)] {
            assert!(!spin.wait(never, None));
            assert_eq!(spin.paid_at.load(Ordering::Relaxed), 0);
        }
        let spin = spin(2);
        let seat = spin.take_seat(0, &never).unwrap();
        assert!(spin.take_seat(0, &never).is_none());
        drop(seat);
        assert!(spin.take_seat(0, &never).is_some());
    }

    #[test]
    fn the_seats_are_those_of_all_processes_and_one_that_was_killed_gives_its_own_back() {
        let (root, child) = (spin(2), Spin::new(WINDOW, true));
        child.spinners_max.set(1).unwrap();
        let now = clock::now();
        assert!(
            child.take_seat(now, &never).is_none(),
            "it was not given any"
        );
        child.share(root.seats().unwrap()).unwrap();
        let seat = child.take_seat(now, &never).unwrap();
        assert!(root.take_seat(now, &never).is_none());
        drop(seat);
        let seat = root.take_seat(now, &never).unwrap();
        assert!(child.take_seat(now, &never).is_none());
        // As by a kill.
        std::mem::forget(seat);
        assert!(child.take_seat(now + SEAT - 1, &never).is_none());
        let later = now + SEAT;
        let seat = child.take_seat(later, &never).unwrap();
        assert!(root.take_seat(later, &never).is_none());
        drop(seat);
        assert!(root.take_seat(later, &never).is_some());
        // What nobody writes is no seat that is taken.
        for nonsense in [u64::MAX, later + 3 * SEAT] {
            let tree = root.tree.read();
            let map = &tree.as_ref().unwrap().map;
            map.store_u64(0, nonsense, Ordering::Relaxed);
            assert!(child.take_seat(later, &never).is_some(), "{nonsense}");
        }
    }

    #[test]
    fn a_page_of_another_kind_is_refused() {
        let spin = Spin::new(WINDOW, true);
        let short = memfd::create(c"offshoot-test", PAGE / 2).unwrap();
        let refused = spin.share(short).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(spin.share(null.into()).is_err());
    }

    #[test]
    fn who_spins_in_vain_pays_and_then_sleeps_at_once() {
        let spin = spin(2);
        let begun = clock::now();
        assert!(!spin.wait(never, None));
        let noted = [&spin.paid_at, &spin.away_until].map(|at| at.load(Ordering::Relaxed));
        assert!(noted.iter().any(|at| *at > begun), "it was for nothing");
        // Each turn costs at least its window, unless the machine was elsewhere, which also ends it.
        let mut turns = 0;
        loop {
            let paid_at = spin.paid_at.load(Ordering::Relaxed);
            assert!(!spin.wait(never, None));
            if spin.paid_at.load(Ordering::Relaxed) == paid_at {
                break;
            }
            turns += 1;
            assert!(turns <= 2 + (BURST * SHARE + clock::now() - begun) / (spin.window * SHARE));
        }
    }

    #[test]
    fn a_deadline_ends_the_spinning() {
        let spin = Spin::new(WINDOW_MAX, false);
        spin.spinners_max.set(1).unwrap();
        let begun = clock::now();
        assert!(!spin.wait(never, Some(begun)));
        let charged = spin.paid_at.load(Ordering::Relaxed).saturating_sub(begun);
        assert!(charged < spin.window * SHARE, "{charged}");
    }

    #[test]
    fn who_loses_its_core_stays_away_for_longer_each_time_and_comes_back() {
        let spin = spin(2);
        let now = clock::now();
        spin.stay_away(now);
        assert!(spin.away_until.load(Ordering::Relaxed) == now + AWAY_MIN);
        for _ in 0..20 {
            spin.stay_away(now);
        }
        let until = spin.away_until.load(Ordering::Relaxed);
        assert!(until == now + AWAY_MAX && AWAY_MAX < 1_000_000_000);
        assert!(
            !spin.wait(never, None) && spin.paid_at.load(Ordering::Relaxed) == 0,
            "it must not spin"
        );
        for _ in 0..20 {
            spin.succeed();
        }
        assert_eq!(spin.away.load(Ordering::Relaxed), AWAY_MIN);
    }
}
