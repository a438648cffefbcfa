//! Limits on this host, whatever it offers: held by the mechanism that the report names, or refused.

use std::time::Duration;

use sbxrt_tests::{Fixtures, for_each_identity};

/// Mechanisms that `--require LIMIT=cgroup` accepts.
const CGROUPS: [&str; 3] = ["cgroup2", "systemd", "cgroup1"];

#[test]
fn a_memory_limit_is_held_by_the_mechanism_that_the_report_names() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.python_rootfs();
        let program = "import time; kept = b'x' * (256 << 20); time.sleep(1); print('not held')";
        let report = sbxrt.report(["-m", "64m", &image, "python3", "-I", "-c", program]);
        assert!(
            !String::from_utf8_lossy(&report.bytes("stdout")).contains("not held"),
            "{report}"
        );
        let mechanism = report.enforcement("memory");
        match report.kind() {
            "oom" => assert!(
                CGROUPS.contains(&mechanism) || mechanism == "watchdog",
                "{report}"
            ),
            // Python says MemoryError where mmap fails.
            "exited" => assert_eq!((mechanism, report.code()), ("rlimit", Some(1)), "{report}"),
            other => panic!("{other}: {report}"),
        }
    });
}

/// What a sandbox can take without any process having it: each takes 160 MiB or much more, and stays.
const MEMORY_OF_NOBODY: [(&str, &str); 6] = [
    (
        "scratch",
        "f = open('/tmp/x', 'wb')\nfor i in range(160): f.write(bytes(1 << 20))",
    ),
    (
        "/dev/shm",
        "f = open('/dev/shm/x', 'wb')\nfor i in range(160): f.write(bytes(1 << 20))",
    ),
    (
        "--tmpfs",
        "f = open('/m/x', 'wb')\nfor i in range(160): f.write(bytes(1 << 20))",
    ),
    (
        "a file without a name, on its way in a socket",
        "import os, socket\nf = os.open('/dev/shm', os.O_TMPFILE | os.O_RDWR)\nfor i in range(160): os.write(f, bytes(1 << 20))\n\
         ends = socket.socketpair()\nsocket.send_fds(ends[0], [b'x'], [f])\nos.close(f)",
    ),
    (
        "a System V segment",
        "import ctypes\nc = ctypes.CDLL(None)\nc.shmat.restype = ctypes.c_void_p\nn = c.shmget(0, 160 << 20, 0o600)\n\
         a = c.shmat(n, None, 0)\nctypes.memset(a, 1, 160 << 20)\nc.shmdt(ctypes.c_void_p(a))",
    ),
    (
        // Of each 2 MiB one page is looked at: that is the page of zeros, which is nobody's, and takes a page of the table.
        "page tables",
        "import mmap\nm = mmap.mmap(-1, 1 << 38, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)\n\
         m.madvise(mmap.MADV_NOHUGEPAGE)\nfor i in range(0, 1 << 38, 1 << 21): m[i]",
    ),
];

#[test]
fn memory_that_no_process_holds_counts() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.python_rootfs();
        for (name, taking) in MEMORY_OF_NOBODY {
            let program =
                format!("{taking}\nprint('taken', flush=True)\nimport time; time.sleep(300)");
            let words = [
                "-m",
                "64m",
                "--scratch-size",
                "256m",
                "--shm-size",
                "256m",
                "--tmpfs",
                "/m:size=256m",
                "--timeout",
                "120s",
                &image,
                "python3",
                "-I",
                "-c",
                &program,
            ];
            let report = sbxrt.report(words);
            assert_eq!(report.kind(), "oom", "{name}: {report}");
        }
    });
}

#[test]
fn what_is_in_memory_twice_over_counts_once() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.python_rootfs();
        // A file in memory that four processes have mapped, and anonymous memory that they share.
        let program = "import mmap, os, time\n\
            f = open('/dev/shm/x', 'w+b')\nf.truncate(24 << 20)\n\
            maps = [mmap.mmap(f.fileno(), 24 << 20), mmap.mmap(-1, 24 << 20)]\n\
            def touch(): return sum(m[i] for m in maps for i in range(0, 24 << 20, 4096))\n\
            for m in maps: m[:] = b'x' * (24 << 20)\n\
            children = []\n\
            for n in range(4):\n  pid = os.fork()\n  if pid == 0:\n    touch(); time.sleep(1); os._exit(0)\n  children.append(pid)\n\
            print([os.waitpid(pid, 0)[1] for pid in children])";
        let report = sbxrt.report(["-m", "128m", &image, "python3", "-I", "-c", program]);
        assert_eq!(report.bytes("stdout"), b"[0, 0, 0, 0]\n", "{report}");
        assert!(report.memory_peak() <= 128 << 20, "{report}");
    });
}

