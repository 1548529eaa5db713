//! Any bytes, cut into frames with reads of any size.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::stream(data));
