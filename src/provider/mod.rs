//! The backends. Each fetches one secret; none caches it, and none retries.

#[cfg(feature = "aws")]
pub mod aws;
#[cfg(feature = "azure")]
pub mod azure;
#[cfg(feature = "vault")]
pub mod vault;

use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;

use crate::clock::Clock;
use crate::credential::AuthMode;
use crate::error::{Error, ErrorCode, Result};
use crate::network::Network;
use crate::secret::SecretString;
use crate::settings::Reader;
use crate::settings::variables::{self as var, Variable};

/// The kinds of backend, in the order of their priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProviderKind {
    /// HashiCorp Vault and OpenBao.
    Vault,
    /// AWS Secrets Manager.
    AwsSecretsManager,
    /// Azure Key Vault.
    AzureKeyVault,
}

impl ProviderKind {
    /// Every kind, first come, first asked.
    pub const ALL: &'static [Self] = &[Self::Vault, Self::AwsSecretsManager, Self::AzureKeyVault];

    /// Its name in the settings and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vault => "vault",
            Self::AwsSecretsManager => "aws-secrets-manager",
            Self::AzureKeyVault => "azure-key-vault",
        }
    }

    /// The variable that enables or disables it alone.
    pub fn toggle(self) -> &'static Variable {
        match self {
            Self::Vault => &var::MLFLOW_SECRETS_AUTH_ENABLE_VAULT,
            Self::AwsSecretsManager => &var::MLFLOW_SECRETS_AUTH_ENABLE_AWS_SECRETS_MANAGER,
            Self::AzureKeyVault => &var::MLFLOW_SECRETS_AUTH_ENABLE_AZURE_KEY_VAULT,
        }
    }

    /// The variable that decides how its secret becomes a header.
    pub fn auth_mode_variable(self) -> &'static Variable {
        match self {
            Self::Vault => &var::MLFLOW_VAULT_AUTH_MODE,
            Self::AwsSecretsManager => &var::MLFLOW_AWS_AUTH_MODE,
            Self::AzureKeyVault => &var::MLFLOW_AZURE_AUTH_MODE,
        }
    }

    /// The variable that names the CA certificates for it.
    pub fn ca_variable(self) -> &'static Variable {
        match self {
            Self::Vault => &var::VAULT_CACERT,
            Self::AwsSecretsManager => &var::AWS_CA_BUNDLE,
            Self::AzureKeyVault => &var::SSL_CERT_FILE,
        }
    }

    /// Whether this build contains it.
    pub fn is_built(self) -> bool {
        match self {
            Self::Vault => cfg!(feature = "vault"),
            Self::AwsSecretsManager => cfg!(feature = "aws"),
            Self::AzureKeyVault => cfg!(feature = "azure"),
        }
    }
}

/// The settings of one enabled provider.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ProviderSettings {
    /// HashiCorp Vault and OpenBao.
    #[cfg(feature = "vault")]
    Vault(Box<vault::VaultSettings>),
    /// AWS Secrets Manager.
    #[cfg(feature = "aws")]
    Aws(Box<aws::AwsSettings>),
    /// Azure Key Vault.
    #[cfg(feature = "azure")]
    Azure(Box<azure::AzureSettings>),
}

impl ProviderSettings {
    /// Reads what `kind` needs. `Ok(None)` where a value is malformed, which `reader` has recorded.
    ///
    /// # Errors
    /// [`ErrorCode::ConfigMissing`] where a required variable is not set, [`ErrorCode::ConfigProviderNotBuilt`].
    pub fn read(kind: ProviderKind, reader: &mut Reader<'_>) -> Result<Option<Self>> {
        match kind {
            #[cfg(feature = "vault")]
            ProviderKind::Vault => Ok(vault::VaultSettings::read(reader)?.map(Box::new).map(Self::Vault)),
            #[cfg(feature = "aws")]
            ProviderKind::AwsSecretsManager => Ok(aws::AwsSettings::read(reader)?.map(Box::new).map(Self::Aws)),
            #[cfg(feature = "azure")]
            ProviderKind::AzureKeyVault => Ok(azure::AzureSettings::read(reader)?.map(Box::new).map(Self::Azure)),
            // Reached in builds that leave a provider out.
            #[allow(unreachable_patterns)]
            _ => Err(Error::new(
                ErrorCode::ConfigProviderNotBuilt,
                format!("this build has no provider {}", kind.name()),
                "enable a provider that `mlflow-secrets-auth info` lists as built in",
            )),
        }
    }

