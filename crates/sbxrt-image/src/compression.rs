//! The compressions of layers: gzip, zstd and none.
//!
//! Which one it is shows in the first bytes, as Docker and containerd tell it; media types are often wrong. What comes
//! out is held against the `diff_id` in any case.

use std::io::{self, BufRead, Read};

use flate2::bufread::DeflateDecoder;
use ruzstd::decoding::StreamingDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};

/// How much is handed on at a time.
const PIECE: usize = 256 << 10;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Whether some bytes begin a compressed stream.
pub(crate) fn is_compressed(start: &[u8]) -> bool {
    start.starts_with(&GZIP) || is_zstd(start)
}

/// Frames of zstd:chunked and of pzstd may begin with one to be skipped.
fn is_zstd(start: &[u8]) -> bool {
    start.starts_with(&ZSTD) || matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// Decompresses a stream to its end and hands it on in pieces, until there is no more or `receive` wants no more.
pub(crate) fn decompress(
    source: &mut impl BufRead,
    receive: &mut dyn FnMut(Vec<u8>) -> bool,
) -> io::Result<()> {
    let mut start = Vec::with_capacity(ZSTD.len());
    source
        .by_ref()
        .take(ZSTD.len() as u64)
        .read_to_end(&mut start)?;
    let mut whole = start.as_slice().chain(source);
    if start.starts_with(&GZIP) {
        gzip(&mut whole, receive)
    } else if is_zstd(&start) {
        zstd(&mut whole, receive)
    } else {
        pass_on(&mut whole, receive)?;
        Ok(())
    }
}

/// Decompresses one gzip member after the other.
///
/// Header and trailer are read here and the checksum is passed over: it takes a fifth of the time of inflating, and says
/// nothing that the two digests of a layer do not say with more authority.
fn gzip(source: &mut impl BufRead, receive: &mut dyn FnMut(Vec<u8>) -> bool) -> io::Result<()> {
    loop {
        gzip_header(source)?;
        let mut member = DeflateDecoder::new(&mut *source);
        if !pass_on(&mut member, receive)? {
            return Ok(());
        }
        let length = member.total_out();
        let mut trailer = [0; 8];
        source.read_exact(&mut trailer)?;
        // RFC 1952: the checksum, then the length modulo 2^32.
        if trailer[4..] != length.to_le_bytes()[..4] {
            return Err(io::Error::other(
                "the length of a gzip member is not what it says",
            ));
        }
        if !continues(source)? {
            return Ok(());
        }
    }
}

/// Passes over the header of a gzip member, RFC 1952, section 2.3.
fn gzip_header(source: &mut impl BufRead) -> io::Result<()> {
    const HEADER_CHECKSUM: u8 = 1 << 1;
    const EXTRA: u8 = 1 << 2;
    const NAME: u8 = 1 << 3;
    const COMMENT: u8 = 1 << 4;
    /// More than any tool writes as a name or comment.
    const TEXT_BYTES: u64 = 64 << 10;
    const DEFLATE: u8 = 8;
    let mut header = [0; 10];
    source.read_exact(&mut header)?;
    let [first, second, method, flags, ..] = header;
    if [first, second] != GZIP || method != DEFLATE || flags & 0xe0 != 0 {
        return Err(io::Error::other("a gzip member has an unknown header"));
    }
    let skip = |source: &mut dyn BufRead, bytes: u64| {
        let skipped = io::copy(&mut source.take(bytes), &mut io::sink())?;
        if skipped < bytes {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        Ok(())
    };
    if flags & EXTRA != 0 {
        let mut length = [0; 2];
        source.read_exact(&mut length)?;
        skip(source, u16::from_le_bytes(length).into())?;
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 && source.by_ref().take(TEXT_BYTES).skip_until(0)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    if flags & HEADER_CHECKSUM != 0 {
        skip(source, 2)?;
    }
    Ok(())
}

/// Decompresses one zstd frame after the other.
///
/// The decoder refuses windows above 128 MiB, so a frame cannot ask for 2 GiB of memory.
fn zstd(source: &mut impl BufRead, receive: &mut dyn FnMut(Vec<u8>) -> bool) -> io::Result<()> {
    loop {
        match StreamingDecoder::new(&mut *source) {
            Ok(mut frame) => {
                if !pass_on(&mut frame, receive)? {
                    return Ok(());
                }
            }
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length,
                ..
            })) => {
                let skipped = io::copy(&mut source.by_ref().take(length.into()), &mut io::sink())?;
                if skipped < length.into() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Err(error) => return Err(io::Error::other(error)),
        }
        if !continues(source)? {
            return Ok(());
        }
    }
}

/// Whether another member or frame follows. Zeros may follow the last one, since some tools fill up the last block;
/// anything else is taken for a member and fails as such.
fn continues(source: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let buffer = source.fill_buf()?;
        let Some(first) = buffer.first() else {
            return Ok(false);
        };
        if *first != 0 {
            return Ok(true);
        }
        let zeros = buffer.iter().take_while(|byte| **byte == 0).count();
        if zeros < buffer.len() {
            return Err(io::Error::other(
                "something other than zeros follows the compressed data",
            ));
        }
        source.consume(zeros);
    }
}

