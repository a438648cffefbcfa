//! A layer on its way out: compressed, and hashed before and after, in one pass.

use std::io::{self, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::digest::Hasher;
use crate::layer_writer::{LayerOptions, WrittenLayer, write_failed, write_layer};
use crate::{Algorithm, Digest, Result};

/// zlib's own default; beyond it files get hardly smaller and take much longer.
const LEVEL: u32 = 6;

/// The media type of what [`write_layer_blob`] writes.
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A compressed layer, with what a manifest and a configuration say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// The digest of the tar stream, for the configuration.
    pub diff_id: Digest,
    /// The digest of the compressed bytes, for the manifest.
    pub digest: Digest,
    /// How many compressed bytes there are.
    pub size: u64,
    /// What they are.
    pub media_type: &'static str,
    /// What is in them.
    pub written: WrittenLayer,
}

/// Writes a layer directory as [`write_layer`] does, compressed by gzip, and hashes both sides on the way.
///
/// # Errors
///
/// As [`write_layer`].
pub fn write_layer_blob(
    layer: &Path,
    options: &LayerOptions,
    output: impl Write,
) -> Result<LayerBlob> {
    compress(output, |stream| write_layer(layer, options, stream))
}

/// Compresses what `write` writes, and hashes it before and after.
pub(crate) fn compress<W: Write>(
    output: W,
    write: impl FnOnce(&mut Hashing<GzEncoder<Hashing<W>>>) -> Result<WrittenLayer>,
) -> Result<LayerBlob> {
    // The header of gzip names no file, no time and no system, so it is always the same.
    let encoder = GzEncoder::new(Hashing::new(output), Compression::new(LEVEL));
    let mut stream = Hashing::new(encoder);
    let written = write(&mut stream)?;
    let (encoder, diff_id, _) = stream.finish();
    let mut compressed = encoder
        .finish()
        .map_err(|error| write_failed(Path::new("a layer"), error))?;
    compressed
        .flush()
        .map_err(|error| write_failed(Path::new("a layer"), error))?;
    let (_, digest, size) = compressed.finish();
    Ok(LayerBlob {
        diff_id,
        digest,
        size,
        media_type: GZIP,
        written,
    })
}

/// Hashes and counts what goes through it.
#[derive(Debug)]
pub(crate) struct Hashing<W> {
    output: W,
    hasher: Hasher,
    bytes: u64,
}

impl<W> Hashing<W> {
    pub(crate) fn new(output: W) -> Self {
        Self {
            output,
            hasher: Hasher::new(Algorithm::Sha256),
            bytes: 0,
        }
    }

    /// Returns what is behind it, the digest of all bytes and their number.
    pub(crate) fn finish(self) -> (W, Digest, u64) {
        (self.output, self.hasher.finish(), self.bytes)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_blob_is_hashed_on_both_sides_and_always_the_same() {
        let layer = tempfile::tempdir().unwrap();
        fs::create_dir(layer.path().join("fs")).unwrap();
        fs::write(layer.path().join("fs/file"), vec![7; 300_000]).unwrap();
        let write = || {
            let mut bytes = Vec::new();
            let blob =
                write_layer_blob(layer.path(), &LayerOptions::default(), &mut bytes).unwrap();
            (blob, bytes)
        };
        let (blob, bytes) = write();
        assert_eq!(
            (&blob.digest, blob.size),
            (&Digest::of(&bytes), bytes.len() as u64)
        );
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(bytes.as_slice())
            .read_to_end(&mut plain)
            .unwrap();
        assert_eq!(blob.diff_id, Digest::of(&plain));
        assert_eq!(write(), (blob, bytes));
    }
}
