//! The launcher process: first process of a pid namespace of its own, single-threaded, root over a user namespace
//! in which only its own id exists.
//!
//! It takes requests from the caller's socket, forks a [builder](crate::builder) for each, and then waits: for the
//! end of containers, for orders, for deadlines. It ends when the caller's socket closes, and with it, because it is
//! the first process of their pid namespace, every process of every container.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};

use crate::builder::Build;
use crate::cgroup::{self, Counters, Leaf, Leaves};
use crate::channel::{self, BuildEvent, Event, InitEvent, Order};
use crate::error::Failure;
use crate::guest::is_asked;
use crate::overlay::UpperWork;
use crate::report::{PeakSource, Report, Termination, Timings, Usage};
use crate::request::{LimitName, Mechanism, Request};
use crate::sys;
use crate::watchdog::{Watchdog, Watched};

/// The descriptor on which a launcher finds the caller's socket.
pub(crate) const CONTROL: i32 = 3;
/// The descriptor on which it finds the delegated cgroup, where there is one.
pub(crate) const SUBTREE: i32 = 4;

/// How long a builder may take: a root file system on a hanging network mount must not hold the caller for ever.
const BUILD_DEADLINE: Duration = Duration::from_secs(60);
/// How often the counters of a cgroup are looked at.
const COUNTERS_PAUSE: Duration = Duration::from_millis(50);
/// A program that was refused so many forks or threads is not going to stop asking.
const REFUSED_FORKS_LIMIT: u64 = 1000;

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
        const STEP: &str = "take the request";
        let began = Instant::now();
        let failed = |what: &'static str| move |error: io::Error| Failure::new(STEP, what, error);
        if let Some(failure) = &self.broken {
            return Err(failure.clone());
        }
        let request: Request = channel::disclose(request).map_err(failed("read it"))?;
        let limits = &request.limits;
        let mechanisms: BTreeMap<LimitName, Mechanism> = LimitName::ALL
            .iter()
            .filter(|&&limit| is_asked(limit, limits))
            .map(|&limit| {
                let mechanism = match limit {
                    // It is somebody's disk, and has no size of its own.
                    LimitName::Scratch if request.upper.is_some() => Mechanism::None,
                    _ => {
                        cgroup::mechanism(limit, limits, self.leaves.as_ref(), self.caller_is_root)
                    }
                };
                (limit, mechanism)
            })
            .collect();
        for (limit, required) in &request.require {
            let Some(&mechanism) = mechanisms.get(limit) else {
                continue;
            };
            if !required.is_met_by(mechanism) {
                return Err(Failure::reason(
                    "hold a limit",
                    limit.to_string(),
                    match mechanism {
                        Mechanism::None => {
                            format!("{required} is required, but nothing can hold it here")
                        }
                        _ => {
                            format!("{required} is required, but only {mechanism} can hold it here")
                        }
                    },
                ));
            }
        }
        let held = |limit| mechanisms.get(&limit).copied().unwrap_or(Mechanism::None);
        let leaf = match &self.leaves {
            Some(leaves)
                if mechanisms
                    .values()
                    .any(|&mechanism| mechanism == Mechanism::Cgroup2) =>
            {
                Some(leaves.create(&request.id, limits).map_err(|error| {
                    Failure::new("hold a limit", format!("cgroup of {}", request.id), error)
                })?)
            }
            _ => None,
        };
        let (build_events, build_sender) = channel::pair().map_err(failed("socketpair"))?;
        let (init_events, init_sender) = channel::pair().map_err(failed("socketpair"))?;
        for events in [&build_events, &init_events] {
            // Other processes may hold the far end open for a while longer than the one that was to speak.
            channel::set_nonblocking(events).map_err(failed("fcntl"))?;
        }
        let [stdin, stdout, stderr] = streams.map(|stream| stream.map_or_else(null, Ok));
        let streams = [
            stdin.map_err(failed("/dev/null"))?,
            stdout.map_err(failed("/dev/null"))?,
            stderr.map_err(failed("/dev/null"))?,
        ];
        let pid = match sys::fork_into(0, None).map_err(failed("clone3"))? {
            sys::Forked::Parent(pid) => pid,
            sys::Forked::Child => {
                let cgroup = leaf.as_ref().map(Leaf::directory);
                let mut kept = vec![build_sender.as_fd(), init_sender.as_fd()];
                kept.extend(streams.iter().map(AsFd::as_fd));
                kept.extend(cgroup);
                if sys::keep_only(&kept).is_err() {
                    sys::exit_now(1);
                }
                let _ = nix::sys::prctl::set_name(c"sbxrt-builder");
                let memory = held(LimitName::Memory);
                let pids = held(LimitName::Pids);
                let cpus = held(LimitName::Cpus);
                let build = Build {
                    request: &request,
                    memory,
                    pids,
                    cpus,
                    streams,
                    init: init_sender,
                    cgroup,
                };
                sys::exit_now(build.run(build_sender.as_fd()));
            }
        };
        let builder = Child::new(pid).map_err(failed("pidfd_open"))?;
        Ok(Run {
            caller: None,
            hears_caller: true,
            mechanisms,
            builder: Some(builder),
            build_events: Some(build_events),
            init: None,
            init_events: Some(init_events),
            hears_init: true,
            leaf,
            upper_work: request
                .upper
                .as_deref()
                .map(|upper| UpperWork::new(upper, &request.id)),
            watchdog: None,
            deadline: Some(began + BUILD_DEADLINE),
            look: None,
            started: None,
            ended: None,
            verdict: None,
            exit: None,
            failure: None,
            not_executed: None,
            timings: Timings::default(),
            request,
        })
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

