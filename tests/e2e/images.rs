//! Where images come from, and what their configuration says.

use std::sync::atomic::{AtomicBool, Ordering};

use sbxrt_tests::{Fixtures, for_each_identity, registry};

#[test]
fn the_configuration_is_honoured_as_docker_does() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let table: &[(&str, &[&str], &[&str], &str)] = &[
        ("entrypoint", &[], &[], "entry default\n"),
        ("entrypoint", &[], &["given"], "entry given\n"),
        (
            "entrypoint",
            &["--entrypoint", "/bin/echo"],
            &["alone"],
            "alone\n",
        ),
        ("cmd", &[], &[], "from-cmd\n"),
        ("cmd", &[], &["echo", "given"], "given\n"),
        (
            "env",
            &[],
            &["sh", "-c", "echo $GREETING, $SPACED"],
            "hello, two words\n",
        ),
        (
            "env",
            &["-e", "GREETING=bye"],
            &["sh", "-c", "echo $GREETING"],
            "bye\n",
        ),
        ("workdir", &[], &["pwd"], "/data\n"),
        ("workdir", &["-w", "/tmp"], &["pwd"], "/tmp\n"),
        ("user", &[], &["sh", "-c", "id -u; id -g"], "1000\n1000\n"),
        (
            "username",
            &[],
            &["sh", "-c", "id -u; id -un"],
            "1000\napp\n",
        ),
        ("user", &["-u", "0"], &["id", "-u"], "0\n"),
        (
            "latest",
            &["-u", "1234:99"],
            &["sh", "-c", "id -u; id -g"],
            "1234\n99\n",
        ),
        ("latest", &["--hostname", "box"], &["hostname"], "box\n"),
    ];
    for_each_identity(|sbxrt| {
        for (tag, options, command, expected) in table {
            let image = fixtures.layout("busybox", tag);
            let output = sbxrt
                .run([*options, &[image.as_str()], *command].concat())
                .output();
            assert_eq!(
                output.success(),
                *expected,
                "{tag} {options:?} {command:?}: {output}"
            );
        }
    });
}

const TREE: &str = "cat /data/*; ls -A /data /opaque; stat -c %h /data/keep";
const EXPECTED: &str = "keep\nkeep\nkeep\n/data:\nhardlink\nkeep\nsymlink\n\n/opaque:\nnew\n2\n";

#[test]
fn every_layer_compression_gives_the_same_tree() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        for tag in ["latest", "zstd", "plain"] {
            let output = sbxrt
                .run([&fixtures.layout("busybox", tag), "sh", "-c", TREE])
                .output();
            assert_eq!(output.success(), EXPECTED, "{tag}");
        }
    });
}

#[test]
fn every_transport_gives_the_same_tree() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let Some(registry) = registry() else { return };
    let sources = [
        fixtures.oci_archive(),
        fixtures.docker_archive(),
        format!("{registry}/busybox"),
        format!("docker://{registry}/busybox:zstd"),
        format!("{registry}/busybox:plain"),
        format!("{registry}/busybox:docker"),
        format!("{registry}/multi:latest"),
    ];
    for_each_identity(|sbxrt| {
        for source in &sources {
            let output = sbxrt.run([source, "sh", "-c", TREE]).output();
            assert_eq!(output.success(), EXPECTED, "{source}");
        }
    });
}

#[test]
fn the_report_names_the_digest_that_ran() {
    let Some(registry) = registry() else { return };
    for_each_identity(|sbxrt| {
        let report = sbxrt.report([format!("{registry}/busybox").as_str(), "true"]);
        let digest = report.image_digest().to_owned();
        assert!(
            digest.starts_with("sha256:") && digest.len() == 71,
            "{digest}"
        );
        let pinned = format!("{registry}/busybox@{digest}");
        let output = sbxrt.run([&pinned, "cat", "/data/keep"]).output();
        assert_eq!(output.success(), "keep\n");
    });
}

