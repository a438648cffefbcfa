//! The system calls that install a filter and listen to it.
#![expect(unsafe_code, reason = "nix has no seccomp(2)")]

use super::interpreter::Call;
use super::program::Program;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Puts the calling thread, and what it will fork and execute, under the filter for good.
///
/// To be called once `no_new_privs` is set (the kernel answers EACCES otherwise) and as the last step before
/// `execve`. It only makes a system call, so it may be called between `fork` and `execve`. Other threads of the
/// process are not put under the filter.
///
/// # Errors
///
/// What the kernel says: EACCES as above, EINVAL if the program is not valid, ENOSYS or EINVAL if the kernel has no
/// seccomp filters. The process is then **not** confined and must not go on.
pub fn install(program: &Program) -> io::Result<()> {
    set_filter(program, 0).map(drop)
}

/// As [`install`], and returns the descriptor on which the filter's questions (`SECCOMP_RET_USER_NOTIF`) are heard,
/// close-on-exec. Where the kernel can (Linux 5.19), nothing but SIGKILL interrupts a call that has been asked about.
///
/// # Errors
///
/// As for [`install`]; EBUSY where the thread is under a filter with a listener already.
pub(super) fn install_with_listener(program: &Program) -> io::Result<OwnedFd> {
    // linux/seccomp.h
    const WAIT_KILLABLE: libc::c_ulong = 1 << 5;
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    let fd = match set_filter(program, flags | WAIT_KILLABLE) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => set_filter(program, flags),
        other => other,
    }?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just created `fd` for this process and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_filter(program: &Program, flags: libc::c_ulong) -> io::Result<libc::c_long> {
    let filter = libc::sock_fprog {
        len: program.instruction_count(),
        // Bytes, not `sock_filter`s, and perhaps not aligned as such: the kernel copies them without looking.
        filter: program
            .as_bytes()
            .as_ptr()
            .cast::<libc::c_void>()
            .cast_mut()
            .cast(),
    };
    // SAFETY: `filter` and the bytes that it points to live until the call returns, `len` is their length in units of
    // 8 bytes, and the kernel only reads them. No pointer is kept.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::c_long::from(libc::SECCOMP_SET_MODE_FILTER),
            flags,
            &raw const filter,
        )
    };
    check(result)
}

/// A system call that a filter asks about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Notification {
    /// What an answer refers to.
    pub(super) id: u64,
    /// The thread that waits, in the pid namespace of whoever listens.
    pub(super) thread: libc::pid_t,
    /// The call.
    pub(super) call: Call,
}

// linux/seccomp.h: _IOWR('!', 0, struct seccomp_notif), _IOWR('!', 1, struct seccomp_notif_resp), _IOW('!', 2, __u64)
const NOTIF_RECV: libc::Ioctl = 0xc050_2100_u32 as libc::Ioctl;
const NOTIF_SEND: libc::Ioctl = 0xc018_2101_u32 as libc::Ioctl;
const NOTIF_ID_VALID: libc::Ioctl = 0x4008_2102;

/// Takes the next question; `None` where whoever asked has gone meanwhile. To be called when the listener is readable,
/// or else it waits.
pub(super) fn next_notification(listener: BorrowedFd<'_>) -> io::Result<Option<Notification>> {
    // SAFETY: all-zero is a valid value, and the one that the kernel wants to find.
    let mut notification: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: `notification` is live, writable, and as large as the number of the operation says.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_RECV, &raw mut notification) };
    match check(result.into()) {
        Ok(_) => Ok(Some(Notification {
            id: notification.id,
            thread: notification.pid.cast_signed(),
            call: Call {
                number: notification.data.nr.cast_unsigned(),
                audit: notification.data.arch,
                arguments: notification.data.args,
            },
        })),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the thread still waits for the answer to `id`.
pub(super) fn is_waiting(listener: BorrowedFd<'_>, id: u64) -> bool {
    // SAFETY: the kernel reads eight bytes, which `id` is.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_ID_VALID, &raw const id) };
    result == 0
}

/// Lets the call `id` fail with `errno`.
pub(super) fn answer(listener: BorrowedFd<'_>, id: u64, errno: i32) -> io::Result<()> {
    let response = libc::seccomp_notif_resp {
        id,
        val: 0,
        error: -errno,
        flags: 0,
    };
    // SAFETY: `response` is live and as large as the number of the operation says.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_SEND, &raw const response) };
    check(result.into()).map(drop)
}

/// Sends a signal to one thread of a process.
pub(super) fn signal_thread(
    process: libc::pid_t,
    thread: libc::pid_t,
    signal: i32,
) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal) }).map(drop)
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
