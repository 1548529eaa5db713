//! From a value to its bytes, without a step between: serde's calls write into the buffer that is sent.
//!
//! The bytes are bincode's: numbers are written by it, and what is around them (lengths before
//! sequences, one byte before options, the index before variants, nothing else) is as in its own
//! serializer, which a property test compares. What this one adds: the bounds of [`guard`](crate::guard),
//! the names of type and field in each error, errors for what a format without names cannot say,
//! and the [`Facts`] of which the first use of a type is made sure.

use crate::bytes::{self, Bytes};
use crate::codec::VALUE_MAX;
use crate::guard::{Fault, deeper};
use crate::plain;
use crate::probe::{Facts, Wrote, id};
use bincode::enc::write::Writer;
use bincode::error::EncodeError as Complaint;
use serde::ser::{self, Serialize, Serializer};
use std::fmt;

/// Why a value has no encoding, and where in it.
#[derive(Debug)]
pub(crate) struct Fail(Box<(String, String)>);

impl Fail {
    #[cold]
    fn new(what: impl fmt::Display) -> Fail {
        Fail(Box::new((String::new(), what.to_string())))
    }

    /// At this field, unless it says one within it.
    #[cold]
    fn at(mut self, owner: Owner, field: &str) -> Fail {
        if self.0.0.is_empty() {
            self.0.0 = format!("field `{field}` of {owner}: ");
        }
        self
    }
}

impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (place, what) = &*self.0;
        write!(f, "{place}{what}")
    }
}

impl std::error::Error for Fail {}

impl ser::Error for Fail {
    fn custom<T: fmt::Display>(what: T) -> Fail {
        Fail::new(what)
    }
}

impl From<Fault> for Fail {
    fn from(fault: Fault) -> Fail {
        Fail::new(fault)
    }
}

impl From<Complaint> for Fail {
    fn from(complaint: Complaint) -> Fail {
        match complaint {
            Complaint::UnexpectedEnd => Fail::new(format_args!(
                "exceeds the limit of {VALUE_MAX} bytes; send bulk data in chunks"
            )),
            other => Fail::new(other),
        }
    }
}

/// Appends to a vector up to the limit, and takes back what it appended unless told it is complete.
pub(crate) struct Sink<'a> {
    out: &'a mut Vec<u8>,
    /// Where long bytes go instead.
    parts: Option<&'a mut Vec<(usize, Bytes)>>,
    /// What there was before of both.
    start: (usize, usize),
    len: usize,
    complete: bool,
}

impl<'a> Sink<'a> {
    pub(crate) fn new(
        out: &'a mut Vec<u8>,
        parts: Option<&'a mut Vec<(usize, Bytes)>>,
    ) -> Sink<'a> {
        Sink {
            start: (out.len(), parts.as_ref().map_or(0, |parts| parts.len())),
            out,
            parts,
            len: 0,
            complete: false,
        }
    }

    /// Counts so many bytes more, before they are written.
    #[inline]
    fn count(&mut self, bytes: usize) -> Result<(), Complaint> {
        if bytes > VALUE_MAX - self.len {
            return Err(Complaint::UnexpectedEnd);
        }
        self.len += bytes;
        Ok(())
    }

    fn write_long(&mut self, bytes: &[u8]) -> Result<(), Complaint> {
        self.count(bytes.len())?;
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

impl Writer for Sink<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), Complaint> {
        self.count(bytes.len())?;
        self.out.extend_from_slice(bytes);
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

/// One value on its way into a [`Sink`].
pub(crate) struct Encoder<'a> {
    sink: Sink<'a>,
    elements: usize,
    facts: Option<&'a mut Facts>,
    notes: Option<Vec<Wrote>>,
}

