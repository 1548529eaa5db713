//! Requests and answers over one dialogue, so that both sides keep what they know of each other.
//!
//! ```text
//! cargo run -p offshoot --example request_response
//! OFFSHOOT_ISOLATION=process cargo run -p offshoot --example request_response
//! ```
//! Both print the same.

use offshoot::prelude::*;
use std::collections::HashMap;
use std::process::ExitCode;

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Put(String, u64),
    Get(String),
}

/// A session: what is put in it is gone with it.
async fn session(mut peer: Peer<Request, Option<u64>, String>, user: String) -> Result<usize> {
    peer.started(format!("hello {user}"))?;
    let mut values = HashMap::new();
    while let Some(request) = peer.next().await? {
        let answer = match request {
            Request::Put(key, value) => values.insert(key, value),
            Request::Get(key) => values.get(&key).copied(),
        };
        peer.send(answer).await?;
    }
    Ok(values.len())
}

async fn root() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let store = nursery.spawn("store").await?;
        let (mut link, greeting) = store.open(session, "anna".to_owned()).await?;
        println!("{greeting}");
        for request in [
            Request::Put("a".to_owned(), 1),
            Request::Put("a".to_owned(), 2),
            Request::Get("a".to_owned()),
            Request::Get("b".to_owned()),
        ] {
            link.send(request).await?;
            println!("{:?}", link.next().await?.flatten());
        }
        println!("{} value", link.result().await??);
        Ok(())
    })
    .await
}

fn main() -> ExitCode {
    offshoot::main(root)
}
