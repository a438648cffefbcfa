//! Everything that can go wrong between a reference and a root filesystem.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::{Digest, InvalidSource};

/// The result of an operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by the step that failed.
///
/// [`Error::hint`] says what to do about it where that is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text names no image source.
    #[error(transparent)]
    InvalidSource(#[from] InvalidSource),

    /// The registry has no such image.
    #[error("{image}: the registry knows no such image")]
    ManifestUnknown {
        /// The registry, repository and tag or digest.
        image: String,
    },

    /// The registry has the manifest but not what it refers to.
    #[error("{image}: the registry has no blob {digest}")]
    BlobUnknown {
        /// The registry, repository and tag or digest.
        image: String,
        /// The blob that is missing.
        digest: Digest,
    },

    /// The registry wants to know who is asking, or did not like the answer.
    #[error("{image}: the registry refuses access: {reason}")]
    Unauthorized {
        /// The registry, repository and tag or digest.
        image: String,
        /// What the registry asked for or said.
        reason: String,
    },

    /// No answer came from the registry.
    #[error("cannot reach registry {registry} for {image}")]
    RegistryUnreachable {
        /// The registry's host and port.
        registry: String,
        /// The registry, repository and tag or digest.
        image: String,
        /// What the network said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The registry answered with an error.
    #[error("{image}: registry answered {status} to {request}{message}")]
    RegistryFailed {
        /// The registry, repository and tag or digest.
        image: String,
        /// The HTTP status.
        status: u16,
        /// What was asked for.
        request: String,
        /// What the registry said about it, after a colon, or nothing.
        message: String,
    },

    /// The registry offers only an unencrypted connection, and nobody allowed one.
    #[error("registry {registry} would have to be spoken to without TLS")]
    PlainHttpRefused {
        /// The registry's host and port, or the address it pointed to.
        registry: String,
    },

    /// The registry, or what answers in its place, was spoken to without TLS and wants it.
    #[error("registry {registry} wants to be spoken to with TLS")]
    TlsExpected {
        /// The registry's host and port.
        registry: String,
    },

    /// The registry is not who it should be, or does not believe that we are.
    #[error("{image}: no trust between registry {registry} and us: {reason}")]
    TlsFailed {
        /// The registry's host and port.
        registry: String,
        /// The registry, repository and tag or digest.
        image: String,
        /// What is wrong with the certificate.
        reason: String,
    },

    /// The site's settings forbid the registry.
    #[error("{image}: {prefix} is blocked by {}", path.display())]
    RegistryBlocked {
        /// The registry, repository and tag or digest.
        image: String,
        /// What is blocked.
        prefix: String,
        /// The file that says so.
        path: PathBuf,
    },

    /// A file with credentials, settings or certificates is not what it should be.
    #[error("{}: {reason}", path.display())]
    InvalidSettings {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; nothing secret.
        reason: String,
    },

    /// A credential helper that a file names gave no answer.
    #[error("no credentials for {registry}: docker-credential-{helper}, which {} names, fails: {reason}", path.display())]
    CredentialHelper {
        /// The name of the helper.
        helper: String,
        /// The registry.
        registry: String,
        /// The file that names it.
        path: PathBuf,
        /// What the helper said, or why it could not be asked.
        reason: String,
    },

    /// The address of a proxy cannot be used.
    #[error("{variable} cannot be used: {reason}")]
    InvalidProxy {
        /// The variable that the address usually comes from.
        variable: &'static str,
        /// What is wrong with it; not the address, which may hold a password.
        reason: String,
    },

    /// The registry pointed to an address that is not followed.
    #[error("{image}: registry points to {target}, which is refused: {reason}")]
    AddressRefused {
        /// The registry, repository and tag or digest.
        image: String,
        /// The address, without query and credentials.
        target: String,
        /// Why it is not followed.
        reason: String,
    },

    /// A manifest, index or configuration says something impossible.
    #[error("{image}: invalid manifest: {reason}")]
    InvalidManifest {
        /// The image.
        image: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A document or layer is of a kind that cannot be run.
    #[error("{image}: unsupported media type {media_type}: {reason}")]
    UnsupportedMediaType {
        /// The image.
        image: String,
        /// The media type.
        media_type: String,
        /// Why it cannot be used.
        reason: String,
    },

    /// The image exists, for other platforms.
    #[error(
        "{image}: no image for platform {wanted}; available: {}",
        list(available)
    )]
    PlatformNotFound {
        /// The image.
        image: String,
        /// The platform that was asked for.
        wanted: String,
        /// The platforms that there are.
        available: Vec<String>,
    },

    /// Bytes are not the ones that were promised.
    #[error("{what} does not match its digest: expected {expected}, got {actual}")]
    DigestMismatch {
        /// What was read.
        what: String,
        /// The digest that was promised.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },

    /// There are more or fewer bytes than promised.
    #[error("{what} has {} than the promised {expected} bytes", longer_or_shorter(*expected, *actual))]
    SizeMismatch {
        /// What was read.
        what: String,
        /// The size that was promised.
        expected: u64,
        /// The size that came; where more came than promised, reading stopped here.
        actual: u64,
    },

    /// The bytes ended early.
    #[error("{what} ended after {received} of {expected} bytes")]
    Truncated {
        /// What was read.
        what: String,
        /// The size that was promised.
        expected: u64,
        /// The bytes that came.
        received: u64,
    },

    /// A layer cannot be decompressed or is no tar archive.
    #[error("layer {layer} is damaged: {reason}")]
    InvalidLayer {
        /// The digest of the compressed layer.
        layer: Digest,
        /// What is wrong with it.
        reason: String,
    },

    /// A layer holds an entry that cannot be unpacked.
    #[error("layer {layer}: entry {path:?}: {reason}")]
    InvalidEntry {
        /// The digest of the compressed layer.
        layer: Digest,
        /// The path as the layer has it.
        path: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A layer that is being written holds what no layer can.
    #[error("cannot write {} into a layer: {reason}", path.display())]
    UnwritableEntry {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },

    /// An image cannot be copied there.
    #[error("cannot copy to {place}")]
    NotADestination {
        /// What was asked for.
        place: String,
    },

    /// A layer of the store is not what it was when it was unpacked.
    #[error(
        "layer {layer} of the store cannot be had again bit for bit: its files now give {actual}"
    )]
    NotReproducible {
        /// The `diff_id` of the layer.
        layer: Digest,
        /// The digest of what its files give.
        actual: Digest,
    },

    /// A file cannot be copied into an image, or not to that place.
    #[error("{}: {reason}", path.display())]
    UnsupportedFile {
        /// The file, or the place.
        path: PathBuf,
        /// Why not.
        reason: String,
    },

    /// The image asks for more than it may have.
    #[error("{what} exceeds the limit {limit} of {maximum}")]
    LimitExceeded {
        /// What was read.
        what: String,
        /// The limit, by the name of its field in [`Limits`](crate::Limits).
        limit: &'static str,
        /// Its value.
        maximum: u64,
    },

    /// The file system of the store is full, of bytes or of files, or the quota is used up.
    #[error("no space left in {} ({free} bytes and {free_files} files free)", path.display())]
    StoreFull {
        /// The store.
        path: PathBuf,
        /// How many bytes are free there now.
        free: u64,
        /// How many more files it takes (inodes).
        free_files: u64,
    },

    /// The file system of the store lacks what overlayfs layers need.
    #[error("{} is on {file_system}, which refuses {feature}", path.display())]
    FileSystemUnsupported {
        /// The store.
        path: PathBuf,
        /// The kind of file system.
        file_system: String,
        /// What it refuses.
        feature: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },

    /// A layout or archive holds no image by that name, or several where none was named.
    #[error("{}: {reason}; available: {}", path.display(), list(available))]
    TagNotFound {
        /// The layout or archive.
        path: PathBuf,
        /// What was looked for.
        reason: String,
        /// What there is.
        available: Vec<String>,
    },

    /// A file or directory is not what its scheme says.
    #[error("{} is not {expected}: {reason}", path.display())]
    NotAnImage {
        /// The path.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// Why it is not.
        reason: String,
    },

    /// The store has no such image.
    #[error("no image {name:?} in the store")]
    UnknownImage {
        /// What was asked for.
        name: String,
    },

    /// A short digest fits several images.
    #[error("{name:?} fits several images: {}", list(candidates))]
    AmbiguousDigest {
        /// What was asked for.
        name: String,
        /// The images it fits.
        candidates: Vec<String>,
    },

    /// Another process holds the store or a layer of it.
    #[error("{} is in use by another sbxrt process", path.display())]
    Busy {
        /// What is in use.
        path: PathBuf,
    },

    /// A sandbox runs from the image.
    #[error("image {image} is in use: a sandbox runs from it")]
    ImageInUse {
        /// Its name.
        image: String,
    },

    /// Nothing may be fetched, and something is missing.
    #[error("{image}: offline, and {missing} is missing")]
    Offline {
        /// The image.
        image: String,
        /// What is missing of it, and where.
        missing: String,
    },

    /// Somebody who should not could write to a store.
    #[error("the image store's {} is not trusted: {reason}", path.display())]
    StoreUntrusted {
        /// What could be written to.
        path: PathBuf,
        /// By whom.
        reason: String,
    },

    /// The directory is not a store of this version.
    #[error("{} is not an image store that this version can use: {reason}", path.display())]
    StoreVersion {
        /// The store.
        path: PathBuf,
        /// What was found.
        reason: String,
    },

    /// The pull was given up before it was finished.
    #[error("pull of {what} was cancelled")]
    Cancelled {
        /// What was being pulled.
        what: String,
    },

    /// The kernel refused an operation.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried: a verb.
        operation: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Returns what to do about it, where that is known: one line, to be shown after `hint:`.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::InvalidSource(error) => return error.hint(),
            Self::ManifestUnknown { image } => {
                format!("check the name and the tag of {image}; `skopeo list-tags` shows which tags a repository has")
            }
            Self::Unauthorized { image, .. } => {
                format!("{image} is misspelt or private; for a private image give credentials")
            }
            Self::RegistryUnreachable { .. } => {
                "check the network and HTTPS_PROXY; without a network use `host:` or an image on disk (oci-archive:FILE)"
                    .to_owned()
            }
            Self::RegistryFailed { status: 429, .. } => {
                "the registry limits how often one may pull; wait, log in, or use a mirror".to_owned()
            }
            Self::PlainHttpRefused { registry } => {
                format!("if {registry} really has no TLS and the network is trusted, allow plain HTTP for it")
            }
            Self::TlsExpected { registry } => {
                format!("put the certificate of its authority into a directory {registry} of the certificates")
            }
            Self::TlsFailed { registry, .. } => {
                format!("if it has an authority of its own, put that one's certificate into a directory {registry} of the certificates")
            }
            Self::PlatformNotFound { available, .. } => match available.first() {
                Some(platform) => format!("ask for a platform that there is, such as {platform}"),
                None => return None,
            },
            Self::UnsupportedMediaType { media_type, .. } if media_type.contains("docker.distribution.manifest.v1") => {
                "push the image again with a current tool; schema 1 was retired in 2020".to_owned()
            }
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } => {
                "the registry, a proxy or the file is damaged or was tampered with; nothing of it was kept".to_owned()
            }
            Self::Truncated { .. } => "try again; nothing of it was kept".to_owned(),
            Self::LimitExceeded { limit, .. } => {
                format!("if you trust the image, raise the limit `{limit}`")
            }
            Self::StoreFull { path, .. } => {
                format!("remove images that are not needed, or move the store from {} to a larger disk", path.display())
            }
            Self::FileSystemUnsupported { .. } => {
                "move the store to a local disk or a tmpfs: ext4, xfs, btrfs, or tmpfs from Linux 6.6".to_owned()
            }
            Self::TagNotFound { path, available, .. } => match available.first() {
                Some(tag) => format!("write {}:{tag}", path.display()),
                None => return None,
            },
            Self::NotADestination { .. } => {
                "copy to docker://NAME, oci:DIR, oci-archive:FILE, docker-archive:FILE or dir:PATH".to_owned()
            }
            Self::NotReproducible { .. } => {
                "pull the image again, or copy it from where it came from instead of the store".to_owned()
            }
            Self::UnknownImage { .. } => "list the images that there are, or pull it first".to_owned(),
            Self::AmbiguousDigest { .. } => "write more digits of the digest".to_owned(),
            Self::Busy { .. } => "wait until the other pull is done".to_owned(),
            Self::ImageInUse { .. } => "wait until the sandbox has ended".to_owned(),
            Self::Offline { image, .. } => {
                format!("pull {image} where there is a network, into this store or an additional one")
            }
            Self::StoreUntrusted { path, .. } => {
                format!("if it should be trusted, its owner types `chmod o-w {}`", path.display())
            }
            Self::StoreVersion { .. } => "use another directory, or remove this one and pull again".to_owned(),
            _ => return None,
        })
    }

    /// Makes an error of an operation that the kernel refused, telling a full disk from other troubles.
    pub(crate) fn io(operation: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        if is_full(&source) {
            return Self::full(path);
        }
        Self::Io {
            operation,
            path: path.to_owned(),
            source,
        }
    }

    fn full(path: &Path) -> Self {
        // The path itself may never have come about.
        let status = path
            .ancestors()
            .find_map(|ancestor| rustix::fs::statvfs(ancestor).ok());
        Self::StoreFull {
            path: path.to_owned(),
            free: status
                .as_ref()
                .map_or(0, |status| status.f_bavail.saturating_mul(status.f_frsize)),
            free_files: status.map_or(0, |status| status.f_favail),
        }
    }
}

