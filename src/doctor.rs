//! Checks that become findings. Nothing is printed here.

use std::time::Instant;

use serde_json::{Value, json};

use crate::allowlist::Verdict;
use crate::authorizer::{Authorizer, Decision};
use crate::chain::{Link, ProviderChain};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorCode, Result};
use crate::header::AuthHeaders;
use crate::origin::Origin;
use crate::provider::{ProviderKind, ProviderSettings};
use crate::retry::Budget;
use crate::runtime::{Driver, Interrupt};
use crate::settings::{Environment, FetchSettings, Reader, Settings, Source, variables as var};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// As it should be.
    Pass,
    /// It works, and deserves a look.
    Warn,
    /// It does not work.
    Fail,
    /// It could not be checked.
    Skip,
}

fn finding(status: Status, code: &str, message: String, hint: Option<&str>) -> Value {
    let status = match status {
        Status::Pass => "pass",
        Status::Warn => "warn",
        Status::Fail => "fail",
        Status::Skip => "skip",
    };
    json!({"status": status, "code": code, "message": message, "hint": hint})
}

fn failed(error: &Error) -> Vec<Value> {
    let each = if error.parts().is_empty() { std::slice::from_ref(error) } else { error.parts() };
    each.iter().map(|e| finding(Status::Fail, e.code().as_str(), e.message(), Some(e.hint()))).collect()
}

/// As [`failed`], with the provider's name before each.
fn failed_for(name: &str, role: &str, error: &Error) -> Vec<Value> {
    let mut findings = failed(error);
    for found in &mut findings {
        found["message"] = format!("{name}{role}: {}", found["message"].as_str().unwrap_or_default()).into();
    }
    findings
}

/// Version, providers and settings in effect, with everything that is wrong with them. No network.
pub fn info(environment: &Environment) -> Value {
    let mut reader = Reader::new(environment);
    reader.text(&var::MLFLOW_SECRETS_LOG_LEVEL);
    let settings = Settings::read_from(&mut reader);
    let usable: Vec<_> = settings.iter().flat_map(|s| &s.fetch.providers).map(|p| p.kind()).collect();
    let providers: Vec<_> = ProviderKind::ALL
        .iter()
        .map(|kind| json!({"name": kind.name(), "built_in": kind.is_built(), "in_use": usable.contains(kind)}))
        .collect();
    let settings_in_effect: Vec<_> = reader
        .readings()
        .iter()
        .map(|reading| {
            let source = match reading.source {
                Source::Variable => "variable",
                Source::Default => "default",
            };
            json!({"name": reading.variable.name, "value": reading.value, "source": source})
        })
        .collect();
    let errors: Vec<_> = reader
        .errors()
        .iter()
        .map(|e| json!({"code": e.code().as_str(), "message": e.message(), "hint": e.hint()}))
        .collect();
    let notices = settings.map_or_else(|| reader.take_notices(), |s| s.notices);
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "providers": providers,
        "settings": settings_in_effect,
        "errors": errors,
        "notices": notices,
    })
}

/// Every check from the settings to the header, each provider on its own.
///
/// # Errors
/// [`crate::ErrorCode::FetchInterrupted`] only: what fails is a finding.
pub fn examine(environment: &Environment, interrupt: Interrupt<'_>) -> Result<Value> {
    let mut reader = Reader::new(environment);
    let level = reader.text(&var::MLFLOW_SECRETS_LOG_LEVEL);
    if let Some(level) = level.filter(|level| !is_log_level(level)) {
        reader.invalid(&var::MLFLOW_SECRETS_LOG_LEVEL, &level, None);
    }
    let settings = Settings::read_from(&mut reader);
    let mut findings = Vec::new();
    let settings = match reader.finish(settings) {
        Ok(settings) => settings,
        Err(error) => {
            findings.extend(failed(&error));
            findings.push(finding(
                Status::Skip,
                "secret.readable",
                "needs settings that are complete".to_owned(),
                None,
            ));
            return Ok(Value::Array(findings));
        }
    };
    let names: Vec<_> = settings.fetch.providers.iter().map(|p| p.kind().name()).collect();
    findings.push(finding(Status::Pass, "config.loaded", names.join(", then "), None));
    findings.extend(settings.notices.iter().map(|notice| finding(Status::Warn, "config.notice", notice.clone(), None)));
    findings.extend(allowlist_warnings(&settings));
    for (index, provider) in settings.fetch.providers.iter().enumerate() {
        examine_provider(provider, index > 0, &settings.fetch, interrupt, &mut findings)?;
    }
    Ok(Value::Array(findings))
}

