//! Cgroups of an execution's own, below the caller's: the strongest way to hold limits, because the kernel does it, for
//! all processes together.
//!
//! [`Subtree::find`] looks for a place where such cgroups can be made, by trying, never by kernel version: on
//! [version 2](version2), else in the hierarchies of [version 1](version1). It belongs to the caller's process. What it
//! finds goes to the launcher as descriptors, because that sees no cgroup file system of the host's; there, [`Leaves`]
//! makes one [`Leaf`] for each execution. A leaf holds those limits whose values, once written, read back; it counts what
//! is used; and it is gone when it is dropped.
//!
//! A leaf has one level. Nothing in it could make cgroups below: the program sees no cgroup file system.

mod systemd;
mod version1;
mod version2;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize};

use crate::channel;
use crate::cpuset::Cpuset;
use crate::disk::Disk;
use crate::error::Failure;
use crate::guest::is_asked;
use crate::report::PeakSource;
use crate::request::{LimitName, Limits, Mechanism};

pub(crate) use systemd::{NoScope, answers as systemd_answers};
pub(crate) use version2::mount_point;

/// How the leaves of executions are named: this, the owning process, the number of its launcher and the execution's id,
/// with dots in between.
const RUN_PREFIX: &str = "sbxrt-run.";
/// The period over which CPU time is counted, in microseconds: the kernel's default.
const CPU_PERIOD: u64 = 100_000;

/// What the kernel governs through cgroups, as far as limits need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Controller {
    Cpu,
    /// Counts CPU time on version 1, where `cpu` does not.
    Cpuacct,
    Cpuset,
    Io,
    Memory,
    Pids,
}

impl Controller {
    /// Those whose limits every execution has. A place where none of them is offered is of no use.
    pub(crate) const MAIN: [Self; 3] = [Self::Cpu, Self::Memory, Self::Pids];

    /// The kernel's name.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Cpuset => "cpuset",
            Self::Io => "io",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }

    /// The one that holds `limit`, if there is one.
    fn of(limit: LimitName) -> Option<Self> {
        match limit {
            LimitName::Memory | LimitName::Swap => Some(Self::Memory),
            LimitName::Cpus => Some(Self::Cpu),
            LimitName::Cpuset => Some(Self::Cpuset),
            LimitName::Pids => Some(Self::Pids),
            LimitName::Io => Some(Self::Io),
            _ => None,
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Those of `controllers` that are named in `words`.
fn named(words: &str, controllers: impl IntoIterator<Item = Controller>) -> Vec<Controller> {
    let has = |controller: &Controller| {
        words
            .split([',', ' ', '\n'])
            .any(|word| word == controller.as_str())
    };
    controllers.into_iter().filter(has).collect()
}

/// A place below which leaves can be made: one directory on version 2, one for each hierarchy on version 1.
#[derive(Debug)]
pub(crate) struct Subtree {
    mechanism: Mechanism,
    directories: Vec<Directory>,
    /// How the names of leaves begin that are made here.
    prefix: String,
}

/// A cgroup of the caller's, below which leaves can be made.
#[derive(Debug)]
struct Directory {
    descriptor: OwnedFd,
    path: PathBuf,
    controllers: Vec<Controller>,
}

impl Directory {
    fn open(path: PathBuf, controllers: Vec<Controller>) -> Result<Self, Obstacle> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match open(&path, flags, Mode::empty()) {
            Ok(descriptor) => Ok(Self {
                descriptor,
                path,
                controllers,
            }),
            Err(errno) => Err(Obstacle::Unreachable {
                path,
                errno: errno as i32,
            }),
        }
    }

    /// Removes leaves whose names say so. One that still has processes stays; its turn comes at the next start.
    fn sweep(&self, is_over: impl Fn(&str) -> bool) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(&is_over) {
                drop(fs::remove_dir(entry.path()));
            }
        }
    }
}

/// What of a [`Subtree`] can be told in a message; its descriptors go along, in the same order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    mechanism: Mechanism,
    controllers: Vec<Vec<Controller>>,
    prefix: String,
}

