use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};

use proptest::prelude::*;
use rustix::fs::{Timespec, Timestamps, XattrFlags};
use tempfile::TempDir;

use super::*;
use crate::tarball::Tarball;
use crate::unpack::Unpacker;
use crate::{Digest, Limits};

/// Unpacks a stream as a layer above others, of which nothing is needed.
fn unpack(bytes: &[u8], directory: &Path) {
    let limits = Limits::default();
    let mut unpacker = Unpacker::new(directory, &Digest::of(b"layer"), false, &limits).unwrap();
    unpacker
        .unpack(&mut Tarball::new(bytes, limits.header_bytes))
        .unwrap();
    unpacker.finish(&[]).unwrap();
}

fn write(directory: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_layer(directory, &LayerOptions::default(), &mut bytes).unwrap();
    bytes
}

/// A layer that is removed even where it keeps its owner out.
struct Layer(TempDir);

impl Layer {
    fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// An empty layer with an `fs/` to put things into.
    fn new() -> Self {
        let layer = Self::empty();
        fs::create_dir(layer.fs("")).unwrap();
        layer
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn fs(&self, path: &str) -> PathBuf {
        self.0.path().join("fs").join(path)
    }

    fn owners(&self, lines: &[&str]) {
        fs::write(self.0.path().join("owners.jsonl"), lines.join("\n")).unwrap();
    }

    fn whiteout(&self, path: &str) {
        rustix::fs::mknodat(
            rustix::fs::CWD,
            self.fs(path),
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        )
        .unwrap();
    }

    fn set(&self, path: &str, key: &str, value: &[u8]) {
        rustix::fs::setxattr(self.fs(path), key, value, XattrFlags::empty()).unwrap();
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        let parent = File::open(self.0.path()).unwrap();
        crate::tree::remove_all(parent.as_fd(), c"fs").unwrap();
    }
}

/// All that is to come back of a file.
type Shape = (String, u32, (i64, i64), Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>);

fn shapes(root: &Path) -> (BTreeMap<PathBuf, Shape>, BTreeSet<BTreeSet<PathBuf>>) {
    fn visit(
        root: &Path,
        at: &Path,
        found: &mut BTreeMap<PathBuf, Shape>,
        links: &mut BTreeMap<u64, BTreeSet<PathBuf>>,
    ) {
        let path = root.join(at);
        let metadata = fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        let (name, content) = if kind.is_dir() {
            ("directory", Vec::new())
        } else if kind.is_file() {
            ("file", fs::read(&path).unwrap())
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).unwrap();
            ("link", target.into_os_string().into_encoded_bytes())
        } else if kind.is_char_device() && metadata.rdev() == 0 {
            ("whiteout", Vec::new())
        } else {
            panic!("{path:?} is {kind:?}");
        };
        let mut xattrs = Vec::new();
        if kind.is_dir() || kind.is_file() {
            let mut names = vec![0; 4096];
            let length = rustix::fs::listxattr(&path, &mut names[..]).unwrap();
            for key in names[..length].split(|byte| *byte == 0) {
                if key.starts_with(b"user.") {
                    let mut value = vec![0; 4096];
                    let length = rustix::fs::getxattr(&path, key, &mut value[..]).unwrap();
                    xattrs.push((key.to_vec(), value[..length].to_vec()));
                }
            }
            xattrs.sort();
        }
        // A whiteout's own mode and time mean nothing.
        let (mode, time) = match name {
            "whiteout" => (0, (0, 0)),
            _ => (
                metadata.mode() & 0o7777,
                (metadata.mtime(), metadata.mtime_nsec()),
            ),
        };
        found.insert(
            at.to_owned(),
            (name.to_owned(), mode, time, content, xattrs),
        );
        if metadata.nlink() > 1 && !kind.is_dir() {
            links
                .entry(metadata.ino())
                .or_default()
                .insert(at.to_owned());
        }
        if kind.is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                visit(root, &at.join(entry.unwrap().file_name()), found, links);
            }
        }
    }
    let (mut found, mut links) = (BTreeMap::new(), BTreeMap::new());
    visit(root, Path::new(""), &mut found, &mut links);
    (found, links.into_values().collect())
}

