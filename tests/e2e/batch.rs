//! `sbxrt batch`: a line of results for each line of items, whatever becomes of the programs or of the batch.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sbxrt_tests::{
    Fixtures, Identity, Output, Sbxrt, Stdout, descendants, eventually, for_each_identity,
    identities,
};
use serde_json::{Value, json};

/// As long as a busy machine may take.
const PATIENCE: Duration = Duration::from_secs(120);

fn lines(items: impl IntoIterator<Item = Value>) -> String {
    let mut text = String::new();
    for item in items {
        text += &item.to_string();
        text.push('\n');
    }
    text
}

fn shell(id: &str, script: &str) -> Value {
    json!({"id": id, "command": ["sh", "-c", script]})
}

/// The results, in the order of their items.
fn results(text: &str) -> Vec<Value> {
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    let mut results: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    results.sort_by_key(|result| result["index"].as_u64());
    results
}

fn batch(sbxrt: &Sbxrt, words: &[&str], input: impl Into<Vec<u8>>) -> Output {
    sbxrt
        .command(["batch", "--timeout", "60s"].iter().chain(words))
        .stdin(input)
        .deadline(PATIENCE)
        .output()
}

/// Starts a batch that reads `items` and writes `results`, both in the home directory.
fn start(sbxrt: &Sbxrt, words: &[&str]) -> Child {
    let files = ["-q", "-i", "items", "-o", "results", "--timeout", "60s"];
    sbxrt
        .command(["batch"].iter().chain(&files).chain(words))
        .spawn()
}

/// How many whole lines there are so far.
fn written(path: &Path) -> usize {
    let bytes = fs::read(path).unwrap_or_default();
    bytes.split(|&byte| byte == b'\n').count() - 1
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn every_item_has_a_result_that_says_how_it_ended() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let item = |number: u32| {
            let id = number.to_string();
            match number % 10 {
                0 => shell(&id, "exit 3"),
                1 => shell(&id, "kill -9 $$"),
                2 => json!({"id": id, "command": ["sleep", "100"], "timeout": "300ms"}),
                3 => {
                    json!({"id": id, "command": ["yes"], "output_limit": "1k", "output_action": "kill"})
                }
                4 => json!({"id": id, "command": ["no-such-program"]}),
                5 => json!({"id": id, "command": ["cat"], "stdin": format!("input {number}")}),
                6 => {
                    json!({"id": id, "command": ["sh", "-c", "echo $A"], "env": {"A": format!("input {number}")}})
                }
                7 if number == 7 => {
                    json!({"id": id, "command": ["tail", "/dev/zero"], "memory": "24m"})
                }
                // The command line's command, and what an item adds to it.
                _ => json!({"id": number, "args": [format!("input {number}")]}),
            }
        };
        let image = fixtures.busybox_rootfs();
        let words = ["--summary", "summary", "-j", "4", &image, "echo", "-n"];
        let output = batch(sbxrt, &words, lines((0..200).map(item)));
        assert_eq!(output.code(), 0, "{output}");
        let results = results(output.text());
        assert_eq!(results.len(), 200, "{output}");
        let mut keys = HashSet::new();
        for (number, result) in results.iter().enumerate() {
            assert_eq!(result["index"], number + 1, "{result}");
            assert!(keys.insert(result["key"].as_str().unwrap()), "{result}");
            let document = &result["result"];
            let kind = document["termination"]["kind"].as_str().unwrap();
            let (expected, text) = match number % 10 {
                0 => ("exited", None),
                1 => ("signaled", None),
                2 => ("timeout", None),
                3 => ("output", None),
                4 => ("start_failed", None),
                6 => ("exited", Some(format!("input {number}\n"))),
                7 if number == 7 => ("oom", None),
                _ => ("exited", Some(format!("input {number}"))),
            };
            assert_eq!(kind, expected, "{result}");
            if let Some(text) = text {
                assert_eq!(document["stdout"]["text"], text, "{result}");
            }
            match number % 10 {
                7..=9 if number != 7 => assert_eq!(result["id"], number, "{result}"),
                _ => assert_eq!(result["id"], number.to_string(), "{result}"),
            }
        }
        let summary = fs::read(sbxrt.home().join("summary")).unwrap();
        let summary: Value = serde_json::from_slice(&summary).unwrap();
        let kinds: BTreeMap<&str, u64> = [
            ("exited", 119),
            ("oom", 1),
            ("output", 20),
            ("signaled", 20),
            ("start_failed", 20),
            ("timeout", 20),
        ]
        .into();
        assert_eq!(summary["kinds"], json!(kinds), "{summary}");
        assert_eq!(
            (&summary["succeeded"], &summary["jobs"]),
            (&json!(99), &json!(4))
        );
        assert!(output.stderr.contains("200 items in "), "{output}");
    });
}

