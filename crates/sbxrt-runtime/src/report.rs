//! What a caller gets back: how an execution ended, what it used, and how its limits were held.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::request::{LimitName, Mechanism};

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
    /// A signal ended the program, sent by itself, by one of its own processes or by the caller.
    Signaled {
        /// The signal's number.
        signal: i32,
    },
    /// The time limit ended it.
    Timeout,
    /// The memory limit ended it.
    Oom,
    /// The limit on processes kept it from going on: it failed or ran out of time after a fork or thread was refused,
    /// or left a crowd behind that had been, or was ended because it would not stop asking (1000 refusals).
    Pids,
    /// It wrote more than its limit on output allows, and was ended for it.
    Output,
    /// It failed while the space that it may write to was full.
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
    /// `memory.events` of the execution's cgroup; empty where it has none.
    pub memory_events: BTreeMap<String, u64>,
    /// Forks and threads that were refused, where the kernel counts them.
    pub pids_refused: Option<u64>,
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
    /// The largest sum over all processes that the watchdog saw.
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
    /// How long each phase took.
    pub timings: Timings,
}
