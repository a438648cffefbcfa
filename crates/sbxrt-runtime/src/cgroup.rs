//! The caller's own cgroup v2 subtree, where it has been given one: found by trying, never by kernel version.
//!
//! A process may create cgroups below its own where the directory belongs to it and controllers are offered there: a
//! systemd scope or service with `Delegate=yes`, a job step of a scheduler that delegates, a container with a
//! writable cgroup namespace. Because a cgroup with processes of its own cannot give controllers to its children
//! (cgroup v2's "no internal processes"), the processes that are there, the caller's own among them, are moved once
//! into a leaf named [`CALLER_LEAF`] beside which the executions' leaves are made. It stays until its processes end:
//! moving them again would cost a grace period of the kernel (11-16 ms) on every run.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, UnlinkatFlags, faccessat, unlinkat};

use crate::request::{LimitName, Limits, Mechanism};

/// Where the processes that were in the subtree's root live from then on.
const CALLER_LEAF: &str = "sbxrt.caller";
/// How the leaves of executions are named: this, the owning process, a dot, the execution's id.
const RUN_PREFIX: &str = "sbxrt-run.";
/// The controllers that limits need, in the kernel's names.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// The period over which CPU time is counted, in microseconds: the kernel's default.
const CPU_PERIOD: u64 = 100_000;

/// A cgroup below which leaves can be made.
#[derive(Debug)]
pub(crate) struct Subtree {
    directory: OwnedFd,
    path: PathBuf,
}

impl Subtree {
    /// Finds the caller's subtree and makes it ready, or `None` where nothing useful is delegated.
    ///
    /// Must run in the caller's own pid namespace: in another, `cgroup.procs` hides the processes to be moved.
    pub(crate) fn find() -> Option<Self> {
        match Self::acquire() {
            Ok(subtree) => Some(subtree),
            Err(obstacle) => {
                tracing::debug!(?obstacle, "no cgroup can be made");
                None
            }
        }
    }

    /// As [`find`](Self::find), telling what is in the way.
    pub(crate) fn acquire() -> Result<Self, Obstacle> {
        let (subtree, offered) = Self::locate()?;
        if let Err(error) = subtree.enable(&offered) {
            return Err(Obstacle::NotEnabled {
                path: subtree.path,
                errno: errno_of(&error),
            });
        }
        subtree.sweep();
        Ok(subtree)
    }

    /// Tells what [`find`](Self::find) would find, without changing anything.
    pub(crate) fn examine() -> Result<Delegation, Obstacle> {
        let (subtree, offered) = Self::locate()?;
        let controllers = CONTROLLERS
            .into_iter()
            .filter(|controller| has_word(&offered, controller));
        Ok(Delegation {
            path: subtree.path,
            controllers: controllers.collect(),
        })
    }

    /// The subtree as it is, and the controllers that it is offered.
    fn locate() -> Result<(Self, String), Obstacle> {
        let mount = mount_point().ok_or(Obstacle::NotMounted)?;
        let membership =
            fs::read_to_string("/proc/self/cgroup").map_err(|error| Obstacle::Unreachable {
                path: "/proc/self/cgroup".into(),
                errno: errno_of(&error),
            })?;
        let own = own_cgroup(&membership).ok_or(Obstacle::NotMounted)?;
        let own = mount.join(own.trim_start_matches('/'));
        let path = match own.parent() {
            Some(parent) if own.file_name().is_some_and(|name| name == CALLER_LEAF) => {
                parent.to_owned()
            }
            _ => own,
        };
        let offered = fs::read_to_string(path.join("cgroup.controllers")).map_err(|error| {
            Obstacle::Unreachable {
                path: path.clone(),
                errno: errno_of(&error),
            }
        })?;
        if !CONTROLLERS
            .iter()
            .any(|controller| has_word(&offered, controller))
        {
            return Err(Obstacle::NothingOffered {
                path,
                version_1: version_1_controllers(&membership),
            });
        }
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory =
            open(&path, flags, Mode::empty()).map_err(|errno| Obstacle::Unreachable {
                path: path.clone(),
                errno: errno as i32,
            })?;
        for file in [".", "cgroup.procs", "cgroup.subtree_control"] {
            faccessat(&directory, file, AccessFlags::W_OK, AtFlags::AT_EACCESS).map_err(
                |errno| Obstacle::NotWritable {
                    path: path.clone(),
                    file,
                    errno: errno as i32,
                },
            )?;
        }
        Ok((Self { directory, path }, offered))
    }

    /// The directory's descriptor, to be handed to the launcher.
    pub(crate) fn into_directory(self) -> OwnedFd {
        self.directory
    }

