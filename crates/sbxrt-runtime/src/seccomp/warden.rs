//! The container's first process as the listener of the program's filter: it ends what the policy wants ended, and
//! remembers for which call.
//!
//! Where the kernel itself ends a process with SIGSYS, nobody can tell afterwards what it had called, or that it did not
//! send itself that signal. So the filter is installed with every "kill" and "trap" replaced by a question
//! (`SECCOMP_RET_USER_NOTIF`). A call that is asked about never goes on: it is answered by the end of its process, or
//! with ENOSYS. Without a listener the kernel says the same, and without the first process there is no container.
//!
//! What the program sees differs from the kernel's own way in this:
//!
//! - Where one thread would be ended (`SCMP_ACT_KILL`), the whole process is, because others wait for that thread.
//! - SIGSYS ends it, as ever; SIGKILL where SIGSYS is caught, ignored or blocked, which the kernel would undo.
//! - A caught `SCMP_ACT_TRAP` gives the handler a SIGSYS of `SI_TKILL` without the number of the call, and ENOSYS. Before
//!   Linux 6.17 the signal may interrupt the call (EINTR, or the call again) before the answer has come.
//! - A filter has one listener, so the program cannot have one for filters of its own (EBUSY).

use std::collections::HashSet;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::poll::PollFlags;
use serde::{Deserialize, Serialize};

use super::sys::{self, Notification};
use super::{Program, compile, interpreter};
use crate::channel;

/// A system call that the policy ended a process for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Blocked {
    /// The name, or the number where it has none.
    pub(crate) syscall: String,
    /// `x86_64`, `i386`, `x32`, `aarch64`, `arm`.
    pub(crate) architecture: String,
}

/// What the program's process says once its filter is installed. The listener comes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Installed;

/// The program's side: puts the calling process under `program`, and hands the listener to `warden` where there is
/// anything to ask. Last of all, sets the limit on open files.
///
/// That comes last because the limit decides about the handing over: the kernel refuses to send a descriptor where all
/// processes of the user, those of other sandboxes too, have more on their way than the sender may have open.
///
/// Where the filter may forbid `sendmsg` and `prlimit64` themselves (not `is_ours`), a thread that is not under it makes
/// these calls. The caller has no other thread; execve ends this one. The caller makes no system call meanwhile, and need
/// make none before execve.
///
/// # Errors
///
/// What the kernel says. The process is then not confined and must not go on.
pub(crate) fn install(
    program: &Program,
    warden: BorrowedFd<'_>,
    is_ours: bool,
    files: Option<OpenFiles>,
) -> io::Result<()> {
    let by_kernel = || {
        OpenFiles::set(files)?;
        super::install(program)
    };
    let Some(asking) = program.asking() else {
        return by_kernel();
    };
    // Freeing it may need a system call, which may be forbidden by then.
    let asking = ManuallyDrop::new(asking);
    let listener = if is_ours {
        sys::install_with_listener(&asking)
    } else {
        match install_beside_messenger(&asking, warden, files) {
            Ok(()) => return Ok(()),
            Err(error) => Err(error),
        }
    };
    match listener {
        Ok(listener) => {
            channel::send(warden, &Installed, &[listener.as_fd()])?;
            OpenFiles::set(files)
        }
        // sbxrt itself runs under a filter with a listener, or there is no room for one more thread. The kernel then
        // ends processes by itself, and the result can only name the signal.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN)) => {
            by_kernel()
        }
        Err(error) => Err(error),
    }
}

/// The limit on open files that the program gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenFiles {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

impl OpenFiles {
    fn set(files: Option<Self>) -> io::Result<()> {
        files.map_or(Ok(()), |Self { soft, hard }| {
            crate::sys::set_limit(libc::RLIMIT_NOFILE as libc::c_uint, soft, hard)
        })
    }
}

/// The listener's descriptor, once there is one.
static LISTENER: AtomicI32 = AtomicI32::new(NOT_YET);
/// What has come of handing it over: 0 or an error number.
static HANDED_OVER: AtomicI32 = AtomicI32::new(NOT_YET);

const NOT_YET: i32 = -1;
const NEVER: i32 = -2;

