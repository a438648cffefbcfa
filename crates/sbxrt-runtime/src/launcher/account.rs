//! What is said of an execution once it is over: a pure function of what is known of it.
//!
//! How a program ended is what the first process of its container has seen: an exit status or a signal. It is called
//! something else only where that would be half of the truth:
//!
//! - sbxrt ended it, and it had not ended by itself a moment before;
//! - the kernel killed it to hold the memory limit;
//! - it failed, and what it needs was exhausted at its end: see [`Termination::Disk`] and [`Termination::Pids`].
//!
//! A limit that was reached without that is told by `limits_hit` alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::cgroup::Counters;
use crate::error::Failure;
use crate::report::{
    Evidence, Isolation, PeakSource, Report, Sender, Space, Termination, Timings, Usage,
};
use crate::request::{LimitName, Limits, Mechanism};
use crate::seccomp::Blocked;
use crate::watchdog::Seen;

/// The end of the program as the container's first process saw it.
#[derive(Debug, Clone)]
pub(super) struct Exit {
    pub(super) status: i32,
    pub(super) wall_time: Duration,
    pub(super) user_time: Duration,
    pub(super) system_time: Duration,
    /// In bytes.
    pub(super) largest_process: u64,
    /// How many processes there were at that moment, where their number is limited.
    pub(super) processes: u64,
    /// What was full at that moment.
    pub(super) full: Vec<Space>,
    /// The system call that the filter ended it for.
    pub(super) blocked: Option<Blocked>,
}

/// Why the launcher ended an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    WallTime,
    CpuTime,
    Memory,
    Pids,
    Output,
    Cancelled,
}

impl Verdict {
    fn limit(self) -> Option<LimitName> {
        match self {
            Self::WallTime => Some(LimitName::WallTime),
            Self::CpuTime => Some(LimitName::CpuTime),
            Self::Memory => Some(LimitName::Memory),
            Self::Pids => Some(LimitName::Pids),
            Self::Output => Some(LimitName::Output),
            Self::Cancelled => None,
        }
    }

    fn termination(self) -> Termination {
        match self {
            Self::WallTime | Self::CpuTime => Termination::Timeout,
            Self::Memory => Termination::Oom,
            Self::Pids => Termination::Pids,
            Self::Output => Termination::Output,
            Self::Cancelled => Termination::Cancelled,
        }
    }
}

/// Everything that is known of an execution that is over.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) id: &'a str,
    pub(super) limits: &'a Limits,
    pub(super) mechanisms: &'a BTreeMap<LimitName, Mechanism>,
    /// Why the launcher ended it, where it did.
    pub(super) verdict: Option<Verdict>,
    /// What the first process saw; `None` where that was killed itself.
    pub(super) exit: Option<Exit>,
    /// The error number and the reason, where the program could not be executed.
    pub(super) not_executed: Option<(i32, String)>,
    /// What the kernel counted in its cgroup; nothing where it has none.
    pub(super) counters: Counters,
    /// What the watchdog saw, where there was one.
    pub(super) seen: Option<Seen>,
    /// The signals that the caller has sent to the program.
    pub(super) signals: &'a BTreeSet<i32>,
    /// From start to end as the launcher saw it, for where the first process did not.
    pub(super) wall_time: Duration,
    pub(super) root_emulated: bool,
    pub(super) isolation: Isolation,
    pub(super) timings: Timings,
}

/// What an end is called, and the limit that is to blame.
type Judgement = (Termination, Option<LimitName>);

