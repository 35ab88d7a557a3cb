//! Where AWS credentials come from: the first source that has any.
//!
//! | # | source | asked where |
//! |---|---|---|
//! | 1 | keys in the environment | they are set, and no profile is |
//! | 2 | profile: keys, `source_profile`, SSO, web identity | always; the default profile may be missing |
//! | 3 | web identity | its file is named, and no profile is |
//! | 4 | container endpoint of ECS or EKS | it is named |
//! | 5 | EC2 metadata service | it is not disabled |
//!
//! A source that is not configured is passed by. One that is configured and fails ends the search: another identity than
//! the one that was meant would only lead to a puzzling refusal.

use std::error::Error as _;
use std::time::Duration;

use aws_config::ecs::EcsCredentialsProvider;
use aws_config::imds::client::EndpointMode;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileSet};
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::web_identity_token::{StaticConfiguration, WebIdentityTokenCredentialsProvider};
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sts::error::ProvideErrorMetadata;
use aws_sdk_sts::operation::assume_role::AssumeRoleError;
use aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityError;
use aws_types::os_shim_internal::{Env, Fs};

use super::client::{AwsClient, own_error, unreachable};
use super::identity::{Caller, PROVIDER_NAME};
use super::refusal::{is_throttling, shown};
use super::settings::{AccessKeys, IdentitySettings};
use super::transport::{Transport, is_unanswered};
use crate::clock::Clock;
use crate::error::{Error, ErrorCode, Result};
use crate::http::{TransportFailure, sources};
use crate::provider::ProviderKind;
use crate::steps;

/// The metadata service is next door, or nowhere: off EC2, every fetch without an identity waits for this.
const METADATA_LIMIT: Duration = Duration::from_secs(2);

/// One place where an identity may come from.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Source {
    Environment,
    Profile,
    WebIdentity,
    Container,
    Metadata,
}

/// What a source gave.
enum Finding {
    Credentials(Credentials),
    /// Nothing, and why: it is not configured here.
    Nothing(String),
}

/// One search along the sources, with all that it needs.
pub struct Search<'a> {
    /// Which sources are configured, and how.
    pub settings: &'a IdentitySettings,
    /// What asks them.
    pub client: &'a AwsClient,
    /// Tells how long each took.
    pub clock: &'a dyn Clock,
}

