//! The command line of sbxrt.
//!
//! A thin caller of the library: it knows the terminal, the environment and the user's words, and nothing of
//! containers.

mod access;
mod args;
mod auth_file;
mod batch;
mod build;
mod check;
mod commit;
mod copy;
mod destination;
mod diagnostics;
mod du;
mod environment;
mod error;
mod gc;
mod helper;
mod images;
mod limit;
mod location;
mod login;
mod logout;
mod man;
mod mount;
mod output;
mod policy;
mod printer;
mod progress;
mod pull;
mod quantity;
mod relay;
mod result;
mod run;
mod security;
mod signals;
mod status;
mod terminal;
mod usage;
mod verify;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser as _;

use crate::args::{Arguments, Command};
use crate::diagnostics::Diagnostic;
use crate::error::{Error, Result};
use crate::printer::Printer;

/// What was asked for was not done.
const FAILURE: u8 = 1;

fn main() -> ExitCode {
    // Before anything else: a re-executed copy of this program becomes the launcher here.
    sbxrt::init();
    let began = Instant::now();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return ExitCode::from(usage::settle(&error)),
    };
    log();
    let talking = Printer::new(false);
    ExitCode::from(match arguments.command {
        Command::Run(arguments) => run::run(*arguments, began),
        Command::Batch(arguments) => batch::run(*arguments),
        Command::Pull(arguments) => {
            let printer = Printer::new(arguments.quiet);
            settle(pull::run(arguments, printer))
        }
        Command::Copy(arguments) => {
            let printer = Printer::new(arguments.transfer.quiet);
            settle(copy::copy(arguments, printer))
        }
        Command::Push(arguments) => {
            let printer = Printer::new(arguments.transfer.quiet);
            settle(copy::push(arguments, printer))
        }
        Command::Build(arguments) => {
            let printer = Printer::new(arguments.quiet);
            settle(build::run(*arguments, printer))
        }
        Command::Commit(arguments) => {
            let printer = Printer::new(arguments.quiet);
            settle(commit::run(*arguments, printer))
        }
        Command::Images(arguments) => settle(images::list(&arguments, talking)),
        Command::Inspect(arguments) => settle(images::inspect(arguments, talking)),
        Command::Rmi(arguments) => {
            let printer = Printer::new(arguments.quiet);
            match images::remove(&arguments, printer) {
                Ok(true) => 0,
                Ok(false) => FAILURE,
                error => settle(error.map(drop)),
            }
        }
        Command::Gc(arguments) => settle(gc::run(&arguments, talking)),
        Command::Verify(arguments) => match verify::run(&arguments, talking) {
            Ok(true) => 0,
            Ok(false) => FAILURE,
            error => settle(error.map(drop)),
        },
        Command::Du(arguments) => settle(du::run(&arguments, talking)),
        Command::Login(arguments) => {
            let printer = Printer::new(arguments.quiet);
            settle(login::run(arguments, printer))
        }
        Command::Logout(arguments) => {
            let printer = Printer::new(arguments.quiet);
            settle(logout::run(&arguments, printer))
        }
        Command::Check(arguments) => check::run(arguments, talking),
        Command::Version => settle(talking.data(&format!("sbxrt {}\n", env!("CARGO_PKG_VERSION")))),
        Command::Man(arguments) => settle(man::write(&arguments.directory)),
    })
}

/// Tells of a failure; the exit status.
fn settle(result: Result<()>) -> u8 {
    let Err(error) = result else { return 0 };
    Printer::new(false).error(&Diagnostic::new(&error));
    match error {
        Error::Interrupted { signal } => status::of_signal(signal),
        _ => FAILURE,
    }
}

/// Writes warnings to standard error; `SBXRT_LOG` (such as `debug` or `sbxrt_image=trace`) asks for more.
fn log() {
    use tracing_subscriber::EnvFilter;
    use tracing_subscriber::filter::LevelFilter;
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(printer::is_colored())
        .without_time();
    match std::env::var("SBXRT_LOG") {
        Ok(filter) if !filter.is_empty() => builder.with_env_filter(EnvFilter::new(filter)).init(),
        _ => builder.with_max_level(LevelFilter::WARN).init(),
    }
}
