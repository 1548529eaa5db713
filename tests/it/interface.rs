//! The interface of the design: what can be called and asked, from where, and what a tree can be.

use offshoot::prelude::*;
use offshoot::{Error, Limit, Stdio, current};
use offshoot_tests::{append, both, dir, held, lines, mark, processes, soon};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

async fn is_prime(n: u64) -> bool {
    n > 1 && (2..=n.isqrt()).all(|d| !n.is_multiple_of(d))
}

#[derive(Default, Serialize, Deserialize)]
struct Counter {
    total: u64,
}

impl Counter {
    async fn add(&mut self, by: u64) -> u64 {
        self.total += by;
        self.total
    }
    fn total(&self) -> u64 {
        self.total
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Tick {
    symbol: String,
    price: u64,
}

async fn ticker(mut peer: Peer<(), Tick, String>, symbol: String) -> Result<u64> {
    peer.started(format!("{symbol} opens"))?;
    for price in 100..103 {
        let symbol = symbol.clone();
        peer.send(Tick { symbol, price }).await?;
    }
    Ok(102)
}

async fn root() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let farm = nursery.spawn("farm").await?;
        let vault = nursery.spawn(Isolate::named("vault").process()).await?;
        assert!(farm.call(is_prime, 7_919).await?);
        assert!(vault.call(is_prime, 7_919).await?);

        let counter = nursery.start("counter", Counter::default()).await?;
        counter.ask(Counter::add, 5).await?;
        counter.tell(Counter::add, 5).await?;
        assert_eq!(counter.ask(Counter::total, ()).await?, 10);

        // A dialogue: both sides stream, either side may end or cancel it.
        let (mut link, first) = vault.open(ticker, "AAPL".to_string()).await?;
        assert_eq!(first, "AAPL opens");
        let mut prices = Vec::new();
        while let Some(tick) = link.next().await? {
            prices.push(tick.price);
        }
        assert_eq!(prices, [100, 101, 102]);
        let summary = link.result().await??;
        assert_eq!(summary, 102);
        Ok(())
    })
    .await
}

mod f {
    //! Functions of each arity.
    pub(super) fn s0() -> String {
        "s".to_owned()
    }
    pub(super) fn s1(a: u8) -> String {
        format!("s{a}")
    }
    pub(super) fn s2(a: u8, b: u16) -> String {
        format!("s{a}{b}")
    }
    pub(super) fn s3(a: u8, b: u16, c: u32) -> String {
        format!("s{a}{b}{c}")
    }
    pub(super) fn s4(a: u8, b: u16, c: u32, d: u64) -> String {
        format!("s{a}{b}{c}{d}")
    }
    pub(super) fn s5(a: u8, b: u16, c: u32, d: u64, e: char) -> String {
        format!("s{a}{b}{c}{d}{e}")
    }
    pub(super) fn s6(a: u8, b: u16, c: u32, d: u64, e: char, g: String) -> String {
        format!("s{a}{b}{c}{d}{e}{g}")
    }
    pub(super) async fn a0() -> String {
        "a".to_owned()
    }
    pub(super) async fn a1(a: u8) -> String {
        format!("a{a}")
    }
    pub(super) async fn a2(a: u8, b: u16) -> String {
        format!("a{a}{b}")
    }
    pub(super) async fn a3(a: u8, b: u16, c: u32) -> String {
        format!("a{a}{b}{c}")
    }
    pub(super) async fn a4(a: u8, b: u16, c: u32, d: u64) -> String {
        format!("a{a}{b}{c}{d}")
    }
    pub(super) async fn a5(a: u8, b: u16, c: u32, d: u64, e: char) -> String {
        format!("a{a}{b}{c}{d}{e}")
    }
    pub(super) async fn a6(a: u8, b: u16, c: u32, d: u64, e: char, g: String) -> String {
        format!("a{a}{b}{c}{d}{e}{g}")
    }
}

/// Methods of each arity and manner.
#[derive(Serialize, Deserialize)]
struct State(String);

