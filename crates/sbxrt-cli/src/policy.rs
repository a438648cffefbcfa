//! From the flags that `sbxrt run` and `sbxrt batch` share to the library's words: limits, a sandbox, its image and its
//! command.

use std::time::Duration;

use sbxrt::{
    Engine, Image, LimitName, Limits, Mount, Network, OutputAction, Platform, PullOptions,
    Requirement, Rlimit, RlimitResource, Sandbox, SandboxBuilder, Seccomp, Source,
};

use crate::args::{ImageArguments, LimitArguments, PullWhen, SandboxArguments};
use crate::error::{Error, Result};
use crate::limit::{self, Bound};
use crate::printer::Printer;
use crate::{environment, location, mount, pull, security};

/// What a program may use, and how much of its output is handed on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Bounds {
    pub(crate) limits: Limits,
    pub(crate) output: Option<u64>,
    pub(crate) output_action: OutputAction,
}

impl Bounds {
    /// What the flags say. `timeout` and `output` are the bounds where they say nothing of these.
    pub(crate) fn new(
        arguments: &LimitArguments,
        timeout: Option<Duration>,
        output: Option<u64>,
    ) -> Result<Self> {
        let limits = Limits {
            memory: arguments.memory.into_option(),
            swap: limit::swap(arguments.memory, arguments.memory_swap)?,
            cpus: arguments.cpus.into_option(),
            cpuset: arguments.cpuset_cpus.clone(),
            pids: arguments.pids_limit.into_option(),
            io_read: arguments.read_bps.and_then(Bound::into_option),
            io_write: arguments.write_bps.and_then(Bound::into_option),
            wall_time: arguments.timeout.map_or(timeout, Bound::into_option),
            cpu_time: arguments.cpu_time.and_then(Bound::into_option),
            scratch_bytes: arguments.scratch_size.into_option(),
            scratch_inodes: arguments
                .scratch_inodes
                .map(|bound| bound.into_option().unwrap_or(0)),
            shm_bytes: arguments.shm_size.into_option(),
            nofile: ceiling(arguments, RlimitResource::Nofile, Limits::default().nofile),
            fsize: ceiling(arguments, RlimitResource::Fsize, None),
        };
        let output = arguments.output_limit.map_or(output, Bound::into_option);
        let output_action = OutputAction::from(arguments.output_action);
        if output_action == OutputAction::Kill && output.is_none() {
            return Err(Error::NoOutputLimit);
        }
        Ok(Self {
            limits,
            output,
            output_action,
        })
    }
}

/// The limit that `--ulimit` sets for `resource`; unlimited is none.
fn ceiling(
    arguments: &LimitArguments,
    resource: RlimitResource,
    default: Option<u64>,
) -> Option<u64> {
    let named = arguments
        .ulimit
        .iter()
        .rfind(|rlimit| rlimit.resource == resource);
    named.map_or(default, |rlimit| {
        (rlimit.hard != u64::MAX).then_some(rlimit.hard)
    })
}

/// What a sandbox is but for its image and its limits, with every file that the flags name read.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) variables: Vec<(String, String)>,
    pub(crate) workdir: Option<std::path::PathBuf>,
    pub(crate) user: Option<String>,
    pub(crate) entrypoint: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) seccomp: Seccomp,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) read_only: bool,
    pub(crate) network: Network,
    pub(crate) rlimits: Vec<Rlimit>,
    pub(crate) require: Vec<(LimitName, Requirement)>,
}

impl Policy {
    /// What the flags say.
    pub(crate) fn new(
        sandbox: SandboxArguments,
        limits: &LimitArguments,
        printer: Printer,
    ) -> Result<Self> {
        let mounts = mount::resolve([sandbox.volume, sandbox.mount, sandbox.tmpfs].concat())?;
        let seccomp = security::seccomp(&sandbox.security_opt)?;
        if seccomp == Seccomp::Unconfined {
            printer.warning("seccomp=unconfined: the program may make every system call");
        }
        Ok(Self {
            variables: environment::collect(&sandbox.env_file, &sandbox.env)?,
            workdir: sandbox.workdir,
            user: sandbox.user,
            entrypoint: sandbox.entrypoint,
            hostname: sandbox.hostname,
            seccomp,
            mounts,
            read_only: sandbox.read_only,
            network: sandbox.network.into(),
            rlimits: limits.ulimit.clone(),
            require: limits.require.clone(),
        })
    }

    /// A sandbox of `image` under `limits`.
    pub(crate) fn sandbox(
        &self,
        engine: &Engine,
        image: &Image,
        limits: Limits,
    ) -> Result<Sandbox> {
        Ok(self.builder(engine, image, limits).build()?)
    }

    /// The same, for more to be said of it.
    pub(crate) fn builder(&self, engine: &Engine, image: &Image, limits: Limits) -> SandboxBuilder {
        let mut builder = engine
            .sandbox(image)
            .limits(limits)
            .network(self.network)
            .read_only(self.read_only)
            .seccomp(self.seccomp.clone());
        for (limit, requirement) in &self.require {
            builder = builder.require(*limit, *requirement);
        }
        for mount in &self.mounts {
            builder = builder.mount(mount.clone());
        }
        for (name, value) in &self.variables {
            builder = builder.env(name, value);
        }
        for rlimit in &self.rlimits {
            builder = builder.rlimit(*rlimit);
        }
        if let Some(directory) = &self.workdir {
            builder = builder.current_dir(directory);
        }
        if let Some(user) = &self.user {
            builder = builder.user(user);
        }
        if let Some(hostname) = &self.hostname {
            builder = builder.hostname(hostname);
        }
        builder
    }

    /// What Docker would execute. An entry point that is named takes the place of the image's and its `CMD`; an empty one
    /// leaves the words.
    pub(crate) fn command(
        &self,
        sandbox: &Sandbox,
        mut words: impl Iterator<Item = String>,
    ) -> Result<sbxrt::Command> {
        let Some(entrypoint) = &self.entrypoint else {
            return Ok(sandbox.default_command(words)?);
        };
        let program = if entrypoint.is_empty() {
            words.next().ok_or(Error::NoCommand)?
        } else {
            entrypoint.clone()
        };
        Ok(sandbox.command(program).args(words))
    }
}

/// Finds an image in the store, or gets it where the flags allow that.
pub(crate) fn find_image(
    engine: &Engine,
    source: &Source,
    arguments: &ImageArguments,
    printer: Printer,
) -> Result<Image> {
    let options = PullOptions {
        platform: arguments.platform.clone().unwrap_or_else(Platform::host),
        offline: location::is_offline(arguments.offline),
        plain_http: arguments.plain_http,
        ..PullOptions::default()
    };
    if arguments.pull != PullWhen::Always
        && let Some(image) = engine.store().find(source, &options.platform)?
    {
        return Ok(image);
    }
    if arguments.pull == PullWhen::Never {
        return Err(sbxrt::Error::NotPresent {
            name: source.to_string(),
        }
        .into());
    }
    pull::for_run(engine.store(), source, &options, arguments.pull, printer)
}
