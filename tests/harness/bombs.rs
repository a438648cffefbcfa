//! Programs that exhaust something, each in a file of its own in `bombs`.
//!
//! The first line of such a file says what it uses up, the second the limit that must stop it, by its name in the
//! report, and the options of `sbxrt run` that it is meant for; a third, "kernel memory", that this is not memory of
//! its own. Each is bounded, so that a machine survives it where the
//! limit is not held; and stays in the state that a watchdog has to see.

use std::time::Duration;

use crate::{Fixtures, Report, Sbxrt};

/// A program that exhausts something.
#[derive(Debug, Clone, Copy)]
pub struct Bomb {
    /// What it uses up.
    pub name: &'static str,
    /// The limit that must stop it, as the report names it.
    pub limit: &'static str,
    /// The options of `sbxrt run` that set this limit.
    pub options: &'static str,
    /// Whether the kernel holds it for the program. At the limit of a cgroup the kernel first takes away, again and again,
    /// the files that the program runs from, which takes minutes where they are read slowly.
    pub is_kernel_memory: bool,
    program: &'static str,
}

impl Bomb {
    /// All of them, those against the same limit next to each other.
    pub fn all() -> impl Iterator<Item = Self> {
        PROGRAMS.iter().map(|program| {
            let mut lines = program.lines().map(|line| line.trim_start_matches("# "));
            let name = lines.next().unwrap();
            let limit = lines.next().unwrap();
            let (limit, options) = limit.split_once(' ').unwrap_or((limit, ""));
            Self {
                name,
                limit,
                options,
                is_kernel_memory: lines.next() == Some("kernel memory"),
                program,
            }
        })
    }

    /// Sets it off in a sandbox.
    ///
    /// # Panics
    ///
    /// Where sbxrt does not report, or not within two minutes.
    pub fn set_off(&self, sbxrt: &Sbxrt, fixtures: &Fixtures) -> Report {
        let mut words = vec!["--json"];
        if !self.options.contains("--timeout") {
            // Nothing here takes as long, on the slowest of machines.
            words.extend(["--timeout", "60s"]);
        }
        words.extend(self.options.split_whitespace());
        let image = fixtures.python_rootfs();
        words.extend([&*image, "python3", "-I", "-S", "-c", self.program]);
        let run = sbxrt.run(words).deadline(Duration::from_secs(120));
        run.output().report()
    }
}

const PROGRAMS: &[&str] = &[
    include_str!("bombs/memory_anonymous.py"),
    include_str!("bombs/memory_leak.py"),
    include_str!("bombs/memory_of_children.py"),
    include_str!("bombs/memory_shared.py"),
    include_str!("bombs/memory_locked.py"),
    include_str!("bombs/memory_stack.py"),
    include_str!("bombs/memory_file.py"),
    include_str!("bombs/memory_dev_shm.py"),
    include_str!("bombs/memory_system_v.py"),
    include_str!("bombs/memory_page_tables.py"),
    include_str!("bombs/memory_pipes.py"),
    include_str!("bombs/memory_sockets.py"),
    include_str!("bombs/page_cache.py"),
    include_str!("bombs/processes.py"),
    include_str!("bombs/spawned.py"),
    include_str!("bombs/orphans.py"),
    include_str!("bombs/zombies.py"),
    include_str!("bombs/threads.py"),
    include_str!("bombs/cpu_spin.py"),
    include_str!("bombs/scratch_tmp.py"),
    include_str!("bombs/scratch_root.py"),
    include_str!("bombs/scratch_inodes.py"),
    include_str!("bombs/scratch_sparse.py"),
    include_str!("bombs/core_dump.py"),
    include_str!("bombs/files.py"),
    include_str!("bombs/output_stdout.py"),
    include_str!("bombs/output_stderr.py"),
    include_str!("bombs/time_sleep.py"),
    include_str!("bombs/time_stopped.py"),
    include_str!("bombs/time_daemon.py"),
    include_str!("bombs/time_race.py"),
];
