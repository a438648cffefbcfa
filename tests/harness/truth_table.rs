//! `docs/limits.md`: what becomes of each [`Bomb`], by the means that this machine has of holding limits.

use std::fmt;
use std::fs;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use crate::need::skip;
use crate::{Bomb, Fixtures, Report, Sbxrt};

const DOCUMENT: &str = include_str!("../../docs/limits.md");

/// What became of every bomb under one user.
#[derive(Debug)]
pub struct TruthTable {
    rung: String,
    rows: Vec<Row>,
}

impl TruthTable {
    /// Sets the bombs off that are wanted, as many at once as there are processors.
    pub fn measure(sbxrt: &Sbxrt, fixtures: &Fixtures, is_wanted: impl Fn(&Bomb) -> bool) -> Self {
        let plain = sbxrt.report([&*fixtures.busybox_rootfs(), "true"]);
        let rung = format!(
            "Memory by `{}`, processes by `{}`",
            plain.enforcement("memory"),
            plain.enforcement("pids")
        );
        let bombs: Vec<Bomb> = Bomb::all().filter(is_wanted).collect();
        let next = Mutex::new(0..bombs.len());
        let rows = Mutex::new(vec![None; bombs.len()]);
        thread::scope(|scope| {
            for _ in 0..thread::available_parallelism().unwrap().get().min(4) {
                scope.spawn(|| {
                    loop {
                        let Some(index) = next.lock().unwrap().next() else {
                            break;
                        };
                        let report = bombs[index].set_off(sbxrt, fixtures);
                        let row = Row::new(&bombs[index], &report);
                        rows.lock().unwrap()[index] = Some(row);
                    }
                });
            }
        });
        let rows = rows.into_inner().unwrap().into_iter().flatten().collect();
        Self { rung, rows }
    }

    /// Compares it with the document: how each bomb ended and by which mechanism, and where no limit may be exceeded,
    /// that none was. By how much a watchdog was late is told and not compared.
    ///
    /// With `SBXRT_TEST_LIMITS=DIRECTORY` it is written there instead, for `scripts/limits`.
    ///
    /// # Panics
    ///
    /// Where they differ.
    pub fn compare(&self) {
        if let Some(directory) = std::env::var_os("SBXRT_TEST_LIMITS") {
            let path = std::path::Path::new(&directory).join(self.rung.replace(['`', ' '], ""));
            // Another user, or the virtual machine, may have the same rung.
            if !path.exists() {
                fs::write(&path, self.to_string())
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            }
            return;
        }
        let heading = format!("### {}\n", self.rung);
        let Some((_, rest)) = DOCUMENT.split_once(&heading) else {
            skip(
                "limits",
                &format!("docs/limits.md has no table for: {}", self.rung),
            );
            return;
        };
        let documented = rest.split("\n#").next().unwrap();
        let mut differing = Vec::new();
        for row in &self.rows {
            let line = documented
                .lines()
                .find(|line| line.starts_with(&format!("| {} |", row.bomb)));
            if !line.is_some_and(|line| row.agrees_with(line)) {
                differing.push(format!(
                    "is         {row}\ndocumented {}",
                    line.unwrap_or("not")
                ));
            }
        }
        assert!(
            differing.is_empty(),
            "{}: hint: if this is meant, run scripts/limits\n{}",
            self.rung,
            differing.join("\n")
        );
    }
}

impl fmt::Display for TruthTable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "### {}\n", self.rung)?;
        writeln!(
            formatter,
            "| what is used up | options | ends as | held by | beyond the limit | after |\n|---|---|---|---|---|---|"
        )?;
        self.rows
            .iter()
            .try_for_each(|row| writeln!(formatter, "{row}"))
    }
}

/// What became of one bomb.
#[derive(Debug, Clone)]
struct Row {
    bomb: &'static str,
    options: &'static str,
    end: String,
    mechanism: String,
    excess: Excess,
    wall_time: Duration,
}

