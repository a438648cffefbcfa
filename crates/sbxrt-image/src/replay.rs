//! A layer's tar stream, bit for bit, from what is on disk.
//!
//! A registry knows a layer by the digest of its archive, and no two tools write the same archive of the same files. So
//! while a layer is unpacked, all bytes of the stream that do not end up as contents of files are kept in one file
//! beside them, `tar.split`: headers, padding, whatever follows the end of the archive. Together with `fs/` it is the
//! stream again, which hashes to the layer's `diff_id` and can be pushed, exported or verified without a second copy of
//! the data (the idea is that of vbatts/tar-split).
//!
//! `tar.split` is a zlib stream of records, numbers in LEB128:
//!
//! ```text
//! "sbxrt tar.split 1\n"
//! 0 LENGTH BYTES                        bytes as they are
//! 1 COUNT                               so many zeros
//! 2 LENGTH PATH MODE OFFSET COUNT       so many bytes of a file in fs/, from an offset; its permissions
//! 3 OFFSET COUNT                        so many bytes of the same file
//! 4 TOTAL                               the end, and how many bytes there are in all
//! ```
//!
//! There is none for a layer in which a later entry replaces a file of an earlier one, since the first one's contents
//! are gone; and none where it would be larger than [`MAX_BYTES`].

use std::ffi::CString;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::bufread::ZlibDecoder;
use flate2::write::ZlibEncoder;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::{Error, Result};

/// The name of the file beside `fs/`.
pub(crate) const FILE_NAME: &str = "tar.split";

const MAGIC: &[u8] = b"sbxrt tar.split 1\n";
const RAW: u8 = 0;
const ZEROS: u8 = 1;
const FILE: u8 = 2;
const SAME_FILE: u8 = 3;
const END: u8 = 4;

/// The largest `tar.split` on disk. A layer of two million files needs about 60 MiB; more is headers and trailing
/// bytes for their own sake.
const MAX_BYTES: u64 = 256 << 20;
/// Fewer zeros than this are cheaper as they are.
const SHORTEST_RUN: usize = 12;
const MAX_PATH: u64 = 64 << 10;
const PENDING: usize = 32 << 10;

/// Writes `tar.split` while a layer is unpacked.
#[derive(Debug)]
pub(crate) struct Recorder {
    output: ZlibEncoder<Counted<BufWriter<File>>>,
    path: PathBuf,
    pending: Vec<u8>,
    zeros: u64,
    total: u64,
    /// The inodes of the files that were named, in order.
    inodes: Vec<u64>,
    /// Why the stream cannot be had again.
    lost: Option<&'static str>,
    moved: bool,
}

impl Recorder {
    /// Begins `directory/tar.split`, which must not be there yet.
    pub(crate) fn new(directory: &Path) -> Result<Self> {
        let path = directory.join(FILE_NAME);
        let file = File::create_new(&path).map_err(|error| Error::io("create", &path, error))?;
        let output = Counted {
            inner: BufWriter::new(file),
            bytes: 0,
        };
        let mut pending = Vec::with_capacity(2 * PENDING);
        pending.extend(MAGIC);
        Ok(Self {
            output: ZlibEncoder::new(output, Compression::fast()),
            path,
            pending,
            zeros: 0,
            total: 0,
            inodes: Vec::new(),
            lost: None,
            moved: false,
        })
    }

    /// Keeps bytes of the stream as they are.
    pub(crate) fn raw(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if self.lost.is_some() {
            return Ok(());
        }
        self.total += bytes.len() as u64;
        while !bytes.is_empty() {
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            if zeros >= SHORTEST_RUN || (self.zeros > 0 && zeros > 0) || zeros == bytes.len() {
                self.zeros += zeros as u64;
                bytes = &bytes[zeros..];
                continue;
            }
            let literal = zeros + literal_length(&bytes[zeros..]);
            self.flush_zeros();
            self.pending.push(RAW);
            self.number(literal as u64);
            self.pending.extend_from_slice(&bytes[..literal]);
            bytes = &bytes[literal..];
            self.flush(PENDING)?;
        }
        Ok(())
    }

