//! Where a copy takes documents and blobs from: a registry, or files on this machine.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::{Sender, channel};

use super::blocking;
use crate::blob::Expected;
use crate::digest::Hasher;
use crate::layout::Local;
use crate::manifest::Descriptor;
use crate::registry::{Piece, Registry};
use crate::{Digest, Error, PullOptions, Result, Source};

/// How much is read from a file at a time.
const PIECE: usize = 256 << 10;
/// How many pieces may wait to be hashed.
const WAITING: usize = 4;

/// A manifest or an index, as it is.
#[derive(Clone, Debug)]
pub(super) struct RawDocument {
    pub(super) bytes: Vec<u8>,
    pub(super) digest: Digest,
    /// What was said about it before it was read.
    pub(super) media_type: Option<String>,
}

/// What a name leads to.
#[derive(Debug)]
pub(super) enum Root {
    Document(RawDocument),
    /// What a layout has under the name: usually one, and nothing that has a digest of its own.
    Entries(Vec<Descriptor>),
}

/// Where documents and blobs come from.
#[derive(Debug)]
pub(super) enum Supply {
    Registry(Box<Registry>),
    Local(Arc<Local>),
}

impl Supply {
    pub(super) async fn open(source: &Source, options: &PullOptions) -> Result<Self> {
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
            other => Err(Error::UnknownImage {
                name: other.to_string(),
            }),
        });
        Ok(Self::Local(Arc::new(local.await?)))
    }

    pub(super) async fn root(&self) -> Result<Root> {
        match self {
            Self::Registry(registry) => {
                let fetched = registry.root().await?;
                Ok(Root::Document(RawDocument {
                    bytes: fetched.bytes,
                    digest: fetched.digest,
                    media_type: fetched.media_type,
                }))
            }
            Self::Local(local) => Ok(Root::Entries(local.index.clone())),
        }
    }

    /// Reads a manifest or an index that another one names.
    pub(super) async fn document(
        &self,
        what: &str,
        descriptor: &Descriptor,
    ) -> Result<RawDocument> {
        let bytes = match self {
            Self::Registry(registry) => registry.child(descriptor).await?.bytes,
            Self::Local(local) => {
                let (local, expected) = (Arc::clone(local), expected(what, descriptor));
                blocking(what, move || local.document(&expected)).await?
            }
        };
        Ok(RawDocument {
            bytes,
            digest: descriptor.digest.clone(),
            media_type: Some(descriptor.media_type.clone()).filter(|text| !text.is_empty()),
        })
    }

    /// Reads a configuration.
    pub(super) async fn config(&self, what: &str, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let expected = expected(what, descriptor);
        match self {
            Self::Registry(registry) => registry.config(&expected).await,
            Self::Local(local) => {
                let local = Arc::clone(local);
                blocking(what, move || local.document(&expected)).await
            }
        }
    }

    /// Returns the repository that a blob could be mounted from in a registry.
    pub(super) fn repository(&self, registry: &str) -> Option<&str> {
        match self {
            Self::Registry(own) => {
                let (name, repository) = own.place();
                (name == registry).then_some(repository)
            }
            Self::Local(_) => None,
        }
    }

    /// Sends a blob, from an offset, into a channel and verifies all of it. Where nobody receives any more, this ends
    /// without an error.
    ///
    /// `advanced` is told how many bytes have gone on.
    pub(super) async fn feed(
        &self,
        expected: &Expected,
        offset: u64,
        sink: Sender<Piece>,
        advanced: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let (sender, mut receiver) = channel::<Bytes>(WAITING);
        let reading = async {
            match self {
                Self::Registry(registry) => registry.layer(expected, sender, &|_| ()).await,
                Self::Local(local) => {
                    let (local, expected) = (Arc::clone(local), expected.clone());
                    let what = expected.what.clone();
                    blocking(&what, move || read(&local, &expected, &sender)).await
                }
            }
        };
        let onward = &sink;
        // It takes the receiver along: when it ends, so does the reading.
        let verifying = async move {
            let mut hasher = Hasher::new(expected.digest.algorithm());
            let mut seen = 0_u64;
            while let Some(mut bytes) = receiver.recv().await {
                hasher.update(&bytes);
                let before = offset.saturating_sub(seen);
                seen += bytes.len() as u64;
                if seen > expected.size {
                    return Err(Error::SizeMismatch {
                        what: expected.what.clone(),
                        expected: expected.size,
                        actual: seen,
                    });
                }
                let skipped =
                    usize::try_from(before).map_or(bytes.len(), |before| before.min(bytes.len()));
                let bytes = bytes.split_off(skipped);
                if !bytes.is_empty() && onward.send(Ok(bytes)).await.is_err() {
                    return Ok(false);
                }
                advanced(seen);
            }
            if seen < expected.size {
                return Err(Error::Truncated {
                    what: expected.what.clone(),
                    expected: expected.size,
                    received: seen,
                });
            }
            let actual = hasher.finish();
            if actual != expected.digest {
                return Err(Error::DigestMismatch {
                    what: expected.what.clone(),
                    expected: expected.digest.clone(),
                    actual,
                });
            }
            Ok(true)
        };
        let (read, verified) = futures_util::future::join(reading, verifying).await;
        let fed = match (read, verified) {
            (_, Ok(false)) => return Ok(()),
            // That it could not be read is why there was too little of it.
            (Err(error), _) | (Ok(()), Err(error)) => Err(error),
            (Ok(()), Ok(true)) => Ok(()),
        };
        if let Err(error) = &fed {
            // Whoever reads there is to stop; that nobody does is as good.
            drop(sink.send(Err(io::Error::other(error.to_string()))).await);
        }
        fed
    }
}

/// Reads a blob from a file into a channel.
fn read(local: &Local, expected: &Expected, sink: &Sender<Bytes>) -> Result<()> {
    let mut arrival = local.blob(&expected.digest)?;
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        arrival
            .by_ref()
            .take(PIECE as u64)
            .read_to_end(&mut piece)
            .map_err(|error| Error::io("read", expected.what.as_ref(), error))?;
        if piece.is_empty() || sink.blocking_send(piece.into()).is_err() {
            return Ok(());
        }
    }
}

pub(super) fn expected(what: &str, descriptor: &Descriptor) -> Expected {
    Expected {
        what: what.to_owned(),
        digest: descriptor.digest.clone(),
        size: descriptor.size,
    }
}
