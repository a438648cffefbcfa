//! `sbxrt login`: keeps a name and a password for a registry that takes them.

use std::io::{self, BufRead, Read as _, Write as _};

use nix::libc;
use sbxrt::PullOptions;
use sbxrt::image::{Credentials, Secret, registry_key, verify_login};

use crate::access::{self, Places};
use crate::args::LoginArguments;
use crate::auth_file::AuthFile;
use crate::error::{Error, Result};
use crate::printer::Printer;
use crate::signals::unless_interrupted;
use crate::terminal::{self, RawMode};

/// The longest password; tokens of some clouds have some KiB.
const PASSWORD_BYTES: u64 = 64 << 10;

/// Logs in.
pub(crate) fn run(arguments: LoginArguments, printer: Printer) -> Result<()> {
    let key = key(&arguments.registry)?;
    let (username, password) = ask(arguments.username, arguments.password_stdin, &key)?;
    let credentials = Credentials::Basic {
        username: username.clone(),
        password: Secret::new(password.clone()),
    };
    let options = access::equip(PullOptions {
        plain_http: arguments.plain_http,
        ..PullOptions::default()
    })?;
    let path = place(&key)?;
    let mut file = AuthFile::read(&path)?;

    let verifying = async { Ok(verify_login(&key, &credentials, &options).await?) };
    let was_asked = unless_interrupted(verifying, |_| ())?;
    if !was_asked {
        printer.note(&format!(
            "warning: {key} lets everybody in, so nobody knows whether the password is right"
        ));
    }
    file.set(&key, &username, &password);
    file.write()?;
    printer.note(&format!("logged in to {key}; kept in {}", path.display()));
    Ok(())
}

/// Returns what the registry is called in the file.
pub(crate) fn key(registry: &str) -> Result<String> {
    let key = registry_key(registry);
    let is_ours = |c: char| c.is_ascii_alphanumeric() || "-_.:/[]".contains(c);
    if key.is_empty() || key.starts_with(['-', '/']) || !key.chars().all(is_ours) {
        return Err(Error::NotARegistry {
            name: registry.to_owned(),
        });
    }
    Ok(key)
}

/// Chooses the file to keep a login in: the one that counts now, or the user's own.
fn place(key: &str) -> Result<std::path::PathBuf> {
    let places = Places::find();
    for path in &places.credentials {
        // Docker's own file is left to docker, which may keep its passwords elsewhere.
        if places.docker.as_ref() != Some(path) && AuthFile::read(path)?.has(key) {
            return Ok(path.clone());
        }
    }
    places.login.ok_or(Error::NoStore)
}

/// Returns name and password, from flags, a pipe or somebody at a terminal.
fn ask(username: Option<String>, is_piped: bool, registry: &str) -> Result<(String, String)> {
    if is_piped {
        let username = username.ok_or(Error::NoUsername)?;
        let mut password = String::new();
        let mut stdin = io::stdin().lock().take(PASSWORD_BYTES + 1);
        stdin
            .read_to_string(&mut password)
            .map_err(|source| Error::System {
                step: "read the password from standard input",
                source,
            })?;
        return Ok((username, checked(password)?));
    }
    if !terminal::is_input() {
        return Err(Error::NoPassword);
    }
    let username = username.map_or_else(|| typed_name(registry), Ok)?;
    talk(&format!("password for {username} at {registry}: "));
    let typed = {
        // No echo, and no signal from the keyboard that would leave the terminal without one.
        let _raw = RawMode::enter().map_err(Error::Terminal)?;
        typed(io::stdin().lock())
    };
    talk("\n");
    Ok((username, checked(typed?)?))
}

/// Asks for a user name.
fn typed_name(registry: &str) -> Result<String> {
    talk(&format!("user name for {registry}: "));
    let mut line = String::new();
    io::stdin()
        .lock()
        .take(PASSWORD_BYTES)
        .read_line(&mut line)
        .map_err(|source| Error::System {
            step: "read the user name",
            source,
        })?;
    let name = line.trim();
    if name.is_empty() {
        return Err(Error::NoUsername);
    }
    Ok(name.to_owned())
}

/// Takes the line's end away from a password and makes sure that there is something before it.
fn checked(mut password: String) -> Result<String> {
    if password.ends_with('\n') {
        password.pop();
        if password.ends_with('\r') {
            password.pop();
        }
    }
    if password.is_empty() || password.len() as u64 > PASSWORD_BYTES {
        return Err(Error::NoPassword);
    }
    Ok(password)
}

/// Reads what is typed until the line ends, as a terminal in raw mode sends it.
fn typed(input: impl BufRead) -> Result<String> {
    let interrupted = Error::Interrupted {
        signal: libc::SIGINT,
    };
    let mut line = Vec::new();
    for byte in input.take(2 * PASSWORD_BYTES).bytes() {
        match byte.map_err(Error::Terminal)? {
            // Ctrl-C, and Ctrl-D where nothing was typed.
            0x03 => return Err(interrupted),
            0x04 if line.is_empty() => return Err(interrupted),
            b'\r' | b'\n' | 0x04 => break,
            // Backspace takes a whole character.
            0x08 | 0x7f => while line.pop().is_some_and(|byte: u8| byte & 0xc0 == 0x80) {},
            // Ctrl-U.
            0x15 => line.clear(),
            byte => line.push(byte),
        }
    }
    String::from_utf8(line).map_err(|_secret| Error::NoPassword)
}

fn talk(text: &str) {
    // There is nobody left to ask that does not see it.
    drop(io::stderr().lock().write_all(text.as_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_read_until_the_line_ends() {
        let table = [
            (&b"secret\rmore"[..], Some("secret")),
            (b"secret\n", Some("secret")),
            (b"sx\x7fecret\r", Some("secret")),
            ("s\u{fc}\x7fecret\r".as_bytes(), Some("secret")),
            (b"\x7f\x7fa\r", Some("a")),
            (b"wrong\x15right\r", Some("right")),
            (b"half\x04", Some("half")),
            (b"half", Some("half")),
            (b"\r", Some("")),
            (b"\x04", None),
            (b"sec\x03ret\r", None),
            (b"\xff\r", None),
        ];
        for (input, expected) in table {
            assert_eq!(typed(input).ok().as_deref(), expected, "{input:?}");
        }
    }

    #[test]
    fn a_password_loses_the_end_of_its_line_and_nothing_else() {
        let table = [
            ("x\n", Some("x")),
            ("x\r\n", Some("x")),
            ("x\n\n", Some("x\n")),
            (" x ", Some(" x ")),
            ("\n", None),
            ("", None),
        ];
        for (password, expected) in table {
            let checked = checked(password.to_owned());
            assert_eq!(checked.ok().as_deref(), expected, "{password:?}");
        }
    }

    #[test]
    fn registries_are_called_by_host_and_port() {
        let table = [
            ("ghcr.io", Some("ghcr.io")),
            ("https://r.example:5000/v2/", Some("r.example:5000")),
            ("docker.io", Some("docker.io")),
            ("index.docker.io", Some("docker.io")),
            ("ghcr.io/team", Some("ghcr.io/team")),
            ("", None),
            ("r.example/x y", None),
            ("--all", None),
        ];
        for (registry, expected) in table {
            assert_eq!(key(registry).ok().as_deref(), expected, "{registry}");
        }
    }
}
