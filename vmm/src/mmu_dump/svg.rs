//! A dump as a drawing: the same lines, each entry a box in the colour of what it is.

use super::view::{Cell, Line, Section, Tone, View};
use std::fmt::Write;

/// A drawing longer than this is of no use to anybody.
const LINES: usize = 5000;
const ROW: usize = 22;
const BOX: usize = 18;
const INDENT: usize = 18;
const MARGIN: usize = 16;
/// Width of a letter of the monospaced font, in tenths of a pixel: a little more than it needs anywhere.
const LETTER: usize = 75;

/// The drawing as an SVG file.
pub fn render(view: &View) -> String {
    let mut body = String::new();
    let mut y = MARGIN + ROW;
    text(&mut body, MARGIN, y, "title", &view.title);
    let mut width = MARGIN + letters(&view.title);
    for section in &view.sections {
        let (section_width, bottom) = draw_section(&mut body, section, y + ROW);
        width = width.max(section_width);
        y = bottom;
    }
    let (width, height) = (width + MARGIN, y + MARGIN);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} \
         {height}\">\n{STYLE}<rect class=\"paper\" width=\"{width}\" height=\"{height}\"/>\n{body}</svg>\n"
    )
}

const STYLE: &str = "<style>
text { font: 12px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; fill: #1f2430 }
.title { font-size: 14px; font-weight: bold } .head { font-weight: bold } .note { fill: #6b7280 }
.paper { fill: #ffffff } path { fill: none; stroke: #b6bcc8 }
.table { fill: #eceff4 } .page { fill: #dbeafe } .fresh { fill: #c9f0d2 } .stale { fill: #ffe3b3 } .bad { fill: #ffd0d0 }
</style>
";

/// Draws from `y` on; gives the width that it took and where it ends.
fn draw_section(out: &mut String, section: &Section, mut y: usize) -> (usize, usize) {
    let shown = &section.lines[..section.lines.len().min(LINES)];
    let left_end = |line: &Line| {
        let indent = line.branches.len() * INDENT;
        line.left.as_ref().map_or(0, |cell| MARGIN + indent + box_width(cell))
    };
    let column = shown
        .iter()
        .map(left_end)
        .chain([MARGIN + letters(&section.left)])
        .max()
        .unwrap_or(0)
        + 2 * INDENT;
    let mut width = column;
    y += ROW;
    text(out, MARGIN, y, "head", &section.left);
    if let Some(right) = &section.right {
        text(out, column, y, "head", right);
        width += letters(right);
    }
    // Where each depth's trunk was last touched, so that the next branch grows from there.
    let mut trunks: Vec<usize> = vec![y];
    for line in shown {
        y += ROW;
        if let Some(cell) = &line.left {
            let depth = line.branches.len();
            trunks.resize(depth, y);
            let x = MARGIN + depth * INDENT;
            if let Some(from) = trunks.last_mut() {
                let (trunk, middle) = (x - INDENT / 2, y - 4);
                let _ = writeln!(out, "<path d=\"M{trunk} {from}V{middle}H{x}\"/>");
                *from = middle;
            }
            trunks.push(y + 3);
            draw_box(out, x, y, cell);
        }
        if let Some(cell) = &line.right {
            let x = column + cell.depth * INDENT;
            draw_box(out, x, y, cell);
            width = width.max(x + box_width(cell));
        }
    }
    let more = section.lines.len() - shown.len();
    let more = (more > 0).then(|| format!("{more} more lines are not drawn"));
    for note in section.notes.iter().copied().chain(more.as_deref()) {
        y += ROW;
        text(out, MARGIN, y, "note", note);
    }
    (width, y)
}

fn draw_box(out: &mut String, x: usize, y: usize, cell: &Cell) {
    let class = match cell.tone {
        Tone::Table => "table",
        Tone::Page => "page",
        Tone::Fresh => "fresh",
        Tone::Stale => "stale",
        Tone::Bad => "bad",
    };
    let (top, width) = (y - 13, box_width(cell));
    let _ = writeln!(
        out,
        "<rect class=\"{class}\" x=\"{x}\" y=\"{top}\" width=\"{width}\" height=\"{BOX}\" rx=\"3\"/>"
    );
    text(out, x + 6, y, "", &cell.text);
}

/// `text` has no letter that would have to be escaped: addresses, numbers, and words of ours.
fn text(out: &mut String, x: usize, y: usize, class: &str, text: &str) {
    let _ = writeln!(out, "<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{text}</text>");
}

fn box_width(cell: &Cell) -> usize {
    letters(&cell.text) + 12
}

fn letters(text: &str) -> usize {
    (text.chars().count() * LETTER).div_ceil(10)
}
