//! A nursery whose body returns `Ok` ends when its isolates are at rest: whatever was accepted runs, or its sender is told.

use offshoot::prelude::*;
use offshoot::{Inbox, Link};
use offshoot_tests::{Stopwatch, append, both, lines, mark};
use std::time::Duration;

/// Forwards what it is told, after a while.
#[derive(Default, Serialize, Deserialize)]
struct Relay {
    name: String,
    next: Option<Portal<Relay>>,
}

impl Relay {
    fn new(name: &str, next: Option<&Portal<Relay>>) -> Relay {
        Relay {
            name: name.to_owned(),
            next: next.cloned(),
        }
    }

    fn precede(&mut self, next: Portal<Relay>) {
        self.next = Some(next);
    }

    async fn pass(&mut self, number: u64) -> Result<()> {
        append(&self.name, &number.to_string());
        offshoot::sleep(Duration::from_millis(3)).await?;
        match &self.next {
            Some(next) => next.tell(Relay::pass, number).await,
            None => Ok(()),
        }
    }

    /// Goes on for as many rounds.
    async fn circle(&mut self, left: u64) -> Result<()> {
        append(&self.name, &left.to_string());
        match (&self.next, left) {
            (Some(next), 1..) => next.tell(Relay::circle, left - 1).await,
            _ => Ok(()),
        }
    }
}

/// Tells of its end.
#[derive(Serialize, Deserialize)]
struct Witness(String);

impl Witness {
    fn nothing(&mut self) {}
}

impl Drop for Witness {
    fn drop(&mut self) {
        append("dropped", &self.0);
    }
}

async fn echoes(mut peer: Peer<u64, u64>) -> Result<u64> {
    peer.started(())?;
    let mut count = 0;
    while let Some(item) = peer.next().await? {
        count += 1;
        peer.send(item).await?;
    }
    Ok(count)
}

/// Never waits for its peer.
async fn ticks(mut peer: Peer<u64, u64>) -> Result<u64> {
    peer.started(())?;
    for n in 0.. {
        offshoot::sleep(Duration::from_millis(2)).await?;
        peer.send(n).await?;
    }
    Ok(0)
}

thread_local! {
    static KEPT: std::cell::RefCell<Vec<Link<u64, u64, Result<u64>>>> = const { std::cell::RefCell::new(Vec::new()) };
}

async fn keeps_a_dialogue_with(other: Portal) -> Result<()> {
    let (mut link, ()) = other.open(echoes, ()).await?;
    link.send(1).await?;
    link.next().await?;
    let (mut feed, ()) = other.open(ticks, ()).await?;
    feed.next().await?;
    KEPT.with_borrow_mut(|kept| kept.extend([link, feed]));
    Ok(())
}

/// Serves until nothing comes any more, then tells the one that it was given.
fn tells_at_its_end(inbox: &mut Inbox) -> Result<()> {
    while inbox.serve()? {}
    let next = inbox
        .with_state(|relay: &mut Relay| relay.next.clone())
        .flatten();
    let Some(next) = next else { return Ok(()) };
    for number in 0..3 {
        next.ask_blocking(Relay::count, number)?;
    }
    Ok(())
}

impl Relay {
    fn count(&mut self, number: u64) {
        append(&self.name, &number.to_string());
    }
}

