//! That a nursery is sound, whatever becomes of its future: leaked, dropped, or unwound through.
//!
//! The future is polled by hand on an isolate that has no thread, so that these run under Miri, too
//! (`ci/miri`), which sees a borrow that is used after its end. The counts show the same natively.

use super::*;
use crate::isolate::local::Phase;
use crate::runtime::Runtime;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Makes this thread an isolate's for as long as it lives.
struct Isolated(Rc<Local>);

impl Isolated {
    fn new() -> Isolated {
        let runtime = Runtime::bare().unwrap();
        let id = runtime.next_id();
        let origin = Origin {
            path: "test".to_owned(),
            id,
            pid: 1,
        };
        let life = Arc::new(Life::new(origin));
        let shared = Shared::new(
            life,
            runtime,
            None,
            Arc::default(),
            crate::Bounds::default(),
        );
        let local = Local::new(shared);
        local.enter();
        Isolated(local)
    }

    /// Whether anything is left of nurseries in the isolate.
    fn is_clean(&self) -> bool {
        self.0.shared.family.lock().is_empty()
    }
}

impl Drop for Isolated {
    fn drop(&mut self) {
        Local::leave();
    }
}

fn poll<T>(future: &mut Pin<Box<impl Future<Output = T>>>) -> Poll<T> {
    future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
}

/// Polls until it is ready, which takes a bounded number of polls here.
fn finish<T>(mut future: Pin<Box<impl Future<Output = T>>>) -> T {
    for _ in 0..100 {
        if let Poll::Ready(value) = poll(&mut future) {
            return value;
        }
    }
    panic!("not ready after 100 polls");
}

/// Pending for ever; hands out a waker on each poll.
async fn park(wakers: &RefCell<Vec<Waker>>) {
    poll_fn(|cx| {
        wakers.borrow_mut().push(cx.waker().clone());
        Poll::<()>::Pending
    })
    .await
}

/// Gives the others a turn.
async fn yield_once() {
    let mut first = true;
    poll_fn(|cx| {
        if std::mem::take(&mut first) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    })
    .await
}

/// What happened, in order.
type Log = RefCell<Vec<&'static str>>;

/// Says when it is dropped.
struct Said<'a>(&'a Log, &'static str);

impl Drop for Said<'_> {
    fn drop(&mut self) {
        self.0.borrow_mut().push(self.1);
    }
}

#[test]
fn tasks_may_change_what_lies_outside_of_the_body() {
    let _isolate = Isolated::new();
    let mut words = vec!["one".to_owned()];
    let total = Cell::new(0);
    let result = finish(Box::pin(nursery(async |nursery| {
        let first = nursery.task(async {
            yield_once().await;
            words.push("two".to_owned());
            words.len()
        });
        let second = nursery.task(async {
            total.set(total.get() + 1);
            yield_once().await;
            total.get()
        });
        Ok((first.await?, second.await?))
    })));
    assert_eq!(result.unwrap(), (2, 1));
    words.push("three".to_owned());
    assert_eq!((words.len(), total.get()), (3, 1));
}

#[test]
fn an_inner_nursery_may_borrow_from_the_outer_body() {
    let _isolate = Isolated::new();
    let result = finish(Box::pin(nursery(async |outer| {
        let local = String::from("of the outer body");
        let length = nursery(async |inner| {
            let task = inner.task(async {
                yield_once().await;
                local.len()
            });
            task.await
        })
        .await?;
        outer.task(yield_once()).detach();
        Ok(length)
    })));
    assert_eq!(result.unwrap(), 17);
}

