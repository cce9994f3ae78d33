//! A dump as text: two columns, the left one a tree.

use super::view::{Cell, Line, Section, Tone, View};
use crate::style::Style;
use std::fmt::Write;

/// The left column is no wider than this, if one line is longer it sticks out.
const WIDEST_LEFT: usize = 100;

/// The text, with a final newline.
pub fn render(view: &View, style: Style) -> String {
    let mut out = format!("{}\n", style.bold(&view.title));
    for section in &view.sections {
        out.push('\n');
        render_section(&mut out, section, style);
    }
    out
}

fn render_section(out: &mut String, section: &Section, style: Style) {
    let left_of = |line: &Line| {
        line.left
            .as_ref()
            .map_or(0, |cell| width(&branches(line)) + width(&cell.text))
    };
    let longest = section.lines.iter().map(left_of).max().unwrap_or(0);
    let column = longest.max(width(&section.left)).min(WIDEST_LEFT) + 2;
    let pad = |used: usize| " ".repeat(column.saturating_sub(used));
    match &section.right {
        Some(right) => {
            let gap = pad(width(&section.left));
            let _ = writeln!(out, "{}{gap}{}", style.bold(&section.left), style.bold(right));
        }
        None => {
            let _ = writeln!(out, "{}", style.bold(&section.left));
        }
    }
    for line in &section.lines {
        let mut text = String::new();
        if let Some(cell) = &line.left {
            text.push_str(&style.dim(&branches(line)));
            text.push_str(&coloured(cell, style));
        }
        if let Some(cell) = &line.right {
            text.push_str(&pad(left_of(line)));
            text.push_str(&"  ".repeat(cell.depth));
            text.push_str(&coloured(cell, style));
        }
        let _ = writeln!(out, "{text}");
    }
    for note in &section.notes {
        let _ = writeln!(out, "{}", style.dim(&format!("({note})")));
    }
}

fn branches(line: &Line) -> String {
    let Some((follows, above)) = line.branches.split_last() else {
        return String::new();
    };
    let mut text: String = above.iter().map(|goes_on| if *goes_on { "│ " } else { "  " }).collect();
    text.push_str(if *follows { "├ " } else { "└ " });
    text
}

fn coloured(cell: &Cell, style: Style) -> String {
    match cell.tone {
        Tone::Table => style.dim(&cell.text),
        Tone::Page => cell.text.clone(),
        Tone::Fresh => style.good(&cell.text),
        Tone::Stale => style.warn(&cell.text),
        Tone::Bad => style.bad(&cell.text),
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}
