//! CVE-2017-5226: a program puts characters into its caller's terminal with `TIOCSTI`, which the caller's shell then runs.

use sbxrt_tests::Fixtures;

use crate::{attack, python};

#[test]
fn nothing_can_be_typed_into_a_terminal() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.python_rootfs();
    // TIOCSTI, TIOCLINUX with its paste, and both with bits that the kernel does not look at but a filter might.
    let program = r"
import fcntl, os
print('session of its own', os.getsid(0) == os.getpid() or os.getsid(0) == os.getppid())
for request in (0x5412, 0x541C, 0x100005412, 0x7FFFFFFF00005412, 0x10000541C):
    try:
        # Python's own check of the range is not what is tested.
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.ioctl(0, ctypes.c_ulong(request), ctypes.create_string_buffer(b'\n')) != -1:
            print('typed', hex(request))
        elif ctypes.get_errno() != 1:
            print(hex(request), os.strerror(ctypes.get_errno()))
    except OSError:
        pass
";
    attack(|sbxrt| {
        for options in [&["-t"][..], &[]] {
            let output = python(sbxrt, &image, options, program);
            assert_eq!(
                output.success().trim(),
                "session of its own True",
                "{output}"
            );
        }
    });
}
