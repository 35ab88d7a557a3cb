//! A backend and a clock for the tests of programs that use this crate: [`FakeBackend::install`] puts them in the place of
//! the configured ones, below the cache, so that everything above works as it does in earnest.
//!
//! Nothing here takes a lock, so that a forked child may go on with what it inherits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;

use crate::authorizer::{self, Backing, Shelf};
use crate::chain::{Link, ProviderChain};
use crate::clock::Clock;
use crate::error::{Error, ErrorCode, ErrorKind, Result};
use crate::provider::{Provider, ProviderKind, SecretPayload};
use crate::secret::SecretString;
use crate::settings::FetchSettings;

/// Where [`Clock::now`] of a fake clock begins: some time after the boot, as on any machine.
const START: Duration = Duration::from_secs(3600);

/// A clock that stands still until somebody moves it. A sleep is over at once, and has taken its time.
///
/// The monotonic clock and the calendar move together. Clones are the same clock.
#[derive(Clone)]
pub struct FakeClock(Arc<Hands>);

struct Hands {
    calendar_at_start: SystemTime,
    /// In nanoseconds.
    passed: AtomicU64,
    /// The bits of an `f64`.
    chance: AtomicU64,
    sleeps: ArcSwap<Vec<Duration>>,
}

impl FakeClock {
    /// A clock whose calendar shows `calendar`. Without jitter.
    pub fn new(calendar: SystemTime) -> Self {
        Self(Arc::new(Hands {
            calendar_at_start: calendar,
            passed: AtomicU64::new(0),
            chance: AtomicU64::new(0.0_f64.to_bits()),
            sleeps: ArcSwap::default(),
        }))
    }

    /// How far it has moved since it was made.
    pub fn passed(&self) -> Duration {
        Duration::from_nanos(self.0.passed.load(Ordering::SeqCst))
    }

    /// Lets `time` pass.
    pub fn advance(&self, time: Duration) {
        // Five hundred years fit in; whoever wants more stays there.
        self.0.passed.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 2), Ordering::SeqCst);
    }

    /// What [`Clock::chance`] says from now on: 0.0 for no jitter and no back-off, up to 1.0.
    pub fn set_chance(&self, chance: f64) {
        self.0.chance.store(chance.to_bits(), Ordering::SeqCst);
    }

    /// Every sleep since the last call: the waits before retries.
    pub fn take_sleeps(&self) -> Vec<Duration> {
        Vec::clone(&self.0.sleeps.swap(Arc::default()))
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Duration {
        START + self.passed()
    }

    fn calendar(&self) -> SystemTime {
        self.0.calendar_at_start + self.passed()
    }

    fn chance(&self) -> f64 {
        f64::from_bits(self.0.chance.load(Ordering::SeqCst))
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        let clock = self.clone();
        Box::pin(async move {
            clock.0.sleeps.rcu(|sleeps| sleeps.iter().copied().chain([time]).collect::<Vec<_>>());
            clock.advance(time);
        })
    }

    fn timer(&self, time: Duration) -> BoxFuture<'static, ()> {
        // Asked only while something else hangs: then there is nothing to wait for but the end of the time.
        let clock = self.clone();
        Box::pin(async move { clock.advance(time) })
    }
}

/// How a fake backend fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The error that is raised, with its usual outlook. [`ErrorCode::FetchTimeout`] is a backend that never answers.
    pub code: ErrorCode,
    /// How many reads fail before it recovers by itself; `None`: all, until it is told otherwise.
    pub times: Option<u32>,
    /// How long it asks to wait before the next attempt.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// The codes of what can go wrong in a backend, or with the secret that it holds.
    pub fn codes() -> impl Iterator<Item = ErrorCode> {
        ErrorCode::ALL.iter().copied().filter(|code| match code.kind() {
            // A fetch's end that is not a backend's doing.
            ErrorKind::Fetch => !matches!(code, ErrorCode::FetchInterrupted | ErrorCode::FetchAllFailed),
            ErrorKind::Format => true,
            // Those that only signing in brings to light.
            ErrorKind::Configuration => code.as_str().starts_with("aws."),
            ErrorKind::HostNotAllowed | ErrorKind::Rejected => false,
        })
    }
}

/// A secret in a fake backend.
#[derive(Clone, Debug)]
pub struct FakeSecret {
    /// The text: plain, or a JSON object.
    pub text: SecretString,
    /// The backend's name for this version.
    pub version: String,
    /// When the backend says that it ends.
    pub expires_at: Option<SystemTime>,
    /// For how long each read lends it.
    pub lease: Option<Duration>,
}

/// What one kind of provider answers.
#[derive(Clone)]
struct Answer {
    secret: FakeSecret,
    failure: Option<Failure>,
}

impl Answer {
    /// The answer to the read after this one.
    fn after_a_read(&self) -> Self {
        let failure = self.failure.and_then(|failure| match failure.times {
            Some(times) => (times > 1).then(|| Failure { times: Some(times - 1), ..failure }),
            None => Some(failure),
        });
        Self { secret: self.secret.clone(), failure }
    }
}

