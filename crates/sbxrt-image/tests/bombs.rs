//! Small layers that want to become large: each is stopped by the limit that is its own, in little memory, and leaves
//! nothing behind.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use sbxrt_image::{Digest, Error, Limits, PullOptions, Source, Store};
use serde_json::json;

/// What a pull may need besides what the test itself had before it.
const MEMORY_KIBIBYTES: u64 = 64 << 10;

fn header(name: &str, kind: u8, size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    if size < 1 << 33 {
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    } else {
        block[124] = 0x80;
        block[128..136].copy_from_slice(&size.to_be_bytes());
    }
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum = block.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// An image in an OCI layout with one layer, and a store beside it.
struct Bomb {
    directory: tempfile::TempDir,
}

impl Bomb {
    /// The layer is written as it is; `diff_id` is what it should decompress to.
    fn new(layer: &[u8], diff_id: &Digest) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let layout = directory.path().join("layout");
        fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        let blob = |bytes: &[u8]| {
            let digest = Digest::of(bytes);
            fs::write(
                layout
                    .join("blobs")
                    .join(digest.to_string().replace(':', "/")),
                bytes,
            )
            .unwrap();
            digest
        };
        let config = json!({
            "os": "linux",
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [diff_id.to_string()]},
        })
        .to_string();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": blob(config.as_bytes()).to_string(),
                "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": blob(layer).to_string(),
                "size": layer.len(),
            }],
        })
        .to_string();
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": blob(manifest.as_bytes()).to_string(),
                "size": manifest.len(),
                "annotations": {"org.opencontainers.image.ref.name": "latest"},
            }],
        });
        fs::write(layout.join("index.json"), index.to_string()).unwrap();
        fs::write(
            layout.join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .unwrap();
        Self { directory }
    }

    /// A bomb whose `diff_id` nobody gets as far as to compare.
    fn unmeasured(layer: &[u8]) -> Self {
        Self::new(layer, &Digest::of(b"another"))
    }

    fn pull(&self, limits: Limits) -> Result<(), Error> {
        let layout = self.directory.path().join("layout");
        let source = format!("oci:{}:latest", layout.display())
            .parse::<Source>()
            .unwrap();
        let store = Store::open(&self.directory.path().join("store")).unwrap();
        let options = PullOptions {
            limits,
            ..PullOptions::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let before = peak_kibibytes();
        let pulled = runtime.block_on(store.pull(&source, &options, &()));
        let grown = peak_kibibytes() - before;
        assert!(grown < MEMORY_KIBIBYTES, "{grown} KiB");
        pulled.map(|_image| ())
    }

    fn assert_hits(&self, limits: Limits, expected: &str) {
        let pulled = self.pull(limits);
        assert!(
            matches!(&pulled, Err(Error::LimitExceeded { limit, .. }) if *limit == expected),
            "{expected}: {pulled:?}"
        );
        self.assert_nothing_is_left();
    }

    fn assert_nothing_is_left(&self) {
        let store = self.directory.path().join("store");
        for directory in ["tmp", "layers/sha256", "images"] {
            let count = fs::read_dir(store.join(directory)).map_or(0, Iterator::count);
            assert_eq!(count, 0, "{directory}");
        }
        assert!(bytes_below(&store) < 1 << 20);
    }
}

fn bytes_below(directory: &Path) -> u64 {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            if entry.file_type().unwrap().is_dir() {
                bytes_below(&entry.path())
            } else {
                entry.metadata().unwrap().len()
            }
        })
        .sum()
}

/// The most memory that this process ever had.
fn peak_kibibytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn gzip(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    write(&mut encoder).unwrap();
    encoder.finish().unwrap()
}

fn zeros(count: u64) -> impl Read {
    io::repeat(0).take(count)
}

#[test]
fn zeros_in_gzip_hit_the_ratio() {
    let bomb = gzip(|output| {
        output.write_all(&header("zeros", b'0', 200 << 20))?;
        io::copy(&mut zeros(200 << 20), output).map(|_| ())
    });
    assert!((200 << 20) / bomb.len() > 200, "it is a bomb");
    Bomb::unmeasured(&bomb).assert_hits(Limits::default(), "ratio");
}

#[test]
fn zeros_in_many_members_hit_the_ratio() {
    let first = gzip(|output| output.write_all(&header("zeros", b'0', 300 << 20)));
    let member = gzip(|output| io::copy(&mut zeros(1 << 20), output).map(|_| ()));
    let bomb = [first, member.repeat(300)].concat();
    Bomb::unmeasured(&bomb).assert_hits(Limits::default(), "ratio");
}

