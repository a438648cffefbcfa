//! What a program writes: read to the end, counted in full, and kept in part.
//!
//! A [`Capture`] is given bytes and does no input of its own, so that it serves readers of every kind; a [`Drain`] is
//! the reader of [`Command::output`](crate::Command::output).

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::fcntl::OFlag;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;

use crate::error::{Error, Result};

/// As much as a pipe holds, unless somebody asks for more.
const BUFFER: usize = 64 << 10;
/// More than a pseudo-terminal ever holds.
const TERMINAL: u64 = 128 << 10;

/// What a program wrote to one stream: all of it, or its beginning and its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Captured {
    /// What was kept: the first bytes, directly followed by the last ones where some were left out between them.
    pub bytes: Vec<u8>,
    /// How many of `bytes` are the first ones.
    head: usize,
    /// How many bytes there were in all.
    pub total: u64,
    /// What became of the file that was asked for.
    pub file: Option<Spilled>,
}

impl Captured {
    /// The first bytes: everything, unless some were left out.
    pub fn head(&self) -> &[u8] {
        &self.bytes[..self.head]
    }

    /// The last bytes; empty unless some were left out.
    pub fn tail(&self) -> &[u8] {
        &self.bytes[self.head..]
    }

    /// How many bytes were left out between the first and the last ones.
    pub fn omitted(&self) -> u64 {
        self.total - self.bytes.len() as u64
    }

    /// Whether bytes were left out.
    pub fn is_truncated(&self) -> bool {
        self.omitted() > 0
    }
}

/// Keeps the first and the last bytes of a stream, half of the limit each, and counts all of them.
///
/// ```
/// let mut capture = sbxrt::Capture::new(Some(6));
/// capture.write(b"first, middle, last");
/// let captured = capture.finish();
/// assert_eq!((captured.head(), captured.omitted(), captured.tail()), (&b"fir"[..], 13, &b"ast"[..]));
/// ```
#[derive(Debug)]
pub struct Capture {
    /// At most `limit` bytes. Once there are that many, the second half of them is a ring.
    bytes: Vec<u8>,
    limit: usize,
    /// Where the oldest byte of the ring is, counted from its beginning.
    oldest: usize,
    total: u64,
}

impl Capture {
    /// A capture that keeps at most `limit` bytes, or all of them.
    #[must_use]
    pub fn new(limit: Option<u64>) -> Self {
        let limit = limit.and_then(|limit| usize::try_from(limit).ok());
        Self {
            bytes: Vec::new(),
            limit: limit.unwrap_or(usize::MAX),
            oldest: 0,
            total: 0,
        }
    }

    /// Takes what the stream says next.
    pub fn write(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let room = self.limit - self.bytes.len();
        let (fitting, rest) = bytes.split_at(room.min(bytes.len()));
        let needed = self.bytes.len() + fitting.len();
        if needed > self.bytes.capacity() {
            // By doubling, but never to more than may be kept.
            let capacity = needed
                .saturating_mul(2)
                .clamp(needed, self.limit.max(needed));
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(fitting);
        if rest.is_empty() {
            return;
        }
        let head = self.head();
        let ring = &mut self.bytes[head..];
        let rest = &rest[rest.len().saturating_sub(ring.len())..];
        let (before, behind) = ring.split_at_mut(self.oldest);
        let (first, second) = rest.split_at(rest.len().min(behind.len()));
        behind[..first.len()].copy_from_slice(first);
        before[..second.len()].copy_from_slice(second);
        if !ring.is_empty() {
            self.oldest = (self.oldest + rest.len()) % ring.len();
        }
    }

    /// How many bytes there were so far.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Whether there were more bytes than are kept.
    pub fn is_over(&self) -> bool {
        self.total > self.limit as u64
    }

    /// What was kept.
    #[must_use]
    pub fn finish(mut self) -> Captured {
        let head = if self.is_over() {
            self.head()
        } else {
            self.bytes.len()
        };
        self.bytes[head..].rotate_left(self.oldest);
        Captured {
            bytes: self.bytes,
            head,
            total: self.total,
            file: None,
        }
    }

    /// How many bytes at the beginning are kept for good.
    fn head(&self) -> usize {
        self.limit - self.limit / 2
    }

    /// How much there is still to be read from a program's `stream` once every process of its container is gone.
    ///
    /// A program may have handed its output to a process outside, through a socket that is mounted in the sandbox. What
    /// such a process writes from then on is not the program's, and might never end.
    ///
    /// # Errors
    ///
    /// Fails where `stream` is neither a pipe nor a terminal.
    pub fn rest(stream: impl AsFd) -> io::Result<u64> {
        let stream = stream.as_fd();
        if rustix::termios::isatty(stream) {
            // Its line discipline does not count what is on the way there.
            return Ok(TERMINAL);
        }
        Ok(rustix::io::ioctl_fionread(stream)?)
    }
}

/// A file that receives all of a stream as it comes, up to a limit.
#[derive(Debug)]
pub struct Spill {
    file: File,
    room: u64,
    spilled: Spilled,
}

/// What became of a [`Spill`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Spilled {
    /// How many bytes are in the file.
    pub bytes: u64,
    /// Whether there were more than its limit.
    pub truncated: bool,
    /// Why not all of them could be written: the kernel's error number.
    pub error: Option<i32>,
}

