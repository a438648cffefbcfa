//! A cgroup from systemd, for a caller whose own is not delegated: the processes of a session that somebody logged in to
//! belong to the machine's manager, but beside them runs a manager of that user's, which gives away parts of what it
//! has been given.
//!
//! It is asked for a scope around the launcher: a unit for processes that exist already. The kernel lets a process into a
//! cgroup only where their common ancestor is its own, so nobody can be born there from outside: the launcher is moved
//! (by systemd, which may), and all that comes of it stays below. When the launcher ends, however that happens, the
//! scope is empty, and systemd removes it with all that is in it.
//!
//! This costs 12 ms on two virtual processors with Linux 6.18, and more where the user's manager has to ask the machine's:
//! 1.6 ms for the conversation, the rest is the grace period that moving a process takes (see [`Launcher`]). That is as
//! much as a whole run takes otherwise, so systemd is asked only where somebody insists on a cgroup.
//!
//! Nothing of the environment is read. The manager's socket is in `/run/user/UID`, where `pam_systemd` makes it, whether or
//! not `XDG_RUNTIME_DIR` says so, as it does not after `su`. It is the one that systemd's own tools use; there is no bus
//! to go through, and no D-Bus daemon need run.
//!
//! [`Launcher`]: crate::Launcher

mod bus;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use self::bus::{Connection, Message, Method, Values};
use super::{Directory, Obstacle, version2};

/// How long a manager may take. It answers in milliseconds, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(2);

const PING: Method<'static> = Method {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.DBus.Peer",
    name: "Ping",
    signature: "",
};
const START: Method<'static> = Method {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
    name: "StartTransientUnit",
    signature: "ssa(sv)a(sa(sv))",
};

/// Why there is no scope.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoScope {
    /// No manager listens.
    #[error("systemd runs no manager for this user: {}: {source}", .socket.display())]
    NoManager { socket: PathBuf, source: io::Error },
    /// The manager hangs or refuses.
    #[error("systemd's manager at {} made no scope: {reason}", .socket.display())]
    NotMade { socket: PathBuf, reason: String },
    /// There is one, but no leaves can be made in it.
    #[error("the scope that systemd made is of no use: {0:?}")]
    Useless(Obstacle),
}

/// Has the process `launcher`, a child of this one, put into a scope of its own, ready for leaves.
pub(super) fn scope(launcher: libc::pid_t) -> Result<Directory, NoScope> {
    let socket = socket();
    let not_made = |reason| NoScope::NotMade {
        socket: socket.clone(),
        reason,
    };
    let name = scope_name(launcher);
    let deadline = Instant::now() + PATIENCE;
    start(&socket, &name, launcher, deadline).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => NoScope::NoManager {
            socket: socket.clone(),
            source: error,
        },
        io::ErrorKind::TimedOut => not_made(format!("no answer within {PATIENCE:?}")),
        _ => not_made(error.to_string()),
    })?;
    let directory = version2::locate(&launcher.to_string()).map_err(NoScope::Useless)?;
    if directory
        .path
        .file_name()
        .is_none_or(|found| *found != *name)
    {
        return Err(not_made(format!(
            "{name} was to have the launcher, and has not"
        )));
    }
    version2::prepare(directory).map_err(NoScope::Useless)
}

/// Whether a manager answers. It need not be able to make a scope.
pub(crate) fn answers() -> bool {
    let deadline = Instant::now() + PATIENCE;
    let ping = || -> io::Result<bool> {
        let mut manager = Connection::call(&socket(), deadline, &PING, &Values::default())?;
        loop {
            match manager.receive()? {
                Message::Return => return Ok(true),
                Message::Error { .. } => return Ok(false),
                Message::Signal { .. } => {}
            }
        }
    };
    ping().unwrap_or(false)
}

/// Where the manager of this process's user listens.
fn socket() -> PathBuf {
    let user = nix::unistd::geteuid();
    if user.is_root() {
        "/run/systemd/private".into()
    } else {
        format!("/run/user/{user}/systemd/private").into()
    }
}

/// A name that no unit has or had.
fn scope_name(launcher: libc::pid_t) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    format!(
        "sbxrt-{launcher}-{:x}.scope",
        now.unwrap_or_default().as_nanos()
    )
}

