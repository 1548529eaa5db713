//! Publish and subscribe: one isolate that hands what is published under a topic to all that have subscribed to it.
//!
//! A subscription is a dialogue, so that it has all that dialogues have: its link is a stream, dropping it ends the
//! subscription, and a subscriber that dies ends it, too. A subscriber that reads too slowly holds up nobody; it is
//! told once how many messages it has missed. A topic exists while somebody has subscribed to it.
//!
//! The hub is a thread-local of the isolate, which is its own on every thread and in every process.
//!
//! Run it: `offshoot run topics 100000 --subscribers 8`, also with `--isolation process`: it publishes numbers to many, and
//! says how many came and how many were missed.
#![forbid(unsafe_code)]

use offshoot::prelude::*;
use offshoot::{Broadcast, Overflow, Subscription};
use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

/// How many messages a topic keeps for subscribers that are behind, beside those that are under way to them.
const KEPT: usize = 256;

thread_local! {
    static HUB: RefCell<HashMap<String, Broadcast<String>>> = RefCell::default();
}

/// What a subscriber gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// It was published.
    Text(String),
    /// So many were published that this subscriber was too slow for.
    Missed(u64),
}

/// A subscription: a stream of messages, which ends when it is dropped.
pub type Messages = Link<Message, (), Result<u64>>;

/// A publisher: what is sent into it is published.
pub type Publisher = Link<(), (String, String), Result<u64>>;

/// The service, as its users see it.
#[derive(Clone, Debug)]
pub struct Topics {
    portal: Portal,
}

impl Topics {
    /// Starts it as an isolate of this nursery.
    ///
    /// # Errors
    /// As of [`Nursery::spawn`].
    pub async fn start<'scope>(
        nursery: &'scope Nursery<'scope, '_>,
        isolate: impl Into<Isolate>,
    ) -> Result<Topics> {
        let portal = nursery.spawn(isolate).await?;
        Ok(Topics { portal })
    }

    /// Subscribes to what is published under `topic` from now on.
    ///
    /// # Errors
    /// As of [`Portal::open`].
    pub async fn subscribe(&self, topic: impl Into<String>) -> Result<Messages> {
        let (link, ()) = self.portal.open(subscribe, topic.into()).await?;
        Ok(link)
    }

    /// Publishes one message; says how many subscribers it went to.
    ///
    /// # Errors
    /// As of [`Portal::call`].
    pub async fn publish(
        &self,
        topic: impl Into<String>,
        text: impl Into<String>,
    ) -> Result<usize> {
        self.portal.call(publish, (topic.into(), text.into())).await
    }

    /// A stream to publish by, which does not wait for an answer to each message. Its result is their number.
    ///
    /// # Errors
    /// As of [`Portal::open`].
    pub async fn publisher(&self) -> Result<Publisher> {
        let (link, ()) = self.portal.open(publishes, ()).await?;
        Ok(link)
    }

    /// How many have subscribed, by topic.
    ///
    /// # Errors
    /// As of [`Portal::call`].
    pub async fn subscribers(&self) -> Result<HashMap<String, usize>> {
        self.portal.call(subscribers, ()).await
    }
}

fn publish(topic: String, text: String) -> usize {
    HUB.with_borrow(|hub| hub.get(&topic).map_or(0, |topic| topic.send(text)))
}

async fn publishes(mut peer: Peer<(String, String), ()>) -> Result<u64> {
    peer.started(())?;
    let mut count = 0;
    while let Some((topic, text)) = peer.next().await? {
        publish(topic, text);
        count += 1;
    }
    Ok(count)
}

fn subscribers() -> HashMap<String, usize> {
    HUB.with_borrow(|hub| {
        let count = |(topic, of): (&String, &Broadcast<String>)| (topic.clone(), of.subscribers());
        hub.iter().map(count).collect()
    })
}

/// Ends the topic with its last subscriber.
struct Subscribed(String);

impl Drop for Subscribed {
    fn drop(&mut self) {
        HUB.with_borrow_mut(|hub| {
            if hub
                .get(&self.0)
                .is_some_and(|topic| topic.subscribers() == 0)
            {
                hub.remove(&self.0);
            }
        });
    }
}

