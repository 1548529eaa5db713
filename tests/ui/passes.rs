//! What the other cases nearly are. Its presence makes the compiler generate code for all of them, which is when captures are found.
use offshoot::prelude::*;

async fn length(text: String) -> usize {
    text.len()
}

#[derive(Default, Serialize, Deserialize)]
struct Counter(u64);

impl Counter {
    fn add(&mut self, by: u64) -> u64 {
        self.0 += by;
        self.0
    }
}

fn main() {
    let outside = 3;
    let result = offshoot::run(async move || {
        offshoot::nursery(async |nursery| {
            let farm = nursery.spawn("farm").await?;
            assert_eq!(farm.call(length, "four".into()).await?, 4);
            assert_eq!(farm.call(async |n: u64| n + 1, 4).await?, 5);
            let counter = nursery.start("counter", Counter::default()).await?;
            assert_eq!(counter.ask(Counter::add, 2).await?, 2);
            let local = nursery.spawn_local("local").await?;
            assert_eq!(local.run(async move || outside + 1).await?, 4);
            let task = nursery.task(async { outside });
            assert_eq!(task.await?, 3);
            Ok(())
        })
        .await
    });
    result.unwrap();
}

/// What is sent, taken and returned is inferred from the function, also from a closure.
async fn dialogues(farm: &Portal) -> Result<()> {
    let (mut link, first) = farm
        .open(
            async |mut peer: Peer<u8, String, char>, by: u8| {
                peer.started('x')?;
                while let Some(n) = peer.next().await? {
                    peer.send((n + by).to_string()).await?;
                }
                Ok::<_, offshoot::Error>(1.5)
            },
            1,
        )
        .await?;
    let _: char = first;
    link.send(2).await?;
    let _: Option<String> = link.next().await?;
    let _: f64 = link.result().await??;
    let is_send = |_: &dyn Send| {};
    is_send(&link);
    Ok(())
}
