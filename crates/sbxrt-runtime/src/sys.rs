//! The system calls that neither `std` nor `nix` offers in the shape needed here, one operation per function.
//!
//! Everything below is usable between `clone` and `execve` in a single-threaded child: only those that say so
//! take a lock or allocate.
#![expect(
    unsafe_code,
    reason = "raw system calls; each block names its invariant"
)]

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_uint, c_ulong};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use crate::cpuset::Cpuset;

/// Turns the kernel's `-1` into the error of this thread.
fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Takes ownership of a descriptor that a system call has just returned.
fn own(result: c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(check(result)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just created `fd` for this process and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Which side of [`fork_into`] this process is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forked {
    /// This is the parent; the child's pid as the parent's pid namespace sees it.
    Parent(libc::pid_t),
    /// This is the child.
    Child,
}

/// Forks, with new namespaces named by `flags` (`CLONE_NEW*`), as a sibling with `CLONE_PARENT` among them, and, where given, born in the cgroup behind `cgroup`
/// (a directory descriptor of a cgroup v2 file system, Linux 5.7).
///
/// Unlike a write to `cgroup.procs`, being born there does not wait for an RCU grace period.
///
/// The caller must be single-threaded: the C library's locks are copied as they are.
pub(crate) fn fork_into(flags: c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    // SAFETY: an all-zero `clone_args` is the documented default of every field.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    if flags & libc::CLONE_PARENT == 0 {
        // Else it is that of the caller itself.
        args.exit_signal = libc::SIGCHLD as u64;
    }
    args.flags = u64::from(flags.cast_unsigned());
    if let Some(cgroup) = cgroup {
        // libc's constant of this name is an `int`, which the value does not fit.
        const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: no CLONE_VM and no stack: this is fork(2) with more namespaces; `args` outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const args,
            size_of::<libc::clone_args>(),
        )
    };
    Ok(match check(result)? {
        0 => Forked::Child,
        pid => Forked::Parent(libc::pid_t::try_from(pid).map_err(io::Error::other)?),
    })
}

/// Runs `entry` in a child process with the namespaces `flags` that shares this process's memory until it executes
/// or ends, while the calling thread waits (`CLONE_VM | CLONE_VFORK`, as `posix_spawn` does it): the cost does not
/// grow with the caller. When `entry` returns, the child ends; what it wrote to `state` is there for the caller.
///
/// All signals are blocked in the child, so that no handler of the caller runs there. `entry` must only make system
/// calls: other threads of the caller go on, and may hold any lock.
pub(crate) fn vfork_with<S>(
    flags: c_int,
    state: &mut S,
    entry: fn(&mut S),
) -> io::Result<libc::pid_t> {
    struct Start<'a, S> {
        state: &'a mut S,
        entry: fn(&mut S),
    }
    extern "C" fn enter<S>(argument: *mut libc::c_void) -> c_int {
        // SAFETY: `argument` is the `Start` below, which the suspended caller keeps alive and does not touch.
        let start = unsafe { &mut *argument.cast::<Start<'_, S>>() };
        (start.entry)(start.state);
        127
    }
    const STACK: usize = 64 << 10;
    let mut stack = vec![0_u128; STACK / size_of::<u128>()];
    // SAFETY: one past the end of the allocation, the highest address of a stack that grows downward.
    let top = unsafe { stack.as_mut_ptr().add(stack.len()) };
    let mut start = Start { state, entry };
    let all = nix::sys::signal::SigSet::all();
    let mut before = nix::sys::signal::SigSet::empty();
    nix::sys::signal::pthread_sigmask(
        nix::sys::signal::SigmaskHow::SIG_SETMASK,
        Some(&all),
        Some(&mut before),
    )?;
    let flags = flags | libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: `top` is the top of a live stack that no other code uses, and CLONE_VFORK keeps this thread (and so the
    // stack and `start`) in place until the child has executed another program or ended.
    let pid = unsafe { libc::clone(enter::<S>, top.cast(), flags, (&raw mut start).cast()) };
    let result = check(c_long::from(pid)).map(|_| pid);
    nix::sys::signal::pthread_sigmask(
        nix::sys::signal::SigmaskHow::SIG_SETMASK,
        Some(&before),
        None,
    )?;
    result
}

/// Writes `contents` to the existing file `path` with three system calls and nothing else.
pub(crate) fn write_file(path: &CStr, contents: &[u8]) -> io::Result<()> {
    // SAFETY: `path` is a C string.
    let fd = check(c_long::from(unsafe {
        libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC)
    }))?;
    let fd = c_int::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the pointer and length are those of `contents`.
    let written = unsafe { libc::write(fd, contents.as_ptr().cast(), contents.len()) };
    let result = if written < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    };
    // SAFETY: `fd` was opened above and is used nowhere else.
    unsafe { libc::close(fd) };
    result
}

