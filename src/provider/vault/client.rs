//! One exchange with Vault: `vaultrs`' endpoints over our HTTP client, and what its failures mean.
//!
//! `vaultrs`' own client is not used: it follows redirects with the token, reads answers of any size, and panics on some
//! input. Its endpoint types and their machinery are.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustify::Endpoint;
use rustify::client::Client;
use rustify::endpoint::MiddleWare;
use rustify::errors::ClientError;
use serde::de::DeserializeOwned;
use url::Url;
use zeroize::Zeroizing;

use super::answer::{Envelope, VaultFailure};
use super::settings::{ClientCertificate, Server, VaultSettings};
use crate::error::{Error, ErrorCode, Outlook, Result};
use crate::http::{self, ClientOptions, TransportFailure};
use crate::network::{Network, TrustRoots};
use crate::origin::{Origin, Scheme, redacted};
use crate::provider::ProviderKind;
use crate::secret::SecretString;
use crate::settings::variables as var;
use crate::steps;

/// A client of one Vault server, in one namespace for the secret and one for the login.
pub struct VaultClient {
    transport: Transport,
    namespace: Option<String>,
    login_namespace: Option<String>,
    shown_address: String,
    address_variable: &'static str,
    files: Vec<(PathBuf, Option<SystemTime>)>,
}

/// Which namespace a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// That of the secret.
    Secret,
    /// That of the login, in which the token lives.
    Login,
}

impl VaultClient {
    /// A client for `settings`, by way of `network`; Vault may have roots of its own.
    pub fn new(settings: &VaultSettings, network: &Network) -> Result<Self> {
        let (url, socket, address_variable) = match &settings.server {
            Server::Network { address, variable } => (address.as_str(), None, *variable),
            Server::Unix(path) => ("http://localhost", Some(path), var::VAULT_AGENT_ADDR.name),
        };
        let origin = Origin::of(url)?;
        let network = network.trusting(settings.tls.roots.as_ref());
        let options = ClientOptions {
            skip_verify: settings.tls.skip_verify,
            request_timeout: settings.request_timeout,
            ..ClientOptions::towards(&origin, &network)
        };
        let tls = options.tls;
        let files = files_in_use(settings, &network.roots).map(|path| (path.to_owned(), modified(path))).collect();
        let certificate = settings.tls.client_certificate.as_ref().filter(|_| tls);
        let identity = certificate.map(ClientCertificate::read).transpose()?;
        let server_name = settings.tls.server_name.as_ref().filter(|_| tls);
        let http = http::client_with(&options, |mut builder| {
            if let Some(identity) = identity {
                builder = builder.identity(identity);
            }
            if let Some(name) = server_name {
                builder = builder.dns_resolver(Arc::new(Alias { name: name.clone(), host: origin.host().to_owned() }));
            }
            #[cfg(unix)]
            if let Some(path) = socket {
                builder = builder.unix_socket(path.clone());
            }
            builder
        })?;
        let shown_address = match socket {
            Some(path) => format!("unix://{}", path.display()),
            None => redacted(url),
        };
        Ok(Self {
            transport: Transport::new(http, url, origin, server_name.map(String::as_str)),
            namespace: settings.namespace.clone(),
            login_namespace: settings.login_namespace.clone(),
            shown_address,
            address_variable,
            files,
        })
    }

    /// Whether the certificates' files are those that it was made with. They are replaced where somebody rotates them.
    pub fn is_up_to_date(&self) -> bool {
        self.files.iter().all(|(path, then)| modified(path) == *then)
    }

    /// The address as it may be shown.
    pub fn shown_address(&self) -> &str {
        &self.shown_address
    }

