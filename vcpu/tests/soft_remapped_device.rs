//! Memory in the place of a device, on the software CPU: an instruction that is begun anew when a device has answered sees
//! the memory.
#![allow(clippy::unwrap_used, reason = "a panic is how tests fail")]
#![allow(clippy::cast_possible_wrap, reason = "bits")]

#[path = "support/soft_machine.rs"]
mod soft_machine;

use iced_x86::code_asm::*;
use soft_machine::Machine;
use std::sync::Arc;
use umbra_devices::{IoOp, IoSize};
use umbra_memslots::ram::HostMapping;
use umbra_memslots::{AddressSpaceId, Gpa, GuestMemory};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::exit::{VmEntry, VmExit};

const CODE: u64 = 0x1000;
/// A page directory: 4 MiB that are mapped to themselves, and a table whose first page is the device.
const DIRECTORY: u32 = 0x1_0000;
const TABLE: u32 = 0x1_1000;
const PLACE: u32 = 0x40_0000;
const DEVICE: u32 = 0xd000_0000;
/// The memory that comes in its place.
const PAGE: u32 = 0x1_2000;
const PORT: u16 = 0x60;
/// Memory that the port's device takes away.
const OTHER: u32 = 0x20_0000;

/// Reads from the device, has `remap` see to it that memory is there, and writes a byte of that to a port.
fn byte_behind(remap: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> VmExit {
    let machine = Machine::new(1 << 20);
    for (at, value) in [
        (DIRECTORY, 0x83),
        (DIRECTORY + 4, TABLE | 3),
        (TABLE, DEVICE | 3),
        (PAGE, 0x77),
    ] {
        machine.ram.write(Gpa::new(at.into()), &value.to_le_bytes()).unwrap();
    }
    let other = Arc::new(HostMapping::anonymous(0x1000).unwrap());
    let other = machine.ram.map(Gpa::new(OTHER.into()), other).unwrap();
    let mut assembler = CodeAssembler::new(32).unwrap();
    let a = &mut assembler;
    let mut code = || {
        a.mov(eax, 0x10)?;
        a.mov(cr4, eax)?;
        a.mov(eax, DIRECTORY)?;
        a.mov(cr3, eax)?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000u32 as i32)?;
        a.mov(cr0, eax)?;
        a.mov(al, byte_ptr(OTHER))?;
        a.mov(esi, PLACE)?;
        a.lodsb()?;
        a.mov(dword_ptr(TABLE), PAGE | 3)
    };
    code().unwrap();
    remap(a).unwrap();
    a.mov(edx, u32::from(PORT)).unwrap();
    a.mov(esi, PLACE).unwrap();
    a.outsb().unwrap();
    a.hlt().unwrap();
    let code = assembler.assemble(CODE).unwrap();
    machine.ram.write(Gpa::new(CODE), &code).unwrap();

    let mut vcpu = machine.vcpu(CODE, 0x9000);
    vcpu.stop_after(10_000);
    let read = VmExit::Mmio {
        gpa: Gpa::new(DEVICE.into()),
        size: IoSize::B1,
        op: IoOp::Read,
    };
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), read);
    let write = VmExit::Pio {
        port: PORT,
        size: IoSize::B1,
        op: IoOp::Write(0x77),
    };
    assert_eq!(vcpu.run(VmEntry::Value(1)).unwrap(), write);
    // No TLB knows any page when the instruction is done again.
    machine.ram.remove(AddressSpaceId::Normal, other).unwrap();
    vcpu.run(VmEntry::Resume).unwrap()
}

#[test]
fn byte_is_not_read_from_the_device_that_was_there_before_invlpg() {
    assert_eq!(byte_behind(|a| a.invlpg(byte_ptr(PLACE))), VmExit::Hlt);
}

#[test]
fn byte_is_not_read_from_the_device_that_was_there_before_a_load_of_cr3() {
    let reload = |a: &mut CodeAssembler| {
        a.mov(eax, DIRECTORY)?;
        a.mov(cr3, eax)
    };
    assert_eq!(byte_behind(reload), VmExit::Hlt);
}
