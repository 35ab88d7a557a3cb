//! Checks that become findings. Nothing is printed here.

use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::allowlist::{Allowlist, Verdict};
use crate::authorizer::{Authorizer, Decision};
use crate::chain::{Fetched, Link, ProviderChain};
use crate::clock::{Clock, SystemClock};
use crate::credential::Credential;
use crate::error::{Error, ErrorCode, Outlook, Result};
use crate::header::AuthHeaders;
use crate::http::{self, TransportFailure};
use crate::network::Network;
use crate::origin::Origin;
use crate::provider::{Provider, ProviderKind, ProviderSettings};
use crate::retry::Budget;
use crate::runtime::{Driver, Interrupt};
use crate::settings::{Environment, FetchSettings, Reader, Settings, Source, enabled_providers, variables as var};
use crate::steps::{self, Exchange, Step};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
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

/// What a check found.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// How it came out.
    pub status: Status,
    /// What was checked, or the code of the error that it ended in.
    pub code: String,
    /// What was found, for people.
    pub message: String,
    /// What to do; there is one wherever a check did not pass.
    pub hint: Option<String>,
    /// The same for programs, by name; what there is depends on the code.
    pub facts: Map<String, Value>,
}

impl Finding {
    fn new(status: Status, code: &str, message: impl Into<String>, hint: Option<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into(), hint, facts: Map::new() }
    }

    fn pass(code: &str, message: impl Into<String>) -> Self {
        Self::new(Status::Pass, code, message, None)
    }

    fn warn(code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(Status::Warn, code, message, Some(hint.into()))
    }

    fn fail(code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(Status::Fail, code, message, Some(hint.into()))
    }

    fn skip(code: &str, needs: &str, hint: &str) -> Self {
        Self::new(Status::Skip, code, needs, Some(hint.to_owned()))
    }

    fn of_error(error: &Error) -> Self {
        Self::fail(error.code().as_str(), error.message(), error.hint())
    }

    fn with(mut self, name: &str, fact: impl Into<Value>) -> Self {
        self.facts.insert(name.to_owned(), fact.into());
        self
    }
}

fn noticed(notice: &String) -> Finding {
    Finding::warn("config.notice", notice, "`mlflow-secrets-auth info` shows every setting in effect")
}

fn failed(error: &Error) -> Vec<Finding> {
    let each = if error.parts().is_empty() { std::slice::from_ref(error) } else { error.parts() };
    each.iter().map(Finding::of_error).collect()
}

/// Version, build, providers and settings in effect, with everything that is wrong with them. No network.
pub fn info(environment: &Environment) -> Value {
    let mut reader = Reader::new(environment);
    reader.text(&var::MLFLOW_SECRETS_LOG_LEVEL);
    let settings = Settings::read_from(&mut reader);
    let usable: Vec<_> = settings.iter().flat_map(|s| &s.fetch.providers).map(|p| p.kind()).collect();
    // With a reader of its own, so that what is wrong with the toggles is not told twice.
    let enabled = enabled_providers(&mut Reader::new(environment));
    let providers: Vec<_> = ProviderKind::ALL
        .iter()
        .map(|kind| {
            let (built, in_use, enabled) = (kind.is_built(), usable.contains(kind), enabled.contains(kind));
            let toggled_off = || environment.get(kind.toggle().name).is_some();
            let state = match (built, in_use, enabled) {
                (false, _, _) => "not in this build".to_owned(),
                (_, true, _) => "in use".to_owned(),
                (_, _, true) => "enabled, but not usable: see below".to_owned(),
                _ if toggled_off() => format!("disabled by {}", kind.toggle().name),
                _ => "not enabled".to_owned(),
            };
            json!({"name": kind.name(), "built_in": built, "enabled": enabled, "in_use": in_use, "state": state})
        })
        .collect();
    let readings = reader.readings();
    let stands_in = |name| readings.iter().any(|reading| reading.source == Source::Alias(name));
    let settings_in_effect: Vec<_> = readings
        .iter()
        .filter(|reading| !stands_in(reading.variable.name))
        .map(|reading| {
            let (source, alias) = match reading.source {
                Source::Variable => ("variable", None),
                Source::Alias(alias) => ("alias", Some(alias)),
                Source::Default => ("default", None),
            };
            json!({"name": reading.variable.name, "value": reading.value, "source": source, "alias": alias})
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
        "build": {"features": features(), "optimised": !cfg!(debug_assertions)},
        "providers": providers,
        "settings": settings_in_effect,
        "errors": errors,
        "notices": notices,
    })
}

