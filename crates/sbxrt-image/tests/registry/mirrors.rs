//! Mirrors, other locations and blocked registries.

use std::sync::atomic::{AtomicUsize, Ordering};

use sbxrt_image::{Digest, Error, Keychain, PullOptions, Registries};

use crate::authentication::SECRETS;
use crate::fake::{Answer, Fake, FakeImage};
use crate::{Place, image, me, options};

/// Options by which `registry.example` is at `location`, with mirrors.
fn mirrored(location: &Fake, mirrors: &[&Fake], more: &str) -> PullOptions {
    let mut text = format!(
        "[[registry]]\nprefix = \"registry.example\"\nlocation = \"{}\"\n",
        location.host()
    );
    let mirrors = mirrors.iter().map(|mirror| {
        let host = mirror.host();
        format!("[[registry.mirror]]\nlocation = \"{host}/mirror\"\n{more}\n")
    });
    text.extend(mirrors);
    let mut registries = Registries::default();
    registries.add("registries.conf".as_ref(), &text).unwrap();
    PullOptions {
        registries,
        ..options()
    }
}

/// What a mirror answers that has an image below `mirror/`.
fn serve_mirror(image: &FakeImage) -> Fake {
    let answers = image.answers().into_iter();
    let rename = |path: String| path.replace("/v2/a/b/", "/v2/mirror/a/b/");
    Fake::serve(
        answers
            .map(|(path, answer)| (rename(path), answer))
            .collect(),
    )
}

const NAME: &str = "registry.example/a/b:tag";

#[tokio::test]
async fn a_mirror_takes_the_place_of_its_registry_and_the_image_keeps_its_name() {
    let image = image();
    let (mirror, location) = (serve_mirror(&image), Fake::serve(image.answers()));
    let place = Place::new();
    let pulled = place
        .pull_with(NAME, &mirrored(&location, &[&mirror], ""))
        .await
        .unwrap();
    assert_eq!(pulled.name, NAME);
    assert_eq!(pulled.digest, Some(Digest::of(&image.manifest)));
    assert!(location.requests().is_empty());
    let names: Vec<String> = place
        .store
        .images()
        .unwrap()
        .into_iter()
        .map(|image| image.name)
        .collect();
    assert_eq!(names, [NAME]);
}

type Spoil = fn(Answer, &FakeImage) -> Answer;

#[tokio::test]
async fn what_a_mirror_lacks_or_spoils_comes_from_the_next_place() {
    let image = image();
    let table: [(&str, Spoil); 5] = [
        ("manifests", |_, _| Answer::status(404)),
        ("manifests", |_, _| Answer::status(503)),
        ("blobs", |_, _| Answer::status(404)),
        ("blobs", |_, _| {
            Answer::status(401).header("WWW-Authenticate", "Basic realm=\"x\"")
        }),
        // The digests are those of the manifest, whoever sends the bytes.
        ("blobs", |answer, image| {
            if answer.body == image.config {
                Answer::ok(vec![b' '; image.config.len()])
            } else {
                answer
            }
        }),
    ];
    for (part, spoil) in table {
        let answers = image.answers();
        let spoilt = crate::image();
        let mirror = Fake::new(move |request| {
            let path = request.path.replace("/v2/mirror/a/b/", "/v2/a/b/");
            let answer = answers.get(&path).cloned().unwrap_or(Answer::status(404));
            if path.contains(part) {
                spoil(answer, &spoilt)
            } else {
                answer
            }
        });
        let location = Fake::serve(image.answers());
        let place = Place::new();
        let pulled = place
            .pull_with(NAME, &mirrored(&location, &[&mirror], ""))
            .await
            .unwrap();
        assert_eq!(pulled.digest, Some(Digest::of(&image.manifest)), "{part}");
        assert!(!location.requests().is_empty(), "{part}");
    }
}

