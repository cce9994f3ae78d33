//! [`Bell`]: wakes the thread that gives out the turns, and cuts the present one short.

use crate::backend::Kick;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// A handle; all clones are the same bell.
#[derive(Clone, Default)]
pub struct Bell(Arc<Inner>);

/// A handle for those whom the bell itself knows: their kicks would keep it, and it them.
#[derive(Debug)]
pub(crate) struct WeakBell(Weak<Inner>);

impl WeakBell {
    /// As [`Bell::ring`]; nobody hears a bell that is gone.
    pub fn ring(&self) {
        if let Some(inner) = self.0.upgrade() {
            Bell(inner).ring();
        }
    }
}

#[derive(Default)]
struct Inner {
    /// It rang, and nobody has taken note of it.
    rang: Mutex<bool>,
    woken: Condvar,
    kicks: OnceLock<Box<[Box<dyn Kick>]>>,
    /// Whose turn it is.
    turn: AtomicUsize,
    /// An alarm was set.
    alarm: AtomicBool,
}

impl Bell {
    /// A bell that nobody listens to yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A handle that does not keep it.
    pub(crate) fn downgrade(&self) -> WeakBell {
        WeakBell(Arc::downgrade(&self.0))
    }

    /// Something happened that a thread asleep for want of work should look at. From any thread.
    pub fn ring(&self) {
        *self.0.rang.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.woken.notify_one();
    }

    /// An alarm was set to go off earlier than those who wait for alarms know: the vCPU whose turn it is comes out. To be
    /// called on the thread of the turns, by the device that the guest sets.
    pub fn alarm_is_set(&self) {
        self.0.alarm.store(true, Ordering::Relaxed);
        let turn = self.0.turn.load(Ordering::Relaxed);
        if let Some(kick) = self.0.kicks.get().and_then(|kicks| kicks.get(turn)) {
            kick.kick();
        }
    }

    /// The vCPUs whose turns there are. Once.
    pub(crate) fn set_kicks(&self, kicks: Box<[Box<dyn Kick>]>) {
        // A bell serves one machine.
        let _ = self.0.kicks.set(kicks);
    }

    /// Whether an alarm was set since the last time.
    pub(super) fn take_alarm(&self) -> bool {
        self.0.alarm.swap(false, Ordering::Relaxed)
    }

    pub(super) fn turn_of(&self, vcpu: usize) {
        self.0.turn.store(vcpu, Ordering::Relaxed);
    }

    /// What rang and was set until now is of no interest: the caller looks at everything next.
    pub(super) fn quiet(&self) {
        self.0.alarm.store(false, Ordering::Relaxed);
        *self.0.rang.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// Sleeps until it rings, or has rung since [`Bell::quiet`]; for at most so long. Says how long it was.
    pub(super) fn wait(&self, at_most: Option<Duration>) -> Duration {
        let start = Instant::now();
        let mut rang = self.0.rang.lock().unwrap_or_else(PoisonError::into_inner);
        while !*rang {
            let Some(at_most) = at_most else {
                rang = self.0.woken.wait(rang).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = at_most.saturating_sub(start.elapsed());
            if left.is_zero() {
                break;
            }
            let (guard, _) = self
                .0
                .woken
                .wait_timeout(rang, left)
                .unwrap_or_else(PoisonError::into_inner);
            rang = guard;
        }
        start.elapsed()
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell")
            .field("turn", &self.0.turn.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_before_or_during_the_wait_ends_it() {
        let bell = Bell::new();
        bell.ring();
        bell.wait(None);
        bell.quiet();
        let other = bell.clone();
        let thread = std::thread::spawn(move || other.ring());
        bell.wait(None);
        assert!(thread.join().is_ok());
    }

    #[test]
    fn silence_ends_with_the_time() {
        let bell = Bell::new();
        bell.ring();
        bell.quiet();
        let time = Duration::from_millis(2);
        assert!(bell.wait(Some(time)) >= time);
    }

    #[test]
    fn alarm_kicks_whose_turn_it_is() {
        struct Count(Arc<AtomicUsize>);
        impl Kick for Count {
            fn kick(&self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let bell = Bell::new();
        bell.alarm_is_set();
        let counts: [Arc<AtomicUsize>; 2] = Default::default();
        bell.set_kicks(
            counts
                .iter()
                .map(|count| Box::new(Count(Arc::clone(count))) as _)
                .collect(),
        );
        bell.turn_of(1);
        bell.alarm_is_set();
        assert_eq!(counts.map(|count| count.load(Ordering::Relaxed)), [0, 1]);
        assert!(bell.take_alarm() && !bell.take_alarm());
    }
}
