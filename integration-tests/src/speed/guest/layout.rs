//! Where the guest's parts lie, and the tables that need no code: descriptors, gates, page tables.

use super::ImageError;
use crate::multiboot::{BASE, BODY};

/// 32-bit code, entered as multiboot says: flat segments, paging off.
pub const ENTRY: u32 = BASE + 0x100;
/// Global descriptor table.
pub const GDT: u32 = BASE + 0x400;
/// Task state segment: only its stack for CPL 0 counts.
pub const TSS: u32 = BASE + 0x480;
/// What `lgdt` and `lidt` read.
pub const GDT_POINTER: u32 = BASE + 0x4f0;
/// See [`GDT_POINTER`].
pub const IDT_POINTER: u32 = BASE + 0x4f8;
/// 16-bit code, copied to [`REAL`] before it runs.
pub const REAL_IMAGE: u32 = BASE + 0x800;
/// One page each: the tables that translate, and the interrupt descriptors.
pub const PML4: u32 = BASE + 0x1000;
const POINTERS: u32 = BASE + 0x2000;
const LOW: u32 = BASE + 0x3000;
const HIGH: u32 = BASE + 0x4000;
const IDT: u32 = BASE + 0x5000;
/// 64-bit code of CPL 0.
pub const KERNEL: u32 = BASE + 0x6000;
/// 64-bit code that runs the loops.
pub const PROGRAM: u32 = BASE + 0x7000;
/// End of the image at the most.
pub const END: u32 = BASE + 0xa000;

/// Where 16-bit code runs, and a word of its own.
pub const REAL: u32 = 0x8000;
/// The most 16-bit code.
pub const REAL_ROOM: u32 = PML4 - REAL_IMAGE;
/// Passes left in real mode.
pub const REAL_PASSES: u32 = 0x7ff0;

/// Behind the image: stacks, a kernel's data for one CPU, and what the loops work on.
pub const KERNEL_STACK: u32 = 0x20_1000;
/// See [`KERNEL_STACK`].
pub const USER_STACK: u32 = 0x20_3000;
/// See [`KERNEL_STACK`].
pub const PER_CPU: u32 = 0x20_4000;
/// See [`KERNEL_STACK`]: 2 MiB.
pub const DATA: u32 = 0x40_0000;

/// The I/O APIC that all PCs have: its select register, the window 16 bytes behind.
pub const IO_APIC: u32 = 0xfec0_0000;

/// Selectors.
pub mod selector {
    /// 32-bit code, flat.
    pub const CODE32: u16 = 0x08;
    /// Data, flat.
    pub const DATA32: u16 = 0x10;
    /// 16-bit code, 64 KiB.
    pub const CODE16: u16 = 0x18;
    /// Data, 64 KiB.
    pub const DATA16: u16 = 0x20;
    /// 64-bit code of CPL 0; its data behind it, as `syscall` wants.
    pub const KERNEL_CODE: u16 = 0x28;
    /// What `sysret` counts from: data 8 behind, 64-bit code 16 behind.
    pub const USER_BASE: u16 = 0x38;
    /// Data of CPL 3.
    pub const USER_DATA: u16 = 0x43;
    /// 64-bit code of CPL 3.
    pub const USER_CODE: u16 = 0x4b;
    /// The task.
    pub const TASK: u16 = 0x50;
}

/// Offsets from [`KERNEL`] of the handlers that the gates lead to.
#[derive(Clone, Copy, Debug)]
pub struct Handlers {
    /// For each exception: the guest has gone wrong.
    pub exceptions: [u64; EXCEPTIONS],
    /// For [`CALL_VECTOR`].
    pub call: u64,
    /// For [`DONE_VECTOR`].
    pub done: u64,
}

/// Vectors below this are exceptions.
pub const EXCEPTIONS: usize = 32;
/// The vector of the loop with `int`.
pub const CALL_VECTOR: u8 = 0x80;
/// The vector by which a loop says that it is at its end, `int3`: KVM's emulator doesn't know `int` outside real mode,
/// and where it has to emulate that, at CPL 3, it makes an exception of it.
pub const DONE_VECTOR: u8 = 3;

