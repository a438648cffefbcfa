//! The command line's grammar: one definition for parsing, `--help` and the manual pages.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sbxrt::{
    Cpuset, LimitName, Mount, Network, OutputAction, OutputPath, Platform, Requirement, Rlimit,
};

use crate::batch::BatchArguments;
use crate::build::BuildArguments;
use crate::commit::CommitArguments;
use crate::environment::{self, Variable};
use crate::limit::{self, Bound};
use crate::mount;
use crate::output;
use crate::quantity;
use crate::security::{self, SecurityOption};

pub(crate) const LIMITS: &str = "Limits (0 or none lifts one)";
pub(crate) const PROCESS: &str = "Program";
pub(crate) const FILES: &str = "Files and network";
pub(crate) const IMAGE: &str = "Image";
pub(crate) const REPORT: &str = "Report";

pub(crate) const BUILD_HELP: &str = "\
Each RUN is run in a sandbox of its own, without a network unless --network host
allows it, and what it changes becomes a layer. Steps are taken from the cache
where nothing that they depend on has changed. Files that .dockerignore names are
not in the context.

The image is in the store, by its names. A destination of --output is what
`sbxrt copy` takes: docker://NAME, oci:DIR[:TAG], oci-archive:FILE[:TAG],
docker-archive:FILE[:NAME], dir:PATH.

Not supported: RUN --mount, ADD of remote files, HEALTHCHECK, ONBUILD.

Examples:
  sbxrt build -t my-tools .
  sbxrt build -t my-tools --network host --build-arg VERSION=2 src
  sbxrt build -t my-tools -o docker-archive:my-tools.tar:my-tools .
  SOURCE_DATE_EPOCH=0 sbxrt build --target tests -f tests/Dockerfile .";

pub(crate) const COMMIT_HELP: &str = "\
sbxrt has no containers that outlive their command, so the command and the image
that it makes are named at once. Where the command fails there is no new image.

Examples:
  sbxrt commit --network host debian:12 my-tools -- \\
      sh -c 'apt-get update && apt-get install -y jq'
  sbxrt commit --cmd '[\"python3\", \"-i\"]' -e LANG=C.UTF-8 my-tools my-python";

const RUN_HELP: &str = "\
Exit status:
  0-255  the program's own; 128+N where signal N ended it
  124    the time limit ended the program
  125    sbxrt failed; the program did not run, or its output was lost
  126    the program cannot be invoked
  127    the program was not found
  130    cancelled
  137    the limit on memory, processes or output ended the program
  159    the system call filter ended the program
  Where it is not the program's own, stderr says so; --json and --result tell
  it beyond doubt.

Images:
  NAME, docker://NAME    from a registry; short names are Docker Hub's
  oci:DIR[:TAG]          an OCI layout on disk
  oci-archive:FILE       a tar file of one
  docker-archive:FILE    what `docker save` writes
  dir:PATH               a root file system on disk, never changed
  host:                  this machine's own programs, without its files

Examples:
  sbxrt run host: python3 -c 'print(6 * 7)'
  sbxrt run -it debian:12 bash
  sbxrt run --json -m 256m --timeout 5s -v ./task:/task:ro python:3.12-slim \\
      python3 /task/main.py";

const LOGIN_HELP: &str = "\
Files:
  $REGISTRY_AUTH_FILE, else ~/.config/containers/auth.json, or whichever of
  podman's files has a login for the registry already. The password is in it
  as it is, for nobody else to read; for one that is kept elsewhere set up a
  credential helper in ~/.docker/config.json or auth.json (credHelpers).

Examples:
  sbxrt login ghcr.io
  sbxrt login --username me --password-stdin registry.example.org < token";

