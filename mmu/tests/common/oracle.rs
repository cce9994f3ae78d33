//! A random guest's steps, made on shadow tables walked by the model of the hardware, and what is checked after each. Whoever
//! draws the steps includes this: the property test and the fuzz target.

#![allow(dead_code, reason = "each user has a part of it")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use crate::common::{AC, LA57, LMA, NXE, PAE, PG, PKE, PSE, SMAP, SMEP, WP, regs};
use crate::machine::{self, Machine, Seen, vcpu};
use crate::stale::{History, known};
use std::collections::{BTreeMap, BTreeSet};
use umbra_memslots::{GfnRange, Gva};
use umbra_mmu::guest_walk::{PdpteLoad, load_pdptes};
use umbra_mmu::shadow::{BitSpan, DirtyLog, GenerationSpans, HostParams, InvPcid, ShadowVcpu};
use umbra_mmu::x86::{Access, AccessKind, GuestCpu, PagingMode, PagingRegs, PagingState, Privilege};

/// Like `assert!`, but the caller gets the sentence.
macro_rules! ensure {
    ($condition:expr, $($sentence:tt)+) => {
        if !$condition {
            return Err(format!($($sentence)+));
        }
    };
}

pub const PAGES: u64 = 12;
pub const VCPUS: usize = 4;

#[derive(Clone, Debug)]
pub enum Step {
    /// An access; if it writes, this goes there (and a table changes, if it is one).
    Access {
        vcpu: usize,
        parts: [u64; 6],
        access: usize,
        value: u64,
    },
    /// A device writes an entry.
    Device { page: u64, index: u64, value: u64 },
    /// INVLPG.
    Invlpg { vcpu: usize, parts: [u64; 6] },
    /// CR3 is loaded for another PCID, with bit 63 set or not.
    LoadCr3 { vcpu: usize, pcid: u16, keep: bool },
    /// INVPCID of this type.
    Invpcid {
        vcpu: usize,
        kind: u8,
        pcid: u16,
        parts: [u64; 6],
    },
    /// CR3 and the control bits.
    Registers {
        vcpu: usize,
        mode: u8,
        root: u64,
        bits: u64,
        pkru: u32,
    },
    /// Slots appear, vanish, become read-only.
    Slots { present: u64, read_only: u64 },
    /// The log of dirty pages is switched.
    Log(DirtyLog),
    /// It is read.
    ReadLog,
    /// The accessed flags of leaves are cleared.
    Age,
    /// Everything is zapped.
    ZapAll,
}

impl Step {
    /// The same step, for a guest whose tables are in order: it changes those of the last level and the data.
    fn in_order(self, own_mode: u8) -> Self {
        match self {
            Self::Access {
                vcpu,
                parts,
                access,
                value,
            } => Self::Access {
                vcpu,
                parts,
                access,
                value: leaf_entry(own_mode, value),
            },
            Self::Device { page, index, value } => Self::Device {
                page: 4 + page % 8,
                index,
                value: leaf_entry(own_mode, value),
            },
            Self::Registers {
                vcpu, mode, bits, pkru, ..
            } => {
                let mode = if bits >> 32 & 7 == 0 { mode } else { own_mode };
                Self::Registers {
                    vcpu,
                    mode,
                    root: root_page(mode),
                    // Few roles.
                    bits: bits & (bits >> 16),
                    pkru,
                }
            }
            Self::Slots { present, read_only } => Self::Slots {
                present: present | 0x3f,
                read_only: read_only & !0x3f,
            },
            other => other,
        }
    }
}

/// An entry for the last level that leads to the tables there as often as to anything else.
pub fn leaf_entry(mode: u8, value: u64) -> u64 {
    let tame = |value: u64| {
        let (page, flags) = (value >> 12 & 0xf, value & !0xffff);
        let page = if page < PAGES { 4 + page % 6 } else { page };
        flags | page << 12 | if value >> 4 & 7 == 0 { 0x67 } else { value & 0xfff }
    };
    if mode == 2 {
        tame(value & 0xffff_ffff) & 0xffff_ffff | tame(value >> 32) << 32
    } else {
        tame(value)
    }
}

