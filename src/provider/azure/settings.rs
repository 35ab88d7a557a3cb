//! The variables of the Azure Key Vault provider.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use crate::credential::AuthMode;
use crate::error::{ErrorCode, Result};
use crate::origin::{Origin, Scheme, redacted};
use crate::provider::ProviderKind;
use crate::secret::SecretString;
use crate::settings::variables::{self as var, Variable};
use crate::settings::{Reader, malformed, missing};

/// What the Azure Key Vault provider needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct AzureSettings {
    /// The vault: `https://host[:port]`, from `MLFLOW_AZURE_KEY_VAULT_URL` or `AZURE_KEY_VAULT_NAME`.
    pub vault: Origin,
    /// `MLFLOW_AZURE_SECRET_NAME`.
    pub secret_name: String,
    /// `MLFLOW_AZURE_SECRET_VERSION`; `None` is the latest.
    pub secret_version: Option<String>,
    /// `MLFLOW_AZURE_AUTH_MODE`.
    pub auth_mode: AuthMode,
    /// `MLFLOW_AZURE_TTL_SEC`.
    pub ttl: Duration,
    /// `MLFLOW_AZURE_VERIFY_CHALLENGE`.
    pub verify_challenge: bool,
    /// Where Microsoft Entra ID is: `https://host[:port]`.
    pub authority: Origin,
    /// Which ways to sign in are tried, in this order. Never empty.
    pub sign_ins: Vec<SignIn>,
    /// `AZURE_TENANT_ID`.
    pub tenant_id: Option<String>,
    /// `AZURE_CLIENT_ID`.
    pub client_id: Option<String>,
    /// `AZURE_CLIENT_SECRET`.
    pub client_secret: Option<SecretString>,
    /// `AZURE_CLIENT_CERTIFICATE_PATH` and what belongs to it.
    pub certificate: Option<CertificateFile>,
    /// `AZURE_FEDERATED_TOKEN_FILE`.
    pub federated_token_file: Option<PathBuf>,
    /// Where a managed identity would get its tokens.
    pub machine: Machine,
}

/// A way to sign in, named as in Microsoft's other SDKs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignIn {
    /// A service principal with a secret or a certificate.
    Environment,
    /// A token that a platform such as Kubernetes gives the workload.
    WorkloadIdentity,
    /// An identity that Azure gives the machine.
    ManagedIdentity,
    /// Whoever is logged in with `az`.
    AzureCli,
    /// Whoever is logged in with `azd`.
    AzureDeveloperCli,
}

impl SignIn {
    /// Every way, in the order in which they are tried.
    pub const ALL: &'static [Self] =
        &[Self::Environment, Self::WorkloadIdentity, Self::ManagedIdentity, Self::AzureCli, Self::AzureDeveloperCli];

    /// Its name in `AZURE_TOKEN_CREDENTIALS` and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Environment => "EnvironmentCredential",
            Self::WorkloadIdentity => "WorkloadIdentityCredential",
            Self::ManagedIdentity => "ManagedIdentityCredential",
            Self::AzureCli => "AzureCliCredential",
            Self::AzureDeveloperCli => "AzureDeveloperCliCredential",
        }
    }

    /// Whether it runs a developer's tool.
    pub fn is_tool(self) -> bool {
        matches!(self, Self::AzureCli | Self::AzureDeveloperCli)
    }
}

/// A client certificate's file.
#[derive(Clone, Debug, PartialEq)]
pub struct CertificateFile {
    /// `AZURE_CLIENT_CERTIFICATE_PATH`.
    pub path: PathBuf,
    /// `AZURE_CLIENT_CERTIFICATE_PASSWORD`.
    pub password: Option<SecretString>,
    /// `AZURE_CLIENT_SEND_CERTIFICATE_CHAIN`.
    pub send_chain: bool,
}

/// The kind of machine that we run on, as far as managed identities go.
#[derive(Clone, Debug, PartialEq)]
pub enum Machine {
    /// App Service, Functions, Container Apps: `IDENTITY_ENDPOINT` and `IDENTITY_HEADER`.
    AppService {
        /// `IDENTITY_ENDPOINT`.
        endpoint: Url,
        /// `IDENTITY_HEADER`.
        header: SecretString,
    },
    /// Azure Machine Learning compute: `MSI_ENDPOINT` and `MSI_SECRET`.
    MachineLearning {
        /// `MSI_ENDPOINT`.
        endpoint: Url,
        /// `MSI_SECRET`.
        secret: SecretString,
        /// `DEFAULT_IDENTITY_CLIENT_ID`.
        default_client_id: Option<String>,
    },
    /// A virtual machine, AKS, Container Instances, or no machine of Azure's: the metadata service tells.
    Metadata,
    /// One whose managed identities are not supported, by its name.
    Unsupported(&'static str),
}

/// A cloud that Microsoft or a partner of it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cloud {
    Public,
    UsGovernment,
    China,
}