/// Run code that nobody trusts yet, each time in a fresh rootless container
#[derive(Debug, Parser)]
#[command(
    name = "sbxrt",
    version,
    max_term_width = 79,
    disable_help_subcommand = true,
    arg_required_else_help = true
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command in a new sandbox
    Run(Box<RunArguments>),
    /// Run many commands, from lines of JSON to lines of JSON
    Batch(Box<BatchArguments>),
    /// Get images and print their digests
    Pull(PullArguments),
    /// Copy an image between registries, archives and directories
    Copy(CopyArguments),
    /// Copy an image of the store to a registry or elsewhere
    Push(PushArguments),
    /// Build an image from a Dockerfile
    Build(Box<BuildArguments>),
    /// Run a command in an image and keep the result as a new image
    Commit(Box<CommitArguments>),
    /// List the images in the store
    Images(ImagesArguments),
    /// Print what is known of an image as JSON
    Inspect(InspectArguments),
    /// Remove images from the store
    Rmi(RemoveArguments),
    /// Remove what no image needs, images that are not used, and what is left
    /// of ended runs
    Gc(CollectArguments),
    /// Check that images are what was pulled
    Verify(VerifyArguments),
    /// Show what the store takes of the disk
    Du(UsageArguments),
    /// Keep a user name and a password for a registry that takes them
    Login(LoginArguments),
    /// Forget what is kept for a registry
    Logout(LogoutArguments),
    /// Check what this machine offers and say how to mend what it lacks
    #[command(visible_alias = "doctor")]
    Check(CheckArguments),
    /// Print the version
    Version,
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Man(ManArguments),
}

/// Where images are kept.
#[derive(Debug, Clone, Args)]
pub(crate) struct StoreArguments {
    #[arg(
        long,
        value_name = "DIR",
        help = "Keep images in this directory [env: SBXRT_STORE] [default: ~/.local/share/sbxrt]",
        help_heading = IMAGE
    )]
    pub(crate) store: Option<PathBuf>,

    #[arg(
        long,
        value_name = "DIR",
        help = "Use images of this store in place, never changing it [env: SBXRT_ADDITIONAL_STORES, with colons]",
        help_heading = IMAGE
    )]
    pub(crate) additional_store: Vec<PathBuf>,
}

