//! `--watch` around a run.

use super::failure::Failure;
use crate::config::MachineConfig;
use crate::live::LiveView;
use crate::machine::ending::Ending;
use crate::machine::{Console, Machine};
use crate::report::RunReport;
use crate::signals::Signals;
use crate::terminal::raw::RawTerminal;
use rustix::event::{PollFd, PollFlags, poll};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::time::Duration;

/// The view, if it was asked for. To be opened before a guest runs.
pub(super) fn open(config: &MachineConfig) -> Result<Option<LiveView>, Failure> {
    if !config.watch {
        return Ok(None);
    }
    if config.log.is_some() && io::stderr().is_terminal() && io::stdout().is_terminal() {
        return Err(Failure::LogOnScreen);
    }
    let view = LiveView::open().map_err(|source| Failure::Host {
        what: "cannot draw on the terminal",
        source,
    })?;
    view.map(Some).ok_or(Failure::NoScreen)
}

/// Where the guest's console goes.
pub(super) fn console(view: Option<&LiveView>) -> Console {
    match view {
        Some(view) => Console::Pane(view.pane().clone()),
        None => Console::To(rustix::stdio::stdout()),
    }
}

/// Waits for the end of a guest, and shows what it does meanwhile.
pub(super) fn wait(
    machine: &mut Machine,
    signals: &Signals,
    terminal: Option<&RawTerminal>,
    time: Option<Duration>,
    view: Option<&LiveView>,
) -> Ending {
    const KEYS: &str = " Ctrl-a x ends the guest, Ctrl-a p pauses it, Ctrl-a h helps";
    match view {
        Some(view) => machine.wait(signals, terminal, time, Some(&|report| view.show(report, KEYS))),
        None => machine.wait(signals, terminal, time, None),
    }
}

/// Leaves the last numbers on the screen until a key is pressed, unless the user wanted it to end.
pub(super) fn hold(
    view: &LiveView,
    report: &RunReport,
    ending: &Ending,
    signals: &Signals,
    terminal: Option<&RawTerminal>,
) {
    let asked_for = matches!(ending, Ending::Quit | Ending::Signal(_) | Ending::Bug);
    if asked_for || terminal.is_none() {
        return;
    }
    view.show(report, " The guest has ended. Any key leaves.");
    wait_for_key(signals);
}

/// Waits for a key. A signal will do as well: the end has come anyway.
fn wait_for_key(signals: &Signals) {
    let signals = signals.as_fd();
    let stdin = rustix::stdio::stdin();
    loop {
        let mut ready = [
            PollFd::from_borrowed_fd(stdin, PollFlags::IN),
            PollFd::from_borrowed_fd(signals, PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
            Ok(_) => {
                if !ready[0].revents().is_empty() {
                    // The key is not for the shell.
                    let _ = rustix::io::read(stdin, &mut [0; 16]);
                }
                return;
            }
        }
    }
}
