//! The first process of the container is sbxrt's own and has the program's id on the host. CVE-2016-9962: a program traces it
//! and takes what it has open. The kernel also lets the program set its limits: only the filter keeps it from making it fail
//! to report.

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

#[test]
fn nobody_inside_starves_the_first_process() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.python_rootfs();
    // What each would do where it is not refused leaves things as they are.
    let program = "import errno, os, resource, signal\n\
        attempts = dict(\n\
          prlimit=lambda: resource.prlimit(1, resource.RLIMIT_NOFILE),\n\
          affinity=lambda: os.sched_setaffinity(1, os.sched_getaffinity(1)),\n\
          priority=lambda: os.setpriority(os.PRIO_PROCESS, 1, os.getpriority(os.PRIO_PROCESS, 1)),\n\
          user=lambda: os.setpriority(os.PRIO_USER, 0, os.getpriority(os.PRIO_PROCESS, 0)),\n\
          scheduler=lambda: os.sched_setscheduler(1, os.SCHED_OTHER, os.sched_param(0)),\n\
          memory=lambda: open('/proc/1/mem'),\n\
          descriptors=lambda: os.readlink('/proc/1/fd/0'),\n\
          **{path: lambda path=path: os.open(path, os.O_WRONLY) for name in ('autogroup', 'oom_score_adj', 'oom_adj', 'timerslack_ns',\n\
            'clear_refs', 'comm', 'sched') for path in ('/proc/1/' + name, '/proc/1/task/1/' + name, '/proc/self/../1/' + name)\n\
            if os.path.exists(path)},\n\
        )\n\
        for name, attempt in attempts.items():\n\
        \x20 try: attempt()\n\
        \x20 except OSError as error:\n\
        \x20   if error.errno not in (errno.EPERM, errno.EACCES, errno.EROFS): raise\n\
        \x20 else: print('done:', name, flush=True)\n\
        # Of these the kernel sees to it that the first process of a namespace does not mind.\n\
        for number in signal.valid_signals():\n\
        \x20 try: os.kill(1, number)\n\
        \x20 except PermissionError: pass\n\
        os._exit(7)";
    attack(|sbxrt| {
        let output = python(sbxrt, &image, &["--json", "--cpus", "0.5"], program);
        let report = output.report();
        assert_eq!(report.bytes("stdout"), b"", "{report}");
        assert_eq!(report.code(), Some(7), "{report}");
    });
}
