//! The disks behind what an execution reaches: limits on input and output are set on disks.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::request::{MountSource, Request, Root};

/// A whole disk: the kernel takes no limits for partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Disk {
    major: u64,
    minor: u64,
}

/// As the kernel writes it: `8:0`.
impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// Where the files of a path are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Memory,
    Disk(Disk),
    /// A file system of several disks, of another machine, or of a process.
    Elsewhere,
}

impl Disk {
    #[cfg(test)]
    pub(crate) fn new(major: u64, minor: u64) -> Self {
        Self { major, minor }
    }

    /// All that `request` reaches, or `None` where it reaches files that are not on one disk.
    pub(crate) fn reached_by(request: &Request) -> io::Result<Option<Vec<Self>>> {
        let mut paths: Vec<PathBuf> = match &request.root {
            Root::Layers(layers) => layers.clone(),
            Root::Host => vec!["/usr".into()],
        };
        paths.extend(request.upper.clone());
        for mount in &request.mounts {
            if let MountSource::Bind(source) = &mount.source {
                paths.push(source.clone());
            }
        }
        let mut disks = BTreeSet::new();
        for path in paths {
            match Place::of(&path)? {
                Place::Memory => {}
                Place::Disk(disk) => {
                    disks.insert(disk);
                }
                Place::Elsewhere => return Ok(None),
            }
        }
        Ok(Some(disks.into_iter().collect()))
    }

    /// The whole disk that a block device is, or is a part of, by what `/sys` says.
    fn whole(major: u64, minor: u64) -> Option<Self> {
        let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        if !device.exists() {
            return None;
        }
        if !device.join("partition").exists() {
            return Some(Self { major, minor });
        }
        Self::parse(&fs::read_to_string(fs::canonicalize(device).ok()?.parent()?.join("dev")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        })
    }
}

impl Place {
    fn of(path: &Path) -> io::Result<Self> {
        let device = nix::sys::stat::stat(path)?.st_dev;
        let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
        if let Some(disk) = Disk::whole(major, minor) {
            return Ok(Self::Disk(disk));
        }
        let kind = nix::sys::statfs::statfs(path)?.filesystem_type();
        Ok(if kind == nix::sys::statfs::TMPFS_MAGIC {
            Self::Memory
        } else {
            Self::Elsewhere
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_reads_and_writes_as_the_kernel_does() {
        assert_eq!(Disk::parse("8:16\n"), Some(Disk::new(8, 16)));
        assert_eq!(Disk::new(8, 16).to_string(), "8:16");
        assert_eq!(Disk::parse("8"), None);
    }

    #[test]
    fn files_of_the_kernel_are_on_no_disk() {
        assert_eq!(Place::of(Path::new("/proc")).unwrap(), Place::Elsewhere);
        assert_eq!(Place::of(Path::new("/dev")).unwrap(), Place::Memory);
        assert!(Place::of(Path::new("/nonexistent")).is_err());
    }
}