impl Subtree {
    /// Finds a place for leaves and makes it ready, or `None` where there is none.
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
        let (mechanism, directories) = match version2::acquire() {
            Ok(directory) => (Mechanism::Cgroup2, vec![directory]),
            Err(obstacle) => match version1::acquire() {
                Ok(directories) => (Mechanism::Cgroup1, directories),
                Err(other) => return Err(other.unwrap_or(obstacle)),
            },
        };
        for directory in &directories {
            directory.sweep(|name| owner_of(name).is_some_and(is_dead));
        }
        Ok(Self::new(mechanism, directories))
    }

    fn new(mechanism: Mechanism, directories: Vec<Directory>) -> Self {
        static LAUNCHERS: AtomicU32 = AtomicU32::new(0);
        let number = LAUNCHERS.fetch_add(1, Ordering::Relaxed);
        Self {
            mechanism,
            directories,
            prefix: format!("{RUN_PREFIX}{}.{number}.", std::process::id()),
        }
    }

    /// Tells what [`find`](Self::find) would find, without changing anything.
    pub(crate) fn examine() -> Result<Delegation, Obstacle> {
        let (mechanism, directories) = match version2::locate("self") {
            Ok(directory) => (Mechanism::Cgroup2, vec![directory]),
            Err(obstacle) => match version1::acquire() {
                Ok(directories) => (Mechanism::Cgroup1, directories),
                Err(other) => return Err(other.unwrap_or(obstacle)),
            },
        };
        let controllers: BTreeSet<Controller> = directories
            .iter()
            .flat_map(|directory| directory.controllers.iter().copied())
            .collect();
        let of_memory = directories
            .iter()
            .find(|directory| directory.controllers.contains(&Controller::Memory));
        let path = of_memory.or(directories.first());
        Ok(Delegation {
            mechanism,
            path: path
                .map(|directory| directory.path.clone())
                .unwrap_or_default(),
            controllers,
        })
    }

    /// Has systemd make a place around the process `launcher`, a child of this one, which it is moved to.
    pub(crate) fn from_systemd(launcher: libc::pid_t) -> Result<Self, NoScope> {
        let scope = systemd::scope(launcher)?;
        Ok(Self::new(Mechanism::Systemd, vec![scope]))
    }

    /// What a limit is held by that is held here.
    pub(crate) fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// What it is, to be told to the launcher with its [descriptors](Self::descriptors).
    pub(crate) fn shape(&self) -> Shape {
        let controllers = self.directories.iter();
        Shape {
            mechanism: self.mechanism,
            controllers: controllers
                .map(|directory| directory.controllers.clone())
                .collect(),
            prefix: self.prefix.clone(),
        }
    }

    /// Its directories' descriptors.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let directories = self.directories.iter();
        directories
            .map(|directory| directory.descriptor.as_fd())
            .collect()
    }

    /// Removes the leaves of a launcher that was killed before it could.
    pub(crate) fn clear(&self) {
        for directory in &self.directories {
            directory.sweep(|name| name.starts_with(&self.prefix));
        }
    }
}

/// What [`Subtree::examine`] finds where leaves can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delegation {
    /// What a limit would be held by.
    pub(crate) mechanism: Mechanism,
    /// The directory of the caller's cgroup; on version 1, that of its memory.
    pub(crate) path: PathBuf,
    /// The controllers that leaves would have.
    pub(crate) controllers: BTreeSet<Controller>,
}

impl Delegation {
    /// Whether a leaf here would hold `limit`.
    pub(crate) fn holds(&self, limit: LimitName) -> bool {
        Controller::of(limit).is_some_and(|controller| self.controllers.contains(&controller))
    }
}

/// Why no leaf can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// There is no cgroup v2 file system where it belongs.
    NotMounted,
    /// The caller's own cgroup cannot be looked at.
    Unreachable { path: PathBuf, errno: i32 },
    /// None of [`Controller::MAIN`] is offered to the caller's cgroup, nor is any on version 1.
    NothingOffered { path: PathBuf },
    /// A file of the caller's cgroup, or with `.` the directory itself, is not the caller's to write.
    NotWritable {
        path: PathBuf,
        file: &'static str,
        errno: i32,
    },
    /// The controllers cannot be given to children.
    NotEnabled { path: PathBuf, errno: i32 },
    /// The controllers are on version 1 hierarchies, in which the caller's cgroups are not its own.
    Version1 {
        /// In one of the hierarchies.
        path: PathBuf,
        controllers: Vec<Controller>,
        errno: i32,
    },
}

fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
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

