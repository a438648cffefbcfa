//! One execution, from its request to its report.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::ppoll;
use nix::sys::time::TimeSpec;

use super::account::{Exit, Facts, Verdict};
use super::collection::Collection;
use super::null;
use super::nursery::{Ends, Nursery, Terms, build};
use super::poller::{Place, Polled, Source};
use crate::cgroup::{self, Entrance, Leaf, Leaves};
use crate::channel::{self, BuildEvent, Event, InitEvent, Order};
use crate::disk::Disk;
use crate::error::Failure;
use crate::guest::is_asked;
use crate::living::{is_over, is_stuck, living};
use crate::overlay::UpperWork;
use crate::report::{Isolation, Timings};
use crate::request::{Assignment, LimitName, Mechanism, Request};
use crate::sys;
use crate::watchdog::{Objects, Watchdog, Watched};

/// How long a builder may take: a root file system on a hanging network mount must not hold the caller for ever.
const BUILD_DEADLINE: Duration = Duration::from_secs(60);
/// How long processes may take to end. Those that the kernel holds are then reported as they are, and waited for no more.
const ENDING_PATIENCE: Duration = Duration::from_secs(2);
/// How long they may take where the kernel does not seem to hold them: a busy machine takes its time.
const ENDING_DEADLINE: Duration = Duration::from_secs(20);
/// How often they are looked at in between.
const ENDING_PAUSE: Duration = Duration::from_millis(200);
/// How often the counters of a cgroup are looked at.
const COUNTERS_PAUSE: Duration = Duration::from_millis(50);
/// A program that was refused so many forks or threads is not going to stop asking.
const REFUSED_FORKS_LIMIT: u64 = 1000;

/// A child process that is still to be waited for.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: libc::pid_t,
    pidfd: Polled,
}

impl Child {
    /// The execution at `place` is told of its end as that of `source`.
    pub(super) fn new(pid: libc::pid_t, place: &Place, source: Source) -> io::Result<Self> {
        let pidfd = sys::pidfd_open(pid)?;
        // A filter around sbxrt may hide this call; limits that could not be held then are found out now.
        sys::pidfd_send_signal(pidfd.as_fd(), 0)?;
        let pidfd = place.listen(source, pidfd);
        Ok(Self { pid, pidfd })
    }

    fn kill(&self) {
        // It may have ended; its pid stays taken until it is waited for.
        drop(sys::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL));
    }
}

/// Watches the container whose first process is `pid`, or nothing where the program is over before the watchdog has
/// come to it: a process that is ending cannot be looked at any more a moment before it has ended.
fn watch_living(
    pid: libc::pid_t,
    watched: Watched,
    processors: f64,
) -> io::Result<Option<Watchdog>> {
    const TRIES: usize = 50;
    let mut result = Watchdog::new(pid, watched, processors).map(Some);
    for _ in 0..TRIES {
        if result.is_ok() {
            break;
        }
        if is_over(pid) {
            return Ok(None);
        }
        let pause = TimeSpec::from_duration(Duration::from_millis(1));
        let _ = ppoll(&mut [], Some(pause), None);
        result = Watchdog::new(pid, watched, processors).map(Some);
    }
    result
}

/// Whether a message could not be sent because nobody is there.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionReset)
}

/// What the launcher starts an execution with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Means<'a> {
    /// Who forks the builder, where it is not the launcher itself.
    pub(super) nursery: Option<&'a Nursery>,
    pub(super) leaves: Option<&'a Leaves>,
    pub(super) caller_is_root: bool,
}

/// Whether the watchdog may look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Looks {
    /// At this execution, one of `crowd` that are watched.
    At { crowd: u32 },
    /// There is something else to be done first.
    Later,
}

