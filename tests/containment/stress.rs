//! stress-ng(1) from inside: many ways to use a kernel up, and to call it with nonsense.

use std::time::Duration;

use sbxrt_tests::{Need, Sbxrt, require};

use crate::attack;

/// Each for a second, with two workers. None of them needs a privilege; what the filter refuses, stress-ng passes over.
const STRESSORS: &[&str] = &[
    "fork",
    "vfork",
    "zombie",
    "daemon",
    "clone",
    "pthread",
    "vm",
    "vm-splice",
    "mmapfork",
    "stack",
    "shm",
    "shm-sysv",
    "memfd",
    "mq",
    "sem-sysv",
    "pipe",
    "sockpair",
    "inotify",
    "epoll",
    "timer",
    "sigq",
    "flock",
    "dentry",
    "filename",
    "hdd",
    "sparsematrix",
    "xattr",
    "key",
    "userfaultfd",
    "ptrace",
    "personality",
    "opcode",
    "sysbadaddr",
    "sysinval",
    "procfs",
    "dev",
    "set",
    "fd-fork",
    "kill",
    "sched",
    "mlock",
    "rawsock",
    "resources",
    "unshare",
];

#[test]
fn what_stress_ng_does_stays_inside() {
    if !require(Need::StressNg) {
        return;
    }
    attack(|sbxrt| {
        let (first, second) = STRESSORS.split_at(STRESSORS.len() / 2);
        std::thread::scope(|scope| {
            for half in [first, second] {
                scope.spawn(|| half.iter().for_each(|stressor| stress(sbxrt, stressor)));
            }
        });
    });
}

fn stress(sbxrt: &Sbxrt, stressor: &str) {
    let name = format!("--{stressor}");
    let words = [
        "--json",
        "-m",
        "192m",
        "--pids-limit",
        "64",
        "--cpus",
        "2",
        "--scratch-size",
        "32m",
        "--output-limit",
        "64k",
        "--timeout",
        "30s",
        "-w",
        "/tmp",
        "host:",
        "stress-ng",
        "--temp-path",
        "/tmp",
        &name,
        "2",
        "--timeout",
        "1s",
        "--no-rand-seed",
    ];
    let output = sbxrt.run(words).deadline(Duration::from_secs(120)).output();
    let report = output.report();
    // It ends by itself, well (0) or because something was refused to it (1 to 7), or by a limit that is meant for it.
    let ended = match report.kind() {
        "exited" => report.code().is_some_and(|code| (0..=7).contains(&code)),
        kind => ["oom", "pids", "disk", "output", "timeout", "seccomp"].contains(&kind),
    };
    assert!(ended, "{stressor}: {report}");
}
