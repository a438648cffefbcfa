//! What a caller asks for: the serialised half of the conversation that goes to the launcher.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cpuset::Cpuset;
use crate::files::InputFile;
use crate::outputs::Outputs;
use crate::seccomp::Policy;

/// One execution, complete: nothing else of the caller's (environment, working directory, descriptors) gets in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The name of this execution: unique among the running ones, `[A-Za-z0-9][A-Za-z0-9_.-]{0,63}`.
    pub id: String,
    /// The file system that the program sees as `/`.
    pub root: Root,
    /// Whether that file system is read-only. `/tmp` stays writable, within [`Limits::scratch_bytes`].
    pub read_only: bool,
    /// A directory of the caller's, absolute, that receives what the program changes in the root file system, in the
    /// place of a scratch space in memory. `None` is the scratch space, which is lost.
    ///
    /// Afterwards it holds what changed and nothing else, in the format of an overlayfs upper directory with `userxattr`:
    /// files and directories as they are now, a character device 0:0 for what was deleted, and the attribute
    /// `user.overlay.opaque` on a directory that took the place of another. Other attributes whose names begin with
    /// `user.overlay.` are the kernel's notes. Mount points are made elsewhere; only a working directory that is missing is
    /// made here. Its file system must be a local one with extended attributes (ext4, xfs, btrfs, from Linux 6.6 tmpfs; not
    /// NFS or Lustre), and a directory `.sbxrt-work-ID` stands beside it during the run.
    ///
    /// Needs [`Root::Layers`] and a root file system that is not `read_only`. No mechanism holds
    /// [`Limits::scratch_bytes`] on somebody's disk, and the report says so ([`Mechanism::None`]).
    pub upper: Option<PathBuf>,
    /// Whether changes of owners and identities, which one id cannot make, are to report success without doing anything,
    /// so that package managers work. See [`root_emulation_program`](crate::seccomp::root_emulation_program).
    ///
    /// Root inside then may also read and write what its own files' modes forbid (`CAP_DAC_OVERRIDE`, as root is used to)
    /// and `chroot`; and it finds an `APT_CONFIG` that tells apt not to change its user, unless it has one.
    pub emulate_root: bool,
    /// The system calls that the program may make.
    pub seccomp: Policy,
    /// What is mounted over the root file system, in this order.
    pub mounts: Vec<Mount>,
    /// The program.
    pub process: Process,
    /// The host name inside. At most 64 bytes (`HOST_NAME_MAX`).
    pub hostname: String,
    /// Which network the program sees.
    pub network: Network,
    /// Upper bounds on what the program may use.
    pub limits: Limits,
    /// Files that the program finds when it starts.
    pub files: Vec<InputFile>,
    /// Files that are collected when it is over.
    pub outputs: Outputs,
    /// Limits that must be held by a certain mechanism, or else the run is refused.
    pub require: BTreeMap<LimitName, Requirement>,
}

/// What a container that was prepared is to run: the part of a [`Request`] that may be known late. The rest is settled when
/// the container is made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// As [`Process::args`].
    pub args: Vec<String>,
    /// As [`Process::env`].
    pub env: Vec<String>,
    /// As [`Request::files`].
    pub files: Vec<InputFile>,
    /// As [`Request::outputs`].
    pub outputs: Outputs,
}

/// The root file system of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Root {
    /// Overlay lower directories, bottom first. None of them is ever written to.
    Layers(Vec<PathBuf>),
    /// The host's own `/usr` and the few files of `/etc` that programs need, read-only.
    Host,
}

/// A mount over the root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where it appears inside: an absolute path. Symbolic links in it resolve inside the container.
    pub destination: PathBuf,
    /// What appears there.
    pub source: MountSource,
    /// Whether the program may only read it.
    pub read_only: bool,
}

impl Mount {
    /// A file or directory of the host that the program may only read.
    pub fn read_only(source: impl Into<PathBuf>, destination: impl Into<PathBuf>) -> Self {
        Self {
            destination: destination.into(),
            source: MountSource::Bind(source.into()),
            read_only: true,
        }
    }

