//! Which processes of an execution there still are after they were ended, as `/proc` tells.
//!
//! A killed process is gone within a moment, unless the kernel makes it wait for something without a way out
//! (state D): a write to a frozen file system, a request to a FUSE or network server that does not answer.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use libc::pid_t;

/// A process as this pid namespace sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    parent: pid_t,
    has_ended: bool,
}

/// The living processes among `roots` and all that descend from them. Roots that only wait for others are left out.
pub(crate) fn living(roots: &[pid_t]) -> Vec<pid_t> {
    descendants(roots, &processes())
}

/// Whether the kernel holds a thread of this process, which a signal does not change.
pub(crate) fn is_stuck(pid: pid_t) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    tasks.into_iter().flatten().flatten().any(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        after_name(&stat).starts_with('D')
    })
}

/// Whether the child `pid`, not yet waited for, has ended.
pub(crate) fn is_over(pid: pid_t) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    parse(&stat).is_none_or(|process| process.has_ended)
}

/// The launchers of the user `own` that are ending, or held up at it: as the first process of its pid namespace, one cannot
/// be gone before all others are.
pub(crate) fn ending_launchers(own: u32) -> Vec<pid_t> {
    // linux/sched.h
    const PF_EXITING: u32 = 0x4;
    let is_ending = |stat: &str| {
        let flags = after_name(stat).split_ascii_whitespace().nth(6);
        stat.contains(" (sbxrt-launcher) ")
            && flags
                .and_then(|flags| flags.parse::<u32>().ok())
                .is_some_and(|it| it & PF_EXITING != 0)
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.metadata().is_ok_and(|metadata| metadata.uid() == own))
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            is_ending(&stat).then_some(pid)
        })
        .collect()
}

fn processes() -> BTreeMap<pid_t, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            Some((pid, parse(&stat)?))
        })
        .collect()
}

fn descendants(roots: &[pid_t], processes: &BTreeMap<pid_t, Process>) -> Vec<pid_t> {
    let mut family = roots.to_vec();
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        let children = processes
            .iter()
            .filter(|(_, process)| process.parent == parent);
        family.extend(children.map(|(pid, _)| *pid));
        next += 1;
    }
    let lives = |pid: &&pid_t| processes.get(pid).is_some_and(|process| !process.has_ended);
    let (below, roots) = (&family[roots.len()..], &family[..roots.len()]);
    let below: Vec<pid_t> = below.iter().filter(lives).copied().collect();
    if below.is_empty() {
        roots.iter().filter(lives).copied().collect()
    } else {
        below
    }
}

/// What `/proc/PID/stat` says behind the name, which may hold anything: the state comes first.
fn after_name(stat: &str) -> &str {
    stat.rsplit_once(") ").map_or("", |(_, rest)| rest)
}

fn parse(stat: &str) -> Option<Process> {
    let fields: Vec<&str> = after_name(stat).split_ascii_whitespace().collect();
    let threads: u32 = fields.get(17)?.parse().ok()?;
    Some(Process {
        parent: fields.get(1)?.parse().ok()?,
        // Its first thread may have ended before the others.
        has_ended: matches!(*fields.first()?, "Z" | "X") && threads <= 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(pid: pid_t, state: char, parent: pid_t, threads: u32) -> (pid_t, Process) {
        let text = format!(
            "{pid} (a) Z 9 (b) {state} {parent} 1 1 0 -1 4 0 0 0 0 0 0 0 0 20 0 {threads} 0 7"
        );
        (pid, parse(&text).unwrap())
    }

    #[test]
    fn what_lives_is_found_below_processes_that_have_ended() {
        let processes = BTreeMap::from([
            stat(5, 'S', 1, 1),
            stat(6, 'D', 5, 1),
            stat(7, 'Z', 5, 1),
            stat(8, 'D', 7, 1),
            stat(9, 'Z', 5, 2),
            stat(10, 'S', 1, 1),
        ]);
        assert_eq!(descendants(&[5], &processes), [6, 9, 8]);
        assert_eq!(descendants(&[10], &processes), [10]);
        assert_eq!(descendants(&[7, 11], &processes), [8]);
        assert_eq!(descendants(&[11], &processes), [0; 0]);
    }
}
