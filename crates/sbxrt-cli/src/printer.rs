//! The only way to standard output and standard error: data to the one, talk to the other.

use std::io::{self, IsTerminal as _, Write};

use serde::Serialize;

use crate::diagnostics::{Diagnostic, Style, harmless};
use crate::error::{Error, Result};

/// Writes what sbxrt itself has to say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printer {
    quiet: bool,
}

impl Printer {
    /// A printer that, where it is `quiet`, keeps notes to itself.
    pub(crate) fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// Whether notes and progress are not wanted.
    pub(crate) fn is_quiet(self) -> bool {
        self.quiet
    }

    /// Prints data. That the reader has gone is no error: it has read what it wanted.
    #[expect(clippy::unused_self, reason = "whoever prints holds a printer")]
    pub(crate) fn data(self, text: &str) -> Result<()> {
        let mut stdout = io::stdout().lock();
        match stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush())
        {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::Output {
                stream: "standard output",
                source: error,
            }),
            _ => Ok(()),
        }
    }

    /// Prints data as a JSON document.
    #[expect(clippy::unused_self, reason = "whoever prints holds a printer")]
    pub(crate) fn document(self, document: &impl Serialize) -> Result<()> {
        match write_document(io::stdout().lock(), document) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::Output {
                stream: "standard output",
                source: error,
            }),
            _ => Ok(()),
        }
    }

    /// Tells something that is good to know.
    pub(crate) fn note(self, text: &str) {
        if !self.quiet {
            talk(&format!("{}\n", harmless(text)));
        }
    }

    /// Tells of a risk that was asked for; not even `--quiet` keeps it back.
    #[expect(clippy::unused_self, reason = "whoever prints holds a printer")]
    pub(crate) fn warning(self, text: &str) {
        talk(&format!("warning: {}\n", harmless(text)));
    }

    /// Passes on what a program said that is not the command's own result.
    #[expect(clippy::unused_self, reason = "whoever prints holds a printer")]
    pub(crate) fn program(self, bytes: &[u8]) {
        // There is nobody left to tell that nobody listens.
        drop(io::stderr().lock().write_all(bytes));
    }

    /// Tells of a failure.
    #[expect(clippy::unused_self, reason = "whoever prints holds a printer")]
    pub(crate) fn error(self, diagnostic: &Diagnostic) {
        talk(&diagnostic.render(if is_colored() {
            Style::COLORED
        } else {
            Style::PLAIN
        }));
    }
}

/// Writes `document` in pieces: with output in it, it may be large.
pub(crate) fn write_document(target: impl Write, document: &impl Serialize) -> io::Result<()> {
    let mut target = io::BufWriter::with_capacity(64 << 10, target);
    serde_json::to_writer_pretty(&mut target, document)?;
    target.write_all(b"\n")?;
    target.flush()
}

fn talk(text: &str) {
    // There is nobody left to tell that nobody listens.
    drop(io::stderr().lock().write_all(text.as_bytes()));
}

/// Whether standard error takes colour: <https://no-color.org>.
pub(crate) fn is_colored() -> bool {
    let says_no = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    !says_no && !is_dumb && io::stderr().is_terminal()
}
