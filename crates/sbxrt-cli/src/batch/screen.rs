//! What people see while a batch runs: a bar on a terminal, and nothing elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::batch::summary::Summary;
use crate::printer::Printer;
use crate::progress::Show;

/// The bar on a terminal.
pub(crate) struct Screen {
    bar: ProgressBar,
    length: Option<u64>,
    began: Instant,
    /// How far the input is read, and how much of that was run now.
    position: u64,
    ran: u64,
}

impl Screen {
    pub(crate) fn new(printer: Printer, length: Option<u64>) -> Self {
        let target = match Show::for_people(printer) {
            Show::Bars => ProgressDrawTarget::stderr(),
            _ => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(length, target);
        let template = match length {
            Some(_) => "[{bar:25}] {percent}% {msg}",
            None => "{spinner} {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self {
            bar,
            length,
            began: Instant::now(),
            position: 0,
            ran: 0,
        }
    }

    /// An item is done; the input was read up to `position` with it.
    pub(crate) fn advance(&mut self, summary: &Summary, position: u64, skipped: bool) {
        let further = position.saturating_sub(self.position);
        self.position += further;
        if !skipped {
            self.ran += further;
        }
        if self.bar.is_hidden() {
            return;
        }
        let elapsed = self.began.elapsed();
        let left = self.length.filter(|_| self.ran > 0).map(|length| {
            let left = u128::from(length.saturating_sub(self.position));
            let nanoseconds = elapsed.as_nanos() * left / u128::from(self.ran);
            Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
        });
        self.bar.set_position(self.position);
        self.bar.set_message(summary.progress(elapsed, left));
    }

    /// Says something above the bar.
    pub(crate) fn tell(&self, printer: Printer, text: &str) {
        self.bar.suspend(|| printer.note(text));
    }

    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
