//! A guest program on stock KVM, through `kvm-ioctls` alone.

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VmFd};
use std::error::Error;
use std::sync::Arc;
use umbra_integration_tests::events::assemble::{ACTION_PORT, assemble};
use umbra_integration_tests::events::image::{ENTRY, STACK, system_regs};
use umbra_integration_tests::events::memory::{Large, Memory};
use umbra_integration_tests::events::program::Program;
use umbra_integration_tests::trace::{Event, Session};
use umbra_memslots::{AddressSpaceId, Generation, MemSlot, ObserverError, SlotChange, SlotObserver};
use umbra_vcpu::regs::{DescriptorTable, Segment, SystemRegs};

/// Runs a program to its end, and gives the trace of it.
pub fn run(kvm: &Kvm, session: &Session, program: &Program) -> Result<Vec<Event>, Box<dyn Error>> {
    let vm = Arc::new(kvm.create_vm()?);
    let mut vcpu = vm.create_vcpu(0)?;
    // The vCPU is gone before the memory is, at the end of this function; and it doesn't run while slots change.
    let memory = Memory::new(
        &assemble(program)?,
        Large::Real,
        Some(Box::new(Follower(Arc::clone(&vm)))),
    )?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    let sregs = sregs(&system_regs(program.paging, program.cr3), &vcpu.get_sregs()?);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: ENTRY,
        rsp: STACK,
        rflags: 2,
        ..kvm_regs::default()
    })?;
    let mut actions = program.actions.iter();
    loop {
        match vcpu.run()? {
            // Before the machine goes, which is traced as well.
            VcpuExit::Hlt => return Ok(session.take()?),
            VcpuExit::MmioRead(_, data) => data.fill(0),
            VcpuExit::MmioWrite(..) => {}
            VcpuExit::IoOut(port, _) if port == u16::from(ACTION_PORT) => {
                memory.act(*actions.next().ok_or("no more actions")?)?;
            }
            other => {
                let exit = format!("{other:x?}");
                let regs = vcpu.get_regs()?;
                return Err(format!("{exit} at {:#x}", regs.rip).into());
            }
        }
    }
}

/// Tells KVM of the slots.
struct Follower(Arc<VmFd>);

impl SlotObserver for Follower {
    /// KVM does by itself what is to be done.
    fn before_remove(&mut self, _slot: &MemSlot) {}

    fn after_commit(&mut self, change: &SlotChange) -> Result<(), ObserverError> {
        let request = change.request();
        let region = kvm_userspace_memory_region {
            slot: request.slot,
            flags: request.flags,
            guest_phys_addr: request.guest_phys_addr.get(),
            memory_size: request.memory_size,
            userspace_addr: request.userspace_addr.get(),
        };
        // SAFETY: the memory is a mapping that the slot in our table keeps, and it leaves KVM before it leaves our table
        // (or with the vCPU, which `run` drops first). Nothing else of this process lies in it.
        let done = unsafe { self.0.set_user_memory_region(region) };
        done.map_err(|error| ObserverError {
            observer: "KVM",
            errno: Some(error.errno()),
            source: Box::new(error),
        })
    }

    fn roll_back(&mut self, change: &SlotChange) -> Result<(), ObserverError> {
        self.after_commit(&change.inverse())
    }

    fn generation_changes(&mut self, _space: AddressSpaceId, _next: Generation) {}
}

/// A task state segment that isn't in use.
const AVAILABLE_TASK: u8 = 9;

fn sregs(ours: &SystemRegs, old: &kvm_sregs) -> kvm_sregs {
    kvm_sregs {
        cs: segment(&ours.cs),
        ds: segment(&ours.ds),
        es: segment(&ours.es),
        fs: segment(&ours.fs),
        gs: segment(&ours.gs),
        ss: segment(&ours.ss),
        // QEMU 7.2 aborts if it meets a busy one in a guest, since its own `ltr` leaves none there.
        tr: kvm_segment {
            type_: AVAILABLE_TASK,
            ..segment(&ours.tr)
        },
        ldt: segment(&ours.ldt),
        gdt: table(ours.gdt),
        idt: table(ours.idt),
        cr0: ours.cr0,
        cr3: ours.cr3,
        cr4: ours.cr4,
        efer: ours.efer,
        ..*old
    }
}

fn segment(ours: &Segment) -> kvm_segment {
    kvm_segment {
        base: ours.base,
        limit: ours.limit,
        selector: ours.selector,
        type_: ours.kind,
        present: ours.present.into(),
        dpl: ours.dpl,
        db: ours.db.into(),
        s: ours.non_system.into(),
        l: ours.long.into(),
        g: ours.granularity.into(),
        avl: ours.available.into(),
        unusable: ours.unusable.into(),
        padding: 0,
    }
}

fn table(ours: DescriptorTable) -> kvm_dtable {
    kvm_dtable {
        base: ours.base,
        limit: ours.limit,
        padding: [0; 3],
    }
}
