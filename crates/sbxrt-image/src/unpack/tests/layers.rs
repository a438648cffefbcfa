//! What a layer does to those below it, and what it does to itself.

use super::*;

#[test]
fn whiteouts_hide_what_is_below_and_nothing_else() {
    let mut place = Place::new();
    let lowest = place.layer(&[
        file("a", "1"),
        file(".wh.b", ""),
        directory("d", 0o750),
        file("d/x", "1"),
        file("e/x", "1"),
    ]);
    assert!(
        !lowest.join("b").exists(),
        "a whiteout means nothing in the lowest layer"
    );
    let upper = place.layer(&[
        file(".wh.a", ""),
        file("d/.wh..wh..opq", ""),
        file("d/y", "2"),
        file(".wh.e", ""),
        directory("e", 0o755),
        file("e/y", "2"),
        file("f", "2"),
        file(".wh.f", ""),
        file(".wh..wh.plnk/1.2", ""),
    ]);
    assert!(whiteout(&upper.join("a")));
    assert!(opaque(&upper.join("d")) && upper.join("d/y").exists());
    assert!(opaque(&upper.join("e")) && upper.join("e/y").exists());
    assert_eq!(
        fs::read_to_string(upper.join("f")).unwrap(),
        "2",
        "the entry wins"
    );
    assert!(!upper.join(".wh..wh.plnk").exists());
    assert_eq!(
        fs::metadata(upper.join("d")).unwrap().mode() & 0o7777,
        0o750,
        "as in the layer below"
    );
}

#[test]
fn whiteouts_through_links_stay_within_the_layer() {
    let mut place = Place::new();
    place.layer(&[file("x", "")]);
    let upper = place.layer(&[
        symlink("../../outside", "l"),
        file("l/.wh.canary", ""),
        file("l/.wh..wh..opq", ""),
    ]);
    place.assert_unharmed();
    assert!(whiteout(&upper.join("outside/canary")));
}

#[test]
fn an_opaque_root_is_reported_since_overlayfs_does_not_look_there() {
    let mut place = Place::new();
    assert!(!place.try_layer(&[file(".wh..wh..opq", "")]).unwrap().opaque);
    assert!(place.try_layer(&[file(".wh..wh..opq", "")]).unwrap().opaque);
}

#[test]
fn hard_links_reach_into_the_layers_below() {
    let mut place = Place::new();
    let lowest = place.layer(&[file_with_mode("d/secret", 0o000, "1"), file("hidden", "1")]);
    let middle = place.layer(&[file(".wh.hidden", "")]);
    let upper = place.layer(&[hard_link("d/secret", "link"), hard_link("link", "again")]);
    assert!(whiteout(&middle.join("hidden")));
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(upper.join("link")), inode(lowest.join("d/secret")));
    assert_eq!(inode(upper.join("again")), inode(lowest.join("d/secret")));
    let hidden = place.try_layer(&[hard_link("hidden", "x")]);
    assert!(
        matches!(hidden, Err(Error::InvalidEntry { .. })),
        "{hidden:?}"
    );
}

#[test]
fn a_file_of_a_layer_on_another_file_system_is_copied_once() {
    // Where there is no second file system, there is nothing to see.
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else {
        return;
    };
    let mut place = Place::new();
    let lowest = place.layer(&[file_with_mode("a", 0o640, "1")]);
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    if device(&lowest) == device(other.path()) {
        return;
    }
    fs::copy(lowest.join("a"), other.path().join("a")).unwrap();
    place.layers[0] = other.path().to_owned();
    let upper = place.layer(&[hard_link("a", "x"), hard_link("a", "y")]);
    let of = |name: &str| fs::metadata(upper.join(name)).unwrap();
    assert_eq!(fs::read_to_string(upper.join("x")).unwrap(), "1");
    assert_eq!((of("x").mode() & 0o7777, of("x").nlink()), (0o640, 2));
    assert_eq!(of("x").ino(), of("y").ino());
}

#[test]
fn a_later_entry_does_not_write_through_a_hard_link_to_a_layer_below() {
    let mut place = Place::new();
    let lowest = place.layer(&[file("a", "1")]);
    let upper = place.layer(&[hard_link("a", "b"), file_with_mode("b", 0o600, "2")]);
    let third = place.layer(&[hard_link("a", "c"), file("d", "3")]);
    place.layer(&[hard_link("c", "e"), file("e", "4"), file("c", "4")]);
    assert_eq!(fs::read_to_string(lowest.join("a")).unwrap(), "1");
    assert_eq!(
        fs::metadata(lowest.join("a")).unwrap().mode() & 0o7777,
        0o644
    );
    assert_eq!(fs::read_to_string(upper.join("b")).unwrap(), "2");
    assert_eq!(fs::read_to_string(third.join("c")).unwrap(), "1");
}

#[test]
fn replacing_is_as_real_layers_do_it() {
    // Alpine's coreutils replaces the link /usr/bin/env by a file.
    let mut place = Place::new();
    let layer = place.layer(&[
        symlink("/bin/busybox", "usr/bin/env"),
        file("usr/bin/env", "file"),
        directory("d", 0o555),
        file("d/x", ""),
        symlink("elsewhere", "d"),
        file("t", "1"),
        file("t", "2"),
        hard_link("t", "t"),
    ]);
    assert_eq!(
        fs::read_to_string(layer.join("usr/bin/env")).unwrap(),
        "file"
    );
    assert_eq!(
        fs::read_link(layer.join("d")).unwrap(),
        Path::new("elsewhere")
    );
    assert_eq!(fs::read_to_string(layer.join("t")).unwrap(), "2");
}
