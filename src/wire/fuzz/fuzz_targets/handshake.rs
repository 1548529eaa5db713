//! Any frames from the first on, by each of those who may send.
#![no_main]

#[path = "../order.rs"]
mod order;

libfuzzer_sys::fuzz_target!(|data: &[u8]| order::order(data));
