//! `sbxrt build` and `sbxrt commit`: images that are made here.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sbxrt_tests::{
    Fixtures, Host, Invocation, PATIENCE, Sbxrt, eventually, for_each_identity, pause,
};

/// A context with these files.
fn context(sbxrt: &Sbxrt, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let directory = sbxrt.scratch(name);
    for (path, content) in files {
        let path = directory.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    directory
}

fn build<'a>(sbxrt: &'a Sbxrt, arguments: &[&str], context: &Path) -> Invocation<'a> {
    let words = [&["build"], arguments, &[context.to_str().unwrap()]].concat();
    sbxrt.command(words).deadline(Duration::from_secs(60))
}

fn busybox(fixtures: &Fixtures) -> String {
    fixtures.layout("busybox", "latest")
}

/// The value of a key of a JSON document.
fn number(document: &str, key: &str) -> u64 {
    let value: serde_json::Value = serde_json::from_str(document).unwrap();
    value[key].as_u64().unwrap()
}

#[test]
fn a_build_in_stages_makes_an_image_that_runs() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = busybox(&fixtures);
    let dockerfile = format!(
        r#"# syntax=docker/dockerfile:1
ARG BASE={image}
FROM ${{BASE}} AS make
ARG VERSION=1
ENV GREETING="hello $VERSION" \
    EMPTY=
WORKDIR /src/deep
COPY main.sh sub/ ./
COPY <<made <<'raw' /etc/made/
$GREETING
made
$GREETING
raw
RUN cat main.sh one >both && \
    # a comment in between
    chmod 700 both
RUN <<END
set -e
echo "$VERSION" >version
mkdir -p /out/empty
cp both version /out
END
RUN ["/bin/sh", "-c", "echo $0 >/out/zero", "exec"]
FROM make AS unused
RUN exit 1
FROM {image}
LABEL org.example.kind="test image"
COPY --from=make --chown=7:8 /out /app/
COPY --from=0 /etc/made/* /app/
WORKDIR /app
USER 1000:1000
ENTRYPOINT ["/bin/cat"]
CMD ["both", "version", "zero", "made", "raw"]
"#
    );
    for_each_identity(|sbxrt| {
        let context = context(
            sbxrt,
            "context",
            &[
                ("Dockerfile", &dockerfile),
                ("main.sh", "main\n"),
                ("sub/one", "one\n"),
            ],
        );
        let arguments = [
            "-t",
            "mine",
            "-t",
            "mine:2",
            "--build-arg",
            "VERSION=2",
            "--label",
            "a=b",
        ];
        let output = build(sbxrt, &arguments, &context).output();
        let digest = output.success().trim().to_owned();
        assert!(
            digest.starts_with("sha256:") && digest.len() == 71,
            "{output}"
        );
        assert!(
            output.stderr.contains("[make 2/17] ARG VERSION=1"),
            "{output}"
        );
        let output = sbxrt.run(["mine"]).output();
        assert_eq!(
            output.success(),
            "main\none\n2\nexec\nhello 2\n$GREETING\n",
            "{output}"
        );
        let script = "id -u; pwd; ls -A / /app; stat -c %a both; ls -ld /app/empty | cut -c1";
        let output = sbxrt
            .run(["--entrypoint", "sh", "mine:2", "-c", script])
            .output();
        let expected = "1000\n/app\n/:\napp\nbin\ndata\ndev\netc\nhome\nopaque\nproc\nroot\nsys\ntmp\nusr\n\n\
             /app:\nboth\nempty\nmade\nraw\nversion\nzero\n700\nd\n";
        assert_eq!(output.success(), expected, "{output}");
        let output = sbxrt.command(["inspect", "mine"]).output();
        for part in [
            "org.example.kind",
            "test image",
            "\"a\": \"b\"",
            "\"WorkingDir\": \"/app\"",
            "created_by",
        ] {
            assert!(output.success().contains(part), "{part}: {output}");
        }
        let output = sbxrt.command(["images"]).output();
        assert!(
            output.success().contains("docker.io/library/mine:2"),
            "{output}"
        );
        sbxrt.command(["rmi", "mine", "mine:2"]).output().success();
        sbxrt
            .run(["--pull", "never", "mine"])
            .output()
            .assert_refused(&["mine"]);
        assert_eq!(sbxrt.unfinished(), Vec::<PathBuf>::new());
    });
}

#[test]
fn a_step_is_done_again_only_where_something_has_changed() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let dockerfile = format!(
        "FROM {}\nARG A=1\nRUN echo first >/first\nCOPY file /\nRUN cat /file /first >/second\nRUN test -n \"$A\"\n",
        busybox(&fixtures)
    );
    for_each_identity(|sbxrt| {
        let context = context(
            sbxrt,
            "context",
            &[("Dockerfile", &dockerfile), ("file", "1")],
        );
        let cached = |arguments: &[&str]| {
            let output = build(sbxrt, &[&["--json"], arguments].concat(), &context).output();
            let digest: serde_json::Value = serde_json::from_str(output.success()).unwrap();
            (
                number(output.text(), "cached"),
                digest["image"]["digest"].to_string(),
            )
        };
        let (hits, first) = cached(&[]);
        assert_eq!(hits, 0);
        assert_eq!(
            cached(&[]),
            (4, first.clone()),
            "the same image, down to its times"
        );
        fs::write(context.join("other"), "not copied").unwrap();
        assert_eq!(cached(&[]), (4, first.clone()));
        fs::write(context.join("file"), "2").unwrap();
        let (hits, second) = cached(&[]);
        assert_eq!(hits, 1);
        assert_ne!(second, first);
        fs::write(context.join("file"), "1").unwrap();
        assert_eq!(cached(&[]), (4, first));
        assert_eq!(
            cached(&["--build-arg", "A=2"]).0,
            0,
            "a RUN sees every ARG before it"
        );
        assert_eq!(cached(&["--no-cache"]).0, 0);
        let output = build(sbxrt, &["--no-cache", "--build-arg", "NOBODY=1"], &context).output();
        assert!(
            output
                .stderr
                .contains("no ARG asks for the build argument NOBODY"),
            "{output}"
        );
    });
}

#[test]
fn a_step_that_fails_is_named_and_leaves_nothing() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let dockerfile = format!(
        "FROM {}\nRUN echo good\nRUN echo said && \\\n  echo complained >&2 && (sleep 100 &) && exit 3\n",
        busybox(&fixtures)
    );
    for_each_identity(|sbxrt| {
        let host = Host::snapshot(sbxrt);
        let context = context(sbxrt, "context", &[("Dockerfile", &dockerfile)]);
        for quiet in [false, true] {
            let arguments: &[&str] = if quiet {
                &["-q", "-t", "mine"]
            } else {
                &["-t", "mine"]
            };
            let output = build(sbxrt, arguments, &context).output();
            assert_eq!(output.code(), 1, "{output}");
            assert!(output.stdout.is_empty(), "{output}");
            for part in [
                "Dockerfile:3: RUN echo said",
                "status 3",
                "said\n",
                "complained\n",
                "hint: ",
            ] {
                assert!(output.stderr.contains(part), "{part:?}: {output}");
            }
            host.assert_nothing_is_left();
            assert_eq!(sbxrt.unfinished(), Vec::<PathBuf>::new());
        }
        let output = sbxrt.command(["images"]).output();
        assert!(!output.success().contains("mine"), "{output}");
    });
}

#[test]
fn mistakes_are_shown_with_their_line() {
    let table: &[(&str, &[&str])] = &[
        (
            "FROM scratch\nCPOY a b\n",
            &[
                ":2: unknown instruction CPOY",
                "the line is: CPOY a b",
                "did you mean COPY?",
            ],
        ),
        (
            "FROM scratch\nCOPY none /\n",
            &[":2: none is not in the context"],
        ),
        (
            "FROM scratch\nRUN --mount=type=cache,target=/x y\n",
            &[":2: RUN does not support --mount"],
        ),
        (
            "FROM scratch\nADD https://example.org/x /\n",
            &[":2: ADD https://example.org/x", "COPY it"],
        ),
        (
            "FROM scratch\nRUN --network=host x\n",
            &[":2: it asks for this machine's network", "--network host"],
        ),
        (
            "FROM scratch\nENV A=\"x\n",
            &[":2: a double quote is not closed"],
        ),
        ("FROM host:\n", &[":1: host: is this machine itself"]),
        (
            "FROM dir:/etc\n",
            &[":1: a Dockerfile cannot name a directory of this machine"],
        ),
        (
            "FROM scratch\nCOPY --from=dir:/etc /shadow /\n",
            &[":2: a Dockerfile cannot name a directory of this machine"],
        ),
        (
            "FROM --platform=linux/vax scratch\n",
            &["cannot build for linux/vax"],
        ),
        (
            "FROM scratch\nRUN x\n",
            &[":2: RUN x", "was not started", "/bin/sh"],
        ),
    ];
    for_each_identity(|sbxrt| {
        let context = context(sbxrt, "context", &[]);
        for (dockerfile, parts) in table {
            fs::write(context.join("Dockerfile"), dockerfile).unwrap();
            let output = build(sbxrt, &[], &context).output();
            assert_eq!(output.code(), 1, "{dockerfile:?}: {output}");
            for part in *parts {
                assert!(output.stderr.contains(part), "{part:?}: {output}");
            }
        }
        fs::remove_file(context.join("Dockerfile")).unwrap();
        let output = build(sbxrt, &[], &context).output();
        assert!(output.stderr.contains("-f FILE"), "{output}");
        let output = build(sbxrt, &[], &context.join("none")).output();
        assert!(output.stderr.contains("it is missing"), "{output}");
    });
}

#[test]
fn nothing_outside_of_the_context_is_copied() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = busybox(&fixtures);
    for_each_identity(|sbxrt| {
        let context = context(sbxrt, "context", &[("in/file", "inside")]);
        let outside = sbxrt.home().join("secret");
        fs::write(&outside, "secret").unwrap();
        symlink(&outside, context.join("absolute")).unwrap();
        symlink("../secret", context.join("relative")).unwrap();
        symlink("..", context.join("up")).unwrap();
        symlink("/proc/self/root", context.join("root")).unwrap();
        for source in [
            "absolute",
            "relative",
            "up/secret",
            "../secret",
            "root/etc/passwd",
            "in/../../secret",
        ] {
            fs::write(
                context.join("Dockerfile"),
                format!("FROM {image}\nCOPY {source} /got\n"),
            )
            .unwrap();
            let output = build(sbxrt, &[], &context).output();
            assert_eq!(output.code(), 1, "{source}: {output}");
            assert!(output.stderr.contains("context"), "{source}: {output}");
        }
        // Within a directory links stay what they are, and lead nowhere but into the image.
        let dockerfile =
            format!("FROM {image}\nCOPY . /all/\nRUN cat /all/in/file && ! cat /all/absolute\n");
        fs::write(context.join("Dockerfile"), dockerfile).unwrap();
        let output = build(sbxrt, &[], &context).output();
        output.success();
        assert!(
            !output.stderr.contains("secret\n") || output.stderr.contains("No such file"),
            "{output}"
        );
        // A link of the image does not lead out of it either.
        let dockerfile = format!(
            "FROM {image}\nRUN ln -s /../../../../../../tmp/sbxrt-escape /link && mkdir /tmp/sbxrt-escape\nCOPY in /link/\n\
             RUN cat /tmp/sbxrt-escape/file\n"
        );
        fs::write(context.join("Dockerfile"), dockerfile).unwrap();
        build(sbxrt, &[], &context).output().success();
        assert!(!Path::new("/tmp/sbxrt-escape").exists());
    });
}

#[test]
fn files_that_dockerignore_names_are_not_there() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = busybox(&fixtures);
    let files = [
        (
            "Dockerfile",
            format!("FROM {image}\nCOPY . /c/\nRUN cd /c && find . -type f | sort >/list\n"),
        ),
        (
            "named",
            format!("FROM {image}\nCOPY . /c/\nRUN cd /c && find . -type f | sort >/list\n"),
        ),
        ("excluded", format!("FROM {image}\nCOPY docs/a.md /\n")),
        (
            ".dockerignore",
            "# comment\n**/*.md\n!docs/keep.md\nnode_modules/\n*ocker*\nexcluded\nnamed*\n"
                .to_owned(),
        ),
        ("named.dockerignore", "*\n!docs\ndocs/a.md".to_owned()),
        ("docs/a.md", String::new()),
        ("docs/keep.md", String::new()),
        ("src/deep/x.md", String::new()),
        ("src/deep/x.c", String::new()),
        ("node_modules/m/index.js", String::new()),
    ];
    for_each_identity(|sbxrt| {
        let files: Vec<(&str, &str)> = files
            .iter()
            .map(|(path, text)| (*path, text.as_str()))
            .collect();
        let context = context(sbxrt, "context", &files);
        let file = |name: &str| context.join(name).to_str().unwrap().to_owned();
        build(sbxrt, &["-t", "mine"], &context).output().success();
        let list = sbxrt.run(["mine", "cat", "/list"]).output();
        assert_eq!(list.success(), "./docs/keep.md\n./src/deep/x.c\n");
        build(sbxrt, &["-t", "mine", "-f", &file("named")], &context)
            .output()
            .success();
        let list = sbxrt.run(["mine", "cat", "/list"]).output();
        assert_eq!(list.success(), "./docs/keep.md\n");
        let output = build(sbxrt, &["-f", &file("excluded")], &context).output();
        assert!(
            output
                .stderr
                .contains("docs/a.md is left out by .dockerignore"),
            "{output}"
        );
    });
}

