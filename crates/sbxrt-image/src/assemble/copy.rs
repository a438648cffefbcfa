//! Files copied into a new layer: what `COPY` and `ADD` do.
//!
//! The same walk computes the digest of what is to be copied and copies it, so a cache can ask first and never keeps
//! something under the digest of something else.

use std::fs::File;
use std::io::{Read, Write};

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::draft::{Fresh, LayerDraft, Time};
use super::stack::{Node, NodeKind, Owner, Stack, join, split};
use crate::digest::hex;
use crate::{Digest, Error, Result};

const BUFFER: usize = 128 << 10;
/// The most files, directories and links of one copy, as of one layer.
const MAX_ENTRIES: u64 = 2_000_000;
/// The most bytes of files of one copy or `RUN`, holes included, as of one layer: one that is larger could not be pulled.
const MAX_BYTES: u64 = 64 << 30;

/// What to copy, and where to.
#[derive(Debug)]
pub struct Copy<'a> {
    /// In this order; of two that have one name the later one stays.
    pub sources: Vec<CopySource<'a>>,
    /// The absolute path in the image. One that ends in a slash is a directory.
    pub destination: String,
    /// The user and group that everything belongs to. Default: what the sources say, else 0:0.
    pub owner: Option<(u64, u64)>,
    /// The permissions of everything that is copied.
    pub mode: Option<u32>,
}

/// Something to copy.
#[derive(Debug)]
pub enum CopySource<'a> {
    /// A file or directory of a tree. Of a directory, its contents are copied.
    Path {
        /// The tree.
        stack: &'a Stack,
        /// Where in the tree, without links.
        path: Vec<u8>,
        /// What a file is called in a directory that it is copied to.
        name: Vec<u8>,
        /// What of it is copied.
        filter: &'a dyn Filter,
    },
    /// A file that is nowhere on disk.
    Content {
        /// What it is called in a directory that it is copied to.
        name: Vec<u8>,
        /// What is in it.
        bytes: Vec<u8>,
    },
}

/// Decides what of a tree is copied.
pub trait Filter: std::fmt::Debug {
    /// Whether a path of the tree is copied.
    fn verdict(&self, path: &[u8], is_directory: bool) -> Verdict;
}

/// What a [`Filter`] says of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is copied.
    Keep,
    /// It is not, and neither is what is in it.
    Skip,
    /// It is copied only for what in it is.
    Descend,
}

/// Copies everything.
#[derive(Clone, Copy, Debug)]
pub struct Everything;

impl Filter for Everything {
    fn verdict(&self, _: &[u8], _: bool) -> Verdict {
        Verdict::Keep
    }
}

impl Copy<'_> {
    /// The digest of what would be copied: names, kinds, permissions, owners and contents, but not times.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] for what cannot be read, [`Error::UnsupportedFile`] for what cannot be copied.
    pub fn digest(&self) -> Result<Digest> {
        Walk::new(self, None).run()
    }
}

impl LayerDraft {
    /// Copies files into the layer and returns the digest of what was copied.
    ///
    /// # Errors
    ///
    /// As for [`Copy::digest`], and [`Error::UnsupportedFile`] where something in the image is in the way.
    pub fn copy(&mut self, copy: &Copy<'_>) -> Result<Digest> {
        Walk::new(copy, Some(self)).run()
    }

    /// Makes a directory and what is missing on the way to it, as `WORKDIR` does; returns whether it was missing.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedFile`] where something else is in its place.
    pub fn make_directory(&mut self, path: &str) -> Result<bool> {
        let path = self.stack().resolve(path.as_bytes(), true)?;
        match self.stack().node(&path)? {
            Some(node) if node.kind == NodeKind::Directory => Ok(false),
            _ => {
                self.directory(&path, Fresh::default())?;
                Ok(true)
            }
        }
    }
}

/// One pass over what is to be copied.
struct Walk<'a, 'b> {
    copy: &'a Copy<'a>,
    draft: Option<&'b mut LayerDraft>,
    hasher: Sha256,
    entries: u64,
    /// Of the files.
    bytes: u64,
    buffer: Vec<u8>,
}

/// What becomes of an entry in the image.
struct Attributes {
    owner: Owner,
    mode: u32,
    modified: Option<Time>,
}

impl<'a, 'b> Walk<'a, 'b> {
    fn new(copy: &'a Copy<'a>, draft: Option<&'b mut LayerDraft>) -> Self {
        Self {
            copy,
            draft,
            hasher: Sha256::new(),
            entries: 0,
            bytes: 0,
            buffer: vec![0; BUFFER],
        }
    }

