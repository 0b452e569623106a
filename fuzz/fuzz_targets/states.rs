//! Damaged saved states of every chip. See `oxbow_fuzz::states`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oxbow_fuzz::states::run(data));
