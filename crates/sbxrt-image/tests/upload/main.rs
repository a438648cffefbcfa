//! Copies into a registry in this process that takes uploads, and fails in them as it is told.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod taker;

use std::fs;
use std::path::Path;
use std::time::Duration;

use sbxrt_image::{Copied, CopyOptions, Digest, Error, Keychain, Outcome, PullOptions, Store};
use serde_json::json;
use taker::{Fault, Taker};
use tempfile::TempDir;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Something to copy: an image of one large blob, in a layout. It need not be one that runs.
struct Source {
    temporary: TempDir,
    blob: Vec<u8>,
    manifest: Vec<u8>,
}

impl Source {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        // Nothing that repeats: a piece in the wrong place must not pass for the right one.
        let blob = (0..900_001_u32)
            .flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes())
            .take(900_001)
            .collect::<Vec<_>>();
        let config = b"{}".to_vec();
        let describe = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": describe("application/vnd.oci.image.config.v1+json", &config),
            "layers": [describe("application/vnd.oci.image.layer.v1.tar+gzip", &blob)],
        })
        .to_string()
        .into_bytes();
        let index =
            json!({"schemaVersion": 2, "manifests": [describe(MANIFEST, &manifest)]}).to_string();
        let layout = temporary.path().join("layout");
        fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        for bytes in [&blob, &config, &manifest] {
            let name = Digest::of(bytes).hex().to_owned();
            fs::write(layout.join("blobs/sha256").join(name), bytes).unwrap();
        }
        fs::write(
            layout.join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .unwrap();
        fs::write(layout.join("index.json"), index).unwrap();
        Self {
            temporary,
            blob,
            manifest,
        }
    }

    fn blob_path(&self) -> std::path::PathBuf {
        let name = Digest::of(&self.blob).hex().to_owned();
        self.temporary.path().join("layout/blobs/sha256").join(name)
    }

    async fn copy(&self, to: &str) -> Result<Copied, Error> {
        self.copy_with(to, Keychain::new()).await
    }

    async fn copy_with(&self, to: &str, keychain: Keychain) -> Result<Copied, Error> {
        let store = Store::open(&self.temporary.path().join("store")).unwrap();
        let options = PullOptions {
            keychain,
            connect_timeout: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(2),
            retry_wait: Duration::from_millis(10),
            parallel_layers: 1,
            ..PullOptions::default()
        };
        let options = CopyOptions {
            source: options.clone(),
            destination: options,
            ..CopyOptions::default()
        };
        let from = format!("oci:{}/layout", self.temporary.path().display());
        let from = from.parse().unwrap();
        store.copy(&from, &to.parse().unwrap(), &options, &()).await
    }

    fn assert_arrived(&self, taker: &Taker) {
        assert_eq!(taker.blob(&Digest::of(&self.blob)), Some(self.blob.clone()));
        assert_eq!(taker.manifest("tag"), Some(self.manifest.clone()));
    }
}

fn is_patch_of_blob(request: &taker::Request) -> bool {
    request.method == "PATCH" && request.length > 1000
}

#[tokio::test]
async fn what_is_there_is_not_sent_again() {
    let source = Source::new();
    let taker = Taker::new(|_, _| Fault::None);
    let outcomes = |copied: Copied| {
        copied
            .blobs
            .iter()
            .map(|blob| blob.outcome)
            .collect::<Vec<_>>()
    };
    let first = source.copy(&taker.name("a/b:tag")).await.unwrap();
    assert_eq!(first.digest, Some(Digest::of(&source.manifest)));
    assert_eq!(outcomes(first), [Outcome::Copied, Outcome::Copied]);
    source.assert_arrived(&taker);
    let again = source.copy(&taker.name("a/b:tag")).await.unwrap();
    assert_eq!(outcomes(again), [Outcome::Existed, Outcome::Existed]);
    let last = taker.requests().pop().unwrap();
    assert_eq!(
        (last.method.as_str(), last.path.as_str()),
        ("PUT", "/v2/a/b/manifests/tag")
    );
}

#[tokio::test]
async fn an_upload_that_breaks_is_taken_up_where_the_registry_says() {
    let source = Source::new();
    let taker = Taker::new(|request, number| match number {
        0 if is_patch_of_blob(request) => Fault::CutAfter(300_000),
        1 if is_patch_of_blob(request) => Fault::CutAfter(200_000),
        _ => Fault::None,
    });
    source.copy(&taker.name("a/b:tag")).await.unwrap();
    source.assert_arrived(&taker);
    let ranges = taker
        .requests()
        .into_iter()
        .filter(is_patch_of_blob)
        .map(|request| request.header("content-range").map(str::to_owned))
        .collect::<Vec<_>>();
    let range = |text: &str| Some(text.to_owned());
    assert_eq!(
        ranges,
        [None, range("300000-900000"), range("500000-900000")]
    );
}

