//! The variables of the Azure Key Vault provider.
#![cfg(feature = "azure")]

use mlflow_secrets_auth::provider::ProviderSettings;
use mlflow_secrets_auth::provider::azure::{AzureSettings, Machine, SignIn};
use mlflow_secrets_auth::settings::{Environment, Settings};
use mlflow_secrets_auth::{Error, ErrorCode};

const VAULT: (&str, &str) = ("MLFLOW_AZURE_KEY_VAULT_URL", "https://team-ml.vault.azure.net/");

fn everything(more: &[(&str, &str)]) -> Result<Settings, Error> {
    let base = [("MLFLOW_SECRETS_AUTH_ENABLE", "azure-key-vault"), ("MLFLOW_AZURE_SECRET_NAME", "mlflow-auth")];
    Settings::read(&base.into_iter().chain(more.iter().copied()).collect::<Environment>())
}

fn settings(more: &[(&str, &str)]) -> AzureSettings {
    match everything(more).map(|settings| settings.fetch.providers) {
        Ok(providers) => match providers.into_iter().next() {
            Some(ProviderSettings::Azure(settings)) => *settings,
            _ => panic!("another provider"),
        },
        Err(error) => panic!("{error}"),
    }
}

fn error(more: &[(&str, &str)]) -> Error {
    everything(more).err().unwrap_or_else(|| panic!("accepted: {more:?}"))
}

#[test]
fn a_url_and_a_name_are_enough() {
    let settings = settings(&[VAULT]);
    assert_eq!(settings.vault.to_string(), "https://team-ml.vault.azure.net");
    assert_eq!(settings.authority.to_string(), "https://login.microsoftonline.com");
    assert_eq!(settings.secret_version, None);
    assert_eq!(settings.sign_ins, SignIn::ALL);
    assert_eq!(settings.ttl.as_secs(), 300);
    assert_eq!(settings.machine, Machine::Metadata);
    assert!(settings.verify_challenge);
}

#[test]
fn the_vault_is_told_by_a_url_its_alias_or_a_name() {
    let gov = ("AZURE_CLOUD_ENVIRONMENT", "azureusgovernment");
    let cases: [(&[(&str, &str)], &str); 7] = [
        (&[("AZURE_KEY_VAULT_URL", VAULT.1)], "https://team-ml.vault.azure.net"),
        (&[("AZURE_KEY_VAULT_NAME", "Team-ML")], "https://team-ml.vault.azure.net"),
        (&[("AZURE_KEY_VAULT_NAME", "team-ml"), gov], "https://team-ml.vault.usgovcloudapi.net"),
        (
            &[("AZURE_KEY_VAULT_NAME", "team-ml"), ("AZURE_CLOUD_ENVIRONMENT", "AzureChinaCloud")],
            "https://team-ml.vault.azure.cn",
        ),
        (
            &[("AZURE_KEY_VAULT_NAME", "team-ml"), ("AZURE_AUTHORITY_HOST", "login.microsoftonline.us")],
            "https://team-ml.vault.usgovcloudapi.net",
        ),
        (&[VAULT, ("AZURE_KEY_VAULT_NAME", "team-ml")], "https://team-ml.vault.azure.net"),
        (
            &[("MLFLOW_AZURE_KEY_VAULT_URL", "https://vault.internal.example:8443")],
            "https://vault.internal.example:8443",
        ),
    ];
    for (variables, vault) in cases {
        assert_eq!(settings(variables).vault.to_string(), vault, "{variables:?}");
    }
}

#[test]
fn the_authority_is_told_by_its_host_the_cloud_or_the_vault() {
    let url = |suffix: &str| format!("https://team-ml.{suffix}");
    let cases = [
        (url("vault.azure.net"), None, None, "https://login.microsoftonline.com"),
        (url("vault.usgovcloudapi.net"), None, None, "https://login.microsoftonline.us"),
        (url("vault.azure.cn"), None, None, "https://login.chinacloudapi.cn"),
        (
            "https://vault.internal.example".to_owned(),
            Some("AzureUSGovernmentCloud"),
            None,
            "https://login.microsoftonline.us",
        ),
        (url("vault.azure.net"), Some("AzureCloud"), Some("https://login.example/"), "https://login.example"),
        (url("vault.azure.net"), None, Some("login.microsoftonline.us"), "https://login.microsoftonline.us"),
    ];
    for (vault, cloud, host, authority) in cases {
        let mut variables = vec![("MLFLOW_AZURE_KEY_VAULT_URL", vault.as_str())];
        variables.extend(cloud.map(|cloud| ("AZURE_CLOUD_ENVIRONMENT", cloud)));
        variables.extend(host.map(|host| ("AZURE_AUTHORITY_HOST", host)));
        assert_eq!(settings(&variables).authority.to_string(), authority, "{variables:?}");
    }
}