    /// Gives the offered controllers to the children, after moving the processes that are in the way.
    fn enable(&self, offered: &str) -> io::Result<()> {
        let control = self.path.join("cgroup.subtree_control");
        let enabled = fs::read_to_string(&control)?;
        let missing: Vec<String> = CONTROLLERS
            .iter()
            .filter(|controller| has_word(offered, controller) && !has_word(&enabled, controller))
            .map(|controller| format!("+{controller}"))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let missing = missing.join(" ");
        // The root of the hierarchy may keep its processes, and so may a parent that has none.
        if fs::write(&control, &missing).is_ok() {
            return Ok(());
        }
        let leaf = self.path.join(CALLER_LEAF);
        match fs::create_dir(&leaf) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // Processes may fork while they are moved, so this is tried a bounded number of times.
        let mut last = Ok(());
        for _ in 0..16 {
            for pid in fs::read_to_string(self.path.join("cgroup.procs"))?.lines() {
                match fs::write(leaf.join("cgroup.procs"), pid) {
                    // It has ended since.
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    other => other?,
                }
            }
            last = fs::write(&control, &missing);
            if last.is_ok() {
                break;
            }
        }
        last
    }

    /// Removes leaves whose owner was killed before it could.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.path) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(owner) = name.to_str().and_then(owner_of) else {
                continue;
            };
            if matches!(
                nix::sys::signal::kill(owner, None),
                Err(nix::errno::Errno::ESRCH)
            ) {
                // A leaf that still has processes refuses; its turn comes at the next start.
                drop(fs::remove_dir(entry.path()));
            }
        }
    }
}

/// What [`Subtree::examine`] finds where leaves can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delegation {
    /// The cgroup's directory.
    pub(crate) path: PathBuf,
    /// Those of [`CONTROLLERS`] that it can give to its children.
    pub(crate) controllers: Vec<&'static str>,
}

impl Delegation {
    /// Whether a leaf here would hold `limit`.
    pub(crate) fn holds(&self, limit: LimitName) -> bool {
        controller_of(limit).is_some_and(|controller| self.controllers.contains(&controller))
    }
}

/// Why no leaf can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// There is no cgroup v2 file system where it belongs.
    NotMounted,
    /// The caller's own cgroup cannot be looked at.
    Unreachable { path: PathBuf, errno: i32 },
    /// None of [`CONTROLLERS`] is offered to the caller's cgroup.
    NothingOffered {
        path: PathBuf,
        /// Those that the host keeps on version 1 hierarchies.
        version_1: Vec<&'static str>,
    },
    /// A file of the caller's cgroup, or with `.` the directory itself, is not the caller's to write.
    NotWritable {
        path: PathBuf,
        file: &'static str,
        errno: i32,
    },
    /// The controllers cannot be given to children.
    NotEnabled { path: PathBuf, errno: i32 },
}

fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// Those of [`CONTROLLERS`] that the contents of `/proc/self/cgroup` show on version 1 hierarchies.
fn version_1_controllers(membership: &str) -> Vec<&'static str> {
    let lists = membership.lines().filter_map(|line| line.split(':').nth(1));
    let names: Vec<&str> = lists.flat_map(|list| list.split(',')).collect();
    CONTROLLERS
        .into_iter()
        .filter(|controller| names.contains(controller))
        .collect()
}

/// The controller that holds a limit.
fn controller_of(limit: LimitName) -> Option<&'static str> {
    match limit {
        LimitName::Memory | LimitName::Swap => Some("memory"),
        LimitName::Cpus => Some("cpu"),
        LimitName::Pids => Some("pids"),
        _ => None,
    }
}

/// The first process of the pid namespace that a leaf's name was made in, where `name` is that of a leaf.
pub(crate) fn owner_of(name: &str) -> Option<nix::unistd::Pid> {
    let pid = name
        .strip_prefix(RUN_PREFIX)?
        .split('.')
        .next()?
        .parse()
        .ok()?;
    (pid > 0).then(|| nix::unistd::Pid::from_raw(pid))
}

/// Where cgroup v2 is mounted: alone, or beside version 1.
pub(crate) fn mount_point() -> Option<&'static Path> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .map(Path::new)
        .find(|path| {
            nix::sys::statfs::statfs(*path)
                .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC)
        })
}

/// The cgroup v2 path in the contents of `/proc/self/cgroup`.
fn own_cgroup(membership: &str) -> Option<&str> {
    membership.lines().find_map(|line| line.strip_prefix("0::"))
}

fn has_word(words: &str, wanted: &str) -> bool {
    words.split_ascii_whitespace().any(|word| word == wanted)
}

