//! Whom a registry is told is asking: what `docker login`, `podman login` and `sbxrt login` have kept.
//!
//! Docker's `config.json` and the `auth.json` of the containers tools (`containers-auth.json(5)`) have one format. Where
//! these files lie is the caller's business, and so is starting a credential helper: this crate starts no process.

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::{Credentials, Error, Result, Secret, read_named_file};

/// The longest file with credentials or settings that is read.
const FILE_BYTES: u64 = 1 << 20;

/// What Docker calls its own registry in its files.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Knows, for each registry, who to say is asking.
///
/// Credentials are looked for only when a registry asks for them, and are sent to that registry and the token service
/// that it names. The files are asked in the order in which they were read.
///
/// ```
/// use sbxrt_image::{Credentials, Keychain, PullOptions, Secret};
///
/// let options = PullOptions {
///     keychain: Keychain::new().with(
///         "registry.example.org",
///         Credentials::Basic { username: "me".to_owned(), password: Secret::new("…") },
///     ),
///     ..PullOptions::default()
/// };
/// ```
#[derive(Clone, Debug, Default)]
pub struct Keychain {
    files: Vec<Arc<AuthFile>>,
    helper: Option<Arc<dyn CredentialHelper>>,
}

/// Starts the credential helpers that files of a [`Keychain`] name: programs called `docker-credential-NAME`.
pub trait CredentialHelper: fmt::Debug + Send + Sync {
    /// Asks the helper `name` what it has for `server`; `None` where it has nothing. This may block, and must end.
    ///
    /// # Errors
    ///
    /// Says why the helper gave no answer.
    fn get(&self, name: &str, server: &str) -> Result<Option<Credentials>, HelperError>;
}

/// Why a credential helper gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelperError {
    /// There is no such program.
    #[error("there is no program docker-credential-{0}")]
    Missing(String),
    /// It failed, in its own words or in ours.
    #[error("{0}")]
    Failed(String),
}

impl Keychain {
    /// A keychain that knows nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// Knows credentials for a registry, or for a part of it such as `ghcr.io/team`, before any that it knows
    /// already.
    #[must_use]
    pub fn with(mut self, registry: &str, credentials: Credentials) -> Self {
        let file = AuthFile {
            auths: BTreeMap::from([(normalize(registry), credentials)]),
            ..AuthFile::default()
        };
        self.files.insert(0, Arc::new(file));
        self
    }

    /// Has helpers started this way. Without one, a file that needs a helper is an error when the helper is needed.
    #[must_use]
    pub fn with_helper(mut self, helper: Arc<dyn CredentialHelper>) -> Self {
        self.helper = Some(helper);
        self
    }

    /// Reads a `config.json` of Docker or an `auth.json` of the containers tools; says whether there is one.
    ///
    /// # Errors
    ///
    /// Fails where the file cannot be read or is not what it should be: whoever has credentials shall not turn into
    /// nobody because of a comma.
    pub fn read(&mut self, path: &Path) -> Result<bool> {
        let Some(text) = read_settings(path)? else {
            return Ok(false);
        };
        self.files.push(Arc::new(AuthFile::parse(path, &text)?));
        Ok(true)
    }

    /// Returns the credentials for a repository. A helper may be asked, so this may block.
    pub(crate) fn find(&self, registry: &str, repository: &str) -> Result<Credentials> {
        for file in &self.files {
            let found = match file.helper_for(registry) {
                Some((name, is_default)) => self.ask(file, name, registry, is_default)?,
                None => None,
            };
            if let Some(credentials) = found.or_else(|| file.find(registry, repository)) {
                return Ok(credentials);
            }
        }
        Ok(Credentials::Anonymous)
    }

