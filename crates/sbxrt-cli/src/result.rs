//! The document of `sbxrt run --json`: `docs/run-result.schema.json` is its promise.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sbxrt::seccomp::PolicyKind;
use sbxrt::{Image, LimitName, Limits, Mechanism, PeakSource, Report, Termination};
use serde::{Serialize, Serializer};

use crate::diagnostics::Diagnostic;
use crate::output;
use crate::relay::Relayed;
use crate::status;

/// The version of the document. Fields may be added within one; nothing else changes.
const VERSION: u32 = 1;

/// What became of an execution.
#[derive(Debug, Serialize)]
pub(crate) struct Document<'a> {
    version: u32,
    id: &'a str,
    image: ImageName<'a>,
    command: &'a [String],
    termination: Ending<'a>,
    exit_code: u8,
    stdout: Stream,
    stderr: Stream,
    outputs: Vec<output::Entry<'a>>,
    usage: Usage,
    limits: AllLimits,
    limits_hit: Vec<LimitName>,
    isolation: Isolation,
    timings_ms: Timings,
    leaked: &'a [i32],
}

/// Everything that a [`Document`] is made of.
#[derive(Debug)]
pub(crate) struct Account<'a> {
    pub(crate) id: &'a str,
    pub(crate) image: &'a Image,
    pub(crate) command: &'a [String],
    pub(crate) limits: &'a Limits,
    pub(crate) output_limit: Option<u64>,
    pub(crate) report: &'a Report,
    pub(crate) stdout: Relayed,
    pub(crate) stderr: Relayed,
    /// How long it took to find or get the image.
    pub(crate) image_time: Duration,
    /// How long it took to start the launcher and hand the request over.
    pub(crate) launcher_time: Duration,
    /// How long everything took, from the start of sbxrt.
    pub(crate) total_time: Duration,
}

impl<'a> Document<'a> {
    /// Puts the document together.
    pub(crate) fn new(account: Account<'a>) -> Self {
        let Account {
            id,
            image,
            command,
            limits,
            output_limit,
            report,
            stdout,
            stderr,
            ..
        } = account;
        let mut limits_hit = report.limits_hit.clone();
        if stdout.is_cut() || stderr.is_cut() {
            limits_hit.push(LimitName::Output);
        }
        Self {
            version: VERSION,
            id,
            image: ImageName {
                name: &image.name,
                digest: image.digest.as_ref().map(ToString::to_string),
                platform: image.platform.to_string(),
            },
            command,
            termination: Ending::new(&report.termination, limits),
            exit_code: status::exit_code(&report.termination),
            stdout: Stream::new(stdout),
            stderr: Stream::new(stderr),
            outputs: report.outputs.iter().map(output::Entry::new).collect(),
            usage: Usage {
                wall_ms: Milliseconds(report.usage.wall_time),
                user_ms: Milliseconds(report.usage.user_time),
                system_ms: Milliseconds(report.usage.system_time),
                memory_peak_bytes: report.usage.memory_peak,
                memory_peak_source: report.usage.memory_peak_source,
                pids_peak: report.usage.pids_peak,
            },
            limits: AllLimits::new(limits, output_limit, &report.enforcement),
            limits_hit,
            isolation: Isolation {
                seccomp: report.isolation.seccomp,
                landlock: report.isolation.landlock.map(|abi| Landlock { abi }),
            },
            timings_ms: Timings {
                image: Milliseconds(account.image_time),
                launcher: Milliseconds(account.launcher_time),
                prepare: Milliseconds(report.timings.prepare),
                create: Milliseconds(report.timings.create),
                start: Milliseconds(report.timings.start),
                run: Milliseconds(report.usage.wall_time),
                teardown: Milliseconds(report.timings.teardown),
                collect: Milliseconds(report.timings.collect),
                total: Milliseconds(account.total_time),
            },
            leaked: &report.leaked,
        }
    }
}

/// The layers of the sandbox that are not the same everywhere.
#[derive(Debug, Serialize)]
struct Isolation {
    seccomp: PolicyKind,
    landlock: Option<Landlock>,
}

#[derive(Debug, Serialize)]
struct Landlock {
    abi: u32,
}

/// A failure of sbxrt, in the place of a [`Document`].
#[derive(Debug, Serialize)]
pub(crate) struct Failed<'a> {
    version: u32,
    error: &'a Diagnostic,
}

