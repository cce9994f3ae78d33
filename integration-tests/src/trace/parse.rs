//! Reads lines of `/sys/kernel/tracing/trace` (`arch/x86/kvm/mmu/mmutrace.h` says what each event prints).

use super::event::{Event, Page, without_address};
use umbra_memslots::{Gfn, Gpa, Gva};
use umbra_mmu::AccessMask;

/// An event that doesn't print what it should.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("trace line {line:?}: no {field:?} in it")]
pub struct ParseError {
    line: String,
    field: &'static str,
}

/// The events of a trace. Comments, lost-event notices and empty lines are passed over.
///
/// # Errors
/// An event that this knows lacks a field, so the kernel prints it differently.
pub fn parse(trace: &str) -> Result<Vec<Event>, ParseError> {
    trace
        .lines()
        .filter(|line| !line.starts_with('#') && !line.starts_with("CPU:"))
        .filter_map(split)
        .map(|(name, fields)| event(name, fields))
        .collect()
}

/// `task-pid [cpu] flags time: name: fields` to name and fields.
fn split(line: &str) -> Option<(&str, &str)> {
    let (_, event) = line.split_once("] ")?.1.split_once(": ")?;
    event.split_once(": ").or_else(|| Some((event.strip_suffix(':')?, "")))
}

fn event(name: &str, fields: &str) -> Result<Event, ParseError> {
    let hex = |field: &'static str| hex_after(fields, field);
    let gfn = || Ok(Gfn::from_masked(hex("gfn ")?));
    Ok(match name {
        "kvm_page_fault" => Event::PageFault {
            address: Gva::new(hex("address ")?),
            code: narrow(fields, "error_code ")?,
        },
        "kvm_mmu_pagetable_walk" => Event::PagetableWalk {
            address: Gva::new(hex("addr ")?),
            code: narrow(fields, "pferr ")?,
        },
        "kvm_mmu_paging_element" => Event::PagingElement {
            pte: hex("pte ")?,
            level: narrow(fields, "level ")?,
        },
        "kvm_mmu_set_accessed_bit" => Event::SetAccessedBit {
            gpa: Gpa::new(hex("gpa ")?),
        },
        "kvm_mmu_set_dirty_bit" => Event::SetDirtyBit {
            gpa: Gpa::new(hex("gpa ")?),
        },
        "kvm_mmu_walker_error" => Event::WalkerError {
            code: narrow(fields, "pferr ")?,
        },
        "kvm_mmu_get_page" => Event::GetPage {
            page: page(fields)?,
            created: has_word(fields, "new"),
        },
        "kvm_mmu_sync_page" => Event::SyncPage(page(fields)?),
        "kvm_mmu_unsync_page" => Event::UnsyncPage(page(fields)?),
        "kvm_mmu_prepare_zap_page" => Event::PrepareZapPage {
            page: page(fields)?,
            invalid: has_word(fields, "invalid"),
        },
        "kvm_mmu_spte_requested" => Event::SpteRequested {
            gfn: gfn()?,
            memory: hex("pfn ")? != NO_SLOT,
            level: narrow(fields, "level ")?,
        },
        "kvm_mmu_set_spte" => Event::SetSpte {
            gfn: gfn()?,
            level: narrow(fields, "level ")?,
            flags: without_address(hex("spte ")?),
        },
        "mark_mmio_spte" => Event::MarkMmioSpte {
            gfn: gfn()?,
            access: access(fields)?,
            generation: narrow(fields, "gen ")?,
        },
        "check_mmio_spte" => Event::CheckMmioSpte {
            spte: hex("spte ")?,
            kvm_generation: narrow(fields, "kvm_gen ")?,
            spte_generation: narrow(fields, "spte-gen ")?,
            valid: hex("valid ")? != 0,
        },
        "handle_mmio_page_fault" => Event::HandleMmioPageFault {
            address: hex("addr:")?,
            gfn: gfn()?,
            access: access(fields)?,
        },
        "fast_page_fault" => Event::FastPageFault {
            address: Gva::new(hex("gva ")?),
            old: without_address(hex("old ")?),
            new: without_address(hex("new ")?),
            spurious: hex("spurious ")? != 0,
            fixed: hex("fixed ")? != 0,
        },
        "kvm_mmu_zap_all_fast" => Event::ZapAllFast,
        "kvm_tdp_mmu_spte_changed" => Event::TdpMmuSpteChanged {
            gfn: gfn()?,
            level: narrow(fields, "level ")?,
            old: hex("old_spte ")?,
            new: hex("new_spte ")?,
        },
        _ => Event::Other { name: name.to_owned() },
    })
}

/// `KVM_PFN_NOSLOT`: the frame has no memslot.
const NO_SLOT: u64 = 1 << 63;

