//! Every interleaving of vCPUs going in and out of guest code with a TLB flush, and with one that wants to be alone.
#![cfg(loom)]
#![allow(dead_code, clippy::unwrap_used, reason = "the module under test is used in part")]

#[path = "../src/soft/gate.rs"]
mod gate;

#[path = "support/loom_sync.rs"]
mod sync;

use gate::{Gates, Pass};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A page that a vCPU may use while the table says so, and what a TLB remembers of that.
struct Page {
    gates: Gates,
    mapped: AtomicBool,
    /// Somebody else does what it likes with the page.
    taken: AtomicBool,
    in_use: AtomicBool,
}

impl Page {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            gates: Gates::default(),
            mapped: AtomicBool::new(true),
            taken: AtomicBool::new(false),
            in_use: AtomicBool::new(false),
        })
    }

    /// A vCPU runs two blocks, in each of which it uses the page if its TLB, or else the table, allows it.
    fn run(&self, mut pass: Pass) {
        let mut tlb = false;
        let _ = pass.enter(&self.gates);
        for _ in 0..2 {
            if !pass.is_current(&self.gates) {
                pass.leave();
                tlb &= !pass.enter(&self.gates);
            }
            tlb |= self.mapped.load(Relaxed);
            if tlb {
                self.in_use.store(true, Relaxed);
                assert!(!self.taken.load(Relaxed));
                self.in_use.store(false, Relaxed);
            }
        }
        pass.leave();
    }
}

#[test]
fn page_taken_away_is_not_used_after_the_flush() {
    loom::model(|| {
        let page = Page::new();
        let pass = page.gates.add();
        let vcpu = loom::thread::spawn({
            let page = Arc::clone(&page);
            move || page.run(pass)
        });
        page.mapped.store(false, Relaxed);
        page.gates.flush();
        assert!(!page.in_use.load(Relaxed));
        page.taken.store(true, Relaxed);
        vcpu.join().unwrap();
    });
}

#[test]
fn alone_means_alone() {
    loom::model(|| {
        let page = Page::new();
        let (other, mut own) = (page.gates.add(), page.gates.add());
        let vcpu = loom::thread::spawn({
            let page = Arc::clone(&page);
            move || page.run(other)
        });
        let alone = own.be_alone(&page.gates);
        assert!(own.enter(&page.gates));
        assert!(!page.in_use.load(Relaxed));
        page.taken.store(true, Relaxed);
        page.taken.store(false, Relaxed);
        own.leave();
        own.rejoin(alone);
        vcpu.join().unwrap();
    });
}

#[test]
fn two_that_flush_each_other_both_return() {
    loom::model(|| {
        let gates = Arc::new(Gates::default());
        let (mut other, mut own) = (gates.add(), gates.add());
        let vcpu = loom::thread::spawn({
            let gates = Arc::clone(&gates);
            move || {
                let _ = other.enter(&gates);
                other.leave();
                other.flush_others(&gates);
                let _ = other.enter(&gates);
                other.leave();
            }
        });
        own.flush_others(&gates);
        let _ = own.enter(&gates);
        own.leave();
        vcpu.join().unwrap();
    });
}