impl State {
    fn s0(&self) -> String {
        format!("{}s", self.0)
    }
    fn s1(&mut self, a: u8) -> String {
        format!("{}s{a}", self.0)
    }
    fn s2(&self, a: u8, b: u16) -> String {
        format!("{}s{a}{b}", self.0)
    }
    fn s6(&mut self, a: u8, b: u16, c: u32, d: u64, e: char, g: String) -> String {
        format!("{}s{a}{b}{c}{d}{e}{g}", self.0)
    }
    async fn a0(&self) -> String {
        format!("{}a", self.0)
    }
    async fn a3(&mut self, a: u8, b: u16, c: u32) -> String {
        format!("{}a{a}{b}{c}", self.0)
    }
    async fn a4(&self, a: u8, b: u16, c: u32, d: u64) -> String {
        format!("{}a{a}{b}{c}{d}", self.0)
    }
    async fn a5(&mut self, a: u8, b: u16, c: u32, d: u64, e: char) -> String {
        format!("{}a{a}{b}{c}{d}{e}", self.0)
    }
}

trait Shape {
    fn area(&self) -> u64;
    async fn grow(&mut self, by: u64) -> u64;
    async fn unit() -> Self;
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Square(u64);

impl Shape for Square {
    fn area(&self) -> u64 {
        self.0 * self.0
    }
    async fn grow(&mut self, by: u64) -> u64 {
        self.0 += by;
        self.area()
    }
    async fn unit() -> Square {
        Square(1)
    }
}

fn sum<N: std::iter::Sum<N>>(values: Vec<N>) -> N {
    values.into_iter().sum()
}

#[derive(Serialize, Deserialize)]
struct Pile<V>(Vec<V>);

impl<V: Clone> Pile<V> {
    fn put(&mut self, value: V) -> usize {
        self.0.push(value);
        self.0.len()
    }
    async fn top(&self) -> Option<V> {
        self.0.last().cloned()
    }
}

fn doubled(n: u64) -> u64 {
    2 * n
}

async fn from_within(n: u64) -> Result<u64> {
    offshoot::nursery(async |nursery| {
        let below = nursery.spawn("below").await?;
        // In a blocking isolate, whose loop serves on meanwhile.
        below.call_blocking(doubled, n)
    })
    .await
}

fn counts_its_turns(inbox: &mut Inbox) -> Result<()> {
    let mut idle = 0;
    loop {
        match inbox.serve_timeout(Duration::from_millis(2))? {
            Some(true) => append("turns", "message"),
            Some(false) => break,
            None if idle < 3 => {
                idle += 1;
                append("turns", "idle");
            }
            None => {}
        }
    }
    let total = inbox.with_state(|counter: &mut Counter| counter.total);
    append("turns", &format!("end {total:?}"));
    Ok(())
}

fn identity() -> (String, String, i32) {
    let current = current();
    let origin = current.origin();
    assert_eq!(current.id(), origin.id);
    (current.name(), origin.path, origin.pid)
}

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).expect("a process id")
}

async fn first_checkpoint_after_cancellation() -> Result<(), String> {
    mark("begun");
    let cancel = offshoot::cancelled().await;
    for error in [
        offshoot::checkpoint().await,
        offshoot::sleep(Duration::from_secs(60)).await,
    ] {
        if !error.is_err_and(|error| error.is_cancelled()) {
            return Err("a checkpoint let it pass".to_owned());
        }
    }
    if current().cancelled() != Some(cancel.clone()) {
        return Err("two authors".to_owned());
    }
    append("cancelled", &cancel.to_string());
    Ok(())
}

thread_local! {
    static OWN: Cell<u32> = const { Cell::new(0) };
}

fn count_own() -> u32 {
    OWN.set(OWN.get() + 1);
    OWN.get()
}

static HOOKS: AtomicU32 = AtomicU32::new(0);

fn hook() {
    HOOKS.fetch_add(1, Ordering::Relaxed);
    append("hooks", &own_pid().to_string());
}

fn hooks_here() -> (i32, u32) {
    (own_pid(), HOOKS.load(Ordering::Relaxed))
}