/// Opens the executable at `path` through a detached read-only mount, provided it is the file with this device and
/// inode number.
pub(crate) fn clone_executable(path: &CStr, identity: (u64, u64)) -> io::Result<RawFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::O_CLOEXEC as c_uint;
    // SAFETY: `path` is a C string.
    let tree =
        check(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })?;
    let tree = c_int::try_from(tree).map_err(io::Error::other)?;
    // SAFETY: an all-zero `stat` is a valid value.
    let mut found: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `found` is live and writable.
    check(c_long::from(unsafe { libc::fstat(tree, &raw mut found) }))?;
    if (found.st_dev, found.st_ino) != identity {
        // It was replaced while it runs, by an upgrade for instance.
        return Err(io::Error::from_raw_os_error(libc::ESTALE));
    }
    // SAFETY: `tree` is open and stays so.
    let borrowed = unsafe { BorrowedFd::borrow_raw(tree) };
    restrict_tree(
        borrowed,
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID,
        false,
    )?;
    Ok(tree)
}

/// Duplicates `fd` to the lowest free number from `first` upward, close-on-exec.
pub(crate) fn duplicate_above(fd: RawFd, first: RawFd) -> io::Result<RawFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes a number.
    let number = check(c_long::from(unsafe {
        libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, first)
    }))?;
    RawFd::try_from(number).map_err(io::Error::other)
}

/// Duplicates `fd` onto `number`, without close-on-exec. For a process that is about to execute another program.
pub(crate) fn duplicate_number(fd: RawFd, number: RawFd) -> io::Result<()> {
    // SAFETY: what was open at `number` is given up on purpose.
    check(c_long::from(unsafe { libc::dup2(fd, number) })).map(drop)
}

/// Leaves the caller's session, so that its terminal and its signals do not reach this process, and unblocks signals.
pub(crate) fn reset_session() -> io::Result<()> {
    nix::unistd::setsid()?;
    let none = nix::sys::signal::SigSet::empty();
    nix::sys::signal::sigprocmask(nix::sys::signal::SigmaskHow::SIG_SETMASK, Some(&none), None)?;
    Ok(())
}

