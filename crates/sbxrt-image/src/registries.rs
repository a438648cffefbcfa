//! Where a registry really is: mirrors, other locations, and registries that are not to be spoken to.
//!
//! A subset of `containers-registries.conf(5)`, version 2. What it says that is not done here is told by name: short
//! names are always Docker Hub's, so search lists and aliases do not apply.

use std::path::{Path, PathBuf};

use oci_spec::distribution::Reference;
use toml::{Table, Value};

use crate::credentials::read_settings;
use crate::{Error, Result};

/// What a site says about its registries.
///
/// ```
/// use sbxrt_image::Registries;
///
/// let mut registries = Registries::default();
/// registries.add("registries.conf".as_ref(), r#"
///     [[registry]]
///     prefix = "docker.io"
///     location = "docker.io"
///     [[registry.mirror]]
///     location = "mirror.example.org/hub"
/// "#)?;
/// # Ok::<(), sbxrt_image::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registries {
    entries: Vec<Entry>,
}

/// A `[[registry]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    path: PathBuf,
    prefix: String,
    location: Option<String>,
    insecure: bool,
    blocked: bool,
    mirrors: Vec<Mirror>,
}

/// A `[[registry.mirror]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mirror {
    location: String,
    insecure: bool,
    references: References,
}

/// Which references are pulled from a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum References {
    All,
    Digests,
    Tags,
}

/// Where a repository can be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// The registry as credentials and certificates know it, such as `docker.io` or `127.0.0.1:5000`.
    pub(crate) host: String,
    pub(crate) repository: String,
    /// Whether it may be spoken to without TLS where it has none.
    pub(crate) insecure: bool,
    pub(crate) is_mirror: bool,
}

impl Registries {
    /// Reads a `registries.conf`; says whether there is one. An entry replaces an earlier one of the same prefix, so
    /// that drop-in files are read last.
    ///
    /// # Errors
    ///
    /// Fails where the file cannot be read or does not say what it may.
    pub fn read(&mut self, path: &Path) -> Result<bool> {
        let Some(text) = read_settings(path)? else {
            return Ok(false);
        };
        let text = String::from_utf8(text).map_err(|_invalid| Error::InvalidSettings {
            path: path.to_owned(),
            reason: "it is not UTF-8".to_owned(),
        })?;
        self.add(path, &text)?;
        Ok(true)
    }

    /// Takes the text of a `registries.conf` that was read from `path`.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn add(&mut self, path: &Path, text: &str) -> Result<()> {
        let parsed = parse(path, text)?;
        for ignored in &parsed.ignored {
            tracing::warn!("{}: {ignored} is not used", path.display());
        }
        for entry in parsed.entries {
            self.entries.retain(|old| old.prefix != entry.prefix);
            self.entries.push(entry);
        }
        Ok(())
    }

    /// Returns where to look for a reference, in order; its own location is the last one.
    pub(crate) fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>> {
        let name = format!("{}/{}", reference.registry(), reference.repository());
        let mut endpoints = Vec::new();
        let matching = self.matching(&name);
        if let Some((entry, _)) = matching
            && entry.blocked
        {
            return Err(Error::RegistryBlocked {
                image: reference.whole(),
                prefix: entry.prefix.clone(),
                path: entry.path.clone(),
            });
        }
        if let Some((entry, length)) = matching {
            let fits = |mirror: &&Mirror| match mirror.references {
                References::All => true,
                References::Digests => reference.digest().is_some(),
                References::Tags => reference.digest().is_none(),
            };
            for mirror in entry.mirrors.iter().filter(fits) {
                let name = format!("{}{}", mirror.location, &name[length..]);
                endpoints.push(Endpoint::new(&name, mirror.insecure, true));
            }
        }
        endpoints.push(self.location(&name));
        Ok(endpoints)
    }

    /// Returns where `HOST[:PORT][/REPOSITORY]` is, mirrors aside.
    pub(crate) fn location(&self, name: &str) -> Endpoint {
        match self.matching(name) {
            Some((entry, length)) => {
                let location = entry.location.as_deref().unwrap_or(&name[..length]);
                let name = format!("{location}{}", &name[length..]);
                Endpoint::new(&name, entry.insecure, false)
            }
            None => Endpoint::new(name, false, false),
        }
    }

    /// Returns the entry that says most about a name, and how much of the name its prefix is.
    fn matching(&self, name: &str) -> Option<(&Entry, usize)> {
        self.entries
            .iter()
            .filter_map(|entry| Some((entry, entry.covers(name)?)))
            .max_by_key(|(entry, _)| entry.prefix.len())
    }
}

