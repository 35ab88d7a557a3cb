//! The one HTTP client: CA roots, proxies, timeouts, no redirects, and what a transport failure means.

use std::error::Error as StdError;
use std::io;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tower_layer::Layer;
use tower_service::Service;

use crate::error::{Error, ErrorCode, Result};
use crate::network::Network;
use crate::origin::{Origin, Scheme};
use crate::runtime;
use crate::steps;
use crate::x509;

/// How long making a connection may take. A fetch's own deadline is usually longer, so that one retry fits in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A pooled connection that has been idle for longer is not used again: nobody watches it while no fetch runs, so the
/// server may have closed it long ago.
const POOL_IDLE: Duration = Duration::from_secs(1);

/// No answer that we want is larger.
pub(crate) const MAX_BODY: usize = 1 << 20;

/// What a backend needs of its HTTP client.
#[derive(Clone, Debug)]
pub struct ClientOptions<'a> {
    /// Whether the backend speaks TLS. For plain http no roots are loaded, which saves most of the first fetch's time.
    pub tls: bool,
    /// The roots and the proxies.
    pub network: &'a Network,
    /// Turns certificate verification off.
    pub skip_verify: bool,
    /// Whether no proxy is used.
    pub direct: bool,
    /// How long one request may take, body included; `None` leaves it to the fetch's deadline.
    pub request_timeout: Option<Duration>,
}

impl<'a> ClientOptions<'a> {
    /// For a backend at `origin`: one on this machine, or one that tells the machine who it is, is asked without a proxy.
    pub fn towards(origin: &Origin, network: &'a Network) -> Self {
        Self {
            tls: origin.scheme() == Scheme::Https,
            network,
            skip_verify: false,
            direct: origin.is_loopback() || origin.is_metadata(),
            request_timeout: None,
        }
    }
}

/// Makes a client. It follows no redirects, because a redirect would carry the backend's token along.
///
/// # Errors
/// [`ErrorCode::ConfigFile`] for roots that can't be read, [`ErrorCode::FetchClient`] where the system has none.
pub fn client(options: &ClientOptions<'_>) -> Result<reqwest::Client> {
    client_with(options, |builder| builder)
}

/// As [`client`], with what only one backend needs added by `adapt`.
///
/// # Errors
/// As [`client`].
pub fn client_with(
    options: &ClientOptions<'_>,
    adapt: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
) -> Result<reqwest::Client> {
    // Making a client initialises statics of the TLS library: a fork in the middle of that would leave the child waiting.
    let _guard = runtime::hold_off_forks();
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE)
        .user_agent(concat!("mlflow-secrets-auth/", env!("CARGO_PKG_VERSION")));
    if let Some(timeout) = options.request_timeout {
        builder = builder.timeout(timeout);
    }
    builder = with_proxies(builder, options).map_err(|e| unmakeable(&e))?;
    if steps::is_watched() {
        builder = builder.dns_resolver(Arc::new(Lookup)).connector_layer(Connecting(()));
    }
    if !options.tls {
        builder = builder.tls_certs_only(Vec::new());
    } else if options.skip_verify {
        builder = builder.tls_danger_accept_invalid_certs(true);
    } else if let Some(certificates) = options.network.roots.certificates()? {
        builder = builder.tls_certs_only(certificates);
    }
    let client = adapt(builder).build().map_err(|e| unmakeable(&e))?;
    log_client(options);
    Ok(client)
}

/// The proxies as they stand in the settings, not as the library would read them from the process.
fn with_proxies(
    builder: reqwest::ClientBuilder,
    options: &ClientOptions<'_>,
) -> reqwest::Result<reqwest::ClientBuilder> {
    let builder = builder.no_proxy();
    if options.direct {
        return Ok(builder);
    }
    Ok(options.network.proxies.rules()?.into_iter().fold(builder, reqwest::ClientBuilder::proxy))
}

fn unmakeable(error: &reqwest::Error) -> Error {
    Error::new(
        ErrorCode::FetchClient,
        format!("the HTTP client can't be made: {}", reason(error)),
        "install the system's CA certificates (package ca-certificates), or name a PEM file in SSL_CERT_FILE",
    )
}

fn log_client(options: &ClientOptions<'_>) {
    let roots = match (options.tls, options.skip_verify) {
        (false, _) => "none (plain http)".to_owned(),
        (true, true) => "none (not verified)".to_owned(),
        (true, false) => options.network.roots.to_string(),
    };
    let proxy = if options.direct { "none (direct)".to_owned() } else { options.network.proxies.shown(options.tls) };
    let timeout_ms = options.request_timeout.map_or(0, |timeout| timeout.as_millis() as u64);
    let limit =
        options.request_timeout.map_or("the fetch's".to_owned(), |timeout| format!("{} s", timeout.as_secs_f64()));
    log::debug!(target: "mlflow_secrets_auth.http", event = "client", tls = options.tls, verify = !options.skip_verify,
        roots = roots.as_str(), proxy = proxy.as_str(), timeout_ms = timeout_ms;
        "a client: roots {roots}; proxy {proxy}; time limit {limit}");
}

/// Names are looked up as ever, and how long it took is noted.
struct Lookup;

impl Resolve for Lookup {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let began = Instant::now();
            let found = tokio::net::lookup_host((name.as_str(), 0)).await;
            steps::looked_up(began.elapsed());
            Ok(Box::new(found?.collect::<Vec<_>>().into_iter()) as Addrs)
        })
    }
}

/// Connections are made as ever, and how long it took is noted. Around `()` it is the layer, around a connector the
/// connector.
#[derive(Clone)]
struct Connecting<S>(S);