    /// A file or directory of the host that the program may change.
    pub fn read_write(source: impl Into<PathBuf>, destination: impl Into<PathBuf>) -> Self {
        Self {
            destination: destination.into(),
            source: MountSource::Bind(source.into()),
            read_only: false,
        }
    }

    /// An empty file system in memory with room for `bytes`.
    pub fn tmpfs(destination: impl Into<PathBuf>, bytes: u64) -> Self {
        Self {
            destination: destination.into(),
            source: MountSource::Tmpfs(bytes),
            read_only: false,
        }
    }
}

/// What a [`Mount`] shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    /// A file or directory of the host, with what is mounted below it. Links on the path are followed, wherever they lead.
    Bind(PathBuf),
    /// A file or directory below a directory of the host that somebody else may write to: links on `path` that lead out of
    /// `directory` make the run fail, also where they appear at the last moment.
    Beneath {
        /// The directory. Links on its own path are followed.
        directory: PathBuf,
        /// The path from there, relative.
        path: PathBuf,
    },
    /// An empty file system in memory with room for this many bytes.
    Tmpfs(u64),
}

/// The program of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The program and its arguments. A first word without `/` is looked for in the `PATH` of `env`.
    pub args: Vec<String>,
    /// The environment, complete, as `NAME=value`.
    pub env: Vec<String>,
    /// The working directory, absolute. It is made where it does not exist.
    pub cwd: PathBuf,
    /// Who the program is inside, as in an image's `USER`: `user`, `uid`, `user:group`, `uid:gid`. Empty is root.
    pub user: String,
    /// The size of the pseudo-terminal that takes the place of the three standard streams, if there is one.
    pub terminal: Option<WindowSize>,
    /// Resource limits by number (`RLIMIT_*`), soft and hard.
    pub rlimits: Vec<Rlimit>,
}

/// The size of a terminal in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters per line.
    pub columns: u16,
}

/// A resource limit of the kernel (`setrlimit`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Which one.
    pub resource: RlimitResource,
    /// The limit that the program starts with.
    pub soft: u64,
    /// How far the program may raise it.
    pub hard: u64,
}

macro_rules! named {
    ($(#[$meta:meta])* $visibility:vis enum $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        $visibility enum $name { $($(#[$variant_meta])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name that people and programs read.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownName;

            fn from_str(text: &str) -> Result<Self, UnknownName> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(UnknownName { given: text.to_owned(), known: [$($text),+].join(", ") }),
                }
            }
        }
    };
}

/// A word that is not in the list of those that are known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown name {given:?}; known are {known}")]
pub struct UnknownName {
    given: String,
    known: String,
}

named! {
    /// The resource limits that `--ulimit` sets, by Docker's names.
    pub enum RlimitResource {
        /// Seconds of CPU time per process.
        Cpu = "cpu",
        /// Bytes of a file.
        Fsize = "fsize",
        /// Bytes of a process's data segment and private writable mappings.
        Data = "data",
        /// Bytes of the stack.
        Stack = "stack",
        /// Bytes of a core dump.
        Core = "core",
        /// Bytes of resident memory: accepted for Docker's sake, without effect since Linux 2.4.30.
        Rss = "rss",
        /// Processes and threads of the user.
        Nproc = "nproc",
        /// Open files of a process.
        Nofile = "nofile",
        /// Bytes locked in memory.
        Memlock = "memlock",
        /// Bytes of address space.
        As = "as",
        /// File locks.
        Locks = "locks",
        /// Signals that may be queued.
        Sigpending = "sigpending",
        /// Bytes in POSIX message queues.
        Msgqueue = "msgqueue",
        /// Ceiling of the nice value.
        Nice = "nice",
        /// Ceiling of the real-time priority.
        Rtprio = "rtprio",
        /// Microseconds of real-time CPU time without a blocking call.
        Rttime = "rttime",
    }
}

