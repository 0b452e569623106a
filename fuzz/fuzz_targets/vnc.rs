//! What a VNC client sends. See `oxbow_fuzz::vnc`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oxbow_fuzz::vnc::run(data));
