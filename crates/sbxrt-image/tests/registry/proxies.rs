//! Which way requests leave.

use sbxrt_image::{Error, Proxies, PullOptions};

use crate::fake::{Answer, Fake};
use crate::{Place, image, options};

fn through(proxy: &Fake, except: Option<&str>) -> PullOptions {
    PullOptions {
        plain_http: true,
        attempts: 1,
        proxies: Proxies {
            http: Some(proxy.url().replace("http://", "http://me:secret@")),
            https: Some(proxy.url()),
            except: except.map(str::to_owned),
        },
        ..options()
    }
}

#[tokio::test]
async fn a_proxy_is_gone_through_and_told_its_own_password() {
    let answers = image().answers();
    let proxy = Fake::new(move |request| {
        let authorization = request.header("proxy-authorization");
        assert_eq!(authorization, Some("Basic bWU6c2VjcmV0"));
        // A proxy is asked for whole addresses.
        let path = request.path.strip_prefix("http://registry.invalid");
        path.and_then(|path| answers.get(path).cloned())
            .unwrap_or(Answer::status(404))
    });
    let place = Place::new();
    place
        .pull_with("registry.invalid/a/b:tag", &through(&proxy, None))
        .await
        .unwrap();
    assert!(!proxy.requests().is_empty());
}

#[tokio::test]
async fn a_registry_with_tls_is_tunnelled_to() {
    let proxy = Fake::new(|_| Answer::status(403));
    let options = PullOptions {
        plain_http: false,
        ..through(&proxy, None)
    };
    let error = Place::new()
        .pull_with("registry.invalid/a/b:tag", &options)
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::RegistryUnreachable { .. }),
        "{error:?}"
    );
    let asked = proxy.requests();
    assert_eq!(
        asked
            .iter()
            .map(|request| (&*request.method, &*request.path))
            .collect::<Vec<_>>(),
        [("CONNECT", "registry.invalid:443")]
    );
}

#[tokio::test]
async fn this_machine_and_the_exceptions_are_reached_directly() {
    let proxy = Fake::new(|_| Answer::status(502));
    let registry = Fake::serve(image().answers());
    Place::new()
        .pull_with(&registry.name("a/b:tag"), &through(&proxy, None))
        .await
        .unwrap();
    let other = format!("0.0.0.0:{}/a/b:tag", registry.port());
    Place::new()
        .pull_with(&other, &through(&proxy, Some("10.0.0.0/8,0.0.0.0")))
        .await
        .unwrap();
    assert!(proxy.requests().is_empty());
}

#[tokio::test]
async fn an_address_that_is_none_is_told_without_its_password() {
    let options = PullOptions {
        proxies: Proxies {
            https: Some("ftp://me:secret@proxy.example".to_owned()),
            ..Proxies::default()
        },
        ..options()
    };
    let error = Place::new()
        .pull_with("registry.invalid/a/b:tag", &options)
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::InvalidProxy { .. }) && !error.to_string().contains("secret"),
        "{error:?}"
    );
}
