//! Kernel files in every boot protocol. See `oxbow_fuzz::loaders`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oxbow_fuzz::loaders::run(data));