/// The features that this was built with.
fn features() -> Vec<&'static str> {
    let all = [
        ("vault", cfg!(feature = "vault")),
        ("aws", cfg!(feature = "aws")),
        ("azure", cfg!(feature = "azure")),
        ("python", cfg!(feature = "python")),
    ];
    all.into_iter().filter(|(_, is_on)| *is_on).map(|(name, _)| name).collect()
}

/// Every check from the settings to the header, each provider on its own.
///
/// # Errors
/// [`crate::ErrorCode::FetchInterrupted`] only: what fails is a finding.
pub fn examine(environment: &Environment, interrupt: Interrupt<'_>) -> Result<Vec<Finding>> {
    let mut reader = Reader::new(environment);
    let level = reader.text(&var::MLFLOW_SECRETS_LOG_LEVEL);
    if let Some(level) = level.filter(|level| !is_log_level(level)) {
        reader.invalid(&var::MLFLOW_SECRETS_LOG_LEVEL, &level, None);
    }
    let settings = Settings::read_from(&mut reader);
    let notices = reader.take_notices();
    let settings = match reader.finish(settings) {
        Ok(settings) => settings,
        Err(error) => {
            let mut findings = failed(&error);
            findings.extend(notices.iter().map(noticed));
            findings.push(Finding::skip("secret.readable", NEEDS_SETTINGS, MEND_SETTINGS));
            return Ok(findings);
        }
    };
    let names: Vec<_> = settings.fetch.providers.iter().map(|p| p.kind().name()).collect();
    let mut findings = vec![Finding::pass("config.loaded", names.join(", then ")).with("providers", names)];
    findings.extend(settings.notices.iter().map(noticed));
    findings.extend(allowlist_warnings(&settings));
    for (index, provider) in settings.fetch.providers.iter().enumerate() {
        let examination = Examination {
            kind: provider.kind(),
            role: if index > 0 { " (backup)" } else { "" },
            settings: &settings.fetch,
            interrupt,
            findings: Vec::new(),
        };
        findings.extend(examination.run(provider)?);
    }
    Ok(findings)
}

const NEEDS_SETTINGS: &str = "needs settings that are complete";
const MEND_SETTINGS: &str = "mend the settings that are named above; `mlflow-secrets-auth info` shows all of them";
const MEND: &str = "mend what failed above, then run `mlflow-secrets-auth doctor` again";

/// The checks of one provider.
struct Examination<'a> {
    kind: ProviderKind,
    /// ` (backup)` where another provider is asked first.
    role: &'static str,
    settings: &'a FetchSettings,
    interrupt: Interrupt<'a>,
    findings: Vec<Finding>,
}

