//! See [`sbxrt_image::fuzzing::reference`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sbxrt_image::fuzzing::reference(bytes));
