//! Which filter a program runs under.

use serde::{Deserialize, Serialize};

use super::{
    Architecture, Error, Profile, Program, ROOT_EMULATION_PROFILE, compile, default_program,
    root_emulation_program,
};

/// The system calls that a program may make.
///
/// Whatever the policy, these stay: no capability, `no_new_privs`, no user namespace inside, a session keyring that was
/// made for sbxrt (under the default policy, which lets nobody use one, the launcher's; else the program's own), and what a limit without a cgroup consists of ([`limits_program`](super::limits_program)). Nothing that
/// protects the host depends on the policy: sbxrt's process in the container can be neither traced nor looked into, and the
/// terminal that a program may type into is the container's. Where a policy allows `prlimit64` on process 1, as the default
/// does not, a program can take that process its means, and the run fails.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// sbxrt's own, see the [module](super#the-default-policy).
    #[default]
    Default,
    /// This one instead of it.
    Custom(Program),
    /// All of them, for programs that sbxrt's policy keeps from working and that are trusted.
    Unconfined,
}

impl Policy {
    /// A profile of the caller's in the place of the default policy, compiled for this machine and a process without
    /// capabilities. With `emulate_root`, the rules of [root emulation](super#root-emulation) are put on top.
    ///
    /// # Errors
    ///
    /// Names the rule that asks for what cannot be done.
    pub fn custom(profile: &Profile, emulate_root: bool) -> Result<Self, Error> {
        let program = if emulate_root {
            let emulation = Profile::parse(ROOT_EMULATION_PROFILE.as_bytes())?;
            compile(&profile.clone().with(emulation), Architecture::NATIVE, &[])?
        } else {
            compile(profile, Architecture::NATIVE, &[])?
        };
        Ok(Self::Custom(program))
    }

    /// Which kind it is, as the result says.
    pub fn kind(&self) -> PolicyKind {
        match self {
            Self::Default => PolicyKind::Default,
            Self::Custom(_) => PolicyKind::Custom,
            Self::Unconfined => PolicyKind::Unconfined,
        }
    }

    /// The filter, where there is one.
    pub(crate) fn program(&self, emulate_root: bool) -> Option<&Program> {
        match self {
            Self::Default if emulate_root => Some(root_emulation_program()),
            Self::Default => Some(default_program()),
            Self::Custom(program) => Some(program),
            Self::Unconfined => None,
        }
    }
}

/// The kinds of [`Policy`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyKind {
    /// sbxrt's own.
    #[default]
    Default,
    /// The caller's profile.
    Custom,
    /// None.
    Unconfined,
}