    /// Which provider they are for.
    pub fn kind(&self) -> ProviderKind {
        match self {
            #[cfg(feature = "vault")]
            Self::Vault(_) => ProviderKind::Vault,
            #[cfg(feature = "aws")]
            Self::Aws(_) => ProviderKind::AwsSecretsManager,
            #[cfg(feature = "azure")]
            Self::Azure(_) => ProviderKind::AzureKeyVault,
        }
    }

    /// How long a credential of this provider is used.
    pub fn ttl(&self) -> Duration {
        match self {
            #[cfg(feature = "vault")]
            Self::Vault(settings) => settings.ttl,
            #[cfg(feature = "aws")]
            Self::Aws(settings) => settings.ttl,
            #[cfg(feature = "azure")]
            Self::Azure(settings) => settings.ttl,
        }
    }

    /// How its secret becomes a header.
    pub fn auth_mode(&self) -> AuthMode {
        match self {
            #[cfg(feature = "vault")]
            Self::Vault(settings) => settings.auth_mode,
            #[cfg(feature = "aws")]
            Self::Aws(settings) => settings.auth_mode,
            #[cfg(feature = "azure")]
            Self::Azure(settings) => settings.auth_mode,
        }
    }

    /// The provider that these settings describe. Nothing is contacted yet.
    pub fn provider(&self, network: &Network) -> Box<dyn Provider> {
        match self {
            #[cfg(feature = "vault")]
            Self::Vault(settings) => Box::new(vault::VaultProvider::new((**settings).clone(), network.clone())),
            #[cfg(feature = "aws")]
            Self::Aws(settings) => Box::new(aws::AwsProvider::new((**settings).clone(), network.clone())),
            #[cfg(feature = "azure")]
            Self::Azure(settings) => Box::new(azure::AzureProvider::new((**settings).clone(), network.clone())),
        }
    }
}

/// A secret as the backend gave it.
#[derive(Clone, Debug)]
pub struct SecretPayload {
    /// The text: plain, or a JSON object.
    pub text: SecretString,
    /// The backend's name for this version, where it has one.
    pub version: Option<String>,
    /// When this version was written, where the backend tells.
    pub created_at: Option<SystemTime>,
    /// When the backend says that it ends.
    pub expires_at: Option<SystemTime>,
    /// For how long the backend lends it from now, where it lends.
    pub lease: Option<Duration>,
    /// Where it was read, for people: `secret/data/mlflow/auth`.
    pub location: String,
}

/// A backend that holds the secret.
pub trait Provider: Send + Sync {
    /// Which backend it is.
    fn kind(&self) -> ProviderKind;

    /// Its own number of retries, where its settings name one; else that for every provider holds.
    fn max_retries(&self) -> Option<u32> {
        None
    }

    /// Says that what a cache on the way to the backend holds may be out of date: the next read passes it by.
    fn pass_caches(&self) {}

    /// Reads the secret once: signs in if need be, and asks the backend. It does not retry, and does not remember the
    /// secret; it may remember who it is signed in as.
    ///
    /// The future may be dropped at any await, when the deadline ends or the caller is interrupted.
    fn fetch_secret<'a>(&'a self, clock: &'a dyn Clock) -> BoxFuture<'a, Result<SecretPayload>>;

    /// What a fetch that ran out of time was waiting for, as the end of "it was waiting for …".
    fn waiting_for(&self) -> Option<String> {
        None
    }

    /// What a fetch would use up that works only once, in words, after a look at it; `None` where it costs nothing.
    ///
    /// Whoever only examines, as `doctor` does, asks this first, and does not fetch where there is an answer.
    fn used_up_by_fetching<'a>(&'a self) -> BoxFuture<'a, Result<Option<String>>> {
        Box::pin(async { Ok(None) })
    }
}
