//! Any talk between two ends of a dialogue, and any nonsense that one of them is told.
#![no_main]

#[path = "../dialogue.rs"]
mod talk;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    talk::dialogue(data);
    talk::hostile(data);
});
