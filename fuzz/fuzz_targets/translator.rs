//! Guest code on the translator and on the interpreter. See `oxbow_fuzz::translator`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oxbow_fuzz::translator::run(data));
