//! [`Image`]: the memory of a guest before it starts: page tables, descriptor tables, code.
//!
//! One page holds all that every step needs, so that faults on it are few: code, IDT, GDT, TSS and stack. Another holds
//! the code that runs at CPL 3. Neighbours within eight entries of each other are left out of the tables that map them:
//! KVM fills such in on its own, which is a subject of its own.

use super::program::Paging;
use umbra_vcpu::regs::{DescriptorTable, Segment, SystemRegs};

/// Bytes of RAM, from address 0 on.
pub const RAM: u64 = 2 << 20;
/// The page with code, descriptors and stack.
pub const SYSTEM: u64 = 0x8000;
/// Where the code begins that every fault and system call ends in.
pub const HANDLER: u64 = SYSTEM;
/// Where the program begins.
pub const ENTRY: u64 = SYSTEM + 0x10;
/// Where it must have ended.
pub const CODE_END: u64 = IDT;
/// The code at CPL 3: reads, writes and jumps, 16 bytes apart.
pub const USER: u64 = 0x1_0000;
/// The vector by which code at CPL 3 calls the supervisor.
pub const CALL: u8 = 0x20;
/// The stack's top.
pub const STACK: u64 = SYSTEM + 0x1000;

const IDT: u64 = SYSTEM + 0x980;
const GDT: u64 = SYSTEM + 0xc00;
const TSS: u64 = SYSTEM + 0xc80;
const PAGE_FAULT: u8 = 14;

/// Selectors.
pub mod selector {
    /// Code at CPL 0.
    pub const CODE: u16 = 0x08;
    /// Stack at CPL 0.
    pub const STACK: u16 = 0x10;
    /// Code at CPL 3.
    pub const USER_CODE: u16 = 0x1b;
    /// Data at any CPL, and the stack at CPL 3.
    pub const DATA: u16 = 0x23;
    /// The task.
    pub const TASK: u16 = 0x28;
}

/// Bytes at addresses.
#[derive(Clone, Default, Debug)]
pub struct Image {
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Image {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes.
    pub fn bytes(&mut self, at: u64, bytes: &[u8]) {
        self.pieces.push((at, bytes.to_vec()));
    }

    /// An entry of eight bytes.
    pub fn entry(&mut self, table: u64, index: u64, entry: u64) {
        self.bytes(table + 8 * index, &entry.to_le_bytes());
    }

    /// An entry of four bytes.
    pub fn entry4(&mut self, table: u64, index: u64, entry: u32) {
        self.bytes(table + 4 * index, &entry.to_le_bytes());
    }

    /// Code to jump to at CPL 0: `jmp rbx`.
    pub fn jump_back(&mut self, at: u64) {
        self.bytes(at, &[0xff, 0xe3]);
    }

    /// Code to jump to at CPL 3: `int`.
    pub fn call_supervisor(&mut self, at: u64) {
        self.bytes(at, &[0xcd, CALL]);
    }

    /// What there is: where, and what.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.pieces.iter().map(|(at, bytes)| (*at, bytes.as_slice()))
    }

    /// Adds IDT, GDT and TSS for code of this kind.
    pub fn descriptors(&mut self, paging: Paging) {
        let long = paging.is_long();
        for vector in [PAGE_FAULT, CALL] {
            let (size, words) = gate(long);
            let at = IDT + u64::from(vector) * size;
            self.bytes(at, &words.to_le_bytes()[..usize::try_from(size).unwrap_or(16)]);
        }
        let [code, stack, user_code, data, task] = segments(paging);
        for segment in [code, stack, user_code, data] {
            self.bytes(
                GDT + u64::from(segment.selector & !3),
                &descriptor(&segment).to_le_bytes(),
            );
        }
        self.bytes(GDT + u64::from(task.selector), &descriptor(&task).to_le_bytes());
        // RSP0; or ESP0 and SS0.
        self.bytes(TSS + 4, &STACK.to_le_bytes());
        if !long {
            self.bytes(TSS + 8, &selector::STACK.to_le_bytes());
        }
    }
}

/// The registers of a guest that starts.
#[must_use]
pub fn system_regs(paging: Paging, cr3: u64) -> SystemRegs {
    let [code, stack, _, data, task] = segments(paging);
    SystemRegs {
        cs: code,
        ss: stack,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        tr: task,
        ldt: Segment {
            unusable: true,
            kind: 2,
            ..Segment::default()
        },
        gdt: DescriptorTable { base: GDT, limit: 0x37 },
        idt: DescriptorTable {
            base: IDT,
            limit: (u16::from(CALL) + 1) * if paging.is_long() { 16 } else { 8 } - 1,
        },
        cr0: paging.cr0(),
        cr3,
        cr4: paging.cr4(),
        efer: paging.efer(),
        ..SystemRegs::default()
    }
}

/// Code, stack, code at CPL 3, data, task; used already, so that nobody writes to the descriptors.
fn segments(paging: Paging) -> [Segment; 5] {
    let long = paging.is_long();
    let flat = |selector: u16, kind: u8| Segment {
        selector,
        limit: u32::MAX,
        kind,
        dpl: u8::from(selector & 3 != 0) * 3,
        non_system: true,
        present: true,
        long: long && kind == CODE,
        db: !(long && kind == CODE),
        granularity: true,
        ..Segment::default()
    };
    let task = Segment {
        selector: selector::TASK,
        base: TSS,
        limit: 0x67,
        kind: BUSY_TASK,
        present: true,
        ..Segment::default()
    };
    [
        flat(selector::CODE, CODE),
        flat(selector::STACK, DATA),
        flat(selector::USER_CODE, CODE),
        flat(selector::DATA, DATA),
        task,
    ]
}

/// Code that may be read, and was used.
const CODE: u8 = 11;
/// Data that may be written, and was used.
const DATA: u8 = 3;
/// A task state segment in use.
const BUSY_TASK: u8 = 11;

/// A segment descriptor (SDM vol. 3A, 3.4.5).
fn descriptor(segment: &Segment) -> u64 {
    let bit = |set: bool, position: u32| u64::from(set) << position;
    let limit = u64::from(if segment.granularity {
        segment.limit >> 12
    } else {
        segment.limit
    });
    limit & 0xffff
        | (segment.base & 0xff_ffff) << 16
        | u64::from(segment.kind) << 40
        | bit(segment.non_system, 44)
        | u64::from(segment.dpl) << 45
        | bit(segment.present, 47)
        | (limit >> 16) << 48
        | bit(segment.long, 53)
        | bit(segment.db, 54)
        | bit(segment.granularity, 55)
        | (segment.base >> 24 & 0xff) << 56
}

/// Bytes of an interrupt gate that anybody may use, and the gate (SDM vol. 3A, 6.11 and 6.14.1).
fn gate(long: bool) -> (u64, u128) {
    const PRESENT_DPL3_INTERRUPT: u64 = 0xee00;
    let low = u64::from(selector::CODE) << 16 | HANDLER & 0xffff | PRESENT_DPL3_INTERRUPT << 32;
    (if long { 16 } else { 8 }, u128::from(low))
}
