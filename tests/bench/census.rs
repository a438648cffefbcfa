//! What this process and all that descends from it have of the machine at one moment.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use sbxrt_tests::descendants;
use serde_json::{Value, json};

/// One count of everything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Census {
    pub(crate) processes: u64,
    /// Bytes of memory, with what is shared divided by its users.
    pub(crate) proportional: u64,
    /// Open files of this process and of the launchers.
    pub(crate) files: u64,
    /// Mounts that this process and the launchers see.
    pub(crate) mounts: u64,
    /// Cgroups that are named after this process, in all hierarchies.
    pub(crate) cgroups: u64,
    pub(crate) net_namespaces: u64,
    /// What lies in the directory for temporary files.
    pub(crate) temporary: u64,
    /// Bytes that the whole machine could still use.
    pub(crate) available: u64,
}

impl Census {
    /// Counts. A process that ends meanwhile counts for nothing.
    pub(crate) fn take() -> Self {
        let own = std::process::id();
        let all = [vec![own], descendants(own)].concat();
        let ours: Vec<u32> = [vec![own], children(own)].concat();
        let sum = |pids: &[u32], count: fn(u32) -> u64| pids.iter().map(|&pid| count(pid)).sum();
        let namespace = |pid: &u32| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .ok()
                .map(|it| it.ino())
        };
        Self {
            processes: all.len() as u64,
            proportional: sum(&all, proportional),
            files: sum(&ours, |pid| entries(format!("/proc/{pid}/fd"))),
            mounts: sum(&ours, |pid| lines(&format!("/proc/{pid}/mountinfo"))),
            cgroups: cgroups(Path::new("/sys/fs/cgroup"), &format!("sbxrt-run.{own}.")),
            net_namespaces: all
                .iter()
                .filter_map(namespace)
                .collect::<BTreeSet<u64>>()
                .len() as u64,
            temporary: entries(std::env::temp_dir()),
            available: kibibytes("/proc/meminfo", "MemAvailable:"),
        }
    }

    /// Counts until there is nothing more than `before`, memory aside, for ten seconds at most: the launcher gives up what an
    /// execution had just after it has reported.
    pub(crate) fn take_settled(before: &Self) -> Self {
        let mut count = Self::take();
        sbxrt_tests::eventually(Duration::from_secs(10), || {
            count = Self::take();
            let pairs = count.things().into_iter().zip(before.things());
            pairs.into_iter().all(|(now, then)| now <= then)
        });
        count
    }

    fn things(&self) -> [u64; 6] {
        [
            self.processes,
            self.files,
            self.mounts,
            self.cgroups,
            self.net_namespaces,
            self.temporary,
        ]
    }

    /// As one line, for whoever reads it by program.
    pub(crate) fn to_json(self) -> Value {
        let Self {
            processes,
            proportional,
            files,
            mounts,
            cgroups,
            net_namespaces,
            temporary,
            available,
        } = self;
        json!({
            "processes": processes, "proportional": proportional, "files": files, "mounts": mounts,
            "cgroups": cgroups, "net_namespaces": net_namespaces, "temporary": temporary, "available": available,
        })
    }
}

/// The children of a process, from any of its threads.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids = |list: String| {
        list.split_ascii_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect::<Vec<_>>()
    };
    lists.flat_map(pids).collect()
}

fn proportional(pid: u32) -> u64 {
    kibibytes(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

fn kibibytes(file: &str, key: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.trim().strip_suffix("kB"));
    value
        .and_then(|number| number.trim().parse::<u64>().ok())
        .unwrap_or(0)
        << 10
}

fn entries(directory: impl AsRef<Path>) -> u64 {
    fs::read_dir(directory).into_iter().flatten().count() as u64
}

fn lines(file: &str) -> u64 {
    fs::read_to_string(file).unwrap_or_default().lines().count() as u64
}

fn cgroups(directory: &Path, prefix: &str) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories
        .map(|entry| {
            let counts = entry.file_name().to_string_lossy().starts_with(prefix);
            u64::from(counts) + cgroups(&entry.path(), prefix)
        })
        .sum()
}
