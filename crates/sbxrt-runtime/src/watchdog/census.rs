//! What the container's own `/proc` says of its processes, through the root of its first process: all of them and only
//! them. The first process is sbxrt's own; it is not counted, but what it has waited for is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use nix::dir::Dir;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

/// How much is read of a file that says one thing of a process.
const FILE_LIMIT: u64 = 64 << 10;
/// How much is read of `/proc/PID/smaps` at most: the program decides how long it is.
const SMAPS_LIMIT: u64 = 4 << 20;

#[derive(Debug)]
pub(super) struct Census {
    proc: OwnedFd,
    /// The first process, in the caller's own pid namespace.
    init: i32,
}

/// What a process holds, in bytes, from `/proc/PID/status`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Holding {
    pub(super) pid: i32,
    pub(super) state: char,
    pub(super) parent: i32,
    pub(super) threads: u64,
    /// Of address space.
    pub(super) size: u64,
    /// Resident pages of its own, and of files on disk.
    pub(super) private: u64,
    /// Those of files alone.
    pub(super) files: u64,
    /// Resident pages of memory that can be shared: of files in memory, System V segments, anonymous shared mappings.
    pub(super) shared: u64,
    pub(super) tables: u64,
    pub(super) swap: u64,
}

impl Holding {
    pub(super) fn resident(&self) -> u64 {
        self.private + self.shared
    }
}

/// Whose memory is another process's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Borrowers {
    /// These children have no memory but that of their parents, says the kernel.
    Known(BTreeSet<i32>),
    /// The kernel does not say. These children have as much as their parents.
    Supposed(BTreeSet<i32>),
}

/// CPU time of a process, in clock ticks, from `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Times {
    /// When it started: with its pid, its identity.
    pub(super) start: u64,
    pub(super) user: u64,
    pub(super) system: u64,
    /// Those of children that it has waited for.
    pub(super) reaped_user: u64,
    pub(super) reaped_system: u64,
    /// Page faults.
    pub(super) faults: u64,
    /// Those of children that it has waited for.
    pub(super) reaped_faults: u64,
    /// Whether it runs, or may run in a thread that is not its first.
    pub(super) runs: bool,
    /// Of the time that its first thread could have run, so many thousandths on a processor; 1000 where it does not run,
    /// or the kernel does not say.
    pub(super) share: u16,
}

/// Memory of processes with what they share divided among them, in bytes, from `/proc/PID/smaps_rollup`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Proportion {
    pub(super) private: u64,
    pub(super) shared: u64,
    pub(super) swap: u64,
}

impl Census {
    /// Of the container whose first process is `init`, in the caller's own pid namespace.
    pub(super) fn new(init: i32) -> io::Result<Self> {
        let path = format!("/proc/{init}/root/proc");
        Ok(Self {
            proc: open(path.as_str(), DIRECTORY, Mode::empty())?,
            init,
        })
    }

