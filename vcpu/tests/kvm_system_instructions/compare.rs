//! What must be equal after a program: everything that instructions can see, as far as KVM keeps it.

use super::image;
use super::machine::End;
use umbra_vcpu::emulate::CpuState;
use umbra_vcpu::emulate::flags::{DF, RF, STATUS};
use umbra_vcpu::emulate::state::RBX;
use umbra_vcpu::regs::Segment;

/// An outcome of a program on either side.
pub struct Outcome {
    pub end: End,
    pub state: CpuState,
    pub memory: Vec<u8>,
    /// Where exceptions' frames lie, as far as the core knows.
    pub frames: Vec<Frame>,
    /// The exception that kept another from being delivered, so that a double fault came of it, as far as the core knows.
    pub second: Option<u8>,
}

/// What an exception has pushed.
#[derive(Clone, Copy)]
pub struct Frame {
    /// Where the flags lie.
    pub flags: u64,
    /// Where the error code lies, but for page faults.
    pub code: Option<u64>,
}

/// Differences, in words; empty if there are none.
pub fn differences(kvm: &Outcome, core: &Outcome, trace: &[String]) -> Vec<String> {
    let executed = |mnemonic: &str| trace.iter().any(|line| line.split(' ').next() == Some(mnemonic));
    if kvm.end != core.end {
        return vec![format!("end: kvm {:?}, core {:?}", kvm.end, core.end)];
    }
    // After a shutdown nothing of the CPU's state is promised (KVM resets the vCPU).
    if core.end == End::ShutDown {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut number = |what: &str, kvm: u64, core: u64| {
        if kvm != core {
            found.push(format!("{what}: kvm {kvm:#x}, core {core:#x}"));
        }
    };
    let (left, right) = (&kvm.state, &core.state);
    for (index, (left, right)) in left.gpr.iter().zip(&right.gpr).enumerate() {
        // The limit's bits in what `lar` says are undefined (SDM vol. 2, LAR).
        let undefined = if index == RBX && executed("Lar") { 0xf_0000 } else { 0 };
        number(&format!("gpr {index}"), *left & !undefined, *right & !undefined);
    }
    number("rip", left.rip, right.rip);
    // QEMU 7.2 loses the status flags and DF when it masks the others (SDM vol. 2, SYSCALL).
    let lost = if executed("Syscall") { STATUS | DF } else { 0 };
    number("rflags", left.rflags & !(RF | lost), right.rflags & !(RF | lost));
    let (l, r) = (&left.sys, &right.sys);
    for (what, left, right) in [
        ("cr0", l.cr0, r.cr0),
        ("cr2", l.cr2, r.cr2),
        ("cr3", l.cr3, r.cr3),
        ("cr4", l.cr4, r.cr4),
        ("cr8", l.cr8, r.cr8),
        ("efer", l.efer, r.efer),
        ("gdt base", l.gdt.base, r.gdt.base),
        ("gdt limit", l.gdt.limit.into(), r.gdt.limit.into()),
        ("idt base", l.idt.base, r.idt.base),
        ("idt limit", l.idt.limit.into(), r.idt.limit.into()),
    ] {
        number(what, left, right);
    }
    let (a, b) = (&left.msrs, &right.msrs);
    for (what, left, right) in [
        ("star", a.star, b.star),
        ("lstar", a.lstar, b.lstar),
        ("cstar", a.cstar, b.cstar),
        ("sfmask", a.sfmask, b.sfmask),
        ("kernel gs base", a.kernel_gs_base, b.kernel_gs_base),
        ("sysenter cs", a.sysenter_cs, b.sysenter_cs),
        ("sysenter esp", a.sysenter_esp, b.sysenter_esp),
        ("sysenter eip", a.sysenter_eip, b.sysenter_eip),
    ] {
        number(what, left, right);
    }
    let paragraphs = core.state.real_segments();
    for (what, left, right, data) in [
        ("cs", l.cs, r.cs, false),
        ("ss", l.ss, r.ss, true),
        ("ds", l.ds, r.ds, true),
        ("es", l.es, r.es, true),
        ("fs", l.fs, r.fs, true),
        ("gs", l.gs, r.gs, true),
        ("tr", l.tr, r.tr, false),
        ("ldt", l.ldt, r.ldt, true),
    ] {
        let (mut left, right) = (visible(&left, data, paragraphs), visible(&right, data, paragraphs));
        // AMD's processors leave the base alone where a null selector comes in, Intel's clear it.
        if right.unusable && right.base == 0 {
            left.base = 0;
        }
        if left != right {
            found.push(format!("{what}: kvm {left:x?}, core {right:x?}"));
        }
    }
    let mut kvm_memory = with_used_descriptors(&kvm.memory);
    let mut core_memory = with_used_descriptors(&core.memory);
    for frame in &core.frames {
        settle_frame(frame, &mut kvm_memory, &mut core_memory, core.state.long_mode());
    }
    if let Some(at) = (0..core_memory.len()).find(|at| kvm_memory[*at] != core_memory[*at]) {
        let end = (at + 16).min(core_memory.len());
        found.push(format!(
            "memory at {at:#x}: kvm {:02x?}, core {:02x?}",
            &kvm_memory[at..end],
            &core_memory[at..end]
        ));
    }
    found
}

/// Memory with all segments marked as used: QEMU does not write the bit for code (SDM vol. 3A section 3.4.5.1).
fn with_used_descriptors(memory: &[u8]) -> Vec<u8> {
    let mut memory = memory.to_vec();
    let tables = [(image::GDT, usize::from(image::GDT_LIMIT) / 8 + 1), (image::LDT, 16)];
    for (start, count) in tables {
        for entry in 0..count {
            let kind = &mut memory[start as usize + 8 * entry + 5];
            if *kind & 0x10 != 0 {
                *kind |= 1;
            }
        }
    }
    memory
}

/// Makes what QEMU 7.2 does differently in an exception's frame equal.
fn settle_frame(frame: &Frame, kvm: &mut [u8], core: &mut [u8], long: bool) {
    // It does not set RF for faults, though KVM does for those that it injects (SDM vol. 3B section 17.3.1.1).
    for memory in [&mut *kvm, &mut *core] {
        if let Some(byte) = memory.get_mut(frame.flags as usize + 2) {
            *byte &= !((RF >> 16) as u8);
        }
    }
    let Some(at) = frame.code.map(|at| at as usize).filter(|at| at + 2 <= core.len()) else {
        return;
    };
    let read = |memory: &[u8]| u16::from_le_bytes([memory[at], memory[at + 1]]);
    // It never sets EXT (SDM vol. 3A section 6.13: also for an exception while an earlier one is delivered), and counts a
    // gate of long mode twice in the index, which is the vector.
    let (left, right) = (read(kvm) & !1, read(core) & !1);
    let doubled = long && right & 2 != 0 && left == (right >> 3) * 16 + (right & 7);
    kvm[at..at + 2].copy_from_slice(&(if doubled { right } else { left }).to_le_bytes());
    core[at..at + 2].copy_from_slice(&right.to_le_bytes());
}

/// The part of a segment register that has a meaning: of a null one only the selector, and the base, which 64-bit mode
/// may add. KVM on AMD makes up the G bit from the limit; QEMU marks no code segment as used.
fn visible(segment: &Segment, data: bool, paragraphs: bool) -> Segment {
    let mut seen = *segment;
    // QEMU and KVM keep the rights of a stack segment and of a local table that become null.
    let null = data && !paragraphs && seen.selector & !3 == 0;
    if seen.unusable || !seen.present || null {
        return Segment {
            selector: seen.selector,
            base: seen.base,
            unusable: true,
            ..Segment::default()
        };
    }
    seen.granularity = false;
    if seen.non_system {
        seen.kind |= 1;
    }
    seen
}