    /// Says that bytes of the stream are now in a file of the layer. `path` may lead through links within it.
    pub(crate) fn file(
        &mut self,
        path: &[u8],
        inode: u64,
        mode: u32,
        parts: &[(u64, u64)],
    ) -> io::Result<()> {
        if self.lost.is_some() {
            return Ok(());
        }
        let mut parts = parts.iter().filter(|(_, length)| *length > 0);
        let Some((offset, length)) = parts.next() else {
            return Ok(());
        };
        self.flush_zeros();
        self.inodes.push(inode);
        self.pending.push(FILE);
        self.number(path.len() as u64);
        self.pending.extend_from_slice(path);
        self.number(u64::from(mode & 0o7777));
        self.number(*offset);
        self.number(*length);
        self.total += length;
        for (offset, length) in parts {
            self.pending.push(SAME_FILE);
            self.number(*offset);
            self.number(*length);
            self.total += length;
            self.flush(PENDING)?;
        }
        self.flush(PENDING)
    }

    /// Gives up: the stream cannot be had again.
    pub(crate) fn lose(&mut self, reason: &'static str) {
        self.lost.get_or_insert(reason);
    }

    /// Says that a link was replaced, so that a path may lead elsewhere now.
    pub(crate) fn links_changed(&mut self) {
        self.moved = true;
    }

    /// Finishes the file, or removes it where the stream cannot be had again. `root` is `fs/`, while its directories
    /// may still be searched.
    pub(crate) fn finish(mut self, root: BorrowedFd<'_>) -> Result<()> {
        if self.lost.is_none() {
            self.flush_zeros();
            self.pending.push(END);
            self.number(self.total);
        }
        let path = self.path.clone();
        let failed = |error: io::Error| match error.downcast::<Error>() {
            Ok(error) => error,
            Err(error) => Error::io("write", &path, error),
        };
        self.flush(0).map_err(failed)?;
        if self.lost.is_none() {
            let output = self.output.finish().map_err(failed)?;
            output
                .inner
                .into_inner()
                .map_err(|error| failed(error.into_error()))?;
            if self.moved && !all_present(&path, root, &self.inodes)? {
                self.lost = Some("a later entry replaces a link on the way to a file");
            }
        }
        if let Some(reason) = self.lost {
            tracing::debug!(path = %path.display(), reason, "no replay of this layer");
            std::fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
        }
        Ok(())
    }

    fn flush_zeros(&mut self) {
        if self.zeros > 0 {
            self.pending.push(ZEROS);
            self.number(self.zeros);
            self.zeros = 0;
        }
    }

    fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.pending.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.pending.push(value.to_le_bytes()[0]);
    }

    /// Compresses what waits, where there is more than so much of it.
    fn flush(&mut self, threshold: usize) -> io::Result<()> {
        if self.pending.len() > threshold {
            self.output
                .write_all(&self.pending)
                .map_err(|error| io::Error::other(Error::io("write", &self.path, error)))?;
            self.pending.clear();
            if self.output.get_ref().bytes > MAX_BYTES {
                self.lose("it has too many headers");
            }
        }
        Ok(())
    }
}

/// How many bytes there are before the next run of zeros that is worth a record.
fn literal_length(bytes: &[u8]) -> usize {
    let mut zeros = 0;
    for (index, byte) in bytes.iter().enumerate() {
        if *byte != 0 {
            zeros = 0;
            continue;
        }
        zeros += 1;
        if zeros == SHORTEST_RUN {
            return index + 1 - zeros;
        }
    }
    bytes.len() - zeros
}

/// Whether every file that a finished `tar.split` names is still the one that was written.
fn all_present(split: &Path, root: BorrowedFd<'_>, inodes: &[u64]) -> Result<bool> {
    let mut records = Records::open(split)?;
    let mut inodes = inodes.iter();
    loop {
        match records
            .next()
            .map_err(|error| Error::io("read", split, error))?
        {
            Record::End { .. } => return Ok(true),
            Record::Raw { length } => {
                io::copy(&mut (&mut records.input).take(length), &mut io::sink())
                    .map_err(|error| Error::io("read", split, error))?;
            }
            Record::File { path, .. } => {
                let opened = open_in_root(root, &path, OFlags::PATH);
                let status = opened.and_then(rustix::fs::fstat);
                if status.map(|status| status.st_ino).ok() != inodes.next().copied() {
                    return Ok(false);
                }
            }
            Record::Zeros { .. } | Record::SameFile { .. } => {}
        }
    }
}

