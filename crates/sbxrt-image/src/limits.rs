//! How much an image may ask of this machine, and how a pull goes about it.

use std::path::PathBuf;
use std::time::Duration;

use crate::{Keychain, Platform, Proxies, Registries};

/// Says how to pull: for which platform, how carefully and with whose name.
///
/// ```
/// use sbxrt_image::PullOptions;
///
/// let options = PullOptions {
///     plain_http: true, // a registry on the cluster's own network, without TLS
///     ..PullOptions::default()
/// };
/// ```
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// The platform that the image must be for. Default: this machine's.
    pub platform: Platform,
    /// Whether a registry that is not on this machine may be spoken to without TLS. Default: no. A registry on a
    /// loopback address is spoken to without TLS, unless there are [`certificates`](Self::certificates) for it.
    pub plain_http: bool,
    /// Whether nothing may be fetched: what is not in a store is an error, and a tag means what it meant when it was
    /// pulled. Default: no.
    pub offline: bool,
    /// Who registries are told is asking. Default: nobody.
    pub keychain: Keychain,
    /// Mirrors, other locations and blocked registries. Default: none.
    pub registries: Registries,
    /// Directories that hold a directory for each registry, named `HOST[:PORT]`, with its authorities (`*.crt`) and who
    /// we are there (`*.cert` with `*.key`); the first that knows a registry counts. Default: none.
    pub certificates: Vec<PathBuf>,
    /// The proxies to go through. Default: none.
    pub proxies: Proxies,
    /// How many layers are downloaded at the same time. Default: 3.
    pub parallel_layers: usize,
    /// How often a request is tried in all before a passing failure counts. Default: 3.
    pub attempts: u32,
    /// How long a connection may take to come about. Default: 10 s.
    pub connect_timeout: Duration,
    /// How long a registry may send nothing, or less than 1 KiB a second. A manifest or a token must have come as a whole
    /// after four times as long. Default: 30 s.
    pub idle_timeout: Duration,
    /// How long to wait before the second try; four times as long before each further one. Default: 250 ms.
    pub retry_wait: Duration,
    /// The longest to wait before a try. A registry that asks for more (`Retry-After`) is not asked again. Default: 30 s.
    pub retry_wait_max: Duration,
    /// What the image may cost.
    pub limits: Limits,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            platform: Platform::host(),
            plain_http: false,
            offline: false,
            keychain: Keychain::new(),
            registries: Registries::default(),
            certificates: Vec::new(),
            proxies: Proxies::default(),
            parallel_layers: 3,
            attempts: 3,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            retry_wait: Duration::from_millis(250),
            retry_wait_max: Duration::from_secs(30),
            limits: Limits::default(),
        }
    }
}

/// What an image may cost. An image beyond one of these is refused by the name of the limit.
///
/// The defaults let the largest images in common use through (deep-learning stacks of 20 GB) and stop bombs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The bytes of one layer when decompressed. Default: 64 GiB.
    pub layer_bytes: u64,
    /// How many times its compressed size a layer may become. Default: 200; real layers stay below 20. The first
    /// 64 MiB are free, so that a small layer of zeros passes.
    pub ratio: u64,
    /// The files, directories and links of one layer, with directories that only the paths of others name. Default: 2
    /// million.
    pub entries: u64,
    /// The bytes that unpacking one layer may keep in memory: for each directory, and for each hard link to a layer
    /// below, its path and 100 bytes. Default: 64 MiB, which is some 400,000 directories.
    pub remembered_bytes: u64,
    /// The bytes of a manifest, an index or a configuration. Default: 4 MiB, as the distribution specification says.
    pub manifest_bytes: u64,
    /// The layers of an image. Default: 512; overlayfs takes 500.
    pub layers: usize,
    /// How deep an index may lie within another. Default: 2.
    pub index_depth: usize,
    /// How many redirects one request may take. Default: 5.
    pub redirects: usize,
    /// The bytes of the extended header (long names, extended attributes) of one tar entry. Default: 1 MiB.
    pub header_bytes: u64,
    /// The bytes of a path within a layer. Default: 4095, which is the kernel's limit.
    pub path_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layer_bytes: 64 << 30,
            ratio: 200,
            entries: 2_000_000,
            remembered_bytes: 64 << 20,
            manifest_bytes: 4 << 20,
            layers: 512,
            index_depth: 2,
            redirects: 5,
            header_bytes: 1 << 20,
            path_bytes: 4095,
        }
    }
}

impl Limits {
    /// Returns how many bytes a layer of a compressed size may become.
    pub(crate) fn decompressed_bytes(&self, compressed: u64) -> u64 {
        const FREE: u64 = 64 << 20;
        compressed
            .saturating_mul(self.ratio)
            .max(FREE)
            .min(self.layer_bytes)
    }
}
