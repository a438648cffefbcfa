//! A layer in the making, and what makes a layer of it.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::copy;
use super::stack::{self, NodeKind, Owner, Stack};
use super::{AssembledLayer, TAR};
use crate::digest::Hasher;
use crate::layer_writer::{LayerOptions, write_layer};
use crate::scratch::Scratch;
use crate::{Algorithm, Digest, Error, Result, Store, store};

/// A time: seconds since 1970 and nanoseconds.
pub(super) type Time = (i64, i64);

/// What a directory that is not there yet is like.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fresh {
    pub(super) owner: Option<(u64, u64)>,
    pub(super) modified: Option<Time>,
}

impl Store {
    /// Begins a layer on top of others, whose directories (`…/fs`) are given bottom first.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where the store cannot be written to.
    pub fn draft<P: AsRef<Path>>(&self, below: &[P]) -> Result<LayerDraft> {
        let scratch = Scratch::unique(&self.tmp(), "build")?;
        let directory = scratch.path().join("layer");
        let files = directory.join("fs");
        std::fs::create_dir_all(&files).map_err(|error| Error::io("create", &files, error))?;
        let root = open_directory(&files)?;
        let below: Vec<PathBuf> = below.iter().map(|path| path.as_ref().to_owned()).collect();
        let lower = Stack::of_layers(&below)?;
        // overlayfs shows the attributes of the topmost layer's root.
        let (mode, modified) = match lower.node(b"")? {
            Some(node) => (node.mode, Some(node.modified)),
            None => (0o755, None),
        };
        rustix::fs::fchmod(&root, Mode::from_raw_mode(mode & 0o1777 | 0o700))
            .map_err(|error| Error::io("chmod", &files, error))?;
        let whole: Vec<PathBuf> = below.iter().chain([&files]).cloned().collect();
        let mut draft = LayerDraft {
            store: self.clone(),
            stack: Stack::of_layers(&whole)?,
            lower,
            root,
            directory,
            owners: BTreeMap::new(),
            attributes: BTreeMap::new(),
            scratch,
        };
        draft.set_directory(b"", mode, modified);
        Ok(draft)
    }
}

/// A layer in the making. Dropping it removes it.
#[derive(Debug)]
pub struct LayerDraft {
    store: Store,
    /// The layers below and this one.
    stack: Stack,
    /// The layers below.
    lower: Stack,
    root: OwnedFd,
    directory: PathBuf,
    owners: BTreeMap<Vec<u8>, Owner>,
    /// What directories are to be like in the end; until then they stay writable.
    attributes: BTreeMap<Vec<u8>, (u32, Option<Time>)>,
    scratch: Scratch,
}

/// Who has filled a [`LayerDraft`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// [`LayerDraft::copy`] and [`LayerDraft::make_directory`].
    ByCopying,
    /// A sandbox, which wrote to [`LayerDraft::files`] as an overlayfs upper directory. Whoever owned a file in a layer
    /// below still owns it; setuid bits are written down and taken off.
    ByRunning,
}

impl LayerDraft {
    /// Where the files of the layer are: an empty directory at first, to be used as an overlayfs upper directory.
    pub fn files(&self) -> PathBuf {
        self.directory.join("fs")
    }

    /// Puts a file beside the layer, to be there as long as the draft is; returns where it is.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where it cannot be written.
    pub fn auxiliary(&self, name: &str, bytes: &[u8], mode: u32) -> Result<PathBuf> {
        let path = self.scratch.path().join(name);
        std::fs::write(&path, bytes)
            .and_then(|()| std::fs::set_permissions(&path, Permissions::from_mode(mode)))
            .map_err(|error| Error::io("write", &path, error))?;
        Ok(path)
    }

