//! Cancellation inside an isolate: a tree of scopes, and the checkpoints that look at it.
//!
//! An isolate has a root scope; every call, task and nursery has one below. Cancelling a scope
//! cancels what is below it. Nothing is torn out of the program's hands: each checkpoint (a
//! [`sleep`](crate::sleep), a call, a [`checkpoint`](crate::checkpoint)) that is awaited inside of
//! a cancelled scope returns an error that says who cancelled, again and again, until the code has
//! come to its end. What has not ended when the grace is over is dropped.

use crate::chain::{Chain, Waits};
use crate::dialogue::Held;
use crate::{Cancel, Canceller, Error, ErrorKind, Origin};
use parking_lot::Mutex;
use slab::Slab;
use std::cell::{Cell, OnceCell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Who is woken when a scope is cancelled.
type Wakers = Arc<Mutex<Slab<Waker>>>;

pub(crate) struct Scope {
    parent: Option<Rc<Scope>>,
    cancel: RefCell<Option<Cancel>>,
    /// Cancellations from above do not count here.
    shielded: Cell<bool>,
    /// When what runs in it is dropped, once it is cancelled (ns); 0 where that is not of its own.
    grace_at: Cell<u64>,
    /// Shared with watches that may be dropped on other threads.
    wakers: Wakers,
    /// The dialogues of the nursery whose scope this is.
    held: OnceCell<Rc<Held>>,
    /// Who waits for what runs in it, where it is that of a method or a call.
    waits: RefCell<Option<Waits>>,
    children: RefCell<Slab<Weak<Scope>>>,
    place: Cell<usize>,
    /// Something has come of it since it was as good as new. Most methods leave it alone.
    touched: Cell<bool>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Scope>>> = const { RefCell::new(None) };
}

impl Scope {
    pub(crate) fn root() -> Rc<Scope> {
        Rc::new(Scope {
            parent: None,
            cancel: RefCell::new(None),
            shielded: Cell::new(false),
            grace_at: Cell::new(0),
            wakers: Wakers::default(),
            held: OnceCell::new(),
            waits: RefCell::new(None),
            children: RefCell::new(Slab::new()),
            place: Cell::new(0),
            touched: Cell::new(false),
        })
    }

    pub(crate) fn child(self: &Rc<Scope>) -> Rc<Scope> {
        let child = Rc::new(Scope {
            parent: Some(self.clone()),
            cancel: RefCell::new(None),
            shielded: Cell::new(false),
            grace_at: Cell::new(0),
            wakers: Wakers::default(),
            held: OnceCell::new(),
            waits: RefCell::new(None),
            children: RefCell::new(Slab::new()),
            place: Cell::new(0),
            touched: Cell::new(false),
        });
        self.touched.set(true);
        child
            .place
            .set(self.children.borrow_mut().insert(Rc::downgrade(&child)));
        child
    }

    /// The scope in which code is being polled, if any.
    pub(crate) fn current() -> Option<Rc<Scope>> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// Runs `f` inside of this scope.
    pub(crate) fn enter<R>(self: &Rc<Scope>, f: impl FnOnce() -> R) -> R {
        struct Restore(Option<Rc<Scope>>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0.take());
            }
        }
        let _restore = Restore(CURRENT.replace(Some(self.clone())));
        f()
    }

    /// The cancellation that is in force here, if any: its own or one from above.
    pub(crate) fn cancelled(&self) -> Option<Cancel> {
        let mut scope = self;
        loop {
            if let Some(cancel) = &*scope.cancel.borrow() {
                return Some(cancel.clone());
            }
            if scope.shielded.get() {
                return None;
            }
            scope = scope.parent.as_deref()?;
        }
    }

    /// Cancels it and all below. The first cancellation counts.
    pub(crate) fn cancel(&self, cancel: Cancel) {
        {
            let mut slot = self.cancel.borrow_mut();
            if slot.is_some() {
                return;
            }
            *slot = Some(cancel);
        }
        self.touched.set(true);
        self.wake();
    }

    /// Keeps cancellations from above out, or lets them in again.
    pub(crate) fn set_shielded(&self, shielded: bool) {
        self.shielded.set(shielded);
        self.touched.set(true);
        self.wake();
    }

    /// Says when what runs in it is dropped.
    pub(crate) fn set_grace(&self, at: u64) {
        self.grace_at.set(at);
        self.touched.set(true);
    }

    /// When what runs in it is dropped, if that is known: it is cancelled, or one above.
    pub(crate) fn grace(&self) -> Option<u64> {
        let mut earliest = None;
        let mut scope = Some(self);
        while let Some(one) = scope {
            let own = Some(one.grace_at.get()).filter(|at| *at != 0);
            earliest = earliest.into_iter().chain(own).min();
            scope = one.parent.as_deref();
        }
        earliest
    }

    pub(crate) fn is_shielded(&self) -> bool {
        self.shielded.get()
    }

    /// Says that this is the scope of a nursery, which waits for these dialogues.
    pub(crate) fn hold(&self, held: Rc<Held>) {
        self.touched.set(true);
        let set = self.held.set(held);
        debug_assert!(set.is_ok(), "a scope is of one nursery");
    }

    /// The dialogues of the nearest nursery.
    pub(crate) fn held(&self) -> Option<Rc<Held>> {
        let mut scope = self;
        loop {
            if let Some(held) = scope.held.get() {
                return Some(held.clone());
            }
            scope = scope.parent.as_deref()?;
        }
    }

    /// Says who waits for what runs in it.
    pub(crate) fn set_waits(&self, waits: Waits) {
        *self.waits.borrow_mut() = Some(waits);
    }

    /// Takes that back.
    pub(crate) fn clear_waits(&self) {
        *self.waits.borrow_mut() = None;
    }

    /// Who waits for what runs in it.
    pub(crate) fn waiting(&self) -> Chain {
        let mut scope = self;
        loop {
            if let Some(waits) = &*scope.waits.borrow() {
                return waits.node();
            }
            scope = scope.parent.as_deref()?;
        }
    }

    /// Makes it as good as new, if nothing has come of it that is still there.
    pub(crate) fn reset(self: &Rc<Scope>) -> bool {
        *self.waits.borrow_mut() = None;
        if Rc::strong_count(self) != 1 {
            return false;
        }
        if !self.touched.replace(false) {
            return true;
        }
        self.shielded.set(false);
        self.grace_at.set(0);
        self.cancel.borrow().is_none()
            && self.held.get().is_none()
            && self.children.borrow().is_empty()
            && self.wakers.lock().is_empty()
    }

    fn add_waker(&self, waker: &Waker) -> usize {
        self.touched.set(true);
        self.wakers.lock().insert(waker.clone())
    }

    fn wake(&self) {
        let wakers: Vec<Waker> = self
            .wakers
            .lock()
            .iter()
            .map(|(_, waker)| waker.clone())
            .collect();
        wakers.iter().for_each(Waker::wake_by_ref);
        let children: Vec<Rc<Scope>> = self
            .children
            .borrow()
            .iter()
            .filter_map(|(_, child)| child.upgrade())
            .collect();
        children.iter().for_each(|child| child.wake());
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        if let Some(parent) = &self.parent {
            parent.children.borrow_mut().try_remove(self.place.get());
        }
    }
}

