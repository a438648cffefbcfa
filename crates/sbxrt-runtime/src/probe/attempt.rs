//! Trying something in a forked child: what goes wrong there, a crash and a hang included, stays there.

use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeSpec;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getegid, geteuid, pipe2};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::sys;

/// How long an attempt may take: a dead network file system would hold it for ever.
const DEADLINE: Duration = Duration::from_secs(10);

/// Where something is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In a plain fork.
    Here,
    /// As root of a new user namespace, with other new namespaces (`CLONE_NEW*`).
    UserNamespace(i32),
}

/// Runs `work` in a child and tells what it returned. The caller has a single thread (see [`super::examine`]).
pub(super) fn attempt<T: Serialize + DeserializeOwned>(
    place: Place,
    work: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(|error| failed("pipe2", error))?;
    let ids = (geteuid().as_raw(), getegid().as_raw());
    let (flags, call) = match place {
        Place::Here => (0, "clone3()".to_owned()),
        Place::UserNamespace(others) => {
            let flags = libc::CLONE_NEWUSER | others;
            (flags, format!("clone3({})", names_of(flags)))
        }
    };
    match sys::fork_into(flags, None).map_err(|error| failed(call, error))? {
        sys::Forked::Child => {
            drop(reader);
            let work = || {
                if flags != 0 {
                    become_root(ids)?;
                }
                work()
            };
            let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_panic| {
                Err(Failure::reason(
                    STEP,
                    "the attempt",
                    "panicked, which is a bug",
                ))
            });
            tell(writer, outcome);
            sys::exit_now(0)
        }
        sys::Forked::Parent(pid) => {
            drop(writer);
            let outcome = hear(&reader, Instant::now() + DEADLINE);
            collect(Pid::from_raw(pid));
            outcome
        }
    }
}

const STEP: &str = "try";

/// A system call that failed in an attempt.
pub(super) fn failed(call: impl Into<String>, error: impl Into<io::Error>) -> Failure {
    Failure::new(STEP, call, error)
}

/// Something else that went wrong in an attempt.
pub(super) fn wrong(what: impl Into<String>, reason: impl Into<String>) -> Failure {
    Failure::reason(STEP, what, reason)
}

/// A system call on a path, as strace prints it.
pub(super) fn on(call: &str, path: &Path) -> String {
    format!("{call}(\"{}\")", path.display())
}

/// A failure in a line, as strace would print it.
pub(super) fn line(failure: &Failure) -> String {
    format!("{}: {}", failure.subject, failure.reason)
}

/// Maps root of this new user namespace to the ids that its creator has.
pub(super) fn become_root((uid, gid): (u32, u32)) -> Result<(), Failure> {
    for (file, contents) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {uid} 1")),
        ("gid_map", format!("0 {gid} 1")),
    ] {
        let path = format!("/proc/self/{file}");
        std::fs::write(&path, &contents)
            .map_err(|error| failed(format!("write({path:?}, {contents:?})"), error))?;
    }
    Ok(())
}

/// The namespaces in `flags`, as strace prints them.
pub(super) fn names_of(flags: i32) -> String {
    let names = [
        (libc::CLONE_NEWUSER, "CLONE_NEWUSER"),
        (libc::CLONE_NEWNS, "CLONE_NEWNS"),
        (libc::CLONE_NEWPID, "CLONE_NEWPID"),
        (libc::CLONE_NEWNET, "CLONE_NEWNET"),
        (libc::CLONE_NEWIPC, "CLONE_NEWIPC"),
        (libc::CLONE_NEWUTS, "CLONE_NEWUTS"),
        (libc::CLONE_NEWCGROUP, "CLONE_NEWCGROUP"),
    ];
    let names: Vec<&str> = names
        .into_iter()
        .filter(|(flag, _)| flags & flag != 0)
        .map(|(_, name)| name)
        .collect();
    names.join("|")
}

#[derive(Serialize, Deserialize)]
enum Outcome<T> {
    Done(T),
    Failed(Failure),
}

fn tell<T: Serialize>(pipe: OwnedFd, outcome: Result<T, Failure>) {
    let outcome = match outcome {
        Ok(value) => Outcome::Done(value),
        Err(failure) => Outcome::Failed(failure),
    };
    if let Ok(text) = serde_json::to_vec(&outcome) {
        // Where nothing arrives, the parent says so.
        drop(std::fs::File::from(pipe).write_all(&text));
    }
}

fn hear<T: DeserializeOwned>(pipe: &OwnedFd, deadline: Instant) -> Result<T, Failure> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut polled = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut polled, Some(TimeSpec::from_duration(left)), None) {
            Ok(0) => {
                return Err(wrong(
                    "the attempt",
                    format!("not done after {} s", DEADLINE.as_secs()),
                ));
            }
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(failed("poll", error)),
        }
        match nix::unistd::read(pipe, &mut buffer) {
            Ok(0) => break,
            Ok(length) => text.extend_from_slice(&buffer[..length]),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(failed("read", error)),
        }
    }
    match serde_json::from_slice(&text) {
        Ok(Outcome::Done(value)) => Ok(value),
        Ok(Outcome::Failed(failure)) => Err(failure),
        Err(_) => Err(wrong(
            "the attempt",
            "its process ended without an answer: killed, or by a system call filter",
        )),
    }
}

/// Ends and reaps the child. One that hangs in the kernel is left to die when it can.
fn collect(child: Pid) {
    // It has not been waited for, so the number is still its own.
    let _ = kill(child, Signal::SIGKILL);
    let deadline = Instant::now() + Duration::from_secs(1);
    while let Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) =
        waitpid(child, Some(WaitPidFlag::WNOHANG))
    {
        if Instant::now() > deadline {
            return;
        }
        let pause = TimeSpec::from_duration(Duration::from_millis(2));
        let _ = ppoll(&mut [], Some(pause), None);
    }
}
