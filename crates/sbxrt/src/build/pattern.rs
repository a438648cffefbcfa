//! Patterns of paths: those of `.dockerignore` (moby's `patternmatcher`) and the wildcards of `COPY` (Go's `path.Match`).

/// The longest pattern.
const MAX_LENGTH: usize = 4096;

/// A pattern of paths, without a slash at either end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern(Vec<Token>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// This byte.
    Byte(u8),
    /// `?`: one character but a slash.
    One,
    /// `*`: anything without a slash.
    Any,
    /// `**/`: any number of directories.
    Directories,
    /// `**` at the end or before something else than a slash: anything.
    Anything,
    /// `[...]`: one character of some.
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Pattern {
    /// Reads a pattern. `**` has its meaning only where `across_directories` says so.
    pub(crate) fn parse(text: &str, across_directories: bool) -> Result<Self, String> {
        if text.len() > MAX_LENGTH {
            return Err(format!("the pattern is longer than {MAX_LENGTH} bytes"));
        }
        let characters: Vec<char> = text.chars().collect();
        let mut tokens = Vec::new();
        let mut index = 0;
        while let Some(&character) = characters.get(index) {
            index += 1;
            match character {
                '*' if across_directories && characters.get(index) == Some(&'*') => {
                    while characters.get(index) == Some(&'*') {
                        index += 1;
                    }
                    if characters.get(index) == Some(&'/') {
                        index += 1;
                        tokens.push(Token::Directories);
                    } else {
                        tokens.push(Token::Anything);
                    }
                }
                '*' => {
                    if tokens.last() != Some(&Token::Any) {
                        tokens.push(Token::Any);
                    }
                }
                '?' => tokens.push(Token::One),
                '[' => {
                    let (class, after) = class(&characters, index)?;
                    tokens.push(class);
                    index = after;
                }
                '\\' => {
                    let escaped = characters
                        .get(index)
                        .ok_or("the pattern ends in a backslash")?;
                    index += 1;
                    literal(&mut tokens, *escaped);
                }
                other => literal(&mut tokens, other),
            }
        }
        Ok(Self(tokens))
    }

    /// Whether the whole of a path fits. Takes no more steps than the product of the two lengths.
    pub(crate) fn fits(&self, path: &[u8]) -> bool {
        // reachable[i]: the tokens so far fit the first i bytes.
        let mut reachable = vec![false; path.len() + 1];
        reachable[0] = true;
        for token in &self.0 {
            let mut next = vec![false; path.len() + 1];
            match token {
                Token::Byte(byte) => {
                    for (index, found) in path.iter().enumerate() {
                        next[index + 1] = reachable[index] && found == byte;
                    }
                }
                Token::One | Token::Class { .. } => {
                    for index in 0..path.len() {
                        if !reachable[index] {
                            continue;
                        }
                        let (character, length) = character(&path[index..]);
                        if token.takes(character) {
                            next[index + length] = true;
                        }
                    }
                }
                Token::Any => {
                    let mut open = false;
                    for index in 0..=path.len() {
                        open |= reachable[index];
                        next[index] = open;
                        if path.get(index) == Some(&b'/') {
                            open = false;
                        }
                    }
                }
                Token::Anything => {
                    let mut open = false;
                    for index in 0..=path.len() {
                        open |= reachable[index];
                        next[index] = open;
                    }
                }
                Token::Directories => {
                    let mut open = false;
                    for index in 0..=path.len() {
                        // None of them, or some, each with its slash.
                        next[index] =
                            reachable[index] || (open && index > 0 && path[index - 1] == b'/');
                        open |= reachable[index];
                    }
                }
            }
            reachable = next;
        }
        reachable[path.len()]
    }
}

impl Token {
    fn takes(&self, character: char) -> bool {
        match self {
            Self::One => character != '/',
            Self::Class { negated, ranges } => {
                let is_in = ranges
                    .iter()
                    .any(|(low, high)| (*low..=*high).contains(&character));
                character != '/' && is_in != *negated
            }
            _ => false,
        }
    }
}

fn literal(tokens: &mut Vec<Token>, character: char) {
    let mut buffer = [0; 4];
    tokens.extend(character.encode_utf8(&mut buffer).bytes().map(Token::Byte));
}

/// The first character of some bytes, and its length. What is no UTF-8 is a character a byte.
fn character(bytes: &[u8]) -> (char, usize) {
    for length in 1..=bytes.len().min(4) {
        if let Ok(text) = std::str::from_utf8(&bytes[..length])
            && let Some(character) = text.chars().next()
        {
            return (character, length);
        }
    }
    (char::REPLACEMENT_CHARACTER, 1)
}

