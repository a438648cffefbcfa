//! Programs on the kernel of this machine.

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::*;

/// Runs `check` in a child under the default filter; its result is the exit status.
///
/// The child is a copy of one thread of several, so `check` must not allocate or lock.
fn confined(check: impl FnOnce() -> i32) -> WaitStatus {
    confined_by(default_program(), check)
}

#[expect(
    unsafe_code,
    reason = "fork is how a filter can be tried without keeping it"
)]
fn confined_by(program: &Program, check: impl FnOnce() -> i32) -> WaitStatus {
    // SAFETY: the child only makes system calls and then exits.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => waitpid(child, None).unwrap(),
        ForkResult::Child => {
            let ready = nix::sys::prctl::set_dumpable(false).is_ok()
                && nix::sys::prctl::set_no_new_privs().is_ok()
                && install(program).is_ok();
            let status = if ready { check() } else { 255 };
            // SAFETY: ends the child at once, without destructors of the parent's state.
            unsafe { libc::_exit(status) }
        }
    }
}

/// The error number of a system call, 0 for success.
#[expect(
    unsafe_code,
    reason = "libc has no wrappers for calls that are to be refused"
)]
fn errno_of(number: libc::c_long, arguments: [libc::c_ulong; 3]) -> i32 {
    let [first, second, third] = arguments;
    // SAFETY: the callers pass numbers and null pointers, with which no system call in use touches memory.
    let result = unsafe { libc::syscall(number, first, second, third, 0_usize, 0_usize, 0_usize) };
    if result >= 0 {
        0
    } else {
        nix::errno::Errno::last_raw()
    }
}

