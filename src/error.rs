//! What can go wrong: a stable code, what happened and where, and a hint.
//!
//! An error's text is `code: what happened, where` and a second line `hint: what to do`. It never holds a secret, a
//! response body or a `Debug` dump, because MLflow shows users this text and nothing else.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Which Python exception an [`ErrorCode`] becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A setting or a URL is not usable: `ConfigurationError`.
    Configuration,
    /// The host may not get the credential: `HostNotAllowedError`.
    HostNotAllowed,
    /// The secret could not be read: `SecretFetchError`.
    Fetch,
    /// The secret was read, but is not a usable credential: `SecretFormatError`.
    Format,
    /// The MLflow server did not take the credential: `CredentialRejectedError`.
    Rejected,
}

impl ErrorKind {
    /// The name of the Python exception class.
    pub fn exception(self) -> &'static str {
        match self {
            Self::Configuration => "ConfigurationError",
            Self::HostNotAllowed => "HostNotAllowedError",
            Self::Fetch => "SecretFetchError",
            Self::Format => "SecretFormatError",
            Self::Rejected => "CredentialRejectedError",
        }
    }
}

/// Declares every code once: its text, its exception, and its entry in the error catalogue.
macro_rules! error_codes {
    ($( $(#[doc = $doc:literal])+ $variant:ident = $code:literal, $kind:ident; )+) => {
        /// A stable name for a failure, such as `vault.permission_denied`. Codes are never reused for another meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode { $( $(#[doc = $doc])+ $variant, )+ }

        impl ErrorCode {
            /// Every code, in the order of the catalogue.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The code as users see it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code,)+ }
            }

            /// Which exception it becomes in Python.
            pub const fn kind(self) -> ErrorKind {
                match self { $(Self::$variant => ErrorKind::$kind,)+ }
            }

            /// Its entry in the error catalogue, in Markdown.
            pub const fn documentation(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc, "\n",)+),)+ }
            }
        }
    };
}

