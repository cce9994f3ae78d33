//! The guest's physical address map as a pure plan: where RAM is, what the firmware map says, and where the loader may
//! put its tables. No memory is touched here.
//!
//! ```text
//! 0x0000_0000  RAM             conventional memory
//! 0x0008_0000    boot tables   GDT, boot parameters, page tables, stack, command line (RAM; free once the guest runs)
//! 0x0009_fc00    reserved      where a PC keeps its extended BIOS data area
//! 0x000a_0000    not listed    a PC's video memory and option ROMs
//! 0x000e_0000    reserved      ACPI tables, RSDP first: where operating systems look for it; last the reset vector
//! 0x0010_0000  RAM             kernels, initrd
//! 0xc000_0000  hole            MMIO: virtio, IOAPIC, local APIC, the hypervisor's own pages
//! 0x1_0000_0000 RAM            the rest
//! ```
//!
//! The address map follows the PC's (ACPI 6.5 section 15 for the E820 types); the hole is where KVM's in-kernel
//! interrupt controllers live.

use thiserror::Error;
use umbra_memslots::{GfnRange, Gpa, PAGE_SIZE};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The least RAM a machine can be planned with: 2 MiB, the first MiB of a PC and as much again for a kernel.
pub const MIN_MEMORY: u64 = 2 * MIB;

/// First address of the MMIO hole below 4 GiB.
pub const HOLE_START: Gpa = Gpa::new(3 * GIB);
/// One past the last address of the hole: RAM goes on here.
pub const HOLE_END: Gpa = Gpa::new(4 * GIB);

/// The IOAPIC's registers, where KVM's in-kernel IOAPIC answers.
pub const IOAPIC_BASE: Gpa = Gpa::new(0xfec0_0000);
/// The local APIC's registers after reset (SDM vol. 3A section 11.4.1).
pub const LOCAL_APIC_BASE: Gpa = Gpa::new(0xfee0_0000);

/// Boot tables: see [`BootArea`].
pub const BOOT_AREA_START: Gpa = Gpa::new(0x8_0000);
/// End of conventional memory: the extended BIOS data area of a PC starts here.
pub const EBDA_START: Gpa = Gpa::new(0x9_fc00);
/// End of the extended BIOS data area; the video memory window follows.
pub const EBDA_END: Gpa = Gpa::new(0xa_0000);
/// ACPI tables; the RSDP is the first of them, on a 16-byte boundary in the range ACPI 6.5 section 5.2.5.1 names.
pub const ACPI_START: Gpa = Gpa::new(0xe_0000);
/// One past the last byte for ACPI tables.
pub const ACPI_END: Gpa = RESET_VECTOR;
/// Where a jump to F000:FFF0 leads: code that resets the machine, up to 1 MiB.
pub const RESET_VECTOR: Gpa = Gpa::new(0xf_fff0);
/// First address of extended memory, where kernels are loaded.
pub const HIGH_MEMORY_START: Gpa = Gpa::new(0x10_0000);

/// Where the loader keeps what the boot CPU needs before the guest has its own tables. All of it is ordinary RAM in
/// the firmware map: the guest may reuse it as soon as it has read it, as the boot protocols say.
#[derive(Debug)]
pub struct BootArea;

impl BootArea {
    /// Global descriptor table, one page.
    pub const GDT: Gpa = Gpa::new(0x8_0000);
    /// Linux's zero page, PVH's start info or multiboot's information structure: one page each kind, never two at once.
    pub const PARAMETERS: Gpa = Gpa::new(0x8_1000);
    /// Memory maps and module lists that [`Self::PARAMETERS`] points to, one page.
    pub const LISTS: Gpa = Gpa::new(0x8_2000);
    /// Page tables: one PML4, one PDPT, four page directories.
    pub const PAGE_TABLES: Gpa = Gpa::new(0x8_3000);
    /// Size of the page tables in bytes.
    pub const PAGE_TABLES_BYTES: u64 = 6 * PAGE_SIZE;
    /// Top of the boot stack: it grows down to [`Self::STACK_BOTTOM`].
    pub const STACK_TOP: Gpa = Gpa::new(0x8_b000);
    /// Lowest byte of the boot stack.
    pub const STACK_BOTTOM: Gpa = Gpa::new(0x8_a000);
    /// Command line with its final zero byte.
    pub const COMMAND_LINE: Gpa = Gpa::new(0x9_0000);
    /// Room for the command line in bytes, with its final zero byte.
    pub const COMMAND_LINE_BYTES: u64 = 16 * KIB;
    /// End of the boot area.
    pub const END: Gpa = Gpa::new(0x9_4000);

    /// The frames of the whole area.
    pub fn range() -> GfnRange {
        frames(BOOT_AREA_START, Self::END)
    }
}

