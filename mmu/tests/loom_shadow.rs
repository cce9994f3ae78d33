//! MMIO on shadow tables, recognised without a lock, against zaps that recycle the tables and generations that wrap.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p umbra-mmu --release --test loom_shadow`
#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "common/loom_guest.rs"]
mod loom_guest;

use loom::sync::Arc;
use loom::thread;
use loom_guest::{Fixed, NONE, NoMemory, NoTlb, check, fault, mmu, touch, vcpu};
use umbra_memslots::{AddressSpaceId, Generation, Gpa};
use umbra_mmu::NoObserver;
use umbra_mmu::shadow::{FaultOutcome, ShadowMmu, ShadowVcpu};
use umbra_mmu::tables::HeapTables;

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
