//! `vmm run`: the user's kernel.

use super::failure::Failure;
use super::{Outcome, explain, watching};
use crate::acpi::Platform;
use crate::boot::{self, BootError, BootRequest, BootState};
use crate::cli::RunArgs;
use crate::config::{self, MachineConfig, RunConfig, Settings, StatsFormat};
use crate::exit_status::ExitStatus;
use crate::layout::MemoryLayout;
use crate::live::LiveView;
use crate::logging;
use crate::machine::choice::GuestKind;
use crate::machine::ending::Ending;
use crate::machine::engine::Host;
use crate::machine::turns::Turns;
use crate::machine::{Machine, Purpose, Stopped};
use crate::report::{RunReport, text};
use crate::signals::Signals;
use crate::style::Style;
use crate::terminal::{raw::RawTerminal, say};
use std::io::{self, IsTerminal};
use umbra_memslots::Memslots;

pub(super) fn run(args: RunArgs) -> Result<Outcome, Failure> {
    let file = match &args.config {
        Some(path) => config::file::read(path)?,
        None => Settings::default(),
    };
    let config = RunConfig::new(args.settings, file)?;
    start_logging(&config.machine)?;
    check_files(&config)?;
    let (host, mut notice) = choose(&config.machine, GuestKind::Kernel)?;
    let signals = signals()?;
    let view = watching::open(&config.machine)?;
    let mut total: Option<RunReport> = None;
    loop {
        let (ending, report) = one_life(&config, &host, notice.take(), &signals, view.as_ref())?;
        let report = match total.take() {
            Some(total) => total.after_reset(&report),
            None => report,
        };
        if matches!(ending, Ending::Reset) && config.reboot {
            tracing::info!(before = report.resets, "the guest resets the machine");
            total = Some(report);
            continue;
        }
        drop(view);
        let shown = show_stats(&config.machine, &report);
        return Ok(with_written(conclude(ending), [shown, finish_trace(&host)]));
    }
}

/// From power-on to power-off or reset.
fn one_life(
    config: &RunConfig,
    host: &Host,
    notice: Option<String>,
    signals: &Signals,
    view: Option<&LiveView>,
) -> Result<(Ending, RunReport), Failure> {
    let load = |memory: &_, layout: &_, platform: Option<&_>| load(config, memory, layout, platform);
    let purpose = Purpose {
        load: &load,
        test_devices: false,
        timed: config.machine.stats.is_some() || config.machine.watch,
        console: watching::console(view),
        notice,
    };
    let asked_for = config.machine.clone();
    let mut machine = Machine::start(host, &config.machine, &purpose, move |report| {
        print_stats(&asked_for, report);
    })?;
    let terminal = raw_terminal();
    let ending = watching::wait(&mut machine, signals, terminal.as_ref(), None, view);
    let stopped = machine.stop();
    if let Some(view) = view
        && !(matches!(ending, Ending::Reset) && config.reboot)
    {
        watching::hold(view, &stopped.report, &ending, signals, terminal.as_ref());
    }
    give_back(terminal, &stopped);
    Ok((ending, stopped.report))
}

/// Puts the user's kernel into memory.
pub(super) fn load(
    config: &RunConfig,
    memory: &Memslots,
    layout: &MemoryLayout,
    platform: Option<&Platform>,
) -> Result<BootState, BootError> {
    let request = BootRequest {
        kernel: boot::open_kernel(&config.kernel)?,
        initrd: config.initrd.as_deref().map(boot::open_initrd).transpose()?,
        command_line: &config.cmdline,
        layout,
        platform,
        boot_compressed: config.boot_compressed,
    };
    boot::load(memory, request)
}

/// The user's own mistakes first: a mistyped path matters on a host without KVM, too.
pub(super) fn check_files(config: &RunConfig) -> Result<(), BootError> {
    boot::open_kernel(&config.kernel)?;
    config.initrd.as_deref().map(boot::open_initrd).transpose()?;
    Ok(())
}

