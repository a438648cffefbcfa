//! Variables in the words of a Dockerfile, and the quotes and escapes around them.
//!
//! The rules are those of `BuildKit`'s `shell.Lex`: `$NAME`, `${NAME}`, `${NAME:-word}`, `${NAME:+word}`, `${NAME:?word}`
//! (and the three without the colon, which ask whether the variable is set instead of whether it is empty), and the
//! removals `${NAME#pattern}`, `##`, `%` and `%%`. Nothing is expanded in single quotes.

/// How deep one `${…}` may lie within another. Real files have two.
const DEPTH: usize = 16;
/// The most bytes that one word may become: what the kernel takes as one argument.
const LENGTH: usize = 128 << 10;

/// Says what a variable is; `None` where it is not set.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Expands a word, and takes its quotes and escapes off.
///
/// # Errors
///
/// Says what is wrong with the word: an open quote or brace, an unknown modifier, or a `:?` that found nothing.
pub(crate) fn expand(word: &str, escape: char, lookup: Lookup<'_>) -> Result<String, String> {
    Expansion::new(word, escape, lookup, Quotes::Removed).all()
}

/// Expands the body of a here-document, where quotes mean nothing.
///
/// # Errors
///
/// As for [`expand`].
pub(crate) fn expand_body(body: &str, escape: char, lookup: Lookup<'_>) -> Result<String, String> {
    Expansion::new(body, escape, lookup, Quotes::Literal).all()
}

/// What quotes do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quotes {
    Removed,
    Literal,
}

struct Expansion<'a> {
    characters: std::iter::Peekable<std::str::Chars<'a>>,
    escape: char,
    lookup: Lookup<'a>,
    quotes: Quotes,
    depth: usize,
    written: usize,
}

impl<'a> Expansion<'a> {
    fn new(text: &'a str, escape: char, lookup: Lookup<'a>, quotes: Quotes) -> Self {
        Self {
            characters: text.chars().peekable(),
            escape,
            lookup,
            quotes,
            depth: 0,
            written: 0,
        }
    }

    fn all(mut self) -> Result<String, String> {
        self.until(None)
    }

    /// Expands up to `stop`, which is taken too, or to the end.
    fn until(&mut self, stop: Option<char>) -> Result<String, String> {
        let mut text = String::new();
        while let Some(&character) = self.characters.peek() {
            if Some(character) == stop {
                self.characters.next();
                return Ok(text);
            }
            match character {
                '\'' if self.quotes == Quotes::Removed => self.single_quoted(&mut text)?,
                '"' if self.quotes == Quotes::Removed => self.double_quoted(&mut text)?,
                '$' => self.variable(&mut text)?,
                _ => {
                    self.characters.next();
                    if character == self.escape {
                        self.escaped(&mut text);
                    } else {
                        text.push(character);
                    }
                }
            }
            if text.len() > LENGTH {
                return Err(format!("it becomes longer than {LENGTH} bytes"));
            }
        }
        match stop {
            None => Ok(text),
            Some(_) => Err("a } is missing".to_owned()),
        }
    }

    /// What follows an escape character.
    fn escaped(&mut self, text: &mut String) {
        match (self.quotes, self.characters.next()) {
            (Quotes::Literal, Some(next)) if next != '$' && next != self.escape => {
                text.push(self.escape);
                text.push(next);
            }
            (Quotes::Literal, None) => text.push(self.escape),
            (_, next) => text.extend(next),
        }
    }

    fn single_quoted(&mut self, text: &mut String) -> Result<(), String> {
        self.characters.next();
        for character in self.characters.by_ref() {
            if character == '\'' {
                return Ok(());
            }
            text.push(character);
        }
        Err("a single quote is not closed".to_owned())
    }

    fn double_quoted(&mut self, text: &mut String) -> Result<(), String> {
        self.characters.next();
        while let Some(&character) = self.characters.peek() {
            match character {
                '"' => {
                    self.characters.next();
                    return Ok(());
                }
                '$' => self.variable(text)?,
                _ => {
                    self.characters.next();
                    if character != self.escape {
                        text.push(character);
                        continue;
                    }
                    match self.characters.next() {
                        Some(next) if next == '"' || next == '$' || next == self.escape => {
                            text.push(next);
                        }
                        next => {
                            text.push(self.escape);
                            text.extend(next);
                        }
                    }
                }
            }
        }
        Err("a double quote is not closed".to_owned())
    }

