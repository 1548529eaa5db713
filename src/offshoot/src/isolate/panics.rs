//! Panics as values: message, place and backtrace, kept by a hook until the panic is caught.

use crate::Panic;
use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::panic::AssertUnwindSafe;
use std::sync::Once;

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

/// Adds our hook in front of the program's own, once per process. It prints nothing itself.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let earlier = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let isolate = super::local::Local::try_current().is_some()
                || WORKS_FOR_ISOLATES.try_with(Cell::get).unwrap_or(false);
            if isolate {
                let location = info.location().map(ToString::to_string);
                let backtrace = Backtrace::capture();
                let backtrace = (backtrace.status() == BacktraceStatus::Captured)
                    .then(|| backtrace.to_string());
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
