//! Bounds what an encoding can make this process do: nesting, number of elements, memory.
//!
//! A codec bounds the bytes. It does not bound the stack that nested values take, the time that
//! elements without bytes take (`Vec<()>` of 2³² elements is six bytes long) nor the memory that
//! short encodings of large values take. So every value is decoded through a serde deserializer that
//! wraps the codec's and counts; `ser` counts alike, so that what can be encoded is not refused by its
//! receiver, and only [`STORAGE_MAX`] is known to the receiver alone. What is decoded for its types' sake
//! is written down here, too, for [`probe`](crate::probe).
//!
//! Nothing here names a codec: it works with any that tells the length of its sequences, and with
//! the others at the price of a count per element.

use crate::plain;
use crate::probe::Read;
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, Error as _, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use std::cell::{Cell, RefCell};
use std::fmt;

/// How deep containers may nest: sequences, maps, tuples, structs, enums, options.
///
/// Each level takes some hundred bytes of stack, a few kilobytes in a debug build, on a stack that
/// the user may have made small. Real values have fewer than twenty levels.
pub(crate) const DEPTH_MAX: u32 = 128;

/// How many bytes the decoded elements and structs of one value may take in memory.
///
/// Sixteen times the longest body: a sequence of pairs of small integers takes eight bytes of memory
/// per byte of body, and structs are counted once as element and once as struct.
pub(crate) const STORAGE_MAX: usize = 16 * crate::frame::BODY_MAX;

/// How many elements the sequences and maps in an encoding of `len` bytes may have.
///
/// An element that has an encoding has at least one byte of its own, whatever the nesting. So the
/// budget is for elements without one, units for example, and nobody else can exhaust it.
pub(crate) fn elements_max(len: usize) -> usize {
    len.saturating_mul(8).saturating_add(1024)
}

/// What is left of the budgets of one value.
pub(crate) struct Ledger {
    elements: Cell<usize>,
    storage: Cell<usize>,
    /// The field of which the decoder did not know more when it failed: the innermost.
    place: Cell<Option<(&'static str, &'static str)>>,
    /// What the types that are decoded say of themselves, where that is asked for.
    notes: Option<RefCell<Vec<Read>>>,
}

impl Ledger {
    /// The budgets of an encoding of `len` bytes.
    pub(crate) fn for_bytes(len: usize) -> Ledger {
        Ledger {
            elements: Cell::new(elements_max(len)),
            storage: Cell::new(STORAGE_MAX),
            place: Cell::new(None),
            notes: None,
        }
    }

    /// As [`Ledger::for_bytes`], and writes down what the types say of themselves.
    pub(crate) fn with_notes(len: usize) -> Ledger {
        Ledger {
            notes: Some(RefCell::default()),
            ..Ledger::for_bytes(len)
        }
    }

    /// What was written down.
    pub(crate) fn notes(&self) -> Vec<Read> {
        self.notes.as_ref().map(RefCell::take).unwrap_or_default()
    }

    /// The struct and its field at which decoding failed, if it was at one.
    pub(crate) fn place(&self) -> Option<(&'static str, &'static str)> {
        self.place.get()
    }

    #[inline]
    fn note(&self, note: impl FnOnce() -> Read) {
        if let Some(notes) = &self.notes {
            notes.borrow_mut().push(note());
        }
    }

    #[inline]
    fn charge_elements(&self, count: usize) -> Result<(), Fault> {
        let left = self
            .elements
            .get()
            .checked_sub(count)
            .ok_or(Fault::Elements)?;
        self.elements.set(left);
        Ok(())
    }

    #[inline]
    fn charge_storage<T>(&self) -> Result<(), Fault> {
        // Small elements are bounded well enough by their number, and bytes are too many to count.
        if size_of::<T>() <= 8 {
            return Ok(());
        }
        let left = self
            .storage
            .get()
            .checked_sub(size_of::<T>())
            .ok_or(Fault::Storage)?;
        self.storage.set(left);
        Ok(())
    }
}

