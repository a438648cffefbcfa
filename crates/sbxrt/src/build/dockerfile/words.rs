//! The words of a line, by the shell-like rules that Docker has for them.

/// Splits at blanks that are not quoted. Quotes and escapes stay in the words: what they mean is decided when the
/// variables are known.
pub(super) fn raw_words(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match quote {
            None if character.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if character == '\'' || character == '"' => quote = Some(character),
            Some(open) if character == open => quote = None,
            _ => {}
        }
        word.push(character);
        // Within single quotes it escapes nothing.
        if character == escape
            && quote != Some('\'')
            && let Some(escaped) = characters.next()
        {
            word.push(escaped);
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// A word without its quotes and escapes, its variables left alone.
pub(super) fn unquoted(word: &str, escape: char) -> String {
    let mut text = String::new();
    let mut quote = None;
    let mut characters = word.chars();
    while let Some(character) = characters.next() {
        match quote {
            None if character == '\'' || character == '"' => quote = Some(character),
            Some(open) if character == open => quote = None,
            Some('\'') => text.push(character),
            _ if character == escape => text.extend(characters.next()),
            _ => text.push(character),
        }
    }
    text
}

/// Takes the flags (`--name` or `--name=value`) off the front of an instruction's arguments; also returns the rest.
pub(super) fn take_flags(text: &str, escape: char) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = text.trim_start();
    while rest.starts_with("--") {
        let mut end = rest.len();
        let mut quote = None;
        let mut characters = rest.char_indices();
        while let Some((index, character)) = characters.next() {
            match quote {
                None if character.is_whitespace() => {
                    end = index;
                    break;
                }
                None if character == '\'' || character == '"' => quote = Some(character),
                Some(open) if character == open => quote = None,
                _ if character == escape => {
                    characters.next();
                }
                _ => {}
            }
        }
        let (flag, after) = rest.split_at(end);
        rest = after.trim_start();
        if flag == "--" {
            break;
        }
        flags.push(unquoted(flag, escape));
    }
    (flags, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_end_at_blanks_that_are_not_quoted() {
        let table: &[(&str, &[&str])] = &[
            ("a b\tc", &["a", "b", "c"]),
            ("a='b c' d", &["a='b c'", "d"]),
            (r#"a="b \" c" d"#, &[r#"a="b \" c""#, "d"]),
            (r"a=b\ c d", &[r"a=b\ c", "d"]),
            (r"'a\' b", &[r"'a\'", "b"]),
            ("  ", &[]),
            ("\"open a", &["\"open a"]),
        ];
        for (text, expected) in table {
            assert_eq!(raw_words(text, '\\'), *expected, "{text:?}");
        }
        assert_eq!(raw_words("C:\\x` y", '`'), ["C:\\x` y"]);
    }

    #[test]
    fn flags_come_first_and_end_at_two_dashes() {
        let table: &[(&str, &[&str], &str)] = &[
            ("--a=b --c d --e", &["--a=b", "--c"], "d --e"),
            ("--from='x y' z", &["--from=x y"], "z"),
            ("-- --a b", &[], "--a b"),
            ("a --b", &[], "a --b"),
            ("", &[], ""),
            ("--a", &["--a"], ""),
        ];
        for (text, flags, rest) in table {
            let (found, left) = take_flags(text, '\\');
            assert_eq!(
                (found.as_slice(), left),
                (
                    &flags.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>()[..],
                    *rest
                ),
                "{text:?}"
            );
        }
    }

    #[test]
    fn quotes_and_escapes_can_be_taken_off() {
        let table = [
            ("plain", "plain"),
            ("'a'\"b\"c", "abc"),
            (r"a\'b", "a'b"),
            (r"'a\b'", r"a\b"),
        ];
        for (word, expected) in table {
            assert_eq!(unquoted(word, '\\'), expected, "{word:?}");
        }
    }
}