/// A frame of blocks that are one byte, repeated 128 KiB times.
#[test]
fn repeated_bytes_in_zstd_hit_the_ratio() {
    const BLOCK: u32 = 128 << 10;
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58];
    for _ in 0..4096 {
        bomb.extend(&((BLOCK << 3) | 0b010).to_le_bytes()[..3]);
        bomb.push(0);
    }
    bomb.extend([1, 0, 0]);
    // Zeros alone end an archive; what follows must be read for the digest all the same.
    Bomb::unmeasured(&bomb).assert_hits(Limits::default(), "ratio");
}

/// The decoder would have to keep 2 GiB of what it wrote.
#[test]
fn a_window_of_two_gibibytes_in_zstd_is_refused() {
    let bomb = [0x28, 0xb5, 0x2f, 0xfd, 0x00, (31 - 10) << 3, 1, 0, 0];
    let bomb = Bomb::unmeasured(&bomb);
    let pulled = bomb.pull(Limits::default());
    assert!(
        matches!(pulled, Err(Error::InvalidLayer { .. })),
        "{pulled:?}"
    );
    bomb.assert_nothing_is_left();
}

#[test]
fn a_sparse_file_of_eight_exbibytes_hits_the_size_of_a_layer() {
    let mut sparse = header("sparse", b'S', 0);
    sparse[483] = 0x80;
    sparse[487..495].copy_from_slice(&(i64::MAX as u64).to_be_bytes());
    seal(&mut sparse);
    Bomb::unmeasured(&sparse).assert_hits(Limits::default(), "layer_bytes");
}

#[test]
fn a_file_larger_than_a_layer_may_be_hits_the_size_of_a_layer() {
    let bomb = gzip(|output| {
        output.write_all(&header("large", b'0', 1 << 40))?;
        io::copy(&mut zeros(8 << 20), output).map(|_| ())
    });
    let limits = Limits {
        layer_bytes: 4 << 20,
        ..Limits::default()
    };
    Bomb::unmeasured(&bomb).assert_hits(limits, "layer_bytes");
}

#[test]
fn many_empty_files_hit_the_entries() {
    let bomb = gzip(|output| {
        (0..20_000).try_for_each(|index| output.write_all(&header(&format!("f{index}"), b'0', 0)))
    });
    let limits = Limits {
        entries: 2000,
        ..Limits::default()
    };
    Bomb::unmeasured(&bomb).assert_hits(limits, "entries");
}

/// CVE-2023-25153's kind: headers that are read into memory whole.
#[test]
fn a_header_of_a_gibibyte_hits_the_headers() {
    for kind in [b'x', b'g', b'L', b'K'] {
        let bomb = gzip(|output| {
            output.write_all(&header("header", kind, 1 << 30))?;
            io::copy(&mut io::repeat(b'1').take(8 << 20), output).map(|_| ())
        });
        Bomb::unmeasured(&bomb).assert_hits(Limits::default(), "header_bytes");
    }
}

#[test]
fn a_hundred_thousand_attributes_hit_the_headers() {
    let mut records = Vec::new();
    for index in 0..100_000 {
        writeln!(records, "37 SCHILY.xattr.user.attr{index:07}=val").unwrap();
    }
    assert_eq!(records.len(), 3_700_000);
    let bomb = gzip(|output| {
        output.write_all(&header("pax", b'x', records.len() as u64))?;
        output.write_all(&records)
    });
    Bomb::unmeasured(&bomb).assert_hits(Limits::default(), "header_bytes");
}

/// Tools fill up the last block of a compressed layer, and umoci reads to the end of what a descriptor promises.
#[test]
fn zeros_after_the_compressed_data_are_accepted_and_verified() {
    let mut archive = header("file", b'0', 4).to_vec();
    archive.extend(b"data");
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    // What follows the end of the archive is part of the layer too.
    archive.extend(b"trailing");
    let diff_id = Digest::of(&archive);
    let mut layer = gzip(|output| output.write_all(&archive));
    layer.extend([0; 1000]);
    Bomb::new(&layer, &diff_id).pull(Limits::default()).unwrap();

    let other = Digest::of(&archive[..archive.len() - 1]);
    let pulled = Bomb::new(&layer, &other).pull(Limits::default());
    assert!(
        matches!(pulled, Err(Error::DigestMismatch { .. })),
        "{pulled:?}"
    );

    let bomb = Bomb::new(&layer, &diff_id);
    let blob = Digest::of(&layer).to_string().replace(':', "/");
    let path = bomb.directory.path().join("layout/blobs").join(blob);
    let file = File::options().write(true).open(path).unwrap();
    let last = layer.len() as u64 - 1;
    std::os::unix::fs::FileExt::write_all_at(&file, b"\x01", last).unwrap();
    let pulled = bomb.pull(Limits::default());
    assert!(
        matches!(pulled, Err(Error::DigestMismatch { .. })),
        "{pulled:?}"
    );
    bomb.assert_nothing_is_left();
}
