//! `--watch`: what the MMU and the vCPUs do, as it happens, with the guest's console in a pane.
//!
//! [`console`] is the pane, [`draw`] puts everything on the screen; here is what there is to be put.

pub mod console;
pub mod draw;

pub use console::ConsolePane;

use crate::report::RunReport;
use crate::terminal::screen::{self, Screen};
use draw::{Picture, Rate};
use ratatui::backend::CrosstermBackend;
use ratatui::layout::Rect;
use ratatui::{Terminal, TerminalOptions, Viewport};
use std::cell::RefCell;
use std::io::{self, Stdout};
use std::time::Duration;

/// A screen that shows a run.
pub struct LiveView {
    state: RefCell<State>,
    pane: ConsolePane,
    _screen: Screen,
}

struct State {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    /// What of the screen is drawn on: all of it, as far as is known.
    area: Rect,
    last: RunReport,
    rates: Vec<Rate>,
}

/// A terminal that has nothing on it.
///
/// Of a fixed size: if ratatui followed the size itself, it would ask the terminal where its cursor is, and wait for the
/// answer among what is typed for the guest.
fn empty(area: Rect) -> io::Result<Terminal<CrosstermBackend<Stdout>>> {
    let viewport = Viewport::Fixed(area);
    Terminal::with_options(CrosstermBackend::new(io::stdout()), TerminalOptions { viewport })
}

/// The whole screen.
fn area() -> Rect {
    let (width, height) = match rustix::termios::tcgetwinsize(rustix::stdio::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
        _ => (80, 24),
    };
    Rect::new(0, 0, width, height)
}

impl LiveView {
    /// Takes the screen; `None` if standard output is no terminal.
    ///
    /// # Errors
    /// The terminal refuses.
    pub fn open() -> io::Result<Option<Self>> {
        let Some(screen) = Screen::enter()? else {
            return Ok(None);
        };
        let area = area();
        let state = State {
            terminal: empty(area)?,
            area,
            last: RunReport::default(),
            rates: Vec::new(),
        };
        Ok(Some(Self {
            state: RefCell::new(state),
            pane: ConsolePane::default(),
            _screen: screen,
        }))
    }

    /// Where the guest's console is to go.
    pub fn pane(&self) -> &ConsolePane {
        &self.pane
    }

    /// Shows the numbers of this moment, and in the last line `notice`.
    pub fn show(&self, report: &RunReport, notice: &str) {
        self.pane.notice(&screen::take_said());
        // A panic elsewhere has given the screen back.
        let Ok(mut state) = self.state.try_borrow_mut() else {
            return;
        };
        if !screen::is_up() {
            return;
        }
        let state = &mut *state;
        if let Some(rates) = rates(&state.last, report) {
            state.rates = rates;
            state.last = report.clone();
        }
        let area = area();
        let resized = area != state.area;
        if resized {
            screen::clear();
        }
        if (screen::was_cleared() || resized)
            && let Ok(empty) = empty(area)
        {
            (state.terminal, state.area) = (empty, area);
        }
        let picture = Picture {
            report,
            rates: &state.rates,
            console: &self.pane,
            notice,
        };
        // A terminal that has hung up shows nothing; the signal that comes with it ends the run.
        let _ = state.terminal.draw(|frame| draw::draw(frame, &picture));
    }
}

/// Exits per second between two reports; `None` if they are too close to tell.
fn rates(before: &RunReport, now: &RunReport) -> Option<Vec<Rate>> {
    const SHORTEST: Duration = Duration::from_millis(20);
    // After a reset everything begins anew.
    let (elapsed, zero) = match now.wall.checked_sub(before.wall) {
        Some(elapsed) if now.stats.total_exits() >= before.stats.total_exits() => (elapsed, false),
        _ => (now.wall, true),
    };
    if elapsed < SHORTEST {
        return None;
    }
    let per_second = |count: u64| (count as f64 / elapsed.as_secs_f64()).round();
    let rates = now.stats.exits.iter().map(|(kind, stat)| {
        let earlier = if zero { 0 } else { before.stats.exit(*kind).count };
        Rate {
            kind: *kind,
            per_second: per_second(stat.count.saturating_sub(earlier)),
            total: stat.count,
        }
    });
    Some(rates.collect())
}

#[cfg(test)]
mod tests;
