//! A layer's tar stream, unpacked into a directory for overlayfs.
//!
//! Follows "Image Layer Filesystem Changeset" of the OCI image specification. The stream is hostile; what holds it:
//!
//! - Every path is resolved by `openat2(RESOLVE_IN_ROOT)` beneath the directory of the layer. A link that points
//!   outside leads to the same name inside, as it will when the image runs; it never leads out, and a layer that does
//!   such things (real ones do) unpacks all the same.
//! - Nothing is ever opened or changed through its last component if that is a link.
//! - Bytes, entries and headers are counted.
//!
//! It is done by the caller without privileges. What needs root is not done but written beside the files, to
//! `owners.jsonl`: one JSON object on a line for each entry that has an owner other than 0:0, a setuid or setgid bit, a
//! file capability, or is a device or FIFO (which are not made). A later line on a path replaces an earlier one:
//!
//! ```json
//! {"path":"bin/su","uid":0,"gid":0,"mode":2541}
//! {"path":"dev/null","uid":0,"gid":0,"mode":438,"kind":"character_device","major":1,"minor":3}
//! {"path":"bin/ping","uid":0,"gid":0,"mode":493,"capability":"0100000200200000000000000000000000000000"}
//! ```
//!
//! `path` is relative to the layer; one that is not UTF-8 is given in hexadecimal as `path_hex` instead.
//!
//! Whiteouts become what overlayfs reads with its option `userxattr`: a character device 0:0 (which anybody may make
//! since Linux 5.8) and the attribute `user.overlay.opaque`. They apply to the layers below and never to the layer
//! they are in: where it has both, the entry stays and hides what is below. In the lowest layer they mean nothing.

mod attributes;
mod directories;
mod lower;
mod refusal;

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use self::directories::Directory;
use self::lower::{Link, is_whiteout};
use crate::replay::Recorder;
use crate::tarball::{Entry, Kind, Skip, Sparse, Tarball};
use crate::tree;
use crate::{Digest, Error, Limits, Result};

const OPAQUE: &CStr = c"user.overlay.opaque";
const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// What aufs kept for itself in images made long ago.
const AUFS_PREFIX: &[u8] = b".wh..wh.";

/// The kernel's limit for one component of a path, and for the target of a link.
const NAME_MAX: usize = 255;
const TARGET_MAX: usize = 4095;

/// How many links in a row may lead to directories that are not there, as in the kernel.
const MAX_DANGLING: usize = 40;
/// How many directories are held open.
const MAX_OPEN: usize = 64;
const BUFFER: usize = 128 << 10;

/// A layer that is being unpacked into a directory.
#[derive(Debug)]
pub(crate) struct Unpacker {
    layer: Digest,
    limits: Limits,
    /// The directory and its path, which serves for messages only.
    root: OwnedFd,
    path: PathBuf,
    owners: BufWriter<File>,
    owners_path: PathBuf,
    recorder: Option<Recorder>,
    /// Why the stream cannot be had again.
    lost: Option<&'static str>,
    /// Whether a link was replaced.
    links_changed: bool,
    is_lowest: bool,
    /// Directories by the path that led to them. Emptied whenever something is removed, for then the path may lead
    /// elsewhere.
    open: HashMap<Vec<u8>, Arc<OwnedFd>>,
    /// By inode, what directories are to be like in the end. They must stay writable until then.
    directories: HashMap<u64, Directory>,
    links: Vec<Link>,
    buffer: Vec<u8>,
    entries: u64,
    /// What `directories` and `links` take, as [`Limits::remembered_bytes`] counts it.
    remembered: u64,
    bytes: u64,
    opaque: bool,
}

/// What was unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    /// The bytes of its files.
    pub(crate) bytes: u64,
    /// Whether it hides everything below it.
    pub(crate) opaque: bool,
}

