//! How images leave: `sbxrt copy` and `sbxrt push`, read by the tools of others.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use sbxrt_tests::{Fixtures, Sbxrt, for_each_identity, registry};
use serde_json::Value;

/// Copies as the user does; the digest that is printed.
fn copy(sbxrt: &Sbxrt, words: &[&str]) -> String {
    let words = ["copy", "-q"].iter().chain(words);
    let output = sbxrt.command(words).output();
    output.success().trim_end().to_owned()
}

/// What is in a root filesystem, owners and the time of links' targets apart: type, mode, size, time, content.
fn tree(root: &Path) -> BTreeMap<String, (u32, i64, u64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_symlink() {
                fs::read_link(&path)
                    .unwrap()
                    .into_os_string()
                    .into_encoded_bytes()
            } else if metadata.is_file() {
                fs::read(&path).unwrap()
            } else {
                Vec::new()
            };
            let links = if metadata.is_dir() {
                0
            } else {
                metadata.nlink()
            };
            let name = path.strip_prefix(root).unwrap().display().to_string();
            found.insert(name, (metadata.mode(), metadata.mtime(), links, content));
            if metadata.is_dir() {
                open.push(path);
            }
        }
    }
    found
}

/// Everything below a directory, by name.
fn names(directory: &Path) -> Vec<String> {
    let mut names = tree(directory).into_keys().collect::<Vec<_>>();
    names.sort();
    names
}

fn repository(sbxrt: &Sbxrt, name: &str) -> String {
    format!("transfer-{}/{name}", sbxrt.identity().name())
}

#[test]
fn what_is_copied_keeps_its_digest_and_others_read_it() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let Some(registry) = registry() else { return };
    let source = format!("docker://{registry}/busybox:latest");
    for_each_identity(|sbxrt| {
        let there = format!("docker://{registry}/{}:1", repository(sbxrt, "copied"));
        let digest = copy(sbxrt, &[&source, "oci:layout:one"]);
        assert_eq!(copy(sbxrt, &["oci:layout:one", &there]), digest);
        assert_eq!(copy(sbxrt, &[&there, "oci-archive:one.tar:one"]), digest);
        assert_eq!(
            copy(sbxrt, &["oci-archive:one.tar", "oci:again:one"]),
            digest
        );
        let inspected = sbxrt.tool(&[
            "skopeo",
            "inspect",
            "--tls-verify=false",
            "--format={{.Digest}}",
            &there,
        ]);
        assert_eq!(inspected.trim_end(), digest);
        // Whole and sound: skopeo reads and hashes every blob.
        for (index, from) in [there.as_str(), "oci-archive:one.tar:one", "oci:again:one"]
            .iter()
            .enumerate()
        {
            let to = format!("dir:read-{index}");
            sbxrt.tool(&[
                "skopeo",
                "copy",
                "-q",
                "--src-tls-verify=false",
                "--preserve-digests",
                from,
                &to,
            ]);
        }
        sbxrt.tool(&[
            "umoci",
            "unpack",
            "--rootless",
            "--image",
            "again:one",
            "unpacked",
        ]);
        copy(sbxrt, &["oci-archive:one.tar", "dir:flat"]);
        assert_eq!(
            tree(&sbxrt.home().join("flat")),
            tree(&sbxrt.home().join("unpacked/rootfs"))
        );
        // Docker's media types are said in OCI's words in a layout, or umoci would not read it.
        let docker = format!("docker://{registry}/busybox:docker");
        let translated = copy(sbxrt, &[&docker, "oci:layout:docker"]);
        let kept = copy(sbxrt, &["--preserve-digests", &docker, "oci:layout:kept"]);
        assert_ne!(translated, kept);
        sbxrt.tool(&[
            "umoci",
            "unpack",
            "--rootless",
            "--image",
            "layout:docker",
            "docker",
        ]);
        let before = names(&sbxrt.home());
        // An archive that is there is replaced, a tag moved, and nothing else left.
        copy(
            sbxrt,
            &[
                &fixtures.layout("busybox", "latest"),
                "oci-archive:one.tar:one",
            ],
        );
        copy(sbxrt, &[&source, "oci:layout:one"]);
        assert_eq!(names(&sbxrt.home()), before);
    });
}

