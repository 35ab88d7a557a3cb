//! Who we are to Azure: one explainable chain of the SDK's credentials, and which of them won.
//!
//! | # | way | open when | after a failure |
//! |---|---|---|---|
//! | 1 | `EnvironmentCredential` | tenant, client, and a secret or a certificate are set | the chain ends |
//! | 2 | `WorkloadIdentityCredential` | tenant, client and a token file are set | the chain ends |
//! | 3 | `ManagedIdentityCredential` | the machine's endpoint answers | the chain goes on |
//! | 4 | `AzureCliCredential` | `az` is on the path | the chain goes on |
//! | 5 | `AzureDeveloperCliCredential` | `azd` is on the path | the chain goes on |
//!
//! What the user configured and Entra refuses must not be covered up by another identity that happens to work, so 1 and 2
//! end the chain. The winner is remembered, over forks too, and asked alone from then on; when it fails for good, the next
//! fetch walks the chain again.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use async_trait::async_trait;
use azure_core::cloud::{CloudConfiguration, CustomConfiguration};
use azure_core::credentials::{AccessToken, Secret, TokenCredential, TokenRequestOptions};
use azure_core::error::ErrorKind;
use azure_core::http::{ClientMethodOptions, ClientOptions};
use azure_identity::{
    AzureCliCredential, AzureCliCredentialOptions, AzureDeveloperCliCredential, AzureDeveloperCliCredentialOptions,
    ClientAssertion, ClientAssertionCredential, ClientAssertionCredentialOptions, ClientSecretCredential,
    ClientSecretCredentialOptions,
};

use super::certificate::ClientCertificate;
use super::client::{self, Peer, Seen};
use super::developer_tool::{AZURE_CLI, AZURE_DEVELOPER_CLI, NotInstalled, Tool};
use super::entra::{self, Presented};
use super::managed_identity::ManagedIdentity;
use super::settings::{AzureSettings, CertificateFile, SignIn};
use crate::error::{Error, ErrorCode, Outlook, Result};
use crate::http::plain_io;
use crate::network::Network;
use crate::provider::ProviderKind;
use crate::settings::variables as var;
use crate::steps;

/// Why a way to sign in gave no token.
#[derive(Clone)]
pub enum Miss {
    /// It is not open here: not configured, not installed, not on Azure.
    Unavailable(String),
    /// It is open, and failed.
    Failed(Error),
}

/// How one way to sign in went.
#[derive(Clone)]
struct Attempt {
    sign_in: SignIn,
    outcome: String,
    took: Duration,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} ms): {}", self.sign_in.name(), self.took.as_millis(), self.outcome)
    }
}

/// What a provider remembers of its sign-ins. These are values, not connections: a forked child may use them.
#[derive(Default)]
pub struct Memory {
    winner: ArcSwapOption<SignIn>,
    attempts: ArcSwap<Vec<Attempt>>,
}

impl Memory {
    /// The last walk along the chain, a line for each way that was tried, and the winner's last.
    pub fn lines(&self) -> Vec<String> {
        self.attempts.load().iter().map(ToString::to_string).collect()
    }

    /// Whether a way to sign in has won.
    pub fn has_winner(&self) -> bool {
        self.winner.load().is_some()
    }

    fn note(&self, attempt: Attempt) {
        self.attempts.rcu(|attempts| [attempts.as_slice(), std::slice::from_ref(&attempt)].concat());
    }
}

/// The chain, as the SDK's own kind of credential.
pub struct Identity {
    settings: Arc<AzureSettings>,
    seen: Arc<Seen>,
    memory: Arc<Memory>,
    service_principal: Option<Arc<dyn TokenCredential>>,
    workload: Option<Arc<dyn TokenCredential>>,
    machine: ManagedIdentity,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(masked)")
    }
}

impl Identity {
    /// The chain that the settings describe; `http` is for Microsoft Entra ID. Nothing is sent. A certificate must be valid
    /// at `now`.
    ///
    /// # Errors
    /// What a configured certificate or token file lacks, so that it is known before anything is sent.
    pub fn new(
        settings: &Arc<AzureSettings>,
        network: &Network,
        http: &reqwest::Client,
        seen: &Arc<Seen>,
        memory: &Arc<Memory>,
        now: SystemTime,
    ) -> Result<Self> {
        let options = || {
            let mut options = client::options(http, Peer::Entra(settings.authority.to_string()), seen);
            options.cloud = Some(Arc::new(cloud(&settings.authority.to_string())));
            options
        };
        let wanted = |sign_in| settings.sign_ins.contains(&sign_in);
        let service_principal =
            if wanted(SignIn::Environment) { service_principal(settings, options(), now)? } else { None };
        // Where a service principal is configured the chain ends with it, and the token's file doesn't matter.
        let workload = if wanted(SignIn::WorkloadIdentity) && service_principal.is_none() {
            workload(settings, options())?
        } else {
            None
        };
        Ok(Self {
            settings: Arc::clone(settings),
            seen: Arc::clone(seen),
            memory: Arc::clone(memory),
            service_principal,
            workload,
            machine: ManagedIdentity::new(settings, network, seen)?,
        })
    }

