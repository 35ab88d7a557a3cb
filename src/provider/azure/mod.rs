//! Azure Key Vault: read one secret, signed in as a service principal, a workload, a machine or a developer.
//!
//! <https://learn.microsoft.com/rest/api/keyvault/secrets/get-secret/get-secret>

mod certificate;
mod client;
mod developer_tool;
mod entra;
mod identity;
mod managed_identity;
mod settings;

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use azure_core::error::ErrorResponse;
use azure_security_keyvault_secrets::models::{Secret, SecretAttributes, SecretClientGetSecretOptions};
use azure_security_keyvault_secrets::{SecretClient, SecretClientOptions};
use futures_util::future::BoxFuture;

pub use self::certificate::ClientCertificate;
use self::client::{Failure, Peer, Seen};
use self::identity::{Identity, Memory};
pub use self::settings::{AzureSettings, CertificateFile, Machine, SignIn};
use super::{Provider, ProviderKind, SecretPayload};
use crate::clock::Clock;
use crate::error::{Error, ErrorCode, Result};
use crate::http::{self, ClientOptions};
use crate::network::Network;
use crate::runtime::ProcessLocal;
use crate::secret::SecretString;
use crate::settings::variables as var;

/// The Azure Key Vault provider.
pub struct AzureProvider {
    settings: Arc<AzureSettings>,
    network: Network,
    memory: Arc<Memory>,
    seen: Arc<Seen>,
    secrets: ProcessLocal<ArcSwapOption<SecretClient>>,
}

impl AzureProvider {
    /// A provider that has not contacted Azure yet.
    pub fn new(settings: AzureSettings, network: Network) -> Self {
        Self {
            settings: Arc::new(settings),
            network,
            memory: Arc::default(),
            seen: Arc::default(),
            secrets: ProcessLocal::new(ArcSwapOption::empty),
        }
    }

    async fn fetch(&self, clock: &dyn Clock) -> Result<SecretPayload> {
        let slot = self.secrets.get();
        let (secrets, is_new) = match slot.load_full() {
            Some(secrets) => (secrets, false),
            None => (self.connect(&slot, clock)?, true),
        };
        match self.read(&secrets, clock).await {
            // The token was good until now: revoked, or the vault has moved. Sign in anew, which the SDK's own cache of
            // tokens would not do.
            Err(error) if error.code() == ErrorCode::AzureTokenRefused => {
                slot.store(None);
                if is_new {
                    return Err(error);
                }
                let secrets = self.connect(&slot, clock)?;
                self.read(&secrets, clock).await
            }
            result => result,
        }
    }

    /// A client with tokens of its own. Nothing is sent yet.
    fn connect(&self, slot: &ArcSwapOption<SecretClient>, clock: &dyn Clock) -> Result<Arc<SecretClient>> {
        let settings = &self.settings;
        let to_vault = ClientOptions::towards(&settings.vault, &self.network);
        let to_entra = ClientOptions::towards(&settings.authority, &self.network);
        let for_vault = http::client(&to_vault)?;
        let for_entra = if to_entra.direct == to_vault.direct { for_vault.clone() } else { http::client(&to_entra)? };
        let identity = Identity::new(settings, &self.network, &for_entra, &self.seen, &self.memory, clock.calendar())?;
        let address = settings.vault.to_string();
        let options = SecretClientOptions {
            client_options: client::options(&for_vault, Peer::Vault(address.clone()), &self.seen),
            verify_challenge_resource: Some(settings.verify_challenge),
            ..SecretClientOptions::default()
        };
        let secrets = SecretClient::new(&address, Arc::new(identity), Some(options));
        let secrets = Arc::new(secrets.map_err(|_| self.unexpected("its address can't be used"))?);
        slot.store(Some(Arc::clone(&secrets)));
        Ok(secrets)
    }

    async fn read(&self, secrets: &SecretClient, clock: &dyn Clock) -> Result<SecretPayload> {
        let options = SecretClientGetSecretOptions {
            secret_version: self.settings.secret_version.clone(),
            ..SecretClientGetSecretOptions::default()
        };
        let answer = match secrets.get_secret(&self.settings.secret_name, Some(options)).await {
            Ok(answer) => answer,
            Err(error) => return Err(self.failed(secrets, error).await),
        };
        let secret: Secret = answer.into_model().map_err(|_| self.unexpected("the answer is not a secret"))?;
        let attributes = secret.attributes.as_ref();
        if let Some(attributes) = attributes {
            // The vault's clock, where it tells it: ours may be wrong.
            let told = self.seen.vault_time.load_full();
            self.check(attributes, told.map_or_else(|| clock.calendar(), |told| *told))?;
        }
        let Some(value) = secret.value else { return Err(self.unexpected("the secret has no value")) };
        Ok(SecretPayload {
            text: SecretString::new(value),
            version: secret.id.as_deref().and_then(|id| id.rsplit('/').next()).map(str::to_owned),
            created_at: attributes.and_then(|attributes| client::system_time(attributes.created?)),
            expires_at: attributes.and_then(|attributes| client::system_time(attributes.expires?)),
            lease: None,
            location: self.location(),
        })
    }

