//! Registers, wires and timers of every chip. See `oxbow_fuzz::chipset`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oxbow_fuzz::chipset::run(data));
