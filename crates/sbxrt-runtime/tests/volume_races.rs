//! CVE-2021-30465 and CVE-2021-25741: somebody exchanges a directory of a volume for a symbolic link and back, as fast as the
//! kernel lets them, while sandboxes start that mount below it, mount what is below it, or have it collected (CVE-2018-15664).
//!
//! 8 seconds of each by default; `SBXRT_TEST_RACES` says how many starts instead. A test without a harness, because a copy of
//! it becomes the launcher, and another the programs inside.

#![expect(clippy::print_stdout, reason = "a test speaks to its reader")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use sbxrt_runtime::{
    Error, FileKind, Launcher, Limits, Mount, MountSource, Network, OutputFile, OutputPath,
    Outputs, Process, Progress, Report, Request, Root, Run, Termination, init,
};

type Test = (&'static str, fn(&Bench));

const TESTS: &[Test] = &[
    (
        "a_mount_point_that_becomes_a_link_leads_nowhere_outside",
        a_mount_point_that_becomes_a_link_leads_nowhere_outside,
    ),
    (
        "a_source_that_becomes_a_link_is_never_what_it_leads_to",
        a_source_that_becomes_a_link_is_never_what_it_leads_to,
    ),
    (
        "an_output_that_becomes_a_link_is_never_what_it_leads_to",
        an_output_that_becomes_a_link_is_never_what_it_leads_to,
    ),
];

/// Where this program is inside.
const PROGRAM: &str = "/opt/program";
/// What [`look`] ends with: the mark, the canary, neither.
const MARK: i32 = 10;
const CANARY: i32 = 11;
const NEITHER: i32 = 12;

fn main() -> ExitCode {
    init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is = |option: &str| arguments.iter().any(|argument| argument == option);
    if is("--list") {
        if !is("--ignored") {
            for (name, _) in TESTS {
                println!("{name}: test");
            }
        }
        return ExitCode::SUCCESS;
    }
    match arguments.first().map(String::as_str) {
        Some("exchange") => exchange(Path::new(&arguments[1]), Path::new(&arguments[2]), || true),
        Some("look") => return look(&arguments[1..]),
        _ => {}
    }
    let filters: Vec<&String> = arguments
        .iter()
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    for (name, test) in TESTS {
        if filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str())) {
            println!("{name}");
            test(&Bench::new());
        }
    }
    ExitCode::SUCCESS
}

/// Exchanges two names for as long as `on` says.
fn exchange(one: &Path, other: &Path, on: impl Fn() -> bool) {
    while on() {
        renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE).unwrap();
    }
}

/// Says by its exit status what is in any of `directories`.
fn look(directories: &[String]) -> ExitCode {
    let has = |name: &str| {
        directories
            .iter()
            .any(|it| Path::new(it).join(name).exists())
    };
    let found = if has("canary") {
        CANARY
    } else if has("mark") {
        MARK
    } else {
        NEITHER
    };
    ExitCode::from(u8::try_from(found).unwrap())
}

struct Bench {
    place: PathBuf,
    launcher: Launcher,
}

impl Bench {
    fn new() -> Self {
        let place = std::env::temp_dir().join(format!("sbxrt-races-{}", std::process::id()));
        fs::create_dir_all(place.join("shared/sub")).unwrap();
        fs::create_dir(place.join("victim")).unwrap();
        fs::write(place.join("victim/canary"), "").unwrap();
        symlink(place.join("victim"), place.join("shared/link")).unwrap();
        fs::create_dir(place.join("data")).unwrap();
        fs::write(place.join("data/mark"), "").unwrap();
        fs::write(place.join("shared/sub/mark"), "").unwrap();
        Self {
            place,
            launcher: Launcher::spawn().unwrap(),
        }
    }

    fn start(&self, id: &str, words: &[&str], mut mounts: Vec<Mount>, outputs: &Outputs) -> Run {
        mounts.push(Mount::read_only(std::env::current_exe().unwrap(), PROGRAM));
        let words = [PROGRAM].iter().chain(words);
        let request = Request {
            id: format!("race-{}-{id}", std::process::id()),
            root: Root::Host,
            read_only: false,
            upper: None,
            emulate_root: false,
            seccomp: sbxrt_runtime::seccomp::Policy::Default,
            mounts,
            process: Process {
                args: words.map(|&word| word.to_owned()).collect(),
                env: Vec::new(),
                cwd: "/".into(),
                user: String::new(),
                terminal: None,
                rlimits: Vec::new(),
            },
            hostname: "box".to_owned(),
            network: Network::None,
            limits: Limits::default(),
            outputs: outputs.clone(),
            files: Vec::new(),
            require: BTreeMap::new(),
        };
        self.launcher.run(&request, None).unwrap()
    }

    /// Starts as many sandboxes as is asked for, one after the other, and counts what they see: by exit status, or by the
    /// reason for which they were refused.
    fn race(
        &self,
        words: &[&str],
        mounts: impl Fn(usize) -> Vec<Mount>,
        outputs: &Outputs,
        check: impl Fn(Vec<OutputFile>),
    ) -> BTreeMap<String, usize> {
        let wanted = std::env::var("SBXRT_TEST_RACES");
        let wanted: Option<usize> = wanted.ok().map(|number| number.parse().unwrap());
        let began = Instant::now();
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let mut count = 0;
        loop {
            let over = match wanted {
                Some(wanted) => count == wanted,
                None => began.elapsed() > Duration::from_secs(8),
            };
            if over && count > 0 {
                break;
            }
            let run = self.start("look", words, mounts(count), outputs);
            let end = match wait(&run) {
                Ok(report) => {
                    check(report.outputs);
                    match report.termination {
                        Termination::Exited { code } => code.to_string(),
                        other => panic!("{other:?}"),
                    }
                }
                Err(Error::Start(failure)) => format!("{}: {}", failure.step, failure.reason),
                Err(error) => panic!("{error}"),
            };
            *seen.entry(end).or_default() += 1;
            count += 1;
        }
        println!("{count} starts in {:?}: {seen:#?}", began.elapsed());
        seen
    }

