//! The timing half of `scripts/bench`: runs commands in turn and prints how long they took.
//!
//! ```text
//! sbxrt-bench [--runs N] [--gap MILLISECONDS] [--baseline NAME] < PLAN
//! sbxrt-bench pull [--runs N] [--gap MILLISECONDS] < PLAN
//! sbxrt-bench inflate|hash FILE...
//! sbxrt-bench many|flood|endure|timeouts|pool ROOTFS RUNS [LAUNCHERS [AT-ONCE]]
//! ```
//!
//! A line of the plan is one command: `{"group": "/bin/true", "name": "crun", "command": ["crun", "run", …],
//! "before": ["rm", "-rf", …]}`. `before` is run first and not timed. The commands of a group are compared with each
//! other: each round runs all of them once, so that a drift of the machine meets all of them, and ratios are taken
//! within a round. A first pass goes back to back (hot), a second one rests before each command (idle), which shows
//! what waits for the kernel's grace periods; `--gap 0` leaves it out. Time is from before the fork to after the wait.
//! `pull` measures memory too and rests before every run: see [`pull`]. `inflate` and `hash` do that and nothing else to
//! files, with the code that sbxrt uses: they show what no pull can be faster than. The last five use the crate: see
//! [`crowd`] and [`pooled`].

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a table is the output of this program"
)]

mod census;
mod crowd;
mod pooled;
mod pull;

use std::collections::BTreeMap;
use std::io;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use sbxrt_tests::pause;
use serde_json::Value;

fn main() -> ExitCode {
    sbxrt::init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    runs: usize,
    gap: Duration,
    baseline: String,
}

struct Case {
    group: String,
    name: String,
    command: Vec<String>,
    before: Vec<String>,
}

/// What was measured of one case, in order of rounds.
#[derive(Default)]
struct Times {
    hot: Vec<f64>,
    idle: Vec<f64>,
}

fn run() -> Result<(), String> {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if_eq("measure").is_some() {
        return pull::measure(&arguments.collect::<Vec<_>>());
    }
    if arguments.next_if_eq("inflate").is_some() {
        return arguments.try_for_each(|file| pull::inflate(&file));
    }
    if arguments.next_if_eq("hash").is_some() {
        return arguments.try_for_each(|file| pull::hash(&file));
    }
    if let Some(name) = arguments
        .next_if(|name| ["many", "flood", "endure", "timeouts", "pool"].contains(&name.as_str()))
    {
        return crowd::run(&name, &arguments.collect::<Vec<_>>());
    }
    let pulls = arguments.next_if_eq("pull").is_some();
    let options = options(arguments)?;
    let mut groups: Vec<(String, Vec<Case>)> = Vec::new();
    for line in io::stdin().lines() {
        let case = case(&line.map_err(|error| error.to_string())?)?;
        match groups.iter_mut().find(|(group, _)| *group == case.group) {
            Some((_, cases)) => cases.push(case),
            None => groups.push((case.group.clone(), vec![case])),
        }
    }
    if pulls {
        return pull::run(groups, options.runs, options.gap);
    }
    for (group, cases) in groups {
        let cases = warm_up(cases);
        let times = measure(&cases, &options);
        print_table(&group, &cases, &times, &options);
    }
    Ok(())
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        runs: 40,
        gap: Duration::from_millis(100),
        baseline: "bubblewrap".to_owned(),
    };
    while let Some(option) = arguments.next() {
        let value = arguments
            .next()
            .ok_or_else(|| format!("{option} needs a value"))?;
        let number = || {
            let number = value.parse::<u32>();
            number.map_err(|error| format!("{option} {value}: {error}"))
        };
        match option.as_str() {
            "--runs" => options.runs = number()?.max(1) as usize,
            "--gap" => options.gap = Duration::from_millis(number()?.into()),
            "--baseline" => options.baseline = value,
            _ => return Err(format!("unknown option {option}")),
        }
    }
    Ok(options)
}

fn case(line: &str) -> Result<Case, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| format!("{error} in {line}"))?;
    let text = |name: &str| {
        value[name]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| format!("no {name} in {line}"))
    };
    let words = |name: &str| {
        let words = value[name].as_array().into_iter().flatten();
        words
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let case = Case {
        group: text("group")?,
        name: text("name")?,
        command: words("command"),
        before: words("before"),
    };
    if case.command.is_empty() {
        return Err(format!("no command in {line}"));
    }
    Ok(case)
}

