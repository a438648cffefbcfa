//! Stores that several users read: how one becomes so, and which of others' are trusted.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::Store;
use crate::{Error, Result};

impl Store {
    /// Lets everybody on the machine read the store and all that it will ever hold, so that others can name it as an
    /// additional store. Nobody but its owner may write to it.
    ///
    /// Files that an image lets only its owner read become readable to all: what an image holds is no secret to those
    /// who may run it. Their modes as the image has them are in the layers' headers. Setuid and setgid bits are never on disk.
    /// To share with some users only, put the store below a directory that only they may enter.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where the store belongs to somebody else.
    pub fn share(&mut self) -> Result<()> {
        self.make()?;
        if self.is_shared {
            return Ok(());
        }
        self.is_shared = true;
        for name in ["blobs", "layers", "images"] {
            open_to_all(&self.root.join(name))?;
        }
        self.write(&self.root.join("version"), b"1\n")?;
        // What is pulled from now on is shared, and then the door is opened.
        self.write(&self.root.join("shared"), b"")?;
        fs::set_permissions(&self.root, Permissions::from_mode(0o755))
            .map_err(|error| Error::io("chmod", &self.root, error))
    }
}

/// Gives everybody the right to read what its owner may read, for all that is in a directory. Links are not followed.
pub(super) fn open_to_all(directory: &Path) -> Result<()> {
    let mut waiting = vec![directory.to_owned()];
    while let Some(path) = waiting.pop() {
        let failed = |operation, path: &Path, error| Error::io(operation, path, error);
        let metadata = fs::symlink_metadata(&path).map_err(|error| failed("stat", &path, error))?;
        let kind = metadata.file_type();
        if !kind.is_dir() && !kind.is_file() {
            continue;
        }
        let mode = metadata.mode() & 0o7777;
        // A directory must be entered here and by those who read it, whatever its owner may do in the image.
        let owner = if kind.is_dir() {
            mode | 0o500
        } else {
            mode | 0o400
        };
        let readable = owner | (owner & 0o500) >> 3 | (owner & 0o500) >> 6;
        if readable != mode {
            fs::set_permissions(&path, Permissions::from_mode(readable))
                .map_err(|error| failed("chmod", &path, error))?;
        }
        if kind.is_dir() {
            for entry in fs::read_dir(&path).map_err(|error| failed("list", &path, error))? {
                waiting.push(entry.map_err(|error| failed("list", &path, error))?.path());
            }
        }
    }
    Ok(())
}

/// Returns a mode with the right to read for all. Directories may be entered, whatever their owner may do in the image.
pub(super) fn readable(mode: u32, is_directory: bool) -> u32 {
    let owner = mode | if is_directory { 0o500 } else { 0o400 };
    owner | (owner & 0o500) >> 3 | (owner & 0o500) >> 6
}

/// Looks at a store that was named as an additional one; `None` where nothing is there.
pub(super) fn additional(root: &Path) -> Result<Option<PathBuf>> {
    let root = std::path::absolute(root).map_err(|error| Error::io("resolve", root, error))?;
    match super::read_document(&root.join("version")) {
        Ok(version) => {
            let store = Store {
                root: root.clone(),
                additional: Vec::new(),
                is_shared: true,
            };
            store.check_version(&String::from_utf8_lossy(&version))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && !root.exists() => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::StoreVersion {
                path: root,
                reason: "it has no file `version`".to_owned(),
            });
        }
        Err(error) => return Err(Error::io("read", &root.join("version"), error)),
    }
    for name in ["", "images", "layers", "layers/sha256", "blobs"] {
        let path = root.join(name);
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        if metadata.mode() & 0o002 != 0 {
            return Err(Error::StoreUntrusted {
                path,
                reason: "everybody may write to it".to_owned(),
            });
        }
    }
    Ok(Some(root))
}
