//! The extension module `mlflow_secrets_auth._core`, and the only place that knows PyO3.

mod authorizer;
mod calls;
mod environment;
mod journal;
mod testing;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::allowlist::{Allowlist, Pattern, Verdict};
use crate::cache::total_counts;
use crate::error::{Error, ErrorCode};
use crate::origin::{Origin, without_user};
use crate::provider::ProviderKind;
use crate::runtime::Interrupt;
use crate::settings::variables::{ALL, Section};
use crate::settings::{Reader, Settings, enabled_providers};
use crate::{authorizer as core, doctor};

/// The Python exception for an error: `mlflow_secrets_auth.errors.<class>(code, message, hint)`.
fn exception(py: Python<'_>, error: &Error) -> PyErr {
    let make = || {
        let class = calls::import(py, "mlflow_secrets_auth.errors")?.getattr(error.code().kind().exception())?;
        calls::call(&class, (error.code().as_str(), error.message(), error.hint()), None)
    };
    make().map_or_else(|problem| problem, PyErr::from_value)
}

/// Runs `work` with the interpreter released, so that other Python threads go on, and with an interrupt that lets
/// Ctrl-C through. Afterwards the log records made meanwhile are emitted, on this thread.
///
/// When the interpreter exits meanwhile, a daemon thread stays in here: it touches nothing of Python until the work is
/// done, and PyO3 parks it on its way back in.
///
/// # Errors
/// What a signal handler raised (`KeyboardInterrupt`), else the exception for the work's own error.
fn blocking<T: Send>(py: Python<'_>, work: impl FnOnce(Interrupt<'_>) -> crate::Result<T> + Send) -> PyResult<T> {
    let on_main_thread = is_main_thread(py);
    let raised = std::sync::Mutex::new(None);
    let result = py.detach(|| {
        let interrupted = || {
            // Only the main thread runs signal handlers.
            on_main_thread
                && Python::attach(|py| match py.check_signals() {
                    Ok(()) => false,
                    Err(error) => raised.lock().map(|mut slot| *slot = Some(error)).is_ok(),
                })
        };
        work(&interrupted)
    });
    journal::emit(py);
    if let Some(error) = raised.into_inner().unwrap_or_default() {
        return Err(error);
    }
    result.map_err(|error| exception(py, &error))
}

fn is_main_thread(py: Python<'_>) -> bool {
    let ask = || {
        let threading = calls::import(py, "threading")?;
        let main = calls::call_method(&threading, "main_thread", ())?.getattr("ident")?;
        main.eq(calls::call_method(&threading, "get_ident", ())?)
    };
    ask().unwrap_or(false)
}

/// What `mlflow-secrets-auth info` shows of the core, as JSON. No network.
#[pyfunction]
fn info(py: Python<'_>) -> PyResult<String> {
    Ok(doctor::info(&environment::read(py)?).to_string())
}

/// The checks of `mlflow-secrets-auth doctor` up to the header, as JSON. Contacts the backends.
#[pyfunction]
fn examine(py: Python<'_>) -> PyResult<String> {
    let environment = environment::read(py)?;
    journal::set_level(py, &environment)?;
    blocking(py, |interrupt| doctor::examine(&environment, interrupt)).map(|findings| as_json(&findings))
}

/// What the allowlist says about `url`, as JSON; `own_urls` are those that count when there is no allowlist.
#[pyfunction]
fn examine_url(py: Python<'_>, url: &str, own_urls: Vec<String>) -> PyResult<String> {
    Ok(as_json(&doctor::examine_url(&environment::read(py)?, url, own_urls)))
}

/// Who signed the certificate of the server at `url`, or `None` where it shows none. Nothing is sent to it.
#[pyfunction]
fn certificate_issuer(py: Python<'_>, url: &str) -> PyResult<Option<String>> {
    let environment = environment::read(py)?;
    blocking(py, |interrupt| doctor::certificate_issuer(&environment, url, interrupt))
}

fn as_json(found: &impl serde::Serialize) -> String {
    // Text, numbers and names only: that always succeeds.
    serde_json::to_string(found).unwrap_or_default()
}

