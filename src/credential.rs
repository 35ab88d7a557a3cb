//! What the MLflow server wants: the secret's payload, read as the mode says.
//!
//! | payload | bearer | basic | raw |
//! |---|---|---|---|
//! | `{"token": "t"}` | `Bearer t` | needs `t` = `user:password` | `t` |
//! | `{"username": "u", "password": "p"}` | error | `Basic base64(u:p)` | error |
//! | `{"headers": {…}}`, which wins over the rest | as given | as given | as given |
//! | plain `t` | `Bearer t` | `user:password` | `t` |

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::error::{Error, ErrorCode, Result};
use crate::header::AuthHeaders;
use crate::secret::{SecretString, wipe};

/// How the secret becomes a header: `MLFLOW_<PROVIDER>_AUTH_MODE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMode {
    /// `Authorization: Bearer <token>`; with another header name, the token is the whole value.
    Bearer,
    /// `Basic base64(user:password)`.
    Basic,
    /// The token as it is.
    Raw,
}

impl AuthMode {
    /// Every mode, by its name in the settings.
    pub const NAMES: &'static [(&'static str, Self)] =
        &[("bearer", Self::Bearer), ("basic", Self::Basic), ("raw", Self::Raw)];

    /// Its name in the settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bearer => "bearer",
            Self::Basic => "basic",
            Self::Raw => "raw",
        }
    }
}

/// The headers that a secret stands for, and when they end by what the secret itself says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// What to set on requests.
    pub headers: AuthHeaders,
    /// The names of the secret's fields, ten at most; none where it is plain text.
    pub fields: Vec<String>,
    /// The earlier of the payload's `expires_at` and a JWT's `exp`.
    pub expires_at: Option<SystemTime>,
    /// Whether it is a plain `user:password` that goes out as a bearer token, which is nearly always a forgotten
    /// `MLFLOW_*_AUTH_MODE=basic`. `doctor` says so.
    pub looks_basic: bool,
}

impl Credential {
    /// Reads `payload` as `mode` says, for the header `header_name`.
    ///
    /// # Errors
    /// The `secret.*` codes. None of them shows any part of the payload's values.
    pub fn read(payload: &SecretString, mode: AuthMode, header_name: &str) -> Result<Self> {
        let text = payload.expose().trim();
        if text.is_empty() {
            return Err(empty("the secret"));
        }
        match parse(text)? {
            Some(fields) => {
                let credential = Self::from_fields(&fields, mode, header_name);
                let names = names(&fields).collect();
                wipe(Value::Object(fields));
                Ok(Self { fields: names, ..credential? })
            }
            None => Self::from_token(text, mode, header_name, None),
        }
    }

    fn from_fields(fields: &Map<String, Value>, mode: AuthMode, header_name: &str) -> Result<Self> {
        let expires_at = fields.get("expires_at").filter(|v| !v.is_null()).map(expiry).transpose()?;
        if let Some(headers) = fields.get("headers").filter(|v| !v.is_null()) {
            return Ok(Self { headers: given_headers(headers)?, fields: Vec::new(), expires_at, looks_basic: false });
        }
        if mode == AuthMode::Basic && fields.contains_key("username") {
            let user = text_field(fields, "username")?.trim();
            if user.is_empty() {
                return Err(empty("the user name in the secret"));
            }
            let password = text_field(fields, "password")?;
            let headers = basic(user, password, header_name)?;
            return Ok(Self { headers, fields: Vec::new(), expires_at, looks_basic: false });
        }
        if fields.contains_key("token") {
            let token = text_field(fields, "token")?;
            return Self::from_token(token.trim(), mode, header_name, expires_at);
        }
        Err(missing(fields, mode))
    }

    fn from_token(token: &str, mode: AuthMode, header_name: &str, expires_at: Option<SystemTime>) -> Result<Self> {
        if token.is_empty() {
            return Err(empty("the token in the secret"));
        }
        let headers = match mode {
            AuthMode::Basic => {
                let (user, password) = token.split_once(':').ok_or_else(not_basic)?;
                basic(user.trim(), password, header_name)?
            }
            AuthMode::Bearer if header_name.eq_ignore_ascii_case("authorization") => {
                AuthHeaders::single(header_name, SecretString::new(format!("Bearer {}", without_bearer(token)?)))?
            }
            AuthMode::Bearer | AuthMode::Raw => AuthHeaders::single(header_name, token.into())?,
        };
        let expires_at = [expires_at, jwt_expiry(without_prefix(token))].into_iter().flatten().min();
        let looks_basic = mode == AuthMode::Bearer && looks_basic(token);
        Ok(Self { headers, fields: Vec::new(), expires_at, looks_basic })
    }
}

/// The payload as a JSON object, or `None` where it is plain text.
fn parse(text: &str) -> Result<Option<Map<String, Value>>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(Some(fields)),
        Ok(document @ (Value::Array(_) | Value::String(_))) => {
            wipe(document);
            Err(not_json("it is a JSON list or string, not an object"))
        }
        Ok(Value::Null | Value::Bool(_) | Value::Number(_)) => Err(not_json("it is a JSON scalar, not an object")),
        Err(_) if text.starts_with('{') => Err(not_json("it begins with { but is not valid JSON")),
        Err(_) => Ok(None),
    }
}

