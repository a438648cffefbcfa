//! What this process may use of the machine, as far as it can be told beforehand: so that whoever starts many executions
//! knows how many fit.

use std::fs;
use std::path::Path;

use crate::sys;

/// What there is for this process. `None` where nothing bounds it, or nobody says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Processors, by affinity and cgroup.
    pub processors: u64,
    /// Bytes of memory: what the machine has free, or a cgroup allows in all, whichever is less.
    pub memory: Option<u64>,
    /// Processes and threads that can still be started: by the user's limit, half of which is taken to be used up already,
    /// by the cgroup's, and by the machine's.
    pub processes: Option<u64>,
    /// Files that this process can still open.
    pub open_files: Option<u64>,
}

impl Room {
    /// Looks at this moment.
    pub fn find() -> Self {
        let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let of_cgroups = |controller, file: &str| {
            let mounted = Path::new("/sys/fs/cgroup");
            tightest(mounted, &cgroups, controller, file)
        };
        let available = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let user = sys::limit(libc::RLIMIT_NPROC)
            .ok()
            // It does not bind root.
            .filter(|_| !nix::unistd::geteuid().is_root())
            .map(|(soft, _)| soft / 2);
        let number = |file| fs::read_to_string(file).ok()?.trim().parse().ok();
        let open = fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
        let files = sys::limit(libc::RLIMIT_NOFILE).ok();
        Self {
            processors: std::thread::available_parallelism().map_or(1, |it| it.get() as u64),
            memory: least([
                parse_available(&available),
                of_cgroups("memory", "memory.max"),
                of_cgroups("memory", "memory.limit_in_bytes"),
            ]),
            processes: least([
                user,
                of_cgroups("pids", "pids.max"),
                number("/proc/sys/kernel/pid_max"),
                number("/proc/sys/kernel/threads-max"),
            ]),
            open_files: files.map(|(soft, _)| soft.saturating_sub(open)),
        }
    }
}

fn least<const N: usize>(values: [Option<u64>; N]) -> Option<u64> {
    values.into_iter().flatten().min()
}

fn parse_available(meminfo: &str) -> Option<u64> {
    let value = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// The least number in `file` of the cgroups that `/proc/self/cgroup` names, and of all above them.
fn tightest(mounted: &Path, cgroups: &str, controller: &str, file: &str) -> Option<u64> {
    let hierarchies = cgroups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let is_here = controllers.is_empty() || controllers.split(',').any(|it| it == controller);
        let top = mounted.join(controllers);
        let path = top.join(path.trim_start_matches('/'));
        is_here.then_some((top, path))
    });
    let values = hierarchies.flat_map(|(top, path)| {
        let above = path.ancestors().take_while(|it| it.starts_with(&top));
        let values = above.filter_map(|directory| {
            let text = fs::read_to_string(directory.join(file)).ok()?;
            text.trim().parse::<u64>().ok()
        });
        values.collect::<Vec<_>>()
    });
    values.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_limit_of_all_cgroups_above_counts() {
        let mounted = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = mounted.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("a/b/memory.max", "max\n");
        write("a/memory.max", "1000\n");
        write("memory.max", "900000\n");
        write("a/b/pids.max", "70\n");
        write("memory/job/memory.limit_in_bytes", "2000\n");
        let find =
            |cgroups: &str, controller, file| tightest(mounted.path(), cgroups, controller, file);
        assert_eq!(find("0::/a/b\n", "memory", "memory.max"), Some(1000));
        assert_eq!(find("0::/a/b\n", "pids", "pids.max"), Some(70));
        assert_eq!(find("0::/a\n", "pids", "pids.max"), None);
        let hybrid = "4:memory:/job\n3:pids:/\n0::/\n";
        let file = "memory.limit_in_bytes";
        assert_eq!(find(hybrid, "memory", file), Some(2000));
        assert_eq!(find("nonsense", "memory", file), None);
    }

    #[test]
    fn available_memory_is_in_bytes() {
        let text = "MemTotal: 99 kB\nMemAvailable:   16 kB\n";
        assert_eq!(parse_available(text), Some(16 << 10));
        assert_eq!(parse_available("MemTotal: 99 kB\n"), None);
    }
}
