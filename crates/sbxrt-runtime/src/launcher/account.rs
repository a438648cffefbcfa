//! What is said of an execution once it is over: a pure function of what is known of it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cgroup::Counters;
use crate::report::{Evidence, PeakSource, Report, Termination, Timings, Usage};
use crate::request::{LimitName, Mechanism, Request};
use crate::watchdog::Seen;

/// The end of the program as the container's first process saw it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exit {
    pub(super) status: i32,
    pub(super) wall_time: Duration,
    pub(super) user_time: Duration,
    pub(super) system_time: Duration,
    /// In bytes.
    pub(super) largest_process: u64,
    /// How many processes there were at that moment, where their number is limited.
    pub(super) processes: u64,
}

/// Everything that is known of an execution that is over.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) request: &'a Request,
    pub(super) mechanisms: &'a BTreeMap<LimitName, Mechanism>,
    /// Why the launcher ended it, where it did.
    pub(super) verdict: Option<Termination>,
    /// What the first process saw; `None` where that was killed itself.
    pub(super) exit: Option<Exit>,
    /// The error number and the reason, where the program could not be executed.
    pub(super) not_executed: Option<(i32, String)>,
    /// What the kernel counted in its cgroup; nothing where it has none.
    pub(super) counters: Counters,
    /// What the watchdog saw, where there was one.
    pub(super) seen: Option<Seen>,
    /// From start to end as the launcher saw it, for where the first process did not.
    pub(super) wall_time: Duration,
    pub(super) timings: Timings,
}

impl Facts<'_> {
    pub(super) fn report(self) -> Report {
        let out_of_memory =
            self.counters.memory_kills > 0 || self.verdict == Some(Termination::Oom);
        let out_of_pids = self.is_out_of_pids();
        let hits = [
            (LimitName::Memory, out_of_memory),
            (LimitName::Pids, out_of_pids),
            (
                LimitName::WallTime,
                self.verdict == Some(Termination::Timeout),
            ),
        ];
        let usage = self.usage();
        let termination = self.termination(out_of_pids);
        let limit = match termination {
            Termination::Timeout => Some(LimitName::WallTime),
            Termination::Oom => Some(LimitName::Memory),
            Termination::Pids => Some(LimitName::Pids),
            _ => None,
        };
        let evidence = Evidence {
            limit,
            mechanism: limit.and_then(|limit| self.mechanisms.get(&limit)).copied(),
            wait_status: self.exit.map(|exit| exit.status),
            memory_events: self.counters.memory_events,
            pids_refused: self.counters.pids_refused,
        };
        Report {
            termination,
            evidence,
            usage,
            enforcement: self.mechanisms.clone(),
            limits_hit: hits
                .into_iter()
                .filter_map(|(limit, hit)| hit.then_some(limit))
                .collect(),
            root_emulated: self.request.emulate_root,
            timings: self.timings,
        }
    }

    fn is_out_of_pids(&self) -> bool {
        // Where the kernel holds the limit without counting refusals, a full container is the sign of them.
        let full_at_exit = self.mechanisms.get(&LimitName::Pids) == Some(&Mechanism::Rlimit)
            && self.processes_at_exit() >= self.pids_limit();
        self.counters
            .pids_refused
            .is_some_and(|refused| refused > 0)
            || self.verdict == Some(Termination::Pids)
            || self.seen.is_some_and(|seen| seen.pids_exhausted)
            || full_at_exit
    }

    fn pids_limit(&self) -> u64 {
        self.request.limits.pids.map_or(u64::MAX, u64::from)
    }

    fn processes_at_exit(&self) -> u64 {
        self.exit.map_or(0, |exit| exit.processes)
    }

    fn usage(&self) -> Usage {
        let Self {
            counters,
            exit,
            seen,
            ..
        } = self;
        let (user_time, system_time) =
            match (counters.user_micros, counters.system_micros, exit, seen) {
                (Some(user), Some(system), _, _) => {
                    (Duration::from_micros(user), Duration::from_micros(system))
                }
                (_, _, Some(exit), _) => (exit.user_time, exit.system_time),
                (_, _, None, Some(seen)) => seen.cpu_time,
                _ => Default::default(),
            };
        let largest_process = exit.map_or(0, |exit| exit.largest_process);
        let (memory_peak, memory_peak_source) = match (counters.memory_peak, seen) {
            (Some(peak), _) => (peak, PeakSource::Cgroup2),
            (None, Some(seen)) if seen.memory_peak > largest_process => {
                (seen.memory_peak, PeakSource::Watchdog)
            }
            _ => (largest_process, PeakSource::LargestProcess),
        };
        Usage {
            wall_time: exit.map_or(self.wall_time, |exit| exit.wall_time),
            user_time,
            system_time,
            memory_peak,
            memory_peak_source,
            pids_peak: counters.pids_peak.or(seen.map(|seen| seen.pids_peak)),
        }
    }

    fn termination(&self, out_of_pids: bool) -> Termination {
        if let Some((errno, reason)) = self.not_executed.clone() {
            return Termination::StartFailed { errno, reason };
        }
        let natural = match self.exit {
            // The first process was killed by somebody who may: the host's administrator or its OOM killer.
            None => Termination::Signaled {
                signal: libc::SIGKILL,
            },
            Some(Exit { status, .. }) if libc::WIFSIGNALED(status) => Termination::Signaled {
                signal: libc::WTERMSIG(status),
            },
            Some(Exit { status, .. }) => Termination::Exited {
                code: libc::WEXITSTATUS(status),
            },
        };
        let crowded_at_exit = self.processes_at_exit() >= self.pids_limit() / 2;
        match (self.verdict.clone(), natural) {
            (Some(Termination::Timeout), _) if out_of_pids => Termination::Pids,
            (Some(verdict), _) => verdict,
            (
                None,
                Termination::Signaled {
                    signal: libc::SIGKILL,
                },
            ) if self.counters.memory_kills > 0 => Termination::Oom,
            // Success, unless it leaves behind a crowd that has run into the limit: a bomb in the background.
            (None, Termination::Exited { code: 0 }) if !(out_of_pids && crowded_at_exit) => {
                Termination::Exited { code: 0 }
            }
            (None, _) if out_of_pids => Termination::Pids,
            (None, natural) => natural,
        }
    }
}