/// Hands on all that a reader yields; returns whether more is wanted.
fn pass_on(reader: &mut impl Read, receive: &mut dyn FnMut(Vec<u8>) -> bool) -> io::Result<bool> {
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        reader.by_ref().take(PIECE as u64).read_to_end(&mut piece)?;
        let ended = piece.len() < PIECE;
        if !piece.is_empty() && !receive(piece) {
            return Ok(false);
        }
        if ended {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Write};

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn member(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn frame(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut found = Vec::new();
        // A buffer of one byte: no decoder may rely on seeing two at a time.
        decompress(&mut BufReader::with_capacity(1, bytes), &mut |piece| {
            found.extend(piece);
            true
        })?;
        Ok(found)
    }

    #[test]
    fn streams_are_read_to_their_end() {
        type Row<'a> = (&'a str, Vec<u8>, Option<&'a [u8]>);
        let skip = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0], b"xyz".as_slice()].concat();
        let long = vec![7; 3 * PIECE];
        let table: [Row<'_>; 14] = [
            ("empty", vec![], Some(b"")),
            ("plain", b"plain text".to_vec(), Some(b"plain text")),
            ("short", b"x".to_vec(), Some(b"x")),
            ("one member", member(b"one"), Some(b"one")),
            (
                "two members",
                [member(b"one"), member(b"two")].concat(),
                Some(b"onetwo"),
            ),
            (
                "zeros after",
                [member(b"one"), vec![0; 700]].concat(),
                Some(b"one"),
            ),
            (
                "garbage after",
                [member(b"one"), b"garbage".to_vec()].concat(),
                None,
            ),
            (
                "garbage after zeros",
                [member(b"one"), vec![0; 9], b"x".to_vec()].concat(),
                None,
            ),
            ("cut off", member(b"one")[..12].to_vec(), None),
            ("frame", frame(b"one"), Some(b"one")),
            (
                "frames",
                [skip.clone(), frame(b"one"), skip.clone(), frame(b"two")].concat(),
                Some(b"onetwo"),
            ),
            (
                "frame and zeros",
                [frame(b"one"), vec![0; 9]].concat(),
                Some(b"one"),
            ),
            ("frame cut off", frame(b"one")[..9].to_vec(), None),
            ("long", member(&long), Some(&long)),
        ];
        for (name, bytes, expected) in table {
            let found = read(&bytes);
            assert_eq!(found.as_deref().ok(), expected, "{name}: {found:?}");
        }
    }

    #[test]
    fn every_field_of_a_gzip_header_is_passed_over() {
        let mut encoder = flate2::GzBuilder::new()
            .filename("layer.tar")
            .comment("a comment")
            .extra(vec![0, 1, 2, 0])
            .write(Vec::new(), Compression::fast());
        encoder.write_all(b"one").unwrap();
        let bytes = encoder.finish().unwrap();
        assert_eq!(read(&bytes).unwrap(), b"one");
        for length in 2..bytes.len() {
            assert!(read(&bytes[..length]).is_err(), "cut off at {length}");
        }
        // With a checksum of the header, which flate2 does not write.
        let mut bytes = member(b"one");
        bytes[3] |= 2;
        bytes.splice(10..10, [0xaa, 0xbb]);
        assert_eq!(read(&bytes).unwrap(), b"one");
        for (at, value) in [(2, 7), (3, 0x20)] {
            let mut bytes = member(b"one");
            bytes[at] = value;
            assert!(read(&bytes).is_err(), "byte {at}");
        }
        let mut bytes = member(b"one");
        let length = bytes.len() - 4;
        bytes[length] ^= 1;
        assert!(read(&bytes).is_err(), "wrong length");
    }

    #[test]
    fn reading_stops_where_no_more_is_wanted() {
        let mut pieces = 0;
        let bytes = member(&vec![0; 10 * PIECE]);
        decompress(&mut bytes.as_slice(), &mut |_| {
            pieces += 1;
            pieces < 2
        })
        .unwrap();
        assert_eq!(pieces, 2);
    }
}
