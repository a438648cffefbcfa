//! Files that the caller names, read without being kept waiting: settings, a profile, a Dockerfile.
//!
//! A pipe is a file here too, for `<(command)` and `/dev/stdin` name one. A FIFO that nobody writes to is given up after a
//! while. What has no end, or is no file at all, is refused by what it is. `regular_file` is for the files of a store.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// How long a pipe may say nothing.
const SILENCE: Duration = Duration::from_secs(10);
/// How long a pipe may take in all.
const PATIENCE: Duration = Duration::from_secs(60);

/// What standard input is called.
const STANDARD_INPUT: [Option<&str>; 3] = [
    Some("/dev/stdin"),
    Some("/dev/fd/0"),
    Some("/proc/self/fd/0"),
];

/// Reads all of a file that the caller has named: a regular file, `/dev/null`, or a pipe.
///
/// # Errors
///
/// What opening and reading it says; [`ErrorKind::FileTooLarge`] where there is more than `limit` bytes;
/// [`ErrorKind::TimedOut`] where it is a pipe that nobody has written to for 10 s, or that has not ended after 60 s;
/// [`ErrorKind::InvalidInput`] where it is a directory, a device or a socket.
pub fn read_named_file(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read(path, limit, SILENCE, PATIENCE)
}

fn read(path: &Path, limit: u64, silence: Duration, patience: Duration) -> io::Result<Vec<u8>> {
    // Before it is opened as well: that alone may set a device going, and a socket's error says nothing to people.
    refuse_what_is_no_file(&std::fs::metadata(path)?)?;
    let file = open(path)?;
    let found = file.metadata()?;
    refuse_what_is_no_file(&found)?;
    let mut bytes = Vec::new();
    let mut file = file.take(limit + 1);
    if found.file_type().is_fifo() {
        read_pipe(&mut file, &mut bytes, silence, patience)?;
    } else {
        file.read_to_end(&mut bytes)?;
    }
    if bytes.len() as u64 > limit {
        let reason = format!("it is longer than {} KiB", limit >> 10);
        return Err(io::Error::new(ErrorKind::FileTooLarge, reason));
    }
    Ok(bytes)
}

fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path);
    match opened {
        // A pipe can be opened once more by none but who made it: not behind sudo(8).
        Err(error)
            if error.kind() == ErrorKind::PermissionDenied
                && STANDARD_INPUT.contains(&path.to_str()) =>
        {
            Ok(io::stdin().as_fd().try_clone_to_owned()?.into())
        }
        opened => opened,
    }
}

fn refuse_what_is_no_file(found: &Metadata) -> io::Result<()> {
    let kind = found.file_type();
    let is_null = kind.is_char_device() && found.rdev() == rustix::fs::makedev(1, 3);
    let named = match kind {
        kind if kind.is_file() || kind.is_fifo() || is_null => return Ok(()),
        kind if kind.is_dir() => "a directory",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    let reason = format!("it is {named} and no regular file");
    Err(io::Error::new(ErrorKind::InvalidInput, reason))
}

/// Reads until the last of those who write to it has gone.
fn read_pipe(
    pipe: &mut io::Take<File>,
    bytes: &mut Vec<u8>,
    silence: Duration,
    patience: Duration,
) -> io::Result<()> {
    let end = Instant::now() + patience;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let wait = Timespec::try_from(left.min(silence)).map_err(io::Error::other)?;
        let mut polled = [PollFd::new(pipe.get_ref(), PollFlags::IN)];
        match rustix::event::poll(&mut polled, Some(&wait)) {
            Ok(0) => {
                let reason = if left > silence {
                    format!("it is a pipe that nobody has written to for {silence:?}")
                } else {
                    format!("it is a pipe that has not ended within {patience:?}")
                };
                return Err(io::Error::new(ErrorKind::TimedOut, reason));
            }
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        // Once: standard input may be one whose reader has to wait.
        match pipe.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => bytes.extend_from_slice(&buffer[..length]),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, FileType, Mode};

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(60);

    fn fifo(directory: &tempfile::TempDir) -> std::path::PathBuf {
        let path = directory.path().join("fifo");
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        path
    }

    #[test]
    fn files_are_read_up_to_their_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_named_file(&path, 5).unwrap(), b"12345");
        let error = read_named_file(&path, 4).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FileTooLarge);
        assert_eq!(read_named_file("/dev/null".as_ref(), 4).unwrap(), b"");
        let error = read_named_file(&directory.path().join("none"), 4).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn what_is_no_file_is_refused_by_what_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        let table = [
            (directory.path(), "a directory"),
            (&socket, "a socket"),
            (&link, "a device"),
        ];
        for (path, named) in table {
            let error = read_named_file(path, 4).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("it is {named} and no regular file")
            );
        }
    }

    #[test]
    fn a_pipe_is_read_to_its_end_however_slowly_it_comes() {
        let (reader, mut writer) = io::pipe().unwrap();
        // As a shell hands on what `<(command)` stands for.
        let path = format!("/dev/fd/{}", reader.as_raw_fd());
        let writing = std::thread::spawn(move || {
            for byte in b"12345" {
                writer.write_all(&[*byte]).unwrap();
                std::thread::yield_now();
            }
        });
        assert_eq!(read_named_file(path.as_ref(), 5).unwrap(), b"12345");
        writing.join().unwrap();
        // Whoever wrote to it has gone before it was opened.
        assert_eq!(read_named_file(path.as_ref(), 5).unwrap(), b"");
    }

    #[test]
    fn a_fifo_waits_for_its_writer_and_not_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let path = fifo(&directory);
        let error = read(&path, 5, SHORT, LONG).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(
            error.to_string().contains("nobody has written to"),
            "{error}"
        );
        let writing = std::thread::spawn({
            let path = path.clone();
            move || std::fs::write(path, "12345").unwrap()
        });
        assert_eq!(read_named_file(&path, 5).unwrap(), b"12345");
        writing.join().unwrap();
    }

    #[test]
    fn a_pipe_that_never_ends_is_given_up() {
        let (reader, mut writer) = io::pipe().unwrap();
        let path = format!("/dev/fd/{}", reader.as_raw_fd());
        writer.write_all(b"1").unwrap();
        let error = read(path.as_ref(), 5, LONG, SHORT).unwrap_err();
        assert!(error.to_string().contains("has not ended"), "{error}");
        // The limit ends what is written without end.
        let writing = std::thread::spawn(move || while writer.write_all(b"x").is_ok() {});
        let error = read_named_file(path.as_ref(), 5).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FileTooLarge);
        drop(reader);
        writing.join().unwrap();
    }
}
