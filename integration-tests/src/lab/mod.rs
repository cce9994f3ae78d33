//! The lab: a stock Debian kernel with stock `kvm-amd`, with and without nested paging, in QEMU's emulated AMD SVM.
//!
//! Read in this order: [`host`] (what it is made from), [`build`] (the programs), [`cpio`] and [`initramfs`] (the file
//! system), [`qemu`] (the boot), [`report`] (what came of it), [`plan`] (what runs in it).

pub mod build;
pub mod cpio;
pub mod host;
pub mod initramfs;
pub mod plan;
pub mod qemu;
pub mod report;

use host::Host;
use initramfs::InitramfsError;
use plan::Plan;
use qemu::{Console, Ending, Machine, QemuError};
use report::Report;
use std::fmt;
use std::path::{Path, PathBuf};

/// The lab could not be run (which says nothing about what should have run in it).
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The programs can't be built.
    #[error(transparent)]
    Build(#[from] build::BuildError),
    /// The file system can't be put together.
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    /// QEMU can't be run.
    #[error(transparent)]
    Qemu(#[from] QemuError),
    /// The stock kernel holds no vmlinux that we can take out.
    #[error(transparent)]
    Vmlinux(#[from] crate::vmlinux::ExtractError),
    /// The kernel of the start-up figures has not been built.
    #[error("no small kernel in {} (integration-tests/lab/build-small-kernel builds it, once)", .0.display())]
    NoSmallKernel(PathBuf),
    /// A guest kernel can't be assembled.
    #[error(transparent)]
    Assemble(#[from] iced_x86::IcedError),
}

/// One run of the lab.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its name: of the log file, and in the summary.
    pub name: String,
    /// What was reported.
    pub report: Report,
    /// The console it was read from.
    pub console: Console,
    /// Where the console's log is.
    pub log: PathBuf,
}

impl Run {
    /// The lab came to its end and everything in it was good.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.console.ending == Ending::Exited && self.report.is_good()
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "lab {}: {:.1} s, log in {}",
            self.name,
            self.console.took.as_secs_f64(),
            self.log.display()
        )?;
        match self.console.ending {
            Ending::Exited => {}
            Ending::TooLong => writeln!(f, "killed: over its time limit")?,
            Ending::Silent => writeln!(f, "killed: its console had been silent for too long")?,
        }
        if !self.console.qemu.is_empty() {
            writeln!(f, "QEMU said: {}", self.console.qemu.trim_end())?;
        }
        write!(f, "{}", self.report)?;
        if self.report.result.is_none() {
            let lines: Vec<&str> = self.console.text.lines().collect();
            write!(f, "\nthe end of its console:")?;
            for line in &lines[lines.len().saturating_sub(40)..] {
                write!(f, "\n    | {line}")?;
            }
        }
        Ok(())
    }
}

/// Boots the lab with this plan and reads its report.
///
/// # Errors
/// The lab could not be run. What failed in it is in the [`Run`].
pub fn run(host: &Host, name: &str, machine: &Machine, plan: &Plan) -> Result<Run, LabError> {
    let log = log_directory().join(format!("{name}.log"));
    let initramfs = initramfs::build(host, &plan.programs, &plan.files)?;
    let console = qemu::boot(host, machine, &initramfs, &log)?;
    Ok(Run {
        name: name.to_owned(),
        report: Report::parse(&console.text),
        console,
        log,
    })
}

/// Where console logs go: `lab/` in the workspace's target directory.
fn log_directory() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    );
    target.join("lab")
}
