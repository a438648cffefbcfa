//! Inside the container: its first process, which starts the program, reaps what it leaves and reports how it ended.
//!
//! The program is not the first process of its pid namespace. There, a signal without a handler would be ignored,
//! `kill -9 $$` included, and nobody would reap orphans. The first process is sbxrt's own: it holds no capability, is
//! not dumpable (so the program can neither trace it nor open its descriptors or its executable), and its end is the
//! end of every process of the container.
//!
//! The program itself is born in the execution's cgroup and enters one more user namespace, in which its only id is
//! the user that was asked for. Mounts, network and host name belong to the outer one: whatever capability a kernel
//! bug may give the program counts for nothing there.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;

use crate::cgroup::Entrance;
use crate::channel::{self, InitEvent, Order};
use crate::error::{Failure, shortened};
use crate::files::{self, InputFile};
use crate::landlock::Rules;
use crate::request::{
    Assignment, LimitName, Limits, Mechanism, Network, Process, Rlimit, RlimitResource,
};
use crate::seccomp::{self, OpenFiles, Warden};
use crate::space::Spaces;
use crate::sys;
use crate::user::{self, User};

const STEP: &str = "start the program";

/// What the first process needs to know. It crosses two forks, so it holds plain values and descriptor numbers that
/// stay open until the first process closes them.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) process: Process,
    pub(crate) files: Vec<InputFile>,
    /// Whether the program's words are told later.
    pub(crate) is_prepared: bool,
    pub(crate) network: Network,
    pub(crate) limits: Limits,
    /// Where else the program finds file systems in memory.
    pub(crate) tmpfs: Vec<PathBuf>,
    /// Whether the root file system takes what is written to it in memory.
    pub(crate) scratch_in_memory: bool,
    pub(crate) memory: Mechanism,
    pub(crate) pids: Mechanism,
    pub(crate) cpus: Mechanism,
    pub(crate) cpuset: Mechanism,
    pub(crate) emulate_root: bool,
    pub(crate) seccomp: seccomp::Policy,
    /// What may be written to where the root file system is read-only.
    pub(crate) writable: Option<Vec<PathBuf>>,
    /// Where events go and orders come from.
    pub(crate) launcher: i32,
    /// When the builder was done.
    pub(crate) created: Instant,
}

impl Executor for Guest {
    fn exec(&self, _spec: &Spec) -> Result<(), ExecutorError> {
        let status = match self.run() {
            Ok(()) => 0,
            Err(failure) => {
                // Where that cannot be told either, its end tells that something went wrong.
                drop(self.tell(&InitEvent::Failed(failure), &[]));
                1
            }
        };
        sys::exit_now(status)
    }

    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    fn setup_envs(
        &self,
        _environment: std::collections::HashMap<String, String>,
    ) -> Result<(), libcontainer::workload::ExecutorSetEnvsError> {
        // The environment goes to the program with execve; the first process itself has none.
        Ok(())
    }
}

impl Guest {
    /// Tells the launcher. What it is not told, nobody knows: then there is no going on.
    fn tell(&self, event: &InitEvent, descriptors: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        sys::borrow(self.launcher)
            .and_then(|socket| channel::send(socket, event, descriptors))
            .map_err(|error| Failure::new(STEP, "report to the launcher", error))
    }

