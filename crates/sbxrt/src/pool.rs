//! Containers that stand ready: made ahead for one sandbox, each used once.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sbxrt_runtime::{Prepared, Progress, Request};

use crate::error::Result;
use crate::launchers::{Launchers, Place};

/// How long a container may stand ready. What it sees of the host, the volumes above all, was settled when it was made.
const AGE_LIMIT: Duration = Duration::from_secs(600);

/// A container that waits for a program, and the name of its execution.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) id: String,
    pub(crate) prepared: Prepared,
    pub(crate) place: Place,
    since: Instant,
}

/// The containers of one sandbox. Who takes one has it replaced; a used one is never used again.
#[derive(Debug)]
pub(crate) struct Pool {
    size: usize,
    ready: Mutex<VecDeque<Ready>>,
}

impl Pool {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            size,
            ready: Mutex::default(),
        }
    }

    /// The container that has been waiting longest, unless there is none that is of use.
    pub(crate) fn take(&self) -> Option<Ready> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| ready.pop_front()).find(Ready::is_of_use)
    }

    /// Has containers made until there are enough. They are made by the launchers; this does not wait for them.
    ///
    /// # Errors
    ///
    /// Fails where `request` does or no launcher can be started.
    pub(crate) fn fill(
        &self,
        launchers: &Launchers,
        request: impl Fn() -> Result<Request>,
    ) -> Result<()> {
        loop {
            let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
            if ready.len() >= self.size {
                return Ok(());
            }
            let request = request()?;
            let (prepared, place) = launchers.with(|launcher| launcher.prepare(&request))?;
            prepared.run().set_nonblocking()?;
            ready.push_back(Ready {
                id: request.id,
                prepared,
                place,
                since: Instant::now(),
            });
        }
    }
}

impl Ready {
    /// Whether it stands ready or soon will, and has not done so for too long.
    fn is_of_use(&self) -> bool {
        if self.since.elapsed() > AGE_LIMIT {
            return false;
        }
        loop {
            match self.prepared.run().next() {
                // It may have been ended since.
                Ok(Progress::Ready) => {}
                Err(sbxrt_runtime::Error::Channel(error)) => {
                    return error.kind() == std::io::ErrorKind::WouldBlock;
                }
                Err(sbxrt_runtime::Error::LauncherGone) => {
                    self.place.mark_dead();
                    return false;
                }
                // Whatever it is, whoever starts one of its own is told of it.
                Ok(Progress::Started(_) | Progress::Finished(_)) | Err(_) => return false,
            }
        }
    }
}
