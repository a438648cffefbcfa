//! The file system of the image store: what it is, and whether unpacked layers can live on it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FlockArg, OFlag, open};
use nix::sys::stat::{Mode, SFlag, mknod};
use serde::{Deserialize, Serialize};

use super::advice::Advice;
use super::attempt::{Place, attempt, failed, line, on};
use super::mounts::{self, network_name};
use super::{Check, Status, kernel};
use crate::error::Failure;
use crate::sys;

const STORE: &str = "store";
const OVERLAY: &str = "overlay_on_store";
/// Below this a language image or two do not fit.
const LITTLE_SPACE: u64 = 1 << 30;

/// What was found out about a store's file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    store: PathBuf,
    /// Whether the store's directory is there already.
    exists: bool,
    /// The file system's type.
    kind: String,
    free_bytes: u64,
    /// `None` where the file system does not count them.
    free_files: Option<u64>,
    /// Why nothing can be made there.
    unwritable: Option<Failure>,
    /// Why an attribute cannot be set.
    no_attributes: Option<Failure>,
    /// Why a whiteout cannot be made.
    no_whiteouts: Option<Failure>,
    /// Why a file cannot be locked.
    no_locks: Option<Failure>,
}

/// The checks of the store in the directory `store`, and of an overlay over layers in it.
pub(super) fn check(store: &Path, overlays: bool) -> (Check, Check) {
    let trial = Trial {
        directory: place_of(store).join(format!(".sbxrt-check.{}", std::process::id())),
    };
    let facts = match attempt(Place::Here, || examine(store, &trial.directory)) {
        Ok(facts) => facts,
        Err(failure) => {
            let advice = elsewhere(format!(
                "the file system of {} does not answer",
                store.display()
            ));
            let stored = Check::not_ok(STORE, Status::Failed, line(&failure), advice);
            return (stored, not_tried(NO_STORE));
        }
    };
    let overlay = if facts.unwritable.is_some() {
        not_tried(NO_STORE)
    } else if overlays {
        overlay(&trial.directory, &facts)
    } else {
        not_tried("no overlay works here, wherever its layers are")
    };
    (judge(&facts), overlay)
}

const NO_STORE: &str = "it needs a store that can be written to";

fn not_tried(reason: &str) -> Check {
    Check::not_ok(
        OVERLAY,
        Status::Failed,
        "not tried",
        Advice::without_fix(reason),
    )
}

/// The directory that the trial is made in: the store, or the nearest one above it that exists.
fn place_of(store: &Path) -> PathBuf {
    let existing = store.ancestors().find(|path| path.is_dir());
    match existing {
        Some(path) if !path.as_os_str().is_empty() => path.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// A directory in the store's file system, removed when this is dropped.
struct Trial {
    directory: PathBuf,
}

impl Drop for Trial {
    fn drop(&mut self) {
        // In a child, because the file system may hang. Where this user cannot look into what it has made, as with
        // some network file systems, the directory is empty.
        drop(attempt(Place::Here, || {
            let removed =
                fs::remove_dir_all(&self.directory).or_else(|_| fs::remove_dir(&self.directory));
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(failed("rmdir", error))
                }
                _ => Ok(()),
            }
        }));
    }
}

fn examine(store: &Path, trial: &Path) -> Result<Facts, Failure> {
    let place = place_of(store);
    let place = place
        .canonicalize()
        .map_err(|error| failed(on("realpath", &place), error))?;
    let mounts = mounts::read();
    let space =
        nix::sys::statvfs::statvfs(&place).map_err(|error| failed(on("statvfs", &place), error))?;
    let mut facts = Facts {
        store: store.to_owned(),
        exists: store.is_dir(),
        kind: mounts::of(&mounts, &place)
            .map_or_else(|| "unknown".to_owned(), |mount| mount.kind.clone()),
        free_bytes: space
            .blocks_available()
            .saturating_mul(space.fragment_size()),
        free_files: (space.files() > 0).then(|| space.files_available()),
        unwritable: None,
        no_attributes: None,
        no_whiteouts: None,
        no_locks: None,
    };
    match make_layers(trial) {
        Ok(()) => {
            facts.no_attributes = make_opaque(&trial.join("top/opaque")).err();
            facts.no_whiteouts = make_whiteout(&trial.join("top/hidden")).err();
            facts.no_locks = lock(&trial.join("lock")).err();
        }
        Err(failure) => facts.unwritable = Some(failure),
    }
    Ok(facts)
}

