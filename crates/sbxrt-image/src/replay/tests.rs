use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

/// Records some raw bytes and some files, and returns the stream that it was.
fn record(layer: &Path) -> Vec<u8> {
    let fs = layer.join("fs");
    fs::create_dir_all(fs.join("closed/inner")).unwrap();
    fs::write(fs.join("closed/inner/file"), "contents").unwrap();
    symlink("closed", fs.join("link")).unwrap();
    let inode = {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(fs.join("closed/inner/file")).unwrap().ino()
    };
    let mut recorder = Recorder::new(layer).unwrap();
    let junk = (0..70_000_u32)
        .flat_map(|index| index.wrapping_mul(2_654_435_761).to_be_bytes())
        .collect::<Vec<_>>();
    recorder.raw(b"header\0\0\0").unwrap();
    recorder.raw(&[0; 5000]).unwrap();
    recorder.raw(&junk).unwrap();
    recorder
        .file(b"closed/inner/file", inode, 0, &[(0, 3), (3, 0), (5, 3)])
        .unwrap();
    recorder
        .file(b"link/inner/file", inode, 0, &[(0, 8)])
        .unwrap();
    recorder.raw(&[0; 3]).unwrap();
    let root = File::open(&fs).unwrap();
    recorder.finish(root.as_fd()).unwrap();
    [
        b"header\0\0\0".as_slice(),
        &[0; 5000],
        &junk,
        b"conntscontents\0\0\0",
    ]
    .concat()
}

fn replay(layer: &Path) -> io::Result<Vec<u8>> {
    let mut found = Vec::new();
    let mut stream = open(layer).unwrap().unwrap();
    stream.read_to_end(&mut found).map(|_| found)
}

#[test]
fn what_was_recorded_comes_again() {
    let layer = tempfile::tempdir().unwrap();
    let stream = record(layer.path());
    assert_eq!(replay(layer.path()).unwrap(), stream);
    let size = fs::metadata(layer.path().join(FILE_NAME)).unwrap().len();
    assert!(size < stream.len() as u64 * 11 / 10, "{size}");
}

#[test]
fn a_layer_without_a_recording_has_no_replay() {
    let layer = tempfile::tempdir().unwrap();
    fs::create_dir(layer.path().join("fs")).unwrap();
    assert!(open(layer.path()).unwrap().is_none());
}

#[test]
fn files_that_changed_or_went_are_named() {
    let layer = tempfile::tempdir().unwrap();
    let stream = record(layer.path());
    let file = layer.path().join("fs/closed/inner/file");
    fs::write(&file, "less").unwrap();
    let short = replay(layer.path()).unwrap_err().to_string();
    assert!(
        short.ends_with("fs/closed/inner/file: it is shorter than it was"),
        "{short}"
    );
    fs::remove_file(&file).unwrap();
    let gone = replay(layer.path()).unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::NotFound, "{gone}");
    // A link that leads out finds nothing there.
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), "contents").unwrap();
    symlink(outside.path(), &file).unwrap();
    let link = replay(layer.path()).unwrap_err();
    assert!(link.to_string().contains("inner/file"), "{link}");
    assert!(!stream.is_empty());
}

#[test]
fn a_damaged_recording_is_an_error_and_no_panic() {
    let layer = tempfile::tempdir().unwrap();
    record(layer.path());
    let path = layer.path().join(FILE_NAME);
    let whole = fs::read(&path).unwrap();
    for (index, length) in (0..whole.len()).step_by(997).enumerate() {
        let mut bytes = whole.clone();
        if index % 2 == 0 {
            bytes.truncate(length);
        } else {
            bytes[length] ^= 0x55;
        }
        fs::write(&path, bytes).unwrap();
        if let Ok(Some(mut stream)) = open(layer.path()) {
            let read = io::copy(&mut (&mut stream).take(1 << 30), &mut io::sink());
            assert!(read.is_err(), "{length}");
        }
    }
}

#[test]
fn closed_files_are_read_and_closed_again() {
    let layer = tempfile::tempdir().unwrap();
    record(layer.path());
    let path = |path: &str| layer.path().join("fs").join(path);
    for closed in ["closed/inner/file", "closed/inner"] {
        fs::set_permissions(path(closed), Permissions::from_mode(0o0)).unwrap();
    }
    let root = File::open(layer.path().join("fs")).unwrap();
    // Called by name, since nothing is closed to root.
    let opened = open_closed(root.as_fd(), b"closed/inner/file", 0).unwrap();
    assert_eq!(io::read_to_string(File::from(opened)).unwrap(), "contents");
    let mode = |closed: &str| fs::metadata(path(closed)).unwrap().permissions().mode();
    assert_eq!(mode("closed/inner") & 0o7777, 0);
    // Through a link, the directories must be open.
    fs::set_permissions(path("closed/inner"), Permissions::from_mode(0o700)).unwrap();
    assert_eq!(mode("closed/inner/file") & 0o7777, 0);
    assert!(replay(layer.path()).is_ok());
    assert_eq!(mode("closed/inner/file") & 0o7777, 0);
}