impl Spill {
    /// Creates or empties the file `path`, which will hold at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// [`Error::File`] where it is a link, or no regular file, or cannot be written.
    pub fn create(path: &Path, limit: u64) -> Result<Self> {
        let refused = |source| Error::File {
            step: "write the program's output to",
            path: path.to_owned(),
            source,
        };
        // A pipe without a reader would keep us waiting.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(flags.bits())
            .open(path)
            .map_err(refused)?;
        let found = file.metadata().map_err(refused)?;
        if !found.is_file() || found.nlink() > 1 {
            return Err(refused(io::Error::new(
                ErrorKind::InvalidInput,
                "it has another name as well, or is no regular file",
            )));
        }
        file.set_len(0).map_err(refused)?;
        Ok(Self {
            file,
            room: limit,
            spilled: Spilled::default(),
        })
    }

    /// Takes what the stream says next. A failure is told at the end: the program must not wait for us.
    pub fn write(&mut self, bytes: &[u8]) {
        let fitting = usize::try_from(self.room).unwrap_or(usize::MAX);
        let (fitting, rest) = bytes.split_at(fitting.min(bytes.len()));
        self.spilled.truncated |= !rest.is_empty();
        if self.spilled.error.is_some() {
            return;
        }
        match self.file.write_all(fitting) {
            Ok(()) => {
                self.room -= fitting.len() as u64;
                self.spilled.bytes += fitting.len() as u64;
            }
            Err(error) => {
                self.spilled.error = Some(error.raw_os_error().unwrap_or(nix::libc::EIO));
                // Some of it may have been written.
                if let Ok(found) = self.file.metadata() {
                    self.spilled.bytes = found.len();
                }
            }
        }
    }

    /// What became of it.
    #[must_use]
    pub fn finish(self) -> Spilled {
        self.spilled
    }
}

/// Reads one stream of a program to its end, without ever making the program wait for more than that.
#[derive(Debug)]
pub(crate) struct Drain {
    pipe: Option<Receiver>,
    capture: Capture,
    spill: Option<Spill>,
    buffer: Vec<u8>,
}

impl Drain {
    pub(crate) fn new(pipe: Option<Receiver>, limit: Option<u64>, spill: Option<Spill>) -> Self {
        Self {
            pipe,
            capture: Capture::new(limit),
            spill,
            buffer: vec![0; BUFFER],
        }
    }

