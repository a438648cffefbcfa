//! The file in which logins are kept: `auth.json`, as `containers-auth.json(5)` describes it.
//!
//! What others have written into it stays, and nobody ever sees half of it.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sbxrt::image::{read_named_file, registry_key};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// The longest file that is taken for one.
const FILE_BYTES: u64 = 1 << 20;

/// An `auth.json` that is read and can be written anew.
#[derive(Debug)]
pub(crate) struct AuthFile {
    path: PathBuf,
    document: Map<String, Value>,
}

impl AuthFile {
    /// Reads a file; where there is none, one without entries.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let failed = |source| Error::Settings {
            path: path.to_owned(),
            source,
        };
        let invalid = |reason: String| Error::AuthFile {
            path: path.to_owned(),
            reason,
        };
        let text = match read_named_file(path, FILE_BYTES) {
            Ok(text) => text,
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound => Vec::new(),
                io::ErrorKind::FileTooLarge => return Err(invalid(error.to_string())),
                _ => return Err(failed(error)),
            },
        };
        let document = if text.trim_ascii().is_empty() {
            Map::new()
        } else {
            match serde_json::from_slice(&text) {
                Ok(Value::Object(document)) => document,
                Ok(_) => return Err(invalid("it is no JSON object".to_owned())),
                Err(error) => return Err(invalid(format!("it is no JSON: {error}"))),
            }
        };
        if !matches!(document.get("auths"), None | Some(Value::Object(_))) {
            return Err(invalid("auths is no JSON object".to_owned()));
        }
        Ok(Self {
            path: path.to_owned(),
            document,
        })
    }

    /// The registries, or parts of them, that there is an entry for, as they are written.
    pub(crate) fn keys(&self) -> Vec<String> {
        let auths = self.document.get("auths").and_then(Value::as_object);
        auths.into_iter().flat_map(Map::keys).cloned().collect()
    }

    /// Whether there is an entry for this very registry or part of one.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.keys().iter().any(|other| registry_key(other) == key)
    }

    /// Keeps a user name and a password, instead of what there was.
    pub(crate) fn set(&mut self, key: &str, username: &str, password: &str) {
        self.forget(key);
        let auth = STANDARD.encode(format!("{username}:{password}"));
        if let Value::Object(auths) = self
            .document
            .entry("auths")
            .or_insert_with(|| Value::Object(Map::new()))
        {
            auths.insert(key.to_owned(), json!({ "auth": auth }));
        }
    }

    /// Takes an entry out, under whatever name; says whether there was one.
    pub(crate) fn forget(&mut self, key: &str) -> bool {
        let Some(Value::Object(auths)) = self.document.get_mut("auths") else {
            return false;
        };
        let before = auths.len();
        auths.retain(|other, _| registry_key(other) != key);
        auths.len() < before
    }

    /// Puts the new file into the place of the old one, for nobody but its owner to read.
    pub(crate) fn write(&self) -> Result<()> {
        let failed = |source| Error::Settings {
            path: self.path.clone(),
            source,
        };
        // The file that a link leads to, so that the link stays.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_missing| self.path.clone());
        let directory = match path.parent() {
            Some(directory) if !directory.as_os_str().is_empty() => directory,
            _ => Path::new("."),
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed)?;
        let mut text =
            serde_json::to_vec_pretty(&self.document).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        let new = directory.join(format!(".auth.json.{}", std::process::id()));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| {
                file.write_all(&text)?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&new, &path));
        written.map_err(|error| {
            // Where it could not be made there is nothing to remove.
            drop(fs::remove_file(&new));
            failed(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn entries_come_and_go_and_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/containers/auth.json");
        let mut file = AuthFile::read(&path).unwrap();
        file.set("r.example", "me", "a:b");
        file.write().unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            0o600
        );

        let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        value["credHelpers"] = json!({"s.example": "pass"});
        value["auths"]["https://index.docker.io/v1/"] = json!({"auth": "eDp5", "email": "kept"});
        fs::write(&path, value.to_string()).unwrap();

        let mut file = AuthFile::read(&path).unwrap();
        assert!(file.has("docker.io") && file.has("r.example") && !file.has("s.example"));
        file.set("docker.io", "other", "z");
        file.set("t.example/team", "me", "x");
        assert!(file.forget("r.example") && !file.forget("r.example"));
        file.write().unwrap();

        let value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let expected = json!({
            "auths": {
                "docker.io": {"auth": STANDARD.encode("other:z")},
                "t.example/team": {"auth": STANDARD.encode("me:x")},
            },
            "credHelpers": {"s.example": "pass"},
        });
        assert_eq!(value, expected);
        let names = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(names, 1, "nothing but the file is left");
    }

    #[test]
    fn a_link_stays_and_a_broken_file_too() {
        let directory = tempfile::tempdir().unwrap();
        let (target, link) = (
            directory.path().join("real.json"),
            directory.path().join("auth.json"),
        );
        fs::write(&target, "").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let mut file = AuthFile::read(&link).unwrap();
        file.set("r.example", "me", "x");
        file.write().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(AuthFile::read(&target).unwrap().has("r.example"));

        for text in ["{", "[]", r#"{"auths": 1}"#] {
            fs::write(&target, text).unwrap();
            let error = AuthFile::read(&link).unwrap_err().to_string();
            assert!(error.contains("auth.json"), "{error}");
            assert_eq!(fs::read_to_string(&target).unwrap(), text);
        }
    }
}
