//! Text that must not be shown: masked in every output, wiped when dropped.

use std::fmt;

use serde_json::Value;
use zeroize::{Zeroize as _, Zeroizing};

/// A secret text: a token, a password, a payload.
///
/// `Debug` prints a mask, there is no `Display`, and the memory that this value owns is wiped when it is dropped.
/// Reading it takes a call to [`expose`](Self::expose), so that every such place can be searched for.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretString(Zeroizing<String>);

impl SecretString {
    /// Takes `text` over; the caller's `String` is moved, not copied.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The secret itself. It must not reach a log line, an error text or a `Debug` output.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether the text has no characters.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for SecretString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretString(masked)")
    }
}

impl From<&str> for SecretString {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for SecretString {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

/// Wipes the texts of a parsed document.
pub(crate) fn wipe(document: Value) {
    match document {
        Value::String(mut text) => text.zeroize(),
        Value::Array(values) => values.into_iter().for_each(wipe),
        Value::Object(fields) => fields.into_iter().for_each(|(_, value)| wipe(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
