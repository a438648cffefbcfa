//! How a run ends, and the exit status that says so.

use std::time::Duration;

use sbxrt_tests::{Fixtures, Host, PATIENCE, Report, eventually, for_each_identity};

#[test]
fn the_exit_status_says_how_it_ended() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    let table: &[(&[&str], i32)] = &[
        (&["true"], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "exit 255"], 255),
        (&["sh", "-c", "kill -9 $$"], 137),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["sh", "-c", "sh -c 'kill -9 $$'; exit 3"], 3),
        (&["no-such-program"], 127),
        (&["/no/such/program"], 127),
        (&["/usr/bin/not-executable"], 126),
        (&["/etc"], 126),
    ];
    for_each_identity(|sbxrt| {
        for (command, expected) in table {
            let output = sbxrt.run([&[image.as_str()], *command].concat()).output();
            assert_eq!(output.code(), *expected, "{command:?}: {output}");
        }
    });
}

#[test]
fn the_report_says_how_it_ended() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    let table: &[(&[&str], Ending)] = &[
        (&["true"], ("exited", Some(0), None, 0)),
        (&["sh", "-c", "exit 7"], ("exited", Some(7), None, 7)),
        (
            &["sh", "-c", "kill -9 $$"],
            ("signaled", None, Some("SIGKILL"), 137),
        ),
        (&["no-such-program"], ("start_failed", None, None, 127)),
        (
            &["/usr/bin/not-executable"],
            ("start_failed", None, None, 126),
        ),
    ];
    for_each_identity(|sbxrt| {
        for (command, expected) in table {
            let report = sbxrt.report([&[image.as_str()], *command].concat());
            let exit_code = report.exit_code().unwrap();
            assert_eq!(
                (report.kind(), report.code(), report.signal(), exit_code),
                *expected,
                "{command:?}: {report}"
            );
        }
    });
}

/// Kind, exit status and signal of the program, exit status of sbxrt.
type Ending = (&'static str, Option<i64>, Option<&'static str>, i64);

#[test]
fn a_time_limit_ends_it_on_time_with_all_its_children() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        let host = Host::snapshot(sbxrt);
        let stubborn = "trap '' TERM INT HUP; (trap '' TERM; sleep 100) & (sleep 100 &) ; while :; do sleep 100; done";
        let programs: [&[&str]; 2] = [&["sleep", "100"], &["sh", "-c", stubborn]];
        for program in programs {
            let words = [&["--timeout", "1s", "--json", &image], program].concat();
            // The machine may be busy with something else at any one moment, but not at all of them.
            let on_time = (0..10).any(|_| {
                let output = sbxrt.run(&words).output();
                assert_eq!(output.code(), 124, "{output}");
                assert_eq!(output.report().kind(), "timeout", "{output}");
                assert!(output.elapsed >= Duration::from_secs(1), "{output}");
                host.assert_nothing_is_left();
                output.elapsed < Duration::from_millis(1200)
            });
            assert!(on_time, "ten times, {program:?} was not ended within 1.2 s");
        }
    });
}