/// The image's body: the parts, each at its place.
#[derive(Debug, Default)]
pub struct Parts(Vec<u8>);

impl Parts {
    /// Puts a part at an address; it must end before `end`.
    ///
    /// # Errors
    /// It is too long, or the address lies before the parts put so far.
    pub fn put(&mut self, part: &'static str, at: u32, end: u32, bytes: &[u8]) -> Result<(), ImageError> {
        let start = (at - BODY) as usize;
        let room = (end - at) as usize;
        if start < self.0.len() || bytes.len() > room {
            return Err(ImageError::TooLarge {
                part,
                bytes: bytes.len(),
                room,
            });
        }
        self.0.resize(start, 0);
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    /// The body.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    /// Descriptors and the two pointers.
    pub fn put_segments(&mut self) -> Result<(), ImageError> {
        let task = 0x0000_8900_0000_0067 | descriptor_base(TSS);
        let descriptors: [u64; 12] = [
            0,
            0x00cf_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x0000_9b00_0000_ffff,
            0x0000_9300_0000_ffff,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            task,
            0,
        ];
        self.put("descriptors", GDT, TSS, &bytes(&descriptors))?;
        let mut task = [0; 0x68];
        task[4..12].copy_from_slice(&u64::from(KERNEL_STACK).to_le_bytes());
        // The I/O permission map begins at the segment's end: there is none.
        task[0x66] = 0x68;
        self.put("task", TSS, GDT_POINTER, &task)?;
        self.put("GDT pointer", GDT_POINTER, IDT_POINTER, &pointer(8 * 12, GDT))?;
        self.put("IDT pointer", IDT_POINTER, REAL_IMAGE, &pointer(16 * 256, IDT))
    }

    /// Page tables: the first GiB and the I/O APIC, where they are, for CPL 3 too.
    pub fn put_page_tables(&mut self) -> Result<(), ImageError> {
        const TABLE: u64 = 0b111;
        const LARGE: u64 = 0b1000_0111;
        const UNCACHED: u64 = 1 << 4;
        let mut page = [0_u64; 512];
        page[0] = u64::from(POINTERS) | TABLE;
        self.put("PML4", PML4, POINTERS, &bytes(&page))?;
        page[0] = u64::from(LOW) | TABLE;
        page[3] = u64::from(HIGH) | TABLE;
        self.put("page directory pointers", POINTERS, LOW, &bytes(&page))?;
        for (number, entry) in (0..).zip(&mut page) {
            *entry = number << 21 | LARGE;
        }
        self.put("page directory", LOW, HIGH, &bytes(&page))?;
        page.fill(0);
        page[(IO_APIC >> 21) as usize % 512] = u64::from(IO_APIC) | LARGE | UNCACHED;
        self.put("page directory of the devices", HIGH, IDT, &bytes(&page))
    }

    /// Gates: 32 exceptions, and two that CPL 3 may use.
    pub fn put_gates(&mut self, handlers: Handlers) -> Result<(), ImageError> {
        let mut gates = [0_u64; 512];
        let exceptions = (0..)
            .zip(handlers.exceptions)
            .map(|(vector, handler)| (vector, handler, 0x8e_u64));
        let for_user = [(CALL_VECTOR, handlers.call), (DONE_VECTOR, handlers.done)];
        let for_user = for_user.map(|(vector, handler)| (usize::from(vector), handler, 0xee));
        for (vector, handler, kind) in exceptions.chain(for_user) {
            let at = u64::from(KERNEL) + handler;
            gates[2 * vector] =
                at & 0xffff | u64::from(selector::KERNEL_CODE) << 16 | kind << 40 | (at >> 16 & 0xffff) << 48;
        }
        self.put("gates", IDT, KERNEL, &bytes(&gates))
    }
}

/// A base below 16 MiB as it stands in a descriptor (SDM vol. 3A section 3.4.5).
const fn descriptor_base(base: u32) -> u64 {
    (base as u64 & 0xff_ffff) << 16
}

fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn pointer(size: u16, base: u32) -> Vec<u8> {
    [&(size - 1).to_le_bytes()[..], &base.to_le_bytes()].concat()
}
