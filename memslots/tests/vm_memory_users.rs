//! The crates that others write against vm-memory take our memory as it is.
#![expect(clippy::unwrap_used, reason = "test helpers fail by panicking")]

use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::Elf;
use std::io::Cursor;
use std::sync::Arc;
use umbra_memslots::{
    AddressSpaceId, DeviceMemory, DeviceRam, Gpa, GuestMemory, GuestRam, HostMapping, NewSlot, SlotFlags, SlotLimits,
};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, Permissions};

fn mapping(bytes: u64) -> Arc<HostMapping> {
    Arc::new(HostMapping::anonymous(bytes).unwrap())
}

/// A 64-bit ELF executable with one segment: `code` at `address`.
fn tiny_elf(address: u64, code: &[u8]) -> Vec<u8> {
    let mut image = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    image.resize(16, 0);
    image.extend([2u16, 62].iter().flat_map(|half| half.to_le_bytes())); // executable, x86-64
    image.extend(1u32.to_le_bytes());
    image.extend([address, 64, 0].iter().flat_map(|word| word.to_le_bytes())); // entry, program headers, sections
    image.extend(0u32.to_le_bytes());
    image.extend([64u16, 56, 1, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    image.extend([1u32, 5].iter().flat_map(|word| word.to_le_bytes())); // load, read and execute
    let length = code.len() as u64;
    image.extend(
        [120, address, address, length, length, 1]
            .iter()
            .flat_map(|word: &u64| word.to_le_bytes()),
    );
    image.extend(code);
    image
}

#[test]
fn linux_loader_loads_an_elf_across_two_slots() {
    let ram = GuestRam::new(SlotLimits::X86_64);
    ram.map(Gpa::new(0x10_0000), mapping(0x1000)).unwrap();
    ram.map(Gpa::new(0x10_1000), mapping(0x1000)).unwrap();
    let code: Vec<u8> = (0..=255).cycle().take(0x800).collect();
    let image = tiny_elf(0x10_0c00, &code);
    let slots = ram.snapshot();
    let loaded = Elf::load(&*slots, None, &mut Cursor::new(&image), Some(GuestAddress(0x10_0000))).unwrap();
    assert_eq!(loaded.kernel_load, GuestAddress(0x10_0c00));
    let mut found = vec![0; code.len()];
    ram.read(Gpa::new(0x10_0c00), &mut found).unwrap();
    assert_eq!(found, code);
}

#[test]
fn linux_loader_without_memory_reports_it() {
    let ram = GuestRam::new(SlotLimits::X86_64);
    ram.map(Gpa::new(0x10_0000), mapping(0x1000)).unwrap();
    let image = tiny_elf(0x10_0c00, &[0x90; 0x800]);
    assert!(Elf::load(&*ram.snapshot(), None, &mut Cursor::new(&image), None).is_err());
}

const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;

/// Puts one chain (a buffer to read, a buffer to write) into a queue in guest memory, as a driver does.
fn drive(ram: &GuestRam, readable: u64, writable: u64) -> Queue {
    let slots = ram.snapshot();
    let descriptors = [Descriptor::new(readable, 8, 1, 1), Descriptor::new(writable, 8, 2, 0)];
    for (number, descriptor) in descriptors.into_iter().enumerate() {
        slots
            .write_obj(
                RawDescriptor::from(descriptor),
                GuestAddress(TABLE + 16 * number as u64),
            )
            .unwrap();
    }
    slots.write_obj(0u16, GuestAddress(AVAIL + 4)).unwrap(); // the chain starts at descriptor 0
    slots.write_obj(1u16, GuestAddress(AVAIL + 2)).unwrap(); // one chain
    let mut queue = Queue::new(16).unwrap();
    queue.set_size(16);
    queue.set_desc_table_address(Some(u32::try_from(TABLE).unwrap()), Some(0));
    queue.set_avail_ring_address(Some(u32::try_from(AVAIL).unwrap()), Some(0));
    queue.set_used_ring_address(Some(u32::try_from(USED).unwrap()), Some(0));
    queue.set_ready(true);
    queue
}

#[test]
fn virtqueue_runs_over_the_snapshot_and_logs_what_the_device_writes() {
    let ram = GuestRam::new(SlotLimits::X86_64);
    let id = ram
        .add(NewSlot::whole(Gpa::new(0), mapping(0x1_0000)).with_flags(SlotFlags::LOG_DIRTY))
        .unwrap();
    ram.write(Gpa::new(0x5000), b"question").unwrap();
    let mut queue = drive(&ram, 0x5000, 0x6000);
    let log = |ram: &GuestRam| {
        ram.with_table(|table| table.get_dirty_log(id.in_space(AddressSpaceId::Normal)))
            .unwrap()
    };
    log(&ram);

    let memory = ram.memory();
    assert!(queue.is_valid(&*memory));
    let chain = queue.pop_descriptor_chain(memory.clone()).unwrap();
    let head = chain.head_index();
    for descriptor in chain {
        let mut buffer = [0; 8];
        if descriptor.is_write_only() {
            memory.write_slice(b"answer!!", descriptor.addr()).unwrap();
        } else {
            memory.read_slice(&mut buffer, descriptor.addr()).unwrap();
            assert_eq!(&buffer, b"question");
        }
    }
    queue.add_used(&*memory, head, 8).unwrap();
    assert_eq!(memory.read_obj::<u16>(GuestAddress(USED + 2)).unwrap(), 1);
    assert_eq!(log(&ram), [1 << 6 | 1 << 3]);
}

#[test]
fn device_cannot_write_where_the_guest_cannot() {
    let ram = GuestRam::new(SlotLimits::X86_64);
    ram.map(Gpa::new(0), mapping(0x1_0000)).unwrap();
    ram.add(NewSlot::whole(Gpa::new(0x1_0000), mapping(0x1000)).with_flags(SlotFlags::READ_ONLY))
        .unwrap();
    // The host fills its read-only memory through the plain view.
    ram.snapshot().write_slice(b"firmware", GuestAddress(0x1_0000)).unwrap();

    let devices = DeviceRam::new(ram.clone());
    let memory = devices.memory();
    let mut queue = drive(&ram, 0x1_0000, 0x1_0008);
    let chain = queue.pop_descriptor_chain(memory.clone()).unwrap();
    for descriptor in chain {
        let mut buffer = [0; 8];
        if descriptor.is_write_only() {
            assert!(memory.write_slice(b"answer!!", descriptor.addr()).is_err());
        } else {
            memory.read_slice(&mut buffer, descriptor.addr()).unwrap();
            assert_eq!(&buffer, b"firmware");
        }
    }
    let range = (GuestAddress(0xfffc), 8);
    let check = |access| vm_memory::GuestMemory::check_range(&*memory, range.0, range.1, access);
    assert!(check(Permissions::Read) && !check(Permissions::Write) && !check(Permissions::ReadWrite));
    assert!(
        DeviceMemory::new(ram.snapshot())
            .write_slice(&[1; 4], GuestAddress(0xfffc))
            .is_ok()
    );
}
