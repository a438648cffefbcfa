//! Manifests, indexes and configurations: documents of a stranger, read into what a pull needs.
//!
//! Both the OCI media types and Docker's schema 2 are read; they differ in name only. Everything else is refused by
//! what it is. All functions here are pure.

use std::collections::HashMap;

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;
use serde_json::Value;

use crate::digest::chain_ids;
use crate::{Digest, Error, Limits, Platform, Result};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What a registry is told that we understand.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// The annotation by which an OCI layout names its images.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A pointer to a blob, with what the blob must be.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    platform: Option<RawPlatform>,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            platform: None,
            annotations: None,
        }
    }

    fn platform(&self) -> Option<Platform> {
        let platform = self.platform.as_ref()?;
        Some(Platform::new(
            &platform.os,
            &platform.architecture,
            platform.variant.as_deref(),
        ))
    }

    /// Returns it as a document has it, without the name that a layout gives to it.
    pub(crate) fn without_name(&self) -> Value {
        let mut value = serde_json::json!({
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        });
        if let Some(platform) = &self.platform {
            value["platform"] = serde_json::json!({
                "os": platform.os,
                "architecture": platform.architecture,
            });
            if let Some(variant) = &platform.variant {
                value["platform"]["variant"] = variant.as_str().into();
            }
        }
        let mut annotations = self.annotations.clone().unwrap_or_default();
        annotations.remove(REF_NAME);
        if !annotations.is_empty() {
            // Sorted, so that the same entries make the same document.
            let sorted = annotations
                .into_iter()
                .collect::<std::collections::BTreeMap<_, _>>();
            value["annotations"] = serde_json::json!(sorted);
        }
        value
    }

    /// Returns the name that an OCI layout gives to an image.
    pub(crate) fn ref_name(&self) -> Option<&str> {
        self.annotations.as_ref()?.get(REF_NAME).map(String::as_str)
    }
}

/// A document that a reference can lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest {
        config: Descriptor,
        layers: Vec<Descriptor>,
    },
}

impl Document {
    /// Reads a document. `promised` is what the descriptor or the registry says that it is.
    pub(crate) fn parse(image: &str, bytes: &[u8], promised: Option<&str>) -> Result<Self> {
        let invalid = |reason: String| Error::InvalidManifest {
            image: image.to_owned(),
            reason,
        };
        let value =
            serde_json::from_slice::<Value>(bytes).map_err(|error| invalid(error.to_string()))?;
        let Value::Object(object) = &value else {
            return Err(invalid("it is no JSON object".to_owned()));
        };
        // CVE-2021-41190: what one tool reads as an index and the next as a manifest passes every check by half.
        if object.contains_key("manifests")
            && (object.contains_key("layers") || object.contains_key("config"))
        {
            return Err(invalid("it is both a manifest and an index".to_owned()));
        }
        let unsupported = |media_type: &str, reason: &str| Error::UnsupportedMediaType {
            image: image.to_owned(),
            media_type: media_type.chars().take(120).collect(),
            reason: reason.to_owned(),
        };
        if object.get("schemaVersion") == Some(&Value::from(1)) || object.contains_key("fsLayers") {
            return Err(unsupported(
                "application/vnd.docker.distribution.manifest.v1+json",
                "schema 1 has no digests to hold its layers against",
            ));
        }
        let stated = match object.get("mediaType") {
            None => None,
            Some(Value::String(text)) => Some(text.as_str()).filter(|text| !text.is_empty()),
            Some(_) => return Err(invalid("its media type is no text".to_owned())),
        };
        let promised = promised.map(essence).filter(|text| !is_generic(text));
        if let (Some(stated), Some(promised)) = (stated, &promised)
            && stated != promised
        {
            return Err(invalid(format!(
                "it calls itself {stated} and was announced as {promised}"
            )));
        }
        let is_index = object.contains_key("manifests");
        let media_type = match (stated, &promised) {
            (Some(media_type), _) => media_type,
            (None, Some(media_type)) => media_type,
            (None, None) if is_index => OCI_INDEX,
            (None, None) => OCI_MANIFEST,
        };
        let parsed = |error: serde_json::Error| invalid(error.to_string());
        match media_type {
            OCI_INDEX | DOCKER_INDEX => {
                #[derive(Deserialize)]
                struct Index {
                    manifests: Vec<Descriptor>,
                }
                // From the bytes once more: a key that occurs twice is an error here, and was the last one above.
                let index = serde_json::from_slice::<Index>(bytes).map_err(parsed)?;
                Ok(Self::Index(index.manifests))
            }
            OCI_MANIFEST | DOCKER_MANIFEST => {
                #[derive(Deserialize)]
                #[serde(rename_all = "camelCase")]
                struct Manifest {
                    config: Descriptor,
                    layers: Vec<Descriptor>,
                    #[serde(default)]
                    artifact_type: Option<String>,
                }
                let manifest = serde_json::from_slice::<Manifest>(bytes).map_err(parsed)?;
                if !matches!(
                    manifest.config.media_type.as_str(),
                    OCI_CONFIG | DOCKER_CONFIG
                ) {
                    // Where it says what it is, that says more than its configuration, which may well be empty.
                    let kind = manifest.artifact_type.as_deref();
                    let kind = kind.filter(|kind| !kind.is_empty());
                    let kind = kind.unwrap_or(&manifest.config.media_type);
                    return Err(unsupported(kind, refuse_artifact(kind)));
                }
                for layer in &manifest.layers {
                    if let Some(reason) = refuse_layer(&layer.media_type) {
                        return Err(unsupported(&layer.media_type, reason));
                    }
                }
                Ok(Self::Manifest {
                    config: manifest.config,
                    layers: manifest.layers,
                })
            }
            other => Err(unsupported(
                other,
                "it is neither an image nor an index of images",
            )),
        }
    }
}

