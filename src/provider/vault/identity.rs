//! Who we are to Vault: the token at hand, or a login that is reused for as long as its lease lasts.
//!
//! A login is used to the very end of its lease, so that a day costs no more logins than it has leases: a token that ends
//! on the way to Vault costs one refused read, and the login that was due anyway. From half of the lease on, it is renewed
//! instead, where Vault permits that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use vaultrs::api::token::requests::RenewTokenSelfRequest;

use super::answer::{Auth, VaultFailure, seconds};
use super::client::{Scope, VaultClient};
use super::endpoints::LookUpSelf;
use super::login::{log_in, token_in_file};
use super::login_settings::PassedBy;
use super::settings::{Login, VaultSettings};
use crate::clock::Clock;
use crate::error::{Error, ErrorCode, Result};
use crate::provider::ProviderKind;
use crate::secret::SecretString;
use crate::settings::variables as var;
use crate::steps;

/// A token from the settings is looked up once it has been used for this long: a process that ends before needs no renewal.
const LOOK_UP_AFTER: Duration = Duration::from_secs(60);
/// After a fresh login did not help against a 403, the next is not tried before this long, then twice as long, up to an
/// hour.
const FIRST_REST: Duration = Duration::from_secs(60);
const LAST_REST: Duration = Duration::from_secs(3600);

/// The identity of one provider. What it holds survives a fork: values, not connections.
pub struct Identity {
    login: Login,
    reason: String,
    passed_by: Vec<PassedBy>,
    announced: AtomicBool,
    session: ArcSwapOption<Session>,
}

/// A token in use.
struct Session {
    token: SecretString,
    /// On [`Clock::now`], before the login was sent: Vault's own count begins later, so ours never ends after it.
    made_at: Duration,
    /// `None` where the token does not end, or where only Vault knows.
    ends_at: Option<Duration>,
    /// What the login was given: a renewal that gives much less has met the token's maximum.
    lease: Duration,
    upkeep: Upkeep,
    /// How many requests it is still good for, where that is limited.
    uses_left: Option<AtomicU64>,
    /// How many fresh logins in a row did not help against a 403.
    doubts: u32,
}

/// What is to be done for a token while it is in use.
#[derive(Clone, Copy)]
enum Upkeep {
    Nothing,
    LookUpFrom(Duration),
    RenewFrom(Duration),
}

impl Session {
    fn of_login(auth: Auth, asked_at: Duration) -> Self {
        let lease = seconds(auth.lease_duration);
        let uses = auth.num_uses.filter(|uses| *uses > 0);
        // A renewal is a use too, and so no gain where uses are limited.
        let renewable = auth.renewable && !lease.is_zero() && uses.is_none();
        Self {
            token: auth.client_token,
            made_at: asked_at,
            ends_at: (!lease.is_zero()).then(|| asked_at + lease),
            lease,
            upkeep: if renewable { Upkeep::RenewFrom(asked_at + lease / 2) } else { Upkeep::Nothing },
            uses_left: uses.map(AtomicU64::new),
            doubts: 0,
        }
    }

    fn of_settings(token: SecretString, now: Duration) -> Self {
        Self {
            token,
            made_at: now,
            ends_at: None,
            lease: Duration::ZERO,
            upkeep: Upkeep::LookUpFrom(now + LOOK_UP_AFTER),
            uses_left: None,
            doubts: 0,
        }
    }

    fn with_upkeep(&self, upkeep: Upkeep) -> Self {
        Self {
            token: self.token.clone(),
            uses_left: self.uses_left.as_ref().map(|uses| AtomicU64::new(uses.load(Ordering::Relaxed))),
            upkeep,
            ..*self
        }
    }

    /// The same token after a renewal that gave it `lease` more from `asked_at` on.
    fn renewed(&self, lease: Duration, renewable: bool, asked_at: Duration) -> Self {
        let worth_it = renewable && lease * 2 > self.lease;
        Self {
            ends_at: self.ends_at.map(|_| asked_at + lease),
            ..self.with_upkeep(if worth_it { Upkeep::RenewFrom(asked_at + lease / 2) } else { Upkeep::Nothing })
        }
    }

    fn has_ended(&self, now: Duration) -> bool {
        self.ends_at.is_some_and(|end| now >= end)
    }

    /// Takes one use; false where none is left.
    fn take_use(&self) -> bool {
        let Some(uses) = &self.uses_left else { return true };
        uses.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |uses| uses.checked_sub(1)).is_ok()
    }
}

