//! Each rule of kvm_set_memory_region: who refuses, with which number, saying what.
#![expect(clippy::unwrap_used, reason = "test helpers fail by panicking")]

use umbra_memslots::error::FlagRule;
use umbra_memslots::{
    AddressSpaceId, DirtyLogError, DirtyLogMode, Errno, Gfn, Gpa, GuestMemfd, Hva, SlotChange, SlotError, SlotFlags,
    SlotId, SlotLimits, SlotRequest, SlotTable,
};

const NONE: SlotFlags = SlotFlags::empty();

fn table() -> SlotTable {
    SlotTable::new(SlotLimits::X86_64)
}

fn with(limits: SlotLimits) -> SlotTable {
    SlotTable::new(limits)
}

/// A good request: slot 1, pages 0x100..0x110, at host address 0x10000.
fn good() -> SlotRequest {
    SlotRequest::set(1, NONE, Gpa::new(0x10_0000), 0x1_0000, Hva::new(0x1_0000))
}

fn refused(table: &mut SlotTable, request: SlotRequest) -> SlotError {
    let before = table.slots(AddressSpaceId::Normal).generation();
    let error = table.apply(request).unwrap_err();
    assert_eq!(
        table.slots(AddressSpaceId::Normal).generation(),
        before,
        "a refusal changes nothing"
    );
    error
}

#[test]
fn request_alone_that_breaks_a_rule_is_refused_by_that_rule() {
    type Check = fn(&SlotError) -> bool;
    let cases: [(SlotRequest, Check); 12] = [
        (SlotRequest { slot: 32764, ..good() }, |e| {
            matches!(e, SlotError::IdOutOfRange { max_slots: 32764, .. })
        }),
        (SlotRequest { slot: 0xffff, ..good() }, |e| {
            matches!(e, SlotError::IdOutOfRange { .. })
        }),
        (SlotRequest { flags: 4, ..good() }, |e| {
            matches!(
                e,
                SlotError::Flags {
                    refused: 4,
                    rule: FlagRule::OldIoctl,
                    ..
                }
            )
        }),
        (
            SlotRequest {
                slot: 0x2_0001,
                ..good()
            },
            |e| {
                matches!(
                    e,
                    SlotError::NoSuchSpace {
                        index: 2,
                        spaces: 2,
                        ..
                    }
                )
            },
        ),
        (
            SlotRequest {
                memory_size: 0x801,
                ..good()
            },
            |e| matches!(e, SlotError::SizeUnaligned { size: 0x801, .. }),
        ),
        (
            SlotRequest {
                guest_phys_addr: Gpa::new(8),
                ..good()
            },
            |e| matches!(e, SlotError::GpaUnaligned { .. }),
        ),
        (
            SlotRequest {
                userspace_addr: Hva::new(8),
                ..good()
            },
            |e| matches!(e, SlotError::HvaUnaligned { .. }),
        ),
        (
            SlotRequest {
                userspace_addr: Hva::new(0x7fff_ffff_0000),
                ..good()
            },
            |e| matches!(e, SlotError::HvaNotUserMemory { .. }),
        ),
        (
            SlotRequest {
                userspace_addr: Hva::new(0x0100_0000_0001_0000),
                ..good()
            },
            |e| matches!(e, SlotError::HvaNotUserMemory { .. }),
        ),
        (
            SlotRequest {
                guest_phys_addr: Gpa::new(0xffff_ffff_ffff_0000),
                ..good()
            },
            |e| matches!(e, SlotError::GpaWraps { .. }),
        ),
        (
            SlotRequest {
                memory_size: 1 << 43,
                userspace_addr: Hva::new(0),
                ..good()
            },
            |e| matches!(e, SlotError::TooManyPages { pages: 0x8000_0000, .. }),
        ),
        (
            SlotRequest {
                memory_size: 0,
                ..good()
            },
            |e| matches!(e, SlotError::NothingToDelete { slot: 1 }),
        ),
    ];
    for (request, expected) in cases {
        let error = refused(&mut table(), request);
        assert!(expected(&error), "{request:?}: {error:?}");
        assert_eq!(error.errno(), Errno::Invalid);
    }
}