    /// The image as it is with this layer.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// Makes it a layer of the store, on top of the layer `parent`. Times after `latest` (seconds since 1970) become that.
    /// `None` where nothing is in it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where it cannot be read or moved, and where something in it cannot be in a layer.
    pub fn finish(
        mut self,
        parent: Option<&Digest>,
        filled: Filled,
        latest: Option<i64>,
    ) -> Result<Option<AssembledLayer>> {
        self.set_directories()?;
        let is_empty = self.sweep(filled, latest)?;
        if is_empty {
            return Ok(None);
        }
        self.write_owners()?;
        let mut hashing = Hashing {
            hasher: Hasher::new(Algorithm::Sha256),
            bytes: 0,
        };
        let written = write_layer(&self.directory, &LayerOptions { latest }, &mut hashing)?;
        for (path, reason) in &written.left_out {
            tracing::debug!(path = %path.display(), reason, "left out of the layer");
        }
        let (diff_id, size) = (hashing.hasher.finish(), hashing.bytes);
        let chain_id = match parent {
            None => diff_id.clone(),
            Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
        };
        let description = store::Layer {
            diff_id: diff_id.clone(),
            size: written.bytes,
            opaque: has_opaque_mark(&self.root),
            made_here: true,
        };
        let path = self.directory.join("layer.json");
        let bytes =
            serde_json::to_vec(&description).map_err(|error| Error::io("write", &path, error))?;
        std::fs::write(&path, bytes).map_err(|error| Error::io("write", &path, error))?;
        self.store.publish(&self.directory, &chain_id)?;
        drop(self.scratch);
        Ok(Some(AssembledLayer {
            digest: diff_id.clone(),
            diff_id,
            chain_id,
            size,
            media_type: TAR.to_owned(),
        }))
    }

