//! Reads lines of `/sys/kernel/tracing/trace` (`arch/x86/kvm/mmu/mmutrace.h` says what each event prints).

use umbra_memslots::Gfn;
use umbra_mmu::AccessMask;

/// One event about MMIO SPTEs, or the name of another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// An MMIO SPTE was made.
    MarkMmioSpte {
        /// The frame without a memslot.
        gfn: Gfn,
        /// The low three bits of the SPTE: the access as far as it is kept there, and the present bit.
        access: AccessMask,
        /// The generation in the SPTE.
        generation: u32,
    },
    /// An MMIO SPTE was found by a fault and compared with the memslots' generation.
    CheckMmioSpte {
        /// The SPTE itself.
        spte: u64,
        /// The cut of the memslots' generation.
        kvm_generation: u32,
        /// The generation in the SPTE.
        spte_generation: u32,
        /// Whether they are equal.
        valid: bool,
    },
    /// A fault was answered from a valid MMIO SPTE.
    HandleMmioPageFault {
        /// Faulting address: guest-virtual with shadow paging, guest-physical with nested.
        address: u64,
        /// What KVM decoded from the SPTE.
        gfn: Gfn,
        /// What KVM decoded from the SPTE.
        access: AccessMask,
    },
    /// An entry of the nested tables changed.
    TdpMmuSpteChanged {
        /// First frame the entry maps.
        gfn: Gfn,
        /// 1 for a 4 KiB entry.
        level: u8,
        /// The entry before.
        old: u64,
        /// The entry after.
        new: u64,
    },
    /// Anything else.
    Other {
        /// The tracepoint.
        name: String,
    },
}

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
        "kvm_tdp_mmu_spte_changed" => Event::TdpMmuSpteChanged {
            gfn: gfn()?,
            level: narrow(fields, "level ")?,
            old: hex("old_spte ")?,
            new: hex("new_spte ")?,
        },
        _ => Event::Other { name: name.to_owned() },
    })
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
                Event::Other {
                    name: "kvm_mmu_spte_requested".to_owned()
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
