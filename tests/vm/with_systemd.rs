//! Where the caller's own cgroup is not delegated, but systemd runs a manager for the user: that of these tests, in the
//! cgroup beside, which `scripts/cgroup2-vm --undelegated --systemd` has made for it.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use sbxrt_tests::{Fixtures, Need, Sbxrt, eventually, for_each_identity, require};

use super::{SLOW, allocation, fork_bomb};

/// What is delegated to these tests.
const DELEGATED: &str = "/sys/fs/cgroup/session/manager";

/// A manager of the user's, which ends with the test.
struct Manager {
    process: Child,
    /// Its own: one that has had a manager takes no process any more.
    cgroup: PathBuf,
}

impl Manager {
    fn start() -> Self {
        let socket = PathBuf::from(format!(
            "/run/user/{}/systemd/private",
            nix::unistd::geteuid()
        ));
        // The last test's may have left it.
        drop(fs::remove_file(&socket));
        let delegated = Path::new(DELEGATED);
        fs::write(
            delegated.join("cgroup.subtree_control"),
            "+cpu +memory +pids",
        )
        .unwrap();
        let unused = |number: &u32| !delegated.join(number.to_string()).exists();
        let cgroup = delegated.join((0..100).find(unused).unwrap().to_string());
        fs::create_dir(&cgroup).unwrap();
        let script = format!(
            "echo $$ >{}/cgroup.procs && exec /usr/lib/systemd/systemd --user --unit=basic.target",
            cgroup.display()
        );
        let process = Command::new("sh")
            .args(["-c", &script])
            // Nothing of this machine's own is to be started.
            .env("SYSTEMD_UNIT_PATH", "/usr/lib/systemd/user")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let manager = Self { process, cgroup };
        assert!(
            eventually(SLOW, || UnixStream::connect(&socket).is_ok()),
            "no manager at {}",
            socket.display()
        );
        // Until then it makes cgroups, which the tests would take for sbxrt's. It may have failed at something of no interest.
        let started = ["--user", "is-system-running", "--wait"];
        let _status = Command::new("systemctl").args(started).status().unwrap();
        manager
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    /// The cgroups of the scopes that sbxrt has had made, with all that is below them.
    fn scopes(&self) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        let mut left = vec![self.cgroup.clone()];
        while let Some(directory) = left.pop() {
            // It may have gone.
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    if path.to_string_lossy().contains("/sbxrt-") {
                        found.insert(path.clone());
                    }
                    left.push(path);
                }
            }
        }
        found
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        for signal in [Signal::CONT, Signal::KILL] {
            self.signal(signal);
        }
        self.process.wait().unwrap();
    }
}

/// Runs a test as this user, with a manager.
fn with_manager(test: impl Fn(&Sbxrt, &Fixtures, &Manager)) {
    let (true, Some(fixtures)) = (require(Need::Systemd), Fixtures::find()) else {
        return;
    };
    let manager = Manager::start();
    for_each_identity(|sbxrt| test(sbxrt, &fixtures, &manager));
    assert!(
        eventually(SLOW, || manager.scopes().is_empty()),
        "left: {:?}",
        manager.scopes()
    );
}

#[test]
fn a_required_cgroup_is_had_from_systemd() {
    with_manager(|sbxrt, fixtures, _| {
        let require = ["--require", "memory=cgroup", "--require", "swap=systemd"];
        let report = allocation(sbxrt, fixtures, &require).report();
        assert_eq!(report.kind(), "oom", "{report}");
        assert!(report.memory_peak() <= 64 << 20, "{report}");
        // Once there is a scope, it holds what it can.
        for limit in ["memory", "swap", "pids", "cpus"] {
            assert_eq!(report.enforcement(limit), "systemd", "{limit}: {report}");
        }
    });
}

