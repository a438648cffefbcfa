//! Images that lie on this machine: an OCI layout, in a directory or in a tar file, and what `docker save` writes.
//!
//! They are held against the same digests as a registry's. A file that somebody else may write is no better than a
//! registry that somebody else runs.

use std::collections::HashMap;
use std::fmt::Debug;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::blob::{Arrival, Cancel, Expected, read_verified};
use crate::compression::is_compressed;
use crate::digest::Hasher;
use crate::manifest::{self, Descriptor, Document};
use crate::tarball::{Kind, Skip, TarError, Tarball};
use crate::{Algorithm, Digest, Error, Limits, Result, regular_file};

/// How many files an archive may hold: two for each layer would do.
const ARCHIVE_ENTRIES: usize = 100_000;

/// An image on this machine.
#[derive(Debug)]
pub(crate) struct Local {
    path: PathBuf,
    /// What it can be: several where it is for several platforms.
    pub(crate) index: Vec<Descriptor>,
    files: Files,
    /// What is not in a file but was written here.
    written: HashMap<Digest, Vec<u8>>,
    /// Where blobs lie that go by another name than their digest.
    named: HashMap<Digest, String>,
    manifest_bytes: u64,
}

/// Where the files of a layout are.
#[derive(Debug)]
enum Files {
    Directory(PathBuf),
    Archive(Archive),
}

impl Local {
    /// Opens a directory in OCI layout.
    pub(crate) fn layout(path: &Path, tag: Option<&str>, limits: &Limits) -> Result<Self> {
        Self::oci(path, Files::Directory(path.to_owned()), tag, limits)
    }

    /// Opens a tar file of an OCI layout.
    pub(crate) fn oci_archive(path: &Path, tag: Option<&str>, limits: &Limits) -> Result<Self> {
        Self::oci(
            path,
            Files::Archive(Archive::open(path, limits)?),
            tag,
            limits,
        )
    }

    fn oci(path: &Path, files: Files, tag: Option<&str>, limits: &Limits) -> Result<Self> {
        #[derive(Deserialize)]
        struct Marker {
            #[serde(rename = "imageLayoutVersion")]
            version: String,
        }
        let mut local = Self::new(path, files, limits);
        let refuse = |reason: String| Error::NotAnImage {
            path: path.to_owned(),
            expected: "an OCI layout",
            reason,
        };
        let marker = local
            .small("oci-layout")?
            .ok_or_else(|| refuse("it has no file oci-layout".to_owned()))?;
        let marker = serde_json::from_slice::<Marker>(&marker)
            .map_err(|error| refuse(format!("oci-layout: {error}")))?;
        if !marker.version.starts_with("1.") {
            return Err(refuse(format!(
                "its version {:?} is unknown",
                marker.version
            )));
        }
        let index = local
            .small("index.json")?
            .ok_or_else(|| refuse("it has no file index.json".to_owned()))?;
        let Document::Index(index) = Document::parse(&path.display().to_string(), &index, None)?
        else {
            return Err(refuse("index.json is no index".to_owned()));
        };
        local.index = choose(path, index, tag)?;
        Ok(local)
    }

