//! What the kernel lets this user do: namespaces, mounts in them, system call filters.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;

use super::advice::{self, Advice, Settings};
use super::attempt::{Place, attempt, become_root, failed, line, names_of, on, wrong};
use super::{Check, Status};
use crate::error::Failure;
use crate::{overlay, rootfs, seccomp, sys};

/// How much memory the trials' file systems may take.
const SCRATCH_BYTES: u64 = 1 << 20;

/// The kernel's name and version, which nothing is concluded from.
pub(super) fn version() -> Check {
    let read = |name: &str| {
        let path = format!("/proc/sys/kernel/{name}");
        fs::read_to_string(path)
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    };
    let machine = std::env::consts::ARCH;
    Check::ok(
        "kernel",
        format!("{} {} on {machine}", read("ostype"), read("osrelease")),
    )
}

/// A user namespace, and another in it: the launcher's and the container's, and the program's own.
pub(super) fn user_namespaces(settings: &Settings) -> Check {
    const NAME: &str = "user_namespaces";
    let outcome = attempt(Place::UserNamespace(0), || {
        for _ in 0..2 {
            unshare(CloneFlags::CLONE_NEWUSER)
                .map_err(|error| failed("unshare(CLONE_NEWUSER) in a user namespace", error))?;
            become_root((0, 0))?;
        }
        Ok(())
    });
    match outcome {
        Ok(()) => Check::ok(NAME, "created and mapped, three deep"),
        Err(failure) => Check::not_ok(
            NAME,
            Status::Failed,
            line(&failure),
            advice::user_namespace(&failure, settings),
        ),
    }
}

/// The other namespaces, one by one, in a user namespace.
pub(super) fn namespaces(settings: &Settings) -> Check {
    const NAME: &str = "namespaces";
    const KINDS: [(&str, i32); 6] = [
        ("mnt", libc::CLONE_NEWNS),
        ("pid", libc::CLONE_NEWPID),
        ("net", libc::CLONE_NEWNET),
        ("ipc", libc::CLONE_NEWIPC),
        ("uts", libc::CLONE_NEWUTS),
        ("cgroup", libc::CLONE_NEWCGROUP),
    ];
    for (kind, flag) in KINDS {
        let outcome = attempt(Place::UserNamespace(0), || {
            unshare(CloneFlags::from_bits_retain(flag)).map_err(|error| {
                failed(
                    format!("unshare({}) in a user namespace", names_of(flag)),
                    error,
                )
            })?;
            if kind == "net" {
                sys::loopback_up().map_err(|error| failed("ioctl(SIOCSIFFLAGS, \"lo\")", error))?;
            }
            Ok(())
        });
        if let Err(failure) = outcome {
            let advice = advice::namespace(kind, &failure, settings);
            return Check::not_ok(NAME, Status::Failed, line(&failure), advice);
        }
    }
    Check::ok(NAME, KINDS.map(|(kind, _)| kind).join(", "))
}

/// A fresh `/proc` for a new pid namespace.
pub(super) fn procfs(settings: &Settings) -> Check {
    const NAME: &str = "procfs";
    let outcome = attempt(
        Place::UserNamespace(libc::CLONE_NEWNS | libc::CLONE_NEWPID),
        || {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>).map_err(|error| {
                failed(
                    "mount(\"proc\", \"/proc\", MS_NOSUID|MS_NODEV|MS_NOEXEC) in a pid namespace",
                    error,
                )
            })?;
            let own = fs::read_link("/proc/self")
                .map_err(|error| failed("readlink(\"/proc/self\")", error))?;
            if own == Path::new("1") {
                Ok(())
            } else {
                Err(wrong("/proc/self", format!("is {}", own.display())))
            }
        },
    );
    match outcome {
        Ok(()) => Check::ok(NAME, "a fresh one, mounted in a pid namespace"),
        Err(failure) => Check::not_ok(
            NAME,
            Status::Failed,
            line(&failure),
            advice::procfs(&failure, settings),
        ),
    }
}

