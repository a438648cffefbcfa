//! The directories of a layer: found within it whatever links say, made where they are missing, and given their modes
//! and times when everything is in them.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec};
use rustix::io::Errno;

use super::lower::{find_lower, is_whiteout};
use super::{MAX_OPEN, Unpacker, split, times};
use crate::{Error, Result};

/// What a directory is to be like in the end; without `attributes` where the layer does not say, since it has only
/// something in it.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) path: Vec<u8>,
    pub(super) attributes: Option<(u32, Timespec)>,
}

impl Unpacker {
    /// Gives all directories their modes and times, the deepest first: their parents may then be closed.
    pub(super) fn finish_directories(&mut self, lower: &[OwnedFd]) -> Result<()> {
        let mut directories = std::mem::take(&mut self.directories)
            .into_iter()
            .collect::<Vec<_>>();
        directories
            .sort_by_cached_key(|(_, directory)| std::cmp::Reverse(split(&directory.path).len()));
        for (inode, directory) in directories {
            let opened = match self.reopen(&directory.path) {
                Ok(opened) => opened,
                // It was replaced by something else.
                Err(Error::InvalidEntry { .. }) => continue,
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    continue;
                }
                Err(error) => return Err(error),
            };
            let failed = |error: Errno| self.failed("chmod", &directory.path, error);
            if rustix::fs::fstat(&opened).map_err(failed)?.st_ino != inode {
                continue;
            }
            let attributes = match directory.attributes {
                Some(attributes) => Some(attributes),
                // What the layer does not mention stays as it is in the layers below.
                None => find_lower(lower, &split(&directory.path))
                    .map_err(failed)?
                    .map(|(.., status)| status)
                    .or_else(|| {
                        lower
                            .first()
                            .filter(|_| directory.path.is_empty())
                            .and_then(|root| rustix::fs::fstat(root).ok())
                    })
                    .filter(|status| FileType::from_raw_mode(status.st_mode) == FileType::Directory)
                    .map(|status| (status.st_mode, modified_of(&status))),
            };
            let (mode, modified) = attributes.unwrap_or((
                0o755,
                Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                },
            ));
            // A directory's setgid bit hands its group down and gives nobody anything.
            rustix::fs::fchmod(&opened, Mode::from_raw_mode(mode & 0o7777)).map_err(failed)?;
            rustix::fs::futimens(&opened, &times(modified)).map_err(failed)?;
        }
        Ok(())
    }

    /// Opens a directory of the layer, and makes what is missing on the way to it.
    pub(super) fn directory(
        &mut self,
        components: &[&[u8]],
        dangling: usize,
    ) -> Result<Arc<OwnedFd>> {
        let path = components.join(&b'/');
        if let Some(open) = self.open.get(&path) {
            return Ok(Arc::clone(open));
        }
        let opened = match self.open_beneath(&path, OFlags::PATH) {
            Err(Errno::NOENT | Errno::NOTDIR) if !components.is_empty() => {
                self.make_missing(components, dangling)?
            }
            other => Arc::new(other.map_err(|error| self.failed("open", &path, error))?),
        };
        if self.open.len() >= MAX_OPEN {
            self.open.clear();
        }
        self.open.insert(path, Arc::clone(&opened));
        Ok(opened)
    }

    /// Makes what is missing on the way to a directory. A loop and no recursion: a path may have two thousand parts.
    pub(super) fn make_missing(
        &mut self,
        components: &[&[u8]],
        dangling: usize,
    ) -> Result<Arc<OwnedFd>> {
        // What is there ends somewhere between the root and the whole path, which is known to be missing. By halves:
        // the kernel walks the path each time.
        let (mut present, mut missing) = (0, components.len());
        let mut parent = Arc::new(self.reopen(b"")?);
        while missing - present > 1 {
            let middle = present + (missing - present) / 2;
            let path = components[..middle].join(&b'/');
            match self.open_beneath(&path, OFlags::PATH) {
                Ok(opened) => (present, parent) = (middle, Arc::new(opened)),
                Err(Errno::NOENT | Errno::NOTDIR) => missing = middle,
                Err(error) => return Err(self.failed("open", &path, error)),
            }
        }
        for end in present..components.len() {
            parent = self.make_parent(&parent, &components[..=end], dangling)?;
        }
        Ok(parent)
    }

    /// Makes a directory that something lies in but that has no entry of its own yet.
    pub(super) fn make_parent(
        &mut self,
        parent: &OwnedFd,
        components: &[&[u8]],
        dangling: usize,
    ) -> Result<Arc<OwnedFd>> {
        let path = components.join(&b'/');
        let Some((leaf, parents)) = components.split_last() else {
            return Err(self.refuse(&path, "the root of a layer must be a directory"));
        };
        if *leaf == b".." {
            // From the target of a link. What it led through is there now; only the kernel knows where it stops.
            let opened = self.open_beneath(&path, OFlags::PATH);
            return Ok(Arc::new(
                opened.map_err(|error| self.failed("open", &path, error))?,
            ));
        }
        let name = self.name(leaf)?;
        let present = match rustix::fs::statat(parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(status) => Some(status),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(self.failed("stat", &path, error)),
        };
        match present {
            Some(status) if FileType::from_raw_mode(status.st_mode) == FileType::Symlink => {
                // It points to what is not there, or not in this layer: make that, within the root, and go there.
                let Some(dangling) = dangling.checked_sub(1) else {
                    return Err(self.refuse(&path, "too many symbolic links"));
                };
                let target = rustix::fs::readlinkat(parent, &name, Vec::new())
                    .map_err(|error| self.failed("readlink", &path, error))?;
                let mut components = if target.as_bytes().starts_with(b"/") {
                    Vec::new()
                } else {
                    parents.to_vec()
                };
                components.extend(
                    split(target.as_bytes())
                        .into_iter()
                        .filter(|name| *name != b"."),
                );
                if components.join(&b'/').len() > self.limits.path_bytes {
                    return Err(self.refuse(&path, "a symbolic link leads to an impossible path"));
                }
                self.directory(&components, dangling)
            }
            Some(status) if !is_whiteout(&status) => {
                Err(self.refuse(&path, "something that is no directory has entries"))
            }
            _ => {
                let status = self.mkdir(parent, &name, &path)?;
                self.count_entry()?;
                self.remember(&status, components, None)?;
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let opened = rustix::fs::openat(parent, &name, flags, Mode::empty());
                Ok(Arc::new(
                    opened.map_err(|error| self.failed("open", &path, error))?,
                ))
            }
        }
    }

    /// Opens a directory of the layer if it is there.
    pub(super) fn existing(&self, components: &[&[u8]]) -> Result<Option<OwnedFd>> {
        let path = components.join(&b'/');
        match self.open_beneath(&path, OFlags::PATH) {
            Ok(opened) => Ok(Some(opened)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(self.failed("open", &path, error)),
        }
    }

    /// Opens a directory of the layer that must be there, and is no link, for its attributes.
    pub(super) fn reopen(&self, path: &[u8]) -> Result<OwnedFd> {
        self.open_beneath(path, OFlags::RDONLY | OFlags::NOFOLLOW)
            .map_err(|error| self.failed("open", path, error))
    }

    pub(super) fn open_beneath(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path: &[u8] = if path.is_empty() { b"." } else { path };
        let flags = flags | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                // The kernel gives up where something is renamed anywhere while `..` is resolved.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Makes a directory or keeps the one that is there; takes the place of anything else.
    pub(super) fn mkdir(&mut self, parent: &OwnedFd, name: &CStr, path: &[u8]) -> Result<Stat> {
        let status = |this: &Self| {
            rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| this.failed("stat", path, error))
        };
        match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => return status(self),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(self.failed("mkdir", path, error)),
        }
        let present = status(self)?;
        if FileType::from_raw_mode(present.st_mode) == FileType::Directory {
            return Ok(present);
        }
        self.clear(parent, name, path)?;
        rustix::fs::mkdirat(parent, name, Mode::RWXU)
            .map_err(|error| self.failed("mkdir", path, error))?;
        if !self.is_lowest {
            // What was there hid what is below, be it a whiteout or a file: nothing of the old may show in the new.
            self.set_opaque(parent, name)?;
        }
        status(self)
    }

    pub(super) fn remember(
        &mut self,
        status: &Stat,
        components: &[&[u8]],
        attributes: Option<(u32, Timespec)>,
    ) -> Result<()> {
        let directory = Directory {
            path: components.join(&b'/'),
            attributes,
        };
        // Where the inode was here before, it is the same directory, or one that is gone.
        if let Some(former) = self.directories.remove(&status.st_ino) {
            self.remembered -= former.path.len() as u64 + 100;
        }
        self.count_path(&directory.path)?;
        self.directories.insert(status.st_ino, directory);
        Ok(())
    }
}

pub(super) fn modified_of(status: &Stat) -> Timespec {
    Timespec {
        tv_sec: status.st_mtime,
        // Nanoseconds of a second: never beyond the type.
        tv_nsec: status.st_mtime_nsec.try_into().unwrap_or_default(),
    }
}
