//! Sources on this machine: what they are called, and images that need no store.

use std::fs;
use std::path::Path;

use oci_spec::image::ImageConfiguration;

use crate::image::Hold;
use crate::{Error, Image, Platform, Result, Rootfs, Source};

/// Returns the source with its path absolute, so that a name in the store means the same from everywhere.
pub(super) fn canonical(source: &Source) -> Result<Source> {
    let absolute =
        |path: &Path| std::path::absolute(path).map_err(|error| Error::io("resolve", path, error));
    Ok(match source {
        Source::Registry(_) | Source::Host => source.clone(),
        Source::OciLayout { path, tag } => Source::OciLayout {
            path: absolute(path)?,
            tag: tag.clone(),
        },
        Source::OciArchive { path, tag } => Source::OciArchive {
            path: absolute(path)?,
            tag: tag.clone(),
        },
        Source::DockerArchive { path, reference } => Source::DockerArchive {
            path: absolute(path)?,
            reference: reference.clone(),
        },
        Source::Directory(path) => Source::Directory(absolute(path)?),
    })
}

pub(super) fn directory(path: &Path, platform: &Platform) -> Result<Image> {
    let refuse = |reason: String| Error::NotAnImage {
        path: path.to_owned(),
        expected: "a root filesystem",
        reason,
    };
    let metadata = fs::metadata(path).map_err(|error| refuse(error.to_string()))?;
    if !metadata.is_dir() {
        return Err(refuse("it is not a directory".to_owned()));
    }
    let path = fs::canonicalize(path).map_err(|error| Error::io("resolve", path, error))?;
    Ok(local(
        format!("dir:{}", path.display()),
        platform,
        Rootfs::Directory(path),
    ))
}

/// Returns an image that is on this machine without the store's doing.
pub(super) fn local(name: String, platform: &Platform, rootfs: Rootfs) -> Image {
    let mut config = ImageConfiguration::default();
    config
        .set_os(platform.os.as_str().into())
        .set_architecture(platform.architecture.as_str().into())
        .set_variant(platform.variant.clone());
    Image {
        name,
        digest: None,
        config_digest: None,
        config,
        platform: platform.clone(),
        size: 0,
        created: None,
        rootfs,
        additional_store: None,
        hold: Hold::default(),
    }
}
