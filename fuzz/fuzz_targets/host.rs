//! libFuzzer's entry to `nvme_proto_fuzz::host`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nvme_proto_fuzz::host::run(data));
