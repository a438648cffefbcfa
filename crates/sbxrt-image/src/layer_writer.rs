//! A layer directory, written as the tar stream of a layer: the way back from [`unpack`](crate::unpack).
//!
//! Follows "Image Layer Filesystem Changeset" of the OCI image specification. The same directory always gives the same
//! bytes: entries are sorted, users have no names, and nothing of the machine gets in.
//!
//! ```no_run
//! # fn write() -> sbxrt_image::Result<()> {
//! use sbxrt_image::{LayerOptions, write_layer, write_layer_blob};
//!
//! let layer = "/store/layers/sha256/…".as_ref(); // holds fs/ and owners.jsonl
//! // The bare tar stream:
//! let written = write_layer(layer, &LayerOptions::default(), &mut std::io::sink())?;
//! println!("{} entries, {} bytes of files, left out: {:?}", written.entries, written.bytes, written.left_out);
//! // Compressed, with what a manifest and a configuration must say of it, in one pass:
//! let blob = write_layer_blob(layer, &LayerOptions::default(), std::io::sink())?;
//! println!("{} {} {} {}", blob.diff_id, blob.digest, blob.size, blob.media_type);
//! # Ok(())
//! # }
//! ```
//!
//! What lies on disk and what becomes of it:
//!
//! - a character device 0:0: `.wh.NAME`; a directory with `user.overlay.opaque`: `.wh..wh..opq` in it;
//! - names that share an inode within the layer: the first in order is the file, the others are hard links to it;
//! - owners, setuid and setgid bits, capabilities, devices and FIFOs: what `owners.jsonl` says; without a line 0:0;
//! - extended attributes `user.*`, but not those of overlayfs; holes as zeros; sockets are left out and named;
//! - a file that its owner may not read is made readable for the moment of opening it.
//!
//! Nothing is ever opened through a link, whoever has laid the directory out.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use serde::Deserialize;

use crate::closed::{open, permitted, searching};
use crate::tar_writer::{DataError, Header, TarWriter};
use crate::tarball::Kind;
use crate::{Error, Result};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// How many directories are held open: deeper ones are opened again on the way back.
const MAX_OPEN: usize = 64;
/// The longest line of `owners.jsonl`: a path twice over in hexadecimal and a capability.
const MAX_LINE: u64 = 64 << 10;
/// The kernel's limit for all names of a file's attributes, and for the value of one.
const XATTR_MAX: usize = 64 << 10;

/// Says how a layer is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerOptions {
    /// No time in the layer is later than this, in seconds since 1970: what `SOURCE_DATE_EPOCH` asks for. Default:
    /// times are kept.
    pub latest: Option<i64>,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WrittenLayer {
    /// The files, directories, links, devices and whiteouts.
    pub entries: u64,
    /// The bytes of its files.
    pub bytes: u64,
    /// What a layer cannot hold, with the reason: sockets.
    pub left_out: Vec<(PathBuf, &'static str)>,
}

/// Writes a layer directory (`fs/`, and `owners.jsonl` where there is one) as a tar stream.
///
/// # Errors
///
/// [`Error::UnwritableEntry`] for what no layer can hold and nobody would want left out: a name that begins with
/// `.wh.`, or what overlayfs keeps of a file in another layer. [`Error::Io`] for what cannot be read, by its name.
pub fn write_layer(
    layer: &Path,
    options: &LayerOptions,
    output: &mut impl Write,
) -> Result<WrittenLayer> {
    let root = layer.join("fs");
    let mut writer = LayerWriter::open(&root, options, Form::Overlay, output)?;
    writer.load_owners(&layer.join("owners.jsonl"))?;
    writer.write()
}

/// Writes a directory that is a whole root filesystem, and no layer of the store, as a tar stream: everything belongs
/// to 0:0, no file is setuid or setgid, and what is mounted in it is left out.
///
/// # Errors
///
/// As [`write_layer`].
pub fn write_tree(
    root: &Path,
    options: &LayerOptions,
    output: &mut impl Write,
) -> Result<WrittenLayer> {
    LayerWriter::open(root, options, Form::Plain, output)?.write()
}

/// What a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A layer in overlayfs's upper format with `userxattr`.
    Overlay,
    /// Files and nothing else.
    Plain,
}

/// Which file it is, whatever it is called.
type Identity = (u64, u64);

/// A line of `owners.jsonl`, as [`unpack`](crate::unpack) writes it.
#[derive(Clone, Debug, Deserialize)]
struct Owner {
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    path_hex: Option<String>,
    uid: u64,
    gid: u64,
    mode: u32,
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    major: u64,
    #[serde(default)]
    minor: u64,
    #[serde(default)]
    capability: Option<String>,
}

