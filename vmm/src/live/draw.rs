//! What is on the screen.

use super::ConsolePane;
use crate::report::RunReport;
use crate::report::text::{counted, grouped};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph};
use umbra_vcpu::stats::ExitKind;

/// How often a kind of exit happens.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rate {
    /// The kind.
    pub kind: ExitKind,
    /// Lately.
    pub per_second: f64,
    /// In all.
    pub total: u64,
}

/// Everything that is to be seen.
#[derive(Clone, Copy, Debug)]
pub struct Picture<'a> {
    /// The numbers so far.
    pub report: &'a RunReport,
    /// Exits lately.
    pub rates: &'a [Rate],
    /// The guest's console.
    pub console: &'a ConsolePane,
    /// For the last line.
    pub notice: &'a str,
}

/// Rows of the panels above the console, frames included.
const PANELS: u16 = 10;
/// Least rows of the console, frame included: panels give way to it.
const CONSOLE: u16 = 4;

/// Draws everything, on whatever room there is.
pub fn draw(frame: &mut Frame<'_>, picture: &Picture<'_>) {
    let panels = PANELS.min(frame.area().height.saturating_sub(CONSOLE + 2));
    let [title, above, console, notice] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(panels),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(heading(picture.report)), title);
    let [mmio, exits, pages] = Layout::horizontal([
        Constraint::Ratio(9, 24),
        Constraint::Ratio(8, 24),
        Constraint::Ratio(7, 24),
    ])
    .areas(above);
    panel(frame, mmio, "MMIO, faults by outcome", outcomes(picture.report));
    panel(frame, exits, "exits per second", exit_rates(picture.rates));
    panel(frame, pages, "hottest MMIO pages", hot_pages(picture.report));
    let block = Block::new().borders(Borders::ALL).title(" guest console ");
    let inner = block.inner(console);
    frame.render_widget(block, console);
    let lines: Vec<Line<'_>> = picture
        .console
        .tail(inner.height.into())
        .into_iter()
        .map(Line::from)
        .collect();
    frame.render_widget(Paragraph::new(lines), inner);
    frame.render_widget(Paragraph::new(picture.notice).style(dim()), notice);
}

fn panel(frame: &mut Frame<'_>, area: Rect, title: &str, lines: Vec<Line<'_>>) {
    let block = Block::new().borders(Borders::ALL).title(format!(" {title} "));
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn heading(report: &RunReport) -> Line<'static> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let resets = match report.resets {
        0 => String::new(),
        resets => format!(" · {}", counted(resets.into(), "reset")),
    };
    Line::from(vec![
        Span::styled(" Umbra ", bold.fg(Color::Cyan)),
        Span::raw(format!(
            "{} · {} · {:.1} s · {} · slot generation {} · {}{resets}",
            report.backend,
            counted(report.vcpus.into(), "vCPU"),
            report.wall.as_secs_f64(),
            counted(report.stats.total_exits(), "exit"),
            report.slot_generation,
            counted(report.page_tables.into(), "shadow page"),
        )),
    ])
}

/// How MMIO was recognised, layer by layer, and what became of the rest.
fn outcomes(report: &RunReport) -> Vec<Line<'static>> {
    let mmio = &report.stats.mmio;
    let layers = [
        ("vCPU cache", mmio.cache_hits, Color::Green),
        ("MMIO SPTE", mmio.spte_hits, Color::Cyan),
        ("search", mmio.searches, Color::Yellow),
    ];
    let whole = mmio.accesses();
    let mut lines: Vec<Line<'static>> = layers
        .iter()
        .map(|&(name, count, colour)| {
            Line::from(vec![
                Span::raw(format!("{name:<11}{:>12} ", grouped(count))),
                Span::styled(bar(count, whole), Style::new().fg(colour)),
            ])
        })
        .collect();
    let others = [
        ("stale SPTEs met", mmio.stale),
        ("SPTEs made", mmio.created),
        ("read-only writes", mmio.read_only_writes),
        ("memory by now", mmio.went_to_memory),
    ];
    let faults = report.stats.faults.iter().map(|(name, count)| (*name, *count));
    // What happened first, so that it is seen where there is little room.
    let mut others: Vec<(&str, u64)> = faults.chain(others).collect();
    others.sort_by_key(|(_, count)| *count == 0);
    lines.extend(others.iter().map(|(name, count)| {
        let style = if *count == 0 { dim() } else { Style::new() };
        Line::styled(format!("{name:<16}{:>7}", grouped(*count)), style)
    }));
    lines
}

fn exit_rates(rates: &[Rate]) -> Vec<Line<'static>> {
    let mut rates = rates.to_vec();
    rates.sort_by(|one, other| {
        let order = other.per_second.total_cmp(&one.per_second);
        order.then(other.total.cmp(&one.total))
    });
    let line = |rate: &Rate| {
        let style = if rate.per_second == 0.0 { dim() } else { Style::new() };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rounded rate, not negative"
        )]
        let per_second = rate.per_second as u64;
        Line::styled(format!("{:<17}{:>10}", rate.kind.name(), grouped(per_second)), style)
    };
    rates.iter().map(line).collect()
}

fn hot_pages(report: &RunReport) -> Vec<Line<'static>> {
    let line = |page: &umbra_vcpu::stats::HotPage| {
        Line::raw(format!("{:#013x}{:>12}", page.gfn << 12, grouped(page.accesses)))
    };
    report.stats.hot_pages.iter().map(line).collect()
}

/// Ten cells at most; something that is there at all is never shown as nothing.
fn bar(part: u64, whole: u64) -> String {
    const CELLS: u64 = 10;
    let cells = if whole == 0 { 0 } else { (part * CELLS).div_ceil(whole) };
    "█".repeat(usize::try_from(cells).unwrap_or_default())
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}
