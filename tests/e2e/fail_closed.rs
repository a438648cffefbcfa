//! What a run needs is taken away, one thing at a time: each time it either does all that it promises, or is refused with
//! the name of what is missing; and `sbxrt check` says beforehand which.

use std::time::Duration;

use nix::libc;
use sbxrt_tests::{
    Fixtures, Identity, Invocation, Need, Report, Sbxrt, for_each_identity, require,
};

/// Executes the words behind `--` where each system call of the pairs NUMBER ERRNO before it fails so. In Perl, because
/// every Debian has it and it makes system calls by number.
const DENY: &str = r#"
my $prctl = shift @ARGV;
my @pairs;
push @pairs, [shift @ARGV, shift @ARGV] while $ARGV[0] ne "--";
shift @ARGV;
my @code = ([0x20, 0, 0, 0]);
push @code, [0x15, 0, 1, $_->[0]], [0x06, 0, 0, 0x50000 | $_->[1]] for @pairs;
push @code, [0x06, 0, 0, 0x7fff0000];
my $program = join "", map { pack "SCCL", @$_ } @code;
my $header = pack "Sx6P", scalar @code, $program;
syscall($prctl, 38, 1, 0, 0, 0) == 0 or die "PR_SET_NO_NEW_PRIVS: $!";
syscall($prctl, 22, 2, $header) == 0 or die "PR_SET_SECCOMP: $!";
exec @ARGV or die "exec: $!";
"#;

/// How long a run may take that ends by itself, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(150);

/// What the program finds out about itself; then it waits for the time limit to end it.
const WITNESS: &str = "grep -E '^(NoNewPrivs|Seccomp|CapEff|CapBnd):' /proc/self/status; \
                       echo interfaces: $(tail -n +3 /proc/net/dev | cut -d: -f1); \
                       echo pid: $$; exec sleep 600";

/// How a call of sbxrt is put into circumstances.
type Circumstances<'a> = &'a dyn for<'b> Fn(Invocation<'b>) -> Invocation<'b>;

/// What became of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// All that is promised was there.
    Kept,
    /// It was refused, and said so.
    Refused,
}

/// Runs the witness and asks `check` under the same circumstances.
fn outcome(
    sbxrt: &Sbxrt,
    image: &str,
    named: &[&str],
    circumstances: Circumstances<'_>,
) -> Outcome {
    let words = ["--json", "--timeout", "1s", image, "sh", "-c", WITNESS];
    let run = circumstances(sbxrt.run(words)).output();
    let outcome = if run.code() == 125 {
        let said = run.stderr.to_lowercase();
        assert!(
            named.iter().any(|word| said.contains(word)) && !said.contains("panicked"),
            "none of {named:?} is named: {run}"
        );
        Outcome::Refused
    } else {
        let report = run.report();
        assert_eq!(report.kind(), "timeout", "{report}");
        assert_promises(&report);
        Outcome::Kept
    };
    let check = circumstances(sbxrt.command(["check", "--json"])).output();
    let predicted = match check.code() {
        0 => Outcome::Kept,
        1 => Outcome::Refused,
        code => panic!("check exits with {code}: {check}"),
    };
    assert_eq!(predicted, outcome, "check: {check}\nrun: {run}");
    outcome
}

fn assert_promises(report: &Report) {
    let found = String::from_utf8(report.bytes("stdout")).unwrap();
    let mut lines: Vec<&str> = found.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "CapBnd:\t0000000000000000",
            "CapEff:\t0000000000000000",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "interfaces: lo",
            "pid: 2",
        ],
        "{report}"
    );
    for limit in ["memory", "pids", "scratch", "wall_time_ms"] {
        assert_ne!(report.enforcement(limit), "none", "{report}");
    }
}

/// Runs a test as the ordinary user alone: what another one would see differs in nothing.
fn as_ordinary(test: impl Fn(&Sbxrt, &Fixtures)) {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        if sbxrt.identity() == &Identity::ordinary() {
            test(sbxrt, &fixtures);
        }
    });
}

