//! The caller's own cgroups in the hierarchies of version 1, where they are the caller's to write: root's, on a host that
//! still has them, and those of a scheduler that hands them to its users (SLURM up to 22.05).
//!
//! Each hierarchy stands for itself, so a leaf is a directory in each, and what one of them does not allow, another may.
//! Nobody can be born in them: the process that becomes the program writes itself to each `cgroup.procs`, which waits for
//! a grace period of the kernel's. All hierarchies together cost 12 ms on an idle machine (24 ms at the 95th percentile),
//! 4 ms back to back, on two virtual processors with Linux 6.18; entering them in one process makes it one wait. That is
//! the price of limits that hold: without, a watchdog would look after them.
//!
//! The freezer is not used. Its end is the pid namespace's: when its first process is killed, no other can be born there.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, faccessat};

use super::{
    Controller, Counters, Directory, Obstacle, Setting, cpu_quota, fields, named, read_at,
    read_own, write_at,
};
use crate::report::PeakSource;
use crate::request::{LimitName, Limits};

/// Those that limits need. `blkio` is not among them: on version 1 it cannot tell whose a buffered write is.
const CONTROLLERS: [Controller; 5] = [
    Controller::Cpu,
    Controller::Cpuacct,
    Controller::Cpuset,
    Controller::Memory,
    Controller::Pids,
];

/// The most that is asked for at once, so that a limit counts as reached where less than that is left.
const HUGE_PAGE: u64 = 2 << 20;

/// The caller's cgroups below which leaves can be made. `None` as an error means that there is nothing of version 1 here.
pub(super) fn acquire() -> Result<Vec<Directory>, Option<Obstacle>> {
    let mounts = read_own("/proc/self/mountinfo").map_err(Some)?;
    let membership = read_own("/proc/self/cgroup").map_err(Some)?;
    let mut found = Vec::new();
    let mut refused: Option<Obstacle> = None;
    let mut there = Vec::new();
    for Hierarchy { path, controllers } in hierarchies(&mounts, &membership) {
        let main = main_of(&controllers);
        there.extend(main.iter().copied());
        match writable(path, controllers) {
            Ok(directory) => found.push(directory),
            Err((path, errno)) if !main.is_empty() => {
                refused.get_or_insert(Obstacle::Version1 {
                    path,
                    controllers: Vec::new(),
                    errno,
                });
            }
            Err(_) => {}
        }
    }
    if found
        .iter()
        .any(|directory| !main_of(&directory.controllers).is_empty())
    {
        return Ok(found);
    }
    if let Some(Obstacle::Version1 { controllers, .. }) = &mut refused {
        *controllers = there;
    }
    Err(refused)
}

/// Those of `controllers` whose limits every execution has.
fn main_of(controllers: &[Controller]) -> Vec<Controller> {
    let mut main = controllers.to_vec();
    main.retain(|controller| Controller::MAIN.contains(controller));
    main
}

/// Opens the cgroup at `path` if a leaf can be made there, or tells why not.
fn writable(path: PathBuf, controllers: Vec<Controller>) -> Result<Directory, (PathBuf, i32)> {
    let directory = match Directory::open(path, controllers) {
        Ok(directory) => directory,
        Err(Obstacle::Unreachable { path, errno }) => return Err((path, errno)),
        Err(_) => return Err((PathBuf::new(), libc::EIO)),
    };
    let flags = AtFlags::AT_EACCESS;
    if let Err(errno) = faccessat(&directory.descriptor, ".", AccessFlags::W_OK, flags) {
        return Err((directory.path, errno as i32));
    }
    // A cgroup without hierarchy does not count what its children use: below a job's limit, that would be a way around it.
    let hierarchical = std::fs::read_to_string(directory.path.join("memory.use_hierarchy"));
    if hierarchical.is_ok_and(|value| value.trim() == "0") {
        return Err((directory.path, libc::EOPNOTSUPP));
    }
    Ok(directory)
}

/// A hierarchy with controllers that limits need, and the directory of the caller's cgroup in it.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    path: PathBuf,
    controllers: Vec<Controller>,
}

/// Those in the contents of `/proc/self/mountinfo` and `/proc/self/cgroup`.
fn hierarchies(mounts: &str, membership: &str) -> Vec<Hierarchy> {
    let hierarchy = |line: &str| {
        let mut parts = line.splitn(3, ':').skip(1);
        let controllers = named(parts.next()?, CONTROLLERS);
        let own = Path::new(parts.next()?);
        let first = *controllers.first()?;
        let path = mounts
            .lines()
            .filter_map(mount)
            .filter(|mount| !named(mount.options, [first]).is_empty())
            // A cgroup outside of what is mounted cannot be reached through it.
            .find_map(|mount| Some(mount.point.join(own.strip_prefix(mount.root).ok()?)))?;
        Some(Hierarchy { path, controllers })
    };
    membership.lines().filter_map(hierarchy).collect()
}

