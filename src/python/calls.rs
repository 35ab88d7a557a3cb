//! Calls from Rust into Python code, on threads that the interpreter may end meanwhile.
//!
//! When the interpreter exits, a daemon thread that runs Python code ends at its next wish for the interpreter lock. Before
//! Python 3.14 it does so by unwinding its stack; frames of Rust below abort the whole process then. PyO3 parks such a
//! thread where it attaches, but not where it calls Python code, which may give the lock away and want it back at any
//! line. So whatever runs Python code on a request's way goes through here.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

mod raw {
    use pyo3::ffi::PyObject;

    // As in pyo3-ffi, but declared to unwind.
    unsafe extern "C-unwind" {
        pub fn PyObject_Call(callable: *mut PyObject, args: *mut PyObject, kwargs: *mut PyObject) -> *mut PyObject;
        pub fn PyImport_Import(name: *mut PyObject) -> *mut PyObject;
    }
}

/// Stops the unwinding of a thread for good: the process is about to end, and with it the thread.
struct Park;

impl Drop for Park {
    fn drop(&mut self) {
        loop {
            std::thread::park();
        }
    }
}

/// `callable(*args, **kwargs)`.
pub fn call<'py, A>(
    callable: &Bound<'py, PyAny>,
    args: A,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>>
where
    A: IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>>,
    PyErr: From<A::Error>,
{
    let py = callable.py();
    let args = args.into_pyobject(py)?;
    let kwargs = kwargs.map_or(std::ptr::null_mut(), Bound::as_ptr);
    // SAFETY: we hold the interpreter; the pointers are a callable, a tuple, and a dictionary or null, and stay alive. The
    // result is a new reference, or null with an exception set.
    unsafe { guarded(py, || raw::PyObject_Call(callable.as_ptr(), args.as_ptr(), kwargs)) }
}

/// `object.name(*args)`.
pub fn call_method<'py, A>(object: &Bound<'py, PyAny>, name: &str, args: A) -> PyResult<Bound<'py, PyAny>>
where
    A: IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>>,
    PyErr: From<A::Error>,
{
    call(&object.getattr(name)?, args, None)
}

/// `import name`, which runs the module's code the first time.
pub fn import<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    let name = PyString::new(py, name);
    // SAFETY: we hold the interpreter, and the pointer is a string that stays alive. The result is as above.
    unsafe { guarded(py, || raw::PyImport_Import(name.as_ptr())) }
}

/// # Safety
/// `work` must return a new reference, or null with an exception set.
unsafe fn guarded<'py>(py: Python<'py>, work: impl FnOnce() -> *mut ffi::PyObject) -> PyResult<Bound<'py, PyAny>> {
    let park = Park;
    let result = work();
    std::mem::forget(park);
    // SAFETY: as our caller promises.
    unsafe { Bound::from_owned_ptr_or_err(py, result) }
}
