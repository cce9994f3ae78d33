//! Memory that goes away, and slots that come, against vCPUs that fault and run: nobody uses memory after it is freed, and
//! nobody takes for MMIO what has a slot.
//!
//! Memory is loom's own cell: each use of a page by a running vCPU, and its end, is an access that loom tracks. A vCPU
//! runs with a lock held that a flush takes as well: a flush returns when everybody has left the guest, as with an IPI.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p umbra-mmu --release --test loom_memory`
#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(unsafe_code, reason = "loom's tracked memory is reached by pointers")]

#[path = "common/loom_guest.rs"]
mod loom_guest;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;
use loom_guest::{NONE, NoMemory, NoTlb, check, fault, mmu, touch, vcpu};
use umbra_memslots::{AddressSpaceId, Generation, Gfn, GfnRange, Gpa, Gva, SlotId};
use umbra_mmu::NoObserver;
use umbra_mmu::direct::{FoundSlot, SlotSet};
use umbra_mmu::shadow::{
    DirtyLog, FaultOutcome, FoundFrame, FrameSource, ShadowFault, ShadowMmu, ShadowRoot, ShadowVcpu, TlbControl,
};
use umbra_mmu::tables::{EntryLocation, HeapTables, TableId, TableSpace};
use umbra_mmu::x86::PageFaultCode;

/// Where the first frame's memory may be, as the walker knows it; 0 for none.
const OLD: u64 = 1 << 32;
const NEW: u64 = 1 << 33;

/// A host with two pages of memory, of which one or none is the guest's first frame.
struct Host {
    mmu: Arc<ShadowMmu<HeapTables>>,
    /// Generation and [`OLD`], [`NEW`] or 0, published as one.
    slots: AtomicU64,
    old: UnsafeCell<bool>,
    running: Mutex<()>,
}

impl Host {
    fn new(address: u64) -> Arc<Self> {
        Arc::new(Self {
            mmu: mmu(),
            slots: AtomicU64::new(address),
            old: UnsafeCell::new(true),
            running: Mutex::new(()),
        })
    }

    fn publish(&self, generation: Generation, address: u64) {
        self.slots.store(generation.get() | address, Ordering::Release);
    }

    /// One fault, then a run of the guest if the page is mapped: the memory is used where the tables say it is.
    fn access(&self, vcpu: &mut ShadowVcpu) -> FaultOutcome {
        let fault = ShadowFault::from_code(Gva::new(0), PageFaultCode::new(2));
        let outcome = self
            .mmu
            .page_fault(vcpu, &NoMemory, &mut Slots(self), &mut Flush(self), fault);
        let root = self.mmu.root(vcpu, &NoMemory, AddressSpaceId::Normal, &mut Flush(self));
        let running = self.running.lock().unwrap();
        if self.mapped(root) == Some(OLD) {
            self.old.with(|page| {
                // SAFETY: loom checks that nobody writes to the cell at the same time; that is what is tested.
                assert!(unsafe { *page }, "memory is used after it was freed");
            });
        }
        drop(running);
        outcome
    }

    /// The same until something comes of it.
    fn settled(&self, vcpu: &mut ShadowVcpu) -> FaultOutcome {
        loop {
            match self.access(vcpu) {
                FaultOutcome::Retry => {}
                outcome => return outcome,
            }
        }
    }

    /// Where a walker that begins at this root finds the first frame.
    fn mapped(&self, root: ShadowRoot) -> Option<u64> {
        let ShadowRoot::Pae { pdptes } = root else {
            unreachable!("no paging: 32-bit addresses")
        };
        let mut entry = pdptes[0];
        for _level in [2, 1] {
            let table = self.mmu.space().table_at(entry & !0xfff)?;
            entry = self.mmu.space().load(EntryLocation { table, index: 0 });
            if entry & 1 == 0 {
                return None;
            }
        }
        Some(entry & ((1 << 52) - 1) & !0xfff)
    }

    /// The old page goes. Nobody may use it from here on.
    fn free(&self) {
        self.old.with_mut(|page| {
            // SAFETY: as above.
            unsafe { *page = false };
        });
    }
}

struct Slots<'a>(&'a Host);

impl Slots<'_> {
    fn read(&self) -> (SlotSet, u64) {
        let word = self.0.slots.load(Ordering::Acquire);
        let address = word & (OLD | NEW);
        let set = SlotSet {
            generation: Generation::from_raw(word & !address),
            address_space: AddressSpaceId::Normal,
        };
        (set, address)
    }
}

impl FrameSource for Slots<'_> {
    fn current(&mut self) -> SlotSet {
        self.read().0
    }

    fn frame(&mut self, gfn: Gfn) -> (SlotSet, Option<FoundFrame>) {
        let slot = FoundSlot {
            id: SlotId::new(0),
            read_only: false,
            invalid: false,
        };
        let (set, address) = self.read();
        let there = gfn.get() == 0 && address != 0;
        (set, there.then_some(FoundFrame::page(slot, address)))
    }
}

struct Flush<'a>(&'a Host);

