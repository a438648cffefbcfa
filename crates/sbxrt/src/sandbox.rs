//! A sandbox: an image with a policy.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use sbxrt_image::{Image, Rootfs};
use sbxrt_runtime::seccomp;
use sbxrt_runtime::{LimitName, Limits, Mechanism, Mount, Network, Requirement, Rlimit, Root};

use crate::command::Command;
use crate::engine::Works;
use crate::error::{Error, Result};
use crate::pool::Pool;

/// The most bytes of one environment entry, name and value: half of what Linux takes (`MAX_ARG_STRLEN`, 128 KiB), so
/// that no program finds itself unable to pass its own environment on.
const ENVIRONMENT_ENTRY_LIMIT: usize = 64 << 10;
/// The longest host name that Linux takes (`HOST_NAME_MAX`).
const HOSTNAME_LIMIT: usize = 64;

/// Collects the policy of a [`Sandbox`]. Everything is closed until it is opened: no network, no host files.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct SandboxBuilder {
    works: Arc<Works>,
    policy: Policy,
    seccomp: Seccomp,
    pool: usize,
}

/// The system calls that a program may make.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// What sbxrt's [own policy](crate::seccomp#the-default-policy) allows.
    #[default]
    Default,
    /// What this profile allows, in the place of that policy. Nothing else of the sandbox depends on it: the program still
    /// has no capability and gains no privilege, and where memory or processors are limited without a cgroup, what would
    /// undo the limit stays refused.
    Profile(seccomp::Profile),
    /// All of them. For programs that are trusted and that no profile fits.
    Unconfined,
}

/// What a [`Command`] inherits from its sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) image: Image,
    pub(crate) limits: Limits,
    pub(crate) require: BTreeMap<LimitName, Requirement>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) network: Network,
    pub(crate) read_only: bool,
    pub(crate) upper: Option<PathBuf>,
    pub(crate) emulate_root: bool,
    pub(crate) seccomp: seccomp::Policy,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: Option<PathBuf>,
    pub(crate) user: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) rlimits: Vec<Rlimit>,
}

impl SandboxBuilder {
    pub(crate) fn new(works: Arc<Works>, image: Image) -> Self {
        let policy = Policy {
            image,
            limits: Limits::default(),
            require: BTreeMap::new(),
            mounts: Vec::new(),
            network: Network::None,
            read_only: false,
            upper: None,
            emulate_root: false,
            seccomp: seccomp::Policy::Default,
            env: Vec::new(),
            cwd: None,
            user: None,
            hostname: None,
            rlimits: Vec::new(),
        };
        Self {
            works,
            policy,
            seccomp: Seccomp::Default,
            pool: 0,
        }
    }

    /// Sets the limits of each execution. Default: [`Limits::default`].
    pub fn limits(mut self, limits: Limits) -> Self {
        self.policy.limits = limits;
        self
    }

    /// Refuses to run where `limit` would be held by anything else than `requirement`.
    ///
    /// Where the caller's cgroup is not delegated, the first execution that insists on a cgroup has systemd's user manager
    /// make one for all that the engine runs from then on, which takes some 12 ms.
    pub fn require(mut self, limit: LimitName, requirement: Requirement) -> Self {
        self.policy.require.insert(limit, requirement);
        self
    }

    /// Shows the program a file or directory of the host, or a file system in memory.
    pub fn mount(mut self, mount: Mount) -> Self {
        self.policy.mounts.push(mount);
        self
    }

    /// Sets the network that the program sees. Default: none but a loopback interface of its own.
    pub fn network(mut self, network: Network) -> Self {
        self.policy.network = network;
        self
    }

