//! Runs code that nobody trusts yet, each time in a fresh rootless container, without a daemon.
//!
//! Three nouns, in the idiom of [`std::process`]: an [`Engine`] owns the image store and starts containers, a
//! [`Sandbox`] is an image with a policy, and a [`Command`] is one execution in it. Every execution gets namespaces,
//! limits, a system call filter and a scratch space of its own, and no network unless asked for; its [`Output`] says
//! how it ended, what it used, and by which mechanism each limit was held. When it is over, nothing of it is left.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use sbxrt::{Engine, Limits, Mount, Termination};
//!
//! fn main() -> sbxrt::Result<()> {
//!     sbxrt::init(); // first line, before any thread: a re-executed copy becomes the launcher here
//!     tokio::runtime::Runtime::new()?.block_on(async {
//!         let engine = Engine::open_default()?;
//!         let image = engine.pull("docker.io/library/python:3.12-slim").await?; // now a digest
//!         let sandbox = engine
//!             .sandbox(&image)
//!             .limits(Limits {
//!                 memory: Some(256 << 20),
//!                 wall_time: Some(Duration::from_secs(5)),
//!                 ..Limits::default()
//!             })
//!             .mount(Mount::read_only("/srv/task-17", "/input"))
//!             .build()?;
//!         let output = sandbox.command("python3").args(["/input/main.py"]).stdin(b"3 4\n").output().await?;
//!         match output.termination {
//!             Termination::Exited { code: 0 } => println!("{}", String::from_utf8_lossy(&output.stdout.bytes)),
//!             other => eprintln!("{other:?}, peak {} bytes", output.usage.memory_peak),
//!         }
//!         Ok(())
//!     })
//! }
//! ```
//!
//! The library knows no terminal, no environment variable and no home directory but the one of
//! [`Engine::open_default`]; whoever calls it passes them in.

mod admission;
pub mod build;
mod capture;
mod command;
mod engine;
mod error;
mod launchers;
mod pool;
mod sandbox;

pub use admission::Concurrency;
pub use capture::{Capture, Captured, Spill, Spilled};
pub use command::{Child, Command, Output, OutputAction, Stdin};
pub use engine::{Engine, EngineBuilder};
pub use error::{Error, Result};
pub use sandbox::{Sandbox, SandboxBuilder, Seccomp};

/// Image references, the store and pulling: the part of sbxrt that turns a name into files.
pub use sbxrt_image as image;
pub use sbxrt_image::{Image, Platform, PullOptions, Source};
/// What the engine below this crate reports when a sandbox cannot be set up.
pub use sbxrt_runtime::Error as RuntimeError;
/// What the host lets sbxrt do, found by trying.
pub use sbxrt_runtime::probe;
/// System call filters: profiles in Docker's format, and sbxrt's own policy.
pub use sbxrt_runtime::seccomp;
pub use sbxrt_runtime::{
    Cpuset, CpusetError, Evidence, Failure, FileKind, InputFile, Isolation, LimitName, Limits,
    Mechanism, Mount, MountSource, Network, OutputFile, OutputLimits, OutputPath, Outputs,
    PeakSource, Remains, Report, Requirement, Rlimit, RlimitResource, Sender, Space, Termination,
    Timings, UnknownName, Usage, WindowSize, init,
};