#[test]
fn a_fork_bomb_ends_as_pids() {
    with_manager(|sbxrt, fixtures, _| {
        let report = fork_bomb(sbxrt, fixtures, &["--require", "pids=systemd"]);
        assert_eq!(
            (report.kind(), report.enforcement("pids")),
            ("pids", "systemd"),
            "{report}"
        );
    });
}

#[test]
fn a_manager_is_left_alone_unless_a_cgroup_is_required() {
    with_manager(|sbxrt, fixtures, manager| {
        // Whoever asks it for something waits in vain.
        manager.signal(Signal::STOP);
        let report = allocation(sbxrt, fixtures, &[]).report();
        manager.signal(Signal::CONT);
        assert_eq!(
            (report.kind(), report.enforcement("memory")),
            ("oom", "watchdog"),
            "{report}"
        );
    });
}

#[test]
fn a_manager_that_hangs_is_not_waited_for() {
    with_manager(|sbxrt, fixtures, manager| {
        manager.signal(Signal::STOP);
        let output = allocation(sbxrt, fixtures, &["--require", "memory=cgroup"]);
        manager.signal(Signal::CONT);
        assert_eq!(output.code(), 125, "{output}");
        assert!(
            output
                .to_string()
                .contains("systemd/private made no scope: no answer within 2s"),
            "{output}"
        );
    });
}

#[test]
fn a_scope_goes_with_its_launcher_however_that_ends() {
    with_manager(|sbxrt, fixtures, manager| {
        let image = fixtures.busybox_rootfs();
        let script = "echo ready; sleep 1000";
        let words = ["--require", "memory=systemd", &image, "sh", "-c", script];
        for victim in ["sbxrt", "sbxrt-launcher"] {
            let mut child = sbxrt.run(words).spawn();
            let leaf = || {
                let is_leaf = |path: &Path| path.join("../sbxrt.caller").is_dir();
                manager
                    .scopes()
                    .into_iter()
                    .find(|path| path.to_string_lossy().contains("/sbxrt-run.") && is_leaf(path))
            };
            assert!(eventually(SLOW, || leaf().is_some()), "no leaf");
            let pid = Pid::from_child(&child);
            let pid = match victim {
                "sbxrt" => pid,
                _ => launcher_of(pid),
            };
            kill_process(pid, Signal::KILL).unwrap();
            child.wait().unwrap();
            assert!(
                eventually(SLOW, || manager.scopes().is_empty()),
                "{victim}: left: {:?}",
                manager.scopes()
            );
        }
    });
}

/// The child of an sbxrt that is its launcher.
fn launcher_of(parent: Pid) -> Pid {
    let parent = parent.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    let child = children.split_ascii_whitespace().next().unwrap();
    Pid::from_raw(child.parse().unwrap()).unwrap()
}

#[test]
fn a_job_of_slurm_does_not_leave_its_cgroup_unless_told_to() {
    with_manager(|sbxrt, fixtures, _| {
        // One that looks like a job's, and cannot be written to.
        let job = Path::new(DELEGATED).join("slurm_job_7");
        fs::create_dir(&job).unwrap();
        fs::set_permissions(&job, fs::Permissions::from_mode(0o555)).unwrap();
        let image = fixtures.busybox_rootfs();
        let run = |requirement: &str| {
            let words = ["--json", "--require", requirement, &image, "true"];
            let enter = format!("echo $$ >{}/cgroup.procs && exec \"$@\"", job.display());
            let run = sbxrt.run(words).called_by(["sh", "-c", &enter, "sh"]);
            run.deadline(SLOW).output()
        };
        let refused = run("memory=cgroup");
        assert_eq!(refused.code(), 125, "{refused}");
        assert!(
            refused
                .to_string()
                .contains("would leave the job's own cgroup"),
            "{refused}"
        );
        let told = run("memory=systemd").report();
        assert_eq!(told.enforcement("memory"), "systemd", "{told}");
        // Ended processes leave their cgroup a moment after they were waited for.
        assert!(eventually(SLOW, || fs::remove_dir(&job).is_ok()));
    });
}