/// Which bound a value exceeds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Depth,
    Elements,
    Storage,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Depth => {
                write!(f, "nested deeper than the limit of {DEPTH_MAX} levels; flatten the value or send its parts")
            }
            Fault::Elements => {
                f.write_str("more elements than its bytes can hold (8 per byte and 1024); send a number instead of units")
            }
            Fault::Storage => {
                write!(f, "its elements would take more than {STORAGE_MAX} bytes of memory; send them in chunks")
            }
        }
    }
}

#[inline]
pub(crate) fn deeper(depth: u32) -> Result<u32, Fault> {
    if depth < DEPTH_MAX {
        Ok(depth + 1)
    } else {
        Err(Fault::Depth)
    }
}

/// A value, a seed, a visitor, an access or a serializer, with the ledger and the depth it is at.
pub(crate) struct Guard<'a, T> {
    inner: T,
    ledger: &'a Ledger,
    depth: u32,
}

impl<'a, T> Guard<'a, T> {
    /// The outermost level.
    pub(crate) fn new(inner: T, ledger: &'a Ledger) -> Guard<'a, T> {
        Guard {
            inner,
            ledger,
            depth: 0,
        }
    }

    #[inline]
    fn with<U>(&self, inner: U) -> Guard<'a, U> {
        Guard {
            inner,
            ledger: self.ledger,
            depth: self.depth,
        }
    }
}

// ---- decoding ----

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Guard<'_, S> {
    type Value = S::Value;

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        let Guard {
            inner,
            ledger,
            depth,
        } = self;
        // Its bytes are those of bytes, which come as a whole.
        if plain::is_seed_of::<S, Vec<u8>>() {
            deeper(depth).map_err(D::Error::custom)?;
            let bytes = deserializer.deserialize_bytes(Owned)?;
            return Ok(plain::seeded::<S, Vec<u8>>(bytes));
        }
        inner.deserialize(Guard {
            inner: deserializer,
            ledger,
            depth,
        })
    }
}

/// Bytes as they are kept.
struct Owned;

impl Visitor<'_> for Owned {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    #[inline]
    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }
}

/// A visitor of one container. `COUNTED` if its length comes from the bytes, not from the type.
struct Watch<'a, V, const COUNTED: bool> {
    guard: Guard<'a, V>,
    /// Of a struct: its name and its fields.
    names: Names,
}

