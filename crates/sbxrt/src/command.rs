//! One execution: from a command to its output.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use sbxrt_runtime::{
    Assignment, Evidence, InputFile, Isolation, LimitName, Limits, Mechanism, OutputFile,
    OutputLimits, OutputPath, Outputs, Process, Progress, Report, Request, Run, Termination,
    Timings, Usage, WindowSize,
};
use tokio::io::AsyncWriteExt;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::{Notify, watch};

use crate::admission::Turn;
use crate::capture::{Captured, Drain, Spill};
use crate::error::{Error, Result};
use crate::launchers::Place;
use crate::pool::Ready;
use crate::sandbox::{Sandbox, check_environment};

/// What a program finds on its standard input.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stdin {
    /// Nothing: `/dev/null`.
    #[default]
    Null,
    /// These bytes, then the end.
    Bytes(Vec<u8>),
    /// A pipe that the caller writes to ([`Child::stdin`]).
    Piped,
}

impl From<&str> for Stdin {
    fn from(text: &str) -> Self {
        Self::Bytes(text.into())
    }
}

impl From<&[u8]> for Stdin {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl<const N: usize> From<&[u8; N]> for Stdin {
    fn from(bytes: &[u8; N]) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl From<Vec<u8>> for Stdin {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<String> for Stdin {
    fn from(text: String) -> Self {
        Self::Bytes(text.into())
    }
}

/// What becomes of a program that writes more than its output limit to one of its streams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OutputAction {
    /// It goes on. The first and the last bytes are kept, half of the limit each, and those between are counted.
    #[default]
    Cut,
    /// It is ended, and has ended as [`Termination::Output`], even where it ended by itself a moment before.
    Kill,
}

impl OutputAction {
    /// Adds to `report` what only the reader of the program's output knows: how much of each stream was to be kept, and
    /// whether one of them `is_over` that. [`Command::output`] does so by itself.
    pub fn settle(self, report: &mut Report, limit: Option<u64>, is_over: bool) {
        if limit.is_some() {
            report
                .enforcement
                .insert(LimitName::Output, Mechanism::Relay);
        }
        if !is_over {
            return;
        }
        if !report.limits_hit.contains(&LimitName::Output) {
            report.limits_hit.push(LimitName::Output);
        }
        // Whether it was ended in time is a matter of who was faster, and not what its end is called.
        let ended_by_itself = matches!(
            report.termination,
            Termination::Exited { .. }
                | Termination::Signaled { .. }
                | Termination::Disk
                | Termination::Pids
        );
        if self == Self::Kill && ended_by_itself {
            report.termination = Termination::Output;
        }
        if report.termination == Termination::Output {
            report.evidence.limit = Some(LimitName::Output);
            report.evidence.mechanism = Some(Mechanism::Relay);
        }
    }
}

/// A file that receives a stream.
#[derive(Debug, Clone)]
struct StreamFile {
    path: PathBuf,
    limit: u64,
}

/// One execution in a [`Sandbox`], in the idiom of [`std::process::Command`].
#[derive(Debug, Clone)]
#[must_use = "a command does nothing until `output` or `spawn`"]
pub struct Command {
    sandbox: Sandbox,
    words: Vec<String>,
    name: Option<String>,
    env: Vec<(String, String)>,
    cwd: Option<PathBuf>,
    stdin: Stdin,
    output_limit: Option<u64>,
    output_action: OutputAction,
    /// For standard output and standard error.
    stream_files: [Option<StreamFile>; 2],
    terminal: Option<WindowSize>,
    files: Vec<InputFile>,
    outputs: Outputs,
}

impl Command {
    pub(crate) fn new(sandbox: Sandbox, words: Vec<String>) -> Self {
        Self {
            sandbox,
            words,
            name: None,
            env: Vec::new(),
            cwd: None,
            stdin: Stdin::Null,
            // As much as a caller wants to hold in memory by accident.
            output_limit: Some(10 << 20),
            output_action: OutputAction::Cut,
            stream_files: [None, None],
            terminal: None,
            files: Vec::new(),
            outputs: Outputs::default(),
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.words.push(argument.into());
        self
    }

    /// Adds arguments.
    pub fn args<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.words.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable, over the sandbox's and the image's.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets the working directory, an absolute path inside. It is made where it is missing.
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.cwd = Some(directory.into());
        self
    }

