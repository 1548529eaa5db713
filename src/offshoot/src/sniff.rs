//! Looks into a result of any type for an error of ours, by asking the value to serialize itself.
//!
//! serde knows `Result::Err` as the variant `Err` of `Result`, with what is inside as a value of a type whose name can
//! be asked. So a function that returns `Result<T, Error>`, for any `T`, can be told from others without a trait that
//! its result would have to have.

use crate::{Error, ErrorKind};
use offshoot_wire::codec;
use serde::ser::{self, Impossible, Serialize, Serializer};
use std::any::type_name;
use std::fmt;
use std::hash::{Hash, Hasher};

/// The error inside of `Err`, if `value` is an `Err` of our type.
pub(crate) fn error_in<R: Serialize>(value: &R) -> Option<Error> {
    match value.serialize(Sniffer) {
        Err(Found::Ours(bytes)) => codec::decode(&bytes).ok(),
        _ => None,
    }
}

/// True if `value` is an `Err` of whatever type.
pub(crate) fn is_err<R: Serialize>(value: &R) -> bool {
    matches!(
        value.serialize(Sniffer),
        Err(Found::Ours(_) | Found::Foreign)
    )
}

/// The failure that `value` is, if it is an `Err` of whatever type: `what` has returned it.
pub(crate) fn failure_in<R: Serialize>(value: &R, what: &str) -> Option<Error> {
    match value.serialize(Sniffer) {
        Err(Found::Ours(bytes)) => codec::decode(&bytes).ok(),
        Err(Found::Foreign) => Some(foreign(what, type_name::<R>())),
        _ => None,
    }
}

/// As [`failure_in`], for types that serde need not know: of another `Err` than ours in a `Result<(), Error>` only the type is told.
pub(crate) fn failure_of<R>(value: &R, what: &str) -> Option<Error> {
    if let Some(result) = offshoot_wire::as_plain_result(value) {
        return result.as_ref().err().cloned();
    }
    /// Takes the number of the variant.
    #[derive(Default)]
    struct Variant(u64);
    impl Hasher for Variant {
        fn finish(&self) -> u64 {
            self.0
        }
        fn write(&mut self, bytes: &[u8]) {
            self.0 |= bytes.iter().fold(0, |any, byte| any | u64::from(*byte));
        }
    }
    if !type_name::<R>().starts_with("core::result::Result<") {
        return None;
    }
    // `Ok` is the first variant of `Result`.
    let mut variant = Variant::default();
    std::mem::discriminant(value).hash(&mut variant);
    (variant.finish() != 0).then(|| foreign(what, type_name::<R>()))
}

fn foreign(what: &str, of: &str) -> Error {
    let message = format!("{what} has returned an error, as a `{of}`, which nobody receives");
    Error::new(ErrorKind::Other, message)
}

/// What was found, as the error by which the walk ends.
#[derive(Debug)]
enum Found {
    /// An `Err` of our type, encoded.
    Ours(Vec<u8>),
    /// An `Err` of another type.
    Foreign,
    /// No `Err`.
    Nothing,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the walk ends here")
    }
}

impl std::error::Error for Found {}

impl ser::Error for Found {
    fn custom<T: fmt::Display>(_: T) -> Found {
        Found::Nothing
    }
}

struct Sniffer;

macro_rules! nothing {
    ($($name:ident($($type:ty),*) -> $ok:ty;)*) => {$(
        fn $name(self, $(_: $type),*) -> Result<$ok, Found> {
            Err(Found::Nothing)
        }
    )*};
}

type No = Impossible<(), Found>;

impl Serializer for Sniffer {
    type Ok = ();
    type Error = Found;
    type SerializeSeq = No;
    type SerializeTuple = No;
    type SerializeTupleStruct = No;
    type SerializeTupleVariant = No;
    type SerializeMap = No;
    type SerializeStruct = No;
    type SerializeStructVariant = No;

    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        name: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Found> {
        if (name, variant) != ("Result", "Err") {
            return Err(Found::Nothing);
        }
        let mut bytes = Vec::new();
        let ours = type_name::<T>() == type_name::<Error>();
        if ours && codec::encode_into(value, &mut bytes).is_ok() {
            return Err(Found::Ours(bytes));
        }
        Err(Found::Foreign)
    }

