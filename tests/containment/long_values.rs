//! CVE-2021-43784: values so long that a message between the runtime's own processes overflows.

use sbxrt_tests::Fixtures;
use serde_json::json;

use crate::attack;

#[test]
fn what_is_too_long_is_refused_by_name() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let plain = fixtures.busybox_rootfs();
    let long = "a".repeat(70_000);
    attack(|sbxrt| {
        let refused = |options: &[&str], word: &str| {
            let output = sbxrt.run([options, &[&plain, "true"]].concat()).output();
            output.assert_refused(&[word]);
            assert!(!output.stderr.contains("without a report"), "{output}");
        };
        refused(&["--hostname", &long], "host name");
        refused(&["--name", &long], "name");
        refused(&["-w", &format!("/{long}")], "too long");
        refused(&["--tmpfs", &format!("/{long}")], "too long");
        refused(&["-e", &format!("X={long}")], "variable X");
        refused(&["-u", &long], "no such user");
        refused(&["-u", &format!("0:{long}")], "no such group");

        // An argument may be as long, up to the kernel's 128 KiB.
        let output = sbxrt
            .run([&plain, "sh", "-c", "echo ${#1}", "sh", &long])
            .output();
        assert_eq!(output.success(), "70000\n");
        let report = sbxrt.report([&*plain, &long]);
        assert_eq!(
            (report.kind(), report.exit_code()),
            ("start_failed", Some(126)),
            "{report}"
        );
        // The kernel's limit on all of them together is beyond what a caller could give as arguments.
        let file = sbxrt.scratch("environment").join("file");
        let lines: Vec<String> = (0..60)
            .map(|n| format!("X{n}={}\n", &long[..60_000]))
            .collect();
        std::fs::write(&file, lines.concat()).unwrap();
        let report = sbxrt.report(["--env-file", file.to_str().unwrap(), &plain, "true"]);
        assert_eq!(report.kind(), "start_failed", "{report}");
        assert!(report.to_string().contains("too long"), "{report}");

        for (key, value) in [
            ("WorkingDir", json!(format!("/{long}"))),
            ("User", json!(long)),
            ("Entrypoint", json!([long])),
        ] {
            let image = fixtures.variant(sbxrt, key, |configuration, _| {
                configuration["config"][key] = value;
            });
            let output = sbxrt.run([&image, "true"]).output();
            assert!([125, 126].contains(&output.code()), "{key}: {output}");
            assert!(
                !output.stderr.contains("without a report"),
                "{key}: {output}"
            );
        }
    });
}
