//! The variables of the Vault provider.

use std::time::Duration;

use url::Url;

use crate::credential::AuthMode;
use crate::error::{ErrorCode, Result};
use crate::http::TrustRoots;
use crate::origin::{Origin, redacted};
use crate::provider::ProviderKind;
use crate::secret::SecretString;
use crate::settings::{Reader, missing, variables as var};

/// What the Vault provider needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct VaultSettings {
    /// `VAULT_ADDR`, without a trailing slash; it may have a path prefix.
    pub address: String,
    /// `MLFLOW_VAULT_SECRET_PATH`, without slashes at its ends.
    pub path: String,
    /// `MLFLOW_VAULT_AUTH_MODE`.
    pub auth_mode: AuthMode,
    /// `MLFLOW_VAULT_TTL_SEC`.
    pub ttl: Duration,
    /// How to log in.
    pub login: Login,
    /// `VAULT_NAMESPACE`.
    pub namespace: Option<String>,
    /// `MLFLOW_VAULT_KV_MOUNT`, without slashes at its ends.
    pub kv_mount: Option<String>,
    /// `MLFLOW_VAULT_KV_VERSION`; `None` asks the server.
    pub kv_version: Option<KvVersion>,
    /// `VAULT_SKIP_VERIFY`.
    pub skip_verify: bool,
    /// `VAULT_CACERT`, where it takes the place of the roots for every backend.
    pub roots: Option<TrustRoots>,
    /// `VAULT_CLIENT_TIMEOUT`.
    pub request_timeout: Option<Duration>,
}

/// Who we are to Vault.
#[derive(Clone, Debug, PartialEq)]
pub enum Login {
    /// `VAULT_TOKEN`.
    Token(SecretString),
    /// `VAULT_ROLE_ID` and `VAULT_SECRET_ID`, at `mount`.
    AppRole {
        /// The mount of the method, `approle` by default.
        mount: String,
        /// The role id.
        role_id: String,
        /// The secret id; empty where the role binds none.
        secret_id: Option<SecretString>,
    },
}

/// The version of a KV engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvVersion {
    /// One value per path.
    V1,
    /// Versions of a value per path, read below `data/`.
    V2,
}

#[derive(Clone, Copy, PartialEq)]
enum Method {
    Auto,
    Token,
    AppRole,
}

impl VaultSettings {
    /// Reads the variables. `Ok(None)` where a value is malformed, which `reader` has recorded.
    ///
    /// # Errors
    /// [`ErrorCode::ConfigMissing`] where the address, the path or the identity is not set.
    pub fn read(reader: &mut Reader<'_>) -> Result<Option<Self>> {
        let had_errors = reader.errors().len();
        let address = reader.text(&var::VAULT_ADDR);
        let path = reader.text(&var::MLFLOW_VAULT_SECRET_PATH);
        let login = login(reader);
        let auth_mode = reader.choice(&var::MLFLOW_VAULT_AUTH_MODE, AuthMode::NAMES, AuthMode::Bearer);
        let ttl = reader.seconds(&var::MLFLOW_VAULT_TTL_SEC, 300, 0..=86_400);
        let namespace = header_text(reader, &var::VAULT_NAMESPACE);
        let kv_mount = reader.text(&var::MLFLOW_VAULT_KV_MOUNT).map(|mount| mount.trim_matches('/').to_owned());
        let versions = [("auto", None), ("1", Some(KvVersion::V1)), ("2", Some(KvVersion::V2))];
        let kv_version = reader.choice(&var::MLFLOW_VAULT_KV_VERSION, &versions, None);
        let skip_verify = reader.boolean(&var::VAULT_SKIP_VERIFY, false);
        let cacert = reader.text(&var::VAULT_CACERT);
        let roots = cacert.map(|path| TrustRoots::Only { variable: var::VAULT_CACERT.name, path: path.into() });
        let request_timeout = client_timeout(reader);
        let address = address.and_then(|address| checked_address(reader, &address));
        let path = path.and_then(|path| checked_path(reader, &path));
        if reader.errors().len() > had_errors {
            return Ok(None);
        }
        let (Some(address), Some(path), Some(login)) = (address.clone(), path.clone(), login.clone()) else {
            let mut lacking = Vec::new();
            lacking.extend(address.is_none().then_some(&var::VAULT_ADDR));
            lacking.extend(path.is_none().then_some(&var::MLFLOW_VAULT_SECRET_PATH));
            lacking.extend(login.is_none().then_some(&var::VAULT_TOKEN));
            return Err(missing(ProviderKind::Vault, &lacking, reader));
        };
        Ok(Some(Self {
            address,
            path,
            auth_mode,
            ttl,
            login,
            namespace,
            kv_mount,
            kv_version,
            skip_verify,
            roots,
            request_timeout,
        }))
    }
}

