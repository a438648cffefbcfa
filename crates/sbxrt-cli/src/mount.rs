//! `--volume`, `--mount` and `--tmpfs`.
//!
//! What can be told from the text alone is checked while arguments are parsed; [`resolve`] then looks at the host.

use std::path::{Path, PathBuf};

use sbxrt::{Mount, MountSource};

use crate::error::{Error, Result};
use crate::limit::TMPFS_SIZE;
use crate::quantity::parse_size;

/// Reads `SOURCE:DESTINATION[:ro|rw]`.
pub(crate) fn volume(text: &str) -> Result<Mount, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, mode) = match parts[..] {
        [source, destination] => (source, destination, "rw"),
        [source, destination, mode] => (source, destination, mode),
        [_] => {
            return Err("write SOURCE:DESTINATION; for an empty directory use --tmpfs".to_owned());
        }
        _ => return Err("too many colons; a path with a colon needs --mount".to_owned()),
    };
    if source.is_empty() {
        return Err("the source is empty".to_owned());
    }
    let read_only = match mode {
        "ro" => true,
        "rw" => false,
        other => return Err(format!("unknown option {other:?}; write ro or rw")),
    };
    Ok(Mount {
        destination: absolute(destination)?,
        source: MountSource::Bind(source.into()),
        read_only,
    })
}

/// Reads `type=bind|tmpfs,source=…,subpath=…,target=…,readonly,tmpfs-size=…`.
pub(crate) fn mount(text: &str) -> Result<Mount, String> {
    let (mut kind, mut source, mut subpath, mut target, mut size, mut read_only) =
        ("bind", None, None, None, None, false);
    for field in text.split(',') {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (field, None),
        };
        match (key, value) {
            ("type", Some(value)) => kind = value,
            ("source" | "src", Some(value)) => source = Some(value),
            ("subpath", Some(value)) => subpath = Some(value),
            ("target" | "destination" | "dst", Some(value)) => target = Some(value),
            ("tmpfs-size", Some(value)) => size = Some(parse_size(value)?),
            ("readonly" | "ro", None | Some("true" | "1")) => read_only = true,
            ("readonly" | "ro", Some("false" | "0")) => read_only = false,
            (
                "type" | "source" | "src" | "subpath" | "target" | "destination" | "dst"
                | "tmpfs-size",
                None,
            ) => {
                return Err(format!("{key} needs a value"));
            }
            _ => {
                return Err(format!(
                    "unknown field {field:?}; known are type, source, subpath, target, readonly and tmpfs-size"
                ));
            }
        }
    }
    let destination = absolute(target.ok_or("the target is missing")?)?;
    let source = match (kind, source, size) {
        ("bind", Some(""), _) => return Err("the source is empty".to_owned()),
        ("bind", Some(source), None) => MountSource::Bind(source.into()),
        ("bind", None, _) => return Err("the source is missing".to_owned()),
        ("bind", Some(_), Some(_)) => return Err("tmpfs-size is for type=tmpfs".to_owned()),
        ("tmpfs", None, _) if subpath.is_some() => {
            return Err("a tmpfs has no subpath".to_owned());
        }
        ("tmpfs", None, size) => MountSource::Tmpfs(size.unwrap_or(TMPFS_SIZE)),
        ("tmpfs", Some(_), _) => return Err("a tmpfs has no source".to_owned()),
        (other, _, _) => return Err(format!("unknown type {other:?}; known are bind and tmpfs")),
    };
    let source = match (source, subpath) {
        (MountSource::Bind(directory), Some(path)) => MountSource::Beneath {
            directory,
            path: path.into(),
        },
        (source, _) => source,
    };
    Ok(Mount {
        destination,
        source,
        read_only,
    })
}

/// Reads `DESTINATION[:size=SIZE]`.
pub(crate) fn tmpfs(text: &str) -> Result<Mount, String> {
    let (destination, options) = text.split_once(':').unwrap_or((text, ""));
    let mut mount = Mount::tmpfs(absolute(destination)?, TMPFS_SIZE);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", value)) => mount.source = MountSource::Tmpfs(parse_size(value)?),
            None if option == "ro" => mount.read_only = true,
            // What Docker's users write; it is so anyway.
            None if matches!(option, "rw" | "nosuid" | "nodev") => {}
            _ => {
                return Err(format!(
                    "unknown option {option:?}; known are size, ro and rw"
                ));
            }
        }
    }
    Ok(mount)
}

fn absolute(destination: &str) -> Result<PathBuf, String> {
    let path = Path::new(destination);
    if path.is_absolute() {
        Ok(path.to_owned())
    } else {
        Err(format!(
            "the path inside must be absolute, and {destination:?} is not"
        ))
    }
}

