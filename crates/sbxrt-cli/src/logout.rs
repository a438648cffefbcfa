//! `sbxrt logout`: forgets what was kept for a registry.

use crate::access::Places;
use crate::args::LogoutArguments;
use crate::auth_file::AuthFile;
use crate::error::{Error, Result};
use crate::login;
use crate::printer::Printer;

/// Logs out.
pub(crate) fn run(arguments: &LogoutArguments, printer: Printer) -> Result<()> {
    let only = match &arguments.registry {
        Some(registry) => Some(login::key(registry)?),
        None => None,
    };
    let mut forgotten = 0;
    let mut elsewhere = None;
    let places = Places::find();
    for path in places.credentials {
        let mut file = AuthFile::read(&path)?;
        let keys: Vec<String> = match &only {
            Some(key) => vec![key.clone()],
            None => file
                .keys()
                .iter()
                .map(|key| sbxrt::image::registry_key(key))
                .collect(),
        };
        if places.docker.as_ref() == Some(&path) {
            if keys.iter().any(|key| file.has(key)) {
                elsewhere = Some(path);
            }
            continue;
        }
        let before = forgotten;
        for key in keys {
            if file.forget(&key) {
                printer.note(&format!("logged out of {key}: {}", path.display()));
                forgotten += 1;
            }
        }
        if forgotten > before {
            file.write()?;
        }
    }
    match (only, elsewhere) {
        (Some(registry), elsewhere) if forgotten == 0 => Err(Error::NotLoggedIn {
            registry,
            elsewhere,
        }),
        (_, Some(path)) => {
            printer.note(&format!(
                "{} still has credentials; `docker logout` takes them out",
                path.display()
            ));
            Ok(())
        }
        (_, None) => Ok(()),
    }
}
