//! The document that `--json` prints: the one place that knows its shape.

use std::time::Duration;

use base64::Engine as _;
use serde_json::Value;

/// What one execution reported.
#[derive(Debug, Clone)]
pub struct Report(Value);

impl Report {
    /// Reads standard output, which holds the document and nothing else.
    ///
    /// # Panics
    ///
    /// Where it is not one JSON document of version 1.
    pub fn parse(stdout: &[u8]) -> Self {
        let document: Value = serde_json::from_slice(stdout).unwrap_or_else(|error| {
            panic!(
                "no JSON document: {error}: {:?}",
                String::from_utf8_lossy(stdout)
            )
        });
        assert_eq!(document["version"], 1, "{document:#}");
        Self(document)
    }

    /// How it ended: `exited`, `signaled`, `timeout`, `oom`, …
    pub fn kind(&self) -> &str {
        self.text("/termination/kind")
    }

    /// The program's exit status, where it exited.
    pub fn code(&self) -> Option<i64> {
        self.0.pointer("/termination/code").and_then(Value::as_i64)
    }

    /// The name of the signal that ended the program, where one did.
    pub fn signal(&self) -> Option<&str> {
        self.0
            .pointer("/termination/signal")
            .and_then(Value::as_str)
    }

    /// The exit status of `sbxrt run` itself.
    pub fn exit_code(&self) -> Option<i64> {
        self.0.pointer("/exit_code").and_then(Value::as_i64)
    }

    /// What was kept of a stream (`stdout`, `stderr`): the first bytes, directly followed by the last ones.
    pub fn bytes(&self, stream: &str) -> Vec<u8> {
        let mut bytes = self.content(&format!("/{stream}"));
        bytes.extend(self.tail(stream));
        bytes
    }

    /// The last bytes of a stream that was cut.
    pub fn tail(&self, stream: &str) -> Vec<u8> {
        let tail = format!("/{stream}/tail");
        if self.at(&tail).is_null() {
            return Vec::new();
        }
        self.content(&tail)
    }

    /// How many bytes of a stream were left out.
    pub fn omitted(&self, stream: &str) -> u64 {
        self.number(&format!("/{stream}/omitted"))
    }

    fn content(&self, pointer: &str) -> Vec<u8> {
        let content = self.at(pointer);
        match (content["text"].as_str(), content["base64"].as_str()) {
            (Some(text), None) => text.as_bytes().to_vec(),
            (None, Some(base64)) => base64::engine::general_purpose::STANDARD
                .decode(base64)
                .unwrap(),
            _ => panic!("a stream is either text or base64: {:#}", self.0),
        }
    }

    /// Limits that were reached.
    pub fn limits_hit(&self) -> Vec<&str> {
        let limits = self.at("/limits_hit").as_array().unwrap();
        limits.iter().map(|limit| limit.as_str().unwrap()).collect()
    }

    /// One of the facts that the end is inferred from (`limit`, `exit_code`, `full/0/path`, …); null where it is unknown.
    pub fn evidence(&self, fact: &str) -> &Value {
        self.at(&format!("/evidence/{fact}"))
    }

    /// Any part of the document, by its JSON pointer.
    pub fn part(&self, pointer: &str) -> &Value {
        self.at(pointer)
    }

    /// Whether a stream is given as text.
    pub fn is_text(&self, stream: &str) -> bool {
        self.at(&format!("/{stream}"))["text"].is_string()
    }

    /// How many bytes the program wrote to a stream.
    pub fn total(&self, stream: &str) -> u64 {
        self.number(&format!("/{stream}/bytes"))
    }

    /// Whether a stream was cut.
    pub fn is_truncated(&self, stream: &str) -> bool {
        self.at(&format!("/{stream}/truncated")).as_bool().unwrap()
    }

    /// By which mechanism a limit (`memory`, `cpus`, `pids`, …) was held: `cgroup2`, `rlimit`, `watchdog`, …
    pub fn enforcement(&self, limit: &str) -> &str {
        self.text(&format!("/limits/{limit}/enforcement"))
    }

    /// The system call that the program was ended for, and what it was called as.
    pub fn blocked_call(&self) -> (&str, &str) {
        let architecture = self.text("/termination/architecture");
        (self.text("/termination/syscall"), architecture)
    }

    /// The kind of system call filter: `default`, `custom`, `unconfined`.
    pub fn seccomp(&self) -> &str {
        self.text("/isolation/seccomp")
    }

    /// The version of Landlock that the program was under.
    pub fn landlock(&self) -> Option<u64> {
        match self.at("/isolation/landlock") {
            Value::Null => None,
            _ => Some(self.number("/isolation/landlock/abi")),
        }
    }

    /// The value of a limit, in the unit that the report has it in; `None` where there is none.
    pub fn limit(&self, limit: &str) -> Option<f64> {
        self.at(&format!("/limits/{limit}/value")).as_f64()
    }

    /// Whether a limit was reached.
    pub fn has_hit(&self, limit: &str) -> bool {
        let hit = self.at("/limits_hit").as_array().unwrap();
        hit.iter().any(|name| name == limit)
    }

    /// From the start of the program to its end.
    pub fn wall_time(&self) -> Duration {
        self.milliseconds("/usage/wall_ms")
    }

    /// CPU time of all processes of the program.
    pub fn cpu_time(&self) -> Duration {
        self.milliseconds("/usage/user_ms") + self.milliseconds("/usage/system_ms")
    }

    /// The most memory in use at once, in bytes.
    pub fn memory_peak(&self) -> u64 {
        self.number("/usage/memory_peak_bytes")
    }

    /// What was collected.
    pub fn outputs(&self) -> &[Value] {
        self.at("/outputs").as_array().map_or(&[], Vec::as_slice)
    }

    /// The most processes and threads at once, where that was counted; else 0.
    pub fn pids_peak(&self) -> u64 {
        self.at("/usage/pids_peak").as_u64().unwrap_or(0)
    }

    /// The image's digest.
    pub fn image_digest(&self) -> &str {
        self.text("/image/digest")
    }

    /// The processes that could not be ended.
    pub fn leaked(&self) -> Vec<u32> {
        let pids = self.at("/leaked").as_array().unwrap();
        let number = |pid: &Value| pid.as_u64().unwrap().try_into().unwrap();
        pids.iter().map(number).collect()
    }

    fn at(&self, pointer: &str) -> &Value {
        self.0
            .pointer(pointer)
            .unwrap_or_else(|| panic!("no {pointer} in {:#}", self.0))
    }

    fn text(&self, pointer: &str) -> &str {
        self.at(pointer)
            .as_str()
            .unwrap_or_else(|| panic!("{pointer} is not text in {:#}", self.0))
    }

    fn number(&self, pointer: &str) -> u64 {
        self.at(pointer)
            .as_u64()
            .unwrap_or_else(|| panic!("{pointer} is not a number in {:#}", self.0))
    }

    fn milliseconds(&self, pointer: &str) -> Duration {
        let number = self.at(pointer).as_f64();
        let number = number.unwrap_or_else(|| panic!("{pointer} is not a number in {:#}", self.0));
        Duration::from_secs_f64(number / 1000.0)
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:#}", self.0)
    }
}