/// Small indices at each level of the mode.
pub fn address(mode: PagingMode, parts: [u64; 6]) -> u64 {
    let [a, b, c, d, e, offset] = parts;
    offset << 3
        | match mode {
            // Bit 21 tells the halves of a table of 1024 entries, bits 31-30 the quarters of the directory.
            PagingMode::None | PagingMode::Bits32 => a << 12 | (c & 1) << 21 | b << 22 | d << 30,
            PagingMode::Pae => a << 12 | b << 21 | c << 30,
            PagingMode::Level4 => a << 12 | b << 21 | c << 30 | d << 39,
            PagingMode::Level5 => a << 12 | b << 21 | c << 30 | d << 39 | e << 48,
        }
}

pub fn registers(ram: &machine::Ram, mode: u8, root: u64, bits: u64, pkru: u32) -> PagingRegs {
    let mut regs = regs(if mode == 1 { 4 } else { mode }, root << 12);
    let pick = |index: u32, bit: u64| if bits >> index & 1 == 1 { bit } else { 0 };
    regs.cr4 |= pick(0, PSE) | pick(1, SMEP) | pick(2, SMAP);
    regs.efer |= pick(3, NXE);
    regs.rflags |= pick(4, AC);
    if regs.efer & LMA != 0 {
        regs.cr4 |= pick(5, PKE);
    }
    // With SMAP or keys, CR0.WP = 0 makes KVM's way of shadowing (and ours) inexact: see with_wp_fixup.
    regs.cr0 |= if regs.cr4 & (SMAP | PKE) != 0 { WP } else { pick(6, WP) };
    regs.pkru = pkru;
    regs.cpu = GuestCpu {
        physical_bits: 46,
        gigabyte_pages: true,
        pse36: true,
        upper_global_reserved: false,
    };
    assert!(regs.cr0 & PG != 0 || mode == 0);
    assert!(regs.cr4 & LA57 == 0 || regs.cr4 & PAE != 0);
    regs.pdptes = match load_pdptes(&regs, ram) {
        PdpteLoad::Loaded(pdptes) => pdptes,
        // A guest would get #GP. This one has loaded something similar instead.
        _ => [0, 1, 2, 3].map(|index| ram.memory.get(regs.cr3 + 8 * index) & 0x1_f001),
    };
    regs
}

/// All memory that there can be.
fn everything() -> GfnRange {
    machine::range(0, 1 << 20)
}

/// Whatever was written since the log was last read is in it.
fn read_log(machine: &mut Machine, written: &mut BTreeSet<u64>) -> Result<(), String> {
    let log = machine.ram.log.get();
    let dirty: BTreeSet<u64> = match log {
        DirtyLog::Off => return Ok(()),
        DirtyLog::WriteProtection => {
            let dirty = machine.ram.dirty.take();
            machine.mmu.start_logging(&mut machine.tlb, everything(), log);
            dirty
        }
        DirtyLog::DirtyFlags => {
            let dirty = machine.mmu.collect_dirty(&mut machine.tlb, everything());
            dirty.into_iter().map(umbra_memslots::Gfn::get).collect()
        }
    };
    ensure!(
        written.is_subset(&dirty),
        "{:x?} were written, {:x?} logged",
        written,
        dirty
    );
    written.clear();
    Ok(())
}

/// A CPU and what it flushed when.
struct Cpu {
    own: ShadowVcpu,
    regs: PagingRegs,
    nested: bool,
    pcid: u16,
    /// By PCID.
    flushed: [u64; 3],
    /// By PCID and page number.
    invalidated: BTreeMap<(u16, u64), u64>,
}

impl Cpu {
    fn new(regs: PagingRegs, nested: bool) -> Self {
        let own = if nested {
            ShadowVcpu::nested(PagingState::new(&regs), umbra_mmu::NoObserver)
        } else {
            vcpu(&regs)
        };
        Self {
            own,
            regs,
            nested,
            pcid: 0,
            flushed: [0; 3],
            invalidated: BTreeMap::new(),
        }
    }

    fn flushed(&self, gva: u64) -> u64 {
        let page = self.invalidated.get(&(self.pcid, gva >> 12)).copied();
        page.unwrap_or(0).max(self.flushed[usize::from(self.pcid)])
    }
}

