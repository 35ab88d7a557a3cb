//! One credential per configuration: TTL, one flight at a time, renewal ahead, bounded stale use, rejections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use crate::chain::{ChainFailure, Fetched, Lifetime, ProviderChain};
use crate::clock::Clock;
use crate::denials::Denials;
use crate::errand::{Errands, Landed, Ticket};
use crate::error::{ErrorCode, Outlook, Result};
use crate::flight::{Leader, Runway, Seat};
use crate::header::{self, AuthHeaders};
use crate::origin::Origin;
use crate::provider::ProviderKind;
use crate::retry::Budget;
use crate::runtime::{Driver, Interrupt, UNINTERRUPTED, internal};

/// With a usable credential in hand, a fetch that fails must not hold requests up for longer than this.
const BUDGET_WITH_STALE: Duration = Duration::from_secs(2);
/// When the backend is read again in the same flight after a 401, counted from the flight's first read.
const READ_AGAIN_AFTER_401: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(1500)];
/// A credential that seems to have expired already (a clock is wrong) is used this long before it is read again.
const LEAST_LIFETIME: Duration = Duration::from_secs(1);

const SILENT: u8 = 0;
const WARNED: u8 = 1;
const ERROR_SHOWN: u8 = 2;

static NEXT_GENERATION: AtomicU64 = AtomicU64::new(1);

/// A credential in the cache.
#[derive(Debug)]
pub struct Cached {
    /// What to set on requests.
    pub headers: AuthHeaders,
    /// Who gave it.
    pub provider: ProviderKind,
    /// The backend's name for its version.
    pub version: Option<String>,
    /// Where it was read, for people.
    pub location: String,
    /// Whether it looks like `user:password` going out as a bearer token.
    pub looks_basic: bool,
    /// Names this credential for as long as its headers stay the same; no two credentials of a process share one.
    pub generation: u64,
    /// A keyed hash that tells credentials apart in logs, for as long as this process lives.
    pub fingerprint: String,
    fetched_at: Duration,
    renew_at: Duration,
    fresh_until: Duration,
    uncached: bool,
}

impl Cached {
    fn new(fetched: Fetched, previous: Option<&Cached>, clock: &dyn Clock) -> Self {
        let now = clock.now();
        let lifetime = lifetime(fetched.lifetime, clock.chance());
        let same = previous.filter(|previous| previous.headers == fetched.credential.headers);
        let generation = same.map_or_else(|| NEXT_GENERATION.fetch_add(1, Ordering::Relaxed), |same| same.generation);
        Self {
            fingerprint: fetched.credential.headers.fingerprint(),
            headers: fetched.credential.headers,
            provider: fetched.provider,
            version: fetched.version,
            location: fetched.location,
            looks_basic: fetched.credential.looks_basic,
            generation,
            fetched_at: now,
            renew_at: now + lifetime.mul_f64(0.8),
            fresh_until: now + lifetime,
            uncached: fetched.lifetime.setting.is_zero(),
        }
    }

    /// Whether it is good for one request only, because caching is off.
    pub(crate) fn is_for_one_request(&self) -> bool {
        self.uncached
    }

    fn is_fresh(&self, now: Duration) -> bool {
        now < self.fresh_until && !self.uncached
    }

    /// How long ago it was fetched.
    pub fn age(&self, clock: &dyn Clock) -> Duration {
        clock.now().saturating_sub(self.fetched_at)
    }

    /// How long it is still fresh; zero where it is stale.
    pub fn expires_in(&self, clock: &dyn Clock) -> Duration {
        self.fresh_until.saturating_sub(clock.now())
    }
}

/// The TTL: the least of the setting and of what is left less the skew, and up to a tenth shorter, so that processes
/// which started together do not come back together.
fn lifetime(bounds: Lifetime, chance: f64) -> Duration {
    let until_expiry =
        bounds.remaining.map(|left| (left - left.mul_f64(0.1).min(Duration::from_secs(30))).max(LEAST_LIFETIME));
    let least = until_expiry.map_or(bounds.setting, |left| left.min(bounds.setting));
    least.mul_f64(1.0 - 0.1 * chance)
}

/// What a cache has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that a cached credential served.
    pub hits: u64,
    /// Requests that had to wait for a fetch.
    pub misses: u64,
    /// Fetches that ended with a credential.
    pub refreshes: u64,
    /// Fetches that failed.
    pub failures: u64,
}

struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    refreshes: AtomicU64,
    failures: AtomicU64,
}

/// What all caches of this process have done, also those that had to make place for others.
static TOTALS: Counters = Counters::new();

/// What all caches of this process have done so far.
pub fn total_counts() -> Counts {
    TOTALS.read()
}

impl Counters {
    const fn new() -> Self {
        Self {
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            refreshes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    /// Counts one, here and in the totals.
    fn count(&self, counter: fn(&Self) -> &AtomicU64) {
        counter(self).fetch_add(1, Ordering::Relaxed);
        counter(&TOTALS).fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            hits: read(&self.hits),
            misses: read(&self.misses),
            refreshes: read(&self.refreshes),
            failures: read(&self.failures),
        }
    }
}

/// How often and how long a fetch may try.
#[derive(Clone, Copy, Debug)]
pub struct FetchLimits {
    /// Retries after the first attempt.
    pub max_retries: u32,
    /// The total deadline.
    pub timeout: Duration,
    /// How long past its TTL a credential may be used while the backend can't be reached.
    pub stale_if_error: Duration,
}

/// The credential of one configuration.
///
/// Reading it takes no lock. Values and rejections survive a fork; the flight and everything below it do not.
pub struct CredentialCache {
    value: ArcSwapOption<Cached>,
    denials: Denials,
    /// How much of the failures since the last success was logged: [`SILENT`], [`WARNED`] or [`ERROR_SHOWN`].
    episode: AtomicU8,
    /// The backend has answered that the credential at hand is no more: it is not used past its TTL.
    disowned: AtomicBool,
    runway: Runway,
    errands: Errands,
    counters: Counters,
    chain: ProviderChain,
    driver: Driver,
    limits: FetchLimits,
    clock: Arc<dyn Clock>,
}

/// What a server said about a credential.
struct Denied<'a> {
    origin: &'a Origin,
    generation: u64,
    status: u16,
}

impl CredentialCache {
    /// A cache in front of `chain`.
    pub fn new(chain: ProviderChain, limits: FetchLimits, clock: Arc<dyn Clock>) -> Arc<Self> {
        // Now, and not in the middle of a fetch: a fork at that moment would leave the child waiting for it.
        header::choose_fingerprint_key();
        Arc::new(Self {
            value: ArcSwapOption::empty(),
            denials: Denials::default(),
            episode: AtomicU8::new(SILENT),
            disowned: AtomicBool::new(false),
            runway: Runway::default(),
            errands: Errands::default(),
            counters: Counters::new(),
            chain,
            driver: Driver::default(),
            limits,
            clock,
        })
    }

    /// The credential while it is fresh. Never waits.
    ///
    /// In the last fifth of the TTL the first caller starts a renewal on a thread of its own and goes on with the
    /// credential at hand.
    pub fn fresh(self: &Arc<Self>) -> Option<Arc<Cached>> {
        let now = self.clock.now();
        let cached = self.value.load_full().filter(|cached| cached.is_fresh(now))?;
        if now >= cached.renew_at {
            self.renew_ahead(now);
        }
        self.counters.count(|counters| &counters.hits);
        Some(cached)
    }

    /// The credential: from the cache while it is fresh, else fetched, by one caller for all.
    ///
    /// # Errors
    /// Those of the providers; [`ErrorCode::FetchTimeout`]; [`ErrorCode::FetchInterrupted`].
    pub fn get(self: &Arc<Self>, interrupt: Interrupt<'_>) -> Result<Arc<Cached>> {
        if let Some(cached) = self.fresh() {
            return Ok(cached);
        }
        self.counters.count(|counters| &counters.misses);
        self.fly(interrupt)
    }

    /// As [`get`](Self::get) where [`fresh`](Self::fresh) has nothing, for a caller that must not wait: `landed` is told
    /// the outcome on another thread, one for all such callers. Whoever drops the ticket is not told; when nobody is left
    /// to be told, the fetch is given up.
    pub fn get_elsewhere(self: &Arc<Self>, landed: Landed) -> Ticket {
        self.counters.count(|counters| &counters.misses);
        let (ticket, is_first) = self.errands.join(landed);
        if is_first {
            let cache = Arc::clone(self);
            let errand = move || cache.errands.work(|interrupt| cache.fly(interrupt));
            if std::thread::Builder::new().name("mlflow-secrets-await".to_owned()).spawn(errand).is_err() {
                self.errands.fail(&internal("the system gives no thread to fetch the secret on"));
            }
        }
        ticket
    }

