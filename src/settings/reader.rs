//! Reads single variables, collects what is wrong with them, and remembers what was read.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::Environment;
use super::variables::{ALL, Variable};
use crate::error::{Error, ErrorCode, Result};
use crate::origin::{Origin, without_user};
use crate::secret::SecretString;

/// Prefixes of names that are ours alone, so that an unknown name with one of them is most likely a typing error.
const OUR_PREFIXES: [&str; 5] =
    ["MLFLOW_SECRETS_", "MLFLOW_VAULT_", "MLFLOW_AWS_", "MLFLOW_AZURE_", "MLFLOW_AUTH_HEADER"];

/// Where a setting in effect came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The variable itself.
    Variable,
    /// This other variable, which means the same.
    Alias(&'static str),
    /// It is unset; the default holds.
    Default,
}

/// One variable as it was read, for `info`.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Which variable.
    pub variable: &'static Variable,
    /// What holds, or `set` for a secret.
    pub value: String,
    /// Where it came from.
    pub source: Source,
}

/// Reads variables from an [`Environment`].
///
/// A malformed value is recorded as an error and its default is returned, so that reading goes on and one run shows every
/// error.
pub struct Reader<'a> {
    environment: &'a Environment,
    errors: Vec<Error>,
    notices: Vec<String>,
    readings: Vec<Reading>,
}

impl<'a> Reader<'a> {
    /// A reader of `environment`.
    pub fn new(environment: &'a Environment) -> Self {
        Self { environment, errors: Vec::new(), notices: Vec::new(), readings: Vec::new() }
    }

    /// The value, trimmed, or `None` where it is unset or empty.
    pub fn text(&mut self, variable: &'static Variable) -> Option<String> {
        let value = self.environment.get(variable.name).map(|value| value.trim().to_owned());
        self.record(variable, value.as_deref());
        value
    }

    /// As [`text`](Self::text), but a variable that is set to nothing gives an empty text.
    pub fn text_or_empty(&mut self, variable: &'static Variable) -> Option<String> {
        let text = self.text(variable);
        text.or_else(|| self.environment.contains(variable.name).then(String::new))
    }

    /// As [`text`](Self::text), of a variable that has a form in lower case, which comes first, as in `requests`.
    pub fn in_either_case(&mut self, variable: &'static Variable) -> Option<&'a str> {
        let lower = variable.lower_case.and_then(|name| self.environment.get(name));
        let value = lower.or_else(|| self.environment.get(variable.name)).map(str::trim);
        self.record(variable, value);
        value
    }

    /// What is read from.
    pub fn environment(&self) -> &'a Environment {
        self.environment
    }

    /// The value as a secret, trimmed.
    pub fn secret(&mut self, variable: &'static Variable) -> Option<SecretString> {
        let value = self.environment.get(variable.name).map(|value| SecretString::from(value.trim()));
        self.record(variable, value.as_ref().map(|_| "set"));
        value
    }

    /// The value as a secret, exactly as it is set: a space may belong to a password.
    pub fn password(&mut self, variable: &'static Variable) -> Option<SecretString> {
        let value = self.environment.get(variable.name).map(SecretString::from);
        self.record(variable, value.as_ref().map(|_| "set"));
        value
    }

    /// The user's home directory, where it is known.
    pub fn home(&self) -> Option<PathBuf> {
        let named = self.environment.get("HOME").or_else(|| self.environment.get("USERPROFILE"));
        named.map(PathBuf::from).or_else(std::env::home_dir)
    }