impl Examination<'_> {
    fn run(mut self, provider: &ProviderSettings) -> Result<Vec<Finding>> {
        let clock = SystemClock;
        let link = Link {
            provider: provider.provider(&self.settings.network),
            auth_mode: provider.auth_mode(),
            ttl: provider.ttl(),
        };
        let driver = Driver::default();
        if !self.may_fetch(&driver, link.provider.as_ref())? {
            return Ok(self.findings);
        }
        let chain = ProviderChain::of(vec![link], &self.settings.header_name);
        let budget = Budget { attempts: 1, deadline: clock.now() + self.settings.timeout, provider_decides: false };
        let started = Instant::now();
        let watched = async { Ok(steps::watch(chain.fetch(&clock, budget, true)).await) };
        let (outcome, steps) = driver.run(watched, self.interrupt)?;
        let took = started.elapsed();
        self.reachability(&steps, outcome.as_ref().err().map(|failure| &failure.error))?;
        self.sign_in(&steps);
        match outcome {
            Ok(fetched) => {
                self.secret(&fetched, took, clock.calendar());
                self.header(&fetched.credential);
            }
            Err(failure) => {
                failed(&failure.error).into_iter().for_each(|finding| self.tell(finding));
                self.tell(Finding::skip("header.built", "needs the secret", MEND));
            }
        }
        Ok(self.findings)
    }

    /// Adds a finding, with the provider's name before its message.
    fn tell(&mut self, mut finding: Finding) {
        let name = self.kind.name();
        finding.message = format!("{name}{}: {}", self.role, finding.message);
        self.findings.push(finding.with("provider", name).with("backup", !self.role.is_empty()));
    }

    /// Whether a fetch uses nothing up that works only once.
    fn may_fetch(&mut self, driver: &Driver, provider: &dyn Provider) -> Result<bool> {
        let timeout = self.settings.timeout;
        let look = async { Ok(tokio::time::timeout(timeout, provider.used_up_by_fetching()).await) };
        match driver.run(look, self.interrupt)? {
            Ok(Ok(None)) => return Ok(true),
            Ok(Ok(Some(used_up))) => {
                self.tell(Finding::pass("login.single_use", used_up));
                self.tell(Finding::skip(
                    "secret.readable",
                    "would use it up",
                    "start the program that needs it; each start needs a new token in MLFLOW_VAULT_WRAPPED_SECRET_ID",
                ));
            }
            Ok(Err(error)) => {
                failed(&error).into_iter().for_each(|finding| self.tell(finding));
                self.tell(Finding::skip("secret.readable", "needs the login", MEND));
            }
            Err(_) => {
                let what = format!("no answer within {:.1} s", timeout.as_secs_f64());
                let hint = "check that this machine reaches the backend, or raise MLFLOW_SECRETS_TIMEOUT_SEC";
                self.tell(Finding::fail(ErrorCode::FetchTimeout.as_str(), what, hint));
            }
        }
        Ok(false)
    }

    /// Who answered, each once, and who did not where the fetch failed for it. A metadata service that is not there is no
    /// failure: the sign-in passes it by.
    fn reachability(&mut self, steps: &[Step], failure: Option<&Error>) -> Result<()> {
        let exchanges: Vec<_> = steps.iter().filter_map(Step::as_exchange).collect();
        let mut told = Vec::new();
        for exchange in &exchanges {
            if exchange.outcome.is_ok() && !told.contains(&&exchange.to) {
                told.push(&exchange.to);
                let message = format!("{} answers ({})", exchange.to, times(exchange));
                self.tell(with_times(Finding::pass("backend.reachable", message), exchange));
            }
        }
        let (Some(failure), Some(last)) = (failure, exchanges.last()) else { return Ok(()) };
        match &last.outcome {
            Err(TransportFailure::Tls(why)) => {
                let issuer = issuer(&last.to, &self.settings.network, self.interrupt)?;
                let signed = issuer.as_ref().map(|issuer| format!("; it is signed by {issuer}")).unwrap_or_default();
                let message = format!("the TLS connection to {} failed ({}): {why}{signed}", last.to, times(last));
                let hint = match &issuer {
                    // A certificate that has expired, or is for another name, is not mended by trusting its signer.
                    Some(issuer) if why == http::UNTRUSTED => format!(
                        "name the CA certificate of {issuer} in {} (a PEM file), if that is a signer that you trust",
                        self.kind.ca_variable().name
                    ),
                    _ if why == http::NO_TLS => "check the scheme and the port of the address".to_owned(),
                    _ => "check the name and the port of the address, and the server's certificate: its names, its end, who signed it".to_owned(),
                };
                let finding = Finding::fail("backend.tls", message, hint).with("issuer", issuer);
                self.tell(with_times(finding, last));
            }
            Err(TransportFailure::Unreachable(why)) if failure.outlook() == Outlook::Unreachable => {
                let message = format!("{} does not answer ({}): {why}", last.to, times(last));
                let hint = "check the address, the network to it (DNS, firewall, VPN), and HTTPS_PROXY and NO_PROXY";
                self.tell(with_times(Finding::fail("backend.unreachable", message, hint), last));
            }
            _ => {}
        }
        Ok(())
    }

    /// Who we are to the backend, and below it the ways that were tried, the last of which won. Nothing where none did,
    /// which the fetch's own failure tells.
    fn sign_in(&mut self, steps: &[Step]) {
        let tried: Vec<_> = steps.iter().filter_map(Step::as_sign_in).collect();
        let Some(winner) = tried.iter().rev().find_map(|sign_in| sign_in.outcome.as_ref().ok()) else { return };
        let lines: String = match tried.as_slice() {
            [only] => format!(" ({} ms)", ms(only.took)),
            tried => tried.iter().map(|sign_in| format!("\n  {sign_in}")).collect(),
        };
        let facts: Vec<_> = tried
            .iter()
            .map(|sign_in| {
                let (Ok(text) | Err(text)) = &sign_in.outcome;
                json!({"way": sign_in.way, "succeeded": sign_in.outcome.is_ok(), "result": text, "duration_ms": ms(sign_in.took)})
            })
            .collect();
        self.tell(Finding::pass("identity.found", format!("{winner}{lines}")).with("tried", facts));
    }

    fn secret(&mut self, fetched: &Fetched, took: Duration, now: SystemTime) {
        let mut parts = vec![fetched.location.clone()];
        parts.extend(fetched.version.as_ref().map(|version| format!("version {version}")));
        let age = fetched.created_at.and_then(|created| now.duration_since(created).ok());
        parts.extend(age.map(|age| format!("written {} ago", in_words(age))));
        let fields = &fetched.credential.fields;
        parts.push(if fields.is_empty() { "plain text".to_owned() } else { format!("fields {}", fields.join(", ")) });
        let left = fetched.lifetime.remaining;
        parts.push(match left {
            Some(Duration::ZERO) => "expired by this machine's clock".to_owned(),
            Some(left) => format!("expires in {}", in_words(left)),
            None => "does not expire".to_owned(),
        });
        let message = format!("{}; read in {} ms", parts.join(", "), ms(took));
        self.tell(
            Finding::pass("secret.readable", message)
                .with("location", fetched.location.clone())
                .with("version", fetched.version.clone())
                .with("age_s", age.map(|age| age.as_secs()))
                .with("fields", fields.clone())
                .with("expires_in_s", left.map(|left| left.as_secs()))
                .with("ttl_s", fetched.lifetime.setting.as_secs())
                .with("duration_ms", ms(took)),
        );
    }

    fn header(&mut self, credential: &Credential) {
        let shape = shape(&credential.headers);
        let fingerprint = credential.headers.fingerprint();
        let finding = if credential.looks_basic {
            let hint =
                format!("for basic authentication set {}=basic; else ignore this", self.kind.auth_mode_variable().name);
            Finding::warn("header.looks_basic", format!("{shape}, but the secret looks like user:password"), hint)
        } else {
            Finding::pass("header.built", format!("{shape} (fingerprint {fingerprint})"))
        };
        let names: Vec<_> = credential.headers.names().collect();
        self.tell(finding.with("headers", names).with("shape", shape).with("fingerprint", fingerprint));
    }
}

