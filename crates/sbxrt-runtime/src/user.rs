//! Who a program is inside: an image's `USER` or `--user`, resolved against the container's own `/etc/passwd`.
//!
//! The files are the image's and so hostile: they are opened inside the container's root, must be regular files, and
//! are read up to 1 MiB (CVE-2024-9676). A number is always a number: a user *named* `1000` is not looked up
//! (CVE-2016-3697).

use std::io::Read;
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

use crate::error::Failure;

/// A resolved user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The home directory that `/etc/passwd` names; `/` where it names none, as in Docker.
    pub(crate) home: String,
}

/// Resolves `wanted` with the contents of `/etc/passwd` and `/etc/group`.
pub(crate) fn resolve(wanted: &str, passwd: &str, group: &str) -> Result<User, Failure> {
    let (user, group_wanted) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let invalid = |reason: &str| Failure::reason("resolve the user", wanted, reason);
    let user = if user.is_empty() && group_wanted.is_none() {
        "0"
    } else {
        user
    };
    let entry = match parse_id(user)
        .ok_or_else(|| invalid("a user or group id is a number from 0 to 4294967294"))?
    {
        Id::Number(uid) => passwd_entries(passwd)
            .find(|entry| entry.uid == uid)
            .unwrap_or_else(|| User {
                uid,
                gid: 0,
                home: if uid == 0 {
                    "/root".to_owned()
                } else {
                    "/".to_owned()
                },
            }),
        Id::Name(name) => find_name(passwd, name).ok_or_else(|| {
            invalid("no such user in the image's /etc/passwd; give a number to do without")
        })?,
    };
    let gid = match group_wanted {
        None => entry.gid,
        Some(group_wanted) => {
            match parse_id(group_wanted)
                .ok_or_else(|| invalid("a user or group id is a number from 0 to 4294967294"))?
            {
                Id::Number(gid) => gid,
                Id::Name(name) => find_group(group, name).ok_or_else(|| {
                    invalid("no such group in the image's /etc/group; give a number to do without")
                })?,
            }
        }
    };
    Ok(User { gid, ..entry })
}

/// Reads `/etc/passwd` or `/etc/group` of the container that this process is already inside of. A file that is
/// missing, special or too long counts as empty: numbers still work.
pub(crate) fn read_database(path: &Path) -> String {
    const LIMIT: u64 = 1 << 20;
    // Without magic links: this process has descriptors open, and /proc/self/fd must not lead out through them.
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let root = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let opened = open("/", root, Mode::empty()).and_then(|root| openat2(root, path, how));
    let Ok(file) = opened.map(std::fs::File::from) else {
        return String::new();
    };
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return String::new();
    }
    let mut bytes = Vec::new();
    match file.take(LIMIT).read_to_end(&mut bytes) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}

enum Id<'a> {
    Number(u32),
    Name(&'a str),
}

/// `None` for what is neither a number in range nor a possible name.
fn parse_id(text: &str) -> Option<Id<'_>> {
    let first = text.bytes().next()?;
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        // The largest value is the kernel's "no such id" (-1).
        return text
            .parse()
            .ok()
            .filter(|&id| id != u32::MAX)
            .map(Id::Number);
    }
    // "-1" and "+1000" are not names: somebody meant a number.
    (!matches!(first, b'-' | b'+')).then_some(Id::Name(text))
}

fn passwd_entries(passwd: &str) -> impl Iterator<Item = User> {
    passwd
        .lines()
        .filter_map(|line| passwd_entry(line).map(|(_, user)| user))
}

fn find_name(passwd: &str, name: &str) -> Option<User> {
    passwd
        .lines()
        .filter_map(passwd_entry)
        .find(|(entry, _)| *entry == name)
        .map(|(_, user)| user)
}

fn passwd_entry(line: &str) -> Option<(&str, User)> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = fields
        .nth(1)
        .filter(|home| home.starts_with('/'))
        .unwrap_or("/");
    Some((
        name,
        User {
            uid,
            gid,
            home: home.to_owned(),
        },
    ))
}

fn find_group(group: &str, wanted: &str) -> Option<u32> {
    group.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == wanted).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n1000:x:0:0:trap:/root:/bin/sh\napp:x:1000:1001::/home/app:\nbroken\nrel:x:7:7::home:\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:app\nbroken\n";

    #[test]
    fn users_resolve_as_docker_resolves_them() {
        let table = [
            ("", Ok((0, 0, "/root"))),
            ("root", Ok((0, 0, "/root"))),
            ("app", Ok((1000, 1001, "/home/app"))),
            ("1000", Ok((1000, 1001, "/home/app"))),
            ("4711", Ok((4711, 0, "/"))),
            ("app:staff", Ok((1000, 50, "/home/app"))),
            ("4711:4712", Ok((4711, 4712, "/"))),
            ("rel", Ok((7, 7, "/"))),
            ("nobody", Err(())),
            ("app:nobody", Err(())),
            ("1000:", Err(())),
            (":0", Err(())),
            ("+1000", Err(())),
            ("-1", Err(())),
            ("4294967295", Err(())),
            ("4294967296", Err(())),
        ];
        for (wanted, expected) in table {
            let found = resolve(wanted, PASSWD, GROUP);
            let found = found
                .as_ref()
                .map(|user| (user.uid, user.gid, user.home.as_str()))
                .map_err(drop);
            assert_eq!(found, expected, "{wanted:?}");
        }
    }

    #[test]
    fn special_files_count_as_empty() {
        assert_eq!(read_database(Path::new("/dev/zero")), "");
        assert_eq!(read_database(Path::new("/nonexistent")), "");
    }
}
