//! Limits held in the hierarchies of cgroup v1: by root, by a user to whom a scheduler has given directories there (SLURM
//! up to 22.05), and, where they belong to root, not at all.
//!
//! Each test has directories of its own, below those that the tests run in, and puts sbxrt into them.

use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sbxrt_tests::{
    Fixtures, Identity, Invocation, Need, PATIENCE, Report, Sbxrt, eventually, require,
};

const CONTROLLERS: [&str; 5] = ["memory", "pids", "cpu", "cpuacct", "cpuset"];

/// What a batch system makes for a job.
struct Job {
    directories: Vec<PathBuf>,
}

impl Job {
    /// Directories in the hierarchies of `controllers` that belong to `owner`.
    fn new(owner: &Identity, controllers: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sbxrt-job.{}.{number}", std::process::id());
        let directories = controllers
            .iter()
            .map(|controller| {
                let parent =
                    sbxrt_tests::version_1_directory(controller).expect("the hierarchy is there");
                let directory = parent.join(&name);
                fs::create_dir(&directory).unwrap();
                if *controller == "cpuset" {
                    for file in ["cpuset.cpus", "cpuset.mems"] {
                        let value = fs::read(parent.join(file)).unwrap();
                        fs::write(directory.join(file), value).unwrap();
                    }
                }
                chown(
                    &directory,
                    Some(owner.uid().as_raw()),
                    Some(owner.gid().as_raw()),
                )
                .unwrap();
                directory
            })
            .collect();
        Self { directories }
    }

    /// The directory in the hierarchy of its first controller.
    fn first(&self) -> &PathBuf {
        &self.directories[0]
    }

    /// Puts `run` into it.
    fn contain<'a>(&self, run: Invocation<'a>) -> Invocation<'a> {
        let script = "while [ \"$1\" != -- ]; do echo 0 >\"$1/cgroup.procs\"; shift; done; shift; exec \"$@\"";
        let mut prefix = vec![
            "sh".to_owned(),
            "-ec".to_owned(),
            script.to_owned(),
            "sh".to_owned(),
        ];
        prefix.extend(
            self.directories
                .iter()
                .map(|path| path.display().to_string()),
        );
        prefix.push("--".to_owned());
        run.behind(prefix)
    }

    /// Runs `words` in it, under `options`.
    fn report(&self, sbxrt: &Sbxrt, options: &[&str], words: &[&str]) -> Report {
        let run = sbxrt.run([&["--json"], options, words].concat());
        self.contain(run).output().report()
    }

    /// The cgroups that are in it.
    fn children(&self) -> Vec<PathBuf> {
        let entries = self
            .directories
            .iter()
            .flat_map(|path| fs::read_dir(path).unwrap());
        entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_dir())
            .collect()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        for directory in &self.directories {
            for child in fs::read_dir(directory).into_iter().flatten().flatten() {
                // Files cannot be removed, and need not be.
                drop(fs::remove_dir(child.path()));
            }
            // Who was in it may need a moment to be gone.
            eventually(PATIENCE, || fs::remove_dir(directory).is_ok());
        }
    }
}

const ALLOCATION: &str = "kept = b'x' * (256 << 20); print('not held')";

/// Whoever gets directories of version 1: root, and an ordinary user.
fn for_each_owner(test: impl Fn(&Sbxrt, &Identity)) {
    for identity in [Identity::current(), Identity::ordinary()] {
        test(&Sbxrt::new(identity.clone()), &identity);
    }
}

fn ready() -> Option<Fixtures> {
    if require(Need::Version1) {
        Fixtures::find()
    } else {
        None
    }
}

#[test]
fn every_limit_is_held_in_directories_of_the_callers_own() {
    let Some(fixtures) = ready() else { return };
    for_each_owner(|sbxrt, owner| {
        let job = Job::new(owner, &CONTROLLERS);
        let image = fixtures.python_rootfs();
        let required = "memory=cgroup1,swap=cgroup1,pids=cgroup1,cpus=cgroup1";
        let options = ["-m", "64m", "--require", required];
        let words = [&image, "python3", "-I", "-S", "-c", ALLOCATION];
        let report = job.report(sbxrt, &options, &words);
        assert_eq!(report.kind(), "oom", "{report}");
        assert!(report.memory_peak() <= 64 << 20, "{report}");
        assert!(report.memory_peak() >= 32 << 20, "{report}");
        assert!(report.cpu_time() > Duration::ZERO, "{report}");
        assert!(job.children().is_empty(), "{:?}", job.children());
    });
}

#[test]
fn what_is_killed_for_memory_takes_the_rest_along() {
    let Some(fixtures) = ready() else { return };
    for_each_owner(|sbxrt, owner| {
        let job = Job::new(owner, &CONTROLLERS);
        let image = fixtures.python_rootfs();
        // The program itself would go on for longer than anybody waits for it.
        let program =
            format!("import os, time\nif os.fork() == 0:\n    {ALLOCATION}\ntime.sleep(3600)");
        let options = ["--timeout", "10m", "-m", "64m"];
        let words = [&image, "python3", "-I", "-S", "-c", &program];
        let report = job.report(sbxrt, &options, &words);
        assert_eq!(report.kind(), "oom", "{report}");
    });
}

