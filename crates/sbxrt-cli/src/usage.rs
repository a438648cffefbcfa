//! What is said where the arguments cannot be understood.
//!
//! Mostly clap's own words. Two cases want more: a flag of Docker's that sbxrt has no use for, where clap would offer
//! whatever flag is spelt alike, and `run --json`, whose reader expects a document however the run ends.

use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::diagnostics::Diagnostic;
use crate::printer::Printer;
use crate::result::Failed;
use crate::status;

/// What was asked for cannot be understood.
const USAGE: u8 = 2;

/// Flags of `docker run` that sbxrt does not have, and what to do instead.
const OF_DOCKER: &[(&[&str], &str)] = &[
    (
        &["-d", "--detach"],
        "a run lasts no longer than sbxrt; leave it out, and put `&` behind the command",
    ),
    (
        &["-p", "--publish", "-P", "--publish-all", "--expose"],
        "a sandbox has no network; `--network host` shows it this machine's, ports and all",
    ),
    (&["--net"], "write --network none or --network host"),
    (
        &["--privileged", "--cap-add"],
        "no program gets capabilities here; most things that ask for them do without",
    ),
    (
        &["--cap-drop"],
        "leave it out: all capabilities are always dropped",
    ),
    (
        &["--init"],
        "leave it out: a first process of sbxrt's own is always there",
    ),
    (
        &["--userns", "--cgroupns", "--ipc", "--pid", "--uts"],
        "leave it out: each sandbox has namespaces of its own",
    ),
    (
        &["--device", "--gpus"],
        "devices of this machine are not shown to programs",
    ),
    (
        &["--memory-swappiness", "--memory-reservation"],
        "leave it out: --memory and --memory-swap are the limits on memory",
    ),
    (
        &["--cpu-quota", "--cpu-period", "-c", "--cpu-shares"],
        "write --cpus NUMBER",
    ),
    (
        &[
            "--device-read-bps",
            "--device-write-bps",
            "--device-read-iops",
            "--device-write-iops",
            "--blkio-weight",
        ],
        "write --read-bps SIZE or --write-bps SIZE: they hold for every disk that is reached",
    ),
    (
        &["--restart"],
        "leave it out: a run is over when its program is",
    ),
    (
        &["--dns", "--add-host", "--ip", "--link", "--mac-address"],
        "a sandbox has no network; with `--network host` it resolves names as this machine does",
    ),
];

/// Tells of arguments that cannot be understood, or prints the help or version that they ask for; the exit status.
pub(crate) fn settle(error: &clap::Error) -> u8 {
    if !error.use_stderr() {
        // There is nobody left to tell that nobody listens.
        drop(error.print());
        return 0;
    }
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let is_run = words.first().is_some_and(|word| word == "run");
    let unknown = unknown_to_run(error).filter(|_| is_run);
    match unknown {
        Some(advice) => Printer::new(false).error(&diagnostic(error, Some(advice))),
        None => drop(error.print()),
    }
    if is_run && words.iter().any(|word| word == OsStr::new("--json")) {
        drop(Printer::new(false).document(&Failed::new(&diagnostic(error, unknown))));
    }
    // Of a run every status but 125 could be the program's own.
    if is_run { status::FAILED } else { USAGE }
}

/// What to do instead of a flag of Docker's.
fn unknown_to_run(error: &clap::Error) -> Option<&'static str> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(given)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let flag = given.split('=').next().unwrap_or_default();
    OF_DOCKER
        .iter()
        .find(|(flags, _)| flags.contains(&flag))
        .map(|(_, advice)| *advice)
}

/// The first paragraph of what clap says, which is the whole of what is wrong.
fn diagnostic(error: &clap::Error, advice: Option<&str>) -> Diagnostic {
    let text = error.render().to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let message = paragraph
        .trim_start_matches("error: ")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    Diagnostic {
        message,
        causes: Vec::new(),
        hint: Some(match advice {
            Some(advice) => advice.to_owned(),
            None => "`sbxrt run --help` lists the options".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Arguments;

    fn diagnose(words: &[&str]) -> Diagnostic {
        let all = ["sbxrt", "run"].iter().chain(words);
        let error = Arguments::try_parse_from(all).unwrap_err();
        diagnostic(&error, unknown_to_run(&error))
    }

    #[test]
    fn flags_of_docker_are_answered_in_its_users_words() {
        for (flag, expected) in [
            ("-d", "put `&` behind the command"),
            ("-p=80:80", "--network host"),
            ("--privileged", "capabilities"),
            ("--cap-drop=ALL", "always dropped"),
            ("--net=host", "write --network none"),
            ("--gpus=all", "devices"),
        ] {
            let hint = diagnose(&[flag, "busybox"]).hint.unwrap();
            assert!(hint.contains(expected), "{flag}: {hint}");
        }
    }

    #[test]
    fn no_flag_of_docker_is_both_known_and_refused() {
        for flag in OF_DOCKER.iter().flat_map(|(flags, _)| *flags) {
            let error = Arguments::try_parse_from(["sbxrt", "run", flag, "busybox"]).unwrap_err();
            assert!(unknown_to_run(&error).is_some(), "{flag}: {error}");
        }
    }

    #[test]
    fn what_is_wrong_is_one_line() {
        let table = [
            (
                vec!["--bogus", "busybox"],
                "unexpected argument '--bogus' found",
            ),
            (
                vec!["-m", "12x", "busybox"],
                "invalid value '12x' for '--memory <SIZE>'",
            ),
            (
                vec![],
                "the following required arguments were not provided: <IMAGE>",
            ),
        ];
        for (words, expected) in table {
            let message = diagnose(&words).message;
            assert!(message.starts_with(expected), "{words:?}: {message}");
        }
    }
}