/// The login that is configured, in the order token, AppRole; `None` where none is.
fn login(reader: &mut Reader<'_>) -> Option<Login> {
    let methods = [("auto", Method::Auto), ("token", Method::Token), ("approle", Method::AppRole)];
    let method = reader.choice(&var::MLFLOW_VAULT_AUTH_METHOD, &methods, Method::Auto);
    let mount = reader.text(&var::MLFLOW_VAULT_AUTH_MOUNT).map(|mount| mount.trim_matches('/').to_owned());
    let token = secret_for_header(reader, &var::VAULT_TOKEN);
    let role_id = reader.text(&var::VAULT_ROLE_ID);
    let secret_id = reader.secret(&var::VAULT_SECRET_ID);
    let app_role = role_id.map(|role_id| Login::AppRole {
        mount: mount.unwrap_or_else(|| "approle".to_owned()),
        role_id,
        secret_id,
    });
    let login = match method {
        Method::Auto => token.map(Login::Token).or(app_role),
        Method::Token => token.map(Login::Token),
        Method::AppRole => app_role,
    };
    if login.is_none() && method == Method::AppRole {
        reader.error(
            ErrorCode::ConfigMissing,
            format!("{} is approle, and {} is not set", var::MLFLOW_VAULT_AUTH_METHOD.name, var::VAULT_ROLE_ID.name),
            "set VAULT_ROLE_ID and VAULT_SECRET_ID",
        );
    }
    login
}

/// A token that can be a header's value: the SDK panics on others.
fn secret_for_header(reader: &mut Reader<'_>, variable: &'static var::Variable) -> Option<SecretString> {
    let secret = reader.secret(variable)?;
    if secret.expose().bytes().all(|b| b.is_ascii_graphic()) {
        return Some(secret);
    }
    reader.error(
        ErrorCode::ConfigInvalidValue,
        format!("{} holds a space, a line break or another character that no token has", variable.name),
        "copy the token again; a file's trailing line break is a common cause",
    );
    None
}

fn header_text(reader: &mut Reader<'_>, variable: &'static var::Variable) -> Option<String> {
    let text = reader.text(variable)?;
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        reader.invalid(variable, &text, None);
    }
    Some(text)
}

fn client_timeout(reader: &mut Reader<'_>) -> Option<Duration> {
    let variable = &var::VAULT_CLIENT_TIMEOUT;
    let text = reader.text(variable)?;
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 0.001),
        None => match text.strip_suffix('m') {
            Some(number) => (number, 60.0),
            None => (text.strip_suffix('s').unwrap_or(&text), 1.0),
        },
    };
    let seconds = number.parse::<f64>().map(|number| number * unit);
    match seconds.map(Duration::try_from_secs_f64) {
        Ok(Ok(timeout)) if !timeout.is_zero() => Some(timeout),
        _ => {
            reader.invalid(variable, &text, None);
            None
        }
    }
}

fn checked_address(reader: &mut Reader<'_>, address: &str) -> Option<String> {
    let address = address.trim_end_matches('/');
    let plain = Url::parse(address).is_ok_and(|url| url.query().is_none() && url.fragment().is_none());
    if plain && Origin::of(address).is_ok() {
        return Some(address.to_owned());
    }
    reader.invalid(&var::VAULT_ADDR, &redacted(address), None);
    None
}

/// A path without empty, `.` and `..` segments, which the URL library would silently drop.
fn checked_path(reader: &mut Reader<'_>, path: &str) -> Option<String> {
    let trimmed = path.trim_matches('/');
    let trimmed = trimmed.strip_prefix("v1/").unwrap_or(trimmed);
    let odd = |segment: &str| {
        matches!(segment, "" | "." | "..")
            || segment.contains(['?', '#', '\\'])
            || segment.chars().any(char::is_control)
    };
    if trimmed.contains('/') && !trimmed.split('/').any(odd) {
        return Some(trimmed.to_owned());
    }
    reader.invalid(&var::MLFLOW_VAULT_SECRET_PATH, path, None);
    None
}
