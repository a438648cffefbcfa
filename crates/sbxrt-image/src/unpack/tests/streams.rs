//! Tar streams as tools write them, as attackers do, and how they come again.

use super::*;

#[test]
fn long_names_and_sparse_files_are_read_as_tar_writes_them() {
    let mut place = Place::new();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let mut sparse = header(b"sparse", b'S', b"", 0o644, 4);
    sparse[257..265].copy_from_slice(b"ustar  \0");
    sparse[386..398].copy_from_slice(b"00000010000\0");
    sparse[398..410].copy_from_slice(b"00000000004\0");
    sparse[483..495].copy_from_slice(b"00000020000\0");
    seal(&mut sparse);
    let mut map = b"1\n4096\n4\n".to_vec();
    map.resize(512, 0);
    map.extend(b"data");
    let layer = place.layer(&[
        with_data(
            &header(b"././@LongLink", b'L', b"", 0, long.len() as u64 + 1),
            format!("{long}\0").as_bytes(),
        ),
        file("short", "x"),
        pax(&[("path", b"from/pax"), ("mtime", b"-1.25"), ("size", b"3")]),
        with_data(&header(b"short", b'0', b"", 0o644, 0), b"abc"),
        with_data(&sparse, b"data"),
        pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse1"),
            ("GNU.sparse.realsize", b"8192"),
        ]),
        with_data(
            &header(
                b"GNUSparseFile.1/sparse1",
                b'0',
                b"",
                0o644,
                map.len() as u64,
            ),
            &map,
        ),
    ]);
    assert_eq!(fs::read_to_string(layer.join(long)).unwrap(), "x");
    assert_eq!(fs::read_to_string(layer.join("from/pax")).unwrap(), "abc");
    let metadata = fs::metadata(layer.join("from/pax")).unwrap();
    assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (-2, 750_000_000));
    for name in ["sparse", "sparse1"] {
        let content = fs::read(layer.join(name)).unwrap();
        assert_eq!(
            (content.len(), &content[4096..4100]),
            (8192, b"data".as_slice()),
            "{name}"
        );
        assert!(
            content[..4096]
                .iter()
                .chain(&content[4100..])
                .all(|byte| *byte == 0),
            "{name}"
        );
    }
}

/// What readers in common use take for different entries (CVE-2025-62518, CVE-2026-33055).
#[test]
fn streams_that_readers_disagree_about_are_refused() {
    let mut wrong_sum = header(b"x", b'0', b"", 0o644, 0);
    wrong_sum[0] = b'y';
    let global = {
        let mut bytes = pax(&[("path", b"evil")]);
        let mut block: [u8; 512] = bytes[..512].try_into().unwrap();
        block[156] = b'g';
        seal(&mut block);
        bytes[..512].copy_from_slice(&block);
        bytes
    };
    let table: [(&str, Vec<Vec<u8>>); 12] = [
        (
            "directory with data",
            vec![with_data(&header(b"d", b'5', b"", 0o755, 512), &[0; 512])],
        ),
        (
            "link with data",
            vec![with_data(&header(b"l", b'2', b"x", 0o755, 512), &[0; 512])],
        ),
        (
            "two extended headers",
            vec![
                pax(&[("path", b"a")]),
                pax(&[("path", b"b")]),
                file("x", ""),
            ],
        ),
        (
            "two names",
            vec![
                with_data(&header(b"L", b'L', b"", 0, 2), b"a\0"),
                pax(&[("path", b"b")]),
                file("x", ""),
            ],
        ),
        (
            "size given twice",
            vec![pax(&[("size", b"0"), ("size", b"512")]), file("x", "")],
        ),
        ("global name", vec![global, file("x", "")]),
        ("wrong checksum", vec![wrong_sum.to_vec()]),
        ("entry after the end", vec![vec![0; 512], file("x", "")]),
        (
            "cut off in a header",
            vec![header(b"x", b'0', b"", 0, 0)[..100].to_vec()],
        ),
        (
            "cut off in a file",
            vec![header(b"x", b'0', b"", 0, 2000).to_vec(), vec![0; 512]],
        ),
        ("extended header at the end", vec![pax(&[("path", b"a")])]),
        ("unknown type", vec![header(b"x", b'V', b"", 0, 0).to_vec()]),
    ];
    for (name, entries) in table {
        let result = Place::new().try_layer(&entries);
        assert!(
            matches!(result, Err(Error::InvalidLayer { .. })),
            "{name}: {result:?}"
        );
    }
}

