//! A process that forks builders in the place of a launcher that has much in memory.
//!
//! The first process of a container is a fork of a fork of whoever made it, and keeps a copy of what that one had in memory
//! and has changed since. A launcher of many executions changes what it knows of each of them all the time. So from some
//! number of executions on, builders descend from a process that was forked before, and that changes nothing. They are the
//! launcher's own children nevertheless. It ends when nothing is under way.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeSpec;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::builder::Build;
use crate::channel;
use crate::request::{Mechanism, Request};
use crate::sys;

/// How long it may take to fork.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a builder is told besides the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Terms {
    pub(super) is_prepared: bool,
    pub(super) memory: Mechanism,
    pub(super) pids: Mechanism,
    pub(super) cpus: Mechanism,
    pub(super) cpuset: Mechanism,
}

/// A builder's descriptors.
#[derive(Debug)]
pub(super) struct Ends {
    /// Where it reports to.
    pub(super) events: OwnedFd,
    /// Where the container's first process reports to.
    pub(super) init: OwnedFd,
    pub(super) streams: [OwnedFd; 3],
}

impl Ends {
    fn all(&self) -> Vec<BorrowedFd<'_>> {
        let ends = [&self.events, &self.init].into_iter();
        ends.chain(&self.streams).map(AsFd::as_fd).collect()
    }
}

/// Is the builder, in a process of its own, and ends it.
pub(super) fn build(request: &Request, terms: Terms, ends: Ends) -> ! {
    if sys::keep_only(&ends.all()).is_err() {
        sys::exit_now(1);
    }
    let _ = nix::sys::prctl::set_name(c"sbxrt-builder");
    let build = Build {
        request,
        is_prepared: terms.is_prepared,
        memory: terms.memory,
        pids: terms.pids,
        cpus: terms.cpus,
        cpuset: terms.cpuset,
        streams: ends.streams,
        init: ends.init,
    };
    sys::exit_now(build.run(ends.events.as_fd()))
}

/// The launcher's side of it.
#[derive(Debug)]
pub(super) struct Nursery {
    socket: OwnedFd,
    pub(super) pid: libc::pid_t,
}

impl Nursery {
    pub(super) fn start() -> io::Result<Self> {
        let (socket, theirs) = channel::pair()?;
        match sys::fork_into(0, None)? {
            sys::Forked::Parent(pid) => Ok(Self { socket, pid }),
            sys::Forked::Child => {
                if sys::keep_only(&[theirs.as_fd()]).is_err() {
                    sys::exit_now(1);
                }
                let _ = nix::sys::prctl::set_name(c"sbxrt-nursery");
                serve(&theirs)
            }
        }
    }

    /// Forks a builder: a child of the launcher's, by this pid.
    pub(super) fn fork(
        &self,
        request: &Request,
        terms: Terms,
        ends: &Ends,
    ) -> io::Result<libc::pid_t> {
        let document = channel::enclose(request)?;
        let mut descriptors = vec![document.as_fd()];
        descriptors.extend(ends.all());
        channel::send(self.socket.as_fd(), &terms, &descriptors)?;
        let patience = Some(TimeSpec::from_duration(PATIENCE));
        let polled = PollFd::new(self.socket.as_fd(), PollFlags::POLLIN);
        if ppoll(&mut [polled], patience, None)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match channel::receive::<Result<libc::pid_t, i32>>(self.socket.as_fd())? {
            Some((Ok(pid), _)) => Ok(pid),
            Some((Err(errno), _)) => Err(io::Error::from_raw_os_error(errno)),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Whether it can still be asked.
    pub(super) fn is_there(&self) -> bool {
        // Until it is asked it says nothing: there is something to read where it has ended, or has answered too late.
        let polled = PollFd::new(self.socket.as_fd(), PollFlags::POLLIN);
        ppoll(&mut [polled], Some(TimeSpec::new(0, 0)), None) == Ok(0)
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        // It has nothing to lose.
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        drop(sys::wait_for(self.pid));
    }
}

/// Forks until the launcher is gone.
fn serve(socket: &OwnedFd) -> ! {
    loop {
        let Ok(Some((terms, descriptors))) = channel::receive::<Terms>(socket.as_fd()) else {
            sys::exit_now(0)
        };
        let Ok([document, events, init, stdin, stdout, stderr]) =
            <[OwnedFd; 6]>::try_from(descriptors)
        else {
            sys::exit_now(1)
        };
        let ends = Ends {
            events,
            init,
            streams: [stdin, stdout, stderr],
        };
        let born = match sys::fork_into(libc::CLONE_PARENT, None) {
            Ok(sys::Forked::Parent(pid)) => Ok(pid),
            Ok(sys::Forked::Child) => match channel::disclose::<Request>(document) {
                Ok(request) => build(&request, terms, ends),
                Err(_) => sys::exit_now(1),
            },
            Err(error) => Err(error.raw_os_error().unwrap_or(libc::EIO)),
        };
        if channel::send(socket.as_fd(), &born, &[]).is_err() {
            sys::exit_now(0);
        }
    }
}
