//! What became of all items together, in numbers that take the same room for ten as for a million.

use std::collections::BTreeMap;
use std::time::Duration;

use sbxrt::Termination;
use serde::Serialize;

use crate::quantity::{count, format_duration};

/// The version of the document: fields may be added within one.
const VERSION: u32 = 1;

/// The name of an end, as `termination.kind` has it.
pub(crate) fn kind(termination: &Termination) -> &'static str {
    match termination {
        Termination::Exited { .. } => "exited",
        Termination::Signaled { .. } => "signaled",
        Termination::Timeout => "timeout",
        Termination::Oom => "oom",
        Termination::Pids => "pids",
        Termination::Output => "output",
        Termination::Disk => "disk",
        Termination::Seccomp { .. } => "seccomp",
        Termination::Cancelled => "cancelled",
        Termination::StartFailed { .. } => "start_failed",
        _ => "other",
    }
}

/// What counts of one result.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) kind: &'static str,
    /// Whether it exited with 0.
    pub(crate) succeeded: bool,
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
}

/// The counts so far.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    succeeded: u64,
    kinds: BTreeMap<&'static str, u64>,
    results: u64,
    errors: u64,
    skipped: u64,
    wall: Durations,
    cpu: Durations,
}

impl Summary {
    pub(crate) fn result(&mut self, tally: &Tally) {
        self.results += 1;
        self.succeeded += u64::from(tally.succeeded);
        *self.kinds.entry(tally.kind).or_default() += 1;
        self.wall.add(tally.wall);
        self.cpu.add(tally.cpu);
    }

    /// An item that sbxrt could not run.
    pub(crate) fn error(&mut self) {
        self.errors += 1;
    }

    /// An item that had a result before.
    pub(crate) fn skip(&mut self) {
        self.skipped += 1;
    }

    pub(crate) fn errors(&self) -> u64 {
        self.errors
    }

    /// How many items were run, or tried.
    pub(crate) fn run(&self) -> u64 {
        self.results + self.errors
    }

    /// While it goes on: how many there were, how fast they are and how many failed.
    pub(crate) fn progress(&self, elapsed: Duration, left: Option<Duration>) -> String {
        let mut parts = vec![
            count(number(self.run() + self.skipped), "item"),
            format!("{}/s", rate(self.run(), elapsed)),
        ];
        let failed = self.results - self.succeeded;
        if failed > 0 {
            parts.push(format!("{failed} failed"));
        }
        if self.errors > 0 {
            parts.push(count(number(self.errors), "error"));
        }
        if let Some(left) = left {
            let left = Duration::from_secs(left.as_secs().max(1));
            parts.push(format!("{} left", format_duration(left)));
        }
        parts.join(", ")
    }

    /// The same for people when it is over, one sentence a line.
    pub(crate) fn lines(&self, elapsed: Duration) -> Vec<String> {
        let mut lines = vec![format!(
            "{} in {}, {}/s",
            count(number(self.run()), "item"),
            format_duration(elapsed),
            rate(self.run(), elapsed)
        )];
        let mut ends = Vec::new();
        if self.succeeded > 0 {
            ends.push(format!("{} succeeded", self.succeeded));
        }
        for (kind, count) in &self.kinds {
            let others = match *kind {
                "exited" => count - self.succeeded,
                _ => *count,
            };
            match *kind {
                _ if others == 0 => {}
                "exited" => ends.push(format!("{others} exited with another status than 0")),
                kind => ends.push(format!("{others} {kind}")),
            }
        }
        if !ends.is_empty() {
            lines.push(ends.join(", "));
        }
        if self.errors > 0 {
            let errors = count(number(self.errors), "item");
            lines.push(format!("{errors} could not be run; their lines say why"));
        }
        if self.skipped > 0 {
            let skipped = count(number(self.skipped), "item");
            lines.push(format!("{skipped} had a result already"));
        }
        if self.results > 0 {
            let of = |name: &str, times: &Durations| {
                let [half, most, nearly_all] =
                    [50, 95, 99].map(|percent| format_duration(times.percentile(percent)));
                format!("{name} p50 {half}, p95 {most}, p99 {nearly_all}")
            };
            lines.push(format!(
                "{}; {}",
                of("wall", &self.wall),
                of("CPU", &self.cpu)
            ));
        }
        lines
    }

    /// The same for programs.
    pub(crate) fn document(&self, elapsed: Duration, jobs: usize, complete: bool) -> Document<'_> {
        Document {
            version: VERSION,
            complete,
            results: self.results,
            succeeded: self.succeeded,
            errors: self.errors,
            skipped: self.skipped,
            kinds: &self.kinds,
            wall_ms: Percentiles::new(&self.wall),
            cpu_ms: Percentiles::new(&self.cpu),
            jobs,
            elapsed_ms: milliseconds(elapsed),
            per_second: per_second(self.run(), elapsed),
        }
    }
}

/// The document of `--summary`.
#[derive(Debug, Serialize)]
pub(crate) struct Document<'a> {
    version: u32,
    complete: bool,
    results: u64,
    succeeded: u64,
    errors: u64,
    skipped: u64,
    kinds: &'a BTreeMap<&'static str, u64>,
    wall_ms: Percentiles,
    cpu_ms: Percentiles,
    jobs: usize,
    elapsed_ms: f64,
    per_second: f64,
}

