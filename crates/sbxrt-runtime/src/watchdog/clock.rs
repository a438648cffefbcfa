//! CPU time of all processes of a container, also of those that nobody waits for.
//!
//! The kernel adds the time of a child to its parent's account when the parent waits for it, and throws it away where the
//! parent ignores `SIGCHLD`. So what the processes have used is remembered from look to look. What has vanished and does
//! not turn up with somebody who waited, in the looks just before and after, was thrown away and is added.
//!
//! Such a process has used more than was seen of it last, and some come and go between two looks. What is missing is
//! estimated so that it is right on average: a process that was running when it was seen for the last time is taken to have
//! run on for half of the pause between looks; one that was seen a single time stands for those that were not seen at all,
//! and is taken to have run for a whole pause (as it is meant to be at most, however long it was); less where it had to wait for a
//! processor before. A process that was waited for
//! has left its page faults with who waited, so nothing is estimated of it.
//!
//! Who means to be missed waits for one child, or makes as many page faults, for each that is thrown away: what was seen
//! of those still counts where their times do not cover each other, but no more than that. So at least half of what was
//! seen is counted.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::census::Times;

#[derive(Debug)]
pub(super) struct CpuClock {
    ticks_per_second: u64,
    /// What is known of who lives, by pid and start.
    living: BTreeMap<(i32, u64), Living>,
    /// When that was looked at.
    looked: Instant,
    /// The longest pause between looks, unless the machine is too busy.
    longest_pause: Duration,
    /// What has vanished since the last look but one, and may yet turn up.
    vanished: Claim,
    /// What turned up as waited for, in this look and the two before, as far as it has settled no claim.
    waited_for: VecDeque<Claim>,
    /// What has turned up with nobody.
    lost: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Living {
    times: Times,
    /// Whether it was seen before.
    is_known: bool,
}

/// What processes have used that are gone.
#[derive(Debug, Clone, Copy, Default)]
struct Claim {
    ticks: u64,
    faults: u64,
    /// What they may have used unseen.
    unseen: Duration,
}

impl Claim {
    /// Takes from `other` what is in both.
    fn settle(&mut self, other: &mut Self) {
        let ticks = self.ticks.min(other.ticks);
        let faults = self.faults.min(other.faults);
        // Of processes whose faults have turned up nothing is estimated.
        if self.faults > 0 {
            #[expect(clippy::cast_precision_loss, reason = "it is an estimate")]
            let left = (self.faults - faults) as f64 / self.faults as f64;
            self.unseen = self.unseen.mul_f64(left);
        }
        for claim in [self, other] {
            claim.ticks -= ticks;
            claim.faults -= faults;
        }
    }
}

impl CpuClock {
    /// For looks that are not meant to be further apart than `longest_pause`.
    pub(super) fn new(longest_pause: Duration) -> Self {
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
        let ticks = ticks.ok().flatten().and_then(|ticks| ticks.try_into().ok());
        Self {
            ticks_per_second: ticks.unwrap_or(100),
            living: BTreeMap::new(),
            looked: Instant::now(),
            longest_pause,
            vanished: Claim::default(),
            waited_for: VecDeque::new(),
            lost: Duration::ZERO,
        }
    }

    /// How long ago the last look was.
    pub(super) fn age(&self) -> Duration {
        self.looked.elapsed()
    }

    /// The time of processes that are in nobody's account.
    pub(super) fn lost(&self) -> Duration {
        self.lost
    }