/// A child process that is still to be waited for.
#[derive(Debug)]
struct Child {
    pid: libc::pid_t,
    pidfd: OwnedFd,
}

impl Child {
    fn new(pid: libc::pid_t) -> io::Result<Self> {
        Ok(Self {
            pid,
            pidfd: sys::pidfd_open(pid)?,
        })
    }

    fn kill(&self) {
        // It may have ended; its pid stays taken until it is waited for.
        drop(sys::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL));
    }
}

/// Watches the container whose first process is `pid`, or nothing where the program is over before the watchdog has
/// come to it: a process that is ending cannot be looked at any more a moment before it has ended.
fn watch_living(pid: libc::pid_t, watched: Watched) -> io::Result<Option<Watchdog>> {
    const TRIES: usize = 50;
    let mut result = Watchdog::new(pid, watched).map(Some);
    for _ in 0..TRIES {
        if result.is_ok() {
            break;
        }
        if is_over(pid) {
            return Ok(None);
        }
        let pause = TimeSpec::from_duration(Duration::from_millis(1));
        let _ = ppoll(&mut [], Some(pause), None);
        result = Watchdog::new(pid, watched).map(Some);
    }
    result
}

/// Whether the child `pid`, not yet waited for, has ended.
fn is_over(pid: libc::pid_t) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// One execution, from its request to its report.
#[derive(Debug)]
struct Run {
    /// Where events go and orders come from.
    caller: Option<OwnedFd>,
    hears_caller: bool,
    request: Request,
    mechanisms: BTreeMap<LimitName, Mechanism>,
    builder: Option<Child>,
    build_events: Option<OwnedFd>,
    init: Option<Child>,
    init_events: Option<OwnedFd>,
    hears_init: bool,
    leaf: Option<Leaf>,
    upper_work: Option<UpperWork>,
    watchdog: Option<Watchdog>,
    deadline: Option<Instant>,
    /// When to look at the cgroup's counters.
    look: Option<Instant>,
    started: Option<Instant>,
    ended: Option<Instant>,
    /// Why the launcher ended it, where it did.
    verdict: Option<Termination>,
    exit: Option<Exit>,
    failure: Option<Failure>,
    not_executed: Option<(i32, String)>,
    timings: Timings,
}