#[test]
fn a_round_through_all_transports_ends_with_the_same_tree() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let Some(registry) = registry() else { return };
    for_each_identity(|sbxrt| {
        let there = format!("docker://{registry}/{}:1", repository(sbxrt, "round"));
        let first = fixtures.layout("busybox", "zstd");
        let way = [
            first.as_str(),
            "docker-archive:a.tar:round:1",
            &there,
            "oci-archive:b.tar:x",
            "oci:layout:y",
            "docker-archive:c.tar",
            "dir:root",
            "oci:layout:z",
            "dir:last",
        ];
        for pair in way.windows(2) {
            copy(sbxrt, pair);
        }
        copy(sbxrt, &[way[0], "dir:expected"]);
        let expected = tree(&sbxrt.home().join("expected"));
        assert!(expected.len() > 10, "{expected:?}");
        assert_eq!(tree(&sbxrt.home().join("root")), expected);
        assert_eq!(tree(&sbxrt.home().join("last")), expected);
        sbxrt.tool(&[
            "skopeo",
            "copy",
            "-q",
            "docker-archive:a.tar:docker.io/library/round:1",
            "oci:read:a",
        ]);
        sbxrt.tool(&[
            "umoci",
            "unpack",
            "--rootless",
            "--image",
            "read:a",
            "unpacked",
        ]);
        assert_eq!(tree(&sbxrt.home().join("unpacked/rootfs")), expected);
        assert!(sbxrt.unfinished().is_empty(), "{:?}", sbxrt.unfinished());
    });
}

#[test]
fn an_image_of_the_store_is_pushed_with_its_configuration_unchanged() {
    let Some(registry) = registry() else { return };
    for_each_identity(|sbxrt| {
        let name = format!("{registry}/busybox:latest");
        let there = format!("docker://{registry}/{}:1", repository(sbxrt, "pushed"));
        sbxrt.command(["pull", "-q", &name]).output().success();
        let push = || {
            let output = sbxrt
                .command(["push", "-q", "--json", &name, &there])
                .output();
            serde_json::from_str::<Value>(output.success()).unwrap()
        };
        let first = push();
        let inspected = sbxrt.command(["inspect", &name]).output();
        let inspected = serde_json::from_str::<Value>(inspected.success()).unwrap();
        let manifest = sbxrt.tool(&["skopeo", "inspect", "--raw", "--tls-verify=false", &there]);
        let manifest = serde_json::from_str::<Value>(&manifest).unwrap();
        assert_eq!(manifest["config"], inspected["manifest"]["config"]);
        // skopeo holds each layer against its digest, umoci against the diff_id of the configuration.
        sbxrt.tool(&[
            "skopeo",
            "copy",
            "-q",
            "--src-tls-verify=false",
            &there,
            "oci:read:x",
        ]);
        sbxrt.tool(&[
            "umoci",
            "unpack",
            "--rootless",
            "--image",
            "read:x",
            "unpacked",
        ]);
        copy(sbxrt, &[&format!("store:{name}"), "dir:flat"]);
        assert_eq!(
            tree(&sbxrt.home().join("flat")),
            tree(&sbxrt.home().join("unpacked/rootfs"))
        );
        // The same image is the same bytes, and what is there is not sent again.
        let second = push();
        assert_eq!(second["digest"], first["digest"]);
        assert_eq!(second["copied_bytes"], 0);
        // What the layers came as is known beside them; without it they are something else now, and that is said.
        for entry in fs::read_dir(sbxrt.home().join("data/sbxrt/layers/sha256")).unwrap() {
            let split = entry.unwrap().path().join("tar.split");
            fs::rename(&split, split.with_extension("away")).unwrap();
        }
        let output = sbxrt.command(["push", "-q", &name, "oci:lost"]).output();
        assert_eq!(output.code(), 1, "{output}");
        assert!(
            output.stderr.contains("cannot be had again bit for bit"),
            "{output}"
        );
        assert!(!sbxrt.home().join("lost").exists());
        for entry in fs::read_dir(sbxrt.home().join("data/sbxrt/layers/sha256")).unwrap() {
            let away = entry.unwrap().path().join("tar.away");
            fs::rename(&away, away.with_extension("split")).unwrap();
        }
        let short = inspected["digest"].as_str().unwrap()[7..19].to_owned();
        let output = sbxrt
            .command(["push", "-q", &short, "oci-archive:short.tar"])
            .output();
        assert_eq!(
            output.success().trim_end(),
            first["digest"].as_str().unwrap()
        );
        assert!(sbxrt.unfinished().is_empty(), "{:?}", sbxrt.unfinished());
    });
}

#[test]
fn all_platforms_are_copied_with_their_index() {
    let Some(registry) = registry() else { return };
    let source = format!("docker://{registry}/multi:latest");
    for_each_identity(|sbxrt| {
        let there = format!("docker://{registry}/{}:all", repository(sbxrt, "multi"));
        let raw =
            |place: &str| sbxrt.tool(&["skopeo", "inspect", "--raw", "--tls-verify=false", place]);
        let digest = copy(sbxrt, &["--all", &source, "oci:layout:all"]);
        assert_eq!(copy(sbxrt, &["--all", "oci:layout:all", &there]), digest);
        assert_eq!(raw(&there), raw(&source));
        sbxrt.tool(&[
            "skopeo",
            "copy",
            "-q",
            "--all",
            "--preserve-digests",
            "oci:layout:all",
            "dir:read",
        ]);
        let one = copy(
            sbxrt,
            &["--platform", "linux/arm64", &there, "oci:layout:arm"],
        );
        assert_ne!(one, digest);
        let output = sbxrt
            .command(["copy", "--all", &there, "docker-archive:x.tar"])
            .output();
        assert_eq!(output.code(), 1, "{output}");
        assert!(!sbxrt.home().join("x.tar").exists());
    });
}

