//! What a program inside can reach at all: a program tries capabilities, system calls, socket families, terminals, files of
//! `/proc` and `/sys`, namespaces, devices and mounts, and what it finds is `escape_surface.txt`, which people have reviewed.
//!
//! On the kernel that the text was made on it must be the same, line by line. On another one there may be less, and other
//! files of `/proc`, which are hardware; but nothing more.

use std::collections::BTreeSet;
use std::fs;

use sbxrt_tests::{Fixtures, for_each_identity};

use crate::python;

const REVIEWED: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/containment/escape_surface.txt"
);

#[cfg(target_arch = "x86_64")]
#[test]
fn what_can_be_reached_from_inside_is_what_was_reviewed() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.python_rootfs();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let kernel = format!("kernel: {}", kernel.trim());
    for_each_identity(|sbxrt| {
        // Without a cgroup a limit on memory or processors takes three calls more away.
        let options = ["-m0", "--cpus=0"];
        let output = python(sbxrt, &image, &options, include_str!("escape_surface.py"));
        let found = output.success().lines().map(named);
        let found: Vec<String> = [kernel.clone()].into_iter().chain(found).collect();
        if std::env::var_os("SBXRT_UPDATE_SURFACE").is_some() {
            fs::write(REVIEWED, found.join("\n") + "\n").unwrap();
        }
        let reviewed = fs::read_to_string(REVIEWED).unwrap();
        let reviewed: Vec<&str> = reviewed.lines().collect();
        let difference = difference(&reviewed, &found);
        assert!(
            difference.is_empty(),
            "the surface has changed (- as reviewed, + as found by {}):\n{}\n\
             hint: ask of each line that is new what an attacker could do with it, and whether a program needs it; then \
             write it down with SBXRT_UPDATE_SURFACE=1 and say in the commit why it is there",
            sbxrt.identity().name(),
            difference.join("\n"),
        );
    });
}

/// The line with the name of the system call in the place of its number.
fn named(line: &str) -> String {
    let name = |rest: &str| {
        let (number, result) = rest.split_once(": ")?;
        let call = syscalls::x86_64::Sysno::new(number.parse().ok()?)?;
        Some(format!("syscall: {}: {result}", call.name()))
    };
    line.strip_prefix("syscall: ")
        .and_then(name)
        .unwrap_or_else(|| line.to_owned())
}

fn difference(reviewed: &[&str], found: &[String]) -> Vec<String> {
    let same_kernel = reviewed.first().copied() == found.first().map(String::as_str);
    let before: BTreeSet<&str> = reviewed.iter().copied().collect();
    let now: BTreeSet<&str> = found.iter().map(String::as_str).collect();
    let is_of_the_machine = |line: &str| {
        ["kernel: ", "/proc: ", "mount: /proc/"]
            .iter()
            .any(|prefix| line.starts_with(prefix))
            || line.ends_with(": absent (ENOSYS)")
    };
    let gone = before
        .difference(&now)
        .filter(|_| same_kernel)
        .map(|line| format!("- {line}"));
    let new = now
        .difference(&before)
        .filter(|line| same_kernel || !is_of_the_machine(line))
        .map(|line| format!("+ {line}"));
    gone.chain(new).collect()
}

#[test]
fn a_change_is_seen_and_less_on_another_kernel_is_not() {
    let reviewed = [
        "kernel: 6.18",
        "socket: family 1",
        "syscall: mseal: reaches the kernel",
    ];
    let found = |lines: &[&str]| lines.iter().copied().map(str::to_owned).collect::<Vec<_>>();
    let older = [
        "kernel: 6.1",
        "/proc: fb: is empty",
        "syscall: mseal: absent (ENOSYS)",
    ];
    assert_eq!(difference(&reviewed, &found(&older)), [""; 0]);
    let wider = ["kernel: 6.1", "socket: family 1", "socket: family 40"];
    assert_eq!(
        difference(&reviewed, &found(&wider)),
        ["+ socket: family 40"]
    );
    let other = [
        "kernel: 6.18",
        "socket: family 1",
        "syscall: mseal: refused (EPERM)",
    ];
    assert_eq!(
        difference(&reviewed, &found(&other)),
        [
            "- syscall: mseal: reaches the kernel",
            "+ syscall: mseal: refused (EPERM)"
        ]
    );
}
