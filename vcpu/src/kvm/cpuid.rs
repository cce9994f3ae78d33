//! The CPUID leaves a guest sees: what the host supports, with a topology that is true of *this* machine.
//!
//! KVM passes the host's topology leaves through as they are, so an untouched guest of 4 vCPUs may believe that it
//! has the host's 64 threads and caches shared in ways that are not so. The topology told here is one package of
//! `count` cores of one thread each. Intel SDM vol. 2A, CPUID leaves 1, 4, 0xb, 0x1f; AMD APM vol. 3 appendix E,
//! Fn8000_0008, Fn8000_001d, Fn8000_001e; KVM's own leaves: Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// What the CPUID of one vCPU depends on besides the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cpu {
    /// Local APIC id: the number of the vCPU.
    pub id: u32,
    /// vCPUs of the machine.
    pub count: u32,
    /// Whether the local APIC's timer takes TSC deadlines (it does if it is in the kernel and the kernel says so).
    pub tsc_deadline: bool,
}

/// Leaf 1 ECX: TSC deadline timer.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: EBX[23:16] means something ("HTT").
const MULTI_THREADED: u32 = 1 << 28;
/// Leaf 0x8000_0001 ECX: all logical processors of the package are cores (AMD "CmpLegacy").
const CMP_LEGACY: u32 = 1 << 1;
/// Level types of leaves 0xb and 0x1f, ECX[15:8].
const LEVEL_SMT: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

impl Cpu {
    /// Bits of the APIC id that number the cores of the package.
    fn core_bits(self) -> u32 {
        self.count.max(1).next_power_of_two().trailing_zeros()
    }

    /// Adapts the host's supported leaves (`KVM_GET_SUPPORTED_CPUID`) to this vCPU, in place.
    pub fn adapt(self, leaves: &mut CpuId) {
        let extended: Vec<u32> = [0xb, 0x1f]
            .into_iter()
            .filter(|leaf| leaves.as_slice().iter().any(|entry| entry.function == *leaf))
            .collect();
        leaves.retain(|entry| !extended.contains(&entry.function));
        for entry in leaves.as_mut_slice() {
            self.adapt_leaf(entry);
        }
        for leaf in extended {
            for entry in self.topology_leaf(leaf) {
                // Room for these was made above: a host that has the leaf has at least its two levels... or one.
                let _ = leaves.push(entry);
            }
        }
    }

