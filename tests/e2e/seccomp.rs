//! System call policies: profiles of the caller's, and what is said of a program that a policy has ended.

use std::fs;
use std::path::{Path, PathBuf};

use sbxrt_tests::{Fixtures, Report, Sbxrt, for_each_identity};

/// A profile that allows everything but what `rules` say.
fn profile(sbxrt: &Sbxrt, name: &str, rules: &str) -> String {
    let text = format!(r#"{{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rules}] }}"#);
    option(&write(sbxrt, name, &text))
}

fn write(sbxrt: &Sbxrt, name: &str, text: &str) -> PathBuf {
    let path = sbxrt.home().join(name);
    fs::write(&path, text).unwrap();
    path
}

fn option(path: &Path) -> String {
    format!("--security-opt=seccomp={}", path.display())
}

/// How it ended, and the exit status.
fn end(report: &Report) -> (&str, u64) {
    (
        report.kind(),
        report.exit_code().unwrap().try_into().unwrap(),
    )
}

fn stdout(report: &Report) -> String {
    String::from_utf8(report.bytes("stdout")).unwrap()
}

#[test]
fn a_call_that_the_program_was_ended_for_is_named() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        for (name, calls, expected) in [
            ("uname", r#""uname""#, "uname"),
            // Nothing that sbxrt itself would need to hand the listener over.
            (
                "silent",
                r#""uname", "sendmsg", "sendto", "close", "futex", "madvise""#,
                "uname",
            ),
            // Not even the program itself can be executed.
            ("execve", r#""execve""#, "execve"),
        ] {
            for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
                let rule = format!(r#"{{ "names": [{calls}], "action": "{action}" }}"#);
                let option = profile(sbxrt, name, &rule);
                let report = sbxrt.report([&option, &image, "uname"]);
                assert_eq!(end(&report), ("seccomp", 159), "{name} {action}: {report}");
                assert_eq!(
                    report.blocked_call(),
                    (expected, std::env::consts::ARCH),
                    "{name} {action}: {report}"
                );
                assert_eq!(report.seccomp(), "custom");
            }
        }
    });
}

#[test]
fn a_program_may_outlive_a_child_that_was_ended() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        let option = profile(
            sbxrt,
            "uname",
            r#"{ "names": ["uname"], "action": "SCMP_ACT_KILL" }"#,
        );
        let script = "uname; echo $?; (uname); echo $?; echo still here";
        let output = sbxrt.run([&option, &image, "sh", "-c", script]).output();
        assert_eq!(output.success(), "159\n159\nstill here\n", "{output}");
    });
}

#[test]
fn a_handler_does_not_save_from_the_end_but_may_catch_a_trap() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.python_rootfs();
    let program = "
import os, signal, sys
what = sys.argv[1]
if what == 'catch':
    signal.signal(signal.SIGSYS, lambda *_: print('caught', flush=True))
elif what == 'ignore':
    signal.signal(signal.SIGSYS, signal.SIG_IGN)
elif what == 'block':
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGSYS])
try:
    os.uname()
except OSError as error:
    print(error.strerror)
";
    for_each_identity(|sbxrt| {
        let rule = |action: &str| format!(r#"{{ "names": ["uname"], "action": "{action}" }}"#);
        let kill = profile(sbxrt, "kill", &rule("SCMP_ACT_KILL_PROCESS"));
        let trap = profile(sbxrt, "trap", &rule("SCMP_ACT_TRAP"));
        let run = |option: &str, what: &str| {
            sbxrt.report([option, &image, "python3", "-I", "-c", program, what])
        };
        for what in ["nothing", "catch", "ignore", "block"] {
            let report = run(&kill, what);
            assert_eq!(end(&report), ("seccomp", 159), "kill, {what}: {report}");
        }
        for what in ["nothing", "ignore", "block"] {
            let report = run(&trap, what);
            assert_eq!(end(&report), ("seccomp", 159), "trap, {what}: {report}");
        }
        let report = run(&trap, "catch");
        assert_eq!(end(&report), ("exited", 0), "{report}");
        // The signal comes before the answer to the call. Until Linux 5.19 it interrupts the wait for it, until 6.17 it may.
        let said = stdout(&report);
        let waits = kernel() >= (6, 17);
        assert!(
            said == "caught\nFunction not implemented\n"
                || !waits && said == "caught\nInterrupted system call\n",
            "{report}"
        );
    });
}

/// The kernel's version.
fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().unwrap().parse().unwrap();
    (number(), number())
}

#[test]
fn a_caught_trap_is_never_interrupted_by_its_own_signal() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    if kernel() < (6, 17) {
        return;
    }
    let image = fixtures.python_rootfs();
    // After this handler, a call that it had interrupted would be made again.
    let program = "
import ctypes, os, signal
caught = 0
def handler(*_):
    global caught
    caught += 1
signal.signal(signal.SIGSYS, handler)
signal.siginterrupt(signal.SIGSYS, False)
errors = set()
for _ in range(2000):
    try:
        os.uname()
    except OSError as error:
        errors.add(error.strerror)