    /// The value of the first of two variables that mean the same; set to different values they are an error.
    pub fn aliased(&mut self, variables: [&'static Variable; 2]) -> Option<String> {
        let [value, alias] = variables.map(|variable| self.text(variable));
        if value.is_none() && alias.is_some() {
            self.record_alias(variables);
        }
        if let (Some(value), Some(alias)) = (&value, &alias)
            && value != alias
        {
            self.error(
                ErrorCode::ConfigConflict,
                format!(
                    "{} and {} mean the same and are set to different values",
                    variables[0].name, variables[1].name
                ),
                format!("unset {}", variables[1].name),
            );
        }
        value.or(alias)
    }

    /// A boolean: true, 1, yes, on, false, 0, no, off in any case.
    pub fn boolean(&mut self, variable: &'static Variable, default: bool) -> bool {
        self.optional_boolean(variable).unwrap_or(default)
    }

    /// As [`boolean`](Self::boolean), without a default.
    pub fn optional_boolean(&mut self, variable: &'static Variable) -> Option<bool> {
        let text = self.text(variable)?;
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Some(true),
            "false" | "0" | "no" | "off" => Some(false),
            _ => {
                self.invalid(variable, &text, None);
                None
            }
        }
    }

    /// One of several words, in any case.
    pub fn choice<T: Copy>(&mut self, variable: &'static Variable, choices: &[(&str, T)], default: T) -> T {
        let Some(text) = self.text(variable) else { return default };
        if let Some((_, value)) = choices.iter().find(|(name, _)| name.eq_ignore_ascii_case(&text)) {
            return *value;
        }
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        self.invalid(variable, &text, did_you_mean(&text, &names));
        default
    }

    /// A whole number in `range`.
    pub fn whole_number(&mut self, variable: &'static Variable, default: u32, range: RangeInclusive<u32>) -> u32 {
        let Some(text) = self.text(variable) else { return default };
        match text.parse() {
            Ok(number) if range.contains(&number) => number,
            _ => {
                self.invalid(variable, &text, None);
                default
            }
        }
    }

    /// A time in seconds, decimals permitted, in `range`.
    pub fn seconds(&mut self, variable: &'static Variable, default: u32, range: RangeInclusive<u32>) -> Duration {
        let default = Duration::from_secs(default.into());
        let Some(text) = self.text(variable) else { return default };
        let bounds = f64::from(*range.start())..=f64::from(*range.end());
        match text.parse::<f64>() {
            Ok(seconds) if bounds.contains(&seconds) => Duration::from_secs_f64(seconds),
            _ => {
                self.invalid(variable, &text, None);
                default
            }
        }
    }

    /// Whether one of these variables is set, well-formed or not.
    pub fn is_any_set(&self, variables: &[&'static Variable]) -> bool {
        variables.iter().any(|variable| self.environment.get(variable.name).is_some())
    }

    /// Records that `value` is not accepted for `variable`.
    pub fn invalid(&mut self, variable: &'static Variable, value: &str, nearest: Option<&str>) {
        let shown =
            if variable.secret { "a value".to_owned() } else { format!("{:?}", shorten(&shown(variable, value))) };
        let hint = match nearest {
            Some(nearest) => format!("did you mean {nearest}? Accepted: {}", variable.accepts),
            None => format!("use {}, for example {}={}", variable.accepts, variable.name, variable.example),
        };
        let message = format!("{} is set to {shown}; accepted: {}", variable.name, variable.accepts);
        self.error(ErrorCode::ConfigInvalidValue, message, hint);
    }

    /// Records an error.
    pub fn error(&mut self, code: ErrorCode, message: impl Into<String>, hint: impl Into<String>) {
        self.errors.push(Error::new(code, message, hint));
    }

    /// Records an error that was made elsewhere.
    pub fn push_error(&mut self, error: Error) {
        self.errors.push(error);
    }

    /// Records what deserves a warning.
    pub fn notice(&mut self, text: String) {
        self.notices.push(text);
    }

    /// Records a warning where `url`, which `variable` names, is plain http beyond this machine.
    pub fn note_plain_http(&mut self, variable: &str, url: &str) {
        if Origin::of(url).is_ok_and(|origin| origin.is_exposed()) {
            let text = format!("{variable} is plain http: everybody on the way can read what logs in, and the secret");
            if !self.notices.contains(&text) {
                self.notice(text);
            }
        }
    }

    /// Whether anything is wrong so far.
    pub fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }

    /// Whether anything is wrong with the variable `name`.
    pub fn has_error_for(&self, name: &str) -> bool {
        self.errors.iter().any(|error| error.message().starts_with(name))
    }

