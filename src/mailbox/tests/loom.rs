//! Models of the races in this crate, in which loom tries every interleaving and every value a load may see.
//!
//! Run by `ci/loom`, which also breaks the code in known ways (`offshoot_mutant`) and wants a model to fail for each.
//! Without `--cfg offshoot_loom` this file is empty. Loom misses some relaxed orderings that should be release,
//! namely where the storing thread has loaded the same atomic before; the mutants say which it does see.
//!
//! A lost wake-up shows as a deadlock, an ordering that is too weak as concurrent access to a cell or as a stale
//! value, a lost value as a leak.

#![cfg(offshoot_loom)]

use loom::{
    alloc::Track,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
use offshoot_mailbox::{
    Contents, Envelope, Letter, List, Parker, Pushed, Queue, Sleep, Wake, WakerCell,
    oneshot::{self, Receiver, Slot},
};
use std::{
    future::poll_fn,
    pin::pin,
    sync,
    task::{self, Context, Poll, Waker},
};

/// A value that loom misses if it is neither dropped nor returned.
type Value = Track<u32>;

// The inbox.

#[test]
fn queue_returns_each_value_once() {
    loom::model(|| {
        let queue = Arc::new(Queue::new());
        let one = producer(&queue, &[10, 11]);
        let two = producer(&queue, &[20]);

        let mut batches = 0;
        let mut taken = Vec::new();
        for batch in [queue.take_all(), queue.close()] {
            batches += usize::from(batch.len() > 0);
            taken.extend(batch.map(Track::into_inner));
        }
        assert_eq!(queue.close().len(), 0, "closing twice took something twice");

        let (first_one, refused_one) = one.join().unwrap();
        let (first_two, refused_two) = two.join().unwrap();
        assert_eq!(
            first_one + first_two,
            batches,
            "there is one first push for each batch"
        );

        assert!(
            taken.iter().filter(|value| **value < 20).is_sorted(),
            "the order of a producer was lost: {taken:?}"
        );
        let mut all = [taken, refused_one, refused_two].concat();
        all.sort_unstable();
        assert_eq!(all, [10, 11, 20]);
    });

    /// Pushes the values; gives the number of those that were first, and those that were refused.
    fn producer(
        queue: &Arc<Queue<Value>>,
        values: &'static [u32],
    ) -> thread::JoinHandle<(usize, Vec<u32>)> {
        let queue = Arc::clone(queue);
        thread::spawn(move || {
            let (mut first, mut refused) = (0, Vec::new());
            for value in values {
                match queue.push(Track::new(*value)) {
                    Ok(Pushed::First) => first += 1,
                    Ok(Pushed::Behind) => {}
                    Err(value) => refused.push(value.into_inner()),
                }
            }
            (first, refused)
        })
    }
}

#[test]
fn queue_drops_what_nobody_took() {
    loom::model(|| {
        let queue = Arc::new(Queue::new());
        let other = Arc::clone(&queue);
        let pusher = thread::spawn(move || drop(other.push(Track::new(1))));
        drop(queue.push(Track::new(2)));
        drop(queue);
        pusher.join().unwrap();
    });
}

#[test]
fn queue_stays_closed() {
    loom::model(|| {
        let queue = Arc::new(Queue::new());
        assert!(queue.push(Track::new(1)).is_ok());
        let closer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.close().len())
        };
        let taken = queue.take_all().len();
        assert_eq!(closer.join().unwrap() + taken, 1);
        assert!(queue.push(Track::new(2)).is_err());
    });
}

#[test]
fn queue_closed_shows_what_was_before() {
    loom::model(|| {
        let queue = Arc::new(Queue::<()>::new());
        let reason = Arc::new(AtomicBool::new(false));
        let closer = {
            let (queue, reason) = (Arc::clone(&queue), Arc::clone(&reason));
            thread::spawn(move || {
                reason.store(true, Ordering::Relaxed);
                drop(queue.close());
            })
        };
        if queue.push(()).is_err() {
            assert!(reason.load(Ordering::Relaxed));
        }
        closer.join().unwrap();
    });
}

