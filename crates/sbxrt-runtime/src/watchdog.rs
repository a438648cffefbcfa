//! Holds limits where the kernel does not: looks at the processes of a container and says what has to be done.
//!
//! # What counts as memory
//!
//! What a cgroup would charge, as far as anybody outside can see it: resident pages, swap and page tables of every
//! process, the files in the container's own file systems in memory, System V segments. First comes a sum that is quick
//! (tens of µs per process) and never too low, since it counts shared pages with every process that has them, and one memory
//! of two processes (`vfork`) with both; only where it is above the limit do `smaps_rollup` (milliseconds) and the kernel's
//! own word on who shares with whom (`kcmp`) decide. Where there is no such word, two that look as if they shared are
//! believed for [`LENDING`] on end.
//!
//! The peak that is reported is never more than there was: what may be counted twice is in it once, until it is known
//! better.
//!
//! What nobody can see from outside stays uncounted, and has these bounds:
//!
//! - buffers of sockets and pipes: at most twice `net.core.wmem_max` for each socket (416 KiB where it is as the kernel has
//!   it from birth; some hosts have megabytes) and 64 KiB for each pipe, for as many as [`Limits::nofile`](crate::Limits::nofile) and `pids` allow; pipes of one
//!   user take 8 KiB each beyond 64 MiB in all (`fs.pipe-user-pages-soft`);
//! - the kernel's own records of mappings, about 250 bytes for each of 65,530 per process (`vm.max_map_count`);
//! - huge pages of a pool that the host has set aside, which a cgroup does not count as memory either;
//! - shared anonymous pages that every process has unmapped again or given back (`MADV_DONTNEED`), as long as a page of their
//!   mapping is left. They have no bound but the machine's memory: a cgroup is what holds them. They are in a file without
//!   a name, which only `/proc/PID/map_files` leads to, and that takes `CAP_CHECKPOINT_RESTORE` over the host. Files in
//!   memory that do have a descriptor are no such hole: those of the container's file systems count whoever has them, also on
//!   their way in a socket, and `memfd_create` is refused.
//!
//! # How far a limit may be exceeded
//!
//! The next look comes before a program that takes 2 GiB per second and processor, or 10,000 processes, could be at the limit,
//! but not before [`ALERT`], and not before five times as long as this look has taken, times the containers that are
//! watched, less this look: all looks together cost at most a fifth of a processor. A look took 0.17 ms with one process, 0.35 ms with ten and
//! 2 ms with a hundred (two virtual processors, busy; a release build from before `kcmp` was asked, and debug builds from
//! before and after take equally long). So a program exceeds a limit by at most what it can
//! take in [`ALERT`], the time of a look, and the time that the host lets sbxrt wait for a processor.

mod census;
mod clock;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::statfs::fstatfs;

use self::census::{Borrowers, Census, Holding};
use self::clock::CpuClock;
use crate::request::LimitName;
use crate::sys;

/// How long nobody looks at most: peaks are only as true as looks are frequent.
const CALM: Duration = Duration::from_millis(50);
/// How often CPU time is looked at that nothing limits.
const LEISURE: Duration = Duration::from_millis(200);
/// How long nobody looks at least.
const ALERT: Duration = Duration::from_millis(2);
/// Bytes that a program is taken to be able to touch per second and processor.
const GROWTH: f64 = 2.0 * 1024.0 * 1024.0 * 1024.0;
/// Processes that it is taken to be able to start.
const FORKS: f64 = 10_000.0;
/// Of the time of one processor, looks take one part in so many.
const COST: u32 = 5;
/// For so long on end may it be that a limit is kept only since children seem to have their parents' memory, where the
/// kernel does not say. A program that starts others has moments in between at which it has no such child.
const LENDING: Duration = Duration::from_millis(250);
/// The period over which CPU time is rationed.
const CPU_PERIOD: Duration = Duration::from_millis(100);

