//! Damaged disk images of every format. See `oxbow_fuzz::images`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oxbow_fuzz::images::run(data));
