//! `sbxrt build`: an image from a Dockerfile.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use sbxrt::build::{BuildEvent, BuildOptions, BuildProgress, PullPolicy, build_limits};
use sbxrt::image::Place;
use sbxrt::{Engine, Image, Limits, Network, Platform, PullOptions, Source};
use serde::Serialize;

use crate::access;
use crate::args::{
    BUILD_HELP, FILES, IMAGE, LIMITS, NetworkArgument, PullWhen, REPORT, StoreArguments,
};
use crate::copy;
use crate::environment::{self, Variable};
use crate::error::{Error, Result};
use crate::images::Summary;
use crate::limit::{self, Bound};
use crate::location;
use crate::printer::Printer;
use crate::progress::{Follower, Show};
use crate::signals::unless_interrupted;

/// How much of the output is kept to be shown where a quiet build fails.
const TAIL: usize = 16 << 10;
/// One byte more than a Dockerfile may have, so that one that is too long is told from one that fits.
const STDIN_LIMIT: u64 = (1 << 20) + 1;

/// What of a build or commit is the same for every program that it runs.
#[derive(Debug, Args)]
pub(crate) struct ProgramArguments {
    /// Limit the memory of all processes together [default: none]
    #[arg(short, long, value_name = "SIZE", value_parser = limit::size, help_heading = LIMITS)]
    pub(crate) memory: Option<Bound<u64>>,

    /// Limit processor time: 0.5 is half a processor [default: none]
    #[arg(long, value_name = "NUMBER", value_parser = limit::cpus, help_heading = LIMITS)]
    pub(crate) cpus: Option<Bound<f64>>,

    /// Limit the number of processes and threads [default: 4096]
    #[arg(long, value_name = "NUMBER", value_parser = limit::pids, allow_negative_numbers = true, help_heading = LIMITS)]
    pub(crate) pids_limit: Option<Bound<u32>>,

    /// Limit the time that a program takes [default: none]
    #[arg(long, value_name = "DURATION", value_parser = limit::duration, help_heading = LIMITS)]
    pub(crate) timeout: Option<Bound<Duration>>,

    /// Show programs no network, or this machine's
    #[arg(long, value_name = "NETWORK", value_enum, default_value = "none", help_heading = FILES)]
    pub(crate) network: NetworkArgument,

    /// Let chown, setuid and the like fail, instead of pretending that they
    /// work, as package managers need it
    #[arg(long, help_heading = FILES)]
    pub(crate) no_root_emulation: bool,

    #[arg(
        long,
        value_name = "SECONDS",
        allow_negative_numbers = true,
        help = "Be made at this time, in seconds since 1970, and have no later file: then the same inputs make the \
                same image [env: SOURCE_DATE_EPOCH]",
        help_heading = IMAGE
    )]
    pub(crate) timestamp: Option<i64>,

    /// Get a base image where it is missing, always (also without a value),
    /// or never
    #[arg(
        long,
        value_name = "WHEN",
        value_enum,
        default_value = "missing",
        default_missing_value = "always",
        num_args = 0..=1,
        require_equals = true,
        help_heading = IMAGE
    )]
    pub(crate) pull: PullWhen,

    #[arg(
        long,
        help = "Fetch nothing: what no store has is an error [env: SBXRT_OFFLINE]",
        help_heading = IMAGE
    )]
    pub(crate) offline: bool,
}

/// `sbxrt build`.
#[derive(Debug, Args)]
#[command(after_long_help = BUILD_HELP)]
pub(crate) struct BuildArguments {
    /// Directory whose files may be copied into the image
    #[arg(value_name = "CONTEXT", default_value = ".")]
    pub(crate) context: PathBuf,

    /// Read this Dockerfile, or `-` for standard input
    /// [default: CONTEXT/Dockerfile]
    #[arg(short, long, value_name = "FILE", help_heading = FILES)]
    pub(crate) file: Option<PathBuf>,

    /// Call the image so; may be given several times
    #[arg(short, long, value_name = "NAME", help_heading = IMAGE)]
    pub(crate) tag: Vec<String>,

    /// Also copy the image there, as `sbxrt push` does; may be given several
    /// times
    #[arg(short, long, value_name = "DESTINATION", help_heading = IMAGE)]
    pub(crate) output: Vec<String>,

    /// Build this stage [default: the last one]
    #[arg(long, value_name = "STAGE", help_heading = IMAGE)]
    pub(crate) target: Option<String>,

    /// Set an ARG of the Dockerfile, or pass a variable on
    #[arg(long, value_name = "NAME[=VALUE]", value_parser = environment::variable, help_heading = IMAGE)]
    pub(crate) build_arg: Vec<Variable>,

