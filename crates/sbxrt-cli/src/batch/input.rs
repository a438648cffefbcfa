//! The lines of the input, read by a thread that is never far ahead of the runs.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::Path;

use tokio::sync::mpsc;

use crate::error::{Error, Result};

/// The longest line: twice what the files of an item may have. What is longer is passed over.
const LINE_LIMIT: usize = 48 << 20;

/// A line that is not empty.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Its number, from 1.
    pub(crate) number: u64,
    /// None where it is longer than any item.
    pub(crate) bytes: Option<Vec<u8>>,
    /// How much of the input is read with it.
    pub(crate) position: u64,
}

/// Where items come from.
#[derive(Debug)]
pub(crate) struct Input {
    source: BufReader<File>,
    /// How long it is, where that is known.
    pub(crate) length: Option<u64>,
}

impl Input {
    /// Opens the file, or standard input for `-`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::BatchInput {
            path: path.to_owned(),
            source,
        };
        let file = if path == Path::new("-") {
            let stdin = io::stdin();
            let owned = std::os::fd::AsFd::as_fd(&stdin).try_clone_to_owned();
            File::from(owned.map_err(failed)?)
        } else {
            File::open(path).map_err(failed)?
        };
        let found = file.metadata().map_err(failed)?;
        if found.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        Ok(Self {
            length: found.is_file().then_some(found.len()),
            source: BufReader::with_capacity(256 << 10, file),
        })
    }

    /// Starts reading. The channel holds `ahead` lines; whoever drops it ends the reading.
    pub(crate) fn start(self, ahead: usize) -> Result<mpsc::Receiver<io::Result<Line>>> {
        let (sender, receiver) = mpsc::channel(ahead);
        let mut source = self.source;
        let read = move || {
            let (mut number, mut position) = (0, 0);
            loop {
                let line = next(&mut source, LINE_LIMIT);
                let line = match line {
                    Ok(None) => return,
                    Ok(Some((bytes, length))) => {
                        number += 1;
                        position += length;
                        if bytes
                            .as_ref()
                            .is_some_and(|bytes| bytes.trim_ascii().is_empty())
                        {
                            continue;
                        }
                        Ok(Line {
                            number,
                            bytes,
                            position,
                        })
                    }
                    Err(error) => Err(error),
                };
                let is_over = line.is_err();
                if sender.blocking_send(line).is_err() || is_over {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("input".to_owned())
            .spawn(read)
            .map_err(|source| Error::System {
                step: "start a thread",
                source,
            })?;
        Ok(receiver)
    }
}

/// The next line and its length with its end; no bytes where there are more than `limit`.
fn next(source: &mut impl BufRead, limit: usize) -> io::Result<Option<(Option<Vec<u8>>, u64)>> {
    let mut bytes = Vec::new();
    let mut length = source
        .take(limit as u64 + 1)
        .read_until(b'\n', &mut bytes)? as u64;
    if length == 0 {
        return Ok(None);
    }
    if bytes.ends_with(b"\n") || length <= limit as u64 {
        return Ok(Some((Some(bytes), length)));
    }
    drop(bytes);
    length += source.skip_until(b'\n')? as u64;
    Ok(Some((None, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_too_long_are_passed_over() {
        let mut source = &b"ab\n\nabcdef\nabcd\nx"[..];
        let mut lines = Vec::new();
        while let Some((bytes, length)) = next(&mut source, 4).unwrap() {
            lines.push((bytes.map(|it| String::from_utf8(it).unwrap()), length));
        }
        let line = |text: &str| Some(text.to_owned());
        assert_eq!(
            lines,
            [
                (line("ab\n"), 3),
                (line("\n"), 1),
                (None, 7),
                (line("abcd\n"), 5),
                (line("x"), 1)
            ]
        );
    }
}
