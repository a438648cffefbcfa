//! From a [`Request`] to a finished, measured process: the engine of sbxrt, and the only home of libcontainer.
//!
//! ```text
//! caller ── Launcher::spawn ──▶ launcher            own user, mount and pid namespaces; single-threaded
//!                                ├─ builder         one per execution: assembles /, calls libcontainer, is gone
//!                                └─ first process   of the container: reaps, reports
//!                                    └─ program     own user namespace and cgroup, no capability, filtered
//! ```
//!
//! libcontainer is never called from a process with threads, never twice in one process, and sees a read-only
//! cgroup v2 file system only. Everything that is made for an execution lives in namespaces and descriptors that the
//! kernel takes down with its processes; only its cgroup is removed by hand, by a guard.
//!
//! Linux only: cgroup v2 is used where it is delegated, user namespaces, overlayfs in them (5.11) and
//! `mount_setattr` (5.12) are needed.

mod builder;
mod cgroup;
mod channel;
mod cpuset;
mod disk;
mod error;
mod files;
mod guest;
mod landlock;
mod launcher;
mod living;
mod outputs;
mod overlay;
pub mod probe;
mod remains;
mod report;
mod request;
mod room;
mod rootfs;
pub mod seccomp;
mod space;
mod spec;
mod supervisor;
mod sys;
mod user;
mod watchdog;

pub use cpuset::{Cpuset, CpusetError};
pub use error::{Error, Failure, Result};
pub use files::InputFile;
pub use outputs::{FileKind, OutputFile, OutputLimits, OutputPath, Outputs};
pub use remains::Remains;
pub use report::{
    Evidence, Isolation, PeakSource, Report, Sender, Space, Termination, Timings, Usage,
};
pub use request::{
    Assignment, LimitName, Limits, Mechanism, Mount, MountSource, Network, Process, Request,
    Requirement, Rlimit, RlimitResource, Root, UnknownName, WindowSize,
};
pub use room::Room;
pub use supervisor::{Launcher, Prepared, Progress, Run, init};

/// The `PATH` of an image that names none, as in Docker.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The runtime spec that libcontainer would get for `request`, as JSON: what `--print-spec` shows.
///
/// # Errors
///
/// Fails only where oci-spec refuses a value; none that is used here is one.
pub fn print_spec(request: &Request) -> serde_json::Result<serde_json::Value> {
    let spec =
        spec::build(request, std::path::Path::new("rootfs")).map_err(serde::ser::Error::custom)?;
    serde_json::to_value(spec)
}
