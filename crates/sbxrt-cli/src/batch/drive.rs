//! Has items run, so many at once, until there are no more or somebody wants an end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::batch::LAST_WORDS;
use crate::batch::input::Line;
use crate::batch::results::Writer;
use crate::batch::screen::Screen;
use crate::batch::summary::Summary;
use crate::batch::worker::{Batch, Outcome, Phase};
use crate::error::{Error, Result};
use crate::printer::Printer;
use crate::signals::Signals;
use crate::status;

/// How many items in a row cannot be run before nobody believes that the next one can.
const PATIENCE: usize = 100;
/// A scheduler may send one signal twice, to us and through whoever started us.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

/// How a batch ended that did not fail.
#[derive(Debug)]
pub(crate) enum Ended {
    Complete,
    /// At a line that is no item.
    Strict,
    Signal(i32),
}

/// What a batch is driven by, and what came of it.
pub(crate) struct Drive {
    pub(crate) jobs: usize,
    pub(crate) strict: bool,
    pub(crate) grace: Option<Duration>,
    pub(crate) printer: Printer,
    pub(crate) screen: Screen,
    pub(crate) summary: Summary,
}

impl Drive {
    pub(crate) async fn run(
        &mut self,
        batch: Arc<Batch>,
        mut lines: mpsc::Receiver<std::io::Result<Line>>,
        writer: Writer,
        input: &Path,
    ) -> Result<Ended> {
        let mut signals = Signals::ending()?;
        let Writer {
            lines: results,
            over: mut written,
        } = writer;
        let (phase, told) = watch::channel(Phase::Running);
        let mut running = JoinSet::new();
        let mut ended = None;
        let mut failure = None;
        // When the first signal came.
        let mut signalled: Option<(tokio::time::Instant, i32)> = None;
        let mut in_a_row = 0;
        let mut writes = true;
        loop {
            if (ended.is_some() || failure.is_some()) && running.is_empty() {
                break;
            }
            let takes = ended.is_none() && failure.is_none() && running.len() < self.jobs;
            let patience = signalled
                .zip(self.grace)
                .map(|((since, _), grace)| since + grace);
            tokio::select! {
                signal = signals.next() => match signalled {
                    None => {
                        signalled = Some((tokio::time::Instant::now(), signal));
                        phase.send_replace(Phase::Stopping);
                        // Where nothing is left to be done, nothing is lost by it.
                        if !matches!(ended, Some(Ended::Complete)) {
                            ended.get_or_insert(Ended::Signal(signal));
                        }
                        let name = status::signal_name(signal);
                        let note = format!("{name}: letting {} programs finish", running.len());
                        self.screen.tell(self.printer, &note);
                    }
                    Some((since, _)) if since.elapsed() >= SAME_SIGNAL => {
                        phase.send_replace(Phase::Cancelled);
                    }
                    Some(_) => {}
                },
                () = until(patience), if *phase.borrow() == Phase::Stopping => {
                    phase.send_replace(Phase::Cancelled);
                }
                // Only its own failure ends it while there are senders.
                end = &mut written, if writes => {
                    writes = false;
                    let end = end.unwrap_or(Ok(())).err();
                    failure = failure.or(end).or(Some(Error::NothingWritten));
                    phase.send_replace(Phase::Cancelled);
                }
                Some(joined) = running.join_next(), if !running.is_empty() => {
                    let (position, outcome) = joined.map_err(|error| Error::System {
                        step: "run an item",
                        source: error.into(),
                    })?;
                    match outcome {
                        Outcome::Result(tally) => {
                            in_a_row = 0;
                            self.summary.result(&tally);
                        }
                        Outcome::Malformed => {
                            self.summary.error();
                            if self.strict {
                                ended.get_or_insert(Ended::Strict);
                            }
                        }
                        Outcome::Failed => {
                            in_a_row += 1;
                            self.summary.error();
                            if in_a_row >= PATIENCE + self.jobs && failure.is_none() {
                                failure = Some(Error::NothingRuns { items: in_a_row });
                            }
                        }
                        Outcome::Skipped => self.summary.skip(),
                        // Somebody else knows why.
                        Outcome::Dropped => {
                            if let (Some((_, signal)), None | Some(Ended::Complete)) = (signalled, &ended) {
                                ended = Some(Ended::Signal(signal));
                            }
                        }
                    }
                    let skipped = matches!(outcome, Outcome::Skipped);
                    self.screen.advance(&self.summary, position, skipped);
                }
                line = lines.recv(), if takes => match line {
                    Some(Ok(line)) => {
                        let (batch, told, results) =
                            (Arc::clone(&batch), told.clone(), results.clone());
                        running.spawn(async move {
                            let position = line.position;
                            (position, batch.attend(line, told, results).await)
                        });
                    }
                    Some(Err(source)) => {
                        failure = Some(Error::BatchInput { path: input.to_owned(), source });
                    }
                    None => ended = Some(Ended::Complete),
                },
            }
        }
        // Ends the writer, once it has written what it has.
        drop(results);
        let last_words = tokio::time::Instant::now() + LAST_WORDS;
        while writes {
            let patience = match *phase.borrow() {
                Phase::Cancelled => Some(last_words),
                _ => signalled
                    .zip(self.grace)
                    .map(|((since, _), grace)| (since + grace).max(last_words)),
            };
            tokio::select! {
                end = &mut written => {
                    writes = false;
                    failure = failure.or(end.unwrap_or(Ok(())).err());
                }
                signal = signals.next() => {
                    let (since, _) = *signalled.get_or_insert((tokio::time::Instant::now(), signal));
                    if since.elapsed() >= SAME_SIGNAL {
                        phase.send_replace(Phase::Cancelled);
                    }
                }
                // What nobody reads is no result, and is run again.
                () = until(patience) => {
                    ended = signalled.map(|(_, signal)| Ended::Signal(signal)).or(ended);
                    break;
                }
            }
        }
        match failure {
            Some(failure) => Err(failure),
            None => Ok(ended.unwrap_or(Ended::Complete)),
        }
    }
}

/// Waits until then, or for ever.
async fn until(then: Option<tokio::time::Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}