error_codes! {
    /// Several settings are not usable. Each is listed with its own code, so that one run shows all of them.
    ConfigInvalid = "config.invalid", Configuration;
    /// A setting has a value that is not accepted. The message names the variable, the value unless it is secret, and
    /// what is accepted.
    ConfigInvalidValue = "config.invalid_value", Configuration;
    /// A provider is enabled, but a variable that it needs is not set, and no other enabled provider is complete.
    ConfigMissing = "config.missing", Configuration;
    /// Two variables that mean the same are set to different values. Unset one of them.
    ConfigConflict = "config.conflict", Configuration;
    /// No provider is enabled. Set `MLFLOW_SECRETS_AUTH_ENABLE`.
    ConfigNoProvider = "config.no_provider", Configuration;
    /// `MLFLOW_SECRETS_AUTH_ENABLE` names a provider that does not exist.
    ConfigUnknownProvider = "config.unknown_provider", Configuration;
    /// The provider exists, but this build of the package does not contain it.
    ConfigProviderNotBuilt = "config.provider_not_built", Configuration;
    /// `MLFLOW_SECRETS_ALLOWED_HOSTS` is set and names no host, so no server could ever get the credential.
    ConfigAllowlistEmpty = "config.allowlist_empty", Configuration;
    /// A file that a setting names can't be read, or does not hold what it should.
    ConfigFile = "config.file", Configuration;
    /// The request's URL is one that parsers read differently (user name in it, backslash, control character, `%` or a
    /// zone in the host, a number that is not a plain IPv4 address, not http or https), so nobody can say for certain
    /// which host would get the credential. The request is not sent.
    UrlRefused = "url.refused", Configuration;
    /// The credential would go over plain http to a host that is not permitted to get it that way.
    PlainHttp = "host.plain_http", HostNotAllowed;
    /// The host is not on the allowlist. (A request to such a host goes on without our header; this code is for the
    /// commands and functions that need a yes.)
    HostNotAllowed = "host.not_allowed", HostNotAllowed;
    /// The server, or a proxy in front of it, answered an API request by sending a browser to log in: a redirect to
    /// another origin or to a login path, or a page instead of JSON. The credential was fetched again, and that did not
    /// help. Nothing was sent to where the redirect leads. Known elsewhere as "not valid JSON".
    TrackingLoginPage = "tracking.login_page", Rejected;
    /// The credential could not be fetched within `MLFLOW_SECRETS_TIMEOUT_SEC`.
    FetchTimeout = "fetch.timeout", Fetch;
    /// The wait for the credential was ended from outside, for example by Ctrl-C.
    FetchInterrupted = "fetch.interrupted", Fetch;
    /// An SDK broke down. Please report it, with the output of `mlflow-secrets-auth info`.
    FetchInternal = "fetch.internal", Fetch;
    /// The HTTP client could not be made, for example because no usable CA certificate was found.
    FetchClient = "fetch.client", Fetch;
    /// Every enabled provider failed. Each is listed with its own code.
    FetchAllFailed = "fetch.all_failed", Fetch;
    /// Vault can't be reached: connection refused, name not found, timed out. Known elsewhere as
    /// "Connection timeout to …".
    VaultUnreachable = "vault.unreachable", Fetch;
    /// The TLS connection to Vault was refused: the certificate is not signed by a CA that is trusted here, is for
    /// another name, or has expired.
    VaultTls = "vault.tls", Fetch;
    /// Vault, or a proxy before it, sends the request to another host, or more than once. The token is not sent there: only
    /// a standby's redirect (HTTP 307) to the same host is followed. Let `VAULT_ADDR` name the active node, or a load
    /// balancer that finds it.
    VaultRedirected = "vault.redirected", Fetch;
    /// Vault is sealed or still starting (HTTP 503). It is tried again within the deadline.
    VaultSealed = "vault.sealed", Fetch;
    /// Vault asks for fewer requests, or is a standby that does not serve them (HTTP 429). It is tried again within the deadline.
    VaultThrottled = "vault.throttled", Fetch;
    /// Vault failed inside (HTTP 5xx), or is a standby that can't answer yet (HTTP 412, 472, 473, or "cannot write to
    /// readonly storage"). It is tried again within the deadline.
    VaultUnavailable = "vault.unavailable", Fetch;
    /// The token is not accepted: unknown, revoked or expired. Known elsewhere as "Vault authentication failed".
    VaultTokenRefused = "vault.token_refused", Fetch;
    /// The login was refused. The message names the method and its mount. Known elsewhere as
    /// "Vault authentication failed".
    VaultLoginRefused = "vault.login_refused", Fetch;
    /// The token is valid, but its policies don't permit this path.
    VaultPermissionDenied = "vault.permission_denied", Fetch;
    /// Nothing is stored at the path, or the path's mount does not exist. The message names every path tried. Known
    /// elsewhere as "Secret not found at path".
    VaultNotFound = "vault.not_found", Fetch;
    /// The version of the secret that is to be read is deleted. It can be undeleted.
    VaultSecretDeleted = "vault.secret_deleted", Fetch;
    /// The version of the secret that is to be read is destroyed, for good.
    VaultSecretDestroyed = "vault.secret_destroyed", Fetch;
    /// No engine or login method is mounted where `MLFLOW_VAULT_KV_MOUNT` or `MLFLOW_VAULT_AUTH_MOUNT` says.
    VaultWrongMount = "vault.wrong_mount", Fetch;
    /// `VAULT_NAMESPACE` or `MLFLOW_VAULT_AUTH_NAMESPACE` names a namespace that does not exist.
    VaultWrongNamespace = "vault.wrong_namespace", Fetch;
    /// The wrapping token in `MLFLOW_VAULT_WRAPPED_SECRET_ID` was already unwrapped, or has expired. Unless another process
    /// of yours unwrapped it, somebody else may have: treat the secret id as stolen, and revoke it. (The process that
    /// unwraps keeps the secret id in its memory, and a forked child has it too; a copy that was sent elsewhere as a pickle
    /// has not, and needs a wrapping token of its own.)
    VaultAlreadyUnwrapped = "vault.already_unwrapped", Fetch;
    /// The wrapping token was not made by asking the configured AppRole for a secret id. Somebody may have replaced it: it
    /// is not unwrapped.
    VaultWrappingOrigin = "vault.wrapping_origin", Fetch;
    /// Vault, or the engine that the path belongs to, rejects the request (HTTP 400). For example, an identity token is only
    /// given to a token that came from a login.
    VaultRejected = "vault.rejected", Fetch;
    /// The server answered something that Vault does not answer. Is it Vault that `VAULT_ADDR` names?
    VaultUnexpectedAnswer = "vault.unexpected_answer", Fetch;
    /// No region is configured: neither `AWS_REGION` nor `AWS_DEFAULT_REGION` is set, the profile names none, and the
    /// secret's name is not a full ARN.
    AwsNoRegion = "aws.no_region", Configuration;
    /// The profile does not exist, or is not usable as it stands in the shared config and credentials files.
    AwsProfile = "aws.profile", Configuration;
    /// The profile gets its credentials by running a program (`credential_process`). That is not supported, because it
    /// would start processes and signal handling inside your program, which does not survive `fork()`.
    AwsCredentialProcess = "aws.credential_process", Configuration;
    /// No AWS identity was found. The message lists every place that was asked, why it gave nothing, and how long that took.
    AwsNoCredentials = "aws.no_credentials", Fetch;
    /// A source of credentials is configured, but refused to give any: a web identity that STS does not accept, an SSO
    /// login that has ended, a container endpoint that wants another token.
    AwsIdentityRefused = "aws.identity_refused", Fetch;
    /// A source of credentials is configured, but can't be reached or is failing. It is tried again within the deadline.
    AwsIdentityUnreachable = "aws.identity_unreachable", Fetch;
    /// STS does not let this identity assume the role.
    AwsRoleRefused = "aws.role_refused", Fetch;
    /// Secrets Manager can't be reached: connection refused, name not found, timed out.
    AwsUnreachable = "aws.unreachable", Fetch;
    /// The TLS connection to AWS was refused: the certificate is not signed by a CA that is trusted here, is for another
    /// name, or has expired.
    AwsTls = "aws.tls", Fetch;
    /// AWS asks for fewer requests. It is tried again within the deadline.
    AwsThrottled = "aws.throttled", Fetch;
    /// AWS failed inside (HTTP 5xx). It is tried again within the deadline.
    AwsUnavailable = "aws.unavailable", Fetch;
    /// The identity may not do this. The message names the action and the secret.
    AwsAccessDenied = "aws.access_denied", Fetch;
    /// There is no such secret in the region that the message names.
    AwsNotFound = "aws.not_found", Fetch;
    /// The secret exists, but has no version with this staging label or id.
    AwsVersionNotFound = "aws.version_not_found", Fetch;
    /// The secret is scheduled for deletion, so that nobody can read it.
    AwsDeleted = "aws.scheduled_for_deletion", Fetch;
    /// Secrets Manager could not decrypt the secret with its KMS key.
    AwsDecryption = "aws.decryption_failed", Fetch;
    /// The session token of temporary credentials has expired.
    AwsExpiredToken = "aws.expired_token", Fetch;
    /// AWS does not know the keys, or the signature made with them is wrong.
    AwsCredentialsRefused = "aws.credentials_refused", Fetch;
    /// The clock of this machine differs so much from that of AWS that signatures are not accepted. It is tried again with
    /// the clock corrected.
    AwsClockSkew = "aws.clock_skew", Fetch;
    /// The server answered something that Secrets Manager does not answer, or a request error that has no code of its own.
    AwsUnexpectedAnswer = "aws.unexpected_answer", Fetch;
    /// The AWS Secrets Manager Agent can't be reached. Is it running on this machine?
    AwsAgentUnreachable = "aws.agent_unreachable", Fetch;
    /// The AWS Secrets Manager Agent does not accept the token, or its file can't be read.
    AwsAgentToken = "aws.agent_token", Fetch;
    /// Key Vault can't be reached: connection refused, name not found, timed out, blocked on the way. Known elsewhere as
    /// "Connection timeout to Key Vault".
    AzureUnreachable = "azure.unreachable", Fetch;
    /// Microsoft Entra ID, or the endpoint that gives a managed identity its tokens, can't be reached. Known elsewhere as
    /// "Azure authentication failed".
    AzureSignInUnreachable = "azure.sign_in_unreachable", Fetch;
    /// The TLS connection to Key Vault or to Microsoft Entra ID was refused: the certificate is not signed by a CA that is
    /// trusted here, is for another name, or has expired. A proxy that opens TLS connections is the usual cause.
    AzureTls = "azure.tls", Fetch;
    /// Key Vault, Microsoft Entra ID or the metadata service asks for fewer requests (HTTP 429). It is tried again within
    /// the deadline, after the time that it names.
    AzureThrottled = "azure.throttled", Fetch;
    /// Key Vault, Microsoft Entra ID or the metadata service failed inside (HTTP 5xx). It is tried again within the
    /// deadline.
    AzureUnavailable = "azure.unavailable", Fetch;
    /// No way to sign in to Azure was found. The message lists each that was tried, with its reason and milliseconds. Known
    /// elsewhere as "Azure authentication failed".
    AzureNoIdentity = "azure.no_identity", Fetch;
    /// Microsoft Entra ID does not know the tenant in `AZURE_TENANT_ID` (AADSTS90002), or it is in another cloud. Known
    /// elsewhere as "Azure authentication failed".
    AzureTenantUnknown = "azure.tenant_unknown", Fetch;
    /// The tenant has no application with the id in `AZURE_CLIENT_ID` (AADSTS700016). Known elsewhere as "Azure
    /// authentication failed".
    AzureClientUnknown = "azure.client_unknown", Fetch;
    /// The client secret is wrong (AADSTS7000215); often its id was copied in place of its value. Known elsewhere as "Azure
    /// authentication failed".
    AzureClientSecretInvalid = "azure.client_secret_invalid", Fetch;
    /// The client secret has expired (AADSTS7000222). Known elsewhere as "Azure authentication failed".
    AzureClientSecretExpired = "azure.client_secret_expired", Fetch;
    /// The file in `AZURE_CLIENT_CERTIFICATE_PATH` can't be used: it can't be read, is not PEM, lacks the private key or its
    /// certificate, is encrypted with another password, or its key belongs to none of its certificates. Nothing was sent.
    AzureCertificateInvalid = "azure.certificate_invalid", Fetch;
    /// The certificate in `AZURE_CLIENT_CERTIFICATE_PATH` has expired or is not valid yet. Nothing was sent.
    AzureCertificateExpired = "azure.certificate_expired", Fetch;
    /// Microsoft Entra ID does not accept the certificate: it is not registered for the application, or has expired
    /// there (AADSTS700027, AADSTS1000502). Known elsewhere as "Azure authentication failed".
    AzureCertificateRefused = "azure.certificate_refused", Fetch;
    /// The file in `AZURE_FEDERATED_TOKEN_FILE` can't be read or is empty. Nothing was sent.
    AzureFederatedTokenInvalid = "azure.federated_token_invalid", Fetch;
    /// Microsoft Entra ID does not accept the workload's token: no federated credential of the application matches its
    /// issuer, subject and audience (AADSTS700211 to AADSTS700213, AADSTS70021). Known elsewhere as "Azure authentication
    /// failed".
    AzureFederatedTokenRefused = "azure.federated_token_refused", Fetch;
    /// The managed identity is not assigned to this machine, or the machine has several and `AZURE_CLIENT_ID` names none.
    /// Known elsewhere as "Azure authentication failed".
    AzureIdentityNotAssigned = "azure.identity_not_assigned", Fetch;
    /// Managed identities of Azure Arc, Cloud Shell and Service Fabric are not supported.
    AzureIdentityUnsupported = "azure.identity_unsupported", Fetch;
    /// The Azure CLI or the Azure Developer CLI gave no token; most often nobody is logged in there.
    AzureToolFailed = "azure.tool_failed", Fetch;
    /// Microsoft Entra ID, or a managed identity's endpoint, refused the sign-in for another reason; its AADSTS number is
    /// in the message. Known elsewhere as "Azure authentication failed".
    AzureSignInRefused = "azure.sign_in_refused", Fetch;
    /// Key Vault does not accept the token that the sign-in gave: it is for another tenant or another cloud. Known
    /// elsewhere as "Azure authentication failed".
    AzureTokenRefused = "azure.token_refused", Fetch;
    /// The vault asks for a token to something that is not its own domain. Nothing was given to it.
    AzureChallengeRefused = "azure.challenge_refused", Fetch;
    /// The identity has no role that permits reading the secret. Known elsewhere as "Access denied to Key Vault".
    AzureRbacDenied = "azure.rbac_denied", Fetch;
    /// The vault's access policies don't permit the identity to read secrets. Known elsewhere as "Access denied to Key
    /// Vault".
    AzureAccessPolicyDenied = "azure.access_policy_denied", Fetch;
    /// The vault's firewall does not let this machine's address in. Known elsewhere as "Access denied to Key Vault".
    AzureFirewallDenied = "azure.firewall_denied", Fetch;
    /// Key Vault refused to read the secret (HTTP 403) for a reason that is not one of the others. Known elsewhere as
    /// "Access denied to Key Vault".
    AzurePermissionDenied = "azure.permission_denied", Fetch;
    /// The vault has no secret of this name, or not this version of it.
    AzureNotFound = "azure.not_found", Fetch;
    /// The secret is deleted and can be recovered, or is being deleted.
    AzureSecretDeleted = "azure.secret_deleted", Fetch;
    /// The secret, or this version of it, is disabled.
    AzureSecretDisabled = "azure.secret_disabled", Fetch;
    /// The secret's activation date is yet to come. (Key Vault would give it all the same.)
    AzureSecretNotYetValid = "azure.secret_not_yet_valid", Fetch;
    /// The secret's expiration date has passed. (Key Vault would give it all the same.)
    AzureSecretExpired = "azure.secret_expired", Fetch;
    /// The server answered something that Azure does not answer. Is it a key vault that the settings name, and is there a
    /// proxy on the way?
    AzureUnexpectedAnswer = "azure.unexpected_answer", Fetch;
    /// The secret begins like a JSON object but is not one, or is another kind of JSON.
    SecretNotJson = "secret.not_json", Format;
    /// The secret has none of the fields that the mode needs.
    SecretMissingField = "secret.missing_field", Format;
    /// A field of the secret is not text.
    SecretWrongType = "secret.wrong_type", Format;
    /// The secret, or the field that counts, is empty.
    SecretEmpty = "secret.empty", Format;
    /// The credential can't be a header value: CR, LF, NUL, another control character, or not Latin-1.
    SecretInvalidHeader = "secret.invalid_header", Format;
    /// The secret sets a header that belongs to the connection: `Host`, `Content-Length`, `Transfer-Encoding`,
    /// `Connection`.
    SecretReservedHeader = "secret.reserved_header", Format;
    /// In basic mode the secret must be `user:password`, and the user name can't hold a colon.
    SecretNotBasic = "secret.not_basic", Format;
    /// `expires_at` in the secret is not a time.
    SecretInvalidExpiry = "secret.invalid_expiry", Format;
}

