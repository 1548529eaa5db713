//! Panics as values: message, place and backtrace, kept by a hook until the panic is caught.

use crate::Panic;
use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Once, OnceLock};
use std::time::Duration;

/// Location and backtrace.
pub(crate) type Place = Option<(Option<String>, Option<String>)>;

thread_local! {
    /// Where the last panic of this thread happened. Only set on threads of isolates, and on those
    /// that work for them.
    static LAST: RefCell<Place> = const { RefCell::new(None) };
    static WORKS_FOR_ISOLATES: Cell<bool> = const { Cell::new(false) };
}

/// Has the places of panics kept on this thread, too, which is no isolate's.
pub(crate) fn record_here() {
    WORKS_FOR_ISOLATES.set(true);
}

/// Takes the place of the last panic of this thread, to give it to the thread where it goes on.
pub(crate) fn place() -> Place {
    LAST.with(|last| last.borrow_mut().take())
}

/// Sets the place of a panic that goes on here.
pub(crate) fn put_place(place: Place) {
    LAST.with(|last| *last.borrow_mut() = place);
}

/// What is told the panic by which this process is about to be aborted.
static LAST_WORD: OnceLock<Box<dyn Fn(Panic) + Send + Sync>> = OnceLock::new();

/// How long telling it may take: a lock may be held by the thread that panics.
const LAST_WORD_BOUND: Duration = Duration::from_millis(200);

/// Has panics told before they abort this process, where the program is built so. The first that sets it counts.
pub(crate) fn tell_before_abort(tell: impl Fn(Panic) + Send + Sync + 'static) {
    if cfg!(panic = "abort") {
        let _ = LAST_WORD.set(Box::new(tell));
    }
}

/// Tells the last word from another thread, and waits for that.
fn tell_last_word(panic: Panic) {
    let (done, told) = std::sync::mpsc::channel();
    let told_by = std::thread::Builder::new().spawn(move || {
        if let Some(tell) = LAST_WORD.get() {
            tell(panic);
        }
        let _ = done.send(());
    });
    if told_by.is_ok() {
        let _ = told.recv_timeout(LAST_WORD_BOUND);
    }
}

/// This process was forked for an isolate: its main thread has no name, and no hook is the program's when ours is added.
static FORKED: AtomicBool = AtomicBool::new(false);

/// Has panics on the main thread of this process told under the name of its isolate. `std` has none for it.
pub(crate) fn name_main_thread() {
    FORKED.store(true, Ordering::Relaxed);
}

/// Prints what `std` prints of a panic, with the isolate's name in place of the thread's, where that thread has none.
fn print_named(info: &PanicHookInfo<'_>) -> bool {
    if !FORKED.load(Ordering::Relaxed) || std::thread::current().name().is_some() {
        return false;
    }
    let Some(local) = super::local::Local::try_current() else {
        return false;
    };
    let isolate = local.shared.life.origin().path;
    let pid = std::process::id();
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let message = info
        .payload_as_str()
        .unwrap_or("a panic whose payload is no text");
    let backtrace = Backtrace::capture();
    let backtrace = match backtrace.status() {
        BacktraceStatus::Captured => format!("stack backtrace:\n{backtrace}"),
        _ => "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace"
            .to_owned(),
    };
    offshoot_sys::say::report(&format!(
        "\nisolate '{isolate}' ({pid}) panicked at {place}:\n{message}\n{backtrace}\n"
    ));
    true
}

/// Adds our hook in front of the program's own, once per process. It prints nothing itself, but on the main thread of a
/// process isolate.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        let earlier = move |info: &PanicHookInfo<'_>| {
            if !print_named(info) {
                before(info);
            }
        };
        std::panic::set_hook(Box::new(move |info| {
            let isolate = super::local::Local::try_current().is_some()
                || WORKS_FOR_ISOLATES.try_with(Cell::get).unwrap_or(false);
            let last_word = LAST_WORD.get().is_some();
            let location = || info.location().map(ToString::to_string);
            let backtrace = || {
                let backtrace = Backtrace::capture();
                (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string())
            };
            if last_word {
                earlier(info);
                let message = info.payload_as_str();
                tell_last_word(Panic {
                    message: message
                        .unwrap_or("a panic whose payload is no text")
                        .to_owned(),
                    location: location(),
                    backtrace: backtrace(),
                });
                return;
            }
            if isolate {
                let (location, backtrace) = (location(), backtrace());
                // Borrowed only here and in `take`, neither of which panics inside.
                LAST.with(|last| *last.borrow_mut() = Some((location, backtrace)));
            }
            earlier(info);
        }));
    });
}

