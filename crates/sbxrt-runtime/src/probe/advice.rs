//! From an error number and the host's settings to why something fails and what mends it: pure functions.

use std::path::PathBuf;

use super::mounts::{self, MountPoint};
use crate::error::Failure;

/// Why something is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Advice {
    pub(super) reason: String,
    /// What to type, where there is something.
    pub(super) fix: Option<String>,
}

impl Advice {
    pub(super) fn new(reason: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            fix: Some(fix.into()),
        }
    }

    pub(super) fn without_fix(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            fix: None,
        }
    }
}

/// What this process is inside of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Container {
    Docker,
    Podman,
    Kubernetes,
}

/// What decides about namespaces and mounts on a host. `None` is a setting that its kernel does not have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) is_root: bool,
    /// `kernel.unprivileged_userns_clone`: Debian's and Arch's kernels.
    pub(super) unprivileged_userns_clone: Option<u64>,
    /// `user.max_*_namespaces` of this user namespace, without `max_` and `_namespaces`.
    pub(super) most_namespaces: Vec<(&'static str, u64)>,
    /// `kernel.apparmor_restrict_unprivileged_userns`: Ubuntu 23.10 and later.
    pub(super) apparmor_restricts: bool,
    /// The `AppArmor` profile that this process is under.
    pub(super) apparmor_profile: Option<String>,
    pub(super) selinux_enforces: bool,
    /// Whether a system call filter is in force.
    pub(super) is_filtered: bool,
    pub(super) container: Option<Container>,
    /// Whether this process is in a user namespace other than the host's first.
    pub(super) is_nested: bool,
    /// Whether its root directory is not that of its mount namespace.
    pub(super) is_chrooted: bool,
    /// The names below `/proc/self/ns`.
    pub(super) namespaces: Vec<String>,
    /// What is mounted over parts of `/proc`.
    pub(super) covered_proc: Vec<String>,
    pub(super) executable: PathBuf,
}

/// The names in `user.max_*_namespaces`.
const KINDS: [&str; 7] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];

impl Settings {
    /// Reads the settings of this host. What cannot be read is taken for not there.
    pub(super) fn read() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
        let exists = |path: &str| std::path::Path::new(path).exists();
        let mounts = mounts::read();
        let status = read("/proc/self/status").unwrap_or_default();
        let container =
            if exists("/run/secrets/kubernetes.io") || exists("/var/run/secrets/kubernetes.io") {
                Some(Container::Kubernetes)
            } else if exists("/run/.containerenv") {
                Some(Container::Podman)
            } else {
                exists("/.dockerenv").then_some(Container::Docker)
            };
        Self {
            is_root: nix::unistd::geteuid().is_root(),
            unprivileged_userns_clone: number("/proc/sys/kernel/unprivileged_userns_clone"),
            most_namespaces: KINDS
                .into_iter()
                .filter_map(|kind| {
                    Some((
                        kind,
                        number(&format!("/proc/sys/user/max_{kind}_namespaces"))?,
                    ))
                })
                .collect(),
            apparmor_restricts: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
                .is_some_and(|value| value != 0),
            apparmor_profile: read("/proc/self/attr/apparmor/current")
                .map(|profile| profile.trim_end_matches(['\0', '\n']).to_owned())
                .filter(|profile| !profile.is_empty() && profile != "unconfined"),
            selinux_enforces: number("/sys/fs/selinux/enforce") == Some(1),
            is_filtered: is_filtered(&status),
            container,
            is_nested: read("/proc/self/uid_map").is_some_and(|map| is_nested(&map)),
            is_chrooted: !mounts.is_empty()
                && !mounts.iter().any(|mount| mount.path.as_os_str() == "/"),
            namespaces: std::fs::read_dir("/proc/self/ns")
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok())
                .collect(),
            covered_proc: covered_proc(&mounts),
            executable: std::fs::read_link("/proc/self/exe")
                .unwrap_or_else(|_| "/usr/bin/sbxrt".into()),
        }
    }

    fn most(&self, kind: &str) -> Option<u64> {
        self.most_namespaces
            .iter()
            .find_map(|(known, value)| (*known == kind).then_some(*value))
    }
}

