//! Layers that mean harm: attempts to get out, and entries that cannot be.

use super::*;

/// The attempts of containerd's corpus (`pkg/archive/tar_test.go`): each must end within the layer, not be refused.
#[test]
fn attempts_to_break_out_end_within_the_layer() {
    type Row<'a> = (&'a str, Vec<Vec<u8>>, &'a str);
    let table: [Row<'_>; 14] = [
        (
            "absolute link",
            vec![
                directory("etc", 0o755),
                symlink("/etc", "localetc"),
                file("/localetc/x", "x"),
            ],
            "etc/x",
        ),
        (
            "up and out",
            vec![
                directory("etc", 0o755),
                symlink("../../../etc", "l"),
                file("l/x", "x"),
            ],
            "etc/x",
        ),
        (
            "links one after the other",
            vec![
                directory("etc", 0o755),
                symlink("/etc", "a"),
                symlink("a", "b"),
                symlink("/b", "c"),
                file("c/x", "x"),
            ],
            "etc/x",
        ),
        (
            "link to what is not there",
            vec![symlink("/not/there", "l"), file("l/x", "x")],
            "not/there/x",
        ),
        (
            "dangling up and out",
            vec![
                directory("d", 0o755),
                symlink("../../n", "d/l"),
                file("d/l/x", "x"),
            ],
            "n/x",
        ),
        (
            "dangling, then up",
            vec![symlink("n/../../../m", "l"), file("l/x", "x")],
            "m/x",
        ),
        ("two dots in a name", vec![file("../../../x", "x")], "x"),
        (
            "two dots in the middle",
            vec![file("a/../../b/x", "x")],
            "b/x",
        ),
        ("absolute name", vec![file("/x", "x")], "x"),
        (
            "hard link through a link",
            vec![
                directory("etc", 0o755),
                file("etc/p", "x"),
                symlink("/etc", "l"),
                hard_link("/l/p", "x"),
            ],
            "x",
        ),
        (
            "hard link up and out",
            vec![file("p", "x"), hard_link("../../../p", "x")],
            "x",
        ),
        (
            "hard link to a link is replaced, not followed",
            vec![
                symlink("../../outside/canary", "l"),
                hard_link("l", "h"),
                file("h", "x"),
            ],
            "h",
        ),
        (
            "file in place of a link",
            vec![symlink("../../canary", "usr"), file("usr", "x")],
            "usr",
        ),
        (
            "directory in place of a link",
            vec![
                symlink("../../outside", "d"),
                directory("d", 0o777),
                file("d/x", "x"),
            ],
            "d/x",
        ),
    ];
    for (name, entries, expected) in table {
        let mut place = Place::new();
        let layer = place.layer(&entries);
        let path = layer.join(expected);
        assert!(
            fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file()),
            "{name}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "x", "{name}");
        place.assert_unharmed();
    }
}

#[test]
fn impossible_entries_are_refused() {
    let long = "n".repeat(256);
    let table: [(&str, Vec<Vec<u8>>); 17] = [
        ("root as a link", vec![symlink("/etc", ".")]),
        ("root as a file", vec![file("/", "")]),
        ("root by two dots", vec![symlink("/etc", "a/..")]),
        ("whiteout of nothing", vec![file(".wh.", "")]),
        ("whiteout of a dot", vec![file(".wh..", "")]),
        ("whiteout of two dots", vec![file("a/.wh...", "")]),
        ("entry within a whiteout", vec![file(".wh.a/b", "")]),
        ("hard link to nothing", vec![hard_link("nothing", "x")]),
        (
            "hard link to a directory",
            vec![directory("d", 0o755), hard_link("d", "x")],
        ),
        ("hard link to the root", vec![hard_link("/", "x")]),
        (
            "hard link to a hidden file",
            vec![file(".wh.gone", ""), hard_link("gone", "x")],
        ),
        ("file as a directory", vec![file("a", ""), file("a/b", "")]),
        ("link without a target", vec![symlink("", "l")]),
        (
            "link that leads to itself",
            vec![symlink("l", "l"), file("l/x", "")],
        ),
        (
            "links in a circle",
            vec![symlink("b", "a"), symlink("a", "b"), file("a/x", "")],
        ),
        (
            "long name",
            vec![pax(&[("path", long.as_bytes())]), file("x", "")],
        ),
        (
            "NUL in a name",
            vec![pax(&[("path", b"a\0b")]), file("x", "")],
        ),
    ];
    for (name, entries) in table {
        let mut place = Place::new();
        place.layer(&[file("gone", "")]);
        let result = place.try_layer(&entries);
        assert!(
            matches!(result, Err(Error::InvalidEntry { .. })),
            "{name}: {result:?}"
        );
        place.assert_unharmed();
    }
}

