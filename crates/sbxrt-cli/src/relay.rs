//! Moves bytes between the program's streams and this process's, each stream in a thread of its own.
//!
//! Threads, because a reader of ours that stops reading (a pager, a stopped terminal) must hold up neither the other
//! stream nor signals, and because standard streams cannot be made non-blocking: they are shared with whoever started
//! this process.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::oneshot;

/// As much as a pipe holds.
const BUFFER: usize = 64 << 10;

/// Where a stream of the program goes.
#[derive(Debug)]
pub(crate) enum Sink {
    /// To this file, as it comes.
    Forward(File),
    /// Into memory.
    Keep,
}

/// What has become of a stream.
#[derive(Debug, Default)]
pub(crate) struct Relayed {
    /// What was to be kept.
    pub(crate) kept: Vec<u8>,
    /// How many bytes the program wrote.
    pub(crate) total: u64,
    /// Whether the limit cut some of them off.
    pub(crate) cut: bool,
    /// Why the rest could not be forwarded.
    pub(crate) failure: Option<io::Error>,
}

impl Relayed {
    /// Whether fewer bytes were handed on than written.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut
    }
}

/// Starts handing on what comes from `source`, at most `limit` bytes of it.
///
/// It goes on until the other side of `source` is closed, or, once the other side of `over` is, until nothing more is
/// in it: a program may have given its output to somebody outside, who must not keep this process waiting.
pub(crate) fn start(
    name: &'static str,
    source: OwnedFd,
    sink: Sink,
    limit: Option<u64>,
    over: OwnedFd,
) -> io::Result<oneshot::Receiver<Relayed>> {
    set_nonblocking(&source)?;
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let relayed = relay(source, sink, limit, over.as_fd());
            // Nobody waits any more where a signal has ended the waiting.
            drop(sender.send(relayed));
        })?;
    Ok(receiver)
}

/// Starts feeding standard input to `destination`. The thread ends with the input, with the reader, or with this
/// process: a read that waits for a key cannot be called back.
pub(crate) fn feed(destination: OwnedFd) -> io::Result<()> {
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let body = move || {
        let mut destination = File::from(destination);
        let mut buffer = vec![0; BUFFER];
        loop {
            match (&input).read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => {
                    if write_all(&mut destination, &buffer[..length]).is_err() {
                        // The program reads no more.
                        break;
                    }
                }
                Err(error) if is_passing(&error, input.as_fd(), PollFlags::POLLIN) => {}
                // A terminal that was hung up; for the program it is the end.
                Err(_) => break,
            }
        }
    };
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(body)?;
    Ok(())
}

fn relay(source: OwnedFd, mut sink: Sink, limit: Option<u64>, over: BorrowedFd<'_>) -> Relayed {
    let mut source = File::from(source);
    let mut buffer = vec![0; BUFFER];
    let mut room = limit.unwrap_or(u64::MAX);
    let mut relayed = Relayed::default();
    loop {
        let length = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => match wait(source.as_fd(), over)
            {
                Ok(true) => continue,
                Ok(false) => break,
                Err(error) => {
                    relayed.failure = Some(error);
                    break;
                }
            },
            // What a pseudo-terminal says when its last user has gone.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => break,
            Err(error) => {
                relayed.failure = Some(error);
                break;
            }
        };
        relayed.total += length as u64;
        let taken = usize::try_from(room).unwrap_or(usize::MAX).min(length);
        room -= taken as u64;
        relayed.cut |= taken < length;
        let handed_on = match &mut sink {
            Sink::Forward(file) => write_all(file, &buffer[..taken]),
            Sink::Keep => {
                relayed.kept.extend_from_slice(&buffer[..taken]);
                Ok(())
            }
        };
        if let Err(error) = handed_on {
            // The pipe to the program is closed as well, so that the program learns of it as it would without us:
            // `sbxrt run … yes | head` ends. To read on would keep such a program running for nobody.
            if error.kind() != ErrorKind::BrokenPipe {
                relayed.failure = Some(error);
            }
            break;
        }
    }
    relayed
}

