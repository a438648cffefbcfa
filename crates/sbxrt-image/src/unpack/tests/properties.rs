//! What holds for any stream and any layers.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn component() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        Just("a"),
        Just("b"),
        Just("c"),
        Just(".."),
        Just("."),
        Just(""),
        Just("outside"),
        Just("canary"),
        Just(".wh.a"),
        Just(".wh.canary"),
        Just(".wh..wh..opq")
    ]
}

fn path() -> impl Strategy<Value = String> {
    (any::<bool>(), prop::collection::vec(component(), 1..5)).prop_map(|(absolute, parts)| {
        format!("{}{}", if absolute { "/" } else { "" }, parts.join("/"))
    })
}

fn entry() -> impl Strategy<Value = Vec<u8>> {
    let mode = prop_oneof![Just(0o755), Just(0o777), Just(0), Just(0o4711)];
    prop_oneof![
        (path(), mode.clone()).prop_map(|(path, mode)| directory(&path, mode)),
        (path(), mode).prop_map(|(path, mode)| file_with_mode(&path, mode, "harm")),
        (path(), path()).prop_map(|(target, path)| symlink(&target, &path)),
        (path(), path()).prop_map(|(target, path)| hard_link(&target, &path)),
        path().prop_map(|path| header(path.as_bytes(), b'3', b"", 0o666, 0).to_vec()),
    ]
}

#[derive(Clone, Debug)]
enum Change {
    File(String, u8),
    Directory(String),
    Whiteout(String),
    Opaque(String),
}

impl Change {
    fn entry(&self) -> Vec<u8> {
        match self {
            Self::File(path, content) => file(path, &content.to_string()),
            Self::Directory(path) => directory(path, 0o755),
            Self::Whiteout(path) => {
                let (parent, name) = path
                    .rsplit_once('/')
                    .map_or(("", path.as_str()), |(parent, name)| (parent, name));
                file(&format!("{parent}/.wh.{name}"), "")
            }
            Self::Opaque(path) => file(&format!("{path}/.wh..wh..opq"), ""),
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    let path = || {
        prop::collection::vec(prop_oneof![Just("a"), Just("b"), Just("c")], 1..4)
            .prop_map(|parts| parts.join("/"))
    };
    prop_oneof![
        4 => (path(), any::<u8>()).prop_map(|(path, content)| Change::File(path, content)),
        2 => path().prop_map(Change::Directory),
        2 => path().prop_map(Change::Whiteout),
        1 => path().prop_map(Change::Opaque),
    ]
}

/// A tree: files with their content, directories without.
type Model = BTreeMap<String, Option<u8>>;

fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(index, _)| &path[..index])
}

fn is_within(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// Applies a layer as the specification says it in words; `None` where the layer contradicts itself.
fn apply(model: &mut Model, layer: &[Change]) -> Option<()> {
    let mut own = Model::new();
    let mut hidden = BTreeSet::new();
    let mut emptied = BTreeSet::new();
    for change in layer {
        let (Change::File(path, _)
        | Change::Directory(path)
        | Change::Whiteout(path)
        | Change::Opaque(path)) = change;
        for parent in ancestors(path) {
            if own.insert(parent.to_owned(), None).flatten().is_some() {
                return None;
            }
        }
        match change {
            Change::File(path, content) => {
                own.retain(|other, _| !is_within(other, path));
                own.insert(path.clone(), Some(*content));
                hidden.insert(path.clone());
            }
            Change::Directory(path) => {
                own.insert(path.clone(), None);
            }
            Change::Whiteout(path) => {
                hidden.insert(path.clone());
            }
            Change::Opaque(path) => {
                if own.insert(path.clone(), None).flatten().is_some() {
                    return None;
                }
                emptied.insert(path.clone());
            }
        }
    }
    model.retain(|path, _| {
        !hidden
            .iter()
            .any(|hidden| path == hidden || is_within(path, hidden))
            && !emptied.iter().any(|emptied| is_within(path, emptied))
    });
    for (path, content) in own {
        if content.is_none() && model.get(&path).is_some_and(Option::is_some) {
            model.remove(&path);
        }
        model.insert(path, content);
    }
    Some(())
}

/// Reads a stack of layers as overlayfs shows it.
fn merged(layers: &[PathBuf]) -> Model {
    let mut model = Model::new();
    for layer in layers {
        let mut own = Vec::new();
        read_tree(layer, "", &mut own);
        for (path, metadata, is_opaque) in &own {
            let hides = !metadata.is_dir();
            model.retain(|other, content| {
                let replaced = other == path && (hides || content.is_some());
                let covered = is_within(other, path) && (hides || *is_opaque);
                !replaced && !covered
            });
        }
        for (path, metadata, _) in own {
            if metadata.is_dir() {
                model.insert(path, None);
            } else if metadata.is_file() {
                let content = fs::read_to_string(layer.join(&path))
                    .unwrap()
                    .parse()
                    .unwrap();
                model.insert(path, Some(content));
            }
        }
    }
    model
}

fn read_tree(root: &Path, at: &str, found: &mut Vec<(String, fs::Metadata, bool)>) {
    for entry in fs::read_dir(root.join(at)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{at}/{}", entry.file_name().to_str().unwrap())
            .trim_start_matches('/')
            .to_owned();
        let metadata = entry.metadata().unwrap();
        let is_directory = metadata.is_dir();
        found.push((
            path.clone(),
            metadata,
            is_directory && opaque(&entry.path()),
        ));
        if is_directory {
            read_tree(root, &path, found);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn no_stream_changes_anything_outside(lower in prop::collection::vec(entry(), 0..4), upper in prop::collection::vec(entry(), 0..10)) {
        let mut place = Place::new();
        if place.try_layer(&lower).is_err() {
            place = Place::new();
        }
        let _refused_or_not = place.try_layer(&upper);
        place.assert_unharmed();
    }

    #[test]
    fn layers_make_the_tree_that_the_specification_describes(layers in prop::collection::vec(prop::collection::vec(change(), 0..8), 1..4)) {
        let mut place = Place::new();
        let mut model = Model::new();
        for layer in &layers {
            let entries = layer.iter().map(Change::entry).collect::<Vec<_>>();
            let expected = apply(&mut model, layer);
            // The lowest layer leaves whiteouts out, and so does not notice where they contradict its files.
            let unpacked = place.try_layer(&entries);
            prop_assume!(expected.is_some());
            prop_assert!(unpacked.is_ok(), "{unpacked:?}");
        }
        // Directories that only a whiteout mentions may be left out of the lowest layer.
        let found = merged(&place.layers);
        let lowest_only = |path: &String| layers[0].iter().any(|change| matches!(change, Change::Whiteout(other) | Change::Opaque(other) if path == other || is_within(other, path)));
        for (path, content) in &model {
            if content.is_some() || !lowest_only(path) {
                prop_assert_eq!(found.get(path), Some(content), "{}", path);
            }
        }
        for (path, content) in &found {
            prop_assert_eq!(model.get(path), Some(content), "{}", path);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let mut place = Place::new();
        let _refused_or_not = place.try_layer(&[bytes]);
        place.assert_unharmed();
    }
}