#[test]
fn time_of_children_that_nobody_waits_for_is_in_the_account() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    // Twenty of 50 ms each.
    let program = "import os, signal, time\n\
        def spin(seconds):\n  end = time.process_time() + seconds\n  while time.process_time() < end: pass\n\
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n\
        for n in range(20):\n\
        \x20 if os.fork() == 0: spin(0.05); os._exit(0)\n\
        \x20 try: os.wait()\n\
        \x20 except ChildProcessError: pass";
    for_each_identity(|sbxrt| {
        let image = fixtures.python_rootfs();
        let words = ["--timeout", "120s", &image, "python3", "-I", "-c", program];
        let report = sbxrt.report(words);
        assert_eq!(report.code(), Some(0), "{report}");
        let used = report.cpu_time();
        assert!(
            (Duration::from_millis(400)..Duration::from_secs(4)).contains(&used),
            "{used:?}: {report}"
        );
    });
}

#[test]
fn a_parent_that_only_seems_to_lend_its_memory_counts() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    // The child makes itself look like its parent in size, and writes to all that it has from it. The parent sleeps until it
    // ends (CLONE_VFORK), but the two are not one memory (no CLONE_VM).
    let program = "import ctypes, mmap, os, platform, signal, time\n\
        CLONE = {'x86_64': 56, 'aarch64': 220}[platform.machine()]\n\
        def resident(pid):\n\
        \x20 lines = dict(line.split(':', 1) for line in open(f'/proc/{pid}/status'))\n\
        \x20 return sum(int(lines[key].split()[0]) for key in ('RssAnon', 'RssFile', 'RssShmem'))\n\
        kept, room = [mmap.mmap(-1, 60 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for n in range(2)]\n\
        for i in range(0, len(kept), 4096): kept[i] = 7\n\
        for used in range(0, 1 << 20, 4096): room[used] = 1\n\
        if ctypes.CDLL(None).syscall(CLONE, 0x4000 | signal.SIGCHLD, 0, 0, 0, 0) == 0:\n\
        \x20 for n in range(3):\n\
        \x20   while resident('self') < resident(os.getppid()): used += 4096; room[used] = 1\n\
        \x20   for i in range(0, len(kept), 4096): kept[i] = n\n\
        \x20   time.sleep(0)\n\
        \x20 time.sleep(300)";
    for_each_identity(|sbxrt| {
        let image = fixtures.python_rootfs();
        let words = [
            "-m",
            "100m",
            "--timeout",
            "120s",
            &image,
            "python3",
            "-I",
            "-c",
            program,
        ];
        let report = sbxrt.report(words);
        assert_eq!(report.kind(), "oom", "{report}");
    });
}

#[test]
fn a_program_that_starts_others_counts_once() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    // More than half of the limit, and children that have the same memory until they execute, from the first thread and
    // from another one.
    let program = "import subprocess, threading, time\n\
        kept = b'x' * (40 << 20)\n\
        def work():\n\
        \x20 end = time.monotonic() + 2\n\
        \x20 while time.monotonic() < end: subprocess.run(['/bin/true'], check=True)\n\
        work()\n\
        other = threading.Thread(target=work)\n\
        other.start()\n\
        other.join()\n\
        print('done')";
    for_each_identity(|sbxrt| {
        let image = fixtures.python_rootfs();
        let words = [
            "-m",
            "64m",
            "--timeout",
            "120s",
            &image,
            "python3",
            "-I",
            "-c",
            program,
        ];
        let report = sbxrt.report(words);
        assert_eq!(report.bytes("stdout"), b"done\n", "{report}");
        assert!(report.memory_peak() >= 40 << 20, "{report}");
        assert!(report.memory_peak() <= 64 << 20, "{report}");
    });
}