    /// A token from the remembered winner, or from the first way that gives one.
    async fn sign_in(&self, scopes: &[&str]) -> Result<AccessToken> {
        if let Some(winner) = self.memory.winner.load_full() {
            let result = self.ask(*winner, scopes, false).await;
            return result.map_err(|miss| self.winner_failed(*winner, miss));
        }
        self.memory.attempts.store(Arc::default());
        let mut failures = Vec::new();
        for (index, sign_in) in self.settings.sign_ins.iter().enumerate() {
            let others_could_win = index + 1 < self.settings.sign_ins.len();
            let started = Instant::now();
            let result = self.ask(*sign_in, scopes, others_could_win).await;
            let took = started.elapsed();
            let outcome = match &result {
                Ok(_) => Ok(self.description(*sign_in)),
                Err(Miss::Unavailable(reason)) => Err(reason.clone()),
                Err(Miss::Failed(error)) => Err(format!("{}: {}", error.code(), error.message())),
            };
            let told = outcome.as_deref().map_err(String::as_str);
            steps::tried(ProviderKind::AzureKeyVault, sign_in.name(), told, took);
            let outcome = outcome.map_or_else(|why| why, |who| format!("signed in to Azure as {who}"));
            let attempt = Attempt { sign_in: *sign_in, outcome, took };
            self.memory.note(attempt.clone());
            match result {
                Ok(token) => {
                    self.won(&attempt);
                    return Ok(token);
                }
                Err(Miss::Failed(error)) if ends_the_chain(*sign_in) => return Err(error),
                Err(Miss::Failed(error)) => failures.push(error),
                Err(Miss::Unavailable(_)) => {}
            }
        }
        Err(self.nobody_won(failures))
    }

    fn won(&self, attempt: &Attempt) {
        self.memory.winner.store(Some(Arc::new(attempt.sign_in)));
        log::info!(target: "mlflow_secrets_auth.azure", event = "signed_in", way = attempt.sign_in.name(),
            duration_ms = attempt.took.as_millis() as u64; "{attempt}");
    }

    fn winner_failed(&self, winner: SignIn, miss: Miss) -> Error {
        let error = match miss {
            Miss::Failed(error) => error,
            Miss::Unavailable(reason) => no_identity(format!("{} is gone: {reason}", winner.name()), None),
        };
        if error.outlook() == Outlook::Final {
            self.memory.winner.store(None);
        }
        error
    }

    async fn ask(
        &self,
        sign_in: SignIn,
        scopes: &[&str],
        others_could_win: bool,
    ) -> std::result::Result<AccessToken, Miss> {
        match sign_in {
            SignIn::Environment => self.ask_service_principal(scopes).await,
            SignIn::WorkloadIdentity => self.ask_workload(scopes).await,
            SignIn::ManagedIdentity => self.machine.token(scopes, others_could_win).await,
            SignIn::AzureCli => self.ask_tool(AZURE_CLI, scopes).await,
            SignIn::AzureDeveloperCli => self.ask_tool(AZURE_DEVELOPER_CLI, scopes).await,
        }
    }

    async fn ask_service_principal(&self, scopes: &[&str]) -> std::result::Result<AccessToken, Miss> {
        let Some(credential) = &self.service_principal else {
            return Err(Miss::Unavailable(match self.settings.lacking_for_service_principal() {
                Some((given, lacking)) => format!("{given} is set, but {lacking} is not"),
                None => format!(
                    "neither {} nor {} is set",
                    var::AZURE_CLIENT_SECRET.name,
                    var::AZURE_CLIENT_CERTIFICATE_PATH.name
                ),
            }));
        };
        let presented = if self.settings.client_secret.is_some() { Presented::Secret } else { Presented::Certificate };
        let result = credential.get_token(scopes, None).await;
        result.map_err(|error| Miss::Failed(entra::refused(&error, &self.settings, presented)))
    }

    async fn ask_workload(&self, scopes: &[&str]) -> std::result::Result<AccessToken, Miss> {
        let Some(credential) = &self.workload else {
            let needed = [
                (&var::AZURE_FEDERATED_TOKEN_FILE, self.settings.federated_token_file.is_some()),
                (&var::AZURE_TENANT_ID, self.settings.tenant_id.is_some()),
                (&var::AZURE_CLIENT_ID, self.settings.client_id.is_some()),
            ];
            let lacking: Vec<_> = needed.iter().filter(|(_, is_set)| !is_set).map(|(needed, _)| needed.name).collect();
            return Err(Miss::Unavailable(format!("not set: {}", lacking.join(", "))));
        };
        let result = credential.get_token(scopes, None).await;
        result.map_err(|error| Miss::Failed(entra::refused(&error, &self.settings, Presented::FederatedToken)))
    }

