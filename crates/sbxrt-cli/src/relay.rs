//! Moves bytes between the program's streams and this process's, each stream in a thread of its own.
//!
//! Threads, because a reader of ours that stops reading (a pager, a stopped terminal) must hold up neither the other
//! stream nor signals, and because standard streams cannot be made non-blocking: they are shared with whoever started
//! this process.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sbxrt::{Capture, Captured, Spill};
use tokio::sync::{Notify, oneshot};

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
    /// How many bytes there were, and what was to be kept of them.
    pub(crate) captured: Captured,
    /// How many bytes were not handed on because of the limit.
    pub(crate) omitted: u64,
    /// Why the rest could not be forwarded.
    pub(crate) failure: Option<io::Error>,
}

/// One stream of the program on its way out.
#[derive(Debug)]
pub(crate) struct Relay {
    /// What its thread is called.
    pub(crate) name: &'static str,
    pub(crate) source: OwnedFd,
    pub(crate) sink: Sink,
    /// How many bytes are handed on at most.
    pub(crate) limit: Option<u64>,
    /// The file that receives everything as well.
    pub(crate) spill: Option<Spill>,
    /// Told once there is more than the limit.
    pub(crate) excess: Arc<Notify>,
    /// The other side of it is closed once all is over.
    pub(crate) over: OwnedFd,
}

impl Relay {
    /// Starts handing on what comes.
    ///
    /// It goes on until the other side of `source` is closed, or, once all is `over`, until what is in it then is read: a
    /// program may have given its output to somebody outside, who must not keep this process waiting.
    pub(crate) fn start(self) -> io::Result<oneshot::Receiver<Relayed>> {
        set_nonblocking(&self.source)?;
        let (sender, receiver) = oneshot::channel();
        std::thread::Builder::new()
            .name(self.name.to_owned())
            .spawn(move || {
                // Nobody waits any more where a signal has ended the waiting.
                drop(sender.send(self.run()));
            })?;
        Ok(receiver)
    }

    fn run(mut self) -> Relayed {
        let keeps = matches!(self.sink, Sink::Keep);
        let mut capture = Capture::new(if keeps { self.limit } else { Some(0) });
        let failure = self.hand_on(&mut capture).err();
        let limit = self.limit.unwrap_or(u64::MAX);
        let omitted = capture.total().saturating_sub(limit);
        let mut captured = capture.finish();
        captured.file = self.spill.map(Spill::finish);
        Relayed {
            captured,
            omitted,
            failure,
        }
    }

