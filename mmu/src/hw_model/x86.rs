//! Walks x86 tables. Written from the tables of the SDM (vol. 3A, chapter 4) one after the other, each entry format with
//! its own literal masks.

use super::cpu::{HwAccess, HwCpu, HwMemory};

/// Where an access goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HwPage {
    /// The physical address, to the byte.
    pub address: u64,
    /// Size of the page in bytes.
    pub size: u64,
}

/// What becomes of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HwOutcome {
    /// It goes to memory.
    Access(HwPage),
    /// #PF; CR2 is the address.
    PageFault {
        /// The error code.
        code: u32,
    },
    /// #GP(0): the address isn't canonical.
    GeneralProtection,
}

struct Entry {
    address: u64,
    bytes: u64,
    value: u64,
}

/// Translates `linear` for `access`. On success, A flags on the way and the D flag of a written page are set.
pub fn hw_walk(cpu: &HwCpu, memory: &impl HwMemory, linear: u64, access: HwAccess) -> HwOutcome {
    loop {
        match once(cpu, memory, linear, access) {
            Some(outcome) => return outcome,
            // Another CPU changed an entry before its flags were set.
            None => continue,
        }
    }
}

fn once(cpu: &HwCpu, memory: &impl HwMemory, linear: u64, access: HwAccess) -> Option<HwOutcome> {
    let bit = |register: u64, number: u32| register >> number & 1 == 1;
    let (pg, wp) = (bit(cpu.cr0, 31), bit(cpu.cr0, 16));
    let (pse, pae, la57) = (bit(cpu.cr4, 4), bit(cpu.cr4, 5), bit(cpu.cr4, 12));
    let (smep, smap, pke) = (bit(cpu.cr4, 20), bit(cpu.cr4, 21), bit(cpu.cr4, 22));
    let (lma, nxe) = (bit(cpu.efer, 10), bit(cpu.efer, 11));
    if !pg {
        return Some(HwOutcome::Access(HwPage {
            address: linear,
            size: 4096,
        }));
    }

    let user_access = access.cpl3 && !access.implicit;
    let tried = u32::from(access.write) << 1
        | u32::from(user_access) << 2
        | u32::from(access.fetch && (smep || (pae && nxe))) << 4;
    let fault = |code: u32| Some(HwOutcome::PageFault { code: code | tried });

    let m = cpu.maxphyaddr;
    // Bits M..=51 and, without EFER.NXE, bit 63.
    let high = (0x000f_ffff_ffff_ffff & !((1 << m) - 1)) | if nxe { 0 } else { 0x8000_0000_0000_0000 };
    let (mut entries, mut used): ([Option<Entry>; 5], usize) = ([None, None, None, None, None], 0);
    let mut push = |address, bytes, value| {
        entries[used] = Some(Entry { address, bytes, value });
        used += 1;
    };
    let page;
    if !pae {
        let address = (cpu.cr3 & 0xffff_f000) + (linear >> 22 & 0x3ff) * 4;
        let pde = memory.load(address, 4);
        if pde & 1 == 0 {
            return fault(0);
        }
        push(address, 4, pde);
        if pse && pde & 0x80 != 0 {
            // Table 4-4: address bits 39:32 (or up to M-1) in 20:13, the rest of 21:13 reserved.
            let mut reserved = 0x3f_e000;
            let mut upper = 0;
            if cpu.pse36 {
                for address_bit in 32..m.min(40) {
                    let here = 1 << (address_bit - 32 + 13);
                    reserved &= !here;
                    if pde & here != 0 {
                        upper |= 1 << address_bit;
                    }
                }
            }
            if pde & reserved != 0 {
                return fault(9);
            }
            page = HwPage {
                address: (pde & 0xffc0_0000) | upper | (linear & 0x3f_ffff),
                size: 0x40_0000,
            };
        } else {
            let address = (pde & 0xffff_f000) + (linear >> 12 & 0x3ff) * 4;
            let pte = memory.load(address, 4);
            if pte & 1 == 0 {
                return fault(0);
            }
            push(address, 4, pte);
            page = HwPage {
                address: (pte & 0xffff_f000) | (linear & 0xfff),
                size: 4096,
            };
        }
    } else if !lma {
        let pdpte = cpu.pdpte[(linear >> 30 & 3) as usize];
        if pdpte & 1 == 0 {
            return fault(0);
        }
        let high = high | 0x7ff0_0000_0000_0000;
        let address = (pdpte & 0x000f_ffff_ffff_f000) + (linear >> 21 & 0x1ff) * 8;
        let pde = memory.load(address, 8);
        if pde & 1 == 0 {
            return fault(0);
        }
        push(address, 8, pde);
        if pde & 0x80 != 0 {
            if pde & (high | 0x1f_e000) != 0 {
                return fault(9);
            }
            page = HwPage {
                address: (pde & 0x000f_ffff_ffe0_0000) | (linear & 0x1f_ffff),
                size: 0x20_0000,
            };
        } else {
            if pde & high != 0 {
                return fault(9);
            }
            let address = (pde & 0x000f_ffff_ffff_f000) + (linear >> 12 & 0x1ff) * 8;
            let pte = memory.load(address, 8);
            if pte & 1 == 0 {
                return fault(0);
            }
            if pte & high != 0 {
                return fault(9);
            }
            push(address, 8, pte);
            page = HwPage {
                address: (pte & 0x000f_ffff_ffff_f000) | (linear & 0xfff),
                size: 4096,
            };
        }
    } else {
        let sign = if la57 { linear >> 56 } else { linear >> 47 };
        let all = if la57 { 0xff } else { 0x1_ffff };
        if sign != 0 && sign != all {
            return Some(HwOutcome::GeneralProtection);
        }
        let mut table = cpu.cr3 & 0x000f_ffff_ffff_f000;
        let mut found = None;
        for (name, shift) in [("PML5E", 48), ("PML4E", 39), ("PDPTE", 30), ("PDE", 21), ("PTE", 12)] {
            if name == "PML5E" && !la57 {
                continue;
            }
            let address = table + (linear >> shift & 0x1ff) * 8;
            let entry = memory.load(address, 8);
            if entry & 1 == 0 {
                return fault(0);
            }
            let ps = entry & 0x80 != 0;
            let reserved = match (name, ps) {
                ("PML5E" | "PML4E", _) => high | 0x80 | if cpu.amd { 0x100 } else { 0 },
                ("PDPTE", true) => high | 0x3fff_e000 | if cpu.page1gb { 0 } else { 0x80 },
                ("PDE", true) => high | 0x1f_e000,
                _ => high,
            };
            if entry & reserved != 0 {
                return fault(9);
            }
            push(address, 8, entry);
            if name == "PTE" || (ps && (name == "PDPTE" || name == "PDE")) {
                let offset = (1u64 << shift) - 1;
                let frame = entry & 0x000f_ffff_ffff_f000 & !offset;
                found = Some(HwPage {
                    address: frame | (linear & offset),
                    size: offset + 1,
                });
                break;
            }
            table = entry & 0x000f_ffff_ffff_f000;
        }
        // The PTE always ends the walk.
        page = found?;
    }

    // Permissions: SDM 4.6.1, sentence by sentence.
    let all = |bit: u64| entries.iter().flatten().all(|entry| entry.value & bit != 0);
    let any = |bit: u64| entries.iter().flatten().any(|entry| entry.value & bit != 0);
    let (user_page, writable) = (all(4), all(2));
    let no_execute = nxe && any(1 << 63);
    let mut denied = false;
    if access.fetch {
        denied |= no_execute;
        denied |= user_access && !user_page;
        denied |= !user_access && user_page && smep;
    } else {
        denied |= user_access && !user_page;
        denied |= access.write && !writable && (user_access || wp);
        let ac = bit(cpu.rflags, 18) && !access.implicit;
        denied |= !user_access && user_page && smap && !ac;
    }
    let mut key_denied = false;
    if lma && pke && user_page && !access.fetch {
        let last = entries.iter().flatten().last();
        let key = last.map_or(0, |entry| entry.value >> 59 & 0xf);
        let (ad, wd) = (cpu.pkru >> (2 * key) & 1 == 1, cpu.pkru >> (2 * key + 1) & 1 == 1);
        key_denied = ad || (wd && access.write && (user_access || wp));
    }
    if denied || key_denied {
        return fault(1 | u32::from(key_denied) << 5);
    }
    for (index, entry) in entries.iter().flatten().enumerate() {
        let bits = if access.write && index + 1 == used { 0x60 } else { 0x20 };
        if entry.value & bits != bits && !memory.set_bits(entry.address, entry.bytes, entry.value, bits) {
            return None;
        }
    }
    Some(HwOutcome::Access(page))
}
