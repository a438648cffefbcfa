//! Landlock, the kernel's access control for programs without privilege, as a second layer under the first: mounts,
//! capabilities and system call filters must fail before it matters.
//!
//! What it takes away, as far as the kernel knows how to:
//!
//! - Any change of mounts, and access to processes outside of the sandbox by `ptrace` or `/proc` (ABI 1).
//! - The making of devices, everywhere.
//! - Where the root file system is read-only, writing anywhere but to what is writable by design.
//! - Signals to processes outside, and their abstract sockets, which with the host's network are every program's of the
//!   host (ABI 6).
//!
//! What it could take away and does not:
//!
//! - Writing, where the root file system is writable: a rule for `/` holds for everything below, and cannot leave out.
//! - TCP without a network: the sandbox has a loopback interface of its own, which programs talk to themselves over
//!   (notebooks, build daemons, every test of a server), and Landlock cannot tell it from others.
//!
//! ABI 1 (Linux 5.13 to 5.18) forbids any ruleset to rename between directories, which breaks package managers and git,
//! so Landlock is used from ABI 2 on. Best effort, and told by the result
//! ([`Isolation::landlock`](crate::Isolation::landlock)).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use landlock::{
    AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, Scope, make_bitflags,
};

use crate::error::Failure;
use crate::sys;

const STEP: &str = "confine the program with Landlock";

/// The first version whose rulesets can allow renames between directories.
const FIRST_ABI: u32 = 2;

/// A ruleset, made but not yet in force.
#[derive(Debug)]
pub(crate) struct Rules {
    ruleset: OwnedFd,
    /// The kernel's version of Landlock.
    pub(crate) abi: u32,
}

impl Rules {
    /// Makes the rules for a root file system of which only `writable` may be written to, or all of it (`None`); no rules
    /// where the kernel lacks Landlock.
    ///
    /// # Errors
    ///
    /// The kernel has Landlock and refuses.
    pub(crate) fn prepare(writable: Option<&[PathBuf]>) -> Result<Option<Self>, Failure> {
        let Some(abi) = sys::landlock_abi().filter(|&abi| abi >= FIRST_ABI) else {
            return Ok(None);
        };
        let ruleset = Self::create(writable)
            .map_err(|error| Failure::reason(STEP, "landlock_create_ruleset", error.to_string()))?;
        Ok(Option::from(ruleset).map(|ruleset| Self { ruleset, abi }))
    }

    fn create(writable: Option<&[PathBuf]>) -> Result<RulesetCreated, Box<dyn std::error::Error>> {
        const DEVICES: BitFlags<AccessFs> = make_bitflags!(AccessFs::{MakeChar | MakeBlock});
        const CONTENTS: BitFlags<AccessFs> = make_bitflags!(AccessFs::{WriteFile | Truncate});
        const NAMES: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
            RemoveDir | RemoveFile | MakeDir | MakeReg | MakeSock | MakeFifo | MakeSym
        });
        let handled = match writable {
            Some(_) => DEVICES | AccessFs::Refer | CONTENTS | NAMES,
            None => DEVICES | AccessFs::Refer,
        };
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(handled)?
            .scope(Scope::AbstractUnixSocket | Scope::Signal)?
            .create()?
            .add_rule(PathBeneath::new(PathFd::new("/")?, AccessFs::Refer))?;
        for path in writable.into_iter().flatten() {
            let allowed = if path.is_dir() {
                CONTENTS | NAMES
            } else {
                CONTENTS
            };
            ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(path)?, allowed))?;
        }
        Ok(ruleset)
    }

    /// What must stay open until [`restrict`](Self::restrict).
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.ruleset.as_fd()
    }

    /// Puts the calling process under the rules for good. `no_new_privs` is set already.
    ///
    /// # Errors
    ///
    /// The kernel refuses. The process is then not confined and must not go on.
    pub(crate) fn restrict(self) -> Result<(), Failure> {
        sys::restrict_by_landlock(self.ruleset.as_fd())
            .map_err(|error| Failure::new(STEP, "landlock_restrict_self", error))
    }
}

/// What stays writable under a read-only root file system besides the caller's mounts: the kernel's own file systems,
/// whose settings are protected by mounts, and `/tmp`.
pub(crate) fn always_writable() -> impl Iterator<Item = PathBuf> {
    ["/dev", "/proc", "/tmp"]
        .into_iter()
        .map(|path| Path::new(path).to_owned())
}
