//! The terminal that sbxrt itself was started in.

use std::io::{self, IsTerminal as _, Stdin};
use std::os::fd::AsFd;

use rustix::termios::{
    OptionalActions, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize,
};
use sbxrt::WindowSize;

/// The size of a terminal that nobody knows.
const USUAL_SIZE: WindowSize = WindowSize {
    rows: 24,
    columns: 80,
};

/// Keeps the terminal on standard input in raw mode, so that every key, Ctrl-C as well, reaches the program as a byte.
/// Dropping it restores the terminal, also in a panic.
#[derive(Debug)]
pub(crate) struct RawMode {
    terminal: Stdin,
    before: Termios,
}

impl RawMode {
    /// Switches standard input, which must be a terminal, to raw mode.
    pub(crate) fn enter() -> io::Result<Self> {
        let terminal = io::stdin();
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Drain, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that has been hung up takes no settings, and needs none.
        let _ = tcsetattr(&self.terminal, OptionalActions::Drain, &self.before);
    }
}

/// Whether standard input is a terminal.
pub(crate) fn is_input() -> bool {
    io::stdin().is_terminal()
}

/// The size of the terminal that people look at.
pub(crate) fn size() -> WindowSize {
    [
        tcgetwinsize(io::stdout()),
        tcgetwinsize(io::stdin()),
        tcgetwinsize(io::stderr()),
    ]
    .into_iter()
    .flatten()
    .find(|size| size.ws_row > 0 && size.ws_col > 0)
    .map_or(USUAL_SIZE, |size| WindowSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// Tells the program behind `master` that its terminal has another size now.
pub(crate) fn resize(master: impl AsFd, size: WindowSize) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(master, size)?)
}