    /// Add a label to the image
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair, help_heading = IMAGE)]
    pub(crate) label: Vec<(String, String)>,

    /// Build for this platform, which must be this machine's
    #[arg(long, value_name = "OS/ARCH", help_heading = IMAGE)]
    pub(crate) platform: Option<Platform>,

    /// Do every step anew
    #[arg(long, help_heading = IMAGE)]
    pub(crate) no_cache: bool,

    #[command(flatten)]
    pub(crate) program: ProgramArguments,

    #[command(flatten)]
    pub(crate) store: StoreArguments,

    /// Write the digest of the image to this file
    #[arg(long, value_name = "FILE", help_heading = REPORT)]
    pub(crate) iidfile: Option<PathBuf>,

    /// Print a JSON document instead of the digest
    #[arg(long, help_heading = REPORT)]
    pub(crate) json: bool,

    /// Show steps and output only where a step fails
    #[arg(short, long, help_heading = REPORT)]
    pub(crate) quiet: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Document<'a> {
    version: u32,
    image: Summary<'a>,
    tags: Vec<String>,
    steps: usize,
    cached: usize,
    /// What was copied, and where to.
    outputs: Vec<copy::Document>,
}

/// Builds an image and prints its digest.
pub(crate) fn run(arguments: BuildArguments, printer: Printer) -> Result<()> {
    let (json, iidfile) = (arguments.json, arguments.iidfile.clone());
    // A mistake is told before anything is built.
    let outputs = destinations(&arguments.output)?;
    let engine = Engine::with_store(location::open(&arguments.store)?);
    let options = options(arguments)?;
    let screen = Screen::new(printer);
    let built = attend(&screen, engine.build(&options, &screen))?;
    printer.note(&format!(
        "Built {}: {}, {} from the cache",
        built.image.name,
        count(built.steps, "step"),
        built.cached
    ));
    if let Some(path) = iidfile {
        let digest = digest(&built.image);
        std::fs::write(&path, digest).map_err(|source| sbxrt::Error::File {
            step: "write",
            path,
            source,
        })?;
    }
    let outputs = outputs
        .iter()
        .map(|to| copy::deliver(engine.store(), &built.image, to, printer))
        .collect::<Result<_>>()?;
    if json {
        return printer.document(&Document {
            version: 1,
            image: Summary::new(&built.image, None),
            tags: options.tags.iter().map(ToString::to_string).collect(),
            steps: built.steps,
            cached: built.cached,
            outputs,
        });
    }
    printer.data(&format!("{}\n", digest(&built.image)))
}

/// Reads where else the image is to be.
fn destinations(texts: &[String]) -> Result<Vec<Place>> {
    let places = texts.iter().map(|text| {
        let place: Place = text.parse()?;
        place.as_destination()?;
        Ok(place)
    });
    places.collect()
}

fn options(arguments: BuildArguments) -> Result<BuildOptions> {
    let BuildArguments {
        context,
        file,
        tag,
        target,
        build_arg,
        label,
        platform,
        no_cache,
        program,
        ..
    } = arguments;
    check_context(&context)?;
    let host = Platform::host();
    if let Some(platform) = platform.filter(|platform| *platform != host) {
        return Err(Error::ForeignPlatform {
            platform: platform.to_string(),
            host: host.to_string(),
        });
    }
    let tags = tag.iter().map(|name| self::tag(name));
    let (mut dockerfile, mut text) = (file, None);
    if dockerfile.as_deref() == Some(Path::new("-")) {
        dockerfile = None;
        let mut bytes = Vec::new();
        std::io::stdin()
            .lock()
            .take(STDIN_LIMIT)
            .read_to_end(&mut bytes)
            .map_err(|source| Error::System {
                step: "read the Dockerfile from standard input",
                source,
            })?;
        text = Some(bytes);
    }
    let variables = environment::collect(&[] as &[&Path], &build_arg)?;
    Ok(BuildOptions {
        dockerfile,
        text,
        target,
        arguments: variables,
        tags: tags.collect::<Result<_>>()?,
        labels: label,
        use_cache: !no_cache,
        pull: program.policy(),
        pull_options: program.pull_options()?,
        network: Network::from(program.network),
        emulate_root: !program.no_root_emulation,
        limits: program.limits(),
        created: program.created()?,
        ..BuildOptions::new(context)
    })
}

/// Sees to it that the context is a directory, which alone has files that can be copied.
fn check_context(context: &Path) -> Result<()> {
    let text = context.to_string_lossy();
    let is_remote = ["http://", "https://", "git://", "git@", "ssh://"]
        .iter()
        .any(|scheme| text.starts_with(scheme));
    if context.is_dir() {
        return Ok(());
    }
    Err(Error::Context {
        context: context.to_owned(),
        reason: match text.as_ref() {
            "-" => "an archive on standard input",
            _ if is_remote => "a remote context",
            _ if context.exists() => "a file",
            _ => "missing",
        },
    })
}

/// Reads the name for an image that is made here.
pub(crate) fn tag(name: &str) -> Result<Source> {
    let source: Source = name.parse()?;
    match &source {
        Source::Registry(reference) if reference.digest().is_none() => Ok(source),
        _ => Err(Error::NoTag {
            name: name.to_owned(),
        }),
    }
}

