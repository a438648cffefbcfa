//! CPU time of all processes of a container, also of those that nobody waits for.
//!
//! The kernel adds the time of a child to its parent's account when the parent waits for it, and throws it away where the
//! parent ignores `SIGCHLD`. So what the processes have used, and what they have waited for, is remembered from look to
//! look: what has vanished without turning up with somebody who lives is added.

use std::collections::BTreeMap;

use super::census::Times;

#[derive(Debug, Default)]
pub(super) struct CpuClock {
    /// What is known of who lives, by pid and start.
    living: BTreeMap<(i32, u64), Times>,
    /// Ticks of processes that are gone, their children's included.
    vanished: u64,
    /// Ticks that turned up as waited for, since the one who waited was first seen.
    waited_for: u64,
}

impl CpuClock {
    /// Takes a look at the first process and all others, and says how many ticks they have used together: in user mode,
    /// and in the kernel. What is in nobody's account any more counts as user mode.
    ///
    /// A process that ends during the look may be in it twice, by itself and by who waited for it. The next look is right.
    pub(super) fn read(&mut self, look: &[(i32, Times)]) -> (u64, u64) {
        let now: BTreeMap<(i32, u64), Times> = look
            .iter()
            .map(|&(pid, times)| ((pid, times.start), times))
            .collect();
        for (process, before) in &self.living {
            match now.get(process) {
                Some(times) => {
                    self.waited_for += waited_for(times).saturating_sub(waited_for(before));
                }
                None => self.vanished += before.user + before.system + waited_for(before),
            }
        }
        self.living = now;
        let sum = |ticks: fn(&Times) -> u64| self.living.values().map(ticks).sum::<u64>();
        (
            sum(|it| it.user + it.reaped_user) + self.vanished.saturating_sub(self.waited_for),
            sum(|it| it.system + it.reaped_system),
        )
    }
}

fn waited_for(times: &Times) -> u64 {
    times.reaped_user + times.reaped_system
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, own: u64, reaped: u64) -> (i32, Times) {
        let times = Times {
            start: 5,
            user: own,
            system: 0,
            reaped_user: 0,
            reaped_system: reaped,
        };
        (pid, times)
    }

    fn total(clock: &mut CpuClock, look: &[(i32, Times)]) -> u64 {
        let (user, system) = clock.read(look);
        user + system
    }

    #[test]
    fn time_does_not_vanish_with_a_process_that_nobody_waits_for() {
        let mut clock = CpuClock::default();
        let look = [process(1, 0, 0), process(2, 1, 0), process(3, 50, 0)];
        assert_eq!(total(&mut clock, &look), 51);
        assert_eq!(total(&mut clock, &[process(1, 0, 0), process(2, 2, 0)]), 52);
        assert_eq!(total(&mut clock, &[process(1, 0, 0), process(2, 3, 0)]), 53);
    }

    #[test]
    fn time_that_a_parent_has_waited_for_counts_once() {
        let mut clock = CpuClock::default();
        let look = [process(1, 0, 0), process(2, 1, 0), process(3, 50, 0)];
        assert_eq!(total(&mut clock, &look), 51);
        assert_eq!(
            total(&mut clock, &[process(1, 0, 0), process(2, 1, 52)]),
            53
        );
        // The parent goes too, and is waited for by the first process.
        assert_eq!(total(&mut clock, &[process(1, 0, 53)]), 53);
    }

    #[test]
    fn a_process_that_ends_during_a_look_is_counted_right_in_the_next() {
        let mut clock = CpuClock::default();
        let first = [process(1, 0, 0), process(2, 1, 0), process(3, 50, 0)];
        total(&mut clock, &first);
        // Read before its parent, which by then had waited for it.
        let torn = [process(1, 0, 0), process(2, 1, 50), process(3, 50, 0)];
        assert_eq!(total(&mut clock, &torn), 101);
        assert_eq!(
            total(&mut clock, &[process(1, 0, 0), process(2, 1, 50)]),
            51
        );
        // Read after its parent, which by then had not yet waited for the next one.
        let look = [process(1, 0, 0), process(2, 1, 50), process(4, 30, 0)];
        assert_eq!(total(&mut clock, &look), 81);
        assert_eq!(
            total(&mut clock, &[process(1, 0, 0), process(2, 1, 50)]),
            81
        );
        assert_eq!(
            total(&mut clock, &[process(1, 0, 0), process(2, 1, 80)]),
            81
        );
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let mut clock = CpuClock::default();
        total(&mut clock, &[process(1, 0, 0), process(2, 50, 0)]);
        let (pid, times) = process(2, 1, 0);
        let reused = (pid, Times { start: 9, ..times });
        assert_eq!(total(&mut clock, &[process(1, 0, 0), reused]), 51);
    }
}