/// The limits that this watchdog holds; `None` where something else does.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Watched {
    pub(crate) memory: Option<u64>,
    pub(crate) pids: Option<u32>,
    /// A limit on processes that the kernel holds without counting how often: its exhaustion is only noticed.
    pub(crate) pids_noticed: Option<u32>,
    pub(crate) cpus: Option<f64>,
    pub(crate) cpu_time: Option<Duration>,
    /// Whether CPU time is to be counted although nothing limits it, since nothing else counts that of children which
    /// nobody waits for.
    pub(crate) usage: bool,
}

impl Watched {
    pub(crate) fn is_empty(self) -> bool {
        !self.counts_processes() && !self.counts_time()
    }

    fn counts_processes(self) -> bool {
        self.memory.is_some() || self.pids.is_some() || self.pids_noticed.is_some()
    }

    fn counts_time(self) -> bool {
        self.cpus.is_some() || self.cpu_time.is_some()
    }
}

/// Memory of a container that belongs to none of its processes. Who has these descriptors keeps that memory.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    /// `/proc/sysvipc/shm` as the container's first process has opened it: it lists the container's segments.
    pub(crate) segments: Option<OwnedFd>,
    /// Directories of the file systems in memory.
    pub(crate) file_systems: Vec<OwnedFd>,
}

impl Objects {
    fn bytes(&self) -> u64 {
        let used = |directory: &OwnedFd| {
            let found = fstatfs(directory).ok()?;
            let block = u64::try_from(found.block_size()).ok()?;
            Some(found.blocks().saturating_sub(found.blocks_free()) * block)
        };
        let files: u64 = self.file_systems.iter().filter_map(used).sum();
        files + self.segments.as_ref().map_or(0, Census::segments)
    }
}

/// Watches one container.
#[derive(Debug)]
pub(crate) struct Watchdog {
    census: Census,
    watched: Watched,
    /// How many processors the program may use.
    processors: f64,
    /// When to look next.
    pub(crate) next: Instant,
    clock: CpuClock,
    seen: Seen,
    ration: Ration,
    /// The processor time after which the exact sum may be taken again: it costs what the program makes it cost, and others
    /// are waiting.
    exact_again: Instant,
    /// The largest sum that turned out to be a smaller peak: one that is not much larger is not looked at closely again.
    examined: u64,
    /// Since when it takes children that seem to have their parents' memory for the limit to be kept.
    lending: Option<Instant>,
}

/// What a watchdog has seen of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The most memory, in bytes.
    pub(crate) memory_peak: u64,
    /// The most processes and threads.
    pub(crate) pids_peak: u64,
    /// CPU time in user mode and in the kernel at the last look.
    pub(crate) cpu_time: (Duration, Duration),
    /// The part of it that turned up with nobody.
    pub(crate) cpu_time_lost: Duration,
    /// Whether there were as many processes and threads as the kernel allows.
    pub(crate) pids_exhausted: bool,
    /// For how long all processes were stopped, to hold the limit on processors.
    pub(crate) throttled: Duration,
}

/// CPU time of the current period.
#[derive(Debug)]
struct Ration {
    began: Instant,
    used_at_beginning: Duration,
    /// Where the processes are stopped: since when that has not been added to what they were throttled for.
    stopped: Option<Instant>,
}

/// What a look has found of memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Memory {
    /// Of processes alone: private pages and those of files on disk, page tables, swap.
    own: u64,
    /// Of processes, with what may be shared or of `objects`.
    shared: u64,
    /// Of file systems in memory and System V segments.
    objects: u64,
    /// So much of all that may be there twice or more.
    doubtful: u64,
}

impl Memory {
    fn new(holdings: &[Holding], objects: u64) -> Self {
        let own = |it: &Holding| it.private + it.tables + it.swap;
        let anonymous = |it: &Holding| it.private - it.files;
        let sizes: BTreeMap<i32, u64> = holdings.iter().map(|it| (it.pid, anonymous(it))).collect();
        // A child may be one memory with its parent, or have all pages in common that neither has written to.
        let lent = |child: &Holding| {
            let of_parent = sizes.get(&child.parent).copied().unwrap_or(0);
            anonymous(child).min(of_parent)
        };
        let besides_the_largest = |size: fn(&Holding) -> u64| {
            let sizes = holdings.iter().map(size);
            sizes.clone().sum::<u64>() - sizes.max().unwrap_or(0)
        };
        Self {
            own: holdings.iter().map(own).sum(),
            shared: holdings.iter().map(|it| it.shared).sum(),
            objects,
            doubtful: holdings.iter().map(lent).sum::<u64>()
                + besides_the_largest(|it| it.files)
                + besides_the_largest(|it| it.shared),
        }
    }

