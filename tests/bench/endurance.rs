//! One engine in one process, as in a service: what it takes of the machine stays flat, and what ran out of time is gone.
//!
//! `SBXRT_TEST_RUNS` says how many executions there are in a row; by default it is [`RUNS`].

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sbxrt_tests::{Fixtures, Host, Identity, Sbxrt, for_each_identity};
use serde_json::Value;

const RUNS: &str = "300";
/// What the allocator and the page cache of executables may add, whatever the number of runs.
const MEMORY_NOISE: u64 = 2 << 20;

const THINGS: [&str; 6] = [
    "processes",
    "files",
    "mounts",
    "cgroups",
    "net_namespaces",
    "temporary",
];

#[test]
fn short_runs_in_a_row_take_no_more_of_the_machine_than_one() {
    let runs = std::env::var("SBXRT_TEST_RUNS").unwrap_or_else(|_| RUNS.to_owned());
    each(|sbxrt, bench, rootfs| {
        let said = sbxrt.tool(&[bench, "endure", rootfs, &runs]);
        eprintln!("{said}");
        let counts: Vec<Value> = said
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(counts.len(), 10);
        // The first tenth is what it takes to have everything warm.
        let (first, last) = (&counts[0], &counts[9]);
        for what in THINGS {
            assert!(
                number(last, what) <= number(first, what),
                "{what} after {runs} runs: {said}"
            );
        }
        assert_eq!(last["cgroups"], 0, "{said}");
        let grown = number(last, "proportional").saturating_sub(number(first, "proportional"));
        assert!(
            grown <= MEMORY_NOISE,
            "memory grew by {grown} bytes: {said}"
        );
    });
}

#[test]
fn trees_that_mean_to_stay_end_when_their_time_is_over() {
    each(|sbxrt, bench, rootfs| {
        let said = sbxrt.tool(&[bench, "timeouts", rootfs, "2"]);
        eprintln!("{said}");
        let rows: Vec<&str> = said.lines().skip(1).collect();
        assert_eq!(rows.len(), 4, "{said}");
        for row in rows {
            let words: Vec<&str> = row.split_ascii_whitespace().rev().take(2).collect();
            assert_eq!(words, ["0", "2"], "survivors and timeouts: {said}");
        }
    });
}

#[test]
fn a_container_that_stood_ready_is_used_once_and_like_any_other() {
    each(|sbxrt, bench, rootfs| {
        let said = sbxrt.tool(&[bench, "pool", rootfs, "2"]);
        let lines: Vec<Value> = said
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let (lines, limited) = lines.split_at(8);
        let mut names = BTreeSet::new();
        for (number, line) in lines.iter().enumerate() {
            assert_eq!(line["termination"], "Exited { code: 0 }", "{line}");
            assert_eq!(line["stderr"], "", "{line}");
            assert_eq!(line["files"], 1, "{line}");
            let found: Vec<&str> = line["stdout"].as_str().unwrap().lines().collect();
            let words = format!("name {number} value-{number} input-{number}");
            assert_eq!(found[0], words, "{line}");
            assert!(!found[2..found.len() - 1].contains(&"left"), "{line}");
            assert_eq!(found[found.len() - 1], "left", "{line}");
            assert!(
                names.insert(found[1].to_owned()),
                "a container again: {said}"
            );
        }
        let ends: Vec<&Value> = limited.iter().map(|line| &line["termination"]).collect();
        assert_eq!(ends, ["Exited { code: 0 }", "Timeout"], "{said}");
    });
}

#[test]
fn sandboxes_asleep_at_once_are_all_gone_afterwards() {
    each(|sbxrt, bench, rootfs| {
        let said = sbxrt.tool(&[bench, "many", rootfs, "40"]);
        eprintln!("{said}");
        let count = |name: &str| -> Value {
            let line = said.lines().find_map(|line| line.trim().strip_prefix(name));
            serde_json::from_str(line.unwrap()).unwrap()
        };
        let (before, after) = (count("before"), count("after"));
        for what in THINGS {
            assert!(
                number(&after, what) <= number(&before, what),
                "{what}: {said}"
            );
        }
    });
}

#[test]
fn three_hundred_at_the_same_time_all_succeed() {
    each(|sbxrt, bench, rootfs| {
        // With two launchers, whatever the machine has.
        let said = sbxrt.tool(&[bench, "flood", rootfs, "300", "2", "300"]);
        eprintln!("{said}");
        assert_no_failures(&said);
    });
}

#[test]
fn thousands_that_come_at_once_wait_for_their_turn() {
    each(|sbxrt, bench, rootfs| {
        // For the others it is no different, and on cgroups of version 1 each takes its time.
        let is_the_one = sbxrt.identity().name() == "sbxrt-test" || !Identity::current().is_root();
        let runs = if is_the_one { "5000" } else { "500" };
        let said = sbxrt.tool(&[bench, "flood", rootfs, runs]);
        eprintln!("{said}");
        assert_no_failures(&said);
    });
}

fn assert_no_failures(said: &str) {
    let line = said.lines().find(|line| line.contains("failures"));
    let count = line.and_then(|line| line.split_ascii_whitespace().last());
    assert_eq!(count, Some("0"), "{said}");
}

fn number(count: &Value, name: &str) -> u64 {
    count[name].as_u64().unwrap()
}

/// Calls back for each identity with the measuring program where that user can execute it, and a root file system.
fn each(test: impl Fn(&Sbxrt, &str, &str)) {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let rootfs = fixtures.busybox_rootfs();
    let rootfs = rootfs.strip_prefix("dir:").unwrap();
    for_each_identity(|sbxrt| {
        let bench = sbxrt.home().join("sbxrt-bench");
        std::fs::copy(binary(), &bench).unwrap();
        std::fs::set_permissions(&bench, std::fs::Permissions::from_mode(0o755)).unwrap();
        let host = Host::snapshot(sbxrt);
        test(sbxrt, bench.to_str().unwrap(), rootfs);
        host.assert_nothing_is_left();
    });
}

/// nextest tells where it is when the tests run elsewhere than they were built.
fn binary() -> PathBuf {
    let told = std::env::var_os("NEXTEST_BIN_EXE_sbxrt-bench");
    told.map_or_else(
        || Path::new(env!("CARGO_BIN_EXE_sbxrt-bench")).to_owned(),
        PathBuf::from,
    )
}
