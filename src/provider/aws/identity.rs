//! Who we are to AWS: the credentials of the first source that has any, the roles assumed on top of them, and how long they
//! are used.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use aws_credential_types::Credentials;
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::assume_role::AssumeRoleError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::client::{AwsClient, own_error, unreachable};
use super::refusal::{clock_skew, is_clock_skew, is_throttling, shown};
use super::settings::{Role, ServiceSettings};
use super::sources::Search;
use crate::clock::Clock;
use crate::error::{Error, ErrorCode, Outlook, Result};
use crate::http::TransportFailure;
use crate::provider::ProviderKind;
use crate::steps;

/// Temporary credentials are replaced this much before they end, or a tenth of their life before.
const SKEW: Duration = Duration::from_secs(300);

/// What the SDK calls the source of credentials that we hand it.
pub const PROVIDER_NAME: &str = "mlflow-secrets-auth";

/// The identity of one provider. Credentials survive a fork: they are values, not connections.
#[derive(Default)]
pub struct Identity {
    session: ArcSwapOption<Session>,
    /// The access key id, and the role, of a caller that already is the role it was to assume.
    settled: ArcSwapOption<(String, String)>,
}

/// Temporary credentials.
struct Session {
    caller: Caller,
    renew_at: SystemTime,
    expires_at: SystemTime,
}

/// Who signs a request.
#[derive(Clone)]
pub struct Caller {
    /// What to sign with.
    pub credentials: Credentials,
    /// In the words of error texts: `the keys in AWS_ACCESS_KEY_ID`.
    pub who: String,
    /// Whether signing in again could give better credentials.
    pub renewable: bool,
}

impl Identity {
    /// Somebody to sign as: the temporary credentials at hand while they last, else those that a new sign-in gives.
    ///
    /// Static credentials are read again each time, which costs nothing and notices when they are replaced.
    pub async fn caller(&self, service: &ServiceSettings, client: &AwsClient, clock: &dyn Clock) -> Result<Caller> {
        let held = self.session.load_full();
        let now = clock.calendar();
        if let Some(session) = held.as_ref().filter(|session| now < session.renew_at) {
            return Ok(Caller { renewable: true, ..session.caller.clone() });
        }
        let search = Search { settings: &service.identity, client, clock };
        match self.sign_in(&search).await {
            Ok(caller) => {
                self.keep(&caller, now);
                Ok(caller)
            }
            Err(error) => match held {
                None => Err(error),
                Some(session) if now < session.expires_at && error.outlook() != Outlook::Final => {
                    log::debug!(target: "mlflow_secrets_auth.aws", event = "identity_kept", code = error.code().as_str();
                        "going on with the AWS credentials at hand, because new ones can't be had: {}", error.code());
                    Ok(session.caller.clone())
                }
                // There was an identity here: that there is none now is an outage, not a matter of settings.
                Some(_) if error.code() == ErrorCode::AwsNoCredentials => Err(error.with_outlook(Outlook::Unreachable)),
                Some(_) => Err(error),
            },
        }
    }

    /// Forgets temporary credentials, so that the next read signs in anew.
    pub fn forget(&self) {
        self.session.store(None);
        self.settled.store(None);
    }

    fn keep(&self, caller: &Caller, now: SystemTime) {
        let session = caller.credentials.expiry().map(|expires_at| {
            let life = expires_at.duration_since(now).unwrap_or_default();
            let renew_at = expires_at - SKEW.min(life.mul_f64(0.1));
            Arc::new(Session { caller: caller.clone(), renew_at, expires_at })
        });
        self.session.store(session);
    }

    async fn sign_in(&self, search: &Search<'_>) -> Result<Caller> {
        let mut caller = search.find().await?;
        for role in &search.settings.roles {
            caller = self.assume(search, role, caller).await?;
        }
        // Static keys are nothing to sign in with: they are read again for every fetch.
        if caller.credentials.expiry().is_some() {
            log::info!(target: "mlflow_secrets_auth.aws", event = "signed_in", identity = caller.who.as_str();
                "signed in to AWS with {}", caller.who);
        }
        Ok(caller)
    }

