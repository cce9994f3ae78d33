//! The CPU in compatibility mode, without a hypervisor: this very process runs the cases. A KVM without hardware
//! virtualisation runs only 64-bit programs natively, but any program of 64 bits may go to segments of 32 and, by
//! `modify_ldt`, of 16 bits.
//!
//! As in `machine`, each slot of code loads a case's registers, goes to the instruction (by an `iretq` that sets RFLAGS
//! and all of CS:RIP and SS:RSP at once) and stores the registers; this harness code is of 64 bits, so that it needs no
//! segment. A fault is a signal, whose handler notes what it is told and goes on with the next slot. What lies where is
//! fixed: nothing else of the process may be below 4 GiB.

mod host;
mod signals;
mod slot_code;

use super::layout::{
    CODE, FLAGS, FX, HOLE, OUT, PADS_END, READ_ONLY, READ_ONLY_END, RECORDS, SLOTS, TAKEN, WINDOW, WINDOW_SIZE, record,
    slot,
};
use super::machine::{Ended, How, Registers};
use super::mode::Mode;
use super::segments;
use host::{alone_below_4_gib, map, protect, set_descriptor};
use signals::{Handlers, enter};
use slot_code::{LANDING, jump, low, slot_code, to_64};

/// Parts of a record of which `machine` has no need: the frame of the `iretq`, segments before and after the case, and
/// what the signal said.
const FRAME: u64 = 0x300;
const SEGMENTS: u64 = 0x340;
const SEGMENTS_OUT: u64 = OUT + 0x90;
const FAULT: u64 = OUT + 0x300;

/// State of the harness, behind the records.
const CONTROL: u64 = 0x2f_0000;
const STACK_POINTER: u64 = CONTROL;
const RESUME: u64 = CONTROL + 8;
const CURRENT: u64 = CONTROL + 16;
const RUNNING: u64 = CONTROL + 24;
const FS_BASE: u64 = CONTROL + 32;
const HOST_FX: u64 = CONTROL + 0x100;
const EXIT: u64 = slot(SLOTS + 1);

/// Bytes of the signal handlers' stack.
const ALTERNATE_STACK: usize = 1 << 16;

pub struct Process {
    mode: Mode,
    stack: Vec<u8>,
}

impl Process {
    pub fn new(mode: Mode) -> Result<Self, String> {
        for (start, end, what) in [
            (
                CODE,
                WINDOW - 0x1000,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
            ),
            (WINDOW, READ_ONLY_END, libc::PROT_READ | libc::PROT_WRITE),
        ] {
            map(start, end, what)?;
        }
        alone_below_4_gib()?;
        for index in 0..segments::ENTRIES {
            set_descriptor(index, segments::spec(index))?;
        }
        let mut process = Self {
            mode,
            stack: vec![0; ALTERNATE_STACK],
        };
        process.put(READ_ONLY, &super::layout::read_only(mode));
        protect(READ_ONLY, READ_ONLY_END)?;
        process.bytes_mut(WINDOW, WINDOW_SIZE).fill(0);
        process.write_code();
        Ok(process)
    }

    pub fn bytes(&self, at: u64, length: usize) -> &[u8] {
        // SAFETY: callers name parts of what `new` mapped and nothing unmaps while `self` lives; the cases run only in
        // `run`, which has `self` to itself.
        unsafe { std::slice::from_raw_parts(at as *const u8, length) }
    }

    pub fn bytes_mut(&mut self, at: u64, length: usize) -> &mut [u8] {
        // SAFETY: as in `bytes`, with a unique borrow.
        unsafe { std::slice::from_raw_parts_mut(at as *mut u8, length) }
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.bytes_mut(at, bytes.len()).copy_from_slice(bytes);
    }

