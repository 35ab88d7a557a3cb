//! Managed identities: tokens that the machine's own endpoint gives.
//!
//! The SDK knows App Service and the metadata service; its source for Azure Machine Learning ends in an error, so that one
//! is here. <https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token>

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use azure_core::credentials::{AccessToken, TokenCredential, TokenRequestOptions};
use azure_core::error::ErrorKind;
use azure_core::http::{ClientOptions, Method, Pipeline, PipelineSendOptions, Request};
use azure_core::time::OffsetDateTime;
use azure_identity::{ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId};
use serde_json::Value;
use url::Url;

use super::client::{self, Failure, FailureKind, Peer, Seen};
use super::identity::Miss;
use super::settings::{AzureSettings, Machine};
use crate::error::{Error, ErrorCode, Outlook, Result};
use crate::http::{self, TransportFailure};
use crate::network::Network;
use crate::origin::Origin;
use crate::provider::ProviderKind;
use crate::secret::SecretString;
use crate::settings::variables as var;
use crate::steps;

/// The metadata service of a virtual machine, the same on each.
const METADATA: &str = "http://169.254.169.254";

/// Where it gives tokens; asked without the header `Metadata`, it refuses at once.
const METADATA_TOKEN: &str = "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2019-08-01";

/// How long the metadata service may take to show that it is there, while another way to sign in could still win.
const PROBE: Duration = Duration::from_secs(1);

/// The managed identity that the settings and the machine tell.
pub struct ManagedIdentity {
    kind: Kind,
    client_id: Option<String>,
}

enum Kind {
    Usable { credential: Arc<dyn TokenCredential>, probe: Option<reqwest::Client> },
    Unusable(Miss),
}

impl ManagedIdentity {
    /// Nothing is asked yet.
    ///
    /// # Errors
    /// Those of [`http::client`].
    pub fn new(settings: &AzureSettings, network: &Network, seen: &Arc<Seen>) -> Result<Self> {
        let client_id = match &settings.machine {
            Machine::MachineLearning { default_client_id, .. } => {
                settings.client_id.clone().or_else(|| default_client_id.clone())
            }
            _ => settings.client_id.clone(),
        };
        let kind = match &settings.machine {
            Machine::Unsupported(name) => Kind::Unusable(Miss::Failed(unsupported(name))),
            machine if !sdk_sees(machine) => Kind::Unusable(Miss::Unavailable(
                "the platform's variables (IDENTITY_ENDPOINT, IDENTITY_HEADER, MSI_ENDPOINT) must be set in the environment of the process".to_owned(),
            )),
            Machine::AppService { endpoint, .. } => {
                Kind::Usable { credential: of_sdk(options(endpoint, network, seen)?.1, client_id.clone())?, probe: None }
            }
            Machine::MachineLearning { endpoint, secret, .. } => {
                let (_, options) = options(endpoint, network, seen)?;
                let credential = MachineLearning {
                    endpoint: endpoint.clone(),
                    secret: secret.clone(),
                    client_id: client_id.clone(),
                    pipeline: pipeline(options),
                };
                Kind::Usable { credential: Arc::new(credential), probe: None }
            }
            Machine::Metadata => {
                let endpoint = Url::parse(METADATA_TOKEN).map_err(|_| unexpected("the metadata address"))?;
                let (http, options) = options(&endpoint, network, seen)?;
                Kind::Usable { credential: of_sdk(options, client_id.clone())?, probe: Some(http) }
            }
        };
        Ok(Self { kind, client_id })
    }

    /// How users know it.
    pub fn description(&self) -> String {
        match &self.client_id {
            Some(client_id) => format!("the user-assigned managed identity {client_id}"),
            None => "the managed identity of this machine".to_owned(),
        }
    }

    /// A token. With `others_could_win`, a metadata service that does not show itself within a second counts as absent;
    /// otherwise it has all the time that the fetch has.
    pub async fn token(&self, scopes: &[&str], others_could_win: bool) -> std::result::Result<AccessToken, Miss> {
        let (credential, probe) = match &self.kind {
            Kind::Usable { credential, probe } => (credential, probe),
            Kind::Unusable(miss) => return Err(miss.clone()),
        };
        if let Some(http) = probe.as_ref().filter(|_| others_could_win) {
            knock(http).await?;
        }
        credential.get_token(scopes, None).await.map_err(|error| self.miss(&error))
    }

