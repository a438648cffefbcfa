//! `sbxrt-bench pull`: how long it takes to get an image, and how much memory.
//!
//! The plan is that of the other benchmark. Besides the time there are the processor time and the peak memory of the
//! largest process, so each command is started by a small process of its own (`sbxrt-bench measure COMMAND…`), whose
//! only children are those that it is to be asked about.

use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use flate2::bufread::MultiGzDecoder;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use sbxrt_tests::pause;
use sha2::{Digest as _, Sha256};

use super::{Case, command, in_turn, paired_ratio, prepare, quantile};

/// What one run took.
#[derive(Clone, Copy)]
struct Run {
    seconds: f64,
    processor_seconds: f64,
    peak_mib: f64,
}

const FAILED: Run = Run {
    seconds: f64::NAN,
    processor_seconds: f64::NAN,
    peak_mib: f64::NAN,
};

/// Runs a command and prints what it took.
pub(super) fn measure(words: &[String]) -> Result<(), String> {
    let start = Instant::now();
    let status = command(words)
        .stderr(Stdio::inherit())
        .status()
        .map_err(|error| error.to_string())?;
    let elapsed = start.elapsed();
    if !status.success() {
        return Err(status.to_string());
    }
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).map_err(|error| error.to_string())?;
    let processor = usage.user_time() + usage.system_time();
    println!(
        "{} {} {}",
        elapsed.as_micros(),
        processor.num_microseconds(),
        usage.max_rss()
    );
    Ok(())
}

/// Decompresses a file and forgets what comes out.
pub(super) fn inflate(file: &str) -> Result<(), String> {
    let work = || -> io::Result<()> {
        let reader = BufReader::with_capacity(256 << 10, File::open(file)?);
        let mut decoder = MultiGzDecoder::new(reader);
        let mut buffer = vec![0; 256 << 10];
        while decoder.read(&mut buffer)? > 0 {}
        Ok(())
    };
    work().map_err(|error| format!("{file}: {error}"))
}

/// Hashes a file and prints its digest.
pub(super) fn hash(file: &str) -> Result<(), String> {
    let work = || -> io::Result<Sha256> {
        let mut reader = File::open(file)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(hasher),
                count => hasher.update(&buffer[..count]),
            }
        }
    };
    let hasher = work().map_err(|error| format!("{file}: {error}"))?;
    println!("{:x?} {file}", &hasher.finalize()[..]);
    Ok(())
}

/// Measures the groups of a plan, one after the other; within one, in rounds.
pub(super) fn run(
    groups: Vec<(String, Vec<Case>)>,
    runs: usize,
    rest: Duration,
) -> Result<(), String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let own = own.to_string_lossy().into_owned();
    let mut serial = 0;
    for (group, mut cases) in groups {
        let mut attempt = |case: &Case| {
            serial += 1;
            attempt(&own, &numbered(case, serial), rest)
        };
        // Once without counting: caches fill, and what does not work here is left out and said.
        cases.retain(|case| match attempt(case) {
            Ok(_) => true,
            Err(error) => {
                eprintln!("left out: {group}: {}: {}", case.name, error.trim());
                false
            }
        });
        let mut results = vec![Vec::new(); cases.len()];
        for round in 0..runs {
            for index in in_turn(round, cases.len()) {
                let result = attempt(&cases[index]);
                results[index].push(result.unwrap_or_else(|error| {
                    eprintln!(
                        "{group}: {} failed while it was measured: {error}",
                        cases[index].name
                    );
                    FAILED
                }));
            }
        }
        print_table(&group, &cases, &results);
    }
    Ok(())
}

/// Gives each run a place of its own: `%RUN%` in its words becomes a number.
fn numbered(case: &Case, serial: u32) -> Case {
    let number = |words: &[String]| {
        let replaced = |word: &String| word.replace("%RUN%", &serial.to_string());
        words.iter().map(replaced).collect()
    };
    Case {
        group: case.group.clone(),
        name: case.name.clone(),
        command: number(&case.command),
        before: number(&case.before),
    }
}

fn attempt(own: &str, case: &Case, rest: Duration) -> Result<Run, String> {
    prepare(case);
    pause(rest);
    let mut words = vec![own.to_owned(), "measure".to_owned()];
    words.extend_from_slice(&case.command);
    let output = command(&words)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .map_err(|error: io::Error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = text
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    match (output.status.success(), numbers.as_slice()) {
        (true, &[micros, processor_micros, peak_kib]) => Ok(Run {
            seconds: micros / 1e6,
            processor_seconds: processor_micros / 1e6,
            peak_mib: peak_kib / 1024.0,
        }),
        _ => Err(format!(
            "{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

/// One line for each case: its own numbers, then sbxrt's time as a share of its time.
fn print_table(group: &str, cases: &[Case], results: &[Vec<Run>]) {
    let seconds = |index: usize| -> Vec<f64> {
        let of: &Vec<Run> = &results[index];
        of.iter().map(|run| run.seconds).collect()
    };
    let ours = cases.iter().position(|case| case.name == "sbxrt");
    println!("\n{group}");
    println!(
        "  {:<22} {:>9} {:>9} {:>9} {:>11} {:>10} {:>13}",
        "", "median s", "least s", "most s", "processor s", "peak MiB", "sbxrt / this"
    );
    for (index, case) in cases.iter().enumerate() {
        let times = seconds(index);
        let middle = |of: fn(&Run) -> f64| {
            let values: Vec<f64> = results[index].iter().map(of).collect();
            quantile(&values, 0.5)
        };
        let peak = results[index]
            .iter()
            .map(|run| run.peak_mib)
            .fold(f64::NAN, f64::max);
        let ratio = ours.map_or_else(
            || "-".to_owned(),
            |ours| format!("{:.2}", paired_ratio(&seconds(ours), &times)),
        );
        println!(
            "  {:<22} {:>9.2} {:>9.2} {:>9.2} {:>11.2} {:>10.0} {:>13}",
            case.name,
            quantile(&times, 0.5),
            quantile(&times, 0.0),
            quantile(&times, 1.0),
            middle(|run| run.processor_seconds),
            peak,
            ratio,
        );
    }
}
