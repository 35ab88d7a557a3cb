//! The steps of a fetch: which requests were sent and how they were answered, and which ways to sign in were tried.
//!
//! Each is written to the log at DEBUG, and told to whoever watches the fetch, as `doctor` does.

use std::cell::RefCell;
use std::error::Error as StdError;
use std::fmt;
use std::time::{Duration, Instant};

use url::Url;

use crate::http::TransportFailure;
use crate::provider::ProviderKind;

tokio::task_local! {
    static WATCHED: RefCell<Watched>;
}

/// What a watched fetch has told so far. The times are those of a connection whose request has not ended yet.
#[derive(Default)]
struct Watched {
    steps: Vec<Step>,
    lookup: Option<Duration>,
    connection: Option<Duration>,
}

/// One step.
#[derive(Clone, Debug)]
pub enum Step {
    /// A request to a backend.
    Exchange(Exchange),
    /// A way to sign in.
    SignIn(SignIn),
}

impl Step {
    /// The request, if it is one.
    pub fn as_exchange(&self) -> Option<&Exchange> {
        if let Self::Exchange(exchange) = self { Some(exchange) } else { None }
    }

    /// The way to sign in, if it is one.
    pub fn as_sign_in(&self) -> Option<&SignIn> {
        if let Self::SignIn(sign_in) = self { Some(sign_in) } else { None }
    }
}

/// A request to a backend, and how it ended.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Where it went: scheme, host and port.
    pub to: String,
    /// Its answer's status, or why there was none.
    pub outcome: Result<u16, TransportFailure>,
    /// Finding the name's addresses, where that was needed.
    pub lookup: Option<Duration>,
    /// Making the connection with TLS, look-up included, where that was needed and done.
    pub connection: Option<Duration>,
    /// The whole of it, up to the answer's head.
    pub took: Duration,
}

/// A way to sign in, and how it went.
#[derive(Clone, Debug)]
pub struct SignIn {
    /// In the words of the provider: `environment`, `ManagedIdentityCredential`.
    pub way: String,
    /// Who we are now, or why this way was passed by.
    pub outcome: Result<String, String>,
    /// How long it took.
    pub took: Duration,
}

impl fmt::Display for SignIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Ok(text) | Err(text)) = &self.outcome;
        write!(f, "{} ({} ms): {text}", self.way, self.took.as_millis())
    }
}

/// Runs `fetch`, and tells its steps.
pub async fn watch<T>(fetch: impl Future<Output = T>) -> (T, Vec<Step>) {
    let watched = async {
        let result = fetch.await;
        (result, WATCHED.with(|watched| watched.take().steps))
    };
    WATCHED.scope(RefCell::default(), watched).await
}

/// Whether the running fetch is watched, so that more is worth measuring.
pub(crate) fn is_watched() -> bool {
    WATCHED.try_with(|_| ()).is_ok()
}

/// Notes how long the look-up of a name took.
pub(crate) fn looked_up(took: Duration) {
    let _ = WATCHED.try_with(|watched| watched.borrow_mut().lookup = Some(took));
}

/// Notes how long making a connection took.
pub(crate) fn connected(took: Duration) {
    let _ = WATCHED.try_with(|watched| watched.borrow_mut().connection = Some(took));
}

/// Notes a way to sign in that `provider` tried.
pub(crate) fn tried(provider: ProviderKind, way: &str, outcome: Result<&str, &str>, took: Duration) {
    let ms = took.as_millis() as u64;
    let name = provider.name();
    match outcome {
        Ok(who) => log::debug!(target: "mlflow_secrets_auth.identity", event = "identity_found", provider = name, way,
            identity = who, duration_ms = ms; "{name}: {way} gave {who} ({ms} ms)"),
        Err(why) => {
            log::debug!(target: "mlflow_secrets_auth.identity", event = "identity_passed", provider = name, way,
            reason = why, duration_ms = ms; "{name}: {way} was passed by: {why} ({ms} ms)")
        }
    }
    let _ = WATCHED.try_with(|watched| {
        let outcome = outcome.map(str::to_owned).map_err(str::to_owned);
        watched.borrow_mut().steps.push(Step::SignIn(SignIn { way: way.to_owned(), outcome, took }));
    });
}

/// A request that is on its way. Dropped without an outcome, it counts as given up.
pub(crate) struct Asking {
    provider: ProviderKind,
    method: String,
    to: String,
    path: String,
    began: Instant,
    is_over: bool,
}

/// Notes that `provider` sends a request; what is in the query is left out, it may be secret.
pub(crate) fn asking(provider: ProviderKind, method: &str, url: &Url) -> Asking {
    let (to, path) = (url.origin().ascii_serialization(), url.path().to_owned());
    Asking { provider, method: method.to_owned(), to, path, began: Instant::now(), is_over: false }
}

impl Asking {
    /// Notes the answer's status.
    pub fn answered(mut self, status: u16) {
        self.end(Ok(status));
    }

    /// Notes that there was no answer.
    pub fn failed(mut self, error: &(dyn StdError + 'static)) {
        self.end(Err(TransportFailure::of(error)));
    }

    /// Notes either, of a request that the HTTP client sent.
    pub fn ended(self, answer: &reqwest::Result<reqwest::Response>) {
        match answer {
            Ok(answer) => self.answered(answer.status().as_u16()),
            Err(error) => self.failed(error),
        }
    }

    fn end(&mut self, outcome: Result<u16, TransportFailure>) {
        self.is_over = true;
        let took = self.began.elapsed();
        let ms = took.as_millis() as u64;
        let (name, method, to, path) = (self.provider.name(), self.method.as_str(), self.to.as_str(), &self.path);
        match &outcome {
            Ok(status) => log::debug!(target: "mlflow_secrets_auth.http", event = "request", provider = name,
                method, host = to, path = path.as_str(), status, duration_ms = ms;
                "{name}: {method} {to}{path} was answered with HTTP {status} after {ms} ms"),
            Err(TransportFailure::Tls(why) | TransportFailure::Unreachable(why)) => {
                log::debug!(target: "mlflow_secrets_auth.http", event = "request_failed", provider = name,
                    method, host = to, path = path.as_str(), reason = why.as_str(), duration_ms = ms;
                    "{name}: {method} {to}{path} got no answer within {ms} ms: {why}")
            }
        }
        let _ = WATCHED.try_with(|watched| {
            let mut watched = watched.borrow_mut();
            let (lookup, connection) = (watched.lookup.take(), watched.connection.take());
            watched.steps.push(Step::Exchange(Exchange { to: self.to.clone(), outcome, lookup, connection, took }));
        });
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if !self.is_over {
            self.end(Err(TransportFailure::Unreachable("given up".to_owned())));
        }
    }
}
