//! One login, by whichever method is configured.

use std::path::Path;

use rustify::Endpoint;
use vaultrs::api::auth::approle::requests::LoginWithApproleRequest;
use vaultrs::api::auth::kubernetes::requests::LoginWithKubernetesRequest;
use vaultrs::api::auth::oidc::requests::JWTLoginRequest;
use vaultrs::api::auth::userpass::requests::LoginRequest as PasswordLoginRequest;

use super::answer::{Auth, VaultFailure};
use super::client::{Scope, VaultClient};
use super::endpoints::CertificateLogin;
use super::settings::{Login, SecretId, is_token};
use super::wrapping;
use crate::clock::Clock;
use crate::error::{Error, ErrorCode, Result};
use crate::http::plain_io;
use crate::secret::SecretString;
use crate::settings::variables as var;

/// Logs in, and returns the token that Vault gave.
pub async fn log_in(login: &Login, client: &VaultClient, clock: &dyn Clock) -> Result<Auth> {
    match login {
        Login::AppRole { mount, role_id, secret_id } => {
            let secret_id = match secret_id {
                SecretId::None => SecretString::from(""),
                SecretId::Plain(secret_id) => secret_id.clone(),
                SecretId::Wrapped(token) => wrapping::secret_id(client, clock, mount, token).await?,
            };
            let (mount, role_id) = (mount.clone(), role_id.clone());
            let secret_id = secret_id.expose().to_owned();
            send(login, client, LoginWithApproleRequest { mount, role_id, secret_id }).await
        }
        Login::Jwt { method: "kubernetes", mount, role, path } => {
            let jwt = token_in_file(path, var::MLFLOW_VAULT_JWT_PATH.name)?.expose().to_owned();
            let (mount, role) = (mount.clone(), role.clone().unwrap_or_default());
            send(login, client, LoginWithKubernetesRequest { mount, role, jwt }).await
        }
        Login::Jwt { mount, role, path, .. } => {
            let jwt = token_in_file(path, var::MLFLOW_VAULT_JWT_PATH.name)?.expose().to_owned();
            send(login, client, JWTLoginRequest { mount: mount.clone(), jwt, role: role.clone() }).await
        }
        // LDAP has the same request, on another mount.
        Login::Password { mount, username, password, .. } => {
            let (mount, username) = (mount.clone(), username.clone());
            let password = password.expose().to_owned();
            send(login, client, PasswordLoginRequest { mount, username, password }).await
        }
        Login::Certificate { mount, role } => {
            send(login, client, CertificateLogin { mount: mount.clone(), name: role.clone() }).await
        }
        Login::Token(_) | Login::TokenFile(_) | Login::Agent => {
            Err(client.unexpected("there is nothing to log in with"))
        }
    }
}

/// The token in a file, without the white space around it. `variable` is what names the file.
pub fn token_in_file(path: &Path, variable: &str) -> Result<SecretString> {
    let unusable = |what: String| {
        Error::new(
            ErrorCode::ConfigFile,
            format!("{variable} reads {}, {what}", path.display()),
            "let the file hold the token and nothing else, readable for this process",
        )
    };
    let text = std::fs::read_to_string(path).map(SecretString::new);
    let text = text.map_err(|e| unusable(format!("which can't be read: {}", plain_io(&e))))?;
    let token = text.expose().trim();
    if !is_token(token) {
        return Err(unusable("which holds no token".to_owned()));
    }
    Ok(SecretString::from(token))
}

async fn send<E: Endpoint<Response = ()>>(login: &Login, client: &VaultClient, request: E) -> Result<Auth> {
    let answer = client.ask(Scope::Login, None, request).await.map_err(|failure| refused(login, client, failure))?;
    let auth = answer.auth.ok_or_else(|| client.unexpected("the login gave no token"))?;
    if auth.mfa_requirement.is_some() || auth.client_token.is_empty() {
        return Err(Error::new(
            ErrorCode::VaultLoginRefused,
            format!("Vault at {} wants a second factor for {}", client.shown_address(), described(login, client)),
            "exempt this login from the second factor: there is nobody here to enter it",
        ));
    }
    Ok(auth)
}

fn described(login: &Login, client: &VaultClient) -> String {
    format!("{}{}", login.description(), client.in_login_namespace())
}

fn refused(login: &Login, client: &VaultClient, failure: VaultFailure) -> Error {
    let passing = failure.says("readonly storage") || failure.says("namespace not found");
    let Some(status @ (400..=404)) = failure.status.filter(|_| !passing) else {
        return client.failed("logging in", failure);
    };
    let who = described(login, client);
    let address = client.shown_address();
    if failure.says("no handler for route") || failure.says("unsupported path") {
        return Error::new(
            ErrorCode::VaultWrongMount,
            format!("Vault at {address} has no such login method (HTTP {status}): {who}"),
            "check MLFLOW_VAULT_AUTH_MOUNT and MLFLOW_VAULT_AUTH_METHOD (`vault auth list` shows the mounts)",
        );
    }
    // Vault also answers 403 where nothing is mounted, so as not to tell strangers.
    let mount =
        if status == 403 { ", or no such method is mounted there: check MLFLOW_VAULT_AUTH_MOUNT too" } else { "" };
    let hint = match login {
        Login::AppRole { secret_id: SecretId::Wrapped(_), .. } => {
            "check VAULT_ROLE_ID; the unwrapped secret id may have expired or be used up, and needs a new wrapping token"
        }
        Login::AppRole { .. } => "check VAULT_ROLE_ID and VAULT_SECRET_ID; a secret id may expire or be used up",
        Login::Jwt { .. } => {
            "check MLFLOW_VAULT_ROLE, and that the token in the file has not expired and is for Vault's audience"
        }
        Login::Password { .. } => "check MLFLOW_VAULT_USERNAME and MLFLOW_VAULT_PASSWORD",
        _ => "check VAULT_CLIENT_CERT, and MLFLOW_VAULT_ROLE where it is set",
    };
    Error::new(
        ErrorCode::VaultLoginRefused,
        format!("Vault at {address} refused the login (HTTP {status}) with {who}"),
        format!("{hint}{mount}"),
    )
}
