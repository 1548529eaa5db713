//! Types that are known by themselves: the one file of the crate with `unsafe`.
//!
//! serde visits the bytes of a `Vec<u8>` one by one, in both directions, for it cannot tell them from other
//! elements. A generic function can: two types with one `TypeId` are one type (`typeid` gives that of a type that
//! borrows, as if it did so for ever). So what is done here depends on the type alone, never on its name or size.
#![allow(unsafe_code)]

use crate::Error;
use serde::Deserialize;
use serde::de::DeserializeSeed;
use std::any::TypeId;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;

/// True if an `I` is a reference to an `N`.
#[inline]
pub(crate) fn is_ref_to<I, N: 'static>() -> bool {
    typeid::of::<I>() == TypeId::of::<&'static N>()
}

/// What the item refers to.
///
/// # Panics
/// If it is no reference to an `N`: ask [`is_ref_to`] before.
#[inline]
pub(crate) fn referred<I, N: Copy + 'static>(item: I) -> N {
    assert!(is_ref_to::<I, N>(), "the caller has asked");
    // SAFETY: `I` and `&'static N` have one type id with lifetimes left aside, so that `I` is `&'a N` for some `'a`.
    // `item` is a valid one, which is alive here since it is a value that was given; `&N` has the size and the
    // layout of itself. The reference that is made lives to the end of this line, within `'a`, and `N` is `Copy`.
    unsafe { *std::mem::transmute_copy::<I, &N>(&item) }
}

/// True if the seed is the one that serde has for a `V` without anything of its own.
///
/// A visitor or a `deserialize_with` of a program's is a seed of another type.
#[inline]
pub(crate) fn is_seed_of<S, V: 'static>() -> bool {
    typeid::of::<S>() == TypeId::of::<PhantomData<V>>()
}

/// The value as that of its seed.
///
/// # Panics
/// If it is not: ask [`is_seed_of`] before.
#[inline]
pub(crate) fn seeded<'de, S, V>(value: V) -> S::Value
where
    S: DeserializeSeed<'de>,
    V: Deserialize<'de> + 'static,
{
    assert!(is_seed_of::<S, V>(), "the caller has asked");
    let value = ManuallyDrop::new(value);
    // SAFETY: `S` and `PhantomData<V>` have one type id, and no lifetime is in `V`, so that they are one type. It has
    // one implementation of `DeserializeSeed<'de>`, serde's, in which `Value` is `V`. So a `V` is read as a `V`, once:
    // the original is never dropped nor used again.
    unsafe { std::mem::transmute_copy::<V, S::Value>(&value) }
}

/// The value as what it is, if it is a `Result<(), Error>`.
pub fn as_plain_result<T>(value: &T) -> Option<&Result<(), Error>> {
    let same = typeid::of::<T>() == TypeId::of::<Result<(), Error>>();
    // SAFETY: a type without lifetimes has its own type id, so that `T` is this type.
    same.then(|| unsafe { &*std::ptr::from_ref(value).cast::<Result<(), Error>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_known_by_itself_only() {
        fn of<I>(_: &I) -> (bool, bool) {
            (is_ref_to::<I, u8>(), is_ref_to::<I, i8>())
        }
        let byte = 7_u8;
        assert_eq!(of(&&byte), (true, false));
        assert_eq!(of(&byte), (false, false));
        assert_eq!(of(&&&byte), (false, false));
        assert_eq!(of(&&mut 7_u8), (false, false));
        assert_eq!(of(&&7_i8), (false, true));
        assert_eq!(referred::<_, u8>(&byte), 7);
        assert!(is_seed_of::<PhantomData<Vec<u8>>, Vec<u8>>());
        assert!(!is_seed_of::<PhantomData<Vec<i8>>, Vec<u8>>());
        let value = vec![1_u8, 2, 3];
        let at = value.as_ptr();
        let back: Vec<u8> = seeded::<PhantomData<Vec<u8>>, _>(value);
        assert_eq!((back.as_ptr(), &back[..]), (at, &[1, 2, 3][..]));
    }
}
