//! Where a linear address leads, entry by entry: for people, so it changes nothing and stops at the first thing wrong.

use crate::regs::SystemRegs;
use std::fmt;
use umbra_memslots::{EntrySize, Gpa, GuestMemory, Gva};

/// CR0.PG, CR4.PSE, CR4.PAE, CR4.LA57, EFER.LMA (SDM vol. 3A section 4.1.1).
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
/// Bits of every paging entry.
const PRESENT: u64 = 1;
const PAGE: u64 = 1 << 7;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// One paging-structure entry on the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// What the manual calls the entry, e.g. `PML4E`.
    pub name: &'static str,
    /// Where it lies.
    pub at: Gpa,
    /// Its value; `None` if no memory is there.
    pub entry: Option<u64>,
}

/// A walk and where it led.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Walk {
    /// The address that was walked.
    pub gva: Gva,
    /// The entries in the order of the walk; none if paging is off.
    pub steps: Vec<Step>,
    /// The guest-physical address, if the walk ended well.
    pub gpa: Option<Gpa>,
}

impl Walk {
    /// Walks `gva` with the paging that `regs` describe. Permissions and reserved bits are not looked at: the question
    /// is where the address leads, not whether somebody may go there.
    pub fn of(gva: Gva, regs: &SystemRegs, memory: &impl GuestMemory) -> Self {
        let mut walk = Self {
            gva,
            steps: Vec::new(),
            gpa: None,
        };
        walk.gpa = if regs.cr0 & CR0_PG == 0 {
            Some(Gpa::new(gva.get()))
        } else if regs.cr4 & CR4_PAE == 0 {
            walk.two_levels(regs, memory)
        } else {
            walk.wide_levels(regs, memory)
        };
        walk
    }

    /// 32-bit paging: 4-byte entries, two levels, 4 MiB pages with CR4.PSE.
    fn two_levels(&mut self, regs: &SystemRegs, memory: &impl GuestMemory) -> Option<Gpa> {
        let gva = self.gva.get() & 0xffff_ffff;
        let pde = self.step("PDE", (regs.cr3 & 0xffff_f000) + (gva >> 22) * 4, EntrySize::B4, memory)?;
        if pde & PAGE != 0 && regs.cr4 & CR4_PSE != 0 {
            // PSE-36: bits 20:13 are bits 39:32 of the address (SDM vol. 3A table 4-4).
            let high = (pde >> 13 & 0xff) << 32;
            return Some(Gpa::new(high | (pde & 0xffc0_0000) | (gva & 0x3f_ffff)));
        }
        let pte = self.step(
            "PTE",
            (pde & 0xffff_f000) + (gva >> 12 & 0x3ff) * 4,
            EntrySize::B4,
            memory,
        )?;
        Some(Gpa::new((pte & 0xffff_f000) | (gva & 0xfff)))
    }

    /// PAE, 4-level and 5-level paging: 8-byte entries.
    fn wide_levels(&mut self, regs: &SystemRegs, memory: &impl GuestMemory) -> Option<Gpa> {
        const LEVELS: [(&str, u32); 5] = [("PML5E", 48), ("PML4E", 39), ("PDPTE", 30), ("PDE", 21), ("PTE", 12)];
        let long = regs.efer & EFER_LMA != 0;
        let (from, mut table) = match (long, regs.cr4 & CR4_LA57 != 0) {
            (false, _) => (2, regs.cr3 & 0xffff_ffe0),
            (true, false) => (1, regs.cr3 & FRAME),
            (true, true) => (0, regs.cr3 & FRAME),
        };
        let gva = if long {
            self.gva.get()
        } else {
            self.gva.get() & 0xffff_ffff
        };
        for &(name, shift) in &LEVELS[from..] {
            let entry = self.step(name, table + (gva >> shift & 0x1ff) * 8, EntrySize::B8, memory)?;
            let leaf = shift == 12 || (entry & PAGE != 0 && shift <= 30 && (long || shift <= 21));
            if leaf {
                let offset = (1 << shift) - 1;
                return Some(Gpa::new((entry & FRAME & !offset) | (gva & offset)));
            }
            table = entry & FRAME;
        }
        None
    }

    /// Reads an entry; `None` ends the walk.
    fn step(&mut self, name: &'static str, at: u64, size: EntrySize, memory: &impl GuestMemory) -> Option<u64> {
        let at = Gpa::new(at);
        let entry = memory.read_entry(at, size).ok();
        self.steps.push(Step { name, at, entry });
        entry.filter(|entry| entry & PRESENT != 0)
    }
}

impl fmt::Display for Walk {
    /// `0x1000 -> PML4E 0x8000 = 0x9007 -> ... -> gpa 0x1000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.gva)?;
        for Step { name, at, entry } in &self.steps {
            match entry {
                Some(entry) => write!(f, " -> {name} at {at} = {entry:#x}")?,
                None => write!(f, " -> {name} at {at}: no memory there")?,
            }
        }
        match (self.gpa, self.steps.last()) {
            (Some(gpa), None) => write!(f, " -> gpa {gpa} (paging is off)"),
            (Some(gpa), Some(_)) => write!(f, " -> gpa {gpa}"),
            (None, Some(Step { entry: Some(_), .. })) => write!(f, " (not present)"),
            (None, _) => Ok(()),
        }
    }
}