// The sleep.

/// A parker and the two things to sleep in, each as it is promised by the system.
struct Owner {
    parker: Parker,
    futex: (Mutex<()>, Condvar),
    eventfd: (Mutex<bool>, Condvar),
}

impl Owner {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            parker: Parker::new(),
            futex: (Mutex::new(()), Condvar::new()),
            eventfd: (Mutex::new(false), Condvar::new()),
        })
    }

    fn unpark(&self) {
        match self.parker.unpark() {
            Wake::Nothing => {}
            Wake::Futex => {
                let (lock, changed) = &self.futex;
                drop(lock.lock().unwrap());
                changed.notify_one();
            }
            Wake::Poll => {
                let (readable, changed) = &self.eventfd;
                *readable.lock().unwrap() = true;
                changed.notify_one();
            }
        }
    }

    fn sleep(&self, how: Sleep) {
        if !self.parker.prepare(how) {
            return;
        }
        match how {
            Sleep::Futex => {
                let (lock, changed) = &self.futex;
                let mut held = lock.lock().unwrap();
                while self.parker.is_asleep() {
                    held = changed.wait(held).unwrap();
                }
            }
            Sleep::Poll => {
                let (readable, changed) = &self.eventfd;
                let mut readable = readable.lock().unwrap();
                while !*readable {
                    readable = changed.wait(readable).unwrap();
                }
                *readable = false;
            }
        }
        assert!(self.parker.finish(), "woken without a notification");
    }
}

fn owner_gets_all_messages(how: Sleep, wake_always: bool) {
    loom::model(move || {
        let owner = Owner::new();
        let queue = Arc::new(Queue::new());
        let producers = [1, 2].map(|value| {
            let (owner, queue) = (Arc::clone(&owner), Arc::clone(&queue));
            thread::spawn(move || {
                let pushed = queue.push(Track::new(value)).unwrap();
                if wake_always || pushed == Pushed::First {
                    owner.unpark();
                }
            })
        });

        let mut sum = 0;
        while sum < 3 {
            let batch = queue.take_all();
            if batch.len() > 0 {
                sum += batch.map(Track::into_inner).sum::<u32>();
            } else {
                owner.sleep(how);
            }
        }
        for producer in producers {
            producer.join().unwrap();
        }
    });
}

#[test]
fn parker_wakes_from_futex() {
    owner_gets_all_messages(Sleep::Futex, true);
}

#[test]
fn parker_wakes_from_poll() {
    owner_gets_all_messages(Sleep::Poll, true);
}

#[test]
fn parker_wakes_for_first_of_batch() {
    owner_gets_all_messages(Sleep::Futex, false);
}

#[test]
fn parker_shows_all_that_was_announced() {
    loom::model(|| {
        let owner = Owner::new();
        let work = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let wakers = work.each_ref().map(|done| {
            let (owner, done) = (Arc::clone(&owner), Arc::clone(done));
            thread::spawn(move || {
                done.store(true, Ordering::Relaxed);
                owner.unpark();
            })
        });

        // The flags are relaxed: only the parker makes them visible.
        while !work.iter().all(|done| done.load(Ordering::Relaxed)) {
            owner.sleep(Sleep::Futex);
        }
        for waker in wakers {
            waker.join().unwrap();
        }
    });
}

// The waker of a task.

/// A thread that polls, with a waker for it.
struct Task {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Task {
    fn new() -> (sync::Arc<Self>, Waker) {
        let task = sync::Arc::new(Self {
            woken: Mutex::new(false),
            changed: Condvar::new(),
        });
        (task.clone(), Waker::from(task))
    }

    fn wait(&self) {
        let mut woken = self.woken.lock().unwrap();
        while !*woken {
            woken = self.changed.wait(woken).unwrap();
        }
        *woken = false;
    }
}

impl task::Wake for Task {
    fn wake(self: sync::Arc<Self>) {
        *self.woken.lock().unwrap() = true;
        self.changed.notify_one();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let (task, waker) = Task::new();
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(output) => return output,
            Poll::Pending => task.wait(),
        }
    }
}

