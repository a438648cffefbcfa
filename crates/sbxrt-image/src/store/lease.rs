//! Leases: who makes what at this moment, on this machine and on others that share the store.
//!
//! A lease is a small file that says who holds it. Three things tell whether its holder lives, and each is asked only
//! for what it can know:
//!
//! 1. `flock`. The kernel lets go of it however a process ends, so on one machine it is the truth. It may be missing
//!    (`ENOSYS` on Lustre without `-o flock`, `ENOLCK` on NFS without its lock service) or hold on one machine only
//!    (`localflock`, `local_lock`), so a lock that is free says nothing of a holder on another machine.
//! 2. The process, where the holder was on this boot of this machine and `flock` is missing: its id and start time.
//! 3. The heartbeat: the holder renews the modification time every [`HEARTBEAT`]. A lease is stale when that time is
//!    older than [`STALE`] by the clock of the file system (that of a file that is written now, since machines disagree
//!    about the time) and has not changed while the one who waits has watched it for [`WATCHED`] by its own clock,
//!    however wrong the clocks are.
//!
//! What a lease promises: while its holder lives and reaches the file system, nobody else begins the same work. What it
//! does not promise: that there are never two. Whoever cannot reach the file system for a minute loses its lease and
//! does not know it. This costs work and nothing else: each holder works in a [scratch](crate::scratch) directory of
//! its own, and what is finished comes into its place by one `rename`, of which the second finds the first's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, CWD, FlockOperation, RenameFlags, Timespec, Timestamps, UTIME_NOW};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::{Digest, Error, Result};

/// How often a holder says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long a holder may say nothing.
const STALE: Duration = Duration::from_secs(60);
/// How long a lease must have been seen not to change: two heartbeats.
const WATCHED: Duration = Duration::from_secs(20);
/// How long a lease on another machine may say nothing and still count where nobody can wait and watch it.
pub(crate) const GONE: Duration = Duration::from_secs(180);
/// How old what another machine left must be before it is removed.
pub(crate) const ABANDONED: Duration = Duration::from_secs(3600);

/// A process, as others can look for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// For people; machines are told apart by their boot.
    host: String,
    boot_id: String,
    /// The namespace that the process id belongs to: containers on one machine count on their own.
    pid_namespace: String,
    pid: u32,
    /// In clock ticks since the boot: a process id alone may be used again.
    started: u64,
}

impl Owner {
    /// Returns this process.
    pub(crate) fn this() -> &'static Self {
        static THIS: OnceLock<Owner> = OnceLock::new();
        THIS.get_or_init(|| Self {
            host: kernel("/proc/sys/kernel/hostname"),
            boot_id: kernel("/proc/sys/kernel/random/boot_id"),
            pid_namespace: fs::read_link("/proc/self/ns/pid")
                .map(|path| path.to_string_lossy().into_owned())
                .unwrap_or_default(),
            pid: std::process::id(),
            started: started("self").unwrap_or_default(),
        })
    }

    /// Returns a word that stands for this boot of this machine and this process's namespace in names of files.
    pub(crate) fn machine() -> &'static str {
        static MACHINE: OnceLock<String> = OnceLock::new();
        MACHINE.get_or_init(|| {
            let Self {
                boot_id,
                pid_namespace,
                ..
            } = Self::this();
            let digest = Digest::of(format!("{boot_id}\n{pid_namespace}").as_bytes());
            digest.short().to_owned()
        })
    }

    fn is_on_this_boot(&self) -> bool {
        let this = Self::this();
        !self.boot_id.is_empty() && self.boot_id == this.boot_id
    }

    /// Whether it lives; `None` where that cannot be seen from here.
    fn lives(&self) -> Option<bool> {
        let this = Self::this();
        if !self.is_on_this_boot() || self.pid_namespace != this.pid_namespace {
            return None;
        }
        Some(started(&self.pid.to_string()) == Some(self.started))
    }
}