    /// From a `$` to the end of what it names.
    fn variable(&mut self, text: &mut String) -> Result<(), String> {
        self.characters.next();
        if self.characters.peek() == Some(&'{') {
            self.characters.next();
            self.depth += 1;
            if self.depth > DEPTH {
                return Err(format!("more than {DEPTH} braces within each other"));
            }
            let value = self.braced()?;
            self.depth -= 1;
            return self.put(text, &value);
        }
        let name = self.name();
        if name.is_empty() {
            text.push('$');
            return Ok(());
        }
        let value = (self.lookup)(&name).unwrap_or_default();
        self.put(text, &value)
    }

    fn put(&mut self, text: &mut String, value: &str) -> Result<(), String> {
        self.written = self.written.saturating_add(value.len());
        if self.written > LENGTH {
            return Err(format!("it becomes longer than {LENGTH} bytes"));
        }
        text.push_str(value);
        Ok(())
    }

    /// What is between `${` and `}`.
    fn braced(&mut self) -> Result<String, String> {
        let name = self.name();
        if name.is_empty() {
            return Err("a variable's name is missing after ${".to_owned());
        }
        let value = (self.lookup)(&name);
        let mut modifier = self.characters.next();
        if modifier == Some('}') {
            return Ok(value.unwrap_or_default());
        }
        let asks_for_content = modifier == Some(':');
        if asks_for_content {
            modifier = self.characters.next();
        }
        let is_there = match &value {
            Some(value) => !asks_for_content || !value.is_empty(),
            None => false,
        };
        match modifier {
            Some(kind @ ('-' | '+' | '?')) => {
                let word = self.until(Some('}'))?;
                match (kind, is_there) {
                    ('-' | '?', true) => Ok(value.unwrap_or_default()),
                    ('-', false) | ('+', true) => Ok(word),
                    ('+', false) => Ok(String::new()),
                    _ if word.is_empty() => Err(format!("{name} is not set")),
                    _ => Err(format!("{name}: {word}")),
                }
            }
            Some(kind @ ('#' | '%')) if !asks_for_content => {
                let longest = self.characters.next_if_eq(&kind).is_some();
                let pattern = self.until(Some('}'))?;
                let value = value.unwrap_or_default();
                Ok(remove(&value, &pattern, kind == '#', longest))
            }
            Some(other) => Err(format!(
                "${{{name}{}{other}…}} is not supported",
                if asks_for_content { ":" } else { "" }
            )),
            None => Err("a } is missing".to_owned()),
        }
    }

    /// The name that follows: a word, one digit or more, or one of the shell's special parameters.
    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.characters.peek() {
            Some(&special @ ('@' | '*' | '#')) => {
                self.characters.next();
                name.push(special);
            }
            Some(first) if first.is_ascii_digit() => {
                while let Some(digit) = self.characters.next_if(char::is_ascii_digit) {
                    name.push(digit);
                }
            }
            _ => {
                while let Some(letter) = self
                    .characters
                    .next_if(|c| c.is_ascii_alphanumeric() || *c == '_')
                {
                    name.push(letter);
                }
            }
        }
        name
    }
}

/// Removes the shortest or longest prefix or suffix that fits a pattern of `*` and `?`.
fn remove(value: &str, pattern: &str, prefix: bool, longest: bool) -> String {
    let mut cuts: Vec<usize> = value
        .char_indices()
        .map(|(index, _)| index)
        .chain([value.len()])
        .collect();
    // The shortest prefix is tried from the front, the shortest suffix from the back.
    if prefix == longest {
        cuts.reverse();
    }
    for cut in cuts {
        let (front, back) = value.split_at(cut);
        let (candidate, rest) = if prefix { (front, back) } else { (back, front) };
        if fits(pattern, candidate) {
            return rest.to_owned();
        }
    }
    value.to_owned()
}