/// Whether `/proc/self/status` shows a system call filter.
fn is_filtered(status: &str) -> bool {
    status.lines().any(|line| {
        line.strip_prefix("Seccomp:")
            .is_some_and(|mode| mode.trim() == "2")
    })
}

/// Whether `/proc/self/uid_map` is not that of the host's first user namespace.
fn is_nested(map: &str) -> bool {
    !map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// What hides parts of `/proc` in these mounts.
fn covered_proc(mounts: &[MountPoint]) -> Vec<String> {
    mounts
        .iter()
        // The kernel allows mounts on directories that are empty by nature, as this one.
        .filter(|mount| mount.path != std::path::Path::new("/proc/sys/fs/binfmt_misc"))
        .map(|mount| mount.path.display().to_string())
        .filter(|path| path.starts_with("/proc/"))
        .collect()
}

/// The command that sets `key` for good.
fn sysctl(key: &str, value: &str) -> String {
    format!(
        "echo '{key} = {value}' | sudo tee -a /etc/sysctl.d/90-sbxrt.conf && sudo sysctl -p /etc/sysctl.d/90-sbxrt.conf"
    )
}

/// How a container is started so that `what` of it is not confined.
fn unconfined(container: Container, what: Confinement) -> String {
    match (container, what) {
        (Container::Docker, Confinement::Filter) => {
            "docker run --security-opt seccomp=unconfined …".to_owned()
        }
        (Container::Docker, Confinement::Label) => {
            "docker run --security-opt apparmor=unconfined --security-opt seccomp=unconfined …".to_owned()
        }
        (Container::Docker, Confinement::Proc) => {
            "docker run --security-opt systempaths=unconfined --security-opt seccomp=unconfined --security-opt apparmor=unconfined …".to_owned()
        }
        (Container::Podman, Confinement::Filter) => {
            "podman run --security-opt seccomp=unconfined …".to_owned()
        }
        (Container::Podman, Confinement::Label) => {
            "podman run --security-opt label=disable --security-opt seccomp=unconfined …".to_owned()
        }
        (Container::Podman, Confinement::Proc) => "podman run --security-opt unmask=ALL …".to_owned(),
        (Container::Kubernetes, Confinement::Filter) => {
            "in the pod: securityContext: {seccompProfile: {type: Unconfined}}".to_owned()
        }
        (Container::Kubernetes, Confinement::Label) => {
            "in the pod: securityContext: {appArmorProfile: {type: Unconfined}}".to_owned()
        }
        (Container::Kubernetes, Confinement::Proc) => {
            "in the pod: hostUsers: false and securityContext: {procMount: Unmasked}".to_owned()
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Confinement {
    Filter,
    Label,
    Proc,
}

/// Why no user namespace could be made or mapped.
pub(super) fn user_namespace(failure: &Failure, settings: &Settings) -> Advice {
    let Some(errno) = failure.errno else {
        return Advice::without_fix(failure.reason.clone());
    };
    if settings.is_chrooted {
        return Advice::without_fix(
            "this process runs in a chroot, from which the kernel allows no user namespaces: run it outside",
        );
    }
    match errno {
        // Where several namespaces were asked for at once, the one that there may be none of.
        libc::ENOSPC | libc::EUSERS => {
            let none_allowed = KINDS
                .into_iter()
                .find(|kind| settings.most(kind) == Some(0));
            too_many(none_allowed.unwrap_or("user"), settings)
        }
        libc::EINVAL | libc::ENOSYS if !settings.namespaces.iter().any(|name| name == "user") => {
            Advice::without_fix(
                "this kernel was built without user namespaces (/proc/self/ns/user is missing; CONFIG_USER_NS): another kernel is needed",
            )
        }
        libc::ENOSYS => filtered("clone3", settings),
        libc::EPERM if settings.unprivileged_userns_clone == Some(0) && !settings.is_root => {
            Advice::new(
                "kernel.unprivileged_userns_clone is 0: only root may create user namespaces",
                sysctl("kernel.unprivileged_userns_clone", "1"),
            )
        }
        _ => refused(failure, settings),
    }
}

/// Why a namespace of `kind` (as in `user.max_*_namespaces`) could not be made in a user namespace.
pub(super) fn namespace(kind: &str, failure: &Failure, settings: &Settings) -> Advice {
    match failure.errno {
        Some(libc::ENOSPC | libc::EUSERS) => too_many(kind, settings),
        Some(libc::EINVAL | libc::ENOSYS)
            if !settings.namespaces.iter().any(|name| name == kind) =>
        {
            Advice::without_fix(format!(
                "this kernel was built without them (/proc/self/ns/{kind} is missing): another kernel is needed"
            ))
        }
        Some(libc::ENOSYS) => filtered("unshare", settings),
        _ => refused(failure, settings),
    }
}

fn too_many(kind: &str, settings: &Settings) -> Advice {
    let key = format!("user.max_{kind}_namespaces");
    match settings.most(kind) {
        Some(0) if settings.is_nested => Advice::new(
            format!("{key} is 0 in the user namespace that this process was put in"),
            format!(
                "have whoever made that namespace (a container, `unshare`, a sandbox) set {key} in it"
            ),
        ),
        Some(0) => Advice::new(format!("{key} is 0"), sysctl(&key, "15000")),
        Some(most) => Advice::new(
            format!(
                "{key} is {most} here, and that many exist; or one of the namespaces around this one allows fewer, or they are nested 32 deep"
            ),
            sysctl(&key, &most.saturating_mul(2).max(15_000).to_string()),
        ),
        None => Advice::without_fix(format!("{key} cannot be read here; its limit is reached")),
    }
}

fn filtered(call: &str, settings: &Settings) -> Advice {
    let reason = format!(
        "a system call filter around this process hides {call} (or the kernel is older than it)"
    );
    match settings.container {
        Some(container) => Advice::new(reason, unconfined(container, Confinement::Filter)),
        None => Advice::without_fix(reason),
    }
}

/// Why something is forbidden in a new user namespace, or it itself.
pub(super) fn refused(failure: &Failure, settings: &Settings) -> Advice {
    let makes_namespaces = ["clone3(", "unshare("]
        .iter()
        .any(|call| failure.subject.starts_with(call));
    if makes_namespaces && matches!(failure.errno, Some(libc::ENOSPC | libc::EUSERS)) {
        let none_allowed = KINDS
            .into_iter()
            .find(|kind| settings.most(kind) == Some(0));
        return too_many(none_allowed.unwrap_or("user"), settings);
    }
    if !matches!(failure.errno, Some(libc::EPERM | libc::EACCES)) {
        return Advice::without_fix("the kernel does not say more than that; see dmesg");
    }
    if settings.apparmor_restricts && !settings.is_root && settings.container.is_none() {
        let executable = settings.executable.display();
        return Advice::new(
            "kernel.apparmor_restrict_unprivileged_userns is 1: AppArmor lets only programs with a profile of their own use user namespaces (0 would allow it to all)",
            format!(
                "printf 'abi <abi/4.0>,\\ninclude <tunables/global>\\nprofile sbxrt \"{executable}\" flags=(unconfined) {{ userns, }}\\n' | sudo tee /etc/apparmor.d/sbxrt && sudo apparmor_parser -r /etc/apparmor.d/sbxrt"
            ),
        );
    }
    match (settings.container, &settings.apparmor_profile) {
        (Some(container), Some(profile)) => Advice::new(
            format!(
                "the container around this process forbids it (AppArmor profile {profile}, or its system call filter)"
            ),
            unconfined(container, Confinement::Label),
        ),
        (Some(container), None) if settings.is_filtered => Advice::new(
            "the container around this process forbids it, most likely by its system call filter",
            unconfined(container, Confinement::Filter),
        ),
        (None, Some(profile)) => Advice::new(
            format!("this process is confined by the AppArmor profile {profile}"),
            "sudo dmesg | grep 'apparmor=\"DENIED\"' # then allow it in that profile",
        ),
        (_, None) if settings.is_filtered => Advice::without_fix(
            "a system call filter is in force around this process (Seccomp: 2 in /proc/self/status): it runs in a sandbox or a service with SystemCallFilter= or RestrictNamespaces=",
        ),
        (_, None) if settings.selinux_enforces => Advice::new(
            "SELinux is enforcing, and most likely its policy forbids it",
            "sudo ausearch -m avc -ts recent # then allow it with audit2allow",
        ),
        (_, None) => Advice::without_fix(format!(
            "the kernel refuses it ({}), and none of the settings that are known here says why: a chroot around this process (none is allowed there), or a security module; see dmesg",
            failure.reason
        )),
    }
}

/// Why a fresh procfs could not be mounted.
pub(super) fn procfs(failure: &Failure, settings: &Settings) -> Advice {
    if failure.errno != Some(libc::EPERM) || settings.covered_proc.is_empty() {
        return refused(failure, settings);
    }
    let covered = &settings.covered_proc;
    let shown = covered
        .iter()
        .take(3)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    let more = if covered.len() > 3 { ", …" } else { "" };
    let reason = format!(
        "{} mounts hide parts of /proc ({shown}{more}), as in a container: the kernel then allows no fresh one, which would show them",
        covered.len()
    );
    match settings.container {
        Some(container) => Advice::new(reason, unconfined(container, Confinement::Proc)),
        None => Advice::new(
            reason,
            "run sbxrt on the host itself, or start this container with an unmasked /proc",
        ),
    }
}

/// Why an overlay could not be mounted.
pub(super) fn overlay(failure: &Failure, settings: &Settings) -> Advice {
    match failure.errno {
        Some(libc::ENODEV) => Advice::new(
            "this kernel has no overlayfs, or its module is not loaded",
            "echo overlay | sudo tee /etc/modules-load.d/overlay.conf && sudo modprobe overlay",
        ),
        Some(libc::EPERM)
            if settings.apparmor_profile.is_none() && settings.container.is_none() =>
        {
            Advice::without_fix(
                "this kernel does not let user namespaces mount overlayfs (it came with Linux 5.11): a newer kernel is needed",
            )
        }
        Some(libc::EINVAL) => Advice::without_fix(
            "overlayfs of this kernel refuses these directories, or does not know the option userxattr (Linux 5.11): see dmesg",
        ),
        _ => refused(failure, settings),
    }
}

/// Why one of the mount system calls by descriptor failed.
pub(super) fn mount_api(failure: &Failure, settings: &Settings) -> Advice {
    match failure.errno {
        Some(libc::ENOSYS) => {
            filtered("open_tree, mount_setattr (Linux 5.12) or openat2", settings)
        }
        // A procfs is among what is mounted.
        _ => procfs(failure, settings),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(errno: i32) -> Failure {
        Failure::new("try", "a call", std::io::Error::from_raw_os_error(errno))
    }

    fn plain() -> Settings {
        Settings {
            most_namespaces: vec![("user", 15_000), ("net", 15_000)],
            namespaces: KINDS.map(str::to_owned).to_vec(),
            executable: "/opt/sbxrt".into(),
            ..Settings::default()
        }
    }

    /// The advice for every cause that is known, as people read it.
    #[test]
    fn every_known_cause_has_its_advice() {
        let docker = Settings {
            container: Some(Container::Docker),
            is_filtered: true,
            ..plain()
        };
        let masked = Settings {
            covered_proc: ["/proc/kcore", "/proc/keys", "/proc/acpi", "/proc/scsi"]
                .map(str::to_owned)
                .to_vec(),
            ..docker.clone()
        };
        let table: [(&str, Advice); 17] = [
            (
                "Debian's sysctl",
                user_namespace(
                    &failure(libc::EPERM),
                    &Settings {
                        unprivileged_userns_clone: Some(0),
                        ..plain()
                    },
                ),
            ),
            (
                "the same as root",
                user_namespace(
                    &failure(libc::EPERM),
                    &Settings {
                        unprivileged_userns_clone: Some(0),
                        is_root: true,
                        ..plain()
                    },
                ),
            ),
            (
                "no user namespaces allowed",
                user_namespace(
                    &failure(libc::ENOSPC),
                    &Settings {
                        most_namespaces: vec![("user", 0)],
                        ..plain()
                    },
                ),
            ),
            (
                "none allowed by an outer namespace",
                user_namespace(
                    &failure(libc::ENOSPC),
                    &Settings {
                        most_namespaces: vec![("user", 0)],
                        is_nested: true,
                        ..plain()
                    },
                ),
            ),
            (
                "too many user namespaces",
                user_namespace(&failure(libc::ENOSPC), &plain()),
            ),
            (
                "Ubuntu's AppArmor",
                user_namespace(
                    &failure(libc::EACCES),
                    &Settings {
                        apparmor_restricts: true,
                        ..plain()
                    },
                ),
            ),
            (
                "a kernel without",
                user_namespace(
                    &failure(libc::EINVAL),
                    &Settings {
                        namespaces: vec!["mnt".to_owned()],
                        ..plain()
                    },
                ),
            ),
            (
                "Docker's filter hides clone3",
                user_namespace(&failure(libc::ENOSYS), &docker),
            ),
            (
                "Docker's filter forbids",
                user_namespace(&failure(libc::EPERM), &docker),
            ),
            (
                "a chroot",
                user_namespace(
                    &failure(libc::EPERM),
                    &Settings {
                        is_chrooted: true,
                        ..plain()
                    },
                ),
            ),
            (
                "a service's filter",
                user_namespace(
                    &failure(libc::EPERM),
                    &Settings {
                        is_filtered: true,
                        ..plain()
                    },
                ),
            ),
            (
                "SELinux",
                user_namespace(
                    &failure(libc::EACCES),
                    &Settings {
                        selinux_enforces: true,
                        ..plain()
                    },
                ),
            ),
            (
                "no network namespaces",
                namespace(
                    "net",
                    &failure(libc::ENOSPC),
                    &Settings {
                        most_namespaces: vec![("net", 0)],
                        ..plain()
                    },
                ),
            ),
            ("Docker masks /proc", procfs(&failure(libc::EPERM), &masked)),
            (
                "no overlay module",
                overlay(&failure(libc::ENODEV), &plain()),
            ),
            (
                "overlay is root's",
                overlay(&failure(libc::EPERM), &plain()),
            ),
            ("an old kernel", mount_api(&failure(libc::ENOSYS), &plain())),
        ];
        let text: Vec<String> = table
            .into_iter()
            .map(|(case, Advice { reason, fix })| {
                format!(
                    "{case}\n  {reason}\n  fix: {}\n",
                    fix.as_deref().unwrap_or("-")
                )
            })
            .collect();
        insta::assert_snapshot!(text.join("\n"));
    }

    #[test]
    fn files_of_the_kernel_are_understood() {
        assert!(is_filtered("Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n"));
        assert!(!is_filtered("Seccomp:\t0\nSeccomp_filters:\t2\n"));
        assert!(!is_nested("         0          0 4294967295\n"));
        assert!(is_nested("         0       1000          1\n"));
        let mounts = mounts::parse(
            "1 0 0:1 / /proc rw - proc proc rw\n2 1 0:2 / /proc/kcore ro - tmpfs tmpfs rw\n\
             3 1 0:3 / /proc/sys/fs/binfmt_misc rw - autofs x rw\n4 0 0:4 / /process rw - tmpfs x rw\n",
        );
        assert_eq!(covered_proc(&mounts), ["/proc/kcore"]);
    }
}