#[test]
fn the_same_inputs_make_the_same_image() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let dockerfile = format!(
        "FROM {}\nENV B=1 A=2\nLABEL z=1 y=2 x=3\nCOPY . /c\nRUN date >/dev/null; mkdir /made && echo x >/made/x && rm /data/keep\n\
         WORKDIR /w\nEXPOSE 80 22\nVOLUME /b /a\n",
        busybox(&fixtures)
    );
    for_each_identity(|sbxrt| {
        let context = context(sbxrt, "context", &[("a/b", "1"), ("c", "2")]);
        fs::write(context.join(".dockerignore"), "Dockerfile\n").unwrap();
        fs::write(context.join("Dockerfile"), &dockerfile).unwrap();
        let digests: Vec<String> = ["first", "second"]
            .map(|store| {
                let store = sbxrt.home().join(store).to_str().unwrap().to_owned();
                let output = build(sbxrt, &["-q", "--store", &store], &context)
                    .env("SOURCE_DATE_EPOCH", "1700000000")
                    .output();
                // Another time in between.
                pause(Duration::from_millis(1100));
                fs::write(context.join("c"), "2").unwrap();
                output.success().to_owned()
            })
            .into();
        assert_eq!(digests[0], digests[1]);
        let store = sbxrt.home().join("third").to_str().unwrap().to_owned();
        let other = build(
            sbxrt,
            &["-q", "--store", &store, "--timestamp", "1700000001"],
            &context,
        )
        .output();
        assert_ne!(other.success(), digests[0]);
    });
}