struct Room {
    answer: ArcSwap<Answer>,
    reads: AtomicU64,
}

/// Stands for every enabled provider's backend, and has a clock of its own. Clones are the same backend.
#[derive(Clone)]
pub struct FakeBackend {
    rooms: Arc<[Room]>,
    clock: FakeClock,
    shelf: Arc<ArcSwap<Option<Arc<Shelf>>>>,
}

impl FakeBackend {
    /// A backend that gives `secret` to everybody, at the time that the system's calendar shows.
    pub fn new(secret: &FakeSecret) -> Self {
        let answer = Answer { secret: secret.clone(), failure: None };
        let room = |_: &ProviderKind| Room { answer: ArcSwap::from_pointee(answer.clone()), reads: AtomicU64::new(0) };
        Self {
            rooms: ProviderKind::ALL.iter().map(room).collect(),
            clock: FakeClock::new(SystemTime::now()),
            shelf: Arc::default(),
        }
    }

    /// Takes the place of every backend, for the whole process, with nothing in the cache. What authorizers that exist
    /// already hold is left alone until [`uninstall`](Self::uninstall). False where another fake is in place.
    pub fn install(&self) -> bool {
        let Some(shelf) = authorizer::replace_backing(Box::new(self.clone())) else { return false };
        self.shelf.store(Arc::new(Some(shelf)));
        true
    }

    /// Gives way to the real backends. Nothing that was fetched here stays behind.
    pub fn uninstall(&self) {
        if let Some(shelf) = &*self.shelf.swap(Arc::default()) {
            authorizer::restore_backing(shelf);
        }
    }

    /// Its clock.
    pub fn clock(&self) -> &FakeClock {
        &self.clock
    }

    /// From now on `provider`, or every one, holds `secret`.
    pub fn put(&self, secret: &FakeSecret, provider: Option<ProviderKind>) {
        for room in self.rooms_of(provider) {
            room.answer.rcu(|answer| Answer { secret: secret.clone(), failure: answer.failure });
        }
    }

    /// From now on reads from `provider`, or from every one, fail; `None` ends that.
    pub fn fail(&self, failure: Option<Failure>, provider: Option<ProviderKind>) {
        for room in self.rooms_of(provider) {
            room.answer.rcu(|answer| Answer { secret: answer.secret.clone(), failure });
        }
    }

    /// How often `provider`, or any, was asked for the secret, attempts that failed included.
    pub fn reads(&self, provider: Option<ProviderKind>) -> u64 {
        self.rooms_of(provider).map(|room| room.reads.load(Ordering::SeqCst)).sum()
    }

    fn rooms_of(&self, provider: Option<ProviderKind>) -> impl Iterator<Item = &Room> {
        let pairs = ProviderKind::ALL.iter().zip(self.rooms.iter());
        pairs.filter(move |(kind, _)| provider.is_none_or(|wanted| wanted == **kind)).map(|(_, room)| room)
    }

    fn answer(&self, kind: ProviderKind) -> Arc<Answer> {
        let room = &self.rooms[kind as usize];
        room.reads.fetch_add(1, Ordering::SeqCst);
        room.answer.rcu(|answer| answer.after_a_read())
    }
}

impl Backing for FakeBackend {
    fn chain(&self, settings: &FetchSettings) -> ProviderChain {
        let links = settings.providers.iter().map(|provider| Link {
            provider: Box::new(FakeProvider { kind: provider.kind(), backend: self.clone() }),
            auth_mode: provider.auth_mode(),
            ttl: provider.ttl(),
        });
        ProviderChain::of(links.collect(), &settings.header_name)
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(self.clock.clone())
    }
}

struct FakeProvider {
    kind: ProviderKind,
    backend: FakeBackend,
}

impl Provider for FakeProvider {
    fn kind(&self) -> ProviderKind {
        self.kind
    }

    fn fetch_secret<'a>(&'a self, _: &'a dyn Clock) -> BoxFuture<'a, Result<SecretPayload>> {
        Box::pin(async {
            let answer = self.backend.answer(self.kind);
            let location = format!("a fake {}", self.kind.name());
            match answer.failure {
                None => Ok(SecretPayload {
                    text: answer.secret.text.clone(),
                    version: Some(answer.secret.version.clone()),
                    created_at: None,
                    expires_at: answer.secret.expires_at,
                    lease: answer.secret.lease,
                    location,
                }),
                Some(Failure { code: ErrorCode::FetchTimeout, .. }) => std::future::pending().await,
                Some(Failure { code, retry_after, .. }) => {
                    let hint = "this is not a real failure: the test asked for it";
                    Err(Error::new(code, format!("{location} fails, as the test says"), hint)
                        .with_retry_after(retry_after))
                }
            }
        })
    }

    fn waiting_for(&self) -> Option<String> {
        Some(format!("a fake {}", self.kind.name()))
    }
}