/// One execution, from its request to its report, and beyond where its processes cannot be ended.
#[derive(Debug)]
pub(super) struct Run {
    place: Place,
    /// Where events go and orders come from.
    caller: Option<Polled>,
    request: Request,
    mechanisms: BTreeMap<LimitName, Mechanism>,
    builder: Option<Child>,
    build_events: Option<Polled>,
    init: Option<Child>,
    init_events: Option<Polled>,
    hears_init: bool,
    /// What a dead builder has left.
    leftovers: Vec<Child>,
    pub(super) collection: Collection,
    leaf: Option<Leaf>,
    upper_work: Option<UpperWork>,
    watchdog: Option<Watchdog>,
    /// What that must see of the inside, once the first process has said it.
    pub(super) objects: Objects,
    deadline: Option<Instant>,
    /// When to look at the cgroup's counters.
    look: Option<Instant>,
    /// Since when its processes are ending.
    ending: Option<Instant>,
    /// When to look whether they have got stuck.
    impatient: Option<Instant>,
    is_given_up: bool,
    /// Whether its container was made before it was known what it is to run.
    is_prepared: bool,
    /// Since when that is known.
    begun: Option<Instant>,
    started: Option<Instant>,
    ended: Option<Instant>,
    /// Why the launcher ended it, where it did.
    verdict: Option<Verdict>,
    exit: Option<Exit>,
    /// The signals that the caller has sent to the program.
    signals: BTreeSet<i32>,
    failure: Option<Failure>,
    not_executed: Option<(i32, String)>,
    /// The version of Landlock that the program is under.
    landlock: Option<u32>,
    timings: Timings,
}

