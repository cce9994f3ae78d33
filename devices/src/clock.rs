//! Time, as a thing that devices are given: so that tests, record and replay, and a paused guest can have their own.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What time-dependent devices ask.
pub trait Clock: Send + Sync {
    /// Time since some moment in the past; never goes backwards.
    fn monotonic(&self) -> Duration;

    /// Wall-clock time since 1970-01-01 00:00:00 UTC. May jump.
    fn unix_time(&self) -> Duration;
}

/// The host's clocks.
#[derive(Clone, Copy, Debug)]
pub struct HostClock {
    start: Instant,
}

impl HostClock {
    /// A clock whose monotonic time starts now.
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for HostClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for HostClock {
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn unix_time(&self) -> Duration {
        // A host whose clock is set before 1970 is shown to the guest as 1970.
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

/// A clock that stands still until it is told otherwise. Both times end after 584 years, where they stand for ever.
#[derive(Default)]
pub struct ManualClock {
    monotonic_ns: AtomicU64,
    unix_ns: AtomicU64,
}

impl ManualClock {
    /// A clock at this wall-clock time, with monotonic time 0.
    pub fn at_unix_time(unix_time: Duration) -> Self {
        Self {
            monotonic_ns: AtomicU64::new(0),
            unix_ns: AtomicU64::new(nanoseconds(unix_time)),
        }
    }

    /// Lets this much time pass on both clocks.
    pub fn advance(&self, by: Duration) {
        for clock in [&self.monotonic_ns, &self.unix_ns] {
            // Never an error: there is always a next value.
            let _ = clock.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| {
                Some(now.saturating_add(nanoseconds(by)))
            });
        }
    }

    /// Sets the wall clock, in either direction.
    pub fn set_unix_time(&self, unix_time: Duration) {
        self.unix_ns.store(nanoseconds(unix_time), Ordering::SeqCst);
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Clock for ManualClock {
    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.monotonic_ns.load(Ordering::SeqCst))
    }

    fn unix_time(&self) -> Duration {
        Duration::from_nanos(self.unix_ns.load(Ordering::SeqCst))
    }
}

impl fmt::Debug for ManualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ManualClock({:?}, unix {:?})", self.monotonic(), self.unix_time())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manual_clock_moves_only_when_told() {
        let clock = ManualClock::at_unix_time(Duration::from_secs(1000));
        clock.advance(Duration::from_millis(1500));
        assert_eq!(
            (clock.monotonic().as_millis(), clock.unix_time().as_millis()),
            (1500, 1_001_500)
        );
        clock.set_unix_time(Duration::from_secs(5));
        assert_eq!((clock.monotonic().as_millis(), clock.unix_time().as_secs()), (1500, 5));
    }

    #[test]
    fn manual_clock_does_not_go_backwards_at_its_end() {
        let clock = ManualClock::at_unix_time(Duration::from_secs(1000));
        clock.advance(Duration::MAX);
        clock.advance(Duration::from_nanos(1));
        let end = Duration::from_nanos(u64::MAX);
        assert_eq!((clock.monotonic(), clock.unix_time()), (end, end));
    }

    #[test]
    fn host_clock_does_not_go_backwards() {
        let clock = HostClock::new();
        assert!(clock.monotonic() <= clock.monotonic());
        assert!(clock.unix_time() > Duration::from_secs(1_600_000_000));
    }
}
