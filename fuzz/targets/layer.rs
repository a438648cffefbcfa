//! See [`sbxrt_image::fuzzing::layer`].

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

/// `scripts/fuzz` gives an empty directory on tmpfs.
static PLACE: LazyLock<String> =
    LazyLock::new(|| std::env::var("SBXRT_FUZZ_PLACE").expect("scripts/fuzz sets it"));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    sbxrt_image::fuzzing::layer(bytes, Path::new(PLACE.as_str()));
});
