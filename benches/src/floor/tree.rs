//! A tree of plain threads: what 1,111 of them take to start, to be asked once around, and to end.
//!
//! With std's channels; and with a queue and an `mio::Poll` each, made when the thread first sleeps,
//! which is the least that a thread with an event loop of its own can be.

use crossbeam::queue::SegQueue;
use mio::{Events, Poll, Token, Waker};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;

/// How the threads of a tree hear of each other.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// By a channel of `std`.
    Std,
    /// By a queue, and a poll where they sleep.
    Mio,
}

enum Message {
    Ready(io::Result<()>),
    Round,
    Sum(u64),
    Stop,
}

#[derive(Clone)]
enum Sender {
    Std(mpsc::Sender<Message>),
    Mio(Arc<Mailbox>),
}

#[derive(Default)]
struct Mailbox {
    queue: SegQueue<Message>,
    asleep: AtomicBool,
    waker: OnceLock<Waker>,
}

impl Sender {
    fn send(&self, message: Message) {
        match self {
            // Nobody waits for what a thread that has ended does not say.
            Sender::Std(sender) => drop(sender.send(message)),
            Sender::Mio(mailbox) => {
                mailbox.queue.push(message);
                if mailbox.asleep.swap(false, Ordering::SeqCst)
                    && let Some(waker) = mailbox.waker.get()
                {
                    let _ = waker.wake();
                }
            }
        }
    }
}

enum Inbox {
    Std(mpsc::Receiver<Message>),
    Mio(Arc<Mailbox>, Option<(Poll, Events)>),
}

impl Inbox {
    fn new(kind: Kind) -> (Sender, Inbox) {
        match kind {
            Kind::Std => {
                let (sender, receiver) = mpsc::channel();
                (Sender::Std(sender), Inbox::Std(receiver))
            }
            Kind::Mio => {
                let mailbox = Arc::new(Mailbox::default());
                (Sender::Mio(mailbox.clone()), Inbox::Mio(mailbox, None))
            }
        }
    }

    fn receive(&mut self) -> io::Result<Message> {
        match self {
            Inbox::Std(receiver) => receiver.recv().map_err(io::Error::other),
            Inbox::Mio(mailbox, poll) => loop {
                if let Some(message) = mailbox.queue.pop() {
                    return Ok(message);
                }
                if poll.is_none() {
                    let made = Poll::new()?;
                    let _ = mailbox.waker.set(Waker::new(made.registry(), Token(0))?);
                    *poll = Some((made, Events::with_capacity(8)));
                }
                let Some((poll, events)) = poll else { continue };
                mailbox.asleep.store(true, Ordering::SeqCst);
                if mailbox.queue.is_empty() {
                    match poll.poll(events, None) {
                        Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                            return Err(error);
                        }
                        _ => {}
                    }
                }
                mailbox.asleep.store(false, Ordering::SeqCst);
            },
        }
    }
}

/// Such a tree.
pub struct Tree {
    top: Option<(Sender, JoinHandle<()>)>,
    inbox: Inbox,
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree").finish_non_exhaustive()
    }
}

/// How many children a node has.
pub const WIDTH: usize = 10;

impl Tree {
    /// Starts all threads, `levels` below the topmost, and returns when the last is ready.
    ///
    /// # Errors
    /// When there are too few descriptors.
    pub fn build(kind: Kind, levels: u32) -> io::Result<Tree> {
        let (up, mut inbox) = Inbox::new(kind);
        let top = Some(node(kind, levels, up));
        match inbox.receive()? {
            Message::Ready(Err(error)) => Err(error),
            _ => Ok(Tree { top, inbox }),
        }
    }

    /// Asks all of them; how many have answered.
    ///
    /// # Errors
    /// When one is gone.
    pub fn round(&mut self) -> io::Result<u64> {
        if let Some((top, _)) = &self.top {
            top.send(Message::Round);
        }
        match self.inbox.receive()? {
            Message::Sum(sum) => Ok(sum),
            _ => Err(io::Error::other("no sum")),
        }
    }
}

impl Drop for Tree {
    /// Ends and joins all of them, each by its parent.
    fn drop(&mut self) {
        if let Some((top, thread)) = self.top.take() {
            top.send(Message::Stop);
            let _ = thread.join();
        }
    }
}

fn node(kind: Kind, levels: u32, up: Sender) -> (Sender, JoinHandle<()>) {
    let (sender, mut inbox) = Inbox::new(kind);
    let mine = sender.clone();
    let thread = std::thread::spawn(move || {
        let kids: Vec<_> = (0..if levels > 0 { WIDTH } else { 0 })
            .map(|_| node(kind, levels - 1, mine.clone()))
            .collect();
        drop(mine);
        let served = serve(&mut inbox, &kids, &up);
        for (kid, _) in &kids {
            kid.send(Message::Stop);
        }
        for (_, thread) in kids {
            let _ = thread.join();
        }
        if let Err(error) = served {
            up.send(Message::Ready(Err(error)));
        }
    });
    (sender, thread)
}

fn serve(inbox: &mut Inbox, kids: &[(Sender, JoinHandle<()>)], up: &Sender) -> io::Result<()> {
    for _ in kids {
        if let Message::Ready(Err(error)) = inbox.receive()? {
            return Err(error);
        }
    }
    up.send(Message::Ready(Ok(())));
    loop {
        match inbox.receive()? {
            Message::Round => {
                for (kid, _) in kids {
                    kid.send(Message::Round);
                }
                let mut sum = 1;
                for _ in kids {
                    match inbox.receive()? {
                        Message::Sum(of_kid) => sum += of_kid,
                        _ => return Err(io::Error::other("no sum")),
                    }
                }
                up.send(Message::Sum(sum));
            }
            _ => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_of_a_tree_answers_and_ends() {
        for kind in [Kind::Std, Kind::Mio] {
            let mut tree = Tree::build(kind, 2).unwrap();
            for _ in 0..3 {
                assert_eq!(tree.round().unwrap(), 111, "{kind:?}");
            }
        }
    }
}
