//! The environment becomes settings, or a list of everything that is wrong with it.

use std::time::Duration;

use mlflow_secrets_auth::settings::{Environment, OnError, Reader, Settings, enabled_providers, variables as var};
use mlflow_secrets_auth::{Error, ErrorCode};

const BASE: [(&str, &str); 4] = [
    ("MLFLOW_SECRETS_AUTH_ENABLE", "vault"),
    ("VAULT_ADDR", "https://vault.example.com:8200"),
    ("VAULT_TOKEN", "canary-token"),
    ("MLFLOW_VAULT_SECRET_PATH", "secret/mlflow/auth"),
];

fn environment(changes: &[(&str, &str)]) -> Environment {
    BASE.iter().chain(changes).copied().collect()
}

fn settings(changes: &[(&str, &str)]) -> Settings {
    Settings::read(&environment(changes)).unwrap_or_else(|error| panic!("{changes:?}: {error}"))
}

fn error(changes: &[(&str, &str)]) -> Error {
    let error = Settings::read(&environment(changes)).map(|_| ()).expect_err("this should not be usable");
    assert!(!error.to_string().contains("canary"), "{error}");
    error
}

fn codes(error: &Error) -> Vec<ErrorCode> {
    if error.parts().is_empty() { vec![error.code()] } else { error.parts().iter().map(Error::code).collect() }
}

#[test]
fn defaults() {
    let settings = settings(&[]);
    assert!(settings.access.allowlist.is_none());
    assert!(!settings.access.allow_http);
    assert_eq!(settings.access.on_error, OnError::Raise);
    assert_eq!(settings.fetch.header_name, "Authorization");
    assert_eq!(settings.fetch.max_retries, 3);
    assert_eq!(settings.fetch.timeout, Duration::from_secs(30));
    assert_eq!(settings.fetch.stale_if_error, Duration::from_secs(3600));
    assert_eq!(settings.fetch.providers[0].ttl(), Duration::from_secs(300));
    assert_eq!(settings.notices, Vec::<String>::new());
}

#[test]
fn all_errors_come_at_once() {
    let error = error(&[
        ("MLFLOW_SECRETS_TIMEOUT_SEC", "soon"),
        ("MLFLOW_SECRETS_MAX_RETRIES", "11"),
        ("MLFLOW_SECRETS_ALLOWED_HOSTS", "good.com,ftp://a,b/c"),
        ("MLFLOW_SECRETS_ON_ERROR", "ignore"),
        ("MLFLOW_AUTH_HEADER_NAME", "Host"),
        ("MLFLOW_VAULT_TTL_SEC", "-1"),
        ("VAULT_SKIP_VERIFY", "maybe"),
    ]);
    assert_eq!(error.code(), ErrorCode::ConfigInvalid);
    assert_eq!(codes(&error), vec![ErrorCode::ConfigInvalidValue; 8]);
    let text = error.to_string();
    for name in ["TIMEOUT_SEC", "MAX_RETRIES", "ftp://a", "b/c", "ON_ERROR", "HEADER_NAME", "TTL_SEC", "SKIP_VERIFY"] {
        assert!(text.contains(name), "{name} is not in {text}");
    }
}

#[test]
fn an_error_names_variable_value_and_what_is_accepted() {
    let error = error(&[("MLFLOW_VAULT_TTL_SEC", "86401")]);
    assert_eq!(error.code(), ErrorCode::ConfigInvalidValue);
    assert!(
        error.message().contains("MLFLOW_VAULT_TTL_SEC is set to \"86401\"; accepted: a number of seconds, 0 to 86400")
    );
    let long = "x".repeat(1000);
    assert!(self::error(&[("MLFLOW_VAULT_TTL_SEC", &long)]).message().len() < 300);
}

