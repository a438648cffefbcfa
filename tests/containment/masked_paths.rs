//! CVE-2025-31133, CVE-2025-52565, CVE-2025-52881: an image, or a volume, that puts something of its own where the runtime
//! mounts, masks or writes: `/dev/null` for masked files, `/dev/pts` and `/dev/console` for the terminal, `/proc` for settings.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use sbxrt_tests::Fixtures;

use crate::attack;

#[test]
fn what_an_image_has_in_dev_and_proc_is_not_used() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let busybox = fixtures.busybox_rootfs();
    attack(|sbxrt| {
        let root = sbxrt.scratch("rootfs");
        let source = busybox.strip_prefix("dir:").unwrap();
        let copied = Command::new("cp")
            .args(["-r", &format!("{source}/bin"), &format!("{source}/etc")])
            .arg(&root)
            .status();
        assert!(copied.unwrap().success());
        fs::create_dir_all(root.join("dev/pts")).unwrap();
        fs::create_dir_all(root.join("proc/self/attr")).unwrap();
        let victim = sbxrt.scratch("victim").join("file");
        fs::write(&victim, "untouched").unwrap();
        let victim_inside = format!("{}{}", "../".repeat(16), victim.display());
        for (name, target) in [
            ("dev/null", "/proc/sys/kernel/core_pattern"),
            ("dev/console", &*victim_inside),
            ("dev/ptmx", "/proc/sysrq-trigger"),
            ("dev/pts/0", "/proc/sysrq-trigger"),
            ("dev/shm", "/"),
            ("dev/fd", "/"),
            ("proc/kcore", &*victim_inside),
            ("proc/timer_list", &*victim_inside),
            ("proc/sysrq-trigger", &*victim_inside),
            ("proc/self/attr/exec", &*victim_inside),
        ] {
            symlink(target, root.join(name)).unwrap();
        }
        let image = format!("dir:{}", root.display());
        // Devices by their numbers, and how much masked files hold: nothing, where this kernel has them.
        let script = r"stat -c '%F %t:%T' /dev/null /dev/zero
            for file in kcore keys timer_list sched_debug; do [ ! -e /proc/$file ] || wc -c </proc/$file; done | sort -u
            [ -L /dev/shm ] && echo shm is a link
            { true >>/proc/sysrq-trigger; } 2>/dev/null && echo sysrq can be written
            true";
        let expected = "character special file 1:3\ncharacter special file 1:5\n0\n";
        let output = sbxrt.run([&image, "sh", "-c", script]).output();
        assert_eq!(output.success(), expected);
        let output = sbxrt
            .run(["-t", &image, "sh", "-c", "[ ! -L $(tty) ] && tty"])
            .output();
        assert_eq!(output.success().trim(), "/dev/pts/0");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    });
}

#[test]
fn nothing_can_be_mounted_over_proc_sys_and_dev() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    attack(|sbxrt| {
        let source = sbxrt.scratch("volume").display().to_string();
        for target in [
            "/proc",
            "/proc/self",
            "/proc/sys",
            "/proc/self/attr",
            "/sys",
            "/dev",
            "/dev/pts",
            "//proc/.",
        ] {
            let volume = format!("{source}:{target}");
            let refusals = [
                sbxrt.run(["-v", &volume, &image, "true"]).output(),
                sbxrt.run(["--tmpfs", target, &image, "true"]).output(),
            ];
            for output in refusals {
                output.assert_refused(&["belong to the sandbox"]);
            }
        }
        // Through a link of the image's as well: the kernel's own file systems are what the program sees.
        let root = sbxrt.scratch("rootfs");
        fs::create_dir_all(root.join("bin")).unwrap();
        let busybox = image.strip_prefix("dir:").unwrap();
        fs::copy(format!("{busybox}/bin/busybox"), root.join("bin/busybox")).unwrap();
        symlink("/proc", root.join("innocent")).unwrap();
        symlink("dev", root.join("data")).unwrap();
        let image = format!("dir:{}", root.display());
        let volume = format!("{source}:/innocent/self");
        let output = sbxrt
            .run([
                "-v",
                &volume,
                &image,
                "/bin/busybox",
                "cat",
                "/proc/self/comm",
            ])
            .output();
        assert!(
            output.code() == 125 || output.text() == "busybox\n",
            "{output}"
        );
        // What is made in /dev must not be made in the volume, nor where links in it lead.
        let volume = sbxrt.scratch("devices");
        let outside = sbxrt.scratch("outside");
        symlink(outside.join("made"), volume.join("null")).unwrap();
        symlink("/proc/sys/user", volume.join("mqueue")).unwrap();
        let mount = format!("{}:/data", volume.display());
        let script = "/bin/busybox stat -f -c %T /dev; /bin/busybox ls /dev/mqueue | /bin/busybox wc -l; \
                      /bin/busybox ls /proc/sys/user/max_user_namespaces";
        let expected = "tmpfs\n0\n/proc/sys/user/max_user_namespaces\n";
        let words = ["-v", &mount, &image, "/bin/busybox", "sh", "-c", script];
        let output = sbxrt.run(words).output();
        assert_eq!(output.success(), expected, "{output}");
        let mut left = names(&volume);
        left.sort();
        assert_eq!(left, ["mqueue", "null"], "{output}");
        assert!(names(&outside).is_empty(), "{output}");
    });
}

fn names(directory: &std::path::Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
    entries
        .map(|entry| name(entry).into_string().unwrap())
        .collect()
}

#[test]
fn settings_of_the_sandbox_are_truly_applied() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    attack(|sbxrt| {
        let script = "cat /proc/sys/kernel/sem /proc/sys/kernel/msgmni | tr '\\t' ' '; \
                      { echo 1 >/proc/sys/kernel/msgmni; } 2>/dev/null || echo read-only";
        let output = sbxrt.run([&image, "sh", "-c", script]).output();
        assert_eq!(output.success(), "250 8000 32 128\n128\nread-only\n");
    });
}