#[derive(Debug, Serialize)]
struct Percentiles {
    p50: f64,
    p95: f64,
    p99: f64,
}

impl Percentiles {
    fn new(times: &Durations) -> Self {
        let [p50, p95, p99] = [50, 95, 99].map(|it| milliseconds(times.percentile(it)));
        Self { p50, p95, p99 }
    }
}

fn number(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn per_second(number: u64, elapsed: Duration) -> f64 {
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    f64::from(number) / elapsed.as_secs_f64().max(1e-6)
}

/// Items per second, with a decimal where there are few.
fn rate(number: u64, elapsed: Duration) -> String {
    let rate = per_second(number, elapsed);
    if rate < 10.0 {
        format!("{rate:.1}")
    } else {
        format!("{rate:.0}")
    }
}

/// Counts durations by their first five binary digits, so that a percentile is at most 1/32 too large.
#[derive(Debug)]
struct Durations {
    counts: Box<[u64; Self::BUCKETS]>,
    total: u64,
}

impl Default for Durations {
    fn default() -> Self {
        Self {
            counts: Box::new([0; Self::BUCKETS]),
            total: 0,
        }
    }
}

impl Durations {
    const DIGITS: u32 = 5;
    const BUCKETS: usize = (64 - Self::DIGITS as usize + 1) << Self::DIGITS;

    fn add(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.counts[Self::bucket(micros)] += 1;
        self.total += 1;
    }

    fn bucket(value: u64) -> usize {
        let shift = (64 - value.leading_zeros()).saturating_sub(Self::DIGITS + 1);
        // The mantissa has its first digit set wherever there is a shift.
        (usize::try_from(shift).unwrap_or(0) << Self::DIGITS)
            + usize::try_from(value >> shift).unwrap_or(0)
    }

    /// The largest value that is counted in `bucket`.
    fn end(bucket: usize) -> u64 {
        let digits = 1 << Self::DIGITS;
        let shift = (bucket >> Self::DIGITS).saturating_sub(1);
        let mantissa = bucket - (shift << Self::DIGITS);
        debug_assert!(mantissa < 2 * digits, "the digits of a bucket");
        let end = (mantissa as u128 + 1) << shift;
        u64::try_from(end - 1).unwrap_or(u64::MAX)
    }

    /// What `percent` of all durations do not exceed.
    fn percentile(&self, percent: u64) -> Duration {
        let wanted = (self.total * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_micros(Self::end(bucket));
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_bucket_that_ends_a_little_above_it() {
        let mut values: Vec<u64> = (0..200).collect();
        values.extend((6..63).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + 12_345]));
        values.push(u64::MAX);
        for value in values {
            let bucket = Durations::bucket(value);
            assert!(bucket < Durations::BUCKETS, "{value}");
            let end = Durations::end(bucket);
            assert!(
                end >= value && end - value <= value / 32,
                "{value} {bucket} {end}"
            );
            assert_eq!(Durations::bucket(end), bucket, "{value}");
        }
    }

    #[test]
    fn percentiles_are_those_of_the_list() {
        let mut durations = Durations::default();
        assert_eq!(durations.percentile(50), Duration::ZERO);
        for millisecond in 1..=1000 {
            durations.add(Duration::from_millis(millisecond));
        }
        for (percent, expected) in [(50, 500), (95, 950), (99, 990), (100, 1000)] {
            let found = durations.percentile(percent).as_micros();
            let expected = expected * 1000;
            assert!(
                (expected..=expected + expected / 32).contains(&found),
                "{percent} {found}"
            );
        }
    }

    #[test]
    fn a_summary_counts_ends() {
        let mut summary = Summary::default();
        for (kind, succeeded) in [
            ("exited", true),
            ("exited", true),
            ("exited", false),
            ("oom", false),
        ] {
            summary.result(&Tally {
                kind,
                succeeded,
                wall: Duration::from_millis(20),
                cpu: Duration::from_millis(10),
            });
        }
        summary.error();
        summary.skip();
        assert_eq!(
            summary.lines(Duration::from_secs(2)),
            [
                "5 items in 2s, 2.5/s",
                "2 succeeded, 1 exited with another status than 0, 1 oom",
                "1 item could not be run; their lines say why",
                "1 item had a result already",
                "wall p50 20ms, p95 20ms, p99 20ms; CPU p50 10ms, p95 10ms, p99 10ms",
            ]
        );
        assert_eq!(
            summary.progress(Duration::from_secs(1), Some(Duration::from_millis(90_500))),
            "6 items, 5.0/s, 2 failed, 1 error, 1m30s left"
        );
        let document =
            serde_json::to_value(summary.document(Duration::from_secs(2), 3, true)).unwrap();
        assert_eq!(
            document["kinds"],
            serde_json::json!({"exited": 3, "oom": 1})
        );
        assert_eq!(document["errors"], 1);
        assert_eq!(document["per_second"], 2.5);
        let p50 = document["wall_ms"]["p50"].as_f64().unwrap();
        assert!((20.0..20.7).contains(&p50), "{p50}");
    }
}