#[test]
fn rules_about_the_request_hold_for_deletions_too() {
    let mut table = table();
    table.apply(good()).unwrap();
    let delete = SlotRequest::delete(1);
    assert!(matches!(
        refused(
            &mut table,
            SlotRequest {
                guest_phys_addr: Gpa::new(1),
                ..delete
            }
        ),
        SlotError::GpaUnaligned { .. }
    ));
    assert!(matches!(
        refused(
            &mut table,
            SlotRequest {
                flags: 1 << 5,
                ..delete
            }
        ),
        SlotError::Flags { .. }
    ));
    let past_the_end = Hva::new(0x8000_0000_0000);
    assert!(matches!(
        refused(
            &mut table,
            SlotRequest {
                userspace_addr: past_the_end,
                ..delete
            }
        ),
        SlotError::HvaNotUserMemory { .. }
    ));
    // An odd place is no reason: only the number matters.
    let elsewhere = SlotRequest {
        guest_phys_addr: Gpa::new(0x7000),
        userspace_addr: Hva::new(0x7fff_ffff_f000),
        ..delete
    };
    assert!(matches!(
        table.apply(elsewhere).unwrap().change,
        Some(SlotChange::Delete { .. })
    ));
}

#[test]
fn flags_depend_on_the_host_and_on_each_other() {
    let memfd = Some(GuestMemfd { fd: 3, offset: 0 });
    let new_ioctl = |flags: u32| SlotRequest {
        flags,
        guest_memfd: memfd,
        ..good()
    };
    let rule = |limits: SlotLimits, request: SlotRequest| match refused(&mut with(limits), request) {
        SlotError::Flags { rule, .. } => rule,
        other => panic!("{other:?}"),
    };
    let plain = SlotLimits {
        read_only: false,
        ..SlotLimits::X86_64
    };
    let private = SlotLimits {
        guest_memfd: true,
        ..SlotLimits::X86_64
    };
    assert_eq!(rule(plain, SlotRequest { flags: 2, ..good() }), FlagRule::NotOnThisHost);
    assert_eq!(rule(SlotLimits::X86_64, new_ioctl(4)), FlagRule::NotOnThisHost);
    assert_eq!(rule(private, new_ioctl(5)), FlagRule::NotWithGuestMemfd);
    assert_eq!(rule(private, new_ioctl(6)), FlagRule::NotWithGuestMemfd);
    assert_eq!(rule(private, new_ioctl(1 << 16)), FlagRule::Unknown);
    let mut table = with(private);
    table.apply(new_ioctl(4)).unwrap();
    assert_eq!(
        table
            .slots(AddressSpaceId::Normal)
            .by_id(SlotId::new(1))
            .unwrap()
            .guest_memfd(),
        memfd
    );
}

#[test]
fn guest_memfd_slot_can_only_be_deleted() {
    let limits = SlotLimits {
        guest_memfd: true,
        ..SlotLimits::X86_64
    };
    let private = SlotRequest {
        flags: 4,
        guest_memfd: Some(GuestMemfd { fd: 3, offset: 0x1000 }),
        ..good()
    };
    let mut table = with(limits);
    let unaligned = SlotRequest {
        guest_memfd: Some(GuestMemfd { fd: 3, offset: 1 }),
        ..private
    };
    assert!(matches!(
        refused(&mut table, unaligned),
        SlotError::GuestMemfdOffset { offset: 1, .. }
    ));
    let wrapping = SlotRequest {
        guest_memfd: Some(GuestMemfd {
            fd: 3,
            offset: u64::MAX - 0xfff,
        }),
        ..private
    };
    assert!(matches!(
        refused(&mut table, wrapping),
        SlotError::GuestMemfdOffset { .. }
    ));
    table.apply(private).unwrap();
    for request in [
        private,
        SlotRequest {
            guest_phys_addr: Gpa::new(0),
            ..private
        },
        good(),
    ] {
        assert!(matches!(
            refused(&mut table, request),
            SlotError::GuestMemfdImmutable { .. }
        ));
    }
    table.apply(SlotRequest::delete(1)).unwrap();
}

#[test]
fn existing_slot_keeps_host_address_size_and_read_only() {
    let mut table = table();
    table.apply(good()).unwrap();
    let hva = SlotRequest {
        userspace_addr: Hva::new(0x2_0000),
        ..good()
    };
    assert!(matches!(refused(&mut table, hva), SlotError::HvaChange { present, .. } if present == Hva::new(0x1_0000)));
    let size = SlotRequest {
        memory_size: 0x2_0000,
        ..good()
    };
    assert!(matches!(
        refused(&mut table, size),
        SlotError::SizeChange { requested: 0x20, .. }
    ));
    let read_only = SlotRequest { flags: 2, ..good() };
    assert!(matches!(
        refused(&mut table, read_only),
        SlotError::ReadOnlyChange { .. }
    ));
}

