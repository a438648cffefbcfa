//! Holds limits where the kernel does not: looks at the processes of a container and says what has to be done.
//!
//! It reads the container's own `/proc`, through the root of its first process, so it sees all of them and only
//! them. Memory is the sum of resident pages, first by `statm` (a few µs per process), which counts shared pages in
//! every process that maps them; only where that sum is above the limit does `smaps_rollup` (milliseconds) decide.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::dir::Dir;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use crate::request::LimitName;

/// How often a container is looked at while nothing is near a limit.
const CALM: Duration = Duration::from_millis(20);
/// How often it is looked at above half of a limit. At most what a program can touch in this time (4-7 MiB per 10 ms
/// on a small virtual machine) comes on top of the memory limit.
const ALERT: Duration = Duration::from_millis(4);
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
}

impl Watched {
    pub(crate) fn is_empty(self) -> bool {
        self.memory.is_none()
            && self.pids.is_none()
            && self.pids_noticed.is_none()
            && self.cpus.is_none()
    }
}

/// Watches one container.
#[derive(Debug)]
pub(crate) struct Watchdog {
    proc: OwnedFd,
    watched: Watched,
    page: u64,
    ticks_per_second: u64,
    /// When to look next.
    pub(crate) next: Instant,
    /// As in [`Seen`].
    memory_peak: u64,
    pids_peak: u64,
    cpu_time: (Duration, Duration),
    ration: Ration,
    /// When the exact sum may be taken again: it costs what the program makes it cost, and others are waiting.
    next_exact: Instant,
}

/// What a watchdog has seen of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The most memory, in bytes.
    pub(crate) memory_peak: u64,
    /// The most processes and threads.
    pub(crate) pids_peak: u64,
    /// CPU time in user mode and in the kernel at the last look.
    pub(crate) cpu_time: (Duration, Duration),
    /// Whether there were as many processes and threads as the kernel allows.
    pub(crate) pids_exhausted: bool,
}

/// CPU time of the current period.
#[derive(Debug)]
struct Ration {
    began: Instant,
    used_at_beginning: Duration,
    stopped: bool,
}

/// One look at the processes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Look {
    resident: u64,
    threads: u64,
    user_ticks: u64,
    system_ticks: u64,
}