    fn adapt_leaf(self, entry: &mut kvm_cpuid_entry2) {
        let count = self.count.max(1);
        match entry.function {
            1 => {
                let addressable = (1 << self.core_bits()).min(255);
                entry.ebx = (entry.ebx & 0xffff) | (addressable << 16) | ((self.id & 0xff) << 24);
                set(&mut entry.edx, MULTI_THREADED, count > 1);
                set(&mut entry.ecx, TSC_DEADLINE, self.tsc_deadline);
                entry.ecx |= HYPERVISOR;
            }
            // EAX[31:26]: core ids of the package less one; EAX[25:14]: ids sharing this cache less one. The last
            // level (3) is the package's, the others are a core's own. Both fields are about a valid cache only.
            4 if entry.eax & 0x1f != 0 => {
                let cores = (1u32 << self.core_bits()) - 1;
                let sharing = if (entry.eax >> 5) & 7 >= 3 { cores } else { 0 };
                entry.eax = (entry.eax & 0x3fff) | (cores.min(0x3f) << 26) | (sharing.min(0xfff) << 14);
            }
            0x8000_0001 if count == 1 => entry.ecx &= !CMP_LEGACY,
            // ECX[7:0]: threads of the package less one; ECX[15:12]: bits of the APIC id that number them.
            0x8000_0008 => {
                entry.ecx = (entry.ecx & !0xf0ff) | (count - 1).min(0xff) | (self.core_bits().min(0xf) << 12);
            }
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let sharing = if (entry.eax >> 5) & 7 >= 3 { count - 1 } else { 0 };
                entry.eax = (entry.eax & 0x3fff) | (sharing.min(0xfff) << 14);
            }
            // EAX: APIC id; EBX[7:0]: core id, EBX[15:8]: threads per core less one; ECX: one node, number 0.
            0x8000_001e => {
                entry.eax = self.id;
                entry.ebx = self.id & 0xff;
                entry.ecx = 0;
            }
            _ => {}
        }
    }

    /// Leaf 0xb or 0x1f: threads of a core (one), cores of the package, and the terminator.
    fn topology_leaf(self, function: u32) -> [kvm_cpuid_entry2; 3] {
        let level = |index: u32, shift: u32, processors: u32, kind: u32| kvm_cpuid_entry2 {
            function,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: processors,
            ecx: index | kind,
            edx: self.id,
            ..Default::default()
        };
        [
            level(0, 0, 1, LEVEL_SMT),
            level(1, self.core_bits(), self.count.max(1) & 0xffff, LEVEL_CORE),
            level(2, 0, 0, 0),
        ]
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    if on {
        *register |= bit;
    } else {
        *register &= !bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapt(cpu: Cpu, entries: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
        let mut leaves = CpuId::from_entries(entries).unwrap();
        cpu.adapt(&mut leaves);
        leaves.as_slice().to_vec()
    }

    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            ..Default::default()
        }
    }

    #[test]
    fn leaf_1_tells_apic_id_count_and_hypervisor() {
        let host = kvm_cpuid_entry2 {
            ebx: 0x1740_0800,
            edx: 0,
            ecx: 0,
            ..leaf(1, 0)
        };
        let seen = adapt(
            Cpu {
                id: 2,
                count: 3,
                tsc_deadline: true,
            },
            &[host],
        )[0];
        assert_eq!(seen.ebx, 0x0204_0800);
        assert_eq!(seen.ecx, HYPERVISOR | TSC_DEADLINE);
        assert_eq!(seen.edx, MULTI_THREADED);
        let single = adapt(
            Cpu {
                id: 0,
                count: 1,
                tsc_deadline: false,
            },
            &[kvm_cpuid_entry2 {
                edx: u32::MAX,
                ecx: TSC_DEADLINE,
                ..leaf(1, 0)
            }],
        )[0];
        assert_eq!(single.edx & MULTI_THREADED, 0);
        assert_eq!(single.ecx, HYPERVISOR);
    }

    #[test]
    fn caches_below_the_last_level_belong_to_one_core() {
        let l1 = kvm_cpuid_entry2 {
            eax: 0xfc00_4121,
            ..leaf(4, 0)
        };
        let l3 = kvm_cpuid_entry2 {
            eax: 0xfc00_4163,
            ..leaf(4, 3)
        };
        let none = leaf(4, 4);
        let seen = adapt(
            Cpu {
                id: 0,
                count: 4,
                tsc_deadline: false,
            },
            &[l1, l3, none],
        );
        assert_eq!(seen[0].eax, 0x0c00_0121);
        assert_eq!(seen[1].eax, 0x0c00_c163);
        assert_eq!(seen[2].eax, 0);
    }

    #[test]
    fn extended_topology_is_one_package_of_single_threaded_cores() {
        let cpu = Cpu {
            id: 5,
            count: 6,
            tsc_deadline: false,
        };
        let seen = adapt(cpu, &[leaf(0xb, 0), leaf(0xb, 1), leaf(0x1f, 0), leaf(7, 0)]);
        assert_eq!(seen.len(), 7);
        for (entry, (shift, processors, ecx)) in seen[1..4].iter().zip([(0, 1, 0x100), (3, 6, 0x201), (0, 0, 2)]) {
            assert_eq!(
                (entry.function, entry.eax, entry.ebx, entry.ecx, entry.edx),
                (0xb, shift, processors, ecx, 5)
            );
        }
        // A host without the leaves does not get them.
        assert_eq!(adapt(cpu, &[leaf(7, 0)]).len(), 1);
    }

    #[test]
    fn amd_leaves_number_the_cores() {
        let seen = adapt(
            Cpu {
                id: 3,
                count: 4,
                tsc_deadline: false,
            },
            &[
                kvm_cpuid_entry2 {
                    ecx: 0x0001_703f,
                    ..leaf(0x8000_0008, 0)
                },
                leaf(0x8000_001e, 0),
            ],
        );
        assert_eq!(seen[0].ecx, 0x0001_2003);
        assert_eq!((seen[1].eax, seen[1].ebx, seen[1].ecx), (3, 3, 0));
    }
}