impl<S> Layer<S> for Connecting<()> {
    type Service = Connecting<S>;

    fn layer(&self, connector: S) -> Connecting<S> {
        Connecting(connector)
    }
}

impl<R, S: Service<R, Future: Send + 'static>> Service<R> for Connecting<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, std::result::Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<std::result::Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, target: R) -> Self::Future {
        let connection = self.0.call(target);
        Box::pin(async {
            let began = Instant::now();
            let connection = connection.await?;
            steps::connected(began.elapsed());
            Ok(connection)
        })
    }
}

/// Who signed the certificate that the server at `url` shows. Nothing is sent to it but the beginning of a handshake, which
/// is then refused; `None` where it shows none.
pub(crate) async fn certificate_issuer(url: &str, network: &Network) -> Option<String> {
    let shown = Arc::new(ShownCertificate::default());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&shown) as _)
        .with_no_client_auth();
    let options = ClientOptions::towards(&Origin::of(url).ok()?, network);
    let builder = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).tls_backend_preconfigured(tls);
    let _ = with_proxies(builder, &options).ok()?.build().ok()?.head(url).send().await;
    shown.0.get().cloned()
}

fn refused<T>() -> std::result::Result<T, rustls::Error> {
    Err(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))
}

/// Refuses every certificate, and remembers who signed the first.
#[derive(Debug, Default)]
struct ShownCertificate(OnceLock<String>);

impl ServerCertVerifier for ShownCertificate {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        if let Ok(certificate) = x509::Certificate::read(certificate) {
            let _ = self.0.set(certificate.issuer);
        }
        refused()
    }

    // Never reached: a signature is verified after the certificate, which is refused.
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        refused()
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        refused()
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The body of `response`, up to 1 MiB.
pub async fn read_body(mut response: reqwest::Response) -> std::result::Result<Vec<u8>, BodyError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(BodyError::Transport)? {
        if body.len() + chunk.len() > MAX_BODY {
            return Err(BodyError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Why a body could not be read.
#[derive(Debug)]
pub enum BodyError {
    /// The connection failed or timed out.
    Transport(reqwest::Error),
    /// It is larger than any answer that we want.
    TooLarge,
}

impl std::fmt::Display for BodyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Transport(error) => f.write_str(&reason(error)),
            Self::TooLarge => f.write_str("the answer is larger than 1 MiB"),
        }
    }
}

impl StdError for BodyError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Transport(error) => Some(error),
            Self::TooLarge => None,
        }
    }
}

/// What a failed exchange means, before any status was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransportFailure {
    /// The certificate, or another part of the TLS handshake, was refused.
    Tls(String),
    /// Everything else: refused, reset, name not found, timed out.
    Unreachable(String),
}

impl TransportFailure {
    /// Reads the cause from an error of any of the SDKs, by looking through its sources.
    pub fn of(error: &(dyn StdError + 'static)) -> Self {
        match tls_error(error) {
            Some(problem) => Self::Tls(problem),
            None => Self::Unreachable(reason(error)),
        }
    }
}

/// `error` and what it came from, step by step, also where an `io::Error` hides it.
pub(crate) fn sources<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    fn next<'a>(error: &&'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
        // io::Error hides the error that it wraps from source(), so step into it by hand.
        let error: &'a (dyn StdError + 'static) = *error;
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        wrapped.map(|inner| inner as &(dyn StdError + 'static)).or_else(|| error.source())
    }
    std::iter::successors(Some(error), next)
}

/// What is said of a certificate whose signer is unknown.
pub(crate) const UNTRUSTED: &str = "the certificate is signed by a CA that is not trusted here";

/// What a server says to a TLS handshake that expects plain http.
pub(crate) const NO_TLS: &str =
    "the server does not speak TLS on this port; its address may have to begin with http://";

fn tls_error(error: &(dyn StdError + 'static)) -> Option<String> {
    sources(error).find_map(|source| source.downcast_ref::<rustls::Error>()).map(|error| match error {
        rustls::Error::InvalidCertificate(problem) => match problem {
            rustls::CertificateError::UnknownIssuer => UNTRUSTED.to_owned(),
            rustls::CertificateError::NotValidForName | rustls::CertificateError::NotValidForNameContext { .. } => {
                "the certificate is for another name".to_owned()
            }
            rustls::CertificateError::Expired | rustls::CertificateError::ExpiredContext { .. } => {
                "the certificate has expired".to_owned()
            }
            other => format!("the certificate is refused ({other})"),
        },
        rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => NO_TLS.to_owned(),
        other => format!("the TLS handshake failed ({other})"),
    })
}

/// The cause in a few words, without addresses that a user did not type and without any `Debug` output.
pub fn reason(error: &(dyn StdError + 'static)) -> String {
    if sources(error).any(|e| e.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_timeout)) {
        return "timed out".to_owned();
    }
    let io = sources(error).filter_map(|source| source.downcast_ref::<io::Error>()).last();
    match io {
        Some(error) => plain_io(error),
        None => sources(error).last().map(ToString::to_string).unwrap_or_default(),
    }
}

/// An operating system's error in plain words.
pub fn plain_io(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        io::ErrorKind::TimedOut => "timed out".to_owned(),
        io::ErrorKind::NotFound => "no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::UnexpectedEof => "the connection was closed in the middle of an answer".to_owned(),
        _ if error.to_string().starts_with("failed to lookup address") => "the name can't be resolved".to_owned(),
        _ => error.to_string(),
    }
}

/// The number of seconds in a `Retry-After` header. A date is not read: the deadline bounds the wait in any case.
pub fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}