#[derive(Debug)]
struct Counted<W> {
    inner: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Opens a layer's tar stream; `None` where it cannot be had (see the [module](self)).
///
/// What it yields are the uncompressed bytes that the layer was unpacked from. It is for the caller to hold them
/// against the `diff_id`: a file in `fs/` may have been altered since.
///
/// # Errors
///
/// [`Error::Io`] where `tar.split` or `fs/` cannot be read. Reading fails with the name of a file in `fs/` that is gone,
/// is shorter than it was, or may not be opened and is not the caller's.
pub(crate) fn open(layer: &Path) -> Result<Option<Replay>> {
    let split = layer.join(FILE_NAME);
    let records = match Records::open(&split) {
        Ok(records) => records,
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let path = layer.join("fs");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(&path, flags, Mode::empty())
        .map_err(|error| Error::io("open", &path, error))?;
    Ok(Some(Replay {
        records,
        root,
        path,
        file: None,
        state: State::Between,
        total: 0,
    }))
}

/// A layer's tar stream, read from its files.
#[derive(Debug)]
pub(crate) struct Replay {
    records: Records,
    root: OwnedFd,
    path: PathBuf,
    /// The file that was named last, and its path.
    file: Option<(File, Vec<u8>)>,
    state: State,
    total: u64,
}

#[derive(Debug)]
enum State {
    Between,
    Raw { left: u64 },
    Zeros { left: u64 },
    File { offset: u64, left: u64 },
    Ended,
}

impl Read for Replay {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let room = buffer.len();
            let count = |left: u64| usize::try_from(left).map_or(room, |left| left.min(room));
            let read = match &mut self.state {
                State::Ended => return Ok(0),
                State::Between
                | State::Raw { left: 0 }
                | State::Zeros { left: 0 }
                | State::File { left: 0, .. } => {
                    self.advance()?;
                    continue;
                }
                State::Raw { left } => {
                    let read = self.records.input.read(&mut buffer[..count(*left)])?;
                    if read == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    *left -= read as u64;
                    read
                }
                State::Zeros { left } => {
                    let count = count(*left);
                    buffer[..count].fill(0);
                    *left -= count as u64;
                    count
                }
                State::File { offset, left } => {
                    let Some((file, path)) = &self.file else {
                        return Err(malformed());
                    };
                    let read = file
                        .read_at(&mut buffer[..count(*left)], *offset)
                        .map_err(|error| named(&self.path, path, &error))?;
                    if read == 0 {
                        let short = io::Error::other("it is shorter than it was");
                        return Err(named(&self.path, path, &short));
                    }
                    *offset += read as u64;
                    *left -= read as u64;
                    read
                }
            };
            self.total += read as u64;
            return Ok(read);
        }
    }
}

impl Replay {
    fn advance(&mut self) -> io::Result<()> {
        self.state = match self.records.next()? {
            Record::Raw { length } => State::Raw { left: length },
            Record::Zeros { count } => State::Zeros { left: count },
            Record::File {
                path,
                mode,
                offset,
                count,
            } => {
                let opened = open_file(self.root.as_fd(), &path, mode);
                let file =
                    opened.map_err(|error| named(&self.path, &path, &io::Error::from(error)))?;
                self.file = Some((file, path));
                State::File {
                    offset,
                    left: count,
                }
            }
            Record::SameFile { offset, count } => State::File {
                offset,
                left: count,
            },
            Record::End { total } if total == self.total => State::Ended,
            Record::End { .. } => return Err(malformed()),
        };
        Ok(())
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "tar.split is damaged")
}

fn named(root: &Path, path: &[u8], error: &io::Error) -> io::Error {
    let path = root.join(String::from_utf8_lossy(path).as_ref());
    io::Error::new(error.kind(), format!("read {}: {error}", path.display()))
}

/// Opens a regular file of a layer that was recorded with a mode; one that its owner may not read, or not reach, is
/// made readable for the time that it takes to open it.
fn open_file(root: BorrowedFd<'_>, path: &[u8], mode: u32) -> rustix::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let opened = match open_in_root(root, path, flags) {
        Err(Errno::ACCESS) => open_closed(root, path, mode)?,
        other => other?,
    };
    let status = rustix::fs::fstat(&opened)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    Ok(opened.into())
}