impl Facts<'_> {
    /// # Errors
    ///
    /// Where somebody outside has killed the container's first process, and with it the program: the host's
    /// administrator, or its OOM killer. That says nothing about the program.
    pub(super) fn report(self) -> Result<Report, Failure> {
        let (termination, limit) = self.judge()?;
        let mut limits_hit = self.limits_hit();
        if let Some(limit) = limit {
            limits_hit.insert(limit);
        }
        let usage = self.usage();
        let throttled = self.throttled();
        let evidence = Evidence {
            limit,
            mechanism: limit.and_then(|limit| self.mechanism(limit)),
            wait_status: self.exit.as_ref().map(|exit| exit.status),
            sender: self.sender(&termination),
            memory_events: self.counters.memory_events,
            pids_refused: self.counters.pids_refused,
            throttled,
            full: self.exit.map(|exit| exit.full).unwrap_or_default(),
        };
        Ok(Report {
            termination,
            evidence,
            usage,
            enforcement: self.mechanisms.clone(),
            limits_hit: limits_hit.into_iter().collect(),
            root_emulated: self.root_emulated,
            outputs: Vec::new(),
            isolation: self.isolation,
            timings: self.timings,
            // The caller knows them by other pids.
            leaked: Vec::new(),
        })
    }

    fn judge(&self) -> Result<Judgement, Failure> {
        if let Some((errno, reason)) = self.not_executed.clone() {
            return Ok((Termination::StartFailed { errno, reason }, None));
        }
        let Some(exit) = &self.exit else {
            return match self.verdict {
                Some(verdict) => Ok((verdict.termination(), verdict.limit())),
                None if self.counters.memory_kills > 0 => {
                    Ok((Termination::Oom, Some(LimitName::Memory)))
                }
                None => Err(Failure::reason(
                    "keep the program running",
                    self.id,
                    "somebody outside killed the container's first process (the host's OOM killer, or its administrator)",
                )),
            };
        };
        let signal = libc::WIFSIGNALED(exit.status).then(|| libc::WTERMSIG(exit.status));
        if signal == Some(libc::SIGKILL) {
            if let Some(verdict) = self.verdict {
                return Ok((verdict.termination(), verdict.limit()));
            }
            if self.counters.memory_kills > 0 {
                return Ok((Termination::Oom, Some(LimitName::Memory)));
            }
        }
        // A program that has survived the refusal and then ends by another signal has ended by that.
        if let (Some(blocked), Some(libc::SIGSYS | libc::SIGKILL)) = (exit.blocked.clone(), signal)
        {
            let Blocked {
                syscall,
                architecture,
            } = blocked;
            let end = Termination::Seccomp {
                syscall,
                architecture,
            };
            return Ok((end, None));
        }
        let natural = match signal {
            Some(signal) => Termination::Signaled { signal },
            None => Termination::Exited {
                code: libc::WEXITSTATUS(exit.status),
            },
        };
        if natural == (Termination::Exited { code: 0 }) {
            return Ok((natural, None));
        }
        // Version 1 has no group kill: what is left of the program lives for as long as it takes to look.
        if self.counters.memory_kills > 0
            && self.mechanism(LimitName::Memory) == Some(Mechanism::Cgroup1)
        {
            return Ok((Termination::Oom, Some(LimitName::Memory)));
        }
        if let Some(full) = exit.full.first() {
            return Ok((Termination::Disk, Some(full.limit)));
        }
        // A crowd besides the program itself, whom the limit alone does not make one.
        let others = exit.processes.saturating_sub(1);
        if self.was_out_of_pids() && others >= (self.pids_limit() / 2).max(1) {
            return Ok((Termination::Pids, Some(LimitName::Pids)));
        }
        Ok((natural, None))
    }

    fn limits_hit(&self) -> BTreeSet<LimitName> {
        let full = self.exit.iter().flat_map(|exit| &exit.full);
        let mut hit: BTreeSet<LimitName> = full.map(|space| space.limit).collect();
        hit.extend(self.verdict.and_then(Verdict::limit));
        if self.counters.memory_kills > 0 {
            hit.insert(LimitName::Memory);
        }
        if self.was_out_of_pids() {
            hit.insert(LimitName::Pids);
        }
        hit
    }

    fn mechanism(&self, limit: LimitName) -> Option<Mechanism> {
        self.mechanisms.get(&limit).copied()
    }

    fn was_out_of_pids(&self) -> bool {
        let processes = self.exit.as_ref().map_or(0, |exit| exit.processes);
        let full_at_exit = match self.mechanism(LimitName::Pids) {
            // Where the kernel holds the limit without counting refusals, a full container is the sign of them.
            Some(Mechanism::Rlimit) => processes >= self.pids_limit(),
            // The program ended before anybody looked.
            Some(Mechanism::Watchdog) => processes > self.pids_limit(),
            _ => false,
        };
        self.counters
            .pids_refused
            .is_some_and(|refused| refused > 0)
            || self.verdict == Some(Verdict::Pids)
            || self.seen.is_some_and(|seen| seen.pids_exhausted)
            || full_at_exit
    }

    fn pids_limit(&self) -> u64 {
        self.limits.pids.map_or(u64::MAX, u64::from)
    }

    fn sender(&self, termination: &Termination) -> Option<Sender> {
        let signal = match &self.exit {
            Some(exit) if libc::WIFSIGNALED(exit.status) => libc::WTERMSIG(exit.status),
            Some(_) => return None,
            // Everything was killed at once.
            None => libc::SIGKILL,
        };
        match termination {
            Termination::StartFailed { .. } => None,
            Termination::Oom if self.verdict.is_none() => Some(Sender::Kernel),
            Termination::Seccomp { .. } => Some(Sender::Kernel),
            _ if self.verdict.is_some() && signal == libc::SIGKILL => Some(Sender::Sbxrt),
            _ => self.signals.contains(&signal).then_some(Sender::Caller),
        }
    }

    fn throttled(&self) -> Option<Duration> {
        match self.mechanism(LimitName::Cpus)? {
            Mechanism::Watchdog => self.seen.map(|seen| seen.throttled),
            _ => self.counters.throttled_micros.map(Duration::from_micros),
        }
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
                // What the first process has waited for lacks what was lost on the way, and who still ran.
                (_, _, Some(exit), seen) => {
                    let lost = seen.map_or(Duration::ZERO, |seen| seen.cpu_time_lost);
                    let waited_for = (exit.user_time + lost, exit.system_time);
                    let total = |(user, system): (Duration, Duration)| user + system;
                    seen.map(|seen| seen.cpu_time)
                        .filter(|&seen| total(seen) > total(waited_for))
                        .unwrap_or(waited_for)
                }
                (_, _, None, Some(seen)) => seen.cpu_time,
                _ => Default::default(),
            };
        let largest_process = exit.as_ref().map_or(0, |exit| exit.largest_process);
        let (memory_peak, memory_peak_source) = match (counters.memory_peak, seen) {
            (Some(peak), _) => peak,
            (None, Some(seen)) if seen.memory_peak > largest_process => {
                (seen.memory_peak, PeakSource::Watchdog)
            }
            _ => (largest_process, PeakSource::LargestProcess),
        };
        Usage {
            wall_time: exit.as_ref().map_or(self.wall_time, |exit| exit.wall_time),
            user_time,
            system_time,
            memory_peak,
            memory_peak_source,
            pids_peak: counters.pids_peak.or(seen.map(|seen| seen.pids_peak)),
        }
    }
}

