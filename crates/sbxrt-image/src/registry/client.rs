//! Requests to one registry: who is asking, where they may lead, and how much may come of them.

mod token;

use std::collections::HashMap;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Method, Response, StatusCode, Url};
use tokio::sync::OnceCell;
use tokio::time::timeout;

pub(crate) use self::token::Scope;
use super::pace::{Broken, Pace};
use super::retry::{Failure, is_passing, retry_after};
use super::tls::{self, Certificates};
use crate::auth;
use crate::registries::Endpoint;
use crate::{Credentials, Error, PullOptions, Result};

/// The longest answer that says why something failed, and the longest token.
const MESSAGE_BYTES: u64 = 64 << 10;

/// A repository of one registry, and a connection to it.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    /// For other origins, which are not told who we are.
    elsewhere: reqwest::Client,
    base: Url,
    /// The registry as the keychain knows it.
    host: String,
    repository: String,
    /// The image that is worked on, for messages.
    image: String,
    options: PullOptions,
    /// Looked for when the registry asks, not before.
    credentials: OnceCell<Credentials>,
    /// The `Authorization` header that the registry has accepted last, by what for.
    authorizations: Mutex<HashMap<Scope, HeaderValue>>,
}

/// What a request brings along. It is opened anew for every try, redirect and question who is asking.
pub(crate) struct Content<'a> {
    /// How many bytes that is.
    pub(crate) length: u64,
    pub(crate) open: Box<dyn Fn() -> Result<reqwest::Body> + Send + Sync + 'a>,
}

impl Content<'_> {
    pub(crate) fn bytes(bytes: Bytes) -> Self {
        Self {
            length: bytes.len() as u64,
            open: Box::new(move || Ok(bytes.clone().into())),
        }
    }
}

/// Something to ask a registry.
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    /// Without `Authorization`, which the client knows better.
    pub(crate) headers: HeaderMap,
    pub(crate) content: Option<Content<'a>>,
    pub(crate) scope: Scope,
    /// The statuses beside 2xx that are an answer and no failure.
    pub(crate) answers: &'a [StatusCode],
    /// What it means that the registry knows no such thing.
    pub(crate) unknown: Option<&'a (dyn Fn() -> Error + Sync)>,
}

impl Request<'_> {
    pub(crate) fn get(url: Url) -> Self {
        Self {
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            content: None,
            scope: Scope::PULL,
            answers: &[],
            unknown: None,
        }
    }
}

impl Client {
    /// Gets ready to speak to a registry. Only one that may be without TLS is asked anything now: whether it is.
    pub(crate) async fn connect(
        endpoint: &Endpoint,
        image: &str,
        options: &PullOptions,
    ) -> Result<Self> {
        let mut client = Self::new(endpoint, image, options)?;
        if endpoint.insecure && client.base.scheme() == "https" {
            let greeting = client
                .exchange(&Method::GET, &client.base, HeaderMap::new(), None)
                .await;
            match greeting {
                Ok(_) => {}
                // A certificate that is wrong is no reason to do without any.
                Err(Failure::Final(error @ Error::TlsFailed { .. })) => return Err(error),
                Err(_) => client.base = client.plain_base()?,
            }
        }
        Ok(client)
    }