fn checked_access(
    machine: &mut Machine,
    history: &History,
    cpu: &mut Cpu,
    gva: u64,
    access: Access,
) -> Result<Seen, String> {
    let Cpu { own, regs, .. } = cpu;
    let before = machine.ram.memory.contents();
    let expected = machine.oracle(regs, gva, access);
    let flagged = machine.ram.memory.contents();
    machine.ram.memory.restore(&before);
    let seen = machine.access(own, regs, gva, access);
    let plain = if let Seen::Tracked(gpa) = seen {
        Seen::Ram(gpa)
    } else {
        seen
    };
    let after = machine.ram.memory.contents();
    if plain == expected && after == flagged {
        return Ok(seen);
    }
    let since = cpu.flushed(gva);
    let known = known(machine, history, since, &cpu.regs, gva, access);
    let allowed = plain == expected || known.pages.contains(&plain) || known.incomplete;
    ensure!(
        allowed,
        "{:?} instead of {:?} or {:x?}, of {:?} to {:#x} under {:x?}",
        seen,
        expected,
        known.pages,
        access,
        gva,
        cpu.regs
    );
    ensure!(
        after == flagged || (known.changed && after == before),
        "accessed and dirty flags differ after {:?} to {:#x}",
        access,
        gva
    );
    Ok(seen)
}

pub fn run(mode: u8, steps: Vec<Step>, entries: &[u64], setting: Setting) -> Result<(), String> {
    let Setting {
        tables,
        tiny,
        orderly,
        large,
        ahead,
        nested,
    } = setting;
    let mut host = HostParams::x86(46);
    if tiny {
        let spans = GenerationSpans {
            low: BitSpan::new(3, 3).unwrap(),
            high: BitSpan::new(52, 52).unwrap(),
        };
        host = host.with_generation(spans);
    }
    let mut machine = Machine::new(host, PAGES, tables);
    machine.ram.low_large.set(large);
    machine.ram.high.set(large);
    machine.ram.at_hand.set(ahead);
    machine.ram.largest.set(if large { 2 } else { 1 });
    fill(&machine, mode, entries);
    if orderly {
        arrange(&machine, mode);
    }
    let first_root = if orderly { root_page(mode) } else { 1 };
    let first = registers(&machine.ram, mode, first_root, 0, 0);
    let mut cpus: Vec<Cpu> = (1..=VCPUS)
        .map(|number| Cpu::new(first, nested && mode == 4 && number == VCPUS))
        .collect();
    let mut written = BTreeSet::new();
    let mut history = History::new(&machine.ram.memory);
    for step in steps {
        let step = if orderly { step.in_order(mode) } else { step };
        match step {
            Step::Access {
                vcpu,
                parts,
                access,
                value,
            } => {
                let cpu = &mut cpus[vcpu];
                let gva = address(PagingMode::of(&cpu.regs), parts);
                let mut access = Access::ALL[access];
                if cpu.nested {
                    access.privilege = Privilege::User;
                }
                let seen = checked_access(&mut machine, &history, cpu, gva, access)?;
                if access.kind == AccessKind::Write {
                    match seen {
                        // Through the mapping: the MMU doesn't get to know of it.
                        Seen::Ram(gpa) => {
                            written.insert(gpa >> 12);
                            if gpa >> 12 < PAGES {
                                machine.ram.memory.set(gpa, value);
                            }
                        }
                        // Memory that holds nothing.
                        Seen::Tracked(gpa) if gpa >> 12 >= PAGES => {}
                        Seen::Tracked(gpa) if mode == 2 => machine.writes_halves(gpa & !7, value),
                        Seen::Tracked(gpa) => machine.writes(gpa & !7, value),
                        _ => {}
                    }
                }
            }
            Step::Device { page, index, value } if mode == 2 => {
                machine.writes_halves(page << 12 | index << 3, value);
            }
            Step::Device { page, index, value } => machine.writes(page << 12 | index << 3, value),
            Step::Invlpg { vcpu, parts } => {
                let cpu = &mut cpus[vcpu];
                let gva = address(PagingMode::of(&cpu.regs), parts);
                machine.mmu.invlpg(
                    &mut cpu.own,
                    &*machine.ram,
                    &mut machine.frames(),
                    &mut machine.tlb,
                    Gva::new(gva),
                );
                cpu.invalidated.insert((cpu.pcid, gva >> 12), history.now());
            }
            Step::LoadCr3 { vcpu, pcid, keep } => {
                let cpu = &mut cpus[vcpu];
                cpu.own.load_cr3(PagingState::new(&cpu.regs), pcid, keep);
                cpu.pcid = pcid;
                if !keep {
                    cpu.flushed[usize::from(pcid)] = history.now();
                }
            }
            Step::Invpcid {
                vcpu,
                kind,
                pcid,
                parts,
            } => {
                let cpu = &mut cpus[vcpu];
                let gva = address(PagingMode::of(&cpu.regs), parts);
                let what = match kind {
                    0 => InvPcid::Address {
                        pcid,
                        gva: Gva::new(gva),
                    },
                    1 => InvPcid::Context { pcid },
                    _ => InvPcid::All,
                };
                machine.mmu.invpcid(
                    &mut cpu.own,
                    &*machine.ram,
                    &mut machine.frames(),
                    &mut machine.tlb,
                    what,
                );
                match kind {
                    0 => drop(cpu.invalidated.insert((pcid, gva >> 12), history.now())),
                    1 => cpu.flushed[usize::from(pcid)] = history.now(),
                    _ => cpu.flushed = [history.now(); 3],
                }
            }
            Step::Registers {
                vcpu,
                mode,
                root,
                bits,
                pkru,
            } => {
                let cpu = &mut cpus[vcpu];
                let mode = if cpu.nested { 4 } else { mode };
                cpu.regs = registers(&machine.ram, mode, root, bits, pkru);
                if cpu.nested {
                    // Not for nested walks.
                    cpu.regs.cr4 &= !(SMEP | SMAP | PKE);
                }
                cpu.own.set_state(PagingState::new(&cpu.regs));
                cpu.flushed = [history.now(); 3];
            }
            Step::Slots { present, read_only } => machine.set_slots(present, read_only),
            Step::Log(log) => {
                read_log(&mut machine, &mut written)?;
                machine.ram.log.set(log);
                machine.ram.dirty.borrow_mut().clear();
                machine.mmu.start_logging(&mut machine.tlb, everything(), log);
                let mut frames = machine::Frames(machine.ram.clone());
                machine.mmu.recover_large(&mut frames, &mut machine.tlb, everything());
                written.clear();
            }
            Step::ReadLog => read_log(&mut machine, &mut written)?,
            Step::Age => drop(machine.mmu.collect_accessed(everything())),
            Step::ZapAll => machine.mmu.zap_all(&mut umbra_mmu::NoObserver, &mut machine.tlb),
        }
        ensure!(machine.mmu.tables_in_use() <= tables, "more tables than there are");
        history.tick(&machine.ram.memory);
    }
    machine.mmu.zap_all(&mut umbra_mmu::NoObserver, &mut machine.tlb);
    let left = (machine.mmu.tables_in_use(), machine.mmu.leaves());
    ensure!(left == (0, 0), "something leaked: {:?}", left);
    Ok(())
}

