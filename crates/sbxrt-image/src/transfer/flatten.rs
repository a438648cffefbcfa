//! An image as one directory on disk, for whoever copies it.
//!
//! The layers are put on top of each other as overlayfs would show them. Everything belongs to the caller, and there are
//! no setuid bits, capabilities, devices or FIFOs, as without root. What comes from outside is unpacked into a store of
//! its own within the store's `tmp`, so its files can be moved instead of copied; those of the store's own images are
//! shared and are copied.
//!
//! The directory gets its name when it is whole.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, XattrFlags,
};
use rustix::io::Errno;

use super::{Choice, Copied, CopyOptions, Place, absolute, blocking, export};
use crate::blob::Cancel;
use crate::closed::{open, permitted, searching};
use crate::fresh_file::hidden_name;
use crate::layer_writer::{DIRECTORY, FILE};
use crate::scratch::Scratch;
use crate::{Error, Image, Platform, Progress, PullOptions, Result, Rootfs, Source, Store, tree};

/// The kernel's limit for all names of a file's attributes, and for the value of one.
const XATTR_MAX: usize = 64 << 10;

pub(super) async fn copy(
    store: &Store,
    from: &Place,
    path: &Path,
    options: &CopyOptions,
    progress: &dyn Progress,
) -> Result<Copied> {
    let path = absolute(path)?;
    refuse_used(&path)?;
    let platform = match &options.choice {
        Choice::Platform(platform) => platform.clone(),
        Choice::All => {
            return Err(Error::NotADestination {
                place: format!("dir:{} (for more than one image)", path.display()),
            });
        }
    };
    let (image, scratch) = gather(store, from, &platform, options, progress).await?;
    let digest = image.digest.clone();
    let cancel = CancelOnDrop::default();
    let heeded = cancel.0.clone();
    blocking(&from.to_string(), move || {
        let layers = match &image.rootfs {
            Rootfs::Layers(layers) => layers.clone(),
            Rootfs::Directory(directory) => vec![directory.clone()],
            Rootfs::Host => Vec::new(),
        };
        let unfinished = Unfinished::new(&path)?;
        let mut flattening = Flattening::new(&unfinished.path, scratch.is_some(), heeded)?;
        for layer in &layers {
            flattening.layer(layer)?;
        }
        flattening.finish()?;
        unfinished.publish(&path)?;
        drop((image, scratch));
        Ok(())
    })
    .await?;
    Ok(Copied {
        digest,
        media_type: None,
        blobs: Vec::new(),
    })
}

/// Refuses to put an image where something is.
fn refuse_used(path: &Path) -> Result<()> {
    match fs::read_dir(path).map(Iterator::count) {
        Ok(0) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(Error::io("open", path, error))
        }
        Ok(_) | Err(_) => Err(Error::NotAnImage {
            path: path.to_owned(),
            expected: "a new or empty directory",
            reason: "something is there".to_owned(),
        }),
    }
}

/// Gets the layers of an image. Those that are nobody else's come with the directory that they are in.
async fn gather(
    store: &Store,
    from: &Place,
    platform: &Platform,
    options: &CopyOptions,
    progress: &dyn Progress,
) -> Result<(Image, Option<Scratch>)> {
    let source = match from {
        Place::Store(name) => return Ok((export::find(store, name, platform)?, None)),
        Place::Source(Source::Host) => {
            return Err(Error::UnknownImage {
                name: "host:".to_owned(),
            });
        }
        Place::Source(source) => source,
    };
    let pull = PullOptions {
        platform: platform.clone(),
        ..options.source.clone()
    };
    if let Source::Directory(_) = source {
        return Ok((store.pull(source, &pull, progress).await?, None));
    }
    let own = store.clone();
    let scratch = blocking("a scratch directory", move || {
        own.make()?;
        Scratch::unique(&own.tmp(), "flatten")
    })
    .await?;
    let within = Store::open(&scratch.path().join("store"))?;
    let image = within.pull(source, &pull, progress).await?;
    Ok((image, Some(scratch)))
}

/// Tells the thread that works for a copy that nobody waits for it any more.
#[derive(Debug, Default)]
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// A directory that is not whole yet, with a hidden name; it goes with the value.
#[derive(Debug)]
struct Unfinished {
    path: PathBuf,
    published: bool,
}

