//! Where an image comes from, in the syntax that users type.
//!
//! The transports are those of `containers-transports(5)`. A bare name is a registry reference and expands the way
//! Docker Hub's short names do, so that `python` is `docker.io/library/python:latest`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use oci_spec::distribution::Reference;

use crate::Digest;

/// Where an image comes from.
///
/// | text | meaning |
/// |---|---|
/// | `REF`, `docker://REF` | a registry; short names are Docker Hub's |
/// | `oci:DIR[:TAG]` | a directory in OCI layout |
/// | `oci-archive:FILE[:TAG]` | a tar file of an OCI layout |
/// | `docker-archive:FILE[:REF]` | what `docker save` writes |
/// | `dir:PATH` | a root filesystem on disk, used in place |
/// | `host:` | this machine's own programs |
///
/// As in skopeo, a path ends at its first colon, so a path with a colon in it cannot be written in this syntax; it can
/// be built as a value.
///
/// ```
/// use sbxrt_image::Source;
///
/// let source: Source = "python".parse()?;
/// assert_eq!(source.to_string(), "docker.io/library/python:latest");
/// # Ok::<(), sbxrt_image::InvalidSource>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// An image in a registry.
    Registry(Reference),
    /// A directory in OCI layout.
    OciLayout {
        /// The directory that holds `oci-layout`.
        path: PathBuf,
        /// The `org.opencontainers.image.ref.name` to take; may be left out where there is only one image.
        tag: Option<String>,
    },
    /// A tar file of an OCI layout.
    OciArchive {
        /// The file.
        path: PathBuf,
        /// The `org.opencontainers.image.ref.name` to take; may be left out where there is only one image.
        tag: Option<String>,
    },
    /// A tar file as `docker save` writes it.
    DockerArchive {
        /// The file.
        path: PathBuf,
        /// The `RepoTags` entry to take; may be left out where there is only one image.
        reference: Option<String>,
    },
    /// A root filesystem on disk, used in place.
    Directory(PathBuf),
    /// This machine's own programs.
    Host,
}

impl FromStr for Source {
    type Err = InvalidSource;

    fn from_str(text: &str) -> Result<Self, InvalidSource> {
        let invalid = |reason: &str| InvalidSource {
            text: text.chars().take(300).collect(),
            reason: reason.to_owned(),
        };
        if text == "host:" {
            return Ok(Self::Host);
        }
        if let Some(path) = text.strip_prefix("dir:") {
            if path.is_empty() {
                return Err(invalid("dir: needs a path"));
            }
            return Ok(Self::Directory(path.into()));
        }
        let file = |rest: &str| {
            let (path, tag) = match rest.split_once(':') {
                Some((path, tag)) => (path, Some(tag)),
                None => (rest, None),
            };
            if path.is_empty() {
                return Err(invalid("a path is missing after the colon"));
            }
            if tag == Some("") {
                return Err(invalid("the tag after the last colon is empty"));
            }
            Ok((PathBuf::from(path), tag.map(str::to_owned)))
        };
        if let Some(rest) = text.strip_prefix("oci:") {
            return file(rest).map(|(path, tag)| Self::OciLayout { path, tag });
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            return file(rest).map(|(path, tag)| Self::OciArchive { path, tag });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            return file(rest).map(|(path, reference)| Self::DockerArchive { path, reference });
        }
        if is_host_with_more(text) {
            return Err(invalid("nothing may follow host:"));
        }
        if let Some(kind) = file_kind(text) {
            return Err(invalid(&format!("that looks like a {kind} file")));
        }
        let name = text.strip_prefix("docker://").unwrap_or(text);
        let reference = name
            .parse::<Reference>()
            .map_err(|error| invalid(&error.to_string()))?;
        if reference
            .repository()
            .bytes()
            .any(|byte| byte.is_ascii_uppercase())
        {
            return Err(invalid("a repository has a name in lower case"));
        }
        if let Some(digest) = reference.digest() {
            // The reference grammar is looser than the image specification: it lets upper case through.
            digest
                .parse::<Digest>()
                .map_err(|error| invalid(&error.to_string()))?;
        }
        Ok(Self::Registry(reference))
    }
}