impl<'a> Encoder<'a> {
    /// One that asks of each choice that the value makes whether it is known to arrive.
    pub(crate) fn new(sink: Sink<'a>, facts: Option<&'a mut Facts>) -> Encoder<'a> {
        Encoder {
            sink,
            elements: 0,
            facts,
            notes: None,
        }
    }

    /// One that writes down what the value says of its types.
    pub(crate) fn with_notes(sink: Sink<'a>) -> Encoder<'a> {
        Encoder {
            notes: Some(Vec::new()),
            ..Encoder::new(sink, None)
        }
    }

    /// Writes the value, and gives the notes.
    pub(crate) fn run<T: Serialize + ?Sized>(mut self, value: &T) -> Result<Vec<Wrote>, Fail> {
        value.serialize(Ser {
            encoder: &mut self,
            depth: 0,
            at: id::<T>(),
        })?;
        if self.elements > crate::guard::elements_max(self.sink.len) {
            return Err(Fault::Elements.into());
        }
        self.sink.complete = true;
        Ok(self.notes.take().unwrap_or_default())
    }

    #[inline]
    fn put<N: bincode::Encode>(&mut self, number: N) -> Result<(), Fail> {
        bincode::encode_into_writer(number, &mut self.sink, bincode::config::standard())?;
        Ok(())
    }

    #[inline]
    fn fact(&mut self, at: u64, what: u64) {
        if let Some(facts) = &mut self.facts {
            facts.saw(at, what);
        }
    }

    #[inline]
    fn note(&mut self, note: impl FnOnce() -> Wrote) {
        if let Some(notes) = &mut self.notes {
            notes.push(note());
        }
    }
}

/// What has fields.
#[derive(Clone, Copy)]
struct Owner {
    name: &'static str,
    variant: Option<&'static str>,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.variant {
            Some(variant) => write!(f, "`{}::{variant}`", self.name),
            None => write!(f, "`{}`", self.name),
        }
    }
}

/// serde's serializer: of one value, at a depth, of a type.
pub(crate) struct Ser<'e, 'a> {
    encoder: &'e mut Encoder<'a>,
    depth: u32,
    /// The type whose `Serialize` calls.
    at: u64,
}

/// A container whose elements are written.
pub(crate) struct Compound<'e, 'a> {
    encoder: &'e mut Encoder<'a>,
    depth: u32,
    owner: Owner,
    /// Where its fields are written down.
    note: usize,
    /// How many elements it said that it has, less those that came, where that is part of the encoding.
    left: Option<usize>,
}

/// What of a choice: a small number, or a variant's index behind these.
const SOME: u64 = 1;
const FILLED: u64 = 2;
const VARIANTS: u64 = 16;

macro_rules! numbers {
    ($($method:ident($type:ty)),* $(,)?) => {$(
        #[inline]
        fn $method(self, value: $type) -> Result<(), Fail> {
            self.encoder.put(value)
        }
    )*};
}

impl<'e, 'a> Serializer for Ser<'e, 'a> {
    type Ok = ();
    type Error = Fail;
    type SerializeSeq = Compound<'e, 'a>;
    type SerializeTuple = Compound<'e, 'a>;
    type SerializeTupleStruct = Compound<'e, 'a>;
    type SerializeTupleVariant = Compound<'e, 'a>;
    type SerializeMap = Compound<'e, 'a>;
    type SerializeStruct = Compound<'e, 'a>;
    type SerializeStructVariant = Compound<'e, 'a>;

    numbers! {
        serialize_bool(bool),
        serialize_i8(i8),
        serialize_i16(i16),
        serialize_i32(i32),
        serialize_i64(i64),
        serialize_i128(i128),
        serialize_u8(u8),
        serialize_u16(u16),
        serialize_u32(u32),
        serialize_u64(u64),
        serialize_u128(u128),
        serialize_f32(f32),
        serialize_f64(f64),
        serialize_char(char),
    }

    #[inline]
    fn serialize_str(self, value: &str) -> Result<(), Fail> {
        self.encoder.put(value.len())?;
        Ok(self.encoder.sink.write(value.as_bytes())?)
    }

    #[inline]
    fn serialize_bytes(self, value: &[u8]) -> Result<(), Fail> {
        self.encoder.put(value.len())?;
        Ok(self.encoder.sink.write_long(value)?)
    }

    #[inline]
    fn serialize_unit(self) -> Result<(), Fail> {
        Ok(())
    }

    #[inline]
    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Fail> {
        Ok(())
    }

