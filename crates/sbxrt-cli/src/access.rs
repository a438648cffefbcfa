//! How this user reaches registries: the files and variables that docker, podman and skopeo go by.
//!
//! Which files there are is decided here, what they say in `sbxrt::image`. Nothing of this is read before an image has to
//! be fetched.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sbxrt::PullOptions;
use sbxrt::image::{Keychain, Proxies, Registries};

use crate::error::{Error, Result};
use crate::helper::Programs;
use crate::location;

/// Adds to `options` what the user and the site have set up.
pub(crate) fn equip(options: PullOptions) -> Result<PullOptions> {
    let places = Places::find();
    let mut keychain = Keychain::new().with_helper(Arc::new(Programs));
    for path in &places.credentials {
        let is_there = keychain.read(path)?;
        if !is_there && places.is_named {
            tracing::warn!(
                "{} does not exist; going on without credentials",
                path.display()
            );
        }
    }
    let mut registries = Registries::default();
    if let Some(path) = &places.named_registries {
        if !registries.read(path)? {
            return Err(Error::Settings {
                path: path.clone(),
                source: std::io::ErrorKind::NotFound.into(),
            });
        }
    } else {
        // The user's file takes the place of the machine's, and drop-in files add to either.
        for path in &places.registries {
            if registries.read(path)? {
                break;
            }
        }
        for directory in &places.registries_drop_ins {
            for path in drop_ins(directory)? {
                registries.read(&path)?;
            }
        }
    }
    Ok(PullOptions {
        keychain,
        registries,
        certificates: places.certificates,
        proxies: proxies(|name| std::env::var(name).ok()),
        ..options
    })
}

/// The files of this user.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Places {
    /// Files with credentials, the first one that knows a registry counts.
    pub(crate) credentials: Vec<PathBuf>,
    /// Whether somebody has named the one file with credentials.
    is_named: bool,
    /// The one of them that is Docker's own, and is left to docker.
    pub(crate) docker: Option<PathBuf>,
    /// Where `sbxrt login` keeps what is new.
    pub(crate) login: Option<PathBuf>,
    named_registries: Option<PathBuf>,
    registries: Vec<PathBuf>,
    registries_drop_ins: Vec<PathBuf>,
    pub(crate) certificates: Vec<PathBuf>,
}

impl Places {
    pub(crate) fn find() -> Self {
        let home = || location::home(|name| std::env::var_os(name));
        Self::choose(|name| std::env::var_os(name), home)
    }

