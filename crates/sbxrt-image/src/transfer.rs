//! Copies of images, from wherever they are to wherever they are wanted.
//!
//! ```text
//! Place ─ Supply ─┬─ Plan: documents and blobs, each once
//!                 └─ blobs, verified while they stream ─→ registry, layout, archive or directory
//! ```
//!
//! Blobs arrive bit for bit as they were, so digests stay; only an image of the store, whose layers are not kept as
//! they came, and a directory are put together first (see [`export`]). What makes an image visible, its manifest under
//! a tag, an `index.json` or the name of an archive, comes last. Memory is bounded, whatever the size of a layer.

mod export;
mod flatten;
mod plan;
mod supply;

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::mpsc::{Receiver, channel};

pub use self::plan::Choice;
use self::plan::Plan;
use self::supply::{Supply, expected};
use crate::archive_writer::ArchiveWriter;
use crate::blob::{Cancel, Expected, LayerStream, decode};
use crate::layout_writer::LayoutWriter;
use crate::manifest::{self, Descriptor};
use crate::pull::blocking;
use crate::registry::{Piece, Pushed, Registry};
use crate::{
    Digest, Error, Event, InvalidSource, LayerState, Limits, Platform, Progress, PullOptions,
    Result, Source, Store,
};

/// How many pieces may wait to be written.
const WAITING: usize = 8;

/// Where an image is copied from or to.
///
/// | text | meaning |
/// |---|---|
/// | `store:NAME` | an image of the store, by its name or the first digits of its digest; as a source only |
/// | anything else | what a [`Source`] is: a bare name is one in a registry |
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// An image of the store.
    Store(String),
    /// A registry, or files on this machine.
    Source(Source),
}

impl Place {
    /// Returns what an image can be copied to.
    ///
    /// # Errors
    ///
    /// [`Error::NotADestination`] for the store and for [`Source::Host`].
    pub fn as_destination(&self) -> Result<&Source> {
        match self {
            Self::Source(Source::Host) | Self::Store(_) => Err(Error::NotADestination {
                place: self.to_string(),
            }),
            Self::Source(destination) => Ok(destination),
        }
    }
}

impl FromStr for Place {
    type Err = InvalidSource;

    fn from_str(text: &str) -> Result<Self, InvalidSource> {
        match text.strip_prefix("store:") {
            Some(name) if !name.is_empty() => Ok(Self::Store(name.to_owned())),
            _ => text.parse().map(Self::Source),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(name) => write!(formatter, "store:{name}"),
            Self::Source(source) => source.fmt(formatter),
        }
    }
}

/// Says how to copy.
#[derive(Clone, Debug)]
pub struct CopyOptions {
    /// How to speak to the registry that is copied from, and the limits of what is copied.
    pub source: PullOptions,
    /// How to speak to the registry that is copied to.
    pub destination: PullOptions,
    /// Which of the images under a name are copied. Default: the one for this machine.
    pub choice: Choice,
    /// Whether a manifest in Docker's words stays so in an OCI layout, and with it its digest. Default: no, since the
    /// readers of layouts take only OCI's; blobs stay as they are in any case.
    pub preserve_digests: bool,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            source: PullOptions::default(),
            destination: PullOptions::default(),
            choice: Choice::Platform(Platform::host()),
            preserve_digests: false,
        }
    }
}

/// What was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// The digest of the manifest or index at the destination; none for a directory.
    pub digest: Option<Digest>,
    /// What that is.
    pub media_type: Option<String>,
    /// The configurations and layers.
    pub blobs: Vec<CopiedBlob>,
}

/// A blob of an image that was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// What it is.
    pub media_type: String,
    /// What had to be done for it.
    pub outcome: Outcome,
}

/// What had to be done for a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its bytes were carried over.
    Copied,
    /// It was there.
    Existed,
    /// The registry took it from another of its repositories.
    Mounted,
}