impl Watchdog {
    /// Watches the container whose first process is `init`, in the caller's own pid namespace.
    pub(crate) fn new(init: i32, watched: Watched) -> std::io::Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let proc = open(
            format!("/proc/{init}/root/proc").as_str(),
            flags,
            Mode::empty(),
        )?;
        let now = Instant::now();
        let number = |variable| {
            nix::unistd::sysconf(variable)
                .ok()
                .flatten()
                .and_then(|value| u64::try_from(value).ok())
        };
        Ok(Self {
            proc,
            watched,
            page: number(nix::unistd::SysconfVar::PAGE_SIZE).unwrap_or(4096),
            ticks_per_second: number(nix::unistd::SysconfVar::CLK_TCK).unwrap_or(100),
            next: now + ALERT,
            memory_peak: 0,
            pids_peak: 0,
            cpu_time: (Duration::ZERO, Duration::ZERO),
            next_exact: now,
            ration: Ration {
                began: now,
                used_at_beginning: Duration::ZERO,
                stopped: false,
            },
        })
    }

    /// What it has seen so far.
    pub(crate) fn seen(&self) -> Seen {
        Seen {
            memory_peak: self.memory_peak,
            pids_peak: self.pids_peak,
            cpu_time: self.cpu_time,
            pids_exhausted: self
                .watched
                .pids_noticed
                .is_some_and(|limit| self.pids_peak >= limit.into()),
        }
    }

    /// Stops looking: the container has ended.
    pub(crate) fn retire(&mut self) {
        self.next += Duration::from_secs(3600);
    }

    /// Looks at the container. `Some` names the limit that it has crossed for good.
    pub(crate) fn look(&mut self) -> Option<LimitName> {
        let now = Instant::now();
        let (pids, look) = self.measure();
        if let Some(limit) = self.watched.memory
            && look.resident > limit
            && now >= self.next_exact
            && self.proportional(&pids) > limit
        {
            return Some(LimitName::Memory);
        }
        if let Some(limit) = self.watched.pids
            && look.threads > u64::from(limit)
        {
            return Some(LimitName::Pids);
        }
        let near = |used: u64, limit: Option<u64>| limit.is_some_and(|limit| used > limit / 2);
        let mut pause = if near(look.resident, self.watched.memory)
            || near(
                look.threads,
                self.watched
                    .pids
                    .or(self.watched.pids_noticed)
                    .map(u64::from),
            ) {
            ALERT
        } else {
            CALM
        };
        if self.watched.cpus.is_some() {
            pause = pause.min(ALERT);
            self.ration_cpu(now, &pids);
        }
        self.next = now + pause;
        None
    }

    /// Takes account of what the processes use at this moment.
    pub(crate) fn account(&mut self) {
        self.measure();
    }

    fn measure(&mut self) -> (Vec<i32>, Look) {
        let pids = self.processes();
        let look = self.sum(&pids);
        self.memory_peak = self.memory_peak.max(look.resident);
        self.pids_peak = self.pids_peak.max(look.threads);
        let time = |ticks: u64| Duration::from_millis(ticks * 1000 / self.ticks_per_second);
        self.cpu_time = (time(look.user_ticks), time(look.system_ticks));
        (pids, look)
    }

    /// Stops every process once the period's CPU time is used up and lets them go on in the next one.
    fn ration_cpu(&mut self, now: Instant, pids: &[i32]) {
        let Some(cpus) = self.watched.cpus else {
            return;
        };
        let used = self.cpu_time.0 + self.cpu_time.1;
        let elapsed = now.duration_since(self.ration.began);
        let spent = used.saturating_sub(self.ration.used_at_beginning);
        // The kernel counts in ticks of 10 ms, coarser than a share of one period: what was used too much is paid
        // back by a longer stop, so the share holds over a second.
        if self.ration.stopped {
            if elapsed.mul_f64(cpus) >= spent {
                self.ration = Ration {
                    began: now,
                    used_at_beginning: used,
                    stopped: false,
                };
                self.signal(pids, libc::SIGCONT);
            } else {
                // Processes may have been started between the look and the stop.
                self.signal(pids, libc::SIGSTOP);
            }
        } else if spent > CPU_PERIOD.mul_f64(cpus) && spent > elapsed.mul_f64(cpus) {
            self.ration.stopped = true;
            self.signal(pids, libc::SIGSTOP);
        } else if elapsed >= 10 * CPU_PERIOD {
            self.ration = Ration {
                began: now,
                used_at_beginning: used,
                stopped: false,
            };
        }
    }

    /// Signals processes by descriptors of their `/proc` directories, which a reused pid cannot mislead.
    fn signal(&self, pids: &[i32], signal: i32) {
        for pid in pids.iter().filter(|&&pid| pid != 1) {
            let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            if let Ok(process) = openat(&self.proc, pid.to_string().as_str(), flags, Mode::empty())
            {
                // It may have ended since.
                drop(crate::sys::pidfd_send_signal(process.as_fd(), signal));
            }
        }
    }

    fn processes(&self) -> Vec<i32> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let Ok(mut directory) = Dir::openat(&self.proc, ".", flags, Mode::empty()) else {
            return Vec::new();
        };
        directory
            .iter()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok())
            .collect()
    }

    /// The first process is sbxrt's own and not counted.
    fn sum(&self, pids: &[i32]) -> Look {
        let mut look = Look::default();
        let stats = self.stats(pids);
        for (_, process) in &stats {
            look.threads += process.threads;
            look.user_ticks += process.user_ticks + process.reaped_user_ticks;
            look.system_ticks += process.system_ticks + process.reaped_system_ticks;
            if !waits_for_vfork(process, &stats) {
                look.resident += process.resident_pages * self.page;
            }
        }
        // Children that were waited for are in their parent's account, up to the first process.
        if let Some(first) = self.read(1, "stat").as_deref().and_then(parse_stat) {
            look.user_ticks += first.reaped_user_ticks;
            look.system_ticks += first.reaped_system_ticks;
        }
        look
    }

    /// The memory of all processes with shared pages counted once. What cannot be looked at so closely, a program that
    /// only others may read, counts in full.
    fn proportional(&mut self, pids: &[i32]) -> u64 {
        let began = Instant::now();
        let stats = self.stats(pids);
        let sum = stats
            .iter()
            .filter(|(_, stat)| !waits_for_vfork(stat, &stats))
            .map(|(pid, stat)| {
                let rollup = self.read(*pid, "smaps_rollup");
                rollup
                    .as_deref()
                    .and_then(parse_pss)
                    .unwrap_or(stat.resident_pages * self.page)
            })
            .sum();
        self.next_exact = Instant::now() + 10 * began.elapsed();
        sum
    }

    /// The accounts of all processes but the first, which is sbxrt's own.
    fn stats(&self, pids: &[i32]) -> Vec<(i32, ProcessStat)> {
        let stat = |pid: i32| {
            let stat = self.read(pid, "stat").as_deref().and_then(parse_stat)?;
            if stat.state == 'Z' && stat.threads > 1 {
                // Its first thread has ended, and with it what /proc/PID tells of memory; the others go on.
                let tasks = Dir::openat(
                    &self.proc,
                    format!("{pid}/task").as_str(),
                    OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
                    Mode::empty(),
                );
                let living = tasks.ok()?.iter().flatten().find_map(|task| {
                    let task = task.file_name().to_str().ok()?.parse::<i32>().ok()?;
                    let task = self.read(pid, &format!("task/{task}/stat"));
                    task.as_deref()
                        .and_then(parse_stat)
                        .filter(|task| task.state != 'Z')
                });
                if let Some(living) = living {
                    return Some((
                        pid,
                        ProcessStat {
                            resident_pages: living.resident_pages,
                            ..stat
                        },
                    ));
                }
            }
            Some((pid, stat))
        };
        pids.iter()
            .filter(|&&pid| pid != 1)
            .filter_map(|&pid| stat(pid))
            .collect()
    }

    fn read(&self, pid: i32, file: &str) -> Option<String> {
        let path = format!("{pid}/{file}");
        let file = openat(
            &self.proc,
            path.as_str(),
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .ok()?;
        let mut text = Vec::with_capacity(1024);
        fs::File::from(file).read_to_end(&mut text).ok()?;
        // A process may name itself in any bytes.
        Some(String::from_utf8_lossy(&text).into_owned())
    }
}

