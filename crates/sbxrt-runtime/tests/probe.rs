//! Examines the machine that the tests run on, whatever it can do: the report must agree with itself, and nothing may
//! stay behind. Prints the report.
//!
//! A test without a harness, because [`probe::examine`] wants a process with one thread.

#![expect(clippy::print_stdout, reason = "a test speaks to its reader")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::Path;

use sbxrt_runtime::{LimitName, Mechanism, Requirement, probe};

const NAME: &str = "a_host_report_agrees_with_itself";

fn main() {
    sbxrt_runtime::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is = |option: &str| arguments.iter().any(|argument| argument == option);
    if is("--list") {
        if !is("--ignored") {
            println!("{NAME}: test");
        }
        return;
    }
    let filters: Vec<&String> = arguments
        .iter()
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    if !filters.is_empty() && !filters.iter().any(|filter| NAME.contains(filter.as_str())) {
        return;
    }
    a_host_report_agrees_with_itself();
    refuses_where_there_are_threads();
}

fn a_host_report_agrees_with_itself() {
    let parent = std::env::temp_dir();
    let store = parent
        .join(format!("sbxrt-probe-{}", std::process::id()))
        .join("store");
    let report = probe::examine(&store).unwrap();
    println!("{}", serde_json::to_string_pretty(&report).unwrap());

    let names: Vec<&str> = report
        .checks
        .iter()
        .map(|check| check.name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "kernel",
            "user_namespaces",
            "namespaces",
            "procfs",
            "mount_api",
            "overlay",
            "store",
            "overlay_on_store",
            "seccomp",
            "cgroup",
            "subordinate_ids",
            "fuse",
            "run",
            "leftovers"
        ]
    );
    let check = |name: &str| {
        report
            .checks
            .iter()
            .find(|check| check.name == name)
            .unwrap()
    };
    for check in &report.checks {
        assert_eq!(
            check.status == probe::Status::Ok,
            check.reason.is_none(),
            "{check:?}"
        );
        assert!(check.fix.is_none() || check.reason.is_some(), "{check:?}");
        assert!(!check.detail.contains('\n'), "{check:?}");
    }
    assert_eq!(report.ok, check("run").status != probe::Status::Failed);
    if report.ok {
        for name in [
            "user_namespaces",
            "namespaces",
            "procfs",
            "mount_api",
            "seccomp",
        ] {
            assert_eq!(
                check(name).status,
                probe::Status::Ok,
                "a run works, but {name} does not"
            );
        }
    }
    let held: Vec<LimitName> = report.limits.keys().copied().collect();
    assert_eq!(held, LimitName::ALL);
    let all_by_cgroup = [LimitName::Memory, LimitName::Cpus, LimitName::Pids]
        .iter()
        .all(|limit| Requirement::Cgroup.is_met_by(report.limits[limit]));
    assert_eq!(all_by_cgroup, check("cgroup").status == probe::Status::Ok);
    // What nothing but a cgroup holds.
    for (limit, &mechanism) in &report.limits {
        let by_cgroup_alone = [LimitName::Swap, LimitName::Io].contains(limit);
        assert!(mechanism != Mechanism::None || by_cgroup_alone, "{limit}");
    }

    assert!(!store.exists(), "a store was made");
    assert!(
        !leftovers(&parent),
        "a trial directory stayed in {}",
        parent.display()
    );
}

fn leftovers(directory: &Path) -> bool {
    let name = format!(".sbxrt-check.{}", std::process::id());
    directory.join(name).exists()
}

fn refuses_where_there_are_threads() {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || receiver.recv());
    let refused = probe::examine(Path::new("/nonexistent"));
    assert!(
        matches!(refused, Err(sbxrt_runtime::Error::Threads { threads: 2 })),
        "{refused:?}"
    );
    drop(sender);
    thread.join().unwrap().unwrap_err();
}
