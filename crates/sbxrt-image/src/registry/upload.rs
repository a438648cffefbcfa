//! Blobs and manifests on their way into a repository, as the distribution specification has it: "Push".
//!
//! A blob that is there already is not sent. One that is sent goes in a single stream of bounded memory; where that
//! breaks, it is taken up where the registry says that it broke. The registry makes a blob visible when it has hashed
//! to its digest, and an image when its manifest comes, which is last; so nothing of an interrupted push can be seen.
//!
//! A registry may send an upload elsewhere. That address is held against the same rules as a redirect, and no
//! credentials go there.

use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::{BoxFuture, join};
use http_body::{Body, Frame, SizeHint};
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::client::{Client, Content, Scope};
use super::{Failure, Registry, Request, Tries};
use crate::blob::Expected;
use crate::{Digest, Error, Result};

/// How many pieces of a blob may wait to be sent.
const WAITING: usize = 8;

/// A part of a blob, or why there are no more.
pub(crate) type Piece = io::Result<Bytes>;

/// Sends a blob into a channel, from an offset, and verifies all of it on the way. What is wrong with it goes into the
/// channel as well, so that whoever reads there does not take what came for the whole.
pub(crate) type Feed<'a> = dyn Fn(u64, Sender<Piece>) -> BoxFuture<'a, Result<()>> + Sync + 'a;

/// What became of a blob that was to be in the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// The registry took it from another of its repositories.
    Mounted,
    /// It was sent.
    Sent,
}

/// An upload that the registry has begun.
#[derive(Clone, Debug)]
struct Upload {
    url: Url,
    offset: u64,
}

const REDIRECTS: [StatusCode; 5] = [
    StatusCode::MOVED_PERMANENTLY,
    StatusCode::FOUND,
    StatusCode::SEE_OTHER,
    StatusCode::TEMPORARY_REDIRECT,
    StatusCode::PERMANENT_REDIRECT,
];

impl Registry {
    /// Returns the name and port of the registry, and the repository: blobs move freely within the first.
    pub(crate) fn place(&self) -> (&str, &str) {
        (self.reference.registry(), self.reference.repository())
    }

    /// The registry itself: what is pushed goes to no mirror.
    async fn own(&self) -> Result<&Client> {
        self.client(self.places.len() - 1).await
    }

    /// Whether the repository has a blob.
    pub(crate) async fn has_blob(&self, digest: &Digest) -> Result<bool> {
        let mut answers = REDIRECTS.to_vec();
        answers.push(StatusCode::NOT_FOUND);
        let mut tries = Tries::new(&self.options);
        loop {
            let request = Request {
                method: Method::HEAD,
                scope: PUSH,
                // That it says where the blob is says that it is; the address is good for nothing but a GET.
                answers: &answers,
                ..Request::get(self.own().await?.url(&format!("blobs/{digest}"))?)
            };
            match self.own().await?.request(&request).await {
                Ok(response) => return Ok(response.status() != StatusCode::NOT_FOUND),
                Err(failure) => tries.after(failure).await?,
            }
        }
    }

    /// Puts a blob into the repository that is not there. `source` is another repository of the same registry that
    /// has it.
    pub(crate) async fn push_blob(
        &self,
        expected: &Expected,
        source: Option<&str>,
        feed: &Feed<'_>,
    ) -> Result<Pushed> {
        let mut upload: Option<Upload> = None;
        let mut furthest = 0;
        let mut tries = Tries::new(&self.options);
        loop {
            let pushed = match upload.take() {
                Some(known) => self.take_up(known).await.map(Some),
                None => self.begin(&expected.digest, source).await,
            };
            let failure = match pushed {
                Ok(None) => return Ok(Pushed::Mounted),
                Ok(Some(mut begun)) => {
                    if begun.offset > furthest {
                        furthest = begun.offset;
                        tries = Tries::new(&self.options);
                    }
                    match self.send(&mut begun, expected, feed).await {
                        Ok(()) => return Ok(Pushed::Sent),
                        Err(Failure::Final(error)) => {
                            self.abandon(&begun).await;
                            return Err(error);
                        }
                        Err(failure) => {
                            upload = Some(begun);
                            failure
                        }
                    }
                }
                Err(failure) => failure,
            };
            tries.after(failure).await?;
        }
    }