/// The launcher's side: makes leaves in a subtree that the caller found.
#[derive(Debug)]
pub(crate) struct Leaves {
    subtree: OwnedFd,
    owner: i32,
    controllers: String,
}

impl Leaves {
    /// Leaves below `subtree`, marked as belonging to the process `owner` of the caller's pid namespace.
    pub(crate) fn new(subtree: OwnedFd, owner: i32) -> io::Result<Self> {
        let controllers = read_at(subtree.as_fd(), "cgroup.subtree_control")?;
        Ok(Self {
            subtree,
            owner,
            controllers,
        })
    }

    /// The limits that a leaf here can hold.
    pub(crate) fn holds(&self, limit: LimitName) -> bool {
        controller_of(limit).is_some_and(|controller| has_word(&self.controllers, controller))
    }

    /// Makes the leaf of the execution `id` and sets its limits.
    pub(crate) fn create(&self, id: &str, limits: &Limits) -> io::Result<Leaf> {
        let name = format!("{RUN_PREFIX}{}.{id}", self.owner);
        nix::sys::stat::mkdirat(&self.subtree, name.as_str(), Mode::from_bits_retain(0o755))?;
        let subtree = self.subtree.try_clone()?;
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = match openat(&self.subtree, name.as_str(), flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(error) => {
                let _ = unlinkat(&self.subtree, name.as_str(), UnlinkatFlags::RemoveDir);
                return Err(error.into());
            }
        };
        let leaf = Leaf {
            subtree,
            directory,
            name,
        };
        if let (true, Some(bytes)) = (self.holds(LimitName::Memory), limits.memory) {
            leaf.write("memory.max", &bytes.to_string())?;
            leaf.write("memory.oom.group", "1")?;
        }
        if let (true, Some(bytes)) = (self.holds(LimitName::Swap), limits.swap) {
            match leaf.write("memory.swap.max", &bytes.to_string()) {
                // A kernel without swap accounting has no swap to give either.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        if let (true, Some(pids)) = (self.holds(LimitName::Pids), limits.pids) {
            leaf.write("pids.max", &pids.to_string())?;
        }
        if let (true, Some(cpus)) = (self.holds(LimitName::Cpus), limits.cpus) {
            leaf.write("cpu.max", &cpu_max(cpus))?;
        }
        Ok(leaf)
    }
}

/// The contents of `cpu.max` for a number of processors. The kernel takes no quota below 1 ms.
fn cpu_max(cpus: f64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "the period is 100,000")]
    let quota = (cpus * CPU_PERIOD as f64).round().max(1000.0);
    format!("{quota} {CPU_PERIOD}")
}

/// The cgroup of one execution. Dropping it ends what is in it and removes it.
#[derive(Debug)]
pub(crate) struct Leaf {
    subtree: OwnedFd,
    directory: OwnedFd,
    name: String,
}

/// What the kernel counted in a leaf. A counter that this kernel or subtree does not have is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Bytes at the highest (`memory.peak`, Linux 5.19).
    pub(crate) memory_peak: Option<u64>,
    /// Processes killed because the memory limit was reached.
    pub(crate) memory_kills: u64,
    /// Every line of `memory.events`.
    pub(crate) memory_events: BTreeMap<String, u64>,
    /// Forks and threads refused.
    pub(crate) pids_refused: Option<u64>,
    /// The most processes and threads (`pids.peak`, Linux 6.1).
    pub(crate) pids_peak: Option<u64>,
    /// Microseconds of CPU time in user mode.
    pub(crate) user_micros: Option<u64>,
    /// Microseconds of CPU time in the kernel.
    pub(crate) system_micros: Option<u64>,
}

impl Counters {
    /// CPU time of all processes that were ever in it.
    pub(crate) fn cpu_time(&self) -> Option<std::time::Duration> {
        let micros = self.user_micros?.saturating_add(self.system_micros?);
        Some(std::time::Duration::from_micros(micros))
    }
}

impl Leaf {
    /// The directory's descriptor, for a process to be born in.
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Reads the counters.
    pub(crate) fn counters(&self) -> Counters {
        let read = |file| read_at(self.directory.as_fd(), file).unwrap_or_default();
        let memory_events = fields(&read("memory.events"));
        let cpu = read("cpu.stat");
        Counters {
            memory_peak: read("memory.peak").trim().parse().ok(),
            memory_kills: memory_events.get("oom_kill").copied().unwrap_or(0),
            memory_events,
            pids_refused: self.pids_refused(),
            pids_peak: read("pids.peak").trim().parse().ok(),
            user_micros: field(&cpu, "user_usec"),
            system_micros: field(&cpu, "system_usec"),
        }
    }