    /// Opens what `docker save` wrote. It has no manifest by today's measure, so one is written.
    pub(crate) fn docker_archive(
        path: &Path,
        reference: Option<&str>,
        limits: &Limits,
    ) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Saved {
            config: String,
            #[serde(default)]
            repo_tags: Option<Vec<String>>,
            layers: Vec<String>,
        }
        let refuse = |reason: String| Error::NotAnImage {
            path: path.to_owned(),
            expected: "an archive of docker save",
            reason,
        };
        let mut local = Self::new(path, Files::Archive(Archive::open(path, limits)?), limits);
        let list = local
            .small("manifest.json")?
            .ok_or_else(|| refuse("it has no file manifest.json".to_owned()))?;
        let mut saved = serde_json::from_slice::<Vec<Saved>>(&list)
            .map_err(|error| refuse(format!("manifest.json: {error}")))?;
        let tags = saved
            .iter()
            .flat_map(|saved| saved.repo_tags.clone().unwrap_or_default())
            .collect::<Vec<_>>();
        if let Some(wanted) = reference {
            let full = |name: &str| {
                name.parse::<oci_spec::distribution::Reference>()
                    .map(|reference| reference.whole())
                    .ok()
            };
            saved.retain(|saved| {
                let tags = saved.repo_tags.as_deref().unwrap_or_default();
                tags.iter()
                    .any(|tag| tag == wanted || (full(tag).is_some() && full(tag) == full(wanted)))
            });
        }
        if saved.len() != 1 {
            let reason = match reference {
                Some(reference) => format!("it has no image {reference:?}"),
                None => format!("it has {} images", saved.len()),
            };
            return Err(Error::TagNotFound {
                path: path.to_owned(),
                reason,
                available: tags,
            });
        }
        let image = saved.remove(0);
        if image.layers.len() > limits.layers {
            return Err(Error::LimitExceeded {
                what: path.display().to_string(),
                limit: "layers",
                maximum: limits.layers as u64,
            });
        }
        let config = local
            .small(&image.config)?
            .ok_or_else(|| refuse(format!("it has no file {:?}", image.config)))?;
        let config_digest = Digest::of(&config);
        // The name is the digest in all archives but the very old ones.
        let stem = image
            .config
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .trim_end_matches(".json");
        if let Ok(expected) = format!("sha256:{stem}").parse::<Digest>()
            && expected != config_digest
        {
            return Err(Error::DigestMismatch {
                what: format!("configuration in {}", path.display()),
                expected,
                actual: config_digest,
            });
        }
        let mut layers = Vec::new();
        for name in &image.layers {
            let section = local
                .files
                .open(name)?
                .ok_or_else(|| refuse(format!("it has no file {name:?}")))?;
            // Compressed or not, the bytes are hashed as they are here and once more when they are unpacked; what
            // decides is the diff_id of the configuration.
            let (digest, size, start) =
                hash(section).map_err(|error| Error::io("read", path, error))?;
            let media_type = if is_compressed(&start) {
                "application/vnd.oci.image.layer.v1.tar+gzip"
            } else {
                "application/vnd.oci.image.layer.v1.tar"
            };
            local.named.insert(digest.clone(), name.clone());
            layers.push(Descriptor::new(media_type, digest, size));
        }
        let manifest = manifest::synthesize(&config, &layers);
        let descriptor = manifest::synthesized(&manifest);
        local.written.insert(config_digest, config);
        local.written.insert(descriptor.digest.clone(), manifest);
        local.index = vec![descriptor];
        Ok(local)
    }

    fn new(path: &Path, files: Files, limits: &Limits) -> Self {
        Self {
            path: path.to_owned(),
            index: Vec::new(),
            files,
            written: HashMap::new(),
            named: HashMap::new(),
            manifest_bytes: limits.manifest_bytes,
        }
    }

    /// Reads a manifest or configuration as a whole.
    pub(crate) fn document(&self, expected: &Expected) -> Result<Vec<u8>> {
        if expected.size > self.manifest_bytes {
            return Err(self.too_large(&expected.what));
        }
        read_verified(self.blob(&expected.digest)?, expected, &Cancel::default())
    }

    /// Opens a blob, which whoever reads it must verify.
    pub(crate) fn blob(&self, digest: &Digest) -> Result<Arrival> {
        if let Some(bytes) = self.written.get(digest) {
            return Ok(Box::new(io::Cursor::new(bytes.clone())));
        }
        let name = match self.named.get(digest) {
            Some(name) => name.clone(),
            None => format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex()),
        };
        self.files.open(&name)?.ok_or_else(|| Error::NotAnImage {
            path: self.path.clone(),
            expected: "complete",
            reason: format!("it has no blob {digest}"),
        })
    }

    /// Reads a file that has no digest; `None` where there is none.
    fn small(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.files.open(name)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(self.manifest_bytes.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| Error::io("read", &self.path.join(name), error))?;
        if bytes.len() as u64 > self.manifest_bytes {
            return Err(self.too_large(name));
        }
        Ok(Some(bytes))
    }

    fn too_large(&self, what: &str) -> Error {
        Error::LimitExceeded {
            what: format!("{what} in {}", self.path.display()),
            limit: "manifest_bytes",
            maximum: self.manifest_bytes,
        }
    }
}

/// Chooses from a layout's index what a tag names.
fn choose(path: &Path, index: Vec<Descriptor>, tag: Option<&str>) -> Result<Vec<Descriptor>> {
    let tags = index
        .iter()
        .filter_map(|descriptor| descriptor.ref_name().map(str::to_owned))
        .collect::<Vec<_>>();
    let failed = |reason: String| Error::TagNotFound {
        path: path.to_owned(),
        reason,
        available: tags.clone(),
    };
    match tag {
        Some(tag) => {
            let chosen = index
                .into_iter()
                .filter(|descriptor| descriptor.ref_name() == Some(tag))
                .collect::<Vec<_>>();
            if chosen.is_empty() {
                Err(failed(format!("it has no tag {tag:?}")))
            } else {
                Ok(chosen)
            }
        }
        // Without a tag they may still be one image, for several platforms.
        None if tags.windows(2).any(|pair| pair[0] != pair[1]) => {
            Err(failed("it has several images".to_owned()))
        }
        None if index.is_empty() => Err(failed("it has no image".to_owned())),
        None => Ok(index),
    }
}

