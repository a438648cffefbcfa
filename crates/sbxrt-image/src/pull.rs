//! A pull, from a source to an image in the store.
//!
//! The reference is resolved once; then there are only digests. Each layer goes through one pass (see
//! [`blob`](crate::blob)), a few of them at the same time, and is put into its place as soon as it is verified. The
//! record of the image comes last, so an image is found whole or not at all.
//!
//! A layer is unpacked on threads that block. They own what they make, so nothing stays behind if the future is
//! dropped: the channel that feeds them closes or the flag that they heed is set, they fail, and they clean up.

use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use oci_spec::image::ImageConfiguration;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep};

use crate::blob::{Arrival, Cancel, Expected, LayerStream, NetworkReader, decode};
use crate::layout::Local;
use crate::manifest::{self, Descriptor, Document, Layer};
use crate::registry::{Fetched, Registry};
use crate::scratch::Scratch;
use crate::store::{self, Access, Record, Stamp, StoreLock};
use crate::tarball::Tarball;
use crate::unpack::Unpacker;
use crate::{
    Digest, Error, Event, Image, LayerState, Limits, Progress, PullOptions, Result, Source, Store,
};

/// How many chunks of the network may wait to be decompressed, and how many pieces to be unpacked: some MiB in all. A
/// chunk grows to half a MiB where the network is fast.
const WAITING_CHUNKS: usize = 8;
const WAITING_PIECES: usize = 4;

/// How long another process may take over a layer that this one needs too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3600);
/// How long another process may take to remove images.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const POLL: Duration = Duration::from_millis(50);

/// More permits than there are threads: to take all of them is to wait until no thread has one.
const THREADS: u32 = 1024;

