//! What the kernel counts for a user and not for a process: pipes, inotify, message queues, keys, timers, locks, files. A
//! program that uses them up must meet its own limit, and nobody else of the same user may notice.

use std::fs;
use std::time::Duration;

use sbxrt_tests::{Fixtures, eventually};

use crate::attack;

/// Everything at once, until each is refused; then it says so and stays.
const GREEDY: &str = r"
import ctypes, fcntl, os, select, socket, time
libc = ctypes.CDLL(None, use_errno=True)
def use_up(most, take):
    kept = []
    try:
        while len(kept) < most: kept.append(take())
    except OSError:
        pass
    return kept
def call(function, *arguments):
    result = function(*arguments)
    if result == -1: raise OSError(ctypes.get_errno(), '')
    return result
def in_many_processes(take):
    # Each may have 1024 files.
    for _ in range(8):
        if os.fork() == 0:
            kept = use_up(100000, take)
            time.sleep(600)
def full_pipe():
    pair = os.pipe()
    os.set_blocking(pair[1], False)
    try: fcntl.fcntl(pair[1], 1031, 1 << 20)
    except OSError: pass
    os.write(pair[1], b'x' * (64 << 10))
    return pair
in_many_processes(full_pipe)
in_many_processes(lambda: select.epoll())
in_many_processes(lambda: socket.socketpair())
watches = []
def watch():
    fd = call(libc.inotify_init1, 0)
    watches.append(fd)
    return fd
kept = use_up(100000, watch)
number = 0
def watch_more():
    global number
    number += 1
    name = '/tmp/%d' % number
    os.close(os.open(name, os.O_CREAT))
    return call(libc.inotify_add_watch, watches[0], name.encode(), 2)
kept = use_up(20000, watch_more)
os.closerange(3, 1024)
queues = 0
def queue():
    global queues
    queues += 1
    return call(libc.mq_open, b'/%d' % queues, 0o102, 0o600, None)
libc.mq_open.restype = ctypes.c_int
kept = use_up(1000, queue)
kept = use_up(1000, lambda: call(libc.msgget, 0, 0o1600))
terminals = use_up(1000, os.openpty)
kept = use_up(100000, lambda: call(libc.semget, 0, 200, 0o1600))
timer = ctypes.c_void_p()
kept = use_up(200000, lambda: call(libc.timer_create, 0, None, ctypes.byref(timer)))
kept = use_up(10, lambda: call(libc.syscall, 248, b'user', b'sbxrt', b'x', 1, -3))
io_setup = {'x86_64': 206, 'aarch64': 0}[os.uname().machine]
for events in (65536, 4096, 256, 1):
    kept = use_up(1000, lambda: call(libc.syscall, io_setup, events, ctypes.byref(ctypes.c_ulong(0))))
open('/out/full', 'w').close()
time.sleep(600)
";

#[test]
fn a_second_sandbox_works_while_the_first_takes_all_there_is() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.python_rootfs();
    // A modest use of each.
    let modest = r"
import ctypes, os, select, socket
libc = ctypes.CDLL(None, use_errno=True)
def check(what, result):
    if result < 0: print(what, os.strerror(ctypes.get_errno()))
    return result
pipes = [os.pipe() for _ in range(16)]
for pair in pipes: os.write(pair[1], b'x' * 4096)
select.epoll().register(pipes[0][0])
socket.socketpair()
check('watch', libc.inotify_add_watch(check('inotify', libc.inotify_init1(0)), b'/tmp', 2))
check('message queue', libc.mq_open(b'/mine', 0o102, 0o600, None))
check('System V queue', libc.msgget(0, 0o1600))
check('semaphores', libc.semget(0, 4, 0o1600))
os.openpty()
timer = ctypes.c_void_p()
check('timer', libc.timer_create(0, None, ctypes.byref(timer)))
if os.fork() == 0: os._exit(0)
os.wait()
open('/tmp/mine', 'w').write('x' * 100000)
print('works')
";
    attack(|sbxrt| {
        let directory = sbxrt.scratch("volume");
        let volume = format!("{}:/out", directory.display());
        let greedy = [
            "-v",
            &volume,
            "--cpus",
            "1",
            "--timeout",
            "60s",
            "--json",
            &image,
            "python3",
            "-I",
            "-S",
            "-c",
            GREEDY,
        ];
        let mut greedy = sbxrt.run(greedy).spawn();
        let full = eventually(Duration::from_secs(50), || {
            greedy.try_wait().unwrap().is_some() || directory.join("full").exists()
        });
        let output = sbxrt
            .run([&image, "python3", "-I", "-S", "-c", modest])
            .output();
        // This one is counted for the whole machine.
        let setting = |name: &str| {
            let text = fs::read_to_string(format!("/proc/sys/fs/{name}")).unwrap();
            text.trim().parse::<u64>().unwrap()
        };
        let asynchronous = (setting("aio-nr"), setting("aio-max-nr"));
        let was_there = greedy.try_wait().unwrap().is_none();
        greedy.kill().unwrap();
        let ended = greedy.wait_with_output().unwrap();
        assert!(
            full && was_there && fs::exists(directory.join("full")).unwrap(),
            "{ended:?}"
        );
        assert_eq!(output.success(), "works\n", "{output}");
        assert!(asynchronous.0 < asynchronous.1, "{asynchronous:?}");
    });
}

