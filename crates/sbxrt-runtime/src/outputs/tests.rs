use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use nix::fcntl::{OpenHow, ResolveFlag, openat2};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// SHA-256 of "hello\n".
const HELLO: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

struct World {
    /// What stands for the container's mounts.
    tree: TempDir,
    host: TempDir,
}

impl World {
    fn new() -> Self {
        let [tree, host] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        fs::create_dir(tree.path().join("out")).unwrap();
        Self { tree, host }
    }

    fn inside(&self, path: &str) -> PathBuf {
        self.tree.path().join(path)
    }

    /// Collects `/out`, and copies it to `copy`.
    fn collect(&self, limits: OutputLimits, overwrite: bool) -> Vec<OutputFile> {
        self.collect_path("out", limits, overwrite)
    }

    fn collect_path(&self, path: &str, limits: OutputLimits, overwrite: bool) -> Vec<OutputFile> {
        let outputs = Outputs {
            paths: vec![OutputPath {
                path: path.into(),
                copy_to: Some(self.host.path().join("copy")),
            }],
            limits,
            overwrite,
        };
        let destinations = outputs.open_destinations().unwrap();
        let tree = File::open(self.tree.path()).unwrap();
        outputs.collect(tree.as_fd(), Path::new("/"), &destinations)
    }

    fn copy(&self, path: &str) -> PathBuf {
        self.host.path().join("copy").join(path)
    }
}

/// `PATH TYPE SIZE [-> TARGET] [refused: REASON]`, a line for each.
fn listing(files: &[OutputFile]) -> String {
    let line = |file: &OutputFile| {
        let kind = serde_json::to_value(file.kind).unwrap();
        let mut line = format!("{:?} {} {}", file.path, kind.as_str().unwrap(), file.size);
        if let Some(target) = &file.target {
            write!(line, " -> {target:?}").unwrap();
        }
        if let Some(reason) = &file.refused {
            write!(line, " refused: {reason}").unwrap();
        }
        line + "\n"
    };
    files.iter().map(line).collect()
}