    /// There is not more.
    fn at_most(&self) -> u64 {
        self.own + self.shared + self.objects
    }

    /// There is not less, where nothing is counted with several processes.
    fn at_least(&self) -> u64 {
        self.own + self.shared.max(self.objects)
    }
}

impl Watchdog {
    /// Watches the container whose first process is `init`, in the caller's own pid namespace. Its program may use so many
    /// `processors`.
    pub(crate) fn new(init: i32, watched: Watched, processors: f64) -> std::io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            census: Census::new(init)?,
            watched,
            processors,
            next: now + ALERT,
            clock: CpuClock::new(if watched.counts_time() { CALM } else { LEISURE }),
            seen: Seen::default(),
            ration: Ration {
                began: now,
                used_at_beginning: Duration::ZERO,
                stopped: None,
            },
            exact_again: now,
            examined: 0,
            lending: None,
        })
    }

    /// What it has seen so far.
    pub(crate) fn seen(&self) -> Seen {
        Seen {
            pids_exhausted: self
                .watched
                .pids_noticed
                .is_some_and(|limit| self.seen.pids_peak >= limit.into()),
            ..self.seen
        }
    }

    /// Stops looking: the container has ended.
    pub(crate) fn retire(&mut self) {
        self.next += Duration::from_secs(3600);
    }

    /// Looks at the container, one of `crowd` that are watched. `Some` names the limit that it has crossed for good.
    pub(crate) fn look(&mut self, objects: &Objects, crowd: u32) -> Option<LimitName> {
        let began = processor_time();
        let pids = self.census.processes();
        let mut pause = CALM;
        if self.watched.counts_processes() {
            match self.count(&pids, objects) {
                Ok(calm) => pause = pause.min(calm),
                Err(crossed) => return Some(crossed),
            }
        }
        if self.watched.counts_time() {
            match self.time(&pids) {
                Ok(calm) => pause = pause.min(calm),
                Err(crossed) => return Some(crossed),
            }
        }
        if self.watched.usage && self.clock.age() >= LEISURE {
            self.read_clock(&pids);
        }
        let cost = processor_time().saturating_sub(began);
        self.next = Instant::now() + pause.max(cost * (COST * crowd - 1));
        None
    }

    /// Takes account of what the processes use at this moment.
    pub(crate) fn account(&mut self, objects: &Objects) {
        let pids = self.census.processes();
        self.read_clock(&pids);
        if self.watched.counts_processes() {
            let (holdings, memory) = self.read_memory(&pids, objects);
            self.note_peak(&holdings, memory, CALM);
        }
    }

    /// Counts memory and processes. Says how long that may be left alone, or which limit has been crossed.
    fn count(&mut self, pids: &[i32], objects: &Objects) -> Result<Duration, LimitName> {
        let (holdings, memory) = self.read_memory(pids, objects);
        let threads = holdings.iter().map(|it| it.threads).sum::<u64>();
        let memory_pause = self.watched.memory.map_or(CALM, |limit| {
            let headroom = limit.saturating_sub(memory.at_most());
            self.until(headroom, GROWTH)
        });
        match self.watched.memory {
            Some(limit) if memory.at_most() > limit => {
                if Instant::now() >= self.exact_again {
                    let exact = self.exactly(&holdings, memory, limit);
                    self.seen.memory_peak = self.seen.memory_peak.max(exact);
                    if exact > limit {
                        return Err(LimitName::Memory);
                    }
                }
            }
            _ => {
                self.lending = None;
                self.note_peak(&holdings, memory, memory_pause);
            }
        }
        if let Some(limit) = self.watched.pids
            && threads > u64::from(limit)
        {
            return Err(LimitName::Pids);
        }
        let pids_limit = self.watched.pids.or(self.watched.pids_noticed);
        let pids_pause = pids_limit.map_or(CALM, |limit| {
            let headroom = u64::from(limit).saturating_sub(threads);
            self.until(headroom, FORKS)
        });
        Ok(memory_pause.min(pids_pause))
    }

    /// Takes note of a new peak. Where much of it may be counted twice it is looked at closely, if that keeps nobody from
    /// the next look, which is due after `pause`.
    fn note_peak(&mut self, holdings: &[Holding], memory: Memory, pause: Duration) {
        let sum = memory.at_least();
        if sum <= self.seen.memory_peak {
            return;
        }
        let is_new = sum > self.examined + self.examined / 16;
        let is_affordable =
            Instant::now() >= self.exact_again && cost_of_exactness(holdings) * COST <= pause;
        let peak = if memory.doubtful <= sum / 16 {
            sum
        } else if is_new && is_affordable {
            self.examined = sum;
            self.exactly(holdings, memory, self.watched.memory.unwrap_or(u64::MAX))
        } else {
            sum.saturating_sub(memory.doubtful)
        };
        self.seen.memory_peak = self.seen.memory_peak.max(peak);
    }

    /// How long it takes at least to get through `headroom` at `rate` per second and processor.
    fn until(&self, headroom: u64, rate: f64) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "it is an estimate")]
        let seconds = headroom as f64 / (rate * self.processors);
        Duration::from_secs_f64(seconds.min(CALM.as_secs_f64())).max(ALERT)
    }

    fn read_memory(&mut self, pids: &[i32], objects: &Objects) -> (Vec<Holding>, Memory) {
        let holdings = self.census.holdings(pids);
        let threads = holdings.iter().map(|it| it.threads).sum();
        self.seen.pids_peak = self.seen.pids_peak.max(threads);
        let memory = Memory::new(&holdings, objects.bytes());
        (holdings, memory)
    }

    /// The memory with shared pages counted once, as exactly as it takes to know whether it is above `limit`.
    fn exactly(&mut self, holdings: &[Holding], memory: Memory, limit: u64) -> u64 {
        let began = processor_time();
        let borrowers = self.borrowers(holdings);
        let holdings: Vec<&Holding> = holdings
            .iter()
            .filter(|it| !borrowers.contains(&it.pid))
            .collect();
        let proportions: Vec<_> = holdings
            .iter()
            .map(|holding| (holding.pid, self.census.proportion(holding)))
            .collect();
        let tables: u64 = holdings.iter().map(|it| it.tables).sum();
        let own = proportions.iter().map(|(_, it)| it.private + it.swap);
        let mut memory = Memory {
            own: tables + own.sum::<u64>(),
            shared: proportions.iter().map(|(_, it)| it.shared).sum(),
            objects: memory.objects,
            doubtful: 0,
        };
        if memory.at_least() <= limit && memory.at_most() > limit {
            // What is shared is either in files and segments, which are counted already, or anonymous.
            let sharing = proportions.iter().filter(|(_, it)| it.shared > 0);
            memory.shared = sharing
                .map(|&(pid, it)| self.census.shared_anonymous(pid, it.shared))
                .sum();
            memory.own += memory.shared;
            memory.shared = 0;
        }
        let cost = processor_time().saturating_sub(began);
        self.exact_again = Instant::now() + cost * (2 * COST);
        memory.at_least()
    }

    /// The processes that have no memory but their parents'.
    fn borrowers(&mut self, holdings: &[Holding]) -> BTreeSet<i32> {
        match self.census.borrowers(holdings) {
            Borrowers::Known(pids) => pids,
            Borrowers::Supposed(pids) if pids.is_empty() => pids,
            Borrowers::Supposed(pids) => {
                let since = *self.lending.get_or_insert_with(Instant::now);
                if since.elapsed() < LENDING {
                    pids
                } else {
                    BTreeSet::new()
                }
            }
        }
    }

    /// Reads the clock and rations. Says how long the time may be left alone, or that it has run out.
    fn time(&mut self, pids: &[i32]) -> Result<Duration, LimitName> {
        let mut used = self.read_clock(pids);
        let mut pause = CALM;
        if let Some(limit) = self.watched.cpu_time {
            if used >= limit {
                // A process that has just ended may be in this sum twice; it is in no second one.
                used = self.read_clock(&self.census.processes());
            }
            if used >= limit {
                return Err(LimitName::CpuTime);
            }
            pause = limit
                .saturating_sub(used)
                .div_f64(self.processors)
                .clamp(ALERT, CALM);
        }
        if let Some(cpus) = self.watched.cpus {
            pause = pause.min(2 * ALERT);
            self.ration_cpu(used, cpus, pids);
        }
        Ok(pause)
    }

    fn read_clock(&mut self, pids: &[i32]) -> Duration {
        let (user, system) = self.clock.read(&self.census.times(pids), Instant::now());
        self.seen.cpu_time = (user, system);
        self.seen.cpu_time_lost = self.clock.lost();
        user + system
    }

    /// Stops every process once the period's CPU time is used up and lets them go on in the next one.
    fn ration_cpu(&mut self, used: Duration, cpus: f64, pids: &[i32]) {
        let now = Instant::now();
        let elapsed = now.duration_since(self.ration.began);
        let spent = used.saturating_sub(self.ration.used_at_beginning);
        // The kernel counts in ticks of 10 ms, coarser than a share of one period: what was used too much is paid
        // back by a longer stop, so the share holds over a second.
        if let Some(since) = self.ration.stopped {
            self.ration.stopped = Some(now);
            self.seen.throttled += now.duration_since(since);
            if elapsed.mul_f64(cpus) >= spent {
                self.ration = Ration {
                    began: now,
                    used_at_beginning: used,
                    stopped: None,
                };
                self.signal(pids, libc::SIGCONT);
            } else {
                // Processes may have been started between the look and the stop.
                self.signal(pids, libc::SIGSTOP);
            }
        } else if spent > CPU_PERIOD.mul_f64(cpus) && spent > elapsed.mul_f64(cpus) {
            self.ration.stopped = Some(now);
            self.signal(pids, libc::SIGSTOP);
        } else if elapsed >= 10 * CPU_PERIOD {
            self.ration = Ration {
                began: now,
                used_at_beginning: used,
                stopped: None,
            };
        }
    }

    fn signal(&self, pids: &[i32], signal: i32) {
        for process in pids.iter().filter_map(|&pid| self.census.directory(pid)) {
            // It may have ended since.
            drop(sys::pidfd_send_signal(process.as_fd(), signal));
        }
    }
}

