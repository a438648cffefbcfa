//! The launcher processes of an engine: none before the first execution, then as many as there are executions at once, up
//! to a bound.
//!
//! A launcher has one thread, which starts executions, hears them and holds their limits; with several, that is shared
//! among processors. One that is killed takes with it what it runs, and nothing else; another one takes its place.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sbxrt_runtime::Launcher;

use crate::error::Result;

/// The launchers of an engine.
#[derive(Debug)]
pub(crate) struct Launchers {
    most: usize,
    members: Mutex<Vec<Member>>,
}

#[derive(Debug, Clone)]
struct Member {
    launcher: Arc<Launcher>,
    /// Each execution has a copy.
    place: Place,
}

/// Says for as long as it lives that an execution is under way; and whether its launcher is dead.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place(Arc<AtomicBool>);

impl Place {
    /// The launcher was found dead. Its end closes the socket of an execution before the one that takes requests, which for
    /// a moment would take some more and lose them.
    pub(crate) fn mark_dead(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn under_way(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }
}

impl Launchers {
    /// At most so many, and at least one.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            members: Mutex::default(),
        }
    }

    /// Starts the first launcher, unless it is there.
    pub(crate) fn warm_up(&self) -> Result<()> {
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let is_there = !members.is_empty();
        drop(members);
        if is_there {
            return Ok(());
        }
        self.choose().map(drop)
    }

    /// Does `action`, which starts an execution, with the launcher that has the fewest.
    pub(crate) fn with<T>(
        &self,
        action: impl Fn(&Launcher) -> sbxrt_runtime::Result<T>,
    ) -> Result<(T, Place)> {
        // One that is found dead has not heard of it.
        for _ in 0..self.most {
            let Member { launcher, place } = self.choose()?;
            match action(&launcher) {
                Err(sbxrt_runtime::Error::LauncherGone) => place.mark_dead(),
                other => return Ok((other?, place)),
            }
        }
        let Member { launcher, place } = self.choose()?;
        Ok((action(&launcher)?, place))
    }

    /// The launcher that has the fewest executions. A new one where all have some and there may be more.
    fn choose(&self) -> Result<Member> {
        // Two first executions at once must not start two launchers.
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let is_dead = |it: &mut Member| it.place.0.load(Ordering::Relaxed);
        members.extract_if(.., is_dead).for_each(Member::bury);
        let free = members
            .iter()
            .min_by_key(|it| it.place.under_way())
            .cloned();
        // This copy counts too.
        let is_idle = |it: &Member| it.place.under_way() <= 1;
        let free = match free {
            Some(free) if is_idle(&free) || members.len() >= self.most => return Ok(free),
            free => free,
        };
        match (Launcher::spawn(), free) {
            (Ok(launcher), _) => {
                let member = Member {
                    launcher: Arc::new(launcher),
                    place: Place::default(),
                };
                members.push(member.clone());
                Ok(member)
            }
            (Err(error), Some(free)) => {
                tracing::debug!(%error, "no further launcher");
                Ok(free)
            }
            (Err(error), None) => Err(error.into()),
        }
    }
}

impl Member {
    /// Waits for the end of a launcher that is dead. It may take a while to be gone, which is nobody's concern here; without
    /// a thread, this one waits.
    fn bury(self) {
        let waiting = std::thread::Builder::new().name("sbxrt-reaper".to_owned());
        drop(waiting.spawn(move || drop(self)));
    }
}

impl Drop for Launchers {
    fn drop(&mut self) {
        let members = self
            .members
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        // All at the same time, and then one after the other is waited for.
        for member in members {
            member.launcher.end();
        }
    }
}
