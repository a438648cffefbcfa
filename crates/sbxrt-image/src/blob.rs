//! Blobs, held against size and digest while they are read.
//!
//! A blob passes three stages that run at the same time: it arrives, from a file or the network ([`Arrival`]); one
//! thread hashes and decompresses it ([`decode`]); another hashes what comes out and unpacks it ([`LayerStream`]).
//! Between them lie channels with a bound, so memory stays the same whatever the size of the layer.

use std::io::{self, BufReader, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes};

use crate::compression;
use crate::digest::{Algorithm, Hasher};
use crate::tarball::Skip;
use crate::{Digest, Error, Result};

/// Where a blob comes from.
pub(crate) type Arrival = Box<dyn Read + Send>;

/// Tells the threads that work for a pull that nobody waits for it any more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub(crate) fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What arrives over the network, in the order of its arrival. The end of the channel is the end of the blob.
#[derive(Debug)]
pub(crate) struct NetworkReader {
    channel: tokio::sync::mpsc::Receiver<Bytes>,
    present: Bytes,
}

impl NetworkReader {
    pub(crate) fn new(channel: tokio::sync::mpsc::Receiver<Bytes>) -> Self {
        Self {
            channel,
            present: Bytes::new(),
        }
    }
}

impl Read for NetworkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !self.present.has_remaining() {
            match self.channel.blocking_recv() {
                Some(bytes) => self.present = bytes,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.present.len());
        self.present.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// What a blob must be.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    /// What it is called in messages.
    pub(crate) what: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// A blob that is hashed while it is read and never yields more bytes than it may.
///
/// Decoders wrap the errors of what they read in their own; so the true one is kept aside.
#[derive(Debug)]
struct VerifyingReader<R> {
    inner: R,
    hasher: Hasher,
    received: u64,
    expected: Expected,
    cancel: Cancel,
    failure: Arc<Mutex<Option<Error>>>,
}

impl<R: Read> VerifyingReader<R> {
    fn new(inner: R, expected: Expected, cancel: Cancel) -> Self {
        Self {
            inner,
            hasher: Hasher::new(expected.digest.algorithm()),
            received: 0,
            expected,
            cancel,
            failure: Arc::default(),
        }
    }

    fn fail(&self, error: Error) -> io::Error {
        let message = error.to_string();
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        io::Error::other(message)
    }

    /// Reads what is left and says whether all of it is what was promised.
    fn finish(mut self) -> Result<()> {
        let read = io::copy(&mut self, &mut io::sink());
        if let Some(error) = take(&self.failure) {
            return Err(error);
        }
        read.map_err(|error| Error::io("read", self.expected.what.as_ref(), error))?;
        let actual = self.hasher.finish();
        if actual != self.expected.digest {
            return Err(Error::DigestMismatch {
                what: self.expected.what,
                expected: self.expected.digest,
                actual,
            });
        }
        Ok(())
    }
}

fn take(failure: &Mutex<Option<Error>>) -> Option<Error> {
    failure
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
}

impl<R: Read> Read for VerifyingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let what = || self.expected.what.clone();
        if self.cancel.is_cancelled() {
            return Err(self.fail(Error::Cancelled { what: what() }));
        }
        // One byte more than promised is asked for, to learn whether there is one.
        let left = (self.expected.size - self.received).saturating_add(1);
        let wanted = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let read = match self.inner.read(&mut buffer[..wanted]) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => return Err(self.fail(Error::io("read", what().as_ref(), error))),
        };
        if read == 0 && self.received < self.expected.size {
            return Err(self.fail(Error::Truncated {
                what: what(),
                expected: self.expected.size,
                received: self.received,
            }));
        }
        self.received += read as u64;
        if self.received > self.expected.size {
            return Err(self.fail(Error::SizeMismatch {
                what: what(),
                expected: self.expected.size,
                actual: self.received,
            }));
        }
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

/// Reads a small blob as a whole.
pub(crate) fn read_verified(
    arrival: impl Read,
    expected: &Expected,
    cancel: &Cancel,
) -> Result<Vec<u8>> {
    let mut reader = VerifyingReader::new(arrival, expected.clone(), cancel.clone());
    let mut bytes = Vec::new();
    let read = reader.read_to_end(&mut bytes);
    if let Some(error) = take(&reader.failure) {
        return Err(error);
    }
    read.map_err(|error| Error::io("read", expected.what.as_ref(), error))?;
    reader.finish()?;
    Ok(bytes)
}

/// Reads a layer to its end, verifies it and sends it on decompressed. Where nobody receives any more, it stops and
/// leaves it to the receiver to say why.
pub(crate) fn decode(
    arrival: Arrival,
    expected: &Expected,
    cancel: &Cancel,
    pieces: &SyncSender<Vec<u8>>,
) -> Result<()> {
    let reader = VerifyingReader::new(arrival, expected.clone(), cancel.clone());
    let failure = Arc::clone(&reader.failure);
    let mut buffered = BufReader::with_capacity(64 << 10, reader);
    let mut wanted = true;
    let decoded = compression::decompress(&mut buffered, &mut |piece| {
        wanted = pieces.send(piece).is_ok();
        wanted
    });
    if !wanted {
        return Ok(());
    }
    if let Some(error) = take(&failure) {
        return Err(error);
    }
    // What cannot be decompressed has most likely been altered on its way: that is the better thing to say.
    buffered.into_inner().finish()?;
    decoded.map_err(|error| Error::InvalidLayer {
        layer: expected.digest.clone(),
        reason: format!("cannot decompress it: {error}"),
    })
}

