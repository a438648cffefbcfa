mod attributes;
mod hostile;
mod layers;
mod properties;
mod streams;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use tempfile::TempDir;

use super::lower::is_opaque;
use super::*;

impl Skip for &[u8] {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = io::copy(&mut io::Read::take(&mut *self, bytes), &mut io::sink())?;
        if skipped < bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

/// A header as a stranger may write it: nothing of it is checked.
pub(crate) fn header(name: &[u8], kind: u8, link: &[u8], mode: u32, size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    block[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"00000000144");
    block[156] = kind;
    block[157..157 + link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

pub(crate) fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum = block.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

pub(crate) fn with_data(header: &[u8; 512], data: &[u8]) -> Vec<u8> {
    let mut bytes = [header.as_slice(), data].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

pub(crate) fn directory(name: &str, mode: u32) -> Vec<u8> {
    header(name.as_bytes(), b'5', b"", mode, 0).to_vec()
}

pub(crate) fn file(name: &str, data: &str) -> Vec<u8> {
    file_with_mode(name, 0o644, data)
}

pub(crate) fn file_with_mode(name: &str, mode: u32, data: &str) -> Vec<u8> {
    with_data(
        &header(name.as_bytes(), b'0', b"", mode, data.len() as u64),
        data.as_bytes(),
    )
}

pub(crate) fn symlink(target: &str, name: &str) -> Vec<u8> {
    header(name.as_bytes(), b'2', target.as_bytes(), 0o777, 0).to_vec()
}

pub(crate) fn hard_link(target: &str, name: &str) -> Vec<u8> {
    header(name.as_bytes(), b'1', target.as_bytes(), 0o644, 0).to_vec()
}

pub(crate) fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length.to_string().len() + rest != length {
            length += 1;
        }
        data.extend(
            [
                length.to_string().as_bytes(),
                b" ",
                key.as_bytes(),
                b"=",
                value,
                b"\n",
            ]
            .concat(),
        );
    }
    with_data(&header(b"pax", b'x', b"", 0o644, data.len() as u64), &data)
}

/// A directory with a place for layers and something beside it that must never change.
struct Place {
    temporary: TempDir,
    layers: Vec<PathBuf>,
    /// Whether the last layer's stream can be had again.
    replayed: Option<()>,
}

/// Reads a layer's stream again.
fn replay(directory: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut replay = crate::replay::open(directory).unwrap()?;
    io::Read::read_to_end(&mut replay, &mut bytes).unwrap();
    Some(bytes)
}

impl Place {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        fs::create_dir(temporary.path().join("outside")).unwrap();
        fs::write(temporary.path().join("outside/canary"), "unharmed").unwrap();
        fs::write(temporary.path().join("canary"), "unharmed").unwrap();
        Self {
            temporary,
            layers: Vec::new(),
            replayed: None,
        }
    }

    fn try_layer(&mut self, entries: &[Vec<u8>]) -> Result<Summary> {
        self.try_layer_with(entries, &Limits::default())
    }

    /// Unpacks a layer on top of those that there are.
    fn try_layer_with(&mut self, entries: &[Vec<u8>], limits: &Limits) -> Result<Summary> {
        let directory = self
            .temporary
            .path()
            .join(format!("layer{}", self.layers.len()));
        fs::create_dir(&directory).unwrap();
        let bytes = entries.concat();
        let mut unpacker = Unpacker::new(
            &directory,
            &Digest::of(b"layer"),
            self.layers.is_empty(),
            limits,
        )?;
        unpacker.unpack(&mut Tarball::new(bytes.as_slice(), limits.header_bytes))?;
        let lower = self.layers.iter().rev().cloned().collect::<Vec<_>>();
        let summary = unpacker.finish(&lower)?;
        self.layers.push(directory.join("fs"));
        self.replayed = replay(&directory).map(|replayed| {
            assert!(replayed == bytes, "the stream comes again");
        });
        Ok(summary)
    }

    fn layer(&mut self, entries: &[Vec<u8>]) -> PathBuf {
        self.try_layer(entries).unwrap();
        self.layers.last().unwrap().clone()
    }

    fn assert_unharmed(&self) {
        let outside = self.temporary.path().join("outside");
        let names = |path: &Path| {
            let mut names = fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect::<Vec<_>>();
            names.retain(|name| !name.to_string_lossy().starts_with("layer"));
            names.sort();
            names
        };
        assert_eq!(names(&outside), ["canary"]);
        assert_eq!(names(self.temporary.path()), ["canary", "outside"]);
        for path in [outside.join("canary"), self.temporary.path().join("canary")] {
            assert_eq!(fs::read_to_string(&path).unwrap(), "unharmed");
            let metadata = fs::symlink_metadata(&path).unwrap();
            assert_eq!(
                (metadata.mode() & 0o7777, metadata.nlink()),
                (0o644, 1),
                "{}",
                path.display()
            );
        }
        assert_eq!(fs::metadata(&outside).unwrap().mode() & 0o7777, 0o755);
    }
}

fn whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|metadata| metadata.file_type().is_char_device() && metadata.rdev() == 0)
}

fn opaque(path: &Path) -> bool {
    is_opaque(&File::open(path).unwrap().into())
}

fn xattr_names(path: &Path) -> Vec<String> {
    let mut buffer = [0_u8; 1024];
    let length = rustix::fs::listxattr(path, &mut buffer).unwrap();
    let names = buffer[..length].split(|byte| *byte == 0);
    names
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8(name.to_vec()).unwrap())
        .collect()
}

/// Needs `place` to be gone when a tree of closed directories has been unpacked into it.
impl Drop for Place {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.temporary.path()).unwrap() {
            let name = entry.unwrap().file_name();
            if name.to_string_lossy().starts_with("layer") {
                let parent = File::open(self.temporary.path()).unwrap();
                let name = CString::new(name.to_str().unwrap()).unwrap();
                tree::remove_all(parent.as_fd(), &name).unwrap();
            }
        }
        fs::set_permissions(self.temporary.path(), fs::Permissions::from_mode(0o700)).unwrap();
    }
}