    fn run(mut self) -> Result<Digest> {
        let copy = self.copy;
        for source in &copy.sources {
            match source {
                CopySource::Content { name, bytes } => {
                    let attributes = Attributes {
                        owner: self.owner(None, 0o644),
                        mode: copy.mode.unwrap_or(0o644),
                        modified: None,
                    };
                    let target = self.target(name)?;
                    self.describe(b"file", name, &attributes);
                    self.hasher.update((bytes.len() as u64).to_be_bytes());
                    self.hasher.update(bytes);
                    if let Some(draft) = &mut self.draft {
                        let mut file = draft.create(&target, attributes.modified)?;
                        let shown = draft.shown(&target);
                        file.write_all(bytes)
                            .map_err(|error| Error::io("write", &shown, error))?;
                        finish_file(draft, &target, &file, &attributes)?;
                    }
                }
                CopySource::Path {
                    stack,
                    path,
                    name,
                    filter,
                } => {
                    let node = stack.node(path)?.ok_or_else(|| {
                        Error::io("find", std::path::Path::new(&lossy(path)), Errno::NOENT)
                    })?;
                    if node.kind == NodeKind::Directory {
                        self.tree(stack, path, &node, *filter)?;
                    } else {
                        let target = self.target(name)?;
                        self.leaf(stack, path, &node, name, &target)?;
                    }
                }
            }
        }
        let hash = self.hasher.finalize();
        format!("sha256:{}", hex(&hash))
            .parse()
            .map_err(|error: crate::InvalidDigest| {
                Error::io("hash", "files".as_ref(), std::io::Error::other(error))
            })
    }

    /// Where a single file goes: the destination, or into it where that is a directory.
    fn target(&self, name: &[u8]) -> Result<Vec<u8>> {
        let Some(draft) = &self.draft else {
            return Ok(Vec::new());
        };
        let destination = self.copy.destination.as_bytes();
        let resolved = draft.stack().resolve(destination, true)?;
        let is_directory = resolved.is_empty()
            || destination.ends_with(b"/")
            || destination.ends_with(b"/.")
            || self.copy.sources.len() > 1
            || draft
                .stack()
                .node(&resolved)?
                .is_some_and(|node| node.kind == NodeKind::Directory);
        if is_directory {
            // A link that has the name is written through, within the image.
            return draft.stack().resolve(&join(&resolved, name), true);
        }
        Ok(resolved)
    }

    /// Copies the contents of a directory.
    fn tree(&mut self, stack: &Stack, root: &[u8], node: &Node, filter: &dyn Filter) -> Result<()> {
        let target = match &self.draft {
            None => Vec::new(),
            Some(draft) => draft
                .stack()
                .resolve(self.copy.destination.as_bytes(), true)?,
        };
        let attributes = self.attributes(stack, root, node)?;
        self.describe(b"tree", b"", &attributes);
        self.enter(&target, &attributes)?;
        // Directories to list: where they are, their path below `root`, where they go.
        let mut ahead = vec![(root.to_vec(), Vec::new(), target)];
        while let Some((source, relative, target)) = ahead.pop() {
            let mut directories = Vec::new();
            for name in stack.list(&source)? {
                let path = join(&source, &name);
                let Some(node) = stack.node(&path)? else {
                    continue;
                };
                let is_directory = node.kind == NodeKind::Directory;
                let verdict = filter.verdict(&path, is_directory);
                if verdict == Verdict::Skip || (verdict == Verdict::Descend && !is_directory) {
                    continue;
                }
                let below = join(&relative, &name);
                if !is_directory {
                    let target = join(&target, &name);
                    self.leaf(stack, &path, &node, &below, &target)?;
                    continue;
                }
                if verdict == Verdict::Descend && !self.has_anything(stack, &path, filter)? {
                    continue;
                }
                self.count()?;
                let attributes = self.attributes(stack, &path, &node)?;
                self.describe(b"directory", &below, &attributes);
                let into = match &self.draft {
                    None => Vec::new(),
                    // Where the image has a link to a directory, such as /bin, the contents go there.
                    Some(draft) => draft.stack().resolve(&join(&target, &name), true)?,
                };
                self.enter(&into, &attributes)?;
                directories.push((path, below, into));
            }
            // The last one is taken first.
            directories.reverse();
            ahead.append(&mut directories);
        }
        Ok(())
    }

