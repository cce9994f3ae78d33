//! Everything that keeps a guest from being started, each with its exit status.

use crate::boot::BootError;
use crate::config::ConfigError;
use crate::exit_status::ExitStatus;
use crate::logging::LogError;
use crate::machine::MachineError;
use crate::machine::turns::TurnsError;
use std::io;
use std::path::PathBuf;
use umbra_vcpu::kvm::OpenError;

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error("{0} (`vmm doctor` tells more)")]
    Kvm(#[from] OpenError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Turns(#[from] TurnsError),
    #[error("cannot write the statistics to {}: {source}", path.display())]
    StatsFile { path: PathBuf, source: io::Error },
    #[error("cannot write the drawing to {}: {source}", path.display())]
    Drawing { path: PathBuf, source: io::Error },
    #[error("the guest has {cpus} vCPU{}, so there is no vCPU {vcpu}", if *cpus == 1 { "" } else { "s" })]
    NoVcpu { vcpu: u32, cpus: u32 },
    #[error("vCPU {0} can't say how it ended, so its page tables can't be found")]
    NoState(u32),
    #[error("--watch draws on the terminal, and standard output is none")]
    NoScreen,
    #[error("--log writes to the terminal on which --watch draws: send standard error elsewhere (2>FILE)")]
    LogOnScreen,
    #[error("{what}: {source}")]
    Host { what: &'static str, source: io::Error },
    #[error("the built-in guest cannot be assembled: {0}")]
    Assembler(#[from] iced_x86::IcedError),
}

impl Failure {
    pub(super) fn status(&self) -> ExitStatus {
        match self {
            Self::Config(_) | Self::Log(_) | Self::Boot(_) | Self::StatsFile { .. } | Self::Turns(_) => {
                ExitStatus::Usage
            }
            Self::Drawing { .. } | Self::NoScreen | Self::LogOnScreen | Self::NoVcpu { .. } => ExitStatus::Usage,
            Self::NoState(_) | Self::Kvm(_) | Self::Host { .. } => ExitStatus::Host,
            Self::Machine(error) => error.status(),
            Self::Assembler(_) => ExitStatus::Internal,
        }
    }
}
