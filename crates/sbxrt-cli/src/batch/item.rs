//! One line of the input: what is to be run, and in what it differs from the command line.
//!
//! `docs/batch-item.schema.json` is the promise. Limits have the names of the flags and take what the flags take, as text or as
//! a number.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::ValueEnum as _;
use sbxrt::{InputFile, Source};
use serde_json::{Map, Value};

use crate::args::{LimitArguments, OutputActionArgument};
use crate::limit;

/// Everything that an item may say.
const FIELDS: &[&str] = &[
    "id",
    "command",
    "args",
    "stdin",
    "env",
    "files",
    "outputs",
    "image",
    "workdir",
    "memory",
    "memory_swap",
    "cpus",
    "cpuset_cpus",
    "pids_limit",
    "read_bps",
    "write_bps",
    "timeout",
    "cpu_time",
    "output_limit",
    "output_action",
    "scratch_size",
    "scratch_inodes",
    "shm_size",
];

/// What is wrong with an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flaw {
    /// Which field.
    pub(crate) field: String,
    pub(crate) reason: String,
}

/// A program to run.
#[derive(Debug)]
pub(crate) struct Item {
    /// The words in the place of those of the command line.
    pub(crate) command: Option<Vec<String>>,
    /// Words behind either.
    pub(crate) arguments: Vec<String>,
    pub(crate) stdin: Option<Vec<u8>>,
    pub(crate) variables: Vec<(String, String)>,
    pub(crate) files: Vec<InputFile>,
    pub(crate) outputs: Vec<PathBuf>,
    pub(crate) image: Option<Source>,
    pub(crate) workdir: Option<PathBuf>,
    /// The limits, where it has any of its own.
    pub(crate) limits: Option<LimitArguments>,
}

impl Item {
    /// Reads an item; `defaults` are the limits of the command line.
    pub(crate) fn parse(
        fields: &Map<String, Value>,
        defaults: &LimitArguments,
    ) -> Result<Self, Flaw> {
        let mut item = Self {
            command: None,
            arguments: Vec::new(),
            stdin: None,
            variables: Vec::new(),
            files: Vec::new(),
            outputs: Vec::new(),
            image: None,
            workdir: None,
            limits: None,
        };
        let mut limits = defaults.clone();
        for (field, value) in fields {
            // As though it were not there, which is how many programs write that.
            if value.is_null() && FIELDS.contains(&field.as_str()) {
                continue;
            }
            let read = match field.as_str() {
                "id" => identity(value),
                "command" => words(value).and_then(|words| {
                    if words.is_empty() {
                        return Err("is empty; leave it out for the command line's".to_owned());
                    }
                    item.command = Some(words);
                    Ok(())
                }),
                "args" => words(value).map(|words| item.arguments = words),
                "stdin" => content(value).and_then(|(bytes, mode)| {
                    item.stdin = Some(bytes);
                    mode.map_or(Ok(()), |_| Err("has no mode".to_owned()))
                }),
                "env" => object(value).and_then(|object| {
                    for (name, value) in object {
                        item.variables.push((name.clone(), text(value)?.to_owned()));
                    }
                    Ok(())
                }),
                "files" => object(value).and_then(|object| {
                    for (path, value) in object {
                        let (contents, mode) =
                            content(value).map_err(|it| format!("{path}: {it}"))?;
                        item.files.push(InputFile {
                            path: path.into(),
                            contents,
                            mode: mode.unwrap_or(0o644),
                        });
                    }
                    Ok(())
                }),
                "outputs" => words(value).map(|words| {
                    item.outputs = words.into_iter().map(PathBuf::from).collect();
                }),
                "image" => text(value).and_then(image).map(|it| item.image = Some(it)),
                "workdir" => text(value).map(|text| item.workdir = Some(text.into())),
                limit => {
                    let read = bound(&mut limits, limit, value);
                    if read.is_ok() {
                        item.limits = Some(limits.clone());
                    }
                    read
                }
            };
            read.map_err(|reason| Flaw {
                field: field.clone(),
                reason,
            })?;
        }
        Ok(item)
    }
}

