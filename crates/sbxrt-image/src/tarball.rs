//! A tar stream, entry by entry, from whoever may have written it.
//!
//! Headers are read as POSIX pax and GNU tar write them: long names, 64-bit numbers, extended attributes and sparse
//! files. The `tar` crate lends the layout of a header and nothing else, since its own iterator keeps extended headers
//! of any size in memory and passes over some disagreements in silence.
//!
//! Where readers in common use would disagree about where an entry ends or what it is called, the stream is refused:
//! an entry that only some of them see is how content is smuggled past a scanner (CVE-2025-62518, CVE-2026-33055).

use std::io::{self, Read};

use crate::replay::Recorder;

/// The size of everything in a tar stream.
const BLOCK: usize = 512;

/// A stream that can leave bytes out.
pub(crate) trait Skip: Read {
    /// Passes over some bytes; fails where the stream ends before.
    fn skip(&mut self, bytes: u64) -> io::Result<()>;
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// The header of an entry, with its extensions applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) modified_seconds: i64,
    pub(crate) modified_nanoseconds: u32,
    /// The bytes of its data in the stream.
    pub(crate) stored: u64,
    pub(crate) device: (u64, u64),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: Option<Sparse>,
}

/// Which parts of a file the stream holds; the rest is zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sparse {
    pub(crate) size: u64,
    /// Offset and length of each part, in order.
    pub(crate) parts: Vec<(u64, u64)>,
}

/// Why a stream cannot be read on.
#[derive(Debug)]
pub(crate) enum TarError {
    Io(io::Error),
    /// The stream is no tar archive, or is one that readers disagree about.
    Damaged(String),
    /// An extended header is larger than it may be.
    HeaderTooLarge,
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::Damaged("the archive ends within an entry".to_owned());
        }
        Self::Io(error)
    }
}

fn damaged<T>(reason: impl Into<String>) -> Result<T, TarError> {
    Err(TarError::Damaged(reason.into()))
}

/// Reads the entries of a tar stream.
#[derive(Debug)]
pub(crate) struct Tarball<R> {
    reader: R,
    /// The bytes of the present entry's data that were not read yet.
    data: u64,
    /// The bytes after them that fill the last block.
    padding: u64,
    header_bytes: u64,
    offset: u64,
    ended: bool,
    /// Keeps all bytes but those of [`read_data`](Self::read_data).
    recorder: Option<Recorder>,
}

impl<R: Skip> Tarball<R> {
    /// Reads a stream from its beginning; an extended header may have so many bytes.
    pub(crate) fn new(reader: R, header_bytes: u64) -> Self {
        Self {
            reader,
            data: 0,
            padding: 0,
            header_bytes,
            offset: 0,
            ended: false,
            recorder: None,
        }
    }

    /// Keeps the bytes that are read from now on, but for data, which whoever reads it answers for.
    pub(crate) fn record(&mut self, recorder: Recorder) {
        self.recorder = Some(recorder);
    }

    pub(crate) fn recorder(&mut self) -> Option<&mut Recorder> {
        self.recorder.as_mut()
    }

