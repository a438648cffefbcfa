use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

use rustix::fs::{FileType, Mode};

use super::stack::Owner;
use super::*;
use crate::Limits;

struct World {
    directory: tempfile::TempDir,
    store: Store,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        drop(store.begin_assembly().unwrap());
        let context = directory.path().join("context");
        fs::create_dir_all(context.join("dir/sub")).unwrap();
        fs::write(context.join("file"), "file").unwrap();
        fs::write(context.join("dir/one"), "one").unwrap();
        fs::write(context.join("dir/sub/two"), "two").unwrap();
        fs::set_permissions(context.join("dir/one"), Permissions::from_mode(0o4751)).unwrap();
        symlink("../../etc/shadow", context.join("dir/link")).unwrap();
        Self { directory, store }
    }

    fn context(&self) -> PathBuf {
        self.directory.path().join("context")
    }

    /// A layer with `usr/bin`, a link `bin` to it, and a file `etc/conf` of 5:6.
    fn base(&self) -> AssembledLayer {
        let draft = self.store.draft::<PathBuf>(&[]).unwrap();
        let files = draft.files();
        fs::create_dir_all(files.join("usr/bin")).unwrap();
        fs::set_permissions(files.join("usr"), Permissions::from_mode(0o751)).unwrap();
        fs::create_dir(files.join("etc")).unwrap();
        fs::write(files.join("etc/conf"), "old").unwrap();
        symlink("usr/bin", files.join("bin")).unwrap();
        let mut draft = draft;
        draft.note_owner(b"etc/conf", &Owner::new(5, 6, 0o644));
        draft
            .finish(None, Filled::ByCopying, Some(1000))
            .unwrap()
            .unwrap()
    }

    fn fs(&self, layer: &AssembledLayer) -> PathBuf {
        self.store.layer_path(&layer.chain_id).join("fs")
    }

    /// Copies paths of the context onto the base and returns the layer.
    fn copy(
        &self,
        paths: &[&str],
        destination: &str,
        owner: Option<(u64, u64)>,
    ) -> Result<AssembledLayer> {
        let base = self.base();
        let stack = Stack::of_directory(&self.context()).unwrap();
        let copy = Copy {
            sources: paths
                .iter()
                .map(|path| CopySource::Path {
                    stack: &stack,
                    path: path.as_bytes().to_vec(),
                    name: stack::split(path.as_bytes()).1.to_vec(),
                    filter: &Everything,
                })
                .collect(),
            destination: destination.to_owned(),
            owner,
            mode: None,
        };
        let expected = copy.digest()?;
        let mut draft = self.store.draft(&[self.fs(&base)]).unwrap();
        assert_eq!(draft.copy(&copy)?, expected);
        let layer = draft.finish(Some(&base.chain_id), Filled::ByCopying, Some(1000))?;
        Ok(layer.unwrap())
    }

    /// Every path of a layer, sorted.
    fn paths(&self, layer: &AssembledLayer) -> Vec<String> {
        fn walk(directory: &Path, root: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                found.push(path.strip_prefix(root).unwrap().display().to_string());
                if path.symlink_metadata().unwrap().is_dir() {
                    walk(&path, root, found);
                }
            }
        }
        let root = self.fs(layer);
        let mut found = Vec::new();
        walk(&root, &root, &mut found);
        found.sort();
        found
    }
}