/// What executes the guest, and a line that says so if the user didn't.
pub(super) fn choose(config: &MachineConfig, guest: GuestKind) -> Result<(Host, Option<String>), Failure> {
    let (host, choice) = Host::choose(config, guest)?;
    let host = match &config.deterministic {
        Some(deterministic) => host.in_turns(Turns::open(deterministic)?),
        None => host,
    };
    Ok((host, choice.map(|choice| choice.to_string())))
}

/// Writes out what is left of a deterministic run's trace.
pub(super) fn finish_trace(host: &Host) -> Result<(), Failure> {
    Ok(host.turns().map_or(Ok(()), Turns::finish)?)
}

/// The terminal, raw. That it can't be had is no reason not to run.
pub(super) fn raw_terminal() -> Option<RawTerminal> {
    RawTerminal::enter().unwrap_or_else(|error| {
        say(format_args!("vmm: the terminal stays as it is: {error}\n"));
        None
    })
}

/// Gives the terminal back, with the cursor at the start of a line.
pub(super) fn give_back(terminal: Option<RawTerminal>, stopped: &Stopped) {
    if terminal.is_some() && stopped.mid_line {
        say(format_args!("\n"));
    }
    drop(terminal);
}

pub(super) fn signals() -> Result<Signals, Failure> {
    Signals::new().map_err(|source| Failure::Host {
        what: "cannot receive signals",
        source,
    })
}

pub(super) fn start_logging(config: &MachineConfig) -> Result<(), Failure> {
    Ok(config.log.as_deref().map_or(Ok(()), logging::start)?)
}

/// Tells what there is to tell about the end and says how the program ends.
pub(super) fn conclude(ending: Ending) -> Outcome {
    Outcome::Status(match ending {
        Ending::PowerOff => ExitStatus::Success,
        Ending::Reset => ExitStatus::ResetRefused,
        Ending::DebugExit(code) => ExitStatus::DebugExit(code),
        Ending::Died { status, report } => {
            say(format_args!("vmm: {}\n", report.trim_end()));
            status
        }
        Ending::HostFailed { reason } => {
            say(format_args!("vmm: the host failed: {reason}\n"));
            ExitStatus::Host
        }
        Ending::OutputClosed => {
            say(format_args!(
                "vmm: nobody reads standard output any more, so the guest was stopped\n"
            ));
            ExitStatus::OutputClosed
        }
        Ending::Quit => ExitStatus::Quit,
        Ending::TimeUp => ExitStatus::Success,
        Ending::Signal(signal) => return Outcome::Signal(signal),
        Ending::Bug => ExitStatus::Internal,
    })
}

/// How the program ends, with what could not be written: that is told as well, and counts if the guest ended as it should.
pub(super) fn with_written<const N: usize>(outcome: Outcome, written: [Result<(), Failure>; N]) -> Outcome {
    written.into_iter().fold(outcome, |outcome, written| {
        let Err(failure) = written else { return outcome };
        say(format_args!("vmm: {}\n", explain(&failure)));
        match outcome {
            Outcome::Status(ExitStatus::Success) => Outcome::Status(failure.status()),
            other => other,
        }
    })
}

/// The statistics at the end, if they were asked for.
pub(super) fn show_stats(config: &MachineConfig, report: &RunReport) -> Result<(), Failure> {
    let Some(format) = config.stats else { return Ok(()) };
    match &config.stats_file {
        Some(path) => {
            std::fs::write(path, format_stats(format, report, Style::Plain)).map_err(|source| Failure::StatsFile {
                path: path.clone(),
                source,
            })
        }
        None => {
            let style = Style::for_stream(io::stderr().is_terminal());
            say(format_args!("{}", format_stats(format, report, style)));
            Ok(())
        }
    }
}

/// The statistics while the guest runs: always shown, as text if nothing else was said.
pub(super) fn print_stats(config: &MachineConfig, report: &RunReport) {
    let config = MachineConfig {
        stats: config.stats.or(Some(StatsFormat::Text)),
        ..config.clone()
    };
    if let Err(error) = show_stats(&config, report) {
        say(format_args!("vmm: {}\n", explain(&error)));
    }
}

fn format_stats(format: StatsFormat, report: &RunReport, style: Style) -> String {
    match format {
        StatsFormat::Text => text::render(report, style),
        StatsFormat::Json => report.to_json() + "\n",
    }
}