#[test]
fn what_cannot_be_run_is_a_line_that_says_why() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let input = [
            "{\"id\": \"good\", \"command\": [\"true\"]}\n",
            "no json\n",
            "\n   \n",
            "[1, 2]\n",
            "{\"id\": \"typo\", \"comand\": [\"true\"]}\n",
            "{\"id\": \"limit\", \"memory\": \"1k\"}\n",
            "{\"id\": \"image\", \"image\": \"oci:nowhere\"}\n",
            "{\"id\": \"dir\", \"image\": \"dir:/\"}\n",
            "{\"id\": \"escape\", \"files\": {\"../x\": \"\"}}\n",
            // Without an end.
            "{\"id\": \"last\", \"command\": [\"true\"]}",
        ]
        .concat();
        let image = fixtures.busybox_rootfs();
        let output = batch(sbxrt, &["-j", "2", &image, "true"], input.clone());
        assert_eq!(output.code(), 1, "{output}");
        let found = results(output.text());
        let expected = [
            (1, json!("good"), None),
            (2, Value::Null, Some("line 2 is no item")),
            (5, Value::Null, Some("no object")),
            (6, json!("typo"), Some("\"comand\" is unknown")),
            (7, json!("limit"), Some("memory limit")),
            (8, json!("image"), Some("nowhere")),
            (9, json!("dir"), Some("--allow-image")),
            (10, json!("escape"), Some("..")),
            (11, json!("last"), None),
        ];
        assert_eq!(found.len(), expected.len(), "{output}");
        for (result, (index, id, message)) in found.iter().zip(expected) {
            assert_eq!(
                (&result["index"], &result["id"]),
                (&json!(index), &id),
                "{result}"
            );
            match message {
                Some(word) => {
                    let error = &result["error"];
                    let text = format!("{} {}", error["message"], error["causes"]);
                    assert!(
                        text.replace("\\\"", "\"").contains(word),
                        "{word}: {result}"
                    );
                    assert!(result.get("result").is_none(), "{result}");
                }
                None => assert_eq!(result["result"]["exit_code"], 0, "{result}"),
            }
        }
        assert!(output.stderr.contains("could not be run"), "{output}");

        // Who insists on items ends at the first line that is none.
        let output = batch(sbxrt, &["-j", "1", "--strict", &image, "true"], input);
        assert_eq!(output.code(), 1, "{output}");
        assert!(results(output.text()).len() < 9, "{output}");
    });
}

