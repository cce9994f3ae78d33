//! A KVM virtual machine whose one vCPU runs cases natively at CPL 3.
//!
//! Each slot of the code area loads a case's registers, runs one instruction and stores the registers; slots follow one
//! another, so one entry into the guest runs hundreds of cases. A fault ends in a CPL 0 stub that halts.

use super::layout::{
    CODE, CODE_SLOT, FLAGS, FX, HOLE, OUT, PAD, PADS_END, READ_ONLY, READ_ONLY_END, RECORDS, SLOTS, TAKEN, WINDOW,
    record,
};
use super::mode::Mode;
use kvm_bindings::{kvm_regs, kvm_sregs, kvm_userspace_memory_region, kvm_xsave};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const STUBS: u64 = 0x4000;
const STACK_TOP: u64 = 0x7000;
const TABLES: u64 = 0x10000;
const MEMORY: usize = 0x60_0000;

const EPILOGUE: u64 = PADS_END;

/// Registers before or after a case.
#[derive(Clone, PartialEq)]
pub struct Registers {
    pub gpr: [u64; 16],
    pub rflags: u64,
    pub fx: [u8; 512],
    /// ES, CS, SS, DS, FS, GS; all zero where they are not looked at.
    pub segments: [u16; 6],
}

/// How a case ended on the silicon.
#[derive(Clone, PartialEq)]
pub struct Ended {
    pub registers: Registers,
    pub how: How,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum How {
    /// Fell through to the next instruction.
    Next,
    /// Went to the branch target.
    Taken,
    Fault {
        vector: u8,
        code: u32,
        cr2: Option<u64>,
    },
}

pub struct Machine {
    memory: Box<[u64]>,
    vcpu: VcpuFd,
    user: kvm_sregs,
    /// The invalid instruction after the last slot.
    end: u64,
    _vm: VmFd,
}

const UD2: [u8; 2] = [0x0f, 0x0b];
impl Machine {
    pub fn new() -> Result<Self, String> {
        let text = |error: kvm_ioctls::Error| error.to_string();
        let kvm = Kvm::new().map_err(text)?;
        let vm = kvm.create_vm().map_err(text)?;
        let memory = vec![0u64; MEMORY / 8 + 512].into_boxed_slice();
        let aligned = memory.as_ptr().addr().next_multiple_of(4096);
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: aligned as u64,
        };
        // SAFETY: the region lies within `memory`, which lives as long as the VM (both are in `Machine`, and the guest
        // runs only inside `Machine::enter`).
        unsafe { vm.set_user_memory_region(region) }.map_err(text)?;
        let vcpu = vm.create_vcpu(0).map_err(text)?;
        let cpuid = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(text)?;
        vcpu.set_cpuid2(&cpuid).map_err(text)?;
        let user = vcpu.get_sregs().map_err(text)?;
        let mut machine = Self {
            memory,
            vcpu,
            user,
            end: 0,
            _vm: vm,
        };
        machine.write_tables();
        machine.write_code();
        machine.user = machine.user_registers();
        Ok(machine)
    }

    fn offset(&self) -> usize {
        let start = self.memory.as_ptr().addr();
        start.next_multiple_of(4096) - start
    }