#[test]
fn what_a_run_removes_and_replaces_is_so_in_the_image() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let dockerfile = format!(
        "FROM {}\nRUN rm /data/keep && rm -r /opaque && mkdir /opaque && touch /opaque/fresh\n\
         RUN mkdir /closed && touch /closed/in && chmod 000 /closed && ln /data/hardlink /data/second\n\
         RUN mv /data/hardlink /data/moved && ln -s moved /data/link && touch /data/keep2 && rm /data/keep2\n",
        busybox(&fixtures)
    );
    for_each_identity(|sbxrt| {
        let context = context(sbxrt, "context", &[("Dockerfile", &dockerfile)]);
        build(sbxrt, &["-t", "mine"], &context).output().success();
        let script = "ls -A /data /opaque; stat -c %a /closed; cat /data/link";
        let output = sbxrt.run(["mine", "sh", "-c", script]).output();
        let expected = "/data:\nlink\nmoved\nsecond\nsymlink\n\n/opaque:\nfresh\n0\nkeep\n";
        assert_eq!(output.success(), expected, "{output}");
        sbxrt.command(["rmi", "mine"]).output().success();
    });
}

#[test]
fn programs_that_insist_on_root_work_by_emulation() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let dockerfile = format!(
        "FROM {}\nRUN touch /owned && chown 33:33 /owned && mkdir -m 2755 /set && \
         cp /bin/busybox /setuid && chmod 4755 /setuid\n",
        busybox(&fixtures)
    );
    for_each_identity(|sbxrt| {
        let context = context(sbxrt, "context", &[("Dockerfile", &dockerfile)]);
        build(sbxrt, &["-t", "mine"], &context).output().success();
        let output = sbxrt.run(["mine", "stat", "-c", "%a", "/setuid"]).output();
        assert_eq!(
            output.success(),
            "755\n",
            "setuid bits are inert in the store"
        );
        let output = build(sbxrt, &["--no-root-emulation"], &context).output();
        assert_eq!(output.code(), 1, "{output}");
        assert!(output.stderr.contains("chown"), "{output}");
    });
}

