//! What this host lets sbxrt do, found by doing it: the body of `sbxrt check`.
//!
//! Every check tries the thing itself, in a forked child that is gone afterwards, and never concludes from a version.
//! Only where something fails are settings read, to say why and what mends it. The last check is a whole run.
//!
//! # Examples
//!
//! ```no_run
//! use sbxrt_runtime::probe;
//!
//! sbxrt_runtime::init();
//! let report = probe::examine("/var/tmp/store".as_ref())?;
//! for check in &report.checks {
//!     println!("{:?} {}: {}", check.status, check.name, check.detail);
//! }
//! # Ok::<(), sbxrt_runtime::Error>(())
//! ```

mod advice;
mod attempt;
mod cgroups;
mod ids;
mod kernel;
mod mounts;
mod store;
mod whole;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Failure, Result};
use crate::remains::Remains;
use crate::request::{LimitName, Mechanism};

use advice::{Advice, Settings};

/// What was found on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    /// The version of this document's form: 1.
    pub version: u32,
    /// Whether a program can be run here at all: the check named `run` did not fail.
    pub ok: bool,
    /// What was tried, in the order in which one thing needs another.
    pub checks: Vec<Check>,
    /// What would hold each limit in a run here, with the default limits.
    pub limits: BTreeMap<LimitName, Mechanism>,
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// A stable name: `user_namespaces`, `overlay`, `run` …
    pub name: String,
    /// How it went.
    pub status: Status,
    /// What was found, in a line: where it failed, the system call as strace prints it.
    pub detail: String,
    /// Why it is not [`Status::Ok`].
    pub reason: Option<String>,
    /// What mends it: a command, where there is one.
    pub fix: Option<String>,
}

/// Why something does not work here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// In words.
    pub reason: String,
    /// What mends it: a command, where there is one.
    pub fix: Option<String>,
}

/// How a [`Check`] went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It works.
    Ok,
    /// It works, with less than there could be.
    Degraded,
    /// It does not work, and something needs it.
    Failed,
    /// It is not there, and nothing needs it.
    Missing,
}

impl Check {
    fn ok(name: &str, detail: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            status: Status::Ok,
            detail: detail.into(),
            reason: None,
            fix: None,
        }
    }

    fn not_ok(name: &str, status: Status, detail: impl Into<String>, advice: Advice) -> Self {
        Self {
            name: name.to_owned(),
            status,
            detail: detail.into(),
            reason: Some(advice.reason),
            fix: advice.fix,
        }
    }
}

/// Whether ended executions have left anything behind.
fn leftovers() -> Check {
    const NAME: &str = "leftovers";
    let Remains { cgroups, stuck } = Remains::find();
    let stuck: Vec<String> = stuck.iter().map(ToString::to_string).collect();
    let cgroups = match cgroups.as_slice() {
        [] => None,
        [first, ..] => Some(format!(
            "{} cgroups of dead processes, such as {}",
            cgroups.len(),
            first.display()
        )),
    };
    match (cgroups, stuck.is_empty()) {
        (None, true) => Check::ok(NAME, "nothing is left of ended runs"),
        (cgroups, true) => Check::not_ok(
            NAME,
            Status::Degraded,
            cgroups.unwrap_or_default(),
            Advice {
                reason: "sbxrt was killed before it could remove them".to_owned(),
                fix: Some("sbxrt gc".to_owned()),
            },
        ),
        (_, false) => Check::not_ok(
            NAME,
            Status::Degraded,
            format!("killed and still there: process {}", stuck.join(", ")),
            Advice {
                reason: "the kernel makes them wait for a file system that does not answer"
                    .to_owned(),
                fix: None,
            },
        ),
    }
}

/// Why no launcher could be made, and what mends it, where the host's settings tell.
pub fn explain(error: &Error) -> Option<Explanation> {
    let Error::Launcher { step, source } = error else {
        return None;
    };
    // The only step that settings of the host decide about.
    let namespaces = step.strip_prefix("clone(")?;
    let failure = Failure {
        errno: source.raw_os_error(),
        ..Failure::reason("", format!("clone3({namespaces}"), source.to_string())
    };
    let Advice { reason, fix } = advice::user_namespace(&failure, &Settings::read());
    Some(Explanation { reason, fix })
}

/// Tries everything that a run needs, with the image store in the directory `store`, which need not exist.
///
/// Nothing is left behind: what has to be made in the store's file system is a directory that is removed again. The
/// last check is a real run, which, like every run, may move the caller's processes into a leaf of a delegated cgroup.
///
/// To be called while this process has a single thread: the checks run in forks, in which the locks of other threads
/// would stay locked for ever. [`init`](crate::init) must have been called, or the check of a whole run fails.
///
/// # Errors
///
/// [`Error::Threads`] where there is more than one thread, [`Error::ProcUnreadable`] where that cannot be told. What
/// does not work on the host is never an error but a [`Check`].
pub fn examine(store: &Path) -> Result<HostReport> {
    let threads = std::fs::read_dir("/proc/self/task")
        .map_err(Error::ProcUnreadable)?
        .count();
    if threads != 1 {
        return Err(Error::Threads { threads });
    }
    let settings = Settings::read();
    let mut checks = vec![kernel::version()];
    let user_namespaces = kernel::user_namespaces(&settings);
    let isolated = user_namespaces.status == Status::Ok;
    checks.push(user_namespaces);
    let isolation_permitting = |name: &str, check: fn(&Settings) -> Check| {
        if isolated {
            check(&settings)
        } else {
            not_tried(name)
        }
    };
    checks.push(isolation_permitting("namespaces", kernel::namespaces));
    checks.push(isolation_permitting("procfs", kernel::procfs));
    checks.push(isolation_permitting("mount_api", kernel::mount_api));
    let overlay = isolation_permitting("overlay", kernel::overlay);
    let overlays = overlay.status != Status::Failed;
    checks.push(overlay);
    let (stored, overlay_on_store) = store::check(store, overlays);
    checks.push(stored);
    checks.push(overlay_on_store);
    checks.push(kernel::seccomp(&settings));
    let (delegated, predicted) = cgroups::check(settings.container);
    let cgroup = checks.len();
    checks.push(delegated);
    checks.push(ids::check(isolated));
    checks.push(kernel::fuse(isolated));
    let (run, enforcement) = whole::run(&settings);
    let ok = run.status != Status::Failed;
    checks.push(run);
    checks.push(leftovers());
    let mut limits = predicted;
    if let Some(enforcement) = enforcement {
        limits.extend(enforcement);
        cgroups::correct(&mut checks[cgroup], settings.container, &limits);
    }
    Ok(HostReport {
        version: 1,
        ok,
        checks,
        limits,
    })
}

/// A check that needs user namespaces where there are none.
fn not_tried(name: &str) -> Check {
    Check {
        name: name.to_owned(),
        status: Status::Failed,
        detail: "not tried".to_owned(),
        reason: Some("it needs user namespaces, which do not work here".to_owned()),
        fix: None,
    }
}
