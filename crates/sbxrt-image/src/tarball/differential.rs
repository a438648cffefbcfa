//! What we see in an archive, beside what GNU tar, bsdtar (libarchive) and Python see.
//!
//! Where we accept an archive, each of them that accepts it must list the same entries in the same order: then nobody can
//! show one thing to a scanner and another to us (CVE-2025-62518, CVE-2026-33055, RUSTSEC-2026-0112). One that gives up
//! midway must have seen the same until then. What we refuse, they may see as they like.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use super::*;
use crate::unpack::tests::{directory, file, hard_link, header, pax, seal, symlink, with_data};

/// Prints names as the others do.
const PYTHON: &str = "
import sys, tarfile
try:
    for member in tarfile.open(fileobj=sys.stdin.buffer, mode='r|'):
        print(member.name, flush=True)
except tarfile.TarError as error:
    sys.exit(str(error))
";

/// The names of an archive's entries, and whether there was an error behind them.
type Listing = (Vec<String>, bool);

fn ours(archive: &[u8]) -> Listing {
    let mut tarball = Tarball::new(archive, 1 << 20);
    let mut names = Vec::new();
    loop {
        match tarball.next_entry() {
            Ok(Some(entry)) => names.push(plain(&String::from_utf8_lossy(&entry.path))),
            Ok(None) => return (names, false),
            Err(_) => return (names, true),
        }
    }
}

/// `None` where the tool is not there.
fn theirs(tool: &[&str], archive: &[u8]) -> Option<Listing> {
    let child = Command::new(tool[0])
        .args(&tool[1..])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match child {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        other => other.unwrap(),
    };
    let mut stdin = child.stdin.take().unwrap();
    // It need not read to the end.
    let _written_or_not = stdin.write_all(archive);
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let names = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(plain)
        .collect();
    Some((names, !output.status.success()))
}

fn plain(name: &str) -> String {
    name.trim_end_matches('/').to_owned()
}

const TOOLS: [(&str, &[&str]); 3] = [
    (
        "GNU tar",
        &["tar", "--list", "--absolute-names", "--file", "-"],
    ),
    ("bsdtar", &["bsdtar", "-t", "-P", "-f", "-"]),
    ("Python", &["python3", "-c", PYTHON]),
];

/// A header of a kind and size, without data.
fn bare(name: &str, kind: u8, size: u64) -> Vec<u8> {
    header(name.as_bytes(), kind, b"", 0o644, size).to_vec()
}

/// A header that is changed before it gets its checksum.
fn changed(name: &str, kind: u8, size: u64, change: impl Fn(&mut [u8; 512])) -> Vec<u8> {
    let mut block = header(name.as_bytes(), kind, b"", 0o644, size);
    change(&mut block);
    seal(&mut block);
    block.to_vec()
}

fn gnu_long(kind: u8, name: &str) -> Vec<u8> {
    let data = format!("{name}\0");
    let header = header(b"././@LongLink", kind, b"", 0, data.len() as u64);
    with_data(&header, data.as_bytes())
}

/// What GNU tar writes of a file with holes.
fn sparse(options: &[&str]) -> Option<Vec<u8>> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sparse");
    let sparse = std::fs::File::create(&path).unwrap();
    for part in 0..30 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", part * 100_000).unwrap();
    }
    let output = Command::new("tar")
        .args(["--create", "--sparse", "--file", "-", "-C"])
        .arg(directory.path())
        .args(options)
        .arg("sparse")
        .output()
        .ok()?;
    output.status.success().then_some(output.stdout)
}