impl RlimitResource {
    /// The kernel's number (`RLIMIT_*`).
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Cpu => libc::RLIMIT_CPU,
            Self::Fsize => libc::RLIMIT_FSIZE,
            Self::Data => libc::RLIMIT_DATA,
            Self::Stack => libc::RLIMIT_STACK,
            Self::Core => libc::RLIMIT_CORE,
            Self::Rss => libc::RLIMIT_RSS,
            Self::Nproc => libc::RLIMIT_NPROC,
            Self::Nofile => libc::RLIMIT_NOFILE,
            Self::Memlock => libc::RLIMIT_MEMLOCK,
            Self::As => libc::RLIMIT_AS,
            Self::Locks => libc::RLIMIT_LOCKS,
            Self::Sigpending => libc::RLIMIT_SIGPENDING,
            Self::Msgqueue => libc::RLIMIT_MSGQUEUE,
            Self::Nice => libc::RLIMIT_NICE,
            Self::Rtprio => libc::RLIMIT_RTPRIO,
            Self::Rttime => libc::RLIMIT_RTTIME,
        }
    }
}

named! {
    /// Which network a program sees.
    pub enum Network {
        /// Its own, with a loopback interface and nothing else.
        None = "none",
        /// The caller's: every address that the caller reaches, and its abstract sockets.
        Host = "host",
    }
}

named! {
    /// What can be limited.
    pub enum LimitName {
        /// Bytes of memory, all processes together.
        Memory = "memory",
        /// Bytes of swap, all processes together.
        Swap = "swap",
        /// Processors.
        Cpus = "cpus",
        /// Which processors.
        Cpuset = "cpuset",
        /// Processes and threads.
        Pids = "pids",
        /// Bytes read from and written to disks, per second.
        Io = "io",
        /// Open files of each process.
        Nofile = "nofile",
        /// Bytes of each file that is written to.
        Fsize = "fsize",
        /// Bytes written to the root file system, `/tmp` and the like.
        Scratch = "scratch",
        /// Files and directories in the same place.
        ScratchInodes = "scratch_inodes",
        /// Bytes in `/dev/shm`, and again as many of System V shared memory.
        Shm = "shm",
        /// Time from start to end.
        WallTime = "wall_time",
        /// CPU time, all processes together.
        CpuTime = "cpu_time",
        /// Bytes of standard output and of standard error that are kept.
        Output = "output",
    }
}

named! {
    /// How a limit is held.
    pub enum Mechanism {
        /// A cgroup v2 of this execution's own: the kernel holds it, for all processes together.
        Cgroup2 = "cgroup2",
        /// The same, below a scope that systemd's user manager has delegated.
        Systemd = "systemd",
        /// Directories of this execution's own in the hierarchies of cgroup v1.
        Cgroup1 = "cgroup1",
        /// A resource limit of the kernel, set in the container's own user namespace.
        Rlimit = "rlimit",
        /// The set of processors that the processes may run on.
        Affinity = "affinity",
        /// The size of the file system.
        Tmpfs = "tmpfs",
        /// sbxrt looks at the processes every few milliseconds and ends or stops them: the limit may be exceeded for
        /// that long.
        Watchdog = "watchdog",
        /// A timer of sbxrt's, which ends every process of the container.
        Timer = "timer",
        /// sbxrt reads everything and keeps only this much.
        Relay = "relay",
        /// Nothing holds it.
        None = "none",
    }
}

/// What a caller insists on for a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Requirement {
    /// A cgroup, whoever made it.
    Cgroup,
    /// Exactly this mechanism.
    Exactly(Mechanism),
}

impl Requirement {
    /// Whether `mechanism` satisfies it.
    pub fn is_met_by(self, mechanism: Mechanism) -> bool {
        match self {
            Self::Cgroup => matches!(
                mechanism,
                Mechanism::Cgroup2 | Mechanism::Systemd | Mechanism::Cgroup1
            ),
            Self::Exactly(wanted) => wanted == mechanism,
        }
    }
}

impl FromStr for Requirement {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        match text {
            "cgroup" => Ok(Self::Cgroup),
            other => other.parse().map(Self::Exactly),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup => f.write_str("cgroup"),
            Self::Exactly(mechanism) => mechanism.fmt(f),
        }
    }
}

