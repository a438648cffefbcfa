//! CVE-2016-9962: a program traces the runtime's own process in its container and takes what that has open.

use sbxrt_tests::Fixtures;

use crate::{attack, python};

#[test]
fn the_first_process_gives_nothing_away_and_cannot_be_stopped() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.python_rootfs();
    let program = r"
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
def attempt(what, function):
    try:
        print('managed to', what, function())
    except OSError:
        pass
# Root may see how many there are, and nothing else of them.
for name in os.listdir('/proc/1/fd') if os.access('/proc/1/fd', os.R_OK) else range(64):
    attempt('look at a descriptor', lambda: os.readlink('/proc/1/fd/%s' % name))
    attempt('open a descriptor', lambda: os.open('/proc/1/fd/%s' % name, os.O_RDONLY))
attempt('read the root', lambda: os.readlink('/proc/1/root'))
attempt('read the executable', lambda: os.readlink('/proc/1/exe'))
attempt('open memory', lambda: os.open('/proc/1/mem', os.O_RDWR))
attempt('read the map', lambda: open('/proc/1/maps').read(1))
attempt('read the environment', lambda: open('/proc/1/environ').read())
if libc.ptrace(16, 1, 0, 0) == 0: print('managed to trace')
pidfd = os.pidfd_open(1)
if libc.syscall(438, pidfd, 0, 0) != -1: print('managed to take a descriptor')
# A signal that it cannot ignore is one that does not reach it: it is the first process of its namespace.
for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGSEGV, signal.SIGCHLD):
    try:
        os.kill(1, number)
    except OSError:
        pass
state = [line for line in open('/proc/1/status') if line.startswith('State')][0].split()[1]
print('it is stopped' if state == 'T' else 'it goes on')
";
    attack(|sbxrt| {
        let output = python(sbxrt, &image, &["--json"], program);
        let report = output.report();
        assert_eq!(
            (report.kind(), report.code()),
            ("exited", Some(0)),
            "{report}"
        );
        let said = report.bytes("stdout");
        assert_eq!(String::from_utf8_lossy(&said), "it goes on\n", "{report}");
    });
}
