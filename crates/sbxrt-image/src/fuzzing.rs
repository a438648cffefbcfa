//! The doors for hostile bytes, as the fuzz targets in `fuzz/` enter them. No part of the public interface.
//!
//! Each function reads any bytes and panics where a promise is broken; returning says nothing about the bytes. What the
//! fuzzer found worth keeping lies in `fuzz/corpus/`, and the test below reads all of it again.

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use reqwest::Url;

use crate::auth::{Challenge, refuse_realm};
use crate::manifest::{self, Document};
use crate::tarball::{Skip, Tarball};
use crate::unpack::Unpacker;
use crate::{Digest, ImageConfiguration, Limits, Platform, Source, compression, replay, tree};

const MEBIBYTE: usize = 1 << 20;

/// Unpacks a layer in `place`, an empty directory that is empty again afterwards: as the lowest one, and on top of it
/// self. Nothing outside of the layer may change, and its stream must come again bit for bit.
///
/// Headers get the checksum that they should have; without it the fuzzer would learn nothing but that there is one.
pub fn layer(bytes: &[u8], place: &Path) {
    let mut stream = Vec::new();
    let decompressed = compression::decompress(&mut io::BufReader::new(bytes), &mut |piece| {
        stream.extend(piece);
        stream.len() < MEBIBYTE
    });
    if decompressed.is_err() {
        return;
    }
    for block in stream.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            seal(block);
        }
    }
    let limits = Limits {
        layer_bytes: 16 << 20,
        entries: 300,
        header_bytes: 64 << 10,
        ..Limits::default()
    };
    let outside = place.join("outside");
    fs::create_dir(&outside).expect("the directory is empty");
    fs::write(outside.join("canary"), "unharmed").expect("the directory is empty");
    let before = look(place, &outside);
    let mut lower = Vec::new();
    for name in ["first", "second"] {
        let directory = place.join(name);
        fs::create_dir(&directory).expect("nothing made it");
        let unpacked = unpack(&stream, &directory, &lower, &limits);
        if unpacked {
            if let Some(mut replay) = replay::open(&directory).expect("it was just written") {
                let mut found = Vec::new();
                replay.read_to_end(&mut found).expect("it was just written");
                assert!(found == stream, "the replay of a layer differs from it");
            }
            lower.insert(0, directory.join("fs"));
        }
        assert_eq!(
            look(place, &outside),
            before,
            "a layer changed what is outside of it"
        );
        if !unpacked {
            break;
        }
    }
    let parent = fs::File::open(place).expect("it is there");
    for name in [c"first", c"second", c"outside"] {
        tree::remove_all(parent.as_fd(), name).expect("whatever was unpacked can be removed");
    }
    assert_eq!(
        fs::read_dir(place).expect("it is there").count(),
        0,
        "a layer left something behind"
    );
}

fn unpack(stream: &[u8], directory: &Path, lower: &[std::path::PathBuf], limits: &Limits) -> bool {
    let layer = Digest::of(stream);
    let mut unpacker =
        Unpacker::new(directory, &layer, lower.is_empty(), limits).expect("the directory is empty");
    let mut tarball = Tarball::new(Stream(stream), limits.header_bytes);
    unpacker.unpack(&mut tarball).is_ok() && unpacker.finish(lower).is_ok()
}

/// What is beside the layers, and the times at which it changed.
fn look(place: &Path, outside: &Path) -> Vec<(u32, u64, i64, i64, Vec<u8>)> {
    let canary = outside.join("canary");
    let describe = |path: &Path, contents: Vec<u8>| {
        let status = fs::symlink_metadata(path).expect("it was there");
        let modified = status.mtime_nsec();
        (
            status.mode(),
            status.nlink(),
            status.mtime(),
            modified,
            contents,
        )
    };
    let mut names = fs::read_dir(place)
        .expect("it is there")
        .map(|entry| entry.expect("it is there").file_name())
        .filter(|name| name != "first" && name != "second")
        .map(std::ffi::OsString::into_encoded_bytes)
        .collect::<Vec<_>>();
    names.sort();
    vec![
        describe(outside, names.concat()),
        describe(&canary, fs::read(&canary).unwrap_or_default()),
    ]
}

fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum = block.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

struct Stream<'a>(&'a [u8]);

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Skip for Stream<'_> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.take(bytes), &mut io::sink())?;
        if skipped < bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

/// Reads a manifest, an index or both with a configuration after it: the documents are divided by NUL.
pub fn documents(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let document = parts.next().unwrap_or_default();
    let config = parts.next().unwrap_or_default();
    let platform = Platform::host();
    let limits = Limits::default();
    for promised in [None, Some("application/vnd.oci.image.manifest.v1+json")] {
        match Document::parse("image", document, promised) {
            Ok(Document::Index(descriptors)) => {
                if let Ok(chosen) = manifest::select("image", &descriptors, &platform) {
                    assert!(descriptors.contains(chosen));
                }
            }
            Ok(Document::Manifest { layers, .. }) => {
                if let Ok((_, combined)) =
                    manifest::combine("image", config, &layers, &platform, &limits)
                {
                    assert_eq!(combined.len(), layers.len());
                    assert!(combined.len() <= limits.layers);
                }
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    let _read: Option<ImageConfiguration> = serde_json::from_slice(document).ok();
}

/// Reads a reference; what is written of it must read as the same.
pub fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match text.parse::<Source>() {
        Ok(source) => {
            let written = source.to_string();
            let again = written.parse::<Source>();
            assert_eq!(again.ok().as_ref(), Some(&source), "{written:?}");
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            let _hint = error.hint();
        }
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
        assert!(!text.contains('/'), "a digest is part of a path");
    }
}

/// Reads a `WWW-Authenticate` header.
pub fn challenge(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Some(Challenge::Bearer { realm, .. }) = Challenge::parse(text) {
        let registry = Url::parse("https://registry.example/v2/").expect("it is one");
        if let Ok(realm) = Url::parse(&realm)
            && refuse_realm(&realm, &registry).is_none()
        {
            assert_eq!(realm.scheme(), "https");
            assert!(realm.username().is_empty() && realm.password().is_none());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads every file of a corpus.
    fn corpus(target: &str, mut read: impl FnMut(&[u8])) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../fuzz/corpus")
            .join(target);
        let mut count = 0;
        for entry in fs::read_dir(directory).unwrap() {
            read(&fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 10, "{target}: {count} files");
    }

    #[test]
    fn the_corpus_of_layers_breaks_no_promise() {
        let place = tempfile::tempdir().unwrap();
        corpus("layer", |bytes| layer(bytes, place.path()));
    }

    #[test]
    fn the_other_corpora_break_no_promise() {
        corpus("documents", documents);
        corpus("reference", reference);
        corpus("challenge", challenge);
    }
}