#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// How many shadow pages there can be.
    pub tables: u32,
    /// Generations wrap soon.
    pub tiny: bool,
    /// Each page is a table of one level, or data.
    pub orderly: bool,
    /// There is memory for large leaves.
    pub large: bool,
    /// Pages are mapped ahead of their use.
    pub ahead: bool,
    /// The last vCPU runs a guest's guest: its tables are nested tables.
    pub nested: bool,
}

/// Where the root is if the tables are in order: those of the last level are pages 4 and 5.
pub fn root_page(mode: u8) -> u64 {
    let levels = if mode == 1 { 4 } else { mode };
    5 - u64::from(levels.max(1))
}

/// Makes each page above the last level one table of one level.
pub fn arrange(machine: &Machine, mode: u8) {
    let memory = &machine.ram.memory;
    for page in root_page(mode)..4 {
        for word in words(mode) {
            let below = if page == 3 { 4 + word % 2 } else { page + 1 };
            // PDPTEs have fewer flags.
            let entry = below << 12 | if mode == 3 && page == 2 { 1 } else { 0x67 };
            let both = if mode == 2 { entry << 32 } else { 0 };
            memory.set(page << 12 | word << 3, entry | both);
        }
    }
    for page in 4..6u64 {
        for word in words(mode) {
            let at = page << 12 | word << 3;
            memory.set(at, leaf_entry(mode, memory.get(at)));
        }
    }
}

/// Writes the entries to the words of all pages that addresses lead to.
pub fn fill(machine: &Machine, mode: u8, entries: &[u64]) {
    let words = words(mode);
    let places = (0..PAGES).flat_map(|page| words.iter().map(move |word| page << 12 | word << 3));
    for (place, &entry) in places.zip(entries) {
        machine.ram.memory.set(place, entry);
    }
}

/// The words of a table that addresses lead to.
pub fn words(mode: u8) -> &'static [u64] {
    match mode {
        2 => &[0, 1, 128, 129, 256, 257, 384, 385],
        // All four PDPTEs.
        3 => &[0, 1, 2, 3],
        _ => &[0, 1, 2],
    }
}