/// The names of the enabled providers, in the order of their priority. What is malformed raises `ConfigurationError`.
#[pyfunction]
fn provider_names(py: Python<'_>) -> PyResult<Vec<&'static str>> {
    let environment = environment::read(py)?;
    let mut reader = Reader::new(&environment);
    let enabled = enabled_providers(&mut reader);
    let enabled = reader.finish(Some(enabled)).map_err(|error| exception(py, &error))?;
    Ok(enabled.into_iter().map(ProviderKind::name).collect())
}

/// The patterns of the allowlist, or `None` when it is unset, and the header's name.
#[pyfunction]
fn access_settings(py: Python<'_>) -> PyResult<(Option<Vec<String>>, String)> {
    let environment = environment::read(py)?;
    let mut reader = Reader::new(&environment);
    let access = Settings::read_access(&mut reader);
    let header_name = Settings::read_header_name(&mut reader);
    let access = reader.finish(Some(access)).map_err(|error| exception(py, &error))?;
    let patterns = access.allowlist.map(|list| list.patterns().iter().map(|p| p.as_str().to_owned()).collect());
    Ok((patterns, header_name))
}

/// Whether one of `patterns` matches the host that a request to `url` would dial.
#[pyfunction]
fn matches(py: Python<'_>, url: &str, patterns: Vec<String>) -> PyResult<bool> {
    let origin = Origin::of(url).map_err(|error| exception(py, &error))?;
    let patterns: Result<Vec<_>, _> =
        patterns.iter().map(|text| Pattern::parse(text).map_err(|why| (text, why))).collect();
    let patterns = patterns.map_err(|(text, why)| {
        let hint = "a pattern is [scheme://]host[:port], for example *.example.com";
        exception(
            py,
            &Error::new(
                ErrorCode::ConfigInvalidValue,
                format!("the pattern {:?} is not usable: {why}", without_user(text)),
                hint,
            ),
        )
    })?;
    Ok(matches!(Allowlist::new(patterns).verdict(&origin), Verdict::Allowed { .. }))
}

/// The origin of `url` as text, or `ConfigurationError` where it is odd.
#[pyfunction]
fn origin(py: Python<'_>, url: &str) -> PyResult<String> {
    Origin::of(url).map(|origin| origin.to_string()).map_err(|error| exception(py, &error))
}

/// Whether a redirect from one URL to the other may keep our headers. Odd URLs may not.
#[pyfunction]
fn keeps_credential(url: &str, next_url: &str) -> bool {
    matches!((Origin::of(url), Origin::of(next_url)), (Ok(from), Ok(to)) if from.keeps_credential(&to))
}

/// Forgets all credentials, rejections and failures; not logins.
#[pyfunction]
fn clear_cache() {
    core::clear();
}

/// Counters and entries of every cache, summed up.
#[pyfunction]
fn cache_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let mut entries = Vec::new();
    for cache in core::caches() {
        let Some(cached) = cache.peek() else { continue };
        let entry = PyDict::new(py);
        entry.set_item("provider", cached.provider.name())?;
        entry.set_item("age", cached.age(cache.clock()).as_secs_f64())?;
        entry.set_item("expires_in", cached.expires_in(cache.clock()).as_secs_f64())?;
        entry.set_item("stale", cached.expires_in(cache.clock()).is_zero())?;
        entry.set_item("fingerprint", &cached.fingerprint)?;
        entries.push(entry);
    }
    let info = PyDict::new(py);
    let counts = total_counts();
    info.set_item("hits", counts.hits)?;
    info.set_item("misses", counts.misses)?;
    info.set_item("refreshes", counts.refreshes)?;
    info.set_item("failures", counts.failures)?;
    info.set_item("entries", entries)?;
    Ok(info)
}

/// Every variable with its documentation, for the generated pages.
#[pyfunction]
fn variables(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    ALL.iter()
        .map(|variable| {
            let row = PyDict::new(py);
            row.set_item("name", variable.name)?;
            row.set_item("section", variable.section.title())?;
            row.set_item("summary", variable.summary())?;
            row.set_item("documentation", variable.documentation.trim())?;
            row.set_item("default", variable.default)?;
            row.set_item("accepts", variable.accepts)?;
            row.set_item("example", variable.example)?;
            row.set_item("secret", variable.secret)?;
            row.set_item("required", variable.required)?;
            Ok(row)
        })
        .collect()
}

/// Every error code with its exception and its documentation, for the generated catalogue.
#[pyfunction]
fn error_codes() -> Vec<(&'static str, &'static str, &'static str)> {
    ErrorCode::ALL.iter().map(|code| (code.as_str(), code.kind().exception(), code.documentation().trim())).collect()
}

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    crate::runtime::watch_forks();
    journal::install();
    // What a request may need is imported now. A child that is forked while another thread is in the middle of an import
    // would wait for that thread, which it does not have.
    for name in ["logging", "threading", "mlflow_secrets_auth._logging", "mlflow_secrets_auth.errors"] {
        calls::import(module.py(), name)?;
    }
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<authorizer::Authorizer>()?;
    module.add_class::<authorizer::Fetch>()?;
    module.add_class::<testing::FakeBackend>()?;
    module.add_function(wrap_pyfunction!(info, module)?)?;
    module.add_function(wrap_pyfunction!(examine, module)?)?;
    module.add_function(wrap_pyfunction!(examine_url, module)?)?;
    module.add_function(wrap_pyfunction!(certificate_issuer, module)?)?;
    module.add_function(wrap_pyfunction!(provider_names, module)?)?;
    module.add_function(wrap_pyfunction!(access_settings, module)?)?;
    module.add_function(wrap_pyfunction!(matches, module)?)?;
    module.add_function(wrap_pyfunction!(origin, module)?)?;
    module.add_function(wrap_pyfunction!(keeps_credential, module)?)?;
    module.add_function(wrap_pyfunction!(clear_cache, module)?)?;
    module.add_function(wrap_pyfunction!(cache_info, module)?)?;
    module.add_function(wrap_pyfunction!(variables, module)?)?;
    module.add_function(wrap_pyfunction!(error_codes, module)?)?;
    Ok(())
}

impl Section {
    fn title(self) -> &'static str {
        match self {
            Self::Global => "Global",
            Self::Vault => "HashiCorp Vault and OpenBao",
            Self::Aws => "AWS Secrets Manager",
            Self::Azure => "Azure Key Vault",
            Self::Network => "TLS roots and proxies",
        }
    }
}
