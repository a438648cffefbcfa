//! The file systems in memory that a program may write to, and whether they are full.
//!
//! They are opened before the program starts, and asked when it has ended: by then it may have put other things in the
//! places where they were, and a network file system that does not answer must not be asked at all.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::statfs::fstatfs;

use crate::report::Space;
use crate::request::LimitName;

/// As many as a report takes.
const MOST: usize = 16;

/// File systems under watch.
#[derive(Debug)]
pub(crate) struct Spaces(Vec<(PathBuf, LimitName, OwnedFd)>);

impl Spaces {
    /// The root file system, `/dev/shm` and `tmpfs`, as the calling process sees them. What is not there is left out.
    pub(crate) fn open(tmpfs: &[PathBuf]) -> Self {
        let known = [
            (Path::new("/"), LimitName::Scratch),
            (Path::new("/dev/shm"), LimitName::Shm),
        ];
        let others = tmpfs
            .iter()
            .map(|path| (path.as_path(), LimitName::Scratch));
        let spaces = known.into_iter().chain(others).take(MOST);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let opened = spaces.filter_map(|(path, limit)| {
            let directory = open(path, flags, Mode::empty()).ok()?;
            Some((path.to_owned(), limit, directory))
        });
        Self(opened.collect())
    }

    /// The directories that they are mounted on.
    pub(crate) fn directories(&self) -> impl Iterator<Item = (&Path, BorrowedFd<'_>)> {
        let spaces = self.0.iter();
        spaces.map(|(path, _, directory)| (path.as_path(), directory.as_fd()))
    }

    /// Those that are full now.
    pub(crate) fn full(&self) -> Vec<Space> {
        let look = |(path, limit, directory): &(PathBuf, LimitName, OwnedFd)| {
            let found = fstatfs(directory).ok()?;
            let block = u64::try_from(found.block_size()).ok()?;
            let mut space = Space {
                path: path.clone(),
                limit: *limit,
                bytes: found.blocks().saturating_mul(block),
                bytes_free: found.blocks_available().saturating_mul(block),
                inodes: found.files(),
                inodes_free: found.files_free(),
            };
            if space.limit == LimitName::Scratch && space.lacks_inodes() {
                space.limit = LimitName::ScratchInodes;
            }
            space.is_full().then_some(space)
        };
        self.0.iter().filter_map(look).collect()
    }
}
