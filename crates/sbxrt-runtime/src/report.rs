//! What a caller gets back: how an execution ended, what it used, and how its limits were held.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::outputs::OutputFile;
use crate::request::{LimitName, Mechanism};
use crate::seccomp::PolicyKind;

/// How an execution ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Termination {
    /// The program ended by itself with this status.
    Exited {
        /// 0 to 255.
        code: i32,
    },
    /// A signal ended the program, sent by itself, by one of its own processes, by the kernel or by the caller.
    Signaled {
        /// The signal's number.
        signal: i32,
    },
    /// The time limit ended it.
    Timeout,
    /// The memory limit ended it.
    Oom,
    /// The limit on processes ended it, because it would not stop asking for more (1000 refusals) or the watchdog found too
    /// many; or it failed after a fork or thread was refused, or its container had been full, and other processes still
    /// filled at least half of it.
    Pids,
    /// It wrote more than its limit on output allows, where that is to end it.
    Output,
    /// It failed, and left a file system that it may write to full. Only what is seen at its end is known: a program that
    /// fills its scratch space, removes the file and fails has [`Exited`](Self::Exited).
    Disk,
    /// The system call filter ended it.
    Seccomp {
        /// The name of the system call, or its number where it has none.
        syscall: String,
        /// What it was called as: `x86_64`, `i386`, `x32`, `aarch64`, `arm`.
        architecture: String,
    },
    /// The caller ended it.
    Cancelled,
    /// The sandbox was ready but the program could not be started.
    StartFailed {
        /// The kernel's error number.
        errno: i32,
        /// What was looked for or tried, and why it failed.
        reason: String,
    },
}

/// What the end of an execution is inferred from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The limit that ended the program, or kept it from going on.
    pub limit: Option<LimitName>,
    /// What held that limit.
    pub mechanism: Option<Mechanism>,
    /// How the program itself ended (`waitpid`); `None` where nobody saw it, since everything was ended at once.
    pub wait_status: Option<i32>,
    /// Who sent the signal that ended the program, where that is known.
    pub sender: Option<Sender>,
    /// `memory.events` of the execution's cgroup; on version 1 `oom_kill` of `memory.oom_control`. Empty where it
    /// has none.
    pub memory_events: BTreeMap<String, u64>,
    /// Forks and threads that were refused, where the kernel counts them.
    pub pids_refused: Option<u64>,
    /// For how long the limit on processors has kept processes from running, those of several processors added up: with
    /// much of it a program was slow because of its limit. `None` where nobody stops the clock (affinity, or no limit).
    pub throttled: Option<Duration>,
    /// The file systems in memory that were full when the program ended.
    pub full: Vec<Space>,
}

/// Who sent a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sender {
    /// The caller asked for it ([`Run::signal`](crate::Run::signal)), before the program ended by it.
    Caller,
    /// The kernel, to hold a limit.
    Kernel,
    /// sbxrt, to hold a limit or to end what was cancelled.
    Sbxrt,
}

/// How full a file system is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Where it is mounted inside. `/` and `/tmp` are one.
    pub path: PathBuf,
    /// The limit that its size holds.
    pub limit: LimitName,
    /// How many bytes there is room for.
    pub bytes: u64,
    /// How many of them are free.
    pub bytes_free: u64,
    /// How many files there is room for; 0 where they are not counted.
    pub inodes: u64,
    /// How many of them are free.
    pub inodes_free: u64,
}

impl Space {
    /// Whether there is no room to speak of, for bytes or for files.
    pub(crate) fn is_full(&self) -> bool {
        // Less than what programs write at once: the last write that fits in part leaves nothing, one that fails as a
        // whole leaves this. And a new file may need a second one for a moment.
        let few = (self.bytes / 64).min(64 << 10);
        self.bytes_free < few || self.lacks_inodes()
    }