    /// Leads a flight, or waits for the one that is under way.
    fn fly(self: &Arc<Self>, interrupt: Interrupt<'_>) -> Result<Arc<Cached>> {
        let deadline = self.deadline();
        loop {
            match self.board(interrupt, deadline)? {
                Seat::Leader(leader) => return self.lead(leader, interrupt, deadline, false),
                // Without caching, what another request fetched is not this one's.
                Seat::Follower(Ok(cached)) if cached.uncached => {}
                Seat::Follower(outcome) => return outcome,
            }
        }
    }

    /// Fetches now, past every cache and every fail-fast window.
    ///
    /// # Errors
    /// As [`get`](Self::get); a stale credential is no answer here.
    pub fn refresh(self: &Arc<Self>, interrupt: Interrupt<'_>) -> Result<Arc<Cached>> {
        let deadline = self.deadline();
        loop {
            if let Seat::Leader(leader) = self.board(interrupt, deadline)? {
                self.chain.pass_caches();
                return self.lead(leader, interrupt, deadline, true);
            }
        }
    }

    /// Says that `origin` answered 401 or 403 to the credential `generation`, and returns a different one to try, if
    /// there is one.
    ///
    /// One caller reads the backend for all. A credential that is still the backend's newest is not read again for a
    /// while (401) or before its TTL ends (403), so that permissions that are missing do not become a stream of reads.
    ///
    /// # Errors
    /// Only [`ErrorCode::FetchInterrupted`]: where the backend fails, or another thread is busy with it for longer than
    /// the deadline, the server's own answer is the better news.
    pub fn denied(
        self: &Arc<Self>,
        origin: &Origin,
        generation: u64,
        status: u16,
        interrupt: Interrupt<'_>,
    ) -> Result<Option<Arc<Cached>>> {
        if status == 401 {
            self.denials.reject(generation);
        }
        let deadline = self.deadline();
        loop {
            if let Some(newer) = self.newer_than(generation) {
                return Ok(Some(newer));
            }
            if !self.may_read_again(origin, generation) {
                return Ok(None);
            }
            let leader = match self.board(interrupt, deadline) {
                Ok(Seat::Leader(leader)) => leader,
                Ok(Seat::Follower(_)) => continue,
                Err(error) if error.code() == ErrorCode::FetchTimeout => return Ok(None),
                Err(error) => return Err(error),
            };
            let denied = Denied { origin, generation, status };
            return self.read_after_denial(leader, denied, interrupt, deadline);
        }
    }

    /// Says that `origin` denied `generation` although it was fetched a moment ago: until it changes by itself, it is
    /// not read again on behalf of this origin for a while.
    pub fn denied_when_new(&self, origin: &Origin, generation: u64, status: u16) {
        self.denials.note(origin, generation, status, self.clock.now());
    }

    /// Forgets credential, rejections and failures. A flight that is under way still lands.
    pub fn clear(&self) {
        self.value.store(None);
        self.denials.clear();
        self.episode.store(SILENT, Ordering::Relaxed);
        self.chain.forget_failures();
    }

    /// Waits until the fetch that is under way has ended, if there is one: a renewal ahead of the TTL, for example.
    ///
    /// # Errors
    /// [`ErrorCode::FetchTimeout`]; [`ErrorCode::FetchInterrupted`].
    pub fn settle(&self, interrupt: Interrupt<'_>) -> Result<()> {
        // The right to fetch, where nobody does, is given back at once.
        self.board(interrupt, self.deadline()).map(drop)
    }

    /// The credential at hand, fresh or not.
    pub fn peek(&self) -> Option<Arc<Cached>> {
        self.value.load_full()
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.counters.read()
    }

    /// The clock that it lives by.
    pub fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// The end of a caller's patience, wherever the time goes: waiting for another's fetch, or fetching.
    fn deadline(&self) -> Duration {
        self.clock.now() + self.limits.timeout
    }

