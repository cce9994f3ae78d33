//! `vmm mmu dump`: runs a guest, and prints its page tables in the end.

use super::failure::Failure;
use super::run::{
    check_files, choose, conclude, finish_trace, give_back, load, print_stats, raw_terminal, show_stats, signals,
    start_logging, with_written,
};
use super::{Outcome, builtin, watching};
use crate::acpi::Platform;
use crate::boot::{BootError, BootState};
use crate::cli::DumpArgs;
use crate::config::{self, MachineConfig, RunConfig, Settings};
use crate::exit_status::ExitStatus;
use crate::layout::MemoryLayout;
use crate::machine::choice::GuestKind;
use crate::machine::ending::Ending;
use crate::machine::{Console, Machine, Purpose};
use crate::mmu_dump::view::View;
use crate::mmu_dump::{Dump, svg, text};
use crate::style::Style;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use umbra_memslots::Memslots;

/// Which guest.
enum Guest {
    Kernel(Box<RunConfig>),
    Builtin(MachineConfig, Vec<u8>),
}

impl Guest {
    fn new(settings: Settings, file: Settings) -> Result<Self, Failure> {
        if settings.kernel.is_none() && file.kernel.is_none() {
            let config = builtin::machine_config(&settings.over(file))?;
            let image = builtin::image(&config, false)?;
            return Ok(Self::Builtin(config, image));
        }
        let config = RunConfig::new(settings, file)?;
        check_files(&config)?;
        Ok(Self::Kernel(Box::new(config)))
    }

    fn kind(&self) -> GuestKind {
        match self {
            Self::Kernel(_) => GuestKind::Kernel,
            Self::Builtin(..) => GuestKind::Builtin,
        }
    }

    fn machine(&self) -> &MachineConfig {
        match self {
            Self::Kernel(config) => &config.machine,
            Self::Builtin(config, _) => config,
        }
    }

    fn load(
        &self,
        memory: &Memslots,
        layout: &MemoryLayout,
        platform: Option<&Platform>,
    ) -> Result<BootState, BootError> {
        match self {
            Self::Kernel(config) => load(config, memory, layout, platform),
            Self::Builtin(_, image) => builtin::load_image(image, memory, layout),
        }
    }
}

pub(super) fn run(args: DumpArgs) -> Result<Outcome, Failure> {
    let file = match &args.run.config {
        Some(path) => config::file::read(path)?,
        None => Settings::default(),
    };
    let guest = Guest::new(args.run.settings, file)?;
    let config = guest.machine();
    let (vcpu, cpus) = (args.vcpu, config.cpus);
    if vcpu >= cpus {
        return Err(Failure::NoVcpu { vcpu, cpus });
    }
    start_logging(config)?;
    // Before the guest runs: a mistyped path shouldn't cost what was to be seen.
    let drawing = args.svg.as_deref().map(Drawing::create).transpose()?;
    // Before the screen is taken: a deterministic guest's input may have to be waited for.
    let (host, notice) = choose(config, guest.kind())?;
    let signals = signals()?;
    let view = watching::open(config)?;
    let load = |memory: &_, layout: &_, platform: Option<&_>| guest.load(memory, layout, platform);
    let purpose = Purpose {
        load: &load,
        test_devices: matches!(guest, Guest::Builtin(..)),
        timed: config.stats.is_some() || config.watch,
        console: match &view {
            Some(view) => Console::Pane(view.pane().clone()),
            None => Console::To(rustix::stdio::stderr()),
        },
        notice,
    };
    let asked_for = config.clone();
    let mut machine = Machine::start(&host, config, &purpose, move |report| {
        print_stats(&asked_for, report);
    })?;
    let terminal = raw_terminal();
    let ending = watching::wait(
        &mut machine,
        &signals,
        terminal.as_ref(),
        args.after.map(|after| after.get()),
        view.as_ref(),
    );
    let mut stopped = machine.stop();
    drop(view);
    give_back(terminal, &stopped);
    let written = [show_stats(config, &stopped.report), finish_trace(&host)];

    let last = stopped.vcpus.get_mut(vcpu as usize).and_then(Option::take);
    let Some(last) = last else {
        // Why the guest died may explain it.
        with_written(conclude(ending), written);
        return Err(Failure::NoState(vcpu));
    };
    let slots = stopped.ram.snapshot();
    let view = View::of(&Dump::take(vcpu, &last, &*slots, &stopped.mmu, slots.generation()));
    let style = Style::for_stream(io::stdout().is_terminal());
    let printed = io::stdout().write_all(text::render(&view, style).as_bytes());
    if let Some(drawing) = drawing {
        drawing.write(&svg::render(&view))?;
    }
    let outcome = match (ending, printed) {
        // That it was stopped, or ended as the built-in guest does, is what was asked for.
        (Ending::Quit | Ending::DebugExit(_) | Ending::Reset | Ending::PowerOff | Ending::TimeUp, printed) => {
            Outcome::Status(match printed {
                Ok(()) => ExitStatus::Success,
                Err(_) => ExitStatus::OutputClosed,
            })
        }
        (ending, _) => conclude(ending),
    };
    Ok(with_written(outcome, written))
}

/// The file for the drawing.
struct Drawing<'a> {
    path: &'a Path,
    file: File,
}

impl<'a> Drawing<'a> {
    fn create(path: &'a Path) -> Result<Self, Failure> {
        let file = File::create(path).map_err(|source| Failure::Drawing {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self { path, file })
    }

    fn write(mut self, text: &str) -> Result<(), Failure> {
        self.file.write_all(text.as_bytes()).map_err(|source| Failure::Drawing {
            path: self.path.to_owned(),
            source,
        })
    }
}