fn is_dead(process: nix::unistd::Pid) -> bool {
    matches!(nix::sys::signal::kill(process, None), Err(Errno::ESRCH))
}

/// The launcher's side: makes leaves in a subtree that the caller found.
#[derive(Debug)]
pub(crate) struct Leaves {
    mechanism: Mechanism,
    directories: Vec<(Rc<OwnedFd>, Vec<Controller>)>,
    prefix: String,
}

impl Leaves {
    /// Leaves below the subtree of this shape.
    pub(crate) fn new(shape: Shape, descriptors: Vec<OwnedFd>) -> Self {
        Self {
            mechanism: shape.mechanism,
            directories: descriptors
                .into_iter()
                .map(Rc::new)
                .zip(shape.controllers)
                .collect(),
            prefix: shape.prefix,
        }
    }

    /// Makes the leaf of the execution `id`, or nothing where no limit that is asked for could be held by it. `disks` are
    /// those that the execution reaches, or `None` where it reaches something that no limit can be set on.
    pub(crate) fn create(
        &self,
        id: &str,
        limits: &Limits,
        disks: Option<&[Disk]>,
    ) -> io::Result<Option<Leaf>> {
        let asked: BTreeSet<Controller> = LimitName::ALL
            .iter()
            .filter(|&&limit| is_asked(limit, limits))
            .filter_map(|&limit| Controller::of(limit))
            .collect();
        let is_needed = |controllers: &[Controller]| {
            controllers
                .iter()
                .any(|controller| asked.contains(controller))
        };
        if !self
            .directories
            .iter()
            .any(|(_, controllers)| is_needed(controllers))
        {
            return Ok(None);
        }
        let mut leaf = Leaf {
            mechanism: self.mechanism,
            name: format!("{}{id}", self.prefix),
            directories: Vec::new(),
            held: BTreeSet::new(),
            ends_together: false,
        };
        for (parent, controllers) in &self.directories {
            if is_needed(controllers) || controllers.contains(&Controller::Cpuacct) {
                leaf.make(parent, controllers)?;
            }
        }
        leaf.hold(limits, disks);
        Ok((!leaf.held.is_empty()).then_some(leaf))
    }
}

/// The cgroup of one execution, or its cgroups on version 1. Dropping it ends what is in it and removes it.
#[derive(Debug)]
pub(crate) struct Leaf {
    mechanism: Mechanism,
    name: String,
    directories: Vec<LeafDirectory>,
    held: BTreeSet<LimitName>,
    /// Whether the kernel ends all processes where it ends one for lack of memory.
    ends_together: bool,
}

#[derive(Debug)]
struct LeafDirectory {
    parent: Rc<OwnedFd>,
    descriptor: OwnedFd,
    controllers: Vec<Controller>,
}

/// A value for a file of a leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    limit: LimitName,
    file: &'static str,
    value: String,
}

impl Setting {
    fn new(limit: LimitName, file: &'static str, value: &impl ToString) -> Self {
        Self {
            limit,
            file,
            value: value.to_string(),
        }
    }

    /// Whether the file says, after `value` was written to it, that at most this is allowed. The kernel rounds bytes down
    /// to pages, and writes lists and settings of devices in a form of its own.
    fn is_kept(&self, text: &str) -> bool {
        let text = text.trim();
        match self.limit {
            LimitName::Cpuset => text.parse() == self.value.parse::<Cpuset>(),
            LimitName::Io => {
                let mut words = self.value.split(' ');
                let device = words.next().unwrap_or_default();
                let words: Vec<&str> = words.collect();
                text.lines().any(|line| {
                    let mut found = line.split(' ');
                    found.next() == Some(device)
                        && words
                            .iter()
                            .all(|word| line.split(' ').any(|found| found == *word))
                })
            }
            _ => match (text.parse::<u64>(), self.value.parse::<u64>()) {
                (Ok(found), Ok(value)) => found <= value,
                _ => text == self.value,
            },
        }
    }
}

