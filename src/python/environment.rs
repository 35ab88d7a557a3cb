//! `os.environ`, read afresh only when it has changed.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::calls;
use crate::settings::Environment;

/// All of `os.environ`.
pub fn read(py: Python<'_>) -> PyResult<Environment> {
    from_mapping(&calls::import(py, "os")?.getattr("environ")?)
}

/// Any mapping of names to values.
pub fn from_mapping(mapping: &Bound<'_, PyAny>) -> PyResult<Environment> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    let plain = calls::call(mapping.py().get_type::<PyDict>().as_any(), (mapping,), None)?;
    for (name, value) in plain.cast::<PyDict>()? {
        // Values that are not Unicode (surrogates) can't be ours; `str()` lets numbers and booleans be given in code.
        let (name, value) = (name.str()?, value.str()?);
        if let (Ok(name), Ok(value)) = (name.to_str(), value.to_str()) {
            pairs.push((name.to_owned(), value.to_owned()));
        }
    }
    Ok(pairs.into_iter().collect())
}

/// Notices when a variable that counted has changed.
///
/// `os.environ` keeps its values in a plain dictionary and makes a new object for every assignment. So comparing a few
/// dozen objects by identity tells whether anything changed, in less than a microsecond.
pub struct Watch {
    environ: Py<PyAny>,
    data: Py<PyDict>,
    values: Vec<(Py<PyAny>, Option<Py<PyAny>>)>,
}

impl Watch {
    /// Watches the variables `names`. `None` where `os.environ` is not the usual object: then nothing is certain, and
    /// settings are read for every request.
    pub fn new(py: Python<'_>, names: impl Iterator<Item = impl AsRef<str>>) -> PyResult<Option<Self>> {
        let environ = py.import("os")?.getattr("environ")?;
        let Ok(data) = environ.getattr("_data") else { return Ok(None) };
        let Ok(data) = data.cast_into::<PyDict>() else { return Ok(None) };
        let Ok(encode) = environ.getattr("encodekey") else { return Ok(None) };
        let mut values = Vec::new();
        for name in names {
            let key = calls::call(&encode, (name.as_ref(),), None)?;
            let value = data.get_item(&key)?.map(Bound::unbind);
            values.push((key.unbind(), value));
        }
        Ok(Some(Self { environ: environ.unbind(), data: data.unbind(), values }))
    }

    /// Whether every watched variable is the very object that it was.
    pub fn is_unchanged(&self, py: Python<'_>) -> bool {
        let current = py.import(pyo3::intern!(py, "os")).and_then(|os| os.getattr(pyo3::intern!(py, "environ")));
        if !current.is_ok_and(|environ| environ.is(&self.environ)) {
            return false;
        }
        let data = self.data.bind(py);
        self.values.iter().all(|(key, value)| match (data.get_item(key), value) {
            (Ok(Some(now)), Some(before)) => now.is(before),
            (Ok(None), None) => true,
            _ => false,
        })
    }
}
