//! What umoci makes of an image, sbxrt makes: types, modes, sizes, contents, link targets, hard links, times to the
//! nanosecond and extended attributes, of images that a dozen tools and formats have had a hand in.
//!
//! What differs, and why:
//! - Owners. Nobody but root can give files away; both tools keep them beside.
//! - Setuid bits, and setgid bits of files. umoci sets them for whoever unpacked; sbxrt writes them to `owners.jsonl`,
//!   so that nothing in a store is ever setuid.
//! - Devices and FIFOs. umoci makes devices that it may not make empty files; sbxrt makes neither and
//!   writes both to `owners.jsonl`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use sbxrt_tests::{Fixtures, Need, Sbxrt, for_each_identity, registry, require};
use serde_json::Value;

type Tree = BTreeMap<String, Value>;

/// Python is everywhere where umoci is, and no static binary of ours needs to be built for this.
const LISTER: &str = include_str!("tree.py");

#[test]
fn what_umoci_makes_of_an_image_sbxrt_makes() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    if !require(Need::Overlay) {
        return;
    }
    let own = [
        "gnu",
        "pax",
        "bsdtar",
        "python",
        "layers",
        "odd-names",
        "buildah",
    ];
    // What sbxrt reads, and the image of umoci's own kind that it was converted from.
    let mut images = own
        .iter()
        .map(|tag| {
            (
                fixtures.layout("fidelity", tag),
                fixtures.layout("fidelity", tag),
            )
        })
        .collect::<Vec<_>>();
    // umoci knows none of these ways to write a hole.
    for (tag, same) in [
        ("gnu-sparse", "gnu"),
        ("oldgnu-sparse", "gnu"),
        ("pax-0.0", "pax"),
        ("pax-0.1", "pax"),
    ] {
        images.push((
            fixtures.layout("fidelity", tag),
            fixtures.layout("fidelity", same),
        ));
    }
    let busybox = fixtures.layout("busybox", "latest");
    for source in [
        busybox.clone(),
        fixtures.layout("busybox", "zstd"),
        fixtures.layout("busybox", "plain"),
        fixtures.oci_archive(),
        fixtures.docker_archive(),
    ] {
        images.push((source, busybox.clone()));
    }
    if let Some(registry) = registry() {
        images.push((format!("{registry}/busybox:docker"), busybox.clone()));
    }
    for_each_identity(|sbxrt| {
        let mut differences = Vec::new();
        for (index, (source, original)) in images.iter().enumerate() {
            differences.extend(compare(sbxrt, index, source, original));
        }
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    });
}

#[test]
fn what_umoci_makes_of_debian_sbxrt_makes() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    if !require(Need::Overlay) {
        return;
    }
    // Ten thousand files by mmdebstrap.
    let python = fixtures.layout("python", "latest");
    for_each_identity(|sbxrt| {
        // One user is enough for so many, and root the least of all.
        if sbxrt.identity().name() == "sbxrt-test" {
            let differences = compare(sbxrt, 0, &python, &python);
            assert!(differences.is_empty(), "{}", differences.join("\n"));
        }
    });
}

fn compare(sbxrt: &Sbxrt, index: usize, source: &str, original: &str) -> Vec<String> {
    let mut pull = sbxrt.command(["pull", source]);
    pull = pull.deadline(std::time::Duration::from_secs(60));
    pull.output().success();
    let layers = layers(sbxrt, source);
    let scratch = sbxrt.scratch(&format!("umoci-{index}"));
    let bundle = scratch.join("bundle");
    let image = original.strip_prefix("oci:").unwrap();
    run(
        sbxrt,
        &[
            "umoci",
            "unpack",
            "--rootless",
            "--image",
            image,
            &bundle.display().to_string(),
        ],
    );
    let mut arguments = vec!["layers".to_owned()];
    arguments.extend(
        layers
            .iter()
            .map(|layer| layer.join("fs").display().to_string()),
    );
    let ours = list(sbxrt, &arguments);
    let theirs = list(
        sbxrt,
        &[
            "tree".to_owned(),
            bundle.join("rootfs").display().to_string(),
        ],
    );
    // Some directories of umoci's are closed to whoever made them.
    run(
        sbxrt,
        &[
            "unshare",
            "--user",
            "--map-root-user",
            "rm",
            "-rf",
            &bundle.display().to_string(),
        ],
    );
    assert!(ours.len() > 3, "{source}: {ours:?}");
    differences(&ours, &theirs, &owners(&layers))
        .into_iter()
        .map(|difference| format!("{source}: {difference}"))
        .collect()
}