#[test]
fn a_peak_is_not_more_than_there_was() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    // 24 MiB in memory that thirty processes have, of which the sum is far above the limit.
    let program = "import mmap, os, time\n\
        shared = mmap.mmap(-1, 24 << 20)\n\
        shared[:] = b'x' * len(shared)\n\
        for n in range(30):\n\
        \x20 if os.fork() == 0:\n\
        \x20   for i in range(0, len(shared), 4096): shared[i]\n\
        \x20   time.sleep(300)\n\
        time.sleep(3)";
    for_each_identity(|sbxrt| {
        let image = fixtures.python_rootfs();
        let words = |memory, timeout| {
            [
                "-m",
                memory,
                "--timeout",
                timeout,
                &image,
                "python3",
                "-I",
                "-c",
                program,
            ]
        };
        // Above the limit, below it, and with none; ended by itself, and by its time.
        for (memory, timeout) in [
            ("256m", "120s"),
            ("256m", "2s"),
            ("2g", "2s"),
            ("0", "120s"),
        ] {
            let report = sbxrt.report(words(memory, timeout));
            let kind = if timeout == "2s" { "timeout" } else { "exited" };
            assert_eq!(report.kind(), kind, "{report}");
            let peak = report.memory_peak() >> 20;
            assert!((24..200).contains(&peak), "{memory}, {timeout}: {report}");
        }
    });
}

#[test]
fn the_limit_on_cpu_time_counts_all_processes() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let spin = "import os, signal, time\n\
        def spin(seconds):\n  end = time.process_time() + seconds\n  while time.process_time() < end: pass\n\
        def child(seconds):\n  pid = os.fork()\n  if pid == 0: spin(seconds); os._exit(0)\n  return pid\n";
    let programs = [
        ("one process", "while True: spin(1)"),
        (
            "children that are waited for",
            "while True: os.waitpid(child(0.2), 0)",
        ),
        (
            "children that nobody waits for",
            "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nwhile True:\n  child(0.2)\n  try: os.wait()\n  except ChildProcessError: pass",
        ),
    ];
    for_each_identity(|sbxrt| {
        let image = fixtures.python_rootfs();
        for (name, program) in programs {
            let program = format!("{spin}{program}");
            let report = sbxrt.report([
                "--cpu-time",
                "1s",
                "--timeout",
                "120s",
                &image,
                "python3",
                "-I",
                "-c",
                &program,
            ]);
            assert_eq!(report.kind(), "timeout", "{name}: {report}");
            assert!(report.has_hit("cpu_time"), "{name}: {report}");
            assert!(!report.has_hit("wall_time"), "{name}: {report}");
            assert_eq!(report.enforcement("cpu_time_ms"), "watchdog", "{report}");
            assert_eq!(report.exit_code(), Some(124), "{report}");
        }
        // So short that most of each is over before anybody looks. Each is a byte of output; nobody waits for any.
        let program = format!(
            "{spin}signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n\
             while True:\n  child(0.05)\n  os.write(1, b'.')\n  try: os.wait()\n  except ChildProcessError: pass"
        );
        let report = sbxrt.report([
            "--cpu-time",
            "1s",
            "--timeout",
            "120s",
            &image,
            "python3",
            "-I",
            "-c",
            &program,
        ]);
        assert!(report.has_hit("cpu_time"), "{report}");
        let used = report.bytes("stdout").len() * 50;
        assert!((300..=3_000).contains(&used), "{used} ms: {report}");
        let report = sbxrt.report([
            "--cpu-time",
            "60s",
            &image,
            "python3",
            "-I",
            "-c",
            "print(1)",
        ]);
        assert_eq!(
            (report.code(), report.has_hit("cpu_time")),
            (Some(0), false),
            "{report}"
        );
    });
}