impl Unpacker {
    /// Begins to unpack a layer into `directory`, as `fs/`, `owners.jsonl` and `tar.split`, which must not be there yet.
    pub(crate) fn new(
        directory: &Path,
        layer: &Digest,
        is_lowest: bool,
        limits: &Limits,
    ) -> Result<Self> {
        let path = directory.join("fs");
        let owners_path = directory.join("owners.jsonl");
        std::fs::create_dir(&path).map_err(|error| Error::io("create", &path, error))?;
        let root = rustix::fs::open(
            &path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|error| Error::io("open", &path, error))?;
        rustix::fs::fchmod(&root, Mode::RWXU).map_err(|error| Error::io("chmod", &path, error))?;
        let owners = File::create_new(&owners_path)
            .map_err(|error| Error::io("create", &owners_path, error))?;
        let mut unpacker = Self {
            layer: layer.clone(),
            limits: limits.clone(),
            root,
            path,
            owners: BufWriter::new(owners),
            owners_path,
            recorder: Some(Recorder::new(directory)?),
            lost: None,
            links_changed: false,
            is_lowest,
            open: HashMap::new(),
            directories: HashMap::new(),
            links: Vec::new(),
            buffer: vec![0; BUFFER],
            entries: 0,
            remembered: 0,
            bytes: 0,
            opaque: false,
        };
        let status = rustix::fs::fstat(&unpacker.root)
            .map_err(|error| unpacker.failed("stat", b"", error))?;
        unpacker.remember(&status, &[], None)?;
        Ok(unpacker)
    }

    /// Unpacks all entries of a tar stream, and reads it to its end.
    pub(crate) fn unpack<R: Skip>(&mut self, tarball: &mut Tarball<R>) -> Result<()> {
        if let Some(recorder) = self.recorder.take() {
            tarball.record(recorder);
        }
        loop {
            let entry = match tarball.next_entry() {
                Ok(Some(entry)) => entry,
                Ok(None) => {
                    let recorder = tarball.finish_recording();
                    self.recorder = recorder.map_err(|error| self.stream_failed(error))?;
                    return Ok(());
                }
                Err(error) => return Err(self.stream_failed(error)),
            };
            self.count_entry()?;
            self.entry(&entry, tarball)?;
        }
    }

    /// Whether the layers below are needed to finish this one.
    pub(crate) fn needs_lower(&self) -> bool {
        !self.is_lowest
            && (!self.links.is_empty()
                || self
                    .directories
                    .values()
                    .any(|directory| directory.attributes.is_none()))
    }

    /// Does what had to wait until everything is there. `lower` are the directories of the layers below, top first; it
    /// may be empty where [`needs_lower`](Self::needs_lower) says so.
    pub(crate) fn finish(mut self, lower: &[PathBuf]) -> Result<Summary> {
        let open_lower = lower
            .iter()
            .map(|path| {
                rustix::fs::open(
                    path,
                    OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                    Mode::empty(),
                )
                .map_err(|error| Error::io("open", path, error))
            })
            .collect::<Result<Vec<_>>>()?;
        let mut copies = lower::Copies::new();
        for link in std::mem::take(&mut self.links) {
            self.link_lower(&link, &open_lower, &mut copies)?;
        }
        self.open.clear();
        if let Some(mut recorder) = self.recorder.take() {
            if let Some(reason) = self.lost {
                recorder.lose(reason);
            }
            if self.links_changed {
                recorder.links_changed();
            }
            recorder.finish(self.root.as_fd())?;
        }
        self.finish_directories(&open_lower)?;
        let owners_path = &self.owners_path;
        self.owners
            .flush()
            .map_err(|error| Error::io("write", owners_path, error))?;
        Ok(Summary {
            bytes: self.bytes,
            opaque: self.opaque,
        })
    }

