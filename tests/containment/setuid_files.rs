//! Set-user-ID programs in an image or on a volume: they must give no rights that the program has not.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use sbxrt_tests::Fixtures;

use crate::attack;

#[test]
fn the_set_user_id_bit_has_no_effect() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    let busybox = image.strip_prefix("dir:").unwrap().to_owned() + "/bin/busybox";
    attack(|sbxrt| {
        let directory = sbxrt.scratch("volume");
        let planted = directory.join("busybox");
        fs::copy(&busybox, &planted).unwrap();
        fs::set_permissions(&planted, fs::Permissions::from_mode(0o6755)).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let volume = format!("{}:/v", directory.display());
        let output = sbxrt
            .run([
                "-u",
                "1000",
                "-v",
                &volume,
                &image,
                "/v/busybox",
                "id",
                "-u",
            ])
            .output();
        assert_eq!(output.success(), "1000\n");
    });
}

#[test]
fn what_the_program_makes_on_a_volume_gives_nobody_rights() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    attack(|sbxrt| {
        let directory = sbxrt.scratch("volume");
        let volume = format!("{}:/v", directory.display());
        let script = "cp /bin/busybox /v/b && chmod 4755 /v/b; mknod /v/null c 1 3; true";
        sbxrt
            .run(["-v", &volume, &image, "sh", "-c", script])
            .output()
            .success();
        assert!(!directory.join("null").exists(), "a device node");
        // Root's own volume is root's risk to take; anybody else's program must be nobody else's.
        let owner = fs::metadata(directory.join("b")).unwrap().uid();
        assert!(sbxrt.identity().is_root() || owner != 0, "owned by root");
    });
}