    /// Whether there is no room for another file.
    pub(crate) fn lacks_inodes(&self) -> bool {
        self.inodes > 0 && self.inodes_free < 2
    }
}

/// The layers of a sandbox that are not the same everywhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    /// The system call filter.
    pub seccomp: PolicyKind,
    /// The kernel's version of Landlock, or `None` where it has none that is of use (Linux before 5.19, or not enabled),
    /// or where the program was never started.
    pub landlock: Option<u32>,
}

/// What an execution used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// From the start of the program to its end.
    pub wall_time: Duration,
    /// CPU time of all processes in user mode.
    pub user_time: Duration,
    /// CPU time of all processes in the kernel.
    pub system_time: Duration,
    /// The most memory in use at once, in bytes.
    pub memory_peak: u64,
    /// How `memory_peak` was measured.
    pub memory_peak_source: PeakSource,
    /// The most processes and threads seen at once, where that was measured.
    pub pids_peak: Option<u64>,
}

/// How a memory peak was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeakSource {
    /// `memory.peak` of the execution's own cgroup: exact, all processes together.
    Cgroup2,
    /// `memory.max_usage_in_bytes` of the execution's own cgroup of version 1: as exact.
    Cgroup1,
    /// The most that the watchdog saw of all processes together, what they share counted once.
    Watchdog,
    /// The largest single process (`ru_maxrss`), at least what sbxrt's own start-up code uses.
    #[default]
    LargestProcess,
}

/// How long each phase took.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// From the request's arrival to a prepared root file system.
    pub prepare: Duration,
    /// libcontainer's create: namespaces, mounts, devices.
    pub create: Duration,
    /// From create to the program's first instruction.
    pub start: Duration,
    /// From the end of the program to the end of the last process.
    pub teardown: Duration,
    /// From there until the last output was collected.
    pub collect: Duration,
}

/// The whole account of one execution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How it ended.
    pub termination: Termination,
    /// What that is inferred from.
    pub evidence: Evidence,
    /// What it used.
    pub usage: Usage,
    /// How each limit was held. A limit that was not asked for is not in it.
    pub enforcement: BTreeMap<LimitName, Mechanism>,
    /// Limits that were reached, whether or not they ended the program.
    pub limits_hit: Vec<LimitName>,
    /// Whether root was emulated ([`Request::emulate_root`](crate::Request::emulate_root)): then a success of `chown` and
    /// the like means nothing.
    pub root_emulated: bool,
    /// What was found where the request asked for outputs, in the order of the request and of the names' bytes.
    #[serde(skip)]
    pub outputs: Vec<OutputFile>,
    /// What it was kept in by, besides namespaces, mounts and the lack of capabilities.
    pub isolation: Isolation,
    /// How long each phase took.
    pub timings: Timings,
    /// The processes, by their pids as the caller sees them, that were ended and are still there 2 s later, for the kernel
    /// makes them wait for something that does not answer: a frozen file system, a dead FUSE or network server. They go by
    /// themselves when it does, their cgroup with them or at a later start. At most 253; none, but for that.
    pub leaked: Vec<i32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_space_is_full_where_nothing_to_speak_of_fits_in() {
        let table = [
            (64 << 20, 0, 0, 0, true),
            (64 << 20, 60 << 10, 0, 0, true),
            (64 << 20, 64 << 10, 0, 0, false),
            (1 << 20, 20 << 10, 0, 0, false),
            (64 << 20, 60 << 20, 1024, 1, true),
            (64 << 20, 60 << 20, 1024, 2, false),
            // A file system that counts neither.
            (0, 0, 0, 0, false),
        ];
        for (bytes, bytes_free, inodes, inodes_free, expected) in table {
            let space = Space {
                path: "/".into(),
                limit: LimitName::Scratch,
                bytes,
                bytes_free,
                inodes,
                inodes_free,
            };
            assert_eq!(space.is_full(), expected, "{space:?}");
        }
    }
}