    /// Takes a look, made at the moment `now`, at the first process and all others, and says how much time they have used
    /// together: in user mode, and in the kernel. What is in nobody's account counts as user mode.
    ///
    /// A process that ends during the look may be in it twice, by itself and by who waited for it. The next look is right.
    pub(super) fn read(&mut self, look: &[(i32, Times)], now: Instant) -> (Duration, Duration) {
        let pause = now
            .saturating_duration_since(self.looked)
            .min(self.longest_pause);
        self.looked = now;
        let living: BTreeMap<(i32, u64), Living> = look
            .iter()
            .map(|&(pid, times)| {
                let process = (pid, times.start);
                let is_known = self.living.contains_key(&process);
                (process, Living { times, is_known })
            })
            .collect();
        let mut vanished = Claim::default();
        let mut waited_for = Claim::default();
        for (process, before) in &self.living {
            let Living { times, is_known } = before;
            if let Some(Living { times: now, .. }) = living.get(process) {
                waited_for.ticks += reaped(now).saturating_sub(reaped(times));
                waited_for.faults += now.reaped_faults.saturating_sub(times.reaped_faults);
                continue;
            }
            let own = times.user + times.system;
            vanished.ticks += own + reaped(times);
            vanished.faults += times.faults + times.reaped_faults;
            if times.runs {
                // Who waits for a processor does not use it.
                let pause = pause * times.share.into() / 1000;
                let missing = if *is_known {
                    Duration::ZERO
                } else {
                    pause.saturating_sub(self.time(own))
                };
                vanished.unseen += missing.max(pause / 2);
            }
        }
        self.living = living;
        self.waited_for.push_back(waited_for);
        // Who has ended in the look before, and was waited for, is with who waited by now.
        for credit in &mut self.waited_for {
            self.vanished.settle(credit);
        }
        self.lost += self.time(self.vanished.ticks) + self.vanished.unseen;
        self.vanished = vanished;
        if self.waited_for.len() > 2 {
            self.waited_for.pop_front();
        }
        let mut pending = vanished;
        for credit in &self.waited_for {
            pending.settle(&mut credit.clone());
        }
        let sum = |ticks: fn(&Times) -> u64| {
            let ticks = self.living.values().map(|it| ticks(&it.times));
            self.time(ticks.sum())
        };
        (
            sum(|it| it.user + it.reaped_user) + self.lost + self.time(pending.ticks),
            sum(|it| it.system + it.reaped_system),
        )
    }

