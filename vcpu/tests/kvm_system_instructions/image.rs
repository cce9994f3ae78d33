//! The memory that a program begins with – descriptor tables, task states, handlers, stacks, data – and the state of
//! the CPU. Most of it is always the same, so that programs get somewhere; parts are drawn anew for each case.

use super::mode::Mode;
use super::rng::Rng;
use umbra_vcpu::emulate::CpuState;
use umbra_vcpu::emulate::flags::VM;
use umbra_vcpu::emulate::state::{RSP, cr0, cr4, efer};
use umbra_vcpu::regs::{DescriptorTable, Segment};

/// Memory that is compared. Guest RAM goes on behind it, unused.
pub const SIZE: usize = 0x1_8000;

pub const GDT: u64 = 0x1000;
pub const GDT_LIMIT: u16 = 0x1ff;
pub const LDT: u64 = 0x1800;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
const TSS_LIMIT: u32 = 0xff;
/// Offset of the I/O permission bitmap in the TSS.
const BITMAP: u64 = 0x68;
/// A handler for each vector: `hlt`, which ends the program.
pub const STUBS: u64 = 0x4000;
/// Handlers that return: `iret` of 16, 32 and 64 bits.
pub const RETURNS: u64 = 0x5000;
pub const CODE: u64 = 0x6000;
/// A page of `hlt`: where far transfers go.
pub const TARGET: u64 = 0x7000;
pub const STACK: u64 = 0x8800;
const STACKS: [u64; 3] = [0x9800, 0xa800, 0xb800];
const IST: u64 = 0xc800;
/// The outer stack that returns name.
pub const USER_STACK: u64 = 0xd800;
pub const DATA: u64 = 0xe000;
const PML4: u64 = 0x1_0000;
const PDPT: u64 = 0x1_1000;
const DIRECTORY: u64 = 0x1_2000;
const TABLE: u64 = 0x1_3000;
/// Not present, and not writable, with paging.
pub const UNMAPPED: u64 = 0x1_4000;
pub const READ_ONLY: u64 = 0x1_5000;

/// Entries of the GDT, by what they are for. In long mode system descriptors take two.
pub mod entry {
    pub const CODE0: u16 = 1;
    pub const DATA0: u16 = 2;
    pub const CODE3: u16 = 3;
    pub const DATA3: u16 = 4;
    pub const CODE0_16: u16 = 5;
    pub const DATA0_16: u16 = 6;
    pub const CONFORMING: u16 = 7;
    pub const TASK: u16 = 8;
    pub const TASK_FREE: u16 = 10;
    pub const LDT: u16 = 12;
    pub const CODE0_64: u16 = 14;
    pub const CODE3_64: u16 = 15;
    pub const CODE1: u16 = 16;
    pub const DATA1: u16 = 17;
    pub const READ_ONLY: u16 = 18;
    pub const EXECUTE_ONLY: u16 = 19;
    pub const DOWN: u16 = 20;
    pub const DATA_ABSENT: u16 = 21;
    pub const CODE_ABSENT: u16 = 22;
    pub const SMALL: u16 = 23;
    pub const GATE: u16 = 24;
    pub const GATE_16: u16 = 26;
    pub const GATE_DPL0: u16 = 28;
    pub const GATE_ABSENT: u16 = 30;
    pub const GATE_CONFORMING: u16 = 32;
    pub const GATE_TO_DATA: u16 = 34;
    pub const TASK_16: u16 = 36;
    pub const LDT_ABSENT: u16 = 38;
    /// For `sysret`: code of 32 bits, data, code of 64 bits.
    pub const SYSRET: u16 = 40;
    /// Whatever comes.
    pub const RANDOM: u16 = 44;
    pub const END: u16 = 64;
}

/// A vector with a gate worth a software interrupt, and what the gate leads to.
pub const VECTORS: std::ops::Range<u8> = 0x40..0x50;

/// A case before its program runs.
#[derive(Clone)]
pub struct Image {
    pub memory: Vec<u8>,
    pub state: CpuState,
}

const fn segment(limit: u64, access: u64, flags: u64) -> u64 {
    segment_at(0, limit, access, flags)
}