/// Makes two layers, as [`kernel::overlay_of_layers`] wants them.
fn make_layers(trial: &Path) -> Result<(), Failure> {
    let inside = ["bottom", "top", "bottom/opaque", "top/opaque"].map(|name| trial.join(name));
    for path in std::iter::once(trial).chain(inside.iter().map(PathBuf::as_path)) {
        DirBuilder::new()
            .mode(0o700)
            .create(path)
            .map_err(|error| failed(on("mkdir", path), error))?;
    }
    for file in [
        "bottom/kept",
        "bottom/hidden",
        "bottom/opaque/hidden",
        "lock",
    ] {
        let path = trial.join(file);
        fs::write(&path, file).map_err(|error| failed(on("write", &path), error))?;
    }
    Ok(())
}

fn make_opaque(directory: &Path) -> Result<(), Failure> {
    let opened = open(
        directory,
        OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| failed(on("open", directory), error))?;
    sys::set_attribute(opened.as_fd(), c"user.overlay.opaque", b"y")
        .map_err(|error| failed("setxattr(\"user.overlay.opaque\")", error))
}

fn make_whiteout(path: &Path) -> Result<(), Failure> {
    mknod(path, SFlag::S_IFCHR, Mode::empty(), 0)
        .map_err(|error| failed("mknod(S_IFCHR, makedev(0, 0))", error))
}

fn lock(path: &Path) -> Result<(), Failure> {
    let file = File::open(path).map_err(|error| failed(on("open", path), error))?;
    nix::fcntl::Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map(drop)
        .map_err(|(_, error)| failed("flock(LOCK_EX)", error))
}

/// What the facts mean for a store.
fn judge(facts: &Facts) -> Check {
    let place = facts.store.display();
    let new = if facts.exists { "" } else { " (not made yet)" };
    let network = network_name(&facts.kind);
    let kind = match network {
        Some(name) if name.to_lowercase() != facts.kind => format!("{} ({name})", facts.kind),
        _ => facts.kind.clone(),
    };
    let free = bytes(facts.free_bytes);
    let detail = format!("{place}{new}: {kind}, {free} free");
    let not_ok = |status, failure: Option<&Failure>, advice| {
        let detail = failure.map_or_else(
            || detail.clone(),
            |failure| format!("{detail}; {}", line(failure)),
        );
        Check::not_ok(STORE, status, detail, advice)
    };
    if let Some(failure) = &facts.unwritable {
        let reason = match failure.errno {
            Some(libc::EROFS) => "the file system is mounted read-only",
            Some(libc::EACCES | libc::EPERM) => "this user may not write there",
            Some(libc::ENOSPC) => "the file system is full",
            Some(libc::EDQUOT) => "this user's quota is used up",
            _ => "nothing can be made there",
        };
        return not_ok(Status::Failed, Some(failure), elsewhere(reason));
    }
    if let Some(failure) = &facts.no_locks {
        let reason = "the store needs file locks, and this file system has none (Lustre: mount it with -o flock)";
        return not_ok(Status::Failed, Some(failure), elsewhere(reason));
    }
    if let Some(failure) = facts.no_whiteouts.as_ref().or(facts.no_attributes.as_ref()) {
        let lacking = match (&facts.no_whiteouts, &facts.no_attributes) {
            (Some(_), Some(_)) => "neither whiteouts nor user attributes",
            (Some(_), None) => "no whiteouts (character devices 0:0)",
            _ => "no user attributes",
        };
        let reason = format!(
            "this file system keeps {lacking}: an image whose layers remove files cannot be unpacked there"
        );
        return not_ok(Status::Degraded, Some(failure), elsewhere(reason));
    }
    if facts.free_bytes < LITTLE_SPACE || facts.free_files.is_some_and(|files| files < 20_000) {
        let reason = match facts.free_files {
            Some(files) if files < 20_000 => {
                format!("room for {files} files more: an image may have more")
            }
            _ => "many images are larger than that".to_owned(),
        };
        return not_ok(Status::Degraded, None, elsewhere(reason));
    }
    if let Some(name) = network {
        let reason = format!(
            "{name}: every file of an image is read from there; a disk of this machine's own is faster"
        );
        return not_ok(Status::Degraded, None, elsewhere(reason));
    }
    Check::ok(
        STORE,
        format!("{detail}; keeps user attributes and whiteouts"),
    )
}

