//! Finishes a `syscall` that KVM left half done.
//!
//! A pagetable-VM KVM (seen on Linux 6.18) that runs user code natively takes `syscall` there as far as RIP, RCX, R11 and
//! RFLAGS, but leaves CS and SS as they were: the guest stands at LSTAR with CPL 3. The fetch faults, and the guest finds
//! a page fault at its own entry point, for which it kills the program. Linux's fault handler begins with `clac`, which
//! the same KVM can't emulate, so the fault comes by here before anybody has looked at it: the program is put back in
//! front of its `syscall`, which then is executed in software.

use super::guest::Guest;
use super::host::EmulationHost;
use super::parts::Parts;
use crate::emulate::state::{RCX, RSP};
use crate::emulate::{Access, AccessKind, Cpu, CpuState, Memory, Platform, Translation};
use umbra_memslots::Gva;

/// `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// Error code of the page fault: page present or not, an instruction fetch by user code.
const PRESENT: u64 = 1;
const USER_FETCH: u64 = 1 << 4 | 1 << 2;
const R11: usize = 11;

/// The CPU's access with these rights.
const fn access(kind: AccessKind, user: bool) -> Access {
    Access {
        kind,
        user,
        implicit: !user,
        alignment_flag: false,
    }
}

/// If the guest is about to handle such a fault, puts it back in front of the `syscall`, and says so.
pub(super) fn put_back<B: EmulationHost>(cpu: &mut Cpu<Guest<'_, B>>) -> bool {
    let state = &cpu.state;
    if !state.long_code() || state.cpl() != 0 {
        return false;
    }
    // What the CPU pushed for the fault: error code, RIP, CS, RFLAGS, RSP, SS.
    let mut frame = [0; 48];
    let top = Gva::new(state.gpr[RSP]);
    if cpu.env.read(top, &mut frame, access(AccessKind::Read, false)).is_err() {
        return false;
    }
    let mut words = [0; 6];
    for (word, bytes) in words.iter_mut().zip(frame.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    let [code, rip, cs, _, rsp, _] = words;
    let state = &cpu.state;
    if code & !PRESENT != USER_FETCH || rip != state.sys.cr2 || cs & 3 != 3 {
        return false;
    }
    let at = state.gpr[RCX].wrapping_sub(SYSCALL.len() as u64);
    let mut bytes = [0; SYSCALL.len()];
    let fetched = cpu.env.read(Gva::new(at), &mut bytes, access(AccessKind::Fetch, true));
    if fetched.is_err() || bytes != SYSCALL {
        return false;
    }
    // Only now, because they cost system calls.
    let msrs = Parts {
        msrs: true,
        ..Parts::default()
    };
    let mut with_msrs = cpu.state.clone();
    if cpu.env.load(&mut with_msrs, msrs).is_err() || with_msrs.msrs.lstar != rip {
        return false;
    }
    before_syscall(&mut cpu.state, at, rsp);
    cpu.env.translation(Translation::PrivilegeChanged, &cpu.state);
    true
}

/// User code at `rip`; what `syscall` overwrites anyway is not restored.
fn before_syscall(state: &mut CpuState, rip: u64, rsp: u64) {
    state.rip = rip;
    state.gpr[RSP] = rsp;
    state.rflags = state.gpr[R11];
    for segment in [&mut state.sys.cs, &mut state.sys.ss] {
        segment.dpl = 3;
        segment.selector |= 3;
    }
}
