//! The store of people who share machines: one download for all, nothing partial, what others have used in place.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use sbxrt_tests::{
    Fixtures, Identity, Output, Request, Sbxrt, eventually, for_each_identity, identities, pause,
    registry, registry_requests,
};
use serde_json::Value;

/// Others use this machine at the same time.
const PATIENCE: Duration = Duration::from_secs(180);

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"))
}

/// `sbxrt WORDS…`, which must succeed.
fn ok(sbxrt: &Sbxrt, words: &[&str]) -> Output {
    let output = sbxrt.command(words).deadline(PATIENCE).output();
    output.success();
    output
}

fn store(sbxrt: &Sbxrt) -> PathBuf {
    sbxrt.home().join("data/sbxrt")
}

/// The requests for a repository, without the question whether there is a registry.
fn requests(repository: &str) -> Vec<Request> {
    let prefix = format!("/v2/{repository}/");
    let all = registry_requests().into_iter();
    all.filter(|request| request.path.starts_with(&prefix))
        .collect()
}

/// The requests for a repository beyond the first `before`, once those for blobs are `expected`.
fn requests_since(repository: &str, before: usize, expected: usize) -> Vec<Request> {
    let mut since = Vec::new();
    // The registry writes its log when it has answered.
    eventually(PATIENCE, || {
        since = requests(repository).split_off(before);
        blobs(&since).len() >= expected
    });
    since
}

fn blobs(requests: &[Request]) -> Vec<&str> {
    let mut paths = requests
        .iter()
        .filter(|request| request.method == "GET" && request.path.contains("/blobs/"))
        .map(|request| request.path.as_str())
        .collect::<Vec<_>>();
    paths.sort_unstable();
    paths
}

#[test]
fn twenty_runs_of_a_missing_image_fetch_everything_once() {
    let Some(registry) = registry() else { return };
    let image = format!("{registry}/flight");
    for_each_identity(|sbxrt| {
        let before = requests("flight").len();
        std::thread::scope(|scope| {
            let runs = (0..20)
                .map(|_| {
                    let run = sbxrt.run([image.as_str(), "cat", "/data/keep"]);
                    let run = run.deadline(PATIENCE);
                    scope.spawn(move || run.output())
                })
                .collect::<Vec<_>>();
            for run in runs {
                let output = run.join().unwrap();
                assert_eq!(output.success(), "keep\n", "{output}");
            }
        });
        let manifest = json(&ok(sbxrt, &["inspect", &image]));
        let layers = manifest["manifest"]["layers"].as_array().unwrap().len();
        let since = requests_since("flight", before, layers + 1);
        let fetched = blobs(&since);
        let mut once = fetched.clone();
        once.dedup();
        assert_eq!(fetched, once, "each blob is fetched once");
        assert_eq!(
            fetched.len(),
            layers + 1,
            "the layers and the configuration: {since:?}"
        );
        let manifests = since
            .iter()
            .filter(|request| request.method == "GET" && request.path.contains("/manifests/"))
            .count();
        assert_eq!(manifests, 1, "{since:?}");
        assert_eq!(sbxrt.unfinished(), Vec::<PathBuf>::new());
    });
}

const KILLS: u32 = 100;

