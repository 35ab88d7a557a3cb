//! The SDK's requests over our HTTP client, so that one set of roots, proxies and time limits holds for every backend.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use http_body_util::Limited;

use crate::error::Result;
use crate::http::{self, ClientOptions};
use crate::network::Network;
use crate::origin::Origin;
use crate::provider::ProviderKind;
use crate::steps;

/// No answer that we want is larger: a secret has at most 64 KiB.
const MAX_BODY: usize = 1 << 20;

/// The HTTP stack as the SDK wants it. Clones share the connections.
#[derive(Clone)]
pub struct Transport {
    clients: Arc<Clients>,
    last_status: Arc<AtomicU16>,
    limit: Option<Duration>,
    direct: bool,
}

/// One client per kind of destination, made when it is first needed: loading roots is most of a first fetch's time, and
/// plain http needs none.
struct Clients {
    network: Network,
    made: [ArcSwapOption<reqwest::Client>; 4],
}

impl Transport {
    /// A transport that has no client yet.
    pub fn new(network: Network) -> Self {
        let made = std::array::from_fn(|_| ArcSwapOption::empty());
        Self { clients: Arc::new(Clients { network, made }), last_status: Arc::default(), limit: None, direct: false }
    }

    /// The same transport, with a memory of its own for [`last_status`](Self::last_status).
    pub fn watched(&self) -> Self {
        Self { last_status: Arc::default(), ..self.clone() }
    }

    /// The same transport without any proxy, for an endpoint that tells the machine who it is, wherever it was put.
    pub fn direct(self) -> Self {
        Self { direct: true, ..self }
    }

    /// The status of the last answer; `None` where none came.
    pub fn last_status(&self) -> Option<u16> {
        Some(self.last_status.load(Ordering::Relaxed)).filter(|status| *status > 0)
    }

    async fn exchange(self, request: HttpRequest) -> std::result::Result<HttpResponse, ConnectorError> {
        let request = request.try_into_http1x().map_err(|e| ConnectorError::user(e.into()))?;
        let (parts, body) = request.into_parts();
        let origin = Origin::of(&parts.uri.to_string()).map_err(|e| ConnectorError::user(e.into()))?;
        let client = self.clients.towards(&origin, self.direct).map_err(|e| ConnectorError::user(e.into()))?;
        let body = body.bytes().map(<[u8]>::to_vec).unwrap_or_default();
        let request = reqwest::Request::try_from(::http::Request::from_parts(parts, body))
            .map_err(|e| ConnectorError::user(e.into()))?;
        let asking = steps::asking(ProviderKind::AwsSecretsManager, request.method().as_str(), request.url());
        let sent = match within(self.limit, client.execute(request)).await {
            Ok(answer) => {
                asking.answered(answer.status().as_u16());
                answer
            }
            Err(error) => {
                asking.failed(&*error);
                return Err(unanswered(error));
            }
        };
        let response = ::http::Response::from(sent);
        self.last_status.store(response.status().as_u16(), Ordering::Relaxed);
        // Streamed on, not collected: the SDK's own trace output would show a collected body.
        let response = response.map(|body| SdkBody::from_body_1_x(Limited::new(body, MAX_BODY)));
        HttpResponse::try_from(response).map_err(|e| ConnectorError::other(e.into(), None))
    }
}

impl Clients {
    fn towards(&self, origin: &Origin, direct: bool) -> Result<reqwest::Client> {
        // No time limit: the fetch's deadline holds, and the SDK has its own wishes for the metadata services.
        let mut options = ClientOptions::towards(origin, &self.network);
        options.direct |= direct;
        let slot = &self.made[usize::from(options.tls) + 2 * usize::from(options.direct)];
        if let Some(client) = slot.load_full() {
            return Ok(reqwest::Client::clone(&client));
        }
        let client = http::client(&options)?;
        slot.store(Some(Arc::new(client.clone())));
        Ok(client)
    }
}

async fn within(
    limit: Option<Duration>,
    exchange: impl Future<Output = reqwest::Result<reqwest::Response>>,
) -> std::result::Result<reqwest::Response, Box<dyn std::error::Error + Send + Sync>> {
    let Some(limit) = limit else { return Ok(exchange.await?) };
    match tokio::time::timeout(limit, exchange).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
    }
}

fn unanswered(source: Box<dyn std::error::Error + Send + Sync>) -> ConnectorError {
    ConnectorError::io(Box::new(Unanswered(source)))
}

/// A request that got no answer; its source says why.
#[derive(Debug)]
pub struct Unanswered(Box<dyn std::error::Error + Send + Sync>);

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no answer")
    }
}

impl std::error::Error for Unanswered {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

/// Whether `error` comes from a connection that gave no answer, or broke off in the middle of one.
pub fn is_unanswered(error: &(dyn std::error::Error + 'static)) -> bool {
    http::sources(error).any(|source| source.is::<Unanswered>() || source.is::<reqwest::Error>())
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transport")
    }
}

impl HttpConnector for Transport {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        HttpConnectorFuture::new(self.clone().exchange(request))
    }
}

impl HttpClient for Transport {
    fn http_connector(&self, settings: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        // Where the SDK bounds both, it waits for an address next door: the longer of the two is enough for the answer's
        // head. A connection alone is bounded by the client.
        let limit = match (settings.connect_timeout(), settings.read_timeout()) {
            (Some(connect), Some(read)) => Some(connect.max(read)),
            (_, read) => read,
        };
        SharedHttpConnector::new(Self { limit, ..self.clone() })
    }
}
