//! Rings and registers of virtio devices. See `oxbow_fuzz::virtio`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oxbow_fuzz::virtio::run(data));