/// Strings for `execve`, laid out before a fork so that the child need not allocate.
#[derive(Debug)]
pub(crate) struct StringArray {
    /// Owns what `pointers` points to.
    _strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl StringArray {
    /// Copies `strings`.
    pub(crate) fn new<S: AsRef<str>>(strings: &[S]) -> Result<Self, std::ffi::NulError> {
        let strings = strings
            .iter()
            .map(|string| CString::new(string.as_ref()))
            .collect::<Result<Vec<CString>, _>>()?;
        let pointers = strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([std::ptr::null()])
            .collect();
        Ok(Self {
            _strings: strings,
            pointers,
        })
    }
}

/// Executes the file behind `file` (`execveat` with `AT_EMPTY_PATH`). Returns only on failure.
pub(crate) fn execute_fd(
    file: RawFd,
    arguments: &StringArray,
    environment: &StringArray,
) -> io::Error {
    let (arguments, environment) = (arguments.pointers.as_ptr(), environment.pointers.as_ptr());
    // SAFETY: a `StringArray` is an array of C strings that ends with a null pointer; the path is static.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file,
            c"".as_ptr(),
            arguments,
            environment,
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Executes `path`. Returns only on failure.
pub(crate) fn execute(
    path: &CStr,
    arguments: &StringArray,
    environment: &StringArray,
) -> io::Error {
    // SAFETY: a `StringArray` is an array of C strings that ends with a null pointer.
    unsafe {
        libc::execve(
            path.as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
        )
    };
    io::Error::last_os_error()
}

/// Ends this process at once: no destructor, no `atexit` handler.
pub(crate) fn exit_now(status: c_int) -> ! {
    // SAFETY: `_exit` has no precondition.
    unsafe { libc::_exit(status) }
}

/// Clones the mount of `path` (relative to `directory`, or the descriptor itself where `path` is empty) as a
/// detached tree (`open_tree`, Linux 5.2).
pub(crate) fn clone_tree(
    directory: BorrowedFd<'_>,
    path: &CStr,
    recursive: bool,
) -> io::Result<OwnedFd> {
    let mut flags =
        libc::OPEN_TREE_CLONE | c_uint::try_from(libc::O_CLOEXEC).map_err(io::Error::other)?;
    flags |= libc::AT_EMPTY_PATH.cast_unsigned();
    if recursive {
        flags |= libc::AT_RECURSIVE.cast_unsigned();
    }
    // SAFETY: `path` is a C string and `directory` an open descriptor for the length of the call.
    own(unsafe {
        libc::syscall(
            libc::SYS_open_tree,
            directory.as_raw_fd(),
            path.as_ptr(),
            flags,
        )
    })
}

/// Adds `attributes` (`MOUNT_ATTR_*`) to every mount of the tree behind `tree` (`mount_setattr`, Linux 5.12).
///
/// Flags are only ever added: those that a mount already has stay, so locked ones never make this fail.
pub(crate) fn restrict_tree(
    tree: BorrowedFd<'_>,
    attributes: u64,
    recursive: bool,
) -> io::Result<()> {
    let request = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `request` outlives the call and its size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const request,
            size_of::<libc::mount_attr>(),
        )
    };
    check(result).map(drop)
}

/// Attaches the detached tree behind `tree` on the file or directory behind `target` (`move_mount`, Linux 5.2).
pub(crate) fn attach_tree(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 0x4;
    const MOVE_MOUNT_T_EMPTY_PATH: c_uint = 0x40;
    // SAFETY: both descriptors are open for the length of the call and both paths are static.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    };
    check(result).map(drop)
}

/// Sets an extended attribute of the open file or directory behind `fd`.
pub(crate) fn set_attribute(fd: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: `name` is a C string; the pointer and length are those of `value`.
    let result = unsafe {
        libc::fsetxattr(
            fd.as_raw_fd(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    check(c_long::from(result)).map(drop)
}

/// Whether the file at `path` has the extended attribute `name`.
pub(crate) fn has_attribute(path: &std::path::Path, name: &CStr) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_encoded_bytes()) else {
        return false;
    };
    // SAFETY: both names are C strings; a size of zero asks for the length alone and writes nothing.
    unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) >= 0 }
}

/// A detached instance of a file system, as `fsopen`, `fsconfig` and `fsmount` make it (Linux 5.2).
pub(crate) fn detached_filesystem(kind: &CStr) -> io::Result<OwnedFd> {
    const FSOPEN_CLOEXEC: c_uint = 1;
    const FSCONFIG_CMD_CREATE: c_uint = 6;
    const FSMOUNT_CLOEXEC: c_uint = 1;
    // SAFETY: `kind` is a C string.
    let context = own(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
    let nothing = std::ptr::null::<c_char>();
    // SAFETY: the create command takes null for key and value.
    let created = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            nothing,
            nothing,
            0,
        )
    };
    check(created)?;
    // SAFETY: `context` is a file system context that has been created.
    own(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })
}

/// The kernel's version of Landlock, or `None` where it is absent or off.
pub(crate) fn landlock_abi() -> Option<u32> {
    const VERSION: c_ulong = 1; // LANDLOCK_CREATE_RULESET_VERSION
    // SAFETY: with this flag the kernel reads no memory and makes no descriptor.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0_usize,
            VERSION,
        )
    };
    u32::try_from(version).ok()
}

/// Puts this thread under a Landlock ruleset.
pub(crate) fn restrict_by_landlock(ruleset: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe {
        libc::syscall(
            libc::SYS_landlock_restrict_self,
            ruleset.as_raw_fd(),
            0_usize,
        )
    })
    .map(drop)
}

