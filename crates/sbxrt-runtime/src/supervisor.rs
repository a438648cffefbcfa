//! The caller's side: creates the launcher process and talks to it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::cgroup::{self, NoScope, Subtree};
use crate::channel::{self, Event, Order};
use crate::error::{Error, Failure, Result};
use crate::launcher::{CONTROL, Setup, Submission};
use crate::report::Report;
use crate::request::{Assignment, Mechanism, Request, Requirement};
use crate::sys::{self, StringArray};

/// How a re-executed copy of this program recognises that it is to be the launcher.
const ARGUMENT: &str = "sbxrt-launcher";

/// Becomes the launcher where this process was started as one, and returns otherwise.
///
/// Call it first in `main`, before anything reads the arguments and before any thread exists.
pub fn init() {
    INITIALIZED.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut arguments = std::env::args_os();
    if arguments.next().is_some_and(|name| name == ARGUMENT) && arguments.next().is_none() {
        // Nothing may unwind into code of the embedding program.
        std::panic::set_hook(Box::new(|_| std::process::abort()));
        crate::launcher::run();
    }
}

static INITIALIZED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// A launcher process: takes requests until it is dropped. Dropping it ends whatever it still runs.
#[derive(Debug)]
pub struct Launcher {
    control: OwnedFd,
    pid: libc::pid_t,
    /// Where it makes cgroups.
    subtree: Mutex<Option<Subtree>>,
}

impl Launcher {
    /// Creates the launcher: a copy of this program in its own user, mount and pid namespaces. It gets itself ready while
    /// the caller goes on; a step of that which fails is told to every [`Run`].
    ///
    /// # Errors
    ///
    /// [`Error::NotInitialized`] where [`init`] was not called; [`Error::Launcher`] where the host does not allow user
    /// namespaces or lacks something that the launcher needs, naming it.
    pub fn spawn() -> Result<Self> {
        if !INITIALIZED.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(Error::NotInitialized);
        }
        let failed = |step: &str| {
            let step = step.to_owned();
            move |source: io::Error| Error::Launcher { step, source }
        };
        let subtree = Subtree::find();
        let (control, theirs) = channel::pair().map_err(failed("socketpair"))?;
        let setup = Setup {
            caller_is_root: nix::unistd::geteuid().is_root(),
            subtree: subtree.as_ref().map(Subtree::shape),
        };
        let pid = Birth::prepare(&theirs)?.spawn()?;
        drop(theirs);
        let mut launcher = Self {
            control,
            pid,
            subtree: Mutex::new(subtree),
        };
        let subtree = launcher.subtree.get_mut();
        let subtree = subtree.unwrap_or_else(PoisonError::into_inner).as_ref();
        let descriptors = subtree.map(Subtree::descriptors).unwrap_or_default();
        channel::send(launcher.control.as_fd(), &setup, &descriptors).map_err(Error::Channel)?;
        Ok(launcher)
    }

    /// Starts an execution. `streams` become the program's standard input, output and error, except where the request
    /// asks for a terminal. The caller closes its copies afterwards, or it will wait for the end of the output for ever.
    ///
    /// The first request that insists on a cgroup where none can be made has systemd make a scope around the launcher,
    /// which takes some 12 ms, or up to 2 s where systemd hangs; all executions from then on have cgroups in it
    /// ([`Mechanism::Systemd`]). A job of SLURM's leaves its own cgroup only for [`Requirement::Exactly`] that.
    ///
    /// # Errors
    ///
    /// Fails where the launcher is gone, and where an output's copy could not be made (it exists, or its directory does not).
    /// What else is wrong with the request is told by the [`Run`].
    pub fn run(&self, request: &Request, streams: Option<&[OwnedFd; 3]>) -> Result<Run> {
        let streams: Vec<BorrowedFd<'_>> = streams.into_iter().flatten().map(AsFd::as_fd).collect();
        self.request(request, &streams, false)
    }

    /// Makes the container of an execution whose program is not known yet: of `request`'s [`Process`](crate::Process), the
    /// arguments and the environment count for nothing, and its outputs neither. Everything else is settled now, and limits
    /// on time begin with [`Prepared::start`]. Until then what waits in it is sbxrt's own process alone.
    ///
    /// # Errors
    ///
    /// As for [`run`](Self::run).
    pub fn prepare(&self, request: &Request) -> Result<Prepared> {
        if request.process.terminal.is_some() {
            let reason = "cannot be prepared for a program that is not known yet";
            return Err(Failure::reason("hand the request over", "terminal", reason).into());
        }
        let run = self.request(request, &[], true)?;
        Ok(Prepared { run })
    }

    fn request(
        &self,
        request: &Request,
        streams: &[BorrowedFd<'_>],
        is_prepared: bool,
    ) -> Result<Run> {
        let destinations = request.outputs.open_destinations()?;
        let document = channel::enclose(request)
            .map_err(|error| Failure::new("hand the request over", "memfd_create", error))?;
        let (ours, theirs) = channel::pair().map_err(Error::Channel)?;
        let mut descriptors = vec![document.as_fd(), theirs.as_fd()];
        descriptors.extend(destinations.iter().map(AsFd::as_fd));
        let submission = Submission::Run {
            destinations: destinations.len(),
            no_scope: self.seek_scope(request)?,
            is_prepared,
        };
        descriptors.extend(streams);
        self.submit(&submission, &descriptors)?;
        Ok(Run { socket: ours })
    }

    /// Has it end everything that it runs, and then itself. Unlike dropping it, this does not wait for that.
    pub fn end(&self) {
        // It ends everything when it reads the end of this socket.
        let shutdown = nix::sys::socket::Shutdown::Write;
        let _ = nix::sys::socket::shutdown(self.control.as_raw_fd(), shutdown);
    }

    /// Has systemd make a scope where `request` needs one. Why there is none, where that is worth telling.
    fn seek_scope(&self, request: &Request) -> Result<Option<String>> {
        let mut subtree = self.subtree.lock().unwrap_or_else(PoisonError::into_inner);
        let needs = |requirement: Requirement| {
            request.require.iter().any(|(&limit, &required)| {
                required == requirement && cgroup::is_asked_of_one(limit, &request.limits)
            })
        };
        let insists = needs(Requirement::Exactly(Mechanism::Systemd));
        let wanted = match &*subtree {
            Some(subtree) => insists && subtree.mechanism() != Mechanism::Systemd,
            None => insists || needs(Requirement::Cgroup),
        };
        if !wanted {
            return Ok(None);
        }
        if cgroup::is_slurm_job() && !insists {
            let reason = "a scope of systemd's would leave the job's own cgroup, and is made only for =systemd";
            return Ok(Some(reason.to_owned()));
        }
        match Subtree::from_systemd(self.pid) {
            Ok(scope) => {
                self.submit(&Submission::Subtree(scope.shape()), &scope.descriptors())?;
                *subtree = Some(scope);
                Ok(None)
            }
            Err(error) => {
                tracing::debug!(%error, "no scope");
                Ok((!matches!(error, NoScope::NoManager { .. })).then(|| error.to_string()))
            }
        }
    }

    fn submit(&self, packet: &Submission, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        channel::send(self.control.as_fd(), packet, descriptors).map_err(|source| {
            match source.raw_os_error() {
                Some(libc::EPIPE | libc::ECONNRESET) => Error::LauncherGone,
                _ => Error::Channel(source),
            }
        })
    }
}

