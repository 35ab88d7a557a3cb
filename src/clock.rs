//! Time and chance, as parameters.

use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;

/// Where time and chance come from. Tests pass their own.
pub trait Clock: Send + Sync {
    /// Time since some fixed moment of this boot, time asleep included, so that a credential ages while a laptop sleeps.
    fn now(&self) -> Duration;

    /// The calendar, for expiry dates that a backend or a token names.
    fn calendar(&self) -> SystemTime;

    /// A number in `0.0..1.0`, for jitter. It must differ between processes that were forked from one another.
    fn chance(&self) -> f64;

    /// Waits, inside a fetch.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;

    /// Ends when `time` is over, beside something that may be ready earlier, and is asked before it.
    fn timer(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(time))
    }
}

/// The operating system's clocks and randomness.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    fn now(&self) -> Duration {
        // Linux stops CLOCK_MONOTONIC during suspend and has CLOCK_BOOTTIME; Apple's CLOCK_MONOTONIC goes on counting.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        const ID: libc::clockid_t = libc::CLOCK_BOOTTIME;
        #[cfg(target_vendor = "apple")]
        const ID: libc::clockid_t = libc::CLOCK_MONOTONIC;
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is a valid, writable timespec. The call can only fail for an unknown clock id, and leaves zero.
        unsafe { libc::clock_gettime(ID, &mut time) };
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
    }

    #[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
    fn now(&self) -> Duration {
        // Windows' performance counter, which Instant reads, includes time asleep.
        use std::sync::OnceLock;
        use std::time::Instant;
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed()
    }

    fn calendar(&self) -> SystemTime {
        SystemTime::now()
    }

    fn chance(&self) -> f64 {
        // The system's generator, not a seeded one: forked children would share a seed, and so their jitter.
        // Without randomness there is no jitter, which is safe.
        let bits = getrandom::u64().unwrap_or(u64::MAX >> 1);
        (bits >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(time))
    }
}