    async fn ask_tool(&self, tool: Tool, scopes: &[&str]) -> std::result::Result<AccessToken, Miss> {
        self.seen.waiting_for.store(Some(Arc::new(format!("{} (`{}`)", tool.name, tool.command))));
        // A person may be logged in to several tenants; the vault has said which one it is in.
        let challenge = self.seen.challenge.load_full();
        let tenant = challenge.and_then(|challenge| challenge.tenant.clone());
        let tenant_id = tenant.or_else(|| self.settings.tenant_id.clone());
        let executor: Option<Arc<dyn azure_identity::Executor>> = Some(Arc::new(tool));
        let credential: azure_core::Result<Arc<dyn TokenCredential>> = match tool.command {
            "az" => {
                let options = AzureCliCredentialOptions { subscription: None, tenant_id, executor };
                AzureCliCredential::new(Some(options)).map(|credential| credential as _)
            }
            _ => {
                let options = AzureDeveloperCliCredentialOptions { tenant_id, executor };
                AzureDeveloperCliCredential::new(Some(options)).map(|credential| credential as _)
            }
        };
        let result = match credential {
            Ok(credential) => credential.get_token(scopes, None).await,
            Err(error) => Err(error),
        };
        result.map_err(|error| {
            if let Some(absent) = client::cause::<NotInstalled>(&error) {
                return Miss::Unavailable(absent.to_string());
            }
            let failed = client::cause::<Error>(&error).cloned();
            Miss::Failed(failed.unwrap_or_else(|| {
                Error::new(
                    ErrorCode::AzureToolFailed,
                    format!("{} answered something that is no token", tool.name),
                    format!("update it; `{}` must work in this environment", tool.log_in),
                )
            }))
        })
    }

    /// Who a way signs in as, as users know it.
    fn description(&self, sign_in: SignIn) -> String {
        let client = self.settings.client_id.as_deref().unwrap_or_default();
        match sign_in {
            SignIn::Environment if self.settings.client_secret.is_some() => {
                format!("the service principal {client} with a secret")
            }
            SignIn::Environment => format!("the service principal {client} with a certificate"),
            SignIn::WorkloadIdentity => format!("the workload identity {client}"),
            SignIn::ManagedIdentity => self.machine.description(),
            SignIn::AzureCli => "whoever is logged in with `az`".to_owned(),
            SignIn::AzureDeveloperCli => "whoever is logged in with `azd`".to_owned(),
        }
    }

    /// The first failure, if any, with the whole chain behind it.
    fn nobody_won(&self, failures: Vec<Error>) -> Error {
        let lines = self.memory.lines();
        let list = format!("\n  {}", lines.join("\n  "));
        let mut failures = failures.into_iter();
        match (failures.next(), lines.len()) {
            (Some(error), 1) => error,
            (Some(error), _) => {
                let retry_after = error.retry_after();
                let outlook = error.outlook();
                Error::new(
                    error.code(),
                    format!("{}; no other way to sign in to Azure worked either{list}", without_lines(&error)),
                    error.hint(),
                )
                .with_outlook(outlook)
                .with_retry_after(retry_after)
            }
            (None, 1) => {
                no_identity(format!("signing in to Azure did not work{list}"), self.settings.sign_ins.first().copied())
            }
            (None, _) => no_identity(format!("none of the ways to sign in to Azure worked{list}"), None),
        }
    }
}

fn without_lines(error: &Error) -> String {
    error.message().replace('\n', " ")
}

/// Whether a failure of this way must not be covered up by another identity that happens to work.
fn ends_the_chain(sign_in: SignIn) -> bool {
    matches!(sign_in, SignIn::Environment | SignIn::WorkloadIdentity)
}

fn no_identity(message: String, only: Option<SignIn>) -> Error {
    let hint = match only {
        Some(SignIn::Environment) => {
            "set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET or AZURE_CLIENT_CERTIFICATE_PATH"
        }
        Some(SignIn::WorkloadIdentity) => {
            "label the pod azure.workload.identity/use=true, so that AKS sets these variables"
        }
        Some(SignIn::ManagedIdentity) => "switch on a managed identity for this machine",
        Some(SignIn::AzureCli) => "install the Azure CLI and run `az login`",
        Some(SignIn::AzureDeveloperCli) => "install the Azure Developer CLI and run `azd auth login`",
        None => {
            "on Azure, switch on a managed identity; elsewhere set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, or run `az login`"
        }
    };
    Error::new(ErrorCode::AzureNoIdentity, message, hint)
}

