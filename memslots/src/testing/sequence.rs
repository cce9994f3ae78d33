//! [`check_request_bytes`]: bytes become requests; the real table and the naive one must agree after each.

use super::naive::{NaiveSlot, NaiveSlots};
use crate::addr::{Gfn, Gpa, Hva, PAGE_SIZE};
use crate::limits::SlotLimits;
use crate::request::SlotRequest;
use crate::slot::{AddressSpaceId, GuestMemfd, MemSlot};
use crate::snapshot::Memslots;
use crate::table::SlotTable;
use alloc::vec::Vec;

/// Numbers at which rules change their minds.
const EDGES: [u64; 12] = [
    0,
    1,
    PAGE_SIZE - 1,
    (1 << 31) * PAGE_SIZE,
    ((1 << 31) - 1) * PAGE_SIZE,
    0x7fff_ffff_f000,
    0x8000_0000_0000,
    1 << 52,
    (1 << 52) - PAGE_SIZE,
    1 << 63,
    u64::MAX,
    u64::MAX - (PAGE_SIZE - 1),
];

/// Reads bytes as limits and a sequence of requests, applies each to a [`SlotTable`] and to [`NaiveSlots`], and checks
/// that they agree on the error number and on everything that can be asked afterwards.
///
/// Eight bytes make a request out of a small world (8 ids, 3 spaces, 64 pages), so that requests meet each other; one in
/// eight numbers is an edge case instead. Any bytes will do.
///
/// # Panics
/// If the two tables disagree.
pub fn check_request_bytes(bytes: &[u8]) {
    let Some((&first, bytes)) = bytes.split_first() else {
        return;
    };
    let limits = SlotLimits {
        max_slots: 6,
        address_spaces: 1 + (first & 1),
        read_only: first & 2 == 0,
        guest_memfd: first & 4 != 0,
        max_gfn: if first & 0x18 == 0x18 {
            Gfn::from_masked(40)
        } else {
            SlotLimits::X86_64.max_gfn
        },
        ..SlotLimits::X86_64
    };
    let mut table = SlotTable::new(limits);
    let mut naive = NaiveSlots::new(limits);
    let mut readers: Vec<_> = AddressSpaceId::ALL
        .into_iter()
        .filter_map(|space| table.reader(space))
        .collect();
    for bytes in bytes.chunks_exact(8) {
        let request = request(bytes);
        let found = table.apply(request).map(|_| ()).map_err(|error| error.errno().raw());
        assert_eq!(found, naive.apply(&request), "{request:?} in {table:?}");
        for reader in &mut readers {
            check_space(reader.snapshot(), &naive);
        }
    }
}

fn request(bytes: &[u8]) -> SlotRequest {
    let byte = |index: usize| u64::from(bytes[index]);
    // A small multiple of the page size, or an edge.
    let number = |index: usize, pages: u64| {
        if byte(index) >= 0xe0 {
            EDGES[usize::from(bytes[index]) % EDGES.len()]
        } else {
            byte(index) % pages * PAGE_SIZE
        }
    };
    let flags = match bytes[1] % 16 {
        0..12 => u32::from(bytes[1] % 2),
        12..15 => u32::from(bytes[1] / 16 % 8),
        _ => 1 << (bytes[1] / 16 * 2),
    };
    // One id and one space too many, now and then.
    let id = byte(0) % 32 % 7;
    let space = match bytes[0] {
        0..0xa0 => 0,
        0xa0..0xf0 => 1,
        _ => 2,
    };
    let memfd = GuestMemfd {
        fd: 0,
        offset: number(6, 4),
    };
    let mut request = SlotRequest {
        slot: u32::try_from(id).unwrap_or(0) | space << 16,
        flags,
        guest_phys_addr: Gpa::new(if byte(2) < 0x60 {
            id * 8 * PAGE_SIZE
        } else {
            number(2, 64)
        }),
        // Mostly the same size, place and host address for the same id, so that slots are moved and re-flagged often; few host
        // addresses, so that they overlap.
        memory_size: match bytes[3] {
            0..0x20 => 0,
            0x20..0x90 => (id + 1) * PAGE_SIZE,
            _ => number(3, 12),
        },
        userspace_addr: Hva::new(if byte(4) < 0xa0 {
            id % 2 * PAGE_SIZE
        } else {
            number(4, 3)
        }),
        guest_memfd: bytes[5].is_multiple_of(4).then_some(memfd),
    };
    if request.memory_size > 1 << 30 {
        // Its bitmap would take most of the time and of the memory.
        request.flags &= !1;
    }
    request
}

fn check_space(slots: &Memslots, naive: &NaiveSlots) {
    let space = u32::from(slots.space().index());
    let expected: Vec<NaiveSlot> = naive.slots(space).copied().collect();
    assert_eq!(slots.generation().get(), naive.generation(space as usize));
    assert_eq!(slots.len(), expected.len());
    assert_eq!(
        slots.total_pages(),
        expected.iter().map(|slot| slot.size / PAGE_SIZE).sum::<u64>()
    );

    let mut in_order = expected.clone();
    in_order.sort_by_key(|slot| slot.gpa);
    assert!(slots.iter().map(raw).eq(in_order));
    for slot in &expected {
        let found = slots.iter().find(|found| u32::from(found.id().get()) == slot.id);
        assert_eq!(found.map(|found| found.dirty().is_some()), Some(naive.logs(slot)));
        let (first, end) = (slot.gpa / PAGE_SIZE, (slot.gpa + slot.size) / PAGE_SIZE);
        for page in [first.saturating_sub(1), first, (first + end) / 2, end - 1, end] {
            let found = Gfn::new(page).and_then(|gfn| slots.find(gfn)).map(raw);
            assert_eq!(
                found,
                expected.iter().copied().find(|slot| slot.has_page(page)),
                "page {page:#x}"
            );
        }
        for hva in [
            slot.hva.saturating_sub(1),
            slot.hva,
            slot.hva + slot.size - 1,
            slot.hva + slot.size,
        ] {
            let has = |slot: &NaiveSlot| slot.hva <= hva && hva < slot.hva + slot.size;
            let mut holders: Vec<_> = expected.iter().copied().filter(has).collect();
            holders.sort_by_key(|slot| (slot.hva, slot.id));
            assert!(
                slots.overlapping_hva(Hva::new(hva), 1).map(raw).eq(holders),
                "hva {hva:#x}"
            );
        }
    }
    for page in 0..80 {
        let found = Gfn::new(page).and_then(|gfn| slots.find(gfn)).map(raw);
        assert_eq!(
            found,
            expected.iter().copied().find(|slot| slot.has_page(page)),
            "page {page:#x}"
        );
    }
}

fn raw(slot: &MemSlot) -> NaiveSlot {
    NaiveSlot {
        space: u32::from(slot.space().index()),
        id: u32::from(slot.id().get()),
        flags: slot.flags().bits(),
        gpa: slot.range().start().base().get(),
        size: slot.bytes(),
        hva: slot.hva().get(),
    }
}
