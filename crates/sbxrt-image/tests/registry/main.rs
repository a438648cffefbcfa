//! Pulls from a registry in this process that does what it is told, good or bad.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod authentication;
mod encryption;
mod fake;
mod hostile;
mod mirrors;
mod proxies;
mod retries;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fake::{Answer, Fake, FakeImage, Request, gzip, tarball};
use sbxrt_image::{
    Credentials, Digest, Error, Event, Image, LayerState, Limits, Platform, Progress, PullOptions,
    Removed, Rootfs, Secret, Source, Store,
};
use serde_json::json;
use tempfile::TempDir;

struct Place {
    temporary: TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let store = Store::open(&temporary.path().join("store")).unwrap();
        Self { temporary, store }
    }

    async fn pull(&self, name: &str) -> Result<Image, Error> {
        self.pull_with(name, &options()).await
    }

    async fn pull_with(&self, name: &str, options: &PullOptions) -> Result<Image, Error> {
        self.store.pull(&name.parse().unwrap(), options, &()).await
    }

    /// What is in the store beside its own directories.
    fn contents(&self) -> Vec<String> {
        let mut found = Vec::new();
        for directory in ["tmp", "images", "layers/sha256", "blobs/sha256"] {
            // Before its first image there is no store.
            let entries = fs::read_dir(self.store.root().join(directory));
            for entry in entries.into_iter().flatten() {
                found.push(format!(
                    "{directory}/{}",
                    entry.unwrap().file_name().display()
                ));
            }
        }
        found
    }

    fn tmp(&self) -> Vec<String> {
        self.contents()
            .into_iter()
            .filter(|path| path.starts_with("tmp/"))
            .collect()
    }
}

fn options() -> PullOptions {
    PullOptions {
        platform: "linux/amd64".parse().unwrap(),
        connect_timeout: Duration::from_secs(2),
        idle_timeout: Duration::from_secs(2),
        ..PullOptions::default()
    }
}

fn me() -> Credentials {
    Credentials::Basic {
        username: "me".to_owned(),
        password: Secret::new("secret"),
    }
}

fn image() -> FakeImage {
    FakeImage::new(&[
        gzip(&tarball(&[
            ("etc/", ""),
            ("etc/name", "lower"),
            ("gone", "x"),
        ])),
        gzip(&tarball(&[("etc/name", "upper"), (".wh.gone", "")])),
        tarball(&[("plain", "uncompressed")]),
    ])
}

