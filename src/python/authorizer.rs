//! The class behind `SecretsAuth`: one call per request, which costs next to nothing while nothing changes.

use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwap, ArcSwapOption};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::environment::{self, Watch};
use super::{blocking, calls, exception, journal};
use crate::authorizer::{self as core, Decision};
use crate::cache::Cached;
use crate::errand::Ticket;
use crate::error::Error;
use crate::origin::Origin;
use crate::runtime::interrupted;
use crate::settings::variables as var;
use crate::settings::{Environment, Reader, Settings};

/// Beyond the settings, these decide which origins are MLflow's own.
const MLFLOW_URIS: [&str; 2] = ["MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"];
/// How many origins are remembered between changes of the settings.
const MAX_PLACES: usize = 64;

/// Decides for URLs, and keeps what it decided until the settings or the credential change.
#[pyclass(frozen, module = "mlflow_secrets_auth._core")]
pub struct Authorizer {
    /// Makes the object that Python sees: called with (headers, origin, generation).
    make_grant: Py<PyAny>,
    /// Settings given in code, instead of the environment. Never shown, never pickled.
    given: Option<Environment>,
    /// Whether the origin of each request counts as the user's own when there is no allowlist.
    own_request: bool,
    state: ArcSwapOption<State>,
}

/// All that follows from one state of the settings.
struct State {
    watch: Option<Watch>,
    /// [`core::replacements`] when this was made.
    replacements: u64,
    outcome: Result<core::Authorizer, Error>,
    places: ArcSwap<Vec<Arc<Place>>>,
}

/// What was decided for an origin, and the last grant made for it.
struct Place {
    prefix: String,
    origin: Origin,
    decision: Decision,
    grant: ArcSwapOption<(u64, Py<PyAny>)>,
}

/// What can be said without waiting.
enum Look {
    /// The grant, or none where the request goes on without our header.
    Answer(Option<Py<PyAny>>),
    /// The credential has to be fetched first.
    Fetch(Arc<State>, Arc<Place>),
}

/// A fetch for a caller in an event loop, which must not wait.
#[pyclass(frozen, module = "mlflow_secrets_auth._core")]
pub struct Fetch {
    authorizer: Py<Authorizer>,
    state: Arc<State>,
    place: Arc<Place>,
    outcome: Arc<OnceLock<Result<Arc<Cached>, Error>>>,
    ticket: ArcSwapOption<Ticket>,
}

impl Fetch {
    fn new(authorizer: Py<Authorizer>, state: Arc<State>, place: Arc<Place>) -> Self {
        Self { authorizer, state, place, outcome: Arc::default(), ticket: ArcSwapOption::empty() }
    }
}

#[pymethods]
impl Fetch {
    /// Begins; `notify()` is called on another thread when there is an outcome.
    fn start(&self, py: Python<'_>, notify: Py<PyAny>) -> PyResult<()> {
        let outcome = Arc::clone(&self.outcome);
        let landed = move |landed| {
            let _ = outcome.set(landed);
            Python::try_attach(move |py| {
                // An event loop that was closed meanwhile refuses, and nobody waits in it any more.
                let _ = calls::call(notify.bind(py), (), None);
            });
        };
        self.ticket.store(Some(Arc::new(self.state.core(py)?.cache().get_elsewhere(Box::new(landed)))));
        Ok(())
    }

    /// Says that nobody waits for it any more.
    fn cancel(&self) {
        self.ticket.store(None);
    }

    /// The grant that it brought, or `None` where the request goes on without our header.
    fn finish(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let outcome = self.outcome.get().cloned().unwrap_or_else(|| Err(interrupted()));
        let judged = self.state.core(py)?.judge(outcome);
        journal::emit(py);
        let cached = judged.map_err(|error| exception(py, &error))?;
        cached.map(|cached| self.authorizer.get().grant(py, &self.place, &cached)).transpose()
    }
}

#[pymethods]
impl Authorizer {
    /// `make_grant(headers, origin, generation)` makes what `authorize` returns; `settings` takes the place of the
    /// environment; `own_request` permits the origin of each request when there is no allowlist.
    #[new]
    #[pyo3(signature = (make_grant, settings=None, own_request=false))]
    fn new(make_grant: Py<PyAny>, settings: Option<&Bound<'_, PyAny>>, own_request: bool) -> PyResult<Self> {
        let given = settings.map(environment::from_mapping).transpose()?;
        Ok(Self { make_grant, given, own_request, state: ArcSwapOption::empty() })
    }

