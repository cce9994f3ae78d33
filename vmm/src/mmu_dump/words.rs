//! An entry, or a run of them, in a few words.

use super::view::{Cell, Tone};
use umbra_mmu::AccessMask;
use umbra_mmu::inspect::{Row, Seen, Share};
use umbra_mmu::mmio::Freshness;

/// A row as a cell.
pub(super) fn cell(row: &Row) -> Cell {
    let start = row.start;
    let (rest, tone) = match row.seen {
        Seen::Table {
            address,
            access,
            tables,
            again,
        } => {
            let many = if tables > 1 {
                format!("{tables} tables from ")
            } else {
                "table ".to_owned()
            };
            let shown = if again { " (shown above)" } else { "" };
            let rest = format!("{} {many}{address:#x} {}{shown}", indices(row), letters(access));
            (rest, Tone::Table)
        }
        Seen::Page {
            address,
            access,
            accessed,
            dirty,
            repeated,
        } => {
            let all = if repeated { "all " } else { "" };
            let flags = format!("{}{}", share(accessed, "A", "a"), share(dirty, "D", "d"));
            let rest = format!("{}→ {all}{address:#x} {} {flags}", times(row), letters(access));
            (rest, Tone::Page)
        }
        Seen::Mmio { facts, freshness } => {
            let gfn = match facts.gfn.checked_add(row.count - 1) {
                Some(last) if row.count > 1 => format!("gfns {:#x}–{:#x}", facts.gfn, last),
                _ => format!("gfn {:#x}", facts.gfn),
            };
            let (word, tone) = match freshness {
                Freshness::Fresh => ("fresh", Tone::Fresh),
                Freshness::Stale => ("stale", Tone::Stale),
                Freshness::InProgress => ("slots are changing", Tone::Stale),
            };
            let access = letters(facts.access);
            (
                format!("MMIO {gfn} {access} generation {} {word}", facts.generation.get()),
                tone,
            )
        }
        Seen::Reserved { bits } => (
            format!("{}{:#x}: reserved bits {bits:#x}", times(row), row.raw),
            Tone::Bad,
        ),
        Seen::NoTable { address } => (format!("{} no table at {address:#x}", indices(row)), Tone::Bad),
    };
    Cell {
        text: format!("{start:#x} {rest}").trim_end().to_owned(),
        tone,
        depth: 0,
    }
}

fn indices(row: &Row) -> String {
    let first = u64::from(row.index);
    if row.count > 1 {
        format!("[{first}–{}]", first + row.count - 1)
    } else {
        format!("[{first}]")
    }
}

/// `4 × 2M `.
fn times(row: &Row) -> String {
    let size = size(1 << row.shift);
    if row.count > 1 {
        format!("{} × {size} ", row.count)
    } else {
        format!("{size} ")
    }
}

/// A power of two of bytes.
fn size(bytes: u64) -> String {
    let units = ["B", "K", "M", "G", "T", "P"];
    let step = (bytes.max(1).ilog2() / 10).min(5);
    let unit = units.get(step as usize).unwrap_or(&"B");
    format!("{}{unit}", bytes >> (10 * step))
}

/// `xwu`, with `-` for what is not allowed.
fn letters(access: AccessMask) -> String {
    [
        (AccessMask::EXEC, 'x'),
        (AccessMask::WRITE, 'w'),
        (AccessMask::USER, 'u'),
    ]
    .into_iter()
    .map(|(right, letter)| if access.contains(right) { letter } else { '-' })
    .collect()
}

fn share(share: Share, all: &'static str, some: &'static str) -> &'static str {
    match share {
        Share::None => "",
        Share::Some => some,
        Share::All => all,
    }
}
