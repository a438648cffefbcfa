//! The launcher process: first process of a pid namespace of its own, single-threaded, root over a user namespace
//! in which only its own id exists.
//!
//! It takes requests from the caller's socket, forks a [builder](crate::builder) for each, and then waits: for the
//! end of containers, for orders, for deadlines. It ends when the caller's socket closes, and with it, because it is
//! the first process of their pid namespace, every process of every container.
//!
//! This file is the process and its loop; [`run`](self::run) is the life of one execution, [`account`] what is said of it
//! afterwards.

mod account;
mod run;

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};

use self::run::Run;
use crate::cgroup::{self, Leaves};
use crate::channel::{self, Event};
use crate::error::Failure;
use crate::sys;

/// The descriptor on which a launcher finds the caller's socket.
pub(crate) const CONTROL: i32 = 3;
/// The descriptor on which it finds the delegated cgroup, where there is one.
pub(crate) const SUBTREE: i32 = 4;

/// What a launcher is told when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// The caller's pid in its own pid namespace.
    pub(crate) owner: i32,
    /// Whether the caller is the host's root user.
    pub(crate) caller_is_root: bool,
    /// Whether descriptor [`SUBTREE`] is a delegated cgroup.
    pub(crate) has_subtree: bool,
}

/// Runs the launcher until the caller is gone. Returns the exit status.
pub(crate) fn run() -> i32 {
    let Ok(control) = sys::adopt(CONTROL) else {
        return 125;
    };
    let Ok(Some((setup, _))) = channel::receive::<Setup>(control.as_fd()) else {
        return 125;
    };
    let (leaves, broken) = match prepare(&setup) {
        Ok(leaves) => (leaves, None),
        Err(failure) => (None, Some(failure)),
    };
    let caller_is_root = setup.caller_is_root;
    let mut launcher = Launcher {
        control,
        caller_is_root,
        leaves,
        broken,
        runs: Vec::new(),
    };
    launcher.serve();
    0
}

/// Makes this process's view of the host fit for libcontainer.
fn prepare(setup: &Setup) -> Result<Option<Leaves>, Failure> {
    const STEP: &str = "prepare the launcher";
    // For ps; without a name of its own it would be called by the number of the descriptor that it was executed from.
    let _ = nix::sys::prctl::set_name(c"sbxrt-launcher");
    // Nothing of the caller's is kept: who reads its output must not wait for this process.
    let null = null().map_err(|error| Failure::new(STEP, "/dev/null", error))?;
    for stream in 0..=1 {
        sys::duplicate_onto(&null, stream).map_err(|error| Failure::new(STEP, "dup2", error))?;
    }
    nix::unistd::chdir("/").map_err(|error| Failure::new(STEP, "chdir(\"/\")", error))?;
    // What programs start with, as in Docker.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_retain(0o022));
    let flags = nix::mount::MsFlags::MS_NOSUID
        | nix::mount::MsFlags::MS_NODEV
        | nix::mount::MsFlags::MS_NOEXEC;
    nix::mount::mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>).map_err(
        |error| {
            Failure::new(
                STEP,
                "mount(\"proc\", \"/proc\") in a new user and pid namespace",
                error,
            )
        },
    )?;
    let leaves = if setup.has_subtree {
        let failed = |error| Failure::new(STEP, "cgroup.subtree_control", error);
        let subtree = sys::adopt(SUBTREE).map_err(failed)?;
        Some(Leaves::new(subtree, setup.owner).map_err(failed)?)
    } else {
        None
    };
    shield_cgroups()
        .map_err(|error| Failure::new(STEP, "a read-only cgroup2 on /sys/fs/cgroup", error))?;
    Ok(leaves)
}

/// Shows libcontainer a read-only cgroup2 file system, whatever the host has.
///
/// libcontainer always wants to make a cgroup. On version 1 it fails without rights; with rights it would move
/// processes (11-16 ms on an idle machine) and, given a wrong path, kill them. On version 2 it takes a read-only file
/// system for a container in a container and leaves cgroups alone. So it gets one, and the leaves of executions are
/// made through descriptors that were opened before.
fn shield_cgroups() -> io::Result<()> {
    let target = Path::new("/sys/fs/cgroup");
    let tree = if let Some(mounted) = cgroup::mount_point() {
        let mounted = std::ffi::CString::new(mounted.as_os_str().as_encoded_bytes())?;
        let root = open_path(Path::new("/"))?;
        sys::clone_tree(root.as_fd(), &mounted, false)?
    } else {
        // A host with version 1 alone: an instance of our own, for which a cgroup namespace of our own gives the
        // right.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP)?;
        sys::detached_filesystem(c"cgroup2")?
    };
    sys::restrict_tree(tree.as_fd(), libc::MOUNT_ATTR_RDONLY, false)?;
    sys::attach_tree(tree.as_fd(), open_path(target)?.as_fd())
}

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(
        path,
        flags,
        nix::sys::stat::Mode::empty(),
    )?)
}

struct Launcher {
    control: OwnedFd,
    caller_is_root: bool,
    leaves: Option<Leaves>,
    /// Why nothing can be run. Each request is answered with it: the caller does not wait for this process to be ready.
    broken: Option<Failure>,
    runs: Vec<Run>,
}

/// What a poll entry belongs to.
#[derive(Debug, Clone, Copy)]
enum Source {
    Control,
    Caller(usize),
    BuildEvents(usize),
    InitEvents(usize),
    Builder(usize),
    Init(usize),
}