    fn board(&self, interrupt: Interrupt<'_>, deadline: Duration) -> Result<Seat> {
        self.runway.board(&*self.clock, deadline, interrupt)
    }

    /// Fetches as the leader of a flight, and lands it.
    fn lead(&self, leader: Leader, interrupt: Interrupt<'_>, deadline: Duration, forced: bool) -> Result<Arc<Cached>> {
        let now = self.clock.now();
        let held = self.value.load_full();
        if let Some(fresh) = held.as_ref().filter(|held| !forced && held.is_fresh(now) && now < held.renew_at) {
            // Another flight landed between our look at the cache and our boarding.
            let outcome = Ok(Arc::clone(fresh));
            leader.land(&outcome);
            return outcome;
        }
        let fallback = held.filter(|held| !forced && self.is_usable_when_stale(held, now));
        let budget = match &fallback {
            Some(_) => {
                let deadline = deadline.min(now + BUDGET_WITH_STALE);
                Budget { attempts: 1, deadline, provider_decides: false }
            }
            None => self.full_budget(deadline),
        };
        let outcome = match self.drive(self.chain.fetch(&*self.clock, budget, forced), interrupt)? {
            Ok(fetched) => Ok(self.store(fetched)),
            Err(failure) => self.fall_back(failure, fallback),
        };
        leader.land(&outcome);
        outcome
    }

    /// Runs a fetch to its end; an error only where it was interrupted.
    fn drive(
        &self,
        fetch: impl Future<Output = std::result::Result<Fetched, ChainFailure>>,
        interrupt: Interrupt<'_>,
    ) -> Result<std::result::Result<Fetched, ChainFailure>> {
        match self.driver.run(async { Ok(fetch.await) }, interrupt) {
            Err(error) if error.code() != ErrorCode::FetchInterrupted => {
                Ok(Err(ChainFailure { error, outlooks: Vec::new(), asked: true }))
            }
            outcome => outcome,
        }
    }

    fn full_budget(&self, deadline: Duration) -> Budget {
        Budget { attempts: self.limits.max_retries + 1, deadline, provider_decides: true }
    }

    fn store(&self, fetched: Fetched) -> Arc<Cached> {
        let previous = self.value.load_full();
        let cached = Arc::new(Cached::new(fetched, previous.as_deref(), &*self.clock));
        self.value.store(Some(Arc::clone(&cached)));
        self.counters.count(|counters| &counters.refreshes);
        let changed = previous.as_ref().is_none_or(|previous| previous.generation != cached.generation);
        log::debug!(target: "mlflow_secrets_auth.cache", event = "stored", provider = cached.provider.name(),
            fingerprint = cached.fingerprint.as_str(), changed;
            "holding the credential {} from {}", cached.fingerprint, cached.provider.name());
        if changed && previous.is_some() {
            log::info!(target: "mlflow_secrets_auth.cache", event = "rotated", provider = cached.provider.name(),
                fingerprint = cached.fingerprint.as_str(); "the credential from {} is another one now", cached.provider.name());
        }
        self.disowned.store(false, Ordering::Relaxed);
        if self.episode.swap(SILENT, Ordering::Relaxed) != SILENT {
            log::info!(target: "mlflow_secrets_auth.cache", event = "recovered", provider = cached.provider.name();
                "credentials can be fetched again, from {}", cached.provider.name());
        }
        cached
    }

    /// The stale credential where the backend that gave it can't be reached, else the failure.
    fn fall_back(&self, failure: ChainFailure, stale: Option<Arc<Cached>>) -> Result<Arc<Cached>> {
        let says = |provider| failure.outlooks.iter().find(|(kind, _)| *kind == provider).map(|(_, outlook)| *outlook);
        let source = self.value.load().as_ref().map(|held| held.provider);
        if source.and_then(says) == Some(Outlook::Final) {
            self.disowned.store(true, Ordering::Relaxed);
        }
        let stale = stale.filter(|stale| says(stale.provider) == Some(Outlook::Unreachable));
        if failure.asked {
            self.counters.count(|counters| &counters.failures);
        }
        let next = self.chain.next_attempt().saturating_sub(self.clock.now());
        let level = if stale.is_some() { WARNED } else { ERROR_SHOWN };
        let first = self.episode.fetch_max(level, Ordering::Relaxed) < level;
        match stale {
            Some(stale) => {
                if first {
                    log::warn!(target: "mlflow_secrets_auth.cache", event = "stale", provider = stale.provider.name(),
                        code = failure.error.code().as_str(), fingerprint = stale.fingerprint.as_str();
                        "going on with the credential fetched {} s ago, because it can't be fetched again: {}",
                        stale.age(&*self.clock).as_secs(), failure.error);
                }
                Ok(stale)
            }
            None => {
                if first {
                    log::error!(target: "mlflow_secrets_auth.cache", event = "fetch_failed",
                        code = failure.error.code().as_str(), next_attempt_ms = next.as_millis() as u64;
                        "no credential can be fetched (next try in {:.1} s): {}", next.as_secs_f64(), failure.error);
                }
                Err(failure.error)
            }
        }
    }

