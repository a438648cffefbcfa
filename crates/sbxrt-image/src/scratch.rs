//! Scratch directories: where a layer grows until it is verified.
//!
//! A scratch directory is `tmp/NAME/` in the store with a [lease](crate::store::lease) `lock` in it. Its name is one
//! that no other process uses, so two who make the same layer never meet. A directory whose lease has a dead holder is
//! left from a process that died.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::store::lease::{self, ABANDONED, Claim, Holder, Lease};
use crate::{Error, Result, tree};

/// A directory that one owner holds and that is gone when the owner is.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    // Held, and let go of when the directory is gone; the claim comes last.
    _lease: Lease,
    _claim: Option<Claim>,
}

impl Scratch {
    /// Makes a directory in `tmp`.
    pub(crate) fn unique(tmp: &Path, purpose: &str) -> Result<Self> {
        Self::make(tmp, purpose, None)
    }

    /// Makes a directory in `tmp` to do what was claimed in; the claim ends when it is gone.
    pub(crate) fn claimed(tmp: &Path, purpose: &str, claim: Claim) -> Result<Self> {
        Self::make(tmp, purpose, Some(claim))
    }

    fn make(tmp: &Path, purpose: &str, claim: Option<Claim>) -> Result<Self> {
        loop {
            let path = tmp.join(lease::unique_name(purpose));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {}
                // Left by a process of the same id; the next number is free.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(Error::io("create", &path, error)),
            }
            let lock = path.join("lock");
            let lease = Lease::create(&lock).map_err(|error| Error::io("create", &lock, error))?;
            return Ok(Self {
                path,
                _lease: lease,
                _claim: claim,
            });
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = discard(&self.path) {
            // The next pull sweeps it; the lock is free by then.
            tracing::warn!(path = %self.path.display(), %error, "scratch directory stays behind");
        }
    }
}

/// Moves a scratch directory out of the way and removes it.
fn discard(path: &Path) -> Result<()> {
    let Some(tmp) = path.parent() else {
        return Ok(());
    };
    let dead = lease::unique_name("dead");
    match fs::rename(path, tmp.join(&dead)) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("rename", path, error)),
    }
    let directory = File::open(tmp).map_err(|error| Error::io("open", tmp, error))?;
    remove(&directory, tmp, OsStr::new(&dead))
}

/// Removes what processes that died have left in `tmp`: directories, and leases that are files of their own.
pub(crate) fn sweep(tmp: &Path) -> Result<()> {
    for_each_abandoned(tmp, |path, lock| {
        tracing::debug!(path = %path.display(), "removing what a dead process left");
        let is_directory = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
        match lock {
            _ if is_directory => discard(path),
            Some(lock) => lease::evict(path, lock),
            None => fs::remove_file(path).map_err(|error| Error::io("remove", path, error)),
        }
    })
}

/// Finds what processes that died have left in `tmp`. The lease that tells so is still open when it is passed on, so
/// that nobody else takes it meanwhile.
pub(crate) fn for_each_abandoned(
    tmp: &Path,
    mut found: impl FnMut(&Path, Option<&File>) -> Result<()>,
) -> Result<()> {
    let mut now = None;
    for name in list(tmp)? {
        let path = tmp.join(&name);
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            // Gone in between.
            continue;
        };
        let lease = if metadata.is_dir() {
            path.join("lock")
        } else {
            path.clone()
        };
        let lock = OpenOptions::new().read(true).write(true).open(&lease).ok();
        let (holder, modified) = match &lock {
            Some(file) => (
                lease::holder(file).map_err(|error| Error::io("lock", &lease, error))?,
                file.metadata().and_then(|metadata| metadata.modified()),
            ),
            None => (Holder::Elsewhere, metadata.modified()),
        };
        let is_dead = match holder {
            Holder::Alive => false,
            Holder::Dead => true,
            // Made or removed at this moment, or killed while it was; or by another machine.
            Holder::Elsewhere => match lease::maker_is_dead(&name.to_string_lossy()) {
                Some(is_dead) => is_dead,
                None => is_old(tmp, modified, &mut now)?,
            },
        };
        let is_there = lock.as_ref().is_none_or(|file| lease::is_at(file, &lease));
        if is_dead && is_there {
            found(&path, lock.as_ref())?;
        }
    }
    Ok(())
}

fn is_old(
    tmp: &Path,
    modified: io::Result<SystemTime>,
    now: &mut Option<SystemTime>,
) -> Result<bool> {
    let now = match *now {
        Some(now) => now,
        None => *now.insert(lease::file_system_time(tmp)?),
    };
    let age = modified.map(|time| now.duration_since(time).unwrap_or_default());
    Ok(age.is_ok_and(|age| age > ABANDONED))
}

/// Removes an entry of a directory with all that is in it.
pub(crate) fn remove(directory: &File, path: &Path, name: &OsStr) -> Result<()> {
    let c_name = CString::new(name.as_bytes())
        .map_err(|error| Error::io("remove", &path.join(name), error))?;
    tree::remove_all(directory.as_fd(), &c_name)
        .map_err(|error| Error::io("remove", &path.join(name), error))
}

fn list(path: &Path) -> Result<Vec<OsString>> {
    let failed = |error| Error::io("list", path, error);
    fs::read_dir(path)
        .map_err(failed)?
        .map(|entry| entry.map(|entry| entry.file_name()).map_err(failed))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::lease::{Owner, Waiting};

    #[test]
    fn a_directory_is_gone_with_its_owner() {
        let tmp = tempfile::tempdir().unwrap();
        let first = Scratch::unique(tmp.path(), "x").unwrap();
        let second = Scratch::unique(tmp.path(), "x").unwrap();
        assert_ne!(first.path(), second.path());
        fs::write(first.path().join("file"), "x").unwrap();
        drop((first, second));
        assert_eq!(list(tmp.path()).unwrap(), [""; 0]);
    }

    #[test]
    fn what_a_dead_process_left_is_swept_and_what_lives_is_not() {
        let tmp = tempfile::tempdir().unwrap();
        let alive = Scratch::unique(tmp.path(), "alive").unwrap();
        let claim = Waiting::new(tmp.path(), "claimed").attempt().unwrap();
        let dead_owner = serde_json::to_vec(Owner::this()).unwrap();
        fs::create_dir(tmp.path().join("dead")).unwrap();
        fs::write(tmp.path().join("dead/lock"), &dead_owner).unwrap();
        fs::write(tmp.path().join("dead/part"), "x").unwrap();
        fs::write(tmp.path().join("layer-dead"), &dead_owner).unwrap();
        // Killed between two system calls.
        let unlocked = format!("layer-{}-99999999-0", Owner::machine());
        fs::create_dir(tmp.path().join(unlocked)).unwrap();
        // Another machine's, or that of somebody who has just begun.
        fs::create_dir(tmp.path().join("fresh")).unwrap();
        fs::write(tmp.path().join("foreign"), "{}").unwrap();
        let old = File::create(tmp.path().join("old")).unwrap();
        old.set_modified(SystemTime::now() - ABANDONED - Duration::from_secs(1))
            .unwrap();
        sweep(tmp.path()).unwrap();
        let mut left = list(tmp.path()).unwrap();
        left.sort();
        let mut expected = vec![
            alive.path().file_name().unwrap().to_owned(),
            "claimed".into(),
            "foreign".into(),
            "fresh".into(),
        ];
        expected.sort();
        assert_eq!(left, expected);
        drop((alive, claim));
    }
}