    /// Begins an upload; `None` where the registry has taken the blob from the other repository instead.
    async fn begin(
        &self,
        digest: &Digest,
        source: Option<&str>,
    ) -> Result<Option<Upload>, Failure> {
        let mut url = self.own().await?.url("blobs/uploads/")?;
        let mut scope = PUSH;
        if let Some(source) = source {
            url.query_pairs_mut()
                .append_pair("mount", &digest.to_string())
                .append_pair("from", source);
            scope.source = Some(source.to_owned());
        }
        let request = Request {
            method: Method::POST,
            content: Some(Content::bytes(Bytes::new())),
            scope,
            ..Request::get(url.clone())
        };
        let response = self.own().await?.request(&request).await?;
        if response.status() == StatusCode::CREATED {
            return Ok(None);
        }
        let url = self.own().await?.redirect(&url, response.headers())?;
        Ok(Some(Upload { url, offset: 0 }))
    }

    /// Asks how much of an upload the registry has. One that it knows no more begins anew.
    async fn take_up(&self, upload: Upload) -> Result<Upload, Failure> {
        let request = Request {
            scope: PUSH,
            answers: &[
                StatusCode::NOT_FOUND,
                StatusCode::BAD_REQUEST,
                StatusCode::METHOD_NOT_ALLOWED,
            ],
            ..Request::get(upload.url.clone())
        };
        let response = self.own().await?.request(&request).await?;
        if !response.status().is_success() {
            let begun = self.begin_plainly().await?;
            return Ok(begun);
        }
        let url = self.next(&upload.url, &response).await?;
        Ok(Upload {
            url,
            offset: received(response.headers()),
        })
    }

    async fn begin_plainly(&self) -> Result<Upload, Failure> {
        let digest = Digest::of(b"");
        match self.begin(&digest, None).await? {
            Some(upload) => Ok(upload),
            None => Err(Failure::Final(Error::AddressRefused {
                image: self.image.clone(),
                target: "nowhere".to_owned(),
                reason: "it begins no upload".to_owned(),
            })),
        }
    }

