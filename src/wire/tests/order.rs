//! The order of the frames of a connection: what is legal, what each side may not, and that nothing else gets through.

use offshoot_wire::frame::{Header, Kind};
use offshoot_wire::order::{Disorder, From, Order};
use proptest::collection::vec;
use proptest::prelude::*;

#[allow(unreachable_pub)]
#[path = "../fuzz/order.rs"]
mod checks;

fn header(kind: Kind, correlation: u64, len: u32) -> Header {
    Header {
        len,
        kind,
        correlation,
    }
}

/// Where a sequence of kinds, without bodies, is refused first.
fn refused(from: From, kinds: &[Kind]) -> Option<(usize, Disorder)> {
    let mut order = Order::new(from);
    let step = |(at, kind): (usize, &Kind)| Some((at, order.receive(header(*kind, 0, 0)).err()?));
    kinds.iter().enumerate().find_map(step)
}

const SIDES: [From; 4] = [From::Owner, From::Child, From::Holder, From::Isolate];

fn kinds() -> impl Iterator<Item = Kind> {
    (0..=255).filter_map(Kind::from_number)
}

#[test]
fn each_side_begins_with_its_greeting_and_with_nothing_else() {
    for kind in kinds() {
        let owner = matches!(kind, Kind::Outfit | Kind::Boot | Kind::Enclosed);
        assert_eq!(refused(From::Owner, &[kind]).is_none(), owner, "{kind:?}");
        let child = matches!(kind, Kind::Ready | Kind::Refused);
        assert_eq!(refused(From::Child, &[kind]).is_none(), child, "{kind:?}");
    }
    assert_eq!(
        refused(From::Owner, &[Kind::Call]).unwrap().1.to_string(),
        "the first frame of the owner is Call instead of Boot"
    );
    assert_eq!(refused(From::Owner, &[Kind::Enclosed, Kind::Boot]), None);
    // Also what stands beside it is of it.
    let beside = [Kind::Enclosed, Kind::Call];
    assert_eq!(refused(From::Owner, &beside).unwrap().0, 1);
}

#[test]
fn a_ring_is_spoken_of_once() {
    let twice = [
        Kind::Boot,
        Kind::Offer,
        Kind::Switch,
        Kind::Call,
        Kind::Offer,
    ];
    assert_eq!(
        refused(From::Owner, &twice).unwrap(),
        (4, Disorder::TooLate(Kind::Offer))
    );
    let twice = [Kind::Ready, Kind::Accept, Kind::Accept];
    assert_eq!(
        refused(From::Child, &twice).unwrap(),
        (2, Disorder::TooLate(Kind::Accept))
    );
}

#[test]
fn a_greeting_comes_once() {
    for (from, first) in [(From::Owner, Kind::Boot), (From::Child, Kind::Ready)] {
        let (at, why) = refused(from, &[first, first]).unwrap();
        assert_eq!((at, why), (1, Disorder::TooLate(first)));
    }
    assert!(refused(From::Child, &[Kind::Ready, Kind::Refused]).is_some());
    let dressed = [Kind::Outfit, Kind::Enclosed, Kind::Boot, Kind::Call];
    assert_eq!(refused(From::Owner, &dressed), None);
    for late in [
        &[Kind::Outfit, Kind::Outfit][..],
        &[Kind::Outfit, Kind::Call],
        &[Kind::Boot, Kind::Outfit],
    ] {
        assert_eq!(refused(From::Owner, late).map(|(at, _)| at), Some(1));
    }
}

#[test]
fn nothing_follows_a_refusal() {
    for kind in kinds() {
        assert!(
            refused(From::Child, &[Kind::Refused, kind]).is_some(),
            "{kind:?}"
        );
    }
}

#[test]
fn behind_the_end_comes_only_what_was_under_way() {
    for (from, begun) in [(From::Child, &[Kind::Ready][..]), (From::Isolate, &[])] {
        for kind in kinds() {
            let whole = [begun, &[Kind::Ended, kind]].concat();
            let legal = matches!(
                kind,
                Kind::Reply | Kind::Failure | Kind::Item | Kind::End | Kind::Cut | Kind::Grant
            ) || matches!(
                kind,
                Kind::Deaf | Kind::Halt | Kind::HaltSeen | Kind::Enclosed
            ) || (from == From::Child
                && matches!(kind, Kind::Inspected | Kind::Noticed));
            assert_eq!(refused(from, &whole).is_none(), legal, "{from:?} {kind:?}");
        }
    }
}