    /// Reads what follows the end of the archive, to the end of the stream, and stops to keep bytes.
    pub(crate) fn finish_recording(&mut self) -> Result<Option<Recorder>, TarError> {
        if self.recorder.is_some() {
            let mut buffer = [0; 16 * BLOCK];
            loop {
                match self.reader.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(read) => self.keep(&buffer[..read])?,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(self.recorder.take())
    }

    fn keep(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.recorder {
            Some(recorder) => recorder.raw(bytes),
            None => Ok(()),
        }
    }

    /// Passes over some bytes; fails where the stream ends before.
    fn pass(&mut self, mut bytes: u64) -> io::Result<()> {
        if self.recorder.is_none() {
            return self.reader.skip(bytes);
        }
        let mut buffer = [0; 2 * BLOCK];
        while bytes > 0 {
            let wanted = usize::try_from(bytes).map_or(buffer.len(), |left| left.min(buffer.len()));
            match self.reader.read(&mut buffer[..wanted]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    self.keep(&buffer[..read])?;
                    bytes -= read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(crate) fn into_inner(self) -> R {
        self.reader
    }

    /// Returns where the stream stands: after a header, this is where the entry's data begins.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads some of the present entry's data; 0 where there is no more.
    pub(crate) fn read_data(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.data).map_or(buffer.len(), |data| data.min(buffer.len()));
        if wanted == 0 {
            return Ok(0);
        }
        let read = self.reader.read(&mut buffer[..wanted])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data -= read as u64;
        self.offset += read as u64;
        Ok(read)
    }

    /// Goes to the next entry; `None` at the end of the archive.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            let Some(block) = self.next_header()? else {
                if extensions.any {
                    return damaged("the archive ends after an extended header");
                }
                return Ok(None);
            };
            let header = tar::Header::from_byte_slice(&block);
            let size = number(&header.as_old().size)
                .and_then(|size| u64::try_from(size).ok())
                .ok_or_else(|| TarError::Damaged("an entry has an impossible size".to_owned()))?;
            match block[156] {
                b'x' | b'X' => extensions.pax(&self.extension(size)?)?,
                b'g' => refuse_global(&self.extension(size)?)?,
                b'L' => extensions.long_name(self.extension(size)?)?,
                b'K' => extensions.long_link(self.extension(size)?)?,
                _ => return self.finish_entry(&block, size, extensions).map(Some),
            }
        }
    }

    /// Passes over what is left of the present entry and reads the next header; `None` at the end of the archive.
    fn next_header(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        if self.ended {
            return Ok(None);
        }
        self.pass(self.data)?;
        self.offset += self.data;
        self.data = 0;
        if self.padding > 0 {
            self.offset += self.padding;
            let padding = std::mem::take(&mut self.padding);
            match self.pass(padding) {
                // All data is there; some tools do not fill up the last block, and Go's reader takes it for the end.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.ended = true;
                    return Ok(None);
                }
                other => other?,
            }
        }
        let Some(block) = self.block()? else {
            // An archive without its two blocks of zeros is common and complete.
            self.ended = true;
            return Ok(None);
        };
        if block.iter().all(|byte| *byte == 0) {
            self.ended = true;
            return match self.block()? {
                Some(second) if second.iter().any(|byte| *byte != 0) => {
                    damaged("an entry follows the end of the archive")
                }
                _ => Ok(None),
            };
        }
        let sum = block
            .iter()
            .enumerate()
            .map(|(index, byte)| {
                if (148..156).contains(&index) {
                    32
                } else {
                    i64::from(*byte)
                }
            })
            .sum::<i64>();
        if number(&block[148..156]) != Some(sum) {
            return damaged("a header's checksum is wrong");
        }
        Ok(Some(block))
    }

