//! HashiCorp Vault and OpenBao: read one secret, from a KV engine of either version or any other readable path.
//!
//! - `settings`, `login_settings`: the variables
//! - `identity`: the token in use, its renewal and its end; `login`: one login; `wrapping`: a secret id that comes wrapped
//! - `place`: which mount, which KV version, which path
//! - `client`, `endpoints`, `answer`: one exchange, and what it means
//!
//! <https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2>

mod answer;
mod client;
mod endpoints;
mod identity;
mod login;
mod login_settings;
mod place;
mod settings;
mod wrapping;

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use futures_util::future::BoxFuture;
use serde_json::Value;

use self::answer::{Envelope, VaultFailure, seconds};
use self::client::{Scope, VaultClient};
use self::endpoints::{FindMount, ReadPath, ReadVersion};
use self::identity::Identity;
pub use self::login_settings::PassedBy;
use self::place::{FoundPlace, Known, Layout, Place, found_place, paths};
pub use self::settings::{ClientCertificate, KvVersion, Login, SecretId, Server, TlsSettings, VaultSettings};
use super::{Provider, ProviderKind, SecretPayload};
use crate::clock::Clock;
use crate::error::{Error, ErrorCode, Result};
use crate::network::Network;
use crate::runtime::ProcessLocal;
use crate::secret::{SecretString, wipe};
use crate::settings::variables as var;

/// The Vault provider.
pub struct VaultProvider {
    settings: VaultSettings,
    network: Network,
    identity: Identity,
    client: ProcessLocal<ArcSwapOption<VaultClient>>,
    /// Where the secret was found last, by any provider of this process that looks for the same.
    place: FoundPlace,
}

impl VaultProvider {
    /// A provider that has not contacted Vault yet.
    pub fn new(settings: VaultSettings, network: Network) -> Self {
        let identity = Identity::new(&settings);
        let client = ProcessLocal::new(ArcSwapOption::empty);
        let place = found_place(&settings);
        Self { settings, network, identity, client, place }
    }

    async fn fetch(&self, clock: &dyn Clock) -> Result<SecretPayload> {
        let began = clock.now();
        let client = self.client()?;
        let error = match self.read(&client, clock).await {
            Ok(payload) => return Ok(payload),
            Err(error) => error,
        };
        if !self.identity.log_in_again(&client, clock, error.code(), began).await? {
            return Err(error);
        }
        self.read(&client, clock).await
    }

    fn client(&self) -> Result<Arc<VaultClient>> {
        let slot = self.client.get();
        if let Some(client) = slot.load_full().filter(|client| client.is_up_to_date()) {
            return Ok(client);
        }
        let client = Arc::new(VaultClient::new(&self.settings, &self.network)?);
        slot.store(Some(Arc::clone(&client)));
        Ok(client)
    }

    /// Reads the secret where it was found last, and looks for it anew where it is not there any more.
    async fn read(&self, client: &VaultClient, clock: &dyn Clock) -> Result<SecretPayload> {
        if let Some(place) = self.place.load_full() {
            let result = self.read_from(client, clock, std::slice::from_ref(&*place)).await;
            if !matches!(&result, Err(error) if error.code() == ErrorCode::VaultNotFound) {
                return result;
            }
            // The engine may have been upgraded to another version.
            self.place.store(None);
        }
        let places = self.places(client, clock).await?;
        self.read_from(client, clock, &places).await
    }

    async fn read_from(&self, client: &VaultClient, clock: &dyn Clock, places: &[Place]) -> Result<SecretPayload> {
        let mut denied = None;
        let mut mounted = false;
        for place in places {
            let failure = match self.read_place(client, clock, place).await? {
                Ok(payload) => return Ok(payload),
                Err(failure) => failure,
            };
            match failure.status {
                Some(404) if failure.says("namespace not found") => {
                    return Err(client.failed("reading the secret", failure));
                }
                Some(404) => {
                    if let Some(error) = self.gone(client, place, &failure) {
                        return Err(error);
                    }
                    mounted |= !failure.says("no handler for route");
                }
                // 403 says more than 404: Vault hides behind it what the policies don't show.
                Some(403) => denied = denied.or(Some(failure)),
                // The engine has no such operation, as version 1 of KV has none below `data/`.
                Some(405) => mounted = true,
                _ => return Err(client.failed("reading the secret", failure)),
            }
        }
        match denied {
            Some(failure) => Err(self.denied(client, places, &failure).await),
            None => Err(self.not_found(client, places, mounted)),
        }
    }

