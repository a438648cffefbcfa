//! What a run leaves in an upper directory of the caller's, and what root emulation lets programs believe; with busybox
//! from this machine as the image.
//!
//! A test without a harness, because a copy of it becomes the launcher.

#![expect(clippy::print_stdout, reason = "a test speaks to its reader")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sbxrt_runtime::{
    Error, Launcher, LimitName, Limits, Mechanism, Mount, Network, Process, Progress, Report,
    Request, Requirement, Root, Termination,
};

type Test = (&'static str, fn(&Bench));

const TESTS: &[Test] = &[
    (
        "a_run_that_changes_nothing_leaves_nothing",
        a_run_that_changes_nothing_leaves_nothing,
    ),
    (
        "an_upper_directory_holds_what_changed",
        an_upper_directory_holds_what_changed,
    ),
    (
        "an_upper_directory_is_a_layer",
        an_upper_directory_is_a_layer,
    ),
    (
        "an_image_of_nothing_has_a_root",
        an_image_of_nothing_has_a_root,
    ),
    (
        "what_cannot_be_kept_is_an_error",
        what_cannot_be_kept_is_an_error,
    ),
    (
        "owners_and_devices_are_pretended",
        owners_and_devices_are_pretended,
    ),
    (
        "without_emulation_owners_are_refused",
        without_emulation_owners_are_refused,
    ),
    (
        "emulated_root_reads_its_own_files",
        emulated_root_reads_its_own_files,
    ),
];

fn main() {
    sbxrt_runtime::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is = |option: &str| arguments.iter().any(|argument| argument == option);
    if is("--list") {
        if !is("--ignored") {
            for (name, _) in TESTS {
                println!("{name}: test");
            }
        }
        return;
    }
    let filters: Vec<&String> = arguments
        .iter()
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let chosen: Vec<_> = TESTS
        .iter()
        .filter(|(name, _)| {
            filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
        })
        .collect();
    if chosen.is_empty() {
        return;
    }
    let Some(busybox) = find_busybox() else {
        println!("skipped: no static busybox on this machine");
        return;
    };
    for (name, test) in chosen {
        println!("{name}");
        test(&Bench::new(&busybox));
    }
}

fn find_busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
}

/// A directory with an image, removed in the end.
struct Bench {
    place: PathBuf,
    launcher: Launcher,
}

impl Bench {
    fn new(busybox: &Path) -> Self {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("sbxrt-upper-{}-{count}", std::process::id());
        // /tmp may be a tmpfs, which has no attributes before Linux 6.6.
        let place = Path::new("/var/tmp").join(name);
        let image = place.join("image");
        for directory in ["bin", "etc", "usr/share/doc", "opt/old", "tmp"] {
            fs::create_dir_all(image.join(directory)).unwrap();
        }
        fs::copy(busybox, image.join("bin/busybox")).unwrap();
        for applet in ["sh", "ls", "cat"] {
            symlink("busybox", image.join("bin").join(applet)).unwrap();
        }
        fs::write(image.join("etc/motd"), "image").unwrap();
        fs::write(image.join("opt/old/file"), "image").unwrap();
        // As systemd-resolved leaves it: it leads nowhere in an image.
        symlink("../run/resolve.conf", image.join("etc/resolv.conf")).unwrap();
        mode(&image.join("etc"), 0o750);
        mode(&image.join("usr"), 0o711);
        let launcher = Launcher::spawn().unwrap();
        Self { place, launcher }
    }

    fn directory(&self, name: &str) -> PathBuf {
        let path = self.place.join(name);
        fs::create_dir(&path).unwrap();
        path
    }

    fn request(&self, script: &str) -> Request {
        Request {
            id: format!("upper-{}", std::process::id()),
            root: Root::Layers(vec![self.place.join("image")]),
            read_only: false,
            upper: None,
            emulate_root: false,
            seccomp: sbxrt_runtime::seccomp::Policy::Default,
            mounts: Vec::new(),
            process: Process {
                args: ["busybox", "sh", "-ec", script].map(str::to_owned).to_vec(),
                env: vec!["PATH=/bin".to_owned()],
                cwd: "/".into(),
                user: String::new(),
                terminal: None,
                rlimits: Vec::new(),
            },
            hostname: "box".to_owned(),
            network: Network::None,
            limits: Limits {
                wall_time: Some(Duration::from_secs(60)),
                ..Limits::default()
            },
            outputs: sbxrt_runtime::Outputs::default(),
            files: Vec::new(),
            require: BTreeMap::new(),
        }
    }

    fn try_run(&self, request: &Request) -> Result<(Report, String), Error> {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let null = || OwnedFd::from(fs::File::open("/dev/null").unwrap());
        let streams = [null(), writer.try_clone().unwrap().into(), writer.into()];
        let run = self.launcher.run(request, Some(&streams))?;
        drop(streams);
        let mut output = String::new();
        reader.read_to_string(&mut output).unwrap();
        loop {
            if let Progress::Finished(report) = run.next()? {
                return Ok((*report, output));
            }
        }
    }

