//! Tests with real threads and exact counts of drops. The interleavings that they may miss are in `tests/loom.rs`.

use crate::{
    Contents, Envelope, Letter, List, Parker, Pushed, Queue, Refuse, Room, Sleep, Wake, WakerCell,
    oneshot::{self, Receiver, Slot},
};
use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll, RawWaker, RawWakerVTable, Waker},
    thread,
    time::{Duration, Instant},
};

/// How often a race is run. Miri is slow, and finds more by its seeds than by repetition.
const ROUNDS: usize = if cfg!(miri) { 5 } else { 2_000 };
const PRODUCERS: usize = if cfg!(miri) { 2 } else { 4 };
const VALUES: usize = if cfg!(miri) { 20 } else { 20_000 };
/// Longer than anything here takes on a slow machine; to wait so long is to have lost a wake-up.
const TOO_LONG: Duration = Duration::from_secs(60);

/// A value that counts how often it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn counter() -> (Arc<AtomicUsize>, impl Fn() -> Counted) {
    let drops = Arc::new(AtomicUsize::new(0));
    let make = {
        let drops = Arc::clone(&drops);
        move || Counted(Arc::clone(&drops))
    };
    (drops, make)
}

/// Runs `one` and `other` at the same time, as nearly as can be.
fn race<A: Send, B: Send>(
    one: impl FnOnce() -> A + Send,
    other: impl FnOnce() -> B + Send,
) -> (A, B) {
    let start = Barrier::new(2);
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            start.wait();
            other()
        });
        start.wait();
        (one(), other.join().unwrap())
    })
}

// Send and Sync.

const _: () = {
    const fn both<T: Send + Sync>() {}
    // A `Cell` is `Send`, but not `Sync`: what only passes through asks for no more.
    both::<Queue<Cell<u8>>>();
    both::<oneshot::Sender<Cell<u8>>>();
    both::<oneshot::Receiver<Cell<u8>>>();
    both::<Parker>();
    both::<WakerCell>();
    both::<List<Letter<dyn Job>>>();
    both::<Envelope<Carries, Slot<Cell<u8>>>>();
    const fn send<T: Send>() {}
    send::<crate::Values<Cell<u8>>>();
};

// The inbox.

#[test]
fn queue_is_first_in_first_out() {
    let queue = Queue::new();
    assert!(queue.is_empty());
    assert_eq!(queue.push(1), Ok(Pushed::First));
    assert_eq!(queue.push(2), Ok(Pushed::Behind));
    assert_eq!(queue.push(3), Ok(Pushed::Behind));
    assert!(!queue.is_empty());

    let mut batch = queue.take_all();
    assert!(queue.is_empty());
    assert_eq!(batch.len(), 3);
    assert_eq!(batch.next(), Some(1));
    assert_eq!(batch.len(), 2);
    // A push during the batch is for the next one.
    assert_eq!(queue.push(4), Ok(Pushed::First));
    assert!(batch.eq([2, 3]));
    assert!(queue.take_all().eq([4]));
    assert_eq!(queue.take_all().len(), 0);
}

#[test]
fn queue_closes_for_good() {
    let queue = Queue::new();
    queue.push("left").unwrap();
    assert!(!queue.is_closed());
    assert!(queue.close().eq(["left"]));
    assert!(queue.is_closed() && queue.is_empty());
    assert_eq!(queue.push("late"), Err("late"));
    assert_eq!(queue.take_all().len(), 0);
    assert_eq!(queue.close().len(), 0);
    assert!(queue.is_closed());
    assert_eq!(queue.push("later"), Err("later"));
}

#[test]
fn queue_and_batch_drop_what_they_hold() {
    let (drops, value) = counter();
    let queue = Queue::new();
    for _ in 0..5 {
        assert!(queue.push(value()).is_ok());
    }
    let mut batch = queue.take_all();
    drop(batch.next());
    assert_eq!(drops.load(Ordering::Relaxed), 1);
    drop(batch);
    assert_eq!(drops.load(Ordering::Relaxed), 5);
    assert!(queue.push(value()).is_ok());
    drop(queue);
    assert_eq!(drops.load(Ordering::Relaxed), 6);
}

