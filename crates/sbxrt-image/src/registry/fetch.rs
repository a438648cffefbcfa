//! Manifests and blobs, fetched and held against what was promised.

use bytes::Bytes;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Response, StatusCode};
use tokio::sync::mpsc::Sender;

use super::pace::Pace;
use super::{Client, Failure, Registry, Request};
use crate::blob::Expected;
use crate::manifest::{ACCEPT, Descriptor};
use crate::{Digest, Error, Result};

/// A document and what the registry calls it.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) media_type: Option<String>,
}

/// A small thing to ask for.
struct Wanted<'a> {
    /// Where it is below the repository.
    path: String,
    accept: Option<&'static str>,
    /// What it is called in messages.
    what: &'a str,
    size: Option<u64>,
    unknown: &'a (dyn Fn() -> Error + Sync),
}

impl Registry {
    /// Fetches what the reference names. A digest in it is all that counts then, and its tag is not asked for.
    pub(crate) async fn root(&self) -> Result<Fetched> {
        let digest = match self.reference.digest() {
            Some(text) => Some(
                text.parse::<Digest>()
                    .map_err(|error| Error::InvalidManifest {
                        image: self.image.clone(),
                        reason: error.to_string(),
                    })?,
            ),
            None => None,
        };
        let name = match &digest {
            Some(digest) => digest.to_string(),
            None => self.reference.tag().unwrap_or("latest").to_owned(),
        };
        self.manifest(&name, digest.as_ref(), None).await
    }

    /// Fetches a manifest that an index names.
    pub(crate) async fn child(&self, descriptor: &Descriptor) -> Result<Fetched> {
        let name = descriptor.digest.to_string();
        self.manifest(&name, Some(&descriptor.digest), Some(descriptor.size))
            .await
    }

    async fn manifest(
        &self,
        name: &str,
        digest: Option<&Digest>,
        size: Option<u64>,
    ) -> Result<Fetched> {
        let what = format!("manifest of {}", self.image);
        let unknown = || Error::ManifestUnknown {
            image: self.image.clone(),
        };
        let wanted = Wanted {
            path: format!("manifests/{name}"),
            accept: Some(ACCEPT),
            what: &what,
            size,
            unknown: &unknown,
        };
        let mut place = self.first();
        loop {
            let fetched = match self.document(place, &wanted).await {
                Ok((headers, bytes)) => verified(&what, digest, &headers, bytes),
                Err(error) => Err(error),
            };
            match fetched {
                Err(error) if self.pass_over(&mut place, &error) => {}
                fetched => return fetched,
            }
        }
    }

    /// Fetches a configuration: a blob that is small enough to be held in memory.
    pub(crate) async fn config(&self, expected: &Expected) -> Result<Vec<u8>> {
        let unknown = || self.blob_unknown(&expected.digest);
        let wanted = Wanted {
            path: format!("blobs/{}", expected.digest),
            accept: None,
            what: &expected.what,
            size: Some(expected.size),
            unknown: &unknown,
        };
        let mut place = self.first();
        loop {
            let read = match self.document(place, &wanted).await {
                Ok((_, bytes)) => {
                    let cancel = crate::blob::Cancel::default();
                    crate::blob::read_verified(bytes.as_slice(), expected, &cancel)
                }
                Err(error) => Err(error),
            };
            match read {
                Err(error) if self.pass_over(&mut place, &error) => {}
                read => return read,
            }
        }
    }

