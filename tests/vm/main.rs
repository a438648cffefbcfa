//! On pure cgroup v2, in the machine of `scripts/cgroup2-vm`. The caller runs the tests below `with_delegation`, those
//! below `without_delegation`, those below `as_root` or those below `with_systemd`, as the machine was started.

mod with_systemd;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use sbxrt_tests::{Fixtures, Need, Sbxrt, TruthTable, for_each_identity, require};

/// The machine has no hardware of its own, and is slower than the host.
const SLOW: Duration = Duration::from_secs(60);

fn allocation(sbxrt: &Sbxrt, fixtures: &Fixtures, options: &[&str]) -> sbxrt_tests::Output {
    let image = fixtures.python_rootfs();
    let program = "kept = b'x' * (256 << 20); import time; time.sleep(1); print('not held')";
    let limits = ["--json", "--timeout", "30s", "-m", "64m"];
    let words = [&image, "python3", "-I", "-S", "-c", program];
    let run = sbxrt.run([options, &limits, &words].concat());
    run.deadline(SLOW).output()
}

fn fork_bomb(sbxrt: &Sbxrt, fixtures: &Fixtures, options: &[&str]) -> sbxrt_tests::Report {
    let image = fixtures.busybox_rootfs();
    // Each of them stays: where the limit is not counted by the kernel, a full container is its only sign.
    let script = "while :; do sleep 60 & done";
    let limits = ["--json", "--timeout", "30s", "--pids-limit", "20"];
    let run = sbxrt.run([options, &limits, &[&image, "sh", "-c", script]].concat());
    run.deadline(SLOW).output().report()
}

fn two_busy_loops(sbxrt: &Sbxrt, fixtures: &Fixtures) -> sbxrt_tests::Report {
    let image = fixtures.busybox_rootfs();
    let script = "(while :; do :; done) & while :; do :; done";
    let limits = ["--json", "--timeout", "4s", "--cpus", "0.5"];
    let run = sbxrt.run([&limits[..], &[&image, "sh", "-c", script]].concat());
    run.deadline(SLOW).output().report()
}

fn every_bomb_ends_as_documented() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        TruthTable::measure(sbxrt, &fixtures, |bomb| !bomb.is_kernel_memory).compare();
    });
}

mod with_delegation {
    use super::*;

    /// As CVE-2024-21626: a working directory that leads somewhere else when it is entered a second time, through a
    /// descriptor of the cgroup, from which `..` goes up to the host's root.
    #[test]
    fn no_working_directory_leads_out_through_a_descriptor() {
        let (true, Some(fixtures)) = (require(Need::DelegatedCgroup), Fixtures::find()) else {
            return;
        };
        let busybox = fixtures.busybox_rootfs();
        let busybox = Path::new(busybox.strip_prefix("dir:").unwrap());
        for_each_identity(|sbxrt| {
            let image = sbxrt.scratch("hostile");
            fs::create_dir_all(image.join("bin")).unwrap();
            fs::create_dir_all(image.join("d")).unwrap();
            fs::copy(busybox.join("bin/busybox"), image.join("bin/busybox")).unwrap();
            for descriptor in 3..16 {
                let link = image.join("d/d");
                // There is none at first.
                drop(fs::remove_file(&link));
                symlink(format!("/proc/self/fd/{descriptor}"), link).unwrap();
                let up = "../".repeat(12);
                let script = format!("test -e {up}usr/lib/uml && echo escaped; true");
                for directory in ["/proc/self/cwd/d", "/d/d"] {
                    let image = format!("dir:{}", image.display());
                    let words = ["-w", directory, &image, "/bin/busybox", "sh", "-c", &script];
                    let output = sbxrt.run(words).deadline(SLOW).output();
                    assert!(!output.text().contains("escaped"), "{descriptor}: {output}");
                }
            }
        });
    }

    #[test]
    fn an_allocation_beyond_the_limit_ends_as_oom() {
        let (true, Some(fixtures)) = (require(Need::DelegatedCgroup), Fixtures::find()) else {
            return;
        };
        for_each_identity(|sbxrt| {
            let report = allocation(sbxrt, &fixtures, &["--require", "memory=cgroup"]).report();
            assert_eq!(
                (report.kind(), report.enforcement("memory")),
                ("oom", "cgroup2"),
                "{report}"
            );
            assert!(report.memory_peak() <= 64 << 20, "{report}");
        });
    }

