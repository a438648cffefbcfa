//! The document of `sbxrt run --json` and `--result`: `docs/run-result.schema.json` is its promise.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::libc;
use sbxrt::seccomp::PolicyKind;
use sbxrt::{
    Captured, Cpuset, Image, LimitName, Limits, Mechanism, PeakSource, Report, Sender, Space,
    Spilled, Termination,
};
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
    evidence: Evidence<'a>,
    exit_code: u8,
    stdout: Stream,
    stderr: Stream,
    outputs: Vec<output::Entry<'a>>,
    usage: Usage,
    limits: AllLimits,
    limits_hit: &'a [LimitName],
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
    pub(crate) exit_code: u8,
    pub(crate) stdout: Relayed,
    pub(crate) stderr: Relayed,
    /// Whether the output was kept for this document.
    pub(crate) keeps: bool,
    /// The files that received standard output and standard error.
    pub(crate) files: [Option<&'a Path>; 2],
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
            exit_code,
            stdout,
            stderr,
            keeps,
            files,
            ..
        } = account;
        Self {
            version: VERSION,
            id,
            image: ImageName {
                name: &image.name,
                digest: image.digest.as_ref().map(ToString::to_string),
                platform: image.platform.to_string(),
            },
            command,
            termination: Ending::new(report, limits, output_limit),
            evidence: Evidence::new(&report.evidence),
            exit_code,
            stdout: Stream::new(stdout, keeps, files[0]),
            stderr: Stream::new(stderr, keeps, files[1]),
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
            limits_hit: &report.limits_hit,
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
    fn new(report: &'a Report, limits: &Limits, output_limit: Option<u64>) -> Self {
        let kind = match &report.termination {
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
            message: status::message(report, limits, output_limit),
        }
    }
}

#[derive(Debug, Serialize)]
struct Evidence<'a> {
    limit: Option<LimitName>,
    mechanism: Option<Mechanism>,
    exit_code: Option<i32>,
    signal: Option<String>,
    sender: Option<Sender>,
    memory_events: &'a BTreeMap<String, u64>,
    pids_refused: Option<u64>,
    throttled_ms: Option<Milliseconds>,
    full: &'a [Space],
}

impl<'a> Evidence<'a> {
    fn new(evidence: &'a sbxrt::Evidence) -> Self {
        let status = evidence.wait_status;
        Self {
            limit: evidence.limit,
            mechanism: evidence.mechanism,
            exit_code: status
                .filter(|&status| libc::WIFEXITED(status))
                .map(|status| libc::WEXITSTATUS(status)),
            signal: status
                .filter(|&status| libc::WIFSIGNALED(status))
                .map(|status| status::signal_name(libc::WTERMSIG(status))),
            sender: evidence.sender,
            memory_events: &evidence.memory_events,
            pids_refused: evidence.pids_refused,
            throttled_ms: evidence.throttled.map(Milliseconds),
            full: &evidence.full,
        }
    }
}

#[derive(Debug, Serialize)]
struct Stream {
    /// None where the output has passed through.
    #[serde(flatten)]
    head: Option<Content>,
    omitted: u64,
    tail: Option<Content>,
    bytes: u64,
    truncated: bool,
    file: Option<StreamFile>,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Content {
    Text(String),
    Base64(String),
}

/// The file that received a stream as well.
#[derive(Debug, Serialize)]
struct StreamFile {
    path: String,
    bytes: u64,
    truncated: bool,
    error: Option<String>,
}

impl Stream {
    fn new(relayed: Relayed, keeps: bool, path: Option<&Path>) -> Self {
        let Relayed {
            captured, omitted, ..
        } = relayed;
        let file = path
            .zip(captured.file.as_ref())
            .map(|(path, file)| StreamFile::new(path, file));
        let mut stream = Self {
            head: None,
            omitted,
            tail: None,
            bytes: captured.total,
            truncated: omitted > 0,
            file,
        };
        if keeps {
            stream.keep(captured);
        }
        stream
    }

