//! Keeps a bounded part of a program's output and counts all of it.

use std::io;

use tokio::net::unix::pipe::Receiver;

/// What a program wrote to one stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captured {
    /// The first bytes, up to the limit.
    pub bytes: Vec<u8>,
    /// How many bytes there were in all.
    pub total: u64,
}

impl Captured {
    /// Whether there were more bytes than were kept.
    pub fn is_truncated(&self) -> bool {
        self.total > self.bytes.len() as u64
    }
}

/// Drains a pipe. Reading never stops before its end, so a program that writes more than is kept is never blocked.
#[derive(Debug)]
pub(crate) struct Capture {
    pipe: Option<Receiver>,
    limit: u64,
    captured: Captured,
    buffer: Box<[u8]>,
}

impl Capture {
    pub(crate) fn new(pipe: Option<Receiver>, limit: Option<u64>) -> Self {
        // A pipe holds 64 KiB unless somebody asks for more.
        let buffer = vec![0; 64 << 10].into_boxed_slice();
        Self {
            pipe,
            limit: limit.unwrap_or(u64::MAX),
            captured: Captured::default(),
            buffer,
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.pipe.is_some()
    }

    /// Waits for output and takes what is there.
    pub(crate) async fn fill(&mut self) -> io::Result<()> {
        let Some(pipe) = &self.pipe else {
            return Ok(());
        };
        pipe.readable().await?;
        self.take()
    }

    /// Takes what is there. Once every process of the container is gone, that is the whole rest.
    pub(crate) fn take(&mut self) -> io::Result<()> {
        while let Some(pipe) = &self.pipe {
            match pipe.try_read(&mut self.buffer) {
                Ok(0) => self.pipe = None,
                Ok(length) => self.keep(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn keep(&mut self, length: usize) {
        let room = self.limit.saturating_sub(self.captured.bytes.len() as u64);
        let kept = usize::try_from(room).unwrap_or(usize::MAX).min(length);
        self.captured.bytes.extend_from_slice(&self.buffer[..kept]);
        self.captured.total += length as u64;
    }

    pub(crate) fn finish(self) -> Captured {
        self.captured
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_head_is_kept_and_everything_is_counted() {
        let (mut sender, receiver) = tokio::net::unix::pipe::pipe().unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut sender, b"0123456789")
            .await
            .unwrap();
        drop(sender);
        let mut capture = Capture::new(Some(receiver), Some(4));
        while capture.is_open() {
            capture.fill().await.unwrap();
        }
        let captured = capture.finish();
        assert_eq!(
            captured,
            Captured {
                bytes: b"0123".to_vec(),
                total: 10
            }
        );
        assert!(captured.is_truncated());
    }
}