#[test]
fn what_cannot_be_copied_is_refused_and_nothing_is_touched() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let Some(registry) = registry() else { return };
    for_each_identity(|sbxrt| {
        let good = fixtures.layout("busybox", "latest");
        let unknown_tag = fixtures.layout("busybox", "no-such-tag");
        let unknown_image = format!("docker://{registry}/no-such-image");
        let spoilt = format!("docker://{registry}/broken:digest");
        let mine = sbxrt.scratch("mine");
        fs::write(mine.join("file"), "x").unwrap();
        let closed = sbxrt.scratch("closed");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
        let table: &[(&str, &str, &str)] = &[
            (&unknown_tag, "oci:new", "no tag \"no-such-tag\""),
            (&unknown_image, "oci-archive:new.tar", "knows no such image"),
            (&good, "oci:mine", "not an OCI layout"),
            (&good, "dir:mine", "not a new or empty directory"),
            (&good, "oci-archive:mine", "it is a directory"),
            (&good, "host:", "cannot copy to host:"),
            (&good, "store:name", "cannot copy to store:name"),
            ("host:", "oci:new", "this machine's own programs"),
            ("store:no-such-image", "oci:new", "no image"),
            (&good, "oci-archive:no/such/directory.tar", "ENOENT"),
            (&spoilt, "oci:new:x", "does not match its digest"),
            (&spoilt, "oci-archive:new.tar", "does not match its digest"),
            (
                &spoilt,
                "docker-archive:new.tar",
                "does not match its digest",
            ),
            (&spoilt, "dir:new", "does not match its digest"),
        ];
        let before = names(&sbxrt.home());
        for (from, to, expected) in table {
            let output = sbxrt.command(["copy", "-q", from, to]).output();
            assert_eq!(output.code(), 1, "{from} {to}: {output}");
            assert!(output.stderr.contains(expected), "{from} {to}: {output}");
            // A store may have been made, which is empty.
            let mut after = names(&sbxrt.home());
            after.retain(|name| !name.starts_with("data/sbxrt"));
            assert_eq!(after, before, "{from} {to}");
        }
        if !sbxrt.identity().is_root() {
            for to in [
                "oci:closed/new",
                "oci-archive:closed/new.tar",
                "dir:closed/new",
            ] {
                let output = sbxrt.command(["copy", "-q", &good, to]).output();
                assert!(
                    output.code() == 1 && output.stderr.contains("EACCES"),
                    "{to}: {output}"
                );
            }
        }
        // As it comes from a disk: within one registry nothing is read, a blob is only named.
        let spoilt = fixtures.layout("broken-layout", "digest");
        let spoilt_there = format!("docker://{registry}/{}:1", repository(sbxrt, "spoilt"));
        let output = sbxrt
            .command(["copy", "-q", &spoilt, &spoilt_there])
            .output();
        assert_eq!(output.code(), 1, "{output}");
        let inspected = Command::new("skopeo")
            .args(["inspect", "--tls-verify=false", &spoilt_there])
            .output()
            .unwrap();
        assert!(!inspected.status.success(), "a spoilt image can be seen");
        assert!(sbxrt.unfinished().is_empty(), "{:?}", sbxrt.unfinished());
    });
}

#[test]
fn a_full_disk_leaves_nothing_of_a_copy() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let script = "mount -t tmpfs -o size=256k none \"$1\" && shift && \"$@\"; code=$?; \
            find small -mindepth 1 >&2; exit $code";
        for to in [
            "oci:small/new",
            "oci-archive:small/new.tar",
            "docker-archive:small/new.tar",
            "dir:small/new",
        ] {
            fs::remove_dir_all(sbxrt.home().join("small")).ok();
            sbxrt.scratch("small");
            let output = sbxrt
                .command(["copy", "-q", &fixtures.layout("busybox", "latest"), to])
                .called_by([
                    "unshare",
                    "--user",
                    "--map-root-user",
                    "--mount",
                    "sh",
                    "-c",
                    script,
                    "sh",
                    "small",
                ])
                .output();
            assert_eq!(output.code(), 1, "{to}: {output}");
            assert!(output.stderr.contains("no space left in"), "{to}: {output}");
            assert!(!output.stderr.contains("\nsmall/"), "{to}: {output}");
        }
    });
}