    fn put64(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    fn get64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes(at, 8).try_into().unwrap())
    }

    /// The fixed part of each slot, and the way out.
    fn write_code(&mut self) {
        for index in 0..SLOTS {
            let code = slot_code(index);
            self.put(slot(index), &code);
        }
        let mut code = vec![0xc7, 0x04, 0x25]; // mov dword [RUNNING], 0
        code.extend(low(RUNNING));
        code.extend([0; 4]);
        // xor eax, eax; mov ds, es, fs, gs, eax; mov eax, USER_DATA; mov ss, eax
        code.extend([0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xe0, 0x8e, 0xe8, 0xb8]);
        code.extend(u32::from(segments::USER_DATA).to_le_bytes());
        code.extend([0x8e, 0xd0, 0x48, 0x8b, 0x24, 0x25]); // …; mov rsp, [STACK_POINTER]
        code.extend(low(STACK_POINTER));
        code.extend([0xff, 0x24, 0x25]); // jmp [RESUME]
        code.extend(low(RESUME));
        self.put(EXIT, &code);
    }

    /// Puts a case into its slot.
    pub fn load(&mut self, index: usize, code: &[u8], input: &Registers) {
        let at = record(index);
        for (register, value) in input.gpr.iter().enumerate() {
            self.put64(at + 8 * register as u64, *value);
        }
        self.put(at + FX, &input.fx);
        let [_, cs, ss, ..] = input.segments;
        let frame = [HOLE, u64::from(cs), input.rflags, input.gpr[4], u64::from(ss)];
        for (place, word) in frame.into_iter().enumerate() {
            self.put64(at + FRAME + 8 * place as u64, word);
        }
        for (place, selector) in input.segments.into_iter().enumerate() {
            self.put(at + SEGMENTS + 2 * place as u64, &selector.to_le_bytes());
        }
        self.put64(at + OUT + TAKEN, 0);
        self.put64(at + FAULT, 0);
        let hole = slot(index) + HOLE;
        self.put(hole, code);
        let tail = to_64(self.mode, slot(index) + PADS_END + 2 * LANDING);
        self.put(hole + code.len() as u64, &tail);
    }

    /// Runs slots `0..count`.
    pub fn run(&mut self, count: usize) -> Result<Vec<Ended>, String> {
        // In place of the prologue of the first slot that is not to run.
        let end = slot(count);
        let saved = self.bytes(end, 5).to_vec();
        let leave = jump(0xe9, end + 5, EXIT);
        self.put(end, &leave);
        let handlers = Handlers::install(&mut self.stack)?;
        // SAFETY: `write_code` and `load` filled the slots, `count` of which end in `EXIT`.
        unsafe { enter(slot(0)) };
        drop(handlers);
        self.put(end, &saved);
        (0..count).map(|index| self.outcome(index)).collect()
    }

    fn outcome(&self, index: usize) -> Result<Ended, String> {
        let (input, output) = (record(index), record(index) + OUT);
        let fault = input + FAULT;
        let how = if self.get64(fault) != 0 {
            let [vector, code, cr2, rip, cs] = std::array::from_fn(|field| self.get64(fault + 8 + 8 * field as u64));
            let expected = self.get64(input + FRAME + 8);
            // `into` and `int3` report the instruction behind them.
            let trap = matches!(vector, 3 | 4);
            if cs != expected || (rip != HOLE && !trap) {
                return Err(format!(
                    "vector {vector} at {cs:#x}:{rip:#x}, which is not an instruction under test"
                ));
            }
            How::Fault {
                vector: vector as u8,
                code: code as u32,
                cr2: (vector == 14).then_some(cr2),
            }
        } else if self.get64(output + TAKEN) & 0xff != 0 {
            How::Taken
        } else {
            How::Next
        };
        let selectors = self.bytes(input + SEGMENTS_OUT, 12).chunks(2);
        let mut segments = [0; 6];
        for (segment, bytes) in segments.iter_mut().zip(selectors) {
            *segment = u16::from_le_bytes([bytes[0], bytes[1]]);
        }
        let registers = Registers {
            gpr: std::array::from_fn(|register| self.get64(output + 8 * register as u64)),
            rflags: self.get64(output + FLAGS),
            fx: self.bytes(output + FX, 512).try_into().unwrap(),
            segments,
        };
        Ok(Ended { registers, how })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        for (start, end) in [(CODE, WINDOW - 0x1000), (WINDOW, READ_ONLY_END)] {
            // SAFETY: mapped by `new`; no reference into it outlives `self`.
            unsafe { libc::munmap(start as *mut _, (end - start) as usize) };
        }
    }
}

const _: () = assert!(CONTROL > RECORDS + SLOTS as u64 * super::layout::RECORD);
