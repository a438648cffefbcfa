//! CVE-2024-21626: a descriptor of the host, left open in the program, leads out of the sandbox.

use sbxrt_tests::Fixtures;

use crate::attack;

#[test]
fn no_descriptor_of_the_caller_or_of_sbxrt_is_open_inside() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    // A careless caller: descriptors without close-on-exec, one of them the host's root directory.
    let leaking = [
        "bash",
        "-c",
        "exec 3</ 9</etc 47</proc 100</dev/null; exec \"$@\"",
        "bash",
    ];
    attack(|sbxrt| {
        // 3 is the directory that ls itself reads.
        let output = sbxrt
            .run([&image, "ls", "/proc/self/fd"])
            .behind(leaking)
            .output();
        assert_eq!(output.success(), "0\n1\n2\n3\n");
        let script = "for n in 3 4 5 6 7 8 9 10 11 12 47 100; do [ -e /proc/self/fd/$n ] && echo $n; done; true";
        let output = sbxrt
            .run([&image, "sh", "-c", script])
            .behind(leaking)
            .output();
        assert_eq!(output.success(), "");
    });
}

#[test]
fn a_working_directory_through_a_descriptor_does_not_lead_out() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    attack(|sbxrt| {
        for descriptor in 3..16 {
            let directory = format!("/proc/self/fd/{descriptor}");
            let output = sbxrt
                .run([
                    "-w",
                    &directory,
                    &image,
                    "sh",
                    "-c",
                    "ls ../../../var ../../../boot",
                ])
                .output();
            assert_ne!(output.code(), 0, "{directory}: {output}");
            assert_eq!(output.text(), "", "{directory}");
        }
    });
}
