//! TLS: whom we believe, who we say we are, and what is never sent without.

use std::fs;
use std::path::Path;

use sbxrt_image::{Error, Keychain, PullOptions, Registries};

use crate::authentication::SECRETS;
use crate::fake::{Answer, Clients, Fake, Request};
use crate::{Place, image, me, options};

const CA: &str = include_str!("tls/ca.crt");
const OTHER: &str = include_str!("tls/other.crt");

#[tokio::test]
async fn a_registry_elsewhere_is_not_spoken_to_without_tls_unless_allowed() {
    let registry = Fake::serve(image().answers());
    // An address that Linux takes for this machine, and that is none of the loopback addresses.
    let port = registry.url().rsplit(':').next().unwrap().to_owned();
    let name = format!("0.0.0.0:{port}/a/b:tag");
    let place = Place::new();
    let error = place.pull(&name).await.unwrap_err();
    assert!(matches!(error, Error::PlainHttpRefused { .. }), "{error:?}");
    assert!(registry.requests().is_empty());

    let allowed = PullOptions {
        plain_http: true,
        ..options()
    };
    place.pull_with(&name, &allowed).await.unwrap();
}

fn serve(clients: Clients) -> Fake {
    let answers = image().answers();
    Fake::with_tls(clients, move |request, _| {
        answers
            .get(&request.path)
            .cloned()
            .unwrap_or(Answer::status(404))
    })
}

/// Options with a directory of certificates that has these files for a host.
fn trusting(directory: &Path, host: &str, files: &[(&str, &str)]) -> PullOptions {
    let own = directory.join(host);
    fs::create_dir_all(&own).unwrap();
    for (name, text) in files {
        fs::write(own.join(name), text).unwrap();
    }
    PullOptions {
        certificates: vec![directory.to_owned()],
        ..options()
    }
}

#[tokio::test]
async fn an_authority_of_a_sites_own_is_believed_for_its_registry() {
    let registry = serve(Clients::Any);
    let directory = tempfile::tempdir().unwrap();
    let options = trusting(directory.path(), &registry.host(), &[("ca.crt", CA)]);
    Place::new()
        .pull_with(&registry.name("a/b:tag"), &options)
        .await
        .unwrap();

    // An address that is none of the loopback ones, where nobody would do without TLS.
    let host = format!("0.0.0.0:{}", registry.port());
    let name = format!("{host}/a/b:tag");
    let error = Place::new().pull_with(&name, &options).await.unwrap_err();
    assert!(
        matches!(&error, Error::TlsFailed { registry, reason, .. } if *registry == host && reason.contains("UnknownIssuer")),
        "{error:?}"
    );
    let options = trusting(directory.path(), &host, &[("ca.crt", CA)]);
    Place::new().pull_with(&name, &options).await.unwrap();
    let options = trusting(directory.path(), &host, &[("ca.crt", OTHER)]);
    let error = Place::new().pull_with(&name, &options).await.unwrap_err();
    assert!(matches!(error, Error::TlsFailed { .. }), "{error:?}");
}

#[tokio::test]
async fn a_registry_may_want_to_know_who_is_there() {
    let registry = serve(Clients::Known);
    let directory = tempfile::tempdir().unwrap();
    let options = trusting(directory.path(), &registry.host(), &[("ca.crt", CA)]);
    let name = registry.name("a/b:tag");
    let error = Place::new().pull_with(&name, &options).await.unwrap_err();
    assert!(matches!(error, Error::TlsFailed { .. }), "{error:?}");
    let files = [
        ("client.cert", include_str!("tls/client.crt")),
        ("client.key", include_str!("tls/client.key")),
    ];
    let options = trusting(directory.path(), &registry.host(), &files);
    Place::new().pull_with(&name, &options).await.unwrap();
}

#[tokio::test]
async fn a_registry_that_was_spoken_to_without_tls_and_wants_it_says_so() {
    // In the words of Go's web server, which docker-registry is built on.
    let registry = Fake::new(|_| {
        let mut answer = Answer::ok(b"Client sent an HTTP request to an HTTPS server.\n".to_vec());
        answer.status = 400;
        answer
    });
    let error = Place::new()
        .pull(&registry.name("a/b:tag"))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::TlsExpected { .. }), "{error:?}");
}