impl Store {
    /// Copies an image from one place to another. The store is used where an image of it is copied, and for what must
    /// lie on disk meanwhile.
    ///
    /// If the future is dropped, what is unfinished is removed.
    ///
    /// # Errors
    ///
    /// See [`Error`]; nothing of an image that failed can be seen at the destination.
    pub async fn copy(
        &self,
        from: &Place,
        to: &Place,
        options: &CopyOptions,
        progress: &dyn Progress,
    ) -> Result<Copied> {
        let destination = to.as_destination()?;
        if let Source::Directory(path) = destination {
            return flatten::copy(self, from, path, options, progress).await;
        }
        let compressed = !matches!(destination, Source::DockerArchive { .. });
        let exported = export::prepare(self, from, options, compressed).await?;
        let source = match (&exported, from) {
            (Some(exported), _) => exported.source(),
            (None, Place::Source(source)) => source.clone(),
            (None, Place::Store(name)) => return Err(Error::UnknownImage { name: name.clone() }),
        };
        let supply = Supply::open(&source, &options.source).await?;
        let name = from.to_string();
        let limits = &options.source.limits;
        // What was put together is one image, for whatever platform it is.
        let choice = match &exported {
            Some(_) => &Choice::All,
            None => &options.choice,
        };
        let mut plan = plan::make(&supply, &name, choice, limits).await?;
        if !options.preserve_digests
            && matches!(
                destination,
                Source::OciLayout { .. } | Source::OciArchive { .. }
            )
        {
            plan::translate(&mut plan);
        }
        progress.event(Event::Resolved {
            name: name.clone(),
            digest: plan.root().digest.clone(),
            layers: plan.blobs.len(),
            bytes: plan
                .blobs
                .iter()
                .fold(0, |sum, blob| sum.saturating_add(blob.size)),
        });
        let copying = Copying {
            supply,
            plan,
            name,
            limits: limits.clone(),
            parallel: options.source.parallel_layers.max(1),
            progress,
        };
        let outcomes = match destination {
            Source::Registry(reference) => {
                let registry = Registry::new(reference, &options.destination)?;
                copying.to_registry(&registry).await?
            }
            Source::OciLayout { path, tag } => copying.to_layout(path, tag.as_deref()).await?,
            Source::OciArchive { path, tag } => copying.to_archive(path, tag.as_deref()).await?,
            Source::DockerArchive { path, reference } => {
                copying
                    .to_docker_archive(path, reference.as_deref(), &options.choice)
                    .await?
            }
            Source::Directory(_) | Source::Host => Vec::new(),
        };
        Ok(copying.copied(outcomes))
    }
}

/// A copy whose plan is made.
struct Copying<'a> {
    supply: Supply,
    plan: Plan,
    name: String,
    limits: Limits,
    parallel: usize,
    progress: &'a dyn Progress,
}