#[test]
fn archives_are_unpacked_and_owners_are_those_of_the_image() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let dockerfile = format!(
        "FROM {}\nRUN printf 'owner:x:77:78:::\\n' >>/etc/passwd && mkdir -p /opt/real && ln -s opt/real /link\nADD files.tar.gz /link/\nCOPY files.tar.gz /kept/\n\
         COPY --chown=owner --chmod=0640 sub/file /conf\nCOPY sub /link\nRUN cat /opt/real/from-archive /link/file /conf && \
         test -f /kept/files.tar.gz && test \"$(stat -c %a /conf)\" = 640\n",
        busybox(&fixtures)
    );
    for_each_identity(|sbxrt| {
        let context = context(
            sbxrt,
            "context",
            &[("Dockerfile", &dockerfile), ("sub/file", "file\n")],
        );
        let tar = format!(
            "cd {0} && echo archived >from-archive && tar -czf files.tar.gz from-archive && rm from-archive",
            context.display()
        );
        let status = std::process::Command::new("sh")
            .args(["-c", &tar])
            .status()
            .unwrap();
        assert!(status.success());
        let output = build(sbxrt, &["-t", "mine"], &context).output();
        output.success();
        assert!(output.stderr.contains("archived\nfile\nfile\n"), "{output}");
        let owners = sbxrt.home().join("data/sbxrt/layers/sha256");
        let found = fs::read_dir(owners).unwrap().any(|layer| {
            fs::read_to_string(layer.unwrap().path().join("owners.jsonl"))
                .is_ok_and(|text| text.contains(r#""path":"conf","uid":77,"gid":78"#))
        });
        assert!(found, "the owner of /conf is written down");
    });
}

#[test]
fn a_build_that_is_ended_leaves_nothing() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let dockerfile = format!(
        "FROM {}\nRUN echo running && (sleep 99 &) ; sleep 100\n",
        busybox(&fixtures)
    );
    let next = format!("FROM {}\nRUN true\n", busybox(&fixtures));
    for_each_identity(|sbxrt| {
        let host = Host::snapshot(sbxrt);
        let context = context(sbxrt, "context", &[("Dockerfile", &dockerfile)]);
        for signal in ["INT", "KILL"] {
            let call = build(sbxrt, &[], &context);
            let mut child = call.spawn();
            let running = eventually(PATIENCE, || {
                sbxrt
                    .unfinished()
                    .iter()
                    .any(|path| path.join("layer").exists())
            });
            assert!(running);
            pause(Duration::from_millis(300));
            let status = std::process::Command::new("kill")
                .args([&format!("-{signal}"), &child.id().to_string()])
                .status()
                .unwrap();
            assert!(status.success());
            child.wait().unwrap();
            host.assert_nothing_is_left();
            if signal == "INT" {
                assert_eq!(sbxrt.unfinished(), Vec::<PathBuf>::new());
            }
        }
        fs::write(context.join("Dockerfile"), &next).unwrap();
        build(sbxrt, &[], &context).output().success();
        assert_eq!(
            sbxrt.unfinished(),
            Vec::<PathBuf>::new(),
            "the next build sweeps"
        );
    });
}

