//! Output of every kind: the right bytes, the right counts, in bounded memory, and never a hang.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use sbxrt_tests::{Fixtures, Stdout, for_each_identity};

#[test]
fn two_hundred_kilobytes_pass_whole_on_both_streams() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    let script = "head -c 200000 /dev/zero | tr '\\0' o; head -c 200000 /dev/zero | tr '\\0' e >&2";
    for_each_identity(|sbxrt| {
        let output = sbxrt.run([&image, "sh", "-c", script]).output();
        assert_eq!(output.success(), "o".repeat(200_000));
        assert_eq!(output.stderr, "e".repeat(200_000));

        let report = sbxrt.report([&image, "sh", "-c", script]);
        for (stream, letter) in [("stdout", "o"), ("stderr", "e")] {
            assert!(
                report.bytes(stream) == letter.repeat(200_000).as_bytes(),
                "{stream}"
            );
            assert_eq!(report.total(stream), 200_000, "{stream}");
            assert!(!report.is_truncated(stream), "{stream}");
        }
    });
}

#[test]
fn a_gigabyte_streams_through_in_bounded_memory() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.busybox_rootfs();
        let output = sbxrt
            .run([&image, "head", "-c", "1073741824", "/dev/zero"])
            .deadline(Duration::from_secs(60))
            .output();
        assert_eq!(output.code(), 0, "{}", output.stderr);
        assert_eq!(output.stdout_total, 1 << 30);
        assert!(output.stdout.iter().all(|byte| *byte == 0));
        assert_children_stayed_below(64 << 20);
    });
}

#[test]
fn output_beyond_its_limit_is_cut_and_counted() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.busybox_rootfs();
        let run = sbxrt.run([
            "--json",
            "--output-limit",
            "1m",
            &image,
            "head",
            "-c",
            "1073741824",
            "/dev/zero",
        ]);
        let output = run.deadline(Duration::from_secs(60)).output();
        let report = output.report();
        assert_eq!(report.bytes("stdout").len(), 1 << 20);
        assert!(report.is_truncated("stdout"));
        assert!(report.total("stdout") > 1 << 20);
        // Either it was ended for it, or it ran on and every byte was counted.
        match report.kind() {
            "output" => assert!(report.total("stdout") <= 1 << 30),
            "exited" => assert_eq!(report.total("stdout"), 1 << 30),
            other => panic!("{other}"),
        }
        assert_children_stayed_below(96 << 20);
    });
}

#[test]
fn a_grandchild_that_holds_the_output_holds_up_nobody() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        let output = sbxrt
            .run([&image, "sh", "-c", "(sleep 100; echo late) & echo early"])
            .output();
        assert_eq!(output.success(), "early\n");
        assert!(output.elapsed < Duration::from_secs(5), "{output}");

        let report = sbxrt.report([
            &image,
            "sh",
            "-c",
            "(while :; do echo late; done) & echo early; exit 3",
        ]);
        assert_eq!(report.exit_code(), Some(3), "{report}");
        assert!(
            String::from_utf8(report.bytes("stdout"))
                .unwrap()
                .contains("early\n")
        );
        assert_eq!(report.total("stdout"), report.bytes("stdout").len() as u64);
    });
}

#[test]
fn a_grandchilds_output_counts_while_the_program_waits_for_it() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let report = sbxrt.report([
            &fixtures.busybox_rootfs(),
            "sh",
            "-c",
            "(sleep 0.2; echo late) & echo early; wait",
        ]);
        assert_eq!(report.bytes("stdout"), b"early\nlate\n");
    });
}

#[test]
fn binary_output_comes_back_as_it_was() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        let output = sbxrt.run([&image, "printf", r"\377\000\001x"]).output();
        assert_eq!(output.stdout, b"\xff\x00\x01x", "{output}");

        let report = sbxrt.report([
            &image,
            "sh",
            "-c",
            r"printf '\377\000\001x'; printf 'gr\303\274n' >&2",
        ]);
        assert!(!report.is_text("stdout"), "{report}");
        assert_eq!(report.bytes("stdout"), b"\xff\x00\x01x");
        assert!(report.is_text("stderr"), "{report}");
        assert_eq!(report.bytes("stderr"), "grün".as_bytes());
    });
}

#[test]
fn a_reader_that_went_away_ends_the_program_as_in_any_pipe() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let output = sbxrt
            .run([&fixtures.busybox_rootfs(), "yes"])
            .stdout(Stdout::BrokenPipe)
            .output();
        // As SIGPIPE, or as a write error that `yes` saw.
        assert!(
            [1, 141].contains(&output.code()) || output.code() == 1013,
            "{output}"
        );
    });
}

#[test]
fn a_closed_or_full_stdout_is_no_hang_and_no_crash() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        let closed = ["sh", "-c", "exec \"$@\" >&-", "sh"];
        let output = sbxrt
            .run([&image, "sh", "-c", "exit 5"])
            .behind(closed)
            .output();
        assert_eq!(output.code(), 5, "{output}");
        let output = sbxrt
            .run(["--json", &image, "echo", "x"])
            .behind(closed)
            .output();
        // A closed descriptor is opened on /dev/null before main runs, so that no file can take its number.
        assert_eq!(output.code(), 0, "{output}");
        let output = sbxrt
            .run(["--json", &image, "echo", "x"])
            .stdout(Stdout::Full)
            .output();
        assert_eq!(output.code(), 125, "{output}");
        assert!(
            output.stderr.to_lowercase().contains("no space left"),
            "{output}"
        );
    });
}

/// The largest that any process below this test has been.
fn assert_children_stayed_below(bytes: i64) {
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss() * 1024;
    assert!(peak < bytes, "some process of sbxrt used {peak} bytes");
}
