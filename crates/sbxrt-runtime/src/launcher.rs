//! The launcher process: first process of a pid namespace of its own, single-threaded, root over a user namespace
//! in which only its own id exists.
//!
//! It takes requests from the caller's socket, forks a [builder](crate::builder) for each, and then waits: for the
//! end of containers, for orders, for deadlines. It ends when the caller's socket closes, and with it, because it is
//! the first process of their pid namespace, every process of every container. It never waits for a process alone: one
//! that the kernel holds, in a file system that does not answer, must hold nobody else.
//!
//! This file is the process and its loop; [`run`](self::run) is the life of one execution, [`account`] what is said of it
//! afterwards. The loop costs what happens, not what there is: a thousand executions that sleep are not looked through
//! whenever one of them says something.

mod account;
mod collection;
mod nursery;
mod poller;
mod run;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::collection::Collection;
use self::nursery::Nursery;
use self::poller::{Number, Place, Polled, Poller, Ready, Source};
use self::run::{Looks, Means, Run};
use crate::cgroup::{self, Leaves, Shape};
use crate::channel::{self, Event};
use crate::error::Failure;
use crate::sys;

/// The descriptor on which a launcher finds the caller's socket.
pub(crate) const CONTROL: i32 = 3;

/// At most so many descriptors does an execution take for as long as it lives, a few more while it starts, and one for each
/// place that its outputs go to and for each file system in memory.
const DESCRIPTORS_OF_A_RUN: u64 = 16;

/// How much later than due something may be done, for each execution that is under way: waiting costs the more the more
/// there are, and so what is due for many of them is done at once (for a thousand within 4 ms).
const SLACK_OF_A_RUN: Duration = Duration::from_micros(4);

/// How long looks at executions may take before it is heard again what happens. Where others keep the processors busy, many
/// looks are due at once.
const LOOKS_AT_A_TIME: Duration = Duration::from_millis(1);

/// From so many executions on, builders are forked by another process: see [`nursery`](self::nursery).
const MANY: usize = 16;

/// What a launcher is told when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// Whether the caller is the host's root user.
    pub(crate) caller_is_root: bool,
    /// Where cgroups can be made, whose descriptors come along; `None` where there is no such place.
    pub(crate) subtree: Option<Shape>,
}

/// Runs the launcher until the caller is gone, and ends the process.
pub(crate) fn run() -> ! {
    let Ok(control) = sys::adopt(CONTROL) else {
        sys::exit_now(125)
    };
    let Ok(Some((setup, descriptors))) = channel::receive::<Setup>(control.as_fd()) else {
        sys::exit_now(125)
    };
    let broken = prepare().err();
    let Setup {
        caller_is_root,
        subtree,
    } = setup;
    let leaves = subtree.map(|shape| Leaves::new(shape, descriptors));
    let Ok(poller) = Poller::new() else {
        sys::exit_now(125)
    };
    let mut launcher = Launcher {
        control: Some(poller.listen(Ready::Control, control)),
        poller,
        caller_is_root,
        leaves,
        broken,
        runs: BTreeMap::new(),
        taken: 0,
        due: BTreeSet::new(),
        watched: 0,
        has_backlog: false,
        nursery: None,
        touched: BTreeSet::new(),
    };
    launcher.serve();
    // Without destructors: the cgroup of what cannot be ended cannot be removed now. The next start does it.
    sys::exit_now(0)
}

/// Makes this process's view of the host fit for libcontainer.
fn prepare() -> Result<(), Failure> {
    const STEP: &str = "prepare the launcher";
    // For ps; without a name of its own it would be called by the number of the descriptor that it was executed from.
    let _ = nix::sys::prctl::set_name(c"sbxrt-launcher");
    // Nothing of the caller's is kept: who reads its output must not wait for this process.
    let null = null().map_err(|error| Failure::new(STEP, "/dev/null", error))?;
    for stream in 0..=1 {
        sys::duplicate_onto(&null, stream).map_err(|error| Failure::new(STEP, "dup2", error))?;
    }
    nix::unistd::chdir("/").map_err(|error| Failure::new(STEP, "chdir(\"/\")", error))?;
    // An execution takes some descriptors for as long as it lives; a program gets a limit of its own.
    let (_, most) = sys::limit(libc::RLIMIT_NOFILE)
        .map_err(|error| Failure::new(STEP, "getrlimit(RLIMIT_NOFILE)", error))?;
    sys::set_limit(libc::RLIMIT_NOFILE, most, most)
        .map_err(|error| Failure::new(STEP, "setrlimit(RLIMIT_NOFILE)", error))?;
    sys::new_session_keyring()
        .map_err(|error| Failure::new(STEP, "join a new session keyring", error))?;
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
    shield_cgroups()
        .map_err(|error| Failure::new(STEP, "a read-only cgroup2 on /sys/fs/cgroup", error))
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
        // With what is mounted on it: in a user namespace the kernel does not let anybody look below that.
        sys::clone_tree(root.as_fd(), &mounted, true)?
    } else {
        // A host with version 1 alone: an instance of our own, for which a cgroup namespace of our own gives the
        // right.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP)?;
        sys::detached_filesystem(c"cgroup2")?
    };
    sys::restrict_tree(tree.as_fd(), libc::MOUNT_ATTR_RDONLY, true)?;
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
    poller: Poller,
    /// Where requests come from; `None` once the caller is gone.
    control: Option<Polled>,
    caller_is_root: bool,
    leaves: Option<Leaves>,
    /// Why nothing can be run. Each request is answered with it: the caller does not wait for this process to be ready.
    broken: Option<Failure>,
    runs: BTreeMap<Number, Entry>,
    /// How many executions there have been.
    taken: Number,
    /// When each execution wants to be looked at.
    due: BTreeSet<(Instant, Number)>,
    /// How many executions a watchdog looks at.
    watched: u32,
    /// Whether looks are due that there was no time for.
    has_backlog: bool,
    /// Who forks builders where there are many executions.
    nursery: Option<Nursery>,
    /// The executions that something has happened to since they were last asked whether they are over.
    touched: BTreeSet<Number>,
}