/// Mounts by descriptor, as volumes and the host's `/usr` are mounted.
pub(super) fn mount_api(settings: &Settings) -> Check {
    const NAME: &str = "mount_api";
    let outcome = attempt(
        Place::UserNamespace(libc::CLONE_NEWNS | libc::CLONE_NEWPID),
        || {
            let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let root = open("/", directory, Mode::empty())
                .map_err(|error| failed("open(\"/\")", error))?;
            let base = rootfs::cover(Some(SCRATCH_BYTES), None)?;
            let tree = sys::clone_tree(root.as_fd(), c"usr", true).map_err(|error| {
                failed("open_tree(\"/usr\", OPEN_TREE_CLONE|AT_RECURSIVE)", error)
            })?;
            let attributes =
                libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
            sys::restrict_tree(tree.as_fd(), attributes, true).map_err(|error| {
                failed(
                    "mount_setattr(\"/usr\", MOUNT_ATTR_RDONLY|…, AT_RECURSIVE)",
                    error,
                )
            })?;
            let how = OpenHow::new()
                .flags(directory)
                .resolve(ResolveFlag::RESOLVE_IN_ROOT);
            let inside = openat2(&root, base.strip_prefix("/").unwrap_or(&base), how)
                .map_err(|error| failed("openat2(RESOLVE_IN_ROOT)", error))?;
            sys::attach_tree(tree.as_fd(), inside.as_fd())
                .map_err(|error| failed("move_mount", error))?;
            // As the container's first process forbids user namespaces below the program's.
            let proc = sys::detached_filesystem(c"proc")
                .map_err(|error| failed("fsmount(\"proc\")", error))?;
            let setting = "sys/user/max_user_namespaces";
            let file = openat(
                &proc,
                setting,
                OFlag::O_WRONLY | OFlag::O_CLOEXEC,
                Mode::empty(),
            )
            .map_err(|error| {
                failed(
                    format!("open(\"/proc/{setting}\") of a detached procfs"),
                    error,
                )
            })?;
            nix::unistd::write(file, b"1").map_err(|error| {
                failed(
                    format!("write(\"/proc/{setting}\") of a detached procfs"),
                    error,
                )
            })?;
            Ok(())
        },
    );
    match outcome {
        Ok(()) => Check::ok(
            NAME,
            "open_tree, mount_setattr, move_mount, fsmount, openat2",
        ),
        Err(failure) => Check::not_ok(
            NAME,
            Status::Failed,
            line(&failure),
            advice::mount_api(&failure, settings),
        ),
    }
}

/// An overlay whose upper directory is on a tmpfs, as every image is mounted.
pub(super) fn overlay(settings: &Settings) -> Check {
    const NAME: &str = "overlay";
    let outcome = attempt(Place::UserNamespace(libc::CLONE_NEWNS), || {
        let base = rootfs::cover(Some(SCRATCH_BYTES), None)?;
        let lower = base.join("lower");
        make_lower(&lower)?;
        let root = mount_layers(&base, &[open_layer(&lower)?])?;
        use_overlay(&root)
    });
    match outcome {
        Ok(None) => Check::ok(
            NAME,
            "mounted with userxattr, its upper directory on a tmpfs",
        ),
        Ok(Some(failure)) => Check::not_ok(
            NAME,
            Status::Degraded,
            line(&failure),
            Advice::without_fix(
                "the kernel's tmpfs keeps no user attributes (they came with Linux 6.6), so a program cannot remove, replace or rename a directory of its image",
            ),
        ),
        Err(failure) => Check::not_ok(
            NAME,
            Status::Failed,
            line(&failure),
            advice::overlay(&failure, settings),
        ),
    }
}

/// Makes a layer: `kept`, `removed` and `directory/inner`.
fn make_lower(lower: &Path) -> Result<(), Failure> {
    let made = |error| failed(format!("make {}", lower.display()), error);
    fs::create_dir_all(lower.join("directory")).map_err(made)?;
    for file in ["kept", "removed", "directory/inner"] {
        fs::write(lower.join(file), "lower").map_err(made)?;
    }
    Ok(())
}

fn open_layer(path: &Path) -> Result<OwnedFd, Failure> {
    open(
        path,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| failed(on("open", path), error))
}

/// Mounts an overlay of layers, bottom first, below the tmpfs on `base`.
fn mount_layers(base: &Path, layers: &[OwnedFd]) -> Result<PathBuf, Failure> {
    let root = base.join("root");
    fs::create_dir(&root).map_err(|error| failed(on("mkdir", &root), error))?;
    overlay::mount_overlay(base, &root, layers)?;
    Ok(root)
}

/// Does to an overlay what programs do. The failure that is only inconvenient is returned as a value.
fn use_overlay(root: &Path) -> Result<Option<Failure>, Failure> {
    let inside = |what: &str| format!("{what} in the overlay");
    let kept =
        fs::read_to_string(root.join("kept")).map_err(|error| failed(inside("read"), error))?;
    if kept != "lower" {
        return Err(wrong(inside("read"), "another file's contents"));
    }
    fs::write(root.join("kept"), "upper")
        .map_err(|error| failed(inside("write to a file of the image"), error))?;
    fs::write(root.join("new"), "upper").map_err(|error| failed(inside("create"), error))?;
    fs::remove_file(root.join("removed")).map_err(|error| failed(inside("unlink"), error))?;
    if root.join("removed").exists() {
        return Err(wrong(inside("unlink"), "without effect"));
    }
    let directory = root.join("directory");
    let replaced = fs::remove_dir_all(&directory).and_then(|()| fs::create_dir(&directory));
    match replaced {
        // To hide what is below, overlayfs must mark the directory as opaque, and cannot.
        Err(error) if error.raw_os_error() == Some(libc::EIO) => {
            Ok(Some(failed(inside("rmdir"), error)))
        }
        Err(error) => Err(failed(inside("rmdir and mkdir"), error)),
        Ok(()) if directory.join("inner").exists() => {
            Err(wrong(inside("mkdir"), "what was removed shows again"))
        }
        Ok(()) => Ok(None),
    }
}

