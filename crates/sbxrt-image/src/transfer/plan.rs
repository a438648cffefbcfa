//! What a copy has to carry: the documents that a name leads to, and the blobs that they name.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::supply::{RawDocument, Root, Supply};
use crate::manifest::{self, Descriptor, Document};
use crate::{Digest, Error, Limits, Platform, Result};

/// How many documents an index may lead to in all: images for so many platforms, and what is attested of them.
const MAX_DOCUMENTS: usize = 2_000;
/// The bytes of all of them: they are held in memory, so that they can come after all that they name.
const MAX_BYTES: u64 = 64 << 20;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Which of the images under a name are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The one for a platform.
    Platform(Platform),
    /// All of them, and the index that holds them.
    All,
}

/// A document that is to arrive as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) bytes: Vec<u8>,
    pub(super) digest: Digest,
    pub(super) media_type: String,
}

/// All that belongs to what is copied.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Configurations and layers, each once.
    pub(super) blobs: Vec<Descriptor>,
    /// Manifests and indexes, those that are named before those that name them. The last one is the image.
    pub(super) documents: Vec<Carried>,
    /// The configuration and the layers, where the image is a manifest.
    pub(super) image: Option<(Descriptor, Vec<Descriptor>)>,
}

impl Plan {
    pub(super) fn root(&self) -> &Carried {
        self.documents
            .last()
            .expect("a plan is made from a document")
    }
}

/// What a document names.
enum Contents {
    Index(Vec<Descriptor>),
    Manifest(Descriptor, Vec<Descriptor>),
}

/// Follows a name to everything that belongs to it.
pub(super) async fn make(
    supply: &Supply,
    name: &str,
    choice: &Choice,
    limits: &Limits,
) -> Result<Plan> {
    let mut plan = Plan {
        blobs: Vec::new(),
        documents: Vec::new(),
        image: None,
    };
    let mut seen = HashSet::new();
    let root = match (supply.root().await?, choice) {
        (Root::Document(document), _) => document,
        (Root::Entries(entries), Choice::All) if entries.len() > 1 => index_of(&entries),
        (Root::Entries(entries), Choice::All) => {
            let only = entries
                .first()
                .ok_or_else(|| invalid(name, "it names nothing"))?;
            supply.document(&manifest_of(name), only).await?
        }
        (Root::Entries(entries), Choice::Platform(platform)) => {
            let chosen = manifest::select(name, &entries, platform)?;
            supply.document(&manifest_of(name), chosen).await?
        }
    };
    match choice {
        Choice::All => gather(supply, name, root, limits, &mut plan, &mut seen).await?,
        Choice::Platform(platform) => {
            let chosen = descend(supply, name, root, platform, limits).await?;
            add(name, chosen, limits, &mut plan, &mut seen)?;
        }
    }
    Ok(plan)
}

/// Goes from index to index until there is a manifest for the platform.
async fn descend(
    supply: &Supply,
    name: &str,
    mut document: RawDocument,
    platform: &Platform,
    limits: &Limits,
) -> Result<RawDocument> {
    for _ in 0..=limits.index_depth {
        match contents(name, &document)? {
            Contents::Manifest(..) => return Ok(document),
            Contents::Index(entries) => {
                let chosen = manifest::select(name, &entries, platform)?;
                document = supply.document(&manifest_of(name), chosen).await?;
            }
        }
    }
    Err(too_deep(name, limits))
}

/// Takes in a document and all that it leads to. A list instead of recursion: what is found last is looked at first,
/// and each document is put in place when all below it are.
async fn gather(
    supply: &Supply,
    name: &str,
    root: RawDocument,
    limits: &Limits,
    plan: &mut Plan,
    seen: &mut HashSet<Digest>,
) -> Result<()> {
    // A document with how deep it lies, and those in it that are still to be looked at.
    let mut open: Vec<(RawDocument, Vec<Descriptor>)> = Vec::new();
    let mut next = Some(root);
    let mut found = 0;
    let mut bytes = 0;
    loop {
        if let Some(document) = next.take() {
            found += 1;
            bytes += document.bytes.len() as u64;
            if found > MAX_DOCUMENTS || bytes > MAX_BYTES.max(limits.manifest_bytes) {
                return Err(invalid(name, "its indexes lead to too many documents"));
            }
            match contents(name, &document)? {
                Contents::Index(entries) => {
                    if open.len() > limits.index_depth {
                        return Err(too_deep(name, limits));
                    }
                    open.push((document, entries));
                }
                Contents::Manifest(..) => add(name, document, limits, plan, seen)?,
            }
        }
        let Some((_, entries)) = open.last_mut() else {
            return Ok(());
        };
        if let Some(entry) = entries.pop() {
            if !seen.contains(&entry.digest) {
                next = Some(supply.document(&manifest_of(name), &entry).await?);
            }
            continue;
        }
        if let Some((document, _)) = open.pop() {
            add(name, document, limits, plan, seen)?;
        }
    }
}

