//! Files that a program leaves: found, measured, hashed and copied to the host once its last process has ended.
//!
//! The builder keeps a copy of the container's mounts as a detached tree, which outlives the container however that ends.
//! When nothing runs in it any more, a process of its own looks through the tree, with the right to read what the
//! program's modes forbid and no other. What a hostile program prepared is met so:
//!
//! - Each entry is first opened with `O_PATH | O_NOFOLLOW`, which has no effect on anything, and only what turns out to be a
//!   regular file or a directory is opened for reading, through that descriptor. Devices, FIFOs and sockets never are.
//! - The path that was asked for resolves inside the tree (`RESOLVE_IN_ROOT`); below it no link is followed and no mount
//!   point entered. A link is copied as one where it cannot lead out of what is copied, and refused otherwise.
//! - Sizes count before anything is read, holes are not read, and numbers of entries, bytes of names and depth are bounded.
//! - On the host everything is made below a directory that the caller opened before the program started, under names that
//!   do not exist (`O_EXCL`), without set-user-ID bits.
//!
//! Volumes can change from outside meanwhile: a file that does is refused. What is refused is told, entry by entry; the
//! run's own result does not depend on it.

mod copy;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;
use rustix::fs::{
    Access, AtFlags, FileType, Mode, OFlags, SeekFrom, Statx, StatxAttributes, StatxFlags,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use self::copy::{Copy, Place};
use crate::error::{Failure, describe};
use crate::rootfs::open_in;

/// How many files and directories may be asked for in one run.
pub(crate) const PATHS_LIMIT: usize = 64;
/// How many directories deep a collected directory may be.
const DEPTH_LIMIT: usize = 64;
/// How many bytes all paths and link targets of one run may take together.
const NAMES_LIMIT: usize = 4 << 20;
/// How much is read at once.
const BUFFER: usize = 128 << 10;
/// What cannot be collected from: the kernel's own file systems.
const RESERVED: &[&str] = &["/proc", "/sys", "/dev"];

/// What is collected of the files that a program leaves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outputs {
    /// Files and directories, at most 64.
    pub paths: Vec<OutputPath>,
    /// Upper bounds on all of them together.
    pub limits: OutputLimits,
    /// Whether copies take the place of what is there: files and links are replaced at once, directories are added to.
    /// Otherwise what exists on the host stays, and the output is refused.
    pub overwrite: bool,
}

/// A file or directory that is collected after the end of the program, however it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputPath {
    /// The path inside, relative to the working directory unless it is absolute. It may be in a volume, but not in `/proc`,
    /// `/sys` or `/dev`.
    pub path: PathBuf,
    /// The name that a copy gets on the host. Its directory must exist. `None` makes no copy.
    pub copy_to: Option<PathBuf>,
}

/// Upper bounds on what is collected of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputLimits {
    /// Bytes of all files together, holes included.
    pub bytes: u64,
    /// Files, directories and everything else.
    pub entries: usize,
}

impl Default for OutputLimits {
    /// 256 MiB and 10,000 entries.
    fn default() -> Self {
        Self {
            bytes: 256 << 20,
            entries: 10_000,
        }
    }
}

/// Something that was found where an [`OutputPath`] pointed to, or below.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFile {
    /// The absolute path inside. Its bytes are whatever the program chose.
    #[serde(with = "bytes")]
    pub path: PathBuf,
    /// What it is.
    pub kind: FileKind,
    /// Bytes of a regular file, holes included; 0 for everything else.
    pub size: u64,
    /// Permission bits as they were inside, with set-user-ID, set-group-ID and sticky bits.
    pub mode: u32,
    /// Of a regular file's contents, in hexadecimal digits. `None` where it was refused.
    pub sha256: Option<String>,
    /// Where a symbolic link leads to.
    #[serde(with = "optional_bytes")]
    pub target: Option<PathBuf>,
    /// Where the copy on the host is.
    #[serde(with = "optional_bytes")]
    pub copied_to: Option<PathBuf>,
    /// Why it was not collected, or not all of it.
    pub refused: Option<String>,
}