/// The end of the program as the container's first process saw it.
#[derive(Debug, Clone, Copy)]
struct Exit {
    status: i32,
    wall_time: Duration,
    user_time: Duration,
    system_time: Duration,
    /// In bytes.
    largest_process: u64,
    /// How many processes there were at that moment, where their number is limited.
    processes: u64,
}

impl Run {
    /// When it wants to be looked at.
    fn due(&self) -> Option<Instant> {
        [
            self.deadline,
            self.look,
            self.watchdog.as_ref().map(|watchdog| watchdog.next),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what is due.
    fn tick(&mut self, now: Instant) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            if self.init.is_some() {
                self.end(Termination::Timeout);
            } else {
                self.failure.get_or_insert_with(|| {
                    Failure::reason(
                        "create the container",
                        &*self.request.id,
                        format!("not done after {BUILD_DEADLINE:?}"),
                    )
                });
                self.kill();
            }
            self.deadline = None;
        }
        if self.look.is_some_and(|look| look <= now) {
            self.look = Some(now + COUNTERS_PAUSE);
            if self
                .leaf
                .as_ref()
                .is_some_and(|leaf| leaf.pids_refused() >= REFUSED_FORKS_LIMIT)
            {
                self.end(Termination::Pids);
            }
        }
        if let Some(watchdog) = self
            .watchdog
            .as_mut()
            .filter(|watchdog| watchdog.next <= now)
        {
            match watchdog.look() {
                Some(LimitName::Memory) => self.end(Termination::Oom),
                Some(LimitName::Pids) => self.end(Termination::Pids),
                _ => {}
            }
        }
    }

    /// Ends the container for the reason `verdict`, unless it has ended already.
    fn end(&mut self, verdict: Termination) {
        if self.exit.is_none() && self.verdict.is_none() {
            self.verdict = Some(verdict);
            self.account();
        }
        self.stop_watching();
        self.kill();
    }

