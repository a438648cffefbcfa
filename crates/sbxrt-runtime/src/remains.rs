//! What executions have left behind whose caller and launcher were both killed, or that the kernel does not let go of.
//!
//! That is little: everything else ends with namespaces and descriptors. Each start removes what it finds in its own
//! cgroup; [`Remains`] looks everywhere, for `sbxrt gc` and `sbxrt check`.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::cgroup;
use crate::living::{self, is_stuck};

/// How long [`Remains::remove`] waits for processes that were killed and are not stuck. They take microseconds, but on a
/// machine whose processors are busy they must wait for one before they can end.
const DYING: Duration = Duration::from_secs(1);

/// What there is of the user's own ended executions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remains {
    /// Directories of cgroups whose owner is dead. They are empty, or hold what is [stuck](Self::stuck).
    pub cgroups: Vec<PathBuf>,
    /// Pids of processes that were killed and that the kernel makes wait for something that does not answer. They go by
    /// themselves when it does.
    pub stuck: Vec<i32>,
}

impl Remains {
    /// Looks for them, below `/sys/fs/cgroup` and in `/proc`.
    pub fn find() -> Self {
        let own = nix::unistd::geteuid().as_raw();
        let mut cgroups = Vec::new();
        find_cgroups(Path::new("/sys/fs/cgroup"), own, &mut cgroups);
        cgroups.sort();
        let living = living::living(&living::ending_launchers(own));
        let stuck = living.into_iter().filter(|&pid| is_stuck(pid));
        Self {
            cgroups,
            stuck: stuck.collect(),
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.cgroups.is_empty() && self.stuck.is_empty()
    }

    /// Removes the cgroups in which nothing is; those that were removed.
    pub fn remove(&self) -> Vec<PathBuf> {
        let end = Instant::now() + DYING;
        let cgroups = self.cgroups.iter();
        cgroups
            .filter(|path| self.remove_by(path, end))
            .cloned()
            .collect()
    }

    /// Removes a cgroup, until `end` again and again while it is held by what is about to be gone.
    fn remove_by(&self, path: &Path, end: Instant) -> bool {
        loop {
            // The kernel refuses where there are processes.
            let result = fs::remove_dir(path);
            let is_busy = |error: &io::Error| error.kind() == io::ErrorKind::ResourceBusy;
            if !result.as_ref().is_err_and(is_busy)
                || !self.stuck.is_empty()
                || Instant::now() >= end
            {
                return result.is_ok();
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "the kernel tells nobody that a cgroup of version 1 is empty"
            )]
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Collects the cgroups of dead owners below `directory` that belong to the user `own`.
fn find_cgroups(directory: &Path, own: u32, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let owner = entry.file_name().to_str().and_then(cgroup::owner_of);
        match owner.map(|owner| nix::sys::signal::kill(owner, None)) {
            None => find_cgroups(&entry.path(), own, found),
            Some(Err(Errno::ESRCH))
                if entry.metadata().is_ok_and(|metadata| metadata.uid() == own) =>
            {
                found.push(entry.path());
            }
            Some(_) => {}
        }
    }
}