fn open_in_root(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Opens a file up that its owner may not read, or directories on the way to it that its owner may not search; the
/// latter only where no link lies on the way.
fn open_closed(root: BorrowedFd<'_>, path: &[u8], mode: u32) -> rustix::io::Result<OwnedFd> {
    let mut opened = Vec::new();
    let file = match open_in_root(root, path, OFlags::PATH) {
        Err(Errno::ACCESS) => {
            let mut at = root
                .try_clone_to_owned()
                .map_err(|_exhausted| Errno::MFILE)?;
            let components = path
                .split(|byte| *byte == b'/')
                .filter(|component| !matches!(*component, b"" | b"."));
            for component in components {
                let name = CString::new(component).map_err(|_nul| Errno::INVAL)?;
                opened.extend(Opened::directory(&at)?);
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                at = rustix::fs::openat(&at, &name, flags, Mode::empty())?;
            }
            at
        }
        other => other?,
    };
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    // The mode as it was recorded: another process that reads the same file may have opened it up just now.
    let mode = Mode::from_raw_mode(mode & 0o777);
    let _closed_again = Opened::new(file, mode | Mode::RUSR, mode)?;
    rustix::fs::open(&link, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Something that is open for its owner until this is dropped.
#[derive(Debug)]
struct Opened {
    /// An `O_PATH` descriptor's name in /proc: such a descriptor cannot be changed itself before Linux 6.6.
    link: String,
    mode: Mode,
    _file: OwnedFd,
}

impl Opened {
    fn new(file: OwnedFd, open: Mode, closed: Mode) -> rustix::io::Result<Self> {
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::chmodat(rustix::fs::CWD, &link, open, AtFlags::empty())?;
        Ok(Self {
            link,
            mode: closed,
            _file: file,
        })
    }

    /// Opens a directory up where its owner may not search it.
    fn directory(directory: &OwnedFd) -> rustix::io::Result<Option<Self>> {
        let mode = Mode::from_raw_mode(rustix::fs::fstat(directory)?.st_mode & 0o7777);
        if mode.contains(Mode::XUSR) {
            return Ok(None);
        }
        let directory = directory.try_clone().map_err(|_exhausted| Errno::MFILE)?;
        Self::new(directory, mode | Mode::XUSR, mode).map(Some)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let closed = rustix::fs::chmodat(rustix::fs::CWD, &self.link, self.mode, AtFlags::empty());
        if let Err(error) = closed {
            tracing::warn!(%error, "a file of a layer stays open to its owner");
        }
    }
}

/// The records of a `tar.split`.
#[derive(Debug)]
struct Records {
    input: BufReader<ZlibDecoder<BufReader<File>>>,
}

#[derive(Debug)]
enum Record {
    /// The bytes follow in the input.
    Raw {
        length: u64,
    },
    Zeros {
        count: u64,
    },
    File {
        path: Vec<u8>,
        mode: u32,
        offset: u64,
        count: u64,
    },
    SameFile {
        offset: u64,
        count: u64,
    },
    End {
        total: u64,
    },
}

impl Records {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
        let decoder = ZlibDecoder::new(BufReader::new(file));
        let mut input = BufReader::with_capacity(PENDING, decoder);
        let mut magic = [0; MAGIC.len()];
        input
            .read_exact(&mut magic)
            .map_err(|error| Error::io("read", path, error))?;
        if magic != MAGIC {
            return Err(Error::io("read", path, malformed()));
        }
        Ok(Self { input })
    }

    fn next(&mut self) -> io::Result<Record> {
        Ok(match self.byte()? {
            RAW => Record::Raw {
                length: self.number()?,
            },
            ZEROS => Record::Zeros {
                count: self.number()?,
            },
            FILE => {
                let length = self.number()?;
                if length > MAX_PATH {
                    return Err(malformed());
                }
                let mut path = Vec::new();
                (&mut self.input).take(length).read_to_end(&mut path)?;
                if path.len() as u64 != length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Record::File {
                    path,
                    mode: u32::try_from(self.number()?).map_err(|_too_large| malformed())?,
                    offset: self.number()?,
                    count: self.number()?,
                }
            }
            SAME_FILE => Record::SameFile {
                offset: self.number()?,
                count: self.number()?,
            },
            END => Record::End {
                total: self.number()?,
            },
            _ => return Err(malformed()),
        })
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.input.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(malformed());
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed())
    }
}

#[cfg(test)]
mod tests;