/// How much a program may use.
#[derive(Debug, Clone, Args)]
pub(crate) struct LimitArguments {
    /// Limit the memory of all processes together
    #[arg(
        short,
        long,
        value_name = "SIZE",
        default_value = "512m",
        value_parser = limit::size,
        allow_negative_numbers = true,
        help_heading = LIMITS
    )]
    pub(crate) memory: Bound<u64>,

    /// Limit memory and swap together [default: what --memory says, so
    /// that there is no swap]
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = limit::memory_swap,
        allow_negative_numbers = true,
        help_heading = LIMITS
    )]
    pub(crate) memory_swap: Option<Bound<u64>>,

    /// Limit processor time: 0.5 is half a processor
    #[arg(long, value_name = "NUMBER", default_value = "1", value_parser = limit::cpus, help_heading = LIMITS)]
    pub(crate) cpus: Bound<f64>,

    /// Use these processors only, such as 0-1,3
    #[arg(long, value_name = "LIST", help_heading = LIMITS)]
    pub(crate) cpuset_cpus: Option<Cpuset>,

    /// Limit the number of processes and threads
    #[arg(
        long,
        value_name = "NUMBER",
        default_value = "128",
        value_parser = limit::pids,
        allow_negative_numbers = true,
        help_heading = LIMITS
    )]
    pub(crate) pids_limit: Bound<u32>,

    /// Limit what is read per second from every disk that is reached
    #[arg(long, value_name = "SIZE", value_parser = limit::size, help_heading = LIMITS)]
    pub(crate) read_bps: Option<Bound<u64>>,

    /// Limit what is written per second to every disk that is reached
    #[arg(long, value_name = "SIZE", value_parser = limit::size, help_heading = LIMITS)]
    pub(crate) write_bps: Option<Bound<u64>>,

    /// Limit the time from start to end [default: 10s with --json, else
    /// none]
    #[arg(long, value_name = "DURATION", value_parser = limit::duration, help_heading = LIMITS)]
    pub(crate) timeout: Option<Bound<Duration>>,

    /// Limit the CPU time of all processes together
    #[arg(long, value_name = "DURATION", value_parser = limit::duration, help_heading = LIMITS)]
    pub(crate) cpu_time: Option<Bound<Duration>>,

    /// Hand on this much of stdout and of stderr, and count the rest; with
    /// --json half of it the beginning and half the end [default: 10m with
    /// --json, else all]
    #[arg(long, value_name = "SIZE", value_parser = limit::size, help_heading = LIMITS)]
    pub(crate) output_limit: Option<Bound<u64>>,

    /// Do this with a program that writes more
    #[arg(long, value_name = "ACTION", value_enum, default_value = "cut", help_heading = LIMITS)]
    pub(crate) output_action: OutputActionArgument,

    /// Limit what can be written to the root file system and /tmp
    #[arg(long, value_name = "SIZE", default_value = "64m", value_parser = limit::size, help_heading = LIMITS)]
    pub(crate) scratch_size: Bound<u64>,

    /// Limit how many files and directories can be made there [default: one
    /// for each 4 KiB, at least 1024]
    #[arg(long, value_name = "NUMBER", value_parser = limit::count, help_heading = LIMITS)]
    pub(crate) scratch_inodes: Option<Bound<u64>>,

    /// Limit /dev/shm, and System V shared memory to as much again
    #[arg(long, value_name = "SIZE", default_value = "64m", value_parser = limit::size, help_heading = LIMITS)]
    pub(crate) shm_size: Bound<u64>,

    /// Set a resource limit of the kernel, such as nofile=1024:4096
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = limit::ulimit, help_heading = LIMITS)]
    pub(crate) ulimit: Vec<Rlimit>,

    /// Refuse to run unless a limit is held this way: cgroup, rlimit,
    /// watchdog, ...
    #[arg(
        long,
        value_name = "LIMIT=MECHANISM",
        value_delimiter = ',',
        value_parser = limit::requirement,
        help_heading = LIMITS
    )]
    pub(crate) require: Vec<(LimitName, Requirement)>,
}

/// What a program finds and reaches in its sandbox.
#[derive(Debug, Clone, Args)]
pub(crate) struct SandboxArguments {
    /// Set an environment variable, or pass one on
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = environment::variable, help_heading = PROCESS)]
    pub(crate) env: Vec<Variable>,

    /// Read environment variables from a file, one a line
    #[arg(long, value_name = "FILE", help_heading = PROCESS)]
    pub(crate) env_file: Vec<PathBuf>,

    /// Start in this directory [default: the image's, else /]
    #[arg(short, long, value_name = "DIR", help_heading = PROCESS)]
    pub(crate) workdir: Option<PathBuf>,

    /// Be this user inside [default: the image's, else root]
    #[arg(short, long, value_name = "USER[:GROUP]", help_heading = PROCESS)]
    pub(crate) user: Option<String>,

    /// Run this program instead of the image's entry point
    #[arg(long, value_name = "PROGRAM", help_heading = PROCESS)]
    pub(crate) entrypoint: Option<String>,

    /// Set the host name inside [default: the name of the run]
    #[arg(long, value_name = "NAME", help_heading = PROCESS)]
    pub(crate) hostname: Option<String>,

    /// Allow the system calls of a profile in Docker's format instead of
    /// sbxrt's own choice: seccomp=FILE, or seccomp=unconfined for all
    #[arg(long, value_name = "OPTION", value_parser = security::option, help_heading = PROCESS)]
    pub(crate) security_opt: Vec<SecurityOption>,

    /// Show a file or directory of this machine inside
    #[arg(
        short,
        long,
        value_name = "SOURCE:DESTINATION[:ro]",
        value_parser = mount::volume,
        help_heading = FILES
    )]
    pub(crate) volume: Vec<Mount>,

    /// Mount, spelt out: type=bind|tmpfs,source=,target=,readonly,
    /// tmpfs-size=, and subpath= for a path below source that must not lead
    /// out of it
    #[arg(long, value_name = "FIELDS", value_parser = mount::mount, help_heading = FILES)]
    pub(crate) mount: Vec<Mount>,

    /// Mount an empty directory in memory, of 64 MiB unless told otherwise
    #[arg(long, value_name = "DESTINATION[:size=SIZE]", value_parser = mount::tmpfs, help_heading = FILES)]
    pub(crate) tmpfs: Vec<Mount>,

    /// Make the root file system read-only, except /tmp and mounts
    #[arg(long, help_heading = FILES)]
    pub(crate) read_only: bool,

    /// Show no network, or this machine's
    #[arg(long, value_name = "NETWORK", value_enum, default_value = "none", help_heading = FILES)]
    pub(crate) network: NetworkArgument,
}

