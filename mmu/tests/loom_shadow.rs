//! MMIO on shadow tables, recognised without a lock, against zaps that recycle the tables and generations that wrap.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p umbra-mmu --release --test loom_shadow`
#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use loom::model::Builder;
use loom::sync::Arc;
use loom::thread;
use umbra_memslots::{
    AddressSpaceId, EntrySize, Exchange, Generation, Gfn, Gpa, GuestMemory, Gva, MemoryFault, SlotId,
};
use umbra_mmu::NoObserver;
use umbra_mmu::direct::{FoundSlot, SlotSet};
use umbra_mmu::shadow::{
    BitSpan, DirtyLog, FaultOutcome, FoundFrame, FrameSource, GenerationSpans, HostParams, ShadowFault, ShadowMmu,
    ShadowVcpu, SpteLayout, TlbControl,
};
use umbra_mmu::tables::HeapTables;
use umbra_mmu::x86::{GuestCpu, PageFaultCode, PagingRegs, PagingState};

fn check(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(f);
}

/// A guest without paging reads no tables.
struct NoMemory;

impl GuestMemory for NoMemory {
    fn read(&self, gpa: Gpa, _: &mut [u8]) -> Result<(), MemoryFault> {
        Err(MemoryFault::NoSlot { gpa })
    }

    fn write(&self, gpa: Gpa, _: &[u8]) -> Result<(), MemoryFault> {
        Err(MemoryFault::NoSlot { gpa })
    }

    fn read_entry(&self, gpa: Gpa, _: EntrySize) -> Result<u64, MemoryFault> {
        Err(MemoryFault::NoSlot { gpa })
    }

    fn compare_exchange_entry(&self, gpa: Gpa, _: EntrySize, _: u64, _: u64) -> Result<Exchange, MemoryFault> {
        Err(MemoryFault::NoSlot { gpa })
    }
}

/// Slots as of one generation: none at all, or one for every frame.
struct Fixed {
    generation: u64,
    present: bool,
}

impl FrameSource for Fixed {
    fn current(&mut self) -> SlotSet {
        SlotSet {
            generation: Generation::from_raw(self.generation),
            address_space: AddressSpaceId::Normal,
        }
    }

    fn frame(&mut self, gfn: Gfn) -> (SlotSet, Option<FoundFrame>) {
        let slot = FoundSlot {
            id: SlotId::new(0),
            read_only: false,
            invalid: false,
        };
        (
            self.current(),
            self.present.then_some(FoundFrame {
                slot,
                address: gfn.base().get(),
                largest: 1,
                log: DirtyLog::Off,
            }),
        )
    }
}

struct NoTlb;

impl TlbControl for NoTlb {
    fn flush_all(&mut self) {}
    fn flush_gva(&mut self, _: Gva) {}
}

/// One bit of generation in each half: 4 is 0 again.
fn mmu() -> Arc<ShadowMmu<HeapTables>> {
    let tiny = GenerationSpans {
        low: BitSpan::new(3, 3).unwrap(),
        high: BitSpan::new(52, 52).unwrap(),
    };
    let layout = SpteLayout::new(HostParams::x86(46).with_generation(tiny)).unwrap();
    Arc::new(ShadowMmu::new(layout, HeapTables::new(0, 16).unwrap()).unwrap())
}

fn vcpu(mmu: &ShadowMmu<HeapTables>) -> ShadowVcpu {
    let cpu = GuestCpu::intel(46);
    let regs = PagingRegs {
        cr0: 0,
        cr3: 0,
        cr4: 0,
        efer: 0,
        rflags: 0,
        pkru: 0,
        pdptes: [0; 4],
        cpu,
    };
    let mut vcpu = ShadowVcpu::new(PagingState::new(&regs));
    mmu.root(&mut vcpu, &NoMemory, AddressSpaceId::Normal, &mut NoTlb);
    vcpu
}

