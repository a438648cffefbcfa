//! `sbxrt run`: from the command line to an exit status.
//!
//! This is the path that has to be fast: nothing is read, started or set up that the run at hand does not need.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::libc;
use sbxrt::{
    Child, Engine, Image, LimitName, Limits, Platform, PullOptions, Report, Sandbox, Seccomp,
    Source, Stdin,
};
use tokio::sync::oneshot;

use crate::args::{PullWhen, RunArguments};
use crate::diagnostics::Diagnostic;
use crate::error::{Error, Result};
use crate::limit::{Bound, JSON_OUTPUT_LIMIT, JSON_TIMEOUT};
use crate::printer::Printer;
use crate::quantity::format_size;
use crate::relay::{self, Relayed, Sink};
use crate::result::{Account, Document, Failed};
use crate::signals::Signals;
use crate::terminal::{self, RawMode};
use crate::{environment, location, mount, output, pull, security, status};

/// Runs a command in a sandbox; the exit status. `began` is when this process did.
pub(crate) fn run(arguments: RunArguments, began: Instant) -> u8 {
    let printer = Printer::new(arguments.quiet);
    let json = arguments.json;
    match execute(arguments, printer, began) {
        Ok(code) => code,
        Err(error) => {
            let diagnostic = Diagnostic::new(&error);
            printer.error(&diagnostic);
            if json {
                // Where it cannot be written, that has been told already or is told by the exit status.
                drop(printer.document(&Failed::new(&diagnostic)));
            }
            match error {
                Error::Interrupted { signal } => status::of_signal(signal),
                _ => status::FAILED,
            }
        }
    }
}

fn execute(arguments: RunArguments, printer: Printer, began: Instant) -> Result<u8> {
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
    let (limits, output_limit) = limits(&arguments);
    let outputs = output::resolve(&arguments)?;
    let mounts = mount::resolve([arguments.volume, arguments.mount, arguments.tmpfs].concat())?;
    let seccomp = security::seccomp(&arguments.security_opt)?;
    if seccomp == Seccomp::Unconfined {
        printer.warning("seccomp=unconfined: the program may make every system call");
    }
    let variables = environment::collect(&arguments.env_file, &arguments.env)?;
    let mut words = arguments.image_and_command.into_iter();
    let source: Source = words.next().unwrap_or_default().parse()?;

    let engine = Engine::with_store(location::open(&arguments.store)?);
    let launching = Instant::now();
    if !print_spec {
        engine.warm_up()?;
    }
    let launcher_time = launching.elapsed();
    let looking = Instant::now();
    let image = find_image(
        &engine,
        &source,
        &PullOptions {
            platform: arguments.platform.unwrap_or_else(Platform::host),
            offline: location::is_offline(arguments.offline),
            plain_http: arguments.plain_http,
            ..PullOptions::default()
        },
        arguments.pull,
        printer,
    )?;
    let image_time = looking.elapsed();

    let mut builder = engine
        .sandbox(&image)
        .limits(limits)
        .network(arguments.network.into())
        .read_only(arguments.read_only)
        .seccomp(seccomp);
    for (limit, requirement) in arguments.require {
        builder = builder.require(limit, requirement);
    }
    for mount in mounts {
        builder = builder.mount(mount);
    }
    for (name, value) in variables {
        builder = builder.env(name, value);
    }
    for rlimit in arguments.ulimit {
        builder = builder.rlimit(rlimit);
    }
    if let Some(directory) = arguments.workdir {
        builder = builder.current_dir(directory);
    }
    if let Some(user) = arguments.user {
        builder = builder.user(user);
    }
    if let Some(hostname) = arguments.hostname {
        builder = builder.hostname(hostname);
    }
    let sandbox = builder.build()?;
    let mut command = choose_command(&sandbox, arguments.entrypoint, words)?;
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
        keep: json,
        limit: output_limit,
    };
    let finished = runtime.block_on(attend(&command, &streams));
    // A thread that waits for a key must not hold the exit up.
    runtime.shutdown_background();
    let Finished {
        child,
        report,
        stdout,
        stderr,
    } = finished?;

    let code = status::exit_code(&report.termination);
    if json {
        let account = Account {
            id: child.id(),
            image: &image,
            command: command.words(),
            limits: child.limits(),
            output_limit,
            report: &report,
            stdout,
            stderr,
            image_time,
            launcher_time,
            total_time: began.elapsed(),
        };
        printer.document(&Document::new(account))?;
        return Ok(code);
    }
    tell(
        printer,
        &report,
        child.limits(),
        output_limit,
        [&stdout, &stderr],
    );
    output::tell(printer, &report.outputs);
    for (stream, relayed) in [("standard output", stdout), ("standard error", stderr)] {
        if let Some(source) = relayed.failure {
            return Err(Error::Output { stream, source });
        }
    }
    Ok(code)
}

