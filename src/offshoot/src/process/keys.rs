//! What decides who may call what over sockets: keys of portals that were given, and tables in which they are looked up.
//!
//! Nothing is looked up by what a sender says of an isolate. Each connection has a table of the portals that were given
//! over it ([`Portals::given`]) and of those that came by it ([`Portals::got`]), and each process one of the isolates that
//! it serves ([`Keys`]). A portal that comes back names its key, and has what that was given with.
//! `docs/decisions/capabilities.md` has the argument.

use super::porter::Hold;
use crate::isolate::shared::{Shared, Target};
use crate::life::Life;
use crate::narrow::Allowed;
use crate::{Error, ErrorKind, Result};
use offshoot_sys::{clock, fsx, limits};
use offshoot_wire::frame::Key;
use parking_lot::{Mutex, MutexGuard};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// How long a key is known whose connection has ended (ns): a message that names it may be under way by another connection.
const LINGER: u64 = 10_000_000_000;
/// How many of these there may be.
const LINGERING: usize = 4_096;

/// The keys of one process: under which it knows which of its isolates, and with what rights.
#[derive(Default)]
pub(crate) struct Keys {
    /// Drawn and not used. A process draws its own, after it was forked.
    drawn: Mutex<Vec<Key>>,
    served: Mutex<Served>,
}

#[derive(Default)]
struct Served {
    isolates: HashMap<Key, Home>,
    /// Those that only linger, and perhaps some that do no longer, by the time.
    lingering: VecDeque<(u64, Key)>,
}

/// What a key names where its isolate is.
struct Home {
    isolate: Weak<Shared>,
    life: Arc<Life>,
    allowed: Allowed,
    /// The number of the connection over which it was named.
    by: u64,
    /// Its connections, and the table of that one.
    pins: usize,
    /// Until when it lingers without any (ns).
    until: u64,
}

/// What a key names here.
pub(crate) enum Known {
    Isolate(Arc<Target>, Allowed),
    /// It has ended.
    Ended(Arc<Life>),
}

impl Keys {
    /// A new one.
    pub(super) fn draw(&self) -> Result<Key> {
        let mut drawn = self.drawn.lock();
        if drawn.is_empty() {
            drawn.extend(fsx::random_16()?.map(Key::from_bytes));
        }
        drawn
            .pop()
            .ok_or_else(|| Error::new(ErrorKind::Other, "no key was drawn"))
    }

    /// Notes that this isolate is served under this key, until the pin is dropped, and a moment longer.
    ///
    /// # Errors
    /// The key names something else.
    pub(super) fn pin(
        self: &Arc<Keys>,
        key: Key,
        shared: &Arc<Shared>,
        allowed: &Allowed,
        by: u64,
    ) -> Result<Pin> {
        let mut served = self.served.lock();
        let home = served.isolates.entry(key).or_insert_with(|| Home {
            isolate: Arc::downgrade(shared),
            life: shared.life.clone(),
            allowed: allowed.clone(),
            by,
            pins: 0,
            until: 0,
        });
        let same =
            home.by == by && Arc::ptr_eq(&home.life, &shared.life) && home.allowed.is_same(allowed);
        if !same {
            let what = "a portal is introduced by a key that names another one";
            return Err(Error::new(ErrorKind::Protocol, what));
        }
        home.pins += 1;
        Ok(Pin {
            keys: self.clone(),
            key,
        })
    }

    /// What this key names.
    pub(super) fn find(&self, key: Key) -> Option<Known> {
        let served = self.served.lock();
        let home = served.isolates.get(&key)?;
        let (isolate, life) = (home.isolate.upgrade(), home.life.clone());
        let allowed = home.allowed.clone();
        drop(served);
        Some(match isolate {
            Some(shared) if life.exit().is_none() => Known::Isolate(shared.target(), allowed),
            _ => Known::Ended(life),
        })
    }

    fn unpin(&self, key: Key) {
        let now = clock::now();
        let mut forgotten = Vec::new();
        let mut served = self.served.lock();
        let Some(home) = served.isolates.get_mut(&key) else {
            return;
        };
        home.pins -= 1;
        if home.pins > 0 {
            return;
        }
        home.until = now + LINGER;
        served.lingering.push_back((now + LINGER, key));
        while let Some((until, key)) = served.lingering.front().copied()
            && (until <= now || served.lingering.len() > LINGERING)
        {
            served.lingering.pop_front();
            // It may have been pinned again, and then be here again, too.
            let over = |home: &Home| home.pins == 0 && home.until <= until;
            if served.isolates.get(&key).is_some_and(over) {
                forgotten.extend(served.isolates.remove(&key));
            }
        }
        drop(served);
        drop(forgotten);
    }
}

