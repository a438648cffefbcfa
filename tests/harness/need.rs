//! What a test needs of the host, and what happens where it is missing.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::Identity;

/// Something that not every host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// `root`: the tests run as root, who can become the other users.
    Root,
    /// `userns`: an ordinary user may make user namespaces.
    UserNamespaces,
    /// `overlay`: an ordinary user may mount overlayfs in a user namespace.
    Overlay,
    /// `cgroup`: cgroup v2 alone, and the caller's own cgroup is delegated to it.
    DelegatedCgroup,
    /// `cgroup1`: the tests run as root, in cgroups of version 1.
    Version1,
    /// `freezing`: the tests may mount a file system of a file's, and freeze it.
    Freezing,
    /// `systemd`: systemd, and a delegated cgroup in which it can be started for the user.
    Systemd,
    /// `fixtures`: the images of `scripts/fixtures`.
    Fixtures,
    /// `languages`: the images of `rootfs/build`.
    Languages,
    /// `registry`: a registry that serves them.
    Registry,
    /// `stress-ng`: the program of that name.
    StressNg,
}

impl Need {
    /// The word for it in `SBXRT_TEST_REQUIRE`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::UserNamespaces => "userns",
            Self::Overlay => "overlay",
            Self::DelegatedCgroup => "cgroup",
            Self::Version1 => "cgroup1",
            Self::Freezing => "freezing",
            Self::Systemd => "systemd",
            Self::Fixtures => "fixtures",
            Self::Languages => "languages",
            Self::Registry => "registry",
            Self::StressNg => "stress-ng",
        }
    }

    fn why_missing(self) -> Option<String> {
        match self {
            Self::Root => (!nix::unistd::geteuid().is_root())
                .then(|| "the tests do not run as root".to_owned()),
            Self::UserNamespaces => failure(&["unshare", "--user", "--map-root-user", "true"]),
            Self::Overlay => failure(&[
                "unshare",
                "--user",
                "--map-root-user",
                "--mount",
                "sh",
                "-c",
                "mount -t tmpfs t /mnt && mkdir /mnt/l /mnt/u /mnt/w /mnt/m \
                 && mount -t overlay o -o userxattr,lowerdir=/mnt/l,upperdir=/mnt/u,workdir=/mnt/w /mnt/m",
            ]),
            Self::DelegatedCgroup => delegation_missing(),
            Self::Version1 => version_1_missing(),
            Self::Freezing => failure_of(std::process::Command::new("unshare").args([
                "--mount",
                "sh",
                "-ec",
                "d=$(mktemp -d); trap 'umount -l $d/m 2>&1; rm -rf $d' EXIT; mkdir $d/m; truncate -s 16M $d/f; \
                 mkfs.ext4 -q $d/f; mount -o loop $d/f $d/m; fsfreeze -f $d/m; fsfreeze -u $d/m",
            ])),
            Self::Systemd => absent("/usr/lib/systemd/systemd")
                .or_else(|| absent("/run/systemd/system"))
                .or_else(|| absent("/sys/fs/cgroup/session/manager")),
            Self::Fixtures => unset("SBXRT_TEST_FIXTURES"),
            Self::Languages => unset("SBXRT_TEST_LANGUAGES"),
            Self::Registry => unset("SBXRT_TEST_REGISTRY"),
            Self::StressNg => (!Path::new("/usr/bin/stress-ng").exists())
                .then(|| "/usr/bin/stress-ng does not exist".to_owned()),
        }
    }
}

/// Says whether the host has something; where it has not, the test should return.
///
/// # Panics
///
/// Where it is missing but listed in `SBXRT_TEST_REQUIRE`.
#[must_use = "a test returns where something is missing"]
pub fn require(need: Need) -> bool {
    let Some(reason) = need.why_missing() else {
        return true;
    };
    skip(need.name(), &reason);
    false
}

/// Reports that part of a test does not run here.
pub(crate) fn skip(name: &str, reason: &str) {
    let required = std::env::var("SBXRT_TEST_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|word| word.trim() == name),
        "{name} is in SBXRT_TEST_REQUIRE but missing: {reason}"
    );
    eprintln!("skipped: needs {name}: {reason}");
    if let Some(path) = std::env::var_os("SBXRT_TEST_SKIPS") {
        let test = std::thread::current().name().unwrap_or("?").to_owned();
        let mut file = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        file.write_all(format!("{test}: needs {name}: {reason}\n").as_bytes())
            .unwrap();
    }
}

fn absent(path: &str) -> Option<String> {
    (!Path::new(path).exists()).then(|| format!("there is no {path}"))
}

fn unset(variable: &str) -> Option<String> {
    std::env::var_os(variable)
        .is_none()
        .then(|| format!("{variable} is not set"))
}

/// Runs a command as an ordinary user, or as the caller where there is none.
fn failure(arguments: &[&str]) -> Option<String> {
    failure_of(&mut Identity::ordinary().command(arguments))
}

fn failure_of(command: &mut std::process::Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// The directory of this process's cgroup in the hierarchy of `controller`, where that is of version 1.
pub fn version_1_directory(controller: &str) -> Option<PathBuf> {
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = membership.lines().find_map(|line| {
        let (controllers, own) = line.split_once(':')?.1.split_once(':')?;
        controllers
            .split(',')
            .any(|name| name == controller)
            .then_some(own)
    })?;
    let hierarchy = Path::new("/sys/fs/cgroup").join(controller);
    Some(hierarchy.join(own.trim_start_matches('/'))).filter(|path| path.is_dir())
}

fn version_1_missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("the tests do not run as root".to_owned());
    }
    ["memory", "pids", "cpu", "cpuacct", "cpuset"]
        .into_iter()
        .find(|controller| version_1_directory(controller).is_none())
        .map(|controller| format!("there is no hierarchy of version 1 for {controller}"))
}

fn delegation_missing() -> Option<String> {
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return Some("/sys/fs/cgroup is not cgroup v2 alone".to_owned());
    }
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = format!(
        "/sys/fs/cgroup{}/cgroup.procs",
        own.trim().strip_prefix("0::")?
    );
    match fs::OpenOptions::new().write(true).open(&path) {
        Ok(_) => None,
        Err(error) => Some(format!("{path}: {error}")),
    }
}
