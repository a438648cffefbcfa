//! The store: verified layers and manifests on disk, and the names they were asked for by.
//!
//! ```text
//! ROOT/                                 0700: layers hold files that only their owner may see; 0755 where it is shared
//!   version                             "1": the version of this layout
//!   shared                              there where everybody on the machine may read the store
//!   lock                                held shared by a pull, exclusively while things are removed
//!   blobs/sha256/HEX                    manifests and configurations, as the registry sent them
//!   layers/sha256/HEX/                  a layer, by the hexadecimal digits of its chain ID
//!     fs/                               its files: one overlayfs lower directory
//!     owners.jsonl                      what cannot be on disk without root: see [`unpack`](crate::unpack)
//!     tar.split                         with fs/ the layer's archive bit for bit: see [`replay`](crate::replay)
//!     layer.json                        its diff_id and size
//!   cache/HEX.json                      what a step of a build has made: see [`assemble`](crate::assemble)
//!   images/HEX.json                     one record for a name and a platform: all that a run must know
//!   tmp/                                what is not finished: see [`scratch`](crate::scratch) and [`lease`]
//! ```
//!
//! Nothing outside `tmp` is ever seen unfinished: files and layers are made there and renamed into place. A layer's
//! bytes are flushed to disk before it is renamed, so it is whole after a power cut as well.
//!
//! `docs/store.md` says the same for people, with what holds between processes and machines.

mod collect;
pub(crate) mod lease;
mod local;
mod record;
mod share;
mod usage;
mod verify;

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::FlockOperation;

pub use collect::{CollectOptions, Collected, Removed};
pub(crate) use record::{Layer, Record, Stamp};
pub use usage::{ImageUsage, LayerUsage, Usage};
pub use verify::{Damage, Object, Repair, Verified};

use crate::image::Hold;
use crate::scratch::{self, Scratch};
use crate::{
    Digest, Error, Image, Platform, Progress, PullOptions, Result, Rootfs, Source, pull,
    regular_file,
};
use lease::{Claim, Holder, Lease, Lock, Waiting};
use local::{canonical, directory, local};

const VERSION: &str = "1";

/// How exactly the time of an image's last use is known. Each run would write to the disk otherwise.
const USE_RESOLUTION: Duration = Duration::from_secs(300);
/// How long a removal may be at work on an image that is being looked for: it renames some directories.
const REMOVAL: Duration = Duration::from_millis(500);
/// The largest file that is read as a whole: what [`Limits`](crate::Limits) would let through, and as much again.
const DOCUMENT: u64 = 64 << 20;

/// A directory that holds images.
///
/// Several processes, on several machines, may use one store at the same time. It may lie on any local file system or
/// tmpfs that takes extended attributes and whiteouts (see [`Error::FileSystemUnsupported`]), and on a network file
/// system that takes them, with or without locks.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    /// Other stores, whose images and layers are used in place.
    additional: Vec<Store>,
    is_shared: bool,
}

