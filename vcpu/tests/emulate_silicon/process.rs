//! The CPU in compatibility mode, without a hypervisor: this very process runs the cases. A KVM without hardware
//! virtualisation runs only 64-bit programs natively, but any program of 64 bits may go to segments of 32 and, by
//! `modify_ldt`, of 16 bits.
//!
//! As in `machine`, each slot of code loads a case's registers, goes to the instruction (by an `iretq` that sets RFLAGS
//! and all of CS:RIP and SS:RSP at once) and stores the registers; this harness code is of 64 bits, so that it needs no
//! segment. A fault is a signal, whose handler notes what it is told and goes on with the next slot. What lies where is
//! fixed: nothing else of the process may be below 4 GiB.

use super::layout::{
    CODE, CODE_SLOT, FLAGS, FX, HOLE, OUT, PAD, PAD_16, PAD_64, PADS_END, READ_ONLY, READ_ONLY_END, RECORDS, SLOTS,
    TAKEN, WINDOW, WINDOW_SIZE, record, slot,
};
use super::machine::{Ended, How, Registers};
use super::mode::Mode;
use super::segments::{self, Spec};
use std::ptr;

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

/// Signals by which Linux reports exceptions.
const SIGNALS: [libc::c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];
const ARCH_SET_FS: u64 = 0x1002;
const ARCH_GET_FS: u64 = 0x1003;
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

/// Bytes of the landing of a pad: note that the branch was taken, go on to the epilogue.
const LANDING: u64 = 0x10;

fn low(address: u64) -> [u8; 4] {
    (address as u32).to_le_bytes()
}

/// A branch with a 32-bit displacement, which ends at `next`.
fn jump(opcode: u8, next: u64, target: u64) -> Vec<u8> {
    let mut bytes = vec![opcode];
    bytes.extend(low(target.wrapping_sub(next)));
    bytes
}

/// `jmp far` from code of the mode to 64-bit code.
fn to_64(mode: Mode, target: u64) -> Vec<u8> {
    let mut bytes = match mode {
        Mode::Compat16 => vec![0x66, 0xea],
        _ => vec![0xea],
    };
    bytes.extend(low(target));
    bytes.extend(segments::USER_CODE_64.to_le_bytes());
    bytes
}

fn slot_code(index: usize) -> Vec<u8> {
    let (start, input) = (slot(index), record(index));
    let output = input + OUT;
    let absolute = |opcode: &[u8], register: u8, at: u64| {
        let mut bytes = opcode.to_vec();
        bytes.extend([0x04 | (register & 7) << 3, 0x25]);
        bytes.extend(low(at));
        bytes
    };
    let mov = |opcode: u8, register: u8, at: u64| absolute(&[0x48 | (register >> 3) << 2, opcode], register, at);
    // Number in the encoding and place of ES, SS, DS, FS, GS.
    const SEGMENT_REGISTERS: [u8; 5] = [0, 2, 3, 4, 5];
    let mut code = absolute(&[0xc7], 0, CURRENT); // mov dword [CURRENT], index
    code.extend((index as u32).to_le_bytes());
    code.extend(absolute(&[0x48, 0x0f, 0xae], 1, input + FX)); // fxrstor64
    for register in SEGMENT_REGISTERS.into_iter().filter(|register| *register != 2) {
        code.extend(absolute(&[0x8e], register, input + SEGMENTS + 2 * u64::from(register)));
    }
    for register in (0..16).filter(|register| *register != 4) {
        code.extend(mov(0x8b, register, input + 8 * u64::from(register)));
    }
    code.push(0xbc); // mov esp, the frame
    code.extend(low(input + FRAME));
    code.extend([0x48, 0xcf]); // iretq
    assert!(code.len() <= HOLE as usize);
    let mut place = |at: u64, bytes: &[u8]| {
        code.resize(at as usize, 0xcc);
        code.extend(bytes);
    };
    place(PAD, &to_64(Mode::Compat32, start + PADS_END));
    place(PAD_16, &to_64(Mode::Compat16, start + PADS_END));
    place(PAD_64, &jump(0xe9, start + PAD_64 + 5, start + PADS_END));
    let mut taken = absolute(&[0xc6], 0, output + TAKEN); // mov byte [taken], 1
    taken.push(1);
    place(PADS_END, &taken);
    code.resize((PADS_END + 2 * LANDING) as usize, 0x90);
    for register in 0..16 {
        code.extend(mov(0x89, register, output + 8 * u64::from(register)));
    }
    for register in SEGMENT_REGISTERS {
        code.extend(absolute(
            &[0x8c],
            register,
            input + SEGMENTS_OUT + 2 * u64::from(register),
        ));
    }
    code.push(0xbc); // mov esp, behind the flags
    code.extend(low(output + FLAGS + 8));
    code.push(0x9c); // pushfq
    code.extend(absolute(&[0x48, 0x0f, 0xae], 0, output + FX)); // fxsave64
    // The next `iretq` may not meet NT, nor the harness AC.
    code.push(0xbc); // mov esp, within the frame
    code.extend(low(input + FRAME + 8));
    code.extend([0x6a, 0x02, 0x9d]); // push 2; popfq
    let next = start + code.len() as u64 + 5;
    code.extend(jump(0xe9, next, start + CODE_SLOT));
    assert!(code.len() <= CODE_SLOT as usize);
    code
}

