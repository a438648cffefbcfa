//! A tar stream, entry by entry, as everybody reads it: POSIX ustar, with a pax header before an entry that it is too
//! small for.
//!
//! The same entries always give the same bytes: nothing of the time, the user or the machine gets in.

use std::io::{self, Read, Write};

use crate::tarball::Kind;

const BLOCK: usize = 512;
const BUFFER: usize = 256 << 10;
/// What a field of so many octal digits holds at most.
const MAX_SMALL: u64 = (1 << 21) - 1;
const MAX_LARGE: u64 = (1 << 33) - 1;

/// What an entry is to say of itself.
#[derive(Clone, Debug)]
pub(crate) struct Header<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) link: &'a [u8],
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds since 1970, and nanoseconds of a second.
    pub(crate) modified: (i64, u32),
    pub(crate) size: u64,
    pub(crate) device: (u64, u64),
    pub(crate) xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

impl<'a> Header<'a> {
    /// The header of something that root owns, changed at the beginning of time.
    pub(crate) fn new(path: &'a [u8], kind: Kind, mode: u32) -> Self {
        Self {
            path,
            link: b"",
            kind,
            mode,
            uid: 0,
            gid: 0,
            modified: (0, 0),
            size: 0,
            device: (0, 0),
            xattrs: &[],
        }
    }

    /// Returns the block that says all this, as far as a block can. A size beyond it is binary there, as GNU tar has
    /// it: in a record it is out of reach once what follows is written.
    pub(crate) fn block(&self) -> [u8; BLOCK] {
        let mut block = Block::new(self.path, type_flag(self.kind), self.mode & 0o7777);
        block.number(108, 8, self.uid);
        block.number(116, 8, self.gid);
        if self.size > MAX_LARGE {
            block.0[124..136].fill(0);
            block.0[124] = 0x80;
            block.0[128..136].copy_from_slice(&self.size.to_be_bytes());
        } else {
            block.number(124, 12, self.size);
        }
        // What does not fit is in a record; a time before 1970 as well.
        block.number(136, 12, u64::try_from(self.modified.0).unwrap_or(0));
        block.text(157, 100, self.link);
        if matches!(self.kind, Kind::CharacterDevice | Kind::BlockDevice) {
            block.number(329, 8, self.device.0);
            block.number(337, 8, self.device.1);
        }
        block.seal()
    }
}

/// Writes the entries of a tar stream.
#[derive(Debug)]
pub(crate) struct TarWriter<W> {
    output: W,
    buffer: Vec<u8>,
}

impl<W: Write> TarWriter<W> {
    pub(crate) fn new(output: W) -> Self {
        Self {
            output,
            buffer: Vec::new(),
        }
    }

    /// Writes the header of an entry. As many bytes of [`data`](Self::data) as it promises must follow.
    pub(crate) fn header(&mut self, header: &Header<'_>) -> io::Result<()> {
        let records = records(header);
        if !records.is_empty() {
            let name = pax_name(header.path);
            let mut block = Block::new(&name, b'x', 0o644);
            block.number(124, 12, records.len() as u64);
            self.output.write_all(&block.seal())?;
            self.output.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        self.output.write_all(&header.block())
    }

    /// Writes the data of an entry: exactly `size` bytes; fails with `UnexpectedEof` where there are fewer.
    pub(crate) fn data(&mut self, reader: &mut impl Read, size: u64) -> Result<(), DataError> {
        self.buffer.resize(BUFFER, 0);
        let mut left = size;
        while left > 0 {
            let wanted = usize::try_from(left).map_or(BUFFER, |left| left.min(BUFFER));
            let read = match reader.read(&mut self.buffer[..wanted]) {
                Ok(0) => return Err(DataError::Read(io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(DataError::Read(error)),
            };
            self.output
                .write_all(&self.buffer[..read])
                .map_err(DataError::Write)?;
            left -= read as u64;
        }
        self.pad(size).map_err(DataError::Write)
    }

    /// Writes data to its end and fills the last block; returns how much there was.
    pub(crate) fn copy(&mut self, reader: &mut impl Read) -> Result<u64, DataError> {
        self.buffer.resize(BUFFER, 0);
        let mut size = 0;
        loop {
            let read = match reader.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(DataError::Read(error)),
            };
            self.output
                .write_all(&self.buffer[..read])
                .map_err(DataError::Write)?;
            size += read as u64;
        }
        self.pad(size).map_err(DataError::Write)?;
        Ok(size)
    }

    /// Returns what it writes to.
    pub(crate) fn output(&mut self) -> &mut W {
        &mut self.output
    }

    /// Writes the end of the archive and returns what it was written to.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.output.write_all(&[0; 2 * BLOCK])?;
        Ok(self.output)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let used = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        if used == 0 {
            return Ok(());
        }
        self.output.write_all(&[0; BLOCK][used..])
    }
}

/// Which side failed while data was copied.
#[derive(Debug)]
pub(crate) enum DataError {
    Read(io::Error),
    Write(io::Error),
}

fn type_flag(kind: Kind) -> u8 {
    match kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::CharacterDevice => b'3',
        Kind::BlockDevice => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    }
}

