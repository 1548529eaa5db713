//! How many messages per second does one isolate take, from one sender and from four?
//!
//! A message of 64 bytes, bounded by 1,024 on the way. Floors: crossbeam's bounded channel, of the
//! bare structure and of boxed closures that are applied to a state, which is what a method is.

use crate::engine::{Failure, Question, Subject};
use crate::record::{Kind, Row, Side, Unit};
use crate::setting::{Reserve, tree};
use offshoot::{Isolation, Portal, Result};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Messages of a round, of all senders together.
pub const MESSAGES: usize = 100_000;
const BOUND: usize = 1_024;
const BOXED: &str = "crossbeam, boxed closures";
const STRUCT: &str = "crossbeam, 64-byte structs";

/// 64 bytes.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub struct Order {
    /// What it carries.
    pub parts: [u64; 8],
}

#[derive(Default, Serialize, Deserialize)]
struct Book {
    sum: u64,
}

impl Book {
    fn add(&mut self, order: Order) {
        self.sum = self.sum.wrapping_add(order.parts[0]);
    }

    fn sum(&self) -> u64 {
        self.sum
    }
}

/// The question.
pub fn question() -> Question {
    Question {
        name: "tell",
        asks: "64-byte messages to one receiver, from the first until all are done",
        subjects: vec![
            structs(),
            closures(),
            isolates(Isolation::Thread),
            isolates(Isolation::Process),
        ],
    }
}

fn rows(kind: Kind, side: Side, who: &str, floor: Option<&str>) -> [Row; 2] {
    ["from 1", "from 4"].map(|from| {
        let row = Row::new(kind, side, format!("{who}, {from}")).unit(Unit::Message);
        match floor {
            Some(floor) => row.floor(format!("{floor}, {from}")),
            None => row,
        }
    })
}

fn structs() -> Subject {
    Subject::new(
        "crossbeam",
        rows(Kind::Floor, Side::Thread, STRUCT, None),
        |into| {
            for (row, senders) in [1, 4].into_iter().enumerate() {
                let start = Instant::now();
                let book = through(senders, order, Book::add)?;
                into.each(row, start.elapsed(), MESSAGES);
                check(book.sum)?;
            }
            Ok(())
        },
    )
}

fn closures() -> Subject {
    type Method = Box<dyn FnOnce(&mut Book) + Send>;
    Subject::new(
        "boxed",
        rows(Kind::Floor, Side::Thread, BOXED, None),
        |into| {
            for (row, senders) in [1, 4].into_iter().enumerate() {
                let start = Instant::now();
                let boxed = |n| -> Method {
                    let order = order(n);
                    Box::new(move |book| book.add(order))
                };
                let book = through(senders, boxed, |book, method: Method| method(book))?;
                into.each(row, start.elapsed(), MESSAGES);
                check(book.sum)?;
            }
            Ok(())
        },
    )
}

fn order(n: usize) -> Order {
    Order {
        parts: [n as u64; 8],
    }
}

/// What all numbers of a round add up to.
fn check(sum: u64) -> Result<(), Failure> {
    let wanted: u64 = (0..MESSAGES as u64).sum();
    match sum == wanted {
        true => Ok(()),
        false => Err(format!("messages got lost: the sum is {sum} instead of {wanted}").into()),
    }
}

/// Sends all messages through one bounded channel to a thread that has a book.
fn through<M: Send + 'static>(
    senders: usize,
    make: impl Fn(usize) -> M + Copy + Send + 'static,
    apply: impl Fn(&mut Book, M) + Send + 'static,
) -> Result<Book, Failure> {
    let (sender, receiver) = crossbeam::channel::bounded(BOUND);
    let thread = std::thread::spawn(move || {
        let mut book = Book::default();
        for message in receiver {
            apply(&mut book, message);
        }
        book
    });
    let sending: Vec<_> = (0..senders)
        .map(|one| {
            let sender = sender.clone();
            std::thread::spawn(move || {
                (one..MESSAGES)
                    .step_by(senders)
                    .try_for_each(|n| sender.send(make(n)))
                    .is_ok()
            })
        })
        .collect();
    drop(sender);
    for sending in sending {
        let _ = sending.join();
    }
    thread.join().map_err(|_| "the receiver panicked".into())
}

async fn send(book: &Portal<Book>, one: usize, of: usize) -> Result<()> {
    for n in (one..MESSAGES).step_by(of) {
        book.tell(Book::add, order(n)).await?;
    }
    Ok(())
}

fn isolates(isolation: Isolation) -> Subject {
    let (key, side, who, floor) = match isolation {
        Isolation::Process => ("process", Side::Process, "tell, process isolate", None),
        _ => ("thread", Side::Thread, "tell, thread isolate", Some(BOXED)),
    };
    let rows = rows(Kind::Offshoot, side, who, floor);
    Subject::new(key, rows, move |into| {
        for (row, senders) in [1, 4].into_iter().enumerate() {
            let (time, sum) = tree(isolation, Reserve::Default, async move || {
                offshoot::nursery(async |nursery| {
                    let book = nursery.start("book", Book::default()).await?;
                    let start = Instant::now();
                    let mut sending = Vec::new();
                    for one in 0..senders {
                        let sender = nursery.spawn_local("sender").await?;
                        let book = book.clone();
                        // A task each, so that they send at the same time.
                        sending.push(nursery.task(async move {
                            sender
                                .run(async move || send(&book, one, senders).await)
                                .await
                        }));
                    }
                    for sending in sending {
                        sending.await???;
                    }
                    let sum = book.ask(Book::sum, ()).await?;
                    Ok((start.elapsed(), sum))
                })
                .await
            })?;
            into.each(row, time, MESSAGES);
            check(sum)?;
        }
        Ok(())
    })
}
