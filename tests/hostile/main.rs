//! What a hostile process isolate can do to the others of its tree over the wire, which it speaks by hand: nothing.
//!
//! The moves against portals are those of docs/decisions/capabilities.md, the answers to each frame those of docs/hostile.md.

mod capabilities;
mod forkserver;
mod frames;
mod room;
mod wire;
