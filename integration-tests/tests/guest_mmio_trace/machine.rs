//! The smallest machine that can touch any gfn with any access: one RAM slot with page tables and two instructions.
//! Made with `kvm-ioctls` alone, so that what the trace shows is KVM's doing and none of ours.

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use umbra_memslots::{AddressSpaceId, Generation, Gfn, Gpa, Hva, SlotFlags, SlotLimits, SlotRequest, SlotTable};
use umbra_mmu::AccessMask;

/// Bytes of RAM, at guest-physical 0.
const RAM: usize = 64 << 10;
const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
/// Maps the RAM where it is.
const LOW_PD: usize = 0x3000;
/// Maps `WINDOW`.
const WINDOW_PD: usize = 0x4000;
const WINDOW_PT: usize = 0x5000;
const READ: usize = 0x8000;
const WRITE: usize = 0x8010;
/// Where the MMIO pages are in guest-virtual memory: page `i` of the plan at `WINDOW + i * 4096`.
const WINDOW: u64 = 1 << 30;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
/// Accessed and dirty from the start, so that no walk writes.
const USED: u64 = 3 << 5;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// A page the guest touches: which frame, and what the guest's tables allow there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    pub gfn: Gfn,
    pub access: AccessMask,
}

/// How the guest's CPU translates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Paging {
    /// 32-bit protected mode without paging: the address is the guest-physical one.
    Off,
    /// Four levels, with the targets mapped as they say.
    Long,
}

#[repr(align(4096))]
struct Ram([u8; RAM]);

/// A VM with one vCPU. The VM comes before the memory that it maps, so it is gone first.
pub struct Machine {
    vcpu: VcpuFd,
    vm: VmFd,
    ram: Box<Ram>,
    spare: Box<Ram>,
    targets: Vec<Target>,
    paging: Paging,
    /// Our own slots: told what KVM is told.
    slots: SlotTable,
}

impl Machine {
    pub fn new(kvm: &Kvm, paging: Paging, targets: &[Target]) -> Result<Self, kvm_ioctls::Error> {
        let vm = kvm.create_vm()?;
        let mut machine = Self {
            vcpu: vm.create_vcpu(0)?,
            vm,
            ram: Box::new(Ram([0; RAM])),
            spare: Box::new(Ram([0; RAM])),
            targets: targets.to_vec(),
            paging,
            slots: SlotTable::new(SlotLimits::X86_64),
        };
        machine.write_tables();
        // mov eax, [rdi]  and  mov [rdi], eax; the same bytes in 32-bit code, with edi.
        machine.ram.0[READ..READ + 2].copy_from_slice(&[0x8b, 0x07]);
        machine.ram.0[WRITE..WRITE + 2].copy_from_slice(&[0x89, 0x07]);
        let address = machine.ram.0.as_ptr() as u64;
        machine.set_slot(0, 0, RAM, address)?;
        // Without CPUID the guest would have 36 physical address bits.
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        machine.vcpu.set_cpuid2(&cpuid)?;
        Ok(machine)
    }

    /// Adds a slot far from everything else, which moves the generation on.
    pub fn add_spare_slot(&mut self) -> Result<(), kvm_ioctls::Error> {
        let address = self.spare.0.as_ptr() as u64;
        self.set_slot(1, RAM as u64 * 16, RAM, address)
    }

    /// Removes it again, which moves the generation on twice.
    pub fn remove_spare_slot(&mut self) -> Result<(), kvm_ioctls::Error> {
        self.set_slot(1, 0, 0, 0)
    }