#[cfg(test)]
mod tests {
    use LimitName::{CpuTime, Memory, Output, Pids, Scratch, Shm, WallTime};

    use super::*;

    const MEMORY: &[LimitName] = &[Memory];
    const PIDS: &[LimitName] = &[Pids];

    fn exited(code: i32) -> Termination {
        Termination::Exited { code }
    }

    fn signaled(signal: i32) -> Termination {
        Termination::Signaled { signal }
    }

    /// The wait status of a program that exited.
    fn status(code: i32) -> i32 {
        code << 8
    }

    #[expect(clippy::unnecessary_wraps, reason = "as the fact is kept")]
    fn exit(status: i32) -> Option<Exit> {
        Some(Exit {
            status,
            wall_time: Duration::from_secs(1),
            user_time: Duration::from_millis(200),
            system_time: Duration::from_millis(100),
            largest_process: 3 << 20,
            processes: 1,
            full: Vec::new(),
            blocked: None,
        })
    }

    fn crowded(status: i32) -> Option<Exit> {
        let exit = exit(status);
        exit.map(|exit| Exit {
            processes: 99,
            ..exit
        })
    }

    /// The program, and so many processes beside it.
    fn beside(others: u64, status: i32) -> Option<Exit> {
        let processes = others + 1;
        exit(status).map(|exit| Exit { processes, ..exit })
    }