/// A kernel that is too old for a call, or a container around sbxrt whose filter hides it.
#[test]
fn without_a_system_call_a_run_keeps_its_promises_or_is_refused() {
    let calls: &[(&str, libc::c_long, &[&str])] = &[
        ("clone", libc::SYS_clone, &["clone"]),
        // glibc makes threads with it.
        (
            "clone3",
            libc::SYS_clone3,
            &["clone3", "attach the program's streams"],
        ),
        ("unshare", libc::SYS_unshare, &["unshare"]),
        ("mount", libc::SYS_mount, &["mount"]),
        ("pivot_root", libc::SYS_pivot_root, &["pivot root"]),
        ("open_tree", libc::SYS_open_tree, &["open_tree"]),
        (
            "move_mount",
            libc::SYS_move_mount,
            &["cgroup2", "move_mount"],
        ),
        (
            "mount_setattr",
            libc::SYS_mount_setattr,
            &["open_tree", "mount_setattr"],
        ),
        ("fsopen", libc::SYS_fsopen, &["mount", "fsopen"]),
        ("openat2", libc::SYS_openat2, &["`sbxrt check`"]),
        ("prctl", libc::SYS_prctl, &["prctl", "dumpable"]),
        ("seccomp", libc::SYS_seccomp, &["seccomp"]),
        ("keyctl", libc::SYS_keyctl, &["keyring"]),
        ("pidfd_open", libc::SYS_pidfd_open, &["pidfd_open"]),
        (
            "pidfd_send_signal",
            libc::SYS_pidfd_send_signal,
            &["pidfd_send_signal"],
        ),
        ("memfd_create", libc::SYS_memfd_create, &["memfd_create"]),
        ("close_range", libc::SYS_close_range, &["close_range"]),
        ("execveat", libc::SYS_execveat, &["execveat"]),
        ("setsid", libc::SYS_setsid, &["setsid"]),
        ("sethostname", libc::SYS_sethostname, &["hostname"]),
        (
            "sched_setaffinity",
            libc::SYS_sched_setaffinity,
            &["sched_setaffinity"],
        ),
        ("prlimit64", libc::SYS_prlimit64, &["rlimit"]),
    ];
    as_ordinary(|sbxrt, fixtures| {
        let image = fixtures.busybox_rootfs();
        for (name, number, named) in calls {
            for errno in [libc::ENOSYS, libc::EPERM] {
                let deny = [
                    "perl".to_owned(),
                    "-e".to_owned(),
                    DENY.to_owned(),
                    libc::SYS_prctl.to_string(),
                    number.to_string(),
                    errno.to_string(),
                    "--".to_owned(),
                ];
                let outcome = outcome(sbxrt, &image, named, &|call| call.called_by(&deny));
                eprintln!("{name} {errno}: {outcome:?}");
            }
        }
    });
}

/// Without `kcmp`, as in a container of Docker's, nobody can ask the kernel whether two processes are one memory. A program
/// that starts others is believed, as long as it has not got them all the time.
#[test]
fn without_kcmp_memory_that_is_lent_counts_once_and_what_only_seems_so_for_a_moment() {
    let starts_others = "import subprocess, threading, time\n\
        kept = b'x' * (40 << 20)\n\
        def work():\n\
        \x20 end = time.monotonic() + 2\n\
        \x20 while time.monotonic() < end: subprocess.run(['/bin/true'], check=True); time.sleep(0.01)\n\
        work()\n\
        other = threading.Thread(target=work)\n\
        other.start()\n\
        other.join()";
    // Each writes to a part of what it has from its parent, and sleeps until its child ends, which has a memory of its own.
    let seems_so = "import os, time\n\
        kept = bytearray(20 << 20)\n\
        for n in range(6):\n\
        \x20 pid = os.fork()\n\
        \x20 if pid: os.waitpid(pid, 0); break\n\
        \x20 for i in range(0, len(kept), 4096): kept[i] = 1\n\
        else: time.sleep(300)";
    as_ordinary(|sbxrt, fixtures| {
        let image = fixtures.python_rootfs();
        let deny = [
            "perl".to_owned(),
            "-e".to_owned(),
            DENY.to_owned(),
            libc::SYS_prctl.to_string(),
            libc::SYS_kcmp.to_string(),
            libc::EPERM.to_string(),
            "--".to_owned(),
        ];
        for (program, expected) in [(starts_others, "exited"), (seems_so, "oom")] {
            let options = ["--json", "-m", "64m", "--timeout", "120s"];
            let words = [&options[..], &[&image, "python3", "-I", "-c", program]];
            let output = sbxrt
                .run(words.concat())
                .called_by(&deny)
                .deadline(PATIENCE);
            let report = output.output().report();
            assert_eq!(report.kind(), expected, "{report}");
            assert_eq!(report.enforcement("memory"), "watchdog", "{report}");
        }
    });
}

/// Namespaces that an administrator has switched off, as `user.max_*_namespaces` does; in a user namespace of the
/// test's own, so that nobody else is hit.
#[test]
fn without_a_namespace_a_run_is_refused_with_the_setting() {
    as_ordinary(|sbxrt, fixtures| {
        let image = fixtures.busybox_rootfs();
        for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
            let setting = format!("user.max_{kind}_namespaces");
            let script = format!("echo 0 > /proc/sys/user/max_{kind}_namespaces && exec \"$@\"");
            let behind = [
                "unshare",
                "--user",
                "--map-root-user",
                "sh",
                "-c",
                &script,
                "sh",
            ];
            let named = [setting.as_str(), "network", "ipc", "uts", "newcgroup"];
            let outcome = outcome(sbxrt, &image, &named, &|call| call.called_by(behind));
            assert_eq!(outcome, Outcome::Refused, "{kind}");
        }
    });
}