both! {
    async fn what_was_told_runs_in_whatever_order_they_were_spawned(_t: T) {
        for earlier_is_last in [true, false] {
            let (first, second) = (format!("a {earlier_is_last}"), format!("b {earlier_is_last}"));
            offshoot::nursery(async |nursery| {
                let one = nursery.start("one", Relay::new(&first, None)).await?;
                let other = nursery.start("other", Relay::new(&second, None)).await?;
                let (from, to) = if earlier_is_last { (&other, &one) } else { (&one, &other) };
                from.ask(Relay::precede, to.clone()).await?;
                for number in 0..10 {
                    from.tell(Relay::pass, number).await?;
                }
                Ok(())
            })
            .await?;
            assert_eq!((lines(&first).len(), lines(&second).len()), (10, 10), "{earlier_is_last}");
        }
    }

    /// Along a chain of nurseries, each within an isolate of the one before.
    async fn what_was_told_runs_below_another_nursery(_t: T) {
        async fn below(next: Portal<Relay>) -> Result<()> {
            offshoot::nursery(async |nursery| {
                let first = nursery.start("first", Relay::new("below", Some(&next))).await?;
                let before = nursery.start("before", Relay::new("before", Some(&first))).await?;
                for number in 0..5 {
                    before.tell(Relay::pass, number).await?;
                }
                Ok(())
            })
            .await
        }
        offshoot::nursery(async |nursery| {
            let last = nursery.start("last", Relay::new("last", None)).await?;
            let host = nursery.spawn("host").await?;
            // Nobody waits for it.
            let call = host.call(below, last);
            let task = nursery.task(call);
            task.await??
        })
        .await?;
        assert_eq!(["below", "before", "last"].map(|name| lines(name).len()), [5, 5, 5]);
    }

    async fn a_circle_ends_when_nothing_goes_round_any_more(_t: T) {
        offshoot::nursery(async |nursery| {
            let one = nursery.start("one", Relay::new("round", None)).await?;
            let two = nursery.start("two", Relay::new("round", Some(&one))).await?;
            let three = nursery.start("three", Relay::new("round", Some(&two))).await?;
            one.ask(Relay::precede, three.clone()).await?;
            two.tell(Relay::circle, 200).await?;
            Ok(())
        })
        .await?;
        assert_eq!(lines("round").len(), 201);
    }

    async fn they_end_in_the_reverse_order_of_their_spawns(_t: T) {
        offshoot::nursery(async |nursery| {
            for name in ["a", "b", "c", "d"] {
                let one = nursery.start(name, Witness(name.to_owned())).await?;
                one.ask(Witness::nothing, ()).await?;
            }
            Ok(())
        })
        .await?;
        // Where the state was encoded, that which stayed here was dropped before.
        let dropped = lines("dropped");
        let last = &dropped[dropped.len() - 4..];
        assert_eq!(last, ["d", "c", "b", "a"], "{dropped:?}");
    }

    /// An earlier one holds dialogues with a later one: neither a state nor a thread-local says when it is to end.
    async fn one_that_waits_for_an_earlier_one_does_not_hold_up_the_end(_t: T) {
        let watch = Stopwatch::start();
        offshoot::nursery(async |nursery| {
            let earlier = nursery.spawn("earlier").await?;
            let later = nursery.spawn(Isolate::named("later")).await?;
            earlier.call(keeps_a_dialogue_with, later.clone()).await??;
            let witness = nursery.start("witness", Witness("witness".into())).await?;
            witness.ask(Witness::nothing, ()).await?;
            Ok(())
        })
        .await?;
        assert!(watch.elapsed() < Duration::from_millis(900), "{:?}", watch.elapsed());
    }

    async fn the_last_words_of_a_main_function_are_heard(_t: T) {
        offshoot::nursery(async |nursery| {
            let gateway = nursery.start("gateway", Relay::new("heard", None)).await?;
            let main = Isolate::named("main").blocking_main(tells_at_its_end);
            let main = nursery.start(main, Relay::new("main", Some(&gateway))).await?;
            main.ask(Relay::count, 0).await?;
            Ok(())
        })
        .await?;
        assert_eq!(lines("heard").len(), 3);
    }

    /// One that never does what it has begun holds up the end; the scope around the nursery still bounds it.
    async fn what_never_rests_is_bounded_by_a_timeout(_t: T) {
        let ended = offshoot::timeout(
            Duration::from_millis(300),
            offshoot::nursery(async |nursery| {
                let one = nursery.start("one", Relay::new("endless", None)).await?;
                let two = nursery.start("two", Relay::new("endless", Some(&one))).await?;
                one.ask(Relay::precede, two.clone()).await?;
                two.tell(Relay::circle, u64::MAX).await?;
                mark("told");
                Ok(())
            }),
        )
        .await;
        assert!(ended.is_err(), "it went round and round");
    }
}

/// A node of a random network.
#[derive(Default, Serialize, Deserialize)]
struct Node {
    number: usize,
    others: Vec<Portal<Node>>,
}

