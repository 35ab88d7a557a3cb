//! A fetch on a thread of its own, for callers that must not wait: those in an event loop.
//!
//! However many of them wait for one configuration's credential, they share one thread, which ends with the fetch. It
//! leads or follows the cache's flight like any other caller. When nobody waits any more, it gives up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, ErrorCode};
use crate::flight::Outcome;
use crate::runtime::{Interrupt, ProcessLocal};

/// Told what the fetch brought, on the errand's thread.
pub type Landed = Box<dyn FnOnce(Outcome) + Send>;

/// One caller's place in the queue. Dropped, it is given up.
pub struct Ticket(Arc<AtomicBool>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

struct Waiting {
    gave_up: Arc<AtomicBool>,
    landed: Landed,
}

impl Waiting {
    fn is_left(&self) -> bool {
        !self.gave_up.load(Ordering::Acquire)
    }
}

/// Those who wait, and whether a thread works for them. A forked child finds nobody, because it has no such thread.
#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    is_worked_on: bool,
}

/// The errands of one configuration.
pub(crate) struct Errands(ProcessLocal<Mutex<Queue>>);

impl Default for Errands {
    fn default() -> Self {
        Self(ProcessLocal::new(Mutex::default))
    }
}

impl Errands {
    /// Queues up; true where nobody works for the queue yet, so that the caller has to see to it.
    pub(crate) fn join(&self, landed: Landed) -> (Ticket, bool) {
        let gave_up = Arc::new(AtomicBool::new(false));
        let local = self.0.get();
        let mut queue = local.lock().unwrap_or_else(PoisonError::into_inner);
        queue.waiting.push(Waiting { gave_up: Arc::clone(&gave_up), landed });
        let is_first = !std::mem::replace(&mut queue.is_worked_on, true);
        (Ticket(gave_up), is_first)
    }

    /// Works for the queue with `fetch` until nobody is left in it.
    pub(crate) fn work(&self, fetch: impl Fn(Interrupt<'_>) -> Outcome) {
        let local = self.0.get();
        let nobody_is_left = || {
            let queue = local.lock().unwrap_or_else(PoisonError::into_inner);
            !queue.waiting.iter().any(Waiting::is_left)
        };
        loop {
            let outcome = fetch(&nobody_is_left);
            let (receivers, goes_on) = {
                let mut queue = local.lock().unwrap_or_else(PoisonError::into_inner);
                queue.waiting.retain(Waiting::is_left);
                let everybody = queue.waiting.len();
                let count = match &outcome {
                    // Whoever is here came while the fetch was being given up.
                    Err(error) if error.code() == ErrorCode::FetchInterrupted => 0,
                    // Without caching, what another request fetched is not this one's.
                    Ok(cached) if cached.is_for_one_request() => everybody.min(1),
                    _ => everybody,
                };
                queue.is_worked_on = count < everybody;
                (queue.waiting.drain(..count).collect::<Vec<_>>(), count < everybody)
            };
            for receiver in receivers {
                (receiver.landed)(outcome.clone());
            }
            if !goes_on {
                return;
            }
        }
    }

    /// Tells everybody in the queue that nobody will work for it.
    pub(crate) fn fail(&self, error: &Error) {
        self.work(|_| Err(error.clone()));
    }
}
