"""What a program in a sandbox can reach, one line for each thing. Nothing is changed: system calls get arguments that
cannot succeed, files are opened and closed again."""

import ctypes
import errno
import fcntl
import os
import resource
import signal
import socket
import stat
import sys

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def name_of(error):
    return "yes" if error == 0 else errno.errorcode.get(error, str(error))


def call(number, *arguments):
    ctypes.set_errno(0)
    words = [ctypes.c_long(argument) for argument in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    return 0 if result != -1 else ctypes.get_errno()


def attempt(function, *arguments):
    try:
        function(*arguments)
        return "yes"
    except OSError as error:
        return name_of(error.errno)


def tell(*words):
    print(": ".join(str(word) for word in words))


def status():
    wanted = ("Cap", "NoNewPrivs", "Seccomp:", "Speculation")
    for line in open("/proc/self/status"):
        if line.startswith(wanted[:3]):
            tell("status", " ".join(line.split()))


# They end, stop, double or suspend whoever makes them, or write out everybody's files.
SKIPPED = {
    "x86_64": {15, 34, 57, 58, 60, 162, 231},
    "aarch64": {81, 93, 94, 139},
}[os.uname().machine]
REFUSED = {errno.EPERM: "refused (EPERM)", errno.ENOSYS: "absent (ENOSYS)"}


def in_child(function):
    """The result of a function of a child that is bounded in time."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            os.write(writer, str(function()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    text = os.read(reader, 100).decode()
    os.close(reader)
    _, ended = os.waitpid(child, 0)
    if os.WIFSIGNALED(ended):
        return "ends the process (%s)" % signal.Signals(os.WTERMSIG(ended)).name
    return int(text)


def system_calls():
    for number in range(471):
        if number in SKIPPED:
            tell("syscall", number, "not tried")
            continue
        result = in_child(lambda: call(number, -1, -1, -1, -1, -1, -1))
        if isinstance(result, int):
            result = REFUSED.get(result, "reaches the kernel")
        tell("syscall", number, result)


def sockets():
    kinds = {"stream": 1, "dgram": 2, "raw": 3, "seqpacket": 5}
    for family in range(48):
        for kind, number in kinds.items():
            for protocol in (0, 1, 6, 17, 33, 58, 115, 132, 136, 255, 262):
                # 0 is the usual one; the others say which more there are.
                try:
                    socket.socket(family, number, protocol).close()
                    tell("socket", "family %d %s protocol %d" % (family, kind, protocol))
                except OSError:
                    pass


TIOCSPTLCK = 0x40045431
TIOCGPTN = 0x80045430


def terminal():
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(master, TIOCSPTLCK, bytes(4))
    number = int.from_bytes(fcntl.ioctl(master, TIOCGPTN, bytes(4)), sys.byteorder)
    slave = os.open("/dev/pts/%d" % number, os.O_RDWR | os.O_NOCTTY)
    commands = {
        "TIOCSTI": 0x5412,
        "TIOCLINUX": 0x541C,
        "TIOCSETD": 0x5423,
        "TIOCCONS": 0x541D,
        "TIOCVHANGUP": 0x5437,
        "KDSETLED": 0x4B32,
        "VT_ACTIVATE": 0x5606,
        "TCGETS": 0x5401,
    }
    for name, command in commands.items():
        tell("terminal", name, attempt(fcntl.ioctl, slave, command, bytes(64)))


def open_for_writing(path):
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))


def writable(top, skip):
    for directory, names, files in os.walk(top):
        names[:] = sorted(name for name in names if not skip(os.path.join(directory, name)))
        for file in sorted(files):
            path = os.path.join(directory, file)
            # Not what is masked by a device.
            if not stat.S_ISREG(os.lstat(path).st_mode):
                continue
            if attempt(open_for_writing, path) == "yes":
                yield path.replace("/%d/" % os.getpid(), "/self/")


def kernel_files():
    # Its own process by one name, no threads, and the others below.
    def skip(path):
        parts = path.split("/")
        other = parts[2:3] and parts[2].isdigit() and parts[2] != str(os.getpid())
        return other or parts[3:4] and parts[3] in ("fd", "fdinfo", "map_files", "task")

    for path in writable("/proc", skip):
        tell("writable", path)
    for path in writable("/sys", lambda _: False):
        tell("writable", path)
    tell("entries of /sys", len(os.listdir("/sys")))
    for name in sorted(os.listdir("/proc")):
        if not name.isdigit():
            path = "/proc/" + name
            if os.path.isfile(path) and not os.path.islink(path):
                tell("/proc", name, readable(path))


def readable(path):
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        return "tells something" if os.read(descriptor, 1) else "is empty"
    except OSError:
        return "is refused"
    finally:
        if descriptor is not None:
            os.close(descriptor)


def first_process():
    for name in ("environ", "exe", "fd/0", "maps", "mem", "mountinfo", "ns/user", "root/etc", "stack", "syscall"):
        tell("process 1", name, attempt(lambda: os.close(os.open("/proc/1/" + name, os.O_RDONLY))))
    for top in ("/proc/1", "/proc/self/../1/task/1"):
        # No directory of descriptors of its own can be listed.
        for path in writable(top, lambda path: False):
            tell("process 1", "writable", path)
    tell("process 1", "signal 0", attempt(os.kill, 1, 0))
    tell("process 1", "priority of the user's processes", attempt(os.setpriority, os.PRIO_USER, 0, 0))
    processes = [name for name in os.listdir("/proc") if name.isdigit()]
    tell("processes that are listed besides its own", len([pid for pid in processes if int(pid) != os.getpid()]))


def namespaces():
    numbers = {"x86_64": (272, 308), "aarch64": (97, 268)}[os.uname().machine]
    kinds = {
        "mnt": 0x20000,
        "cgroup": 0x2000000,
        "uts": 0x4000000,
        "ipc": 0x8000000,
        "user": 0x10000000,
        "pid": 0x20000000,
        "net": 0x40000000,
        "time": 0x80,
    }
    for name, flag in kinds.items():
        tell("unshare", name, name_of(in_child(lambda: call(numbers[0], flag))))
        with open("/proc/self/ns/" + name) as own:
            tell("setns", name, name_of(in_child(lambda: call(numbers[1], own.fileno(), flag))))


def devices():
    for directory, names, files in os.walk("/dev"):
        names.sort()
        for file in sorted(files + [name for name in names if os.path.islink(os.path.join(directory, name))]):
            path = os.path.join(directory, file)
            found = os.lstat(path)
            if stat.S_ISLNK(found.st_mode):
                what = "-> " + os.readlink(path)
            elif stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
                what = "%s %d:%d, opens for writing: %s" % (
                    stat.filemode(found.st_mode)[0],
                    os.major(found.st_rdev),
                    os.minor(found.st_rdev),
                    attempt(open_for_writing, path),
                )
            else:
                what = stat.filemode(found.st_mode)
            if not path.startswith("/dev/pts/") or file == "ptmx":
                tell("device", path, what)
    for kind, mode in (("character device", stat.S_IFCHR), ("block device", stat.S_IFBLK)):
        tell("make", kind, attempt(os.mknod, "/tmp/device", mode | 0o600, os.makedev(1, 3)))


def mounts():
    for line in open("/proc/self/mountinfo"):
        before, after = line.rstrip("\n").split(" - ")
        target, options = before.split()[4:6]
        kind = after.split()[0]
        tell("mount", target, kind, options)


def session():
    own = os.getpid()
    tell("leads its session and process group", os.getsid(0) == own and os.getpgid(0) == own)


def limits():
    for name in ("CORE", "NOFILE", "NICE", "RTPRIO"):
        tell("limit", name, "%d %d" % resource.getrlimit(getattr(resource, "RLIMIT_" + name)))


def descriptors():
    for name in sorted(os.listdir("/proc/self/fd")):
        if int(name) < 3 or os.path.exists("/proc/self/fd/" + name):
            target = os.readlink("/proc/self/fd/" + name)
            if not target.startswith("/proc/"):
                tell("descriptor", name, target.split(":")[0])


for section in (
    descriptors,
    status,
    session,
    limits,
    mounts,
    devices,
    namespaces,
    first_process,
    kernel_files,
    terminal,
    sockets,
    system_calls,
):
    section()
    sys.stdout.flush()