/// The frames of `start..end`; both page-aligned and `start < end` by construction.
fn frames(start: Gpa, end: Gpa) -> GfnRange {
    let bytes = end.get().saturating_sub(start.get());
    GfnRange::covering(start, bytes).unwrap_or(GfnRange::single(start.gfn()))
}

/// What a range of the firmware memory map is; the numbers are E820's (ACPI 6.5 table 15.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum MapKind {
    /// RAM the guest may use.
    Usable = 1,
    /// Not for the guest.
    Reserved = 2,
}

/// One entry of the firmware memory map, in bytes because the EBDA does not start on a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapEntry {
    /// First address.
    pub start: Gpa,
    /// Size in bytes, at least 1.
    pub bytes: u64,
    /// What is there.
    pub kind: MapKind,
}

/// Why no machine can be planned with the wanted memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum LayoutError {
    /// Less than [`MIN_MEMORY`].
    #[error(
        "guest memory of {bytes} bytes is too small: at least {} bytes (2 MiB) are needed for the boot tables and a kernel",
        MIN_MEMORY
    )]
    TooSmall {
        /// What was asked for.
        bytes: u64,
    },
    /// Not a whole number of pages.
    #[error("guest memory of {bytes} bytes is not a multiple of 4096 bytes")]
    NotPages {
        /// What was asked for.
        bytes: u64,
    },
    /// The last address would lie past the physical address width.
    #[error(
        "guest memory of {bytes} bytes does not fit the CPU's {address_bits}-bit physical addresses: at most {max} bytes do"
    )]
    TooLarge {
        /// What was asked for.
        bytes: u64,
        /// Physical address width in bits.
        address_bits: u8,
        /// The most that fits.
        max: u64,
    },
    /// A physical address width that no x86-64 CPU has.
    #[error("a physical address width of {address_bits} bits is not possible: x86-64 has 32 to 52")]
    AddressWidth {
        /// What was given.
        address_bits: u8,
    },
}

/// A machine's RAM and the map of it that the guest is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryLayout {
    low: GfnRange,
    high: Option<GfnRange>,
}

impl MemoryLayout {
    /// Plans `bytes` of RAM for a CPU with `address_bits` bits of physical address (CPUID 8000_0008h, 32..=52).
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn plan(bytes: u64, address_bits: u8) -> Result<Self, LayoutError> {
        if !(32..=52).contains(&address_bits) {
            return Err(LayoutError::AddressWidth { address_bits });
        }
        if bytes < MIN_MEMORY {
            return Err(LayoutError::TooSmall { bytes });
        }
        if !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(LayoutError::NotPages { bytes });
        }
        let hole = HOLE_END.get() - HOLE_START.get();
        let space = 1u64 << address_bits;
        let max = if space > HOLE_END.get() {
            space - hole
        } else {
            HOLE_START.get()
        };
        if bytes > max {
            return Err(LayoutError::TooLarge {
                bytes,
                address_bits,
                max,
            });
        }
        let low = bytes.min(HOLE_START.get());
        Ok(Self {
            low: frames(Gpa::new(0), Gpa::new(low)),
            high: GfnRange::covering(HOLE_END, bytes - low),
        })
    }

    /// The RAM ranges, ascending: one from 0, and one from 4 GiB on if the memory is larger than 3 GiB. Each is one
    /// memory slot; the legacy window below 1 MiB is backed by RAM but not listed as usable.
    pub fn ram(&self) -> impl Iterator<Item = GfnRange> + '_ {
        core::iter::once(self.low).chain(self.high)
    }

    /// RAM size in bytes.
    pub fn bytes(&self) -> u64 {
        (self.low.pages() + self.high.map_or(0, GfnRange::pages)) * PAGE_SIZE
    }

    /// One past the last RAM address below 4 GiB.
    pub fn low_end(&self) -> Gpa {
        Gpa::new(self.low.end_raw() * PAGE_SIZE)
    }

    /// The MMIO hole.
    pub fn hole(&self) -> GfnRange {
        frames(HOLE_START, HOLE_END)
    }

    /// Whether all of `bytes` bytes from `start` on are RAM of one range.
    pub fn holds(&self, start: Gpa, bytes: u64) -> bool {
        let Some(frames) = GfnRange::covering(start, bytes.max(1)) else {
            return false;
        };
        self.ram().any(|ram| ram.intersection(frames) == Some(frames))
    }

    /// The firmware memory map, ascending and without overlaps. Addresses not in it are free for devices.
    pub fn memory_map(&self) -> Vec<MapEntry> {
        let entry = |start: Gpa, end: Gpa, kind| MapEntry {
            start,
            bytes: end.get() - start.get(),
            kind,
        };
        let mut map = vec![
            entry(Gpa::new(0), EBDA_START, MapKind::Usable),
            entry(EBDA_START, EBDA_END, MapKind::Reserved),
            entry(ACPI_START, HIGH_MEMORY_START, MapKind::Reserved),
            entry(HIGH_MEMORY_START, self.low_end(), MapKind::Usable),
        ];
        if let Some(high) = self.high {
            map.push(entry(
                high.start().base(),
                Gpa::new(high.end_raw() * PAGE_SIZE),
                MapKind::Usable,
            ));
        }
        map
    }
}