    fn miss(&self, error: &azure_core::Error) -> Miss {
        let Some(failure) = client::cause::<Failure>(error) else {
            return Miss::Failed(unexpected("the answer of the managed identity endpoint"));
        };
        match failure.status() {
            Some(400) if is_about_the_identity(failure) => Miss::Failed(self.not_assigned(failure)),
            // Not Azure's: other clouds have a metadata service at the same address.
            Some(status @ (401 | 403)) if is_metadata(&failure.peer) => Miss::Unavailable(format!(
                "the metadata service at {METADATA} refused (HTTP {status}), as one that is not Azure's does"
            )),
            // It is being updated: the vendor says to ask again.
            Some(status @ (404 | 410)) if is_metadata(&failure.peer) => Miss::Failed(
                Error::new(
                    ErrorCode::AzureUnavailable,
                    format!("{} can't give a token now (HTTP {status})", failure.peer),
                    "check that a managed identity is switched on for this machine",
                )
                .with_outlook(Outlook::MayPass),
            ),
            Some(status @ 400..=499) if !matches!(status, 408 | 429) => Miss::Failed(refused(failure, status)),
            _ => Miss::Failed(failure.error()),
        }
    }

    fn not_assigned(&self, failure: &Failure) -> Error {
        let (what, hint) = match &self.client_id {
            Some(client_id) => (
                format!("the managed identity {client_id} is not assigned to this machine"),
                format!(
                    "assign it to the machine, or correct {}: it is the identity's client id, not its object id",
                    var::AZURE_CLIENT_ID.name
                ),
            ),
            None => (
                "this machine has no managed identity of its own, or several and none is named".to_owned(),
                format!(
                    "switch on the system-assigned identity, or name a user-assigned one by its client id in {}",
                    var::AZURE_CLIENT_ID.name
                ),
            ),
        };
        Error::new(ErrorCode::AzureIdentityNotAssigned, format!("{what}, says {} (HTTP 400)", failure.peer), hint)
    }
}

/// "Identity not found", "Multiple user assigned identities exist", and no answer but the status, as in the SDK.
fn is_about_the_identity(failure: &Failure) -> bool {
    let texts = ["/error_description", "/message", "/Message"];
    let text = texts.iter().find_map(|pointer| failure.text_at(pointer));
    failure.aadsts().is_none() && text.is_none_or(|text| text.contains("dentity") || text.contains("identities"))
}

fn is_metadata(peer: &Peer) -> bool {
    *peer == Peer::Identity(METADATA.to_owned())
}

/// Asks the metadata service for anything, to see whether it is there.
async fn knock(http: &reqwest::Client) -> std::result::Result<(), Miss> {
    let knock = async {
        let request = http.get(METADATA_TOKEN).build()?;
        let asking = steps::asking(ProviderKind::AzureKeyVault, "GET", request.url());
        let answer = http.execute(request).await;
        asking.ended(&answer);
        answer
    };
    let failure = match tokio::time::timeout(PROBE, knock).await {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => match TransportFailure::of(&error) {
            TransportFailure::Tls(reason) | TransportFailure::Unreachable(reason) => {
                format!("can't be reached: {reason}")
            }
        },
        Err(_) => format!(
            "did not answer within {} s; {}=ManagedIdentityCredential gives it more time",
            PROBE.as_secs(),
            var::AZURE_TOKEN_CREDENTIALS.name
        ),
    };
    Err(Miss::Unavailable(format!("the metadata service at {METADATA} {failure}")))
}

/// A client for an endpoint on this machine or next to it: never through a proxy.
fn options(endpoint: &Url, network: &Network, seen: &Arc<Seen>) -> Result<(reqwest::Client, ClientOptions)> {
    let origin = Origin::of(endpoint.as_str())?;
    let http = http::client(&http::ClientOptions { direct: true, ..http::ClientOptions::towards(&origin, network) })?;
    let peer = Peer::Identity(origin.to_string());
    let options = client::options(&http, peer, seen);
    Ok((http, options))
}

fn of_sdk(options: ClientOptions, client_id: Option<String>) -> Result<Arc<dyn TokenCredential>> {
    let options = ManagedIdentityCredentialOptions {
        user_assigned_id: client_id.map(UserAssignedId::ClientId),
        client_options: options,
    };
    match ManagedIdentityCredential::new(Some(options)) {
        Ok(credential) => Ok(credential),
        Err(_) => Err(unexpected("the environment of this machine")),
    }
}

