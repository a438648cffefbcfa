//! What a file is besides its name and contents: extended attributes are set where anybody may set them, and what needs
//! root goes to `owners.jsonl`.

use std::io::{self, Write};
use std::os::fd::AsFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use serde::Serialize;

use super::Unpacker;
use crate::digest::hex;
use crate::tarball::{Entry, Kind};
use crate::{Error, Result};

impl Unpacker {
    /// Sets the attributes that anybody may set. Those of overlayfs are left out: a layer that brings its own could
    /// redirect names to places in other layers. A file system that takes none, or no more, is no reason to fail.
    pub(super) fn set_xattrs(&self, entry: &Entry, file: impl AsFd) -> Result<()> {
        for (key, value) in &entry.xattrs {
            if !key.starts_with(b"user.") || key.starts_with(b"user.overlay.") {
                continue;
            }
            let set = rustix::fs::fsetxattr(&file, key.as_slice(), value, XattrFlags::empty());
            match set {
                Ok(()) => {}
                Err(error @ Errno::DQUOT) => {
                    return Err(self.failed("setxattr", &entry.path, error));
                }
                Err(error) => {
                    tracing::debug!(path = %entry.path.escape_ascii(), key = %key.escape_ascii(), %error, "attribute left out");
                }
            }
        }
        Ok(())
    }

    pub(super) fn note_owner(&mut self, entry: &Entry, path: &[u8]) -> Result<()> {
        let capability = entry
            .xattrs
            .iter()
            .find(|(key, _)| key == b"security.capability")
            .map(|(_, value)| hex(value));
        let kind = match entry.kind {
            Kind::CharacterDevice => Some("character_device"),
            Kind::BlockDevice => Some("block_device"),
            Kind::Fifo => Some("fifo"),
            _ => None,
        };
        // The target's mode counts for a link; its own says nothing.
        let special = entry.mode & 0o6000 != 0 && entry.kind != Kind::Symlink;
        if entry.uid == 0 && entry.gid == 0 && !special && capability.is_none() && kind.is_none() {
            return Ok(());
        }
        let text = std::str::from_utf8(path).ok();
        let device =
            matches!(entry.kind, Kind::CharacterDevice | Kind::BlockDevice).then_some(entry.device);
        let owner = Owner {
            path: text,
            path_hex: text.is_none().then(|| hex(path)),
            uid: entry.uid,
            gid: entry.gid,
            mode: entry.mode,
            kind,
            major: device.map(|(major, _)| major),
            minor: device.map(|(_, minor)| minor),
            capability,
        };
        let written = serde_json::to_writer(&mut self.owners, &owner)
            .map_err(io::Error::from)
            .and_then(|()| self.owners.write_all(b"\n"));
        let owners_path = &self.owners_path;
        written.map_err(|error| Error::io("write", owners_path, error))
    }
}

/// A line of `owners.jsonl`.
#[derive(Serialize)]
struct Owner<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    uid: u64,
    gid: u64,
    mode: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    major: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    minor: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capability: Option<String>,
}
