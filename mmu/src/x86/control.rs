//! [`PagingRegs`]: the registers on which address translation depends, copied from a vCPU; and the bits in them that
//! matter (SDM vol. 3A, 2.5 and 4.1.3).

/// CR0 bits.
pub mod cr0 {
    /// Write protect: supervisor-mode writes respect R/W.
    pub const WP: u64 = 1 << 16;
    /// Paging.
    pub const PG: u64 = 1 << 31;
}

/// CR4 bits.
pub mod cr4 {
    /// Page size extensions: 4 MiB pages with 32-bit paging.
    pub const PSE: u64 = 1 << 4;
    /// Physical address extension: 64-bit entries.
    pub const PAE: u64 = 1 << 5;
    /// 57-bit linear addresses: five levels.
    pub const LA57: u64 = 1 << 12;
    /// Supervisor-mode execution prevention.
    pub const SMEP: u64 = 1 << 20;
    /// Supervisor-mode access prevention.
    pub const SMAP: u64 = 1 << 21;
    /// Protection keys for user-mode pages.
    pub const PKE: u64 = 1 << 22;
}

/// `IA32_EFER` bits.
pub mod efer {
    /// Long mode active.
    pub const LMA: u64 = 1 << 10;
    /// No-execute enable.
    pub const NXE: u64 = 1 << 11;
}

/// RFLAGS bits.
pub mod rflags {
    /// Alignment check; suspends SMAP for explicit accesses.
    pub const AC: u64 = 1 << 18;
}

/// What the guest's CPUID says about paging.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GuestCpu {
    /// Physical address bits (MAXPHYADDR), CPUID 0x80000008 EAX\[7:0\]; 32 to 52, others are taken as the nearest.
    pub physical_bits: u32,
    /// 1 GiB pages, CPUID 0x80000001 EDX bit 26. Without, the size bit of a PDPTE is reserved.
    pub gigabyte_pages: bool,
    /// 4 MiB pages above 4 GiB with 32-bit paging, CPUID 1 EDX bit 17. Without, their address bits are reserved.
    pub pse36: bool,
    /// Bit 8 is reserved in PML5E and PML4E: so on AMD (APM vol. 2, 5.3), ignored on Intel.
    pub upper_global_reserved: bool,
}

impl GuestCpu {
    /// An Intel CPU with everything.
    #[must_use]
    pub const fn intel(physical_bits: u32) -> Self {
        Self {
            physical_bits,
            gigabyte_pages: true,
            pse36: true,
            upper_global_reserved: false,
        }
    }

    /// An AMD CPU with everything.
    #[must_use]
    pub const fn amd(physical_bits: u32) -> Self {
        Self {
            upper_global_reserved: true,
            ..Self::intel(physical_bits)
        }
    }
}

/// The registers on which address translation depends. A copy: whoever changes the vCPU's makes a new one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PagingRegs {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// `IA32_EFER`.
    pub efer: u64,
    /// RFLAGS; only AC counts.
    pub rflags: u64,
    /// PKRU: two bits for each protection key, access disable and write disable.
    pub pkru: u32,
    /// The four PDPTE registers; only used with PAE paging. Loaded from memory when CR3 is
    /// ([`crate::guest_walk::load_pdptes`]), not at each walk (SDM vol. 3A, 4.4.1).
    pub pdptes: [u64; 4],
    /// The CPU.
    pub cpu: GuestCpu,
}
