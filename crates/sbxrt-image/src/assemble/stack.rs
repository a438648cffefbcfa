//! A stack of layers, seen as one tree without mounting it.
//!
//! What overlayfs would show is worked out name by name: the topmost layer that has a name decides, a whiteout hides it,
//! and an opaque directory hides what is below. Nothing is opened through a link, so whoever laid the tree out, reading it
//! never leads out of it; where a link is to be followed, that is done here, within the tree.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How many links may lead on to others, as in the kernel.
const MAX_LINKS: usize = 40;
/// The most parts of a path, links followed.
const MAX_PARTS: usize = 4096;
/// How many directories of the tree are kept open.
const MAX_OPEN: usize = 32;
/// The longest line of `owners.jsonl`.
const MAX_LINE: u64 = 64 << 10;

/// A stack of layers, or one directory, as one tree. Paths within it are bytes without a slash at either end; the empty
/// one is its root.
#[derive(Debug)]
pub struct Stack {
    /// Top first.
    levels: Vec<Level>,
    open: RefCell<HashMap<Vec<u8>, Arc<Directories>>>,
}

#[derive(Debug)]
struct Level {
    root: OwnedFd,
    path: PathBuf,
    /// Whether whiteouts and opaque directories mean something in it.
    is_layer: bool,
    owners: OnceCell<HashMap<Vec<u8>, Owner>>,
}

/// The directories of the levels that together are one directory of the tree, top first.
type Directories = Vec<(usize, OwnedFd)>;

/// What a name of the tree stands for.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Its permissions, as on disk.
    pub mode: u32,
    /// The bytes of a file.
    pub size: u64,
    /// When it was changed last: seconds since 1970 and nanoseconds.
    pub modified: (i64, i64),
    level: usize,
}

/// The kinds of [`Node`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A socket, FIFO or device.
    Special,
}

/// What is written down of an entry of a layer that cannot be on disk: a line of `owners.jsonl`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mode: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    major: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    minor: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) capability: Option<String>,
}

impl Owner {
    /// Somebody, and the permissions of what belongs to them.
    pub(crate) fn new(uid: u64, gid: u64, mode: u32) -> Self {
        Self {
            uid,
            gid,
            mode,
            ..Self::default()
        }
    }

    /// The line for a path.
    pub(crate) fn at(&self, path: &[u8]) -> Self {
        let (path, path_hex) = match std::str::from_utf8(path) {
            Ok(text) => (Some(text.to_owned()), None),
            Err(_) => (None, Some(crate::digest::hex(path))),
        };
        Self {
            path,
            path_hex,
            ..self.clone()
        }
    }

    /// Whether it says anything that would not be assumed without it.
    pub(crate) fn says_something(&self) -> bool {
        self.uid != 0 || self.gid != 0 || self.mode & 0o6000 != 0 || self.capability.is_some()
    }

    fn bytes(&self) -> Option<Vec<u8>> {
        if let Some(path) = &self.path {
            return Some(path.clone().into_bytes());
        }
        let hex = self.path_hex.as_ref()?.as_bytes();
        let digit = |byte: u8| char::from(byte).to_digit(16);
        hex.chunks(2)
            .map(|pair| match pair {
                [high, low] => u8::try_from(digit(*high)? * 16 + digit(*low)?).ok(),
                _ => None,
            })
            .collect()
    }
}

