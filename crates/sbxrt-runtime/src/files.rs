//! Files that are put into a container before its program starts.
//!
//! They are written by the process that is about to become the program, with the program's rights, in its cgroup and under
//! its limits: they get nowhere where the program itself could not write, and count for what it may use. Links in the image
//! lead where they would lead the program. Only a regular file, or a new one, is written to.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Failure;

/// How many files one run may be given.
const COUNT_LIMIT: usize = 1024;
/// How many bytes they may have together: the launcher holds them for as long as the run takes.
const BYTES_LIMIT: usize = 16 << 20;
/// The kernel's own file systems.
const RESERVED: &[&str] = &["/proc", "/sys", "/dev"];

/// A file that the program finds when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// The path inside, relative to the working directory unless it is absolute. Directories on the way are made (mode
    /// 0755); a file that is there is replaced. It may not be in `/proc`, `/sys` or `/dev`, nor contain `..`. In a volume
    /// that the program may write to, the file is written to the volume.
    pub path: PathBuf,
    /// What is in it.
    #[serde(with = "contents")]
    pub contents: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}

impl InputFile {
    /// A file that is readable for everybody and writable for its owner.
    pub fn new(path: impl Into<PathBuf>, contents: impl Into<Vec<u8>>) -> Self {
        Self {
            path: path.into(),
            contents: contents.into(),
            mode: 0o644,
        }
    }

    /// Finds what cannot be carried out, whatever the image: which file, and why.
    ///
    /// # Errors
    ///
    /// The subject and the reason.
    pub fn check(files: &[Self]) -> Result<(), (String, String)> {
        if files.len() > COUNT_LIMIT {
            let reason = format!("are more than {COUNT_LIMIT}; use a volume");
            return Err(("files".to_owned(), reason));
        }
        let bytes: usize = files.iter().map(|file| file.contents.len()).sum();
        if bytes > BYTES_LIMIT {
            let reason =
                format!("have {bytes} bytes, and {BYTES_LIMIT} is the limit; use a volume");
            return Err(("files".to_owned(), reason));
        }
        for file in files {
            if let Some(reason) = file.flaw() {
                return Err((format!("file {}", file.path.display()), reason.to_owned()));
            }
        }
        Ok(())
    }

    fn flaw(&self) -> Option<&'static str> {
        let path = &self.path;
        let bytes = path.as_os_str().as_bytes();
        let mut components = path.components();
        if bytes.contains(&0) {
            return Some("contains a NUL byte");
        }
        if components.any(|component| component == Component::ParentDir) {
            return Some("must not contain ..");
        }
        if path.file_name().is_none() || bytes.ends_with(b"/") {
            return Some("must end with the name of a file");
        }
        if RESERVED.iter().any(|reserved| path.starts_with(reserved)) {
            return Some("is in a file system of the kernel's own");
        }
        if self.mode & !0o777 != 0 {
            return Some("has a mode with other bits than permissions");
        }
        None
    }

    /// Writes it, with the rights of this process.
    fn write(&self) -> io::Result<()> {
        let mut file = match self.open() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if let Some(parent) = self.path.parent() {
                    std::fs::create_dir_all(parent)?;
                }
                self.open()?
            }
            other => other?,
        };
        if !file.metadata()?.is_file() {
            let reason = "something else than a regular file is there";
            return Err(io::Error::new(ErrorKind::AlreadyExists, reason));
        }
        file.set_len(0)?;
        file.write_all(&self.contents)?;
        file.set_permissions(Permissions::from_mode(self.mode))
    }

    fn open(&self) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            // A FIFO must not make us wait, nor a terminal become ours.
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(&self.path)
    }
}

/// Writes all of them, in their order.
pub(crate) fn place(files: &[InputFile]) -> Result<(), Failure> {
    for file in files {
        file.write().map_err(|error| {
            Failure::new(
                "put a file into the sandbox",
                file.path.to_string_lossy(),
                error,
            )
        })?;
    }
    Ok(())
}

/// Bytes in a JSON document: as text where they are one, which is short and quick.
mod contents {
    use std::borrow::Cow;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Encoded<'a> {
        Text(Cow<'a, str>),
        Bytes(Cow<'a, [u8]>),
    }

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        match str::from_utf8(bytes) {
            Ok(text) => Encoded::Text(text.into()).serialize(serializer),
            Err(_) => Encoded::Bytes(bytes.into()).serialize(serializer),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        Ok(match Encoded::deserialize(deserializer)? {
            Encoded::Text(text) => text.into_owned().into_bytes(),
            Encoded::Bytes(bytes) => bytes.into_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_path_stays_inside_and_names_a_file() {
        let table = [
            ("main.py", None),
            ("/work/a/main.py", None),
            ("./a", None),
            ("../a", Some("..")),
            ("/a/../../b", Some("..")),
            ("/", Some("name of a file")),
            ("", Some("name of a file")),
            ("/a/", Some("name of a file")),
            ("/proc/self/mem", Some("kernel's own")),
            ("/dev/sda", Some("kernel's own")),
            ("/device", None),
            ("a\0b", Some("NUL")),
        ];
        for (path, expected) in table {
            let flaw = InputFile::check(&[InputFile::new(path, "x")]);
            match expected {
                None => assert_eq!(flaw, Ok(()), "{path:?}"),
                Some(word) => assert!(flaw.unwrap_err().1.contains(word), "{path:?}"),
            }
        }
        let large = InputFile::new("a", vec![0; BYTES_LIMIT / 2 + 1]);
        assert!(InputFile::check(&[large.clone(), large]).is_err());
        assert!(InputFile::check(&vec![InputFile::new("a", ""); COUNT_LIMIT + 1]).is_err());
        let mut file = InputFile::new("a", "");
        file.mode = 0o4755;
        assert!(InputFile::check(&[file]).is_err());
    }

    #[test]
    fn contents_survive_their_way_through_a_document() {
        for contents in [&b""[..], b"text \"\n", b"\xff\x00"] {
            let file = InputFile::new("a", contents);
            let text = serde_json::to_string(&file).unwrap();
            assert_eq!(serde_json::from_str::<InputFile>(&text).unwrap(), file);
        }
    }

    #[test]
    fn only_regular_files_are_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("old"), "longer than what comes").unwrap();
        symlink("old", path("link")).unwrap();
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut new = InputFile::new(path("a/b/new"), "1");
        new.mode = 0o755;
        place(&[new, InputFile::new(path("link"), "2")]).unwrap();
        assert_eq!(std::fs::read(path("a/b/new")).unwrap(), b"1");
        let mode = std::fs::metadata(path("a/b/new")).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o755);
        assert_eq!(std::fs::read(path("old")).unwrap(), b"2");
        for name in ["fifo", "a"] {
            let failure = place(&[InputFile::new(path(name), "x")]).unwrap_err();
            assert_eq!(failure.step, "put a file into the sandbox", "{name}");
        }
    }
}