#[test]
fn a_killed_batch_goes_on_and_every_item_has_one_result() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.busybox_rootfs();
        let items = (0..60).map(|number| shell(&format!("{number}"), "sleep 0.1; echo done"));
        fs::write(sbxrt.home().join("items"), lines(items)).unwrap();
        let path = sbxrt.home().join("results");
        let words = ["-j", "4", "--resume", &image];
        let mut child = start(sbxrt, &words);
        assert!(eventually(PATIENCE, || written(&path) >= 8));
        signal(&child, Signal::KILL);
        child.wait().unwrap();
        let before = fs::read_to_string(&path).unwrap();
        assert!((8..60).contains(&written(&path)), "{before}");
        // As though it had been killed in the middle of a line, which is a matter of luck.
        fs::write(&path, format!("{before}{{\"version\":1,\"id\":\"7\",\"ke")).unwrap();

        let refused = sbxrt.command(["batch", "-o", "results", &image, "true"]);
        refused
            .output()
            .assert_refused(&["results already", "--resume"]);

        let status = start(sbxrt, &words).wait().unwrap();
        assert_eq!(status.code(), Some(0));
        let after = fs::read_to_string(&path).unwrap();
        assert!(after.starts_with(&before), "{after}");
        let ids: Vec<String> = results(&after)
            .iter()
            .map(|result| {
                assert_eq!(result["result"]["stdout"]["text"], "done\n", "{result}");
                result["id"].as_str().unwrap().to_owned()
            })
            .collect();
        let expected: Vec<String> = (0..60).map(|number| number.to_string()).collect();
        assert_eq!(ids, expected);

        // There is nothing left to do.
        let status = start(sbxrt, &words).wait().unwrap();
        assert_eq!(status.code(), Some(0));
        assert_eq!(fs::read_to_string(&path).unwrap(), after);
    });
}

#[test]
fn failures_are_tried_again_and_duplicates_each_have_a_result() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.busybox_rootfs();
        let mut items = vec![json!({"command": ["true"]}); 6];
        items.push(json!({"id": "later", "image": "oci:later:latest"}));
        fs::write(sbxrt.home().join("items"), lines(items)).unwrap();
        let path = sbxrt.home().join("results");
        let allowed = ["--allow-image", "oci:later:latest"];
        let words = [&allowed[..], &["-j", "2", "--resume", &image, "true"]].concat();
        assert_eq!(start(sbxrt, &words).wait().unwrap().code(), Some(1));
        let text = fs::read_to_string(&path).unwrap();
        let found = results(&text);
        let keys: HashSet<String> = found[..6].iter().map(|it| it["key"].to_string()).collect();
        assert_eq!((found.len(), keys.len()), (7, 1), "{text}");
        assert!(found[6].get("error").is_some(), "{text}");

        // Two of the six are gone, and the image that was missing has come.
        let mut kept: Vec<&str> = text.lines().collect();
        kept.retain(|line| !line.contains("\"index\":2,") && !line.contains("\"index\":5,"));
        fs::write(&path, kept.join("\n") + "\n").unwrap();
        fixtures.variant(sbxrt, "later", |_, _| {});
        assert_eq!(start(sbxrt, &words).wait().unwrap().code(), Some(0));
        let text = fs::read_to_string(&path).unwrap();
        let found = results(&text);
        assert_eq!(found.len(), 7, "{text}");
        assert!(
            found.iter().all(|it| it["result"]["exit_code"] == 0),
            "{text}"
        );
        assert_eq!(found[6]["id"], "later", "{text}");
    });
}

#[test]
fn a_signal_lets_programs_finish_and_the_rest_is_run_later() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.busybox_rootfs();
        let items = (0..10).map(|number| shell(&number.to_string(), "sleep 1; echo done"));
        fs::write(sbxrt.home().join("items"), lines(items)).unwrap();
        let path = sbxrt.home().join("results");
        let words = ["-j", "2", "--resume", "--grace", "100s", &image];
        let mut child = start(sbxrt, &words);
        assert!(eventually(PATIENCE, || written(&path) >= 1));
        signal(&child, Signal::TERM);
        assert_eq!(child.wait().unwrap().code(), Some(75));
        let found = results(&fs::read_to_string(&path).unwrap());
        assert!(found.len() < 10);
        for result in &found {
            assert_eq!(result["result"]["stdout"]["text"], "done\n", "{result}");
        }
        assert_eq!(start(sbxrt, &words).wait().unwrap().code(), Some(0));
        assert_eq!(results(&fs::read_to_string(&path).unwrap()).len(), 10);
    });
}

