//! Going to a slot's code, and the signals by which Linux reports what its instruction does wrong.

use super::super::layout::{FLAGS, FX, OUT, record, slot};
use super::super::segments;
use super::{CURRENT, FAULT, FS_BASE, HOST_FX, RESUME, RUNNING, SEGMENTS_OUT, STACK_POINTER};
use std::ptr;

/// Signals by which Linux reports exceptions.
const SIGNALS: [libc::c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];
const ARCH_SET_FS: u64 = 0x1002;
const ARCH_GET_FS: u64 = 0x1003;

/// Our handlers and stack for signals, while cases run.
pub(super) struct Handlers {
    before: Vec<(libc::c_int, libc::sigaction)>,
    stack: libc::stack_t,
}

impl Handlers {
    pub(super) fn install(stack: &mut [u8]) -> Result<Self, String> {
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

/// Goes to 64-bit code in a slot and comes back from `EXIT`, with all of this thread's state as it was.
///
/// # Safety
/// What runs there must end in `EXIT` and leave alone what is not ours.
pub(super) unsafe fn enter(start: u64) {
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
