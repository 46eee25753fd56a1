//! See `telecluster_vectors::fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| telecluster_vectors::fuzz::parse(data));