impl<'a> Failed<'a> {
    /// Puts the document together.
    pub(crate) fn new(error: &'a Diagnostic) -> Self {
        Self {
            version: VERSION,
            error,
        }
    }
}

#[derive(Debug, Serialize)]
struct ImageName<'a> {
    name: &'a str,
    digest: Option<String>,
    platform: String,
}

#[derive(Debug, Serialize)]
struct Ending<'a> {
    #[serde(flatten)]
    kind: Kind<'a>,
    message: String,
}

#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Kind<'a> {
    Exited {
        code: i32,
    },
    Signaled {
        signal: String,
        number: i32,
    },
    Timeout,
    Oom,
    Pids,
    Output,
    Disk,
    Seccomp {
        syscall: &'a str,
        architecture: &'a str,
    },
    Cancelled,
    StartFailed {
        errno: i32,
        reason: &'a str,
    },
    /// Of an engine newer than this command line, which the workspace does not allow to happen.
    Other,
}

impl<'a> Ending<'a> {
    fn new(termination: &'a Termination, limits: &Limits) -> Self {
        let kind = match termination {
            Termination::Exited { code } => Kind::Exited { code: *code },
            Termination::Signaled { signal } => Kind::Signaled {
                signal: status::signal_name(*signal),
                number: *signal,
            },
            Termination::Timeout => Kind::Timeout,
            Termination::Oom => Kind::Oom,
            Termination::Pids => Kind::Pids,
            Termination::Output => Kind::Output,
            Termination::Disk => Kind::Disk,
            Termination::Seccomp {
                syscall,
                architecture,
            } => Kind::Seccomp {
                syscall,
                architecture,
            },
            Termination::Cancelled => Kind::Cancelled,
            Termination::StartFailed { errno, reason } => Kind::StartFailed {
                errno: *errno,
                reason,
            },
            _ => Kind::Other,
        };
        Self {
            kind,
            message: status::message(termination, limits),
        }
    }
}