/// Who is below, down to `depth` processes: path and process of each.
async fn descend(depth: u32) -> Result<Vec<(String, i32)>> {
    offshoot::nursery(async |nursery| {
        let here = current().origin();
        let mut all = vec![(here.path, here.pid)];
        let beside = nursery.spawn_local("beside").await?;
        let (_, path, pid) = beside.call(identity, ()).await?;
        all.push((path, pid));
        if depth > 0 {
            let below = nursery.spawn("below").await?;
            all.extend(below.call(descend, depth - 1).await??);
        }
        Ok(all)
    })
    .await
}

both! {
    /// The program of the design's second section.
    fn the_design_runs_as_it_stands(t: T) {
        t.run(root).unwrap();
    }

    async fn functions_of_no_to_six_arguments(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("callee").await?;
            let g = || "x".to_owned();
            assert_eq!(p.call(f::s0, ()).await?, "s");
            assert_eq!(p.call(f::s1, 1).await?, "s1");
            assert_eq!(p.call(f::s2, (1, 2)).await?, "s12");
            assert_eq!(p.call(f::s3, (1, 2, 3)).await?, "s123");
            assert_eq!(p.call(f::s4, (1, 2, 3, 4)).await?, "s1234");
            assert_eq!(p.call(f::s5, (1, 2, 3, 4, '5')).await?, "s12345");
            assert_eq!(p.call(f::s6, (1, 2, 3, 4, '5', g())).await?, "s12345x");
            assert_eq!(p.call(f::a0, ()).await?, "a");
            assert_eq!(p.call(f::a1, 1).await?, "a1");
            assert_eq!(p.call(f::a2, (1, 2)).await?, "a12");
            assert_eq!(p.call(f::a3, (1, 2, 3)).await?, "a123");
            assert_eq!(p.call(f::a4, (1, 2, 3, 4)).await?, "a1234");
            assert_eq!(p.call(f::a5, (1, 2, 3, 4, '5')).await?, "a12345");
            assert_eq!(p.call(f::a6, (1, 2, 3, 4, '5', g())).await?, "a12345x");
            Ok(())
        })
        .await?;
    }

    async fn methods_of_no_to_six_arguments(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.start("callee", State("!".to_owned())).await?;
            assert_eq!(p.ask(State::s0, ()).await?, "!s");
            assert_eq!(p.ask(State::s1, 1).await?, "!s1");
            assert_eq!(p.ask(State::s2, (1, 2)).await?, "!s12");
            assert_eq!(p.ask(State::a0, ()).await?, "!a");
            assert_eq!(p.ask(State::a3, (1, 2, 3)).await?, "!a123");
            assert_eq!(p.ask(State::a4, (1, 2, 3, 4)).await?, "!a1234");
            assert_eq!(p.ask(State::a5, (1, 2, 3, 4, '5')).await?, "!a12345");
            let six = (1, 2, 3, 4, '5', "x".to_owned());
            assert_eq!(p.ask_cancellable(State::s6, six).await?, "!s12345x");
            Ok(())
        })
        .await?;
    }

    async fn closures_trait_methods_and_generics(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("callee").await?;
            assert_eq!(p.call(|a: u32, b: u32| a * b, (6, 7)).await?, 42);
            assert_eq!(p.call(async |a: u32| a + 1, 6).await?, 7);
            assert_eq!(p.call(<Square as Shape>::unit, ()).await?, Square(1));
            assert_eq!(p.call(sum::<u64>, vec![1, 2, 3]).await?, 6);
            assert!((p.call(sum::<f64>, vec![0.5, 0.25]).await? - 0.75).abs() < 1e-9);

            let square = nursery.start("square", Square(2)).await?;
            assert_eq!(square.ask(Square::grow, 3).await?, 25);
            assert_eq!(square.ask(<Square as Shape>::area, ()).await?, 25);
            assert_eq!(square.ask(|square: &mut Square| square.0 -= 1, ()).await?, ());
            assert_eq!(square.ask(Shape::area, ()).await?, 16);

            let pile = nursery.start("pile", Pile(vec!["a".to_owned()])).await?;
            assert_eq!(pile.ask(Pile::put, "b".to_owned()).await?, 2);
            assert_eq!(pile.ask(Pile::<String>::top, ()).await?.as_deref(), Some("b"));
            Ok(())
        })
        .await?;
    }

    async fn tells_and_asks_come_to_one_state(_t: T) {
        offshoot::nursery(async |nursery| {
            let counter = nursery.start("counter", Counter::default()).await?;
            counter.tell(Counter::add, 1).await?;
            counter.try_tell(Counter::add, 10)?;
            assert_eq!(counter.ask(Counter::add, 100).await?, 111);
            assert_eq!(counter.ask_cancellable(Counter::add, 1_000).await?, 1_111);
            let other = counter.clone();
            assert_eq!(other.ask(Counter::total, ()).await?, 1_111);
            Ok(())
        })
        .await?;
    }

    async fn calls_run_beside_each_other(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("callee").await?;
            let first = nursery.task(p.call(async || held("second").await, ()));
            p.call(mark_sign, "second".to_owned()).await?;
            first.await???;
            Ok(())
        })
        .await?;
    }

    async fn a_local_portal_takes_what_captures_and_is_not_serde(_t: T) {
        offshoot::nursery(async |nursery| {
            let local = nursery.spawn_local("local").await?;
            let (sender, receiver) = mpsc::channel();
            let text = String::from("captured");
            let length = local
                .run(async move || {
                    sender.send(text.len()).expect("the receiver is there");
                    Instant::now()
                })
                .await?;
            assert!(length <= Instant::now());
            assert_eq!(receiver.recv().expect("sent before"), 8);
            // It is a portal, too, and a thread whatever the tree's default is.
            assert_eq!(local.call(doubled, 4).await?, 8);
            assert_eq!(local.isolation(), Isolation::Thread);
            assert_eq!(local.call(own_pid, ()).await?, own_pid());

            let (sender, receiver) = mpsc::channel::<u32>();
            let state = nursery.start_local("state", sender).await?;
            let by = Arc::new(5);
            state.with(async move |sender| sender.send(*by).expect("received below")).await?;
            assert_eq!(receiver.recv().expect("sent before"), 5);
            Ok(())
        })
        .await?;
    }

    async fn tasks_borrow_from_around_their_nursery(_t: T) {
        let words = vec!["one".to_owned(), "two".to_owned()];
        let seen = RefCell::new(Vec::new());
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("callee").await?;
            let mut handles = Vec::new();
            for word in &words {
                let (seen, p) = (&seen, p.clone());
                handles.push(nursery.task(async move {
                    let length = p.call(|word: String| word.len(), word.clone()).await;
                    seen.borrow_mut().push(word);
                    length
                }));
            }
            for handle in handles {
                assert_eq!(handle.await??, 3);
            }
            Ok(())
        })
        .await?;
        assert_eq!(seen.borrow().len(), 2);
    }

    async fn nurseries_nest(_t: T) {
        let total = offshoot::nursery(async |outer| {
            let counter = outer.start("counter", Counter::default()).await?;
            let mut total = 0;
            for _ in 0..3 {
                total = offshoot::nursery(async |inner| {
                    let p = inner.spawn("inner").await?;
                    let by = p.call(doubled, 1).await?;
                    counter.ask(Counter::add, by).await
                })
                .await?;
            }
            Ok(total)
        })
        .await?;
        assert_eq!(total, 6);
    }

    async fn a_blocking_isolate_serves_one_message_at_a_time(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn(Isolate::named("blocking").blocking()).await?;
            let both = [1, 2].map(|n| {
                nursery.task(p.call(
                    async |n: u32| {
                        append("blocking", &format!("begin {n}"));
                        // Lets whatever else there is run, if anything is.
                        for _ in 0..10 {
                            offshoot::checkpoint().await.expect("nobody cancels");
                        }
                        std::thread::sleep(Duration::from_millis(5));
                        append("blocking", &format!("end {n}"));
                    },
                    n,
                ))
            });
            for one in both {
                one.await??;
            }
            assert_eq!(lines("blocking"), ["begin 1", "end 1", "begin 2", "end 2"]);
            Ok(())
        })
        .await?;
    }

    async fn a_blocking_main_receives_as_it_likes(_t: T) {
        offshoot::nursery(async |nursery| {
            let spec = Isolate::named("main").blocking_main(counts_its_turns);
            let counter = nursery.start(spec, Counter::default()).await?;
            soon("it came back without a message", || lines("turns").len() == 3).await?;
            assert_eq!(counter.ask(Counter::add, 4).await?, 4);
            counter.tell(Counter::add, 4).await?;
            Ok(())
        })
        .await?;
        let turns = lines("turns");
        assert_eq!(turns[..3], ["idle", "idle", "idle"]);
        assert_eq!(turns[3..], ["message", "message", "end Some(8)"]);
    }

    async fn blocking_twins_work_on_a_foreign_thread(_t: T) {
        offshoot::nursery(async |nursery| {
            let counter = nursery.start("counter", Counter::default()).await?;
            let foreign = std::thread::spawn({
                let counter = counter.clone();
                move || {
                    counter.tell_blocking(Counter::add, 1)?;
                    counter.ask_blocking(Counter::add, 1)?;
                    counter.call_blocking(doubled, 21)
                }
            });
            soon("the thread is done", || foreign.is_finished()).await?;
            assert_eq!(foreign.join().expect("no panic")?, 42);
            assert_eq!(counter.ask(Counter::total, ()).await?, 2);
            Ok(())
        })
        .await?;
    }

    async fn blocking_twins_work_in_a_blocking_isolate(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn(Isolate::named("blocking").blocking()).await?;
            assert_eq!(p.call(from_within, 21).await??, 42);
            Ok(())
        })
        .await?;
    }

    async fn every_isolate_knows_who_it_is(t: T) {
        assert_eq!(current().name(), "root");
        let tree = current().tree();
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("who").await?;
            let (name, path, pid) = p.call(identity, ()).await?;
            assert_eq!((name.as_str(), path.as_str()), ("who", "root/who"));
            assert_eq!(p.origin().path, path);
            assert_eq!(p.origin().pid, pid);
            assert_eq!(pid != own_pid(), t.is_process());
            assert_eq!(p.isolation(), t.isolation);
            assert_eq!(p.call(own_pid, ()).await?, pid);
            assert_eq!(p.name(), "who");
            assert_eq!(p.call(|| current().id(), ()).await?, p.id());
            assert_eq!(p.call(|| current().tree(), ()).await?, tree);
            Ok(())
        })
        .await?;
    }

    async fn thread_locals_are_isolate_locals(_t: T) {
        offshoot::nursery(async |nursery| {
            let (a, b) = (nursery.spawn("a").await?, nursery.spawn("b").await?);
            assert_eq!(a.call(count_own, ()).await?, 1);
            assert_eq!(a.call(count_own, ()).await?, 2);
            assert_eq!(b.call(count_own, ()).await?, 1);
            assert_eq!(count_own(), 1);
            Ok(())
        })
        .await?;
    }

    async fn timeouts_and_checkpoints_on_an_isolate(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("callee").await?;
            let late = p
                .call(
                    async || {
                        let bound = Duration::from_millis(5);
                        let endless = offshoot::sleep(Duration::from_secs(3_600));
                        let late = offshoot::timeout(bound, endless).await;
                        late.is_err_and(|error| error.is_timeout())
                    },
                    (),
                )
                .await?;
            assert!(late);
            let began = Instant::now();
            offshoot::sleep(Duration::from_millis(20)).await?;
            assert!(began.elapsed() >= Duration::from_millis(20));
            Ok(())
        })
        .await?;
    }

    async fn code_of_a_cancelled_isolate_sees_it_at_every_checkpoint(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("callee").await?;
            let reply = nursery.task(p.call(first_checkpoint_after_cancellation, ()));
            held("begun").await?;
            p.cancel().await;
            p.ended().await;
            drop(reply);
            Ok(())
        })
        .await?;
        assert_eq!(lines("cancelled"), ["cancelled by root"]);
    }

    fn trees_run_twice_and_on_any_thread(t: T) {
        for _ in 0..2 {
            t.run(root).unwrap();
        }
        let on_another = std::thread::spawn(move || t.run(root));
        on_another.join().unwrap().unwrap();
    }

    fn two_trees_run_at_once(t: T) {
        let (a, b) = (t.clone(), t);
        let meet = |own: &'static str, other: &'static str| {
            async move || {
                offshoot::nursery(async |nursery| {
                    let p = nursery.spawn("callee").await?;
                    p.call(mark_sign, own.to_owned()).await?;
                    held(other).await?;
                    Ok((current().tree(), p.origin().pid))
                })
                .await
            }
        };
        let other = std::thread::spawn(move || a.run(meet("a", "b")));
        let this = b.run(meet("b", "a")).unwrap();
        let other = other.join().unwrap().unwrap();
        assert_ne!(this.0, other.0);
        assert_eq!(this.1 != other.1, b.is_process());
    }

    fn the_start_hook_runs_once_in_every_process(t: T) {
        let processes = t
            .builder()
            .on_process_start(hook)
            .run(async || {
                offshoot::nursery(async |nursery| {
                    let mut seen = BTreeSet::from([hooks_here()]);
                    for name in ["a", "b"] {
                        seen.insert(nursery.spawn(name).await?.call(hooks_here, ()).await?);
                    }
                    let process = nursery.spawn(Isolate::named("c").process()).await?;
                    seen.insert(process.call(hooks_here, ()).await?);
                    Ok(seen)
                })
                .await
            })
            .unwrap();
        assert_eq!(processes.len(), if t.is_process() { 4 } else { 2 });
        assert!(processes.iter().all(|(_, hooks)| *hooks == 1), "{processes:?}");
        let mut pids: Vec<String> = processes.iter().map(|(pid, _)| pid.to_string()).collect();
        let mut hooks = lines("hooks");
        pids.sort();
        hooks.sort();
        assert_eq!(hooks, pids);
    }

    async fn processes_host_threads_and_spawn_processes(t: T) {
        let all = descend(3).await?;
        let paths: Vec<&str> = all.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "root",
                "root/beside",
                "root/below",
                "root/below/beside",
                "root/below/below",
                "root/below/below/beside",
                "root/below/below/below",
                "root/below/below/below/beside",
            ]
        );
        for pair in all.chunks(2) {
            assert_eq!(pair[0].1, pair[1].1, "a thread lives in its parent's process");
        }
        let processes: BTreeSet<i32> = all.iter().map(|(_, pid)| *pid).collect();
        assert_eq!(processes.len(), if t.is_process() { 4 } else { 1 });
    }

    async fn misuse_is_an_error_that_tells_what_to_do(t: T) {
        offshoot::nursery(async |nursery| {
            let misuse = |error: Error, hint: &str| {
                assert!(error.message().contains(hint), "{error:?}");
            };
            let spec = Isolate::named("x").process();
            misuse(nursery.spawn_local(spec).await.unwrap_err(), "use `spawn` or `start`");
            misuse(nursery.spawn("").await.unwrap_err(), "must not be empty");
            misuse(nursery.spawn("a/b").await.unwrap_err(), "must not be empty");
            if !t.is_process() {
                let spec = Isolate::named("x").env("A", "B");
                misuse(nursery.spawn(spec).await.unwrap_err(), "add `.process()`");
            }
            // And none of these is a failure of the nursery.
            assert_eq!(nursery.spawn("y").await?.call(doubled, 1).await?, 2);
            Ok(())
        })
        .await?;
        let off = std::thread::spawn(|| {
            let mut nursery = std::pin::pin!(offshoot::nursery(async |_| Ok(())));
            let waker = std::task::Waker::noop();
            nursery.as_mut().poll(&mut std::task::Context::from_waker(waker))
        });
        match off.join().expect("no panic") {
            std::task::Poll::Ready(Err(error)) => assert!(error.message().contains("isolate only")),
            other => panic!("{other:?}"),
        }
    }
}