/// Whether somebody has written the command right behind `host:`. An image of Docker Hub that is called `host` must be
/// written with its scheme or its registry.
fn is_host_with_more(text: &str) -> bool {
    text.strip_prefix("host:")
        .is_some_and(|more| !more.is_empty() && !more.contains('/'))
}

/// What a bare name that looks like a file's would be. Asking a registry for it would end in a puzzling error.
fn file_kind(text: &str) -> Option<&'static str> {
    let extension = Path::new(text).extension()?;
    ["sif", "tar"]
        .into_iter()
        .find(|kind| extension == *kind && !text.contains("://"))
}

/// Writes the canonical form, which reads back as the same source.
impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = |formatter: &mut fmt::Formatter<'_>,
                    scheme: &str,
                    path: &Path,
                    tag: &Option<String>| {
            write!(formatter, "{scheme}:{}", path.display())?;
            match tag {
                Some(tag) => write!(formatter, ":{tag}"),
                None => Ok(()),
            }
        };
        match self {
            Self::Registry(reference) => {
                let name = reference.whole();
                // A registry may be called `oci:5000`, which bare would read as a directory, and a tag `a.tar`, which bare
                // would be taken for a file.
                let looks_like_path = ["oci:", "oci-archive:", "docker-archive:", "dir:"]
                    .iter()
                    .any(|scheme| name.starts_with(scheme));
                if looks_like_path || file_kind(&name).is_some() {
                    formatter.write_str("docker://")?;
                }
                formatter.write_str(&name)
            }
            Self::OciLayout { path, tag } => file(formatter, "oci", path, tag),
            Self::OciArchive { path, tag } => file(formatter, "oci-archive", path, tag),
            Self::DockerArchive { path, reference } => {
                file(formatter, "docker-archive", path, reference)
            }
            Self::Directory(path) => write!(formatter, "dir:{}", path.display()),
            Self::Host => formatter.write_str("host:"),
        }
    }
}

/// A text that names no image source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid image {text:?}: {reason}")]
pub struct InvalidSource {
    text: String,
    reason: String,
}

impl InvalidSource {
    /// Returns what to type instead, where the text lets one guess.
    pub fn hint(&self) -> Option<String> {
        let text = &self.text;
        if text.starts_with(['/', '.', '~']) {
            return Some(format!("for a root filesystem on disk write dir:{text}"));
        }
        if text.eq_ignore_ascii_case("host:") || is_host_with_more(text) {
            return Some(
                "this machine's own programs are `host:`, with a space and the command after it"
                    .to_owned(),
            );
        }
        match file_kind(text) {
            Some("tar") => {
                return Some(format!(
                    "write oci-archive:{text} or docker-archive:{text}; for a repository of that name docker://{text}"
                ));
            }
            Some(_) => {
                return Some(format!(
                    "SIF files cannot be run yet; for a repository of that name write docker://{text}"
                ));
            }
            None => {}
        }
        if text.contains("://") {
            return Some(
                "write docker://REGISTRY/REPOSITORY:TAG or leave the docker:// out".to_owned(),
            );
        }
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Some("repository names are lower case".to_owned());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sources_are_read_and_written_in_canonical_form() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let pinned = format!("localhost:5000/a/b@{digest}");
        let upper = format!("python@sha256:{}", "A".repeat(64));
        let table = [
            ("python", Some("docker.io/library/python:latest")),
            (
                "docker://python:3.12-slim",
                Some("docker.io/library/python:3.12-slim"),
            ),
            ("ghcr.io/a/b", Some("ghcr.io/a/b:latest")),
            ("localhost/a", Some("localhost/a:latest")),
            ("host:5000/a", Some("host:5000/a:latest")),
            ("docker://oci:5000/a", Some("docker://oci:5000/a:latest")),
            (
                "docker://a:i.tar",
                Some("docker://docker.io/library/a:i.tar"),
            ),
            (&pinned, Some(&pinned)),
            ("oci:dir/x", Some("oci:dir/x")),
            ("oci:/dir/x:latest", Some("oci:/dir/x:latest")),
            ("oci-archive:x.tar:a:b", Some("oci-archive:x.tar:a:b")),
            (
                "docker-archive:x.tar:repo:tag",
                Some("docker-archive:x.tar:repo:tag"),
            ),
            ("dir:/a b:c", Some("dir:/a b:c")),
            ("host:", Some("host:")),
            (&upper, None),
            ("dir:", None),
            ("oci:", None),
            ("oci::tag", None),
            ("oci:dir:", None),
            ("host:python3", None),
            (
                "docker://host:python3",
                Some("docker.io/library/host:python3"),
            ),
            ("image.sif", None),
            ("image.tar", None),
            (
                "docker://image.tar",
                Some("docker.io/library/image.tar:latest"),
            ),
            ("./rootfs", None),
            ("/rootfs", None),
            ("Python", None),
            ("docker://", None),
            ("http://example.org/x", None),
            ("", None),
        ];
        for (text, expected) in table {
            let source = text.parse::<Source>();
            assert_eq!(
                source.as_ref().ok().map(Source::to_string).as_deref(),
                expected,
                "{text:?}: {source:?}"
            );
        }
    }

