//! Our own register structs: nothing above a backend sees a hypervisor's bindings.
//!
//! Field order and meaning follow the Intel SDM (vol. 1 section 3.4, vol. 3A section 2.1); `Default` is all zero, not
//! the state after reset.

/// General-purpose registers, instruction pointer and flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(missing_docs, reason = "the field names are the architecture's register names")]
pub struct Regs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// A segment register with its hidden part (SDM vol. 3A section 3.4.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, already scaled by the granularity bit.
    pub limit: u32,
    /// Descriptor type, 4 bits.
    pub kind: u8,
    /// Descriptor privilege level, 0..=3.
    pub dpl: u8,
    /// S: code or data (true) or system (false).
    pub non_system: bool,
    /// P.
    pub present: bool,
    /// AVL.
    pub available: bool,
    /// L: 64-bit code.
    pub long: bool,
    /// D/B: 32-bit default operand size or stack.
    pub db: bool,
    /// G: limit counted in 4 KiB units in the descriptor.
    pub granularity: bool,
    /// The segment holds a null selector or can't be used.
    pub unusable: bool,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Limit: size in bytes less one.
    pub limit: u16,
}

/// Segments, descriptor tables, control registers and EFER.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(missing_docs, reason = "the field names are the architecture's register names")]
pub struct SystemRegs {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
}