    /// Sends what the registry does not have of a blob, and has it verified.
    async fn send(
        &self,
        upload: &mut Upload,
        expected: &Expected,
        feed: &Feed<'_>,
    ) -> Result<(), Failure> {
        if upload.offset > expected.size {
            // It is not ours, or the registry counts in its own way.
            return Err(Failure::Final(Error::SizeMismatch {
                what: format!("the upload of {}", expected.what),
                expected: expected.size,
                actual: upload.offset,
            }));
        }
        let own = self.own().await?;
        let (sender, receiver) = channel(WAITING);
        let length = expected.size - upload.offset;
        let stream = Mutex::new(Some(Stream {
            receiver,
            left: length,
        }));
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        if upload.offset > 0 {
            let range = format!("{}-{}", upload.offset, expected.size - 1);
            if let Ok(range) = HeaderValue::from_str(&range) {
                headers.insert(header::CONTENT_RANGE, range);
            }
        }
        let request = Request {
            method: Method::PATCH,
            headers,
            content: Some(Content {
                length,
                // Whoever asks for it once more, since the token has run out, must begin the attempt anew.
                open: Box::new(|| {
                    let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
                    stream
                        .map(reqwest::Body::wrap)
                        .ok_or_else(|| Error::Cancelled {
                            what: expected.what.clone(),
                        })
                }),
            }),
            scope: PUSH,
            answers: &[StatusCode::RANGE_NOT_SATISFIABLE],
            ..Request::get(upload.url.clone())
        };
        let (fed, sent) = join(feed(upload.offset, sender), own.request(&request)).await;
        // What is wrong with the blob is why it could not be sent.
        fed?;
        let response = match sent {
            Err(Failure::Final(error @ Error::Cancelled { .. })) => {
                return Err(Failure::Passing(error, None));
            }
            other => other?,
        };
        upload.url = self.next(&upload.url, &response).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            let error = self
                .own()
                .await?
                .failed(&Method::PATCH, &response, String::new());
            return Err(Failure::Passing(error, None));
        }
        let mut url = upload.url.clone();
        url.query_pairs_mut()
            .append_pair("digest", &expected.digest.to_string());
        let request = Request {
            method: Method::PUT,
            content: Some(Content::bytes(Bytes::new())),
            scope: PUSH,
            ..Request::get(url)
        };
        self.own().await?.request(&request).await?;
        Ok(())
    }

    /// Tells the registry that an upload will not be finished. It finds out by itself in time.
    async fn abandon(&self, upload: &Upload) {
        let request = Request {
            method: Method::DELETE,
            scope: PUSH,
            ..Request::get(upload.url.clone())
        };
        let Ok(own) = self.own().await else {
            return;
        };
        if let Err(failure) = own.request(&request).await {
            tracing::debug!(?failure, "the upload stays behind");
        }
    }

    /// Returns where an upload goes on.
    async fn next(&self, from: &Url, response: &Response) -> Result<Url> {
        if response.headers().contains_key(header::LOCATION) {
            self.own().await?.redirect(from, response.headers())
        } else {
            Ok(from.clone())
        }
    }

    /// Puts a manifest or an index into the repository, by its digest or under the tag of the reference.
    pub(crate) async fn push_manifest(
        &self,
        name: &str,
        media_type: &str,
        bytes: &[u8],
        digest: &Digest,
    ) -> Result<()> {
        let mut headers = HeaderMap::new();
        if let Ok(media_type) = HeaderValue::from_str(media_type) {
            headers.insert(header::CONTENT_TYPE, media_type);
        }
        let mut tries = Tries::new(&self.options);
        loop {
            let request = Request {
                method: Method::PUT,
                headers: headers.clone(),
                content: Some(Content::bytes(Bytes::copy_from_slice(bytes))),
                scope: PUSH,
                ..Request::get(self.own().await?.url(&format!("manifests/{name}"))?)
            };
            let response = match self.own().await?.request(&request).await {
                Ok(response) => response,
                Err(failure) => {
                    tries.after(failure).await?;
                    continue;
                }
            };
            let stated = response
                .headers()
                .get("docker-content-digest")
                .and_then(|value| value.to_str().ok()?.parse::<Digest>().ok());
            return match stated {
                Some(actual) if actual != *digest && actual.algorithm() == digest.algorithm() => {
                    Err(Error::DigestMismatch {
                        what: format!("manifest of {} in the registry", self.image),
                        expected: digest.clone(),
                        actual,
                    })
                }
                _ => Ok(()),
            };
        }
    }

    /// Returns what the image is to be called in the repository: its tag, or its digest where that is all there is.
    pub(crate) fn target(&self, digest: &Digest) -> Result<String> {
        match (self.reference.tag(), self.reference.digest()) {
            (_, Some(wanted)) if wanted != digest.to_string() => Err(Error::DigestMismatch {
                what: format!("the image for {}", self.image),
                expected: wanted.parse().map_err(|error: crate::InvalidDigest| {
                    Error::InvalidManifest {
                        image: self.image.clone(),
                        reason: error.to_string(),
                    }
                })?,
                actual: digest.clone(),
            }),
            (None, Some(wanted)) => Ok(wanted.to_owned()),
            (tag, _) => Ok(tag.unwrap_or("latest").to_owned()),
        }
    }
}

const PUSH: Scope = Scope {
    actions: "pull,push",
    source: None,
};

/// Returns how many bytes of an upload the registry has: `Range: 0-N` counts the last one. `0-0` is what an empty
/// upload has too, since nothing else can be written.
fn received(headers: &HeaderMap) -> u64 {
    let last = headers
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok())
        .map(|text| text.strip_prefix("bytes=").unwrap_or(text))
        .and_then(|text| text.strip_prefix("0-")?.parse::<u64>().ok());
    match last {
        None | Some(0) => 0,
        Some(last) => last.saturating_add(1),
    }
}

/// What is sent of a blob, as it comes.
struct Stream {
    receiver: Receiver<Piece>,
    left: u64,
}

impl Body for Stream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let piece = match self.receiver.poll_recv(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(piece) => piece,
        };
        Poll::Ready(match piece {
            Some(Ok(bytes)) => {
                self.left = self.left.saturating_sub(bytes.len() as u64);
                Some(Ok(Frame::data(bytes)))
            }
            Some(Err(error)) => Some(Err(error)),
            None if self.left > 0 => Some(Err(io::ErrorKind::UnexpectedEof.into())),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0 && self.receiver.is_closed() && self.receiver.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_registry_has_is_read_from_its_range() {
        let table = [
            (None, 0),
            (Some("0-0"), 0),
            (Some("0-9"), 10),
            (Some("bytes=0-9"), 10),
            (Some("5-9"), 0),
            (Some("0-18446744073709551615"), u64::MAX),
            (Some("nonsense"), 0),
        ];
        for (text, expected) in table {
            let mut headers = HeaderMap::new();
            if let Some(text) = text {
                headers.insert(header::RANGE, HeaderValue::from_static(text));
            }
            assert_eq!(received(&headers), expected, "{text:?}");
        }
    }
}