    #[test]
    fn what_was_probably_meant_is_offered() {
        let table = [
            (
                "./rootfs",
                "for a root filesystem on disk write dir:./rootfs",
            ),
            ("host:python3", "with a space and the command after it"),
            ("Host:", "with a space and the command after it"),
            ("image.tar", "write oci-archive:image.tar"),
            ("image.sif", "SIF files cannot be run yet"),
            ("Python", "lower case"),
        ];
        for (text, expected) in table {
            let hint = text.parse::<Source>().unwrap_err().hint().unwrap();
            assert!(hint.contains(expected), "{text}: {hint}");
        }
    }

    prop_compose! {
        fn reference()(
            registry in prop_oneof![Just(String::new()), "[a-z]{1,8}\\.[a-z]{2,3}/", "(oci|dir|host|docker-archive|[a-z]{1,6}):[1-9][0-9]{0,3}/", Just("localhost/".to_owned())],
            repository in "[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,2}",
            tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,12}"),
            digest in proptest::option::of("[0-9a-f]{64}"),
        ) -> Reference {
            let tag = tag.map(|tag| format!(":{tag}")).unwrap_or_default();
            let digest = digest.map(|hex| format!("@sha256:{hex}")).unwrap_or_default();
            format!("{registry}{repository}{tag}{digest}").parse().unwrap()
        }
    }

    fn source() -> impl Strategy<Value = Source> {
        let path = || "[a-zA-Z0-9/._ -]{1,24}".prop_map(PathBuf::from);
        let tag = || proptest::option::of("[a-zA-Z0-9/._:-]{1,24}");
        prop_oneof![
            reference().prop_map(Source::Registry),
            (path(), tag()).prop_map(|(path, tag)| Source::OciLayout { path, tag }),
            (path(), tag()).prop_map(|(path, tag)| Source::OciArchive { path, tag }),
            (path(), tag()).prop_map(|(path, reference)| Source::DockerArchive { path, reference }),
            "[^\0]{1,24}".prop_map(|path| Source::Directory(path.into())),
            Just(Source::Host),
        ]
    }

    proptest! {
        #[test]
        fn reading_what_was_written_gives_the_same_source(source in source()) {
            prop_assert_eq!(source.to_string().parse::<Source>(), Ok(source));
        }

        #[test]
        fn reading_any_text_does_not_panic(text in ".{0,80}") {
            let _ignored = text.parse::<Source>();
        }
    }
}