#[tokio::test]
async fn a_mirror_that_is_down_is_asked_once() {
    let image = image();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let location = Fake::serve(image.answers());
    let text = format!(
        "[[registry]]\nprefix = \"registry.example\"\nlocation = \"{}\"\n\
         [[registry.mirror]]\nlocation = \"{address}\"\n",
        location.host()
    );
    let mut registries = Registries::default();
    registries.add("registries.conf".as_ref(), &text).unwrap();
    let options = PullOptions {
        registries,
        ..options()
    };
    Place::new().pull_with(NAME, &options).await.unwrap();

    let failing = Fake::new(|_| Answer::status(503));
    let options = mirrored(&location, &[&failing], "");
    Place::new().pull_with(NAME, &options).await.unwrap();
    assert_eq!(failing.requests().len(), 1);
}

#[tokio::test]
async fn a_mirror_that_breaks_off_is_taken_over_where_it_broke() {
    let image = image();
    let answers = image.answers();
    let layer = image.layers[0].to_string();
    let asked = AtomicUsize::new(0);
    let mirror = Fake::new(move |request| {
        let path = request.path.replace("/v2/mirror/a/b/", "/v2/a/b/");
        let answer = answers.get(&path).cloned().unwrap_or(Answer::status(404));
        if !path.ends_with(&layer) {
            return answer;
        }
        match asked.fetch_add(1, Ordering::Relaxed) {
            0 => answer.cut_after(60),
            _ => Answer::status(403),
        }
    });
    let answers = image.answers();
    let location = Fake::new(move |request| {
        let answer = answers.get(&request.path).cloned();
        let Some(mut answer) = answer else {
            return Answer::status(404);
        };
        if request.header("range") != Some("bytes=60-") {
            return answer;
        }
        let total = answer.body.len();
        let mut part = Answer::ok(answer.body.split_off(60))
            .header("Content-Range", &format!("bytes 60-{}/{total}", total - 1));
        part.status = 206;
        part
    });
    let options = PullOptions {
        parallel_layers: 1,
        ..mirrored(&location, &[&mirror], "")
    };
    Place::new().pull_with(NAME, &options).await.unwrap();
    let resumed = location.requests();
    assert!(
        resumed
            .iter()
            .any(|request| request.header("range") == Some("bytes=60-")),
        "{resumed:?}"
    );
}

#[tokio::test]
async fn a_mirror_for_digests_is_not_asked_for_tags() {
    let image = image();
    let (mirror, location) = (serve_mirror(&image), Fake::serve(image.answers()));
    let options = mirrored(&location, &[&mirror], "pull-from-mirror = \"digest-only\"");
    Place::new().pull_with(NAME, &options).await.unwrap();
    assert!(mirror.requests().is_empty());
    let pinned = format!("registry.example/a/b@{}", Digest::of(&image.manifest));
    Place::new().pull_with(&pinned, &options).await.unwrap();
    assert!(!mirror.requests().is_empty());
}

/// A mirror is another host: what is meant for the registry is not for it.
#[tokio::test]
async fn credentials_are_for_one_host() {
    let ask = || Answer::status(401).header("WWW-Authenticate", "Basic realm=\"x\"");
    let mirror = Fake::new(move |_| ask());
    let answers = image().answers();
    let location = Fake::new(move |request| match request.header("authorization") {
        Some("Basic bWU6c2VjcmV0") => answers
            .get(&request.path)
            .cloned()
            .unwrap_or(Answer::status(404)),
        _ => ask(),
    });
    let options = PullOptions {
        keychain: Keychain::new().with(&location.host(), me()),
        ..mirrored(&location, &[&mirror], "")
    };
    Place::new().pull_with(NAME, &options).await.unwrap();
    let heard = mirror.requests();
    assert!(!heard.is_empty());
    for request in heard {
        assert!(!request.holds(SECRETS), "{request:?}");
    }
}

#[tokio::test]
async fn a_blocked_registry_is_not_asked() {
    let registry = Fake::serve(image().answers());
    let mut registries = Registries::default();
    let text = format!(
        "[[registry]]\nlocation = \"{}\"\nblocked = true",
        registry.host()
    );
    registries.add("site.conf".as_ref(), &text).unwrap();
    let options = PullOptions {
        registries,
        ..options()
    };
    let error = Place::new()
        .pull_with(&registry.name("a/b:tag"), &options)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::RegistryBlocked { path, .. } if path.ends_with("site.conf")),
        "{error:?}"
    );
    assert!(registry.requests().is_empty());
}