async fn subscribe(mut peer: Peer<(), Message>, topic: String) -> Result<u64> {
    // Before the subscription, which is to be gone when this looks.
    let subscribed = Subscribed(topic);
    let mut subscription = HUB.with_borrow_mut(|hub| {
        let topic = hub.entry(subscribed.0.clone());
        topic.or_insert_with(|| Broadcast::new(KEPT)).subscribe()
    });
    // The broadcast is what keeps messages: whoever waits here lags there.
    peer.set_overflow(Overflow::Wait);
    peer.started(())?;
    let mut count = 0;
    while let Some(message) = next(&mut peer, &mut subscription).await? {
        count += u64::from(matches!(message, Message::Text(_)));
        peer.send(message).await?;
    }
    Ok(count)
}

/// The next message; none once the subscriber has closed its half.
async fn next(
    peer: &mut Peer<(), Message>,
    subscription: &mut Subscription<String>,
) -> Result<Option<Message>> {
    let mut closed = pin!(peer.next());
    let mut published = pin!(subscription.next());
    poll_fn(|cx| {
        if let Poll::Ready(result) = published.as_mut().poll(cx) {
            return Poll::Ready(match result {
                Ok(text) => Ok(text.map(Message::Text)),
                Err(error) => error
                    .lagged()
                    .map_or(Err(error), |missed| Ok(Some(Message::Missed(missed)))),
            });
        }
        closed.as_mut().poll(cx).map(|result| result.map(|_| None))
    })
    .await
}

/// What [`run`] publishes, and to how many.
#[derive(Clone, Debug)]
#[must_use]
pub struct Options {
    messages: u64,
    subscribers: NonZeroUsize,
}

impl Options {
    /// So many messages, to four subscribers.
    pub fn new(messages: u64) -> Options {
        Options {
            messages,
            subscribers: NonZeroUsize::MIN.saturating_add(3),
        }
    }

    /// Sets the number of subscribers. Default 4.
    pub fn with_subscribers(mut self, subscribers: NonZeroUsize) -> Options {
        self.subscribers = subscribers;
        self
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// How many messages were published.
    pub published: u64,
    /// How many came, by subscriber.
    pub received: Vec<u64>,
    /// How many were missed by those that they were too fast for, by subscriber.
    pub missed: Vec<u64>,
    /// Until the hub had started and all had subscribed.
    pub spawn: Duration,
    /// From then until everybody had everything.
    pub work: Duration,
    /// From then until the hub had ended.
    pub teardown: Duration,
}

/// Publishes numbers on one topic as fast as it can, and takes them as often as there are subscribers.
///
/// # Errors
/// What stopped the hub.
pub async fn run(options: Options) -> Result<Report> {
    let begun = Instant::now();
    let (counts, spawned, worked) = offshoot::nursery(async |nursery| {
        let topics = Topics::start(nursery, "topics").await?;
        let mut subscribers = Vec::new();
        for _ in 0..options.subscribers.get() {
            let messages = topics.subscribe("numbers").await?;
            subscribers.push(nursery.task(take(messages, options.messages)));
        }
        let mut publisher = topics.publisher().await?;
        let spawned = Instant::now();
        for n in 0..options.messages {
            let message = ("numbers".to_owned(), n.to_string());
            publisher.send(message).await?;
        }
        publisher.result().await??;
        let mut counts = Vec::new();
        for subscriber in subscribers {
            counts.push(subscriber.await??);
        }
        Ok((counts, spawned, Instant::now()))
    })
    .await?;
    let (received, missed) = counts.into_iter().unzip();
    Ok(Report {
        published: options.messages,
        received,
        missed,
        spawn: spawned - begun,
        work: worked - spawned,
        teardown: worked.elapsed(),
    })
}

/// Takes messages until none of so many can come any more: how many came, and how many were missed.
async fn take(mut messages: Messages, published: u64) -> Result<(u64, u64)> {
    let (mut received, mut missed) = (0, 0);
    while received + missed < published {
        match messages.next().await? {
            Some(Message::Text(_)) => received += 1,
            Some(Message::Missed(n)) => missed += n,
            None => break,
        }
    }
    Ok((received, missed))
}