    fn ask(
        &self,
        file: &AuthFile,
        name: &str,
        registry: &str,
        is_default: bool,
    ) -> Result<Option<Credentials>> {
        let failed = |reason: String| Error::CredentialHelper {
            helper: name.to_owned(),
            registry: registry.to_owned(),
            path: file.path.clone(),
            reason,
        };
        // It becomes a part of the name of a program, which must not lead elsewhere.
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_name) {
            return Err(failed("it is not the name of a helper".to_owned()));
        }
        let helper = self
            .helper
            .as_ref()
            .ok_or_else(|| failed("helpers are not started here".to_owned()))?;
        let server = match registry {
            "docker.io" => DOCKER_HUB,
            other => other,
        };
        match helper.get(name, server) {
            Ok(found) => Ok(found),
            // A home directory is often taken to machines that lack the desktop's helper, and most images are public.
            Err(error @ HelperError::Missing(_)) if is_default => {
                tracing::warn!(
                    "{}: {error}; going on without credentials for {registry}",
                    file.path.display()
                );
                Ok(None)
            }
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

/// A file with credentials.
#[derive(Debug, Default)]
struct AuthFile {
    path: PathBuf,
    auths: BTreeMap<String, Credentials>,
    helpers: BTreeMap<String, String>,
    store: Option<String>,
}

impl AuthFile {
    /// Reads the file's text. Messages name keys and never values, which may be secret.
    fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        let invalid = |reason: String| Error::InvalidSettings {
            path: path.to_owned(),
            reason,
        };
        let mut file = Self {
            path: path.to_owned(),
            ..Self::default()
        };
        if text.trim_ascii().is_empty() {
            return Ok(file);
        }
        let value: Value = serde_json::from_slice(text)
            .map_err(|error| invalid(format!("it is no JSON: {error}")))?;
        let object = value
            .as_object()
            .ok_or_else(|| invalid("it is no JSON object".to_owned()))?;
        for (server, entry) in table(object, "auths").map_err(&invalid)? {
            let wrong = |reason: &str| invalid(format!("auths, {server:?}: {reason}"));
            let entry = entry
                .as_object()
                .ok_or_else(|| wrong("it is no JSON object"))?;
            if let Some(credentials) = credentials(entry).map_err(wrong)? {
                file.auths.insert(normalize(server), credentials);
            }
        }
        for (server, name) in table(object, "credHelpers").map_err(&invalid)? {
            let name = name
                .as_str()
                .ok_or_else(|| invalid(format!("credHelpers, {server:?}: it is no text")))?;
            file.helpers.insert(normalize(server), name.to_owned());
        }
        file.store = match object.get("credsStore") {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => Some(name.clone()).filter(|name| !name.is_empty()),
            Some(_) => return Err(invalid("credsStore is no text".to_owned())),
        };
        Ok(file)
    }

    /// Returns the helper that knows of a registry, and whether it is the one for all of them.
    fn helper_for(&self, registry: &str) -> Option<(&str, bool)> {
        let own = self.helpers.get(registry).filter(|name| !name.is_empty());
        own.map(|name| (name.as_str(), false))
            .or_else(|| Some((self.store.as_deref()?, true)))
    }

    /// Finds the credentials whose key says most about a repository.
    fn find(&self, registry: &str, repository: &str) -> Option<Credentials> {
        let whole = format!("{registry}/{repository}");
        let mut key = whole.trim_end_matches('/');
        loop {
            if let Some(credentials) = self.auths.get(key) {
                return Some(credentials.clone());
            }
            key = key.rsplit_once('/')?.0;
        }
    }
}

/// Reads the credentials of one entry; `None` where it has none, as where a helper keeps them.
fn credentials(entry: &Map<String, Value>) -> Result<Option<Credentials>, &'static str> {
    let text = |key: &str| match entry.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(_) => Err("a value is no text"),
    };
    if let Some(token) = text("identitytoken")? {
        return Ok(Some(Credentials::IdentityToken(Secret::new(token))));
    }
    if let Some(token) = text("registrytoken")? {
        return Ok(Some(Credentials::RegistryToken(Secret::new(token))));
    }
    if let Some(auth) = text("auth")? {
        let decoded = STANDARD
            .decode(auth)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or("auth is not text in Base64")?;
        let (username, password) = decoded.split_once(':').ok_or("auth has no colon in it")?;
        return Ok(Some(Credentials::Basic {
            username: username.to_owned(),
            // Docker pads what it writes.
            password: Secret::new(password.trim_end_matches('\0')),
        }));
    }
    match (text("username")?, text("password")?) {
        (Some(username), Some(password)) => Ok(Some(Credentials::Basic {
            username: username.to_owned(),
            password: Secret::new(password),
        })),
        _ => Ok(None),
    }
}

fn table<'a>(
    object: &'a Map<String, Value>,
    key: &str,
) -> Result<impl Iterator<Item = (&'a String, &'a Value)>, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(table)) => Ok(Some(table)),
        Some(_) => Err(format!("{key} is no JSON object")),
    }
    .map(|table| table.into_iter().flatten())
}

