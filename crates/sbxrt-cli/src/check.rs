//! `sbxrt check`: what this machine lets sbxrt do, why not more, and what mends it.

use std::fmt::Write as _;
use std::path::Path;

use sbxrt::Mechanism;
use sbxrt::probe::{self, Check, HostReport, Status};

use crate::args::CheckArguments;
use crate::diagnostics::Diagnostic;
use crate::error::Result;
use crate::location;
use crate::printer::Printer;

/// Nothing can be run here.
const UNUSABLE: u8 = 1;

/// Examines this machine and prints what was found; the exit status.
///
/// To be called before any thread exists.
pub(crate) fn run(arguments: CheckArguments, printer: Printer) -> u8 {
    let checked = location::store(arguments.store.store)
        .and_then(|store| report(&store))
        .and_then(|report| {
            if arguments.json {
                printer.document(&report)
            } else {
                printer.data(&render(&report))
            }?;
            Ok(report.ok)
        });
    match checked {
        Ok(true) => 0,
        Ok(false) => UNUSABLE,
        Err(error) => {
            printer.error(&Diagnostic::new(&error));
            UNUSABLE
        }
    }
}

/// Tries what a run with images in `store` needs.
pub(crate) fn report(store: &Path) -> Result<HostReport> {
    Ok(probe::examine(store).map_err(sbxrt::Error::from)?)
}

/// A line for each check, below it why it is not well and what mends it; then the limits and the conclusion.
pub(crate) fn render(report: &HostReport) -> String {
    let mut text = String::new();
    let width = report
        .checks
        .iter()
        .map(|check| check.name.len())
        .max()
        .unwrap_or(0);
    for Check {
        name,
        status,
        detail,
        reason,
        fix,
    } in &report.checks
    {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{} {name:width$}  {detail}", symbol(*status));
        for (label, words) in [("why", reason), ("fix", fix)] {
            if let Some(words) = words {
                let _ = writeln!(text, "  {:width$}  {label}: {words}", "");
            }
        }
    }
    if report.ok {
        text.push_str("\nA run's limits are held here by\n");
        for (limit, mechanism) in &report.limits {
            let _ = writeln!(
                text,
                "  {limit:width$}  {mechanism:9} {}",
                meaning(*mechanism)
            );
        }
    }
    let conclusion = match (
        report.ok,
        report
            .checks
            .iter()
            .any(|check| check.status == Status::Failed),
    ) {
        (true, false) => "sbxrt can run programs here.",
        (true, true) => {
            "sbxrt can run programs of the host (host:) here, but not everything works."
        }
        (false, _) => "sbxrt cannot run anything here.",
    };
    let _ = writeln!(
        text,
        "\n{} works, {} works with less, {} does not work, {} not there and not needed\n{conclusion}",
        symbol(Status::Ok),
        symbol(Status::Degraded),
        symbol(Status::Failed),
        symbol(Status::Missing)
    );
    text
}

fn symbol(status: Status) -> char {
    match status {
        Status::Ok => '✓',
        Status::Degraded => '!',
        Status::Failed => '✗',
        Status::Missing => '-',
    }
}

fn meaning(mechanism: Mechanism) -> &'static str {
    match mechanism {
        Mechanism::Cgroup2 => "the kernel, for all processes together",
        Mechanism::Systemd => "the kernel, in a scope that systemd has delegated",
        Mechanism::Cgroup1 => "the kernel, for all processes together, by cgroup v1",
        Mechanism::Rlimit => "the kernel, in the sandbox's own user namespace",
        Mechanism::Affinity => {
            "so many processors to run on; of a fraction, the watchdog takes care"
        }
        Mechanism::Tmpfs => "the size of a file system in memory",
        Mechanism::Watchdog => {
            "sbxrt looks every few milliseconds: a limit may be exceeded for that long"
        }
        Mechanism::Timer => "sbxrt ends every process when it is over",
        Mechanism::Relay => "sbxrt reads everything and keeps only so much",
        Mechanism::None => "nothing",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sbxrt::LimitName;

    use super::*;

    fn check(name: &str, status: Status, [detail, reason, fix]: [&str; 3]) -> Check {
        let words = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Check {
            name: name.to_owned(),
            status,
            detail: detail.to_owned(),
            reason: words(reason),
            fix: words(fix),
        }
    }

    fn fixed() -> HostReport {
        HostReport {
            version: 1,
            ok: true,
            checks: vec![
                check("kernel", Status::Ok, ["Linux 6.1.0 on x86_64", "", ""]),
                check(
                    "user_namespaces",
                    Status::Ok,
                    ["created and mapped, three deep", "", ""],
                ),
                check(
                    "overlay",
                    Status::Failed,
                    [
                        "mount(\"overlay\", 1 layers, userxattr): ENODEV: No such device",
                        "this kernel has no overlayfs, or its module is not loaded",
                        "sudo modprobe overlay",
                    ],
                ),
                check(
                    "cgroup",
                    Status::Degraded,
                    ["version 2 is not mounted", "version 1 alone", ""],
                ),
                check(
                    "fuse",
                    Status::Missing,
                    ["ENOENT", "not needed", "sudo modprobe fuse"],
                ),
                check("run", Status::Ok, ["`true` ran", "", ""]),
            ],
            limits: BTreeMap::from([
                (LimitName::Memory, Mechanism::Cgroup2),
                (LimitName::Cpus, Mechanism::Affinity),
                (LimitName::Pids, Mechanism::Rlimit),
                (LimitName::Scratch, Mechanism::Tmpfs),
                (LimitName::WallTime, Mechanism::Timer),
                (LimitName::Output, Mechanism::Relay),
            ]),
        }
    }

    #[test]
    fn a_report_lines_up_and_says_everything_without_colour() {
        insta::assert_snapshot!(render(&fixed()));
    }

    #[test]
    fn a_report_says_the_same_to_programs() {
        insta::assert_json_snapshot!(fixed());
    }

    #[test]
    fn the_last_line_is_the_conclusion() {
        let without_failure = || {
            let mut report = fixed();
            report.checks.retain(|check| check.status != Status::Failed);
            report
        };
        let table = [
            (without_failure(), "sbxrt can run programs here."),
            (
                fixed(),
                "sbxrt can run programs of the host (host:) here, but not everything works.",
            ),
            (
                HostReport {
                    ok: false,
                    ..without_failure()
                },
                "sbxrt cannot run anything here.",
            ),
        ];
        for (report, conclusion) in table {
            assert_eq!(render(&report).lines().last(), Some(conclusion));
        }
    }
}