impl Search<'_> {
    /// The credentials of the first source that has any.
    ///
    /// # Errors
    /// That of a source that is configured and fails; [`ErrorCode::AwsNoCredentials`].
    pub async fn find(&self) -> Result<Caller> {
        let mut tried = Vec::new();
        for source in [Source::Environment, Source::Profile, Source::WebIdentity, Source::Container, Source::Metadata] {
            let started = self.clock.now();
            let finding = self.ask(source).await.inspect_err(|error| {
                self.tried(source, Err(error.code().as_str()), started);
            })?;
            match finding {
                Finding::Credentials(credentials) => {
                    let who = self.who(source);
                    self.tried(source, Ok(&who), started);
                    return Ok(Caller { credentials, who, renewable: false });
                }
                Finding::Nothing(reason) => {
                    let took = self.tried(source, Err(&reason), started).as_millis();
                    tried.push(format!("\n  {}: {reason} ({took} ms)", self.label(source)));
                }
            }
        }
        Err(Error::new(
            ErrorCode::AwsNoCredentials,
            format!("no AWS credentials were found; asked in this order:{}", tried.concat()),
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where a role is attached (EC2, ECS, EKS)",
        ))
    }

    /// Notes how a source that was asked at `started` went, and says how long that took.
    fn tried(&self, source: Source, outcome: std::result::Result<&str, &str>, started: Duration) -> Duration {
        let took = self.clock.now().saturating_sub(started);
        steps::tried(ProviderKind::AwsSecretsManager, &self.label(source), outcome, took);
        took
    }

    async fn ask(&self, source: Source) -> Result<Finding> {
        let settings = self.settings;
        match source {
            Source::Environment => Ok(match &settings.keys {
                Some(keys) => Finding::Credentials(static_credentials(keys)),
                None if settings.profile.is_some() => nothing("AWS_PROFILE is set, which wins"),
                None => nothing("AWS_ACCESS_KEY_ID is not set"),
            }),
            Source::Profile => self.ask_profile().await,
            Source::WebIdentity => match &settings.web_identity {
                Some(identity) => {
                    let provider = |config: &ProviderConfig| {
                        let configuration = StaticConfiguration {
                            web_identity_token_file: identity.token_file.clone(),
                            role_arn: identity.role_arn.clone(),
                            session_name: settings.session_name.clone(),
                        };
                        WebIdentityTokenCredentialsProvider::builder()
                            .static_configuration(configuration)
                            .configure(config)
                            .build()
                    };
                    self.ask_sdk(source, provider).await
                }
                None if settings.profile.is_some() => Ok(nothing("AWS_PROFILE is set, which wins")),
                None => Ok(nothing("AWS_WEB_IDENTITY_TOKEN_FILE is not set")),
            },
            Source::Container if settings.container.is_none() => {
                Ok(nothing("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI and AWS_CONTAINER_CREDENTIALS_FULL_URI are not set"))
            }
            Source::Container => {
                self.ask_sdk(source, |config| EcsCredentialsProvider::builder().configure(config).build()).await
            }
            Source::Metadata => self.ask_metadata().await,
        }
    }

    async fn ask_profile(&self) -> Result<Finding> {
        let name = self.profile_name();
        let explicit = self.settings.profile.is_some();
        let selected = Some(name.to_owned().into());
        let profiles = aws_config::profile::load(&Fs::real(), &Env::real(), &Default::default(), selected)
            .await
            .map_err(|e| bad_profile(name, &deepest(&e)))?;
        if profiles.get_profile(name).is_none() {
            if explicit {
                return Err(bad_profile(name, &format!("it does not exist; {}", there_are(&profiles))));
            }
            return Ok(nothing("the shared config and credentials files have no profile `default`"));
        }
        let build = |config: &ProviderConfig| {
            ProfileFileCredentialsProvider::builder().configure(config).profile_name(name).build()
        };
        self.ask_sdk(Source::Profile, build).await
    }

    async fn ask_metadata(&self) -> Result<Finding> {
        let Some(metadata) = &self.settings.metadata else {
            return Ok(nothing("AWS_EC2_METADATA_DISABLED is set"));
        };
        let mut builder = aws_config::imds::Client::builder()
            .max_attempts(1)
            .operation_timeout(METADATA_LIMIT)
            .operation_attempt_timeout(METADATA_LIMIT);
        if let Some(ipv6) = metadata.ipv6 {
            builder = builder.endpoint_mode(if ipv6 { EndpointMode::IpV6 } else { EndpointMode::IpV4 });
        }
        if let Some(endpoint) = &metadata.endpoint {
            builder = builder.endpoint(endpoint).map_err(|_| bad_endpoint(endpoint))?;
        }
        let build = |config: &ProviderConfig| {
            let client = builder.configure(config).build();
            ImdsCredentialsProvider::builder().configure(config).imds_client(client).build()
        };
        self.ask_sdk(Source::Metadata, build).await
    }

    /// Asks one of the SDK's providers, once.
    async fn ask_sdk<P: ProvideCredentials>(
        &self,
        source: Source,
        build: impl FnOnce(&ProviderConfig) -> P,
    ) -> Result<Finding> {
        let transport = self.client.transport.watched();
        let transport = match source {
            Source::Container | Source::Metadata => transport.direct(),
            Source::Environment | Source::Profile | Source::WebIdentity => transport,
        };
        let config = &self.client.config;
        let provider_config = match source {
            // Without a sleep, the SDK leaves out the three attempts that it would make for a container.
            Source::Container => ProviderConfig::empty(),
            _ => ProviderConfig::without_region(),
        }
        .with_region(config.region().cloned())
        .with_retry_config(RetryConfig::disabled())
        .with_use_fips(config.use_fips())
        .with_use_dual_stack(config.use_dual_stack())
        .with_http_client(transport.clone());
        let provider = build(&provider_config);
        match provider.provide_credentials().await {
            Ok(credentials) => Ok(Finding::Credentials(credentials)),
            Err(error) => self.explain(source, &error, &transport),
        }
    }

    /// Why a source gave nothing: because it is not there, which passes it by, or because it fails, which ends the search.
    fn explain(&self, source: Source, error: &CredentialsError, transport: &Transport) -> Result<Finding> {
        if let Some(own) = own_error(error) {
            return Err(own);
        }
        let status = transport.last_status();
        if source == Source::Metadata
            && let Some(reason) = no_metadata(error, status)
        {
            return Ok(Finding::Nothing(reason));
        }
        if is_unanswered(error) {
            let failure = TransportFailure::of(error);
            return Err(unreachable(&self.where_from(source), failure, ErrorCode::AwsIdentityUnreachable));
        }
        if let Some(status) = status {
            let code = sts_code(error).unwrap_or_default();
            return Err(self.refused(source, status, &code));
        }
        let reason = deepest(error);
        let in_profile = source == Source::Profile;
        match error {
            CredentialsError::CredentialsNotLoaded(_) if in_profile && error.source().is_none() => {
                Ok(Finding::Nothing(format!("the profile `{}` has no credentials", self.profile_name())))
            }
            CredentialsError::CredentialsNotLoaded(_) if !in_profile => Ok(Finding::Nothing(reason)),
            _ if in_profile && reason.contains("credentials-process") => Err(credential_process(self.profile_name())),
            _ if in_profile && is_about_sso_login(error) => Err(no_sso_login(self.profile_name())),
            _ if in_profile => Err(bad_profile(self.profile_name(), &reason)),
            _ => Err(Error::new(
                ErrorCode::AwsIdentityRefused,
                format!("{} gave no credentials: {reason}", self.where_from(source)),
                self.hint(source),
            )),
        }
    }

    fn refused(&self, source: Source, status: u16, code: &str) -> Error {
        let (place, answer) = (self.where_from(source), shown(code, status));
        if is_throttling(status, code) || matches!(status, 408 | 500..=599) {
            return Error::new(
                ErrorCode::AwsIdentityUnreachable,
                format!("{place} can't give credentials now ({answer})"),
                "try again in a moment; the service that issues the credentials is overloaded or failing",
            );
        }
        let what = if (200..300).contains(&status) { "its answer holds none".to_owned() } else { answer };
        Error::new(ErrorCode::AwsIdentityRefused, format!("{place} gave no credentials ({what})"), self.hint(source))
    }

    fn profile_name(&self) -> &str {
        self.settings.profile.as_deref().unwrap_or("default")
    }

    /// The source in the list of what was tried.
    fn label(&self, source: Source) -> String {
        match source {
            Source::Environment => "environment".to_owned(),
            Source::Profile => format!("profile {}", self.profile_name()),
            Source::WebIdentity => "web identity".to_owned(),
            Source::Container => "container endpoint".to_owned(),
            Source::Metadata => {
                let endpoint = self.settings.metadata.as_ref().and_then(|metadata| metadata.endpoint.as_deref());
                format!("EC2 metadata at {}", endpoint.unwrap_or("169.254.169.254"))
            }
        }
    }

    /// The source as the origin of a failure.
    fn where_from(&self, source: Source) -> String {
        match source {
            Source::Environment => "the environment".to_owned(),
            Source::Profile => format!("the source of the profile `{}`", self.profile_name()),
            Source::WebIdentity => "STS, asked with the token in AWS_WEB_IDENTITY_TOKEN_FILE,".to_owned(),
            Source::Container => {
                let endpoint = self.settings.container.as_ref().map(|container| container.endpoint.as_str());
                format!("the container's endpoint {}", endpoint.unwrap_or_default())
            }
            Source::Metadata => "the EC2 metadata service".to_owned(),
        }
    }

    /// The source as the one who signs.
    fn who(&self, source: Source) -> String {
        match source {
            Source::Environment => "the keys in AWS_ACCESS_KEY_ID".to_owned(),
            Source::Profile => format!("the profile `{}`", self.profile_name()),
            Source::WebIdentity => "the web identity's role in AWS_ROLE_ARN".to_owned(),
            Source::Container => "the container's role".to_owned(),
            Source::Metadata => "the EC2 instance's role".to_owned(),
        }
    }

    fn hint(&self, source: Source) -> String {
        match source {
            Source::Environment => "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".to_owned(),
            Source::Profile => format!(
                "check the profile in ~/.aws/config; for IAM Identity Center, run `aws sso login --profile {}`",
                self.profile_name()
            ),
            Source::WebIdentity => {
                "check that the file in AWS_WEB_IDENTITY_TOKEN_FILE exists and that the trust policy of AWS_ROLE_ARN names its issuer, audience and subject".to_owned()
            }
            Source::Container => {
                "check the task's or the pod's role, and AWS_CONTAINER_AUTHORIZATION_TOKEN or its file".to_owned()
            }
            Source::Metadata => "check the role that is attached to the instance, and its trust in ec2.amazonaws.com".to_owned(),
        }
    }
}

