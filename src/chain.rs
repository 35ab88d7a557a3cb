//! The enabled providers, in order: fail over within one deadline, and remember who is down.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use futures_util::future::{BoxFuture, Either, select};

use crate::clock::Clock;
use crate::credential::{AuthMode, Credential};
use crate::error::{Error, ErrorCode, Outlook, Result};
use crate::provider::{Provider, ProviderKind, SecretPayload};
use crate::retry::{Budget, retrying};
use crate::settings::FetchSettings;

/// After a failure a provider is left alone for this long, then for twice as long, up to [`LAST_WINDOW`].
const FIRST_WINDOW: Duration = Duration::from_secs(1);
const LAST_WINDOW: Duration = Duration::from_secs(30);

/// A provider with what turns its secret into a credential.
pub struct Link {
    /// The backend.
    pub provider: Box<dyn Provider>,
    /// How its secret becomes a header.
    pub auth_mode: AuthMode,
    /// How long its credential is used.
    pub ttl: Duration,
}

/// A credential, fresh from a backend.
#[derive(Debug)]
pub struct Fetched {
    /// What to set on requests, and when it ends by its own word.
    pub credential: Credential,
    /// Who gave it.
    pub provider: ProviderKind,
    /// The backend's name for the version.
    pub version: Option<String>,
    /// When that version was written, where the backend tells.
    pub created_at: Option<SystemTime>,
    /// Where it was read, for people.
    pub location: String,
    /// How long it may be used: the least of the setting and everything that the secret and the backend say.
    pub lifetime: Lifetime,
}

/// The bounds of a credential's use.
#[derive(Clone, Copy, Debug)]
pub struct Lifetime {
    /// The TTL setting.
    pub setting: Duration,
    /// What is left until the earliest expiry or the end of the lease, if there is any.
    pub remaining: Option<Duration>,
}

/// Why no provider gave a credential, and how each of them failed.
#[derive(Debug)]
pub struct ChainFailure {
    /// The error to show.
    pub error: Error,
    /// Each provider's outlook.
    pub outlooks: Vec<(ProviderKind, Outlook)>,
    /// Whether any provider was asked now; otherwise these are remembered failures.
    pub asked: bool,
}

/// The providers, and what is known of their health.
pub struct ProviderChain {
    links: Vec<Link>,
    header_name: String,
    health: ArcSwap<Health>,
}

/// Which providers failed lately, and which one answered last.
#[derive(Clone, Default)]
struct Health {
    down: Vec<Down>,
    answering: Option<ProviderKind>,
}

#[derive(Clone)]
struct Down {
    provider: ProviderKind,
    error: Error,
    until: Duration,
    window: Duration,
}

impl ProviderChain {
    /// The chain that `settings` describe.
    pub fn new(settings: &FetchSettings) -> Self {
        let links = settings.providers.iter().map(|provider| Link {
            provider: provider.provider(&settings.network),
            auth_mode: provider.auth_mode(),
            ttl: provider.ttl(),
        });
        Self::of(links.collect(), &settings.header_name)
    }

    /// A chain of these links.
    pub fn of(links: Vec<Link>, header_name: &str) -> Self {
        Self { links, header_name: header_name.to_owned(), health: ArcSwap::default() }
    }

    /// Asks one provider after the other until one gives a usable credential.
    ///
    /// A provider that failed within its fail-fast window is not asked again, unless `past_failures` is set; its
    /// remembered error counts instead. Each of several providers gets an equal share of the time that is left.
    ///
    /// # Errors
    /// A single provider's own error, or [`ErrorCode::FetchAllFailed`] with every provider's.
    pub async fn fetch(
        &self,
        clock: &dyn Clock,
        budget: Budget,
        past_failures: bool,
    ) -> std::result::Result<Fetched, ChainFailure> {
        let mut failures = Vec::new();
        let mut asked = false;
        for (index, link) in self.links.iter().enumerate() {
            let kind = link.provider.kind();
            if let Some(error) = self.remembered(kind, clock.now()).filter(|_| !past_failures) {
                failures.push((kind, error));
                continue;
            }
            let left = u32::try_from(self.links.len() - index).unwrap_or(1);
            let own = link.provider.max_retries().filter(|_| budget.provider_decides);
            let attempts = own.map_or(budget.attempts, |retries| retries + 1);
            let share = Budget { attempts, deadline: clock.now() + budget.remaining(clock) / left, ..budget };
            asked = true;
            match self.ask(link, clock, share).await {
                Ok(fetched) => {
                    self.note_answer(kind, &failures);
                    return Ok(fetched);
                }
                Err(error) => {
                    self.note_failure(kind, &error, clock.now());
                    failures.push((kind, error));
                }
            }
        }
        let outlooks = failures.iter().map(|(kind, error)| (*kind, error.outlook())).collect();
        let message = format!("none of the {} enabled providers gave a credential", failures.len());
        let errors = failures.into_iter().map(|(_, error)| error).collect();
        Err(ChainFailure { error: Error::together(ErrorCode::FetchAllFailed, message, errors), outlooks, asked })
    }

    /// Says that what caches on the way to the backends hold may be out of date: the next fetch passes them by.
    pub fn pass_caches(&self) {
        self.links.iter().for_each(|link| link.provider.pass_caches());
    }

    /// Forgets failures, so that the next fetch asks every provider.
    pub fn forget_failures(&self) {
        self.health.store(Arc::default());
    }

