//! Which way requests leave a site.

use std::fmt;

use reqwest::{NoProxy, Proxy, Url};

use crate::{Error, Result};

/// Never through a proxy: who listens on this machine is on this machine.
const LOOPBACK: &str = "localhost,127.0.0.0/8,::1";

type Make = fn(Url) -> reqwest::Result<Proxy>;

/// The proxies through which registries are reached, as `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` name them. This crate
/// reads no environment variable; whoever wants these to count passes them in. Default: none.
///
/// This machine's loopback addresses are never asked for through a proxy.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// The proxy for addresses with TLS: `http://[USER:PASSWORD@]HOST[:PORT]`, or `https://…`.
    pub https: Option<String>,
    /// The proxy for addresses without.
    pub http: Option<String>,
    /// What is reached directly, with commas between: host names, domains (`.example.org`), addresses, networks
    /// (`10.0.0.0/8`), or `*` for everything.
    pub except: Option<String>,
}

impl Proxies {
    /// Returns them as the HTTP client takes them.
    pub(crate) fn build(&self) -> Result<Vec<Proxy>> {
        let except = match self.except.as_deref() {
            Some(except) => format!("{LOOPBACK},{except}"),
            None => LOOPBACK.to_owned(),
        };
        let all: [(&str, &Option<String>, Make); 2] = [
            ("HTTPS_PROXY", &self.https, Proxy::https),
            ("HTTP_PROXY", &self.http, Proxy::http),
        ];
        let mut proxies = Vec::new();
        for (name, address, make) in all {
            let Some(address) = address.as_deref().filter(|address| !address.is_empty()) else {
                continue;
            };
            let invalid = |reason: &str| Error::InvalidProxy {
                variable: name,
                reason: reason.to_owned(),
            };
            // As curl reads it. The address may hold a password and is not shown.
            let whole = if address.contains("://") {
                address.to_owned()
            } else {
                format!("http://{address}")
            };
            let url = Url::parse(&whole).map_err(|error| invalid(&error.to_string()))?;
            if !matches!(url.scheme(), "http" | "https") {
                return Err(invalid(&format!(
                    "a {} proxy is not supported, an http one is",
                    url.scheme()
                )));
            }
            let proxy = make(url).map_err(|error| invalid(&error.without_url().to_string()))?;
            proxies.push(proxy.no_proxy(NoProxy::from_string(&except)));
        }
        Ok(proxies)
    }
}

/// Without user names and passwords.
impl fmt::Debug for Proxies {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |address: &Option<String>| {
            let address = address.as_deref()?;
            Some(address.rsplit('@').next().unwrap_or_default().to_owned())
        };
        formatter
            .debug_struct("Proxies")
            .field("https", &shown(&self.https))
            .field("http", &shown(&self.http))
            .field("except", &self.except)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_curl_does_and_never_shown() {
        let table = [
            (Some("http://proxy.example:3128"), true),
            (Some("https://me:hunter2@proxy.example"), true),
            (Some("proxy.example:3128"), true),
            (Some(""), true),
            (None, true),
            (Some("socks5://me:hunter2@proxy.example"), false),
            (Some("http://me:hunter2@"), false),
            (Some("http://me:hunter2@[proxy"), false),
        ];
        for (address, is_valid) in table {
            let proxies = Proxies {
                https: address.map(str::to_owned),
                ..Proxies::default()
            };
            let built = proxies.build();
            assert_eq!(built.is_ok(), is_valid, "{address:?}: {built:?}");
            let shown = format!("{proxies:?} {:?}", built.map(drop));
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }
}
