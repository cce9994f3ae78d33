//! Software CPUs whose memory goes away under an instruction.
#![allow(clippy::unwrap_used, reason = "a panic is how tests fail")]

#[path = "support/soft_machine.rs"]
mod soft_machine;

use iced_x86::code_asm::*;
use soft_machine::Machine;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use umbra_devices::{IoOp, IoSize};
use umbra_memslots::{
    AddressSpaceId, Generation, Gpa, GuestMemory, HostMapping, MemSlot, NewSlot, ObserverError, SlotChange,
    SlotObserver,
};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::exit::{VmEntry, VmExit};

const CODE: u64 = 0x1000;
/// A slot of its own, of one page.
const STACK: u64 = 0x10_0000;
const MMIO: u64 = 0x1000_0000;

/// Stops a removal half way.
struct Halfway {
    reached: Sender<()>,
    go_on: Receiver<()>,
}

impl SlotObserver for Halfway {
    fn before_remove(&mut self, _slot: &MemSlot) {
        self.reached.send(()).unwrap();
        self.go_on.recv().unwrap();
    }

    fn after_commit(&mut self, _change: &SlotChange) -> Result<(), ObserverError> {
        Ok(())
    }

    fn roll_back(&mut self, _change: &SlotChange) -> Result<(), ObserverError> {
        Ok(())
    }

    fn generation_changes(&mut self, _space: AddressSpaceId, _next: Generation) {}
}

#[test]
fn device_is_read_once_by_an_instruction_whose_memory_goes_away_meanwhile() {
    let machine = Machine::new(0x1_0000);
    let (reached, is_reached) = channel();
    let (go_on, may_go_on) = channel();
    machine.ram.add_observer(Box::new(Halfway {
        reached,
        go_on: may_go_on,
    }));
    let mapping = Arc::new(HostMapping::anonymous(0x1000).unwrap());
    let slot = machine.ram.map(Gpa::new(STACK), Arc::clone(&mapping) as _).unwrap();
    let mut a = CodeAssembler::new(32).unwrap();
    a.push(dword_ptr(MMIO)).unwrap();
    a.hlt().unwrap();
    machine.ram.write(Gpa::new(CODE), &a.assemble(CODE).unwrap()).unwrap();
    let mut vcpu = machine.vcpu(CODE, STACK + 0x1000);
    let read = VmExit::Mmio {
        gpa: Gpa::new(MMIO),
        size: IoSize::B4,
        op: IoOp::Read,
    };
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), read);

    let ram = machine.ram.clone();
    let removal = std::thread::spawn(move || ram.remove(AddressSpaceId::Normal, slot).map(drop));
    is_reached.recv().unwrap();
    let kick = vcpu.kick_handle();
    let kicker = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        kick.kick();
    });
    assert_eq!(vcpu.run(VmEntry::Value(7)).unwrap(), VmExit::Interrupted);
    assert_eq!(vcpu.regs().unwrap().rip, CODE);
    kicker.join().unwrap();
    go_on.send(()).unwrap();
    removal.join().unwrap().unwrap();
    machine.ram.add(NewSlot::whole(Gpa::new(STACK), mapping)).unwrap();

    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Hlt);
    let mut pushed = [0; 4];
    machine.ram.read(Gpa::new(STACK + 0xffc), &mut pushed).unwrap();
    assert_eq!(u32::from_le_bytes(pushed), 7);
}