    fn blocked(status: i32) -> Option<Exit> {
        let blocked = Blocked {
            syscall: "ptrace".to_owned(),
            architecture: "x86_64".to_owned(),
        };
        exit(status).map(|exit| Exit {
            blocked: Some(blocked),
            ..exit
        })
    }

    fn full(status: i32, limits: &[LimitName]) -> Option<Exit> {
        let space = |&limit| Space {
            path: "/".into(),
            limit,
            bytes: 1 << 20,
            bytes_free: 0,
            inodes: 1024,
            inodes_free: 1000,
        };
        let full = limits.iter().map(space).collect();
        exit(status).map(|exit| Exit { full, ..exit })
    }

    fn kills(memory_kills: u64) -> Counters {
        Counters {
            memory_kills,
            memory_events: [("max".to_owned(), 7), ("oom_kill".to_owned(), memory_kills)].into(),
            ..Counters::default()
        }
    }

    fn refused(pids_refused: u64) -> Counters {
        Counters {
            pids_refused: Some(pids_refused),
            ..Counters::default()
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "as the fact is kept")]
    fn seen(pids_exhausted: bool) -> Option<Seen> {
        Some(Seen {
            memory_peak: 511 << 20,
            pids_peak: 128,
            cpu_time: (Duration::from_secs(2), Duration::from_secs(1)),
            cpu_time_lost: Duration::ZERO,
            pids_exhausted,
            throttled: Duration::from_millis(30),
        })
    }

