//! What a hostile process isolate can do to the others of its tree over the wire, which it speaks by hand: nothing.
//!
//! The moves are those of docs/decisions/capabilities.md.

mod capabilities;
mod wire;