/// The cancellation of what is below an isolate that is cancelled itself.
///
/// It names that isolate and the first author. Those between them are on the isolate's path, and a
/// list of them would make each level of a tree dearer to cancel than the one above it.
pub(crate) fn passed_on(by: Origin, cancel: &Cancel) -> Cancel {
    let first = match &cancel.by {
        Canceller::Parent(_, first) => first.clone(),
        first => Box::new(first.clone()),
    };
    Cancel {
        by: Canceller::Parent(by, first),
    }
}

/// The error of a checkpoint inside of a cancelled scope.
pub(crate) fn cancelled_error(cancel: Cancel) -> Error {
    let message = cancel.to_string();
    Error::new(ErrorKind::Cancelled(cancel), message)
}

/// Ready when a checkpoint of a cancelled scope may fail at once.
///
/// Now and then it is not, and the isolate's loop gets a turn: code that ignores the error and goes
/// round again would otherwise never give its thread back, and could not be dropped when its grace
/// is over.
pub(crate) fn poll_refusal(cx: &mut Context<'_>) -> Poll<()> {
    const AT_ONCE: u32 = 32;
    thread_local! {
        static REFUSED: Cell<u32> = const { Cell::new(0) };
    }
    let refused = REFUSED.get().wrapping_add(1);
    REFUSED.set(refused);
    if refused.is_multiple_of(AT_ONCE) {
        cx.waker().wake_by_ref();
        return Poll::Pending;
    }
    Poll::Ready(())
}