    /// Starts the program, waits for its end and reports it.
    fn run(&self) -> Result<(), Failure> {
        let failed = |error| Failure::new(STEP, "close_range", error);
        let launcher = sys::borrow(self.launcher).map_err(failed)?;
        sys::keep_only(&[launcher]).map_err(failed)?;
        if self.network == Network::None {
            sys::loopback_up()
                .map_err(|error| Failure::new(STEP, "bring the loopback interface up", error))?;
        }
        let user = user::resolve(
            &self.process.user,
            &user::read_database(Path::new("/etc/passwd")),
            &user::read_database(Path::new("/etc/group")),
        )?;
        if self.emulate_root {
            configure_apt()?;
        }
        // Without its name it would be libcontainer's.
        let _ = nix::sys::prctl::set_name(c"sbxrt-init");
        mount_queues()?;
        seal()?;

        let mask = SigSet::all();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)
            .map_err(|error| Failure::new(STEP, "block signals", error))?;
        let mut awaited = SigSet::empty();
        awaited.add(Signal::SIGCHLD);
        let signals =
            SignalFd::with_flags(&awaited, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
                .map_err(|error| Failure::new(STEP, "signalfd", error))?;
        let terminal = self
            .process
            .terminal
            .map(|size| Terminal::open(size.rows, size.columns))
            .transpose()?;
        let (outcome_reader, outcome_writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)
            .map_err(|error| Failure::new(STEP, "pipe2", error))?;

        let spaces = Spaces::open(&self.tmpfs);
        if self.memory == Mechanism::Watchdog {
            self.hand_over(&spaces)?;
        }
        let program = Program::prepare(self, &user)?;
        let rules = Rules::prepare(self.writable.as_deref())?;
        let landlock = rules.as_ref().map(|rules| rules.abi);
        let filter = self.seccomp.program(self.emulate_root);
        let (warden, to_warden) =
            channel::pair().map_err(|error| Failure::new(STEP, "socketpair", error))?;
        let entrance = Entrance::receive(launcher)
            .map_err(|error| Failure::new(STEP, "receive the way into the cgroup", error))?;
        let mut started = Instant::now();
        let pid = match sys::fork_into(0, entrance.birthplace())
            .map_err(|error| Failure::new(STEP, "clone3", error))?
        {
            sys::Forked::Child => {
                let reports = Reports {
                    outcome: &outcome_writer,
                    warden: &to_warden,
                };
                program.become_it(self, entrance, terminal.as_ref(), rules, &reports)
            }
            sys::Forked::Parent(pid) => pid,
        };
        drop((entrance, outcome_writer, to_warden, rules));
        let mut warden = filter.map(|filter| Warden::new(filter.clone(), pid, warden));
        sys::drop_capabilities().map_err(|error| Failure::new(STEP, "drop capabilities", error))?;
        let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|error| Failure::new(STEP, "/dev/null", error))?;
        for stream in 0..=2 {
            // The readers of the program's output must see its end when the program's processes have ended.
            sys::duplicate_onto(&null, stream)
                .map_err(|error| Failure::new(STEP, "dup2", error))?;
        }
        await_end(&outcome_reader, warden.as_mut())?;
        if let Some(outcome) = Outcome::read(outcome_reader) {
            return match outcome {
                Outcome::NotExecuted { errno, reason } => {
                    self.tell(&InitEvent::NotExecuted { errno, reason }, &[])
                }
                Outcome::Failed(failure) => Err(failure),
            };
        }
        if self.is_prepared {
            started = Instant::now();
        }
        let start_micros = channel::micros(self.created.elapsed());
        let descriptors: Vec<BorrowedFd<'_>> = terminal
            .iter()
            .map(|terminal| terminal.master.as_fd())
            .collect();
        let started_event = InitEvent::Started {
            start_micros,
            landlock,
        };
        self.tell(&started_event, &descriptors)?;
        drop(descriptors);
        drop(terminal);
        let status = self.wait_for(pid, &signals, warden.as_mut())?;
        let usage = sys::usage_of_children();
        let processes = self.limits.pids.map_or(0, |_| count_processes() + 1);
        self.tell(
            &InitEvent::Exited {
                status,
                wall_micros: channel::micros(started.elapsed()),
                user_micros: channel::micros(sys::duration_of(usage.ru_utime)),
                system_micros: channel::micros(sys::duration_of(usage.ru_stime)),
                // Linux counts ru_maxrss in KiB.
                largest_process: u64::try_from(usage.ru_maxrss).unwrap_or(0) << 10,
                processes,
                full: spaces.full(),
                blocked: warden.and_then(Warden::blocked),
            },
            &[],
        )
    }

    /// Gives the launcher's watchdog what it must see of the inside, opened before the program can get at it: System V
    /// segments, which the file lists for the namespace that it was opened in, and the file systems in memory.
    fn hand_over(&self, spaces: &Spaces) -> Result<(), Failure> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        // A kernel without System V memory has none to count.
        let segments = open("/proc/sysvipc/shm", flags, Mode::empty()).ok();
        let in_memory = spaces
            .directories()
            .filter(|(path, _)| self.scratch_in_memory || *path != Path::new("/"))
            .map(|(_, directory)| directory);
        let event = InitEvent::Objects {
            segments: segments.is_some(),
        };
        let descriptors: Vec<BorrowedFd<'_>> =
            segments.iter().map(AsFd::as_fd).chain(in_memory).collect();
        self.tell(&event, &descriptors)
    }

    /// Reaps children until the program itself has ended; passes on the signals that the caller sends.
    fn wait_for(
        &self,
        program: libc::pid_t,
        signals: &SignalFd,
        mut warden: Option<&mut Warden>,
    ) -> Result<i32, Failure> {
        let launcher =
            sys::borrow(self.launcher).map_err(|error| Failure::new(STEP, "launcher", error))?;
        let mut listening = true;
        loop {
            while let Ok(Some((pid, status))) = sys::reap_any() {
                if pid == program {
                    return Ok(status);
                }
            }
            let asked = warden.as_deref().and_then(Warden::awaited);
            let [_, ordered, asked] =
                wait([Some(signals.as_fd()), listening.then_some(launcher), asked])?;
            while let Ok(Some(_)) = signals.read_signal() {}
            if let (Some(warden), Some(events)) = (&mut warden, asked) {
                warden.attend(events);
            }
            if ordered.is_some() {
                match channel::receive::<Order>(launcher) {
                    Ok(Some((Order::Signal(number), _))) => {
                        if let Ok(signal) = Signal::try_from(number) {
                            // It may have ended in this moment.
                            let _ =
                                nix::sys::signal::kill(nix::unistd::Pid::from_raw(program), signal);
                        }
                    }
                    Ok(Some((Order::Begin | Order::EndOutput | Order::Cancel, _)) | None)
                    | Err(_) => {
                        listening = false;
                    }
                }
            }
        }
    }
}

