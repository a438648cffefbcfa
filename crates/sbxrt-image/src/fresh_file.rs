//! A file that is there as a whole or not at all.
//!
//! It has no name while it is written (`O_TMPFILE`), so nothing of it is left however its process ends. Where the file
//! system cannot do that, it has a hidden name beside the later one, which goes with the value.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::{Error, Result};

/// How hidden names begin. What has one and belongs to nobody may be removed.
pub(crate) const HIDDEN: &str = ".sbxrt-";

/// A file in the making.
#[derive(Debug)]
pub(crate) struct FreshFile {
    file: File,
    path: PathBuf,
    /// The name that it has until then, if it has one.
    hidden: Option<PathBuf>,
}

impl FreshFile {
    /// Begins a file that is to be called `path`. Its mode is what the caller's umask makes of 0666.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let directory = parent(path);
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(directory, flags, Mode::from_raw_mode(0o666)) {
            Ok(file) => Ok(Self {
                file: file.into(),
                path: path.to_owned(),
                hidden: None,
            }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => {
                let hidden = hidden_name(directory);
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .open(&hidden)
                    .map_err(|error| Error::io("create", path, error))?;
                Ok(Self {
                    file,
                    path: path.to_owned(),
                    hidden: Some(hidden),
                })
            }
            Err(error) => Err(Error::io("create", path, error)),
        }
    }

    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives the file its name, in place of whatever file had it.
    pub(crate) fn publish(mut self) -> Result<()> {
        let path = self.path.clone();
        let failed = |error: io::Error| Error::io("write", &path, error);
        self.file.sync_data().map_err(failed)?;
        let hidden = match self.hidden.take() {
            Some(hidden) => hidden,
            None => self.name().map_err(failed)?,
        };
        let hidden = &*self.hidden.insert(hidden);
        fs::rename(hidden, &self.path).map_err(failed)?;
        self.hidden = None;
        Ok(())
    }

    /// Gives a hidden name to a file that has none.
    fn name(&self) -> io::Result<PathBuf> {
        let hidden = hidden_name(parent(&self.path));
        let unnamed = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        rustix::fs::linkat(CWD, unnamed.as_str(), CWD, &hidden, AtFlags::SYMLINK_FOLLOW)?;
        Ok(hidden)
    }
}

impl Drop for FreshFile {
    fn drop(&mut self) {
        if let Some(hidden) = &self.hidden
            && let Err(error) = fs::remove_file(hidden)
        {
            tracing::debug!(path = %hidden.display(), %error, "an unfinished file stays behind");
        }
    }
}

/// Writes a whole file at once.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut fresh = FreshFile::create(path)?;
    io::Write::write_all(fresh.file(), bytes).map_err(|error| Error::io("write", path, error))?;
    fresh.publish()
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

pub(crate) fn hidden_name(directory: &Path) -> PathBuf {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let mut name = OsString::from(HIDDEN);
    name.push(OsStr::new(&format!("{}-{serial}", std::process::id())));
    directory.join(name)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn names(directory: &Path) -> Vec<OsString> {
        fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect()
    }

    #[test]
    fn a_file_is_there_as_a_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut fresh = FreshFile::create(&path).unwrap();
        fresh.file().write_all(b"half").unwrap();
        assert!(!path.exists());
        drop(fresh);
        assert!(names(directory.path()).is_empty());
        write(&path, b"whole").unwrap();
        write(&path, b"another").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"another");
        assert_eq!(names(directory.path()), ["file"]);
    }
}