impl Row {
    fn new(bomb: &Bomb, report: &Report) -> Self {
        let mut end = vec![format!("`{}`", report.kind())];
        end.extend(report.code().map(|code| format!(" {code}")));
        end.extend(report.signal().map(|signal| format!(" {signal}")));
        if report.kind() == "exited" && !report.limits_hit().is_empty() {
            end.push(format!(", has hit `{}`", report.limits_hit().join("`, `")));
        }
        for stream in ["stdout", "stderr"] {
            // What the program was told, if it was told anything.
            let said = report.bytes(stream);
            let said = String::from_utf8_lossy(&said);
            let said = said.trim();
            if !said.is_empty() && said.len() < 60 && report.kind() == "exited" {
                end.push(format!(", {said:?}"));
            }
        }
        Self {
            bomb: bomb.name,
            options: bomb.options,
            end: end.concat(),
            mechanism: report.enforcement(bomb.limit).to_owned(),
            excess: Excess::new(bomb.limit, report),
            wall_time: report.wall_time(),
        }
    }

    /// Whether a line of the document says the same.
    fn agrees_with(&self, line: &str) -> bool {
        let own = self.to_string();
        let [own, documented] = [&*own, line].map(|line| line.split(" | ").collect::<Vec<_>>());
        own[..4] == documented[..4] && (documented[4] != "none" || own[4] == "none")
    }
}

impl fmt::Display for Row {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            bomb,
            options,
            end,
            mechanism,
            excess,
            wall_time,
        } = self;
        let options = if options.is_empty() {
            String::new()
        } else {
            format!("`{options}`")
        };
        let after = below(wall_time.as_secs_f64(), &[1.0, 5.0, 20.0], "s");
        write!(
            formatter,
            "| {bomb} | {options} | {end} | `{mechanism}` | {excess} | {after} |"
        )
    }
}

/// By how much a limit was exceeded.
#[derive(Debug, Clone, Copy)]
enum Excess {
    /// Bytes of memory.
    Memory(u64),
    Processes(u64),
    /// Processors.
    Cpus(f64),
    Time(Duration),
    /// Of what the kernel or a buffer holds, which cannot be exceeded.
    Nothing,
}

impl Excess {
    fn new(limit: &str, report: &Report) -> Self {
        let value = report.limit(limit).unwrap_or(f64::INFINITY);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "limits of bombs are small whole numbers"
        )]
        let whole = value as u64;
        match limit {
            "memory" => Self::Memory(report.memory_peak().saturating_sub(whole)),
            "pids" => Self::Processes(report.pids_peak().saturating_sub(whole)),
            "cpus" => {
                let used = report.cpu_time().as_secs_f64() / report.wall_time().as_secs_f64();
                Self::Cpus(used - value)
            }
            "wall_time_ms" => Self::Time(
                report
                    .wall_time()
                    .saturating_sub(Duration::from_millis(whole)),
            ),
            _ => Self::Nothing,
        }
    }
}

impl fmt::Display for Excess {
    #[expect(clippy::cast_precision_loss, reason = "only its size matters")]
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&match *self {
            Self::Memory(0) | Self::Processes(0) | Self::Nothing => "none".to_owned(),
            Self::Memory(bytes) => below(bytes as f64 / f64::from(1 << 20), &[16.0, 64.0], "MiB"),
            Self::Processes(number) => below(number as f64, &[100.0, 1000.0], "processes"),
            Self::Cpus(cpus) => below(cpus, &[0.1, 0.5], "processors"),
            Self::Time(time) => below(time.as_secs_f64(), &[0.1, 1.0], "s"),
        })
    }
}

/// The first of some bounds that a number is below: coarse, so that every machine comes to the same.
fn below(number: f64, bounds: &[f64], unit: &str) -> String {
    match bounds.iter().find(|&&bound| number < bound) {
        Some(bound) => format!("< {bound} {unit}"),
        None => format!("≥ {} {unit}", bounds[bounds.len() - 1]),
    }
}
