//! What the store takes of the disk, and what of it belongs to which image.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use super::Store;
use crate::{Digest, Platform, Result};

/// What a store takes of the disk: allocated blocks, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The images, by name. One image may have several names.
    pub images: Vec<ImageUsage>,
    /// The layers of this store, by chain ID. Those of additional stores are not counted.
    pub layers: Vec<LayerUsage>,
    /// Manifests, configurations, and the records of images and of the steps of builds.
    pub documents: u64,
    /// What is not finished, or was left by processes that died.
    pub temporary: u64,
    /// All of the store.
    pub total: u64,
}

/// What an image takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUsage {
    /// The image's name.
    pub name: String,
    /// The platform that it is for.
    pub platform: Platform,
    /// The digest of its manifest.
    pub digest: Digest,
    /// The chain IDs of its layers, bottom first.
    pub layers: Vec<Digest>,
    /// Its layers together.
    pub total: u64,
    /// Those of them that other manifests have too.
    pub shared: u64,
    /// Those that no other manifest has: what removing all of its names would give back.
    pub own: u64,
    /// When it was last used, give or take some minutes; when it was pulled where it never was.
    pub last_used: Option<SystemTime>,
}

/// What a layer takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerUsage {
    /// Its chain ID.
    pub chain_id: Digest,
    /// Its bytes on disk.
    pub bytes: u64,
    /// How many manifests have it; 0 for one that the next `collect` removes.
    pub images: usize,
}

/// How the size of a layer is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    /// The bytes of its files, as written down when it was unpacked: quick.
    Recorded,
    /// Its blocks, counted now.
    Blocks,
}

impl Store {
    /// Measures the store. Every file is looked at.
    pub fn usage(&self) -> Result<Usage> {
        let mut usage = self.measure(Measure::Blocks)?;
        usage.documents = ["blobs", "images", "cache"]
            .iter()
            .map(|name| on_disk(&self.root.join(name)))
            .sum();
        usage.temporary = on_disk(&self.root.join("tmp"));
        let layers = usage.layers.iter().map(|layer| layer.bytes).sum::<u64>();
        usage.total = layers + usage.documents + usage.temporary;
        Ok(usage)
    }

    /// Returns the sizes of this store's images, from what was written down when they were pulled: the bytes of their
    /// files.
    pub fn sizes(&self) -> Result<Vec<ImageUsage>> {
        Ok(self.measure(Measure::Recorded)?.images)
    }

    fn measure(&self, measure: Measure) -> Result<Usage> {
        let records = self.records()?;
        let mut manifests = BTreeMap::<&Digest, HashSet<&Digest>>::new();
        for (_, record) in &records {
            for layer in &record.layers {
                manifests.entry(layer).or_default().insert(&record.digest);
            }
        }
        let present = match measure {
            Measure::Blocks => self.contents("layers")?,
            // What no image has is of no interest.
            Measure::Recorded => manifests.keys().map(|layer| (*layer).clone()).collect(),
        };
        let mut sizes = BTreeMap::new();
        for chain_id in present {
            let bytes = match measure {
                Measure::Recorded => self.layer(&chain_id).map_or(0, |layer| layer.size),
                Measure::Blocks => on_disk(&self.content_path("layers", &chain_id)),
            };
            sizes.insert(chain_id, bytes);
        }
        let users = |layer: &Digest| manifests.get(layer).map_or(0, HashSet::len);
        let mut images = Vec::new();
        for (path, record) in &records {
            let (mut total, mut shared) = (0, 0);
            for layer in record.layers.iter().collect::<HashSet<_>>() {
                let bytes = sizes.get(layer).copied().unwrap_or(0);
                total = u64::saturating_add(total, bytes);
                if users(layer) > 1 {
                    shared = u64::saturating_add(shared, bytes);
                }
            }
            images.push(ImageUsage {
                name: record.name.clone(),
                platform: record.platform.clone(),
                digest: record.digest.clone(),
                layers: record.layers.clone(),
                total,
                shared,
                own: total.saturating_sub(shared),
                last_used: fs::metadata(path)
                    .and_then(|metadata| metadata.modified())
                    .ok(),
            });
        }
        images.sort_by(|left, right| {
            (&left.name, &left.platform).cmp(&(&right.name, &right.platform))
        });
        let layers = sizes.into_iter().map(|(chain_id, bytes)| LayerUsage {
            images: users(&chain_id),
            chain_id,
            bytes,
        });
        Ok(Usage {
            layers: layers.collect(),
            images,
            ..Usage::default()
        })
    }
}

/// Counts the blocks of a file or of all that is in a directory, each file once however many names it has. What cannot
/// be looked at, or goes meanwhile, counts nothing.
pub(super) fn on_disk(path: &Path) -> u64 {
    /// What `st_blocks` counts, whatever the file system's blocks are: see stat(2).
    const BLOCK: u64 = 512;
    let mut bytes = 0;
    let mut linked = HashSet::new();
    let mut waiting = vec![path.to_owned()];
    while let Some(path) = waiting.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        if metadata.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            waiting.extend(entries.map(|entry| entry.path()));
        } else if metadata.nlink() > 1 && !linked.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        bytes += metadata.blocks() * BLOCK;
    }
    bytes
}
