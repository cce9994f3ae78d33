//! [`ShadowTlb`]: gets a running vCPU to forget translations.

use crate::backend::Kick;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use umbra_memslots::Gva;
use umbra_mmu::shadow::TlbControl;

/// What a vCPU and those who change its tables share.
#[derive(Debug, Default)]
pub(super) struct TlbState {
    /// Translations are to be forgotten before the guest runs on.
    wanted: AtomicBool,
    /// The CPU may be walking the tables.
    in_guest: AtomicBool,
}

/// A handle for whoever changes the tables. The vCPU's own thread has one as well.
#[derive(Clone)]
pub struct ShadowTlb {
    state: Arc<TlbState>,
    kick: Arc<dyn Kick>,
}

impl ShadowTlb {
    pub(super) fn new(kick: Arc<dyn Kick>) -> Self {
        Self {
            state: Arc::default(),
            kick,
        }
    }

    /// About to enter the guest. `false` if translations must be forgotten first.
    ///
    /// Either this sees the wish, or who wished it sees the CPU in the guest: both do their store before their load.
    pub(super) fn enter(&self) -> bool {
        self.state.in_guest.store(true, Ordering::SeqCst);
        if self.state.wanted.load(Ordering::SeqCst) {
            self.leave();
            return false;
        }
        true
    }

    /// Back from the guest.
    pub(super) fn leave(&self) {
        self.state.in_guest.store(false, Ordering::SeqCst);
    }

    /// Whether somebody wanted translations to be forgotten; from now on nobody does.
    pub(super) fn take_wish(&self) -> bool {
        self.state.wanted.swap(false, Ordering::SeqCst)
    }
}

impl TlbControl for ShadowTlb {
    fn flush_all(&mut self) {
        self.state.wanted.store(true, Ordering::SeqCst);
        // A kick brings it out within microseconds, and it doesn't go back in before it has forgotten.
        if self.state.in_guest.load(Ordering::SeqCst) {
            self.kick.kick();
            while self.state.in_guest.load(Ordering::SeqCst) {
                thread::yield_now();
            }
        }
    }

    fn flush_gva(&mut self, _gva: Gva) {
        self.flush_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[derive(Default)]
    struct Counted(AtomicU32);

    impl Kick for Counted {
        fn kick(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn vcpu_outside_the_guest_is_not_kicked_but_must_forget_before_it_enters() {
        let kicks = Arc::new(Counted::default());
        let tlb = ShadowTlb::new(kicks.clone());
        assert!(tlb.enter());
        tlb.leave();
        tlb.clone().flush_all();
        assert_eq!(kicks.0.load(Ordering::SeqCst), 0);
        assert!(!tlb.enter());
        assert!(tlb.take_wish());
        assert!(tlb.enter());
    }

    #[test]
    fn flush_of_a_running_vcpu_returns_when_it_is_out() {
        let kicks = Arc::new(Counted::default());
        let tlb = ShadowTlb::new(kicks.clone());
        assert!(tlb.enter());
        let mut other = tlb.clone();
        let flusher = thread::spawn(move || other.flush_all());
        while kicks.0.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        assert!(!flusher.is_finished());
        tlb.leave();
        flusher.join().unwrap();
        assert!(!tlb.enter());
    }
}
