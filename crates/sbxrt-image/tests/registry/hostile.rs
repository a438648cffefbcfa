//! A registry that means harm: too much, too long, too deep, or something else than it says.

use std::collections::HashMap;
use std::time::Duration;

use sbxrt_image::{Digest, Error, PullOptions};
use serde_json::{Value, json};

use crate::fake::{self, Answer, Fake, FakeImage, gzip, tarball};
use crate::{Place, image, options};

/// The most memory that this process has had, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kilobytes = line.unwrap().split_whitespace().nth(1).unwrap();
    kilobytes.parse::<u64>().unwrap() << 10
}

/// The answers for an image whose manifest is changed.
fn changed(image: &FakeImage, change: impl FnOnce(&mut Value)) -> HashMap<String, Answer> {
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    change(&mut manifest);
    let mut answers = image.answers();
    let tag = Answer::ok(manifest.to_string().into_bytes()).manifest();
    answers.insert("/v2/a/b/manifests/tag".to_owned(), tag);
    answers
}

async fn refusal(registry: &Fake) -> Error {
    let place = Place::new();
    let options = PullOptions {
        idle_timeout: Duration::from_secs(1),
        retry_wait: Duration::from_millis(1),
        ..options()
    };
    let error = place
        .pull_with(&registry.name("a/b:tag"), &options)
        .await
        .unwrap_err();
    assert_eq!(place.contents(), Vec::<String>::new());
    error
}

#[tokio::test]
async fn a_hundred_megabytes_of_manifest_are_neither_held_nor_waited_for() {
    let before = peak_memory();
    for is_announced in [true, false] {
        let registry = Fake::new(move |_| {
            let answer = Answer::ok(vec![b' '; 1 << 20]).manifest();
            if is_announced {
                // And then never sent.
                let mut answer = answer.silent_after(1);
                answer.body.resize(100 << 20, b' ');
                return answer;
            }
            answer.endless()
        });
        let error = refusal(&registry).await;
        assert!(
            matches!(
                error,
                Error::LimitExceeded {
                    limit: "manifest_bytes",
                    ..
                }
            ),
            "{error:?}"
        );
    }
    // What the registry of the test itself makes is the most of it.
    let grown = peak_memory() - before;
    assert!(grown < 180 << 20, "{grown}");
}

#[tokio::test]
async fn ten_thousand_layers_are_too_many() {
    let image = image();
    let registry = Fake::serve(changed(&image, |manifest| {
        let layer = manifest["layers"][0].clone();
        manifest["layers"] = vec![layer; 10_000].into();
    }));
    let error = refusal(&registry).await;
    assert!(
        matches!(
            error,
            Error::LimitExceeded {
                limit: "layers",
                maximum: 512,
                ..
            }
        ),
        "{error:?}"
    );
    let layer = image.layers[0].to_string();
    assert!(
        registry
            .requests()
            .iter()
            .all(|request| !request.path.ends_with(&layer))
    );
}

#[tokio::test]
async fn a_document_that_is_deep_in_itself_is_refused() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let text = format!("{{\"schemaVersion\": 2, \"annotations\": {deep}}}");
    let registry = Fake::new(move |_| Answer::ok(text.clone().into_bytes()).manifest());
    let error = refusal(&registry).await;
    assert!(matches!(error, Error::InvalidManifest { .. }), "{error:?}");
}

#[tokio::test]
async fn a_header_of_a_megabyte_ends_the_conversation() {
    let before = peak_memory();
    let huge = "x".repeat(1 << 20);
    let registry = Fake::new(move |_| Answer::ok(b"{}".to_vec()).header("X-Huge", &huge));
    let error = refusal(&registry).await;
    assert!(
        matches!(error, Error::RegistryUnreachable { .. }),
        "{error:?}"
    );
    let many = Fake::new(|_| {
        let headers = (0..10_000).map(|number| (format!("X-{number}"), "x"));
        headers.fold(Answer::ok(b"{}".to_vec()), |answer, (name, value)| {
            answer.header(&name, value)
        })
    });
    let error = refusal(&many).await;
    assert!(
        matches!(error, Error::RegistryUnreachable { .. }),
        "{error:?}"
    );
    assert!(peak_memory() - before < 32 << 20);
}

