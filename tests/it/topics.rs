//! The topics isolate, used as a program would.

use ::topics::{Message, Topics};
use offshoot_tests::both;

fn text(text: &str) -> Option<Message> {
    Some(Message::Text(text.to_owned()))
}

both! {
    async fn each_topic_reaches_all_of_its_subscribers_and_nobody_else(_t: T) {
        offshoot::nursery(async |nursery| {
            let topics = Topics::start(nursery, "topics").await?;
            assert_eq!(topics.publish("news", "to nobody").await?, 0);
            let mut a = topics.subscribe("news").await?;
            let mut b = topics.subscribe("news").await?;
            let mut other = topics.subscribe("weather").await?;
            assert_eq!(topics.publish("news", "one").await?, 2);
            assert_eq!(topics.publish("weather", "rain").await?, 1);
            assert_eq!(a.next().await?, text("one"));
            assert_eq!(b.next().await?, text("one"));
            assert_eq!(other.next().await?, text("rain"));

            // One that closes gets what it was sent, and its count.
            topics.publish("news", "two").await?;
            assert_eq!(a.next().await?, text("two"));
            assert_eq!(a.result().await??, 2);
            // One that is dropped is gone, and a topic with its last.
            drop((b, other));
            let mut left = topics.subscribers().await?;
            while !left.is_empty() {
                offshoot::checkpoint().await?;
                left = topics.subscribers().await?;
            }
            Ok(())
        })
        .await?;
    }

    async fn a_subscriber_that_does_not_read_holds_up_nobody(_t: T) {
        offshoot::nursery(async |nursery| {
            let topics = Topics::start(nursery, "topics").await?;
            let mut slow = topics.subscribe("numbers").await?;
            let mut fast = topics.subscribe("numbers").await?;
            let mut publisher = topics.publisher().await?;
            let taking = nursery.task(async move {
                let (mut texts, mut missed) = (0, 0);
                while texts + missed < 20_000 {
                    match fast.next().await? {
                        Some(Message::Text(_)) => texts += 1,
                        Some(Message::Missed(n)) => missed += n,
                        None => break,
                    }
                }
                Ok::<_, offshoot::Error>(texts + missed)
            });
            for n in 0..20_000 {
                publisher.send(("numbers".to_owned(), n.to_string())).await?;
            }
            assert_eq!(publisher.result().await??, 20_000);
            assert_eq!(taking.await??, 20_000);
            // The slow one gets the oldest that were under way, is told of the gap, and ends with the newest.
            let (mut texts, mut missed, mut last) = (0, 0, String::new());
            while texts + missed < 20_000 {
                match slow.next().await?.expect("a message") {
                    Message::Text(text) => (texts, last) = (texts + 1, text),
                    Message::Missed(n) => missed += n,
                }
            }
            assert!(missed > 10_000 && last == "19999", "{missed} {last}");
            Ok(())
        })
        .await?;
    }
}
