//! CVE-2021-30465, CVE-2023-27561, CVE-2025-31133, CVE-2026-41579: an image whose mount targets are symbolic links
//! to somewhere on the host.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use sbxrt_tests::{Fixtures, Sbxrt};

use crate::attack;

/// A copy of the busybox root filesystem that belongs to the user.
fn hostile_rootfs(sbxrt: &Sbxrt, fixtures: &Fixtures) -> std::path::PathBuf {
    let root = sbxrt.scratch("rootfs");
    let source = fixtures.busybox_rootfs();
    let source = source.strip_prefix("dir:").unwrap();
    for name in ["bin", "etc", "usr", "tmp"] {
        let status = Command::new("cp")
            .arg("-r")
            .arg(Path::new(source).join(name))
            .arg(&root)
            .status()
            .unwrap();
        assert!(status.success());
    }
    root
}

#[test]
fn links_in_place_of_mount_points_touch_nothing_on_the_host() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    attack(|sbxrt| {
        let victim = sbxrt.scratch("victim");
        fs::write(victim.join("canary"), "untouched").unwrap();
        for name in [
            "dev",
            "proc",
            "sys",
            "tmp",
            "etc/hosts",
            "etc/resolv.conf",
            "etc/hostname",
        ] {
            let root = hostile_rootfs(sbxrt, &fixtures);
            let link = root.join(name);
            if link.is_dir() {
                fs::remove_dir_all(&link).unwrap();
            }
            let target = if name.starts_with("etc") {
                victim.join("canary")
            } else {
                victim.clone()
            };
            symlink(format!("../../../../../..{}", target.display()), &link).unwrap();
            let image = format!("dir:{}", root.display());
            let script = "echo x >/tmp/x; echo x >/etc/hosts; cat /etc/hosts /tmp/canary /dev/canary /proc/canary";
            let output = sbxrt.run([&image, "sh", "-c", script]).output();
            // It may run, with the link resolved inside, or be refused; it may not reach out.
            assert!(!output.text().contains("untouched"), "{name}: {output}");
            assert_eq!(
                fs::read_to_string(victim.join("canary")).unwrap(),
                "untouched",
                "{name}"
            );
            assert_eq!(
                fs::read_dir(&victim).unwrap().count(),
                1,
                "{name}: {output}"
            );
            fs::remove_dir_all(&root).unwrap();
        }
    });
}

#[test]
fn a_volume_on_a_link_stays_inside() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    attack(|sbxrt| {
        let root = hostile_rootfs(sbxrt, &fixtures);
        for name in ["dev", "proc", "sys"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        let victim = sbxrt.scratch("victim");
        symlink(&victim, root.join("out")).unwrap();
        let volume = format!("{}:/out/made/here", sbxrt.scratch("volume").display());
        let image = format!("dir:{}", root.display());
        sbxrt.run(["-v", &volume, &image, "true"]).output();
        assert_eq!(
            fs::read_dir(&victim).unwrap().count(),
            0,
            "a mount point was made on the host"
        );
    });
}
