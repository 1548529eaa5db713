//! The encoding: this file and `ser` name it, so that another codec is a change of these two.
//!
//! What both directions promise: no panic, no abort and no unbounded time or memory, whatever the
//! value or the bytes; what the encoder accepts, the decoder of the same type accepts. The bounds:
//!
//! | what | bound |
//! |---|---|
//! | length of an encoded value | [`VALUE_MAX`] |
//! | length of what is decoded | [`BODY_MAX`] |
//! | nesting of containers | 128 levels |
//! | elements of sequences and maps | 8 per byte of the encoding, and 1024 |
//! | memory for decoded elements and structs | 16 × [`BODY_MAX`] |
//!
//! The last but one hits only elements that take no bytes, as units do. The last is known only to
//! the decoder; it hits sequences of millions of very short strings, for example.
//!
//! The format is not self-describing: serde's `flatten`, `untagged`, `tag` and `skip_serializing_if`
//! do not work in types that cross. [`encode_checked`] says so where they are sent.

use crate::frame::{BODY_MAX, Invoke};
use crate::guard::{Guard, Ledger};
use crate::probe::{self, Facts};
use crate::rope::Rope;
use crate::ser::{Encoder, Fail, Sink};
use bincode::error::DecodeError as Refusal;
use bincode::serde::DecodeError as SerdeRefusal;
use serde::{Serialize, de::DeserializeOwned};
use std::any::type_name;
use std::marker::PhantomData;

/// Names the encoding in the handshake.
pub const CODEC_ID: u8 = 1;

/// The length in bytes that one encoded value may have: what fits into any frame's body, also
/// behind the fixed part of a call.
pub const VALUE_MAX: usize = BODY_MAX - Invoke::SIZE;

/// Why a value could not be encoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot encode {0}")]
pub struct EncodeError(String);

/// Why bytes could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot decode {0}")]
pub struct DecodeError(String);

/// Appends the encoding of `value` to `out`.
///
/// `out` is meant to be used again: an encoder that starts with an empty vector spends most of its
/// time in growing it.
///
/// # Errors
/// The value exceeds one of the [bounds](self), its `Serialize` failed, or it has a sequence whose
/// length is not known in advance. `out` is then as it was.
///
/// # Panics
/// Only if the value's own `Serialize` does. `out` is then as it was.
pub fn encode_into<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    encode(value, Encoder::new(Sink::new(out, None), None))
}

/// As [`encode_into`], with what is long of [`Bytes`](crate::Bytes) in the value by reference.
///
/// # Errors
/// As of [`encode_into`].
///
/// # Panics
/// As [`encode_into`].
pub fn encode_onto<T: Serialize + ?Sized>(value: &T, out: &mut Rope) -> Result<(), EncodeError> {
    let sink = Sink::new(&mut out.bytes, Some(&mut out.parts));
    encode(value, Encoder::new(sink, None))
}

/// What stands around a rehearsal: runs the first, which encodes a value, and then the second,
/// which decodes it and encodes it again. What the value needs beside its bytes is set up for each.
/// Gives the message of a panic of the second one.
pub type Rehearse = fn(&mut dyn FnMut(), &mut dyn FnMut()) -> Result<(), String>;

/// As [`encode_onto`], for a type of which nobody knows whether its `Deserialize` reads what its
/// `Serialize` writes: a value that makes a choice for the first time in this process (a variant,
/// something in an option or in a sequence, the type itself) is decoded here, and dropped.
///
/// # Errors
/// As of [`encode_onto`]; the receiver could not decode the value, or would have another one. The message
/// names the type, and the field where that is known.
///
/// # Panics
/// As [`encode_onto`]. Of its `Deserialize` and `Drop` if `rehearse` lets that through.
pub fn encode_checked<T>(value: &T, out: &mut Rope, rehearse: Rehearse) -> Result<(), EncodeError>
where
    T: Serialize + DeserializeOwned,
{
    if probe::is_plain::<T>() {
        return encode_onto(value, out);
    }
    let start = (out.bytes.len(), out.parts.len());
    let mut facts = Facts::new();
    facts.saw(probe::id::<T>(), 0);
    let sink = Sink::new(&mut out.bytes, Some(&mut out.parts));
    encode(value, Encoder::new(sink, Some(&mut facts)))?;
    if facts.are_known() {
        return Ok(());
    }
    let checked = check(value, rehearse);
    match checked {
        Ok(()) => facts.keep(),
        Err(_) => {
            out.bytes.truncate(start.0);
            out.parts.truncate(start.1);
        }
    }
    checked
}