#[test]
fn batch_drops_the_rest_if_a_drop_panics() {
    struct Bomb(
        #[expect(dead_code, reason = "is there to be dropped")] Counted,
        bool,
    );
    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(!self.1, "as planned");
        }
    }

    let (drops, value) = counter();
    let queue = Queue::new();
    for armed in [false, true, false, false] {
        assert!(queue.push(Bomb(value(), armed)).is_ok());
    }
    assert!(catch_unwind(|| drop(queue)).is_err());
    assert_eq!(drops.load(Ordering::Relaxed), 4);
}

#[test]
fn queue_takes_values_without_size() {
    let queue = Queue::new();
    queue.push(()).unwrap();
    queue.push(()).unwrap();
    assert_eq!(queue.take_all().count(), 2);
}

#[test]
fn queue_keeps_the_order_of_each_producer() {
    let queue = Queue::new();
    thread::scope(|scope| {
        for producer in 0..PRODUCERS {
            let queue = &queue;
            scope.spawn(move || {
                (0..VALUES).for_each(|value| assert!(queue.push((producer, value)).is_ok()))
            });
        }
        let mut next = [0; PRODUCERS];
        let begin = Instant::now();
        while next.iter().sum::<usize>() < PRODUCERS * VALUES {
            for (producer, value) in queue.take_all() {
                assert_eq!(value, next[producer]);
                next[producer] += 1;
            }
            assert!(begin.elapsed() < TOO_LONG, "lost a value: {next:?}");
            thread::yield_now();
        }
    });
    assert!(queue.is_empty());
}

#[test]
fn queue_closed_amid_pushes_loses_nothing() {
    for _ in 0..ROUNDS {
        let (drops, value) = counter();
        let queue = Queue::new();
        let (taken, (pushed, refused)) = race(
            || queue.take_all().count() + queue.close().count(),
            || {
                let mut outcome = (0, 0);
                for _ in 0..10 {
                    match queue.push(value()) {
                        Ok(_) => outcome.0 += 1,
                        Err(_) => outcome.1 += 1,
                    }
                }
                outcome
            },
        );
        assert_eq!((taken, pushed + refused), (pushed, 10));
        assert_eq!(drops.load(Ordering::Relaxed), 10);
    }
}

#[test]
fn queue_shared_by_two_takers_gives_each_value_once() {
    for _ in 0..ROUNDS {
        let queue = Queue::new();
        (0..4).for_each(|value| assert!(queue.push(value).is_ok()));
        let (one, other) = race(|| queue.take_all().count(), || queue.close().count());
        assert_eq!(one + other, 4);
        assert!(queue.is_closed());
    }
}

// The sleep.

#[test]
fn parker_goes_through_its_states() {
    let parker = Parker::new();
    for (how, wake) in [(Sleep::Futex, Wake::Futex), (Sleep::Poll, Wake::Poll)] {
        // Asleep, then woken by the first who notifies.
        assert!(parker.prepare(how));
        assert!(parker.is_asleep());
        assert_eq!(
            parker.word().load(Ordering::Relaxed) == Parker::ASLEEP,
            how == Sleep::Futex
        );
        assert_eq!(parker.unpark(), wake);
        assert!(!parker.is_asleep());
        assert_ne!(parker.word().load(Ordering::Relaxed), Parker::ASLEEP);
        assert_eq!(parker.unpark(), Wake::Nothing);
        assert!(parker.finish());

        // Asleep, then awake by itself.
        assert!(parker.prepare(how));
        assert!(!parker.finish());
        assert!(!parker.is_asleep());

        // Notified while awake, any number of times: the next sleep is off, the one after is not.
        assert_eq!(parker.unpark(), Wake::Nothing);
        assert_eq!(parker.unpark(), Wake::Nothing);
        assert!(!parker.prepare(how));
        assert!(parker.prepare(how));
        assert!(!parker.finish());
    }
}

#[test]
fn parker_refuses_a_second_sleeper() {
    let parker = Parker::new();
    assert!(parker.prepare(Sleep::Poll));
    assert!(catch_unwind(AssertUnwindSafe(|| parker.prepare(Sleep::Futex))).is_err());
    // The first one is still woken as it has to be.
    assert_eq!(parker.unpark(), Wake::Poll);
}