/// Waits until the program's process has said why it cannot run, or says nothing any more because it runs or has ended.
fn await_end(outcome: &OwnedFd, mut warden: Option<&mut Warden>) -> Result<(), Failure> {
    loop {
        let asked = warden.as_deref().and_then(Warden::awaited);
        let [ended, asked] = wait([Some(outcome.as_fd()), asked])?;
        if let (Some(warden), Some(events)) = (&mut warden, asked) {
            // Even execve may be forbidden.
            warden.attend(events);
        }
        if ended.is_some() {
            return Ok(());
        }
    }
}

/// Waits until one of the descriptors has something to read or has been closed at the other end; says which, and what.
fn wait<const N: usize>(
    awaited: [Option<BorrowedFd<'_>>; N],
) -> Result<[Option<PollFlags>; N], Failure> {
    let mut polled: Vec<PollFd<'_>> = awaited
        .iter()
        .flatten()
        .map(|&fd| PollFd::new(fd, PollFlags::POLLIN))
        .collect();
    match poll(&mut polled, PollTimeout::NONE) {
        Ok(_) => {}
        Err(nix::errno::Errno::EINTR) => return Ok([None; N]),
        Err(error) => return Err(Failure::new(STEP, "poll", error)),
    }
    let mut polled = polled.into_iter();
    Ok(awaited.map(|fd| {
        let events = fd.and_then(|_| polled.next())?.revents()?;
        (!events.is_empty()).then_some(events)
    }))
}

/// Where apt finds what root emulation asks of it: in `/dev`, the one place in which a file of ours is neither the
/// image's nor the program's.
const APT_CONFIG: &str = "/dev/sbxrt/apt.conf";

/// Tells apt, through `APT_CONFIG`, to download as root: it checks whether its change of user has worked.
fn configure_apt() -> Result<(), Failure> {
    let failed = |error| Failure::new(STEP, APT_CONFIG, error);
    std::fs::create_dir("/dev/sbxrt").map_err(failed)?;
    std::fs::write(APT_CONFIG, "APT::Sandbox::User \"root\";\n").map_err(failed)
}

/// What root keeps where it is emulated, all within a user namespace in which only its own id exists: it may read and
/// write its own files whatever their modes say (Fedora's `/` is 0555), and `chroot`.
const EMULATED_ROOT: &[u32] = &[CAP_DAC_OVERRIDE, CAP_SYS_CHROOT];

// linux/capability.h
const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_SYS_CHROOT: u32 = 18;

/// The processes of the container beside this one. What cannot be read counts as none.
fn count_processes() -> u64 {
    let is_process = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let processes = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(is_process);
    processes.filter(|&pid| pid != 1).count() as u64
}

/// Settings of this container's user namespace: one more namespace below it, the program's, and none below that; and a
/// share of what the kernel otherwise counts for the host's user alone, whom one program must not starve.
///
/// The filter refuses new user namespaces as well; most privilege escalations of recent years began with one.
const SETTINGS: &[(&str, &str)] = &[
    ("/proc/sys/user/max_user_namespaces", "1"),
    ("/proc/sys/user/max_inotify_instances", "32"),
    ("/proc/sys/user/max_inotify_watches", "8192"),
];

/// Mounts what belongs to the container's own IPC namespace, where the builder has made a directory for it.
fn mount_queues() -> Result<(), Failure> {
    use nix::mount::MsFlags;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    match nix::mount::mount(
        Some("mqueue"),
        "/dev/mqueue",
        Some("mqueue"),
        flags,
        None::<&str>,
    ) {
        // A kernel without POSIX message queues.
        Ok(()) | Err(nix::errno::Errno::ENODEV) => Ok(()),
        Err(error) => Err(Failure::new(
            STEP,
            "mount(\"mqueue\", \"/dev/mqueue\")",
            error,
        )),
    }
}

/// Writes [`SETTINGS`], then makes `/proc/sys` read-only, which libcontainer would have done too early for that; and
/// every device and masked file: they are the host's own inodes, whose mode root could change.
fn seal() -> Result<(), Failure> {
    for (setting, value) in SETTINGS {
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let written = open(*setting, flags, Mode::empty())
            .and_then(|file| nix::unistd::write(file, value.as_bytes()));
        match written {
            // A kernel without inotify. One without the other setting is not known, and would be a hole.
            Err(nix::errno::Errno::ENOENT) if setting.contains("inotify") => {}
            other => {
                other.map_err(|error| Failure::new(STEP, *setting, error))?;
            }
        }
    }
    let failed = |error| Failure::new(STEP, "make /proc/sys read-only", error);
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let target = open("/proc/sys", flags, Mode::empty()).map_err(|error| failed(error.into()))?;
    let tree = sys::clone_tree(target.as_fd(), c"", true).map_err(failed)?;
    let attributes = libc::MOUNT_ATTR_RDONLY
        | libc::MOUNT_ATTR_NOSUID
        | libc::MOUNT_ATTR_NODEV
        | libc::MOUNT_ATTR_NOEXEC;
    sys::restrict_tree(tree.as_fd(), attributes, true).map_err(failed)?;
    sys::attach_tree(tree.as_fd(), target.as_fd()).map_err(failed)?;
    for device in DEVICES {
        let failed = |error| Failure::new(STEP, *device, error);
        let mounted = open(*device, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        sys::restrict_tree(mounted.as_fd(), libc::MOUNT_ATTR_RDONLY, false).map_err(failed)?;
    }
    for masked in crate::spec::MASKED {
        if let Ok(mounted) = open(*masked, flags, Mode::empty()) {
            // What this kernel does not have is not masked, and no mount.
            drop(sys::restrict_tree(
                mounted.as_fd(),
                libc::MOUNT_ATTR_RDONLY,
                false,
            ));
        }
    }
    Ok(())
}

/// Resource limits that every program gets, unless it is given others.
const FIXED_LIMITS: &[(RlimitResource, u64)] = &[
    // One byte of core dump and not none: the kernel special-cases 1 to abort dumps into a pipe too (systemd-coredump).
    (RlimitResource::Core, 1),
    // Nobody goes before others, whatever the caller may.
    (RlimitResource::Nice, 0),
    (RlimitResource::Rtprio, 0),
    // What the kernel counts for the host's user as well, whom one program must not starve: timers and queued signals,
    // POSIX message queues (room for one of the default size), locked memory.
    (RlimitResource::Sigpending, 1024),
    (RlimitResource::Msgqueue, 128 << 10),
    (RlimitResource::Memlock, 64 << 10),
];

/// The devices that libcontainer binds from the host. Writing to a device works through a read-only mount.
const DEVICES: &[&str] = &[
    "/dev/full",
    "/dev/null",
    "/dev/random",
    "/dev/tty",
    "/dev/urandom",
    "/dev/zero",
];

/// A pseudo-terminal of the container's own devpts.
struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
}

impl Terminal {
    fn open(rows: u16, columns: u16) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::new(STEP, "open a pseudo-terminal", error);
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master =
            open("/dev/pts/ptmx", flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        sys::unlock_terminal(master.as_fd()).map_err(failed)?;
        sys::set_window_size(master.as_fd(), rows, columns).map_err(failed)?;
        let slave = sys::terminal_peer(master.as_fd()).map_err(failed)?;
        Ok(Self { master, slave })
    }
}

/// Why there is no program: what its process writes before it ends. Nothing is written when it runs, because the
/// pipe closes by itself on execve.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
enum Outcome {
    NotExecuted { errno: i32, reason: String },
    Failed(Failure),
}

impl Outcome {
    fn read(pipe: OwnedFd) -> Option<Self> {
        let text = io::read_to_string(std::fs::File::from(pipe)).ok()?;
        serde_json::from_str(&text).ok()
    }

    fn write(&self, pipe: &OwnedFd) {
        if let Ok(text) = serde_json::to_vec(self) {
            let _ = nix::unistd::write(pipe, &text);
        }
    }
}

/// Whom the program's process tells how far it has come, until it is the program.
struct Reports<'a> {
    outcome: &'a OwnedFd,
    warden: &'a OwnedFd,
}

