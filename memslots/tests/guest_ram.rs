//! Real memory through slots: mappings, changes under running readers, dirty logs, the vm-memory traits.
#![expect(clippy::unwrap_used, reason = "test helpers fail by panicking")]

use std::io::{Read, Seek, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use umbra_memslots::ram::{HugePageSize, Sharing, Source};
use umbra_memslots::{
    AddressSpaceId, Gfn, Gpa, GuestMemory, GuestRam, HostMapping, MappingError, MemoryFault, NewSlot, SlotError,
    SlotFlags, SlotLimits, SlotTable,
};
use vm_memory::{GuestAddress, GuestMemoryBackend, MemoryRegionAddress};

const SPACE: AddressSpaceId = AddressSpaceId::Normal;

fn mapping(bytes: u64) -> Arc<HostMapping> {
    Arc::new(HostMapping::anonymous(bytes).unwrap())
}

fn ram() -> GuestRam {
    GuestRam::new(SlotLimits::X86_64)
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn large_memory_costs_nothing_until_used() {
    let before = resident_bytes();
    // More than the machine has free, perhaps, but not more than it has.
    let ram = ram();
    let size = 1 << 30;
    let slot = ram.map(Gpa::new(0), mapping(size)).unwrap();
    ram.write(Gpa::new(size - 8), &[1; 8]).unwrap();
    assert_eq!(ram.snapshot().by_id(slot).unwrap().bytes(), size);
    assert!(resident_bytes() < before + (64 << 20));
}

#[test]
fn bad_sizes_and_more_than_the_host_has_are_named() {
    assert!(matches!(
        HostMapping::anonymous(0),
        Err(MappingError::BadSize { bytes: 0, unit: 4096 })
    ));
    assert!(matches!(
        HostMapping::anonymous(1024),
        Err(MappingError::BadSize { .. })
    ));
    let Err(MappingError::MoreThanHost { bytes, host }) = HostMapping::anonymous(1 << 60) else {
        panic!("an exbibyte was mapped");
    };
    assert!(bytes > host);
    assert!(matches!(
        HostMapping::new(Source::AnonymousHuge(HugePageSize::Size2M), 4096),
        Err(MappingError::BadSize { unit: 0x20_0000, .. })
    ));
}

#[test]
fn huge_pages_work_or_their_lack_is_named() {
    for size in [HugePageSize::Size2M, HugePageSize::Size1G] {
        let wanted = size.free_in_pool().unwrap_or(0) + 1;
        let error = HostMapping::new(Source::MemfdHuge(size), wanted * size.bytes()).unwrap_err();
        assert!(matches!(error, MappingError::HugePages { .. }), "{error}");
        if wanted == 1 {
            println!("skipped: memory in pages of {size}: none are free on this host");
            continue;
        }
        for source in [Source::AnonymousHuge(size), Source::MemfdHuge(size)] {
            let ram = ram();
            ram.map(Gpa::new(0), Arc::new(HostMapping::new(source, size.bytes()).unwrap()))
                .unwrap();
            ram.write(Gpa::new(0x1000), b"huge").unwrap();
        }
    }
}

#[test]
fn memfd_contents_are_seen_through_its_descriptor() {
    let memory = Arc::new(HostMapping::new(Source::Memfd, 0x4000).unwrap());
    let ram = ram();
    ram.map(Gpa::new(0x10_0000), Arc::clone(&memory) as _).unwrap();
    ram.write(Gpa::new(0x10_2ffe), b"abcd").unwrap();
    let (file, start) = memory.file().unwrap();
    assert_eq!(start, 0);
    let mut file = file.try_clone().unwrap();
    assert!(file.set_len(0).is_err(), "the size is sealed");
    file.seek(std::io::SeekFrom::Start(0x2ffe)).unwrap();
    let mut found = [0; 4];
    file.read_exact(&mut found).unwrap();
    assert_eq!(&found, b"abcd");
}

#[test]
fn file_memory_is_shared_or_private_and_never_past_the_end() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[7; 0x3000]).unwrap();
    let map = |file: &std::fs::File, offset, bytes, sharing| {
        HostMapping::new(
            Source::File {
                file: file.try_clone().unwrap(),
                offset,
                sharing,
            },
            bytes,
        )
    };
    assert!(matches!(
        map(&file, 0x1000, 0x3000, Sharing::Private),
        Err(MappingError::FileTooShort { length: 0x3000, .. })
    ));
    assert!(matches!(
        map(&file, 0x800, 0x1000, Sharing::Private),
        Err(MappingError::FileOffset { offset: 0x800 })
    ));

    for (sharing, expected) in [(Sharing::Private, 7), (Sharing::Shared, 9)] {
        let ram = ram();
        ram.map(Gpa::new(0), Arc::new(map(&file, 0x1000, 0x2000, sharing).unwrap()))
            .unwrap();
        let mut byte = [0];
        ram.read(Gpa::new(0x1fff), &mut byte).unwrap();
        assert_eq!(byte, [7]);
        ram.write(Gpa::new(0), &[9]).unwrap();
        file.seek(std::io::SeekFrom::Start(0x1000)).unwrap();
        file.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [expected], "{sharing:?}");
    }
}