/// Sends the value to this very thread.
#[cold]
fn check<T>(value: &T, rehearse: Rehearse) -> Result<(), EncodeError>
where
    T: Serialize + DeserializeOwned,
{
    let bytes = std::cell::RefCell::new(Vec::new());
    let wrote = std::cell::RefCell::new(Vec::new());
    let mut result = Ok(());
    let mut written = Ok(());
    let mut write = || {
        written = Encoder::with_notes(Sink::new(&mut bytes.borrow_mut(), None))
            .run(value)
            .map(|notes| wrote.replace(notes))
            .map(drop)
            .map_err(encode_error::<T>);
    };
    let mut read = || result = arrives::<T>(&bytes.borrow(), &wrote.borrow());
    let panicked = rehearse(&mut write, &mut read).map_err(|panic| {
        let name = type_name::<T>();
        EncodeError(format!(
            "{name}: its receiver could not decode it: that panicked: {panic}"
        ))
    });
    written.and(panicked).and(result)
}

fn arrives<T>(bytes: &[u8], wrote: &[probe::Wrote]) -> Result<(), EncodeError>
where
    T: Serialize + DeserializeOwned,
{
    let ledger = Ledger::with_notes(bytes.len());
    let name = type_name::<T>();
    let decoded = decode_with::<T>(bytes, &ledger);
    let difference = probe::difference(wrote, &ledger.notes());
    let back = match (decoded, &difference) {
        (Ok(_), None) => return Ok(()),
        (Ok(back), Some(_)) => back,
        (Err(DecodeError(_)), Some(difference)) => {
            return Err(EncodeError(format!("{name}: {difference}")));
        }
        (Err(DecodeError(error)), None) => {
            let what = error.strip_prefix(&format!("{name}: ")).unwrap_or(&error);
            return Err(EncodeError(format!(
                "{name}: its receiver could not decode it: {what}"
            )));
        }
    };
    let mut again = Vec::new();
    let notes = Encoder::with_notes(Sink::new(&mut again, None)).run(&back);
    match notes {
        Ok(notes) if probe::is_alike((bytes, wrote), (&again, &notes)) => Ok(()),
        _ => Err(EncodeError(format!(
            "{name}: {}",
            difference.unwrap_or_default()
        ))),
    }
}

fn encode<T: Serialize + ?Sized>(value: &T, encoder: Encoder<'_>) -> Result<(), EncodeError> {
    encoder.run(value).map(drop).map_err(encode_error::<T>)
}

/// The value that is encoded in exactly these bytes.
///
/// # Errors
/// The bytes are not the encoding of a `T`, there are too few or too many, or they exceed one of
/// the [bounds](self). The sender is then to be distrusted: end the connection.
///
/// # Panics
/// Only if the value's own `Deserialize` does.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() > BODY_MAX {
        return Err(DecodeError(format!(
            "{}: {} bytes exceed the limit of {BODY_MAX} bytes; send bulk data in chunks",
            type_name::<T>(),
            bytes.len()
        )));
    }
    decode_with(bytes, &Ledger::for_bytes(bytes.len()))
}

fn decode_with<T: DeserializeOwned>(bytes: &[u8], ledger: &Ledger) -> Result<T, DecodeError> {
    let seed = Guard::new(PhantomData::<T>, ledger);
    // Without the codec's own limit. That one counts a number as wide as its type, so that it refuses
    // two million small integers in as many bytes, and it costs more than all of the guard. Nothing
    // is left for it to do: the guard reads strings and bytes as slices of `bytes`, never by the
    // length that they claim, and bounds everything else.
    match bincode::serde::seed_decode_from_slice(seed, bytes, bincode::config::standard()) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok((_, used)) => Err(DecodeError(format!(
            "{}: it ends at byte {used} of {}; both ends must be the same executable",
            type_name::<T>(),
            bytes.len()
        ))),
        Err(refusal) => Err(decode_error::<T>(bytes, ledger, refusal)),
    }
}

#[cold]
fn encode_error<T: ?Sized>(fail: Fail) -> EncodeError {
    EncodeError(format!("{}: {fail}", type_name::<T>()))
}

#[cold]
fn decode_error<T>(bytes: &[u8], ledger: &Ledger, refusal: Refusal) -> DecodeError {
    let len = bytes.len();
    let what = match refusal {
        Refusal::UnexpectedEnd { additional } => {
            format!("the bytes end at byte {len}, {additional} more are needed; both ends must be the same executable")
        }
        Refusal::Utf8 { inner } => format!("in its {len} bytes is a string that is not UTF-8: {inner}"),
        Refusal::Serde(
            SerdeRefusal::AnyNotSupported | SerdeRefusal::IdentifierNotSupported | SerdeRefusal::IgnoredAnyNotSupported,
        ) => "it needs a self-describing format; remove serde's flatten, untagged and tag from the type (an enum without them works)".to_owned(),
        Refusal::OtherString(message) => message,
        other => format!("its {len} bytes are wrong: {other}; both ends must be the same executable"),
    };
    let place = match ledger.place() {
        Some((owner, field)) => format!("field `{field}` of `{owner}`: "),
        None => String::new(),
    };
    DecodeError(format!("{}: {place}{what}", type_name::<T>()))
}
