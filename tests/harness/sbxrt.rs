//! The binary under test, run by one user with directories of its own.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, DirBuilder};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::PidfdFlags;
use tempfile::TempDir;

use crate::{Identity, PATIENCE, Report};

/// How much of a stream is kept. What is beyond is read and counted.
const KEPT: usize = 8 << 20;

/// sbxrt, as one user runs it on a fresh account.
#[derive(Debug)]
pub struct Sbxrt {
    identity: Identity,
    binary: PathBuf,
    directory: TempDir,
}

impl Sbxrt {
    /// Makes the account's directories.
    pub fn new(identity: Identity) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("sbxrt-test-")
            .tempdir()
            .unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let sbxrt = Self {
            identity,
            binary: binary(),
            directory,
        };
        let data = sbxrt.home().join("data");
        for path in [
            sbxrt.home(),
            data,
            sbxrt.runtime_directory(),
            sbxrt.temporary_directory(),
        ] {
            DirBuilder::new().mode(0o700).create(&path).unwrap();
            let (uid, gid) = (sbxrt.identity.uid(), sbxrt.identity.gid());
            std::os::unix::fs::chown(&path, Some(uid.as_raw()), Some(gid.as_raw())).unwrap();
        }
        sbxrt
    }

    /// Who runs it.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The binary under test.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// All that it has of the host's file tree.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The user's home, which the store is in.
    pub fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    /// `XDG_RUNTIME_DIR`.
    pub fn runtime_directory(&self) -> PathBuf {
        self.directory.path().join("runtime")
    }

    /// `TMPDIR`.
    pub fn temporary_directory(&self) -> PathBuf {
        self.directory.path().join("tmp")
    }

    /// A directory of the user's for the test's own files, which goes with everything else.
    pub fn scratch(&self, name: &str) -> PathBuf {
        let path = self.home().join(name);
        fs::create_dir(&path).unwrap();
        let (uid, gid) = (self.identity.uid(), self.identity.gid());
        std::os::unix::fs::chown(&path, Some(uid.as_raw()), Some(gid.as_raw())).unwrap();
        path
    }

    /// Everything in the stores' `tmp`: what a pull has not finished or not removed.
    pub fn unfinished(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(&self.home(), &mut |path| {
            let parent = path
                .parent()
                .filter(|parent| parent.file_name() == Some(OsStr::new("tmp")));
            // A layer of an image may have a /tmp as well; a store's is beside its layers.
            if parent.is_some_and(|tmp| tmp.with_file_name("layers").exists()) {
                found.push(path.to_owned());
            }
        });
        found
    }

    /// Runs a tool of others as the user whom the test is about; its standard output.
    pub fn tool(&self, words: &[&str]) -> String {
        let output = self
            .identity()
            .command(words)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", self.home())
            .env("XDG_RUNTIME_DIR", self.runtime_directory())
            .env("TMPDIR", self.temporary_directory())
            .current_dir(self.home())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// `sbxrt ARGUMENTS…`
    pub fn command(
        &self,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Invocation<'_> {
        Invocation {
            sbxrt: self,
            prefix: Vec::new(),
            caller: Vec::new(),
            arguments: arguments
                .into_iter()
                .map(|argument| argument.as_ref().to_owned())
                .collect(),
            environment: Vec::new(),
            stdin: None,
            stdout: Stdout::Pipe,
            deadline: PATIENCE,
        }
    }

    /// `sbxrt run ARGUMENTS…`
    pub fn run(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Invocation<'_> {
        let mut invocation = self.command(arguments);
        invocation.arguments.insert(0, "run".into());
        invocation
    }

    /// `sbxrt run --json ARGUMENTS…`, and its report.
    pub fn report(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Report {
        let mut invocation = self.run(arguments);
        invocation.arguments.insert(1, "--json".into());
        let output = invocation.output();
        assert!(
            !output.stdout.is_empty(),
            "--json printed no document: {output}"
        );
        output.report()
    }
}

/// What becomes of sbxrt's standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdout {
    /// The test reads it.
    Pipe,
    /// A pipe whose reader has gone.
    BrokenPipe,
    /// `/dev/full`, which takes nothing.
    Full,
}