    /// Fetches a small document, of the size that is promised where one is.
    async fn document(&self, place: usize, wanted: &Wanted<'_>) -> Result<(HeaderMap, Vec<u8>)> {
        let maximum = self.options.limits.manifest_bytes;
        let too_large = || Error::LimitExceeded {
            what: wanted.what.to_owned(),
            limit: "manifest_bytes",
            maximum,
        };
        let mismatch = |expected: u64, actual: u64| Error::SizeMismatch {
            what: wanted.what.to_owned(),
            expected,
            actual,
        };
        if wanted.size.is_some_and(|size| size > maximum) {
            return Err(too_large());
        }
        let client = self.client(place).await?;
        let mut request = Request::get(client.url(&wanted.path)?);
        request.unknown = Some(wanted.unknown);
        if let Some(accept) = wanted.accept {
            let accept = HeaderValue::from_static(accept);
            request.headers.insert(header::ACCEPT, accept);
        }
        let mut tries = self.tries(place);
        loop {
            let attempt = async {
                let mut response = client.request(&request).await?;
                self.answered(place);
                if response.status() != StatusCode::OK {
                    let error = client.failed(&request.method, &response, String::new());
                    return Err(Failure::Final(error));
                }
                let headers = std::mem::take(response.headers_mut());
                let bytes = client
                    .body(&mut response, wanted.size.unwrap_or(maximum))
                    .await?;
                Ok((headers, bytes))
            };
            let (headers, bytes) = match attempt.await {
                Ok(answer) => answer,
                Err(failure) => {
                    tries.after(failure).await?;
                    continue;
                }
            };
            return match (bytes, wanted.size) {
                (None, Some(expected)) => Err(mismatch(expected, expected.saturating_add(1))),
                (None, None) => Err(too_large()),
                (Some(bytes), Some(expected)) if (bytes.len() as u64) < expected => {
                    Err(mismatch(expected, bytes.len() as u64))
                }
                (Some(bytes), _) => Ok((headers, bytes)),
            };
        }
    }

    /// Fetches a layer and sends its bytes on as they come. A connection that breaks is taken up again where it broke,
    /// as long as there is progress. Where nobody receives any more, this ends without an error.
    ///
    /// `advanced` is told how many bytes have come.
    pub(crate) async fn layer(
        &self,
        expected: &Expected,
        sink: Sender<Bytes>,
        advanced: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let mut download = Download {
            expected,
            sink,
            advanced,
            received: 0,
            version: None,
        };
        let mut place = self.first();
        loop {
            match self.layer_from(place, &mut download).await {
                // What has come stays: the digest in the end is over all of it, wherever it came from.
                Err(error) if self.pass_over(&mut place, &error) => download.version = None,
                done => return done,
            }
        }
    }

    async fn layer_from(&self, place: usize, download: &mut Download<'_>) -> Result<()> {
        let client = self.client(place).await?;
        let expected = download.expected;
        let url = client.url(&format!("blobs/{}", expected.digest))?;
        let unknown = || self.blob_unknown(&expected.digest);
        let mut tries = self.tries(place);
        loop {
            let before = download.received;
            let mut request = Request::get(url.clone());
            request.unknown = Some(&unknown);
            let streamed = match download.ask(client, request).await {
                Ok((request, response)) => {
                    self.answered(place);
                    let idle = self.options.idle_timeout;
                    download.take(client, &request, response, idle).await
                }
                Err(failure) => Err(failure),
            };
            match streamed {
                Ok(()) => return Ok(()),
                Err(failure) => {
                    if download.received > before {
                        tries = self.tries(place);
                    }
                    tries.after(failure).await?;
                }
            }
        }
    }

    fn blob_unknown(&self, digest: &Digest) -> Error {
        Error::BlobUnknown {
            image: self.image.clone(),
            digest: digest.clone(),
        }
    }
}

/// Holds a manifest against its digest, or against what the registry says of it where only a tag was asked for: a proxy
/// that cuts or alters shows there.
fn verified(
    what: &str,
    digest: Option<&Digest>,
    headers: &HeaderMap,
    bytes: Vec<u8>,
) -> Result<Fetched> {
    let stated = headers
        .get("docker-content-digest")
        .and_then(|value| value.to_str().ok()?.parse::<Digest>().ok());
    let expected = digest.cloned().or(stated);
    let actual = match &expected {
        Some(expected) => {
            let mut hasher = crate::digest::Hasher::new(expected.algorithm());
            hasher.update(&bytes);
            hasher.finish()
        }
        None => Digest::of(&bytes),
    };
    if let Some(expected) = expected.filter(|expected| *expected != actual) {
        return Err(Error::DigestMismatch {
            what: what.to_owned(),
            expected,
            actual,
        });
    }
    let media_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    Ok(Fetched {
        bytes,
        digest: actual,
        media_type,
    })
}

/// A layer on its way.
struct Download<'a> {
    expected: &'a Expected,
    sink: Sender<Bytes>,
    advanced: &'a (dyn Fn(u64) + Sync),
    /// The bytes that have been sent on.
    received: u64,
    /// What the registry calls the version of the blob that it began to send (its `ETag`).
    version: Option<HeaderValue>,
}