/// Something by which a key is known.
pub(super) struct Pin {
    keys: Arc<Keys>,
    key: Key,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.keys.unpin(self.key);
    }
}

/// What one connection has of all this.
pub(crate) struct Table {
    /// Of all connections of this process, only this one has it.
    pub(super) number: u64,
    portals: Mutex<Portals>,
    ends: OnceLock<Ends>,
    crowd: OnceLock<Arc<Crowd>>,
    over: AtomicBool,
}

/// What the two ends of a connection know of each other by having it.
enum Ends {
    /// This isolate of ours is served to the other end, with these rights.
    Serves(Weak<Shared>, Allowed),
    /// This one is, and to its owner.
    ServesOwner(Weak<Shared>),
    /// At the other end is the process of this isolate, which is owned here.
    Owns(Weak<Target>),
}

/// The sockets to isolates of this process that came of what was given to one peer, also by giving that on.
#[derive(Default)]
pub(super) struct Crowd(AtomicUsize);

/// One of these.
pub(super) struct Place(Arc<Crowd>);

/// So many may be taken without a look at what there is.
const FEW: usize = 64;

impl Crowd {
    /// Room for one more. No peer may have more than half of the descriptors of this process.
    pub(super) fn enter(self: &Arc<Crowd>) -> Result<Place> {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        let place = Place(self.clone());
        if before < FEW {
            return Ok(place);
        }
        let (soft, hard) = limits::open_files();
        if before as u64 >= soft / 2 {
            let message = format!(
                "one peer has {before} sockets to isolates of this process, and may have half of what RLIMIT_NOFILE allows, \
                 {soft}: have it use the portals that it has, or raise the limit, up to {hard} (`ulimit -n`)"
            );
            return Err(Error::new(ErrorKind::Full, message));
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for Table {
    fn default() -> Table {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Table {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            portals: Mutex::default(),
            ends: OnceLock::new(),
            crowd: OnceLock::new(),
            over: AtomicBool::new(false),
        }
    }
}

impl Table {
    /// Says what this end serves.
    pub(super) fn serves(&self, shared: &Arc<Shared>, allowed: &Allowed) {
        let ends = Ends::Serves(Arc::downgrade(shared), allowed.clone());
        let set = self.ends.set(ends).is_ok();
        debug_assert!(set, "a connection has two ends");
    }

    /// Says what this end serves to its owner.
    pub(super) fn serves_owner(&self, shared: &Arc<Shared>) {
        let set = self.ends.set(Ends::ServesOwner(Arc::downgrade(shared)));
        debug_assert!(set.is_ok(), "a connection has two ends");
    }

    /// Says whose process is at the other end.
    pub(super) fn owns(&self, target: &Arc<Target>) {
        let set = self.ends.set(Ends::Owns(Arc::downgrade(target)));
        debug_assert!(set.is_ok(), "a connection has two ends");
    }

    /// Whether this isolate is served to its owner by this.
    pub(super) fn is_of(&self, shared: &Arc<Shared>) -> bool {
        match self.ends.get() {
            Some(Ends::ServesOwner(one)) => std::ptr::eq(one.as_ptr(), Arc::as_ptr(shared)),
            _ => false,
        }
    }

    /// The isolate at this end, as the other end may have it.
    pub(super) fn served(&self) -> Option<(Arc<Target>, Allowed)> {
        match self.ends.get()? {
            Ends::Serves(shared, allowed) => Some((shared.upgrade()?.target(), allowed.clone())),
            Ends::ServesOwner(shared) => Some((shared.upgrade()?.target(), Allowed::default())),
            Ends::Owns(_) => None,
        }
    }

    /// The isolate at the other end, where it is owned here.
    pub(super) fn owned(&self) -> Option<Arc<Target>> {
        match self.ends.get()? {
            Ends::Owns(target) => target.upgrade(),
            Ends::Serves(..) | Ends::ServesOwner(_) => None,
        }
    }

    /// Among which one more socket is counted that the other end introduces or is given.
    pub(super) fn crowd(&self) -> Arc<Crowd> {
        match self.ends.get() {
            // An owner has every right, and those that it introduces have nothing to do with each other.
            Some(Ends::ServesOwner(_)) => Arc::default(),
            _ => self.crowd.get_or_init(Arc::default).clone(),
        }
    }

    /// Counts what comes of it with these.
    pub(super) fn join(&self, crowd: Arc<Crowd>) {
        let set = self.crowd.set(crowd).is_ok();
        debug_assert!(set, "it is said before anything is given");
    }

    pub(super) fn portals(&self) -> MutexGuard<'_, Portals> {
        self.portals.lock()
    }

    /// The connection has ended: what was given over it is forgotten.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
        let portals = std::mem::take(&mut *self.portals.lock());
        drop(portals);
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

/// The portals that went over one connection, either way.
#[derive(Default)]
pub(super) struct Portals {
    given: Given,
    /// What came by it and is in use.
    got: HashMap<Key, Got>,
}

#[derive(Default)]
struct Given {
    /// By the address of the life, which is kept from being another's by the `Weak`.
    portals: HashMap<usize, Vec<Portal>>,
    /// Of each key, that address.
    keys: HashMap<Key, usize>,
}

struct Portal {
    key: Key,
    life: Weak<Life>,
    target: Weak<Target>,
    allowed: Allowed,
    /// Of an isolate of this process.
    pin: Option<Pin>,
}

struct Got {
    target: Weak<Target>,
    hold: Arc<Hold>,
}

impl Portals {
    /// The key by which a portal is given over this connection: the same for the same isolate and rights.
    pub(super) fn give(
        &mut self,
        keys: &Arc<Keys>,
        by: u64,
        target: &Arc<Target>,
        allowed: &Allowed,
    ) -> Result<Key> {
        let life = Arc::as_ptr(&target.life).addr();
        let Given { portals, keys: all } = &mut self.given;
        let known = portals.get_mut(&life).into_iter().flatten();
        let mut known = known.filter(|portal| portal.allowed.is_same(allowed));
        if let Some(portal) = known.next() {
            portal.target = Arc::downgrade(target);
            return Ok(portal.key);
        }
        // Those of isolates that are no more go whenever the table would have to grow.
        if portals.len() == portals.capacity() {
            portals.retain(|_, portals| portals.iter().any(|one| one.life.strong_count() > 0));
            all.retain(|_, life| portals.contains_key(life));
        }
        let key = keys.draw()?;
        let pin = match target.thread() {
            Some(shared) => Some(keys.pin(key, shared, allowed, by)?),
            None => None,
        };
        all.insert(key, life);
        portals.entry(life).or_default().push(Portal {
            key,
            life: Arc::downgrade(&target.life),
            target: Arc::downgrade(target),
            allowed: allowed.clone(),
            pin,
        });
        Ok(key)
    }

    /// What was given by this key and is of another process. For what is of this one, the key is known to all.
    pub(super) fn given(&self, key: Key) -> Option<(Arc<Target>, Allowed)> {
        let portals = self.given.portals.get(self.given.keys.get(&key)?)?;
        let portal = portals.iter().find(|portal| portal.key == key)?;
        let elsewhere = portal.pin.is_none();
        let target = elsewhere.then(|| portal.target.upgrade()).flatten();
        Some((target?, portal.allowed.clone()))
    }

    /// What came by this key.
    pub(super) fn got(&self, key: Key) -> Option<(Option<Arc<Target>>, Arc<Hold>)> {
        let Got { target, hold } = self.got.get(&key)?;
        Some((target.upgrade(), hold.clone()))
    }

    /// Notes what came.
    pub(super) fn keep(&mut self, key: Key, target: &Arc<Target>, hold: Arc<Hold>) {
        let target = Arc::downgrade(target);
        self.got.insert(key, Got { target, hold });
    }

    /// The socket of what came is no more.
    pub(super) fn drop_got(&mut self, key: Key, hold: &Arc<Hold>) -> Option<impl Sized + use<>> {
        let same = |got: &Got| Arc::ptr_eq(&got.hold, hold);
        match self.got.get(&key).is_some_and(same) {
            true => self.got.remove(&key),
            false => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Status;
    use crate::runtime::Runtime;
    use crate::{Exit, Origin};
    use offshoot_wire::frame;
    use std::collections::HashSet;

    fn isolate(runtime: &Arc<Runtime>) -> Arc<Shared> {
        let origin = Origin {
            path: "root/p".to_owned(),
            id: runtime.next_id(),
            pid: 1,
        };
        let bounds = runtime.settings.bounds;
        let life = Arc::new(Life::new(origin));
        Shared::new(
            life,
            runtime.clone(),
            None,
            Arc::<Status>::default(),
            bounds,
        )
    }

    fn nothing() -> Allowed {
        let nothing = frame::Allowed::Only {
            methods: false,
            cancel: false,
            entries: Vec::new(),
        };
        Allowed::from_wire(nothing).expect("no entries")
    }

    #[test]
    fn a_key_names_one_portal() {
        let runtime = Runtime::bare().expect("a runtime");
        let (one, other) = (isolate(&runtime), isolate(&runtime));
        let keys = runtime.keys();
        let key = keys.draw().expect("a key");
        assert!(keys.find(key).is_none(), "it names nothing yet");
        let all = Allowed::default();
        let pin = keys.pin(key, &one, &all, 1).expect("the first");
        // The same again, but nothing else under it: another isolate, other rights, over another connection.
        drop(keys.pin(key, &one, &all, 1).expect("the same"));
        for (shared, allowed, by) in [(&other, &all, 1), (&one, &nothing(), 1), (&one, &all, 2)] {
            assert!(keys.pin(key, shared, allowed, by).is_err());
        }
        assert!(
            matches!(keys.find(key), Some(Known::Isolate(target, allowed))
            if Arc::ptr_eq(&target.life, &one.life) && allowed.is_all())
        );
        // It lingers, and says of one that has ended how.
        drop(pin);
        assert!(matches!(keys.find(key), Some(Known::Isolate(..))));
        one.life.announce(Exit::Completed);
        assert!(
            matches!(keys.find(key), Some(Known::Ended(life)) if matches!(life.exit(), Some(Exit::Completed)))
        );
    }

    #[test]
    fn keys_that_nobody_uses_are_bounded() {
        let runtime = Runtime::bare().expect("a runtime");
        let shared = isolate(&runtime);
        let keys = runtime.keys();
        let kept = keys.draw().expect("a key");
        let all = Allowed::default();
        let _pin = keys.pin(kept, &shared, &all, 0).expect("the first");
        let mut seen = HashSet::new();
        for by in 0..20_000 {
            let key = keys.draw().expect("a key");
            assert!(seen.insert(key), "drawn twice");
            // Twice, so that it would be in the queue more than once.
            drop(keys.pin(key, &shared, &all, by).expect("a new one"));
            drop(keys.pin(key, &shared, &all, by).expect("the same"));
        }
        let served = keys.served.lock();
        assert!(served.isolates.len() <= LINGERING + 1);
        assert!(served.lingering.len() <= LINGERING);
        assert!(served.isolates.contains_key(&kept), "what is in use stays");
    }

    #[test]
    fn what_was_given_is_found_by_its_connection_alone() {
        let runtime = Runtime::bare().expect("a runtime");
        let shared = isolate(&runtime);
        let keys = runtime.keys();
        let (one, two) = (Table::default(), Table::default());
        let route = crate::isolate::shared::Route::Gone;
        let life = Arc::new(Life::new(shared.life.origin()));
        let elsewhere = Target::introduced(life, runtime.clone(), route, (1, 1));
        let (all, narrow) = (Allowed::default(), nothing());
        let mut portals = one.portals();
        let mut give = |allowed| portals.give(keys, one.number, &elsewhere, allowed);
        let key = give(&all).expect("a key");
        assert_eq!(give(&all).expect("a key"), key, "the same portal");
        let less = give(&narrow).expect("a key");
        assert_ne!(less, key);
        let (target, allowed) = portals.given(less).expect("it was given");
        assert!(Arc::ptr_eq(&target, &elsewhere) && allowed.is_same(&narrow));
        assert!(two.portals().given(key).is_none(), "not by another");
        assert!(keys.find(key).is_none(), "it is not served here");
        // Of an isolate of this process it is known to all connections, and over each by another key.
        let here = shared.target();
        let mine = portals.give(keys, one.number, &here, &all).expect("a key");
        let theirs = two.portals().give(keys, two.number, &here, &all);
        assert_ne!(theirs.expect("a key"), mine);
        assert!(portals.given(mine).is_none());
        assert!(matches!(keys.find(mine), Some(Known::Isolate(..))));
        drop(portals);
        one.end();
        assert!(one.is_over() && one.portals().given(key).is_none());
    }

    #[test]
    fn no_peer_has_more_than_half_of_the_descriptors() {
        let table = Table::default();
        let (soft, _) = limits::open_files();
        let most = soft / 2;
        let enter = || table.crowd().enter();
        let places: Vec<Place> = (0..most).map_while(|_| enter().ok()).collect();
        assert_eq!(places.len() as u64, most);
        let error = enter().err().expect("it is full");
        assert!(error.message().contains("RLIMIT_NOFILE"), "{error:?}");
        drop(places);
        assert!(enter().is_ok());
    }
}
