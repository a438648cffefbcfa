//! Failures that pass, connections that break, and how long a registry may make us wait.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sbxrt_image::{Digest, Error, PullOptions};

use crate::fake::{Answer, Fake, FakeImage, tarball};
use crate::{Place, image, options};

#[tokio::test]
async fn passing_failures_are_tried_again() {
    let image = image();
    let answers = image.answers();
    let failed = Mutex::new(HashSet::new());
    let registry = Fake::new(move |request| {
        if failed.lock().unwrap().insert(request.path.clone()) {
            return Answer::status(503);
        }
        answers
            .get(&request.path)
            .cloned()
            .unwrap_or(Answer::status(404))
    });
    Place::new().pull(&registry.name("a/b:tag")).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_breaks_is_taken_up_where_it_broke() {
    for honours_range in [true, false] {
        let image = image();
        let answers = image.answers();
        let layers = image.layers.clone();
        let registry = Fake::new(move |request| {
            let Some(answer) = answers.get(&request.path).cloned() else {
                return Answer::status(404);
            };
            let is_layer = layers
                .iter()
                .any(|layer| request.path.ends_with(&layer.to_string()));
            match request.header("range") {
                Some(range) if honours_range => {
                    let start = range
                        .trim_start_matches("bytes=")
                        .trim_end_matches('-')
                        .parse::<usize>()
                        .unwrap();
                    let range = format!(
                        "bytes {start}-{}/{}",
                        answer.body.len() - 1,
                        answer.body.len()
                    );
                    let mut part =
                        Answer::ok(answer.body[start..].to_vec()).header("Content-Range", &range);
                    part.status = 206;
                    part
                }
                None if is_layer => answer.cut_after(60),
                _ => answer,
            }
        });
        Place::new().pull(&registry.name("a/b:tag")).await.unwrap();
    }
}

/// An image whose one layer is longer than a window of the client's patience.
fn large() -> FakeImage {
    let bytes = (0..40_000_u32).map(|index| char::from(b'a' + (index % 25) as u8));
    // Not compressed, since it would be short then.
    FakeImage::new(&[tarball(&[("long", &bytes.collect::<String>())])])
}

#[tokio::test]
async fn what_a_registry_asks_for_with_retry_after_is_done_up_to_a_bound() {
    // The status, the header, and how often it is asked in all.
    let table: [(u16, Option<&str>, usize); 9] = [
        (429, None, 3),
        (408, None, 3),
        (503, Some("0"), 3),
        (429, Some("Sun, 06 Nov 1994 08:49:37 GMT"), 3),
        (429, Some("nonsense"), 3),
        // Longer than anybody should wait: no use in asking again sooner.
        (429, Some("3600"), 1),
        (503, Some("Fri, 31 Dec 9999 23:59:59 GMT"), 1),
        (501, None, 1),
        (400, None, 1),
    ];
    for (status, after, expected) in table {
        let registry = Fake::new(move |_| match after {
            Some(after) => Answer::status(status).header("Retry-After", after),
            None => Answer::status(status),
        });
        let options = PullOptions {
            retry_wait: Duration::from_millis(1),
            ..options()
        };
        let error = Place::new()
            .pull_with(&registry.name("a/b:tag"), &options)
            .await
            .unwrap_err();
        assert!(
            matches!(&error, Error::RegistryFailed { status: told, .. } if *told == status),
            "{status} {after:?}: {error:?}"
        );
        assert_eq!(registry.requests().len(), expected, "{status} {after:?}");
    }
}

#[tokio::test]
async fn a_blob_that_changes_in_the_middle_is_not_pieced_together() {
    for has_version in [true, false] {
        let image = large();
        let answers = image.answers();
        let layer = image.layers[0].to_string();
        let asked = AtomicUsize::new(0);
        let registry = Fake::new(move |request| {
            let Some(mut answer) = answers.get(&request.path).cloned() else {
                return Answer::status(404);
            };
            if !request.path.ends_with(&layer) {
                return answer;
            }
            let first = asked.fetch_add(1, Ordering::Relaxed) == 0;
            let version = if first { "\"one\"" } else { "\"two\"" };
            if has_version {
                answer = answer.header("ETag", version);
            }
            if first {
                return answer.cut_after(10_000);
            }
            answer.body[20_000] ^= 1;
            assert_eq!(request.header("range"), Some("bytes=10000-"));
            assert_eq!(
                request.header("if-range"),
                has_version.then_some("\"one\""),
                "a version that is known is asked for"
            );
            if has_version {
                // As RFC 9110 has it: another version is sent as a whole.
                return answer;
            }
            let total = answer.body.len();
            let mut part = Answer::ok(answer.body.split_off(10_000)).header(
                "Content-Range",
                &format!("bytes 10000-{}/{total}", total - 1),
            );
            part.status = 206;
            part
        });
        let place = Place::new();
        let error = place.pull(&registry.name("a/b:tag")).await.unwrap_err();
        assert!(
            matches!(error, Error::DigestMismatch { .. }),
            "{has_version}: {error:?}"
        );
        assert_eq!(place.contents(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_part_that_was_not_asked_for_is_refused() {
    // What it sends when asked for everything from byte 60 on, or for everything.
    let table = [
        (true, "bytes 0-{last}/{total}"),
        (true, "bytes 61-{last}/{total}"),
        (true, "bytes 60-{last}/1"),
        (true, "bytes 60-99999999/*"),
        (true, "nonsense"),
        (false, "bytes 0-{last}/{total}"),
    ];
    for (is_resumed, range) in table {
        let image = image();
        let answers = image.answers();
        let layer = image.layers[0].to_string();
        let registry = Fake::new(move |request| {
            let Some(answer) = answers.get(&request.path).cloned() else {
                return Answer::status(404);
            };
            if !request.path.ends_with(&layer) {
                return answer;
            }
            if is_resumed && request.header("range").is_none() {
                return answer.cut_after(60);
            }
            let total = answer.body.len();
            let range = range
                .replace("{last}", &(total - 1).to_string())
                .replace("{total}", &total.to_string());
            let mut part = answer.header("Content-Range", &range);
            part.status = 206;
            part
        });
        let place = Place::new();
        let error = place.pull(&registry.name("a/b:tag")).await.unwrap_err();
        assert!(
            matches!(error, Error::RegistryFailed { status: 206, .. }),
            "{range}: {error:?}"
        );
        assert_eq!(place.contents(), Vec::<String>::new(), "{range}");
    }
}

#[tokio::test]
async fn whoever_drips_is_not_waited_for() {
    for of_manifest in [true, false] {
        let image = large();
        let answers = image.answers();
        let layer = Digest::of(&image.blobs[&image.layers[0]]).to_string();
        let registry = Fake::new(move |request| {
            let answer = answers.get(&request.path).cloned();
            let answer = answer.unwrap_or(Answer::status(404));
            let is_meant = request
                .path
                .ends_with(if of_manifest { "/tag" } else { &layer });
            if is_meant { answer.dripping() } else { answer }
        });
        let options = PullOptions {
            idle_timeout: Duration::from_millis(150),
            retry_wait: Duration::from_millis(1),
            attempts: 2,
            ..options()
        };
        let place = Place::new();
        let name = registry.name("a/b:tag");
        let pulled = place.pull_with(&name, &options);
        // At fifty bytes a second the layer would take ten minutes.
        let error = tokio::time::timeout(Duration::from_secs(20), pulled)
            .await
            .unwrap()
            .unwrap_err();
        let is_expected = match &error {
            Error::RegistryUnreachable { .. } => of_manifest,
            Error::Truncated { .. } => !of_manifest,
            _ => false,
        };
        assert!(is_expected, "{of_manifest}: {error:?}");
        assert_eq!(place.contents(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn whoever_says_nothing_at_all_is_not_waited_for() {
    let registry = Fake::new(|_| {
        std::thread::park_timeout(Duration::from_secs(10));
        Answer::status(200)
    });
    let options = PullOptions {
        connect_timeout: Duration::from_millis(100),
        idle_timeout: Duration::from_millis(100),
        attempts: 1,
        ..options()
    };
    let error = Place::new()
        .pull_with(&registry.name("a/b:tag"), &options)
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::RegistryUnreachable { .. }),
        "{error:?}"
    );
}