#[test]
fn files_end_where_their_limits_say() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    // How far it gets, and the name of the error that stops it.
    let program = "import errno, os\n\
        def until_refused(step):\n  for n in range(5000):\n    try: step(n)\n    except OSError as error: return n, errno.errorcode[error.errno]\n\
        kept = []\n\
        print(until_refused(lambda n: kept.append(os.open('/dev/null', 0)))[1], len(os.listdir('/proc/self/fd')) if kept.pop() and not os.close(3) else '')\n\
        for fd in range(4, 64): \n  try: os.close(fd)\n  except OSError: pass\n\
        f = os.open('/tmp/long', os.O_CREAT | os.O_WRONLY)\n\
        print(until_refused(lambda n: os.write(f, bytes(4096))))\n\
        print(until_refused(lambda n: os.mkdir(f'/tmp/{n}'))[1])\n\
        g = os.open('/dev/shm/x', os.O_CREAT | os.O_WRONLY)\n\
        print(until_refused(lambda n: os.write(g, bytes(4096))))";
    for_each_identity(|sbxrt| {
        let image = fixtures.python_rootfs();
        let report = sbxrt.report([
            "--ulimit",
            "nofile=32:48",
            "--ulimit",
            "fsize=1048576",
            "--scratch-inodes",
            "100",
            "--shm-size",
            "512k",
            &image,
            "python3",
            "-I",
            "-c",
            program,
        ]);
        let said = String::from_utf8(report.bytes("stdout")).unwrap();
        let expected = "EMFILE 32\n(256, 'EFBIG')\nENOSPC\n(128, 'ENOSPC')\n";
        assert_eq!(said, expected, "{report}");
        for (limit, mechanism) in [
            ("nofile", "rlimit"),
            ("fsize", "rlimit"),
            ("scratch_inodes", "tmpfs"),
            ("shm", "tmpfs"),
        ] {
            assert_eq!(report.enforcement(limit), mechanism, "{report}");
        }
    });
}

#[test]
fn a_program_may_have_no_room_for_files_at_all() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        // A static program opens none before its first line. Its streams are open already.
        let image = fixtures.busybox_rootfs();
        let profile = sbxrt.home().join("profile");
        // With this one, calls are asked about, and nobody sets limits or sends descriptors any more.
        let rules = r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            { "names": ["uname"], "action": "SCMP_ACT_KILL" },
            { "names": ["setrlimit", "sendmsg", "close"], "action": "SCMP_ACT_ERRNO" },
            { "names": ["prlimit64"], "action": "SCMP_ACT_ERRNO", "args": [{ "index": 2, "value": 0, "op": "SCMP_CMP_NE" }] }
        ] }"#;
        std::fs::write(&profile, rules).unwrap();
        let custom = format!("--security-opt=seccomp={}", profile.display());
        for policy in [
            "--security-opt=seccomp=builtin",
            "--security-opt=seccomp=unconfined",
            &custom,
        ] {
            for files in ["0", "1", "2", "3", "4:5"] {
                let limit = format!("nofile={files}");
                let options = ["--quiet", policy, "--ulimit", &limit];
                let command = [&*image, "sh", "-c", "ulimit -Sn; ulimit -Hn"];
                let output = sbxrt.run([&options[..], &command].concat()).output();
                let (soft, hard) = files.split_once(':').unwrap_or((files, files));
                let expected = format!("{soft}\n{hard}\n");
                assert_eq!(output.success(), expected, "{policy} {limit}: {output}");
            }
        }
    });
}

#[test]
fn a_file_in_memory_is_a_file_or_is_refused() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let program = "import errno, os\n\
        try: os.ftruncate(os.memfd_create('x'), 2 << 20)\n\
        except OSError as error: print(errno.errorcode[error.errno])";
    for_each_identity(|sbxrt| {
        let image = fixtures.python_rootfs();
        let fsize = ["--ulimit", "fsize=1048576"];
        let words = [&fsize[..], &[&image, "python3", "-I", "-c", program]];
        let report = sbxrt.report(words.concat());
        // Nobody but a cgroup can count its pages.
        let expected: &[u8] = match report.enforcement("memory") {
            "watchdog" => b"ENOSYS\n",
            _ => b"EFBIG\n",
        };
        assert_eq!(report.bytes("stdout"), expected, "{report}");
    });
}

#[test]
fn a_full_set_of_files_is_told_from_full_bytes() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.busybox_rootfs();
        let script = "i=0; while mkdir /tmp/$i; do i=$((i + 1)); done; exit 3";
        let report = sbxrt.report(["--scratch-inodes", "100", &image, "sh", "-c", script]);
        assert_eq!(report.kind(), "disk", "{report}");
        assert!(report.has_hit("scratch_inodes"), "{report}");
        assert!(!report.has_hit("scratch"), "{report}");
    });
}

#[test]
fn whole_processors_cannot_be_won_back() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.python_rootfs();
        let program = "import os\ntry: os.sched_setaffinity(0, range(1024))\nexcept PermissionError: pass\nprint(len(os.sched_getaffinity(0)))";
        let report = sbxrt.report(["--cpus", "1", &image, "python3", "-I", "-c", program]);
        if report.enforcement("cpus") == "affinity" {
            assert_eq!(report.bytes("stdout"), b"1\n", "{report}");
        }
    });
}