fn kernel(path: &str) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// When a process was started; `None` where it is not there.
fn started(pid: &str) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // PID (NAME) STATE …; the name may hold anything. The start is the 22nd field.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19)?.parse().ok()
}

/// Returns a name that no other process uses, on this machine or another.
pub(crate) fn unique_name(purpose: &str) -> String {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    format!(
        "{purpose}-{}-{}-{serial}",
        Owner::machine(),
        std::process::id()
    )
}

/// Whether the process that made a [`unique_name`] has ended; `None` where that cannot be seen from here.
pub(crate) fn maker_is_dead(name: &str) -> Option<bool> {
    let mut parts = name.rsplitn(4, '-');
    let (_serial, pid, machine) = (parts.next()?, parts.next()?, parts.next()?);
    let pid = pid.parse::<u32>().ok()?;
    (machine == Owner::machine()).then(|| started(&pid.to_string()).is_none())
}

/// A file that this process holds for as long as the value lives. It is not removed with it.
#[derive(Debug)]
pub(crate) struct Lease {
    file: Arc<File>,
}

impl Lease {
    /// Makes a file that was not there and holds it.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        // Before anybody can read whose it is: a free lock of a process of this machine means that it is dead. Who
        // looks for the dead may have it for a moment.
        for _ in 0..1000 {
            if try_lock(&file)? != Lock::Busy {
                break;
            }
            std::thread::park_timeout(Duration::from_micros(100));
        }
        let owner = serde_json::to_vec(Owner::this())?;
        file.write_all(&owner)?;
        let file = Arc::new(file);
        heartbeat(&file);
        Ok(Self { file })
    }

    /// Whether a path names this lease.
    fn is_at(&self, path: &Path) -> bool {
        is_at(&self.file, path)
    }
}

/// What can be said of a lease's holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// It lives, or there is nothing that says otherwise.
    Alive,
    /// It is dead.
    Dead,
    /// It is on another machine, or the file says nothing of it: only the heartbeat tells.
    Elsewhere,
}

/// Looks at the holder of a lease. Where it is dead, the lock of `file` is held from then on.
pub(crate) fn holder(file: &File) -> io::Result<Holder> {
    let locked = try_lock(file)?;
    if locked == Lock::Busy {
        return Ok(Holder::Alive);
    }
    let mut text = String::new();
    // Longer than any owner that was written here.
    let read = file.take(4096).read_to_string(&mut text);
    let owner = read
        .ok()
        .and_then(|_| serde_json::from_str::<Owner>(&text).ok());
    let holder = match (&owner, locked) {
        (Some(owner), Lock::Taken) if owner.is_on_this_boot() => Holder::Dead,
        (Some(owner), _) => match owner.lives() {
            Some(true) => Holder::Alive,
            Some(false) => Holder::Dead,
            None => Holder::Elsewhere,
        },
        (None, _) => Holder::Elsewhere,
    };
    if holder != Holder::Dead && locked == Lock::Taken {
        // It is not ours to hold.
        rustix::fs::flock(file, FlockOperation::Unlock)?;
    }
    Ok(holder)
}

/// Whether what waits for a lease has seen its heartbeat stop.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    seen: Option<(Beat, Instant)>,
}

/// One state of a lease: its inode and modification time.
type Beat = (u64, i64, i64);

impl Watch {
    fn is_stale(&mut self, file: &File, now: impl FnOnce() -> Result<SystemTime>) -> Result<bool> {
        let failed = |error| Error::io("stat", Path::new("lease"), error);
        let metadata = file.metadata().map_err(failed)?;
        let beat = (metadata.ino(), metadata.mtime(), metadata.mtime_nsec());
        let since = match self.seen {
            Some((seen, since)) if seen == beat => since,
            _ => {
                self.seen = Some((beat, Instant::now()));
                return Ok(false);
            }
        };
        if since.elapsed() < WATCHED {
            return Ok(false);
        }
        let modified = metadata.modified().map_err(failed)?;
        Ok(now()?.duration_since(modified).is_ok_and(|age| age > STALE))
    }
}

