//! Interleavings of vCPUs that decode code of a frame with writes to it by the TLB's way and by the slow one.
#![cfg(loom)]
#![allow(dead_code, clippy::unwrap_used, reason = "the modules under test are used in part")]

#[path = "../src/soft/code.rs"]
mod code;
#[path = "../src/soft/gate.rs"]
mod gate;
#[path = "support/loom_sync.rs"]
mod sync;

use code::{Changed, CodePages, Seen};
use gate::{Gates, Pass};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering::Relaxed};
use umbra_memslots::Gpa;

/// Where the code lies.
const AT: Gpa = Gpa::new(0x1000);

/// One frame with one instruction.
#[derive(Default)]
struct Machine {
    gates: Gates,
    code: CodePages,
    instruction: AtomicU64,
}

/// What `SoftVcpu` and `World` do with gates and code, and nothing else.
struct Vcpu {
    machine: Arc<Machine>,
    pass: Pass,
    seen: Seen,
    /// The TLB has the right to write.
    writable: bool,
    /// The block of the instruction.
    block: Option<u64>,
}

impl Vcpu {
    fn new(machine: &Arc<Machine>, writable: bool) -> Self {
        Self {
            machine: Arc::clone(machine),
            pass: machine.gates.add(),
            seen: Seen::default(),
            writable,
            block: None,
        }
    }

    fn enter(&mut self) -> bool {
        let flushed = self.pass.enter(&self.machine.gates);
        self.writable &= !flushed;
        flushed
    }

    /// Between two blocks.
    fn catch_up(&mut self) {
        if !self.pass.is_current(&self.machine.gates) {
            self.pass.leave();
            self.enter();
        }
        let code = &self.machine.code;
        if code.has_changed(&self.seen) && code.catch_up(&mut self.seen) != Changed::Frames(vec![]) {
            self.block = None;
        }
    }

    fn decode(&mut self) {
        let bytes = self.machine.instruction.load(Relaxed);
        if let Some(unwatched) = self.machine.code.add(AT, 8) {
            self.writable = false;
            self.pass.leave();
            self.pass.flush_others(&self.machine.gates);
            let flushed = self.enter();
            self.machine.code.watched(unwatched);
            if flushed {
                return;
            }
        }
        if self.machine.instruction.load(Relaxed) == bytes {
            self.block = Some(bytes);
        }
    }

    /// A miss of the TLB for a write, without the write.
    fn fill(&mut self) {
        let code = &self.machine.code;
        // As in `World`.
        self.writable = !code.contains(AT.gfn()) && !code.has_changed(&self.seen);
    }

    fn store(&mut self, instruction: u64) {
        let mut noticed = false;
        if self.writable {
            self.machine.instruction.store(instruction, Relaxed);
        } else {
            self.fill();
            self.machine.instruction.store(instruction, Relaxed);
            self.machine.code.written(AT, 8);
            noticed = self.machine.code.has_changed(&self.seen);
        }
        // Otherwise the block that stored goes on.
        assert!(noticed || self.block.is_none());
    }

    /// That the block, if there is one, is the instruction in memory, which nobody else writes now.
    fn check(&mut self) {
        self.catch_up();
        let present = self.machine.instruction.load(Relaxed);
        assert!(self.block.is_none_or(|block| block == present));
    }
}

/// Checks with threads preempted at most three times where they need not wait: all interleavings are too many.
fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(f);
}

/// When all is quiet, none has code that is not what memory says.
fn check_again(vcpus: [Vcpu; 2]) {
    for mut vcpu in vcpus {
        let _ = vcpu.enter();
        vcpu.check();
        vcpu.pass.leave();
    }
}

#[test]
fn vcpu_sees_its_own_store_to_code_that_another_decodes() {
    model(|| {
        let machine = Arc::new(Machine::default());
        let (mut first, mut second) = (Vcpu::new(&machine, false), Vcpu::new(&machine, true));
        let thread = loom::thread::spawn(move || {
            let _ = second.enter();
            second.decode();
            second.store(1);
            second.check();
            second.pass.leave();
            second
        });
        let _ = first.enter();
        first.decode();
        first.pass.leave();
        check_again([first, thread.join().unwrap()]);
    });
}

#[test]
fn vcpu_that_does_not_know_yet_of_anothers_store_sees_its_own() {
    model(|| {
        let machine = Arc::new(Machine::default());
        let (mut first, mut second) = (Vcpu::new(&machine, false), Vcpu::new(&machine, false));
        second.decode();
        let thread = loom::thread::spawn(move || {
            let _ = second.enter();
            second.fill();
            second.store(2);
            second.check();
            second.pass.leave();
            second
        });
        let _ = first.enter();
        first.store(3);
        first.decode();
        first.pass.leave();
        check_again([first, thread.join().unwrap()]);
    });
}
