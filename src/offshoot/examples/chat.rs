//! A chat room: everybody hears what anybody says.
//!
//! ```text
//! cargo run -p offshoot --example chat
//! OFFSHOOT_ISOLATION=process cargo run -p offshoot --example chat
//! ```
//! Both print the same.

use offshoot::prelude::*;
use offshoot::{Broadcast, Subscription};
use std::cell::OnceCell;
use std::pin::pin;
use std::process::ExitCode;
use std::task::Poll;

thread_local! {
    /// What is said in the room, which is this isolate.
    static ROOM: OnceCell<Broadcast<String>> = const { OnceCell::new() };
}

enum Heard {
    Said(Option<String>),
    Room(Option<String>),
}

/// Whichever is first: what the guest says, or what is said in the room.
async fn listen(peer: &mut Peer<String, String>, room: &mut Subscription<String>) -> Result<Heard> {
    let (mut said, mut heard) = (pin!(peer.next()), pin!(room.next()));
    std::future::poll_fn(|cx| {
        if let Poll::Ready(text) = heard.as_mut().poll(cx) {
            return Poll::Ready(text.map(Heard::Room));
        }
        said.as_mut().poll(cx).map(|text| text.map(Heard::Said))
    })
    .await
}

fn say(text: String) {
    ROOM.with(|room| room.get().map(|room| room.send(text)));
}

/// One guest, from the door to the goodbye.
async fn join(mut peer: Peer<String, String>, name: String) -> Result<()> {
    let mut room = ROOM.with(|room| room.get_or_init(|| Broadcast::new(64)).subscribe());
    peer.started(())?;
    loop {
        match listen(&mut peer, &mut room).await? {
            Heard::Said(Some(text)) => say(format!("{name}: {text}")),
            Heard::Room(Some(text)) => peer.send(text).await?,
            Heard::Said(None) | Heard::Room(None) => return Ok(()),
        }
    }
}

async fn root() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let room = nursery.spawn("room").await?;
        let (mut anna, ()) = room.open(join, "anna".to_owned()).await?;
        let (mut bert, ()) = room.open(join, "bert".to_owned()).await?;
        anna.send("hello".to_owned()).await?;
        for guest in [&mut anna, &mut bert] {
            println!("{}", guest.next().await?.unwrap_or_default());
        }
        bert.send("hi".to_owned()).await?;
        for guest in [&mut anna, &mut bert] {
            println!("{}", guest.next().await?.unwrap_or_default());
        }
        // One who closes leaves, the other stays.
        bert.result().await??;
        anna.send("alone".to_owned()).await?;
        println!("{}", anna.next().await?.unwrap_or_default());
        anna.result().await?
    })
    .await
}

fn main() -> ExitCode {
    offshoot::main(root)
}
