//! Images that have to be put together before they can leave: those of the store, and directories.
//!
//! The store keeps layers unpacked. Each is made a tar stream again: bit for bit the one that it came as, where what
//! that takes was kept beside it (see [`replay`](crate::replay)), else anew from its files. In both cases it must hash to the
//! `diff_id` that the configuration has, so the configuration stays as it is; the manifest is a new one, since the
//! layers are compressed anew. All of it lies in a layout within the store's `tmp` until the copy is done.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{CopyOptions, Place, absolute, blocking};
use crate::blob::Cancel;
use crate::digest::chain_ids;
use crate::fresh_file::FreshFile;
use crate::layer_blob::{Hashing, compress};
use crate::layer_writer::{LayerOptions, WrittenLayer, write_layer, write_tree};
use crate::layout_writer::LayoutWriter;
use crate::manifest::{self, Descriptor};
use crate::scratch::Scratch;
use crate::{
    Choice, Digest, Error, Image, ImageConfiguration, Limits, Platform, Result, Source, Store,
    replay,
};

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const BUFFER: usize = 256 << 10;

/// An image that was put together, for as long as the value lives.
#[derive(Debug)]
pub(super) struct Exported {
    layout: PathBuf,
    _scratch: Scratch,
    /// Keeps the layers in the store meanwhile.
    _image: Option<Image>,
}

impl Exported {
    pub(super) fn source(&self) -> Source {
        Source::OciLayout {
            path: self.layout.clone(),
            tag: None,
        }
    }
}

/// Puts an image together where that is needed.
pub(super) async fn prepare(
    store: &Store,
    from: &Place,
    options: &CopyOptions,
    compressed: bool,
) -> Result<Option<Exported>> {
    let platform = match &options.choice {
        Choice::Platform(platform) => platform.clone(),
        Choice::All => Platform::host(),
    };
    let (store, limits) = (store.clone(), options.source.limits.clone());
    let guard = CancelOnDrop::default();
    let cancel = guard.0.clone();
    let exported = match from {
        Place::Source(Source::Host) => {
            return Err(Error::NotAnImage {
                path: "host:".into(),
                expected: "something to copy",
                reason: "it is this machine's own programs".to_owned(),
            });
        }
        Place::Source(Source::Directory(path)) => {
            let path = absolute(path)?;
            blocking(&from.to_string(), move || {
                directory(&store, &path, &platform, compressed, &limits, &cancel)
            })
            .await?
        }
        Place::Source(_) => return Ok(None),
        Place::Store(name) => {
            let name = name.clone();
            blocking(&from.to_string(), move || {
                let image = find(&store, &name, &platform)?;
                stored(&store, image, compressed, &limits, &cancel)
            })
            .await?
        }
    };
    Ok(Some(exported))
}

/// Tells the thread that works for a copy that nobody waits for it any more.
#[derive(Debug, Default)]
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Finds an image of the store by its name, or by the first digits of its digest.
pub(super) fn find(store: &Store, name: &str, platform: &Platform) -> Result<Image> {
    const SHORTEST: usize = 6;
    let found = match name.parse::<Source>() {
        Ok(Source::Directory(_) | Source::Host) | Err(_) => None,
        Ok(source) => store.find(&source, platform)?,
    };
    if let Some(image) = found {
        return Ok(image);
    }
    let unknown = || Error::UnknownImage {
        name: name.to_owned(),
    };
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    if hex.len() < SHORTEST || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(unknown());
    }
    let mut fitting = store.images()?;
    fitting.retain(|image| {
        [&image.digest, &image.config_digest]
            .into_iter()
            .flatten()
            .any(|digest| digest.hex().starts_with(hex))
    });
    fitting.dedup_by(|left, right| left.digest == right.digest);
    match fitting.len() {
        0 => Err(unknown()),
        1 => {
            let image = fitting.remove(0);
            // By its name it is held while it is used.
            let held = match image.name.parse::<Source>() {
                Ok(source) => store.find(&source, &image.platform)?,
                Err(_) => None,
            };
            Ok(held
                .filter(|held| held.digest == image.digest)
                .unwrap_or(image))
        }
        _ => Err(Error::AmbiguousDigest {
            name: name.to_owned(),
            candidates: fitting
                .iter()
                .filter_map(|image| image.digest.as_ref().map(ToString::to_string))
                .collect(),
        }),
    }
}

/// Begins a layout in the store's `tmp`.
fn begin(store: &Store, limits: &Limits) -> Result<(Scratch, PathBuf, LayoutWriter)> {
    store.make()?;
    let scratch = Scratch::unique(&store.tmp(), "export")?;
    let layout = scratch.path().join("layout");
    let writer = LayoutWriter::open(&layout, limits)?;
    Ok((scratch, layout, writer))
}

fn finish(writer: LayoutWriter, config: &[u8], layers: &[Descriptor]) -> Result<()> {
    writer.put(&Digest::of(config), &mut &*config)?;
    let manifest = manifest::synthesize(config, layers);
    let descriptor = manifest::synthesized(&manifest);
    writer.put(&descriptor.digest, &mut manifest.as_slice())?;
    writer.commit(
        &descriptor.digest,
        &descriptor.media_type,
        descriptor.size,
        None,
    )
}

