//! The overlay that a program sees as `/`: the image's layers, a layer of mount points, and on top a directory that takes
//! what the program changes. That is in the scratch tmpfs, and lost, or a directory of the caller's, and kept.
//!
//! Layers are named by descriptor, so their number is bounded by overlayfs (500) and not by the length of their paths,
//! and the program cannot read from `/proc/self/mountinfo` where the store is. `redirect_dir` and `metacopy` are off, as
//! `userxattr` has it: an upper directory can be understood, and used as a layer, without what is below it. The price is
//! that a directory of the image cannot be renamed (`EXDEV`); programs copy it then.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, fchmodat, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, mkdir, unlinkat};

use crate::error::Failure;
use crate::request::Network;
use crate::rootfs::{STEP, ensure, make_directory, network_files, open_in};

/// The step that fails where changes cannot be kept.
pub(crate) const KEEP: &str = "keep what the program changes";

/// A directory that must stay a directory.
const DIRECTORY: OFlag = OFlag::O_PATH
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC);

pub(crate) fn open_layer(layer: &Path) -> Result<OwnedFd, Failure> {
    open(layer, DIRECTORY, Mode::empty()).map_err(|error| {
        Failure::new(
            "open a layer of the image",
            layer.display().to_string(),
            error,
        )
    })
}

/// Mounts `lower`, bottom first, on `root` under a fresh upper directory in `base`.
pub(crate) fn mount_overlay(base: &Path, root: &Path, lower: &[OwnedFd]) -> Result<(), Failure> {
    let [upper, work] = ["upper", "work"].map(|name| base.join(name));
    for directory in [&upper, &work] {
        make_directory(directory, 0o755)?;
    }
    mount_on(
        root,
        lower,
        &upper.display().to_string(),
        &work.display().to_string(),
    )
    .map_err(|error| {
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Failure::new(STEP, describe(lower), error);
        }
        if let Some(layer) = crowded(lower) {
            return Failure::reason(
                "use a directory as the root file system",
                layer.display().to_string(),
                "something is mounted below it that an ordinary user may not take away",
            );
        }
        if lower.iter().any(|layer| is_overlay(layer.as_fd())) {
            let reason = "the image is on an overlay file system that is on another one (a container in a container), and the kernel takes no third; a volume of the outer container or a tmpfs is none";
            return Failure::reason(STEP, describe(lower), reason);
        }
        Failure::new(STEP, describe(lower), error)
    })
}

fn is_overlay(directory: BorrowedFd<'_>) -> bool {
    nix::sys::statfs::fstatfs(directory)
        .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::OVERLAYFS_SUPER_MAGIC)
}

/// A layer with a mount below it: this user namespace has taken it over from the host as one piece, so that the kernel
/// refuses to show the layer alone, which would bare what the mount covers.
fn crowded(lower: &[OwnedFd]) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let points = || mounts.lines().filter_map(|line| line.split(' ').nth(4));
    lower
        .iter()
        .filter_map(|layer| fs::read_link(by_descriptor(layer)).ok())
        .find(|layer| {
            points().any(|point| Path::new(point) != layer && Path::new(point).starts_with(layer))
        })
}

fn describe(lower: &[OwnedFd]) -> String {
    format!("mount(\"overlay\", {} layers, userxattr)", lower.len())
}

fn mount_on(root: &Path, lower: &[OwnedFd], upper: &str, work: &str) -> io::Result<()> {
    let names: Vec<String> = lower.iter().rev().map(by_descriptor).collect();
    let options = format!(
        "lowerdir={},upperdir={upper},workdir={work},userxattr",
        names.join(":"),
    );
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let overlay = Some("overlay");
    Ok(mount(
        overlay,
        root,
        overlay,
        flags,
        Some(options.as_str()),
    )?)
}

fn by_descriptor(directory: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", directory.as_raw_fd())
}

/// Mounts the image on `root` under the scratch space.
pub(crate) fn mount_scratch(
    base: &Path,
    root: &Path,
    mut lower: Vec<OwnedFd>,
    network: Network,
) -> Result<(), Failure> {
    lower.push(make_top_layer(base, network)?);
    mount_overlay(base, root, &lower)
}