/// Runs each case twice, and drops those that fail.
fn warm_up(cases: Vec<Case>) -> Vec<Case> {
    cases
        .into_iter()
        .filter(|case| {
            let failure = (0..2).find_map(|_| {
                prepare(case);
                match command(&case.command).stderr(Stdio::piped()).output() {
                    Ok(output) if output.status.success() => None,
                    Ok(output) => Some(format!(
                        "{}\n{}",
                        output.status,
                        String::from_utf8_lossy(&output.stderr)
                    )),
                    Err(error) => Some(error.to_string()),
                }
            });
            if let Some(failure) = &failure {
                eprintln!("left out: {} {}: {}", case.group, case.name, failure.trim());
            }
            failure.is_none()
        })
        .collect()
}

fn measure(cases: &[Case], options: &Options) -> Vec<Times> {
    let mut times: Vec<Times> = cases.iter().map(|_| Times::default()).collect();
    for round in 0..options.runs {
        for index in in_turn(round, cases.len()) {
            times[index].hot.push(time(&cases[index]));
        }
    }
    let idle_runs = if options.gap.is_zero() {
        0
    } else {
        options.runs
    };
    for round in 0..idle_runs {
        for index in in_turn(round, cases.len()) {
            prepare(&cases[index]);
            pause(options.gap);
            times[index].idle.push(timed(&cases[index]));
        }
    }
    times
}

/// Who goes first changes, so that nobody always follows the same neighbour's clean-up.
fn in_turn(round: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |index| {
        let forward = (index + round) % count;
        if round.is_multiple_of(2) {
            forward
        } else {
            count - 1 - forward
        }
    })
}

fn time(case: &Case) -> f64 {
    prepare(case);
    timed(case)
}

fn timed(case: &Case) -> f64 {
    let mut command = command(&case.command);
    let start = Instant::now();
    // Without a working directory or other identity to take on, this is posix_spawn, which is vfork.
    let status = command.status();
    let elapsed = start.elapsed();
    match status {
        Ok(status) if status.success() => elapsed.as_secs_f64() * 1000.0,
        other => {
            eprintln!(
                "{} {} failed while it was measured: {other:?}",
                case.group, case.name
            );
            f64::NAN
        }
    }
}

fn prepare(case: &Case) {
    if !case.before.is_empty()
        && !command(&case.before)
            .status()
            .is_ok_and(|status| status.success())
    {
        eprintln!("{} {}: {:?} failed", case.group, case.name, case.before);
    }
}

fn command(words: &[String]) -> Command {
    let mut command = Command::new(&words[0]);
    command
        .args(&words[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn print_table(group: &str, cases: &[Case], times: &[Times], options: &Options) {
    let baseline = cases.iter().position(|case| case.name == options.baseline);
    println!(
        "\n{group}: milliseconds, {} rounds hot and {} with {} ms of rest",
        options.runs,
        options.runs,
        options.gap.as_millis()
    );
    let versus = format!("/ {}", options.baseline);
    println!(
        "  {:<16} {:>8} {:>8} {versus:>13}   {:>8} {:>8} {versus:>13}   {:>8}",
        "", "hot p50", "p95", "idle p50", "p95", "idle/hot"
    );
    for (case, time) in cases.iter().zip(times) {
        let ratio = |of: fn(&Times) -> &Vec<f64>| {
            baseline.map_or_else(
                || "-".to_owned(),
                |index| format!("{:.2}", paired_ratio(of(time), of(&times[index]))),
            )
        };
        println!(
            "  {:<16} {:>8.2} {:>8.2} {:>13}   {:>8.2} {:>8.2} {:>13}   {:>8.2}",
            case.name,
            quantile(&time.hot, 0.5),
            quantile(&time.hot, 0.95),
            ratio(|times| &times.hot),
            quantile(&time.idle, 0.5),
            quantile(&time.idle, 0.95),
            ratio(|times| &times.idle),
            quantile(&time.idle, 0.5) / quantile(&time.hot, 0.5),
        );
    }
    let failed: BTreeMap<&str, usize> = cases
        .iter()
        .zip(times)
        .map(|(case, time)| {
            (
                case.name.as_str(),
                time.hot
                    .iter()
                    .chain(&time.idle)
                    .filter(|t| t.is_nan())
                    .count(),
            )
        })
        .filter(|(_, count)| *count > 0)
        .collect();
    if !failed.is_empty() {
        println!("  failed runs, not counted: {failed:?}");
    }
}

/// The median of the ratios within each round.
fn paired_ratio(of: &[f64], to: &[f64]) -> f64 {
    let ratios: Vec<f64> = of.iter().zip(to).map(|(of, to)| of / to).collect();
    quantile(&ratios, 0.5)
}

/// The nearest-rank quantile of what is a number.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a rank among a few hundred values"
)]
fn quantile(values: &[f64], quantile: f64) -> f64 {
    let mut values: Vec<f64> = values
        .iter()
        .copied()
        .filter(|value| !value.is_nan())
        .collect();
    values.sort_by(f64::total_cmp);
    let rank = (quantile * values.len() as f64).ceil() as usize;
    values
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or(f64::NAN)
}