    /// `caller` as `role`. A caller that already is the role stays what it is, if STS doesn't let it assume itself.
    async fn assume(&self, search: &Search<'_>, role: &Role, caller: Caller) -> Result<Caller> {
        let key = (caller.credentials.access_key_id().to_owned(), role.arn.clone());
        if self.settled.load().as_deref() == Some(&key) {
            return Ok(caller);
        }
        let request = search
            .client
            .sts
            .assume_role()
            .role_arn(&role.arn)
            .role_session_name(&search.settings.session_name)
            .set_external_id(search.settings.external_id.as_ref().map(|id| id.expose().to_owned()));
        let started = search.clock.now();
        let tried = |outcome| {
            let took = search.clock.now().saturating_sub(started);
            steps::tried(ProviderKind::AwsSecretsManager, &format!("role in {}", role.variable), outcome, took);
        };
        let error = match request.customize().config_override(signed_by(&caller)).send().await {
            Ok(answer) => {
                let caller = assumed(answer.credentials, role, &caller)?;
                tried(Ok(&caller.who));
                return Ok(caller);
            }
            Err(error) => error,
        };
        let code = error.code().unwrap_or_default();
        if code != "AccessDenied" || !is_role(search.client, &caller, &role.arn).await {
            let error = not_assumed(&error, role, &caller);
            tried(Err(error.code().as_str()));
            return Err(error);
        }
        tried(Ok(&format!("{}, who is this role already", caller.who)));
        self.settled.store(Some(Arc::new(key)));
        log::info!(target: "mlflow_secrets_auth.aws", event = "already_role", role = role.arn.as_str();
            "{} already is the role in {}, which it may not assume again; going on as it is", caller.who, role.variable);
        Ok(caller)
    }
}

fn signed_by(caller: &Caller) -> aws_sdk_sts::config::Builder {
    aws_sdk_sts::config::Builder::new().credentials_provider(caller.credentials.clone())
}

fn assumed(credentials: Option<aws_sdk_sts::types::Credentials>, role: &Role, caller: &Caller) -> Result<Caller> {
    let credentials = credentials.ok_or_else(|| {
        Error::new(
            ErrorCode::AwsIdentityRefused,
            format!("STS gave no credentials for the role in {}", role.variable),
            "check the endpoint of STS, if you configured one",
        )
    })?;
    let mut builder = Credentials::builder()
        .access_key_id(credentials.access_key_id())
        .secret_access_key(credentials.secret_access_key())
        .session_token(credentials.session_token())
        .provider_name(PROVIDER_NAME);
    builder.set_expiry(SystemTime::try_from(*credentials.expiration()).ok());
    let name = role.arn.rsplit('/').next().unwrap_or_default();
    let who = format!("{} as the role {name}", caller.who);
    Ok(Caller { credentials: builder.build(), who, renewable: false })
}

fn not_assumed(error: &SdkError<AssumeRoleError, HttpResponse>, role: &Role, caller: &Caller) -> Error {
    if let Some(own) = own_error(error) {
        return own;
    }
    let Some(answer) = error.raw_response() else {
        return unreachable("STS", TransportFailure::of(error), ErrorCode::AwsIdentityUnreachable);
    };
    let (status, code) = (answer.status().as_u16(), error.code().unwrap_or_default());
    let answer = shown(code, status);
    if is_throttling(status, code) || matches!(status, 408 | 500..=599) {
        return Error::new(
            ErrorCode::AwsIdentityUnreachable,
            format!("STS can't assume the role in {} now ({answer})", role.variable),
            "try again in a moment",
        );
    }
    if is_clock_skew(code, error.message().unwrap_or_default()) {
        return clock_skew("STS", &answer);
    }
    let (code, hint) = match code {
        "ExpiredToken" | "ExpiredTokenException" => (
            ErrorCode::AwsExpiredToken,
            "sign in again, or set AWS_SESSION_TOKEN and its keys anew; a role or a profile renews itself".to_owned(),
        ),
        "InvalidClientTokenId" | "SignatureDoesNotMatch" | "UnrecognizedClientException" => (
            ErrorCode::AwsCredentialsRefused,
            "check that the keys are complete and active, and that AWS_SESSION_TOKEN belongs to them".to_owned(),
        ),
        _ => (
            ErrorCode::AwsRoleRefused,
            format!(
                "allow sts:AssumeRole on {} for this identity, and name the identity in the role's trust policy (with AWS_EXTERNAL_ID where that asks for one)",
                role.arn
            ),
        ),
    };
    Error::new(
        code,
        format!("STS did not let {} assume the role {} of {} ({answer})", caller.who, role.arn, role.variable),
        hint,
    )
}

/// Whether `caller` has `role` already.
async fn is_role(client: &AwsClient, caller: &Caller, role: &str) -> bool {
    let answer = client.sts.get_caller_identity().customize().config_override(signed_by(caller)).send().await;
    answer.is_ok_and(|caller| caller.arn().is_some_and(|arn| is_session_of(arn, role)))
}

/// Whether `session` (`arn:aws:sts::ACCOUNT:assumed-role/NAME/SESSION`) is one of `role`
/// (`arn:aws:iam::ACCOUNT:role/PATH/NAME`). A session's ARN leaves the path out.
fn is_session_of(session: &str, role: &str) -> bool {
    let session: Vec<_> = session.splitn(6, ':').collect();
    let role: Vec<_> = role.splitn(6, ':').collect();
    let ([_, partition, "sts", _, account, session], [_, role_partition, "iam", _, role_account, role]) =
        (&session[..], &role[..])
    else {
        return false;
    };
    let name = session.strip_prefix("assumed-role/").and_then(|rest| rest.split('/').next());
    partition == role_partition && account == role_account && name.is_some() && name == role.rsplit('/').next()
}