impl Unfinished {
    fn new(target: &Path) -> Result<Self> {
        let parent = target.parent().unwrap_or(Path::new("/"));
        let path = hidden_name(parent);
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| Error::io("create", target, error))?;
        Ok(Self {
            path,
            published: false,
        })
    }

    fn publish(mut self, target: &Path) -> Result<()> {
        // Takes the place of an empty directory, and of nothing else.
        fs::rename(&self.path, target).map_err(|error| Error::io("create", target, error))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        let (Some(parent), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return;
        };
        let removed = File::open(parent).and_then(|parent| {
            let name = CString::new(name.as_bytes())?;
            Ok(tree::remove_all(parent.as_fd(), &name)?)
        });
        if let Err(error) = removed {
            tracing::warn!(path = %self.path.display(), %error, "an unfinished directory stays behind");
        }
    }
}

/// A file that was copied: where to, and what is there.
#[derive(Debug)]
struct Twin {
    path: Vec<u8>,
    inode: u64,
}

/// Layers on their way into one directory.
#[derive(Debug)]
struct Flattening {
    path: PathBuf,
    root: OwnedFd,
    /// Whether the files of the layers are nobody else's.
    moves: bool,
    cancel: Cancel,
    /// What directories are to be like in the end. They must stay writable until then.
    directories: BTreeMap<Vec<u8>, (u32, Timespec)>,
    twins: HashMap<(u64, u64), Twin>,
}

/// A directory of a layer and the one that it becomes part of.
#[derive(Debug)]
struct Level {
    /// With a slash at the end; empty for the root.
    path: Vec<u8>,
    from: OwnedFd,
    to: OwnedFd,
    names: Vec<CString>,
}

impl Flattening {
    fn new(path: &Path, moves: bool, cancel: Cancel) -> Result<Self> {
        let root = rustix::fs::open(path, DIRECTORY, Mode::empty())
            .map_err(|error| Error::io("open", path, error))?;
        Ok(Self {
            path: path.to_owned(),
            root,
            moves,
            cancel,
            directories: BTreeMap::new(),
            twins: HashMap::new(),
        })
    }

