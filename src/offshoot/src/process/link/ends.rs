//! The end of a connection is seen whenever it comes: the far end of a socket is driven by hand, the near end by a poll as the warden
//! and the porter drive theirs.

use super::*;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll as MioPoll, Token};
use offshoot_wire::frame::{BODY_MAX, FrameReader};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// One end of a connection, read as its poll says.
struct Near {
    link: Arc<Link>,
    poll: MioPoll,
    events: Events,
    reader: FrameReader,
    /// The poll has said that there is something to read, or the last read has.
    ready: bool,
    ended: bool,
    frames: usize,
}

impl Near {
    fn new() -> (Near, OwnedFd) {
        let (ours, theirs) = socket::stream_pair().expect("a socket pair");
        let link = Link::new(ours, BODY_MAX);
        let poll = MioPoll::new().expect("a poll");
        let fd = link.fd().as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&fd), Token(1), Interest::READABLE)
            .expect("a socket can be watched");
        let near = Near {
            link,
            poll,
            events: Events::with_capacity(4),
            reader: FrameReader::new(BODY_MAX),
            ready: false,
            ended: false,
            frames: 0,
        };
        (near, theirs)
    }

    fn poll(&mut self) {
        self.poll
            .poll(&mut self.events, Some(Duration::ZERO))
            .expect("a poll");
        for event in &self.events {
            self.link.note_event(event);
            self.ready = true;
        }
    }

    fn read(&mut self) {
        if !self.ready || self.ended {
            return;
        }
        let frames = &mut self.frames;
        let read = read_frames(&self.link, &mut self.reader, |_, _| {
            *frames += 1;
            Ok(())
        });
        match read {
            Read::Drained => self.ready = false,
            Read::More => {}
            Read::Ended => self.ended = true,
            Read::Wrong(error) => panic!("{error}"),
        }
    }

    /// Goes on until nothing more is heard.
    fn settle(&mut self) {
        for _ in 0..1_000 {
            self.poll();
            if !self.ready || self.ended {
                return;
            }
            self.read();
        }
        panic!("it does not come to rest");
    }
}

fn frame(len: usize) -> Vec<u8> {
    let header = Header {
        len: u32::try_from(len).expect("a short body"),
        kind: Kind::Reply,
        correlation: 1,
    };
    [&header.to_bytes()[..], &vec![7; len]].concat()
}

/// What the far end does next.
#[derive(Clone, Copy, Debug)]
enum Far {
    /// Writes from here to there, with a descriptor beside the first byte or not.
    Write(usize, usize, bool),
    Close,
}

/// Plays the far end's steps, and before each of them the near end's, `p` and `r`.
fn play(bytes: &[u8], far: &[Far], near_steps: &[&str]) -> (bool, usize) {
    let (mut near, theirs) = Near::new();
    let mut theirs = Some(theirs);
    for (step, before) in far.iter().zip(near_steps) {
        for one in before.chars() {
            match one {
                'p' => near.poll(),
                _ => near.read(),
            }
        }
        match (*step, &theirs) {
            (Far::Write(from, to, beside), Some(fd)) => {
                let file = std::fs::File::open("/dev/null").expect("/dev/null");
                let fds = [file.as_fd()];
                let fds: &[BorrowedFd<'_>] = if beside { &fds } else { &[] };
                let sent = socket::send_with_fds(fd, &bytes[from..to], fds);
                assert_eq!(sent.expect("there is room"), to - from);
            }
            _ => theirs = None,
        }
    }
    near.settle();
    (near.ended, near.frames)
}

/// At each place between the steps of the far end, the near end does nothing, polls, reads, or both in either order.
#[test]
fn the_end_is_seen_whenever_it_comes() {
    const BETWEEN: [&str; 6] = ["", "p", "r", "pr", "rp", "prpr"];
    let bytes = [frame(3), frame(0), frame(2_000)].concat();
    let cuts = [1, HEADER + 3, 2 * HEADER + 3, 3 * HEADER + 40];
    let mut count = 0;
    for beside in [false, true] {
        for cut in cuts {
            let far = [
                Far::Write(0, cut, beside),
                Far::Write(cut, bytes.len(), false),
                Far::Close,
            ];
            for first in BETWEEN {
                for second in BETWEEN {
                    for third in BETWEEN {
                        let steps = [first, second, third];
                        let seen = play(&bytes, &far, &steps);
                        assert_eq!(seen, (true, 3), "{far:?} with {steps:?} before each");
                        count += 1;
                    }
                }
            }
        }
    }
    assert_eq!(count, 2 * 4 * 6 * 6 * 6);
}

/// One that stops at its bound of bytes has its end ahead of it.
#[test]
fn the_end_is_seen_behind_more_than_is_read_at_once() {
    for len in [
        1,
        4 << 10,
        BYTES_PER_TURN - HEADER,
        BYTES_PER_TURN,
        BYTES_PER_TURN + 1,
        1 << 20,
    ] {
        let (mut near, theirs) = Near::new();
        let bytes = frame(len);
        let mut at = 0;
        while at < bytes.len() {
            match socket::send(&theirs, &bytes[at..]) {
                Ok(n) => at += n,
                Err(error) => {
                    assert!(socket::may_pass(&error), "{error}");
                    near.poll();
                    near.read();
                }
            }
        }
        near.poll();
        drop(theirs);
        near.read();
        near.settle();
        assert_eq!(
            (near.ended, near.frames),
            (true, 1),
            "a body of {len} bytes"
        );
    }
}

/// The end of one half is that, too: a peer that only stops writing says nothing more.
#[test]
fn a_half_that_is_shut_is_an_end() {
    let (mut near, theirs) = Near::new();
    socket::send(&theirs, &frame(5)).expect("there is room");
    let theirs = std::os::unix::net::UnixStream::from(theirs);
    theirs
        .shutdown(std::net::Shutdown::Write)
        .expect("it is open");
    near.settle();
    assert_eq!((near.ended, near.frames), (true, 1));
}
