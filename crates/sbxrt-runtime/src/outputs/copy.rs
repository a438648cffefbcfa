//! The host's side of an output: what is made below a directory that the caller has opened, and nothing else touched.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::error::describe;

/// Where something goes.
pub(super) struct Place<'a> {
    pub(super) directory: BorrowedFd<'a>,
    pub(super) name: OsString,
    /// The same as a path, for people.
    pub(super) path: PathBuf,
}

impl Place<'_> {
    /// Why nothing could be made here.
    fn refuse(&self, error: Errno) -> String {
        format!("{}: {}", self.path.display(), describe(&error.into()))
    }

    /// A name beside it that nobody uses, for what takes its place when it is complete.
    fn beside(&self) -> OsString {
        let mut name = OsString::from(".sbxrt-");
        name.push(std::process::id().to_string());
        name.push("-");
        // Names may be as long as a file system allows already.
        let bytes = self.name.as_encoded_bytes();
        let hash = bytes.iter().fold(5381_u64, |hash, &byte| {
            hash.wrapping_mul(33) ^ u64::from(byte)
        });
        name.push(format!("{hash:x}"));
        name
    }

    /// Gives what is called `name` beside this place its name, in the place of what has it.
    fn replace_with(&self, name: &OsStr) -> Result<(), Errno> {
        rustix::fs::renameat(self.directory, name, self.directory, &self.name)
    }

    fn remove(&self, name: &OsStr) {
        // Where even that fails, the error that led here is the one to tell.
        let _ = rustix::fs::unlinkat(self.directory, name, AtFlags::empty());
    }
}

/// A file in the making. It is removed unless it is finished.
pub(super) struct Copy<'a> {
    place: Place<'a>,
    file: File,
    /// What it is called until it is finished.
    name: OsString,
    finished: bool,
}

impl<'a> Copy<'a> {
    /// Makes an empty file that its owner can read and write, without set-user-ID and its like.
    pub(super) fn create(place: Place<'a>, mode: u32, overwrite: bool) -> Result<Self, String> {
        let name = if overwrite {
            place.beside()
        } else {
            place.name.clone()
        };
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_bits_truncate((mode & 0o777) | 0o600);
        match rustix::fs::openat(place.directory, &name, flags, mode) {
            Ok(file) => Ok(Self {
                place,
                file: file.into(),
                name,
                finished: false,
            }),
            Err(error) => Err(place.refuse(error)),
        }
    }

    pub(super) fn write_at(&mut self, bytes: &[u8], offset: u64) -> Result<(), String> {
        let written = self.file.write_all_at(bytes, offset);
        written.map_err(|error| format!("{}: {}", self.place.path.display(), describe(&error)))
    }

    /// Gives the file its size, for holes are not written, and its name; returns its path.
    pub(super) fn finish(mut self, size: u64) -> Result<PathBuf, String> {
        self.file
            .set_len(size)
            .map_err(|error| format!("{}: {}", self.place.path.display(), describe(&error)))?;
        if self.name != self.place.name {
            let renamed = self.place.replace_with(&self.name);
            renamed.map_err(|error| self.place.refuse(error))?;
        }
        self.finished = true;
        Ok(self.place.path.clone())
    }
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.place.remove(&self.name);
        }
    }
}

/// Makes a directory that its owner can use; its descriptor and path.
pub(super) fn make_directory(
    place: &Place<'_>,
    mode: u32,
    overwrite: bool,
) -> Result<(OwnedFd, PathBuf), String> {
    let mode = Mode::from_bits_truncate((mode & 0o777) | 0o700);
    match rustix::fs::mkdirat(place.directory, &place.name, mode) {
        Ok(()) => {}
        Err(Errno::EXIST) if overwrite => {}
        Err(error) => return Err(place.refuse(error)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(place.directory, &place.name, flags, Mode::empty()) {
        Ok(directory) => Ok((directory, place.path.clone())),
        Err(error) => Err(place.refuse(error)),
    }
}

/// Makes a symbolic link; its path.
pub(super) fn make_link(
    place: &Place<'_>,
    target: &Path,
    overwrite: bool,
) -> Result<PathBuf, String> {
    let made = if overwrite {
        let name = place.beside();
        rustix::fs::symlinkat(target, place.directory, &name).and_then(|()| {
            let renamed = place.replace_with(&name);
            if renamed.is_err() {
                place.remove(&name);
            }
            renamed
        })
    } else {
        rustix::fs::symlinkat(target, place.directory, &place.name)
    };
    match made {
        Ok(()) => Ok(place.path.clone()),
        Err(error) => Err(place.refuse(error)),
    }
}