impl Stack {
    /// Sees a stack of layer directories (`…/fs`), bottom first, as one tree.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where one of them cannot be opened.
    pub fn of_layers<P: AsRef<Path>>(layers: &[P]) -> Result<Self> {
        let levels = layers
            .iter()
            .rev()
            .map(|layer| Level::open(layer.as_ref(), true))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self::new(levels))
    }

    /// Sees a directory that is no layer.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where it cannot be opened.
    pub fn of_directory(path: &Path) -> Result<Self> {
        Ok(Self::new(vec![Level::open(path, false)?]))
    }

    fn new(levels: Vec<Level>) -> Self {
        Self {
            levels,
            open: RefCell::default(),
        }
    }

    /// Says what is at a path, of which no part may be a link but the last; `None` where there is nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where it cannot be looked at.
    pub fn node(&self, path: &[u8]) -> Result<Option<Node>> {
        if path.is_empty() {
            let Some(level) = self.levels.first() else {
                return Ok(None);
            };
            let status =
                rustix::fs::fstat(&level.root).map_err(|error| self.failed("stat", path, error))?;
            return Ok(Some(Node::new(&status, 0)));
        }
        let (parent, name) = split(path);
        let Some(directories) = self.directories(parent)? else {
            return Ok(None);
        };
        let name = self.name(path, name)?;
        for (level, directory) in directories.iter() {
            match rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => {}
                Err(error) => return Err(self.failed("stat", path, error)),
                Ok(status) if self.levels[*level].is_layer && is_whiteout(&status) => {
                    return Ok(None);
                }
                Ok(status) => return Ok(Some(Node::new(&status, *level))),
            }
        }
        Ok(None)
    }

    /// Follows the links of a path within the tree. What is missing is taken as it stands; `..` never leads above the root.
    /// The last part is followed too where `follow_last` says so.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] with `ELOOP` where links lead in a circle.
    pub fn resolve(&self, path: &[u8], follow_last: bool) -> Result<Vec<u8>> {
        let mut ahead: VecDeque<Vec<u8>> = parts(path);
        let mut behind: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(part) = ahead.pop_front() {
            if part == b".." {
                behind.pop();
                continue;
            }
            behind.push(part);
            if behind.len() + ahead.len() > MAX_PARTS {
                return Err(self.failed("resolve", path, Errno::NAMETOOLONG));
            }
            if ahead.is_empty() && !follow_last {
                break;
            }
            let here = behind.join(&b'/');
            let Some(node) = self.node(&here)? else {
                continue;
            };
            if node.kind != NodeKind::Symlink {
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(self.failed("resolve", path, Errno::LOOP));
            }
            let target = self.read_link(&here, &node)?;
            behind.pop();
            if target.starts_with(b"/") {
                behind.clear();
            }
            let mut next = parts(&target);
            next.append(&mut ahead);
            ahead = next;
        }
        Ok(behind.join(&b'/'))
    }

    /// Lists a directory, sorted.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where it cannot be read or is none.
    pub fn list(&self, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        let directories = self
            .directories(path)?
            .ok_or_else(|| self.failed("list", path, Errno::NOENT))?;
        let mut seen = BTreeSet::new();
        let mut hidden = BTreeSet::new();
        for (level, directory) in directories.iter() {
            let entries =
                Dir::read_from(directory).map_err(|error| self.failed("list", path, error))?;
            for entry in entries {
                let entry = entry.map_err(|error| self.failed("list", path, error))?;
                let name = entry.file_name();
                let bytes = name.to_bytes();
                if bytes == b"." || bytes == b".." || seen.contains(bytes) || hidden.contains(bytes)
                {
                    continue;
                }
                let may_hide = matches!(
                    entry.file_type(),
                    FileType::CharacterDevice | FileType::Unknown
                );
                if self.levels[*level].is_layer && may_hide {
                    let status = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(|error| self.failed("stat", path, error))?;
                    if is_whiteout(&status) {
                        hidden.insert(bytes.to_vec());
                        continue;
                    }
                }
                seen.insert(bytes.to_vec());
            }
        }
        Ok(seen.into_iter().collect())
    }

    /// Opens a regular file that [`node`](Self::node) found.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where it cannot be read or is no longer a regular file.
    pub fn open_file(&self, path: &[u8], node: &Node) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(self.open_at(path, node, flags)?);
        let metadata = file
            .metadata()
            .map_err(|error| Error::io("stat", &self.shown(path), error))?;
        if !metadata.is_file() {
            return Err(self.failed("open", path, Errno::INVAL));
        }
        Ok(file)
    }

    /// Reads where a symbolic link that [`node`](Self::node) found leads.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where it cannot be read.
    pub fn read_link(&self, path: &[u8], node: &Node) -> Result<Vec<u8>> {
        let (parent, name) = split(path);
        let name = self.name(path, name)?;
        let directories = self.directories(parent)?;
        let directory = directories
            .iter()
            .flat_map(|directories| directories.iter())
            .find(|(level, _)| *level == node.level);
        let Some((_, directory)) = directory else {
            return Err(self.failed("readlink", path, Errno::NOENT));
        };
        rustix::fs::readlinkat(directory, &name, Vec::new())
            .map(CString::into_bytes)
            .map_err(|error| self.failed("readlink", path, error))
    }

    fn open_at(&self, path: &[u8], node: &Node, flags: OFlags) -> Result<OwnedFd> {
        let (parent, name) = split(path);
        let name = self.name(path, name)?;
        let directories = self.directories(parent)?;
        let directory = directories
            .iter()
            .flat_map(|directories| directories.iter())
            .find(|(level, _)| *level == node.level);
        match directory {
            Some((_, directory)) => rustix::fs::openat(directory, &name, flags, Mode::empty())
                .map_err(|error| self.failed("open", path, error)),
            None => Err(self.failed("open", path, Errno::NOENT)),
        }
    }

    /// Who owns what is at a path, and what else is written down of it; `None` is 0:0 and nothing.
    pub(crate) fn owner(&self, path: &[u8], node: &Node) -> Result<Option<Owner>> {
        let level = &self.levels[node.level];
        if !level.is_layer {
            return Ok(None);
        }
        let owners = if let Some(owners) = level.owners.get() {
            owners
        } else {
            let read = read_owners(&level.path.with_file_name("owners.jsonl"))?;
            level.owners.get_or_init(|| read)
        };
        // Devices and FIFOs are not on disk, so a line on one cannot be about what is there.
        Ok(owners
            .get(path)
            .filter(|owner| owner.kind.is_none())
            .cloned())
    }

    /// Forgets which directories are open: something has been made or removed in the topmost layer.
    pub(crate) fn forget(&self) {
        self.open.borrow_mut().clear();
    }

    fn directories(&self, path: &[u8]) -> Result<Option<Arc<Directories>>> {
        if let Some(open) = self.open.borrow().get(path) {
            return Ok(Some(Arc::clone(open)));
        }
        // A loop and no recursion: a path may have two thousand parts.
        let mut known = path.len();
        let mut found = None;
        while known > 0 {
            known = path[..known]
                .iter()
                .rposition(|byte| *byte == b'/')
                .unwrap_or(0);
            if let Some(open) = self.open.borrow().get(&path[..known]) {
                found = Some(Arc::clone(open));
                break;
            }
        }
        let mut current = match found {
            Some(found) => found,
            None => self.remember(b"", self.roots()?),
        };
        let mut end = known;
        while end < path.len() {
            let begin = if end == 0 { 0 } else { end + 1 };
            end = path[begin..]
                .iter()
                .position(|byte| *byte == b'/')
                .map_or(path.len(), |length| begin + length);
            match self.descend(&current, &path[..end], &path[begin..end])? {
                Some(directories) => current = self.remember(&path[..end], directories),
                None => return Ok(None),
            }
        }
        Ok(Some(current))
    }

    fn remember(&self, path: &[u8], directories: Directories) -> Arc<Directories> {
        let directories = Arc::new(directories);
        let mut open = self.open.borrow_mut();
        if open.len() >= MAX_OPEN {
            open.clear();
        }
        open.insert(path.to_vec(), Arc::clone(&directories));
        directories
    }

    fn roots(&self) -> Result<Directories> {
        let mut roots = Vec::new();
        for (index, level) in self.levels.iter().enumerate() {
            let root = rustix::io::dup(&level.root)
                .map_err(|error| Error::io("open", &level.path, error))?;
            let ends = level.is_layer && is_opaque(&root);
            roots.push((index, root));
            if ends {
                break;
            }
        }
        Ok(roots)
    }

    fn descend(
        &self,
        parents: &Directories,
        path: &[u8],
        name: &[u8],
    ) -> Result<Option<Directories>> {
        let name = self.name(path, name)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut directories = Vec::new();
        for (level, parent) in parents {
            match rustix::fs::openat(parent, &name, flags, Mode::empty()) {
                Err(Errno::NOENT) => {}
                // A whiteout, a file or a link: whatever it is, it hides what is below.
                Err(Errno::NOTDIR | Errno::LOOP) => break,
                Err(error) => return Err(self.failed("open", path, error)),
                Ok(directory) => {
                    let ends = self.levels[*level].is_layer && is_opaque(&directory);
                    directories.push((*level, directory));
                    if ends {
                        break;
                    }
                }
            }
        }
        Ok((!directories.is_empty()).then_some(directories))
    }

    fn name(&self, path: &[u8], name: &[u8]) -> Result<CString> {
        CString::new(name).map_err(|error| Error::io("open", &self.shown(path), error))
    }

    fn failed(&self, operation: &'static str, path: &[u8], error: Errno) -> Error {
        Error::io(operation, &self.shown(path), error)
    }

    /// The path as messages call it: on this machine for a directory, within the image for layers.
    fn shown(&self, path: &[u8]) -> PathBuf {
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        match self.levels.as_slice() {
            [level] if !level.is_layer => level.path.join(path),
            _ => Path::new("/").join(path),
        }
    }
}