impl Cloud {
    const ALL: [Self; 3] = [Self::Public, Self::UsGovernment, Self::China];

    const NAMES: [(&'static str, Option<Self>); 5] = [
        ("AzurePublicCloud", Some(Self::Public)),
        ("AzureUSGovernment", Some(Self::UsGovernment)),
        ("AzureChinaCloud", Some(Self::China)),
        ("AzureCloud", Some(Self::Public)),
        ("AzureUSGovernmentCloud", Some(Self::UsGovernment)),
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Public => "AzurePublicCloud",
            Self::UsGovernment => "AzureUSGovernment",
            Self::China => "AzureChinaCloud",
        }
    }

    /// What the hosts of its key vaults end in.
    fn vault_suffix(self) -> &'static str {
        match self {
            Self::Public => ".vault.azure.net",
            Self::UsGovernment => ".vault.usgovcloudapi.net",
            Self::China => ".vault.azure.cn",
        }
    }

    /// The host of its Microsoft Entra ID.
    fn authority(self) -> &'static str {
        match self {
            Self::Public => "login.microsoftonline.com",
            Self::UsGovernment => "login.microsoftonline.us",
            Self::China => "login.chinacloudapi.cn",
        }
    }

    fn of_vault(host: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cloud| host.ends_with(cloud.vault_suffix()))
    }

    fn of_authority(host: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cloud| host == cloud.authority())
    }
}

impl AzureSettings {
    /// Reads the variables. `Ok(None)` where a value is malformed, which `reader` has recorded.
    ///
    /// Who to sign in as is not checked here: what is set decides at the first fetch which ways are open.
    ///
    /// # Errors
    /// [`ErrorCode::ConfigMissing`] where the vault or the secret's name is not set.
    pub fn read(reader: &mut Reader<'_>) -> Result<Option<Self>> {
        let had_errors = reader.errors().len();
        let named = reader.choice(&var::AZURE_CLOUD_ENVIRONMENT, &Cloud::NAMES, None);
        let given_authority = authority(reader);
        let vault = vault(reader, named, given_authority.as_ref());
        let secret_name = pattern(reader, &var::MLFLOW_AZURE_SECRET_NAME, 127, "-");
        let secret_version = version(reader);
        let auth_mode = reader.choice(&var::MLFLOW_AZURE_AUTH_MODE, AuthMode::NAMES, AuthMode::Bearer);
        let ttl = reader.seconds(&var::MLFLOW_AZURE_TTL_SEC, 300, 0..=86_400);
        let verify_challenge = reader.boolean(&var::MLFLOW_AZURE_VERIFY_CHALLENGE, true);
        let sign_ins = sign_ins(reader);
        let tenant_id = pattern(reader, &var::AZURE_TENANT_ID, 253, "-.");
        let client_id = pattern(reader, &var::AZURE_CLIENT_ID, 253, "-.");
        let client_secret = reader.secret(&var::AZURE_CLIENT_SECRET);
        let certificate = certificate(reader);
        let federated_token_file = reader.text(&var::AZURE_FEDERATED_TOKEN_FILE).map(PathBuf::from);
        let machine = machine(reader);
        if reader.errors().len() > had_errors {
            let vault: &[_] =
                &[&var::MLFLOW_AZURE_KEY_VAULT_URL, &var::AZURE_KEY_VAULT_URL, &var::AZURE_KEY_VAULT_NAME];
            return malformed(ProviderKind::AzureKeyVault, &[vault, &[&var::MLFLOW_AZURE_SECRET_NAME]], reader);
        }
        let (Some(vault), Some(secret_name)) = (vault.clone(), secret_name.clone()) else {
            let mut lacking = Vec::new();
            lacking.extend(vault.is_none().then_some(&var::MLFLOW_AZURE_KEY_VAULT_URL));
            lacking.extend(secret_name.is_none().then_some(&var::MLFLOW_AZURE_SECRET_NAME));
            return Err(missing(ProviderKind::AzureKeyVault, &lacking, reader));
        };
        let cloud = named.or_else(|| Cloud::of_vault(vault.host())).unwrap_or(Cloud::Public);
        let authority = match given_authority {
            Some(authority) => authority,
            None => Origin::of(&format!("https://{}", cloud.authority()))?,
        };
        if !verify_challenge && Cloud::of_vault(vault.host()).is_some() {
            reader.notice(format!(
                "{} is off, which {} does not need: any host in its place could ask for a token to something else",
                var::MLFLOW_AZURE_VERIFY_CHALLENGE.name,
                vault.host()
            ));
        }
        let settings = Self {
            vault,
            secret_name,
            secret_version,
            auth_mode,
            ttl,
            verify_challenge,
            authority,
            sign_ins,
            tenant_id,
            client_id,
            client_secret,
            certificate,
            federated_token_file,
            machine,
        };
        settings.note_half_a_service_principal(reader);
        Ok(Some(settings))
    }

