//! A clock that stands still until a test moves it, and a provider that answers by script.

#![allow(dead_code)] // Every test program compiles all of this and uses a part.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::BoxFuture;
use log::{Level, LevelFilter, Log, Metadata, Record};
use mlflow_secrets_auth::cache::{CredentialCache, FetchLimits};
use mlflow_secrets_auth::chain::{Link, ProviderChain};
use mlflow_secrets_auth::clock::Clock;
use mlflow_secrets_auth::credential::AuthMode;
use mlflow_secrets_auth::error::{Error, ErrorCode, Outlook, Result};
use mlflow_secrets_auth::provider::{Provider, ProviderKind, SecretPayload};
use mlflow_secrets_auth::secret::SecretString;
use mlflow_secrets_auth::testing::FakeClock;

pub const TTL: Duration = Duration::from_secs(300);
pub const LIMITS: FetchLimits =
    FetchLimits { max_retries: 0, timeout: Duration::from_secs(30), stale_if_error: Duration::from_secs(3600) };

pub fn seconds(number: f64) -> Duration {
    Duration::from_secs_f64(number)
}

/// The crate's own fake clock, without its way to end what hangs: that is left to the real time.
pub struct ManualClock(FakeClock);

impl ManualClock {
    /// At one hour after the boot, without jitter.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(FakeClock::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000))))
    }

    pub fn advance(&self, time: Duration) {
        self.0.advance(time);
    }

    pub fn set_chance(&self, chance: f64) {
        self.0.set_chance(chance);
    }

    /// Every sleep since the last call.
    pub fn take_sleeps(&self) -> Vec<Duration> {
        self.0.take_sleeps()
    }
}

/// The clock as its users hold it.
#[derive(Clone)]
pub struct Shared(pub Arc<ManualClock>);

impl Clock for Shared {
    fn now(&self) -> Duration {
        self.0.0.now()
    }

    fn calendar(&self) -> SystemTime {
        self.0.0.calendar()
    }

    fn chance(&self) -> f64 {
        self.0.0.chance()
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        self.0.0.sleep(time)
    }
}

/// What a scripted provider does when it is asked.
#[derive(Clone)]
pub enum Step {
    /// Gives a secret.
    Secret(SecretPayload),
    /// Gives a secret after some real time, as a network does.
    Slowly(Duration, SecretPayload),
    /// Gives a secret that no read before gave.
    Mint,
    /// Fails.
    Fail(Error),
    /// Never answers.
    Hang,
    /// Breaks down.
    Panic,
}

/// A backend that follows a script; its last step goes on for ever.
pub struct Script {
    steps: Mutex<VecDeque<Step>>,
    reads: AtomicUsize,
}

impl Script {
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Arc<Self> {
        Arc::new(Self { steps: Mutex::new(steps.into_iter().collect()), reads: AtomicUsize::new(0) })
    }

    /// Another script from here on.
    pub fn now(&self, steps: impl IntoIterator<Item = Step>) {
        *self.steps.lock().unwrap() = steps.into_iter().collect();
    }

    /// How often the backend was asked.
    pub fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }

    fn next(&self) -> Step {
        let mut steps = self.steps.lock().unwrap();
        if steps.len() > 1 { steps.pop_front().unwrap() } else { steps[0].clone() }
    }
}

struct Scripted(ProviderKind, Arc<Script>);

impl Provider for Scripted {
    fn kind(&self) -> ProviderKind {
        self.0
    }

    fn fetch_secret<'a>(&'a self, _: &'a dyn Clock) -> BoxFuture<'a, Result<SecretPayload>> {
        let number = self.1.reads.fetch_add(1, Ordering::SeqCst) + 1;
        let step = self.1.next();
        Box::pin(async move {
            match step {
                Step::Secret(payload) => Ok(payload),
                Step::Slowly(time, payload) => {
                    tokio::time::sleep(time).await;
                    Ok(payload)
                }
                Step::Mint => Ok(payload(&format!("minted-{number}"))),
                Step::Fail(error) => Err(error),
                Step::Hang => std::future::pending().await,
                Step::Panic => panic!("as scripted"),
            }
        })
    }
}

/// A link of a chain, which does what `script` says.
pub fn link(kind: ProviderKind, script: &Arc<Script>) -> Link {
    link_for(kind, script, TTL)
}

pub fn link_for(kind: ProviderKind, script: &Arc<Script>, ttl: Duration) -> Link {
    Link { provider: Box::new(Scripted(kind, Arc::clone(script))), auth_mode: AuthMode::Bearer, ttl }
}

pub fn chain(links: Vec<Link>) -> ProviderChain {
    ProviderChain::of(links, "Authorization")
}

/// A cache in front of one backend.
pub fn cache(clock: &Arc<ManualClock>, script: &Arc<Script>, limits: FetchLimits) -> Arc<CredentialCache> {
    cache_for(clock, script, limits, TTL)
}

pub fn cache_for(
    clock: &Arc<ManualClock>,
    script: &Arc<Script>,
    limits: FetchLimits,
    ttl: Duration,
) -> Arc<CredentialCache> {
    let links = vec![link_for(ProviderKind::Vault, script, ttl)];
    CredentialCache::new(chain(links), limits, Arc::new(Shared(Arc::clone(clock))))
}

pub fn payload(text: &str) -> SecretPayload {
    SecretPayload {
        text: SecretString::from(text),
        version: None,
        created_at: None,
        expires_at: None,
        lease: None,
        location: "here".into(),
    }
}

pub fn secret(text: &str) -> Step {
    Step::Secret(payload(text))
}

pub fn unreachable() -> Step {
    Step::Fail(error(ErrorCode::VaultUnreachable, Outlook::Unreachable))
}

pub fn error(code: ErrorCode, outlook: Outlook) -> Error {
    Error::new(code, "as scripted", "nothing to do").with_outlook(outlook)
}

/// The only header's value.
pub fn value(cached: &mlflow_secrets_auth::cache::Cached) -> String {
    cached.headers.iter().map(|(_, value)| value.to_owned()).collect()
}

/// Waits until `condition` holds; at most ten seconds.
pub fn until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "waited in vain");
        sleep(Duration::from_millis(2));
    }
}

thread_local! {
    static RECORDS: RefCell<Vec<(Level, String)>> = const { RefCell::new(Vec::new()) };
}

/// Keeps the records of each thread apart, so that tests do not see each other's.
struct PerThread;

impl Log for PerThread {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = (record.level(), record.args().to_string());
        RECORDS.with_borrow_mut(|records| records.push(line));
    }

    fn flush(&self) {}
}

/// From here on, what this thread logs is kept.
pub fn record_logs() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        log::set_logger(&PerThread).unwrap();
        log::set_max_level(LevelFilter::Info);
    });
    RECORDS.take();
}

/// The records of this level since the last call of [`record_logs`].
pub fn logged(level: Level) -> Vec<String> {
    RECORDS.with_borrow(|records| records.iter().filter(|(l, _)| *l == level).map(|(_, text)| text.clone()).collect())
}