/// The decompressed bytes of a layer: counted, hashed and then read as a tar stream.
#[derive(Debug)]
pub(crate) struct LayerStream {
    pieces: Receiver<Vec<u8>>,
    present: io::Cursor<Vec<u8>>,
    hasher: Hasher,
    total: u64,
    maximum: u64,
    limit: &'static str,
}

impl LayerStream {
    /// Reads pieces, of so many bytes in all; `limit` is the name of that limit.
    pub(crate) fn new(
        pieces: Receiver<Vec<u8>>,
        algorithm: Algorithm,
        maximum: u64,
        limit: &'static str,
    ) -> Self {
        Self {
            pieces,
            present: io::Cursor::default(),
            hasher: Hasher::new(algorithm),
            total: 0,
            maximum,
            limit,
        }
    }

    /// Makes a piece the present one where that is used up; returns whether there is one.
    fn fill(&mut self) -> io::Result<bool> {
        while self.present.position() == self.present.get_ref().len() as u64 {
            let Ok(piece) = self.pieces.recv() else {
                return Ok(false);
            };
            self.total += piece.len() as u64;
            if self.total > self.maximum {
                return Err(io::Error::other(Error::LimitExceeded {
                    what: "the layer when decompressed".to_owned(),
                    limit: self.limit,
                    maximum: self.maximum,
                }));
            }
            self.hasher.update(&piece);
            self.present = io::Cursor::new(piece);
        }
        Ok(true)
    }

    /// Reads what is left and returns the digest of everything.
    pub(crate) fn finish(mut self) -> io::Result<Digest> {
        while self.fill()? {
            self.present
                .set_position(self.present.get_ref().len() as u64);
        }
        Ok(self.hasher.finish())
    }
}

impl Read for LayerStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.fill()? {
            self.present.read(buffer)
        } else {
            Ok(0)
        }
    }
}

impl Skip for LayerStream {
    fn skip(&mut self, mut bytes: u64) -> io::Result<()> {
        while bytes > 0 {
            if !self.fill()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let left = self.present.get_ref().len() as u64 - self.present.position();
            let step = left.min(bytes);
            self.present.set_position(self.present.position() + step);
            bytes -= step;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(digest: &[u8], size: u64) -> Expected {
        Expected {
            what: "blob".to_owned(),
            digest: Digest::of(digest),
            size,
        }
    }

    #[test]
    fn a_blob_is_held_against_size_and_digest() {
        let read =
            |bytes: &[u8], expected: &Expected| read_verified(bytes, expected, &Cancel::default());
        assert_eq!(read(b"hello", &expected(b"hello", 5)).unwrap(), b"hello");
        assert_eq!(read(b"", &expected(b"", 0)).unwrap(), b"");
        let truncated = read(b"hell", &expected(b"hello", 5));
        assert!(
            matches!(truncated, Err(Error::Truncated { received: 4, .. })),
            "{truncated:?}"
        );
        let long = read(b"hello!!!", &expected(b"hello", 5));
        assert!(
            matches!(
                long,
                Err(Error::SizeMismatch {
                    expected: 5,
                    actual: 6,
                    ..
                })
            ),
            "{long:?}"
        );
        let wrong = read(b"hullo", &expected(b"hello", 5));
        assert!(
            matches!(wrong, Err(Error::DigestMismatch { .. })),
            "{wrong:?}"
        );
    }

    #[test]
    fn no_more_than_one_byte_beyond_the_promised_size_is_read() {
        struct Endless(u64);
        impl Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0 += buffer.len() as u64;
                Ok(buffer.len())
            }
        }
        let mut endless = Endless(0);
        read_verified(&mut endless, &expected(b"", 100), &Cancel::default()).unwrap_err();
        assert!(endless.0 <= 101, "{}", endless.0);
    }

    #[test]
    fn altered_bytes_are_told_from_a_badly_made_layer() {
        let decode_all = |bytes: &'static [u8], digest: &[u8]| {
            let (sender, receiver) = std::sync::mpsc::sync_channel(4);
            let expected = expected(digest, bytes.len() as u64);
            let result = decode(Box::new(bytes), &expected, &Cancel::default(), &sender);
            drop(receiver);
            result
        };
        let altered = decode_all(b"\x1f\x8bgarbage", b"other");
        assert!(
            matches!(altered, Err(Error::DigestMismatch { .. })),
            "{altered:?}"
        );
        let bad = decode_all(b"\x1f\x8bgarbage", b"\x1f\x8bgarbage");
        assert!(matches!(bad, Err(Error::InvalidLayer { .. })), "{bad:?}");
    }
}