impl Copying<'_> {
    fn copied(&self, outcomes: Vec<Outcome>) -> Copied {
        let root = self.plan.root();
        let blobs = self.plan.blobs.iter().zip(outcomes);
        Copied {
            digest: Some(root.digest.clone()),
            media_type: Some(root.media_type.clone()),
            blobs: blobs
                .map(|(blob, outcome)| CopiedBlob {
                    digest: blob.digest.clone(),
                    size: blob.size,
                    media_type: blob.media_type.clone(),
                    outcome,
                })
                .collect(),
        }
    }

    fn tell(&self, blob: &Descriptor, state: LayerState) {
        self.progress.event(Event::Layer {
            digest: blob.digest.clone(),
            size: blob.size,
            state,
        });
    }

    fn expected(&self, blob: &Descriptor) -> Expected {
        expected(&format!("blob {} of {}", blob.digest, self.name), blob)
    }

    /// Does the work for each blob, some at a time, and returns what came of them in their order.
    async fn each<F: Future<Output = Result<Outcome>>>(
        &self,
        parallel: usize,
        work: impl Fn(Descriptor) -> F,
    ) -> Result<Vec<Outcome>> {
        futures_util::stream::iter(self.plan.blobs.clone())
            .map(work)
            .buffered(parallel)
            .try_collect()
            .await
    }

    async fn to_registry(&self, registry: &Registry) -> Result<Vec<Outcome>> {
        let (host, repository) = registry.place();
        // To mount a blob from where it goes to would be to ask for what is not there.
        let mountable = self
            .supply
            .repository(host)
            .filter(|source| *source != repository);
        let target = registry.target(&self.plan.root().digest)?;
        let outcomes = self
            .each(self.parallel, |blob| async move {
                let expected = self.expected(&blob);
                if registry.has_blob(&blob.digest).await? {
                    self.tell(&blob, LayerState::Exists);
                    return Ok(Outcome::Existed);
                }
                self.tell(&blob, LayerState::Started);
                let advanced = |bytes| self.tell(&blob, LayerState::Advanced(bytes));
                let (supply, expected_ref, advanced) = (&self.supply, &expected, &advanced);
                let feed = move |offset, sink| -> futures_util::future::BoxFuture<'_, Result<()>> {
                    Box::pin(supply.feed(expected_ref, offset, sink, advanced))
                };
                let pushed = registry.push_blob(&expected, mountable, &feed).await?;
                self.tell(&blob, LayerState::Done);
                Ok(match pushed {
                    Pushed::Mounted => Outcome::Mounted,
                    Pushed::Sent => Outcome::Copied,
                })
            })
            .await?;
        let root = self.plan.documents.len().saturating_sub(1);
        for (index, document) in self.plan.documents.iter().enumerate() {
            let digest = document.digest.to_string();
            let name = if index == root { &target } else { &digest };
            registry
                .push_manifest(
                    name,
                    &document.media_type,
                    &document.bytes,
                    &document.digest,
                )
                .await?;
        }
        Ok(outcomes)
    }

    async fn to_layout(&self, path: &Path, tag: Option<&str>) -> Result<Vec<Outcome>> {
        let (opened, limits) = (path.to_owned(), self.limits.clone());
        let writer = blocking(&self.name, move || LayoutWriter::open(&opened, &limits)).await?;
        let writer = Arc::new(writer);
        let outcomes = self
            .each(self.parallel, |blob| {
                let writer = Arc::clone(&writer);
                async move {
                    if writer.has(&blob.digest, blob.size) {
                        self.tell(&blob, LayerState::Exists);
                        return Ok(Outcome::Existed);
                    }
                    let digest = blob.digest.clone();
                    self.receive(&blob, move |mut reader| writer.put(&digest, &mut reader))
                        .await?;
                    Ok(Outcome::Copied)
                }
            })
            .await?;
        let (documents, tag) = (self.plan.documents.clone(), tag.map(str::to_owned));
        blocking(&self.name, move || {
            let mut last = None;
            for document in documents {
                let size = document.bytes.len() as u64;
                if !writer.has(&document.digest, size) {
                    writer.put(&document.digest, &mut document.bytes.as_slice())?;
                }
                last = Some((document, size));
            }
            // All that shared it have ended.
            if let (Some(writer), Some((root, size))) = (Arc::into_inner(writer), last) {
                writer.commit(&root.digest, &root.media_type, size, tag.as_deref())?;
            }
            Ok(())
        })
        .await?;
        Ok(outcomes)
    }

    async fn to_archive(&self, path: &Path, tag: Option<&str>) -> Result<Vec<Outcome>> {
        let (documents, tag, path) = (
            self.plan.documents.clone(),
            tag.map(str::to_owned),
            path.to_owned(),
        );
        let mut archive = blocking(&self.name, move || {
            let mut archive = ArchiveWriter::create(&path)?;
            if let Some(root) = documents.last() {
                let size = root.bytes.len() as u64;
                archive.layout(&root.digest, &root.media_type, size, tag.as_deref())?;
            }
            for document in &documents {
                archive.bytes(&blob_name(&document.digest), &document.bytes)?;
            }
            Ok(archive)
        })
        .await?;
        for blob in &self.plan.blobs {
            let (name, size) = (blob_name(&blob.digest), blob.size);
            archive = self
                .receive(blob, move |mut reader| {
                    archive.file(&name, size, &mut reader)?;
                    Ok(archive)
                })
                .await?;
        }
        blocking(&self.name, move || archive.finish()).await?;
        Ok(vec![Outcome::Copied; self.plan.blobs.len()])
    }

    /// Writes what `docker load` reads: layers not compressed, under the digests by which the configuration knows them.
    async fn to_docker_archive(
        &self,
        path: &Path,
        reference: Option<&str>,
        choice: &Choice,
    ) -> Result<Vec<Outcome>> {
        let Some((config, layers)) = &self.plan.image else {
            return Err(Error::NotADestination {
                place: format!(
                    "docker-archive:{} (for more than one image)",
                    path.display()
                ),
            });
        };
        let config_bytes = self
            .supply
            .config(&format!("configuration of {}", self.name), config)
            .await?;
        let wanted = match choice {
            Choice::Platform(platform) => platform.clone(),
            Choice::All => platform_of(&self.name, &config_bytes)?,
        };
        let (_, layers) =
            manifest::combine(&self.name, &config_bytes, layers, &wanted, &self.limits)?;
        let (path, config_name) = (path.to_owned(), format!("{}.json", config.digest.hex()));
        let tags = reference.map(full_name).transpose()?;
        let list = serde_json::json!([{
            "Config": config_name,
            "RepoTags": tags.into_iter().collect::<Vec<_>>(),
            "Layers": layers
                .iter()
                .map(|layer| layer_name(&layer.diff_id))
                .collect::<Vec<_>>(),
        }])
        .to_string();
        let mut archive = blocking(&self.name, move || {
            let mut archive = ArchiveWriter::create(&path)?;
            archive.bytes("manifest.json", list.as_bytes())?;
            archive.bytes(&config_name, &config_bytes)?;
            Ok(archive)
        })
        .await?;
        for layer in &layers {
            let Some(blob) = self
                .plan
                .blobs
                .iter()
                .find(|blob| blob.digest == layer.digest)
            else {
                continue;
            };
            let (expected, diff_id) = (self.expected(blob), layer.diff_id.clone());
            let maximum = self.limits.decompressed_bytes(layer.size);
            archive = self
                .receive(blob, move |reader| {
                    decompress(&mut archive, reader, &expected, &diff_id, maximum)?;
                    Ok(archive)
                })
                .await?;
        }
        blocking(&self.name, move || archive.finish()).await?;
        Ok(vec![Outcome::Copied; self.plan.blobs.len()])
    }

    /// Lets a thread read a blob while it comes.
    async fn receive<T: Send + 'static>(
        &self,
        blob: &Descriptor,
        write: impl FnOnce(PieceReader) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let expected = self.expected(blob);
        self.tell(blob, LayerState::Started);
        let (sender, receiver) = channel(WAITING);
        let advanced = |bytes| self.tell(blob, LayerState::Advanced(bytes));
        let feeding = self.supply.feed(&expected, 0, sender, &advanced);
        let writing = blocking(&self.name, move || {
            write(PieceReader {
                receiver,
                present: Bytes::new(),
            })
        });
        let (fed, written) = futures_util::future::join(feeding, writing).await;
        // What is wrong with the blob is why it could not be written.
        fed?;
        let written = written?;
        self.tell(blob, LayerState::Done);
        Ok(written)
    }
}