    /// Facts of an execution that nothing has happened to.
    fn facts<'a>(
        limits: &'a Limits,
        mechanisms: &'a BTreeMap<LimitName, Mechanism>,
        signals: &'a BTreeSet<i32>,
    ) -> Facts<'a> {
        Facts {
            id: "test",
            limits,
            mechanisms,
            verdict: None,
            exit: None,
            not_executed: None,
            counters: Counters::default(),
            seen: None,
            signals,
            wall_time: Duration::from_secs(9),
            root_emulated: false,
            isolation: Isolation::default(),
            timings: Timings::default(),
        }
    }

    /// What happened, and what is said of it: the end, the limit to blame, all limits that were hit, the signal's sender.
    type Row<'a> = (
        &'a str,
        fn(&mut Facts<'_>),
        Termination,
        Option<LimitName>,
        &'a [LimitName],
        Option<Sender>,
    );

    fn assert_rows(memory: Mechanism, pids: Mechanism, rows: &[Row<'_>]) {
        let limits = Limits {
            wall_time: Some(Duration::from_secs(1)),
            ..Limits::default()
        };
        let mechanisms = [
            (Memory, memory),
            (Pids, pids),
            (Scratch, Mechanism::Tmpfs),
            (WallTime, Mechanism::Timer),
            (CpuTime, Mechanism::Watchdog),
            (Output, Mechanism::Relay),
        ]
        .into();
        let signals = [libc::SIGTERM, libc::SIGINT].into();
        for (name, happen, termination, limit, limits_hit, sender) in rows {
            let mut facts = facts(&limits, &mechanisms, &signals);
            happen(&mut facts);
            let wait_status = facts.exit.as_ref().map(|exit| exit.status);
            let report = facts.report().unwrap();
            assert_eq!(&report.termination, termination, "{name}");
            assert_eq!(report.limits_hit, *limits_hit, "{name}");
            assert_eq!(report.evidence.limit, *limit, "{name}");
            assert_eq!(
                report.evidence.mechanism,
                limit.and_then(|limit| mechanisms.get(&limit)).copied(),
                "{name}"
            );
            assert_eq!(report.evidence.sender, *sender, "{name}");
            assert_eq!(report.evidence.wait_status, wait_status, "{name}");
        }
    }

    #[test]
    fn a_program_that_exits_has_exited_whatever_its_status() {
        for code in [0, 1, 124, 125, 126, 127, 128, 130, 137, 143, 159, 255] {
            let (limits, mechanisms, signals) = Default::default();
            let mut facts = facts(&limits, &mechanisms, &signals);
            facts.exit = exit(status(code));
            let report = facts.report().unwrap();
            assert_eq!(report.termination, exited(code));
            assert!(report.limits_hit.is_empty());
            assert_eq!(report.evidence.wait_status, Some(code << 8));
        }
    }

    #[test]
    fn an_end_is_blamed_on_a_limit_only_where_that_is_known() {
        let killed = libc::SIGKILL;
        let kernel = Some(Sender::Kernel);
        let sbxrt = Some(Sender::Sbxrt);
        let rows: &[Row<'_>] = &[
            (
                "a signal of its own",
                |it| it.exit = exit(libc::SIGSEGV),
                signaled(libc::SIGSEGV),
                None,
                &[],
                None,
            ),
            (
                "a signal of the caller's",
                |it| it.exit = exit(libc::SIGTERM),
                signaled(libc::SIGTERM),
                None,
                &[],
                Some(Sender::Caller),
            ),
            (
                "SIGKILL by itself",
                |it| it.exit = exit(libc::SIGKILL),
                signaled(killed),
                None,
                &[],
                None,
            ),
            (
                "SIGKILL by itself near the memory limit",
                |it| (it.exit, it.counters, it.seen) = (exit(libc::SIGKILL), kills(0), seen(false)),
                signaled(killed),
                None,
                &[],
                None,
            ),
            (
                "a core was dumped",
                |it| it.exit = exit(libc::SIGQUIT | 0x80),
                signaled(libc::SIGQUIT),
                None,
                &[],
                None,
            ),
            (
                "the kernel killed it for memory",
                |it| (it.exit, it.counters) = (exit(libc::SIGKILL), kills(3)),
                Termination::Oom,
                Some(Memory),
                MEMORY,
                kernel,
            ),
            (
                "the kernel killed everything for memory",
                |it| it.counters = kills(4),
                Termination::Oom,
                Some(Memory),
                MEMORY,
                kernel,
            ),
            (
                "a child was killed and it succeeded",
                |it| (it.exit, it.counters) = (exit(status(0)), kills(1)),
                exited(0),
                None,
                MEMORY,
                None,
            ),
            (
                "a child was killed and it failed",
                |it| (it.exit, it.counters) = (exit(status(137)), kills(1)),
                exited(137),
                None,
                MEMORY,
                None,
            ),
            (
                "a child was killed, then it aborted",
                |it| (it.exit, it.counters) = (exit(libc::SIGABRT), kills(1)),
                signaled(libc::SIGABRT),
                None,
                MEMORY,
                None,
            ),
            (
                "the watchdog found too much memory",
                |it| (it.verdict, it.seen) = (Some(Verdict::Memory), seen(false)),
                Termination::Oom,
                Some(Memory),
                MEMORY,
                sbxrt,
            ),
            (
                "out of time",
                |it| it.verdict = Some(Verdict::WallTime),
                Termination::Timeout,
                Some(WallTime),
                &[WallTime],
                sbxrt,
            ),
            (
                "out of CPU time",
                |it| it.verdict = Some(Verdict::CpuTime),
                Termination::Timeout,
                Some(CpuTime),
                &[CpuTime],
                sbxrt,
            ),
            (
                "out of time, killed by itself",
                |it| (it.verdict, it.exit) = (Some(Verdict::WallTime), exit(libc::SIGKILL)),
                Termination::Timeout,
                Some(WallTime),
                &[WallTime],
                sbxrt,
            ),
            (
                "out of time after a refusal",
                |it| (it.verdict, it.counters) = (Some(Verdict::WallTime), refused(9)),
                Termination::Timeout,
                Some(WallTime),
                &[Pids, WallTime],
                sbxrt,
            ),
            (
                "ended by itself as its time ran out",
                |it| (it.verdict, it.exit) = (Some(Verdict::WallTime), exit(status(0))),
                exited(0),
                None,
                &[WallTime],
                None,
            ),
            (
                "ended by itself as it was cancelled",
                |it| (it.verdict, it.exit) = (Some(Verdict::Cancelled), exit(status(3))),
                exited(3),
                None,
                &[],
                None,
            ),
            (
                "ended by a signal as it was cancelled",
                |it| (it.verdict, it.exit) = (Some(Verdict::Cancelled), exit(libc::SIGINT)),
                signaled(libc::SIGINT),
                None,
                &[],
                Some(Sender::Caller),
            ),
            (
                "cancelled",
                |it| it.verdict = Some(Verdict::Cancelled),
                Termination::Cancelled,
                None,
                &[],
                sbxrt,
            ),
            (
                "wrote too much",
                |it| it.verdict = Some(Verdict::Output),
                Termination::Output,
                Some(Output),
                &[Output],
                sbxrt,
            ),
            (
                "refused and succeeded",
                |it| (it.exit, it.counters) = (exit(status(0)), refused(1)),
                exited(0),
                None,
                PIDS,
                None,
            ),
            (
                "refused and succeeded in a crowd",
                |it| (it.exit, it.counters) = (crowded(status(0)), refused(1)),
                exited(0),
                None,
                PIDS,
                None,
            ),
            (
                "refused long ago and failed",
                |it| (it.exit, it.counters) = (exit(status(1)), refused(1)),
                exited(1),
                None,
                PIDS,
                None,
            ),
            (
                "refused and failed in a crowd",
                |it| (it.exit, it.counters) = (crowded(status(2)), refused(1)),
                Termination::Pids,
                Some(Pids),
                PIDS,
                None,
            ),
            (
                "refused and crashed in a crowd",
                |it| (it.exit, it.counters) = (crowded(libc::SIGABRT), refused(1)),
                Termination::Pids,
                Some(Pids),
                PIDS,
                None,
            ),
            (
                "failed in a crowd that was never refused",
                |it| (it.exit, it.counters) = (crowded(status(2)), refused(0)),
                exited(2),
                None,
                &[],
                None,
            ),
            (
                "refused a thousand times",
                |it| (it.verdict, it.counters) = (Some(Verdict::Pids), refused(1000)),
                Termination::Pids,
                Some(Pids),
                PIDS,
                sbxrt,
            ),
            (
                "failed with a full disk",
                |it| it.exit = full(status(1), &[Scratch]),
                Termination::Disk,
                Some(Scratch),
                &[Scratch],
                None,
            ),
            (
                "crashed with a full /dev/shm",
                |it| it.exit = full(libc::SIGBUS, &[Shm]),
                Termination::Disk,
                Some(Shm),
                &[Shm],
                None,
            ),
            (
                "failed with everything full",
                |it| it.exit = full(status(1), &[Scratch, Shm]),
                Termination::Disk,
                Some(Scratch),
                &[Scratch, Shm],
                None,
            ),
            (
                "succeeded with a full disk",
                |it| it.exit = full(status(0), &[Scratch]),
                exited(0),
                None,
                &[Scratch],
                None,
            ),
            (
                "out of memory with a full disk",
                |it| (it.exit, it.counters) = (full(libc::SIGKILL, &[Scratch]), kills(1)),
                Termination::Oom,
                Some(Memory),
                &[Memory, Scratch],
                kernel,
            ),
            (
                "not found",
                |it| it.not_executed = Some((libc::ENOENT, "no".to_owned())),
                Termination::StartFailed {
                    errno: libc::ENOENT,
                    reason: "no".to_owned(),
                },
                None,
                &[],
                None,
            ),
        ];
        assert_rows(Mechanism::Cgroup2, Mechanism::Cgroup2, rows);
    }

    #[test]
    fn only_the_signals_of_the_filter_are_blamed_on_it() {
        let seccomp = || Termination::Seccomp {
            syscall: "ptrace".to_owned(),
            architecture: "x86_64".to_owned(),
        };
        let rows: &[Row<'_>] = &[
            (
                "ended by the filter",
                |it| it.exit = blocked(libc::SIGSYS),
                seccomp(),
                None,
                &[],
                Some(Sender::Kernel),
            ),
            (
                "ended by the filter although it ignores SIGSYS",
                |it| it.exit = blocked(libc::SIGKILL),
                seccomp(),
                None,
                &[],
                Some(Sender::Kernel),
            ),
            (
                "survived the refusal and crashed",
                |it| it.exit = blocked(libc::SIGSEGV),
                signaled(libc::SIGSEGV),
                None,
                &[],
                None,
            ),
            (
                "survived the refusal and failed",
                |it| it.exit = blocked(status(31)),
                exited(31),
                None,
                &[],
                None,
            ),
            (
                "survived the refusal and was ended by the caller",
                |it| it.exit = blocked(libc::SIGTERM),
                signaled(libc::SIGTERM),
                None,
                &[],
                Some(Sender::Caller),
            ),
            (
                "survived the refusal and ran out of time",
                |it| (it.exit, it.verdict) = (blocked(libc::SIGKILL), Some(Verdict::WallTime)),
                Termination::Timeout,
                Some(WallTime),
                &[WallTime],
                Some(Sender::Sbxrt),
            ),
            (
                "SIGSYS by itself",
                |it| it.exit = exit(libc::SIGSYS),
                signaled(libc::SIGSYS),
                None,
                &[],
                None,
            ),
        ];
        assert_rows(Mechanism::Cgroup2, Mechanism::Cgroup2, rows);
    }

    #[test]
    fn a_crowd_is_half_of_what_the_limit_allows_besides_the_program() {
        let cases = [
            (128, 63, false),
            (128, 64, true),
            (129, 64, true),
            (2, 0, false),
            (2, 1, true),
            // The program itself is no crowd, however low the limit.
            (1, 0, false),
            (1, 1, true),
            (0, 0, false),
        ];
        let mechanisms = [(Pids, Mechanism::Cgroup2)].into();
        let signals = BTreeSet::new();
        for (limit, others, is_crowd) in cases {
            let limits = Limits {
                pids: Some(limit),
                ..Limits::default()
            };
            let mut facts = facts(&limits, &mechanisms, &signals);
            (facts.exit, facts.counters) = (beside(others, status(2)), refused(1));
            let expected = if is_crowd {
                Termination::Pids
            } else {
                exited(2)
            };
            let report = facts.report().unwrap();
            assert_eq!(report.termination, expected, "{others} of {limit}");
        }
    }

    #[test]
    fn who_was_kept_from_running_is_said_to_have_been() {
        let cases = [
            (Mechanism::Cgroup2, Some(Duration::from_micros(7))),
            (Mechanism::Cgroup1, Some(Duration::from_micros(7))),
            (Mechanism::Watchdog, Some(Duration::from_millis(30))),
        ];
        let (limits, signals) = Default::default();
        for (mechanism, expected) in cases {
            let mechanisms = [(LimitName::Cpus, mechanism)].into();
            let mut facts = facts(&limits, &mechanisms, &signals);
            (facts.exit, facts.seen) = (exit(status(0)), seen(false));
            facts.counters.throttled_micros = Some(7);
            assert_eq!(facts.report().unwrap().evidence.throttled, expected);
        }
        let mechanisms = BTreeMap::new();
        let mut facts = facts(&limits, &mechanisms, &signals);
        (facts.exit, facts.seen) = (exit(status(0)), seen(false));
        assert_eq!(facts.report().unwrap().evidence.throttled, None);
    }

    #[test]
    fn time_that_nobody_waited_for_is_in_the_account() {
        let cases = [
            // What the first process has waited for: 300 ms.
            ((0, 0), 0, (200, 100)),
            ((150, 100), 50, (250, 100)),
            // A child that still ran when the program ended.
            ((400, 200), 50, (400, 200)),
        ];
        let (limits, mechanisms, signals) = Default::default();
        let time = Duration::from_millis;
        for ((user, system), lost, expected) in cases {
            let mut facts = facts(&limits, &mechanisms, &signals);
            facts.exit = exit(status(0));
            facts.seen = seen(false).map(|seen| Seen {
                cpu_time: (time(user), time(system)),
                cpu_time_lost: time(lost),
                ..seen
            });
            let usage = facts.usage();
            let found = (usage.user_time, usage.system_time);
            assert_eq!(found, (time(expected.0), time(expected.1)));
        }
    }

    #[test]
    fn a_limit_on_processes_that_the_kernel_does_not_count_shows_in_a_full_container() {
        let at_limit = |it: &mut Facts<'_>| {
            let exit = crowded(status(2));
            it.exit = exit.map(|exit| Exit {
                processes: 128,
                ..exit
            });
        };
        let pids = Some(Pids);
        let rows: &[Row<'_>] = &[
            (
                "full at its end",
                at_limit,
                Termination::Pids,
                pids,
                PIDS,
                None,
            ),
            (
                "full once",
                |it| (it.exit, it.seen) = (exit(status(2)), seen(true)),
                exited(2),
                None,
                PIDS,
                None,
            ),
            (
                "full once, crowded at its end",
                |it| (it.exit, it.seen) = (crowded(status(2)), seen(true)),
                Termination::Pids,
                pids,
                PIDS,
                None,
            ),
            (
                "never full",
                |it| (it.exit, it.seen) = (crowded(status(2)), seen(false)),
                exited(2),
                None,
                &[],
                None,
            ),
        ];
        assert_rows(Mechanism::Watchdog, Mechanism::Rlimit, rows);
    }

    #[test]
    fn a_crowd_that_nobody_has_looked_at_shows_at_the_end() {
        fn over(it: &mut Facts<'_>, code: i32) {
            let exit = crowded(status(code));
            it.exit = exit.map(|exit| Exit {
                processes: 129,
                ..exit
            });
        }
        let rows: &[Row<'_>] = &[
            (
                "above the limit, and content",
                |it| over(it, 0),
                exited(0),
                None,
                PIDS,
                None,
            ),
            (
                "above the limit, and failed",
                |it| over(it, 2),
                Termination::Pids,
                Some(Pids),
                PIDS,
                None,
            ),
            (
                "ended as the watchdog saw it",
                |it| (it.exit, it.verdict) = (exit(status(0)), Some(Verdict::Pids)),
                exited(0),
                None,
                PIDS,
                None,
            ),
        ];
        assert_rows(Mechanism::Watchdog, Mechanism::Watchdog, rows);
    }

    #[test]
    fn where_the_kernel_kills_one_process_for_memory_who_fails_after_it_is_out_of_memory() {
        let memory = Some(Memory);
        let rows: &[Row<'_>] = &[
            (
                "a shell passes it on",
                |it| (it.exit, it.counters) = (exit(status(137)), kills(1)),
                Termination::Oom,
                memory,
                MEMORY,
                None,
            ),
            (
                "nobody minds",
                |it| (it.exit, it.counters) = (exit(status(0)), kills(1)),
                exited(0),
                None,
                MEMORY,
                None,
            ),
            (
                "nobody was killed",
                |it| (it.exit, it.counters) = (exit(status(137)), kills(0)),
                exited(137),
                None,
                &[],
                None,
            ),
        ];
        assert_rows(Mechanism::Cgroup1, Mechanism::Cgroup1, rows);
    }

    #[test]
    fn a_first_process_that_somebody_killed_is_not_the_programs_doing() {
        let (limits, mechanisms, signals) = Default::default();
        let failure = facts(&limits, &mechanisms, &signals).report().unwrap_err();
        assert_eq!(failure.step, "keep the program running");
        assert!(failure.reason.contains("OOM killer"), "{failure}");
    }

    #[test]
    fn the_report_carries_what_was_measured() {
        let mechanisms = [(Memory, Mechanism::Cgroup2)].into();
        let (limits, signals) = Default::default();
        let mut facts = facts(&limits, &mechanisms, &signals);
        facts.exit = full(status(1), &[Scratch]);
        facts.counters = Counters {
            memory_peak: Some((5 << 20, PeakSource::Cgroup2)),
            pids_refused: Some(2),
            pids_peak: Some(128),
            user_micros: Some(1_000),
            system_micros: Some(2_000),
            ..kills(0)
        };
        facts.seen = seen(false);
        let report = facts.report().unwrap();
        assert_eq!(
            report.usage,
            Usage {
                wall_time: Duration::from_secs(1),
                user_time: Duration::from_millis(1),
                system_time: Duration::from_millis(2),
                memory_peak: 5 << 20,
                memory_peak_source: PeakSource::Cgroup2,
                pids_peak: Some(128),
            }
        );
        assert_eq!(report.evidence.memory_events["max"], 7);
        assert_eq!(report.evidence.pids_refused, Some(2));
        assert_eq!(report.evidence.full[0].bytes, 1 << 20);
    }
}