#[test]
fn parker_and_queue_lose_no_wake_up() {
    let (queue, parker) = (Queue::new(), Parker::new());
    // Stands for the eventfd: who is told to wake sends one, who sleeps receives one.
    let (wake, woken) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..PRODUCERS {
            let (queue, parker, wake) = (&queue, &parker, wake.clone());
            scope.spawn(move || {
                for value in 1..=VALUES {
                    if queue.push(value).unwrap() == Pushed::First && parker.unpark() == Wake::Poll
                    {
                        wake.send(()).unwrap();
                    }
                }
            });
        }
        let mut missing = PRODUCERS * VALUES * (VALUES + 1) / 2;
        while missing > 0 {
            let sum: usize = queue.take_all().sum();
            missing -= sum;
            if sum == 0 && parker.prepare(Sleep::Poll) {
                woken.recv_timeout(TOO_LONG).expect("a wake-up was lost");
                assert!(parker.finish());
            }
        }
    });
}

// The waker of a task.

/// Counts how often it is called.
#[derive(Default)]
struct Calls(AtomicUsize);

impl std::task::Wake for Calls {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Calls {
    fn new() -> (Arc<Self>, Waker) {
        let calls = Arc::new(Self::default());
        (Arc::clone(&calls), Waker::from(calls))
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

#[test]
fn waker_cell_calls_the_last_one_once() {
    let cell = WakerCell::new();
    let ((old_calls, old), (calls, waker)) = (Calls::new(), Calls::new());
    cell.wake();
    cell.register(&old);
    cell.register(&waker);
    assert_eq!(
        Arc::strong_count(&old_calls),
        2,
        "the waker that was replaced was not dropped"
    );
    cell.register(&waker);
    cell.wake();
    cell.wake();
    assert_eq!((old_calls.count(), calls.count()), (0, 1));
    assert_eq!(
        Arc::strong_count(&calls),
        2,
        "the waker that was called was not dropped"
    );

    cell.register(&waker);
    // Not `will_wake`, which compares tables of functions, too: there may be several of one type.
    assert!(
        cell.take()
            .is_some_and(|taken| taken.data() == waker.data())
    );
    assert!(cell.take().is_none());
    cell.wake();
    assert_eq!(calls.count(), 1);

    cell.register(&waker);
    drop(cell);
    assert_eq!(Arc::strong_count(&calls), 2);
}

#[test]
fn waker_cell_survives_a_clone_that_panics() {
    const VTABLE: RawWakerVTable =
        RawWakerVTable::new(|_| panic!("as planned"), |_| {}, |_| {}, |_| {});
    // SAFETY: the functions do nothing, so that they are safe from any thread and with any pointer. The one that
    // clones does not return.
    let bad = unsafe { Waker::from_raw(RawWaker::new(std::ptr::null(), &VTABLE)) };
    let cell = WakerCell::new();
    assert!(catch_unwind(AssertUnwindSafe(|| cell.register(&bad))).is_err());
    let (calls, waker) = Calls::new();
    cell.register(&waker);
    assert_eq!(calls.count(), 0, "the cell was left locked");
    cell.wake();
    assert_eq!(calls.count(), 1);
}

#[test]
fn waker_cell_may_be_used_by_its_own_wakers() {
    /// Registers itself again when called, and empties the cell when dropped.
    struct Again(Arc<WakerCell>, AtomicUsize);
    impl std::task::Wake for Again {
        fn wake(self: Arc<Self>) {
            if self.1.fetch_add(1, Ordering::Relaxed) < 3 {
                self.0.register(&Waker::from(Arc::clone(&self)));
            }
        }
    }
    impl Drop for Again {
        fn drop(&mut self) {
            assert!(
                self.0.take().is_some(),
                "the cell was locked, or not yet given its new waker"
            );
        }
    }

    let cell = Arc::new(WakerCell::new());
    let again = Arc::new(Again(Arc::clone(&cell), AtomicUsize::new(0)));
    cell.register(&Waker::from(Arc::clone(&again)));
    (0..5).for_each(|_| cell.wake());
    assert_eq!(again.1.load(Ordering::Relaxed), 4);

    // Replacing the last reference drops it inside `register`, which must have let go of the cell then.
    let (calls, waker) = Calls::new();
    again.1.store(0, Ordering::Relaxed);
    cell.register(&Waker::from(again));
    cell.register(&waker);
    cell.wake();
    assert_eq!(calls.count(), 0);
}

// The reply slot.

fn poll<T>(
    receiver: &mut oneshot::Receiver<T>,
    waker: &Waker,
) -> Poll<Result<T, oneshot::Dropped>> {
    Pin::new(receiver).poll(&mut Context::from_waker(waker))
}

#[test]
fn oneshot_wakes_the_receiver() {
    let ((old_calls, old), (calls, waker)) = (Calls::new(), Calls::new());
    let (sender, mut receiver) = oneshot::channel();
    assert_eq!(poll(&mut receiver, &old), Poll::Pending);
    assert_eq!(poll(&mut receiver, &waker), Poll::Pending);
    assert_eq!(sender.send(1), Ok(()));
    assert_eq!((old_calls.count(), calls.count()), (0, 1));
    assert_eq!(poll(&mut receiver, &waker), Poll::Ready(Ok(1)));
    assert_eq!(
        poll(&mut receiver, &waker),
        Poll::Ready(Err(oneshot::Dropped))
    );
    assert_eq!(receiver.try_recv(), Some(Err(oneshot::Dropped)));
}

#[test]
fn oneshot_tells_the_receiver_that_the_sender_went() {
    let (calls, waker) = Calls::new();
    let (sender, mut receiver) = oneshot::channel::<()>();
    assert_eq!(poll(&mut receiver, &waker), Poll::Pending);
    drop(sender);
    assert_eq!(calls.count(), 1);
    assert_eq!(
        poll(&mut receiver, &waker),
        Poll::Ready(Err(oneshot::Dropped))
    );
}

#[test]
fn oneshot_tells_the_sender_that_the_receiver_went() {
    let ends: [fn(oneshot::Receiver<u8>); 2] = [drop, |mut receiver| {
        receiver.close();
        assert_eq!(receiver.try_recv(), Some(Err(oneshot::Dropped)));
        receiver.close();
    }];
    for end in ends {
        let ((old_calls, old), (calls, waker)) = (Calls::new(), Calls::new());
        let (mut sender, receiver) = oneshot::channel();
        assert!(!sender.is_closed());
        assert!(
            sender
                .poll_closed(&mut Context::from_waker(&old))
                .is_pending()
        );
        assert!(
            sender
                .poll_closed(&mut Context::from_waker(&waker))
                .is_pending()
        );
        end(receiver);
        assert_eq!((old_calls.count(), calls.count()), (0, 1));
        assert!(sender.is_closed());
        assert!(
            sender
                .poll_closed(&mut Context::from_waker(&waker))
                .is_ready()
        );
        assert_eq!(sender.send(7), Err(7));
    }
}

#[test]
fn oneshot_keeps_a_value_that_came_before_close() {
    let (sender, mut receiver) = oneshot::channel();
    sender.send('v').unwrap();
    receiver.close();
    assert_eq!(receiver.try_recv(), Some(Ok('v')));
}

#[test]
fn oneshot_drops_a_value_with_the_receiver() {
    let (drops, value) = counter();
    let (sender, receiver) = oneshot::channel();
    assert!(sender.send(value()).is_ok());
    assert_eq!(drops.load(Ordering::Relaxed), 0);
    drop(receiver);
    assert_eq!(drops.load(Ordering::Relaxed), 1);
}

#[test]
fn oneshot_keeps_no_task_alive_for_the_other_end() {
    let (calls, waker) = Calls::new();
    let (mut sender, mut receiver) = oneshot::channel::<()>();
    assert!(
        sender
            .poll_closed(&mut Context::from_waker(&waker))
            .is_pending()
    );
    sender.send(()).unwrap();
    assert_eq!(
        Arc::strong_count(&calls),
        2,
        "the slot keeps the waker of a sender that went"
    );
    assert!(receiver.try_recv().is_some());

    let (sender, mut receiver) = oneshot::channel::<()>();
    assert!(poll(&mut receiver, &waker).is_pending());
    drop(receiver);
    assert_eq!(
        Arc::strong_count(&calls),
        2,
        "the slot keeps the waker of a receiver that went"
    );
    assert!(sender.is_closed());
    assert_eq!(calls.count(), 0);
}

#[test]
fn oneshot_races_drop_the_value_once() {
    for round in 0..ROUNDS {
        let (drops, value) = counter();
        let (sender, mut receiver) = oneshot::channel();
        let (sent, received) = race(
            || sender.send(value()).is_ok(),
            || {
                if round % 2 == 0 {
                    drop(receiver);
                    return None;
                }
                receiver.close();
                Some(
                    receiver
                        .try_recv()
                        .expect("a closed slot is decided")
                        .is_ok(),
                )
            },
        );
        if let Some(received) = received {
            assert_eq!(sent, received);
        }
        assert_eq!(drops.load(Ordering::Relaxed), 1);
    }
}

/// Unparks its thread, and remembers.
struct Unpark(thread::Thread, AtomicBool);

impl std::task::Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.1.store(true, Ordering::Release);
        self.0.unpark();
    }
}

#[test]
fn oneshot_wakes_across_threads() {
    for round in 0..ROUNDS {
        let (sender, mut receiver) = oneshot::channel();
        let (outcome, ()) = race(
            || {
                let unpark = Arc::new(Unpark(thread::current(), AtomicBool::new(false)));
                let waker = Waker::from(Arc::clone(&unpark));
                let begin = Instant::now();
                loop {
                    if let Poll::Ready(outcome) = poll(&mut receiver, &waker) {
                        return outcome;
                    }
                    while !unpark.1.swap(false, Ordering::Acquire) {
                        assert!(begin.elapsed() < TOO_LONG, "a wake-up was lost");
                        thread::park_timeout(TOO_LONG);
                    }
                }
            },
            || {
                if round % 2 == 0 {
                    sender.send(round).unwrap();
                } else {
                    drop(sender);
                }
            },
        );
        assert_eq!(outcome.ok(), (round % 2 == 0).then_some(round));
    }
}

#[test]
fn oneshot_ends_may_go_inside_a_waker() {
    /// Runs once, when woken.
    struct Then<F>(Mutex<Option<F>>);
    impl<F: FnOnce() + Send + 'static> std::task::Wake for Then<F> {
        fn wake(self: Arc<Self>) {
            let then = self.0.lock().unwrap().take();
            then.expect("woken twice")();
        }
    }
    /// A waker for what is known only later.
    fn later<F: FnOnce() + Send + 'static>() -> (Arc<Then<F>>, Waker) {
        let then = Arc::new(Then(Mutex::new(None)));
        (Arc::clone(&then), Waker::from(then))
    }

    // The sender finds out, while the receiver is being dropped, that it need not work any more.
    let (mut sender, receiver) = oneshot::channel();
    let (then, waker) = later();
    assert!(
        sender
            .poll_closed(&mut Context::from_waker(&waker))
            .is_pending()
    );
    *then.0.lock().unwrap() = Some(move || assert_eq!(sender.send(1), Err(1)));
    drop(receiver);
    assert!(then.0.lock().unwrap().is_none());

    // The receiver goes while it is being sent to, and the value with it: not only when the sender is through.
    let (drops, value) = counter();
    let (sender, mut receiver) = oneshot::channel();
    let (then, waker) = later();
    assert!(poll(&mut receiver, &waker).is_pending());
    *then.0.lock().unwrap() = Some(move || {
        drop(receiver);
        assert_eq!(drops.load(Ordering::Relaxed), 1);
    });
    assert!(sender.send(value()).is_ok());
    assert!(then.0.lock().unwrap().is_none());
}

