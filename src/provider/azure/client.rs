//! One exchange with Azure: the SDK's pipelines over our HTTP client, and what an answer means.
//!
//! The SDK repeats what fails by its own rules, reads answers of any size, and loses the status of an answer that it can't
//! parse. So every failure leaves this transport as a [`Failure`], which the SDK passes on without a repetition and which is
//! found again among the sources of its error.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use azure_core::error::ErrorKind;
use azure_core::http::headers::Headers;
use azure_core::http::{AsyncRawResponse, ClientOptions, HttpClient, Request, RetryOptions, Transport};
use azure_core::time::{OffsetDateTime, parse_rfc7231};
use futures_util::StreamExt as _;
use serde_json::Value;

use crate::error::{Error, ErrorCode};
use crate::http::{self, TransportFailure};
use crate::provider::ProviderKind;
use crate::steps;

/// Whom an exchange is with.
#[derive(Clone, Debug, PartialEq)]
pub enum Peer {
    /// Key Vault at this address.
    Vault(String),
    /// Microsoft Entra ID at this address.
    Entra(String),
    /// The endpoint at this address that gives a managed identity its tokens.
    Identity(String),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vault(address) => write!(f, "Key Vault at {address}"),
            Self::Entra(address) => write!(f, "Microsoft Entra ID at {address}"),
            Self::Identity(address) => write!(f, "the managed identity endpoint at {address}"),
        }
    }
}

/// What the exchanges of a provider showed on the way.
#[derive(Default)]
pub struct Seen {
    /// Whom we are waiting for, or whom we last heard.
    pub waiting_for: ArcSwapOption<String>,
    /// What the vault asked for, when it last asked.
    pub challenge: ArcSwapOption<Challenge>,
    /// The vault's clock, when it last answered.
    pub vault_time: ArcSwapOption<SystemTime>,
}

/// A vault's demand for a token.
#[derive(Debug, PartialEq)]
pub struct Challenge {
    /// The vault's tenant.
    pub tenant: Option<String>,
    /// The host of what the token must be for.
    pub resource_host: Option<String>,
}

impl Challenge {
    /// Reads `Bearer authorization="https://login…/TENANT", resource="https://vault…"`.
    fn read(header: &str) -> Self {
        let host = |value: &str| Some(url::Url::parse(value).ok()?.host_str()?.to_owned());
        let tenant = parameter(header, "authorization").and_then(|url| {
            let tenant = url.trim_end_matches('/').rsplit('/').next()?;
            let plain = tenant.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
            (plain && !tenant.is_empty()).then(|| tenant.to_owned())
        });
        let resource = parameter(header, "resource").or_else(|| parameter(header, "scope"));
        Self { tenant, resource_host: resource.and_then(host) }
    }
}

/// The value of `name="value"` in a challenge.
fn parameter<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let start = header.match_indices(name).find(|(at, _)| header[at + name.len()..].starts_with("=\""))?.0;
    header[start + name.len() + 2..].split('"').next()
}

/// Why an exchange failed.
pub struct Failure {
    /// Whom it was with.
    pub peer: Peer,
    /// What happened.
    pub kind: FailureKind,
}