/// How long a launcher may take to end everything. It bounds itself; this is for one that is stopped or starved.
const FAREWELL_DEADLINE: Duration = Duration::from_secs(30);
/// How long it may take to be gone when it has ended everything, or all that can be ended.
const EXIT_PATIENCE: Duration = Duration::from_secs(1);

impl Drop for Launcher {
    fn drop(&mut self) {
        // Its own end closes the other side first, and then waits for what the kernel does not let go of, which nobody else
        // should.
        self.end();
        let has_ended = await_readable(self.control.as_fd(), FAREWELL_DEADLINE);
        let gone = sys::pidfd_open(self.pid).is_ok_and(|pidfd| {
            if !has_ended {
                drop(sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL));
            }
            await_readable(pidfd.as_fd(), EXIT_PATIENCE)
        });
        let pid = self.pid;
        if gone {
            let status = sys::wait_for(pid);
            let subtree = self.subtree.get_mut();
            if let (true, Some(subtree)) = (
                status.is_ok_and(|status| libc::WIFSIGNALED(status)),
                subtree.unwrap_or_else(PoisonError::into_inner),
            ) {
                subtree.clear();
            }
        } else {
            // Later, or never: this process's end does as well.
            let waiting = std::thread::Builder::new().name("sbxrt-reaper".to_owned());
            drop(waiting.spawn(move || drop(sys::wait_for(pid))));
        }
    }
}

/// Waits until there is something to read from `fd`, or its end; says whether it was in time.
fn await_readable(fd: BorrowedFd<'_>, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        let left = TimeSpec::from_duration(end.saturating_duration_since(Instant::now()));
        match ppoll(&mut [PollFd::new(fd, PollFlags::POLLIN)], Some(left), None) {
            Err(nix::errno::Errno::EINTR) => {}
            result => return result.is_ok_and(|ready| ready > 0),
        }
    }
}