impl Store {
    /// Opens a store. One that does not exist yet is empty; it is made with the first image that it gets.
    ///
    /// # Errors
    ///
    /// [`Error::StoreVersion`] where the directory holds something else, or belongs to another user.
    pub fn open(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root).map_err(|error| Error::io("resolve", root, error))?;
        let mut store = Self {
            root,
            additional: Vec::new(),
            is_shared: false,
        };
        // The usual case first: this is part of every run.
        match regular_file::read(&store.root.join("version"), DOCUMENT) {
            Ok(version) => store.check(&String::from_utf8_lossy(&version))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("read", &store.root.join("version"), error)),
        }
        Ok(store)
    }

    /// Adds stores of others, such as a site's or a team's: their images are found after this one's own, and layers
    /// that they have are used where they are and not fetched again. They are never written to and never locked, so
    /// they may be on a read-only mount. A directory that is not there is passed over with a warning.
    ///
    /// Naming a store is trusting its owner: whoever may write to it decides what runs.
    ///
    /// # Errors
    ///
    /// [`Error::StoreUntrusted`] where everybody may write to it, [`Error::StoreVersion`] where it is no store.
    pub fn with_additional<P: AsRef<Path>>(
        mut self,
        roots: impl IntoIterator<Item = P>,
    ) -> Result<Self> {
        for root in roots {
            let root = root.as_ref();
            match share::additional(root)? {
                Some(root) if root != self.root => self.additional.push(Self {
                    root,
                    additional: Vec::new(),
                    is_shared: true,
                }),
                Some(_) => {}
                None => {
                    tracing::warn!(path = %root.display(), "the additional store is not there");
                }
            }
        }
        Ok(self)
    }

    /// Returns the directory that holds the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the additional stores' directories.
    pub fn additional(&self) -> impl Iterator<Item = &Path> {
        self.additional.iter().map(Self::root)
    }

    /// Whether everybody on the machine may read it: see [`share`](Self::share).
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Finds an image that was pulled before. No network is used; for a registry image one small file is read.
    ///
    /// An image from a layout or archive that has changed since it was pulled is not found, so that it is read anew.
    /// `dir:` and `host:` are always found.
    ///
    /// # Errors
    ///
    /// [`Error::NotAnImage`] where `dir:` names no directory.
    pub fn find(&self, source: &Source, platform: &Platform) -> Result<Option<Image>> {
        let source = canonical(source)?;
        match &source {
            Source::Directory(path) => return directory(path, platform).map(Some),
            Source::Host => return Ok(Some(local("host:".to_owned(), platform, Rootfs::Host))),
            _ => {}
        }
        let key = record_name(&source.to_string(), platform);
        for store in std::iter::once(self).chain(&self.additional) {
            let path = store.root.join("images").join(&key);
            let Some((record, file)) = read_record(&path)? else {
                continue;
            };
            if record.stamp != Stamp::of(&source) {
                tracing::debug!(
                    image = record.name,
                    "the file has changed since it was pulled"
                );
                continue;
            }
            let hold = if std::ptr::eq(store, self) {
                note_use(&file);
                match self.hold(&record.digest)? {
                    Some(hold) => hold,
                    // It is being removed.
                    None => continue,
                }
            } else {
                Hold::default()
            };
            if let Some(missing) = record.layers.iter().find(|layer| !self.has_files(layer)) {
                // It is pulled again, or where that may not be, the error says so.
                tracing::debug!(image = record.name, layer = %missing, "a layer is missing from the store");
                continue;
            }
            let mut image = self.image(record, store);
            image.hold = hold;
            return Ok(Some(image));
        }
        Ok(None)
    }

    /// Gets an image from where it is, verifies it and unpacks it. What the store has already is not fetched again.
    ///
    /// A tag is always resolved anew, except with [`PullOptions::offline`]. If the future is dropped, what is
    /// unfinished is removed.
    ///
    /// # Errors
    ///
    /// See [`Error`]; nothing of an image that failed can be found afterwards.
    pub async fn pull(
        &self,
        source: &Source,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let source = canonical(source)?;
        match &source {
            Source::Directory(path) => return directory(path, &options.platform),
            Source::Host => return Ok(local("host:".to_owned(), &options.platform, Rootfs::Host)),
            Source::Registry(_) if options.offline => {
                return match self.find(&source, &options.platform)? {
                    Some(image) => Ok(image),
                    None => Err(self.missing(&source, &options.platform)),
                };
            }
            _ => {}
        }
        self.make()?;
        let pulled = pull::pull(self, &source, options, progress).await;
        let mut image = pulled.map_err(|error| match error {
            // Which file it was that found no place says nothing; the store is what is too small.
            Error::StoreFull {
                free, free_files, ..
            } => Error::StoreFull {
                path: self.root.clone(),
                free,
                free_files,
            },
            other => other,
        })?;
        // Nobody can have removed it: the lock of the pull was held until a moment ago, and whoever was faster has
        // removed it after it was pulled, as he may.
        if let Some(digest) = &image.digest
            && let Some(hold) = self.hold(digest)?
        {
            image.hold = hold;
        }
        Ok(image)
    }

    /// Finds an image, or pulls it where it is missing. However many processes ask for the same image at once, one of
    /// them pulls and the others use what it has got.
    ///
    /// # Errors
    ///
    /// As for [`find`](Self::find) and [`pull`](Self::pull).
    pub async fn find_or_pull(
        &self,
        source: &Source,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image> {
        if let Some(image) = self.find(source, &options.platform)? {
            return Ok(image);
        }
        if options.offline && matches!(source, Source::Registry(_)) {
            return Err(self.missing(source, &options.platform));
        }
        self.make()?;
        let key = record_name(&canonical(source)?.to_string(), &options.platform);
        let mut waiting = self.claim(&format!("image-{}", key.trim_end_matches(".json")));
        let deadline = tokio::time::Instant::now() + pull::PATIENCE;
        loop {
            let claim = waiting.attempt()?;
            if let Some(image) = self.find(source, &options.platform)? {
                return Ok(image);
            }
            // Whoever has the claim may be very slow. Its layers are claimed one by one as well.
            if claim.is_some() || tokio::time::Instant::now() > deadline {
                let image = self.pull(source, options, progress).await;
                drop(claim);
                return image;
            }
            tokio::time::sleep(pull::POLL).await;
        }
    }

    /// Lists the images that were pulled, by name, and those of the additional stores.
    pub fn images(&self) -> Result<Vec<Image>> {
        let mut images = Vec::new();
        for store in std::iter::once(self).chain(&self.additional) {
            let records = store.records()?;
            images.extend(
                records
                    .into_iter()
                    .map(|(_, record)| self.image(record, store)),
            );
        }
        images.sort_by(|left, right| {
            let key = |image: &Image| {
                (
                    image.name.clone(),
                    image.platform.clone(),
                    image.additional_store.clone(),
                )
            };
            key(left).cmp(&key(right))
        });
        Ok(images)
    }

    /// Returns the manifest and the configuration of an image as they are stored, under the keys `manifest` and
    /// `config`; both `null` for `dir:` and `host:`.
    pub fn inspect_raw(&self, image: &Image) -> Result<serde_json::Value> {
        let read = |digest: &Option<Digest>| -> Result<serde_json::Value> {
            let Some(digest) = digest else {
                return Ok(serde_json::Value::Null);
            };
            let path = self.existing("blobs", digest, "");
            let bytes = read_document(&path).map_err(|error| Error::io("read", &path, error))?;
            serde_json::from_slice(&bytes).map_err(|error| Error::io("parse", &path, error))
        };
        Ok(serde_json::json!({
            "manifest": read(&image.digest)?,
            "config": read(&image.config_digest)?,
        }))
    }

    fn check(&mut self, version: &str) -> Result<()> {
        self.check_version(version)?;
        let metadata =
            fs::metadata(&self.root).map_err(|error| Error::io("stat", &self.root, error))?;
        // Whoever may write here decides what runs, so it must be the caller or root.
        let caller = rustix::process::geteuid().as_raw();
        if metadata.uid() != caller && metadata.uid() != 0 {
            return Err(Error::StoreVersion {
                path: self.root.clone(),
                reason: format!("it belongs to user {} and not to {caller}", metadata.uid()),
            });
        }
        if metadata.mode() & 0o002 != 0 {
            // What is in it may be anybody's already, so taking the right away now would not do.
            return Err(Error::StoreUntrusted {
                path: self.root.clone(),
                reason: "everybody may write to it".to_owned(),
            });
        }
        if metadata.mode().trailing_zeros() >= 6 {
            // Nobody else may do anything.
            return Ok(());
        }
        self.is_shared = self.root.join("shared").exists();
        if metadata.uid() != caller || metadata.mode() & 0o022 == 0 && self.is_shared {
            return Ok(());
        }
        // CVE-2020-25039, CVE-2021-41103: others could run setuid files or read what layers hold.
        let mode = if self.is_shared { 0o755 } else { 0o700 };
        fs::set_permissions(&self.root, fs::Permissions::from_mode(mode))
            .map_err(|error| Error::io("chmod", &self.root, error))
    }

    fn check_version(&self, version: &str) -> Result<()> {
        if version.trim_end() == VERSION {
            return Ok(());
        }
        let shown = version.trim_end().chars().take(20).collect::<String>();
        Err(Error::StoreVersion {
            path: self.root.clone(),
            reason: format!("its version is {shown:?} and not {VERSION:?}"),
        })
    }

    /// Makes the store where there is none.
    pub(crate) fn make(&self) -> Result<()> {
        if self.root.join("version").exists() {
            return Ok(());
        }
        self.create()
    }

    fn create(&self) -> Result<()> {
        // Another process may be making it at this moment.
        let foreign = fs::read_dir(&self.root).is_ok_and(|mut entries| {
            entries.any(|entry| {
                entry.is_ok_and(|entry| {
                    ![
                        "blobs", "cache", "layers", "images", "tmp", "lock", "shared", "version",
                    ]
                    .iter()
                    .any(|name| entry.file_name() == *name)
                })
            })
        });
        if foreign {
            return Err(Error::StoreVersion {
                path: self.root.clone(),
                reason: "it holds other files and no file `version`".to_owned(),
            });
        }
        for name in [
            "",
            "blobs/sha256",
            "blobs/sha512",
            "layers/sha256",
            "layers/sha512",
            "images",
            "tmp",
        ] {
            let path = self.root.join(name);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|error| Error::io("create", &path, error))?;
        }
        // Last, since it says that all the rest is there.
        self.write(
            &self.root.join("version"),
            format!("{VERSION}\n").as_bytes(),
        )?;
        self.clone().check(VERSION)
    }

    /// Writes a file so that it is there as a whole or not at all.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let scratch = Scratch::unique(&self.tmp(), "file")?;
        let unfinished = scratch.path().join("content");
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)
            .and_then(|mut file| {
                file.write_all(bytes)?;
                if self.is_shared {
                    file.set_permissions(fs::Permissions::from_mode(0o644))?;
                }
                file.sync_all()
            });
        written.map_err(|error| Error::io("write", &unfinished, error))?;
        fs::rename(&unfinished, path).map_err(|error| Error::io("write", path, error))
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Says that this process wants to do something that one process should do.
    pub(crate) fn claim(&self, name: &str) -> Waiting {
        Waiting::new(&self.tmp(), name)
    }

    /// Takes the lock of the whole store, which a pull shares with other pulls and a removal with nobody.
    pub(crate) fn lock(&self, access: Access) -> Result<StoreLock> {
        let path = self.root.join("lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| Error::io("open", &path, error))?;
        let busy = || Error::Busy {
            path: self.root.clone(),
        };
        let operation = match access {
            Access::Pull => FlockOperation::NonBlockingLockShared,
            Access::Removal => FlockOperation::NonBlockingLockExclusive,
        };
        let locked = lease::try_lock_as(&file, operation);
        if locked.map_err(|error| Error::io("lock", &path, error))? == Lock::Busy {
            return Err(busy());
        }
        // For other machines, where the lock may be for this one alone: each side first says that it is there and then
        // looks for the other, so at least one of two sees the other and gives way.
        let tmp = self.tmp();
        match access {
            Access::Pull => {
                let path = tmp.join(lease::unique_name("pull"));
                let failed = |error| Error::io("create", &path, error);
                let announced = Announced {
                    _lease: Lease::create(&path).map_err(failed)?,
                    path,
                };
                if self.is_alive(&tmp.join(REMOVAL_CLAIM))? {
                    return Err(busy());
                }
                Ok(StoreLock {
                    _file: file,
                    _announced: Some(announced),
                    _claim: None,
                })
            }
            Access::Removal => {
                let claim = self.claim(REMOVAL_CLAIM).attempt()?.ok_or_else(busy)?;
                let failed = |error| Error::io("list", &tmp, error);
                for entry in fs::read_dir(&tmp).map_err(failed)? {
                    let entry = entry.map_err(failed)?;
                    let is_pull = entry.file_name().to_string_lossy().starts_with("pull-");
                    if is_pull && self.is_alive(&entry.path())? {
                        return Err(busy());
                    }
                }
                Ok(StoreLock {
                    _file: file,
                    _announced: None,
                    _claim: Some(claim),
                })
            }
        }
    }

    /// Whether a lease has a holder that lives, as far as one can see at once.
    fn is_alive(&self, path: &Path) -> Result<bool> {
        let failed = |error| Error::io("open", path, error);
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed(error)),
        };
        Ok(match lease::holder(&file).map_err(failed)? {
            Holder::Alive => true,
            Holder::Dead => false,
            Holder::Elsewhere => {
                let modified = file.metadata().and_then(|metadata| metadata.modified());
                let now = lease::file_system_time(&self.tmp())?;
                now.duration_since(modified.map_err(failed)?)
                    .is_ok_and(|age| age < lease::GONE)
            }
        })
    }

    /// Removes what dead processes have left.
    pub(crate) fn sweep(&self) -> Result<()> {
        scratch::sweep(&self.tmp())
    }

    /// Returns a manifest or configuration that was verified before, or `None`. It is verified again.
    pub(crate) fn blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        let bytes = read_document(&self.existing("blobs", digest, "")).ok()?;
        let mut hasher = crate::digest::Hasher::new(digest.algorithm());
        hasher.update(&bytes);
        (hasher.finish() == *digest).then_some(bytes)
    }

    /// Keeps a manifest or configuration that was verified.
    pub(crate) fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        let path = self.blob_path(digest);
        // One that is damaged is replaced: nobody puts a blob that the store has.
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == bytes.len() as u64) {
            return Ok(());
        }
        self.write(&path, bytes)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.content_path("blobs", digest)
    }

    /// Returns where a layer lies, here or in an additional store, or would lie here.
    pub(crate) fn layer_path(&self, chain_id: &Digest) -> PathBuf {
        self.existing("layers", chain_id, "layer.json")
    }

    fn has_files(&self, chain_id: &Digest) -> bool {
        self.existing("layers", chain_id, "fs").join("fs").is_dir()
    }

    fn content_path(&self, kind: &str, digest: &Digest) -> PathBuf {
        self.root
            .join(kind)
            .join(digest.algorithm().as_str())
            .join(digest.hex())
    }

    /// Returns where `proof` is in something of the store or of an additional one.
    fn existing(&self, kind: &str, digest: &Digest, proof: &str) -> PathBuf {
        let own = self.content_path(kind, digest);
        if self.additional.is_empty() || own.join(proof).exists() {
            return own;
        }
        self.additional
            .iter()
            .map(|store| store.content_path(kind, digest))
            .find(|path| path.join(proof).exists())
            .unwrap_or(own)
    }

    /// Returns what is known of a layer; `None` where neither the store nor an additional one has it.
    pub(crate) fn layer(&self, chain_id: &Digest) -> Option<Layer> {
        let bytes = read_document(&self.layer_path(chain_id).join("layer.json")).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Puts a finished layer into its place. It is no error if another process was faster: the content is the same.
    pub(crate) fn publish(&self, unfinished: &Path, chain_id: &Digest) -> Result<()> {
        let path = self.content_path("layers", chain_id);
        let failed = |error: io::Error| Error::io("publish", &path, error);
        if self.is_shared {
            share::open_to_all(unfinished)?;
        }
        // One flush for the whole layer; a flush per file would take longer than all the rest.
        File::open(unfinished)
            .and_then(|directory| Ok(rustix::fs::syncfs(directory)?))
            .map_err(failed)?;
        match fs::rename(unfinished, &path) {
            Ok(()) => Ok(()),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Records an image whose layers are all in place, and returns it. It is found again by its name and the platform
    /// that was `wanted`, which may be newer than the one that it was built for.
    pub(crate) fn put_image(&self, wanted: &Platform, record: Record) -> Result<Image> {
        let path = self
            .root
            .join("images")
            .join(record_name(&record.name, wanted));
        let bytes =
            serde_json::to_vec(&record).map_err(|error| Error::io("write", &path, error))?;
        self.write(&path, &bytes)?;
        Ok(self.image(record, self))
    }

    /// Keeps the files of an image where they are; `None` where they are being removed.
    fn hold(&self, digest: &Digest) -> Result<Option<Hold>> {
        let path = self.blob_path(digest);
        let file = match regular_file::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // A store of root's that is not shared with the caller's eyes: it is looked at without a lock.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Ok(Some(Hold::default()));
            }
            Err(error) => return Err(Error::io("open", &path, error)),
        };
        let deadline = Instant::now() + REMOVAL;
        while lease::try_lock_as(&file, FlockOperation::NonBlockingLockShared)
            .map_err(|error| Error::io("lock", &path, error))?
            == Lock::Busy
        {
            if Instant::now() > deadline {
                return Ok(None);
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        // It may have gone while its lock was not ours.
        if file.metadata().is_ok_and(|metadata| metadata.nlink() == 0) {
            return Ok(None);
        }
        Ok(Some(Hold {
            _file: Some(Arc::new(file)),
        }))
    }

    /// Says what is missing of an image that may not be fetched.
    fn missing(&self, source: &Source, platform: &Platform) -> Error {
        let name = source.to_string();
        let path = self.root.join("images").join(record_name(&name, platform));
        let missing = if let Ok(Some((record, _))) = read_record(&path) {
            let layer = record.layers.iter().find(|layer| !self.has_files(layer));
            layer.map_or_else(
                || format!("its manifest {}", record.digest),
                |layer| format!("its layer {layer}"),
            )
        } else {
            let stores = match self.additional.len() {
                0 => "",
                _ => " and the additional ones",
            };
            format!(
                "the image for {platform}, in {}{stores},",
                self.root.display()
            )
        };
        Error::Offline {
            image: name,
            missing,
        }
    }

    fn records(&self) -> Result<Vec<(PathBuf, Record)>> {
        let directory = self.root.join("images");
        let mut records = Vec::new();
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(records),
            Err(error) => return Err(Error::io("list", &directory, error)),
        };
        for entry in entries {
            let path = entry
                .map_err(|error| Error::io("list", &directory, error))?
                .path();
            match read_record(&path) {
                Ok(Some((record, _))) => records.push((path, record)),
                Ok(None) => {}
                // No file at all, but a pipe or the like: nobody's image.
                Err(Error::Io { source, .. }) if source.raw_os_error().is_none() => {
                    tracing::warn!(path = %path.display(), error = %source, "no image record");
                }
                // Whoever collects must not take an image that cannot be read at this moment (EIO and ESTALE of a
                // network file system) for one that is gone.
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    /// Describes an image whose record is in `store`, which is this one or an additional one.
    pub(crate) fn image(&self, record: Record, store: &Self) -> Image {
        let layers = record
            .layers
            .iter()
            .map(|chain_id| self.existing("layers", chain_id, "fs").join("fs"))
            .skip(record.hidden_layers)
            .collect();
        Image {
            name: record.name,
            digest: Some(record.digest),
            config_digest: Some(record.config_digest),
            created: record.config.created().clone(),
            config: record.config,
            platform: record.platform,
            size: record.size,
            rootfs: Rootfs::Layers(layers),
            additional_store: (!std::ptr::eq(store, self)).then(|| store.root.clone()),
            hold: Hold::default(),
        }
    }

    /// Lists the digests that name something in `blobs` or `layers`.
    fn contents(&self, kind: &str) -> Result<Vec<Digest>> {
        let mut digests = Vec::new();
        for algorithm in ["sha256", "sha512"] {
            let directory = self.root.join(kind).join(algorithm);
            let failed = |error| Error::io("list", &directory, error);
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            for entry in entries {
                let name = entry.map_err(failed)?.file_name();
                if let Ok(digest) = format!("{algorithm}:{}", name.to_string_lossy()).parse() {
                    digests.push(digest);
                }
            }
        }
        digests.sort();
        Ok(digests)
    }
}

/// What the lock of a store is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// To put something in, beside others who do so.
    Pull,
    /// To take something out, alone.
    Removal,
}

const REMOVAL_CLAIM: &str = "removal";

/// The lock of a whole store, for as long as it lives.
#[derive(Debug)]
pub(crate) struct StoreLock {
    _file: File,
    _announced: Option<Announced>,
    _claim: Option<Claim>,
}

/// A lease that others find by looking, and that is removed with the value.
#[derive(Debug)]
struct Announced {
    path: PathBuf,
    _lease: Lease,
}

impl Drop for Announced {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "lease stays behind until it is swept");
        }
    }
}

