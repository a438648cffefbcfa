//! Which descriptors of which execution have something to say. Waiting costs the same for one execution and for a
//! thousand.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::sys;

/// What of an execution may have something to say. What is ready at the same time is heard in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    BuildEvents,
    InitEvents,
    Builder,
    Init,
    Collector,
    Caller,
    Leftovers,
}

impl Source {
    const ALL: [Self; 7] = [
        Self::BuildEvents,
        Self::InitEvents,
        Self::Builder,
        Self::Init,
        Self::Collector,
        Self::Caller,
        Self::Leftovers,
    ];
}

/// The number of an execution among those of a launcher. It is never given again.
pub(super) type Number = u64;

/// Who is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ready {
    /// The launcher's own socket.
    Control,
    Run(Number, Source),
}

impl Ready {
    /// The numbers of executions begin at 0, and what is left over of theirs is the launcher's own.
    const SOURCES: u64 = 8;
    const CONTROL: u64 = u64::MAX;

    fn token(self) -> u64 {
        match self {
            Self::Control => Self::CONTROL,
            Self::Run(number, source) => number * Self::SOURCES + source as u64,
        }
    }

    fn of(token: u64) -> Option<Self> {
        if token == Self::CONTROL {
            return Some(Self::Control);
        }
        let source = usize::try_from(token % Self::SOURCES).ok()?;
        let source = Source::ALL.get(source).copied()?;
        Some(Self::Run(token / Self::SOURCES, source))
    }
}

/// Waits for many descriptors.
#[derive(Debug, Clone)]
pub(super) struct Poller(Rc<Descriptors>);

#[derive(Debug)]
struct Descriptors {
    epoll: OwnedFd,
    /// Those that the epoll instance does not take. The kernel allows so many for each user, and a program in a sandbox,
    /// which is the same user, may have them all.
    others: RefCell<Vec<(Ready, Rc<OwnedFd>)>>,
}

impl Poller {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Rc::new(Descriptors {
            epoll: sys::epoll_create()?,
            others: RefCell::default(),
        })))
    }

    /// Waits for `descriptor` from now on, until it is dropped.
    pub(super) fn listen(&self, who: Ready, descriptor: OwnedFd) -> Polled {
        let descriptor = Rc::new(descriptor);
        if sys::epoll_add(self.0.epoll.as_fd(), descriptor.as_fd(), who.token()).is_err() {
            let mut others = self.0.others.borrow_mut();
            others.push((who, Rc::clone(&descriptor)));
        }
        Polled {
            descriptor,
            poller: self.clone(),
        }
    }

    /// Waits until something is ready or `limit` has passed.
    pub(super) fn wait(&self, limit: Option<Duration>) -> io::Result<BTreeSet<Ready>> {
        // epoll_wait itself counts in milliseconds.
        let limit = limit.map(TimeSpec::from_duration);
        let others = self.0.others.borrow();
        let descriptors = others.iter().map(|(_, descriptor)| descriptor.as_fd());
        let mut polled: Vec<PollFd<'_>> = std::iter::once(self.0.epoll.as_fd())
            .chain(descriptors)
            .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
            .collect();
        match ppoll(&mut polled, limit, None) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => return Ok(BTreeSet::new()),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = polled.iter().map(|it| it.any().unwrap_or(false));
        let tokens = if ready.next() == Some(true) {
            sys::epoll_ready(self.0.epoll.as_fd())?
        } else {
            Vec::new()
        };
        let others = others.iter().zip(ready).filter(|(_, ready)| *ready);
        let others = others.map(|((who, _), _)| *who);
        Ok(tokens
            .into_iter()
            .filter_map(Ready::of)
            .chain(others)
            .collect())
    }
}

/// The place of one execution in a [`Poller`].
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) poller: Poller,
    pub(super) number: Number,
}

impl Place {
    /// Waits for `descriptor` from now on, until it is dropped.
    pub(super) fn listen(&self, source: Source, descriptor: OwnedFd) -> Polled {
        self.poller
            .listen(Ready::Run(self.number, source), descriptor)
    }
}

/// A descriptor that is waited for.
#[derive(Debug)]
pub(super) struct Polled {
    descriptor: Rc<OwnedFd>,
    poller: Poller,
}

impl Polled {
    /// Waits for it no more. What has ended would be ready for ever.
    pub(super) fn ignore(&self) {
        let Descriptors { epoll, others } = &*self.poller.0;
        others
            .borrow_mut()
            .retain(|(_, other)| !Rc::ptr_eq(other, &self.descriptor));
        // It may be ignored already.
        drop(sys::epoll_remove(epoll.as_fd(), self.descriptor.as_fd()));
    }
}

impl AsFd for Polled {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        // Closing it is not enough: a builder that has just been forked has a copy, and until that is closed too the kernel
        // would go on to tell of it.
        self.ignore();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(poller: &Poller) -> Vec<Ready> {
        let ready = poller.wait(Some(Duration::ZERO)).unwrap();
        ready.into_iter().collect()
    }

    #[test]
    fn what_is_ready_is_told_in_order_until_nobody_wants_to_know() {
        let poller = Poller::new().unwrap();
        let listen = |who| {
            let (reader, writer) = nix::unistd::pipe().unwrap();
            (poller.listen(who, reader), writer)
        };
        let caller = Ready::Run(7, Source::Caller);
        let events = Ready::Run(7, Source::BuildEvents);
        let (control, control_writer) = listen(Ready::Control);
        let (caller_reader, caller_writer) = listen(caller);
        let (events_reader, events_writer) = listen(events);
        assert_eq!(ready(&poller), []);
        // The last has ended, which one can read as well.
        nix::unistd::write(&control_writer, b"x").unwrap();
        nix::unistd::write(&caller_writer, b"x").unwrap();
        drop(events_writer);
        assert_eq!(ready(&poller), [Ready::Control, events, caller]);
        // What the epoll instance does not take, as it does not take a file, is heard all the same.
        let init = Ready::Run(8, Source::Init);
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let file = poller.listen(init, file.into());
        assert_eq!(ready(&poller), [Ready::Control, events, caller, init]);
        drop(file);
        caller_reader.ignore();
        // Although the pipe is still open for reading elsewhere.
        let copy = nix::unistd::dup(&events_reader).unwrap();
        drop(events_reader);
        assert_eq!(ready(&poller), [Ready::Control]);
        drop((control, copy, caller_reader));
        assert_eq!(ready(&poller), []);
    }
}
