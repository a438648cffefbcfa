//! Signals: a program that runs as the caller could end the caller's processes, if it saw them.

use sbxrt_tests::Fixtures;

use crate::attack;

#[test]
fn no_process_of_the_host_can_be_signalled() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    attack(|sbxrt| {
        let mut bystander = sbxrt.identity().command(&["sleep", "60"]).spawn().unwrap();
        let pid = bystander.id();
        let script = format!(
            "kill -0 {pid} && echo can signal {pid}
            # Everything that can be signalled: only where process ids show that it is not the host's.
            [ $$ -lt 50 ] || {{ echo no process ids of its own; exit 1; }}
            kill -9 -1; true"
        );
        let output = sbxrt.run([&image, "sh", "-c", &script]).output();
        assert_eq!(output.text(), "", "{output}");
        let alive = bystander.try_wait().unwrap().is_none();
        bystander.kill().unwrap();
        bystander.wait().unwrap();
        assert!(alive, "the bystander was ended");
        // And sbxrt itself survived to say how it ended.
        assert!([0, 137].contains(&output.code()), "{output}");
    });
}