fn layers(image: &Image) -> Vec<&Path> {
    match &image.rootfs {
        Rootfs::Layers(layers) => layers.iter().map(std::path::PathBuf::as_path).collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_image_is_pulled_found_listed_and_removed() {
    let image = image();
    let registry = Fake::serve(image.answers());
    let place = Place::new();
    let name = registry.name("a/b:tag");
    let source: Source = name.parse().unwrap();
    assert_eq!(
        place.store.find(&source, &options().platform).unwrap(),
        None
    );

    let pulled = place.pull(&name).await.unwrap();

    assert_eq!(pulled.name, name);
    assert_eq!(pulled.digest, Some(Digest::of(&image.manifest)));
    assert_eq!(pulled.config_digest, Some(Digest::of(&image.config)));
    assert_eq!(pulled.platform, Platform::new("linux", "amd64", None));
    assert_eq!(pulled.size, 5 + 1 + 5 + 12);
    assert_eq!(
        pulled.config.config().as_ref().unwrap().cmd().as_deref(),
        Some(&["sh".to_owned()][..])
    );
    let files = layers(&pulled);
    assert_eq!(
        fs::read_to_string(files[0].join("etc/name")).unwrap(),
        "lower"
    );
    assert_eq!(
        fs::read_to_string(files[1].join("etc/name")).unwrap(),
        "upper"
    );
    assert_eq!(
        fs::read_to_string(files[2].join("plain")).unwrap(),
        "uncompressed"
    );
    assert_eq!(
        place
            .store
            .find(&source, &options().platform)
            .unwrap()
            .as_ref(),
        Some(&pulled)
    );
    assert_eq!(place.store.images().unwrap(), std::slice::from_ref(&pulled));
    let raw = place.store.inspect_raw(&pulled).unwrap();
    assert_eq!(
        raw["manifest"],
        serde_json::from_slice::<serde_json::Value>(&image.manifest).unwrap()
    );
    assert_eq!(place.tmp(), Vec::<String>::new());

    // Whoever has the image may be running it.
    let digest = pulled.digest.clone().unwrap();
    assert!(matches!(
        place.store.remove(&name),
        Err(Error::ImageInUse { image }) if image == name
    ));
    let bytes = pulled.size;
    drop(pulled);
    let removed = place.store.remove(digest.short()).unwrap();
    let expected = Removed {
        images: vec![name],
        layers: 3,
        bytes,
    };
    assert_eq!(removed, expected);
    assert_eq!(place.contents(), Vec::<String>::new());
    assert!(matches!(
        place.store.remove("a/b"),
        Err(Error::UnknownImage { .. })
    ));
}

#[tokio::test]
async fn layers_that_another_image_has_are_neither_fetched_again_nor_removed_with_one() {
    let base = gzip(&tarball(&[("base", "x")]));
    let one = FakeImage::new(std::slice::from_ref(&base));
    let two = FakeImage::new(&[base, gzip(&tarball(&[("more", "x")]))]);
    let mut answers = one.answers_as("one");
    answers.extend(two.answers_as("two"));
    let registry = Fake::serve(answers);
    let place = Place::new();
    place.pull(&registry.name("a/b:one")).await.unwrap();
    let events = Events::default();
    let source = registry.name("a/b:two").parse().unwrap();
    let image = place
        .store
        .pull(&source, &options(), &events)
        .await
        .unwrap();
    let states = events.states();
    assert!(
        states.contains(&(one.layers[0].clone(), LayerState::Exists)),
        "{states:?}"
    );
    assert!(
        states.contains(&(two.layers[1].clone(), LayerState::Done)),
        "{states:?}"
    );

    let removed = place.store.remove(&registry.name("a/b:one")).unwrap();
    assert_eq!(removed.layers, 0);
    assert!(layers(&image).iter().all(|layer| layer.is_dir()));
}

#[derive(Default)]
struct Events(Mutex<Vec<Event>>);

impl Progress for Events {
    fn event(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

impl Events {
    fn states(&self) -> Vec<(Digest, LayerState)> {
        let events = self.0.lock().unwrap();
        let layer = |event: &Event| match event {
            Event::Layer { digest, state, .. } => Some((digest.clone(), *state)),
            _ => None,
        };
        events.iter().filter_map(layer).collect()
    }
}

/// What a registry may do wrong, and the error that must come of it. Nothing may be left of any of them.
#[tokio::test]
async fn whatever_a_registry_does_wrong_has_a_name_and_leaves_nothing() {
    type Change = Box<dyn Fn(&FakeImage, &str) -> Option<Answer> + Send + Sync>;
    type Check = fn(&Error) -> bool;
    fn layer_with(change: impl Fn(&FakeImage) -> Answer + Send + Sync + 'static) -> Change {
        Box::new(move |image, path| {
            path.ends_with(&image.layers[0].to_string())
                .then(|| change(image))
        })
    }
    fn manifest_with(change: impl Fn(&FakeImage) -> Answer + Send + Sync + 'static) -> Change {
        Box::new(move |image, path| path.ends_with("/manifests/tag").then(|| change(image)))
    }
    let table: Vec<(&str, Change, Check)> = vec![
        (
            "wrong bytes of the right length",
            layer_with(|image| {
                let mut bytes = image.blobs[&image.layers[0]].clone();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                Answer::ok(bytes)
            }),
            |error| matches!(error, Error::DigestMismatch { .. }),
        ),
        (
            "another layer",
            layer_with(|image| {
                let mut other = image.blobs[&image.layers[1]].clone();
                other.resize(image.blobs[&image.layers[0]].len(), 0);
                Answer::ok(other)
            }),
            |error| matches!(error, Error::DigestMismatch { .. }),
        ),
        (
            "a body that breaks off",
            layer_with(|image| Answer::ok(image.blobs[&image.layers[0]].clone()).cut_after(40)),
            |error| matches!(error, Error::Truncated { received: 40, .. }),
        ),
        (
            "a body that is too short",
            layer_with(|image| Answer::ok(image.blobs[&image.layers[0]][..40].to_vec())),
            |error| matches!(error, Error::SizeMismatch { actual: 40, .. }),
        ),
        (
            "a body that is too long",
            layer_with(|image| {
                Answer::ok([image.blobs[&image.layers[0]].as_slice(), b"more"].concat())
            }),
            |error| matches!(error, Error::SizeMismatch { .. }),
        ),
        (
            "a body without an end",
            layer_with(|image| Answer::ok(image.blobs[&image.layers[0]].clone()).endless()),
            |error| matches!(error, Error::SizeMismatch { .. }),
        ),
        (
            "a missing layer",
            layer_with(|_| Answer::status(404)),
            |error| matches!(error, Error::BlobUnknown { .. }),
        ),
        (
            "silence in the middle of a layer",
            layer_with(|image| Answer::ok(image.blobs[&image.layers[0]].clone()).silent_after(40)),
            |error| matches!(error, Error::Truncated { .. }),
        ),
        (
            "a redirect to itself",
            Box::new(|image, path| {
                let ours = path.ends_with(&image.layers[0].to_string());
                ours.then(|| Answer::status(307).header("Location", path))
            }),
            |error| {
                matches!(
                    error,
                    Error::LimitExceeded {
                        limit: "redirects",
                        ..
                    }
                )
            },
        ),
        (
            "a redirect to a file",
            layer_with(|_| Answer::status(307).header("Location", "file:///etc/passwd")),
            |error| matches!(error, Error::AddressRefused { .. }),
        ),
        (
            "no such tag",
            manifest_with(|_| Answer::status(404)),
            |error| matches!(error, Error::ManifestUnknown { .. }),
        ),
        (
            "a private image",
            manifest_with(|_| Answer::status(403)),
            |error| matches!(error, Error::Unauthorized { .. }),
        ),
        (
            "a login that it does not describe",
            manifest_with(|_| Answer::status(401)),
            |error| matches!(error, Error::Unauthorized { .. }),
        ),
        (
            "a token service on another machine's link",
            manifest_with(|_| {
                Answer::status(401)
                    .header("WWW-Authenticate", "Bearer realm=\"file:///etc/passwd\"")
            }),
            |error| matches!(error, Error::AddressRefused { .. }),
        ),
        (
            "errors without end",
            manifest_with(|_| Answer::status(500)),
            |error| matches!(error, Error::RegistryFailed { status: 500, .. }),
        ),
        (
            "a manifest that is too large",
            manifest_with(|_| Answer::ok(vec![b' '; (4 << 20) + 1]).manifest()),
            |error| {
                matches!(
                    error,
                    Error::LimitExceeded {
                        limit: "manifest_bytes",
                        ..
                    }
                )
            },
        ),
        (
            "a manifest without an end",
            manifest_with(|image| Answer::ok(image.manifest.clone()).manifest().endless()),
            |error| {
                matches!(
                    error,
                    Error::LimitExceeded {
                        limit: "manifest_bytes",
                        ..
                    }
                )
            },
        ),
        (
            "a manifest that is announced as an index",
            manifest_with(|image| {
                Answer::ok(image.manifest.clone())
                    .header("Content-Type", "application/vnd.oci.image.index.v1+json")
            }),
            |error| matches!(error, Error::InvalidManifest { .. }),
        ),
        (
            "a manifest other than its digest header says",
            manifest_with(|image| {
                Answer::ok(image.manifest.clone())
                    .manifest()
                    .header("Docker-Content-Digest", &Digest::of(b"other").to_string())
            }),
            |error| matches!(error, Error::DigestMismatch { .. }),
        ),
        (
            "a web page",
            manifest_with(|_| Answer::ok(b"<html>".to_vec()).header("Content-Type", "text/html")),
            |error| matches!(error, Error::InvalidManifest { .. }),
        ),
        (
            "an index without our platform",
            manifest_with(|image| {
                let manifest = json!({
                    "mediaType": fake::MANIFEST, "digest": Digest::of(&image.manifest), "size": image.manifest.len(),
                    "platform": {"os": "linux", "architecture": "s390x"},
                });
                Answer::ok(
                    json!({"schemaVersion": 2, "manifests": [manifest]})
                        .to_string()
                        .into_bytes(),
                )
                .header("Content-Type", "application/vnd.oci.image.index.v1+json")
            }),
            |error| matches!(error, Error::PlatformNotFound { available, .. } if available == &["linux/s390x"]),
        ),
        (
            "an index of itself",
            Box::new(|_, path| {
                // Three different ones, since none can hold its own digest.
                let index = |inner: &Answer| {
                    let entry = json!({
                        "mediaType": "application/vnd.oci.image.index.v1+json",
                        "digest": Digest::of(&inner.body), "size": inner.body.len(),
                    });
                    Answer::ok(
                        json!({"schemaVersion": 2, "manifests": [entry]})
                            .to_string()
                            .into_bytes(),
                    )
                    .header("Content-Type", "application/vnd.oci.image.index.v1+json")
                };
                let third = index(&Answer::ok(Vec::new()));
                let second = index(&third);
                let first = index(&second);
                let by_digest =
                    |answer: &Answer| path.ends_with(&Digest::of(&answer.body).to_string());
                if path.ends_with("/manifests/tag") {
                    return Some(first);
                }
                [second, third].into_iter().find(by_digest)
            }),
            |error| {
                matches!(
                    error,
                    Error::LimitExceeded {
                        limit: "index_depth",
                        ..
                    }
                )
            },
        ),
    ];
    for (name, change, check) in table {
        let image = image();
        let answers = image.answers();
        let registry = Fake::new(move |request| match change(&image, &request.path) {
            Some(answer) => answer,
            None => answers
                .get(&request.path)
                .cloned()
                .unwrap_or(Answer::status(404)),
        });
        let place = Place::new();
        let mut options = options();
        options.idle_timeout = Duration::from_millis(200);
        let error = place
            .pull_with(&registry.name("a/b:tag"), &options)
            .await
            .unwrap_err();
        assert!(check(&error), "{name}: {error:?}");
        assert_eq!(place.tmp(), Vec::<String>::new(), "{name}");
        assert_eq!(place.store.images().unwrap(), [], "{name}");
    }
}

#[tokio::test]
async fn what_an_image_promises_falsely_is_refused_and_leaves_nothing() {
    type Check = fn(&Error) -> bool;
    let bomb = gzip(&vec![0; 80 << 20]);
    let mut wrong_diff_id = FakeImage::new(&[gzip(&tarball(&[("x", "x")]))]);
    wrong_diff_id.set_diff_ids(&[Digest::of(b"other")]);
    let mut too_many = FakeImage::new(&[gzip(&tarball(&[("x", "x")]))]);
    too_many.set_diff_ids(&[]);
    let mut other_platform = FakeImage::new(&[]);
    other_platform.set_architecture("s390x");
    let table: [(&str, FakeImage, Check); 6] = [
        ("diff_id", wrong_diff_id, |error| {
            matches!(error, Error::DigestMismatch { .. })
        }),
        ("number of diff_ids", too_many, |error| {
            matches!(error, Error::InvalidManifest { .. })
        }),
        ("platform", other_platform, |error| {
            matches!(error, Error::PlatformNotFound { .. })
        }),
        ("bomb", FakeImage::new(&[bomb]), |error| {
            matches!(error, Error::LimitExceeded { limit: "ratio", .. })
        }),
        ("no tar", FakeImage::new(&[gzip(&[1; 600])]), |error| {
            matches!(error, Error::InvalidLayer { .. })
        }),
        (
            "no gzip",
            FakeImage::new(&[b"\x1f\x8bnonsense".to_vec()]),
            |error| matches!(error, Error::InvalidLayer { .. }),
        ),
    ];
    for (name, image, check) in table {
        let registry = Fake::serve(image.answers());
        let place = Place::new();
        let error = place.pull(&registry.name("a/b:tag")).await.unwrap_err();
        assert!(check(&error), "{name}: {error:?}");
        assert_eq!(place.contents(), Vec::<String>::new(), "{name}");
    }
}

#[tokio::test]
async fn a_registry_that_is_down_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = Place::new()
        .pull(&format!("{address}/a/b"))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::RegistryUnreachable { registry, .. } if *registry == address.to_string()),
        "{error:?}"
    );
    assert!(error.hint().is_some());
}

#[tokio::test]
async fn a_digest_is_all_that_counts_where_there_is_one() {
    let image = image();
    let registry = Fake::serve(image.answers());
    let digest = Digest::of(&image.manifest);
    let place = Place::new();
    let name = registry.name(&format!("a/b:tag@{digest}"));
    assert_eq!(place.pull(&name).await.unwrap().digest, Some(digest));
    let asked = registry.requests();
    assert!(
        asked
            .iter()
            .all(|request| !request.path.ends_with("/manifests/tag")),
        "{asked:?}"
    );

    let other = Digest::of(b"other");
    let answers = image.answers();
    let lying = Fake::new(move |request: &Request| {
        let path = request.path.replace(&other.to_string(), "tag");
        answers.get(&path).cloned().unwrap_or(Answer::status(404))
    });
    let error = place
        .pull(&lying.name(&format!("a/b@{}", Digest::of(b"other"))))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error:?}");
}

