//! Modes, times, owners and extended attributes.

use super::*;

#[test]
fn closed_directories_unpack_and_keep_mode_and_time() {
    let mut place = Place::new();
    let layer = place.layer(&[
        directory("./", 0o711),
        directory("d", 0o555),
        directory("d/e", 0o500),
        file("d/e/f", "x"),
        file_with_mode("none", 0o000, "x"),
        directory("tmp", 0o1777),
        file("d/g", "x"),
    ]);
    let mode = |path: &str| fs::symlink_metadata(layer.join(path)).unwrap().mode() & 0o7777;
    assert_eq!(
        ["", "d", "d/e", "none", "tmp"].map(mode),
        [0o711, 0o555, 0o500, 0, 0o1777]
    );
    for path in ["", "d", "d/e", "d/e/f", "none"] {
        assert_eq!(
            fs::symlink_metadata(layer.join(path)).unwrap().mtime(),
            100,
            "{path:?}"
        );
    }
}

#[test]
fn what_needs_root_is_written_down_and_not_done() {
    let mut place = Place::new();
    let mut device = header(b"dev/null", b'3', b"", 0o666, 0);
    device[329..336].copy_from_slice(b"0000001");
    device[337..344].copy_from_slice(b"0000003");
    seal(&mut device);
    let mut owned = header(b"home", b'5', b"", 0o2755, 0);
    owned[108..115].copy_from_slice(b"0001750");
    owned[116..124].copy_from_slice(&[0x80, 0, 0, 0, 0x80, 0, 0, 0]);
    seal(&mut owned);
    let layer = place.layer(&[
        file_with_mode("bin/su", 0o4755, ""),
        device.to_vec(),
        owned.to_vec(),
        header(b"pipe", b'6', b"", 0o644, 0).to_vec(),
        pax(&[("SCHILY.xattr.security.capability", &[1, 0, 0, 2])]),
        file("ping", ""),
        pax(&[("path", b"caf\xe9"), ("uid", b"5")]),
        file("x", ""),
        file("plain", ""),
    ]);
    let owners = fs::read_to_string(layer.with_file_name("owners.jsonl")).unwrap();
    let expected = r#"{"path":"bin/su","uid":0,"gid":0,"mode":2541}
{"path":"dev/null","uid":0,"gid":0,"mode":438,"kind":"character_device","major":1,"minor":3}
{"path":"home","uid":1000,"gid":2147483648,"mode":1517}
{"path":"pipe","uid":0,"gid":0,"mode":420,"kind":"fifo"}
{"path":"ping","uid":0,"gid":0,"mode":420,"capability":"01000002"}
{"path_hex":"636166e9","uid":5,"gid":0,"mode":420}
"#;
    assert_eq!(owners, expected);
    assert_eq!(
        fs::metadata(layer.join("bin/su")).unwrap().mode() & 0o7777,
        0o755
    );
    // A directory's setgid bit gives nobody anything.
    assert_eq!(
        fs::metadata(layer.join("home")).unwrap().mode() & 0o7777,
        0o2755
    );
    assert!(!layer.join("pipe").exists() && !layer.join("dev/null").exists());
}

#[test]
fn attributes_are_kept_but_those_of_overlayfs() {
    let mut place = Place::new();
    let layer = place.layer(&[
        pax(&[
            ("SCHILY.xattr.user.mime", b"text/plain"),
            ("SCHILY.xattr.user.overlay.redirect", b"/outside"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.metacopy", b""),
            ("SCHILY.xattr.user.overlay.whiteout", b"y"),
            // As bsdtar writes them, in base64; and it writes the form above as well.
            ("LIBARCHIVE.xattr.user.overlay.opaque", b"eQ"),
            ("LIBARCHIVE.xattr.trusted.overlay.redirect", b"L291dHNpZGU"),
        ]),
        file("f", ""),
        pax(&[
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.a", b"b"),
        ]),
        directory("d", 0o755),
    ]);
    let names = |path: &str| {
        let mut names = xattr_names(&layer.join(path));
        names.sort();
        names
    };
    assert_eq!(names("f"), ["user.mime"]);
    assert_eq!(names("d"), ["user.a"]);
}
