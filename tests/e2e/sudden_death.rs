//! `kill -9` of any process of sbxrt's, whenever it comes: the kernel, or who is left, must end and remove all of it.
//!
//! `SBXRT_TEST_KILLS` says how often each of them is killed.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sbxrt_tests::{Fixtures, Host, PATIENCE, Sbxrt, eventually, for_each_identity, pause};

const KILLS: u32 = 25;
/// It leaves two processes behind that do not mean to end, and ends soon.
const SCRIPT: &str = "(sleep 100 &); (trap '' TERM; sleep 100) & sleep 0.05";

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// The process that was called.
    Caller,
    /// Its child, first of a pid namespace.
    Launcher,
    /// The launcher's child, in the same namespace.
    Builder,
    /// First of the container's pid namespace.
    FirstProcess,
}

#[test]
fn sudden_death_of_the_caller_leaves_nothing() {
    leaves_nothing(Victim::Caller);
}

#[test]
fn sudden_death_of_the_launcher_leaves_nothing() {
    leaves_nothing(Victim::Launcher);
}

#[test]
fn sudden_death_of_the_builder_leaves_nothing() {
    leaves_nothing(Victim::Builder);
}

#[test]
fn sudden_death_of_the_first_process_leaves_nothing() {
    leaves_nothing(Victim::FirstProcess);
}

/// Kills the victim at moments that are spread, with chance, from its birth to beyond its end.
fn leaves_nothing(victim: Victim) {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let kills = std::env::var("SBXRT_TEST_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        let host = Host::snapshot(sbxrt);
        let life = lifetime(sbxrt, &image, victim);
        let seed = SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
        let mut longest = Duration::ZERO;
        let mut ends = [0; 3];
        for kill in 0..kills {
            let jitter = f64::from((seed ^ kill.wrapping_mul(2_654_435_761)) % 1000) / 1000.0;
            let wait = life.mul_f64(1.2 * (f64::from(kill) + jitter) / f64::from(kills));
            let mut child = start(sbxrt, &image);
            if let Some(pidfd) = find(&mut child, victim) {
                pause(wait);
                // It may have ended.
                let _ignored = pidfd_send_signal(&pidfd, Signal::KILL);
            }
            let (status, said) = end(child);
            match (victim, status.code()) {
                (_, Some(0)) => ends[0] += 1,
                // The end of a first process is that of the program, by a signal.
                (Victim::Caller, None) | (Victim::FirstProcess, Some(137)) => ends[1] += 1,
                (_, Some(125)) if said.starts_with("error: ") => ends[2] += 1,
                _ => panic!("{victim:?} killed after {wait:?}: {status}: {said}"),
            }
            longest = longest.max(host.assert_nothing_is_left());
        }
        let [ended, killed, failed] = ends;
        eprintln!(
            "{victim:?} (lives {life:?}) killed {kills} times: {ended} programs had ended, {killed} were killed, \
             {failed} failed; nothing was left after {longest:?} at the longest"
        );
    });
}

fn start(sbxrt: &Sbxrt, image: &str) -> Child {
    let words = ["-m", "64m", "--pids-limit", "20", image, "sh", "-c", SCRIPT];
    sbxrt.run(words).spawn()
}

/// Waits for the end of sbxrt; how it was, and what it said.
fn end(mut child: Child) -> (ExitStatus, String) {
    let mut status = None;
    let ended = eventually(PATIENCE, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    if !ended {
        child.kill().unwrap();
    }
    let mut said = String::new();
    let stderr = child.stderr.take().unwrap();
    stderr.take(8 << 10).read_to_string(&mut said).unwrap();
    assert!(ended, "sbxrt did not end within {PATIENCE:?}: {said}");
    (status.unwrap(), said)
}

/// How long the victim lives when nobody kills it.
fn lifetime(sbxrt: &Sbxrt, image: &str, victim: Victim) -> Duration {
    let mut lifetimes: Vec<Duration> = (0..3)
        .filter_map(|_| {
            let mut child = start(sbxrt, image);
            let born = Instant::now();
            let found = find(&mut child, victim).map(|pidfd| {
                let found = if victim == Victim::Caller {
                    born
                } else {
                    Instant::now()
                };
                wait_for(&pidfd);
                found.elapsed()
            });
            end(child);
            found
        })
        .collect();
    lifetimes.sort();
    // The builder's life may be over before it is seen.
    lifetimes
        .get(lifetimes.len() / 2)
        .copied()
        .unwrap_or(Duration::from_millis(1))
}

fn wait_for(pidfd: &OwnedFd) {
    let timeout = rustix::event::Timespec::try_from(PATIENCE).unwrap();
    let mut polled = [rustix::event::PollFd::new(
        pidfd,
        rustix::event::PollFlags::IN,
    )];
    assert_eq!(
        rustix::event::poll(&mut polled, Some(&timeout)).unwrap(),
        1,
        "it does not end"
    );
}

/// Waits for the victim's birth. None where sbxrt has ended without one having been seen.
fn find(caller: &mut Child, victim: Victim) -> Option<OwnedFd> {
    let pid = caller.id();
    loop {
        let launcher = children(pid).first().copied();
        let below = || launcher.map(children).unwrap_or_default();
        let found = match victim {
            Victim::Caller => Some(pid),
            Victim::Launcher => launcher,
            Victim::Builder => below().into_iter().find(|&child| namespaces(child) == 2),
            // The builder's child before it is the launcher's.
            Victim::FirstProcess => below()
                .into_iter()
                .flat_map(|child| [vec![child], children(child)].concat())
                .find(|&child| namespaces(child) == 3),
        };
        let pidfd = found.and_then(|pid| {
            let pid = Pid::from_raw(pid.try_into().unwrap());
            pidfd_open(pid.unwrap(), PidfdFlags::empty()).ok()
        });
        if pidfd.is_some() || caller.try_wait().unwrap().is_some() {
            return pidfd;
        }
        pause(Duration::from_micros(100));
    }
}

/// Those of a process without threads, or of its first thread.
fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_ascii_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

/// In how many pid namespaces, from the test's own downward, a process is.
fn namespaces(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    pids.unwrap_or_default().split_ascii_whitespace().count()
}

#[test]
fn death_in_the_middle_of_a_pull_does_not_harm_the_next() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.layout("python", "latest");
    for_each_identity(|sbxrt| {
        for wait in [20, 100, 300] {
            let mut child = sbxrt.command(["pull", &image]).spawn();
            pause(Duration::from_millis(wait));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let output = sbxrt.run([&image, "python3", "-c", "print(1)"]).output();
        assert_eq!(output.success(), "1\n", "{output}");
        assert_eq!(sbxrt.unfinished(), Vec::<std::path::PathBuf>::new());
    });
}