/// The limits of the run, and how much of its output is handed on.
fn limits(arguments: &RunArguments) -> (Limits, Option<u64>) {
    let json = arguments.json;
    let limits = Limits {
        memory: arguments.memory.into_option(),
        cpus: arguments.cpus.into_option(),
        pids: arguments.pids_limit.into_option(),
        wall_time: arguments
            .timeout
            .map_or(json.then_some(JSON_TIMEOUT), Bound::into_option),
        scratch_bytes: arguments.scratch_size.into_option(),
        ..Limits::default()
    };
    let output = arguments
        .output_limit
        .map_or(json.then_some(JSON_OUTPUT_LIMIT), Bound::into_option);
    (limits, output)
}

fn find_image(
    engine: &Engine,
    source: &Source,
    options: &PullOptions,
    when: PullWhen,
    printer: Printer,
) -> Result<Image> {
    if when != PullWhen::Always
        && let Some(image) = engine.store().find(source, &options.platform)?
    {
        return Ok(image);
    }
    if when == PullWhen::Never {
        return Err(sbxrt::Error::NotPresent {
            name: source.to_string(),
        }
        .into());
    }
    pull::for_run(engine.store(), source, options, when, printer)
}

/// What Docker would execute. An entry point that is named takes the place of the image's and its `CMD`; an empty one
/// leaves what follows the image.
fn choose_command(
    sandbox: &Sandbox,
    entrypoint: Option<String>,
    mut words: impl Iterator<Item = String>,
) -> Result<sbxrt::Command> {
    let Some(entrypoint) = entrypoint else {
        return Ok(sandbox.default_command(words)?);
    };
    let program = if entrypoint.is_empty() {
        words.next().ok_or(Error::NoCommand)?
    } else {
        entrypoint
    };
    Ok(sandbox.command(program).args(words))
}

/// What becomes of the program's streams.
struct Streams {
    interactive: bool,
    /// Whether output is kept for a document, instead of being forwarded.
    keep: bool,
    limit: Option<u64>,
}

/// A run that is over.
struct Finished {
    child: Child,
    report: Report,
    stdout: Relayed,
    stderr: Relayed,
}

/// Starts the program and attends to it until it is over: its streams, its terminal, the signals that are meant for it.
async fn attend(command: &sbxrt::Command, streams: &Streams) -> Result<Finished> {
    let mut child = command.spawn()?;
    // From here on the launcher is at work, and what follows takes no time of the run's.
    let (over, running) = std::io::pipe().map_err(|source| Error::System {
        step: "make a pipe",
        source,
    })?;
    let over = OwnedFd::from(over);
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
                .relay("stdout", output, &std::io::stdout(), &over)
                .map_err(failed)?,
        );
        let error = error.into_nonblocking_fd().map_err(failed)?;
        stderr = Some(
            streams
                .relay("stderr", error, &std::io::stderr(), &over)
                .map_err(failed)?,
        );
    }
    if let Some(stdin) = child.stdin.take() {
        relay::feed(stdin.into_blocking_fd().map_err(failed)?).map_err(failed)?;
    }

    let mut raw_mode = None;
    let mut master = None;
    let mut asked_to_end = 0;
    let report = loop {
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
                    stdout = Some(streams.relay("terminal", output, &std::io::stdout(), &over).map_err(failed)?);
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
    Ok(Finished {
        child,
        report,
        stdout,
        stderr,
    })
}

impl Streams {
    fn relay(
        &self,
        name: &'static str,
        source: OwnedFd,
        destination: &impl AsFd,
        over: &OwnedFd,
    ) -> std::io::Result<oneshot::Receiver<Relayed>> {
        let sink = if self.keep {
            Sink::Keep
        } else {
            Sink::Forward(File::from(destination.as_fd().try_clone_to_owned()?))
        };
        relay::start(name, source, sink, self.limit, over.try_clone()?)
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
    if status::is_worth_a_word(&report.termination) {
        printer.note(&format!(
            "sbxrt: {}",
            status::message(&report.termination, limits)
        ));
    }
    let totals: BTreeMap<&str, u64> = ["standard output", "standard error"]
        .into_iter()
        .zip(streams)
        .filter(|(_, relayed)| relayed.is_cut())
        .map(|(name, relayed)| (name, relayed.total))
        .collect();
    for (name, total) in totals {
        let limit = format_size(output_limit.unwrap_or(u64::MAX));
        printer.note(&format!(
            "sbxrt: {name} of {total} bytes was cut at {limit}"
        ));
    }
    if !report.leaked.is_empty() {
        printer.note(&format!("sbxrt: {}", status::leak(&report.leaked)));
    }
    for limit in &report.limits_hit {
        // The end says so, or it changed nothing.
        if matches!(limit, LimitName::Scratch) {
            printer.note("sbxrt: the scratch space was full");
        }
    }
}