impl ErrorCode {
    /// What failures with this code say about trying again, unless the place where one happens knows better.
    pub const fn outlook(self) -> Outlook {
        match self {
            Self::FetchTimeout
            | Self::VaultUnreachable
            | Self::VaultSealed
            | Self::VaultThrottled
            | Self::VaultUnavailable
            | Self::AwsIdentityUnreachable
            | Self::AwsUnreachable
            | Self::AwsThrottled
            | Self::AwsUnavailable
            | Self::AwsAgentUnreachable
            | Self::AzureUnreachable
            | Self::AzureSignInUnreachable
            | Self::AzureThrottled
            | Self::AzureUnavailable => Outlook::Unreachable,
            Self::AwsClockSkew => Outlook::MayPass,
            _ => Outlook::Final,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a failure says about trying again and about the credential at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// The backend answered, or nothing was asked. Trying again changes nothing.
    Final,
    /// It may pass, but the backend did answer: worth a retry, no reason to use a stale credential.
    MayPass,
    /// The backend could not be reached (connection failure, timeout, 408, 429, 5xx, sealed): worth a retry, and the
    /// last good credential may be used meanwhile.
    Unreachable,
}

/// A failure, as users meet it. Cheap to clone: everybody who waited for one fetch gets the same.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    code: ErrorCode,
    message: String,
    hint: String,
    outlook: Outlook,
    retry_after: Option<Duration>,
    parts: Vec<Error>,
}

impl Error {
    /// A failure with its code's [`outlook`](ErrorCode::outlook). `message` is one sentence without its full stop; `hint`
    /// says what to do.
    pub fn new(code: ErrorCode, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            code,
            message: message.into(),
            hint: hint.into(),
            outlook: code.outlook(),
            retry_after: None,
            parts: Vec::new(),
        }))
    }

    /// Several failures as one: alone it stays itself, together they are listed under `code`.
    ///
    /// Its outlook is the most hopeful of its parts.
    pub fn together(code: ErrorCode, message: impl Into<String>, mut parts: Vec<Error>) -> Self {
        if parts.len() == 1 {
            return parts.remove(0);
        }
        let outlook = parts.iter().map(Error::outlook).max_by_key(|o| *o as u8).unwrap_or(Outlook::Final);
        Self(Arc::new(Inner {
            code,
            message: message.into(),
            hint: "mend each of them, then run `mlflow-secrets-auth doctor`".to_owned(),
            outlook,
            retry_after: None,
            parts,
        }))
    }

    /// The same failure with another outlook.
    pub fn with_outlook(self, outlook: Outlook) -> Self {
        self.rebuilt(|inner| inner.outlook = outlook)
    }

    /// The same failure, with how long the backend asked us to wait.
    pub fn with_retry_after(self, wait: Option<Duration>) -> Self {
        self.rebuilt(|inner| inner.retry_after = wait)
    }

    fn rebuilt(self, change: impl FnOnce(&mut Inner)) -> Self {
        let mut inner = Arc::try_unwrap(self.0).unwrap_or_else(|shared| Inner {
            code: shared.code,
            message: shared.message.clone(),
            hint: shared.hint.clone(),
            outlook: shared.outlook,
            retry_after: shared.retry_after,
            parts: shared.parts.clone(),
        });
        change(&mut inner);
        Self(Arc::new(inner))
    }

    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        self.0.code
    }

    /// What happened, and where, without code and hint; its parts, if any, on lines of their own.
    pub fn message(&self) -> String {
        let mut text = self.0.message.clone();
        for part in &self.0.parts {
            text.push_str(&format!("\n  {}: {}", part.code(), part.message()));
            text.push_str(&format!("\n    hint: {}", part.hint()));
        }
        text
    }

    /// What to do.
    pub fn hint(&self) -> &str {
        &self.0.hint
    }

    /// What it says about trying again.
    pub fn outlook(&self) -> Outlook {
        self.0.outlook
    }

    /// How long the backend asked us to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The failures that it is made of; empty for a single one.
    pub fn parts(&self) -> &[Error] {
        &self.0.parts
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\nhint: {}", self.code(), self.message(), self.hint())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({})", self.code())
    }
}

impl std::error::Error for Error {}

/// The result of everything that can fail here.
pub type Result<T> = std::result::Result<T, Error>;