/// Pulls an image whose source is a registry, a layout or an archive.
pub(crate) async fn pull(
    store: &Store,
    source: &Source,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<Image> {
    let name = source.to_string();
    let mut documents = Documents {
        store,
        lock: Some(lock(store).await?),
        put: Mutex::default(),
    };
    // Before anything is read: if the file changes meanwhile, the record does not match it and it is read anew.
    let stamp = Stamp::of(source);
    let swept = store.clone();
    blocking(&name, move || swept.sweep()).await?;
    let origin = Origin::open(source, options).await?;
    let resolved = resolve(&documents, &origin, &name, options).await?;
    progress.event(Event::Resolved {
        name: name.clone(),
        digest: resolved.digest.clone(),
        layers: resolved.layers.len(),
        bytes: resolved
            .layers
            .iter()
            .fold(0, |sum, layer| sum.saturating_add(layer.size)),
    });
    let pulling = Pulling {
        store: store.clone(),
        origin,
        layers: resolved.layers.clone(),
        limits: options.limits.clone(),
        name: name.clone(),
        progress,
        finished: resolved
            .layers
            .iter()
            .map(|_| watch::Sender::new(false))
            .collect(),
        cancel: CancelOnDrop::default(),
        threads: Arc::new(Semaphore::new(THREADS as usize)),
    };
    let fetched = futures_util::stream::iter(0..pulling.layers.len())
        .map(|index| pulling.layer(index))
        .buffer_unordered(options.parallel_layers.max(1))
        .try_collect::<Vec<()>>()
        .await;
    if let Err(error) = fetched {
        pulling.cancel.0.cancel();
        // They clean up: when the caller sees the error there is nothing left.
        drop(pulling.threads.acquire_many(THREADS).await);
        return Err(error);
    }
    let store = store.clone();
    let wanted = options.platform.clone();
    let what = name.clone();
    let image = blocking(&what, move || {
        record(&store, name, &wanted, resolved, stamp)
    })
    .await?;
    documents.keep();
    Ok(image)
}

/// Keeps an image whose layers are all in place.
fn record(
    store: &Store,
    name: String,
    wanted: &crate::Platform,
    resolved: Resolved,
    stamp: Option<Stamp>,
) -> Result<Image> {
    store.put_blob(&resolved.config_digest, &resolved.config_bytes)?;
    store.put_blob(&resolved.digest, &resolved.manifest_bytes)?;
    let mut size = 0_u64;
    let mut hidden_layers = 0;
    for (index, layer) in resolved.layers.iter().enumerate() {
        if let Some(layer) = store.layer(&layer.chain_id) {
            size = size.saturating_add(layer.size);
            if layer.opaque {
                hidden_layers = index;
            }
        }
    }
    let platform = crate::Platform::new(
        &resolved.config.os().to_string(),
        &resolved.config.architecture().to_string(),
        resolved.config.variant().as_deref(),
    );
    let record = Record {
        name,
        digest: resolved.digest,
        config_digest: resolved.config_digest,
        platform,
        size,
        layers: resolved
            .layers
            .into_iter()
            .map(|layer| layer.chain_id)
            .collect(),
        hidden_layers,
        config: resolved.config,
        stamp,
    };
    store.put_image(wanted, record)
}

/// Takes the lock that keeps layers from being removed while an image is put together from them.
async fn lock(store: &Store) -> Result<StoreLock> {
    let deadline = Instant::now() + REMOVAL_PATIENCE;
    loop {
        match store.lock(Access::Pull) {
            Err(Error::Busy { .. }) if Instant::now() < deadline => sleep(POLL).await,
            other => return other,
        }
    }
}

/// Where the blobs of an image come from.
#[derive(Debug)]
enum Origin {
    Registry(Box<Registry>),
    Local(Arc<Local>),
}

impl Origin {
    async fn open(source: &Source, options: &PullOptions) -> Result<Self> {
        if let Source::Registry(reference) = source {
            return Ok(Self::Registry(Box::new(Registry::new(reference, options)?)));
        }
        let (opened, limits) = (source.clone(), options.limits.clone());
        let what = source.to_string();
        let local = blocking(&what, move || match &opened {
            Source::OciLayout { path, tag } => Local::layout(path, tag.as_deref(), &limits),
            Source::OciArchive { path, tag } => Local::oci_archive(path, tag.as_deref(), &limits),
            Source::DockerArchive { path, reference } => {
                Local::docker_archive(path, reference.as_deref(), &limits)
            }
            Source::Registry(_) | Source::Directory(_) | Source::Host => Err(Error::UnknownImage {
                name: opened.to_string(),
            }),
        });
        Ok(Self::Local(Arc::new(local.await?)))
    }

    /// Fetches a manifest that an index names.
    async fn child(&self, what: &str, descriptor: &Descriptor) -> Result<Fetched> {
        match self {
            Self::Registry(registry) => registry.child(descriptor).await,
            Self::Local(_) => Ok(Fetched {
                bytes: self.config(what, descriptor).await?,
                digest: descriptor.digest.clone(),
                media_type: None,
            }),
        }
    }

    async fn config(&self, what: &str, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let expected = Expected {
            what: what.to_owned(),
            digest: descriptor.digest.clone(),
            size: descriptor.size,
        };
        match self {
            Self::Registry(registry) => registry.config(&expected).await,
            Self::Local(local) => {
                let local = Arc::clone(local);
                blocking(what, move || local.document(&expected)).await
            }
        }
    }
}

/// The manifests and configurations that a pull puts into the store. They go again if it comes to nothing.
#[derive(Debug)]
struct Documents<'a> {
    store: &'a Store,
    lock: Option<StoreLock>,
    put: Mutex<Vec<Digest>>,
}

