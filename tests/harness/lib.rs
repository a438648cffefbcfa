//! What the black-box tests share: who runs sbxrt, how it is run, what it reported, and what it left on the host.
//!
//! A test says what it needs and is then run once for each identity, each time with an empty home and empty temporary
//! directories. When it ends, nothing may be left:
//!
//! ```no_run
//! use sbxrt_tests::{Fixtures, for_each_identity, require};
//!
//! fn the_exit_status_is_the_programs_own() {
//!     let Some(fixtures) = Fixtures::find() else { return };
//!     for_each_identity(|sbxrt| {
//!         let output = sbxrt.run([fixtures.busybox_rootfs().as_str(), "sh", "-c", "exit 7"]).output();
//!         assert_eq!(output.code(), 7, "{output}");
//!     });
//! }
//! ```
//!
//! | variable | meaning |
//! |---|---|
//! | `SBXRT_BIN` | the binary under test; default: `sbxrt` in the target directory that the tests were built in |
//! | `SBXRT_TEST_FIXTURES` | the directory that `scripts/fixtures` printed |
//! | `SBXRT_TEST_LANGUAGES` | the store that `scripts/test` had `rootfs/build` fill |
//! | `SBXRT_TEST_REGISTRY` | the address of the registry that `scripts/with-registry` started |
//! | `SBXRT_TEST_REGISTRY_LOG` | the access log of that registry |
//! | `SBXRT_TEST_REQUIRE` | what must not be skipped, with commas: see [`Need`] |
//! | `SBXRT_TEST_IDENTITIES` | the users to run as, with commas; default: root, sbxrt-test, sbxrt-sub where root runs the tests, the caller otherwise |
//! | `SBXRT_TEST_KILLS` | how often each of sbxrt's processes is killed in the tests of sudden death; default: 25 |
//! | `SBXRT_TEST_LIMITS` | a directory that the tables of `docs/limits.md` are written to, in the place of being compared |
//! | `SBXRT_TEST_RACES` | how often a sandbox starts in each race; default: few |
//! | `SBXRT_TEST_RUNS` | how many executions there are in a row in the test of endurance; default: 300 |
//! | `SBXRT_TEST_SKIPS` | a file to which a line is added for each thing that was skipped |
//!
//! Run the tests with nextest: it gives each test a process of its own, which the search for leftovers relies on.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is how a test fails, and stderr is where it talks"
)]

mod bombs;
mod fixtures;
mod host;
mod identity;
mod need;
mod report;
mod sbxrt;
mod truth_table;
mod witness;

pub use bombs::Bomb;
pub use fixtures::{Fixtures, Request, languages, registry, registry_requests};
pub use host::{Host, descendants};
pub use identity::{Identity, for_each_identity, identities};
pub use need::{Need, require, version_1_directory};
pub use report::Report;
pub use sbxrt::{Invocation, Output, Sbxrt, Stdout};
pub use truth_table::TruthTable;
pub use witness::Witness;

use std::time::{Duration, Instant};

/// How long anything may take that takes no time, on a machine that others keep busy. What takes longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until a condition holds and says whether it did in time.
pub fn eventually(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        pause(Duration::from_millis(5));
    }
}

/// Sleeps.
#[expect(
    clippy::disallowed_methods,
    reason = "other people's processes are watched, and they have no descriptor"
)]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
