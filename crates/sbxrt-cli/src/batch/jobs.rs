//! How many programs run at once where nobody says: as many as keep the processors busy and fit into memory.

use std::path::Path;

/// For each processor: while one program waits for the kernel to set it up or take it down, another one runs.
const PER_PROCESSOR: u64 = 2;

/// The number for programs that may use `memory` bytes each.
pub(crate) fn default(memory: Option<u64>) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    fitting(processors as u64, available(read), memory)
}

fn fitting(processors: u64, available: Option<u64>, memory: Option<u64>) -> usize {
    let busy = processors * PER_PROCESSOR;
    let room = available
        .zip(memory)
        .map_or(u64::MAX, |(available, memory)| available / memory.max(1));
    usize::try_from(busy.min(room).max(1)).unwrap_or(1)
}

/// How much memory there is: what the machine has left, or what a cgroup around this process allows, if that is less.
fn available(read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let free = read(Path::new("/proc/meminfo")).and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemAvailable:"))?;
        let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kibibytes << 10)
    });
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let allowed = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|it| it == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        // A job's limit may be on any directory above: SLURM puts it on the step and not on its tasks.
        let levels = Path::new(group).ancestors().filter_map(|level| {
            let level = level.strip_prefix("/").unwrap_or(level);
            let text = read(&Path::new(root).join(level).join(file))?;
            text.trim().parse::<u64>().ok()
        });
        levels.min()
    });
    allowed.chain(free).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIBIBYTE: u64 = 1 << 30;

    #[test]
    fn processors_and_memory_both_count() {
        let table = [
            (4, Some(64 * GIBIBYTE), Some(GIBIBYTE / 2), 8),
            (4, Some(2 * GIBIBYTE), Some(GIBIBYTE / 2), 4),
            (4, Some(GIBIBYTE / 4), Some(GIBIBYTE / 2), 1),
            (64, None, Some(GIBIBYTE), 128),
            (64, Some(GIBIBYTE), None, 128),
        ];
        for (processors, available, memory, expected) in table {
            assert_eq!(fitting(processors, available, memory), expected);
        }
    }

    #[test]
    fn the_least_of_all_limits_above_counts() {
        let files = |groups: &'static str, limits: &'static [(&str, &str)]| {
            move |path: &Path| match path.to_str().unwrap() {
                "/proc/meminfo" => Some("MemTotal: 9 kB\nMemAvailable:    4096 kB\n".to_owned()),
                "/proc/self/cgroup" => Some(groups.to_owned()),
                path => limits
                    .iter()
                    .find(|(known, _)| *known == path)
                    .map(|(_, text)| (*text).to_owned()),
            }
        };
        assert_eq!(available(files("", &[])), Some(4 << 20));
        let version_2 = files(
            "0::/job/step/task\n",
            &[
                ("/sys/fs/cgroup/job/step/task/memory.max", "max\n"),
                ("/sys/fs/cgroup/job/step/memory.max", "1048576\n"),
            ],
        );
        assert_eq!(available(version_2), Some(1 << 20));
        let version_1 = files(
            "5:cpu,cpuacct:/x\n4:memory:/slurm/step\n0::/\n",
            &[
                (
                    "/sys/fs/cgroup/memory/slurm/memory.limit_in_bytes",
                    "2097152\n",
                ),
                (
                    "/sys/fs/cgroup/memory/slurm/step/memory.limit_in_bytes",
                    "9223372036854771712\n",
                ),
            ],
        );
        assert_eq!(available(version_1), Some(2 << 20));
    }
}
