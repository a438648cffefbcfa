//! Whom we believe to be the registry that they say they are, and who we say we are.
//!
//! Certificates for one registry lie where `containers-certs.d(5)` and Docker have them: in a directory that is called
//! like the registry, with its port.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::credentials::read_settings;
use crate::{Error, Result};

/// The most files that are looked at for one registry.
const FILES: usize = 64;

/// What is known of one registry.
#[derive(Debug, Default)]
pub(crate) struct Certificates {
    authorities: Vec<CertificateDer<'static>>,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

impl Certificates {
    /// Reads what the first of the directories has for a registry that has something: `*.crt` are authorities, `*.cert`
    /// and `*.key` of one name who we are. `None` where there is no such directory.
    pub(crate) fn read(directories: &[PathBuf], host: &str) -> Result<Option<Self>> {
        if host.is_empty() || host.starts_with('.') || host.contains('/') {
            return Ok(None);
        }
        for directory in directories {
            let directory = directory.join(host);
            match fs::read_dir(&directory) {
                Ok(entries) => return Self::read_all(&directory, entries).map(Some),
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(error) => return Err(Error::io("open", &directory, error)),
            }
        }
        Ok(None)
    }

    fn read_all(directory: &Path, entries: fs::ReadDir) -> Result<Self> {
        let mut paths = Vec::new();
        for entry in entries.take(FILES) {
            paths.push(
                entry
                    .map_err(|error| Error::io("read", directory, error))?
                    .path(),
            );
        }
        paths.sort();
        let mut found = Self::default();
        for path in &paths {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => found.authorities.extend(certificates(path)?),
                Some("cert") => {
                    let key = path.with_extension("key");
                    let text = read_settings(&key)?
                        .ok_or_else(|| invalid(path, "its .key file is missing"))?;
                    let key = PrivateKeyDer::from_pem_slice(&text)
                        .map_err(|_secret| invalid(&key, "it holds no private key in PEM form"))?;
                    found.identity = Some((certificates(path)?, key));
                }
                _ => {}
            }
        }
        // What is in PEM form need not be a certificate, nor a key the one for it.
        match config(false, &found, true) {
            Ok(_) => Ok(found),
            Err(error) => Err(invalid(directory, &error.to_string())),
        }
    }

    pub(crate) fn has_identity(&self) -> bool {
        self.identity.is_some()
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = read_settings(path)?.unwrap_or_default();
    let found = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| invalid(path, &format!("it is not in PEM form: {error}")))?;
    if found.is_empty() {
        return Err(invalid(path, "it holds no certificate in PEM form"));
    }
    Ok(found)
}

fn invalid(path: &Path, reason: &str) -> Error {
    Error::InvalidSettings {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

/// Trusts the roots of this machine, and Mozilla's beside them: a minimal machine has none of its own, and a site with
/// a registry of its own has more than Mozilla's. What is known of the registry is added; who we are is said only where
/// `identify` is set.
pub(crate) fn config(
    used: bool,
    certificates: &Certificates,
    identify: bool,
) -> Result<ClientConfig, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    if used {
        roots.add_parsable_certificates(of_this_machine().iter().cloned());
    }
    for authority in &certificates.authorities {
        roots.add(authority.clone())?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    match &certificates.identity {
        Some((chain, key)) if identify => {
            builder.with_client_auth_cert(chain.clone(), key.clone_key())
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

/// The authorities that this machine trusts; read once, since they are many.
fn of_this_machine() -> &'static [CertificateDer<'static>] {
    static FOUND: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::debug!(%error, "certificates of this machine");
        }
        found.certs
    })
}

/// What TLS has against a connection, if it is TLS.
pub(crate) fn complaint(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(complaint) = error.downcast_ref() {
            return Some(complaint);
        }
        // An I/O error's `source` is that of the error within it, and would pass that one over.
        cause = match error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_the_registrys_name_is_read_and_what_is_wrong_in_it_named() {
        let temporary = tempfile::tempdir().unwrap();
        let (first, second) = (temporary.path().join("a"), temporary.path().join("b"));
        let directories = [first.clone(), second.clone()];
        let read = |host: &str| Certificates::read(&directories, host);
        assert!(read("r.example:5000").unwrap().is_none());
        let own = second.join("r.example:5000");
        fs::create_dir_all(&own).unwrap();
        assert!(read("r.example:5000").unwrap().is_some());
        assert!(read("r.example").unwrap().is_none());
        assert!(read("..").unwrap().is_none());

        let table = [
            ("ca.crt", "", "ca.crt: it holds no certificate"),
            (
                "ca.crt",
                "-----BEGIN CERTIFICATE-----\n!",
                "ca.crt: it is not in PEM form",
            ),
            (
                "ca.crt",
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                "r.example:5000: invalid peer certificate",
            ),
            ("me.cert", "", "me.cert: its .key file is missing"),
        ];
        for (name, text, expected) in table {
            fs::write(own.join(name), text).unwrap();
            let error = read("r.example:5000").unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
            fs::remove_file(own.join(name)).unwrap();
        }
        fs::write(own.join("me.cert"), "").unwrap();
        fs::write(own.join("me.key"), "hunter2").unwrap();
        let error = read("r.example:5000").unwrap_err().to_string();
        assert!(error.contains("me.key: it holds no private key"), "{error}");
        // The first directory that there is hides the others.
        fs::create_dir_all(first.join("r.example:5000")).unwrap();
        assert!(read("r.example:5000").unwrap().is_some());
    }
}