impl Identity {
    /// An identity that has not logged in yet.
    pub fn new(settings: &VaultSettings) -> Self {
        Self {
            login: settings.login.clone(),
            reason: settings.login_reason.clone(),
            passed_by: settings.passed_by.clone(),
            announced: AtomicBool::new(false),
            session: ArcSwapOption::empty(),
        }
    }

    /// How users know it: `the token in VAULT_TOKEN`, `AppRole at auth/approle`.
    pub fn description(&self) -> String {
        self.login.description()
    }

    /// A token for one request: the configured one, that of the last login while it is good, or that of a new login.
    /// `None` in agent mode, where the agent adds its own.
    pub async fn token(&self, client: &VaultClient, clock: &dyn Clock) -> Result<Option<SecretString>> {
        if !self.announced.swap(true, Ordering::Relaxed) {
            log::info!(target: "mlflow_secrets_auth.vault", event = "login_method", reason = self.reason.as_str();
                "Vault is read with {}, because {}", self.description(), self.reason);
            for PassedBy { method, reason } in &self.passed_by {
                steps::tried(ProviderKind::Vault, method, Err(reason), Duration::ZERO);
            }
            if !self.can_log_in() {
                self.tried(None, Duration::ZERO);
            }
        }
        let configured = match &self.login {
            Login::Agent => return Ok(None),
            Login::Token(token) => Some(token.clone()),
            Login::TokenFile(path) => Some(token_in_file(path, var::MLFLOW_VAULT_AUTH_METHOD.name)?),
            _ => None,
        };
        let now = clock.now();
        let held = self.session.load_full();
        let held = match configured {
            Some(token) => match held.filter(|held| held.token == token) {
                Some(held) => Some(held),
                None => Some(self.hold(Session::of_settings(token, now))),
            },
            None => held.filter(|held| !held.has_ended(now)),
        };
        let held = match held {
            Some(held) => self.kept_up(client, clock, held).await,
            None => None,
        };
        if let Some(held) = held.filter(|held| held.take_use()) {
            return Ok(Some(held.token.clone()));
        }
        let session = self.log_in(client, clock, 0).await?;
        session.take_use();
        Ok(Some(session.token.clone()))
    }

    /// How long the token that was used last still lives, where that is known: what it leased ends with it.
    pub fn remaining(&self, clock: &dyn Clock) -> Option<Duration> {
        let end = self.session.load().as_ref()?.ends_at?;
        Some(end.saturating_sub(clock.now()))
    }

    /// Whether a 403 came from a token that Vault does not know, as far as its text and a look-up tell.
    pub async fn is_refused(&self, client: &VaultClient, failure: &VaultFailure) -> bool {
        if let Some(good) = failure.token_was_good() {
            return !good;
        }
        let session = self.session.load_full();
        if session.as_ref().is_some_and(|session| session.uses_left.is_some()) {
            // A look-up would be one use more; a token whose uses are spent is an unknown one.
            return true;
        }
        let token = session.as_ref().map(|session| &session.token);
        match client.ask(Scope::Login, token, LookUpSelf {}).await {
            Err(failure) => failure.status == Some(403) && failure.token_was_good() != Some(true),
            Ok(_) => false,
        }
    }

    /// After a 403: logs in afresh where that may help, and says whether it did log in.
    ///
    /// A login of this same fetch is as fresh as can be. Where the token is good and only not permitted to read, a new one
    /// may have got other policies; but it is tried ever more rarely while that does not help.
    ///
    /// # Errors
    /// The new login's own, where the token at hand is of no use any more.
    pub async fn log_in_again(
        &self,
        client: &VaultClient,
        clock: &dyn Clock,
        code: ErrorCode,
        fetch_began: Duration,
    ) -> Result<bool> {
        let Some(session) = self.session.load_full().filter(|_| self.can_log_in()) else { return Ok(false) };
        let now = clock.now();
        if session.made_at >= fetch_began {
            return Ok(false);
        }
        match code {
            ErrorCode::VaultTokenRefused => {
                self.session.store(None);
                self.log_in(client, clock, session.doubts).await.map(|_| true)
            }
            ErrorCode::VaultPermissionDenied
                if session.doubts == 0 || now >= session.made_at + rest(session.doubts) =>
            {
                let again = self.log_in(client, clock, session.doubts + 1).await;
                Ok(again.is_ok())
            }
            _ => Ok(false),
        }
    }

