//! The caller's own cgroup v2 subtree, where it has been given one.
//!
//! A process may create cgroups below its own where the directory belongs to it and controllers are offered there: a
//! systemd scope or service with `Delegate=yes`, a job step of a scheduler that delegates, a container with a
//! writable cgroup namespace. Because a cgroup with processes of its own cannot give controllers to its children
//! (cgroup v2's "no internal processes"), the processes that are there, the caller's own among them, are moved once
//! into a leaf named [`CALLER_LEAF`] beside which the executions' leaves are made. It stays until its processes end:
//! moving them again would cost a grace period of the kernel (11-16 ms) on every run.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, faccessat};

use super::{
    CPU_PERIOD, Controller, Counters, Directory, Obstacle, Setting, cpu_quota, errno_of, fields,
    named, read_own, write_at,
};
use crate::disk::Disk;
use crate::report::PeakSource;
use crate::request::{LimitName, Limits};

/// Where the processes that were in the subtree's root live from then on.
const CALLER_LEAF: &str = "sbxrt.caller";
/// Those that limits need, where they are offered.
const CONTROLLERS: [Controller; 5] = [
    Controller::Cpu,
    Controller::Cpuset,
    Controller::Io,
    Controller::Memory,
    Controller::Pids,
];

/// The caller's subtree, ready for leaves.
pub(super) fn acquire() -> Result<Directory, Obstacle> {
    prepare(locate("self")?)
}

/// Makes a subtree ready for leaves.
pub(super) fn prepare(mut directory: Directory) -> Result<Directory, Obstacle> {
    match enable(&directory) {
        Ok(enabled) => directory.controllers = enabled,
        Err(error) => {
            return Err(Obstacle::NotEnabled {
                path: directory.path,
                errno: errno_of(&error),
            });
        }
    }
    Ok(directory)
}

/// The subtree of a process as it is, with the controllers that it is offered. `process` is its name in `/proc`.
pub(super) fn locate(process: &str) -> Result<Directory, Obstacle> {
    let mount = mount_point().ok_or(Obstacle::NotMounted)?;
    let membership = read_own(&format!("/proc/{process}/cgroup"))?;
    let own = own_cgroup(&membership).ok_or(Obstacle::NotMounted)?;
    let own = mount.join(own.trim_start_matches('/'));
    match own.parent() {
        Some(parent) if own.file_name().is_some_and(|name| name == CALLER_LEAF) => {
            at(parent.to_owned())
        }
        _ => at(own),
    }
}

/// The subtree at `path`, if leaves can be made there.
fn at(path: PathBuf) -> Result<Directory, Obstacle> {
    let offered = fs::read_to_string(path.join("cgroup.controllers")).map_err(|error| {
        Obstacle::Unreachable {
            path: path.clone(),
            errno: errno_of(&error),
        }
    })?;
    if named(&offered, Controller::MAIN).is_empty() {
        return Err(Obstacle::NothingOffered { path });
    }
    let directory = Directory::open(path, named(&offered, CONTROLLERS))?;
    for file in [".", "cgroup.procs", "cgroup.subtree_control"] {
        let flags = AtFlags::AT_EACCESS;
        faccessat(&directory.descriptor, file, AccessFlags::W_OK, flags).map_err(|errno| {
            Obstacle::NotWritable {
                path: directory.path.clone(),
                file,
                errno: errno as i32,
            }
        })?;
    }
    Ok(directory)
}

/// Gives the offered controllers to the children, after moving the processes that are in the way. Those that the
/// children have.
fn enable(subtree: &Directory) -> io::Result<Vec<Controller>> {
    let control = subtree.path.join("cgroup.subtree_control");
    let missing = |wanted: &[Controller]| -> io::Result<Vec<Controller>> {
        let enabled = named(&fs::read_to_string(&control)?, CONTROLLERS);
        let mut missing = wanted.to_vec();
        missing.retain(|controller| {
            subtree.controllers.contains(controller) && !enabled.contains(controller)
        });
        Ok(missing)
    };
    let give = |controllers: &[Controller]| {
        let words: Vec<String> = controllers
            .iter()
            .map(|controller| format!("+{controller}"))
            .collect();
        fs::write(&control, words.join(" "))
    };
    let main = missing(&Controller::MAIN)?;
    // The root of the hierarchy may keep its processes, and so may a parent that has none.
    if !main.is_empty() && give(&main).is_err() {
        clear(subtree, || give(&main))?;
    }
    for controller in missing(&CONTROLLERS)? {
        // Not every run asks for what these hold.
        if let Err(error) = give(&[controller]) {
            tracing::debug!(%controller, %error, "cannot be given to children");
        }
    }
    Ok(named(&fs::read_to_string(&control)?, CONTROLLERS))
}

/// Moves the processes of the subtree's root out of the way until `attempt` succeeds.
fn clear(subtree: &Directory, attempt: impl Fn() -> io::Result<()>) -> io::Result<()> {
    let leaf = subtree.path.join(CALLER_LEAF);
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // Processes may fork while they are moved, so this is tried a bounded number of times.
    let mut last = Ok(());
    for _ in 0..16 {
        for pid in fs::read_to_string(subtree.path.join("cgroup.procs"))?.lines() {
            match fs::write(leaf.join("cgroup.procs"), pid) {
                // It has ended since.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                other => other?,
            }
        }
        last = attempt();
        if last.is_ok() {
            break;
        }
    }
    last
}