/// What an [`OutputFile`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// Nothing is there, or nothing that could be looked at.
    Missing,
}

impl OutputFile {
    fn refused(path: PathBuf, reason: impl Into<String>) -> Self {
        Self {
            path,
            kind: FileKind::Missing,
            size: 0,
            mode: 0,
            sha256: None,
            target: None,
            copied_to: None,
            refused: Some(reason.into()),
        }
    }
}

impl Outputs {
    /// Opens the directories that copies go to, in the order of the paths. To be called before the program starts: it may
    /// be able to change where these paths lead to.
    pub(crate) fn open_destinations(&self) -> Result<Vec<OwnedFd>, Failure> {
        const STEP: &str = "prepare an output";
        if self.paths.len() > PATHS_LIMIT {
            let reason = format!("are more than {PATHS_LIMIT}");
            return Err(Failure::reason(STEP, "outputs", reason));
        }
        for output in &self.paths {
            let refuse =
                |reason: &str| Failure::reason(STEP, output.path.display().to_string(), reason);
            if output
                .path
                .components()
                .any(|part| part == Component::ParentDir)
            {
                return Err(refuse("the path must not contain '..'"));
            }
            if output.path == Path::new("/") || output.path.as_os_str().is_empty() {
                return Err(refuse("name a file or a directory below /"));
            }
            if RESERVED.iter().any(|it| output.path.starts_with(it)) {
                return Err(refuse("/proc, /sys and /dev are never collected"));
            }
        }
        let mut directories = Vec::new();
        let mut places = Vec::new();
        for copy in self.paths.iter().filter_map(|it| it.copy_to.as_deref()) {
            let refuse = |reason: &str| Failure::reason(STEP, copy.display().to_string(), reason);
            let failed =
                |error| Failure::new(STEP, copy.display().to_string(), io::Error::from(error));
            let (Some(parent), Some(name)) = (copy.parent(), copy.file_name()) else {
                return Err(refuse("the copy needs a name"));
            };
            let parent = if parent.as_os_str().is_empty() {
                Path::new(".")
            } else {
                parent
            };
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = rustix::fs::open(parent, flags, Mode::empty()).map_err(failed)?;
            // One directory can be written in many ways.
            let found = rustix::fs::fstat(&directory).map_err(failed)?;
            let place = (found.st_dev, found.st_ino, name);
            if places.contains(&place) {
                return Err(refuse("two outputs cannot have one copy"));
            }
            places.push(place);
            // Told before the program runs rather than after it. The copy itself is made with O_EXCL.
            let access = Access::WRITE_OK | Access::EXEC_OK;
            rustix::fs::accessat(&directory, ".", access, AtFlags::empty()).map_err(failed)?;
            if !self.overwrite
                && rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
            {
                return Err(failed(rustix::io::Errno::EXIST));
            }
            directories.push(directory);
        }
        Ok(directories)
    }

    /// What is said of every path where there was no collecting.
    pub(crate) fn refuse_all(&self, cwd: &Path, reason: &str) -> Vec<OutputFile> {
        let refused = |output: &OutputPath| OutputFile::refused(cwd.join(&output.path), reason);
        self.paths.iter().map(refused).collect()
    }

    /// Looks through `tree`, the container's mounts, in which nothing runs any more. `destinations` are what
    /// [`open_destinations`](Self::open_destinations) returned.
    pub(crate) fn collect(
        &self,
        tree: BorrowedFd<'_>,
        cwd: &Path,
        destinations: &[OwnedFd],
    ) -> Vec<OutputFile> {
        let mut destinations = destinations.iter();
        let mut walk = Walk::new(self);
        for output in &self.paths {
            let path = cwd.join(&output.path);
            let place = output.copy_to.as_deref().and_then(|copy| {
                Some(Place {
                    directory: destinations.next()?.as_fd(),
                    name: copy.file_name()?.to_owned(),
                    path: copy.to_owned(),
                })
            });
            match open_in(tree, &path, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
                Ok(handle) => walk.take(&handle, path, 0, place),
                Err(error) => {
                    let refused = OutputFile::refused(path, describe(&error));
                    walk.found.push(refused);
                }
            }
        }
        walk.found
    }
}