    fn new(endpoint: &Endpoint, image: &str, options: &PullOptions) -> Result<Self> {
        let host = match endpoint.host.as_str() {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let unusable = |error: String| Error::RegistryUnreachable {
            registry: host.to_owned(),
            image: image.to_owned(),
            source: error.into(),
        };
        let base = Url::parse(&format!("https://{host}/v2/"))
            .map_err(|error| unusable(error.to_string()))?;
        let found = Certificates::read(&options.certificates, &endpoint.host)?;
        // A registry on this machine has TLS where somebody has put a certificate for it.
        let is_plain = options.plain_http || auth::is_loopback(&base) && found.is_none();
        let certificates = found.unwrap_or_default();
        let proxies = options.proxies.build()?;
        let build = |identify: bool| {
            let tls = tls::config(!is_plain, &certificates, identify)
                .map_err(|error| unusable(error.to_string()))?;
            let mut builder = reqwest::Client::builder()
                .user_agent(concat!("sbxrt/", env!("CARGO_PKG_VERSION")))
                .redirect(Policy::none())
                .connect_timeout(options.connect_timeout)
                .tls_backend_preconfigured(tls)
                // Those of the environment, which is not ours to read.
                .no_proxy();
            for proxy in proxies.clone() {
                builder = builder.proxy(proxy);
            }
            builder.build().map_err(|error| unusable(error.to_string()))
        };
        let http = build(true)?;
        let elsewhere = if certificates.has_identity() {
            build(false)?
        } else {
            http.clone()
        };
        let mut client = Self {
            http,
            elsewhere,
            base,
            host: endpoint.host.clone(),
            repository: endpoint.repository.clone(),
            image: if endpoint.is_mirror {
                format!("{image} (mirror {})", endpoint.host)
            } else {
                image.to_owned()
            },
            options: options.clone(),
            credentials: OnceCell::new(),
            authorizations: Mutex::default(),
        };
        if is_plain {
            client.base = client.plain_base()?;
        }
        Ok(client)
    }

    /// Returns the address without TLS; a registry without a port is on another one there.
    fn plain_base(&self) -> Result<Url> {
        let text = self.base.as_str().replacen("https://", "http://", 1);
        Url::parse(&text).map_err(|error| Error::RegistryUnreachable {
            registry: self.host.clone(),
            image: self.image.clone(),
            source: error.into(),
        })
    }

    /// Returns the address where every registry says that it is one.
    pub(crate) fn base(&self) -> &Url {
        &self.base
    }

    /// Whether the registry has asked who is there and liked the answer.
    pub(crate) fn was_asked(&self, scope: &Scope) -> bool {
        self.authorization(scope).is_some()
    }

    /// Returns the address of something in the repository.
    pub(crate) fn url(&self, rest: &str) -> Result<Url> {
        let path = format!("{}/{rest}", self.repository);
        self.base
            .join(&path)
            .map_err(|error| Error::InvalidManifest {
                image: self.image.clone(),
                reason: error.to_string(),
            })
    }

    /// Asks for something once, following redirects and answering the question who is asking.
    pub(crate) async fn request(&self, request: &Request<'_>) -> Result<Response, Failure> {
        let mut at = request.url.clone();
        let mut redirects = 0;
        let mut answered = false;
        loop {
            let ours = at.origin() == self.base.origin();
            let mut headers = request.headers.clone();
            // A layer that is compressed once more on its way would hash to something else.
            headers.insert(
                header::ACCEPT_ENCODING,
                HeaderValue::from_static("identity"),
            );
            let authorization = self.authorization(&request.scope).filter(|_| ours);
            if let Some(authorization) = authorization.clone() {
                headers.insert(header::AUTHORIZATION, authorization);
            }
            let mut response = self
                .exchange(&request.method, &at, headers, request.content.as_ref())
                .await?;
            let status = response.status();
            match status {
                _ if status.is_success() || request.answers.contains(&status) => {
                    return match encoding(response.headers()) {
                        None => Ok(response),
                        Some(encoding) => Err(Failure::Final(self.failed(
                            &request.method,
                            &response,
                            format!(": it has Content-Encoding {encoding}, which nobody asked for"),
                        ))),
                    };
                }
                StatusCode::UNAUTHORIZED if ours && !answered => {
                    answered = true;
                    self.authenticate(&request.scope, authorization, response.headers())
                        .await?;
                }
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => {
                    redirects += 1;
                    if redirects > self.options.limits.redirects {
                        return Err(Failure::Final(Error::LimitExceeded {
                            what: format!("{}: the registry's chain of redirects", self.image),
                            limit: "redirects",
                            maximum: self.options.limits.redirects as u64,
                        }));
                    }
                    if !may_move(&request.method, status) {
                        let message = ": nothing is sent to where it points then".to_owned();
                        let error = self.failed(&request.method, &response, message);
                        return Err(Failure::Final(error));
                    }
                    at = self.redirect(&at, response.headers())?;
                }
                StatusCode::NOT_FOUND if request.unknown.is_some() => {
                    let unknown = request.unknown.map(|unknown| unknown());
                    return Err(Failure::Final(unknown.unwrap_or_else(|| {
                        self.failed(&request.method, &response, String::new())
                    })));
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    let message = self.message(&mut response).await;
                    let was_told = ours
                        && status == StatusCode::UNAUTHORIZED
                        && matches!(self.credentials.get(), Some(known) if *known != Credentials::Anonymous);
                    let status = if was_told {
                        "it does not accept the credentials".to_owned()
                    } else {
                        status.to_string()
                    };
                    return Err(Failure::Final(Error::Unauthorized {
                        image: self.image.clone(),
                        reason: format!("{status}{message}"),
                    }));
                }
                _ => return Err(self.failure(&request.method, response).await),
            }
        }
    }

    /// Makes one request to one address, as it is, and waits until the answer begins.
    async fn exchange(
        &self,
        method: &Method,
        url: &Url,
        headers: HeaderMap,
        content: Option<&Content<'_>>,
    ) -> Result<Response, Failure> {
        let http = if url.origin() == self.base.origin() {
            &self.http
        } else {
            &self.elsewhere
        };
        let moved = Arc::<AtomicU64>::default();
        let mut request = http.request(method.clone(), url.clone()).headers(headers);
        if let Some(content) = content {
            let body = Sent {
                body: (content.open)()?,
                moved: Arc::clone(&moved),
            };
            request = request
                .header(header::CONTENT_LENGTH, content.length)
                .body(reqwest::Body::wrap(body));
        }
        let mut sending = pin!(request.send());
        let patience = self.options.connect_timeout + self.options.idle_timeout;
        loop {
            let before = moved.load(Ordering::Relaxed);
            match timeout(patience, sending.as_mut()).await {
                Ok(sent) => return sent.map_err(|error| self.unreachable(url, error)),
                Err(_) if moved.load(Ordering::Relaxed) > before => {}
                Err(_) => {
                    return Err(Failure::Passing(
                        self.silent(url, Broken::Silent(patience)),
                        None,
                    ));
                }
            }
        }
    }

    /// Returns where a redirect leads, if one may go there.
    pub(crate) fn redirect(&self, from: &Url, headers: &HeaderMap) -> Result<Url> {
        let refuse = |target: &str, reason: &str| Error::AddressRefused {
            image: self.image.clone(),
            target: target.to_owned(),
            reason: reason.to_owned(),
        };
        let location = headers
            .get(header::LOCATION)
            .and_then(|value| value.to_str().ok())
            .ok_or_else(|| refuse("nowhere", "the redirect has no address"))?;
        let target = from
            .join(location)
            .map_err(|_invalid| refuse("an unreadable address", "it is no URL"))?;
        if from.scheme() == "https" && target.scheme() != "https" {
            return Err(refuse(&shown(&target), "it leaves TLS"));
        }
        // Blobs lie on the storage of a cloud as a rule, so any host will do except those that only this machine sees.
        match auth::refuse_realm(&target, &self.base) {
            Some(reason) => Err(refuse(&shown(&target), reason)),
            None => Ok(target),
        }
    }

    /// Reads a body of at most so many bytes; `None` where there is more.
    pub(crate) async fn body(
        &self,
        response: &mut Response,
        maximum: u64,
    ) -> Result<Option<Vec<u8>>, Failure> {
        if response
            .content_length()
            .is_some_and(|length| length > maximum)
        {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        let mut pace = Pace::of_document(self.options.idle_timeout);
        loop {
            match pace.next(response).await {
                Ok(Some(chunk)) if (bytes.len() + chunk.len()) as u64 > maximum => return Ok(None),
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) => return Ok(Some(bytes)),
                Err(broken) => {
                    return Err(Failure::Passing(self.silent(response.url(), broken), None));
                }
            }
        }
    }

    /// Returns what the registry says about a failure, after a colon; nothing where it says nothing.
    async fn message(&self, response: &mut Response) -> String {
        match self.body(response, MESSAGE_BYTES).await {
            Ok(Some(body)) => said(&body),
            _ => String::new(),
        }
    }

    /// Makes a failure of an answer that nobody wanted.
    async fn failure(&self, method: &Method, mut response: Response) -> Failure {
        let status = response.status();
        let body = self.body(&mut response, MESSAGE_BYTES).await;
        let body = body.ok().flatten().unwrap_or_default();
        // Go's web server and nginx say so in words; there is no status for it.
        if response.url().scheme() == "http"
            && status == StatusCode::BAD_REQUEST
            && body.windows(5).any(|window| window == b"HTTPS")
        {
            return Failure::Final(Error::TlsExpected {
                registry: authority(response.url()),
            });
        }
        let wait = retry_after(response.headers(), SystemTime::now());
        let wish = wait.map(|wait| format!(" (it asks to wait {} s)", wait.as_secs()));
        let message = said(&body) + &wish.unwrap_or_default();
        let error = self.failed(method, &response, message);
        if is_passing(status) {
            Failure::Passing(error, wait)
        } else {
            Failure::Final(error)
        }
    }

    pub(crate) fn failed(&self, method: &Method, response: &Response, message: String) -> Error {
        Error::RegistryFailed {
            image: self.image.clone(),
            status: response.status().as_u16(),
            request: format!("{method} {}", shown(response.url())),
            message,
        }
    }

    fn unreachable(&self, url: &Url, error: reqwest::Error) -> Failure {
        let registry = authority(url);
        let image = self.image.clone();
        if url.scheme() == "https" {
            match tls::complaint(&error) {
                Some(rustls::Error::InvalidMessage(_)) => {
                    return Failure::Final(Error::PlainHttpRefused { registry });
                }
                Some(complaint) => {
                    return Failure::Final(Error::TlsFailed {
                        registry,
                        image,
                        reason: complaint.to_string(),
                    });
                }
                None => {}
            }
        }
        let error = Error::RegistryUnreachable {
            registry,
            image,
            // The URL may hold a signature; the registry's name is in the message already.
            source: Box::new(error.without_url()),
        };
        Failure::Passing(error, None)
    }

    fn silent(&self, url: &Url, broken: Broken) -> Error {
        Error::RegistryUnreachable {
            registry: authority(url),
            image: self.image.clone(),
            source: Box::new(broken),
        }
    }
}

/// A body that is being sent, and a count of how often the connection took some of it.
struct Sent {
    body: reqwest::Body,
    moved: Arc<AtomicU64>,
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, reqwest::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_ready() {
            self.moved.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// Whether a request may be made anew where a redirect points. Only these two say that what was sent is to be sent
/// again; the others would turn it into a `GET`.
fn may_move(method: &Method, status: StatusCode) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
        || matches!(
            status,
            StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT
        )
}

/// How an answer is encoded, if it is.
fn encoding(headers: &HeaderMap) -> Option<String> {
    let encoding = headers.get(header::CONTENT_ENCODING)?.to_str().ok()?.trim();
    let is_plain = encoding.is_empty() || encoding.eq_ignore_ascii_case("identity");
    (!is_plain).then(|| encoding.chars().take(40).collect())
}

/// Reads what a registry says about a failure, after a colon; nothing where it says nothing.
fn said(body: &[u8]) -> String {
    let answer = serde_json::from_slice::<serde_json::Value>(body).unwrap_or_default();
    let message = answer["errors"][0]["message"]
        .as_str()
        .or_else(|| answer["details"].as_str());
    match message {
        // For a terminal: no control characters, and not more than fits.
        Some(text) => format!(
            ": {}",
            text.chars()
                .filter(|character| !character.is_control())
                .take(200)
                .collect::<String>()
        ),
        None => String::new(),
    }
}

/// Returns the host and port of a URL.
fn authority(url: &Url) -> String {
    let whole = url.authority();
    whole.rsplit('@').next().unwrap_or_default().to_owned()
}

/// Returns a URL without what may be secret in it.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Fails where a URL can have none, which is just as good.
    let _cannot_have_one = url.set_username("");
    let _cannot_have_one = url.set_password(None);
    url.to_string()
}
