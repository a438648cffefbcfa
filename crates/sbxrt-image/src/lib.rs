//! From an image reference to a verified root filesystem on disk.
//!
//! ```text
//! "python:3.12-slim"
//!  └ Source               docker.io/library/python:3.12-slim
//!  └ manifest             resolved once; from here on only digests
//!  └ blobs                size and digest checked while they stream
//!  └ layers               decompressed and unpacked in the same pass; their bytes hash to the diff_ids
//!  └ Image                configuration and layer directories, named by chain ID, shared, read-only
//! ```
//!
//! Everything that is read here was written by a stranger. Manifests, layers and archives are each parsed in one place,
//! with bounds; nothing becomes visible in the [`Store`] before all of it is verified. Only the network is async; no
//! process is started and nothing is mounted.
//!
//! # Example
//!
//! ```no_run
//! # async fn pull() -> sbxrt_image::Result<()> {
//! use sbxrt_image::{PullOptions, Source, Store};
//!
//! let store = Store::open("/var/tmp/sbxrt".as_ref())?;
//! let source: Source = "python:3.12-slim".parse()?;
//! let options = PullOptions::default();
//! let image = match store.find(&source, &options.platform)? {
//!     Some(image) => image,
//!     None => store.pull(&source, &options, &()).await?,
//! };
//! println!("{} {:?}", image.name, image.rootfs);
//! # Ok(())
//! # }
//! ```

mod archive_writer;
mod assemble;
mod auth;
mod blob;
mod closed;
mod compression;
mod credentials;
mod digest;
mod error;
mod fresh_file;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod image;
mod layer_blob;
mod layer_writer;
mod layout;
mod layout_writer;
mod limits;
mod manifest;
mod named_file;
mod platform;
mod progress;
mod proxy;
mod pull;
mod registries;
mod registry;
mod regular_file;
mod replay;
mod scratch;
mod source;
mod store;
mod tar_writer;
mod tarball;
mod transfer;
mod tree;
mod unpack;

pub use assemble::{
    AssembledLayer, AssemblyGuard, CachedStep, Copy, CopySource, Everything, Filled, Filter,
    LayerDraft, Node, NodeKind, Stack, UnpackedArchive, Verdict,
};
pub use auth::{Credentials, Secret};
pub use credentials::{CredentialHelper, HelperError, Keychain, normalize as registry_key};
pub use digest::{Algorithm, Digest, InvalidDigest};
pub use error::{Error, Result};
pub use image::{Image, Rootfs};
pub use layer_blob::{LayerBlob, write_layer_blob};
pub use layer_writer::{LayerOptions, WrittenLayer, write_layer, write_tree};
pub use limits::{Limits, PullOptions};
pub use named_file::read_named_file;
pub use oci_spec::distribution::Reference;
pub use oci_spec::image::ImageConfiguration;
pub use platform::{InvalidPlatform, Platform};
pub use progress::{Event, LayerState, Progress};
pub use proxy::Proxies;
pub use registries::Registries;
pub use registry::verify_login;
pub use source::{InvalidSource, Source};
pub use store::{
    CollectOptions, Collected, Damage, ImageUsage, LayerUsage, Object, Removed, Repair, Store,
    Usage, Verified,
};
pub use transfer::{Choice, Copied, CopiedBlob, CopyOptions, Outcome, Place};