#[test]
fn a_fork_bomb_stops_at_the_limit_on_processes() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        // Bounded: where the limit is not held, a true bomb by root would take the host along. There is one in the
        // virtual machine's tests.
        let script = "i=0; while [ $i -lt 500 ]; do sleep 5 & i=$((i + 1)); done; wait";
        let run = sbxrt.run([
            "--json",
            "--pids-limit",
            "30",
            "--timeout",
            "10s",
            &fixtures.busybox_rootfs(),
            "sh",
            "-c",
            script,
        ]);
        let output = run.output();
        let report = output.report();
        assert_eq!(report.kind(), "pids", "{report}");
        let mechanism = report.enforcement("pids");
        assert!(
            CGROUPS.contains(&mechanism) || ["rlimit", "watchdog"].contains(&mechanism),
            "{report}"
        );
    });
}

#[test]
fn what_cannot_be_enforced_as_required_is_refused() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.busybox_rootfs();
        let output = sbxrt
            .run([
                "--json",
                "-m",
                "64m",
                "--require",
                "memory=cgroup",
                &image,
                "true",
            ])
            .output();
        if output.code() == 0 {
            assert!(
                CGROUPS.contains(&output.report().enforcement("memory")),
                "{output}"
            );
        } else {
            assert_eq!(output.code(), 125, "{output}");
            let said = output.to_string();
            assert!(
                said.contains("memory") && said.contains("cgroup"),
                "{output}"
            );
        }
    });
}

#[test]
fn scratch_ends_where_its_limit_says() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.busybox_rootfs();
        let script = "head -c 20000000 /dev/zero >/tmp/x; wc -c </tmp/x";
        let output = sbxrt
            .run(["--scratch-size", "8m", &image, "sh", "-c", script])
            .output();
        let written: u64 = output.text().trim().parse().unwrap();
        assert!(written <= 8 << 20, "{output}");
        // Busybox's head has one message for every failed write.
        assert!(output.stderr.contains("head: standard output"), "{output}");
    });
}

#[test]
fn a_program_that_fails_in_a_full_file_system_ends_as_disk() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    let fill = |path: &str| format!("head -c 9000000 /dev/zero >{path} 2>/dev/null");
    // The script, what is said of it, what was full, and where.
    let table: [(String, &str, &[&str], Option<&str>); 7] = [
        (
            format!("{}; exit 3", fill("/tmp/x")),
            "disk",
            &["scratch"],
            Some("/"),
        ),
        (
            format!("{}; exit 3", fill("/x")),
            "disk",
            &["scratch"],
            Some("/"),
        ),
        (
            format!("{}; kill -ABRT $$", fill("/x")),
            "disk",
            &["scratch"],
            Some("/"),
        ),
        (
            format!("{}; exit 3", fill("/data/x")),
            "disk",
            &["scratch"],
            Some("/data"),
        ),
        // Files without contents.
        (
            "cd /data; seq 1 3000 | xargs touch; exit 3".to_owned(),
            "disk",
            &["scratch_inodes"],
            Some("/data"),
        ),
        (
            format!("{}; exit 0", fill("/tmp/x")),
            "exited",
            &["scratch"],
            Some("/"),
        ),
        (
            format!("{}; rm /tmp/x; exit 3", fill("/tmp/x")),
            "exited",
            &[],
            None,
        ),
    ];
    for_each_identity(|sbxrt| {
        for (script, kind, hit, path) in &table {
            let bounds = ["--scratch-size", "8m", "--tmpfs", "/data:size=1m"];
            let words = [
                &bounds[..],
                &["--timeout", "60s", &image, "sh", "-c", script],
            ];
            let report = sbxrt.report(words.concat());
            assert_eq!(
                (report.kind(), report.limits_hit().as_slice()),
                (*kind, *hit),
                "{script}: {report}"
            );
            let full = report.evidence("full").as_array().unwrap();
            let paths: Vec<_> = full
                .iter()
                .map(|space| space["path"].as_str().unwrap())
                .collect();
            assert_eq!(
                paths,
                path.iter().copied().collect::<Vec<_>>(),
                "{script}: {report}"
            );
            // Its exit status is its own.
            let own = report.evidence("exit_code").as_i64();
            assert_eq!(own.or(Some(134)), report.exit_code(), "{script}: {report}");
        }
        let script = "head -c 99000000 /dev/zero >/dev/shm/x 2>/dev/null; exit 3";
        let report = sbxrt.report([&image, "sh", "-c", script]);
        assert_eq!(
            (report.kind(), report.limits_hit()),
            ("disk", vec!["shm"]),
            "{report}"
        );
        assert_eq!(report.evidence("full/0/path"), "/dev/shm", "{report}");
    });
}