/// Sets the limit that `field` names.
fn bound(limits: &mut LimitArguments, field: &str, value: &Value) -> Result<(), String> {
    if !FIELDS.contains(&field) {
        return Err(format!("is unknown; known are {}", FIELDS.join(", ")));
    }
    let text = amount(value)?;
    let text = text.as_str();
    match field {
        "memory" => limits.memory = limit::size(text)?,
        "memory_swap" => limits.memory_swap = Some(limit::memory_swap(text)?),
        "cpus" => limits.cpus = limit::cpus(text)?,
        "cpuset_cpus" => {
            let cpuset = text
                .parse()
                .map_err(|error: sbxrt::CpusetError| error.to_string())?;
            limits.cpuset_cpus = Some(cpuset);
        }
        "pids_limit" => limits.pids_limit = limit::pids(text)?,
        "read_bps" => limits.read_bps = Some(limit::size(text)?),
        "write_bps" => limits.write_bps = Some(limit::size(text)?),
        "timeout" => limits.timeout = Some(limit::duration(text)?),
        "cpu_time" => limits.cpu_time = Some(limit::duration(text)?),
        "output_limit" => limits.output_limit = Some(limit::size(text)?),
        "output_action" => limits.output_action = OutputActionArgument::from_str(text, false)?,
        "scratch_size" => limits.scratch_size = limit::size(text)?,
        "scratch_inodes" => limits.scratch_inodes = Some(limit::count(text)?),
        _ => limits.shm_size = limit::size(text)?,
    }
    Ok(())
}

/// What tells an item from others, for whoever reads the results.
fn identity(value: &Value) -> Result<(), String> {
    match value {
        Value::String(_) => Ok(()),
        Value::Number(number) if !number.is_f64() => Ok(()),
        _ => Err("write a text or a whole number".to_owned()),
    }
}

/// An image of an item's own.
fn image(text: &str) -> Result<Source, String> {
    text.parse()
        .map_err(|error: sbxrt::image::InvalidSource| error.to_string())
}

fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| "write a text".to_owned())
}

fn object(value: &Value) -> Result<&Map<String, Value>, String> {
    value
        .as_object()
        .ok_or_else(|| "write an object".to_owned())
}

fn words(value: &Value) -> Result<Vec<String>, String> {
    let not_words = || "write a list of texts".to_owned();
    let words = value.as_array().ok_or_else(not_words)?.iter();
    words
        .map(|word| word.as_str().map(str::to_owned).ok_or_else(not_words))
        .collect()
}

/// A value of a flag, which may be written as a number.
fn amount(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err("write a text or a number".to_owned()),
    }
}