/// A walk through everything that was asked for, with what may still be collected.
struct Walk<'a> {
    outputs: &'a Outputs,
    found: Vec<OutputFile>,
    bytes_left: u64,
    names_left: usize,
    buffer: Vec<u8>,
}

impl<'a> Walk<'a> {
    fn new(outputs: &'a Outputs) -> Self {
        Self {
            outputs,
            found: Vec::new(),
            bytes_left: outputs.limits.bytes,
            names_left: NAMES_LIMIT,
            buffer: vec![0; BUFFER],
        }
    }

    /// Takes what is behind `handle`, `depth` directories below what was asked for.
    fn take(&mut self, handle: &OwnedFd, path: PathBuf, depth: usize, place: Option<Place<'_>>) {
        let found = match look(handle) {
            Ok(found) => found,
            Err(error) => {
                let refused = OutputFile::refused(path, describe(&error));
                self.found.push(refused);
                return;
            }
        };
        let kind = FileType::from_raw_mode(u32::from(found.stx_mode));
        let mut entry = OutputFile {
            path,
            kind: match kind {
                FileType::RegularFile => FileKind::File,
                FileType::Directory => FileKind::Directory,
                FileType::Symlink => FileKind::Symlink,
                FileType::Fifo => FileKind::Fifo,
                FileType::Socket => FileKind::Socket,
                FileType::CharacterDevice => FileKind::CharacterDevice,
                FileType::BlockDevice => FileKind::BlockDevice,
                FileType::Unknown => FileKind::Missing,
            },
            size: 0,
            mode: u32::from(found.stx_mode) & 0o7777,
            sha256: None,
            target: None,
            copied_to: None,
            refused: None,
        };
        if depth > 0 && found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            let reason = "something else is mounted here; ask for it by its own path";
            entry.refused = Some(reason.to_owned());
            self.found.push(entry);
            return;
        }
        match kind {
            FileType::Directory => return self.directory(handle, entry, depth, place),
            FileType::RegularFile => {
                entry.size = found.stx_size;
                match self.file(handle, &found, place) {
                    Ok((sha256, copied_to)) => {
                        entry.sha256 = Some(sha256);
                        entry.copied_to = copied_to;
                    }
                    Err(reason) => entry.refused = Some(reason),
                }
            }
            FileType::Symlink => match self.link(handle, &mut entry, depth, place) {
                Ok(copied_to) => entry.copied_to = copied_to,
                Err(reason) => entry.refused = Some(reason),
            },
            _ => entry.refused = Some("neither a file nor a directory nor a link".to_owned()),
        }
        self.found.push(entry);
    }

    fn directory(
        &mut self,
        handle: &OwnedFd,
        mut entry: OutputFile,
        depth: usize,
        place: Option<Place<'_>>,
    ) {
        let mut names = Vec::new();
        let opened = if depth == DEPTH_LIMIT {
            Err(format!("more than {DEPTH_LIMIT} directories deep"))
        } else {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let opened = reopen(handle, flags).and_then(|directory| {
                let room = self.room(entry.path.as_os_str().len());
                let complete = read_names(&directory, room, &mut names)?;
                Ok((directory, complete))
            });
            opened.map_err(|error| describe(&error))
        };
        let copy = place
            .filter(|_| opened.is_ok())
            .map(|place| copy::make_directory(&place, entry.mode, self.outputs.overwrite))
            .transpose();
        let (directory, copy) = match (opened, copy) {
            (Ok((directory, complete)), Ok(copy)) => {
                if !complete {
                    entry.refused = Some(format!(
                        "has more entries than may be collected ({} of a run, with {} MiB of names)",
                        self.outputs.limits.entries,
                        NAMES_LIMIT >> 20,
                    ));
                }
                (directory, copy)
            }
            (Err(reason), _) | (_, Err(reason)) => {
                entry.refused = Some(reason);
                self.found.push(entry);
                return;
            }
        };
        entry.copied_to = copy.as_ref().map(|(_, path)| path.clone());
        let path = entry.path.clone();
        self.found.push(entry);
        for name in names {
            let path = path.join(&name);
            self.names_left = self.names_left.saturating_sub(path.as_os_str().len());
            let place = copy.as_ref().map(|(directory, copied)| Place {
                directory: directory.as_fd(),
                path: copied.join(&name),
                name: name.clone(),
            });
            if self.found.len() >= self.outputs.limits.entries || self.names_left == 0 {
                // What is below its neighbours has used up what was left.
                let reason = "beyond the number of entries that may be collected";
                self.found.push(OutputFile::refused(path, reason));
                return;
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(&directory, &name, flags, Mode::empty()) {
                Ok(handle) => self.take(&handle, path, depth + 1, place),
                Err(error) => {
                    let reason = describe(&error.into());
                    self.found.push(OutputFile::refused(path, reason));
                }
            }
        }
    }

    /// How many entries, and how many bytes of names behind `prefix`, there is room for.
    fn room(&self, prefix: usize) -> (usize, usize) {
        let entries = self.outputs.limits.entries;
        // One for the directory itself, which is still to be written down.
        let left = entries.saturating_sub(self.found.len() + 1);
        (left.min(self.names_left / (prefix + 1)), self.names_left)
    }

    /// Reads a regular file; its hash, and where its copy is.
    fn file(
        &mut self,
        handle: &OwnedFd,
        found: &Statx,
        place: Option<Place<'_>>,
    ) -> Result<(String, Option<PathBuf>), String> {
        let size = found.stx_size;
        self.bytes_left = self.bytes_left.checked_sub(size).ok_or_else(|| {
            format!(
                "{size} bytes ({} of them stored) are more than the {} that may still be collected",
                found.stx_blocks.saturating_mul(512).min(size),
                self.bytes_left,
            )
        })?;
        let failed = |error: io::Error| describe(&error);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let source = File::from(reopen(handle, flags).map_err(failed)?);
        let mode = u32::from(found.stx_mode);
        let mut copy = place
            .map(|place| Copy::create(place, mode, self.outputs.overwrite))
            .transpose()?;
        let mut hash = Sha256::new();
        let mut reached = 0;
        while reached < size {
            let (data, end) = extent(&source, reached, size).map_err(failed)?;
            skip(&mut hash, data - reached);
            reached = data;
            while reached < end {
                let wanted = usize::try_from(end - reached).unwrap_or(usize::MAX);
                let part = &mut self.buffer[..wanted.min(BUFFER)];
                let length = source.read_at(part, reached).map_err(failed)?;
                if length == 0 {
                    return Err(CHANGED.to_owned());
                }
                hash.update(&part[..length]);
                if let Some(copy) = &mut copy {
                    copy.write_at(&part[..length], reached)?;
                }
                reached += length as u64;
            }
        }
        let now = look(&source).map_err(failed)?;
        if identity(&now) != identity(found) {
            return Err(CHANGED.to_owned());
        }
        let copied = copy.map(|copy| copy.finish(size)).transpose()?;
        Ok((hexadecimal(&hash.finalize()), copied))
    }

    fn link(
        &mut self,
        handle: &OwnedFd,
        entry: &mut OutputFile,
        depth: usize,
        place: Option<Place<'_>>,
    ) -> Result<Option<PathBuf>, String> {
        let target = rustix::fs::readlinkat(handle, "", Vec::new())
            .map_err(|error| describe(&error.into()))?;
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        self.names_left = self.names_left.saturating_sub(target.as_os_str().len());
        let stays = stays_inside(&target, depth);
        entry.target = Some(target.clone());
        if !stays {
            return Err("the link leads out of what is collected".to_owned());
        }
        place
            .map(|place| copy::make_link(&place, &target, self.outputs.overwrite))
            .transpose()
    }
}

