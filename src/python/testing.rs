//! The class behind `mlflow_secrets_auth.testing`.

use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use super::blocking;
use crate::authorizer::caches;
use crate::clock::Clock;
use crate::provider::ProviderKind;
use crate::secret::SecretString;
use crate::settings::nearest;
use crate::testing::{self as core, Failure, FakeSecret};

/// How many similar codes an error names.
const MAX_SUGGESTIONS: usize = 3;

/// Stands for the configured backends while it is installed.
#[pyclass(frozen, module = "mlflow_secrets_auth._core")]
pub struct FakeBackend(core::FakeBackend);

#[pymethods]
impl FakeBackend {
    /// A backend that gives the secret `text` in version 1.
    #[new]
    fn new(text: String) -> Self {
        let text = SecretString::new(text);
        Self(core::FakeBackend::new(&FakeSecret { text, version: "1".to_owned(), expires_at: None, lease: None }))
    }

    /// Takes the place of every backend. `RuntimeError` where another fake has it.
    fn install(&self) -> PyResult<()> {
        if self.0.install() { Ok(()) } else { Err(PyRuntimeError::new_err("another fake backend is in place already")) }
    }

    /// Gives way to the real backends.
    fn uninstall(&self) {
        self.0.uninstall();
    }

    /// Replaces the secret; `expires_in` and `lease` are seconds.
    #[pyo3(signature = (text, version, expires_in=None, lease=None, provider=None))]
    fn put(
        &self,
        text: String,
        version: String,
        expires_in: Option<f64>,
        lease: Option<f64>,
        provider: Option<&str>,
    ) -> PyResult<()> {
        let expires_at = expires_in.map(duration).transpose()?.map(|time| self.0.clock().calendar() + time);
        let lease = lease.map(duration).transpose()?;
        let secret = FakeSecret { text: SecretString::new(text), version, expires_at, lease };
        self.0.put(&secret, kind(provider)?);
        Ok(())
    }

    /// Fails with `code` from now on, or the next `times` reads. `ValueError` for what is not the code of a backend's failure.
    #[pyo3(signature = (code, times=None, retry_after=None, provider=None))]
    fn fail(&self, code: &str, times: Option<u32>, retry_after: Option<f64>, provider: Option<&str>) -> PyResult<()> {
        let known: Vec<_> = Failure::codes().map(|code| code.as_str()).collect();
        let Some(code) = Failure::codes().find(|known| known.as_str() == code) else {
            return Err(unknown("failure of a backend", code, &known));
        };
        let retry_after = retry_after.map(duration).transpose()?;
        let failure = (times != Some(0)).then_some(Failure { code, times, retry_after });
        self.0.fail(failure, kind(provider)?);
        Ok(())
    }

    /// Ends what `fail` began.
    #[pyo3(signature = (provider=None))]
    fn recover(&self, provider: Option<&str>) -> PyResult<()> {
        self.0.fail(None, kind(provider)?);
        Ok(())
    }

    /// How often the secret was asked for.
    #[pyo3(signature = (provider=None))]
    fn reads(&self, provider: Option<&str>) -> PyResult<u64> {
        Ok(self.0.reads(kind(provider)?))
    }

    /// Lets seconds pass.
    fn advance(&self, seconds: f64) -> PyResult<()> {
        self.0.clock().advance(duration(seconds)?);
        Ok(())
    }

    /// Seconds that have passed, and seconds since 1970, on the fake clock.
    fn time(&self) -> (f64, f64) {
        let since = self.0.clock().calendar().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        (self.0.clock().passed().as_secs_f64(), since.as_secs_f64())
    }

    /// What chance says from now on, 0.0 to 1.0.
    fn set_chance(&self, chance: f64) -> PyResult<()> {
        if !(0.0..=1.0).contains(&chance) {
            return Err(PyValueError::new_err("chance must be a number from 0 to 1"));
        }
        self.0.clock().set_chance(chance);
        Ok(())
    }

    /// The waits before retries, in seconds, since the last call.
    fn take_sleeps(&self) -> Vec<f64> {
        self.0.clock().take_sleeps().iter().map(Duration::as_secs_f64).collect()
    }

    /// Waits until no fetch is under way.
    fn settle(&self, py: Python<'_>) -> PyResult<()> {
        blocking(py, |interrupt| caches().iter().try_for_each(|cache| cache.settle(interrupt)))
    }
}

fn duration(seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| PyValueError::new_err("seconds must be a number that is not negative"))
}

fn kind(name: Option<&str>) -> PyResult<Option<ProviderKind>> {
    let Some(name) = name else { return Ok(None) };
    let found = ProviderKind::ALL.iter().find(|kind| kind.name() == name).copied();
    let known: Vec<_> = ProviderKind::ALL.iter().map(|kind| kind.name()).collect();
    found.map(Some).ok_or_else(|| unknown("provider", name, &known))
}

fn unknown(what: &str, name: &str, known: &[&str]) -> PyErr {
    let near = nearest(name, known);
    let help = match near.len() {
        0 if known.len() > MAX_SUGGESTIONS => "the error catalogue lists them".to_owned(),
        0 => format!("known: {}", known.join(", ")),
        found => format!("did you mean {}?", near[..found.min(MAX_SUGGESTIONS)].join(", ")),
    };
    PyValueError::new_err(format!("{name:?} is not the name of a {what}; {help}"))
}
