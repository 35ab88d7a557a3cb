//! Who we are to Vault: the token at hand, or a login that is reused for as long as its lease lasts.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustify::Endpoint;
use vaultrs::api::EndpointResult;
use vaultrs::api::auth::approle::requests::LoginWithApproleRequest;

use super::client::{VaultClient, VaultFailure};
use super::settings::Login;
use crate::clock::Clock;
use crate::error::{Error, ErrorCode, Outlook, Result};
use crate::secret::SecretString;

/// A login is renewed by logging in again this much before its lease ends, or a tenth of the lease before.
const SKEW: Duration = Duration::from_secs(30);

/// The identity of one provider. The login survives a fork: it is a value, not a connection.
pub struct Identity {
    login: Login,
    session: ArcSwapOption<Session>,
}

/// A token that a login gave.
struct Session {
    token: SecretString,
    /// On [`Clock::now`]; `None` where the token does not end.
    usable_until: Option<Duration>,
}

/// A token to read with.
pub struct Token {
    /// The token itself.
    pub token: SecretString,
    /// Whether logging in again could give a better one.
    pub renewable_by_login: bool,
}

impl Identity {
    /// An identity that has not logged in yet.
    pub fn new(login: Login) -> Self {
        Self { login, session: ArcSwapOption::empty() }
    }

    /// How users know it: `the token in VAULT_TOKEN`, `AppRole at auth/approle`.
    pub fn description(&self) -> String {
        match &self.login {
            Login::Token(_) => "the token in VAULT_TOKEN".to_owned(),
            Login::AppRole { mount, .. } => format!("AppRole at auth/{mount}"),
        }
    }

    /// A token: the configured one, that of the last login while its lease lasts, or that of a new login.
    pub async fn token(&self, client: &VaultClient, clock: &dyn Clock) -> Result<Token> {
        let (mount, role_id, secret_id) = match &self.login {
            Login::Token(token) => return Ok(Token { token: token.clone(), renewable_by_login: false }),
            Login::AppRole { mount, role_id, secret_id } => (mount, role_id, secret_id),
        };
        let session = self.session.load_full();
        if let Some(session) = session.filter(|s| s.usable_until.is_none_or(|until| clock.now() < until)) {
            return Ok(Token { token: session.token.clone(), renewable_by_login: true });
        }
        let request = LoginWithApproleRequest {
            mount: mount.clone(),
            role_id: role_id.clone(),
            secret_id: secret_id.as_ref().map(|id| id.expose().to_owned()).unwrap_or_default(),
        };
        let session = self.log_in(client, clock, request).await?;
        let token = session.token.clone();
        self.session.store(Some(Arc::new(session)));
        log::debug!(target: "mlflow_secrets_auth.vault", event = "login"; "logged in to Vault: {}", self.description());
        Ok(Token { token, renewable_by_login: true })
    }

    /// Forgets the login, so that the next read makes a new one.
    pub fn forget_login(&self) {
        self.session.store(None);
    }

    async fn log_in<E: Endpoint<Response = ()>>(
        &self,
        client: &VaultClient,
        clock: &dyn Clock,
        request: E,
    ) -> Result<Session> {
        let answer: EndpointResult<()> =
            client.ask(None, request).await.map_err(|failure| self.refused(client, failure))?;
        let auth = answer
            .auth
            .filter(|auth| !auth.client_token.is_empty())
            .ok_or_else(|| client.unexpected("the login gave no token; does the method ask for a second factor?"))?;
        let lease = (auth.lease_duration > 0).then(|| Duration::from_secs(auth.lease_duration));
        let usable_until = lease.map(|lease| clock.now() + (lease - SKEW.min(lease.mul_f64(0.1))));
        Ok(Session { token: SecretString::new(auth.client_token), usable_until })
    }

    fn refused(&self, client: &VaultClient, failure: VaultFailure) -> Error {
        match failure.status {
            Some(status @ (400 | 403 | 404)) => Error::new(
                ErrorCode::VaultLoginRefused,
                format!("Vault at {} refused the login (HTTP {status}) with {}", client.shown_address(), self.description()),
                "check VAULT_ROLE_ID and VAULT_SECRET_ID, and MLFLOW_VAULT_AUTH_MOUNT where the method is mounted elsewhere",
            )
            .with_outlook(Outlook::Final),
            _ => client.failed("logging in", failure),
        }
    }
}
