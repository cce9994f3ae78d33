//! From the command line to an exit status.

use crate::cli::{Cli, Command};
use crate::doctor;
use crate::exit_status::ExitStatus;
use std::process::ExitCode;

/// What the binary's `main` does.
pub fn main() -> ExitCode {
    let cli = match Cli::parse_from_args(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let status = match cli.command {
        Some(Command::Doctor(args)) => doctor::run(&args.kvm_device, args.json).unwrap_or(ExitStatus::OutputClosed),
        _ => ExitStatus::Internal,
    };
    status.into()
}
