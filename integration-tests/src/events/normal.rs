//! [`normalise`]: takes out of an account what is not the shadow MMU's doing.
//!
//! * Walks of KVM's instruction emulator, which fetches and accesses guest memory by the guest's tables: walks that no
//!   fault began. A fault's walk is the first after it, for the same address and with the same error code (the emulator's
//!   first is a fetch from elsewhere). A fault at MMIO that is known needs none; ours walks in the place of the emulator
//!   if it has to.
//! * QEMU 7.2 reports a reserved bit with P clear in the error code; a real CPU sets it (and our model of one). KVM passes
//!   on what it got when it then walks the guest's tables.
//! * The second end of a root: KVM takes a root that vCPUs use out of use, and again when the last of them lets it go. Ours
//!   aren't counted.

use crate::trace::Event;

/// Bit 0 of an error code: entries were present.
const PRESENT: u32 = 1;
/// Bit 3 of an error code: a reserved bit. KVM walks without.
const RESERVED: u32 = 1 << 3;

/// What is to be compared.
#[must_use]
pub fn normalise(events: Vec<Event>) -> Vec<Event> {
    // With what the next walk begins, if it is a fault's.
    let (mut due, mut if_stale) = (None, None);
    let mut in_walk = false;
    let mut kept = Vec::with_capacity(events.len());
    for mut event in events {
        match &mut event {
            Event::PageFault { address, code } => {
                let reported = *code & !RESERVED;
                if *code & RESERVED != 0 {
                    *code |= PRESENT;
                }
                let begins = (*address, reported, *code & !RESERVED);
                let is_reserved = *code & RESERVED != 0;
                (due, if_stale) = if is_reserved {
                    (None, Some(begins))
                } else {
                    (Some(begins), None)
                };
            }
            Event::CheckMmioSpte { valid: false, .. } => due = if_stale.take(),
            Event::PagetableWalk { address, code } => {
                let begun = due
                    .take()
                    .filter(|(at, reported, _)| (*at, *reported) == (*address, *code));
                in_walk = begun.is_some();
                if let Some((_, _, right)) = begun {
                    *code = right;
                }
            }
            _ => {}
        }
        let is_emulators = is_of_walk(&event) && !in_walk;
        let is_second_end = matches!(event, Event::PrepareZapPage { invalid: true, .. });
        if !is_emulators && !is_second_end {
            kept.push(event);
        }
    }
    kept
}

fn is_of_walk(event: &Event) -> bool {
    matches!(
        event,
        Event::PagetableWalk { .. }
            | Event::PagingElement { .. }
            | Event::SetAccessedBit { .. }
            | Event::SetDirtyBit { .. }
            | Event::WalkerError { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_memslots::Gva;

    fn fault(address: u64, code: u32) -> Event {
        let address = Gva::new(address);
        Event::PageFault { address, code }
    }

    fn walk(address: u64, code: u32) -> Event {
        let address = Gva::new(address);
        Event::PagetableWalk { address, code }
    }

    const ELEMENT: Event = Event::PagingElement { pte: 7, level: 1 };

    #[test]
    fn walk_of_a_fault_stays_and_the_emulators_go() {
        let events = vec![
            fault(0x1000, 3),
            walk(0x1000, 3),
            ELEMENT,
            walk(0x8000, 0x10),
            ELEMENT,
            Event::WalkerError { code: 0x10 },
            walk(0x1000, 2),
            ELEMENT,
        ];
        assert_eq!(normalise(events.clone()), events[..3]);
    }

    #[test]
    fn walks_after_a_fault_that_needed_none_are_the_emulators() {
        let events = vec![
            fault(0x1000, 0xa),
            walk(0x8000, 0x10),
            ELEMENT,
            walk(0x1000, 2),
            ELEMENT,
        ];
        assert_eq!(normalise(events), [fault(0x1000, 0xb)]);
    }

    #[test]
    fn reserved_bit_means_present() {
        let stale = Event::CheckMmioSpte {
            spte: 0,
            kvm_generation: 2,
            spte_generation: 0,
            valid: false,
        };
        let events = vec![fault(0x1000, 0xc), stale.clone(), walk(0x1000, 4), ELEMENT];
        assert_eq!(normalise(events), [fault(0x1000, 0xd), stale, walk(0x1000, 5), ELEMENT]);
    }

    #[test]
    fn same_walk_again_is_the_emulators() {
        let events = vec![fault(0x1000, 2), walk(0x1000, 2), ELEMENT, walk(0x1000, 2), ELEMENT];
        assert_eq!(normalise(events.clone()), events[..3]);
    }
}
