//! Frames of guests for a NAT network and a switch. See `oxbow_fuzz::network`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oxbow_fuzz::network::run(data));