    /// Reads until the stream ends, or once all is `over`, until what is in it then is read. Says by `excess` when there
    /// is more than is kept.
    pub(crate) async fn run(
        mut self,
        mut over: watch::Receiver<bool>,
        excess: &tokio::sync::Notify,
    ) -> io::Result<Captured> {
        let mut left = u64::MAX;
        while let Some(pipe) = &self.pipe {
            if left == u64::MAX && *over.borrow() {
                left = Capture::rest(pipe)?;
            }
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(BUFFER);
            if wanted == 0 {
                break;
            }
            match pipe.try_read(&mut self.buffer[..wanted]) {
                Ok(0) => break,
                Ok(length) => {
                    if left != u64::MAX {
                        left -= length as u64;
                    }
                    let was_over = self.capture.is_over();
                    self.keep(length).await?;
                    if self.capture.is_over() && !was_over {
                        excess.notify_one();
                    }
                    // A program that writes all the time must not keep the caller from everything else.
                    tokio::task::coop::consume_budget().await;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // Tokio says so as well where it has not yet heard of what is there, so also when all is over.
                    tokio::select! {
                        ready = pipe.readable() => ready?,
                        // Whoever would say so is gone: that is the same.
                        _ = over.wait_for(|over| *over), if left == u64::MAX => left = Capture::rest(pipe)?,
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let mut captured = self.capture.finish();
        captured.file = self.spill.map(Spill::finish);
        Ok(captured)
    }

    async fn keep(&mut self, length: usize) -> io::Result<()> {
        self.capture.write(&self.buffer[..length]);
        let Some(mut spill) = self.spill.take() else {
            return Ok(());
        };
        // A file may be on a network.
        let buffer = std::mem::take(&mut self.buffer);
        let written = tokio::task::spawn_blocking(move || {
            spill.write(&buffer[..length]);
            (buffer, spill)
        });
        let (buffer, spill) = written.await.map_err(io::Error::other)?;
        self.buffer = buffer;
        self.spill = Some(spill);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;
    use tokio::io::AsyncWriteExt as _;
    use tokio::sync::Notify;

    use super::*;

    fn captured(limit: Option<u64>, chunks: &[Vec<u8>]) -> Captured {
        let mut capture = Capture::new(limit);
        for chunk in chunks {
            capture.write(chunk);
        }
        capture.finish()
    }

    proptest! {
        #[test]
        fn the_first_and_the_last_bytes_are_kept_however_they_come(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..40),
            limit in 0_usize..200,
        ) {
            let captured = captured(Some(limit as u64), &chunks);
            let all = chunks.concat();
            prop_assert_eq!(captured.total, all.len() as u64);
            if all.len() <= limit {
                prop_assert_eq!(captured.head(), all.as_slice());
                prop_assert!(captured.tail().is_empty() && !captured.is_truncated());
            } else {
                let tail = limit / 2;
                prop_assert_eq!(captured.head(), &all[..limit - tail]);
                prop_assert_eq!(captured.tail(), &all[all.len() - tail..]);
                prop_assert_eq!(captured.omitted(), (all.len() - limit) as u64);
            }
        }
    }

    #[test]
    fn memory_stays_within_the_limit() {
        let mut capture = Capture::new(Some(1 << 20));
        for _ in 0..(64 << 20) / BUFFER {
            capture.write(&vec![b'y'; BUFFER]);
        }
        assert_eq!(capture.bytes.capacity(), 1 << 20);
        assert_eq!(capture.finish().total, 64 << 20);
    }

    /// Drains what `write` writes, and says whether there was more than is kept.
    async fn drained(limit: Option<u64>, spill: Option<Spill>, bytes: Vec<u8>) -> (Captured, bool) {
        let (mut sender, receiver) = tokio::net::unix::pipe::pipe().unwrap();
        let (_running, over) = watch::channel(false);
        let excess = Notify::new();
        let drain = Drain::new(Some(receiver), limit, spill);
        let (captured, ()) = tokio::join!(drain.run(over, &excess), async move {
            sender.write_all(&bytes).await.unwrap();
        });
        let exceeded = tokio::time::timeout(std::time::Duration::ZERO, excess.notified());
        (captured.unwrap(), exceeded.await.is_ok())
    }

    #[tokio::test]
    async fn a_pipe_is_drained_to_its_end() {
        let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
        let (captured, exceeded) = drained(None, None, bytes.clone()).await;
        assert!(captured.bytes == bytes && !exceeded);
        let (captured, exceeded) = drained(Some(10), None, bytes.clone()).await;
        assert_eq!(captured.head(), &bytes[..5]);
        assert_eq!(captured.tail(), &bytes[299_995..]);
        assert!(captured.total == 300_000 && exceeded);
    }

    #[tokio::test]
    async fn once_all_is_over_what_others_go_on_to_write_is_not_waited_for() {
        let (mut sender, receiver) = tokio::net::unix::pipe::pipe().unwrap();
        let (running, over) = watch::channel(false);
        let excess = Notify::new();
        sender.write_all(b"last words").await.unwrap();
        let writing = tokio::spawn(async move {
            loop {
                // As fast as it is read.
                if sender.write_all(&vec![b'x'; BUFFER]).await.is_err() {
                    break;
                }
            }
        });
        running.send(true).unwrap();
        let drain = Drain::new(Some(receiver), Some(10), None);
        let captured = drain.run(over, &excess).await.unwrap();
        assert_eq!(&captured.bytes[..5], b"last ");
        assert!(captured.total <= 2 * BUFFER as u64, "{}", captured.total);
        writing.await.unwrap();
    }

    #[tokio::test]
    async fn a_file_receives_everything_up_to_its_own_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        std::fs::write(&path, "from before").unwrap();
        let spill = |limit| Some(Spill::create(&path, limit).unwrap());
        let (captured, _) = drained(Some(2), spill(1 << 30), vec![b'z'; 200_000]).await;
        let expected = Spilled {
            bytes: 200_000,
            ..Spilled::default()
        };
        assert_eq!(
            (captured.bytes, captured.file),
            (b"zz".to_vec(), Some(expected))
        );
        assert_eq!(std::fs::read(&path).unwrap(), vec![b'z'; 200_000]);

        let (captured, _) = drained(None, spill(7), vec![b'a'; 9]).await;
        let expected = Spilled {
            bytes: 7,
            truncated: true,
            error: None,
        };
        assert_eq!((captured.total, captured.file), (9, Some(expected)));
        assert_eq!(std::fs::read(&path).unwrap(), b"aaaaaaa");
    }

    #[test]
    fn only_a_regular_file_without_other_names_is_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let [victim, link, other_name, pipe] =
            ["victim", "link", "name", "pipe"].map(|name| directory.path().join(name));
        std::fs::write(&victim, "kept").unwrap();
        symlink(&victim, &link).unwrap();
        std::fs::hard_link(&victim, &other_name).unwrap();
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [
            &link,
            &other_name,
            &pipe,
            &directory.path().to_owned(),
            &"/dev/null".into(),
        ] {
            let refused = Spill::create(path, 1).unwrap_err();
            assert!(refused.to_string().contains("output"), "{refused}");
        }
        assert_eq!(std::fs::read(&victim).unwrap(), b"kept");
    }

    #[test]
    fn a_full_disk_is_told_at_the_end() {
        let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut spill = Spill {
            file,
            room: 100,
            spilled: Spilled::default(),
        };
        spill.write(b"x");
        spill.write(b"y");
        let expected = Spilled {
            error: Some(nix::libc::ENOSPC),
            ..Spilled::default()
        };
        assert_eq!(spill.finish(), expected);
    }
}
