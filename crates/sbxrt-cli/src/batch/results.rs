//! The results: one line each, written whole and at once, and read again where a batch goes on.
//!
//! A batch that is killed leaves whole lines and at most one torn one, the last. Who goes on removes that one, and the lines
//! that tell of failures of sbxrt's own; what stays is what need not be run again.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::sync::mpsc;

use crate::batch::key::Key;
use crate::error::{Error, Result};

/// The keys that have a result, each as often as it has one: 32 bytes and a counter of 4 for each.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Done(Vec<(Key, u32)>);

impl Done {
    fn new(mut keys: Vec<Key>) -> Self {
        keys.sort_unstable();
        let mut counted: Vec<(Key, u32)> = Vec::with_capacity(keys.len());
        for key in keys {
            match counted.last_mut() {
                Some((last, count)) if *last == key => *count += 1,
                _ => counted.push((key, 1)),
            }
        }
        Self(counted)
    }

    /// Whether there is a result of `key` that no item before has taken.
    pub(crate) fn take(&mut self, key: &Key) -> bool {
        let Ok(index) = self.0.binary_search_by(|(known, _)| known.cmp(key)) else {
            return false;
        };
        let count = &mut self.0[index].1;
        let is_left = *count > 0;
        *count -= u32::from(is_left);
        is_left
    }
}

/// Where results go.
#[derive(Debug)]
pub(crate) struct Results {
    path: PathBuf,
    file: File,
    /// Holds others off for as long as it lives.
    lock: Option<Flock<File>>,
}

impl Results {
    /// Opens the file, or standard output for `-`, and finds what it has already where the batch is to go on.
    pub(crate) fn open(path: &Path, resumes: bool) -> Result<(Self, Done)> {
        let failed = |source| Error::ResultFile {
            path: path.to_owned(),
            source,
        };
        if path == Path::new("-") {
            if resumes {
                return Err(Error::NothingToResume);
            }
            let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
            let results = Self {
                path: "standard output".into(),
                file: stdout.into(),
                lock: None,
            };
            return Ok((results, Done::default()));
        }
        let open = || {
            OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .open(path)
        };
        // A pipe to somebody who sorts or compresses has no lines to read again.
        if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
            let results = Self {
                path: path.to_owned(),
                file,
                lock: None,
            };
            return Ok((results, Done::default()));
        }
        let file = open().map_err(failed)?;
        let lock = lock(path, &file)?;
        if file.metadata().map_err(failed)?.len() > 0 && !resumes {
            return Err(Error::ResultsExist {
                path: path.to_owned(),
            });
        }
        let found = Found::read(path, &file)?;
        let mut results = Self {
            path: path.to_owned(),
            file,
            lock,
        };
        if found.has_failures {
            results.without_failures().map_err(failed)?;
        } else {
            results.file.set_len(found.whole).map_err(failed)?;
        }
        Ok((results, Done::new(found.keys)))
    }

    /// Leaves the lines out that tell of failures, and the torn one: in a new file, which takes the place of the old one when it
    /// is complete.
    fn without_failures(&mut self) -> io::Result<()> {
        let mut name = OsString::from(".");
        name.push(self.path.file_name().unwrap_or_default());
        name.push(".resuming");
        let place = self.path.with_file_name(name);
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&place)?;
        // Of one who was killed here.
        file.set_len(0)?;
        file.set_permissions(self.file.metadata()?.permissions())?;
        let lock = lock(&place, &file).map_err(io::Error::other)?;
        let mut kept = BufWriter::new(&file);
        let mut old = &self.file;
        old.rewind()?;
        let mut old = BufReader::new(old);
        let mut line = Vec::new();
        while old.read_until(b'\n', &mut line)? > 0 {
            if let Some(Entry {
                result: Some(_), ..
            }) = Entry::read(&line)
            {
                kept.write_all(&line)?;
            }
            line.clear();
        }
        kept.flush()?;
        drop(kept);
        file.sync_all()?;
        std::fs::rename(&place, &self.path)?;
        self.file = file;
        self.lock = lock;
        Ok(())
    }

    /// Starts writing, in a thread of its own: whoever reads the results may be slow. The channel holds `ahead` lines.
    pub(crate) fn start(self, ahead: usize) -> Result<Writer> {
        let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(ahead);
        let (ended, over) = tokio::sync::oneshot::channel();
        let write = move || {
            let Self { path, file, lock } = self;
            let mut file = file;
            let mut written = Ok(());
            while let Some(line) = receiver.blocking_recv() {
                if let Err(source) = file.write_all(&line) {
                    written = Err(Error::ResultFile { path, source });
                    break;
                }
            }
            drop(receiver);
            // Where nobody waits any more there is nobody to tell.
            drop(ended.send(written));
            drop(lock);
        };
        std::thread::Builder::new()
            .name("results".to_owned())
            .spawn(write)
            .map_err(|source| Error::System {
                step: "start a thread",
                source,
            })?;
        Ok(Writer {
            lines: sender,
            over,
        })
    }
}

