//! The questions, a file each. Each has Offshoot's subjects and their floors side by side.

pub mod bulk;
pub mod burst;
pub mod call;
pub mod memory;
pub mod spawn;
pub mod stream;
pub mod teardown;
pub mod tell;
pub mod tree;

use crate::engine::Question;
use std::time::Duration;

/// The names of those that `offshoot bench` asks, in this order. `memory` and `bulk` fill a machine,
/// and are asked by themselves only.
pub const NAMES: [&str; 9] = [
    "spawn", "burst", "call", "tell", "stream", "tree", "teardown", "memory", "bulk",
];

/// The question of this name.
pub fn named(name: &str) -> Option<Question> {
    Some(match name {
        "spawn" => spawn::question(),
        "burst" => burst::question(),
        "call" => call::question(),
        "tell" => tell::question(),
        "stream" => stream::question(),
        "tree" => tree::question(),
        "teardown" => teardown::question(),
        "memory" => memory::question(),
        "bulk" => bulk::question(),
        _ => return None,
    })
}

/// How operations follow each other.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// As rows call it.
    pub name: &'static str,
    /// The pause before each.
    pub pause: Duration,
    /// How many a round takes, so that it does not take long.
    pub per_round: usize,
}

/// One after another, and with both sides asleep in between.
pub const PACES: [Pace; 3] = [
    Pace {
        name: "one after another",
        pause: Duration::ZERO,
        per_round: 50,
    },
    Pace {
        name: "every 200 µs",
        pause: Duration::from_micros(200),
        per_round: 50,
    },
    Pace {
        name: "every 5 ms",
        pause: Duration::from_millis(5),
        per_round: 8,
    },
];