    /// What a service principal lacks, where one is configured in part; `None` where it is complete or not begun.
    pub(super) fn lacking_for_service_principal(&self) -> Option<(&'static str, &'static str)> {
        let given = match (&self.client_secret, &self.certificate) {
            (Some(_), _) => var::AZURE_CLIENT_SECRET.name,
            (None, Some(_)) => var::AZURE_CLIENT_CERTIFICATE_PATH.name,
            (None, None) => return None,
        };
        if self.tenant_id.is_none() {
            return Some((given, var::AZURE_TENANT_ID.name));
        }
        self.client_id.is_none().then_some((given, var::AZURE_CLIENT_ID.name))
    }

    fn note_half_a_service_principal(&self, reader: &mut Reader<'_>) {
        if let Some((given, lacking)) = self.lacking_for_service_principal()
            && self.sign_ins.contains(&SignIn::Environment)
        {
            reader.notice(format!("{given} is set, but {lacking} is not, so no service principal signs in"));
        }
    }
}

/// The vault that URL or name tell, checked against each other and against the named cloud.
fn vault(reader: &mut Reader<'_>, named: Option<Cloud>, authority: Option<&Origin>) -> Option<Origin> {
    let url = reader.aliased([&var::MLFLOW_AZURE_KEY_VAULT_URL, &var::AZURE_KEY_VAULT_URL]);
    let name = vault_name(reader);
    let from_url = url.and_then(|url| vault_url(reader, &url));
    let Some(vault) = from_url else {
        let cloud = named.or_else(|| Cloud::of_authority(authority?.host())).unwrap_or(Cloud::Public);
        return Origin::of(&format!("https://{}{}", name?, cloud.vault_suffix())).ok();
    };
    if let Some(name) = name
        && vault.host().split('.').next() != Some(name.as_str())
    {
        reader.error(
            ErrorCode::ConfigConflict,
            format!("{} is {name}, but the vault's URL is {vault}", var::AZURE_KEY_VAULT_NAME.name),
            format!("unset {}", var::AZURE_KEY_VAULT_NAME.name),
        );
    }
    match (named, Cloud::of_vault(vault.host())) {
        (Some(named), Some(told)) if named != told => reader.error(
            ErrorCode::ConfigConflict,
            format!(
                "{} is {}, but {} is a vault of {}",
                var::AZURE_CLOUD_ENVIRONMENT.name,
                named.name(),
                vault.host(),
                told.name()
            ),
            format!(
                "set {}={}, or unset it, since the vault's host tells the cloud",
                var::AZURE_CLOUD_ENVIRONMENT.name,
                told.name()
            ),
        ),
        _ => {}
    }
    Some(vault)
}

/// An https URL of nothing but host and port: the SDK sends no token over http, and the path is ours to make.
fn vault_url(reader: &mut Reader<'_>, url: &str) -> Option<Origin> {
    let variables = [&var::MLFLOW_AZURE_KEY_VAULT_URL, &var::AZURE_KEY_VAULT_URL];
    let variable = variables[usize::from(reader.text(variables[0]).is_none())];
    let origin = Origin::of(url).ok().filter(|origin| origin.scheme() == Scheme::Https);
    let bare = Url::parse(url).is_ok_and(|url| url.path() == "/" && url.query().is_none() && url.fragment().is_none());
    if origin.is_none() || !bare {
        reader.invalid(variable, &redacted(url), None);
        return None;
    }
    origin
}

fn vault_name(reader: &mut Reader<'_>) -> Option<String> {
    let variable = &var::AZURE_KEY_VAULT_NAME;
    let name = pattern(reader, variable, 24, "-")?.to_ascii_lowercase();
    let ends_well = !name.ends_with('-') && name.starts_with(|first: char| first.is_ascii_alphabetic());
    if name.len() < 3 || !ends_well {
        reader.invalid(variable, &name, None);
        return None;
    }
    Some(name)
}