    /// All processes but the first.
    pub(super) fn processes(&self) -> Vec<i32> {
        let Ok(mut directory) = Dir::openat(&self.proc, ".", DIRECTORY, Mode::empty()) else {
            return Vec::new();
        };
        let pids = directory
            .iter()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok());
        pids.filter(|&pid| pid != 1).collect()
    }

    /// What each of `pids` holds. What two processes have in common is with both.
    pub(super) fn holdings(&self, pids: &[i32]) -> Vec<Holding> {
        pids.iter().filter_map(|&pid| self.holding(pid)).collect()
    }

    /// Which of `holdings` are another's: with `vfork`, parent and child are one memory until the child executes, which a
    /// shell or Python's subprocess does many times a second. That must not count twice, and nobody must be able to pretend
    /// it: a child of plain `fork` looks the same, even where its parent sleeps until it ends (`CLONE_VFORK` without
    /// `CLONE_VM`). So the kernel is asked (`kcmp`).
    pub(super) fn borrowers(&self, holdings: &[Holding]) -> Borrowers {
        let by_pid: BTreeMap<i32, &Holding> = holdings.iter().map(|it| (it.pid, it)).collect();
        let pairs: Vec<(&Holding, &Holding)> = holdings
            .iter()
            .filter_map(|child| Some((*by_pid.get(&child.parent)?, child)))
            // Whoever has much less than its parent is neither worth the question nor what is asked for. The two were
            // not read at the same moment.
            .filter(|(parent, child)| child.resident() >= parent.resident() / 2)
            .collect();
        if pairs.is_empty() {
            return Borrowers::Known(BTreeSet::new());
        }
        let outer = self.outer_pids();
        let mut borrowers = BTreeSet::new();
        for (parent, child) in &pairs {
            // Who has ended since is in no list.
            let (Some(&outer_parent), Some(&outer_child)) =
                (outer.get(&parent.pid), outer.get(&child.pid))
            else {
                continue;
            };
            match crate::sys::is_one_memory(outer_parent, outer_child) {
                Ok(true) => drop(borrowers.insert(child.pid)),
                Ok(false) => {}
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                // Not compiled in, or forbidden by a filter around sbxrt.
                Err(_) => return Borrowers::Supposed(supposed_borrowers(&pairs)),
            }
        }
        if outer.is_empty() {
            return Borrowers::Supposed(supposed_borrowers(&pairs));
        }
        Borrowers::Known(borrowers)
    }

    /// The processes of the container, by their pids in it: what they are called in the caller's own pid namespace.
    fn outer_pids(&self) -> BTreeMap<i32, i32> {
        let mut found = BTreeMap::new();
        let mut parents = vec![self.init];
        while let Some(parent) = parents.pop() {
            let tasks = fs::read_dir(format!("/proc/{parent}/task"));
            for task in tasks.into_iter().flatten().flatten() {
                let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                let children = children.split_ascii_whitespace();
                for child in children.filter_map(|pid| pid.parse::<i32>().ok()) {
                    parents.push(child);
                    let status = fs::read(format!("/proc/{child}/status")).unwrap_or_default();
                    if let Some(inner) = parse_inner_pid(&String::from_utf8_lossy(&status)) {
                        found.insert(inner, child);
                    }
                }
            }
        }
        found
    }

    fn holding(&self, pid: i32) -> Option<Holding> {
        let holding = parse_status(&self.read(pid, "status")?)?;
        if holding.state == 'Z' && holding.threads > 1 {
            // Its first thread has ended, and with it what /proc/PID tells of memory; the others go on.
            let tasks = format!("{pid}/task");
            let mut tasks =
                Dir::openat(&self.proc, tasks.as_str(), DIRECTORY, Mode::empty()).ok()?;
            let living = tasks.iter().flatten().find_map(|task| {
                let task = task.file_name().to_str().ok()?.parse::<i32>().ok()?;
                let task = parse_status(&self.read(pid, &format!("task/{task}/status"))?)?;
                (task.state != 'Z').then_some(task)
            });
            return Some(Holding {
                pid,
                ..living.unwrap_or(holding)
            });
        }
        Some(holding)
    }

    /// The CPU time of each of `pids`, and of the children that the first process has waited for.
    pub(super) fn times(&self, pids: &[i32]) -> Vec<(i32, Times)> {
        let times = |pid| {
            let times = parse_stat(&self.read(pid, "stat")?)?;
            let share = times.runs.then(|| self.read(pid, "schedstat")).flatten();
            let share = share.and_then(|it| parse_share(&it)).unwrap_or(1000);
            Some((pid, Times { share, ..times }))
        };
        let first = times(1).map(|(pid, first)| {
            let own = Times {
                user: 0,
                system: 0,
                ..first
            };
            (pid, own)
        });
        // In this order: who is waited for after that is not in the account of the first process, too.
        first
            .into_iter()
            .chain(pids.iter().filter_map(|&pid| times(pid)))
            .collect()
    }

    /// The memory of the process of `holding` with what is shared divided: nothing where it has ended since. What cannot
    /// be looked at so closely counts in full.
    pub(super) fn proportion(&self, holding: &Holding) -> Proportion {
        let in_full = Proportion {
            private: holding.private,
            shared: holding.shared,
            swap: holding.swap,
        };
        match self.try_read(holding.pid, "smaps_rollup") {
            Ok(rollup) => parse_rollup(&rollup).unwrap_or(in_full),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT)) => {
                Proportion::default()
            }
            Err(_) => in_full,
        }
    }

    /// Of the `shared` bytes that a process has a part in, those of anonymous mappings, which no file system and no list
    /// of segments counts.
    pub(super) fn shared_anonymous(&self, pid: i32, shared: u64) -> u64 {
        let smaps = self.open(pid, "smaps").ok().and_then(|file| {
            let mut text = Vec::new();
            file.take(SMAPS_LIMIT).read_to_end(&mut text).ok()?;
            Some(String::from_utf8_lossy(&text).into_owned())
        });
        match smaps {
            Some(smaps) if (smaps.len() as u64) < SMAPS_LIMIT => {
                parse_shared_anonymous(&smaps).min(shared)
            }
            _ => shared,
        }
    }

    /// Bytes of System V segments in `list`, an open `/proc/sysvipc/shm`.
    pub(super) fn segments(list: &OwnedFd) -> u64 {
        let mut text = Vec::new();
        let mut part = [0; 16 << 10];
        while let Ok(length @ 1..) =
            nix::sys::uio::pread(list, &mut part, i64::try_from(text.len()).unwrap_or(0))
        {
            text.extend(&part[..length]);
        }
        parse_segments(&String::from_utf8_lossy(&text))
    }

    /// A descriptor of `/proc/PID`, which a reused pid cannot mislead.
    pub(super) fn directory(&self, pid: i32) -> Option<OwnedFd> {
        openat(
            &self.proc,
            pid.to_string().as_str(),
            DIRECTORY,
            Mode::empty(),
        )
        .ok()
    }

    fn open(&self, pid: i32, file: &str) -> io::Result<fs::File> {
        let path = format!("{pid}/{file}");
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        Ok(openat(&self.proc, path.as_str(), flags, Mode::empty())?.into())
    }

    fn try_read(&self, pid: i32, file: &str) -> io::Result<String> {
        let mut text = Vec::with_capacity(2048);
        // Without a bound it would ask for the size, which such a file does not have.
        self.open(pid, file)?
            .take(FILE_LIMIT)
            .read_to_end(&mut text)?;
        // A process may name itself in any bytes.
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// As [`try_read`](Self::try_read). A process that has ended since has nothing.
    fn read(&self, pid: i32, file: &str) -> Option<String> {
        self.try_read(pid, file).ok()
    }
}

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_CLOEXEC);

