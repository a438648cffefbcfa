//! Archives that `ADD` unpacks: each into a layer of its own that is then copied from.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use super::stack::Stack;
use crate::scratch::Scratch;
use crate::tarball::{Skip, Tarball};
use crate::unpack::Unpacker;
use crate::{Digest, Error, Limits, Result, Store, compression};

const BUFFER: usize = 128 << 10;

impl Store {
    /// Unpacks a tar archive, plain or compressed by gzip or zstd, into a directory of its own, which is one layer to copy
    /// from; `None` where the file is no archive.
    ///
    /// # Errors
    ///
    /// As for the layer of an image; [`Error::UnsupportedFile`] for other compressions.
    pub fn unpack_archive(
        &self,
        file: File,
        name: &str,
        limits: &Limits,
    ) -> Result<Option<UnpackedArchive>> {
        let mut reader = io::BufReader::with_capacity(BUFFER, file);
        let start = peek(&mut reader).map_err(|error| Error::io("read", name.as_ref(), error))?;
        let unsupported = [
            (b"BZh".as_slice(), "bzip2"),
            (b"\xfd7zXZ\0".as_slice(), "xz"),
        ];
        if let Some((_, kind)) = unsupported
            .iter()
            .find(|(magic, _)| start.starts_with(magic))
        {
            return Err(Error::UnsupportedFile {
                path: name.into(),
                reason: format!("archives compressed by {kind} cannot be unpacked"),
            });
        }
        let is_tar = |block: &[u8]| block.get(257..262) == Some(b"ustar".as_slice());
        if !compression::is_compressed(&start) && !is_tar(&start) {
            return Ok(None);
        }
        let scratch = Scratch::unique(&self.tmp(), "archive")?;
        let directory = scratch.path().join("layer");
        std::fs::create_dir(&directory).map_err(|error| Error::io("create", &directory, error))?;
        let (sender, receiver) = std::sync::mpsc::sync_channel::<Vec<u8>>(4);
        let digest = Digest::of(name.as_bytes());
        let mut unpacker = Unpacker::new(&directory, &digest, true, limits)?;
        let mut budget = limits.layer_bytes;
        let unpacked = std::thread::scope(|scope| {
            let decompressing = scope.spawn(move || {
                compression::decompress(&mut reader, &mut |piece| {
                    let Some(left) = budget.checked_sub(piece.len() as u64) else {
                        return false;
                    };
                    budget = left;
                    sender.send(piece).is_ok()
                })
            });
            let mut pieces = Pieces {
                receiver,
                current: io::Cursor::new(Vec::new()),
            };
            let unpacked = if is_tar(&pieces.first_block()) {
                unpacker
                    .unpack(&mut Tarball::new(pieces, limits.header_bytes))
                    .map(|()| true)
            } else {
                drop(pieces);
                Ok(false)
            };
            let decompressed = decompressing
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match (unpacked, decompressed) {
                (_, Err(error)) => Err(Error::io("decompress", name.as_ref(), error)),
                (unpacked, Ok(())) => unpacked,
            }
        })?;
        if !unpacked {
            return Ok(None);
        }
        unpacker.finish(&[])?;
        Ok(Some(UnpackedArchive {
            files: directory.join("fs"),
            _scratch: scratch,
        }))
    }
}

/// The first bytes of a file, which stay to be read.
fn peek(reader: &mut io::BufReader<File>) -> io::Result<Vec<u8>> {
    use io::BufRead as _;
    Ok(reader.fill_buf()?.iter().take(512).copied().collect())
}

/// A stream that arrives in pieces.
struct Pieces {
    receiver: std::sync::mpsc::Receiver<Vec<u8>>,
    current: io::Cursor<Vec<u8>>,
}

impl Pieces {
    /// The first 512 bytes, which stay to be read.
    fn first_block(&mut self) -> Vec<u8> {
        let mut block = Vec::new();
        while block.len() < 512 {
            match self.receiver.recv() {
                Ok(piece) => block.extend(piece),
                Err(_closed) => break,
            }
        }
        self.current = io::Cursor::new(block.clone());
        block.truncate(512);
        block
    }
}

impl io::Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let length = self.current.read(buffer)?;
            if length > 0 || buffer.is_empty() {
                return Ok(length);
            }
            match self.receiver.recv() {
                Ok(piece) => self.current = io::Cursor::new(piece),
                Err(_closed) => return Ok(0),
            }
        }
    }
}

impl Skip for Pieces {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = io::copy(&mut io::Read::take(&mut *self, bytes), &mut io::sink())?;
        if skipped < bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

/// An archive that was unpacked to be copied from; gone when dropped.
#[derive(Debug)]
pub struct UnpackedArchive {
    files: PathBuf,
    _scratch: Scratch,
}

impl UnpackedArchive {
    /// Its files, as one tree with their owners.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where they cannot be opened.
    pub fn stack(&self) -> Result<Stack> {
        Stack::of_layers(&[&self.files])
    }
}