    /// When any provider may be asked: zero where one of them is not known to be down.
    pub fn next_attempt(&self) -> Duration {
        let health = self.health.load();
        let until = |link: &Link| {
            let down = health.down.iter().find(|down| down.provider == link.provider.kind());
            down.map_or(Duration::ZERO, |down| down.until)
        };
        self.links.iter().map(until).min().unwrap_or_default()
    }

    async fn ask(&self, link: &Link, clock: &dyn Clock, budget: Budget) -> Result<Fetched> {
        let kind = link.provider.kind();
        let started = clock.now();
        let mut last = None;
        let attempts = retrying(clock, budget, async |_| {
            let result = unbroken(link.provider.fetch_secret(clock), kind).await;
            last = result.as_ref().err().map(Error::code);
            result
        });
        let total = budget.remaining(clock);
        let in_time = match select(pin!(attempts), clock.timer(total)).await {
            Either::Left((result, _)) => Some(result),
            Either::Right(_) => None,
        };
        let took = clock.now().saturating_sub(started).as_millis() as u64;
        let payload = in_time.unwrap_or_else(|| Err(timed_out(link.provider.as_ref(), total, last)));
        match &payload {
            Ok(payload) => log::debug!(target: "mlflow_secrets_auth.fetch", event = "fetched", provider = kind.name(),
                duration_ms = took; "{} gave the secret {} after {took} ms", kind.name(), payload.location),
            Err(error) => {
                log::debug!(target: "mlflow_secrets_auth.fetch", event = "provider_failed", provider = kind.name(),
                duration_ms = took, code = error.code().as_str(); "{} failed after {took} ms: {}", kind.name(), error.code())
            }
        }
        self.read(link, payload?, clock.calendar())
    }

    fn read(&self, link: &Link, payload: SecretPayload, now: SystemTime) -> Result<Fetched> {
        let credential = Credential::read(&payload.text, link.auth_mode, &self.header_name)?;
        let fields = if credential.fields.is_empty() { "plain text".to_owned() } else { credential.fields.join(", ") };
        log::debug!(target: "mlflow_secrets_auth.fetch", event = "secret_read", fields = fields.as_str(),
            mode = link.auth_mode.as_str(); "read the secret ({fields}) in {} mode", link.auth_mode.as_str());
        let ends = [credential.expires_at, payload.expires_at].into_iter().flatten().min();
        // A time that is past counts as nothing left: our clock may be wrong, so the server has the last word.
        let until_end = ends.map(|end| end.duration_since(now).unwrap_or(Duration::ZERO));
        let remaining = [until_end, payload.lease].into_iter().flatten().min();
        Ok(Fetched {
            credential,
            provider: link.provider.kind(),
            version: payload.version,
            created_at: payload.created_at,
            location: payload.location,
            lifetime: Lifetime { setting: link.ttl, remaining },
        })
    }

    fn remembered(&self, provider: ProviderKind, now: Duration) -> Option<Error> {
        let health = self.health.load();
        health.down.iter().find(|down| down.provider == provider && now < down.until).map(|down| down.error.clone())
    }

    fn note_failure(&self, provider: ProviderKind, error: &Error, now: Duration) {
        self.health.rcu(|health| {
            let mut health = Health::clone(health);
            let before = health.down.iter().position(|down| down.provider == provider).map(|i| health.down.remove(i));
            let window = before.map_or(FIRST_WINDOW, |down| (down.window * 2).min(LAST_WINDOW));
            health.down.push(Down { provider, error: error.clone(), until: now + window, window });
            health
        });
    }

    fn note_answer(&self, provider: ProviderKind, failures: &[(ProviderKind, Error)]) {
        let before = self.health.load().answering;
        self.health.rcu(|health| {
            let mut health = Health::clone(health);
            health.down.retain(|down| down.provider != provider);
            health.answering = Some(provider);
            health
        });
        let first = self.links.first().map(|link| link.provider.kind());
        if before.or(first) == Some(provider) {
            return;
        }
        let reasons: Vec<_> =
            failures.iter().map(|(kind, error)| format!("{}: {}", kind.name(), error.code())).collect();
        let because = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
        log::warn!(target: "mlflow_secrets_auth.chain", event = "switched", provider = provider.name();
            "credentials now come from {}{because}", provider.name());
    }
}

/// A provider that breaks down, as the SDKs do on some input, has failed like any other, and the next one is asked.
async fn unbroken<T>(mut future: BoxFuture<'_, Result<T>>, provider: ProviderKind) -> Result<T> {
    poll_fn(|context| {
        // After a panic the future is not polled again, so nothing half-changed is seen.
        let poll = AssertUnwindSafe(|| future.as_mut().poll(context));
        catch_unwind(poll).unwrap_or_else(|_| Poll::Ready(Err(broken(provider))))
    })
    .await
}

fn broken(provider: ProviderKind) -> Error {
    Error::new(
        ErrorCode::FetchInternal,
        format!("a component broke down while fetching the secret from {}", provider.name()),
        "run `mlflow-secrets-auth doctor`, and report this with the output of `mlflow-secrets-auth info`",
    )
}

fn timed_out(provider: &dyn Provider, total: Duration, last: Option<ErrorCode>) -> Error {
    let doing = provider.waiting_for().map(|what| format!("; it was waiting for {what}")).unwrap_or_default();
    let before = last.map(|code| format!("; the attempt before ended in {code}")).unwrap_or_default();
    let name = provider.kind().name();
    Error::new(
        ErrorCode::FetchTimeout,
        format!("{name} gave no credential within {:.1} s{before}{doing}", total.as_secs_f64()),
        "check that this machine reaches the backend, or raise MLFLOW_SECRETS_TIMEOUT_SEC",
    )
}
