//! The main thread while the guest runs: it waits for the guest's end, for signals and for what is typed.

use super::console_input::ConsoleInput;
use super::ending::{Ending, EndingBox};
use crate::signals::{Request, Signals, continue_self, stop_self};
use crate::terminal::keys::{Command, HELP};
use crate::terminal::raw::{RawTerminal, in_foreground};
use crate::terminal::{say, screen};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use umbra_devices::bus::EventHandle;
use umbra_devices::models::serial::{Serial, SerialInput};

/// What the waiting thread needs of the machine.
pub trait Watched {
    /// The guest ended by itself: leave the ending in the box.
    fn vcpu_ended(&mut self);

    /// Print statistics.
    fn show_stats(&mut self);

    /// Stop the vCPUs or let them go on. Returns whether they stand now.
    fn toggle_pause(&mut self) -> bool;
}

/// What to wait for.
pub struct Sources<'a> {
    /// Signals.
    pub signals: &'a Signals,
    /// The terminal, if standard input is one and it is ours.
    pub terminal: Option<&'a RawTerminal>,
    /// Whether standard input was read already.
    pub scripted: bool,
    /// The end.
    pub endings: &'a EndingBox,
    /// Signalled when a vCPU ended by itself.
    pub vcpu_ended: &'a EventHandle,
    /// The console.
    pub serial: &'a Arc<Serial>,
    /// Signalled when the console has room again.
    pub room: &'a EventHandle,
    /// When the guest's time is up.
    pub deadline: Option<Instant>,
    /// What is to be done every [`TICK`].
    pub tick: Option<&'a dyn Fn()>,
}

/// How often a live view is drawn.
pub const TICK: Duration = Duration::from_millis(250);

