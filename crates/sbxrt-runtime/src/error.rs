//! What can go wrong between a request and a started process.

use std::io;

use serde::{Deserialize, Serialize};

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A step that failed before the program ran. What the program itself does is never an error but a
/// [`Report`](crate::Report).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// [`init`](crate::init) was not the first thing that `main` did, so there is no launcher to re-execute.
    #[error("sbxrt::init() was not called at the start of main()")]
    NotInitialized,
    /// The launcher process could not be created.
    #[error("start the launcher: {step}")]
    Launcher {
        /// The system call, as strace prints it.
        step: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The launcher ended while it was still needed.
    #[error("the launcher ended before it answered")]
    LauncherGone,
    /// The conversation with the launcher broke.
    #[error("talk to the launcher")]
    Channel(#[source] io::Error),
    /// The host can only be examined by a process with a single thread, because that is done in forks.
    #[error("examine the host: this process has {threads} threads")]
    Threads {
        /// How many it has.
        threads: usize,
    },
    /// It could not be told how many threads this process has.
    #[error("examine the host: read_dir(\"/proc/self/task\")")]
    ProcUnreadable(#[source] io::Error),
    /// The sandbox could not be set up; nothing of the program ran.
    #[error(transparent)]
    Start(#[from] Failure),
}

/// A failed step of a process on the other side of a socket: what [`Error::Start`] carries home.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{step}: {subject}: {reason}")]
pub struct Failure {
    /// The step, in words that read after "failed to".
    pub step: String,
    /// What it was done to: a path, a limit, a system call.
    pub subject: String,
    /// Why it failed.
    pub reason: String,
    /// The kernel's error number, where there is one.
    pub errno: Option<i32>,
}

impl Failure {
    /// Describes a failed system call or file operation.
    pub fn new(
        step: impl Into<String>,
        subject: impl Into<String>,
        error: impl Into<io::Error>,
    ) -> Self {
        let error = error.into();
        let errno = error.raw_os_error();
        Self {
            step: step.into(),
            subject: shortened(subject.into()),
            reason: describe(&error),
            errno,
        }
    }

    /// Describes a step that failed for a reason in words.
    pub fn reason(
        step: impl Into<String>,
        subject: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self {
            step: step.into(),
            subject: shortened(subject.into()),
            reason: shortened(reason.into()),
            errno: None,
        }
    }
}

/// As much of a text as fits in a message between processes, however long an image, or its user, has made it.
pub(crate) fn shortened(mut text: String) -> String {
    /// The longest path that Linux takes. JSON makes at most six bytes of one.
    const LIMIT: usize = 4096;
    if text.len() > LIMIT {
        let end = (0..=LIMIT).rfind(|&end| text.is_char_boundary(end));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
    text
}

/// The message with the symbolic name of the error in front, as strace prints it.
pub(crate) fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => {
            let errno = nix::errno::Errno::from_raw(number);
            format!("{errno:?}: {}", errno.desc())
        }
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_fits_in_a_message() {
        let failure = Failure::reason("start", "\u{1}".repeat(70_000), "ü".repeat(70_000));
        assert!(serde_json::to_vec(&failure).unwrap().len() < 48 << 10);
        assert!(failure.subject.ends_with('…') && failure.reason.ends_with("ü…"));
        assert_eq!(Failure::reason("start", "short", "").subject, "short");
    }
}