/// About the time that it takes to count shared pages once: 3.2 ms for each GiB and 60 µs for each process (measured).
fn cost_of_exactness(holdings: &[Holding]) -> Duration {
    let processes = holdings.len() as u64;
    let resident: u64 = holdings.iter().map(Holding::resident).sum();
    Duration::from_micros(60 * processes + resident / (320 << 10))
}

/// The processor time that this thread has used. What a look costs is not how long others made it wait. (`getrusage` would
/// tell it as of the last tick, milliseconds ago.)
fn processor_time() -> Duration {
    sys::thread_time().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_between_what_is_counted_once_and_twice() {
        let memory = Memory {
            own: 10,
            shared: 3,
            objects: 5,
            doubtful: 0,
        };
        assert_eq!((memory.at_least(), memory.at_most()), (15, 18));
    }

    #[test]
    fn what_processes_may_have_in_common_is_doubtful() {
        let parent = Holding {
            pid: 2,
            parent: 1,
            private: 100,
            files: 10,
            ..Holding::default()
        };
        let child = Holding {
            pid: 3,
            parent: 2,
            private: 50,
            files: 5,
            shared: 7,
            ..parent
        };
        let other = Holding {
            pid: 4,
            parent: 1,
            ..child
        };
        let doubtful = |holdings: &[Holding]| Memory::new(holdings, 0).doubtful;
        assert_eq!(doubtful(&[parent]), 0);
        assert_eq!(doubtful(&[parent, child]), 45 + 5);
        assert_eq!(doubtful(&[parent, other]), 5);
        assert_eq!(doubtful(&[parent, child, other]), 45 + 10 + 7);
    }
}