    /// Runs a script that must succeed; what it said.
    fn run(&self, request: &Request) -> (Report, String) {
        let (report, output) = self.try_run(request).unwrap();
        assert_eq!(
            report.termination,
            Termination::Exited { code: 0 },
            "{output}"
        );
        let left: Vec<_> = names(&self.place)
            .into_iter()
            .filter(|name| name.starts_with(".sbxrt"))
            .collect();
        assert_eq!(left, [""; 0], "left behind");
        (report, output)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.place));
    }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Everything below a directory as `path kind mode`, sorted.
fn tree(root: &Path) -> Vec<String> {
    fn walk(root: &Path, directory: &Path, lines: &mut Vec<String>) {
        for name in names(directory) {
            let path = directory.join(name);
            let status = fs::symlink_metadata(&path).unwrap();
            let kind = match status.file_type() {
                kind if kind.is_dir() => "directory",
                kind if kind.is_symlink() => "link",
                kind if kind.is_fifo() => "fifo",
                kind if kind.is_char_device() && status.rdev() == 0 => "whiteout",
                kind if kind.is_file() => "file",
                _ => "other",
            };
            let inside = path.strip_prefix(root).unwrap().display();
            match kind {
                "whiteout" | "link" => lines.push(format!("{inside} {kind}")),
                _ => lines.push(format!("{inside} {kind} {:o}", status.mode() & 0o7777)),
            }
            if kind == "directory" {
                walk(root, &path, lines);
            }
        }
    }
    let mut lines = Vec::new();
    walk(root, root, &mut lines);
    lines
}

fn a_run_that_changes_nothing_leaves_nothing(bench: &Bench) {
    let data = bench.directory("data");
    fs::write(data.join("file"), "host").unwrap();
    for (index, network) in [Network::None, Network::Host].into_iter().enumerate() {
        let upper = bench.directory(&format!("upper{index}"));
        let request = Request {
            upper: Some(upper.clone()),
            network,
            emulate_root: true,
            mounts: vec![
                Mount::read_only(&data, "/usr/share/new/data"),
                Mount::read_only(data.join("file"), "/missing/file"),
                Mount::tmpfs("/scratch", 1 << 20),
            ],
            ..bench.request(
                "cat /etc/hostname /etc/hosts /missing/file /usr/share/new/data/file; ls -a /",
            )
        };
        let (report, output) = bench.run(&request);
        assert!(
            output.starts_with("box\n127.0.0.1") || network == Network::Host,
            "{output}"
        );
        assert!(output.contains("hosthost"), "{output}");
        assert_eq!(tree(&upper), [""; 0], "{network}");
        assert_eq!(report.enforcement[&LimitName::Scratch], Mechanism::None);
    }
}

fn an_upper_directory_holds_what_changed(bench: &Bench) {
    let upper = bench.directory("upper");
    let request = Request {
        upper: Some(upper.clone()),
        ..bench.request(
            "echo new >/etc/new; echo more >>/etc/motd; busybox rm -r /opt/old; busybox mkdir /opt/old; \
             busybox rm /bin/cat; busybox mkfifo /usr/fifo; echo t >/tmp/t; ! busybox mv /usr/share /usr/moved 2>/dev/null \
             || true; echo hosts >>/etc/hosts; busybox ln -s nowhere /opt/link; busybox chmod 4755 /etc/new",
        )
    };
    bench.run(&request);
    let kept = tree(&upper);
    let expected = [
        "bin directory 755",
        "bin/cat whiteout",
        "etc directory 750",
        "etc/motd file 644",
        "etc/new file 4755",
        "opt directory 755",
        "opt/link link",
        "opt/old directory 755",
        "tmp directory 755",
        "tmp/t file 644",
        "usr directory 711",
        "usr/fifo fifo 644",
    ];
    // busybox mv falls back on copying, as mv(1) does; either is right.
    let kept: Vec<&String> = kept
        .iter()
        .filter(|line| !line.starts_with("usr/moved") && !line.starts_with("usr/share"))
        .collect();
    assert_eq!(kept, expected);
    assert_eq!(
        fs::read_to_string(upper.join("etc/motd")).unwrap(),
        "imagemore\n"
    );
    // The image itself is as it was.
    assert_eq!(
        fs::read_to_string(bench.place.join("image/etc/motd")).unwrap(),
        "image"
    );
    assert!(bench.place.join("image/opt/old/file").exists());
}

fn an_upper_directory_is_a_layer(bench: &Bench) {
    let first = bench.directory("first");
    let script = "busybox rm -r /opt/old; busybox mkdir /opt/old; echo 1 >/opt/old/new; busybox rm /etc/motd";
    bench.run(&Request {
        upper: Some(first.clone()),
        ..bench.request(script)
    });
    let second = bench.directory("second");
    let request = Request {
        root: Root::Layers(vec![bench.place.join("image"), first]),
        upper: Some(second.clone()),
        ..bench.request("ls /opt/old; ls /etc; echo 2 >>/opt/old/new")
    };
    let (_, output) = bench.run(&request);
    assert_eq!(output, "new\nhostname\nhosts\nresolv.conf\n");
    assert_eq!(
        fs::read_to_string(second.join("opt/old/new")).unwrap(),
        "1\n2\n"
    );
    assert_eq!(
        tree(&second),
        [
            "opt directory 755",
            "opt/old directory 755",
            "opt/old/new file 644"
        ]
    );
}