#[test]
fn files_go_where_docker_puts_them() {
    let world = World::new();
    let table: &[(&[&str], &str, &[&str])] = &[
        (&["file"], "/new", &["new"]),
        (&["file"], "/new/", &["new", "new/file"]),
        (&["file"], "/etc", &["etc", "etc/file"]),
        (&["file"], "/", &["file"]),
        (&["file"], "/bin/", &["usr", "usr/bin", "usr/bin/file"]),
        (&["file"], "/bin/tool", &["usr", "usr/bin", "usr/bin/tool"]),
        (&["file"], "/../../x", &["x"]),
        (&["file", "dir/one"], "/d/", &["d", "d/file", "d/one"]),
        (
            &["dir"],
            "/d",
            &["d", "d/link", "d/one", "d/sub", "d/sub/two"],
        ),
        (&["dir/sub"], "/bin", &["usr", "usr/bin", "usr/bin/two"]),
        (&["file"], "/etc/conf", &["etc", "etc/conf"]),
    ];
    for (sources, destination, expected) in table {
        let layer = world.copy(sources, destination, None).unwrap();
        assert_eq!(
            world.paths(&layer),
            *expected,
            "{sources:?} to {destination}"
        );
    }
    let blocked = [("file", "/etc/conf/x"), ("dir", "/etc/conf")];
    for (source, destination) in blocked {
        let error = world.copy(&[source], destination, None).unwrap_err();
        assert!(matches!(error, Error::UnsupportedFile { .. }), "{error}");
    }
}