impl Owner {
    fn device_kind(&self) -> Option<Kind> {
        match self.kind.as_deref()? {
            "character_device" => Some(Kind::CharacterDevice),
            "block_device" => Some(Kind::BlockDevice),
            "fifo" => Some(Kind::Fifo),
            _ => None,
        }
    }
}

/// A directory that is being gone through.
#[derive(Debug)]
struct Level {
    /// With a slash at the end; empty for the root.
    path: Vec<u8>,
    identity: Identity,
    /// `None` where too many others are open below it.
    directory: Option<OwnedFd>,
    /// The names that are left, the next one last.
    names: Vec<CString>,
}

/// A layer that is being written.
struct LayerWriter<'a, W> {
    root_path: PathBuf,
    root: OwnedFd,
    form: Form,
    options: LayerOptions,
    tar: TarWriter<&'a mut W>,
    owners: HashMap<Identity, Owner>,
    /// What is not on disk or is hidden there by a whiteout, by the directory it is in.
    devices: HashMap<Identity, BTreeMap<CString, Owner>>,
    /// The first name of each file that has several.
    links: HashMap<Identity, Vec<u8>>,
    written: WrittenLayer,
}

impl<'a, W: Write> LayerWriter<'a, W> {
    fn open(
        root_path: &Path,
        options: &LayerOptions,
        form: Form,
        output: &'a mut W,
    ) -> Result<Self> {
        let root = rustix::fs::open(
            root_path,
            DIRECTORY.difference(OFlags::NOFOLLOW),
            Mode::empty(),
        )
        .map_err(|error| Error::io("open", root_path, error))?;
        Ok(Self {
            root_path: root_path.to_owned(),
            root,
            form,
            options: options.clone(),
            tar: TarWriter::new(output),
            owners: HashMap::new(),
            devices: HashMap::new(),
            links: HashMap::new(),
            written: WrittenLayer::default(),
        })
    }

