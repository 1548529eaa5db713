//! Bounds what an encoding can make this process do: nesting, number of elements, memory.
//!
//! A codec bounds the bytes. It does not bound the stack that nested values take, the time that
//! elements without bytes take (`Vec<()>` of 2³² elements is six bytes long) nor the memory that
//! short encodings of large values take. So every value passes through a serde (de)serializer that
//! wraps the codec's and counts. Both directions count alike, so that what can be encoded is not
//! refused by its receiver; only [`STORAGE_MAX`] is known to the receiver alone.
//!
//! Nothing here names a codec: it works with any that tells the length of its sequences, and with
//! the others at the price of a count per element.

use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, Error as _, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use serde::ser::{self, Error as _, Serialize, Serializer};
use std::cell::Cell;
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
}

impl Ledger {
    /// The budgets of an encoding of `len` bytes.
    pub(crate) fn for_bytes(len: usize) -> Ledger {
        Ledger {
            elements: Cell::new(elements_max(len)),
            storage: Cell::new(STORAGE_MAX),
        }
    }

    /// No budget, for a value whose encoding is not yet there; [`Ledger::elements_spent`] tells.
    pub(crate) fn unbounded() -> Ledger {
        Ledger {
            elements: Cell::new(usize::MAX),
            storage: Cell::new(usize::MAX),
        }
    }

    /// How many elements were charged to an unbounded ledger.
    pub(crate) fn elements_spent(&self) -> usize {
        usize::MAX - self.elements.get()
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
fn deeper(depth: u32) -> Result<u32, Fault> {
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
        inner.deserialize(Guard {
            inner: deserializer,
            ledger,
            depth,
        })
    }
}

/// A visitor of one container. `COUNTED` if its length comes from the bytes, not from the type.
struct Watch<'a, V, const COUNTED: bool>(Guard<'a, V>);

impl<'a, D> Guard<'a, D> {
    /// Descends one level with `visitor`.
    #[inline]
    fn watch<'de, V, E, const COUNTED: bool>(&self, visitor: V) -> Result<Watch<'a, V, COUNTED>, E>
    where
        V: Visitor<'de>,
        E: de::Error,
    {
        let depth = deeper(self.depth).map_err(E::custom)?;
        Ok(Watch(Guard {
            inner: visitor,
            ledger: self.ledger,
            depth,
        }))
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
        let visitor = self.watch::<V, D::Error, false>(visitor)?;
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
            self.0.inner.$method(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>, const COUNTED: bool> Visitor<'de> for Watch<'_, V, COUNTED> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.inner.expecting(f)
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
        self.0.inner.visit_none()
    }

    #[inline]
    fn visit_unit<E: de::Error>(self) -> Result<V::Value, E> {
        self.0.inner.visit_unit()
    }

    #[inline]
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        let deserializer = self.0.with(deserializer);
        self.0.inner.visit_some(deserializer)
    }

    #[inline]
    fn visit_newtype_struct<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<V::Value, D::Error> {
        let deserializer = self.0.with(deserializer);
        self.0.inner.visit_newtype_struct(deserializer)
    }

    #[inline]
    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let paid = !COUNTED || self.0.pay(access.size_hint()).map_err(A::Error::custom)?;
        let access = Elements::<_, COUNTED> {
            guard: self.0.with(access),
            paid,
        };
        self.0.inner.visit_seq(access)
    }

    #[inline]
    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let paid = !COUNTED || self.0.pay(access.size_hint()).map_err(A::Error::custom)?;
        let access = Elements::<_, COUNTED> {
            guard: self.0.with(access),
            paid,
        };
        self.0.inner.visit_map(access)
    }

    #[inline]
    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let access = self.0.with(access);
        self.0.inner.visit_enum(access)
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
}

impl<A, const COUNTED: bool> Elements<'_, A, COUNTED> {
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
        let element = self.guard.inner.next_element_seed(seed)?;
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
        let visitor = Watch::<_, false>(self.with(visitor));
        self.inner.tuple_variant(len, visitor)
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let visitor = Watch::<_, false>(self.with(visitor));
        self.inner.struct_variant(fields, visitor)
    }
}

// ---- encoding ----

impl<T: Serialize + ?Sized> Serialize for Guard<'_, &T> {
    #[inline]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.inner.serialize(self.with(serializer))
    }
}

macro_rules! writes {
    ($($method:ident($type:ty)),* $(,)?) => {$(
        #[inline]
        fn $method(self, value: $type) -> Result<S::Ok, S::Error> {
            self.inner.$method(value)
        }
    )*};
}