/// Returns a media type without its parameters.
fn essence(content_type: &str) -> String {
    content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// Whether a content type says nothing: web servers without a registry behind them know no other.
fn is_generic(media_type: &str) -> bool {
    matches!(
        media_type,
        "" | "application/json" | "application/octet-stream" | "text/plain"
    )
}

/// Says what an artifact is, where that is known.
fn refuse_artifact(kind: &str) -> &'static str {
    const KNOWN: [(&str, &str); 6] = [
        ("helm", "it is a Helm chart and no image that can be run"),
        (
            "wasm",
            "it is a WebAssembly module and no image that can be run",
        ),
        ("cosign", "it is a signature and no image that can be run"),
        ("notary", "it is a signature and no image that can be run"),
        (
            "in-toto",
            "it is an attestation and no image that can be run",
        ),
        ("sylabs.sif", "it is a SIF file of Singularity or Apptainer"),
    ];
    KNOWN.iter().find(|(word, _)| kind.contains(word)).map_or(
        "it is an artifact and no image that can be run",
        |(_, reason)| reason,
    )
}

/// Says why a layer cannot be used, if so.
fn refuse_layer(media_type: &str) -> Option<&'static str> {
    if media_type.contains("nondistributable") || media_type.contains(".foreign.") {
        return Some(
            "foreign layers lie outside of the registry, at an address that the image chooses",
        );
    }
    let kind = media_type
        .strip_prefix("application/vnd.oci.image.layer.v1.")
        .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.diff."))
        .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs."));
    match kind {
        Some("tar" | "tar+gzip" | "tar+zstd" | "tar.gzip" | "tar.zstd" | "diff.tar") => None,
        Some(kind) if kind.contains("encrypted") => Some("it is encrypted"),
        None if media_type.contains("cosign") => Some("it is a signature and no layer of files"),
        None if media_type.contains("in-toto") => {
            Some("it is an attestation and no layer of files")
        }
        _ => Some("it is no layer of files"),
    }
}

/// Chooses from an index what runs on a platform.
pub(crate) fn select<'a>(
    image: &str,
    index: &'a [Descriptor],
    wanted: &Platform,
) -> Result<&'a Descriptor> {
    let best = index
        .iter()
        .filter_map(|descriptor| Some((wanted.distance_to(&descriptor.platform()?)?, descriptor)))
        // Of equals the first, as the image specification says.
        .min_by_key(|(distance, _)| *distance);
    if let Some((_, descriptor)) = best {
        return Ok(descriptor);
    }
    // A descriptor need not name a platform; then the configuration does, and is held against it.
    let mut unnamed = index
        .iter()
        .filter(|descriptor| descriptor.platform.is_none());
    if let (Some(only), None) = (unnamed.next(), unnamed.next()) {
        return Ok(only);
    }
    let mut available = index
        .iter()
        .filter_map(Descriptor::platform)
        // Attestations of BuildKit pretend to be images of this platform.
        .filter(|platform| platform.os != "unknown")
        .map(|platform| platform.to_string())
        .collect::<Vec<_>>();
    available.dedup();
    Err(Error::PlatformNotFound {
        image: image.to_owned(),
        wanted: wanted.to_string(),
        available,
    })
}

/// A layer to fetch and to unpack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layer {
    /// The digest of the compressed layer.
    pub(crate) digest: Digest,
    /// Its size in bytes, compressed.
    pub(crate) size: u64,
    /// The digest when decompressed.
    pub(crate) diff_id: Digest,
    /// The digest of it and all below it.
    pub(crate) chain_id: Digest,
}