/// Notes that an image was used, where that was not noted some minutes ago. Where it cannot be noted, since the store
/// is another user's or read-only, it is not.
fn note_use(record: &File) {
    let Ok(modified) = record.metadata().and_then(|metadata| metadata.modified()) else {
        return;
    };
    let is_recent = SystemTime::now()
        .duration_since(modified)
        .is_ok_and(|age| age < USE_RESOLUTION);
    if !is_recent {
        lease::touch(record);
    }
}

/// Returns the name of the file that records an image.
fn record_name(name: &str, platform: &Platform) -> String {
    let key = Digest::of(format!("{name}\n{platform}").as_bytes());
    format!("{}.json", key.hex())
}

/// Reads a record; `None` where there is none that can be read.
fn read_record(path: &Path) -> Result<Option<(Record, File)>> {
    let mut file = match regular_file::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path, error)),
    };
    let mut bytes = Vec::new();
    let read = Read::by_ref(&mut file)
        .take(DOCUMENT)
        .read_to_end(&mut bytes);
    read.map_err(|error| Error::io("read", path, error))?;
    match serde_json::from_slice::<Record>(&bytes) {
        Ok(record) => Ok(Some((record, file))),
        Err(error) => {
            // Pulling again writes it anew, which is all that anybody could do about it.
            tracing::warn!(path = %path.display(), %error, "unreadable image record");
            Ok(None)
        }
    }
}

/// Reads a file that is not larger than any document may be.
fn read_document(path: &Path) -> io::Result<Vec<u8>> {
    regular_file::read(path, DOCUMENT)
}

/// The layers and documents that records need.
fn referenced<'a>(records: impl IntoIterator<Item = &'a Record>) -> HashSet<Digest> {
    let mut digests = HashSet::new();
    for record in records {
        digests.extend(record.layers.iter().cloned());
        digests.extend([record.digest.clone(), record.config_digest.clone()]);
    }
    digests
}