#[test]
fn everything_is_told_by_its_type_and_only_what_is_harmless_is_taken() {
    let world = World::new();
    fs::write(world.inside("out/file"), "hello\n").unwrap();
    fs::hard_link(world.inside("out/file"), world.inside("out/file again")).unwrap();
    fs::create_dir(world.inside("out/nested")).unwrap();
    fs::write(world.inside("out/nested/empty"), "").unwrap();
    for (name, target) in [
        ("absolute", "/etc/passwd"),
        ("beside", "file"),
        ("dangling", "nested/nothing"),
        ("nested/up", "../file"),
        ("nested/up twice", "../../secret"),
        ("through a name", "nested/../../secret"),
    ] {
        symlink(target, world.inside("out").join(name)).unwrap();
    }
    nix::unistd::mkfifo(&world.inside("out/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(world.inside("out/socket")).unwrap();
    let files = world.collect(OutputLimits::default(), false);
    insta::assert_snapshot!(listing(&files), @r#"
    "/out" directory 0
    "/out/absolute" symlink 0 -> "/etc/passwd" refused: the link leads out of what is collected
    "/out/beside" symlink 0 -> "file"
    "/out/dangling" symlink 0 -> "nested/nothing"
    "/out/fifo" fifo 0 refused: neither a file nor a directory nor a link
    "/out/file" file 6
    "/out/file again" file 6
    "/out/nested" directory 0
    "/out/nested/empty" file 0
    "/out/nested/up" symlink 0 -> "../file"
    "/out/nested/up twice" symlink 0 -> "../../secret" refused: the link leads out of what is collected
    "/out/socket" socket 0 refused: neither a file nor a directory nor a link
    "/out/through a name" symlink 0 -> "nested/../../secret" refused: the link leads out of what is collected
    "#);
    let hashes: Vec<&str> = files.iter().filter_map(|it| it.sha256.as_deref()).collect();
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(hashes, [HELLO, HELLO, empty]);
    for file in &files {
        let copied = file
            .copied_to
            .as_ref()
            .is_some_and(|it| it.symlink_metadata().is_ok());
        assert_eq!(copied, file.refused.is_none(), "{file:?}");
    }
    assert_eq!(fs::read(world.copy("nested/up")).unwrap(), b"hello\n");
    assert_eq!(fs::read_dir(world.copy("")).unwrap().count(), 5);
}

#[test]
fn devices_and_what_does_not_exist_are_told_and_not_opened() {
    let outputs = Outputs {
        paths: ["/null", "/nothing/there", "/null/x"]
            .map(|path| OutputPath {
                path: path.into(),
                copy_to: None,
            })
            .into(),
        ..Outputs::default()
    };
    let dev = File::open("/dev").unwrap();
    let files = outputs.collect(dev.as_fd(), Path::new("/"), &[]);
    insta::assert_snapshot!(listing(&files), @r#"
    "/null" character_device 0 refused: neither a file nor a directory nor a link
    "/nothing/there" missing 0 refused: ENOENT: No such file or directory
    "/null/x" missing 0 refused: ENOTDIR: Not a directory
    "#);
}

#[test]
fn the_path_itself_resolves_inside_and_its_last_link_is_not_followed() {
    let world = World::new();
    fs::write(world.inside("out/file"), "hello\n").unwrap();
    symlink("/out", world.inside("here")).unwrap();
    symlink("../../../../out/file", world.inside("link")).unwrap();
    let through = world.collect_path("/here/file", OutputLimits::default(), false);
    assert_eq!(through[0].sha256.as_deref(), Some(HELLO));
    let link = world.collect_path("/link", OutputLimits::default(), true);
    assert_eq!(link[0].kind, FileKind::Symlink);
    assert!(link[0].refused.is_some() && link[0].copied_to.is_none());
}

#[test]
fn holes_count_and_are_copied_as_holes() {
    let world = World::new();
    let sparse = File::create(world.inside("out/sparse")).unwrap();
    sparse.write_all_at(b"x", 3 << 20).unwrap();
    sparse.set_len(8 << 20).unwrap();
    let bomb = File::create(world.inside("out/bomb")).unwrap();
    // Every file system goes as far.
    bomb.set_len(1 << 40).unwrap();
    let limits = OutputLimits {
        bytes: 8 << 20,
        ..OutputLimits::default()
    };
    let files = world.collect(limits, false);
    insta::assert_snapshot!(listing(&files), @r#"
    "/out" directory 0
    "/out/bomb" file 1099511627776 refused: 1099511627776 bytes (0 of them stored) are more than the 8388608 that may still be collected
    "/out/sparse" file 8388608
    "#);
    let mut expected = vec![0; 8 << 20];
    expected[3 << 20] = b'x';
    let copy = File::open(world.copy("sparse")).unwrap();
    assert!(fs::read(world.copy("sparse")).unwrap() == expected);
    assert!(copy.metadata().unwrap().blocks() * 512 < 8 << 20);
    let hash = hexadecimal(&Sha256::digest(&expected));
    assert_eq!(files[2].sha256.as_deref(), Some(hash.as_str()));
}

#[test]
fn numbers_of_entries_and_depth_are_bounded() {
    let world = World::new();
    let mut deep = world.inside("out/a");
    for _ in 0..70 {
        fs::create_dir(&deep).unwrap();
        deep.push("d");
    }
    for name in 0..9 {
        fs::write(world.inside(&format!("out/{name}")), "").unwrap();
    }
    let deepest = world.collect(OutputLimits::default(), false);
    let refused: Vec<&OutputFile> = deepest.iter().filter(|it| it.refused.is_some()).collect();
    assert_eq!(refused.len(), 1);
    assert!(
        refused[0].path.components().count() == 2 + DEPTH_LIMIT,
        "{refused:?}"
    );
    for entries in [1, 5, 12] {
        let limits = OutputLimits {
            entries,
            ..OutputLimits::default()
        };
        let files = world.collect(limits, true);
        // One more tells that there are others.
        assert!(files.len() <= entries + 1, "{entries}: {}", listing(&files));
        assert!(files.iter().any(|it| it.refused.is_some()));
    }
}

#[test]
fn what_exists_stays_unless_it_is_to_be_replaced() {
    let world = World::new();
    fs::write(world.inside("out/file"), "hello\n").unwrap();
    fs::create_dir(world.copy("")).unwrap();
    let precious = world.host.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    symlink(&precious, world.copy("file")).unwrap();
    let outputs = Outputs {
        paths: vec![OutputPath {
            path: "out".into(),
            copy_to: Some(world.copy("")),
        }],
        ..Outputs::default()
    };
    let failure = outputs.open_destinations().unwrap_err();
    assert_eq!(failure.errno, Some(libc::EEXIST));

    let files = world.collect(OutputLimits::default(), true);
    assert!(
        files.iter().all(|it| it.refused.is_none()),
        "{}",
        listing(&files)
    );
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    assert!(world.copy("file").symlink_metadata().unwrap().is_file());
    assert_eq!(fs::read_dir(world.copy("")).unwrap().count(), 1);

    // A link in the place of a directory is never followed.
    fs::remove_dir_all(world.copy("")).unwrap();
    symlink(world.host.path(), world.host.path().join("copy")).unwrap();
    let files = world.collect(OutputLimits::default(), true);
    let refused: Vec<&str> = files
        .iter()
        .filter_map(|it| it.refused.as_deref())
        .collect();
    let copy = world.host.path().join("copy");
    let expected = format!("{}: ENOTDIR: Not a directory", copy.display());
    assert_eq!(refused, [expected]);
}

#[test]
fn a_copy_belongs_to_its_owner_and_has_no_set_user_id_bit() {
    let world = World::new();
    for (name, mode) in [("setuid", 0o6755), ("read-only", 0o400), ("sticky", 0o1644)] {
        let path = world.inside("out").join(name);
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let files = world.collect(OutputLimits::default(), false);
    let modes: Vec<u32> = files[1..].iter().map(|file| file.mode).collect();
    assert_eq!(modes, [0o400, 0o6755, 0o1644]);
    let copied = |name| fs::metadata(world.copy(name)).unwrap().mode() & 0o7700;
    assert_eq!(
        ["read-only", "setuid", "sticky"].map(copied),
        [0o600, 0o700, 0o600]
    );
}

#[test]
fn a_failed_copy_leaves_no_part_of_it() {
    let world = World::new();
    for overwrite in [false, true] {
        let directory = File::open(world.host.path()).unwrap();
        let place = Place {
            directory: directory.as_fd(),
            name: "part".into(),
            path: "part".into(),
        };
        let mut copy = Copy::create(place, 0o644, overwrite).unwrap();
        copy.write_at(b"half", 0).unwrap();
        drop(copy);
        assert_eq!(fs::read_dir(world.host.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_refused() {
    let world = World::new();
    let path = world.inside("out/file");
    let changes: [fn(&Path); 3] = [
        |path| fs::write(path, "hullo\n").unwrap(),
        |path| fs::write(path, "").unwrap(),
        |path| fs::write(path, "hello\nand more\n").unwrap(),
    ];
    for change in changes {
        fs::write(&path, "hello\n").unwrap();
        // So that the clock of the file system has certainly moved on.
        let before = std::time::SystemTime::now() - std::time::Duration::from_secs(9);
        File::open(&path).unwrap().set_modified(before).unwrap();
        let handle = OwnedFd::from(File::open(&path).unwrap());
        let found = look(&handle).unwrap();
        change(&path);
        let outputs = Outputs::default();
        let directory = File::open(world.host.path()).unwrap();
        let place = Place {
            directory: directory.as_fd(),
            name: "copy".into(),
            path: "copy".into(),
        };
        let result = Walk::new(&outputs).file(&handle, &found, Some(place));
        assert_eq!(result, Err(CHANGED.to_owned()));
        assert_eq!(fs::read_dir(world.host.path()).unwrap().count(), 0);
    }
}

#[test]
fn names_that_are_not_text_survive_the_way_to_the_caller() {
    let world = World::new();
    let name = OsString::from_vec(b"\xff\n\"".to_vec());
    fs::write(world.inside("out").join(&name), "").unwrap();
    let files = world.collect(OutputLimits::default(), false);
    assert_eq!(files[1].path, Path::new("/out").join(&name));
    let document = serde_json::to_string(&files).unwrap();
    assert_eq!(
        serde_json::from_str::<Vec<OutputFile>>(&document).unwrap(),
        files
    );
    assert!(world.host.path().join("copy").join(&name).exists());
}

#[test]
fn what_can_never_be_collected_is_refused_before_the_program_runs() {
    for path in [
        "/",
        "",
        "../x",
        "/a/../b",
        "/proc/self/environ",
        "/dev/shm/x",
        "/sys",
    ] {
        let outputs = Outputs {
            paths: vec![OutputPath {
                path: path.into(),
                copy_to: None,
            }],
            ..Outputs::default()
        };
        assert!(outputs.open_destinations().is_err(), "{path:?}");
    }
}

#[test]
fn one_place_is_no_place_for_two_copies() {
    let host = tempfile::tempdir().unwrap();
    fs::create_dir(host.path().join("a")).unwrap();
    symlink("a", host.path().join("link")).unwrap();
    let refused = |one: &str, other: &str| {
        let paths = [one, other].map(|copy| OutputPath {
            path: "/out".into(),
            copy_to: Some(host.path().join(copy)),
        });
        let outputs = Outputs {
            paths: paths.into(),
            ..Outputs::default()
        };
        outputs.open_destinations().is_err()
    };
    assert!(refused("a/x", "a/x") && refused("a/x", "a/../a/x") && refused("a/x", "link/x"));
    assert!(!refused("a/x", "a/y") && !refused("a/x", "x"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// The kernel is the judge: a walk from the top along the copy's links never leaves it.
    #[test]
    fn no_copied_link_leads_out(links in prop::collection::vec(
        (prop::sample::select(vec!["", "a", "a/b"]), prop::collection::vec(
            prop::sample::select(vec!["..", ".", "a", "b", "l0", "l1", "l2", "l3"]), 1..6)), 1..4,
    )) {
        let world = World::new();
        fs::create_dir_all(world.inside("out/a/b")).unwrap();
        for (index, (directory, parts)) in links.iter().enumerate() {
            let link = world.inside("out").join(directory).join(format!("l{index}"));
            symlink(parts.join("/"), link).unwrap();
        }
        let files = world.collect(OutputLimits::default(), false);
        let top = File::open(world.copy("")).unwrap();
        for file in files.iter().filter(|it| it.kind == FileKind::Symlink && it.refused.is_none()) {
            let how = OpenHow::new().flags(OFlag::O_PATH).resolve(ResolveFlag::RESOLVE_BENEATH);
            let path = file.path.strip_prefix("/out").unwrap();
            prop_assert_ne!(openat2(&top, path, how).err(), Some(nix::errno::Errno::EXDEV), "{}", listing(&files));
        }
    }
}
