#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| windlass_remotes::fuzz::auth_file(bytes));