    #[inline]
    fn serialize_none(self) -> Result<(), Fail> {
        deeper(self.depth)?;
        self.encoder.put(0_u8)
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Fail> {
        self.encoder.fact(self.at, SOME);
        self.encoder.put(1_u8)?;
        self.inner(value)
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Fail> {
        self.inner(value)
    }

    #[inline]
    fn serialize_unit_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
    ) -> Result<(), Fail> {
        deeper(self.depth)?;
        self.variant(name, index, variant)
    }

    #[inline]
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        mut self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Fail> {
        self.reborrow().variant(name, index, variant)?;
        self.inner(value)
    }

    #[inline]
    fn serialize_seq(self, len: Option<usize>) -> Result<Compound<'e, 'a>, Fail> {
        self.counted(len, "sequence")
    }

    #[inline]
    fn serialize_map(self, len: Option<usize>) -> Result<Compound<'e, 'a>, Fail> {
        self.counted(len, "map")
    }

    #[inline]
    fn serialize_tuple(self, _: usize) -> Result<Compound<'e, 'a>, Fail> {
        self.compound("", None)
    }

    #[inline]
    fn serialize_tuple_struct(
        self,
        name: &'static str,
        _: usize,
    ) -> Result<Compound<'e, 'a>, Fail> {
        self.compound(name, None)
    }

    #[inline]
    fn serialize_tuple_variant(
        mut self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Compound<'e, 'a>, Fail> {
        self.reborrow().variant(name, index, variant)?;
        self.compound(name, Some(variant))
    }

    #[inline]
    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Compound<'e, 'a>, Fail> {
        self.encoder.note(|| Wrote::Struct(name, Vec::new()));
        self.compound(name, None)
    }

    #[inline]
    fn serialize_struct_variant(
        mut self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Compound<'e, 'a>, Fail> {
        self.reborrow().variant(name, index, variant)?;
        self.encoder.note(|| Wrote::Struct(variant, Vec::new()));
        self.compound(name, Some(variant))
    }

    /// As serde's own, with numbers of one length as a whole.
    #[inline]
    fn collect_seq<I>(mut self, items: I) -> Result<(), Fail>
    where
        I: IntoIterator,
        I::Item: Serialize,
    {
        let items = items.into_iter();
        let len = match items.size_hint() {
            (least, Some(most)) if least == most => Some(least),
            _ => None,
        };
        if let Some(len) = len {
            // The types are constants: of all this one line is left, or none.
            if plain::is_ref_to::<I::Item, u8>() {
                return self.bytes(len, items.map(plain::referred::<_, u8>));
            }
            if plain::is_ref_to::<I::Item, i8>() {
                let items = items.map(plain::referred::<_, i8>);
                return self.bytes(len, items.map(|n| n.cast_unsigned()));
            }
            if plain::is_ref_to::<I::Item, bool>() {
                return self.bytes(len, items.map(plain::referred::<_, bool>).map(u8::from));
            }
            if plain::is_ref_to::<I::Item, f32>() {
                let items = items.map(plain::referred::<_, f32>);
                return self.wide(len, items.map(f32::to_le_bytes));
            }
            if plain::is_ref_to::<I::Item, f64>() {
                let items = items.map(plain::referred::<_, f64>);
                return self.wide(len, items.map(f64::to_le_bytes));
            }
        }
        let mut seq = self.reborrow().counted(len, "sequence")?;
        for item in items {
            seq.one_of_them(&item)?;
        }
        seq.end_counted()
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }
}

impl<'e, 'a> Ser<'e, 'a> {
    #[inline]
    fn reborrow(&mut self) -> Ser<'_, 'a> {
        Ser {
            encoder: &mut *self.encoder,
            ..*self
        }
    }

    #[inline]
    fn inner<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Fail> {
        value.serialize(Ser {
            depth: deeper(self.depth)?,
            at: id::<T>(),
            encoder: self.encoder,
        })
    }

    #[inline]
    fn variant(self, name: &'static str, index: u32, variant: &'static str) -> Result<(), Fail> {
        self.encoder.fact(self.at, VARIANTS + u64::from(index));
        self.encoder.note(|| Wrote::Variant(name, index, variant));
        self.encoder.put(index)
    }

    /// The length, and room for it counted: so many elements of so many bytes each.
    #[inline]
    fn row(&mut self, len: usize, each: usize) -> Result<usize, Fail> {
        deeper(self.depth)?;
        self.encoder.put(len)?;
        let elements = self.encoder.elements.checked_add(len);
        self.encoder.elements = elements.ok_or(Fault::Elements)?;
        let bytes = len.checked_mul(each).ok_or(Complaint::UnexpectedEnd)?;
        self.encoder.sink.count(bytes)?;
        Ok(bytes)
    }

    #[inline]
    fn bytes(mut self, len: usize, items: impl Iterator<Item = u8>) -> Result<(), Fail> {
        self.row(len, 1)?;
        let out = &mut *self.encoder.sink.out;
        let start = out.len();
        out.extend(items);
        match out.len() - start == len {
            true => Ok(()),
            false => Err(wrong_length()),
        }
    }

    #[inline]
    fn wide<const N: usize>(
        mut self,
        len: usize,
        mut items: impl Iterator<Item = [u8; N]>,
    ) -> Result<(), Fail> {
        let bytes = self.row(len, N)?;
        let out = &mut *self.encoder.sink.out;
        let start = out.len();
        // Cheaper than to ask for room with each.
        out.resize(start + bytes, 0);
        let (places, _) = out[start..].as_chunks_mut::<N>();
        let mut written = 0;
        for (place, item) in places.iter_mut().zip(&mut items) {
            *place = item;
            written += 1;
        }
        match written == len && items.next().is_none() {
            true => Ok(()),
            false => Err(wrong_length()),
        }
    }

    #[inline]
    fn compound(
        self,
        name: &'static str,
        variant: Option<&'static str>,
    ) -> Result<Compound<'e, 'a>, Fail> {
        Ok(Compound {
            depth: deeper(self.depth)?,
            owner: Owner { name, variant },
            note: self.encoder.notes.as_ref().map_or(0, Vec::len),
            encoder: self.encoder,
            left: None,
        })
    }

    #[inline]
    fn counted(self, len: Option<usize>, what: &str) -> Result<Compound<'e, 'a>, Fail> {
        let Some(len) = len else {
            return Err(Fail::new(format_args!(
                "it has a {what} of unknown length (serde's flatten makes one); collect it into a container first"
            )));
        };
        if len > 0 {
            self.encoder.fact(self.at, FILLED);
        }
        self.encoder.elements = self
            .encoder
            .elements
            .checked_add(len)
            .ok_or(Fault::Elements)?;
        self.encoder.put(len)?;
        let compound = self.compound("", None)?;
        Ok(Compound {
            left: Some(len),
            ..compound
        })
    }
}

impl<'a> Compound<'_, 'a> {
    #[inline]
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Fail> {
        value.serialize(Ser {
            encoder: &mut *self.encoder,
            depth: self.depth,
            at: id::<T>(),
        })
    }

    /// An element of what has said how many it has.
    #[inline]
    fn one_of_them<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Fail> {
        self.left = match self.left {
            Some(0) | None => return Err(wrong_length()),
            Some(left) => Some(left - 1),
        };
        self.element(value)
    }

    #[inline]
    fn field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Fail> {
        if let Some(notes) = &mut self.encoder.notes
            && let Some(Wrote::Struct(_, fields)) = notes.get_mut(self.note - 1)
        {
            fields.push(name);
        }
        let owner = self.owner;
        self.element(value).map_err(|fail| fail.at(owner, name))
    }

    #[cold]
    fn skipped(&self, name: &str) -> Result<(), Fail> {
        Err(Fail::new(
            "it is left out by serde's skip_serializing_if, and the codec knows fields by their place only; remove \
             the attribute, or use one type for files and another for messages",
        )
        .at(self.owner, name))
    }

    #[inline]
    fn end_counted(&self) -> Result<(), Fail> {
        match self.left {
            Some(0) => Ok(()),
            _ => Err(wrong_length()),
        }
    }
}

#[cold]
fn wrong_length() -> Fail {
    Fail::new("its `Serialize` writes another number of elements than it has told before")
}

impl ser::SerializeSeq for Compound<'_, '_> {
    type Ok = ();
    type Error = Fail;

    #[inline]
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Fail> {
        self.one_of_them(value)
    }

    #[inline]
    fn end(self) -> Result<(), Fail> {
        self.end_counted()
    }
}

impl ser::SerializeMap for Compound<'_, '_> {
    type Ok = ();
    type Error = Fail;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Fail> {
        self.one_of_them(key)
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Fail> {
        self.element(value)
    }

    #[inline]
    fn end(self) -> Result<(), Fail> {
        self.end_counted()
    }
}

macro_rules! tuples {
    ($($trait:ident::$method:ident),* $(,)?) => {$(
        impl ser::$trait for Compound<'_, '_> {
            type Ok = ();
            type Error = Fail;

            #[inline]
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Fail> {
                self.element(value)
            }

            #[inline]
            fn end(self) -> Result<(), Fail> {
                Ok(())
            }
        }
    )*};
}

tuples!(
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field,
);

macro_rules! structs {
    ($($trait:ident),* $(,)?) => {$(
        impl ser::$trait for Compound<'_, '_> {
            type Ok = ();
            type Error = Fail;

            #[inline]
            fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Fail> {
                self.field(key, value)
            }

            fn skip_field(&mut self, key: &'static str) -> Result<(), Fail> {
                self.skipped(key)
            }

            #[inline]
            fn end(self) -> Result<(), Fail> {
                Ok(())
            }
        }
    )*};
}

structs!(SerializeStruct, SerializeStructVariant);
