//! `--env` and `--env-file`.

use std::io;
use std::path::Path;

use sbxrt::image::read_named_file;

use crate::error::{Error, Result};

/// The largest environment file that is read; the kernel takes a quarter of the stack, 2 MiB, for everything together.
const FILE_LIMIT: u64 = 4 << 20;

/// A variable for the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variable {
    name: String,
    /// None: the value is this process's own.
    value: Option<String>,
}

/// Reads `NAME=VALUE` or `NAME`.
pub(crate) fn variable(text: &str) -> Result<Variable, String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    if name.is_empty() {
        return Err("write NAME=VALUE, or NAME to pass a variable on".to_owned());
    }
    Ok(Variable {
        name: name.to_owned(),
        value,
    })
}

/// Reads the files and puts the variables behind them; the later one counts. A variable that is to be passed on and is
/// not set stays unset, as in Docker.
pub(crate) fn collect(
    files: &[impl AsRef<Path>],
    variables: &[Variable],
) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for file in files {
        all.extend(read(file.as_ref())?);
    }
    all.extend_from_slice(variables);
    let mut collected = Vec::new();
    for Variable { name, value } in all {
        match value {
            Some(value) => collected.push((name, value)),
            None => match std::env::var(&name) {
                Ok(value) => collected.push((name, value)),
                Err(std::env::VarError::NotPresent) => {}
                Err(std::env::VarError::NotUnicode(_)) => {
                    return Err(Error::VariableNotText { name });
                }
            },
        }
    }
    Ok(collected)
}

fn read(path: &Path) -> Result<Vec<Variable>> {
    let failed = |source| Error::EnvironmentFile {
        path: path.to_owned(),
        source,
    };
    let bytes = read_named_file(path, FILE_LIMIT).map_err(failed)?;
    let text = String::from_utf8(bytes)
        .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    parse(&text).map_err(|(line, reason)| Error::EnvironmentLine {
        path: path.to_owned(),
        line,
        reason,
    })
}

/// Reads a file in Docker's format: a variable a line, `#` begins a comment, nothing is quoted. An error has its line.
fn parse(text: &str) -> Result<Vec<Variable>, (usize, String)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut variables = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let parsed = variable(line).and_then(|parsed| {
            if parsed.name.contains(char::is_whitespace) {
                return Err(format!("the name {:?} contains white space", parsed.name));
            }
            Ok(parsed)
        });
        variables.push(parsed.map_err(|reason| (index + 1, reason))?);
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, value: &str) -> Variable {
        Variable {
            name: name.to_owned(),
            value: Some(value.to_owned()),
        }
    }

    fn passed_on(name: &str) -> Variable {
        Variable {
            name: name.to_owned(),
            value: None,
        }
    }

    #[test]
    fn variables_are_set_or_passed_on() {
        let table = [
            ("A=1", Some(set("A", "1"))),
            ("A=", Some(set("A", ""))),
            ("A=b=c", Some(set("A", "b=c"))),
            ("A", Some(passed_on("A"))),
            ("=1", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(variable(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn files_are_read_as_docker_reads_them() {
        let table: [(&str, Result<Vec<Variable>, usize>); 7] = [
            ("", Ok(vec![])),
            (
                "# comment\n\n  A=1\nB\n",
                Ok(vec![set("A", "1"), passed_on("B")]),
            ),
            (
                "A=\"quoted\" # kept",
                Ok(vec![set("A", "\"quoted\" # kept")]),
            ),
            ("\u{feff}A=1\r\nB=2", Ok(vec![set("A", "1"), set("B", "2")])),
            ("A=1\n=2", Err(2)),
            ("export A=1", Err(1)),
            ("A B", Err(1)),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text).map_err(|(line, _)| line), expected, "{text:?}");
        }
    }

    #[test]
    fn flags_count_over_files_and_unset_variables_stay_unset() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("env");
        std::fs::write(&file, "A=file\nB=file\nSBXRT_TEST_UNSET_VARIABLE\n").unwrap();
        let collected =
            collect(&[&file], &[set("A", "flag"), passed_on("CARGO_PKG_NAME")]).unwrap();
        let expected = [
            ("A", "file"),
            ("B", "file"),
            ("A", "flag"),
            ("CARGO_PKG_NAME", "sbxrt-cli"),
        ];
        assert_eq!(
            collected,
            expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }
}