    /// Nothing was made in the victim's directory, and nothing taken from it.
    fn assert_untouched(&self) {
        let names: Vec<_> = fs::read_dir(self.place.join("victim"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["canary"], "a mount point was made on the host");
    }
}

fn wait(run: &Run) -> Result<Report, Error> {
    loop {
        if let Progress::Finished(report) = run.next()? {
            return Ok(*report);
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.place));
    }
}

/// One sandbox exchanges; others that share the volume have another one mounted at a path in it, which has to be made.
fn a_mount_point_that_becomes_a_link_leads_nowhere_outside(bench: &Bench) {
    let shared = || Mount::read_write(bench.place.join("shared"), "/shared");
    let exchanging = bench.start(
        "exchange",
        &["exchange", "/shared/sub", "/shared/link"],
        vec![shared()],
        &Outputs::default(),
    );
    assert!(matches!(exchanging.next(), Ok(Progress::Started(_))));
    let victim = bench.place.join("victim");
    let words = ["look", "/shared/sub/point", "/shared/link/point"];
    let mounts = |count: usize| {
        // Each second time the mount point is there already.
        if count.is_multiple_of(2) {
            for name in ["sub", "link"] {
                let directory = bench.place.join("shared").join(name);
                if directory.symlink_metadata().is_ok_and(|it| it.is_dir()) {
                    drop(fs::remove_dir(directory.join("point")));
                }
            }
        }
        vec![
            // So that the link leads to something inside too.
            Mount::tmpfs(&victim, 1 << 20),
            shared(),
            Mount::read_only(bench.place.join("data"), "/shared/sub/point"),
        ]
    };
    let seen = bench.race(&words, mounts, &Outputs::default(), drop);
    bench.assert_untouched();
    assert!(!seen.contains_key(&CANARY.to_string()), "the host was seen");
    exchanging.cancel().unwrap();
    let report = wait(&exchanging).unwrap();
    assert_eq!(report.termination, Termination::Cancelled);
}

/// Ends the exchange, also where the test fails.
struct Off<'a>(&'a AtomicBool);

impl Drop for Off<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Somebody outside exchanges; sandboxes are shown what is below the directory.
fn a_source_that_becomes_a_link_is_never_what_it_leads_to(bench: &Bench) {
    let on = AtomicBool::new(true);
    let shared = bench.place.join("shared");
    let (sub, link) = (shared.join("sub"), shared.join("link"));
    std::thread::scope(|scope| {
        scope.spawn(|| exchange(&sub, &link, || on.load(Ordering::Relaxed)));
        let off = Off(&on);
        let mounts = |_| {
            vec![Mount {
                destination: "/seen".into(),
                source: MountSource::Beneath {
                    directory: shared.clone(),
                    path: "sub".into(),
                },
                read_only: true,
            }]
        };
        let seen = bench.race(&["look", "/seen"], mounts, &Outputs::default(), drop);
        drop(off);
        for end in seen.keys() {
            let refused = end.contains("leads out");
            assert!(refused || *end == MARK.to_string(), "{end}");
        }
    });
    bench.assert_untouched();
}

/// Somebody outside exchanges while a volume is looked through and copied.
fn an_output_that_becomes_a_link_is_never_what_it_leads_to(bench: &Bench) {
    let on = AtomicBool::new(true);
    let shared = bench.place.join("shared");
    let (sub, link) = (shared.join("sub"), shared.join("link"));
    fs::write(bench.place.join("victim/canary"), "secret").unwrap();
    let copies = bench.place.join("copies");
    fs::create_dir(&copies).unwrap();
    let look = |path: &str| OutputPath {
        path: path.into(),
        copy_to: None,
    };
    let mut paths = vec![look("/shared/sub/canary"), look("/shared/sub")];
    paths.resize(20, look("/shared"));
    paths.push(OutputPath {
        path: "/shared".into(),
        copy_to: Some(copies.join("copy")),
    });
    let outputs = Outputs {
        paths,
        ..Outputs::default()
    };
    let check = |files: Vec<OutputFile>| {
        for file in &files {
            let is_canary = file.path.ends_with("canary") || file.size > 0;
            let is_link = file.kind == FileKind::Symlink;
            assert!(!is_canary && !is_link || file.refused.is_some(), "{file:?}");
        }
        for name in ["sub", "link"] {
            let copied = copies.join("copy").join(name);
            assert!(!copied.is_symlink() && !copied.join("canary").exists());
        }
        fs::remove_dir_all(copies.join("copy")).unwrap();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| exchange(&sub, &link, || on.load(Ordering::Relaxed)));
        let off = Off(&on);
        let mounts = |_| vec![Mount::read_write(&shared, "/shared")];
        bench.race(&["look", "/"], mounts, &outputs, check);
        drop(off);
    });
}