/// Closes every descriptor from 3 upward but those of `kept`: what a fork inherited and must not hold open, because
/// somebody waits for its end. The owners of what is closed must not be dropped afterwards.
pub(crate) fn keep_only(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    kept.sort_unstable();
    let mut next: RawFd = 3;
    for fd in kept {
        if fd > next {
            // SAFETY: as for `close_range`.
            check(unsafe { libc::syscall(libc::SYS_close_range, next, fd - 1, 0) })?;
        }
        next = next.max(fd + 1);
    }
    close_range(next, false)
}

/// Marks every descriptor from `first` upward close-on-exec, or closes them.
pub(crate) fn close_range(first: RawFd, close_on_exec: bool) -> io::Result<()> {
    let flags: c_uint = if close_on_exec {
        libc::CLOSE_RANGE_CLOEXEC
    } else {
        0
    };
    // SAFETY: the caller no longer uses what is closed; descriptors that Rust owns are closed again in vain at most
    // in a process that ends without running destructors.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, c_uint::MAX, flags) }).map(drop)
}

/// The processor time that this thread has used, to the nanosecond.
pub(crate) fn thread_time() -> io::Result<std::time::Duration> {
    // SAFETY: an all-zero `timespec` is a valid value.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: `time` is live and writable.
    check(c_long::from(unsafe {
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time)
    }))?;
    let seconds = u64::try_from(time.tv_sec).map_err(io::Error::other)?;
    let nanoseconds = u32::try_from(time.tv_nsec).map_err(io::Error::other)?;
    Ok(std::time::Duration::new(seconds, nanoseconds))
}

/// Makes an epoll instance.
pub(crate) fn epoll_create() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are involved.
    own(c_long::from(unsafe {
        libc::epoll_create1(libc::EPOLL_CLOEXEC)
    }))
}

/// Has `epoll` wait until `fd` can be read, or has ended; it is then called `token`.
pub(crate) fn epoll_add(epoll: BorrowedFd<'_>, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
    let mut event = libc::epoll_event {
        events: libc::EPOLLIN.cast_unsigned(),
        u64: token,
    };
    let (epoll, fd) = (epoll.as_raw_fd(), fd.as_raw_fd());
    // SAFETY: `event` is live during the call, which copies it.
    check(c_long::from(unsafe {
        libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event)
    }))?;
    Ok(())
}

/// Has `epoll` wait for `fd` no more.
pub(crate) fn epoll_remove(epoll: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> io::Result<()> {
    let (epoll, fd) = (epoll.as_raw_fd(), fd.as_raw_fd());
    // SAFETY: no pointers are involved; what was the event is not looked at.
    check(c_long::from(unsafe {
        libc::epoll_ctl(epoll, libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut())
    }))?;
    Ok(())
}

/// The tokens of what is ready in `epoll` at this moment, or of a part of it: whoever is not among them is so the next time.
pub(crate) fn epoll_ready(epoll: BorrowedFd<'_>) -> io::Result<Vec<u64>> {
    const MOST: c_int = 256;
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; MOST as usize];
    // SAFETY: `events` is live and has room for as many events as are asked for.
    let ready = check(c_long::from(unsafe {
        libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), MOST, 0)
    }))?;
    let ready = usize::try_from(ready).map_err(io::Error::other)?;
    Ok(events[..ready].iter().map(|event| event.u64).collect())
}

/// Opens a pidfd for `pid`, which must be an un-waited child of the caller.
pub(crate) fn pidfd_open(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// Sends `signal` to the process behind `pidfd`.
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: c_int) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo asks for the default one.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            info,
            0,
        )
    })
    .map(drop)
}

/// Whether two processes have one memory, as threads have.
pub(crate) fn is_one_memory(pid: libc::pid_t, other: libc::pid_t) -> io::Result<bool> {
    // linux/kcmp.h
    const KCMP_VM: c_int = 1;
    // SAFETY: no memory is passed.
    let order = check(unsafe { libc::syscall(libc::SYS_kcmp, pid, other, KCMP_VM, 0, 0) })?;
    Ok(order == 0)
}

/// Waits for the end of the child `pid`; its wait status.
pub(crate) fn wait_for(pid: libc::pid_t) -> io::Result<c_int> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is live and writable.
        match unsafe { libc::waitpid(pid, &raw mut status, 0) } {
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return Err(io::Error::last_os_error()),
            _ => return Ok(status),
        }
    }
}

