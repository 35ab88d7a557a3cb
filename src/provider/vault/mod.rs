//! HashiCorp Vault and OpenBao: read one secret, from a KV engine of either version or any other readable path.
//!
//! <https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2>

mod client;
mod identity;
mod settings;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::future::BoxFuture;
use rustify_derive::Endpoint;
use serde::Deserialize;
use serde_json::Value;

use self::client::{VaultClient, VaultFailure};
use self::identity::{Identity, Token};
pub use self::settings::{KvVersion, Login, VaultSettings};
use super::{Provider, ProviderKind, SecretPayload};
use crate::clock::Clock;
use crate::error::{Error, ErrorCode, Result};
use crate::http::TrustRoots;
use crate::runtime::ProcessLocal;
use crate::secret::SecretString;

/// Reads any path.
#[derive(Endpoint)]
#[endpoint(path = "{self.path}", response = "Value")]
struct ReadPath {
    #[endpoint(skip)]
    path: String,
}

/// Asks which mount a path belongs to, as Vault's own command line does before it reads.
#[derive(Endpoint)]
#[endpoint(path = "sys/internal/ui/mounts/{self.path}", response = "MountInfo")]
struct FindMount {
    #[endpoint(skip)]
    path: String,
}

#[derive(Deserialize)]
struct MountInfo {
    path: String,
    #[serde(rename = "type")]
    kind: String,
    options: Option<MountOptions>,
}

#[derive(Deserialize)]
struct MountOptions {
    version: Option<String>,
}

/// Asks whether the token itself is good.
#[derive(Endpoint)]
#[endpoint(path = "auth/token/lookup-self", response = "Value")]
struct LookUpSelf {}

/// Where a secret is, and how its answer is laid out.
#[derive(Clone, Debug, PartialEq)]
struct Place {
    path: String,
    layout: Layout,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// Below `data.data`, with metadata beside it.
    V2,
    /// Below `data`: KV version 1, and every engine that is not KV.
    Plain,
}

/// The Vault provider.
pub struct VaultProvider {
    settings: VaultSettings,
    roots: TrustRoots,
    identity: Identity,
    client: ProcessLocal<ArcSwapOption<VaultClient>>,
    /// Where the server said that the secret is, once it has said so.
    place: ArcSwapOption<Place>,
}

impl VaultProvider {
    /// A provider that has not contacted Vault yet.
    pub fn new(settings: VaultSettings, roots: TrustRoots) -> Self {
        let identity = Identity::new(settings.login.clone());
        let client = ProcessLocal::new(ArcSwapOption::empty);
        Self { settings, roots, identity, client, place: ArcSwapOption::empty() }
    }

    async fn fetch(&self, clock: &dyn Clock) -> Result<SecretPayload> {
        let client = self.client()?;
        let token = self.identity.token(&client, clock).await?;
        match self.read(&client, &token).await {
            // A login may have been revoked, or its policies changed: a new one settles it.
            Err(error) if error.code() == ErrorCode::VaultTokenRefused && token.renewable_by_login => {
                self.identity.forget_login();
                let token = self.identity.token(&client, clock).await?;
                self.read(&client, &token).await
            }
            result => result,
        }
    }

    fn client(&self) -> Result<Arc<VaultClient>> {
        let slot = self.client.get();
        if let Some(client) = slot.load_full() {
            return Ok(client);
        }
        let client = Arc::new(VaultClient::new(&self.settings, &self.roots)?);
        slot.store(Some(Arc::clone(&client)));
        Ok(client)
    }

    async fn read(&self, client: &VaultClient, token: &Token) -> Result<SecretPayload> {
        let places = self.places(client, token).await?;
        let mut denied = None;
        for place in &places {
            match self.read_place(client, token, place).await {
                Ok(payload) => return Ok(payload),
                Err(failure) if matches!(failure.status, Some(403 | 404)) => {
                    if is_deleted(&failure) {
                        return Err(deleted(place));
                    }
                    // 403 says more than 404: Vault hides behind it what the policies don't show.
                    denied = denied.max(failure.status.filter(|status| *status == 403));
                }
                Err(failure) => return Err(client.failed("reading the secret", failure)),
            }
        }
        if denied.is_some() {
            Err(self.denied(client, token, &places).await)
        } else {
            Err(self.not_found(client, &places))
        }
    }

    async fn read_place(
        &self,
        client: &VaultClient,
        token: &Token,
        place: &Place,
    ) -> std::result::Result<SecretPayload, VaultFailure> {
        let mut answer = client.ask(Some(&token.token), ReadPath { path: place.path.clone() }).await?;
        let mut data = answer.data.take().unwrap_or(Value::Null);
        let mut version = None;
        if place.layout == Layout::V2 {
            version = data.pointer("/metadata/version").and_then(Value::as_u64).map(|version| version.to_string());
            data = data.get_mut("data").map(Value::take).unwrap_or(Value::Null);
        }
        let text = if data.is_null() { String::new() } else { data.to_string() };
        let lease = (answer.lease_duration > 0).then(|| Duration::from_secs(answer.lease_duration.into()));
        Ok(SecretPayload {
            text: SecretString::new(text),
            version,
            expires_at: None,
            lease,
            location: place.path.clone(),
        })
    }