/// Reads all of a stream; returns its digest, its size and how it begins.
fn hash(mut reader: impl Read) -> io::Result<(Digest, u64, Vec<u8>)> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut start = Vec::new();
    let mut size = 0;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finish(), size, start)),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let missing = 4_usize.saturating_sub(start.len()).min(read);
        start.extend_from_slice(&buffer[..missing]);
        hasher.update(&buffer[..read]);
        size += read as u64;
    }
}

impl Files {
    /// Opens a file of the layout; `None` where there is none.
    fn open(&self, name: &str) -> Result<Option<Arrival>> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(name);
                match regular_file::open(&path) {
                    Ok(file) => Ok(Some(Box::new(file))),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(Error::io("open", &path, error)),
                }
            }
            Self::Archive(archive) => Ok(archive.open_file(name)),
        }
    }
}

/// A tar file, with the places of the files in it.
#[derive(Debug)]
struct Archive {
    file: Arc<File>,
    files: HashMap<String, (u64, u64)>,
    /// `docker save` once wrote layers that occur twice as links.
    links: HashMap<String, String>,
}

impl Archive {
    fn open(path: &Path, limits: &Limits) -> Result<Self> {
        let refuse = |reason: String| Error::NotAnImage {
            path: path.to_owned(),
            expected: "a tar archive",
            reason,
        };
        let failed = |error: io::Error| Error::io("read", path, error);
        let metadata = std::fs::metadata(path).map_err(|error| Error::io("open", path, error))?;
        if !metadata.is_file() {
            return Err(refuse("it is no file".to_owned()));
        }
        let mut file = regular_file::open(path).map_err(|error| Error::io("open", path, error))?;
        let mut start = Vec::new();
        file.by_ref()
            .take(4)
            .read_to_end(&mut start)
            .map_err(failed)?;
        if is_compressed(&start) {
            return Err(refuse(
                "it is compressed as a whole; decompress it first".to_owned(),
            ));
        }
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let shared = Arc::new(file.try_clone().map_err(failed)?);
        let mut archive = Self {
            file: shared,
            files: HashMap::new(),
            links: HashMap::new(),
        };
        let mut tarball = Tarball::new(BufReader::with_capacity(4096, file), limits.header_bytes);
        loop {
            let entry = match tarball.next_entry() {
                Ok(Some(entry)) => entry,
                Ok(None) => return Ok(archive),
                Err(TarError::Io(error)) => return Err(failed(error)),
                Err(TarError::Damaged(reason)) => return Err(refuse(reason)),
                Err(TarError::HeaderTooLarge) => {
                    return Err(Error::LimitExceeded {
                        what: path.display().to_string(),
                        limit: "header_bytes",
                        maximum: limits.header_bytes,
                    });
                }
            };
            if archive.files.len() + archive.links.len() >= ARCHIVE_ENTRIES {
                return Err(Error::LimitExceeded {
                    what: path.display().to_string(),
                    limit: "entries",
                    maximum: ARCHIVE_ENTRIES as u64,
                });
            }
            let name = normal("", &String::from_utf8_lossy(&entry.path));
            let link = String::from_utf8_lossy(&entry.link).into_owned();
            match entry.kind {
                Kind::File if entry.sparse.is_none() => {
                    archive.files.insert(name, (tarball.offset(), entry.stored));
                }
                Kind::HardLink => {
                    archive.links.insert(name, normal("", &link));
                }
                Kind::Symlink => {
                    let parent = name
                        .rsplit_once('/')
                        .map_or("", |(parent, _)| parent)
                        .to_owned();
                    archive.links.insert(name, normal(&parent, &link));
                }
                _ => {}
            }
        }
    }

    fn open_file(&self, name: &str) -> Option<Arrival> {
        let mut name = normal("", name);
        // One link is all that was ever written; two cannot go round in a circle for long.
        for _ in 0..2 {
            if let Some((offset, size)) = self.files.get(&name) {
                return Some(Box::new(Section {
                    file: Arc::clone(&self.file),
                    offset: *offset,
                    left: *size,
                }));
            }
            name.clone_from(self.links.get(&name)?);
        }
        None
    }
}

/// Returns a name within an archive in normal form, relative to a directory in it.
fn normal(directory: &str, name: &str) -> String {
    let mut parts = Vec::new();
    for part in directory.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A file within an archive.
#[derive(Debug)]
struct Section {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let read = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Skip for BufReader<File> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let Ok(bytes) = i64::try_from(bytes) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        self.seek_relative(bytes)
    }
}
