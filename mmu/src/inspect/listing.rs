//! [`Listing`]: rows in the order of a walk down (a table's row, then its contents), runs merged and full tables folded.

use super::row::{Row, Seen};
use alloc::vec::Vec;

/// How much is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Entries read.
    pub entries: u64,
    /// Rows made.
    pub rows: usize,
}

impl Default for Limits {
    /// 8192 tables, and more rows than anybody reads.
    fn default() -> Self {
        Self {
            entries: 1 << 22,
            rows: 1 << 17,
        }
    }
}

/// What was seen of a tree of tables.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listing {
    /// The rows.
    pub rows: Vec<Row>,
    /// It isn't all: a limit was reached.
    pub cut_short: bool,
}

impl Listing {
    /// Takes rows of single entries as they are found; `cut_short` says whether the finder had to stop.
    pub(super) fn collect(mut found: impl Iterator<Item = Row>, limits: Limits) -> Self {
        let mut listing = Self::default();
        for row in &mut found {
            if listing.rows.last_mut().is_some_and(|last| last.absorb(&row)) {
                continue;
            }
            if listing.rows.len() == limits.rows {
                listing.cut_short = true;
                break;
            }
            listing.rows.push(row);
        }
        listing.rows = fold(listing.rows);
        listing
    }
}

/// Neighbouring tables that each hold one run, the runs of which continue each other, become one table with one run.
fn fold(rows: Vec<Row>) -> Vec<Row> {
    let mut folded: Vec<Row> = Vec::with_capacity(rows.len());
    let mut rest = rows.as_slice();
    while let [first, behind @ ..] = rest {
        rest = behind;
        if let Some(run) = only_run(first, behind) {
            rest = &behind[1..];
            if !extend(&mut folded, first, run) {
                folded.push(*first);
                folded.push(*run);
            }
        } else {
            folded.push(*first);
        }
    }
    folded
}

/// The one row below the table of `row`, if it fills it.
fn only_run<'a>(row: &Row, behind: &'a [Row]) -> Option<&'a Row> {
    let (Seen::Table { again: false, .. }, Some(run)) = (row.seen, behind.first()) else {
        return None;
    };
    let alone = behind.get(1).is_none_or(|next| next.level >= row.level);
    (alone && run.is_leaf() && run.level < row.level && run.start == row.start && run.bytes() == row.bytes())
        .then_some(run)
}

/// Adds a table and its run to the table and run at the end of `rows`, if they continue them.
fn extend(rows: &mut [Row], table: &Row, run: &Row) -> bool {
    let [.., last_table, last_run] = rows else { return false };
    let (Seen::Table { access, tables, .. }, Seen::Table { access: same, .. }) = (last_table.seen, table.seen) else {
        return false;
    };
    let continues = last_table.level == table.level
        && last_table.bytes() == last_run.bytes()
        && last_table.start == last_run.start
        && last_table.start.wrapping_add(last_table.bytes()) == table.start
        && access == same;
    if !continues || !last_run.absorb(run) {
        return false;
    }
    last_table.count += table.count;
    if let Seen::Table { tables: number, .. } = &mut last_table.seen {
        *number = tables + 1;
    }
    true
}