#[tokio::test]
async fn two_pulls_at_once_fetch_each_layer_once() {
    let image = image();
    let answers = image.answers();
    let registry = Fake::new(move |request| {
        if request.path.contains("/blobs/") {
            std::thread::park_timeout(Duration::from_millis(100));
        }
        answers
            .get(&request.path)
            .cloned()
            .unwrap_or(Answer::status(404))
    });
    let place = Place::new();
    let name = registry.name("a/b:tag");
    let (first, second) = futures_util::future::join(place.pull(&name), place.pull(&name)).await;
    assert_eq!(first.unwrap(), second.unwrap());
    let of_layers = |request: &Request| {
        image
            .layers
            .iter()
            .any(|layer| request.path.ends_with(&layer.to_string()))
    };
    assert_eq!(
        registry
            .requests()
            .iter()
            .filter(|request| of_layers(request))
            .count(),
        image.layers.len()
    );
    assert_eq!(place.tmp(), Vec::<String>::new());
}

#[tokio::test]
async fn a_pull_that_is_dropped_leaves_nothing() {
    let image = image();
    let answers = image.answers();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let registry = Fake::new(move |request| {
        let answer = answers
            .get(&request.path)
            .cloned()
            .unwrap_or(Answer::status(404));
        let is_layer = answer.body.first() == Some(&0x1f);
        if is_layer {
            counter.fetch_add(1, Ordering::Relaxed);
            return answer.silent_after(40);
        }
        answer
    });
    let place = Place::new();
    let name = registry.name("a/b:tag");
    let pulled = tokio::time::timeout(Duration::from_millis(700), place.pull(&name)).await;
    assert!(pulled.is_err(), "it should have been cancelled: {pulled:?}");
    assert!(asked.load(Ordering::Relaxed) > 0);
    // The threads notice and clean up.
    for _ in 0..100 {
        if place.tmp().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{:?}", place.tmp());
}

#[tokio::test]
async fn limits_are_the_callers() {
    let image = image();
    let registry = Fake::serve(image.answers());
    let limits = [
        (
            "layers",
            Limits {
                layers: 2,
                ..Limits::default()
            },
        ),
        (
            "entries",
            Limits {
                entries: 1,
                ..Limits::default()
            },
        ),
        (
            "layer_bytes",
            Limits {
                layer_bytes: 1024,
                ..Limits::default()
            },
        ),
        (
            "manifest_bytes",
            Limits {
                manifest_bytes: 100,
                ..Limits::default()
            },
        ),
    ];
    for (expected, limits) in limits {
        let place = Place::new();
        let options = PullOptions {
            limits,
            ..options()
        };
        let error = place
            .pull_with(&registry.name("a/b:tag"), &options)
            .await
            .unwrap_err();
        assert!(
            matches!(&error, Error::LimitExceeded { limit, .. } if *limit == expected),
            "{expected}: {error:?}"
        );
        assert_eq!(place.tmp(), Vec::<String>::new(), "{expected}");
    }
}

#[tokio::test]
async fn images_on_disk_are_pulled_like_those_of_a_registry() {
    let image = image();
    let place = Place::new();
    let directory = place.temporary.path().join("layout");
    image.write_layout(&directory);
    let oci_tar = place.temporary.path().join("oci.tar");
    let docker_tar = place.temporary.path().join("docker.tar");
    image.write_oci_archive(&oci_tar);
    image.write_docker_archive(&docker_tar);
    let sources = [
        (format!("oci:{}", directory.display()), true),
        (format!("oci:{}:one", directory.display()), true),
        (format!("oci-archive:{}:one", oci_tar.display()), true),
        (format!("docker-archive:{}", docker_tar.display()), false),
        (
            format!("docker-archive:{}:name:tag", docker_tar.display()),
            false,
        ),
    ];
    let mut rootfs = None;
    for (name, has_manifest) in sources {
        let pulled = place.pull(&name).await.unwrap();
        assert_eq!(
            pulled.config_digest,
            Some(Digest::of(&image.config)),
            "{name}"
        );
        assert_eq!(
            pulled.digest == Some(Digest::of(&image.manifest)),
            has_manifest,
            "{name}"
        );
        // The same layers each time, whatever they came in.
        assert_eq!(
            *rootfs.get_or_insert(pulled.rootfs.clone()),
            pulled.rootfs,
            "{name}"
        );
        let found = place
            .store
            .find(&name.parse().unwrap(), &options().platform)
            .unwrap();
        assert_eq!(found.as_ref(), Some(&pulled), "{name}");
    }

    let missing = place
        .pull(&format!("oci:{}:two", directory.display()))
        .await
        .unwrap_err();
    assert!(
        matches!(&missing, Error::TagNotFound { available, .. } if available == &["one"]),
        "{missing:?}"
    );

    let blob = directory.join("blobs/sha256").join(image.layers[0].hex());
    let mut bytes = fs::read(&blob).unwrap();
    bytes[30] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let fresh = Place::new();
    let error = fresh
        .pull(&format!("oci:{}", directory.display()))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error:?}");
    assert_eq!(fresh.tmp(), Vec::<String>::new());

    // What has changed is not found any more, so that it is read anew.
    fs::write(directory.join("index.json"), "{}").unwrap();
    let source = format!("oci:{}", directory.display()).parse().unwrap();
    assert_eq!(
        place.store.find(&source, &options().platform).unwrap(),
        None
    );
}