#[test]
fn waker_cell_loses_no_wake_up() {
    loom::model(|| {
        let cell = Arc::new(WakerCell::new());
        let work = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let wakers = work.each_ref().map(|done| {
            let (cell, done) = (Arc::clone(&cell), Arc::clone(done));
            thread::spawn(move || {
                done.store(true, Ordering::Relaxed);
                cell.wake();
            })
        });
        block_on(poll_fn(|cx| {
            cell.register(cx.waker());
            if work.iter().all(|done| done.load(Ordering::Relaxed)) {
                Poll::Ready(())
            } else {
                // Who comes while a waking is under way is told to come again; let the other thread get on.
                thread::yield_now();
                Poll::Pending
            }
        }));
        for waker in wakers {
            waker.join().unwrap();
        }
    });
}

#[test]
fn waker_cell_is_safe_for_two_who_register() {
    loom::model(|| {
        let cell = Arc::new(WakerCell::new());
        let registering = [(); 2].map(|()| {
            let cell = Arc::clone(&cell);
            thread::spawn(move || {
                let (task, waker) = Task::new();
                cell.register(&waker);
                task
            })
        });
        let tasks = registering.map(|thread| thread.join().unwrap());
        cell.wake();
        assert!(
            tasks.iter().any(|task| *task.woken.lock().unwrap()),
            "neither the one that registered last nor the one that was turned away was woken"
        );
    });
}

// The reply slot.

#[test]
fn oneshot_send_against_drop_of_receiver() {
    loom::model(|| {
        let (sender, receiver) = oneshot::channel();
        let thread = thread::spawn(move || {
            if let Err(value) = sender.send(Track::new(7)) {
                assert_eq!(value.into_inner(), 7);
            }
        });
        drop(receiver);
        thread.join().unwrap();
    });
}

#[test]
fn oneshot_send_against_close() {
    loom::model(|| {
        let (sender, mut receiver) = oneshot::channel();
        let thread = thread::spawn(move || sender.send(Track::new(7)).map_err(Track::into_inner));
        receiver.close();
        let received = receiver
            .try_recv()
            .expect("a closed slot is decided")
            .map(Track::into_inner);
        match thread.join().unwrap() {
            Ok(()) => assert_eq!(received, Ok(7)),
            Err(value) => assert_eq!((value, received), (7, Err(oneshot::Dropped))),
        }
    });
}

#[test]
fn oneshot_send_against_poll() {
    loom::model(|| {
        let (sender, receiver) = oneshot::channel();
        let thread = thread::spawn(move || assert!(sender.send(Track::new(7)).is_ok()));
        assert_eq!(block_on(receiver).map(Track::into_inner), Ok(7));
        thread.join().unwrap();
    });
}

#[test]
fn oneshot_send_against_poll_with_another_waker() {
    loom::model(|| {
        let (sender, receiver) = oneshot::channel();
        let mut receiver = pin!(receiver);
        let stale = Task::new().1;
        assert!(
            receiver
                .as_mut()
                .poll(&mut Context::from_waker(&stale))
                .is_pending()
        );
        let thread = thread::spawn(move || assert!(sender.send(Track::new(7)).is_ok()));
        assert_eq!(block_on(receiver).map(Track::into_inner), Ok(7));
        thread.join().unwrap();
    });
}

#[test]
fn oneshot_drop_of_sender_against_poll() {
    loom::model(|| {
        let (sender, receiver) = oneshot::channel::<Value>();
        let thread = thread::spawn(move || drop(sender));
        assert!(block_on(receiver).is_err());
        thread.join().unwrap();
    });
}

#[test]
fn oneshot_poll_closed_against_close() {
    loom::model(|| {
        let (mut sender, mut receiver) = oneshot::channel::<Value>();
        let thread = thread::spawn(move || {
            receiver.close();
            assert!(matches!(receiver.try_recv(), Some(Err(oneshot::Dropped))));
        });
        block_on(poll_fn(|cx| sender.poll_closed(cx)));
        assert!(sender.send(Track::new(7)).is_err());
        thread.join().unwrap();
    });
}

