//! Device nodes: made inside, or shipped by an image, they must open nothing of the host's.

use sbxrt_tests::Fixtures;

use crate::attack;

#[test]
fn only_harmless_devices_exist_and_none_can_be_made() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    let script = r"for d in mem:c:1:1 kmsg:c:1:11 disk:b:8:0 vda:b:254:0; do
        IFS=: read -r name kind major minor <<END
$d
END
        mknod /tmp/$name $kind $major $minor 2>/dev/null && head -c 1 /tmp/$name >/dev/null 2>&1 && echo opened $name
    done
    find /dev -type b
    find /dev -type c | sort";
    let harmless = [
        "/dev/console",
        "/dev/full",
        "/dev/null",
        "/dev/ptmx",
        "/dev/pts/ptmx",
        "/dev/random",
        "/dev/tty",
        "/dev/urandom",
        "/dev/zero",
    ];
    attack(|sbxrt| {
        let output = sbxrt.run([&image, "sh", "-c", script]).output();
        for line in output.success().lines() {
            assert!(harmless.contains(&line), "{line} in {output}");
        }
        assert!(output.text().contains("/dev/null"), "{output}");
    });
}