/// A mount of version 1.
struct MountLine<'a> {
    /// The cgroup that is mounted.
    root: &'a Path,
    point: &'a Path,
    /// Those of the hierarchy, its controllers among them.
    options: &'a str,
}

/// A line of `mountinfo`, if it is such a mount (proc(5)).
fn mount(line: &str) -> Option<MountLine<'_>> {
    let (mount, kind) = line.split_once(" - ")?;
    let mut kind = kind.split(' ');
    if kind.next() != Some("cgroup") {
        return None;
    }
    let mut mount = mount.split(' ').skip(3);
    Some(MountLine {
        root: Path::new(mount.next()?),
        point: Path::new(mount.next()?),
        options: kind.nth(1)?,
    })
}

/// Makes a new leaf of `controllers` fit for processes.
pub(super) fn prepare(
    parent: BorrowedFd<'_>,
    leaf: BorrowedFd<'_>,
    controllers: &[Controller],
) -> io::Result<()> {
    if controllers.contains(&Controller::Memory) {
        // What its parent may have made the rule for it: to wait for memory for ever, in the place of being killed. Kernels
        // that do not let it be changed do not inherit it.
        drop(write_at(leaf, "memory.oom_control", "0"));
    }
    if controllers.contains(&Controller::Cpuset) {
        // Those of its parent. Without, nobody could enter.
        for (file, effective) in [
            ("cpuset.cpus", "cpuset.effective_cpus"),
            ("cpuset.mems", "cpuset.effective_mems"),
        ] {
            let value = read_at(parent, effective).or_else(|_| read_at(parent, file))?;
            write_at(leaf, file, value.trim())?;
        }
    }
    Ok(())
}

/// What is written into a leaf to hold `limits`, in an order that the kernel takes.
pub(super) fn settings(limits: &Limits) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(bytes) = limits.memory {
        settings.push(Setting::new(
            LimitName::Memory,
            "memory.limit_in_bytes",
            &bytes,
        ));
        if let Some(swap) = limits.swap {
            // Swap can only be limited together with memory.
            let both = bytes.saturating_add(swap);
            let file = "memory.memsw.limit_in_bytes";
            settings.push(Setting::new(LimitName::Swap, file, &both));
        }
    }
    if let Some(pids) = limits.pids {
        settings.push(Setting::new(LimitName::Pids, "pids.max", &pids));
    }
    if let Some(cpus) = limits.cpus {
        let cpu = |file, value| Setting::new(LimitName::Cpus, file, &value);
        settings.push(cpu("cpu.cfs_period_us", super::CPU_PERIOD));
        settings.push(cpu("cpu.cfs_quota_us", cpu_quota(cpus)));
    }
    if let Some(cpuset) = &limits.cpuset {
        settings.push(Setting::new(LimitName::Cpuset, "cpuset.cpus", cpuset));
    }
    settings
}