#[test]
fn the_nearest_name_is_offered() {
    let unknown = error(&[("MLFLOW_SECRETS_AUTH_ENABLE", "valt")]);
    assert_eq!(unknown.code(), ErrorCode::ConfigUnknownProvider);
    assert!(unknown.hint().contains("did you mean vault?"), "{unknown}");
    let mode = error(&[("MLFLOW_VAULT_AUTH_MODE", "baisc")]);
    assert!(mode.hint().contains("did you mean basic?"), "{mode}");
    let without_path: Environment =
        BASE[..3].iter().copied().chain([("MLFLOW_VAULT_SECRETS_PATH", "secret/x")]).collect();
    let missing = Settings::read(&without_path).map(|_| ()).unwrap_err();
    assert_eq!(missing.code(), ErrorCode::ConfigMissing);
    assert!(
        missing.hint().contains("MLFLOW_VAULT_SECRETS_PATH is set: did you mean MLFLOW_VAULT_SECRET_PATH?"),
        "{missing}"
    );
    let notices = settings(&[("MLFLOW_SECRETS_ALLOWED_HOST", "a.com")]).notices;
    assert!(notices[0].contains("did you mean MLFLOW_SECRETS_ALLOWED_HOSTS?"), "{notices:?}");
}

#[test]
fn booleans_in_every_spelling() {
    for (text, expected) in [
        ("true", true),
        ("1", true),
        ("yes", true),
        ("on", true),
        ("TRUE", true),
        (" Yes ", true),
        ("false", false),
        ("0", false),
        ("no", false),
        ("off", false),
        ("Off", false),
        ("", false),
        (" ", false),
    ] {
        assert_eq!(settings(&[("MLFLOW_SECRETS_ALLOW_HTTP", text)]).access.allow_http, expected, "{text:?}");
    }
    for text in ["2", "t", "truee", "enabled", "ja"] {
        assert_eq!(error(&[("MLFLOW_SECRETS_ALLOW_HTTP", text)]).code(), ErrorCode::ConfigInvalidValue, "{text:?}");
    }
}

#[test]
fn ranges() {
    for (name, accepted, refused) in [
        ("MLFLOW_SECRETS_MAX_RETRIES", ["0", "10"], ["-1", "11"]),
        ("MLFLOW_SECRETS_TIMEOUT_SEC", ["1", "300"], ["0.9", "301"]),
        ("MLFLOW_SECRETS_STALE_IF_ERROR_SEC", ["0", "604800"], ["-1", "604801"]),
        ("MLFLOW_VAULT_TTL_SEC", ["0", "86400"], ["-1", "86401"]),
    ] {
        for text in accepted {
            settings(&[(name, text)]);
        }
        for text in refused.into_iter().chain(["x", "nan", "inf", "1,5", "10s"]) {
            assert_eq!(error(&[(name, text)]).code(), ErrorCode::ConfigInvalidValue, "{name}={text}");
        }
    }
    assert_eq!(settings(&[("MLFLOW_SECRETS_TIMEOUT_SEC", "2.5")]).fetch.timeout, Duration::from_millis(2500));
    assert_eq!(error(&[("MLFLOW_SECRETS_MAX_RETRIES", "1.5")]).code(), ErrorCode::ConfigInvalidValue);
}

#[test]
fn an_empty_variable_is_unset_but_an_empty_allowlist_is_an_error() {
    let settings = settings(&[("MLFLOW_SECRETS_TIMEOUT_SEC", ""), ("MLFLOW_AUTH_HEADER_NAME", "  ")]);
    assert_eq!(settings.fetch.timeout, Duration::from_secs(30));
    assert_eq!(settings.fetch.header_name, "Authorization");
    for text in ["", " ", ",", " , ,"] {
        assert_eq!(
            error(&[("MLFLOW_SECRETS_ALLOWED_HOSTS", text)]).code(),
            ErrorCode::ConfigAllowlistEmpty,
            "{text:?}"
        );
    }
    let list = self::settings(&[("MLFLOW_SECRETS_ALLOWED_HOSTS", " a.com , ,*.b.com,")]).access.allowlist.unwrap();
    assert_eq!(list.patterns().iter().map(ToString::to_string).collect::<Vec<_>>(), ["a.com", "*.b.com"]);
}

