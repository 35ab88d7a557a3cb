//! One exchange with Vault: `vaultrs`' endpoints over our HTTP client, and what an answer means.
//!
//! `vaultrs`' own client is not used: it follows redirects with the token, reads answers of any size, and panics on some
//! input. Its endpoint types and their machinery are.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use rustify::Endpoint;
use rustify::client::Client;
use rustify::endpoint::{MiddleWare, Wrapper};
use rustify::errors::ClientError;
use serde::de::DeserializeOwned;
use serde_json::Value;
use vaultrs::api::EndpointResult;

use super::settings::VaultSettings;
use crate::error::{Error, ErrorCode, Outlook, Result};
use crate::http::{self, BodyError, ClientOptions, TransportFailure, TrustRoots};
use crate::origin::{Origin, Scheme, redacted};
use crate::secret::SecretString;

/// A client of one Vault server.
pub struct VaultClient {
    transport: Transport,
    namespace: Option<String>,
    shown_address: String,
}

/// Why an exchange failed.
pub struct VaultFailure {
    /// The HTTP status, where the server answered.
    pub status: Option<u16>,
    /// The body of an answer, where it is JSON. Never shown.
    pub body: Option<Value>,
    retry_after: Option<Duration>,
    transport: Option<TransportFailure>,
    what: String,
}

impl VaultClient {
    /// A client for `settings`, with `roots` where Vault has none of its own.
    pub fn new(settings: &VaultSettings, roots: &TrustRoots) -> Result<Self> {
        let origin = Origin::of(&settings.address)?;
        let http = http::client(&ClientOptions {
            tls: origin.scheme() == Scheme::Https,
            roots: settings.roots.as_ref().unwrap_or(roots),
            skip_verify: settings.skip_verify,
            loopback: origin.is_loopback(),
            request_timeout: settings.request_timeout,
        })?;
        Ok(Self {
            transport: Transport {
                http,
                base: format!("{}/v1", settings.address),
                retry_after: ArcSwapOption::empty(),
            },
            namespace: settings.namespace.clone(),
            shown_address: redacted(&settings.address),
        })
    }

    /// The address as it may be shown.
    pub fn shown_address(&self) -> &str {
        &self.shown_address
    }

    /// Sends `endpoint` with `token`, and reads the answer's envelope.
    pub async fn ask<E, T>(
        &self,
        token: Option<&SecretString>,
        endpoint: E,
    ) -> std::result::Result<EndpointResult<T>, VaultFailure>
    where
        E: Endpoint<Response = T>,
        T: DeserializeOwned + Send + Sync,
        EndpointResult<T>: Wrapper<Value = T>,
    {
        let headers = Headers { token, namespace: self.namespace.as_deref() };
        let answer = endpoint.with_middleware(&headers).exec(&self.transport).await;
        let answer = answer.map_err(|error| {
            let retry_after = self.transport.take_retry_after();
            VaultFailure { retry_after, ..VaultFailure::of(error) }
        })?;
        answer.wrap::<EndpointResult<T>>().map_err(VaultFailure::of)
    }

    /// The error for a failure that has no meaning of its own to the caller. `doing` is what was tried, as in "reading".
    pub fn failed(&self, doing: &str, failure: VaultFailure) -> Error {
        let address = &self.shown_address;
        let Some(status) = failure.status else {
            return match failure.transport {
                Some(TransportFailure::Tls(problem)) => Error::new(
                    ErrorCode::VaultTls,
                    format!("the TLS connection to Vault at {address} failed: {problem}"),
                    "name the CA that signs Vault's certificate in VAULT_CACERT (a PEM file), and use the name that is in the certificate",
                ),
                Some(TransportFailure::Unreachable(reason)) => Error::new(
                    ErrorCode::VaultUnreachable,
                    format!("{doing} failed, because Vault at {address} can't be reached: {reason}"),
                    "check VAULT_ADDR, that Vault is running, and that this machine may reach it",
                )
                .with_outlook(Outlook::Unreachable),
                None => self.unexpected(&failure.what),
            };
        };
        let error = match status {
            429 => Error::new(
                ErrorCode::VaultThrottled,
                format!("Vault at {address} asks for fewer requests (HTTP 429)"),
                "raise MLFLOW_VAULT_TTL_SEC, or the rate limit in Vault",
            )
            .with_outlook(Outlook::Unreachable),
            503 => Error::new(
                ErrorCode::VaultSealed,
                format!("Vault at {address} is sealed or not ready (HTTP 503)"),
                "unseal Vault, or wait until it has started",
            )
            .with_outlook(Outlook::Unreachable),
            412 => self.unavailable(status).with_outlook(Outlook::MayPass),
            408 | 472 | 473 | 500..=599 => self.unavailable(status).with_outlook(Outlook::Unreachable),
            _ => self.unexpected(&format!("{doing} was answered with HTTP {status}")),
        };
        error.with_retry_after(failure.retry_after)
    }