    /// How often a fork or thread has been refused so far.
    pub(crate) fn pids_refused(&self) -> Option<u64> {
        let events = read_at(self.directory.as_fd(), "pids.events").ok()?;
        field(&events, "max")
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let file = openat(&self.directory, file, flags, Mode::empty())?;
        nix::unistd::write(file, value.as_bytes())?;
        Ok(())
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        // Before Linux 5.14 there is no cgroup.kill; the pid namespace has ended the processes then.
        drop(self.write("cgroup.kill", "1"));
        // Ended processes leave their cgroup a moment after they were waited for.
        for _ in 0..200 {
            match unlinkat(&self.subtree, self.name.as_str(), UnlinkatFlags::RemoveDir) {
                Err(nix::errno::Errno::EBUSY) => {
                    let pause = nix::sys::time::TimeSpec::from_duration(
                        std::time::Duration::from_millis(5),
                    );
                    let _ = nix::poll::ppoll(&mut [], Some(pause), None);
                }
                _ => return,
            }
        }
    }
}

/// How a limit is held where there is a leaf for it and where there is none.
pub(crate) fn mechanism(
    limit: LimitName,
    limits: &Limits,
    leaves: Option<&Leaves>,
    caller_is_root: bool,
) -> Mechanism {
    if leaves.is_some_and(|leaves| leaves.holds(limit)) {
        return Mechanism::Cgroup2;
    }
    mechanism_without_cgroup(limit, limits, caller_is_root)
}

/// How a limit is held where no cgroup holds it.
pub(crate) fn mechanism_without_cgroup(
    limit: LimitName,
    limits: &Limits,
    caller_is_root: bool,
) -> Mechanism {
    match limit {
        // The kernel exempts its own root user from RLIMIT_NPROC, in user namespaces too.
        LimitName::Pids if !caller_is_root => Mechanism::Rlimit,
        LimitName::Cpus if limits.cpus.is_some_and(|cpus| cpus.fract() == 0.0) => {
            Mechanism::Affinity
        }
        // Whoever counts CPU time, the kernel ends nobody for it.
        LimitName::Memory | LimitName::Pids | LimitName::Cpus | LimitName::CpuTime => {
            Mechanism::Watchdog
        }
        LimitName::Nofile | LimitName::Fsize => Mechanism::Rlimit,
        LimitName::Scratch | LimitName::ScratchInodes | LimitName::Shm => Mechanism::Tmpfs,
        LimitName::WallTime => Mechanism::Timer,
        LimitName::Swap => Mechanism::None,
        LimitName::Output => Mechanism::Relay,
    }
}

fn read_at(directory: BorrowedFd<'_>, file: &str) -> io::Result<String> {
    let file = openat(
        directory,
        file,
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    io::read_to_string(fs::File::from(file))
}

/// The number after `key` in a file of `key value` lines.
fn field(text: &str, key: &str) -> Option<u64> {
    fields(text).remove(key)
}

/// A file of `key value` lines.
fn fields(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_understood() {
        assert_eq!(
            own_cgroup("12:pids:/a\n0::/user.slice/x\n"),
            Some("/user.slice/x")
        );
        assert_eq!(own_cgroup("12:pids:/a\n"), None);
        assert_eq!(
            version_1_controllers("4:cpu,cpuacct:/a\n8:pids:/a\n0::/\n"),
            ["cpu", "pids"]
        );
        assert_eq!(version_1_controllers("3:cpuset:/a\n0::/\n"), [""; 0]);
        assert_eq!(
            field("low 0\noom 3\noom_kill 2\noom_group_kill 1\n", "oom_kill"),
            Some(2)
        );
        assert_eq!(field("usage_usec 5\n", "user_usec"), None);
        assert_eq!(field("max 3\n", "ma"), None);
        assert!(has_word("cpu memory\n", "memory"));
        assert!(!has_word("cpuset\n", "cpu"));
    }

    #[test]
    fn processors_become_a_quota() {
        assert_eq!(cpu_max(0.5), "50000 100000");
        assert_eq!(cpu_max(2.0), "200000 100000");
        assert_eq!(cpu_max(0.000_1), "1000 100000");
    }

    #[test]
    fn only_names_of_ours_have_an_owner() {
        assert_eq!(
            owner_of("sbxrt-run.17.abc"),
            Some(nix::unistd::Pid::from_raw(17))
        );
        assert_eq!(owner_of("sbxrt-run.0.abc"), None);
        assert_eq!(owner_of("sbxrt.caller"), None);
        assert_eq!(owner_of("session.scope"), None);
    }
}
