//! The files that `sbxrt run` and `batch` write: where a document goes, and that no two things go to one place.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::stat::{SFlag, fstat};
use sbxrt::Outputs;
use serde::Serialize;

use crate::args::RunArguments;
use crate::error::{Error, Result};
use crate::printer::{Printer, write_document};

/// Where the document about the run goes.
pub(crate) enum Destination {
    Nowhere,
    StandardOutput,
    File(PathBuf, File),
}

impl Destination {
    /// Opens it before anything is done that it would have to tell.
    pub(crate) fn open(arguments: &RunArguments) -> Result<Self> {
        match &arguments.result {
            Some(path) => {
                let file = open(path).map_err(|source| Error::ResultFile {
                    path: path.clone(),
                    source,
                })?;
                Ok(Self::File(path.clone(), file))
            }
            None if arguments.json => Ok(Self::StandardOutput),
            None => Ok(Self::Nowhere),
        }
    }

    pub(crate) fn write(&self, printer: Printer, document: &impl Serialize) -> Result<()> {
        match self {
            Self::Nowhere => Ok(()),
            Self::StandardOutput => printer.document(document),
            Self::File(path, file) => {
                write_document(file, document).map_err(|source| Error::ResultFile {
                    path: path.clone(),
                    source,
                })
            }
        }
    }
}

/// Creates or empties a file, or opens what `>(command)`, `/dev/stderr` and `/dev/null` are. A FIFO would keep us waiting
/// until somebody reads from it, who may never come.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ENXIO) => io::Error::new(
                ErrorKind::InvalidInput,
                "it is a pipe that nobody reads from, or a socket",
            ),
            _ => error,
        })?;
    let kind = file.metadata()?.file_type();
    if kind.is_block_device() {
        let reason = "it is a disk and no regular file";
        return Err(io::Error::new(ErrorKind::InvalidInput, reason));
    }
    if kind.is_file() {
        file.set_len(0)?;
    }
    let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
    fcntl(&file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(file)
}

