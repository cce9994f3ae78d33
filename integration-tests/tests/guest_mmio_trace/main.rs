//! KVM's own trace agrees: for the same gfn, access and generation, our MMIO SPTE has the bits of KVM's.
//!
//! `mark_mmio_spte` says for what an SPTE was made, `check_mmio_spte` prints the SPTE that a later fault found, and
//! with nested paging `kvm_tdp_mmu_spte_changed` prints it as it is made. Needs a KVM with MMIO caching and the
//! `kvmmmu` tracepoints: the lab has one.
#![expect(unsafe_code, reason = "KVM_SET_USER_MEMORY_REGION is told a raw address")]

mod machine;

use kvm_ioctls::Kvm;
use machine::{Machine, Paging, Target};
use std::collections::{BTreeMap, BTreeSet};
use umbra_integration_tests::trace::{Event, Session};
use umbra_memslots::{Generation, Gfn};
use umbra_mmu::AccessMask;
use umbra_mmu::mmio::{Freshness, MmioGen, MmioSpte};
use umbra_mmu::shadow::{CpuidResult, EntryFormat, HostParams, SpteLayout};

const EVENTS: [&str; 4] = [
    "kvmmmu/mark_mmio_spte",
    "kvmmmu/check_mmio_spte",
    "kvmmmu/handle_mmio_page_fault",
    "kvmmmu/kvm_tdp_mmu_spte_changed",
];

/// Slot updates between two rounds of touching, so that the generations are spread over the low and the high part of
/// their bits in the SPTE. Removing a slot makes KVM forget all SPTEs; a round of one adds one, which leaves stale ones.
const ROUNDS: [u32; 8] = [0, 1, 3, 1, 201, 1, 901, 1];

/// A KVM that can be asked, or why there is none.
fn oracle() -> Result<(Kvm, Session), String> {
    let kvm = Kvm::new().map_err(|error| format!("/dev/kvm: {error}"))?;
    let caching = std::fs::read_to_string("/sys/module/kvm/parameters/mmio_caching").unwrap_or_default();
    if caching.trim() != "Y" {
        return Err("this KVM does not cache MMIO (mmio_caching)".to_owned());
    }
    let session = Session::start(&EVENTS).map_err(|error| error.to_string())?;
    Ok((kvm, session))
}

/// The layout that KVM must have on this machine.
fn host_layout() -> SpteLayout {
    let cpuid = |leaf| {
        let answer = std::arch::x86_64::__cpuid(leaf);
        CpuidResult {
            eax: answer.eax,
            ebx: answer.ebx,
            ecx: answer.ecx,
            edx: answer.edx,
        }
    };
    SpteLayout::new(HostParams::from_cpuid(EntryFormat::X86, cpuid)).expect("this machine exists")
}

/// Whether guest tables are shadowed, so that their access gets into the SPTEs.
fn shadow_paging() -> bool {
    let npt = std::fs::read_to_string("/sys/module/kvm_amd/parameters/npt");
    npt.is_ok_and(|npt| npt.trim() == "N")
}

/// What the trace of one guest must satisfy, event by event.
struct Comparison {
    layout: SpteLayout,
    /// The last SPTE made for each gfn, as we encode it.
    made: BTreeMap<Gfn, MmioSpte>,
    /// What the last `check_mmio_spte` showed, until the fault it belongs to is handled.
    checked: Option<MmioSpte>,
    generations: BTreeSet<u32>,
    /// The generations of the SPTEs made in this round.
    round: BTreeSet<u32>,
    seen: BTreeSet<(Gfn, u8)>,
    /// SPTEs printed by KVM that were compared bit for bit.
    raw: u32,
    stale: u32,
}

impl Comparison {
    fn new() -> Self {
        Self {
            layout: host_layout(),
            made: BTreeMap::new(),
            checked: None,
            generations: BTreeSet::new(),
            round: BTreeSet::new(),
            seen: BTreeSet::new(),
            raw: 0,
            stale: 0,
        }
    }

