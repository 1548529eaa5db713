//! An isolate that is a thread: how it begins and how its end is told.

use super::inbox::Inbox;
use super::local::Local;
use super::shared::Shared;
use crate::{Error, ErrorKind, Exit, Result};
use offshoot_sys::thread::{Joiner, spawn_lean};
use std::any::Any;
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Starts what an isolate is to run, on the isolate's thread.
pub(crate) type Begin = Box<dyn FnOnce(&Rc<Local>) + Send>;

/// What a new isolate is there for.
pub(crate) enum Work {
    /// To be called.
    Serve,
    /// To be asked; makes the state on its own thread.
    State(Box<dyn FnOnce() -> Box<dyn Any> + Send>),
    /// To run this, then to end. It is given the isolate to spawn its main task on.
    Main(Begin),
}

/// How it receives.
#[derive(Clone, Copy)]
pub(crate) enum Manner {
    /// All that comes, concurrently.
    Loop,
    /// As its blocking main function says.
    Blocking(fn(&mut Inbox) -> Result<()>),
}

/// Tells the owner that the thread is about to exit.
///
/// It lies in a thread-local that is touched before any other one of the isolate's, and
/// thread-locals are destroyed last to first: so no destructor of the program runs after it.
/// (Those of C libraries, kept by `pthread_key_create`, do; the owner's join waits for them.)
struct LastGasp(Arc<Shared>);

impl Drop for LastGasp {
    fn drop(&mut self) {
        self.0.status.gone.store(true, Ordering::Release);
        if let Some(upward) = &self.0.upward {
            upward.nudge();
        }
    }
}

thread_local! {
    static LAST_GASP: RefCell<Option<LastGasp>> = const { RefCell::new(None) };
}

/// An isolate and what it is there for, on the way to its thread.
pub(crate) struct Assignment {
    shared: Arc<Shared>,
    work: Work,
    manner: Manner,
}

impl Assignment {
    pub(crate) fn name(&self) -> &str {
        self.shared.life.identity().name()
    }
}

/// Gives `shared` a thread: one of the reserve, or a new one if it is to have a stack of its own
/// size or the reserve is empty.
///
/// # Errors
/// [`ErrorKind::Spawn`] if the operating system gives no thread, with what it was to do, for another try.
pub(crate) fn start(
    shared: Arc<Shared>,
    work: Work,
    manner: Manner,
    stack: Option<usize>,
) -> Result<Joiner, (Error, Option<Work>)> {
    let runtime = shared.runtime.clone();
    let mut assignment = Assignment {
        shared,
        work,
        manner,
    };
    if stack.is_none() {
        assignment = match runtime.reserve.hand_over(assignment) {
            Ok(joiner) => return Ok(joiner),
            Err(assignment) => assignment,
        };
    }
    let name = assignment.name().to_owned();
    let stack = stack.or(runtime.settings.stack);
    let spawn = || ErrorKind::Spawn("thread".to_owned());
    if let Err(why) = crate::budget::thread(stack, runtime.settings.lean) {
        let message = format!("cannot start a thread for isolate `{name}`: {why}");
        return Err((Error::new(spawn(), message), Some(assignment.work)));
    }
    let lean = runtime.settings.lean;
    let Assignment {
        shared,
        work,
        manner,
    } = assignment;
    // Not in the closure, which a thread that cannot be had takes along.
    *shared.work.lock() = Some(work);
    let own = shared.clone();
    let body = move || {
        let work = own.work.lock().take();
        if let Some(work) = work {
            thread_main(Assignment {
                shared: own,
                work,
                manner,
            });
        }
    };
    crate::fault::check("thread", &name)
        .and_then(|()| launch(lean, &name, stack, body))
        .map_err(|error| {
            let message = format!(
                "cannot start a thread for isolate `{name}`: {error}; the limits are: {}",
                crate::budget::of_tasks()
            );
            let error = Error::new(spawn(), message).with_source(error);
            (error, shared.work.lock().take())
        })
}

/// Starts a thread, one of std's or a [lean](crate::Builder::lean_threads) one.
pub(crate) fn launch(
    lean: bool,
    name: &str,
    stack: Option<usize>,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<Joiner> {
    if lean {
        return spawn_lean(stack, name, body);
    }
    let mut builder = std::thread::Builder::new().name(name.to_owned());
    if let Some(stack) = stack {
        builder = builder.stack_size(stack);
    }
    builder.spawn(body).map(Joiner::from)
}

/// What a thread runs that is an isolate's.
pub(crate) fn thread_main(assignment: Assignment) {
    let Assignment {
        shared,
        work,
        manner,
    } = assignment;
    LAST_GASP.set(Some(LastGasp(shared.clone())));
    let (exit, left) = live(&shared, work, manner, |_| {});
    crate::fault::point("S8", shared.life.identity().name());
    end(&shared, exit, left);
}

/// One isolate's whole life on this thread. `before` sees it before its first turn.
pub(crate) fn live(
    shared: &Arc<Shared>,
    work: Work,
    manner: Manner,
    before: impl FnOnce(&Rc<Local>),
) -> (Exit, Vec<Error>) {
    shared.begin();
    let local = Local::new(shared.clone());
    local.enter();
    before(&local);
    set_to(&local, work);
    let outcome = match manner {
        Manner::Loop => local.run(),
        Manner::Blocking(main) => local.run_blocking(main),
    };
    Local::leave();
    outcome
}

/// Sets an isolate to its work. Not a part of [`live`], whose frame lies below all that the isolate ever does.
#[inline(never)]
fn set_to(local: &Rc<Local>, work: Work) {
    match work {
        // A `Portal<()>` can be asked, too, if only for methods of `()`.
        Work::Serve => local.set_state(Box::new(())),
        Work::State(make) => local.set_state(make()),
        Work::Main(start) => {
            local.set_state(Box::new(()));
            start(local);
        }
    }
    crate::fault::point("S6", local.shared.life.identity().name());
}

/// Says how an isolate ended.
pub(crate) fn end(shared: &Shared, exit: Exit, left: Vec<Error>) {
    // Written before it is announced: who sees the end finds the whole report. An abandoned
    // isolate has been reported already; its first report stands.
    let _ = shared.status.ended.set((exit.clone(), left));
    shared.life.announce(exit);
}
