//! Limits on this host, whatever it offers: held by the mechanism that the report names, or refused.

use std::time::Duration;

use sbxrt_tests::{Fixtures, for_each_identity};

/// Mechanisms that `--require LIMIT=cgroup` accepts.
const CGROUPS: [&str; 3] = ["cgroup2", "systemd", "slurm-step"];

#[test]
fn a_memory_limit_is_held_by_the_mechanism_that_the_report_names() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.python_rootfs();
        let program = "import time; kept = b'x' * (256 << 20); time.sleep(1); print('not held')";
        let report = sbxrt.report(["-m", "64m", &image, "python3", "-I", "-c", program]);
        assert!(
            !String::from_utf8_lossy(&report.bytes("stdout")).contains("not held"),
            "{report}"
        );
        let mechanism = report.enforcement("memory");
        match report.kind() {
            "oom" => assert!(
                CGROUPS.contains(&mechanism) || mechanism == "watchdog",
                "{report}"
            ),
            // Python says MemoryError where mmap fails.
            "exited" => assert_eq!((mechanism, report.code()), ("rlimit", Some(1)), "{report}"),
            other => panic!("{other}: {report}"),
        }
    });
}

#[test]
fn a_fork_bomb_stops_at_the_limit_on_processes() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        // Bounded: where the limit is not held, a true bomb by root would take the host along. There is one in the
        // virtual machine's tests.
        let script = "i=0; while [ $i -lt 500 ]; do sleep 5 & i=$((i + 1)); done; wait";
        let run = sbxrt.run([
            "--json",
            "--pids-limit",
            "30",
            "--timeout",
            "10s",
            &fixtures.busybox_rootfs(),
            "sh",
            "-c",
            script,
        ]);
        let output = run.output();
        let report = output.report();
        assert_eq!(report.kind(), "pids", "{report}");
        let mechanism = report.enforcement("pids");
        assert!(
            CGROUPS.contains(&mechanism) || ["rlimit", "watchdog"].contains(&mechanism),
            "{report}"
        );
    });
}

#[test]
fn what_cannot_be_enforced_as_required_is_refused() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.busybox_rootfs();
        let output = sbxrt
            .run([
                "--json",
                "-m",
                "64m",
                "--require",
                "memory=cgroup",
                &image,
                "true",
            ])
            .output();
        if output.code() == 0 {
            assert!(
                CGROUPS.contains(&output.report().enforcement("memory")),
                "{output}"
            );
        } else {
            assert_eq!(output.code(), 125, "{output}");
            let said = output.to_string();
            assert!(
                said.contains("memory") && said.contains("cgroup"),
                "{output}"
            );
        }
    });
}

#[test]
fn scratch_ends_where_its_limit_says() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.busybox_rootfs();
        let script = "head -c 20000000 /dev/zero >/tmp/x; wc -c </tmp/x";
        let output = sbxrt
            .run(["--scratch-size", "8m", &image, "sh", "-c", script])
            .output();
        let written: u64 = output.text().trim().parse().unwrap();
        assert!(written <= 8 << 20, "{output}");
        // Busybox's head has one message for every failed write.
        assert!(output.stderr.contains("head: standard output"), "{output}");
    });
}

#[test]
fn a_program_that_fails_in_a_full_file_system_ends_as_disk() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    let fill = |path: &str| format!("head -c 9000000 /dev/zero >{path} 2>/dev/null");
    // The script, what is said of it, what was full, and where.
    let table: [(String, &str, &[&str], Option<&str>); 7] = [
        (
            format!("{}; exit 3", fill("/tmp/x")),
            "disk",
            &["scratch"],
            Some("/"),
        ),
        (
            format!("{}; exit 3", fill("/x")),
            "disk",
            &["scratch"],
            Some("/"),
        ),
        (
            format!("{}; kill -ABRT $$", fill("/x")),
            "disk",
            &["scratch"],
            Some("/"),
        ),
        (
            format!("{}; exit 3", fill("/data/x")),
            "disk",
            &["scratch"],
            Some("/data"),
        ),
        // Files without contents.
        (
            "cd /data; seq 1 3000 | xargs touch; exit 3".to_owned(),
            "disk",
            &["scratch"],
            Some("/data"),
        ),
        (
            format!("{}; exit 0", fill("/tmp/x")),
            "exited",
            &["scratch"],
            Some("/"),
        ),
        (
            format!("{}; rm /tmp/x; exit 3", fill("/tmp/x")),
            "exited",
            &[],
            None,
        ),
    ];
    for_each_identity(|sbxrt| {
        for (script, kind, hit, path) in &table {
            let bounds = ["--scratch-size", "8m", "--tmpfs", "/data:size=1m"];
            let words = [
                &bounds[..],
                &["--timeout", "60s", &image, "sh", "-c", script],
            ];
            let report = sbxrt.report(words.concat());
            assert_eq!(
                (report.kind(), report.limits_hit().as_slice()),
                (*kind, *hit),
                "{script}: {report}"
            );
            let full = report.evidence("full").as_array().unwrap();
            let paths: Vec<_> = full
                .iter()
                .map(|space| space["path"].as_str().unwrap())
                .collect();
            assert_eq!(
                paths,
                path.iter().copied().collect::<Vec<_>>(),
                "{script}: {report}"
            );
            // Its exit status is its own.
            let own = report.evidence("exit_code").as_i64();
            assert_eq!(own.or(Some(134)), report.exit_code(), "{script}: {report}");
        }
        let script = "head -c 99000000 /dev/zero >/dev/shm/x 2>/dev/null; exit 3";
        let report = sbxrt.report([&image, "sh", "-c", script]);
        assert_eq!(
            (report.kind(), report.limits_hit()),
            ("disk", vec!["shm"]),
            "{report}"
        );
        assert_eq!(report.evidence("full/0/path"), "/dev/shm", "{report}");
    });
}

#[test]
fn the_report_measures_what_was_used() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.python_rootfs();
        let program = "import time\nkept = b'x' * (64 << 20)\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\ntime.sleep(0.2)";
        let report = sbxrt.report([
            "-m", "512m", "--cpus", "2", &image, "python3", "-I", "-c", program,
        ]);
        assert_eq!(report.kind(), "exited", "{report}");
        assert!(report.wall_time() >= Duration::from_millis(500), "{report}");
        assert!(report.cpu_time() >= Duration::from_millis(300), "{report}");
        assert!(report.cpu_time() < Duration::from_millis(1500), "{report}");
        assert!(report.memory_peak() >= 64 << 20, "{report}");
        assert!(report.memory_peak() < 256 << 20, "{report}");
    });
}

#[test]
fn check_says_what_works_here() {
    for_each_identity(|sbxrt| {
        let output = sbxrt.command(["check", "--json"]).output();
        let document: serde_json::Value = serde_json::from_str(output.success()).unwrap();
        assert!(document.is_object(), "{output}");
        let output = sbxrt.command(["doctor"]).output();
        assert!(output.success().contains("user_namespaces"), "{output}");
    });
}
