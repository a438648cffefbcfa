//! The files of a context or of another image that `COPY` and `ADD` name.

use std::io::{ErrorKind, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use sbxrt_image::{Filter, NodeKind, Stack, Verdict, read_named_file};

use super::ignore::{self, Ignore};
use super::pattern::{Pattern, is_pattern};
use crate::error::{Error, Result};

/// The most bytes of `/etc/passwd` or `/etc/group` that are read.
const DATABASE_LIMIT: u64 = 1 << 20;

/// The context of a build.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) directory: PathBuf,
    pub(crate) ignore: Ignore,
}

impl Context {
    /// Looks at a context: `DOCKERFILE.dockerignore` counts over `.dockerignore`.
    pub(crate) fn open(directory: &Path, dockerfile: Option<&Path>) -> Result<Self> {
        let own = dockerfile.map(|file| {
            let mut name = file.as_os_str().to_owned();
            name.push(".dockerignore");
            PathBuf::from(name)
        });
        let candidates = own.into_iter().chain([directory.join(".dockerignore")]);
        let mut ignore = Ignore::default();
        for path in candidates {
            let read = match path.strip_prefix(directory) {
                Ok(name) => read_within(directory, name, ignore::MAXIMUM_BYTES)?,
                Err(_elsewhere) => read_bounded(&path, ignore::MAXIMUM_BYTES)?,
            };
            let Some(bytes) = read else {
                continue;
            };
            let invalid = |line: usize, reason: String| {
                Error::invalid(format!("{}:{line}", path.display()), reason)
            };
            let text = String::from_utf8(bytes)
                .map_err(|_not_text| invalid(1, "it is not UTF-8".to_owned()))?;
            ignore = Ignore::parse(&text).map_err(|(line, reason)| invalid(line, reason))?;
            break;
        }
        Ok(Self {
            directory: directory.to_owned(),
            ignore,
        })
    }
}

/// Reads a regular file of a context up to a limit; `None` where there is none. Who made the context may have put a link or
/// a FIFO there: links are followed within it only, and nobody is waited for.
pub(crate) fn read_within(directory: &Path, name: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    if !directory.is_dir() {
        return Ok(None);
    }
    let stack = Stack::of_directory(directory)?;
    let wanted = name.as_os_str().as_bytes();
    let path = stack.resolve(wanted, true)?;
    let shown = directory.join(name).display().to_string();
    let Some(node) = stack.node(&path)? else {
        return match stack.node(wanted) {
            Ok(Some(_)) => Err(Error::invalid(
                shown,
                "is a link to what is not in the context",
            )),
            _ => Ok(None),
        };
    };
    if node.kind != NodeKind::File {
        return Err(Error::invalid(shown, "is no regular file"));
    }
    if node.size > limit {
        return Err(Error::invalid(
            shown,
            format!("is longer than {limit} bytes"),
        ));
    }
    let mut bytes = Vec::new();
    stack
        .open_file(&path, &node)?
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(Error::io("read the context"))?;
    Ok(Some(bytes))
}

/// Reads a file that the caller has named, up to a limit; `None` where there is none.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let failed = |source| Error::File {
        step: "read",
        path: path.to_owned(),
        source,
    };
    match read_named_file(path, limit) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) => match error.kind() {
            ErrorKind::NotFound => Ok(None),
            ErrorKind::FileTooLarge => Err(Error::invalid(
                path.display().to_string(),
                format!("is longer than {limit} bytes"),
            )),
            _ => Err(failed(error)),
        },
    }
}

/// A file or directory that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Where it is, without links.
    pub(crate) path: Vec<u8>,
    /// The last part of the name that it was asked for by.
    pub(crate) name: Vec<u8>,
}

