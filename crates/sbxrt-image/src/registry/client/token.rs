//! The answer to a registry that asks who is there: a password, or a token from the service that it names.

use std::sync::PoisonError;

use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Method, Response, Url};

use super::{Client, Content, MESSAGE_BYTES, shown};
use crate::auth::{self, Challenge};
use crate::registry::retry::{Failure, is_passing};
use crate::{Credentials, Error, Result};

/// What a request must be allowed to do, in the words of the token specification.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Scope {
    /// `pull` or `pull,push`, of the client's own repository; nothing to say no more than who is asking.
    pub(crate) actions: &'static str,
    /// Another repository of the same registry, to pull from: a blob that is there can be mounted here.
    pub(crate) source: Option<String>,
}

impl Scope {
    pub(crate) const PULL: Self = Self {
        actions: "pull",
        source: None,
    };
    pub(crate) const LOGIN: Self = Self {
        actions: "",
        source: None,
    };

    /// Returns the scopes to ask a token service for.
    fn of(&self, repository: &str) -> Vec<String> {
        let own =
            (!self.actions.is_empty()).then(|| format!("repository:{repository}:{}", self.actions));
        let source = self.source.iter();
        own.into_iter()
            .chain(source.map(|source| format!("repository:{source}:pull")))
            .collect()
    }
}

impl Client {
    /// Answers the registry's question who is asking. `sent` is what it was told already.
    pub(super) async fn authenticate(
        &self,
        scope: &Scope,
        sent: Option<HeaderValue>,
        headers: &HeaderMap,
    ) -> Result<(), Failure> {
        let unauthorized = |reason: &str| {
            Failure::Final(Error::Unauthorized {
                image: self.image.clone(),
                reason: reason.to_owned(),
            })
        };
        let credentials = self.credentials().await?;
        let challenges = headers
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| Challenge::parse(value.to_str().ok()?));
        // A token says less than a password.
        let challenge = challenges
            .max_by_key(|challenge| matches!(challenge, Challenge::Bearer { .. }))
            .ok_or_else(|| unauthorized("it does not say how to log in"))?;
        let ready = match (&challenge, credentials) {
            (Challenge::Basic, credentials) => Some(
                credentials
                    .header()
                    .ok_or_else(|| unauthorized("it wants a user name and a password"))?,
            ),
            (Challenge::Bearer { .. }, Credentials::RegistryToken(token)) => {
                auth::bearer(token.expose())
            }
            _ => None,
        };
        if let Some(header) = ready {
            if sent.as_ref() == Some(&header) {
                return Err(unauthorized("it does not accept the credentials"));
            }
            self.set_authorization(scope, header);
            return Ok(());
        }
        let Challenge::Bearer {
            realm,
            service,
            scope: asked,
        } = challenge
        else {
            return Err(unauthorized("it does not say how to log in"));
        };
        let refuse = |target: String, reason: &str| {
            Failure::Final(Error::AddressRefused {
                image: self.image.clone(),
                target,
                reason: reason.to_owned(),
            })
        };
        let url = Url::parse(&realm)
            .map_err(|_invalid| refuse("an unreadable token service".to_owned(), "it is no URL"))?;
        if let Some(reason) = auth::refuse_realm(&url, &self.base) {
            return Err(refuse(shown(&url), reason));
        }
        let mut scopes = scope.of(&self.repository);
        // What the registry asks for counts over what we would have asked for.
        if let (Some(asked), Some(own)) = (asked, scopes.first_mut()) {
            *own = asked;
        }
        let mut response = self
            .ask_for_token(url, credentials, service.as_deref(), &scopes)
            .await?;
        let status = response.status();
        if is_passing(status) {
            return Err(self.failure(&Method::GET, response).await);
        }
        if !status.is_success() {
            let message = self.message(&mut response).await;
            return Err(unauthorized(&format!(
                "its token service answers {status}{message}"
            )));
        }
        let body = self
            .body(&mut response, MESSAGE_BYTES)
            .await?
            .unwrap_or_default();
        let answer = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
        let token = ["token", "access_token"]
            .iter()
            .find_map(|key| answer.get(key)?.as_str().filter(|token| !token.is_empty()))
            .and_then(auth::bearer)
            .ok_or_else(|| unauthorized("its token service gives no token"))?;
        self.set_authorization(scope, token);
        Ok(())
    }

    /// Asks a token service, which must have been looked at, for a token: with `GET` as the token specification of the
    /// distribution project says, or with `POST` as its OAuth 2 sister does, which takes an identity token.
    async fn ask_for_token(
        &self,
        mut url: Url,
        credentials: &Credentials,
        service: Option<&str>,
        scopes: &[String],
    ) -> Result<Response, Failure> {
        let service = service.map(|service| ("service", service));
        if let Credentials::IdentityToken(token) = credentials {
            let mut form = Url::parse("form:").map_err(|error| Error::InvalidManifest {
                image: self.image.clone(),
                reason: error.to_string(),
            })?;
            form.query_pairs_mut()
                .append_pair("grant_type", "refresh_token")
                .append_pair("client_id", "sbxrt")
                .append_pair("refresh_token", token.expose())
                .extend_pairs(service)
                .extend_pairs((!scopes.is_empty()).then(|| ("scope", scopes.join(" "))));
            let form = form.query().unwrap_or_default().to_owned();
            let content = Content::bytes(form.into());
            let headers = HeaderMap::from_iter([(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/x-www-form-urlencoded"),
            )]);
            return self
                .exchange(&Method::POST, &url, headers, Some(&content))
                .await;
        }
        url.query_pairs_mut()
            .extend_pairs(service)
            .extend_pairs(scopes.iter().map(|scope| ("scope", scope)));
        let basic = credentials.header();
        let headers = basic.map(|basic| (header::AUTHORIZATION, basic));
        self.exchange(&Method::GET, &url, headers.into_iter().collect(), None)
            .await
    }

    /// Returns who the registry is told is asking. A helper may be a process that waits for somebody.
    async fn credentials(&self) -> Result<&Credentials> {
        let find = || async {
            let keychain = self.options.keychain.clone();
            let (host, repository) = (self.host.clone(), self.repository.clone());
            match tokio::task::spawn_blocking(move || keychain.find(&host, &repository)).await {
                Ok(found) => found,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime is shutting down.
                    Err(_) => Err(Error::Cancelled {
                        what: self.image.clone(),
                    }),
                },
            }
        };
        self.credentials.get_or_try_init(find).await
    }

    pub(super) fn authorization(&self, scope: &Scope) -> Option<HeaderValue> {
        self.authorizations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(scope)
            .cloned()
    }

    fn set_authorization(&self, scope: &Scope, header: HeaderValue) {
        self.authorizations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(scope.clone(), header);
    }
}