/// Returns the time by the clock of the file system that `directory` is on.
pub(crate) fn file_system_time(directory: &Path) -> Result<SystemTime> {
    let path = directory.join(unique_name("time"));
    let failed = |error| Error::io("create", &path, error);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    let time = file.metadata().and_then(|metadata| metadata.modified());
    drop(file);
    fs::remove_file(&path).map_err(failed)?;
    time.map_err(failed)
}

/// The right to do what many want and one should do, such as to fetch a layer. It ends with the value.
#[derive(Debug)]
pub(crate) struct Claim {
    path: PathBuf,
    lease: Lease,
}

/// A wish for a [`Claim`], with what was seen of the one who has it.
#[derive(Debug)]
pub(crate) struct Waiting {
    directory: PathBuf,
    path: PathBuf,
    watch: Watch,
}

impl Waiting {
    pub(crate) fn new(directory: &Path, name: &str) -> Self {
        Self {
            directory: directory.to_owned(),
            path: directory.join(name),
            watch: Watch::default(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the claim; `None` while somebody else has it. Never waits.
    pub(crate) fn attempt(&mut self) -> Result<Option<Claim>> {
        // Bounded: whoever is always overtaken has somebody to wait for.
        for _ in 0..8 {
            if !self.clear_the_way()? {
                return Ok(None);
            }
            if let Some(claim) = self.make()? {
                return Ok(Some(claim));
            }
        }
        Ok(None)
    }

    /// Removes the claim of somebody who is dead; whether there is none now.
    fn clear_the_way(&mut self) -> Result<bool> {
        let failed = |path: &Path, error| Error::io("lock", path, error);
        // Opened anew each time: on NFS it is opening a file that asks the server for its times.
        let file = match OpenOptions::new().read(true).write(true).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(Error::io("open", &self.path, error)),
        };
        let holder = holder(&file).map_err(|error| failed(&self.path, error))?;
        if holder != Holder::Dead {
            let directory = &self.directory;
            if !self.watch.is_stale(&file, || file_system_time(directory))? {
                return Ok(false);
            }
            tracing::warn!(path = %self.path.display(), "taking over from a process that says nothing any more");
        }
        evict(&self.path, &file)?;
        Ok(true)
    }

    /// Makes the claim; `None` where somebody else was faster.
    fn make(&self) -> Result<Option<Claim>> {
        // Made under another name, so that it is never seen without its owner and lock.
        let unfinished = self.directory.join(unique_name("claim"));
        let lease =
            Lease::create(&unfinished).map_err(|error| Error::io("create", &unfinished, error))?;
        let linked = place(&unfinished, &self.path);
        drop(fs::remove_file(&unfinished));
        let lease = match linked {
            Ok(()) => lease,
            Err(Errno::EXIST) => return Ok(None),
            // Neither links nor a rename that keeps what is there: the file is made where it is to be.
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::MLINK) => {
                match Lease::create(&self.path) {
                    Ok(lease) => lease,
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
                    Err(error) => return Err(Error::io("create", &self.path, error)),
                }
            }
            Err(error) => return Err(Error::io("create", &self.path, error)),
        };
        Ok(Some(Claim {
            path: self.path.clone(),
            lease,
        }))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // It may have been taken over.
        if self.lease.is_at(&self.path)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "claim stays behind until it is swept");
        }
    }
}

/// Puts a file where there is none, or fails with `EEXIST`.
fn place(from: &Path, to: &Path) -> Result<(), Errno> {
    match rustix::fs::linkat(CWD, from, CWD, to, AtFlags::empty()) {
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK) => {
            rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)
        }
        linked => linked,
    }
}

