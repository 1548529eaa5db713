//! Bytes that cross as bytes, not as a sequence of numbers, and long ones beside the codec.

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, RangeBounds};
use std::thread::LocalKey;

/// From this length on bytes are shared and not copied: less is copied faster than it is counted.
pub(crate) const LONG: usize = 16 << 10;

/// Bytes that are shared, not copied: the payload for bulk data.
///
/// A clone or a [`slice`](Bytes::slice) is another reference to the same memory. A `Vec<u8>` is copied into what is
/// sent and out of what has come. `Bytes` are not, where they are long. In a message to
/// another process, 16 KiB and more pass the codec by: they are written from where they are, and what arrives is the memory that
/// they were read into, unless they came together with other messages: both sides together then copy them twice, into the kernel or a ring and out of it. The encoded bytes are those of
/// a `Vec<u8>`, so that either end may use either type.
///
/// What arrived shares its memory with the message in which it came, unless it is less than half of that.
///
/// # Examples
/// ```
/// use offshoot_wire::{Bytes, codec};
///
/// let mut out = Vec::new();
/// codec::encode_into(&Bytes::from(vec![1, 2, 3]), &mut out)?;
/// let back: Vec<u8> = codec::decode::<Bytes>(&out)?.into();
/// assert_eq!(back, [1, 2, 3]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(bytes::Bytes);

impl Bytes {
    /// The bytes as a vector. Copied only if somebody else has them, too, or more than them.
    pub fn into_vec(self) -> Vec<u8> {
        self.0.into()
    }

    /// A part of them, which shares their memory.
    ///
    /// # Panics
    /// If the range is not within them.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Bytes {
        Bytes(self.0.slice(range))
    }

    /// The same as `part`, which is a slice of them, sharing their memory.
    ///
    /// # Panics
    /// If it is not.
    pub fn slice_ref(&self, part: &[u8]) -> Bytes {
        Bytes(self.0.slice_ref(part))
    }

    /// Runs `f`, which decodes from them: long `Bytes` in what is decoded share their memory.
    pub fn decoding<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        if self.len() < LONG {
            return f(self);
        }
        let _restore = put(&DECODED, self.clone());
        f(self)
    }

    fn holds(&self, part: &[u8]) -> bool {
        let (ours, theirs) = (self.as_ptr_range(), part.as_ptr_range());
        ours.start <= theirs.start && theirs.end <= ours.end
    }
}

type Place = LocalKey<RefCell<Option<Bytes>>>;

thread_local! {
    /// The `Bytes` that are handed to a serializer on this thread just now.
    static SERIALIZED: RefCell<Option<Bytes>> = const { RefCell::new(None) };
    /// What is decoded on this thread just now.
    static DECODED: RefCell<Option<Bytes>> = const { RefCell::new(None) };
}