fn corpus() -> BTreeMap<String, Vec<u8>> {
    let end = || vec![0; 1024];
    let inner = || [file("smuggled", "x"), end()].concat();
    let inner_size = || inner().len().to_string();
    let mut corpus = BTreeMap::new();
    let mut add = |name: &str, parts: &[Vec<u8>]| {
        let whole = [parts.concat(), file("last", "x"), end()].concat();
        corpus.insert(name.to_owned(), whole);
    };
    // TARmageddon: the size that counts for the data is the one of the extended header.
    let size = inner_size();
    add(
        "pax size larger",
        &[
            pax(&[("size", size.as_bytes())]),
            bare("a", b'0', 0),
            inner(),
        ],
    );
    add(
        "pax size smaller",
        &[
            pax(&[("size", b"0")]),
            bare("a", b'0', 1024),
            file("seen", "x"),
        ],
    );
    add(
        "pax size of a directory",
        &[pax(&[("size", b"512")]), bare("a/", b'5', 0), inner()],
    );
    add(
        "pax size of a link",
        &[pax(&[("size", b"512")]), symlink("x", "a"), inner()],
    );
    add("size of a symbolic link", &[bare("a", b'2', 512), inner()]);
    add(
        "size of a hard link",
        &[file("f", ""), bare("a", b'1', 512), inner()],
    );
    add("size of a directory", &[bare("a/", b'5', 512), inner()]);
    add("size of a device", &[bare("a", b'3', 512), inner()]);
    add("size of a FIFO", &[bare("a", b'6', 512), inner()]);
    add(
        "pax size then long name",
        &[
            pax(&[("size", size.as_bytes())]),
            gnu_long(b'L', "long"),
            bare("a", b'0', 0),
            inner(),
        ],
    );
    add(
        "long name then pax",
        &[
            gnu_long(b'L', &"n".repeat(150)),
            pax(&[("mtime", b"1")]),
            bare("a", b'0', 0),
        ],
    );
    add(
        "long name and pax path",
        &[
            gnu_long(b'L', "one"),
            pax(&[("path", b"two")]),
            bare("a", b'0', 0),
        ],
    );
    add(
        "two long names",
        &[
            gnu_long(b'L', "one"),
            gnu_long(b'L', "two"),
            bare("a", b'0', 0),
        ],
    );
    add(
        "long name",
        &[gnu_long(b'L', &"n".repeat(3000)), file("a", "x")],
    );
    add(
        "long link",
        &[gnu_long(b'K', &"n".repeat(300)), symlink("x", "a")],
    );
    add(
        "long name of no bytes",
        &[bare("l", b'L', 0), file("a", "x")],
    );
    add(
        "two extended headers",
        &[
            pax(&[("path", b"one")]),
            pax(&[("path", b"two")]),
            file("a", ""),
        ],
    );
    add(
        "path twice",
        &[pax(&[("path", b"one"), ("path", b"two")]), file("a", "")],
    );
    add("empty path", &[pax(&[("path", b"")]), file("a", "")]);
    add(
        "pax of Solaris",
        &[
            {
                let mut bytes = pax(&[("path", b"solaris")]);
                let mut block: [u8; 512] = bytes[..512].try_into().unwrap();
                block[156] = b'X';
                seal(&mut block);
                bytes[..512].copy_from_slice(&block);
                bytes
            },
            file("a", ""),
        ],
    );
    for (name, record) in [
        ("path", "13 path=evil\n"),
        ("size", "12 size=512\n"),
        ("comment", "14 comment=ok\n"),
    ] {
        let global = header(b"g", b'g', b"", 0, record.len() as u64);
        add(
            &format!("global {name}"),
            &[
                with_data(&global, record.as_bytes()),
                file("a", "x"),
                inner()[..1024].to_vec(),
            ],
        );
    }
    for (name, records) in [
        ("record too long", &b"99 path=one\n"[..]),
        ("record too short", b"3 path=one\n"),
        ("record without a key", b"8 =one1\n"),
        ("record without an end", b"12 path=one "),
        ("record length with a sign", b"+12 path=one\n"),
        ("record length with zeros", b"0000013 path=one\n"),
    ] {
        let block = header(b"p", b'x', b"", 0, records.len() as u64);
        add(name, &[with_data(&block, records), file("a", "x")]);
    }
    let binary = |size: u64| {
        move |block: &mut [u8; 512]| {
            block[124..136].fill(0);
            block[124] = 0x80;
            block[128..136].copy_from_slice(&size.to_be_bytes());
        }
    };
    let data = vec![7; 1024];
    add(
        "binary size",
        &[changed("a", b'0', 0, binary(1024)), data.clone()],
    );
    add(
        "binary size of a negative",
        &[
            changed("a", b'0', 0, |block| block[124..136].fill(0xff)),
            data.clone(),
        ],
    );
    add(
        "binary size beyond all",
        &[changed("a", b'0', 0, binary(u64::MAX)), data.clone()],
    );
    for (name, digits) in [
        ("size in spaces", &b"      2000 \0"[..]),
        ("size without an end", b"000000002000"),
        ("size with a NUL first", b"\x000000002000\0"),
        ("size with a letter", b"0000000200x\0"),
        ("size with a digit beyond octal", b"00000002800\0"),
        ("size with a sign", b"-0000002000\0"),
        ("size with more behind a space", b"2000 1000  \0"),
        ("size with more behind a NUL", b"2000\x001000  \0"),
        ("empty size", b"\0\0\0\0\0\0\0\0\0\0\0\0"),
    ] {
        let block = changed("a", b'0', 0, |block| {
            block[124..136].copy_from_slice(digits);
        });
        add(name, &[block, data.clone()]);
    }
    for kind in b"\0 17ADEIJMNPSUVWZaz@~".iter().chain(b"\xff\x01") {
        add(
            &format!("type {:?}", char::from(*kind)),
            &[bare("a", *kind, 1024), file("b", "x")],
        );
        add(
            &format!("type {:?} without data", char::from(*kind)),
            &[bare("a", *kind, 0), file("b", "x")],
        );
    }
    add(
        "directory by its name",
        &[bare("a/", b'0', 0), bare("b/", 0, 0)],
    );
    add(
        "directory by its name, with data",
        &[bare("a/", b'0', 1024), file("b", "x")],
    );
    add(
        "old directory by its name, with data",
        &[bare("a/", 0, 1024), file("b", "x")],
    );
    add(
        "ordinary",
        &[
            directory("d", 0o755),
            file("d/f", "x"),
            symlink("f", "d/l"),
            hard_link("d/f", "h"),
        ],
    );
    add(
        "name of a hundred bytes",
        &[bare(&"n".repeat(100), b'0', 0)],
    );
    add(
        "prefix",
        &[changed("a", b'0', 0, |block| {
            block[345..348].copy_from_slice(b"pre");
        })],
    );
    add(
        "prefix where GNU keeps times",
        &[changed("a", b'0', 0, |block| {
            block[257..265].copy_from_slice(b"ustar  \0");
            block[345..356].copy_from_slice(b"14000000000");
        })],
    );
    add(
        "no magic",
        &[changed("a", b'0', 0, |block| {
            block[257..265].fill(0);
            block[345..348].copy_from_slice(b"pre");
        })],
    );
    add(
        "odd magic",
        &[changed("a", b'0', 0, |block| {
            block[257..265].copy_from_slice(b"ustar\x0099");
        })],
    );
    add(
        "one block of zeros",
        &[file("a", "x"), vec![0; 512], file("b", "x")],
    );
    add(
        "two blocks of zeros",
        &[file("a", "x"), end(), file("b", "x")],
    );
    add(
        "wrong checksum",
        &[{
            let mut block = bare("a", b'0', 0);
            block[0] = b'b';
            block
        }],
    );
    add("garbage", &[file("a", "x"), vec![b'g'; 512]]);
    corpus.insert("no end".to_owned(), file("a", "x"));
    corpus.insert("empty".to_owned(), Vec::new());
    corpus.insert("zeros alone".to_owned(), vec![0; 10240]);
    corpus.insert("no padding".to_owned(), file("a", "x")[..513].to_vec());
    corpus.insert(
        "cut off".to_owned(),
        [file("a", "x"), bare("b", b'0', 9000), vec![1; 512]].concat(),
    );
    for (name, options) in [
        ("sparse gnu", &["--format=gnu"][..]),
        ("sparse oldgnu", &["--format=oldgnu"]),
        ("sparse 0.0", &["--format=pax", "--sparse-version=0.0"]),
        ("sparse 0.1", &["--format=pax", "--sparse-version=0.1"]),
        ("sparse 1.0", &["--format=pax", "--sparse-version=1.0"]),
    ] {
        if let Some(archive) = sparse(options) {
            corpus.insert(name.to_owned(), archive);
        }
    }
    corpus
}

#[test]
fn whoever_accepts_what_we_accept_sees_the_same() {
    let mut wrong = Vec::new();
    let mut accepted = 0;
    for (name, archive) in corpus() {
        let (names, refused) = ours(&archive);
        eprintln!(
            "{name}: {}",
            if refused {
                "refused".to_owned()
            } else {
                names.join(" ")
            }
        );
        if refused {
            continue;
        }
        accepted += 1;
        for (tool, command) in TOOLS {
            let Some((their_names, their_error)) = theirs(command, &archive) else {
                eprintln!("  {tool} is not there");
                continue;
            };
            let same = if their_error {
                names.starts_with(&their_names)
            } else {
                names == their_names
            };
            // Python takes the times of GNU's incremental archives for a prefix; nobody else does.
            let known = (name.as_str(), tool) == ("prefix where GNU keeps times", "Python");
            if !same && !known {
                wrong.push(format!(
                    "{name}: we see {names:?}, {tool} sees {their_names:?}, error: {their_error}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        accepted > 20,
        "{accepted}: a reader that refuses everything is no reader"
    );
}
