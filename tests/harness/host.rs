//! What a run leaves on the host, which must be nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::sbxrt::walk;
use crate::{PATIENCE, Sbxrt, eventually};

/// After how long it is told what keeps the host from being as it was.
const NOTABLE: Duration = Duration::from_secs(1);

/// The processes of this test: those that it has started, and those that were seen below them. A cgroup has the name of
/// the process that it was made for, which may have ended long ago.
static OWN: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// Notes that a process is this test's.
pub(crate) fn started(pid: u32) {
    OWN.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(pid);
}

/// What was on the host before a run.
#[derive(Debug)]
pub struct Host {
    places: Places,
    before: Traces,
}

/// Where this test's files are.
#[derive(Debug)]
struct Places {
    /// All that is the test's.
    own: PathBuf,
    /// What of it must be empty again.
    private: [PathBuf; 2],
}

impl Host {
    /// Looks at the host, and makes this process the parent of all that will be orphaned below it.
    ///
    /// Tests run at the same time, so what another one has running must not count, nor what it leaves behind. Processes
    /// are told apart by their descent, temporary files and mounts by the directories that each test has of its own, and
    /// cgroups by whether anything is in them and by whom they were made for.
    pub fn snapshot(sbxrt: &Sbxrt) -> Self {
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        started(std::process::id());
        let places = Places {
            own: sbxrt.directory().to_owned(),
            private: [sbxrt.runtime_directory(), sbxrt.temporary_directory()],
        };
        let before = Traces::find(&places);
        Self { places, before }
    }

    /// Waits, at most a minute, until the host is as it was. Returns how long that took.
    ///
    /// # Panics
    ///
    /// Where a process, mount, cgroup or temporary file is left then.
    pub fn assert_nothing_is_left(&self) -> Duration {
        let start = Instant::now();
        let mut left = Vec::new();
        let mut is_told = false;
        let clean = eventually(PATIENCE, || {
            let looking = Instant::now();
            left = Traces::find(&self.places).beyond(&self.before);
            if !left.is_empty() && !is_told && start.elapsed() > NOTABLE {
                is_told = true;
                let (after, took) = (start.elapsed(), looking.elapsed());
                eprintln!(
                    "left after {after:?}, of which {took:?} to look: {}",
                    left.iter()
                        .map(|it| describe(it))
                        .collect::<Vec<_>>()
                        .join(", ")
                );
            }
            left.is_empty()
        });
        assert!(
            clean,
            "left on the host after {PATIENCE:?}:\n{}",
            left.join("\n")
        );
        start.elapsed()
    }
}

/// A trace, and where it is a process what that does and what the kernel has it wait for.
fn describe(trace: &str) -> String {
    let mut words = trace.split(' ');
    let (Some("process"), Some(pid)) = (words.next(), words.next()) else {
        return trace.to_owned();
    };
    let read = |file| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let status = read("status");
    let line = |key| status.lines().find_map(|line| line.strip_prefix(key));
    let name = line("Name:").unwrap_or_default().trim();
    let state = line("State:").unwrap_or_default().trim();
    format!("{trace} ({name}, {state}, {})", read("wchan"))
}

#[derive(Debug)]
struct Traces(BTreeSet<String>);

impl Traces {
    fn find(places: &Places) -> Self {
        let mut found = BTreeSet::new();
        for pid in descendants(std::process::id()) {
            started(pid);
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            found.insert(format!("process {pid} {command}"));
        }
        for mount in fs::read_to_string("/proc/self/mounts").unwrap().lines() {
            let is_another_tests =
                mount.contains("/sbxrt-test-") && !mount.contains(places.own.to_str().unwrap());
            if !is_another_tests {
                found.insert(format!("mount {mount}"));
            }
        }
        let own = OWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
        walk(Path::new("/sys/fs/cgroup"), &mut |path| {
            if path.is_dir() && !is_another_tests(path, &own) && is_unpopulated(path) {
                found.insert(format!("cgroup {}", path.display()));
            }
        });
        for directory in &places.private {
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

/// Whether a cgroup was made for a process that is none of `own`: `sbxrt-run.PID.…`, or `sbxrt-job.PID.…`, which tests
/// make.
fn is_another_tests(cgroup: &Path, own: &BTreeSet<u32>) -> bool {
    let owners: Vec<u32> = cgroup
        .iter()
        .filter_map(|name| {
            let name = name.to_str()?;
            let (_, rest) = name
                .split_once('.')
                .filter(|(kind, _)| matches!(*kind, "sbxrt-run" | "sbxrt-job"))?;
            rest.split('.').next()?.parse().ok()
        })
        .collect();
    !owners.is_empty() && owners.iter().all(|pid| !own.contains(pid))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_told_from_that_of_another_test() {
        let own = BTreeSet::from([17, 18]);
        for (path, expected) in [
            ("/sys/fs/cgroup/memory/sbxrt-run.17.0.abc", false),
            ("/sys/fs/cgroup/memory/sbxrt-run.99.0.abc", true),
            (
                "/sys/fs/cgroup/memory/sbxrt-job.18.0/sbxrt-run.99.0.abc",
                false,
            ),
            ("/sys/fs/cgroup/memory/sbxrt-job.99.0", true),
            ("/sys/fs/cgroup/memory/somebody.99.0", false),
            ("/sys/fs/cgroup/sbxrt.caller", false),
        ] {
            assert_eq!(is_another_tests(Path::new(path), &own), expected, "{path}");
        }
    }
}
