//! A directory in OCI layout that images are added to.
//!
//! Blobs come first, each whole or not at all; `index.json`, by which they are found, is replaced last. Writers take
//! turns by a lock on the directory. What a writer that fails has added goes again, and a directory that holds anything
//! but a layout is never touched.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::fresh_file::{self, FreshFile, HIDDEN};
use crate::manifest::{Document, REF_NAME};
use crate::{Digest, Error, Limits, Result};

const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// How long another writer may take.
const PATIENCE: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(50);
const BUFFER: usize = 128 << 10;

/// A layout that is being written to.
#[derive(Debug)]
pub(crate) struct LayoutWriter {
    path: PathBuf,
    manifest_bytes: u64,
    /// Held for its lock.
    directory: File,
    /// Whether it was not there before, and whether its directory was not.
    begun: bool,
    made: bool,
    /// The blobs that were added.
    added: Mutex<Vec<PathBuf>>,
    committed: bool,
}

impl LayoutWriter {
    /// Opens a layout, or makes one where there is nothing or an empty directory. Waits for other writers.
    pub(crate) fn open(path: &Path, limits: &Limits) -> Result<Self> {
        let made = match fs::create_dir(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(Error::io("create", path, error)),
        };
        let directory = File::open(path).map_err(|error| Error::io("open", path, error))?;
        let mut writer = Self {
            path: path.to_owned(),
            manifest_bytes: limits.manifest_bytes,
            directory,
            begun: false,
            made,
            added: Mutex::default(),
            committed: false,
        };
        writer.lock()?;
        writer.begin()?;
        Ok(writer)
    }

    fn lock(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match rustix::fs::flock(&self.directory, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "on a thread of its own, and the kernel's own wait has no deadline"
                    )]
                    std::thread::sleep(POLL);
                }
                Err(Errno::WOULDBLOCK) => {
                    return Err(Error::Busy {
                        path: self.path.clone(),
                    });
                }
                // A file system without locks; who shares a layout there must take turns otherwise.
                Ok(()) | Err(Errno::NOLCK | Errno::NOTSUP | Errno::NOSYS) => return Ok(()),
                Err(error) => return Err(Error::io("lock", &self.path, error)),
            }
        }
    }

    fn begin(&mut self) -> Result<()> {
        let failed = |error| Error::io("list", &self.path, error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name());
        }
        // Left by a writer that was killed before it came to `oci-layout`.
        let ours = |name: &OsStr| {
            name == "blobs" || name.as_encoded_bytes().starts_with(HIDDEN.as_bytes())
        };
        let is_layout = names.iter().any(|name| name == "oci-layout");
        if is_layout {
            self.index()?;
            return Ok(());
        }
        if !names.iter().all(|name| ours(name)) {
            return Err(self.refuse("it holds other files and no file oci-layout".to_owned()));
        }
        self.begun = true;
        let blobs = self.path.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(|error| Error::io("create", &blobs, error))?;
        let empty = json!({"schemaVersion": 2, "manifests": []}).to_string();
        fresh_file::write(&self.path.join("index.json"), empty.as_bytes())?;
        fresh_file::write(&self.path.join("oci-layout"), MARKER)
    }

    fn refuse(&self, reason: String) -> Error {
        Error::NotAnImage {
            path: self.path.clone(),
            expected: "an OCI layout",
            reason,
        }
    }

    /// Reads `index.json`, and holds it to be one.
    fn index(&self) -> Result<Value> {
        let path = self.path.join("index.json");
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| {
                file.take(self.manifest_bytes.saturating_add(1))
                    .read_to_end(&mut bytes)
            })
            .map_err(|error| Error::io("read", &path, error))?;
        if bytes.len() as u64 > self.manifest_bytes {
            return Err(Error::LimitExceeded {
                what: path.display().to_string(),
                limit: "manifest_bytes",
                maximum: self.manifest_bytes,
            });
        }
        match Document::parse(&path.display().to_string(), &bytes, None)? {
            Document::Index(_) => serde_json::from_slice(&bytes)
                .map_err(|error| self.refuse(format!("index.json: {error}"))),
            Document::Manifest { .. } => Err(self.refuse("index.json is no index".to_owned())),
        }
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path
            .join("blobs")
            .join(digest.algorithm().as_str())
            .join(digest.hex())
    }

    /// Whether a blob is there.
    pub(crate) fn has(&self, digest: &Digest, size: u64) -> bool {
        fs::symlink_metadata(self.blob_path(digest))
            .is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
    }

    /// Adds a blob, which whoever reads it must have verified when its end is reached.
    pub(crate) fn put(&self, digest: &Digest, content: &mut impl Read) -> Result<()> {
        let path = self.blob_path(digest);
        let directory = path.parent().unwrap_or(&self.path);
        fs::create_dir_all(directory).map_err(|error| Error::io("create", directory, error))?;
        let mut fresh = FreshFile::create(&path)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => fresh
                    .file()
                    .write_all(&buffer[..read])
                    .map_err(|error| Error::io("write", &path, error))?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("receive", &path, error)),
            }
        }
        self.added
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(path);
        fresh.publish()
    }

    /// Takes in a file of the same file system as a blob.
    pub(crate) fn adopt(&self, digest: &Digest, file: &Path) -> Result<()> {
        let path = self.blob_path(digest);
        fs::rename(file, &path).map_err(|error| Error::io("write", &path, error))?;
        self.added
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(path);
        Ok(())
    }

    /// Makes an image visible, under a tag or as the one without, in place of the one that was so before.
    pub(crate) fn commit(
        mut self,
        digest: &Digest,
        media_type: &str,
        size: u64,
        tag: Option<&str>,
    ) -> Result<()> {
        let mut index = self.index()?;
        let mut entry = json!({"mediaType": media_type, "digest": digest, "size": size});
        if let Some(tag) = tag {
            entry["annotations"] = json!({REF_NAME: tag});
        }
        if let Some(entries) = index["manifests"].as_array_mut() {
            entries.retain(|entry| entry["annotations"][REF_NAME].as_str() != tag);
            entries.push(entry);
        }
        fresh_file::write(&self.path.join("index.json"), index.to_string().as_bytes())?;
        self.committed = true;
        Ok(())
    }
}

