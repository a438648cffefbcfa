//! Files and directories whose mode keeps their own owner out, as images have them: opened all the same.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

/// Opens a file or directory; where its mode keeps its owner out, it is changed for that moment.
pub(crate) fn open(directory: &OwnedFd, name: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let opened = searching(directory, || {
        rustix::fs::openat(directory, name, flags, Mode::empty())
    });
    let Err(Errno::ACCESS) = opened else {
        return opened;
    };
    let place = searching(directory, || {
        rustix::fs::openat(
            directory,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
    })?;
    let status = rustix::fs::fstat(&place)?;
    let needed = match FileType::from_raw_mode(status.st_mode) {
        FileType::RegularFile => Mode::RUSR,
        FileType::Directory => Mode::RUSR | Mode::XUSR,
        _ => return Err(Errno::ACCESS),
    };
    // Not by its name, which may be another file's by now; and fchmod takes no descriptor of this kind.
    let place_path = format!("/proc/self/fd/{}", place.as_raw_fd());
    let mode = Mode::from_raw_mode(status.st_mode & 0o7777);
    rustix::fs::chmod(&place_path, mode | needed).map_err(|_not_ours| Errno::ACCESS)?;
    let opened = rustix::fs::open(
        &place_path,
        flags.difference(OFlags::NOFOLLOW),
        Mode::empty(),
    );
    rustix::fs::chmod(&place_path, mode)?;
    opened
}

/// Does something to a name in a directory.
pub(crate) fn searching<T>(
    directory: &OwnedFd,
    operation: impl Fn() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    permitted(directory, Mode::XUSR, |_| operation())
}

/// Does something with an open file or directory; where its mode keeps its owner from that, the mode is changed for the
/// moment. Searching a directory and reading an attribute want permission each time, whatever was open before.
pub(crate) fn permitted<F: AsFd, T>(
    file: &F,
    needed: Mode,
    mut operation: impl FnMut(&F) -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    let done = operation(file);
    let Err(Errno::ACCESS) = done else {
        return done;
    };
    let mode = Mode::from_raw_mode(rustix::fs::fstat(file)?.st_mode & 0o7777);
    if mode.contains(needed) {
        return done;
    }
    rustix::fs::fchmod(file, mode | needed).map_err(|_not_ours| Errno::ACCESS)?;
    let done = operation(file);
    rustix::fs::fchmod(file, mode)?;
    done
}
