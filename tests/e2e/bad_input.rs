//! Bad input: a clear error that names the step, on stderr, with exit status 125, and nothing left.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use sbxrt_tests::{Fixtures, Identity, Need, Sbxrt, for_each_identity, registry, require};

/// Runs an image that cannot be had and looks that nothing of it stays in the store.
fn assert_image_is_refused(sbxrt: &Sbxrt, image: &str, words: &[&str]) {
    sbxrt.run([image, "true"]).output().assert_refused(words);
    assert_eq!(
        sbxrt.unfinished(),
        Vec::<std::path::PathBuf>::new(),
        "{image}"
    );
    let listed = sbxrt.command(["images"]).output();
    let name = image.rsplit('/').next().unwrap();
    assert!(!listed.success().contains(name), "{listed}");
}

#[test]
fn an_unknown_image_is_named() {
    let Some(registry) = registry() else { return };
    for_each_identity(|sbxrt| {
        assert_image_is_refused(
            sbxrt,
            &format!("{registry}/no-such-image"),
            &["no-such-image", "no such image"],
        );
        assert_image_is_refused(
            sbxrt,
            &format!("{registry}/busybox:no-such-tag"),
            &["busybox:no-such-tag"],
        );
    });
}

#[test]
fn a_spoilt_layer_is_refused() {
    let Some(registry) = registry() else { return };
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let table = [
        ("digest", ["sha256:", "does not match"]),
        ("truncated", ["layer", "bytes"]),
    ];
    for_each_identity(|sbxrt| {
        for (tag, words) in table {
            assert_image_is_refused(sbxrt, &format!("{registry}/broken:{tag}"), &words);
            assert_image_is_refused(sbxrt, &fixtures.layout("broken-layout", tag), &words);
        }
    });
}

#[test]
fn an_index_without_this_platform_lists_what_it_has() {
    let Some(registry) = registry() else { return };
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let foreign = if cfg!(target_arch = "aarch64") {
        "amd64"
    } else {
        "arm64"
    };
    for_each_identity(|sbxrt| {
        assert_image_is_refused(
            sbxrt,
            &format!("{registry}/multi:foreign"),
            &["platform", foreign],
        );
        assert_image_is_refused(
            sbxrt,
            &fixtures.layout("multi", "foreign"),
            &["platform", foreign],
        );
        let image = format!("{registry}/multi:latest");
        let output = sbxrt
            .run(["--platform", "linux/s390x", &image, "true"])
            .output();
        output.assert_refused(&["platform", "s390x"]);
    });
}

#[test]
fn a_registry_that_is_down_is_named() {
    for_each_identity(|sbxrt| {
        // A port that was free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let image = format!("{address}/busybox");
        sbxrt
            .run([&image, "true"])
            .output()
            .assert_refused(&["registry", &address.to_string()]);
    });
}

#[test]
fn an_unreadable_volume_is_named() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        let output = sbxrt
            .run(["-v", "/no/such/directory:/x", &image, "true"])
            .output();
        output.assert_refused(&["/no/such/directory", "no such file"]);
        if !sbxrt.identity().is_root() {
            let output = sbxrt.run(["-v", "/root/.ssh:/x", &image, "true"]).output();
            output.assert_refused(&["/root/.ssh"]);
        }
        let output = sbxrt.run(["-v", "relative:/x", &image, "true"]).output();
        assert!(
            [125, 2].contains(&output.code()) && output.stderr.contains("relative"),
            "{output}"
        );
    });
}

#[test]
fn an_image_without_a_shell_says_that_the_program_is_missing() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.layout("busybox", "nosh");
    for_each_identity(|sbxrt| {
        let output = sbxrt.run([&image]).output();
        assert_eq!(output.code(), 127, "{output}");
        assert!(output.stderr.contains("/bin/sh"), "{output}");
        let output = sbxrt.run([&image, "true"]).output();
        assert_eq!(output.code(), 0, "{output}");
    });
}

#[test]
fn an_image_without_a_command_asks_for_one() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let output = sbxrt.run([fixtures.layout("busybox", "nocmd")]).output();
        output.assert_refused(&["command"]);
        let output = sbxrt.run([&fixtures.busybox_rootfs(), ""]).output();
        assert!([125, 127].contains(&output.code()), "{output}");
        assert!(output.stderr.starts_with("error: "), "{output}");
    });
}