fn stored(
    store: &Store,
    image: Image,
    compressed: bool,
    limits: &Limits,
    cancel: &Cancel,
) -> Result<Exported> {
    let unknown = || Error::UnknownImage {
        name: image.name.clone(),
    };
    let config_digest = image.config_digest.as_ref().ok_or_else(unknown)?;
    let config = document(store, &image, config_digest)?;
    let diff_ids = serde_json::from_slice::<ImageConfiguration>(&config)
        .ok()
        .and_then(|config| {
            let diff_ids = config.rootfs().diff_ids().iter();
            diff_ids
                .map(|text| text.parse::<Digest>().ok())
                .collect::<Option<Vec<_>>>()
        })
        .ok_or_else(|| Error::InvalidManifest {
            image: image.name.clone(),
            reason: "its configuration is unreadable".to_owned(),
        })?;
    let (scratch, layout, writer) = begin(store, limits)?;
    let mut layers = Vec::new();
    for (chain_id, diff_id) in chain_ids(&diff_ids).iter().zip(&diff_ids) {
        let directory = store.layer_path(chain_id);
        let (descriptor, actual) = add(scratch.path(), &writer, compressed, cancel, |output| {
            stream(&directory, output)
        })?;
        if actual != *diff_id {
            return Err(Error::NotReproducible {
                layer: diff_id.clone(),
                actual,
            });
        }
        layers.push(descriptor);
    }
    finish(writer, &config, &layers)?;
    Ok(Exported {
        layout,
        _scratch: scratch,
        _image: Some(image),
    })
}

/// Reads a document of an image in the store.
fn document(store: &Store, image: &Image, digest: &Digest) -> Result<Vec<u8>> {
    store.blob(digest).ok_or_else(|| Error::NotAnImage {
        path: store.root().to_owned(),
        expected: "whole",
        reason: format!("the configuration of {} is missing or damaged", image.name),
    })
}

/// Writes the tar stream of a layer of the store.
fn stream(directory: &Path, mut output: &mut dyn Write) -> Result<WrittenLayer> {
    let Some(mut replay) = replay::open(directory)? else {
        return write_layer(directory, &LayerOptions::default(), &mut output);
    };
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = match replay.read(&mut buffer) {
            Ok(0) => return Ok(WrittenLayer::default()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io("read", directory, error)),
        };
        output
            .write_all(&buffer[..read])
            .map_err(|error| crate::layer_writer::write_failed(directory, error))?;
    }
}

/// Makes a whole root filesystem an image of one layer.
fn directory(
    store: &Store,
    path: &Path,
    platform: &Platform,
    compressed: bool,
    limits: &Limits,
    cancel: &Cancel,
) -> Result<Exported> {
    let is_directory = std::fs::metadata(path)
        .map_err(|error| Error::io("open", path, error))?
        .is_dir();
    if !is_directory {
        return Err(Error::NotAnImage {
            path: path.to_owned(),
            expected: "a root filesystem",
            reason: "it is not a directory".to_owned(),
        });
    }
    let (scratch, layout, writer) = begin(store, limits)?;
    let (descriptor, diff_id) = add(scratch.path(), &writer, compressed, cancel, |mut output| {
        let written = write_tree(path, &LayerOptions::default(), &mut output)?;
        for (path, reason) in &written.left_out {
            tracing::warn!(path = %path.display(), reason, "left out");
        }
        Ok(written)
    })?;
    let mut config = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created_by": "sbxrt copy dir:"}],
    });
    if let Some(variant) = &platform.variant {
        config["variant"] = variant.as_str().into();
    }
    finish(writer, config.to_string().as_bytes(), &[descriptor])?;
    Ok(Exported {
        layout,
        _scratch: scratch,
        _image: None,
    })
}

/// Adds a layer to the layout; returns it with its `diff_id`.
fn add(
    scratch: &Path,
    writer: &LayoutWriter,
    compressed: bool,
    cancel: &Cancel,
    write: impl FnOnce(&mut dyn Write) -> Result<WrittenLayer>,
) -> Result<(Descriptor, Digest)> {
    let path = scratch.join("layer");
    let mut fresh = FreshFile::create(&path)?;
    let (descriptor, diff_id) = {
        let output = io::BufWriter::with_capacity(BUFFER, fresh.file());
        if compressed {
            let blob = compress(output, |stream| {
                write(&mut Cancellable {
                    output: stream,
                    cancel,
                })
            })?;
            let descriptor = Descriptor::new(blob.media_type, blob.digest, blob.size);
            (descriptor, blob.diff_id)
        } else {
            let mut hashing = Hashing::new(output);
            write(&mut Cancellable {
                output: &mut hashing,
                cancel,
            })?;
            let (mut output, digest, size) = hashing.finish();
            output
                .flush()
                .map_err(|error| Error::io("write", &path, error))?;
            (Descriptor::new(TAR, digest.clone(), size), digest)
        }
    };
    fresh.publish()?;
    writer.adopt(&descriptor.digest, &path)?;
    Ok((descriptor, diff_id))
}

/// Writes until nobody waits for it any more.
struct Cancellable<'a, W> {
    output: W,
    cancel: &'a Cancel,
}

impl<W: Write> Write for Cancellable<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other(Error::Cancelled {
                what: "an image".to_owned(),
            }));
        }
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}
