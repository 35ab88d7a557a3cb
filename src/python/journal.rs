//! From the `log` crate to Python's `logging`.
//!
//! Records may be made on a thread that must not touch the interpreter. So they are kept, and emitted by the next caller
//! that holds it. The SDKs' own records are dropped: some of them hold paths, user names or answers.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use log::kv::{Error as KvError, Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::calls;
use crate::runtime::ProcessLocal;
use crate::settings::{Environment, variables as var};

/// More records than this are not kept; the oldest go first.
const MAX_KEPT: usize = 1000;

static JOURNAL: LazyLock<Journal> = LazyLock::new(|| Journal(ProcessLocal::new(Mutex::default)));
static PENDING: AtomicBool = AtomicBool::new(false);

struct Journal(ProcessLocal<Mutex<VecDeque<Entry>>>);

struct Entry {
    level: Level,
    logger: String,
    message: String,
    fields: Vec<(String, Field)>,
}

enum Field {
    Text(String),
    Number(u64),
    Flag(bool),
}

/// Makes the journal the receiver of all records of this process.
pub fn install() {
    // A second import in one process (subinterpreters) finds it installed.
    let _ = log::set_logger(&*JOURNAL);
    log::set_max_level(LevelFilter::Debug);
}

/// Applies `MLFLOW_SECRETS_LOG_LEVEL`, where it is set.
pub fn set_level(py: Python<'_>, environment: &Environment) -> PyResult<()> {
    if let Some(level) = environment.get(var::MLFLOW_SECRETS_LOG_LEVEL.name) {
        calls::call_method(&calls::import(py, "mlflow_secrets_auth._logging")?, "configure", (level,))?;
    }
    Ok(())
}

/// Hands the kept records to Python's `logging`.
pub fn emit(py: Python<'_>) {
    if !PENDING.swap(false, Ordering::AcqRel) {
        return;
    }
    let entries = std::mem::take(&mut *JOURNAL.0.get().lock().unwrap_or_else(PoisonError::into_inner));
    for entry in entries {
        if let Err(error) = hand_over(py, entry) {
            // A handler of the application failed; logging must not fail the request.
            error.write_unraisable(py, None);
        }
    }
}

/// Emits where anything is pending; costs one load where nothing is.
pub fn emit_pending(py: Python<'_>) {
    if PENDING.load(Ordering::Relaxed) {
        emit(py);
    }
}

fn hand_over(py: Python<'_>, entry: Entry) -> PyResult<()> {
    let logger = calls::call_method(&calls::import(py, "logging")?, "getLogger", (entry.logger,))?;
    let level = match entry.level {
        Level::Error => 40,
        Level::Warn => 30,
        Level::Info => 20,
        Level::Debug | Level::Trace => 10,
    };
    if !calls::call_method(&logger, "isEnabledFor", (level,))?.is_truthy()? {
        return Ok(());
    }
    let extra = PyDict::new(py);
    for (name, field) in entry.fields {
        match field {
            Field::Text(text) => extra.set_item(name, text)?,
            Field::Number(number) => extra.set_item(name, number)?,
            Field::Flag(flag) => extra.set_item(name, flag)?,
        }
    }
    let options = PyDict::new(py);
    options.set_item("extra", extra)?;
    calls::call(&logger.getattr("log")?, (level, entry.message), Some(&options))?;
    Ok(())
}

impl Log for Journal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let target = metadata.target();
        metadata.level() <= Level::Debug
            && (target == "mlflow_secrets_auth" || target.starts_with("mlflow_secrets_auth."))
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut fields = Fields(Vec::new());
        // Visiting only fails where the visitor does, and ours does not.
        let _ = record.key_values().visit(&mut fields);
        let entry = Entry {
            level: record.level(),
            logger: record.target().to_owned(),
            message: record.args().to_string(),
            fields: fields.0,
        };
        let journal = self.0.get();
        let mut entries = journal.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= MAX_KEPT {
            entries.pop_front();
        }
        entries.push_back(entry);
        PENDING.store(true, Ordering::Release);
    }

    fn flush(&self) {}
}

struct Fields(Vec<(String, Field)>);

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), KvError> {
        let field = if let Some(flag) = value.to_bool() {
            Field::Flag(flag)
        } else if let Some(number) = value.to_u64() {
            Field::Number(number)
        } else {
            Field::Text(value.to_string())
        };
        self.0.push((key.to_string(), field));
        Ok(())
    }
}
