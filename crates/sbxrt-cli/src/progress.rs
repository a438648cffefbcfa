//! What a pull shows while it runs: bars on a terminal, a line now and then elsewhere, events for programs.
//!
//! What is said is decided by [`Story`], which knows no clock and no terminal; [`Follower`] has both.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use sbxrt::Image;
use sbxrt::image::{Digest, Event, LayerState, Progress};
use serde::Serialize;

use crate::args::ProgressWhen;
use crate::diagnostics::Diagnostic;
use crate::printer::Printer;
use crate::quantity::{format_duration, format_size};

/// Digits of a digest that people tell layers apart by.
const DIGITS: usize = 12;
/// How long nothing is said, at most, in a log that somebody watches.
const SILENCE: Duration = Duration::from_secs(10);
/// How often a program is told how far a layer is, at most.
const INTERVAL: Duration = Duration::from_millis(250);
/// The version of the events: `docs/pull-events.schema.json` is their promise.
const VERSION: u32 = 1;

/// How a pull is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Show {
    /// A bar for each layer that is under way and one for all of them, on standard error.
    Bars,
    /// A line when it begins, for each layer, and at least every ten seconds, on standard error.
    Lines,
    /// One JSON object a line, on standard output.
    Json,
    /// Not at all.
    Nothing,
}

impl Show {
    /// What `sbxrt pull` shows.
    pub(crate) fn for_pull(wanted: ProgressWhen, printer: Printer) -> Self {
        match wanted {
            ProgressWhen::Json => Self::Json,
            ProgressWhen::None => Self::Nothing,
            _ if printer.is_quiet() => Self::Nothing,
            ProgressWhen::Auto if std::io::stderr().is_terminal() => Self::Bars,
            ProgressWhen::Auto | ProgressWhen::Plain => Self::Lines,
        }
    }

    /// What is shown where standard error is a program's or a summary is enough: something for people and nothing else.
    pub(crate) fn for_people(printer: Printer) -> Self {
        if !printer.is_quiet() && std::io::stderr().is_terminal() {
            Self::Bars
        } else {
            Self::Nothing
        }
    }
}

/// Follows a pull.
#[derive(Debug)]
pub(crate) struct Follower {
    show: Show,
    printer: Printer,
    screen: MultiProgress,
    began: Instant,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    story: Story,
    total: Option<ProgressBar>,
    bars: HashMap<Digest, ProgressBar>,
}

impl Follower {
    /// Follows the pull of what was called `name`.
    pub(crate) fn new(name: String, show: Show, printer: Printer) -> Self {
        let target = match show {
            Show::Bars => ProgressDrawTarget::stderr(),
            _ => ProgressDrawTarget::hidden(),
        };
        Self {
            show,
            printer,
            screen: MultiProgress::with_draw_target(target),
            began: Instant::now(),
            seen: Mutex::new(Seen {
                story: Story::new(name),
                total: None,
                bars: HashMap::new(),
            }),
        }
    }

    /// Takes the bars away and says what was done.
    pub(crate) fn done(&self, image: &Image) {
        let seen = self.clear();
        match self.show {
            Show::Bars | Show::Lines => {
                let summary = seen.story.summary(image.size, self.began.elapsed());
                self.printer.note(&summary);
            }
            Show::Json => {
                let digest = image.digest.as_ref().map(ToString::to_string);
                self.send(&seen.story.done(digest, image.size, self.began.elapsed()));
            }
            Show::Nothing => {}
        }
    }

    /// Takes the bars away; tells programs of the failure, which people are told of elsewhere.
    pub(crate) fn failed(&self, error: &Diagnostic) {
        let seen = self.clear();
        if self.show == Show::Json {
            self.send(&seen.story.failed(error));
        }
    }

    /// Takes the bars away.
    pub(crate) fn clear_bars(&self) {
        drop(self.clear());
    }