/// Holds a configuration against its manifest and the platform, and returns it with the layers, bottom first.
pub(crate) fn combine(
    image: &str,
    config: &[u8],
    layers: &[Descriptor],
    wanted: &Platform,
    limits: &Limits,
) -> Result<(ImageConfiguration, Vec<Layer>)> {
    let invalid = |reason: String| Error::InvalidManifest {
        image: image.to_owned(),
        reason,
    };
    if layers.len() > limits.layers {
        return Err(Error::LimitExceeded {
            what: format!("{image} with {} layers", layers.len()),
            limit: "layers",
            maximum: limits.layers as u64,
        });
    }
    let configuration = serde_json::from_slice::<ImageConfiguration>(config)
        .map_err(|error| invalid(format!("its configuration is unreadable: {error}")))?;
    let offered = Platform::new(
        &configuration.os().to_string(),
        &configuration.architecture().to_string(),
        configuration.variant().as_deref(),
    );
    // The variant is left to the index: configurations often do without one.
    if offered.os != wanted.os || offered.architecture != wanted.architecture {
        return Err(Error::PlatformNotFound {
            image: image.to_owned(),
            wanted: wanted.to_string(),
            available: vec![offered.to_string()],
        });
    }
    let diff_ids = configuration
        .rootfs()
        .diff_ids()
        .iter()
        .map(|text| text.parse::<Digest>())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| invalid(format!("a diff_id is unreadable: {error}")))?;
    if diff_ids.len() != layers.len() {
        return Err(invalid(format!(
            "its configuration counts {} layers and its manifest {}",
            diff_ids.len(),
            layers.len()
        )));
    }
    let layers = layers
        .iter()
        .zip(chain_ids(&diff_ids))
        .zip(diff_ids)
        .map(|((descriptor, chain_id), diff_id)| Layer {
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            diff_id,
            chain_id,
        })
        .collect();
    Ok((configuration, layers))
}

/// Writes a manifest for an image that comes without one, as a `docker save` archive does.
pub(crate) fn synthesize(config: &[u8], layers: &[Descriptor]) -> Vec<u8> {
    let describe = |descriptor: &Descriptor| {
        serde_json::json!({
            "mediaType": descriptor.media_type,
            "digest": descriptor.digest,
            "size": descriptor.size,
        })
    };
    let config = Descriptor::new(OCI_CONFIG, Digest::of(config), config.len() as u64);
    serde_json::json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": describe(&config),
        "layers": layers.iter().map(describe).collect::<Vec<_>>(),
    })
    .to_string()
    .into_bytes()
}

