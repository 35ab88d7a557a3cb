//! From a URL to headers.
//!
//! | # | the request's URL | what happens |
//! |---|---|---|
//! | 1 | is odd | `url.refused`; nothing is sent |
//! | 2 | has an origin that is not allowed | goes on without our header; one WARNING per host; no backend call |
//! | 3 | is plain http, which is not permitted for it | `host.plain_http`; nothing is sent |
//! | 4 | else | the credential is fetched, or taken from the cache; where it can't be had, `MLFLOW_SECRETS_ON_ERROR` decides |

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;

use crate::allowlist::Verdict;
use crate::cache::{Cached, CredentialCache, FetchLimits};
use crate::chain::ProviderChain;
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorCode, Result};
use crate::origin::{Origin, Scheme};
use crate::runtime::Interrupt;
use crate::settings::{FetchSettings, OnError, Settings};

/// How many configurations keep a credential at a time.
const MAX_CACHES: usize = 64;

/// Each configuration's credential, oldest first.
type Caches = Vec<(FetchSettings, Arc<CredentialCache>)>;

/// How many warnings are remembered as told.
const MAX_TOLD: usize = 1000;

/// What credentials come from: the configured backends, or what a test put in their place.
pub trait Backing: Send + Sync {
    /// The providers that `settings` name.
    fn chain(&self, settings: &FetchSettings) -> ProviderChain;

    /// The clock that credentials age by.
    fn clock(&self) -> Arc<dyn Clock>;
}

/// The backends themselves.
struct Configured;

impl Backing for Configured {
    fn chain(&self, settings: &FetchSettings) -> ProviderChain {
        ProviderChain::new(settings)
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(SystemClock)
    }
}

/// The caches over one backing.
pub struct Shelf {
    backing: Box<dyn Backing>,
    caches: ArcSwap<Caches>,
    /// The warnings that were logged, so that none is logged with every request.
    told: ArcSwap<HashSet<String>>,
}

impl Shelf {
    fn new(backing: Box<dyn Backing>) -> Arc<Self> {
        Arc::new(Self { backing, caches: ArcSwap::default(), told: ArcSwap::default() })
    }
}

static CONFIGURED: LazyLock<Arc<Shelf>> = LazyLock::new(|| Shelf::new(Box::new(Configured)));
static CURRENT: LazyLock<ArcSwap<Shelf>> = LazyLock::new(|| ArcSwap::new(Arc::clone(&CONFIGURED)));
static REPLACEMENTS: AtomicU64 = AtomicU64::new(0);

/// Tells the URLs whose origins may get the credential when there is no allowlist: MLflow's tracking and registry URIs,
/// and for a user's own request that request's.
pub type OwnUrls<'a> = &'a dyn Fn() -> Vec<String>;

/// What the allowlist, and the rule about plain http, say about an origin.
#[derive(Clone, Debug)]
pub enum Decision {
    /// It may get the credential.
    Permitted,
    /// The request goes on without it.
    NotAllowed,
    /// The request must not be sent.
    Refused(Error),
}

/// The way of a request, for one state of the settings.
pub struct Authorizer {
    settings: Settings,
    cache: Arc<CredentialCache>,
}

impl Authorizer {
    /// An authorizer for `settings`. Equal settings share one credential, process-wide.
    pub fn new(settings: Settings) -> Self {
        let cache = shared_cache(&settings.fetch);
        Self::with_cache(settings, cache)
    }

    /// An authorizer with a cache of its own.
    pub fn with_cache(settings: Settings, cache: Arc<CredentialCache>) -> Self {
        Self { settings, cache }
    }

    /// The credential for a request to `url`, or `None` where the request goes on without one.
    ///
    /// # Errors
    /// Those of the table above; [`ErrorCode::FetchInterrupted`].
    pub fn authorize(&self, url: &str, own: OwnUrls<'_>, interrupt: Interrupt<'_>) -> Result<Option<Arc<Cached>>> {
        let origin = Origin::of(url)?;
        match self.decide(&origin, own) {
            Decision::Refused(error) => Err(error),
            Decision::NotAllowed => {
                self.warn_not_allowed(&origin);
                Ok(None)
            }
            Decision::Permitted => self.credential(interrupt),
        }
    }

    /// Steps 2 and 3, which depend on the origin alone.
    pub fn decide(&self, origin: &Origin, own: OwnUrls<'_>) -> Decision {
        let access = &self.settings.access;
        let permits_http = match access.allowlist.as_ref().map(|allowlist| allowlist.verdict(origin)) {
            Some(Verdict::Allowed { permits_http, .. }) => permits_http,
            Some(Verdict::NotAllowed { .. }) => return Decision::NotAllowed,
            None if own().iter().any(|url| Origin::of_setting(url).is_ok_and(|own| own == *origin)) => false,
            None => return Decision::NotAllowed,
        };
        if origin.scheme() == Scheme::Https || origin.is_loopback() || permits_http || access.allow_http {
            return Decision::Permitted;
        }
        Decision::Refused(Error::new(
            ErrorCode::PlainHttp,
            format!("the credential would go to {origin} over plain http, for everybody on the way to read"),
            format!(
                "use https; or, to permit it, put {} or http://{} into MLFLOW_SECRETS_ALLOWED_HOSTS, or set MLFLOW_SECRETS_ALLOW_HTTP=true",
                origin.host(),
                origin.host()
            ),
        ))
    }

