//! AWS Secrets Manager: read one secret, signed in to AWS or through the node's agent.
//!
//! <https://docs.aws.amazon.com/secretsmanager/latest/userguide/retrieving-secrets.html>

mod agent;
mod client;
mod identity;
mod refusal;
mod settings;
mod sources;
mod transport;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;

use self::agent::{AgentClient, Freshness};
use self::client::AwsClient;
use self::identity::Identity;
pub use self::settings::{
    AccessKeys, AgentSettings, AgentToken, AwsSettings, Container, Endpoints, IdentitySettings, Metadata, RetryMode,
    Role, SecretName, SecretReader, SecretVersion, ServiceSettings, WebIdentity,
};
use super::{Provider, ProviderKind, SecretPayload};
use crate::clock::Clock;
use crate::error::{ErrorCode, Result};
use crate::network::Network;
use crate::runtime::ProcessLocal;
use crate::secret::SecretString;

/// The AWS Secrets Manager provider.
pub struct AwsProvider {
    settings: AwsSettings,
    network: Network,
    identity: Identity,
    client: ProcessLocal<ArcSwapOption<AwsClient>>,
    agent: ProcessLocal<ArcSwapOption<AgentClient>>,
    /// Whether the next read through the agent passes its cache by.
    past_agents_cache: AtomicBool,
}

impl AwsProvider {
    /// A provider that has not contacted AWS yet.
    pub fn new(settings: AwsSettings, network: Network) -> Self {
        let client = ProcessLocal::new(ArcSwapOption::empty);
        let agent = ProcessLocal::new(ArcSwapOption::empty);
        let past_agents_cache = AtomicBool::new(false);
        Self { settings, network, identity: Identity::default(), client, agent, past_agents_cache }
    }

    async fn fetch(&self, clock: &dyn Clock) -> Result<SecretPayload> {
        match &self.settings.reader {
            SecretReader::Service(service) => self.fetch_from_service(service, clock).await,
            SecretReader::Agent(agent) => self.fetch_from_agent(agent).await,
        }
    }

    async fn fetch_from_service(&self, service: &ServiceSettings, clock: &dyn Clock) -> Result<SecretPayload> {
        let client = self.client(service).await?;
        let caller = self.identity.caller(service, &client, clock).await?;
        let answer = match client.read(&self.settings, &caller).await {
            // Temporary credentials may have been revoked, or their source replaced: signing in again settles it.
            Err(error) if is_about_credentials(error.code()) && caller.renewable => {
                self.identity.forget();
                let caller = self.identity.caller(service, &client, clock).await?;
                client.read(&self.settings, &caller).await
            }
            result => result,
        }?;
        let location = format!("{} ({})", self.settings.secret.id, client.place());
        Ok(SecretPayload {
            version: answer.version_id,
            created_at: answer.created_date.and_then(|created| SystemTime::try_from(created).ok()),
            text: text_of(answer.secret_string, answer.secret_binary.map(aws_smithy_types::Blob::into_inner)),
            expires_at: None,
            lease: None,
            location,
        })
    }

    async fn fetch_from_agent(&self, agent: &AgentSettings) -> Result<SecretPayload> {
        let client = self.agent(agent)?;
        let freshness = match self.past_agents_cache.swap(false, Ordering::Relaxed) {
            true => Freshness::Latest,
            false => Freshness::Cached,
        };
        let payload = client.read(&self.settings, agent, freshness).await;
        if payload.is_err() && freshness == Freshness::Latest {
            // The retry is still to pass the cache by.
            self.pass_caches();
        }
        payload
    }

    async fn client(&self, service: &ServiceSettings) -> Result<Arc<AwsClient>> {
        let slot = self.client.get();
        if let Some(client) = slot.load_full() {
            return Ok(client);
        }
        let client = Arc::new(AwsClient::new(&self.settings, service, &self.network).await?);
        slot.store(Some(Arc::clone(&client)));
        Ok(client)
    }

    fn agent(&self, settings: &AgentSettings) -> Result<Arc<AgentClient>> {
        let slot = self.agent.get();
        if let Some(agent) = slot.load_full() {
            return Ok(agent);
        }
        let agent = Arc::new(AgentClient::new(settings, &self.network)?);
        slot.store(Some(Arc::clone(&agent)));
        Ok(agent)
    }
}

impl Provider for AwsProvider {
    fn kind(&self) -> ProviderKind {
        ProviderKind::AwsSecretsManager
    }

    fn max_retries(&self) -> Option<u32> {
        self.settings.max_retries
    }

    fn pass_caches(&self) {
        self.past_agents_cache.store(true, Ordering::Relaxed);
    }

    fn fetch_secret<'a>(&'a self, clock: &'a dyn Clock) -> BoxFuture<'a, Result<SecretPayload>> {
        Box::pin(self.fetch(clock))
    }
}

fn is_about_credentials(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::AwsExpiredToken | ErrorCode::AwsCredentialsRefused)
}

/// The text of a secret: its string, its bytes where they are text, else its bytes in base64.
fn text_of(string: Option<String>, binary: Option<Vec<u8>>) -> SecretString {
    let text = string.or_else(|| {
        binary.map(|bytes| String::from_utf8(bytes).unwrap_or_else(|error| STANDARD.encode(error.as_bytes())))
    });
    SecretString::new(text.unwrap_or_default())
}