fn entries(bytes: &[u8]) -> Vec<crate::tarball::Entry> {
    let mut tarball = Tarball::new(bytes, 1 << 20);
    let mut entries = Vec::new();
    while let Some(entry) = tarball.next_entry().unwrap() {
        entries.push(entry);
    }
    entries
}

fn names(bytes: &[u8]) -> Vec<String> {
    entries(bytes)
        .iter()
        .map(|entry| String::from_utf8_lossy(&entry.path).into_owned())
        .collect()
}

#[test]
fn what_overlayfs_marks_becomes_what_the_specification_names() {
    let layer = Layer::new();
    fs::create_dir_all(layer.fs("b/empty")).unwrap();
    fs::write(layer.fs("b/file"), "x").unwrap();
    layer.set("b", "user.overlay.opaque", b"y");
    layer.set("b", "user.overlay.origin", b"z");
    layer.whiteout("a");
    layer.whiteout("b/gone");
    symlink("file", layer.fs("b/link")).unwrap();
    let bytes = write(layer.path());
    let expected = [
        "./",
        ".wh.a",
        "b/",
        "b/.wh..wh..opq",
        "b/empty/",
        "b/file",
        "b/.wh.gone",
        "b/link",
    ];
    assert_eq!(names(&bytes), expected);
    assert!(entries(&bytes).iter().all(|entry| entry.xattrs.is_empty()));
}

#[test]
fn what_needs_root_comes_from_the_list_beside_the_files() {
    let layer = Layer::new();
    fs::create_dir_all(layer.fs("usr/bin")).unwrap();
    symlink("usr/bin", layer.fs("bin")).unwrap();
    fs::write(layer.fs("usr/bin/su"), "x").unwrap();
    fs::hard_link(layer.fs("usr/bin/su"), layer.fs("usr/bin/another")).unwrap();
    layer.whiteout("usr/null");
    layer.whiteout("usr/hidden");
    fs::write(layer.fs("usr/was-a-device"), "x").unwrap();
    layer.owners(&[
        // Through a link, as the layer named it.
        r#"{"path":"bin/su","uid":3,"gid":4,"mode":2541,"capability":"01ff"}"#,
        r#"{"path":"usr/null","uid":0,"gid":5,"mode":438,"kind":"character_device","major":1,"minor":3}"#,
        r#"{"path":"usr/pipe","uid":0,"gid":0,"mode":384,"kind":"fifo"}"#,
        r#"{"path":"usr/was-a-device","uid":9,"gid":9,"mode":384,"kind":"fifo"}"#,
        r#"{"path_hex":"ff2f61","uid":0,"gid":0,"mode":384,"kind":"fifo"}"#,
        r#"{"path":"","uid":7,"gid":7,"mode":493}"#,
    ]);
    let bytes = write(layer.path());
    let found = entries(&bytes)
        .into_iter()
        .map(|entry| {
            let path = String::from_utf8(entry.path).unwrap();
            (
                path,
                entry.kind,
                (entry.uid, entry.gid, entry.mode & 0o7000),
                entry.device,
                entry.xattrs.len(),
            )
        })
        .collect::<Vec<_>>();
    let row =
        |path: &str, kind, owner, device, xattrs| (path.to_owned(), kind, owner, device, xattrs);
    let expected = [
        row("./", Kind::Directory, (7, 7, 0), (0, 0), 0),
        row("bin", Kind::Symlink, (0, 0, 0), (0, 0), 0),
        row("usr/", Kind::Directory, (0, 0, 0), (0, 0), 0),
        row("usr/bin/", Kind::Directory, (0, 0, 0), (0, 0), 0),
        row("usr/bin/another", Kind::File, (3, 4, 0o4000), (0, 0), 1),
        row("usr/bin/su", Kind::HardLink, (3, 4, 0o4000), (0, 0), 0),
        row("usr/.wh.hidden", Kind::File, (0, 0, 0), (0, 0), 0),
        row("usr/null", Kind::CharacterDevice, (0, 5, 0), (1, 3), 0),
        row("usr/pipe", Kind::Fifo, (0, 0, 0), (0, 0), 0),
        row("usr/was-a-device", Kind::File, (0, 0, 0), (0, 0), 0),
    ];
    assert_eq!(found, expected);
}

