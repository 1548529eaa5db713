//! What serde's attributes do to a type that crosses: it arrives as it was, or its sender is told type and field.

use offshoot_wire::{Rope, codec};
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::num::NonZeroU8;

fn plainly(write: &mut dyn FnMut(), read: &mut dyn FnMut()) -> Result<(), String> {
    write();
    read();
    Ok(())
}

fn sent<T: Serialize + DeserializeOwned>(value: &T) -> Result<T, String> {
    let mut rope = Rope::from(b"kept".to_vec());
    let encoded = codec::encode_checked(value, &mut rope, plainly);
    let bytes = rope.into_vec();
    if let Err(error) = encoded {
        assert_eq!(bytes, b"kept", "nothing is left of what is not sent");
        return Err(error.to_string());
    }
    let mut plain = Vec::new();
    bincode::serde::encode_into_std_write(value, &mut plain, bincode::config::standard()).unwrap();
    assert_eq!(bytes[4..], plain, "the bytes are bincode's");
    Ok(codec::decode(&bytes[4..]).expect("what is sent arrives"))
}

#[track_caller]
fn works<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T) {
    assert_eq!(sent(&value).as_ref(), Ok(&value));
}

/// The error has all of this.
#[track_caller]
fn refused<T: Serialize + DeserializeOwned + Debug>(value: T, words: &[&str]) {
    // Again, since what has failed is not taken for known.
    for _ in 0..2 {
        let error = sent(&value).expect_err("it cannot cross");
        for word in words {
            assert!(error.contains(word), "no {word:?} in: {error}");
        }
    }
}

