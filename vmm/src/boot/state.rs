//! What [`load`](super::load) gives back: the boot CPU's registers, and an account for people.

use super::decompress::Compression;
use super::place::Placed;
use std::fmt;
use umbra_memslots::Gpa;
use umbra_vcpu::regs::{Regs, SystemRegs};

/// How the kernel is entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// Linux, long mode, zero page in RSI.
    Linux64,
    /// PVH, protected mode, start info in EBX.
    Pvh,
    /// Multiboot1, protected mode, magic in EAX, information in EBX.
    Multiboot1,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linux64 => "64-bit Linux boot protocol",
            Self::Pvh => "PVH",
            Self::Multiboot1 => "multiboot1",
        })
    }
}

/// What the kernel image turned out to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ImageKind {
    /// A bzImage.
    BzImage {
        /// The version string in it, empty if it has none.
        version: String,
        /// How its payload was compressed and by us decompressed, or `None` if the guest does that.
        decompressed: Option<Compression>,
    },
    /// An ELF executable.
    Elf {
        /// 32 or 64.
        bits: u8,
    },
    /// A flat multiboot1 image, loaded by the addresses in its multiboot header.
    Flat,
}

impl fmt::Display for ImageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BzImage { version, decompressed } => {
                f.write_str("bzImage")?;
                if !version.is_empty() {
                    write!(f, " {version}")?;
                }
                match decompressed {
                    Some(Compression::None) => f.write_str(" (not compressed)"),
                    Some(compression) => write!(f, " ({compression}, decompressed by the host)"),
                    None => f.write_str(" (decompresses itself)"),
                }
            }
            Self::Elf { bits } => write!(f, "{bits}-bit ELF"),
            Self::Flat => f.write_str("flat image"),
        }
    }
}

/// A guest ready for its first instruction. Application processors are not in it: they wait for INIT and SIPI.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BootState {
    /// General registers of the boot CPU.
    pub regs: Regs,
    /// Its segments and control registers. `apic_base` is that of an enabled local APIC of a boot CPU.
    pub system: SystemRegs,
    /// What the image is.
    pub image: ImageKind,
    /// How it is entered.
    pub protocol: Protocol,
    /// Where it is entered.
    pub entry: Gpa,
    /// What lies where, by address.
    pub placed: Vec<Placed>,
    /// What the kernel asked for and does not get, though it can be started: one line each.
    pub remarks: Vec<String>,
}

impl fmt::Display for BootState {
    /// A line on the kernel, then one for each thing in memory.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, entry {:#x}", self.image, self.protocol, self.entry)?;
        for placed in &self.placed {
            write!(f, "\n  {placed}")?;
        }
        for remark in &self.remarks {
            write!(f, "\n  note: {remark}")?;
        }
        Ok(())
    }
}