impl Documents<'_> {
    /// Gets a document that nobody else need get while we do: from the store where it is there, else from where it is.
    async fn get(
        &self,
        Descriptor { digest, size, .. }: &Descriptor,
        fetch: impl AsyncFnOnce() -> Result<Vec<u8>>,
    ) -> Result<Vec<u8>> {
        // One who states another size is to hear of it.
        let stored = || {
            let blob = self.store.blob(digest);
            blob.filter(|bytes| bytes.len() as u64 == *size)
        };
        let mut waiting = self.store.claim(&format!("blob-{}", digest.hex()));
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(bytes) = stored() {
                return Ok(bytes);
            }
            let claim = waiting.attempt()?;
            if claim.is_some() || Instant::now() > deadline {
                // It may have come while the claim was not ours.
                if let Some(bytes) = stored() {
                    return Ok(bytes);
                }
                let bytes = fetch().await?;
                let put = self.put.lock();
                put.unwrap_or_else(PoisonError::into_inner)
                    .push(digest.clone());
                self.store.put_blob(digest, &bytes)?;
                drop(claim);
                return Ok(bytes);
            }
            sleep(POLL).await;
        }
    }

    /// They belong to an image now.
    fn keep(&mut self) {
        let put = self.put.get_mut();
        put.unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Documents<'_> {
    fn drop(&mut self) {
        drop(self.lock.take());
        let put = self.put.get_mut();
        let put = put.unwrap_or_else(PoisonError::into_inner);
        if put.is_empty() {
            return;
        }
        // Others who pull may have them from us; then they stay until a collection finds that nobody needs them.
        if let Err(error) = self.store.forget(put) {
            tracing::debug!(%error, "documents of a pull that failed stay behind");
        }
    }
}

/// An image, as its documents describe it.
#[derive(Debug)]
struct Resolved {
    digest: Digest,
    manifest_bytes: Vec<u8>,
    config_digest: Digest,
    config_bytes: Vec<u8>,
    config: ImageConfiguration,
    layers: Vec<Layer>,
}

/// Goes from the reference to the manifest for the platform and reads what it says.
async fn resolve(
    documents: &Documents<'_>,
    origin: &Origin,
    name: &str,
    options: &PullOptions,
) -> Result<Resolved> {
    // The index of a layout is its table of contents and does not count.
    let mut depth_left =
        options.limits.index_depth + usize::from(matches!(origin, Origin::Local(_)));
    let (mut fetched, mut document) = match origin {
        Origin::Registry(registry) => {
            let fetched = registry.root().await?;
            let document = Document::parse(name, &fetched.bytes, fetched.media_type.as_deref())?;
            (Some(fetched), document)
        }
        Origin::Local(local) => (None, Document::Index(local.index.clone())),
    };
    loop {
        match (fetched.take(), document) {
            (Some(fetched), Document::Manifest { config, layers }) => {
                let config_bytes = documents
                    .get(&config, async || {
                        origin
                            .config(&format!("configuration of {name}"), &config)
                            .await
                    })
                    .await?;
                let (configuration, layers) = manifest::combine(
                    name,
                    &config_bytes,
                    &layers,
                    &options.platform,
                    &options.limits,
                )?;
                return Ok(Resolved {
                    digest: fetched.digest,
                    manifest_bytes: fetched.bytes,
                    config_digest: config.digest,
                    config_bytes,
                    config: configuration,
                    layers,
                });
            }
            (_, Document::Index(index)) => {
                depth_left = depth_left
                    .checked_sub(1)
                    .ok_or_else(|| Error::LimitExceeded {
                        what: format!("the indexes of {name}"),
                        limit: "index_depth",
                        maximum: options.limits.index_depth as u64,
                    })?;
                let chosen = manifest::select(name, &index, &options.platform)?;
                let mut media_type = None;
                let bytes = documents
                    .get(chosen, async || {
                        let fetched = origin.child(&format!("manifest of {name}"), chosen).await?;
                        media_type = fetched.media_type;
                        Ok(fetched.bytes)
                    })
                    .await?;
                // What the index says counts as much as what the registry says; one of the two is enough to be held
                // against.
                if !chosen.media_type.is_empty() {
                    media_type = Some(chosen.media_type.clone());
                }
                let next = Fetched {
                    bytes,
                    digest: chosen.digest.clone(),
                    media_type,
                };
                document = Document::parse(name, &next.bytes, next.media_type.as_deref())?;
                fetched = Some(next);
            }
            (None, Document::Manifest { .. }) => {
                return Err(Error::InvalidManifest {
                    image: name.to_owned(),
                    reason: "its index is a manifest".to_owned(),
                });
            }
        }
    }
}

