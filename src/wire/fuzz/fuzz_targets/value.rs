//! Any bytes, decoded as any type that crosses.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::value(data));