fn mark_sign(sign: String) {
    mark(&sign);
}

fn variable(name: String) -> Option<String> {
    std::env::var(name).ok()
}

fn new_file_mode() -> u32 {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let path = dir().join("signs").join("mode");
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o666)
        .open(path)
        .expect("a file");
    file.metadata().expect("its mode").permissions().mode() & 0o777
}

fn open_files_limit() -> String {
    let limits = std::fs::read_to_string("/proc/self/limits").expect("the limits");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    line.expect("a line")
        .split_whitespace()
        .skip(3)
        .take(2)
        .collect::<Vec<_>>()
        .join(" ")
}

fn descriptor(number: u32) -> String {
    let target = std::fs::read_link(format!("/proc/self/fd/{number}")).expect("a descriptor");
    target.to_string_lossy().into_owned()
}

fn open_descriptors() -> Vec<String> {
    let listed = std::fs::read_dir("/proc/self/fd").expect("the list of descriptors");
    listed
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .map(|path| path.to_string_lossy().into_owned())
        .collect()
}

processes! {
    async fn a_process_is_given_its_surroundings(_t: T) {
        offshoot::nursery(async |nursery| {
            let spec = Isolate::named("x")
                .current_dir(dir())
                .umask(0o027)
                .env("OFFSHOOT_TEST_A", "b")
                .env_remove("XDG_RUNTIME_DIR")
                .limit(Limit::OpenFiles, 100, 200)
                .stdin(Stdio::Null)
                .stdout(Stdio::Null);
            let p = nursery.spawn(spec).await?;
            let cwd = p.call(|| std::env::current_dir().expect("a directory"), ()).await?;
            assert_eq!(cwd, dir().canonicalize()?);
            assert_eq!(p.call(variable, "OFFSHOOT_TEST_A".to_owned()).await?.as_deref(), Some("b"));
            assert_eq!(p.call(variable, "XDG_RUNTIME_DIR".to_owned()).await?, None);
            assert_eq!(p.call(new_file_mode, ()).await?, 0o640);
            assert_eq!(p.call(open_files_limit, ()).await?, "100 200");
            assert_eq!(p.call(descriptor, 0).await?, "/dev/null");
            assert_eq!(p.call(descriptor, 1).await?, "/dev/null");
            assert_ne!(p.call(descriptor, 2).await?, "/dev/null");

            // The next one is not touched by it.
            let q = nursery.spawn("y").await?;
            assert_eq!(q.call(variable, "OFFSHOOT_TEST_A".to_owned()).await?, None);
            let cwd = q.call(|| std::env::current_dir().expect("a directory"), ()).await?;
            assert_eq!(cwd, std::env::current_dir()?);
            Ok(())
        })
        .await?;
    }

    async fn a_directory_that_is_none_fails_the_spawn(_t: T) {
        offshoot::nursery(async |nursery| {
            let spec = Isolate::named("x").current_dir("/proc/self/stat");
            let error = nursery.spawn(spec).await.unwrap_err();
            assert!(error.is_spawn() && error.message().contains("/proc/self/stat"), "{error:?}");
            Ok(())
        })
        .await?;
    }

    async fn a_process_has_no_descriptor_but_its_own(_t: T) {
        use std::os::fd::AsRawFd;
        let ours = std::fs::File::open("/proc/self/status")?;
        // As a C library would have opened it: kept over an `exec`, hence by the forkserver's.
        // SAFETY: It takes and gives numbers; the new descriptor is owned by nobody else.
        let kept = unsafe { libc::dup(ours.as_raw_fd()) };
        assert!(kept > 2);
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("x").await?;
            let open = p.call(open_descriptors, ()).await?;
            assert!(!open.iter().any(|path| path.ends_with("status")), "{open:?}");
            let sockets = open.iter().filter(|path| path.starts_with("socket:")).count();
            assert_eq!(sockets, 2, "a link and a connection to the forkserver: {open:?}");
            Ok(())
        })
        .await?;
        // SAFETY: As above; it is closed once.
        assert_eq!(unsafe { libc::close(kept) }, 0);
    }
}