fn report(mmu: &ShadowMmu<HeapTables>, vcpu: &mut ShadowVcpu, mut slots: Fixed, gva: u64, code: u32) -> FaultOutcome {
    let fault = ShadowFault::from_code(Gva::new(gva), PageFaultCode::new(code));
    mmu.page_fault(vcpu, &NoMemory, &mut slots, &mut NoTlb, fault)
}

/// A write that found an MMIO SPTE: P, W, RSVD.
fn fault(mmu: &ShadowMmu<HeapTables>, vcpu: &mut ShadowVcpu, slots: Fixed, gva: u64) -> FaultOutcome {
    report(mmu, vcpu, slots, gva, 0xb)
}

/// A write that found nothing: W.
fn touch(mmu: &ShadowMmu<HeapTables>, vcpu: &mut ShadowVcpu, slots: Fixed, gva: u64) -> FaultOutcome {
    report(mmu, vcpu, slots, gva, 0x2)
}

/// No slot at all.
const NONE: Fixed = Fixed {
    generation: 0,
    present: false,
};

#[test]
fn zapped_and_recycled_tables_never_name_another_page() {
    check(|| {
        let mmu = mmu();
        let mut own = vcpu(&mmu);
        touch(&mmu, &mut own, NONE, 0);
        // From here on not from the cache: that knows nothing of tables.
        let state = *own.state();
        own.set_state(state);
        mmu.root(&mut own, &NoMemory, AddressSpaceId::Normal, &mut NoTlb);
        let zapper = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                mmu.zap_all(&mut NoObserver, &mut NoTlb);
                // The tables come back in another order, for another page: what was the root's first table is its leaf.
                let mut other = vcpu(&mmu);
                let outcome = touch(&mmu, &mut other, NONE, 0x2000);
                assert!(matches!(outcome, FaultOutcome::Emulate(_)), "{outcome:?}");
            })
        };
        match fault(&mmu, &mut own, NONE, 8) {
            FaultOutcome::Emulate(mmio) => assert_eq!(mmio.gpa, Gpa::new(8)),
            FaultOutcome::Retry => {}
            other => unreachable!("{other:?}"),
        }
        zapper.join().unwrap();
    });
}

/// What `vcpu` is told of gva 0, without its cache.
fn is_mmio(mmu: &ShadowMmu<HeapTables>, vcpu: &mut ShadowVcpu, slots: Fixed) -> bool {
    let state = *vcpu.state();
    vcpu.set_state(state);
    mmu.root(vcpu, &NoMemory, AddressSpaceId::Normal, &mut NoTlb);
    matches!(fault(mmu, vcpu, slots, 0), FaultOutcome::Emulate(_))
}

#[test]
fn entry_of_an_old_era_is_never_believed_after_the_wrap() {
    check(|| {
        let mmu = mmu();
        let mut own = vcpu(&mmu);
        assert!(matches!(touch(&mmu, &mut own, NONE, 0), FaultOutcome::Emulate(_)));
        assert!(is_mmio(&mmu, &mut own, NONE));
        let announced = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                mmu.generation_changes(
                    &mut NoObserver,
                    &mut NoTlb,
                    AddressSpaceId::Normal,
                    Generation::from_raw(4),
                );
            })
        };
        assert!(!is_mmio(
            &mmu,
            &mut own,
            Fixed {
                generation: 4,
                present: true
            }
        ));
        announced.join().unwrap();
    });
}

#[test]
fn entry_of_a_new_era_is_never_believed_by_who_lags_behind() {
    check(|| {
        let mmu = mmu();
        let (mut own, mut ahead) = (vcpu(&mmu), vcpu(&mmu));
        let ahead = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                // The first enters the era and loses its root, the second makes a new one, the third leaves an entry.
                for _ in 0..3 {
                    touch(
                        &mmu,
                        &mut ahead,
                        Fixed {
                            generation: 4,
                            present: false,
                        },
                        0,
                    );
                }
            })
        };
        assert!(!is_mmio(
            &mmu,
            &mut own,
            Fixed {
                generation: 0,
                present: true
            }
        ));
        ahead.join().unwrap();
    });
}