    /// Reads what is known of files beyond what is on disk. It is kept by file and not by name: a line has the name
    /// that the layer gave, which may lead through a link, and a hard link to the file has none.
    fn load_owners(&mut self, path: &Path) -> Result<()> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io("open", path, error)),
        };
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        // Lines of one directory lie together as a rule.
        let mut parent: Option<(Vec<u8>, OwnedFd, Identity)> = None;
        loop {
            line.clear();
            let read = reader
                .by_ref()
                .take(MAX_LINE)
                .read_until(b'\n', &mut line)
                .map_err(|error| Error::io("read", path, error))?;
            if read == 0 {
                return Ok(());
            }
            let owner = serde_json::from_slice::<Owner>(&line)
                .map_err(|error| Error::io("parse", path, error))?;
            let name = match (&owner.path, &owner.path_hex) {
                (Some(text), _) => text.as_bytes().to_vec(),
                (None, Some(text)) => bytes_of_hex(text).ok_or_else(|| {
                    Error::io("parse", path, io::Error::from(io::ErrorKind::InvalidData))
                })?,
                (None, None) => Vec::new(),
            };
            let (above, leaf) = match name.iter().rposition(|byte| *byte == b'/') {
                Some(slash) => (&name[..slash], &name[slash + 1..]),
                None => (&b""[..], name.as_slice()),
            };
            if parent.as_ref().is_none_or(|(known, ..)| known != above) {
                parent = None;
                if let Ok(directory) = self.beneath(above, OFlags::PATH | OFlags::DIRECTORY) {
                    let status = rustix::fs::fstat(&directory)
                        .map_err(|error| self.failed("stat", above, error))?;
                    parent = Some((above.to_vec(), directory, identity(&status)));
                }
            }
            // Without its directory the entry was replaced by something else later on.
            let Some((_, directory, parent_identity)) = &parent else {
                continue;
            };
            let Ok(leaf) = CString::new(leaf) else {
                continue;
            };
            let status = if leaf.is_empty() {
                rustix::fs::fstat(directory)
            } else {
                rustix::fs::statat(directory, &leaf, AtFlags::SYMLINK_NOFOLLOW)
            };
            let is_device = owner.device_kind().is_some();
            match status {
                Ok(status) if !is_whiteout(&status) && !is_device => {
                    self.owners.insert(identity(&status), owner);
                }
                Ok(status) if is_whiteout(&status) && is_device => {
                    let devices = self.devices.entry(*parent_identity).or_default();
                    devices.insert(leaf, owner);
                }
                Err(Errno::NOENT) if is_device => {
                    let devices = self.devices.entry(*parent_identity).or_default();
                    devices.insert(leaf, owner);
                }
                // Another entry has taken its place.
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => return Err(self.failed("stat", &name, error)),
            }
        }
    }

    fn write(mut self) -> Result<WrittenLayer> {
        let root = self
            .beneath(b"", DIRECTORY)
            .map_err(|error| self.failed("open", b"", error))?;
        let device = rustix::fs::fstat(&root)
            .map_err(|error| self.failed("stat", b"", error))?
            .st_dev;
        let mut levels = vec![self.enter(root, Vec::new())?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                levels.pop();
                continue;
            };
            let directory = match level.directory.take() {
                Some(directory) => directory,
                None => self.reopen(level)?,
            };
            let below = self.entry(&directory, level, &name, device)?;
            level.directory = Some(directory);
            if let Some(below) = below {
                levels.push(below);
                if let Some(far) = levels.len().checked_sub(MAX_OPEN) {
                    levels[far].directory = None;
                }
            }
        }
        let output = self
            .tar
            .finish()
            .map_err(|error| write_failed(&self.root_path, error))?;
        output
            .flush()
            .map_err(|error| write_failed(&self.root_path, error))?;
        Ok(self.written)
    }

    /// Writes a directory itself and begins to go through it.
    fn enter(&mut self, directory: OwnedFd, path: Vec<u8>) -> Result<Level> {
        let status =
            rustix::fs::fstat(&directory).map_err(|error| self.failed("stat", &path, error))?;
        let xattrs = self.xattrs(&directory, &path)?;
        let shown: &[u8] = if path.is_empty() { b"./" } else { &path };
        let mut header = Header::new(shown, Kind::Directory, 0);
        let capability = self.describe(&mut header, &status);
        let opaque = xattrs.opaque;
        self.put(&header, xattrs.kept, capability.as_deref())?;
        if opaque {
            let marker = [path.as_slice(), OPAQUE_MARKER].concat();
            self.put(&Header::new(&marker, Kind::File, 0), Vec::new(), None)?;
        }
        let mut names = self.list(&directory, &path)?;
        if let Some(devices) = self.devices.get(&identity(&status)) {
            names.extend(devices.keys().cloned());
            names.sort();
            names.dedup();
        }
        names.reverse();
        Ok(Level {
            path,
            identity: identity(&status),
            directory: Some(directory),
            names,
        })
    }

    /// Writes what has a name in a directory; returns it where it is a directory that is to be gone through next.
    fn entry(
        &mut self,
        directory: &OwnedFd,
        level: &Level,
        name: &CStr,
        device: u64,
    ) -> Result<Option<Level>> {
        let mut path = [level.path.as_slice(), name.to_bytes()].concat();
        if name.to_bytes().starts_with(WHITEOUT_PREFIX) {
            return Err(self.refuse(&path, "names that begin with .wh. are kept for whiteouts"));
        }
        if let Some(owner) = self
            .devices
            .get(&level.identity)
            .and_then(|devices| devices.get(name))
            .cloned()
        {
            self.put_device(&path, &owner)?;
            return Ok(None);
        }
        let status = searching(directory, || {
            rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
        })
        .map_err(|error| self.failed("stat", &path, error))?;
        let kind = match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => {
                let opened = open(directory, name, DIRECTORY)
                    .map_err(|error| self.failed("open", &path, error))?;
                path.push(b'/');
                let mut level = self.enter(opened, path)?;
                if status.st_dev != device && self.form == Form::Plain {
                    level.names.clear();
                    self.leave_out(&level.path, "another file system is mounted there");
                }
                return Ok(Some(level));
            }
            FileType::RegularFile => {
                self.put_file(directory, name, &path)?;
                return Ok(None);
            }
            FileType::CharacterDevice if self.form == Form::Overlay && status.st_rdev == 0 => {
                let whiteout = [level.path.as_slice(), WHITEOUT_PREFIX, name.to_bytes()].concat();
                self.put(&Header::new(&whiteout, Kind::File, 0), Vec::new(), None)?;
                return Ok(None);
            }
            FileType::Symlink => Kind::Symlink,
            FileType::CharacterDevice => Kind::CharacterDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket | FileType::Unknown => {
                self.leave_out(&path, "a layer cannot hold a socket");
                return Ok(None);
            }
        };
        if self.put_link(&status, &path)? {
            return Ok(None);
        }
        let mut header = Header::new(&path, kind, 0);
        let target;
        match kind {
            Kind::Symlink => {
                target = searching(directory, || {
                    rustix::fs::readlinkat(directory, name, Vec::new())
                })
                .map_err(|error| self.failed("readlink", &path, error))?;
                header.link = target.as_bytes();
            }
            Kind::CharacterDevice | Kind::BlockDevice => {
                header.device = (
                    rustix::fs::major(status.st_rdev).into(),
                    rustix::fs::minor(status.st_rdev).into(),
                );
            }
            _ => {}
        }
        self.describe(&mut header, &status);
        self.put(&header, Vec::new(), None)?;
        Ok(None)
    }

    fn put_file(&mut self, directory: &OwnedFd, name: &CStr, path: &[u8]) -> Result<()> {
        let opened =
            open(directory, name, FILE).map_err(|error| self.failed("open", path, error))?;
        let mut file = File::from(opened);
        let status = rustix::fs::fstat(&file).map_err(|error| self.failed("stat", path, error))?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Err(self.refuse(path, "it was replaced while it was read"));
        }
        if self.put_link(&status, path)? {
            return Ok(());
        }
        let xattrs = self.xattrs(&file, path)?;
        let mut header = Header::new(path, Kind::File, 0);
        let capability = self.describe(&mut header, &status);
        let size = u64::try_from(status.st_size).unwrap_or(0);
        header.size = size;
        self.put(&header, xattrs.kept, capability.as_deref())?;
        self.written.bytes = self.written.bytes.saturating_add(size);
        match self.tar.data(&mut file, size) {
            Ok(()) => Ok(()),
            Err(DataError::Read(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.refuse(path, "it became shorter while it was read"))
            }
            Err(DataError::Read(error)) => Err(Error::io("read", &self.path_of(path), error)),
            Err(DataError::Write(error)) => Err(write_failed(&self.root_path, error)),
        }
    }

    /// Writes a hard link where the file has been written under another name; returns whether it has.
    fn put_link(&mut self, status: &Stat, path: &[u8]) -> Result<bool> {
        if status.st_nlink < 2 {
            return Ok(false);
        }
        let Some(first) = self.links.get(&identity(status)).cloned() else {
            self.links.insert(identity(status), path.to_vec());
            return Ok(false);
        };
        let mut header = Header::new(path, Kind::HardLink, 0);
        header.link = &first;
        self.describe(&mut header, status);
        self.put(&header, Vec::new(), None)?;
        Ok(true)
    }

    fn put_device(&mut self, path: &[u8], owner: &Owner) -> Result<()> {
        let Some(kind) = owner.device_kind() else {
            return Ok(());
        };
        let mut header = Header::new(path, kind, owner.mode);
        header.uid = owner.uid;
        header.gid = owner.gid;
        if kind != Kind::Fifo {
            header.device = (owner.major, owner.minor);
        }
        // Its time was not kept, since there was no file to keep it at.
        self.put(&header, Vec::new(), owner.capability.as_deref())
    }

    /// Says in a header what a file is like; returns its capability.
    fn describe(&self, header: &mut Header<'_>, status: &Stat) -> Option<String> {
        let owner = self.owners.get(&identity(status));
        // Those bits with another owner would be another permission.
        header.mode = status.st_mode & 0o1777;
        if header.kind == Kind::Symlink {
            header.mode = 0o777;
        } else if let Some(owner) = owner {
            header.mode |= owner.mode & 0o7000;
        }
        if let Some(owner) = owner {
            header.uid = owner.uid;
            header.gid = owner.gid;
        }
        let nanoseconds = u32::try_from(status.st_mtime_nsec).unwrap_or(0);
        header.modified = match self.options.latest {
            Some(latest) if status.st_mtime >= latest => (latest, 0),
            _ => (status.st_mtime, nanoseconds),
        };
        owner?.capability.clone()
    }

    /// Writes a header with attributes.
    fn put(
        &mut self,
        header: &Header<'_>,
        mut xattrs: Vec<(Vec<u8>, Vec<u8>)>,
        capability: Option<&str>,
    ) -> Result<()> {
        if let Some(capability) = capability.and_then(bytes_of_hex) {
            xattrs.push((b"security.capability".to_vec(), capability));
        }
        self.written.entries += 1;
        let header = Header {
            xattrs: &xattrs,
            ..header.clone()
        };
        self.tar
            .header(&header)
            .map_err(|error| write_failed(&self.root_path, error))
    }

    /// Lists the names in a directory, sorted.
    fn list(&self, directory: &OwnedFd, path: &[u8]) -> Result<Vec<CString>> {
        let failed = |error| self.failed("list", path, error);
        let mut names = Vec::new();
        // From this very descriptor: opening it anew would ask for permission again.
        let listed = directory
            .try_clone()
            .map_err(|error| Error::io("list", &self.path_of(path), error))?;
        for entry in Dir::new(listed).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Reads the attributes that belong into a layer.
    fn xattrs(&self, file: &impl AsFd, path: &[u8]) -> Result<Xattrs> {
        let mut xattrs = Xattrs::default();
        let mut buffer = [0_u8; 256];
        let list = match rustix::fs::flistxattr(file, &mut buffer[..]) {
            Ok(0) | Err(Errno::NOTSUP) => return Ok(xattrs),
            Ok(length) => buffer[..length].to_vec(),
            Err(Errno::RANGE) => {
                let mut buffer = vec![0; XATTR_MAX];
                let length = rustix::fs::flistxattr(file, &mut buffer[..])
                    .map_err(|error| self.failed("listxattr", path, error))?;
                buffer.truncate(length);
                buffer
            }
            Err(error) => return Err(self.failed("listxattr", path, error)),
        };
        for key in list.split(|byte| *byte == 0) {
            if !key.starts_with(b"user.") {
                continue;
            }
            if self.form == Form::Overlay
                && let Some(of_overlay) = key.strip_prefix(b"user.overlay.")
            {
                match of_overlay {
                    b"opaque" => xattrs.opaque = true,
                    b"redirect" | b"metacopy" => {
                        let reason = "overlayfs has kept only what changed of it; the rest is in another layer";
                        return Err(self.refuse(path, reason));
                    }
                    _ => {}
                }
                continue;
            }
            let mut value = vec![0; XATTR_MAX];
            let read = permitted(file, Mode::RUSR, |file| {
                rustix::fs::fgetxattr(file, key, &mut value[..])
            });
            match read {
                Ok(length) => {
                    value.truncate(length);
                    value.shrink_to_fit();
                    xattrs.kept.push((key.to_vec(), value));
                }
                Err(Errno::NODATA) => {}
                Err(error) => return Err(self.failed("getxattr", path, error)),
            }
        }
        Ok(xattrs)
    }

    /// Opens a directory anew that was closed to save descriptors.
    fn reopen(&self, level: &Level) -> Result<OwnedFd> {
        let failed = |error| self.failed("open", &level.path, error);
        let opened = self.beneath(&level.path, DIRECTORY).map_err(failed)?;
        let status = rustix::fs::fstat(&opened).map_err(failed)?;
        if identity(&status) != level.identity {
            return Err(self.refuse(&level.path, "it was replaced while it was read"));
        }
        Ok(opened)
    }

    /// Opens something by its path, which never leads out of the layer.
    fn beneath(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path: &[u8] = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            let flags = flags | OFlags::CLOEXEC;
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    fn leave_out(&mut self, path: &[u8], reason: &'static str) {
        let path = self.path_of(path);
        self.written.left_out.push((path, reason));
    }

    fn path_of(&self, path: &[u8]) -> PathBuf {
        use std::os::unix::ffi::OsStrExt as _;
        self.root_path.join(std::ffi::OsStr::from_bytes(path))
    }

    fn refuse(&self, path: &[u8], reason: &str) -> Error {
        Error::UnwritableEntry {
            path: self.path_of(path),
            reason: reason.to_owned(),
        }
    }

    fn failed(&self, operation: &'static str, path: &[u8], error: Errno) -> Error {
        Error::io(operation, &self.path_of(path), error)
    }
}

#[derive(Default)]
struct Xattrs {
    kept: Vec<(Vec<u8>, Vec<u8>)>,
    opaque: bool,
}

pub(crate) const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// Without blocking: what was a file a moment ago may be a FIFO now.
pub(crate) const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

fn identity(status: &Stat) -> Identity {
    (status.st_dev, status.st_ino)
}

fn is_whiteout(status: &Stat) -> bool {
    FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice && status.st_rdev == 0
}

fn bytes_of_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    text.as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u8::try_from(digit(*high)? * 16 + digit(*low)?).ok(),
            _ => None,
        })
        .collect()
}

/// What keeps a stream from being written: what the other side of it says, if it is one of ours.
pub(crate) fn write_failed(root: &Path, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => Error::io("write the layer of", root, error),
    }
}

#[cfg(test)]
mod tests;