/// The counters that `read` finds in the files of a leaf, but for those of processes.
pub(super) fn counters(read: impl Fn(Controller, &str) -> String) -> Counters {
    let number = |controller, file| read(controller, file).trim().parse::<u64>().ok();
    let mut memory_events = fields(&read(Controller::Memory, "memory.oom_control"));
    // Linux 4.13. The others are settings.
    memory_events.retain(|name, _| name == "oom_kill");
    let kills = memory_events.get("oom_kill").copied().unwrap_or(0);
    let micros = |nanos: u64| nanos / 1000;
    let throttled = fields(&read(Controller::Cpu, "cpu.stat")).remove("throttled_time");
    let peak = number(Controller::Memory, "memory.max_usage_in_bytes");
    let limit = number(Controller::Memory, "memory.limit_in_bytes");
    // Whoever is killed below the leaf's own limit was killed for somebody else's. (`memory.failcnt` would say whether it
    // was reached, but stays 0 where the limit of memory and swap is as large.)
    let is_own = peak >= limit.map(|limit| limit.saturating_sub(HUGE_PAGE));
    Counters {
        memory_peak: peak.map(|peak| (peak, PeakSource::Cgroup1)),
        memory_kills: if is_own { kills } else { 0 },
        memory_events,
        user_micros: number(Controller::Cpuacct, "cpuacct.usage_user").map(micros),
        system_micros: number(Controller::Cpuacct, "cpuacct.usage_sys").map(micros),
        throttled_micros: throttled.map(micros),
        ..Counters::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(mounts: &str, membership: &str) -> Vec<String> {
        hierarchies(mounts, membership)
            .iter()
            .map(|hierarchy| format!("{:?} {}", hierarchy.controllers, hierarchy.path.display()))
            .collect()
    }

    const MEMORY: &str =
        "30 24 0:25 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n";

    #[test]
    fn the_own_directory_is_found_in_every_hierarchy() {
        let mounts = format!(
            "24 1 0:22 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n{MEMORY}\
             31 24 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             32 24 0:27 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
             33 24 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        );
        let membership = "12:memory:/slurm/uid_7/task_0\n5:cpu,cpuacct:/\n4:cpuset:/a\n3:freezer:/\n1:name=systemd:/x\n0::/\n";
        assert_eq!(
            found(&mounts, membership),
            [
                "[Memory] /sys/fs/cgroup/memory/slurm/uid_7/task_0",
                "[Cpu, Cpuacct] /sys/fs/cgroup/cpu,cpuacct/",
                "[Cpuset] /sys/fs/cgroup/cpuset/a",
            ]
        );
    }

    #[test]
    fn a_container_sees_its_own_part() {
        let mounts = "30 24 0:25 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let own = "12:memory:/docker/abc/x\n";
        assert_eq!(found(mounts, own), ["[Memory] /sys/fs/cgroup/memory/x"]);
        let elsewhere = "12:memory:/docker/abcd\n";
        assert_eq!(found(mounts, elsewhere), [""; 0]);
    }

    #[test]
    fn a_controller_is_taken_from_where_it_is_mounted() {
        // Not mounted, or on version 2.
        assert_eq!(found(MEMORY, "5:pids:/\n0::/\n"), [""; 0]);
        assert_eq!(found("not a line of mountinfo\n", "12:memory:/\n"), [""; 0]);
        assert_eq!(found(MEMORY, "memory\n"), [""; 0]);
    }

    #[test]
    fn every_limit_has_its_file_and_swap_comes_on_top_of_memory() {
        let text = |limits: &Limits| -> Vec<String> {
            settings(limits)
                .iter()
                .map(|setting| format!("{} {}: {}", setting.limit, setting.file, setting.value))
                .collect()
        };
        let limits = Limits {
            memory: Some(1000),
            swap: Some(24),
            pids: Some(20),
            cpus: Some(0.5),
            cpuset: Some("1".parse().unwrap()),
            ..Limits::default()
        };
        assert_eq!(
            text(&limits),
            [
                "memory memory.limit_in_bytes: 1000",
                "swap memory.memsw.limit_in_bytes: 1024",
                "pids pids.max: 20",
                "cpus cpu.cfs_period_us: 100000",
                "cpus cpu.cfs_quota_us: 50000",
                "cpuset cpuset.cpus: 1",
            ]
        );
        let swap_alone = Limits {
            memory: None,
            swap: Some(0),
            pids: None,
            cpus: None,
            ..limits
        };
        assert_eq!(text(&swap_alone), ["cpuset cpuset.cpus: 1"]);
    }

    #[test]
    fn counters_come_from_every_hierarchy() {
        let files = |controller, file: &str| {
            let text = match (controller, file) {
                (Controller::Memory, "memory.oom_control") => {
                    "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"
                }
                (Controller::Memory, "memory.limit_in_bytes") => "67108864\n",
                (Controller::Memory, "memory.max_usage_in_bytes") => "67104768\n",
                (Controller::Cpuacct, "cpuacct.usage_user") => "3000000\n",
                (Controller::Cpuacct, "cpuacct.usage_sys") => "2000000\n",
                (Controller::Cpu, "cpu.stat") => {
                    "nr_periods 3\nnr_throttled 1\nthrottled_time 7000\n"
                }
                _ => "",
            };
            text.to_owned()
        };
        let expected = Counters {
            memory_peak: Some((67_104_768, PeakSource::Cgroup1)),
            memory_kills: 2,
            memory_events: [("oom_kill".to_owned(), 2)].into(),
            user_micros: Some(3000),
            system_micros: Some(2000),
            throttled_micros: Some(7),
            ..Counters::default()
        };
        assert_eq!(counters(files), expected);
        let by_the_host = counters(|controller, file| match file {
            "memory.max_usage_in_bytes" => "4096\n".to_owned(),
            file => files(controller, file),
        });
        assert_eq!(by_the_host.memory_kills, 0);
    }
}
