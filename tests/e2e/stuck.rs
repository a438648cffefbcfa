//! Programs that the kernel does not let go of: they must not hold whoever waits for them, and nothing of them may stay
//! once the kernel does.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sbxrt_tests::{
    Fixtures, Host, Need, PATIENCE, Report, Sbxrt, descendants, eventually, for_each_identity,
    require,
};

#[test]
fn a_program_stuck_in_a_frozen_file_system_holds_nobody() {
    let (true, Some(fixtures)) = (require(Need::Freezing), Fixtures::find()) else {
        return;
    };
    let image = fixtures.busybox_rootfs();
    for_each_identity(|sbxrt| {
        let host = Host::snapshot(sbxrt);
        let volume = Volume::mount(sbxrt);
        let mount = format!("{}:/data", volume.path.display());
        let script = "(trap '' TERM; sleep 1000) & while :; do echo x >/data/written; done";
        let words = [
            "--json",
            "--timeout",
            "none",
            "-v",
            &mount,
            &image,
            "sh",
            "-c",
            script,
        ];
        let mut child = sbxrt.run(words).spawn();
        assert!(
            eventually(PATIENCE, || volume.path.join("written").exists()),
            "it does not write"
        );
        volume.freeze();
        let is_stuck = || {
            descendants(child.id())
                .into_iter()
                .any(|pid| state(pid) == Some('D'))
        };
        assert!(
            eventually(PATIENCE, is_stuck),
            "no process is stuck in the frozen file system"
        );

        let caller = Pid::from_raw(child.id().try_into().unwrap());
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            // The second one is an order to end everything.
            kill(caller, signal).unwrap();
        }
        let ended = eventually(PATIENCE, || child.try_wait().unwrap().is_some());
        if !ended {
            child.kill().unwrap();
        }
        let mut document = Vec::new();
        child
            .stdout
            .take()
            .unwrap()
            .read_to_end(&mut document)
            .unwrap();
        assert!(ended, "a stuck program holds its caller");
        let report = Report::parse(&document);
        assert_eq!(report.kind(), "cancelled", "{report}");
        let leaked = report.leaked();
        assert!(!leaked.is_empty(), "{report}");
        for pid in leaked {
            assert_eq!(state(pid), Some('D'), "{pid} of {report}");
        }

        let collected = collect(sbxrt, &[]);
        for pid in report.leaked() {
            assert!(
                collected["stuck"].as_array().unwrap().contains(&pid.into()),
                "{collected}"
            );
        }

        drop(volume);
        let is_gone = || collect(sbxrt, &[])["stuck"].as_array().unwrap().is_empty();
        assert!(eventually(PATIENCE, is_gone), "what was stuck does not go");
        // Their cgroups, where they had some, could not be removed before. What is no longer stuck may still be ending.
        let is_removed = || {
            collect(sbxrt, &[]);
            collect(sbxrt, &["--dry-run"])["cgroups"] == 0
        };
        assert!(eventually(PATIENCE, is_removed), "a cgroup does not go");
        host.assert_nothing_is_left();
    });
}

fn collect(sbxrt: &Sbxrt, options: &[&str]) -> serde_json::Value {
    let output = sbxrt
        .command([&["gc", "--json"], options].concat())
        .output();
    serde_json::from_str(output.success()).unwrap()
}

/// An ext4 file system in a file of its own. When it is dropped, it answers again and is gone.
struct Volume {
    path: PathBuf,
}

impl Volume {
    fn mount(sbxrt: &Sbxrt) -> Self {
        let path = sbxrt.scratch("volume");
        let file = sbxrt.home().join("volume.ext4");
        fs::File::create(&file).unwrap().set_len(16 << 20).unwrap();
        tool(&["mkfs.ext4", "-q", file.to_str().unwrap()]);
        tool(&[
            "mount",
            "-o",
            "loop",
            file.to_str().unwrap(),
            path.to_str().unwrap(),
        ]);
        let owner = sbxrt.identity();
        let (uid, gid) = (owner.uid().as_raw(), owner.gid().as_raw());
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
        Self { path }
    }

    fn freeze(&self) {
        tool(&["fsfreeze", "--freeze", self.path.to_str().unwrap()]);
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let path = self.path.to_str().unwrap();
        // A test that failed early has not frozen it.
        drop(Command::new("fsfreeze").args(["--unfreeze", path]).output());
        drop(Command::new("umount").args(["--lazy", path]).output());
    }
}

fn tool(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {said}");
}

fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}