    fn hand_on(&mut self, capture: &mut Capture) -> io::Result<()> {
        let limit = self.limit.unwrap_or(u64::MAX);
        let mut buffer = vec![0; BUFFER];
        // Known once all is over.
        let mut left: Option<u64> = None;
        loop {
            if left.is_none() && is_over(self.source.as_fd(), self.over.as_fd())? {
                left = Some(Capture::rest(&self.source)?);
            }
            let wanted = left.map_or(BUFFER, |left| {
                usize::try_from(left).unwrap_or(BUFFER).min(BUFFER)
            });
            if wanted == 0 {
                return Ok(());
            }
            let length = match nix::unistd::read(&self.source, &mut buffer[..wanted]) {
                // A pseudo-terminal whose last user has gone says EIO.
                Ok(0) | Err(Errno::EIO) => return Ok(()),
                Ok(length) => length,
                Err(Errno::EAGAIN) if left.is_some() => return Ok(()),
                Err(Errno::EINTR | Errno::EAGAIN) => continue,
                Err(error) => return Err(error.into()),
            };
            let bytes = &buffer[..length];
            left = left.map(|left| left - length as u64);
            let room = limit.saturating_sub(capture.total());
            capture.write(bytes);
            if let Some(spill) = &mut self.spill {
                spill.write(bytes);
            }
            let fitting = usize::try_from(room).unwrap_or(usize::MAX).min(length);
            let was_over = capture.total() - length as u64 > limit;
            if capture.total() > limit && !was_over {
                self.excess.notify_one();
            }
            if let Sink::Forward(file) = &mut self.sink
                && let Err(error) = write_all(file, &bytes[..fitting])
            {
                // The pipe to the program is closed as well, so that the program learns of it as it would without us:
                // `sbxrt run … yes | head` ends. To read on would keep such a program running for nobody.
                return match error.kind() {
                    ErrorKind::BrokenPipe => Ok(()),
                    _ => Err(error),
                };
            }
        }
    }
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

/// Waits until there is something in `source`, or all is `over`; whether it is.
fn is_over(source: BorrowedFd<'_>, over: BorrowedFd<'_>) -> io::Result<bool> {
    loop {
        let mut polled = [source, over].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) => {
                let [source, over] = polled.map(|fd| fd.any().unwrap_or(false));
                if source || over {
                    return Ok(over);
                }
            }
            Err(Errno::EINTR) => {}
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
                Ok(_) | Err(Errno::EINTR)
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
    use nix::libc;

    use super::*;

    fn relay(
        source: io::PipeReader,
        over: io::PipeReader,
        sink: Sink,
        limit: Option<u64>,
    ) -> Relay {
        Relay {
            name: "test",
            source: source.into(),
            sink,
            limit,
            spill: None,
            excess: Arc::default(),
            over: over.into(),
        }
    }

    /// Relays what `write` writes.
    fn relayed(
        sink: Sink,
        limit: Option<u64>,
        write: impl FnOnce(io::PipeWriter) + Send + 'static,
    ) -> Relayed {
        let (reader, writer) = io::pipe().unwrap();
        let (over, _running) = io::pipe().unwrap();
        let writing = std::thread::spawn(move || write(writer));
        let relay = relay(reader, over, sink, limit);
        let relayed = relay.start().unwrap().blocking_recv().unwrap();
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
        assert!(relayed.captured.bytes == expected && relayed.omitted == 0);
        assert_eq!(relayed.captured.total, 1 << 20);
    }

    #[test]
    fn beyond_the_limit_bytes_are_counted_and_dropped() {
        let relayed = relayed(Sink::Keep, Some(5), |mut pipe| {
            pipe.write_all(&vec![b'x'; 1 << 20]).unwrap();
            pipe.write_all(b"end").unwrap();
        });
        let captured = &relayed.captured;
        assert_eq!(
            (captured.head(), captured.tail()),
            (&b"xxx"[..], &b"nd"[..])
        );
        assert_eq!(
            (captured.total, relayed.omitted),
            ((1 << 20) + 3, (1 << 20) - 2)
        );
    }

    #[test]
    fn output_of_exactly_the_limit_is_not_cut() {
        let relayed = relayed(Sink::Keep, Some(3), |mut pipe| {
            pipe.write_all(b"abc").unwrap();
        });
        assert_eq!(relayed.omitted, 0);
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
            (forwarded.as_slice(), relayed.captured.total),
            (&b"yyyy"[..], 300_000)
        );
        assert!(relayed.omitted == 299_996 && relayed.captured.bytes.is_empty());
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
        assert!(relayed.failure.is_none() && relayed.captured.total > 0);
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
        let receiver = relay(reader, over, Sink::Keep, None).start().unwrap();
        drop(running);
        assert_eq!(
            receiver.blocking_recv().unwrap().captured.bytes,
            b"last words"
        );
    }

    #[test]
    fn when_all_is_over_somebody_who_goes_on_writing_is_not_waited_for() {
        let (reader, mut kept) = io::pipe().unwrap();
        let (over, running) = io::pipe().unwrap();
        let (mut ours, theirs) = io::pipe().unwrap();
        let writing = std::thread::spawn(move || {
            // As fast as it is read.
            while kept.write_all(&vec![b'x'; BUFFER]).is_ok() {}
        });
        // Our reader is slow: all is over while nothing has been read yet.
        let sink = Sink::Forward(OwnedFd::from(theirs).into());
        drop(running);
        let receiver = relay(reader, over, sink, None).start().unwrap();
        let reading = std::thread::spawn(move || io::copy(&mut ours, &mut io::sink()).unwrap());
        let relayed = receiver.blocking_recv().unwrap();
        writing.join().unwrap();
        assert_eq!(reading.join().unwrap(), relayed.captured.total);
        assert!(relayed.captured.total <= BUFFER as u64);
    }

    #[test]
    fn that_there_is_more_than_the_limit_is_told_once() {
        let (reader, mut writer) = io::pipe().unwrap();
        let (over, _running) = io::pipe().unwrap();
        let relay = relay(reader, over, Sink::Keep, Some(3));
        let excess = Arc::clone(&relay.excess);
        let receiver = relay.start().unwrap();
        writer.write_all(b"abc").unwrap();
        writer.write_all(b"d").unwrap();
        writer.write_all(b"e").unwrap();
        drop(writer);
        assert_eq!(receiver.blocking_recv().unwrap().omitted, 2);
        let told = || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_time().build().unwrap();
            runtime.block_on(async {
                tokio::time::timeout(std::time::Duration::ZERO, excess.notified())
                    .await
                    .is_ok()
            })
        };
        assert_eq!([told(), told()], [true, false]);
    }
}