    /// Takes account of what is used before it is ended: the kernel throws the times of processes away that die with
    /// their pid namespace.
    fn account(&mut self) {
        if self.leaf.is_some() {
            return;
        }
        if let (None, Some(init)) = (&self.watchdog, &self.init) {
            // A container that cannot be looked at is over, and has reported.
            self.watchdog = Watchdog::new(init.pid, Watched::default()).ok();
        }
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.account();
        }
    }

    fn kill(&self) {
        for child in [&self.builder, &self.init].into_iter().flatten() {
            child.kill();
        }
    }

    fn stop_watching(&mut self) {
        self.deadline = None;
        self.look = None;
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.retire();
        }
    }

    fn obey(&mut self) {
        let Some(caller) = &self.caller else { return };
        match channel::receive::<Order>(caller.as_fd()) {
            Ok(Some((order @ Order::Signal(_), _))) => {
                if let Some(init) = &self.init_events {
                    // Where it has ended, there is nobody to signal.
                    drop(channel::send(init.as_fd(), &order, &[]));
                }
            }
            Ok(Some((Order::Cancel, _))) => self.end(Termination::Cancelled),
            Ok(None) | Err(_) => {
                self.hears_caller = false;
                self.end(Termination::Cancelled);
            }
        }
    }

    fn hear_builder(&mut self) {
        let Some(events) = &self.build_events else {
            return;
        };
        let heard = channel::receive::<BuildEvent>(events.as_fd());
        if self.builder.is_some()
            && matches!(&heard, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
        {
            return;
        }
        self.build_events = None;
        match heard {
            Ok(Some((
                BuildEvent::Created {
                    pid,
                    prepare_micros,
                    create_micros,
                },
                _,
            ))) => {
                self.timings.prepare = Duration::from_micros(prepare_micros);
                self.timings.create = Duration::from_micros(create_micros);
                if let Err(failure) = self.watch(pid) {
                    self.failure.get_or_insert(failure);
                    self.kill();
                }
            }
            Ok(Some((BuildEvent::Failed(failure), _))) => {
                self.failure.get_or_insert(failure);
            }
            Ok(None) | Err(_) => {
                if self.verdict.is_none() {
                    self.failure.get_or_insert_with(|| {
                        Failure::reason(
                            "create the container",
                            &*self.request.id,
                            "the builder ended without a report",
                        )
                    });
                }
            }
        }
    }

    /// The container's first process exists: from now on limits are held.
    fn watch(&mut self, pid: libc::pid_t) -> Result<(), Failure> {
        let init = Child::new(pid)
            .map_err(|error| Failure::new("watch the container", "pidfd_open", error))?;
        let now = Instant::now();
        self.started = Some(now);
        self.deadline = self.request.limits.wall_time.map(|limit| now + limit);
        self.look = self.leaf.as_ref().map(|_| now + COUNTERS_PAUSE);
        self.init = Some(init);
        if self.verdict.is_some() {
            // Cancelled while it was built.
            self.kill();
            return Ok(());
        }
        let limits = &self.request.limits;
        let watched_by = |limit, mechanism| self.mechanisms.get(&limit) == Some(&mechanism);
        let watched = Watched {
            memory: limits
                .memory
                .filter(|_| watched_by(LimitName::Memory, Mechanism::Watchdog)),
            pids: limits
                .pids
                .filter(|_| watched_by(LimitName::Pids, Mechanism::Watchdog)),
            pids_noticed: limits
                .pids
                .filter(|_| watched_by(LimitName::Pids, Mechanism::Rlimit)),
            cpus: limits
                .cpus
                .filter(|_| watched_by(LimitName::Cpus, Mechanism::Watchdog)),
        };
        if !watched.is_empty() {
            self.watchdog = watch_living(pid, watched).map_err(|error| {
                let proc = format!("/proc/{pid}/root/proc");
                Failure::new("watch the container", proc, error)
            })?;
        }
        Ok(())
    }

    /// `false` means that there is nothing more to hear.
    fn hear_init(&mut self) -> bool {
        let Some(events) = &self.init_events else {
            return false;
        };
        match channel::receive::<InitEvent>(events.as_fd()) {
            Ok(Some((InitEvent::Started { start_micros }, descriptors))) => {
                self.timings.start =
                    Duration::from_micros(start_micros).saturating_sub(self.timings.create);
                let terminal: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
                if let Some(caller) = &self.caller {
                    // A caller that is gone is noticed where its orders are heard.
                    drop(channel::send(caller.as_fd(), &Event::Started, &terminal));
                }
            }
            Ok(Some((
                InitEvent::Exited {
                    status,
                    wall_micros,
                    user_micros,
                    system_micros,
                    largest_process,
                    processes,
                },
                _,
            ))) => {
                self.exit = Some(Exit {
                    status,
                    wall_time: Duration::from_micros(wall_micros),
                    user_time: Duration::from_micros(user_micros),
                    system_time: Duration::from_micros(system_micros),
                    largest_process,
                    processes,
                });
                self.ended = Some(Instant::now());
                self.stop_watching();
            }
            Ok(Some((InitEvent::NotExecuted { errno, reason }, _))) => {
                self.not_executed = Some((errno, reason));
            }
            Ok(Some((InitEvent::Failed(failure), _))) => {
                self.failure.get_or_insert(failure);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Ok(None) | Err(_) => self.hears_init = false,
        }
        self.hears_init
    }

    fn reap_builder(&mut self) {
        if let Some(builder) = self.builder.take() {
            drop(sys::wait_for(builder.pid));
        }
    }

    fn reap_init(&mut self) {
        // What it said last is still in the socket.
        while self.hears_init && self.hear_init() {}
        if let Some(init) = self.init.take() {
            drop(sys::wait_for(init.pid));
            let ended = *self.ended.get_or_insert_with(Instant::now);
            self.timings.teardown = ended.elapsed();
            self.stop_watching();
        }
    }

    /// Reports and gives up what is left, once both processes are gone. `true` when this execution is over.
    fn finish(&mut self) -> bool {
        if self.builder.is_some() || self.init.is_some() || self.build_events.is_some() {
            return false;
        }
        let counters = self.leaf.as_ref().map(Leaf::counters);
        self.leaf = None;
        self.upper_work = None;
        let event = match self.failure.take() {
            Some(failure) if self.exit.is_none() && self.verdict.is_none() => {
                Event::Failed(failure)
            }
            _ => Event::Finished(Box::new(self.report(&counters.unwrap_or_default()))),
        };
        if let Some(caller) = &self.caller {
            // A caller that is gone does not want to know.
            drop(channel::send(caller.as_fd(), &event, &[]));
        }
        true
    }

    fn report(&mut self, counters: &Counters) -> Report {
        let watched = self.watchdog.as_ref();
        let out_of_memory = counters.memory_kills > 0 || self.verdict == Some(Termination::Oom);
        let pids_limit = self.request.limits.pids.map_or(u64::MAX, u64::from);
        let processes = self.exit.map_or(0, |exit| exit.processes);
        // Where the kernel holds the limit without counting refusals, a full container is the sign of them.
        let full_at_exit = self.mechanisms.get(&LimitName::Pids) == Some(&Mechanism::Rlimit)
            && processes >= pids_limit;
        let out_of_pids = counters.pids_refused > 0
            || self.verdict == Some(Termination::Pids)
            || watched.is_some_and(Watchdog::pids_were_exhausted)
            || full_at_exit;
        let mut limits_hit = Vec::new();
        for (limit, hit) in [
            (LimitName::Memory, out_of_memory),
            (LimitName::Pids, out_of_pids),
            (
                LimitName::WallTime,
                self.verdict == Some(Termination::Timeout),
            ),
        ] {
            if hit {
                limits_hit.push(limit);
            }
        }
        let wall_time = match (self.exit, self.started, self.ended) {
            (Some(exit), _, _) => exit.wall_time,
            (None, Some(started), Some(ended)) => ended.duration_since(started),
            _ => Duration::ZERO,
        };
        let (user_time, system_time) = match (
            counters.user_micros,
            counters.system_micros,
            self.exit,
            watched,
        ) {
            (Some(user), Some(system), _, _) => {
                (Duration::from_micros(user), Duration::from_micros(system))
            }
            (_, _, Some(exit), _) => (exit.user_time, exit.system_time),
            (_, _, None, Some(watchdog)) => watchdog.cpu_time,
            _ => Default::default(),
        };
        let largest_process = self.exit.map_or(0, |exit| exit.largest_process);
        let (memory_peak, memory_peak_source) = match (counters.memory_peak, watched) {
            (Some(peak), _) => (peak, PeakSource::Cgroup2),
            (None, Some(watchdog)) if watchdog.memory_peak > largest_process => {
                (watchdog.memory_peak, PeakSource::Watchdog)
            }
            _ => (largest_process, PeakSource::LargestProcess),
        };
        let usage = Usage {
            wall_time,
            user_time,
            system_time,
            memory_peak,
            memory_peak_source,
            pids_peak: counters
                .pids_peak
                .or_else(|| watched.map(|watchdog| watchdog.pids_peak)),
        };
        Report {
            termination: self.termination(counters, out_of_pids, processes >= pids_limit / 2),
            usage,
            enforcement: self.mechanisms.clone(),
            limits_hit,
            root_emulated: self.request.emulate_root,
            timings: self.timings.clone(),
        }
    }

    fn termination(
        &mut self,
        counters: &Counters,
        out_of_pids: bool,
        crowded_at_exit: bool,
    ) -> Termination {
        if let Some((errno, reason)) = self.not_executed.take() {
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
        match (self.verdict.take(), natural) {
            (Some(Termination::Timeout), _) if out_of_pids => Termination::Pids,
            (Some(verdict), _) => verdict,
            (
                None,
                Termination::Signaled {
                    signal: libc::SIGKILL,
                },
            ) if counters.memory_kills > 0 => Termination::Oom,
            // Success, unless it leaves behind a crowd that has run into the limit: a bomb in the background.
            (None, Termination::Exited { code: 0 }) if !(out_of_pids && crowded_at_exit) => {
                Termination::Exited { code: 0 }
            }
            (None, _) if out_of_pids => Termination::Pids,
            (None, natural) => natural,
        }
    }
}