#[test]
fn a_long_environment_value_is_refused_by_name() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        let long = format!("LONG={}", "x".repeat(60_000));
        let output = sbxrt
            .run(["-e", &long, &image, "sh", "-c", "echo ${#LONG}"])
            .output();
        assert_eq!(output.success(), "60000\n");
        // The second is longer than the kernel takes in one string (MAX_ARG_STRLEN), so it must come from a file.
        let file = sbxrt.scratch("environment").join("file");
        for length in [70_000, 140_000] {
            fs::write(&file, format!("LONG={}\n", "x".repeat(length))).unwrap();
            let output = sbxrt
                .run(["--env-file", file.to_str().unwrap(), &image, "true"])
                .output();
            assert_eq!(output.code(), 125, "{output}");
            assert!(output.stderr.contains("LONG"), "{output}");
        }
    });
}

#[test]
fn a_full_disk_under_the_store_is_named() {
    if !require(Need::Root) {
        return;
    }
    let Some(registry) = registry() else { return };
    for_each_identity(|sbxrt| {
        let script = "mount -t tmpfs -o size=600k,mode=755,uid=$2,gid=$3 small \"$1\" && shift 3 && exec \"$@\"";
        let identity = sbxrt.identity();
        let data = sbxrt.home().join("data");
        let (uid, gid) = (identity.uid().to_string(), identity.gid().to_string());
        let mounting = [
            "unshare",
            "--mount",
            "sh",
            "-c",
            script,
            "sh",
            data.to_str().unwrap(),
            &uid,
            &gid,
        ];
        let image = format!("{registry}/busybox");
        let output = sbxrt.command(["pull", &image]).behind(mounting).output();
        assert_eq!(output.code(), 1, "{output}");
        assert!(output.stderr.contains("no space left"), "{output}");
    });
}

#[test]
fn options_that_make_no_sense_are_refused_before_anything_starts() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    let table = [
        ["-m", "lots"],
        ["--cpus", "-1"],
        ["--timeout", "soon"],
        ["--pids-limit", "x"],
        ["--network", "bridge"],
        ["--pull", "sometimes"],
        ["--ulimit", "nofile"],
        ["--no-such-option", "x"],
    ];
    for_each_identity(|sbxrt| {
        for [option, value] in table {
            let output = sbxrt.run([option, value, &image, "true"]).output();
            assert_eq!(output.code(), 125, "{option} {value}: {output}");
            assert!(
                output.stderr.contains(option.trim_start_matches('-'))
                    || output.stderr.contains(value),
                "{output}"
            );
        }
    });
}

#[test]
fn a_flag_of_docker_that_has_no_use_here_is_answered() {
    for_each_identity(|sbxrt| {
        let output = sbxrt.run(["--privileged", "host:", "true"]).output();
        output.assert_refused(&["'--privileged'", "hint: no program gets capabilities"]);
        let output = sbxrt
            .run(["--json", "--cap-drop=all", "host:", "true"])
            .output();
        assert_eq!(output.code(), 125, "{output}");
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            document["error"]["message"], "unexpected argument '--cap-drop' found",
            "{output}"
        );
    });
}

#[test]
fn two_things_that_would_be_one_file_are_refused() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        let place = sbxrt.scratch("place");
        let path = |name: &str| place.join(name).display().to_string();
        fs::create_dir(path("directory")).unwrap();
        fs::write(path("file"), "").unwrap();
        for name in ["place/directory", "place/file"] {
            let (uid, gid) = (sbxrt.identity().uid(), sbxrt.identity().gid());
            let path = sbxrt.home().join(name);
            std::os::unix::fs::chown(path, Some(uid.as_raw()), Some(gid.as_raw())).unwrap();
        }
        symlink("file", path("link")).unwrap();
        let (file, free) = (path("file"), path("free"));
        let copy = format!("/tmp/x:{}", path("directory/../free"));
        let tree = format!("/tmp/x:{}", path("directory"));
        let inside = path("directory/result");
        let table: [(&[&str], &[&str]); 6] = [
            (
                &["--stdout-file", &free, "--stderr-file", &free],
                &["--stdout-file", "--stderr-file", "same file"],
            ),
            (
                &["--result", &path("link"), "--stdout-file", &file],
                &["--result", "--stdout-file", "same file"],
            ),
            (
                &["--result", &free, "--output", &copy, "--overwrite"],
                &["--result", "--output", "same file"],
            ),
            (
                &[
                    "--stderr-file",
                    "place/free",
                    "--output",
                    &copy,
                    "--overwrite",
                ],
                &["--stderr-file", "--output", "same file"],
            ),
            (
                &[
                    "--output",
                    &copy,
                    "--output",
                    "/tmp/y:place/free",
                    "--overwrite",
                ],
                &["--output", "same file"],
            ),
            (
                &["--result", &inside, "--output", &tree, "--overwrite"],
                &["--result", "directory", "output"],
            ),
        ];
        for (words, said) in table {
            let run = [words, &[&image, "touch", "/tmp/x"]].concat();
            sbxrt.run(run).output().assert_refused(said);
            // A file that was made to find out is not there the next time.
            drop(fs::remove_file(&free));
        }
        // What is redirected there, by whoever calls.
        let redirect = format!("exec \"$@\" >>{file}");
        let run = sbxrt.run(["--result", "place/link", &image, "true"]);
        let output = run.called_by(["sh", "-c", &redirect, "sh"]).output();
        output.assert_refused(&["--result", "standard output", "same file"]);
    });
}