/// Makes the layer above the image: the directories that every container needs, as real ones and the caller's own.
/// In the image they may be missing, be links, or belong to somebody else, and then nothing could be written there:
/// overlayfs cannot copy up what belongs to an id that does not exist in the user namespace.
fn make_top_layer(base: &Path, network: Network) -> Result<OwnedFd, Failure> {
    let layer = base.join("top");
    for (name, mode) in [
        ("", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("proc", 0o555),
        ("sys", 0o555),
        ("tmp", 0o1777),
    ] {
        make_directory(&layer.join(name), mode)?;
    }
    for name in network_files(network) {
        let path = layer.join("etc").join(name);
        fs::File::create(&path)
            .map_err(|error| Failure::new(STEP, path.display().to_string(), error))?;
    }
    open_layer(&layer)
}

/// An upper directory of the caller's, open, with the work directory that the kernel wants beside it.
#[derive(Debug)]
pub(crate) struct Upper {
    directory: OwnedFd,
    work: OwnedFd,
    name: String,
}

impl Upper {
    /// Opens the directory `path` and makes the work directory of the execution `id`.
    pub(crate) fn open(path: &Path, id: &str) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let failed = |error: Errno| Failure::new(KEEP, name.clone(), error);
        if !path.is_absolute() {
            return Err(Failure::reason(KEEP, name, "the path must be absolute"));
        }
        let flags = DIRECTORY | OFlag::O_NOFOLLOW;
        let upper = open(path, flags, Mode::empty()).map_err(failed)?;
        // Inside, everything would be refused, with errors that nobody understands.
        let status = fstat(&upper).map_err(failed)?;
        if status.st_uid != nix::unistd::geteuid().as_raw() {
            return Err(Failure::reason(KEEP, name, "belongs to somebody else"));
        }
        let beside = work_directory(path, id);
        let failed = |error: Errno| Failure::new(KEEP, beside.display().to_string(), error);
        mkdir(&beside, Mode::S_IRWXU).map_err(failed)?;
        let work = open(&beside, flags, Mode::empty()).map_err(failed)?;
        Ok(Self {
            directory: upper,
            work,
            name,
        })
    }

    /// Mounts `lower`, bottom first, on `root` under this directory. Nothing is made in it: `points`, the places that
    /// something will be mounted on and whether they are directories, are made in a layer between where they are missing.
    pub(crate) fn mount(
        &self,
        base: &Path,
        root: &Path,
        mut lower: Vec<OwnedFd>,
        points: &[(&Path, bool)],
        network: Network,
    ) -> Result<(), Failure> {
        // The kernel's own file systems go where the image cannot lead them; nothing is ever written below.
        let top = base.join("top");
        for (name, mode) in [("", 0o755), ("dev", 0o755), ("proc", 0o555), ("sys", 0o555)] {
            make_directory(&top.join(name), mode)?;
        }
        lower.push(open_layer(&top)?);
        lower.push(make_mount_points(base, &lower, points, network)?);
        mount_on(
            root,
            &lower,
            &by_descriptor(&self.directory),
            &by_descriptor(&self.work),
        )
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL | libc::EOPNOTSUPP) => Failure::reason(
                KEEP,
                self.name.clone(),
                format!("its file system cannot be the upper one of an overlay ({error})"),
            ),
            _ => Failure::new(KEEP, format!("{}: {}", self.name, describe(&lower)), error),
        })
    }
}

/// Makes the layer that has the mount points which `lower` lacks. It is the upper directory of an overlay that is
/// mounted for no longer than that, so links of the image lead where they will lead later, and the directories above a
/// mount point keep the modes that they have in the image.
fn make_mount_points(
    base: &Path,
    lower: &[OwnedFd],
    points: &[(&Path, bool)],
    network: Network,
) -> Result<OwnedFd, Failure> {
    let place = base.join("points");
    let root = place.join("root");
    for directory in [&place, &root] {
        make_directory(directory, 0o755)?;
    }
    mount_overlay(&place, &root, lower)?;
    {
        let root = open_layer(&root)?;
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |error: io::Error| Failure::new("make a mount point", path, error)
        };
        let temporary = Path::new("/tmp");
        if open_in(root.as_fd(), temporary, OFlag::O_PATH).is_err() {
            let made = ensure(root.as_fd(), temporary, true).and_then(|_| sticky(root.as_fd()));
            made.map_err(failed(temporary))?;
        }
        for name in network_files(network) {
            let path = Path::new("/etc").join(name);
            make_regular(root.as_fd(), name).map_err(failed(&path))?;
        }
        for (path, directory) in points {
            ensure(root.as_fd(), path, *directory).map_err(failed(path))?;
        }
    }
    umount2(&root, MntFlags::empty())
        .map_err(|error| Failure::new(STEP, format!("umount2({:?})", root.display()), error))?;
    open_layer(&place.join("upper"))
}

fn sticky(root: BorrowedFd<'_>) -> io::Result<()> {
    let mode = Mode::from_bits_retain(0o1777);
    Ok(fchmodat(
        root,
        "tmp",
        mode,
        nix::sys::stat::FchmodatFlags::NoFollowSymlink,
    )?)
}

/// Makes `/etc/NAME` a regular file. In an image it may be a link that leads nowhere yet (systemd-resolved), and nothing
/// can be mounted on such a one.
fn make_regular(root: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let etc = ensure(root, Path::new("/etc"), true)?;
    match fstatat(&etc, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(found) if found.st_mode & libc::S_IFMT == libc::S_IFREG => return Ok(()),
        Ok(_) => unlinkat(&etc, name, UnlinkatFlags::NoRemoveDir)?,
        Err(Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    openat(&etc, name, flags, Mode::from_bits_retain(0o644)).map(drop)?;
    Ok(())
}

/// Beside the upper directory, as both must be on one mount; hidden, and named after the execution.
fn work_directory(upper: &Path, id: &str) -> PathBuf {
    upper.with_file_name(format!(".sbxrt-work-{id}"))
}

/// The work directory of a kept upper directory, removed when dropped. Only the process that outlives the overlay holds
/// one: the kernel keeps files of its own in it.
#[derive(Debug)]
pub(crate) struct UpperWork(PathBuf);

impl UpperWork {
    pub(crate) fn new(upper: &Path, id: &str) -> Self {
        Self(work_directory(upper, id))
    }
}

impl Drop for UpperWork {
    fn drop(&mut self) {
        // The kernel makes its directory in it without any permission.
        let permissions = fs::Permissions::from_mode(0o700);
        drop(fs::set_permissions(self.0.join("work"), permissions));
        // Where it was never made there is nothing to remove; what cannot be removed is the caller's to find.
        drop(fs::remove_dir_all(&self.0));
    }
}
