//! What Vault's answers hold, and what a failed exchange means.

use rustify::endpoint::Wrapper;
use rustify::errors::ClientError;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::time::Duration;

use crate::http::{self, BodyError, TransportFailure};
use crate::secret::SecretString;

/// The envelope of every answer. (That of `vaultrs` prints tokens, lacks `num_uses`, and refuses a `null` where Vault may
/// send one.)
///
/// <https://developer.hashicorp.com/vault/api-docs#api-operations>
#[derive(Deserialize)]
pub struct Envelope<T> {
    /// Every answer of Vault has one, so this tells Vault from other servers.
    #[serde(rename = "request_id")]
    _request_id: String,
    /// What was asked for.
    pub data: Option<T>,
    /// The token that a login or a renewal gave.
    pub auth: Option<Auth>,
    /// The name of a lease, which ends with the token that it was made with.
    pub lease_id: Option<String>,
    /// Seconds for which the data is lent; 0 where it is not.
    #[serde(default)]
    pub lease_duration: u64,
}

impl<T: DeserializeOwned + Send + Sync> Wrapper for Envelope<T> {
    type Value = T;
}

/// A token that Vault gave.
#[derive(Deserialize)]
pub struct Auth {
    /// The token; empty where the login waits for a second factor.
    #[serde(deserialize_with = "secret")]
    pub client_token: SecretString,
    /// Seconds until it ends; 0 where it does not.
    #[serde(default)]
    pub lease_duration: u64,
    /// Whether `renew-self` can prolong it.
    #[serde(default)]
    pub renewable: bool,
    /// How many requests it is good for; 0 where there is no limit.
    pub num_uses: Option<u64>,
    /// Set where the login waits for a second factor.
    pub mfa_requirement: Option<IgnoredAny>,
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    String::deserialize(deserializer).map(SecretString::new)
}

/// Why an exchange failed.
pub struct VaultFailure {
    /// The HTTP status, where the server answered.
    pub status: Option<u16>,
    /// The body of an answer, where it is JSON. Never shown.
    pub body: Option<Value>,
    /// How long the server asked us to wait.
    pub retry_after: Option<Duration>,
    /// Where the server sent us, where it did: an origin, for people.
    pub redirected_to: Option<String>,
    /// What is wrong with the connection, where there was no answer.
    pub transport: Option<TransportFailure>,
    /// What is wrong, where it is neither.
    pub what: &'static str,
}

impl VaultFailure {
    const NOTHING: Self =
        Self { status: None, body: None, retry_after: None, redirected_to: None, transport: None, what: "" };

    /// The failure of an exchange that ended without an answer.
    pub fn of(error: ClientError) -> Self {
        match error {
            ClientError::RequestError { source, .. } | ClientError::ResponseError { source } => {
                if matches!(source.downcast_ref(), Some(BodyError::TooLarge)) {
                    return Self { what: "the answer is larger than 1 MiB", ..Self::NOTHING };
                }
                Self { transport: Some(TransportFailure::of(source.as_ref())), ..Self::NOTHING }
            }
            // The texts of the others may quote the request.
            _ => Self { what: "the request can't be made from the settings", ..Self::NOTHING },
        }
    }

    /// The failure that an answer's status tells of.
    pub fn answered(response: &::http::Response<Vec<u8>>) -> Self {
        let redirected_to = response.headers().get(::http::header::LOCATION).map(|location| {
            let origin = location.to_str().ok().and_then(|location| crate::origin::Origin::of(location).ok());
            origin.map_or_else(|| "an address that is not one".to_owned(), |origin| origin.to_string())
        });
        Self {
            status: Some(response.status().as_u16()),
            body: serde_json::from_slice(response.body()).ok(),
            retry_after: http::retry_after(response.headers()),
            redirected_to,
            ..Self::NOTHING
        }
    }

    /// The failure of an answer that is not Vault's.
    pub fn not_vaults() -> Self {
        // The parser's text may quote the answer, which may hold the secret.
        Self { what: "the answer is not the JSON that Vault sends", ..Self::NOTHING }
    }

    /// Whether the answer has the shape of Vault's errors.
    pub fn is_vaults(&self) -> bool {
        self.body.as_ref().and_then(|body| body.get("errors")).is_some_and(Value::is_array)
    }

    /// Whether one of Vault's error texts contains `text`.
    pub fn says(&self, text: &str) -> bool {
        let errors = self.body.as_ref().and_then(|body| body.get("errors")).and_then(Value::as_array);
        errors.into_iter().flatten().filter_map(Value::as_str).any(|error| error.contains(text))
    }

    /// Whether a 403 came from policies, which only a good token gets to (`Some(true)`), or from a token that is unknown
    /// (`Some(false)`). `None` where the text does not tell.
    pub fn token_was_good(&self) -> Option<bool> {
        if self.says("invalid token") {
            return Some(false);
        }
        // Vault and OpenBao put the verdict of the policies into a list of causes, and no other.
        self.says("1 error occurred").then_some(true)
    }
}

/// A span that Vault names, bounded so that no sum overflows: 136 years are as good as for ever.
pub fn seconds(number: u64) -> Duration {
    Duration::from_secs(number.min(u32::MAX.into()))
}