/// The pax records that an entry needs, in the order of their keys.
fn records(header: &Header<'_>) -> Vec<u8> {
    let mut records = Vec::new();
    let mut add = |key: &[u8], value: &[u8]| record(&mut records, key, value);
    let decimal = |number: u64| number.to_string().into_bytes();
    let mut xattrs = header.xattrs.iter().collect::<Vec<_>>();
    xattrs.sort();
    for (key, value) in xattrs {
        add(&[b"SCHILY.xattr.", key.as_slice()].concat(), value);
    }
    if header.gid > MAX_SMALL {
        add(b"gid", &decimal(header.gid));
    }
    if !fits(header.link) {
        add(b"linkpath", header.link);
    }
    let (seconds, nanoseconds) = header.modified;
    if nanoseconds != 0 || u64::try_from(seconds).map_or(true, |seconds| seconds > MAX_LARGE) {
        add(b"mtime", time(seconds, nanoseconds).as_bytes());
    }
    if !fits(header.path) {
        add(b"path", header.path);
    }
    if header.size > MAX_LARGE {
        add(b"size", &decimal(header.size));
    }
    if header.uid > MAX_SMALL {
        add(b"uid", &decimal(header.uid));
    }
    records
}

/// Whether a name is one that every reader takes from the header as it is.
fn fits(name: &[u8]) -> bool {
    name.len() <= 100 && name.is_ascii()
}

/// Appends `LENGTH KEY=VALUE\n`, the length counting all of it, itself included.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// Writes a time as seconds with a fraction; pax has the sign before all of it.
fn time(seconds: i64, nanoseconds: u32) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let sign = if total < 0 { "-" } else { "" };
    let absolute = total.unsigned_abs();
    let (whole, fraction) = (absolute / 1_000_000_000, absolute % 1_000_000_000);
    if fraction == 0 {
        return format!("{sign}{whole}");
    }
    format!("{sign}{whole}.{fraction:09}")
        .trim_end_matches('0')
        .to_owned()
}

/// What a pax header itself is called; nobody but a reader that knows no pax sees it.
fn pax_name(path: &[u8]) -> Vec<u8> {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let leaf = path
        .rsplit(|byte| *byte == b'/')
        .next()
        .unwrap_or_default()
        .iter()
        .map(|byte| if byte.is_ascii() { *byte } else { b'_' })
        .take(80);
    b"PaxHeaders/".iter().copied().chain(leaf).collect()
}

/// A header block in the making.
struct Block([u8; BLOCK]);

impl Block {
    fn new(name: &[u8], type_flag: u8, mode: u32) -> Self {
        let mut block = Self([0; BLOCK]);
        block.text(0, 100, name);
        block.number(100, 8, u64::from(mode));
        block.number(108, 8, 0);
        block.number(116, 8, 0);
        block.number(124, 12, 0);
        block.number(136, 12, 0);
        block.0[156] = type_flag;
        block.0[257..265].copy_from_slice(b"ustar\x0000");
        block.number(329, 8, 0);
        block.number(337, 8, 0);
        block
    }

    /// Writes octal digits and a NUL; zero where the number does not fit, since a record has it then.
    fn number(&mut self, at: usize, length: usize, number: u64) {
        let digits = length - 1;
        let mut text = format!("{number:0digits$o}");
        if text.len() > digits {
            text = "0".repeat(digits);
        }
        self.0[at..at + digits].copy_from_slice(text.as_bytes());
        self.0[at + digits] = 0;
    }

