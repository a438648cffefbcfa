//! Images that are made here: new layers, and images put together from layers of the store.
//!
//! A [`LayerDraft`] is a layer in the making: a directory in the store's `tmp` that a sandbox writes its changes to, or that
//! files are [copied](LayerDraft::copy) into. When it is [finished](LayerDraft::finish), it is a layer like one from a
//! registry: its files are below `fs/`, owners and the like are in `owners.jsonl`, its archive hashes to its `diff_id`, and it
//! lies in the store by its chain ID. A draft that is dropped is gone.
//!
//! The archive of a layer that was made here is not compressed: its digest is its `diff_id`.

mod archive;
mod copy;
mod draft;
mod stack;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::store::{Access, Record, StoreLock};
use crate::{Digest, Error, Image, Platform, Result, Source, Store};

pub use archive::UnpackedArchive;
pub use copy::{Copy, CopySource, Everything, Filter, Verdict};
pub use draft::{Filled, LayerDraft};
pub use stack::{Node, NodeKind, Stack};

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// The most records that the cache may have before the oldest go.
const MAX_RECORDS: usize = 10_000;

/// A layer of an image that is being put together: in the store, with what a manifest says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AssembledLayer {
    /// The digest of its archive, not compressed.
    pub diff_id: Digest,
    /// The name that the store has for it.
    pub chain_id: Digest,
    /// The digest of its archive as the manifest names it.
    pub digest: Digest,
    /// The bytes of that.
    pub size: u64,
    /// What that is.
    pub media_type: String,
}

/// What a cache of layers knows of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedStep {
    /// The layer that the step made; none where it changed nothing.
    pub layer: Option<AssembledLayer>,
    /// When it was made (RFC 3339).
    pub created: String,
}

/// Keeps other processes from removing layers while an image is put together.
#[derive(Debug)]
#[must_use = "layers may be removed as soon as it is dropped"]
pub struct AssemblyGuard {
    _lock: StoreLock,
}

impl Store {
    /// Begins to put an image together. What processes that died have left is removed.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] while another process removes images.
    pub fn begin_assembly(&self) -> Result<AssemblyGuard> {
        self.make()?;
        let lock = self.lock(Access::Pull)?;
        self.sweep()?;
        Ok(AssemblyGuard { _lock: lock })
    }

    /// The layers of an image of the store, bottom first; none for an image that has no manifest.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where its manifest cannot be read.
    pub fn assembled_layers(&self, image: &Image) -> Result<Vec<AssembledLayer>> {
        #[derive(Deserialize)]
        struct Manifest {
            layers: Vec<Descriptor>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Descriptor {
            media_type: String,
            digest: Digest,
            size: u64,
        }
        let documents = self.inspect_raw(image)?;
        if documents["manifest"].is_null() {
            return Ok(Vec::new());
        }
        let damaged = |reason: String| Error::InvalidManifest {
            image: image.name.clone(),
            reason,
        };
        let manifest: Manifest = serde_json::from_value(documents["manifest"].clone())
            .map_err(|error| damaged(error.to_string()))?;
        let diff_ids = image
            .config
            .rootfs()
            .diff_ids()
            .iter()
            .map(|text| text.parse::<Digest>())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| damaged(error.to_string()))?;
        if diff_ids.len() != manifest.layers.len() {
            return Err(damaged(
                "it has another number of layers than its configuration".to_owned(),
            ));
        }
        let chain_ids = crate::digest::chain_ids(&diff_ids);
        let layers = diff_ids.into_iter().zip(chain_ids).zip(manifest.layers);
        Ok(layers
            .map(|((diff_id, chain_id), descriptor)| AssembledLayer {
                diff_id,
                chain_id,
                digest: descriptor.digest,
                size: descriptor.size,
                media_type: oci_media_type(descriptor.media_type),
            })
            .collect())
    }

    /// Whether the store has a layer.
    pub fn has_layer(&self, chain_id: &Digest) -> bool {
        self.layer(chain_id).is_some()
    }

    /// An image of layers of the store that is not recorded: to run something in it.
    pub fn assembled(
        &self,
        name: &str,
        platform: &Platform,
        config: &ImageConfiguration,
        layers: &[AssembledLayer],
    ) -> Image {
        let record = self.record(name.to_owned(), platform, config.clone(), layers, None);
        self.image(record, self)
    }