impl Run {
    /// Takes a request: decides how its limits are held and forks a builder for it.
    pub(super) fn start(
        place: Place,
        means: Means<'_>,
        request: OwnedFd,
        streams: [Option<OwnedFd>; 3],
        no_scope: Option<String>,
        is_prepared: bool,
    ) -> Result<Self, Failure> {
        const STEP: &str = "take the request";
        let began = Instant::now();
        let Means {
            nursery,
            leaves,
            caller_is_root,
        } = means;
        let failed = |what: &'static str| move |error: io::Error| Failure::new(STEP, what, error);
        let request: Request = channel::disclose(request).map_err(failed("read it"))?;
        let limits = &request.limits;
        if let Some(processors) = &limits.cpuset {
            let usable = sys::processors().map_err(failed("sched_getaffinity"))?;
            if let Some(missing) = processors.missing_in(&usable) {
                return Err(Failure::reason(
                    "hold a limit",
                    LimitName::Cpuset.to_string(),
                    format!("there is no processor {missing} to use here, only {usable}"),
                ));
            }
        }
        let disks = if is_asked(LimitName::Io, limits) {
            Disk::reached_by(&request).map_err(failed("find its disks"))?
        } else {
            None
        };
        let leaf = match leaves {
            Some(leaves) => leaves
                .create(&request.id, limits, disks.as_deref())
                .map_err(|error| {
                    Failure::new("hold a limit", format!("cgroup of {}", request.id), error)
                })?,
            None => None,
        };
        let mechanisms: BTreeMap<LimitName, Mechanism> = LimitName::ALL
            .iter()
            .filter(|&&limit| is_asked(limit, limits))
            .map(|&limit| {
                let by_cgroup = leaf.as_ref().and_then(|leaf| leaf.holds(limit));
                let mechanism = match limit {
                    // It is somebody's disk, and has no size of its own.
                    LimitName::Scratch if request.upper.is_some() => Mechanism::None,
                    _ => by_cgroup.unwrap_or_else(|| {
                        cgroup::mechanism_without_cgroup(limit, limits, caller_is_root)
                    }),
                };
                (limit, mechanism)
            })
            .collect();
        for (limit, required) in &request.require {
            let Some(&mechanism) = mechanisms.get(limit) else {
                continue;
            };
            if !required.is_met_by(mechanism) {
                let holder = match mechanism {
                    Mechanism::None => "nothing".to_owned(),
                    _ => format!("only {mechanism}"),
                };
                let mut reason = format!("{required} is required, but {holder} can hold it here");
                if let Some(no_scope) = no_scope {
                    reason = format!("{reason}; {no_scope}");
                }
                return Err(Failure::reason("hold a limit", limit.to_string(), reason));
            }
        }
        let held = |limit| mechanisms.get(&limit).copied().unwrap_or(Mechanism::None);
        let (build_events, build_sender) = channel::pair().map_err(failed("socketpair"))?;
        let (init_events, init_sender) = channel::pair().map_err(failed("socketpair"))?;
        for events in [&build_events, &init_events] {
            // Other processes may hold the far end open for a while longer than the one that was to speak.
            channel::set_nonblocking(events).map_err(failed("fcntl"))?;
        }
        match &leaf {
            Some(leaf) => leaf.send_entrance(init_events.as_fd()),
            None => Entrance::send_none(init_events.as_fd()),
        }
        .map_err(failed("send the way into the cgroup"))?;
        let [stdin, stdout, stderr] = streams.map(|stream| stream.map_or_else(null, Ok));
        let streams = [
            stdin.map_err(failed("/dev/null"))?,
            stdout.map_err(failed("/dev/null"))?,
            stderr.map_err(failed("/dev/null"))?,
        ];
        let terms = Terms {
            is_prepared,
            memory: held(LimitName::Memory),
            pids: held(LimitName::Pids),
            cpus: held(LimitName::Cpus),
            cpuset: held(LimitName::Cpuset),
        };
        let ends = Ends {
            events: build_sender,
            init: init_sender,
            streams,
        };
        let pid = match nursery {
            Some(nursery) => nursery.fork(&request, terms, &ends),
            None => match sys::fork_into(0, None) {
                Ok(sys::Forked::Parent(pid)) => Ok(pid),
                Ok(sys::Forked::Child) => build(&request, terms, ends),
                Err(error) => Err(error),
            },
        };
        let pid = pid.map_err(failed("clone3"))?;
        // Only now: a copy of this process must not give up what is waited for here.
        let build_events = place.listen(Source::BuildEvents, build_events);
        let init_events = place.listen(Source::InitEvents, init_events);
        let builder = Child::new(pid, &place, Source::Builder)
            .map_err(failed("pidfd_open, pidfd_send_signal"))?;
        Ok(Self {
            place,
            caller: None,
            mechanisms,
            builder: Some(builder),
            build_events: Some(build_events),
            init: None,
            init_events: Some(init_events),
            hears_init: true,
            leftovers: Vec::new(),
            collection: Collection::default(),
            leaf,
            upper_work: request
                .upper
                .as_deref()
                .map(|upper| UpperWork::new(upper, &request.id)),
            watchdog: None,
            objects: Objects::default(),
            deadline: Some(began + BUILD_DEADLINE),
            look: None,
            ending: None,
            impatient: None,
            is_given_up: false,
            is_prepared,
            begun: (!is_prepared).then_some(began),
            started: None,
            ended: None,
            verdict: None,
            exit: None,
            signals: BTreeSet::new(),
            failure: None,
            not_executed: None,
            landlock: None,
            timings: Timings::default(),
            request,
        })
    }

    /// From now on events go to `caller`, and orders come from there.
    pub(super) fn answer_to(&mut self, caller: OwnedFd) {
        self.caller = Some(self.place.listen(Source::Caller, caller));
    }

    /// The launcher's children that belong to it.
    pub(super) fn children(&self) -> impl Iterator<Item = libc::pid_t> {
        self.running().chain(&self.leftovers).map(|child| child.pid)
    }

    fn running(&self) -> impl Iterator<Item = &Child> {
        let collector = self.collection.collector();
        let children = [self.builder.as_ref(), self.init.as_ref(), collector];
        children.into_iter().flatten()
    }

    /// Whether it has been reported although processes of it are left, which nobody can end.
    pub(super) fn is_given_up(&self) -> bool {
        self.is_given_up
    }