#[test]
fn oneshot_both_ends_wait_and_both_go() {
    loom::model(|| {
        let (mut sender, receiver) = oneshot::channel();
        let mut receiver = Box::pin(receiver);
        let thread = thread::spawn(move || {
            let (_, waker) = Task::new();
            let closed = sender.poll_closed(&mut Context::from_waker(&waker));
            let sent = sender.send(Track::new(7));
            assert!(
                closed.is_pending() || sent.is_err(),
                "sent into a closed slot"
            );
        });
        let (_, waker) = Task::new();
        let _ = receiver.as_mut().poll(&mut Context::from_waker(&waker));
        drop(receiver);
        thread.join().unwrap();
    });
}

// A message in its envelope.

struct Question(Value);

type Asked = Envelope<Question, Slot<Value>>;

impl Contents<Slot<Value>> for Question {
    type Face = Asked;

    fn face(envelope: Arc<Asked>) -> Arc<Asked> {
        envelope
    }
}

/// An envelope and the end that awaits its reply.
fn asked() -> (Arc<Asked>, Receiver<Value, Asked>) {
    let envelope = Envelope::with_reply(Question(Track::new(0)));
    (Arc::clone(&envelope), Receiver::new(envelope))
}

/// Twice what was asked for.
fn answer(letter: Letter<Asked>) {
    let (Question(value), sender) = Envelope::open(letter.open()).expect("it is sent once");
    let _ = sender.send(Track::new(2 * value.into_inner()));
}

#[test]
fn letter_is_answered_or_refused() {
    loom::model(|| {
        let inbox = Arc::new(List::new());
        let (envelope, receiver) = asked();
        let sender = {
            let inbox = Arc::clone(&inbox);
            thread::spawn(move || {
                let letter = Letter::seal(envelope, |question| question.0 = Track::new(21));
                drop(inbox.push(letter));
                block_on(receiver).map(Track::into_inner)
            })
        };
        inbox.take_all().for_each(answer);
        drop(inbox.close());
        match sender.join().unwrap() {
            Ok(value) => assert_eq!(value, 42, "the stamp was not seen"),
            Err(oneshot::Dropped) => {}
        }
    });
}

#[test]
fn letter_that_is_dropped_tells_its_sender() {
    loom::model(|| {
        let (envelope, receiver) = asked();
        let letter = Letter::seal(envelope, |_| {});
        let thread = thread::spawn(move || drop(letter));
        assert!(block_on(receiver).is_err());
        thread.join().unwrap();
    });
}

#[test]
fn letter_is_answered_while_its_sender_goes() {
    loom::model(|| {
        let (envelope, receiver) = asked();
        let letter = Letter::seal(envelope, |_| {});
        let thread = thread::spawn(move || answer(letter));
        drop(receiver);
        thread.join().unwrap();
    });
}

#[test]
fn envelope_gives_what_is_in_it_to_one() {
    loom::model(|| {
        let (envelope, receiver) = asked();
        let other = Arc::clone(&envelope);
        let thread = thread::spawn(move || Envelope::open(other).is_some());
        let here = envelope.retract().is_some();
        assert!(
            here != thread.join().unwrap(),
            "it was taken by both or none"
        );
        assert!(block_on(receiver).is_err());
    });
}

#[test]
fn oneshot_value_goes_to_one_of_two() {
    loom::model(|| {
        let (envelope, one) = asked();
        let two = Receiver::new(Arc::clone(&envelope));
        answer(Letter::seal(envelope, |_| {}));
        let receive = |mut receiver: Receiver<Value, Asked>| {
            let received = receiver.try_recv().expect("it is decided");
            u32::from(received.is_ok())
        };
        let thread = thread::spawn(move || receive(one));
        assert_eq!(receive(two) + thread.join().unwrap(), 1);
    });
}