#[test]
fn an_image_is_built_from_nothing_and_from_a_directory() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let fixture = fixtures.busybox_rootfs();
    let fixture = fixture.strip_prefix("dir:").unwrap();
    for_each_identity(|sbxrt| {
        // The fixture has a directory that is root's alone.
        let rootfs = sbxrt.scratch("rootfs");
        let copied = std::process::Command::new("cp")
            .args(["-r", &format!("{fixture}/bin"), &format!("{fixture}/usr")])
            .arg(&rootfs)
            .status();
        assert!(copied.unwrap().success());
        let rootfs = format!("dir:{}", rootfs.display());
        let dockerfile = "ARG ROOT\nFROM ${ROOT} AS files\nFROM scratch\nCOPY --from=files / /\nCMD [\"echo\", \"scratch\"]\n";
        let context = context(sbxrt, "context", &[]);
        let argument = format!("ROOT={rootfs}");
        let flags = ["-t", "mine", "-f", "-", "--build-arg", &argument];
        let output = build(sbxrt, &flags, &context).stdin(dockerfile).output();
        output.success();
        let output = sbxrt.run(["mine"]).output();
        assert_eq!(output.success(), "scratch\n");
        // Without a name it is called by its digest.
        let dockerfile = "FROM scratch\nCOPY <<x /x\nx\n";
        let output = build(sbxrt, &["-f", "-", "--json"], &context)
            .stdin(dockerfile)
            .output();
        let document: serde_json::Value = serde_json::from_str(output.success()).unwrap();
        let name = document["image"]["name"].as_str().unwrap();
        assert!(name.starts_with("localhost/build@sha256:"), "{output}");
        sbxrt.command(["inspect", name]).output().success();
    });
}

