//! Processor states out of nowhere. See `oxbow_fuzz::cpu_state`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oxbow_fuzz::cpu_state::run(data));
