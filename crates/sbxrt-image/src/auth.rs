//! Who is asking: the challenge of a registry and the answer to it.
//!
//! Follows the token authentication specification of the distribution project. A registry answers 401 with a
//! `WWW-Authenticate` header; `Bearer` names a realm that gives out tokens, `Basic` wants name and password. Both come
//! from a stranger, so the realm is held to rules before anything is sent there.

use std::fmt;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::HeaderValue;

/// Who a registry is told is asking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Credentials {
    /// Nobody in particular: enough for public images.
    #[default]
    Anonymous,
    /// A user and a password or access token.
    Basic {
        /// The user's name.
        username: String,
        /// The password or access token.
        password: Secret,
    },
    /// A token that a token service gave at the login, to be exchanged for others: the `identitytoken` of
    /// `docker login`.
    IdentityToken(Secret),
    /// A token that the registry itself takes as it is: the `registrytoken` of `docker login`.
    RegistryToken(Secret),
}

impl Credentials {
    /// Returns the `Authorization` header for them; none where there is no name and password.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        match self {
            Self::Anonymous | Self::IdentityToken(_) | Self::RegistryToken(_) => None,
            Self::Basic { username, password } => secret_header(&format!(
                "Basic {}",
                STANDARD.encode(format!("{username}:{}", password.0))
            )),
        }
    }
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a text into custody.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Hands the text out, to where it is meant for.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

/// Returns the `Authorization` header for a bearer token.
pub(crate) fn bearer(token: &str) -> Option<HeaderValue> {
    secret_header(&format!("Bearer {token}"))
}

fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(text).ok()?;
    // Keeps it out of the debug output of the HTTP client.
    header.set_sensitive(true);
    Some(header)
}

/// What a registry asks for in `WWW-Authenticate`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// Reads a `WWW-Authenticate` header; `None` where it holds no scheme that is known.
    pub(crate) fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        for (key, value) in parameters(rest) {
            match key.to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                "scope" => scope = Some(value),
                _ => {}
            }
        }
        Some(Self::Bearer {
            realm: realm?,
            service,
            scope,
        })
    }
}

/// Reads `key="value", key=value`; stops at what it does not understand.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while let Some((key, after)) = rest.split_once('=') {
        let value;
        if let Some(quoted) = after.strip_prefix('"') {
            let mut unquoted = String::new();
            let mut characters = quoted.char_indices();
            let end = loop {
                match characters.next() {
                    Some((_, '\\')) => {
                        unquoted.extend(characters.next().map(|(_, character)| character));
                    }
                    Some((index, '"')) => break index + 1,
                    Some((_, character)) => unquoted.push(character),
                    None => return found,
                }
            };
            value = unquoted;
            rest = &quoted[end..];
        } else {
            let end = after.find(',').unwrap_or(after.len());
            value = after[..end].trim().to_owned();
            rest = &after[end..];
        }
        found.push((key.trim().to_owned(), value));
        rest = rest.trim_start_matches([' ', ',']);
    }
    found
}

/// Says why a realm must not be spoken to, if so.
///
/// A token service may live on another host than its registry (Docker Hub's does), so the host cannot be pinned. What
/// can be: it must be encrypted unless the registry itself is not, and it must not be an address of this machine or of
/// a link (a cloud's metadata service answers on 169.254.169.254) unless the registry is that very host.
pub(crate) fn refuse_realm(realm: &Url, registry: &Url) -> Option<&'static str> {
    match realm.scheme() {
        "https" => {}
        "http" if registry.scheme() == "http" => {}
        "http" => return Some("credentials and tokens are not sent without TLS"),
        _ => return Some("a token service must be reached by https"),
    }
    if !realm.username().is_empty() || realm.password().is_some() {
        return Some("the address holds credentials");
    }
    if realm.host_str() == registry.host_str() {
        return None;
    }
    let host = realm.host_str()?.trim_matches(['[', ']']);
    let inner = match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => is_inner_v4(address),
        Ok(IpAddr::V6(address)) => {
            address.is_loopback()
                || address.is_unspecified()
                || (address.segments()[0] & 0xffc0) == 0xfe80
                || address.to_ipv4_mapped().is_some_and(is_inner_v4)
        }
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    };
    (inner && !is_loopback(registry)).then_some("it is an address of this machine or link")
}

fn is_inner_v4(address: std::net::Ipv4Addr) -> bool {
    address.is_loopback() || address.is_link_local() || address.is_unspecified()
}

/// Whether a URL names this machine by a loopback address, so that nobody can listen on the way.
pub(crate) fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else {
        return false;
    };
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host == "localhost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull""#;
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
                scope: scope.map(str::to_owned),
            })
        };
        let table = [
            (
                hub,
                bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/x:pull"),
                ),
            ),
            (
                r#"bearer realm=https://a/b , service="a\"b""#,
                bearer("https://a/b", Some("a\"b"), None),
            ),
            (
                r#"Bearer scope="a,b",realm="https://x""#,
                bearer("https://x", None, Some("a,b")),
            ),
            (r#"Basic realm="Registry""#, Some(Challenge::Basic)),
            ("Basic", Some(Challenge::Basic)),
            ("Bearer", None),
            (r#"Bearer realm="unfinished"#, None),
            ("Negotiate", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(Challenge::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn realms_that_reach_into_the_network_are_refused() {
        let table = [
            (
                "https://auth.docker.io/token",
                "https://registry-1.docker.io/",
                true,
            ),
            (
                "http://auth.docker.io/token",
                "https://registry-1.docker.io/",
                false,
            ),
            ("http://169.254.169.254/latest", "https://r.example/", false),
            (
                "https://169.254.169.254/latest",
                "https://r.example/",
                false,
            ),
            ("https://127.0.0.1/token", "https://r.example/", false),
            ("https://[::1]/token", "https://r.example/", false),
            (
                "https://[::ffff:127.0.0.1]/token",
                "https://r.example/",
                false,
            ),
            ("https://localhost/token", "https://r.example/", false),
            (
                "https://user:x@r.example/token",
                "https://r.example/",
                false,
            ),
            ("file:///etc/passwd", "https://r.example/", false),
            (
                "http://127.0.0.1:5001/token",
                "http://127.0.0.1:5000/",
                true,
            ),
            ("http://10.0.0.7:5001/token", "http://10.0.0.7:5000/", true),
        ];
        for (realm, registry, allowed) in table {
            let reason = refuse_realm(&realm.parse().unwrap(), &registry.parse().unwrap());
            assert_eq!(
                reason.is_none(),
                allowed,
                "{realm} for {registry}: {reason:?}"
            );
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let credentials = Credentials::Basic {
            username: "me".to_owned(),
            password: Secret::new("hunter2"),
        };
        assert!(!format!("{credentials:?} {:?}", credentials.header()).contains("hunter2"));
    }
}
