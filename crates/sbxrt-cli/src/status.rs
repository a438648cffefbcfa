//! What `sbxrt run` exits with, and how an end is said in words.

use nix::libc;
use nix::sys::signal::Signal;
use sbxrt::{LimitName, Limits, Report, Space, Termination};

use crate::quantity::{format_duration, format_size};

/// sbxrt itself failed; nothing is said about the program.
pub(crate) const FAILED: u8 = 125;
const TIMEOUT: u8 = 124;
const NOT_INVOKED: u8 = 126;
const NOT_FOUND: u8 = 127;

/// The exit status of `sbxrt run`: the program's own, or what a shell, timeout(1) or Docker would say.
pub(crate) fn exit_code(report: &Report) -> u8 {
    match &report.termination {
        Termination::Exited { code } => of_program(*code),
        Termination::Signaled { signal } => of_signal(*signal),
        Termination::Timeout => TIMEOUT,
        // It was ended for it, or was about to be.
        Termination::Output => of_signal(libc::SIGKILL),
        // Where it was not ended for it, it failed by itself, and with a status of its own.
        Termination::Oom | Termination::Pids | Termination::Disk => {
            match report.evidence.wait_status {
                Some(status) if libc::WIFEXITED(status) => of_program(libc::WEXITSTATUS(status)),
                Some(status) if libc::WIFSIGNALED(status) => of_signal(libc::WTERMSIG(status)),
                _ => of_signal(libc::SIGKILL),
            }
        }
        Termination::Seccomp { .. } => of_signal(libc::SIGSYS),
        Termination::Cancelled => of_signal(libc::SIGINT),
        Termination::StartFailed {
            errno: libc::ENOENT | libc::ENOTDIR,
            ..
        } => NOT_FOUND,
        Termination::StartFailed { .. } => NOT_INVOKED,
        _ => FAILED,
    }
}

/// A wait status holds eight bits.
fn of_program(code: i32) -> u8 {
    u8::try_from(code & 0xff).unwrap_or(u8::MAX)
}

/// What a shell says of a program that a signal has ended.
pub(crate) fn of_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// `SIGKILL`, `SIGRTMIN+2`, or the number.
pub(crate) fn signal_name(signal: i32) -> String {
    if let Ok(signal) = Signal::try_from(signal) {
        return signal.as_str().to_owned();
    }
    match signal - libc::SIGRTMIN() {
        0 => "SIGRTMIN".to_owned(),
        offset if offset > 0 && signal <= libc::SIGRTMAX() => format!("SIGRTMIN+{offset}"),
        _ => format!("signal {signal}"),
    }
}

/// How an execution ended, in words. `limits` are those that it ran under, `output_limit` the one on its output.
pub(crate) fn message(report: &Report, limits: &Limits, output_limit: Option<u64>) -> String {
    match &report.termination {
        Termination::Exited { code } => format!("exited with status {code}"),
        Termination::Signaled { signal } => format!("ended by {}", signal_name(*signal)),
        Termination::Timeout => {
            let (what, limit) = match report.evidence.limit {
                Some(LimitName::CpuTime) => ("CPU time limit", limits.cpu_time),
                _ => ("time limit", limits.wall_time),
            };
            match limit {
                Some(limit) => format!("ended by the {what} of {}", format_duration(limit)),
                None => format!("ended by the {what}"),
            }
        }
        Termination::Oom => match limits.memory {
            Some(limit) => format!("ended by the memory limit of {}", format_size(limit)),
            None => "ended for lack of memory".to_owned(),
        },
        Termination::Pids => match limits.pids {
            Some(limit) => format!("failed at the limit of {limit} processes"),
            None => "failed for lack of processes".to_owned(),
        },
        Termination::Output => match output_limit {
            Some(limit) => format!("wrote more than the output limit of {}", format_size(limit)),
            None => "wrote more than it may".to_owned(),
        },
        Termination::Disk => match report.evidence.full.first() {
            Some(space) => format!("failed while {}", full(space)),
            None => "failed for lack of space".to_owned(),
        },
        Termination::Seccomp { syscall, .. } => {
            format!("ended for the forbidden system call {syscall}")
        }
        Termination::Cancelled => "cancelled".to_owned(),
        Termination::StartFailed { reason, .. } => format!("not started: {reason}"),
        other => format!("{other:?}"),
    }
}

/// What is said of processes that cannot be ended.
pub(crate) fn leak(pids: &[i32]) -> String {
    let list: Vec<String> = pids.iter().map(ToString::to_string).collect();
    format!(
        "the kernel does not let go of what was ended, because a file system does not answer: process {}. It goes when that \
         does, and `sbxrt gc` then removes what it held",
        list.join(", ")
    )
}

/// That a file system was full, in words.
fn full(space: &Space) -> String {
    let path = space.path.display();
    if space.inodes > 0 && space.inodes_free < 2 {
        format!("{path} had room for no more than {} files", space.inodes)
    } else {
        format!("{path} was full with {}", format_size(space.bytes))
    }
}