#[async_trait]
impl TokenCredential for Identity {
    async fn get_token(
        &self,
        scopes: &[&str],
        _options: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        self.sign_in(scopes).await.map_err(wrapped)
    }
}

/// Our error as a cause in the SDK's.
fn wrapped(error: Error) -> azure_core::Error {
    azure_core::Error::new(ErrorKind::Credential, error)
}

/// A cloud whose authority is told, so that the SDK doesn't look for it in the environment.
fn cloud(authority: &str) -> CloudConfiguration {
    let mut configuration = CustomConfiguration::default();
    configuration.authority_host = authority.to_owned();
    configuration.into()
}

fn service_principal(
    settings: &AzureSettings,
    options: ClientOptions,
    now: SystemTime,
) -> Result<Option<Arc<dyn TokenCredential>>> {
    let (Some(tenant), Some(client)) = (&settings.tenant_id, &settings.client_id) else { return Ok(None) };
    if let Some(secret) = &settings.client_secret {
        let options = ClientSecretCredentialOptions { client_options: options };
        let secret = Secret::new(secret.expose().to_owned());
        let credential = ClientSecretCredential::new(tenant, client.clone(), secret, Some(options));
        return made(credential.map(|credential| credential as _)).map(Some);
    }
    let Some(file) = &settings.certificate else { return Ok(None) };
    ClientCertificate::load(file, now)?;
    let assertion = CertificateAssertion {
        file: file.clone(),
        audience: format!("{}/{tenant}/oauth2/v2.0/token", settings.authority),
        client_id: client.clone(),
    };
    asserted(tenant, client, assertion, options)
}

fn workload(settings: &AzureSettings, options: ClientOptions) -> Result<Option<Arc<dyn TokenCredential>>> {
    let (Some(tenant), Some(client)) = (&settings.tenant_id, &settings.client_id) else { return Ok(None) };
    let Some(file) = &settings.federated_token_file else { return Ok(None) };
    let assertion = FederatedToken(file.clone());
    assertion.read()?;
    asserted(tenant, client, assertion, options)
}

fn asserted(
    tenant: &str,
    client: &str,
    assertion: impl ClientAssertion + 'static,
    options: ClientOptions,
) -> Result<Option<Arc<dyn TokenCredential>>> {
    let options = ClientAssertionCredentialOptions { client_options: options };
    let credential = ClientAssertionCredential::new(tenant.to_owned(), client.to_owned(), assertion, Some(options));
    made(credential.map(|credential| credential as _)).map(Some)
}

/// The settings were checked for all that the SDK refuses here, so this can't fail for a reason that a user could mend.
fn made(credential: azure_core::Result<Arc<dyn TokenCredential>>) -> Result<Arc<dyn TokenCredential>> {
    credential.map_err(|_| {
        Error::new(
            ErrorCode::FetchInternal,
            "the Azure SDK does not accept the settings of the sign-in",
            "check AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_AUTHORITY_HOST, and report this",
        )
    })
}

/// A certificate that is read again for each exchange, so that a renewed one is used without a restart.
struct CertificateAssertion {
    file: CertificateFile,
    audience: String,
    client_id: String,
}

impl fmt::Debug for CertificateAssertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateAssertion(masked)")
    }
}

#[async_trait]
impl ClientAssertion for CertificateAssertion {
    async fn secret(&self, _options: Option<ClientMethodOptions<'_>>) -> azure_core::Result<String> {
        // The SDK passes no clock.
        let now = SystemTime::now();
        let certificate = ClientCertificate::load(&self.file, now).map_err(wrapped)?;
        certificate.assertion(&self.audience, &self.client_id, self.file.send_chain, now).map_err(wrapped)
    }
}

/// A token that the platform renews in its file, and that is therefore read for each exchange.
#[derive(Debug)]
struct FederatedToken(PathBuf);

impl FederatedToken {
    fn read(&self) -> Result<String> {
        let unusable = |what: String| {
            Error::new(
                ErrorCode::AzureFederatedTokenInvalid,
                format!("{} names {}, which {what}", var::AZURE_FEDERATED_TOKEN_FILE.name, self.0.display()),
                "check that the service account's token is mounted there and readable for this process",
            )
        };
        let token =
            std::fs::read_to_string(&self.0).map_err(|e| unusable(format!("can't be read: {}", plain_io(&e))))?;
        match token.trim() {
            "" => Err(unusable("is empty".to_owned())),
            token => Ok(token.to_owned()),
        }
    }
}

#[async_trait]
impl ClientAssertion for FederatedToken {
    async fn secret(&self, _options: Option<ClientMethodOptions<'_>>) -> azure_core::Result<String> {
        self.read().map_err(wrapped)
    }
}