#[test]
fn overlap_names_both_slots_and_ranges() {
    let mut table = table();
    table.apply(good()).unwrap();
    let other = SlotRequest {
        slot: 2,
        guest_phys_addr: Gpa::new(0x10_f000),
        memory_size: 0x2000,
        ..good()
    };
    let error = refused(&mut table, other);
    assert_eq!(error.errno(), Errno::Exists);
    assert_eq!(
        error.to_string(),
        "slot 2 of space 0 cannot be at 0x10f..0x111: slot 1 is at 0x100..0x110"
    );
    // Its neighbour, and the same frames in the other space, are free.
    table
        .apply(SlotRequest {
            guest_phys_addr: Gpa::new(0x11_0000),
            ..other
        })
        .unwrap();
    table
        .apply(SlotRequest {
            slot: 0x1_0002,
            ..other
        })
        .unwrap();
    // A move may overlap its own old place, but nobody else's.
    table
        .apply(SlotRequest {
            guest_phys_addr: Gpa::new(0xf_8000),
            ..good()
        })
        .unwrap();
    let onto = SlotRequest {
        guest_phys_addr: Gpa::new(0x10_1000),
        ..good()
    };
    assert!(matches!(refused(&mut table, onto), SlotError::Overlap { .. }));
}

#[test]
fn frames_above_the_hosts_width_are_refused_to_new_places_only() {
    let max_gfn = SlotLimits::max_gfn_of_width(32);
    assert_eq!(max_gfn, Gfn::new(0xf_ffff).unwrap());
    let mut table = with(SlotLimits {
        max_gfn,
        ..SlotLimits::X86_64
    });
    let last = SlotRequest {
        guest_phys_addr: Gpa::new(0xffff_0000),
        ..good()
    };
    let past = SlotRequest {
        guest_phys_addr: Gpa::new(0xffff_1000),
        ..good()
    };
    assert!(matches!(refused(&mut table, past), SlotError::AboveMaxGfn { .. }));
    table.apply(last).unwrap();
    assert!(matches!(refused(&mut table, past), SlotError::AboveMaxGfn { .. }));
}

#[test]
fn what_a_request_amounts_to_follows_from_the_state() {
    let mut table = table();
    let change = |table: &mut SlotTable, request| table.apply(request).unwrap().change;
    assert!(matches!(change(&mut table, good()), Some(SlotChange::Create { .. })));
    let generation = table.slots(AddressSpaceId::Normal).generation();
    assert_eq!(change(&mut table, good()), None);
    assert_eq!(table.slots(AddressSpaceId::Normal).generation(), generation);
    let logged = SlotRequest { flags: 1, ..good() };
    assert!(matches!(change(&mut table, logged), Some(SlotChange::SetFlags { .. })));
    let moved = SlotRequest {
        guest_phys_addr: Gpa::new(0),
        ..good()
    };
    let Some(SlotChange::Move { old, new }) = change(&mut table, moved) else {
        panic!("not a move")
    };
    assert_eq!((old.flags(), new.flags()), (SlotFlags::LOG_DIRTY, NONE));
    assert!(matches!(
        change(&mut table, SlotRequest::delete(1)),
        Some(SlotChange::Delete { .. })
    ));
}

#[test]
fn lowest_free_id_is_given_and_exhaustion_is_named() {
    let mut table = with(SlotLimits {
        max_slots: 3,
        ..SlotLimits::X86_64
    });
    let space = AddressSpaceId::Normal;
    let at = |slot: u32| SlotRequest {
        slot,
        guest_phys_addr: Gpa::new(u64::from(slot) << 20),
        ..good()
    };
    table.apply(at(0)).unwrap();
    table.apply(at(2)).unwrap();
    assert_eq!(table.free_id(space).unwrap(), SlotId::new(1));
    table.apply(at(1)).unwrap();
    assert!(matches!(
        table.free_id(space),
        Err(SlotError::NoFreeSlot { max_slots: 3, .. })
    ));
    table.remove(space, SlotId::new(2)).unwrap();
    assert_eq!(table.free_id(space).unwrap(), SlotId::new(2));
    assert_eq!(table.free_id(AddressSpaceId::Smm).unwrap(), SlotId::new(0));
}

