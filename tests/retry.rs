//! R11: what is tried again, how often, and how long between.

mod support;

use std::sync::Arc;
use std::time::Duration;

use mlflow_secrets_auth::clock::Clock;
use mlflow_secrets_auth::error::{Error, ErrorCode, Outlook, Result};
use mlflow_secrets_auth::retry::{Budget, retrying};
use support::{ManualClock, Shared, error, seconds};

/// Runs an attempt that always fails with `failure`; how often it ran, and the waits between.
fn exhaust(clock: &Arc<ManualClock>, attempts: u32, time: Duration, failure: &Error) -> (u32, Vec<Duration>) {
    let mut ran = 0;
    let shared = Shared(Arc::clone(clock));
    let budget = Budget { attempts, deadline: shared.now() + time, provider_decides: false };
    let result: Result<()> = block_on(retrying(&shared, budget, async |_| {
        ran += 1;
        Err(failure.clone())
    }));
    assert_eq!(result.unwrap_err().code(), failure.code());
    (ran, clock.take_sleeps())
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

/// R11: a failure that may pass is tried again as often as the budget says, one that will not is shown at once.
#[test]
fn r11_only_what_may_pass_is_tried_again() {
    let clock = ManualClock::new();
    for (outlook, attempts) in [(Outlook::Unreachable, 4), (Outlook::MayPass, 4), (Outlook::Final, 1)] {
        let failure = error(ErrorCode::VaultUnavailable, outlook);
        assert_eq!(exhaust(&clock, 4, seconds(30.0), &failure).0, attempts, "{outlook:?}");
    }
}

/// R11: the waits double from 100 ms, each times a chance between none and all of it.
#[test]
fn r11_back_off_doubles_with_full_jitter() {
    let clock = ManualClock::new();
    let failure = error(ErrorCode::VaultUnreachable, Outlook::Unreachable);
    for chance in [0.0, 0.5, 1.0] {
        clock.set_chance(chance);
        let waits = exhaust(&clock, 6, seconds(30.0), &failure).1;
        let expected: Vec<_> = [0.1, 0.2, 0.4, 0.8, 1.6].map(|full| seconds(full * chance)).into();
        assert_eq!(waits, expected);
    }
}

/// R11: where the backend names a time, that time is waited, whatever the back-off says.
#[test]
fn r11_retry_after_is_honoured() {
    let clock = ManualClock::new();
    let failure = error(ErrorCode::VaultThrottled, Outlook::Unreachable).with_retry_after(Some(seconds(7.0)));
    assert_eq!(exhaust(&clock, 3, seconds(30.0), &failure).1, [seconds(7.0), seconds(7.0)]);
}

/// R11, R10: a wait that would outlast the deadline is not begun; the failure is shown instead.
#[test]
fn r11_no_wait_outlasts_the_deadline() {
    let clock = ManualClock::new();
    let failure = error(ErrorCode::VaultThrottled, Outlook::Unreachable).with_retry_after(Some(seconds(20.0)));
    assert_eq!(exhaust(&clock, 10, seconds(30.0), &failure), (2, vec![seconds(20.0)]));
    let failure = error(ErrorCode::VaultThrottled, Outlook::Unreachable).with_retry_after(Some(seconds(3600.0)));
    assert_eq!(exhaust(&clock, 10, seconds(30.0), &failure), (1, vec![]));
}

/// R11: the first success ends it.
#[test]
fn r11_a_success_after_failures_is_returned() {
    let clock = Shared(ManualClock::new());
    let budget = Budget { attempts: 4, deadline: clock.now() + seconds(30.0), provider_decides: false };
    let result = block_on(retrying(&clock, budget, async |number| match number {
        0 | 1 => Err(error(ErrorCode::VaultSealed, Outlook::Unreachable)),
        number => Ok(number),
    }));
    assert_eq!(result.unwrap(), 2);
}