/// Where the image comes from.
#[derive(Debug, Clone, Args)]
pub(crate) struct ImageArguments {
    /// Get the image where it is missing, always, or never
    #[arg(long, value_name = "WHEN", value_enum, default_value = "missing", help_heading = IMAGE)]
    pub(crate) pull: PullWhen,

    /// Run the image for this platform [default: this machine's]
    #[arg(long, value_name = "OS/ARCH", help_heading = IMAGE)]
    pub(crate) platform: Option<Platform>,

    #[arg(
        long,
        help = "Fetch nothing: what no store has is an error [env: SBXRT_OFFLINE]",
        help_heading = IMAGE
    )]
    pub(crate) offline: bool,

    /// Allow a registry that has no TLS; one on this machine always may
    #[arg(long, help_heading = IMAGE)]
    pub(crate) plain_http: bool,

    #[command(flatten)]
    pub(crate) store: StoreArguments,
}

/// How much is collected of what a program leaves.
#[derive(Debug, Clone, Args)]
pub(crate) struct CollectionArguments {
    /// Collect at most this much, holes in files included
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "256m",
        value_parser = quantity::parse_size,
        help_heading = FILES
    )]
    pub(crate) output_size: u64,

    /// Collect at most this many files, directories and links
    #[arg(long, value_name = "NUMBER", default_value = "10000", help_heading = FILES)]
    pub(crate) output_count: usize,
}

/// `sbxrt run`.
#[derive(Debug, Args)]
#[command(
    override_usage = "sbxrt run [OPTIONS] <IMAGE> [COMMAND [ARG]...]",
    after_long_help = RUN_HELP
)]
pub(crate) struct RunArguments {
    // One argument and not two: this alone makes clap leave everything behind the image to the command, were it
    // `--version` or `--`.
    /// Image to run in, such as python:3.12-slim, dir:PATH or host:, then a
    /// command and its arguments instead of the image's own
    #[arg(value_name = "IMAGE", required = true, trailing_var_arg = true)]
    pub(crate) image_and_command: Vec<String>,

    #[command(flatten)]
    pub(crate) limits: LimitArguments,

    #[command(flatten)]
    pub(crate) sandbox: SandboxArguments,

    /// Pass standard input on
    #[arg(short, long, help_heading = PROCESS)]
    pub(crate) interactive: bool,

    /// Give the program a terminal
    #[arg(short, long, help_heading = PROCESS)]
    pub(crate) tty: bool,

    /// Name the run [default: 12 random hexadecimal digits]
    #[arg(long, value_name = "NAME", help_heading = PROCESS)]
    pub(crate) name: Option<String>,

    /// Leave nothing behind; always so, taken for Docker's sake
    #[arg(long, help_heading = PROCESS)]
    pub(crate) rm: bool,

    /// Collect a file or directory when the program is over: --json lists it
    /// with sizes and hashes; COPY is what its copy on this machine is called
    #[arg(long, value_name = "PATH[:COPY]", value_parser = output::path, help_heading = FILES)]
    pub(crate) output: Vec<OutputPath>,