/// Cancels what works for a pull when the pull is dropped.
#[derive(Debug, Default)]
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// A pull that has come to its layers.
struct Pulling<'a> {
    store: Store,
    origin: Origin,
    layers: Vec<Layer>,
    limits: Limits,
    /// The image, for messages.
    name: String,
    progress: &'a dyn Progress,
    /// For each layer, whether it is in its place.
    finished: Vec<watch::Sender<bool>>,
    cancel: CancelOnDrop,
    threads: Arc<Semaphore>,
}

impl Pulling<'_> {
    /// Puts a layer into its place, if it is not there.
    async fn layer(&self, index: usize) -> Result<()> {
        let layer = &self.layers[index];
        match self.claim(layer).await? {
            None => self.tell(layer, LayerState::Exists),
            Some(scratch) => {
                self.tell(layer, LayerState::Started);
                self.fetch(index, scratch).await?;
                self.tell(layer, LayerState::Done);
            }
        }
        self.finished[index].send_replace(true);
        Ok(())
    }

    /// Returns the directory to make a layer in; `None` where it is in its place, perhaps by another process's work.
    async fn claim(&self, layer: &Layer) -> Result<Option<Scratch>> {
        let mut waiting = self.store.claim(&format!("layer-{}", layer.chain_id.hex()));
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.store.layer(&layer.chain_id).is_some() {
                return Ok(None);
            }
            if let Some(claim) = waiting.attempt()? {
                // It may have come while the claim was not ours.
                if self.store.layer(&layer.chain_id).is_some() {
                    return Ok(None);
                }
                return Scratch::claimed(&self.store.tmp(), "layer", claim).map(Some);
            }
            if Instant::now() > deadline {
                return Err(Error::Busy {
                    path: waiting.path().to_owned(),
                });
            }
            sleep(POLL).await;
        }
    }

    /// Gets a layer, verifies and unpacks it.
    async fn fetch(&self, index: usize, scratch: Scratch) -> Result<()> {
        let layer = self.layers[index].clone();
        let expected = Expected {
            what: format!("layer {} of {}", layer.digest, self.name),
            digest: layer.digest.clone(),
            size: layer.size,
        };
        let what = expected.what.clone();
        let work = |arrival: Box<dyn FnOnce() -> Result<Arrival> + Send>| {
            let (expected, layer, limits) = (expected.clone(), layer.clone(), self.limits.clone());
            let cancel = self.cancel.0.clone();
            self.thread(&what, move || {
                unpack(
                    scratch,
                    arrival()?,
                    &expected,
                    &layer,
                    index == 0,
                    &limits,
                    &cancel,
                )
            })
        };
        let unpacked = match &self.origin {
            Origin::Registry(registry) => {
                let (sender, receiver) = tokio::sync::mpsc::channel(WAITING_CHUNKS);
                let unpacking = work(Box::new(move || Ok(Box::new(NetworkReader::new(receiver)))));
                let advanced = |bytes| self.tell(&layer, LayerState::Advanced(bytes));
                let feeding = async {
                    let fed = registry.layer(&expected, sender, &advanced).await;
                    if fed.is_ok() {
                        self.tell(&layer, LayerState::Unpacking);
                    }
                    fed
                };
                let (fed, unpacked) = futures_util::future::join(feeding, unpacking).await;
                // What ended the stream is the cause; that the stream ended is what the other side saw of it.
                fed.and(unpacked)?
            }
            Origin::Local(local) => {
                let (local, digest) = (Arc::clone(local), layer.digest.clone());
                let unpacking = work(Box::new(move || local.blob(&digest)));
                self.tell(&layer, LayerState::Unpacking);
                unpacking.await?
            }
        };
        let lower = if unpacked.unpacker.needs_lower() {
            for below in &self.finished[..index] {
                let mut below = below.subscribe();
                let waited = below.wait_for(|finished| *finished).await;
                waited.map_err(|_closed| Error::Cancelled { what: what.clone() })?;
            }
            let below = self.layers[..index].iter().rev();
            below
                .map(|layer| self.store.layer_path(&layer.chain_id).join("fs"))
                .collect()
        } else {
            Vec::new()
        };
        let store = self.store.clone();
        self.thread(&expected.what, move || {
            finish(&store, unpacked, &layer, &lower)
        })
        .await
    }

    /// Runs something that blocks on a thread that the pull waits for before it fails.
    async fn thread<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let permit = Arc::clone(&self.threads).acquire_owned().await;
        // The permit comes with the result: where nobody waits for it any more, what it holds is dropped first.
        let (done, permit) = blocking(what, move || Ok((work(), permit))).await?;
        drop(permit);
        done
    }

    fn tell(&self, layer: &Layer, state: LayerState) {
        self.progress.event(Event::Layer {
            digest: layer.digest.clone(),
            size: layer.size,
            state,
        });
    }
}