/// Everything that execve needs.
struct Call {
    candidates: Vec<CString>,
    arguments: sys::StringArray,
    environment: sys::StringArray,
    files: Vec<InputFile>,
}

impl Call {
    fn prepare(
        guest: &Guest,
        home: &str,
        args: &[String],
        env: &[String],
        files: Vec<InputFile>,
    ) -> Result<Self, Failure> {
        let invalid = |what: &str| Failure::reason(STEP, what, "contains a NUL byte");
        let name = args
            .first()
            .ok_or_else(|| Failure::reason(STEP, "command", "is empty"))?;
        let mut environment = env.to_vec();
        if !environment.iter().any(|entry| entry.starts_with("HOME=")) {
            environment.push(format!("HOME={home}"));
        }
        if guest.emulate_root
            && !environment
                .iter()
                .any(|entry| entry.starts_with("APT_CONFIG="))
        {
            environment.push(format!("APT_CONFIG={APT_CONFIG}"));
        }
        let path = environment
            .iter()
            .find_map(|entry| entry.strip_prefix("PATH="))
            .unwrap_or(crate::DEFAULT_PATH);
        let candidates = if name.contains('/') {
            vec![name.clone()]
        } else {
            path.split(':')
                .map(|directory| {
                    format!(
                        "{}/{name}",
                        if directory.is_empty() { "." } else { directory }
                    )
                })
                .collect()
        };
        Ok(Self {
            candidates: candidates
                .into_iter()
                .map(CString::new)
                .collect::<Result<_, _>>()
                .map_err(|_nul| invalid("command"))?,
            arguments: sys::StringArray::new(args).map_err(|_nul| invalid("argument"))?,
            environment: sys::StringArray::new(&environment)
                .map_err(|_nul| invalid("environment"))?,
            files,
        })
    }