#[derive(Debug, Serialize)]
struct Stream {
    #[serde(flatten)]
    content: Content,
    bytes: u64,
    truncated: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Content {
    Text(String),
    Base64(String),
}

impl Stream {
    fn new(relayed: Relayed) -> Self {
        let truncated = relayed.is_cut();
        let content = match String::from_utf8(relayed.kept) {
            Ok(text) => Content::Text(text),
            Err(error) => {
                let problem = error.utf8_error();
                let mut bytes = error.into_bytes();
                // A cut in the middle of a character does not make the rest less of a text.
                if truncated && problem.error_len().is_none() {
                    bytes.truncate(problem.valid_up_to());
                }
                String::from_utf8(bytes).map_or_else(
                    |error| Content::Base64(STANDARD.encode(error.as_bytes())),
                    Content::Text,
                )
            }
        };
        Self {
            content,
            bytes: relayed.total,
            truncated,
        }
    }
}

#[derive(Debug, Serialize)]
struct Usage {
    wall_ms: Milliseconds,
    user_ms: Milliseconds,
    system_ms: Milliseconds,
    memory_peak_bytes: u64,
    memory_peak_source: PeakSource,
    pids_peak: Option<u64>,
}

/// Every limit, `null` where there is none.
#[derive(Debug, Serialize)]
struct AllLimits {
    memory: Option<Held<u64>>,
    swap: Option<Held<u64>>,
    cpus: Option<Held<f64>>,
    pids: Option<Held<u32>>,
    nofile: Option<Held<u64>>,
    wall_time_ms: Option<Held<Milliseconds>>,
    scratch: Option<Held<u64>>,
    shm: Option<Held<u64>>,
    output: Option<Held<u64>>,
}

#[derive(Debug, Serialize)]
struct Held<T> {
    value: T,
    enforcement: Mechanism,
}

impl AllLimits {
    fn new(
        limits: &Limits,
        output: Option<u64>,
        enforcement: &BTreeMap<LimitName, Mechanism>,
    ) -> Self {
        fn held<T>(value: Option<T>, enforcement: Option<&Mechanism>) -> Option<Held<T>> {
            value.map(|value| Held {
                value,
                enforcement: enforcement.copied().unwrap_or(Mechanism::None),
            })
        }
        let by = |limit| enforcement.get(&limit);
        Self {
            memory: held(limits.memory, by(LimitName::Memory)),
            swap: held(limits.swap, by(LimitName::Swap)),
            cpus: held(limits.cpus, by(LimitName::Cpus)),
            pids: held(limits.pids, by(LimitName::Pids)),
            nofile: held(limits.nofile, by(LimitName::Nofile)),
            wall_time_ms: held(limits.wall_time.map(Milliseconds), by(LimitName::WallTime)),
            scratch: held(limits.scratch_bytes, by(LimitName::Scratch)),
            shm: held(limits.shm_bytes, by(LimitName::Shm)),
            // Held by this process, whatever the engine does.
            output: held(output, Some(&Mechanism::Relay)),
        }
    }
}

#[derive(Debug, Serialize)]
struct Timings {
    image: Milliseconds,
    launcher: Milliseconds,
    prepare: Milliseconds,
    create: Milliseconds,
    start: Milliseconds,
    run: Milliseconds,
    teardown: Milliseconds,
    collect: Milliseconds,
    total: Milliseconds,
}

/// A duration in milliseconds, with the microseconds behind the point.
#[derive(Debug, Clone, Copy)]
struct Milliseconds(Duration);

impl Serialize for Milliseconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Exact up to 2^53 microseconds, which is 285 years.
        #[expect(clippy::cast_precision_loss, reason = "no run takes that long")]
        serializer.serialize_f64(self.0.as_micros() as f64 / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use sbxrt::{FileKind, OutputFile, Timings as Phases};
    use serde_json::{Value, json};

    use super::*;

    fn relayed(bytes: &[u8], total: u64) -> Relayed {
        Relayed {
            kept: bytes.to_vec(),
            total,
            cut: total > bytes.len() as u64,
            failure: None,
        }
    }

    fn image() -> Image {
        let store = tempfile::tempdir().unwrap();
        let engine = sbxrt::Engine::open(store.path()).unwrap();
        let platform = "linux/amd64".parse().unwrap();
        engine
            .store()
            .find(&sbxrt::Source::Host, &platform)
            .unwrap()
            .unwrap()
    }

    fn report(termination: Termination) -> Report {
        Report {
            termination,
            evidence: sbxrt::Evidence::default(),
            usage: sbxrt::Usage {
                wall_time: Duration::from_micros(12_345),
                user_time: Duration::from_millis(7),
                system_time: Duration::from_micros(1),
                memory_peak: 9 << 20,
                memory_peak_source: PeakSource::Watchdog,
                pids_peak: Some(2),
            },
            enforcement: [
                (LimitName::Memory, Mechanism::Watchdog),
                (LimitName::Cpus, Mechanism::Affinity),
                (LimitName::Pids, Mechanism::Rlimit),
                (LimitName::WallTime, Mechanism::Timer),
                (LimitName::Scratch, Mechanism::Tmpfs),
                (LimitName::Nofile, Mechanism::Rlimit),
                (LimitName::Shm, Mechanism::Tmpfs),
            ]
            .into(),
            limits_hit: Vec::new(),
            root_emulated: false,
            outputs: vec![
                OutputFile {
                    path: "/out/answer".into(),
                    kind: FileKind::File,
                    size: 3,
                    mode: 0o644,
                    sha256: Some("ab".repeat(32)),
                    target: None,
                    copied_to: Some("answer".into()),
                    refused: None,
                },
                OutputFile {
                    path: "/out/fifo".into(),
                    kind: FileKind::Fifo,
                    size: 0,
                    mode: 0o600,
                    sha256: None,
                    target: None,
                    copied_to: None,
                    refused: Some("neither a file nor a directory nor a link".to_owned()),
                },
            ],
            isolation: sbxrt::Isolation {
                seccomp: PolicyKind::Default,
                landlock: Some(7),
            },
            timings: Phases {
                prepare: Duration::from_micros(700),
                ..Phases::default()
            },
            leaked: Vec::new(),
        }
    }

    fn document(report: &Report, limits: &Limits, stdout: Relayed) -> Value {
        let (image, command) = (image(), ["sh", "-c", "exit 7"].map(str::to_owned));
        let document = Document::new(Account {
            id: "3f2a",
            image: &image,
            command: &command,
            limits,
            output_limit: Some(10 << 20),
            report,
            stdout,
            stderr: relayed(b"", 0),
            image_time: Duration::from_micros(50),
            launcher_time: Duration::from_micros(900),
            total_time: Duration::from_millis(20),
        });
        serde_json::to_value(document).unwrap()
    }

    fn assert_valid(document: &Value) {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/run-result.schema.json"
        );
        let schema: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let errors: Vec<String> = validator
            .iter_errors(document)
            .map(|error| error.to_string())
            .collect();
        assert!(errors.is_empty(), "{errors:#?} in {document:#}");
    }

