//! Cache and refresh: R1, R2, R4-R7, R9, R10, R12, R13, with a clock that the tests move.

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, SystemTime};

use log::Level;
use mlflow_secrets_auth::cache::{Cached, Counts, CredentialCache, FetchLimits};
use mlflow_secrets_auth::clock::{Clock, SystemClock};
use mlflow_secrets_auth::error::{ErrorCode, Outlook, Result};
use mlflow_secrets_auth::origin::Origin;
use mlflow_secrets_auth::provider::ProviderKind::{AwsSecretsManager, Vault};
use mlflow_secrets_auth::provider::SecretPayload;
use mlflow_secrets_auth::runtime::UNINTERRUPTED;
use support::{
    LIMITS, ManualClock, Script, Shared, Step, TTL, cache, cache_for, chain, error, link, link_for, logged, payload,
    record_logs, seconds, secret, unreachable, until, value,
};

const THREADS: usize = 64;

/// What `THREADS` threads get that do `ask` at the same time.
fn herd<T: Send>(ask: impl Fn() -> T + Sync) -> Vec<T> {
    let start = Barrier::new(THREADS);
    let asked = || {
        start.wait();
        ask()
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(asked)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn get(cache: &Arc<CredentialCache>) -> Result<Arc<Cached>> {
    cache.get(UNINTERRUPTED)
}

fn slowly(text: &str) -> Step {
    Step::Slowly(Duration::from_millis(100), payload(text))
}

fn server() -> Origin {
    Origin::of("https://mlflow.example.com").unwrap()
}

fn denied(cache: &Arc<CredentialCache>, origin: &Origin, generation: u64, status: u16) -> Option<String> {
    cache.denied(origin, generation, status, UNINTERRUPTED).unwrap().map(|cached| value(&cached))
}

// R1: one flight

/// R1: 64 threads that miss together, cold and again at expiry, cost one read each time.
#[test]
fn r1_a_herd_costs_one_read_cold_and_at_expiry() {
    let clock = ManualClock::new();
    let script = Script::new([slowly("one"), slowly("two")]);
    let cache = cache(&clock, &script, LIMITS);
    for (round, token) in ["Bearer one", "Bearer two"].into_iter().enumerate() {
        let values: Vec<_> = herd(|| value(&get(&cache).unwrap()));
        assert!(values.iter().all(|value| value == token), "{values:?}");
        assert_eq!(script.reads(), round + 1);
        clock.advance(TTL);
    }
}

/// R1: 64 threads whose credential got a 401 cost one read, and all go on with what it brought.
#[test]
fn r1_a_herd_after_a_401_costs_one_read() {
    let clock = ManualClock::new();
    let script = Script::new([secret("one"), slowly("two")]);
    let cache = cache(&clock, &script, LIMITS);
    let generation = get(&cache).unwrap().generation;
    let values = herd(|| denied(&cache, &server(), generation, 401));
    assert!(values.iter().all(|value| value.as_deref() == Some("Bearer two")), "{values:?}");
    assert_eq!(script.reads(), 2);
}

/// R1: 64 threads share a failure: nobody sends a second request, whether he waited or came just too late.
#[test]
fn r1_a_herd_shares_the_failure() {
    let clock = ManualClock::new();
    let script = Script::new([unreachable()]);
    let cache = cache(&clock, &script, LIMITS);
    let codes = herd(|| get(&cache).unwrap_err().code());
    assert!(codes.iter().all(|code| *code == ErrorCode::VaultUnreachable));
    assert_eq!(script.reads(), 1);
}

/// R1: when the leader is interrupted, one of the waiting takes over, and nobody hangs.
#[test]
fn r1_an_interrupted_leader_hands_over() {
    let clock = ManualClock::new();
    let script = Script::new([Step::Hang, slowly("two")]);
    let cache = cache(&clock, &script, LIMITS);
    let give_up = AtomicBool::new(false);
    thread::scope(|scope| {
        let leader = scope.spawn(|| cache.get(&|| give_up.load(Ordering::SeqCst)).unwrap_err().code());
        until(|| script.reads() == 1);
        let waiting: Vec<_> = (0..8).map(|_| scope.spawn(|| value(&get(&cache).unwrap()))).collect();
        until(|| cache.counts().misses == 9);
        give_up.store(true, Ordering::SeqCst);
        assert_eq!(leader.join().unwrap(), ErrorCode::FetchInterrupted);
        for thread in waiting {
            assert_eq!(thread.join().unwrap(), "Bearer two");
        }
    });
    assert_eq!(script.reads(), 2);
    assert_eq!(cache.counts().failures, 0, "an interruption is no failure of the backend");
}

/// R1: a follower can be interrupted, too; the flight goes on without him.
#[test]
fn r1_a_follower_can_be_interrupted() {
    let clock = ManualClock::new();
    let script = Script::new([Step::Hang]);
    let cache = cache(&clock, &script, LIMITS);
    let give_up = AtomicBool::new(false);
    thread::scope(|scope| {
        let leader = scope.spawn(|| cache.get(&|| give_up.load(Ordering::SeqCst)).unwrap_err().code());
        until(|| script.reads() == 1);
        assert_eq!(cache.get(&|| true).unwrap_err().code(), ErrorCode::FetchInterrupted);
        assert!(!leader.is_finished());
        give_up.store(true, Ordering::SeqCst);
        leader.join().unwrap();
    });
}

/// R1, P3: a signal handler that runs in the middle of a fetch and asks for a credential on the same thread gets an
/// answer at once, rather than wait for a fetch that waits for it.
#[test]
fn r1_a_leader_that_asks_again_is_not_left_waiting() {
    let clock = ManualClock::new();
    let script = Script::new([Step::Hang]);
    let cache = cache(&clock, &script, LIMITS);
    let inner = AtomicUsize::new(0);
    let handler = || {
        assert_eq!(get(&cache).unwrap_err().code(), ErrorCode::FetchInterrupted);
        assert_eq!(cache.refresh(UNINTERRUPTED).unwrap_err().code(), ErrorCode::FetchInterrupted);
        inner.fetch_add(1, Ordering::SeqCst) == 1
    };
    assert_eq!(cache.get(&handler).unwrap_err().code(), ErrorCode::FetchInterrupted);
    assert_eq!((inner.into_inner(), script.reads()), (2, 1));
}

/// R1: with a TTL of 0 nothing is kept: each request reads for itself.
#[test]
fn r1_without_a_ttl_every_request_reads_once() {
    let clock = ManualClock::new();
    let script = Script::new([Step::Mint]);
    let cache = cache_for(&clock, &script, LIMITS, Duration::ZERO);
    let mut values = herd(|| value(&get(&cache).unwrap()));
    values.sort();
    values.dedup();
    assert_eq!((values.len(), script.reads()), (THREADS, THREADS), "some request got another one's credential");
    assert!(cache.fresh().is_none());
}

/// R10: who waits for another's fetch gives up at the deadline as well.
#[test]
fn r10_waiting_for_another_ends_at_the_deadline() {
    let clock = ManualClock::new();
    let script = Script::new([Step::Hang]);
    let cache = cache(&clock, &script, LIMITS);
    let give_up = AtomicBool::new(false);
    thread::scope(|scope| {
        let leader = scope.spawn(|| cache.get(&|| give_up.load(Ordering::SeqCst)).unwrap_err().code());
        until(|| script.reads() == 1);
        let waiting = scope.spawn(|| get(&cache).unwrap_err().code());
        let forced = scope.spawn(|| cache.refresh(UNINTERRUPTED).unwrap_err().code());
        until(|| cache.counts().misses == 2);
        // `refresh` counts no miss: give it a moment to begin, so that its deadline is not later than the clock's next step.
        thread::sleep(Duration::from_millis(50));
        clock.advance(LIMITS.timeout);
        assert_eq!(waiting.join().unwrap(), ErrorCode::FetchTimeout);
        assert_eq!(forced.join().unwrap(), ErrorCode::FetchTimeout);
        assert!(!leader.is_finished());
        give_up.store(true, Ordering::SeqCst);
        leader.join().unwrap();
    });
}

// R2: renewal ahead

/// R2: the first request in the last fifth of the TTL starts one renewal and goes on with the old credential; from then
/// on the new one is there, and at the old one's expiry nobody waits.
#[test]
fn r2_renewal_ahead_spares_the_wait_at_expiry() {
    let clock = ManualClock::new();
    let script = Script::new([secret("one"), slowly("two")]);
    let cache = cache(&clock, &script, LIMITS);
    get(&cache).unwrap();
    clock.advance(TTL.mul_f64(0.79));
    assert_eq!(value(&cache.fresh().unwrap()), "Bearer one");
    assert_eq!(script.reads(), 1, "renewed too early");
    clock.advance(TTL.mul_f64(0.02));
    for _ in 0..1000 {
        assert!(cache.fresh().is_some());
    }
    until(|| value(&cache.fresh().unwrap()) == "Bearer two");
    clock.advance(TTL.mul_f64(0.25));
    assert_eq!(value(&cache.fresh().unwrap()), "Bearer two");
    assert_eq!(script.reads(), 2);
    assert_eq!(cache.counts().misses, 1);
}

/// R2: a renewal that hangs delays nobody while the credential at hand is good, and none is started beside it.
#[test]
fn r2_a_renewal_that_hangs_delays_nobody() {
    let clock = ManualClock::new();
    let script = Script::new([secret("one"), Step::Hang]);
    let cache = cache(&clock, &script, LIMITS);
    get(&cache).unwrap();
    clock.advance(TTL.mul_f64(0.9));
    for _ in 0..1000 {
        assert_eq!(value(&cache.fresh().unwrap()), "Bearer one");
    }
    until(|| script.reads() == 2);
    assert_eq!(cache.counts().misses, 1);
}

/// R2: that the first provider is down does not hold back the renewal from the second.
#[test]
fn r2_renewal_goes_on_while_the_first_provider_is_down() {
    let clock = ManualClock::new();
    let [vault, aws] = [Script::new([unreachable()]), Script::new([secret("one")])];
    let ttl = seconds(10.0);
    let links = vec![link_for(Vault, &vault, ttl), link_for(AwsSecretsManager, &aws, ttl)];
    let cache = CredentialCache::new(chain(links), LIMITS, Arc::new(Shared(Arc::clone(&clock))));
    for _ in 0..6 {
        // Each failure doubles Vault's fail-fast window, to 30 s in the end.
        cache.refresh(UNINTERRUPTED).unwrap();
    }
    aws.now([secret("two")]);
    clock.advance(ttl.mul_f64(0.9));
    assert_eq!(value(&cache.fresh().unwrap()), "Bearer one");
    until(|| value(&cache.fresh().unwrap()) == "Bearer two");
    assert_eq!((vault.reads(), aws.reads()), (6, 7));
}

/// R2: while every provider is down, requests in the last fifth of the TTL do not start one renewal after the other.
#[test]
fn r2_a_failed_renewal_is_not_repeated_at_once() {
    let clock = ManualClock::new();
    let script = Script::new([secret("one"), unreachable()]);
    let cache = cache(&clock, &script, LIMITS);
    get(&cache).unwrap();
    clock.advance(TTL.mul_f64(0.85));
    cache.fresh().unwrap();
    until(|| cache.counts().failures == 1);
    for _ in 0..100 {
        cache.fresh().unwrap();
    }
    thread::sleep(Duration::from_millis(20));
    assert_eq!(script.reads(), 2);
    clock.advance(seconds(1.0));
    until(|| cache.fresh().is_some() && script.reads() == 3);
}

// R4, R5, R12: time to live

/// R4: the TTL is the least of the setting, the payload's own expiry, a JWT's `exp`, the backend's expiry and the lease,
/// where the last four count less a tenth, at most 30 s.
#[test]
fn r4_the_ttl_is_the_least_of_everything_that_ends() {
    // {"alg":"none"} . {"exp":1800000100} . x
    let jwt = "eyJhbGciOiJub25lIn0.eyJleHAiOjE4MDAwMDAxMDB9.x";
    let ends = |text: &str, expires_in: Option<u64>, lease: Option<u64>| SecretPayload {
        expires_at: expires_in.map(|s| SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + s)),
        lease: lease.map(Duration::from_secs),
        ..payload(text)
    };
    let cases = [
        (ends("t", None, None), 300.0),
        (ends("t", Some(100), None), 90.0),
        (ends("t", None, Some(50)), 45.0),
        (ends("t", Some(315), None), 285.0),
        (ends("t", Some(10_000), Some(20_000)), 300.0),
        (ends("t", Some(100), Some(50)), 45.0),
        (ends(jwt, None, None), 90.0),
        (ends(jwt, Some(60), None), 54.0),
        (ends(r#"{"token": "t", "expires_at": 1800000040}"#, None, None), 36.0),
        (ends(r#"{"token": "t", "expires_at": "2027-01-15T08:00:20Z"}"#, None, None), 18.0),
    ];
    for (payload, expected) in cases {
        let clock = ManualClock::new();
        let cache = cache(&clock, &Script::new([Step::Secret(payload.clone())]), LIMITS);
        let left = get(&cache).unwrap().expires_in(cache.clock());
        assert!((left.as_secs_f64() - expected).abs() < 0.001, "{payload:?}: {left:?} instead of {expected}");
    }
}

/// R4: a credential that our clock takes for expired, because it is 10 minutes fast or the token's life is shorter than
/// any skew, is used all the same, and read again once a second at most.
#[test]
fn r4_a_clock_that_is_wrong_does_not_spin() {
    for lease in [0.001, 0.5] {
        let clock = ManualClock::new();
        let past = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 - 600);
        let expired = SecretPayload { expires_at: Some(past), lease: Some(seconds(lease)), ..payload("t") };
        let script = Script::new([Step::Secret(expired)]);
        let cache = cache(&clock, &script, LIMITS);
        for _ in 0..100 {
            assert_eq!(value(&get(&cache).unwrap()), "Bearer t");
        }
        assert_eq!(script.reads(), 1);
        clock.advance(seconds(1.0));
        get(&cache).unwrap();
        assert_eq!(script.reads(), 2);
    }
}

/// R4: where our clock is slow, so that a token seems good after it has ended, the server's 401 leads to the new one.
#[test]
fn r4_a_slow_clock_ends_in_success_by_way_of_401() {
    let clock = ManualClock::new();
    let script = Script::new([secret("ended"), secret("good")]);
    let cache = cache(&clock, &script, LIMITS);
    let held = get(&cache).unwrap();
    assert_eq!(denied(&cache, &server(), held.generation, 401).unwrap(), "Bearer good");
    assert_eq!(value(&cache.fresh().unwrap()), "Bearer good");
}

/// R5: age is counted on the clock that goes on while the machine sleeps; a jump of it ends the TTL.
#[test]
fn r5_age_counts_time_asleep() {
    let clock = ManualClock::new();
    let script = Script::new([secret("one"), secret("two")]);
    let cache = cache(&clock, &script, LIMITS);
    get(&cache).unwrap();
    clock.advance(TTL * 12);
    assert!(cache.fresh().is_none());
    assert_eq!(value(&get(&cache).unwrap()), "Bearer two");
}

/// R5: the system's clock is the one that counts suspend: Linux' CLOCK_BOOTTIME, not CLOCK_MONOTONIC.
#[test]
#[cfg(target_os = "linux")]
fn r5_the_system_clock_is_the_one_that_counts_suspend() {
    let boot_time = || {
        let text = std::fs::read_to_string("/proc/uptime").unwrap();
        seconds(text.split(' ').next().unwrap().parse().unwrap())
    };
    // /proc/uptime is CLOCK_BOOTTIME, in hundredths.
    let before = boot_time();
    let now = SystemClock.now();
    assert!(before <= now && now <= boot_time() + Duration::from_millis(10), "{before:?} {now:?}");
}

/// R12: 500 processes that start together come back spread over a tenth of the TTL, and none later than the TTL.
#[test]
fn r12_five_hundred_processes_do_not_return_together() {
    let clock = ManualClock::new();
    let mut ends: Vec<_> = (0..500)
        .map(|_| {
            // What a process of its own draws.
            clock.set_chance(SystemClock.chance());
            let cache = cache(&clock, &Script::new([secret("t")]), LIMITS);
            get(&cache).unwrap().expires_in(cache.clock()).as_secs_f64()
        })
        .collect();
    ends.sort_by(f64::total_cmp);
    let (first, last) = (ends[0], ends[499]);
    assert!(first >= 270.0 && last <= 300.0, "{first} to {last}");
    // Thirty seconds for 500: one second gets 17 on the average. Sixty would be ten standard deviations more.
    let busiest = ends.iter().map(|start| ends.iter().filter(|end| (0.0..1.0).contains(&(*end - start))).count()).max();
    assert!(busiest < Some(60), "{busiest:?} of 500 return within one second");
}

// R6, R7: rejections

/// R7: after a 403 for good, 1,000 requests cost one read beyond the first, and no more until the TTL ends, renewals
/// ahead of time included: these tell by themselves whether the credential has changed.
#[test]
fn r7_a_thousand_403_cost_one_read() {
    let clock = ManualClock::new();
    let script = Script::new([secret("t")]);
    let cache = cache(&clock, &script, LIMITS);
    for _ in 0..1000 {
        let generation = get(&cache).unwrap().generation;
        assert_eq!(denied(&cache, &server(), generation, 403), None);
    }
    assert_eq!(script.reads(), 2);
    assert!(clock.take_sleeps().is_empty(), "a 403 is not waited for");
    clock.advance(TTL + seconds(1.0));
    for _ in 0..1000 {
        let generation = get(&cache).unwrap().generation;
        assert_eq!(denied(&cache, &server(), generation, 403), None);
    }
    assert_eq!(script.reads(), 3, "the new TTL costs the one read that it would cost in any case");
}

/// R7: after a 401 for good the same flight reads at once, after 0.5 s and after 1.5 s; then it is read again after 5 s,
/// doubling to 60 s, whatever the number of requests.
#[test]
fn r7_401_is_read_again_on_the_contract_s_schedule() {
    let clock = ManualClock::new();
    let script = Script::new([secret("t")]);
    let cache = cache_for(&clock, &script, LIMITS, seconds(86_400.0));
    let thousand = || {
        for _ in 0..1000 {
            let generation = get(&cache).unwrap().generation;
            assert_eq!(denied(&cache, &server(), generation, 401), None);
        }
    };
    thousand();
    assert_eq!(script.reads(), 4);
    assert_eq!(clock.take_sleeps(), [seconds(0.5), seconds(1.0)]);
    for (index, rest) in [5.0, 10.0, 20.0, 40.0, 60.0, 60.0].into_iter().enumerate() {
        clock.advance(seconds(rest - 0.001));
        thousand();
        assert_eq!(script.reads(), 4 + index, "read again before {rest} s were over");
        clock.advance(seconds(0.001));
        thousand();
        assert_eq!(script.reads(), 5 + index);
    }
    assert!(clock.take_sleeps().is_empty(), "only the first flight waits for the backend to follow");
}

/// R3, R7: where the backend follows the server within 1.5 s, the flight that waits for it ends with the new credential.
#[test]
fn r3_a_backend_that_follows_within_a_moment_is_waited_for() {
    for late in 0..=2 {
        let clock = ManualClock::new();
        let script = Script::new([secret("old")]);
        let cache = cache(&clock, &script, LIMITS);
        let generation = get(&cache).unwrap().generation;
        script.now(std::iter::repeat_n(secret("old"), late).chain([secret("new")]));
        assert_eq!(denied(&cache, &server(), generation, 401).unwrap(), "Bearer new");
        assert_eq!(script.reads(), 2 + late);
    }
}

/// R10: a deadline shorter than the schedule after a 401 cuts it; it does not turn the answer into a failure.
#[test]
fn r10_the_schedule_after_a_401_ends_with_the_deadline() {
    let clock = ManualClock::new();
    let script = Script::new([secret("t")]);
    let limits = FetchLimits { timeout: seconds(1.0), ..LIMITS };
    let cache = cache(&clock, &script, limits);
    let generation = get(&cache).unwrap().generation;
    assert_eq!(denied(&cache, &server(), generation, 401), None);
    assert_eq!((script.reads(), clock.take_sleeps()), (3, vec![seconds(0.5)]));
    assert_eq!(cache.counts().failures, 0);
}

/// R7: where every read mints a new secret, a denial after the resend is remembered for the origin: 1,000 requests cost
/// two reads; after a 401 the rests between further reads grow, although each read brings another generation.
#[test]
fn r7_minted_secrets_cost_two_reads_and_rests_grow() {
    for status in [401, 403] {
        let clock = ManualClock::new();
        let script = Script::new([Step::Mint]);
        let cache = cache_for(&clock, &script, LIMITS, seconds(86_400.0));
        let request = || {
            let generation = get(&cache).unwrap().generation;
            let newer = cache.denied(&server(), generation, status, UNINTERRUPTED).unwrap();
            if let Some(newer) = newer {
                cache.denied_when_new(&server(), newer.generation, status);
            }
        };
        (0..1000).for_each(|_| request());
        assert_eq!(script.reads(), 2, "HTTP {status}");
        if status == 403 {
            continue;
        }
        for (index, rest) in [5.0, 10.0, 20.0, 40.0, 60.0, 60.0].into_iter().enumerate() {
            clock.advance(seconds(rest - 0.001));
            (0..10).for_each(|_| request());
            assert_eq!(script.reads(), 2 + index, "read again before {rest} s were over");
            clock.advance(seconds(0.001));
            (0..10).for_each(|_| request());
            assert_eq!(script.reads(), 3 + index);
        }
    }
}

/// R7: one origin's denials say nothing of another's.
#[test]
fn r7_denials_are_remembered_per_origin() {
    let clock = ManualClock::new();
    let script = Script::new([secret("t")]);
    let cache = cache(&clock, &script, LIMITS);
    let generation = get(&cache).unwrap().generation;
    denied(&cache, &server(), generation, 403);
    script.now([secret("new")]);
    let other = Origin::of("https://other.example.com").unwrap();
    assert_eq!(denied(&cache, &other, generation, 403).unwrap(), "Bearer new");
    assert_eq!(
        denied(&cache, &server(), generation, 403).unwrap(),
        "Bearer new",
        "what another origin's denial brought"
    );
    assert_eq!(script.reads(), 3);
}

/// R6: a generation is what its headers are: read again unchanged it keeps its number, so a late 401 rejects no newer one.
#[test]
fn r6_an_old_401_does_not_reject_the_new_generation() {
    let clock = ManualClock::new();
    let script = Script::new([secret("one"), secret("one"), secret("two")]);
    let cache = cache(&clock, &script, LIMITS);
    let first = get(&cache).unwrap().generation;
    assert_eq!(cache.refresh(UNINTERRUPTED).unwrap().generation, first);
    let second = cache.refresh(UNINTERRUPTED).unwrap().generation;
    assert!(second > first);
    assert_eq!(denied(&cache, &server(), first, 401).unwrap(), "Bearer two");
    assert_eq!(script.reads(), 3, "the answer was in the cache");
}

// R9: stale, and fail fast

/// R9: unreachable, the last good credential serves past its TTL: one attempt before it is used, its age not restarted,
/// one WARNING, up to the limit. Then one ERROR, and the failure; within the fail-fast window without a read.
#[test]
fn r9_stale_while_unreachable_up_to_the_limit() {
    record_logs();
    let clock = ManualClock::new();
    let script = Script::new([secret("t"), unreachable()]);
    let cache = cache(&clock, &script, FetchLimits { max_retries: 3, ..LIMITS });
    get(&cache).unwrap();
    clock.advance(TTL);
    assert_eq!(value(&get(&cache).unwrap()), "Bearer t");
    assert_eq!(script.reads(), 2, "one attempt");
    for _ in 0..100 {
        get(&cache).unwrap();
    }
    assert_eq!(script.reads(), 2, "fail fast");
    clock.advance(LIMITS.stale_if_error - seconds(0.001));
    let held = get(&cache).unwrap();
    assert_eq!(held.age(cache.clock()), TTL + LIMITS.stale_if_error - seconds(0.001));
    assert_eq!(held.expires_in(cache.clock()), Duration::ZERO);
    assert_eq!((logged(Level::Warn).len(), logged(Level::Error).len()), (1, 0));

    clock.advance(seconds(60.0));
    let before = script.reads();
    for _ in 0..100 {
        assert_eq!(get(&cache).unwrap_err().code(), ErrorCode::VaultUnreachable);
    }
    assert_eq!(script.reads(), before + 4, "one fetch with its retries, then fail fast");
    assert_eq!((logged(Level::Warn).len(), logged(Level::Error).len()), (1, 1), "S4: one ERROR per episode");

    script.now([secret("back")]);
    clock.advance(seconds(60.0));
    assert_eq!(value(&get(&cache).unwrap()), "Bearer back");
    assert_eq!(logged(Level::Info).len(), 2, "credentials can be had again, and this is another one");
}

/// R9: a limit of 0 means never.
#[test]
fn r9_no_stale_use_where_the_limit_is_zero() {
    let clock = ManualClock::new();
    let script = Script::new([secret("t"), unreachable()]);
    let cache = cache(&clock, &script, FetchLimits { stale_if_error: Duration::ZERO, ..LIMITS });
    get(&cache).unwrap();
    clock.advance(TTL);
    assert_eq!(get(&cache).unwrap_err().code(), ErrorCode::VaultUnreachable);
}

/// R9: with a stale credential in hand a backend that hangs holds a request up for 2 s, not for the whole deadline.
#[test]
fn r9_a_backend_that_hangs_delays_stale_use_by_two_seconds() {
    let clock = ManualClock::new();
    let script = Script::new([secret("t"), Step::Hang]);
    let cache = cache(&clock, &script, LIMITS);
    get(&cache).unwrap();
    clock.advance(TTL);
    let start = std::time::Instant::now();
    assert_eq!(value(&get(&cache).unwrap()), "Bearer t");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

/// R9: a credential that a 401 rejected is never used past its TTL; one that a 403 refused is.
#[test]
fn r9_a_rejected_credential_is_never_used_when_stale() {
    for (status, usable) in [(401, false), (403, true)] {
        let clock = ManualClock::new();
        let script = Script::new([secret("t")]);
        let cache = cache(&clock, &script, LIMITS);
        let generation = get(&cache).unwrap().generation;
        denied(&cache, &server(), generation, status);
        script.now([unreachable()]);
        clock.advance(TTL * 2);
        assert_eq!(get(&cache).is_ok(), usable, "HTTP {status}");
    }
}

/// R9: when the backend answered, its answer counts: no stale credential now, nor later when it can't be reached.
#[test]
fn r9_no_stale_use_once_the_backend_answered() {
    for code in [
        ErrorCode::VaultPermissionDenied,
        ErrorCode::VaultTokenRefused,
        ErrorCode::VaultNotFound,
        ErrorCode::VaultSecretDeleted,
    ] {
        let clock = ManualClock::new();
        let script = Script::new([secret("t"), Step::Fail(error(code, Outlook::Final)), unreachable()]);
        let cache = cache(&clock, &script, LIMITS);
        get(&cache).unwrap();
        clock.advance(TTL);
        assert_eq!(get(&cache).unwrap_err().code(), code);
        clock.advance(seconds(1.0));
        assert_eq!(get(&cache).unwrap_err().code(), ErrorCode::VaultUnreachable);
        script.now([secret("t"), unreachable()]);
        clock.advance(seconds(2.0));
        get(&cache).unwrap();
        clock.advance(TTL);
        assert_eq!(value(&get(&cache).unwrap()), "Bearer t", "given anew, it may be used again");
    }
}

/// R9: what is stored but unusable is an answer, too.
#[test]
fn r9_no_stale_use_where_the_secret_is_malformed() {
    let clock = ManualClock::new();
    let script = Script::new([secret("t"), secret("{broken")]);
    let cache = cache(&clock, &script, LIMITS);
    get(&cache).unwrap();
    clock.advance(TTL);
    assert_eq!(get(&cache).unwrap_err().code(), ErrorCode::SecretNotJson);
}

/// R9: the rest of the chain comes before the stale credential.
#[test]
fn r9_the_chain_comes_before_the_stale_credential() {
    let clock = ManualClock::new();
    let [vault, aws] = [Script::new([secret("v"), unreachable()]), Script::new([secret("a"), unreachable()])];
    let links = vec![link(Vault, &vault), link(AwsSecretsManager, &aws)];
    let cache = CredentialCache::new(chain(links), LIMITS, Arc::new(Shared(Arc::clone(&clock))));
    assert_eq!(value(&get(&cache).unwrap()), "Bearer v");
    clock.advance(TTL);
    assert_eq!(value(&get(&cache).unwrap()), "Bearer a");
    clock.advance(TTL);
    assert_eq!(value(&get(&cache).unwrap()), "Bearer a", "the last good provider's");
}

/// R9, S4: a cold failure is one ERROR with the time of the next try, however many requests meet it.
#[test]
fn r9_a_cold_failure_is_logged_once() {
    record_logs();
    let clock = ManualClock::new();
    let script = Script::new([unreachable()]);
    let cache = cache(&clock, &script, LIMITS);
    for _ in 0..50 {
        get(&cache).unwrap_err();
        clock.advance(seconds(0.5));
    }
    let errors = logged(Level::Error);
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("next try in 1.0 s") && errors[0].contains("vault.unreachable"), "{errors:?}");
}

/// R10: a backend whose SDK breaks down is a failure like any other: counted, logged, not asked again at once.
#[test]
fn r10_a_breakdown_is_a_failure() {
    record_logs();
    let clock = ManualClock::new();
    let script = Script::new([Step::Panic, secret("t")]);
    let cache = cache(&clock, &script, LIMITS);
    for _ in 0..10 {
        assert_eq!(get(&cache).unwrap_err().code(), ErrorCode::FetchInternal);
    }
    assert_eq!((script.reads(), cache.counts().failures, logged(Level::Error).len()), (1, 1, 1));
    clock.advance(seconds(1.0));
    assert_eq!(value(&get(&cache).unwrap()), "Bearer t");
}

// R13

/// R13: `refresh` passes a fresh credential, a fail-fast window and a denial; `clear` forgets all of them.
#[test]
fn r13_refresh_passes_every_cache_and_counts_are_kept() {
    let clock = ManualClock::new();
    let script = Script::new([secret("one"), secret("two"), unreachable(), secret("three"), secret("four")]);
    let cache = cache(&clock, &script, LIMITS);
    get(&cache).unwrap();
    get(&cache).unwrap();
    assert_eq!(value(&cache.refresh(UNINTERRUPTED).unwrap()), "Bearer two");
    assert_eq!(
        cache.refresh(UNINTERRUPTED).unwrap_err().code(),
        ErrorCode::VaultUnreachable,
        "stale is no answer here"
    );
    assert_eq!(value(&cache.refresh(UNINTERRUPTED).unwrap()), "Bearer three");
    assert_eq!(cache.counts(), Counts { hits: 1, misses: 1, refreshes: 3, failures: 1 });
    cache.clear();
    assert!(cache.peek().is_none());
    assert_eq!(value(&get(&cache).unwrap()), "Bearer four");
}
