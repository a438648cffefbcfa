//! What a pull tells while it runs.

use crate::Digest;

/// Receives what a pull tells while it runs.
///
/// The methods are called from the task that pulls, often and in the order of events; they must return soon. `()`
/// listens and says nothing.
///
/// ```
/// use sbxrt_image::{Event, Progress};
///
/// #[derive(Debug)]
/// struct Log;
///
/// impl Progress for Log {
///     fn event(&self, event: Event) {
///         eprintln!("{event:?}");
///     }
/// }
/// ```
pub trait Progress: Send + Sync {
    /// Takes note of an event.
    fn event(&self, event: Event);
}

impl Progress for () {
    fn event(&self, _: Event) {}
}

/// Something that happened during a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The name was resolved; from here on only digests count.
    Resolved {
        /// The canonical name.
        name: String,
        /// The digest of the manifest for the platform.
        digest: Digest,
        /// How many layers the image has, whether they are in the store or not; for a copy, how many blobs.
        layers: usize,
        /// Their size in bytes, compressed.
        bytes: u64,
    },
    /// A layer changed its state. A layer that occurs twice in an image is told of twice.
    Layer {
        /// The digest of the compressed layer.
        digest: Digest,
        /// Its size in bytes, compressed.
        size: u64,
        /// What it does now.
        state: LayerState,
    },
}

/// What a layer does during a pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerState {
    /// It was in the store already.
    Exists,
    /// Its download begins, and with it the unpacking, since both happen in one pass.
    Started,
    /// So many compressed bytes in all have arrived.
    Advanced(u64),
    /// All bytes have arrived and the rest is being unpacked.
    Unpacking,
    /// It is verified and in the store.
    Done,
}