impl Drop for LayoutWriter {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        // What is still in use by nobody: the lock is held, and the index names none of it.
        let mut added =
            std::mem::take(&mut *self.added.lock().unwrap_or_else(PoisonError::into_inner));
        if self.begun {
            added.extend(["oci-layout", "index.json"].map(|name| self.path.join(name)));
        }
        for path in added {
            ignore(&path, fs::remove_file(&path));
        }
        if self.begun {
            for name in ["blobs/sha512", "blobs/sha256", "blobs"] {
                let path = self.path.join(name);
                ignore(&path, fs::remove_dir(&path));
            }
        }
        if self.made {
            ignore(&self.path, fs::remove_dir(&self.path));
        }
    }
}

fn ignore(path: &Path, removed: io::Result<()>) {
    if let Err(error) = removed
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(path = %path.display(), %error, "stays behind");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn files(directory: &Path) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut open = vec![directory.to_owned()];
        while let Some(next) = open.pop() {
            for entry in fs::read_dir(&next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path.clone());
                }
                let name = path.strip_prefix(directory).unwrap().display().to_string();
                found.insert(name);
            }
        }
        found
    }

    fn add(path: &Path, content: &[u8], tag: Option<&str>) -> Result<()> {
        let writer = LayoutWriter::open(path, &Limits::default())?;
        let digest = Digest::of(content);
        writer.put(&digest, &mut &*content)?;
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        writer.commit(&digest, media_type, content.len() as u64, tag)
    }

    #[test]
    fn a_tag_is_added_or_replaced_and_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("layout");
        for (content, tag) in [
            (b"1", Some("a")),
            (b"2", Some("b")),
            (b"3", None),
            (b"4", Some("a")),
            (b"5", None),
        ] {
            add(&path, content, tag).unwrap();
        }
        let index =
            serde_json::from_slice::<Value>(&fs::read(path.join("index.json")).unwrap()).unwrap();
        let found = index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| {
                (
                    entry["annotations"][REF_NAME].as_str().map(str::to_owned),
                    entry["digest"].as_str().unwrap().to_owned(),
                )
            })
            .collect::<Vec<_>>();
        let row = |tag: Option<&str>, content: &[u8]| {
            (tag.map(str::to_owned), Digest::of(content).to_string())
        };
        assert_eq!(
            found,
            [row(Some("b"), b"2"), row(Some("a"), b"4"), row(None, b"5")]
        );
    }

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("layout");
        let abandon = || {
            let writer = LayoutWriter::open(&path, &Limits::default()).unwrap();
            writer.put(&Digest::of(b"x"), &mut &b"x"[..]).unwrap();
        };
        abandon();
        assert!(!path.exists());
        add(&path, b"1", None).unwrap();
        let before = files(&path);
        abandon();
        assert_eq!(files(&path), before);
        fs::create_dir(directory.path().join("empty")).unwrap();
        drop(LayoutWriter::open(&directory.path().join("empty"), &Limits::default()).unwrap());
        assert!(files(&directory.path().join("empty")).is_empty());
    }

    #[test]
    fn a_directory_that_is_something_else_is_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("mine"), "x").unwrap();
        let refused = LayoutWriter::open(directory.path(), &Limits::default());
        assert!(
            matches!(refused, Err(Error::NotAnImage { .. })),
            "{refused:?}"
        );
        assert_eq!(files(directory.path()), BTreeSet::from(["mine".to_owned()]));
    }
}