/// Where cgroup v2 is mounted: alone, or beside version 1.
pub(crate) fn mount_point() -> Option<&'static Path> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .map(Path::new)
        .find(|path| {
            nix::sys::statfs::statfs(*path)
                .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC)
        })
}

/// The cgroup v2 path in the contents of `/proc/self/cgroup`.
fn own_cgroup(membership: &str) -> Option<&str> {
    membership.lines().find_map(|line| line.strip_prefix("0::"))
}

/// What is written into a leaf to hold `limits`.
pub(super) fn settings(limits: &Limits, disks: Option<&[Disk]>) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(bytes) = limits.memory {
        settings.push(Setting::new(LimitName::Memory, "memory.max", &bytes));
    }
    if let Some(bytes) = limits.swap {
        settings.push(Setting::new(LimitName::Swap, "memory.swap.max", &bytes));
    }
    if let Some(pids) = limits.pids {
        settings.push(Setting::new(LimitName::Pids, "pids.max", &pids));
    }
    if let Some(cpus) = limits.cpus {
        let value = format!("{} {CPU_PERIOD}", cpu_quota(cpus));
        settings.push(Setting::new(LimitName::Cpus, "cpu.max", &value));
    }
    if let Some(cpuset) = &limits.cpuset {
        settings.push(Setting::new(LimitName::Cpuset, "cpuset.cpus", cpuset));
    }
    for disk in disks.unwrap_or_default() {
        let rates = [("rbps", limits.io_read), ("wbps", limits.io_write)];
        let rates: String = rates
            .into_iter()
            .filter_map(|(word, rate)| Some(format!(" {word}={}", rate?)))
            .collect();
        if !rates.is_empty() {
            settings.push(Setting::new(
                LimitName::Io,
                "io.max",
                &format!("{disk}{rates}"),
            ));
        }
    }
    settings
}

/// Lets the kernel end all processes of the leaf where it ends one for lack of memory (Linux 4.19).
pub(super) fn end_together(leaf: BorrowedFd<'_>) -> io::Result<()> {
    write_at(leaf, "memory.oom.group", "1")
}

/// The counters that `read` finds in the files of a leaf, but for those of processes.
pub(super) fn counters(read: impl Fn(&str) -> String) -> Counters {
    let memory_events = fields(&read("memory.events"));
    let event = |name| memory_events.get(name).copied().unwrap_or(0);
    let cpu = fields(&read("cpu.stat"));
    let peak = read("memory.peak").trim().parse().ok();
    Counters {
        memory_peak: peak.map(|peak| (peak, PeakSource::Cgroup2)),
        // `oom_kill` also counts what the host's own OOM killer takes; `oom` is the leaf's own limit.
        memory_kills: if event("oom") > 0 {
            event("oom_kill")
        } else {
            0
        },
        user_micros: cpu.get("user_usec").copied(),
        system_micros: cpu.get("system_usec").copied(),
        throttled_micros: cpu.get("throttled_usec").copied(),
        memory_events,
        ..Counters::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_cgroup_is_the_one_without_a_number() {
        assert_eq!(
            own_cgroup("12:pids:/a\n0::/user.slice/x\n"),
            Some("/user.slice/x")
        );
        assert_eq!(own_cgroup("12:pids:/a\n"), None);
    }

    #[test]
    fn every_limit_has_its_file() {
        let limits = Limits {
            memory: Some(64 << 20),
            swap: Some(0),
            pids: Some(20),
            cpus: Some(0.5),
            cpuset: Some("0-1".parse().unwrap()),
            io_read: Some(1000),
            io_write: Some(2000),
            ..Limits::default()
        };
        let text: Vec<String> = settings(&limits, Some(&[Disk::new(8, 0)]))
            .iter()
            .map(|setting| format!("{} {}: {}", setting.limit, setting.file, setting.value))
            .collect();
        assert_eq!(
            text,
            [
                "memory memory.max: 67108864",
                "swap memory.swap.max: 0",
                "pids pids.max: 20",
                "cpus cpu.max: 50000 100000",
                "cpuset cpuset.cpus: 0-1",
                "io io.max: 8:0 rbps=1000 wbps=2000",
            ]
        );
        assert!(
            settings(&limits, None)
                .iter()
                .all(|setting| setting.limit != LimitName::Io)
        );
    }

    #[test]
    fn a_kill_counts_where_the_leafs_own_limit_was_reached() {
        let table = [
            ("max 9\noom 1\noom_kill 3\noom_group_kill 1\n", 3),
            ("max 0\noom 0\noom_kill 1\noom_group_kill 0\n", 0),
            ("", 0),
        ];
        for (events, kills) in table {
            let found = counters(|file| match file {
                "memory.events" => events.to_owned(),
                "memory.peak" => "4096\n".to_owned(),
                "cpu.stat" => {
                    "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_throttled 1\nthrottled_usec 7\n"
                        .to_owned()
                }
                _ => String::new(),
            });
            assert_eq!(found.memory_kills, kills, "{events:?}");
            assert_eq!(found.memory_peak, Some((4096, PeakSource::Cgroup2)));
            assert_eq!(
                (
                    found.user_micros,
                    found.system_micros,
                    found.throttled_micros
                ),
                (Some(3), Some(2), Some(7))
            );
        }
    }
}