#[test]
fn what_does_not_finish_in_time_leaves_no_result() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.busybox_rootfs();
        let mut items = vec![shell("short", "true")];
        items.extend(vec![shell("long", "sleep 1000"); 3]);
        fs::write(sbxrt.home().join("items"), lines(items)).unwrap();
        let path = sbxrt.home().join("results");
        let words = ["-j", "2", "--timeout", "none", "--grace", "1s", &image];
        let files = ["-q", "-i", "items", "-o", "results"];
        let mut child = sbxrt
            .command(["batch"].iter().chain(&files).chain(&words))
            .spawn();
        assert!(eventually(PATIENCE, || written(&path) >= 1));
        signal(&child, Signal::INT);
        assert_eq!(child.wait().unwrap().code(), Some(75));
        let found = results(&fs::read_to_string(&path).unwrap());
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0]["id"], "short");
    });
}

#[test]
fn items_have_limits_images_files_and_outputs_of_their_own() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        sbxrt.scratch("copies");
        let other = fixtures.variant(sbxrt, "other", |config, _| {
            config["config"]["Env"] = json!(["PATH=/bin", "WHO=the other image"]);
        });
        let script = "cat main.txt /data/deep/b; ./tool; stat -c %a tool; ls -d /x 2>&1";
        let files = json!({
            "main.txt": "one ",
            "/data/deep/b": {"base64": "dHdvIA=="},
            "tool": {"text": "#!/bin/sh\necho three\n", "mode": "755"},
        });
        let items = [
            json!({"command": ["sh", "-c", script], "files": files, "workdir": "/work"}),
            json!({"command": ["sh", "-c", "echo $WHO"], "image": other}),
            json!({"command": ["true"], "memory": "32m", "pids_limit": 7, "cpus": "0.5", "timeout": 30, "scratch_size": "1m"}),
            json!({"command": ["sh", "-c", "mkdir out; echo x > out/a; echo y > b"], "workdir": "/tmp", "outputs": ["out", "b", "missing"]}),
            json!({"command": ["true"], "files": {"/large": "x".repeat(2 << 20)}, "scratch_size": "1m"}),
        ];
        let image = fixtures.busybox_rootfs();
        let words = [
            "-j",
            "2",
            "--output-dir",
            "copies",
            "--allow-image",
            &other,
            &image,
        ];
        let output = batch(sbxrt, &words, lines(items));
        assert_eq!(output.code(), 1, "{output}");
        let found = results(output.text());
        let text = |index: usize| found[index]["result"]["stdout"]["text"].as_str().unwrap();
        assert_eq!(
            text(0),
            "one two three\n755\nls: /x: No such file or directory\n",
            "{output}"
        );
        assert_eq!(text(1), "the other image\n", "{output}");
        assert_ne!(found[0]["result"]["image"], found[1]["result"]["image"]);
        let limits = &found[2]["result"]["limits"];
        let values =
            ["memory", "pids", "cpus", "scratch"].map(|name| limits[name]["value"].clone());
        assert_eq!(
            values,
            [json!(32 << 20), json!(7), json!(0.5), json!(1 << 20)]
        );
        assert_eq!(limits["wall_time_ms"]["value"], 30_000.0, "{limits}");
        let outputs = found[3]["result"]["outputs"].as_array().unwrap();
        let paths: Vec<&str> = outputs
            .iter()
            .map(|it| it["path"].as_str().unwrap())
            .collect();
        assert_eq!(
            paths,
            ["/tmp/out", "/tmp/out/a", "/tmp/b", "/tmp/missing"],
            "{output}"
        );
        let key = found[3]["key"].as_str().unwrap();
        let copies = sbxrt
            .home()
            .join("copies")
            .join(format!("4-{}", &key[..12]));
        assert_eq!(fs::read(copies.join("out/a")).unwrap(), b"x\n");
        assert_eq!(fs::read(copies.join("b")).unwrap(), b"y\n");
        let error = found[4]["error"].to_string();
        assert!(
            error.contains("put a file into the sandbox") && error.contains("ENOSPC"),
            "{error}"
        );
        assert_eq!(
            fs::read_dir(sbxrt.home().join("copies")).unwrap().count(),
            1
        );
    });
}

