//! Runs the lab and prints its report. `integration-tests/lab/run` calls this after installing what it needs.

use clap::Parser;
use std::process::ExitCode;
use umbra_integration_tests::lab::host::Host;
use umbra_integration_tests::lab::plan::{self, Suite};
use umbra_integration_tests::lab::qemu::Machine;
use umbra_integration_tests::lab::run;

/// Boots a stock KVM in QEMU's emulated AMD SVM and runs in it what needs one.
#[derive(Parser)]
struct Options {
    /// Only with nested paging (1) or only with shadow paging (0); both without this.
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=1))]
    npt: Option<u8>,
    /// Only programs whose name holds this. May be given several times.
    #[arg(long)]
    only: Vec<String>,
    /// Instead of tests: how many instructions the vmm needs to start a guest, and how much memory. Needs the small
    /// kernel that `build-small-kernel` makes, and takes some minutes on a quiet machine.
    #[arg(long)]
    figures: bool,
    /// Print what the programs said even if all is well.
    #[arg(long, short)]
    verbose: bool,
}

fn main() -> ExitCode {
    match lab(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lab: {error}");
            ExitCode::from(2)
        }
    }
}

fn lab(options: &Options) -> Result<bool, Box<dyn std::error::Error>> {
    let host = Host::find()?;
    let chosen = |name: &str| options.only.is_empty() || options.only.iter().any(|part| name.contains(part));
    if options.figures {
        let mut plan = plan::figures(&host)?;
        plan.programs.retain(|program| chosen(&program.name));
        let run = run(&host, "figures", &Machine::for_figures(), &plan)?;
        println!("{run}");
        for line in run.console.text.lines().filter(|line| line.starts_with("FIGURES ")) {
            println!("{line}");
        }
        return Ok(run.is_good());
    }
    let (mut good, mut ran) = (true, false);
    for suite in Suite::ALL {
        let mut plan = plan::build(&host, suite)?;
        plan.programs.retain(|program| chosen(&program.name));
        if plan.programs.is_empty() {
            continue;
        }
        ran = true;
        for npt in [1, 0]
            .into_iter()
            .filter(|npt| options.npt.is_none_or(|only| only == *npt))
        {
            let name = format!("{}-npt{npt}", suite.name());
            let run = run(&host, &name, &Machine::single(npt == 1), &plan)?;
            if options.verbose {
                print!("{}", run.console.text);
            }
            println!("{run}\n");
            good &= run.is_good();
        }
    }
    if !ran {
        return Err(format!("no program has one of {:?} in its name", options.only).into());
    }
    Ok(good)
}
