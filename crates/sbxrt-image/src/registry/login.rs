//! Whether a registry takes somebody's credentials.

use reqwest::StatusCode;

use super::client::{Client, Request, Scope};
use super::{Failure, Tries};
use crate::{Credentials, Error, Keychain, PullOptions, Result};

/// Asks a registry whether it accepts credentials, so that none are kept that it does not.
///
/// `registry` is `HOST[:PORT]`, or a part of a registry such as `ghcr.io/team`. Returns whether the registry asked who
/// is there at all; one that lets everybody in cannot say whether a password is right.
///
/// # Errors
///
/// Fails where the registry cannot be reached or does not take the credentials.
pub async fn verify_login(
    registry: &str,
    credentials: &Credentials,
    options: &PullOptions,
) -> Result<bool> {
    let options = PullOptions {
        keychain: Keychain::new().with(registry, credentials.clone()),
        ..options.clone()
    };
    let endpoint = options.registries.location(registry);
    let client = Client::connect(&endpoint, registry, &options).await?;
    let mut request = Request::get(client.base().clone());
    request.scope = Scope::LOGIN;
    let mut tries = Tries::new(&options);
    loop {
        match client.request(&request).await {
            Ok(_) => return Ok(client.was_asked(&request.scope)),
            // It knows who is there, and has nothing to show.
            Err(Failure::Final(Error::RegistryFailed { status, .. }))
                if status == StatusCode::NOT_FOUND.as_u16() && client.was_asked(&request.scope) =>
            {
                return Ok(true);
            }
            Err(failure) => tries.after(failure).await?,
        }
    }
}