    /// The error for an answer that Vault would not give.
    pub fn unexpected(&self, what: &str) -> Error {
        Error::new(
            ErrorCode::VaultUnexpectedAnswer,
            format!("the server at {} did not answer as Vault does: {what}", self.shown_address),
            "check that VAULT_ADDR names a Vault or OpenBao server, without a path behind it unless a proxy adds one",
        )
    }

    fn unavailable(&self, status: u16) -> Error {
        Error::new(
            ErrorCode::VaultUnavailable,
            format!("Vault at {} could not answer (HTTP {status})", self.shown_address),
            "look at Vault's own log; a standby that has no leader answers like this too",
        )
    }
}

impl VaultFailure {
    fn of(error: ClientError) -> Self {
        let nothing = Self { status: None, body: None, retry_after: None, transport: None, what: String::new() };
        match error {
            ClientError::ServerResponseError { code, content } => {
                let body = content.and_then(|text| serde_json::from_str(&text).ok());
                Self { status: Some(code), body, ..nothing }
            }
            ClientError::RequestError { source, .. } | ClientError::ResponseError { source } => {
                let too_large = matches!(source.downcast_ref(), Some(BodyError::TooLarge));
                let transport = (!too_large).then(|| TransportFailure::of(source.as_ref()));
                Self { transport, what: "the answer is larger than 1 MiB".to_owned(), ..nothing }
            }
            // Their texts may quote the answer, which may hold the secret.
            ClientError::ResponseParseError { .. } => {
                Self { what: "the answer is not the JSON that Vault sends".to_owned(), ..nothing }
            }
            _ => Self { what: "the request can't be made from the settings".to_owned(), ..nothing },
        }
    }
}

/// Sends requests, without redirects and with a bound on the answer's size.
struct Transport {
    http: reqwest::Client,
    base: String,
    /// What the last answer's `Retry-After` said: `rustify`'s error keeps status and body only.
    retry_after: ArcSwapOption<Duration>,
}

impl Transport {
    fn take_retry_after(&self) -> Option<Duration> {
        self.retry_after.swap(None).map(|wait| *wait)
    }
}

#[async_trait]
impl Client for Transport {
    async fn send(
        &self,
        request: ::http::Request<Vec<u8>>,
    ) -> std::result::Result<::http::Response<Vec<u8>>, ClientError> {
        let request =
            reqwest::Request::try_from(request).map_err(|source| ClientError::ReqwestBuildError { source })?;
        let failed = |source| ClientError::RequestError { source, url: String::new(), method: String::new() };
        self.retry_after.store(None);
        let mut answer = self.http.execute(request).await.map_err(|e| failed(e.into()))?;
        self.retry_after.store(http::retry_after(answer.headers()).map(Arc::new));
        let mut response = ::http::Response::new(Vec::new());
        *response.status_mut() = answer.status();
        std::mem::swap(response.headers_mut(), answer.headers_mut());
        *response.body_mut() =
            http::read_body(answer).await.map_err(|e| ClientError::ResponseError { source: e.into() })?;
        Ok(response)
    }

    fn base(&self) -> &str {
        &self.base
    }
}

/// Adds what every request to Vault carries.
struct Headers<'a> {
    token: Option<&'a SecretString>,
    namespace: Option<&'a str>,
}

impl MiddleWare for Headers<'_> {
    fn request<E: Endpoint>(
        &self,
        _: &E,
        request: &mut ::http::Request<Vec<u8>>,
    ) -> std::result::Result<(), ClientError> {
        // vaultrs' paths begin with a slash, and Vault answers a double one with a redirect.
        if let Ok(plain) = request.uri().to_string().replacen("/v1//", "/v1/", 1).parse() {
            *request.uri_mut() = plain;
        }
        let mut set = |name: &'static str, value: &str, secret: bool| {
            let value = ::http::HeaderValue::from_str(value);
            let mut value = value.map_err(|e| ClientError::GenericError { source: e.into() })?;
            value.set_sensitive(secret);
            request.headers_mut().insert(name, value);
            Ok::<_, ClientError>(())
        };
        set("x-vault-request", "true", false)?;
        if let Some(namespace) = self.namespace {
            set("x-vault-namespace", namespace, false)?;
        }
        if let Some(token) = self.token {
            set("x-vault-token", token.expose(), true)?;
        }
        Ok(())
    }

    fn response<E: Endpoint>(&self, _: &E, _: &mut ::http::Response<Vec<u8>>) -> std::result::Result<(), ClientError> {
        Ok(())
    }
}