const CHANGED: &str = "changed while it was read";

/// Whether a link `depth` directories below what is copied leads to something in there, wherever the copy is.
///
/// `..` counts at the beginning only, where it means the directories that the copy has been made of. Behind a name it would
/// mean the parent of whatever that name leads to, which may be another link.
fn stays_inside(target: &Path, depth: usize) -> bool {
    let parts = || target.components().filter(|it| *it != Component::CurDir);
    let up = parts()
        .take_while(|part| *part == Component::ParentDir)
        .count();
    // What was asked for is at depth 0, and a link there has nothing beside it.
    up < depth
        && parts()
            .skip(up)
            .all(|part| matches!(part, Component::Normal(_)))
}

fn look(file: &impl AsFd) -> io::Result<Statx> {
    let wanted = StatxFlags::BASIC_STATS;
    Ok(rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, wanted)?)
}

/// What is different once a file has been written to.
fn identity(found: &Statx) -> (u64, u64, [i64; 2], [u32; 2]) {
    let (written, changed) = (found.stx_mtime, found.stx_ctime);
    let seconds = [written.tv_sec, changed.tv_sec];
    let nanoseconds = [written.tv_nsec, changed.tv_nsec];
    (found.stx_ino, found.stx_size, seconds, nanoseconds)
}