/// Waits until the guest has ended.
///
/// # Errors
/// The host refuses to wait (no file descriptor left).
pub fn until_ended(sources: &Sources<'_>, machine: &mut dyn Watched) -> io::Result<Ending> {
    const EVENTS_AT_ONCE: usize = 8;
    const LOOK_AGAIN_MS: i32 = 300;
    const FOR_EVER: i32 = -1;
    let background = Cell::new(false);
    let failed = |error: event_manager::Error| io::Error::other(format!("event loop: {error}"));
    let mut events =
        EventManager::<Box<dyn MutEventSubscriber + '_>>::new_with_capacity(EVENTS_AT_ONCE).map_err(failed)?;
    if sources.terminal.is_none() && !sources.scripted {
        // Not `io::stdin()`: bytes in its buffer would be hidden from epoll.
        let stdin = File::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 0)?);
        events.add_subscriber(Box::new(SerialInput::new(
            Arc::clone(sources.serial),
            sources.room.clone(),
            stdin,
        )));
    }
    events.add_subscriber(Box::new(Watch {
        background: &background,
        sources,
        machine,
        input: ConsoleInput::default(),
        listening: false,
    }));
    let mut next_tick = Instant::now();
    loop {
        if let Some(ending) = sources.endings.take() {
            return Ok(ending);
        }
        // A background job that is brought to the foreground hears nothing of it, so it has to look.
        let waits_for_terminal = background.get();
        if waits_for_terminal && in_foreground() {
            continue_self();
        }
        let patience = if waits_for_terminal { LOOK_AGAIN_MS } else { FOR_EVER };
        let now = Instant::now();
        if sources.deadline.is_some_and(|deadline| deadline <= now) {
            sources.endings.put(Ending::TimeUp);
            continue;
        }
        if let Some(tick) = sources.tick
            && next_tick <= now
        {
            tick();
            next_tick = Instant::now() + TICK;
        }
        let wake = [sources.deadline, sources.tick.map(|_| next_tick)]
            .into_iter()
            .flatten()
            .min();
        let left = wake.map(|wake| wake.saturating_duration_since(Instant::now()));
        match events.run_with_timeout(shorter(patience, left)) {
            Ok(_) => {}
            Err(event_manager::Error::Epoll(error)) if error.errno() == nix::libc::EINTR => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// The shorter of two times in milliseconds, of which a negative one is for ever.
fn shorter(patience: i32, left: Option<Duration>) -> i32 {
    let Some(left) = left else { return patience };
    // Rounded up, so as not to be too early and look again at once.
    let left = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
    if patience < 0 { left } else { patience.min(left) }
}

struct Watch<'a> {
    sources: &'a Sources<'a>,
    machine: &'a mut dyn Watched,
    input: ConsoleInput,
    /// Whether the terminal is being watched.
    listening: bool,
    /// Whether somebody else is the terminal's foreground job.
    background: &'a Cell<bool>,
}

impl Watch<'_> {
    /// Descriptors that are watched all the time.
    fn always(&self) -> impl Iterator<Item = RawFd> + use<> {
        let Sources {
            signals,
            endings,
            vcpu_ended,
            room,
            terminal,
            ..
        } = *self.sources;
        let room = terminal.map(|_| room.as_raw_fd());
        [signals.as_raw_fd(), endings.wake().as_raw_fd(), vcpu_ended.as_raw_fd()]
            .into_iter()
            .chain(room)
    }

    fn listen(&mut self, ops: &mut EventOps<'_>) {
        if self.sources.terminal.is_some() && !self.listening {
            self.listening = watch(ops, io::stdin().as_raw_fd());
        }
    }

    fn signalled(&mut self, ops: &mut EventOps<'_>) {
        while let Some(request) = self.sources.signals.next() {
            match request {
                Request::Stop(signal) => self.sources.endings.put(Ending::Signal(signal)),
                Request::Stats => self.machine.show_stats(),
                Request::Suspend => {
                    if let Some(terminal) = self.sources.terminal {
                        terminal.suspend();
                    }
                    screen::leave();
                    stop_self();
                }
                Request::Continued => {
                    if let Some(terminal) = self.sources.terminal {
                        match terminal.resume() {
                            Ok(ours) => self.background.set(!ours),
                            Err(error) => tracing::warn!(%error, "cannot make the terminal raw again"),
                        }
                    }
                    if !self.background.get() {
                        screen::resume();
                        self.listen(ops);
                    }
                }
            }
        }
    }

    fn typed(&mut self, ops: &mut EventOps<'_>) {
        match self.input.read(Stdin, self.sources.serial) {
            Ok(Some(commands)) => commands.into_iter().for_each(|command| self.command(command)),
            // Gone, or we are in the background: listen again when it is ours again.
            Ok(None) | Err(_) => {
                self.background.set(!in_foreground());
                let events = Events::new_raw(io::stdin().as_raw_fd(), EventSet::IN);
                self.listening = ops.remove(events).is_err();
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Help => say(format_args!("\n{HELP}")),
            Command::Quit => self.sources.endings.put(Ending::Quit),
            Command::Stats => self.machine.show_stats(),
            Command::PauseResume => {
                let stands = self.machine.toggle_pause();
                say(format_args!(
                    "\n[{}]\n",
                    if stands { "paused; Ctrl-a p resumes" } else { "running" }
                ));
            }
        }
    }
}

impl MutEventSubscriber for Watch<'_> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for fd in self.always() {
            if !watch(ops, fd) {
                // Without its events the guest could not be ended.
                self.sources.endings.put(Ending::HostFailed {
                    reason: "epoll refuses a descriptor".to_owned(),
                });
            }
        }
        self.listen(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let Sources {
            signals,
            endings,
            vcpu_ended,
            room,
            serial,
            ..
        } = *self.sources;
        match events.fd() {
            fd if fd == signals.as_raw_fd() => self.signalled(ops),
            fd if fd == endings.wake().as_raw_fd() => {
                let _ = endings.wake().read();
            }
            fd if fd == vcpu_ended.as_raw_fd() => {
                let _ = vcpu_ended.eventfd().read();
                self.machine.vcpu_ended();
            }
            fd if fd == room.as_raw_fd() => {
                let _ = room.eventfd().read();
                self.input.pump(serial);
            }
            _ => self.typed(ops),
        }
    }
}

/// Standard input without the buffer of [`io::stdin`], whose bytes would be hidden from epoll.
struct Stdin;

impl io::Read for Stdin {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(rustix::stdio::stdin(), buffer)?)
    }
}

fn watch(ops: &mut EventOps<'_>, fd: RawFd) -> bool {
    ops.add(Events::new_raw(fd, EventSet::IN))
        .inspect_err(|error| tracing::warn!(%error, fd, "cannot watch"))
        .is_ok()
}