/// See [`Failure`].
pub enum FailureKind {
    /// There was no answer.
    Transport(TransportFailure),
    /// The answer says no.
    Status {
        /// The HTTP status.
        status: u16,
        /// The body, where it is JSON. Never shown.
        body: Option<Value>,
        /// How long we should wait.
        retry_after: Option<Duration>,
    },
    /// The answer says yes, but is not JSON, or larger than any that we want.
    Odd(&'static str),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the exchange with {} failed", self.peer)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StdError for Failure {}

impl Failure {
    /// The HTTP status, where there was an answer.
    pub fn status(&self) -> Option<u16> {
        match self.kind {
            FailureKind::Status { status, .. } => Some(status),
            _ => None,
        }
    }

    /// The text at `pointer` in the answer's body.
    pub fn text_at(&self, pointer: &str) -> Option<&str> {
        match &self.kind {
            FailureKind::Status { body, .. } => body.as_ref()?.pointer(pointer)?.as_str(),
            _ => None,
        }
    }

    /// Entra's number for what is wrong, as in AADSTS700016.
    pub fn aadsts(&self) -> Option<u64> {
        let FailureKind::Status { body: Some(body), .. } = &self.kind else { return None };
        let listed = body.pointer("/error_codes/0").and_then(Value::as_u64);
        let texts = ["/error_description", "/message", "/Message", "/error/message"];
        listed.or_else(|| texts.iter().find_map(|text| aadsts_in(body.pointer(text)?.as_str()?)))
    }

    /// The error for a failure that has no meaning of its own to the caller.
    pub fn error(&self) -> Error {
        let peer = &self.peer;
        match &self.kind {
            FailureKind::Transport(TransportFailure::Tls(problem)) => Error::new(
                ErrorCode::AzureTls,
                format!("the TLS connection to {peer} failed: {problem}"),
                "name your company's CA certificates in SSL_CERT_FILE (a PEM file), where a proxy opens TLS connections",
            ),
            FailureKind::Transport(TransportFailure::Unreachable(reason)) => self.unreachable(reason),
            FailureKind::Odd(what) => self.unexpected(what),
            FailureKind::Status { status, retry_after, .. } => match status {
                429 => Error::new(
                    ErrorCode::AzureThrottled,
                    format!("{peer} asks for fewer requests (HTTP 429)"),
                    "raise MLFLOW_AZURE_TTL_SEC, so that the secret is read less often",
                )
                .with_retry_after(*retry_after),
                408 | 500..=599 => Error::new(
                    ErrorCode::AzureUnavailable,
                    format!("{peer} could not answer (HTTP {status})"),
                    "look at https://azure.status.microsoft, and at the proxy if there is one on the way",
                )
                .with_retry_after(*retry_after),
                _ => self.unexpected(&format!("it answered with HTTP {status}")),
            },
        }
    }

    fn unreachable(&self, reason: &str) -> Error {
        let (code, hint) = match self.peer {
            Peer::Vault(_) => (
                ErrorCode::AzureUnreachable,
                "check MLFLOW_AZURE_KEY_VAULT_URL, and that this machine may reach it: private endpoint, DNS, proxy, firewall",
            ),
            Peer::Entra(_) => (
                ErrorCode::AzureSignInUnreachable,
                "check that this machine may reach it (proxy, firewall), and AZURE_AUTHORITY_HOST where that is set",
            ),
            Peer::Identity(_) => (
                ErrorCode::AzureSignInUnreachable,
                "check that this runs on Azure and that a managed identity is switched on there",
            ),
        };
        Error::new(code, format!("{} can't be reached: {reason}", self.peer), hint)
    }

    /// The error for an answer that Azure would not give.
    fn unexpected(&self, what: &str) -> Error {
        Error::new(
            ErrorCode::AzureUnexpectedAnswer,
            format!("{} did not answer as Azure does: {what}", self.peer),
            match self.peer {
                Peer::Vault(_) => {
                    "check that MLFLOW_AZURE_KEY_VAULT_URL names a key vault, and that no proxy answers in its place"
                }
                Peer::Entra(_) => "check AZURE_AUTHORITY_HOST, and that no proxy answers in its place",
                Peer::Identity(_) => "check that the variables of the platform are as it set them",
            },
        )
    }
}

/// The number in a text such as `AADSTS700016: Application …`.
pub fn aadsts_in(text: &str) -> Option<u64> {
    let digits = &text[text.find("AADSTS")? + "AADSTS".len()..];
    digits[..digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len())].parse().ok()
}

/// Finds the cause of a type in an error of the SDK.
pub fn cause<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    http::sources(error).find_map(|source| source.downcast_ref())
}