    /// Opens a directory of this layer. What is missing on the way is made: like below where it is there, else with mode
    /// 0755 and what `new` says of owner and time.
    pub(super) fn directory(&mut self, path: &[u8], new: Fresh) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut current = rustix::io::dup(&self.root)
            .map_err(|error| Error::io("open", &self.shown(path), error))?;
        let mut end = 0;
        while end < path.len() {
            let begin = if end == 0 { 0 } else { end + 1 };
            end = path[begin..]
                .iter()
                .position(|byte| *byte == b'/')
                .map_or(path.len(), |length| begin + length);
            let here = &path[..end];
            let name = CString::new(&path[begin..end])
                .map_err(|error| Error::io("create", &self.shown(here), error))?;
            if name.as_bytes().starts_with(b".wh.") {
                return Err(
                    self.in_the_way(here, "names that begin with .wh. are kept for whiteouts")
                );
            }
            match rustix::fs::openat(&current, &name, flags, Mode::empty()) {
                Ok(opened) => {
                    current = opened;
                    continue;
                }
                Err(Errno::NOENT) => {}
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    return Err(self.in_the_way(here, "it is no directory"));
                }
                Err(error) => return Err(Error::io("open", &self.shown(here), error)),
            }
            let below = self.lower.node(here)?;
            let owner = match &below {
                None => {
                    let Fresh { owner, modified } = new;
                    self.set_directory(here, 0o755, modified);
                    owner.map(|(uid, gid)| Owner::new(uid, gid, 0o755))
                }
                Some(node) if node.kind == NodeKind::Directory => {
                    self.set_directory(here, node.mode, Some(node.modified));
                    self.lower.owner(here, node)?
                }
                Some(_) => return Err(self.in_the_way(here, "it is no directory")),
            };
            if let Some(owner) = owner {
                self.note_owner(here, &owner);
            }
            let made = rustix::fs::mkdirat(&current, &name, Mode::RWXU)
                .and_then(|()| rustix::fs::openat(&current, &name, flags, Mode::empty()));
            current = made.map_err(|error| Error::io("create", &self.shown(here), error))?;
            self.stack.forget();
        }
        Ok(current)
    }

    pub(super) fn set_directory(&mut self, path: &[u8], mode: u32, modified: Option<Time>) {
        self.attributes.insert(path.to_vec(), (mode, modified));
    }

    pub(super) fn note_owner(&mut self, path: &[u8], owner: &Owner) {
        if owner.says_something() {
            self.owners.insert(path.to_vec(), owner.at(path));
        } else {
            self.owners.remove(path);
        }
    }

    pub(super) fn in_the_way(&self, path: &[u8], reason: &str) -> Error {
        Error::UnsupportedFile {
            path: self.shown(path),
            reason: reason.to_owned(),
        }
    }

    /// The path as messages call it: within the image.
    #[expect(clippy::unused_self, reason = "paths are the draft's")]
    pub(super) fn shown(&self, path: &[u8]) -> PathBuf {
        Path::new("/").join(OsStr::from_bytes(path))
    }

    /// Gives directories the attributes that they are to have, the deepest first.
    fn set_directories(&mut self) -> Result<()> {
        let attributes = std::mem::take(&mut self.attributes);
        // A path sorts before what is in it.
        for (path, (mode, modified)) in attributes.into_iter().rev() {
            let failed = |error| {
                Error::io(
                    "finish",
                    &Path::new("/").join(OsStr::from_bytes(&path)),
                    error,
                )
            };
            let directory = open_beneath(&self.root, &path, OFlags::RDONLY).map_err(failed)?;
            rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode & 0o1777)).map_err(failed)?;
            if let Some(modified) = modified {
                rustix::fs::futimens(&directory, &copy::times(modified)).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Goes over everything: takes off and writes down what a layer on disk does not have, and bounds times. Returns
    /// whether there is nothing.
    fn sweep(&mut self, filled: Filled, latest: Option<i64>) -> Result<bool> {
        let mut is_empty = !has_opaque_mark(&self.root);
        let mut bytes = 0;
        let mut ahead: Vec<Vec<u8>> = vec![Vec::new()];
        // In the end, since whatever is done in a directory changes its time.
        let mut restore: Vec<(Vec<u8>, Stat)> = Vec::new();
        while let Some(path) = ahead.pop() {
            let (directory, status) = self.open_for_sweep(&path)?;
            let entries = Dir::read_from(&directory)
                .map_err(|error| Error::io("list", &self.shown(&path), error))?;
            for entry in entries {
                let entry = entry.map_err(|error| Error::io("list", &self.shown(&path), error))?;
                let name = entry.file_name();
                if name == c"." || name == c".." {
                    continue;
                }
                is_empty = false;
                let here = stack::join(&path, name.to_bytes());
                let failed = |error| {
                    Error::io(
                        "stat",
                        &Path::new("/").join(OsStr::from_bytes(&here)),
                        error,
                    )
                };
                let status = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(failed)?;
                // Of several names each counts for a part.
                if FileType::from_raw_mode(status.st_mode) == FileType::RegularFile {
                    let share = i128::from(status.st_size) / i128::from(status.st_nlink).max(1);
                    let length = u64::try_from(share).unwrap_or(u64::MAX);
                    copy::add_bytes(&mut bytes, length)?;
                }
                if filled == Filled::ByRunning {
                    self.take_over(&directory, name, &here, &status)?;
                }
                if FileType::from_raw_mode(status.st_mode) == FileType::Directory {
                    ahead.push(here);
                } else if let Some(latest) = latest.filter(|latest| is_after(&status, *latest)) {
                    let times = copy::times((latest, 0));
                    rustix::fs::utimensat(&directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(failed)?;
                }
            }
            restore.push((path, status));
        }
        for (path, status) in restore.into_iter().rev() {
            let failed = |error| {
                Error::io(
                    "finish",
                    &Path::new("/").join(OsStr::from_bytes(&path)),
                    error,
                )
            };
            let directory = open_beneath(&self.root, &path, OFlags::RDONLY).map_err(failed)?;
            let mut modified = (status.st_mtime, status.st_mtime_nsec.cast_signed());
            if let Some(latest) = latest.filter(|latest| is_after(&status, *latest)) {
                modified = (latest, 0);
            }
            rustix::fs::futimens(&directory, &copy::times(modified)).map_err(failed)?;
            rustix::fs::fchmod(&directory, Mode::from_raw_mode(status.st_mode & 0o1777))
                .map_err(failed)?;
        }
        Ok(is_empty)
    }

    /// Opens a directory and sees to it that it can be read; also returns what it was like.
    fn open_for_sweep(&self, path: &[u8]) -> Result<(OwnedFd, Stat)> {
        let failed = |error| Error::io("open", &self.shown(path), error);
        let handle = open_beneath(&self.root, path, OFlags::PATH).map_err(failed)?;
        let status = rustix::fs::fstat(&handle).map_err(failed)?;
        if status.st_mode & 0o700 != 0o700 {
            let (parent, name) = stack::split(path);
            let parent = open_beneath(&self.root, parent, OFlags::PATH).map_err(failed)?;
            let name = CString::new(name).map_err(|_nul| failed(Errno::INVAL))?;
            let mode = Mode::from_raw_mode(status.st_mode & 0o7777 | 0o700);
            // No link: it has just been opened as a directory, and nobody else writes here any more.
            rustix::fs::chmodat(&parent, &name, mode, AtFlags::empty()).map_err(failed)?;
        }
        let directory = open_beneath(&self.root, path, OFlags::RDONLY).map_err(failed)?;
        Ok((directory, status))
    }

    /// Takes over what a sandbox has left: owners from below, and setuid bits, which are written down and taken off.
    fn take_over(
        &mut self,
        directory: &OwnedFd,
        name: &CStr,
        path: &[u8],
        status: &Stat,
    ) -> Result<()> {
        let kind = FileType::from_raw_mode(status.st_mode);
        if matches!(kind, FileType::CharacterDevice | FileType::Socket) {
            return Ok(());
        }
        let mut owner = Owner::default();
        if let Some(below) = self.lower.node(path)?
            && let Some(found) = self.lower.owner(path, &below)?
        {
            owner.uid = found.uid;
            owner.gid = found.gid;
            // Of the bits and capabilities of a file, a write takes them off; only directories keep theirs here.
            if kind == FileType::Directory {
                owner.mode = found.mode & 0o2000;
            }
        }
        let special = status.st_mode & 0o6000;
        owner.mode |= status.st_mode & 0o7777;
        self.note_owner(path, &owner);
        if special != 0 && matches!(kind, FileType::RegularFile | FileType::Directory) {
            let mode = Mode::from_raw_mode(status.st_mode & 0o1777);
            rustix::fs::chmodat(directory, name, mode, AtFlags::empty())
                .map_err(|error| Error::io("chmod", &self.shown(path), error))?;
        }
        Ok(())
    }

    fn write_owners(&self) -> Result<()> {
        let path = self.directory.join("owners.jsonl");
        let written = File::create_new(&path).and_then(|file| {
            let mut file = BufWriter::new(file);
            for owner in self.owners.values() {
                serde_json::to_writer(&mut file, owner)?;
                file.write_all(b"\n")?;
            }
            file.flush()
        });
        written.map_err(|error| Error::io("write", &path, error))
    }
}

/// Hashes and counts what is written, and keeps nothing of it.
struct Hashing {
    hasher: Hasher,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether something was changed after a time; a part of a second counts, as it does for the layer's archive.
fn is_after(status: &Stat, latest: i64) -> bool {
    (status.st_mtime, status.st_mtime_nsec) > (latest, 0)
}

fn has_opaque_mark(root: &OwnedFd) -> bool {
    let mut value = [0_u8; 8];
    rustix::fs::fgetxattr(root, c"user.overlay.opaque", &mut value)
        .is_ok_and(|length| value[..length].starts_with(b"y"))
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| Error::io("open", path, error))
}

/// Opens a directory beneath another one, through no link.
fn open_beneath(root: &impl AsFd, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    use rustix::fs::ResolveFlags;
    let flags = flags | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path = if path.is_empty() {
        b".".as_slice()
    } else {
        path
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}
