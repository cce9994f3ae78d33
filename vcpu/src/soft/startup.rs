//! The state after INIT, and where a start-up interrupt begins (SDM vol. 3A table 10-1, section 9.4.3).

use super::cpuid::SIGNATURE;
use crate::emulate::CpuState;
use crate::regs::{DescriptorTable, Regs, Segment, SystemRegs};

/// CR0 after INIT: extension type, and the caches as they were.
const CR0_ET: u64 = 1 << 4;
const CR0_CACHES: u64 = 3 << 29;
const RESET_RIP: u64 = 0xfff0;

/// What INIT makes of a CPU. Its time-stamp counter, its FPU and its MSRs stay.
pub(super) fn after_init(before: &CpuState, dr6: u64, dr7: u64) -> CpuState {
    let segment = |kind, non_system| Segment {
        limit: 0xffff,
        kind,
        non_system,
        present: true,
        ..Segment::default()
    };
    let (data, table) = (segment(3, true), DescriptorTable { base: 0, limit: 0xffff });
    let system = SystemRegs {
        cs: Segment {
            selector: 0xf000,
            base: 0xffff_0000,
            ..segment(0xb, true)
        },
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: segment(0xb, false),
        ldt: segment(2, false),
        gdt: table,
        idt: table,
        cr0: CR0_ET | before.sys.cr0 & CR0_CACHES,
        apic_base: before.sys.apic_base,
        ..SystemRegs::default()
    };
    let regs = Regs {
        rip: RESET_RIP,
        // The signature of CPUID leaf 1.
        rdx: SIGNATURE.into(),
        rflags: 2,
        ..Regs::default()
    };
    let mut state = CpuState::new(&regs, &system);
    (state.debug[6], state.debug[7]) = (dr6, dr7);
    state.msrs = before.msrs;
    state.fpu = before.fpu.clone();
    state
}

/// A CPU that waits begins in real mode at the page with this number.
pub(super) fn start_up(state: &mut CpuState, page: u8) {
    state.sys.cs.selector = u16::from(page) << 8;
    state.sys.cs.base = u64::from(page) << 12;
    state.rip = 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_up_begins_at_the_page() {
        let mut state = after_init(&CpuState::default(), 0, 0);
        assert_eq!((state.sys.cs.base, state.rip), (0xffff_0000, 0xfff0));
        start_up(&mut state, 0x9a);
        assert_eq!(
            (state.sys.cs.selector, state.sys.cs.base, state.rip),
            (0x9a00, 0x9_a000, 0)
        );
    }
}