#[test]
fn header_names() {
    assert_eq!(settings(&[("MLFLOW_AUTH_HEADER_NAME", "X-MLflow-Auth")]).fetch.header_name, "X-MLflow-Auth");
    for name in ["Host", "content-length", "Transfer-Encoding", "connection", "X Auth", "X:Auth", "Äuth", "X\nAuth"] {
        assert_eq!(error(&[("MLFLOW_AUTH_HEADER_NAME", name)]).code(), ErrorCode::ConfigInvalidValue, "{name:?}");
    }
}

/// Two names for one setting: the same value is no conflict, different values are one that names both.
#[test]
fn aliases() {
    let pair: [&'static var::Variable; 2] = [&var::VAULT_ADDR, &var::VAULT_NAMESPACE];
    let read = |changes: &[(&str, &str)]| {
        let environment: Environment = changes.iter().copied().collect();
        let mut reader = Reader::new(&environment);
        let value = reader.aliased(pair);
        reader.finish(Some(value))
    };
    assert_eq!(read(&[]).unwrap(), None);
    assert_eq!(read(&[("VAULT_ADDR", "a")]).unwrap().as_deref(), Some("a"));
    assert_eq!(read(&[("VAULT_NAMESPACE", "a")]).unwrap().as_deref(), Some("a"));
    assert_eq!(read(&[("VAULT_ADDR", "a"), ("VAULT_NAMESPACE", "a")]).unwrap().as_deref(), Some("a"));
    assert_eq!(read(&[("VAULT_ADDR", "a"), ("VAULT_NAMESPACE", "")]).unwrap().as_deref(), Some("a"));
    let conflict = read(&[("VAULT_ADDR", "a"), ("VAULT_NAMESPACE", "b")]).unwrap_err();
    assert_eq!(conflict.code(), ErrorCode::ConfigConflict);
    assert!(conflict.message().contains("VAULT_ADDR") && conflict.message().contains("VAULT_NAMESPACE"));
}

#[test]
fn providers_and_their_toggles() {
    let enabled = |changes: &[(&str, &str)]| {
        let environment: Environment = changes.iter().copied().collect();
        let mut reader = Reader::new(&environment);
        let kinds = enabled_providers(&mut reader);
        reader.finish(Some(kinds)).map(|kinds| kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>())
    };
    const LIST: &str = "MLFLOW_SECRETS_AUTH_ENABLE";
    assert_eq!(enabled(&[]).unwrap(), Vec::<&str>::new());
    // The order is that of priority, not that of the list.
    let all = ["vault", "aws-secrets-manager", "azure-key-vault"];
    assert_eq!(enabled(&[(LIST, "azure-key-vault, VAULT,aws-secrets-manager,,vault")]).unwrap(), all);
    assert_eq!(enabled(&[("MLFLOW_SECRETS_AUTH_ENABLE_VAULT", "on")]).unwrap(), ["vault"]);
    assert_eq!(
        enabled(&[(LIST, "vault,azure-key-vault"), ("MLFLOW_SECRETS_AUTH_ENABLE_VAULT", "no")]).unwrap(),
        ["azure-key-vault"]
    );
    assert_eq!(
        enabled(&[(LIST, "vault"), ("MLFLOW_SECRETS_AUTH_ENABLE_AWS_SECRETS_MANAGER", "1")]).unwrap(),
        ["vault", "aws-secrets-manager"]
    );
    assert_eq!(enabled(&[(LIST, "vault,vaults")]).unwrap_err().code(), ErrorCode::ConfigUnknownProvider);
    assert_eq!(
        enabled(&[("MLFLOW_SECRETS_AUTH_ENABLE_VAULT", "x")]).unwrap_err().code(),
        ErrorCode::ConfigInvalidValue
    );
}

#[test]
fn no_provider_and_incomplete_providers() {
    assert_eq!(error(&[("MLFLOW_SECRETS_AUTH_ENABLE", "")]).code(), ErrorCode::ConfigNoProvider);
    assert_eq!(error(&[("MLFLOW_SECRETS_AUTH_ENABLE_VAULT", "off")]).code(), ErrorCode::ConfigNoProvider);
    let incomplete = error(&[("VAULT_ADDR", ""), ("MLFLOW_VAULT_SECRET_PATH", "")]);
    assert_eq!(incomplete.code(), ErrorCode::ConfigMissing);
    assert!(incomplete.message().contains("VAULT_ADDR and MLFLOW_VAULT_SECRET_PATH"), "{incomplete}");
}

/// One that lacks something is skipped, with a notice, while another one is usable.
#[test]
fn an_incomplete_provider_is_skipped_while_another_is_usable() {
    let settings = settings(&[("MLFLOW_SECRETS_AUTH_ENABLE", "vault,azure-key-vault")]);
    assert_eq!(settings.fetch.providers.len(), 1);
    assert!(settings.notices.iter().any(|notice| notice.contains("azure-key-vault")), "{:?}", settings.notices);
}

#[test]
fn secrets_are_never_shown() {
    // A line break inside: the trailing one of a file is taken off.
    let refused = error(&[("VAULT_TOKEN", "canary\ntoken")]);
    assert_eq!(refused.code(), ErrorCode::ConfigInvalidValue);
    assert!(refused.message().contains("VAULT_TOKEN"));
    let address = error(&[("VAULT_ADDR", "https://user:canary@vault.example.com")]);
    assert!(address.message().contains("VAULT_ADDR"), "{address}");
    let settings = settings(&[("VAULT_SECRET_ID", "canary-secret-id"), ("VAULT_ROLE_ID", "role")]);
    assert!(!format!("{settings:?}").contains("canary"));
    let environment = environment(&[("VAULT_SECRET_ID", "canary-secret-id")]);
    let mut reader = Reader::new(&environment);
    Settings::read_from(&mut reader);
    for reading in reader.readings() {
        assert!(!reading.value.contains("canary"), "{}", reading.variable.name);
    }
    let token = reader.readings().iter().find(|reading| reading.variable.name == "VAULT_TOKEN").unwrap();
    assert_eq!(token.value, "set");
}

/// Every variable is declared once, with its documentation; what is secret by name is marked so.
#[test]
fn every_variable_is_documented() {
    for (index, variable) in var::ALL.iter().enumerate() {
        assert!(!variable.summary().is_empty(), "{}", variable.name);
        assert!(var::ALL[..index].iter().all(|before| before.name != variable.name), "{}", variable.name);
        let sounds_secret =
            ["_TOKEN", "PASSWORD", "VAULT_SECRET_ID", "CLIENT_SECRET"].iter().any(|end| variable.name.ends_with(end));
        assert!(!sounds_secret || variable.secret, "{} is not marked as secret", variable.name);
    }
}

/// S1: a URL in the record of what was read, which `info` shows, has no user information, well-formed or not.
#[test]
fn what_was_read_is_recorded_without_user_information() {
    for (name, value) in [
        ("VAULT_ADDR", "https://jim:canary@vault.example.com"),
        ("VAULT_ADDR", "jim:canary@vault.example.com"),
        ("VAULT_ADDR", "https://jim:can/canary@vault.example.com"),
        ("HTTPS_PROXY", "http://jim:canary@proxy:3128"),
        ("HTTPS_PROXY", "jim:canary@proxy:3128"),
        ("MLFLOW_SECRETS_ALLOWED_HOSTS", "good.com,https://jim:canary@b.com"),
        ("MLFLOW_SECRETS_ALLOWED_HOSTS", "jim:canary@b.com,good.com"),
    ] {
        let environment = environment(&[(name, value)]);
        let mut reader = Reader::new(&environment);
        let settings = Settings::read_from(&mut reader);
        let reading = reader.readings().iter().find(|reading| reading.variable.name == name);
        let reading = reading.unwrap_or_else(|| panic!("{name} was not read"));
        assert!(reading.value.contains("***") && !reading.value.contains("canary"), "{value}: {}", reading.value);
        let errors: String = reader.errors().iter().map(ToString::to_string).collect();
        assert!(!errors.contains("canary"), "{value}: {errors}");
        assert!(!format!("{settings:?}").contains("canary"), "{value}");
    }
}