/// Removes a lease that was looked at. Where another one has come into its place meanwhile, that one stays.
pub(crate) fn evict(path: &Path, judged: &File) -> Result<()> {
    if !is_at(judged, path) {
        return Ok(());
    }
    let Some(directory) = path.parent() else {
        return Ok(());
    };
    let dead = directory.join(unique_name("dead"));
    match fs::rename(path, &dead) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("rename", path, error)),
    }
    if !is_at(judged, &dead) {
        // Somebody else was faster and has begun.
        if let Err(error) = place(&dead, path) {
            tracing::debug!(path = %path.display(), %error, "two work at the same thing now");
        }
    }
    match fs::remove_file(&dead) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", &dead, error))
        }
        _ => Ok(()),
    }
}

/// What became of an attempt to lock a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lock {
    Taken,
    Busy,
    /// The file system has no such locks.
    Missing,
}

/// Takes a file's lock where there are locks.
pub(crate) fn try_lock(file: &File) -> io::Result<Lock> {
    try_lock_as(file, FlockOperation::NonBlockingLockExclusive)
}

/// Takes a file's lock, shared or exclusively, where there are locks.
pub(crate) fn try_lock_as(file: &File, operation: FlockOperation) -> io::Result<Lock> {
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(Lock::Taken),
        Err(Errno::WOULDBLOCK) => Ok(Lock::Busy),
        // flock(2): no lock service (NFS), no such operation (Lustre without -o flock, some FUSE file systems), and
        // an exclusive lock of a file that is not open for writing (NFS).
        Err(Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::BADF) => {
            Ok(Lock::Missing)
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether an open file is the one that a path names.
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    let Ok(open) = file.metadata() else {
        return false;
    };
    fs::symlink_metadata(path)
        .is_ok_and(|named| (named.dev(), named.ino()) == (open.dev(), open.ino()))
}

/// Renews a file's modification time from now on for as long as it is open.
fn heartbeat(file: &Arc<File>) {
    let hearts = Hearts::get();
    let mut beating = hearts.lock();
    beating.files.push(Arc::downgrade(file));
    if !beating.is_running {
        let thread = std::thread::Builder::new().name("sbxrt-lease".to_owned());
        // Without a thread the lease is stale in a minute, which costs others work and nothing else.
        beating.is_running = thread.spawn(|| Hearts::get().run()).is_ok();
    }
    hearts.more.notify_one();
}

/// The leases of this process.
#[derive(Debug, Default)]
struct Hearts {
    beating: Mutex<Beating>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Beating {
    files: Vec<Weak<File>>,
    is_running: bool,
}

impl Hearts {
    fn get() -> &'static Self {
        static HEARTS: OnceLock<Hearts> = OnceLock::new();
        HEARTS.get_or_init(Self::default)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Beating> {
        self.beating.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut beating = self.lock();
        loop {
            let waited = if beating.files.is_empty() {
                let woken = self.more.wait(beating);
                beating = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            } else {
                self.more.wait_timeout(beating, HEARTBEAT)
            };
            let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            beating = woken;
            if !timeout.timed_out() {
                // Something new, which was written a moment ago.
                continue;
            }
            beating.files.retain(|file| file.strong_count() > 0);
            let files = beating.files.clone();
            // A file system that hangs must not keep anybody from letting go.
            drop(beating);
            for file in files.iter().filter_map(Weak::upgrade) {
                touch(&file);
            }
            beating = self.lock();
        }
    }
}

/// Sets a file's times to now. That it fails shows in the file's age, and nobody here could do anything about it.
pub(crate) fn touch(file: &File) {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    if let Err(error) = rustix::fs::futimens(file, &times) {
        tracing::debug!(%error, "a time cannot be set");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(directory: &Path) -> Option<Claim> {
        Waiting::new(directory, "x").attempt().unwrap()
    }

    fn entries(directory: &Path) -> usize {
        fs::read_dir(directory).unwrap().count()
    }

    fn write(path: &Path, owner: &Owner) {
        fs::write(path, serde_json::to_vec(owner).unwrap()).unwrap();
    }

    fn elsewhere() -> Owner {
        Owner {
            host: "elsewhere".to_owned(),
            boot_id: "another".to_owned(),
            ..Owner::this().clone()
        }
    }

    fn age(path: &Path, age: Duration) {
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }

    #[test]
    fn a_claim_has_one_holder_and_goes_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let first = claim(directory.path());
        assert!(first.is_some());
        assert!(claim(directory.path()).is_none());
        drop(first);
        assert_eq!(entries(directory.path()), 0);
        assert!(claim(directory.path()).is_some());
    }

    #[test]
    fn the_claim_of_a_dead_process_of_this_machine_is_free_at_once() {
        let directory = tempfile::tempdir().unwrap();
        // Nobody has the lock, whatever the process id says: it may belong to another namespace.
        write(&directory.path().join("x"), Owner::this());
        assert!(claim(directory.path()).is_some());
    }

    #[test]
    fn the_claim_of_another_machine_counts_until_its_heartbeat_stops() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        write(&path, &elsewhere());
        let mut waiting = Waiting::new(directory.path(), "x");
        assert!(waiting.attempt().unwrap().is_none(), "it is fresh");
        age(&path, STALE * 2);
        assert!(waiting.attempt().unwrap().is_none(), "it has just changed");
        let long_ago = Instant::now().checked_sub(WATCHED).unwrap();
        waiting.watch.seen.as_mut().unwrap().1 = long_ago;
        assert!(waiting.attempt().unwrap().is_some());
    }

    #[test]
    fn a_clock_that_is_wrong_does_not_make_a_living_lease_stale() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        write(&path, &elsewhere());
        age(&path, STALE * 10);
        let mut waiting = Waiting::new(directory.path(), "x");
        for beat in 0..3 {
            assert!(waiting.attempt().unwrap().is_none(), "beat {beat}");
            let long_ago = Instant::now().checked_sub(WATCHED).unwrap();
            waiting.watch.seen.as_mut().unwrap().1 = long_ago;
            age(&path, STALE * (9 - beat));
        }
    }

    #[test]
    fn without_locks_the_process_decides() {
        let this = Owner::this();
        assert_eq!(this.lives(), Some(true));
        let reused = Owner {
            started: this.started + 1,
            ..this.clone()
        };
        assert_eq!(reused.lives(), Some(false));
        assert_eq!(elsewhere().lives(), None);
        let contained = Owner {
            pid_namespace: "pid:[1]".to_owned(),
            ..this.clone()
        };
        assert_eq!(contained.lives(), None);
    }

    #[test]
    fn a_claim_that_was_taken_over_leaves_the_new_one_alone() {
        let directory = tempfile::tempdir().unwrap();
        let first = claim(directory.path()).unwrap();
        evict(&first.path, &first.lease.file).unwrap();
        let second = claim(directory.path()).unwrap();
        drop(first);
        assert!(second.lease.is_at(&second.path));
        // Neither does whoever judged the first one remove the second.
        let judged = tempfile::tempfile().unwrap();
        evict(&second.path, &judged).unwrap();
        assert!(second.lease.is_at(&second.path));
    }

    #[test]
    fn of_many_who_want_a_claim_one_has_it_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let inside = AtomicU64::new(0);
        let done = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut waiting = Waiting::new(directory.path(), "x");
                    while done.load(Ordering::SeqCst) < 200 {
                        if let Some(claim) = waiting.attempt().unwrap() {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            done.fetch_add(1, Ordering::SeqCst);
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(claim);
                        }
                    }
                });
            }
        });
        assert_eq!(entries(directory.path()), 0);
    }

    #[test]
    fn names_tell_whether_their_maker_lives() {
        assert_eq!(maker_is_dead(&unique_name("layer")), Some(false));
        // Larger than any process id (the kernel's limit is 2^22).
        let dead = format!("layer-{}-99999999-0", Owner::machine());
        assert_eq!(maker_is_dead(&dead), Some(true));
        assert_eq!(maker_is_dead("layer-0123456789ab-1-0"), None);
        assert_eq!(maker_is_dead("x"), None);
    }
}