/// `sp gen 0 gfn 2 l3 8-byte q0 direct wux nxe ad root 0 sync`; after the last word comes a NUL.
fn page(fields: &str) -> Result<Page, ParseError> {
    let word = |field: &'static str, matches: fn(&str) -> bool| {
        words(fields)
            .find(|word| matches(word))
            .ok_or_else(|| missing(fields, field))
    };
    let digit = |field: &'static str, first: char| {
        let found = words(fields).find_map(|word| word.strip_prefix(first)?.parse().ok());
        found.ok_or_else(|| missing(fields, field))
    };
    let bytes = word("-byte", |word| word.ends_with("-byte"))?;
    let access = word("access", |word| word.len() == 3 && ACCESSES.contains(&word))?;
    let position = ACCESSES.iter().position(|&name| name == access).unwrap_or_default();
    Ok(Page {
        gfn: Gfn::from_masked(hex_after(fields, "gfn ")?),
        level: digit("l", 'l')?,
        entry_bytes: if bytes == "4-byte" { 4 } else { 8 },
        quadrant: digit("q", 'q')?,
        direct: has_word(fields, "direct"),
        access: AccessMask::from_masked(u8::try_from(position).unwrap_or_default()),
        no_execute: has_word(fields, "nxe"),
    })
}

/// How KVM prints each access: the index is what it means.
const ACCESSES: [&str; 8] = ["---", "--x", "w--", "w-x", "-u-", "-ux", "wu-", "wux"];

fn words(fields: &str) -> impl Iterator<Item = &str> {
    fields
        .split(|letter: char| letter.is_whitespace() || letter == '\0')
        .filter(|word| !word.is_empty())
}

fn has_word(fields: &str, wanted: &str) -> bool {
    words(fields).any(|word| word == wanted)
}

fn access(fields: &str) -> Result<AccessMask, ParseError> {
    narrow(fields, "access ").map(AccessMask::from_masked)
}

fn narrow<T: TryFrom<u64>>(fields: &str, field: &'static str) -> Result<T, ParseError> {
    T::try_from(hex_after(fields, field)?).map_err(|_| missing(fields, field))
}

fn missing(fields: &str, field: &'static str) -> ParseError {
    ParseError {
        line: fields.to_owned(),
        field,
    }
}

/// The hexadecimal number after `field`, with or without `0x`. A field starts the line or follows a space.
fn hex_after(fields: &str, field: &'static str) -> Result<u64, ParseError> {
    let start = fields
        .match_indices(field)
        .find(|(at, _)| *at == 0 || fields.as_bytes()[at - 1] == b' ')
        .ok_or_else(|| missing(fields, field))?
        .0
        + field.len();
    let number = fields[start..].split_whitespace().next().unwrap_or_default();
    u64::from_str_radix(number.trim_start_matches("0x"), 16).map_err(|_| missing(fields, field))
}
#[cfg(test)]
mod tests {
    use super::*;

    /// Debian's 6.1.0-56-cloud-amd64, in the lab.
    const RECORDED: &str = "\
# tracer: nop
#
# entries-in-buffer/entries-written: 5/5   #P:2
#
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
           <...>-105     [001] .....     4.933518: kvm_mmu_spte_requested: gfn d0000 pfn 8000000000000000 level 1
           <...>-105     [001] ...1.     4.933520: kvm_tdp_mmu_spte_changed: as id 0 gfn d0000 level 1 old_spte 0 new_spte 80000d0000017
           <...>-105     [001] ...1.     4.933601: mark_mmio_spte: sptep:0000000007a509c0 gfn d0000 access 7 gen 2
 mmio_spte_same_-105     [001] .....     4.933958: check_mmio_spte: spte 80000d0000017 kvm_gen 4 spte-gen 2 valid 0
 mmio_spte_same_-105     [001] .....     4.989521: handle_mmio_page_fault: addr:d0000004 gfn d0000 access 6
";

    #[test]
    fn parse_recorded_trace_every_event() {
        let gfn = Gfn::from_masked(0xd0000);
        assert_eq!(
            parse(RECORDED).expect("as recorded"),
            [
                Event::SpteRequested {
                    gfn,
                    memory: false,
                    level: 1
                },
                Event::TdpMmuSpteChanged {
                    gfn,
                    level: 1,
                    old: 0,
                    new: 0x0008_0000_d000_0017
                },
                Event::MarkMmioSpte {
                    gfn,
                    access: AccessMask::ALL,
                    generation: 2
                },
                Event::CheckMmioSpte {
                    spte: 0x0008_0000_d000_0017,
                    kvm_generation: 4,
                    spte_generation: 2,
                    valid: false
                },
                Event::HandleMmioPageFault {
                    address: 0xd000_0004,
                    gfn,
                    access: AccessMask::WRITE | AccessMask::USER
                },
            ]
        );
    }