/// What the kernel counted in a leaf. A counter that this kernel or subtree does not have is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Bytes at the highest (`memory.peak`, Linux 5.19; on version 1 `memory.max_usage_in_bytes`).
    pub(crate) memory_peak: Option<(u64, PeakSource)>,
    /// Processes killed because the leaf's own memory limit was reached.
    pub(crate) memory_kills: u64,
    /// Every line of `memory.events`; on version 1 `oom_kill` of `memory.oom_control`.
    pub(crate) memory_events: BTreeMap<String, u64>,
    /// Forks and threads refused.
    pub(crate) pids_refused: Option<u64>,
    /// The most processes and threads (`pids.peak`, Linux 6.1).
    pub(crate) pids_peak: Option<u64>,
    /// Microseconds of CPU time in user mode.
    pub(crate) user_micros: Option<u64>,
    /// Microseconds of CPU time in the kernel.
    pub(crate) system_micros: Option<u64>,
    /// Microseconds that processes were kept from running by the limit on processors.
    pub(crate) throttled_micros: Option<u64>,
}

impl Counters {
    /// CPU time of all processes that were ever in it.
    pub(crate) fn cpu_time(&self) -> Option<std::time::Duration> {
        let micros = self.user_micros?.saturating_add(self.system_micros?);
        Some(std::time::Duration::from_micros(micros))
    }
}

impl Leaf {
    /// Makes its directory below `parent`.
    fn make(&mut self, parent: &Rc<OwnedFd>, controllers: &[Controller]) -> io::Result<()> {
        let name = self.name.as_str();
        nix::sys::stat::mkdirat(parent, name, Mode::from_bits_retain(0o755))?;
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let descriptor = openat(parent, name, flags, Mode::empty()).inspect_err(|_| {
            let _ = unlinkat(parent, name, UnlinkatFlags::RemoveDir);
        })?;
        self.directories.push(LeafDirectory {
            parent: Rc::clone(parent),
            descriptor,
            controllers: controllers.to_vec(),
        });
        if self.mechanism == Mechanism::Cgroup1 {
            let leaf = self.directories[self.directories.len() - 1]
                .descriptor
                .as_fd();
            version1::prepare(parent.as_fd(), leaf, controllers)?;
        }
        Ok(())
    }

    /// Sets the limits, and notes those that the kernel has taken.
    fn hold(&mut self, limits: &Limits, disks: Option<&[Disk]>) {
        let settings = match self.mechanism {
            Mechanism::Cgroup1 => version1::settings(limits),
            _ => version2::settings(limits, disks),
        };
        let mut refused = BTreeSet::new();
        for setting in settings {
            let Some(controller) = Controller::of(setting.limit) else {
                continue;
            };
            match self.set(controller, &setting) {
                Ok(()) => {
                    self.held.insert(setting.limit);
                }
                Err(error) => {
                    tracing::debug!(?setting, %error, "the cgroup does not take it");
                    refused.insert(setting.limit);
                }
            }
        }
        self.held.retain(|limit| !refused.contains(limit));
        self.ends_together = self.held.contains(&LimitName::Memory)
            && self.mechanism != Mechanism::Cgroup1
            && version2::end_together(self.of(Controller::Memory)).is_ok();
    }

    fn set(&self, controller: Controller, setting: &Setting) -> io::Result<()> {
        let directory = self.of(controller);
        write_at(directory, setting.file, &setting.value)?;
        let text = read_at(directory, setting.file)?;
        if setting.is_kept(&text) {
            Ok(())
        } else {
            Err(io::Error::other(format!("reads {:?}", text.trim())))
        }
    }