#[test]
fn what_no_layer_can_hold_is_refused_or_named() {
    let layer = Layer::new();
    let _socket = std::os::unix::net::UnixListener::bind(layer.fs("socket")).unwrap();
    let written = write_layer(layer.path(), &LayerOptions::default(), &mut io::sink()).unwrap();
    assert_eq!(
        written.left_out,
        [(layer.fs("socket"), "a layer cannot hold a socket")]
    );
    fs::write(layer.fs("file"), "x").unwrap();
    layer.set("file", "user.overlay.metacopy", b"");
    let refused = write_layer(layer.path(), &LayerOptions::default(), &mut io::sink());
    assert!(
        matches!(&refused, Err(Error::UnwritableEntry { path, .. }) if path.ends_with("fs/file")),
        "{refused:?}"
    );
    fs::remove_file(layer.fs("file")).unwrap();
    fs::write(layer.fs(".wh.x"), "").unwrap();
    let refused = write_layer(layer.path(), &LayerOptions::default(), &mut io::sink());
    assert!(
        matches!(refused, Err(Error::UnwritableEntry { .. })),
        "{refused:?}"
    );
}

#[test]
fn no_time_is_later_than_asked_for() {
    let layer = Layer::new();
    for (name, seconds) in [("old", 5), ("new", 5_000)] {
        fs::write(layer.fs(name), "").unwrap();
        let file = File::open(layer.fs(name)).unwrap();
        set_time(&file, seconds, 7);
    }
    let options = LayerOptions { latest: Some(100) };
    let mut bytes = Vec::new();
    write_layer(layer.path(), &options, &mut bytes).unwrap();
    let times = entries(&bytes)
        .iter()
        .map(|entry| (entry.modified_seconds, entry.modified_nanoseconds))
        .collect::<Vec<_>>();
    assert_eq!(times, [(100, 0), (100, 0), (5, 7)]);
}

#[test]
fn a_tree_deeper_than_the_descriptors_is_written_and_comes_back() {
    let layer = Layer::new();
    let path = "d/".repeat(MAX_OPEN * 3);
    fs::create_dir_all(layer.fs(&path)).unwrap();
    for depth in [1, MAX_OPEN, MAX_OPEN * 2, MAX_OPEN * 3] {
        fs::write(layer.fs(&format!("{}z", "d/".repeat(depth))), "x").unwrap();
    }
    let copy = Layer::empty();
    unpack(&write(layer.path()), copy.path());
    assert_eq!(shapes(&copy.fs("")), shapes(&layer.fs("")));
}

#[test]
fn a_root_filesystem_belongs_to_root_and_has_no_setuid_files() {
    let layer = Layer::new();
    fs::write(layer.fs("su"), "x").unwrap();
    fs::set_permissions(
        layer.fs("su"),
        std::os::unix::fs::PermissionsExt::from_mode(0o4755),
    )
    .unwrap();
    layer.set("su", "user.overlay.opaque", b"y");
    let mut bytes = Vec::new();
    write_tree(&layer.fs(""), &LayerOptions::default(), &mut bytes).unwrap();
    let entry = entries(&bytes).remove(1);
    assert_eq!((entry.mode, entry.uid, entry.gid), (0o755, 0, 0));
    assert_eq!(
        entry.xattrs,
        [(b"user.overlay.opaque".to_vec(), b"y".to_vec())]
    );
}

fn set_time(file: &File, seconds: i64, nanoseconds: u32) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::futimens(file, &times).unwrap();
}

