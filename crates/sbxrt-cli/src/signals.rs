//! The signals that somebody sends to sbxrt, as a stream, and work that they end.

use std::task::Poll;
use std::time::Duration;

use nix::libc;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Error, Result};

/// The signals that ask a program to end, or mean something that programs choose. Each goes on to the program.
const FORWARDED: [i32; 6] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGTERM,
];
/// Those that end sbxrt while there is no program to ask.
const ENDING: [i32; 3] = [libc::SIGHUP, libc::SIGINT, libc::SIGTERM];

/// How long what was interrupted may take to clean up.
const GRACE: Duration = Duration::from_secs(2);

/// Does `work`, unless a signal ends it first, and then tells how it went: before threads that are still at it, which
/// notice that nobody wants their work any more, have removed what they have not finished.
pub(crate) fn unless_interrupted<T>(
    work: impl Future<Output = Result<T>>,
    tell: impl FnOnce(&Result<T>),
) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::System {
            step: "start the runtime",
            source,
        })?;
    let done = runtime.block_on(async {
        let mut signals = Signals::ending()?;
        tokio::select! {
            done = work => done,
            signal = signals.next() => Err(Error::Interrupted { signal }),
        }
    });
    tell(&done);
    runtime.shutdown_timeout(GRACE);
    done
}

/// Signals that no longer do what they do by default.
#[derive(Debug)]
pub(crate) struct Signals(Vec<(i32, Signal)>);

impl Signals {
    /// Those that the program is to have.
    pub(crate) fn forwarded() -> Result<Self> {
        Self::catch(&FORWARDED)
    }

    /// Those that end what is being done.
    pub(crate) fn ending() -> Result<Self> {
        Self::catch(&ENDING)
    }

    /// Changes of the terminal's size.
    pub(crate) fn resizing() -> Result<Self> {
        Self::catch(&[libc::SIGWINCH])
    }

    fn catch(numbers: &[i32]) -> Result<Self> {
        let caught = numbers.iter().map(|&number| {
            let stream = signal(SignalKind::from_raw(number)).map_err(|source| Error::System {
                step: "listen for signals",
                source,
            })?;
            Ok((number, stream))
        });
        caught.collect::<Result<_>>().map(Self)
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) -> i32 {
        std::future::poll_fn(|context| {
            for (number, stream) in &mut self.0 {
                if stream.poll_recv(context).is_ready() {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal::{SIGUSR1, SIGUSR2};
    use nix::sys::signal::raise;

    use super::*;

    #[tokio::test]
    async fn each_signal_is_told_by_its_number() {
        let mut signals = Signals::forwarded().unwrap();
        for sent in [SIGUSR1, SIGUSR2] {
            raise(sent).unwrap();
            assert_eq!(signals.next().await, sent as i32);
        }
    }
}