fn map(start: u64, end: u64, protection: libc::c_int) -> Result<(), String> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE;
    let length = (end - start) as usize;
    // SAFETY: a new mapping in a place where there is none.
    let at = unsafe { libc::mmap(start as *mut _, length, protection, flags, -1, 0) };
    if at as u64 == start {
        Ok(())
    } else {
        Err(format!("memory at {start:#x}: {}", std::io::Error::last_os_error()))
    }
}

fn protect(start: u64, end: u64) -> Result<(), String> {
    // SAFETY: part of our own mapping, which nothing else uses.
    let result = unsafe { libc::mprotect(start as *mut _, (end - start) as usize, libc::PROT_READ) };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error().to_string())
    }
}

/// Cases may reach all of the lowest 4 GiB.
fn alone_below_4_gib() -> Result<(), String> {
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(|error| error.to_string())?;
    let strangers = maps
        .lines()
        .filter_map(|line| u64::from_str_radix(line.split('-').next()?, 16).ok())
        .filter(|start| *start < 1 << 32 && !(CODE..READ_ONLY_END).contains(start));
    match strangers.count() {
        0 => Ok(()),
        count => Err(format!("{count} other mappings below 4 GiB")),
    }
}

/// The kernel's `struct user_desc`.
#[repr(C)]
struct UserDescriptor {
    number: u32,
    base: u32,
    limit: u32,
    flags: u32,
}

fn set_descriptor(index: usize, spec: Spec) -> Result<(), String> {
    let flag = |value: bool, bit: u32| u32::from(value) << bit;
    let descriptor = UserDescriptor {
        number: index as u32,
        base: spec.base as u32,
        limit: spec.limit,
        flags: flag(spec.wide, 0)
            | u32::from(spec.contents) << 1
            | flag(spec.restricted, 3)
            | flag(spec.pages, 4)
            | flag(spec.absent, 5),
    };
    const WRITE: libc::c_int = 0x11;
    // SAFETY: the kernel reads the structure, whose size it is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_modify_ldt,
            WRITE,
            &raw const descriptor,
            size_of_val(&descriptor),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(format!("modify_ldt: {}", std::io::Error::last_os_error()))
    }
}

/// Our handlers and stack for signals, while cases run.
struct Handlers {
    before: Vec<(libc::c_int, libc::sigaction)>,
    stack: libc::stack_t,
}

impl Handlers {
    fn install(stack: &mut [u8]) -> Result<Self, String> {
        let new = libc::stack_t {
            ss_sp: stack.as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: stack.len(),
        };
        let mut before = Vec::new();
        // SAFETY: all zero is a stack_t.
        let mut old: libc::stack_t = unsafe { std::mem::zeroed() };
        // SAFETY: `stack` outlives the handlers, as `Process` owns it.
        if unsafe { libc::sigaltstack(&raw const new, &raw mut old) } != 0 {
            return Err(std::io::Error::last_os_error().to_string());
        }
        for signal in SIGNALS {
            // SAFETY: all zero is a sigaction.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            // SAFETY: all zero is a sigaction.
            let mut was: libc::sigaction = unsafe { std::mem::zeroed() };
            // SAFETY: the handler has the signature that SA_SIGINFO asks for.
            unsafe { libc::sigaction(signal, &raw const action, &raw mut was) };
            before.push((signal, was));
        }
        Ok(Self { before, stack: old })
    }
}

impl Drop for Handlers {
    fn drop(&mut self) {
        for (signal, action) in &self.before {
            // SAFETY: what was there before.
            unsafe { libc::sigaction(*signal, action, ptr::null_mut()) };
        }
        // SAFETY: what was there before.
        unsafe { libc::sigaltstack(&raw const self.stack, ptr::null_mut()) };
    }
}

