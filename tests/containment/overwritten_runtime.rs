//! CVE-2019-5736: the program opens the runtime's own binary through `/proc/PID/exe` and writes to it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use sbxrt_tests::Fixtures;

use crate::attack;

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
    attack(|sbxrt| {
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

#[test]
fn a_binary_that_belongs_to_the_user_cannot_be_written_to_either() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let rootfs = fixtures.busybox_rootfs();
    attack(|sbxrt| {
        // As in ~/bin, on the user's own account: root's permissions protect nothing here.
        let own = sbxrt.scratch("bin").join("sbxrt");
        fs::copy(sbxrt.binary(), &own).unwrap();
        let (uid, gid) = (sbxrt.identity().uid(), sbxrt.identity().gid());
        std::os::unix::fs::chown(&own, Some(uid.as_raw()), Some(gid.as_raw())).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
        let before = fs::read(&own).unwrap();
        let image = fixtures.variant(sbxrt, "itself", |configuration, _| {
            configuration["config"]["Entrypoint"] = serde_json::json!(["/proc/self/exe"]);
        });
        let script = "for i in 1 2 3 4 5 6 7 8 9 10; do for p in /proc/[0-9]*; do
                { true >>$p/exe; } 2>/dev/null && echo opened $p; done; done; true";
        // What is called is sbxrt under test, the first argument: its place takes the user's own.
        let caller = [
            "sh",
            "-c",
            "shift; exec \"$0\" \"$@\"",
            own.to_str().unwrap(),
        ];
        let by_own = |words: &[&str]| sbxrt.run(words).called_by(caller).output();
        assert_eq!(by_own(&[&rootfs, "sh", "-c", script]).success(), "");
        by_own(&[&image, "--version"]);
        assert!(fs::read(&own).unwrap() == before, "the binary has changed");
    });
}
