//! CVE-2018-15664, CVE-2019-14271 and the like: what is copied out of a container follows a link, opens a FIFO, reads a
//! sparse file of 8 EiB, or runs what the image brought along.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use sbxrt_tests::{Fixtures, Report, eventually, for_each_identity};

use crate::python;

/// Everything that a program could leave to whoever collects it.
const HOSTILE: &str = r"
import os, socket
os.makedirs('/out/closed')
os.chdir('/out')
for name, target in ('passwd', '/etc/passwd'), ('environ', '/proc/self/environ'), ('up', '../' * 40 + 'etc/passwd'), ('loop', 'loop'), ('beside', 'closed'):
    os.symlink(target, name)
os.mkfifo('fifo')
socket.socket(socket.AF_UNIX).bind('socket')
for bits in 63, 44, 24:
    try:
        with open('sparse', 'w') as file: file.truncate((1 << bits) - 1)
        break
    except OSError: pass
os.link('sparse', 'sparse again')
open(b'odd \xff\x1b[31m\n', 'w').close()
with open('setuid', 'w') as file: os.fchmod(file.fileno(), 0o6755)
deep = os.open('.', os.O_RDONLY)
for _ in range(100):
    os.mkdir('deep', dir_fd=deep)
    deep = os.open('deep', os.O_RDONLY, dir_fd=deep)
with open('closed/secret', 'w') as file: file.write('hello\n')
os.chmod('closed/secret', 0)
os.chmod('closed', 0)
";

#[test]
fn whatever_a_program_leaves_is_told_by_type_and_never_followed() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let options = ["--json", "--output", "/out:copy", "--output-size", "1m"];
        let report = python(sbxrt, &fixtures.python_rootfs(), &options, HOSTILE).report();
        assert_eq!(report.code(), Some(0), "{report}");
        let found = |name: &str| {
            let path = format!("/out/{name}");
            let mut outputs = report.outputs().iter();
            outputs
                .find(|output| output["path"] == *path)
                .unwrap_or_else(|| panic!("{path} is not in {report}"))
        };
        for (name, kind) in [
            ("passwd", "symlink"),
            ("environ", "symlink"),
            ("up", "symlink"),
            ("fifo", "fifo"),
            ("socket", "socket"),
            ("sparse", "file"),
            ("sparse again", "file"),
        ] {
            let output = found(name);
            assert_eq!(output["type"], kind, "{report}");
            assert!(output["refused"].is_string(), "{name}: {report}");
            assert!(output["sha256"].is_null(), "{name}: {report}");
        }
        let sparse = found("sparse");
        let size = sparse["size"].as_u64().unwrap();
        let reason = sparse["refused"].as_str().unwrap();
        assert!(
            size >= (1 << 24) - 1 && reason.contains(&size.to_string()),
            "{report}"
        );
        // Modes keep nobody out: they are the caller's own files.
        let hello = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(found("closed/secret")["sha256"], hello, "{report}");
        assert_eq!(found("setuid")["mode"], "6755", "{report}");
        let is_odd = |output: &&serde_json::Value| output.get("path_base64").is_some();
        assert_eq!(
            report.outputs().iter().filter(is_odd).count(),
            1,
            "{report}"
        );

        // On the host there are files, directories and links that stay inside, without rights for anybody.
        let listing = sbxrt.tool(&[
            "find", "copy", "(", "-type", "p", "-o", "-type", "s", "-o", "-perm", "/7000", ")",
        ]);
        assert_eq!(listing, "", "{report}");
        let links = sbxrt.tool(&["find", "copy", "-type", "l", "-printf", "%f -> %l\n"]);
        let mut links: Vec<&str> = links.lines().collect();
        links.sort_unstable();
        assert_eq!(links, ["beside -> closed", "loop -> loop"]);
        assert!(sbxrt.home().join("copy/closed/secret").exists(), "{report}");
    });
}