/// Exit statuses that sbxrt uses itself, from a program.
#[test]
fn a_programs_own_exit_status_is_told_from_one_of_ours() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        let result = sbxrt.scratch("results").join("result.json");
        let file = result.display().to_string();
        for code in [124, 125, 126, 127, 130, 137, 159] {
            let script = format!("echo out; exit {code}");
            let output = sbxrt
                .run(["--result", &file, &image, "sh", "-c", &script])
                .output();
            assert_eq!(output.code(), code, "{output}");
            assert_eq!(output.text(), "out\n", "{output}");
            assert_eq!(output.stderr, "", "{output}");
            let report = Report::parse(&std::fs::read(&result).unwrap());
            assert_eq!(report.kind(), "exited", "{report}");
            assert_eq!(report.code(), Some(code.into()), "{report}");
            assert_eq!(report.total("stdout"), 4, "{report}");
        }
        let ours: [(&[&str], i32, &str); 4] = [
            (
                &["--timeout", "300ms", &image, "sleep", "60"],
                124,
                "timeout",
            ),
            (&[&image, "no-such-program"], 127, "start_failed"),
            (&[&image, "/etc"], 126, "start_failed"),
            (
                &[
                    "--output-limit",
                    "1",
                    "--output-action",
                    "kill",
                    &image,
                    "yes",
                ],
                137,
                "output",
            ),
        ];
        for (words, code, kind) in ours {
            let words = [&["--result", &file], words].concat();
            let output = sbxrt.run(&words).output();
            assert_eq!(output.code(), code, "{output}");
            assert!(output.stderr.starts_with("sbxrt: "), "{output}");
            let quiet = sbxrt.run([&["-q"], &words[..]].concat()).output();
            assert_eq!((quiet.code(), quiet.stderr.as_str()), (code, ""), "{quiet}");
            let report = Report::parse(&std::fs::read(&result).unwrap());
            assert_eq!(
                (report.kind(), report.exit_code()),
                (kind, Some(code.into())),
                "{report}"
            );
        }
        let output = sbxrt
            .run(["--result", &file, "--pull", "never", "no-such-image"])
            .output();
        assert_eq!(output.code(), 125, "{output}");
        let report = Report::parse(&std::fs::read(&result).unwrap());
        assert!(report.part("/error/message").is_string(), "{report}");
        let output = sbxrt
            .run(["--result", "/no/such/file", &image, "true"])
            .output();
        output.assert_refused(&["/no/such/file"]);
    });
}

#[test]
fn who_sent_the_signal_is_told_where_it_is_known() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        let report = sbxrt.report([&image, "sh", "-c", "kill -9 $$"]);
        assert_eq!(
            (report.kind(), report.signal()),
            ("signaled", Some("SIGKILL"))
        );
        assert!(report.evidence("sender").is_null(), "{report}");
        assert_eq!(report.evidence("signal"), "SIGKILL", "{report}");

        let report = sbxrt.report(["--timeout", "300ms", &image, "sleep", "60"]);
        assert_eq!(report.evidence("sender"), "sbxrt", "{report}");
        assert_eq!(report.evidence("limit"), "wall_time", "{report}");
        assert_eq!(report.evidence("mechanism"), "timer", "{report}");
    });
}

#[test]
fn signals_are_passed_on_to_the_program() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        let directory = sbxrt.scratch("volume");
        let volume = format!("{}:/out", directory.display());
        let script = "trap 'exit 42' TERM; echo >/out/ready; while :; do sleep 0.05; done";
        let mut child = sbxrt
            .run(["-v", &volume, &image, "sh", "-c", script])
            .spawn();
        let mut ended_early = false;
        let ready = eventually(PATIENCE, || {
            ended_early = child.try_wait().unwrap().is_some();
            ended_early || directory.join("ready").exists()
        });
        assert!(ready && !ended_early, "the program did not start");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let ended = eventually(PATIENCE, || child.try_wait().unwrap().is_some());
        if !ended {
            child.kill().unwrap();
        }
        let status = child.wait().unwrap();
        assert!(ended, "the signal did not reach the program");
        assert_eq!(status.code(), Some(42));
    });
}

#[test]
fn stdin_passes_byte_for_byte() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    for_each_identity(|sbxrt| {
        let output = sbxrt
            .run(["-i", &fixtures.busybox_rootfs(), "cat"])
            .stdin(bytes.clone())
            .output();
        assert_eq!(output.code(), 0, "{output}");
        assert!(
            output.stdout == bytes,
            "{} bytes came back",
            output.stdout.len()
        );
    });
}

#[test]
fn ten_runs_at_once_do_not_disturb_each_other() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        std::thread::scope(|scope| {
            let runs: Vec<_> = (0..10)
                .map(|number| {
                    let run = sbxrt.run([&image, "sh", "-c", &format!("sleep 0.2; exit {number}")]);
                    scope.spawn(move || run.output())
                })
                .collect();
            for (number, run) in (0..).zip(runs) {
                let output = run.join().unwrap();
                assert_eq!(output.code(), number, "{output}");
            }
        });
    });
}