/// The pid of the process behind `pidfd`, as this process sees it. None where it has ended.
fn pid_of(pidfd: &OwnedFd) -> Option<i32> {
    let info = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let info = std::fs::read_to_string(info).ok()?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    pid.trim().parse().ok().filter(|&pid| pid > 0)
}

/// An execution under way. Dropping it ends the program.
///
/// Its descriptor becomes readable when [`next`](Self::next) has something to say, so it fits into any event loop.
#[derive(Debug)]
pub struct Run {
    socket: OwnedFd,
}

/// A container that waits for its program. Dropping it ends it.
#[derive(Debug)]
pub struct Prepared {
    run: Run,
}

impl Prepared {
    /// Starts the program, at once or as soon as the container is ready. `streams` are as for [`Launcher::run`].
    ///
    /// # Errors
    ///
    /// Fails where the launcher is gone, and where an output's copy could not be made. What else is wrong is told by the
    /// [`Run`].
    pub fn start(self, assignment: &Assignment, streams: &[OwnedFd; 3]) -> Result<Run> {
        let destinations = assignment.outputs.open_destinations()?;
        let document = channel::enclose(assignment)
            .map_err(|error| Failure::new("hand the assignment over", "memfd_create", error))?;
        let descriptors: Vec<BorrowedFd<'_>> = std::iter::once(&document)
            .chain(streams)
            .chain(&destinations)
            .map(AsFd::as_fd)
            .collect();
        let socket = self.run.socket.as_fd();
        channel::send(socket, &Order::Begin, &descriptors).map_err(|source| {
            match source.raw_os_error() {
                Some(libc::EPIPE | libc::ECONNRESET) => Error::LauncherGone,
                _ => Error::Channel(source),
            }
        })?;
        Ok(self.run)
    }

    /// The descriptor of the [`Run`] that this one will be: [`Run::next`] says [`Progress::Ready`] when the container is.
    pub fn run(&self) -> &Run {
        &self.run
    }
}

/// What happens to an execution.
#[derive(Debug)]
pub enum Progress {
    /// Its container stands ready, where it was [prepared](Launcher::prepare).
    Ready,
    /// The program runs. Where a terminal was asked for, this is its master side.
    Started(Option<OwnedFd>),
    /// It is over, and nothing of it is left but what [`Report::leaked`] names.
    Finished(Box<Report>),
}

impl Run {
    /// Waits for the next event, or says `WouldBlock` through [`Error::Channel`] where the descriptor is non-blocking.
    ///
    /// # Errors
    ///
    /// [`Error::Start`] where the program never ran, [`Error::LauncherGone`] where the launcher was killed.
    pub fn next(&self) -> Result<Progress> {
        match channel::receive::<Event>(self.socket.as_fd()).map_err(Error::Channel)? {
            Some((Event::Ready, _)) => Ok(Progress::Ready),
            Some((Event::Started, descriptors)) => {
                Ok(Progress::Started(descriptors.into_iter().next()))
            }
            Some((
                Event::Finished {
                    mut report,
                    has_outputs,
                },
                mut left,
            )) => {
                if has_outputs && !left.is_empty() {
                    report.outputs = channel::disclose(left.remove(0)).map_err(Error::Channel)?;
                }
                report.leaked = left.iter().filter_map(pid_of).collect();
                Ok(Progress::Finished(report))
            }
            Some((Event::Failed(failure), _)) => Err(failure.into()),
            None => Err(Error::LauncherGone),
        }
    }

    /// Sends a signal to the program. One that has ended ignores it.
    ///
    /// # Errors
    ///
    /// Fails where the launcher is gone.
    pub fn signal(&self, signal: i32) -> Result<()> {
        channel::send(self.socket.as_fd(), &Order::Signal(signal), &[]).map_err(Error::Channel)
    }

    /// Ends every process of the execution; [`next`](Self::next) then reports it as cancelled.
    ///
    /// # Errors
    ///
    /// Fails where the launcher is gone.
    pub fn cancel(&self) -> Result<()> {
        channel::send(self.socket.as_fd(), &Order::Cancel, &[]).map_err(Error::Channel)
    }

    /// Ends every process of the execution because it has written more than it may, which only the reader of its output
    /// knows; [`next`](Self::next) then reports it so.
    ///
    /// # Errors
    ///
    /// Fails where the launcher is gone.
    pub fn end_output(&self) -> Result<()> {
        channel::send(self.socket.as_fd(), &Order::EndOutput, &[]).map_err(Error::Channel)
    }