#[tokio::test]
async fn an_upload_that_the_registry_has_lost_begins_anew() {
    let source = Source::new();
    let taker = Taker::new(|request, number| match number {
        0 if is_patch_of_blob(request) => Fault::Forget(300_000),
        _ => Fault::None,
    });
    source.copy(&taker.name("a/b:tag")).await.unwrap();
    source.assert_arrived(&taker);
}

#[tokio::test]
async fn passing_failures_are_tried_again_and_others_end_it_without_a_manifest() {
    let source = Source::new();
    for method in ["HEAD", "POST", "PATCH", "PUT"] {
        let taker = Taker::new(move |request, number| {
            if number == 0 && request.method == method {
                Fault::Status(503)
            } else {
                Fault::None
            }
        });
        source
            .copy(&taker.name("a/b:tag"))
            .await
            .unwrap_or_else(|error| panic!("{method}: {error}"));
        source.assert_arrived(&taker);
    }
    for (method, status) in [
        ("HEAD", 403),
        ("POST", 403),
        ("PATCH", 400),
        ("PUT", 400),
        ("PUT", 503),
    ] {
        let taker = Taker::new(move |request, _| {
            if request.method == method && !request.path.contains("/manifests/") {
                Fault::Status(status)
            } else {
                Fault::None
            }
        });
        let failed = source.copy(&taker.name("a/b:tag")).await;
        assert!(failed.is_err(), "{method} {status}");
        assert_eq!(taker.manifest("tag"), None, "{method} {status}");
        assert!(taker.requests().len() < 30, "{method} {status}");
    }
}

/// What is wrong with a blob.
type Spoilt<'a> = (&'a str, &'a dyn Fn(&mut Vec<u8>));

#[tokio::test]
async fn a_blob_that_is_not_what_it_should_be_never_becomes_one() {
    let source = Source::new();
    let spoil = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = source.blob.clone();
        change(&mut bytes);
        fs::write(source.blob_path(), bytes).unwrap();
    };
    let table: [Spoilt<'_>; 3] = [
        ("other", &|bytes| bytes[5] ^= 1),
        ("shorter", &|bytes| bytes.truncate(700_000)),
        ("longer", &|bytes| bytes.push(0)),
    ];
    for (what, change) in table {
        spoil(change);
        let taker = Taker::new(|_, _| Fault::None);
        let failed = source.copy(&taker.name("a/b:tag")).await.unwrap_err();
        assert!(
            matches!(
                failed,
                Error::DigestMismatch { .. } | Error::Truncated { .. } | Error::SizeMismatch { .. }
            ),
            "{what}: {failed}"
        );
        assert_eq!(taker.manifest("tag"), None, "{what}");
        assert_eq!(taker.blob(&Digest::of(&source.blob)), None, "{what}");
    }
}

#[tokio::test]
async fn credentials_do_not_follow_an_upload_elsewhere() {
    let source = Source::new();
    let elsewhere = Taker::new(|_, _| Fault::None);
    let url = elsewhere.url();
    let taker = Taker::new(move |request, _| {
        match (request.method.as_str(), request.header("authorization")) {
            (_, None) => Fault::Unauthorized,
            ("POST", _) => Fault::Location(url.clone()),
            _ => Fault::None,
        }
    });
    let keychain = keychain(source.temporary.path(), &taker);
    // It ends somewhere else than where the manifest is looked for; what counts here is who was told what.
    let _whatever_comes_of_it = source.copy_with(&taker.name("a/b:tag"), keychain).await;
    assert!(
        taker
            .requests()
            .iter()
            .any(|request| request.header("authorization").is_some())
    );
    let told = elsewhere.requests();
    assert!(
        told.iter().any(|request| request.method == "PATCH"),
        "{told:?}"
    );
    for request in told {
        assert_eq!(request.header("authorization"), None, "{request:?}");
    }
}

/// A file of credentials for a registry.
fn keychain(directory: &Path, taker: &Taker) -> Keychain {
    let path = directory.join("auth.json");
    let auth = "bWU6c2VjcmV0"; // me:secret
    let file = json!({"auths": {taker.url(): {"auth": auth}}}).to_string();
    fs::write(&path, file).unwrap();
    let mut keychain = Keychain::new();
    assert!(keychain.read(&path).unwrap());
    keychain
}

#[tokio::test]
async fn a_manifest_that_the_registry_takes_for_another_is_told() {
    let source = Source::new();
    let taker = Taker::new(|request, _| {
        if request.path.contains("/manifests/") {
            Fault::OtherDigest
        } else {
            Fault::None
        }
    });
    let failed = source.copy(&taker.name("a/b:tag")).await.unwrap_err();
    assert!(matches!(failed, Error::DigestMismatch { .. }), "{failed}");
}