    /// The directory that has `controller`. Where none has, that is told by the files that it lacks.
    fn of(&self, controller: Controller) -> BorrowedFd<'_> {
        self.directories
            .iter()
            .find(|directory| directory.controllers.contains(&controller))
            .unwrap_or(&self.directories[0])
            .descriptor
            .as_fd()
    }

    /// By what it holds `limit`, where it does.
    pub(crate) fn holds(&self, limit: LimitName) -> Option<Mechanism> {
        self.held.contains(&limit).then_some(self.mechanism)
    }

    /// Sends the way in to the process behind `socket`.
    pub(crate) fn send_entrance(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        if self.mechanism == Mechanism::Cgroup1 {
            let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            let files = self
                .directories
                .iter()
                .map(|directory| {
                    openat(&directory.descriptor, "cgroup.procs", flags, Mode::empty())
                })
                .collect::<nix::Result<Vec<_>>>()?;
            let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
            channel::send(socket, &EntranceKind::ByWriting, &files)
        } else {
            let directory = self.of(Controller::Memory);
            channel::send(socket, &EntranceKind::ByBirth, &[directory])
        }
    }

    /// Reads the counters.
    pub(crate) fn counters(&self) -> Counters {
        let read = |controller, file: &str| read_at(self.of(controller), file).unwrap_or_default();
        Counters {
            pids_refused: self.pids_refused(),
            pids_peak: read(Controller::Pids, "pids.peak").trim().parse().ok(),
            ..match self.mechanism {
                Mechanism::Cgroup1 => version1::counters(read),
                _ => version2::counters(|file| read(Controller::Memory, file)),
            }
        }
    }

    /// Whether CPU time is counted here.
    pub(crate) fn counts_cpu_time(&self) -> bool {
        self.counters().user_micros.is_some()
    }

    /// How often a fork or thread has been refused so far.
    pub(crate) fn pids_refused(&self) -> Option<u64> {
        let events = read_at(self.of(Controller::Pids), "pids.events").ok()?;
        fields(&events).remove("max")
    }

    /// Whether the kernel has ended a process for the leaf's memory limit and left others: then it is to be ended as a
    /// whole, as version 2 does it, for half a program is of no use to anybody.
    pub(crate) fn is_half_dead(&self) -> bool {
        !self.ends_together
            && self.held.contains(&LimitName::Memory)
            && self.counters().memory_kills > 0
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        for directory in &self.directories {
            // On version 1 and before Linux 5.14 there is no cgroup.kill; the pid namespace has ended the processes then.
            drop(write_at(directory.descriptor.as_fd(), "cgroup.kill", "1"));
        }
        for directory in &self.directories {
            // Ended processes leave their cgroup a moment after they were waited for.
            for _ in 0..200 {
                let name = self.name.as_str();
                match unlinkat(&directory.parent, name, UnlinkatFlags::RemoveDir) {
                    Err(Errno::EBUSY) => {
                        let pause = nix::sys::time::TimeSpec::from_duration(
                            std::time::Duration::from_millis(5),
                        );
                        let _ = nix::poll::ppoll(&mut [], Some(pause), None);
                    }
                    _ => break,
                }
            }
        }
    }
}

/// How a process comes into a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum EntranceKind {
    /// There is no leaf.
    Nowhere,
    /// By being born there: the descriptor is the leaf's directory (version 2).
    ByBirth,
    /// By writing itself to each of the descriptors (version 1), which waits for a grace period of the kernel's.
    ByWriting,
}

/// The way into a leaf, for the process that becomes the program.
///
/// It lies in the socket of the container's first process until the moment of the fork, so that there is no descriptor
/// of a cgroup in any process that looks at paths of the image's: from a directory, `..` would lead to the host's root
/// (CVE-2024-21626).
#[derive(Debug)]
pub(crate) struct Entrance {
    kind: EntranceKind,
    descriptors: Vec<OwnedFd>,
}

impl Entrance {
    /// Says to the process behind `socket` that there is no leaf.
    pub(crate) fn send_none(socket: BorrowedFd<'_>) -> io::Result<()> {
        channel::send(socket, &EntranceKind::Nowhere, &[])
    }

    /// Takes it from `socket`, whose first message it is.
    pub(crate) fn receive(socket: BorrowedFd<'_>) -> io::Result<Self> {
        match channel::receive(socket)? {
            Some((kind, descriptors)) => Ok(Self { kind, descriptors }),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The directory to be born in, for [`fork_into`](crate::sys::fork_into).
    pub(crate) fn birthplace(&self) -> Option<BorrowedFd<'_>> {
        let first = self.descriptors.first().map(AsFd::as_fd);
        first.filter(|_| self.kind == EntranceKind::ByBirth)
    }

    /// Enters, in the new process, where being born has not done it.
    pub(crate) fn enter(self) -> Result<(), Failure> {
        if self.kind == EntranceKind::ByWriting {
            for file in &self.descriptors {
                nix::unistd::write(file, b"0").map_err(|error| {
                    Failure::new("hold a limit", "write \"0\" to cgroup.procs", error)
                })?;
            }
        }
        Ok(())
    }
}

/// Whether `limit` is asked for and is one that cgroups can hold.
pub(crate) fn is_asked_of_one(limit: LimitName, limits: &Limits) -> bool {
    is_asked(limit, limits) && Controller::of(limit).is_some()
}

/// Whether this process belongs to a job of SLURM's.
pub(crate) fn is_slurm_job() -> bool {
    fs::read_to_string("/proc/self/cgroup").is_ok_and(|membership| membership.contains("slurm"))
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
        LimitName::Cpuset => Mechanism::Affinity,
        LimitName::Nofile | LimitName::Fsize => Mechanism::Rlimit,
        LimitName::Scratch | LimitName::ScratchInodes | LimitName::Shm => Mechanism::Tmpfs,
        LimitName::WallTime => Mechanism::Timer,
        LimitName::Swap | LimitName::Io => Mechanism::None,
        LimitName::Output => Mechanism::Relay,
    }
}