    /// Lets the guest access one target and gives the exit that came of it, e.g. `read 0xd0000000`.
    pub fn touch(&mut self, index: usize, write: bool) -> Result<String, kvm_ioctls::Error> {
        let target = self.targets[index];
        let gpa = target.gfn.base().get();
        let user = target.access.contains(AccessMask::USER);
        let address = match self.paging {
            Paging::Off => gpa,
            Paging::Long => WINDOW + index as u64 * 4096,
        };
        let sregs = self.segments(self.vcpu.get_sregs()?, user);
        self.vcpu.set_sregs(&sregs)?;
        self.vcpu.set_regs(&kvm_regs {
            rip: if write { WRITE } else { READ } as u64,
            rdi: address,
            rflags: 2,
            ..kvm_regs::default()
        })?;
        let seen = match self.vcpu.run()? {
            VcpuExit::MmioRead(at, _) => format!("read {at:#x}"),
            VcpuExit::MmioWrite(at, _) => format!("write {at:#x}"),
            other => format!("{other:?}"),
        };
        // Completes the instruction without going on to the next.
        self.vcpu.set_kvm_immediate_exit(1);
        let interrupted = self.vcpu.run().map(|exit| format!("{exit:?}"));
        self.vcpu.set_kvm_immediate_exit(0);
        assert_eq!(interrupted.map_err(|error| error.errno()), Err(4), "EINTR");
        Ok(seen)
    }

    /// The generation that our own slots have come to.
    pub fn generation(&self) -> Generation {
        self.slots.slots(AddressSpaceId::Normal).generation()
    }

    fn set_slot(&mut self, slot: u32, at: u64, bytes: usize, address: u64) -> Result<(), kvm_ioctls::Error> {
        let request = SlotRequest::set(slot, SlotFlags::empty(), Gpa::new(at), bytes as u64, Hva::new(address));
        self.slots.apply(request).expect("within the rules");
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: at,
            memory_size: bytes as u64,
            userspace_addr: address,
        };
        // SAFETY: the memory is owned by `self`, is not moved while boxed, is never borrowed while the guest runs, and
        // outlives the VM, whose file descriptors are closed before it is freed.
        unsafe { self.vm.set_user_memory_region(region) }
    }

    fn write_tables(&mut self) {
        let all = PRESENT | WRITABLE | USER | USED;
        self.entry(PML4, 0, PDPT as u64 | all);
        self.entry(PDPT, 0, LOW_PD as u64 | all);
        self.entry(PDPT, 1, WINDOW_PD as u64 | all);
        self.entry(LOW_PD, 0, LARGE | all);
        self.entry(WINDOW_PD, 0, WINDOW_PT as u64 | all);
        for (index, target) in self.targets.clone().into_iter().enumerate() {
            let when = |has: AccessMask, bit| if target.access.contains(has) { bit } else { 0 };
            let execute = NO_EXECUTE & !when(AccessMask::EXEC, NO_EXECUTE);
            let bits = PRESENT | USED | execute | when(AccessMask::WRITE, WRITABLE) | when(AccessMask::USER, USER);
            self.entry(WINDOW_PT, index, target.gfn.base().get() | bits);
        }
    }

    fn entry(&mut self, table: usize, index: usize, entry: u64) {
        let at = table + index * 8;
        self.ram.0[at..at + 8].copy_from_slice(&entry.to_le_bytes());
    }

    fn segments(&self, old: kvm_sregs, user: bool) -> kvm_sregs {
        let long = self.paging == Paging::Long;
        let dpl = if user && long { 3 } else { 0 };
        let flat = |type_, selector| kvm_segment {
            base: 0,
            limit: u32::MAX,
            selector,
            type_,
            present: 1,
            dpl,
            db: u8::from(!long),
            s: 1,
            l: 0,
            g: 1,
            ..kvm_segment::default()
        };
        let data = flat(3, 0x10 | u16::from(dpl));
        let code = kvm_segment {
            l: u8::from(long),
            ..flat(11, 8 | u16::from(dpl))
        };
        // CR0: PE, ET, and for long mode PG; NE and WP as every kernel has them. CR4: PAE. EFER: LME, LMA, NXE.
        let (cr0, cr4, efer) = if long {
            (0x8001_0031, 1 << 5, 0xd00)
        } else {
            (0x31, 0, 0)
        };
        kvm_sregs {
            cs: code,
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            cr0,
            cr3: if long { PML4 as u64 } else { 0 },
            cr4,
            // EFER.SVME and the like are not ours to change.
            efer,
            ..old
        }
    }
}