impl Level {
    fn open(path: &Path, is_layer: bool) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| Error::io("open", path, error))?;
        Ok(Self {
            root,
            path: path.to_owned(),
            is_layer,
            owners: OnceCell::new(),
        })
    }
}

impl Node {
    fn new(status: &Stat, level: usize) -> Self {
        let kind = match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => NodeKind::Directory,
            FileType::RegularFile => NodeKind::File,
            FileType::Symlink => NodeKind::Symlink,
            _ => NodeKind::Special,
        };
        Self {
            kind,
            mode: status.st_mode & 0o7777,
            size: u64::try_from(status.st_size).unwrap_or(0),
            modified: (status.st_mtime, status.st_mtime_nsec.cast_signed()),
            level,
        }
    }
}

/// Reads `owners.jsonl`; there may be none.
fn read_owners(path: &Path) -> Result<HashMap<Vec<u8>, Owner>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(HashMap::new()),
        Err(error) => return Err(Error::io("open", path, error)),
    };
    let mut reader = BufReader::new(file);
    let mut owners = HashMap::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = reader
            .by_ref()
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)
            .map_err(|error| Error::io("read", path, error))?;
        if length == 0 {
            return Ok(owners);
        }
        let owner: Owner =
            serde_json::from_slice(&line).map_err(|error| Error::io("parse", path, error))?;
        if let Some(path) = owner.bytes() {
            // A later line on a path replaces an earlier one.
            owners.insert(path, owner);
        }
    }
}

