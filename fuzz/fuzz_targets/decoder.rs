//! Instruction bytes in every mode of the processor. See `oxbow_fuzz::decoder`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oxbow_fuzz::decoder::run(data));
