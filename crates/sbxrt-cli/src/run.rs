//! `sbxrt run`: from the command line to an exit status.
//!
//! This is the path that has to be fast: nothing is read, started or set up that the run at hand does not need.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use nix::libc;
use sbxrt::{Child, Engine, Limits, OutputAction, Report, Source, Spill, Stdin};
use tokio::sync::{Notify, oneshot};

use crate::args::RunArguments;
use crate::destination::{self, Destination};
use crate::diagnostics::Diagnostic;
use crate::error::{Error, Result};
use crate::limit::{JSON_OUTPUT_LIMIT, JSON_TIMEOUT};
use crate::policy::{Bounds, Policy, find_image};
use crate::printer::Printer;
use crate::quantity::format_size;
use crate::relay::{self, Relay, Relayed, Sink};
use crate::result::{Account, Document, Failed};
use crate::signals::Signals;
use crate::terminal::{self, RawMode};
use crate::{location, output, status};

/// Runs a command in a sandbox; the exit status. `began` is when this process did.
pub(crate) fn run(arguments: RunArguments, began: Instant) -> u8 {
    let printer = Printer::new(arguments.quiet);
    let destination = match Destination::open(&arguments) {
        Ok(destination) => destination,
        Err(error) => {
            printer.error(&Diagnostic::new(&error));
            return status::FAILED;
        }
    };
    match execute(arguments, printer, &destination, began) {
        Ok(code) => code,
        Err(error) => {
            let diagnostic = Diagnostic::new(&error);
            printer.error(&diagnostic);
            // Where it cannot be written, that has been told already or is told by the exit status.
            drop(destination.write(printer, &Failed::new(&diagnostic)));
            match error {
                Error::Interrupted { signal } => status::of_signal(signal),
                _ => status::FAILED,
            }
        }
    }
}

fn execute(
    arguments: RunArguments,
    printer: Printer,
    destination: &Destination,
    began: Instant,
) -> Result<u8> {
    let RunArguments {
        interactive,
        tty,
        json,
        print_spec,
        ..
    } = arguments;
    if interactive && tty && !terminal::is_input() {
        return Err(Error::NotATerminal);
    }
    let bounds = Bounds::new(
        &arguments.limits,
        json.then_some(JSON_TIMEOUT),
        json.then_some(JSON_OUTPUT_LIMIT),
    )?;
    let (output_limit, output_action) = (bounds.output, bounds.output_action);
    let outputs = output::resolve(&arguments)?;
    let files = [arguments.stdout_file, arguments.stderr_file];
    let spills = if print_spec {
        [None, None]
    } else {
        let file_limit = arguments.stream_file_limit.into_option();
        let create = |path: &PathBuf| Spill::create(path, file_limit.unwrap_or(u64::MAX));
        let [stdout, stderr] = files.each_ref().map(|path| path.as_ref().map(create));
        let spills = [stdout.transpose()?, stderr.transpose()?];
        let named = [
            ("--result", &arguments.result),
            ("--stdout-file", &files[0]),
            ("--stderr-file", &files[1]),
        ];
        let named = named.map(|(flag, path)| path.as_deref().map(|path| (flag, path)));
        destination::distinguish(&named.into_iter().flatten().collect::<Vec<_>>(), &outputs)?;
        spills
    };
    let policy = Policy::new(arguments.sandbox, &arguments.limits, printer)?;
    let mut words = arguments.image_and_command.into_iter();
    let source: Source = words.next().unwrap_or_default().parse()?;

    let engine = Engine::with_store(location::open(&arguments.image.store)?);
    let launching = Instant::now();
    if !print_spec {
        engine.warm_up()?;
    }
    let launcher_time = launching.elapsed();
    let looking = Instant::now();
    let image = find_image(&engine, &source, &arguments.image, printer)?;
    let image_time = looking.elapsed();

    let sandbox = policy.sandbox(&engine, &image, bounds.limits)?;
    let mut command = policy.command(&sandbox, words)?;
    if let Some(name) = arguments.name {
        command = command.name(name);
    }
    command = command.outputs(outputs);
    if tty {
        command = command.terminal(terminal::size());
    }
    if interactive {
        command = command.stdin(Stdin::Piped);
    }
    if print_spec {
        printer.document(&command.spec()?)?;
        return Ok(0);
    }

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(|source| Error::System {
            step: "start the runtime",
            source,
        })?;
    let streams = Streams {
        interactive,
        keeps: json,
        limit: output_limit,
        action: output_action,
    };
    let finished = runtime.block_on(attend(&command, &streams, spills));
    // A thread that waits for a key must not hold the exit up.
    runtime.shutdown_background();
    let Finished {
        child,
        report,
        stdout,
        stderr,
    } = finished?;

    if !json {
        tell(
            printer,
            &report,
            child.limits(),
            output_limit,
            [&stdout, &stderr],
        );
        output::tell(printer, &report.outputs);
    }
    let streams = [
        ("standard output", &stdout, &files[0]),
        ("standard error", &stderr, &files[1]),
    ];
    let mut code = status::exit_code(&report);
    for error in streams.into_iter().flat_map(losses) {
        printer.error(&Diagnostic::new(&error));
        code = status::FAILED;
    }
    let account = Account {
        id: child.id(),
        image: &image,
        command: command.words(),
        limits: child.limits(),
        output_limit,
        report: &report,
        exit_code: code,
        stdout,
        stderr,
        keeps: json,
        files: files.each_ref().map(Option::as_deref),
        image_time,
        launcher_time,
        total_time: began.elapsed(),
    };
    destination.write(printer, &Document::new(account))?;
    Ok(code)
}