fn elsewhere(reason: impl Into<String>) -> Advice {
    Advice::new(
        reason,
        "export SBXRT_STORE=/var/tmp/sbxrt-$USER # or another directory on a local disk",
    )
}

/// A size as people read it.
fn bytes(count: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    for (unit, name) in UNITS {
        if count >= unit {
            let tenths = count / (unit / 10);
            return format!("{}.{} {name}", tenths / 10, tenths % 10);
        }
    }
    format!("{count} bytes")
}

fn overlay(trial: &Path, facts: &Facts) -> Check {
    let (whiteouts, attributes) = (facts.no_whiteouts.is_none(), facts.no_attributes.is_none());
    match kernel::overlay_of_layers(
        &trial.join("bottom"),
        &trial.join("top"),
        whiteouts,
        attributes,
    ) {
        Ok(()) => Check::ok(
            OVERLAY,
            format!(
                "layers on {} are mounted, what they remove is hidden",
                facts.kind
            ),
        ),
        Err(failure) => {
            let reason = match failure.errno {
                Some(libc::EINVAL) => format!("overlayfs does not take layers on {}", facts.kind),
                _ => format!("layers on {} do not work in an overlay", facts.kind),
            };
            Check::not_ok(OVERLAY, Status::Failed, line(&failure), elsewhere(reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            store: "/srv/store".into(),
            exists: true,
            kind: "ext4".to_owned(),
            free_bytes: 5 << 30,
            free_files: Some(1 << 20),
            unwritable: None,
            no_attributes: None,
            no_whiteouts: None,
            no_locks: None,
        }
    }

    #[test]
    fn a_store_is_judged_by_the_worst_of_its_facts() {
        let failure = |call: &str, errno| Some(failed(call, io::Error::from_raw_os_error(errno)));
        let table = [
            facts(),
            Facts {
                exists: false,
                free_files: None,
                ..facts()
            },
            Facts {
                kind: "nfs4".to_owned(),
                ..facts()
            },
            Facts {
                kind: "lustre".to_owned(),
                no_locks: failure("flock(LOCK_EX)", libc::ENOSYS),
                ..facts()
            },
            Facts {
                unwritable: failure("mkdir", libc::EROFS),
                ..facts()
            },
            Facts {
                unwritable: failure("mkdir", libc::EDQUOT),
                kind: "nfs4".to_owned(),
                ..facts()
            },
            Facts {
                no_whiteouts: failure("mknod", libc::EPERM),
                ..facts()
            },
            Facts {
                no_whiteouts: failure("mknod", libc::EPERM),
                no_attributes: failure("setxattr", libc::EOPNOTSUPP),
                ..facts()
            },
            Facts {
                no_attributes: failure("setxattr", libc::EOPNOTSUPP),
                ..facts()
            },
            Facts {
                free_bytes: 300 << 20,
                ..facts()
            },
            Facts {
                free_files: Some(7),
                ..facts()
            },
        ];
        let text: Vec<String> = table
            .iter()
            .map(|facts| {
                let Check {
                    status,
                    detail,
                    reason,
                    ..
                } = judge(facts);
                format!(
                    "{status:?}: {detail}\n  {}\n",
                    reason.as_deref().unwrap_or("-")
                )
            })
            .collect();
        insta::assert_snapshot!(text.join("\n"));
    }

    #[test]
    fn sizes_are_written_for_people() {
        let table = [
            (0, "0 bytes"),
            (1 << 10, "1.0 KiB"),
            (1_610_612_736, "1.5 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ];
        for (count, text) in table {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn the_trial_is_made_where_the_store_will_be() {
        assert_eq!(
            place_of(Path::new("/proc/self/nowhere/deep")),
            Path::new("/proc/self")
        );
        assert_eq!(place_of(Path::new("nowhere/deep")), Path::new("."));
        assert_eq!(place_of(Path::new("/usr")), Path::new("/usr"));
    }
}