    /// The grant for a request to `url`, or `None` where the request goes on without our header.
    fn authorize(&self, py: Python<'_>, url: &str) -> PyResult<Option<Py<PyAny>>> {
        match self.look(py, url)? {
            Look::Answer(grant) => Ok(grant),
            Look::Fetch(state, place) => {
                let core = state.core(py)?;
                let cached = blocking(py, |interrupt| core.credential(interrupt))?;
                cached.map(|cached| self.grant(py, &place, &cached)).transpose()
            }
        }
    }

    /// As `authorize`, without waiting: the answer, or the fetch that has to be made first.
    fn authorize_or_fetch(slf: &Bound<'_, Self>, url: &str) -> PyResult<(Option<Py<PyAny>>, Option<Fetch>)> {
        match slf.get().look(slf.py(), url)? {
            Look::Answer(grant) => Ok((grant, None)),
            Look::Fetch(state, place) => Ok((None, Some(Fetch::new(slf.clone().unbind(), state, place)))),
        }
    }

    /// Says that `url`'s origin answered `status` to the credential `generation`; a grant with a different one to resend
    /// with, or `None`.
    fn denied(&self, py: Python<'_>, url: &str, generation: u64, status: u16) -> PyResult<Option<Py<PyAny>>> {
        let state = self.state(py)?;
        let core = state.core(py)?;
        let place = self.place(py, &state, core, url)?;
        if !matches!(place.decision, Decision::Permitted) {
            return Ok(None);
        }
        let newer = blocking(py, |interrupt| core.cache().denied(&place.origin, generation, status, interrupt))?;
        newer.map(|cached| self.grant(py, &place, &cached)).transpose()
    }

    /// Says that even the credential fetched a moment ago was denied.
    fn denied_when_new(&self, py: Python<'_>, url: &str, generation: u64, status: u16) -> PyResult<()> {
        let state = self.state(py)?;
        if let (Ok(core), Ok(origin)) = (&state.outcome, Origin::of(url)) {
            core.cache().denied_when_new(&origin, generation, status);
        }
        Ok(())
    }

    /// Fetches now, past every cache.
    fn refresh(&self, py: Python<'_>) -> PyResult<()> {
        let state = self.state(py)?;
        let core = state.core(py)?;
        blocking(py, |interrupt| core.cache().refresh(interrupt)).map(|_| ())
    }

    /// The names of the settings that were given in code; their values stay inside.
    fn setting_names(&self) -> Option<Vec<String>> {
        let mut names: Vec<_> = self.given.as_ref()?.names().map(str::to_owned).collect();
        names.sort();
        Some(names)
    }
}

impl State {
    fn core(&self, py: Python<'_>) -> PyResult<&core::Authorizer> {
        self.outcome.as_ref().map_err(|error| exception(py, error))
    }
}

impl Authorizer {
    /// All that can be said about a request to `url` without waiting.
    fn look(&self, py: Python<'_>, url: &str) -> PyResult<Look> {
        journal::emit_pending(py);
        let state = self.state(py)?;
        let core = state.core(py)?;
        let place = self.place(py, &state, core, url)?;
        match &place.decision {
            Decision::Refused(error) => return Err(exception(py, error)),
            Decision::NotAllowed => {
                core.warn_not_allowed(&place.origin);
                journal::emit_pending(py);
                return Ok(Look::Answer(None));
            }
            Decision::Permitted => {}
        }
        match core.cache().fresh() {
            Some(cached) => self.grant(py, &place, &cached).map(|grant| Look::Answer(Some(grant))),
            None => Ok(Look::Fetch(state, place)),
        }
    }

    fn state(&self, py: Python<'_>) -> PyResult<Arc<State>> {
        if let Some(state) = self.state.load_full() {
            let unchanged = match &state.watch {
                Some(watch) => watch.is_unchanged(py),
                None => self.given.is_some(),
            };
            if unchanged && state.replacements == core::replacements() {
                return Ok(state);
            }
        }
        let state = Arc::new(self.read_settings(py)?);
        self.state.store(Some(Arc::clone(&state)));
        journal::emit_pending(py);
        Ok(state)
    }