#[test]
fn leaked_after_a_partial_poll_nothing_of_it_runs_again() {
    let isolate = Isolated::new();
    let wakers = RefCell::new(Vec::new());
    let polls = Cell::new(0);
    let log = Log::default();
    let mut outside = vec![1, 2, 3];
    {
        let mut future = Box::pin(nursery(async |nursery| {
            nursery
                .task(async {
                    let _said = Said(&log, "task");
                    loop {
                        polls.set(polls.get() + 1);
                        // A use of the borrow at each poll: after its end, Miri would object.
                        outside.push(4);
                        park_once(&wakers).await;
                    }
                })
                .detach();
            let _said = Said(&log, "body");
            park(&wakers).await;
            Ok(())
        }));
        assert!(poll(&mut future).is_pending());
        std::mem::forget(future);
    }
    // The borrows have ended, as far as the compiler is concerned.
    assert_eq!((polls.get(), outside.as_slice()), (1, &[1, 2, 3, 4][..]));
    outside = Vec::new();
    for waker in wakers.take() {
        waker.wake();
    }
    // The isolate goes on, with another nursery.
    assert_eq!(finish(Box::pin(nursery(async |_| Ok(5)))).unwrap(), 5);
    isolate.0.close();
    let (exit, left) = isolate.0.run();
    assert!(exit.is_clean() && left.is_empty(), "{exit}");
    assert_eq!((polls.get(), outside.len()), (1, 0));
    assert!(log.borrow().is_empty(), "{log:?}");
}

/// Pending once; hands out its waker.
async fn park_once(wakers: &RefCell<Vec<Waker>>) {
    let mut first = true;
    poll_fn(|cx| {
        if std::mem::take(&mut first) {
            wakers.borrow_mut().push(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    })
    .await
}

/// Starts a task when it is dropped.
struct Respawns<'scope, 'env>(&'scope Nursery<'scope, 'env>, &'env Log, &'static str);

impl Drop for Respawns<'_, '_> {
    fn drop(&mut self) {
        let Respawns(nursery, log, name) = *self;
        log.borrow_mut().push(name);
        let said = Said(log, "respawned");
        let handle = nursery.task(async move {
            said.0.borrow_mut().push("polled");
        });
        drop(handle);
    }
}

#[test]
fn dropped_early_the_body_goes_first_and_then_the_tasks() {
    let isolate = Isolated::new();
    let log = Log::default();
    let wakers = RefCell::new(Vec::new());
    let mut future = Box::pin(nursery(async |nursery| {
        let (log, wakers) = (&log, &wakers);
        for name in ["first task", "second task"] {
            nursery
                .task(async move {
                    let _said = Said(log, name);
                    park(wakers).await;
                })
                .detach();
        }
        let _said = Said(log, "body");
        park(wakers).await;
        Ok(())
    }));
    assert!(poll(&mut future).is_pending());
    drop(future);
    assert_eq!(*log.borrow(), ["body", "first task", "second task"]);
    // Wakers that outlive the tasks are of no effect.
    wakers.take().into_iter().for_each(Waker::wake);
    assert_eq!(log.borrow().len(), 3);
    assert!(isolate.is_clean());
}

/// Looks, when it is dropped, whether the nursery is still there.
struct SeesNursery<'a>(&'a Isolated, &'a Cell<usize>);

impl Drop for SeesNursery<'_> {
    fn drop(&mut self) {
        self.1.set(self.0.0.nurseries_open());
    }
}

#[test]
fn tasks_are_dropped_while_the_nursery_is_whole() {
    let isolate = Isolated::new();
    let seen = Cell::new(usize::MAX);
    let wakers = RefCell::new(Vec::new());
    let mut future = Box::pin(nursery(async |nursery| {
        nursery
            .task(async {
                let _sees = SeesNursery(&isolate, &seen);
                park(&wakers).await;
            })
            .detach();
        park(&wakers).await;
        Ok(())
    }));
    assert!(poll(&mut future).is_pending());
    drop(future);
    assert_eq!((seen.get(), isolate.0.nurseries_open()), (1, 0));
}

#[test]
fn a_destructor_that_starts_a_task_gets_it_dropped_and_not_polled() {
    let _isolate = Isolated::new();
    let log = Log::default();
    let wakers = RefCell::new(Vec::new());
    let mut future = Box::pin(nursery(async |nursery| {
        let (log, wakers) = (&log, &wakers);
        nursery
            .task(async move {
                let _respawns = Respawns(nursery, log, "task");
                park(wakers).await;
            })
            .detach();
        let _respawns = Respawns(nursery, log, "body");
        park(wakers).await;
        Ok(())
    }));
    assert!(poll(&mut future).is_pending());
    drop(future);
    // What the body started is a task like the others, and is dropped with them.
    let log = log.borrow();
    assert_eq!(log[0], "body");
    assert_eq!(log.iter().filter(|word| **word == "respawned").count(), 2);
    assert!(log.contains(&"task") && !log.contains(&"polled"), "{log:?}");
}

#[test]
fn a_panic_of_the_body_drops_the_tasks_and_goes_on() {
    let isolate = Isolated::new();
    let log = Log::default();
    let wakers = RefCell::new(Vec::new());
    let mut future = Box::pin(nursery(async |nursery| {
        let (log, wakers) = (&log, &wakers);
        nursery
            .task(async move {
                let _said = Said(log, "task");
                park(wakers).await;
            })
            .detach();
        let _said = Said(log, "body");
        yield_once().await;
        if log.borrow().is_empty() {
            panic!("the body");
        }
        Ok(())
    }));
    assert!(poll(&mut future).is_pending());
    let caught = catch_unwind(AssertUnwindSafe(|| poll(&mut future).is_ready()));
    assert_eq!(*caught.unwrap_err().downcast::<&str>().unwrap(), "the body");
    // The body has unwound; the tasks go with the future, at the latest.
    assert_eq!(log.borrow()[0], "body");
    drop(future);
    assert_eq!(*log.borrow(), ["body", "task"]);
    wakers.take().into_iter().for_each(Waker::wake);
    assert!(isolate.is_clean());
}

#[test]
fn a_panic_of_a_task_is_a_failure_and_spares_the_others_their_destructors() {
    let _isolate = Isolated::new();
    let log = Log::default();
    let result: Result<()> = finish(Box::pin(nursery(async |nursery| {
        let log = &log;
        nursery
            .task(async move {
                let _said = Said(log, "other");
                let _ = crate::sleep(std::time::Duration::from_secs(3600)).await;
            })
            .detach();
        nursery
            .task(async move {
                let _said = Said(log, "panics");
                yield_once().await;
                panic!("a task");
            })
            .detach();
        let _said = Said(log, "body");
        crate::sleep(std::time::Duration::from_secs(3600)).await
    })));
    let error = result.unwrap_err();
    assert!(
        error.is_panic() && error.message().contains("a task"),
        "{error}"
    );
    let mut log = log.take();
    log.sort_unstable();
    assert_eq!(log, ["body", "other", "panics"]);
}

/// Panics when it is dropped.
struct Bomb<'a>(&'a Log);

impl Drop for Bomb<'_> {
    fn drop(&mut self) {
        self.0.borrow_mut().push("bomb");
        panic!("a destructor");
    }
}

