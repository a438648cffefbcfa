//! One short-lived process per execution: assembles the root file system, calls libcontainer, and is gone.
//!
//! It is a fork of the launcher, so libcontainer's effects on its caller (the working directory, `PR_SET_DUMPABLE`,
//! descriptors, leftovers of a failed build) end with it, and builds of several executions never meet in one process.
//! When it has gone, the container's first process is the launcher's child.

use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::sched::{CloneFlags, unshare};

use crate::channel::{self, BuildEvent};
use crate::error::Failure;
use crate::guest::Guest;
use crate::request::{Mechanism, MountSource, Request};
use crate::{rootfs, spec};

/// What a builder starts from.
#[derive(Debug)]
pub(crate) struct Build<'a> {
    pub(crate) request: &'a Request,
    /// Whether the program is told later.
    pub(crate) is_prepared: bool,
    pub(crate) memory: Mechanism,
    pub(crate) pids: Mechanism,
    pub(crate) cpus: Mechanism,
    pub(crate) cpuset: Mechanism,
    /// Standard input, output and error of the program.
    pub(crate) streams: [OwnedFd; 3],
    /// Where the container's first process reports to.
    pub(crate) init: OwnedFd,
}

impl Build<'_> {
    /// Makes the container, starts it and reports to `launcher`; the exit status of this process.
    pub(crate) fn run(self, launcher: BorrowedFd<'_>) -> i32 {
        let (event, status) = match self.build() {
            Ok(event) => (event, 0),
            Err(failure) => ((BuildEvent::Failed(failure), None), 1),
        };
        let (event, tree) = event;
        let tree: Vec<BorrowedFd<'_>> = tree.iter().map(AsFd::as_fd).collect();
        match channel::send(launcher, &event, &tree) {
            Ok(()) => status,
            Err(_) => 1,
        }
    }

    fn build(self) -> Result<(BuildEvent, Option<OwnedFd>), Failure> {
        const STEP: &str = "create the container";
        let began = Instant::now();
        unshare(CloneFlags::CLONE_NEWNS)
            .map_err(|error| Failure::new(STEP, "unshare(CLONE_NEWNS)", error))?;
        let assembled = rootfs::assemble(self.request, self.is_prepared)?;
        let prepare_micros = channel::micros(began.elapsed());

        let spec = spec::build(self.request, &assembled.root)
            .map_err(|error| Failure::reason(STEP, "config.json", error.to_string()))?;
        spec.save(assembled.bundle.join("config.json"))
            .map_err(|error| Failure::reason(STEP, "config.json", error.to_string()))?;
        let creating = Instant::now();
        let guest = Guest {
            process: self.request.process.clone(),
            is_prepared: self.is_prepared,
            files: self.request.files.clone(),
            network: self.request.network,
            limits: self.request.limits.clone(),
            tmpfs: self
                .request
                .mounts
                .iter()
                .filter(|mount| matches!(mount.source, MountSource::Tmpfs(_)))
                .map(|mount| mount.destination.clone())
                .collect(),
            scratch_in_memory: self.request.upper.is_none(),
            memory: self.memory,
            pids: self.pids,
            cpus: self.cpus,
            cpuset: self.cpuset,
            emulate_root: self.request.emulate_root,
            seccomp: self.request.seccomp.clone(),
            writable: self.request.read_only.then(|| {
                let mounts = self.request.mounts.iter().filter(|mount| !mount.read_only);
                crate::landlock::always_writable()
                    .chain(mounts.map(|mount| mount.destination.clone()))
                    .collect()
            }),
            launcher: self.init.as_raw_fd(),
            created: creating,
        };
        let journal = Journal::new().map_err(|error| Failure::new(STEP, "memfd_create", error))?;
        let _listening = tracing::subscriber::set_default(journal.clone());
        let [stdin, stdout, stderr] = self.streams;
        let mut container = ContainerBuilder::new(self.request.id.clone(), SyscallType::default())
            .with_root_path(&assembled.state)
            .and_then(ContainerBuilder::validate_id)
            .map(|builder| {
                builder
                    .with_executor(guest)
                    .with_stdin(stdin)
                    .with_stdout(stdout)
                    .with_stderr(stderr)
            })
            .and_then(|builder| {
                builder
                    .as_init(&assembled.bundle)
                    .with_systemd(false)
                    .with_detach(true)
                    .build()
            })
            .map_err(|error| journal.explain(STEP, &error))?;
        let create_micros = channel::micros(creating.elapsed());
        let pid = container
            .pid()
            .ok_or_else(|| Failure::reason(STEP, "libcontainer", "reported no process"))?
            .as_raw();
        container
            .start()
            .map_err(|error| journal.explain("start the container", &error))?;
        let event = BuildEvent::Created {
            pid,
            prepare_micros,
            create_micros,
        };
        Ok((event, assembled.kept))
    }
}

/// Collects what libcontainer logs as errors. Its error values pass through channels between its processes as flat
/// text ("failed to prepare rootfs"), the error number survives only in the log; and because the log is written by
/// its forks, it is kept in a memory file that they all share.
#[derive(Debug, Clone)]
struct Journal {
    file: Arc<Mutex<std::fs::File>>,
}

impl Journal {
    fn new() -> std::io::Result<Self> {
        let file =
            nix::sys::memfd::memfd_create(c"journal", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
        Ok(Self {
            file: Arc::new(Mutex::new(file.into())),
        })
    }

    fn explain(&self, step: &str, error: &dyn std::error::Error) -> Failure {
        const LIMIT: u64 = 8 << 10;
        let mut log = String::new();
        if let Ok(mut file) = self.file.lock()
            && file.rewind().is_ok()
        {
            // What cannot be read is missing from the explanation, nothing else.
            drop(Read::take(&mut *file, LIMIT).read_to_string(&mut log));
        }
        let mut reasons: Vec<&str> = log.lines().filter(|line| !line.is_empty()).collect();
        reasons.dedup();
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            reason = format!("{reason}: {cause}");
            source = cause.source();
        }
        if !reasons.is_empty() {
            reason = format!("{reason} ({})", reasons.join("; "));
        }
        Failure::reason(step, "libcontainer", reason)
    }
}

impl tracing::Subscriber for Journal {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::ERROR)
    }

    fn new_span(&self, _span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _span: &tracing::span::Id, _values: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _span: &tracing::span::Id, _follows: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Line(String);
        impl tracing::field::Visit for Line {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                use std::fmt::Write as _;
                let separator = if self.0.is_empty() { "" } else { ", " };
                // Writing to a string cannot fail.
                let _ = match field.name() {
                    "message" => write!(self.0, "{separator}{value:?}"),
                    name => write!(self.0, "{separator}{name}: {value:?}"),
                };
            }
        }
        let mut line = Line(String::new());
        event.record(&mut line);
        if let Ok(mut file) = self.file.lock() {
            drop(writeln!(file, "{}", line.0));
        }
    }

    fn enter(&self, _span: &tracing::span::Id) {}

    fn exit(&self, _span: &tracing::span::Id) {}
}