    /// Reads a block; `None` where the stream ends before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return damaged("the archive ends within a header"),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.offset += BLOCK as u64;
        self.keep(&block)?;
        Ok(Some(block))
    }

    /// Reads the data of an extended header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > self.header_bytes {
            return Err(TarError::HeaderTooLarge);
        }
        let padded = size.next_multiple_of(BLOCK as u64);
        let mut bytes =
            vec![0; usize::try_from(padded).map_err(|_beyond_memory| TarError::HeaderTooLarge)?];
        self.reader.read_exact(&mut bytes)?;
        self.keep(&bytes)?;
        self.offset += padded;
        bytes.truncate(usize::try_from(size).map_err(|_beyond_memory| TarError::HeaderTooLarge)?);
        Ok(bytes)
    }

    fn finish_entry(
        &mut self,
        block: &[u8; BLOCK],
        size: u64,
        extensions: Extensions,
    ) -> Result<Entry, TarError> {
        let header = tar::Header::from_byte_slice(block);
        let old = header.as_old();
        let small = |field: &[u8], what: &str| {
            number(field)
                .and_then(|value| u64::try_from(value).ok())
                .ok_or_else(|| TarError::Damaged(format!("an entry has an impossible {what}")))
        };
        if block[257..262] != *b"ustar" && block[345..500].iter().any(|byte| *byte != 0) {
            return damaged(
                "a header without a magic number has a prefix, which only some readers heed",
            );
        }
        let path = extensions
            .path
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = match extensions.link {
            Some(link) => link,
            None => header
                .link_name_bytes()
                .map(std::borrow::Cow::into_owned)
                .unwrap_or_default(),
        };
        let kind = match block[156] {
            // Before POSIX, a directory was a file whose name ends in a slash.
            0 if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharacterDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                return damaged(format!(
                    "entry {:?} has the unknown type {:?}",
                    String::from_utf8_lossy(&path),
                    char::from(other)
                ));
            }
        };
        let stored = extensions.size.unwrap_or(size);
        if (kind != Kind::File || path.ends_with(b"/")) && stored != 0 {
            // Some readers pass over these bytes, some take them for the next header.
            return damaged(format!(
                "entry {:?} is no file and has data",
                String::from_utf8_lossy(&path)
            ));
        }
        let (modified_seconds, modified_nanoseconds) = match extensions.modified {
            Some(modified) => modified,
            None => (number(&old.mtime).unwrap_or(0), 0),
        };
        let device = match kind {
            Kind::CharacterDevice | Kind::BlockDevice => (
                small(&block[329..337], "device")?,
                small(&block[337..345], "device")?,
            ),
            _ => (0, 0),
        };
        self.data = stored;
        self.padding = stored
            .checked_next_multiple_of(BLOCK as u64)
            .ok_or_else(|| TarError::Damaged("an entry has an impossible size".to_owned()))?
            - stored;
        let mut entry = Entry {
            path,
            link,
            kind,
            mode: u32::try_from(small(&old.mode, "mode")? & 0o7777).unwrap_or(0),
            uid: match extensions.uid {
                Some(uid) => uid,
                None => small(&old.uid, "owner")?,
            },
            gid: match extensions.gid {
                Some(gid) => gid,
                None => small(&old.gid, "group")?,
            },
            modified_seconds,
            modified_nanoseconds,
            stored,
            device,
            xattrs: extensions.xattrs,
            sparse: None,
        };
        let sparse = extensions.sparse;
        if block[156] == b'S' {
            if sparse.any {
                return damaged("a file is sparse in two ways");
            }
            let parts = self.gnu_parts(block)?;
            entry.sparse = Some(Sparse {
                size: small(&block[483..495], "size")?,
                parts,
            });
        } else if sparse.any {
            if kind != Kind::File {
                return damaged("an entry that is no file is sparse");
            }
            if let Some(name) = sparse.name {
                entry.path = name;
            }
            let parts = if sparse.version == (Some(1), Some(0)) {
                self.pax_parts()?
            } else {
                sparse.parts
            };
            entry.sparse = Some(Sparse {
                size: sparse
                    .size
                    .ok_or_else(|| TarError::Damaged("a sparse file has no size".to_owned()))?,
                parts,
            });
        }
        if let Some(sparse) = &entry.sparse {
            check_parts(sparse, self.data)?;
        }
        Ok(entry)
    }

    /// Reads the parts of a sparse file as GNU tar first wrote them: in the header and in blocks after it.
    fn gnu_parts(&mut self, header: &[u8; BLOCK]) -> Result<Vec<(u64, u64)>, TarError> {
        let mut parts = Vec::new();
        let mut add = |fields: &[u8]| {
            for field in fields.chunks_exact(24) {
                let offset = number(&field[..12]).and_then(|value| u64::try_from(value).ok());
                let length = number(&field[12..]).and_then(|value| u64::try_from(value).ok());
                match (offset, length) {
                    (Some(0), Some(0)) => {}
                    (Some(offset), Some(length)) => parts.push((offset, length)),
                    _ => return damaged("a sparse file has an impossible part"),
                }
            }
            Ok(())
        };
        add(&header[386..482])?;
        let mut more = header[482] != 0;
        let mut read = 0;
        while more {
            read += BLOCK as u64;
            if read > self.header_bytes {
                return Err(TarError::HeaderTooLarge);
            }
            let Some(block) = self.block()? else {
                return damaged("the archive ends within a header");
            };
            add(&block[..504])?;
            more = block[504] != 0;
        }
        Ok(parts)
    }

    /// Reads the parts of a sparse file in pax format 1.0: decimal numbers on lines, before the data.
    fn pax_parts(&mut self) -> Result<Vec<(u64, u64)>, TarError> {
        let mut read = 0_u64;
        let mut numbers = Vec::new();
        let mut wanted = None;
        let mut digits = Vec::new();
        let mut block = [0; BLOCK];
        'blocks: loop {
            read += BLOCK as u64;
            if read > self.header_bytes {
                return Err(TarError::HeaderTooLarge);
            }
            if self.data < BLOCK as u64 {
                return damaged("a sparse file's map is cut off");
            }
            self.reader.read_exact(&mut block)?;
            self.keep(&block)?;
            self.data -= BLOCK as u64;
            self.offset += BLOCK as u64;
            for byte in block {
                if byte != b'\n' {
                    digits.push(byte);
                    continue;
                }
                let number = decimal(&digits)?;
                digits.clear();
                match wanted {
                    None => wanted = Some(number.checked_mul(2).ok_or(TarError::HeaderTooLarge)?),
                    Some(_) => numbers.push(number),
                }
                if wanted == Some(numbers.len() as u64) {
                    break 'blocks;
                }
            }
        }
        Ok(numbers
            .chunks_exact(2)
            .map(|pair| (pair[0], pair[1]))
            .collect())
    }
}

