//! The last check: a run, from the launcher to the report, of a program that does nothing.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::time::Duration;

use super::advice::{self, Advice, Settings};
use super::attempt::failed;
use super::{Check, Status};
use crate::error::Error;
use crate::report::{Report, Termination};
use crate::request::{LimitName, Limits, Mechanism, Network, Process, Request, Root};
use crate::supervisor::{Launcher, Progress};

const NAME: &str = "run";

/// Runs `true` in the host's own `/usr`. Tells what held each limit, where there was a run.
pub(super) fn run(settings: &Settings) -> (Check, Option<BTreeMap<LimitName, Mechanism>>) {
    match execute() {
        Ok(report) => (judge(&report), Some(report.enforcement)),
        Err(error) => {
            let mut detail = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                let text = match cause
                    .downcast_ref::<std::io::Error>()
                    .and_then(std::io::Error::raw_os_error)
                {
                    Some(errno) => failed("", std::io::Error::from_raw_os_error(errno)).reason,
                    None => cause.to_string(),
                };
                detail = format!("{detail}: {text}");
                source = cause.source();
            }
            let check = Check::not_ok(NAME, Status::Failed, detail, explain(&error, settings));
            (check, None)
        }
    }
}

fn execute() -> Result<Report, Error> {
    let request = Request {
        id: format!("check-{}", std::process::id()),
        root: Root::Host,
        read_only: false,
        upper: None,
        emulate_root: false,
        seccomp: crate::seccomp::Policy::Default,
        mounts: Vec::new(),
        process: Process {
            args: vec!["true".to_owned()],
            env: Vec::new(),
            cwd: "/".into(),
            user: String::new(),
            terminal: None,
            rlimits: Vec::new(),
        },
        hostname: "check".to_owned(),
        network: Network::None,
        limits: Limits {
            wall_time: Some(Duration::from_secs(10)),
            ..Limits::default()
        },
        files: Vec::new(),
        outputs: crate::Outputs::default(),
        require: BTreeMap::new(),
    };
    let launcher = Launcher::spawn()?;
    let run = launcher.run(&request, None)?;
    loop {
        if let Progress::Finished(report) = run.next()? {
            return Ok(*report);
        }
    }
}

fn judge(report: &Report) -> Check {
    let took = report.timings.prepare + report.timings.create + report.timings.start;
    let took = format!(
        "{}.{} ms to start",
        took.as_millis(),
        took.subsec_micros() % 1000 / 100
    );
    match &report.termination {
        Termination::Exited { code: 0 } => Check::ok(
            NAME,
            format!("`true` ran in a sandbox of this host's /usr; {took}"),
        ),
        // The sandbox was complete; what is missing is the host's program.
        Termination::StartFailed {
            errno: libc::ENOENT,
            reason,
        } => Check::ok(
            NAME,
            format!("a sandbox of this host's /usr was made ({reason}); {took}"),
        ),
        other => Check::not_ok(
            NAME,
            Status::Failed,
            format!("`true` did not end well: {other:?}"),
            Advice::without_fix(
                "every part could be made, but not the whole: this is worth a bug report",
            ),
        ),
    }
}

fn explain(error: &Error, settings: &Settings) -> Advice {
    match error {
        Error::NotInitialized => {
            Advice::without_fix("the program that embeds sbxrt must call sbxrt::init() first")
        }
        Error::Launcher { step, source } if step.starts_with("clone(") => {
            let errno = source.raw_os_error().unwrap_or(libc::EIO);
            let failure = failed(step.as_str(), std::io::Error::from_raw_os_error(errno));
            advice::user_namespace(&failure, settings)
        }
        _ => Advice::without_fix(
            "see the checks above that failed; if none did, this is worth a bug report",
        ),
    }
}