// A message in its envelope.

/// What an isolate sees of a message.
trait Job: Refuse + Send + Sync {
    fn run(self: Arc<Self>) -> u32;
}

/// Counts when it is dropped, and is no `Sync`.
struct Carries(
    u32,
    #[expect(dead_code)] Option<Counted>,
    #[expect(dead_code)] Cell<u8>,
);

impl Carries {
    fn new(number: u32) -> Self {
        Self(number, None, Cell::default())
    }
}

impl<T: Send + 'static> Contents<Slot<T>> for Carries
where
    Envelope<Self, Slot<T>>: Job,
{
    type Face = dyn Job;

    fn face(envelope: Arc<Envelope<Self, Slot<T>>>) -> Arc<dyn Job> {
        envelope
    }
}

impl Contents<()> for Carries {
    type Face = dyn Job;

    fn face(envelope: Arc<Envelope<Self, ()>>) -> Arc<dyn Job> {
        envelope
    }
}

impl Job for Envelope<Carries, Slot<u32>> {
    fn run(self: Arc<Self>) -> u32 {
        let (Carries(number, ..), sender) = Envelope::open(self).expect("it is sent once");
        let _ = sender.send(number + 1);
        number
    }
}

impl Job for Envelope<Carries, Slot<Cell<u8>>> {
    fn run(self: Arc<Self>) -> u32 {
        0
    }
}