    pub fn bytes(&self, at: u64, length: usize) -> &[u8] {
        let start = self.offset() + at as usize;
        // SAFETY: any u64 slice may be seen as bytes; the vCPU does not run while a reference to `self` exists.
        let all = unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast::<u8>(), self.memory.len() * 8) };
        &all[start..start + length]
    }

    pub fn bytes_mut(&mut self, at: u64, length: usize) -> &mut [u8] {
        let start = self.offset() + at as usize;
        // SAFETY: as in `bytes`, with a unique borrow.
        let all =
            unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().cast::<u8>(), self.memory.len() * 8) };
        &mut all[start..start + length]
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

    fn write_tables(&mut self) {
        for (index, descriptor) in [
            (1, 0x00af_9b00_0000_ffff_u64), // CPL 0 code
            (2, 0x00cf_9300_0000_ffff),     // CPL 0 data
            (5, 0x00cf_f300_0000_ffff),     // CPL 3 data
            (6, 0x00af_fb00_0000_ffff),     // CPL 3 code
            (8, 0x0000_8b00_0000_0067 | (TSS << 16)),
        ] {
            self.put64(GDT + 8 * index, descriptor);
        }
        for vector in 0..256 {
            let stub = STUBS + 16 * vector;
            let gate = (stub & 0xffff) | 0x08 << 16 | 0xee00 << 32 | (stub >> 16 << 48);
            self.put64(IDT + 16 * vector, gate);
            // hlt; jmp to it again
            self.put(stub, &[0xf4, 0xeb, 0xfd]);
        }
        self.put64(TSS + 4, STACK_TOP);
        // Identity mapping of the first 6 MiB; user pages where cases run.
        self.put64(TABLES, (TABLES + 0x1000) | 7);
        self.put64(TABLES + 0x1000, (TABLES + 0x2000) | 7);
        for table in 0..3 {
            self.put64(TABLES + 0x2000 + 8 * table, (TABLES + 0x3000 + 0x1000 * table) | 7);
        }
        for page in 0..MEMORY as u64 / 4096 {
            let at = page * 4096;
            let rights = match at {
                CODE..RECORDS => 5,
                RECORDS..0x40_0000 => 7,
                WINDOW..READ_ONLY => 7,
                READ_ONLY..READ_ONLY_END => 5,
                0x40_0000.. => 0,
                _ => 3,
            };
            self.put64(
                TABLES + 0x3000 + 8 * page,
                if rights == 0 { 0 } else { at | rights | 0x60 },
            );
        }
        self.put(READ_ONLY, &super::layout::read_only(Mode::Long));
    }

    /// The fixed part of each slot: only the instruction changes from batch to batch.
    fn write_code(&mut self) {
        let mut end = 0;
        // `mov reg, [disp32]` and `mov [disp32], reg` for register numbers 0..=15.
        let mov = |opcode: u8, register: u8, at: u64| {
            let rex = 0x48 | (register >> 3) << 2;
            let mut bytes = vec![rex, opcode, 0x04 | (register & 7) << 3, 0x25];
            bytes.extend((at as u32).to_le_bytes());
            bytes
        };
        let stack_at = |at: u64| {
            let mut bytes = vec![0xbc];
            bytes.extend((at as u32).to_le_bytes());
            bytes
        };
        let fx = |extension: u8, at: u64| {
            let mut bytes = vec![0x48, 0x0f, 0xae, 0x04 | extension << 3, 0x25];
            bytes.extend((at as u32).to_le_bytes());
            bytes
        };
        for index in 0..SLOTS {
            let (start, input) = (CODE + index as u64 * CODE_SLOT, record(index));
            let output = input + OUT;
            let mut code = fx(1, input + FX);
            code.extend(stack_at(input + FLAGS));
            code.push(0x9d); // popfq
            for register in (0..16).rev().filter(|register| *register != 4) {
                code.extend(mov(0x8b, register, input + 8 * u64::from(register)));
            }
            code.extend(mov(0x8b, 4, input + 32));
            let jump = HOLE as usize - code.len() - 5;
            code.push(0xe9);
            code.extend((jump as u32).to_le_bytes());
            code.resize(PAD as usize, 0xcc);
            // mov byte [taken], 1
            code.extend([0xc6, 0x04, 0x25]);
            code.extend(((output + TAKEN) as u32).to_le_bytes());
            code.push(1);
            code.resize(EPILOGUE as usize, 0x90);
            for register in 0..16 {
                code.extend(mov(0x89, register, output + 8 * u64::from(register)));
            }
            code.extend(stack_at(output + FLAGS + 8));
            code.push(0x9c); // pushfq
            code.extend(fx(0, output + FX));
            if index + 1 == SLOTS {
                end = start + code.len() as u64;
                code.extend(UD2);
            } else {
                let jump = CODE_SLOT as usize - code.len() - 5;
                code.push(0xe9);
                code.extend((jump as u32).to_le_bytes());
            }
            assert!(code.len() <= CODE_SLOT as usize);
            self.put(start, &code);
        }
        self.end = end;
    }

    fn user_registers(&self) -> kvm_sregs {
        let mut sregs = self.user;
        let flat = kvm_bindings::kvm_segment {
            base: 0,
            limit: u32::MAX,
            selector: 0x2b,
            type_: 3,
            present: 1,
            dpl: 3,
            db: 1,
            s: 1,
            l: 0,
            g: 1,
            ..Default::default()
        };
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (flat, flat, flat, flat, flat);
        sregs.cs = kvm_bindings::kvm_segment {
            selector: 0x33,
            type_: 11,
            db: 0,
            l: 1,
            ..flat
        };
        sregs.tr = kvm_bindings::kvm_segment {
            base: TSS,
            limit: 0x67,
            selector: 0x40,
            type_: 11,
            present: 1,
            dpl: 0,
            db: 0,
            s: 0,
            g: 0,
            ..Default::default()
        };
        (sregs.gdt.base, sregs.gdt.limit) = (GDT, 0x7f);
        (sregs.idt.base, sregs.idt.limit) = (IDT, 0xfff);
        sregs.cr0 = 0x8001_0033;
        sregs.cr3 = TABLES;
        sregs.cr4 = 0x620; // PAE, OSFXSR, OSXMMEXCPT
        sregs.efer = 0xd01; // SCE, LME, LMA, NXE
        sregs
    }

    /// Puts a case into its slot.
    pub fn load(&mut self, index: usize, code: &[u8], input: &Registers) {
        let at = record(index);
        for (register, value) in input.gpr.iter().enumerate() {
            self.put64(at + 8 * register as u64, *value);
        }
        self.put64(at + FLAGS, input.rflags);
        self.put(at + FX, &input.fx);
        self.put64(at + OUT + TAKEN, 0);
        let hole = Mode::Long.hole(index);
        self.put(hole, code);
        let jump = EPILOGUE - HOLE - code.len() as u64 - 5;
        let mut tail = vec![0xe9];
        tail.extend((jump as u32).to_le_bytes());
        self.put(hole + code.len() as u64, &tail);
    }

    /// Runs slots `0..count`.
    pub fn run(&mut self, count: usize) -> Result<Vec<Ended>, String> {
        let mut ended: Vec<Option<(How, kvm_regs, [u8; 512])>> = vec![None; count];
        let mut next = 0;
        // Slots beyond `count` hold old cases; an invalid instruction in place of the first one's prologue ends the run.
        let end = CODE + count as u64 * CODE_SLOT;
        let saved = (count < SLOTS).then(|| self.bytes(end, 2).to_vec());
        if saved.is_some() {
            self.put(end, &UD2);
        }
        while next < count {
            let regs = kvm_regs {
                rip: CODE + next as u64 * CODE_SLOT,
                rflags: 2,
                rsp: STACK_TOP,
                ..Default::default()
            };
            self.vcpu.set_sregs(&self.user).map_err(|e| e.to_string())?;
            self.vcpu.set_regs(&regs).map_err(|e| e.to_string())?;
            match self.vcpu.run().map_err(|e| e.to_string())? {
                VcpuExit::Hlt => {}
                other => return Err(format!("unexpected exit {other:?} after slot {next}")),
            }
            let regs = self.vcpu.get_regs().map_err(|e| e.to_string())?;
            let vector = ((regs.rip - STUBS) / 16) as u8;
            let has_code = matches!(vector, 8 | 10..=14 | 17);
            let code = if has_code { self.get64(regs.rsp) as u32 } else { 0 };
            let frame = regs.rsp + if has_code { 8 } else { 0 };
            let rip = self.get64(frame);
            if vector == 6 && (rip == self.end || rip == end) {
                break;
            }
            let cr2 = if vector == 14 {
                Some(self.vcpu.get_sregs().map_err(|e| e.to_string())?.cr2)
            } else {
                None
            };
            let index = (rip.wrapping_sub(CODE) / CODE_SLOT) as usize;
            if index >= count || rip != Mode::Long.hole(index) {
                return Err(format!(
                    "vector {vector} at {rip:#x}, which is not an instruction under test"
                ));
            }
            let mut faulted = regs;
            faulted.rsp = self.get64(frame + 24);
            faulted.rflags = self.get64(frame + 16);
            let fpu = self.vcpu.get_xsave().map_err(|e| e.to_string())?;
            ended[index] = Some((How::Fault { vector, code, cr2 }, faulted, legacy(&fpu)));
            next = index + 1;
        }
        if let Some(saved) = saved {
            self.put(end, &saved);
        }
        Ok(ended
            .into_iter()
            .enumerate()
            .map(|(index, fault)| self.outcome(index, fault))
            .collect())
    }

    fn outcome(&self, index: usize, fault: Option<(How, kvm_regs, [u8; 512])>) -> Ended {
        let output = record(index) + OUT;
        if let Some((how, r, fpu)) = fault {
            let gpr = [
                r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14,
                r.r15,
            ];
            return Ended {
                registers: Registers {
                    gpr,
                    rflags: r.rflags,
                    fx: fpu,
                    segments: [0; 6],
                },
                how,
            };
        }
        let gpr = std::array::from_fn(|register| self.get64(output + 8 * register as u64));
        let how = if self.get64(output + TAKEN) & 0xff == 1 {
            How::Taken
        } else {
            How::Next
        };
        let registers = Registers {
            gpr,
            rflags: self.get64(output + FLAGS),
            fx: self.bytes(output + FX, 512).try_into().unwrap(),
            segments: [0; 6],
        };
        Ended { registers, how }
    }
}

/// The FXSAVE image at the beginning of an XSAVE area.
fn legacy(area: &kvm_xsave) -> [u8; 512] {
    let mut fx = [0; 512];
    for (place, word) in fx.chunks_exact_mut(4).zip(&area.region) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    fx
}