impl TlbControl for Flush<'_> {
    fn flush_all(&mut self) {
        drop(self.0.running.lock().unwrap());
    }

    /// This vCPU isn't in the guest now.
    fn flush_vcpu(&mut self) {}

    fn flush_gva(&mut self, _: Gva) {}
}

fn first_frame() -> GfnRange {
    GfnRange::single(Gfn::from_masked(0))
}

#[test]
fn memory_that_the_host_takes_away_is_not_used_afterwards() {
    check(|| {
        let host = Host::new(OLD);
        let mut own = vcpu(&host.mmu);
        let taker = {
            let host = Arc::clone(&host);
            thread::spawn(move || {
                host.mmu.invalidate_begin(&mut Flush(&host), first_frame());
                host.free();
                host.publish(Generation::from_raw(0), NEW);
                host.mmu.invalidate_end(first_frame());
            })
        };
        host.access(&mut own);
        taker.join().unwrap();
        assert!(matches!(
            host.settled(&mut own),
            FaultOutcome::Fixed | FaultOutcome::Spurious
        ));
        let root = host.mmu.root(&mut own, &NoMemory, AddressSpaceId::Normal, &mut NoTlb);
        assert_eq!(host.mapped(root), Some(NEW));
    });
}

#[test]
fn memory_found_before_an_invalidation_is_not_mapped_after_it() {
    // Begun before the fault: only the end, and with it the sequence, can be overtaken.
    check(|| {
        let host = Host::new(OLD);
        let mut own = vcpu(&host.mmu);
        host.mmu.invalidate_begin(&mut NoTlb, first_frame());
        let taker = {
            let host = Arc::clone(&host);
            thread::spawn(move || {
                host.free();
                host.publish(Generation::from_raw(0), 0);
                host.mmu.invalidate_end(first_frame());
            })
        };
        let outcome = host.access(&mut own);
        assert!(matches!(outcome, FaultOutcome::Retry | FaultOutcome::Emulate(_)));
        taker.join().unwrap();
    });
}

#[test]
fn memory_of_a_slot_that_goes_is_not_used_afterwards() {
    check(|| {
        let host = Host::new(OLD);
        let mut own = vcpu(&host.mmu);
        host.access(&mut own);
        let remover = {
            let host = Arc::clone(&host);
            thread::spawn(move || {
                host.publish(Generation::from_raw(0).begin_update(), 0);
                host.mmu.zap_range(&mut NoObserver, &mut Flush(&host), first_frame());
                host.free();
                host.publish(Generation::from_raw(2), 0);
            })
        };
        host.access(&mut own);
        remover.join().unwrap();
        assert!(matches!(host.settled(&mut own), FaultOutcome::Emulate(_)));
    });
}

/// An access by who knows nothing but the tables: a walk met a reserved bit.
fn reserved(host: &Host, vcpu: &mut ShadowVcpu) -> bool {
    let state = *vcpu.state();
    vcpu.set_state(state);
    host.mmu.root(vcpu, &NoMemory, AddressSpaceId::Normal, &mut NoTlb);
    matches!(fault(&host.mmu, vcpu, Slots(host), 0), FaultOutcome::Emulate(_))
}

#[test]
fn frame_that_got_a_slot_is_never_mmio_to_who_sees_it() {
    check(|| {
        let host = Host::new(0);
        let (mut own, mut other) = (vcpu(&host.mmu), vcpu(&host.mmu));
        assert!(matches!(touch(&host.mmu, &mut own, NONE, 0), FaultOutcome::Emulate(_)));
        let owner = {
            let host = Arc::clone(&host);
            thread::spawn(move || {
                let before = Generation::from_raw(0);
                host.publish(before.begin_update(), NEW);
                host.mmu.generation_changes(
                    &mut NoObserver,
                    &mut NoTlb,
                    AddressSpaceId::Normal,
                    Generation::from_raw(2),
                );
                host.publish(Generation::from_raw(2), NEW);
            })
        };
        let late = {
            let host = Arc::clone(&host);
            // May have found nothing before the slot came, and say so in the tables afterwards.
            thread::spawn(move || {
                touch(&host.mmu, &mut other, Slots(&host), 0);
            })
        };
        let seen = host.slots.load(Ordering::Acquire) & NEW != 0;
        let mmio = reserved(&host, &mut own);
        assert!(!(seen && mmio), "a slot was seen, and then MMIO");
        owner.join().unwrap();
        late.join().unwrap();
        assert!(!reserved(&host, &mut own));
    });
}

#[test]
fn table_that_goes_below_a_root_that_stays_never_names_another_page() {
    check(|| {
        let host = Host::new(0);
        let mut own = vcpu(&host.mmu);
        touch(&host.mmu, &mut own, NONE, 0x2000);
        let state = *own.state();
        own.set_state(state);
        host.mmu.root(&mut own, &NoMemory, AddressSpaceId::Normal, &mut NoTlb);
        let mut other = vcpu(&host.mmu);
        let zapper = {
            let host = Arc::clone(&host);
            thread::spawn(move || {
                // The table of frames 2 and 3 goes, and comes back as that of 0 and 1.
                let second = GfnRange::single(Gfn::from_masked(2));
                host.mmu.zap_range(&mut NoObserver, &mut NoTlb, second);
                touch(&host.mmu, &mut other, NONE, 0);
            })
        };
        match fault(&host.mmu, &mut own, NONE, 0x2008) {
            FaultOutcome::Emulate(mmio) => assert_eq!(mmio.gpa, Gpa::new(0x2008)),
            FaultOutcome::Retry => {}
            other => unreachable!("{other:?}"),
        }
        zapper.join().unwrap();
    });
}

