//! Where async code runs, and what a fork leaves behind.
//!
//! No thread of ours is alive between fetches. The runtime is single-threaded and driven by whichever caller's thread
//! leads the fetch. After `fork()` the child finds fresh state: what the parent had is forgotten, not dropped, because
//! dropping would speak on the parent's sockets, and no inherited lock is ever taken.

use std::mem::ManuallyDrop;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::{Either, select};
use tokio::runtime::{Builder, Runtime};

use crate::error::{Error, ErrorCode, Result};

/// How often a blocked caller looks whether it should give up.
pub(crate) const INTERRUPT_SLICE: Duration = Duration::from_millis(50);

/// Asked every 50 ms while a caller is blocked: true ends the wait with [`ErrorCode::FetchInterrupted`].
pub type Interrupt<'a> = &'a dyn Fn() -> bool;

/// An [`Interrupt`] that never interrupts.
pub const UNINTERRUPTED: Interrupt<'static> = &|| false;

static GENERATION: AtomicU64 = AtomicU64::new(0);
static FORK_HELD_OFF: AtomicBool = AtomicBool::new(false);

/// A number that differs between a process and the children it forks.
pub fn process_generation() -> u64 {
    GENERATION.load(Ordering::Acquire)
}

/// Installs the fork handlers, once. Whoever holds process-bound state must have called it. Windows does not fork.
pub fn watch_forks() {
    #[cfg(unix)]
    static HANDLERS: std::sync::Once = std::sync::Once::new();
    #[cfg(unix)]
    HANDLERS.call_once(|| {
        extern "C" fn before() {
            // Bounded: a fork that has waited this long goes on, rather than hang the program that forks.
            let start = std::time::Instant::now();
            while FORK_HELD_OFF.swap(true, Ordering::Acquire) && start.elapsed() < Duration::from_secs(1) {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        extern "C" fn after_in_parent() {
            FORK_HELD_OFF.store(false, Ordering::Release);
        }
        extern "C" fn after_in_child() {
            GENERATION.fetch_add(1, Ordering::AcqRel);
            FORK_HELD_OFF.store(false, Ordering::Release);
        }
        // SAFETY: the handlers only touch atomics and sleep, which is permitted around a fork. A failure to register
        // (out of memory) leaves us as careful as any program without handlers.
        unsafe { libc::pthread_atfork(Some(before), Some(after_in_parent), Some(after_in_child)) };
    });
}

/// While the guard lives, a fork of this process waits (at most 1 s). For short stretches without I/O over a network.
pub(crate) fn hold_off_forks() -> impl Drop {
    struct Guard;
    impl Drop for Guard {
        fn drop(&mut self) {
            FORK_HELD_OFF.store(false, Ordering::Release);
        }
    }
    while FORK_HELD_OFF.swap(true, Ordering::Acquire) {
        std::thread::sleep(Duration::from_micros(200));
    }
    Guard
}

/// A value that belongs to one process. In a forked child the first access makes a new one and forgets the parent's.
pub struct ProcessLocal<T> {
    slot: ArcSwap<Slot<T>>,
    make: fn() -> T,
}

struct Slot<T> {
    generation: u64,
    value: ManuallyDrop<T>,
}

impl<T> Slot<T> {
    fn new(value: T) -> Self {
        Self { generation: process_generation(), value: ManuallyDrop::new(value) }
    }

    /// Whether this process only has it from its parent.
    fn is_inherited(&self) -> bool {
        self.generation != process_generation()
    }
}

impl<T> Drop for Slot<T> {
    fn drop(&mut self) {
        if !self.is_inherited() {
            // SAFETY: this is the only place that drops the value, and the slot is not used after its own drop.
            unsafe { ManuallyDrop::drop(&mut self.value) }
        }
    }
}

/// A [`ProcessLocal`]'s value, kept alive while it is used.
pub struct Local<T>(Arc<Slot<T>>);

impl<T> Local<T> {
    /// Whether this process was forked while the value was held: by a signal handler that ran meanwhile, for example. No
    /// lock in it may be taken then, and nobody but the parent will ever work on it.
    pub(crate) fn is_inherited(&self) -> bool {
        self.0.is_inherited()
    }
}

impl<T> std::ops::Deref for Local<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T> ProcessLocal<T> {
    /// A value that `make` makes, here and again in every forked child that asks for it.
    pub fn new(make: fn() -> T) -> Self {
        watch_forks();
        Self { slot: ArcSwap::from_pointee(Slot::new(make())), make }
    }

    /// This process's value.
    pub fn get(&self) -> Local<T> {
        let current = self.slot.load_full();
        if !current.is_inherited() {
            return Local(current);
        }
        let fresh = Arc::new(Slot::new((self.make)()));
        let previous = self.slot.compare_and_swap(&current, Arc::clone(&fresh));
        if Arc::ptr_eq(&previous, &current) { Local(fresh) } else { Local(self.slot.load_full()) }
    }
}

/// Drives async code on the calling thread.
///
/// Clients that were made inside live on the same runtime, so that connections last from one request of a fetch to the
/// next.
pub struct Driver(ProcessLocal<Mutex<Quiet>>);

/// A runtime that is shut down without waiting: a look-up of a name that hangs must not hang us.
struct Quiet(Option<Runtime>);

impl Drop for Quiet {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Default for Driver {
    fn default() -> Self {
        Self(ProcessLocal::new(|| Mutex::new(Quiet(None))))
    }
}

impl Driver {
    /// Runs `future` to its end, or until `interrupt` says so.
    ///
    /// # Errors
    /// [`ErrorCode::FetchInterrupted`], also where this thread is in the middle of a fetch already;     /// [`ErrorCode::FetchInternal`] where the system gives no runtime, or where code below panics, as the SDKs do on
    /// some input.
    pub fn run<T>(&self, future: impl Future<Output = Result<T>>, interrupt: Interrupt<'_>) -> Result<T> {
        if inside_fetch() {
            return Err(interrupted());
        }
        let local = self.0.get();
        let mut quiet = local.lock().unwrap_or_else(PoisonError::into_inner);
        let runtime = match quiet.0.take() {
            Some(runtime) => runtime,
            None => new_runtime()?,
        };
        let guarded = std::panic::AssertUnwindSafe(|| runtime.block_on(interruptible(future, interrupt)));
        // The future is dropped by the unwinding, and its runtime is not used again: nothing half-changed is seen.
        match std::panic::catch_unwind(guarded) {
            Ok(result) => {
                quiet.0 = Some(runtime);
                result
            }
            Err(_) => {
                runtime.shutdown_background();
                Err(internal("a component broke down while fetching the secret"))
            }
        }
    }
}

async fn interruptible<T>(future: impl Future<Output = Result<T>>, interrupt: Interrupt<'_>) -> Result<T> {
    // `interrupt` runs signal handlers, and one of them may fork. In the child the future is forgotten, like all that is
    // inherited: dropping it would take the parent's sockets out of the event queue that both share.
    let mut future = Slot::new(Box::pin(future));
    loop {
        let tick = pin!(tokio::time::sleep(INTERRUPT_SLICE));
        if let Either::Left((result, _)) = select(future.value.as_mut(), tick).await {
            return result;
        }
        if interrupt() || future.is_inherited() {
            return Err(interrupted());
        }
    }
}

/// Whether this very thread is in the middle of a fetch: a signal handler that ran meanwhile asks for a credential. It
/// can't wait for a fetch that goes on only when it returns.
pub(crate) fn inside_fetch() -> bool {
    tokio::runtime::Handle::try_current().is_ok()
}

fn new_runtime() -> Result<Runtime> {
    Builder::new_current_thread()
        .enable_io()
        .enable_time()
        // Names are resolved on a thread of the pool; it ends soon after.
        .thread_keep_alive(Duration::from_secs(1))
        .thread_name("mlflow-secrets-auth")
        .build()
        .map_err(|e| internal(&format!("the system gives no event loop ({})", crate::http::plain_io(&e))))
}

/// The error for a component that breaks down, or a system that gives no means.
pub(crate) fn internal(what: &str) -> Error {
    Error::new(
        ErrorCode::FetchInternal,
        what,
        "run `mlflow-secrets-auth doctor`, and report this with the output of `mlflow-secrets-auth info`",
    )
}

/// The error of a wait that was ended from outside.
pub(crate) fn interrupted() -> Error {
    Error::new(ErrorCode::FetchInterrupted, "the wait for the credential was interrupted", "try again")
}