const fn segment_at(base: u64, limit: u64, access: u64, flags: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 15) << 48
        | flags << 52
        | (base >> 24) << 56
}

/// A gate without its upper half: type with DPL and P, selector, offset, and the byte between.
const fn gate(access: u64, selector: u16, offset: u64, middle: u64) -> u64 {
    offset & 0xffff | (selector as u64) << 16 | middle << 32 | access << 40 | (offset >> 16 & 0xffff) << 48
}

const fn selector(entry: u16) -> u16 {
    entry << 3
}

impl Image {
    /// A random image for a program of a mode.
    pub fn new(mode: Mode, rng: &mut Rng) -> Self {
        let mut image = Self {
            memory: vec![0; SIZE],
            state: CpuState::default(),
        };
        image.write_gdt(mode, rng);
        image.write_ldt();
        if mode == Mode::Real {
            image.write_vectors(rng);
        } else {
            image.put(0, &[0xf4; 0x1000]);
        }
        image.write_idt(mode, rng);
        image.write_task(mode, rng);
        image.write_code();
        image.write_data(mode, rng);
        image.write_page_tables();
        image.set_state(mode, rng);
        image
    }

    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        let start = usize::try_from(at).expect("a small address");
        self.memory[start..start + bytes.len()].copy_from_slice(bytes);
    }

    fn put64(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    fn write_gdt(&mut self, mode: Mode, rng: &mut Rng) {
        use entry as e;
        let long = mode.is_long();
        let all = 0xf_ffff;
        let accessed = |access: u64, rng: &mut Rng| access | u64::from(rng.chance(50));
        // Code that a 64-bit handler may be in.
        let flags0 = if long { 0xa } else { 0xc };
        let fixed = [
            (
                e::CODE0,
                segment(all, 0x9b, if mode == Mode::Compatibility { 0xc } else { flags0 }),
            ),
            (e::DATA0, segment(all, 0x93, 0xc)),
            (e::CODE3, segment(all, 0xfb, 0xc)),
            (e::DATA3, segment(all, 0xf3, 0xc)),
            (e::CODE0_16, segment(0xffff, accessed(0x9a, rng), 0)),
            (e::DATA0_16, segment(0xffff, accessed(0x92, rng), 0)),
            (e::CONFORMING, segment(all, accessed(0x9e, rng), flags0)),
            (e::TASK, segment_at(TSS, TSS_LIMIT.into(), 0x8b, 0)),
            (e::TASK_FREE, segment_at(TSS, TSS_LIMIT.into(), 0x89, 0)),
            (e::LDT, segment_at(LDT, 0x7f, 0x82, 0)),
            (e::CODE0_64, segment(all, accessed(0x9a, rng), 0xa)),
            (e::CODE3_64, segment(all, accessed(0xfa, rng), 0xa)),
            (e::CODE1, segment(all, accessed(0xba, rng), flags0)),
            (e::DATA1, segment(all, accessed(0xb2, rng), 0xc)),
            (e::READ_ONLY, segment(all, accessed(0xf0, rng), 0xc)),
            (e::EXECUTE_ONLY, segment(all, accessed(0xf8, rng), 0xc)),
            (e::DOWN, segment(0xf, accessed(0xf6, rng), 0xc)),
            (e::DATA_ABSENT, segment(all, 0x72, 0xc)),
            (e::CODE_ABSENT, segment(all, 0x7a, flags0)),
            (e::SMALL, segment(0x7ff, accessed(0xf2, rng), 0x4)),
            (e::GATE, gate(0xec, selector(e::CODE0), TARGET, rng.below(4))),
            (
                e::GATE_16,
                gate(
                    0xe4,
                    selector(if rng.chance(50) { e::CODE0_16 } else { e::CODE0 }),
                    TARGET,
                    rng.below(3),
                ),
            ),
            (e::GATE_DPL0, gate(0x8c, selector(e::CODE0), TARGET, 0)),
            (e::GATE_ABSENT, gate(0x6c, selector(e::CODE0), TARGET, 0)),
            (e::GATE_CONFORMING, gate(0xec, selector(e::CONFORMING), TARGET, 0)),
            (e::GATE_TO_DATA, gate(0xec, selector(e::DATA0) | 3, TARGET, 0)),
            (e::TASK_16, segment_at(TSS, 0x2b, 0x81, 0)),
            (e::LDT_ABSENT, segment_at(LDT, 0x7f, 0x02, 0)),
            (e::SYSRET, segment(all, 0xfb, 0xc)),
            (e::SYSRET + 1, segment(all, 0xf3, 0xc)),
            (e::SYSRET + 2, segment(all, 0xfb, 0xa)),
        ];
        for (entry, raw) in fixed {
            self.put64(GDT + 8 * u64::from(entry), raw);
        }
        for entry in e::RANDOM..e::END {
            let access = rng.next() & 0xff | u64::from(rng.chance(70)) << 7;
            let raw = segment(rng.next() & all, access, rng.next() & 0xf) | (rng.next() & 0x1_ffff) << 16;
            self.put64(GDT + 8 * u64::from(entry), raw);
        }
    }

    fn write_ldt(&mut self) {
        for (index, raw) in [
            (0, segment(0xf_ffff, 0xf2, 0xc)),
            (1, segment(0xf_ffff, 0x92, 0xc)),
            (2, segment(0xf_ffff, 0xfa, 0xc)),
            (3, segment(0xffff, 0xf2, 0)),
            (4, segment(0xf_ffff, 0x72, 0xc)),
        ] {
            self.put64(LDT + 8 * index, raw);
        }
    }

    /// Real mode's table of pointers to handlers.
    fn write_vectors(&mut self, rng: &mut Rng) {
        for vector in 0..256u64 {
            let (segment, offset) = match vector {
                0x40..0x48 => (0, RETURNS),
                0x48 => (0xffff, rng.next() & 0xf),
                _ => ((STUBS >> 4) - 0x100 * (vector & 1), 16 * vector + 0x1000 * (vector & 1)),
            };
            self.put(4 * vector, &((segment << 16 | offset) as u32).to_le_bytes());
        }
    }

    fn write_idt(&mut self, mode: Mode, rng: &mut Rng) {
        let long = mode.is_long();
        let size = if long { 16 } else { 8 };
        let code = selector(match mode {
            Mode::Compatibility => entry::CODE0_64,
            _ => entry::CODE0,
        });
        let stub = |vector: u8| STUBS + 16 * u64::from(vector);
        let returns = RETURNS + if long { 0x20 } else { 0x10 };
        for vector in 0..=255u8 {
            // Interrupt or trap gate, for CPL 3 where software may use it.
            let kind = 0xe | u64::from(rng.chance(30));
            let mut raw = gate(0x80 | kind, code, stub(vector), 0);
            let exception = vector < 32;
            if matches!(vector, 3..=5) {
                raw |= 0x60 << 40;
            }
            if exception && rng.chance(4) {
                // The handler that isn't there leads to a second exception.
                raw &= !(0x80 << 40);
            } else if exception && long && rng.chance(15) {
                raw |= (1 + rng.below(2)) << 32;
            } else if exception && !long && rng.chance(10) {
                raw = gate(0x86, code, stub(vector), 0);
            }
            if VECTORS.contains(&vector) {
                raw = match vector - VECTORS.start {
                    0 | 1 => gate(0xee, code, returns, 0),
                    2 | 3 => gate(0xef, code, returns, 0),
                    4 => gate(0xe6, if long { code } else { selector(entry::CODE0_16) }, RETURNS, 0),
                    5 => gate(0x8e, code, stub(vector), 0),
                    6 => gate(0x6e, code, stub(vector), 0),
                    7 => gate(0xee, selector(entry::CONFORMING), stub(vector), 0),
                    8 => gate(0xee, selector(entry::DATA0), stub(vector), 0),
                    9 => gate(0xee, selector(entry::CODE3), stub(vector), 0),
                    10 => gate(0xee, code, returns, if long { 1 } else { 0 }),
                    11 => gate(0xee, 0, stub(vector), 0),
                    12 => gate(0xee, selector(entry::CODE_ABSENT), stub(vector), 0),
                    13 => gate(0xee, selector(entry::CODE1), stub(vector), 0),
                    14 => gate(0xec, code, stub(vector), 0),
                    _ => gate(0xee, selector(entry::END), stub(vector), 0),
                };
            }
            let at = IDT + size * u64::from(vector);
            self.put64(at, raw);
        }
    }

    fn write_task(&mut self, mode: Mode, rng: &mut Rng) {
        if mode.is_long() {
            for (level, stack) in STACKS.into_iter().enumerate() {
                self.put64(TSS + 4 + 8 * level as u64, stack + rng.below(16));
            }
            self.put64(TSS + 0x24, IST);
            // The second one is a stack that can't be used.
            let bad = if rng.chance(50) { UNMAPPED + 0x100 } else { 1 << 62 };
            self.put64(TSS + 0x2c, bad);
        } else {
            for (level, stack) in STACKS.into_iter().enumerate() {
                let at = TSS + 4 + 8 * level as u64;
                self.put(at, &(stack as u32).to_le_bytes());
                let ss = match level {
                    0 if rng.chance(5) => rng.next() as u16,
                    0 => selector(entry::DATA0),
                    1 => selector(entry::DATA1) | 1,
                    _ => 0,
                };
                self.put(at + 4, &ss.to_le_bytes());
            }
        }
        let map = if rng.chance(5) { 0xffff } else { BITMAP as u16 };
        self.put(TSS + 0x66, &map.to_le_bytes());
        for byte in BITMAP..=TSS_LIMIT.into() {
            let bits = rng.next() as u8 & rng.next() as u8;
            self.put(TSS + byte, &[bits]);
        }
    }

    fn write_code(&mut self) {
        self.put(STUBS, &[0xf4; 0x1000]);
        self.put(RETURNS, &[0xcf]);
        self.put(RETURNS + 0x10, &[0xcf]);
        self.put(RETURNS + 0x20, &[0x48, 0xcf]);
        self.put(CODE, &[0xf4; 0x1000]);
        self.put(TARGET, &[0xf4; 0x1000]);
        // Where other transfers end.
        self.put(UNMAPPED, &[0xf4; SIZE - UNMAPPED as usize]);
    }

    fn write_data(&mut self, mode: Mode, rng: &mut Rng) {
        for at in (DATA..DATA + 0x1000).step_by(8) {
            let value = rng.value();
            self.put64(at, value);
        }
        // Operands of `lgdt` and `lidt`: tables where they are, but maybe shorter.
        for (place, base, limit) in [(0, GDT, GDT_LIMIT), (1, IDT, 0xfff)] {
            let at = DATA + 0x10 * place;
            let limit = if rng.chance(30) {
                rng.next() as u16 & 0x1ff
            } else {
                limit
            };
            let base = if mode == Mode::Real && place == 1 { 0 } else { base };
            self.put(at, &limit.to_le_bytes());
            // A base that is not canonical would be #GP, but not for QEMU.
            self.put64(at + 2, if rng.chance(5) { rng.next() >> 17 } else { base });
        }
    }

    fn write_page_tables(&mut self) {
        self.put64(PML4, PDPT | 0x27);
        self.put64(PDPT, DIRECTORY | 0x27);
        self.put64(DIRECTORY, TABLE | 0x27);
        for page in 0..256u64 {
            let at = page * 4096;
            let entry = match at {
                UNMAPPED => 0,
                READ_ONLY => at | 0x65,
                _ => at | 0x67,
            };
            self.put64(TABLE + 8 * page, entry);
        }
    }

    fn set_state(&mut self, mode: Mode, rng: &mut Rng) {
        let state = &mut self.state;
        for register in &mut state.gpr {
            *register = rng.value() & if mode.bits() == 64 { u64::MAX } else { 0xffff_ffff };
        }
        // What `sysret` takes the flags from. QEMU would load VM too, and not VIF and VIP.
        state.gpr[11] &= !0x1a_0100;
        state.rip = CODE;
        state.gpr[RSP] = if mode.is_user() { USER_STACK } else { STACK };
        // Status flags, DF, IOPL, now and then IF, NT, AC.
        state.rflags = 2 | rng.next() & 0xcd5 | rng.below(4) << 12 | rng.below(2) << 9;
        if rng.chance(5) {
            state.rflags |= 1 << 18;
        }
        let (code, data) = match mode {
            Mode::Protected16 => (entry::CODE0_16, entry::DATA0_16),
            Mode::Protected32User | Mode::CompatibilityUser => (entry::CODE3, entry::DATA3),
            Mode::LongUser => (entry::CODE3_64, entry::DATA3),
            _ => (entry::CODE0, entry::DATA0),
        };
        let level = if mode.is_user() { 3 } else { 0 };
        let wide = !mode.has_paragraphs() && mode != Mode::Protected16;
        let flat = Segment {
            selector: selector(data) | level,
            limit: if wide { u32::MAX } else { 0xffff },
            kind: 3,
            dpl: level as u8,
            non_system: true,
            present: true,
            db: wide,
            granularity: wide,
            ..Segment::default()
        };
        let sys = &mut state.sys;
        (sys.ds, sys.es, sys.fs, sys.gs, sys.ss) = (flat, flat, flat, flat, flat);
        sys.cs = Segment {
            selector: selector(code) | level,
            kind: 11,
            long: mode.bits() == 64,
            db: wide && mode.bits() == 32,
            ..flat
        };
        if mode.has_paragraphs() {
            for segment in [
                &mut sys.cs,
                &mut sys.ds,
                &mut sys.es,
                &mut sys.fs,
                &mut sys.gs,
                &mut sys.ss,
            ] {
                segment.selector = 0;
                segment.kind = 3;
                segment.dpl = level as u8;
            }
            if mode == Mode::Real {
                sys.cs.kind = 11;
            }
        }
        sys.gdt = DescriptorTable {
            base: GDT,
            limit: GDT_LIMIT,
        };
        sys.idt = DescriptorTable {
            base: IDT,
            limit: 0xfff,
        };
        if mode == Mode::Real {
            sys.idt = DescriptorTable { base: 0, limit: 0x3ff };
        }
        let system = Segment {
            present: true,
            ..Segment::default()
        };
        sys.tr = Segment {
            selector: selector(entry::TASK),
            base: TSS,
            limit: TSS_LIMIT,
            kind: 11,
            ..system
        };
        sys.ldt = Segment {
            selector: selector(entry::LDT),
            base: LDT,
            limit: 0x7f,
            kind: 2,
            ..system
        };
        sys.cr0 = cr0::ET | cr0::NE;
        if mode != Mode::Real {
            sys.cr0 |= cr0::PE;
        }
        if mode == Mode::Virtual8086 {
            state.rflags |= VM;
        }
        if mode.is_long() {
            sys.cr0 |= cr0::PG | cr0::WP;
            sys.cr3 = PML4;
            sys.cr4 = cr4::PAE | if rng.chance(60) { cr4::FSGSBASE } else { 0 };
            sys.efer = efer::LME | efer::LMA | efer::NXE | if rng.chance(80) { efer::SCE } else { 0 };
            let low = |rng: &mut Rng| rng.next() >> 18;
            (sys.fs.base, sys.gs.base) = (low(rng), low(rng));
            let code = u64::from(selector(if mode == Mode::Compatibility {
                entry::CODE0_64
            } else {
                entry::CODE0
            }));
            // With an RPL of 3: AMD's `sysret` takes SS's from here, Intel's sets it.
            state.msrs.star = u64::from(selector(entry::SYSRET) | 3) << 48 | code << 32;
            (state.msrs.lstar, state.msrs.cstar) = (TARGET, TARGET + 0x10);
            state.msrs.sfmask = rng.next() & 0x4_7fd5;
            state.msrs.kernel_gs_base = low(rng);
        }
        if !rng.chance(15) {
            state.msrs.sysenter_cs = u64::from(selector(entry::CODE0));
        }
        (state.msrs.sysenter_esp, state.msrs.sysenter_eip) = (STACKS[1], TARGET);
    }
}