    /// Whether a directory that is itself not copied has something in it that is.
    fn has_anything(&mut self, stack: &Stack, root: &[u8], filter: &dyn Filter) -> Result<bool> {
        let mut ahead = vec![root.to_vec()];
        while let Some(directory) = ahead.pop() {
            for name in stack.list(&directory)? {
                let path = join(&directory, &name);
                let Some(node) = stack.node(&path)? else {
                    continue;
                };
                self.count()?;
                let is_directory = node.kind == NodeKind::Directory;
                match filter.verdict(&path, is_directory) {
                    Verdict::Keep => return Ok(true),
                    Verdict::Descend if is_directory => ahead.push(path),
                    Verdict::Descend | Verdict::Skip => {}
                }
            }
        }
        Ok(false)
    }

    fn enter(&mut self, target: &[u8], attributes: &Attributes) -> Result<()> {
        let Some(draft) = &mut self.draft else {
            return Ok(());
        };
        let is_new = draft.stack().node(target)?.is_none();
        draft.directory(
            target,
            Fresh {
                owner: self.copy.owner,
                modified: attributes.modified,
            },
        )?;
        if is_new {
            draft.set_directory(target, attributes.mode, attributes.modified);
            draft.note_owner(target, &attributes.owner);
        }
        Ok(())
    }

    /// Copies a file or link.
    fn leaf(
        &mut self,
        stack: &Stack,
        path: &[u8],
        node: &Node,
        name: &[u8],
        target: &[u8],
    ) -> Result<()> {
        self.count()?;
        let attributes = self.attributes(stack, path, node)?;
        match node.kind {
            // Known before it is read, which takes hours where it is all holes.
            NodeKind::File if self.bytes.saturating_add(node.size) > MAX_BYTES => {
                Err(too_large("what is copied"))
            }
            NodeKind::File => {
                self.describe(b"file", name, &attributes);
                let mut source = stack.open_file(path, node)?;
                let created = match &mut self.draft {
                    None => None,
                    Some(draft) => Some(draft.create(target, attributes.modified)?),
                };
                self.pump(&mut source, created.as_ref(), path)?;
                if let (Some(draft), Some(file)) = (&mut self.draft, &created) {
                    finish_file(draft, target, file, &attributes)?;
                }
                Ok(())
            }
            NodeKind::Symlink => {
                let link = stack.read_link(path, node)?;
                self.describe(b"link", name, &attributes);
                self.hasher.update((link.len() as u64).to_be_bytes());
                self.hasher.update(&link);
                if let Some(draft) = &mut self.draft {
                    draft.link(target, &link, attributes.modified)?;
                    draft.note_owner(target, &attributes.owner);
                }
                Ok(())
            }
            NodeKind::Directory | NodeKind::Special => Err(Error::UnsupportedFile {
                path: lossy(path).into(),
                reason: "sockets, FIFOs and devices cannot be copied".to_owned(),
            }),
        }
    }

    /// Hashes a file, and writes it where there is something to write to.
    fn pump(&mut self, source: &mut File, mut target: Option<&File>, path: &[u8]) -> Result<()> {
        let mut total = 0_u64;
        loop {
            let length = source
                .read(&mut self.buffer)
                .map_err(|error| Error::io("read", lossy(path).as_ref(), error))?;
            if length == 0 {
                break;
            }
            total += length as u64;
            self.bytes += length as u64;
            if self.bytes > MAX_BYTES {
                return Err(too_large("what is copied"));
            }
            self.hasher.update(&self.buffer[..length]);
            if let Some(target) = &mut target {
                target
                    .write_all(&self.buffer[..length])
                    .map_err(|error| Error::io("write", lossy(path).as_ref(), error))?;
            }
        }
        // Behind the contents, for it is known only now; no other contents have this length.
        self.hasher.update(total.to_be_bytes());
        Ok(())
    }

    fn attributes(&self, stack: &Stack, path: &[u8], node: &Node) -> Result<Attributes> {
        let mode = match (self.copy.mode, node.kind) {
            (_, NodeKind::Symlink) => 0o777,
            (Some(mode), _) => mode,
            (None, _) => node.mode,
        };
        let owner = stack.owner(path, node)?;
        // What was left out on disk is there again.
        let mode = match (&owner, self.copy.mode) {
            (Some(owner), None) => mode | (owner.mode & 0o6000),
            _ => mode,
        };
        Ok(Attributes {
            owner: self.owner(owner, mode),
            mode,
            modified: Some(node.modified),
        })
    }

