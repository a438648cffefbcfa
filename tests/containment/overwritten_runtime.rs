//! CVE-2019-5736: the program opens the runtime's own binary through `/proc/PID/exe` and writes to it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use sbxrt_tests::{Fixtures, for_each_identity};

#[test]
fn the_binary_cannot_be_opened_for_writing_from_inside() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    // `/proc/self/exe` as the program is what made runc execute itself inside.
    let script = r"for p in /proc/[0-9]*; do
        for i in 1 2 3 4 5; do { true >>$p/exe; } 2>/dev/null && echo opened $p; done
        case $(readlink $p/exe) in */busybox|'') ;; *) echo $p $(readlink $p/exe) ;; esac
    done; true";
    for_each_identity(|sbxrt| {
        let binary = sbxrt.binary().to_owned();
        let before = (
            fs::read(&binary).unwrap(),
            fs::metadata(&binary).unwrap().permissions().mode(),
        );
        let output = sbxrt.run([&image, "sh", "-c", script]).output();
        assert_eq!(output.success(), "", "{output}");
        // This is sbxrt's own binary, from a read-only mount. Being static it even runs, as harmless as any other program:
        // nobody else is in its container who could open it.
        for _ in 0..5 {
            sbxrt
                .run([&image, "/proc/self/exe", "--version"])
                .output()
                .success();
        }
        let after = (
            fs::read(&binary).unwrap(),
            fs::metadata(&binary).unwrap().permissions().mode(),
        );
        assert!(before == after, "the binary has changed");
    });
}