    fn terminations() -> Vec<Termination> {
        vec![
            Termination::Exited { code: 7 },
            Termination::Signaled { signal: 9 },
            Termination::Timeout,
            Termination::Oom,
            Termination::Pids,
            Termination::Cancelled,
            Termination::StartFailed {
                errno: 2,
                reason: "no such file".to_owned(),
            },
        ]
    }

    #[test]
    fn a_document_reads_as_it_always_did() {
        let limits = Limits {
            wall_time: Some(Duration::from_secs(10)),
            ..Limits::default()
        };
        let document = document(
            &report(Termination::Exited { code: 7 }),
            &limits,
            relayed(b"hello\n", 6),
        );
        insta::assert_snapshot!(serde_json::to_string_pretty(&document).unwrap());
    }

    #[test]
    fn every_document_is_valid() {
        let unlimited = Limits {
            memory: None,
            swap: None,
            cpus: None,
            pids: None,
            nofile: None,
            wall_time: None,
            scratch_bytes: None,
            shm_bytes: None,
        };
        for termination in terminations() {
            for limits in [&Limits::default(), &unlimited] {
                assert_valid(&document(
                    &report(termination.clone()),
                    limits,
                    relayed(b"\xff", 2),
                ));
            }
        }
        let error = crate::error::Error::NotATerminal;
        assert_valid(&serde_json::to_value(Failed::new(&Diagnostic::new(&error))).unwrap());
    }

    #[test]
    fn every_end_names_its_facts() {
        let expected = [
            json!({"kind": "exited", "code": 7, "message": "exited with status 7"}),
            json!({"kind": "signaled", "signal": "SIGKILL", "number": 9, "message": "ended by SIGKILL"}),
            json!({"kind": "timeout", "message": "ended by the time limit"}),
            json!({"kind": "oom", "message": "ended by the memory limit of 512 MiB"}),
            json!({"kind": "pids", "message": "failed at the limit of 128 processes"}),
            json!({"kind": "cancelled", "message": "cancelled"}),
            json!({"kind": "start_failed", "errno": 2, "reason": "no such file", "message": "not started: no such file"}),
        ];
        for (termination, expected) in terminations().iter().zip(expected) {
            let ending =
                serde_json::to_value(Ending::new(termination, &Limits::default())).unwrap();
            assert_eq!(ending, expected);
        }
    }

    #[test]
    fn output_is_text_where_it_is_utf8_and_else_base64() {
        let table: [(&[u8], u64, Value); 7] = [
            (b"", 0, json!({"text": "", "bytes": 0, "truncated": false})),
            (
                b"a\0b\n",
                4,
                json!({"text": "a\0b\n", "bytes": 4, "truncated": false}),
            ),
            (
                "é".as_bytes(),
                2,
                json!({"text": "é", "bytes": 2, "truncated": false}),
            ),
            (
                b"a\xff",
                2,
                json!({"base64": "Yf8=", "bytes": 2, "truncated": false}),
            ),
            // Half a character at the end: cut by us, or written so.
            (
                b"a\xc3",
                5,
                json!({"text": "a", "bytes": 5, "truncated": true}),
            ),
            (
                b"a\xc3",
                2,
                json!({"base64": "YcM=", "bytes": 2, "truncated": false}),
            ),
            (
                b"\xffa\xc3",
                9,
                json!({"base64": "/2HD", "bytes": 9, "truncated": true}),
            ),
        ];
        for (bytes, total, expected) in table {
            assert_eq!(
                serde_json::to_value(Stream::new(relayed(bytes, total))).unwrap(),
                expected,
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn cut_output_is_among_the_limits_that_were_hit() {
        let document = document(
            &report(Termination::Timeout),
            &Limits::default(),
            relayed(b"x", 2),
        );
        assert_eq!(document["limits_hit"], json!(["output"]));
    }
}