/// Reaps the child `pid` if it has ended. `true` where there is none any more.
pub(crate) fn reap(pid: libc::pid_t) -> bool {
    let mut status = 0;
    // SAFETY: `status` is live and writable.
    unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) != 0 }
}

/// Reaps one child that has ended, if there is one: its pid and wait status.
pub(crate) fn reap_any() -> io::Result<Option<(libc::pid_t, c_int)>> {
    let mut status = 0;
    // SAFETY: `status` is live and writable.
    match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
        0 => Ok(None),
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Some((pid, status))),
    }
}

/// Resource usage of the waited-for children of this process.
pub(crate) fn usage_of_children() -> libc::rusage {
    // SAFETY: an all-zero `rusage` is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is live and writable; RUSAGE_CHILDREN is a valid target, so the call cannot fail.
    unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    usage
}

/// A time of the kernel's, which is never negative.
pub(crate) fn duration_of(time: libc::timeval) -> std::time::Duration {
    let seconds = std::time::Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
    seconds + std::time::Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
}

/// Gives up every capability of this process: effective, permitted, inheritable, ambient and bounding.
///
/// Emptying the bounding set needs `CAP_SETPCAP` in the process's user namespace; without it the set is left as it
/// is, which gains a program nothing once `no_new_privs` is set.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    keep_capabilities(&[])
}

/// Gives up every capability but these, numbered as in `linux/capability.h` and below 32.
///
/// A root user keeps them over `execve`, and so does what it starts; anybody else loses them there.
pub(crate) fn keep_capabilities(kept: &[u32]) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    const VERSION_3: u32 = 0x2008_0522;
    for capability in 0..64 as c_ulong {
        if kept.iter().any(|&kept| c_ulong::from(kept) == capability) {
            continue;
        }
        // SAFETY: PR_CAPBSET_DROP takes a number; EINVAL past the last capability ends the loop.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            break;
        }
    }
    // SAFETY: clearing the ambient set takes no pointer.
    let ambient = unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        )
    };
    check(c_long::from(ambient))?;
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let mask = kept.iter().fold(0, |mask, &kept| mask | 1_u32 << kept);
    // Effective, permitted and inheritable; then the same for the capabilities from 32 on.
    let sets = [mask, mask, 0, 0, 0, 0];
    // SAFETY: version 3 reads two structures of three u32 each, which `sets` holds.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) }).map(drop)
}

/// Joins a fresh, anonymous session keyring, so that keys of the caller's session are out of reach.
///
/// A kernel without keyrings has nothing to leave: `ENOSYS` is success.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_int = 1;
    let anonymous = std::ptr::null::<c_char>();
    // SAFETY: a null name asks for an anonymous keyring.
    match check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, anonymous) })
    {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        other => other.map(drop),
    }
}

/// Makes the loopback interface of this network namespace work.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: an all-zero `ifreq` is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l'.cast_signed();
    request.ifr_name[1] = b'o'.cast_signed();
    let flags = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    check(c_long::from(result)).map(drop)
}

/// Makes `terminal` the controlling terminal of this session leader.
pub(crate) fn set_controlling_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes a number.
    check(c_long::from(unsafe {
        libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0)
    }))
    .map(drop)
}

/// Opens the other end of the pseudo-terminal behind `master` without a path (`TIOCGPTPEER`, Linux 4.13).
pub(crate) fn terminal_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes flags and returns a new descriptor.
    own(c_long::from(unsafe {
        libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags)
    }))
}

/// Lets the other end of the pseudo-terminal behind `master` be opened (`unlockpt`).
pub(crate) fn unlock_terminal(master: BorrowedFd<'_>) -> io::Result<()> {
    let unlocked: c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    check(c_long::from(unsafe {
        libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked)
    }))
    .map(drop)
}

/// Sets the size of the terminal behind `master`, in character cells.
pub(crate) fn set_window_size(master: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one `winsize`.
    check(c_long::from(unsafe {
        libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size)
    }))
    .map(drop)
}

/// A resource limit of this process: soft and hard.
pub(crate) fn limit(resource: c_uint) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is live and writable.
    check(c_long::from(unsafe {
        libc::getrlimit(resource, &raw mut limit)
    }))?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// Sets a resource limit.