/// File systems of the host that are not there, or are not as usual; in a mount namespace of the test's own.
#[test]
fn without_a_file_system_of_the_kernel_a_run_keeps_its_promises_or_is_refused() {
    if !require(Need::Root) {
        return;
    }
    let circumstances = [
        ("no /proc", "umount --lazy /proc", Outcome::Refused, "/proc"),
        (
            "a covered /proc",
            "mount -t tmpfs none /proc/sys",
            Outcome::Refused,
            "/proc",
        ),
        (
            "no cgroups",
            "umount --recursive /sys/fs/cgroup",
            Outcome::Kept,
            "",
        ),
        (
            "no /sys",
            "umount --recursive /sys",
            Outcome::Refused,
            "/sys",
        ),
        (
            "no devices",
            "mount -t tmpfs none /dev",
            Outcome::Refused,
            "/dev/null",
        ),
        (
            "/tmp to read only",
            "mount -t tmpfs -o ro none /tmp",
            Outcome::Kept,
            "",
        ),
        (
            "/run to read only",
            "mount -t tmpfs -o ro none /run",
            Outcome::Kept,
            "",
        ),
    ];
    as_ordinary(|sbxrt, fixtures| {
        let image = fixtures.busybox_rootfs();
        for (name, script, expected, named) in circumstances {
            eprintln!("{name}");
            let script = format!("{script} && exec \"$@\"");
            let behind = ["unshare", "--mount", "sh", "-c", &script, "sh"];
            let outcome = outcome(sbxrt, &image, &[named], &|call| call.behind(behind));
            assert_eq!(outcome, expected, "{name}");
        }
    });
}

/// A store on file systems that are not as they should be. `check` judges the store by itself; what needs none still runs.
#[test]
fn on_a_file_system_that_is_not_fit_for_a_store_an_image_is_refused_with_the_reason() {
    if !require(Need::Root) {
        return;
    }
    let circumstances = [
        // The mount of the container's own is not noexec.
        ("mount -t tmpfs -o noexec none", None, "ok"),
        (
            "mount -t tmpfs -o size=256k none",
            Some("no space left"),
            "degraded",
        ),
        (
            "mount -t tmpfs -o nr_inodes=20 none",
            Some("0 files free"),
            "degraded",
        ),
        (
            "mount -t tmpfs -o ro none",
            Some("read-only file system"),
            "failed",
        ),
        (
            "mount -t ramfs none",
            Some("extended attributes"),
            "degraded",
        ),
    ];
    as_ordinary(|sbxrt, fixtures| {
        let image = fixtures.layout("busybox", "latest");
        let store = sbxrt.scratch("store");
        let (directory, uid) = (store.display(), sbxrt.identity().uid());
        for (mount, refused, status) in circumstances {
            let script = format!(
                "{mount} {directory} && {{ chown {uid} {directory}; chmod 700 {directory}; true; }} && exec \"$@\""
            );
            let behind = ["unshare", "--mount", "sh", "-c", &script, "sh"];
            let call = |words: &[&str]| {
                let call = sbxrt.command(words).env("SBXRT_STORE", &store);
                call.behind(behind).output()
            };
            let run = call(&["run", "--json", &image, "sh", "-c", "exit 7"]);
            match refused {
                None => assert_eq!(run.report().code(), Some(7), "{mount}: {run}"),
                Some(reason) => {
                    assert_eq!(run.code(), 125, "{mount}: {run}");
                    assert!(run.stderr.to_lowercase().contains(reason), "{mount}: {run}");
                }
            }
            let check = call(&["check", "--json"]);
            let report: serde_json::Value = serde_json::from_slice(&check.stdout).unwrap();
            let checks = report["checks"].as_array().unwrap();
            let of_store = checks
                .iter()
                .find(|check| check["name"] == "store")
                .unwrap();
            assert_eq!(of_store["status"], status, "{mount}: {check}");
            assert_eq!(report["ok"], true, "{mount}: {check}");
            call(&["run", "host:", "true"]).success();
        }
    });
}

/// overlayfs takes no third of its kind on top of two.
#[test]
fn on_too_many_overlays_an_image_is_refused_with_the_reason() {
    if !require(Need::Root) || !require(Need::Overlay) {
        return;
    }
    as_ordinary(|sbxrt, fixtures| {
        let busybox = fixtures.busybox_rootfs();
        let place = sbxrt.scratch("overlays");
        let script = format!(
            "cd {} && mount -t tmpfs none . && cd \"$PWD\" && mkdir -p 0 u1 w1 1 u2 w2 2 \
             && cp -a {}/. 0 && mount -t overlay -o lowerdir=0,upperdir=u1,workdir=w1 none 1 \
             && mount -t overlay -o lowerdir=1,upperdir=u2,workdir=w2 none 2 && chmod 755 1 2 && exec \"$@\"",
            place.display(),
            busybox.strip_prefix("dir:").unwrap()
        );
        let behind = ["unshare", "--mount", "sh", "-c", &script, "sh"];
        let run = |depth: &str| {
            let image = format!("dir:{}/{depth}", place.display());
            sbxrt.run([&image, "true"]).behind(behind).output()
        };
        run("1").success();
        run("2").assert_refused(&["overlay", "takes no third"]);
    });
}
