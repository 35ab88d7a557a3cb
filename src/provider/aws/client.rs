//! Secrets Manager through its SDK: one request for the secret, and what a failure of it means.

use std::time::Duration;

use aws_config::profile::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::config::Builder;
use aws_sdk_secretsmanager::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_secretsmanager::operation::get_secret_value::{GetSecretValueError, GetSecretValueOutput};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_types::sdk_ua_metadata::FrameworkMetadata;
use http_body_util::LengthLimitError;

use super::identity::Caller;
use super::refusal::{Question, Refusal};
use super::settings::{AwsSettings, RetryMode, SecretVersion, ServiceSettings};
use super::transport::{Transport, is_unanswered};
use crate::error::{Error, ErrorCode, Result};
use crate::http::{TransportFailure, sources};
use crate::network::Network;
use crate::runtime;

/// The SDK, configured from our settings and, for what we leave open, from the environment and the profile.
pub struct AwsClient {
    /// The configuration of every AWS service that is asked. Its region is the one for signing in.
    pub config: SdkConfig,
    /// What every request goes through.
    pub transport: Transport,
    /// STS. It lasts, because it learns how far our clock is off.
    pub sts: aws_sdk_sts::Client,
    secrets: Client,
    region: String,
}

impl AwsClient {
    /// A client for `settings`, by way of `network`; AWS may have roots of its own.
    ///
    /// # Errors
    /// [`ErrorCode::AwsNoRegion`].
    pub async fn new(settings: &AwsSettings, service: &ServiceSettings, network: &Network) -> Result<Self> {
        let transport = Transport::new(network.trusting(service.roots.as_ref()));
        let home = match service.region.clone() {
            Some(region) => Some(region),
            None => profile_region(service).await,
        };
        let region = settings.secret.region.clone().or_else(|| home.clone()).ok_or_else(no_region)?;
        if home.as_ref().is_some_and(|home| *home != region) {
            log::debug!(target: "mlflow_secrets_auth.aws", event = "arn_region", region = region.as_str();
                "the secret's ARN names the region {region}, which wins over {}", home.as_deref().unwrap_or_default());
        }
        // The SDK's statics are made here: a fork in the middle of that would leave the child waiting.
        let _guard = runtime::hold_off_forks();
        let config = load(service, home.unwrap_or_else(|| region.clone()), &transport).await;
        let mut secrets = Builder::from(&config).region(Region::new(region.clone()));
        if let Some(endpoint) = &service.endpoints.secrets_manager {
            secrets = secrets.endpoint_url(endpoint);
        }
        let mut sts = aws_sdk_sts::config::Builder::from(&config);
        if let Some(endpoint) = &service.endpoints.sts {
            sts = sts.endpoint_url(endpoint);
        }
        Ok(Self {
            secrets: Client::from_conf(secrets.build()),
            sts: aws_sdk_sts::Client::from_conf(sts.build()),
            config,
            transport,
            region,
        })
    }

    /// `Secrets Manager in us-east-1`.
    pub fn place(&self) -> String {
        format!("Secrets Manager in {}", self.region)
    }

    /// Reads the secret as `caller`, once.
    pub async fn read(&self, settings: &AwsSettings, caller: &Caller) -> Result<GetSecretValueOutput> {
        let mut request = self.secrets.get_secret_value().secret_id(&settings.secret.id);
        request = match &settings.version {
            None => request,
            Some(SecretVersion::Stage(stage)) => request.version_stage(stage),
            Some(SecretVersion::Id(id)) => request.version_id(id),
        };
        let as_caller = Builder::new().credentials_provider(caller.credentials.clone());
        let answer = request.customize().config_override(as_caller).send().await;
        answer.map_err(|error| {
            let question = Question {
                secret: &settings.secret.id,
                version: settings.version.as_ref(),
                place: self.place(),
                who: caller.who.clone(),
            };
            failed(&error, &question)
        })
    }
}

