//! The environment, read into [`Settings`], with every error at once.

mod reader;
pub mod variables;

use std::collections::HashMap;
use std::time::Duration;

pub use reader::{Reader, Source, nearest};
use zeroize::Zeroize;

use crate::allowlist::{Allowlist, Pattern};
use crate::error::{Error, ErrorCode, Result};
use crate::header::{is_header_name, is_reserved};
use crate::network::Network;
use crate::origin::without_user;
use crate::provider::{ProviderKind, ProviderSettings};
use variables as var;

/// The environment as it was at one moment: names and values.
///
/// Values may be secrets, so there is no `Debug`, and they are wiped when they are dropped.
#[derive(Clone, Default)]
pub struct Environment(HashMap<String, String>);

impl Environment {
    /// The value of a variable, where it is set and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.trim().is_empty())
    }

    /// Whether it is set at all, even to nothing.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The names of all variables that are set.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        self.0.values_mut().for_each(Zeroize::zeroize);
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// What to do with a request when the credential can't be fetched: `MLFLOW_SECRETS_ON_ERROR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// Raise the error; the request is not sent.
    Raise,
    /// Send the request without the credential, and log an ERROR.
    Skip,
}

/// Who may get the credential, and what happens when there is none. A change of these needs no new fetch.
#[derive(Clone, Debug, PartialEq)]
pub struct Access {
    /// `MLFLOW_SECRETS_ALLOWED_HOSTS`; `None` when unset.
    pub allowlist: Option<Allowlist>,
    /// `MLFLOW_SECRETS_ALLOW_HTTP`.
    pub allow_http: bool,
    /// `MLFLOW_SECRETS_ON_ERROR`.
    pub on_error: OnError,
}

/// All that decides which credential is fetched, and how: the key of the cache.
#[derive(Clone, Debug, PartialEq)]
pub struct FetchSettings {
    /// The enabled and complete providers, in the order of their priority. Never empty.
    pub providers: Vec<ProviderSettings>,
    /// `MLFLOW_AUTH_HEADER_NAME`.
    pub header_name: String,
    /// `MLFLOW_SECRETS_MAX_RETRIES`: retries after the first attempt.
    pub max_retries: u32,
    /// `MLFLOW_SECRETS_TIMEOUT_SEC`: the total deadline of one fetch.
    pub timeout: Duration,
    /// `MLFLOW_SECRETS_STALE_IF_ERROR_SEC`.
    pub stale_if_error: Duration,
    /// The way to every backend.
    pub network: Network,
}

/// Everything that the environment says, valid as a whole.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who may get the credential.
    pub access: Access,
    /// How it is fetched.
    pub fetch: FetchSettings,
    /// What deserves a warning but is no error, each once.
    pub notices: Vec<String>,
}

impl Settings {
    /// Reads and checks `environment`.
    ///
    /// # Errors
    /// All that is wrong, together: one error by its own code, several under `config.invalid`.
    pub fn read(environment: &Environment) -> Result<Self> {
        let mut reader = Reader::new(environment);
        let settings = Self::read_from(&mut reader);
        reader.finish(settings)
    }

    /// As [`read`](Self::read), but leaves the errors and the record of what was looked at in `reader`.
    pub fn read_from(reader: &mut Reader<'_>) -> Option<Self> {
        let access = Self::read_access(reader);
        let header_name = Self::read_header_name(reader);
        let max_retries = reader.whole_number(&var::MLFLOW_SECRETS_MAX_RETRIES, 3, 0..=10);
        let timeout = reader.seconds(&var::MLFLOW_SECRETS_TIMEOUT_SEC, 30, 1..=300);
        let stale_if_error = reader.seconds(&var::MLFLOW_SECRETS_STALE_IF_ERROR_SEC, 3600, 0..=604_800);
        let network = Network::read(reader);
        let providers = providers(reader);
        reader.warn_of_unknown_names();
        if providers.is_empty() || reader.has_errors() {
            return None;
        }
        let fetch = FetchSettings { providers, header_name, max_retries, timeout, stale_if_error, network };
        Some(Self { access, fetch, notices: reader.take_notices() })
    }

    /// The part about who may get the credential, alone.
    pub fn read_access(reader: &mut Reader<'_>) -> Access {
        Access {
            allowlist: allowlist(reader),
            allow_http: reader.boolean(&var::MLFLOW_SECRETS_ALLOW_HTTP, false),
            on_error: reader.choice(
                &var::MLFLOW_SECRETS_ON_ERROR,
                &[("raise", OnError::Raise), ("skip", OnError::Skip)],
                OnError::Raise,
            ),
        }
    }

    /// `MLFLOW_AUTH_HEADER_NAME`, alone.
    pub fn read_header_name(reader: &mut Reader<'_>) -> String {
        let variable = &var::MLFLOW_AUTH_HEADER_NAME;
        let Some(name) = reader.text(variable) else { return variable.default.to_owned() };
        if !is_header_name(&name) || is_reserved(&name) {
            reader.invalid(variable, &name, None);
        }
        name
    }
}