#[test]
fn pull_policies_decide_whether_the_registry_is_asked() {
    let Some(registry) = registry() else { return };
    let image = format!("{registry}/busybox");
    for_each_identity(|sbxrt| {
        let output = sbxrt.run(["--pull", "never", &image, "true"]).output();
        output.assert_refused(&["busybox"]);
        sbxrt.command(["pull", &image]).output().success();
        sbxrt
            .run(["--pull", "never", &image, "true"])
            .output()
            .success();
        sbxrt
            .run(["--pull", "missing", &image, "true"])
            .output()
            .success();
        sbxrt
            .run(["--pull", "always", &image, "true"])
            .output()
            .success();
    });
}

#[test]
fn images_are_listed_inspected_and_removed() {
    let Some(registry) = registry() else { return };
    let image = format!("{registry}/busybox");
    for_each_identity(|sbxrt| {
        let pulled = sbxrt.command(["pull", &image]).output();
        pulled.success();
        assert!(
            !pulled.stderr.contains('\r') && !pulled.stderr.contains('\u{1b}'),
            "no bars in a pipe: {pulled}"
        );
        let listed = sbxrt.command(["images"]).output();
        assert!(listed.success().contains("busybox"), "{listed}");
        let inspected = sbxrt.command(["inspect", &image]).output();
        assert!(inspected.success().contains("/bin/sh"), "{inspected}");
        sbxrt.command(["rmi", &image]).output().success();
        let listed = sbxrt.command(["images"]).output();
        assert!(!listed.success().contains("busybox"), "{listed}");
    });
}

#[test]
fn two_pulls_of_one_image_at_once_both_succeed() {
    let Some(registry) = registry() else { return };
    let image = format!("{registry}/python");
    for_each_identity(|sbxrt| {
        std::thread::scope(|scope| {
            let pulls: Vec<_> = (0..2)
                .map(|_| {
                    let pull = sbxrt
                        .command(["pull", &image])
                        .deadline(std::time::Duration::from_secs(60));
                    scope.spawn(move || pull.output())
                })
                .collect();
            for pull in pulls {
                pull.join().unwrap().success();
            }
        });
        assert_eq!(sbxrt.unfinished(), Vec::<std::path::PathBuf>::new());
    });
}

#[test]
fn a_pull_takes_little_memory_however_large_the_layer() {
    const MIB: i64 = 64;
    let (Some(_), Some(registry)) = (Fixtures::find(), registry()) else {
        return;
    };
    let done = AtomicBool::new(false);
    for_each_identity(|sbxrt| {
        // Who pulls makes no difference to the memory, and these are large.
        if done.swap(true, Ordering::Relaxed) {
            return;
        }
        for tag in ["latest", "zstd"] {
            let image = format!("{registry}/python:{tag}");
            let store = sbxrt.scratch(tag);
            sbxrt
                .command(["pull", "-q", "--store", &store.to_string_lossy(), &image])
                .deadline(std::time::Duration::from_secs(120))
                .output()
                .success();
        }
    });
    // Of the largest of all processes that this test has waited for; nextest gives it a process of its own.
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN);
    let peak = usage.unwrap().max_rss();
    assert!(peak <= MIB << 10, "{peak} KiB");
}

#[test]
fn programs_follow_a_pull_by_its_events() {
    let (Some(_), Some(registry)) = (Fixtures::find(), registry()) else {
        return;
    };
    for_each_identity(|sbxrt| {
        let pull = |image: &str| {
            let image = format!("{registry}/{image}");
            sbxrt
                .command(["pull", "--progress", "json", &image])
                .output()
        };
        let events = |text: &str| -> Vec<serde_json::Value> {
            let lines = text.lines();
            lines
                .map(|line| serde_json::from_str(line).unwrap())
                .collect()
        };
        let pulled = pull("busybox:latest");
        let told = events(pulled.success());
        assert_eq!(told[0]["event"], "resolved", "{pulled}");
        let last = &told[told.len() - 1];
        assert_eq!(last["event"], "done", "{pulled}");
        assert_eq!(last["layers"], told[0]["layers"], "{pulled}");
        let failed = pull("broken:digest");
        assert_eq!(failed.code(), 1, "{failed}");
        let told = events(failed.text());
        assert_eq!(told[told.len() - 1]["event"], "failed", "{failed}");
    });
}
