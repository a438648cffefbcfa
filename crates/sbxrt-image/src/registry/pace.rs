//! How slow a registry may be: nothing is waited for without an end.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;
use tokio::time::{Instant, timeout};

/// The slowest that a body may come. A network that does less brings no image within a day.
const BYTES_PER_SECOND: f64 = 1024.0;

/// Reads a body for as long as it comes fast enough. Only the waiting counts: whoever is slow to take what has come does
/// the registry no wrong.
#[derive(Debug)]
pub(crate) struct Pace {
    idle: Duration,
    /// How long this window has been waited in, and what has come in it.
    waited: Duration,
    came: u64,
    left: Option<Duration>,
}

/// Why no more of a body comes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("nothing came for {} s", .0.as_secs_f64())]
    Silent(Duration),
    #[error("less than 1 KiB a second came for {} s", .0.as_secs_f64())]
    Slow(Duration),
    #[error("it was not there after {} s", .0.as_secs_f64())]
    Late(Duration),
    #[error("the connection broke off")]
    Lost(#[source] reqwest::Error),
}

impl Pace {
    /// For a body of any length.
    pub(crate) fn new(idle: Duration) -> Self {
        Self {
            idle,
            waited: Duration::ZERO,
            came: 0,
            left: None,
        }
    }

    /// For a small body, which must have come as a whole after four times the idle time.
    pub(crate) fn of_document(idle: Duration) -> Self {
        Self {
            left: Some(idle * 4),
            ..Self::new(idle)
        }
    }

    /// Returns the next bytes; `None` at the end.
    pub(crate) async fn next(&mut self, response: &mut Response) -> Result<Option<Bytes>, Broken> {
        loop {
            let window = self.idle.saturating_sub(self.waited);
            let wait = self.left.map_or(window, |left| left.min(window));
            let began = Instant::now();
            let arrived = timeout(wait, response.chunk()).await;
            let took = began.elapsed();
            self.waited += took;
            self.left = self.left.map(|left| left.saturating_sub(took));
            match arrived {
                Ok(Ok(bytes)) => {
                    self.came += bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
                    return Ok(bytes);
                }
                Ok(Err(error)) => return Err(Broken::Lost(error.without_url())),
                Err(_) if self.left == Some(Duration::ZERO) => {
                    return Err(Broken::Late(self.idle * 4));
                }
                Err(_) if self.came == 0 => return Err(Broken::Silent(self.idle)),
                Err(_) if !is_enough(self.came, self.idle) => return Err(Broken::Slow(self.idle)),
                Err(_) => {
                    self.waited = Duration::ZERO;
                    self.came = 0;
                }
            }
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "it is about whether some thousand bytes have come"
)]
fn is_enough(bytes: u64, time: Duration) -> bool {
    bytes as f64 >= time.as_secs_f64() * BYTES_PER_SECOND
}