    fn keep(&mut self, captured: Captured) {
        if !captured.is_truncated() {
            self.head = Some(Content::new(captured.bytes));
            return;
        }
        let (mut head, mut tail) = (captured.head(), captured.tail());
        // A cut in the middle of a character does not make the rest less of a text.
        if let Err(error) = str::from_utf8(head)
            && error.error_len().is_none()
        {
            head = &head[..error.valid_up_to()];
        }
        let begun = tail.iter().take(3).take_while(|&&byte| byte & 0xc0 == 0x80);
        let begun = begun.count();
        if str::from_utf8(&tail[begun..]).is_ok() {
            tail = &tail[begun..];
        }
        self.omitted = captured.total - (head.len() + tail.len()) as u64;
        self.head = Some(Content::new(head.to_vec()));
        self.tail = Some(Content::new(tail.to_vec()));
    }
}

impl Content {
    fn new(bytes: Vec<u8>) -> Self {
        String::from_utf8(bytes).map_or_else(
            |error| Self::Base64(STANDARD.encode(error.as_bytes())),
            Self::Text,
        )
    }
}

impl StreamFile {
    fn new(path: &Path, file: &Spilled) -> Self {
        let error = file.error.map(nix::errno::Errno::from_raw);
        Self {
            path: path.to_string_lossy().into_owned(),
            bytes: file.bytes,
            truncated: file.truncated,
            error: error.map(|error| format!("{error:?}: {}", error.desc())),
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
    cpuset: Option<Held<Cpuset>>,
    pids: Option<Held<u32>>,
    io: Option<Held<Rates>>,
    nofile: Option<Held<u64>>,
    fsize: Option<Held<u64>>,
    wall_time_ms: Option<Held<Milliseconds>>,
    cpu_time_ms: Option<Held<Milliseconds>>,
    scratch: Option<Held<u64>>,
    scratch_inodes: Option<Held<u64>>,
    shm: Option<Held<u64>>,
    output: Option<Held<u64>>,
}

#[derive(Debug, Serialize)]
struct Held<T> {
    value: T,
    enforcement: Mechanism,
}

/// Bytes per second.
#[derive(Debug, Serialize)]
struct Rates {
    read: Option<u64>,
    write: Option<u64>,
}

impl Rates {
    fn new(limits: &Limits) -> Option<Self> {
        let (read, write) = (limits.io_read, limits.io_write);
        (read.is_some() || write.is_some()).then_some(Self { read, write })
    }
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
            cpuset: held(limits.cpuset.clone(), by(LimitName::Cpuset)),
            pids: held(limits.pids, by(LimitName::Pids)),
            io: held(Rates::new(limits), by(LimitName::Io)),
            nofile: held(limits.nofile, by(LimitName::Nofile)),
            fsize: held(limits.fsize, by(LimitName::Fsize)),
            wall_time_ms: held(limits.wall_time.map(Milliseconds), by(LimitName::WallTime)),
            cpu_time_ms: held(limits.cpu_time.map(Milliseconds), by(LimitName::CpuTime)),
            scratch: held(limits.scratch_bytes, by(LimitName::Scratch)),
            scratch_inodes: held(limits.scratch_inode_bound(), by(LimitName::ScratchInodes)),
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

    /// A stream that is kept within `limit`.
    fn relayed(bytes: &[u8], limit: u64) -> Relayed {
        let mut capture = sbxrt::Capture::new(Some(limit));
        capture.write(bytes);
        let captured = capture.finish();
        Relayed {
            omitted: captured.omitted(),
            captured,
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
            evidence: sbxrt::Evidence {
                limit: Some(LimitName::Scratch),
                mechanism: Some(Mechanism::Tmpfs),
                wait_status: Some(7 << 8),
                sender: None,
                memory_events: [("max".to_owned(), 3)].into(),
                pids_refused: Some(0),
                throttled: Some(Duration::from_micros(1_500)),
                full: vec![Space {
                    path: "/".into(),
                    limit: LimitName::Scratch,
                    bytes: 64 << 20,
                    bytes_free: 0,
                    inodes: 16_384,
                    inodes_free: 16_000,
                }],
            },
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
                (LimitName::ScratchInodes, Mechanism::Tmpfs),
                (LimitName::Nofile, Mechanism::Rlimit),
                (LimitName::Shm, Mechanism::Tmpfs),
            ]
            .into(),
            limits_hit: vec![LimitName::Scratch],
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
            ..status::tests::report(termination)
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
            exit_code: status::exit_code(report),
            stdout,
            stderr: relayed(b"first, middle, last", 6),
            keeps: true,
            files: [Some(Path::new("out.log")), None],
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
            Termination::Output,
            Termination::Disk,
            Termination::Seccomp {
                syscall: "ptrace".to_owned(),
                architecture: "x86_64".to_owned(),
            },
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
            cpuset: None,
            pids: None,
            io_read: None,
            io_write: None,
            nofile: None,
            fsize: None,
            cpu_time: None,
            scratch_inodes: None,
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
            json!({"kind": "output", "message": "wrote more than the output limit of 1 MiB"}),
            json!({"kind": "disk", "message": "failed while / was full with 64 MiB"}),
            json!({"kind": "seccomp", "syscall": "ptrace", "architecture": "x86_64", "message": "ended for the forbidden system call ptrace"}),
            json!({"kind": "cancelled", "message": "cancelled"}),
            json!({"kind": "start_failed", "errno": 2, "reason": "no such file", "message": "not started: no such file"}),
        ];
        assert_eq!(terminations().len(), expected.len());
        for (termination, expected) in terminations().into_iter().zip(expected) {
            let report = report(termination);
            let ending = Ending::new(&report, &Limits::default(), Some(1 << 20));
            assert_eq!(serde_json::to_value(ending).unwrap(), expected);
        }
    }

    #[test]
    fn output_is_text_where_it_is_utf8_and_else_base64() {
        let table: [(&[u8], u64, Value); 9] = [
            (b"", 9, json!({"text": "", "omitted": 0, "tail": null})),
            (
                b"a\0b\n",
                9,
                json!({"text": "a\0b\n", "omitted": 0, "tail": null}),
            ),
            (
                "é".as_bytes(),
                2,
                json!({"text": "é", "omitted": 0, "tail": null}),
            ),
            (
                b"a\xff",
                2,
                json!({"base64": "Yf8=", "omitted": 0, "tail": null}),
            ),
            // Half a character that the program wrote so.
            (
                b"a\xc3",
                2,
                json!({"base64": "YcM=", "omitted": 0, "tail": null}),
            ),
            // Half a character on either side of a cut.
            (
                "aéxxéz".as_bytes(),
                4,
                json!({"text": "a", "omitted": 6, "tail": {"text": "z"}}),
            ),
            // Either side by itself.
            (
                b"\xffa, b",
                4,
                json!({"base64": "/2E=", "omitted": 1, "tail": {"text": " b"}}),
            ),
            (
                b"a\xc3, \xff\xc3",
                4,
                json!({"text": "a", "omitted": 3, "tail": {"base64": "/8M="}}),
            ),
            (
                b"xyz",
                1,
                json!({"text": "x", "omitted": 2, "tail": {"text": ""}}),
            ),
        ];
        for (bytes, limit, expected) in table {
            let stream = Stream::new(relayed(bytes, limit), true, None);
            let mut expected = expected;
            expected["bytes"] = bytes.len().into();
            expected["truncated"] = (bytes.len() as u64 > limit).into();
            expected["file"] = Value::Null;
            assert_eq!(serde_json::to_value(stream).unwrap(), expected, "{bytes:?}");
        }
    }

    #[test]
    fn output_that_has_passed_through_is_counted_and_its_file_described() {
        let mut relayed = relayed(b"xyz", 1);
        relayed.captured.file = Some({
            let directory = tempfile::tempdir().unwrap();
            let mut spill = sbxrt::Spill::create(&directory.path().join("f"), 2).unwrap();
            spill.write(b"xyz");
            spill.finish()
        });
        let stream = Stream::new(relayed, false, Some(Path::new("out.log")));
        assert_eq!(
            serde_json::to_value(stream).unwrap(),
            json!({
                "omitted": 2, "tail": null, "bytes": 3, "truncated": true,
                "file": {"path": "out.log", "bytes": 2, "truncated": true, "error": null}
            })
        );
    }
}
