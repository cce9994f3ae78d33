//! [`Gates`]: which vCPUs are inside guest code, where they use what their TLBs know; and waiting until none uses what is
//! out of date.
//!
//! KVM kicks the other CPUs out of the guest and waits (`kvm_flush_remote_tlbs`). Here nobody can be interrupted, but
//! everybody looks between two blocks whether there is a new request. A vCPU that needs the MMU is outside while it
//! waits for the MMU's lock, so that whoever holds the lock may wait for those inside. Coming back in, it learns whether
//! there was a request meanwhile; then nothing that it knew before counts.

use super::sync::{Arc, AtomicBool, AtomicU64, Guard, Lock, Ordering, SharedLock, fence, pause};

/// The place of a vCPU that isn't inside; above every number of requests.
const OUTSIDE: u64 = u64::MAX;

/// The gates of one machine.
#[derive(Default)]
pub(super) struct Gates {
    /// Requests so far: moves when all TLBs must be flushed, and when somebody wants to be alone.
    requests: AtomicU64,
    /// Somebody wants to be alone inside, or is.
    closed: AtomicBool,
    /// Who that is holds this.
    turn: Lock<()>,
    /// For each vCPU the requests that it had seen when it went in, or `OUTSIDE`.
    places: SharedLock<Vec<Arc<AtomicU64>>>,
}

/// A vCPU's right to go inside. Outside at first.
pub(super) struct Pass {
    place: Arc<AtomicU64>,
    seen: u64,
    alone: bool,
}

/// As long as this lives, no other vCPU is inside.
pub(super) struct Alone<'a> {
    gates: &'a Gates,
    _turn: Guard<'a, ()>,
}

impl Gates {
    /// One more vCPU.
    pub fn add(&self) -> Pass {
        let place = Arc::new(AtomicU64::new(OUTSIDE));
        self.places.write().push(Arc::clone(&place));
        Pass {
            place,
            seen: self.requests.load(Ordering::Acquire),
            alone: false,
        }
    }

    /// No vCPU uses what its TLB knew before, once this returns. The caller is outside, or no vCPU.
    pub fn flush(&self) {
        self.wait(self.request());
    }

    fn request(&self) -> u64 {
        let before = self.requests.fetch_add(1, Ordering::AcqRel);
        // First the request, then a look at the places: whoever enters does it in the other order.
        fence(Ordering::SeqCst);
        before + 1
    }

    /// Waits until every vCPU is outside or has seen the request.
    fn wait(&self, request: u64) {
        for place in self.places.read().iter() {
            let mut turns = 0;
            while place.load(Ordering::Acquire) < request {
                pause(&mut turns);
            }
        }
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.gates.closed.store(false, Ordering::Release);
    }
}

impl Pass {
    /// Whether there is no request that this vCPU has not seen. It must look again and again while it is inside.
    #[inline]
    pub fn is_current(&self, gates: &Gates) -> bool {
        gates.requests.load(Ordering::Acquire) == self.seen
    }

    /// Goes inside. Says whether there was a request since the last time: then the TLB is to be flushed before it is
    /// used.
    #[must_use = "the TLB may have to be flushed"]
    pub fn enter(&mut self, gates: &Gates) -> bool {
        let before = self.seen;
        loop {
            self.seen = gates.requests.load(Ordering::Acquire);
            self.place.store(self.seen, Ordering::Release);
            fence(Ordering::SeqCst);
            if gates.closed.load(Ordering::Acquire) && !self.alone {
                self.leave();
                drop(gates.turn.lock());
            } else if self.is_current(gates) {
                return self.seen != before;
            }
        }
    }

    /// Goes outside.
    pub fn leave(&self) {
        self.place.store(OUTSIDE, Ordering::Release);
    }

    /// Has all others forget what their TLBs know, without doing so itself; from outside, as [`Gates::flush`].
    pub fn flush_others(&mut self, gates: &Gates) {
        let request = gates.request();
        gates.wait(request);
        if self.seen + 1 == request {
            self.seen = request;
        }
    }

    /// Waits, from outside, until all others are outside too, and keeps them there. [`Pass::enter`] then lets this vCPU
    /// in; [`Pass::rejoin`] ends it.
    pub fn be_alone<'a>(&mut self, gates: &'a Gates) -> Alone<'a> {
        let turn = gates.turn.lock();
        gates.closed.store(true, Ordering::Release);
        gates.request();
        gates.wait(OUTSIDE);
        self.alone = true;
        Alone { gates, _turn: turn }
    }

    /// Lets the others in again. The caller is outside.
    pub fn rejoin(&mut self, alone: Alone<'_>) {
        self.alone = false;
        drop(alone);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        // A vCPU that panicked keeps nobody waiting.
        self.leave();
    }
}