#[test]
fn a_hundred_sudden_deaths_of_a_pull_leave_a_sound_store() {
    let Some(registry) = registry() else { return };
    let image = format!("{registry}/killed");
    // Not root, who may do what others may not.
    let identity = identities().pop().unwrap();
    let name = identity.name().to_owned();
    for_each_identity(|sbxrt| {
        if sbxrt.identity().name() != name {
            return;
        }
        let began = Instant::now();
        ok(sbxrt, &["pull", &image]);
        let whole = began.elapsed();
        let clean = usage(sbxrt);
        let blobs_of_image = json(&ok(sbxrt, &["inspect", &image]))["manifest"]["layers"]
            .as_array()
            .unwrap()
            .len()
            + 1;
        let seed = SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
        let (mut in_the_middle, mut resumed) = (0, 0);
        for kill in 0..KILLS {
            ok(sbxrt, &["rmi", &image]);
            let jitter = f64::from((seed ^ kill.wrapping_mul(2_654_435_761)) % 1000) / 1000.0;
            let wait = whole.mul_f64((f64::from(kill) + jitter) / f64::from(KILLS));
            let mut child = sbxrt.command(["pull", &image]).spawn();
            pause(wait);
            child.kill().unwrap();
            child.wait().unwrap();
            // What there is, is whole; and the image is found as a whole or not at all.
            let verified = json(&ok(sbxrt, &["verify", "--json"]));
            let finished = usize::try_from(verified["layers"].as_u64().unwrap()).unwrap();
            in_the_middle += u32::from(verified["images"] == 0);
            resumed += u32::from(finished > 0 && finished + 1 < blobs_of_image);
            if kill % 10 == 0 {
                let offline = ["--offline", image.as_str(), "cat", "/data/keep"];
                let found = sbxrt.run(offline).output();
                if verified["images"] == 0 {
                    found.assert_refused(&["offline", "killed"]);
                } else {
                    assert_eq!(found.success(), "keep\n");
                }
            }
            let before = requests("killed").len();
            ok(sbxrt, &["pull", &image]);
            // A layer that was finished is not fetched again. What the killed pull was reading then may be told only now,
            // and was fetched again; so it counts once.
            let since = requests_since("killed", before, 0);
            let mut fetched = blobs(&since);
            fetched.dedup();
            let fetched = fetched.len();
            assert!(
                fetched + finished <= blobs_of_image,
                "kill {kill}: {finished} layers were there and {fetched} blobs were fetched"
            );
            assert_eq!(sbxrt.unfinished(), Vec::<PathBuf>::new(), "kill {kill}");
            assert_eq!(
                usage(sbxrt)["total"],
                clean["total"],
                "kill {kill} after {wait:?}"
            );
        }
        eprintln!(
            "{in_the_middle} of {KILLS} came before the end of {whole:?}, {resumed} between layers"
        );
        assert!(in_the_middle > KILLS / 10, "the kills came too late");
        ok(sbxrt, &["verify"]);
    });
}

fn usage(sbxrt: &Sbxrt) -> Value {
    json(&ok(sbxrt, &["du", "--json"]))
}

#[test]
fn a_store_holds_what_is_documented_and_nothing_else() {
    let Some(registry) = registry() else { return };
    let image = format!("{registry}/busybox");
    for_each_identity(|sbxrt| {
        ok(sbxrt, &["pull", &image]);
        ok(sbxrt, &["run", &image, "true"]);
        let root = store(sbxrt);
        assert_eq!(fs::metadata(&root).unwrap().mode() & 0o7777, 0o700);
        let documented = include_str!("../../docs/store.md");
        let is_hex = |name: &str| name.len() == 64 && name.bytes().all(|c| c.is_ascii_hexdigit());
        let mut unknown = Vec::new();
        let mut waiting = vec![root.clone()];
        while let Some(directory) = waiting.pop() {
            for entry in fs::read_dir(&directory).unwrap() {
                let path = entry.unwrap().path();
                let shape = path
                    .strip_prefix(&root)
                    .unwrap()
                    .iter()
                    .map(|name| {
                        let name = name.to_str().unwrap();
                        match name.strip_suffix(".json") {
                            _ if is_hex(name) => "HEX".to_owned(),
                            Some(stem) if is_hex(stem) => "HEX.json".to_owned(),
                            _ => name.to_owned(),
                        }
                    })
                    .collect::<Vec<_>>()
                    .join("/");
                // A line of the page's listing: the path, then what it is.
                if !documented
                    .lines()
                    .any(|line| line.split_whitespace().next() == Some(&shape))
                {
                    unknown.push(shape.clone());
                }
                if path.is_dir() && !shape.ends_with("/fs") {
                    waiting.push(path);
                }
            }
        }
        unknown.sort();
        unknown.dedup();
        assert_eq!(unknown, Vec::<String>::new(), "not in docs/store.md");
    });
}