/// The SDK's options for exchanges with `peer`: our client, and no repetition.
pub fn options(http: &reqwest::Client, peer: Peer, seen: &Arc<Seen>) -> ClientOptions {
    let transport = Exchange { http: http.clone(), peer, seen: Arc::clone(seen) };
    ClientOptions {
        transport: Some(Transport::new(Arc::new(transport))),
        retry: RetryOptions::none(),
        ..ClientOptions::default()
    }
}

/// Sends requests, with a bound on the answer's size, and tells failures.
struct Exchange {
    http: reqwest::Client,
    peer: Peer,
    seen: Arc<Seen>,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client's own output may hold a proxy's password.
        write!(f, "Exchange({})", self.peer)
    }
}

impl Exchange {
    fn failed(&self, kind: FailureKind) -> azure_core::Error {
        // Of this kind, because the SDK repeats requests that ended in one of Io or Connection.
        azure_core::Error::new(ErrorKind::Other, Failure { peer: self.peer.clone(), kind })
    }

    async fn ask(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let asking = steps::asking(ProviderKind::AzureKeyVault, request.method().as_str(), request.url());
        let answer = self.http.execute_request(request).await;
        match &answer {
            Ok(answer) => asking.answered(answer.status().into()),
            Err(error) => asking.failed(error),
        }
        answer
    }

    /// The body of `answer`, up to 1 MiB.
    async fn body(&self, answer: AsyncRawResponse) -> azure_core::Result<Vec<u8>> {
        let mut stream = answer.into_body();
        let mut body = Vec::new();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|e| self.failed(FailureKind::Transport(TransportFailure::of(&e))))?;
            if body.len() + chunk.len() > http::MAX_BODY {
                return Err(self.failed(FailureKind::Odd("the answer is larger than 1 MiB")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// Notes what a vault's answer tells by the way. True for a demand for a token, which the SDK must see.
    fn note(&self, status: u16, headers: &Headers) -> bool {
        if !matches!(self.peer, Peer::Vault(_)) {
            return false;
        }
        let time = headers.get_optional_string(&"date".into()).and_then(|date| parse_rfc7231(&date).ok());
        self.seen.vault_time.store(time.and_then(system_time).map(Arc::new));
        let challenge = headers.get_optional_string(&"www-authenticate".into()).filter(|_| status == 401);
        if let Some(challenge) = &challenge {
            self.seen.challenge.store(Some(Arc::new(Challenge::read(challenge))));
        }
        challenge.is_some()
    }
}

#[async_trait]
impl HttpClient for Exchange {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        self.seen.waiting_for.store(Some(Arc::new(self.peer.to_string())));
        let answer = self.ask(request).await;
        let answer = answer.map_err(|e| self.failed(FailureKind::Transport(TransportFailure::of(&e))))?;
        let status = u16::from(answer.status());
        let headers = answer.headers().clone();
        let is_challenge = self.note(status, &headers);
        let retry_after = retry_after(&headers);
        let body = self.body(answer).await?;
        let json: Option<Value> = serde_json::from_slice(&body).ok();
        match status {
            200..=299 if json.is_none() => Err(self.failed(FailureKind::Odd("the answer is not JSON"))),
            200..=299 => Ok(AsyncRawResponse::from_bytes(status.into(), headers, body)),
            _ if is_challenge => Ok(AsyncRawResponse::from_bytes(status.into(), headers, body)),
            _ => Err(self.failed(FailureKind::Status { status, body: json, retry_after })),
        }
    }
}

/// How long the answer asks us to wait. Azure's own headers count milliseconds. A date is not read: the deadline bounds the
/// wait in any case.
fn retry_after(headers: &Headers) -> Option<Duration> {
    let number = |name: &'static str| headers.get_optional_string(&name.into())?.trim().parse().ok();
    let milliseconds = number("x-ms-retry-after-ms").or_else(|| number("retry-after-ms")).map(Duration::from_millis);
    milliseconds.or_else(|| number("retry-after").map(Duration::from_secs))
}

/// The SDK's time as the standard library's.
pub fn system_time(time: OffsetDateTime) -> Option<SystemTime> {
    let seconds = u64::try_from(time.unix_timestamp()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}
