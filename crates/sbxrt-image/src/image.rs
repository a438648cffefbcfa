//! An image that is ready to run.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::image::ImageConfiguration;

use crate::{Digest, Platform};

/// An image that is ready to run: verified, unpacked and on this machine.
///
/// For as long as a value that [`Store::find`](crate::Store::find) or a pull returned, or a clone of it, is alive in some
/// process, nobody's `remove` or `collect` takes the image's files away.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// The canonical name it was asked for by, such as `docker.io/library/python:3.12-slim`.
    pub name: String,
    /// The digest of its manifest; none for `dir:` and `host:`.
    pub digest: Option<Digest>,
    /// The digest of its configuration; none for `dir:` and `host:`.
    pub config_digest: Option<Digest>,
    /// The configuration: entry point, environment, working directory, user, labels. Empty for `dir:` and `host:`.
    pub config: ImageConfiguration,
    /// The platform it is for.
    pub platform: Platform,
    /// The bytes of its layers when unpacked; 0 for `dir:` and `host:`.
    pub size: u64,
    /// When it was built, as its author says (RFC 3339).
    pub created: Option<String>,
    /// Where its files are.
    pub rootfs: Rootfs,
    /// The additional store that it was found in; none for the store's own and for `dir:` and `host:`.
    pub additional_store: Option<PathBuf>,
    pub(crate) hold: Hold,
}

/// Keeps the files of an image in the store: an open file with a lock, which the kernel lets go of with the process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hold {
    /// Held for its lock.
    pub(crate) _file: Option<Arc<File>>,
}

/// Whether somebody holds an image says nothing of the image.
impl PartialEq for Hold {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// Where the files of an image are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rootfs {
    /// Directories to stack with overlayfs (`userxattr`), bottom first. They are shared: mount them read-only. What
    /// the image says of owners lies beside each, in `owners.jsonl`.
    Layers(Vec<PathBuf>),
    /// One directory that holds everything.
    Directory(PathBuf),
    /// This machine's own programs; which of them is the caller's decision.
    Host,
}
