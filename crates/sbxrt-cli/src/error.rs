//! What can go wrong on the command line's side.

use std::io;
use std::path::PathBuf;

/// The result of a command.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a command could not do its work. What `diagnostics` makes of it is shown to people.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] sbxrt::Error),
    /// Neither a flag nor the environment says where images are kept.
    #[error("there is no place for images: HOME is not set and the user has no home directory")]
    NoStore,
    /// A file of the user's or the site's settings cannot be used.
    #[error("failed to use {}", path.display())]
    Settings {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The file with logins is not what it should be, and is left alone.
    #[error("{} holds no logins: {reason}", path.display())]
    AuthFile { path: PathBuf, reason: String },
    /// This names no registry.
    #[error("{name:?} is not a registry")]
    NotARegistry { name: String },
    /// A password comes without a name.
    #[error("there is no user name")]
    NoUsername,
    /// There is nobody who could be asked, or nothing was said.
    #[error("there is no password")]
    NoPassword,
    /// Nothing is kept for the registry, except perhaps by docker.
    #[error("not logged in to {registry}")]
    NotLoggedIn {
        registry: String,
        elsewhere: Option<PathBuf>,
    },
    /// The source of a volume is not there or may not be looked at.
    #[error("cannot use {} as a volume", path.display())]
    Volume {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Nobody has said where the copy of an output goes.
    #[error("no place for a copy of {}", path.display())]
    NoPlaceForOutput { path: PathBuf },
    /// Two mounts have one destination.
    #[error("two mounts on {}", destination.display())]
    MountedTwice { destination: PathBuf },
    /// An environment file cannot be read.
    #[error("failed to read the environment file {}", path.display())]
    EnvironmentFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// An environment file holds something else than variables.
    #[error("{}:{line}: {reason}", path.display())]
    EnvironmentLine {
        path: PathBuf,
        line: usize,
        reason: String,
    },
    /// A file is no profile of system calls.
    #[error("failed to use the seccomp profile {}", path.display())]
    Profile {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A variable that is to be passed on is not UTF-8.
    #[error("the environment variable {name} is not UTF-8")]
    VariableNotText { name: String },
    /// The entry point was taken away and nothing was put in its place.
    #[error("there is no command: the entry point is empty and nothing follows the image")]
    NoCommand,
    /// A program is to be ended for writing more than a limit that there is not.
    #[error("--output-action kill needs a limit: --output-limit SIZE")]
    NoOutputLimit,
    /// The file for the result cannot be written.
    #[error("failed to write the result to {}", path.display())]
    ResultFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The items of a batch cannot be read.
    #[error("failed to read items from {}", path.display())]
    BatchInput {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A batch would write over the results of another one.
    #[error("{} has results already", path.display())]
    ResultsExist { path: PathBuf },
    /// Another batch writes there.
    #[error("another batch writes its results to {}", path.display())]
    ResultsBusy { path: PathBuf },
    /// A file that results are to be added to is something else.
    #[error("{}:{line}: this is no result of a batch", path.display())]
    NotResults { path: PathBuf, line: u64 },
    /// The thread that writes results is gone without a word.
    #[error("failed to write results")]
    NothingWritten,
    /// Item after item cannot be run, and so will the next.
    #[error("{items} items in a row could not be run")]
    NothingRuns { items: usize },
    /// A batch cannot go on where nothing can be read of it.
    #[error("--resume needs a file that has the results: --output FILE")]
    NothingToResume,
    /// A line of a batch's input is no JSON object.
    #[error("line {line} is no item: {reason}")]
    NotAnItem { line: u64, reason: String },
    /// A field of an item cannot be used.
    #[error("{field:?} {reason}")]
    Item { field: String, reason: String },
    /// A file that was to have the program's output has not all of it.
    #[error("failed to write all output to {}", path.display())]
    OutputFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Two flags name one file, or a flag the file that standard output or standard error goes to.
    #[error("{first} and {second} are the same file")]
    SameFile { first: String, second: String },
    /// What the program leaves could take the place of a file of ours.
    #[error("{file} is in {}, where an output is copied to", copy.display())]
    FileInCopy { file: String, copy: PathBuf },
    /// Two limits contradict each other.
    #[error("{reason}")]
    Limits { reason: &'static str },
    /// `-it` without a terminal, in Docker's words, which scripts and people know.
    #[error("the input device is not a TTY")]
    NotATerminal,
    /// The terminal cannot be switched to raw mode or back.
    #[error("failed to set the terminal up")]
    Terminal(#[source] io::Error),
    /// The operating system refused something that every run needs.
    #[error("failed to {step}")]
    System {
        step: &'static str,
        #[source]
        source: io::Error,
    },
    /// The output could not be handed on.
    #[error("failed to write to {stream}")]
    Output {
        stream: &'static str,
        #[source]
        source: io::Error,
    },
    /// An image of the store that no registry's name tells where to go.
    #[error(
        "{image} is not the name of an image in a registry, so it does not say where to push to"
    )]
    NoDestination { image: String },
    /// The context of a build is no directory.
    #[error("cannot build in {}: it is {reason}", context.display())]
    Context {
        context: PathBuf,
        reason: &'static str,
    },
    /// A build for another machine.
    #[error("this machine is {host} and cannot build for {platform}")]
    ForeignPlatform { platform: String, host: String },
    /// What an image is to be called is no name of an image in a registry.
    #[error("an image cannot be called {name:?}")]
    NoTag { name: String },
    /// `SOURCE_DATE_EPOCH` is no number.
    #[error("SOURCE_DATE_EPOCH is {text:?} and no number of seconds")]
    SourceDateEpoch { text: String },
    /// `sbxrt commit host:`
    #[error("host: is this machine itself and no image to begin with")]
    CommitHost,
    /// A signal ended the command before the program was started.
    #[error("interrupted by {}", crate::status::signal_name(*signal))]
    Interrupted { signal: i32 },
}

impl From<sbxrt::image::Error> for Error {
    fn from(error: sbxrt::image::Error) -> Self {
        Self::Engine(error.into())
    }
}

impl From<sbxrt::image::InvalidSource> for Error {
    fn from(error: sbxrt::image::InvalidSource) -> Self {
        Self::Engine(error.into())
    }
}