fn install_beside_messenger(
    asking: &Program,
    warden: BorrowedFd<'_>,
    files: Option<OpenFiles>,
) -> io::Result<()> {
    let warden = warden.try_clone_to_owned()?;
    drop(
        std::thread::Builder::new()
            .stack_size(256 << 10)
            .spawn(move || deliver(&warden, files))?,
    );
    match sys::install_with_listener(asking) {
        Ok(listener) => {
            // Closed by the messenger: here, close may be forbidden.
            LISTENER.store(listener.into_raw_fd(), Ordering::Release);
            loop {
                match HANDED_OVER.load(Ordering::Acquire) {
                    NOT_YET => std::hint::spin_loop(),
                    0 => return Ok(()),
                    errno => return Err(io::Error::from_raw_os_error(errno)),
                }
            }
        }
        Err(error) => {
            LISTENER.store(NEVER, Ordering::Release);
            Err(error)
        }
    }
}

/// Sends the listener as soon as there is one.
fn deliver(warden: &OwnedFd, files: Option<OpenFiles>) {
    let listener = loop {
        match LISTENER.load(Ordering::Acquire) {
            NOT_YET => std::thread::yield_now(),
            NEVER => return,
            fd => break fd,
        }
    };
    let result = crate::sys::adopt(listener).and_then(|listener| {
        // Where this fails the listener is closed: nobody may wait for an answer that will not come.
        channel::send(warden.as_fd(), &Installed, &[listener.as_fd()])?;
        OpenFiles::set(files)
    });
    let errno = result.map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0);
    HANDED_OVER.store(errno, Ordering::Release);
    // To end now could free memory that the other thread allocates from.
    loop {
        std::thread::park();
    }
}

/// The first process's side.
#[derive(Debug)]
pub(crate) struct Warden {
    /// What the kernel does by itself, which tells what to do when it asks.
    program: Program,
    /// The program's process.
    pid: i32,
    source: Source,
    /// Processes that were sent SIGSYS. One that asks again has survived it.
    ended: HashSet<i32>,
    blocked: Option<(i32, Blocked)>,
}

#[derive(Debug)]
enum Source {
    /// Where the listener will come from.
    Channel(OwnedFd),
    Listener(OwnedFd),
    /// Nothing will be asked any more.
    Closed,
}

/// As many processes are remembered at once.
const REMEMBERED: usize = 4096;

impl Warden {
    /// For the process `pid`, which installs `program` and says so on `channel`.
    pub(crate) fn new(program: Program, pid: i32, channel: OwnedFd) -> Self {
        Self {
            program,
            pid,
            source: Source::Channel(channel),
            ended: HashSet::new(),
            blocked: None,
        }
    }

    /// What to poll for input.
    pub(crate) fn awaited(&self) -> Option<BorrowedFd<'_>> {
        match &self.source {
            Source::Channel(fd) | Source::Listener(fd) => Some(fd.as_fd()),
            Source::Closed => None,
        }
    }

    /// Handles what has come in.
    pub(crate) fn attend(&mut self, events: PollFlags) {
        let next = match &self.source {
            Source::Channel(channel) => match channel::receive::<Installed>(channel.as_fd()) {
                Ok(Some((Installed, listener))) => listener
                    .into_iter()
                    .next()
                    .map_or(Source::Closed, Source::Listener),
                Ok(None) | Err(_) => Source::Closed,
            },
            // No process is left under the filter.
            Source::Listener(_) if !events.contains(PollFlags::POLLIN) => Source::Closed,
            Source::Listener(listener) => match sys::next_notification(listener.as_fd()) {
                Ok(None) => return,
                Ok(Some(notification)) => {
                    let asker = Asker::find(notification.thread);
                    // The number of a thread that is gone may be another's by now.
                    if sys::is_waiting(listener.as_fd(), notification.id) {
                        self.judge(&notification, asker);
                        // It waits for that, whatever signal has come, where the kernel lets nothing but SIGKILL interrupt it;
                        // a signal is delivered before the program sees the answer.
                        if let Some(listener) = self.awaited() {
                            drop(sys::answer(listener, notification.id, libc::ENOSYS));
                        }
                    }
                    return;
                }
                // Who waits for an answer gets ENOSYS.
                Err(_) => Source::Closed,
            },
            Source::Closed => return,
        };
        self.source = next;
    }

    /// Sends whoever asks the signal that the policy has for the call.
    fn judge(&mut self, notification: &Notification, asker: Option<Asker>) {
        let Notification { thread, call, .. } = notification;
        let Some(asker) = asker else {
            drop(sys::signal_thread(*thread, *thread, libc::SIGKILL));
            return;
        };
        let wanted = interpreter::run(&self.program, call).unwrap_or(compile::KILL_PROCESS);
        if wanted & compile::ACTION == compile::TRAP && asker.sigsys == Disposition::Caught {
            drop(sys::signal_thread(asker.process, *thread, libc::SIGSYS));
            return;
        }
        if self.blocked.is_none() || asker.process == self.pid {
            self.blocked = Some((asker.process, Blocked::new(call)));
        }
        if self.ended.len() == REMEMBERED {
            self.ended.clear();
        }
        let first = self.ended.insert(asker.process);
        let signal = if first && asker.sigsys == Disposition::Default {
            libc::SIGSYS
        } else {
            libc::SIGKILL
        };
        drop(sys::signal_thread(asker.process, *thread, signal));
    }

    /// The call that the program was ended for, if that is how it ended.
    pub(crate) fn blocked(self) -> Option<Blocked> {
        self.blocked
            .filter(|(process, _)| *process == self.pid)
            .map(|(_, blocked)| blocked)
    }
}