    async fn read_place(
        &self,
        client: &VaultClient,
        clock: &dyn Clock,
        place: &Place,
    ) -> Result<std::result::Result<SecretPayload, VaultFailure>> {
        let token = self.identity.token(client, clock).await?;
        let path = place.path.clone();
        let answer = match self.settings.secret_version {
            Some(version) if matches!(place.layout, Layout::V1 | Layout::Other) => {
                return Err(self.keeps_no_versions(place, version));
            }
            Some(version) => client.ask(Scope::Secret, token.as_ref(), ReadVersion { path, version }).await,
            None => client.ask(Scope::Secret, token.as_ref(), ReadPath { path }).await,
        };
        match answer {
            Ok(answer) => self.payload(client, clock, place, answer).map(Ok),
            Err(failure) => Ok(Err(failure)),
        }
    }

    fn payload(
        &self,
        client: &VaultClient,
        clock: &dyn Clock,
        place: &Place,
        answer: Envelope<Value>,
    ) -> Result<SecretPayload> {
        let mut data = answer.data.unwrap_or(Value::Null);
        if !(data.is_object() || data.is_null()) {
            wipe(data);
            return Err(client.unexpected("the data that it gave is no object"));
        }
        let layout = place.layout.of(&data);
        if let Some(version) = self.settings.secret_version.filter(|_| layout != Layout::V2) {
            wipe(data);
            return Err(self.keeps_no_versions(place, version));
        }
        let (mut version, mut created_at) = (None, None);
        let mut lease = (answer.lease_duration > 0).then(|| seconds(answer.lease_duration));
        match layout {
            Layout::V2 => {
                version = data.pointer("/metadata/version").and_then(Value::as_u64).map(|version| version.to_string());
                let created = data.pointer("/metadata/created_time").and_then(Value::as_str);
                created_at = created.and_then(|time| time.parse::<jiff::Timestamp>().ok()).map(SystemTime::from);
                let inner = data.get_mut("data").map(Value::take).unwrap_or(Value::Null);
                wipe(std::mem::replace(&mut data, inner));
            }
            // A password that Vault rotates, an identity token: they say themselves how long they last.
            Layout::Other | Layout::Unknown => {
                let ttl = data.get("ttl").and_then(Value::as_u64).filter(|ttl| *ttl > 0).map(seconds);
                lease = [lease, ttl].into_iter().flatten().min();
            }
            Layout::V1 => {}
        }
        // What is leased is revoked with the token that it was leased to.
        if answer.lease_id.is_some_and(|id| !id.is_empty()) {
            lease = [lease, self.identity.remaining(clock)].into_iter().flatten().min();
        }
        let is_empty = data.is_null() || data.as_object().is_some_and(serde_json::Map::is_empty);
        let text = SecretString::new(if is_empty { String::new() } else { data.to_string() });
        wipe(data);
        let found = Place { path: place.path.clone(), layout };
        if self.place.load().as_deref() != Some(&found) {
            self.place.store(Some(Arc::new(found)));
        }
        self.identity.is_trusted();
        Ok(SecretPayload { text, version, created_at, expires_at: None, lease, location: place.path.clone() })
    }

    /// Where to look: one place where the settings or the server tell, else what is likely.
    async fn places(&self, client: &VaultClient, clock: &dyn Clock) -> Result<Vec<Place>> {
        let path = match self.settings.known_place() {
            Known::Exactly(place) => return Ok(vec![place]),
            Known::Ask(path) => path,
        };
        let token = self.identity.token(client, clock).await?;
        match client.ask(Scope::Secret, token.as_ref(), FindMount { path: path.clone() }).await {
            Ok(Envelope { data: Some(info), .. }) => match self.settings.place_on(&info) {
                Some(place) => {
                    log::debug!(target: "mlflow_secrets_auth.vault", event = "kv_found", mount = info.path.as_str(),
                        path = place.path.as_str();
                        "Vault says that the mount is {}; the secret is at {}", info.path, place.path);
                    Ok(vec![place])
                }
                None => Err(self.wrong_mount(client)),
            },
            Err(failure) if failure.says("namespace not found") => {
                Err(client.failed("finding the secret's mount", failure))
            }
            // No right to ask, an old server, or no such mount: reading shows which.
            Ok(_) | Err(VaultFailure { status: Some(400 | 403 | 404 | 405), .. }) => {
                let places = self.settings.likely_places();
                log::debug!(target: "mlflow_secrets_auth.vault", event = "kv_guess", paths = paths(&places).as_str();
                    "Vault did not say which mount {path} is on; trying {}", paths(&places));
                Ok(places)
            }
            Err(failure) => Err(client.failed("finding the secret's mount", failure)),
        }
    }

