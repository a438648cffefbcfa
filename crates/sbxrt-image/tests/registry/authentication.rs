//! Who is asking, and who is told so.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sbxrt_image::{
    CredentialHelper, Credentials, Digest, Error, HelperError, Keychain, PullOptions, Secret,
    verify_login,
};
use serde_json::json;

use crate::fake::{Answer, Fake, Request};
use crate::{Place, image, me, options};

/// The password of [`me`], as it is and as it is sent.
pub(crate) const SECRETS: &[&str] = &["secret", "bWU6c2VjcmV0", "Bearer", "bearer"];
const BASIC: &str = "Basic bWU6c2VjcmV0";

#[tokio::test]
async fn a_token_is_asked_for_and_stays_with_its_registry() {
    let image = image();
    let answers = image.answers();
    let storage_answers = answers.clone();
    let storage = Fake::new(move |request| {
        let path = request.path.replace("/storage", "/v2/a/b");
        match request.header("authorization") {
            Some(_) => Answer::status(400),
            None => storage_answers
                .get(&path)
                .cloned()
                .unwrap_or(Answer::status(404)),
        }
    });
    let storage_url = storage.url();
    let registry = Fake::with_url(move |request, url| {
        if request.path.starts_with("/token") {
            assert_eq!(
                request.query,
                "service=fake&scope=repository%3Aa%2Fb%3Apull"
            );
            assert_eq!(request.header("authorization"), Some("Basic bWU6c2VjcmV0"));
            return Answer::ok(json!({"token": "abc"}).to_string().into_bytes());
        }
        if request.header("authorization") != Some("Bearer abc") {
            let challenge = format!(
                "Bearer realm=\"{url}/token\",service=\"fake\",scope=\"repository:a/b:pull\""
            );
            return Answer::status(401).header("WWW-Authenticate", &challenge);
        }
        match request.path.strip_prefix("/v2/a/b/blobs/") {
            Some(digest) => Answer::status(307)
                .header("Location", &format!("{storage_url}/storage/blobs/{digest}")),
            None => answers
                .get(&request.path)
                .cloned()
                .unwrap_or(Answer::status(404)),
        }
    });
    let options = PullOptions {
        keychain: Keychain::new().with(&registry.name(""), me()),
        ..options()
    };
    let pulled = Place::new()
        .pull_with(&registry.name("a/b:tag"), &options)
        .await
        .unwrap();
    assert_eq!(pulled.digest, Some(Digest::of(&image.manifest)));
    // Four blobs, and no request to the storage came with anything that was meant for the registry.
    assert_eq!(storage.requests().len(), 4);
}

/// A registry that lets in whoever the check likes, and asks everybody else with the challenge.
fn guarded(
    challenge: impl Fn(&str) -> String + Send + Sync + 'static,
    check: impl Fn(&Request) -> bool + Send + Sync + 'static,
    token: impl Fn(&Request) -> Answer + Send + Sync + 'static,
) -> Fake {
    let answers = image().answers();
    Fake::with_url(move |request, url| {
        if request.path == "/token" {
            return token(request);
        }
        if !check(request) {
            return Answer::status(401).header("WWW-Authenticate", &challenge(url));
        }
        if request.path == "/v2/" {
            return Answer::ok(b"{}".to_vec());
        }
        answers
            .get(&request.path)
            .cloned()
            .unwrap_or(Answer::status(404))
    })
}

fn basic_registry() -> Fake {
    guarded(
        |_| "Basic realm=\"here\"".to_owned(),
        |request| request.header("authorization") == Some(BASIC),
        |_| Answer::status(404),
    )
}

fn bearer(url: &str) -> String {
    format!("Bearer realm=\"{url}/token\",service=\"fake\",scope=\"repository:a/b:pull\"")
}

fn with(keychain: Keychain) -> PullOptions {
    PullOptions {
        keychain,
        ..options()
    }
}