#[test]
fn one_address_space_only_is_a_host_without_smm() {
    let mut table = with(SlotLimits {
        address_spaces: 1,
        ..SlotLimits::X86_64
    });
    assert!(matches!(
        refused(
            &mut table,
            SlotRequest {
                slot: 0x1_0001,
                ..good()
            }
        ),
        SlotError::NoSuchSpace {
            index: 1,
            spaces: 1,
            ..
        }
    ));
    assert!(table.reader(AddressSpaceId::Smm).is_none());
    table.apply(good()).unwrap();
    assert_eq!(table.slots(AddressSpaceId::Normal).generation().get(), 1);
}

#[test]
fn dirty_log_lives_and_dies_with_the_flag() {
    let mut table = table();
    let slot = 1;
    let logged = SlotRequest { flags: 1, ..good() };
    let mark = |table: &SlotTable| {
        table
            .slots(AddressSpaceId::Normal)
            .by_id(SlotId::new(1))
            .unwrap()
            .mark_dirty(0, 1);
    };
    table.apply(good()).unwrap();
    assert_eq!(table.get_dirty_log(slot), Err(DirtyLogError::NoLog { slot }));
    table.apply(logged).unwrap();
    mark(&table);
    // Kept by a move that keeps the flag.
    table
        .apply(SlotRequest {
            guest_phys_addr: Gpa::new(0),
            ..logged
        })
        .unwrap();
    assert_eq!(table.get_dirty_log(slot).unwrap(), [1]);
    assert_eq!(table.get_dirty_log(slot).unwrap(), [0]);
    // Dropped with the flag.
    mark(&table);
    table
        .apply(SlotRequest {
            guest_phys_addr: Gpa::new(0),
            ..good()
        })
        .unwrap();
    table
        .apply(SlotRequest {
            guest_phys_addr: Gpa::new(0),
            ..logged
        })
        .unwrap();
    assert_eq!(table.get_dirty_log(slot).unwrap(), [0]);
}

#[test]
fn manual_clear_leaves_the_log_until_told() {
    let limits = SlotLimits {
        dirty_log: DirtyLogMode::ManualClear { initially_set: true },
        ..SlotLimits::X86_64
    };
    let mut table = with(limits);
    table.apply(SlotRequest { flags: 1, ..good() }).unwrap();
    assert_eq!(table.get_dirty_log(1).unwrap(), [0xffff]);
    assert_eq!(table.get_dirty_log(1).unwrap(), [0xffff]);
    assert_eq!(table.clear_dirty_log(1, 0, 16, &[0xff]), Ok(8));
    assert_eq!(table.get_dirty_log(1).unwrap(), [0xff00]);
}

#[test]
fn dirty_log_refusals_have_the_kernels_numbers() {
    let errno = |error: DirtyLogError| error.errno().raw();
    let mut table = table();
    table.apply(good()).unwrap();
    assert_eq!(errno(table.get_dirty_log(32764).unwrap_err()), 22);
    assert_eq!(errno(table.get_dirty_log(0x2_0000).unwrap_err()), 22);
    assert_eq!(errno(table.get_dirty_log(7).unwrap_err()), 2);
    assert_eq!(errno(table.get_dirty_log(1).unwrap_err()), 2);
    assert_eq!(errno(table.clear_dirty_log(1, 1, 64, &[]).unwrap_err()), 22);
    assert_eq!(errno(table.clear_dirty_log(1, 0, 64, &[]).unwrap_err()), 2);
    table.apply(SlotRequest { flags: 1, ..good() }).unwrap();
    assert_eq!(errno(table.clear_dirty_log(1, 0, 15, &[]).unwrap_err()), 22);
    let ring = SlotLimits {
        dirty_log: DirtyLogMode::Ring,
        ..SlotLimits::X86_64
    };
    let mut table = with(ring);
    table.apply(SlotRequest { flags: 1, ..good() }).unwrap();
    assert!(
        table
            .slots(AddressSpaceId::Normal)
            .by_id(SlotId::new(1))
            .unwrap()
            .dirty()
            .is_none()
    );
    assert_eq!(errno(table.get_dirty_log(1).unwrap_err()), 6);
    assert_eq!(errno(table.clear_dirty_log(9, 1, 1, &[]).unwrap_err()), 6);
}
