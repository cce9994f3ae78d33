//! A bare `vmm`: the guest that is part of the binary, and the summary.

use super::failure::Failure;
use super::run::{
    choose, conclude, finish_trace, give_back, print_stats, raw_terminal, show_stats, signals, start_logging,
    with_written,
};
use super::{Outcome, watching};
use crate::boot::{self, BootError, BootRequest, BootState, Image, KernelProblem};
use crate::builtin::measure;
use crate::builtin::plan::{self, Answers};
use crate::builtin::program::{self, Privilege};
use crate::builtin::summary::{NsEach, Summary};
use crate::cli::BuiltinArgs;
use crate::config::{BackendChoice, ConfigError, MachineConfig, Settings};
use crate::exit_status::ExitStatus;
use crate::layout::MemoryLayout;
use crate::machine::choice::GuestKind;
use crate::machine::ending::Ending;
use crate::machine::{Machine, Purpose};
use crate::size::ByteSize;
use crate::style::Style;
use iced_x86::IcedError;
use std::cell::Cell;
use std::io::{self, Cursor, IsTerminal, Write};
use umbra_memslots::{Gpa, GuestMemory, Memslots};

/// What the guest's image is called in messages.
const NAME: &str = "the built-in guest";

pub(super) fn run(args: BuiltinArgs) -> Result<Outcome, Failure> {
    let user_mode = args.user_mode;
    let config = machine_config(&args.into_settings())?;
    start_logging(&config)?;
    let (host, notice) = choose(&config, GuestKind::Builtin)?;
    let signals = signals()?;
    let image = image(&config, user_mode)?;
    let view = watching::open(&config)?;
    let generation = Cell::new(0);
    let load = |memory: &Memslots, layout: &_, _: Option<&_>| {
        generation.set(memory.generation().get());
        load_image(&image, memory, layout)
    };
    let purpose = Purpose {
        load: &load,
        test_devices: true,
        timed: true,
        console: watching::console(view.as_ref()),
        notice,
    };
    let asked_for = config.clone();
    let mut machine = Machine::start(&host, &config, &purpose, move |report| {
        print_stats(&asked_for, report);
    })?;
    let terminal = raw_terminal();
    let ending = watching::wait(&mut machine, &signals, terminal.as_ref(), None, view.as_ref());
    let stopped = machine.stop();
    if let Some(view) = &view {
        watching::hold(view, &stopped.report, &ending, &signals, terminal.as_ref());
    }
    drop(view);
    give_back(terminal, &stopped);
    let traced = finish_trace(&host);
    let Ending::DebugExit(code) = ending else {
        let shown = show_stats(&config, &stopped.report);
        return Ok(with_written(conclude(ending), [shown, traced]));
    };

    let mut bytes = [0; Answers::BYTES];
    // Memory that can't be read gives answers that are wrong.
    let _ = stopped.ram.read(Gpa::new(plan::ANSWERS.into()), &mut bytes);
    let summary = Summary {
        backend: host.name(),
        report: &stopped.report,
        ns_each: match NsEach::of_run(&stopped.report.stats.mmio) {
            Some(taken) => taken,
            None => measure::ns_each(&stopped.mmu, stopped.ram.reader()),
        },
        answers: Answers::from_bytes(bytes),
        generations: (generation.get(), stopped.ram.snapshot().generation().get()),
        mmio_cache: config.mmio_cache,
    };
    let right = summary.is_right() && code == plan::ALL_WELL;
    let text = summary.render(Style::for_stream(io::stdout().is_terminal()));
    let shown = io::stdout().write_all(text.as_bytes());
    let outcome = Outcome::Status(match (right, shown) {
        (true, Ok(())) => ExitStatus::Success,
        (true, Err(_)) => ExitStatus::OutputClosed,
        (false, _) => ExitStatus::WrongAnswer,
    });
    let written = [show_stats(&config, &stopped.report), traced];
    Ok(with_written(outcome, written))
}

/// The machine for the built-in guest.
pub(super) fn machine_config(settings: &Settings) -> Result<MachineConfig, ConfigError> {
    Ok(MachineConfig {
        memory: ByteSize::new(plan::MEMORY),
        ..MachineConfig::new(settings)?
    })
}

/// The built-in guest. On shadow tables only user mode is worth seeing.
pub(super) fn image(config: &MachineConfig, user_mode: bool) -> Result<Vec<u8>, IcedError> {
    let user_mode = user_mode || config.backend == BackendChoice::Shadow;
    program::assemble(if user_mode { Privilege::User } else { Privilege::Kernel })
}

/// Puts the built-in guest into memory.
pub(super) fn load_image(image: &[u8], memory: &Memslots, layout: &MemoryLayout) -> Result<BootState, BootError> {
    let kernel = Image::new(NAME, Cursor::new(image)).map_err(|problem| BootError::Kernel {
        file: NAME.to_owned(),
        problem: KernelProblem::File(problem),
    })?;
    let request = BootRequest {
        kernel,
        initrd: None,
        command_line: "",
        layout,
        platform: None,
        boot_compressed: false,
    };
    boot::load(memory, request)
}