/// Letters, digits and the characters in `also`, at most `longest` of them. These texts become parts of URLs.
fn pattern(reader: &mut Reader<'_>, variable: &'static Variable, longest: usize, also: &str) -> Option<String> {
    let text = reader.text(variable)?;
    if text.len() <= longest && text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c)) {
        return Some(text);
    }
    reader.invalid(variable, &text, None);
    None
}

fn version(reader: &mut Reader<'_>) -> Option<String> {
    let version = pattern(reader, &var::MLFLOW_AZURE_SECRET_VERSION, 64, "")?;
    (!version.eq_ignore_ascii_case("latest")).then_some(version)
}

fn authority(reader: &mut Reader<'_>) -> Option<Origin> {
    let variable = &var::AZURE_AUTHORITY_HOST;
    let text = reader.text(variable)?;
    // Microsoft's other SDKs accept a bare host too.
    let url = if text.contains("://") { text.clone() } else { format!("https://{text}") };
    let origin = Origin::of(&url).ok().filter(|origin| origin.scheme() == Scheme::Https);
    let bare = Url::parse(&url).is_ok_and(|url| url.path() == "/" && url.query().is_none() && url.fragment().is_none());
    if origin.is_none() || !bare {
        reader.invalid(variable, &redacted(&text), None);
        return None;
    }
    origin
}

fn sign_ins(reader: &mut Reader<'_>) -> Vec<SignIn> {
    let mut choices: Vec<(&str, &[SignIn])> = vec![("prod", &SignIn::ALL[..3]), ("dev", &SignIn::ALL[3..])];
    choices.extend(SignIn::ALL.iter().map(|sign_in| (sign_in.name(), std::slice::from_ref(sign_in))));
    reader.choice(&var::AZURE_TOKEN_CREDENTIALS, &choices, SignIn::ALL).to_vec()
}

fn certificate(reader: &mut Reader<'_>) -> Option<CertificateFile> {
    let path = reader.text(&var::AZURE_CLIENT_CERTIFICATE_PATH);
    let password = reader.secret(&var::AZURE_CLIENT_CERTIFICATE_PASSWORD);
    let send_chain = reader.boolean(&var::AZURE_CLIENT_SEND_CERTIFICATE_CHAIN, false);
    Some(CertificateFile { path: path?.into(), password, send_chain })
}

/// The kind of machine that the variables of its platform tell, in the order of Microsoft's SDKs.
fn machine(reader: &mut Reader<'_>) -> Machine {
    let identity_endpoint = reader.text(&var::IDENTITY_ENDPOINT);
    let identity_header = reader.secret(&var::IDENTITY_HEADER);
    let thumbprint = reader.text(&var::IDENTITY_SERVER_THUMBPRINT);
    let imds_endpoint = reader.text(&var::IMDS_ENDPOINT);
    let msi_endpoint = reader.text(&var::MSI_ENDPOINT);
    let msi_secret = reader.secret(&var::MSI_SECRET);
    let default_client_id = pattern(reader, &var::DEFAULT_IDENTITY_CLIENT_ID, 253, "-.");
    match (identity_endpoint, identity_header, msi_endpoint, msi_secret) {
        (Some(_), Some(_), ..) if thumbprint.is_some() => Machine::Unsupported("Service Fabric"),
        (Some(endpoint), Some(header), ..) => match endpoint_url(reader, &var::IDENTITY_ENDPOINT, &endpoint) {
            Some(endpoint) => Machine::AppService { endpoint, header },
            None => Machine::Metadata,
        },
        (Some(_), None, ..) if imds_endpoint.is_some() => Machine::Unsupported("Azure Arc"),
        (None, _, Some(endpoint), Some(secret)) => match endpoint_url(reader, &var::MSI_ENDPOINT, &endpoint) {
            Some(endpoint) => Machine::MachineLearning { endpoint, secret, default_client_id },
            None => Machine::Metadata,
        },
        (None, _, Some(_), None) => Machine::Unsupported("Cloud Shell"),
        _ => Machine::Metadata,
    }
}

fn endpoint_url(reader: &mut Reader<'_>, variable: &'static Variable, text: &str) -> Option<Url> {
    let url = Url::parse(text).ok().filter(|_| Origin::of(text).is_ok());
    match url {
        Some(_) => reader.note_plain_http(variable.name, text),
        None => reader.invalid(variable, text, None),
    }
    url
}