    /// Sets what the program finds on its standard input. Default: nothing.
    pub fn stdin(mut self, stdin: impl Into<Stdin>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Sets how many bytes of each output stream [`output`](Self::output) keeps; `None` keeps everything. Default:
    /// 10 MiB. Where there is more, half of them are the first bytes and half the last; all are read and counted.
    pub fn output_limit(mut self, bytes: Option<u64>) -> Self {
        self.output_limit = bytes;
        self
    }

    /// Puts a file into the sandbox before the program starts, at a path inside: relative to the working directory unless
    /// it is absolute. Directories on the way are made.
    ///
    /// It is written with the program's rights and counts for its limits, so it must be small: 16 MiB for all files
    /// together. Where it cannot be written, nothing is run.
    pub fn file(self, path: impl Into<PathBuf>, contents: impl Into<Vec<u8>>) -> Self {
        self.files([InputFile::new(path, contents)])
    }

    /// The same, for many, and with modes.
    pub fn files(mut self, files: impl IntoIterator<Item = InputFile>) -> Self {
        self.files.extend(files);
        self
    }

    /// Collects a file or directory when the program is over, however it ended: its size, its hash, and what is below it
    /// ([`Output::files`]). `path` is one inside, relative to the working directory unless it is absolute.
    ///
    /// Links are not followed out of what is collected, and devices, FIFOs and sockets not opened. [`OutputLimits`] bound
    /// it; what is beyond them is refused, and the refusal told, file by file. Nothing is collected of a run that is
    /// cancelled.
    pub fn output_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.outputs.paths.push(OutputPath {
            path: path.into(),
            copy_to: None,
        });
        self
    }

    /// The same, and copies it to the host: `copy` is the name that the copy gets, in a directory that exists. Copies belong
    /// to the caller, who can read and write them, and have no set-user-ID bits; holes stay holes.
    ///
    /// Where `copy` leads to is settled by [`spawn`](Self::spawn), which fails where something has that name already.
    pub fn output_copy(mut self, path: impl Into<PathBuf>, copy: impl Into<PathBuf>) -> Self {
        self.outputs.paths.push(OutputPath {
            path: path.into(),
            copy_to: Some(copy.into()),
        });
        self
    }

    /// Sets everything about outputs at once, in the place of what was set before.
    pub fn outputs(mut self, outputs: Outputs) -> Self {
        self.outputs = outputs;
        self
    }

    /// Sets the bounds on what is collected. Default: [`OutputLimits::default`].
    pub fn output_limits(mut self, limits: OutputLimits) -> Self {
        self.outputs.limits = limits;
        self
    }

    /// Lets copies of outputs take the place of what has their names. Files are replaced when the copy is complete, and
    /// directories added to. Default: nothing is ever replaced.
    pub fn overwrite_outputs(mut self, overwrite: bool) -> Self {
        self.outputs.overwrite = overwrite;
        self
    }

    /// Sets what becomes of a program that writes more than that while [`output`](Self::output) collects it. Default: it
    /// goes on.
    pub fn output_action(mut self, action: OutputAction) -> Self {
        self.output_action = action;
        self
    }

    /// Writes all of standard output to the file `path` as well while [`output`](Self::output) collects it, at most
    /// `limit` bytes. The file is created, or emptied where it is a regular file with one name; anything else is an
    /// error. That it could not be written to the end is told by [`Captured::file`].
    pub fn stdout_file(mut self, path: impl Into<PathBuf>, limit: u64) -> Self {
        let path = path.into();
        self.stream_files[0] = Some(StreamFile { path, limit });
        self
    }

    /// As [`stdout_file`](Self::stdout_file), for standard error.
    pub fn stderr_file(mut self, path: impl Into<PathBuf>, limit: u64) -> Self {
        let path = path.into();
        self.stream_files[1] = Some(StreamFile { path, limit });
        self
    }

    /// The program and its arguments.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// Gives the program a pseudo-terminal instead of the three streams; for [`spawn`](Self::spawn).
    pub fn terminal(mut self, size: WindowSize) -> Self {
        self.terminal = Some(size);
        self
    }