    /// Makes the root file system read-only, except `/tmp` and mounts.
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.policy.read_only = read_only;
        self
    }

    /// Keeps what the program changes in the root file system, in `directory`, an absolute path: what a layer is made of.
    /// Default: changes are written to a scratch space in memory and lost.
    ///
    /// The directory must exist, belong to the caller, and be on a local file system with extended attributes. It takes
    /// one execution at a time and is best empty; its mode is that of `/` inside. Afterwards it holds what changed and
    /// nothing else, in the format in which the store keeps layers: that of an overlayfs upper directory with `userxattr`,
    /// where a character device 0:0 is a deletion and the attribute `user.overlay.opaque` marks a directory that took the
    /// place of another (other `user.overlay.` attributes are the kernel's notes and mean nothing). The program may have
    /// left directories without permissions in it. A run that changes nothing leaves it empty.
    ///
    /// Nothing holds [`Limits::scratch_bytes`] there: the result says `none`. During the run a directory
    /// `.sbxrt-work-NAME` stands beside it; if this process and its launcher are killed, that one is left.
    pub fn upper(mut self, directory: impl Into<PathBuf>) -> Self {
        self.policy.upper = Some(directory.into());
        self
    }

    /// Lets programs that insist on root's powers believe that they have them, as package managers do. Default: off.
    ///
    /// `chown`, `setuid`, `setgroups` and their kin, and the making of devices, report success and do nothing; root inside
    /// may read and write its own files whatever their modes say, and `chroot`. apt is told by `APT_CONFIG` not to change
    /// its user, unless that variable is set. The system call filter is the default one otherwise, and outside the
    /// program is the caller as ever. [`Output::root_emulated`](crate::Output::root_emulated) tells of it.
    pub fn emulate_root(mut self, emulate: bool) -> Self {
        self.policy.emulate_root = emulate;
        self
    }

    /// Sets the system calls that the program may make. Default: sbxrt's own policy.
    ///
    /// A call that the profile ends the program for is told by
    /// [`Termination::Seccomp`](crate::Termination::Seccomp), and which kind of policy it was by
    /// [`Output::isolation`](crate::Output::isolation).
    pub fn seccomp(mut self, seccomp: Seccomp) -> Self {
        self.seccomp = seccomp;
        self
    }

    /// Sets an environment variable, over the image's.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.policy.env.push((name.into(), value.into()));
        self
    }

    /// Sets the working directory. Default: the image's `WORKDIR`, else `/`. It is made where it is missing.
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.policy.cwd = Some(directory.into());
        self
    }

    /// Sets the user: `user`, `uid`, `user:group` or `uid:gid`. Default: the image's `USER`, else root. Outside it is
    /// always the caller.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.policy.user = Some(user.into());
        self
    }

    /// Sets the host name. Default: the execution's name.
    pub fn hostname(mut self, hostname: impl Into<String>) -> Self {
        self.policy.hostname = Some(hostname.into());
        self
    }

    /// Sets a resource limit of the kernel (`setrlimit`).
    pub fn rlimit(mut self, rlimit: Rlimit) -> Self {
        self.policy.rlimits.push(rlimit);
        self
    }

    /// Keeps `size` containers ready. Default: none.
    ///
    /// They are made ahead, in the background, from the first execution or [`Sandbox::warm_up`] on. An execution takes the
    /// one that waits longest, tells it the program, and another one is made; where there is none, it starts one of its own.
    /// What stands ready is isolated and limited as any other container, and is used once: nothing is left in it that an
    /// execution could find of one before. It is given up after ten minutes, and when the sandbox is dropped.
    ///
    /// Each takes about 0.5 MiB of memory, one of the host's network namespaces, and what volumes it sees was settled when it
    /// was made. Executions with a [name](Command::name), a [terminal](Command::terminal) or a [working
    /// directory](Command::current_dir) of their own start containers of their own.
    pub fn pool(mut self, size: usize) -> Self {
        self.pool = size;
        self
    }

    /// Checks the policy and makes the sandbox. Nothing is started yet.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] names the field that cannot be carried out and why, [`Error::Seccomp`] the rule of the profile.
    pub fn build(mut self) -> Result<Sandbox> {
        let Policy {
            limits,
            env,
            cwd,
            hostname,
            ..
        } = &self.policy;
        if limits.memory.is_some_and(|bytes| bytes < 1 << 20) {
            return Err(Error::invalid("memory limit", "must be at least 1 MiB"));
        }
        if limits
            .cpus
            .is_some_and(|cpus| !(0.01..=4096.0).contains(&cpus))
        {
            return Err(Error::invalid(
                "limit on processors",
                "must be from 0.01 to 4096",
            ));
        }
        if limits.pids == Some(0) {
            return Err(Error::invalid("limit on processes", "must be at least 1"));
        }
        if limits.scratch_bytes.is_some_and(|bytes| bytes < 64 << 10) {
            return Err(Error::invalid("scratch size", "must be at least 64 KiB"));
        }
        if matches!(limits.scratch_inodes, Some(1..64)) {
            return Err(Error::invalid("limit on files", "must be at least 64"));
        }
        if limits.cpu_time.is_some_and(|time| time.is_zero()) {
            return Err(Error::invalid(
                "limit on CPU time",
                "must be more than zero",
            ));
        }
        if limits.wall_time.is_some_and(|time| time.is_zero()) {
            return Err(Error::invalid("time limit", "must be more than zero"));
        }
        // The runtime does not see the output; it is always held by whoever reads it.
        if let Some(requirement) = self
            .policy
            .require
            .get(&LimitName::Output)
            .filter(|it| !it.is_met_by(Mechanism::Relay))
        {
            return Err(Error::invalid(
                "requirement on output",
                format!("{requirement} cannot hold it, only relay can"),
            ));
        }
        for (name, value) in env {
            check_environment(name, value)?;
        }
        if cwd.as_ref().is_some_and(|cwd| !cwd.is_absolute()) {
            return Err(Error::invalid(
                "working directory",
                "must be an absolute path",
            ));
        }
        if let Some(hostname) = hostname {
            check_hostname(hostname)?;
        }
        if let Some(upper) = &self.policy.upper {
            if !upper.is_absolute() || upper.file_name().is_none() {
                return Err(Error::invalid(
                    "upper directory",
                    "must be an absolute path that ends with a name",
                ));
            }
            if self.policy.read_only {
                return Err(Error::invalid(
                    "upper directory",
                    "is of no use with a read-only root file system",
                ));
            }
            if self.policy.root() == Root::Host {
                return Err(Error::invalid(
                    "upper directory",
                    "needs an image that is made of layers; host: is not",
                ));
            }
        }
        let emulate_root = self.policy.emulate_root;
        self.policy.seccomp = match &self.seccomp {
            Seccomp::Default => seccomp::Policy::Default,
            Seccomp::Profile(profile) => seccomp::Policy::custom(profile, emulate_root)?,
            Seccomp::Unconfined if emulate_root => {
                return Err(Error::invalid(
                    "seccomp policy",
                    "is what emulates root, so there must be one",
                ));
            }
            Seccomp::Unconfined => seccomp::Policy::Unconfined,
        };
        Ok(Sandbox {
            works: self.works,
            policy: Arc::new(self.policy),
            pool: (self.pool > 0).then(|| Arc::new(Pool::new(self.pool))),
        })
    }
}

