//! Standard input that the program does not read, or that does not end, and output that nobody could read before it ended.

use std::time::Duration;

use sbxrt_tests::Fixtures;

use crate::attack;

#[test]
fn input_that_is_not_read_holds_nobody_up() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    attack(|sbxrt| {
        let output = sbxrt
            .run(["-i", &image, "true"])
            .stdin(vec![b'x'; 100 << 20])
            .output();
        assert_eq!(output.success(), "");
        // Input without end, of which a little is read: /dev/zero is the caller's.
        let endless = ["sh", "-c", "exec \"$@\" </dev/zero", "sh"];
        let output = sbxrt
            .run(["-i", &image, "head", "-c", "3"])
            .behind(endless)
            .output();
        assert_eq!(output.success(), "\0\0\0");
        let report = ["--json", "--timeout", "1s", "-i", &image, "sleep", "600"];
        let output = sbxrt
            .run(report)
            .behind(endless)
            .deadline(Duration::from_secs(60))
            .output();
        assert_eq!(output.report().kind(), "timeout", "{output}");
    });
}

#[test]
fn a_program_that_closes_its_output_is_waited_for() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    attack(|sbxrt| {
        let directory = sbxrt.scratch("volume");
        let volume = format!("{}:/v", directory.display());
        let script = "exec >&- 2>&- <&-; sleep 0.3; : >/v/done; exit 7";
        let report = sbxrt.report(["-v", &volume, &image, "sh", "-c", script]);
        assert_eq!(
            (report.kind(), report.code()),
            ("exited", Some(7)),
            "{report}"
        );
        assert!(directory.join("done").exists());
    });
}