/// The descriptor of a manifest that [`synthesize`] wrote.
pub(crate) fn synthesized(manifest: &[u8]) -> Descriptor {
    Descriptor::new(OCI_MANIFEST, Digest::of(manifest), manifest.len() as u64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn descriptor(media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": Digest::of(b""), "size": 0})
    }

    fn manifest(layer: &str) -> Value {
        json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(OCI_CONFIG), "layers": [descriptor(layer)]})
    }

    fn parse(value: &Value, promised: Option<&str>) -> Result<Document> {
        Document::parse("image", value.to_string().as_bytes(), promised)
    }

    #[test]
    fn documents_are_taken_for_what_they_are_or_refused() {
        const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
        let good = manifest(GZIP);
        let mut silent = good.clone();
        silent["mediaType"].take();
        let silent =
            json!({"schemaVersion": 2, "config": silent["config"], "layers": silent["layers"]});
        let index = json!({"schemaVersion": 2, "manifests": [descriptor(OCI_MANIFEST)]});
        let mut both = good.clone();
        both["manifests"] = json!([]);
        let mut artifact = good.clone();
        artifact["config"] = descriptor("application/vnd.oci.empty.v1+json");
        let mut traversal = good.clone();
        traversal["config"]["digest"] = json!("sha256:../../../etc/passwd");
        let mut negative = good.clone();
        negative["config"]["size"] = json!(-1);
        let table = [
            ("manifest", &good, Some(OCI_MANIFEST), true),
            (
                "parameters",
                &good,
                Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"),
                true,
            ),
            ("generic", &good, Some("application/json"), true),
            ("no content type", &good, None, true),
            ("no media type", &silent, None, true),
            ("announced", &silent, Some(DOCKER_MANIFEST), true),
            (
                "docker layer",
                &manifest("application/vnd.docker.image.rootfs.diff.tar.gzip"),
                None,
                true,
            ),
            ("index", &index, Some(OCI_INDEX), true),
            ("docker index", &index, Some(DOCKER_INDEX), true),
            ("index as manifest", &index, Some(OCI_MANIFEST), false),
            ("announced otherwise", &good, Some(OCI_INDEX), false),
            ("both", &both, None, false),
            ("artifact", &artifact, None, false),
            ("traversal", &traversal, None, false),
            ("negative", &negative, None, false),
            (
                "foreign",
                &manifest("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
                None,
                false,
            ),
            (
                "nondistributable",
                &manifest("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
                None,
                false,
            ),
            ("wasm", &manifest("application/wasm"), None, false),
            (
                "schema 1",
                &json!({"schemaVersion": 1, "fsLayers": []}),
                None,
                false,
            ),
            ("html", &json!("<html>"), None, false),
        ];
        for (name, value, promised, valid) in table {
            let document = parse(value, promised);
            assert_eq!(document.is_ok(), valid, "{name}: {document:?}");
        }
    }

    #[test]
    fn the_best_platform_of_an_index_is_chosen() {
        let entry = |platform: &str| {
            let parts = platform.split('/').collect::<Vec<_>>();
            let mut value = descriptor(OCI_MANIFEST);
            value["digest"] = json!(Digest::of(platform.as_bytes()));
            if !platform.is_empty() {
                value["platform"] =
                    json!({"os": parts[0], "architecture": parts[1], "variant": parts.get(2)});
            }
            value
        };
        let table: [(&[&str], &str, Option<&str>); 9] = [
            (
                &["linux/arm64/v8", "linux/amd64"],
                "linux/amd64",
                Some("linux/amd64"),
            ),
            (
                &["linux/arm64/v8", "linux/amd64"],
                "linux/arm64",
                Some("linux/arm64/v8"),
            ),
            (
                &["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"],
                "linux/arm/v6",
                Some("linux/arm/v6"),
            ),
            (
                &["linux/arm/v5", "linux/arm/v6"],
                "linux/arm/v7",
                Some("linux/arm/v6"),
            ),
            (&["linux/arm/v7"], "linux/arm/v6", None),
            (
                &["unknown/unknown", "linux/amd64"],
                "linux/amd64",
                Some("linux/amd64"),
            ),
            (&["windows/amd64"], "linux/amd64", None),
            (&[""], "linux/amd64", Some("")),
            (&[], "linux/amd64", None),
        ];
        for (entries, wanted, expected) in table {
            let manifests = entries
                .iter()
                .map(|platform| entry(platform))
                .collect::<Vec<_>>();
            let document =
                parse(&json!({"schemaVersion": 2, "manifests": manifests}), None).unwrap();
            let Document::Index(index) = document else {
                panic!("no index")
            };
            let chosen = select("image", &index, &wanted.parse().unwrap());
            let expected = expected.map(|platform| Digest::of(platform.as_bytes()));
            assert_eq!(
                chosen.as_ref().ok().map(|chosen| chosen.digest.clone()),
                expected,
                "{wanted} of {entries:?}"
            );
        }
    }

    #[test]
    fn what_is_available_is_said_without_attestations() {
        let platform = |os: &str, architecture: &str| json!({"mediaType": OCI_MANIFEST, "digest": Digest::of(b""), "size": 0, "platform": {"os": os, "architecture": architecture}});
        let index = json!({"schemaVersion": 2, "manifests": [platform("linux", "s390x"), platform("unknown", "unknown")]});
        let Document::Index(index) = parse(&index, None).unwrap() else {
            panic!("no index")
        };
        let error = select("image", &index, &Platform::new("linux", "amd64", None)).unwrap_err();
        assert!(
            matches!(&error, Error::PlatformNotFound { available, .. } if available == &["linux/s390x"]),
            "{error}"
        );
    }

    #[test]
    fn a_configuration_must_count_the_layers_of_its_manifest() {
        let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"")]}});
        let combine = |layers: usize, wanted: &str| {
            let layers = vec![Descriptor::new("", Digest::of(b""), 0); layers];
            let wanted = wanted.parse().unwrap();
            combine(
                "image",
                config.to_string().as_bytes(),
                &layers,
                &wanted,
                &Limits::default(),
            )
        };
        assert!(combine(1, "linux/amd64").is_ok());
        assert!(matches!(
            combine(2, "linux/amd64"),
            Err(Error::InvalidManifest { .. })
        ));
        assert!(matches!(
            combine(1, "linux/arm64"),
            Err(Error::PlatformNotFound { .. })
        ));
        assert!(matches!(
            combine(513, "linux/amd64"),
            Err(Error::LimitExceeded {
                limit: "layers",
                ..
            })
        ));
    }

    proptest::proptest! {
        #[test]
        fn reading_any_bytes_does_not_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ignored = Document::parse("image", &bytes, None);
        }
    }
}