#[test]
fn a_panic_in_a_destructor_leaves_no_task_and_no_nursery() {
    let isolate = Isolated::new();
    let log = Log::default();
    let wakers = RefCell::new(Vec::new());
    let mut future = Box::pin(nursery(async |nursery| {
        let (log, wakers) = (&log, &wakers);
        nursery
            .task(async move {
                let _bomb = Bomb(log);
                park(wakers).await;
            })
            .detach();
        nursery
            .task(async move {
                let _said = Said(log, "task");
                park(wakers).await;
            })
            .detach();
        park(wakers).await;
        Ok(())
    }));
    assert!(poll(&mut future).is_pending());
    assert_eq!(isolate.0.nurseries_open(), 1);
    // Nobody awaits it who could be told: the isolate has failed.
    drop(future);
    assert!(isolate.0.phase() > Phase::Running);
    assert_eq!(*log.borrow(), ["bomb", "task"]);
    assert_eq!(isolate.0.nurseries_open(), 0);
    wakers.take().into_iter().for_each(Waker::wake);
}

#[test]
fn a_handle_whose_task_was_dropped_says_so() {
    let _isolate = Isolated::new();
    let wakers = RefCell::new(Vec::new());
    let result = finish(Box::pin(nursery(async |nursery| {
        let handle = nursery.task(park(&wakers));
        yield_once().await;
        // As the ladder does at the end of the grace.
        nursery.core.drop_tasks();
        Ok(handle.await.unwrap_err().is_cancelled())
    })));
    assert!(result.unwrap());
}