#[test]
fn forks_beyond_the_limit_are_refused() {
    let Some(fixtures) = ready() else { return };
    for_each_owner(|sbxrt, owner| {
        let job = Job::new(owner, &CONTROLLERS);
        let script = "i=0; while [ $i -lt 500 ]; do sleep 60 & i=$((i + 1)); done; wait";
        let options = ["--timeout", "30s", "--pids-limit", "30"];
        let words = [&fixtures.busybox_rootfs(), "sh", "-c", script];
        let report = job.report(sbxrt, &options, &words);
        assert_eq!(
            (report.kind(), report.enforcement("pids")),
            ("pids", "cgroup1"),
            "{report}"
        );
    });
}

#[test]
fn two_busy_loops_under_half_a_processor_use_half_of_one() {
    let Some(fixtures) = ready() else { return };
    for_each_owner(|sbxrt, owner| {
        let job = Job::new(owner, &CONTROLLERS);
        let script = "(while :; do :; done) & while :; do :; done";
        let options = ["--timeout", "2s", "--cpus", "0.5"];
        let words = [&fixtures.busybox_rootfs(), "sh", "-c", script];
        let report = job.report(sbxrt, &options, &words);
        assert_eq!(
            (report.kind(), report.enforcement("cpus")),
            ("timeout", "cgroup1"),
            "{report}"
        );
        // On a busy machine it may be less.
        let used = report.cpu_time().as_secs_f64() / report.wall_time().as_secs_f64();
        assert!(used <= 0.65, "{used} processors: {report}");
    });
}

#[test]
fn each_hierarchy_stands_for_itself() {
    let Some(fixtures) = ready() else { return };
    // What SLURM 22.05 gives to a task: nothing for processes, and a quota for nobody.
    let sbxrt = Sbxrt::new(Identity::ordinary());
    let job = Job::new(sbxrt.identity(), &["memory", "cpuacct"]);
    let image = fixtures.busybox_rootfs();
    let report = job.report(&sbxrt, &["--cpus", "0.5"], &[&image, "true"]);
    let held = ["memory", "swap", "pids", "cpus"].map(|limit| report.enforcement(limit));
    assert_eq!(
        held,
        ["cgroup1", "cgroup1", "rlimit", "watchdog"],
        "{report}"
    );
}

#[test]
fn directories_of_somebody_else_hold_nothing() {
    let Some(fixtures) = ready() else { return };
    let sbxrt = Sbxrt::new(Identity::ordinary());
    let job = Job::new(&Identity::current(), &CONTROLLERS);
    let image = fixtures.busybox_rootfs();
    let report = job.report(&sbxrt, &[], &[&image, "true"]);
    assert_eq!(report.enforcement("memory"), "watchdog", "{report}");
    assert_eq!(report.enforcement("swap"), "none", "{report}");
    let run = sbxrt.run(["--require", "memory=cgroup", &image, "true"]);
    let output = job.contain(run).output();
    assert_eq!(output.code(), 125, "{output}");
    output.assert_refused(&["memory", "cgroup", "watchdog"]);
}

#[test]
fn leaves_of_the_dead_are_removed_at_the_next_start() {
    let Some(fixtures) = ready() else { return };
    for_each_owner(|sbxrt, owner| {
        let job = Job::new(owner, &CONTROLLERS);
        // No process ever has this id.
        let left = job.first().join(format!("sbxrt-run.{}.left", i32::MAX));
        fs::create_dir(&left).unwrap();
        let run = sbxrt.run([&fixtures.busybox_rootfs(), "true"]);
        job.contain(run).output().success();
        assert!(!left.exists());
    });
}

#[test]
fn check_foresees_it() {
    if !require(Need::Version1) {
        return;
    }
    let owners = [
        (Identity::ordinary(), &CONTROLLERS[..], "cgroup1", "ok"),
        (
            Identity::current(),
            &CONTROLLERS[..],
            "watchdog",
            "degraded",
        ),
        (Identity::ordinary(), &["memory"][..], "cgroup1", "degraded"),
    ];
    for (owner, controllers, mechanism, status) in owners {
        let sbxrt = Sbxrt::new(Identity::ordinary());
        let job = Job::new(&owner, controllers);
        let output = job.contain(sbxrt.command(["check", "--json"])).output();
        let document: serde_json::Value = serde_json::from_str(output.text()).unwrap();
        assert_eq!(document["limits"]["memory"], mechanism, "{output}");
        let checks = document["checks"].as_array().unwrap();
        let cgroup = checks
            .iter()
            .find(|check| check["name"] == "cgroup")
            .unwrap();
        assert_eq!(cgroup["status"], status, "{output}");
    }
}