/// Who has made a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asker {
    process: i32,
    sigsys: Disposition,
}

/// What a SIGSYS would do to a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disposition {
    Default,
    Caught,
    /// Nothing, now or at all.
    Held,
}

impl Asker {
    fn find(thread: i32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?)
    }

    /// Reads `/proc/TID/status`.
    fn parse(status: &str) -> Option<Self> {
        const SIGSYS: u64 = 1 << (libc::SIGSYS - 1);
        let field = |name: &str| {
            let mut lines = status.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
        };
        let has = |name: &str| Some(u64::from_str_radix(field(name)?, 16).ok()? & SIGSYS != 0);
        let sigsys = if has("SigBlk")? || has("SigIgn")? {
            Disposition::Held
        } else if has("SigCgt")? {
            Disposition::Caught
        } else {
            Disposition::Default
        };
        Some(Self {
            process: field("Tgid")?.parse().ok()?,
            sigsys,
        })
    }
}

impl Blocked {
    fn new(call: &interpreter::Call) -> Self {
        let (architecture, syscall) = compile::describe(call.audit, call.number);
        Self {
            syscall,
            architecture,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sigsys_would_do_is_read_from_status() {
        const SIGSYS: u64 = 0x4000_0000;
        let status = |blocked: u64, ignored: u64, caught: u64| {
            format!(
                "Name:\tx\nTgid:\t7\nPid:\t9\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n"
            )
        };
        for (text, sigsys) in [
            (status(0, 0, 0), Disposition::Default),
            (status(!SIGSYS, !SIGSYS, !SIGSYS), Disposition::Default),
            (status(0, 0, SIGSYS), Disposition::Caught),
            (status(SIGSYS, 0, SIGSYS), Disposition::Held),
            (status(0, SIGSYS, 0), Disposition::Held),
        ] {
            assert_eq!(
                Asker::parse(&text),
                Some(Asker { process: 7, sigsys }),
                "{text}"
            );
        }
        assert_eq!(Asker::parse("Name:\tx\n"), None);
    }

    #[test]
    fn a_blocked_call_is_named_in_its_own_abi() {
        let blocked = |audit, number| {
            let Blocked {
                syscall,
                architecture,
            } = Blocked::new(&interpreter::Call {
                number,
                audit,
                arguments: [0; 6],
            });
            format!("{architecture} {syscall}")
        };
        assert_eq!(blocked(0xc000_003e, 63), "x86_64 uname");
        assert_eq!(blocked(0xc000_003e, 0x4000_0027), "x32 getpid");
        assert_eq!(blocked(0xc000_003e, 0x4000_0207), "x32 519");
        assert_eq!(blocked(0xc000_003e, 9999), "x86_64 9999");
        assert_eq!(blocked(0x4000_0003, 20), "i386 getpid");
        assert_eq!(blocked(0xc000_00b7, 160), "aarch64 uname");
        assert_eq!(blocked(0x4000_0028, 20), "arm getpid");
        assert_eq!(blocked(1, 20), "0x1 20");
    }
}
