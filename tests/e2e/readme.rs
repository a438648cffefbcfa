//! The commands of the README do what it says of them. A new one there needs a row here.

use std::fs;
use std::time::Duration;

use sbxrt_tests::{for_each_identity, registry};

/// What a command of the README does here: the command, the exit status, and what it prints (on either stream).
///
/// Names of Docker Hub stand for images of the tests' registry.
const COMMANDS: &[(&str, i32, &str)] = &[
    (
        r#"sbxrt run host: python3 -c 'print("hello from a sandbox")'"#,
        0,
        "hello from a sandbox\n",
    ),
    (
        "sbxrt run python:3.12-slim python3 -c 'import sys; print(sys.version_info[:2])'",
        0,
        "(3, 11)\n",
    ),
    // Typed at a terminal, which script provides.
    ("sbxrt run -it debian:12 bash", 5, "inside"),
    (
        "echo '3 4' | sbxrt run -i -m 256m --timeout 5s -v ./task:/task:ro python:3.12-slim python3 /task/main.py",
        0,
        "7\n",
    ),
    (
        "sbxrt run --json -m 64m host: python3 -c 'bytearray(256 << 20)'",
        137,
        r#""kind": "oom""#,
    ),
    (
        r#"sbxrt run --output /tmp/result.csv:result.csv host: python3 -c 'print("a,b", file=open("/tmp/result.csv", "w"))' && cat result.csv"#,
        0,
        "a,b\n",
    ),
    (
        r#"echo '{"id": "a", "stdin": "3 4", "timeout": "20s"}' | sbxrt batch -q host: python3 -c 'print(sum(map(int, input().split())))'"#,
        0,
        r#""stdout":{"text":"7\n""#,
    ),
    (
        "sbxrt run --require memory=cgroup,pids=cgroup host: true",
        125,
        "cgroup is required",
    ),
    (
        "sbxrt build -t my-task task && echo '3 4' | sbxrt run -i my-task",
        0,
        "7\n",
    ),
    (
        r#"sbxrt commit python:3.12-slim my-python -- python3 -c 'open("/kept", "w").write("kept")'"#,
        0,
        "sha256:",
    ),
];

/// The lines of the README that are typed: `$ …` in examples, and what follows cargo's `--`.
fn typed(readme: &str) -> Vec<&str> {
    readme
        .lines()
        .filter_map(|line| {
            line.strip_prefix("$ ").or_else(|| {
                line.split_once("cargo run --release -q -p sbxrt-cli -- ")?
                    .1
                    .into()
            })
        })
        .collect()
}

#[test]
fn every_command_of_the_readme_is_in_the_table() {
    let readme = include_str!("../../README.md");
    let known: Vec<&str> = COMMANDS.iter().map(|(command, ..)| *command).collect();
    for line in typed(readme) {
        assert!(
            known
                .iter()
                .any(|command| *command == line || command.strip_prefix("sbxrt ") == Some(line)),
            "not tested: {line}"
        );
    }
}

#[test]
fn the_commands_of_the_readme_do_what_it_says() {
    let Some(registry) = registry() else { return };
    for_each_identity(|sbxrt| {
        let directory = sbxrt.scratch("readme");
        fs::create_dir(directory.join("task")).unwrap();
        fs::write(
            directory.join("task/main.py"),
            "print(sum(map(int, input().split())))\n",
        )
        .unwrap();
        let dockerfile =
            format!("FROM {registry}/python\nCOPY main.py /\nCMD [\"python3\", \"/main.py\"]\n");
        fs::write(directory.join("task/Dockerfile"), dockerfile).unwrap();
        for (command, status, said) in COMMANDS {
            // Root may have directories of version 1 that hold it.
            if sbxrt.identity().is_root() && command.contains("--require") {
                continue;
            }
            let command = command
                .replace("python:3.12-slim", &format!("{registry}/python"))
                .replace("debian:12 bash", &format!("{registry}/busybox sh"));
            let script = if command.contains("-it") {
                "cd \"$1\" && shift && printf 'echo in''side\\nexit 5\\n' | script -qec \"$COMMAND\" /dev/null"
            } else {
                "cd \"$1\" && shift && eval \"$COMMAND\""
            };
            let binary = sbxrt.binary().parent().unwrap().display();
            let output = sbxrt
                .command(["--version"])
                .called_by(["sh", "-c", script, "sh", directory.to_str().unwrap()])
                .env("COMMAND", &command)
                .env("PATH", format!("{binary}:/usr/bin:/bin"))
                // The first ones of them get an image, on a machine that may have other things to do.
                .deadline(Duration::from_secs(120))
                .output();
            assert_eq!(output.code(), *status, "{command}: {output}");
            let all = format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                output.stderr
            );
            assert!(all.contains(said), "{command}: {output}");
        }
    });
}