#[test]
fn access_over_adjacent_slots_works_and_past_them_does_nothing() {
    let ram = ram();
    ram.map(Gpa::new(0x1000), mapping(0x1000)).unwrap();
    ram.map(Gpa::new(0x2000), mapping(0x1000)).unwrap();
    ram.write(Gpa::new(0x1ffe), b"wxyz").unwrap();
    let mut found = [0; 4];
    ram.read(Gpa::new(0x1ffe), &mut found).unwrap();
    assert_eq!(&found, b"wxyz");
    assert_eq!(
        ram.write(Gpa::new(0x2ffe), b"wxyz"),
        Err(MemoryFault::CrossesSlotEnd {
            gpa: Gpa::new(0x2ffe),
            bytes: 4,
            end: Gpa::new(0x3000)
        })
    );
    ram.read(Gpa::new(0x2ffc), &mut found).unwrap();
    assert_eq!(found, [0; 4]);
    assert_eq!(
        ram.read(Gpa::new(0xfff), &mut found),
        Err(MemoryFault::NoSlot { gpa: Gpa::new(0xfff) })
    );
    assert_eq!(ram.read(Gpa::new(0), &mut []), Ok(()));
}

#[test]
fn slot_known_by_numbers_only_is_not_followed() {
    let mut table = SlotTable::new(SlotLimits::X86_64);
    let hva = umbra_memslots::Hva::new(0x1000);
    table
        .apply(umbra_memslots::SlotRequest::set(
            0,
            SlotFlags::empty(),
            Gpa::new(0),
            0x1000,
            hva,
        ))
        .unwrap();
    let slots = table.slots(SPACE);
    let gpa = Gpa::new(0);
    assert_eq!(slots.write(gpa, &[1]), Err(MemoryFault::NotMapped { gpa }));
    assert_eq!(slots.num_regions(), 0);
    assert!(slots.find_region(GuestAddress(0)).is_none());
}

#[test]
fn slot_outside_its_backing_is_refused() {
    let ram = ram();
    let new = NewSlot {
        offset: 0x1000,
        ..NewSlot::whole(Gpa::new(0), mapping(0x2000))
    };
    assert!(matches!(ram.add(new), Err(SlotError::OutsideBacking { .. })));
}

#[test]
fn removed_memory_lives_as_long_as_a_snapshot() {
    let ram = ram();
    let memory = mapping(0x1000);
    let id = ram.map(Gpa::new(0), Arc::clone(&memory) as _).unwrap();
    ram.write(Gpa::new(0), &[5]).unwrap();
    let old = ram.snapshot();
    ram.remove(SPACE, id).unwrap();
    assert_eq!(
        ram.read(Gpa::new(0), &mut [0]),
        Err(MemoryFault::NoSlot { gpa: Gpa::new(0) })
    );
    let mut byte = [0];
    old.read(Gpa::new(0), &mut byte).unwrap();
    assert_eq!(byte, [5]);
    assert!(Arc::strong_count(&memory) > 1);
    drop(old);
    assert_eq!(Arc::strong_count(&memory), 1);
}

#[test]
fn writes_are_logged_from_both_sides() {
    use vm_memory::Bytes as _;
    let ram = ram();
    let id = ram
        .add(NewSlot::whole(Gpa::new(0x10_0000), mapping(0x4_0000)).with_flags(SlotFlags::LOG_DIRTY))
        .unwrap();
    let slot = id.in_space(SPACE);
    ram.write(Gpa::new(0x10_1fff), &[1, 2]).unwrap();
    let snapshot = ram.snapshot();
    snapshot.write_obj(3u32, GuestAddress(0x10_5000)).unwrap();
    let region = snapshot.find_region(GuestAddress(0x10_0000)).unwrap();
    region.write_obj(4u64, MemoryRegionAddress(0x3_f000)).unwrap();
    snapshot.by_id(id).unwrap().dirty().unwrap().merge(&[1 << 40]);
    let log = ram.with_table(|table| table.get_dirty_log(slot)).unwrap();
    assert_eq!(log, [1 << 1 | 1 << 2 | 1 << 5 | 1 << 0x3f | 1 << 40]);
    assert_eq!(ram.with_table(|table| table.get_dirty_log(slot)).unwrap(), [0]);
}

/// A page that is added, moved and removed while others use it: they find it whole or not at all.
#[test]
fn readers_under_changes_see_whole_slots_only() {
    let ram = ram();
    let value = |gpa: Gpa| gpa.get() ^ 0x5a5a_5a5a_5a5a_5a5a;
    // Each page of the movable memory says which page of its slot it is; the fixed page always answers.
    ram.map(Gpa::new(0), mapping(0x1000)).unwrap();
    ram.write(Gpa::new(0), &value(Gpa::new(0)).to_le_bytes()).unwrap();
    let movable = mapping(0x8000);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut reader = ram.reader();
                let mut last_generation = 0;
                while !stop.load(Ordering::Relaxed) {
                    let slots = reader.snapshot();
                    let generation = slots.generation().number();
                    assert!(generation >= last_generation);
                    last_generation = generation;
                    let mut bytes = [0; 8];
                    slots.read(Gpa::new(0), &mut bytes).unwrap();
                    assert_eq!(u64::from_le_bytes(bytes), value(Gpa::new(0)));
                    for slot in slots.iter().filter(|slot| slot.range().start() != Gfn::default()) {
                        assert_eq!(slot.range().pages(), 8);
                        for gfn in slot.range().iter() {
                            assert_eq!(slots.find(gfn), Some(slot));
                        }
                    }
                }
            });
        }
        for round in 0..300 {
            let at = Gpa::new(0x10_0000 + (round % 7) * 0x10_0000);
            let id = ram.map(at, Arc::clone(&movable) as _).unwrap();
            ram.set_flags(SPACE, id, SlotFlags::LOG_DIRTY).unwrap();
            ram.relocate(SPACE, id, at.wrapping_add(0x3000)).unwrap();
            ram.remove(SPACE, id).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    // 1 for the fixed page; 1 each to create and re-flag, 2 each to move and delete; times the number of spaces.
    assert_eq!(ram.snapshot().generation().get(), 2 * (1 + 300 * 6));
}