    /// When it wants to be looked at.
    pub(super) fn due(&self) -> Option<Instant> {
        [
            self.deadline,
            self.look,
            self.impatient,
            self.watchdog.as_ref().map(|watchdog| watchdog.next),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, now: Instant, looks: Looks) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            if self.collection.collector().is_some() {
                self.collection.refuse("it took too long");
                self.kill();
            } else if self.init.is_some() {
                self.end(Verdict::WallTime);
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
        if self.impatient.is_some_and(|look| look <= now) {
            let stuck = self
                .ending
                .is_some_and(|since| now >= since + ENDING_DEADLINE)
                || self.living().into_iter().any(is_stuck);
            self.is_given_up = stuck;
            self.impatient = (!stuck).then_some(now + ENDING_PAUSE);
        }
        if self.look.is_some_and(|look| look <= now) {
            self.look = Some(now + COUNTERS_PAUSE);
            if let (Some(limit), Some(leaf)) = (self.request.limits.cpu_time, &self.leaf)
                && let Some(used) = leaf.counters().cpu_time()
            {
                if used >= limit {
                    self.end(Verdict::CpuTime);
                } else {
                    let soonest = limit.saturating_sub(used).div_f64(self.processors());
                    self.look = Some(now + soonest.clamp(COUNTERS_PAUSE / 10, COUNTERS_PAUSE));
                }
            }
            if self
                .leaf
                .as_ref()
                .and_then(Leaf::pids_refused)
                .is_some_and(|refused| refused >= REFUSED_FORKS_LIMIT)
            {
                self.end(Verdict::Pids);
            }
            if self.leaf.as_ref().is_some_and(Leaf::is_half_dead) {
                self.end(Verdict::Memory);
            }
        }
        if let Looks::At { crowd } = looks
            && let Some(watchdog) = self.watchdog.as_mut().filter(|it| it.next <= now)
        {
            match watchdog.look(&self.objects, crowd) {
                Some(LimitName::Memory) => self.end(Verdict::Memory),
                Some(LimitName::Pids) => self.end(Verdict::Pids),
                Some(LimitName::CpuTime) => self.end(Verdict::CpuTime),
                _ => {}
            }
        }
    }

    /// Ends the container for the reason `verdict`, unless it has ended already.
    fn end(&mut self, verdict: Verdict) {
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
        if self.leaf.as_ref().is_some_and(Leaf::counts_cpu_time) {
            return;
        }
        if let (None, Some(init)) = (&self.watchdog, &self.init) {
            // A container that cannot be looked at is over, and has reported.
            self.watchdog = Watchdog::new(init.pid, Watched::default(), 1.0).ok();
        }
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.account(&self.objects);
        }
    }

    fn kill(&mut self) {
        self.running().for_each(Child::kill);
        self.expect_end();
    }

    /// From now on its processes are ending.
    fn expect_end(&mut self) {
        if self.ending.is_none() {
            let now = Instant::now();
            self.ending = Some(now);
            self.impatient = Some(now + ENDING_PATIENCE);
        }
    }

    /// Its processes that are still there.
    fn living(&self) -> Vec<libc::pid_t> {
        living(&self.children().collect::<Vec<_>>())
    }

    /// The caller is gone: ends everything, and takes no account of it.
    pub(super) fn desert(&mut self) {
        if let Some(caller) = &self.caller {
            caller.ignore();
        }
        self.collection.refuse("the caller is gone");
        self.verdict.get_or_insert(Verdict::Cancelled);
        self.stop_watching();
        self.kill();
    }