/// Puts them there until what is returned is dropped, also by a panic.
fn put(place: &'static Place, bytes: Bytes) -> impl Drop {
    struct Restore(&'static Place, Option<Bytes>);
    impl Drop for Restore {
        fn drop(&mut self) {
            self.0.set(self.1.take());
        }
    }
    Restore(place, place.replace(Some(bytes)))
}

fn with<R>(place: &'static Place, f: impl FnOnce(&Bytes) -> Option<R>) -> Option<R> {
    place.with_borrow(|bytes| bytes.as_ref().and_then(f))
}

/// What shares the memory of these bytes, if they are all that is handed to a serializer on this thread just now.
pub(crate) fn serialized(bytes: &[u8]) -> Option<Bytes> {
    if bytes.len() < LONG {
        return None;
    }
    with(&SERIALIZED, |whole| {
        std::ptr::eq::<[u8]>(&**whole, bytes).then(|| whole.clone())
    })
}

impl fmt::Debug for Bytes {
    /// The length only: a dump of the contents in a log helps nobody and may tell a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({} bytes)", self.0.len())
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Bytes {
        Bytes(bytes.into())
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Bytes {
        Bytes(bytes::Bytes::copy_from_slice(bytes))
    }
}

impl<const N: usize> From<&[u8; N]> for Bytes {
    fn from(bytes: &[u8; N]) -> Bytes {
        Bytes(bytes::Bytes::copy_from_slice(bytes))
    }
}

impl From<Bytes> for Vec<u8> {
    fn from(bytes: Bytes) -> Vec<u8> {
        bytes.into_vec()
    }
}

impl FromIterator<u8> for Bytes {
    fn from_iter<I: IntoIterator<Item = u8>>(bytes: I) -> Bytes {
        Bytes(bytes.into_iter().collect())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let _restore = (self.len() >= LONG).then(|| put(&SERIALIZED, self.clone()));
        serializer.serialize_bytes(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        deserializer.deserialize_byte_buf(BytesVisitor)
    }
}

struct BytesVisitor;

impl<'de> Visitor<'de> for BytesVisitor {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
        if bytes.len() < LONG {
            return Ok(bytes.into());
        }
        // A small part would keep all the rest.
        let shared = with(&DECODED, |whole| {
            let large = bytes.len() >= whole.len() / 2;
            (large && whole.holds(bytes)).then(|| whole.slice_ref(bytes))
        });
        Ok(shared.unwrap_or_else(|| bytes.into()))
    }

    fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
        Ok(bytes.into())
    }

    // Formats for humans have no bytes and write a sequence.
    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Bytes, A::Error> {
        let mut bytes = Vec::new();
        while let Some(byte) = access.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Rope, codec};
    use serde::Serialize;

    fn long(seed: u8) -> Bytes {
        (0..LONG).map(|n| n as u8 ^ seed).collect()
    }

    fn is_same(one: &[u8], other: &[u8]) -> bool {
        std::ptr::eq(one, other)
    }

    #[test]
    fn long_bytes_are_beside_the_encoding_and_are_the_same_in_it() {
        let (a, b) = (long(1), long(2));
        let value = (1_u8, &a, "between", vec![&b, &a], Bytes::from(b"short"));
        let (mut rope, mut vec) = (Rope::default(), Vec::new());
        rope.bytes.push(9);
        vec.push(9);
        codec::encode_onto(&value, &mut rope).unwrap();
        codec::encode_into(&value, &mut vec).unwrap();
        assert_eq!(rope.slices().collect::<Vec<_>>().concat(), vec);
        assert_eq!(rope.len(), vec.len());
        let shared: Vec<_> = rope.slices().filter(|slice| slice.len() == LONG).collect();
        assert!(is_same(shared[0], &a) && is_same(shared[1], &b) && is_same(shared[2], &a));
        assert!(rope.bytes.len() < 100);
    }

    #[test]
    fn what_could_not_be_encoded_leaves_nothing_beside() {
        struct Fails<'a>(&'a Bytes);
        impl Serialize for Fails<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::{Error, SerializeTuple};
                let mut tuple = serializer.serialize_tuple(2)?;
                tuple.serialize_element(self.0)?;
                Err(S::Error::custom("on purpose"))
            }
        }
        let mut rope = Rope::default();
        codec::encode_onto(&long(1), &mut rope).unwrap();
        let before = rope.len();
        assert!(codec::encode_onto(&Fails(&long(2)), &mut rope).is_err());
        assert_eq!((rope.len(), rope.parts.len()), (before, 1));
        assert!(SERIALIZED.take().is_none());
    }

    #[test]
    fn bytes_within_another_format_stay_there() {
        struct Inside<'a>(&'a Bytes);
        impl Serialize for Inside<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut inner = Vec::new();
                codec::encode_into(self.0, &mut inner).map_err(serde::ser::Error::custom)?;
                serializer.serialize_bytes(&inner)
            }
        }
        let mut rope = Rope::default();
        codec::encode_onto(&Inside(&long(1)), &mut rope).unwrap();
        assert!(rope.parts.is_empty());
    }

    #[test]
    fn what_is_decoded_shares_what_it_came_in_if_it_is_most_of_that() {
        let mut encoded = Vec::new();
        codec::encode_into(&(long(1), 5_u8), &mut encoded).unwrap();
        let whole = Bytes::from(encoded);
        let (back, _): (Bytes, u8) = whole.decoding(codec::decode).unwrap();
        assert!(back == long(1) && whole.holds(&back));
        let (copied, _): (Bytes, u8) = codec::decode(&whole).unwrap();
        assert!(copied == back && !whole.holds(&copied));
        // Three of one length: none is half of it.
        let mut encoded = Vec::new();
        codec::encode_into(&vec![long(1), long(2), long(3)], &mut encoded).unwrap();
        let whole = Bytes::from(encoded);
        let back: Vec<Bytes> = whole.decoding(codec::decode).unwrap();
        assert!(back == [long(1), long(2), long(3)] && !whole.holds(&back[1]));
        // What is decoded meanwhile of something else has nothing to do with it.
        let other: Bytes = whole
            .decoding(|_| {
                let mut encoded = Vec::new();
                codec::encode_into(&long(4), &mut encoded).unwrap();
                codec::decode(&encoded)
            })
            .unwrap();
        assert!(other == long(4));
        assert!(DECODED.take().is_none());
    }
}