    /// Step 4.
    ///
    /// # Errors
    /// As [`CredentialCache::get`], unless `MLFLOW_SECRETS_ON_ERROR` is `skip`.
    pub fn credential(&self, interrupt: Interrupt<'_>) -> Result<Option<Arc<Cached>>> {
        self.judge(self.cache.get(interrupt))
    }

    /// What a fetch's outcome means to a request, as `MLFLOW_SECRETS_ON_ERROR` says.
    ///
    /// # Errors
    /// As [`credential`](Self::credential).
    pub fn judge(&self, outcome: Result<Arc<Cached>>) -> Result<Option<Arc<Cached>>> {
        match outcome {
            Ok(cached) => Ok(Some(cached)),
            Err(error) if error.code() == ErrorCode::FetchInterrupted => Err(error),
            Err(error) if self.settings.access.on_error == OnError::Skip => {
                log::error!(target: "mlflow_secrets_auth.auth", event = "skipped", code = error.code().as_str();
                    "the request goes on without a credential, as MLFLOW_SECRETS_ON_ERROR=skip says: {error}");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Logs what the settings deserve a warning for, each once per process.
    pub fn warn_of_settings(&self) {
        for notice in self.settings.notices.iter().filter(|notice| is_news(notice)) {
            log::warn!(target: "mlflow_secrets_auth.settings", event = "notice"; "{notice}");
        }
    }

    /// Logs that `origin` gets nothing, once per host.
    pub fn warn_not_allowed(&self, origin: &Origin) {
        let host = origin.host();
        let why = match self.settings.access.allowlist {
            Some(_) => "MLFLOW_SECRETS_ALLOWED_HOSTS has no pattern for it",
            None => {
                "it is neither MLflow's tracking nor its registry server; to permit it, name it in MLFLOW_SECRETS_ALLOWED_HOSTS"
            }
        };
        if is_news(&format!("{host}: {why}")) {
            log::warn!(target: "mlflow_secrets_auth.auth", event = "not_allowed", host = host;
                "no credential for {origin}: {why}");
        }
    }

    /// The settings that it works by.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The credential's cache.
    pub fn cache(&self) -> &Arc<CredentialCache> {
        &self.cache
    }
}

/// Whether `warning` is told for the first time.
fn is_news(warning: &str) -> bool {
    let shelf = CURRENT.load();
    if shelf.told.load().contains(warning) {
        return false;
    }
    shelf.told.rcu(|told| {
        let mut told = if told.len() < MAX_TOLD { HashSet::clone(told) } else { HashSet::new() };
        told.insert(warning.to_owned());
        told
    });
    true
}

/// Forgets all credentials, rejections, failures and told warnings of this process; not logins.
pub fn clear() {
    caches().iter().for_each(|cache| cache.clear());
    CURRENT.load().told.store(Arc::default());
}

/// The cache of a configuration; a new one the first time.
fn shared_cache(settings: &FetchSettings) -> Arc<CredentialCache> {
    let find = |caches: &[(FetchSettings, Arc<CredentialCache>)]| {
        caches.iter().find(|(known, _)| known == settings).map(|(_, cache)| Arc::clone(cache))
    };
    let shelf = CURRENT.load_full();
    if let Some(cache) = find(&shelf.caches.load()) {
        return cache;
    }
    let limits = FetchLimits {
        max_retries: settings.max_retries,
        timeout: settings.timeout,
        stale_if_error: settings.stale_if_error,
    };
    let fresh = CredentialCache::new(shelf.backing.chain(settings), limits, shelf.backing.clock());
    shelf.caches.rcu(|caches| {
        let mut caches = Vec::clone(caches);
        if find(&caches).is_none() {
            // The oldest makes place; whoever still uses it keeps it.
            let surplus = (caches.len() + 1).saturating_sub(MAX_CACHES);
            caches.drain(..surplus);
            caches.push((settings.clone(), Arc::clone(&fresh)));
        }
        caches
    });
    find(&shelf.caches.load()).unwrap_or(fresh)
}

/// The caches of every configuration that was used, oldest first.
pub fn caches() -> Vec<Arc<CredentialCache>> {
    CURRENT.load().caches.load().iter().map(|(_, cache)| Arc::clone(cache)).collect()
}

/// Puts `backing` in the place of the configured backends, with empty caches, until [`restore_backing`] gets what this
/// returns. `None` where they are replaced already.
pub fn replace_backing(backing: Box<dyn Backing>) -> Option<Arc<Shelf>> {
    let shelf = Shelf::new(backing);
    swap_shelf(&CONFIGURED, &shelf).then_some(shelf)
}

/// Ends what [`replace_backing`] began: the configured backends and their caches are back, as they were.
pub fn restore_backing(replacement: &Arc<Shelf>) {
    swap_shelf(replacement, &CONFIGURED);
}

fn swap_shelf(current: &Arc<Shelf>, new: &Arc<Shelf>) -> bool {
    let swapped = Arc::ptr_eq(&CURRENT.compare_and_swap(current, Arc::clone(new)), current);
    // After the swap: whoever sees the new number finds the new shelf.
    REPLACEMENTS.fetch_add(u64::from(swapped), Ordering::Release);
    swapped
}

/// How often the backing was replaced or restored. An [`Authorizer`] made before the last time works on the old one; read
/// this before making one, to be certain.
pub fn replacements() -> u64 {
    REPLACEMENTS.load(Ordering::Acquire)
}
