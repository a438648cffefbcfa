//! Trees of files that a stranger laid out: looked into and removed without ever leaving them.
//!
//! Every name here is resolved against a directory descriptor, one component at a time or by `openat2`, so a symbolic
//! link cannot lead out. Neither does a deep tree exhaust the stack or the table of descriptors.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::{Errno, Result};

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Removes whatever is called `name` in a directory: a file, a link, or a directory with all that is in it. It is no
/// error if there is nothing.
///
/// Directories that forbid their owner to write are made writable first; an image may well hold a tree of mode 0555.
/// Deep trees are flattened while they are removed: what is found below the second level is moved up to the first, so
/// two descriptors are enough for any depth.
pub(crate) fn remove_all(parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    let top = open_for_removal(parent, name)?;
    let mut serial = 0_u64;
    while clear_once(&top, &mut serial)? {}
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes all that is in a directory, once over; returns whether there was anything.
fn clear_once(top: &OwnedFd, serial: &mut u64) -> Result<bool> {
    let mut found = false;
    for entry in Dir::read_from(top)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        found = true;
        if !is_directory(top.as_fd(), name, entry.file_type())? {
            unlink(top.as_fd(), name)?;
            continue;
        }
        let directory = open_for_removal(top.as_fd(), name)?;
        for inner in Dir::read_from(&directory)? {
            let inner = inner?;
            let inner_name = inner.file_name();
            if inner_name == c"." || inner_name == c".." {
                continue;
            }
            if is_directory(directory.as_fd(), inner_name, inner.file_type())? {
                // A directory that may not be written cannot be moved either: its `..` would change.
                drop(open_for_removal(directory.as_fd(), inner_name)?);
                raise(&directory, inner_name, top, serial)?;
            } else {
                unlink(directory.as_fd(), inner_name)?;
            }
        }
        match rustix::fs::unlinkat(top, name, AtFlags::REMOVEDIR) {
            // Reading while removing may skip entries; the next round finds them.
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Moves a directory from within `top` up to `top` under a name that nothing there has.
fn raise(from: &OwnedFd, name: &CStr, top: &OwnedFd, serial: &mut u64) -> Result<()> {
    loop {
        *serial += 1;
        let target = format!(".raised-{serial}");
        match rustix::fs::renameat_with(from, name, top, target.as_str(), RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            other => return other,
        }
    }
}

fn unlink(directory: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

fn is_directory(parent: BorrowedFd<'_>, name: &CStr, file_type: FileType) -> Result<bool> {
    // Some file systems do not tell the type when they list.
    if file_type != FileType::Unknown {
        return Ok(file_type == FileType::Directory);
    }
    let status = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(status.st_mode) == FileType::Directory)
}

/// Opens a directory and sees to it that its owner may read, write and search it.
fn open_for_removal(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    let directory = match rustix::fs::openat(parent, name, DIRECTORY, Mode::empty()) {
        Err(Errno::ACCESS) => {
            // `name` is a directory in a tree that only we write to, so no link can take its place meanwhile.
            rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?
        }
        other => other?,
    };
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&directory)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        rustix::fs::fchmod(&directory, Mode::RWXU)?;
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn remove(directory: &std::path::Path, name: &str) {
        let parent = fs::File::open(directory).unwrap();
        remove_all(parent.as_fd(), &CString::new(name).unwrap()).unwrap();
    }

    #[test]
    fn trees_that_nobody_may_write_are_removed() {
        let temporary = tempfile::tempdir().unwrap();
        let tree = temporary.path().join("tree");
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::write(tree.join("a/b/c/file"), "x").unwrap();
        for path in ["a/b/c", "a/b", "a", ""] {
            fs::set_permissions(tree.join(path), Permissions::from_mode(0o111 & !0o100)).unwrap();
        }
        remove(temporary.path(), "tree");
        assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_tree_deeper_than_the_descriptor_limit_is_removed() {
        let temporary = tempfile::tempdir().unwrap();
        let mut at: OwnedFd = fs::File::open(temporary.path()).unwrap().into();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "d", DIRECTORY, Mode::empty()).unwrap();
        }
        remove(temporary.path(), "d");
        assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let temporary = tempfile::tempdir().unwrap();
        let kept = temporary.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        fs::create_dir(temporary.path().join("tree")).unwrap();
        symlink(&kept, temporary.path().join("tree/link")).unwrap();
        symlink(&kept, temporary.path().join("link")).unwrap();
        remove(temporary.path(), "tree");
        remove(temporary.path(), "link");
        remove(temporary.path(), "never there");
        assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 1);
        assert!(kept.join("file").exists());
    }
}
