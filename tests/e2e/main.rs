//! End to end, through the binary, on the real kernel: what `sbxrt` promises to whoever types it.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is how a test fails, and stderr is where it talks"
)]

mod bad_input;
mod batch;
mod build;
mod endings;
mod fail_closed;
mod fidelity;
mod host;
mod images;
mod inside;
mod limits;
mod login;
mod output;
mod outputs;
mod readme;
mod seccomp;
mod store;
mod stuck;
mod sudden_death;
mod transfer;
mod version1;
