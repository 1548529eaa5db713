//! Numbers that cross as a whole have the bytes of bincode's own serde, wherever they stand, and arrive as they were.

use offshoot_wire::codec;
use proptest::collection::vec;
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;

fn as_bincode<T: Serialize + DeserializeOwned + Debug>(value: T) {
    let standard = bincode::config::standard();
    let mut ours = Vec::new();
    codec::encode_into(&value, &mut ours).expect("a value");
    let theirs = bincode::serde::encode_to_vec(&value, standard).expect("a value");
    assert_eq!(ours, theirs);
    let back: T = codec::decode(&theirs).expect("its bytes");
    // By its text, in which a number that is none is like itself.
    assert_eq!(format!("{back:?}"), format!("{value:?}"));
    let (back, _): (T, usize) =
        bincode::serde::decode_from_slice(&ours, standard).expect("its bytes");
    assert_eq!(format!("{back:?}"), format!("{value:?}"));
    for cut in (0..ours.len()).step_by(1 + ours.len() / 8) {
        assert!(codec::decode::<T>(&ours[..cut]).is_err());
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Fields<T> {
    id: u32,
    items: Vec<T>,
    more: Box<[T]>,
    maybe: Option<Vec<T>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Choice<T> {
    New(Vec<T>),
    Pair(u8, VecDeque<T>),
    Named { items: Vec<T> },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Wrapped<T>(Vec<T>);

fn everywhere<T: Serialize + DeserializeOwned + Clone + Debug>(items: Vec<T>) {
    let deque = || {
        let mut deque: VecDeque<T> = items.clone().into();
        // In two pieces.
        deque.rotate_left(items.len() / 2);
        deque
    };
    as_bincode(items.clone());
    as_bincode(deque());
    as_bincode(
        (
            7_u32,
            items.clone(),
            "text",
            items.clone().into_boxed_slice(),
        )
            .1,
    );
    as_bincode((7_u32, items.clone(), items.clone().into_boxed_slice(), 1_u8));
    as_bincode(vec![items.clone(), Vec::new(), items.clone()]);
    as_bincode(vec![
        (items.clone(), Some(items.clone())),
        (Vec::new(), None),
    ]);
    as_bincode(BTreeMap::from([(3_u8, items.clone()), (4, items.clone())]));
    as_bincode([
        Choice::New(items.clone()),
        Choice::Pair(1, deque()),
        Choice::Named {
            items: items.clone(),
        },
    ]);
    as_bincode(Wrapped(items.clone()));
    as_bincode(Fields {
        id: 900,
        more: items.clone().into(),
        maybe: Some(items.clone()),
        items,
    });
}

fn of<T: Strategy>(items: T) -> impl Strategy<Value = Vec<T::Value>> {
    vec(items, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 1 } else { 16 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn numbers_of_one_byte(u in of(any::<u8>()), i in of(any::<i8>()), b in of(any::<bool>())) {
        everywhere(u);
        everywhere(i);
        everywhere(b);
    }

    #[test]
    fn numbers_of_more(a in of(any::<u16>()), b in of(any::<u32>()), c in of(any::<u64>()), d in of(any::<u128>())) {
        everywhere(a);
        everywhere(b);
        everywhere(c);
        everywhere(d);
    }

    #[test]
    fn numbers_with_a_sign(a in of(any::<i16>()), b in of(any::<i32>()), c in of(any::<i64>()), d in of(any::<i128>())) {
        everywhere(a);
        everywhere(b);
        everywhere(c);
        everywhere(d);
    }

    #[test]
    fn numbers_with_a_point(a in of(any::<u32>()), b in of(any::<u64>())) {
        everywhere(a.into_iter().map(f32::from_bits).collect());
        everywhere(b.into_iter().map(f64::from_bits).collect());
    }

    #[test]
    fn what_is_made_of_them(a in of(any::<[u8; 5]>()), b in of(any::<(u8, f64)>()), c in of(".{0,9}"), d in of(any::<char>())) {
        everywhere(a);
        everywhere(b);
        everywhere(c);
        everywhere(d);
    }
}

#[test]
fn a_program_s_own_way_to_read_bytes_is_asked() {
    fn backwards<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let mut bytes = Vec::deserialize(deserializer)?;
        bytes.reverse();
        Ok(bytes)
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Own {
        #[serde(deserialize_with = "backwards")]
        own: Vec<u8>,
        plain: Vec<u8>,
    }
    let mut bytes = Vec::new();
    codec::encode_into(&(vec![1_u8, 2, 3], vec![4_u8, 5]), &mut bytes).unwrap();
    let own = Own {
        own: vec![3, 2, 1],
        plain: vec![4, 5],
    };
    assert_eq!(codec::decode::<Own>(&bytes).unwrap(), own);
}

#[test]
fn a_row_that_lies_about_its_length_is_no_value() {
    struct Lies(usize, Vec<u8>);
    impl Iterator for Lies {
        type Item = &'static u8;
        fn next(&mut self) -> Option<&'static u8> {
            self.1.pop().map(|n| if n == 0 { &0 } else { &1 })
        }
        fn size_hint(&self) -> (usize, Option<usize>) {
            (self.0, Some(self.0))
        }
    }
    struct Row(usize, usize);
    impl Serialize for Row {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_seq(Lies(self.0, vec![1; self.1]))
        }
    }
    let mut out = b"kept".to_vec();
    for (told, there) in [(2, 1), (1, 2), (0, 1), (1, 0)] {
        let error = codec::encode_into(&Row(told, there), &mut out).unwrap_err();
        assert!(error.to_string().contains("number of elements"), "{error}");
        assert_eq!(out, b"kept");
    }
    codec::encode_into(&Row(2, 2), &mut out).unwrap();
    assert_eq!(out, b"kept\x02\x01\x01");
}
