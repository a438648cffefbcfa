//! `--security-opt`, as Docker writes it: what an option means, and the profile behind it.

use std::path::{Path, PathBuf};

use sbxrt::Seccomp;
use sbxrt::image::read_named_file;
use sbxrt::seccomp::Profile;

use crate::error::{Error, Result};

/// The largest file that is read as a profile; Docker's own is 14 KiB.
const PROFILE_LIMIT: u64 = 1 << 20;

/// A value of `--security-opt`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SecurityOption {
    /// sbxrt's own choice of system calls.
    DefaultCalls,
    /// The choice of a profile.
    Profile(PathBuf),
    /// All system calls.
    Unconfined,
    /// A program never gains privileges here.
    NoNewPrivileges,
}

/// Reads one option.
pub(crate) fn option(text: &str) -> Result<SecurityOption, String> {
    // Docker takes both, and the second from old scripts.
    let (name, value) = text
        .split_once(['=', ':'])
        .map_or((text, None), |(name, value)| (name, Some(value)));
    match (name, value) {
        ("seccomp", None | Some("")) => {
            Err("expected seccomp=FILE, seccomp=builtin or seccomp=unconfined".to_owned())
        }
        ("seccomp", Some("unconfined")) => Ok(SecurityOption::Unconfined),
        ("seccomp", Some("builtin")) => Ok(SecurityOption::DefaultCalls),
        ("seccomp", Some(file)) => Ok(SecurityOption::Profile(file.into())),
        ("no-new-privileges", None | Some("true")) => Ok(SecurityOption::NoNewPrivileges),
        ("no-new-privileges", Some("false")) => {
            Err("a program never gains privileges here, and there is no way to let it".to_owned())
        }
        _ => Err(format!(
            "unknown security option {name:?}; known are seccomp=FILE, seccomp=builtin, seccomp=unconfined and \
             no-new-privileges"
        )),
    }
}

/// What the options say of system calls; the last one counts.
pub(crate) fn seccomp(options: &[SecurityOption]) -> Result<Seccomp> {
    options
        .iter()
        .try_fold(Seccomp::Default, |seccomp, option| {
            Ok(match option {
                SecurityOption::DefaultCalls => Seccomp::Default,
                SecurityOption::Profile(path) => Seccomp::Profile(read(path)?),
                SecurityOption::Unconfined => Seccomp::Unconfined,
                SecurityOption::NoNewPrivileges => seccomp,
            })
        })
}

fn read(path: &Path) -> Result<Profile> {
    let failed = |source| Error::Profile {
        path: path.to_owned(),
        source,
    };
    let text = read_named_file(path, PROFILE_LIMIT).map_err(|error| failed(error.into()))?;
    Profile::parse(&text).map_err(|error| failed(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_docker_reads_them() {
        let table = [
            ("seccomp=unconfined", SecurityOption::Unconfined),
            ("seccomp:unconfined", SecurityOption::Unconfined),
            ("seccomp=builtin", SecurityOption::DefaultCalls),
            (
                "seccomp=/etc/a=b.json",
                SecurityOption::Profile("/etc/a=b.json".into()),
            ),
            ("no-new-privileges", SecurityOption::NoNewPrivileges),
            ("no-new-privileges:true", SecurityOption::NoNewPrivileges),
            ("no-new-privileges=true", SecurityOption::NoNewPrivileges),
        ];
        for (text, expected) in table {
            assert_eq!(option(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_done_here_is_refused_by_name() {
        for (text, word) in [
            ("apparmor=unconfined", "\"apparmor\""),
            ("label=disable", "\"label\""),
            ("systempaths=unconfined", "\"systempaths\""),
            ("no-new-privileges=false", "never gains privileges"),
            ("no-new-privileges=maybe", "\"no-new-privileges\""),
            ("seccomp", "seccomp=FILE"),
            ("seccomp=", "seccomp=FILE"),
            ("", "unknown security option"),
        ] {
            let error = option(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn the_last_word_on_system_calls_counts() {
        let options = [
            SecurityOption::Unconfined,
            SecurityOption::NoNewPrivileges,
            SecurityOption::DefaultCalls,
        ];
        assert_eq!(seccomp(&options).unwrap(), Seccomp::Default);
        assert_eq!(seccomp(&options[..2]).unwrap(), Seccomp::Unconfined);
    }
}