/// Whether the SDK, which reads the process's environment itself, comes to the same machine as our settings.
fn sdk_sees(machine: &Machine) -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some();
    let endpoint = std::env::var(var::IDENTITY_ENDPOINT.name);
    match machine {
        Machine::AppService { endpoint: ours, header } => {
            endpoint.is_ok_and(|theirs| Url::parse(&theirs).is_ok_and(|theirs| theirs == *ours))
                && std::env::var(var::IDENTITY_HEADER.name).is_ok_and(|theirs| theirs.trim() == header.expose())
                && !is_set(var::IDENTITY_SERVER_THUMBPRINT.name)
        }
        Machine::Metadata => {
            let app_service =
                endpoint.is_ok() && (is_set(var::IDENTITY_HEADER.name) || is_set(var::IMDS_ENDPOINT.name));
            let msi = !is_set(var::IDENTITY_ENDPOINT.name) && is_set(var::MSI_ENDPOINT.name);
            !app_service && !msi
        }
        Machine::MachineLearning { .. } | Machine::Unsupported(_) => true,
    }
}

fn refused(failure: &Failure, status: u16) -> Error {
    let number = failure.aadsts().map(|number| format!(", AADSTS{number}")).unwrap_or_default();
    Error::new(
        ErrorCode::AzureSignInRefused,
        format!("{} refused to give a token (HTTP {status}{number})", failure.peer),
        "check that the platform's own variables (IDENTITY_HEADER, MSI_SECRET) are unchanged, and that the managed identity still exists",
    )
}

fn unsupported(name: &str) -> Error {
    Error::new(
        ErrorCode::AzureIdentityUnsupported,
        format!("this runs on {name}, whose managed identities are not supported"),
        "sign in with a service principal (AZURE_TENANT_ID, AZURE_CLIENT_ID and a secret or a certificate) or, where a person works, with `az login` and AZURE_TOKEN_CREDENTIALS=dev",
    )
}

fn unexpected(what: &str) -> Error {
    Error::new(
        ErrorCode::AzureUnexpectedAnswer,
        format!("{what} is not what a managed identity needs"),
        "check that the variables of the platform are as it set them",
    )
}

/// Azure Machine Learning's endpoint: that of App Service as it was in 2017, with differences.
struct MachineLearning {
    endpoint: Url,
    secret: SecretString,
    client_id: Option<String>,
    pipeline: Pipeline,
}

impl fmt::Debug for MachineLearning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MachineLearning(masked)")
    }
}

fn pipeline(options: ClientOptions) -> Pipeline {
    Pipeline::new(Some(env!("CARGO_PKG_NAME")), Some(env!("CARGO_PKG_VERSION")), options, Vec::new(), Vec::new(), None)
}

#[async_trait]
impl TokenCredential for MachineLearning {
    async fn get_token(
        &self,
        scopes: &[&str],
        _options: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        let scope = scopes.first().copied().unwrap_or_default();
        let mut url = self.endpoint.clone();
        url.query_pairs_mut()
            .append_pair("api-version", "2017-09-01")
            .append_pair("resource", scope.strip_suffix("/.default").unwrap_or(scope));
        if let Some(client_id) = &self.client_id {
            url.query_pairs_mut().append_pair("clientid", client_id);
        }
        let mut request = Request::new(url, Method::Get);
        request.insert_header("secret", self.secret.expose().to_owned());
        let options = PipelineSendOptions { skip_checks: true, ..PipelineSendOptions::default() };
        let answer = self.pipeline.send(&azure_core::http::Context::new(), &mut request, Some(options)).await?;
        let body: Value = serde_json::from_slice(answer.body().as_ref())?;
        let token = body["access_token"].as_str();
        // A number here, text on the App Service that it was made after.
        let ends = body["expires_on"].as_i64().or_else(|| body["expires_on"].as_str()?.parse().ok());
        let ends = ends.and_then(|ends| OffsetDateTime::from_unix_timestamp(ends).ok());
        match (token, ends) {
            (Some(token), Some(ends)) => Ok(AccessToken::new(token.to_owned(), ends)),
            _ => Err(azure_core::Error::new(
                ErrorKind::Other,
                Failure {
                    peer: Peer::Identity(self.endpoint.origin().ascii_serialization()),
                    kind: FailureKind::Odd("it holds no token, or not its end"),
                },
            )),
        }
    }
}
