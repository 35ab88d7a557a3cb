//! What goes on the wire: header names and values, checked and masked.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::LazyLock;

use crate::error::{Error, ErrorCode, Result};
use crate::secret::SecretString;

/// Headers that belong to the connection and never come from a secret.
const RESERVED: [&str; 4] = ["host", "content-length", "transfer-encoding", "connection"];

static FINGERPRINT_KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Chooses the key of this process's fingerprints now, so that children forked from here on have the same.
pub(crate) fn choose_fingerprint_key() {
    LazyLock::force(&FINGERPRINT_KEY);
}

/// The headers of one credential, ready to be set on a request. Values are masked in every output.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthHeaders(Vec<(String, SecretString)>);

impl AuthHeaders {
    /// One header.
    ///
    /// # Errors
    /// As [`AuthHeaders::many`].
    pub fn single(name: &str, value: SecretString) -> Result<Self> {
        Self::many(vec![(name.to_owned(), value)])
    }

    /// Several headers, in this order.
    ///
    /// # Errors
    /// [`ErrorCode::SecretReservedHeader`] for a header of the connection, [`ErrorCode::SecretInvalidHeader`] for a name
    /// that is not a token, a name that is given twice (case does not matter), or a value with CR, LF, NUL, another
    /// control character or a character beyond Latin-1. The value is never part of the error.
    pub fn many(headers: Vec<(String, SecretString)>) -> Result<Self> {
        for (index, (name, value)) in headers.iter().enumerate() {
            check_name(name)?;
            check_value(name, value.expose())?;
            if headers[..index].iter().any(|(before, _)| before.eq_ignore_ascii_case(name)) {
                return Err(twice(name));
            }
        }
        Ok(Self(headers))
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.expose()))
    }

    /// A keyed hash of all of it, which tells credentials apart for as long as this process and its children live, and
    /// tells nobody else anything.
    pub fn fingerprint(&self) -> String {
        let headers: Vec<_> = self.iter().collect();
        format!("{:016x}", FINGERPRINT_KEY.hash_one(headers))
    }

    /// The names alone, which may be shown.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }
}

impl fmt::Debug for AuthHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

/// Whether `name` can be the name of a header at all (RFC 9110, section 5.6.2).
pub(crate) fn is_header_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// Whether the header `name` belongs to the connection, not to the credential.
pub(crate) fn is_reserved(name: &str) -> bool {
    RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved))
}

fn check_name(name: &str) -> Result<()> {
    if is_reserved(name) {
        return Err(Error::new(
            ErrorCode::SecretReservedHeader,
            format!("the secret sets the header {name}, which belongs to the connection"),
            "take it out of the secret's `headers`",
        ));
    }
    if is_header_name(name) {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::SecretInvalidHeader,
        "the secret's `headers` hold a name that can't be a header's name",
        "use letters, digits and hyphens",
    ))
}

fn twice(name: &str) -> Error {
    Error::new(
        ErrorCode::SecretInvalidHeader,
        format!("the secret's `headers` set {name} twice; upper and lower case are the same there"),
        "keep one of them",
    )
}

fn check_value(name: &str, value: &str) -> Result<()> {
    let problem = if value.chars().any(|c| matches!(c, '\r' | '\n')) {
        "a line break (CR or LF)"
    } else if value.chars().any(|c| c.is_control() && c != '\t') {
        "a control character"
    } else if value.chars().any(|c| u32::from(c) > 0xff) {
        "a character beyond Latin-1"
    } else if value.starts_with([' ', '\t']) {
        // requests refuses leading white space; the error would show the value.
        "white space at its start"
    } else {
        return Ok(());
    };
    Err(Error::new(
        ErrorCode::SecretInvalidHeader,
        format!("the credential can't go into the header {name}: it holds {problem}"),
        "store the credential again, without it",
    ))
}