/// The files of a store's layers whose names end so.
fn files(store: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![store.join("layers")];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.push(path);
            } else if path.to_str().is_some_and(|path| path.ends_with(suffix)) {
                found.push(path);
            }
        }
    }
    found
}

type Alter = fn(&Path);

#[test]
fn what_was_altered_is_found_and_repaired() {
    let Some(registry) = registry() else { return };
    let image = format!("{registry}/busybox");
    let table: [(&str, Alter, &str); 8] = [
        (
            "contents",
            |store| fs::write(&files(store, "/data/keep")[0], "evil\n").unwrap(),
            "digest is",
        ),
        (
            "a file is gone",
            |store| fs::remove_file(&files(store, "/data/keep")[0]).unwrap(),
            "data/keep",
        ),
        (
            "a mode",
            |store| {
                let path = &files(store, "/data/keep")[0];
                fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
            },
            "mode",
        ),
        (
            "a link",
            |store| {
                let path = &files(store, "/data/symlink")[0];
                fs::remove_file(path).unwrap();
                std::os::unix::fs::symlink("/etc/passwd", path).unwrap();
            },
            "leads to /etc/passwd",
        ),
        (
            "a stranger",
            |store| {
                let path = files(store, "/data/keep")[0].with_file_name("stranger");
                fs::write(path, "x").unwrap();
            },
            "not in the layer",
        ),
        (
            "a manifest",
            |store| {
                let directory = fs::read_dir(store.join("blobs/sha256")).unwrap();
                for entry in directory {
                    fs::write(entry.unwrap().path(), "{}").unwrap();
                }
            },
            "digest is",
        ),
        (
            "a record's layers",
            |store| alter_record(store, "hidden_layers", &Value::from(1)),
            "leaves out other layers",
        ),
        (
            "a record's manifest",
            |store| {
                let record: Value =
                    serde_json::from_slice(&fs::read(record(store)).unwrap()).unwrap();
                alter_record(store, "config_digest", &record["digest"]);
            },
            "not the one that its manifest names",
        ),
    ];
    for_each_identity(|sbxrt| {
        ok(sbxrt, &["pull", &image]);
        let clean = ok(sbxrt, &["verify"]);
        assert!(clean.stderr.contains("all sound"), "{clean}");
        for (what, alter, expected) in &table {
            // By root, where root runs the tests: whoever it was, it is found.
            alter(&store(sbxrt));
            let found = sbxrt.command(["verify", &image]).output();
            assert_eq!(found.code(), 1, "{what}: {found}");
            assert!(found.text().contains(expected), "{what}: {found}");
            let report = sbxrt.command(["verify", "--json", "--repair"]).output();
            assert_eq!(report.code(), 1, "{what}: {report}");
            let damaged = &json(&report)["damaged"];
            assert!(
                damaged
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|one| one["removed"] == true),
                "{what}: {damaged}"
            );
            ok(sbxrt, &["verify"]);
            let output = ok(sbxrt, &["run", &image, "cat", "/data/keep"]);
            assert_eq!(output.text(), "keep\n", "{what}");
            ok(sbxrt, &["verify"]);
        }
        // Nobody knows what it was called, so it is found with the whole store.
        fs::write(record(&store(sbxrt)), "{").unwrap();
        let found = sbxrt.command(["verify", "--repair"]).output();
        assert_eq!(found.code(), 1, "{found}");
        assert!(found.text().contains("record cannot be read"), "{found}");
        ok(sbxrt, &["verify"]);
        ok(sbxrt, &["run", &image, "true"]);
        // A number that no layer has is no reason to fall over.
        for path in files(&store(sbxrt), "/layer.json") {
            let text = fs::read_to_string(&path).unwrap();
            let mut layer: Value = serde_json::from_str(&text).unwrap();
            layer["size"] = Value::from(u64::MAX);
            fs::write(&path, layer.to_string()).unwrap();
        }
        ok(sbxrt, &["images"]);
        ok(sbxrt, &["gc", "--keep", "1", "--dry-run"]);
    });
}