#[tokio::test]
async fn an_insecure_registry_is_spoken_to_with_tls_where_it_can() {
    let insecure = |host: &str| {
        let mut registries = Registries::default();
        let text = format!("[[registry]]\nlocation = \"{host}\"\ninsecure = true");
        registries.add("registries.conf".as_ref(), &text).unwrap();
        PullOptions {
            registries,
            ..options()
        }
    };
    let plain = Fake::serve(image().answers());
    let host = format!("0.0.0.0:{}", plain.port());
    let name = format!("{host}/a/b:tag");
    Place::new()
        .pull_with(&name, &insecure(&host))
        .await
        .unwrap();

    // A certificate that nobody vouches for is no reason to do without any.
    let registry = serve(Clients::Any);
    let host = format!("0.0.0.0:{}", registry.port());
    let name = format!("{host}/a/b:tag");
    let error = Place::new()
        .pull_with(&name, &insecure(&host))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::TlsFailed { .. }), "{error:?}");
    assert!(registry.requests().is_empty());
}

type Lead = Box<dyn Fn(&Request) -> Answer + Send + Sync>;

/// A registry with TLS that sends us away from it, or asks us to log in without it.
#[tokio::test]
async fn nothing_leaves_tls() {
    let stranger = Fake::new(|_| Answer::status(200));
    let target = stranger.url();
    let leads: Vec<Lead> = vec![
        {
            let target = target.clone();
            Box::new(move |_| Answer::status(307).header("Location", &target))
        },
        Box::new(move |_| {
            let challenge = format!("Bearer realm=\"{target}/token\"");
            Answer::status(401).header("WWW-Authenticate", &challenge)
        }),
        Box::new(|_| {
            let challenge = "Bearer realm=\"http://169.254.169.254/latest\"";
            Answer::status(401).header("WWW-Authenticate", challenge)
        }),
    ];
    for lead in leads {
        let registry = Fake::with_tls(Clients::Any, move |request, _| lead(request));
        let directory = tempfile::tempdir().unwrap();
        let options = PullOptions {
            keychain: Keychain::new().with(&registry.host(), me()),
            ..trusting(directory.path(), &registry.host(), &[("ca.crt", CA)])
        };
        let error = Place::new()
            .pull_with(&registry.name("a/b:tag"), &options)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::AddressRefused { .. }), "{error:?}");
        for request in registry.requests() {
            assert!(!request.holds(SECRETS), "{request:?}");
        }
    }
    assert!(stranger.requests().is_empty());
}

/// Who we are, by certificate, is for the registry and not for whoever it points to.
#[tokio::test]
async fn a_client_certificate_stays_with_its_registry() {
    let storage = serve(Clients::Known);
    let target = storage.url();
    let answers = image().answers();
    let registry = Fake::with_tls(Clients::Known, move |request, _| {
        if request.path.contains("/blobs/") {
            let location = format!("{target}{}", request.path);
            return Answer::status(307).header("Location", &location);
        }
        answers
            .get(&request.path)
            .cloned()
            .unwrap_or(Answer::status(404))
    });
    let directory = tempfile::tempdir().unwrap();
    let files = [
        ("ca.crt", CA),
        ("client.cert", include_str!("tls/client.crt")),
        ("client.key", include_str!("tls/client.key")),
    ];
    let options = trusting(directory.path(), &registry.host(), &files);
    let error = Place::new()
        .pull_with(&registry.name("a/b:tag"), &options)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::TlsFailed { registry, .. } if *registry == storage.host()),
        "{error:?}"
    );
    assert!(storage.requests().is_empty());
}

#[tokio::test]
async fn a_broken_certificate_file_is_named() {
    let registry = serve(Clients::Any);
    let directory = tempfile::tempdir().unwrap();
    let options = trusting(
        directory.path(),
        &registry.host(),
        &[("ca.crt", "nonsense")],
    );
    let error = Place::new()
        .pull_with(&registry.name("a/b:tag"), &options)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::InvalidSettings { path, .. } if path.ends_with("ca.crt")),
        "{error:?}"
    );
    assert!(registry.requests().is_empty());
}
