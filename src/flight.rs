//! One fetch at a time: one leader, any number of followers, and no follower that hangs when its leader is gone.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::cache::Cached;
use crate::clock::Clock;
use crate::error::{Error, ErrorCode, Result};
use crate::runtime::{INTERRUPT_SLICE, Interrupt, Local, ProcessLocal, inside_fetch, interrupted};

/// What a flight brings.
pub(crate) type Outcome = Result<Arc<Cached>>;

/// Where callers meet. A forked child finds an empty one.
pub(crate) struct Runway(ProcessLocal<Flight>);

#[derive(Default)]
struct Flight {
    state: Mutex<State>,
    landed: Condvar,
}

#[derive(Default)]
struct State {
    flying: bool,
    landings: u64,
    /// What the last flight brought; `None` where its leader gave up.
    outcome: Option<Outcome>,
}

/// How somebody came by a flight.
pub(crate) enum Seat {
    /// The caller has to fetch.
    Leader(Leader),
    /// Somebody else has fetched.
    Follower(Outcome),
}

/// The right to fetch. Dropped without [`land`](Leader::land), it lets a follower take over.
pub(crate) struct Leader {
    flight: Local<Flight>,
    outcome: Option<Outcome>,
}

impl Leader {
    fn of(flight: Local<Flight>) -> Self {
        Self { flight, outcome: None }
    }

    /// Ends the flight, and gives all followers its outcome.
    pub(crate) fn land(mut self, outcome: &Outcome) {
        self.outcome = Some(outcome.clone());
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        if self.flight.is_inherited() {
            return;
        }
        let mut state = self.flight.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.flying = false;
        state.landings += 1;
        state.outcome = self.outcome.take();
        self.flight.landed.notify_all();
    }
}

impl Default for Runway {
    fn default() -> Self {
        Self(ProcessLocal::new(Flight::default))
    }
}

impl Runway {
    /// Waits for the flight that is under way, or gives the right to make one.
    ///
    /// # Errors
    /// [`ErrorCode::FetchInterrupted`]; [`ErrorCode::FetchTimeout`] when others are busy until `deadline`.
    pub(crate) fn board(&self, clock: &dyn Clock, deadline: Duration, interrupt: Interrupt<'_>) -> Result<Seat> {
        if inside_fetch() {
            return Err(interrupted());
        }
        let started = clock.now();
        'boarding: loop {
            let flight = self.0.get();
            let mut state = flight.state.lock().unwrap_or_else(PoisonError::into_inner);
            if !state.flying {
                state.flying = true;
                drop(state);
                return Ok(Seat::Leader(Leader::of(flight)));
            }
            let before = state.landings;
            while state.landings == before {
                // The lock is given back while we ask: whoever answers may need the interpreter.
                let waited = flight.landed.wait_timeout(state, INTERRUPT_SLICE).unwrap_or_else(PoisonError::into_inner);
                state = waited.0;
                if waited.1.timed_out() && state.landings == before {
                    drop(state);
                    if interrupt() {
                        return Err(interrupted());
                    }
                    if flight.is_inherited() {
                        continue 'boarding;
                    }
                    if clock.now() >= deadline {
                        return Err(waited_too_long(deadline.saturating_sub(started)));
                    }
                    state = flight.state.lock().unwrap_or_else(PoisonError::into_inner);
                }
            }
            if let Some(outcome) = state.outcome.clone() {
                return Ok(Seat::Follower(outcome));
            }
        }
    }

    /// The right to fetch, where nobody is fetching. Never waits.
    pub(crate) fn board_if_free(&self) -> Option<Leader> {
        let flight = self.0.get();
        {
            let mut state = flight.state.try_lock().ok()?;
            if state.flying {
                return None;
            }
            state.flying = true;
        }
        Some(Leader::of(flight))
    }
}

fn waited_too_long(time: Duration) -> Error {
    Error::new(
        ErrorCode::FetchTimeout,
        format!("other threads' fetches gave no credential within {:.1} s", time.as_secs_f64()),
        "check that this machine reaches the backend, or raise MLFLOW_SECRETS_TIMEOUT_SEC",
    )
}