    fn read_settings(&self, py: Python<'_>) -> PyResult<State> {
        let read;
        let environment = match &self.given {
            Some(given) => given,
            None => {
                read = environment::read(py)?;
                &read
            }
        };
        let mut reader = Reader::new(environment);
        reader.text(&var::MLFLOW_SECRETS_LOG_LEVEL);
        let settings = Settings::read_from(&mut reader);
        let watch = match self.given {
            Some(_) => None,
            None => Watch::new(
                py,
                reader.readings().iter().flat_map(|reading| reading.variable.names()).chain(MLFLOW_URIS),
            )?,
        };
        journal::set_level(py, environment)?;
        let replacements = core::replacements();
        let outcome = reader.finish(settings).map(core::Authorizer::new);
        if let Ok(core) = &outcome {
            core.warn_of_settings();
        }
        Ok(State { watch, replacements, outcome, places: ArcSwap::default() })
    }

    /// What was decided for the origin of `url`; now, where it was not yet.
    fn place(&self, py: Python<'_>, state: &State, core: &core::Authorizer, url: &str) -> PyResult<Arc<Place>> {
        let prefix = prefix(url);
        if let Some(prefix) = prefix
            && let Some(place) = state.places.load().iter().find(|place| place.prefix == prefix)
        {
            return Ok(Arc::clone(place));
        }
        let origin = Origin::of(url).map_err(|error| exception(py, &error))?;
        let own = || if self.own_request { vec![url.to_owned()] } else { mlflow_urls(py) };
        let decision = core.decide(&origin, &own);
        let prefix = prefix.unwrap_or_default().to_owned();
        // Without an allowlist a no is asked again, because a program may name its tracking server later.
        let may_change = core.settings().access.allowlist.is_none() && matches!(decision, Decision::NotAllowed);
        let place = Arc::new(Place { prefix, origin, decision, grant: ArcSwapOption::empty() });
        if !place.prefix.is_empty() && !may_change {
            state.places.rcu(|places| {
                let kept = places.iter().rev().take(MAX_PLACES - 1).rev();
                kept.cloned().chain([Arc::clone(&place)]).collect::<Vec<_>>()
            });
        }
        Ok(place)
    }

    fn grant(&self, py: Python<'_>, place: &Place, cached: &Cached) -> PyResult<Py<PyAny>> {
        if let Some(made) = &*place.grant.load()
            && made.0 == cached.generation
        {
            return Ok(made.1.clone_ref(py));
        }
        let headers: Vec<_> = cached.headers.iter().collect();
        let headers = PyTuple::new(py, headers)?;
        let arguments = (headers, place.origin.to_string(), cached.generation);
        let grant = calls::call(self.make_grant.bind(py), arguments, None)?.unbind();
        place.grant.store(Some(Arc::new((cached.generation, grant.clone_ref(py)))));
        Ok(grant)
    }
}

/// Scheme and authority of `url`, where the rest is plain enough for the answer to depend on them alone.
fn prefix(url: &str) -> Option<&str> {
    let bytes = url.as_bytes();
    let start = url.find("://")? + 3;
    let length = bytes[start..].iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(bytes.len() - start);
    let plain = bytes.iter().all(|b| *b > b' ' && *b != b'\\' && *b != 0x7f);
    plain.then(|| &url[..start + length])
}

/// MLflow's tracking and registry URIs: asked of MLflow where it is loaded, else read from its variables.
fn mlflow_urls(py: Python<'_>) -> Vec<String> {
    let ask = |function: &str| -> PyResult<String> {
        let modules = py.import("sys")?.getattr("modules")?;
        calls::call_method(&modules.get_item("mlflow")?, function, ())?.extract()
    };
    let variable = |name: &str| -> PyResult<String> {
        calls::call_method(&calls::import(py, "os")?.getattr("environ")?, "__getitem__", (name,))?.extract()
    };
    let questions = ["get_tracking_uri", "get_registry_uri"].into_iter().zip(MLFLOW_URIS);
    questions.filter_map(|(function, name)| ask(function).or_else(|_| variable(name)).ok()).collect()
}