    fn count_entry(&mut self) -> Result<()> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(self.exceeded("entries", self.limits.entries));
        }
        Ok(())
    }

    /// Answers for a path that is kept until the end.
    fn count_path(&mut self, path: &[u8]) -> Result<()> {
        self.remembered += path.len() as u64 + 100;
        if self.remembered > self.limits.remembered_bytes {
            return Err(self.exceeded("remembered_bytes", self.limits.remembered_bytes));
        }
        Ok(())
    }

    fn entry<R: Skip>(&mut self, entry: &Entry, tarball: &mut Tarball<R>) -> Result<()> {
        let components = self.clean(&entry.path)?;
        let Some((leaf, parents)) = components.split_last() else {
            return self.root_entry(entry);
        };
        if let Some(marker) = parents
            .iter()
            .find(|name| name.starts_with(WHITEOUT_PREFIX))
        {
            if marker.starts_with(AUFS_PREFIX) {
                return Ok(());
            }
            return Err(self.refuse(
                &entry.path,
                "names that begin with .wh. are kept for whiteouts",
            ));
        }
        if leaf.starts_with(WHITEOUT_PREFIX) {
            return self.whiteout_entry(entry, parents, leaf);
        }
        let parent = self.directory(parents, MAX_DANGLING)?;
        let name = self.name(leaf)?;
        match entry.kind {
            Kind::Directory => self.make_directory(entry, &components, &parent, &name)?,
            Kind::File => self.make_file(entry, &components, (&parent, &name), tarball)?,
            Kind::Symlink => self.make_symlink(entry, &parent, &name)?,
            // The owner is that of the file it names.
            Kind::HardLink => return self.make_link(entry, &components, &parent, &name),
            Kind::CharacterDevice | Kind::BlockDevice | Kind::Fifo => {
                self.clear(&parent, &name, &entry.path)?;
                // What it would hide must not show through.
                if !self.is_lowest {
                    self.make_whiteout(&parent, &name)?;
                }
            }
        }
        self.note_owner(entry, &components.join(&b'/'))
    }

    fn root_entry(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::Directory {
            // CVE-2021-29136: a link in place of the root sends all later layers elsewhere.
            return Err(self.refuse(&entry.path, "the root of a layer must be a directory"));
        }
        let root = self.reopen(b"")?;
        self.set_xattrs(entry, &root)?;
        let status =
            rustix::fs::fstat(&root).map_err(|error| self.failed("stat", &entry.path, error))?;
        self.remember(&status, &[], Some((entry.mode, modified(entry))))?;
        self.note_owner(entry, b"")
    }

    /// Marks what a whiteout hides.
    fn whiteout_entry(&mut self, entry: &Entry, parents: &[&[u8]], leaf: &[u8]) -> Result<()> {
        if leaf == OPAQUE_MARKER {
            if self.is_lowest {
                return Ok(());
            }
            self.opaque |= parents.is_empty();
            let parent = self.directory(parents, MAX_DANGLING)?;
            return self.set_opaque(&parent, c".");
        }
        if leaf.starts_with(AUFS_PREFIX) {
            return Ok(());
        }
        let hidden = &leaf[WHITEOUT_PREFIX.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(self.refuse(&entry.path, "a whiteout must name something"));
        }
        if self.is_lowest {
            return Ok(());
        }
        let parent = self.directory(parents, MAX_DANGLING)?;
        let name = self.name(hidden)?;
        match rustix::fs::statat(&*parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => self.make_whiteout(&parent, &name),
            Err(error) => Err(self.failed("stat", &entry.path, error)),
            Ok(status) if FileType::from_raw_mode(status.st_mode) == FileType::Directory => {
                self.set_opaque(&parent, &name)
            }
            Ok(_) => Ok(()),
        }
    }

    fn make_directory(
        &mut self,
        entry: &Entry,
        components: &[&[u8]],
        parent: &OwnedFd,
        name: &CStr,
    ) -> Result<()> {
        let status = self.mkdir(parent, name, &entry.path)?;
        if entry
            .xattrs
            .iter()
            .any(|(key, _)| key.starts_with(b"user."))
        {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let directory = rustix::fs::openat(parent, name, flags, Mode::empty())
                .map_err(|error| self.failed("open", &entry.path, error))?;
            self.set_xattrs(entry, &directory)?;
        }
        self.remember(&status, components, Some((entry.mode, modified(entry))))
    }

    fn make_file<R: Skip>(
        &mut self,
        entry: &Entry,
        components: &[&[u8]],
        (parent, name): (&OwnedFd, &CStr),
        tarball: &mut Tarball<R>,
    ) -> Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = match rustix::fs::openat(parent, name, flags, mode) {
            Err(Errno::EXIST) => {
                self.clear(parent, name, &entry.path)?;
                rustix::fs::openat(parent, name, flags, mode)
            }
            other => other,
        };
        let file = File::from(file.map_err(|error| self.failed("create", &entry.path, error))?);
        match &entry.sparse {
            None => self.copy_data(entry, &file, tarball)?,
            Some(sparse) => self.copy_sparse(entry, sparse, &file, tarball)?,
        }
        if let Some(recorder) = tarball.recorder() {
            let status = rustix::fs::fstat(&file)
                .map_err(|error| self.failed("stat", &entry.path, error))?;
            let whole = [(0, entry.stored)];
            let parts = entry
                .sparse
                .as_ref()
                .map_or(&whole[..], |sparse| &sparse.parts);
            recorder
                .file(&components.join(&b'/'), status.st_ino, entry.mode, parts)
                .map_err(|error| self.stream_failed(error.into()))?;
        }
        // Before the mode, which may forbid it, and the time last, since all the others change it.
        self.set_xattrs(entry, &file)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode & 0o1777))
            .map_err(|error| self.failed("chmod", &entry.path, error))?;
        rustix::fs::futimens(&file, &times(modified(entry)))
            .map_err(|error| self.failed("utimensat", &entry.path, error))
    }

    fn copy_data<R: Skip>(
        &mut self,
        entry: &Entry,
        mut file: &File,
        tarball: &mut Tarball<R>,
    ) -> Result<()> {
        self.bytes = self.bytes.saturating_add(entry.stored);
        let mut buffer = std::mem::take(&mut self.buffer);
        let copied = loop {
            match tarball.read_data(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(read) => {
                    if let Err(error) = file.write_all(&buffer[..read]) {
                        break Err(self.io_failed("write", &entry.path, error));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(self.stream_failed(error.into())),
            }
        };
        self.buffer = buffer;
        copied
    }

    fn copy_sparse<R: Skip>(
        &mut self,
        entry: &Entry,
        sparse: &Sparse,
        file: &File,
        tarball: &mut Tarball<R>,
    ) -> Result<()> {
        // Holes take no space here, but they would wherever the file is copied to.
        self.bytes = self.bytes.saturating_add(sparse.size);
        if self.bytes > self.limits.layer_bytes {
            return Err(self.exceeded("layer_bytes", self.limits.layer_bytes));
        }
        file.set_len(sparse.size)
            .map_err(|error| self.io_failed("truncate", &entry.path, error))?;
        for (offset, length) in &sparse.parts {
            let mut at = *offset;
            let end = offset + length;
            while at < end {
                let wanted = usize::try_from(end - at).map_or(BUFFER, |left| left.min(BUFFER));
                let read = match tarball.read_data(&mut self.buffer[..wanted]) {
                    Ok(read) => read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(self.stream_failed(error.into())),
                };
                if read == 0 {
                    return Err(
                        self.stream_failed(io::Error::from(io::ErrorKind::UnexpectedEof).into())
                    );
                }
                file.write_all_at(&self.buffer[..read], at)
                    .map_err(|error| self.io_failed("write", &entry.path, error))?;
                at += read as u64;
            }
        }
        Ok(())
    }

    fn make_symlink(&mut self, entry: &Entry, parent: &OwnedFd, name: &CStr) -> Result<()> {
        if entry.link.is_empty() || entry.link.len() > TARGET_MAX {
            return Err(self.refuse(&entry.path, "a symbolic link has an impossible target"));
        }
        let Ok(target) = CString::new(entry.link.as_slice()) else {
            return Err(self.refuse(&entry.path, "a symbolic link's target holds a NUL"));
        };
        let made = match rustix::fs::symlinkat(&target, parent, name) {
            Err(Errno::EXIST) => {
                self.clear(parent, name, &entry.path)?;
                rustix::fs::symlinkat(&target, parent, name)
            }
            other => other,
        };
        made.map_err(|error| self.failed("symlink", &entry.path, error))?;
        rustix::fs::utimensat(
            parent,
            name,
            &times(modified(entry)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(|error| self.failed("utimensat", &entry.path, error))
    }

    fn make_link(
        &mut self,
        entry: &Entry,
        components: &[&[u8]],
        parent: &OwnedFd,
        name: &CStr,
    ) -> Result<()> {
        let target = self.clean(&entry.link)?;
        let Some((target_leaf, target_parents)) = target.split_last() else {
            return Err(self.refuse(&entry.path, "a hard link must name a file"));
        };
        let target_name = self.name(target_leaf)?;
        if let Some(target_parent) = self.existing(target_parents)?
            && self.link(&entry.path, (&target_parent, &target_name), (parent, name))?
        {
            return Ok(());
        }
        if self.is_lowest {
            return Err(self.refuse(&entry.path, "a hard link names a file that is not there"));
        }
        // It replaces what this layer has of that name now, even though the file comes later.
        self.clear(parent, name, &entry.path)?;
        let link = Link {
            path: components.join(&b'/'),
            target: target.join(&b'/'),
        };
        self.count_path(&[link.path.as_slice(), &link.target].concat())?;
        self.links.push(link);
        Ok(())
    }

    /// Links one name to another; returns false where the target is not there.
    fn link(
        &mut self,
        path: &[u8],
        from: (&OwnedFd, &CStr),
        to: (&OwnedFd, &CStr),
    ) -> Result<bool> {
        let target = match rustix::fs::statat(from.0, from.1, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(status) => status,
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(self.failed("stat", path, error)),
        };
        if FileType::from_raw_mode(target.st_mode) == FileType::Directory {
            return Err(self.refuse(path, "a hard link names a directory"));
        }
        if is_whiteout(&target) {
            return Err(self.refuse(path, "a hard link names a file that the layer removes"));
        }
        if let Ok(present) = rustix::fs::statat(to.0, to.1, AtFlags::SYMLINK_NOFOLLOW) {
            // Linking a file to itself must not begin by removing it.
            if (present.st_dev, present.st_ino) == (target.st_dev, target.st_ino) {
                return Ok(true);
            }
            self.clear(to.0, to.1, path)?;
        }
        match rustix::fs::linkat(from.0, from.1, to.0, to.1, AtFlags::empty()) {
            Ok(()) => Ok(true),
            // The target lay within what has just been replaced.
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(self.failed("link", path, error)),
        }
    }

    /// Removes what has a name, so that something else can have it.
    fn clear(&mut self, parent: &OwnedFd, name: &CStr, path: &[u8]) -> Result<()> {
        self.open.clear();
        self.note_loss(parent, name)
            .and_then(|()| tree::remove_all(parent.as_fd(), name))
            .map_err(|error| self.failed("replace", path, error))
    }

    /// Notes what the removal of something means for whoever wants the stream again.
    fn note_loss(&mut self, parent: &OwnedFd, name: &CStr) -> rustix::io::Result<()> {
        let status = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        match FileType::from_raw_mode(status.st_mode) {
            FileType::RegularFile if status.st_size > 0 => {
                self.lost = Some("a later entry replaces a file");
            }
            FileType::Symlink => self.links_changed = true,
            FileType::Directory
                if rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).is_err() =>
            {
                self.lost = Some("a later entry replaces a directory");
            }
            _ => {}
        }
        Ok(())
    }

    fn make_whiteout(&self, parent: &OwnedFd, name: &CStr) -> Result<()> {
        match rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error @ (Errno::PERM | Errno::ACCESS | Errno::NOTSUP | Errno::INVAL)) => {
                Err(self.unsupported("whiteouts (character devices 0:0)", error))
            }
            Err(error) => Err(self.failed("mknod", name.to_bytes(), error)),
        }
    }

    fn set_opaque(&self, parent: &OwnedFd, name: &CStr) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(parent, name, flags, Mode::empty())
            .map_err(|error| self.failed("open", name.to_bytes(), error))?;
        match rustix::fs::fsetxattr(&directory, OPAQUE, b"y", XattrFlags::empty()) {
            Ok(()) => Ok(()),
            Err(error @ (Errno::PERM | Errno::ACCESS | Errno::NOTSUP)) => {
                Err(self.unsupported("extended attributes (user.overlay.opaque)", error))
            }
            Err(error) => Err(self.failed("setxattr", name.to_bytes(), error)),
        }
    }

    /// Returns the components of a path, relative to the root of the layer. `..` is resolved by the text alone and
    /// stops at the root, as in containerd: `a/../../etc` is `etc`.
    fn clean<'a>(&self, path: &'a [u8]) -> Result<Vec<&'a [u8]>> {
        if path.len() > self.limits.path_bytes {
            return Err(self.refuse(&path[..NAME_MAX.min(path.len())], "its path is too long"));
        }
        let mut components = Vec::new();
        for component in split(path) {
            match component {
                b"." => {}
                b".." => {
                    components.pop();
                }
                _ if component.len() > NAME_MAX => {
                    return Err(self.refuse(path, "a name in its path is too long"));
                }
                _ => components.push(component),
            }
        }
        Ok(components)
    }

    fn name(&self, component: &[u8]) -> Result<CString> {
        CString::new(component).map_err(|_nul| self.refuse(component, "its name holds a NUL"))
    }
}

fn split(path: &[u8]) -> Vec<&[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|component| !component.is_empty())
        .collect()
}

fn modified(entry: &Entry) -> Timespec {
    Timespec {
        tv_sec: entry.modified_seconds,
        tv_nsec: entry.modified_nanoseconds.into(),
    }
}

fn times(modified: Timespec) -> Timestamps {
    Timestamps {
        last_access: modified,
        last_modification: modified,
    }
}

#[cfg(test)]
pub(crate) mod tests;