/// An execution, and what the launcher has noted of it.
struct Entry {
    run: Run,
    due: Option<Instant>,
    is_watched: bool,
}

impl Launcher {
    /// Serves until the caller is gone and nothing is left, or nothing that could be ended.
    fn serve(&mut self) {
        while self.control.is_some() || self.runs.values().any(|it| !it.run.is_given_up()) {
            // Without waiting there is no holding of limits: everything ends with this process.
            let Ok(ready) = self.wait() else { return };
            for ready in ready {
                match ready {
                    Ready::Control => self.accept(),
                    Ready::Run(number, source) => self.handle(number, source),
                }
            }
            self.attend();
        }
    }

    /// Waits until something happens or is due; says what happened.
    fn wait(&self) -> io::Result<BTreeSet<Ready>> {
        let pause = SLACK_OF_A_RUN * u32::try_from(self.runs.len()).unwrap_or(u32::MAX);
        let limit = self.due.first().map(|(due, _)| {
            if self.has_backlog {
                return Duration::ZERO;
            }
            let left = due.saturating_duration_since(Instant::now());
            left.max(pause)
        });
        self.poller.wait(limit)
    }

    fn handle(&mut self, number: Number, source: Source) {
        // It may have been over a moment before.
        let Some(entry) = self.runs.get_mut(&number) else {
            return;
        };
        let run = &mut entry.run;
        self.touched.insert(number);
        match source {
            Source::Caller => run.obey(),
            Source::BuildEvents => run.hear_builder(),
            Source::InitEvents => {
                run.hear_init();
            }
            Source::Init => run.reap_init(),
            Source::Collector => run.reap_collector(),
            Source::Leftovers => run.reap_leftovers(),
            Source::Builder => {
                // One that has succeeded has waited for its own children.
                if run.reap_builder() != Some(0) {
                    self.kill_leftovers(number);
                }
            }
        }
    }

    /// Does what is due, and takes leave of what is over.
    fn attend(&mut self) {
        let now = Instant::now();
        let touched = std::mem::take(&mut self.touched);
        let due = self.due.iter().take_while(|(due, _)| *due <= now);
        let due: Vec<Number> = due.map(|(_, number)| *number).collect();
        // Those that have waited longest come first, so that each has its turn.
        let due = due.into_iter().filter(|number| !touched.contains(number));
        let crowd = self.watched.max(1);
        self.has_backlog = false;
        for number in touched.iter().copied().chain(due) {
            let Some(entry) = self.runs.get_mut(&number) else {
                continue;
            };
            let looks = if now.elapsed() < LOOKS_AT_A_TIME {
                Looks::At { crowd }
            } else {
                Looks::Later
            };
            entry.run.tick(now, looks);
            let is_over = entry.run.finish();
            let due = entry.run.due().filter(|_| !is_over);
            let is_watched = entry.run.is_watched() && !is_over;
            self.has_backlog |= due.is_some_and(|due| due <= now);
            if due != entry.due {
                if let Some(before) = entry.due {
                    self.due.remove(&(before, number));
                }
                self.due.extend(due.map(|due| (due, number)));
                entry.due = due;
            }
            self.watched -= u32::from(entry.is_watched);
            self.watched += u32::from(is_watched);
            entry.is_watched = is_watched;
            if is_over {
                self.runs.remove(&number);
            }
        }
        if self.runs.is_empty() {
            self.nursery = None;
        }
    }