/// Upper bounds on what one execution may use. `None` is no bound.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory, all processes together.
    pub memory: Option<u64>,
    /// Bytes of swap beside that, all processes together.
    pub swap: Option<u64>,
    /// Processors, in fractions: 0.5 is half of one.
    pub cpus: Option<f64>,
    /// Which processors. One that the caller may not use itself, or that does not exist, is an error.
    pub cpuset: Option<Cpuset>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// Bytes per second that may be read from each disk behind the root file system, its `upper` and the mounts.
    pub io_read: Option<u64>,
    /// As many that may be written.
    pub io_write: Option<u64>,
    /// Open files of each process.
    pub nofile: Option<u64>,
    /// Bytes of each file that is written to. Writing on is refused with `EFBIG`, and with `SIGXFSZ`.
    pub fsize: Option<u64>,
    /// Time from start to end.
    pub wall_time: Option<Duration>,
    /// CPU time of all processes together, those that have ended included. sbxrt looks at it, every 50 ms at first and more
    /// often towards the end. Where no cgroup counts it, the time of a process that nobody waits for is known only as far
    /// as it was seen in one of those looks.
    pub cpu_time: Option<Duration>,
    /// Bytes that may be written to the root file system and `/tmp` together. `None` is half of the host's memory.
    pub scratch_bytes: Option<u64>,
    /// How many files and directories may be there; 0 is no bound. `None` is one for each 4 KiB of `scratch_bytes`, and at
    /// least 1024: files without contents take memory too. See [`scratch_inode_bound`](Self::scratch_inode_bound).
    pub scratch_inodes: Option<u64>,
    /// Bytes in `/dev/shm`, and again as many of System V shared memory. `None` is half of the host's memory.
    pub shm_bytes: Option<u64>,
}

impl Default for Limits {
    /// 512 MiB of memory and no swap, 1 processor, 128 processes and threads, 1024 open files for each, 64 MiB of scratch
    /// space (with 16384 files) and of shared memory, no limit on time or on the size of one file.
    fn default() -> Self {
        Self {
            memory: Some(512 << 20),
            swap: Some(0),
            cpus: Some(1.0),
            cpuset: None,
            pids: Some(128),
            io_read: None,
            io_write: None,
            nofile: Some(1024),
            fsize: None,
            wall_time: None,
            cpu_time: None,
            scratch_bytes: Some(64 << 20),
            scratch_inodes: None,
            shm_bytes: Some(64 << 20),
        }
    }
}

impl Limits {
    /// How many files and directories the scratch space holds; `None` is no bound.
    pub fn scratch_inode_bound(&self) -> Option<u64> {
        match self.scratch_inodes {
            None => self.scratch_bytes.map(inodes_for),
            Some(0) => None,
            bound => bound,
        }
    }
}

/// How many files a file system in memory with room for `bytes` holds, unless somebody says otherwise: about one per 4
/// KiB, as ext4 plans, and never fewer than 1024.
pub(crate) fn inodes_for(bytes: u64) -> u64 {
    (bytes / 4096).max(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_to_themselves() {
        for &mechanism in Mechanism::ALL {
            assert_eq!(mechanism.as_str().parse(), Ok(mechanism));
        }
        for &limit in LimitName::ALL {
            assert_eq!(limit.as_str().parse(), Ok(limit));
        }
        for &resource in RlimitResource::ALL {
            assert_eq!(resource.as_str().parse(), Ok(resource));
        }
    }

    #[test]
    fn files_are_bounded_with_the_bytes_unless_somebody_says_otherwise() {
        let table = [
            (Some(64 << 20), None, Some(16384)),
            (Some(4096), None, Some(1024)),
            (Some(4096), Some(5), Some(5)),
            (Some(4096), Some(0), None),
            (None, None, None),
            (None, Some(5), Some(5)),
        ];
        for (scratch_bytes, scratch_inodes, expected) in table {
            let limits = Limits {
                scratch_bytes,
                scratch_inodes,
                ..Limits::default()
            };
            assert_eq!(limits.scratch_inode_bound(), expected, "{limits:?}");
        }
    }

    #[test]
    fn a_required_cgroup_is_not_met_by_a_watchdog() {
        assert!(Requirement::Cgroup.is_met_by(Mechanism::Cgroup2));
        assert!(!Requirement::Cgroup.is_met_by(Mechanism::Watchdog));
        assert!(
            "rlimit"
                .parse::<Requirement>()
                .unwrap()
                .is_met_by(Mechanism::Rlimit)
        );
        assert!("docker".parse::<Requirement>().is_err());
    }
}