#[test]
fn modes_are_not_changed_through_links() {
    // CVE-2026-33056, CVE-2021-32760
    let mut place = Place::new();
    let layer = place.layer(&[
        symlink("../../outside", "d"),
        symlink("../../canary", "f"),
        directory("d", 0o777),
        file_with_mode("f", 0o777, ""),
    ]);
    place.assert_unharmed();
    assert_eq!(
        fs::metadata(layer.join("d")).unwrap().mode() & 0o7777,
        0o777
    );
}

/// CVE-2014-9356, CVE-2018-20990, CVE-2021-38511, CVE-2026-33056, RUSTSEC-2026-0113: what an entry does to a link's
/// target. More of umoci's `tar_extract_test.go` and of containerd's corpus.
#[test]
fn nothing_reaches_the_target_of_a_link() {
    type Row<'a> = (&'a str, Vec<Vec<u8>>);
    let table: [Row<'_>; 8] = [
        (
            "a directory's mode",
            vec![symlink("../../outside", "d"), directory("d", 0o777)],
        ),
        (
            "a directory's mode, with a slash after its name",
            vec![symlink("../../outside", "d"), directory("d/", 0o777)],
        ),
        (
            "a file's contents through a hard link",
            vec![
                symlink("../../outside/canary", "l"),
                hard_link("l", "h"),
                file_with_mode("h", 0o777, "harm"),
            ],
        ),
        (
            "attributes",
            vec![
                symlink("../../outside/canary", "l"),
                pax(&[("SCHILY.xattr.user.harm", b"1"), ("mtime", b"5")]),
                hard_link("l", "l2"),
            ],
        ),
        (
            // GHSA-qq3r-w4hj-gjp6 (apko): a check of the text alone holds `a/b/..` to be `a`.
            "a parent that is renamed by a link",
            vec![
                directory("a/b", 0o755),
                symlink("a/b", "l"),
                symlink("l/../../../../outside", "m"),
                file("m/new", "harm"),
            ],
        ),
        (
            "a link made of two",
            vec![
                symlink("..", "up"),
                symlink("up/../../outside", "out"),
                file("out/new", "harm"),
                file("out/canary", "harm"),
            ],
        ),
        (
            "whiteouts",
            vec![
                symlink("../..", "l"),
                file("l/.wh.canary", ""),
                file("l/outside/.wh.canary", ""),
                file("l/.wh.outside", ""),
                file("l/.wh..wh..opq", ""),
            ],
        ),
        (
            "the layer's own files beside it",
            vec![
                symlink("..", "l"),
                file("l/owners.jsonl", "harm"),
                file("l/tar.split", "harm"),
                file("../owners.jsonl", "harm"),
            ],
        ),
    ];
    for (name, entries) in table {
        for lower in [0, 1] {
            let mut place = Place::new();
            for _ in 0..lower {
                place.layer(&[file("canary", "lower"), file("outside/canary", "lower")]);
            }
            place.try_layer(&entries).unwrap_or_else(|error| {
                panic!("{name}: it is not to be refused: {error}");
            });
            place.assert_unharmed();
            let canary = place.temporary.path().join("outside/canary");
            assert!(xattr_names(&canary).is_empty(), "{name}");
            assert_ne!(fs::metadata(&canary).unwrap().mtime(), 5, "{name}");
            let owners = place.temporary.path().join("layer0/owners.jsonl");
            assert!(!fs::read_to_string(owners).unwrap().contains("harm"));
        }
    }
}

/// CVE-2021-29136: once the root is a link, the next layer goes where it points.
#[test]
fn the_root_stays_a_directory_for_the_layers_above() {
    for root in [".", "./", "/", "", "a/..", "./."] {
        let mut place = Place::new();
        let refused = place.try_layer(&[symlink("/etc", root)]);
        assert!(
            matches!(refused, Err(Error::InvalidEntry { .. })),
            "{root:?}: {refused:?}"
        );
        place.assert_unharmed();
    }
}