fn is_whiteout(status: &Stat) -> bool {
    FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice && status.st_rdev == 0
}

fn is_opaque(directory: &OwnedFd) -> bool {
    let mut value = [0_u8; 8];
    rustix::fs::fgetxattr(directory, c"user.overlay.opaque", &mut value)
        .is_ok_and(|length| value[..length].starts_with(b"y"))
}

/// The path without its last part, and that.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn parts(path: &[u8]) -> VecDeque<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(<[u8]>::to_vec)
        .collect()
}

/// Joins a directory and a name.
pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() {
        return name.to_vec();
    }
    [directory, name].join(&b'/')
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, XattrFlags};

    use super::*;

    /// Two layers: a link `bin`, a file that the upper one hides, an opaque directory.
    fn layers() -> (tempfile::TempDir, Vec<PathBuf>) {
        let directory = tempfile::tempdir().unwrap();
        let lower = directory.path().join("lower/fs");
        let upper = directory.path().join("upper/fs");
        fs::create_dir_all(lower.join("usr/bin")).unwrap();
        fs::create_dir_all(lower.join("opaque/deep")).unwrap();
        fs::write(lower.join("usr/bin/tool"), "lower").unwrap();
        fs::write(lower.join("gone"), "x").unwrap();
        fs::write(lower.join("opaque/old"), "x").unwrap();
        symlink("usr/bin", lower.join("bin")).unwrap();
        symlink("/usr/../../../bin", lower.join("usr/up")).unwrap();
        symlink("circle", lower.join("circle")).unwrap();
        symlink("/missing/place", lower.join("dangling")).unwrap();
        fs::create_dir_all(upper.join("opaque")).unwrap();
        fs::create_dir_all(upper.join("usr/bin")).unwrap();
        fs::write(upper.join("opaque/new"), "x").unwrap();
        fs::write(upper.join("usr/bin/other"), "upper").unwrap();
        fs::write(
            directory.path().join("lower/owners.jsonl"),
            "{\"path\":\"usr/bin/tool\",\"uid\":7,\"gid\":8,\"mode\":2541}\n",
        )
        .unwrap();
        let whiteout = rustix::fs::mknodat(
            CWD,
            upper.join("gone"),
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        );
        whiteout.unwrap();
        rustix::fs::setxattr(
            upper.join("opaque"),
            c"user.overlay.opaque",
            b"y",
            XattrFlags::empty(),
        )
        .unwrap();
        (directory, vec![lower, upper])
    }

    fn text(path: Vec<u8>) -> String {
        String::from_utf8(path).unwrap()
    }

    #[test]
    fn a_stack_shows_what_overlayfs_would_show() {
        let (_directory, layers) = layers();
        let stack = Stack::of_layers(&layers).unwrap();
        let listed = |path: &[u8]| -> Vec<String> {
            stack.list(path).unwrap().into_iter().map(text).collect()
        };
        assert_eq!(listed(b""), ["bin", "circle", "dangling", "opaque", "usr"]);
        assert_eq!(listed(b"opaque"), ["new"]);
        assert_eq!(listed(b"usr/bin"), ["other", "tool"]);
        assert!(stack.node(b"gone").unwrap().is_none());
        assert!(stack.node(b"opaque/old").unwrap().is_none());
        assert!(stack.node(b"opaque/deep/x").unwrap().is_none());
        assert!(stack.node(b"bin/tool").unwrap().is_none(), "through a link");
        let tool = stack.node(b"usr/bin/tool").unwrap().unwrap();
        let owner = stack.owner(b"usr/bin/tool", &tool).unwrap().unwrap();
        assert_eq!((owner.uid, owner.gid, owner.mode), (7, 8, 0o4755));
        let mut content = String::new();
        stack
            .open_file(b"usr/bin/tool", &tool)
            .unwrap()
            .read_to_string(&mut content)
            .unwrap();
        assert_eq!(content, "lower");
    }

    #[test]
    fn links_are_followed_within_the_tree() {
        let (_directory, layers) = layers();
        let stack = Stack::of_layers(&layers).unwrap();
        let table = [
            ("bin/tool", "usr/bin/tool"),
            ("/bin/./tool/", "usr/bin/tool"),
            ("usr/up/tool", "usr/bin/tool"),
            ("../../etc/passwd", "etc/passwd"),
            ("usr/../bin", "usr/bin"),
            ("dangling/x", "missing/place/x"),
            ("new/dir", "new/dir"),
            ("", ""),
        ];
        for (path, expected) in table {
            let resolved = stack.resolve(path.as_bytes(), true).unwrap();
            assert_eq!(text(resolved), expected, "{path:?}");
        }
        assert_eq!(text(stack.resolve(b"usr/../bin", false).unwrap()), "bin");
        assert!(stack.resolve(b"circle/x", true).is_err());
    }
}