/// The directories of an image's layers, top first, as the store's records name them.
fn layers(sbxrt: &Sbxrt, source: &str) -> Vec<PathBuf> {
    let store = sbxrt.home().join("data/sbxrt");
    let records = fs::read_dir(store.join("images")).unwrap();
    let record = records
        .map(|record| fs::read(record.unwrap().path()).unwrap())
        .map(|bytes| serde_json::from_slice::<Value>(&bytes).unwrap())
        .find(|record| {
            record["name"]
                .as_str()
                .is_some_and(|name| name.contains(source))
        })
        .unwrap_or_else(|| panic!("no record of {source}"));
    let layers = record["layers"].as_array().unwrap().iter();
    let hidden = usize::try_from(record["hidden_layers"].as_u64().unwrap()).unwrap();
    let mut paths = layers
        .skip(hidden)
        .map(|layer| {
            store
                .join("layers")
                .join(layer.as_str().unwrap().replace(':', "/"))
        })
        .collect::<Vec<_>>();
    paths.reverse();
    paths
}

/// What needs root, by path; a layer's word counts before that of the layers below it.
fn owners(layers: &[PathBuf]) -> Tree {
    let mut owners = Tree::new();
    for layer in layers.iter().rev() {
        for line in fs::read_to_string(layer.join("owners.jsonl"))
            .unwrap()
            .lines()
        {
            let owner = serde_json::from_str::<Value>(line).unwrap();
            if let Some(path) = owner["path"].as_str() {
                owners.insert(format!("./{path}"), owner);
            }
        }
    }
    owners
}

fn list(sbxrt: &Sbxrt, arguments: &[String]) -> Tree {
    let mut words = vec![
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "python3",
        "-c",
        LISTER,
    ];
    words.extend(arguments.iter().map(String::as_str));
    serde_json::from_slice(&run(sbxrt, &words)).unwrap()
}

fn run(sbxrt: &Sbxrt, words: &[&str]) -> Vec<u8> {
    let mut command = sbxrt.identity().command(words);
    command
        .env("HOME", sbxrt.home())
        .current_dir(Path::new("/"));
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}: {stderr}",
        words[..words.len().min(4)].join(" ")
    );
    output.stdout
}

fn differences(ours: &Tree, theirs: &Tree, owners: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for path in ours
        .keys()
        .chain(theirs.keys())
        .collect::<std::collections::BTreeSet<_>>()
    {
        let (our, their) = (ours.get(path), theirs.get(path));
        let owner = owners.get(path);
        let same = match (our, their) {
            (None, Some(_)) => owner.is_some_and(|owner| owner["kind"].is_string()),
            (Some(our), Some(their)) => {
                our == their || owner.is_some_and(|owner| *our == without_setuid(their, owner))
            }
            _ => false,
        };
        if !same {
            found.push(format!(
                "{path}\n  sbxrt: {our:?}\n  umoci: {their:?}\n  owner: {owner:?}"
            ));
        }
    }
    found
}

/// What umoci made, less the bits that `owners.jsonl` has.
fn without_setuid(their: &Value, owner: &Value) -> Value {
    let mut their = their.clone();
    let parse = |text: &str| u64::from_str_radix(text.trim_start_matches("0o"), 8).ok();
    if let Some(mode) = their["mode"].as_str().and_then(parse)
        && owner["mode"].as_u64() == Some(mode)
        && their["type"] == "file"
    {
        their["mode"] = format!("{:#o}", mode & !0o6000).into();
    }
    their
}
