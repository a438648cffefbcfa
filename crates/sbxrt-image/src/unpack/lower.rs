//! What a layer takes from the layers below it: hard links to their files, and the attributes of directories that it
//! has only something in.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::directories::modified_of;
use super::{MAX_DANGLING, OPAQUE, Unpacker, split};
use crate::{Error, Result};

/// A hard link to a file that this layer does not have.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) path: Vec<u8>,
    pub(super) target: Vec<u8>,
}

impl Unpacker {
    /// Makes a hard link to a file of a layer below.
    ///
    /// It is a true link to that layer's file. Layers are read-only, and an entry never changes a file that is there
    /// but replaces it; so sharing the inode is safe, and needs no permission to read it.
    ///
    /// A layer of another user's store, or of one on another file system, takes no links: the file is then copied, once
    /// for all links to it, so copies are never larger than the layers below.
    pub(super) fn link_lower(
        &mut self,
        link: &Link,
        lower: &[OwnedFd],
        copies: &mut Copies,
    ) -> Result<()> {
        let components = split(&link.path);
        let Some((leaf, parents)) = components.split_last() else {
            return Ok(());
        };
        let parent = self.directory(parents, MAX_DANGLING)?;
        let name = self.name(leaf)?;
        match rustix::fs::statat(&*parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
            // A later entry of the same name has replaced the link.
            Ok(_) => return Ok(()),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(self.failed("stat", &link.path, error)),
        }
        let target = split(&link.target);
        // A link to a link that had to wait itself.
        if let Some((target_leaf, target_parents)) = target.split_last() {
            let target_name = self.name(target_leaf)?;
            if let Some(target_parent) = self.existing(target_parents)?
                && self.link(&link.path, (&target_parent, &target_name), (&parent, &name))?
            {
                return Ok(());
            }
        }
        let found =
            find_lower(lower, &target).map_err(|error| self.failed("find", &link.target, error))?;
        let Some((directory, target_name, _)) = found else {
            return Err(self.refuse(&link.path, "a hard link names a file that is not there"));
        };
        match self.link(&link.path, (&directory, &target_name), (&parent, &name)) {
            Err(Error::Io { source, .. }) if takes_no_links(&source) => {
                self.copy_lower(link, (&directory, &target_name), (parent, &name), copies)
            }
            linked => linked.map(drop),
        }
    }

    fn copy_lower(
        &mut self,
        link: &Link,
        from: (&OwnedFd, &CStr),
        to: (Arc<OwnedFd>, &CStr),
        copies: &mut Copies,
    ) -> Result<()> {
        let failed = |error: Errno| self.failed("copy", &link.path, error);
        let status =
            rustix::fs::statat(from.0, from.1, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        if let Some((directory, name)) = copies.get(&(status.st_dev, status.st_ino)) {
            let linked = rustix::fs::linkat(&**directory, name, &*to.0, to.1, AtFlags::empty());
            return linked.map_err(failed);
        }
        match FileType::from_raw_mode(status.st_mode) {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from.0, from.1, Vec::new()).map_err(failed)?;
                rustix::fs::symlinkat(&target, &*to.0, to.1).map_err(failed)?;
            }
            FileType::RegularFile => {
                let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let source = rustix::fs::openat(
                    from.0,
                    from.1,
                    flags | OFlags::RDONLY | OFlags::NONBLOCK,
                    Mode::empty(),
                )
                .map_err(failed)?;
                let copy = rustix::fs::openat(
                    &*to.0,
                    to.1,
                    flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL,
                    Mode::RUSR | Mode::WUSR,
                )
                .map_err(failed)?;
                let (mut source, mut copy) = (File::from(source), File::from(copy));
                let copied = std::io::copy(&mut source, &mut copy);
                self.bytes += copied.map_err(|error| self.io_failed("copy", &link.path, error))?;
                let failed = |error: Errno| self.failed("copy", &link.path, error);
                rustix::fs::fchmod(&copy, Mode::from_raw_mode(status.st_mode & 0o1777))
                    .map_err(failed)?;
                rustix::fs::futimens(&copy, &super::times(modified_of(&status))).map_err(failed)?;
            }
            _ => return Err(self.refuse(&link.path, "a hard link names a device")),
        }
        copies.insert((status.st_dev, status.st_ino), (to.0, to.1.to_owned()));
        Ok(())
    }
}

/// By inode, where the copy of a file of a layer below is.
pub(super) type Copies = HashMap<(u64, u64), (Arc<OwnedFd>, CString)>;

/// Whether a file cannot be linked to from here: it is on another file system, or `protected_hardlinks` forbids it since
/// it is another user's, or it has as many links as a file can have.
fn takes_no_links(error: &std::io::Error) -> bool {
    let refusals = [Errno::XDEV, Errno::PERM, Errno::MLINK].map(Errno::raw_os_error);
    error
        .raw_os_error()
        .is_some_and(|code| refusals.contains(&code))
}

/// Finds what a path names in a stack of layers, top first, as overlayfs does: a whiteout or a file on the way ends the
/// search, and so does an opaque directory once its own layer has nothing. Links are not followed.
pub(super) fn find_lower(
    lower: &[OwnedFd],
    components: &[&[u8]],
) -> rustix::io::Result<Option<(OwnedFd, CString, Stat)>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    'layers: for root in lower {
        let mut directory = rustix::fs::openat(root, c".", flags, Mode::empty())?;
        let mut covered = is_opaque(&directory);
        for (index, component) in components.iter().enumerate() {
            let Ok(name) = CString::new(*component) else {
                return Ok(None);
            };
            let status = match rustix::fs::statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(status) => status,
                Err(Errno::NOENT) if covered => return Ok(None),
                Err(Errno::NOENT) => continue 'layers,
                Err(error) => return Err(error),
            };
            if is_whiteout(&status) {
                return Ok(None);
            }
            if index + 1 == components.len() {
                return Ok(Some((directory, name, status)));
            }
            if FileType::from_raw_mode(status.st_mode) != FileType::Directory {
                return Ok(None);
            }
            directory = rustix::fs::openat(&directory, &name, flags, Mode::empty())?;
            covered |= is_opaque(&directory);
        }
    }
    Ok(None)
}

pub(super) fn is_opaque(directory: &OwnedFd) -> bool {
    let mut value = [0; 1];
    rustix::fs::fgetxattr(directory, OPAQUE, &mut value).is_ok_and(|_| value == *b"y")
}

pub(super) fn is_whiteout(status: &Stat) -> bool {
    FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice && status.st_rdev == 0
}
