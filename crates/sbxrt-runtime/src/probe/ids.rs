//! Subordinate user and group ids: ranges in `/etc/subuid` and `/etc/subgid` and the tools that map them.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::OFlag;
use nix::unistd::{User, getegid, geteuid, pipe2};

use super::advice::Advice;
use super::attempt::{failed, line, on, wrong};
use super::{Check, Status};
use crate::error::Failure;
use crate::sys;

const NAME: &str = "subordinate_ids";
const UNNEEDED: &str = "runs do not need them: an image's files then all belong to one user inside";

/// A range of ids that a user may map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u32,
    count: u32,
}

/// Looks for ranges and maps them for real.
pub(super) fn check(user_namespaces: bool) -> Check {
    let uid = geteuid();
    let user = User::from_uid(uid).ok().flatten().map(|user| user.name);
    let range = |path: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        largest(&text, user.as_deref(), uid.as_raw())
    };
    let (Some(uids), Some(gids)) = (range("/etc/subuid"), range("/etc/subgid")) else {
        let name = user.unwrap_or_else(|| uid.to_string());
        return Check::not_ok(
            NAME,
            Status::Missing,
            format!("/etc/subuid and /etc/subgid have no range for {name}"),
            Advice::new(
                UNNEEDED,
                format!(
                    "sudo usermod --add-subuids FIRST-LAST --add-subgids FIRST-LAST {name} # 65536 ids that /etc/subuid and /etc/subgid give to nobody else"
                ),
            ),
        );
    };
    let (Some(map_uids), Some(map_gids)) = (find("newuidmap"), find("newgidmap")) else {
        return Check::not_ok(
            NAME,
            Status::Missing,
            "newuidmap or newgidmap is not installed",
            Advice::new(
                UNNEEDED,
                "sudo apt install uidmap # Fedora and RHEL: sudo dnf install shadow-utils",
            ),
        );
    };
    let found = format!(
        "{} uids from {} and {} gids from {}",
        uids.count, uids.first, gids.count, gids.first
    );
    if !user_namespaces {
        return Check::not_ok(
            NAME,
            Status::Missing,
            found,
            Advice::without_fix("user namespaces do not work here"),
        );
    }
    match map(&map_uids, uids, &map_gids, gids) {
        Ok(()) => Check::ok(NAME, format!("{found}, mapped by newuidmap")),
        Err(failure) => {
            let advice = if privileged(&map_uids) && privileged(&map_gids) {
                Advice::without_fix(UNNEEDED)
            } else {
                Advice::new(
                    format!("newuidmap or newgidmap has lost its privilege; {UNNEEDED}"),
                    "sudo setcap cap_setuid+ep /usr/bin/newuidmap && sudo setcap cap_setgid+ep /usr/bin/newgidmap",
                )
            };
            Check::not_ok(NAME, Status::Missing, line(&failure), advice)
        }
    }
}

/// The largest range that `text`, the contents of `/etc/subuid` or `/etc/subgid`, gives to a user (subuid(5)).
fn largest(text: &str, name: Option<&str>, uid: u32) -> Option<Range> {
    let uid = uid.to_string();
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let range = Range {
            first: fields.next()?.parse().ok()?,
            count: fields.next()?.parse().ok()?,
        };
        let theirs = Some(owner) == name || owner == uid;
        let valid = range.count > 0
            && range.first.checked_add(range.count).is_some()
            && fields.next().is_none();
        (theirs && valid).then_some(range)
    };
    text.lines()
        .filter_map(range)
        .max_by_key(|range| range.count)
}

fn find(program: &str) -> Option<PathBuf> {
    crate::DEFAULT_PATH
        .split(':')
        .map(|directory| Path::new(directory).join(program))
        .find(|path| path.is_file())
}

/// Whether a program has the set-user-ID bit or file capabilities.
fn privileged(program: &Path) -> bool {
    let set_user_id = program
        .metadata()
        .is_ok_and(|metadata| metadata.permissions().mode() & 0o4000 != 0);
    set_user_id || sys::has_attribute(program, c"security.capability")
}

/// Maps the ranges into a user namespace of a child.
fn map(map_uids: &Path, uids: Range, map_gids: &Path, gids: Range) -> Result<(), Failure> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(|error| failed("pipe2", error))?;
    let child = match sys::fork_into(libc::CLONE_NEWUSER, None)
        .map_err(|error| failed("clone3(CLONE_NEWUSER)", error))?
    {
        sys::Forked::Child => {
            drop(writer);
            wait_for_end(reader);
            sys::exit_now(0)
        }
        sys::Forked::Parent(child) => child,
    };
    drop(reader);
    let outcome = run(map_uids, child, geteuid().as_raw(), uids)
        .and_then(|()| run(map_gids, child, getegid().as_raw(), gids));
    drop(writer);
    drop(sys::wait_for(child));
    outcome
}

fn wait_for_end(pipe: OwnedFd) {
    // Whatever ends the wait, this process is done.
    drop(std::fs::File::from(pipe).read(&mut [0]));
}

fn run(program: &Path, child: i32, own: u32, range: Range) -> Result<(), Failure> {
    let numbers = [0, own, 1, 1, range.first, range.count].map(|number| number.to_string());
    let output = Command::new(program)
        .arg(child.to_string())
        .args(numbers)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(on("execve", program), error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or("it did not say why");
    Err(wrong(
        program.display().to_string(),
        format!(
            "{} ({})",
            said.chars().take(200).collect::<String>(),
            output.status
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_range_of_a_user_is_found_by_name_and_by_id() {
        let text = "root:1:5\nann:100000:65536\n1000:300000:70000\nann:1:\nann:x:9\nann:4294967295:9\n# ann:1:99999999\nbob:200000:0\n";
        let table = [
            (Some("ann"), 7, Some((100_000, 65_536))),
            (Some("ann"), 1000, Some((300_000, 70_000))),
            (None, 1000, Some((300_000, 70_000))),
            (Some("bob"), 8, None),
            (Some("an"), 100, None),
            (None, 9, None),
        ];
        for (name, uid, expected) in table {
            let expected = expected.map(|(first, count)| Range { first, count });
            assert_eq!(largest(text, name, uid), expected, "{name:?} {uid}");
        }
    }
}
