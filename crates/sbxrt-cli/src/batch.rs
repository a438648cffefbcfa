//! `sbxrt batch`: many programs, from lines of JSON to lines of JSON.
//!
//! Nothing here grows with the number of items: lines are read as runs begin and written as they end, and only a batch that
//! goes on keeps something of each result, its key. The order of results is that in which they come.

mod drive;
mod input;
mod item;
mod jobs;
mod key;
mod results;
mod screen;
mod summary;
mod worker;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sbxrt::{Concurrency, Engine, OutputLimits, Outputs, Source};

use self::drive::{Drive, Ended};
use self::input::Input;
use self::key::Common;
use self::results::Results;
use self::screen::Screen;
use self::summary::Summary;
use self::worker::Batch;
use crate::args::{CollectionArguments, ImageArguments, LimitArguments, REPORT, SandboxArguments};
use crate::diagnostics::Diagnostic;
use crate::error::{Error, Result};
use crate::limit::{self, Bound, JSON_TIMEOUT};
use crate::policy::{Bounds, Policy, find_image};
use crate::printer::{Printer, write_document};
use crate::{destination, location, status};

/// How much of each stream a result holds, unless said otherwise: there may be very many.
pub(crate) const OUTPUT_LIMIT: u64 = 1 << 20;
/// How long a reader of results may take who does not read, once all is to end.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(2);
/// Not all items have a result.
const INCOMPLETE: u8 = 1;
/// `EX_TEMPFAIL` of sysexits.h: ended before all was done, and to be run again.
const STOPPED: u8 = 75;

const BATCH_HELP: &str = "\
Items are lines, each a JSON object, and every field may be left out:
  {\"id\": \"a\", \"command\": [\"python3\", \"-c\", \"print(input())\"], \"stdin\": \"hi\\n\"}
  {\"id\": \"b\", \"args\": [\"--fast\"], \"files\": {\"main.py\": \"print(1)\"},
   \"env\": {\"A\": \"1\"}, \"timeout\": \"3s\", \"memory\": \"64m\"}
Limits have the names of the flags with underscores. docs/batch.md describes
items, results and the summary.

Exit status:
  0    every item has a result, whatever its program did
  1    some items could not be run; their lines say why
  75   ended by a signal before all was done: run it again with --resume
  125  the batch itself failed

Examples:
  sbxrt batch -i items.jsonl -o results.jsonl --resume python:3.12-slim
  sbxrt batch -j 32 --timeout 3s host: python3 < items.jsonl > results.jsonl";

const TIMEOUT_HELP: &str = "Limit the time of each run from start to end [default: 10s]";
const OUTPUT_LIMIT_HELP: &str = "Keep this much of stdout and of stderr, half of it the beginning and half the end, and count the rest [default: 1m]";

/// `sbxrt batch`.
#[derive(Debug, Args)]
#[command(
    override_usage = "sbxrt batch [OPTIONS] <IMAGE> [COMMAND [ARG]...]",
    after_long_help = BATCH_HELP,
    mut_arg("timeout", |arg| arg.help(TIMEOUT_HELP)),
    mut_arg("output_limit", |arg| arg.help(OUTPUT_LIMIT_HELP))
)]
pub(crate) struct BatchArguments {
    /// Image to run in, such as python:3.12-slim or host:, then a command for
    /// the items that name none, instead of the image's own
    #[arg(value_name = "IMAGE", required = true, trailing_var_arg = true)]
    image_and_command: Vec<String>,

    /// Read items from this file; - is standard input
    #[arg(short, long, value_name = "FILE", default_value = "-", help_heading = BATCH)]
    input: PathBuf,

    /// Write results to this file; - is standard output
    #[arg(short = 'o', long = "output", value_name = "FILE", default_value = "-", help_heading = BATCH)]
    results: PathBuf,

    /// Go on: run only the items that have no result in the file yet
    #[arg(long, help_heading = BATCH)]
    resume: bool,

    /// Run so many programs at once [default: two for each processor, as far
    /// as memory holds them]
    #[arg(short, long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..), help_heading = BATCH)]
    jobs: Option<u16>,

    /// Let items name this image in the place of IMAGE; may be repeated
    #[arg(long = "allow-image", value_name = "IMAGE", help_heading = BATCH)]
    allowed: Vec<Source>,

    /// Keep so many containers ready, made ahead of the items that have no
    /// limits, image or working directory of their own
    #[arg(long, value_name = "NUMBER", help_heading = BATCH)]
    pool: Option<u16>,

    /// End at a line that is no item, instead of saying so in its result
    #[arg(long, help_heading = BATCH)]
    strict: bool,

    /// Let programs run on for so long after SIGTERM or SIGINT; a second
    /// signal ends them at once
    #[arg(long, value_name = "DURATION", default_value = "25s", value_parser = limit::duration, help_heading = BATCH)]
    grace: Bound<Duration>,

    /// Copy the outputs of items into this directory, those of each item into
    /// a directory LINE-KEY: the number of its line, and 12 digits of its key
    #[arg(long, value_name = "DIR", help_heading = BATCH)]
    output_dir: Option<PathBuf>,