    /// Waits until it is known what the program is, and takes its streams. Only for the process that becomes it: nobody else
    /// listens to the launcher meanwhile.
    fn receive(guest: &Guest, home: &str) -> Result<Self, Failure> {
        let failed = |error| Failure::new(STEP, "take the assignment", error);
        guest.tell(&InitEvent::Ready, &[])?;
        let launcher = sys::borrow(guest.launcher).map_err(failed)?;
        let Some((Order::Begin, descriptors)) = channel::receive(launcher).map_err(failed)? else {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        };
        let mut descriptors = descriptors.into_iter();
        let document = descriptors.next();
        let document = document.ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))?;
        let Assignment {
            args, env, files, ..
        } = channel::disclose(document).map_err(failed)?;
        for (number, stream) in (0..=2).zip(descriptors) {
            sys::duplicate_onto(&stream, number)
                .map_err(|error| Failure::new(STEP, "dup2", error))?;
        }
        Self::prepare(guest, home, &args, &env, files)
    }

    /// Tries every candidate, as `execvp` does: a missing one is passed over, a forbidden one is remembered.
    fn execute(&self) -> Outcome {
        let mut result = io::Error::from_raw_os_error(libc::ENOENT);
        let mut tried = &self.candidates[0];
        for candidate in &self.candidates {
            let error = sys::execute(candidate, &self.arguments, &self.environment);
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => {}
                Some(libc::EACCES) => (result, tried) = (error, candidate),
                _ => {
                    (result, tried) = (error, candidate);
                    break;
                }
            }
        }
        let errno = result.raw_os_error().unwrap_or(0);
        let name = tried.to_string_lossy();
        let reason = match errno {
            libc::ENOENT if self.candidates.len() > 1 => {
                let name = name.rsplit('/').next().unwrap_or_default();
                format!("{name:?}: executable file not found in $PATH")
            }
            // The kernel says the same for a script whose interpreter, or a program whose loader, is missing.
            libc::ENOENT => format!("{name:?}: no such file, or its interpreter is missing"),
            libc::EACCES if is_noexec(tried) => {
                format!(
                    "{name:?}: permission denied: it is on a file system that is mounted noexec"
                )
            }
            libc::EACCES => format!("{name:?}: permission denied: not an executable file"),
            libc::ENOEXEC => format!(
                "{name:?}: exec format error: neither a program for this machine nor a script"
            ),
            libc::E2BIG => format!("{name:?}: argument list or environment too long"),
            _ => format!("{name:?}: {result}"),
        };
        // The name may be as long as an argument.
        let reason = shortened(reason);
        Outcome::NotExecuted { errno, reason }
    }
}

