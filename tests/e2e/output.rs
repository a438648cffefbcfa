//! Output of every kind: the right bytes, the right counts, in bounded memory, and never a hang.

use std::fs;
use std::io::Write as _;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use sbxrt_tests::{Fixtures, PATIENCE, Stdout, for_each_identity};

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
            "--timeout",
            "none",
            "--output-limit",
            "1m",
            &image,
            "head",
            "-c",
            "268435456",
            "/dev/zero",
        ]);
        let output = run.deadline(Duration::from_secs(120)).output();
        let report = output.report();
        assert_eq!(report.bytes("stdout").len(), 1 << 20);
        assert!(report.is_truncated("stdout"));
        assert!(report.total("stdout") > 1 << 20);
        // Either it was ended for it, or it ran on and every byte was counted.
        match report.kind() {
            "output" => assert!(report.total("stdout") <= 256 << 20),
            "exited" => assert_eq!(report.total("stdout"), 256 << 20),
            other => panic!("{other}"),
        }
        assert_children_stayed_below(96 << 20);
    });
}

#[test]
fn the_beginning_and_the_end_of_much_output_are_kept() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.busybox_rootfs();
        let report = sbxrt.report(["--output-limit", "1k", &image, "seq", "1", "100000"]);
        let (kept, tail) = (report.bytes("stdout"), report.tail("stdout"));
        assert_eq!((kept.len(), tail.len()), (1024, 512), "{report}");
        assert!(kept.starts_with(b"1\n2\n3\n"), "{report}");
        assert!(tail.ends_with(b"\n99999\n100000\n"), "{report}");
        assert_eq!(report.total("stdout"), 588_895);
        assert_eq!(report.omitted("stdout"), 588_895 - 1024);
        assert_eq!(report.limits_hit(), ["output"]);
        assert_eq!((report.kind(), report.exit_code()), ("exited", Some(0)));
    });
}

#[test]
fn a_program_that_writes_too_much_ends_where_that_is_asked_for() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    let bound = ["--output-action", "kill", "--output-limit", "4k"];
    for_each_identity(|sbxrt| {
        let words = [&bound[..], &["--timeout", "none", &image, "yes"]].concat();
        let report = sbxrt.report(&words);
        assert_eq!(
            (report.kind(), report.exit_code()),
            ("output", Some(137)),
            "{report}"
        );
        assert_eq!(report.limits_hit(), ["output"]);
        assert_eq!(
            (report.evidence("limit"), report.evidence("mechanism")),
            (&"output".into(), &"relay".into())
        );
        assert_eq!(report.bytes("stdout").len(), 4096);

        let output = sbxrt.run(words).output();
        assert_eq!(
            (output.code(), output.stdout_total),
            (137, 4096),
            "{output}"
        );
        assert!(output.stderr.contains("output limit of 4 KiB"), "{output}");

        // Whether it is faster than whoever would end it makes no difference, and what it said itself is not lost.
        let words = [
            &bound[..],
            &[&image, "sh", "-c", "head -c 5000 /dev/zero; exit 3"],
        ]
        .concat();
        let report = sbxrt.report(words);
        assert_eq!(
            (report.kind(), report.exit_code()),
            ("output", Some(137)),
            "{report}"
        );
        let own = report.evidence("exit_code");
        assert!(own.is_null() || own == 3, "{report}");

        let output = sbxrt
            .run(["--output-action", "kill", &image, "true"])
            .output();
        output.assert_refused(&["--output-limit"]);
    });
}

#[test]
fn a_flood_does_not_grow_whoever_reads_it() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        let flood = "yes | head -c 50000000";
        let floods = [
            (flood.to_owned(), "stdout"),
            (format!("{flood} >&2"), "stderr"),
            (format!("{flood} >&2 & {flood}; wait"), "stderr"),
        ];
        for (script, stream) in floods {
            let bound = ["--output-limit", "1m", "--timeout", "none", &image];
            let report = sbxrt.report([&bound[..], &["sh", "-c", &script]].concat());
            assert_eq!(report.bytes(stream).len(), 1 << 20, "{script}");
            assert_eq!(report.total(stream), 50_000_000, "{script}");
        }
        assert_children_stayed_below(64 << 20);
    });
}