    /// Makes [`next`](Self::next) return instead of waiting.
    ///
    /// # Errors
    ///
    /// Fails where the kernel refuses, which it has no reason to.
    pub fn set_nonblocking(&self) -> Result<()> {
        channel::set_nonblocking(&self.socket).map_err(Error::Channel)
    }
}

impl AsFd for Run {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Run {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Everything that the new process needs between its birth and its first instruction as the launcher. That part runs
/// in this process's memory (see [`sys::vfork_with`]), so it is all made beforehand.
struct Birth {
    executable: CString,
    identity: (u64, u64),
    control: RawFd,
    uid_map: CString,
    gid_map: CString,
    arguments: StringArray,
    environment: StringArray,
    failure: Option<(&'static str, io::Error)>,
}

impl Birth {
    fn prepare(control: &OwnedFd) -> Result<Self> {
        let failed = |step: &'static str| {
            move |source: io::Error| Error::Launcher {
                step: step.to_owned(),
                source,
            }
        };
        let executable =
            std::fs::read_link("/proc/self/exe").map_err(failed("readlink(\"/proc/self/exe\")"))?;
        let running = nix::sys::stat::stat("/proc/self/exe")
            .map_err(|error| failed("stat(\"/proc/self/exe\")")(error.into()))?;
        let text =
            |text: String| CString::new(text).map_err(|error| failed("prepare")(error.into()));
        Ok(Self {
            executable: CString::new(executable.as_os_str().as_bytes())
                .map_err(|error| failed("prepare")(error.into()))?,
            identity: (running.st_dev, running.st_ino),
            control: control.as_raw_fd(),
            uid_map: text(format!("0 {} 1", nix::unistd::geteuid()))?,
            gid_map: text(format!("0 {} 1", nix::unistd::getegid()))?,
            arguments: StringArray::new(&[ARGUMENT])
                .map_err(|error| failed("prepare")(error.into()))?,
            // Nothing of the caller's environment, its secrets above all, is in the launcher's memory.
            environment: StringArray::new::<&str>(&[])
                .map_err(|error| failed("prepare")(error.into()))?,
            failure: None,
        })
    }

    fn spawn(mut self) -> Result<libc::pid_t> {
        let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID;
        let pid = sys::vfork_with(flags, &mut self, |birth| {
            if let Err(failure) = birth.become_launcher() {
                birth.failure = Some(failure);
            }
        })
        .map_err(|source| Error::Launcher {
            step: "clone(CLONE_NEWUSER|CLONE_NEWNS|CLONE_NEWPID)".to_owned(),
            source,
        })?;
        match self.failure {
            None => Ok(pid),
            Some((step, source)) => {
                drop(sys::wait_for(pid));
                Err(Error::Launcher {
                    step: step.to_owned(),
                    source,
                })
            }
        }
    }

    /// Runs in the new process, in this process's memory. Returns only on failure.
    fn become_launcher(&self) -> Result<(), (&'static str, io::Error)> {
        // Until the maps are written this process has no identity; afterwards it is root over its namespaces.
        for (file, contents, step) in [
            (
                c"/proc/self/setgroups",
                c"deny",
                "write \"deny\" to /proc/self/setgroups",
            ),
            (
                c"/proc/self/uid_map",
                self.uid_map.as_c_str(),
                "write /proc/self/uid_map",
            ),
            (
                c"/proc/self/gid_map",
                self.gid_map.as_c_str(),
                "write /proc/self/gid_map",
            ),
        ] {
            sys::write_file(file, contents.to_bytes()).map_err(|error| (step, error))?;
        }
        // The launcher runs from a read-only mount of its own: a program that gets hold of /proc/PID/exe cannot open
        // this executable for writing (CVE-2019-5736).
        let executable = sys::clone_executable(&self.executable, self.identity)
            .map_err(|error| ("open_tree of /proc/self/exe", error))?;
        let control = sys::duplicate_above(self.control, CONTROL + 1)
            .map_err(|error| ("fcntl(F_DUPFD)", error))?;
        let executable = sys::duplicate_above(executable, CONTROL + 1)
            .map_err(|error| ("fcntl(F_DUPFD)", error))?;
        sys::duplicate_number(control, CONTROL).map_err(|error| ("dup2", error))?;
        sys::close_range(CONTROL + 1, true).map_err(|error| ("close_range", error))?;
        sys::reset_session().map_err(|error| ("setsid, sigprocmask", error))?;
        Err((
            "execveat of /proc/self/exe",
            sys::execute_fd(executable, &self.arguments, &self.environment),
        ))
    }
}