macro_rules! types {
    ($($(#[$meta:meta])* $name:ident { $($(#[$attr:meta])* $field:ident: $type:ty),* $(,)? })*) => {$(
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        $(#[$meta])*
        struct $name { $($(#[$attr])* $field: $type),* }
    )*};
}

mod hex {
    use serde::{Deserialize, Deserializer, Serializer};
    pub(super) fn serialize<S: Serializer>(n: &u32, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&format!("{n:x}"))
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
        u32::from_str_radix(&String::deserialize(d)?, 16).map_err(serde::de::Error::custom)
    }
}

types! {
    Inner { x: u8, y: Option<String> }
    #[serde(rename = "other", rename_all = "camelCase", deny_unknown_fields, default, expecting = "it")]
    Named { #[serde(rename = "z")] some_field: u8, #[serde(alias = "old", alias = "older")] new_field: String }
    #[serde(rename_all(serialize = "UPPERCASE", deserialize = "lowercase"))]
    TwoNames { a: u8, b: u16 }
    Skipped { a: u8, #[serde(skip)] cache: u32, b: String }
    Hex { #[serde(with = "hex")] n: u32, after: u8 }
    HexOut { #[serde(serialize_with = "hex::serialize")] n: u32, after: u8 }
    Defaults { #[serde(default)] a: u8, #[serde(default = "String::new")] b: String }
    #[serde(transparent)]
    Through { inner: Inner }
    SkippedIf { a: u8, #[serde(default, skip_serializing_if = "Option::is_none")] b: Option<u8>, c: Option<u8> }
    Flat { a: u8, #[serde(flatten)] inner: Inner }
    FlatMap { a: u8, #[serde(flatten)] rest: BTreeMap<String, u8> }
    NotWritten { a: u8, #[serde(skip_serializing)] b: u8, c: Vec<u8> }
    NotRead { a: u8, #[serde(skip_deserializing)] b: u8, c: Vec<u8> }
    Big { a: i128, b: u128, c: HashMap<i128, (u8, NonZeroU8)> }
    Deep { list: Vec<Option<SkippedIf>> }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
struct Converted(u8);

impl From<Converted> for String {
    fn from(it: Converted) -> String {
        it.0.to_string()
    }
}

impl TryFrom<String> for Converted {
    type Error = std::num::ParseIntError;
    fn try_from(text: String) -> Result<Converted, Self::Error> {
        text.parse().map(Converted)
    }
}

macro_rules! enums {
    ($($(#[$meta:meta])* $name:ident;)*) => {$(
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        $(#[$meta])*
        enum $name { Unit, New(u8), Tuple(u8, String), Struct { a: u8, b: Option<u8> } }

        impl $name {
            fn all() -> [$name; 5] {
                [
                    $name::Unit,
                    $name::New(7),
                    $name::Tuple(8, "nine".to_owned()),
                    $name::Struct { a: 1, b: Some(2) },
                    $name::Struct { a: 1, b: None },
                ]
            }
        }
    )*};
}

enums! {
    Outside;
    #[serde(rename_all = "kebab-case", rename_all_fields = "UPPERCASE")]
    Renamed;
    #[serde(tag = "kind", content = "value")]
    Adjacent;
    #[serde(untagged)]
    Untagged;
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Internal {
    Unit,
    Struct { a: u8 },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum SkippedLast {
    A(u8),
    #[serde(alias = "Ab", alias = "Ac")]
    B(u8),
    #[serde(skip)]
    #[allow(dead_code)] // It is there to be counted.
    Never(std::marker::PhantomData<u8>),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum SkippedBefore {
    A(u8),
    #[serde(skip)]
    #[allow(dead_code)] // It is there to be counted.
    Never,
    B(u8),
    C(u8),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum OneUntagged {
    A(u8),
    #[serde(untagged)]
    Else(String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum NamesOfTheirOwn {
    #[serde(rename(serialize = "a", deserialize = "b"))]
    A,
    #[serde(rename(serialize = "b", deserialize = "a"))]
    B { x: u8 },
}

#[derive(Debug, Deserialize)]
struct Endless(Vec<u8>);

impl Serialize for Endless {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().filter(|n| **n != 0))
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct HasEndless {
    items: Endless,
}

#[derive(Debug, Deserialize)]
struct Liar(Vec<u8>);

impl Serialize for Liar {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeSeq;
        let mut seq = serializer.serialize_seq(Some(2))?;
        for item in &self.0 {
            seq.serialize_element(item)?;
        }
        seq.end()
    }
}

/// Knows only while it is decoded that it needs names.
#[derive(Debug)]
struct Any;

impl Serialize for Any {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        assert!(!serializer.is_human_readable());
        serializer.serialize_u8(1)
    }
}

impl<'de> Deserialize<'de> for Any {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Any, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Any;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("anything")
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 128 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn attributes_that_keep_every_field_in_its_place_work(
        n in any::<u8>(), m in any::<u32>(), text in ".{0,9}", y in proptest::option::of(".{0,3}"),
        big in any::<(i128, u128)>(), nonzero in any::<NonZeroU8>(),
    ) {
        let inner = Inner { x: n, y };
        works(inner.clone());
        works(Named { some_field: n, new_field: text.clone() });
        works(vec![TwoNames { a: n, b: 900 }; usize::from(n % 3)]);
        works(Hex { n: m, after: n });
        works(Defaults { a: n, b: text.clone() });
        works(Through { inner });
        works(Some(Converted(n)));
        works(Big { a: big.0, b: big.1, c: [(big.0, (n, nonzero)), (7, (1, nonzero))].into() });
        let skipped = Skipped { a: n, cache: m, b: text.clone() };
        assert_eq!(sent(&skipped), Ok(Skipped { cache: 0, ..skipped }));
        works((BTreeMap::from([((n, text.clone()), vec![text.clone()])]), [Some(n), None]));
        Outside::all().into_iter().for_each(works);
        Renamed::all().into_iter().for_each(works);
        works([SkippedLast::A(n), SkippedLast::B(n)]);
        works(NamesOfTheirOwn::A);
        works([NamesOfTheirOwn::B { x: n }, NamesOfTheirOwn::A]);
    }

    #[test]
    fn other_attributes_are_errors_of_the_sender(n in any::<u8>(), text in ".{1,9}", list in proptest::collection::vec(any::<u8>(), 0..9)) {
        // As long as nothing is left out it is the same value.
        works(SkippedIf { a: n, b: Some(n), c: None });
        let lacks = SkippedIf { a: n, b: None, c: Some(n) };
        refused(lacks.clone(), &["SkippedIf: ", "field `b` of `SkippedIf`", "skip_serializing_if"]);
        refused(Deep { list: vec![None, Some(lacks)] }, &["field `b` of `SkippedIf`", "skip_serializing_if"]);
        works(Deep { list: vec![None] });
        refused(Flat { a: n, inner: Inner { x: n, y: None } }, &["Flat: ", "flatten"]);
        refused(FlatMap { a: n, rest: BTreeMap::from([(text.clone(), n)]) }, &["FlatMap: ", "flatten"]);
        refused(NotWritten { a: n, b: 1, c: list.clone() }, &["field `b` of `NotWritten`", "skip_serializing"]);
        refused(NotRead { a: n, b: 1, c: list.clone() }, &["field `b` of `NotRead`", "skip_deserializing"]);
        refused(HexOut { n: u32::from(n) + 16, after: n }, &["HexOut: "]);
        Untagged::all().into_iter().for_each(|it| refused(it, &["Untagged: ", "untagged"]));
        for it in [Internal::Unit, Internal::Struct { a: n }] {
            refused(it, &["Internal: ", "tag"]);
        }
        works([SkippedBefore::A(n), SkippedBefore::A(n)]);
        refused(SkippedBefore::B(n), &["variant `B` of `SkippedBefore`", "skip"]);
        refused(SkippedBefore::C(n), &["SkippedBefore", "skip"]);
        for it in [OneUntagged::A(n), OneUntagged::Else(text)] {
            refused(it, &["OneUntagged: ", "untagged"]);
        }
        refused(HasEndless { items: Endless(vec![n, 1, 0]) }, &["field `items` of `HasEndless`", "unknown length"]);
        refused(Liar(vec![n]), &["Liar: ", "number of elements"]);
        refused(Liar(vec![n; 3]), &["Liar: ", "number of elements"]);
        refused(Any, &["Any: ", "self-describing"]);
        refused(vec![(n, Some(Any))], &["Any", "self-describing"]);
    }
}

#[test]
fn adjacently_tagged_enums_work_or_are_refused_as_a_whole() {
    for it in Adjacent::all() {
        match sent(&it) {
            Ok(back) => assert_eq!(back, it),
            Err(error) => assert!(error.contains("Adjacent"), "{error}"),
        }
    }
}

#[test]
fn what_a_value_chooses_for_the_first_time_is_tried_then() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Late {
        maybe: Option<Flat>,
        many: Vec<Untagged>,
        either: Result<u8, Box<Internal>>,
    }
    let late = || Late {
        maybe: None,
        many: Vec::new(),
        either: Ok(1),
    };
    works(late());
    let flat = Flat::default();
    refused(
        Late {
            maybe: Some(flat),
            ..late()
        },
        &["field `maybe` of `Late`", "flatten"],
    );
    refused(
        Late {
            many: vec![Untagged::Unit],
            ..late()
        },
        &["field `many` of `Late`", "untagged"],
    );
    let either = Err(Box::new(Internal::Unit));
    refused(
        Late { either, ..late() },
        &["field `either` of `Late`", "tag"],
    );
    works(late());
}

#[test]
fn a_type_is_tried_once_in_a_process() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static DECODED: AtomicUsize = AtomicUsize::new(0);
    #[derive(Debug, PartialEq, Serialize)]
    struct Counted(u8);
    impl<'de> Deserialize<'de> for Counted {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Counted, D::Error> {
            DECODED.fetch_add(1, Ordering::Relaxed);
            u8::deserialize(deserializer).map(Counted)
        }
    }
    for _ in 0..3 {
        let send = || codec::encode_checked(&vec![Counted(1)], &mut Rope::default(), plainly);
        std::thread::spawn(send).join().unwrap().unwrap();
    }
    assert_eq!(DECODED.load(Ordering::Relaxed), 1);
}