    /// Copy outputs that name no copy into this directory
    #[arg(long, value_name = "DIR", requires = "output", help_heading = FILES)]
    pub(crate) output_dir: Option<PathBuf>,

    /// Let copies of outputs replace what has their names
    #[arg(long, requires = "output", help_heading = FILES)]
    pub(crate) overwrite: bool,

    #[command(flatten)]
    pub(crate) collection: CollectionArguments,

    #[command(flatten)]
    pub(crate) image: ImageArguments,

    /// Print one JSON document with the output, how it ended and what it used
    #[arg(long, help_heading = REPORT)]
    pub(crate) json: bool,

    /// Write that document to a file, without the output, which passes
    /// through
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "print_spec"], help_heading = REPORT)]
    pub(crate) result: Option<PathBuf>,

    /// Write all of stdout to a file as well
    #[arg(long, value_name = "FILE", help_heading = REPORT)]
    pub(crate) stdout_file: Option<PathBuf>,

    /// Write all of stderr to a file as well
    #[arg(long, value_name = "FILE", conflicts_with = "tty", help_heading = REPORT)]
    pub(crate) stderr_file: Option<PathBuf>,

    /// Limit the size of each of these files
    #[arg(long, value_name = "SIZE", default_value = "1g", value_parser = limit::size, help_heading = REPORT)]
    pub(crate) stream_file_limit: Bound<u64>,

    /// Print the OCI runtime spec and do not run
    #[arg(long, conflicts_with = "json", help_heading = REPORT)]
    pub(crate) print_spec: bool,

    /// Say nothing but errors
    #[arg(short, long, help_heading = REPORT)]
    pub(crate) quiet: bool,
}

/// The values of `--network`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NetworkArgument {
    /// A loopback interface and nothing else
    None,
    /// Everything that this machine reaches
    Host,
}

impl From<NetworkArgument> for Network {
    fn from(argument: NetworkArgument) -> Self {
        match argument {
            NetworkArgument::None => Self::None,
            NetworkArgument::Host => Self::Host,
        }
    }
}

/// The values of `--output-action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputActionArgument {
    /// Let it go on
    Cut,
    /// End it
    Kill,
}

impl From<OutputActionArgument> for OutputAction {
    fn from(argument: OutputActionArgument) -> Self {
        match argument {
            OutputActionArgument::Cut => Self::Cut,
            OutputActionArgument::Kill => Self::Kill,
        }
    }
}

/// The values of `--pull`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PullWhen {
    /// Where the store does not have it
    Missing,
    /// Each time, so that a tag that has moved is followed
    Always,
    /// Not at all; a missing image is an error
    Never,
}

/// `sbxrt pull`.
#[derive(Debug, Args)]
pub(crate) struct PullArguments {
    /// Images to get
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,

    /// Get the image for this platform [default: this machine's]
    #[arg(long, value_name = "OS/ARCH", help_heading = IMAGE)]
    pub(crate) platform: Option<Platform>,

    /// Allow a registry that has no TLS; one on this machine always may
    #[arg(long, help_heading = IMAGE)]
    pub(crate) plain_http: bool,

    #[arg(
        long,
        help = "Fetch nothing: what no store has is an error [env: SBXRT_OFFLINE]",
        help_heading = IMAGE
    )]
    pub(crate) offline: bool,

    /// Let everybody on this machine read the store from now on
    #[arg(long, help_heading = IMAGE)]
    pub(crate) shared: bool,

    #[command(flatten)]
    pub(crate) store: StoreArguments,

    /// Print one JSON document that describes the images
    #[arg(long, help_heading = REPORT)]
    pub(crate) json: bool,

    /// Show progress: bars on a terminal and lines elsewhere, lines, one JSON
    /// event a line on standard output, or nothing
    #[arg(
        long,
        value_name = "HOW",
        value_enum,
        default_value = "auto",
        conflicts_with = "json",
        help_heading = REPORT
    )]
    pub(crate) progress: ProgressWhen,

    /// Show no progress
    #[arg(short, long, help_heading = REPORT)]
    pub(crate) quiet: bool,
}