#[test]
fn a_program_cannot_lead_its_own_copy_astray() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        // The copy goes below a directory that the program may write to.
        let shared = sbxrt.scratch("shared");
        let victim = sbxrt.scratch("victim");
        let results = sbxrt.scratch("shared/results");
        let volume = format!("{}:/shared", shared.display());
        let copy = format!("/tmp/x:{}", results.join("x").display());
        let script = format!(
            "echo planted > /tmp/x; mv /shared/results /shared/moved; ln -s {} /shared/results",
            victim.display()
        );
        let image = fixtures.busybox_rootfs();
        sbxrt
            .run([
                "-v", &volume, "--output", &copy, &image, "sh", "-c", &script,
            ])
            .output()
            .success();
        assert_eq!(
            fs::read_dir(&victim).unwrap().count(),
            0,
            "a file was planted"
        );
        assert_eq!(fs::read(shared.join("moved/x")).unwrap(), b"planted\n");

        // Or it makes the copy's name a link.
        let results = sbxrt.scratch("shared/again");
        let copy = format!("/tmp/x:{}", results.join("x").display());
        let script = format!(
            "echo planted > /tmp/x; ln -s {}/y /shared/again/x",
            victim.display()
        );
        let output = sbxrt
            .run([
                "-v", &volume, "--output", &copy, &image, "sh", "-c", &script,
            ])
            .output();
        assert!(output.stderr.contains("EEXIST"), "{output}");
        assert_eq!(
            fs::read_dir(&victim).unwrap().count(),
            0,
            "a file was planted"
        );
    });
}

#[test]
fn devices_on_a_volume_are_not_opened() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        if !sbxrt.identity().is_root() {
            return;
        }
        let directory = sbxrt.scratch("volume");
        // 240 to 254 are for local use: to open it could have an effect only where somebody has given it one.
        let made = Command::new("mknod")
            .arg(directory.join("device"))
            .args(["c", "240", "0"])
            .status();
        assert!(made.unwrap().success());
        symlink("/dev/zero", directory.join("zero")).unwrap();
        let volume = format!("{}:/v", directory.display());
        let report = sbxrt.report([
            "-v",
            &volume,
            "--output",
            "/v",
            &fixtures.busybox_rootfs(),
            "true",
        ]);
        let kinds: Vec<&str> = report
            .outputs()
            .iter()
            .filter_map(|it| it["type"].as_str())
            .collect();
        assert_eq!(
            kinds,
            ["directory", "character_device", "symlink"],
            "{report}"
        );
        assert!(report.outputs()[1]["refused"].is_string(), "{report}");
    });
}

/// The collectors that descend from `ancestor`.
fn collectors(ancestor: u32) -> Vec<u32> {
    let stat = |pid: u32| {
        let stat =
            fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        let parent = rest.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some((name.to_owned(), parent))
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| {
        let Some((name, mut parent)) = stat(pid) else {
            return false;
        };
        while name == "sbxrt-collector" && parent > 1 {
            if parent == ancestor {
                return true;
            }
            parent = stat(parent).map_or(0, |(_, parent)| parent);
        }
        false
    })
    .collect()
}

#[test]
fn collecting_that_takes_for_ever_is_cancelled() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let directory = sbxrt.scratch("volume");
        // Many minutes of hashing.
        let sparse = fs::File::create(directory.join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        let volume = format!("{}:/v:ro", directory.display());
        let image = fixtures.busybox_rootfs();
        let run = sbxrt.run([
            "--json",
            "-v",
            &volume,
            "--output",
            "/v/sparse",
            "--output-size",
            "2t",
            &image,
            "true",
        ]);
        let mut child = run.spawn();
        let limit = Duration::from_secs(60);
        let mut found = None;
        let begun = eventually(limit, || {
            found = collectors(child.id()).first().copied();
            found.is_some()
        });
        assert!(begun, "nothing is collected");
        let collector = found.unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        // The first is for the program, which has ended. Two of a kind could arrive as one.
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            kill(pid, signal).unwrap();
        }
        let ended = eventually(limit, || child.try_wait().unwrap().is_some());
        assert!(ended, "it waits for its collector");
        let status = child.wait().unwrap();
        let document = std::io::read_to_string(child.stdout.take().unwrap()).unwrap();
        let report = Report::parse(document.as_bytes());
        assert_eq!(
            (status.code(), report.kind()),
            (Some(0), "exited"),
            "{report}"
        );
        assert_eq!(
            report.outputs()[0]["refused"],
            "the run was cancelled",
            "{report}"
        );
        assert!(
            !Path::new("/proc").join(collector.to_string()).exists(),
            "{report}"
        );
    });
}