#[test]
fn the_kernel_refuses_what_the_policy_refuses() {
    const NEW_USER: libc::c_ulong = 0x1000_0000;
    let cases = [
        (libc::SYS_getpid, [0; 3], 0),
        (libc::SYS_unshare, [NEW_USER, 0, 0], libc::EPERM),
        (libc::SYS_clone, [NEW_USER | SIGCHLD, 0, 0], libc::EPERM),
        (libc::SYS_clone3, [0, 0, 0], libc::ENOSYS),
        (600, [0; 3], libc::ENOSYS),
        (-1, [0; 3], libc::ENOSYS),
        (libc::SYS_socket, [1, 1, 0], 0),
        (libc::SYS_socket, [2, 1, 0], 0),
        (libc::SYS_socket, [16, 3, 0], libc::EAFNOSUPPORT),
        (libc::SYS_socket, [38, 5, 0], libc::EAFNOSUPPORT),
        (libc::SYS_socket, [40, 1, 0], libc::EAFNOSUPPORT),
        (libc::SYS_ioctl, [0, 0x5412, 0], libc::EPERM),
        (libc::SYS_ioctl, [0, 0xdead_beef_0000_5412, 0], libc::EPERM),
        (libc::SYS_ioctl, [0, 0x541c, 0], libc::EPERM),
        (libc::SYS_personality, [0xffff_ffff, 0, 0], 0),
        (libc::SYS_personality, [0x0004_0000, 0, 0], libc::EPERM),
        (libc::SYS_ptrace, [0, 0, 0], libc::EPERM),
        (libc::SYS_mount, [0; 3], libc::EPERM),
        (libc::SYS_setns, [0; 3], libc::EPERM),
        (libc::SYS_chroot, [0; 3], libc::EPERM),
        (libc::SYS_bpf, [0; 3], libc::EPERM),
        (libc::SYS_keyctl, [0; 3], libc::EPERM),
        (libc::SYS_userfaultfd, [0; 3], libc::EPERM),
        (libc::SYS_perf_event_open, [0; 3], libc::EPERM),
        (libc::SYS_io_uring_setup, [0; 3], libc::EPERM),
        (libc::SYS_name_to_handle_at, [0; 3], libc::EPERM),
        (libc::SYS_memfd_create, [0; 3], libc::EFAULT),
    ];
    let first_wrong = || {
        let wrong = cases
            .iter()
            .position(|&(number, arguments, expected)| errno_of(number, arguments) != expected);
        wrong.map_or(0, |case| i32::try_from(case + 1).unwrap_or(254))
    };
    match confined(first_wrong) {
        WaitStatus::Exited(_, 0) => (),
        WaitStatus::Exited(_, case @ 1..=100) => panic!(
            "not as expected: {:x?}",
            cases[usize::try_from(case).unwrap() - 1]
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_kernel_reports_the_success_of_what_is_pretended() {
    const NOBODY: libc::c_ulong = 65_534;
    const NOWHERE: libc::c_ulong = 0;
    const FIFO: libc::c_ulong = 0o010_644;
    const DEVICE: libc::c_ulong = 0o020_644;
    // Arguments with which the kernel itself would fail: EFAULT, EBADF or EPERM.
    let cases = [
        (libc::SYS_capset, [NOWHERE; 3], 0),
        (libc::SYS_fchown, [999, NOBODY, NOBODY], 0),
        (libc::SYS_fchownat, [999, NOWHERE, NOBODY], 0),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_chown, [NOWHERE, NOBODY, NOBODY], 0),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_lchown, [NOWHERE, NOBODY, NOBODY], 0),
        (libc::SYS_setfsgid, [NOBODY; 3], 0),
        (libc::SYS_setfsuid, [NOBODY; 3], 0),
        (libc::SYS_setgid, [NOBODY; 3], 0),
        (libc::SYS_setgroups, [1, NOWHERE, 0], 0),
        (libc::SYS_setregid, [NOBODY; 3], 0),
        (libc::SYS_setresgid, [NOBODY; 3], 0),
        (libc::SYS_setresuid, [NOBODY; 3], 0),
        (libc::SYS_setreuid, [NOBODY; 3], 0),
        (libc::SYS_setuid, [NOBODY; 3], 0),
        (libc::SYS_mknodat, [999, NOWHERE, DEVICE], 0),
        (libc::SYS_mknodat, [999, NOWHERE, FIFO], libc::EFAULT),
        (libc::SYS_fchmod, [999, 0, 0], libc::EBADF),
        (libc::SYS_unshare, [0x1000_0000, 0, 0], libc::EPERM),
        (libc::SYS_mount, [0; 3], libc::EPERM),
        (libc::SYS_chroot, [NOWHERE; 3], libc::EFAULT),
    ];
    let first_wrong = || {
        let user = nix::unistd::getuid();
        let wrong = cases
            .iter()
            .position(|&(number, arguments, expected)| errno_of(number, arguments) != expected);
        if nix::unistd::getuid() != user {
            return 254;
        }
        wrong.map_or(0, |case| i32::try_from(case + 1).unwrap_or(253))
    };
    match confined_by(root_emulation_program(), first_wrong) {
        WaitStatus::Exited(_, 0) => (),
        WaitStatus::Exited(_, case @ 1..=100) => panic!(
            "not as expected: {:x?}",
            cases[usize::try_from(case).unwrap() - 1]
        ),
        other => panic!("{other:?}"),
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
#[expect(unsafe_code, reason = "only assembly makes an i386 call")]
fn the_kernel_ends_a_process_that_uses_a_foreign_abi() {
    let x32 = confined(|| errno_of(0x4000_0000 + libc::SYS_getpid, [0; 3]));
    assert!(
        matches!(x32, WaitStatus::Signaled(_, Signal::SIGSYS, _)),
        "{x32:?}"
    );
    let i386 = confined(|| {
        // SAFETY: getpid has no arguments; the registers that the kernel may clear are named.
        unsafe {
            std::arch::asm!(
                "int 0x80",
                inlateout("eax") 20 => _,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        0
    });
    // A kernel without 32-bit support has no such trap.
    assert!(
        matches!(
            i386,
            WaitStatus::Signaled(_, Signal::SIGSYS | Signal::SIGSEGV, _)
        ),
        "{i386:?}"
    );
}

#[test]
fn the_kernel_takes_no_filter_without_no_new_privs_or_privilege() {
    if nix::unistd::geteuid().is_root() {
        return; // CAP_SYS_ADMIN may install filters without it.
    }
    let error = std::thread::spawn(|| install(default_program()))
        .join()
        .unwrap()
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
}

/// Standard output of a command under the default filter, or `None` if the machine does not have it.
#[expect(
    unsafe_code,
    reason = "the filter is installed between fork and exec, as in a run"
)]
fn output_under_filter(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    // SAFETY: both calls only make system calls.
    unsafe {
        command.pre_exec(|| {
            nix::sys::prctl::set_no_new_privs()?;
            install(default_program())
        });
    }
    match command.output() {
        Ok(output) => {
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            Some(String::from_utf8(output.stdout).unwrap())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: no {program}");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

#[test]
fn bash_works_under_the_default_filter() {
    let script = "set -e; cd /tmp; x=$(echo $((6 * 7)) | cat); sleep 0.01 & wait; ls -l / >/dev/null; read y < <(echo ok); echo $x $y";
    if let Some(output) = output_under_filter("bash", &["-c", script]) {
        assert_eq!(output, "42 ok\n");
    }
}

#[test]
fn python_works_under_the_default_filter() {
    let script = r#"
import asyncio, concurrent.futures, mmap, multiprocessing, os, select, socket, subprocess, sys, tempfile, threading, time

done = []
threads = [threading.Thread(target=done.append, args=(i,)) for i in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
assert sorted(done) == list(range(8))
assert subprocess.run(["sh", "-c", "echo hi"], capture_output=True, check=True).stdout == b"hi\n"
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
with concurrent.futures.ThreadPoolExecutor(2) as pool:
    assert list(pool.map(abs, [-3])) == [3]
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
peer, _ = server.accept(); client.sendall(b"x"); assert peer.recv(1) == b"x"
left, right = socket.socketpair(); left.send(b"y"); assert right.recv(1) == b"y"
assert any(a[4][0] in ("127.0.0.1", "::1") for a in socket.getaddrinfo("localhost", 80))
assert asyncio.run(asyncio.sleep(0.001, "z")) == "z"
async def child():
    process = await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
    return await process.wait()
assert asyncio.run(child()) == 3
with tempfile.TemporaryFile() as file:
    file.truncate(4096); mmap.mmap(file.fileno(), 4096)[0:1]
os.close(os.memfd_create("m")); os.sched_getaffinity(0); select.epoll().close(); time.sleep(0.001)
try:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
except OSError as error:
    assert error.strerror == "Address family not supported by protocol"
print("works", end="")
"#;
    if let Some(output) = output_under_filter("python3", &["-c", script]) {
        assert_eq!(output, "works");
    }
}