fn text_field<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<&'a str> {
    match fields.get(name) {
        Some(Value::String(text)) if text.is_empty() => Err(empty(&format!("the field `{name}` of the secret"))),
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(Error::new(
            ErrorCode::SecretWrongType,
            format!("the field `{name}` of the secret is {}, not text", kind_of(other)),
            format!("store `{name}` as a JSON string, in quotes"),
        )),
        None => Err(Error::new(
            ErrorCode::SecretMissingField,
            format!("the secret has no field `{name}`"),
            "basic mode needs `username` and `password`, or a `token` of the form user:password",
        )),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn given_headers(value: &Value) -> Result<AuthHeaders> {
    let wrong = |what: &str| {
        Error::new(
            ErrorCode::SecretWrongType,
            format!("the field `headers` of the secret {what}"),
            r#"store it as {"headers": {"Name": "value"}}"#,
        )
    };
    let Value::Object(headers) = value else { return Err(wrong("is not an object")) };
    if headers.is_empty() {
        return Err(empty("the field `headers` of the secret"));
    }
    let mut pairs = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        let Value::String(value) = value else { return Err(wrong("holds a value that is not text")) };
        pairs.push((name.clone(), SecretString::from(value.as_str())));
    }
    AuthHeaders::many(pairs)
}

fn basic(user: &str, password: &str, header_name: &str) -> Result<AuthHeaders> {
    if user.contains(':') {
        return Err(Error::new(
            ErrorCode::SecretNotBasic,
            "the user name in the secret holds a colon, which basic authentication can't carry",
            "use a user name without a colon",
        ));
    }
    if user.chars().chain(password.chars()).any(char::is_control) {
        return Err(Error::new(
            ErrorCode::SecretInvalidHeader,
            format!(
                "the credential can't go into the header {header_name}: user name or password holds a line break or another control character"
            ),
            "store the credential again, without it",
        ));
    }
    let pair = SecretString::new(format!("{user}:{password}"));
    let encoded = SecretString::new(STANDARD.encode(pair.expose()));
    AuthHeaders::single(header_name, SecretString::new(format!("Basic {}", encoded.expose())))
}

/// A stored `Bearer t` is `t`: the scheme is not written twice.
fn without_bearer(token: &str) -> Result<&str> {
    let rest = without_prefix(token);
    if rest.is_empty() { Err(empty("the token in the secret")) } else { Ok(rest) }
}

fn without_prefix(token: &str) -> &str {
    match token.get(..6) {
        Some(scheme) if scheme.eq_ignore_ascii_case("bearer") && token[6..].starts_with([' ', '\t']) => {
            token[6..].trim()
        }
        Some(scheme) if scheme.eq_ignore_ascii_case("bearer") && token.len() == 6 => "",
        _ => token,
    }
}

fn looks_basic(token: &str) -> bool {
    token
        .split_once(':')
        .is_some_and(|(user, password)| !user.is_empty() && !password.is_empty() && !token.contains(' '))
}

/// What counts of a JSON Web Token.
#[derive(Deserialize)]
struct Claims {
    exp: Option<f64>,
}

/// `exp` of a JSON Web Token (RFC 7519), read without checking the signature: it only shortens how long we keep it.
pub(crate) fn jwt_expiry(token: &str) -> Option<SystemTime> {
    let mut parts = token.split('.');
    let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let claims = Zeroizing::new(URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?);
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    epoch(claims.exp?)
}

fn expiry(value: &Value) -> Result<SystemTime> {
    let time = match value {
        Value::Number(seconds) => seconds.as_f64().and_then(epoch),
        Value::String(text) => match text.trim().parse::<f64>() {
            Ok(seconds) => epoch(seconds),
            Err(_) => text.trim().parse::<jiff::Timestamp>().ok().map(SystemTime::from),
        },
        _ => None,
    };
    time.ok_or_else(|| {
        Error::new(
            ErrorCode::SecretInvalidExpiry,
            "the field `expires_at` of the secret is not a time",
            "write it as 2026-01-31T12:00:00Z (RFC 3339) or as seconds since 1970",
        )
    })
}

fn epoch(seconds: f64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)
}

/// The first ten names, as they may be shown.
fn names(fields: &Map<String, Value>) -> impl Iterator<Item = String> {
    fields.keys().take(10).map(|name| name.escape_debug().to_string())
}

fn missing(fields: &Map<String, Value>, mode: AuthMode) -> Error {
    let wanted = match mode {
        AuthMode::Basic => "`username` and `password`",
        AuthMode::Bearer | AuthMode::Raw => "`token`",
    };
    let names: Vec<_> = names(fields).map(|name| format!("`{name}`")).collect();
    let found = if names.is_empty() { "no fields".to_owned() } else { format!("only {}", names.join(", ")) };
    let hint = if mode != AuthMode::Basic && fields.contains_key("username") {
        "for `username` and `password`, set the auth mode to basic (MLFLOW_VAULT_AUTH_MODE, MLFLOW_AWS_AUTH_MODE or MLFLOW_AZURE_AUTH_MODE)".to_owned()
    } else {
        format!("add {wanted} to the secret, or choose another auth mode")
    };
    Error::new(
        ErrorCode::SecretMissingField,
        format!("{} mode needs {wanted}, and the secret has {found}", mode.as_str()),
        hint,
    )
}

fn not_basic() -> Error {
    Error::new(
        ErrorCode::SecretNotBasic,
        "basic mode needs user:password, and the secret's token has no colon",
        "store `username` and `password`, or set the auth mode to bearer",
    )
}

fn not_json(what: &str) -> Error {
    Error::new(
        ErrorCode::SecretNotJson,
        format!("the secret can't be read: {what}"),
        r#"store plain text, or an object such as {"token": "…"}"#,
    )
}

fn empty(what: &str) -> Error {
    Error::new(ErrorCode::SecretEmpty, format!("{what} is empty"), "store the credential there")
}
