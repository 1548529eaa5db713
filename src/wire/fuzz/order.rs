//! What must hold for any frames that come over a connection, from the first on: shared by the fuzz target, the replay
//! of the corpus and the property tests.

use offshoot_wire::codec;
use offshoot_wire::dialogue::Window;
use offshoot_wire::frame::{
    Boot, CancelOrder, Credit, Enclosed, Ended, FrameReader, Header, Introduce, Invoke, Kind, Ready,
};
use offshoot_wire::order::{From, Order};
use offshoot_wire::{Cancel, Error};

/// The limit of the bodies.
const LIMIT: usize = 4_096;

/// The first byte chooses who sends. Of each frame then three bytes say the kind, the correlation and the length, and
/// so much follows; with an odd second byte the rest are the very bytes of the stream.
///
/// # Panics
/// If what was let through is out of order by the list of it, or what it holds cannot be looked at.
pub fn order(data: &[u8]) {
    let Some((&[from, raw], mut rest)) = data.split_first_chunk::<2>() else {
        return;
    };
    let from = [From::Owner, From::Child, From::Holder, From::Isolate][usize::from(from % 4)];
    let mut stream = Vec::new();
    if raw & 1 == 1 {
        stream.extend_from_slice(rest);
    } else {
        while let Some((&[kind, correlation, len], tail)) = rest.split_first_chunk::<3>() {
            let (body, tail) = tail.split_at(usize::from(len).min(tail.len()));
            rest = tail;
            // An unknown kind is another target's concern.
            let Some(kind) = Kind::from_number(kind % 48) else {
                continue;
            };
            let header = Header {
                len: body.len() as u32,
                kind,
                correlation: u64::from(correlation % 4),
            };
            stream.extend_from_slice(&header.to_bytes());
            stream.extend_from_slice(body);
        }
    }
    let mut reader = FrameReader::new(LIMIT);
    let mut order = Order::new(from);
    let mut passed: Vec<Header> = Vec::new();
    for piece in stream.chunks(usize::from(raw / 2) + 1) {
        reader.space()[..piece.len()].copy_from_slice(piece);
        reader.filled(piece.len());
        loop {
            match reader.next() {
                Ok(Some((header, body))) => {
                    if order.receive(header).is_err() {
                        // The connection ends here, and what had come was in order.
                        return listed(from, &passed);
                    }
                    look(header.kind, &body);
                    passed.push(header);
                }
                Ok(None) => break,
                Err(_) => return listed(from, &passed),
            }
        }
    }
    listed(from, &passed);
}

/// What a reader does with the body of a frame that it has not refused.
fn look(kind: Kind, body: &[u8]) {
    match kind {
        Kind::Boot => drop(codec::decode::<Boot>(body)),
        Kind::Ready => drop(codec::decode::<Ready>(body)),
        Kind::Refused | Kind::Failure | Kind::Cut => {
            if let Ok(error) = codec::decode::<Error>(body) {
                assert!(!error.arrived().report().is_empty());
            }
        }
        Kind::Cancel => drop(codec::decode::<CancelOrder>(body)),
        Kind::Credit => drop(codec::decode::<Credit>(body)),
        Kind::Ended => drop(codec::decode::<Ended>(body).map(Ended::arrived)),
        Kind::Introduce => drop(codec::decode::<Introduce>(body)),
        Kind::Enclosed => drop(codec::decode::<Enclosed>(body)),
        Kind::Halt => drop(codec::decode::<(Cancel, u64)>(body)),
        Kind::Open => {
            let window = Invoke::split(body).and_then(|(_, rest)| Window::split(rest));
            assert!(window.is_none_or(|(window, _)| window.items > 0 && window.bytes > 0));
        }
        _ => {}
    }
}

/// The list of what may come, said once more without a machine.
fn listed(from: From, passed: &[Header]) {
    let count = |kind| passed.iter().filter(|header| header.kind == kind).count();
    let place = |kind| passed.iter().position(|header| header.kind == kind);
    let once = [
        Kind::Outfit,
        Kind::Boot,
        Kind::Ready,
        Kind::Refused,
        Kind::Ended,
        Kind::Offer,
        Kind::Accept,
        Kind::Switch,
    ];
    for kind in once {
        assert!(count(kind) <= 1, "{kind:?} came twice");
    }
    let kinds: Vec<Kind> = passed.iter().map(|header| header.kind).collect();
    match from {
        From::Owner => {
            let behind = match kinds[..] {
                [Kind::Outfit, ..] => &kinds[1..],
                _ => &kinds[..],
            };
            assert!(matches!(
                behind,
                [] | [Kind::Enclosed] | [Kind::Boot, ..] | [Kind::Enclosed, Kind::Boot, ..]
            ));
            assert!(place(Kind::Switch).is_none() || place(Kind::Offer) < place(Kind::Switch));
        }
        From::Child => assert!(matches!(
            kinds[..],
            [] | [Kind::Ready, ..] | [Kind::Refused]
        )),
        From::Holder | From::Isolate => {
            assert!(
                place(Kind::Boot).is_none()
                    && place(Kind::Ready).is_none()
                    && place(Kind::Offer).is_none()
            );
        }
    }
    if let Some(ended) = place(Kind::Ended) {
        let late = [
            Kind::Accept,
            Kind::Credit,
            Kind::Started,
            Kind::CancelAck,
            Kind::Close,
        ];
        assert!(!kinds[ended..].iter().any(|kind| late.contains(kind)));
    }
    for pair in passed.windows(2) {
        if pair[0].kind == Kind::Enclosed {
            assert_eq!(pair[0].correlation, pair[1].correlation);
            assert_ne!(pair[1].kind, Kind::Enclosed);
        }
    }
    let asks = [
        Kind::Call,
        Kind::Ask,
        Kind::Tell,
        Kind::Open,
        Kind::Introduce,
    ];
    let answers = [Kind::Reply, Kind::Failure, Kind::Started, Kind::Credit];
    let wrong: &[Kind] = match from {
        From::Owner | From::Holder => &answers,
        From::Child | From::Isolate => &asks,
    };
    assert!(!kinds.iter().any(|kind| wrong.contains(kind)));
    let empty = [
        Kind::Offer,
        Kind::Accept,
        Kind::Switch,
        Kind::Drop,
        Kind::Close,
        Kind::CancelAck,
        Kind::End,
        Kind::Deaf,
        Kind::HaltSeen,
    ];
    assert!(
        passed
            .iter()
            .all(|header| header.len == 0 || !empty.contains(&header.kind))
    );
}