#[test]
fn a_command_and_an_image_make_another_image() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = busybox(&fixtures);
    for_each_identity(|sbxrt| {
        let output = sbxrt
            .command([
                "commit",
                "-e",
                "WORD=kept",
                "-w",
                "/work",
                "--cmd",
                r#"["sh", "-c", "cat file; echo $WORD; pwd"]"#,
                "--label",
                "a=b",
                &image,
                "mine",
                "--",
                "sh",
                "-c",
                "echo $WORD >file; rm /data/keep; echo said",
            ])
            .deadline(Duration::from_secs(60))
            .output();
        assert!(output.success().starts_with("sha256:"), "{output}");
        assert!(output.stderr.contains("said\n"), "{output}");
        let output = sbxrt.run(["mine"]).output();
        assert_eq!(output.success(), "kept\nkept\n/work\n");
        let output = sbxrt.run(["mine", "ls", "/data"]).output();
        assert!(!output.success().contains("keep\n"), "{output}");
        let output = sbxrt
            .command(["commit", &image, "other", "--", "false"])
            .deadline(Duration::from_secs(60))
            .output();
        assert_eq!(output.code(), 1, "{output}");
        assert!(output.stderr.contains("status 1"), "{output}");
        let output = sbxrt.command(["images"]).output();
        assert!(!output.success().contains("other"), "{output}");
        assert_eq!(sbxrt.unfinished(), Vec::<PathBuf>::new());
    });
}