/// A place among those who are woken when the scope is cancelled. Gone when dropped.
///
/// It belongs to the scope in which it is first polled in vain.
#[derive(Default)]
pub(crate) struct ScopeWatch {
    place: Option<(Rc<Scope>, usize)>,
}

impl ScopeWatch {
    /// The cancellation if there is one; nobody is woken by it.
    pub(crate) fn look(&self) -> Option<Cancel> {
        match &self.place {
            Some((scope, _)) => scope.cancelled(),
            None => Scope::current()?.cancelled(),
        }
    }

    /// Ready with the cancellation once there is one.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Cancel> {
        if let Some((scope, key)) = &self.place {
            if let Some(cancel) = scope.cancelled() {
                return Poll::Ready(cancel);
            }
            scope.wakers.lock()[*key].clone_from(cx.waker());
            return Poll::Pending;
        }
        let Some(scope) = Scope::current() else {
            return Poll::Pending;
        };
        if let Some(cancel) = scope.cancelled() {
            return Poll::Ready(cancel);
        }
        let key = scope.add_waker(cx.waker());
        self.place = Some((scope, key));
        Poll::Pending
    }
}

impl Drop for ScopeWatch {
    fn drop(&mut self) {
        if let Some((scope, key)) = &self.place {
            scope.wakers.lock().try_remove(*key);
        }
    }
}

/// As [`ScopeWatch`], for what may be dropped on another thread: it belongs to the scope in which it was last polled.
#[derive(Default)]
pub(crate) struct SendWatch {
    place: Option<(Wakers, usize)>,
}

impl SendWatch {
    /// Ready with the cancellation of the current scope once there is one.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Cancel> {
        let Some(scope) = Scope::current() else {
            return Poll::Pending;
        };
        if let Some(cancel) = scope.cancelled() {
            return Poll::Ready(cancel);
        }
        match &self.place {
            Some((wakers, key)) if Arc::ptr_eq(wakers, &scope.wakers) => {
                wakers.lock()[*key].clone_from(cx.waker());
            }
            _ => {
                self.leave();
                let key = scope.add_waker(cx.waker());
                self.place = Some((scope.wakers.clone(), key));
            }
        }
        Poll::Pending
    }

    fn leave(&mut self) {
        if let Some((wakers, key)) = self.place.take() {
            wakers.lock().try_remove(key);
        }
    }
}

impl Drop for SendWatch {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Canceller;

    fn cancel() -> Cancel {
        Cancel {
            by: Canceller::Deadline,
        }
    }

    #[test]
    fn a_cancellation_reaches_what_is_below_and_nothing_else() {
        let root = Scope::root();
        let (left, right) = (root.child(), root.child());
        let below = left.child();
        left.cancel(cancel());
        assert!(below.cancelled().is_some() && left.cancelled().is_some());
        assert!(right.cancelled().is_none() && root.cancelled().is_none());
        below.enter(|| assert!(Scope::current().unwrap().cancelled().is_some()));
        assert!(Scope::current().is_none());
    }

    #[test]
    fn a_shield_keeps_out_what_comes_from_above_and_nothing_else() {
        let root = Scope::root();
        let shield = root.child();
        let below = shield.child();
        shield.set_shielded(true);
        root.cancel(cancel());
        assert!(below.cancelled().is_none() && shield.cancelled().is_none());
        shield.set_shielded(false);
        assert!(below.cancelled().is_some());
        shield.set_shielded(true);
        shield.cancel(cancel());
        assert!(below.cancelled().is_some());
    }

    #[test]
    fn scopes_and_watches_leave_nothing_in_their_parents() {
        let root = Scope::root();
        root.enter(|| {
            let mut watch = ScopeWatch::default();
            assert!(
                watch
                    .poll(&mut Context::from_waker(Waker::noop()))
                    .is_pending()
            );
            assert_eq!(root.wakers.lock().len(), 1);
        });
        drop(root.child());
        assert!(root.wakers.lock().is_empty() && root.children.borrow().is_empty());
    }
}