impl Download<'_> {
    /// Asks for what has not come yet.
    async fn ask<'r>(
        &mut self,
        client: &Client,
        mut request: Request<'r>,
    ) -> Result<(Request<'r>, Response), Failure> {
        let range = HeaderValue::try_from(format!("bytes={}-", self.received));
        if let (true, Ok(range)) = (self.received > 0, range) {
            request.headers.insert(header::RANGE, range);
            // Of another version we want no part. Where there is no version, the digest tells in the end.
            if let Some(version) = &self.version {
                request.headers.insert(header::IF_RANGE, version.clone());
            }
        }
        let response = client.request(&request).await?;
        Ok((request, response))
    }

    /// Sends on what comes.
    async fn take(
        &mut self,
        client: &Client,
        request: &Request<'_>,
        mut response: Response,
        idle: std::time::Duration,
    ) -> Result<(), Failure> {
        let refused = |message: &str| {
            let error = client.failed(&request.method, &response, message.to_owned());
            Err(Failure::Final(error))
        };
        let mut known = match response.status() {
            // The registry begins again: what has come already is passed over.
            StatusCode::OK => self.received,
            StatusCode::PARTIAL_CONTENT if self.received == 0 => {
                return refused(": it sent a part, and was asked for everything");
            }
            StatusCode::PARTIAL_CONTENT => match Range::of(response.headers()) {
                Some(range) if range.continues(self.received, self.expected.size) => 0,
                _ => return refused(": it sent another part than it was asked for"),
            },
            _ => return refused(""),
        };
        let version = response.headers().get(header::ETAG);
        // Only a strong one says that every byte is the same.
        self.version = version
            .filter(|version| version.as_bytes().starts_with(b"\""))
            .cloned();
        let mut pace = Pace::new(idle);
        loop {
            let mut bytes = match pace.next(&mut response).await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => break,
                Err(broken) => {
                    tracing::debug!(%broken, self.received, "connection lost");
                    return Err(Failure::Passing(self.truncated(), None));
                }
            };
            let skipped =
                usize::try_from(known).map_or(bytes.len(), |known| known.min(bytes.len()));
            known -= skipped as u64;
            let bytes = bytes.split_off(skipped);
            self.received += bytes.len() as u64;
            if self.received > self.expected.size {
                return Err(Failure::Final(self.mismatch()));
            }
            if !bytes.is_empty() && self.sink.send(bytes).await.is_err() {
                return Ok(());
            }
            (self.advanced)(self.received);
        }
        if self.received < self.expected.size {
            // The answer was whole and still too short, so asking again would not help.
            return Err(Failure::Final(self.mismatch()));
        }
        Ok(())
    }

    fn truncated(&self) -> Error {
        Error::Truncated {
            what: self.expected.what.clone(),
            expected: self.expected.size,
            received: self.received,
        }
    }

    fn mismatch(&self) -> Error {
        Error::SizeMismatch {
            what: self.expected.what.clone(),
            expected: self.expected.size,
            actual: self.received,
        }
    }
}

/// Which part of a blob a registry sends, by `Content-Range`.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    first: u64,
    last: u64,
    total: Option<u64>,
}

impl Range {
    fn of(headers: &HeaderMap) -> Option<Self> {
        Self::parse(headers.get(header::CONTENT_RANGE)?.to_str().ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let (part, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = part.split_once('-')?;
        Some(Self {
            first: first.trim().parse().ok()?,
            last: last.trim().parse().ok()?,
            total: match total.trim() {
                "*" => None,
                total => Some(total.parse().ok()?),
            },
        })
    }

    /// Whether this is the rest of a blob of which so many bytes have come.
    fn continues(&self, received: u64, size: u64) -> bool {
        self.first == received
            && (self.first..size).contains(&self.last)
            && self.total.is_none_or(|total| total == size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_rest_of_the_blob_is_taken_for_it() {
        let table = [
            ("bytes 40-99/100", true),
            ("bytes 40-98/100", true),
            ("bytes 40-99/*", true),
            ("bytes 39-99/100", false),
            ("bytes 41-99/100", false),
            ("bytes 40-99/101", false),
            ("bytes 40-100/*", false),
            ("bytes 40-39/100", false),
            ("bytes 40-/100", false),
            ("bytes */100", false),
            ("40-99/100", false),
            ("bytes 40-99", false),
            ("bytes -40-99/100", false),
            ("", false),
        ];
        for (text, expected) in table {
            let continues = Range::parse(text).is_some_and(|range| range.continues(40, 100));
            assert_eq!(continues, expected, "{text}");
        }
    }
}
