//! CVE-2016-0728 and the leakage of keys: a program that inherits its caller's session keyring reads the keys in it, such
//! as those of an encrypted file system or of Kerberos.

use sbxrt_tests::{Fixtures, for_each_identity};

/// So many keys are left for the sandboxes of [`sandboxes_take_no_keys`], and so many sandboxes there are.
const KEYS_LEFT: usize = 6;
const SANDBOXES: usize = 12;

/// Each user has 200 keys by default, which must suffice for any number of sandboxes.
#[cfg(target_arch = "x86_64")]
#[test]
fn sandboxes_take_no_keys() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    // As after a login, the caller has a session keyring. Root may have more keys than anybody will ever fill.
    let caller = format!(
        "
import ctypes, os, sys
call = ctypes.CDLL(None).syscall
call.restype = ctypes.c_long
assert call(250, 1, None) > 0  # KEYCTL_JOIN_SESSION_KEYRING
mine = [line.split() for line in open('/proc/key-users') if int(line.split(':')[0]) == os.getuid()]
used, most = map(int, mine[0][3].split('/'))
if most <= 10000:
    for number in range(most - used - {KEYS_LEFT}):
        assert call(248, b'user', b'sbxrt-%d' % number, b'x', 1, -3) > 0  # add_key
os.execv(sys.argv[1], sys.argv[1:])
"
    );
    let items = "{\"args\": [\"3\"]}\n".repeat(SANDBOXES);
    for_each_identity(|sbxrt| {
        let jobs = SANDBOXES.to_string();
        let batch = sbxrt
            .command(["batch", "-q", "--jobs", &jobs, &image, "sleep"])
            .called_by(["python3", "-I", "-c", &caller])
            .stdin(items.as_bytes());
        let output = batch.output();
        let results = output.success().lines().count();
        assert_eq!(results, SANDBOXES, "{output}");
    });
}

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