/// Turns a caught payload into a value. The payload's own destructor may panic; that is caught too.
pub(crate) fn take(payload: Box<dyn Any + Send>) -> Panic {
    let message = if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic whose payload is no text".to_owned()
    };
    if let Err(second) = std::panic::catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
    let (location, backtrace) = LAST
        .with(|last| last.borrow_mut().take())
        .unwrap_or_default();
    Panic {
        message,
        location,
        backtrace,
    }
}

/// Drops a value of the program's; what its destructor panicked with, if it did.
///
/// Several values are dropped one by one in this way: the second panic of destructors that are run by one drop is a panic during a
/// panic, which aborts the program.
pub(crate) fn drop_caught<T>(value: T) -> Option<Panic> {
    let dropped = std::panic::catch_unwind(AssertUnwindSafe(|| drop(value)));
    dropped.err().map(take)
}

/// Drops values of the program's, each by itself. The first panic of a destructor goes on from here once all are dropped, unless the
/// thread is panicking already; the others are logged.
pub(crate) fn drop_each<T>(values: impl IntoIterator<Item = T>) {
    let mut first = None;
    for value in values {
        let Err(payload) = std::panic::catch_unwind(AssertUnwindSafe(|| drop(value))) else {
            continue;
        };
        let place = place();
        match first {
            None if !std::thread::panicking() => first = Some((payload, place)),
            _ => {
                put_place(place);
                let panic = take(payload);
                crate::log::error!(%panic, "a destructor panicked");
            }
        }
    }
    if let Some((payload, place)) = first {
        put_place(place);
        std::panic::resume_unwind(payload);
    }
}

/// A collection of values of the program's, dropped as by [`drop_each`].
#[derive(Debug, Default)]
pub(crate) struct DropEach<C: IntoIterator + Default>(pub(crate) C);

impl<C: IntoIterator + Default> Drop for DropEach<C> {
    fn drop(&mut self) {
        drop_each(std::mem::take(&mut self.0));
    }
}

impl<C: IntoIterator + Default> std::ops::Deref for DropEach<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.0
    }
}

impl<C: IntoIterator + Default> std::ops::DerefMut for DropEach<C> {
    fn deref_mut(&mut self) -> &mut C {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::catch_unwind;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Panics<'a>(usize, &'a AtomicUsize);
    impl Drop for Panics<'_> {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::Relaxed);
            panic!("{}", self.0);
        }
    }

    #[test]
    fn each_value_is_dropped_and_the_first_panic_goes_on() {
        let dropped = AtomicUsize::new(0);
        let values: Vec<_> = (0..5).map(|n| Panics(n, &dropped)).collect();
        let went_on = catch_unwind(AssertUnwindSafe(|| drop_each(values))).unwrap_err();
        assert_eq!(take(went_on).message, "0");
        assert_eq!(dropped.load(Ordering::Relaxed), 5);
        assert_eq!(
            drop_caught(Panics(7, &dropped)).map(|panic| panic.message),
            Some("7".to_owned())
        );
        assert!(drop_caught(7).is_none());
    }

    #[test]
    fn none_goes_on_during_a_panic() {
        struct Outer<'a>(&'a AtomicUsize);
        impl Drop for Outer<'_> {
            fn drop(&mut self) {
                drop_each((1..4).map(|n| Panics(n, self.0)));
            }
        }
        let dropped = AtomicUsize::new(0);
        let went_on = catch_unwind(AssertUnwindSafe(|| {
            let _outer = Outer(&dropped);
            panic!("outer");
        }));
        assert_eq!(take(went_on.unwrap_err()).message, "outer");
        assert_eq!(dropped.load(Ordering::Relaxed), 3);
    }
}
