//! CVE-2016-0728 and the leakage of keys: a program that inherits its caller's session keyring reads the keys in it, such
//! as those of an encrypted file system or of Kerberos.

use sbxrt_tests::{Fixtures, for_each_identity};

#[cfg(target_arch = "x86_64")]
#[test]
fn the_session_keyring_is_a_fresh_one() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.python_rootfs();
    // The caller has a session keyring with a key in it, and becomes sbxrt.
    let caller = "
import ctypes, os, sys
call = ctypes.CDLL(None).syscall
call.restype = ctypes.c_long
assert call(250, 1, None) > 0  # KEYCTL_JOIN_SESSION_KEYRING
assert call(248, b'user', b'sbxrt-canary', b'secret', 6, -3) > 0
assert call(250, 10, -3, b'user', b'sbxrt-canary', 0) > 0  # KEYCTL_SEARCH
os.execv(sys.argv[1], sys.argv[1:])
";
    // Whether or not the filter lets it ask.
    let program = "
import ctypes, errno
call = ctypes.CDLL(None, use_errno=True).syscall
call.restype = ctypes.c_long
found = call(250, 10, -3, b'user', b'sbxrt-canary', 0)
print('found' if found > 0 else errno.errorcode[ctypes.get_errno()])
";
    for_each_identity(|sbxrt| {
        for (policy, expected) in [("builtin", "EPERM\n"), ("unconfined", "ENOKEY\n")] {
            let policy = format!("--security-opt=seccomp={policy}");
            let run = sbxrt
                .run([&policy, &image, "python3", "-I", "-c", program])
                .called_by(["python3", "-I", "-c", caller]);
            let output = run.output();
            assert_eq!(output.success(), expected, "{policy}: {output}");
        }
    });
}
