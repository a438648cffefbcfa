//! What an attack must not have touched, beside leaving nothing behind ([`Host`](crate::Host)).
//!
//! Other tests, and other people, use the machine at the same time. So what is compared is what nobody else has a reason
//! to change, and counters of the whole machine are given room and time.

use std::collections::BTreeMap;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify;

use crate::sbxrt::walk;
use crate::{Fixtures, PATIENCE, Sbxrt, eventually};

/// Settings that an escape would write: they name programs which the kernel runs as root.
const SETTINGS: &[&str] = &[
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/poweroff_cmd",
    "/proc/sys/fs/binfmt_misc/status",
];
/// Directories, with all that is in them, that nothing of a test may change.
const TREES: &[&str] = &["/boot", "/etc"];
/// What a file that nobody may read holds.
const CANARY: &str = "nobody has read this";
/// By how much counters of the machine may differ: other programs come and go.
const ROOM: Counters = Counters {
    files: 10_000,
    shared_memory: 256 << 20,
    memory: 1 << 30,
    disk: 1 << 30,
};

/// A machine before an attack.
#[derive(Debug)]
pub struct Witness {
    binary: PathBuf,
    directory: PathBuf,
    canaries: Vec<PathBuf>,
    opened: OwnedFd,
    settings: Vec<Option<String>>,
    files: BTreeMap<PathBuf, Identity>,
    counters: Counters,
}

/// What of a file changes when anything of it does.
type Identity = (u64, u64, u32, i64, i64);

impl Witness {
    /// Looks at the machine, and lays out files that nobody may open: in the user's home and beside it.
    pub fn new(sbxrt: &Sbxrt) -> Self {
        let opened = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC);
        let opened = opened.unwrap();
        let directory = sbxrt.home().parent().unwrap().to_owned();
        let canaries = vec![sbxrt.home().join("CANARY"), directory.join("CANARY")];
        for canary in &canaries {
            fs::write(canary, CANARY).unwrap();
            let events = inotify::WatchFlags::OPEN
                | inotify::WatchFlags::ATTRIB
                | inotify::WatchFlags::DELETE_SELF
                | inotify::WatchFlags::MOVE_SELF;
            inotify::add_watch(&opened, canary, events).unwrap();
        }
        let binary = sbxrt.binary().to_owned();
        Self {
            settings: settings(),
            files: files(&binary),
            counters: Counters::read(&directory),
            binary,
            directory,
            canaries,
            opened,
        }
    }

    /// Makes sure that nothing was touched.
    ///
    /// # Panics
    ///
    /// Where something was.
    pub fn assert_untouched(&self) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.opened, &mut buffer);
        if let Ok(event) = events.next() {
            panic!("a canary was touched: {:?}", event.events());
        }
        for canary in &self.canaries {
            let text = fs::read_to_string(canary).unwrap();
            assert_eq!(text, CANARY, "{}", canary.display());
        }
        assert_eq!(self.settings, settings(), "{SETTINGS:?}");
        let now = files(&self.binary);
        let changed: Vec<_> = self
            .files
            .iter()
            .filter(|(path, identity)| now.get(*path) != Some(identity))
            .chain(
                now.iter()
                    .filter(|(path, _)| !self.files.contains_key(*path)),
            )
            .map(|(path, _)| path)
            .collect();
        assert!(changed.is_empty(), "changed on the host: {changed:?}");
        let mut counters = Counters::read(&self.directory);
        let back = eventually(PATIENCE, || {
            counters = Counters::read(&self.directory);
            counters.is_back_to(&self.counters)
        });
        assert!(back, "before: {:?}\nafter: {counters:?}", self.counters);
    }
}

fn settings() -> Vec<Option<String>> {
    SETTINGS
        .iter()
        .map(|path| fs::read_to_string(path).ok())
        .collect()
}

/// The binary, the images of the tests, and [`TREES`].
fn files(binary: &Path) -> BTreeMap<PathBuf, Identity> {
    let mut found = BTreeMap::new();
    let mut note = |path: &Path| {
        if let Ok(status) = fs::symlink_metadata(path) {
            let identity = (
                status.ino(),
                status.size(),
                status.mode(),
                status.ctime(),
                status.ctime_nsec(),
            );
            found.insert(path.to_owned(), identity);
        }
    };
    note(binary);
    let images =
        Fixtures::find().map(|fixtures| [fixtures.busybox_rootfs(), fixtures.python_rootfs()]);
    let images = images
        .iter()
        .flatten()
        .map(|image| Path::new(image.strip_prefix("dir:").unwrap()));
    for tree in TREES.iter().map(Path::new).chain(images) {
        note(tree);
        walk(tree, &mut note);
    }
    found
}

/// What a machine has left.
#[derive(Debug, Clone, Copy)]
struct Counters {
    /// Open files.
    files: u64,
    /// Bytes in tmpfs, System V shared memory and the like.
    shared_memory: u64,
    /// Bytes that are not available.
    memory: u64,
    /// Bytes of the test's disk that are not free.
    disk: u64,
}

impl Counters {
    fn read(directory: &Path) -> Self {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
        let kibibytes = |name: &str| {
            let line = meminfo.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap()
                << 10
        };
        let file_nr = fs::read_to_string("/proc/sys/fs/file-nr").unwrap();
        let disk = rustix::fs::statvfs(directory).unwrap();
        Self {
            files: file_nr.split_whitespace().next().unwrap().parse().unwrap(),
            shared_memory: kibibytes("Shmem:"),
            memory: kibibytes("MemTotal:") - kibibytes("MemAvailable:"),
            disk: (disk.f_blocks - disk.f_bfree) * disk.f_frsize,
        }
    }

    fn is_back_to(&self, before: &Self) -> bool {
        self.files <= before.files + ROOM.files
            && self.shared_memory <= before.shared_memory + ROOM.shared_memory
            && self.memory <= before.memory + ROOM.memory
            && self.disk <= before.disk + ROOM.disk
    }
}
