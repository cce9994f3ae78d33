//! Two listings side by side.

use super::row::{Row, Seen};
use alloc::vec::Vec;
use core::cmp::Ordering;

/// A line: of the guest's tables, of ours, or of both.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Beside {
    /// The guest's.
    pub guest: Option<Row>,
    /// Ours.
    pub ours: Option<Row>,
}

/// Puts shadow tables beside the guest's: entries of one address and size stand on one line.
#[must_use]
pub fn by_gva(guest: &[Row], ours: &[Row]) -> Vec<Beside> {
    // In both listings, what comes first begins at a lower address or covers what follows.
    let order = |row: &Row| (row.start, core::cmp::Reverse(row.shift));
    let (mut guest, mut ours) = (guest, ours);
    let mut lines = Vec::with_capacity(guest.len() + ours.len());
    loop {
        let mut line = Beside::default();
        let which = match (guest.first(), ours.first()) {
            (None, None) => return lines,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(guest), Some(ours)) => order(guest).cmp(&order(ours)),
        };
        if which.is_le()
            && let Some((row, rest)) = guest.split_first()
        {
            (line.guest, guest) = (Some(*row), rest);
        }
        if which.is_ge()
            && let Some((row, rest)) = ours.split_first()
        {
            (line.ours, ours) = (Some(*row), rest);
        }
        lines.push(line);
    }
}

/// Puts what direct tables hold beside the pages of the guest through which it can be reached: at most `limit` lines.
#[must_use]
pub fn by_gpa(guest: &[Row], ours: &[Row], limit: usize) -> Vec<Beside> {
    let leaves: Vec<&Row> = ours.iter().filter(|row| row.is_leaf()).collect();
    let mut lines = Vec::with_capacity(guest.len());
    for row in guest {
        let mut guest = Some(*row);
        if let Seen::Page { address, .. } = row.seen {
            let last = address.saturating_add(row.bytes() - 1);
            let first = leaves.partition_point(|leaf| leaf.last() < address);
            for leaf in leaves[first..].iter().map_while(|leaf| leaf.clipped(address, last)) {
                if lines.len() >= limit {
                    return lines;
                }
                lines.push(Beside {
                    guest: guest.take(),
                    ours: Some(leaf),
                });
            }
        }
        if guest.is_some() {
            lines.push(Beside { guest, ours: None });
        }
    }
    lines
}
