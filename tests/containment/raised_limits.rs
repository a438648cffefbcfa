//! A program that takes back what was taken from it: limits, priority, processors, its score with the kernel's OOM
//! killer, its dumps.

use sbxrt_tests::Fixtures;

use crate::{attack, python};

#[test]
fn nothing_that_was_limited_can_be_raised() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.python_rootfs();
    let program = r"
import ctypes, os, resource
libc = ctypes.CDLL(None, use_errno=True)
def attempt(what, function):
    try:
        function()
        print('managed to', what)
    except (OSError, ValueError):
        pass
for name in ('CPU', 'FSIZE', 'DATA', 'STACK', 'CORE', 'NPROC', 'NOFILE', 'MEMLOCK', 'AS', 'RTPRIO', 'NICE'):
    number = getattr(resource, 'RLIMIT_' + name, {'NICE': 13, 'RTPRIO': 14}.get(name))
    soft, hard = resource.getrlimit(number)
    if hard == resource.RLIM_INFINITY: continue
    for wanted in (hard + 1, resource.RLIM_INFINITY):
        try:
            resource.setrlimit(number, (hard, wanted))
        except (OSError, ValueError):
            pass
    if resource.getrlimit(number)[1] != hard: print('managed to raise', name)
attempt('be nice to oneself', lambda: os.setpriority(os.PRIO_PROCESS, 0, -20))
attempt('be real-time', lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
attempt('be round-robin', lambda: os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1)))
class Deadline(ctypes.Structure):
    _fields_ = [('size', ctypes.c_uint32), ('policy', ctypes.c_uint32), ('flags', ctypes.c_uint64), ('nice', ctypes.c_int32),
                ('priority', ctypes.c_uint32), ('runtime', ctypes.c_uint64), ('deadline', ctypes.c_uint64), ('period', ctypes.c_uint64)]
number = {'x86_64': 314, 'aarch64': 274}[os.uname().machine]
if libc.syscall(number, 0, ctypes.byref(Deadline(48, 6, 0, 0, 0, 9 * 10**6, 10**7, 10**7)), 0) == 0: print('managed to have deadlines')
def write(path, text):
    with open(path, 'w') as file: file.write(text)
score = int(open('/proc/self/oom_score_adj').read())
attempt('be spared by the OOM killer', lambda: write('/proc/self/oom_score_adj', str(score - 1)))
attempt('be spared at all', lambda: write('/proc/self/oom_score_adj', '-1000'))
attempt('write a setting', lambda: write('/proc/sys/vm/overcommit_memory', '1'))
attempt('write a setting of the namespace', lambda: write('/proc/sys/user/max_user_namespaces', '100'))
attempt('map ids', lambda: write('/proc/self/uid_map', '0 0 4294967295'))
attempt('allow groups', lambda: write('/proc/self/setgroups', 'allow'))
attempt('be somebody else', lambda: os.setuid(12345))
if libc.sethostname(b'x', 1) == 0: print('managed to change the host name')
# Its own memory is its own: what it may do by itself it may do through a file.
write('/proc/self/coredump_filter', '0x7f')
with open('/proc/self/mem', 'r+b', 0) as memory:
    cell = ctypes.create_string_buffer(b'a')
    memory.seek(ctypes.addressof(cell))
    memory.write(b'b')
    print('own memory', cell.value == b'b')
";
    attack(|sbxrt| {
        let output = python(sbxrt, &image, &[], program);
        assert_eq!(output.success(), "own memory True\n", "{output}");
    });
}

#[test]
fn all_processors_at_the_highest_priority_are_still_the_share_that_was_given() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.python_rootfs();
    let program = r"
import os
for _ in range(7):
    if os.fork() == 0: break
try: os.sched_setaffinity(0, range(os.cpu_count()))
except OSError: pass
try: os.setpriority(os.PRIO_PROCESS, 0, -20)
except OSError: pass
while True: pass
";
    attack(|sbxrt| {
        let output = python(
            sbxrt,
            &image,
            &["--json", "--cpus", "0.5", "--timeout", "3s"],
            program,
        );
        let report = output.report();
        assert_eq!(report.kind(), "timeout", "{report}");
        let used = report.cpu_time().as_secs_f64() / report.wall_time().as_secs_f64();
        assert!(used < 0.75, "{used} processors: {report}");
    });
}

#[test]
fn a_crash_leaves_no_dump() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.python_rootfs();
    attack(|sbxrt| {
        let directory = sbxrt.scratch("volume");
        let volume = format!("{}:/v", directory.display());
        let program = "import ctypes, resource\nprint(resource.getrlimit(resource.RLIMIT_CORE), flush=True)\nctypes.string_at(0)";
        let output = python(
            sbxrt,
            &image,
            &["--json", "-v", &volume, "-w", "/v"],
            program,
        );
        let report = output.report();
        assert_eq!(
            (report.kind(), report.signal()),
            ("signaled", Some("SIGSEGV")),
            "{report}"
        );
        // 1 is what the kernel takes for "not into a pipe either", and less than a dump.
        assert_eq!(report.bytes("stdout"), b"(1, 1)\n", "{report}");
        assert_eq!(directory.read_dir().unwrap().count(), 0, "{report}");
    });
}
