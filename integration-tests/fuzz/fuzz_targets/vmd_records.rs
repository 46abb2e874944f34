#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = vmd::fuzz::vmd_records(data);
});