    /// Names the execution. Default: 12 random hexadecimal digits.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// What the runtime is asked for, complete. `id` is the name of the container where there is one already.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] names the field that cannot be carried out.
    pub(crate) fn request(&self, id: Option<String>) -> Result<Request> {
        let policy = &self.sandbox.policy;
        let config = policy.image.config.config().as_ref();
        let id = match (id, &self.name) {
            (Some(id), _) => id,
            (None, Some(name)) => check_name(name)?.to_owned(),
            (None, None) => random_name(),
        };
        let hostname = policy.hostname.clone().unwrap_or_else(|| id.clone());
        let mut env: BTreeMap<String, String> = BTreeMap::new();
        env.insert("PATH".to_owned(), sbxrt_runtime::DEFAULT_PATH.to_owned());
        env.insert("HOSTNAME".to_owned(), hostname.clone());
        if self.terminal.is_some() {
            env.insert("TERM".to_owned(), "xterm".to_owned());
        }
        let of_image = config
            .and_then(|config| config.env().clone())
            .unwrap_or_default();
        env.extend(
            of_image
                .iter()
                .filter_map(|entry| entry.split_once('='))
                .map(|(name, value)| (name.into(), value.into())),
        );
        for (name, value) in policy.env.iter().chain(&self.env) {
            env.insert(name.clone(), value.clone());
        }
        for (name, value) in &env {
            check_environment(name, value)?;
        }
        let of_image = config
            .and_then(|config| config.working_dir().clone())
            .filter(|path| !path.is_empty());
        let cwd = self
            .cwd
            .clone()
            .or_else(|| policy.cwd.clone())
            .or_else(|| of_image.map(PathBuf::from))
            .unwrap_or_else(|| "/".into());
        if !cwd.is_absolute() {
            return Err(Error::invalid(
                "working directory",
                format!("{} is not an absolute path", cwd.display()),
            ));
        }
        InputFile::check(&self.files).map_err(|(field, reason)| Error::invalid(field, reason))?;
        let user = policy
            .user
            .clone()
            .or_else(|| config.and_then(|config| config.user().clone()))
            .unwrap_or_default();
        Ok(Request {
            id,
            root: policy.root(),
            read_only: policy.read_only,
            upper: policy.upper.clone(),
            emulate_root: policy.emulate_root,
            seccomp: policy.seccomp.clone(),
            mounts: policy.mounts.clone(),
            process: Process {
                args: self.words.clone(),
                env: env
                    .into_iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect(),
                cwd,
                user,
                terminal: self.terminal,
                rlimits: policy.rlimits.clone(),
            },
            hostname,
            network: policy.network,
            limits: policy.limits.clone(),
            files: self.files.clone(),
            outputs: self.outputs.clone(),
            require: policy.require.clone(),
        })
    }

    /// The OCI runtime spec of this execution, without starting it.
    ///
    /// # Errors
    ///
    /// As for [`spawn`](Self::spawn), as far as the request itself goes.
    pub fn spec(&self) -> Result<serde_json::Value> {
        sbxrt_runtime::print_spec(&self.request(None)?)
            .map_err(|error| Error::invalid("request", error.to_string()))
    }

    /// Starts the program and hands over its streams. It does not wait for its [turn](crate::Concurrency), and does not count
    /// as under way: what there is no room for fails.
    ///
    /// # Errors
    ///
    /// Fails where the request is invalid or this host cannot run sandboxes. What happens from then on is told by
    /// [`Child::wait`].
    pub fn spawn(&self) -> Result<Child> {
        let (streams, ends) = if self.terminal.is_some() {
            (None, Ends::default())
        } else {
            let (streams, ends) = self
                .pipes()
                .map_err(Error::io("make pipes and open /dev/null"))?;
            (Some(streams), ends)
        };
        let (run, place, request) = self.start(streams.as_ref())?;
        run.set_nonblocking()?;
        // A failure of it is not this execution's, and the next one that starts a container of its own is told.
        if let Err(error) = self.sandbox.warm_up() {
            tracing::debug!(%error, "no container was made ahead");
        }
        #[expect(
            deprecated,
            reason = "its replacement is unsafe; a Run keeps its one descriptor for as long as it lives"
        )]
        let run = AsyncFd::new(run).map_err(Error::io("watch the execution"))?;
        Ok(Child {
            run,
            stdin: ends.stdin,
            stdout: ends.stdout,
            stderr: ends.stderr,
            terminal: None,
            id: request.id,
            limits: request.limits,
            place,
            turn: None,
        })
    }

