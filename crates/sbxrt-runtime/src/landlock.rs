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
//! Making the rules and putting a process under them takes 27 µs, 40 µs with a read-only root file system (Linux 6.18, 201
//! processes, medians, machine busy).
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

#[cfg(test)]
mod tests {
    use std::io;

    use nix::errno::Errno;
    use nix::fcntl::{OFlag, open};
    use nix::sys::signal::kill;
    use nix::sys::stat::{Mode, SFlag, mknod};
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{Pid, getpid};

    use super::*;
    use crate::sys::Forked;

    /// The child is a copy of one thread of several, so it makes only system calls. Its exit status is the first check that
    /// failed, from 1.
    #[test]
    fn a_program_writes_only_where_it_may_and_signals_only_its_own() {
        let place = std::env::temp_dir().join(format!("sbxrt-landlock-{}", getpid()));
        for directory in ["open/a", "open/b", "closed"] {
            std::fs::create_dir_all(place.join(directory)).unwrap();
        }
        std::fs::write(place.join("closed/file"), "x").unwrap();
        let [new, moved, foreign, existing, device] = [
            "open/a/x",
            "open/b/x",
            "closed/x",
            "closed/file",
            "open/a/device",
        ]
        .map(|name| place.join(name));
        let rules = Rules::prepare(Some(&[place.join("open")])).unwrap();
        let Some(rules) = rules else {
            println!("skipped: this kernel has no Landlock");
            return std::fs::remove_dir_all(&place).unwrap();
        };
        let scopes = rules.abi >= 6;
        let parent = getpid();
        let create =
            |path: &Path| open(path, OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRUSR).map(drop);
        match sys::fork_into(0, None).unwrap() {
            Forked::Child => {
                let confined =
                    nix::sys::prctl::set_no_new_privs().is_ok() && rules.restrict().is_ok();
                let checks = [
                    confined,
                    create(&new) == Ok(()),
                    nix::fcntl::renameat(nix::fcntl::AT_FDCWD, &new, nix::fcntl::AT_FDCWD, &moved)
                        == Ok(()),
                    create(&foreign) == Err(Errno::EACCES),
                    create(&existing) == Err(Errno::EACCES),
                    open(&existing, OFlag::O_RDONLY, Mode::empty()).is_ok(),
                    // A device 0:0 is one that everybody may make, but for Landlock.
                    mknod(&device, SFlag::S_IFCHR, Mode::S_IRUSR, 0) == Err(Errno::EACCES),
                    (kill(parent, None) == Err(Errno::EPERM)) == scopes,
                    kill(getpid(), None) == Ok(()),
                    std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).is_ok(),
                ];
                let wrong = checks.iter().position(|&holds| !holds);
                sys::exit_now(wrong.map_or(0, |check| i32::try_from(check + 1).unwrap_or(99)));
            }
            Forked::Parent(child) => {
                let ended = waitpid(Pid::from_raw(child), None).map_err(io::Error::from);
                std::fs::remove_dir_all(&place).unwrap();
                assert_eq!(ended.unwrap(), WaitStatus::Exited(Pid::from_raw(child), 0));
            }
        }
    }
}