/// Whether this process sleeps until its child executes or ends, and the two are one memory: what a shell or
/// Python's subprocess does many times a second must not count twice.
fn waits_for_vfork(process: &ProcessStat, all: &[(i32, ProcessStat)]) -> bool {
    process.state == 'D'
        && all.iter().any(|(_, child)| {
            child.parent == process.pid
                && (child.size, child.resident_pages) == (process.size, process.resident_pages)
        })
}

/// What `/proc/PID/stat` says of a process.
#[derive(Debug, PartialEq, Eq)]
struct ProcessStat {
    pid: i32,
    state: char,
    parent: i32,
    /// Bytes of address space.
    size: u64,
    user_ticks: u64,
    system_ticks: u64,
    /// Those of children that it has waited for.
    reaped_user_ticks: u64,
    reaped_system_ticks: u64,
    threads: u64,
    resident_pages: u64,
}

fn parse_stat(stat: &str) -> Option<ProcessStat> {
    // The name may contain anything, also spaces and parentheses.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    // The first is the state, field 3 of proc_pid_stat(5).
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(ProcessStat {
        pid: stat.split(' ').next()?.parse().ok()?,
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        size: number(23)?,
        user_ticks: number(14)?,
        system_ticks: number(15)?,
        reaped_user_ticks: number(16)?,
        reaped_system_ticks: number(17)?,
        threads: number(20)?,
        resident_pages: number(24)?,
    })
}

/// Bytes of `Pss:` in `/proc/PID/smaps_rollup`.
fn parse_pss(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_cannot_forge_its_account_by_its_name() {
        let stat =
            "7 (a) R 1 2 (b)) S 1 7 7 0 -1 4194304 90 0 0 0 3 4 5 6 20 0 9 0 100 1000000 250 1 2 3";
        let expected = ProcessStat {
            pid: 7,
            state: 'S',
            parent: 1,
            size: 1_000_000,
            user_ticks: 3,
            system_ticks: 4,
            reaped_user_ticks: 5,
            reaped_system_ticks: 6,
            threads: 9,
            resident_pages: 250,
        };
        assert_eq!(parse_stat(stat), Some(expected));
        assert_eq!(parse_stat("7 (a"), None);
    }

    #[test]
    fn proportional_memory_is_in_bytes() {
        assert_eq!(
            parse_pss("Rss: 10 kB\nPss:      4 kB\nPss_Dirty: 1 kB\n"),
            Some(4096)
        );
        assert_eq!(parse_pss(""), None);
    }
}