/// Makes the sources of `mounts` absolute and sure to exist, and puts the mounts in an order in which none hides
/// another.
pub(crate) fn resolve(mounts: Vec<Mount>) -> Result<Vec<Mount>> {
    let mut resolved = mounts
        .into_iter()
        .map(|mount| {
            let (MountSource::Bind(source)
            | MountSource::Beneath {
                directory: source, ..
            }) = &mount.source
            else {
                return Ok(mount);
            };
            let failed = |error| Error::Volume {
                path: source.clone(),
                source: error,
            };
            let absolute = std::path::absolute(source).map_err(failed)?;
            // Docker makes a directory here, owned by root; a misspelt path is better an error.
            std::fs::metadata(&absolute).map_err(failed)?;
            let source = match &mount.source {
                MountSource::Beneath { path, .. } => MountSource::Beneath {
                    directory: absolute,
                    path: path.clone(),
                },
                _ => MountSource::Bind(absolute),
            };
            Ok(Mount { source, ..mount })
        })
        .collect::<Result<Vec<_>>>()?;
    // Parents first; the sort is stable, so otherwise the order is that of the command line.
    resolved.sort_by_key(|mount| mount.destination.components().count());
    for (index, mount) in resolved.iter().enumerate() {
        if resolved[..index]
            .iter()
            .any(|other| other.destination == mount.destination)
        {
            return Err(Error::MountedTwice {
                destination: mount.destination.clone(),
            });
        }
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(
        clippy::unnecessary_wraps,
        reason = "a table of what may fail reads better so"
    )]
    fn bind(source: &str, destination: &str, read_only: bool) -> Option<Mount> {
        Some(Mount {
            destination: destination.into(),
            source: MountSource::Bind(source.into()),
            read_only,
        })
    }

    #[test]
    fn volumes_are_read_as_docker_reads_them() {
        let table = [
            ("/a:/b", bind("/a", "/b", false)),
            ("./a:/b:ro", bind("./a", "/b", true)),
            ("a:/b:rw", bind("a", "/b", false)),
            ("/a", None),
            ("/a:b", None),
            (":/b", None),
            ("/a:/b:z", None),
            ("/a:/b:ro:x", None),
            ("/a:", None),
        ];
        for (text, expected) in table {
            assert_eq!(volume(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn mounts_are_read_field_by_field() {
        let tmpfs = |size| Some(Mount::tmpfs("/t", size));
        let table = [
            ("type=bind,source=/a,target=/b", bind("/a", "/b", false)),
            ("src=/a:b,dst=/b,readonly", bind("/a:b", "/b", true)),
            (
                "type=bind,source=/a,destination=/b,ro=false",
                bind("/a", "/b", false),
            ),
            ("type=tmpfs,target=/t", tmpfs(64 << 20)),
            ("type=tmpfs,target=/t,tmpfs-size=1m", tmpfs(1 << 20)),
            (
                "source=/a,subpath=b/c,target=/t",
                Some(Mount {
                    destination: "/t".into(),
                    source: MountSource::Beneath {
                        directory: "/a".into(),
                        path: "b/c".into(),
                    },
                    read_only: false,
                }),
            ),
            ("type=tmpfs,target=/t,subpath=b", None),
            ("type=tmpfs,target=/t,source=/a", None),
            ("type=bind,target=/b", None),
            ("type=bind,source=/a", None),
            ("type=bind,source=/a,target=/b,tmpfs-size=1m", None),
            ("type=volume,source=a,target=/b", None),
            ("source=/a,target=/b,bind-propagation=shared", None),
            ("source,target=/b", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(mount(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_tmpfs_has_a_size() {
        let table = [
            ("/t", Some(Mount::tmpfs("/t", 64 << 20))),
            ("/t:size=1g", Some(Mount::tmpfs("/t", 1 << 30))),
            ("/t:rw,size=65536k", Some(Mount::tmpfs("/t", 64 << 20))),
            ("/t:mode=777", None),
            ("t", None),
        ];
        for (text, expected) in table {
            assert_eq!(tmpfs(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn sources_become_absolute_and_parents_come_first() {
        let mounts = [tmpfs("/x/y/z"), volume(".:/x/y:ro"), tmpfs("/x")].map(Result::unwrap);
        let resolved = resolve(mounts.into()).unwrap();
        let here = std::path::absolute(".").unwrap();
        let expected = vec![
            Mount::tmpfs("/x", 64 << 20),
            Mount::read_only(here, "/x/y"),
            Mount::tmpfs("/x/y/z", 64 << 20),
        ];
        assert_eq!(resolved, expected);
    }

    #[test]
    fn a_missing_source_is_an_error_and_not_made() {
        let error = resolve(vec![volume("/nonexistent/source:/x").unwrap()]).unwrap_err();
        assert!(matches!(error, Error::Volume { .. }), "{error:?}");
    }

    #[test]
    fn two_mounts_on_one_place_are_an_error() {
        let error = resolve(vec![tmpfs("/x").unwrap(), volume(".:/x/").unwrap()]).unwrap_err();
        assert!(matches!(error, Error::MountedTwice { .. }), "{error:?}");
    }
}