    fn serialize_some<T: ?Sized + Serialize>(self, _: &T) -> Result<(), Found> {
        Err(Found::Nothing)
    }

    fn serialize_newtype_struct<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        _: &T,
    ) -> Result<(), Found> {
        Err(Found::Nothing)
    }

    nothing! {
        serialize_bool(bool) -> ();
        serialize_i8(i8) -> ();
        serialize_i16(i16) -> ();
        serialize_i32(i32) -> ();
        serialize_i64(i64) -> ();
        serialize_u8(u8) -> ();
        serialize_u16(u16) -> ();
        serialize_u32(u32) -> ();
        serialize_u64(u64) -> ();
        serialize_f32(f32) -> ();
        serialize_f64(f64) -> ();
        serialize_char(char) -> ();
        serialize_str(&str) -> ();
        serialize_bytes(&[u8]) -> ();
        serialize_none() -> ();
        serialize_unit() -> ();
        serialize_unit_struct(&'static str) -> ();
        serialize_unit_variant(&'static str, u32, &'static str) -> ();
        serialize_seq(Option<usize>) -> No;
        serialize_tuple(usize) -> No;
        serialize_tuple_struct(&'static str, usize) -> No;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> No;
        serialize_map(Option<usize>) -> No;
        serialize_struct(&'static str, usize) -> No;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> No;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn an_error_of_ours_is_found_whatever_stands_beside_it() {
        let inner: Result<BTreeMap<u8, String>, Error> = Err(Error::other("inside"));
        assert_eq!(
            error_in(&inner).map(|error| error.to_string()).as_deref(),
            Some("inside")
        );
        assert!(is_err(&inner) && is_err(&Err::<(), u8>(1)));
        assert!(error_in(&Err::<(), u8>(1)).is_none());
    }

    #[test]
    fn the_failure_of_any_result_is_found() {
        struct Opaque;
        let text = |error: Option<Error>| error.map(|error| error.to_string());
        let ours = || Error::other("inside");
        assert_eq!(
            text(failure_of(&Err::<(), _>(ours()), "it")).as_deref(),
            Some("inside")
        );
        assert_eq!(
            text(failure_in(&Err::<u8, _>(ours()), "it")).as_deref(),
            Some("inside")
        );
        let told = text(failure_of(&Err::<Opaque, _>(Opaque), "it")).unwrap();
        assert!(
            told.starts_with("it has returned") && told.contains("Opaque"),
            "{told}"
        );
        assert!(text(failure_of(&Err::<Box<u8>, ()>(()), "it")).is_some());
        assert!(text(failure_of(&Err::<&str, Box<u8>>(Box::new(1)), "it")).is_some());
        assert!(text(failure_of(&Ok::<Box<u8>, ()>(Box::new(1)), "it")).is_none());
        assert!(text(failure_of(&Ok::<(), Error>(()), "it")).is_none());
        assert!(
            text(failure_of(
                &Ok::<Opaque, std::convert::Infallible>(Opaque),
                "it"
            ))
            .is_none()
        );
        assert!(failure_of(&Some(1), "it").is_none() && failure_of(&Opaque, "it").is_none());
        assert!(failure_in(&Ok::<u8, u8>(1), "it").is_none());
        assert!(
            text(failure_in(&Err::<u8, u8>(1), "it"))
                .unwrap()
                .contains("Result<u8, u8>")
        );
    }

    #[test]
    fn what_is_no_error_is_none() {
        #[derive(serde::Serialize)]
        enum Mine {
            Err(u8),
        }
        assert!(!is_err(&Mine::Err(1)) && !is_err(&Ok::<u8, u8>(1)) && !is_err(&Some(1)));
        assert!(
            !is_err(&BTreeMap::from([(1, 2)]))
                && !is_err(&((), "x", 1.5))
                && !is_err(&Error::other("x"))
        );
    }
}