    /// As [`spawn`](Self::spawn), once it is this execution's [turn](crate::Concurrency), which it has until the [`Child`] is
    /// dropped.
    ///
    /// # Errors
    ///
    /// As for [`spawn`](Self::spawn).
    pub async fn spawn_in_turn(&self) -> Result<Child> {
        let turn = self.sandbox.works.admission.turn().await;
        let mut child = self.spawn()?;
        child.turn = Some(turn);
        Ok(child)
    }

    /// Starts the program, in a container of the pool where one stands ready.
    fn start(&self, streams: Option<&[OwnedFd; 3]>) -> Result<(Run, Place, Request)> {
        let is_settled = self.name.is_none() && self.cwd.is_none();
        let pool = self.sandbox.pool.as_ref().filter(|_| is_settled);
        if let (Some(pool), Some(streams)) = (pool, streams)
            && let Some(ready) = pool.take()
        {
            let Ready {
                id,
                prepared,
                place,
                ..
            } = ready;
            let request = self.request(Some(id))?;
            let assignment = Assignment {
                args: request.process.args.clone(),
                env: request.process.env.clone(),
                files: request.files.clone(),
                outputs: request.outputs.clone(),
            };
            match prepared.start(&assignment, streams) {
                // A container of its own, with another launcher.
                Err(sbxrt_runtime::Error::LauncherGone) => place.mark_dead(),
                run => return Ok((run?, place, request)),
            }
        }
        let request = self.request(None)?;
        let launchers = &self.sandbox.works.launchers;
        let (run, place) = launchers.with(|launcher| launcher.run(&request, streams))?;
        Ok((run, place, request))
    }

    /// Makes the program's streams. It never gets a descriptor of the caller's own: through `/proc/self/fd` it could open
    /// the file behind it again, for writing too.
    fn pipes(&self) -> std::io::Result<([OwnedFd; 3], Ends)> {
        let mut ends = Ends::default();
        let stdin = match self.stdin {
            Stdin::Null => OwnedFd::from(std::fs::File::open("/dev/null")?),
            Stdin::Bytes(_) | Stdin::Piped => {
                let (reader, writer) = std::io::pipe()?;
                ends.stdin = Some(Sender::from_owned_fd(writer.into())?);
                reader.into()
            }
        };
        let (reader, stdout) = std::io::pipe()?;
        ends.stdout = Some(Receiver::from_owned_fd(reader.into())?);
        let (reader, stderr) = std::io::pipe()?;
        ends.stderr = Some(Receiver::from_owned_fd(reader.into())?);
        Ok(([stdin, stdout.into(), stderr.into()], ends))
    }

    /// Runs the program to its end and collects its output, once it is its [turn](crate::Concurrency): any number of these
    /// may be waited for at once.
    ///
    /// # Errors
    ///
    /// Fails where the program could not be run at all. However it ends, that is an [`Output`].
    pub async fn output(&self) -> Result<Output> {
        // First of all: until then it has nothing open.
        let turn = self.sandbox.works.admission.turn().await;
        let [stdout_file, stderr_file] = self.stream_files.each_ref().map(|file| {
            let create = |file: &StreamFile| Spill::create(&file.path, file.limit);
            file.as_ref().map(create).transpose()
        });
        let (stdout_file, stderr_file) = (stdout_file?, stderr_file?);
        let mut child = self.spawn()?;
        child.turn = Some(turn);
        let stdin = child.stdin.take();
        let input = match &self.stdin {
            Stdin::Bytes(bytes) => bytes.as_slice(),
            Stdin::Null | Stdin::Piped => &[],
        };
        // Owns the pipe: the program sees the end of its input when all of it is written.
        let feed = async move {
            if let Some(mut stdin) = stdin {
                // A program need not read its input.
                drop(stdin.write_all(input).await);
            }
        };
        let (running, over) = watch::channel(false);
        let excess = Notify::new();
        let stdout = Drain::new(child.stdout.take(), self.output_limit, stdout_file);
        let stderr = Drain::new(child.stderr.take(), self.output_limit, stderr_file);
        let drain = async {
            let (stdout, stderr) = (
                stdout.run(over.clone(), &excess),
                stderr.run(over.clone(), &excess),
            );
            tokio::try_join!(stdout, stderr).map_err(Error::io("read the program's output"))
        };
        tokio::pin!(feed, drain);
        let mut feeding = true;
        let mut drained = None;
        let report = loop {
            tokio::select! {
                report = child.wait() => break report?,
                () = &mut feed, if feeding => feeding = false,
                captured = &mut drain, if drained.is_none() => drained = Some(captured?),
                () = excess.notified(), if self.output_action == OutputAction::Kill => child.end_output()?,
            }
        };
        // What is in the pipes now is all that there will ever be. Where nobody listens any more they have been read.
        running.send_replace(true);
        let (stdout, stderr) = match drained {
            Some(captured) => captured,
            None => drain.await?,
        };
        Ok(Output::new(child.id, report, stdout, stderr, self))
    }
}