/// Finds what a source of `COPY` names. The reason where there is nothing.
pub(crate) fn find(
    stack: &Stack,
    source: &str,
    filter: &dyn Filter,
    is_context: bool,
) -> Result<Result<Vec<Found>, String>> {
    let Some(parts) = clean(source, is_context) else {
        return Ok(Err(format!("{source} leads out of the context")));
    };
    let mut candidates: Vec<String> = vec![String::new()];
    for part in &parts {
        let mut next = Vec::new();
        let pattern = if is_pattern(part) {
            match Pattern::parse(part, false) {
                Ok(pattern) => Some(pattern),
                Err(reason) => return Ok(Err(format!("{source}: {reason}"))),
            }
        } else {
            None
        };
        for candidate in candidates {
            let Some(pattern) = &pattern else {
                next.push(join(&candidate, &part.replace('\\', "")));
                continue;
            };
            let directory = stack.resolve(candidate.as_bytes(), true)?;
            let is_directory = stack
                .node(&directory)?
                .is_some_and(|node| node.kind == NodeKind::Directory);
            if !is_directory {
                continue;
            }
            for name in stack.list(&directory)? {
                if pattern.fits(&name)
                    && let Ok(name) = String::from_utf8(name)
                {
                    next.push(join(&candidate, &name));
                }
            }
        }
        candidates = next;
    }
    let mut found = Vec::new();
    let mut excluded = false;
    for candidate in &candidates {
        let path = stack.resolve(candidate.as_bytes(), true)?;
        let Some(node) = stack.node(&path)? else {
            continue;
        };
        if !path.is_empty()
            && filter.verdict(&path, node.kind == NodeKind::Directory) == Verdict::Skip
        {
            excluded = true;
            continue;
        }
        found.push(Found {
            path,
            name: candidate
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .as_bytes()
                .to_vec(),
        });
    }
    if !found.is_empty() {
        return Ok(Ok(found));
    }
    let place = if is_context {
        "the context"
    } else {
        "the image"
    };
    Ok(Err(
        match (excluded, parts.iter().any(|part| is_pattern(part))) {
            (true, _) => format!("{source} is left out by .dockerignore"),
            (false, true) => format!("no file of {place} fits {source}"),
            (false, false) => format!("{source} is not in {place}"),
        },
    ))
}

fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() {
        name.to_owned()
    } else {
        format!("{directory}/{name}")
    }
}

/// The parts of a path; `None` where it leads above the root and that is not to be.
fn clean(path: &str, strict: bool) -> Option<Vec<&str>> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                if parts.pop().is_none() && strict {
                    return None;
                }
            }
            part => parts.push(part),
        }
    }
    Some(parts)
}

/// Resolves `--chown=USER[:GROUP]` by the image's own `/etc/passwd` and `/etc/group`.
pub(crate) fn owner(stack: &Stack, wanted: &str) -> Result<Result<(u64, u64), String>> {
    let (user, group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let number = |text: &str| text.parse::<u32>().ok().map(u64::from);
    let (uid, default_gid) = if let Some(uid) = number(user) {
        // As Docker does: a number without a group is both.
        (uid, uid)
    } else {
        let passwd = database(stack, "etc/passwd")?;
        let entry = passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = number(fields.nth(1)?)?;
            let gid = number(fields.next()?)?;
            (name == user && !name.is_empty()).then_some((uid, gid))
        });
        let Some(entry) = entry else {
            return Ok(Err(format!("the image's /etc/passwd has no user {user:?}")));
        };
        entry
    };
    let gid = match (group, group.and_then(number)) {
        (None, _) => default_gid,
        (Some(_), Some(gid)) => gid,
        (Some(group), None) => {
            let groups = database(stack, "etc/group")?;
            let entry = groups.lines().find_map(|line| {
                let mut fields = line.split(':');
                let name = fields.next()?;
                let gid = number(fields.nth(1)?)?;
                (name == group && !name.is_empty()).then_some(gid)
            });
            let Some(gid) = entry else {
                return Ok(Err(format!(
                    "the image's /etc/group has no group {group:?}"
                )));
            };
            gid
        }
    };
    Ok(Ok((uid, gid)))
}