/// The values of `--progress`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressWhen {
    /// Bars on a terminal, lines elsewhere
    Auto,
    /// A line now and then
    Plain,
    /// Events for programs, see docs/pull-events.schema.json
    Json,
    /// Nothing
    None,
}

/// What `sbxrt copy` and `sbxrt push` have in common.
#[derive(Debug, Args)]
pub(crate) struct TransferArguments {
    /// Copy the image for this platform [default: this machine's]
    #[arg(long, value_name = "OS/ARCH", help_heading = IMAGE)]
    pub(crate) platform: Option<Platform>,

    /// Keep a manifest of Docker's as it is, even in an OCI layout, whose
    /// readers may not take it
    #[arg(long, help_heading = IMAGE)]
    pub(crate) preserve_digests: bool,

    /// Allow a registry that has no TLS; one on this machine always may
    #[arg(long, help_heading = IMAGE)]
    pub(crate) plain_http: bool,

    #[command(flatten)]
    pub(crate) store: StoreArguments,

    /// Print one JSON document with digests, sizes and what was done
    #[arg(long, help_heading = REPORT)]
    pub(crate) json: bool,

    /// Show no progress
    #[arg(short, long, help_heading = REPORT)]
    pub(crate) quiet: bool,
}

const COPY_HELP: &str = "\
Places:
  NAME, docker://NAME          in a registry
  oci:DIR[:TAG]                an OCI layout; the image is added to it
  oci-archive:FILE[:TAG]       a tar file of one; a file there is replaced
  docker-archive:FILE[:NAME]   what `docker load` reads; likewise
  dir:PATH                     a root file system: to copy there is to unpack,
                               to copy from there makes an image of one layer
  store:NAME                   an image of the store, to copy from

What is copied bit for bit keeps its digests. An image of the store is put
together anew: its configuration stays, its manifest and layers get digests
of their own.

Examples:
  sbxrt copy python:3.12-slim oci-archive:python.tar
  sbxrt copy --all docker://registry.example/a:1 docker://other.example/a:1
  sbxrt copy store:python:3.12-slim docker-archive:python.tar:python:3.12";

const PUSH_HELP: &str = "\
Without a destination the image goes where its name says. A destination is
what `sbxrt copy` takes.

Examples:
  sbxrt push registry.example/team/tool:2
  sbxrt push python:3.12-slim docker://localhost:5000/python:3.12
  sbxrt push python:3.12-slim oci:layout:python";

/// `sbxrt copy`.
#[derive(Debug, Args)]
#[command(after_long_help = COPY_HELP)]
pub(crate) struct CopyArguments {
    /// Image to copy
    #[arg(value_name = "SOURCE")]
    pub(crate) source: String,

    /// Where to copy it
    #[arg(value_name = "DESTINATION")]
    pub(crate) destination: String,

    /// Copy the images for all platforms, with the index that holds them
    #[arg(long, conflicts_with = "platform", help_heading = IMAGE)]
    pub(crate) all: bool,

    #[command(flatten)]
    pub(crate) transfer: TransferArguments,
}

/// `sbxrt push`.
#[derive(Debug, Args)]
#[command(after_long_help = PUSH_HELP)]
pub(crate) struct PushArguments {
    /// Name of an image in the store, or the first digits of its digest
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,

    /// Where to copy it [default: where its name says]
    #[arg(value_name = "DESTINATION")]
    pub(crate) destination: Option<String>,

    #[command(flatten)]
    pub(crate) transfer: TransferArguments,
}

/// `sbxrt images`.
#[derive(Debug, Args)]
pub(crate) struct ImagesArguments {
    #[command(flatten)]
    pub(crate) store: StoreArguments,

