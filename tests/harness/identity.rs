//! Who runs sbxrt: root, an ordinary user, and one who has subordinate ids.

use std::panic::{self, AssertUnwindSafe};
use std::process::Command;

use nix::unistd::{Uid, User};

use crate::{Host, Sbxrt, need};

/// A user of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    user: User,
}

impl Identity {
    /// Looks a user up.
    pub fn named(name: &str) -> Option<Self> {
        User::from_name(name).unwrap().map(|user| Self { user })
    }

    /// The user who runs the tests.
    pub fn current() -> Self {
        let user = User::from_uid(nix::unistd::geteuid()).unwrap();
        Self {
            user: user.expect("the caller is in /etc/passwd"),
        }
    }

    /// A user without any privilege: `sbxrt-test` where root runs the tests, else the caller.
    pub fn ordinary() -> Self {
        Self::named("sbxrt-test")
            .filter(|_| nix::unistd::geteuid().is_root())
            .unwrap_or_else(Self::current)
    }

    /// The user's name.
    pub fn name(&self) -> &str {
        &self.user.name
    }

    /// The user's id.
    pub fn uid(&self) -> Uid {
        self.user.uid
    }

    /// The id of the user's own group.
    pub fn gid(&self) -> nix::unistd::Gid {
        self.user.gid
    }

    /// Whether this is root.
    pub fn is_root(&self) -> bool {
        self.user.uid.is_root()
    }

    /// A command that this user runs. What `Command` starts becomes the program itself, with no process in between.
    pub fn command(&self, arguments: &[impl AsRef<std::ffi::OsStr>]) -> Command {
        let mut arguments = arguments.iter().map(AsRef::as_ref);
        if self.user.uid == nix::unistd::geteuid() {
            let mut command = Command::new(arguments.next().unwrap());
            command.args(arguments);
            return command;
        }
        let mut command = Command::new("setpriv");
        command
            .arg(format!("--reuid={}", self.user.uid))
            .arg(format!("--regid={}", self.user.gid))
            .args(["--init-groups", "--"])
            .args(arguments);
        command
    }
}

/// Everyone whom a test runs as.
pub fn identities() -> Vec<Identity> {
    let current = Identity::current();
    let chosen = match std::env::var("SBXRT_TEST_IDENTITIES") {
        Ok(names) => names,
        Err(_) if current.is_root() => "root,sbxrt-test,sbxrt-sub".to_owned(),
        Err(_) => current.name().to_owned(),
    };
    let mut identities = Vec::new();
    for name in chosen.split(',') {
        match Identity::named(name) {
            Some(identity) if identity == current || current.is_root() => identities.push(identity),
            Some(_) => need::skip("root", &format!("only root can become {name}")),
            None => need::skip(
                "users",
                &format!("no user {name}; hint: scripts/setup --test"),
            ),
        }
    }
    identities
}

/// Runs a test once for each identity, and looks for leftovers after each.
///
/// # Panics
///
/// After all of them have run, where it failed for any.
pub fn for_each_identity(test: impl Fn(&Sbxrt)) {
    if !need::require(need::Need::UserNamespaces) {
        return;
    }
    let mut failed = Vec::new();
    for identity in identities() {
        let name = identity.name().to_owned();
        eprintln!("--- as {name}");
        let attempt = panic::catch_unwind(AssertUnwindSafe(|| {
            let sbxrt = Sbxrt::new(identity);
            let host = Host::snapshot(&sbxrt);
            test(&sbxrt);
            host.assert_nothing_is_left();
        }));
        if attempt.is_err() {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "failed as {}", failed.join(", "));
}