/// One call of sbxrt, in the making.
#[derive(Debug)]
pub struct Invocation<'a> {
    sbxrt: &'a Sbxrt,
    prefix: Vec<OsString>,
    caller: Vec<OsString>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    stdin: Option<Vec<u8>>,
    stdout: Stdout,
    deadline: Duration,
}

impl Invocation<'_> {
    /// Puts a program before it that ends by executing its arguments, like env(1). Root's, where root runs the tests:
    /// the identity is taken on behind it.
    #[must_use]
    pub fn behind(mut self, prefix: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.prefix = prefix
            .into_iter()
            .map(|word| word.as_ref().to_owned())
            .collect();
        self
    }

    /// Lets the identity run `caller` with the words of the call behind it, instead of the call itself.
    #[must_use]
    pub fn called_by(mut self, caller: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.caller = caller
            .into_iter()
            .map(|word| word.as_ref().to_owned())
            .collect();
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// What it reads; by default there is nothing to read.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Where its output goes.
    #[must_use]
    pub fn stdout(mut self, stdout: Stdout) -> Self {
        self.stdout = stdout;
        self
    }

    /// How long it may take before the test fails; by default a minute.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Starts it. Its process id is sbxrt's own.
    pub fn spawn(&self) -> Child {
        let mut words = self.caller.clone();
        words.push(self.sbxrt.binary.clone().into_os_string());
        words.extend(self.arguments.iter().cloned());
        let mut command = self.sbxrt.identity.command(&words);
        if !self.prefix.is_empty() {
            let mut outer = std::process::Command::new(&self.prefix[0]);
            outer
                .args(&self.prefix[1..])
                .arg(command.get_program())
                .args(command.get_args());
            command = outer;
        }
        let home = self.sbxrt.home();
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("LANG", "C.UTF-8")
            .env("USER", self.sbxrt.identity.name())
            .env("LOGNAME", self.sbxrt.identity.name())
            .env("HOME", &home)
            .env("XDG_DATA_HOME", home.join("data"))
            .env("XDG_RUNTIME_DIR", self.sbxrt.runtime_directory())
            .env("TMPDIR", self.sbxrt.temporary_directory())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&home)
            .stdin(if self.stdin.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(match self.stdout {
                Stdout::Pipe => Stdio::piped(),
                Stdout::BrokenPipe => Stdio::from(OwnedFd::from(std::io::pipe().unwrap().1)),
                Stdout::Full => Stdio::from(
                    fs::OpenOptions::new()
                        .write(true)
                        .open("/dev/full")
                        .unwrap(),
                ),
            })
            .stderr(Stdio::piped());
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        crate::host::started(child.id());
        child
    }

    /// Runs it to its end.
    ///
    /// # Panics
    ///
    /// Where it, or whoever holds its output open, outlives the deadline.
    pub fn output(&self) -> Output {
        let start = Instant::now();
        let mut child = self.spawn();
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let stdin = child.stdin.take().zip(self.stdin.clone());
        let writer = thread::spawn(move || {
            if let Some((mut pipe, bytes)) = stdin {
                // The program need not read it all.
                let _ignored = pipe.write_all(&bytes);
            }
        });
        let (sender, receiver) = std::sync::mpsc::channel();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        for (index, stream) in [stdout.map(OwnedFd::from), stderr.map(OwnedFd::from)]
            .into_iter()
            .enumerate()
        {
            let sender = sender.clone();
            thread::spawn(move || {
                let captured = stream.map(capture).unwrap_or_default();
                // The test may have failed in the meantime.
                let _ignored = sender.send((index, captured));
            });
        }
        let exited = await_exit(&pidfd, self.deadline);
        if !exited {
            // So that the next test does not find it.
            child.kill().unwrap();
        }
        let status = child.wait().unwrap();
        let elapsed = start.elapsed();
        let mut streams = [Captured::default(), Captured::default()];
        for _ in 0..2 {
            let (index, captured) = receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| {
                panic!("a minute after its end, {status}, somebody still holds the output of sbxrt {:?}", self.arguments)
            });
            streams[index] = captured;
        }
        writer.join().unwrap();
        let [stdout, stderr] = streams;
        let output = Output {
            status,
            stdout: stdout.bytes,
            stdout_total: stdout.total,
            stderr: String::from_utf8_lossy(&stderr.bytes).into_owned(),
            elapsed,
        };
        assert!(
            exited,
            "sbxrt {:?} did not end within {:?}: {output}",
            self.arguments, self.deadline
        );
        output
    }
}