    /// Key Vault gives secrets before and after their time, so this is up to its clients.
    fn check(&self, attributes: &SecretAttributes, now: SystemTime) -> Result<()> {
        let location = self.location();
        let begins = attributes.not_before.and_then(client::system_time);
        let ends = attributes.expires.and_then(client::system_time);
        if attributes.enabled == Some(false) {
            return Err(self.disabled());
        }
        if let Some(begins) = begins.filter(|begins| *begins > now) {
            return Err(Error::new(
                ErrorCode::AzureSecretNotYetValid,
                format!("the secret {location} is not to be used before {}", certificate::shown(begins)),
                format!(
                    "change its activation date, or name an older version in {}",
                    var::MLFLOW_AZURE_SECRET_VERSION.name
                ),
            ));
        }
        if let Some(ends) = ends.filter(|ends| *ends <= now) {
            return Err(Error::new(
                ErrorCode::AzureSecretExpired,
                format!("the secret {location} has expired, on {}", certificate::shown(ends)),
                "store a new version with a later expiration date",
            ));
        }
        Ok(())
    }

    async fn failed(&self, secrets: &SecretClient, error: azure_core::Error) -> Error {
        if let Some(ours) = client::cause::<Error>(&error) {
            return ours.clone();
        }
        if let Some(failure) = client::cause::<Failure>(&error) {
            return match failure.status() {
                Some(403) => self.denied(failure),
                Some(404) => self.not_found(secrets).await,
                Some(409) => self.deleted("is being deleted", 409),
                Some(400) => self.bad_request(failure),
                _ => failure.error(),
            };
        }
        if let Some(resource) = self.foreign_resource() {
            return Error::new(
                ErrorCode::AzureChallengeRefused,
                format!(
                    "{} asks for a token to {resource}, which is not the domain that it is in",
                    Peer::Vault(self.settings.vault.to_string())
                ),
                format!(
                    "check the vault's URL; where it is a name of your own for a vault that you trust, set {}=false",
                    var::MLFLOW_AZURE_VERIFY_CHALLENGE.name
                ),
            );
        }
        match error.http_status().map(u16::from) {
            Some(401) => self.token_refused(error),
            _ => self.unexpected("it demands a token in a way that Key Vault does not"),
        }
    }

    /// What the vault asked a token for, where the SDK's check must have refused that.
    fn foreign_resource(&self) -> Option<String> {
        let challenge = self.seen.challenge.load_full().filter(|_| self.settings.verify_challenge)?;
        let resource = challenge.resource_host.clone()?;
        (!self.settings.vault.host().ends_with(&format!(".{resource}"))).then_some(resource)
    }

    fn token_refused(&self, error: azure_core::Error) -> Error {
        let body = ErrorResponse::try_from(error).ok().and_then(|response| response.error);
        let said = body.and_then(|error| error.message).unwrap_or_default();
        let number = said.split([':', ' ']).find(|word| word.starts_with("AKV")).map(|word| format!(", {word}"));
        let tenants = self.seen.challenge.load_full().and_then(|challenge| {
            let (theirs, ours) = (challenge.tenant.as_deref()?, self.settings.tenant_id.as_deref()?);
            (theirs != ours).then(|| format!("; the vault is in the tenant {theirs}, the sign-in in {ours}"))
        });
        Error::new(
            ErrorCode::AzureTokenRefused,
            format!(
                "Key Vault at {} does not accept the token of the sign-in (HTTP 401{}){}",
                self.settings.vault,
                number.unwrap_or_default(),
                tenants.unwrap_or_default()
            ),
            "sign in to the tenant and the cloud that the vault is in: AZURE_TENANT_ID, AZURE_CLOUD_ENVIRONMENT; check this machine's clock",
        )
    }

