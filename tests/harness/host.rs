//! What a run leaves on the host, which must be nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::sbxrt::walk;
use crate::{Sbxrt, eventually};

/// How long the host may take to be as it was. It takes milliseconds, except where others keep the machine busy.
const LIMIT: Duration = Duration::from_secs(10);

/// What was on the host before a run.
#[derive(Debug)]
pub struct Host {
    private: Vec<PathBuf>,
    before: Traces,
}

impl Host {
    /// Looks at the host, and makes this process the parent of all that will be orphaned below it.
    ///
    /// Tests run at the same time, so what another one has running must not count. Processes are told apart by their
    /// descent, temporary files by the directories that each test has of its own, and cgroups by whether anything is
    /// in them.
    pub fn snapshot(sbxrt: &Sbxrt) -> Self {
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let private = vec![sbxrt.runtime_directory(), sbxrt.temporary_directory()];
        let before = Traces::find(&private);
        Self { private, before }
    }

    /// Waits, at most ten seconds, until the host is as it was. Returns how long that took.
    ///
    /// # Panics
    ///
    /// Where a process, mount, cgroup or temporary file is left then.
    pub fn assert_nothing_is_left(&self) -> Duration {
        let start = Instant::now();
        let mut left = Vec::new();
        let clean = eventually(LIMIT, || {
            left = Traces::find(&self.private).beyond(&self.before);
            left.is_empty()
        });
        assert!(
            clean,
            "left on the host after {LIMIT:?}:\n{}",
            left.join("\n")
        );
        start.elapsed()
    }
}

#[derive(Debug)]
struct Traces(BTreeSet<String>);

impl Traces {
    fn find(private: &[PathBuf]) -> Self {
        let mut found = BTreeSet::new();
        for pid in descendants(std::process::id()) {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            found.insert(format!("process {pid} {command}"));
        }
        for mount in fs::read_to_string("/proc/self/mounts").unwrap().lines() {
            found.insert(format!("mount {mount}"));
        }
        walk(Path::new("/sys/fs/cgroup"), &mut |path| {
            if path.is_dir() && is_unpopulated(path) {
                found.insert(format!("cgroup {}", path.display()));
            }
        });
        for directory in private {
            walk(directory, &mut |path| {
                found.insert(format!("file {}", path.display()));
            });
        }
        for directory in ["/tmp", "/var/tmp", "/dev/shm", "/run", "/run/lock"] {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let is_a_runs = ["sbxrt", "youki", "libcontainer"]
                    .iter()
                    .any(|word| name.contains(word));
                if is_a_runs && !name.starts_with("sbxrt-test") {
                    found.insert(format!("file {}", entry.path().display()));
                }
            }
        }
        Self(found)
    }

    fn beyond(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

/// All processes that descend from one and have not ended. Orphans are the children of the nearest subreaper.
///
/// # Panics
///
/// Without `/proc`.
pub fn descendants(ancestor: u32) -> Vec<u32> {
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // PID (NAME) STATE PARENT …; the name may hold anything.
        let mut fields = stat
            .rsplit_once(") ")
            .map_or("", |(_, rest)| rest)
            .split(' ');
        if let (Some(state), Some(Ok(parent))) =
            (fields.next(), fields.next().map(str::parse::<u32>))
        {
            processes.push((pid, parent, matches!(state, "Z" | "X")));
        }
    }
    let mut family = BTreeSet::from([ancestor]);
    while processes
        .iter()
        .any(|(pid, parent, _)| family.contains(parent) && family.insert(*pid))
    {}
    let below =
        |(pid, _, ended): &(u32, u32, bool)| *pid != ancestor && family.contains(pid) && !ended;
    processes
        .iter()
        .filter(|process| below(process))
        .map(|(pid, _, _)| *pid)
        .collect()
}

fn is_unpopulated(cgroup: &Path) -> bool {
    // cgroup v2 says it of the whole subtree.
    if let Ok(events) = fs::read_to_string(cgroup.join("cgroup.events")) {
        return events.lines().any(|line| line == "populated 0");
    }
    let mut populated = false;
    let mut look = |directory: &Path| {
        populated |=
            fs::read_to_string(directory.join("cgroup.procs")).is_ok_and(|text| !text.is_empty());
    };
    look(cgroup);
    walk(cgroup, &mut |path| look(path));
    !populated
}