print(caught, sorted(errors))
";
    for_each_identity(|sbxrt| {
        let rule = r#"{ "names": ["uname"], "action": "SCMP_ACT_TRAP" }"#;
        let trap = profile(sbxrt, "trap", rule);
        let report = sbxrt.report([
            "--timeout",
            "60s",
            &trap,
            &image,
            "python3",
            "-I",
            "-c",
            program,
        ]);
        assert_eq!(
            stdout(&report),
            "2000 ['Function not implemented']\n",
            "{report}"
        );
    });
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_call_of_a_foreign_abi_is_named() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.python_rootfs();
    // getpid through `int 0x80`, which takes i386's numbers, and through `syscall` with the bit of x32.
    let program = "
import ctypes, mmap, sys
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex({'i386': 'b814000000cd80c3', 'x32': 'b8270000400f05c3'}[sys.argv[1]]))
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
print('allowed')
";
    for_each_identity(|sbxrt| {
        for abi in ["i386", "x32"] {
            let report = sbxrt.report([&image, "python3", "-I", "-c", program, abi]);
            assert_eq!(end(&report), ("seccomp", 159), "{abi}: {report}");
            assert_eq!(report.blocked_call(), ("getpid", abi), "{report}");
            assert_eq!(report.seccomp(), "default");
        }
    });
}

#[test]
fn a_program_that_sends_itself_sigsys_was_not_ended_by_the_filter() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        let rule = r#"{ "names": ["uname"], "action": "SCMP_ACT_KILL" }"#;
        let custom = profile(sbxrt, "kill", rule);
        for options in [
            &[][..],
            &[custom.as_str()],
            &["--security-opt=seccomp=builtin"],
        ] {
            let command = [&image, "sh", "-c", "kill -SYS $$"];
            let report = sbxrt.report([options, &command].concat());
            assert_eq!(end(&report), ("signaled", 159), "{report}");
            assert_eq!(report.signal(), Some("SIGSYS"), "{report}");
        }
    });
}

#[test]
fn without_a_policy_the_other_walls_stand_and_a_warning_is_given() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    let script = "grep -E '^(NoNewPrivs|Seccomp|CapEff|CapBnd):' /proc/self/status
        unshare -U true 2>/dev/null && echo nested
        mount -t tmpfs none /tmp 2>/dev/null && echo mounted
        chroot / true 2>/dev/null && echo changed root
        true";
    for_each_identity(|sbxrt| {
        let options = [
            "--json",
            "--quiet",
            "--security-opt=seccomp=unconfined",
            "-m0",
            "--cpus=0",
        ];
        let command = [image.as_str(), "sh", "-c", script];
        let output = sbxrt.run([&options[..], &command].concat()).output();
        let report = output.report();
        assert_eq!(report.seccomp(), "unconfined");
        assert_eq!(
            stdout(&report),
            "CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t0\n"
        );
        assert!(
            output.stderr.starts_with("warning: seccomp=unconfined"),
            "{output}"
        );
    });
}

#[test]
fn a_profile_that_cannot_be_used_refuses_the_run() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        let refused = |option: &str, words: &[&str]| {
            sbxrt
                .run([option, &image, "true"])
                .output()
                .assert_refused(words);
        };
        refused(
            "--security-opt=seccomp=/no/such/file",
            &["/no/such/file", "no such file"],
        );
        refused(
            "--security-opt=seccomp=/dev/zero",
            &["/dev/zero", "a device and no regular file"],
        );
        let long = write(sbxrt, "long", &" ".repeat((1 << 20) + 1));
        refused(&option(&long), &["long", "longer than 1024 KiB"]);
        let text = write(sbxrt, "text", "not JSON");
        refused(&option(&text), &["text", "not a seccomp profile", "line 1"]);
        let misspelt = r#"{ "names": ["uname"], "action": "SCMP_ACT_KILL" },
            { "names": ["unmae"], "action": "SCMP_ACT_KILL" }"#;
        refused(
            &profile(sbxrt, "misspelt", misspelt),
            &["seccomp profile", "rule 2", "\"unmae\"", "no system call"],
        );
        let values = (0..5000)
            .map(|value| format!(r#"{{ "index": 0, "value": {value}, "op": "SCMP_CMP_NE" }}"#));
        let long = format!(
            r#"{{ "names": ["read"], "action": "SCMP_ACT_KILL", "args": [{}] }}"#,
            values.collect::<Vec<_>>().join(",")
        );
        refused(&profile(sbxrt, "long", &long), &["4096 instructions"]);
    });
}

#[test]
fn the_default_policy_can_be_started_from() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.python_rootfs();
    let program = "
import subprocess, threading
thread = threading.Thread(target=lambda: print('thread', flush=True)); thread.start(); thread.join()
print(subprocess.run(['echo', 'child'], capture_output=True, text=True).stdout, end='')
";
    for_each_identity(|sbxrt| {
        let own = write(
            sbxrt,
            "own",
            include_str!("../../crates/sbxrt-runtime/src/seccomp/default.json"),
        );
        let report = sbxrt.report([&option(&own), &image, "python3", "-I", "-c", program]);
        assert_eq!(stdout(&report), "thread\nchild\n", "{report}");
        assert_eq!(report.seccomp(), "custom");
    });
}