/// Opens what an `O_PATH` descriptor stands for: that and nothing else, whatever has its name by now.
fn reopen(handle: &OwnedFd, flags: OFlags) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    Ok(rustix::fs::open(
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Reads the names in a directory, in the order of their bytes, and says whether these are all. `room` is for how many, and
/// for how many bytes of them.
fn read_names(
    directory: &OwnedFd,
    (entries, mut bytes): (usize, usize),
    names: &mut Vec<OsString>,
) -> io::Result<bool> {
    let mut complete = true;
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        if names.len() == entries || bytes < name.len() {
            complete = false;
            break;
        }
        bytes -= name.len();
        names.push(OsString::from_vec(name.to_vec()));
    }
    names.sort_unstable();
    Ok(complete)
}

/// The next stretch of data in `file` from `start` on: where it begins and ends. Both are `size` where there is none.
fn extent(file: &File, start: u64, size: u64) -> io::Result<(u64, u64)> {
    use rustix::io::Errno;
    let data = match rustix::fs::seek(file, SeekFrom::Data(start)) {
        Ok(data) => data.min(size),
        Err(Errno::NXIO) => size,
        // A file system that does not know of holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((start, size)),
        Err(error) => return Err(error.into()),
    };
    let end = match rustix::fs::seek(file, SeekFrom::Hole(data)) {
        Ok(end) => end.min(size),
        Err(Errno::NXIO) => size,
        Err(error) => return Err(error.into()),
    };
    Ok((data, end.max(data)))
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Hashes `length` zeros.
fn skip(hash: &mut Sha256, mut length: u64) {
    static ZEROS: [u8; 16 << 10] = [0; 16 << 10];
    while length > 0 {
        let part = usize::try_from(length).map_or(ZEROS.len(), |length| length.min(ZEROS.len()));
        hash.update(&ZEROS[..part]);
        length -= part as u64;
    }
}

/// Paths in documents between sbxrt's own processes: bytes, since serde refuses those that are not UTF-8.
mod bytes {
    use super::{OsStrExt, OsString, OsStringExt, Path, PathBuf};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        path.as_os_str().as_bytes().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<PathBuf, D::Error> {
        Vec::<u8>::deserialize(deserializer).map(|it| OsString::from_vec(it).into())
    }
}

mod optional_bytes {
    use super::{OsStrExt, OsString, OsStringExt, PathBuf};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::ref_option, reason = "serde calls it so")]
    pub(super) fn serialize<S: Serializer>(
        path: &Option<PathBuf>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let bytes = path.as_deref().map(|path| path.as_os_str().as_bytes());
        bytes.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<PathBuf>, D::Error> {
        let bytes = Option::<Vec<u8>>::deserialize(deserializer)?;
        Ok(bytes.map(|bytes| OsString::from_vec(bytes).into()))
    }
}

#[cfg(test)]
mod tests;