/// Writes a layer into an archive as it is when decompressed: this thread writes what another one hashes and
/// decompresses.
fn decompress(
    archive: &mut ArchiveWriter,
    reader: PieceReader,
    expected: &Expected,
    diff_id: &Digest,
    maximum: u64,
) -> Result<()> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(4);
    let cancel = Cancel::default();
    let mut stream = LayerStream::new(receiver, diff_id.algorithm(), maximum, "ratio");
    let (decoded, written) = std::thread::scope(|scope| -> Result<_> {
        let (expected, cancel) = (expected, &cancel);
        let decoding = std::thread::Builder::new()
            .name("sbxrt-decode".to_owned())
            .spawn_scoped(scope, move || {
                decode(Box::new(reader), expected, cancel, &sender)
            })
            .map_err(|error| Error::io("start a thread for", expected.what.as_ref(), error))?;
        let written = archive
            .stream(&layer_name(diff_id), &mut stream)
            .and_then(|_| {
                stream
                    .finish()
                    .map_err(|error| Error::io("read", expected.what.as_ref(), error))
            });
        let decoded = decoding
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((decoded, written))
    })?;
    decoded?;
    let actual = written?;
    if actual != *diff_id {
        return Err(Error::DigestMismatch {
            what: format!("{} when decompressed", expected.what),
            expected: diff_id.clone(),
            actual,
        });
    }
    Ok(())
}

/// A blob, as a thread reads it while it comes.
#[derive(Debug)]
struct PieceReader {
    receiver: Receiver<Piece>,
    present: Bytes,
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !self.present.has_remaining() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.present = piece?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.present.len());
        self.present.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

fn layer_name(diff_id: &Digest) -> String {
    format!("{}.tar", diff_id.hex())
}

/// Returns a name as `docker load` wants it: in full and with a tag.
fn full_name(name: &str) -> Result<String> {
    match name.parse::<Source>()? {
        Source::Registry(reference) if reference.digest().is_none() => Ok(reference.whole()),
        _ => Err(Error::NotADestination {
            place: format!("docker-archive:…:{name}"),
        }),
    }
}

fn platform_of(name: &str, config: &[u8]) -> Result<Platform> {
    let config = serde_json::from_slice::<crate::ImageConfiguration>(config).map_err(|error| {
        Error::InvalidManifest {
            image: name.to_owned(),
            reason: error.to_string(),
        }
    })?;
    Ok(Platform::new(
        &config.os().to_string(),
        &config.architecture().to_string(),
        config.variant().as_deref(),
    ))
}

/// Returns a path that means the same from everywhere.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Error::io("resolve", path, error))
}