/// Mounts layers that were unpacked into the store: whether what they hide is hidden, and what is in them is seen.
///
/// `bottom` has `kept`, `hidden` and `opaque/hidden`; `top` has a whiteout `hidden` and an opaque directory `opaque`
/// where the file system of the store can hold them.
pub(super) fn overlay_of_layers(
    bottom: &Path,
    top: &Path,
    whiteout: bool,
    opaque: bool,
) -> Result<(), Failure> {
    attempt(Place::UserNamespace(libc::CLONE_NEWNS), || {
        // Opened before the tmpfs covers a directory: the store may be in that.
        let layers = [open_layer(bottom)?, open_layer(top)?];
        let root = mount_layers(&rootfs::cover(Some(SCRATCH_BYTES), None)?, &layers)?;
        fs::read_to_string(root.join("kept"))
            .map_err(|error| failed("read a file of a layer", error))?;
        fs::write(root.join("kept"), "upper")
            .map_err(|error| failed("write to a file of a layer", error))?;
        if whiteout && root.join("hidden").exists() {
            return Err(wrong("a whiteout", "does not hide the file below"));
        }
        if opaque && root.join("opaque/hidden").exists() {
            return Err(wrong(
                "an opaque directory",
                "does not hide the files below",
            ));
        }
        Ok(())
    })
}

/// The filter that every program gets: loaded, and seen to forbid something.
pub(super) fn seccomp(settings: &Settings) -> Check {
    const NAME: &str = "seccomp";
    let program = seccomp::default_program();
    let outcome = attempt(Place::Here, || {
        nix::sys::prctl::set_no_new_privs()
            .map_err(|error| failed("prctl(PR_SET_NO_NEW_PRIVS)", error))?;
        seccomp::install(program)
            .map_err(|error| failed("seccomp(SECCOMP_SET_MODE_FILTER)", error))?;
        match unshare(CloneFlags::CLONE_NEWUSER) {
            Err(Errno::EPERM) => Ok(()),
            Err(error) => Err(failed("unshare(CLONE_NEWUSER) under the filter", error)),
            Ok(()) => Err(wrong(
                "unshare(CLONE_NEWUSER) under the filter",
                "was let through",
            )),
        }
    });
    match outcome {
        Ok(()) => Check::ok(
            NAME,
            format!(
                "filter of {} instructions loaded and in force",
                program.instruction_count()
            ),
        ),
        Err(failure) => {
            let advice = match failure.errno {
                Some(libc::EINVAL | libc::ENOSYS) => Advice::without_fix(
                    "this kernel has no system call filters (CONFIG_SECCOMP_FILTER), or this machine is emulated",
                ),
                _ => advice::refused(&failure, settings),
            };
            Check::not_ok(NAME, Status::Failed, line(&failure), advice)
        }
    }
}

/// `/dev/fuse`, opened and mounted.
pub(super) fn fuse(user_namespaces: bool) -> Check {
    const NAME: &str = "fuse";
    let path = "/dev/fuse";
    let opened = || {
        open(path, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|error| failed(format!("open({path:?}, O_RDWR)"), error))
    };
    let outcome = if user_namespaces {
        attempt(Place::UserNamespace(libc::CLONE_NEWNS), || {
            let device = opened()?;
            let base = rootfs::cover(Some(SCRATCH_BYTES), None)?;
            let options = format!(
                "fd={},rootmode=40000,user_id=0,group_id=0",
                device.as_raw_fd()
            );
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(
                Some("sbxrt"),
                &base,
                Some("fuse"),
                flags,
                Some(options.as_str()),
            )
            .map_err(|error| failed("mount(\"fuse\") in a user namespace", error))
        })
    } else {
        opened().map(drop)
    };
    let Err(failure) = outcome else {
        return Check::ok(
            NAME,
            format!(
                "{path} can be opened{}",
                if user_namespaces { " and mounted" } else { "" }
            ),
        );
    };
    let unneeded = "runs do not need it: it is for image files that are mounted without unpacking";
    let advice = match failure.errno {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Advice::new(
            format!("the module is not loaded, or /dev lacks it; {unneeded}"),
            "sudo modprobe fuse",
        ),
        Some(libc::EACCES) => Advice::new(
            format!("its permissions exclude this user; {unneeded}"),
            "sudo chmod 666 /dev/fuse",
        ),
        _ => Advice::without_fix(format!("the kernel or a container forbids it; {unneeded}")),
    };
    Check::not_ok(NAME, Status::Missing, line(&failure), advice)
}