fn allowlist(reader: &mut Reader<'_>) -> Option<Allowlist> {
    let variable = &var::MLFLOW_SECRETS_ALLOWED_HOSTS;
    let text = reader.text_or_empty(variable)?;
    let mut patterns = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match Pattern::parse(part) {
            Ok(pattern) => patterns.push(pattern),
            Err(problem) => reader.error(
                ErrorCode::ConfigInvalidValue,
                format!("{} has the pattern {:?}: {problem}", variable.name, without_user(part)),
                format!("use {}, for example {}", variable.accepts, variable.example),
            ),
        }
    }
    if patterns.is_empty() && !reader.has_error_for(variable.name) {
        reader.error(
            ErrorCode::ConfigAllowlistEmpty,
            format!("{} is set and names no host", variable.name),
            "name the hosts that may get the credential, or unset it to permit MLflow's tracking and registry servers",
        );
    }
    Some(Allowlist::new(patterns))
}

/// The providers that are enabled, before anything else is read of them: `MLFLOW_SECRETS_AUTH_ENABLE` and its toggles.
pub fn enabled_providers(reader: &mut Reader<'_>) -> Vec<ProviderKind> {
    let listed = listed_providers(reader);
    let mut enabled = Vec::new();
    for kind in ProviderKind::ALL {
        let toggle = reader.optional_boolean(kind.toggle());
        if toggle.unwrap_or(listed.contains(kind)) {
            enabled.push(*kind);
        }
    }
    enabled
}

fn listed_providers(reader: &mut Reader<'_>) -> Vec<ProviderKind> {
    let variable = &var::MLFLOW_SECRETS_AUTH_ENABLE;
    let Some(text) = reader.text(variable) else { return Vec::new() };
    let mut listed = Vec::new();
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match ProviderKind::ALL.iter().find(|kind| kind.name().eq_ignore_ascii_case(name)) {
            Some(kind) => listed.push(*kind),
            None => {
                let names: Vec<_> = ProviderKind::ALL.iter().map(|kind| kind.name()).collect();
                let hint = reader::did_you_mean(name, &names)
                    .map_or_else(|| format!("use {}", variable.accepts), |nearest| format!("did you mean {nearest}?"));
                let message = format!("{} names the provider {name:?}, which does not exist", variable.name);
                reader.error(ErrorCode::ConfigUnknownProvider, message, hint);
            }
        }
    }
    listed
}

fn providers(reader: &mut Reader<'_>) -> Vec<ProviderSettings> {
    let enabled = enabled_providers(reader);
    if enabled.is_empty() && !reader.has_error_for(var::MLFLOW_SECRETS_AUTH_ENABLE.name) {
        let name = var::MLFLOW_SECRETS_AUTH_ENABLE.name;
        let hint = match reader.similar_name_in_use(name) {
            Some(found) => format!("{found} is set: did you mean {name}?"),
            None => format!("set {name}, for example to vault"),
        };
        reader.error(ErrorCode::ConfigNoProvider, "no provider is enabled", hint);
    }
    let mut complete = Vec::new();
    let mut incomplete = Vec::new();
    for kind in enabled {
        match ProviderSettings::read(kind, reader) {
            Ok(settings) => complete.extend(settings),
            Err(missing) => incomplete.push(missing),
        }
    }
    // What is missing is an error only where nothing else is usable; what is malformed always is one.
    let usable = !complete.is_empty();
    for error in incomplete {
        if usable {
            reader.notice(format!("an enabled provider is skipped: {}", error.message()));
        } else {
            reader.push_error(error);
        }
    }
    complete
}

/// The outcome for a provider with a malformed value, which `reader` has recorded: what it lacks besides is an error too,
/// so that one run shows both. `required` is groups of variables of which one must be set.
pub fn malformed<T>(
    kind: ProviderKind,
    required: &[&[&'static var::Variable]],
    reader: &Reader<'_>,
) -> Result<Option<T>> {
    let lacking: Vec<_> = required.iter().filter(|group| !reader.is_any_set(group)).map(|group| group[0]).collect();
    if lacking.is_empty() { Ok(None) } else { Err(missing(kind, &lacking, reader)) }
}

/// The error for a provider that lacks variables.
pub fn missing(kind: ProviderKind, variables: &[&var::Variable], reader: &Reader<'_>) -> Error {
    let names: Vec<_> = variables.iter().map(|v| v.name).collect();
    let typo = variables.iter().find_map(|v| reader.similar_name_in_use(v.name).map(|found| (v.name, found)));
    let hint = match typo {
        Some((name, found)) => format!("{found} is set: did you mean {name}?"),
        None => format!("set {}, for example {}={}", names.join(" and "), names[0], variables[0].example),
    };
    Error::new(
        ErrorCode::ConfigMissing,
        format!(
            "{} needs {}, which {} not set",
            kind.name(),
            names.join(" and "),
            if names.len() == 1 { "is" } else { "are" }
        ),
        hint,
    )
}
