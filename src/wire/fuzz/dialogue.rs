//! What must hold for any talk between two ends of a dialogue: shared by the fuzz target, the replay of the corpus
//! and the property tests.

use offshoot_wire::dialogue::{Event, Grant, Machine, Role, Violation, Window};

/// Two ends of one dialogue, joined by two queues; each byte is a step of either of them.
///
/// # Panics
/// If an end that keeps to what it may send is ever refused by the other, if more is under way than the window
/// allows, or if a sender waits although the receiver has taken all.
pub fn dialogue(data: &[u8]) {
    let Some((&[items, bytes], steps)) = data.split_first_chunk::<2>() else {
        return;
    };
    let window = Window {
        items: u32::from(items % 9) + 1,
        bytes: u32::from(bytes) + 1,
    };
    let mut ends = [
        Talker::new(Machine::new(Role::Opener, window)),
        Talker::new(Machine::new(Role::Peer, window)),
    ];
    for pair in steps.chunks(2) {
        let (what, size) = (pair[0], usize::from(pair.get(1).copied().unwrap_or(0)));
        let (us, them) = (usize::from(what >> 7), usize::from(what >> 7 ^ 1));
        let event = match what & 0x0f {
            0 => Some(Event::Started),
            1..4 => Some(Event::Item(size)),
            4 => Some(Event::End),
            5 => Some(Event::Deaf),
            6 => Some(Event::Halt),
            7 => Some(Event::HaltSeen),
            8 => Some(Event::Over),
            9..12 => {
                ends[us].take();
                continue;
            }
            _ => None,
        };
        match event {
            Some(event) => ends[us].say(event),
            // What was sent first arrives first.
            None => {
                if let Some(event) = (!ends[them].out.is_empty()).then(|| ends[them].out.remove(0))
                {
                    ends[us].hear(event, window);
                }
            }
        }
    }
    // In the end everything arrives and is taken. Then each side may send again, or must not for a reason.
    for _ in 0..2 {
        for (us, them) in [(0, 1), (1, 0)] {
            for event in std::mem::take(&mut ends[them].out) {
                ends[us].hear(event, window);
            }
            while !ends[us].inbox.is_empty() {
                ends[us].take();
            }
        }
    }
    for end in &ends {
        let machine = &end.machine;
        let quiet = machine.is_over() || machine.is_deaf() || !machine.is_started() || end.ended;
        assert!(
            quiet || machine.has_room(),
            "a sender waits for nothing: {machine:?}"
        );
    }
}

/// An end of a dialogue that sends all that it may, and nothing else.
struct Talker {
    machine: Machine,
    /// What is on its way to the other end.
    out: Vec<Event>,
    /// Items that its program has not taken.
    inbox: Vec<usize>,
    ended: bool,
    deaf: bool,
}

impl Talker {
    fn new(machine: Machine) -> Talker {
        Talker {
            machine,
            out: Vec::new(),
            inbox: Vec::new(),
            ended: false,
            deaf: false,
        }
    }

    fn say(&mut self, event: Event) {
        if self.machine.send(event).is_ok() {
            self.ended |= event == Event::End;
            if event == Event::Deaf {
                self.deaf = true;
                self.inbox.clear();
            }
            self.out.push(event);
        }
    }

    fn hear(&mut self, event: Event, window: Window) {
        match self.machine.receive(event) {
            Ok(()) => {}
            // The peer said its last word before it heard this.
            Err(Violation::TooLate(_)) if self.machine.is_over() => return,
            Err(violation) => panic!("a legal frame was refused: {violation}, {:?}", self.machine),
        }
        if let Event::Item(bytes) = event
            && !self.deaf
        {
            self.inbox.push(bytes);
        }
        let held: usize = self.inbox.iter().sum();
        assert!(self.inbox.len() <= window.items as usize);
        assert!(held < window.bytes as usize + 256, "{held} bytes are held");
    }

    fn take(&mut self) {
        if self.inbox.is_empty() {
            return;
        }
        let bytes = self.inbox.remove(0);
        if let Some(grant) = self.machine.take(bytes) {
            self.machine
                .send(Event::Grant(grant))
                .expect("a grant that is due is legal");
            self.out.push(Event::Grant(grant));
        }
    }
}

/// A hostile other side: each pair of bytes is a frame that it sends, whatever was said before.
///
/// # Panics
/// If an end that is sent nonsense holds more than its window allows.
pub fn hostile(data: &[u8]) {
    let Some((&[role, items, bytes], frames)) = data.split_first_chunk::<3>() else {
        return;
    };
    let window = Window {
        items: u32::from(items % 9) + 1,
        bytes: u32::from(bytes) + 1,
    };
    let role = if role & 1 == 0 {
        Role::Opener
    } else {
        Role::Peer
    };
    let mut machine = Machine::new(role, window);
    if role == Role::Peer {
        machine.send(Event::Started).expect("the first word");
    }
    let (mut items, mut held) = (0_u32, 0_u64);
    for pair in frames.chunks(2) {
        let size = usize::from(pair.get(1).copied().unwrap_or(0));
        let event = match pair[0] % 8 {
            0 => Event::Started,
            1 => Event::Item(size),
            2 => Event::End,
            3 => Event::Deaf,
            4 => Event::Halt,
            5 => Event::HaltSeen,
            6 => Event::Over,
            _ => Event::Grant(Grant {
                items: size as u32,
                bytes: u64::from(pair[0]),
            }),
        };
        match machine.receive(event) {
            Ok(()) => {
                if let Event::Item(bytes) = event {
                    (items, held) = (items + 1, held + bytes as u64);
                }
            }
            // The connection ends here.
            Err(_) => return,
        }
        assert!(items <= window.items && held < u64::from(window.bytes) + 256);
        assert_eq!(machine.under_way(), 0, "nothing was sent");
    }
}