    /// Print a JSON document instead of a table
    #[arg(long, help_heading = REPORT)]
    pub(crate) json: bool,
}

/// `sbxrt inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArguments {
    /// Name of the image, or the first digits of its digest
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,

    /// Look for the image for this platform [default: this machine's]
    #[arg(long, value_name = "OS/ARCH", help_heading = IMAGE)]
    pub(crate) platform: Option<Platform>,

    #[command(flatten)]
    pub(crate) store: StoreArguments,
}

/// `sbxrt rmi`.
#[derive(Debug, Args)]
pub(crate) struct RemoveArguments {
    /// Names of images, or the first digits of their digests
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,

    /// Remove names of images that sandboxes run from; their files stay until
    /// the sandboxes have ended
    #[arg(short, long)]
    pub(crate) force: bool,

    #[command(flatten)]
    pub(crate) store: StoreArguments,

    /// Say nothing but names and errors
    #[arg(short, long, help_heading = REPORT)]
    pub(crate) quiet: bool,
}

/// `sbxrt gc`.
#[derive(Debug, Args)]
pub(crate) struct CollectArguments {
    /// Remove images, the least recently used first, until the others take no
    /// more than this
    #[arg(long, value_name = "SIZE", value_parser = quantity::parse_size)]
    pub(crate) keep: Option<u64>,

    /// Remove images that were not used for so long, such as 30d
    #[arg(long, value_name = "DURATION", value_parser = quantity::parse_duration)]
    pub(crate) unused_for: Option<Duration>,

    /// Only say what would be removed
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,

    #[command(flatten)]
    pub(crate) store: StoreArguments,

    /// Print a JSON document
    #[arg(long, help_heading = REPORT)]
    pub(crate) json: bool,
}

/// `sbxrt verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    /// Names of images, or the first digits of their digests [default: the
    /// whole store]
    #[arg(value_name = "IMAGE")]
    pub(crate) images: Vec<String>,

    /// Remove what is damaged, and its images, so that the next pull gets
    /// them anew
    #[arg(long)]
    pub(crate) repair: bool,

    #[command(flatten)]
    pub(crate) store: StoreArguments,

    /// Print a JSON document
    #[arg(long, help_heading = REPORT)]
    pub(crate) json: bool,
}

/// `sbxrt du`.
#[derive(Debug, Args)]
pub(crate) struct UsageArguments {
    #[command(flatten)]
    pub(crate) store: StoreArguments,

    /// Print a JSON document, with every layer
    #[arg(long, help_heading = REPORT)]
    pub(crate) json: bool,
}

/// `sbxrt login`.
#[derive(Debug, Args)]
#[command(after_long_help = LOGIN_HELP)]
pub(crate) struct LoginArguments {
    /// Registry to log in to, such as ghcr.io, registry.example.org:5000 or
    /// docker.io; or a part of one, such as ghcr.io/team
    #[arg(value_name = "REGISTRY")]
    pub(crate) registry: String,

    /// Log in as this user [default: asked for]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) username: Option<String>,

    /// Read the password or token from standard input [default: asked for]
    #[arg(long)]
    pub(crate) password_stdin: bool,

    /// Allow a registry that has no TLS; one on this machine always may
    #[arg(long)]
    pub(crate) plain_http: bool,

    /// Say nothing but errors
    #[arg(short, long, help_heading = REPORT)]
    pub(crate) quiet: bool,
}

/// `sbxrt logout`.
#[derive(Debug, Args)]
pub(crate) struct LogoutArguments {
    /// Registry to log out of
    #[arg(value_name = "REGISTRY", required_unless_present = "all")]
    pub(crate) registry: Option<String>,

    /// Log out of all of them
    #[arg(long, conflicts_with = "registry")]
    pub(crate) all: bool,

    /// Say nothing but errors
    #[arg(short, long, help_heading = REPORT)]
    pub(crate) quiet: bool,
}

