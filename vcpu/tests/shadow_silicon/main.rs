//! The silicon as oracle of the shadow MMU: random guest page tables, random accesses at CPL 3. The real CPU on the
//! shadow tables, the model of the hardware on the same, and the guest walker and the model on the guest's own tables
//! must come to the same outcome, error code and CR2.
//!
//! `UMBRA_WALK_CASES` sets the number of accesses, `UMBRA_WALK_SEED` the seed.
#![cfg(target_arch = "x86_64")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test that draws numbers and cuts them to size"
)]

mod machine;
#[path = "../emulate_silicon/rng.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod rng;

use machine::{LARGE, Machine, PAGES, Seen, TABLE_PAGES};
use rng::Rng;
use std::collections::BTreeMap;
use umbra_mmu::shadow::ShadowVcpu;
use umbra_mmu::x86::{Access, AccessKind, GuestCpu, PagingMode, PagingRegs, PagingState, Privilege};

const DEFAULT_CASES: u64 = 3_000;
const DEFAULT_SEED: u64 = 0x7761_6c6b;
/// Accesses to one set of tables.
const PER_WORLD: u64 = 40;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

#[test]
fn silicon_on_shadow_tables_agrees_with_every_walker() {
    let mut machine = match Machine::new() {
        Ok(machine) => machine,
        Err(why) => {
            println!("skipped: no usable KVM ({why})");
            return;
        }
    };
    let cases = number("UMBRA_WALK_CASES", DEFAULT_CASES);
    let seed = number("UMBRA_WALK_SEED", DEFAULT_SEED);
    println!("seed {seed}, {cases} cases");
    let mut rng = Rng::new(seed);
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    let mut done = 0;
    while done < cases {
        let mode = rng.pick(&[
            PagingMode::Level4,
            PagingMode::Level4,
            PagingMode::Pae,
            PagingMode::Bits32,
        ]);
        done += world(&mut machine, &mut rng, mode, &mut seen);
    }
    println!("{done} cases, {} exits", machine.exits);
    for (outcome, count) in &seen {
        println!("{count:8}  {outcome}");
    }
    for mode in ["Level4", "Pae", "Bits32"] {
        for outcome in [
            "Ram",
            "Ram, large",
            "Mmio",
            "Fault(4)",
            "Fault(5)",
            "Fault(7)",
            "Tracked",
            "ReadOnly",
        ] {
            let name = format!("{mode} {outcome}");
            assert!(cases < DEFAULT_CASES || seen.contains_key(&name), "never seen: {name}");
        }
    }
    for page in [
        "Level4 page of 1048576 KiB",
        "Level4 page of 2048 KiB",
        "Pae page of 2048 KiB",
        "Bits32 page of 4096 KiB",
    ] {
        assert!(cases < DEFAULT_CASES || seen.contains_key(page), "never seen: {page}");
    }
    for feature in machine.lacking() {
        println!("skipped: {feature} (the CPU of a KVM VM doesn't have it here); the model alone covers it");
    }
}

/// One set of tables and the accesses to it. Returns how many accesses.
fn world(machine: &mut Machine, rng: &mut Rng, mode: PagingMode, seen: &mut BTreeMap<String, u64>) -> u64 {
    let root = 1 << 12;
    machine.new_world(mode, root);
    let mut regs = registers(rng, mode, root);
    for page in 1..TABLE_PAGES {
        for slot in places(mode) {
            // The code's own entry stays.
            if page == 1 && mode == PagingMode::Pae && slot == 3 {
                continue;
            }
            let value = entry(rng, mode, page);
            machine.put64(page << 12 | slot << 3, value);
        }
    }
    if !machine.load_pdptes(&mut regs) {
        return 0;
    }
    let mut vcpu = ShadowVcpu::new(PagingState::new(&regs));
    let mut count = 0;
    for _ in 0..PER_WORLD {
        let gva = address(rng, mode);
        match rng.below(12) {
            0 => {
                let (page, slot) = (2 + rng.below(TABLE_PAGES - 2), rng.pick(&places(mode)));
                let value = entry(rng, mode, page);
                let bytes = if mode == PagingMode::Bits32 { 4 } else { 8 };
                machine.device_writes(page << 12 | slot << 3, value, bytes);
            }
            1 => machine.invlpg(&mut vcpu, gva),
            2 => machine.zap_page(1 + rng.below(PAGES - 1)),
            3 => vcpu.set_state(PagingState::new(&regs)),
            _ => {}
        }
        let kind = rng.pick(&[AccessKind::Read, AccessKind::Write, AccessKind::Fetch]);
        let access = Access::new(kind, Privilege::User);
        let gva = gva | if kind == AccessKind::Fetch { 0 } else { 0x800 } | rng.below(64) << 3;
        let context = |what: &str| format!("{kind:?} of {gva:#x} under {regs:x?}: {what}");
        let expected = machine
            .expected(&regs, gva, access)
            .unwrap_or_else(|why| panic!("{}", context(&why)));
        if let (AccessKind::Fetch, Seen::Ram(gpa)) = (kind, expected)
            && !machine.holds_code(gpa)
        {
            continue;
        }
        let got = machine
            .access(&mut vcpu, &regs, gva, access)
            .unwrap_or_else(|why| panic!("{}", context(&why)));
        if kind == AccessKind::Write && matches!(got, Seen::Ram(gpa) if gpa >> 12 < TABLE_PAGES) {
            // A table of the last level, written without our knowledge. A guest flushes then.
            vcpu.set_state(PagingState::new(&regs));
        }
        let plain = if let Seen::Tracked(gpa) = got {
            Seen::Ram(gpa)
        } else {
            got
        };
        assert_eq!(plain, expected, "{}", context("the shadow differs"));
        *seen.entry(format!("{mode:?} {}", name(got))).or_default() += 1;
        if matches!(got, Seen::Ram(_) | Seen::Tracked(_)) {
            let bytes = machine.page_bytes(&regs, gva, access);
            *seen.entry(format!("{mode:?} page of {} KiB", bytes >> 10)).or_default() += 1;
        }
        count += 1;
    }
    count
}

