//! What the store writes down of images and layers.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use super::local::canonical;
use crate::{Digest, Error, Platform, Result, Source};

/// What is kept of a layer beside its files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Layer {
    pub(crate) diff_id: Digest,
    /// The bytes of its files.
    pub(crate) size: u64,
    /// Whether it hides everything below it. overlayfs does not look for the mark on the topmost directory of a layer,
    /// so the layers below are left out of the stack instead.
    pub(crate) opaque: bool,
    /// Whether it was made here, so that its archive is what [`write_layer`](crate::write_layer) writes of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) made_here: bool,
}

/// What is kept of an image: all that a run must know, in one file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) digest: Digest,
    pub(crate) config_digest: Digest,
    pub(crate) platform: Platform,
    pub(crate) size: u64,
    /// The chain IDs of the layers, bottom first.
    pub(crate) layers: Vec<Digest>,
    /// How many of them, from the bottom, one above hides altogether.
    pub(crate) hidden_layers: usize,
    pub(crate) config: ImageConfiguration,
    /// What the layout or archive looked like; none for a registry.
    pub(crate) stamp: Option<Stamp>,
}

/// What tells one state of a file from the next without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    size: u64,
    inode: u64,
    modified_seconds: i64,
    modified_nanoseconds: i64,
}

impl Stamp {
    /// Looks at the file that decides what a source on disk means; `None` for a registry or where there is no file.
    pub(crate) fn of(source: &Source) -> Option<Self> {
        let metadata = match source {
            Source::OciLayout { path, .. } => fs::metadata(path.join("index.json")),
            Source::OciArchive { path, .. } | Source::DockerArchive { path, .. } => {
                fs::metadata(path)
            }
            _ => return None,
        };
        let metadata = metadata.ok()?;
        Some(Self {
            size: metadata.size(),
            inode: metadata.ino(),
            modified_seconds: metadata.mtime(),
            modified_nanoseconds: metadata.mtime_nsec(),
        })
    }
}

/// Returns the records that a name or a digest means.
pub(super) fn choose(
    records: &[(PathBuf, Record)],
    name_or_digest: &str,
) -> Result<HashSet<PathBuf>> {
    const SHORTEST: usize = 6;
    let paths = |wanted: &dyn Fn(&Record) -> bool| {
        records
            .iter()
            .filter(|(_, record)| wanted(record))
            .map(|(path, _)| path.clone())
            .collect::<HashSet<_>>()
    };
    let name = name_or_digest
        .parse::<Source>()
        .ok()
        .and_then(|source| canonical(&source).ok())
        .map(|source| source.to_string());
    let by_name = paths(&|record| Some(&record.name) == name.as_ref());
    if !by_name.is_empty() {
        return Ok(by_name);
    }
    let hex = name_or_digest
        .strip_prefix("sha256:")
        .unwrap_or(name_or_digest);
    let unknown = || Error::UnknownImage {
        name: name_or_digest.to_owned(),
    };
    if hex.len() < SHORTEST {
        return Err(unknown());
    }
    let fits =
        |digest: &Digest| digest.hex().starts_with(hex) || digest.to_string() == name_or_digest;
    let by_digest = paths(&|record| fits(&record.digest) || fits(&record.config_digest));
    let mut digests = records
        .iter()
        .filter(|(path, _)| by_digest.contains(path))
        .map(|(_, record)| record.digest.to_string())
        .collect::<Vec<_>>();
    digests.sort();
    digests.dedup();
    match digests.len() {
        0 => Err(unknown()),
        1 => Ok(by_digest),
        _ => Err(Error::AmbiguousDigest {
            name: name_or_digest.to_owned(),
            candidates: digests,
        }),
    }
}