    fn time(&self, ticks: u64) -> Duration {
        Duration::from_micros(ticks * 1_000_000 / self.ticks_per_second)
    }
}

fn reaped(times: &Times) -> u64 {
    times.reaped_user + times.reaped_system
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longest pause between two looks that is believed.
    const PAUSE: Duration = Duration::from_millis(20);

    /// A process, and as many page faults as ticks.
    fn process(pid: i32, own: u64, reaped: u64) -> (i32, Times) {
        let times = Times {
            start: 5,
            user: own,
            reaped_system: reaped,
            faults: own,
            reaped_faults: reaped,
            share: 1000,
            ..Times::default()
        };
        (pid, times)
    }

    fn running(pid: i32, own: u64) -> (i32, Times) {
        let (_, times) = process(pid, own, 0);
        (
            pid,
            Times {
                runs: true,
                ..times
            },
        )
    }

    /// In ticks of 10 ms.
    fn total(clock: &mut CpuClock, look: &[(i32, Times)]) -> f64 {
        clock.ticks_per_second = 100;
        let now = clock.looked + 2 * PAUSE;
        let (user, system) = clock.read(look, now);
        (user + system).as_secs_f64() * 100.0
    }

    fn assert_totals(looks: &[(&[(i32, Times)], f64)]) {
        let mut clock = CpuClock::new(PAUSE);
        for (index, (look, expected)) in looks.iter().enumerate() {
            let found = total(&mut clock, look);
            assert!(
                (found - expected).abs() < 0.01,
                "look {index}: {found}, not {expected}"
            );
        }
    }

    #[test]
    fn time_does_not_vanish_with_a_process_that_nobody_waits_for() {
        assert_totals(&[
            (
                &[process(1, 0, 0), process(2, 1, 0), process(3, 50, 0)],
                51.0,
            ),
            (&[process(1, 0, 0), process(2, 2, 0)], 52.0),
            (&[process(1, 0, 0), process(2, 3, 0)], 53.0),
        ]);
    }

    #[test]
    fn what_nobody_saw_of_a_process_is_estimated() {
        // Seen twice: half a pause of two ticks comes on top.
        assert_totals(&[
            (&[process(2, 0, 0), running(3, 50)], 50.0),
            (&[process(2, 0, 0), running(3, 52)], 52.0),
            (&[process(2, 0, 0)], 52.0),
            (&[process(2, 0, 0)], 53.0),
            (&[process(2, 0, 0)], 53.0),
        ]);
        // Seen once, with next to nothing: a whole pause.
        let young = (
            3,
            Times {
                faults: 9,
                ..running(3, 0).1
            },
        );
        assert_totals(&[
            (&[process(2, 0, 0), young], 0.0),
            (&[process(2, 0, 0)], 0.0),
            (&[process(2, 0, 0)], 2.0),
        ]);
    }

    #[test]
    fn who_had_to_wait_for_a_processor_has_used_less() {
        let times = Times {
            faults: 9,
            share: 250,
            ..running(3, 0).1
        };
        assert_totals(&[
            (&[process(2, 0, 0), (3, times)], 0.0),
            (&[process(2, 0, 0)], 0.0),
            (&[process(2, 0, 0)], 0.5),
        ]);
    }

    #[test]
    fn nothing_is_estimated_of_a_process_that_was_waited_for() {
        let young = (
            3,
            Times {
                faults: 9,
                ..running(3, 0).1
            },
        );
        let parent = (
            2,
            Times {
                reaped_faults: 10,
                ..process(2, 0, 0).1
            },
        );
        assert_totals(&[
            (&[process(2, 0, 0), young], 0.0),
            (&[parent], 0.0),
            (&[parent], 0.0),
            (&[parent], 0.0),
        ]);
    }

    #[test]
    fn what_was_waited_for_long_ago_settles_nothing() {
        assert_totals(&[
            (&[process(2, 0, 0), process(3, 50, 0)], 50.0),
            (&[process(2, 0, 900), process(3, 50, 0)], 950.0),
            (&[process(2, 0, 900), process(3, 50, 0)], 950.0),
            (&[process(2, 0, 900), process(3, 50, 0)], 950.0),
            (&[process(2, 0, 900)], 950.0),
            (&[process(2, 0, 900)], 950.0),
        ]);
    }

    #[test]
    fn time_that_a_parent_has_waited_for_counts_once() {
        assert_totals(&[
            (
                &[process(1, 0, 0), process(2, 1, 0), process(3, 50, 0)],
                51.0,
            ),
            (&[process(1, 0, 0), process(2, 1, 52)], 53.0),
            // The parent goes too, and is waited for by the first process.
            (&[process(1, 0, 53)], 53.0),
            (&[process(1, 0, 53)], 53.0),
        ]);
    }

    #[test]
    fn a_process_that_ends_during_a_look_is_counted_right_in_the_next() {
        assert_totals(&[
            (
                &[process(1, 0, 0), process(2, 1, 0), process(3, 50, 0)],
                51.0,
            ),
            // Read before its parent, which by then had waited for it.
            (
                &[process(1, 0, 0), process(2, 1, 50), process(3, 50, 0)],
                101.0,
            ),
            (&[process(1, 0, 0), process(2, 1, 50)], 51.0),
            // Read after its parent, which by then had not yet waited for the next one.
            (
                &[process(1, 0, 0), process(2, 1, 50), process(4, 30, 0)],
                81.0,
            ),
            (&[process(1, 0, 0), process(2, 1, 50)], 81.0),
            (&[process(1, 0, 0), process(2, 1, 80)], 81.0),
        ]);
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let (pid, times) = process(2, 1, 0);
        let reused = (pid, Times { start: 9, ..times });
        assert_totals(&[
            (&[process(1, 0, 0), process(2, 50, 0)], 50.0),
            (&[process(1, 0, 0), reused], 51.0),
        ]);
    }
}
