//! Images from Dockerfiles, built in sandboxes.
//!
//! A build needs no daemon and no root. Each `RUN` is an execution in a sandbox of its own whose changes become a layer,
//! without a network unless the caller allows one; `COPY` never leaves the context. What a step makes is kept by the
//! content it was made from, so a build that is repeated does only what has changed. A build that fails or is dropped
//! leaves nothing behind but the layers of the steps that succeeded, which are found again by the next one.
//!
//! ```no_run
//! # async fn build() -> sbxrt::Result<()> {
//! use sbxrt::Engine;
//! use sbxrt::build::BuildOptions;
//!
//! let engine = Engine::open_default()?;
//! let options = BuildOptions {
//!     tags: vec!["my-tools".parse()?],
//!     ..BuildOptions::new("path/to/context")
//! };
//! let built = engine.build(&options, &()).await?;
//! println!("{}", built.image.digest.expect("an image that was built has a manifest"));
//! # Ok(())
//! # }
//! ```

mod cache;
mod commit;
mod context;
mod copy;
mod dockerfile;
mod execute;
mod expand;
mod ignore;
mod pattern;
mod plan;
mod run;
mod state;

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use sbxrt_image::{Image, PullOptions, Source};
use sbxrt_runtime::{Limits, Network, Termination};

use crate::engine::Engine;
use crate::error::{Error, Result};

pub use commit::CommitOptions;
pub use dockerfile::{
    CommandLine, CopyInstruction, Dockerfile, DockerfileError, Heredoc, Instruction,
    InstructionKind,
};

/// How many processes a step may have at once unless the caller says otherwise: enough for parallel compilers, and an end
/// to fork bombs.
const PIDS: u32 = 4096;

/// Says what to build and how.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The directory whose files `COPY` and `ADD` may copy.
    pub context: PathBuf,
    /// The Dockerfile. Default: `Dockerfile` in the context.
    pub dockerfile: Option<PathBuf>,
    /// The text of the Dockerfile, instead of a file.
    pub text: Option<Vec<u8>>,
    /// The stage to build. Default: the last one.
    pub target: Option<String>,
    /// Values for `ARG`s. Default: none.
    pub arguments: Vec<(String, String)>,
    /// The names that the image is recorded by. Default: none; it is then called `localhost/build@DIGEST`.
    pub tags: Vec<Source>,
    /// Labels for the image, over the Dockerfile's. Default: none.
    pub labels: Vec<(String, String)>,
    /// Whether steps that were made before may be used. Default: yes.
    pub use_cache: bool,
    /// When base images are fetched. Default: where they are missing.
    pub pull: PullPolicy,
    /// How base images are fetched.
    pub pull_options: PullOptions,
    /// The network of `RUN`. Default: none. A Dockerfile cannot open what is closed here.
    pub network: Network,
    /// Whether `RUN` may pretend to be root, so that package managers work. Default: yes.
    pub emulate_root: bool,
    /// What each `RUN` may use. Default: 4096 processes, and no other limits.
    pub limits: Limits,
    /// The time that the image says it was made at, and that no file of its new layers is later than, in seconds since
    /// 1970: what `SOURCE_DATE_EPOCH` asks for. With it the same inputs make the same image. Default: now.
    pub created: Option<i64>,
}

/// When a base image is fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// Where the store does not have it.
    #[default]
    Missing,
    /// Each time, so that a tag that has moved is followed.
    Always,
    /// Never; a missing image is an error.
    Never,
}

impl BuildOptions {
    /// A build of the Dockerfile in `context`, with the defaults.
    pub fn new(context: impl Into<PathBuf>) -> Self {
        Self {
            context: context.into(),
            dockerfile: None,
            text: None,
            target: None,
            arguments: Vec::new(),
            tags: Vec::new(),
            labels: Vec::new(),
            use_cache: true,
            pull: PullPolicy::default(),
            pull_options: PullOptions::default(),
            network: Network::None,
            emulate_root: true,
            limits: build_limits(),
            created: None,
        }
    }
}

/// The limits of a program that a build runs, unless the caller says otherwise.
pub fn build_limits() -> Limits {
    Limits {
        memory: None,
        cpus: None,
        pids: Some(PIDS),
        wall_time: None,
        ..Limits::default()
    }
}

/// Follows a build.
pub trait BuildProgress: Sync {
    /// Takes note of something that happened.
    fn event(&self, event: BuildEvent<'_>);

    /// Who follows the fetching of base images.
    fn pull(&self) -> &dyn sbxrt_image::Progress {
        &()
    }
}

/// Follows nothing.
impl BuildProgress for () {
    fn event(&self, _: BuildEvent<'_>) {}
}

/// Something that happened in a build.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum BuildEvent<'a> {
    /// A step begins.
    Step {
        /// Its number, from 1.
        number: usize,
        /// How many there are.
        total: usize,
        /// The stage that it belongs to, where there are several.
        stage: Option<&'a str>,
        /// The instruction.
        text: &'a str,
    },
    /// The step was found in the cache.
    Cached,
    /// A program wrote to its standard output.
    Stdout(&'a [u8]),
    /// A program wrote to its standard error.
    Stderr(&'a [u8]),
    /// Something that is good to know.
    Note(String),
}

/// What was built.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Built {
    /// The image, by the first of its names.
    pub image: Image,
    /// How many steps there were.
    pub steps: usize,
    /// How many of those that could have been in the cache were.
    pub cached: usize,
}

impl Engine {
    /// Builds an image from a Dockerfile and records it in the store. Dropping the future ends the build.
    ///
    /// # Errors
    ///
    /// [`Error::Dockerfile`] for a mistake in the Dockerfile, [`Error::Instruction`] for one that could not be carried
    /// out, with the cause: a program that failed is [`Error::ProgramFailed`].
    pub async fn build(
        &self,
        options: &BuildOptions,
        progress: &dyn BuildProgress,
    ) -> Result<Built> {
        execute::build(self, options, progress).await
    }

    /// Runs a command in an image and records what it changed as a new image.
    ///
    /// # Errors
    ///
    /// [`Error::ProgramFailed`] where the command fails: then there is no new image.
    pub async fn commit(
        &self,
        options: &CommitOptions,
        progress: &dyn BuildProgress,
    ) -> Result<Image> {
        commit::commit(self, options, progress).await
    }
}

/// How a program ended, in words that go on from "the program".
pub(crate) fn ending(termination: &Termination) -> String {
    match termination {
        Termination::Exited { code } => format!("exited with status {code}"),
        Termination::Signaled { signal } => format!("was ended by signal {signal}"),
        Termination::Timeout => "was ended by the time limit".to_owned(),
        Termination::Oom => "was ended by the memory limit".to_owned(),
        Termination::Pids => "failed at the limit on processes".to_owned(),
        Termination::Output => "wrote more than it may".to_owned(),
        Termination::Disk => "failed in a full scratch space".to_owned(),
        Termination::Seccomp { syscall, .. } => format!("was ended for calling {syscall}"),
        Termination::Cancelled => "was cancelled".to_owned(),
        Termination::StartFailed { reason, .. } => format!("was not started: {reason}"),
        other => format!("ended: {other:?}"),
    }
}

/// Now, in seconds since 1970.
pub(crate) fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}

/// Runs something that blocks where it may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::invalid("build", "was cancelled")),
        },
    }
}
