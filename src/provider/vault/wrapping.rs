//! A secret id that comes wrapped: it can be unwrapped once, and whoever does it twice has found a thief.
//!
//! <https://developer.hashicorp.com/vault/docs/concepts/response-wrapping>

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use vaultrs::api::sys::requests::{UnwrapRequest, WrappingLookupRequest};
use vaultrs::api::sys::responses::WrappingLookupResponse;

use super::answer::VaultFailure;
use super::client::{Scope, VaultClient};
use crate::clock::Clock;
use crate::error::{Error, ErrorCode, Result};
use crate::runtime::ProcessLocal;
use crate::secret::{SecretString, wipe};
use crate::settings::variables as var;

/// How often somebody who waits for another's unwrapping looks again.
const SLICE: Duration = Duration::from_millis(20);

/// What was unwrapped so far. It belongs to the process and not to one provider, because a changed setting makes a new
/// provider, and the wrapping token works only once. A forked child has it too.
static UNWRAPPED: LazyLock<ArcSwap<Vec<Unwrapped>>> = LazyLock::new(ArcSwap::default);
/// Held while one of several configurations unwraps.
static TURN: LazyLock<ProcessLocal<tokio::sync::Mutex<()>>> = LazyLock::new(|| ProcessLocal::new(Default::default));

#[derive(Clone)]
struct Unwrapped {
    wrapping_token: SecretString,
    secret_id: SecretString,
}

/// The secret id that `wrapping_token` gives: from memory, else unwrapped, with the wrapping token alone.
///
/// # Errors
/// [`ErrorCode::VaultAlreadyUnwrapped`]; [`ErrorCode::VaultWrappingOrigin`] where the token was made by anything but
/// asking the AppRole at `mount` for a secret id.
pub async fn secret_id(
    client: &VaultClient,
    clock: &dyn Clock,
    mount: &str,
    wrapping_token: &SecretString,
) -> Result<SecretString> {
    if let Some(known) = known(wrapping_token) {
        return Ok(known);
    }
    let turn = TURN.get();
    let _turn = loop {
        // Not `lock().await`: it would be woken by a thread that drives another runtime.
        match turn.try_lock() {
            Ok(guard) => break guard,
            Err(_) => clock.sleep(SLICE).await,
        }
    };
    if let Some(known) = known(wrapping_token) {
        return Ok(known);
    }
    look_up(client, mount, wrapping_token).await?;
    let answer = client.ask(Scope::Login, Some(wrapping_token), UnwrapRequest { token: None }).await;
    let mut answer = answer.map_err(|failure| refused(client, failure))?;
    let mut data = answer.data.take().unwrap_or(Value::Null);
    let secret_id = match data.get_mut("secret_id").map(Value::take) {
        Some(Value::String(secret_id)) => SecretString::new(secret_id),
        _ => return Err(client.unexpected("the wrapping token gave no secret id")),
    };
    wipe(data);
    let unwrapped = Unwrapped { wrapping_token: wrapping_token.clone(), secret_id: secret_id.clone() };
    UNWRAPPED.rcu(|all| Vec::clone(all).into_iter().chain([unwrapped.clone()]).collect::<Vec<_>>());
    log::info!(target: "mlflow_secrets_auth.vault", event = "unwrapped"; "unwrapped the secret id for AppRole at auth/{mount}");
    Ok(secret_id)
}

/// What the doctor may say of a wrapping token that is still good, without using it up; `None` where it was unwrapped
/// here already.
///
/// # Errors
/// As [`secret_id`].
pub async fn inspect(client: &VaultClient, mount: &str, wrapping_token: &SecretString) -> Result<Option<String>> {
    if known(wrapping_token).is_some() {
        return Ok(None);
    }
    let found = look_up(client, mount, wrapping_token).await?;
    let ends = found.creation_time.parse::<Timestamp>().ok().and_then(|start| {
        let life = SignedDuration::from_secs(i64::try_from(found.creation_ttl).ok()?);
        start.checked_add(life).ok()
    });
    let until = ends.map(|end| format!(", until {end:.0}")).unwrap_or_default();
    Ok(Some(format!(
        "the wrapping token in {} is good{until}, and was made at {}; reading the secret would use it up",
        var::MLFLOW_VAULT_WRAPPED_SECRET_ID.name,
        found.creation_path
    )))
}

fn known(wrapping_token: &SecretString) -> Option<SecretString> {
    let all: Arc<Vec<Unwrapped>> = UNWRAPPED.load_full();
    all.iter().find(|one| one.wrapping_token == *wrapping_token).map(|one| one.secret_id.clone())
}

async fn look_up(client: &VaultClient, mount: &str, wrapping_token: &SecretString) -> Result<WrappingLookupResponse> {
    let request = WrappingLookupRequest { token: wrapping_token.expose().to_owned() };
    let answer = client.ask(Scope::Login, None, request).await.map_err(|failure| refused(client, failure))?;
    let found = answer.data.ok_or_else(|| client.unexpected("it says nothing of the wrapping token"))?;
    if is_of_app_role(&found.creation_path, client, mount) {
        return Ok(found);
    }
    Err(Error::new(
        ErrorCode::VaultWrappingOrigin,
        format!(
            "the wrapping token in {} was made at {}, not by asking AppRole at auth/{mount} for a secret id",
            var::MLFLOW_VAULT_WRAPPED_SECRET_ID.name,
            found.creation_path
        ),
        "find out who put it there; a right one comes from `vault write -wrap-ttl=5m -f auth/<mount>/role/<role>/secret-id`",
    ))
}

/// Whether `path` is `auth/<mount>/role/<role>/secret-id`, alone or behind the login's namespace. Nothing else may come
/// before it: a stored secret can have a path that ends like this.
fn is_of_app_role(path: &str, client: &VaultClient, mount: &str) -> bool {
    let path = path.trim_start_matches('/');
    let inside = client.login_namespace().and_then(|name| path.strip_prefix(name)?.strip_prefix('/')).unwrap_or(path);
    let rest = inside.strip_prefix("auth/").and_then(|rest| rest.strip_prefix(mount)?.strip_prefix("/role/"));
    let parts = rest.and_then(|rest| rest.split_once('/'));
    matches!(parts, Some((role, "secret-id" | "custom-secret-id")) if !role.is_empty())
}

fn refused(client: &VaultClient, failure: VaultFailure) -> Error {
    if !matches!(failure.status, Some(400 | 403 | 404))
        || failure.says("readonly storage")
        || failure.says("namespace not found")
    {
        return client.failed("unwrapping the secret id", failure);
    }
    Error::new(
        ErrorCode::VaultAlreadyUnwrapped,
        format!(
            "the wrapping token in {} was already unwrapped, or has expired: possible interception",
            var::MLFLOW_VAULT_WRAPPED_SECRET_ID.name
        ),
        "unless a process of yours unwrapped it (a copy or a later run can't use it again), revoke the secret id; then issue a new wrapping token for this process",
    )
}