/// Waits until there is something in `source`; `false` where it is empty and nothing more can come.
fn wait(source: BorrowedFd<'_>, over: BorrowedFd<'_>) -> io::Result<bool> {
    loop {
        let mut polled = [
            PollFd::new(source, PollFlags::POLLIN),
            PollFd::new(over, PollFlags::POLLIN),
        ];
        match poll(&mut polled, PollTimeout::NONE) {
            // In this order: what is there is read even when all is over.
            Ok(_) if polled[0].any().unwrap_or(false) => return Ok(true),
            Ok(_) if polled[1].any().unwrap_or(false) => return Ok(false),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// As `write_all`, also to what somebody has made non-blocking.
fn write_all(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(length) => bytes = &bytes[length..],
            Err(error) if is_passing(&error, file.as_fd(), PollFlags::POLLOUT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether it is worth trying again, after waiting for it where need be.
fn is_passing(error: &io::Error, fd: BorrowedFd<'_>, events: PollFlags) -> bool {
    match error.kind() {
        ErrorKind::Interrupted => true,
        ErrorKind::WouldBlock => {
            matches!(
                poll(&mut [PollFd::new(fd, events)], PollTimeout::NONE),
                Ok(_) | Err(nix::errno::Errno::EINTR)
            )
        }
        _ => false,
    }
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Relays what `write` writes.
    fn relayed(
        sink: Sink,
        limit: Option<u64>,
        write: impl FnOnce(io::PipeWriter) + Send + 'static,
    ) -> Relayed {
        let (reader, writer) = io::pipe().unwrap();
        let (over, _running) = io::pipe().unwrap();
        let writing = std::thread::spawn(move || write(writer));
        let relayed = start("test", reader.into(), sink, limit, over.into())
            .unwrap()
            .blocking_recv()
            .unwrap();
        writing.join().unwrap();
        relayed
    }

    #[test]
    fn every_byte_is_kept_and_counted() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        let expected = bytes.clone();
        let relayed = relayed(Sink::Keep, None, move |mut pipe| {
            pipe.write_all(&bytes).unwrap();
        });
        assert!(relayed.kept == expected && !relayed.is_cut());
        assert_eq!(relayed.total, 1 << 20);
    }

    #[test]
    fn beyond_the_limit_bytes_are_counted_and_dropped() {
        let relayed = relayed(Sink::Keep, Some(5), |mut pipe| {
            pipe.write_all(&vec![b'x'; 1 << 20]).unwrap();
        });
        assert_eq!(
            (relayed.kept.as_slice(), relayed.total, relayed.is_cut()),
            (&b"xxxxx"[..], 1 << 20, true)
        );
    }

    #[test]
    fn output_of_exactly_the_limit_is_not_cut() {
        let relayed = relayed(Sink::Keep, Some(3), |mut pipe| {
            pipe.write_all(b"abc").unwrap();
        });
        assert!(!relayed.is_cut());
    }

    #[test]
    fn forwarding_stops_at_the_limit_and_reading_does_not() {
        let (mut ours, theirs) = io::pipe().unwrap();
        let sink = Sink::Forward(OwnedFd::from(theirs).into());
        let relayed = relayed(sink, Some(4), |mut pipe| {
            pipe.write_all(&vec![b'y'; 300_000]).unwrap();
        });
        let mut forwarded = Vec::new();
        ours.read_to_end(&mut forwarded).unwrap();
        assert_eq!(
            (forwarded.as_slice(), relayed.total),
            (&b"yyyy"[..], 300_000)
        );
    }

    #[test]
    fn a_program_whose_reader_has_gone_finds_its_pipe_closed() {
        let (ours, theirs) = io::pipe().unwrap();
        drop(ours);
        let relayed = relayed(
            Sink::Forward(OwnedFd::from(theirs).into()),
            None,
            |mut pipe| {
                // As yes(1): without the closed pipe this would never end.
                while pipe.write_all(b"y\n").is_ok() {}
            },
        );
        assert!(relayed.failure.is_none() && relayed.total > 0);
    }

    #[test]
    fn a_full_disk_is_a_failure() {
        let full = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let relayed = relayed(Sink::Forward(full), None, |mut pipe| {
            pipe.write_all(b"x").unwrap();
        });
        assert_eq!(relayed.failure.unwrap().raw_os_error(), Some(libc::ENOSPC));
    }

    #[test]
    fn a_reader_that_is_nonblocking_and_slow_gets_every_byte() {
        let (mut ours, theirs) = io::pipe().unwrap();
        let theirs = OwnedFd::from(theirs);
        set_nonblocking(&theirs).unwrap();
        let reading = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            ours.read_to_end(&mut bytes).unwrap();
            bytes.len()
        });
        let relayed = relayed(Sink::Forward(theirs.into()), None, |mut pipe| {
            pipe.write_all(&vec![0; 1 << 20]).unwrap();
        });
        assert!(relayed.failure.is_none());
        assert_eq!(reading.join().unwrap(), 1 << 20);
    }

    #[test]
    fn when_all_is_over_an_open_pipe_is_read_until_it_is_empty() {
        let (reader, mut held_open) = io::pipe().unwrap();
        let (over, running) = io::pipe().unwrap();
        held_open.write_all(b"last words").unwrap();
        let began = Instant::now();
        let receiver = start("test", reader.into(), Sink::Keep, None, over.into()).unwrap();
        drop(running);
        assert_eq!(receiver.blocking_recv().unwrap().kept, b"last words");
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}