pub(crate) fn check_environment(name: &str, value: &str) -> Result<()> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(Error::invalid(
            format!("environment variable name {name:?}"),
            "must not be empty or contain '='",
        ));
    }
    if value.contains('\0') {
        return Err(Error::invalid(
            format!("environment variable {name}"),
            "contains a NUL byte",
        ));
    }
    let length = name.len() + 1 + value.len();
    if length > ENVIRONMENT_ENTRY_LIMIT {
        return Err(Error::invalid(
            format!("environment variable {name}"),
            format!(
                "is {length} bytes long, and {ENVIRONMENT_ENTRY_LIMIT} is the limit; pass a file with a mount instead"
            ),
        ));
    }
    Ok(())
}

fn check_hostname(hostname: &str) -> Result<()> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if hostname.is_empty() || hostname.len() > HOSTNAME_LIMIT || !hostname.bytes().all(valid) {
        return Err(Error::invalid(
            "host name",
            "must be 1 to 64 letters, digits, '-', '.' and '_'",
        ));
    }
    Ok(())
}

/// An image with a policy, ready for any number of executions, one after the other or at once.
#[derive(Debug, Clone)]
pub struct Sandbox {
    pub(crate) works: Arc<Works>,
    pub(crate) policy: Arc<Policy>,
    pub(crate) pool: Option<Arc<Pool>>,
}

impl Sandbox {
    /// Begins to make the containers that the [pool](SandboxBuilder::pool) is to hold, where there is one. Does not wait for
    /// them.
    ///
    /// # Errors
    ///
    /// Fails where the policy cannot be carried out at all or this host cannot run sandboxes.
    pub fn warm_up(&self) -> Result<()> {
        let Some(pool) = &self.pool else {
            return Ok(());
        };
        let template = Command::new(self.clone(), Vec::new());
        pool.fill(&self.works.launchers, || template.request(None))
    }

    /// Begins an execution of `program`, which is looked for in the container's `PATH` unless it contains a `/`. The
    /// image's `ENTRYPOINT` and `CMD` have no say in it.
    pub fn command(&self, program: impl Into<String>) -> Command {
        Command::new(self.clone(), vec![program.into()])
    }

    /// Begins an execution as the image intends it: its `ENTRYPOINT` followed by `arguments`, or by its `CMD` where
    /// there are no arguments.
    ///
    /// # Errors
    ///
    /// Fails where this leaves nothing to execute.
    pub fn default_command<S: Into<String>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Command> {
        let config = self.policy.image.config.config().as_ref();
        let mut words = config
            .and_then(|config| config.entrypoint().clone())
            .unwrap_or_default();
        let before = words.len();
        words.extend(arguments.into_iter().map(Into::into));
        if words.len() == before {
            words.extend(
                config
                    .and_then(|config| config.cmd().clone())
                    .unwrap_or_default(),
            );
        }
        if words.is_empty() {
            return Err(Error::invalid(
                "command",
                "there is none: the image has no ENTRYPOINT and no CMD",
            ));
        }
        if words[0].is_empty() {
            return Err(Error::invalid("command", "is an empty word"));
        }
        Ok(Command::new(self.clone(), words))
    }

    /// The image.
    pub fn image(&self) -> &Image {
        &self.policy.image
    }
}

impl Policy {
    /// The image's files, in the runtime's terms.
    pub(crate) fn root(&self) -> Root {
        match &self.image.rootfs {
            Rootfs::Layers(layers) => Root::Layers(layers.clone()),
            Rootfs::Directory(directory) => Root::Layers(vec![directory.clone()]),
            Rootfs::Host => Root::Host,
        }
    }
}