#[test]
fn what_is_built_goes_where_it_is_wanted_and_others_read_it() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let dockerfile = format!(
        "FROM {}\nCOPY --chown=7:8 --chmod=640 mine /app/mine\n\
         RUN rm /data/keep && rm -r /opaque && mkdir /opaque && touch /opaque/fresh\n\
         LABEL kind=built\n",
        busybox(&fixtures)
    );
    for_each_identity(|sbxrt| {
        let context = context(
            sbxrt,
            "context",
            &[("Dockerfile", &dockerfile), ("mine", "mine\n")],
        );
        let arguments = [
            "-t",
            "mine",
            "--json",
            "-o",
            "oci:layout:mine",
            "--output=oci-archive:mine.tar:mine",
            "-o",
            "docker-archive:docker.tar:mine:1",
            "-o",
            "dir:flat",
        ];
        let output = build(sbxrt, &arguments, &context).output();
        let report: serde_json::Value = serde_json::from_str(output.success()).unwrap();
        let places: Vec<_> = report["outputs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["destination"].as_str().unwrap())
            .collect();
        assert_eq!(
            places,
            [
                "oci:layout:mine",
                "oci-archive:mine.tar:mine",
                "docker-archive:docker.tar:mine:1",
                "dir:flat"
            ]
        );
        // One configuration, whatever the way out.
        for image in [
            "oci:layout:mine",
            "oci-archive:mine.tar:mine",
            "docker-archive:docker.tar",
        ] {
            let inspected = sbxrt.tool(&["skopeo", "inspect", image]);
            let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
            assert_eq!(inspected["Labels"]["kind"], "built", "{image}");
            let config = sbxrt.tool(&["skopeo", "inspect", "--config", image]);
            let config: serde_json::Value = serde_json::from_str(&config).unwrap();
            let last = config["history"]
                .as_array()
                .unwrap()
                .last()
                .unwrap()
                .clone();
            assert!(
                last["created_by"].as_str().unwrap().contains("LABEL"),
                "{image}: {last}"
            );
        }
        let archives = sbxrt.tool(&[
                "sh",
                "-c",
                // What is no layer is no archive either.
                "set -e; mkdir blobs; skopeo copy -q oci:layout:mine dir:blobs; \
                 for blob in blobs/*; do tar --numeric-owner -tvf $blob 2>/dev/null || continue; done",
            ],
        );
        assert!(
            archives
                .lines()
                .any(|line| line.starts_with("-rw-r----- 7/8") && line.ends_with("app/mine")),
            "{archives}"
        );
        assert!(archives.contains("data/.wh.keep"), "{archives}");
        sbxrt.tool(&[
            "umoci",
            "unpack",
            "--rootless",
            "--image",
            "layout:mine",
            "unpacked",
        ]);
        for root in ["unpacked/rootfs", "flat"] {
            let root = sbxrt.home().join(root);
            let found = ["app/mine", "data/keep", "data/hardlink", "opaque/fresh"]
                .map(|path| fs::symlink_metadata(root.join(path)).is_ok());
            assert_eq!(found, [true, false, true, true], "{}", root.display());
            assert_eq!(fs::read_dir(root.join("opaque")).unwrap().count(), 1);
        }
        // It is in the store as well, and sound.
        let output = sbxrt.run(["mine", "cat", "/app/mine"]).output();
        assert_eq!(output.success(), "mine\n");
        let output = sbxrt.command(["verify", "mine"]).output();
        output.success();
        assert!(
            output.stderr.contains("all sound") && !output.stderr.contains("cannot be verified"),
            "{output}"
        );
        // Nothing is built for a place that is none.
        let output = build(sbxrt, &["-t", "other", "-o", "host:"], &context).output();
        assert_eq!(output.code(), 1, "{output}");
        assert!(output.stderr.contains("host:"), "{output}");
        assert!(!output.stderr.contains("FROM"), "{output}");
    });
}

#[test]
fn what_was_altered_in_a_built_image_is_found() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let dockerfile = format!(
        "FROM {}\nRUN echo kept >/made && rm /data/keep\nCOPY mine /closed/\nRUN chmod 0 /closed /closed/mine\n",
        busybox(&fixtures)
    );
    for_each_identity(|sbxrt| {
        let context = context(
            sbxrt,
            "context",
            &[("Dockerfile", &dockerfile), ("mine", "mine\n")],
        );
        let store = sbxrt.home().join("altered");
        let store_argument = format!("--store={}", store.display());
        build(sbxrt, &["-q", &store_argument, "-t", "mine"], &context)
            .output()
            .success();
        let output = sbxrt
            .command(["verify", "--json", &store_argument])
            .output();
        let report: serde_json::Value = serde_json::from_str(output.success()).unwrap();
        assert_eq!(report["unverifiable"], serde_json::json!([]));
        assert_eq!(report["damaged"], serde_json::json!([]));
        let layers = fs::read_dir(store.join("layers/sha256")).unwrap();
        let made = layers
            .map(|layer| layer.unwrap().path().join("fs/made"))
            .find(|path| path.exists())
            .unwrap();
        fs::write(&made, "KEPT\n").unwrap();
        let output = sbxrt
            .command(["verify", &store_argument, "--repair"])
            .output();
        assert_eq!(output.code(), 1, "{output}");
        assert!(output.text().contains("files have changed"), "{output}");
        // The layers are made anew where they are gone, and what the cache says of them with them.
        let output = build(sbxrt, &[&store_argument, "-t", "mine"], &context).output();
        output.success();
        let output = sbxrt.command(["verify", &store_argument]).output();
        output.success();
        let records = || fs::read_dir(store.join("cache")).unwrap().count();
        assert_ne!(records(), 0);
        sbxrt
            .command(["rmi", &store_argument, "mine"])
            .output()
            .success();
        sbxrt.command(["gc", &store_argument]).output().success();
        assert_eq!(records(), 0);
    });
}