/// The caller's ends of a program's streams.
#[derive(Debug, Default)]
struct Ends {
    stdin: Option<Sender>,
    stdout: Option<Receiver>,
    stderr: Option<Receiver>,
}

/// A running program. Dropping it ends the program and everything that it started.
#[derive(Debug)]
pub struct Child {
    run: AsyncFd<Run>,
    /// The writing end of the program's standard input, where it is [`Stdin::Piped`] or [`Stdin::Bytes`].
    pub stdin: Option<Sender>,
    /// The reading end of its standard output; none with a terminal.
    pub stdout: Option<Receiver>,
    /// The reading end of its standard error; none with a terminal.
    pub stderr: Option<Receiver>,
    /// The master side of its terminal, after [`started`](Self::started).
    pub terminal: Option<OwnedFd>,
    id: String,
    limits: Limits,
    place: Place,
    turn: Option<Turn>,
}

impl Child {
    async fn progress(&self) -> Result<Progress> {
        loop {
            let mut guard = self
                .run
                .readable()
                .await
                .map_err(Error::io("watch the execution"))?;
            match guard.get_inner().next() {
                Err(sbxrt_runtime::Error::Channel(error))
                    if error.kind() == std::io::ErrorKind::WouldBlock =>
                {
                    guard.clear_ready();
                }
                Err(error @ sbxrt_runtime::Error::LauncherGone) => {
                    self.place.mark_dead();
                    return Err(error.into());
                }
                other => return Ok(other?),
            }
        }
    }

    /// Waits until the program runs, or until it is over without ever having run: then there is its report.
    ///
    /// # Errors
    ///
    /// Fails where the sandbox could not be set up.
    pub async fn started(&mut self) -> Result<Option<Report>> {
        loop {
            match self.progress().await? {
                Progress::Ready => {}
                Progress::Started(terminal) => {
                    self.terminal = terminal;
                    return Ok(None);
                }
                Progress::Finished(report) => return Ok(Some(*report)),
            }
        }
    }

    /// Waits for the end of the program and of everything that it started. May be cancelled and called again.
    ///
    /// # Errors
    ///
    /// Fails where the sandbox could not be set up.
    pub async fn wait(&mut self) -> Result<Report> {
        loop {
            if let Some(report) = self.started().await? {
                return Ok(report);
            }
        }
    }

    /// Sends a signal to the program.
    ///
    /// # Errors
    ///
    /// Fails where the launcher is gone.
    pub fn signal(&self, signal: i32) -> Result<()> {
        Ok(self.run.get_ref().signal(signal)?)
    }

    /// Ends the program and everything that it started; [`wait`](Self::wait) then reports it as cancelled.
    ///
    /// # Errors
    ///
    /// Fails where the launcher is gone.
    pub fn cancel(&self) -> Result<()> {
        Ok(self.run.get_ref().cancel()?)
    }

    /// Ends the program because it has written more than it may; [`wait`](Self::wait) then reports
    /// [`Termination::Output`]. For a caller who reads the streams.
    ///
    /// # Errors
    ///
    /// Fails where the launcher is gone.
    pub fn end_output(&self) -> Result<()> {
        Ok(self.run.get_ref().end_output()?)
    }

    /// The name of the execution: the one that was chosen, else a random one.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The limits that it runs under.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }
}