fn examine_provider(
    provider: &ProviderSettings,
    backup: bool,
    settings: &FetchSettings,
    interrupt: Interrupt<'_>,
    findings: &mut Vec<Value>,
) -> Result<()> {
    let clock = SystemClock;
    let link =
        Link { provider: provider.provider(&settings.roots), auth_mode: provider.auth_mode(), ttl: provider.ttl() };
    let role = if backup { " (backup)" } else { "" };
    let name = provider.kind().name();
    let driver = Driver::default();
    let timeout = settings.timeout;
    let look = async { Ok(tokio::time::timeout(timeout, link.provider.used_up_by_fetching()).await) };
    match driver.run(look, interrupt)? {
        Ok(Ok(None)) => {}
        Ok(Ok(Some(used_up))) => {
            findings.push(finding(Status::Pass, "login.single_use", format!("{name}{role}: {used_up}"), None));
            findings.push(finding(Status::Skip, "secret.readable", format!("{name}{role}: would use it up"), None));
            return Ok(());
        }
        Ok(Err(error)) => {
            findings.extend(failed_for(name, role, &error));
            findings.push(finding(Status::Skip, "secret.readable", format!("{name}{role}: needs the login"), None));
            return Ok(());
        }
        Err(_) => {
            let what = format!("{name}{role}: no answer within {:.1} s", timeout.as_secs_f64());
            let hint = "check that this machine reaches the backend, or raise MLFLOW_SECRETS_TIMEOUT_SEC";
            findings.push(finding(Status::Fail, ErrorCode::FetchTimeout.as_str(), what, Some(hint)));
            return Ok(());
        }
    }
    let chain = ProviderChain::of(vec![link], &settings.header_name);
    let budget = Budget { attempts: 1, deadline: clock.now() + settings.timeout, provider_decides: false };
    let started = Instant::now();
    let outcome = driver.run(async { Ok(chain.fetch(&clock, budget, true).await) }, interrupt)?;
    match outcome {
        Err(failure) => {
            findings.extend(failed_for(name, role, &failure.error));
            findings.push(finding(Status::Skip, "header.built", format!("{name}{role}: needs the secret"), None));
        }
        Ok(fetched) => {
            // The winner, and below it the ways that were tried before.
            if let Some((winner, tried)) = chain.identity_report().split_last() {
                let tried: String = tried.iter().map(|line| format!("\n  {line}")).collect();
                findings.push(finding(Status::Pass, "identity.found", format!("{name}{role}: {winner}{tried}"), None));
            }
            let version = fetched.version.map(|version| format!(", version {version}")).unwrap_or_default();
            let took = started.elapsed().as_millis();
            findings.push(finding(
                Status::Pass,
                "secret.readable",
                format!("{name}{role}: {}{version}, in {took} ms", fetched.location),
                None,
            ));
            let shape = shape(&fetched.credential.headers);
            if fetched.credential.looks_basic {
                findings.push(finding(
                    Status::Warn,
                    "header.looks_basic",
                    format!("{name}{role}: {shape}, but the secret looks like user:password"),
                    Some("for basic authentication set the provider's auth mode to basic, for example MLFLOW_VAULT_AUTH_MODE=basic"),
                ));
            } else {
                findings.push(finding(Status::Pass, "header.built", format!("{name}{role}: {shape}"), None));
            }
        }
    }
    Ok(())
}

/// The headers in words: `Authorization: Bearer <token>`, `X-MLflow-Auth: <token>, no scheme`.
fn shape(headers: &AuthHeaders) -> String {
    let shapes = headers.iter().map(|(name, value)| {
        match ["Bearer", "Basic"]
            .into_iter()
            .find(|scheme| value.strip_prefix(scheme).is_some_and(|rest| rest.starts_with(' ')))
        {
            Some(scheme) => format!("{name}: {scheme} <token>"),
            None => format!("{name}: <token>, no scheme"),
        }
    });
    shapes.collect::<Vec<_>>().join("; ")
}

fn allowlist_warnings(settings: &Settings) -> Vec<Value> {
    let Some(allowlist) = &settings.access.allowlist else { return Vec::new() };
    let patterns = allowlist.patterns().iter();
    patterns
        .filter(|pattern| pattern.is_open_ended())
        .map(|pattern| {
            let what = if pattern.as_str() == "*" {
                "permits every host"
            } else {
                "also matches names that somebody else can register"
            };
            finding(
                Status::Warn,
                "allowlist.open_ended",
                format!("the pattern {pattern} {what}"),
                Some("end the pattern in your own domain, as in mlflow-*.example.com"),
            )
        })
        .collect()
}

/// What the allowlist says about `url`. `own_urls` are those that count when there is no allowlist.
pub fn examine_url(environment: &Environment, url: &str, own_urls: Vec<String>) -> Value {
    let settings = match Settings::read(environment) {
        Ok(settings) => settings,
        Err(_) => {
            return finding(Status::Skip, "allowlist.match", "needs settings that are complete".to_owned(), None);
        }
    };
    let origin = match Origin::of(url) {
        Ok(origin) => origin,
        Err(error) => return finding(Status::Fail, error.code().as_str(), error.message(), Some(error.hint())),
    };
    let verdict = settings.access.allowlist.as_ref().map(|allowlist| allowlist.verdict(&origin));
    let (yes, no) = match &verdict {
        Some(Verdict::Allowed { rule, .. }) => (format!("matches {rule}"), String::new()),
        Some(Verdict::NotAllowed { nearest }) => {
            let nearest = nearest.map(|pattern| format!("; the nearest is {pattern}")).unwrap_or_default();
            (String::new(), format!("matches no pattern of MLFLOW_SECRETS_ALLOWED_HOSTS{nearest}"))
        }
        None => {
            let server = |text: &str| format!("{text} MLflow's tracking or registry server");
            (server("is"), server("is not"))
        }
    };
    let permitted =
        finding(Status::Pass, "allowlist.match", format!("{origin} may get the credential: it {yes}"), None);
    let not_allowed = finding(
        Status::Fail,
        "host.not_allowed",
        format!("{origin} gets no credential: it {no}"),
        Some("name the host in MLFLOW_SECRETS_ALLOWED_HOSTS, or let MLFLOW_TRACKING_URI point at it"),
    );
    match Authorizer::new(settings.clone()).decide(&origin, &|| own_urls.clone()) {
        Decision::Permitted => permitted,
        Decision::NotAllowed => not_allowed,
        Decision::Refused(error) => finding(Status::Fail, error.code().as_str(), error.message(), Some(error.hint())),
    }
}

/// Whether `MLFLOW_SECRETS_LOG_LEVEL` may be set to this.
pub fn is_log_level(text: &str) -> bool {
    ["DEBUG", "INFO", "WARNING", "WARN", "ERROR"].iter().any(|level| level.eq_ignore_ascii_case(text))
}