#[tokio::test]
async fn a_name_and_a_password_are_told_when_they_are_asked_for() {
    let registry = basic_registry();
    let keychain = Keychain::new().with(&registry.host(), me());
    let name = registry.name("a/b:tag");
    Place::new()
        .pull_with(&name, &with(keychain))
        .await
        .unwrap();
    let first = &registry.requests()[0];
    assert!(!first.holds(SECRETS), "nobody had asked: {first:?}");

    let wrong = Credentials::Basic {
        username: "me".to_owned(),
        password: Secret::new("wrong"),
    };
    for (keychain, expected) in [
        (
            Keychain::new().with(&registry.host(), wrong),
            "does not accept the credentials",
        ),
        (Keychain::new(), "wants a user name and a password"),
        (
            Keychain::new().with("other.example", me()),
            "wants a user name and a password",
        ),
        (
            Keychain::new().with(&registry.name("a/c"), me()),
            "wants a user name and a password",
        ),
    ] {
        let error = Place::new()
            .pull_with(&name, &with(keychain))
            .await
            .unwrap_err();
        assert!(
            matches!(&error, Error::Unauthorized { reason, .. } if reason.contains(expected)),
            "{expected}: {error:?}"
        );
    }
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let registry = guarded(
        bearer,
        |request| request.header("authorization") == Some("Bearer abc"),
        |request| {
            assert_eq!(request.method, "POST");
            assert_eq!(request.query, "");
            assert_eq!(request.header("authorization"), None);
            assert_eq!(
                request.body,
                "grant_type=refresh_token&client_id=sbxrt&refresh_token=id+%26+entity&service=fake\
                 &scope=repository%3Aa%2Fb%3Apull"
            );
            Answer::ok(json!({"access_token": "abc"}).to_string().into_bytes())
        },
    );
    let token = Credentials::IdentityToken(Secret::new("id & entity"));
    let keychain = Keychain::new().with(&registry.host(), token);
    Place::new()
        .pull_with(&registry.name("a/b:tag"), &with(keychain))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_token_of_the_registrys_own_is_sent_as_it_is() {
    let registry = guarded(
        bearer,
        |request| request.header("authorization") == Some("Bearer own"),
        |_| Answer::status(500),
    );
    let keychain = |token: &str| {
        let token = Credentials::RegistryToken(Secret::new(token));
        Keychain::new().with(&registry.host(), token)
    };
    let name = registry.name("a/b:tag");
    Place::new()
        .pull_with(&name, &with(keychain("own")))
        .await
        .unwrap();
    let error = Place::new()
        .pull_with(&name, &with(keychain("old")))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
}

#[tokio::test]
async fn a_token_that_expires_in_the_middle_is_renewed() {
    let (given, used) = (Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
    let current = Arc::clone(&given);
    let registry = guarded(
        bearer,
        move |request| {
            // Each token is good for two requests.
            let token = format!("Bearer {}", current.load(Ordering::Relaxed));
            request.header("authorization") == Some(token.as_str())
                && used.fetch_add(1, Ordering::Relaxed) % 3 < 2
        },
        move |_| {
            let token = given.fetch_add(1, Ordering::Relaxed) + 1;
            Answer::ok(json!({"token": token.to_string()}).to_string().into_bytes())
        },
    );
    let options = PullOptions {
        parallel_layers: 1,
        ..options()
    };
    Place::new()
        .pull_with(&registry.name("a/b:tag"), &options)
        .await
        .unwrap();
    let renewed = registry.requests();
    let renewed = renewed.iter().filter(|request| request.path == "/token");
    assert!(renewed.count() > 1);
}

#[tokio::test]
async fn a_token_service_that_misbehaves_has_a_name() {
    type Service = fn(&Request) -> Answer;
    type Check = fn(&Error) -> bool;
    let refused: Check = |error| matches!(error, Error::Unauthorized { .. });
    let table: [(&str, Service, Check); 6] = [
        ("wrong password", |_| Answer::status(401), refused),
        ("no token", |_| Answer::ok(b"{}".to_vec()), refused),
        ("no JSON", |_| Answer::ok(b"<html>".to_vec()), refused),
        (
            "a redirect",
            |_| Answer::status(302).header("Location", "/other"),
            refused,
        ),
        (
            "a token that is a megabyte",
            |_| Answer::ok(vec![b'x'; 1 << 20]),
            refused,
        ),
        (
            "trouble of its own",
            |_| Answer::status(503).header("Retry-After", "0"),
            |error| matches!(error, Error::RegistryFailed { status: 503, .. }),
        ),
    ];
    for (name, service, check) in table {
        let registry = guarded(bearer, |_| false, service);
        let keychain = Keychain::new().with(&registry.host(), me());
        let error = Place::new()
            .pull_with(&registry.name("a/b:tag"), &with(keychain))
            .await
            .unwrap_err();
        assert!(check(&error), "{name}: {error:?}");
    }
}

/// CVE-2020-15157, CVE-2022-23538: what is not the registry hears nothing of who is asking, whatever it asks.
#[tokio::test]
async fn no_byte_of_a_secret_leaves_its_registry() {
    // A stranger that asks who is there, by every scheme.
    let stranger = |challenge: fn(&str) -> String| {
        Fake::with_url(move |request, url| match request.path.as_str() {
            "/token" => Answer::ok(json!({"token": "abc"}).to_string().into_bytes()),
            _ => Answer::status(401).header("WWW-Authenticate", &challenge(url)),
        })
    };
    for stranger in [
        stranger(|_| "Basic realm=\"x\"".to_owned()),
        stranger(bearer),
    ] {
        let answers = image().answers();
        let target = stranger.url();
        let registry = Fake::new(move |request| {
            if request.header("authorization") != Some(BASIC) {
                return Answer::status(401).header("WWW-Authenticate", "Basic realm=\"here\"");
            }
            if request.path.contains("/blobs/") {
                let location = format!("{target}/{}", request.path);
                return Answer::status(307).header("Location", &location);
            }
            answers
                .get(&request.path)
                .cloned()
                .unwrap_or(Answer::status(404))
        });
        let keychain = Keychain::new().with(&registry.host(), me());
        let error = Place::new()
            .pull_with(&registry.name("a/b:tag"), &with(keychain))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
        let heard = stranger.requests();
        assert!(!heard.is_empty());
        for request in heard {
            assert!(!request.holds(SECRETS), "{request:?}");
        }
    }
}

/// The address that a layer names beside its digest is never gone to.
#[tokio::test]
async fn the_urls_of_a_layer_are_not_visited() {
    let stranger = Fake::new(|_| Answer::status(200));
    let image = image();
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["layers"][0]["urls"] = json!([format!("{}/layer", stranger.url())]);
    let mut answers = image.answers();
    let layer = format!("/v2/a/b/blobs/{}", image.layers[0]);
    let tag = Answer::ok(manifest.to_string().into_bytes()).manifest();
    answers.insert("/v2/a/b/manifests/tag".to_owned(), tag);
    let registry = Fake::serve(answers.clone());
    Place::new().pull(&registry.name("a/b:tag")).await.unwrap();
    answers.remove(&layer);
    let registry = Fake::serve(answers);
    let error = Place::new()
        .pull(&registry.name("a/b:tag"))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::BlobUnknown { .. }), "{error:?}");
    assert!(stranger.requests().is_empty());
}

