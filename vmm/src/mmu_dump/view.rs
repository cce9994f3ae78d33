//! What a dump says, line by line.

use super::words::cell;
use super::{Dump, Ours};
use umbra_mmu::inspect::{Beside, Listing, Row, by_gpa, by_gva};
use umbra_mmu::shadow::EntryFormat;
use umbra_mmu::x86::{PagingMode, PagingState};

/// Lines that a section has at most.
const LINES: usize = 1 << 17;

/// What an entry is, for its colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tone {
    /// A table.
    Table,
    /// Memory.
    Page,
    /// MMIO, known for sure.
    Fresh,
    /// MMIO, out of date.
    Stale,
    /// A fault.
    Bad,
}

/// One side of a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cell {
    /// What it says.
    pub text: String,
    /// How it looks.
    pub tone: Tone,
    /// How far it is moved to the right: its place in a tree without branches.
    pub depth: usize,
}

/// A line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// Its place in the tree on the left: for each level above whether that goes on below; empty if there is nothing on
    /// the left.
    pub branches: Vec<bool>,
    /// The left side.
    pub left: Option<Cell>,
    /// The right side.
    pub right: Option<Cell>,
}

/// Lines under a title.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Section {
    /// What is on the left.
    pub left: String,
    /// What is on the right; `None` if there is nothing.
    pub right: Option<String>,
    /// The lines.
    pub lines: Vec<Line>,
    /// What else there is to say.
    pub notes: Vec<&'static str>,
}

/// What a dump says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// The title.
    pub title: String,
    /// Below it.
    pub sections: Vec<Section>,
}

impl View {
    /// Of a dump.
    pub fn of(dump: &Dump) -> Self {
        let title = format!(
            "vCPU {}: {}; memory slots at generation {}",
            dump.vcpu,
            paging(&dump.state),
            dump.generation.get()
        );
        let format = match dump.layout.host().format {
            EntryFormat::X86 => "x86",
            EntryFormat::Ept { .. } => "EPT",
        };
        let mut sections = Vec::new();
        match &dump.ours {
            Ours::Shadow(ours) => {
                let right = format!("the tables that the CPU walks ({format} entries)");
                let lines = by_gva(&dump.guest.rows, &ours.rows);
                let mut section = guest_section(dump, right, &lines, ours.cut_short);
                // It is a tree, too: here without branches, as its lines don't follow each other.
                let top = ours.rows.first().map_or(0, |row| row.level);
                for (line, beside) in section.lines.iter_mut().zip(&lines) {
                    if let (Some(cell), Some(row)) = (&mut line.right, &beside.ours) {
                        cell.depth = top.saturating_sub(row.level).into();
                    }
                }
                sections.push(section);
            }
            Ours::Direct(ours) => {
                let right = format!("known about MMIO there ({format} entries)");
                let lines = by_gpa(&dump.guest.rows, &ours.rows, LINES);
                if dump.state.mode != PagingMode::None {
                    sections.push(guest_section(dump, right, &lines, lines.len() >= LINES));
                }
                sections.push(direct_section(ours, format));
            }
        }
        Self { title, sections }
    }
}

fn guest_section(dump: &Dump, right: String, lines: &[Beside], cut_short: bool) -> Section {
    let top = dump.state.mode.levels();
    let mut notes = Vec::new();
    if dump.state.mode == PagingMode::None {
        notes.push("without paging, addresses are physical");
    } else if dump.guest.rows.is_empty() {
        notes.push("the guest's tables map nothing");
    }
    if dump.guest.cut_short || cut_short {
        notes.push("there is more than is shown");
    }
    Section {
        left: "the guest's page tables".to_owned(),
        right: Some(right),
        lines: tree(lines, top),
        notes,
    }
}

fn direct_section(ours: &Listing, format: &str) -> Section {
    let top = ours.rows.first().map_or(0, |row| row.level);
    let lines: Vec<Beside> = ours
        .rows
        .iter()
        .map(|row| Beside {
            guest: Some(*row),
            ours: None,
        })
        .collect();
    let mut notes = Vec::new();
    if ours.rows.is_empty() {
        notes.push("they are empty: no MMIO has been remembered");
    }
    if ours.cut_short {
        notes.push("there is more than is shown");
    }
    Section {
        left: format!("the direct tables, by gpa ({format} entries)"),
        right: None,
        lines: tree(&lines, top),
        notes,
    }
}

/// Gives each line its place in the tree, whose root's entries have level `top`.
fn tree(lines: &[Beside], top: u8) -> Vec<Line> {
    let depth = |row: &Row| usize::from(top.saturating_sub(row.level));
    // From the bottom up: at each depth, whether an entry follows below.
    let mut follows: Vec<bool> = Vec::new();
    let mut placed: Vec<Line> = lines
        .iter()
        .rev()
        .map(|line| {
            let branches = match &line.guest {
                Some(row) => {
                    let depth = depth(row);
                    follows.resize(depth + 1, false);
                    let branches = follows.clone();
                    if let Some(here) = follows.last_mut() {
                        *here = true;
                    }
                    branches
                }
                None => Vec::new(),
            };
            Line {
                branches,
                left: line.guest.as_ref().map(cell),
                right: line.ours.as_ref().map(cell),
            }
        })
        .collect();
    placed.reverse();
    placed
}

fn paging(state: &PagingState) -> String {
    let mode = match state.mode {
        PagingMode::None => return "no paging".to_owned(),
        PagingMode::Bits32 => "32-bit paging",
        PagingMode::Pae => "PAE paging",
        PagingMode::Level4 => "4-level paging",
        PagingMode::Level5 => "5-level paging",
    };
    let mut text = format!("{mode}, CR3 {:#x}", state.root);
    let flags = [
        (state.wp, "WP"),
        (state.nx, "NX"),
        (state.smep, "SMEP"),
        (state.smap, "SMAP"),
        (state.keys.is_some(), "PKE"),
    ];
    for (_, name) in flags.iter().filter(|(on, _)| *on) {
        text.push(' ');
        text.push_str(name);
    }
    text
}