    fn choose(
        variable: impl Fn(&str) -> Option<OsString>,
        home: impl FnOnce() -> Option<PathBuf>,
    ) -> Self {
        let path = |name: &str| {
            variable(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let home = home();
        let below_home = |rest: &str| home.as_ref().map(|home| home.join(rest));
        let config = path("XDG_CONFIG_HOME")
            .filter(|path| path.is_absolute())
            .or_else(|| below_home(".config"))
            .map(|config| config.join("containers"));
        let runtime = path("XDG_RUNTIME_DIR")
            .filter(|path| path.is_absolute())
            .map(|runtime| runtime.join("containers/auth.json"));
        let below_config = |rest: &str| config.as_ref().map(|config| config.join(rest));
        let docker = path("DOCKER_CONFIG")
            .or_else(|| below_home(".docker"))
            .map(|docker| docker.join("config.json"));
        let named = path("REGISTRY_AUTH_FILE");
        // Whoever names Docker's file means it.
        let docker = docker.filter(|docker| named.as_ref() != Some(docker));
        let etc = Path::new("/etc/containers");
        Self {
            is_named: named.is_some(),
            // Not where podman keeps what is new: XDG_RUNTIME_DIR is gone with the session, and batch jobs on other
            // machines never see it.
            login: named.clone().or_else(|| below_config("auth.json")),
            credentials: match named {
                Some(path) => vec![path],
                None => [runtime, below_config("auth.json"), docker.clone()]
                    .into_iter()
                    .flatten()
                    .collect(),
            },
            docker,
            named_registries: path("CONTAINERS_REGISTRIES_CONF"),
            registries: below_config("registries.conf")
                .into_iter()
                .chain([etc.join("registries.conf")])
                .collect(),
            registries_drop_ins: [etc.join("registries.conf.d")]
                .into_iter()
                .chain(below_config("registries.conf.d"))
                .collect(),
            certificates: below_config("certs.d")
                .into_iter()
                .chain([etc.join("certs.d"), "/etc/docker/certs.d".into()])
                .collect(),
        }
    }
}

/// Returns the drop-in files of a directory in the order in which they count.
fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>> {
    let failed = |source: std::io::Error| Error::Settings {
        path: directory.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension() == Some(OsStr::new("conf")) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The proxies that variables name: in capitals or not, as Go's programs read them.
fn proxies(variable: impl Fn(&str) -> Option<String>) -> Proxies {
    let either = |name: &str| {
        variable(name)
            .or_else(|| variable(&name.to_lowercase()))
            .filter(|value| !value.is_empty())
    };
    // Under a web server HTTP_PROXY is what the client says in its header "Proxy" (CVE-2016-5385).
    let http = match variable("REQUEST_METHOD") {
        Some(_) => variable("http_proxy"),
        None => either("HTTP_PROXY"),
    };
    Proxies {
        https: either("HTTPS_PROXY"),
        http,
        except: either("NO_PROXY"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(variables: &[(&str, &str)]) -> Places {
        let variable = |name: &str| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| OsString::from(value))
        };
        Places::choose(variable, || Some("/home/u".into()))
    }

    fn paths(paths: &[&str]) -> Vec<PathBuf> {
        paths.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn the_files_are_those_of_the_other_tools() {
        let usual = places(&[("XDG_RUNTIME_DIR", "/run/user/7")]);
        let expected = Places {
            credentials: paths(&[
                "/run/user/7/containers/auth.json",
                "/home/u/.config/containers/auth.json",
                "/home/u/.docker/config.json",
            ]),
            is_named: false,
            docker: Some("/home/u/.docker/config.json".into()),
            login: Some("/home/u/.config/containers/auth.json".into()),
            named_registries: None,
            registries: paths(&[
                "/home/u/.config/containers/registries.conf",
                "/etc/containers/registries.conf",
            ]),
            registries_drop_ins: paths(&[
                "/etc/containers/registries.conf.d",
                "/home/u/.config/containers/registries.conf.d",
            ]),
            certificates: paths(&[
                "/home/u/.config/containers/certs.d",
                "/etc/containers/certs.d",
                "/etc/docker/certs.d",
            ]),
        };
        assert_eq!(usual, expected);
    }

    #[test]
    fn variables_name_other_files() {
        let named = places(&[
            ("REGISTRY_AUTH_FILE", "auth"),
            ("CONTAINERS_REGISTRIES_CONF", "conf"),
            ("XDG_CONFIG_HOME", "/config"),
            ("XDG_RUNTIME_DIR", "relative"),
        ]);
        assert_eq!(named.credentials, paths(&["auth"]));
        assert_eq!(named.login, Some("auth".into()));
        assert_eq!(named.named_registries, Some("conf".into()));
        assert_eq!(
            named.certificates[0],
            Path::new("/config/containers/certs.d")
        );
        let docker = places(&[("DOCKER_CONFIG", "/d"), ("XDG_RUNTIME_DIR", "relative")]);
        assert_eq!(
            docker.credentials,
            paths(&["/home/u/.config/containers/auth.json", "/d/config.json"])
        );
        let homeless = Places::choose(|_| None, || None);
        assert_eq!((homeless.credentials, homeless.login), (Vec::new(), None));
    }

    #[test]
    fn proxies_are_read_in_capitals_or_not() {
        let read = |variables: &[(&str, &str)]| {
            proxies(|name| {
                variables
                    .iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, value)| (*value).to_owned())
            })
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(read(&[]), Proxies::default());
        assert_eq!(
            read(&[
                ("HTTPS_PROXY", "a"),
                ("https_proxy", "b"),
                ("http_proxy", "c"),
                ("no_proxy", "d"),
            ]),
            Proxies {
                https: some("a"),
                http: some("c"),
                except: some("d"),
            }
        );
        let under_a_web_server = read(&[("REQUEST_METHOD", "GET"), ("HTTP_PROXY", "evil")]);
        assert_eq!(under_a_web_server, Proxies::default());
    }

    #[test]
    fn drop_in_files_are_read_in_order() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(
            drop_ins(&directory.path().join("none")).unwrap(),
            Vec::<PathBuf>::new()
        );
        for name in ["20.conf", "10.conf", "readme"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        let found = drop_ins(directory.path()).unwrap();
        assert_eq!(
            found,
            ["10.conf", "20.conf"].map(|name| directory.path().join(name))
        );
    }
}