pub(crate) fn set_limit(resource: c_uint, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: `limit` is live; an unknown resource is refused by the kernel.
    check(c_long::from(unsafe {
        libc::setrlimit(resource, &raw const limit)
    }))
    .map(drop)
}

/// Does `action` while this process's limit on open files is the hard one, then restores it. Takes a lock.
pub(crate) fn with_most_files<T>(action: impl FnOnce() -> T) -> io::Result<T> {
    // Two threads at once would restore what the other has raised.
    static RAISED: Mutex<()> = Mutex::new(());
    let _raised = RAISED.lock().unwrap_or_else(PoisonError::into_inner);
    let (soft, hard) = limit(libc::RLIMIT_NOFILE)?;
    set_limit(libc::RLIMIT_NOFILE, hard, hard)?;
    let result = action();
    set_limit(libc::RLIMIT_NOFILE, soft, hard)?;
    Ok(result)
}

/// The processors that this process may use. Allocates.
pub(crate) fn processors() -> io::Result<Cpuset> {
    // SAFETY: an all-zero `cpu_set_t` is the empty set.
    let mut allowed: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the size is that of `allowed`.
    check(c_long::from(unsafe {
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut allowed)
    }))?;
    let numbers = 0..=Cpuset::LAST;
    // SAFETY: every number of a `Cpuset` is within a `cpu_set_t`.
    let is_allowed = |number: &u16| unsafe { libc::CPU_ISSET(usize::from(*number), &allowed) };
    Ok(numbers.filter(is_allowed).collect())
}

/// Restricts this process, and all that it starts, to `processors`.
pub(crate) fn set_processors(processors: &Cpuset) -> io::Result<()> {
    // SAFETY: an all-zero `cpu_set_t` is the empty set.
    let mut allowed: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for number in processors.iter() {
        // SAFETY: every number of a `Cpuset` is within a `cpu_set_t`.
        unsafe { libc::CPU_SET(usize::from(number), &mut allowed) };
    }
    // SAFETY: the size is that of `allowed`.
    check(c_long::from(unsafe {
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const allowed)
    }))
    .map(drop)
}

/// Restricts this process, and all that it starts, to the first `count` processors that it may use. Allocates.
pub(crate) fn restrict_processors(count: usize) -> io::Result<()> {
    set_processors(&processors()?.iter().take(count).collect())
}

/// Adopts a descriptor that this process was born with.
///
/// # Errors
///
/// Fails where `fd` is not open.
pub(crate) fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD takes no argument.
    check(c_long::from(unsafe { libc::fcntl(fd, libc::F_GETFD) }))?;
    // SAFETY: it is open, was inherited on purpose, and is adopted once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Borrows a descriptor that is known by its number, because it was inherited over a fork.
///
/// # Errors
///
/// Fails where `fd` is not open.
pub(crate) fn borrow(fd: RawFd) -> io::Result<BorrowedFd<'static>> {
    // SAFETY: F_GETFD takes no argument.
    check(c_long::from(unsafe { libc::fcntl(fd, libc::F_GETFD) }))?;
    // SAFETY: it is open, and the process that asks never closes it by itself: it stays open until execve or exit.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Gives `signal` its default action.
pub(crate) fn default_signal(signal: nix::sys::signal::Signal) -> io::Result<()> {
    // SAFETY: installing the default action runs no code of ours.
    unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl) }?;
    Ok(())
}

/// The descriptors that came with a message, each now owned.
pub(crate) fn own_received(fds: &[RawFd]) -> Vec<OwnedFd> {
    // SAFETY: `SCM_RIGHTS` has just installed them in this process, and each is taken once.
    fds.iter()
        .map(|&fd| unsafe { OwnedFd::from_raw_fd(fd) })
        .collect()
}

/// Duplicates `fd` onto `number`, replacing what was there, without close-on-exec.
pub(crate) fn duplicate_onto(fd: &impl AsFd, number: RawFd) -> io::Result<()> {
    let source = fd.as_fd().as_raw_fd();
    // SAFETY: replacing standard streams 0 to 2 does not invalidate anything that Rust owns.
    check(c_long::from(unsafe { libc::dup2(source, number) })).map(drop)
}
