//! The payload table of the contract, and every way in which a payload can be unusable.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use mlflow_secrets_auth::credential::{AuthMode, Credential};
use mlflow_secrets_auth::secret::SecretString;
use mlflow_secrets_auth::{Error, ErrorCode};

use AuthMode::{Basic, Bearer, Raw};

const MODES: [AuthMode; 3] = [Bearer, Basic, Raw];

fn read(payload: &str, mode: AuthMode, header: &str) -> Result<Credential, Error> {
    Credential::read(&SecretString::from(payload), mode, header)
}

fn headers(payload: &str, mode: AuthMode, header: &str) -> Vec<(String, String)> {
    let credential = read(payload, mode, header).unwrap_or_else(|error| panic!("{payload} as {mode:?}: {error}"));
    credential.headers.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn authorization(payload: &str, mode: AuthMode) -> String {
    let [(name, value)] = headers(payload, mode, "Authorization").try_into().expect("one header");
    assert_eq!(name, "Authorization");
    value
}

fn basic(pair: &str) -> String {
    format!("Basic {}", STANDARD.encode(pair))
}

fn code(payload: &str, mode: AuthMode) -> ErrorCode {
    let error = read(payload, mode, "Authorization").expect_err(payload);
    assert!(!error.to_string().contains("canary"), "{error}");
    assert!(!error.hint().is_empty());
    error.code()
}

fn expiry(payload: &str) -> Option<u64> {
    let at = read(payload, Bearer, "Authorization").unwrap().expires_at?;
    Some(at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs())
}

#[test]
fn a_token_field() {
    assert_eq!(authorization(r#"{"token": "t"}"#, Bearer), "Bearer t");
    assert_eq!(authorization(r#"{"token": "t"}"#, Raw), "t");
    assert_eq!(authorization(r#"{"token": "u:p"}"#, Basic), basic("u:p"));
    assert_eq!(code(r#"{"token": "canary"}"#, Basic), ErrorCode::SecretNotBasic);
}

#[test]
fn user_name_and_password() {
    let payload = r#"{"username": "u", "password": "p"}"#;
    assert_eq!(authorization(payload, Basic), basic("u:p"));
    assert_eq!(code(payload, Bearer), ErrorCode::SecretMissingField);
    assert_eq!(code(payload, Raw), ErrorCode::SecretMissingField);
    let error = read(payload, Bearer, "Authorization").unwrap_err();
    assert!(error.hint().contains("basic"), "{error}");
    // In basic mode they come before a token.
    assert_eq!(authorization(r#"{"token": "x:y", "username": "u", "password": "p"}"#, Basic), basic("u:p"));
}

#[test]
fn headers_win_in_every_mode() {
    let payload = r#"{"token": "t", "username": "u", "password": "p", "headers": {"A": "1", "B": "2"}}"#;
    for mode in MODES {
        let mut found = headers(payload, mode, "X-Ignored");
        found.sort();
        assert_eq!(found, [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "2".to_owned())]);
    }
}

#[test]
fn plain_text() {
    assert_eq!(authorization("t", Bearer), "Bearer t");
    assert_eq!(authorization("t", Raw), "t");
    assert_eq!(authorization("u:p", Basic), basic("u:p"));
    assert_eq!(code("canary", Basic), ErrorCode::SecretNotBasic);
    // The mode decides; nothing is guessed from a colon. The doctor says so, though.
    assert_eq!(authorization("u:p", Bearer), "Bearer u:p");
    assert!(read("u:p", Bearer, "Authorization").unwrap().looks_basic);
    assert!(!read("t", Bearer, "Authorization").unwrap().looks_basic);
    // Only the first colon counts.
    assert_eq!(authorization("u:p:q", Basic), basic("u:p:q"));
}

#[test]
fn another_header_name() {
    for payload in ["custom-scheme abc", r#"{"token": "custom-scheme abc"}"#] {
        let expected = [("X-MLflow-Auth".to_owned(), "custom-scheme abc".to_owned())];
        assert_eq!(headers(payload, Bearer, "X-MLflow-Auth"), expected);
        assert_eq!(headers(payload, Raw, "X-MLflow-Auth"), expected);
    }
    assert_eq!(headers("u:p", Basic, "X-MLflow-Auth"), [("X-MLflow-Auth".to_owned(), basic("u:p"))]);
    assert_eq!(headers("t", Bearer, "authorization"), [("authorization".to_owned(), "Bearer t".to_owned())]);
}

#[test]
fn the_scheme_is_not_written_twice() {
    for stored in ["Bearer t", "bearer t", "BEARER   t", r#"{"token": "Bearer t"}"#] {
        assert_eq!(authorization(stored, Bearer), "Bearer t");
    }
    assert_eq!(authorization("Bearer t", Raw), "Bearer t");
    assert_eq!(authorization("bearertoken", Bearer), "Bearer bearertoken");
    assert_eq!(code("Bearer ", Bearer), ErrorCode::SecretEmpty);
    assert_eq!(code("Bearer", Bearer), ErrorCode::SecretEmpty);
}

#[test]
fn white_space_goes_except_from_passwords() {
    assert_eq!(authorization(" t\n", Bearer), "Bearer t");
    assert_eq!(authorization("\n {\"token\": \" t\\n\"} \n", Bearer), "Bearer t");
    assert_eq!(authorization(r#"{"username": " u ", "password": " p "}"#, Basic), basic("u: p "));
}

#[test]
fn expiry_of_the_payload_and_of_a_jwt() {
    assert_eq!(expiry(r#"{"token": "t", "expires_at": "2026-01-31T12:00:00Z"}"#), Some(1_769_860_800));
    assert_eq!(expiry(r#"{"token": "t", "expires_at": "2026-01-31T13:00:00+01:00"}"#), Some(1_769_860_800));
    for seconds in ["1769860800", "1769860800.5", "\"1769860800\""] {
        assert_eq!(expiry(&format!(r#"{{"token": "t", "expires_at": {seconds}}}"#)), Some(1_769_860_800));
    }
    assert_eq!(expiry(r#"{"token": "t", "expires_at": null}"#), None);
    let jwt = |claims: &str| format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims));
    let dated = jwt(r#"{"exp": 1000}"#);
    assert_eq!(expiry(&dated), Some(1000));
    assert_eq!(expiry(&format!("Bearer {dated}")), Some(1000));
    assert_eq!(expiry(&format!(r#"{{"token": "{dated}", "expires_at": 2000}}"#)), Some(1000));
    assert_eq!(expiry(&format!(r#"{{"token": "{dated}", "expires_at": 500}}"#)), Some(500));
    assert_eq!(expiry(r#"{"headers": {"A": "1"}, "expires_at": 7}"#), Some(7));
    // What only looks like one, or says nothing useful, is a token like any other.
    for token in
        ["a.b.c", "a.b", &jwt("{}"), &jwt(r#"{"exp": "soon"}"#), &jwt(r#"{"exp": -1}"#), &jwt(r#"{"exp": 1e300}"#)]
    {
        assert_eq!(expiry(token), None, "{token}");
    }
    let far = read(r#"{"token": "t", "expires_at": 99999999999}"#, Bearer, "Authorization").unwrap().expires_at;
    assert!(far.unwrap() > SystemTime::UNIX_EPOCH + Duration::from_secs(99_999_999_998));
}

#[test]
fn other_fields_are_ignored() {
    let payload = r#"{"token": "t", "description": "x", "created_by": 7, "nested": {"a": [1]}}"#;
    assert_eq!(authorization(payload, Bearer), "Bearer t");
}

#[test]
fn every_unusable_payload_has_its_code() {
    use ErrorCode::{
        SecretEmpty, SecretInvalidExpiry, SecretInvalidHeader, SecretMissingField, SecretNotBasic, SecretNotJson,
        SecretReservedHeader, SecretWrongType,
    };
    for (payload, mode, expected) in [
        ("", Bearer, SecretEmpty),
        (" \n", Raw, SecretEmpty),
        (r#"{"token": ""}"#, Bearer, SecretEmpty),
        (r#"{"token": "  "}"#, Bearer, SecretEmpty),
        (r#"{"username": "", "password": "canary"}"#, Basic, SecretEmpty),
        (r#"{"username": " ", "password": "canary"}"#, Basic, SecretEmpty),
        (r#"{"username": "u", "password": ""}"#, Basic, SecretEmpty),
        (r#"{"headers": {}}"#, Bearer, SecretEmpty),
        (r#"{"token": "canary""#, Bearer, SecretNotJson),
        ("{canary}", Raw, SecretNotJson),
        (r#"["canary"]"#, Bearer, SecretNotJson),
        (r#""canary""#, Bearer, SecretNotJson),
        ("123456", Bearer, SecretNotJson),
        ("true", Bearer, SecretNotJson),
        ("null", Bearer, SecretNotJson),
        ("{}", Bearer, SecretMissingField),
        (r#"{"Token": "canary"}"#, Bearer, SecretMissingField),
        (r#"{"password": "canary"}"#, Basic, SecretMissingField),
        (r#"{"username": "u"}"#, Basic, SecretMissingField),
        (r#"{"token": 1234567}"#, Bearer, SecretWrongType),
        (r#"{"token": null}"#, Bearer, SecretWrongType),
        (r#"{"token": ["canary"]}"#, Raw, SecretWrongType),
        (r#"{"token": {"canary": 1}}"#, Raw, SecretWrongType),
        (r#"{"username": "u", "password": 12}"#, Basic, SecretWrongType),
        (r#"{"headers": "canary"}"#, Bearer, SecretWrongType),
        (r#"{"headers": {"A": 1}}"#, Bearer, SecretWrongType),
        (r#"{"username": "u:v", "password": "canary"}"#, Basic, SecretNotBasic),
        ("canary", Basic, SecretNotBasic),
        ("canary\r\nX: y", Bearer, SecretInvalidHeader),
        ("can\0ary", Raw, SecretInvalidHeader),
        ("can\u{1b}ary", Raw, SecretInvalidHeader),
        ("canary\u{20ac}", Raw, SecretInvalidHeader),
        ("\u{feff}canary", Bearer, SecretInvalidHeader),
        (r#"{"token": "canary\nX: y"}"#, Bearer, SecretInvalidHeader),
        (r#"{"username": "u", "password": "can\u0000ary"}"#, Basic, SecretInvalidHeader),
        (r#"{"headers": {"A B": "canary"}}"#, Bearer, SecretInvalidHeader),
        (r#"{"headers": {"": "canary"}}"#, Bearer, SecretInvalidHeader),
        (r#"{"headers": {"A": "canary\n"}}"#, Bearer, SecretInvalidHeader),
        (r#"{"headers": {"A": " canary"}}"#, Bearer, SecretInvalidHeader),
        (r#"{"headers": {"X-Auth": "canary", "x-auth": "canary"}}"#, Bearer, SecretInvalidHeader),
        (r#"{"headers": {"Host": "canary"}}"#, Bearer, SecretReservedHeader),
        (r#"{"headers": {"content-length": "canary"}}"#, Bearer, SecretReservedHeader),
        (r#"{"headers": {"Transfer-Encoding": "canary"}}"#, Bearer, SecretReservedHeader),
        (r#"{"headers": {"CONNECTION": "canary"}}"#, Bearer, SecretReservedHeader),
        (r#"{"token": "canary", "expires_at": "tomorrow"}"#, Bearer, SecretInvalidExpiry),
        (r#"{"token": "canary", "expires_at": true}"#, Bearer, SecretInvalidExpiry),
        (r#"{"token": "canary", "expires_at": -5}"#, Bearer, SecretInvalidExpiry),
        (r#"{"token": "canary", "expires_at": 1e300}"#, Bearer, SecretInvalidExpiry),
    ] {
        assert_eq!(code(payload, mode), expected, "{payload:?} as {mode:?}");
    }
    let deep = "[".repeat(5000);
    assert_eq!(code(&format!(r#"{{"a": {deep}"#), Bearer), SecretNotJson);
}

#[test]
fn latin_1_is_a_header_and_utf_8_is_a_password() {
    assert_eq!(authorization("münchen", Raw), "münchen");
    assert_eq!(authorization(r#"{"username": "u", "password": "€"}"#, Basic), basic("u:€"));
}

#[test]
fn nothing_shows_the_credential() {
    for payload in ["canary", r#"{"token": "canary"}"#, r#"{"headers": {"X": "canary"}}"#] {
        let credential = read(payload, Raw, "X").unwrap();
        assert!(!format!("{credential:?}").contains("canary"));
    }
}