/// The SDK's configuration. Nothing here asks anybody: the region is known, and the credentials are given per request.
async fn load(service: &ServiceSettings, region: String, transport: &Transport) -> SdkConfig {
    // One attempt, because the chain is the layer that repeats; the mode stays, because adaptive paces first attempts too.
    let retry = match service.retry_mode {
        RetryMode::Adaptive => RetryConfig::adaptive(),
        RetryMode::Standard => RetryConfig::standard(),
    };
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(region))
        .retry_config(retry.with_max_attempts(1))
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .identity_cache(aws_sdk_secretsmanager::config::IdentityCache::no_cache())
        .http_client(transport.clone())
        .no_credentials();
    // CloudTrail shows it, so that administrators can tell who reads the secret.
    if let Ok(us) = FrameworkMetadata::new("mlflow-secrets-auth", Some(env!("CARGO_PKG_VERSION"))) {
        loader = loader.framework_metadata(us);
    }
    if let Some(profile) = &service.identity.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(use_fips) = service.use_fips {
        loader = loader.use_fips(use_fips);
    }
    if let Some(use_dual_stack) = service.use_dual_stack {
        loader = loader.use_dual_stack(use_dual_stack);
    }
    loader.load().await
}

async fn profile_region(service: &ServiceSettings) -> Option<String> {
    use aws_config::meta::region::ProvideRegion;
    let mut builder = ProfileFileRegionProvider::builder();
    if let Some(profile) = &service.identity.profile {
        builder = builder.profile_name(profile);
    }
    builder.build().region().await.map(|region| region.to_string())
}

fn no_region() -> Error {
    Error::new(
        ErrorCode::AwsNoRegion,
        "no AWS region is configured: AWS_REGION and AWS_DEFAULT_REGION are not set, and the profile names none",
        "set AWS_REGION, for example AWS_REGION=us-east-1, or give the secret's full ARN",
    )
}

fn failed(error: &SdkError<GetSecretValueError, HttpResponse>, question: &Question<'_>) -> Error {
    if let Some(own) = own_error(error) {
        return own;
    }
    if let Some(refusal) = refusal(error) {
        return refusal.meaning(question);
    }
    if sources(error).any(|source| source.is::<LengthLimitError>()) {
        return not_an_answer(question, "it is larger than 1 MiB");
    }
    if !is_unanswered(error) && !matches!(error, SdkError::TimeoutError(_)) {
        return not_an_answer(question, "it is not the JSON that Secrets Manager sends");
    }
    unreachable(&question.place, TransportFailure::of(error), ErrorCode::AwsUnreachable)
}

/// One of our own errors, where the SDK hands it back: roots that can't be read.
pub fn own_error(error: &(dyn std::error::Error + 'static)) -> Option<Error> {
    sources(error).find_map(|source| source.downcast_ref::<Error>()).cloned()
}

/// The error for a request to `place` that got no answer.
pub fn unreachable(place: &str, failure: TransportFailure, code: ErrorCode) -> Error {
    match failure {
        TransportFailure::Tls(problem) => Error::new(
            ErrorCode::AwsTls,
            format!("the TLS connection to {place} failed: {problem}"),
            "where a proxy or a private endpoint has a certificate of its own, name its CA in AWS_CA_BUNDLE (a PEM file)",
        ),
        TransportFailure::Unreachable(reason) => Error::new(
            code,
            format!("{place} can't be reached: {reason}"),
            "check the region, the route or VPC endpoint to AWS, HTTPS_PROXY and NO_PROXY, and the endpoint if you configured one",
        ),
    }
}

fn refusal(error: &SdkError<GetSecretValueError, HttpResponse>) -> Option<Refusal> {
    let answer = error.raw_response()?;
    let status = answer.status().as_u16();
    if answer.status().is_success() {
        return None;
    }
    let header = |name| answer.headers().get(name).and_then(|value| value.trim().parse().ok());
    let retry_after = header("retry-after")
        .map(Duration::from_secs)
        .or_else(|| header("x-amz-retry-after").map(Duration::from_millis));
    Some(Refusal {
        status,
        code: error.code().unwrap_or_default().to_owned(),
        message: error.message().unwrap_or_default().to_owned(),
        retry_after,
    })
}

fn not_an_answer(question: &Question<'_>, what: &str) -> Error {
    Error::new(
        ErrorCode::AwsUnexpectedAnswer,
        format!("the answer of {} can't be read: {what}", question.place),
        "check that the endpoint is Secrets Manager's, and that no proxy answers in its place",
    )
}