/// What people who only see the program's output and exit status would not know, one sentence a line.
pub(crate) fn remarks(report: &Report, limits: &Limits, output_limit: Option<u64>) -> Vec<String> {
    let mut remarks = Vec::new();
    if !matches!(
        report.termination,
        Termination::Exited { .. } | Termination::Signaled { .. }
    ) {
        remarks.push(message(report, limits, output_limit));
    }
    for limit in &report.limits_hit {
        let hit = match limit {
            // That has been said.
            _ if report.evidence.limit == Some(*limit) => continue,
            LimitName::Memory => "a process was killed at the memory limit",
            LimitName::Pids => "there were as many processes as the limit allows",
            _ => continue,
        };
        remarks.push(hit.to_owned());
    }
    // The first has been said where that is how it ended.
    let said = usize::from(report.termination == Termination::Disk);
    remarks.extend(report.evidence.full.iter().skip(said).map(full));
    if !report.leaked.is_empty() {
        remarks.push(leak(&report.leaked));
    }
    remarks
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;

    fn start_failed(errno: i32) -> Termination {
        Termination::StartFailed {
            errno,
            reason: "\"x\": no".to_owned(),
        }
    }

    /// A report of an end and nothing else.
    pub(crate) fn report(termination: Termination) -> Report {
        Report {
            termination,
            evidence: sbxrt::Evidence::default(),
            usage: sbxrt::Usage::default(),
            enforcement: std::collections::BTreeMap::new(),
            limits_hit: Vec::new(),
            root_emulated: false,
            timings: sbxrt::Timings::default(),
            isolation: sbxrt::Isolation::default(),
            outputs: Vec::new(),
            leaked: Vec::new(),
        }
    }

    fn space(path: &str, bytes_free: u64, inodes_free: u64) -> Space {
        Space {
            path: path.into(),
            limit: LimitName::Scratch,
            bytes: 64 << 20,
            bytes_free,
            inodes: 16_384,
            inodes_free,
        }
    }

    #[test]
    fn a_program_that_failed_by_itself_keeps_its_exit_status() {
        for termination in [Termination::Oom, Termination::Pids, Termination::Disk] {
            let exit_code = |wait_status| {
                let mut report = report(termination.clone());
                report.evidence.wait_status = wait_status;
                exit_code(&report)
            };
            assert_eq!(
                [None, Some(3 << 8), Some(libc::SIGBUS)].map(exit_code),
                [137, 3, 135]
            );
        }
    }

    #[test]
    fn what_nobody_sees_is_said_once() {
        let limits = Limits::default();
        let mut quiet = report(Termination::Exited { code: 124 });
        assert!(remarks(&quiet, &limits, None).is_empty());
        quiet.limits_hit = vec![LimitName::Memory, LimitName::Pids, LimitName::Scratch];
        quiet.evidence.full = vec![space("/", 0, 900)];
        assert_eq!(
            remarks(&quiet, &limits, None),
            [
                "a process was killed at the memory limit",
                "there were as many processes as the limit allows",
                "/ was full with 64 MiB"
            ]
        );
        let mut disk = report(Termination::Disk);
        disk.limits_hit = vec![LimitName::Scratch];
        disk.evidence.limit = Some(LimitName::Scratch);
        disk.evidence.full = vec![space("/", 0, 900), space("/data", 1 << 20, 0)];
        assert_eq!(
            remarks(&disk, &limits, None),
            [
                "failed while / was full with 64 MiB",
                "/data had room for no more than 16384 files"
            ]
        );
    }

    #[test]
    fn every_end_has_an_exit_status_and_words() {
        let limits = Limits {
            wall_time: Some(Duration::from_secs(1)),
            ..Limits::default()
        };
        let table = [
            (Termination::Exited { code: 0 }, 0, "exited with status 0"),
            (
                Termination::Exited { code: 255 },
                255,
                "exited with status 255",
            ),
            (Termination::Signaled { signal: 9 }, 137, "ended by SIGKILL"),
            (
                Termination::Signaled { signal: 15 },
                143,
                "ended by SIGTERM",
            ),
            (
                Termination::Signaled { signal: 36 },
                164,
                "ended by SIGRTMIN+2",
            ),
            (Termination::Timeout, 124, "ended by the time limit of 1s"),
            (
                Termination::Oom,
                137,
                "ended by the memory limit of 512 MiB",
            ),
            (
                Termination::Pids,
                137,
                "failed at the limit of 128 processes",
            ),
            (
                Termination::Output,
                137,
                "wrote more than the output limit of 1 MiB",
            ),
            (Termination::Disk, 137, "failed for lack of space"),
            (
                Termination::Seccomp {
                    syscall: "ptrace".to_owned(),
                    architecture: "x86_64".to_owned(),
                },
                159,
                "ended for the forbidden system call ptrace",
            ),
            (Termination::Cancelled, 130, "cancelled"),
            (start_failed(libc::ENOENT), 127, "not started: \"x\": no"),
            (start_failed(libc::ENOTDIR), 127, "not started: \"x\": no"),
            (start_failed(libc::EACCES), 126, "not started: \"x\": no"),
            (start_failed(libc::ENOEXEC), 126, "not started: \"x\": no"),
            (start_failed(libc::E2BIG), 126, "not started: \"x\": no"),
        ];
        for (termination, code, words) in table {
            let ended_by_us = !matches!(
                termination,
                Termination::Exited { .. } | Termination::Signaled { .. }
            );
            let report = report(termination);
            assert_eq!(
                (
                    exit_code(&report),
                    message(&report, &limits, Some(1 << 20)).as_str()
                ),
                (code, words)
            );
            // A program's own exit status is told from ours by what is said beside it.
            let remarks = remarks(&report, &limits, Some(1 << 20));
            assert_eq!(remarks == [words], ended_by_us, "{words}");
        }
    }
}
