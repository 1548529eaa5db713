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
//! The budget is that of a process; process isolates have none, so that a tree does not spin with more threads than
//! the machine has cores.

use offshoot_mailbox::Parker;
use offshoot_sys::{clock, limits};
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

/// The budget of a process.
pub(crate) struct Spin {
    window: u64,
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
    /// Spins for `window` at a time.
    pub(crate) fn new(window: Duration) -> Spin {
        Spin {
            window: crate::time::nanos(window.min(WINDOW_MAX)),
            spinners_max: OnceLock::new(),
            spinners: AtomicU32::new(0),
            paid_at: AtomicU64::new(0),
            away_until: AtomicU64::new(0),
            away: AtomicU64::new(AWAY_MIN),
        }
    }

    /// Spins until the owner of `parker` is notified; false if it was not in time, or must not spin.
    ///
    /// `until` is the owner's next deadline, before which this returns.
    pub(crate) fn wait(&self, parker: &Parker, until: Option<u64>) -> bool {
        if self.window == 0 {
            return false;
        }
        let begun = clock::now();
        let paid_at = self.paid_at.load(Ordering::Relaxed);
        let away_until = self.away_until.load(Ordering::Relaxed);
        if begun < paid_at.saturating_sub(BURST * SHARE) || begun < away_until {
            return false;
        }
        let Some(_seat) = self.take_seat(parker) else {
            return parker.is_notified();
        };
        let end = (begun + self.window).min(until.unwrap_or(u64::MAX));
        let mut last = begun;
        loop {
            for _ in 0..LOOKS {
                if parker.is_notified() {
                    self.succeed();
                    return true;
                }
                std::hint::spin_loop();
            }
            let now = clock::now();
            if now - last > GAP {
                self.stay_away(now);
                return parker.is_notified();
            }
            if now >= end {
                self.pay(begun, now);
                return parker.is_notified();
            }
            last = now;
        }
    }

    fn take_seat(&self, parker: &Parker) -> Option<Seat<'_>> {
        let max = *self.spinners_max.get_or_init(|| {
            let others = limits::usable_cores().saturating_sub(1);
            u32::try_from(others).unwrap_or(u32::MAX)
        });
        if max == 0 {
            return None;
        }
        // Whoever was just answered is about to leave its seat to the one who answered.
        for _ in 0..LOOKS {
            let taken = self.spinners.load(Ordering::Relaxed);
            let next = taken + 1;
            if taken < max
                && self
                    .spinners
                    .compare_exchange(taken, next, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
            {
                return Some(Seat(self));
            }
            if parker.is_notified() {
                return None;
            }
            std::hint::spin_loop();
        }
        None
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

/// One of those who spin; no more once dropped.
struct Seat<'a>(&'a Spin);

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.spinners.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spin(cores: u32) -> Spin {
        let spin = Spin::new(WINDOW);
        spin.spinners_max.set(cores - 1).unwrap();
        spin
    }

    fn notified() -> Parker {
        let parker = Parker::new();
        let _ = parker.unpark();
        parker
    }

    #[test]
    fn what_has_come_is_seen_and_left_to_the_parker_to_consume() {
        let (spin, parker) = (spin(2), notified());
        assert!(spin.wait(&parker, None) && parker.is_notified());
        assert_eq!(spin.spinners.load(Ordering::Relaxed), 0);
        assert_eq!(spin.paid_at.load(Ordering::Relaxed), 0, "it cost nothing");
    }

    #[test]
    fn nobody_spins_on_one_core_without_a_window_or_beyond_the_seats() {
        for spin in [spin(1), Spin::new(Duration::ZERO)] {
            assert!(!spin.wait(&Parker::new(), None));
            assert_eq!(spin.paid_at.load(Ordering::Relaxed), 0);
        }
        let spin = spin(2);
        let parker = Parker::new();
        let seat = spin.take_seat(&parker).unwrap();
        assert!(spin.take_seat(&parker).is_none());
        drop(seat);
        assert!(spin.take_seat(&parker).is_some());
    }

    #[test]
    fn who_spins_in_vain_pays_and_then_sleeps_at_once() {
        let spin = spin(2);
        let begun = clock::now();
        assert!(!spin.wait(&Parker::new(), None));
        let noted = [&spin.paid_at, &spin.away_until].map(|at| at.load(Ordering::Relaxed));
        assert!(noted.iter().any(|at| *at > begun), "it was for nothing");
        // Each turn costs at least its window, unless the machine was elsewhere, which also ends it.
        let mut turns = 0;
        loop {
            let paid_at = spin.paid_at.load(Ordering::Relaxed);
            assert!(!spin.wait(&Parker::new(), None));
            if spin.paid_at.load(Ordering::Relaxed) == paid_at {
                break;
            }
            turns += 1;
            assert!(turns <= 2 + (BURST * SHARE + clock::now() - begun) / (spin.window * SHARE));
        }
    }

    #[test]
    fn a_deadline_ends_the_spinning() {
        let spin = Spin::new(WINDOW_MAX);
        spin.spinners_max.set(1).unwrap();
        let begun = clock::now();
        assert!(!spin.wait(&Parker::new(), Some(begun)));
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
            !spin.wait(&Parker::new(), None) && spin.paid_at.load(Ordering::Relaxed) == 0,
            "it must not spin"
        );
        for _ in 0..20 {
            spin.succeed();
        }
        assert_eq!(spin.away.load(Ordering::Relaxed), AWAY_MIN);
    }
}
