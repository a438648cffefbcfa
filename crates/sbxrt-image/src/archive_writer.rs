//! An image in one tar file: an OCI layout, or what `docker load` reads.
//!
//! The file gets its name when it is whole. The same image always gives the same bytes.

use std::collections::HashSet;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::fresh_file::FreshFile;
use crate::manifest::REF_NAME;
use crate::tar_writer::{DataError, Header, TarWriter};
use crate::tarball::Kind;
use crate::{Digest, Error, Result};

/// A tar file that is being written.
#[derive(Debug)]
pub(crate) struct ArchiveWriter {
    path: PathBuf,
    tar: TarWriter<BufWriter<FreshFile>>,
    directories: HashSet<String>,
    files: HashSet<String>,
}

impl ArchiveWriter {
    /// Begins a file. One that is there keeps its content until this one is whole.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Err(Error::NotAnImage {
                path: path.to_owned(),
                expected: "a file",
                reason: "it is a directory".to_owned(),
            });
        }
        let fresh = FreshFile::create(path)?;
        Ok(Self {
            path: path.to_owned(),
            tar: TarWriter::new(BufWriter::with_capacity(256 << 10, fresh)),
            directories: HashSet::new(),
            files: HashSet::new(),
        })
    }

    /// Writes the files that make a layout of what follows: its image, and its name.
    pub(crate) fn layout(
        &mut self,
        digest: &Digest,
        media_type: &str,
        size: u64,
        tag: Option<&str>,
    ) -> Result<()> {
        let mut entry = json!({"mediaType": media_type, "digest": digest, "size": size});
        if let Some(tag) = tag {
            entry["annotations"] = json!({REF_NAME: tag});
        }
        let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
        self.bytes("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        self.bytes("index.json", index.as_bytes())
    }

    /// Writes a small file.
    pub(crate) fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.file(name, bytes.len() as u64, &mut &*bytes)
    }

    /// Writes a file of a known size; nothing where there is one of that name.
    pub(crate) fn file(&mut self, name: &str, size: u64, content: &mut impl Read) -> Result<()> {
        if !self.begin(name)? {
            return Ok(());
        }
        let mut header = Header::new(name.as_bytes(), Kind::File, 0o644);
        header.size = size;
        self.tar
            .header(&header)
            .map_err(|error| self.failed(error))?;
        self.data(size, content)
    }

    /// Writes a file whose size shows at its end; returns it.
    pub(crate) fn stream(&mut self, name: &str, content: &mut impl Read) -> Result<u64> {
        if !self.begin(name)? {
            return Ok(0);
        }
        let mut header = Header::new(name.as_bytes(), Kind::File, 0o644);
        self.tar
            .header(&header)
            .map_err(|error| self.failed(error))?;
        let failed = |error| Error::io("write", &self.path, error);
        let begin = self.tar.position().map_err(failed)?;
        let size = self
            .tar
            .copy(content)
            .map_err(|error| self.data_failed(error))?;
        let end = self.tar.position().map_err(failed)?;
        header.size = size;
        self.tar
            .rewrite(begin, end, &header)
            .map_err(|error| self.failed(error))?;
        Ok(size)
    }

    /// Makes what is written a file with a name.
    pub(crate) fn finish(self) -> Result<()> {
        let failed = |error| Error::io("write", &self.path, error);
        let buffered = self.tar.finish().map_err(failed)?;
        let fresh = buffered
            .into_inner()
            .map_err(|error| failed(error.into_error()))?;
        fresh.publish()
    }

    /// Notes a name, and writes the directories that it is in; returns whether it is a new one.
    fn begin(&mut self, name: &str) -> Result<bool> {
        if !self.files.insert(name.to_owned()) {
            return Ok(false);
        }
        for (end, _) in name.match_indices('/') {
            let directory = &name[..=end];
            if self.directories.insert(directory.to_owned()) {
                let header = Header::new(directory.as_bytes(), Kind::Directory, 0o755);
                self.tar
                    .header(&header)
                    .map_err(|error| self.failed(error))?;
            }
        }
        Ok(true)
    }

    fn data(&mut self, size: u64, content: &mut impl Read) -> Result<()> {
        let written = self.tar.data(content, size);
        written.map_err(|error| self.data_failed(error))
    }

    fn data_failed(&self, error: DataError) -> Error {
        match error {
            DataError::Read(error) => match error.downcast::<Error>() {
                Ok(error) => error,
                Err(error) => Error::io("receive what goes into", &self.path, error),
            },
            DataError::Write(error) => self.failed(error),
        }
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io("write", &self.path, error)
    }
}

impl TarWriter<BufWriter<FreshFile>> {
    fn position(&mut self) -> io::Result<u64> {
        self.output().flush()?;
        self.output().get_mut().file().stream_position()
    }

    /// Replaces the header before `begin` by one with the size that is known now.
    fn rewrite(&mut self, begin: u64, end: u64, header: &Header<'_>) -> io::Result<()> {
        let block = Header::block(header);
        self.output().flush()?;
        let file = self.output().get_mut().file();
        file.seek(SeekFrom::Start(begin - block.len() as u64))?;
        file.write_all(&block)?;
        file.seek(SeekFrom::Start(end))?;
        Ok(())
    }
}

impl Write for FreshFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tarball::Tarball;

    #[test]
    fn a_file_of_unknown_size_is_one_like_any_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("archive.tar");
        let mut archive = ArchiveWriter::create(&path).unwrap();
        archive.bytes("a/b", b"first").unwrap();
        let content = vec![7; 700_001];
        assert_eq!(
            archive.stream("streamed", &mut content.as_slice()).unwrap(),
            700_001
        );
        archive.bytes("a/c", b"last").unwrap();
        archive.bytes("a/c", b"once is enough").unwrap();
        assert!(!path.exists());
        archive.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let mut tarball = Tarball::new(bytes.as_slice(), 1 << 20);
        let mut found = Vec::new();
        while let Some(entry) = tarball.next_entry().unwrap() {
            found.push((String::from_utf8(entry.path).unwrap(), entry.stored));
        }
        let expected = [("a/", 0), ("a/b", 5), ("streamed", 700_001), ("a/c", 4)];
        assert_eq!(found, expected.map(|(name, size)| (name.to_owned(), size)));
    }

    #[test]
    fn what_is_not_finished_leaves_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("archive.tar");
        std::fs::write(&path, "old").unwrap();
        let mut archive = ArchiveWriter::create(&path).unwrap();
        archive.bytes("a", b"x").unwrap();
        drop(archive);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