/// Who signed the certificate of the server at `url`, or `None` where it shows none within 5 s. No request is sent to it.
///
/// # Errors
/// [`crate::ErrorCode::FetchInterrupted`].
pub fn certificate_issuer(environment: &Environment, url: &str, interrupt: Interrupt<'_>) -> Result<Option<String>> {
    issuer(url, &Network::read(&mut Reader::new(environment)), interrupt)
}

fn issuer(url: &str, network: &Network, interrupt: Interrupt<'_>) -> Result<Option<String>> {
    let asked = async { tokio::time::timeout(ISSUER_LIMIT, http::certificate_issuer(url, network)).await };
    Driver::default().run(async { Ok(asked.await.ok().flatten()) }, interrupt)
}

/// How long a server that was refused may take to show its certificate once more.
const ISSUER_LIMIT: Duration = Duration::from_secs(5);

fn ms(time: Duration) -> u64 {
    time.as_millis() as u64
}

/// `name 2 ms, connection 14 ms, answer 31 ms`; of each what was needed, and the last is the sum.
fn times(exchange: &Exchange) -> String {
    let part = |what: &str, time: Option<Duration>| time.map(|time| format!("{what} {} ms, ", ms(time)));
    let parts = [part("name", exchange.lookup), part("connection", exchange.connection)];
    let end = if exchange.outcome.is_ok() { "answer" } else { "ended after" };
    format!("{}{end} {} ms", parts.into_iter().flatten().collect::<String>(), ms(exchange.took))
}

