//! The variables of the AWS Secrets Manager provider.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;

use crate::credential::AuthMode;
use crate::error::{ErrorCode, Result};
use crate::network::TrustRoots;
use crate::origin::{Origin, redacted};
use crate::provider::ProviderKind;
use crate::secret::SecretString;
use crate::settings::variables::{self as var, Variable};
use crate::settings::{Reader, malformed, missing};

/// What the AWS provider needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct AwsSettings {
    /// `MLFLOW_AWS_SECRET_NAME`, or `MLFLOW_AWS_SECRET_ID`.
    pub secret: SecretName,
    /// `MLFLOW_AWS_SECRET_VERSION`; `None` is the current version.
    pub version: Option<SecretVersion>,
    /// `MLFLOW_AWS_AUTH_MODE`.
    pub auth_mode: AuthMode,
    /// `MLFLOW_AWS_TTL_SEC`.
    pub ttl: Duration,
    /// `MLFLOW_AWS_MAX_RETRIES` or, where no global number is set, `AWS_MAX_ATTEMPTS` less one.
    pub max_retries: Option<u32>,
    /// Who reads the secret.
    pub reader: SecretReader,
}

/// Who reads the secret from Secrets Manager.
#[derive(Clone, Debug, PartialEq)]
pub enum SecretReader {
    /// We do, signed in to AWS.
    Service(Box<ServiceSettings>),
    /// The node's Secrets Manager Agent: `MLFLOW_AWS_AGENT_URL`.
    Agent(AgentSettings),
}

/// How to find Secrets Manager, and who we are to it.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceSettings {
    /// `AWS_REGION`, or `AWS_DEFAULT_REGION`; `None` leaves it to the profile.
    pub region: Option<String>,
    /// Who we are.
    pub identity: IdentitySettings,
    /// `MLFLOW_AWS_RETRY_MODE`, or `AWS_RETRY_MODE`.
    pub retry_mode: RetryMode,
    /// Where the services are, if not where AWS has them.
    pub endpoints: Endpoints,
    /// `AWS_USE_FIPS_ENDPOINT`; `None` leaves it to the profile.
    pub use_fips: Option<bool>,
    /// `AWS_USE_DUALSTACK_ENDPOINT`; `None` leaves it to the profile.
    pub use_dual_stack: Option<bool>,
    /// `AWS_CA_BUNDLE`, where it takes the place of the roots for every backend.
    pub roots: Option<TrustRoots>,
}

/// The name of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretName {
    /// The name or the ARN, as Secrets Manager takes it.
    pub id: String,
    /// The region that a full ARN names.
    pub region: Option<String>,
}

/// A version of a secret, told apart by its form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretVersion {
    /// A staging label, such as `AWSPREVIOUS`.
    Stage(String),
    /// A version id: 32 to 64 characters.
    Id(String),
}

impl fmt::Display for SecretVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stage(stage) => write!(f, "the staging label {stage}"),
            Self::Id(id) => write!(f, "the version id {id}"),
        }
    }
}

/// How the SDK paces attempts. Their number, and the waits between them, are the chain's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryMode {
    /// After AWS has asked for fewer requests, the SDK holds back further ones for a while.
    Adaptive,
    /// No more than the waits between attempts.
    Standard,
}

/// The node's AWS Secrets Manager Agent.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentSettings {
    /// `MLFLOW_AWS_AGENT_URL`, without a trailing slash.
    pub url: String,
    /// `MLFLOW_AWS_AGENT_TOKEN`.
    pub token: AgentToken,
}

/// The agent's token, which proves that we may talk to it.
#[derive(Clone, Debug, PartialEq)]
pub enum AgentToken {
    /// The token itself.
    Value(SecretString),
    /// A file that holds it, read at every fetch.
    File(PathBuf),
}

