//! An isolate that sends to another one faster than that can work.
//!
//! Shows who pays: the one that floods. The receiver holds no more than its mailbox has room for;
//! what does not fit is refused by `try_tell`, which hands it back, and waited for by `tell`. A
//! bystander answers as before.
//!
//! Run it: `offshoot run bad_floods`, also with `--isolation process`. Exit code 0.
#![forbid(unsafe_code)]

use offshoot::prelude::*;
use std::time::{Duration, Instant};

/// How many messages may wait for the receiver.
pub const ROOM: u32 = 16;
/// How many messages are offered without waiting.
pub const OFFERED: u32 = 1_000;
/// How many are then sent with waiting.
pub const WAITED_FOR: u32 = 50;
/// How long the receiver takes for each.
pub const WORK: Duration = Duration::from_millis(2);

/// What became of the flood.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Flood {
    /// Accepted at once, of those that were offered.
    pub accepted: u32,
    /// Handed back, because there was no room.
    pub refused: u32,
    /// Done by the receiver, of those accepted and those waited for.
    pub done: u32,
    /// The time that the sender had to wait.
    pub waited: Duration,
    /// The longest that the bystander took to answer meanwhile.
    pub bystander: Duration,
}

/// Starts one that floods and a bystander, and calls the bystander until the flood is over.
///
/// # Errors
/// What stopped the start.
pub async fn run() -> Result<Flood> {
    offshoot::nursery(async |nursery| {
        let floods = nursery.spawn("floods").await?;
        let bystander = nursery.spawn("bystander").await?;
        // Also the time until it answers for the first time, before the flood, is no matter here.
        bystander.call(greet, ()).await?;
        let flood = nursery.task(async move { floods.call(flood, ()).await? });
        let mut flood = std::pin::pin!(flood);
        let mut longest = Duration::ZERO;
        loop {
            match offshoot::timeout(5 * WORK, &mut flood).await {
                Ok(result) => {
                    let mut result = result??;
                    result.bystander = longest;
                    return Ok(result);
                }
                Err(error) if error.is_timeout() => {
                    let asked = Instant::now();
                    bystander.call(greet, ()).await?;
                    longest = longest.max(asked.elapsed());
                }
                Err(error) => return Err(error),
            }
        }
    })
    .await
}

/// Runs on the isolate that floods, which owns the one that it floods.
async fn flood() -> Result<Flood> {
    offshoot::nursery(async |nursery| {
        let spec = Isolate::named("slow").mailbox(ROOM);
        let slow = nursery.start(spec, Slow::default()).await?;
        let (mut accepted, mut refused) = (0, 0);
        for _ in 0..OFFERED {
            match slow.try_tell(Slow::work, ()) {
                Ok(()) => accepted += 1,
                Err(rejected) if rejected.error.is_full() => refused += 1,
                Err(rejected) => return Err(rejected.into()),
            }
        }
        let begun = Instant::now();
        for _ in 0..WAITED_FOR {
            slow.tell(Slow::work, ()).await?;
        }
        let waited = begun.elapsed();
        Ok(Flood {
            accepted,
            refused,
            done: slow.ask(Slow::done, ()).await?,
            waited,
            bystander: Duration::ZERO,
        })
    })
    .await
}

#[derive(Default, Serialize, Deserialize)]
struct Slow {
    done: u32,
}

impl Slow {
    async fn work(&mut self) -> Result<()> {
        offshoot::sleep(WORK).await?;
        self.done += 1;
        Ok(())
    }

    fn done(&self) -> u32 {
        self.done
    }
}

fn greet() {}
