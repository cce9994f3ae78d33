//! What the hardware is made of, as far as page walks see it.

/// Registers and identity of a CPU, as raw values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HwCpu {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// `IA32_EFER`.
    pub efer: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// PKRU.
    pub pkru: u32,
    /// The PDPTE registers, for PAE paging.
    pub pdpte: [u64; 4],
    /// MAXPHYADDR, 32 to 52.
    pub maxphyaddr: u32,
    /// CPUID.80000001H:EDX.Page1GB.
    pub page1gb: bool,
    /// CPUID.01H:EDX.PSE-36.
    pub pse36: bool,
    /// An AMD CPU: bit 8 of PML4E and PML5E must be zero.
    pub amd: bool,
}

/// The wires that say what kind of access it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HwAccess {
    /// A write.
    pub write: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// CPL is 3.
    pub cpl3: bool,
    /// To a system structure, by the CPU itself.
    pub implicit: bool,
}

/// Physical memory as it is wired up.
pub trait HwMemory {
    /// Reads `bytes` (4 or 8) bytes. Where nothing answers, the bus floats: all ones.
    fn load(&self, address: u64, bytes: u64) -> u64;

    /// Sets `bits` in the `bytes` (4 or 8) bytes at `address` if they still are `expected`; says whether they were. Where
    /// nothing answers or nothing can be written, says yes and does nothing.
    fn set_bits(&self, address: u64, bytes: u64, expected: u64, bits: u64) -> bool;
}
