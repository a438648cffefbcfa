//! How many executions may be under way at once, so that those that come together wait for each other instead of failing.
//!
//! The default is an estimate from what this process may use, made when it is first needed: programs differ. Limits hold for
//! each of them whatever it is.

use std::sync::{Arc, OnceLock};

use sbxrt_runtime::Room;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Executions for each processor. Programs wait, too; more than these only stand in each other's way.
const FOR_EACH_PROCESSOR: u64 = 16;
/// What a small program takes together with its sandbox, in bytes.
const MEMORY_OF_ONE: u64 = 64 << 20;
/// Processes and threads of a program, its sandbox and its builder.
const PROCESSES_OF_ONE: u64 = 16;
/// Open files in this process, most of them only until the execution has begun. Half of what there is stays for others.
const FILES_OF_ONE: u64 = 2 * 12;

/// How many executions may be under way at once in an engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Concurrency {
    /// As many as this process has room for: 16 for each processor that it may use, and no more than its memory (64 MiB
    /// each), processes (16 each) and open files (24 each) suffice for. What bounds these counts as well: `RLIMIT_NPROC`,
    /// `RLIMIT_NOFILE`, and `memory.max` and `pids.max` of its cgroups.
    #[default]
    Fitting,
    /// So many, and at least one.
    AtMost(usize),
    /// Any number. What does not fit fails.
    Unbounded,
}

/// Lets executions in.
#[derive(Debug)]
pub(crate) struct Admission {
    concurrency: Concurrency,
    /// None where there is no bound.
    places: OnceLock<Option<Arc<Semaphore>>>,
}

/// The right of one execution to be under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    #[expect(dead_code, reason = "it is there to be dropped")]
    permit: Option<OwnedSemaphorePermit>,
}

impl Admission {
    pub(crate) fn new(concurrency: Concurrency) -> Self {
        Self {
            concurrency,
            places: OnceLock::new(),
        }
    }

    /// Waits for a place. Whoever has waited longest is next.
    pub(crate) async fn turn(&self) -> Turn {
        let places = self.places.get_or_init(|| {
            let bound = match self.concurrency {
                Concurrency::Fitting => fitting(&Room::find()),
                Concurrency::AtMost(bound) => bound.max(1),
                Concurrency::Unbounded => return None,
            };
            tracing::debug!(bound, "executions at once");
            Some(Arc::new(Semaphore::new(bound.min(Semaphore::MAX_PERMITS))))
        });
        let permit = match places {
            // It is never closed, and without one nobody would be refused.
            Some(places) => Arc::clone(places).acquire_owned().await.ok(),
            None => None,
        };
        Turn { permit }
    }
}

/// How many executions there is room for, at least one.
fn fitting(room: &Room) -> usize {
    let Room {
        processors,
        memory,
        processes,
        open_files,
    } = *room;
    let bounds = [
        Some(processors * FOR_EACH_PROCESSOR),
        memory.map(|bytes| bytes / MEMORY_OF_ONE),
        processes.map(|processes| processes / PROCESSES_OF_ONE),
        open_files.map(|files| files / FILES_OF_ONE),
    ];
    let bound = bounds.into_iter().flatten().min().unwrap_or(1).max(1);
    usize::try_from(bound).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scarcest_thing_says_how_many_fit() {
        let plenty = Room {
            processors: 4,
            memory: Some(64 << 30),
            processes: Some(30_000),
            open_files: Some(100_000),
        };
        let table = [
            (plenty, 64),
            (
                Room {
                    memory: Some(1 << 30),
                    ..plenty
                },
                16,
            ),
            (
                Room {
                    processes: Some(100),
                    ..plenty
                },
                6,
            ),
            (
                Room {
                    open_files: Some(1000),
                    ..plenty
                },
                41,
            ),
            (
                Room {
                    memory: Some(0),
                    ..plenty
                },
                1,
            ),
            (
                Room {
                    memory: None,
                    processes: None,
                    open_files: None,
                    ..plenty
                },
                64,
            ),
        ];
        for (room, expected) in table {
            assert_eq!(fitting(&room), expected, "{room:?}");
        }
    }

    #[tokio::test]
    async fn who_does_not_fit_waits() {
        let admission = Admission::new(Concurrency::AtMost(2));
        let first = admission.turn().await;
        let _second = admission.turn().await;
        let mut third = std::pin::pin!(admission.turn());
        let waits = tokio::select! {
            biased;
            _ = &mut third => false,
            () = std::future::ready(()) => true,
        };
        assert!(waits);
        drop(first);
        third.await;
    }
}