type Names = (&'static str, &'static [&'static str]);

const NO_NAMES: Names = ("", &[]);

impl<'a, D> Guard<'a, D> {
    /// Descends one level with `visitor`.
    #[inline]
    fn watch<'de, V, E, const COUNTED: bool>(&self, visitor: V) -> Result<Watch<'a, V, COUNTED>, E>
    where
        V: Visitor<'de>,
        E: de::Error,
    {
        let depth = deeper(self.depth).map_err(E::custom)?;
        let guard = Guard {
            inner: visitor,
            ledger: self.ledger,
            depth,
        };
        Ok(Watch {
            guard,
            names: NO_NAMES,
        })
    }
}

macro_rules! leaves {
    ($($method:ident => $inner:ident),* $(,)?) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$inner(visitor)
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Guard<'_, D> {
    type Error = D::Error;

    leaves! {
        deserialize_bool => deserialize_bool,
        deserialize_i8 => deserialize_i8,
        deserialize_i16 => deserialize_i16,
        deserialize_i32 => deserialize_i32,
        deserialize_i64 => deserialize_i64,
        deserialize_i128 => deserialize_i128,
        deserialize_u8 => deserialize_u8,
        deserialize_u16 => deserialize_u16,
        deserialize_u32 => deserialize_u32,
        deserialize_u64 => deserialize_u64,
        deserialize_u128 => deserialize_u128,
        deserialize_f32 => deserialize_f32,
        deserialize_f64 => deserialize_f64,
        deserialize_char => deserialize_char,
        deserialize_str => deserialize_str,
        // Borrowed, because a codec allocates an owned string by the length that the bytes claim
        // before it looks whether they are there. What is kept is then allocated by its real length.
        deserialize_string => deserialize_str,
        deserialize_bytes => deserialize_bytes,
        deserialize_byte_buf => deserialize_bytes,
        deserialize_unit => deserialize_unit,
        deserialize_identifier => deserialize_identifier,
    }

    #[inline]
    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_unit_struct(name, visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let visitor = self.watch::<V, D::Error, true>(visitor)?;
        self.inner.deserialize_any(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let visitor = self.watch::<V, D::Error, true>(visitor)?;
        self.inner.deserialize_ignored_any(visitor)
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let visitor = self.watch::<V, D::Error, false>(visitor)?;
        self.inner.deserialize_option(visitor)
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = self.watch::<V, D::Error, false>(visitor)?;
        self.inner.deserialize_newtype_struct(name, visitor)
    }

    #[inline]
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let visitor = self.watch::<V, D::Error, true>(visitor)?;
        self.inner.deserialize_seq(visitor)
    }

    #[inline]
    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = self.watch::<V, D::Error, false>(visitor)?;
        self.inner.deserialize_tuple(len, visitor)
    }

    #[inline]
    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = self.watch::<V, D::Error, false>(visitor)?;
        self.inner.deserialize_tuple_struct(name, len, visitor)
    }

    #[inline]
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let visitor = self.watch::<V, D::Error, true>(visitor)?;
        self.inner.deserialize_map(visitor)
    }

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        // Also where it is no element: a struct in a box takes memory that its owner does not show.
        self.ledger
            .charge_storage::<V::Value>()
            .map_err(D::Error::custom)?;
        self.ledger.note(|| Read::Struct(fields));
        let mut visitor = self.watch::<V, D::Error, false>(visitor)?;
        visitor.names = (name, fields);
        self.inner.deserialize_struct(name, fields, visitor)
    }

    #[inline]
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.ledger
            .charge_storage::<V::Value>()
            .map_err(D::Error::custom)?;
        self.ledger.note(|| Read::Enum(variants));
        let visitor = self.watch::<V, D::Error, false>(visitor)?;
        self.inner.deserialize_enum(name, variants, visitor)
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

macro_rules! visits {
    ($($method:ident($type:ty)),* $(,)?) => {$(
        #[inline]
        fn $method<E: de::Error>(self, value: $type) -> Result<V::Value, E> {
            self.guard.inner.$method(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>, const COUNTED: bool> Visitor<'de> for Watch<'_, V, COUNTED> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.guard.inner.expecting(f)
    }

    visits! {
        visit_bool(bool),
        visit_i8(i8),
        visit_i16(i16),
        visit_i32(i32),
        visit_i64(i64),
        visit_i128(i128),
        visit_u8(u8),
        visit_u16(u16),
        visit_u32(u32),
        visit_u64(u64),
        visit_u128(u128),
        visit_f32(f32),
        visit_f64(f64),
        visit_char(char),
        visit_str(&str),
        visit_borrowed_str(&'de str),
        visit_string(String),
        visit_bytes(&[u8]),
        visit_borrowed_bytes(&'de [u8]),
        visit_byte_buf(Vec<u8>),
    }

    #[inline]
    fn visit_none<E: de::Error>(self) -> Result<V::Value, E> {
        self.guard.inner.visit_none()
    }

    #[inline]
    fn visit_unit<E: de::Error>(self) -> Result<V::Value, E> {
        self.guard.inner.visit_unit()
    }

    #[inline]
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        let deserializer = self.guard.with(deserializer);
        self.guard.inner.visit_some(deserializer)
    }

    #[inline]
    fn visit_newtype_struct<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<V::Value, D::Error> {
        let deserializer = self.guard.with(deserializer);
        self.guard.inner.visit_newtype_struct(deserializer)
    }

    #[inline]
    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let paid = !COUNTED
            || self
                .guard
                .pay(access.size_hint())
                .map_err(A::Error::custom)?;
        let access = Elements::<_, COUNTED> {
            guard: self.guard.with(access),
            paid,
            names: self.names,
            next: 0,
        };
        self.guard.inner.visit_seq(access)
    }

    #[inline]
    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let paid = !COUNTED
            || self
                .guard
                .pay(access.size_hint())
                .map_err(A::Error::custom)?;
        let access = Elements::<_, COUNTED> {
            guard: self.guard.with(access),
            paid,
            names: self.names,
            next: 0,
        };
        self.guard.inner.visit_map(access)
    }

    #[inline]
    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let access = self.guard.with(access);
        self.guard.inner.visit_enum(access)
    }
}

impl<V> Guard<'_, V> {
    /// Charges a container's elements at once if their number is known, and says whether it was.
    ///
    /// At once is both cheaper and earlier: a container with 2⁶² elements is refused by its length.
    #[inline]
    fn pay(&self, hint: Option<usize>) -> Result<bool, Fault> {
        hint.map_or(Ok(false), |count| {
            self.ledger.charge_elements(count).map(|()| true)
        })
    }
}

