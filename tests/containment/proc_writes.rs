//! CVE-2025-52881 and its kin: writes below `/proc` and `/sys` that would change the host.

use std::fs;

use sbxrt_tests::Fixtures;

use crate::attack;

#[test]
fn the_kernels_settings_cannot_be_written_or_its_secrets_read() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    // Opened for writing and closed again: were the sandbox open, the test must still do the host no harm.
    let script = r"for f in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/vm/panic_on_oom \
            /proc/sys/kernel/ns_last_pid /proc/sysrq-trigger /sys/kernel/uevent_helper /sys/power/state \
            /sys/fs/cgroup/cgroup.procs; do
        { true >>$f; } 2>/dev/null && echo opened $f
    done
    { echo -1000 >/proc/self/oom_score_adj; } 2>/dev/null && echo wrote oom_score_adj
    for f in /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug; do
        head -c 1 $f 2>/dev/null | grep -q . && echo read $f
    done
    mkdir /sys/fs/cgroup/x 2>/dev/null && rmdir /sys/fs/cgroup/x && echo made a cgroup
    true";
    attack(|sbxrt| {
        let before = fs::read("/proc/sys/kernel/core_pattern").unwrap();
        let output = sbxrt.run([&image, "sh", "-c", script]).output();
        assert_eq!(output.success(), "", "{output}");
        assert_eq!(fs::read("/proc/sys/kernel/core_pattern").unwrap(), before);
    });
}