    fn denied(&self, failure: &Failure) -> Error {
        let location = self.location();
        let vault = &self.settings.vault;
        let inner = failure.text_at("/error/innererror/code").unwrap_or_default();
        let text = failure.text_at("/error/message").unwrap_or_default();
        let saw = |code: &str, words: &str| inner == code || (inner.is_empty() && text.contains(words));
        if saw("SecretDisabled", "disabled secret") {
            return self.disabled();
        }
        let (code, why, hint) = if saw("ForbiddenByRbac", "is not authorized to perform action") {
            (
                ErrorCode::AzureRbacDenied,
                "the identity has no role that permits it",
                "give it the role Key Vault Secrets User on the vault (a new assignment takes some minutes), then run `mlflow-secrets-auth doctor`",
            )
        } else if saw("ForbiddenByFirewall", "Client address is not authorized") || inner == "ForbiddenByConnection" {
            (
                ErrorCode::AzureFirewallDenied,
                "the vault's firewall does not let this machine's address in",
                "add the address or the virtual network to the vault's firewall, or use its private endpoint",
            )
        } else if saw("AccessDenied", "does not have secrets get permission") || inner == "ForbiddenByPolicy" {
            (
                ErrorCode::AzureAccessPolicyDenied,
                "the vault's access policies don't permit it",
                "give the identity the secret permission Get: `az keyvault set-policy --secret-permissions get`",
            )
        } else {
            (
                ErrorCode::AzurePermissionDenied,
                "it did not say why",
                "give the identity the role Key Vault Secrets User, or the secret permission Get in the vault's access policies, and check the vault's firewall",
            )
        };
        Error::new(code, format!("Key Vault at {vault} refused to read {location} (HTTP 403): {why}"), hint)
    }

    fn disabled(&self) -> Error {
        Error::new(
            ErrorCode::AzureSecretDisabled,
            format!("the secret {} is disabled", self.location()),
            "enable it (`az keyvault secret set-attributes --enabled true`), or store a new version",
        )
    }

    /// A deleted secret is answered like one that never was; asking for deleted ones tells, where that is permitted.
    async fn not_found(&self, secrets: &SecretClient) -> Error {
        let name = &self.settings.secret_name;
        if secrets.get_deleted_secret(name, None).await.is_ok() {
            return self.deleted("is deleted, and can be recovered", 404);
        }
        let version = self.settings.secret_version.as_deref();
        let version = version.map(|version| format!(" in the version {version}")).unwrap_or_default();
        Error::new(
            ErrorCode::AzureNotFound,
            format!("Key Vault at {} has no secret {name}{version} (HTTP 404)", self.settings.vault),
            format!(
                "check {} and {}; `az keyvault secret list` shows the names, `list-deleted` those that can be recovered",
                var::MLFLOW_AZURE_SECRET_NAME.name,
                var::MLFLOW_AZURE_SECRET_VERSION.name
            ),
        )
    }

    fn deleted(&self, what: &str, status: u16) -> Error {
        Error::new(
            ErrorCode::AzureSecretDeleted,
            format!("the secret {} {what} (HTTP {status})", self.location()),
            format!(
                "recover it with `az keyvault secret recover --name {}`, or store it anew",
                self.settings.secret_name
            ),
        )
    }

    fn bad_request(&self, failure: &Failure) -> Error {
        match failure.text_at("/error/code") {
            Some("BadParameter") => self.unexpected(
                "it does not know the version of the interface, or the secret's name, that was asked for (HTTP 400)",
            ),
            _ => failure.error(),
        }
    }

    fn unexpected(&self, what: &str) -> Error {
        Error::new(
            ErrorCode::AzureUnexpectedAnswer,
            format!("{} did not answer as Azure does: {what}", Peer::Vault(self.settings.vault.to_string())),
            "check that MLFLOW_AZURE_KEY_VAULT_URL names a key vault, and that no proxy answers in its place",
        )
    }

    fn location(&self) -> String {
        let Some(version) = &self.settings.secret_version else {
            return format!("{}/secrets/{}", self.settings.vault, self.settings.secret_name);
        };
        format!("{}/secrets/{}/{version}", self.settings.vault, self.settings.secret_name)
    }
}

impl Provider for AzureProvider {
    fn kind(&self) -> ProviderKind {
        ProviderKind::AzureKeyVault
    }

    fn fetch_secret<'a>(&'a self, clock: &'a dyn Clock) -> BoxFuture<'a, Result<SecretPayload>> {
        Box::pin(self.fetch(clock))
    }

    fn waiting_for(&self) -> Option<String> {
        let peer = self.seen.waiting_for.load_full()?;
        let before = if self.memory.has_winner() { Vec::new() } else { self.memory.lines() };
        let list = before.iter().map(|line| format!("\n  {line}")).collect::<String>();
        Some(if list.is_empty() { peer.to_string() } else { format!("{peer}, after{list}") })
    }
}