impl Entry {
    /// Returns how much of a name the prefix is, if it is a prefix.
    fn covers(&self, name: &str) -> Option<usize> {
        if let Some(domain) = self.prefix.strip_prefix('*') {
            let host = name.split('/').next().unwrap_or_default();
            let bare = host.split(':').next().unwrap_or_default();
            return (bare.len() > domain.len() && bare.ends_with(domain)).then_some(host.len());
        }
        let rest = name.strip_prefix(&self.prefix)?;
        (rest.is_empty() || rest.starts_with('/')).then_some(self.prefix.len())
    }
}

impl Endpoint {
    fn new(name: &str, insecure: bool, is_mirror: bool) -> Self {
        let (host, repository) = name.split_once('/').unwrap_or((name, ""));
        Self {
            host: host.to_owned(),
            repository: repository.to_owned(),
            insecure,
            is_mirror,
        }
    }
}

/// What a file says, and what it says in vain.
#[derive(Debug, Default)]
struct Parsed {
    entries: Vec<Entry>,
    ignored: Vec<String>,
}

fn parse(path: &Path, text: &str) -> Result<Parsed> {
    let invalid = |reason: String| Error::InvalidSettings {
        path: path.to_owned(),
        reason,
    };
    let document = text
        .parse::<Table>()
        .map_err(|error| invalid(format!("it is no TOML: {}", error.to_string().trim_end())))?;
    let mut parsed = Parsed::default();
    for (key, value) in &document {
        match key.as_str() {
            "registry" => {
                let tables = tables(value, "registry").map_err(&invalid)?;
                for table in tables {
                    let entry = entry(path, table, &mut parsed.ignored).map_err(&invalid)?;
                    parsed.entries.push(entry);
                }
            }
            "registries" => {
                return Err(invalid(
                    "it is of version 1; write [[registry]] tables instead of [registries.…]"
                        .to_owned(),
                ));
            }
            // Distributions set these; a name without a registry is Docker Hub's here, as its users know it.
            "unqualified-search-registries" | "short-name-mode" | "aliases" => {
                tracing::debug!(
                    "{}: {key} is not used: short names are Docker Hub's",
                    path.display()
                );
            }
            other => parsed.ignored.push(other.to_owned()),
        }
    }
    Ok(parsed)
}

fn entry(path: &Path, table: &Table, ignored: &mut Vec<String>) -> Result<Entry, String> {
    let mut by_digest_only = false;
    let (mut prefix, mut location) = (None, None);
    let mut entry = Entry {
        path: path.to_owned(),
        prefix: String::new(),
        location: None,
        insecure: false,
        blocked: false,
        mirrors: Vec::new(),
    };
    for (key, value) in table {
        match key.as_str() {
            "prefix" => prefix = Some(place(value, "registry.prefix")?),
            "location" => location = Some(place(value, "registry.location")?),
            "insecure" => entry.insecure = boolean(value, "registry.insecure")?,
            "blocked" => entry.blocked = boolean(value, "registry.blocked")?,
            "mirror-by-digest-only" => {
                by_digest_only = boolean(value, "registry.mirror-by-digest-only")?;
            }
            "mirror" => {
                for table in tables(value, "registry.mirror")? {
                    entry.mirrors.push(mirror(table, ignored)?);
                }
            }
            other => ignored.push(format!("registry.{other}")),
        }
    }
    // An empty value is as good as none, the manual says.
    let location = location.filter(|location| !location.is_empty());
    let prefix = prefix.filter(|prefix| !prefix.is_empty());
    entry.prefix = prefix
        .or_else(|| location.clone())
        .ok_or("a [[registry]] has neither prefix nor location")?;
    if entry.prefix[1..].contains('*')
        || entry.prefix.starts_with('*') && !entry.prefix.starts_with("*.")
    {
        return Err(format!(
            "registry.prefix {:?}: only *.DOMAIN can stand for many hosts",
            entry.prefix
        ));
    }
    if let Some(location) = location.iter().find(|location| location.contains('*')) {
        return Err(format!("registry.location {location:?} has a star in it"));
    }
    entry.location = location;
    if by_digest_only {
        for mirror in &mut entry.mirrors {
            mirror.references = References::Digests;
        }
    }
    Ok(entry)
}