impl Launcher {
    fn serve(&mut self) {
        loop {
            match self.wait() {
                Ok(ready) => {
                    for source in ready {
                        if !self.handle(source) {
                            self.abandon();
                            return;
                        }
                    }
                }
                // Without waiting there is no holding of limits: everything ends with this process.
                Err(_) => return,
            }
            let now = Instant::now();
            for run in &mut self.runs {
                run.tick(now);
            }
            self.runs.retain_mut(|run| !run.finish());
        }
    }

    /// Waits until something happens or is due; says what happened.
    fn wait(&self) -> io::Result<Vec<Source>> {
        let mut sources = vec![(Source::Control, self.control.as_fd())];
        for (index, run) in self.runs.iter().enumerate() {
            let entries = [
                (
                    Source::BuildEvents(index),
                    run.build_events.as_ref().map(AsFd::as_fd),
                ),
                (
                    Source::InitEvents(index),
                    run.init_events
                        .as_ref()
                        .filter(|_| run.hears_init)
                        .map(AsFd::as_fd),
                ),
                (
                    Source::Builder(index),
                    run.builder.as_ref().map(|child| child.pidfd.as_fd()),
                ),
                (
                    Source::Init(index),
                    run.init.as_ref().map(|child| child.pidfd.as_fd()),
                ),
                (
                    Source::Caller(index),
                    run.caller
                        .as_ref()
                        .filter(|_| run.hears_caller)
                        .map(AsFd::as_fd),
                ),
            ];
            sources.extend(
                entries
                    .into_iter()
                    .filter_map(|(source, fd)| Some((source, fd?))),
            );
        }
        let mut polled: Vec<PollFd<'_>> = sources
            .iter()
            .map(|(_, fd)| PollFd::new(*fd, PollFlags::POLLIN))
            .collect();
        let due = self.runs.iter().filter_map(Run::due).min();
        let timeout =
            due.map(|due| TimeSpec::from_duration(due.saturating_duration_since(Instant::now())));
        match ppoll(&mut polled, timeout, None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = polled
            .iter()
            .zip(&sources)
            .filter(|(fd, _)| fd.any().unwrap_or(false));
        Ok(ready.map(|(_, (source, _))| *source).collect())
    }

    /// Handles one event. `false` means that the caller is gone.
    fn handle(&mut self, source: Source) -> bool {
        match source {
            Source::Control => return self.accept(),
            Source::Caller(index) => self.runs[index].obey(),
            Source::BuildEvents(index) => self.runs[index].hear_builder(),
            Source::InitEvents(index) => {
                self.runs[index].hear_init();
            }
            Source::Init(index) => self.runs[index].reap_init(),
            Source::Builder(index) => {
                self.runs[index].reap_builder();
                self.kill_leftovers();
            }
        }
        true
    }

    /// Takes a request. `false` means that the caller is gone.
    fn accept(&mut self) -> bool {
        let mut descriptors = match channel::receive::<Submission>(self.control.as_fd()) {
            Ok(Some((Submission, descriptors))) => descriptors.into_iter(),
            Ok(None) | Err(_) => return false,
        };
        let (Some(request), Some(caller)) = (descriptors.next(), descriptors.next()) else {
            return true;
        };
        let streams = [descriptors.next(), descriptors.next(), descriptors.next()];
        match self.start(request, streams) {
            Ok(mut run) => {
                run.caller = Some(caller);
                self.runs.push(run);
            }
            // Where the caller does not listen any more, nobody wants to know.
            Err(failure) => drop(channel::send(caller.as_fd(), &Event::Failed(failure), &[])),
        }
        true
    }

    fn start(&self, request: OwnedFd, streams: [Option<OwnedFd>; 3]) -> Result<Run, Failure> {
        match &self.broken {
            Some(failure) => Err(failure.clone()),
            None => Run::start(request, streams, self.leaves.as_ref(), self.caller_is_root),
        }
    }

    /// Ends what a dead builder has left: its children have become this process's, and belong to no execution.
    fn kill_leftovers(&mut self) {
        // In this order: a builder reports before it ends, so whoever is a child of this process by now is known once all
        // reports are heard, unless it is left over.
        let Ok(children) = std::fs::read_to_string("/proc/self/task/1/children") else {
            return;
        };
        for run in &mut self.runs {
            run.hear_builder();
        }
        let owned: HashSet<libc::pid_t> = self
            .runs
            .iter()
            .flat_map(|run| [&run.builder, &run.init])
            .flatten()
            .map(|child| child.pid)
            .collect();
        for pid in children
            .split_ascii_whitespace()
            .filter_map(|pid| pid.parse().ok())
        {
            if !owned.contains(&pid) {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
                drop(sys::wait_for(pid));
            }
        }
    }

    /// The caller is gone: ends everything, so that the cgroups can be removed before this process ends too.
    fn abandon(&mut self) {
        for child in self
            .runs
            .iter()
            .flat_map(|run| [&run.builder, &run.init])
            .flatten()
        {
            child.kill();
        }
        for child in self
            .runs
            .iter()
            .flat_map(|run| [&run.builder, &run.init])
            .flatten()
        {
            drop(sys::wait_for(child.pid));
        }
        self.runs.clear();
    }
}

fn null() -> io::Result<OwnedFd> {
    let flags = nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(
        "/dev/null",
        flags,
        nix::sys::stat::Mode::empty(),
    )?)
}

/// The packet that carries a request's descriptors: the request itself, the execution's socket, and the program's
/// standard streams unless it has a terminal.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Submission;