/// Takes in a document, and the blobs that it names itself.
fn add(
    name: &str,
    document: RawDocument,
    limits: &Limits,
    plan: &mut Plan,
    seen: &mut HashSet<Digest>,
) -> Result<()> {
    let contents = contents(name, &document)?;
    let media_type = media_type(&document, &contents);
    plan.image = None;
    if let Contents::Manifest(config, layers) = contents {
        if layers.len() > limits.layers {
            return Err(Error::LimitExceeded {
                what: format!("{name} with {} layers", layers.len()),
                limit: "layers",
                maximum: limits.layers as u64,
            });
        }
        for blob in std::iter::once(&config).chain(&layers) {
            if let Some(reason) = foreign(&blob.media_type) {
                return Err(Error::UnsupportedMediaType {
                    image: name.to_owned(),
                    media_type: blob.media_type.chars().take(120).collect(),
                    reason: reason.to_owned(),
                });
            }
            if seen.insert(blob.digest.clone()) {
                plan.blobs.push(blob.clone());
            }
        }
        plan.image = Some((config, layers));
    }
    if seen.insert(document.digest.clone()) {
        plan.documents.push(Carried {
            bytes: document.bytes,
            digest: document.digest,
            media_type,
        });
    }
    Ok(())
}

fn foreign(media_type: &str) -> Option<&'static str> {
    (media_type.contains("nondistributable") || media_type.contains(".foreign.")).then_some(
        "foreign layers lie outside of the registry, at an address that the image chooses",
    )
}

/// Reads what a document names, whatever it is an image of: what is carried need not be run.
fn contents(name: &str, document: &RawDocument) -> Result<Contents> {
    #[derive(serde::Deserialize)]
    struct Manifest {
        config: Descriptor,
        layers: Vec<Descriptor>,
    }
    let value = serde_json::from_slice::<Value>(&document.bytes)
        .map_err(|error| invalid(name, &error.to_string()))?;
    let is_index = value.get("manifests").is_some();
    if is_index {
        // It must be one that everybody reads as an index.
        return match Document::parse(name, &document.bytes, document.media_type.as_deref())? {
            Document::Index(entries) => Ok(Contents::Index(entries)),
            Document::Manifest { .. } => Err(invalid(name, "it is both a manifest and an index")),
        };
    }
    if value.get("schemaVersion") == Some(&Value::from(1)) || value.get("fsLayers").is_some() {
        // It says what is wrong with it.
        Document::parse(name, &document.bytes, document.media_type.as_deref())?;
    }
    let manifest = serde_json::from_slice::<Manifest>(&document.bytes)
        .map_err(|error| invalid(name, &error.to_string()))?;
    Ok(Contents::Manifest(manifest.config, manifest.layers))
}

/// Returns the media type by which a document is to be known: its own word counts most.
fn media_type(document: &RawDocument, contents: &Contents) -> String {
    let own = serde_json::from_slice::<Value>(&document.bytes)
        .ok()
        .and_then(|value| Some(value.get("mediaType")?.as_str()?.to_owned()));
    let promised = document
        .media_type
        .as_deref()
        .and_then(|text| text.split(';').next())
        .map(str::trim)
        .filter(|text| text.starts_with("application/vnd."))
        .map(str::to_owned);
    own.filter(|text| !text.is_empty())
        .or(promised)
        .unwrap_or_else(|| match contents {
            Contents::Index(_) => OCI_INDEX.to_owned(),
            Contents::Manifest(..) => OCI_MANIFEST.to_owned(),
        })
}

/// An index of what a layout has under one name.
fn index_of(entries: &[Descriptor]) -> RawDocument {
    let bytes = json!({
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": entries.iter().map(Descriptor::without_name).collect::<Vec<_>>(),
    })
    .to_string()
    .into_bytes();
    RawDocument {
        digest: Digest::of(&bytes),
        bytes,
        media_type: Some(OCI_INDEX.to_owned()),
    }
}

/// Says in OCI's words what a manifest says in Docker's: the same blobs, and other names for what they are. Readers of
/// OCI layouts take no others.
pub(super) fn translate(plan: &mut Plan) {
    let Some((config, layers)) = &mut plan.image else {
        return;
    };
    let [root] = plan.documents.as_mut_slice() else {
        return;
    };
    if root.media_type != DOCKER_MANIFEST {
        return;
    }
    "application/vnd.oci.image.config.v1+json".clone_into(&mut config.media_type);
    for layer in layers.iter_mut() {
        if let Some(kind) = layer
            .media_type
            .strip_prefix("application/vnd.docker.image.rootfs.diff.")
        {
            let kind = kind.replace("tar.", "tar+");
            layer.media_type = format!("application/vnd.oci.image.layer.v1.{kind}");
        }
    }
    let describe = |descriptor: &Descriptor| {
        json!({
            "mediaType": descriptor.media_type,
            "digest": descriptor.digest,
            "size": descriptor.size,
        })
    };
    let bytes = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": describe(config),
        "layers": layers.iter().map(describe).collect::<Vec<_>>(),
    })
    .to_string()
    .into_bytes();
    *root = Carried {
        digest: Digest::of(&bytes),
        bytes,
        media_type: OCI_MANIFEST.to_owned(),
    };
}

fn manifest_of(name: &str) -> String {
    format!("manifest of {name}")
}

fn invalid(name: &str, reason: &str) -> Error {
    Error::InvalidManifest {
        image: name.to_owned(),
        reason: reason.to_owned(),
    }
}

fn too_deep(name: &str, limits: &Limits) -> Error {
    Error::LimitExceeded {
        what: format!("the indexes of {name}"),
        limit: "index_depth",
        maximum: limits.index_depth as u64,
    }
}
