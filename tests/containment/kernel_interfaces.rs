//! Kernel interfaces that most escapes go through, and that no program which computes something needs.

use sbxrt_tests::Fixtures;

use crate::{attack, python};

#[test]
fn dangerous_system_calls_are_refused() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.python_rootfs();
    // By name through the C library, so that it holds on every processor. Refused: EPERM (1) or ENOSYS (38); the
    // filter must answer before the kernel looks at the arguments, which none of these calls could succeed with.
    let program = r"
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, function, *arguments):
    ctypes.set_errno(0)
    result = function(*arguments)
    error = ctypes.get_errno()
    if result != -1 or error not in (1, 38):
        print(name, result, os.strerror(error))
attempt('mount', libc.mount, b'none', b'/no/such/place', b'tmpfs', 0, None)
attempt('umount', libc.umount2, b'/no/such/place', 2)
attempt('pivot_root', libc.syscall, {'x86_64': 155, 'aarch64': 41}[os.uname().machine], b'/no/such/place', b'/no/such/place')
attempt('setns', libc.setns, 0, 0)
attempt('unshare user', libc.unshare, 0x10000000)
attempt('ptrace traceme', libc.ptrace, 16, 1, 0, 0)
attempt('keyctl', libc.syscall, {'x86_64': 250, 'aarch64': 219}[os.uname().machine], 0, -3, 0)
attempt('add_key', libc.syscall, {'x86_64': 248, 'aarch64': 217}[os.uname().machine], 0, 0, 0, 0, 0)
attempt('bpf', libc.syscall, {'x86_64': 321, 'aarch64': 280}[os.uname().machine], 0, 0, 0)
attempt('perf_event_open', libc.syscall, {'x86_64': 298, 'aarch64': 241}[os.uname().machine], 0, 0, -1, -1, 0)
attempt('userfaultfd', libc.syscall, {'x86_64': 323, 'aarch64': 282}[os.uname().machine], 0)
attempt('io_uring_setup', libc.syscall, 425, 1, 0)
attempt('fsopen', libc.syscall, 430, b'tmpfs', 0)
attempt('open_by_handle_at', libc.syscall, {'x86_64': 304, 'aarch64': 265}[os.uname().machine], -100, 0, 0)
attempt('kexec_load', libc.syscall, {'x86_64': 246, 'aarch64': 104}[os.uname().machine], 0, 0, 0, 0xffff)
attempt('init_module', libc.syscall, {'x86_64': 175, 'aarch64': 105}[os.uname().machine], 0, 0, b'')
attempt('reboot', libc.reboot, 0x1234567)
attempt('sethostname', libc.sethostname, b'x', -1)
attempt('chroot', libc.chroot, b'/no/such/place')
";
    // A debugger inside one's own sandbox harms nobody, so ptrace may be allowed where Yama or the kernel bounds it.
    attack(|sbxrt| {
        let output = python(sbxrt, &image, &[], program);
        let let_through: Vec<&str> = output
            .success()
            .lines()
            .filter(|line| !line.starts_with("ptrace"))
            .collect();
        assert_eq!(let_through, Vec::<&str>::new(), "{output}");
    });
}