    fn take(&mut self, event: &Event) {
        let spans = self.layout.generation_spans();
        match *event {
            Event::MarkMmioSpte {
                gfn,
                access,
                generation,
            } => {
                let cut = MmioGen::cut(Generation::from_raw(u64::from(generation)), spans);
                let spte = MmioSpte::encode(&self.layout, gfn, access, cut).expect("KVM made one, so can we");
                self.made.insert(gfn, spte);
                self.generations.insert(generation);
                self.round.insert(generation);
                self.seen.insert((gfn, access.bits()));
            }
            Event::CheckMmioSpte {
                spte,
                kvm_generation,
                spte_generation,
                valid,
            } => {
                let ours = MmioSpte::recognise(&self.layout, spte).expect("an MMIO SPTE");
                let gfn = ours.gfn(&self.layout);
                assert_eq!(self.made.get(&gfn).map(|made| made.raw()), Some(spte), "{event:?}");
                assert_eq!(ours.generation(&self.layout).get(), spte_generation, "{event:?}");
                let current = Generation::from_raw(u64::from(kvm_generation));
                assert_eq!(
                    ours.check(&self.layout, current) == Freshness::Fresh,
                    valid,
                    "{event:?}"
                );
                self.checked = Some(ours);
                self.raw += 1;
                self.stale += u32::from(!valid);
            }
            Event::HandleMmioPageFault { gfn, access, .. } => {
                let ours = self.checked.take().expect("checked before it is handled");
                assert_eq!((ours.gfn(&self.layout), ours.access(&self.layout)), (gfn, access));
            }
            Event::TdpMmuSpteChanged { gfn, level: 1, new, .. } => {
                if let Some(ours) = MmioSpte::recognise(&self.layout, new) {
                    // KVM prints this one before `mark_mmio_spte`: take it apart and put it together again.
                    let facts = ours.facts(&self.layout);
                    assert_eq!(facts.gfn, gfn, "{event:?}");
                    let again = MmioSpte::encode(&self.layout, facts.gfn, facts.access, facts.generation);
                    assert_eq!(again.map(MmioSpte::raw), Some(new), "{event:?}");
                    self.raw += 1;
                }
            }
            _ => {}
        }
    }
}

/// Touches every target in every round, several times: after the first time it is not the vCPU's last MMIO page any
/// more, so that KVM must find the SPTE.
fn touch_all(kvm: &Kvm, session: &Session, paging: Paging, targets: &[Target]) -> Comparison {
    let mut machine = Machine::new(kvm, paging, targets).expect("KVM makes a machine");
    let mut comparison = Comparison::new();
    let mut spare = false;
    for updates in ROUNDS {
        for _ in 0..updates {
            let done = if spare {
                machine.remove_spare_slot()
            } else {
                machine.add_spare_slot()
            };
            done.expect("KVM takes the slot");
            spare = !spare;
        }
        for write in [false, false, true] {
            for (index, target) in targets.iter().enumerate() {
                if write && !target.access.contains(AccessMask::WRITE) {
                    continue;
                }
                let exit = machine.touch(index, write).expect("KVM runs the guest");
                let direction = if write { "write" } else { "read" };
                assert_eq!(
                    exit,
                    format!("{direction} {:#x}", target.gfn.base().get()),
                    "{target:?}"
                );
            }
        }
        comparison.round = BTreeSet::new();
        for event in session.take().expect("the trace can be read") {
            comparison.take(&event);
        }
        let ours = MmioGen::cut(machine.generation(), comparison.layout.generation_spans());
        assert_eq!(
            comparison.round,
            BTreeSet::from([ours.get()]),
            "generations of this round"
        );
    }
    comparison
}

/// Frames in every part of a 40-bit address space, none of them RAM.
const GFNS: [u64; 8] = [
    0x200,
    0xd0000,
    0xfebc1,
    0xfffff,
    0x0010_0000,
    0x0345_6789,
    0x0800_0000,
    0x0fff_fffe,
];

#[test]
fn mmio_spte_same_bits_as_kvm() {
    let (kvm, session) = match oracle() {
        Ok(oracle) => oracle,
        Err(why) => {
            println!("skipped: {why}");
            return;
        }
    };
    let target = |gfn, access| Target {
        gfn: Gfn::from_masked(gfn),
        access,
    };
    // Paging off reaches 4 GiB, and everything is allowed there.
    let flat: Vec<Target> = GFNS[..4].iter().map(|&gfn| target(gfn, AccessMask::ALL)).collect();
    // Every access that tables can express, each on a frame of its own.
    let paged: Vec<Target> = (0..8_u8)
        .map(|bits| target(GFNS[usize::from(bits)], AccessMask::from_masked(bits)))
        .collect();
    for (paging, targets) in [(Paging::Off, &flat), (Paging::Long, &paged)] {
        let found = touch_all(&kvm, &session, paging, targets);
        println!(
            "{paging:?}: {} SPTEs of KVM compared, {} gfns, {} of them stale when found, generations {:x?}, accesses {:x?}",
            found.raw,
            found.made.len(),
            found.stale,
            found.generations,
            found.seen.iter().map(|(_, access)| access).collect::<BTreeSet<_>>()
        );
        assert_eq!(found.made.len(), targets.len());
        assert!(found.raw as usize >= targets.len() * ROUNDS.len(), "{}", found.raw);
        assert!(found.stale as usize >= targets.len() * 4, "{}", found.stale);
        assert!(found.generations.iter().any(|generation| *generation > 0xff));
        if paging == Paging::Long && shadow_paging() {
            // The low three bits of an SPTE: present, and each combination of write and user.
            let accesses: BTreeSet<u8> = found.seen.iter().map(|(_, access)| *access).collect();
            assert_eq!(accesses, BTreeSet::from([1, 3, 5, 7]));
        }
    }
}