    /// Sends `endpoint` with `token` to the namespace of `scope`, and reads the answer's envelope.
    pub async fn ask<E, T>(
        &self,
        scope: Scope,
        token: Option<&SecretString>,
        endpoint: E,
    ) -> std::result::Result<Envelope<T>, VaultFailure>
    where
        E: Endpoint<Response = T>,
        T: DeserializeOwned + Send + Sync,
    {
        let namespace = match scope {
            Scope::Secret => self.namespace.as_deref(),
            Scope::Login => self.login_namespace.as_deref(),
        };
        let headers = Headers { token, namespace, host: self.transport.host_header.as_deref() };
        let answer = endpoint.with_middleware(&headers).exec(&self.transport).await.map_err(VaultFailure::of)?;
        let (parts, body) = answer.response.into_parts();
        if !parts.status.is_success() {
            return Err(VaultFailure::answered(&::http::Response::from_parts(parts, body)));
        }
        let body = Zeroizing::new(body);
        serde_json::from_slice(&body).map_err(|_| VaultFailure::not_vaults())
    }

    /// The error for a failure that has no meaning of its own to the caller. `doing` is what was tried, as in "reading".
    pub fn failed(&self, doing: &str, failure: VaultFailure) -> Error {
        let address = &self.shown_address;
        let Some(status) = failure.status else {
            return match failure.transport {
                Some(TransportFailure::Tls(problem)) => self.tls_failed(&problem),
                Some(TransportFailure::Unreachable(reason)) => Error::new(
                    ErrorCode::VaultUnreachable,
                    format!("{doing} failed, because Vault at {address} can't be reached: {reason}"),
                    format!(
                        "check {}, that Vault is running, and that this machine may reach it",
                        self.address_variable
                    ),
                ),
                None => self.unexpected(failure.what),
            };
        };
        let error = match status {
            429 => Error::new(
                ErrorCode::VaultThrottled,
                format!("Vault at {address} asks for fewer requests, or is a standby (HTTP 429)"),
                "raise MLFLOW_VAULT_TTL_SEC or the rate limit in Vault, and look whether a node is active",
            ),
            503 => Error::new(
                ErrorCode::VaultSealed,
                format!("Vault at {address} is sealed or not ready (HTTP 503)"),
                "unseal Vault, or wait until it has started",
            ),
            412 => self.unavailable(status).with_outlook(Outlook::MayPass),
            // A performance standby that has not seen the new token yet.
            400 if failure.says("cannot write to readonly storage") => {
                self.unavailable(status).with_outlook(Outlook::MayPass)
            }
            408 | 472 | 473 | 500..=599 => self.unavailable(status),
            400 if failure.is_vaults() => Error::new(
                ErrorCode::VaultRejected,
                format!("{doing} was rejected by Vault at {address} (HTTP 400)"),
                "try it with `vault read`, which shows the reason; an identity token needs a login, which gives the token an entity",
            ),
            404 if failure.says("namespace not found") => self.wrong_namespace(),
            301..=303 | 307 | 308 => self.redirected(status, failure.redirected_to.as_deref()),
            _ => self.unexpected(&format!("{doing} was answered with HTTP {status}")),
        };
        error.with_retry_after(failure.retry_after)
    }

    /// The error for an answer that Vault would not give.
    pub fn unexpected(&self, what: &str) -> Error {
        Error::new(
            ErrorCode::VaultUnexpectedAnswer,
            format!("the server at {} did not answer as Vault does: {what}", self.shown_address),
            format!(
                "check that {} names a Vault or OpenBao server, without a path behind it unless a proxy adds one",
                self.address_variable
            ),
        )
    }

    /// The namespace of the login; `None` is the root.
    pub fn login_namespace(&self) -> Option<&str> {
        self.login_namespace.as_deref()
    }

    /// The namespace of the secret, as the end of a sentence's part; empty in the root.
    pub fn in_namespace(&self) -> String {
        self.namespace.as_ref().map(|name| format!(" in namespace {name}")).unwrap_or_default()
    }

    /// As [`in_namespace`](Self::in_namespace), of the login.
    pub fn in_login_namespace(&self) -> String {
        self.login_namespace.as_ref().map(|name| format!(" in namespace {name}")).unwrap_or_default()
    }