/// Bytes: a text, or an object with `text` or `base64`; and the mode that a file is to have.
fn content(value: &Value) -> Result<(Vec<u8>, Option<u32>), String> {
    const FORM: &str = "write a text, or an object with text or base64";
    let object = match value {
        Value::String(text) => return Ok((text.clone().into_bytes(), None)),
        Value::Object(object) => object,
        _ => return Err(FORM.to_owned()),
    };
    let (mut bytes, mut mode) = (None, None);
    for (name, value) in object {
        let text = value.as_str().ok_or(FORM)?;
        match name.as_str() {
            "text" if bytes.is_none() => bytes = Some(text.as_bytes().to_vec()),
            "base64" if bytes.is_none() => {
                let decoded = STANDARD.decode(text);
                bytes = Some(decoded.map_err(|error| format!("is not base64: {error}"))?);
            }
            "mode" => {
                let octal = u32::from_str_radix(text, 8).ok().filter(|&it| it <= 0o777);
                mode = Some(octal.ok_or("write a mode such as \"755\"")?);
            }
            _ => return Err(format!("{FORM}, and mode; not {name:?}")),
        }
    }
    Ok((bytes.ok_or(FORM)?, mode))
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};
    use serde_json::json;

    use super::*;
    use crate::limit::Bound;

    fn defaults() -> LimitArguments {
        let command = LimitArguments::augment_args(clap::Command::new("limits"));
        let matches = command.try_get_matches_from(["limits"]).unwrap();
        LimitArguments::from_arg_matches(&matches).unwrap()
    }

    fn parse(value: &Value) -> Result<Item, Flaw> {
        Item::parse(value.as_object().unwrap(), &defaults())
    }

    #[test]
    fn every_field_is_read() {
        let item = parse(&json!({
            "id": 7,
            "command": ["python3", "main.py"],
            "args": ["-v"],
            "stdin": {"base64": "/w=="},
            "env": {"A": "1"},
            "files": {"main.py": "print(1)", "/bin/tool": {"text": "#!/bin/sh\n", "mode": "755"}},
            "outputs": ["out"],
            "image": "python:3.12",
            "workdir": "/work",
            "memory": "64m",
            "memory_swap": 134_217_728,
            "cpus": 0.5,
            "cpuset_cpus": "0",
            "pids_limit": -1,
            "timeout": 3,
            "cpu_time": "2s",
            "output_limit": "none",
            "output_action": "cut",
            "scratch_size": "1m",
            "scratch_inodes": 100,
            "shm_size": "1m",
            "read_bps": null,
            "write_bps": "1m",
        }))
        .unwrap();
        assert_eq!(item.command.unwrap(), ["python3", "main.py"]);
        assert_eq!(item.arguments, ["-v"]);
        assert_eq!(item.stdin.unwrap(), b"\xff");
        assert_eq!(item.variables, [("A".to_owned(), "1".to_owned())]);
        let mut tool = InputFile::new("/bin/tool", "#!/bin/sh\n");
        tool.mode = 0o755;
        assert_eq!(item.files, [tool, InputFile::new("main.py", "print(1)")]);
        assert_eq!(item.outputs, [PathBuf::from("out")]);
        let limits = item.limits.unwrap();
        assert_eq!(limits.memory, Bound::At(64 << 20));
        assert_eq!(limits.memory_swap, Some(Bound::At(128 << 20)));
        assert_eq!(limits.cpus, Bound::At(0.5));
        assert_eq!(limits.pids_limit, Bound::Unlimited);
        assert_eq!(
            limits.timeout,
            Some(Bound::At(std::time::Duration::from_secs(3)))
        );
        assert_eq!(limits.output_limit, Some(Bound::Unlimited));
        assert_eq!(limits.read_bps, None);
    }

    #[test]
    fn an_item_without_limits_of_its_own_has_none() {
        assert!(
            parse(&json!({"id": "a", "memory": null}))
                .unwrap()
                .limits
                .is_none()
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            (
                json!({"comand": ["true"]}),
                "comand",
                "known are id, command",
            ),
            (json!({"volume": "/:/host"}), "volume", "unknown"),
            (json!({"network": "host"}), "network", "unknown"),
            (json!({"unknown": null}), "unknown", "unknown"),
            (json!({"id": ["a"]}), "id", "a text"),
            (json!({"id": 1.5}), "id", "whole number"),
            (json!({"command": []}), "command", "empty"),
            (json!({"command": "ls -l"}), "command", "list of texts"),
            (json!({"args": [1]}), "args", "list of texts"),
            (json!({"stdin": {"base64": "?"}}), "stdin", "base64"),
            (json!({"stdin": {"hex": "00"}}), "stdin", "hex"),
            (json!({"stdin": {}}), "stdin", "text or base64"),
            (json!({"env": {"A": 1}}), "env", "a text"),
            (json!({"files": ["a"]}), "files", "an object"),
            (json!({"files": {"a": 1}}), "files", "a: write a text"),
            (
                json!({"files": {"a": {"text": "", "mode": "4755"}}}),
                "files",
                "mode",
            ),
            (json!({"image": "UPPER:case"}), "image", ""),
            (json!({"memory": "lots"}), "memory", "unit"),
            (json!({"memory": true}), "memory", "number"),
            (json!({"timeout": -1}), "timeout", "duration"),
            (json!({"output_action": "explode"}), "output_action", ""),
        ];
        for (value, field, words) in table {
            let flaw = parse(&value).unwrap_err();
            assert_eq!(flaw.field, field, "{value}");
            assert!(flaw.reason.contains(words), "{value}: {}", flaw.reason);
        }
    }

    #[test]
    fn the_schema_knows_the_same_fields() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/batch-item.schema.json"
        );
        let schema: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut known: Vec<&str> = FIELDS.to_vec();
        known.sort_unstable();
        let mut described: Vec<&String> =
            schema["properties"].as_object().unwrap().keys().collect();
        described.sort_unstable();
        assert_eq!(described, known);
        let validator = jsonschema::validator_for(&schema).unwrap();
        for (item, is_valid) in [
            (json!({}), true),
            (
                json!({"id": 1, "memory": 1, "timeout": "3s", "stdin": "x"}),
                true,
            ),
            (
                json!({"files": {"a": {"base64": "", "mode": "600"}, "b": ""}}),
                true,
            ),
            (json!({"volume": "x"}), false),
            (json!({"command": []}), false),
            (json!([]), false),
        ] {
            assert_eq!(validator.is_valid(&item), is_valid, "{item}");
            if let Value::Object(fields) = &item {
                assert_eq!(Item::parse(fields, &defaults()).is_ok(), is_valid, "{item}");
            }
        }
    }
}