#[tokio::test]
async fn directories_and_this_machine_are_used_in_place() {
    let place = Place::new();
    let path = fs::canonicalize(place.temporary.path()).unwrap();
    let image = place
        .pull(&format!("dir:{}", path.display()))
        .await
        .unwrap();
    assert_eq!(image.rootfs, Rootfs::Directory(path.clone()));
    assert_eq!(place.pull("host:").await.unwrap().rootfs, Rootfs::Host);
    let missing = place
        .pull(&format!("dir:{}/missing", path.display()))
        .await
        .unwrap_err();
    assert!(matches!(missing, Error::NotAnImage { .. }), "{missing:?}");
    assert_eq!(place.contents(), Vec::<String>::new());
}

#[test]
fn a_store_is_private_and_knows_its_version() {
    use std::os::unix::fs::PermissionsExt;
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().join("deep/store");
    let store = Store::open(&root).unwrap();
    assert!(
        !root.exists(),
        "a store is made when there is something to keep"
    );
    assert!(matches!(
        store.remove("nothing"),
        Err(Error::UnknownImage { .. })
    ));
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    Store::open(&root).unwrap();
    assert_eq!(
        fs::metadata(&root).unwrap().permissions().mode() & 0o7777,
        0o700
    );
    fs::write(root.join("version"), "2\n").unwrap();
    assert!(matches!(
        Store::open(&root),
        Err(Error::StoreVersion { .. })
    ));
    // A directory with something else in it is not taken over.
    fs::write(temporary.path().join("file"), "x").unwrap();
    let foreign = Store::open(temporary.path()).unwrap();
    assert!(matches!(
        foreign.remove("nothing"),
        Err(Error::StoreVersion { .. })
    ));
}