    fn clear(&self) -> std::sync::MutexGuard<'_, Seen> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, bar) in seen.bars.drain() {
            bar.finish_and_clear();
        }
        if let Some(total) = seen.total.take() {
            total.finish_and_clear();
        }
        seen
    }

    fn send(&self, told: &Told<'_>) {
        if let Ok(line) = serde_json::to_string(told) {
            // Where nobody reads the events, the exit status still says how it ended.
            drop(self.printer.data(&format!("{line}\n")));
        }
    }

    fn draw(&self, seen: &mut Seen, event: &Event) {
        match event {
            Event::Resolved { bytes, .. } => {
                let total = self.screen.add(ProgressBar::new(*bytes));
                total.set_style(style(TOTAL));
                total.set_message(seen.story.count());
                seen.total = Some(total);
            }
            Event::Layer {
                digest,
                size,
                state,
            } => {
                match state {
                    LayerState::Exists => {}
                    LayerState::Started => {
                        let bar = ProgressBar::new(*size);
                        // Above the total, and gone when it is done: many layers take no more lines than few.
                        let bar = match &seen.total {
                            Some(total) => self.screen.insert_before(total, bar),
                            None => self.screen.add(bar),
                        };
                        bar.set_style(style(LAYER));
                        bar.set_prefix(short(digest));
                        seen.bars.insert(digest.clone(), bar);
                    }
                    LayerState::Advanced(bytes) => {
                        if let Some(bar) = seen.bars.get(digest) {
                            bar.set_position(*bytes);
                        }
                    }
                    LayerState::Unpacking => {
                        if let Some(bar) = seen.bars.get(digest) {
                            bar.set_position(*size);
                            bar.set_message("unpacking");
                        }
                    }
                    LayerState::Done => {
                        if let Some(bar) = seen.bars.remove(digest) {
                            bar.finish_and_clear();
                        }
                    }
                }
                if let Some(total) = &seen.total {
                    total.set_position(seen.story.here());
                    if matches!(state, LayerState::Exists | LayerState::Done) {
                        total.set_message(seen.story.count());
                    }
                }
            }
            _ => {}
        }
    }
}

impl Progress for Follower {
    fn event(&self, event: Event) {
        let at = self.began.elapsed();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.story.note(&event);
        match self.show {
            Show::Bars => self.draw(&mut seen, &event),
            Show::Lines => {
                if let Some(line) = seen.story.line(&event, at) {
                    self.printer.note(&line);
                }
            }
            Show::Json => {
                if let Some(told) = seen.story.tell(&event, at) {
                    self.send(&told);
                }
            }
            Show::Nothing => {}
        }
    }
}

/// What has happened in a pull so far.
#[derive(Debug)]
struct Story {
    name: String,
    layers: usize,
    bytes: u64,
    fetched: usize,
    fetched_bytes: u64,
    existing: usize,
    existing_bytes: u64,
    /// What has come of the layers that are under way.
    under_way: HashMap<Digest, u64>,
    /// When something was said last: of anything, and of a layer.
    said: Duration,
    told: HashMap<Digest, Duration>,
}

/// An event, as programs read it.
#[derive(Debug, Serialize)]
struct Told<'a> {
    version: u32,
    #[serde(flatten)]
    what: What<'a>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum What<'a> {
    Resolved {
        image: &'a str,
        digest: String,
        layers: usize,
        bytes: u64,
    },
    Layer {
        digest: String,
        bytes: u64,
        state: &'static str,
        received: u64,
    },
    Done {
        image: &'a str,
        digest: Option<String>,
        layers: usize,
        existing_layers: usize,
        bytes: u64,
        unpacked_bytes: u64,
        elapsed_ms: u64,
    },
    Failed {
        image: &'a str,
        error: &'a Diagnostic,
    },
}

impl Story {
    fn new(name: String) -> Self {
        Self {
            name,
            layers: 0,
            bytes: 0,
            fetched: 0,
            fetched_bytes: 0,
            existing: 0,
            existing_bytes: 0,
            under_way: HashMap::new(),
            said: Duration::ZERO,
            told: HashMap::new(),
        }
    }