/// The record of the only image.
fn record(store: &Path) -> PathBuf {
    let mut records = fs::read_dir(store.join("images")).unwrap();
    records.next().unwrap().unwrap().path()
}

fn alter_record(store: &Path, key: &str, value: &Value) {
    let path = record(store);
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record[key] = value.clone();
    fs::write(&path, record.to_string()).unwrap();
}

#[test]
fn what_other_tools_have_made_is_verified() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        // A whole Debian, with setgid directories, and what umoci writes of whiteouts and links.
        for (name, tag) in [("python", "latest"), ("busybox", "layered")] {
            ok(sbxrt, &["pull", &fixtures.layout(name, tag)]);
        }
        let report = json(&ok(sbxrt, &["verify", "--json"]));
        assert_eq!(report["damaged"], serde_json::json!([]));
        assert_eq!(report["unverifiable"], serde_json::json!([]));
    });
}

#[test]
fn an_image_that_a_sandbox_runs_from_stays() {
    let Some(registry) = registry() else { return };
    let image = format!("{registry}/busybox");
    for_each_identity(|sbxrt| {
        ok(sbxrt, &["pull", &image]);
        let ready = sbxrt.scratch("ready");
        let volume = format!("{}:/ready", ready.display());
        let script =
            "touch /ready/now; while [ -e /ready/now ]; do sleep 0.05; done; cat /data/keep";
        let run = sbxrt.run(["-v", &volume, &image, "sh", "-c", script]);
        let run = run.deadline(PATIENCE);
        std::thread::scope(|scope| {
            let running = scope.spawn(move || run.output());
            assert!(eventually(PATIENCE, || ready.join("now").exists()));
            let refused = sbxrt.command(["rmi", &image]).output();
            assert_eq!(refused.code(), 1, "{refused}");
            assert!(refused.stderr.contains("in use"), "{refused}");
            let collected = json(&ok(sbxrt, &["gc", "--keep", "0", "--json"]));
            assert_eq!(collected["in_use"][0], image.clone() + ":latest");
            assert_eq!(collected["layers"], 0, "{collected}");
            // Its name may go; its files stay.
            ok(sbxrt, &["rmi", "--force", &image]);
            let collected = json(&ok(sbxrt, &["gc", "--json"]));
            assert_eq!(collected["layers"], 0, "{collected}");
            fs::remove_file(ready.join("now")).unwrap();
            let output = running.join().unwrap();
            assert_eq!(output.success(), "keep\n", "{output}");
        });
        let collected = json(&ok(sbxrt, &["gc", "--json"]));
        assert!(collected["layers"].as_u64() > Some(0), "{collected}");
        assert_eq!(usage(sbxrt)["layers"], Value::Array(Vec::new()));
    });
}

#[test]
fn the_least_recently_used_images_are_collected_first() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let images = ["nosh", "latest", "layered"].map(|tag| fixtures.layout("busybox", tag));
        for image in &images {
            ok(sbxrt, &["pull", image]);
        }
        // An hour ago, all of them; and then two are used.
        for entry in fs::read_dir(store(sbxrt).join("images")).unwrap() {
            let file = fs::File::options()
                .write(true)
                .open(entry.unwrap().path())
                .unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(3600))
                .unwrap();
        }
        for image in &images[..2] {
            let output = sbxrt.command(["inspect", image]).output();
            output.success();
        }
        let names = |output: &Output| json(output)["images"].clone();
        let dry = ok(sbxrt, &["gc", "-n", "--unused-for", "30m", "--json"]);
        assert_eq!(names(&dry), serde_json::json!([images[2]]));
        let before = usage(sbxrt);
        let nothing = ok(sbxrt, &["gc", "--unused-for", "2h", "--json"]);
        assert_eq!(names(&nothing), serde_json::json!([]));
        assert_eq!(usage(sbxrt)["total"], before["total"]);
        let some = ok(sbxrt, &["gc", "--unused-for", "30m", "--json"]);
        assert_eq!(names(&some), serde_json::json!([images[2]]));
        let all = ok(sbxrt, &["gc", "--keep", "0", "--json"]);
        assert_eq!(names(&all).as_array().unwrap().len(), 2);
        assert_eq!(usage(sbxrt)["layers"], serde_json::json!([]));
    });
}