/// The quota of CPU time per [`CPU_PERIOD`] for a number of processors. The kernel takes none below 1 ms.
fn cpu_quota(cpus: f64) -> u64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the period is 100,000, and what is too large saturates"
    )]
    let quota = (cpus * CPU_PERIOD as f64).round() as u64;
    quota.max(1000)
}

fn read_at(directory: BorrowedFd<'_>, file: &str) -> io::Result<String> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = openat(directory, file, flags, Mode::empty())?;
    io::read_to_string(fs::File::from(file))
}

fn write_at(directory: BorrowedFd<'_>, file: &str, value: &str) -> io::Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let file = openat(directory, file, flags, Mode::empty())?;
    nix::unistd::write(file, value.as_bytes())?;
    Ok(())
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

/// The contents of a file of this process's own in `/proc`.
fn read_own(path: &str) -> Result<String, Obstacle> {
    fs::read_to_string(path).map_err(|error| Obstacle::Unreachable {
        path: Path::new(path).to_owned(),
        errno: errno_of(&error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_become_fields() {
        let events = fields("low 0\noom 3\noom_kill 2\noom_group_kill 1\n");
        assert_eq!(events.get("oom_kill"), Some(&2));
        assert_eq!(events.get("oom_kil"), None);
        assert_eq!(events.len(), 4);
    }

    #[test]
    fn controllers_are_whole_words() {
        let all = [Controller::Cpu, Controller::Cpuset, Controller::Memory];
        assert_eq!(
            named("cpuset memory\n", all),
            [Controller::Cpuset, Controller::Memory]
        );
        assert_eq!(named("rw,cpu,cpuacct", all), [Controller::Cpu]);
    }

    #[test]
    fn processors_become_a_quota() {
        assert_eq!(cpu_quota(0.5), 50_000);
        assert_eq!(cpu_quota(2.0), 200_000);
        assert_eq!(cpu_quota(0.000_1), 1000);
    }

    #[test]
    fn a_setting_is_kept_where_no_more_is_allowed_than_was_written() {
        use LimitName::{Cpus, Cpuset, Io, Memory, Pids};
        let table = [
            (Memory, "5000", "4096\n", true),
            (Memory, "4096", "9223372036854771712\n", false),
            (Memory, "4096", "max\n", false),
            (Pids, "20", "20\n", true),
            (Pids, "20", "max\n", false),
            (Cpus, "50000 100000", "50000 100000\n", true),
            (Cpus, "50000 100000", "max 100000\n", false),
            (Cpus, "50000", "-1\n", false),
            (Cpuset, "0,1,3", "0-1,3\n", true),
            (Cpuset, "0,1", "0\n", false),
            (Cpuset, "0,1", "\n", false),
            (
                Io,
                "8:0 rbps=10",
                "8:16 rbps=10\n8:0 rbps=10 wbps=max riops=max wiops=max\n",
                true,
            ),
            (
                Io,
                "8:0 rbps=10 wbps=5",
                "8:0 rbps=10 wbps=max riops=max wiops=max\n",
                false,
            ),
            (Io, "8:0 rbps=10", "\n", false),
        ];
        for (limit, value, text, kept) in table {
            let setting = Setting::new(limit, "file", &value);
            assert_eq!(setting.is_kept(text), kept, "{setting:?}: {text:?}");
        }
    }

    #[test]
    fn only_names_of_ours_have_an_owner() {
        assert_eq!(
            owner_of("sbxrt-run.17.0.abc"),
            Some(nix::unistd::Pid::from_raw(17))
        );
        assert_eq!(owner_of("sbxrt-run.0.abc"), None);
        assert_eq!(owner_of("sbxrt.caller"), None);
        assert_eq!(owner_of("session.scope"), None);
    }
}
