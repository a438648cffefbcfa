//! See [`sbxrt_image::fuzzing::challenge`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sbxrt_image::fuzzing::challenge(bytes));