/// CVE-2021-32760, CVE-2025-47290: somebody else, as the same user, exchanges a directory and a link all the time.
#[test]
fn a_directory_that_turns_into_a_link_meanwhile_leads_nowhere_else() {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    let mut place = Place::new();
    let outside = place.temporary.path().join("outside");
    let root = place.temporary.path().join("layer0/fs");
    let mut entries = vec![directory("d", 0o755), symlink("../../outside", "link")];
    for index in 0..3000 {
        entries.push(match index % 5 {
            0 => file(&format!("d/f{index}"), "harm"),
            1 => directory(&format!("d/s{index}"), 0o777),
            2 => symlink("x", &format!("d/l{index}")),
            3 => file(&format!("d/s{}/canary", index - 2), "harm"),
            _ => file("d/canary", "harm"),
        });
    }
    let done = AtomicBool::new(false);
    // Held for two exchanges, after which all is as it was.
    let swapping = Mutex::new(());
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swaps = 0_u64;
            // A link with an absolute target, and one that climbs.
            std::os::unix::fs::symlink(&outside, place.temporary.path().join("canary-link"))
                .unwrap();
            while !done.load(Ordering::Relaxed) {
                for link in [
                    root.join("link"),
                    place.temporary.path().join("canary-link"),
                ] {
                    let (from, to) = (root.join("d"), link);
                    let flags = rustix::fs::RenameFlags::EXCHANGE;
                    let cwd = rustix::fs::CWD;
                    let _guard = swapping.lock().unwrap();
                    if rustix::fs::renameat_with(cwd, &from, cwd, &to, flags).is_ok() {
                        std::thread::yield_now();
                        rustix::fs::renameat_with(cwd, &from, cwd, &to, flags).unwrap();
                        swaps += 1;
                    }
                }
            }
            swaps
        });
        let limits = Limits::default();
        let bytes = entries.concat();
        for attempt in 0..5 {
            let directory = place.temporary.path().join("layer0");
            fs::create_dir(&directory).unwrap();
            let layer = Digest::of(b"layer");
            let mut unpacker = Unpacker::new(&directory, &layer, true, &limits).unwrap();
            // Whether it succeeds depends on what it meets; where it writes does not.
            let _unpacked_or_not = unpacker
                .unpack(&mut Tarball::new(bytes.as_slice(), limits.header_bytes))
                .and_then(|()| unpacker.finish(&[]));
            let _guard = swapping.lock().unwrap();
            let aside = directory.with_file_name(format!("layer-{attempt}"));
            fs::rename(&directory, aside).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        assert!(swapper.join().unwrap() > 0);
    });
    fs::remove_file(place.temporary.path().join("canary-link")).unwrap();
    place.layers.clear();
    place.assert_unharmed();
}

/// What no file system shows well, and what lies at the ends of the types.
#[test]
fn names_and_numbers_at_their_limits_are_kept_or_refused() {
    let name = "n".repeat(255);
    let owner = 1_u64 << 31;
    let mut place = Place::new();
    let layer = place.layer(&[
        file("new\nline", "1"),
        file("\u{1b}[31mred", "1"),
        pax(&[("path", b"\xff\xfe")]),
        file("x", "1"),
        pax(&[("path", name.as_bytes())]),
        file("x", "1"),
        file("Case", "1"),
        file("case", "2"),
        pax(&[("mtime", b"4611686018427387904")]),
        file("late", "1"),
        pax(&[("mtime", b"-4611686018427387904.5")]),
        file("early", "1"),
        pax(&[
            ("uid", owner.to_string().as_bytes()),
            ("gid", b"18446744073709551615"),
        ]),
        file("owned", "1"),
        file("twice", "1"),
        file("twice", "2"),
        header(b"sticky", b'0', b"", 0o7777, 0).to_vec(),
        header(b"contiguous", b'7', b"", 0o644, 0).to_vec(),
    ]);
    let mut names = fs::read_dir(&layer)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_encoded_bytes())
        .collect::<Vec<_>>();
    names.sort();
    assert_eq!(names.len(), 12, "{names:?}");
    assert!(names.contains(&b"\xff\xfe".to_vec()) && names.contains(&name.into_bytes()));
    assert_eq!(fs::read_to_string(layer.join("Case")).unwrap(), "1");
    assert_eq!(fs::read_to_string(layer.join("twice")).unwrap(), "2");
    let sticky = fs::metadata(layer.join("sticky")).unwrap().mode();
    assert_eq!(sticky & 0o7777, 0o1777, "neither setuid nor setgid");
    let owners = fs::read_to_string(layer.with_file_name("owners.jsonl")).unwrap();
    assert!(owners.contains(r#""uid":2147483648,"gid":18446744073709551615"#));
    for path in ["p/".repeat(2048), "q".repeat(4096)] {
        let refused = Place::new().try_layer(&[pax(&[("path", path.as_bytes())]), file("x", "")]);
        assert!(
            matches!(refused, Err(Error::InvalidEntry { .. })),
            "{refused:?}"
        );
    }
}