#[test]
fn images_of_an_additional_store_are_used_in_place() {
    let Some(registry) = registry() else { return };
    let image = format!("{registry}/busybox");
    let more = format!("{registry}/busybox:layered");
    for_each_identity(|sbxrt| {
        // A site's: made by whoever runs the tests, for all who do.
        let site = tempfile::Builder::new()
            .prefix("sbxrt-test-site-")
            .tempdir()
            .unwrap();
        fs::set_permissions(site.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let site = site.path().join("images");
        let path = site.to_str().unwrap();
        let admin = Sbxrt::new(Identity::current());
        ok(&admin, &["pull", "--store", path, "--shared", &image]);
        assert_eq!(fs::metadata(&site).unwrap().mode() & 0o7777, 0o755);

        let output = sbxrt
            .run([
                "--offline",
                &image,
                "sh",
                "-c",
                "cat /data/keep; ls -d /data/gone",
            ])
            .env("SBXRT_ADDITIONAL_STORES", path)
            .output();
        assert_eq!(output.text(), "keep\n", "{output}");
        assert!(!store(sbxrt).join("images").exists(), "nothing was written");
        let listed = ok(sbxrt, &["images", "--additional-store", path]);
        assert!(listed.text().contains(path), "{listed}");

        // Its layers serve for an image that it does not have.
        ok(sbxrt, &["pull", "--additional-store", path, &more]);
        let own = usage(sbxrt)["layers"].as_array().unwrap().len();
        assert_eq!(own, 4, "the layers that the site has not");
        let output = ok(
            sbxrt,
            &[
                "run",
                "--additional-store",
                path,
                &more,
                "sh",
                "-c",
                "cat /data/keep; ls /payload",
            ],
        );
        assert_eq!(output.text(), "keep\npart1\npart2\npart3\npart4\n");
        // Without it the image is not whole, and says so.
        let output = sbxrt.run(["--offline", &more, "true"]).output();
        output.assert_refused(&["offline", "layer"]);

        // Never changed: the site's store is as it was, for its owner too.
        let refused = sbxrt
            .command(["rmi", "--additional-store", path, &image])
            .output();
        assert_eq!(refused.code(), 1, "{refused}");
        ok(&admin, &["verify", "--store", path]);
        fs::set_permissions(site.join("images"), fs::Permissions::from_mode(0o777)).unwrap();
        let refused = sbxrt
            .run(["--additional-store", path, &image, "true"])
            .output();
        refused.assert_refused(&["not trusted", "everybody"]);
    });
}

#[test]
fn offline_asks_nobody() {
    let Some(registry) = registry() else { return };
    let image = format!("{registry}/busybox:env");
    for_each_identity(|sbxrt| {
        let refused = sbxrt.run(["--offline", &image, "true"]).output();
        refused.assert_refused(&["offline", "busybox:env", "missing"]);
        ok(sbxrt, &["pull", &image]);
        let before = requests("busybox")
            .into_iter()
            .filter(|request| request.path.contains("/manifests/env"))
            .count();
        for words in [
            &["pull", image.as_str()][..],
            &["run", &image, "true"],
            &["run", "--pull", "always", &image, "true"],
        ] {
            let output = sbxrt.command(words).env("SBXRT_OFFLINE", "1").output();
            output.success();
        }
        let after = requests("busybox")
            .into_iter()
            .filter(|request| request.path.contains("/manifests/env"))
            .count();
        assert_eq!(after, before);
    });
}