fn with_times(finding: Finding, exchange: &Exchange) -> Finding {
    finding
        .with("server", exchange.to.clone())
        .with("lookup_ms", exchange.lookup.map(ms))
        .with("connection_ms", exchange.connection.map(ms))
        .with("duration_ms", ms(exchange.took))
}

/// `45 s`, `12 min`, `7 h`, `40 days`.
fn in_words(time: Duration) -> String {
    match time.as_secs() {
        s @ ..120 => format!("{s} s"),
        s @ ..7_200 => format!("{} min", s / 60),
        s @ ..172_800 => format!("{} h", s / 3_600),
        s => format!("{} days", s / 86_400),
    }
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

fn allowlist_warnings(settings: &Settings) -> Vec<Finding> {
    let patterns = settings.access.allowlist.iter().flat_map(Allowlist::patterns);
    let mut findings = Vec::new();
    for pattern in patterns {
        if pattern.as_str() == "*" {
            let hint = "name your own servers, as in mlflow-*.example.com";
            findings.push(Finding::warn("allowlist.open_ended", "the pattern * permits every host", hint));
        } else if let Some(example) = pattern.foreign_example() {
            let hint = "end the pattern in a dot and your own domain, as in mlflow-*.example.com";
            let message = format!("the pattern {pattern} also matches {example}");
            findings.push(Finding::warn("allowlist.open_ended", message, hint));
        }
        if pattern.asks_for_http() {
            let message = format!("the pattern {pattern} permits plain http, for everybody on the way to read");
            let hint = "use https:// there, or leave the scheme out";
            findings.push(Finding::warn("allowlist.plain_http", message, hint));
        }
    }
    if settings.access.allow_http {
        let message = "plain http is permitted to every host that may get the credential";
        let hint = "unset MLFLOW_SECRETS_ALLOW_HTTP, and name the one host that needs it with http:// in MLFLOW_SECRETS_ALLOWED_HOSTS";
        findings.push(Finding::warn("allowlist.plain_http", message, hint));
    }
    findings
}

/// What the allowlist says about `url`. `own_urls` are those that count when there is no allowlist.
pub fn examine_url(environment: &Environment, url: &str, own_urls: Vec<String>) -> Finding {
    let settings = match Settings::read(environment) {
        Ok(settings) => settings,
        Err(_) => {
            return Finding::skip("allowlist.match", NEEDS_SETTINGS, MEND_SETTINGS);
        }
    };
    let origin = match Origin::of(url) {
        Ok(origin) => origin,
        Err(error) => return Finding::of_error(&error),
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
    let permitted = Finding::pass("allowlist.match", format!("{origin} may get the credential: it {yes}"));
    let not_allowed = Finding::fail(
        "host.not_allowed",
        format!("{origin} gets no credential: it {no}"),
        "name the host in MLFLOW_SECRETS_ALLOWED_HOSTS, or let MLFLOW_TRACKING_URI point at it",
    );
    match Authorizer::new(settings.clone()).decide(&origin, &|| own_urls.clone()) {
        Decision::Permitted => permitted,
        Decision::NotAllowed => not_allowed,
        Decision::Refused(error) => Finding::of_error(&error),
    }
}

/// Whether `MLFLOW_SECRETS_LOG_LEVEL` may be set to this.
pub fn is_log_level(text: &str) -> bool {
    ["DEBUG", "INFO", "WARNING", "WARN", "ERROR"].iter().any(|level| level.eq_ignore_ascii_case(text))
}
