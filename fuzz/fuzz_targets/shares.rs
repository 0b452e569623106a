//! Messages to the servers of shared folders. See `oxbow_fuzz::shares`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oxbow_fuzz::shares::run(data));