/// What of a stream did not get where it was to go, for a reason that is not the program's.
fn losses(
    (stream, relayed, path): (&'static str, &Relayed, &Option<PathBuf>),
) -> impl Iterator<Item = Error> {
    let forwarding = relayed.failure.as_ref().map(|error| Error::Output {
        stream,
        source: again(error),
    });
    let file = relayed.captured.file.as_ref();
    let filing = file
        .and_then(|file| file.error)
        .zip(path.clone())
        .map(|(errno, path)| Error::OutputFile {
            path,
            source: std::io::Error::from_raw_os_error(errno),
        });
    forwarding.into_iter().chain(filing)
}

/// The same error once more.
fn again(error: &std::io::Error) -> std::io::Error {
    match error.raw_os_error() {
        Some(errno) => std::io::Error::from_raw_os_error(errno),
        None => std::io::Error::new(error.kind(), error.to_string()),
    }
}

/// What becomes of the program's streams.
struct Streams {
    interactive: bool,
    /// Whether output is kept for a document, instead of being forwarded.
    keeps: bool,
    limit: Option<u64>,
    action: OutputAction,
}

/// A run that is over.
struct Finished {
    child: Child,
    report: Report,
    stdout: Relayed,
    stderr: Relayed,
}

/// Starts the program and attends to it until it is over: its streams, its terminal, the signals that are meant for it.
async fn attend(
    command: &sbxrt::Command,
    streams: &Streams,
    files: [Option<Spill>; 2],
) -> Result<Finished> {
    let mut child = command.spawn()?;
    // From here on the launcher is at work, and what follows takes no time of the run's.
    let (over, running) = std::io::pipe().map_err(|source| Error::System {
        step: "make a pipe",
        source,
    })?;
    let ending = Ending {
        over: over.into(),
        excess: Arc::default(),
    };
    let [mut stdout_file, stderr_file] = files;
    let mut signals = Signals::forwarded()?;
    let mut resizes = Signals::resizing()?;
    let mut stdout = None;
    let mut stderr = None;
    let failed = |source| Error::System {
        step: "attach the program's streams",
        source,
    };
    if let (Some(output), Some(error)) = (child.stdout.take(), child.stderr.take()) {
        let output = output.into_nonblocking_fd().map_err(failed)?;
        stdout = Some(
            streams
                .relay(
                    "stdout",
                    output,
                    &std::io::stdout(),
                    stdout_file.take(),
                    &ending,
                )
                .map_err(failed)?,
        );
        let error = error.into_nonblocking_fd().map_err(failed)?;
        stderr = Some(
            streams
                .relay("stderr", error, &std::io::stderr(), stderr_file, &ending)
                .map_err(failed)?,
        );
    }
    if let Some(stdin) = child.stdin.take() {
        relay::feed(stdin.into_blocking_fd().map_err(failed)?).map_err(failed)?;
    }

    let mut raw_mode = None;
    let mut master = None;
    let mut asked_to_end = 0;
    let mut report = loop {
        tokio::select! {
            progress = child.started() => {
                if let Some(report) = progress? {
                    break report;
                }
                if let Some(terminal) = child.terminal.take() {
                    if streams.interactive {
                        raw_mode = Some(RawMode::enter().map_err(Error::Terminal)?);
                        relay::feed(terminal.try_clone().map_err(failed)?).map_err(failed)?;
                    }
                    let output = terminal.try_clone().map_err(failed)?;
                    let relay = streams.relay("terminal", output, &std::io::stdout(), stdout_file.take(), &ending);
                    stdout = Some(relay.map_err(failed)?);
                    // It may have changed since the program was asked for.
                    terminal::resize(&terminal, terminal::size()).map_err(Error::Terminal)?;
                    master = Some(terminal);
                }
            }
            signal = signals.next() => {
                asked_to_end += u32::from(matches!(signal, libc::SIGINT | libc::SIGTERM));
                // A launcher that is gone tells so itself; a program that is over has nothing left to hear.
                drop(if asked_to_end > 1 { child.cancel() } else { child.signal(signal) });
            }
            () = ending.excess.notified(), if streams.action == OutputAction::Kill => {
                drop(child.end_output());
            }
            _ = resizes.next(), if master.is_some() => {
                if let Some(master) = &master {
                    terminal::resize(master, terminal::size()).map_err(Error::Terminal)?;
                }
            }
        }
    };
    // What is in the pipes now is all that there will ever be.
    drop(running);
    drop(master);
    let rest = async { (finish(stdout).await, finish(stderr).await) };
    let (stdout, stderr) = tokio::select! {
        rest = rest => rest,
        // The one who reads our output does not; somebody has lost patience.
        signal = signals.next() => return Err(Error::Interrupted { signal }),
    };
    drop(raw_mode);
    let is_over = stdout.omitted > 0 || stderr.omitted > 0;
    streams.action.settle(&mut report, streams.limit, is_over);
    Ok(Finished {
        child,
        report,
        stdout,
        stderr,
    })
}

/// How the relays and the one who attends to the run tell each other that it is to end, and that it is over.
struct Ending {
    over: OwnedFd,
    excess: Arc<Notify>,
}

impl Streams {
    fn relay(
        &self,
        name: &'static str,
        source: OwnedFd,
        destination: &impl AsFd,
        spill: Option<Spill>,
        ending: &Ending,
    ) -> std::io::Result<oneshot::Receiver<Relayed>> {
        let sink = if self.keeps {
            Sink::Keep
        } else {
            Sink::Forward(File::from(destination.as_fd().try_clone_to_owned()?))
        };
        let relay = Relay {
            name,
            source,
            sink,
            limit: self.limit,
            spill,
            excess: Arc::clone(&ending.excess),
            over: ending.over.try_clone()?,
        };
        relay.start()
    }
}

/// Waits for the rest of a stream. There is none where the program was never started in a terminal.
async fn finish(relay: Option<oneshot::Receiver<Relayed>>) -> Relayed {
    match relay {
        // It ends without an answer only in a panic, which has been told.
        Some(relay) => relay.await.unwrap_or_default(),
        None => Relayed::default(),
    }
}

/// Says on standard error what the program's own output and exit status do not say.
fn tell(
    printer: Printer,
    report: &Report,
    limits: &Limits,
    output_limit: Option<u64>,
    streams: [&Relayed; 2],
) {
    for remark in status::remarks(report, limits, output_limit) {
        printer.note(&format!("sbxrt: {remark}"));
    }
    for (name, relayed) in ["standard output", "standard error"].iter().zip(streams) {
        if relayed.omitted > 0 {
            let (total, limit) = (relayed.captured.total, output_limit.unwrap_or(u64::MAX));
            let limit = format_size(limit);
            printer.note(&format!(
                "sbxrt: {name} of {total} bytes was cut at {limit}"
            ));
        }
    }
}