/// Reads from behind a `[`; also returns where it goes on.
fn class(characters: &[char], mut index: usize) -> Result<(Token, usize), String> {
    let open = || "a [ of the pattern is not closed".to_owned();
    let negated = matches!(characters.get(index), Some('^' | '!'));
    if negated {
        index += 1;
    }
    let mut ranges = Vec::new();
    loop {
        let mut low = *characters.get(index).ok_or_else(open)?;
        index += 1;
        if low == ']' && !ranges.is_empty() {
            return Ok((Token::Class { negated, ranges }, index));
        }
        if low == '\\' {
            low = *characters.get(index).ok_or_else(open)?;
            index += 1;
        }
        let mut high = low;
        if characters.get(index) == Some(&'-') && characters.get(index + 1) != Some(&']') {
            index += 1;
            high = *characters.get(index).ok_or_else(open)?;
            index += 1;
            if high == '\\' {
                high = *characters.get(index).ok_or_else(open)?;
                index += 1;
            }
            if high < low {
                return Err(format!("{low}-{high} in the pattern is no range"));
            }
        }
        ranges.push((low, high));
    }
}

/// Whether a text has wildcards.
pub(crate) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_fit_as_in_moby() {
        // From moby's patternmatcher tests, those without parents.
        let table = [
            ("**", "file", true),
            ("**", "dir/file", true),
            ("**/", "dir/", true),
            ("**/**", "dir/file", true),
            ("dir/**", "dir/file", true),
            ("dir/**", "dir/dir2/file", true),
            ("**/dir2/*", "dir/dir2/file", true),
            ("**/dir2/**", "dir/dir2/dir2/file", true),
            ("**file", "file", true),
            ("**file", "dir/file", true),
            ("**/file", "dir/dir/file", true),
            ("**/file", "file", true),
            ("**/file*", "dir/dir/file.txt", true),
            ("**/file*txt", "dir/dir/file.txt", true),
            ("**/**/*.txt", "dir/dir/file.txt", true),
            ("**/*.txt2", "dir/dir/file.txt", false),
            ("a**/*.txt", "a/file.txt", true),
            ("a**/*.txt", "a/dir/file.txt", true),
            ("a/*.txt", "a/dir/file.txt", false),
            ("a/*.txt", "a/file.txt", true),
            ("a/*.txt**", "a/file.txt", true),
            ("a[b-d]e", "ae", false),
            ("a[b-d]e", "ace", true),
            ("a[b-d]e", "aae", false),
            ("a[^b-d]e", "aze", true),
            (".*", ".foo", true),
            (".*", "foo", false),
            ("abc.def", "abcZdef", false),
            ("abc?def", "abcZdef", true),
            ("a\\*b", "a*b", true),
            ("a\\b", "ab", true),
            ("**/foo/bar", "foo/bar", true),
            ("abc/**", "abc", false),
            ("a(b)c/def", "a(b)c/def", true),
            ("a.|)$(}+{bc", "a.|)$(}+{bc", true),
            ("*", "é", true),
            ("?", "é", true),
            ("[à-ü]", "é", true),
            ("x*", "x/y", false),
            ("[]a]", "]", true),
        ];
        for (pattern, path, expected) in table {
            let parsed = Pattern::parse(pattern, true).unwrap();
            assert_eq!(parsed.fits(path.as_bytes()), expected, "{pattern} {path}");
        }
        for broken in ["[", "[a", "a\\", "[b-a]", "[a-"] {
            assert!(Pattern::parse(broken, true).is_err(), "{broken}");
        }
        let star = Pattern::parse("a**b", false).unwrap();
        assert!(star.fits(b"axb") && !star.fits(b"a/b"));
    }

    proptest! {
        #[test]
        fn no_pattern_makes_it_panic(pattern in "[*?a/\\[\\]^!\\\\é-]{0,20}", path in "[a/é]{0,20}") {
            if let Ok(pattern) = Pattern::parse(&pattern, true) {
                pattern.fits(path.as_bytes());
            }
        }

        #[test]
        fn what_has_no_wildcards_fits_itself_alone(path in "[a-z/.]{1,20}", other in "[a-z/.]{1,20}") {
            let pattern = Pattern::parse(&path, true).unwrap();
            prop_assert!(pattern.fits(path.as_bytes()));
            prop_assert_eq!(pattern.fits(other.as_bytes()), path == other);
        }
    }
}
