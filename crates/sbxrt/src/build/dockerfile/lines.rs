//! From the bytes of a Dockerfile to its logical lines: directives, comments, continuations and here-documents.
//!
//! Follows the parser of `BuildKit` (`frontend/dockerfile/parser`), which is what "as Docker reads it" means today.

use super::words::{raw_words, unquoted};
use super::{DockerfileError, Heredoc};

/// The instructions whose here-documents are read.
const WITH_HEREDOCS: [&str; 3] = ["RUN", "COPY", "ADD"];

/// A logical line: what is left when continuations are joined and comments are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Where it begins, counted from 1.
    pub(super) number: usize,
    pub(super) text: String,
    pub(super) heredocs: Vec<Heredoc>,
}

/// What the file says before its first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Directives {
    /// `\`, or a backtick where `# escape=` says so.
    pub(super) escape: char,
}

/// Reads all logical lines.
pub(super) fn read(text: &str) -> Result<(Directives, Vec<Line>), DockerfileError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let physical: Vec<&str> = text
        .split('\n')
        .map(|line| line.strip_suffix('\r').unwrap_or(line))
        .collect();
    let directives = read_directives(&physical)?;
    let escape = directives.escape;
    let mut lines = Vec::new();
    let mut next = 0;
    while next < physical.len() {
        let number = next + 1;
        let first = physical[next].trim_start();
        next += 1;
        if first.is_empty() || first.starts_with('#') {
            continue;
        }
        let (start, mut goes_on) = continuation(first, escape);
        let mut joined = start.to_owned();
        while goes_on && next < physical.len() {
            let raw = physical[next];
            next += 1;
            // A comment or an empty line within does not end it.
            if raw.trim().is_empty() || raw.trim_start().starts_with('#') {
                continue;
            }
            let (part, more) = continuation(raw, escape);
            joined.push_str(part);
            goes_on = more;
        }
        if joined.trim().is_empty() {
            continue;
        }
        let mut heredocs = Vec::new();
        for start in heredocs_of(&joined, escape) {
            let (heredoc, after) = read_heredoc(start, &physical, next)
                .map_err(|name| unterminated(number, &joined, &name))?;
            heredocs.push(heredoc);
            next = after;
        }
        lines.push(Line {
            number,
            text: joined.trim().to_owned(),
            heredocs,
        });
    }
    Ok((directives, lines))
}

fn unterminated(line: usize, text: &str, name: &str) -> DockerfileError {
    DockerfileError::new(line, text, format!("the here-document {name:?} has no end"))
        .with_hint(format!("put a line with nothing but {name} behind it"))
}

/// Reads the parser directives: comments of the form `# key=value` before anything else.
fn read_directives(lines: &[&str]) -> Result<Directives, DockerfileError> {
    let mut escape = None;
    let mut seen = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some((key, value)) = directive(line) else {
            break;
        };
        let key = key.to_ascii_lowercase();
        // `syntax` names an image that would read the file for Docker. Nothing is fetched for it: what the file says is
        // read by the rules of the syntax that is stable, and anything else is an error at its line.
        if !["escape", "syntax", "check"].contains(&key.as_str()) {
            break;
        }
        if seen.contains(&key) {
            return Err(DockerfileError::new(
                index + 1,
                line,
                format!("the directive {key} occurs twice"),
            ));
        }
        if key == "escape" {
            escape = Some(match value {
                "\\" => '\\',
                "`" => '`',
                _ => {
                    return Err(DockerfileError::new(
                        index + 1,
                        line,
                        format!("{value:?} cannot be the escape character"),
                    )
                    .with_hint("write `# escape=\\` or `# escape=` with a backtick"));
                }
            });
        }
        seen.push(key);
    }
    Ok(Directives {
        escape: escape.unwrap_or('\\'),
    })
}

fn directive(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.strip_prefix('#')?.split_once('=')?;
    let (key, value) = (key.trim(), value.trim());
    let is_key = key.starts_with(|c: char| c.is_ascii_alphabetic())
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (is_key && !value.is_empty()).then_some((key, value))
}

/// The line without the character that continues it, and whether it is continued. A doubled character continues
/// nothing; blanks behind it do not count.
fn continuation(line: &str, escape: char) -> (&str, bool) {
    let trimmed = line.trim_end_matches([' ', '\t']);
    match trimmed.strip_suffix(escape) {
        Some(before) if !before.ends_with(escape) => (before, true),
        _ => (line, false),
    }
}

/// A here-document that a line asks for.
#[derive(Debug)]
struct Start {
    name: String,
    expand: bool,
    chomp: bool,
}