    fn stop_watching(&mut self) {
        self.deadline = None;
        self.look = None;
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.retire();
        }
    }

    pub(super) fn obey(&mut self) {
        let Some(caller) = &self.caller else { return };
        match channel::receive::<Order>(caller.as_fd()) {
            Ok(Some((Order::Begin, descriptors))) => {
                if let Err(failure) = self.begin(descriptors) {
                    self.failure.get_or_insert(failure);
                    self.kill();
                }
            }
            // There is no program yet.
            Ok(Some((Order::Signal(_), _))) if self.begun.is_none() => {}
            Ok(Some((order @ Order::Signal(number), _))) => {
                self.signals.insert(number);
                if let Some(init) = &self.init_events {
                    // Where it has ended, there is nobody to signal.
                    drop(channel::send(init.as_fd(), &order, &[]));
                }
            }
            // Too late, where only its files are left.
            Ok(Some((Order::EndOutput, _))) if self.collection.collector().is_some() => {}
            Ok(Some((Order::EndOutput, _))) => self.end(Verdict::Output),
            Ok(Some((Order::Cancel, _))) => {
                self.collection.refuse("the run was cancelled");
                self.end(Verdict::Cancelled);
            }
            Ok(None) | Err(_) => self.desert(),
        }
    }

    /// It is known now what the container is to run.
    fn begin(&mut self, descriptors: Vec<OwnedFd>) -> Result<(), Failure> {
        let failed = |error| Failure::new("start the program", "take the assignment", error);
        let mut descriptors = descriptors.into_iter();
        let (None, Some(document)) = (self.begun, descriptors.next()) else {
            let reason = "it was given one before, or is none that waits for one";
            return Err(Failure::reason("start the program", "assignment", reason));
        };
        let assignment: Assignment = channel::disclose(document).map_err(failed)?;
        let streams: Vec<OwnedFd> = descriptors.by_ref().take(3).collect();
        let document = channel::enclose(&assignment).map_err(failed)?;
        if let Some(init) = &self.init_events {
            let given: Vec<BorrowedFd<'_>> = std::iter::once(&document)
                .chain(&streams)
                .map(AsFd::as_fd)
                .collect();
            channel::send(init.as_fd(), &Order::Begin, &given).map_err(failed)?;
        }
        self.request.process.args = assignment.args;
        self.request.process.env = assignment.env;
        self.request.outputs = assignment.outputs;
        self.collection.expect(descriptors.collect(), &self.request);
        self.begun = Some(Instant::now());
        if self.init.is_some() {
            // All that took its time before anybody wanted it.
            self.timings = Timings::default();
            self.hold_limits()?;
        }
        Ok(())
    }

    pub(super) fn hear_builder(&mut self) {
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
                tree,
            ))) => {
                let is_wanted = self.begun.is_none() || !self.request.outputs.paths.is_empty();
                let tree = tree.into_iter().next().filter(|_| is_wanted);
                self.collection.keep(tree);
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

    /// The container's first process exists: from now on limits are held, unless it waits for a program.
    fn watch(&mut self, pid: libc::pid_t) -> Result<(), Failure> {
        let init = Child::new(pid, &self.place, Source::Init).map_err(|error| {
            Failure::new(
                "watch the container",
                "pidfd_open, pidfd_send_signal",
                error,
            )
        })?;
        self.init = Some(init);
        self.deadline = None;
        if self.verdict.is_some() {
            // Cancelled while it was built.
            self.kill();
            return Ok(());
        }
        if self.begun.is_none() {
            return Ok(());
        }
        self.hold_limits()
    }

    fn hold_limits(&mut self) -> Result<(), Failure> {
        let Some(pid) = self.init.as_ref().map(|init| init.pid) else {
            return Ok(());
        };
        let now = Instant::now();
        self.started = Some(now);
        self.deadline = self.request.limits.wall_time.map(|limit| now + limit);
        self.look = self.leaf.as_ref().map(|_| now + COUNTERS_PAUSE);
        let limits = &self.request.limits;
        let watched_by = |limit, mechanism| self.mechanisms.get(&limit) == Some(&mechanism);
        // A cgroup counts the children that nobody waits for, too.
        let counts_itself = !self.leaf.as_ref().is_some_and(Leaf::counts_cpu_time);
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
            cpu_time: limits.cpu_time.filter(|_| counts_itself),
            usage: counts_itself,
        };
        if !watched.is_empty() {
            self.watchdog = watch_living(pid, watched, self.processors()).map_err(|error| {
                let proc = format!("/proc/{pid}/root/proc");
                Failure::new("watch the container", proc, error)
            })?;
        }
        Ok(())
    }

    /// How many processors the program may use.
    fn processors(&self) -> f64 {
        let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        #[expect(clippy::cast_precision_loss, reason = "nobody has 2^53 processors")]
        let available = available as f64;
        match self.mechanisms.get(&LimitName::Cpus) {
            // The watchdog lets them all run until it is too much.
            None | Some(Mechanism::Watchdog | Mechanism::None) => available,
            Some(_) => available.min(self.request.limits.cpus.unwrap_or(available)),
        }
    }

    /// Whether a watchdog looks at it.
    pub(super) fn is_watched(&self) -> bool {
        self.watchdog.is_some() && self.ending.is_none()
    }

    /// `false` means that there is nothing more to hear.
    pub(super) fn hear_init(&mut self) -> bool {
        let Some(events) = &self.init_events else {
            return false;
        };
        match channel::receive::<InitEvent>(events.as_fd()) {
            Ok(Some((InitEvent::Objects { segments }, descriptors))) => {
                let mut descriptors = descriptors.into_iter();
                self.objects = Objects {
                    segments: if segments { descriptors.next() } else { None },
                    file_systems: descriptors.collect(),
                };
            }
            Ok(Some((InitEvent::Ready, _))) => {
                if let Some(caller) = &self.caller {
                    // A caller that is gone is noticed where its orders are heard.
                    drop(channel::send(caller.as_fd(), &Event::Ready, &[]));
                }
            }
            Ok(Some((
                InitEvent::Started {
                    start_micros,
                    landlock,
                },
                descriptors,
            ))) => {
                self.landlock = landlock;
                self.timings.start = match self.begun {
                    Some(begun) if self.is_prepared => begun.elapsed(),
                    _ => Duration::from_micros(start_micros).saturating_sub(self.timings.create),
                };
                let terminal: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
                let told = self.caller.as_ref().map_or(Ok(()), |caller| {
                    channel::send(caller.as_fd(), &Event::Started, &terminal)
                });
                match told {
                    // A caller that is gone is noticed where its orders are heard.
                    Err(error) if !is_gone(&error) => {
                        let failure = Failure::new("start the program", "tell the caller", error);
                        self.failure.get_or_insert(failure);
                        self.kill();
                    }
                    _ => {}
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
                    full,
                    blocked,
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
                    full,
                    blocked,
                });
                self.ended = Some(Instant::now());
                self.stop_watching();
                self.expect_end();
            }
            Ok(Some((InitEvent::NotExecuted { errno, reason }, _))) => {
                self.not_executed = Some((errno, reason));
            }
            Ok(Some((InitEvent::Failed(failure), _))) => {
                self.failure.get_or_insert(failure);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Ok(None) | Err(_) => {
                // Whoever held the other end has ended, the builder long before.
                self.hears_init = false;
                if let Some(events) = &self.init_events {
                    events.ignore();
                }
                if self.init.is_some() {
                    self.expect_end();
                }
            }
        }
        self.hears_init
    }

    /// The builder has ended: its exit status, or none where a signal ended it.
    pub(super) fn reap_builder(&mut self) -> Option<i32> {
        let builder = self.builder.take()?;
        let status = sys::wait_for(builder.pid).ok()?;
        self.hear_builder();
        libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status))
    }

    /// Ends the child `pid` of this process, which the builder has left behind.
    pub(super) fn adopt_leftover(&mut self, pid: libc::pid_t) {
        // It is un-waited, so it can be opened, unless there are too many files: then it ends with this process.
        if let Ok(child) = Child::new(pid, &self.place, Source::Leftovers) {
            child.kill();
            self.leftovers.push(child);
            self.expect_end();
        }
    }

    /// Waits for the leftovers that have ended.
    pub(super) fn reap_leftovers(&mut self) {
        self.leftovers.retain(|child| !sys::reap(child.pid));
    }

    pub(super) fn reap_init(&mut self) {
        // What it said last is still in the socket.
        while self.hears_init && self.hear_init() {}
        if let Some(init) = self.init.take() {
            drop(sys::wait_for(init.pid));
            let ended = *self.ended.get_or_insert_with(Instant::now);
            self.timings.teardown = ended.elapsed();
            self.stop_watching();
        }
    }

    pub(super) fn reap_collector(&mut self) {
        self.timings.collect = self.collection.reap();
        self.stop_watching();
    }

    /// Begins to collect outputs, unless that is done.
    fn collect(&mut self) -> bool {
        self.deadline = self.collection.begin(&self.request, &self.place);
        if self.deadline.is_some() {
            // Another process, with other patience.
            (self.ending, self.impatient) = (None, None);
        }
        self.deadline.is_some()
    }

    /// Reports once its processes are gone, or once it is known that they cannot be ended. `true` when nothing is left.
    pub(super) fn finish(&mut self) -> bool {
        let is_over = self.children().next().is_none() && self.build_events.is_none();
        if !is_over && !self.is_given_up {
            return false;
        }
        if is_over && self.collect() {
            return false;
        }
        if !is_over {
            self.collection
                .refuse("processes of the run could not be ended");
        }
        let leaked = if is_over { Vec::new() } else { self.leaked() };
        let counters = self.leaf.as_ref().map(Leaf::counters);
        if is_over {
            self.leaf = None;
            self.upper_work = None;
        }
        // A caller that is gone does not want to know, and one is told once.
        if let Some(caller) = self.caller.take() {
            self.stop_watching();
            let ended = *self.ended.get_or_insert_with(Instant::now);
            if !is_over {
                self.timings.teardown = ended.elapsed();
            }
            let outputs = self.collection.finish(&self.request);
            let event = match self.failure.take() {
                Some(failure) if self.exit.is_none() && self.verdict.is_none() => {
                    Event::Failed(failure)
                }
                _ => match self.facts(counters.unwrap_or_default()).report() {
                    Ok(report) => Event::Finished {
                        report: Box::new(report),
                        has_outputs: outputs.is_some(),
                    },
                    Err(failure) => Event::Failed(failure),
                },
            };
            let descriptors: Vec<BorrowedFd<'_>> =
                outputs.iter().chain(&leaked).map(AsFd::as_fd).collect();
            drop(channel::send(caller.as_fd(), &event, &descriptors));
        }
        is_over
    }

    /// Descriptors of the processes that are still there, as many as a message carries.
    fn leaked(&self) -> Vec<OwnedFd> {
        // One is for the list of outputs.
        let living = self
            .living()
            .into_iter()
            .take(channel::DESCRIPTOR_LIMIT - 1);
        living.filter_map(|pid| sys::pidfd_open(pid).ok()).collect()
    }

    /// What is known of it now that it is over.
    fn facts(&mut self, counters: cgroup::Counters) -> Facts<'_> {
        let wall_time = match (self.started, self.ended) {
            (Some(started), Some(ended)) => ended.duration_since(started),
            _ => Duration::ZERO,
        };
        Facts {
            id: &self.request.id,
            limits: &self.request.limits,
            mechanisms: &self.mechanisms,
            verdict: self.verdict.take(),
            exit: self.exit.take(),
            not_executed: self.not_executed.take(),
            counters,
            seen: self.watchdog.as_ref().map(Watchdog::seen),
            signals: &self.signals,
            wall_time,
            root_emulated: self.request.emulate_root,
            isolation: Isolation {
                seccomp: self.request.seccomp.kind(),
                landlock: self.landlock,
            },
            timings: self.timings.clone(),
        }
    }
}