#[derive(Debug)]
struct Helper(Arc<AtomicUsize>);

impl CredentialHelper for Helper {
    fn get(&self, name: &str, _: &str) -> Result<Option<Credentials>, HelperError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        match name {
            "good" => Ok(Some(me())),
            _ => Err(HelperError::Failed("the keyring is locked".to_owned())),
        }
    }
}

#[tokio::test]
async fn files_and_helpers_are_asked_once_and_only_where_the_registry_asks() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let count = Arc::new(AtomicUsize::new(0));
    let helper: Arc<dyn CredentialHelper> = Arc::new(Helper(Arc::clone(&count)));
    let asked = || count.load(Ordering::Relaxed);
    let keychain = |helper_name: &str, registry: &Fake| {
        let file = json!({"credHelpers": {registry.host(): helper_name}});
        std::fs::write(&path, file.to_string()).unwrap();
        let mut keychain = Keychain::new().with_helper(Arc::clone(&helper));
        assert!(keychain.read(&path).unwrap());
        with(keychain)
    };
    let open = Fake::serve(image().answers());
    let name = open.name("a/b:tag");
    let options = keychain("broken", &open);
    Place::new().pull_with(&name, &options).await.unwrap();
    assert_eq!(asked(), 0);

    let registry = basic_registry();
    let name = registry.name("a/b:tag");
    let options = keychain("good", &registry);
    Place::new().pull_with(&name, &options).await.unwrap();
    assert_eq!(asked(), 1);

    let options = keychain("broken", &registry);
    let error = Place::new().pull_with(&name, &options).await.unwrap_err();
    assert!(
        matches!(&error, Error::CredentialHelper { helper, reason, .. } if helper == "broken" && reason.contains("locked")),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_login_is_verified() {
    let (registry, open) = (basic_registry(), Fake::new(|_| Answer::ok(b"{}".to_vec())));
    let asked = verify_login(&registry.host(), &me(), &options()).await;
    assert!(asked.unwrap());
    let asked = verify_login(&open.host(), &me(), &options()).await;
    assert!(!asked.unwrap(), "it lets everybody in");
    let wrong = Credentials::Basic {
        username: "me".to_owned(),
        password: Secret::new("wrong"),
    };
    let error = verify_login(&registry.host(), &wrong, &options())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");

    let registry = guarded(
        |url| format!("Bearer realm=\"{url}/token\",service=\"fake\""),
        |request| request.header("authorization") == Some("Bearer abc"),
        |request| match request.header("authorization") {
            Some(BASIC) => Answer::ok(json!({"token": "abc"}).to_string().into_bytes()),
            _ => Answer::status(401),
        },
    );
    let asked = verify_login(&registry.host(), &me(), &options()).await;
    assert!(asked.unwrap());
    let error = verify_login(&registry.host(), &wrong, &options())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
}