    fn tls_failed(&self, problem: &str) -> Error {
        let variable = self.address_variable;
        let hint = if problem == http::NO_TLS {
            format!("check the scheme and the port of {variable}; a server in `-dev` mode speaks plain http")
        } else if problem.contains("alert") {
            "the server refused our side: it may ask for a client certificate (VAULT_CLIENT_CERT and VAULT_CLIENT_KEY), or want another one".to_owned()
        } else {
            format!(
                "name the CA that signs Vault's certificate in VAULT_CACERT (a PEM file), and use the name that is in the certificate, in {variable} or VAULT_TLS_SERVER_NAME"
            )
        };
        let message = format!("the TLS connection to Vault at {} failed: {problem}", self.shown_address);
        Error::new(ErrorCode::VaultTls, message, hint)
    }

    fn wrong_namespace(&self) -> Error {
        let names = [&self.namespace, &self.login_namespace].map(|name| name.as_deref().unwrap_or("root"));
        let [secret, login] = names;
        Error::new(
            ErrorCode::VaultWrongNamespace,
            format!(
                "Vault at {} has no such namespace: {secret} for the secret, {login} for the login",
                self.shown_address
            ),
            "check VAULT_NAMESPACE, and MLFLOW_VAULT_AUTH_NAMESPACE where the login is in another one",
        )
    }

