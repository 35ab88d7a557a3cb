//! The AWS provider's variables: forms, precedence, and what excludes what.
#![cfg(feature = "aws")]

use mlflow_secrets_auth::error::{Error, ErrorCode};
use mlflow_secrets_auth::provider::ProviderSettings;
use mlflow_secrets_auth::provider::aws::{
    AgentToken, AwsSettings, RetryMode, SecretReader, SecretVersion, ServiceSettings,
};
use mlflow_secrets_auth::settings::{Environment, Settings};

const ROLE: &str = "arn:aws:iam::123456789012:role/team/reader";
const OUR_ROLE: &str = "arn:aws:iam::123456789012:role/secret";

/// A complete environment, changed by `changes`; an empty value unsets.
fn environment(changes: &[(&str, &str)]) -> Environment {
    let complete = [
        ("MLFLOW_SECRETS_AUTH_ENABLE", "aws-secrets-manager"),
        ("AWS_REGION", "us-east-1"),
        ("MLFLOW_AWS_SECRET_NAME", "mlflow/auth"),
        ("AWS_CONFIG_FILE", "/nowhere/config"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/nowhere/credentials"),
    ];
    complete.iter().chain(changes).copied().collect()
}

fn settings(changes: &[(&str, &str)]) -> (AwsSettings, Vec<String>) {
    let settings = Settings::read(&environment(changes)).expect("a test's settings are valid");
    match settings.fetch.providers.into_iter().next() {
        Some(ProviderSettings::Aws(aws)) => (*aws, settings.notices),
        other => panic!("not the AWS provider: {other:?}"),
    }
}

fn service(changes: &[(&str, &str)]) -> ServiceSettings {
    match settings(changes).0.reader {
        SecretReader::Service(service) => *service,
        SecretReader::Agent(_) => panic!("the agent is not configured"),
    }
}

fn error(changes: &[(&str, &str)]) -> Error {
    Settings::read(&environment(changes)).expect_err("a test's settings are invalid")
}

#[test]
fn a_name_has_no_region_and_a_full_arn_brings_one() {
    assert_eq!(settings(&[]).0.secret.region, None);
    let arn = "arn:aws-cn:secretsmanager:cn-north-1:123456789012:secret:team:a/mlflow-AbCdEf";
    let (aws, _) = settings(&[("MLFLOW_AWS_SECRET_NAME", arn), ("AWS_REGION", "")]);
    assert_eq!((aws.secret.id.as_str(), aws.secret.region.as_deref()), (arn, Some("cn-north-1")));
}

#[test]
fn an_arn_of_something_else_is_refused() {
    for arn in [
        "arn:aws:s3:::bucket",
        "arn:aws:secretsmanager:us-east-1:123456789012:secret:",
        "arn:aws:secretsmanager::123456789012:secret:x",
        "arn:aws:secretsmanager:us.east:123456789012:secret:x",
    ] {
        let error = error(&[("MLFLOW_AWS_SECRET_NAME", arn)]);
        assert_eq!(error.code(), ErrorCode::ConfigInvalidValue, "{arn}");
        assert!(error.message().contains("MLFLOW_AWS_SECRET_NAME"));
    }
}

#[test]
fn stages_and_version_ids_are_told_apart_by_form() {
    let version = |text| settings(&[("MLFLOW_AWS_SECRET_VERSION", text)]).0.version;
    let stage = |text: &str| Some(SecretVersion::Stage(text.to_owned()));
    let id = |text: &str| Some(SecretVersion::Id(text.to_owned()));
    assert_eq!(version("AWSCURRENT"), None);
    assert_eq!(version("AWSPENDING"), stage("AWSPENDING"));
    assert_eq!(version("blue"), stage("blue"));
    let uuid = "a1b2c3d4-5678-90ab-cdef-EXAMPLE11111";
    assert_eq!(version(uuid), id(uuid));
    let terraform = "terraform-20250101000000000000000001";
    assert_eq!(version(terraform), id(terraform));
    let long = "s".repeat(65);
    assert_eq!(version(&long), stage(&long));
}

#[test]
fn the_number_of_retries_has_an_order_of_precedence() {
    let retries = |changes: &[(&str, &str)]| settings(changes).0.max_retries;
    let (own, global, standard) =
        (("MLFLOW_AWS_MAX_RETRIES", "5"), ("MLFLOW_SECRETS_MAX_RETRIES", "2"), ("AWS_MAX_ATTEMPTS", "4"));
    assert_eq!(retries(&[]), None);
    assert_eq!(retries(&[global]), None);
    assert_eq!(retries(&[global, standard]), None);
    assert_eq!(retries(&[standard]), Some(3));
    assert_eq!(retries(&[own, global, standard]), Some(5));
}

#[test]
fn garbage_in_the_sdks_own_variables_is_our_error_even_where_ours_win() {
    for (name, value) in [("AWS_MAX_ATTEMPTS", "0"), ("AWS_MAX_ATTEMPTS", "-1"), ("AWS_RETRY_MODE", "fast")] {
        let error = error(&[("MLFLOW_AWS_MAX_RETRIES", "1"), ("MLFLOW_AWS_RETRY_MODE", "standard"), (name, value)]);
        assert_eq!(error.code(), ErrorCode::ConfigInvalidValue);
        assert!(error.message().contains(name));
    }
}

#[test]
fn the_retry_mode_is_adaptive_unless_said_otherwise() {
    assert_eq!(service(&[]).retry_mode, RetryMode::Adaptive);
    assert_eq!(service(&[("AWS_RETRY_MODE", "standard")]).retry_mode, RetryMode::Standard);
    let both = [("AWS_RETRY_MODE", "standard"), ("MLFLOW_AWS_RETRY_MODE", "Adaptive")];
    assert_eq!(service(&both).retry_mode, RetryMode::Adaptive);
    let (_, notices) = settings(&[("AWS_RETRY_MODE", "legacy")]);
    assert_eq!(notices, ["AWS_RETRY_MODE=legacy is treated as standard"]);
}

#[test]
fn the_region_may_come_from_either_variable() {
    assert_eq!(service(&[("AWS_DEFAULT_REGION", "eu-west-1")]).region.as_deref(), Some("us-east-1"));
    let only = service(&[("AWS_REGION", ""), ("AWS_DEFAULT_REGION", "eu-west-1")]);
    assert_eq!(only.region.as_deref(), Some("eu-west-1"));
}

#[test]
fn without_any_region_and_any_profile_the_region_is_missing() {
    let error = error(&[("AWS_REGION", ""), ("MLFLOW_AWS_SECRET_NAME", "")]);
    assert_eq!(error.code(), ErrorCode::ConfigMissing);
    assert!(error.message().contains("AWS_REGION and MLFLOW_AWS_SECRET_NAME"));
}

#[test]
fn an_incomplete_provider_is_skipped_where_another_one_is_usable() {
    let settings = Settings::read(&environment(&[
        ("MLFLOW_SECRETS_AUTH_ENABLE", "vault,aws-secrets-manager"),
        ("VAULT_ADDR", "https://vault.example.com"),
        ("VAULT_TOKEN", "t"),
        ("MLFLOW_VAULT_SECRET_PATH", "secret/x"),
        ("MLFLOW_AWS_SECRET_NAME", ""),
    ]));
    let settings = settings.expect("vault is complete");
    assert_eq!(settings.fetch.providers.len(), 1);
    assert!(settings.notices.iter().any(|notice| notice.contains("MLFLOW_AWS_SECRET_NAME")));
}

#[test]
fn an_explicit_profile_leaves_keys_and_web_identity_out() {
    let keys = [("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "canary")];
    let web = [("AWS_WEB_IDENTITY_TOKEN_FILE", "/t"), ("AWS_ROLE_ARN", ROLE)];
    let all: Vec<_> = keys.into_iter().chain(web).collect();
    let identity = service(&all).identity;
    assert!(identity.keys.is_some() && identity.web_identity.is_some());
    let with_profile: Vec<_> = all.into_iter().chain([("AWS_PROFILE", "team")]).collect();
    let identity = service(&with_profile).identity;
    assert!(identity.keys.is_none() && identity.web_identity.is_none());
    assert!(settings(&with_profile).1.iter().any(|notice| notice.contains("AWS_PROFILE=team wins")));
}

#[test]
fn half_a_pair_of_keys_is_an_error_unless_a_profile_is_named() {
    let half = ("AWS_SECRET_ACCESS_KEY", "canary");
    let error = error(&[half]);
    assert_eq!(error.code(), ErrorCode::ConfigMissing);
    assert!(!error.to_string().contains("canary"));
    assert!(service(&[half, ("AWS_PROFILE", "team")]).identity.keys.is_none());
}

#[test]
fn roles_are_assumed_once_each_and_in_order() {
    let arns = |changes: &[(&str, &str)]| -> Vec<String> {
        service(changes).identity.roles.into_iter().map(|role| role.arn).collect()
    };
    let (standard, ours, web) =
        (("AWS_ROLE_ARN", ROLE), ("MLFLOW_AWS_ROLE_ARN", OUR_ROLE), ("AWS_WEB_IDENTITY_TOKEN_FILE", "/t"));
    assert_eq!(arns(&[]), [""; 0]);
    assert_eq!(arns(&[standard]), [ROLE]);
    assert_eq!(arns(&[standard, ours]), [ROLE, OUR_ROLE]);
    assert_eq!(arns(&[standard, web]), [""; 0]);
    assert_eq!(arns(&[standard, web, ours]), [OUR_ROLE]);
    assert_eq!(arns(&[standard, ("MLFLOW_AWS_ROLE_ARN", ROLE)]), [ROLE]);
}

#[test]
fn endpoints_have_an_order_of_precedence_and_can_be_ignored() {
    let all = [("AWS_ENDPOINT_URL", "http://localhost:4566/"), ("AWS_ENDPOINT_URL_STS", "https://sts.example.com")];
    let endpoints = service(&all).endpoints;
    assert_eq!(endpoints.secrets_manager.as_deref(), Some("http://localhost:4566"));
    assert_eq!(endpoints.sts.as_deref(), Some("https://sts.example.com"));
    let ignored: Vec<_> = all.into_iter().chain([("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")]).collect();
    assert_eq!(service(&ignored).endpoints.secrets_manager, None);
}

#[test]
fn plain_http_beyond_this_machine_is_warned_about() {
    let warned = |name, url| settings(&[(name, url)]).1.iter().any(|notice| notice.contains(name));
    assert!(warned("AWS_ENDPOINT_URL_SECRETS_MANAGER", "http://secrets.example.com"));
    assert!(!warned("AWS_ENDPOINT_URL_SECRETS_MANAGER", "http://127.0.0.1:5000"));
    assert!(!warned("AWS_ENDPOINT_URL_SECRETS_MANAGER", "https://secrets.example.com"));
}

#[test]
fn the_agent_takes_a_token_or_a_file_and_needs_no_region() {
    let agent = |token| {
        let changes =
            [("AWS_REGION", ""), ("MLFLOW_AWS_AGENT_URL", "http://localhost:2773/"), ("MLFLOW_AWS_AGENT_TOKEN", token)];
        match settings(&changes).0.reader {
            SecretReader::Agent(agent) => agent,
            SecretReader::Service(_) => panic!("the agent is configured"),
        }
    };
    assert_eq!(agent("canary").url, "http://localhost:2773");
    assert_eq!(agent("canary").token, AgentToken::Value("canary".into()));
    assert_eq!(agent("file:///run/token").token, AgentToken::File("/run/token".into()));
}

#[test]
fn debug_output_shows_no_secret() {
    let (aws, _) = settings(&[
        ("AWS_ACCESS_KEY_ID", "canary1"),
        ("AWS_SECRET_ACCESS_KEY", "canary2"),
        ("AWS_SESSION_TOKEN", "canary3"),
        ("AWS_EXTERNAL_ID", "canary4"),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://localhost/c"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "canary5"),
    ]);
    assert!(!format!("{aws:?}").contains("canary"));
}
