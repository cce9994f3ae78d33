//! [`HostParams`]: what the layout of SPTEs depends on, and how to get it from CPUID.

use super::bits::BitSpan;

/// Who walks the entries, which decides what their bits mean.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EntryFormat {
    /// Ordinary x86-64 paging entries (SDM vol. 3A, 4.5): shadow tables, and AMD nested tables.
    /// An MMIO SPTE makes the walk end in #PF with the RSVD bit.
    X86,
    /// Intel extended page tables (SDM vol. 3C, 29.3). An MMIO SPTE makes the walk end in an EPT misconfiguration.
    Ept {
        /// The CPU can turn EPT violations into #VE, so bit 63 of an entry means "not this one" and is set in empty
        /// entries.
        suppress_ve: bool,
    },
}

/// Which bits of an MMIO SPTE hold the memslot generation: a low and a high part. All widths follow from these two
/// pairs of numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GenerationSpans {
    /// Where the least significant bits of the generation go.
    pub low: BitSpan,
    /// Where the bits above those go.
    pub high: BitSpan,
}

impl GenerationSpans {
    /// `MMIO_SPTE_GEN_LOW_*` and `MMIO_SPTE_GEN_HIGH_*` of Linux 5.13 and later: bits 3–10 and 52–62.
    pub const KVM: Self = Self {
        low: BitSpan::fixed(3, 10),
        high: BitSpan::fixed(52, 62),
    };

    /// Number of generation bits that an SPTE can hold.
    #[must_use]
    pub const fn width(self) -> u32 {
        self.low.width() + self.high.width()
    }

    /// The bits of an SPTE that hold the generation.
    #[must_use]
    pub const fn mask(self) -> u64 {
        self.low.mask() | self.high.mask()
    }
}

impl Default for GenerationSpans {
    fn default() -> Self {
        Self::KVM
    }
}

/// The facts about one host from which [`SpteLayout`](super::SpteLayout) is computed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HostParams {
    /// Who walks the entries.
    pub format: EntryFormat,
    /// Physical address bits (`x86_phys_bits`): CPUID 0x80000008 EAX\[7:0\], less what memory encryption takes.
    /// 32 to 52.
    pub physical_bits: u32,
    /// `Some(width)` if the CPU is open to L1 terminal fault (CVE-2018-3620): the number of address bits its L1 data
    /// cache compares (`x86_cache_bits`), which some client CPUs make larger than `physical_bits`.
    pub l1tf_cache_bits: Option<u32>,
    /// `Some(position)` if AMD memory encryption is on: the position of the C-bit, CPUID 0x8000001f EBX\[5:0\].
    pub encryption_bit: Option<u32>,
    /// Whether MMIO SPTEs are wanted at all (module parameter `mmio_caching` of KVM).
    pub mmio_caching: bool,
    /// Where the generation goes.
    pub generation: GenerationSpans,
}

/// The four registers CPUID answers with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct CpuidResult {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

impl HostParams {
    /// Ordinary x86 entries, no L1TF displacement, no memory encryption, caching on.
    #[must_use]
    pub const fn x86(physical_bits: u32) -> Self {
        Self {
            format: EntryFormat::X86,
            physical_bits,
            l1tf_cache_bits: None,
            encryption_bit: None,
            mmio_caching: true,
            generation: GenerationSpans::KVM,
        }
    }

    /// EPT entries without #VE, no L1TF displacement, caching on.
    #[must_use]
    pub const fn ept(physical_bits: u32) -> Self {
        Self {
            format: EntryFormat::Ept { suppress_ve: false },
            ..Self::x86(physical_bits)
        }
    }

    /// What CPUID alone can say about a host whose entries are `format`.
    ///
    /// `cpuid` answers for a leaf (subleaf 0). Not to be had from CPUID, and so left at "no": whether the CPU is open
    /// to L1TF (needs `IA32_ARCH_CAPABILITIES` and the model list) and whether SME is switched on (`MSR_AMD64_SYSCFG`
    /// bit 23): see [`HostParams::with_l1tf`] and [`HostParams::with_encryption`].
    ///
    /// A CPU without leaf 0x80000008 has 36 physical bits (SDM vol. 3A, 4.1.4).
    #[must_use]
    pub fn from_cpuid(format: EntryFormat, cpuid: impl Fn(u32) -> CpuidResult) -> Self {
        const MAX_EXTENDED: u32 = 0x8000_0000;
        const ADDRESS_SIZES: u32 = 0x8000_0008;
        let highest = cpuid(MAX_EXTENDED).eax;
        let physical_bits = if highest >= ADDRESS_SIZES {
            cpuid(ADDRESS_SIZES).eax & 0xff
        } else {
            36
        };
        Self {
            format,
            ..Self::x86(physical_bits)
        }
    }

    /// The same host, open to L1TF, whose L1 data cache compares `cache_bits` address bits.
    #[must_use]
    pub const fn with_l1tf(self, cache_bits: u32) -> Self {
        Self {
            l1tf_cache_bits: Some(cache_bits),
            ..self
        }
    }

    /// The same host with AMD memory encryption on: `leaf` is CPUID 0x8000001f, whose EBX has the C-bit's position in
    /// bits 5:0 and the number of physical bits it costs in bits 11:6.
    #[must_use]
    pub const fn with_encryption(self, leaf: CpuidResult) -> Self {
        Self {
            physical_bits: self.physical_bits.saturating_sub((leaf.ebx >> 6) & 0x3f),
            encryption_bit: Some(leaf.ebx & 0x3f),
            ..self
        }
    }

    /// The same host with MMIO SPTEs wanted or not.
    #[must_use]
    pub const fn with_mmio_caching(self, wanted: bool) -> Self {
        Self {
            mmio_caching: wanted,
            ..self
        }
    }

    /// The same host with other generation bits, e.g. fewer, so that a test meets a wrap.
    #[must_use]
    pub const fn with_generation(self, generation: GenerationSpans) -> Self {
        Self { generation, ..self }
    }
}
