//! Asks that would wait for themselves fail, and name who waits for whom; all others do what they did.

use offshoot::prelude::*;
use offshoot::{Error, current};
use offshoot_tests::{both, held, mark, threads};
use std::cell::RefCell;
use std::time::Duration;

/// One of several that ask each other.
#[derive(Default, Serialize, Deserialize)]
struct Node {
    next: Option<Portal<Node>>,
    seen: u64,
}

thread_local! {
    /// A dialogue that goes on when the method has returned that opened it.
    static KEPT: RefCell<Option<Link<(), (), Result<u64>>>> = const { RefCell::new(None) };
    /// What a main function was told.
    static TOLD: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Asks the next by itself, between two messages; then serves.
fn asks_by_itself(inbox: &mut Inbox) -> Result<()> {
    inbox.serve()?;
    let next = inbox.with_state(|node: &mut Node| node.next.clone());
    let next = next.flatten().ok_or_else(|| Error::other("none"))?;
    if let Err(error) = next.ask_blocking(Node::around, 5)? {
        TOLD.set(names(&error));
    }
    while inbox.serve()? {}
    Ok(())
}

fn told() -> Vec<String> {
    TOLD.take()
}

/// A call of what is no async function, which blocks its isolate until it has an answer.
fn blocks(next: Portal<Node>) -> Result<u64> {
    next.ask_blocking(Node::around, 5)?
}

async fn call_on(next: Portal<Node>, left: u64) -> Result<u64> {
    next.ask(Node::around, left).await?
}

async fn opened(mut peer: Peer<(), (), ()>, next: Portal<Node>, first: bool) -> Result<u64> {
    if first {
        peer.started(())?;
        peer.send(()).await?;
    }
    let seen = next.ask(Node::seen, ()).await?;
    mark("served");
    if !first {
        peer.started(())?;
    }
    Ok(seen)
}

impl Node {
    fn point(&mut self, next: Option<Portal<Node>>) {
        self.next = next;
    }

    fn seen(&self) -> u64 {
        self.seen
    }

    /// Asks the next as long as there is something left, and counts.
    async fn around(&mut self, left: u64) -> Result<u64> {
        self.seen += 1;
        match (&self.next, left) {
            (Some(next), 1..) => Ok(1 + next.ask(Node::around, left - 1).await??),
            _ => Ok(0),
        }
    }

    /// As `around`, by way of a call.
    async fn by_call(&mut self, by: Portal<Node>, left: u64) -> Result<u64> {
        let next = current().portal::<Node>()?;
        by.call(call_on, (next, left)).await?
    }

    /// As `around`, by way of a task of a nursery, with a bound.
    async fn by_task(&mut self, left: u64) -> Result<u64> {
        offshoot::nursery(async |nursery| {
            let task = nursery.task(offshoot::timeout(
                Duration::from_secs(60),
                self.around(left),
            ));
            task.await??
        })
        .await
    }

    /// Asks, and does not wait for the answer.
    async fn give_up(&mut self, other: Portal<Node>) -> Result<()> {
        let mut asked = std::pin::pin!(other.ask(Node::late, ()));
        std::future::poll_fn(|cx| {
            assert!(asked.as_mut().poll(cx).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        held("begun").await
    }

    /// Asks the next when nobody waits any more.
    async fn late(&mut self) -> Result<()> {
        mark("begun");
        held("returned").await?;
        let next = self.next.clone().ok_or_else(|| Error::other("none"))?;
        self.seen = 100 + next.ask(Node::seen, ()).await?;
        mark("asked");
        Ok(())
    }

    /// Opens a dialogue whose far task asks back, before or after it has started.
    async fn open_back(&mut self, by: Portal<Node>, first: bool) -> Result<()> {
        let me = current().portal::<Node>()?;
        let (mut link, ()) = by.open(opened, (me, first)).await?;
        assert_eq!(link.next().await?, Some(()));
        KEPT.set(Some(link));
        Ok(())
    }

    /// What became of it.
    async fn opened(&mut self) -> Result<u64> {
        let mut link = KEPT.take().expect("it was kept");
        link.result().await?
    }

    /// Tells the next more than there is room for.
    async fn drown(&mut self, most: usize) -> Result<()> {
        let next = self.next.clone().ok_or_else(|| Error::other("none"))?;
        for _ in 0..=most {
            next.tell(Node::seen, ()).await?;
        }
        Ok(())
    }

    /// Asks the next to drown its own next.
    async fn let_drown(&mut self, most: usize) -> Result<()> {
        let next = self.next.clone().ok_or_else(|| Error::other("none"))?;
        next.ask(Node::drown, most).await?
    }

    /// Sends itself more than there is room for, but for the last.
    async fn flood(&mut self, most: usize) -> Result<u64> {
        let me = current().portal::<Node>()?;
        for _ in 0..most {
            me.tell(Node::around, 0).await?;
        }
        me.ask(Node::around, 0).await?
    }
}

/// Isolates of these names, each of which knows the next.
async fn ring<'scope>(
    nursery: &'scope Nursery<'scope, '_>,
    names: &[&str],
    closed: bool,
) -> Result<Vec<Portal<Node>>> {
    let mut nodes = Vec::new();
    for name in names {
        nodes.push(nursery.start(*name, Node::default()).await?);
    }
    for (n, node) in nodes.iter().enumerate() {
        let first = nodes.first().filter(|_| closed);
        let next = nodes.get(n + 1).or(first).cloned();
        node.ask(Node::point, next).await?;
    }
    Ok(nodes)
}

fn names(error: &Error) -> Vec<String> {
    let cycle = error
        .cycle()
        .unwrap_or_else(|| panic!("no cycle: {error:?}"));
    cycle
        .iter()
        .map(|origin| origin.name().to_owned())
        .collect()
}

/// Each blocking wait for the isolate that it is on, and whether it was an error.
fn waits_for_itself() -> Result<Vec<bool>> {
    fn one() -> u64 {
        1
    }
    async fn opens(mut peer: Peer<(), (), ()>) -> Result<()> {
        peer.started(())
    }
    let own = current().portal::<Node>()?;
    Ok(vec![
        own.call_blocking(one, ()).is_err(),
        own.ask_blocking(Node::seen, ()).is_err(),
        own.open_blocking(opens, ()).is_err(),
    ])
}

both! {
    /// A blocking wait for one's own isolate is an error at once: nothing else runs there meanwhile.
    async fn a_blocking_wait_for_oneself_fails_at_once(_t: T) {
        offshoot::nursery(async |nursery| {
            let node = nursery.start("node", Node::default()).await?;
            let waits = offshoot::timeout(Duration::from_secs(10), node.call(waits_for_itself, ()));
            assert_eq!(waits.await???, [true; 3]);
            assert_eq!(node.ask(Node::seen, ()).await?, 0);
            Ok(())
        })
        .await?;
    }

    async fn an_isolate_that_asks_itself_is_told_so(_t: T) {
        offshoot::nursery(async |nursery| {
            let nodes = ring(nursery, &["a"], true).await?;
            let error = nodes[0].ask(Node::around, 7).await?.unwrap_err();
            assert_eq!(names(&error), ["a"]);
            assert!(error.message().contains("`root/a` waits for `root/a`"), "{error:?}");
            // Nothing is broken by it.
            assert_eq!(nodes[0].ask(Node::around, 0).await??, 0);
            assert_eq!(nodes[0].ask(Node::seen, ()).await?, 2);
            Ok(())
        })
        .await?;
    }

    async fn an_ask_that_closes_a_cycle_fails_and_names_it(_t: T) {
        offshoot::nursery(async |nursery| {
            let all = ["a", "b", "c", "d", "e"];
            for length in 2..=all.len() {
                let nodes = ring(nursery, &all[..length], true).await?;
                let error = nodes[0].ask(Node::around, 100).await?.unwrap_err();
                assert_eq!(names(&error), all[..length], "in the order of the asks");
                // Each was asked once, and serves again.
                for node in &nodes {
                    assert_eq!(node.ask(Node::seen, ()).await?, 1);
                }
                // From another one the cycle begins there.
                let error = nodes[1].ask(Node::around, 100).await?.unwrap_err();
                assert_eq!(names(&error)[0], "b");
                assert_eq!(names(&error).len(), length);
                // As many asks as there are isolates behind the first are no cycle.
                let last = u64::try_from(length).expect("small") - 1;
                assert_eq!(nodes[0].ask(Node::around, last).await??, last);
            }
            Ok(())
        })
        .await?;
    }

    async fn a_cycle_that_is_entered_from_outside_is_named_without_the_way_to_it(_t: T) {
        offshoot::nursery(async |nursery| {
            let nodes = ring(nursery, &["a", "b", "c"], true).await?;
            let before = ring(nursery, &["x", "y"], false).await?;
            before[1].ask(Node::point, Some(nodes[0].clone())).await?;
            let error = before[0].ask(Node::around, 100).await?.unwrap_err();
            assert_eq!(names(&error), ["a", "b", "c"]);
            Ok(())
        })
        .await?;
    }

    async fn a_call_and_a_task_in_between_are_part_of_the_cycle(_t: T) {
        offshoot::nursery(async |nursery| {
            let nodes = ring(nursery, &["a", "b", "c"], true).await?;
            let by = nursery.start("by", Node::default()).await?;
            let error = nodes[0].ask(Node::by_call, (by.clone(), 5)).await?.unwrap_err();
            assert_eq!(names(&error), ["a", "by"]);
            let error = nodes[0].ask(Node::by_task, 5).await?.unwrap_err();
            assert_eq!(names(&error), ["a", "b", "c"]);
            // A call to an isolate whose method waits is no cycle: it does not need the state.
            assert_eq!(by.call(call_on, (nodes[0].clone(), 2)).await??, 2);
            Ok(())
        })
        .await?;
    }

    async fn a_far_task_is_waited_for_until_it_has_started(_t: T) {
        offshoot::nursery(async |nursery| {
            let node = nursery.start("a", Node::default()).await?;
            let by = nursery.start("by", Node::default()).await?;
            let error = node.ask(Node::open_back, (by.clone(), false)).await?.unwrap_err();
            assert_eq!(names(&error), ["a", "by"]);
            // Then its opener may go on, as here.
            node.ask(Node::open_back, (by, true)).await??;
            held("served").await?;
            assert_eq!(node.ask(Node::opened, ()).await??, 0);
            Ok(())
        })
        .await?;
    }

    async fn asks_that_meet_again_without_a_cycle_are_served(_t: T) {
        async fn both(left: Portal<Node>, right: Portal<Node>) -> Result<u64> {
            offshoot::nursery(async |nursery| {
                let left = nursery.task(async { left.ask(Node::around, 5).await? });
                let right = nursery.task(async { right.ask(Node::around, 5).await? });
                Ok(left.await?? + right.await??)
            })
            .await
        }
        offshoot::nursery(async |nursery| {
            let end = nursery.start("end", Node::default()).await?;
            let left = nursery.start("left", Node::default()).await?;
            let right = nursery.start("right", Node::default()).await?;
            for side in [&left, &right] {
                side.ask(Node::point, Some(end.clone())).await?;
            }
            let farm = nursery.spawn("farm").await?;
            assert_eq!(farm.call(both, (left, right)).await??, 2);
            assert_eq!(end.ask(Node::seen, ()).await?, 2);
            Ok(())
        })
        .await?;
    }

    async fn who_has_gone_on_is_waited_for_by_nobody(_t: T) {
        offshoot::nursery(async |nursery| {
            let nodes = ring(nursery, &["a", "b"], true).await?;
            nodes[0].ask(Node::give_up, nodes[1].clone()).await??;
            mark("returned");
            held("asked").await?;
            assert_eq!(nodes[1].ask(Node::seen, ()).await?, 100);
            Ok(())
        })
        .await?;
    }

    fn an_ask_that_no_credit_is_left_for_is_told_all_the_same(t: T) {
        let result = t.builder().mailbox(4).run(async || {
            offshoot::nursery(async |nursery| {
                let node = nursery.start("a", Node::default()).await?;
                let error = node.ask(Node::flood, 4).await?.unwrap_err();
                assert_eq!(names(&error), ["a"]);
                Ok(())
            })
            .await
        });
        result.expect("no failure");
    }

    fn a_tell_that_waits_for_room_at_oneself_is_told(t: T) {
        let result = t.builder().mailbox(4).run(async || {
            offshoot::nursery(async |nursery| {
                let nodes = ring(nursery, &["a"], true).await?;
                let error = nodes[0].ask(Node::drown, 4).await?.unwrap_err();
                assert_eq!(names(&error), ["a"]);
                Ok(())
            })
            .await
        });
        result.expect("no failure");
    }

    async fn a_main_function_that_waits_is_part_of_the_cycle(_t: T) {
        offshoot::nursery(async |nursery| {
            let main = Isolate::named("main").blocking_main(asks_by_itself);
            let main = nursery.start(main, Node::default()).await?;
            let b = nursery.start("b", Node::default()).await?;
            let c = nursery.start("c", Node::default()).await?;
            b.ask(Node::point, Some(c.clone())).await?;
            c.ask(Node::point, Some(main.clone())).await?;
            main.ask(Node::point, Some(b.clone())).await?;
            assert_eq!(main.call(told, ()).await?, ["main", "b", "c"]);
            // While it serves, it is as any other.
            assert_eq!(c.ask(Node::around, 1).await??, 1);
            let error = main.ask(Node::around, 9).await?.unwrap_err();
            assert_eq!(names(&error), ["main", "b", "c"]);
            // Also what it is called for keeps it from serving.
            let error = main.call(blocks, b.clone()).await?.unwrap_err();
            assert_eq!(names(&error), ["main", "b", "c"]);
            let error = main.call(call_on, (b, 5)).await?.unwrap_err();
            assert_eq!(names(&error), ["main", "b", "c"]);
            Ok(())
        })
        .await?;
    }

    async fn a_call_that_blocks_its_isolate_is_part_of_the_cycle(_t: T) {
        offshoot::nursery(async |nursery| {
            let nodes = ring(nursery, &["a", "b"], true).await?;
            let error = nodes[0].call(blocks, nodes[1].clone()).await?.unwrap_err();
            assert_eq!(names(&error), ["a", "b"]);
            // One that awaits holds up nobody: round and round, until nothing is left.
            assert_eq!(nodes[0].ask(Node::seen, ()).await?, 0);
            assert_eq!(nodes[0].call(call_on, (nodes[1].clone(), 1)).await??, 1);
            Ok(())
        })
        .await?;
    }
}

threads! {
    fn a_tell_that_waits_for_room_at_one_that_waits_for_it_is_told(t: T) {
        let result = t.builder().mailbox(4).run(async || {
            offshoot::nursery(async |nursery| {
                let nodes = ring(nursery, &["a", "b"], true).await?;
                let error = nodes[0].ask(Node::let_drown, 4).await?.unwrap_err();
                assert_eq!(names(&error), ["a", "b"]);
                Ok(())
            })
            .await
        });
        result.expect("no failure");
    }
}