/// What the process of the program has to become.
struct Program {
    /// None where it is told later.
    call: Option<Call>,
    home: String,
    is_root: bool,
    uid_map: String,
    gid_map: String,
}

impl Program {
    fn prepare(guest: &Guest, user: &User) -> Result<Self, Failure> {
        let Process { args, env, .. } = &guest.process;
        let call = (!guest.is_prepared)
            .then(|| Call::prepare(guest, &user.home, args, env, guest.files.clone()));
        Ok(Self {
            call: call.transpose()?,
            home: user.home.clone(),
            is_root: user.uid == 0,
            uid_map: format!("{} 0 1", user.uid),
            gid_map: format!("{} 0 1", user.gid),
        })
    }

    /// Turns this process, a child of the first one, into the program.
    fn become_it(
        mut self,
        guest: &Guest,
        entrance: Entrance,
        terminal: Option<&Terminal>,
        rules: Option<Rules>,
        reports: &Reports<'_>,
    ) -> ! {
        let confined = entrance
            .enter()
            .and_then(|()| self.confine(guest, terminal, rules, reports));
        let end = match confined {
            Err(failure) => Outcome::Failed(failure),
            Ok(call) => call.execute(),
        };
        end.write(reports.outcome);
        sys::exit_now(127)
    }

    fn confine(
        &mut self,
        guest: &Guest,
        terminal: Option<&Terminal>,
        rules: Option<Rules>,
        reports: &Reports<'_>,
    ) -> Result<Call, Failure> {
        let failed = |what: &'static str| move |error: io::Error| Failure::new(STEP, what, error);
        nix::unistd::setsid().map_err(|error| failed("setsid")(error.into()))?;
        if let Some(Terminal { slave, .. }) = terminal {
            sys::set_controlling_terminal(slave.as_fd()).map_err(failed("TIOCSCTTY"))?;
            for stream in 0..=2 {
                sys::duplicate_onto(slave, stream).map_err(failed("dup2"))?;
            }
        }
        // Closed, and before any path of the image's is looked at: through /proc/self/fd a descriptor of a directory is a
        // way out (CVE-2024-21626). The working directory is the one that libcontainer has entered and verified; it is
        // never resolved again, for the same path may lead elsewhere the second time.
        let mut kept = vec![reports.outcome.as_fd(), reports.warden.as_fd()];
        kept.extend(rules.as_ref().map(Rules::descriptor));
        if self.call.is_none() {
            kept.push(sys::borrow(guest.launcher).map_err(failed("close_range"))?);
        }
        sys::keep_only(&kept).map_err(failed("close_range"))?;
        // No call reaches a keyring under the default policy, and the launcher's is empty. One more for each run would be
        // one of the 200 keys that the kernel allows a user.
        if guest.seccomp != seccomp::Policy::Default {
            sys::new_session_keyring().map_err(failed("join a new session keyring"))?;
        }
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWCGROUP)
            .map_err(|error| failed("unshare(CLONE_NEWUSER|CLONE_NEWCGROUP)")(error.into()))?;
        for (file, contents) in [
            ("setgroups", "deny"),
            ("uid_map", self.uid_map.as_str()),
            ("gid_map", self.gid_map.as_str()),
        ] {
            std::fs::write(format!("/proc/self/{file}"), contents)
                .map_err(|error| Failure::new(STEP, format!("/proc/self/{file}"), error))?;
        }
        if guest.cpuset == Mechanism::Affinity
            && let Some(processors) = &guest.limits.cpuset
        {
            sys::set_processors(processors).map_err(failed("sched_setaffinity"))?;
        }
        if guest.cpus == Mechanism::Affinity
            && let Some(cpus) = guest.limits.cpus
        {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "checked to be a small whole number"
            )]
            sys::restrict_processors(cpus as usize).map_err(failed("sched_setaffinity"))?;
        }
        let call = if let Some(call) = self.call.take() {
            call
        } else {
            let call = Call::receive(guest, &self.home)?;
            kept.pop();
            sys::keep_only(&kept).map_err(failed("close_range"))?;
            call
        };
        let files = Self::limit(guest)?;
        let emulated = guest.emulate_root && self.is_root;
        let capabilities = if emulated { EMULATED_ROOT } else { &[] };
        sys::keep_capabilities(capabilities).map_err(failed("drop capabilities"))?;
        // With no more rights than the program will have, and while a signal about them cannot end this process.
        files::place(&call.files)?;
        reset_signals().map_err(failed("reset signals"))?;
        if let Some(rules) = rules {
            rules.restrict()?;
        }
        // Last of all: from here on this process may do only what the program may do.
        let policy = guest.seccomp.program(guest.emulate_root);
        let memory_files = guest.memory == Mechanism::Watchdog;
        let processors = guest.cpus == Mechanism::Affinity;
        if let Some(program) = seccomp::limits_program(memory_files, processors) {
            match policy {
                // It ends the calls of a foreign ABI, and says so.
                Some(_) => seccomp::install(&program.sparing()),
                None => seccomp::install(program),
            }
            .map_err(failed("load the seccomp filter"))?;
        }
        let Some(policy) = policy else {
            if let Some(OpenFiles { soft, hard }) = files {
                set_limit(RlimitResource::Nofile, soft, hard)?;
            }
            return Ok(call);
        };
        let is_ours = guest.seccomp == seccomp::Policy::Default;
        seccomp::install_under(policy, reports.warden.as_fd(), is_ours, files)
            .map_err(failed("load the seccomp filter"))?;
        Ok(call)
    }

    /// Sets all limits but the one on open files, which is the last thing to be set.
    fn limit(guest: &Guest) -> Result<Option<OpenFiles>, Failure> {
        let infinity = libc::RLIM_INFINITY;
        let fixed = FIXED_LIMITS.iter().map(|&(resource, limit)| Rlimit {
            resource,
            soft: limit,
            hard: limit,
        });
        let mut limits: Vec<Rlimit> = fixed.collect();
        let pids = guest
            .limits
            .pids
            .filter(|_| guest.pids == Mechanism::Rlimit)
            .map(u64::from);
        for (resource, bound) in [
            (RlimitResource::Nofile, guest.limits.nofile),
            (RlimitResource::Fsize, guest.limits.fsize),
            (RlimitResource::Nproc, pids),
        ] {
            let Some(bound) = bound else { continue };
            // Who names a soft limit means to stay below it, and nobody goes above the bound.
            let named = |rlimit: &&Rlimit| rlimit.resource == resource;
            let named = guest.process.rlimits.iter().rfind(named);
            limits.push(Rlimit {
                resource,
                soft: named.map_or(bound, |rlimit| rlimit.soft.min(bound)),
                hard: named.map_or(bound, |rlimit| rlimit.hard.min(bound)),
            });
        }
        let bounded: Vec<RlimitResource> = limits.iter().map(|limit| limit.resource).collect();
        let is_left = |rlimit: &&Rlimit| {
            FIXED_LIMITS
                .iter()
                .any(|&(fixed, _)| fixed == rlimit.resource)
                || !bounded.contains(&rlimit.resource)
        };
        limits.extend(guest.process.rlimits.iter().filter(is_left));
        let mut files = None;
        for Rlimit {
            resource,
            soft,
            hard,
        } in limits
        {
            let (_, ceiling) = sys::limit(resource.number()).unwrap_or((infinity, infinity));
            // An unprivileged process cannot go above what its creator may.
            let hard = hard.min(ceiling);
            let soft = soft.min(hard);
            if resource == RlimitResource::Nofile {
                files = Some(OpenFiles { soft, hard });
            } else {
                set_limit(resource, soft, hard)?;
            }
        }
        Ok(files)
    }
}