    #[test]
    fn a_fork_bomb_ends_as_pids() {
        let (true, Some(fixtures)) = (require(Need::DelegatedCgroup), Fixtures::find()) else {
            return;
        };
        for_each_identity(|sbxrt| {
            let report = fork_bomb(sbxrt, &fixtures, &[]);
            assert_eq!(
                (report.kind(), report.enforcement("pids")),
                ("pids", "cgroup2"),
                "{report}"
            );
        });
    }

    #[test]
    fn two_busy_loops_under_half_a_cpu_use_half_a_cpu() {
        let (true, Some(fixtures)) = (require(Need::DelegatedCgroup), Fixtures::find()) else {
            return;
        };
        for_each_identity(|sbxrt| {
            let report = two_busy_loops(sbxrt, &fixtures);
            assert_eq!(
                (report.kind(), report.enforcement("cpus")),
                ("timeout", "cgroup2"),
                "{report}"
            );
            let used = report.cpu_time().as_secs_f64() / report.wall_time().as_secs_f64();
            assert!((0.4..=0.6).contains(&used), "{used} CPUs: {report}");
        });
    }

    /// On the machine's own disk: of the host's files the machine knows no disk.
    #[test]
    fn a_disk_is_read_and_written_no_faster_than_its_limits() {
        let (true, Some(fixtures)) = (require(Need::DelegatedCgroup), Fixtures::find()) else {
            return;
        };
        for_each_identity(|sbxrt| {
            let disk = tempfile::tempdir_in("/run/disk").unwrap();
            let path = |name: &str| disk.path().join(name).display().to_string();
            let rootfs = fixtures.busybox_rootfs();
            let busybox = Path::new(rootfs.strip_prefix("dir:").unwrap()).join("bin/busybox");
            fs::create_dir_all(path("image/bin")).unwrap();
            fs::copy(busybox, path("image/bin/busybox")).unwrap();
            fs::create_dir(path("volume")).unwrap();
            let image = format!("dir:{}", path("image"));
            let volume = format!("{}:/volume", path("volume"));
            let run = |limit: &str, dd: &str| {
                let limits = ["--timeout", "none", "--require", "io=cgroup", limit, "2m"];
                let dd = format!("/bin/busybox dd {dd} bs=1M count=8");
                let words = [
                    "--json",
                    "-v",
                    &volume,
                    &image,
                    "/bin/busybox",
                    "sh",
                    "-c",
                    &dd,
                ];
                let run = sbxrt.run([&limits[..], &words].concat());
                let report = run.deadline(SLOW).output().report();
                assert_eq!(
                    (report.kind(), report.code()),
                    ("exited", Some(0)),
                    "{report}"
                );
                assert_eq!(report.enforcement("io"), "cgroup2", "{report}");
                report.wall_time()
            };
            // Through the page cache, and past it.
            for how in ["conv=fsync", "oflag=direct"] {
                let dd = format!("if=/dev/zero of=/volume/file {how}");
                let time = run("--write-bps", &dd);
                assert!(time >= Duration::from_secs(3), "{how}: {time:?}");
            }
            let time = run("--read-bps", "if=/volume/file of=/dev/null iflag=direct");
            assert!(time >= Duration::from_secs(3), "{time:?}");
        });
    }

    /// This kernel has no cpuset controller.
    #[test]
    fn what_the_cgroup_cannot_hold_is_held_otherwise_and_named() {
        let (true, Some(fixtures)) = (require(Need::DelegatedCgroup), Fixtures::find()) else {
            return;
        };
        for_each_identity(|sbxrt| {
            let image = fixtures.busybox_rootfs();
            let words = ["--json", "--cpuset-cpus", "0", &image, "true"];
            let report = sbxrt.run(words).deadline(SLOW).output().report();
            assert_eq!(report.enforcement("cpuset"), "affinity", "{report}");
            assert_eq!(report.enforcement("swap"), "cgroup2", "{report}");
        });
    }

    #[test]
    fn every_bomb_ends_as_documented() {
        if require(Need::DelegatedCgroup) {
            super::every_bomb_ends_as_documented();
        }
    }
}

mod without_delegation {
    use super::*;

