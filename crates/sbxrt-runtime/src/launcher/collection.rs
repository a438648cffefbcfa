//! The outputs of an execution, from the request for them to their list. They are collected by a process of its own, a fork:
//! a file may be large, or on a disk that hangs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::poller::{Place, Source};
use super::run::Child;
use crate::channel;
use crate::error::Failure;
use crate::request::Request;
use crate::sys;

/// How long collecting may take.
const DEADLINE: Duration = Duration::from_secs(300);

// linux/capability.h
const CAP_DAC_READ_SEARCH: u32 = 2;

/// What becomes of the outputs of one execution.
#[derive(Debug, Default)]
pub(super) struct Collection {
    /// Where copies go.
    destinations: Vec<OwnedFd>,
    /// The container's mounts, kept until they have been looked through.
    tree: Option<OwnedFd>,
    collector: Option<Collector>,
    /// The list, once there is one.
    document: Option<OwnedFd>,
    /// Why there is none, where it is not the collector's fault.
    refusal: Option<String>,
}

#[derive(Debug)]
struct Collector {
    process: Child,
    began: Instant,
    /// Where it writes the list.
    document: OwnedFd,
}

impl Collection {
    pub(super) fn new(destinations: Vec<OwnedFd>) -> Self {
        Self {
            destinations,
            ..Self::default()
        }
    }

    /// How many places copies go to; a descriptor is open for each.
    pub(super) fn destinations(&self) -> usize {
        self.destinations.len()
    }

    /// It is known now which outputs are wanted, and where copies go.
    pub(super) fn expect(&mut self, destinations: Vec<OwnedFd>, request: &Request) {
        self.destinations = destinations;
        if request.outputs.paths.is_empty() {
            self.tree = None;
        }
    }

    /// Keeps the container's mounts, which the builder has sent.
    pub(super) fn keep(&mut self, tree: Option<OwnedFd>) {
        self.tree = tree;
    }

    /// Gives the outputs up, for this reason unless there is one already.
    pub(super) fn refuse(&mut self, reason: &str) {
        self.refusal.get_or_insert_with(|| reason.to_owned());
        self.tree = None;
    }

    /// Starts to collect where that is still to be done, with nothing running in the container any more. Returns until when
    /// it may take.
    pub(super) fn begin(&mut self, request: &Request, place: &Place) -> Option<Instant> {
        let tree = self.tree.take()?;
        let began = Instant::now();
        match self.fork(request, place, &tree, began) {
            Ok(collector) => {
                self.collector = Some(collector);
                Some(began + DEADLINE)
            }
            Err(failure) => {
                self.refuse(&failure.to_string());
                None
            }
        }
    }

    fn fork(
        &self,
        request: &Request,
        place: &Place,
        tree: &OwnedFd,
        began: Instant,
    ) -> Result<Collector, Failure> {
        let failed = |what: &'static str| {
            move |error: std::io::Error| Failure::new("collect the outputs", what, error)
        };
        let document = channel::memory_file().map_err(failed("memfd_create"))?;
        let process = match sys::fork_into(0, None).map_err(failed("clone3"))? {
            sys::Forked::Parent(pid) => {
                Child::new(pid, place, Source::Collector).map_err(failed("pidfd_open"))?
            }
            sys::Forked::Child => {
                let collected = collect(request, tree, &self.destinations, document.as_fd());
                sys::exit_now(i32::from(collected.is_err()))
            }
        };
        Ok(Collector {
            process,
            began,
            document,
        })
    }

    /// The process that collects, while it does.
    pub(super) fn collector(&self) -> Option<&Child> {
        self.collector.as_ref().map(|collector| &collector.process)
    }

    /// Waits for the collector, which has ended. Returns how long it took.
    pub(super) fn reap(&mut self) -> Duration {
        let Some(collector) = self.collector.take() else {
            return Duration::ZERO;
        };
        if matches!(sys::wait_for(collector.process.pid), Ok(0)) {
            self.document = Some(collector.document);
        }
        collector.began.elapsed()
    }

    /// The list of outputs, as a document; none where none are asked for.
    pub(super) fn finish(&mut self, request: &Request) -> Option<OwnedFd> {
        if request.outputs.paths.is_empty() {
            return None;
        }
        let refusal = self.refusal.as_deref();
        self.document.take().or_else(|| {
            let reason = refusal.unwrap_or("whoever collects was killed");
            let refused = request.outputs.refuse_all(&request.process.cwd, reason);
            channel::enclose(&refused).ok()
        })
    }
}

/// The collector itself.
fn collect(
    request: &Request,
    tree: &OwnedFd,
    destinations: &[OwnedFd],
    document: BorrowedFd<'_>,
) -> std::io::Result<()> {
    let mut kept = vec![tree.as_fd(), document];
    kept.extend(destinations.iter().map(AsFd::as_fd));
    sys::keep_only(&kept)?;
    let _ = nix::sys::prctl::set_name(c"sbxrt-collector");
    // Whatever the modes are that a program gave its files; but what the caller may not write, this process may not either.
    sys::keep_capabilities(&[CAP_DAC_READ_SEARCH])?;
    let outputs = &request.outputs;
    let files = outputs.collect(tree.as_fd(), &request.process.cwd, destinations);
    channel::write_document(document, &files)
}