/// Makes sure that nothing overwrites anything else: each of `files`, a flag and the file that it names, which has been
/// opened, and each copy of an output has a place of its own, which is not where this process's own output goes either.
pub(crate) fn distinguish(files: &[(&'static str, &Path)], outputs: &Outputs) -> Result<()> {
    if files.is_empty() && outputs.paths.is_empty() {
        return Ok(());
    }
    let copies = outputs.paths.iter().filter_map(|output| {
        let copy = output.copy_to.as_deref()?;
        Some(("--output", copy))
    });
    let mut taken: Vec<(&'static str, PathBuf, Place)> = Vec::new();
    let streams = [
        ("standard output", fstat(io::stdout().as_fd())),
        ("standard error", fstat(io::stderr().as_fd())),
    ];
    for (name, found) in streams {
        if let Ok(found) = found
            && SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFREG
        {
            let place = Place::Existing(found.st_dev, found.st_ino);
            taken.push((name, PathBuf::new(), place));
        }
    }
    for (flag, path) in files.iter().copied().chain(copies) {
        let Some(place) = Place::find(path) else {
            continue;
        };
        if let Some((other, named, _)) = taken.iter().find(|(_, _, taken)| *taken == place) {
            return Err(Error::SameFile {
                first: describe(other, named),
                second: describe(flag, path),
            });
        }
        taken.push((flag, path.to_owned(), place));
    }
    // What is copied into a directory that exists takes the place of what has its name there.
    for output in &outputs.paths {
        let Some(copy) = &output.copy_to else {
            continue;
        };
        let Some(directory) = Place::find(copy) else {
            continue;
        };
        for (flag, path) in files {
            if directory.holds(path) {
                return Err(Error::FileInCopy {
                    file: describe(flag, path),
                    copy: copy.clone(),
                });
            }
        }
    }
    Ok(())
}

/// A flag with its value, or a stream, which has none.
fn describe(flag: &str, path: &Path) -> String {
    if path.as_os_str().is_empty() {
        flag.to_owned()
    } else {
        format!("{flag} {}", path.display())
    }
}

/// What a path leads to, however it is written.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// The device and the number of an inode.
    Existing(u64, u64),
    /// A name that nothing has in a directory.
    Free(u64, u64, std::ffi::OsString),
}

impl Place {
    /// None where it cannot hold anything up: a pipe or device takes what comes, and what cannot be made will be told.
    fn find(path: &Path) -> Option<Self> {
        // A copy takes the place of a link rather than of what that leads to, but nobody who writes this means it so.
        if let Ok(found) = std::fs::metadata(path).or_else(|_| std::fs::symlink_metadata(path)) {
            let kind = found.file_type();
            let is_kept = kind.is_file() || kind.is_dir() || kind.is_symlink();
            return is_kept.then(|| Self::Existing(found.dev(), found.ino()));
        }
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let parent = std::fs::metadata(parent).ok()?;
        let name = path.file_name()?.to_owned();
        Some(Self::Free(parent.dev(), parent.ino(), name))
    }

    /// Whether this is a directory above `path`.
    fn holds(&self, path: &Path) -> bool {
        let Ok(path) = std::fs::canonicalize(path) else {
            return false;
        };
        let mut above = path.ancestors().skip(1);
        above.any(|directory| Self::find(directory).as_ref() == Some(self))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use sbxrt::OutputPath;

    use super::*;

    fn outputs(copies: &[&Path]) -> Outputs {
        let paths = copies.iter().map(|copy| OutputPath {
            path: "/out".into(),
            copy_to: Some((*copy).to_owned()),
        });
        Outputs {
            paths: paths.collect(),
            ..Outputs::default()
        }
    }

    #[test]
    fn one_place_is_found_behind_all_of_its_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("d")).unwrap();
        symlink("d", path("link-to-d")).unwrap();
        fs::write(path("d/file"), "").unwrap();
        symlink("d/file", path("symbolic")).unwrap();
        fs::hard_link(path("d/file"), path("hard")).unwrap();
        symlink("nowhere", path("dangling")).unwrap();
        let same = [
            ("d/file", "d/../d/file"),
            ("d/file", "link-to-d/file"),
            ("d/file", "symbolic"),
            ("d/file", "hard"),
            ("d/free", "link-to-d/free"),
            ("d/free", "d/./free"),
            ("dangling", "./dangling"),
            ("d", "link-to-d"),
        ];
        for (one, other) in same {
            let files = [("--result", &*path(one)), ("--stdout-file", &*path(other))];
            let refused = distinguish(&files, &Outputs::default());
            assert!(
                matches!(refused, Err(Error::SameFile { .. })),
                "{one} {other}"
            );
            let refused = distinguish(&files[..1], &outputs(&[&path(other)]));
            assert!(refused.is_err(), "{one} {other}");
            let refused = distinguish(&[], &outputs(&[&path(one), &path(other)]));
            assert!(refused.is_err(), "{one} {other}");
        }
        let different = [
            ("d/file", "file"),
            ("d/free", "free"),
            ("d/free", "d/other"),
            ("none/x", "none/x"),
            ("/dev/null", "/dev/null"),
        ];
        for (one, other) in different {
            let files = [("--result", &*path(one)), ("--stdout-file", &*path(other))];
            distinguish(&files, &Outputs::default()).unwrap();
        }
    }

    #[test]
    fn a_file_in_a_directory_that_is_copied_to_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join("copy");
        fs::create_dir_all(copy.join("below")).unwrap();
        let file = copy.join("below/result.json");
        fs::write(&file, "").unwrap();
        let refused = distinguish(&[("--result", &file)], &outputs(&[&copy]));
        assert!(matches!(refused, Err(Error::FileInCopy { .. })));
        let beside = directory.path().join("result.json");
        fs::write(&beside, "").unwrap();
        distinguish(&[("--result", &beside)], &outputs(&[&copy])).unwrap();
    }

    #[test]
    fn a_result_goes_to_whatever_takes_it_and_waits_for_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = open(&fifo).unwrap_err();
        assert!(error.to_string().contains("nobody reads from"), "{error}");
        let reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&fifo)
            .unwrap();
        let file = open(&fifo).unwrap();
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK));
        drop(reader);
        open(directory.path()).unwrap_err();
        open("/dev/null".as_ref()).unwrap();
        let old = directory.path().join("old");
        fs::write(&old, "old").unwrap();
        open(&old).unwrap();
        assert_eq!(fs::read(&old).unwrap(), b"");
    }
}