    #[command(flatten)]
    limits: LimitArguments,

    #[command(flatten)]
    sandbox: SandboxArguments,

    #[command(flatten)]
    collection: CollectionArguments,

    #[command(flatten)]
    image: ImageArguments,

    /// Write counts, percentiles and speed to a file when it is over
    #[arg(long, value_name = "FILE", help_heading = REPORT)]
    summary: Option<PathBuf>,

    /// Say nothing but errors
    #[arg(short, long, help_heading = REPORT)]
    quiet: bool,
}

const BATCH: &str = "Batch";

/// Runs the items; the exit status.
pub(crate) fn run(arguments: BatchArguments) -> u8 {
    let printer = Printer::new(arguments.quiet);
    match execute(arguments, printer) {
        Ok(code) => code,
        Err(error) => {
            printer.error(&Diagnostic::new(&error));
            match error {
                Error::Interrupted { .. } => STOPPED,
                _ => status::FAILED,
            }
        }
    }
}

fn execute(arguments: BatchArguments, printer: Printer) -> Result<u8> {
    let bounds = Bounds::new(&arguments.limits, Some(JSON_TIMEOUT), Some(OUTPUT_LIMIT))?;
    let policy = Policy::new(arguments.sandbox, &arguments.limits, printer)?;
    let mut words = arguments.image_and_command.into_iter();
    let source: Source = words.next().unwrap_or_default().parse()?;
    let words: Vec<String> = words.collect();
    let jobs = match arguments.jobs {
        Some(jobs) => usize::from(jobs),
        None => jobs::default(bounds.limits.memory),
    };
    let files = [
        ("--input", Some(&arguments.input)),
        ("--output", Some(&arguments.results)),
        ("--summary", arguments.summary.as_ref()),
    ];
    let files = files.into_iter().filter_map(|(flag, path)| {
        let path = path.filter(|path| path.as_os_str() != "-")?;
        Some((flag, path.as_path()))
    });
    destination::distinguish(&files.collect::<Vec<_>>(), &Outputs::default())?;
    let input = Input::open(&arguments.input)?;
    let summary_file = arguments.summary.map(|path| {
        destination::open(&path)
            .map(|file| (path.clone(), file))
            .map_err(|source| Error::ResultFile { path, source })
    });
    let summary_file = summary_file.transpose()?;
    // Last of what may be refused: it takes torn lines out.
    let (results, done) = Results::open(&arguments.results, arguments.resume)?;

    raise_open_files();
    // How many there are at once is settled here, by --jobs.
    let engine = Engine::builder()
        .concurrency(Concurrency::Unbounded)
        .with_store(location::open(&arguments.image.store)?);
    engine.warm_up()?;
    let image = find_image(&engine, &source, &arguments.image, printer)?;
    let allowed = arguments.allowed.into_iter().chain([source]).collect();
    let outputs = OutputLimits {
        bytes: arguments.collection.output_size,
        entries: arguments.collection.output_count,
    };
    let batch = Batch {
        common: Common::new(&words, &bounds, &policy, outputs),
        sandbox: policy
            .builder(&engine, &image, bounds.limits.clone())
            .pool(arguments.pool.map_or(0, usize::from))
            .build()?,
        engine,
        policy,
        bounds,
        limits: arguments.limits,
        words,
        outputs,
        output_dir: arguments.output_dir,
        image: arguments.image,
        allowed,
        images: Mutex::default(),
        sandboxes: Mutex::default(),
        done: Mutex::new(done),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(1, |it| it.get().min(8)))
        .enable_all()
        .build()
        .map_err(|source| Error::System {
            step: "start the runtime",
            source,
        })?;
    let began = Instant::now();
    let mut drive = Drive {
        jobs,
        strict: arguments.strict,
        grace: arguments.grace.into_option(),
        screen: Screen::new(printer, input.length),
        printer,
        summary: Summary::default(),
    };
    let lines = input.start(jobs)?;
    let writer = results.start(jobs)?;
    let ended = runtime.block_on(drive.run(Arc::new(batch), lines, writer, &arguments.input));
    // A reader of ours that does not read must not hold the exit up.
    runtime.shutdown_background();
    drive.screen.clear();
    let (elapsed, summary) = (began.elapsed(), &drive.summary);
    let complete = matches!(ended, Ok(Ended::Complete));
    for line in summary.lines(elapsed) {
        printer.note(&line);
    }
    if let Some((path, file)) = summary_file {
        let document = summary.document(elapsed, jobs, complete);
        write_document(file, &document).map_err(|source| Error::ResultFile { path, source })?;
    }
    Ok(match ended? {
        Ended::Complete if summary.errors() > 0 => INCOMPLETE,
        Ended::Complete => 0,
        Ended::Strict => INCOMPLETE,
        Ended::Signal(signal) => {
            printer.note(&format!(
                "stopped by {} before all was done; --resume goes on",
                status::signal_name(signal)
            ));
            STOPPED
        }
    })
}

/// Every run takes a few descriptors, and what a shell allows at first is soon used up.
fn raise_open_files() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // As many as there are will have to do.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}
