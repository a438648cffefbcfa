//! CVE-2016-3697, CVE-2026-30892, CVE-2024-9676: an image's `/etc/passwd` that gives a number another meaning, or that no
//! reader comes back from.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use nix::sys::stat::Mode;
use sbxrt_tests::{Fixtures, Sbxrt};

use crate::attack;

/// An image of the user's own with busybox and an empty `/etc`.
fn image(sbxrt: &Sbxrt, fixtures: &Fixtures) -> std::path::PathBuf {
    let root = sbxrt.scratch("rootfs");
    let busybox = fixtures.busybox_rootfs();
    let busybox = busybox.strip_prefix("dir:").unwrap();
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir(root.join("etc")).unwrap();
    fs::copy(format!("{busybox}/bin/busybox"), root.join("bin/busybox")).unwrap();
    root
}

#[test]
fn a_number_is_a_number_whoever_has_it_as_a_name() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    attack(|sbxrt| {
        let root = image(sbxrt, &fixtures);
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\n1000:x:0:0:trap:/root:/bin/sh\n:x:0:0::/:\n+1000:x:0:0::/:\n",
        )
        .unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\n1000:x:0:\n").unwrap();
        let image = format!("dir:{}", root.display());
        let run = |user: &str| {
            let user = format!("--user={user}");
            sbxrt
                .run([
                    &user,
                    &image,
                    "/bin/busybox",
                    "sh",
                    "-c",
                    "busybox id -u; busybox id -g",
                ])
                .output()
        };
        assert_eq!(run("1000").success(), "1000\n0\n");
        assert_eq!(run("1000:1000").success(), "1000\n1000\n");
        for user in [
            "1000:",
            ":0",
            ":",
            "+1000",
            "-1",
            "4294967295",
            "4294967296",
            "0x0",
            "1000 ",
            "\u{661}",
        ] {
            run(user).assert_refused(&["resolve the user"]);
        }
    });
}

#[test]
fn a_user_database_without_end_holds_nobody_up() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    attack(|sbxrt| {
        let root = image(sbxrt, &fixtures);
        let passwd = root.join("etc/passwd");
        let shadow = sbxrt.scratch("host").join("passwd");
        fs::write(&shadow, "app:x:4711:4711::/:/bin/sh\n").unwrap();
        let out = "../".repeat(16);
        let links = [
            "/dev/zero".to_owned(),
            "/proc/self/fd/0".to_owned(),
            "/proc/1/environ".to_owned(),
            "/proc/self/root/etc/passwd".to_owned(),
            format!("{out}{}", shadow.display()),
            shadow.display().to_string(),
        ];
        let image = format!("dir:{}", root.display());
        let refused = |what: &str| {
            let run = sbxrt.run(["-u", "app", &image, "/bin/busybox", "true"]);
            let output = run.deadline(Duration::from_secs(60)).output();
            assert_eq!(output.code(), 125, "{what}: {output}");
            assert!(output.stderr.contains("no such user"), "{what}: {output}");
        };
        for link in links {
            symlink(&link, &passwd).unwrap();
            refused(&link);
            fs::remove_file(&passwd).unwrap();
        }
        nix::unistd::mkfifo(&passwd, Mode::from_bits_truncate(0o666)).unwrap();
        refused("a FIFO");
        fs::remove_file(&passwd).unwrap();
        // The entry is beyond what is read.
        let filler = "#".repeat((1 << 20) + 1);
        fs::write(&passwd, format!("{filler}\napp:x:4711:4711::/:/bin/sh\n")).unwrap();
        refused("a file of 1 MiB");
    });
}