    /// Writes the manifest and the configuration of an image, and records it by a name.
    ///
    /// `name` is the name of an image in a registry, which is how an image of the store is asked for; without one the image
    /// is called `localhost/build@DIGEST`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where the store cannot be written to.
    pub fn put_assembled(
        &self,
        name: Option<&Source>,
        platform: &Platform,
        config: ImageConfiguration,
        layers: &[AssembledLayer],
    ) -> Result<Image> {
        let config_bytes = json(&config)?;
        let config_digest = Digest::of(&config_bytes);
        let descriptor = |media_type: &str, digest: &Digest, size: u64| serde_json::json!({"mediaType": media_type, "digest": digest.to_string(), "size": size});
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config_digest, config_bytes.len() as u64),
            "layers": layers
                .iter()
                .map(|layer| descriptor(&layer.media_type, &layer.digest, layer.size))
                .collect::<Vec<_>>(),
        });
        let manifest_bytes = json(&manifest)?;
        let digest = Digest::of(&manifest_bytes);
        self.put_blob(&config_digest, &config_bytes)?;
        self.put_blob(&digest, &manifest_bytes)?;
        let name = match name {
            Some(name) => name.to_string(),
            None => format!("localhost/build@{digest}"),
        };
        let record = self.record(
            name,
            platform,
            config,
            layers,
            Some((digest, config_digest)),
        );
        self.put_image(platform, record)
    }

    fn record(
        &self,
        name: String,
        platform: &Platform,
        config: ImageConfiguration,
        layers: &[AssembledLayer],
        digests: Option<(Digest, Digest)>,
    ) -> Record {
        let mut size = 0_u64;
        let mut hidden_layers = 0;
        for (index, layer) in layers.iter().enumerate() {
            if let Some(layer) = self.layer(&layer.chain_id) {
                size = size.saturating_add(layer.size);
                if layer.opaque {
                    hidden_layers = index;
                }
            }
        }
        let (digest, config_digest) = digests.unwrap_or_else(|| {
            let none = Digest::of(b"");
            (none.clone(), none)
        });
        Record {
            name,
            digest,
            config_digest,
            platform: platform.clone(),
            size,
            layers: layers.iter().map(|layer| layer.chain_id.clone()).collect(),
            hidden_layers,
            config,
            stamp: None,
        }
    }

    /// What the cache knows of a step, by the digest of all that the step depends on. A step whose layer is no longer in
    /// the store is not known.
    pub fn cached_step(&self, key: &Digest) -> Option<CachedStep> {
        let bytes = std::fs::read(self.cache_path(key)).ok()?;
        let step: CachedStep = serde_json::from_slice(&bytes).ok()?;
        let is_whole = step
            .layer
            .as_ref()
            .is_none_or(|layer| self.has_layer(&layer.chain_id));
        is_whole.then_some(step)
    }

    /// Keeps what a step has made for the next build.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where the store cannot be written to.
    pub fn cache_step(&self, key: &Digest, step: &CachedStep) -> Result<()> {
        let path = self.cache_path(key);
        let directory = self.cache();
        match std::fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io("create", &directory, error));
            }
            _ => {}
        }
        let bytes = serde_json::to_vec(step).map_err(|error| Error::io("write", &path, error))?;
        self.write(&path, &bytes)
    }

    /// Removes what the cache knows of steps whose layers are gone, and the oldest beyond ten thousand.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where the store cannot be written to.
    pub fn prune_cache(&self) -> Result<()> {
        let directory = self.cache();
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io("list", &directory, error)),
        };
        let mut kept = Vec::new();
        for entry in entries.flatten() {
            let path = entry.path();
            let key = path
                .file_stem()
                .and_then(|stem| format!("sha256:{}", stem.to_string_lossy()).parse().ok());
            let is_known = key.is_some_and(|key| self.cached_step(&key).is_some());
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            match modified {
                Ok(modified) if is_known => kept.push((modified, path)),
                _ => remove_record(&path)?,
            }
        }
        kept.sort();
        let excess = kept.len().saturating_sub(MAX_RECORDS);
        for (_, path) in kept.into_iter().take(excess) {
            remove_record(&path)?;
        }
        Ok(())
    }

    fn cache(&self) -> PathBuf {
        self.root().join("cache")
    }

    fn cache_path(&self, key: &Digest) -> PathBuf {
        self.cache().join(format!("{}.json", key.hex()))
    }
}

/// Writes a document as it is stored: with its keys in order, whatever order a hash table has them in.
fn json(document: &impl Serialize) -> Result<Vec<u8>> {
    let failed = |error| Error::io("write", "a document".as_ref(), error);
    let value = serde_json::to_value(document).map_err(failed)?;
    serde_json::to_vec(&sorted(value)).map_err(failed)
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let members: BTreeMap<String, Value> = members.into_iter().collect();
            let members = members.into_iter().map(|(key, value)| (key, sorted(value)));
            Value::Object(members.collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

fn remove_record(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// The media type of an OCI layer for one of Docker's, which are the same bytes.
fn oci_media_type(media_type: String) -> String {
    match media_type.as_str() {
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => format!("{TAR}+gzip"),
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => format!("{TAR}+zstd"),
        "application/vnd.docker.image.rootfs.diff.tar" => TAR.to_owned(),
        _ => media_type,
    }
}

#[cfg(test)]
mod tests;