/// Of pairs of a parent and its child, the children that look as if the two were one memory. Whether the parent sleeps is not
/// to be seen: it may be a thread of it that does.
fn supposed_borrowers(pairs: &[(&Holding, &Holding)]) -> BTreeSet<i32> {
    let is_alike = |(parent, child): &&(&Holding, &Holding)| {
        (child.size, child.resident()) == (parent.size, parent.resident())
    };
    pairs
        .iter()
        .filter(is_alike)
        .map(|(_, it)| it.pid)
        .collect()
}

/// The pid in the innermost namespace, from a `/proc/PID/status` of an outer one.
fn parse_inner_pid(status: &str) -> Option<i32> {
    let pids = status.lines().find_map(|it| it.strip_prefix("NSpid:"))?;
    pids.split_ascii_whitespace().next_back()?.parse().ok()
}

/// The name comes first, with its line breaks escaped; a kernel thread, and who has given its memory back, has no sizes.
fn parse_status(status: &str) -> Option<Holding> {
    let mut holding = Holding::default();
    for line in status.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        let size = || {
            let kibibytes = value.strip_suffix("kB")?.trim();
            Some(kibibytes.parse::<u64>().ok()? << 10)
        };
        match key {
            "State" => holding.state = value.chars().next()?,
            "Tgid" => holding.pid = value.parse().ok()?,
            "PPid" => holding.parent = value.parse().ok()?,
            "Threads" => holding.threads = value.parse().ok()?,
            "VmSize" => holding.size = size()?,
            "RssAnon" => holding.private += size()?,
            "RssFile" => {
                holding.files = size()?;
                holding.private += holding.files;
            }
            "RssShmem" => holding.shared = size()?,
            "VmPTE" => holding.tables = size()?,
            "VmSwap" => holding.swap = size()?,
            _ => {}
        }
    }
    (holding.pid != 0).then_some(holding)
}