#[test]
fn the_report_measures_what_was_used() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.python_rootfs();
        let program = "import time\nkept = b'x' * (64 << 20)\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\ntime.sleep(0.2)";
        let report = sbxrt.report([
            "-m", "512m", "--cpus", "2", &image, "python3", "-I", "-c", program,
        ]);
        assert_eq!(report.kind(), "exited", "{report}");
        assert!(report.wall_time() >= Duration::from_millis(500), "{report}");
        assert!(report.cpu_time() >= Duration::from_millis(300), "{report}");
        assert!(report.cpu_time() < Duration::from_millis(1500), "{report}");
        assert!(report.memory_peak() >= 64 << 20, "{report}");
        assert!(report.memory_peak() < 256 << 20, "{report}");
    });
}

#[test]
fn check_says_what_works_here() {
    for_each_identity(|sbxrt| {
        let output = sbxrt.command(["check", "--json"]).output();
        let document: serde_json::Value = serde_json::from_str(output.success()).unwrap();
        assert!(document.is_object(), "{output}");
        let output = sbxrt.command(["doctor"]).output();
        assert!(output.success().contains("user_namespaces"), "{output}");
    });
}

#[test]
fn a_program_sees_the_processors_that_it_was_given() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    let processor = (0..nix::sched::CpuSet::count())
        .find(|&number| allowed.is_set(number).unwrap())
        .unwrap()
        .to_string();
    for_each_identity(|sbxrt| {
        let image = fixtures.busybox_rootfs();
        let script = "grep Cpus_allowed_list /proc/self/status";
        let words = [
            "--cpus",
            "2",
            "--cpuset-cpus",
            &processor,
            &image,
            "sh",
            "-c",
            script,
        ];
        let report = sbxrt.report(words);
        let said = String::from_utf8(report.bytes("stdout")).unwrap();
        assert_eq!(
            said,
            format!("Cpus_allowed_list:\t{processor}\n"),
            "{report}"
        );
        let mechanism = report.enforcement("cpuset");
        assert!(
            CGROUPS.contains(&mechanism) || mechanism == "affinity",
            "{report}"
        );
    });
}

#[test]
fn a_program_that_was_kept_from_running_is_said_to_have_been() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.busybox_rootfs();
        let throttled = |cpus, script| {
            let options = ["--cpus", cpus, "--timeout", "3s"];
            let report = sbxrt.report([&options[..], &[&image, "sh", "-c", script]].concat());
            (report.evidence("throttled_ms").as_f64(), report)
        };
        // So little that it is less than what a busy machine leaves.
        let (busy, report) = throttled("0.05", "(while :; do :; done) & while :; do :; done");
        assert!(busy.is_some_and(|it| it > 200.0), "{report}");
        let (idle, report) = throttled("0.5", "sleep 1");
        assert!(idle.is_some_and(|it| it < 200.0), "{report}");
    });
}

#[test]
fn processors_that_do_not_exist_are_refused_by_number() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.busybox_rootfs();
        let output = sbxrt
            .run(["--cpuset-cpus", "0,1023", &image, "true"])
            .output();
        assert_eq!(output.code(), 125, "{output}");
        output.assert_refused(&["cpuset", "processor 1023"]);
    });
}

#[test]
fn a_rate_that_nothing_can_hold_is_said_to_be_held_by_nothing() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.busybox_rootfs();
        let report = sbxrt.report(["--read-bps", "1m", &image, "true"]);
        let mechanism = report.enforcement("io");
        assert!(
            CGROUPS.contains(&mechanism) || mechanism == "none",
            "{report}"
        );
        let words = ["--read-bps", "1m", "--require", "io=cgroup", &image, "true"];
        let output = sbxrt.run(words).output();
        if mechanism == "none" {
            assert_eq!(output.code(), 125, "{output}");
            output.assert_refused(&["io", "cgroup"]);
        } else {
            output.success();
        }
    });
}