impl Job for Envelope<Carries, ()> {
    fn run(self: Arc<Self>) -> u32 {
        self.take().expect("it is sent once").0
    }
}

/// One that is answered by a `u32`.
fn asks(contents: Carries) -> Arc<Envelope<Carries, Slot<u32>>> {
    Envelope::with_reply(contents)
}

#[test]
fn letters_of_all_kinds_are_opened_in_order() {
    let inbox = List::new();
    let envelope = asks(Carries::new(0));
    let mut receiver = Receiver::new(Arc::clone(&envelope));
    let told = Envelope::<_, ()>::without_reply(Carries::new(2));
    for letter in [
        Letter::seal(envelope, |contents| contents.0 = 1),
        Letter::seal(told, |_| {}),
    ] {
        inbox.push(letter).unwrap();
    }
    assert_eq!(receiver.try_recv(), None);
    let numbers = inbox.take_all().map(|letter| letter.open().run());
    assert_eq!(numbers.collect::<Vec<_>>(), [1, 2]);
    assert_eq!(receiver.try_recv(), Some(Ok(2)));
    assert_eq!(
        receiver.try_recv(),
        Some(Err(oneshot::Dropped)),
        "it is given once"
    );
}

#[test]
fn a_letter_that_nobody_opens_is_refused() {
    type Inbox = List<Letter<dyn Job>>;
    let ways: [fn(Inbox); 3] = [
        |inbox| drop(inbox),
        |inbox| drop(inbox.close()),
        // Opened, and then not asked for what is in it.
        |inbox| inbox.take_all().for_each(|letter| letter.open().refuse()),
    ];
    for way in ways {
        let (drops, make) = counter();
        let envelope = asks(Carries(0, Some(make()), Cell::default()));
        let mut receiver = Receiver::new(Arc::clone(&envelope));
        let inbox = List::new();
        inbox.push(Letter::seal(envelope, |_| {})).unwrap();
        assert_eq!(
            (receiver.try_recv(), drops.load(Ordering::Relaxed)),
            (None, 0)
        );
        way(inbox);
        assert_eq!(receiver.try_recv(), Some(Err(oneshot::Dropped)));
        assert_eq!(drops.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn a_letter_for_a_closed_inbox_comes_back() {
    let inbox = List::new();
    drop(inbox.close());
    let envelope = asks(Carries::new(7));
    let letter = inbox.push(Letter::seal(envelope, |_| {})).unwrap_err();
    assert_eq!(letter.open().run(), 7);
}

#[test]
fn an_envelope_is_sent_once() {
    let envelope = asks(Carries::new(7));
    let letter = Letter::seal(Arc::clone(&envelope), |_| {});
    let again = Arc::clone(&envelope);
    assert!(catch_unwind(AssertUnwindSafe(|| Letter::seal(again, |_| {}))).is_err());
    assert_eq!(letter.open().run(), 7);
    assert!(catch_unwind(AssertUnwindSafe(|| Letter::seal(envelope, |_| {}))).is_err());
}

#[test]
fn an_envelope_whose_stamp_panics_is_as_before() {
    let (drops, make) = counter();
    let envelope = asks(Carries(7, Some(make()), Cell::default()));
    let same = Arc::clone(&envelope);
    let sealed = catch_unwind(AssertUnwindSafe(|| Letter::seal(same, |_| panic!("stamp"))));
    assert!(sealed.is_err());
    assert_eq!(drops.load(Ordering::Relaxed), 0);
    assert_eq!(Letter::seal(envelope, |_| {}).open().run(), 7);
    assert_eq!(drops.load(Ordering::Relaxed), 1);
}

#[test]
fn one_that_is_taken_back_is_not_sent() {
    let (drops, make) = counter();
    let envelope = asks(Carries(7, Some(make()), Cell::default()));
    let mut receiver = Receiver::new(Arc::clone(&envelope));
    drop(envelope.retract());
    assert_eq!(drops.load(Ordering::Relaxed), 1);
    assert!(envelope.retract().is_none());
    assert_eq!(receiver.try_recv(), Some(Err(oneshot::Dropped)));
    drop((envelope, receiver));
    // Unsent, it drops what is in it with itself.
    drop(asks(Carries(7, Some(make()), Cell::default())));
    assert_eq!(drops.load(Ordering::Relaxed), 2);
}

#[test]
fn an_envelope_that_both_want_is_opened_by_one() {
    for _ in 0..ROUNDS {
        let (drops, make) = counter();
        let envelope = asks(Carries(1, Some(make()), Cell::default()));
        let letter = Letter::seal(Arc::clone(&envelope), |_| {});
        let (opened, retracted) = race(
            || Envelope::open(Arc::clone(&envelope)).is_some(),
            || drop(letter),
        );
        let () = retracted;
        assert!(envelope.retract().is_none());
        drop(envelope);
        assert_eq!(drops.load(Ordering::Relaxed), 1, "opened: {opened}");
    }
}

// The room.

#[test]
fn a_room_holds_futures_of_any_size_one_after_the_other() {
    let cx = &mut Context::from_waker(Waker::noop());
    let mut room = Room::new();
    assert_eq!(room.poll(cx), Poll::Ready(()), "an empty one is ready");
    let (drops, make) = counter();
    for size in 1..6 {
        let (counted, yielded) = (make(), Cell::new(false));
        let future = std::future::poll_fn(move |_| match yielded.replace(true) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        });
        match size {
            1 => room.enter(async {}),
            2 => room.enter(async move {
                std::hint::black_box([7_u8; 3]);
            }),
            3 => room.enter(async move {
                let large = std::hint::black_box([7_u64; 100]);
                future.await;
                assert!(large.iter().all(|seven| *seven == 7));
            }),
            4 => room.enter(async move {
                #[repr(align(64))]
                struct Aligned(u8);
                let aligned = std::hint::black_box(Aligned(7));
                future.await;
                assert_eq!((&raw const aligned).addr() % 64, 0);
                assert_eq!(aligned.0, 7);
            }),
            _ => room.enter(future),
        }
        assert!(room.is_taken());
        if room.poll(cx).is_pending() {
            assert_eq!(room.poll(cx), Poll::Ready(()));
        }
        assert!(!room.is_taken());
        drop(counted);
        assert_eq!(drops.load(Ordering::Relaxed), size);
    }
}

#[test]
fn a_room_drops_its_future_once() {
    let (drops, make) = counter();
    let pending = |counted: Counted| async move {
        let _counted = counted;
        std::future::pending::<()>().await;
    };
    let mut room = Room::new();
    let cx = &mut Context::from_waker(Waker::noop());
    room.enter(pending(make()));
    assert!(room.poll(cx).is_pending());
    room.enter(pending(make()));
    assert_eq!(drops.load(Ordering::Relaxed), 1, "it makes place");
    room.clear();
    room.clear();
    assert_eq!(drops.load(Ordering::Relaxed), 2);
    room.enter(pending(make()));
    drop(room);
    assert_eq!(drops.load(Ordering::Relaxed), 3);
}

#[test]
fn a_room_survives_a_panic_of_what_is_in_it() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("drop");
        }
    }
    let cx = &mut Context::from_waker(Waker::noop());
    let mut room = Room::new();
    room.enter(async { panic!("poll") });
    assert!(catch_unwind(AssertUnwindSafe(|| room.poll(cx))).is_err());
    assert!(room.is_taken());
    room.clear();
    let bomb = Bomb;
    room.enter(async move {
        let _bomb = &bomb;
        std::future::pending::<()>().await;
    });
    assert!(catch_unwind(AssertUnwindSafe(|| room.clear())).is_err());
    room.enter(async {});
    assert_eq!(room.poll(cx), Poll::Ready(()));
}