/// Something to put into a layer.
#[derive(Clone, Debug)]
enum Thing {
    File {
        content: Vec<u8>,
        mode: u32,
        time: (i64, u32),
        attribute: Option<Vec<u8>>,
    },
    Directory {
        mode: u32,
        opaque: bool,
    },
    Link(String),
    HardLink(usize),
    Whiteout,
}

fn thing() -> impl Strategy<Value = Thing> {
    let mode = || {
        prop_oneof![
            Just(0o644_u32),
            Just(0o755),
            Just(0),
            Just(0o511),
            Just(0o1777)
        ]
    };
    let time = (
        -10_i64..4_000_000_000,
        prop_oneof![Just(0_u32), 0_u32..1_000_000_000],
    );
    let attribute = proptest::option::of(prop::collection::vec(any::<u8>(), 0..30));
    prop_oneof![
        4 => (prop::collection::vec(any::<u8>(), 0..700), mode(), time, attribute).prop_map(
            |(content, mode, time, attribute)| Thing::File { content, mode: mode & 0o777, time, attribute }),
        4 => (mode(), any::<bool>()).prop_map(|(mode, opaque)| Thing::Directory { mode, opaque }),
        1 => "[a-z/.]{1,120}".prop_map(Thing::Link),
        2 => any::<usize>().prop_map(Thing::HardLink),
        1 => Just(Thing::Whiteout),
    ]
}

/// Makes a layer of some things, each in a directory and under a name that is chosen by its number.
fn make(things: &[(usize, String, Thing)]) -> Layer {
    let layer = Layer::new();
    let mut directories = vec![(String::new(), 0o755)];
    let mut files = Vec::<String>::new();
    for (place, name, thing) in things {
        let parent = &directories[place % directories.len()].0;
        let path = format!("{parent}{name}");
        if fs::symlink_metadata(layer.fs(&path)).is_ok() {
            continue;
        }
        match thing {
            Thing::File {
                content,
                mode,
                time,
                attribute,
            } => {
                fs::write(layer.fs(&path), content).unwrap();
                let file = File::open(layer.fs(&path)).unwrap();
                if let Some(attribute) = attribute {
                    layer.set(&path, "user.attribute", attribute);
                }
                rustix::fs::fchmod(&file, Mode::from_raw_mode(*mode)).unwrap();
                set_time(&file, time.0, time.1);
                files.push(path);
            }
            Thing::Directory { mode, opaque } => {
                fs::create_dir(layer.fs(&path)).unwrap();
                if *opaque {
                    layer.set(&path, "user.overlay.opaque", b"y");
                }
                directories.push((format!("{path}/"), *mode));
            }
            Thing::Link(target) => symlink(target, layer.fs(&path)).unwrap(),
            Thing::HardLink(number) => {
                if let Some(target) = number.checked_rem(files.len()).map(|number| &files[number]) {
                    fs::hard_link(layer.fs(target), layer.fs(&path)).unwrap();
                }
            }
            Thing::Whiteout => layer.whiteout(&path),
        }
    }
    for (path, mode) in directories.iter().rev() {
        let directory = File::open(layer.fs(path)).unwrap();
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(*mode)).unwrap();
        set_time(&directory, i64::from(*mode), 5);
    }
    layer
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn unpacking_what_was_written_gives_the_same_layer(
        things in prop::collection::vec((any::<usize>(), "[a-zé.]{1,40}", thing()), 0..25)
    ) {
        let things = things.into_iter().filter(|(_, name, _)| !name.trim_matches('.').is_empty() && !name.starts_with(".wh.")).collect::<Vec<_>>();
        let layer = make(&things);
        let bytes = write(layer.path());
        let copy = Layer::empty();
        unpack(&bytes, copy.path());
        prop_assert_eq!(write(copy.path()), bytes);
        if rustix::process::geteuid().is_root() {
            // Others cannot look into what has been closed.
            prop_assert_eq!(shapes(&copy.fs("")), shapes(&layer.fs("")));
        }
    }
}
