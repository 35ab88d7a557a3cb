//! What Secrets Manager says instead of a secret, directly or through its agent, and what that means.
//!
//! <https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html>

use std::time::Duration;

use super::settings::SecretVersion;
use crate::error::{Error, ErrorCode};

/// A refusal, as it came over the wire.
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// AWS's name for the failure; empty where the answer is not one of AWS's.
    pub code: String,
    /// AWS's text. It tells failures with the same name apart, and is never shown.
    pub message: String,
    /// How long AWS asks to wait.
    pub retry_after: Option<Duration>,
}

/// What was asked for, in the words of error texts.
pub struct Question<'a> {
    /// The secret's name or ARN.
    pub secret: &'a str,
    /// Its version, where one is configured.
    pub version: Option<&'a SecretVersion>,
    /// Who was asked: `Secrets Manager in us-east-1`.
    pub place: String,
    /// Who asked: `the keys in AWS_ACCESS_KEY_ID`.
    pub who: String,
}

impl Refusal {
    /// The error that it is.
    pub fn meaning(&self, question: &Question<'_>) -> Error {
        let Question { secret, place, who, .. } = question;
        if is_throttling(self.status, &self.code) {
            return Error::new(
                ErrorCode::AwsThrottled,
                format!("{place} asks for fewer requests ({})", self.name()),
                "raise MLFLOW_AWS_TTL_SEC, or put the Secrets Manager Agent in between (MLFLOW_AWS_AGENT_URL)",
            )
            .with_retry_after(self.retry_after);
        }
        if matches!(self.status, 408 | 500..=599) {
            return Error::new(
                ErrorCode::AwsUnavailable,
                format!("{place} could not answer ({})", self.name()),
                "look at the AWS Health Dashboard; an endpoint or a proxy of your own may answer like this too",
            )
            .with_retry_after(self.retry_after);
        }
        match self.code.as_str() {
            "DecryptionFailure" => self.not_decrypted(question),
            "AccessDeniedException" | "AccessDenied" if self.says("KMS") => self.not_decrypted(question),
            "AccessDeniedException" | "AccessDenied" => Error::new(
                ErrorCode::AwsAccessDenied,
                format!("{place} refused secretsmanager:GetSecretValue on {secret} ({}) for {who}", self.name()),
                "allow secretsmanager:GetSecretValue on the secret's ARN in this identity's policy, and look for a deny in the secret's own policy",
            ),
            "ResourceNotFoundException" if self.says("secret value") => version_not_found(question),
            "ResourceNotFoundException" => Error::new(
                ErrorCode::AwsNotFound,
                format!("{place} has no secret {secret}{} that {who} can see", with_version(question)),
                "check MLFLOW_AWS_SECRET_NAME and AWS_REGION; a secret of another account needs its full ARN",
            ),
            "InvalidRequestException" if self.says("delet") => Error::new(
                ErrorCode::AwsDeleted,
                format!("{secret} in {place} is scheduled for deletion"),
                format!("restore it: aws secretsmanager restore-secret --secret-id {secret}"),
            ),
            "ExpiredTokenException" | "ExpiredToken" => Error::new(
                ErrorCode::AwsExpiredToken,
                format!("{place} says that the session token of {who} has expired"),
                "sign in again, or set AWS_SESSION_TOKEN and its keys anew; a role or a profile renews itself",
            ),
            code if is_clock_skew(code, &self.message) => clock_skew(place, &self.name()),
            "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "InvalidSignatureException"
            | "SignatureDoesNotMatch"
            | "IncompleteSignature"
            | "IncompleteSignatureException"
            | "MissingAuthenticationToken"
            | "MissingAuthenticationTokenException" => Error::new(
                ErrorCode::AwsCredentialsRefused,
                format!("{place} does not accept {who} ({})", self.name()),
                "check that the keys are complete and active, and that AWS_SESSION_TOKEN belongs to them",
            ),
            _ => Error::new(
                ErrorCode::AwsUnexpectedAnswer,
                format!("{place} did not accept the request for {secret} ({})", self.name()),
                "check MLFLOW_AWS_SECRET_NAME and MLFLOW_AWS_SECRET_VERSION, and the endpoint if you configured one",
            ),
        }
    }

    /// AWS's name for it and the status, as they may be shown.
    fn name(&self) -> String {
        shown(&self.code, self.status)
    }

    fn says(&self, words: &str) -> bool {
        self.message.contains(words)
    }

    fn not_decrypted(&self, question: &Question<'_>) -> Error {
        Error::new(
            ErrorCode::AwsDecryption,
            format!(
                "{} could not decrypt {} with its KMS key ({}) for {}",
                question.place,
                question.secret,
                self.name(),
                question.who
            ),
            "allow kms:Decrypt on the secret's key for this identity, in the key's policy too where it is another account's, and check that the key is enabled",
        )
    }
}

/// The error for a signature that AWS finds too old or too new. The SDK signs by AWS's clock from then on.
pub fn clock_skew(place: &str, answer: &str) -> Error {
    Error::new(
        ErrorCode::AwsClockSkew,
        format!("{place} says that this machine's clock is wrong ({answer})"),
        "set the clock, for example by turning on NTP",
    )
}

/// Whether AWS refused a signature for its time. Some services tell it only by their text.
pub fn is_clock_skew(code: &str, message: &str) -> bool {
    match code {
        "RequestTimeTooSkewed" | "RequestExpired" | "RequestInTheFuture" => true,
        "InvalidSignatureException" | "SignatureDoesNotMatch" => {
            message.contains("Signature expired") || message.contains("not yet current")
        }
        _ => false,
    }
}

fn with_version(question: &Question<'_>) -> String {
    question.version.map(|version| format!(" with {version}")).unwrap_or_default()
}

fn version_not_found(question: &Question<'_>) -> Error {
    let version = question.version.map_or("the staging label AWSCURRENT".to_owned(), ToString::to_string);
    Error::new(
        ErrorCode::AwsVersionNotFound,
        format!("{} in {} has no version with {version}", question.secret, question.place),
        format!(
            "see which there are: aws secretsmanager list-secret-version-ids --secret-id {}; then set or unset MLFLOW_AWS_SECRET_VERSION",
            question.secret
        ),
    )
}

/// Whether AWS asks for fewer requests. Some services say so with status 400.
pub fn is_throttling(status: u16, code: &str) -> bool {
    const CODES: [&str; 11] = [
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "RequestThrottled",
        "RequestThrottledException",
        "TooManyRequestsException",
        "RequestLimitExceeded",
        "LimitExceededException",
        "BandwidthLimitExceeded",
        "PriorRequestNotComplete",
        "SlowDown",
    ];
    status == 429 || CODES.contains(&code)
}

/// `AccessDeniedException, HTTP 400`; without a name where it is none that may be shown.
pub fn shown(code: &str, status: u16) -> String {
    let plain = !code.is_empty() && code.len() <= 80 && code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
    if plain { format!("{code}, HTTP {status}") } else { format!("HTTP {status}") }
}