/// How an execution ended, and everything that it said.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Output {
    /// The name of the execution.
    pub id: String,
    /// How it ended.
    pub termination: Termination,
    /// What that is inferred from.
    pub evidence: Evidence,
    /// Its standard output.
    pub stdout: Captured,
    /// Its standard error.
    pub stderr: Captured,
    /// What it used.
    pub usage: Usage,
    /// How each limit was held.
    pub enforcement: BTreeMap<LimitName, Mechanism>,
    /// Limits that were reached, whether or not they ended the program.
    pub limits_hit: Vec<LimitName>,
    /// Whether root was emulated ([`SandboxBuilder::emulate_root`](crate::SandboxBuilder::emulate_root)): then a success of
    /// `chown` and the like means nothing.
    pub root_emulated: bool,
    /// What was found where [`Command::output_path`] asked for it: each file, directory and link, and everything that was
    /// refused with the reason.
    pub files: Vec<OutputFile>,
    /// What it was kept in by, besides namespaces, mounts and the lack of capabilities.
    pub isolation: Isolation,
    /// How long each phase took.
    pub timings: Timings,
    /// Pids of processes that nobody can end at present: see [`Report::leaked`].
    pub leaked: Vec<i32>,
}

impl Output {
    fn new(
        id: String,
        mut report: Report,
        stdout: Captured,
        stderr: Captured,
        command: &Command,
    ) -> Self {
        let is_over = stdout.is_truncated() || stderr.is_truncated();
        command
            .output_action
            .settle(&mut report, command.output_limit, is_over);
        let Report {
            termination,
            evidence,
            usage,
            enforcement,
            limits_hit,
            root_emulated,
            outputs,
            isolation,
            timings,
            leaked,
        } = report;
        Self {
            id,
            termination,
            evidence,
            stdout,
            stderr,
            usage,
            enforcement,
            limits_hit,
            root_emulated,
            files: outputs,
            isolation,
            timings,
            leaked,
        }
    }
}

/// Checks a name that the caller chose: Docker's rule, and short enough for a host name and a cgroup.
fn check_name(name: &str) -> Result<&str> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let begins_well = name
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    if begins_well && name.len() <= 64 && name.bytes().all(valid) {
        return Ok(name);
    }
    Err(Error::invalid(
        "name",
        "must be 1 to 64 letters, digits, '_', '.' and '-', and begin with a letter or digit",
    ))
}

fn random_name() -> String {
    // The standard library's hash keys are random; nothing depends on this being unpredictable.
    let random = std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish();
    format!("{:012x}", random & 0xffff_ffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(termination: Termination) -> Report {
        Report {
            termination,
            evidence: Evidence::default(),
            usage: Usage::default(),
            enforcement: BTreeMap::new(),
            limits_hit: Vec::new(),
            root_emulated: false,
            isolation: Isolation::default(),
            outputs: Vec::new(),
            leaked: Vec::new(),
            timings: Timings::default(),
        }
    }

    #[test]
    fn too_much_output_is_an_end_only_where_it_is_to_be_one() {
        use OutputAction::{Cut, Kill};
        let exited = Termination::Exited { code: 0 };
        let table = [
            (Cut, true, exited.clone(), exited.clone()),
            (Kill, false, exited.clone(), exited.clone()),
            // It was faster than we.
            (Kill, true, exited, Termination::Output),
            (
                Kill,
                true,
                Termination::Signaled { signal: 13 },
                Termination::Output,
            ),
            (Kill, true, Termination::Output, Termination::Output),
            // What else ended it did so before.
            (Kill, true, Termination::Timeout, Termination::Timeout),
            (Kill, true, Termination::Cancelled, Termination::Cancelled),
        ];
        for (action, is_over, termination, expected) in table {
            let mut report = report(termination);
            action.settle(&mut report, Some(1), is_over);
            let hit: &[LimitName] = if is_over { &[LimitName::Output] } else { &[] };
            assert_eq!(report.limits_hit, hit);
            assert_eq!(report.enforcement[&LimitName::Output], Mechanism::Relay);
            let blamed = (expected == Termination::Output).then_some(LimitName::Output);
            assert_eq!(
                (report.termination, report.evidence.limit),
                (expected, blamed)
            );
        }
    }
}
