//! libFuzzer's entry to `nvme_proto_fuzz::controller`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nvme_proto_fuzz::controller::run(data));