    /// Where to look: one place where the settings or the server tell, else both layouts on the first segment's mount.
    async fn places(&self, client: &VaultClient, token: &Token) -> Result<Vec<Place>> {
        let path = self.settings.path.as_str();
        if let (Some(mount), Some(version)) = (self.mount_in_settings(), self.settings.kv_version) {
            return Ok(vec![place(mount, path, version)]);
        }
        if let Some(known) = self.place.load_full() {
            return Ok(vec![Place::clone(&known)]);
        }
        match client.ask(Some(&token.token), FindMount { path: path.to_owned() }).await {
            Ok(answer) if answer.data.is_some() => {
                let found = answer.data.map(|info| place_on(&info, path));
                self.place.store(found.clone().map(Arc::new));
                Ok(found.into_iter().collect())
            }
            // No right to ask, an old server, or no such mount: reading shows which.
            Ok(_) | Err(VaultFailure { status: Some(400 | 403 | 404 | 405), .. }) => {
                log::debug!(target: "mlflow_secrets_auth.vault", event = "kv_guess";
                    "Vault did not say which mount {path} is on; trying KV version 2, then 1");
                let mount = self.mount_in_settings().unwrap_or_else(|| path.split('/').next().unwrap_or_default());
                let versions =
                    self.settings.kv_version.map_or(vec![KvVersion::V2, KvVersion::V1], |version| vec![version]);
                Ok(versions.into_iter().map(|version| place(mount, path, version)).collect())
            }
            Err(failure) => Err(client.failed("finding the secret's mount", failure)),
        }
    }

    /// The mount that the settings name, where the path begins with it.
    fn mount_in_settings(&self) -> Option<&str> {
        self.settings.kv_mount.as_deref()
    }

    async fn denied(&self, client: &VaultClient, token: &Token, places: &[Place]) -> Error {
        self.place.store(None);
        let who = self.identity.description();
        let address = client.shown_address();
        match client.ask(Some(&token.token), LookUpSelf {}).await {
            Err(failure) if failure.status == Some(403) => Error::new(
                ErrorCode::VaultTokenRefused,
                format!("Vault at {address} does not accept {who} (HTTP 403): it is unknown, revoked or expired"),
                "get a new token, or configure a login that renews itself, such as AppRole",
            ),
            _ => Error::new(
                ErrorCode::VaultPermissionDenied,
                format!("Vault at {address} refused to read {} (HTTP 403) with {who}", paths(places)),
                format!(
                    "give its policy the capability `read` on {}, then run `mlflow-secrets-auth doctor`",
                    places[0].path
                ),
            ),
        }
    }

    fn not_found(&self, client: &VaultClient, places: &[Place]) -> Error {
        self.place.store(None);
        Error::new(
            ErrorCode::VaultNotFound,
            format!("Vault at {} has no secret at {}", client.shown_address(), paths(places)),
            "check MLFLOW_VAULT_SECRET_PATH: it begins with the mount, as in secret/mlflow/auth (`vault secrets list` shows the mounts)",
        )
    }
}

impl Provider for VaultProvider {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Vault
    }

    fn fetch_secret<'a>(&'a self, clock: &'a dyn Clock) -> BoxFuture<'a, Result<SecretPayload>> {
        Box::pin(self.fetch(clock))
    }
}

fn place_on(info: &MountInfo, path: &str) -> Place {
    let mount = info.path.trim_matches('/');
    let version = info.options.as_ref().and_then(|options| options.version.as_deref());
    let is_v2 = matches!(info.kind.as_str(), "kv" | "generic") && version == Some("2");
    place(mount, path, if is_v2 { KvVersion::V2 } else { KvVersion::V1 })
}

/// The place of `path` on `mount`. On version 2, a path that already goes through `data/` is left as it is.
fn place(mount: &str, path: &str, version: KvVersion) -> Place {
    let rest = path.strip_prefix(mount).and_then(|rest| rest.strip_prefix('/')).unwrap_or(path);
    match version {
        KvVersion::V1 => Place { path: format!("{mount}/{rest}"), layout: Layout::Plain },
        KvVersion::V2 => {
            let rest = rest.strip_prefix("data/").unwrap_or(rest);
            Place { path: format!("{mount}/data/{rest}"), layout: Layout::V2 }
        }
    }
}

fn paths(places: &[Place]) -> String {
    places.iter().map(|place| place.path.as_str()).collect::<Vec<_>>().join(" or ")
}

/// A deleted or destroyed version of KV version 2 is answered with 404 and its metadata.
fn is_deleted(failure: &VaultFailure) -> bool {
    failure.body.as_ref().is_some_and(|body| body.pointer("/data/metadata").is_some())
}

fn deleted(place: &Place) -> Error {
    Error::new(
        ErrorCode::VaultSecretDeleted,
        format!("the newest version of {} is deleted or destroyed", place.path),
        "write the secret again, or undelete the version (`vault kv undelete`)",
    )
}