fn heredocs_of(line: &str, escape: char) -> Vec<Start> {
    let instruction = line.split_whitespace().next().unwrap_or_default();
    if !WITH_HEREDOCS
        .iter()
        .any(|known| known.eq_ignore_ascii_case(instruction))
    {
        return Vec::new();
    }
    raw_words(line, escape)
        .iter()
        .filter_map(|word| heredoc(word))
        .collect()
}

/// Reads a word of the form `[N]<<[-]NAME`.
fn heredoc(word: &str) -> Option<Start> {
    let rest = word
        .trim_start_matches(|c: char| c.is_ascii_digit())
        .strip_prefix("<<")?;
    let (rest, chomp) = match rest.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    // Here the escape character is always the backslash: the word is the shell's.
    let name = unquoted(rest, '\\');
    if name.is_empty() || name.contains(char::is_whitespace) {
        return None;
    }
    Some(Start {
        expand: name == rest,
        name,
        chomp,
    })
}

/// Whether a word of a command is the beginning of a here-document.
pub(crate) fn is_heredoc(word: &str) -> bool {
    heredoc(word).is_some()
}

fn read_heredoc(start: Start, lines: &[&str], mut next: usize) -> Result<(Heredoc, usize), String> {
    let mut content = String::new();
    while let Some(line) = lines.get(next) {
        next += 1;
        let line = if start.chomp {
            line.trim_start_matches('\t')
        } else {
            line
        };
        if line == start.name {
            let heredoc = Heredoc {
                name: start.name,
                content,
                expand: start.expand,
            };
            return Ok((heredoc, next));
        }
        content.push_str(line);
        content.push('\n');
    }
    Err(start.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(file: &str) -> Vec<(usize, String)> {
        let (_, lines) = read(file).unwrap();
        lines
            .into_iter()
            .map(|line| (line.number, line.text))
            .collect()
    }

    #[test]
    fn lines_are_joined_as_docker_joins_them() {
        let table: &[(&str, &[(usize, &str)])] = &[
            ("FROM a\nRUN b\n", &[(1, "FROM a"), (2, "RUN b")]),
            ("RUN a \\\n  b", &[(1, "RUN a   b")]),
            ("RUN a \\  \n b", &[(1, "RUN a  b")]),
            ("RUN a\\\nb", &[(1, "RUN ab")]),
            ("RUN a \\\n# comment\n\n  # too\nb", &[(1, "RUN a b")]),
            ("RUN a \\\\\nRUN b", &[(1, "RUN a \\\\"), (2, "RUN b")]),
            ("# escape=`\nRUN a `\nb\\\n", &[(2, "RUN a b\\")]),
            ("#escape = `\nRUN a `\nb", &[(2, "RUN a b")]),
            (
                "# first\n# escape=`\nRUN a `\nRUN b",
                &[(3, "RUN a `"), (4, "RUN b")],
            ),
            (
                "\n\n  RUN indented # no comment",
                &[(3, "RUN indented # no comment")],
            ),
            ("RUN a \\", &[(1, "RUN a")]),
            (
                "\u{feff}FROM a\r\nRUN b \\\r\n c\r\n",
                &[(1, "FROM a"), (2, "RUN b  c")],
            ),
            ("", &[]),
            ("\\\n\\\n", &[]),
        ];
        for (file, expected) in table {
            let expected: Vec<_> = expected
                .iter()
                .map(|(n, t)| (*n, (*t).to_owned()))
                .collect();
            assert_eq!(texts(file), expected, "{file:?}");
        }
    }

    #[test]
    fn heredocs_are_read_to_their_end() {
        let (_, lines) = read(
            "RUN <<EOF\necho a\n  b # c \\\nEOF\nCOPY <<-\"x\" <<y /d\n\tone\n\tx\n\ttwo\ny\nENV A=<<EOF\nRUN echo \"<<EOF\"",
        )
        .unwrap();
        let found: Vec<_> = lines
            .iter()
            .map(|line| (line.number, line.heredocs.clone()))
            .collect();
        let heredoc = |name: &str, content: &str, expand| Heredoc {
            name: name.to_owned(),
            content: content.to_owned(),
            expand,
        };
        let expected = [
            (1, vec![heredoc("EOF", "echo a\n  b # c \\\n", true)]),
            (
                5,
                vec![heredoc("x", "one\n", false), heredoc("y", "\ttwo\n", true)],
            ),
            (10, vec![]),
            (11, vec![]),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_has_no_end_is_an_error_at_its_line() {
        let error = read("FROM a\nRUN <<EOF\necho\n EOF\n").unwrap_err();
        assert_eq!(error.line, 2);
        assert!(error.reason.contains("no end"), "{error}");
        let error = read("# escape=`\n# escape=`\nFROM a").unwrap_err();
        assert_eq!(error.line, 2);
        assert!(read("# escape=x\nFROM a").is_err());
    }
}
