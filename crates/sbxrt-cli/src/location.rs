//! Where images are kept: a flag, a variable, or the place that the XDG base directory specification names.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use sbxrt::image::Store;

use crate::args::StoreArguments;
use crate::error::{Error, Result};

/// Opens the store that the flags and the environment name, with its additional stores: those of flags first, then those of
/// `SBXRT_ADDITIONAL_STORES`.
pub(crate) fn open(arguments: &StoreArguments) -> Result<Store> {
    let listed = std::env::var_os("SBXRT_ADDITIONAL_STORES").unwrap_or_default();
    let listed = std::env::split_paths(&listed).filter(|path| !path.as_os_str().is_empty());
    let additional = arguments.additional_store.iter().cloned().chain(listed);
    Ok(Store::open(&store(arguments.store.clone())?)?.with_additional(additional)?)
}

/// Whether nothing may be fetched: by the flag, or by `SBXRT_OFFLINE`.
pub(crate) fn is_offline(flag: bool) -> bool {
    flag || is_set(std::env::var_os("SBXRT_OFFLINE").as_deref())
}

/// What people write for no counts as no.
fn is_set(value: Option<&OsStr>) -> bool {
    value.is_some_and(|value| !["", "0", "no", "false"].iter().any(|no| value == *no))
}

/// The directory of the image store: `flag`, else `SBXRT_STORE`, else `XDG_DATA_HOME/sbxrt`, else
/// `~/.local/share/sbxrt`.
pub(crate) fn store(flag: Option<PathBuf>) -> Result<PathBuf> {
    choose(flag, |name| std::env::var_os(name), home_of_user).ok_or(Error::NoStore)
}

fn choose(
    flag: Option<PathBuf>,
    variable: impl Fn(&str) -> Option<OsString>,
    home: impl FnOnce() -> Option<PathBuf>,
) -> Option<PathBuf> {
    let variable = |name| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(directory) = flag.or_else(|| variable("SBXRT_STORE")) {
        return Some(directory);
    }
    // A relative path there is invalid and to be ignored, the specification says.
    let data = variable("XDG_DATA_HOME").filter(|path| path.is_absolute());
    let data = data.or_else(|| Some(variable("HOME").or_else(home)?.join(".local/share")))?;
    Some(data.join("sbxrt"))
}

/// The home directory: what `HOME` says, else the user database.
pub(crate) fn home(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    variable("HOME")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(home_of_user)
}

/// What the user database says; a service or a batch job may have no HOME.
fn home_of_user() -> Option<PathBuf> {
    Some(
        nix::unistd::User::from_uid(nix::unistd::geteuid())
            .ok()??
            .dir,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_can_say_no() {
        let table = [
            (None, false),
            (Some(""), false),
            (Some("0"), false),
            (Some("false"), false),
            (Some("1"), true),
            (Some("yes"), true),
        ];
        for (value, expected) in table {
            assert_eq!(is_set(value.map(OsStr::new)), expected, "{value:?}");
        }
    }

    type Variables<'a> = &'a [(&'a str, &'a str)];

    #[test]
    fn the_flag_counts_over_the_variables_and_those_over_home() {
        let all = [
            ("SBXRT_STORE", "/env"),
            ("XDG_DATA_HOME", "/xdg"),
            ("HOME", "/home/u"),
        ];
        let table: [(Option<&str>, Variables<'_>, &str); 7] = [
            (Some("/flag"), &all, "/flag"),
            (Some("flag"), &all, "flag"),
            (None, &all, "/env"),
            (None, &all[1..], "/xdg/sbxrt"),
            (None, &all[2..], "/home/u/.local/share/sbxrt"),
            (
                None,
                &[("XDG_DATA_HOME", "relative"), ("HOME", "")],
                "/database/.local/share/sbxrt",
            ),
            (None, &[], "/database/.local/share/sbxrt"),
        ];
        for (flag, variables, expected) in table {
            let variable = |name: &str| {
                variables
                    .iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, value)| OsString::from(value))
            };
            let chosen = choose(flag.map(PathBuf::from), variable, || {
                Some("/database".into())
            });
            assert_eq!(
                chosen,
                Some(PathBuf::from(expected)),
                "{flag:?} {variables:?}"
            );
        }
        assert_eq!(choose(None, |_| None, || None), None);
    }
}
