//! Trying again: which failures, how often, how long between. Nothing else in the crate retries.

use std::time::Duration;

use crate::clock::Clock;
use crate::error::{Error, Outlook, Result};

/// The first wait; each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// How much one provider's part of a fetch may cost.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Attempts in all, at least one.
    pub attempts: u32,
    /// When it must end, on [`Clock::now`].
    pub deadline: Duration,
    /// Whether a provider's own number of retries may take the place of `attempts`.
    pub provider_decides: bool,
}

impl Budget {
    /// What is left of the time.
    pub fn remaining(&self, clock: &dyn Clock) -> Duration {
        self.deadline.saturating_sub(clock.now())
    }
}

/// Runs `attempt` until it succeeds, fails for good, or the budget is used up; the last failure is returned.
///
/// Only failures that may pass are tried again, after an exponential back-off with full jitter or, where the backend
/// named a time, after that time. A wait that would outlast the deadline is not begun.
///
/// The caller bounds the time of a single attempt: this function never interrupts one.
pub async fn retrying<T>(
    clock: &dyn Clock,
    budget: Budget,
    mut attempt: impl AsyncFnMut(u32) -> Result<T>,
) -> Result<T> {
    let mut number = 0;
    loop {
        let error = match attempt(number).await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        number += 1;
        let Some(wait) = wait_before(number, &error, clock.chance()) else { return Err(error) };
        if number >= budget.attempts || wait >= budget.remaining(clock) {
            return Err(error);
        }
        log::debug!(target: "mlflow_secrets_auth.retry", event = "retry", attempt = number, wait_ms = wait.as_millis() as u64,
            code = error.code().as_str(); "trying again in {} ms after {}", wait.as_millis(), error.code());
        clock.sleep(wait).await;
    }
}

/// How long to wait before attempt `number` (1 is the first repetition), or `None` where trying again is of no use.
fn wait_before(number: u32, error: &Error, chance: f64) -> Option<Duration> {
    if error.outlook() == Outlook::Final {
        return None;
    }
    let back_off = FIRST_WAIT.saturating_mul(1 << (number - 1).min(16)).mul_f64(chance);
    Some(error.retry_after().unwrap_or(back_off))
}