fn await_exit(pidfd: &OwnedFd, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = rustix::event::Timespec::try_from(left).unwrap();
        match rustix::event::poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}

#[derive(Default)]
struct Captured {
    bytes: Vec<u8>,
    total: u64,
}

fn capture(stream: OwnedFd) -> Captured {
    let mut stream = fs::File::from(stream);
    let mut buffer = vec![0; 64 << 10];
    let mut captured = Captured::default();
    loop {
        let length = stream.read(&mut buffer).unwrap();
        if length == 0 {
            return captured;
        }
        let room = KEPT - captured.bytes.len();
        captured
            .bytes
            .extend_from_slice(&buffer[..length.min(room)]);
        captured.total += length as u64;
    }
}

/// What one call of sbxrt did.
#[derive(Debug, Clone)]
pub struct Output {
    /// How sbxrt itself ended.
    pub status: ExitStatus,
    /// The first 8 MiB of its standard output.
    pub stdout: Vec<u8>,
    /// How many bytes its standard output was.
    pub stdout_total: u64,
    /// Its standard error.
    pub stderr: String,
    /// How long it took, start to end.
    pub elapsed: Duration,
}

impl Output {
    /// The exit status; 1000 + the signal where one ended sbxrt itself, which no test expects.
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| 1000 + self.status.signal().unwrap_or(0))
    }

    /// Standard output as text.
    ///
    /// # Panics
    ///
    /// Where it is not UTF-8.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout)
            .unwrap_or_else(|error| panic!("stdout is not text: {error}: {self}"))
    }

    /// Standard output as text, after making sure that the program ended well.
    ///
    /// # Panics
    ///
    /// Where sbxrt's exit status is not 0.
    pub fn success(&self) -> &str {
        assert_eq!(self.code(), 0, "{self}");
        self.text()
    }

    /// The report of `--json`.
    pub fn report(&self) -> Report {
        Report::parse(&self.stdout)
    }

    /// Makes sure that sbxrt failed by itself (exit status 125) and said all of these words.
    ///
    /// # Panics
    ///
    /// Where it did not, or where it printed anything on standard output.
    pub fn assert_refused(&self, words: &[&str]) {
        assert_eq!(self.code(), 125, "{self}");
        assert!(self.stdout.is_empty(), "stdout is for data: {self}");
        assert!(self.stderr.starts_with("error: "), "{self}");
        let stderr = self.stderr.to_lowercase();
        for word in words {
            assert!(
                stderr.contains(&word.to_lowercase()),
                "{word:?} is not in: {self}"
            );
        }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start: String = String::from_utf8_lossy(&self.stdout)
            .chars()
            .take(2000)
            .collect();
        write!(
            formatter,
            "{} after {:?}\n--- stdout, {} bytes\n{start}\n--- stderr\n{}",
            self.status, self.elapsed, self.stdout_total, self.stderr
        )
    }
}

/// The binary under test.
fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("SBXRT_BIN") {
        return path.into();
    }
    // TARGET/PROFILE/deps/TEST → TARGET/PROFILE/sbxrt
    let test = std::env::current_exe().unwrap();
    let binary = test.parent().and_then(Path::parent).unwrap().join("sbxrt");
    assert!(
        binary.exists(),
        "{} does not exist; hint: cargo build",
        binary.display()
    );
    binary
}

/// Calls back with every path below a directory. What disappears meanwhile is passed over.
pub(crate) fn walk(directory: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        visit(&path);
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, visit);
        }
    }
}