    fn owner(&self, found: Option<Owner>, mode: u32) -> Owner {
        let mut owner = found.unwrap_or_default();
        if let Some((uid, gid)) = self.copy.owner {
            owner.uid = uid;
            owner.gid = gid;
            // As chown does.
            owner.capability = None;
        }
        owner.mode = mode;
        owner
    }

    fn describe(&mut self, kind: &[u8], name: &[u8], attributes: &Attributes) {
        let Attributes { owner, mode, .. } = attributes;
        self.hasher.update(kind);
        self.hasher.update((name.len() as u64).to_be_bytes());
        self.hasher.update(name);
        self.hasher.update(mode.to_be_bytes());
        self.hasher.update(owner.uid.to_be_bytes());
        self.hasher.update(owner.gid.to_be_bytes());
        let capability = owner.capability.as_deref().unwrap_or_default();
        self.hasher.update((capability.len() as u64).to_be_bytes());
        self.hasher.update(capability);
    }

    fn count(&mut self) -> Result<()> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(Error::LimitExceeded {
                what: "what is copied".to_owned(),
                limit: "entries",
                maximum: MAX_ENTRIES,
            });
        }
        Ok(())
    }
}

fn finish_file(
    draft: &mut LayerDraft,
    target: &[u8],
    file: &File,
    attributes: &Attributes,
) -> Result<()> {
    let shown = draft.shown(target);
    rustix::fs::fchmod(file, Mode::from_raw_mode(attributes.mode & 0o1777))
        .map_err(|error| Error::io("chmod", &shown, error))?;
    if let Some(modified) = attributes.modified {
        rustix::fs::futimens(file, &times(modified))
            .map_err(|error| Error::io("set the time of", &shown, error))?;
    }
    draft.note_owner(target, &attributes.owner);
    Ok(())
}

impl LayerDraft {
    /// Creates a file in place of whatever but a directory has its name.
    fn create(&mut self, target: &[u8], modified: Option<Time>) -> Result<File> {
        let (parent, name) = self.make_room(target, modified)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&parent, &name, flags, Mode::RUSR | Mode::WUSR);
        Ok(File::from(opened.map_err(|error| {
            Error::io("create", &self.shown(target), error)
        })?))
    }

    fn link(&mut self, target: &[u8], link: &[u8], modified: Option<Time>) -> Result<()> {
        let (parent, name) = self.make_room(target, modified)?;
        let failed = |error| Error::io("create", &self.shown(target), error);
        rustix::fs::symlinkat(link, &parent, &name).map_err(failed)?;
        if let Some(modified) = modified {
            rustix::fs::utimensat(&parent, &name, &times(modified), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Makes the directory of a path and takes away what has its name in this layer.
    fn make_room(
        &mut self,
        target: &[u8],
        modified: Option<Time>,
    ) -> Result<(std::os::fd::OwnedFd, std::ffi::CString)> {
        let (parent, name) = split(target);
        if name.is_empty() {
            return Err(self.in_the_way(target, "the root of the image is a directory"));
        }
        if name.starts_with(b".wh.") {
            return Err(
                self.in_the_way(target, "names that begin with .wh. are kept for whiteouts")
            );
        }
        if let Some(node) = self.stack().node(target)?
            && node.kind == NodeKind::Directory
        {
            return Err(self.in_the_way(target, "the image has a directory there"));
        }
        let directory = self.directory(
            parent,
            Fresh {
                owner: None,
                modified,
            },
        )?;
        let name = std::ffi::CString::new(name)
            .map_err(|error| Error::io("create", &self.shown(target), error))?;
        match rustix::fs::unlinkat(&directory, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok((directory, name)),
            Err(error) => Err(Error::io("replace", &self.shown(target), error)),
        }
    }
}

/// Adds the length of a file to that of a layer, which is bounded: a file of holes takes nothing to make and years to
/// read.
pub(super) fn add_bytes(total: &mut u64, length: u64) -> Result<()> {
    *total = total.saturating_add(length);
    if *total > MAX_BYTES {
        return Err(too_large("what the program has written"));
    }
    Ok(())
}

fn too_large(what: &str) -> Error {
    Error::LimitExceeded {
        what: what.to_owned(),
        limit: "layer_bytes",
        maximum: MAX_BYTES,
    }
}

pub(super) fn times((seconds, nanoseconds): Time) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