fn parse_stat(stat: &str) -> Option<Times> {
    // The name may contain anything, also spaces and parentheses.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    // The first is the state, field 3 of proc_pid_stat(5).
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Times {
        start: number(22)?,
        user: number(14)?,
        system: number(15)?,
        reaped_user: number(16)?,
        reaped_system: number(17)?,
        faults: number(10)? + number(12)?,
        reaped_faults: number(11)? + number(13)?,
        runs: fields.first() == Some(&"R") || number(20)? > 1,
        share: 1000,
    })
}

/// The first two fields: nanoseconds on a processor, and of waiting for one.
fn parse_share(schedstat: &str) -> Option<u16> {
    let mut fields = schedstat.split_ascii_whitespace();
    let mut number = || fields.next()?.parse::<u64>().ok();
    let (ran, waited) = (number()?, number()?);
    let share = ran
        .saturating_mul(1000)
        .checked_div(ran.saturating_add(waited))?;
    u16::try_from(share).ok()
}

fn parse_rollup(rollup: &str) -> Option<Proportion> {
    let size = |key: &str| {
        let value = rollup.lines().find_map(|line| line.strip_prefix(key))?;
        Some(
            value
                .trim()
                .strip_suffix("kB")?
                .trim()
                .parse::<u64>()
                .ok()?
                << 10,
        )
    };
    Some(Proportion {
        private: size("Pss_Anon:")? + size("Pss_File:")?,
        shared: size("Pss_Shmem:")?,
        swap: size("SwapPss:")?,
    })
}

fn parse_shared_anonymous(smaps: &str) -> u64 {
    let mut is_anonymous = false;
    let mut sum = 0;
    for line in smaps.lines() {
        if let Some(size) = line.strip_prefix("Pss:") {
            if is_anonymous {
                let size = size.trim().trim_end_matches("kB").trim();
                sum += size.parse::<u64>().unwrap_or(0) << 10;
            }
        } else if !line.split(' ').next().unwrap_or_default().ends_with(':') {
            is_anonymous = line.ends_with("/dev/zero (deleted)");
        }
    }
    sum
}