/// `sbxrt check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    #[command(flatten)]
    pub(crate) store: StoreArguments,

    /// Print a JSON document instead of a report
    #[arg(long, help_heading = REPORT)]
    pub(crate) json: bool,
}

/// `sbxrt man`.
#[derive(Debug, Args)]
pub(crate) struct ManArguments {
    /// Directory to write to
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn run(words: &[&str]) -> Result<RunArguments, clap::Error> {
        let arguments = Arguments::try_parse_from(["sbxrt", "run"].iter().chain(words))?;
        match arguments.command {
            Command::Run(arguments) => Ok(*arguments),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn everything_behind_the_image_belongs_to_the_command() {
        let table: [&[&str]; 6] = [
            &["host:"],
            &["host:", "ls", "-l", "--json"],
            &["host:", "--version"],
            &["host:", "-it", "--help"],
            &["host:", "--", "ls"],
            &["host:", "sh", "-c", "exit 1", "--", "x"],
        ];
        for words in table {
            let arguments = run(&[&["-q"], words].concat()).unwrap();
            assert_eq!(arguments.image_and_command, words);
            assert!(
                arguments.quiet && !arguments.json && !arguments.tty,
                "{words:?}"
            );
        }
    }

    #[test]
    fn flags_are_those_that_hands_know() {
        let arguments = run(&[
            "-it",
            "--rm",
            "-m",
            "64m",
            "--cpus=0.5",
            "--pids-limit",
            "-1",
            "-e",
            "A=1",
            "-eB",
            "-v",
            "/a:/b:ro",
            "-w/x",
            "-u",
            "1000:1000",
            "--network",
            "host",
            "--require",
            "memory=cgroup,pids=rlimit",
            "--pull=never",
            "image",
            "true",
        ])
        .unwrap();
        assert!(arguments.interactive && arguments.tty && arguments.rm);
        assert_eq!(arguments.limits.memory, Bound::At(64 << 20));
        assert_eq!(arguments.limits.cpus, Bound::At(0.5));
        assert_eq!(arguments.limits.pids_limit, Bound::Unlimited);
        assert_eq!(arguments.sandbox.env.len(), 2);
        assert_eq!(arguments.sandbox.volume, [Mount::read_only("/a", "/b")]);
        assert_eq!(arguments.sandbox.user.as_deref(), Some("1000:1000"));
        assert_eq!(arguments.sandbox.network, NetworkArgument::Host);
        assert_eq!(arguments.limits.require.len(), 2);
        assert_eq!(arguments.image.pull, PullWhen::Never);
    }

    #[test]
    fn malformed_values_are_named() {
        let table: [(&[&str], &str); 6] = [
            (&[], "<IMAGE>"),
            (&["-m", "lots", "x"], "unknown unit"),
            (&["-v", "/a", "x"], "--tmpfs"),
            (&["--network", "bridge", "x"], "host"),
            (&["--require", "memory=magic", "x"], "cgroup"),
            (&["--print-spec", "--json", "x"], "cannot be used with"),
        ];
        for (words, expected) in table {
            let error = run(words).unwrap_err().to_string();
            assert!(error.contains(expected), "{words:?}: {error}");
        }
    }

    #[test]
    fn help_fits_a_terminal_and_reads_as_it_always_did() {
        let mut command = Arguments::command();
        command.build();
        let mut pages = vec![(
            "sbxrt".to_owned(),
            command.clone().render_long_help().to_string(),
        )];
        for subcommand in command.get_subcommands() {
            let page = subcommand.clone().render_long_help().to_string();
            pages.push((format!("sbxrt {}", subcommand.get_name()), page));
        }
        for (name, page) in pages {
            for line in page.lines() {
                assert!(line.chars().count() <= 79, "{name}: {line:?}");
            }
            insta::assert_snapshot!(name.replace(' ', "-"), page);
        }
    }
}