    /// Takes note of an event.
    fn note(&mut self, event: &Event) {
        match event {
            Event::Resolved {
                name,
                layers,
                bytes,
                ..
            } => {
                self.name.clone_from(name);
                self.layers = *layers;
                self.bytes = *bytes;
            }
            Event::Layer {
                digest,
                size,
                state,
            } => {
                let received = match state {
                    LayerState::Exists => {
                        self.existing += 1;
                        self.existing_bytes += size;
                        return;
                    }
                    LayerState::Done => {
                        self.under_way.remove(digest);
                        self.told.remove(digest);
                        self.fetched += 1;
                        self.fetched_bytes += size;
                        return;
                    }
                    LayerState::Started => 0,
                    LayerState::Advanced(bytes) => *bytes,
                    LayerState::Unpacking => *size,
                };
                self.under_way.insert(digest.clone(), received);
            }
            _ => {}
        }
    }

    /// How many bytes of the layers are here.
    fn here(&self) -> u64 {
        self.existing_bytes + self.fetched_bytes + self.under_way.values().sum::<u64>()
    }

    fn count(&self) -> String {
        format!(
            "{} of {}",
            self.existing + self.fetched,
            count(self.layers, "layer")
        )
    }

    /// What a log says of an event that was noted.
    fn line(&mut self, event: &Event, at: Duration) -> Option<String> {
        let line = match event {
            Event::Resolved { digest, .. } => format!(
                "Pulling {}: {}, {} ({})",
                self.name,
                count(self.layers, "layer"),
                format_size(self.bytes),
                short(digest)
            ),
            Event::Layer {
                digest,
                size,
                state: LayerState::Done,
            } => format!(
                "  {}: done, {} ({})",
                short(digest),
                format_size(*size),
                self.count()
            ),
            Event::Layer {
                state: LayerState::Advanced(_) | LayerState::Unpacking,
                ..
            } if at.saturating_sub(self.said) >= SILENCE => {
                let fetched = self.here() - self.existing_bytes;
                let mut line = format!(
                    "  {} of {}",
                    format_size(self.here()),
                    format_size(self.bytes)
                );
                if let Some(speed) = speed(fetched, at) {
                    let _ = write!(line, ", {speed}");
                }
                line
            }
            _ => return None,
        };
        self.said = at;
        Some(line)
    }

    /// What programs are told of an event that was noted.
    fn tell(&mut self, event: &Event, at: Duration) -> Option<Told<'_>> {
        let what = match event {
            Event::Resolved { digest, .. } => What::Resolved {
                image: &self.name,
                digest: digest.to_string(),
                layers: self.layers,
                bytes: self.bytes,
            },
            Event::Layer {
                digest,
                size,
                state,
            } => {
                let (state, received) = match state {
                    LayerState::Exists => ("exists", 0),
                    LayerState::Started => ("started", 0),
                    LayerState::Advanced(bytes) => {
                        let told = self.told.entry(digest.clone()).or_default();
                        if at.saturating_sub(*told) < INTERVAL {
                            return None;
                        }
                        *told = at;
                        ("advanced", *bytes)
                    }
                    LayerState::Unpacking => ("unpacking", *size),
                    LayerState::Done => ("done", *size),
                };
                What::Layer {
                    digest: digest.to_string(),
                    bytes: *size,
                    state,
                    received,
                }
            }
            _ => return None,
        };
        Some(Told {
            version: VERSION,
            what,
        })
    }

    fn done(&self, digest: Option<String>, unpacked_bytes: u64, at: Duration) -> Told<'_> {
        Told {
            version: VERSION,
            what: What::Done {
                image: &self.name,
                digest,
                layers: self.fetched,
                existing_layers: self.existing,
                bytes: self.fetched_bytes,
                unpacked_bytes,
                elapsed_ms: u64::try_from(at.as_millis()).unwrap_or(u64::MAX),
            },
        }
    }

    fn failed<'a>(&'a self, error: &'a Diagnostic) -> Told<'a> {
        Told {
            version: VERSION,
            what: What::Failed {
                image: &self.name,
                error,
            },
        }
    }

    /// The last line for people: what came, how fast, and what was here. `unpacked` are the bytes of the image's files.
    fn summary(&self, unpacked: u64, time: Duration) -> String {
        let name = &self.name;
        match (self.fetched, self.existing) {
            (0, 0) => return format!("{name} is here"),
            (0, existing) => {
                return format!("{name} is up to date ({})", count(existing, "layer"));
            }
            _ => {}
        }
        let mut text = format!(
            "Pulled {name}: {}, {}",
            count(self.fetched, "layer"),
            format_size(self.fetched_bytes)
        );
        // Tenths of a second are as much as anybody reads.
        let tenths =
            Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX) / 100 * 100);
        // Writing to a string cannot fail.
        if !tenths.is_zero() {
            let _ = write!(text, " in {}", format_duration(tenths));
            if let Some(speed) = speed(self.fetched_bytes, time) {
                let _ = write!(text, ", {speed}");
            }
        }
        let _ = write!(text, "; {} unpacked", format_size(unpacked));
        if self.existing > 0 {
            let verb = if self.existing == 1 { "was" } else { "were" };
            let _ = write!(
                text,
                ", {} {verb} here already",
                count(self.existing, "layer")
            );
        }
        text
    }
}