fn an_image_of_nothing_has_a_root(bench: &Bench) {
    let upper = bench.directory("upper");
    let request = Request {
        root: Root::Layers(Vec::new()),
        upper: Some(upper.clone()),
        mounts: vec![Mount::read_only(bench.place.join("image/bin"), "/bin")],
        ..bench.request("echo x >/made; ls /")
    };
    let (_, output) = bench.run(&request);
    assert_eq!(output, "bin\ndev\netc\nmade\nproc\nsys\ntmp\n");
    assert_eq!(tree(&upper), ["made file 644"]);
}

fn what_cannot_be_kept_is_an_error(bench: &Bench) {
    let upper = bench.directory("upper");
    let missing = Request {
        upper: Some(bench.place.join("missing")),
        ..bench.request("true")
    };
    let relative = Request {
        upper: Some("relative".into()),
        ..bench.request("true")
    };
    let read_only = Request {
        upper: Some(upper.clone()),
        read_only: true,
        ..bench.request("true")
    };
    let host = Request {
        upper: Some(upper.clone()),
        root: Root::Host,
        ..bench.request("true")
    };
    let required = Request {
        upper: Some(upper),
        require: [(LimitName::Scratch, Requirement::Exactly(Mechanism::Tmpfs))].into(),
        ..bench.request("true")
    };
    for (request, expected) in [
        (missing, "missing: ENOENT"),
        (relative, "relative: the path must be absolute"),
        (read_only, "it is read-only"),
        (host, "host:, which is not made of layers"),
        (
            required,
            "scratch: tmpfs is required, but nothing can hold it here",
        ),
    ] {
        let error = bench.try_run(&request).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(names(&bench.place), ["image", "upper"]);
}

fn owners_and_devices_are_pretended(bench: &Bench) {
    let upper = bench.directory("upper");
    let request = Request {
        upper: Some(upper.clone()),
        emulate_root: true,
        ..bench.request(
            "echo x >/f; busybox chown 12:34 /f; busybox mknod /dev-null c 1 3; busybox mknod /pipe p; \
             busybox setuidgid 12:34 true 2>/dev/null || true; busybox stat -c %u:%g /f; busybox id -u; \
             test ! -e /dev-null; cat \"$APT_CONFIG\"",
        )
    };
    let (report, output) = bench.run(&request);
    assert_eq!(output, "0:0\n0\nAPT::Sandbox::User \"root\";\n");
    assert!(report.root_emulated);
    assert_eq!(tree(&upper), ["f file 644", "pipe fifo 644"]);
    assert_eq!(
        fs::metadata(upper.join("f")).unwrap().uid(),
        nix::unistd::geteuid().as_raw()
    );
}

fn without_emulation_owners_are_refused(bench: &Bench) {
    let request = bench.request(
        "! busybox chown 12:34 /etc/motd 2>/dev/null; ! busybox chroot / true 2>/dev/null; echo \"[$APT_CONFIG]\"; \
         test ! -e /dev/sbxrt; busybox grep CapEff /proc/self/status",
    );
    let (report, output) = bench.run(&request);
    assert_eq!(output, "[]\nCapEff:\t0000000000000000\n");
    assert!(!report.root_emulated);
}

fn emulated_root_reads_its_own_files(bench: &Bench) {
    let script = "busybox mkdir -m 555 /d; echo x >/d/f; busybox chmod 000 /d/f; cat /d/f; \
        busybox mkdir /r; busybox cp -a /bin /r/bin; busybox chroot /r /bin/sh -c 'busybox ls /'; \
        busybox grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp:' /proc/self/status; \
        ! busybox unshare -m true 2>/dev/null; ! busybox mount -t tmpfs t /r 2>/dev/null";
    let (_, output) = bench.run(&Request {
        emulate_root: true,
        ..bench.request(script)
    });
    let capabilities = "0000000000040002";
    let none = "0000000000000000";
    assert_eq!(
        output,
        format!(
            "x\nbin\nCapInh:\t{none}\nCapPrm:\t{capabilities}\nCapEff:\t{capabilities}\nCapBnd:\t{capabilities}\n\
             CapAmb:\t{none}\nNoNewPrivs:\t1\nSeccomp:\t2\n"
        )
    );
    // Somebody else than root has no more than before.
    let mut request = Request {
        emulate_root: true,
        ..bench.request("busybox grep CapPrm /proc/self/status")
    };
    request.process.user.push_str("1000");
    assert_eq!(bench.run(&request).1, format!("CapPrm:\t{none}\n"));
}