/// Bytes resident and swapped out: the last two columns.
fn parse_segments(list: &str) -> u64 {
    let lines = list.lines().skip(1);
    let bytes = lines.map(|line| {
        let columns = line.split_ascii_whitespace().rev().take(2);
        columns
            .filter_map(|column| column.parse::<u64>().ok())
            .sum::<u64>()
    });
    bytes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_cannot_forge_its_account_by_its_name() {
        let stat = "7 (a) R 1 2 (b)) S 1 7 7 0 -1 4194304 90 80 2 1 3 4 5 6 20 0 1 0 100 1000000 250 1 2 3";
        let expected = Times {
            start: 100,
            user: 3,
            system: 4,
            reaped_user: 5,
            reaped_system: 6,
            faults: 92,
            reaped_faults: 81,
            runs: false,
            share: 1000,
        };
        assert_eq!(parse_stat(stat), Some(expected));
        let running = stat.replace(" S ", " R ");
        assert_eq!(parse_stat(&running).map(|it| it.runs), Some(true));
        let of_threads = stat.replace(" 20 0 1 ", " 20 0 2 ");
        assert_eq!(parse_stat(&of_threads).map(|it| it.runs), Some(true));
        assert_eq!(parse_stat("7 (a"), None);
    }

    #[test]
    fn a_share_is_of_the_time_in_which_there_was_something_to_do() {
        assert_eq!(parse_share("3000 1000 7\n"), Some(750));
        assert_eq!(parse_share("3000 0 7\n"), Some(1000));
        assert_eq!(parse_share("0 0 0\n"), None);
        assert_eq!(parse_share(""), None);
    }

    #[test]
    fn a_holding_is_in_bytes_and_has_page_tables_and_swap() {
        let status = "Name:\tx\\nVmSwap: 9\nState:\tS (sleeping)\nTgid:\t7\nPid:\t8\nPPid:\t1\nVmSize:\t 100 kB\n\
            VmRSS:\t 60 kB\nRssAnon:\t 10 kB\nRssFile:\t 20 kB\nRssShmem:\t 30 kB\nVmPTE:\t 4 kB\nVmSwap:\t 5 kB\n\
            Threads:\t3\n";
        let expected = Holding {
            pid: 7,
            state: 'S',
            parent: 1,
            threads: 3,
            size: 100 << 10,
            private: 30 << 10,
            files: 20 << 10,
            shared: 30 << 10,
            tables: 4 << 10,
            swap: 5 << 10,
        };
        assert_eq!(parse_status(status), Some(expected));
        let zombie = "Name:\tx\nState:\tZ (zombie)\nTgid:\t7\nPPid:\t1\nThreads:\t1\n";
        assert_eq!(parse_status(zombie).map(|it| it.resident()), Some(0));
        assert_eq!(parse_status(""), None);
    }

    #[test]
    fn a_proportion_is_in_bytes() {
        let rollup = "55-77 ---p 00000000 00:00 0 [rollup]\nRss: 99 kB\nPss: 60 kB\nPss_Dirty: 50 kB\nPss_Anon: 10 kB\n\
            Pss_File: 20 kB\nPss_Shmem: 30 kB\nSwap: 9 kB\nSwapPss: 5 kB\n";
        let expected = Proportion {
            private: 30 << 10,
            shared: 30 << 10,
            swap: 5 << 10,
        };
        assert_eq!(parse_rollup(rollup), Some(expected));
        assert_eq!(parse_rollup(""), None);
    }

    #[test]
    fn shared_anonymous_memory_is_told_from_files_and_segments() {
        let smaps = "7f00-7f10 rw-s 00000000 00:01 1031    /dev/zero (deleted)\nSize: 64 kB\nPss: 8 kB\nPss_Dirty: 8 kB\n\
            7f10-7f20 rw-s 00000000 00:01 4    /SYSV00000000 (deleted)\nPss: 16 kB\n\
            7f20-7f30 rw-s 00000000 00:2a 7    /dev/shm/x\nPss: 32 kB\n\
            7f30-7f40 rw-p 00000000 00:00 0 \nPss: 64 kB\n\
            7f40-7f50 rw-s 00000000 00:01 1032    /dev/zero (deleted)\nPss: 4 kB\n";
        assert_eq!(parse_shared_anonymous(smaps), 12 << 10);
    }

    #[test]
    fn segments_count_by_what_is_resident_and_swapped_out() {
        let list = "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap\n\
            \x20        0          0   600            1048576   100   101      1     0     0     0     0 1 0 1                 8192                  4096\n\
            \x20        0          1   600            1048576   100   101      0     0     0     0     0 1 0 1               100000                     0\n";
        assert_eq!(parse_segments(list), 8192 + 4096 + 100_000);
        assert_eq!(parse_segments(""), 0);
    }

    #[test]
    fn who_looks_as_if_it_borrowed_is_supposed_to() {
        let parent = Holding {
            pid: 2,
            parent: 1,
            size: 9,
            private: 5,
            ..Holding::default()
        };
        let child = Holding {
            pid: 3,
            parent: 2,
            ..parent
        };
        assert_eq!(supposed_borrowers(&[(&parent, &child)]), [3].into());
        let grown = Holding { size: 10, ..child };
        assert!(supposed_borrowers(&[(&parent, &grown)]).is_empty());
    }

    #[test]
    fn the_pid_in_the_container_is_the_last_one() {
        let status = "Name:\tx\\nNSpid: 9\nPid:\t70\nNSpid:\t70\t8\t3\nNSpgid:\t70\t8\t3\n";
        assert_eq!(parse_inner_pid(status), Some(3));
        assert_eq!(parse_inner_pid("Name:\tx\n"), None);
    }
}