/// A layer that is verified and unpacked but not in its place.
#[derive(Debug)]
struct Unpacked {
    unpacker: Unpacker,
    directory: PathBuf,
    scratch: Scratch,
}

/// Verifies and unpacks a layer in one pass: this thread unpacks what another one hashes and decompresses.
fn unpack(
    scratch: Scratch,
    arrival: Arrival,
    expected: &Expected,
    layer: &Layer,
    is_lowest: bool,
    limits: &Limits,
    cancel: &Cancel,
) -> Result<Unpacked> {
    let directory = scratch.path().join("layer");
    std::fs::create_dir(&directory).map_err(|error| Error::io("create", &directory, error))?;
    let mut unpacker = Unpacker::new(&directory, &layer.digest, is_lowest, limits)?;
    let maximum = limits.decompressed_bytes(layer.size);
    let limit = if maximum == limits.layer_bytes {
        "layer_bytes"
    } else {
        "ratio"
    };
    let (sender, receiver) = sync_channel(WAITING_PIECES);
    let (decoded, unpacked) = std::thread::scope(|scope| -> Result<_> {
        let decoding = std::thread::Builder::new()
            .name("sbxrt-decode".to_owned())
            .spawn_scoped(scope, move || decode(arrival, expected, cancel, &sender))
            .map_err(|error| Error::io("start a thread for", expected.what.as_ref(), error))?;
        let stream = LayerStream::new(receiver, layer.diff_id.algorithm(), maximum, limit);
        let unpacked = unpack_stream(&mut unpacker, stream, layer, limits);
        let decoded = decoding
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((decoded, unpacked))
    })?;
    // What is wrong with the blob explains what is wrong with the stream.
    decoded?;
    let actual = unpacked?;
    if actual != layer.diff_id {
        return Err(Error::DigestMismatch {
            what: format!("layer {} when decompressed", layer.digest),
            expected: layer.diff_id.clone(),
            actual,
        });
    }
    Ok(Unpacked {
        unpacker,
        directory,
        scratch,
    })
}

/// Unpacks a stream and returns the digest of all of it, whatever follows the archive in it.
fn unpack_stream(
    unpacker: &mut Unpacker,
    stream: LayerStream,
    layer: &Layer,
    limits: &Limits,
) -> Result<Digest> {
    let mut tarball = Tarball::new(stream, limits.header_bytes);
    unpacker.unpack(&mut tarball)?;
    let finished = tarball.into_inner().finish();
    finished.map_err(|error| match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => Error::io("read", layer.digest.to_string().as_ref(), error),
    })
}

/// Finishes a layer that is verified and puts it into its place.
fn finish(store: &Store, unpacked: Unpacked, layer: &Layer, lower: &[PathBuf]) -> Result<()> {
    let summary = unpacked.unpacker.finish(lower)?;
    let description = store::Layer {
        diff_id: layer.diff_id.clone(),
        size: summary.bytes,
        opaque: summary.opaque,
        made_here: false,
    };
    let path = unpacked.directory.join("layer.json");
    let bytes =
        serde_json::to_vec(&description).map_err(|error| Error::io("write", &path, error))?;
    std::fs::write(&path, bytes).map_err(|error| Error::io("write", &path, error))?;
    store.publish(&unpacked.directory, &layer.chain_id)?;
    drop(unpacked.scratch);
    Ok(())
}

/// Runs something that blocks where it may.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down.
            Err(_) => Err(Error::Cancelled {
                what: what.to_owned(),
            }),
        },
    }
}
