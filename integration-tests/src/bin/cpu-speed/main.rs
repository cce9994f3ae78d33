//! Measures the software CPU against Bochs and QEMU's TCG: `rows` by loops that all three run byte for byte, `linux` by
//! the time from the start of the process to a guest's `/init` (against QEMU alone).
//!
//! Prints a table, and with `--write` puts it into `docs/benchmarks.md`. A peer that isn't installed is printed as
//! `skipped: …`. The machine should have nothing else to do.

mod linux;
mod measure;
mod median;
mod table;

use clap::{Parser, Subcommand};
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use umbra_integration_tests::lab::build;
use umbra_integration_tests::page;
use umbra_integration_tests::speed::guest::{self, Work};
use umbra_integration_tests::speed::rows::Row;

/// Measures the software CPU against Bochs and QEMU's TCG.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    what: What,
    /// The vmm to measure; without this, cargo builds one with optimisation.
    #[arg(long, global = true)]
    vmm: Option<PathBuf>,
    /// Put the table into docs/benchmarks.md.
    #[arg(long, global = true)]
    write: bool,
}

#[derive(Subcommand)]
enum What {
    /// Guest instructions in a second, by kind of loop.
    Rows {
        #[command(flatten)]
        work: WorkOptions,
        /// How often each machine is started; they take turns.
        #[arg(long, default_value_t = 3)]
        rounds: u32,
        /// Only these machines.
        #[arg(long = "machine", value_enum)]
        machines: Vec<measure::Choice>,
    },
    /// From the start of the process to the guest's /init.
    Linux {
        /// How often each kernel is booted on each machine; they take turns.
        #[arg(long, default_value_t = 5)]
        runs: u32,
        /// What the kernels are told.
        #[arg(long, default_value = "console=ttyS0 panic=-1")]
        cmdline: String,
    },
    /// Only writes the guest of `rows` to a file: a multiboot kernel.
    Image {
        #[command(flatten)]
        work: WorkOptions,
        /// The file.
        file: PathBuf,
    },
}

#[derive(clap::Args)]
struct WorkOptions {
    /// Only these loops, by name.
    #[arg(long = "row", value_parser = Row::of_name)]
    rows: Vec<Row>,
    /// Runs of each loop in a start of a machine; the first is not counted.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=1000))]
    passes: u32,
    /// So many times fewer rounds of each loop, for a quick look.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    divide: u32,
}

impl WorkOptions {
    fn work(&self) -> Work {
        let mut work = Work::all(self.passes, self.divide);
        if !self.rows.is_empty() {
            work.rows.clone_from(&self.rows);
        }
        work
    }
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cpu-speed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let vmm = || -> Result<PathBuf, build::BuildError> {
        options.vmm.clone().map_or_else(|| build::native_vmm("release"), Ok)
    };
    let (section, text) = match &options.what {
        What::Rows { work, rounds, machines } => {
            let results = measure::rows(&vmm()?, work.work(), *rounds, machines)?;
            ("cpu_speed", table::rows(&results))
        }
        What::Linux { runs, cmdline } => {
            let results = linux::measure(&vmm()?, *runs, cmdline)?;
            ("linux_start", table::linux(&results))
        }
        What::Image { work, file } => {
            std::fs::write(file, guest::image(&work.work())?)?;
            return Ok(());
        }
    };
    print!("{text}");
    if options.write {
        let file = page::path();
        let old = std::fs::read_to_string(&file)?;
        std::fs::write(&file, page::replace_section(&old, section, &text)?)?;
        println!("\nwritten to docs/benchmarks.md");
    }
    Ok(())
}