    fn redirected(&self, status: u16, target: Option<&str>) -> Error {
        Error::new(
            ErrorCode::VaultRedirected,
            format!(
                "the server at {} sends us to {} (HTTP {status}), where the Vault token must not go",
                self.shown_address,
                target.unwrap_or("nowhere")
            ),
            format!("let {} name the active node, or a load balancer that finds it", self.address_variable),
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

impl ClientCertificate {
    fn read(&self) -> Result<reqwest::Identity> {
        let unusable = |variable: &str, path: &Path, what: String| {
            Error::new(
                ErrorCode::ConfigFile,
                format!("{variable} names {}, {what}", path.display()),
                "let VAULT_CLIENT_CERT name a PEM file with a certificate, and VAULT_CLIENT_KEY one with its private key, not encrypted",
            )
        };
        let read = |variable: &str, path: &Path| {
            std::fs::read(path)
                .map_err(|e| unusable(variable, path, format!("which can't be read: {}", http::plain_io(&e))))
        };
        let mut pem = Zeroizing::new(read(var::VAULT_CLIENT_CERT.name, &self.certificate)?);
        pem.push(b'\n');
        pem.extend_from_slice(&Zeroizing::new(read(var::VAULT_CLIENT_KEY.name, &self.key)?));
        reqwest::Identity::from_pem(&pem).map_err(|_| {
            let what = format!("which is no usable certificate together with the key in {}", self.key.display());
            unusable(var::VAULT_CLIENT_CERT.name, &self.certificate, what)
        })
    }
}

fn files_in_use<'a>(settings: &'a VaultSettings, roots: &'a TrustRoots) -> impl Iterator<Item = &'a Path> {
    let of_roots = roots.places().iter().map(|place| place.path.as_path());
    let of_ours = settings.tls.client_certificate.iter().flat_map(|c| [c.certificate.as_path(), c.key.as_path()]);
    of_roots.chain(of_ours)
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

/// Finds `host`'s addresses under another `name`, so that TLS asks for that name.
struct Alias {
    name: String,
    host: String,
}

impl Resolve for Alias {
    fn resolve(&self, name: Name) -> Resolving {
        let host =
            if name.as_str().eq_ignore_ascii_case(&self.name) { self.host.clone() } else { name.as_str().to_owned() };
        Box::pin(async move {
            let addresses = tokio::net::lookup_host((host.trim_matches(['[', ']']), 0)).await?;
            Ok(Box::new(addresses.collect::<Vec<_>>().into_iter()) as Addrs)
        })
    }
}

/// Sends requests, with a bound on the answer's size, and follows no redirect but a standby's to its own host.
struct Transport {
    http: reqwest::Client,
    base: String,
    origin: Origin,
    server_name: Option<String>,
    host_header: Option<String>,
}

impl Transport {
    fn new(http: reqwest::Client, url: &str, origin: Origin, server_name: Option<&str>) -> Self {
        let mut base = format!("{url}/v1");
        let mut host_header = None;
        if let (Some(name), Ok(mut url)) = (server_name, Url::parse(&base)) {
            let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
            host_header = Some(format!("{}{port}", url.host_str().unwrap_or_default()));
            // The name was checked to be a host's.
            if url.set_host(Some(name)).is_ok() {
                base = url.to_string();
            }
        }
        Self { http, base, origin, server_name: server_name.map(str::to_owned), host_header }
    }

    async fn exchange(&self, request: reqwest::Request) -> std::result::Result<::http::Response<Vec<u8>>, ClientError> {
        let failed = |source: reqwest::Error| ClientError::RequestError {
            source: source.into(),
            url: String::new(),
            method: String::new(),
        };
        let again = request.try_clone();
        let mut answer = self.send_once(request).await.map_err(failed)?;
        if let Some(again) = again.and_then(|again| self.at_active_node(again, &answer)) {
            log::debug!(target: "mlflow_secrets_auth.vault", event = "standby_redirect";
                "the standby sends us to port {:?} of its host", again.url().port_or_known_default());
            answer = self.send_once(again).await.map_err(failed)?;
        }
        let mut response = ::http::Response::new(Vec::new());
        *response.status_mut() = answer.status();
        std::mem::swap(response.headers_mut(), answer.headers_mut());
        *response.body_mut() =
            http::read_body(answer).await.map_err(|e| ClientError::ResponseError { source: e.into() })?;
        Ok(response)
    }

    async fn send_once(&self, request: reqwest::Request) -> reqwest::Result<reqwest::Response> {
        let asking = steps::asking(ProviderKind::Vault, request.method().as_str(), request.url());
        let answer = self.http.execute(request).await;
        asking.ended(&answer);
        answer
    }

    /// The same request to where a standby says that the active node is: the same host, never from https to http, and the
    /// same path of the API. Anything else is not a standby's answer, and would give the token away.
    fn at_active_node(&self, mut request: reqwest::Request, answer: &reqwest::Response) -> Option<reqwest::Request> {
        if answer.status() != ::http::StatusCode::TEMPORARY_REDIRECT {
            return None;
        }
        let location = answer.headers().get(::http::header::LOCATION)?.to_str().ok()?;
        let mut target = Url::parse(location).ok()?;
        let origin = Origin::of(location).ok()?;
        let same_host = origin.host() == self.origin.host();
        let no_downgrade = origin.scheme() == Scheme::Https || self.origin.scheme() == Scheme::Http;
        let of_api = |path: &str| path.find("/v1/").map(|start| path[start..].to_owned());
        let same_path =
            of_api(target.path()) == of_api(request.url().path()) && target.query() == request.url().query();
        if !(same_host && no_downgrade && same_path) {
            return None;
        }
        if let Some(name) = &self.server_name {
            target.set_host(Some(name)).ok()?;
            request.headers_mut().remove(::http::header::HOST);
        }
        *request.url_mut() = target;
        Some(request)
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
        self.exchange(request).await
    }

    // The default one writes URLs into the log, and drops the headers of an answer that is an error.
    async fn execute(
        &self,
        request: ::http::Request<Vec<u8>>,
    ) -> std::result::Result<::http::Response<Vec<u8>>, ClientError> {
        self.send(request).await
    }

    fn base(&self) -> &str {
        &self.base
    }
}

/// Adds what every request to Vault carries.
struct Headers<'a> {
    token: Option<&'a SecretString>,
    namespace: Option<&'a str>,
    host: Option<&'a str>,
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
        if let Some(host) = self.host {
            set("host", host, false)?;
        }
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
