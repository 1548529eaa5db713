//! What cannot cross to a process as it is, is an error where it is sent: of an argument, a result, a state and
//! an item of a dialogue; nothing is sent, and nothing else is lost. A thread takes it as it is.

use offshoot::prelude::*;
use offshoot::{Error, ErrorKind, Portal};
use offshoot_tests::{both, lines, mark};
use std::fmt::Debug;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct LeftOut {
    a: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    b: Option<u8>,
    c: Option<u8>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Flat {
    a: u8,
    #[serde(flatten)]
    rest: std::collections::BTreeMap<String, u8>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(u8),
    Text(String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Tagged {
    One { a: u8 },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Counted {
    A,
    #[serde(skip)]
    #[allow(dead_code)] // It is there to be counted.
    Never,
    B(u8),
    C(u8),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct NotWritten {
    #[serde(skip_serializing)]
    a: u8,
    b: u8,
}

/// A value of each, with what its error names.
trait Odd:
    Clone + Debug + PartialEq + Serialize + serde::de::DeserializeOwned + Send + 'static
{
    const NAMES: &[&str];
    fn value() -> Self;
}

macro_rules! odd {
    ($($type:ty = $value:expr, $names:expr;)*) => {$(
        impl Odd for $type {
            const NAMES: &[&str] = &$names;
            fn value() -> $type {
                $value
            }
        }
    )*};
}

odd! {
    LeftOut = LeftOut { a: 1, b: None, c: Some(9) }, ["field `b` of `LeftOut`", "skip_serializing_if"];
    Flat = Flat { a: 1, rest: [("x".to_owned(), 2)].into() }, ["Flat", "flatten"];
    Untagged = Untagged::Text("it".to_owned()), ["Untagged", "untagged"];
    Tagged = Tagged::One { a: 1 }, ["Tagged", "tag"];
    Counted = Counted::B(7), ["variant `B` of `Counted`", "skip"];
    NotWritten = NotWritten { a: 1, b: 2 }, ["field `a` of `NotWritten`", "skip_serializing"];
}

fn takes<O: Odd>(value: O) -> bool {
    mark("taken");
    value == O::value()
}

fn makes<O: Odd>() -> O {
    O::value()
}

async fn streams<O: Odd>(mut peer: Peer<O, O>) -> Result<String> {
    peer.started(())?;
    let said = match peer.send(O::value()).await {
        Ok(()) => String::new(),
        Err(error) => error.to_string(),
    };
    peer.close();
    let got = peer.next().await?;
    Ok(format!("{said}{}", if got.is_some() { "got" } else { "" }))
}

/// It did not reach the far side, and says what is wrong with it.
#[track_caller]
fn is_of_the_sender<O: Odd>(error: &Error) {
    assert!(
        matches!(error.kind(), ErrorKind::Codec),
        "{}",
        error.report()
    );
    says::<O>(error.message());
}

#[track_caller]
fn says<O: Odd>(message: &str) {
    assert!(message.contains("cannot encode"), "{message}");
    for name in O::NAMES {
        assert!(message.contains(name), "no {name:?} in: {message}");
    }
}

async fn tried<'a, O: Odd>(nursery: &'a Nursery<'a, '_>, p: &Portal, moved: bool) -> Result<()> {
    let there = p.call(takes::<O>, O::value()).await;
    let back = p.call(makes::<O>, ()).await;
    let state = nursery.start("s", O::value()).await;
    let (mut link, ()) = p.open(streams::<O>, ()).await?;
    let item = link.send(O::value()).await;
    if moved {
        assert!(there? && back? == O::value());
        state?;
        item?;
        assert_eq!(link.next().await?, Some(O::value()));
        link.close();
        assert_eq!(link.result().await??, "got");
        return Ok(());
    }
    is_of_the_sender::<O>(&there.unwrap_err());
    is_of_the_sender::<O>(&back.unwrap_err());
    is_of_the_sender::<O>(&state.map(drop).unwrap_err());
    is_of_the_sender::<O>(&item.unwrap_err());
    assert_eq!(link.next().await?, None);
    link.close();
    says::<O>(&link.result().await??);
    assert!(lines("taken").is_empty(), "the far side has begun with it");
    Ok(())
}

both! {
    async fn a_value_that_its_bytes_cannot_tell_is_an_error_of_its_sender(t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let moved = t.isolation == Isolation::Thread;
            tried::<LeftOut>(nursery, &p, moved).await?;
            tried::<Flat>(nursery, &p, moved).await?;
            tried::<Untagged>(nursery, &p, moved).await?;
            tried::<Tagged>(nursery, &p, moved).await?;
            tried::<Counted>(nursery, &p, moved).await?;
            tried::<NotWritten>(nursery, &p, moved).await?;
            // And what is like them arrives.
            let whole = LeftOut { b: Some(2), ..LeftOut::value() };
            assert_eq!(p.call(|it: LeftOut| it, whole.clone()).await?, whole);
            assert_eq!(p.call(|it: Counted| it, Counted::A).await?, Counted::A);
            Ok(())
        })
        .await?;
    }

    async fn a_decoder_that_panics_is_an_error_of_the_sender(t: T) {
        #[derive(Debug, Serialize)]
        struct Explosive;
        impl<'de> Deserialize<'de> for Explosive {
            fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Explosive, D::Error> {
                panic!("told to, in the decoder");
            }
        }
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let there = p.call(|_: Explosive| (), Explosive).await;
            match t.isolation {
                Isolation::Thread => there?,
                _ => {
                    let error = there.unwrap_err();
                    assert!(matches!(error.kind(), ErrorKind::Codec), "{}", error.report());
                    assert!(error.message().contains("told to, in the decoder"), "{}", error.report());
                }
            }
            // Neither has ended by it.
            assert_eq!(p.call(|n: u64| n, 7).await?, 7);
            Ok(())
        })
        .await?;
    }
}
