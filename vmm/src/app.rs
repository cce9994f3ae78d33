//! From the command line to an exit status.

mod builtin;
mod failure;
mod mmu_dump;
mod run;
mod watching;

use crate::cli::{self, Cli, Command, MmuCommand};
use crate::exit_status::ExitStatus;
use crate::{doctor, signals, terminal};
use nix::sys::signal::Signal;
use std::error::Error;
use std::process::ExitCode;

/// How the program ends.
enum Outcome {
    /// With a status.
    Status(ExitStatus),
    /// By the signal that stopped it, so that the parent sees why.
    Signal(Signal),
}

/// What the binary's `main` does.
pub fn main() -> ExitCode {
    // A panic has printed its message and given the terminal back by then.
    std::panic::catch_unwind(run).unwrap_or(ExitStatus::Internal).into()
}

fn run() -> ExitStatus {
    let cli = match Cli::parse_from_args(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) if cli::is_mistake(&error) => {
            terminal::say(format_args!("vmm: {}\n", cli::one_line(&error)));
            return ExitStatus::Usage;
        }
        // Help, or the version.
        Err(error) => error.exit(),
    };
    let outcome = match cli.command {
        Some(Command::Run(args)) => run::run(args),
        Some(Command::Doctor(args)) => Ok(Outcome::Status(
            doctor::run(&args.kvm_device, args.json).unwrap_or(ExitStatus::OutputClosed),
        )),
        Some(Command::Mmu(MmuCommand::Dump(args))) => mmu_dump::run(args),
        None => builtin::run(cli.builtin),
    };
    match outcome {
        Ok(Outcome::Status(status)) => status,
        Ok(Outcome::Signal(signal)) => {
            signals::die_by(signal);
            ExitStatus::Internal
        }
        Err(failure) => {
            terminal::say(format_args!("vmm: {}\n", explain(&failure)));
            failure.status()
        }
    }
}

/// An error and its causes in one line. A cause that its effect has already named is not repeated.
pub fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        cause = error.source();
    }
    text
}