fn name(seen: Seen) -> String {
    match seen {
        Seen::Ram(gpa) if LARGE.contains(&(gpa >> 12)) => "Ram, large".to_owned(),
        Seen::Ram(_) => "Ram".to_owned(),
        Seen::Tracked(_) => "Tracked".to_owned(),
        Seen::ReadOnly(_) => "ReadOnly".to_owned(),
        Seen::Mmio(_) => "Mmio".to_owned(),
        Seen::Fault(code) => format!("Fault({code:x})"),
    }
}

/// Words of a table page that addresses lead to.
fn places(mode: PagingMode) -> Vec<u64> {
    if mode == PagingMode::Bits32 {
        vec![0, 1, 128, 129, 256, 257]
    } else {
        vec![0, 1, 2, 3]
    }
}

fn address(rng: &mut Rng, mode: PagingMode) -> u64 {
    let mut part = |shift: u32, bound: u64| rng.below(bound) << shift;
    match mode {
        PagingMode::Level4 => part(12, 4) | part(21, 4) | part(30, 4) | part(39, 3),
        PagingMode::Pae => part(12, 4) | part(21, 4) | part(30, 3),
        // Bit 21 tells the halves of a table of 1024 entries, bits 31-30 the quarters of the directory.
        _ => part(12, 4) | part(21, 2) | part(22, 2) | part(30, 3),
    }
}

/// Pages with tables one level below those of table page `page`; nothing if that has leaves.
fn tables_below(mode: PagingMode, page: u64) -> std::ops::Range<u64> {
    match (mode, page) {
        (PagingMode::Level4, 1) => 2..4,
        (PagingMode::Level4, 2 | 3) => 4..6,
        (PagingMode::Level4, 4 | 5) => 6..TABLE_PAGES,
        (PagingMode::Pae, 1) => 2..5,
        (PagingMode::Pae, 2..5) => 5..TABLE_PAGES,
        (PagingMode::Bits32, 1) => 2..TABLE_PAGES,
        _ => 0..0,
    }
}

/// Entries of table page `page` that are mostly well-formed and mostly lead where they should, but now and then anywhere,
/// with any flags, as a large page, or with any bit wrong.
fn entry(rng: &mut Rng, mode: PagingMode, page: u64) -> u64 {
    let below = tables_below(mode, page);
    if mode == PagingMode::Pae && page == 1 {
        // Other bits of a PDPTE make the load of CR3 fail.
        return rng.pick(&[2, 3, 4, 5]) << 12 | u64::from(rng.chance(90));
    }
    let one = |rng: &mut Rng| {
        let page = match rng.below(24) {
            0..=20 if !below.is_empty() => below.start + rng.below(below.end - below.start),
            0..=18 => TABLE_PAGES + rng.below(PAGES - TABLE_PAGES),
            19..=21 => 1 + rng.below(TABLE_PAGES - 1),
            22 => 0x3_0000,
            _ => rng.below(1 << 20),
        };
        let flags = match rng.below(24) {
            0..=11 => 0x67,
            13..=15 => 0x07,
            16 | 17 => 0x65,
            18 => 0x63,
            19 => 0x27,
            // A large page, aligned: partly memory and partly not, or all of it.
            12 | 20 => return rng.pick(&[0xe7, 0xe5, LARGE.start << 12 | 0xe7, LARGE.start << 12 | 0xe5]),
            _ => rng.below(0x200),
        };
        page << 12 | flags
    };
    if mode == PagingMode::Bits32 {
        return (one(rng) & 0xffff_ffff) | one(rng) << 32;
    }
    let odd = match rng.below(24) {
        0 => 1 << 63,
        1 => 1 << rng.below(64),
        2 => 1 << (46 + rng.below(6)),
        _ => 0,
    };
    one(rng) ^ odd
}

fn registers(rng: &mut Rng, mode: PagingMode, root: u64) -> PagingRegs {
    let pick = |rng: &mut Rng, bit: u32| rng.below(2) << bit;
    let (pae, lma) = match mode {
        PagingMode::Level4 => (1 << 5, 1 << 10),
        PagingMode::Pae => (1 << 5, 0),
        _ => (0, 0),
    };
    PagingRegs {
        cr0: 1 << 31 | pick(rng, 16),
        cr3: root,
        // PSE, SMEP, SMAP: the latter two must not matter at CPL 3.
        cr4: pae | pick(rng, 4) | pick(rng, 20) | pick(rng, 21),
        efer: lma | pick(rng, 11),
        rflags: 2,
        pkru: 0,
        pdptes: [0; 4],
        cpu: GuestCpu {
            physical_bits: rng.pick(&[36, 40, 46]),
            gigabyte_pages: rng.chance(50),
            pse36: rng.chance(50),
            upper_global_reserved: rng.chance(50),
        },
    }
}