/// Reads a file of the image; one that is missing or special counts as empty.
fn database(stack: &Stack, path: &str) -> Result<String> {
    let path = stack.resolve(path.as_bytes(), true)?;
    let Some(node) = stack
        .node(&path)?
        .filter(|node| node.kind == NodeKind::File)
    else {
        return Ok(String::new());
    };
    let mut bytes = Vec::new();
    stack
        .open_file(&path, &node)?
        .take(DATABASE_LIMIT)
        .read_to_end(&mut bytes)
        .map_err(Error::io("read the image's users"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn context(ignore: &str) -> (tempfile::TempDir, Stack, Ignore) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("src/deep")).unwrap();
        fs::create_dir(root.join("etc")).unwrap();
        for file in [
            "a.txt",
            "b.txt",
            "c.md",
            "src/x.rs",
            "src/deep/y.rs",
            "we[ird",
        ] {
            fs::write(root.join(file), file).unwrap();
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0:::\napp:x:7:8:::\n").unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\nstaff:x:50:app\n").unwrap();
        symlink("src/deep", root.join("link")).unwrap();
        symlink("/etc/shadow", root.join("out")).unwrap();
        symlink("../../../etc/passwd", root.join("up")).unwrap();
        let stack = Stack::of_directory(root).unwrap();
        (directory, stack, Ignore::parse(ignore).unwrap())
    }

    #[test]
    fn sources_are_found_in_the_context_and_nowhere_else() {
        let (_directory, stack, ignore) = context("c.md\n");
        let table: &[(&str, Result<&[&str], &str>)] = &[
            ("a.txt", Ok(&["a.txt"])),
            ("/a.txt", Ok(&["a.txt"])),
            ("./src/../a.txt", Ok(&["a.txt"])),
            (".", Ok(&[""])),
            ("*.txt", Ok(&["a.txt", "b.txt"])),
            ("s?c/*.rs", Ok(&["src/x.rs"])),
            ("*/deep/[x-z].rs", Ok(&["src/deep/y.rs"])),
            ("link", Ok(&["src/deep"])),
            ("link/*", Ok(&["src/deep/y.rs"])),
            ("we[[]ird", Ok(&["we[ird"])),
            ("up", Ok(&["etc/passwd"])),
            ("out", Err("out is not in the context")),
            ("../x", Err("../x leads out of the context")),
            ("a/../../x", Err("a/../../x leads out of the context")),
            ("c.md", Err("c.md is left out by .dockerignore")),
            ("*.md", Err("*.md is left out by .dockerignore")),
            ("*.zip", Err("no file of the context fits *.zip")),
            ("[", Err("[: a [ of the pattern is not closed")),
        ];
        for (source, expected) in table {
            let found = find(&stack, source, &ignore, true).unwrap();
            let paths = found.map(|found| -> Vec<String> {
                found
                    .into_iter()
                    .map(|found| String::from_utf8(found.path).unwrap())
                    .collect()
            });
            let expected = expected
                .map(|paths| {
                    paths
                        .iter()
                        .map(|path| (*path).to_owned())
                        .collect::<Vec<_>>()
                })
                .map_err(str::to_owned);
            assert_eq!(paths, expected, "{source}");
        }
    }

    #[test]
    fn what_a_build_reads_of_itself_is_a_file_of_the_context() {
        let (directory, _, _) = context("");
        let root = directory.path();
        fs::write(root.join("text"), "*\n").unwrap();
        let status = std::process::Command::new("mkfifo")
            .arg(root.join("fifo"))
            .status();
        assert!(status.unwrap().success());
        symlink("text", root.join("inside")).unwrap();
        let read = |name: &str| {
            let read = read_within(root, Path::new(name), 8);
            read.map_err(|error| error.to_string())
        };
        for name in ["text", "inside"] {
            assert_eq!(read(name).unwrap().unwrap(), b"*\n", "{name}");
        }
        assert_eq!(read("none").unwrap(), None);
        // `up` is ../../../etc/passwd, and the context has one: longer than the limit.
        for (name, reason) in [
            ("fifo", "is no regular file"),
            ("src", "is no regular file"),
            ("out", "is not in the context"),
            ("up", "is longer than"),
        ] {
            let error = read(name).unwrap_err();
            assert!(error.contains(reason), "{name}: {error}");
        }
    }

    #[test]
    fn owners_are_those_of_the_image() {
        let (_directory, stack, _) = context("");
        let table = [
            ("1000", Ok((1000, 1000))),
            ("1:2", Ok((1, 2))),
            ("app", Ok((7, 8))),
            ("app:staff", Ok((7, 50))),
            ("5:staff", Ok((5, 50))),
            (
                "nobody",
                Err("the image's /etc/passwd has no user \"nobody\""),
            ),
            ("app:x", Err("the image's /etc/group has no group \"x\"")),
        ];
        for (wanted, expected) in table {
            assert_eq!(
                owner(&stack, wanted).unwrap(),
                expected.map_err(str::to_owned),
                "{wanted}"
            );
        }
    }
}
