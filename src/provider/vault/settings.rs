//! The variables of the Vault provider.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

pub use super::login_settings::{Login, SecretId};
use super::login_settings::{LoginChoice, Logins, PassedBy};
use crate::credential::AuthMode;
use crate::error::{ErrorCode, Result};
use crate::network::TrustRoots;
use crate::origin::{Origin, redacted};
use crate::provider::ProviderKind;
use crate::secret::SecretString;
use crate::settings::variables::{self as var, Variable};
use crate::settings::{Reader, malformed, missing};

/// What the Vault provider needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct VaultSettings {
    /// `VAULT_ADDR`, or `VAULT_AGENT_ADDR` in agent mode and where it is the only one.
    pub server: Server,
    /// `MLFLOW_VAULT_SECRET_PATH`, without slashes at its ends.
    pub path: String,
    /// `MLFLOW_VAULT_AUTH_MODE`.
    pub auth_mode: AuthMode,
    /// `MLFLOW_VAULT_TTL_SEC`.
    pub ttl: Duration,
    /// How to log in.
    pub login: Login,
    /// Why this login, for the log: `VAULT_ROLE_ID is set`.
    pub login_reason: String,
    /// The methods that were looked for before it and are not configured.
    pub passed_by: Vec<PassedBy>,
    /// `VAULT_NAMESPACE`, without slashes at its ends; `None` is the root.
    pub namespace: Option<String>,
    /// `MLFLOW_VAULT_AUTH_NAMESPACE`, else the secret's; `None` is the root.
    pub login_namespace: Option<String>,
    /// `MLFLOW_VAULT_KV_MOUNT`, without slashes at its ends.
    pub kv_mount: Option<String>,
    /// `MLFLOW_VAULT_KV_VERSION`; `None` asks the server.
    pub kv_version: Option<KvVersion>,
    /// `MLFLOW_VAULT_SECRET_VERSION`; `None` is the newest.
    pub secret_version: Option<u32>,
    /// How the server proves who it is, and how we do.
    pub tls: TlsSettings,
    /// `VAULT_CLIENT_TIMEOUT`.
    pub request_timeout: Option<Duration>,
}

/// Where Vault, or its agent, listens.
#[derive(Clone, Debug, PartialEq)]
pub enum Server {
    /// A URL without a trailing slash; it may have a path prefix. The variable that named it is for error texts.
    Network {
        /// The URL.
        address: String,
        /// `VAULT_ADDR` or `VAULT_AGENT_ADDR`.
        variable: &'static str,
    },
    /// The unix socket of an agent.
    Unix(PathBuf),
}

/// TLS towards Vault.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TlsSettings {
    /// `VAULT_SKIP_VERIFY`.
    pub skip_verify: bool,
    /// `VAULT_CACERT`, else `VAULT_CAPATH`, where they take the place of the roots for every backend.
    pub roots: Option<TrustRoots>,
    /// `VAULT_CLIENT_CERT` and `VAULT_CLIENT_KEY`.
    pub client_certificate: Option<ClientCertificate>,
    /// `VAULT_TLS_SERVER_NAME`.
    pub server_name: Option<String>,
}

/// The files of a certificate that we show the server.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientCertificate {
    /// The certificate and its chain, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
}

/// The version of a KV engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvVersion {
    /// One value per path.
    V1,
    /// Versions of a value per path, read below `data/`.
    V2,
}

