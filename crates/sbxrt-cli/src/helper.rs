//! Credential helpers: programs called `docker-credential-NAME` that keep passwords for others.
//!
//! The library starts no process, so this side does. The protocol is that of docker-credential-helpers: the word `get`,
//! the server on standard input, a JSON document or a message on standard output.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use sbxrt::image::{CredentialHelper, Credentials, HelperError, Secret};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

/// How long a helper may take; it may ask somebody for a passphrase.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest answer.
const ANSWER_BYTES: u64 = 64 << 10;
/// What helpers say where they have nothing.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// Starts helpers from `PATH`.
#[derive(Debug)]
pub(crate) struct Programs;

impl CredentialHelper for Programs {
    fn get(&self, name: &str, server: &str) -> Result<Option<Credentials>, HelperError> {
        let failed = |error: io::Error| HelperError::Failed(error.to_string());
        // This is called on a thread that may block, of a runtime that another thread drives.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let asked = runtime.block_on(async {
            tokio::time::timeout(PATIENCE, ask(&format!("docker-credential-{name}"), server)).await
        });
        let Ok(asked) = asked else {
            return Err(HelperError::Failed(format!(
                "no answer within {} s",
                PATIENCE.as_secs()
            )));
        };
        match asked {
            Ok((is_success, answer)) => read(is_success, &answer).map_err(HelperError::Failed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(HelperError::Missing(name.to_owned()))
            }
            Err(error) => Err(failed(error)),
        }
    }
}

/// Runs a helper to its end. Where nobody waits any more, it is killed.
async fn ask(program: &str, server: &str) -> io::Result<(bool, Vec<u8>)> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // A helper that wants something from somebody says so there.
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // It may know without reading.
        let _gone = stdin.write_all(format!("{server}\n").as_bytes()).await;
    }
    let answer = match child.stdout.take() {
        Some(stdout) => bounded(stdout).await?,
        None => Vec::new(),
    };
    Ok((child.wait().await?.success(), answer))
}

async fn bounded(stream: impl AsyncRead + Unpin) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    stream
        .take(ANSWER_BYTES + 1)
        .read_to_end(&mut answer)
        .await?;
    if answer.len() as u64 > ANSWER_BYTES {
        return Err(io::Error::other("its answer is longer than 64 KiB"));
    }
    Ok(answer)
}

/// Reads what a helper has said. Messages hold nothing of an answer that may hold a secret.
fn read(is_success: bool, answer: &[u8]) -> Result<Option<Credentials>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    if !is_success {
        let message = String::from_utf8_lossy(answer);
        let message = message.trim();
        return match message {
            NOT_FOUND => Ok(None),
            "" => Err("it says nothing".to_owned()),
            message => Err(message.chars().take(200).collect()),
        };
    }
    let answer: Answer = serde_json::from_slice(answer)
        .map_err(|_secret| "its answer is not what helpers answer".to_owned())?;
    if answer.secret.is_empty() {
        return Ok(None);
    }
    let secret = Secret::new(answer.secret);
    Ok(Some(match answer.username.as_str() {
        "<token>" => Credentials::IdentityToken(secret),
        _ => Credentials::Basic {
            username: answer.username,
            password: secret,
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Read<'a> = Result<Option<Credentials>, &'a str>;

    #[test]
    fn answers_are_read_as_helpers_write_them() {
        let basic = Credentials::Basic {
            username: "me".to_owned(),
            password: Secret::new("x"),
        };
        let table: [(bool, &str, Read<'_>); 8] = [
            (
                true,
                r#"{"ServerURL":"r.example","Username":"me","Secret":"x"}"#,
                Ok(Some(basic)),
            ),
            (
                true,
                r#"{"Username":"<token>","Secret":"t"}"#,
                Ok(Some(Credentials::IdentityToken(Secret::new("t")))),
            ),
            (true, r#"{"Username":"","Secret":""}"#, Ok(None)),
            (
                false,
                "credentials not found in native keychain\n",
                Ok(None),
            ),
            (false, "no keyring\n", Err("no keyring")),
            (false, "", Err("it says nothing")),
            (
                true,
                r#"{"Username":"me","Secret":["hunter2"]}"#,
                Err("its answer is not what helpers answer"),
            ),
            (true, "", Err("its answer is not what helpers answer")),
        ];
        for (is_success, answer, expected) in table {
            let expected = expected.map_err(str::to_owned);
            assert_eq!(read(is_success, answer.as_bytes()), expected, "{answer}");
        }
    }

    #[test]
    fn a_helper_that_is_not_there_is_told_from_one_that_fails() {
        let name = "sbxrt-test-that-does-not-exist";
        assert_eq!(
            Programs.get(name, "r.example"),
            Err(HelperError::Missing(name.to_owned()))
        );
    }

    #[tokio::test]
    async fn a_helper_that_never_stops_talking_is_not_listened_to() {
        let error = ask("/usr/bin/yes", "r.example").await.unwrap_err();
        assert!(error.to_string().contains("64 KiB"), "{error}");
    }
}