/// Whether the disk or the quota is used up.
fn is_full(error: &io::Error) -> bool {
    let full = [Errno::NOSPC, Errno::DQUOT].map(Errno::raw_os_error);
    error
        .raw_os_error()
        .is_some_and(|code| full.contains(&code))
}

fn list(items: &[String]) -> String {
    const SHOWN: usize = 12;
    if items.is_empty() {
        return "none".to_owned();
    }
    let mut text = items
        .iter()
        .take(SHOWN)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    if items.len() > SHOWN {
        text.push_str(", …");
    }
    text
}

fn longer_or_shorter(expected: u64, actual: u64) -> &'static str {
    if actual > expected { "more" } else { "fewer" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_troubles() {
        let full = Error::io("write", Path::new("/nonexistent/x"), Errno::NOSPC);
        assert!(matches!(full, Error::StoreFull { .. }), "{full}");
        let quota = Error::io("write", Path::new("/nonexistent/x"), Errno::DQUOT);
        assert!(matches!(quota, Error::StoreFull { .. }), "{quota}");
        let other = Error::io("write", Path::new("/nonexistent/x"), Errno::ACCESS);
        assert_eq!(other.to_string(), "write /nonexistent/x");
    }

    #[test]
    fn messages_start_in_lower_case_and_do_not_end_in_a_full_stop() {
        let errors = [
            Error::PlatformNotFound {
                image: "docker.io/library/x:latest".to_owned(),
                wanted: "linux/amd64".to_owned(),
                available: vec!["linux/s390x".to_owned()],
            },
            Error::SizeMismatch {
                what: "layer sha256:…".to_owned(),
                expected: 3,
                actual: 4,
            },
        ];
        let expected = [
            "docker.io/library/x:latest: no image for platform linux/amd64; available: linux/s390x",
            "layer sha256:… has more than the promised 3 bytes",
        ];
        assert_eq!(errors.map(|error| error.to_string()), expected);
    }
}