impl VaultSettings {
    /// Reads the variables. `Ok(None)` where a value is malformed, which `reader` has recorded.
    ///
    /// # Errors
    /// [`ErrorCode::ConfigMissing`] where the address, the path or a part of the identity is not set.
    pub fn read(reader: &mut Reader<'_>) -> Result<Option<Self>> {
        let had_errors = reader.errors().len();
        let address = reader.text(&var::VAULT_ADDR).and_then(|text| checked_address(reader, &var::VAULT_ADDR, &text));
        let agent = reader.text(&var::VAULT_AGENT_ADDR).and_then(|text| checked_agent(reader, &text));
        let kv_mount = mount(reader, &var::MLFLOW_VAULT_KV_MOUNT);
        let path = reader.text(&var::MLFLOW_VAULT_SECRET_PATH);
        let path = path.and_then(|path| checked_path(reader, &path, kv_mount.is_some()));
        let (tls, mut lacking_for_tls) = tls(reader);
        let logins = Logins::read(reader, tls.client_certificate.is_some(), agent.is_some());
        let auth_mode = reader.choice(&var::MLFLOW_VAULT_AUTH_MODE, AuthMode::NAMES, AuthMode::Bearer);
        let ttl = reader.seconds(&var::MLFLOW_VAULT_TTL_SEC, 300, 0..=86_400);
        let namespace = namespace(reader, &var::VAULT_NAMESPACE);
        let login_namespace = namespace_of_login(reader, namespace.as_deref());
        let kv_version = kv_version(reader);
        let secret_version = secret_version(reader, kv_version);
        let request_timeout = client_timeout(reader);
        let choice = logins.choose();
        if reader.errors().len() > had_errors {
            let required: [&[_]; 2] = [&[&var::VAULT_ADDR, &var::VAULT_AGENT_ADDR], &[&var::MLFLOW_VAULT_SECRET_PATH]];
            return malformed(ProviderKind::Vault, &required, reader);
        }
        let in_agent_mode = matches!(&choice, Ok(LoginChoice { login: Login::Agent, .. }));
        let server = if in_agent_mode { agent } else { address.or(agent) };
        let mut lacking = Vec::new();
        if server.is_none() {
            lacking.push(if in_agent_mode { &var::VAULT_AGENT_ADDR } else { &var::VAULT_ADDR });
        }
        lacking.extend(path.is_none().then_some(&var::MLFLOW_VAULT_SECRET_PATH));
        lacking.append(&mut lacking_for_tls);
        let (Some(server), Some(path), Ok(LoginChoice { login, reason, passed_by })) = (server, path, &choice) else {
            if let Err(lacking_for_login) = &choice {
                lacking.extend(
                    lacking_for_login.iter().filter(|variable| !is_in(variable, &lacking)).copied().collect::<Vec<_>>(),
                );
            }
            return Err(missing(ProviderKind::Vault, &lacking, reader));
        };
        if !lacking.is_empty() {
            return Err(missing(ProviderKind::Vault, &lacking, reader));
        }
        if !fits_together(reader, &server, login) {
            return Ok(None);
        }
        warn_of_downgrades(reader, &server, &tls);
        Ok(Some(Self {
            server,
            path,
            auth_mode,
            ttl,
            login: login.clone(),
            login_reason: reason.clone(),
            passed_by: passed_by.clone(),
            namespace,
            login_namespace,
            kv_mount,
            kv_version,
            secret_version,
            tls,
            request_timeout,
        }))
    }
}

fn is_in(variable: &Variable, list: &[&'static Variable]) -> bool {
    list.iter().any(|listed| listed.name == variable.name)
}

/// A certificate login needs TLS: without it, there is no certificate on the wire.
fn fits_together(reader: &mut Reader<'_>, server: &Server, login: &Login) -> bool {
    let Server::Network { address, variable } = server else { return true };
    if !matches!(login, Login::Certificate { .. }) || address.starts_with("https://") {
        return true;
    }
    reader.error(
        ErrorCode::ConfigInvalidValue,
        format!("{variable} is plain http, and the login by TLS certificate needs https"),
        format!("let {variable} begin with https://, or choose another {}", var::MLFLOW_VAULT_AUTH_METHOD.name),
    );
    false
}

fn warn_of_downgrades(reader: &mut Reader<'_>, server: &Server, tls: &TlsSettings) {
    let Server::Network { address, variable } = server else { return };
    reader.note_plain_http(variable, address);
    if address.starts_with("https://") && tls.skip_verify {
        reader.notice(format!("{} is on: Vault's certificate is not verified", var::VAULT_SKIP_VERIFY.name));
    }
}

fn tls(reader: &mut Reader<'_>) -> (TlsSettings, Vec<&'static Variable>) {
    let named = [&var::VAULT_CACERT, &var::VAULT_CAPATH].map(|variable| (variable, reader.text(variable)));
    let roots = named.into_iter().find_map(|(variable, path)| Some(TrustRoots::only(variable, path?)));
    let skip_verify = reader.boolean(&var::VAULT_SKIP_VERIFY, false);
    let server_name = reader.text(&var::VAULT_TLS_SERVER_NAME);
    if let Some(name) = server_name.as_deref().filter(|name| !is_host_name(name)) {
        reader.invalid(&var::VAULT_TLS_SERVER_NAME, name, None);
    }
    let (certificate, key) = (reader.text(&var::VAULT_CLIENT_CERT), reader.text(&var::VAULT_CLIENT_KEY));
    let mut lacking = Vec::new();
    match (&certificate, &key) {
        (Some(_), None) => lacking.push(&var::VAULT_CLIENT_KEY),
        (None, Some(_)) => lacking.push(&var::VAULT_CLIENT_CERT),
        _ => {}
    }
    let client_certificate = certificate
        .zip(key)
        .map(|(certificate, key)| ClientCertificate { certificate: certificate.into(), key: key.into() });
    (TlsSettings { skip_verify, roots, client_certificate, server_name }, lacking)
}

fn is_host_name(name: &str) -> bool {
    Origin::of(&format!("https://{name}")).is_ok_and(|origin| origin.host().eq_ignore_ascii_case(name))
}

fn kv_version(reader: &mut Reader<'_>) -> Option<KvVersion> {
    let versions = [("auto", None), ("1", Some(KvVersion::V1)), ("2", Some(KvVersion::V2))];
    reader.choice(&var::MLFLOW_VAULT_KV_VERSION, &versions, None)
}

fn secret_version(reader: &mut Reader<'_>, kv_version: Option<KvVersion>) -> Option<u32> {
    let variable = &var::MLFLOW_VAULT_SECRET_VERSION;
    reader.text(variable)?;
    let version = reader.whole_number(variable, 1, 1..=u32::MAX);
    if kv_version == Some(KvVersion::V1) {
        reader.error(
            ErrorCode::ConfigInvalidValue,
            format!(
                "{} is set, and {} is 1, which keeps no versions",
                variable.name,
                var::MLFLOW_VAULT_KV_VERSION.name
            ),
            format!("unset {}", variable.name),
        );
    }
    Some(version)
}

/// A token that can be a header's value: the SDK panics on others.
pub(super) fn secret_for_header(reader: &mut Reader<'_>, variable: &'static Variable) -> Option<SecretString> {
    let secret = reader.secret(variable)?;
    if is_token(secret.expose()) {
        return Some(secret);
    }
    reader.error(
        ErrorCode::ConfigInvalidValue,
        format!("{} holds a space, a line break or another character that no token has", variable.name),
        "copy the token again; a file's trailing line break is a common cause",
    );
    None
}

/// Whether `text` can be a Vault token.
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())
}