/// Has the manager at `socket` make the scope `name` around `process`, and waits until that is done.
fn start(socket: &Path, name: &str, process: libc::pid_t, deadline: Instant) -> io::Result<()> {
    let mut arguments = Values::default();
    arguments.string(name);
    // What to do about a unit of this name that is there already.
    arguments.string("fail");
    arguments.array(8, |properties| {
        properties.property("Description", "s", |value| {
            value.string("sandboxes of sbxrt");
        });
        properties.property("PIDs", "au", |value| {
            value.array(4, |pids| pids.u32(process.cast_unsigned()));
        });
        properties.property("Delegate", "b", |value| value.u32(1));
        // It depends on nothing; when the session ends, the launcher ends with its caller.
        properties.property("DefaultDependencies", "b", |value| value.u32(0));
        // One that failed, as after an out-of-memory kill, is not kept to be looked at.
        properties.property("CollectMode", "s", |value| {
            value.string("inactive-or-failed");
        });
    });
    // No further units.
    arguments.array(8, |_| {});
    let mut manager = Connection::call(socket, deadline, &START, &arguments)?;
    loop {
        match manager.receive()? {
            Message::Error { name, text } => {
                return Err(io::Error::other(format!("{text} ({name})")));
            }
            // On a manager's own socket, its signals are heard without asking for them.
            Message::Signal { member, mut body } if member == "JobRemoved" => {
                body.take_u32()?;
                let (_job, unit, result) = (
                    body.take_string()?,
                    body.take_string()?,
                    body.take_string()?,
                );
                if unit == name {
                    return match result.as_str() {
                        "done" => Ok(()),
                        _ => Err(io::Error::other(format!(
                            "the scope's start ended as {result}"
                        ))),
                    };
                }
            }
            Message::Return | Message::Signal { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::bus::tests::{job_removed, refusal};
    use super::*;

    const NAME: &str = "sbxrt-7-1.scope";

    /// Asks a manager that says `answer` for a scope, and goes when it is no longer listened to.
    fn asked(answer: Vec<u8>, patience: Duration) -> io::Result<()> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("private");
        let listener = UnixListener::bind(&socket).unwrap();
        let manager = std::thread::spawn(move || {
            let (mut stream, _): (UnixStream, _) = listener.accept().unwrap();
            // The other side goes when it likes.
            drop(stream.write_all(&answer));
            drop(stream.read_to_end(&mut Vec::new()));
        });
        let result = start(&socket, NAME, 7, Instant::now() + patience);
        manager.join().unwrap();
        result
    }

    fn answer(messages: &[Vec<u8>]) -> Vec<u8> {
        [b"OK 0123456789abcdef\r\n".to_vec(), messages.concat()].concat()
    }

    #[test]
    fn a_scope_is_there_when_its_own_job_is_done() {
        let others = job_removed("other.scope", "failed");
        let own = |result| answer(&[others.clone(), job_removed(NAME, result)]);
        asked(own("done"), PATIENCE).unwrap();
        let error = asked(own("failed"), PATIENCE).unwrap_err();
        assert_eq!(error.to_string(), "the scope's start ended as failed");
    }

    #[test]
    fn a_refusal_is_told_in_the_managers_words() {
        let message = refusal(
            "org.freedesktop.systemd1.UnitExists",
            "Unit sbxrt-7-1.scope already exists.",
        );
        let error = asked(answer(&[message]), PATIENCE).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Unit sbxrt-7-1.scope already exists. (org.freedesktop.systemd1.UnitExists)"
        );
        let error = asked(b"REJECTED EXTERNAL\r\n".to_vec(), PATIENCE).unwrap_err();
        assert_eq!(
            error.to_string(),
            "authentication was answered with \"REJECTED EXTERNAL\""
        );
    }

    #[test]
    fn nobody_waits_for_a_manager_that_says_nothing_more() {
        for answer in [Vec::new(), b"OK ".to_vec(), answer(&[])] {
            let error = asked(answer, Duration::from_millis(20)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
    }

    #[test]
    fn absent_managers_are_told_from_dead_ones_by_their_socket() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("private");
        let ask = || start(&socket, NAME, 7, Instant::now() + PATIENCE).unwrap_err();
        assert_eq!(ask().kind(), io::ErrorKind::NotFound);
        drop(UnixListener::bind(&socket).unwrap());
        assert_eq!(ask().kind(), io::ErrorKind::ConnectionRefused);
    }
}