    fn is_usable_when_stale(&self, held: &Cached, now: Duration) -> bool {
        !held.uncached
            && now < held.fresh_until + self.limits.stale_if_error
            && !self.disowned.load(Ordering::Relaxed)
            && !self.denials.is_rejected(held.generation)
    }

    fn renew_ahead(self: &Arc<Self>, now: Duration) {
        if now < self.chain.next_attempt() {
            return;
        }
        let Some(leader) = self.runway.board_if_free() else { return };
        let cache = Arc::clone(self);
        let renewal = move || {
            // Failures are remembered and logged; the credential at hand is good until its TTL ends.
            let _ = cache.lead(leader, UNINTERRUPTED, cache.deadline(), false);
        };
        // Where the system gives no thread, the leader is dropped and the next caller tries.
        let _ = std::thread::Builder::new().name("mlflow-secrets-renew".to_owned()).spawn(renewal);
    }

    fn newer_than(&self, generation: u64) -> Option<Arc<Cached>> {
        self.value.load_full().filter(|cached| cached.generation > generation)
    }

    fn may_read_again(&self, origin: &Origin, generation: u64) -> bool {
        let now = self.clock.now();
        let fresh = self.value.load().as_ref().is_some_and(|cached| cached.is_fresh(now));
        self.denials.may_read_again(origin, generation, now, fresh)
    }

    fn read_after_denial(
        &self,
        leader: Leader,
        Denied { origin, generation, status }: Denied<'_>,
        interrupt: Interrupt<'_>,
        deadline: Duration,
    ) -> Result<Option<Arc<Cached>>> {
        if let Some(newer) = self.newer_than(generation) {
            leader.land(&Ok(Arc::clone(&newer)));
            return Ok(Some(newer));
        }
        let first_time = !self.denials.is_noted(origin, generation);
        let repeats: &[Duration] = if status == 401 && first_time { &READ_AGAIN_AFTER_401 } else { &[] };
        let denied = self.value.load_full().map(|cached| cached.headers.clone());
        let fetch = self.fetch_until_changed(denied.as_ref(), repeats, deadline);
        let outcome = match self.drive(fetch, interrupt)? {
            Ok(fetched) => Ok(self.store(fetched)),
            Err(failure) => self.fall_back(failure, None),
        };
        let changed = outcome.as_ref().ok().filter(|cached| cached.generation > generation).cloned();
        if changed.is_none() {
            // Before landing: the followers look at this next.
            self.denied_when_new(origin, generation, status);
        }
        leader.land(&outcome);
        Ok(changed)
    }

    /// Reads until the headers are no longer `denied`, at once and then after each of `repeats`.
    async fn fetch_until_changed(
        &self,
        denied: Option<&AuthHeaders>,
        repeats: &[Duration],
        deadline: Duration,
    ) -> std::result::Result<Fetched, ChainFailure> {
        let started = self.clock.now();
        let budget = self.full_budget(deadline);
        let mut repeats = repeats.iter();
        loop {
            self.chain.pass_caches();
            let result = self.chain.fetch(&*self.clock, budget, false).await;
            let unchanged = matches!(&result, Ok(fetched) if Some(&fetched.credential.headers) == denied);
            let next = repeats.next().map(|after| started + *after).filter(|next| unchanged && *next < deadline);
            let Some(next) = next else { return result };
            self.clock.sleep(next.saturating_sub(self.clock.now())).await;
        }
    }
}