/// Reads `NAME=VALUE`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

pub(crate) fn digest(image: &Image) -> String {
    image
        .digest
        .as_ref()
        .map_or_else(|| image.name.clone(), ToString::to_string)
}

fn count(number: usize, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    }
}

impl ProgramArguments {
    pub(crate) fn limits(&self) -> Limits {
        let defaults = build_limits();
        Limits {
            memory: self.memory.map_or(defaults.memory, Bound::into_option),
            cpus: self.cpus.map_or(defaults.cpus, Bound::into_option),
            pids: self.pids_limit.map_or(defaults.pids, Bound::into_option),
            wall_time: self.timeout.map_or(defaults.wall_time, Bound::into_option),
            ..defaults
        }
    }

    pub(crate) fn policy(&self) -> PullPolicy {
        match self.pull {
            PullWhen::Missing => PullPolicy::Missing,
            PullWhen::Always => PullPolicy::Always,
            PullWhen::Never => PullPolicy::Never,
        }
    }

    /// How base images are fetched.
    pub(crate) fn pull_options(&self) -> Result<PullOptions> {
        let options = PullOptions {
            offline: location::is_offline(self.offline),
            ..PullOptions::default()
        };
        if options.offline {
            return Ok(options);
        }
        access::equip(options)
    }

    /// The time that the image is made at, where it is not now.
    pub(crate) fn created(&self) -> Result<Option<i64>> {
        if self.timestamp.is_some() {
            return Ok(self.timestamp);
        }
        match std::env::var("SOURCE_DATE_EPOCH") {
            Ok(text) if !text.is_empty() => match text.parse() {
                Ok(seconds) => Ok(Some(seconds)),
                Err(_not_a_number) => Err(Error::SourceDateEpoch { text }),
            },
            _ => Ok(None),
        }
    }
}

/// Carries out a build or commit to its end, or to a signal.
pub(crate) fn attend<T>(
    screen: &Screen,
    work: impl Future<Output = sbxrt::Result<T>>,
) -> Result<T> {
    let work = async { Ok(work.await?) };
    unless_interrupted(work, |done| {
        screen.pulling.clear_bars();
        if done.is_err() {
            screen.show_tail();
        }
    })
}

/// Shows a build on standard error: each step, and what its program says.
#[derive(Debug)]
pub(crate) struct Screen {
    printer: Printer,
    pulling: Follower,
    tail: Mutex<Vec<u8>>,
}

impl Screen {
    pub(crate) fn new(printer: Printer) -> Self {
        Self {
            pulling: Follower::new("base images".to_owned(), Show::for_people(printer), printer),
            printer,
            tail: Mutex::default(),
        }
    }

    fn show(&self, bytes: &[u8]) {
        if !self.printer.is_quiet() {
            self.printer.program(bytes);
            return;
        }
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend_from_slice(bytes);
        let excess = tail.len().saturating_sub(TAIL);
        tail.drain(..excess);
    }

    /// What a quiet build has kept to itself.
    fn show_tail(&self) {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        self.printer.program(&tail);
    }
}

impl BuildProgress for Screen {
    fn event(&self, event: BuildEvent<'_>) {
        match event {
            BuildEvent::Step {
                number,
                total,
                stage,
                text,
            } => {
                let stage = stage.map(|stage| format!("{stage} ")).unwrap_or_default();
                self.printer
                    .note(&format!("[{stage}{number}/{total}] {text}"));
            }
            BuildEvent::Cached => self.printer.note("  from the cache"),
            BuildEvent::Stdout(bytes) | BuildEvent::Stderr(bytes) => self.show(bytes),
            BuildEvent::Note(text) => self.printer.note(&format!("note: {text}")),
            _ => {}
        }
    }

    fn pull(&self) -> &dyn sbxrt::image::Progress {
        &self.pulling
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_the_name_of_an_image_in_a_registry() {
        assert_eq!(
            tag("mine").unwrap().to_string(),
            "docker.io/library/mine:latest"
        );
        for name in ["oci:dir", "host:", "dir:/x", "Bad Name"] {
            assert!(tag(name).is_err(), "{name}");
        }
        let digest = format!("mine@sha256:{}", "0".repeat(64));
        assert!(tag(&digest).is_err());
    }

    #[test]
    fn a_context_is_a_directory() {
        let reasons = [
            "-",
            "https://example.org/x.git",
            "/nonexistent",
            "/proc/version",
        ]
        .map(|context| match check_context(Path::new(context)) {
            Err(Error::Context { reason, .. }) => reason,
            other => panic!("{other:?}"),
        });
        assert_eq!(
            reasons,
            [
                "an archive on standard input",
                "a remote context",
                "missing",
                "a file"
            ]
        );
        assert!(check_context(Path::new("/")).is_ok());
    }
}
