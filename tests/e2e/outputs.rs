//! Files that a program leaves, collected when it is over.

use std::fs;

use sbxrt_tests::{Fixtures, for_each_identity};

/// SHA-256 of "hello\n".
const HELLO: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

#[test]
fn files_are_listed_with_sizes_and_hashes_and_copied_by_name() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.busybox_rootfs();
        let script = "mkdir -p out/a && echo hello > out/a/file && ln -s a/file out/link";
        let run = [
            "-w", "/work", "--output", "out:copy", &image, "sh", "-c", script,
        ];
        let report = sbxrt.report(run);
        let outputs = report.outputs();
        let expected = [
            ("/work/out", "directory", 0, None),
            ("/work/out/a", "directory", 0, None),
            ("/work/out/a/file", "file", 6, Some(HELLO)),
            ("/work/out/link", "symlink", 0, None),
        ];
        assert_eq!(outputs.len(), expected.len(), "{report}");
        for (output, (path, kind, size, hash)) in outputs.iter().zip(expected) {
            let found = (
                output["path"].as_str(),
                output["type"].as_str(),
                output["size"].as_u64(),
                output["sha256"].as_str(),
            );
            assert_eq!(
                found,
                (Some(path), Some(kind), Some(size), hash),
                "{report}"
            );
            assert!(output.get("refused").is_none(), "{report}");
        }
        let copy = sbxrt.home().join("copy");
        assert_eq!(fs::read(copy.join("link")).unwrap(), b"hello\n");
        let owner =
            std::os::unix::fs::MetadataExt::uid(&fs::metadata(copy.join("a/file")).unwrap());
        assert_eq!(owner, sbxrt.identity().uid().as_raw());

        // A second run does not touch the copy, unless it is told to, and says so before it begins.
        let again = ["--output", "/tmp/x:copy", &image, "touch", "/tmp/x"];
        sbxrt
            .run(again)
            .output()
            .assert_refused(&["EEXIST", "--overwrite"]);
        let script = "mkdir -p out/a && echo bye > out/a/file";
        let run = [
            "-w",
            "/work",
            "--output",
            "out:copy",
            "--overwrite",
            &image,
            "sh",
            "-c",
            script,
        ];
        sbxrt.run(run).output().success();
        assert_eq!(fs::read(copy.join("a/file")).unwrap(), b"bye\n");
    });
}

#[test]
fn without_a_document_an_output_needs_a_place() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.busybox_rootfs();
        sbxrt
            .run(["--output", "/tmp/x", &image, "true"])
            .output()
            .assert_refused(&["/tmp/x", "--output-dir"]);
        sbxrt.scratch("copies");
        let output = sbxrt
            .run([
                "--output",
                "/tmp/x",
                "--output",
                "/tmp/y",
                "--output-dir",
                "copies",
                &image,
                "sh",
                "-c",
                "echo x > /tmp/x; exit 3",
            ])
            .output();
        // The program's own result stays what it is.
        assert_eq!(output.code(), 3, "{output}");
        assert!(output.stderr.contains("output /tmp/y: ENOENT"), "{output}");
        assert_eq!(fs::read(sbxrt.home().join("copies/x")).unwrap(), b"x\n");
    });
}

#[test]
fn what_a_program_left_is_collected_when_the_time_limit_ends_it() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let script = "echo hello > /tmp/partial; while :; do sleep 60; done";
        let report = sbxrt.report([
            "--timeout",
            "4s",
            "--output",
            "/tmp/partial",
            &fixtures.busybox_rootfs(),
            "sh",
            "-c",
            script,
        ]);
        assert_eq!(report.kind(), "timeout", "{report}");
        assert_eq!(report.outputs()[0]["sha256"], HELLO, "{report}");
    });
}

#[test]
fn every_place_that_can_be_written_to_can_be_collected_from() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let volume = format!("{}:/volume", sbxrt.scratch("volume").display());
        let places = ["/tmp/x", "/memory/x", "/volume/x"];
        let script = format!(
            "for place in {}; do echo hello > $place; done",
            places.join(" ")
        );
        let image = fixtures.busybox_rootfs();
        let mut run = vec!["--read-only", "--tmpfs", "/memory", "-v", &volume];
        for place in places {
            run.extend(["--output", place]);
        }
        run.extend([image.as_str(), "sh", "-c", &script]);
        let report = sbxrt.report(&run);
        for output in report.outputs() {
            assert_eq!(output["sha256"], HELLO, "{report}");
        }
        assert_eq!(report.outputs().len(), places.len(), "{report}");
    });
}