/// Bytes in a second; `None` where there was too little of either to say.
fn speed(bytes: u64, time: Duration) -> Option<String> {
    let milliseconds = u64::try_from(time.as_millis()).ok()?;
    let speed = bytes.saturating_mul(1000).checked_div(milliseconds)?;
    (speed > 0).then(|| format!("{}/s", format_size(speed)))
}

fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

fn short(digest: &Digest) -> String {
    digest.hex().chars().take(DIGITS).collect()
}

const LAYER: &str = "{prefix} [{bar:30}] {percent:>3}% of {size:<10} {speed:>12} {msg}";
const TOTAL: &str = "{msg:>12} [{bar:30}] {percent:>3}% of {size:<10} {speed:>12} {elapsed}";

fn style(template: &str) -> ProgressStyle {
    // What cannot be drawn is not drawn.
    let size = |state: &ProgressState, text: &mut dyn std::fmt::Write| {
        let _ = write!(text, "{}", format_size(state.len().unwrap_or(0)));
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a speed in whole bytes"
    )]
    let speed = |state: &ProgressState, text: &mut dyn std::fmt::Write| {
        let _ = write!(text, "{}/s", format_size(state.per_sec() as u64));
    };
    ProgressStyle::with_template(template)
        .expect("the templates are well-formed, a test holds them")
        .progress_chars("=> ")
        .with_key("size", size)
        .with_key("speed", speed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(digit: char) -> Digest {
        format!("sha256:{}", digit.to_string().repeat(64))
            .parse()
            .unwrap()
    }

    /// A pull of three layers, one of which is here: what happens, and after how many milliseconds.
    fn pull() -> Vec<(u64, Event)> {
        let layer = |digit, state| Event::Layer {
            digest: digest(digit),
            size: 30 << 20,
            state,
        };
        let mut events = vec![
            (
                10,
                Event::Resolved {
                    name: "docker.io/library/x:latest".to_owned(),
                    digest: digest('0'),
                    layers: 3,
                    bytes: 90 << 20,
                },
            ),
            (11, layer('1', LayerState::Exists)),
            (12, layer('2', LayerState::Started)),
            (13, layer('3', LayerState::Started)),
        ];
        for step in 1..=30 {
            events.push((step * 900, layer('2', LayerState::Advanced(step << 20))));
        }
        events.extend([
            (27_050, layer('2', LayerState::Unpacking)),
            (27_100, layer('3', LayerState::Advanced(1 << 20))),
            (27_200, layer('3', LayerState::Advanced(2 << 20))),
            (27_300, layer('2', LayerState::Done)),
            (28_000, layer('3', LayerState::Unpacking)),
            (28_100, layer('3', LayerState::Done)),
        ]);
        events
    }

    #[test]
    fn a_log_hears_of_the_beginning_of_each_layer_and_now_and_then() {
        let mut story = Story::new("x".to_owned());
        let mut text = String::new();
        for (at, event) in pull() {
            story.note(&event);
            if let Some(line) = story.line(&event, Duration::from_millis(at)) {
                let _ = writeln!(text, "{line}");
            }
        }
        text += &story.summary(200 << 20, Duration::from_millis(28_123));
        insta::assert_snapshot!(text);
    }

    #[test]
    fn programs_are_told_in_events_that_follow_their_schema() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/pull-events.schema.json"
        );
        let schema: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let mut story = Story::new("x".to_owned());
        let mut lines = Vec::new();
        for (at, event) in pull() {
            story.note(&event);
            if let Some(told) = story.tell(&event, Duration::from_millis(at)) {
                lines.push(serde_json::to_string(&told).unwrap());
            }
        }
        let digest = Some(digest('0').to_string());
        let end = Duration::from_millis(28_123);
        let error = Diagnostic::new(&crate::error::Error::NotATerminal);
        lines.push(serde_json::to_string(&story.done(digest, 200 << 20, end)).unwrap());
        lines.push(serde_json::to_string(&story.done(None, 0, end)).unwrap());
        lines.push(serde_json::to_string(&story.failed(&error)).unwrap());
        for line in &lines {
            let value = serde_json::from_str(line).unwrap();
            let errors: Vec<String> = validator
                .iter_errors(&value)
                .map(|error| error.to_string())
                .collect();
            assert!(errors.is_empty(), "{line}: {errors:?}");
        }
        // All of them but the middle ones of what advances.
        let shown: Vec<String> = lines
            .iter()
            .filter(|line| !line.contains("\"advanced\"") || line.contains(":1048576"))
            .cloned()
            .collect();
        insta::assert_snapshot!(shown.join("\n"));
    }

    #[test]
    fn bars_come_and_go() {
        let follower = Follower::new("x".to_owned(), Show::Nothing, Printer::new(true));
        let mut drawn = 0;
        for (_, event) in pull() {
            let mut seen = follower.seen.lock().unwrap();
            seen.story.note(&event);
            follower.draw(&mut seen, &event);
            drawn = drawn.max(seen.bars.len());
        }
        assert_eq!(drawn, 2);
        let seen = follower.seen.lock().unwrap();
        assert!(seen.bars.is_empty());
        let total = seen.total.as_ref().unwrap();
        assert_eq!(total.position(), 90 << 20);
        assert_eq!(total.message(), "3 of 3 layers");
    }

    #[test]
    fn a_summary_says_what_was_fetched_and_what_was_there() {
        let story = |fetched, bytes, existing| Story {
            fetched,
            fetched_bytes: bytes,
            existing,
            ..Story::new("x".to_owned())
        };
        let table = [
            (story(0, 0, 0), 1234, "x is here"),
            (story(0, 0, 5), 1234, "x is up to date (5 layers)"),
            (
                story(1, 1024, 0),
                1234,
                "Pulled x: 1 layer, 1 KiB in 1.2s, 829 B/s; 7 MiB unpacked",
            ),
            (
                story(2, 3 << 20, 3),
                2000,
                "Pulled x: 2 layers, 3 MiB in 2s, 1.5 MiB/s; 7 MiB unpacked, 3 layers were here already",
            ),
            (
                story(2, 3 << 20, 1),
                20,
                "Pulled x: 2 layers, 3 MiB; 7 MiB unpacked, 1 layer was here already",
            ),
        ];
        for (story, milliseconds, expected) in table {
            let summary = story.summary(7 << 20, Duration::from_millis(milliseconds));
            assert_eq!(summary, expected);
        }
    }
}
