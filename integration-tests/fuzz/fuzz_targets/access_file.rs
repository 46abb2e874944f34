#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = shared::access::fuzz::access_file(data);
});