#[tokio::test]
async fn a_chain_of_redirects_has_an_end() {
    // Around in a circle, and on and on.
    for is_circle in [true, false] {
        let registry = Fake::new(move |request| {
            let mut location = request.path.clone();
            if !is_circle {
                location.push('x');
            }
            Answer::status(302).header("Location", &location)
        });
        let error = refusal(&registry).await;
        assert!(
            matches!(
                error,
                Error::LimitExceeded {
                    limit: "redirects",
                    maximum: 5,
                    ..
                }
            ),
            "{error:?}"
        );
        assert_eq!(registry.requests().len(), 6);
    }
}

#[tokio::test]
async fn what_is_encoded_once_more_is_refused() {
    for part in ["/manifests/tag", "/blobs/"] {
        let answers = image().answers();
        let registry = Fake::new(move |request| {
            let Some(mut answer) = answers.get(&request.path).cloned() else {
                return Answer::status(404);
            };
            assert_eq!(request.header("accept-encoding"), Some("identity"));
            if !request.path.contains(part) {
                return answer;
            }
            answer.body = gzip(&answer.body);
            answer.header("Content-Encoding", "gzip")
        });
        let error = refusal(&registry).await;
        assert!(
            matches!(&error, Error::RegistryFailed { message, .. } if message.contains("Content-Encoding gzip")),
            "{part}: {error:?}"
        );
    }
}

/// CVE-2024-3727: a digest becomes a part of addresses and paths.
#[tokio::test]
async fn a_digest_that_is_none_is_not_asked_for() {
    let good = image().layers[0].to_string();
    let table = [
        "sha256:../../../../etc/passwd".to_owned(),
        good.to_uppercase(),
        good.replace("sha256:", "SHA256:"),
        good[..good.len() - 1].to_owned(),
        format!("{good}0"),
        good.replace("sha256:", ""),
        good.replace("sha256:", "md5:"),
        good.replace("sha256:", "sha256:sha256:"),
        format!("{good}?x=/../"),
        "sha256:".to_owned(),
        String::new(),
    ];
    for digest in table {
        for place in ["config", "layers"] {
            let registry = Fake::serve(changed(&image(), |manifest| match place {
                "config" => manifest["config"]["digest"] = digest.as_str().into(),
                _ => manifest["layers"][0]["digest"] = digest.as_str().into(),
            }));
            let error = refusal(&registry).await;
            assert!(
                matches!(error, Error::InvalidManifest { .. }),
                "{place} {digest}: {error:?}"
            );
            assert_eq!(registry.requests().len(), 1, "{place} {digest}");
        }
    }
}

#[tokio::test]
async fn a_digest_by_sha_512_is_as_good() {
    use std::fmt::Write as _;
    let layer = gzip(&tarball(&[("x", "x")]));
    let image = FakeImage::new(std::slice::from_ref(&layer));
    let hash = <sha2::Sha512 as sha2::Digest>::digest(&layer);
    let mut digest = "sha512:".to_owned();
    for byte in hash {
        write!(digest, "{byte:02x}").unwrap();
    }
    let mut answers = changed(&image, |manifest| {
        manifest["layers"][0]["digest"] = digest.as_str().into();
    });
    answers.insert(format!("/v2/a/b/blobs/{digest}"), Answer::ok(layer.clone()));
    let registry = Fake::serve(answers.clone());
    Place::new().pull(&registry.name("a/b:tag")).await.unwrap();
    let mut spoilt = layer;
    *spoilt.last_mut().unwrap() ^= 1;
    answers.insert(format!("/v2/a/b/blobs/{digest}"), Answer::ok(spoilt));
    let error = refusal(&Fake::serve(answers)).await;
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error:?}");
}

