//! What `sbxrt run` exits with, and how an end is said in words.

use nix::libc;
use nix::sys::signal::Signal;
use sbxrt::{Limits, Termination};

use crate::quantity::{format_duration, format_size};

/// sbxrt itself failed; nothing is said about the program.
pub(crate) const FAILED: u8 = 125;
const TIMEOUT: u8 = 124;
const NOT_INVOKED: u8 = 126;
const NOT_FOUND: u8 = 127;

/// The exit status of `sbxrt run`: the program's own, or what a shell, timeout(1) or Docker would say.
pub(crate) fn exit_code(termination: &Termination) -> u8 {
    match termination {
        // A wait status holds eight bits.
        Termination::Exited { code } => u8::try_from(code & 0xff).unwrap_or(u8::MAX),
        Termination::Signaled { signal } => of_signal(*signal),
        Termination::Timeout => TIMEOUT,
        // They are held by killing, where they are not held by refusing.
        Termination::Oom | Termination::Pids | Termination::Output | Termination::Disk => {
            of_signal(libc::SIGKILL)
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

/// How an execution under `limits` ended, in words.
pub(crate) fn message(termination: &Termination, limits: &Limits) -> String {
    match termination {
        Termination::Exited { code } => format!("exited with status {code}"),
        Termination::Signaled { signal } => format!("ended by {}", signal_name(*signal)),
        Termination::Timeout => match limits.wall_time {
            Some(limit) => format!("ended by the time limit of {}", format_duration(limit)),
            None => "ended by the time limit".to_owned(),
        },
        Termination::Oom => match limits.memory {
            Some(limit) => format!("ended by the memory limit of {}", format_size(limit)),
            None => "ended for lack of memory".to_owned(),
        },
        Termination::Pids => match limits.pids {
            Some(limit) => format!("failed at the limit of {limit} processes"),
            None => "failed for lack of processes".to_owned(),
        },
        Termination::Output => "ended for writing more than the limit on output".to_owned(),
        Termination::Disk => "failed while its scratch space was full".to_owned(),
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

/// Whether people who only see the program's output would not know how it ended.
pub(crate) fn is_worth_a_word(termination: &Termination) -> bool {
    !matches!(
        termination,
        Termination::Exited { .. } | Termination::Signaled { .. } | Termination::Cancelled
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn start_failed(errno: i32) -> Termination {
        Termination::StartFailed {
            errno,
            reason: "\"x\": no".to_owned(),
        }
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
            (Termination::Cancelled, 130, "cancelled"),
            (start_failed(libc::ENOENT), 127, "not started: \"x\": no"),
            (start_failed(libc::ENOTDIR), 127, "not started: \"x\": no"),
            (start_failed(libc::EACCES), 126, "not started: \"x\": no"),
            (start_failed(libc::ENOEXEC), 126, "not started: \"x\": no"),
            (start_failed(libc::E2BIG), 126, "not started: \"x\": no"),
        ];
        for (termination, code, words) in table {
            assert_eq!(
                (
                    exit_code(&termination),
                    message(&termination, &limits).as_str()
                ),
                (code, words)
            );
        }
    }
}