/// The elements of one container. `paid` if all of them are charged already.
struct Elements<'a, A, const COUNTED: bool> {
    guard: Guard<'a, A>,
    paid: bool,
    names: Names,
    next: usize,
}

impl<A, const COUNTED: bool> Elements<'_, A, COUNTED> {
    /// Keeps the field at which decoding failed, unless one within it is kept.
    #[cold]
    fn failed(&self, at: usize) {
        let place = &self.guard.ledger.place;
        if let (name, Some(field)) = (self.names.0, self.names.1.get(at))
            && place.get().is_none()
        {
            place.set(Some((name, field)));
        }
    }

    /// Charges what was decoded. Afterwards, since an access does not know that it is at its end.
    #[inline]
    fn charge<T, E: de::Error>(&self, element: Option<T>, paid: bool) -> Result<Option<T>, E> {
        if COUNTED && element.is_some() {
            self.guard.ledger.charge_storage::<T>().map_err(E::custom)?;
            if !paid {
                self.guard.ledger.charge_elements(1).map_err(E::custom)?;
            }
        }
        Ok(element)
    }
}

impl<'de, A: SeqAccess<'de>, const COUNTED: bool> SeqAccess<'de> for Elements<'_, A, COUNTED> {
    type Error = A::Error;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let seed = self.guard.with(seed);
        let at = self.next;
        self.next += 1;
        let element = self
            .guard
            .inner
            .next_element_seed(seed)
            .inspect_err(|_| self.failed(at))?;
        self.charge(element, self.paid)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.guard.inner.size_hint()
    }
}

impl<'de, A: MapAccess<'de>, const COUNTED: bool> MapAccess<'de> for Elements<'_, A, COUNTED> {
    type Error = A::Error;

    #[inline]
    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let seed = self.guard.with(seed);
        let key = self.guard.inner.next_key_seed(seed)?;
        self.charge(key, self.paid)
    }

    #[inline]
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let seed = self.guard.with(seed);
        let value = self.guard.inner.next_value_seed(seed)?;
        if COUNTED {
            self.guard
                .ledger
                .charge_storage::<S::Value>()
                .map_err(A::Error::custom)?;
        }
        Ok(value)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.guard.inner.size_hint()
    }
}

impl<'a, 'de, A: EnumAccess<'de>> EnumAccess<'de> for Guard<'a, A> {
    type Error = A::Error;
    type Variant = Guard<'a, A::Variant>;

    #[inline]
    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), A::Error> {
        let seed = self.with(seed);
        let Guard {
            inner,
            ledger,
            depth,
        } = self;
        let (value, inner) = inner.variant_seed(seed)?;
        Ok((
            value,
            Guard {
                inner,
                ledger,
                depth,
            },
        ))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Guard<'_, A> {
    type Error = A::Error;

    #[inline]
    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    #[inline]
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        let seed = self.with(seed);
        self.inner.newtype_variant_seed(seed)
    }

    // The level of the enum is the level of its variant's fields: one value, one level.
    #[inline]
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        let visitor = Watch::<_, false> {
            guard: self.with(visitor),
            names: NO_NAMES,
        };
        self.inner.tuple_variant(len, visitor)
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.ledger.note(|| Read::Struct(fields));
        let visitor = Watch::<_, false> {
            guard: self.with(visitor),
            names: ("the variant", fields),
        };
        self.inner.struct_variant(fields, visitor)
    }
}