fn set_limit(resource: RlimitResource, soft: u64, hard: u64) -> Result<(), Failure> {
    sys::set_limit(resource.number(), soft, hard)
        .map_err(|error| Failure::new(STEP, format!("setrlimit {resource}"), error))
}

/// Whether the file system that `path` is on lets nothing be executed, as that of a volume may.
fn is_noexec(path: &std::ffi::CStr) -> bool {
    use nix::sys::statvfs::{FsFlags, statvfs};
    statvfs(path).is_ok_and(|found| found.flags().contains(FsFlags::ST_NOEXEC))
}

/// Gives the program the signal state that a fresh process has.
fn reset_signals() -> io::Result<()> {
    for signal in Signal::iterator() {
        if !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            sys::default_signal(signal)?;
        }
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

/// Whether `limit` was asked for at all.
pub(crate) fn is_asked(limit: LimitName, limits: &Limits) -> bool {
    match limit {
        LimitName::Memory => limits.memory.is_some(),
        LimitName::Swap => limits.swap.is_some(),
        LimitName::Cpus => limits.cpus.is_some(),
        LimitName::Cpuset => limits.cpuset.is_some(),
        LimitName::Pids => limits.pids.is_some(),
        LimitName::Io => limits.io_read.is_some() || limits.io_write.is_some(),
        LimitName::Nofile => limits.nofile.is_some(),
        LimitName::Fsize => limits.fsize.is_some(),
        LimitName::Scratch => limits.scratch_bytes.is_some(),
        LimitName::ScratchInodes => limits.scratch_inode_bound().is_some(),
        LimitName::Shm => limits.shm_bytes.is_some(),
        LimitName::WallTime => limits.wall_time.is_some(),
        LimitName::CpuTime => limits.cpu_time.is_some(),
        // Held by whoever reads the program's output.
        LimitName::Output => false,
    }
}