/// Why this is no machine of EC2 with a role, if it isn't one: nobody answers, or the answer says so. `status` is that of
/// the last answer.
fn no_metadata(error: &CredentialsError, status: Option<u16>) -> Option<String> {
    match status {
        None => Some(format!("no answer: {}", crate::http::reason(error))),
        Some(404) => Some("the machine has no role attached (HTTP 404)".to_owned()),
        Some(status @ (400..=407 | 410..=428)) => Some(format!("no credentials (HTTP {status})")),
        Some(_) => None,
    }
}

fn static_credentials(keys: &AccessKeys) -> Credentials {
    let mut builder = Credentials::builder()
        .access_key_id(keys.id.expose())
        .secret_access_key(keys.secret.expose())
        .provider_name(PROVIDER_NAME);
    builder.set_session_token(keys.session_token.as_ref().map(|token| token.expose().to_owned()));
    builder.build()
}

fn nothing(reason: &str) -> Finding {
    Finding::Nothing(reason.to_owned())
}

/// AWS's name for a failure of STS, from anywhere in `error`'s sources.
fn sts_code(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    sources(error).find_map(|source| {
        let assume = source.downcast_ref::<AssumeRoleError>().and_then(ProvideErrorMetadata::code);
        let web = source.downcast_ref::<AssumeRoleWithWebIdentityError>().and_then(ProvideErrorMetadata::code);
        assume.or(web).map(str::to_owned)
    })
}