/// Endpoints that are configured in the environment. Those of a profile are read by the SDK.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// `AWS_ENDPOINT_URL_SECRETS_MANAGER`, or `AWS_ENDPOINT_URL`.
    pub secrets_manager: Option<String>,
    /// `AWS_ENDPOINT_URL_STS`, or `AWS_ENDPOINT_URL`.
    pub sts: Option<String>,
}

/// Where an identity may come from, and the roles to assume with it.
///
/// An explicit profile leaves out the keys and the web identity of the environment, as in boto3.
#[derive(Clone, Debug, PartialEq)]
pub struct IdentitySettings {
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`.
    pub keys: Option<AccessKeys>,
    /// `AWS_PROFILE`, where it is set.
    pub profile: Option<String>,
    /// `AWS_CONFIG_FILE` and `AWS_SHARED_CREDENTIALS_FILE`. The SDK reads them by itself; here they tell configurations
    /// apart.
    pub profile_files: [Option<String>; 2],
    /// `AWS_WEB_IDENTITY_TOKEN_FILE` with `AWS_ROLE_ARN`.
    pub web_identity: Option<WebIdentity>,
    /// `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` or `AWS_CONTAINER_CREDENTIALS_FULL_URI`.
    pub container: Option<Container>,
    /// The EC2 metadata service; `None` where it is disabled.
    pub metadata: Option<Metadata>,
    /// The roles to assume, one on top of the other.
    pub roles: Vec<Role>,
    /// `AWS_ROLE_SESSION_NAME`.
    pub session_name: String,
    /// `AWS_EXTERNAL_ID`.
    pub external_id: Option<SecretString>,
}

/// Static keys.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessKeys {
    /// Their name at AWS.
    pub id: SecretString,
    /// What they sign with.
    pub secret: SecretString,
    /// The token of temporary ones.
    pub session_token: Option<SecretString>,
}

/// A token that STS exchanges for a role's credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebIdentity {
    /// The file with the token.
    pub token_file: PathBuf,
    /// The role.
    pub role_arn: String,
}

/// The endpoint that gives a container its credentials. The SDK reads these variables by itself; here they tell
/// configurations apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// What was configured, for messages: the path or the URL.
    pub endpoint: String,
    /// `AWS_CONTAINER_AUTHORIZATION_TOKEN`.
    pub token: Option<SecretString>,
    /// `AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE`.
    pub token_file: Option<String>,
}

/// The EC2 metadata service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// `AWS_EC2_METADATA_SERVICE_ENDPOINT`.
    pub endpoint: Option<String>,
    /// Whether to use its IPv6 address: `AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE`.
    pub ipv6: Option<bool>,
}

/// A role to assume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// The variable that names it.
    pub variable: &'static str,
    /// Its ARN.
    pub arn: String,
}

impl AwsSettings {
    /// Reads the variables. `Ok(None)` where a value is malformed, which `reader` has recorded.
    ///
    /// # Errors
    /// [`ErrorCode::ConfigMissing`] where the secret's name is not set, or where no region is and no profile could have one.
    pub fn read(reader: &mut Reader<'_>) -> Result<Option<Self>> {
        let had_errors = reader.errors().len();
        let secret = secret_name(reader);
        let version = version(reader);
        let auth_mode = reader.choice(&var::MLFLOW_AWS_AUTH_MODE, AuthMode::NAMES, AuthMode::Bearer);
        let ttl = reader.seconds(&var::MLFLOW_AWS_TTL_SEC, 300, 0..=86_400);
        let max_retries = max_retries(reader);
        let service = ServiceSettings::read(reader);
        let agent = agent(reader);
        if reader.errors().len() > had_errors {
            let required: [&[_]; 1] = [&[&var::MLFLOW_AWS_SECRET_NAME, &var::MLFLOW_AWS_SECRET_ID]];
            return malformed(ProviderKind::AwsSecretsManager, &required, reader);
        }
        let named_region = service.region.is_some() || secret.as_ref().is_some_and(|secret| secret.region.is_some());
        let region_possible = agent.is_some() || named_region || profile_files_exist(&service.identity.profile_files);
        let Some(secret) = secret.clone().filter(|_| region_possible) else {
            let mut lacking = Vec::new();
            lacking.extend((!region_possible).then_some(&var::AWS_REGION));
            lacking.extend(secret.is_none().then_some(&var::MLFLOW_AWS_SECRET_NAME));
            return Err(missing(ProviderKind::AwsSecretsManager, &lacking, reader));
        };
        let reader = agent.map_or_else(|| SecretReader::Service(Box::new(service)), SecretReader::Agent);
        Ok(Some(Self { secret, version, auth_mode, ttl, max_retries, reader }))
    }
}

impl ServiceSettings {
    fn read(reader: &mut Reader<'_>) -> Self {
        let regions = [&var::AWS_REGION, &var::AWS_DEFAULT_REGION].map(|variable| region(reader, variable));
        let cacert = reader.text(&var::AWS_CA_BUNDLE);
        Self {
            region: regions.into_iter().flatten().next(),
            identity: IdentitySettings::read(reader),
            retry_mode: retry_mode(reader),
            endpoints: endpoints(reader),
            use_fips: reader.optional_boolean(&var::AWS_USE_FIPS_ENDPOINT),
            use_dual_stack: reader.optional_boolean(&var::AWS_USE_DUALSTACK_ENDPOINT),
            roots: cacert.map(|path| TrustRoots::only(&var::AWS_CA_BUNDLE, path)),
        }
    }
}

impl IdentitySettings {
    fn read(reader: &mut Reader<'_>) -> Self {
        let profile = reader.text(&var::AWS_PROFILE);
        let keys = keys(reader, profile.is_none());
        let token_file = reader.text(&var::AWS_WEB_IDENTITY_TOKEN_FILE);
        let role_arn = self::role_arn(reader, &var::AWS_ROLE_ARN);
        let own_role_arn = self::role_arn(reader, &var::MLFLOW_AWS_ROLE_ARN);
        let mut roles = Vec::new();
        // With a token file, AWS_ROLE_ARN is the role that the token is exchanged for.
        let on_top = role_arn.clone().filter(|_| token_file.is_none());
        roles.extend(on_top.map(|arn| Role { variable: var::AWS_ROLE_ARN.name, arn }));
        roles.extend(own_role_arn.map(|arn| Role { variable: var::MLFLOW_AWS_ROLE_ARN.name, arn }));
        roles.dedup_by(|a, b| a.arn == b.arn);
        let web_identity = web_identity(reader, token_file, role_arn, profile.is_none() && keys.is_none());
        if let (Some(profile), true) = (&profile, reader.is_any_set(&[&var::AWS_ACCESS_KEY_ID])) {
            reader.notice(format!(
                "AWS_PROFILE={profile} wins over AWS_ACCESS_KEY_ID, which is set too; unset the one that is not meant"
            ));
        }
        Self {
            keys: keys.filter(|_| profile.is_none()),
            web_identity: web_identity.filter(|_| profile.is_none()),
            profile,
            profile_files: [reader.text(&var::AWS_CONFIG_FILE), reader.text(&var::AWS_SHARED_CREDENTIALS_FILE)],
            container: container(reader),
            metadata: metadata(reader),
            roles,
            session_name: session_name(reader),
            external_id: external_id(reader),
        }
    }
}

fn secret_name(reader: &mut Reader<'_>) -> Option<SecretName> {
    let id = reader.aliased([&var::MLFLOW_AWS_SECRET_NAME, &var::MLFLOW_AWS_SECRET_ID])?;
    let variable = match reader.text(&var::MLFLOW_AWS_SECRET_NAME) {
        Some(_) => &var::MLFLOW_AWS_SECRET_NAME,
        None => &var::MLFLOW_AWS_SECRET_ID,
    };
    if id.len() > 2048 || id.chars().any(|c| c.is_whitespace() || c.is_control()) {
        reader.invalid(variable, &id, None);
        return None;
    }
    if !id.starts_with("arn:") {
        return Some(SecretName { id, region: None });
    }
    let fields: Vec<_> = id.splitn(7, ':').collect();
    let region = match fields[..] {
        [_, _, "secretsmanager", region, _, "secret", name] if is_region(region) && !name.is_empty() => {
            region.to_owned()
        }
        _ => {
            reader.invalid(variable, &id, Some("arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME-XXXXXX"));
            return None;
        }
    };
    Some(SecretName { id, region: Some(region) })
}

fn version(reader: &mut Reader<'_>) -> Option<SecretVersion> {
    let variable = &var::MLFLOW_AWS_SECRET_VERSION;
    let text = reader.text(variable)?;
    if text.len() > 256 || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        reader.invalid(variable, &text, None);
        return None;
    }
    match text.len() {
        32..=64 => Some(SecretVersion::Id(text)),
        _ if text == "AWSCURRENT" => None,
        _ => Some(SecretVersion::Stage(text)),
    }
}

/// `MLFLOW_AWS_MAX_RETRIES`, before the global number (`None` here), before `AWS_MAX_ATTEMPTS`.
fn max_retries(reader: &mut Reader<'_>) -> Option<u32> {
    let own = &var::MLFLOW_AWS_MAX_RETRIES;
    let own = reader.text(own).map(|_| reader.whole_number(own, 3, 0..=10));
    let standard = &var::AWS_MAX_ATTEMPTS;
    let standard = reader.text(standard).map(|_| reader.whole_number(standard, 4, 1..=100) - 1);
    let global_is_set = reader.text(&var::MLFLOW_SECRETS_MAX_RETRIES).is_some();
    own.or(standard.filter(|_| !global_is_set))
}

fn retry_mode(reader: &mut Reader<'_>) -> RetryMode {
    #[derive(Clone, Copy, PartialEq)]
    enum Choice {
        Unset,
        Adaptive,
        Standard,
        Legacy,
    }
    let choices = [("adaptive", Choice::Adaptive), ("standard", Choice::Standard), ("legacy", Choice::Legacy)];
    let mut read = |variable| (variable, reader.choice(variable, &choices, Choice::Unset));
    let ours = read(&var::MLFLOW_AWS_RETRY_MODE);
    let standard = read(&var::AWS_RETRY_MODE);
    let (variable, choice) = if ours.1 == Choice::Unset { standard } else { ours };
    match choice {
        Choice::Unset | Choice::Adaptive => RetryMode::Adaptive,
        Choice::Standard => RetryMode::Standard,
        Choice::Legacy => {
            reader.notice(format!("{}=legacy is treated as standard", variable.name));
            RetryMode::Standard
        }
    }
}

fn region(reader: &mut Reader<'_>, variable: &'static Variable) -> Option<String> {
    let region = reader.text(variable)?;
    if is_region(&region) {
        return Some(region);
    }
    reader.invalid(variable, &region, None);
    None
}

/// A region becomes part of a host's name, so it must not bring dots along.
fn is_region(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Whether one of the shared files exists, and so could name the region. What it says is read at the fetch.
fn profile_files_exist(configured: &[Option<String>; 2]) -> bool {
    let home = std::env::home_dir();
    let default = |name: &str| home.as_ref().map(|home| home.join(".aws").join(name));
    let [config, credentials] = configured.clone().map(|path| path.map(PathBuf::from));
    let files = [config.or_else(|| default("config")), credentials.or_else(|| default("credentials"))];
    files.iter().flatten().any(|path| Path::exists(path))
}

fn keys(reader: &mut Reader<'_>, used: bool) -> Option<AccessKeys> {
    let id = header_secret(reader, &var::AWS_ACCESS_KEY_ID);
    let secret = reader.secret(&var::AWS_SECRET_ACCESS_KEY);
    let session_token = header_secret(reader, &var::AWS_SESSION_TOKEN);
    match (id, secret) {
        (Some(id), Some(secret)) => Some(AccessKeys { id, secret, session_token }),
        (None, None) => None,
        (id, _) if used && !reader.has_error_for(var::AWS_ACCESS_KEY_ID.name) => {
            let (set, unset) = match id {
                Some(_) => (var::AWS_ACCESS_KEY_ID.name, var::AWS_SECRET_ACCESS_KEY.name),
                None => (var::AWS_SECRET_ACCESS_KEY.name, var::AWS_ACCESS_KEY_ID.name),
            };
            reader.error(
                ErrorCode::ConfigMissing,
                format!("{set} is set, and {unset} is not"),
                format!("set {unset} too, or unset {set} to sign in another way"),
            );
            None
        }
        _ => None,
    }
}

/// A secret that goes into a header as it is.
fn header_secret(reader: &mut Reader<'_>, variable: &'static Variable) -> Option<SecretString> {
    let secret = reader.secret(variable)?;
    if secret.expose().bytes().all(|b| b.is_ascii_graphic()) {
        return Some(secret);
    }
    reader.error(
        ErrorCode::ConfigInvalidValue,
        format!("{} holds a space, a line break or another character that it can't have", variable.name),
        "copy it again; a file's trailing line break is a common cause",
    );
    None
}

fn web_identity(
    reader: &mut Reader<'_>,
    token_file: Option<String>,
    role_arn: Option<String>,
    used: bool,
) -> Option<WebIdentity> {
    let token_file = token_file?;
    if role_arn.is_none() && used && !reader.has_error_for(var::AWS_ROLE_ARN.name) {
        reader.error(
            ErrorCode::ConfigMissing,
            format!("{} is set, and {} is not", var::AWS_WEB_IDENTITY_TOKEN_FILE.name, var::AWS_ROLE_ARN.name),
            format!("set {} to the role that the token is exchanged for", var::AWS_ROLE_ARN.name),
        );
    }
    Some(WebIdentity { token_file: token_file.into(), role_arn: role_arn? })
}

fn role_arn(reader: &mut Reader<'_>, variable: &'static Variable) -> Option<String> {
    let arn = reader.text(variable)?;
    let fields: Vec<_> = arn.splitn(6, ':').collect();
    let plain = arn.bytes().all(|b| b.is_ascii_graphic());
    match fields[..] {
        ["arn", _, "iam", "", _, name] if plain && name.starts_with("role/") => Some(arn),
        _ => {
            reader.invalid(variable, &arn, Some("arn:aws:iam::ACCOUNT:role/NAME"));
            None
        }
    }
}

fn session_name(reader: &mut Reader<'_>) -> String {
    let variable = &var::AWS_ROLE_SESSION_NAME;
    let name = reader.text(variable).unwrap_or_else(|| variable.default.to_owned());
    let permitted = |b: u8| b.is_ascii_alphanumeric() || b"+=,.@_-".contains(&b);
    if !(2..=64).contains(&name.len()) || !name.bytes().all(permitted) {
        reader.invalid(variable, &name, None);
    }
    name
}

fn external_id(reader: &mut Reader<'_>) -> Option<SecretString> {
    let variable = &var::AWS_EXTERNAL_ID;
    let id = reader.secret(variable)?;
    let permitted = |b: u8| b.is_ascii_alphanumeric() || b"+=,.@:/_-".contains(&b);
    if !(2..=1224).contains(&id.expose().len()) || !id.expose().bytes().all(permitted) {
        reader.invalid(variable, "", None);
    }
    Some(id)
}

fn container(reader: &mut Reader<'_>) -> Option<Container> {
    let uris = [&var::AWS_CONTAINER_CREDENTIALS_RELATIVE_URI, &var::AWS_CONTAINER_CREDENTIALS_FULL_URI];
    let endpoint = uris.map(|variable| reader.text(variable)).into_iter().flatten().next();
    let token = reader.secret(&var::AWS_CONTAINER_AUTHORIZATION_TOKEN);
    let token_file = reader.text(&var::AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE);
    endpoint.map(|endpoint| Container { endpoint, token, token_file })
}

fn metadata(reader: &mut Reader<'_>) -> Option<Metadata> {
    let disabled = reader.boolean(&var::AWS_EC2_METADATA_DISABLED, false);
    let endpoint = url(reader, &var::AWS_EC2_METADATA_SERVICE_ENDPOINT);
    let modes = [("ipv4", Some(false)), ("ipv6", Some(true))];
    let ipv6 = reader.choice(&var::AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE, &modes, None);
    if let Some(endpoint) = endpoint.as_ref().filter(|_| !disabled) {
        reader.note_plain_http(var::AWS_EC2_METADATA_SERVICE_ENDPOINT.name, endpoint);
    }
    (!disabled).then_some(Metadata { endpoint, ipv6 })
}

fn endpoints(reader: &mut Reader<'_>) -> Endpoints {
    let mut read = |variable| Some((variable, url(reader, variable)?));
    let all = read(&var::AWS_ENDPOINT_URL);
    let secrets_manager = read(&var::AWS_ENDPOINT_URL_SECRETS_MANAGER).or_else(|| all.clone());
    let sts = read(&var::AWS_ENDPOINT_URL_STS).or_else(|| all.clone());
    if reader.boolean(&var::AWS_IGNORE_CONFIGURED_ENDPOINT_URLS, false) {
        return Endpoints::default();
    }
    for (variable, url) in [&secrets_manager, &sts].into_iter().flatten() {
        reader.note_plain_http(variable.name, url);
    }
    Endpoints { secrets_manager: secrets_manager.map(|(_, url)| url), sts: sts.map(|(_, url)| url) }
}

fn agent(reader: &mut Reader<'_>) -> Option<AgentSettings> {
    let url = url(reader, &var::MLFLOW_AWS_AGENT_URL);
    if let Some(url) = &url {
        reader.note_plain_http(var::MLFLOW_AWS_AGENT_URL.name, url);
    }
    let token = header_secret(reader, &var::MLFLOW_AWS_AGENT_TOKEN);
    let (set, unset) = match (url, token) {
        (Some(url), Some(token)) => return Some(AgentSettings { url, token: agent_token(token) }),
        (None, None) => return None,
        (Some(_), None) => (var::MLFLOW_AWS_AGENT_URL.name, var::MLFLOW_AWS_AGENT_TOKEN.name),
        (None, Some(_)) => (var::MLFLOW_AWS_AGENT_TOKEN.name, var::MLFLOW_AWS_AGENT_URL.name),
    };
    if !reader.has_error_for(unset) {
        reader.error(
            ErrorCode::ConfigMissing,
            format!("{set} is set, and {unset} is not"),
            format!("set {unset} too to read the secret through the agent, or unset {set}"),
        );
    }
    None
}

fn agent_token(token: SecretString) -> AgentToken {
    match token.expose().strip_prefix("file://") {
        Some(path) => AgentToken::File(path.into()),
        None => AgentToken::Value(token),
    }
}

/// A plain URL, without a trailing slash.
fn url(reader: &mut Reader<'_>, variable: &'static Variable) -> Option<String> {
    let text = reader.text(variable)?;
    let url = text.trim_end_matches('/');
    let plain = Url::parse(url).is_ok_and(|url| url.query().is_none() && url.fragment().is_none());
    if plain && Origin::of(url).is_ok() {
        return Some(url.to_owned());
    }
    reader.invalid(variable, &redacted(&text), None);
    None
}