/// Returns a key as it is compared: `HOST[:PORT][/PATH]`. Docker writes URLs for registries of old, and several names for
/// its own.
pub fn normalize(server: &str) -> String {
    let bare = ["https://", "http://"]
        .iter()
        .find_map(|scheme| server.strip_prefix(scheme));
    // Behind a scheme a path says which protocol is spoken, and no repository.
    let key = match bare {
        Some(rest) => rest.split('/').next().unwrap_or_default(),
        None => server.trim_end_matches('/'),
    };
    let (host, path) = match key.split_once('/') {
        // Tools of old wrote it without the scheme as well.
        Some((host, "v1" | "v2")) => (host, None),
        Some((host, path)) => (host, Some(path)),
        None => (key, None),
    };
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "docker.io",
        other => other,
    };
    match path {
        Some(path) => format!("{host}/{path}"),
        None => host.to_owned(),
    }
}

/// Reads a file of settings; `None` where there is none.
pub(crate) fn read_settings(path: &Path) -> Result<Option<Vec<u8>>> {
    match read_named_file(path, FILE_BYTES) {
        Ok(text) => Ok(Some(text)),
        Err(error) => match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => Ok(None),
            ErrorKind::FileTooLarge => Err(Error::InvalidSettings {
                path: path.to_owned(),
                reason: error.to_string(),
            }),
            _ => Err(Error::io("read", path, error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: &Value) -> Result<AuthFile> {
        AuthFile::parse("auth.json".as_ref(), value.to_string().as_bytes())
    }

    fn basic(username: &str, password: &str) -> Credentials {
        Credentials::Basic {
            username: username.to_owned(),
            password: Secret::new(password),
        }
    }

    fn auth(username: &str) -> Value {
        json!({"auth": STANDARD.encode(format!("{username}:secret"))})
    }

    #[test]
    fn servers_have_one_name() {
        let table = [
            ("https://index.docker.io/v1/", "docker.io"),
            ("index.docker.io", "docker.io"),
            ("index.docker.io/v1/", "docker.io"),
            ("registry-1.docker.io", "docker.io"),
            ("docker.io/library", "docker.io/library"),
            ("https://registry.example/v2/", "registry.example"),
            ("http://127.0.0.1:5000", "127.0.0.1:5000"),
            ("registry.example:5000/team/", "registry.example:5000/team"),
            ("", ""),
        ];
        for (server, expected) in table {
            assert_eq!(normalize(server), expected, "{server}");
        }
    }

    #[test]
    fn the_longest_key_that_fits_counts() {
        let file = parse(&json!({"auths": {
            "registry.example": auth("all"),
            "registry.example/team": auth("team"),
            "registry.example/team/image": auth("image"),
            "https://index.docker.io/v1/": auth("hub"),
            "empty.example": {},
        }}))
        .unwrap();
        let table = [
            ("registry.example", "team/image", Some("image")),
            ("registry.example", "team/image/deep", Some("image")),
            ("registry.example", "team/images", Some("team")),
            ("registry.example", "teams/image", Some("all")),
            ("registry.example", "", Some("all")),
            ("docker.io", "library/busybox", Some("hub")),
            ("empty.example", "a", None),
            ("registry.example:5000", "team/image", None),
            ("xregistry.example", "team", None),
        ];
        for (registry, repository, expected) in table {
            assert_eq!(
                file.find(registry, repository),
                expected.map(|username| basic(username, "secret")),
                "{registry}/{repository}"
            );
        }
    }

    #[test]
    fn every_form_of_an_entry_is_read() {
        let table = [
            (
                json!({"auth": "bWU6YTpi", "email": "x"}),
                Some(basic("me", "a:b")),
            ),
            (
                json!({"auth": STANDARD.encode("me:x\0\0")}),
                Some(basic("me", "x")),
            ),
            (
                json!({"username": "me", "password": "x"}),
                Some(basic("me", "x")),
            ),
            (
                json!({"auth": STANDARD.encode("00000000-0000-0000-0000-000000000000:"), "identitytoken": "t"}),
                Some(Credentials::IdentityToken(Secret::new("t"))),
            ),
            (
                json!({"registrytoken": "t"}),
                Some(Credentials::RegistryToken(Secret::new("t"))),
            ),
            (json!({}), None),
            (json!({"auth": ""}), None),
        ];
        for (entry, expected) in table {
            let file = parse(&json!({"auths": {"r.example": entry}})).unwrap();
            assert_eq!(file.find("r.example", "a"), expected, "{entry}");
        }
    }

    #[test]
    fn a_broken_file_is_named_and_its_secrets_are_not() {
        let table = [
            (json!([]), "no JSON object"),
            (json!({"auths": []}), "auths is no JSON object"),
            (json!({"auths": {"r.example": "hunter2"}}), "r.example"),
            (
                json!({"auths": {"r.example": {"auth": "hunter2!"}}}),
                "Base64",
            ),
            (
                json!({"auths": {"r.example": {"auth": STANDARD.encode("hunter2")}}}),
                "colon",
            ),
            (
                json!({"auths": {"r.example": {"identitytoken": ["hunter2"]}}}),
                "text",
            ),
            (json!({"credHelpers": {"r.example": 1}}), "credHelpers"),
            (json!({"credsStore": 1}), "credsStore"),
        ];
        for (value, expected) in table {
            let error = parse(&value).unwrap_err().to_string();
            assert!(
                error.starts_with("auth.json: ") && error.contains(expected),
                "{value}: {error}"
            );
            assert!(!error.contains("hunter2"), "{error}");
        }
        let broken = AuthFile::parse("auth.json".as_ref(), br#"{"auths": {"hunter2"}"#);
        assert!(!broken.unwrap_err().to_string().contains("hunter2"));
        assert!(AuthFile::parse("auth.json".as_ref(), b"\n").is_ok());
    }

    #[derive(Debug)]
    struct Helper;

    impl CredentialHelper for Helper {
        fn get(&self, name: &str, server: &str) -> Result<Option<Credentials>, HelperError> {
            match name {
                "missing" => Err(HelperError::Missing(name.to_owned())),
                "broken" => Err(HelperError::Failed("no keyring".to_owned())),
                "empty" => Ok(None),
                _ => Ok(Some(basic(name, server))),
            }
        }
    }

    #[test]
    fn helpers_are_asked_for_their_registries() {
        let keychain = |value: Value| Keychain {
            files: vec![Arc::new(parse(&value).unwrap())],
            helper: Some(Arc::new(Helper)),
        };
        let auths = json!({"r.example": auth("file")});
        let table = [
            (
                json!({"credHelpers": {"r.example": "own"}, "credsStore": "all"}),
                Some(basic("own", "r.example")),
            ),
            (
                json!({"credHelpers": {"s.example": "own"}, "credsStore": "all"}),
                Some(basic("all", "r.example")),
            ),
            (
                json!({"credsStore": "empty", "auths": auths}),
                Some(basic("file", "secret")),
            ),
            // The desktop's helper, on a machine that is no desktop.
            (
                json!({"credsStore": "missing"}),
                Some(Credentials::Anonymous),
            ),
            (json!({"credHelpers": {"r.example": "missing"}}), None),
            (json!({"credsStore": "broken", "auths": auths}), None),
            (json!({"credsStore": "../../bin/sh"}), None),
            (json!({"credsStore": "a b"}), None),
        ];
        for (value, expected) in table {
            let found = keychain(value.clone()).find("r.example", "a");
            match expected {
                Some(expected) => assert_eq!(found.unwrap(), expected, "{value}"),
                None => assert!(
                    matches!(&found, Err(Error::CredentialHelper { .. })),
                    "{value}: {found:?}"
                ),
            }
        }
        let hub = keychain(json!({"credsStore": "all"})).find("docker.io", "library/x");
        assert_eq!(hub.unwrap(), basic("all", DOCKER_HUB));
        let nobody_starts_it = Keychain {
            helper: None,
            ..keychain(json!({"credsStore": "all"}))
        };
        assert!(nobody_starts_it.find("r.example", "a").is_err());
    }

    #[test]
    fn what_was_given_counts_over_what_was_read() {
        let mut keychain = Keychain::new();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("auth.json");
        assert!(!keychain.read(&path).unwrap());
        std::fs::write(
            &path,
            json!({"auths": {"r.example": auth("file")}}).to_string(),
        )
        .unwrap();
        assert!(keychain.read(&path).unwrap());
        assert_eq!(
            keychain.find("r.example", "a").unwrap(),
            basic("file", "secret")
        );
        let keychain = keychain.with("https://r.example/v2/", basic("given", "x"));
        assert_eq!(
            keychain.find("r.example", "a").unwrap(),
            basic("given", "x")
        );
        std::fs::write(&path, vec![b' '; (1 << 20) + 1]).unwrap();
        assert!(Keychain::new().read(&path).is_err());
    }

    proptest::proptest! {
        #[test]
        fn reading_any_bytes_does_not_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ignored = AuthFile::parse("auth.json".as_ref(), &bytes);
        }

        #[test]
        fn a_name_once_normal_stays(server in "(https?://)?[a-z.:0-9]{0,20}(/[a-z0-9/]{0,10})?") {
            let once = normalize(&server);
            proptest::prop_assert_eq!(normalize(&once), once);
        }
    }
}
