//! `--output`: what is collected of the files that the program leaves, and how that is told.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sbxrt::{FileKind, OutputFile, OutputLimits, OutputPath, Outputs};
use serde::Serialize;

use crate::args::RunArguments;
use crate::diagnostics::harmless;
use crate::error::{Error, Result};
use crate::printer::Printer;

/// How many refusals people are told of one by one.
const TOLD: usize = 10;

/// Reads `PATH[:COPY]`. A copy that ends with `/` goes into that directory by its own name.
pub(crate) fn path(text: &str) -> Result<OutputPath, String> {
    let (path, copy) = match text.split(':').collect::<Vec<_>>()[..] {
        [path] => (path, None),
        [_, ""] => return Err("the copy has no name; leave the colon out to make none".to_owned()),
        [path, copy] => (path, Some(copy)),
        _ => return Err("too many colons".to_owned()),
    };
    let path = PathBuf::from(path);
    let Some(name) = path.file_name() else {
        return Err("name a file or a directory below /".to_owned());
    };
    let copy_to = copy.map(|copy| {
        if copy.ends_with('/') {
            Path::new(copy).join(name)
        } else {
            copy.into()
        }
    });
    Ok(OutputPath { path, copy_to })
}

/// What the arguments ask for, with a place for every copy.
pub(crate) fn resolve(arguments: &RunArguments) -> Result<Outputs> {
    let place = |output: &OutputPath| {
        let copy_to = match (
            &output.copy_to,
            &arguments.output_dir,
            output.path.file_name(),
        ) {
            (Some(copy), _, _) => Some(copy.clone()),
            (None, Some(directory), Some(name)) => Some(directory.join(name)),
            _ if arguments.json => None,
            _ => {
                return Err(Error::NoPlaceForOutput {
                    path: output.path.clone(),
                });
            }
        };
        Ok(OutputPath {
            copy_to,
            ..output.clone()
        })
    };
    Ok(Outputs {
        paths: arguments.output.iter().map(place).collect::<Result<_>>()?,
        limits: OutputLimits {
            bytes: arguments.collection.output_size,
            entries: arguments.collection.output_count,
        },
        overwrite: arguments.overwrite,
    })
}

/// Says what was not collected.
pub(crate) fn tell(printer: Printer, files: &[OutputFile]) {
    let mut refused = files
        .iter()
        .filter_map(|file| Some((file, file.refused.as_deref()?)));
    for (file, reason) in refused.by_ref().take(TOLD) {
        let path = file.path.to_string_lossy();
        printer.note(&format!(
            "sbxrt: output {}: {}",
            harmless(&path),
            harmless(reason)
        ));
    }
    match refused.count() {
        0 => {}
        more => printer.note(&format!(
            "sbxrt: {more} more outputs were not collected; --json lists them"
        )),
    }
}

/// An [`OutputFile`] in the document of `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct Entry<'a> {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_base64: Option<String>,
    r#type: FileKind,
    size: u64,
    mode: String,
    sha256: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    copied_to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<&'a str>,
}

impl<'a> Entry<'a> {
    pub(crate) fn new(file: &'a OutputFile) -> Self {
        let (path, path_base64) = text(&file.path);
        let (target, target_base64) = file.target.as_deref().map(text).unzip();
        Self {
            path,
            path_base64,
            r#type: file.kind,
            size: file.size,
            mode: format!("{:04o}", file.mode),
            sha256: file.sha256.as_deref(),
            target,
            target_base64: target_base64.flatten(),
            copied_to: file.copied_to.as_deref().map(|path| text(path).0),
            refused: file.refused.as_deref(),
        }
    }
}

/// A path as text, and its bytes where the text does not tell them.
fn text(path: &Path) -> (String, Option<String>) {
    match path.to_str() {
        Some(text) => (text.to_owned(), None),
        None => (
            path.to_string_lossy().into_owned(),
            Some(STANDARD.encode(path.as_os_str().as_bytes())),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_copy_has_a_name_or_a_directory_to_go_to() {
        let table = [
            ("out", Some(("out", None))),
            ("/out/x:y", Some(("/out/x", Some("y")))),
            ("/out/x:y/", Some(("/out/x", Some("y/x")))),
            ("x:/a/b", Some(("x", Some("/a/b")))),
            ("x:", None),
            ("/", None),
            ("/x/..:y", None),
            (":y", None),
            ("a:b:c", None),
            ("", None),
        ];
        for (text, expected) in table {
            let expected = expected.map(|(path, copy): (&str, Option<&str>)| OutputPath {
                path: path.into(),
                copy_to: copy.map(Into::into),
            });
            assert_eq!(path(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn names_that_are_not_text_are_given_as_bytes_too() {
        let odd = PathBuf::from(OsString::from_vec(b"/out/a\xff".to_vec()));
        let file = OutputFile {
            path: odd.clone(),
            kind: FileKind::Symlink,
            size: 0,
            mode: 0o777,
            sha256: None,
            target: Some(odd),
            copied_to: None,
            refused: Some("the link leads out of what is collected".to_owned()),
        };
        assert_eq!(
            serde_json::to_value(Entry::new(&file)).unwrap(),
            json!({
                "path": "/out/a\u{fffd}",
                "path_base64": "L291dC9h/w==",
                "type": "symlink",
                "size": 0,
                "mode": "0777",
                "sha256": null,
                "target": "/out/a\u{fffd}",
                "target_base64": "L291dC9h/w==",
                "refused": "the link leads out of what is collected",
            })
        );
    }
}
