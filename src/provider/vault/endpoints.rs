//! The endpoints that `vaultrs` lacks, on its own machinery.
//!
//! This file has no `Result` of ours in scope: the derived code means the standard one.

use rustify_derive::Endpoint;
use serde::Deserialize;
use serde_json::Value;

/// Reads any path.
#[derive(Endpoint)]
#[endpoint(path = "{self.path}", response = "Value")]
pub struct ReadPath {
    /// The path behind `/v1/`.
    #[endpoint(skip)]
    pub path: String,
}

/// Reads one version of a secret.
#[derive(Endpoint)]
#[endpoint(path = "{self.path}", response = "Value")]
pub struct ReadVersion {
    /// The path behind `/v1/`.
    #[endpoint(skip)]
    pub path: String,
    /// Which one.
    #[endpoint(query)]
    pub version: u32,
}

/// Asks which mount a path belongs to, as Vault's own command line does before it reads.
#[derive(Endpoint)]
#[endpoint(path = "sys/internal/ui/mounts/{self.path}", response = "MountInfo")]
pub struct FindMount {
    /// A path below the mount.
    #[endpoint(skip)]
    pub path: String,
}

/// A mount, as Vault describes it.
#[derive(Deserialize)]
pub struct MountInfo {
    /// The mount itself.
    pub path: String,
    /// The engine: `kv`, `database`, `identity`.
    #[serde(rename = "type")]
    pub kind: String,
    /// How it is set up.
    pub options: Option<MountOptions>,
}

/// How a mount is set up.
#[derive(Deserialize)]
pub struct MountOptions {
    /// The version of a KV engine.
    pub version: Option<String>,
}

/// Logs in with the certificate of the connection. (The endpoint of `vaultrs` names the role's field wrongly.)
///
/// <https://developer.hashicorp.com/vault/api-docs/auth/cert#login-with-tls-certificate-method>
#[derive(Endpoint)]
#[endpoint(path = "auth/{self.mount}/login", method = "POST")]
pub struct CertificateLogin {
    /// The mount of the method.
    #[endpoint(skip)]
    pub mount: String,
    /// The role; without one, Vault takes the first that fits.
    pub name: Option<String>,
}

/// Looks the token itself up. (The answer of `vaultrs` lacks `num_uses` and insists on fields that batch tokens don't have.)
#[derive(Endpoint)]
#[endpoint(path = "auth/token/lookup-self", response = "TokenFacts")]
pub struct LookUpSelf {}

/// What Vault says of a token.
#[derive(Deserialize)]
pub struct TokenFacts {
    /// Seconds that are left; 0 where it does not end.
    #[serde(default)]
    pub ttl: u64,
    /// Whether `renew-self` can prolong it.
    #[serde(default)]
    pub renewable: bool,
}