/// Holds the parts of a sparse file against its size and against the data that there is.
fn check_parts(sparse: &Sparse, stored: u64) -> Result<(), TarError> {
    let mut end = 0_u64;
    let mut total = 0_u64;
    for (offset, length) in &sparse.parts {
        let after = offset.checked_add(*length);
        match after {
            Some(after) if *offset >= end && after <= sparse.size => end = after,
            _ => return damaged("the parts of a sparse file overlap or lie outside of it"),
        }
        total += length;
    }
    if total != stored {
        return damaged("the parts of a sparse file are not its data");
    }
    Ok(())
}

/// What extended headers say about the entry after them.
#[derive(Default)]
struct Extensions {
    any: bool,
    has_pax: bool,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    modified: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: SparseExtensions,
}

#[derive(Default)]
struct SparseExtensions {
    any: bool,
    version: (Option<u64>, Option<u64>),
    name: Option<Vec<u8>>,
    size: Option<u64>,
    parts: Vec<(u64, u64)>,
    offset: Option<u64>,
}

impl Extensions {
    fn pax(&mut self, bytes: &[u8]) -> Result<(), TarError> {
        if self.has_pax {
            return damaged("an entry has two extended headers");
        }
        self.any = true;
        self.has_pax = true;
        for record in Records(bytes) {
            let (key, value) = record?;
            match key {
                b"path" if value.is_empty() => return damaged("an entry's name is empty"),
                b"path" => set_once(&mut self.path, value.to_vec())?,
                b"linkpath" if !value.is_empty() => set_once(&mut self.link, value.to_vec())?,
                b"size" => set_once(&mut self.size, decimal(value)?)?,
                b"uid" => self.uid = Some(decimal(value)?),
                b"gid" => self.gid = Some(decimal(value)?),
                b"mtime" => self.modified = Some(time(value)?),
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                        self.sparse.record(name, value)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn long_name(&mut self, bytes: Vec<u8>) -> Result<(), TarError> {
        self.any = true;
        let name = until_nul(bytes);
        if name.is_empty() {
            return damaged("an entry's name is empty");
        }
        set_once(&mut self.path, name)
    }

    fn long_link(&mut self, bytes: Vec<u8>) -> Result<(), TarError> {
        self.any = true;
        set_once(&mut self.link, until_nul(bytes))
    }
}

impl SparseExtensions {
    fn record(&mut self, name: &[u8], value: &[u8]) -> Result<(), TarError> {
        self.any = true;
        match name {
            b"major" => self.version.0 = Some(decimal(value)?),
            b"minor" => self.version.1 = Some(decimal(value)?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(decimal(value)?),
            b"offset" => self.offset = Some(decimal(value)?),
            b"numbytes" => match self.offset.take() {
                Some(offset) => self.parts.push((offset, decimal(value)?)),
                None => return damaged("a sparse file has a part without a place"),
            },
            b"map" => {
                let numbers = value
                    .split(|byte| *byte == b',')
                    .map(decimal)
                    .collect::<Result<Vec<_>, _>>()?;
                self.parts = numbers
                    .chunks_exact(2)
                    .map(|pair| (pair[0], pair[1]))
                    .collect();
            }
            _ => {}
        }
        Ok(())
    }
}

fn set_once<T>(place: &mut Option<T>, value: T) -> Result<(), TarError> {
    if place.is_some() {
        return damaged("an entry's name, target or size is given twice");
    }
    *place = Some(value);
    Ok(())
}

/// A global header may say how the archive was made, not what its entries are: readers differ in heeding it.
fn refuse_global(bytes: &[u8]) -> Result<(), TarError> {
    for record in Records(bytes) {
        let (key, _) = record?;
        if matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(b"GNU.sparse.") {
            return damaged("a global header renames or resizes entries");
        }
    }
    Ok(())
}

/// The records of a pax header: `LENGTH KEY=VALUE\n`, the length counting all of it.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), TarError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = split_record(self.0);
        let Some((key, value, rest)) = record else {
            self.0 = &[];
            return Some(damaged("an extended header is malformed"));
        };
        self.0 = rest;
        Some(Ok((key, value)))
    }
}

fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space]).ok()?).ok()?;
    let body = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    if equals == 0 {
        return None;
    }
    Some((&body[..equals], &body[equals + 1..], &bytes[length..]))
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// Reads a number of a header: octal digits, or binary where the first bit is set. An empty field is 0.
fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        // Two's complement in all bits but the first, which is only a mark.
        let negative = field[0] & 0x40 != 0;
        let first = i128::from(field[0] & 0x7f) - if negative { 0x80 } else { 0 };
        let value = field[1..].iter().try_fold(first, |value, byte| {
            Some(value.checked_mul(256)? + i128::from(*byte))
        })?;
        return i64::try_from(value).ok();
    }
    let text = field.split(|byte| *byte == 0).next()?.trim_ascii();
    if text.is_empty() {
        return Some(0);
    }
    text.iter().try_fold(0_i64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

fn decimal(text: &[u8]) -> Result<u64, TarError> {
    let value = text.iter().try_fold(0_u64, |value, byte| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    });
    match value {
        Some(value) if !text.is_empty() => Ok(value),
        _ => damaged("an extended header holds an impossible number"),
    }
}

/// Reads a time of a pax header: seconds, perhaps negative, perhaps with a fraction.
fn time(text: &[u8]) -> Result<(i64, u32), TarError> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let mut parts = digits.splitn(2, |byte| *byte == b'.');
    // Beyond what a clock can show any time is as good as another.
    let seconds = match parts.next().map(decimal) {
        Some(Ok(seconds)) => i64::try_from(seconds).unwrap_or(i64::MAX),
        _ if digits.iter().all(u8::is_ascii_digit) && !digits.is_empty() => i64::MAX,
        _ => return damaged("an extended header holds an impossible time"),
    };
    let mut nanoseconds = 0_u32;
    let fraction = parts.next().unwrap_or_default();
    for place in 0..9 {
        let digit = match fraction.get(place) {
            Some(digit @ b'0'..=b'9') => u32::from(digit - b'0'),
            Some(_) => return damaged("an extended header holds an impossible time"),
            None => 0,
        };
        nanoseconds = nanoseconds * 10 + digit;
    }
    Ok(match (negative, nanoseconds) {
        (false, nanoseconds) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, nanoseconds) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod differential;
