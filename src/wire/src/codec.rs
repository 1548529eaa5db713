//! The one file that names the encoding, so that another codec is a change of this file.
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
//! do not work in types that cross.

use crate::bytes::{self, Bytes};
use crate::frame::{BODY_MAX, Invoke};
use crate::guard::{Guard, Ledger, elements_max};
use crate::rope::Rope;
use bincode::enc::write::Writer;
use bincode::error::{DecodeError as Refusal, EncodeError as Complaint};
use bincode::serde::{DecodeError as SerdeRefusal, EncodeError as SerdeComplaint};
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
    encode(value, Sink::new(out, None))
}

/// As [`encode_into`], with what is long of [`Bytes`] in the value by reference.
///
/// # Errors
/// As of [`encode_into`].
///
/// # Panics
/// As [`encode_into`].
pub fn encode_onto<T: Serialize + ?Sized>(value: &T, out: &mut Rope) -> Result<(), EncodeError> {
    encode(value, Sink::new(&mut out.bytes, Some(&mut out.parts)))
}

fn encode<T: Serialize + ?Sized>(value: &T, mut sink: Sink<'_>) -> Result<(), EncodeError> {
    let ledger = Ledger::unbounded();
    bincode::serde::encode_into_writer(
        Guard::new(value, &ledger),
        &mut sink,
        bincode::config::standard(),
    )
    .map_err(encode_error::<T>)?;
    let len = sink.len;
    if ledger.elements_spent() > elements_max(len) {
        let message = format!("{}: {}", type_name::<T>(), crate::guard::Fault::Elements);
        return Err(EncodeError(message));
    }
    sink.complete = true;
    Ok(())
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
    let ledger = Ledger::for_bytes(bytes.len());
    let seed = Guard::new(PhantomData::<T>, &ledger);
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
        Err(refusal) => Err(decode_error::<T>(bytes, refusal)),
    }
}

/// Appends to a vector up to the limit, and takes back what it appended unless told it is complete.
struct Sink<'a> {
    out: &'a mut Vec<u8>,
    /// Where long bytes go instead.
    parts: Option<&'a mut Vec<(usize, Bytes)>>,
    /// What there was before of both.
    start: (usize, usize),
    len: usize,
    complete: bool,
}

impl<'a> Sink<'a> {
    fn new(out: &'a mut Vec<u8>, parts: Option<&'a mut Vec<(usize, Bytes)>>) -> Sink<'a> {
        Sink {
            start: (out.len(), parts.as_ref().map_or(0, |parts| parts.len())),
            out,
            parts,
            len: 0,
            complete: false,
        }
    }
}

impl Writer for Sink<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), Complaint> {
        if bytes.len() > VALUE_MAX - self.len {
            return Err(Complaint::UnexpectedEnd);
        }
        self.len += bytes.len();
        if let Some(parts) = &mut self.parts
            && let Some(shared) = bytes::serialized(bytes)
        {
            parts.push((self.out.len(), shared));
        } else {
            self.out.extend_from_slice(bytes);
        }
        Ok(())
    }
}

impl Drop for Sink<'_> {
    fn drop(&mut self) {
        if !self.complete {
            self.out.truncate(self.start.0);
            if let Some(parts) = &mut self.parts {
                parts.truncate(self.start.1);
            }
        }
    }
}

#[cold]
fn encode_error<T: ?Sized>(complaint: Complaint) -> EncodeError {
    let what = match complaint {
        Complaint::UnexpectedEnd => {
            format!("exceeds the limit of {VALUE_MAX} bytes; send bulk data in chunks")
        }
        Complaint::Serde(SerdeComplaint::SequenceMustHaveLength) => {
            "has a sequence of unknown length (serde's flatten makes one); collect it into a Vec first".to_owned()
        }
        Complaint::OtherString(message) => message,
        other => other.to_string(),
    };
    EncodeError(format!("{}: {what}", type_name::<T>()))
}

#[cold]
fn decode_error<T>(bytes: &[u8], refusal: Refusal) -> DecodeError {
    let len = bytes.len();
    let what = match refusal {
        Refusal::UnexpectedEnd { additional } => {
            format!("the bytes end at byte {len}, {additional} more are needed; both ends must be the same executable")
        }
        Refusal::Utf8 { inner } => format!("in its {len} bytes is a string that is not UTF-8: {inner}"),
        Refusal::Serde(
            SerdeRefusal::AnyNotSupported | SerdeRefusal::IdentifierNotSupported | SerdeRefusal::IgnoredAnyNotSupported,
        ) => "it needs a self-describing format; remove serde's flatten, untagged and tag from the type".to_owned(),
        Refusal::OtherString(message) => message,
        other => format!("its {len} bytes are wrong: {other}; both ends must be the same executable"),
    };
    DecodeError(format!("{}: {what}", type_name::<T>()))
}
