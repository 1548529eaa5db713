//! What the machine of a dialogue allows: legal talk is never refused, no sender waits for nothing, and nonsense is
//! told from it.

use offshoot_wire::dialogue::{Event, Grant, Machine, Role, Violation, Window};
use proptest::collection::vec;
use proptest::prelude::*;

// Public there, as the other library of the fuzz targets is.
#[allow(unreachable_pub)]
#[path = "../fuzz/dialogue.rs"]
mod talk;

const WINDOW: Window = Window {
    items: 3,
    bytes: 10,
};

fn started(role: Role) -> Machine {
    let mut machine = Machine::new(role, WINDOW);
    match role {
        Role::Opener => machine.receive(Event::Started).unwrap(),
        Role::Peer => machine.send(Event::Started).unwrap(),
    }
    machine
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 8 } else { 2048 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn two_ends_understand_each_other(steps in vec(any::<u8>(), 0..600)) {
        talk::dialogue(&steps);
    }

    // Most random steps go nowhere before the start, so here it is given.
    #[test]
    fn two_ends_that_have_started_understand_each_other(
        window in any::<[u8; 2]>(),
        steps in vec(any::<u8>(), 0..600),
    ) {
        talk::dialogue(&[&window[..], &[0x80, 0, 0x0f, 0], &steps].concat());
    }

    #[test]
    fn whatever_the_other_side_sends_the_window_holds(frames in vec(any::<u8>(), 0..300)) {
        talk::hostile(&frames);
    }
}

#[test]
fn nothing_but_a_cancellation_comes_before_the_start() {
    let early = [
        Event::Item(1),
        Event::End,
        Event::Deaf,
        Event::Grant(Grant { items: 1, bytes: 1 }),
    ];
    for role in [Role::Opener, Role::Peer] {
        for event in early {
            let mut machine = Machine::new(role, WINDOW);
            assert_eq!(machine.receive(event), Err(Violation::TooEarly(event)));
            assert_eq!(machine.send(event), Err(Violation::TooEarly(event)));
            assert_eq!(
                machine.receive(Event::HaltSeen),
                Err(Violation::TooEarly(Event::HaltSeen))
            );
            machine.receive(Event::Halt).unwrap();
            machine.send(Event::HaltSeen).unwrap();
        }
    }
}

#[test]
fn the_opener_neither_starts_nor_ends_it() {
    for event in [Event::Started, Event::Over] {
        assert_eq!(
            Machine::new(Role::Peer, WINDOW).receive(event),
            Err(Violation::WrongSide(event))
        );
        assert_eq!(
            Machine::new(Role::Opener, WINDOW).send(event),
            Err(Violation::WrongSide(event))
        );
    }
}

#[test]
fn what_comes_once_comes_once() {
    for event in [Event::End, Event::Deaf, Event::Halt] {
        for role in [Role::Opener, Role::Peer] {
            let mut machine = started(role);
            machine.receive(event).unwrap();
            assert_eq!(machine.receive(event), Err(Violation::TooLate(event)));
            // The other direction is another one.
            machine.send(event).unwrap();
        }
    }
    let mut machine = started(Role::Opener);
    assert_eq!(
        machine.receive(Event::Started),
        Err(Violation::TooLate(Event::Started))
    );
    machine.receive(Event::End).unwrap();
    assert_eq!(
        machine.receive(Event::Item(1)),
        Err(Violation::TooLate(Event::Item(1)))
    );
    machine.receive(Event::Over).unwrap();
    for event in [Event::Over, Event::Halt, Event::Deaf] {
        assert_eq!(machine.receive(event), Err(Violation::TooLate(event)));
        assert_eq!(machine.send(event), Err(Violation::TooLate(event)));
    }
}

#[test]
fn credit_is_kept_by_items_and_by_bytes() {
    let mut machine = started(Role::Peer);
    for _ in 0..3 {
        assert!(machine.has_room());
        machine.send(Event::Item(1)).unwrap();
    }
    assert!(!machine.has_room());
    assert_eq!(machine.send(Event::Item(1)), Err(Violation::Overrun(3, 10)));
    let more = Grant { items: 2, bytes: 4 };
    assert_eq!(
        machine.receive(Event::Grant(more)),
        Err(Violation::Grant(more, 3, 3))
    );
    machine
        .receive(Event::Grant(Grant { items: 2, bytes: 2 }))
        .unwrap();
    // One item may exceed the bytes, the next has to wait.
    machine.send(Event::Item(1_000)).unwrap();
    assert_eq!(machine.send(Event::Item(0)), Err(Violation::Overrun(3, 10)));
    let nothing = Grant { items: 0, bytes: 0 };
    assert_eq!(
        machine.receive(Event::Grant(nothing)),
        Err(Violation::Grant(nothing, 2, 1_001))
    );
}

#[test]
fn a_grant_is_due_at_the_first_item_and_at_half_of_the_window() {
    let window = Window {
        items: 8,
        bytes: 100,
    };
    let mut machine = Machine::new(Role::Opener, window);
    machine.receive(Event::Started).unwrap();
    for _ in 0..8 {
        machine.receive(Event::Item(1)).unwrap();
    }
    assert_eq!(machine.take(1), Some(Grant { items: 1, bytes: 1 }));
    assert_eq!(
        [machine.take(1), machine.take(1), machine.take(1)],
        [None; 3]
    );
    assert_eq!(machine.take(1), Some(Grant { items: 4, bytes: 4 }));
    assert_eq!(
        machine.take(50),
        Some(Grant {
            items: 1,
            bytes: 50
        })
    );
    // Nobody needs room any more.
    machine.receive(Event::End).unwrap();
    assert_eq!(machine.take(60), None);
}