/// Whether a text fits a pattern in which `*` stands for anything and `?` for one character. Takes no more steps than
/// the product of the two lengths.
fn fits(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match &mut star {
                Some((at, from)) => {
                    *from += 1;
                    p = *at + 1;
                    t = *from;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn variables(name: &str) -> Option<String> {
        let value = match name {
            "A" => "a",
            "EMPTY" => "",
            "PATH" => "/usr/local/bin",
            "SPACED" => "two words",
            _ => return None,
        };
        Some(value.to_owned())
    }

    #[test]
    fn words_are_expanded_as_docker_expands_them() {
        let table = [
            ("plain", Ok("plain")),
            ("$A", Ok("a")),
            ("${A}b", Ok("ab")),
            ("$Ab", Ok("")),
            ("$A/b", Ok("a/b")),
            ("x$A$A", Ok("xaa")),
            ("$", Ok("$")),
            ("a$", Ok("a$")),
            ("$$", Ok("$$")),
            ("$-", Ok("$-")),
            ("$1", Ok("")),
            ("$NONE", Ok("")),
            ("${NONE:-d}", Ok("d")),
            ("${NONE-d}", Ok("d")),
            ("${EMPTY:-d}", Ok("d")),
            ("${EMPTY-d}", Ok("")),
            ("${A:-d}", Ok("a")),
            ("${NONE:-${A}}", Ok("a")),
            ("${NONE:-$A b}", Ok("a b")),
            ("${NONE:-'}'}", Ok("}")),
            ("${A:+x}", Ok("x")),
            ("${NONE:+x}", Ok("")),
            ("${EMPTY:+x}", Ok("")),
            ("${EMPTY+x}", Ok("x")),
            ("${A:?gone}", Ok("a")),
            ("${NONE:?gone}", Err("NONE: gone")),
            ("${NONE?}", Err("NONE is not set")),
            ("${PATH#*/}", Ok("usr/local/bin")),
            ("${PATH##*/}", Ok("bin")),
            ("${PATH%/*}", Ok("/usr/local")),
            ("${PATH%%/*}", Ok("")),
            ("${PATH#x}", Ok("/usr/local/bin")),
            ("'$A'", Ok("$A")),
            ("\"$A\"", Ok("a")),
            ("\"'$A'\"", Ok("'a'")),
            ("'\"$A\"'", Ok("\"$A\"")),
            (r"\$A", Ok("$A")),
            (r#""\$A""#, Ok("$A")),
            (r#""\a""#, Ok(r"\a")),
            (r"\a", Ok("a")),
            (r#""a\"b""#, Ok("a\"b")),
            (r"a\", Ok("a")),
            ("$SPACED", Ok("two words")),
            ("$Aé", Ok("aé")),
            ("'open", Err("a single quote is not closed")),
            ("\"open", Err("a double quote is not closed")),
            ("${A", Err("a } is missing")),
            ("${A:-x", Err("a } is missing")),
            ("${}", Err("a variable's name is missing after ${")),
            ("${A:=x}", Err("${A:=…} is not supported")),
            ("${A!x}", Err("${A!…} is not supported")),
        ];
        for (word, expected) in table {
            let found = expand(word, '\\', &variables);
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(found, expected, "{word:?}");
        }
        assert_eq!(expand(r"C:\x`$A", '`', &variables).unwrap(), r"C:\x$A");
    }

    #[test]
    fn in_a_here_document_quotes_mean_nothing() {
        let table = [
            ("'$A' \"$A\"", "'a' \"a\""),
            (r"\$A \\ \n", r"$A \ \n"),
            ("it's\n", "it's\n"),
        ];
        for (body, expected) in table {
            assert_eq!(expand_body(body, '\\', &variables).unwrap(), expected);
        }
    }

    #[test]
    fn what_grows_without_end_is_stopped() {
        let long = "x".repeat(LENGTH);
        let lookup = |_: &str| Some(long.clone());
        assert!(expand("$A$A", '\\', &lookup).is_err());
        assert!(expand(&"${A:-".repeat(20), '\\', &variables).is_err());
    }

    proptest! {
        #[test]
        fn no_word_makes_it_panic(word in "\\PC{0,60}", escape in prop_oneof![Just('\\'), Just('`')]) {
            let _ignored = expand(&word, escape, &variables);
            let _ignored = expand_body(&word, escape, &variables);
        }

        #[test]
        fn what_is_made_of_special_characters_makes_it_no_panic(word in "[${}:+?#%'\"\\\\A*-]{0,40}") {
            let _ignored = expand(&word, '\\', &variables);
        }

        #[test]
        fn quoting_protects_every_text(text in "[^']{0,40}") {
            prop_assert_eq!(expand(&format!("'{text}'"), '\\', &variables).unwrap(), text);
        }
    }
}