#[test]
fn files_get_no_further_than_the_program_could() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let volume = sbxrt.scratch("volume");
        fs::write(volume.join("kept"), "kept").unwrap();
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        fs::set_permissions(volume.join("kept"), everybody).unwrap();
        // A link of the program's own making leads nowhere outside, as none of an image's does.
        std::os::unix::fs::symlink("/", volume.join("root")).unwrap();
        let mount = format!("{}:/volume:ro", volume.display());
        let item = |path: &str| json!({"command": ["cat", path], "files": {path: "new"}});
        let paths = [
            "/volume/kept",
            "/volume/root/inside",
            "/etc",
            "/proc/1/oom_score_adj",
            "/bin/../x",
        ];
        let image = fixtures.busybox_rootfs();
        let words = ["-v", &mount, &image];
        let output = batch(sbxrt, &words, lines(paths.map(item)));
        assert_eq!(output.code(), 1, "{output}");
        let found = results(output.text());
        let reasons = ["EROFS", "", "EISDIR", "kernel's own", "must not contain .."];
        for (result, reason) in found.iter().zip(reasons) {
            match reason {
                "" => assert_eq!(result["result"]["stdout"]["text"], "new", "{result}"),
                _ => assert!(
                    result["error"].to_string().contains(reason),
                    "{reason}: {result}"
                ),
            }
        }
        assert!(!Path::new("/inside").exists());
        assert_eq!(fs::read(volume.join("kept")).unwrap(), b"kept");

        let read_only = batch(
            sbxrt,
            &["--read-only", &image],
            lines([item("/x"), item("/tmp/x")]),
        );
        let found = results(read_only.text());
        assert!(
            found[0]["error"].to_string().contains("EROFS"),
            "{read_only}"
        );
        assert_eq!(found[1]["result"]["stdout"]["text"], "new", "{read_only}");
    });
}

#[test]
fn results_that_cannot_be_written_end_the_batch() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.busybox_rootfs();
        let items = lines((0..1000).map(|number| shell(&number.to_string(), "sleep 0.05")));
        for (stdout, reason) in [(Stdout::Full, "ENOSPC"), (Stdout::BrokenPipe, "EPIPE")] {
            let output = sbxrt
                .command(["batch", "-j", "2", &image])
                .stdin(items.clone())
                .stdout(stdout)
                .deadline(PATIENCE)
                .output();
            assert_eq!(output.code(), 125, "{output}");
            assert!(output.stderr.contains(reason), "{output}");
        }
    });
}

#[test]
fn a_container_that_stood_ready_has_the_files_of_its_item_and_no_others() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let item = |number: u32| {
            let script = format!("cat {number}; echo $N; cat; ls /tmp | wc -l; touch /tmp/mine");
            let files = json!({number.to_string(): format!("file {number}, ")});
            json!({"id": number, "command": ["sh", "-c", script], "files": files, "env": {"N": number.to_string()}, "stdin": "in\n"})
        };
        let words = ["-j", "2", "--pool", "3", &fixtures.busybox_rootfs()];
        let output = batch(sbxrt, &words, lines((0..30).map(item)));
        assert_eq!(output.code(), 0, "{output}");
        let found = results(output.text());
        for (number, result) in found.iter().enumerate() {
            let expected = format!("file {number}, {number}\nin\n0\n");
            assert_eq!(result["result"]["stdout"]["text"], expected, "{result}");
        }
        assert_eq!(found.len(), 30, "{output}");
    });
}