/// xorshift64*, Vigna 2016: good enough to choose by, and the same each time.
fn random(seed: &mut u64) -> u64 {
    *seed ^= *seed >> 12;
    *seed ^= *seed << 25;
    *seed ^= *seed >> 27;
    seed.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

impl Node {
    fn meet(&mut self, others: Vec<Portal<Node>>) {
        self.others = others;
    }

    async fn pass(&mut self, (mut seed, left): (u64, u32)) -> Result<()> {
        append("ran", "");
        if random(&mut seed).is_multiple_of(4) {
            offshoot::sleep(Duration::from_micros(random(&mut seed) % 3000)).await?;
        }
        if left == 0 {
            return Ok(());
        }
        for _ in 0..=random(&mut seed) % 2 {
            let next = random(&mut seed) as usize % self.others.len();
            let message = (random(&mut seed), left - 1);
            match random(&mut seed) % 4 {
                // Upwards only: two that ask each other would wait for each other.
                0 if next > self.number => {
                    if self.others[next].ask(Node::pass, message).await.is_ok() {
                        append("accepted", "");
                    } else {
                        append("told", "");
                    }
                }
                1 => {
                    let opened = self.others[next]
                        .open(spread, (self.others.clone(), message))
                        .await;
                    let told = match opened {
                        Ok((mut link, ())) => link.result().await.and_then(|result| result),
                        Err(error) => Err(error),
                    };
                    if told.is_err() {
                        append("told", "");
                    }
                }
                _ => match self.others[next].tell(Node::pass, message).await {
                    Ok(()) => append("accepted", ""),
                    Err(_) => append("told", ""),
                },
            }
        }
        Ok(())
    }
}

/// A dialogue whose function goes on sending.
async fn spread(
    mut peer: Peer<u64, u64>,
    others: Vec<Portal<Node>>,
    message: (u64, u32),
) -> Result<()> {
    peer.started(())?;
    let (mut seed, left) = message;
    let next = random(&mut seed) as usize % others.len();
    offshoot::sleep(Duration::from_micros(random(&mut seed) % 2000)).await?;
    others[next]
        .tell(Node::pass, (random(&mut seed), left))
        .await?;
    append("accepted", "");
    Ok(())
}

/// Networks of nodes that tell and ask each other and have dialogues, in both kinds of isolates.
async fn networks(rounds: u64, isolation: impl Fn(u64) -> Isolation) -> Result<()> {
    for round in 1..=rounds {
        let before = ["accepted", "ran", "told"].map(|what| lines(what).len());
        let mut seed = round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        offshoot::nursery(async |nursery| {
            let mut nodes = Vec::new();
            for number in 0..2 + random(&mut seed) as usize % 3 {
                let one = Isolate::named(format!("node-{number}"))
                    .isolation(isolation(random(&mut seed)));
                let node = Node {
                    number,
                    others: Vec::new(),
                };
                nodes.push(nursery.start(one, node).await?);
            }
            for node in &nodes {
                node.ask(Node::meet, nodes.clone()).await?;
            }
            for _ in 0..3 {
                let first = random(&mut seed) as usize % nodes.len();
                nodes[first]
                    .tell(Node::pass, (random(&mut seed), 5))
                    .await?;
                append("accepted", "");
            }
            Ok(())
        })
        .await?;
        let after = ["accepted", "ran", "told"].map(|what| lines(what).len());
        let [accepted, ran, told] = [0, 1, 2].map(|n| after[n] - before[n]);
        assert_eq!((accepted, told), (ran, 0), "round {round}");
    }
    Ok(())
}

both! {
    async fn in_random_networks_all_that_was_accepted_runs(t: T) {
        t.within(Duration::from_secs(60));
        let kind = t.isolation;
        networks(12, |_| kind).await?;
    }
}

offshoot_tests::processes! {
    async fn in_mixed_networks_all_that_was_accepted_runs(t: T) {
        t.within(Duration::from_secs(60));
        let kinds = [Isolation::Thread, Isolation::Process];
        networks(20, |n| kinds[n as usize % 2]).await?;
    }
}
