//! libFuzzer's entry to `nvme_proto_fuzz::decoder`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nvme_proto_fuzz::decoder::run(data));
