//! See [`sbxrt_image::fuzzing::documents`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sbxrt_image::fuzzing::documents(bytes));
