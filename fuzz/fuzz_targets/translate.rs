//! See `telecluster_tests::fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| telecluster_tests::fuzz::translate(data));