    /// Puts a layer on top of what is there.
    fn layer(&mut self, layer: &Path) -> Result<()> {
        let from = rustix::fs::open(layer, DIRECTORY, Mode::empty())
            .map_err(|error| Error::io("open", layer, error))?;
        let to = self
            .root
            .try_clone()
            .map_err(|error| Error::io("open", &self.path, error))?;
        let mut levels = vec![self.enter(from, to, Vec::new())?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                levels.pop();
                continue;
            };
            if self.cancel.is_cancelled() {
                return Err(Error::Cancelled {
                    what: self.path.display().to_string(),
                });
            }
            let below = self.entry(level, &name)?;
            levels.extend(below);
        }
        Ok(())
    }

    /// Begins to go through a directory that has a place.
    fn enter(&mut self, from: OwnedFd, to: OwnedFd, path: Vec<u8>) -> Result<Level> {
        let status = rustix::fs::fstat(&from).map_err(|error| self.failed("stat", &path, error))?;
        self.copy_xattrs(&from, &to, &path)?;
        self.directories
            .insert(path.clone(), (status.st_mode & 0o1777, modified(&status)));
        let listed = from
            .try_clone()
            .map_err(|error| Error::io("list", &self.path_of(&path), error))?;
        let failed = |error| self.failed("list", &path, error);
        let mut names = Vec::new();
        for entry in Dir::new(listed).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                names.push(name.to_owned());
            }
        }
        Ok(Level {
            path,
            from,
            to,
            names,
        })
    }

    fn entry(&mut self, level: &Level, name: &CStr) -> Result<Option<Level>> {
        let path = [level.path.as_slice(), name.to_bytes()].concat();
        let status = searching(&level.from, || {
            rustix::fs::statat(&level.from, name, AtFlags::SYMLINK_NOFOLLOW)
        })
        .map_err(|error| self.failed("stat", &path, error))?;
        match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => return self.directory(level, name, path).map(Some),
            FileType::RegularFile => {
                self.clear(level, name, &path)?;
                self.file(level, name, &path, &status)?;
            }
            FileType::Symlink => {
                self.clear(level, name, &path)?;
                self.symlink(level, name, &path, &status)?;
            }
            // A whiteout; other devices no layer of the store has.
            FileType::CharacterDevice => self.clear(level, name, &path)?,
            other => {
                tracing::warn!(path = %self.path_of(&path).display(), kind = ?other, "left out");
            }
        }
        Ok(None)
    }

    fn directory(&mut self, level: &Level, name: &CStr, mut path: Vec<u8>) -> Result<Level> {
        let from = open(&level.from, name, DIRECTORY)
            .map_err(|error| self.failed("open", &path, error))?;
        let mut value = [0];
        let is_opaque = permitted(&from, Mode::RUSR, |from| {
            rustix::fs::fgetxattr(from, c"user.overlay.opaque", &mut value)
        })
        .is_ok_and(|_| value == *b"y");
        let present = rustix::fs::statat(&level.to, name, AtFlags::SYMLINK_NOFOLLOW);
        let is_directory = present
            .is_ok_and(|present| FileType::from_raw_mode(present.st_mode) == FileType::Directory);
        if is_opaque || !is_directory {
            self.clear(level, name, &path)?;
            rustix::fs::mkdirat(&level.to, name, Mode::RWXU)
                .map_err(|error| self.failed("mkdir", &path, error))?;
        }
        let to = rustix::fs::openat(&level.to, name, DIRECTORY, Mode::empty())
            .map_err(|error| self.failed("open", &path, error))?;
        path.push(b'/');
        self.enter(from, to, path)
    }

    fn file(&mut self, level: &Level, name: &CStr, path: &[u8], status: &Stat) -> Result<()> {
        if self.moves {
            let linked = searching(&level.from, || {
                rustix::fs::linkat(&level.from, name, &level.to, name, AtFlags::empty())
            });
            match linked {
                Ok(()) => return Ok(()),
                // Another file system, or one with little room for links.
                Err(Errno::XDEV | Errno::MLINK | Errno::PERM | Errno::NOTSUP) => {}
                Err(error) => return Err(self.failed("link", path, error)),
            }
        }
        let identity = (status.st_dev, status.st_ino);
        if status.st_nlink > 1
            && let Some(twin) = self.twins.get(&identity)
            && self.link_twin(twin, level, name)
        {
            return Ok(());
        }
        let from =
            open(&level.from, name, FILE).map_err(|error| self.failed("open", path, error))?;
        let opened = rustix::fs::fstat(&from).map_err(|error| self.failed("stat", path, error))?;
        if FileType::from_raw_mode(opened.st_mode) != FileType::RegularFile {
            return Err(self.failed("open", path, Errno::INVAL));
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = rustix::fs::openat(&level.to, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| self.failed("create", path, error))?;
        let (mut from, mut to) = (File::from(from), File::from(to));
        io::copy(&mut from, &mut to)
            .map_err(|error| Error::io("write", &self.path_of(path), error))?;
        self.copy_xattrs(&from, &to, path)?;
        rustix::fs::fchmod(&to, Mode::from_raw_mode(opened.st_mode & 0o777))
            .map_err(|error| self.failed("chmod", path, error))?;
        rustix::fs::futimens(&to, &times(modified(&opened)))
            .map_err(|error| self.failed("utimensat", path, error))?;
        if status.st_nlink > 1 {
            let inode = rustix::fs::fstat(&to)
                .map_err(|error| self.failed("stat", path, error))?
                .st_ino;
            self.twins.insert(
                identity,
                Twin {
                    path: path.to_owned(),
                    inode,
                },
            );
        }
        Ok(())
    }

    /// Links to the copy of a file that there is, if it is there still: a layer above may have put something else in its
    /// place, or a link in that of a directory on the way.
    fn link_twin(&self, twin: &Twin, level: &Level, name: &CStr) -> bool {
        let (parent, leaf) = match twin.path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&twin.path[..slash], &twin.path[slash + 1..]),
            None => (&b""[..], twin.path.as_slice()),
        };
        let Ok(parent) = self.beneath(parent, OFlags::PATH | OFlags::DIRECTORY) else {
            return false;
        };
        let Ok(leaf) = CString::new(leaf) else {
            return false;
        };
        rustix::fs::statat(&parent, &leaf, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|status| status.st_ino == twin.inode)
            && rustix::fs::linkat(&parent, &leaf, &level.to, name, AtFlags::empty()).is_ok()
    }

    fn symlink(&self, level: &Level, name: &CStr, path: &[u8], status: &Stat) -> Result<()> {
        let target = searching(&level.from, || {
            rustix::fs::readlinkat(&level.from, name, Vec::new())
        })
        .map_err(|error| self.failed("readlink", path, error))?;
        rustix::fs::symlinkat(&target, &level.to, name)
            .map_err(|error| self.failed("symlink", path, error))?;
        let times = times(modified(status));
        rustix::fs::utimensat(&level.to, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| self.failed("utimensat", path, error))
    }

    /// Removes what has a name, with all that is in it.
    fn clear(&self, level: &Level, name: &CStr, path: &[u8]) -> Result<()> {
        tree::remove_all(level.to.as_fd(), name)
            .map_err(|error| self.failed("replace", path, error))
    }

    fn copy_xattrs(&self, from: &impl AsFd, to: &impl AsFd, path: &[u8]) -> Result<()> {
        let mut names = vec![0; XATTR_MAX];
        let length = match rustix::fs::flistxattr(from, &mut names[..]) {
            Ok(length) => length,
            Err(Errno::NOTSUP) => return Ok(()),
            Err(error) => return Err(self.failed("listxattr", path, error)),
        };
        for key in names[..length].split(|byte| *byte == 0) {
            if !key.starts_with(b"user.") || key.starts_with(b"user.overlay.") {
                continue;
            }
            let mut value = vec![0; XATTR_MAX];
            let length = permitted(from, Mode::RUSR, |from| {
                rustix::fs::fgetxattr(from, key, &mut value[..])
            })
            .map_err(|error| self.failed("getxattr", path, error))?;
            // A file system that takes none is no reason to fail, as when a layer is unpacked.
            if let Err(error) =
                rustix::fs::fsetxattr(to, key, &value[..length], XattrFlags::empty())
            {
                tracing::debug!(path = %path.escape_ascii(), %error, "attribute left out");
            }
        }
        Ok(())
    }

    /// Gives all directories their modes and times, the deepest first: their parents may then be closed.
    fn finish(self) -> Result<()> {
        let mut directories = self.directories.iter().collect::<Vec<_>>();
        let depth = |path: &[u8]| path.split(|byte| *byte == b'/').count();
        directories.sort_by_key(|(path, _)| std::cmp::Reverse(depth(path)));
        for (path, (mode, modified)) in directories {
            let directory = match self.beneath(path, DIRECTORY) {
                Ok(directory) => directory,
                // A layer above has removed or replaced it.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(error) => return Err(self.failed("open", path, error)),
            };
            rustix::fs::fchmod(&directory, Mode::from_raw_mode(*mode))
                .map_err(|error| self.failed("chmod", path, error))?;
            rustix::fs::futimens(&directory, &times(*modified))
                .map_err(|error| self.failed("utimensat", path, error))?;
        }
        Ok(())
    }

    /// Opens something of the new directory, following no link.
    fn beneath(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path: &[u8] = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        loop {
            let flags = flags | OFlags::CLOEXEC;
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    fn path_of(&self, path: &[u8]) -> PathBuf {
        self.path.join(OsStr::from_bytes(path))
    }

    fn failed(&self, operation: &'static str, path: &[u8], error: Errno) -> Error {
        Error::io(operation, &self.path_of(path), error)
    }
}

fn modified(status: &Stat) -> Timespec {
    Timespec {
        tv_sec: status.st_mtime,
        // Nanoseconds of a second: never beyond the type.
        tv_nsec: status.st_mtime_nsec.try_into().unwrap_or_default(),
    }
}

fn times(modified: Timespec) -> Timestamps {
    Timestamps {
        last_access: modified,
        last_modification: modified,
    }
}