/// The table in the documentation, kind by kind.
#[test]
fn each_kind_is_for_those_of_the_table() {
    for kind in kinds() {
        let may = |from: From| {
            let begun: &[Kind] = match from {
                From::Owner => &[Kind::Boot],
                From::Child => &[Kind::Ready],
                From::Holder | From::Isolate => &[],
            };
            !matches!(
                refused(from, &[begun, &[kind]].concat()),
                Some((_, Disorder::WrongSide(..)))
            )
        };
        let expected = match kind as u8 {
            // Boot, Outfit.
            1 | 10 => [true, false, false, false],
            // Inspect, Rest, Offer, Switch.
            11 | 12 | 40 | 42 => [true, false, false, false],
            // Inspected, Noticed, Resting, Accept.
            24..=26 | 41 => [false, true, false, false],
            // Close.
            7 => [true, false, true, true],
            2..=9 => [true, false, true, false],
            // Ready, Refused.
            16 | 17 => [false, true, false, false],
            18..=23 => [false, true, false, true],
            32..=39 => [true; 4],
            other => panic!("a kind {other} without a row"),
        };
        assert_eq!(SIDES.map(may), expected, "{kind:?}");
    }
}

#[test]
fn a_ring_is_offered_and_taken_once() {
    use Kind::{Accept, Boot, Call, Offer, Ready, Switch};
    let whole = [Boot, Offer, Call, Switch, Call];
    assert_eq!(refused(From::Owner, &whole), None);
    let early = refused(From::Owner, &[Boot, Switch]);
    assert_eq!(early, Some((1, Disorder::NoOffer)));
    for again in [Offer, Switch] {
        let refused = refused(From::Owner, &[Boot, Offer, Switch, again]);
        assert_eq!(refused, Some((3, Disorder::TooLate(again))));
    }
    let twice = refused(From::Child, &[Ready, Accept, Accept]);
    assert_eq!(twice, Some((2, Disorder::TooLate(Accept))));
}

#[test]
fn what_is_enclosed_stands_before_its_frame() {
    let mut order = Order::new(From::Holder);
    order.receive(header(Kind::Enclosed, 7, 9)).unwrap();
    for wrong in [
        header(Kind::Call, 8, 0),
        header(Kind::Enclosed, 7, 0),
        header(Kind::Grant, 7, 0),
        header(Kind::Drop, 7, 0),
    ] {
        let refused = order.clone().receive(wrong).unwrap_err();
        let Disorder::NotEnclosed(kind, of, 7) = refused else {
            panic!("{refused}");
        };
        assert_eq!((kind, of), (wrong.kind, wrong.correlation));
    }
    order.receive(header(Kind::Call, 7, 0)).unwrap();
    order.receive(header(Kind::Grant, 8, 2)).unwrap();
}

#[test]
fn what_has_no_body_has_none() {
    for kind in [
        Kind::Drop,
        Kind::Close,
        Kind::End,
        Kind::Deaf,
        Kind::HaltSeen,
    ] {
        let mut order = Order::new(From::Holder);
        let refused = order.receive(header(kind, 1, 1)).unwrap_err();
        assert_eq!(refused, Disorder::Body(kind, 1));
        order
            .receive(header(kind, 1, 0))
            .expect("nothing has changed");
    }
    let mut order = Order::new(From::Isolate);
    let refused = order.receive(header(Kind::CancelAck, 0, 3)).unwrap_err();
    assert_eq!(refused, Disorder::Body(Kind::CancelAck, 3));
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 20 } else { 2_000 },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_gets_through_is_in_order(head in any::<[u8; 2]>(), frames in vec((0..48_u8, 0..4_u8, prop_oneof![3 => Just(0_u8), 1 => 1..4_u8]), 0..40)) {
        let mut data = head.to_vec();
        for (kind, correlation, len) in frames {
            data.extend([kind, correlation, len]);
            data.extend(vec![0; usize::from(len)]);
        }
        checks::order(&data);
    }
}