impl<'a, S: Serializer> Serializer for Guard<'a, S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Guard<'a, S::SerializeSeq>;
    type SerializeTuple = Guard<'a, S::SerializeTuple>;
    type SerializeTupleStruct = Guard<'a, S::SerializeTupleStruct>;
    type SerializeTupleVariant = Guard<'a, S::SerializeTupleVariant>;
    type SerializeMap = Guard<'a, S::SerializeMap>;
    type SerializeStruct = Guard<'a, S::SerializeStruct>;
    type SerializeStructVariant = Guard<'a, S::SerializeStructVariant>;

    writes! {
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
        serialize_str(&str),
        serialize_bytes(&[u8]),
        serialize_unit_struct(&'static str),
    }

    #[inline]
    fn serialize_none(self) -> Result<S::Ok, S::Error> {
        deeper(self.depth).map_err(S::Error::custom)?;
        self.inner.serialize_none()
    }

    #[inline]
    fn serialize_unit(self) -> Result<S::Ok, S::Error> {
        self.inner.serialize_unit()
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        let below = self.below()?;
        below.inner.serialize_some(&Guard {
            inner: value,
            ledger: below.ledger,
            depth: below.depth,
        })
    }

    #[inline]
    fn serialize_unit_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
    ) -> Result<S::Ok, S::Error> {
        self.below()?
            .inner
            .serialize_unit_variant(name, index, variant)
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        let below = self.below()?;
        below.inner.serialize_newtype_struct(
            name,
            &Guard {
                inner: value,
                ledger: below.ledger,
                depth: below.depth,
            },
        )
    }

    #[inline]
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        let below = self.below()?;
        let value = Guard {
            inner: value,
            ledger: below.ledger,
            depth: below.depth,
        };
        below
            .inner
            .serialize_newtype_variant(name, index, variant, &value)
    }

    #[inline]
    fn serialize_seq(self, len: Option<usize>) -> Result<Self::SerializeSeq, S::Error> {
        self.ledger
            .charge_elements(len.unwrap_or(0))
            .map_err(S::Error::custom)?;
        self.compound(|inner| inner.serialize_seq(len))
    }

    #[inline]
    fn serialize_tuple(self, len: usize) -> Result<Self::SerializeTuple, S::Error> {
        self.compound(|inner| inner.serialize_tuple(len))
    }

    #[inline]
    fn serialize_tuple_struct(
        self,
        name: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleStruct, S::Error> {
        self.compound(|inner| inner.serialize_tuple_struct(name, len))
    }

    #[inline]
    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleVariant, S::Error> {
        self.compound(|inner| inner.serialize_tuple_variant(name, index, variant, len))
    }

    #[inline]
    fn serialize_map(self, len: Option<usize>) -> Result<Self::SerializeMap, S::Error> {
        self.ledger
            .charge_elements(len.unwrap_or(0))
            .map_err(S::Error::custom)?;
        self.compound(|inner| inner.serialize_map(len))
    }

    #[inline]
    fn serialize_struct(
        self,
        name: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStruct, S::Error> {
        self.compound(|inner| inner.serialize_struct(name, len))
    }

    #[inline]
    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        self.compound(|inner| inner.serialize_struct_variant(name, index, variant, len))
    }

    fn collect_str<T: fmt::Display + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.inner.collect_str(value)
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

impl<'a, S: Serializer> Guard<'a, S> {
    #[inline]
    fn below(self) -> Result<Guard<'a, S>, S::Error> {
        let depth = deeper(self.depth).map_err(S::Error::custom)?;
        Ok(Guard { depth, ..self })
    }

    #[inline]
    fn compound<C>(
        self,
        open: impl FnOnce(S) -> Result<C, S::Error>,
    ) -> Result<Guard<'a, C>, S::Error> {
        let Guard {
            inner,
            ledger,
            depth,
        } = self.below()?;
        Ok(Guard {
            inner: open(inner)?,
            ledger,
            depth,
        })
    }
}

macro_rules! compounds {
    ($($trait:ident::$method:ident($($key:ident)?)),* $(,)?) => {$(
        impl<C: ser::$trait> ser::$trait for Guard<'_, C> {
            type Ok = C::Ok;
            type Error = C::Error;

            #[inline]
            fn $method<T: Serialize + ?Sized>(&mut self, $($key: &'static str,)? value: &T) -> Result<(), C::Error> {
                let value = self.with(value);
                self.inner.$method($($key,)? &value)
            }

            #[inline]
            fn end(self) -> Result<C::Ok, C::Error> {
                self.inner.end()
            }
        }
    )*};
}

compounds!(
    SerializeSeq::serialize_element(),
    SerializeTuple::serialize_element(),
    SerializeTupleStruct::serialize_field(),
    SerializeTupleVariant::serialize_field(),
    SerializeStruct::serialize_field(key),
    SerializeStructVariant::serialize_field(key),
);

impl<C: ser::SerializeMap> ser::SerializeMap for Guard<'_, C> {
    type Ok = C::Ok;
    type Error = C::Error;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), C::Error> {
        let key = self.with(key);
        self.inner.serialize_key(&key)
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), C::Error> {
        let value = self.with(value);
        self.inner.serialize_value(&value)
    }

    #[inline]
    fn end(self) -> Result<C::Ok, C::Error> {
        self.inner.end()
    }
}
