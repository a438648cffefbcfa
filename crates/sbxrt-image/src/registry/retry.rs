//! How often and how soon something is tried again.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{self, HeaderMap};

use crate::{Error, PullOptions, Result};

/// Why one try has failed: whether another may help.
#[derive(Debug)]
pub(crate) enum Failure {
    Final(Error),
    /// And for how long the registry wishes not to be asked again.
    Passing(Error, Option<Duration>),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// Whether a status may be another one after a while.
pub(crate) fn is_passing(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
    ) || status.is_server_error()
        && !matches!(
            status,
            StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED
        )
}

/// The tries that are left.
#[derive(Debug)]
pub(crate) struct Tries {
    left: u32,
    wait: Duration,
    maximum: Duration,
}

impl Tries {
    pub(crate) fn new(options: &PullOptions) -> Self {
        Self {
            left: options.attempts,
            wait: options.retry_wait.min(options.retry_wait_max),
            maximum: options.retry_wait_max,
        }
    }

    /// No second try: there is somebody else to ask.
    pub(crate) fn once() -> Self {
        Self {
            left: 1,
            wait: Duration::ZERO,
            maximum: Duration::ZERO,
        }
    }

    /// Waits before the next try, or gives up.
    pub(crate) async fn after(&mut self, failure: Failure) -> Result<()> {
        let (error, wished) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Passing(error, wished) => (error, wished),
        };
        self.left = self.left.saturating_sub(1);
        // Whoever wishes to be left alone for an hour does not answer in half a minute.
        if self.left == 0 || wished.is_some_and(|wished| wished > self.maximum) {
            return Err(error);
        }
        let wait = wished.unwrap_or_else(|| jittered(self.wait));
        tracing::debug!(%error, ?wait, "trying again");
        tokio::time::sleep(wait).await;
        self.wait = (self.wait * 4).min(self.maximum);
        Ok(())
    }
}

/// Returns three quarters to five quarters of a time, so that many who failed together do not come back together.
fn jittered(wait: Duration) -> Duration {
    // The keys of a new hasher are random, and this needs no more than that.
    let random = RandomState::new().build_hasher().finish() % 512;
    wait.saturating_mul(768 + u32::try_from(random).unwrap_or(0)) / 1024
}

/// Reads `Retry-After`, which holds seconds or a date.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    // What lies behind is now.
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn the_wish_to_be_left_alone_is_read_in_both_forms() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:00 GMT").unwrap();
        let table = [
            ("7", Some(7)),
            ("0", Some(0)),
            (" 3600 ", Some(3600)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(37)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(37)),
            ("Sun Nov  6 08:49:37 1994", Some(37)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ];
        for (text, seconds) in table {
            let headers =
                HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::from_static(text))]);
            assert_eq!(
                retry_after(&headers, now),
                seconds.map(Duration::from_secs),
                "{text:?}"
            );
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn the_wait_stays_near_what_it_is() {
        for _ in 0..100 {
            let wait = jittered(Duration::from_secs(4));
            assert!((3000..5000).contains(&wait.as_millis()), "{wait:?}");
        }
        assert_eq!(jittered(Duration::ZERO), Duration::ZERO);
        assert!(jittered(Duration::MAX) <= Duration::MAX);
    }

    #[test]
    fn statuses_that_pass_are_told_from_those_that_stay() {
        for (status, expected) in [
            (408, true),
            (429, true),
            (500, true),
            (502, true),
            (503, true),
            (504, true),
            (501, false),
            (400, false),
            (404, false),
            (410, false),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(is_passing(status), expected, "{status}");
        }
    }
}