#[test]
fn contradictions_are_errors_that_name_both_sides() {
    let cases: [(&[(&str, &str)], &str); 4] = [
        (&[VAULT, ("AZURE_CLOUD_ENVIRONMENT", "AzureChinaCloud")], "AzurePublicCloud"),
        (
            &[("AZURE_KEY_VAULT_URL", "https://a.vault.azure.cn"), ("AZURE_CLOUD_ENVIRONMENT", "AzureCloud")],
            "AzureChinaCloud",
        ),
        (&[VAULT, ("AZURE_KEY_VAULT_NAME", "other")], "AZURE_KEY_VAULT_NAME"),
        (&[VAULT, ("AZURE_KEY_VAULT_URL", "https://other.vault.azure.net")], "AZURE_KEY_VAULT_URL"),
    ];
    for (variables, words) in cases {
        let error = error(variables);
        assert_eq!(error.code(), ErrorCode::ConfigConflict, "{variables:?}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn what_would_become_part_of_a_url_is_checked() {
    let long = "a".repeat(128);
    let cases = [
        ("MLFLOW_AZURE_KEY_VAULT_URL", "http://team-ml.vault.azure.net"),
        ("MLFLOW_AZURE_KEY_VAULT_URL", "team-ml.vault.azure.net"),
        ("MLFLOW_AZURE_KEY_VAULT_URL", "https://team-ml.vault.azure.net/secrets/x"),
        ("MLFLOW_AZURE_KEY_VAULT_URL", "https://user:pw@team-ml.vault.azure.net"),
        ("MLFLOW_AZURE_KEY_VAULT_URL", "https://team-ml.vault.azure.net?x=1"),
        ("AZURE_KEY_VAULT_NAME", "a"),
        ("AZURE_KEY_VAULT_NAME", "1team"),
        ("AZURE_KEY_VAULT_NAME", "team-"),
        ("AZURE_KEY_VAULT_NAME", "team.ml"),
        ("AZURE_KEY_VAULT_NAME", "https://team-ml.vault.azure.net"),
        ("MLFLOW_AZURE_SECRET_NAME", "../keys/x"),
        ("MLFLOW_AZURE_SECRET_NAME", "a/b"),
        ("MLFLOW_AZURE_SECRET_NAME", "a_b"),
        ("MLFLOW_AZURE_SECRET_NAME", long.as_str()),
        ("MLFLOW_AZURE_SECRET_VERSION", "../x"),
        ("MLFLOW_AZURE_SECRET_VERSION", "one-two"),
        ("AZURE_TENANT_ID", "a/b"),
        ("AZURE_TENANT_ID", "a b"),
        ("AZURE_CLIENT_ID", "x&y"),
        ("AZURE_AUTHORITY_HOST", "http://login.microsoftonline.com"),
        ("AZURE_AUTHORITY_HOST", "https://login.microsoftonline.com/tenant"),
        ("AZURE_CLOUD_ENVIRONMENT", "AzureGermanCloud"),
        ("AZURE_TOKEN_CREDENTIALS", "AzurePowerShellCredential"),
        ("MLFLOW_AZURE_VERIFY_CHALLENGE", "maybe"),
        ("AZURE_CLIENT_SEND_CERTIFICATE_CHAIN", "2"),
    ];
    for (name, value) in cases {
        let variables: Vec<_> =
            [VAULT].into_iter().filter(|(vault, _)| *vault != name).chain([(name, value)]).collect();
        let error = error(&variables);
        assert_eq!(error.code(), ErrorCode::ConfigInvalidValue, "{name}={value}: {error}");
        assert!(error.message().starts_with(name), "{error}");
        assert!(!error.to_string().contains("pw@"), "{error}");
    }
}

#[test]
fn the_alias_is_named_where_it_is_the_one_that_is_wrong() {
    let error = error(&[("AZURE_KEY_VAULT_URL", "http://team-ml.vault.azure.net")]);
    assert!(error.message().starts_with("AZURE_KEY_VAULT_URL"), "{error}");
}

#[test]
fn a_version_is_latest_or_an_id() {
    let version = |text: &str| settings(&[VAULT, ("MLFLOW_AZURE_SECRET_VERSION", text)]).secret_version;
    assert_eq!(version("latest"), None);
    assert_eq!(version("LATEST"), None);
    assert_eq!(version("d1234567890abcdef1234567890abcdef").as_deref(), Some("d1234567890abcdef1234567890abcdef"));
}

#[test]
fn token_credentials_narrow_the_chain() {
    let wanted = |text: &str| settings(&[VAULT, ("AZURE_TOKEN_CREDENTIALS", text)]).sign_ins;
    assert_eq!(wanted("prod"), [SignIn::Environment, SignIn::WorkloadIdentity, SignIn::ManagedIdentity]);
    assert_eq!(wanted("Dev"), [SignIn::AzureCli, SignIn::AzureDeveloperCli]);
    for sign_in in SignIn::ALL {
        assert_eq!(wanted(&sign_in.name().to_lowercase()), [*sign_in]);
    }
}

#[test]
fn the_platforms_variables_tell_the_machine() {
    let endpoint = ("IDENTITY_ENDPOINT", "http://localhost:42356/msi/token");
    let header = ("IDENTITY_HEADER", "h");
    let msi = ("MSI_ENDPOINT", "http://127.0.0.1:46808/MSI/auth");
    let machine = |variables: &[(&str, &str)]| {
        let mut all = vec![VAULT];
        all.extend(variables);
        settings(&all).machine
    };
    assert!(matches!(machine(&[endpoint, header]), Machine::AppService { .. }));
    // App Service still sets the older variables too.
    assert!(matches!(machine(&[endpoint, header, msi, ("MSI_SECRET", "s")]), Machine::AppService { .. }));
    assert!(matches!(machine(&[msi, ("MSI_SECRET", "s")]), Machine::MachineLearning { .. }));
    assert_eq!(machine(&[msi]), Machine::Unsupported("Cloud Shell"));
    assert_eq!(machine(&[endpoint, ("IMDS_ENDPOINT", "http://localhost:40342")]), Machine::Unsupported("Azure Arc"));
    let fabric = [endpoint, header, ("IDENTITY_SERVER_THUMBPRINT", "t")];
    assert_eq!(machine(&fabric), Machine::Unsupported("Service Fabric"));
    assert_eq!(machine(&[]), Machine::Metadata);
}

#[test]
fn what_is_missing_is_named_together() {
    let environment: Environment = [("MLFLOW_SECRETS_AUTH_ENABLE", "azure-key-vault")].into_iter().collect();
    let error = Settings::read(&environment).expect_err("incomplete");
    assert_eq!(error.code(), ErrorCode::ConfigMissing);
    assert!(error.message().contains("MLFLOW_AZURE_KEY_VAULT_URL and MLFLOW_AZURE_SECRET_NAME"), "{error}");
}

#[test]
fn what_deserves_a_warning() {
    let notices = |variables: &[(&str, &str)]| everything(variables).expect("valid").notices;
    assert_eq!(notices(&[VAULT]), Vec::<String>::new());
    let half = notices(&[VAULT, ("AZURE_CLIENT_ID", "c"), ("AZURE_CLIENT_SECRET", "canary")]);
    assert!(half[0].contains("AZURE_TENANT_ID is not"), "{half:?}");
    assert!(!half[0].contains("canary"));
    let unverified = notices(&[VAULT, ("MLFLOW_AZURE_VERIFY_CHALLENGE", "false")]);
    assert!(unverified[0].starts_with("MLFLOW_AZURE_VERIFY_CHALLENGE"), "{unverified:?}");
    let typo = notices(&[VAULT, ("MLFLOW_AZURE_SECRET_NAMES", "x")]);
    assert!(typo[0].contains("did you mean MLFLOW_AZURE_SECRET_NAME?"), "{typo:?}");
}

#[test]
fn nothing_secret_is_printed() {
    let settings = settings(&[
        VAULT,
        ("AZURE_CLIENT_SECRET", "canary-one"),
        ("AZURE_CLIENT_CERTIFICATE_PATH", "/c.pem"),
        ("AZURE_CLIENT_CERTIFICATE_PASSWORD", "canary-two"),
        ("MSI_ENDPOINT", "http://localhost:1"),
        ("MSI_SECRET", "canary-three"),
    ]);
    assert!(!format!("{settings:?}").contains("canary"));
}