    /// Says that the token at hand read the secret.
    pub fn is_trusted(&self) {
        if let Some(session) = self.session.load_full().filter(|session| session.doubts > 0) {
            self.hold(Session { doubts: 0, ..session.with_upkeep(session.upkeep) });
        }
    }

    /// Notes that the login succeeded, or how it failed.
    fn tried(&self, failure: Option<ErrorCode>, took: Duration) {
        let who = format!("{}, because {}", self.description(), self.reason);
        let outcome = failure.map_or(Ok(who.as_str()), |code| Err(code.as_str()));
        steps::tried(ProviderKind::Vault, self.login.method(), outcome, took);
    }

    fn can_log_in(&self) -> bool {
        !matches!(self.login, Login::Token(_) | Login::TokenFile(_) | Login::Agent)
    }

    fn hold(&self, session: Session) -> Arc<Session> {
        let session = Arc::new(session);
        self.session.store(Some(Arc::clone(&session)));
        session
    }

    async fn log_in(&self, client: &VaultClient, clock: &dyn Clock, doubts: u32) -> Result<Arc<Session>> {
        let asked_at = clock.now();
        let result = log_in(&self.login, client, clock).await;
        self.tried(result.as_ref().err().map(Error::code), clock.now().saturating_sub(asked_at));
        let auth = result?;
        let lease_s = auth.lease_duration;
        let session = self.hold(Session { doubts, ..Session::of_login(auth, asked_at) });
        log::info!(target: "mlflow_secrets_auth.vault", event = "signed_in", lease_s;
            "logged in to Vault with {}, for {lease_s} s", self.description());
        Ok(session)
    }

    /// The session after what is due for it; `None` where the token turned out to be dead and a login can replace it.
    async fn kept_up(&self, client: &VaultClient, clock: &dyn Clock, session: Arc<Session>) -> Option<Arc<Session>> {
        let now = clock.now();
        match session.upkeep {
            Upkeep::LookUpFrom(due) if now >= due => Some(self.look_up(client, session, now).await),
            Upkeep::RenewFrom(due) if now >= due => self.renew(client, session, now).await,
            _ => Some(session),
        }
    }

    /// Finds out, once, whether a token from the settings has to be kept alive.
    async fn look_up(&self, client: &VaultClient, session: Arc<Session>, now: Duration) -> Arc<Session> {
        let facts =
            client.ask(Scope::Login, Some(&session.token), LookUpSelf {}).await.ok().and_then(|answer| answer.data);
        let upkeep = match facts {
            Some(facts) if facts.renewable && facts.ttl > 0 => Upkeep::RenewFrom(now + seconds(facts.ttl) / 2),
            _ => Upkeep::Nothing,
        };
        self.hold(session.with_upkeep(upkeep))
    }

    async fn renew(&self, client: &VaultClient, session: Arc<Session>, now: Duration) -> Option<Arc<Session>> {
        let request = RenewTokenSelfRequest { increment: None };
        let failure = match client.ask(Scope::Login, Some(&session.token), request).await {
            Ok(answer) => {
                let granted = answer.auth.map(|auth| (seconds(auth.lease_duration), auth.renewable));
                let (lease, renewable) = granted.unwrap_or_default();
                log::debug!(target: "mlflow_secrets_auth.vault", event = "renewed", lease_s = lease.as_secs();
                    "renewed the Vault token, for {} s", lease.as_secs());
                if granted.is_none() {
                    return Some(self.hold(session.with_upkeep(Upkeep::Nothing)));
                }
                return Some(self.hold(session.renewed(lease, renewable, now)));
            }
            Err(failure) => failure,
        };
        log::debug!(target: "mlflow_secrets_auth.vault", event = "renewal_failed", status = failure.status.unwrap_or(0);
            "the Vault token can't be renewed now");
        match failure.status {
            Some(403) if self.can_log_in() && failure.token_was_good() != Some(true) => None,
            Some(400..=499) => Some(self.hold(session.with_upkeep(Upkeep::Nothing))),
            // Vault has trouble of its own: again when half of what is left has gone.
            _ => {
                let left = session.ends_at.map_or(LOOK_UP_AFTER, |end| end.saturating_sub(now) / 2);
                Some(self.hold(session.with_upkeep(Upkeep::RenewFrom(now + left))))
            }
        }
    }
}

fn rest(doubts: u32) -> Duration {
    FIRST_REST.saturating_mul(1 << doubts.saturating_sub(1).min(10)).min(LAST_REST)
}