const _: () = {
    assert!(BootArea::PAGE_TABLES.get() + BootArea::PAGE_TABLES_BYTES <= BootArea::STACK_BOTTOM.get());
    assert!(BootArea::COMMAND_LINE.get() + BootArea::COMMAND_LINE_BYTES == BootArea::END.get());
    assert!(BootArea::END.get() <= EBDA_START.get());
    assert!(MIN_MEMORY > HIGH_MEMORY_START.get());
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn memory_of_a_kibibyte_is_refused_with_the_minimum() {
        let error = MemoryLayout::plan(1024, 48).unwrap_err();
        assert_eq!(error, LayoutError::TooSmall { bytes: 1024 });
        assert!(error.to_string().contains("2097152"), "{error}");
    }

    #[test]
    fn memory_past_the_address_width_is_refused_with_the_maximum() {
        let max = (1 << 36) - GIB;
        assert!(MemoryLayout::plan(max, 36).is_ok());
        assert_eq!(
            MemoryLayout::plan(max + 4096, 36),
            Err(LayoutError::TooLarge {
                bytes: max + 4096,
                address_bits: 36,
                max
            })
        );
        assert_eq!(
            MemoryLayout::plan(4 * GIB, 32),
            Err(LayoutError::TooLarge {
                bytes: 4 * GIB,
                address_bits: 32,
                max: 3 * GIB
            })
        );
        assert!(MemoryLayout::plan(u64::MAX - 4095, 52).is_err());
    }

    #[test]
    fn odd_sizes_and_widths_are_refused() {
        assert_eq!(
            MemoryLayout::plan(MIN_MEMORY + 1, 40),
            Err(LayoutError::NotPages { bytes: MIN_MEMORY + 1 })
        );
        assert_eq!(
            MemoryLayout::plan(MIN_MEMORY, 64),
            Err(LayoutError::AddressWidth { address_bits: 64 })
        );
    }

    #[test]
    fn memory_above_three_gibibytes_goes_on_above_the_hole() {
        let layout = MemoryLayout::plan(5 * GIB, 48).unwrap();
        let ram: Vec<_> = layout.ram().collect();
        assert_eq!(ram.len(), 2);
        assert_eq!(ram[1].start().base(), HOLE_END);
        assert_eq!(ram[1].bytes(), Some(2 * GIB));
        assert!(!layout.holds(HOLE_START, 1));
        assert!(layout.holds(Gpa::new(6 * GIB - 1), 1));
        assert!(!layout.holds(Gpa::new(6 * GIB - 1), 2));
    }

    /// Pages that 40 address bits have room for beside the hole of one GiB.
    const MOST_PAGES: u64 = (1 << 28) - (1 << 18);

    proptest! {
        #[test]
        fn every_plan_is_sorted_disjoint_aligned_and_complete(pages in 512..=MOST_PAGES, bits in 40u8..=52) {
            let layout = MemoryLayout::plan(pages * PAGE_SIZE, bits).unwrap();
            prop_assert_eq!(layout.bytes(), pages * PAGE_SIZE);
            let ram: Vec<_> = layout.ram().collect();
            for range in &ram {
                prop_assert!(!range.overlaps(layout.hole()));
                prop_assert!(range.end_raw() <= 1 << (bits - 12));
            }
            let map = layout.memory_map();
            for pair in map.windows(2) {
                prop_assert!(pair[0].start.get() + pair[0].bytes <= pair[1].start.get());
            }
            for entry in &map {
                prop_assert!(entry.bytes > 0);
                prop_assert!(layout.holds(entry.start, entry.bytes), "{:?} is not RAM", entry);
            }
            // All RAM is listed but the window between the EBDA and the ACPI tables.
            let listed: u64 = map.iter().map(|entry| entry.bytes).sum();
            prop_assert_eq!(listed, layout.bytes() - (ACPI_START.get() - EBDA_END.get()));
        }

        #[test]
        fn any_size_and_width_plans_or_refuses(bytes: u64, bits: u8) {
            if let Ok(layout) = MemoryLayout::plan(bytes, bits) {
                prop_assert_eq!(layout.bytes(), bytes);
            }
        }
    }
}