#[test]
fn what_is_no_file_is_refused_and_nobody_is_waited_for_in_vain() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let sbxrt = Sbxrt::new(Identity::ordinary());
    let place = sbxrt.scratch("place");
    let image = fixtures.busybox_rootfs();
    fs::write(place.join("Dockerfile"), "FROM scratch\n").unwrap();
    sbxrt.tool(&["mkfifo", place.join("fifo").to_str().unwrap()]);
    let fifo = place.join("fifo").display().to_string();
    // Each in its place, and all of them at once: they wait for whoever writes to the FIFO.
    let refused = |path: &str, said: &str| {
        let profile = format!("seccomp={path}");
        let calls: [(&[&str], &str); 5] = [
            (&["run", "--env-file", path, &image, "true"], ""),
            (&["run", "--security-opt", &profile, &image, "true"], ""),
            (&["build", "-f", path, place.to_str().unwrap()], ""),
            (&["pull", "127.0.0.1:1/x"], "REGISTRY_AUTH_FILE"),
            (&["pull", "127.0.0.1:1/x"], "CONTAINERS_REGISTRIES_CONF"),
        ];
        std::thread::scope(|scope| {
            for (words, variable) in calls {
                let run = sbxrt.command(words).deadline(Duration::from_secs(60));
                let run = match variable {
                    "" => run,
                    variable => run.env(variable, path),
                };
                scope.spawn(move || {
                    let output = run.output();
                    assert!([1, 125].contains(&output.code()), "{words:?}: {output}");
                    for word in [path, said] {
                        assert!(output.stderr.contains(word), "{words:?}: {output}");
                    }
                });
            }
        });
    };
    refused(&fifo, "a pipe that nobody has written to for 10s");
    refused("/dev/zero", "a device and no regular file");
    refused("/usr", "a directory and no regular file");
    let run = |words: &[&str]| sbxrt.run([words, &[&image, "true"]].concat()).output();
    run(&["--result", &fifo]).assert_refused(&["fifo", "nobody reads from"]);
    run(&["--result", "/usr"]).assert_refused(&["/usr", "EISDIR"]);
    run(&["--stdout-file", &fifo]).assert_refused(&["fifo"]);
}

#[test]
fn pipes_are_read_where_files_are() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    if !Path::new("/bin/bash").exists() {
        return;
    }
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        let words = ["--env-file", "/dev/stdin", &image, "sh", "-c", "echo $A"];
        let output = sbxrt.run(words).stdin("A=1\n").output();
        assert_eq!(output.success(), "1\n", "{output}");
        // The second comes late, and in pieces.
        let script = "\"$0\" run --env-file <(echo A=1) --env-file <(sleep 0.3; echo -n B=; sleep 0.3; echo 2) \
                      --result >(cat >result; echo >done) \"$@\"";
        let run = sbxrt.command([&image, "sh", "-c", "echo $A$B"]);
        let output = run.called_by(["bash", "-c", script]).output();
        assert_eq!(output.success(), "12\n", "{output}");
        let home = sbxrt.home();
        let told = sbxrt_tests::eventually(Duration::from_secs(60), || home.join("done").exists());
        let result = fs::read_to_string(home.join("result")).unwrap();
        assert!(told && result.contains("\"exited\""), "{result}");
        for name in ["done", "result"] {
            fs::remove_file(home.join(name)).unwrap();
        }
    });
}