    #[test]
    fn a_memory_limit_is_held_by_the_mechanism_that_the_report_names() {
        let Some(fixtures) = Fixtures::find() else {
            return;
        };
        for_each_identity(|sbxrt| {
            let report = allocation(sbxrt, &fixtures, &[]).report();
            assert!(
                !String::from_utf8_lossy(&report.bytes("stdout")).contains("not held"),
                "{report}"
            );
            assert!(
                ["rlimit", "watchdog"].contains(&report.enforcement("memory")),
                "{report}"
            );
        });
    }

    #[test]
    fn a_required_cgroup_is_refused_by_name() {
        let Some(fixtures) = Fixtures::find() else {
            return;
        };
        for_each_identity(|sbxrt| {
            let output = allocation(sbxrt, &fixtures, &["--require", "memory=cgroup"]);
            assert_eq!(output.code(), 125, "{output}");
            let said = output.to_string();
            assert!(
                said.contains("memory") && said.contains("cgroup"),
                "{output}"
            );
        });
    }

    #[test]
    fn a_fork_bomb_ends_as_pids() {
        let Some(fixtures) = Fixtures::find() else {
            return;
        };
        for_each_identity(|sbxrt| {
            let report = fork_bomb(sbxrt, &fixtures, &[]);
            assert_eq!(report.kind(), "pids", "{report}");
            assert!(
                ["rlimit", "watchdog"].contains(&report.enforcement("pids")),
                "{report}"
            );
        });
    }

    #[test]
    fn a_share_of_the_cpu_is_named_as_what_it_is() {
        let Some(fixtures) = Fixtures::find() else {
            return;
        };
        for_each_identity(|sbxrt| {
            let report = two_busy_loops(sbxrt, &fixtures);
            assert_eq!(report.kind(), "timeout", "{report}");
            let used = report.cpu_time().as_secs_f64() / report.wall_time().as_secs_f64();
            match report.enforcement("cpus") {
                "watchdog" | "affinity" => assert!(used < 1.1, "{used} CPUs: {report}"),
                mechanism => assert_eq!(mechanism, "none", "{report}"),
            }
        });
    }

    #[test]
    fn every_bomb_ends_as_documented() {
        super::every_bomb_ends_as_documented();
    }
}

mod as_root {
    use super::*;

    /// Swap on the machine's disk, until it is dropped.
    struct Swap(&'static str);

    impl Swap {
        fn on(sbxrt: &Sbxrt) -> Self {
            let path = "/run/disk/swap";
            sbxrt.tool(&["fallocate", "--length", "128M", path]);
            sbxrt.tool(&["chmod", "600", path]);
            sbxrt.tool(&["mkswap", path]);
            sbxrt.tool(&["swapon", path]);
            Self(path)
        }
    }

    impl Drop for Swap {
        fn drop(&mut self) {
            let status = Command::new("swapoff").arg(self.0).status();
            let status = status.expect("swapoff is there");
            assert!(status.success() || std::thread::panicking(), "{status}");
            fs::remove_file(self.0).expect("it is there");
        }
    }

    #[test]
    fn swap_is_what_was_asked_for_and_else_none() {
        let (true, Some(fixtures)) = (require(Need::DelegatedCgroup), Fixtures::find()) else {
            return;
        };
        for_each_identity(|sbxrt| {
            let _swap = Swap::on(sbxrt);
            let image = fixtures.python_rootfs();
            let program = "kept = b'x' * (64 << 20); print(len(kept))";
            let ends = [
                (None, "oom"),
                (Some("48m"), "oom"),
                (Some("128m"), "exited"),
            ];
            for (swap, end) in ends {
                let swap = swap.map_or(Vec::new(), |swap| vec!["--memory-swap", swap]);
                let words = ["--json", "--timeout", "50s", "-m", "32m"];
                let program = [&image, "python3", "-I", "-S", "-c", program];
                let words = [&words[..], &swap, &program].concat();
                let report = sbxrt.run(words).deadline(SLOW).output().report();
                assert_eq!(report.kind(), end, "{swap:?}: {report}");
                assert_eq!(report.enforcement("swap"), "cgroup2", "{report}");
                assert!(report.memory_peak() <= 128 << 20, "{report}");
            }
        });
    }

    #[test]
    fn every_bomb_ends_as_documented() {
        if require(Need::DelegatedCgroup) {
            super::every_bomb_ends_as_documented();
        }
    }
}