/// Goes to 64-bit code in a slot and comes back from [`EXIT`], with all of this thread's state as it was.
///
/// # Safety
/// What runs there must end in `EXIT` and leave alone what is not ours.
unsafe fn enter(start: u64) {
    let mut fs_base = 0u64;
    // SAFETY: the kernel writes the number to where it is told.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_FS, &raw mut fs_base) };
    // SAFETY: CONTROL is mapped and ours.
    unsafe { ptr::write_volatile(FS_BASE as *mut u64, fs_base) };
    // SAFETY: as before.
    unsafe { ptr::write_volatile(RUNNING as *mut u64, 1) };
    // SAFETY: registers are saved on the stack, in CONTROL, or named as changed; the base of FS, which cases change, is
    // set again before anything looks for thread-local data.
    unsafe {
        std::arch::asm!(
            "push rbx", "push rbp", "pushfq",
            "fxsave64 [{fx}]",
            "lea rax, [rip + 2f]",
            "mov qword ptr [{resume}], rax",
            "mov qword ptr [{stack}], rsp",
            "jmp {start}",
            "2:",
            "mov eax, {arch_prctl}",
            "mov edi, {set_fs}",
            "mov rsi, qword ptr [{fs}]",
            "syscall",
            "fxrstor64 [{fx}]",
            "popfq", "pop rbp", "pop rbx",
            fx = const HOST_FX,
            resume = const RESUME,
            stack = const STACK_POINTER,
            fs = const FS_BASE,
            arch_prctl = const libc::SYS_arch_prctl,
            set_fs = const ARCH_SET_FS,
            start = in(reg) start,
            out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
}

/// Notes an exception of the case that runs and goes on with the next slot.
///
/// Until the base of FS is right again, nothing here may look for thread-local data.
extern "C" fn on_fault(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let (ds, es, fs, gs): (u16, u16, u16, u16);
    // SAFETY: reads registers.
    unsafe {
        std::arch::asm!("mov {0:x}, ds", "mov {1:x}, es", "mov {2:x}, fs", "mov {3:x}, gs",
            out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs, options(nomem, nostack));
    }
    let running = ptr::with_exposed_provenance_mut::<u64>(RUNNING as usize);
    // SAFETY: CONTROL is mapped while this handler is installed.
    if unsafe { running.read_volatile() } == 0 {
        // Not a case's doing: let it end the process.
        // SAFETY: the default action needs no handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: as for RUNNING.
    let base = unsafe { (FS_BASE as *const u64).read_volatile() };
    // SAFETY: sets what `enter` found; a system call changes RCX and R11 beside its result.
    unsafe {
        std::arch::asm!("syscall", inout("rax") libc::SYS_arch_prctl => _, in("rdi") ARCH_SET_FS, in("rsi") base,
            out("rcx") _, out("r11") _, options(nostack));
    }
    // SAFETY: the kernel passes the context that it will load when this handler returns.
    let machine = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext };
    // SAFETY: as for RUNNING.
    let index = unsafe { (CURRENT as *const u32).read_volatile() } as usize;
    note(index, machine, [es, 0, 0, ds, fs, gs]);
    machine.gregs[libc::REG_RIP as usize] = slot(index + 1) as i64;
    let selectors = machine.gregs[libc::REG_CSGSFS as usize] as u64 & 0x0000_ffff_ffff_0000;
    machine.gregs[libc::REG_CSGSFS as usize] =
        (selectors | u64::from(segments::USER_CODE_64) | u64::from(segments::USER_DATA) << 48) as i64;
    machine.gregs[libc::REG_EFL as usize] = 0x202;
}

/// Writes down what the record of a case has room for.
fn note(index: usize, machine: &libc::mcontext_t, mut selectors: [u16; 6]) {
    const ORDER: [libc::c_int; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    let value = |register: libc::c_int| machine.gregs[register as usize] as u64;
    let (input, output) = (record(index), record(index) + OUT);
    let put = |at: u64, value: u64| {
        // SAFETY: a place in the record of a slot, which nobody refers to while cases run.
        unsafe { (at as *mut u64).write_volatile(value) };
    };
    for (number, register) in ORDER.into_iter().enumerate() {
        put(output + 8 * number as u64, value(register));
    }
    put(output + FLAGS, value(libc::REG_EFL));
    let cs = value(libc::REG_CSGSFS) & 0xffff;
    selectors[2] = (value(libc::REG_CSGSFS) >> 48) as u16;
    for (place, selector) in selectors.into_iter().enumerate() {
        // SAFETY: as before.
        unsafe { ((input + SEGMENTS_OUT + 2 * place as u64) as *mut u16).write_volatile(selector) };
    }
    // SAFETY: the kernel's frame begins its x87 and SSE state with an FXSAVE image.
    unsafe { ptr::copy_nonoverlapping(machine.fpregs.cast::<u8>(), (output + FX) as *mut u8, 512) };
    let report = [
        1,
        value(libc::REG_TRAPNO),
        value(libc::REG_ERR),
        value(libc::REG_CR2),
        value(libc::REG_RIP),
        cs,
    ];
    for (place, word) in report.into_iter().enumerate() {
        put(input + FAULT + 8 * place as u64, word);
    }
}
const _: () = assert!(CONTROL > RECORDS + SLOTS as u64 * super::layout::RECORD);