#[test]
fn single_bytes_and_one_stream_alone_are_counted_in_full() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        let script = "dd if=/dev/zero bs=1 count=50000 2>/dev/null";
        let report = sbxrt.report(["--timeout", "60s", &image, "sh", "-c", script]);
        assert_eq!(report.bytes("stdout"), vec![0; 50_000]);

        let script = "head -c 300000 /dev/zero | tr '\\0' e >&2";
        let report = sbxrt.report([&image, "sh", "-c", script]);
        assert!(report.bytes("stdout").is_empty());
        assert!(report.bytes("stderr") == "e".repeat(300_000).as_bytes());
    });
}

#[test]
fn a_program_may_close_its_output_and_go_on() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        let script =
            "echo before; exec >&-; sleep 0.2; echo after >&2; exec 2>&-; sleep 0.2; exit 4";
        let report = sbxrt.report([&image, "sh", "-c", script]);
        assert_eq!(report.bytes("stdout"), b"before\n", "{report}");
        assert_eq!(report.bytes("stderr"), b"after\n", "{report}");
        assert_eq!(
            (report.kind(), report.code()),
            ("exited", Some(4)),
            "{report}"
        );
    });
}

/// Somebody outside, to whom a program has handed its standard output, goes on writing to it when the program is over.
#[test]
fn whoever_outside_was_handed_the_output_keeps_nobody_waiting() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.python_rootfs();
    let program = "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('/out/socket')\nsocket.send_fds(s, [b'x'], [1])\ns.recv(1)";
    for_each_identity(|sbxrt| {
        for mode in [&[][..], &["--json"]] {
            let directory = sbxrt.scratch(&format!("handed{}", mode.len()));
            let listener = UnixListener::bind(directory.join("socket")).unwrap();
            // The program may be another user than this test.
            let everybody = fs::Permissions::from_mode(0o777);
            fs::set_permissions(directory.join("socket"), everybody).unwrap();
            let writing = std::thread::spawn(move || {
                let (mut peer, _) = listener.accept().unwrap();
                let mut stdout = fs::File::from(receive_descriptor(&peer));
                // As fast as it is read, from before the program's end until nobody reads any more.
                stdout.write_all(b"from outside").unwrap();
                peer.write_all(b"x").unwrap();
                while stdout.write_all(&[b'x'; 4096]).is_ok() {}
            });
            let volume = format!("{}:/out", directory.display());
            let words = [
                mode,
                &["-v", &volume, &image, "python3", "-I", "-S", "-c", program],
            ];
            let output = sbxrt.run(words.concat()).output();
            assert_eq!(output.code(), 0, "{}", output.stderr);
            assert!(output.stdout_total >= 12, "{}", output.stderr);
            writing.join().unwrap();
        }
    });
}

fn receive_descriptor(peer: &UnixStream) -> OwnedFd {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let buffers = &mut [std::io::IoSliceMut::new(&mut byte)];
    recvmsg(peer, buffers, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let received = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    received.expect("the program sends its standard output")
}

#[test]
fn a_stream_goes_to_a_file_whole_while_the_document_has_a_part() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        let directory = sbxrt.scratch("files");
        let path = |name: &str| directory.join(name).display().to_string();
        let (out, error) = (path("out"), path("error"));
        let files = ["--stdout-file", &out, "--stderr-file", &error];
        let script = "head -c 300000 /dev/zero; echo oops >&2";
        let words = [
            &files[..],
            &["--output-limit", "1k", &image, "sh", "-c", script],
        ]
        .concat();
        let report = sbxrt.report(&words);
        assert_eq!(
            (report.bytes("stdout").len(), report.total("stdout")),
            (1024, 300_000)
        );
        assert_eq!(report.part("/stdout/file/bytes"), 300_000);
        assert_eq!(fs::read(&out).unwrap(), vec![0; 300_000]);
        assert_eq!(fs::read(&error).unwrap(), b"oops\n");

        // Passing through, and bounded.
        let words = [&["--stream-file-limit", "3"], &words[..]].concat();
        let output = sbxrt.run(words).output();
        assert_eq!((output.code(), output.stdout_total), (0, 1024), "{output}");
        assert_eq!(fs::read(&out).unwrap(), [0; 3]);

        let link = path("link");
        std::os::unix::fs::symlink(&error, &link).unwrap();
        let output = sbxrt.run(["--stdout-file", &link, &image, "true"]).output();
        output.assert_refused(&["output", &link]);
        assert_eq!(fs::read(&error).unwrap(), b"oop");
        let output = sbxrt
            .run(["--stdout-file", "/dev/full", &image, "true"])
            .output();
        output.assert_refused(&["/dev/full"]);
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
        assert!(output.elapsed < PATIENCE, "{output}");

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
