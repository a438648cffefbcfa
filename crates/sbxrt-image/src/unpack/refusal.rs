//! Why a layer cannot be unpacked, told by what went wrong: the layer, or this machine.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::Unpacker;
use crate::Error;
use crate::tarball::TarError;

impl Unpacker {
    pub(super) fn refuse(&self, path: &[u8], reason: &str) -> Error {
        Error::InvalidEntry {
            layer: self.layer.clone(),
            path: String::from_utf8_lossy(path).into_owned(),
            reason: reason.to_owned(),
        }
    }

    pub(super) fn exceeded(&self, limit: &'static str, maximum: u64) -> Error {
        Error::LimitExceeded {
            what: format!("layer {}", self.layer),
            limit,
            maximum,
        }
    }

    /// Makes an error of what the kernel refused: the entry's fault or this machine's.
    pub(super) fn failed(&self, operation: &'static str, path: &[u8], error: Errno) -> Error {
        match error {
            Errno::NAMETOOLONG | Errno::LOOP | Errno::NOTDIR | Errno::INVAL | Errno::ILSEQ => {
                self.refuse(path, &format!("{operation}: {error}"))
            }
            _ => self.io_failed(operation, path, error.into()),
        }
    }

    pub(super) fn io_failed(
        &self,
        operation: &'static str,
        path: &[u8],
        error: io::Error,
    ) -> Error {
        Error::io(
            operation,
            &self
                .path
                .join(String::from_utf8_lossy(path).trim_start_matches('/')),
            error,
        )
    }

    pub(super) fn stream_failed(&self, error: TarError) -> Error {
        match error {
            TarError::HeaderTooLarge => self.exceeded("header_bytes", self.limits.header_bytes),
            TarError::Damaged(reason) => Error::InvalidLayer {
                layer: self.layer.clone(),
                reason,
            },
            TarError::Io(error) => match error.downcast::<Error>() {
                Ok(error) => error,
                Err(error) => Error::io("read", self.layer.to_string().as_ref(), error),
            },
        }
    }

    pub(super) fn unsupported(&self, feature: &'static str, error: Errno) -> Error {
        Error::FileSystemUnsupported {
            path: self.path.clone(),
            file_system: file_system(&self.root),
            feature,
            source: error.into(),
        }
    }
}

/// Names a kind of file system by its magic number, for people.
fn file_system(directory: &OwnedFd) -> String {
    let Ok(status) = rustix::fs::fstatfs(directory) else {
        return "an unknown file system".to_owned();
    };
    match status.f_type {
        0xef53 => "ext4".to_owned(),
        0x5846_5342 => "xfs".to_owned(),
        0x9123_683e => "btrfs".to_owned(),
        0x0102_1994 => "tmpfs".to_owned(),
        0x6969 => "nfs".to_owned(),
        0x0bd0_0bd0 => "lustre".to_owned(),
        0x4750_4653 => "gpfs".to_owned(),
        0x6573_5546 => "fuse".to_owned(),
        0x794c_7630 => "overlayfs".to_owned(),
        0x0102_1997 => "9p".to_owned(),
        0x2fc1_2fc1 => "zfs".to_owned(),
        other => format!("a file system of type {other:#x}"),
    }
}