    /// Takes a request, or notices that the caller is gone.
    fn accept(&mut self) {
        let Some(control) = &self.control else { return };
        let received = channel::receive::<Submission>(control.as_fd());
        let Ok(Some((submission, descriptors))) = received else {
            return self.desert();
        };
        let (destinations, no_scope, is_prepared) = match submission {
            Submission::Run {
                destinations,
                no_scope,
                is_prepared,
            } => (destinations, no_scope, is_prepared),
            Submission::Subtree(shape) => {
                self.leaves = Some(Leaves::new(shape, descriptors));
                // It was not moved.
                self.nursery = None;
                return;
            }
        };
        let mut descriptors = descriptors.into_iter();
        let (Some(request), Some(caller)) = (descriptors.next(), descriptors.next()) else {
            return;
        };
        let destinations = descriptors.by_ref().take(destinations).collect();
        let streams = [descriptors.next(), descriptors.next(), descriptors.next()];
        match self.start(request, streams, no_scope, is_prepared) {
            Ok(mut run) => {
                run.collection = Collection::new(destinations);
                run.answer_to(caller);
                let entry = Entry {
                    run,
                    due: None,
                    is_watched: false,
                };
                self.touched.insert(self.taken);
                self.runs.insert(self.taken, entry);
                self.taken += 1;
            }
            // Where the caller does not listen any more, nobody wants to know.
            Err(failure) => drop(channel::send(caller.as_fd(), &Event::Failed(failure), &[])),
        }
    }

    fn start(
        &mut self,
        request: OwnedFd,
        streams: [Option<OwnedFd>; 3],
        no_scope: Option<String>,
        is_prepared: bool,
    ) -> Result<Run, Failure> {
        if let Some(failure) = &self.broken {
            return Err(failure.clone());
        }
        let under_way = self.runs.len() as u64;
        let (most, _) = sys::limit(libc::RLIMIT_NOFILE).unwrap_or((u64::MAX, u64::MAX));
        let further =
            |run: &Run| (run.collection.destinations() + run.objects.file_systems.len()) as u64;
        let further: u64 = self.runs.values().map(|it| further(&it.run)).sum();
        if DESCRIPTORS_OF_A_RUN * (under_way + 2) + further > most {
            return Err(Failure::reason(
                "take the request",
                "open files",
                format!(
                    "{under_way} executions are under way, and the hard limit on open files of {most} allows no more"
                ),
            ));
        }
        if !self.nursery.as_ref().is_some_and(Nursery::is_there) {
            // Without one, this process forks itself.
            self.nursery = (self.runs.len() >= MANY)
                .then(Nursery::start)
                .and_then(Result::ok);
        }
        let means = Means {
            nursery: self.nursery.as_ref(),
            leaves: self.leaves.as_ref(),
            caller_is_root: self.caller_is_root,
        };
        let place = Place {
            poller: self.poller.clone(),
            number: self.taken,
        };
        Run::start(place, means, request, streams, no_scope, is_prepared)
    }

    /// Ends what the dead builder of an execution has left: its children have become this process's.
    fn kill_leftovers(&mut self, number: Number) {
        // In this order: a builder reports before it ends, so whoever is a child of this process by now is known once all
        // reports are heard, unless it is left over.
        let Ok(children) = std::fs::read_to_string("/proc/self/task/1/children") else {
            return;
        };
        for (number, entry) in &mut self.runs {
            entry.run.hear_builder();
            self.touched.insert(*number);
        }
        let runs = self.runs.values();
        let owned: HashSet<libc::pid_t> = runs
            .flat_map(|it| it.run.children())
            .chain(self.nursery.as_ref().map(|nursery| nursery.pid))
            .collect();
        let children = children
            .split_ascii_whitespace()
            .filter_map(|pid| pid.parse().ok());
        let Some(entry) = self.runs.get_mut(&number) else {
            return;
        };
        let run = &mut entry.run;
        for pid in children.filter(|pid| !owned.contains(pid)) {
            run.adopt_leftover(pid);
        }
    }

    /// The caller is gone: ends everything, and goes on until it has ended, so that the cgroups can be removed before this
    /// process ends too.
    fn desert(&mut self) {
        self.control = None;
        for (number, entry) in &mut self.runs {
            entry.run.desert();
            self.touched.insert(*number);
        }
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

/// A packet from the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Submission {
    /// An execution. Its descriptors: the request itself, the execution's socket, the directories that copies of its outputs
    /// go to, and the program's standard streams unless it has a terminal.
    Run {
        /// The number of those directories.
        destinations: usize,
        /// Why systemd has made no scope, where one was wanted.
        no_scope: Option<String>,
        /// Whether only its container is made now, and the program told later ([`Order::Begin`](crate::channel::Order)).
        is_prepared: bool,
    },
    /// The place where cgroups are made from now on, with its descriptors. This process has been moved into it.
    Subtree(Shape),
}