fn mirror(table: &Table, ignored: &mut Vec<String>) -> Result<Mirror, String> {
    let mut mirror = Mirror {
        location: String::new(),
        insecure: false,
        references: References::All,
    };
    for (key, value) in table {
        match key.as_str() {
            "location" => mirror.location = place(value, "registry.mirror.location")?,
            "insecure" => mirror.insecure = boolean(value, "registry.mirror.insecure")?,
            "pull-from-mirror" => {
                mirror.references = match value.as_str() {
                    Some("all") => References::All,
                    Some("digest-only") => References::Digests,
                    Some("tag-only") => References::Tags,
                    _ => {
                        return Err(
                            "registry.mirror.pull-from-mirror is none of all, digest-only and tag-only"
                                .to_owned(),
                        );
                    }
                };
            }
            other => ignored.push(format!("registry.mirror.{other}")),
        }
    }
    if mirror.location.is_empty() || mirror.location.contains('*') {
        return Err("a [[registry.mirror]] has no location".to_owned());
    }
    Ok(mirror)
}

fn tables<'a>(value: &'a Value, key: &str) -> Result<Vec<&'a Table>, String> {
    value
        .as_array()
        .and_then(|array| array.iter().map(Value::as_table).collect())
        .ok_or_else(|| format!("{key} is not written as [[{key}]]"))
}

fn boolean(value: &Value, key: &str) -> Result<bool, String> {
    value
        .as_bool()
        .ok_or_else(|| format!("{key} is neither true nor false"))
}