#[test]
fn what_a_scheduler_ends_with_the_batch_is_run_again() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let items = ["600", "601", "602"].map(|time| json!({"command": ["sleep", time]}));
        fs::write(sbxrt.home().join("items"), lines(items)).unwrap();
        let path = sbxrt.home().join("results");
        let image = fixtures.busybox_rootfs();
        let files = ["-q", "-i", "items", "-o", "results", "--timeout", "none"];
        let words = ["-j", "1", "--grace", "none", &image];
        let mut child = sbxrt
            .command(["batch"].iter().chain(&files).chain(&words))
            .spawn();
        let end = |time: &str| {
            assert!(eventually(PATIENCE, || {
                let program = descendants(child.id()).into_iter().find(|pid| {
                    fs::read(format!("/proc/{pid}/cmdline"))
                        .is_ok_and(|words| words == format!("sleep\0{time}\0").into_bytes())
                });
                let program = program.and_then(|pid| Pid::from_raw(i32::try_from(pid).unwrap()));
                program.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok())
            }));
        };
        // A signal from anywhere is an end like others,
        end("600");
        assert!(eventually(PATIENCE, || written(&path) >= 1));
        // unless the batch is being stopped.
        end_both(&child, || end("601"));
        assert_eq!(child.wait().unwrap().code(), Some(75));
        let found = results(&fs::read_to_string(&path).unwrap());
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0]["result"]["termination"]["signal"], "SIGTERM");
    });
}

/// As a scheduler does it, to all processes of a job.
fn end_both(child: &Child, end: impl FnOnce()) {
    signal(child, Signal::TERM);
    end();
}

#[test]
fn one_file_is_not_two_things() {
    for_each_identity(|sbxrt| {
        for words in [
            ["-i", "same", "-o", "same"],
            ["-o", "same", "--summary", "./same"],
        ] {
            let output = sbxrt.command(["batch"].iter().chain(&words).chain(&["host:"]));
            output.output().assert_refused(&["same file"]);
        }
    });
}

#[test]
fn a_reader_that_does_not_read_holds_no_end_up() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let items = (0..100).map(|number| shell(&number.to_string(), "head -c 200000 /dev/zero"));
        fs::write(sbxrt.home().join("items"), lines(items)).unwrap();
        let words = ["batch", "-i", "items", "-j", "2", "--grace", "1s"];
        let image = fixtures.busybox_rootfs();
        let mut child = sbxrt.command(words.iter().chain(&[image.as_str()])).spawn();
        let stdout = child.stdout.take().unwrap();
        let full = || rustix::io::ioctl_fionread(&stdout).unwrap() >= 60_000;
        assert!(eventually(PATIENCE, full));
        signal(&child, Signal::TERM);
        assert!(eventually(PATIENCE, || child.try_wait().unwrap().is_some()));
        assert_eq!(child.wait().unwrap().code(), Some(75));
    });
}

/// What is kept of an item that is done is nothing, or its key.
#[test]
fn memory_does_not_grow_with_the_number_of_items() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let identities = identities();
    let Some(identity) = identities
        .iter()
        .find(|it| !it.is_root())
        .or(identities.first())
    else {
        return;
    };
    let sbxrt = Sbxrt::new(Identity::clone(identity));
    let image = fixtures.busybox_rootfs();
    let peak = |items: usize| {
        let text = lines((0..items).map(|number| json!({"id": number, "command": ["true"]})));
        fs::write(sbxrt.home().join("items"), text).unwrap();
        drop(fs::remove_file(sbxrt.home().join("results")));
        let mut child = start(&sbxrt, &["-j", "4", &image]);
        let status = format!("/proc/{}/status", child.id());
        let mut peak = 0;
        let over = eventually(5 * PATIENCE, || {
            let text = fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kibibytes = line.and_then(|it| it.trim().strip_suffix("kB"));
            peak = kibibytes.map_or(peak, |it| it.trim().parse::<u64>().unwrap());
            child.try_wait().unwrap().is_some()
        });
        assert!(over && child.wait().unwrap().success());
        assert_eq!(written(&sbxrt.home().join("results")), items);
        peak
    };
    let (few, many) = (peak(200), peak(1000));
    eprintln!("peak: {few} KiB with 200 items, {many} KiB with 1000");
    assert!(
        many < few + 4096,
        "{few} KiB with 200 items, {many} KiB with 1000"
    );
}