/// Where a log says that the first frame is dirty.
struct Logged<'a> {
    host: &'a Host,
    dirty: &'a AtomicU64,
}

impl FrameSource for Logged<'_> {
    fn current(&mut self) -> SlotSet {
        Slots(self.host).current()
    }

    fn frame(&mut self, gfn: Gfn) -> (SlotSet, Option<FoundFrame>) {
        let (set, frame) = Slots(self.host).frame(gfn);
        // The third generation on is logged.
        let logged = set.generation.get() >= 2;
        let log = if logged {
            DirtyLog::WriteProtection
        } else {
            DirtyLog::Off
        };
        (set, frame.map(|frame| frame.with_log(log)))
    }

    fn mark_dirty(&mut self, _: Gfn) {
        self.dirty.store(1, Ordering::Release);
    }
}

/// A guest without paging whose first frame was logged once and is mapped without the right to write.
fn once_logged() -> (Arc<Host>, ShadowVcpu) {
    let host = Host::new(OLD);
    let mut own = vcpu(&host.mmu);
    host.settled(&mut own);
    host.mmu
        .start_logging(&mut NoTlb, first_frame(), DirtyLog::WriteProtection);
    (host, own)
}

/// A write that the tables forbid.
fn forbidden(host: &Host, vcpu: &mut ShadowVcpu, mut frames: impl FrameSource) -> FaultOutcome {
    let fault = ShadowFault::from_code(Gva::new(0), PageFaultCode::new(3));
    host.mmu
        .page_fault(vcpu, &NoMemory, &mut frames, &mut Flush(host), fault)
}

#[test]
fn write_allowed_without_the_lock_is_in_the_log_that_began_before() {
    check(|| {
        let (host, mut own) = once_logged();
        let dirty = Arc::new(AtomicU64::new(0));
        let logger = {
            let host = Arc::clone(&host);
            thread::spawn(move || {
                host.publish(Generation::from_raw(2), OLD);
                host.mmu
                    .start_logging(&mut Flush(&host), first_frame(), DirtyLog::WriteProtection);
                // From here on, whatever is writable is in the log or will be.
                let root = entry_for_writes(&host);
                root.is_some_and(|entry| entry & 2 != 0)
            })
        };
        let frames = Logged {
            host: &host,
            dirty: &dirty,
        };
        forbidden(&host, &mut own, frames);
        let writable_then = logger.join().unwrap();
        let writable_now = entry_for_writes(&host).is_some_and(|entry| entry & 2 != 0);
        let logged = dirty.load(Ordering::Acquire) == 1;
        assert!(logged || !(writable_then || writable_now), "a write would go unnoticed");
    });
}

/// The leaf for the first frame, wherever it is: of all tables, the one entry with the old page's address.
fn entry_for_writes(host: &Host) -> Option<u64> {
    let space = host.mmu.space();
    let entries = (0..space.capacity()).map(|table| {
        space.load(EntryLocation {
            table: TableId::new(table),
            index: 0,
        })
    });
    entries.filter(|entry| entry & (OLD | 1) == OLD | 1).last()
}

#[test]
fn leaf_that_was_zapped_and_made_again_is_not_fixed_by_who_saw_the_old_one() {
    check(|| {
        let (host, mut own) = once_logged();
        let (mut other, dirty) = (vcpu(&host.mmu), Arc::new(AtomicU64::new(0)));
        let zapper = {
            let host = Arc::clone(&host);
            thread::spawn(move || {
                host.mmu.zap_range(&mut NoObserver, &mut Flush(&host), first_frame());
                // The same page, mapped anew, and logged from the beginning: a read.
                host.publish(Generation::from_raw(2), OLD);
                let fault = ShadowFault::from_code(Gva::new(0), PageFaultCode::new(0));
                let unused = AtomicU64::new(0);
                for _ in 0..2 {
                    let mut frames = Logged {
                        host: &host,
                        dirty: &unused,
                    };
                    host.mmu
                        .page_fault(&mut other, &NoMemory, &mut frames, &mut Flush(&host), fault);
                }
                host.mmu
                    .start_logging(&mut Flush(&host), first_frame(), DirtyLog::WriteProtection);
            })
        };
        let frames = Logged {
            host: &host,
            dirty: &dirty,
        };
        forbidden(&host, &mut own, frames);
        zapper.join().unwrap();
        let writable = entry_for_writes(&host).is_some_and(|entry| entry & 2 != 0);
        assert!(!writable || dirty.load(Ordering::Acquire) == 1);
    });
}