/// The SDK's own words for a failure that no answer caused, at most 200 characters.
fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let text = match sources(error).find_map(|source| source.downcast_ref::<std::io::Error>()) {
        Some(error) => crate::http::plain_io(error),
        None => sources(error).last().map(ToString::to_string).unwrap_or_default(),
    };
    text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(200).collect()
}

/// Whether the cached SSO login is missing, unreadable or over. The SDK's types for that are private, so its words decide.
fn is_about_sso_login(error: &(dyn std::error::Error + 'static)) -> bool {
    let words = ["SSO token", "sso/cache", "sso\\cache"];
    sources(error).map(ToString::to_string).any(|text| words.iter().any(|words| text.contains(words)))
}

fn there_are(profiles: &ProfileSet) -> String {
    let mut names: Vec<_> = profiles.profiles().collect();
    names.sort_unstable();
    names.truncate(10);
    if names.is_empty() { "there are no profiles".to_owned() } else { format!("there are {}", names.join(", ")) }
}

fn bad_profile(name: &str, what: &str) -> Error {
    Error::new(
        ErrorCode::AwsProfile,
        format!("the profile `{name}` is not usable: {what}"),
        "check AWS_PROFILE and the files ~/.aws/config and ~/.aws/credentials (or AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE)",
    )
}

fn credential_process(name: &str) -> Error {
    Error::new(
        ErrorCode::AwsCredentialProcess,
        format!("the profile `{name}` runs a program to get credentials (credential_process), which is not supported"),
        "let the program write keys to the environment or the credentials file, or use SSO, a role or a web identity",
    )
}

fn no_sso_login(name: &str) -> Error {
    Error::new(
        ErrorCode::AwsIdentityRefused,
        format!(
            "the profile `{name}` signs in through IAM Identity Center (SSO), and there is no login that is still valid"
        ),
        format!("run `aws sso login --profile {name}`"),
    )
}

fn bad_endpoint(endpoint: &str) -> Error {
    Error::new(
        ErrorCode::ConfigInvalidValue,
        format!("AWS_EC2_METADATA_SERVICE_ENDPOINT is set to {endpoint:?}; accepted: a URL"),
        "use http://host[:port]",
    )
}