/// The other side of the thread that writes.
#[derive(Debug)]
pub(crate) struct Writer {
    /// Whole lines. Closed where writing has failed.
    pub(crate) lines: mpsc::Sender<Vec<u8>>,
    /// How it ended: after the last sender is dropped, or when writing fails.
    pub(crate) over: tokio::sync::oneshot::Receiver<Result<()>>,
}

/// Holds the file for this batch alone, where its file system knows how.
fn lock(path: &Path, file: &File) -> Result<Option<Flock<File>>> {
    let failed = |source| Error::ResultFile {
        path: path.to_owned(),
        source,
    };
    let file = file.try_clone().map_err(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Err(Error::ResultsBusy {
            path: path.to_owned(),
        }),
        // Lustre without `-o flock`, and NFS without its lock service, know no locks; a batch is worth more than one.
        Err((_, Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::ENOLCK)) => Ok(None),
        Err((_, errno)) => Err(failed(errno.into())),
    }
}

/// What is in a file of results.
#[derive(Debug, Default)]
struct Found {
    keys: Vec<Key>,
    has_failures: bool,
    /// How many bytes the whole lines take.
    whole: u64,
}

impl Found {
    fn read(path: &Path, file: &File) -> Result<Self> {
        let failed = |source| Error::ResultFile {
            path: path.to_owned(),
            source,
        };
        let mut found = Self::default();
        let mut source = file;
        source.rewind().map_err(failed)?;
        let mut source = BufReader::with_capacity(256 << 10, source);
        let mut line = Vec::new();
        let mut number = 0;
        loop {
            line.clear();
            number += 1;
            let length = source.read_until(b'\n', &mut line).map_err(failed)?;
            // The last one may be torn.
            if !line.ends_with(b"\n") {
                return Ok(found);
            }
            let foreign = || Error::NotResults {
                path: path.to_owned(),
                line: number,
            };
            let entry = Entry::read(&line).ok_or_else(foreign)?;
            match (entry.result, entry.key) {
                (Some(_), Some(key)) => found
                    .keys
                    .push(key.parse().map_err(|_not_a_key| foreign())?),
                (Some(_), None) => return Err(foreign()),
                (None, _) => found.has_failures = true,
            }
            found.whole += length as u64;
        }
    }
}

/// What matters of a line of the results.
#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "index")]
    _index: u64,
    key: Option<String>,
    result: Option<IgnoredAny>,
    #[serde(rename = "error")]
    _error: Option<IgnoredAny>,
}

impl Entry {
    fn read(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(digit: char, what: &str) -> String {
        let key = digit.to_string().repeat(64);
        format!(
            "{{\"version\":1,\"id\":null,\"key\":\"{key}\",\"index\":1,\"{what}\":{{\"a\":[1]}}}}\n"
        )
    }

    fn key(digit: char) -> Key {
        digit.to_string().repeat(64).parse().unwrap()
    }

    #[test]
    fn what_is_torn_or_failed_is_taken_out_and_the_rest_counted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("results");
        let kept = [
            line('a', "result"),
            line('b', "result"),
            line('a', "result"),
        ]
        .concat();
        let torn = &line('c', "result")[..100];
        let unread = "{\"version\":1,\"id\":null,\"key\":null,\"index\":9,\"error\":{}}\n";
        let table = [
            (kept.clone(), "torn nowhere"),
            (format!("{kept}{torn}"), "torn"),
            (
                format!("{unread}{kept}{}{torn}", line('d', "error")),
                "failed and torn",
            ),
        ];
        for (before, what) in table {
            std::fs::write(&path, before).unwrap();
            let (results, mut done) = Results::open(&path, true).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), kept, "{what}");
            let taken = ['a', 'a', 'a', 'b', 'b', 'c', 'd'].map(|digit| done.take(&key(digit)));
            assert_eq!(
                taken,
                [true, true, false, true, false, false, false],
                "{what}"
            );
            // Held against another batch, also where the file is a new one.
            assert!(matches!(
                Results::open(&path, true),
                Err(Error::ResultsBusy { .. })
            ));
            drop(results);
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn nothing_is_overwritten_or_taken_for_what_it_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("results");
        std::fs::write(&path, line('a', "result")).unwrap();
        assert!(matches!(
            Results::open(&path, false),
            Err(Error::ResultsExist { .. })
        ));
        for foreign in ["{\"id\": 1}\n", "text\n", "\n"] {
            let text = format!("{}{foreign}", line('a', "result"));
            std::fs::write(&path, &text).unwrap();
            let refused = Results::open(&path, true).unwrap_err();
            assert!(
                matches!(refused, Error::NotResults { line: 2, .. }),
                "{refused}"
            );
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert!(Results::open(Path::new("-"), true).is_err());
        assert!(Results::open(Path::new("/dev/null"), true).is_ok());
    }
}