    /// The same kernel without nested paging.
    const SHADOW: &str = "\
 guest_events-105     [000] .....     4.1: kvm_page_fault: vcpu 0 rip 0x8010 address 0x0000000000008010 error_code 0x10
 guest_events-105     [000] .....     4.1: kvm_mmu_pagetable_walk: addr 8010 pferr 10 F
 guest_events-105     [000] .....     4.1: kvm_mmu_paging_element: pte 28067 level 4
 guest_events-105     [000] .....     4.1: kvm_mmu_set_accessed_bit: gpa 38080
 guest_events-105     [000] .....     4.1: kvm_mmu_set_dirty_bit: gpa 38088
 guest_events-105     [000] .....     4.1: kvm_mmu_walker_error: pferr 7 P|W|U
 guest_events-105     [000] .....     4.1: kvm_mmu_get_page: sp gen 0 gfn 28 l3 8-byte q0 direct wux nxe ad root 0 sync\0 new
 guest_events-105     [000] .....     4.1: kvm_mmu_get_page: sp gen 0 gfn 20 l2 4-byte q3 -ux !nxe ad root 1 sync\0 existing
 guest_events-105     [000] .....     4.1: kvm_mmu_unsync_page: sp gen 0 gfn 38 l1 8-byte q0 --- nxe ad root 0 sync\0
 guest_events-105     [000] .....     4.1: kvm_mmu_prepare_zap_page: sp gen 1 gfn 20 l4 8-byte q0 wux invalid nxe ad root 0 sync\0
 guest_events-105     [000] .....     4.1: kvm_mmu_set_spte: gfn 108 spte 7f108e67 (rwxu) level 1 at 6d1c000
 guest_events-105     [000] .....     4.1: fast_page_fault: vcpu 0 gva 9000 error_code P|W sptep 00000000f2a04ab1 old 0x7f109e65 new 7f109e67 spurious 0 fixed 1
 guest_events-105     [000] .....     4.1: kvm_mmu_zap_all_fast: kvm-mmu-valid-gen 1 used_pages 6
";

    #[test]
    fn parse_shadow_trace_every_event() {
        let page = |gfn, level, access| Page {
            gfn: Gfn::from_masked(gfn),
            level,
            entry_bytes: 8,
            quadrant: 0,
            direct: false,
            access,
            no_execute: true,
        };
        let user_code = AccessMask::USER | AccessMask::EXEC;
        assert_eq!(
            parse(SHADOW).expect("as recorded"),
            [
                Event::PageFault {
                    address: Gva::new(0x8010),
                    code: 0x10
                },
                Event::PagetableWalk {
                    address: Gva::new(0x8010),
                    code: 0x10
                },
                Event::PagingElement { pte: 0x28067, level: 4 },
                Event::SetAccessedBit { gpa: Gpa::new(0x38080) },
                Event::SetDirtyBit { gpa: Gpa::new(0x38088) },
                Event::WalkerError { code: 7 },
                Event::GetPage {
                    page: Page {
                        direct: true,
                        ..page(0x28, 3, AccessMask::ALL)
                    },
                    created: true
                },
                Event::GetPage {
                    page: Page {
                        entry_bytes: 4,
                        quadrant: 3,
                        no_execute: false,
                        ..page(0x20, 2, user_code)
                    },
                    created: false
                },
                Event::UnsyncPage(page(0x38, 1, AccessMask::from_masked(0))),
                Event::PrepareZapPage {
                    page: page(0x20, 4, AccessMask::ALL),
                    invalid: true
                },
                Event::SetSpte {
                    gfn: Gfn::from_masked(0x108),
                    level: 1,
                    flags: 0xe67
                },
                Event::FastPageFault {
                    address: Gva::new(0x9000),
                    old: 0xe65,
                    new: 0xe67,
                    spurious: false,
                    fixed: true
                },
                Event::ZapAllFast,
            ]
        );
    }

    #[test]
    fn parse_page_without_its_access_is_an_error() {
        let error = parse(&SHADOW.replace("wux", "rwx")).expect_err("no access");
        assert!(error.to_string().contains("no \"access\" in it"), "{error}");
    }

    #[test]
    fn parse_lost_events_notice_is_passed_over() {
        assert_eq!(parse("CPU:1 [LOST 12 EVENTS]\n\n"), Ok(vec![]));
    }

    #[test]
    fn parse_event_without_its_field_is_an_error() {
        let line = RECORDED
            .lines()
            .find(|line| line.contains("mark_mmio"))
            .expect("recorded");
        let error = parse(&line.replace("gfn", "page")).expect_err("no gfn");
        assert!(error.to_string().contains("no \"gfn \" in it"), "{error}");
    }
}