/// CVE-2021-41190, and everything that registries hold beside images.
#[tokio::test]
async fn what_is_no_image_is_refused_by_what_it_is() {
    type Change = fn(&mut Value);
    let table: [(&str, Change, &str); 9] = [
        (
            "both",
            |manifest| manifest["manifests"] = json!([]),
            "both a manifest and an index",
        ),
        (
            "helm chart",
            |manifest| {
                manifest["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json".into();
            },
            "application/vnd.cncf.helm.config.v1+json",
        ),
        (
            "wasm module",
            |manifest| {
                manifest["config"]["mediaType"] = "application/vnd.wasm.config.v0+json".into();
            },
            "application/vnd.wasm.config.v0+json",
        ),
        (
            "artifact",
            |manifest| {
                manifest["config"]["mediaType"] = "application/vnd.oci.empty.v1+json".into();
                manifest["artifactType"] = "application/vnd.example.model".into();
            },
            "application/vnd.example.model",
        ),
        (
            "signature",
            |manifest| {
                manifest["layers"][0]["mediaType"] =
                    "application/vnd.dev.cosign.simplesigning.v1+json".into();
            },
            "application/vnd.dev.cosign.simplesigning.v1+json",
        ),
        (
            "foreign layer",
            |manifest| {
                manifest["layers"][0]["mediaType"] =
                    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into();
                manifest["layers"][0]["urls"] = json!(["http://127.0.0.1:1/layer"]);
            },
            "foreign layers lie outside of the registry",
        ),
        (
            "non-distributable layer",
            |manifest| {
                manifest["layers"][0]["mediaType"] =
                    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip".into();
            },
            "foreign layers lie outside of the registry",
        ),
        (
            "encrypted layer",
            |manifest| {
                manifest["layers"][0]["mediaType"] =
                    "application/vnd.oci.image.layer.v1.tar+gzip+encrypted".into();
            },
            "encrypted",
        ),
        (
            "schema 1",
            |manifest| {
                *manifest = json!({"schemaVersion": 1, "fsLayers": [], "history": []});
            },
            "manifest.v1",
        ),
    ];
    for (name, change, expected) in table {
        let registry = Fake::serve(changed(&image(), change));
        let error = refusal(&registry).await;
        let text = error.to_string();
        assert!(
            text.contains(expected) && text.contains(&registry.name("a/b:tag")),
            "{name}: {text}"
        );
        assert_eq!(
            registry.requests().len(),
            1,
            "{name}: nothing else is fetched"
        );
    }
}

/// Only what was asked for gets a name, and a digest is never looked up by one.
#[tokio::test]
async fn a_pull_names_nothing_but_what_was_asked_for() {
    let image = image();
    let registry = Fake::serve(image.answers());
    let place = Place::new();
    let pinned = registry.name(&format!("a/b@{}", Digest::of(&image.manifest)));
    place.pull(&pinned).await.unwrap();
    let names: Vec<String> = place
        .store
        .images()
        .unwrap()
        .into_iter()
        .map(|image| image.name)
        .collect();
    assert_eq!(names, [pinned]);
    let by_tag = registry.name("a/b:tag").parse().unwrap();
    let found = place.store.find(&by_tag, &options().platform).unwrap();
    assert_eq!(found, None);
}

#[tokio::test]
async fn an_answer_that_is_neither_one_thing_nor_another_is_refused() {
    for status in [201, 204, 205, 206, 300, 304, 418] {
        let registry = Fake::new(move |_| {
            let mut answer = Answer::ok(image().manifest).header("Content-Type", fake::MANIFEST);
            answer.status = status;
            answer
        });
        let error = refusal(&registry).await;
        assert!(
            matches!(&error, Error::RegistryFailed { status: told, .. } if *told == status),
            "{status}: {error:?}"
        );
    }
}