/// Reads `HOST[:PORT][/PATH]`.
fn place(value: &Value, key: &str) -> Result<String, String> {
    let text = value.as_str().ok_or_else(|| format!("{key} is no text"))?;
    let text = text.trim_end_matches('/');
    if text.contains("://") {
        return Err(format!(
            "{key} {text:?} has a scheme; write HOST[:PORT][/PATH]"
        ));
    }
    let is_ours = |c: char| c.is_ascii_alphanumeric() || "-_.:/[]*".contains(c);
    if !text.chars().all(is_ours) || text.starts_with('/') || text.contains("//") {
        return Err(format!("{key} {text:?} is not HOST[:PORT][/PATH]"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONF: &str = r#"
        unqualified-search-registries = ["registry.fedoraproject.org"]
        short-name-mode = "enforcing"
        [aliases]
        "alpine" = "docker.io/library/alpine"
        [[registry]]
        location = "docker.io"
        [[registry.mirror]]
        location = "mirror.example:5000/hub"
        insecure = true
        [[registry.mirror]]
        location = "second.example"
        pull-from-mirror = "digest-only"
        [[registry.mirror]]
        location = "third.example"
        pull-from-mirror = "tag-only"
        [[registry]]
        prefix = "docker.io/library/secret"
        blocked = true
        [[registry]]
        prefix = "old.example/team"
        location = "new.example:8443/group/team"
        insecure = true
        [[registry]]
        prefix = "*.cluster.local"
        insecure = true
    "#;

    fn registries(text: &str) -> Registries {
        let mut registries = Registries::default();
        registries.add("registries.conf".as_ref(), text).unwrap();
        registries
    }

    fn written(endpoints: &[Endpoint]) -> Vec<String> {
        let write = |endpoint: &Endpoint| {
            let Endpoint {
                host,
                repository,
                insecure,
                is_mirror,
            } = endpoint;
            let mirror = if *is_mirror { "mirror " } else { "" };
            let insecure = if *insecure { " insecure" } else { "" };
            format!("{mirror}{host} {repository}{insecure}")
        };
        endpoints.iter().map(write).collect()
    }

    #[test]
    fn a_reference_leads_to_mirrors_and_its_location() {
        let registries = registries(CONF);
        let digest = format!("busybox@sha256:{}", "a".repeat(64));
        let table: [(&str, &[&str]); 9] = [
            (
                "busybox",
                &[
                    "mirror mirror.example:5000 hub/library/busybox insecure",
                    "mirror third.example library/busybox",
                    "docker.io library/busybox",
                ],
            ),
            (
                &digest,
                &[
                    "mirror mirror.example:5000 hub/library/busybox insecure",
                    "mirror second.example library/busybox",
                    "docker.io library/busybox",
                ],
            ),
            (
                "old.example/team/a/b:1",
                &["new.example:8443 group/team/a/b insecure"],
            ),
            (
                "old.example/team",
                &["new.example:8443 group/team insecure"],
            ),
            ("old.example/teams/a", &["old.example teams/a"]),
            ("old.example/x", &["old.example x"]),
            ("a.cluster.local/x", &["a.cluster.local x insecure"]),
            (
                "a.cluster.local:5000/x",
                &["a.cluster.local:5000 x insecure"],
            ),
            ("cluster.local/x", &["cluster.local x"]),
        ];
        for (name, expected) in table {
            let reference = name.parse().unwrap();
            let endpoints = registries.endpoints(&reference).unwrap();
            assert_eq!(written(&endpoints), expected, "{name}");
        }
        let blocked = registries.endpoints(&"secret:1".parse().unwrap());
        assert!(
            matches!(&blocked, Err(Error::RegistryBlocked { prefix, .. }) if prefix == "docker.io/library/secret"),
            "{blocked:?}"
        );
    }

    #[test]
    fn a_later_file_counts_over_an_earlier_one() {
        let mut registries = registries(CONF);
        let drop_in = "[[registry]]\nprefix = \"docker.io\"\nlocation = \"proxy.example/hub\"";
        registries.add("10.conf".as_ref(), drop_in).unwrap();
        let endpoints = registries.endpoints(&"busybox".parse().unwrap()).unwrap();
        assert_eq!(written(&endpoints), ["proxy.example hub/library/busybox"]);
    }

    #[test]
    fn mirrors_by_digest_only_are_those_of_old() {
        let registries = registries(
            "[[registry]]\nlocation = \"r.example\"\nmirror-by-digest-only = true\n\
             [[registry.mirror]]\nlocation = \"m.example\"",
        );
        let endpoints = registries
            .endpoints(&"r.example/a".parse().unwrap())
            .unwrap();
        assert_eq!(written(&endpoints), ["r.example a"]);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let parsed = parse(
            "x".as_ref(),
            "credential-helpers = [\"x\"]\n[[registry]]\nlocation = \"a\"\nnew-key = 1\n\
             [[registry.mirror]]\nlocation = \"b\"\nspeed = 2",
        )
        .unwrap();
        assert_eq!(
            parsed.ignored,
            ["credential-helpers", "registry.speed", "registry.new-key"]
                .map(|key| key.replace("registry.speed", "registry.mirror.speed"))
        );
        let table = [
            ("[registries.search]\nregistries = []", "version 1"),
            ("[[registry]]", "neither prefix nor location"),
            ("[registry]\nlocation = \"a\"", "[[registry]]"),
            ("[[registry]]\nlocation = 1", "registry.location"),
            ("[[registry]]\nlocation = \"https://a\"", "scheme"),
            ("[[registry]]\nlocation = \"a b\"", "HOST"),
            ("[[registry]]\nlocation = \"/a\"", "HOST"),
            ("[[registry]]\nprefix = \"a.*\"", "*.DOMAIN"),
            ("[[registry]]\nprefix = \"*a\"", "*.DOMAIN"),
            ("[[registry]]\nprefix = \"a\"\nlocation = \"*.b\"", "star"),
            (
                "[[registry]]\nlocation = \"a\"\ninsecure = \"no\"",
                "insecure",
            ),
            (
                "[[registry]]\nlocation = \"a\"\n[[registry.mirror]]\ninsecure = true",
                "no location",
            ),
            (
                "[[registry]]\nlocation = \"a\"\n[[registry.mirror]]\nlocation = \"b\"\npull-from-mirror = \"x\"",
                "digest-only",
            ),
            ("[[registry]\n", "TOML"),
        ];
        for (text, expected) in table {
            let error = parse("x.conf".as_ref(), text).unwrap_err().to_string();
            assert!(
                error.starts_with("x.conf: ") && error.contains(expected),
                "{text}: {error}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn reading_any_text_does_not_panic(text in ".{0,200}") {
            let _ignored = parse("x".as_ref(), &text);
        }

        #[test]
        fn any_prefix_and_location_give_endpoints(
            prefix in "[a-z*.:/]{0,12}", location in "[a-z*.:/]{0,12}", name in "[a-z.]{1,8}(/[a-z]{1,4}){1,3}",
        ) {
            let text = format!("[[registry]]\nprefix = {prefix:?}\nlocation = {location:?}");
            let mut registries = Registries::default();
            if registries.add("x".as_ref(), &text).is_ok() && let Ok(reference) = name.parse() {
                let _ignored = registries.endpoints(&reference);
            }
        }
    }
}