    async fn denied(&self, client: &VaultClient, places: &[Place], failure: &VaultFailure) -> Error {
        self.place.store(None);
        let who = self.identity.description();
        let address = client.shown_address();
        if self.identity.is_refused(client, failure).await {
            return Error::new(
                ErrorCode::VaultTokenRefused,
                format!(
                    "Vault at {address} does not accept {who} (HTTP 403): it is unknown, revoked, expired or used up"
                ),
                "get a new token, or configure a login that renews itself, such as AppRole",
            );
        }
        let first = places.first().map(|place| place.path.as_str()).unwrap_or_default();
        let guessed = if places.len() > 1 {
            let mount = first.split('/').next().unwrap_or_default();
            format!(
                " (version 1 of KV: on {}); if no engine is mounted at {mount}/, {WRITE_THE_MOUNT}",
                self.settings.path
            )
        } else {
            String::new()
        };
        Error::new(
            ErrorCode::VaultPermissionDenied,
            format!(
                "Vault at {address} refused to read {}{} (HTTP 403) with {who}",
                paths(places),
                client.in_namespace()
            ),
            format!("give its policy the capability `read` on {first}{guessed}, then run `mlflow-secrets-auth doctor`"),
        )
    }

    fn not_found(&self, client: &VaultClient, places: &[Place], mounted: bool) -> Error {
        self.place.store(None);
        if !mounted && self.settings.kv_mount.is_some() {
            return self.wrong_mount(client);
        }
        let version = self.settings.secret_version.map(|version| format!(", version {version}")).unwrap_or_default();
        let mount = self.settings.path.split('/').next().unwrap_or_default();
        let (why, hint) = if mounted {
            (
                String::new(),
                "check MLFLOW_VAULT_SECRET_PATH, and that the secret was written (`vault kv get`)".to_owned(),
            )
        } else {
            (
                format!(", because no engine is mounted at {mount}/"),
                format!("{WRITE_THE_MOUNT}; `vault secrets list` shows the mounts"),
            )
        };
        Error::new(
            ErrorCode::VaultNotFound,
            format!(
                "Vault at {} has no secret at {}{}{version}{why}",
                client.shown_address(),
                paths(places),
                client.in_namespace()
            ),
            hint,
        )
    }

    fn wrong_mount(&self, client: &VaultClient) -> Error {
        let mount = self.settings.kv_mount.as_deref().unwrap_or_default();
        Error::new(
            ErrorCode::VaultWrongMount,
            format!("Vault at {} has no engine mounted at {mount}/{}", client.shown_address(), client.in_namespace()),
            format!("check {} (`vault secrets list` shows the mounts)", var::MLFLOW_VAULT_KV_MOUNT.name),
        )
    }

    fn keeps_no_versions(&self, place: &Place, version: u32) -> Error {
        let variable = var::MLFLOW_VAULT_SECRET_VERSION.name;
        Error::new(
            ErrorCode::ConfigInvalidValue,
            format!(
                "{variable} is {version}, and {} is not on a KV version 2 engine, which alone keeps versions",
                place.path
            ),
            format!("unset {variable}"),
        )
    }

    /// The error for a version that is deleted or destroyed: KV version 2 answers 404 with its metadata.
    fn gone(&self, client: &VaultClient, place: &Place, failure: &VaultFailure) -> Option<Error> {
        let metadata = failure.body.as_ref()?.pointer("/data/metadata")?;
        let version = metadata.get("version").and_then(Value::as_u64).unwrap_or_default();
        let what = format!("version {version} of {}{}", place.path, client.in_namespace());
        if metadata.get("destroyed").and_then(Value::as_bool) == Some(true) {
            return Some(Error::new(
                ErrorCode::VaultSecretDestroyed,
                format!("{what} is destroyed"),
                "write the secret again, or let MLFLOW_VAULT_SECRET_VERSION name another version",
            ));
        }
        Some(Error::new(
            ErrorCode::VaultSecretDeleted,
            format!("{what} is deleted"),
            "undelete the version (`vault kv undelete`), write the secret again, or let MLFLOW_VAULT_SECRET_VERSION name another",
        ))
    }
}

const WRITE_THE_MOUNT: &str =
    "let MLFLOW_VAULT_SECRET_PATH begin with the mount, as in secret/mlflow/auth (nothing is put before it)";

impl Provider for VaultProvider {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Vault
    }

    fn fetch_secret<'a>(&'a self, clock: &'a dyn Clock) -> BoxFuture<'a, Result<SecretPayload>> {
        Box::pin(self.fetch(clock))
    }

    fn used_up_by_fetching<'a>(&'a self) -> BoxFuture<'a, Result<Option<String>>> {
        Box::pin(async {
            match &self.settings.login {
                Login::AppRole { mount, secret_id: SecretId::Wrapped(token), .. } => {
                    wrapping::inspect(&*self.client()?, mount, token).await
                }
                _ => Ok(None),
            }
        })
    }
}