    /// What is wrong so far.
    pub fn errors(&self) -> &[Error] {
        &self.errors
    }

    /// What was read so far, each variable once.
    pub fn readings(&self) -> &[Reading] {
        &self.readings
    }

    /// The warnings so far; none are left.
    pub fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    /// Warns of names that look like ours and are not, with the nearest that is.
    pub fn warn_of_unknown_names(&mut self) {
        let mut unknown: Vec<_> = self.environment.names().filter(|name| is_unknown(name)).map(str::to_owned).collect();
        unknown.sort();
        let known: Vec<_> = ALL.iter().map(|variable| variable.name).collect();
        for name in unknown {
            let nearest = did_you_mean(&name, &known).map(|nearest| format!(": did you mean {nearest}?"));
            self.notices.push(format!("{name} is set, but there is no such setting{}", nearest.unwrap_or_default()));
        }
    }

    /// A variable that is set, is none of ours, and looks like `name`.
    pub fn similar_name_in_use(&self, name: &str) -> Option<String> {
        let mut unknown: Vec<_> = self.environment.names().filter(|found| is_unknown(found)).collect();
        unknown.sort_unstable();
        did_you_mean(name, &unknown).map(str::to_owned)
    }

    /// The settings, or everything that is wrong.
    pub fn finish<T>(self, settings: Option<T>) -> Result<T> {
        match settings {
            Some(settings) if self.errors.is_empty() => Ok(settings),
            _ => {
                let message = format!("{} settings are not usable", self.errors.len());
                Err(Error::together(ErrorCode::ConfigInvalid, message, self.errors))
            }
        }
    }

    /// Notes that the second variable, which was read already, stands in for the first.
    fn record_alias(&mut self, [variable, alias]: [&'static Variable; 2]) {
        // As it was recorded: what may not be shown is left out there.
        let shown = self.readings.iter().find(|reading| reading.variable.name == alias.name);
        let shown = shown.map(|reading| reading.value.clone()).unwrap_or_default();
        if let Some(reading) = self.readings.iter_mut().find(|reading| reading.variable.name == variable.name) {
            reading.value = shown;
            reading.source = Source::Alias(alias.name);
        }
    }

    fn record(&mut self, variable: &'static Variable, value: Option<&str>) {
        if self.readings.iter().any(|reading| reading.variable.name == variable.name) {
            return;
        }
        let source = if value.is_some() { Source::Variable } else { Source::Default };
        let value = value.map_or_else(|| variable.default.to_owned(), |value| shown(variable, value));
        self.readings.push(Reading { variable, value, source });
    }
}

/// A value as it may be shown: nothing of a secret, and of a URL not what may be one.
fn shown(variable: &Variable, value: &str) -> String {
    if variable.secret {
        "set".to_owned()
    } else if variable.is_url() || value.contains("://") {
        without_user(value)
    } else {
        value.to_owned()
    }
}

fn is_unknown(name: &str) -> bool {
    OUR_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) && !ALL.iter().any(|variable| variable.name == name)
}

/// The candidate that is so like `text` that it was probably meant.
pub(crate) fn did_you_mean<'c>(text: &str, candidates: &[&'c str]) -> Option<&'c str> {
    nearest(text, candidates).first().copied()
}

/// Those of `candidates` that `text` may have been meant as, the nearest first.
pub fn nearest<'c>(text: &str, candidates: &[&'c str]) -> Vec<&'c str> {
    let text = text.to_ascii_lowercase();
    let likeness = |candidate: &str| strsim::normalized_damerau_levenshtein(&text, &candidate.to_ascii_lowercase());
    let mut rated: Vec<_> = candidates.iter().map(|candidate| (likeness(candidate), *candidate)).collect();
    rated.retain(|(likeness, _)| *likeness >= 0.5);
    rated.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    rated.into_iter().map(|(_, candidate)| candidate).collect()
}

/// At most 80 characters of a value.
fn shorten(value: &str) -> String {
    if value.chars().count() <= 80 { value.to_owned() } else { value.chars().take(79).chain(['…']).collect() }
}
