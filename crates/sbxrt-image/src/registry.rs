//! A registry, spoken to by the OCI distribution specification.
//!
//! A client of our own, since what matters here is what is left out: every answer has a bound, a redirect is looked at
//! before it is followed, the `Authorization` header goes to the registry's own origin and nowhere else
//! (CVE-2020-15157), and nothing that a registry says about its content is believed before the bytes hash to it.
//!
//! [`Client`] makes requests of every kind: who asks, redirects and bounds are its business. What is asked for lies
//! beside it: [`fetch`] reads manifests and blobs, [`upload`] writes them.

mod client;
mod fetch;
mod login;
mod pace;
mod retry;
mod tls;
mod upload;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use oci_spec::distribution::Reference;
use tokio::sync::OnceCell;

use self::client::{Client, Request};
pub(crate) use self::fetch::Fetched;
pub use self::login::verify_login;
use self::retry::{Failure, Tries};
pub(crate) use self::upload::{Piece, Pushed};
use crate::registries::Endpoint;
use crate::{Error, PullOptions, Result};

/// A repository of a registry, with its mirrors.
#[derive(Debug)]
pub(crate) struct Registry {
    /// Mirrors first; the repository's own place comes last.
    places: Vec<Place>,
    /// The first place that is worth being asked.
    first: AtomicUsize,
    reference: Reference,
    image: String,
    options: PullOptions,
}

/// Where the repository can be found.
#[derive(Debug)]
struct Place {
    endpoint: Endpoint,
    client: OnceCell<Client>,
    /// Whether it has answered before. A mirror that never did is not worth a second try.
    has_answered: AtomicBool,
}

impl Registry {
    pub(crate) fn new(reference: &Reference, options: &PullOptions) -> Result<Self> {
        let places = options.registries.endpoints(reference)?.into_iter();
        let place = |endpoint| Place {
            endpoint,
            client: OnceCell::new(),
            has_answered: AtomicBool::new(false),
        };
        Ok(Self {
            places: places.map(place).collect(),
            first: AtomicUsize::new(0),
            reference: reference.clone(),
            image: reference.whole(),
            options: options.clone(),
        })
    }

    /// Returns the place to begin with.
    fn first(&self) -> usize {
        self.first.load(Ordering::Relaxed)
    }

    async fn client(&self, place: usize) -> Result<&Client> {
        let Place {
            endpoint, client, ..
        } = &self.places[place];
        client
            .get_or_try_init(|| Client::connect(endpoint, &self.image, &self.options))
            .await
    }

    fn tries(&self, place: usize) -> Tries {
        let place = &self.places[place];
        if place.endpoint.is_mirror && !place.has_answered.load(Ordering::Relaxed) {
            return Tries::once();
        }
        Tries::new(&self.options)
    }

    fn answered(&self, place: usize) {
        self.places[place]
            .has_answered
            .store(true, Ordering::Relaxed);
    }

    /// Goes on to the next place after a failure, if there is one. What failed is not asked for anything else: an image
    /// that comes in parts from several places gives nobody joy.
    fn pass_over(&self, place: &mut usize, error: &Error) -> bool {
        if *place + 1 == self.places.len() {
            return false;
        }
        let mirror = &self.places[*place].endpoint.host;
        match error {
            // A mirror need not have everything.
            Error::ManifestUnknown { .. } | Error::BlobUnknown { .. } => {
                tracing::debug!(%error, mirror, "passing over");
            }
            error => tracing::warn!("passing over mirror {mirror}: {error}"),
        }
        *place += 1;
        self.first.fetch_max(*place, Ordering::Relaxed);
        true
    }
}