    /// Writes as much of a text as fits, for readers that know no pax; it is ASCII in any case.
    fn text(&mut self, at: usize, length: usize, text: &[u8]) {
        for (place, byte) in self.0[at..at + length].iter_mut().zip(text) {
            *place = if byte.is_ascii() { *byte } else { b'_' };
        }
    }

    fn seal(mut self) -> [u8; BLOCK] {
        self.0[148..156].fill(b' ');
        let sum = self.0.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        self.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tarball::{Entry, Tarball};

    fn read(bytes: &[u8]) -> Entry {
        let mut tarball = Tarball::new(bytes, 1 << 20);
        let entry = tarball.next_entry().unwrap().unwrap();
        assert!(tarball.next_entry().unwrap().is_none());
        entry
    }

    fn kind() -> impl Strategy<Value = Kind> {
        prop_oneof![
            Just(Kind::File),
            Just(Kind::HardLink),
            Just(Kind::Symlink),
            Just(Kind::Directory),
            Just(Kind::Fifo),
            Just(Kind::CharacterDevice),
            Just(Kind::BlockDevice),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            kind in kind(),
            path in proptest::collection::vec(1_u8..=255, 1..300),
            link in proptest::collection::vec(1_u8..=255, 0..300),
            mode in 0_u32..=0o7777,
            (uid, gid) in (any::<u32>(), any::<u32>()),
            seconds in prop_oneof![Just(0_i64), -5_000_000_000_i64..20_000_000_000],
            nanoseconds in prop_oneof![Just(0_u32), 0_u32..1_000_000_000],
            device in (0_u64..0o7_777_777, 0_u64..0o7_777_777),
            xattrs in proptest::collection::btree_map(
                "user\\.[a-z]{1,20}", proptest::collection::vec(any::<u8>(), 0..200), 0..3),
            data in proptest::collection::vec(any::<u8>(), 0..1500),
        ) {
            // What ends in a slash is a directory, whatever its header says.
            prop_assume!(kind == Kind::Directory || !path.ends_with(b"/"));
            let is_device = matches!(kind, Kind::CharacterDevice | Kind::BlockDevice);
            let has_link = matches!(kind, Kind::HardLink | Kind::Symlink);
            let data = if kind == Kind::File { data } else { Vec::new() };
            let xattrs = xattrs.into_iter().map(|(key, value)| (key.into_bytes(), value)).collect::<Vec<_>>();
            let header = Header {
                path: &path,
                link: if has_link { &link } else { b"" },
                kind,
                mode,
                uid: uid.into(),
                gid: gid.into(),
                modified: (seconds, nanoseconds),
                size: data.len() as u64,
                device: if is_device { device } else { (0, 0) },
                xattrs: &xattrs,
            };
            let mut writer = TarWriter::new(Vec::new());
            writer.header(&header).unwrap();
            writer.data(&mut data.as_slice(), data.len() as u64).unwrap();
            let bytes = writer.finish().unwrap();
            prop_assert_eq!(bytes.len() % BLOCK, 0);
            let entry = read(&bytes);
            prop_assert_eq!(
                (&entry.path, entry.kind, entry.mode, entry.uid, entry.gid, entry.stored),
                (&path, kind, mode, header.uid, header.gid, header.size)
            );
            prop_assert_eq!(entry.link.as_slice(), header.link);
            prop_assert_eq!((entry.modified_seconds, entry.modified_nanoseconds), header.modified);
            prop_assert_eq!((entry.device, entry.xattrs), (header.device, xattrs));
        }
    }

    #[test]
    fn a_size_beyond_the_header_is_in_a_record() {
        let header = Header {
            size: 9 << 30,
            ..Header::new(b"large", Kind::File, 0o644)
        };
        let mut writer = TarWriter::new(Vec::new());
        writer.header(&header).unwrap();
        let bytes = writer.output;
        let mut tarball = Tarball::new(bytes.as_slice(), 1 << 20);
        assert_eq!(tarball.next_entry().unwrap().unwrap().stored, 9 << 30);
    }

    #[test]
    fn data_that_ends_early_is_told() {
        let mut writer = TarWriter::new(Vec::new());
        let written = writer.data(&mut b"abc".as_slice(), 4);
        assert!(matches!(written, Err(DataError::Read(_))), "{written:?}");
    }
}