#[test]
fn what_is_copied_keeps_its_attributes_and_what_cannot_be_on_disk_is_written_down() {
    let world = World::new();
    let layer = world.copy(&["dir"], "/usr/d", Some((7, 8))).unwrap();
    let root = world.fs(&layer);
    let mode = |path: &str| root.join(path).symlink_metadata().unwrap().mode() & 0o7777;
    assert_eq!(mode("usr"), 0o751, "as below");
    assert_eq!(mode("usr/d/one"), 0o751, "no setuid bit in the store");
    assert_eq!(
        fs::read_link(root.join("usr/d/link")).unwrap(),
        Path::new("../../etc/shadow")
    );
    let owners = fs::read_to_string(root.with_file_name("owners.jsonl")).unwrap();
    assert!(
        owners.contains(r#"{"path":"usr/d/one","uid":7,"gid":8,"mode":2537}"#),
        "{owners}"
    );
    assert!(
        !owners.contains(r#""path":"usr","#),
        "it is not new: {owners}"
    );
    assert_eq!(
        root.join("usr/d/one").symlink_metadata().unwrap().mtime(),
        1000
    );
}

#[test]
fn the_same_files_make_the_same_layer_and_the_digest_tells_others_apart() {
    let (first, second) = (World::new(), World::new());
    let left = first.copy(&["dir", "file"], "/d/", None).unwrap();
    let right = second.copy(&["dir", "file"], "/d/", None).unwrap();
    assert_eq!(left, right);
    fs::write(second.context().join("dir/sub/two"), "2").unwrap();
    let changed = second.copy(&["dir", "file"], "/d/", None).unwrap();
    assert_ne!(changed.diff_id, left.diff_id);
}

#[test]
fn what_a_sandbox_has_left_becomes_a_layer() {
    let world = World::new();
    let base = world.base();
    let draft = world.store.draft(&[world.fs(&base)]).unwrap();
    let files = draft.files();
    fs::create_dir(files.join("etc")).unwrap();
    fs::write(files.join("etc/conf"), "new").unwrap();
    fs::write(files.join("etc/other"), "new").unwrap();
    fs::write(files.join("su"), "x").unwrap();
    fs::set_permissions(files.join("su"), Permissions::from_mode(0o4755)).unwrap();
    fs::create_dir_all(files.join("closed/in")).unwrap();
    fs::set_permissions(files.join("closed"), Permissions::from_mode(0o000)).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        files.join("bin"),
        FileType::CharacterDevice,
        Mode::empty(),
        0,
    )
    .unwrap();
    let layer = draft
        .finish(Some(&base.chain_id), Filled::ByRunning, Some(1000))
        .unwrap()
        .unwrap();
    let root = world.fs(&layer);
    assert!(
        root.join("bin")
            .symlink_metadata()
            .unwrap()
            .file_type()
            .is_char_device()
    );
    assert_eq!(root.join("su").metadata().unwrap().mode() & 0o7777, 0o755);
    assert_eq!(root.join("closed").metadata().unwrap().mode() & 0o7777, 0);
    assert_eq!(root.join("etc").metadata().unwrap().mtime(), 1000);
    let owners = fs::read_to_string(root.with_file_name("owners.jsonl")).unwrap();
    assert_eq!(
        owners,
        "{\"path\":\"etc/conf\",\"uid\":5,\"gid\":6,\"mode\":420}\n{\"path\":\"su\",\"uid\":0,\"gid\":0,\"mode\":2541}\n"
    );
    let stack = Stack::of_layers(&[world.fs(&base), root]).unwrap();
    assert!(stack.node(b"bin").unwrap().is_none());
    let empty = world.store.draft(&[world.fs(&base)]).unwrap();
    assert_eq!(empty.finish(None, Filled::ByRunning, None).unwrap(), None);
    assert_eq!(fs::read_dir(world.store.tmp()).unwrap().count(), 0);
}

#[test]
fn special_files_are_refused_and_links_do_not_lead_out() {
    let world = World::new();
    let _socket =
        std::os::unix::net::UnixListener::bind(world.context().join("dir/socket")).unwrap();
    let error = world.copy(&["dir"], "/d", None).unwrap_err();
    assert!(error.to_string().contains("socket"), "{error}");
    let stack = Stack::of_directory(&world.context()).unwrap();
    assert_eq!(stack.resolve(b"dir/link", true).unwrap(), b"etc/shadow");
    assert!(stack.node(b"etc/shadow").unwrap().is_none());
}

#[test]
fn an_image_that_was_put_together_is_found_by_its_name() {
    let world = World::new();
    let base = world.base();
    let mut config = ImageConfiguration::default();
    config
        .rootfs_mut()
        .set_diff_ids(vec![base.diff_id.to_string()]);
    let platform = Platform::host();
    let name: Source = "mine".parse().unwrap();
    let layers = [base];
    let image = world
        .store
        .put_assembled(Some(&name), &platform, config.clone(), &layers)
        .unwrap();
    let found = world.store.find(&name, &platform).unwrap().unwrap();
    assert_eq!(found.digest, image.digest);
    assert_eq!(world.store.assembled_layers(&found).unwrap(), layers);
    let unnamed = world
        .store
        .put_assembled(None, &platform, config, &layers)
        .unwrap();
    let name: Source = unnamed.name.parse().unwrap();
    assert!(
        world.store.find(&name, &platform).unwrap().is_some(),
        "{}",
        unnamed.name
    );
}

#[test]
fn the_cache_forgets_steps_whose_layers_are_gone() {
    let world = World::new();
    let base = world.base();
    let step = |layer: Option<AssembledLayer>| CachedStep {
        layer,
        created: "2026-01-01T00:00:00Z".to_owned(),
    };
    let (key, other) = (Digest::of(b"key"), Digest::of(b"other"));
    assert_eq!(world.store.cached_step(&key), None);
    world
        .store
        .cache_step(&key, &step(Some(base.clone())))
        .unwrap();
    world.store.cache_step(&other, &step(None)).unwrap();
    assert_eq!(
        world.store.cached_step(&key),
        Some(step(Some(base.clone())))
    );
    fs::remove_dir_all(world.store.layer_path(&base.chain_id)).unwrap();
    assert_eq!(world.store.cached_step(&key), None);
    world.store.prune_cache().unwrap();
    assert_eq!(fs::read_dir(world.store.cache()).unwrap().count(), 1);
    assert_eq!(world.store.cached_step(&other), Some(step(None)));
}

#[test]
fn archives_are_told_from_other_files() {
    let world = World::new();
    let file = |bytes: &[u8]| {
        let path = world.directory.path().join("file");
        fs::write(&path, bytes).unwrap();
        File::open(path).unwrap()
    };
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(3);
    header.set_mode(0o640);
    header.set_uid(9);
    tar.append_data(&mut header, "a/b", b"abc".as_slice())
        .unwrap();
    let tar = tar.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let gzip = gzip.finish().unwrap();
    let unpack = |bytes: &[u8]| {
        world
            .store
            .unpack_archive(file(bytes), "x.tar", &Limits::default())
    };
    for bytes in [&tar, &gzip] {
        let archive = unpack(bytes).unwrap().unwrap();
        let stack = archive.stack().unwrap();
        let node = stack.node(b"a/b").unwrap().unwrap();
        assert_eq!((node.kind, node.mode), (NodeKind::File, 0o640));
        assert_eq!(stack.owner(b"a/b", &node).unwrap().unwrap().uid, 9);
    }
    let mut text = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    text.write_all(b"no archive").unwrap();
    for bytes in [b"text".to_vec(), Vec::new(), text.finish().unwrap()] {
        assert!(unpack(&bytes).unwrap().is_none());
    }
    assert!(unpack(b"BZh91AY").is_err());
    assert!(unpack(&gzip[..gzip.len() - 20]).is_err());
    assert_eq!(fs::read_dir(world.store.tmp()).unwrap().count(), 0);
}

#[test]
fn a_layer_that_was_made_here_is_verified_by_writing_it_again() {
    let world = World::new();
    let base = world.base();
    let copied = world
        .copy(&["file", "dir"], "/there/", Some((7, 8)))
        .unwrap();
    let mut config = ImageConfiguration::default();
    config
        .rootfs_mut()
        .set_diff_ids(vec![base.diff_id.to_string(), copied.diff_id.to_string()]);
    let platform = Platform::host();
    world
        .store
        .put_assembled(None, &platform, config, &[base, copied.clone()])
        .unwrap();
    let verify = || world.store.verify::<&str>(&[], crate::Repair::No).unwrap();
    let verified = verify();
    assert_eq!((verified.layers, &verified.damaged), (2, &Vec::new()));
    assert_eq!(verified.unverifiable, Vec::new());
    let file = world.fs(&copied).join("there/file");
    let modified = fs::metadata(&file).unwrap().modified().unwrap();
    fs::write(&file, "FILE").unwrap();
    File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_modified(modified)
        .unwrap();
    let verified = verify();
    assert_eq!(verified.damaged.len(), 1);
    assert_eq!(
        verified.damaged[0].object,
        crate::Object::Layer(copied.chain_id)
    );
    assert!(verified.damaged[0].reasons[0].contains("its files have changed"));
}

#[test]
fn a_file_of_holes_is_no_longer_than_a_layer_may_be() {
    let world = World::new();
    let base = world.base();
    let too_long = |error: Error| matches!(error, Error::LimitExceeded { .. });
    let below = [world.fs(&base)];
    let draft = world.store.draft(&below).unwrap();
    let file = File::create(draft.files().join("holes")).unwrap();
    file.set_len(1 << 40).unwrap();
    let made = draft.finish(Some(&base.chain_id), Filled::ByRunning, None);
    assert!(too_long(made.unwrap_err()));
    let file = File::create(world.context().join("holes")).unwrap();
    file.set_len(1 << 40).unwrap();
    let stack = Stack::of_directory(&world.context()).unwrap();
    let copy = Copy {
        sources: vec![CopySource::Path {
            stack: &stack,
            path: b"holes".to_vec(),
            name: b"holes".to_vec(),
            filter: &Everything,
        }],
        destination: "/".to_owned(),
        owner: None,
        mode: None,
    };
    assert!(too_long(copy.digest().unwrap_err()));
    // Names of one file are one file.
    let draft = world.store.draft(&below).unwrap();
    let file = File::create(draft.files().join("0")).unwrap();
    file.set_len(MANY_NAMES).unwrap();
    for name in 1..1000 {
        fs::hard_link(
            draft.files().join("0"),
            draft.files().join(name.to_string()),
        )
        .unwrap();
    }
    let made = draft.finish(Some(&base.chain_id), Filled::ByRunning, None);
    made.unwrap().unwrap();
}

/// A thousand times as much is more than a layer may have.
const MANY_NAMES: u64 = 100 << 20;