/// A mount's path, without slashes at its ends.
pub(super) fn mount(reader: &mut Reader<'_>, variable: &'static Variable) -> Option<String> {
    let text = reader.text(variable)?;
    let trimmed = text.trim_matches('/');
    if trimmed.split('/').any(is_odd) {
        reader.invalid(variable, &text, None);
    }
    Some(trimmed.to_owned())
}

/// Whether a path's segment is one that URL libraries drop or read as something else.
pub(super) fn is_odd(segment: &str) -> bool {
    matches!(segment, "" | "." | "..") || segment.contains(['?', '#', '\\']) || segment.chars().any(char::is_control)
}

/// A namespace, without slashes at its ends; `None` where it is unset or the root.
fn namespace(reader: &mut Reader<'_>, variable: &'static Variable) -> Option<String> {
    let text = reader.text(variable)?;
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        reader.invalid(variable, &text, None);
    }
    let name = text.trim_matches('/');
    (!name.is_empty() && name != "root").then(|| name.to_owned())
}

/// The login's own namespace where it is set, even to the root; else the secret's.
fn namespace_of_login(reader: &mut Reader<'_>, of_secret: Option<&str>) -> Option<String> {
    let own = namespace(reader, &var::MLFLOW_VAULT_AUTH_NAMESPACE);
    let is_set = reader.text(&var::MLFLOW_VAULT_AUTH_NAMESPACE).is_some();
    if is_set { own } else { of_secret.map(str::to_owned) }
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

fn checked_address(reader: &mut Reader<'_>, variable: &'static Variable, address: &str) -> Option<Server> {
    let trimmed = address.trim_end_matches('/');
    let plain = Url::parse(trimmed).is_ok_and(|url| url.query().is_none() && url.fragment().is_none());
    if plain && Origin::of(trimmed).is_ok() {
        return Some(Server::Network { address: trimmed.to_owned(), variable: variable.name });
    }
    reader.invalid(variable, &redacted(address), None);
    None
}

fn checked_agent(reader: &mut Reader<'_>, address: &str) -> Option<Server> {
    match address.strip_prefix("unix://") {
        Some(path) if cfg!(unix) && path.starts_with('/') => Some(Server::Unix(path.into())),
        Some(_) => {
            reader.invalid(&var::VAULT_AGENT_ADDR, address, None);
            None
        }
        None => checked_address(reader, &var::VAULT_AGENT_ADDR, address),
    }
}

/// A path without empty, `.` and `..` segments, which the URL library would silently drop. It begins with its mount,
/// unless the mount is set on its own.
fn checked_path(reader: &mut Reader<'_>, path: &str, has_mount: bool) -> Option<String> {
    let trimmed = path.trim_matches('/');
    let trimmed = trimmed.strip_prefix("v1/").unwrap_or(trimmed);
    if (has_mount || trimmed.contains('/')) && !trimmed.split('/').any(is_odd) {
        return Some(trimmed.to_owned());
    }
    reader.invalid(&var::MLFLOW_VAULT_SECRET_PATH, path, None);
    None
}