/// Descriptors on their way, from as many threads at once as there may be: each may be on its way when the count is full.
const FLOOD: &str = r"
import array, os, socket, threading, time
kept = []
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0] * 253))]
def flood():
    while True:
        pair = socket.socketpair()
        kept.append(pair)
        pair[0].setblocking(False)
        while True:
            try:
                pair[0].sendmsg([b'x'], rights)
            except BlockingIOError:
                break
threads = [threading.Thread(target=flood) for _ in range(32)]
# A thread ends where it is refused: too many references, or too many files.
threading.excepthook = lambda _: None
for thread in threads: thread.start()
for thread in threads: thread.join()
refused = 0
try:
    pair = socket.socketpair()
    pair[0].sendmsg([b'x'], rights)
except OSError as error:
    refused = error.errno
open('/out/full', 'w').write(str(refused))
time.sleep(600)
";

#[test]
fn descriptors_on_their_way_keep_nobody_else_from_starting() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.python_rootfs();
    attack(|sbxrt| {
        let directory = sbxrt.scratch("volume");
        let volume = format!("{}:/out", directory.display());
        let profile = sbxrt.home().join("profile");
        // Whose listener a thread hands over.
        let rules = r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            { "names": ["reboot"], "action": "SCMP_ACT_KILL" },
            { "names": ["prlimit64", "setrlimit", "sendmsg"], "action": "SCMP_ACT_ERRNO" }
        ] }"#;
        fs::write(&profile, rules).unwrap();
        let custom = format!("--security-opt=seccomp={}", profile.display());
        let mut flood = sbxrt
            .run([
                "-v",
                &volume,
                "--timeout",
                "100s",
                "--json",
                &image,
                "python3",
                "-I",
                "-S",
                "-c",
                FLOOD,
            ])
            .spawn();
        let full = eventually(Duration::from_secs(60), || {
            flood.try_wait().unwrap().is_some()
                || fs::read(directory.join("full")).is_ok_and(|errno| !errno.is_empty())
        });
        let refused = fs::read_to_string(directory.join("full")).unwrap_or_default();
        // An ordinary caller's own limit is below what is on its way.
        let second = |options: &[&str]| {
            let command = [&*image, "python3", "-I", "-S", "-c", "print('works')"];
            let run = sbxrt.run([options, &command].concat());
            run.called_by(["sh", "-c", "ulimit -Sn 256; exec \"$@\"", "sh"])
                .output()
        };
        let outputs = [
            second(&[]),
            second(&[&custom]),
            second(&["-m0", "--cpus=0"]),
        ];
        let was_there = flood.try_wait().unwrap().is_none();
        flood.kill().unwrap();
        let ended = flood.wait_with_output().unwrap();
        assert!(full && was_there, "{ended:?}");
        assert_eq!(refused, "109", "ETOOMANYREFS: {ended:?}");
        for output in outputs {
            assert_eq!(output.success(), "works\n", "{output}");
        }
    });
}

#[test]
fn a_lock_on_a_file_of_the_image_locks_it_for_this_run_alone() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.python_rootfs();
    attack(|sbxrt| {
        let directory = sbxrt.scratch("volume");
        let volume = format!("{}:/out", directory.display());
        let storm = r"
import fcntl, os
held = []
for name in os.listdir('/usr/bin'):
    try:
        held.append(open('/usr/bin/' + name))
        fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pass
for _ in range(4):
    if os.fork() == 0: break
open('/out/locked%d' % os.getpid(), 'w').close()
held.append(open('/usr/bin/python3'))
while True:
    fcntl.flock(held[-1], fcntl.LOCK_SH)
    fcntl.flock(held[-1], fcntl.LOCK_UN)
";
        let words = [
            "-v",
            &volume,
            "--timeout",
            "60s",
            &image,
            "python3",
            "-I",
            "-S",
            "-c",
            storm,
        ];
        let mut storm = sbxrt.run(words).spawn();
        let locked = eventually(Duration::from_secs(30), || {
            storm.try_wait().unwrap().is_some() || directory.read_dir().unwrap().count() >= 4
        });
        let output = sbxrt
            .run([&image, "python3", "-I", "-S", "-c", "print('works')"])
            .output();
        let was_there = storm.try_wait().unwrap().is_none();
        storm.kill().unwrap();
        storm.wait().unwrap();
        assert!(locked && was_there);
        assert_eq!(output.success(), "works\n", "{output}");
    });
}