#[test]
fn bombs_hit_the_limit_that_is_theirs() {
    let mut huge = header(b"sparse", b'S', b"", 0o644, 0);
    huge[483..495].copy_from_slice(&[
        0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    ]);
    seal(&mut huge);
    let limits = Limits {
        entries: 3,
        remembered_bytes: 500,
        ..Limits::default()
    };
    let table = [
        (
            "header_bytes",
            vec![header(b"pax", b'x', b"", 0, 1 << 30).to_vec()],
        ),
        ("layer_bytes", vec![huge.to_vec()]),
        (
            "entries",
            ["a", "b", "c", "d"].map(|name| file(name, "")).to_vec(),
        ),
        // Directories that nobody lists.
        ("entries", vec![file("a/b/c/d/e", "")]),
        (
            "remembered_bytes",
            vec![
                pax(&[("path", format!("{0}/{0}/f", "n".repeat(250)).as_bytes())]),
                file("x", ""),
            ],
        ),
    ];
    for (expected, entries) in table {
        let result = Place::new().try_layer_with(&entries, &limits);
        assert!(
            matches!(result, Err(Error::LimitExceeded { limit, .. }) if limit == expected),
            "{expected}: {result:?}"
        );
    }
}

#[test]
fn an_archive_may_end_without_filling_its_last_block() {
    let mut place = Place::new();
    let whole = file("f", "data");
    let layer = place.layer(&[whole[..512 + 4].to_vec()]);
    assert_eq!(fs::read_to_string(layer.join("f")).unwrap(), "data");
    let cut = place.try_layer(&[whole[..512 + 3].to_vec()]);
    assert!(matches!(cut, Err(Error::InvalidLayer { .. })), "{cut:?}");
}

#[test]
fn a_path_of_two_thousand_directories_unpacks() {
    let mut place = Place::new();
    let path = "d/".repeat(2000) + "f";
    let layer = place.layer(&[pax(&[("path", path.as_bytes())]), file("x", "deep")]);
    assert_eq!(fs::read_to_string(layer.join(path)).unwrap(), "deep");
}

#[test]
fn a_stream_can_be_had_again_unless_an_entry_replaces_the_file_of_another() {
    let rows: [(&str, Vec<Vec<u8>>, bool); 10] = [
        (
            "files",
            vec![directory("d", 0o500), file("d/f", "x"), file("e", "")],
            true,
        ),
        ("closed", vec![file_with_mode("f", 0, "secret")], true),
        ("replaced", vec![file("f", "old"), file("f", "new")], false),
        (
            "replaced by a link",
            vec![file("f", "old"), symlink("x", "f")],
            false,
        ),
        (
            "empty and replaced",
            vec![file("f", ""), file("f", "new")],
            true,
        ),
        (
            "in a replaced directory",
            vec![file("d/f", "old"), file("d", "new")],
            false,
        ),
        (
            "through a link",
            vec![directory("a", 0o755), symlink("a", "b"), file("b/f", "x")],
            true,
        ),
        (
            "through a replaced link",
            vec![
                directory("a", 0o755),
                symlink("a", "b"),
                file("b/f", "x"),
                directory("b", 0o755),
            ],
            false,
        ),
        (
            "other link replaced",
            vec![
                file("f", "x"),
                symlink("a", "b"),
                symlink("c", "b"),
                hard_link("f", "g"),
            ],
            true,
        ),
        (
            "data that is not on disk, and what follows the end",
            vec![file(".wh..wh.plnk/x", "gone"), vec![0; 1024], vec![7; 3000]],
            true,
        ),
    ];
    for (name, entries, expected) in rows {
        let mut place = Place::new();
        place.layer(&entries);
        assert_eq!(place.replayed.is_some(), expected, "{name}");
    }
}
