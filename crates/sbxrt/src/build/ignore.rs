//! `.dockerignore`: what of the context is not there for a build.
//!
//! The rules are moby's: the last pattern that fits a path, or a directory above it, decides; `!` brings back.

use sbxrt_image::{Filter, Verdict};

use super::pattern::Pattern;

/// The most bytes of a `.dockerignore`.
pub(crate) const MAXIMUM_BYTES: u64 = 1 << 20;
/// The most patterns in one.
const MAX_PATTERNS: usize = 10_000;

/// The patterns of a `.dockerignore`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ignore {
    rules: Vec<Rule>,
    /// Whether any of them does.
    brings_back: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    pattern: Pattern,
    brings_back: bool,
}

impl Ignore {
    /// Reads a `.dockerignore`.
    ///
    /// # Errors
    ///
    /// The number of the line and what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, (usize, String)> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text.lines().enumerate();
        let patterns = lines.filter(|(_, line)| !line.starts_with('#'));
        Self::new(patterns.map(|(index, line)| (index + 1, line)))
    }

    fn new<'a>(patterns: impl Iterator<Item = (usize, &'a str)>) -> Result<Self, (usize, String)> {
        let mut ignore = Self::default();
        for (number, line) in patterns {
            let line = line.trim();
            let (pattern, brings_back) = match line.strip_prefix('!') {
                Some(pattern) => (pattern.trim(), true),
                None => (line, false),
            };
            if line.is_empty() {
                continue;
            }
            if pattern.is_empty() {
                return Err((number, "a ! stands alone".to_owned()));
            }
            let pattern = clean(pattern);
            if pattern.is_empty() && !brings_back {
                // `.` or `/` alone, which moby lets match nothing.
                continue;
            }
            let pattern = Pattern::parse(&pattern, true).map_err(|reason| (number, reason))?;
            ignore.rules.push(Rule {
                pattern,
                brings_back,
            });
            ignore.brings_back |= brings_back;
            if ignore.rules.len() > MAX_PATTERNS {
                return Err((
                    number,
                    format!("there are more than {MAX_PATTERNS} patterns"),
                ));
            }
        }
        Ok(ignore)
    }

    /// Whether a path of the context is left out.
    pub(crate) fn excludes(&self, path: &[u8]) -> bool {
        let mut excluded = false;
        for rule in &self.rules {
            // A rule that would change nothing need not be looked at.
            if rule.brings_back == excluded && rule.fits(path) {
                excluded = !rule.brings_back;
            }
        }
        excluded
    }
}

impl Rule {
    /// Whether it fits a path or a directory above it.
    fn fits(&self, path: &[u8]) -> bool {
        let above = path
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'/')
            .map(|(slash, _)| &path[..slash]);
        self.pattern.fits(path) || above.into_iter().any(|above| self.pattern.fits(above))
    }
}

impl Filter for Ignore {
    fn verdict(&self, path: &[u8], is_directory: bool) -> Verdict {
        match (self.excludes(path), is_directory && self.brings_back) {
            (false, _) => Verdict::Keep,
            (true, true) => Verdict::Descend,
            (true, false) => Verdict::Skip,
        }
    }
}

/// `path.Clean` without a slash in front.
fn clean(pattern: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in pattern.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if pattern.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_left_out_as_in_moby() {
        let table: &[(&str, &str, bool)] = &[
            ("", "a", false),
            ("a", "a", true),
            ("a", "a/b/c", true),
            ("a", "b/a", false),
            ("/a/", "a/b", true),
            ("./a", "a", true),
            ("a/../b", "b", true),
            ("# a\nb", "a", false),
            ("  a  ", "a", true),
            ("*.md\n!README.md", "README.md", false),
            ("*.md\n!README.md", "NEWS.md", true),
            (
                "*.md\n!README*.md\nREADME-secret.md",
                "README-secret.md",
                true,
            ),
            ("*", "a/b", true),
            ("*\n!a", "a/b", false),
            ("*\n! a/b", "a/b", false),
            ("*\n!a/b", "a/c", true),
            ("**/*.o", "x/y/z.o", true),
            ("**/node_modules", "x/node_modules/y", true),
            ("docs\n!docs/README.md", "docs/README.md", false),
            ("\u{feff}a", "a", true),
            (".", "a", false),
            ("/", "a", false),
            ("a?c", "abc", true),
            ("!a", "a", false),
        ];
        for (file, path, expected) in table {
            let ignore = Ignore::parse(file).unwrap();
            assert_eq!(
                ignore.excludes(path.as_bytes()),
                *expected,
                "{file:?} {path}"
            );
        }
        assert_eq!(Ignore::parse("a\n!").unwrap_err().0, 2);
        assert_eq!(Ignore::parse("a\n[").unwrap_err().0, 2);
    }

    #[test]
    fn a_directory_is_looked_into_only_for_what_is_brought_back() {
        let plain = Ignore::parse("a").unwrap();
        assert_eq!(plain.verdict(b"a", true), Verdict::Skip);
        let back = Ignore::parse("a\n!a/b").unwrap();
        assert_eq!(back.verdict(b"a", true), Verdict::Descend);
        assert_eq!(back.verdict(b"a/b", false), Verdict::Keep);
        assert_eq!(back.verdict(b"a/c", false), Verdict::Skip);
    }
}
