//! From what the user wrote to a checked [`RunConfig`].
//!
//! [`settings`] is what can be written, on the command line or in a file, each value optional; [`mod@file`] reads the
//! file. Here the two are laid over each other (flags win), defaults filled in and every value checked, so that
//! nothing behind this module meets an impossible one.

pub mod file;
pub mod settings;

pub use settings::{BackendChoice, IrqchipChoice, MemoryBacking, Settings, StatsFormat};

use crate::date::Date;
use crate::size::ByteSize;
use std::num::NonZeroU64;
use std::path::PathBuf;

/// Least guest memory: the first MiB is taken by the legacy hole and tables, a kernel has to go above it.
pub const MIN_MEMORY: ByteSize = ByteSize::mib(2);
/// Most guest memory: with the holes it fits 46 physical address bits, which every CPU of a host that large has.
pub const MAX_MEMORY: ByteSize = ByteSize::mib(1 << 25);
/// Memory of a guest when nothing is said.
pub const DEFAULT_MEMORY: ByteSize = ByteSize::mib(512);
/// Most vCPUs: eight-bit APIC ids, of which 255 means "all".
pub const MAX_CPUS: u32 = 254;
/// Command line of a guest when nothing is said: a Linux kernel talks on the serial line.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0";
/// Instructions of a turn when nothing is said: long enough to cost little, and a fraction of what a guest takes for a
/// moment.
pub const DEFAULT_QUANTUM: u64 = 50_000;
/// Longest turn: a second of the guest's time.
pub const MAX_QUANTUM: u64 = 1_000_000_000;
/// Size of one huge page.
const HUGE_PAGE: u64 = 2 << 20;

/// Everything `vmm run` needs to know, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunConfig {
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line, without NUL bytes.
    pub cmdline: String,
    /// The machine and what to report about it.
    pub machine: MachineConfig,
    /// Hand a bzImage to its own decompressor.
    pub boot_compressed: bool,
    /// Rebuild the machine when the guest asks for a reset; otherwise end.
    pub reboot: bool,
}

/// The parts that the built-in guest's machine has too.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MachineConfig {
    /// Guest RAM: a multiple of 4 KiB from [`MIN_MEMORY`] to [`MAX_MEMORY`].
    pub memory: ByteSize,
    /// vCPUs: 1..=[`MAX_CPUS`].
    pub cpus: u32,
    /// What executes the guest.
    pub backend: BackendChoice,
    /// The KVM device.
    pub kvm_device: PathBuf,
    /// Where the interrupt controllers live.
    pub irqchip: IrqchipChoice,
    /// Where guest RAM comes from.
    pub memory_backing: MemoryBacking,
    /// Remember that a page is MMIO (per-vCPU cache and MMIO SPTEs).
    pub mmio_cache: bool,
    /// Execute in software what KVM can't.
    pub fallback: bool,
    /// Do the same each time.
    pub deterministic: Option<DeterministicConfig>,
    /// Show live what happens.
    pub watch: bool,
    /// Statistics at the end, and in which form.
    pub stats: Option<StatsFormat>,
    /// File for the statistics; standard error when absent.
    pub stats_file: Option<PathBuf>,
    /// Log filter; nothing is logged when absent.
    pub log: Option<String>,
}

/// How a deterministic run is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeterministicConfig {
    /// The date at which it begins.
    pub rtc: Date,
    /// Instructions of a vCPU's turn, up to [`MAX_QUANTUM`].
    pub quantum: NonZeroU64,
    /// File for the trace.
    pub trace: Option<PathBuf>,
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file can't be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The host's reason.
        source: std::io::Error,
    },
    /// The configuration file is not TOML, or has a key or a value that doesn't exist.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong, in one line.
        message: String,
    },
    /// No kernel was named.
    #[error("no kernel given: `vmm run KERNEL`, or `kernel = \"…\"` in the file of --config")]
    NoKernel,
    /// Too little memory.
    #[error("memory {0} is too small: a guest needs at least {MIN_MEMORY}")]
    MemoryTooSmall(ByteSize),
    /// Too much memory.
    #[error("memory {0} is too large: at most {MAX_MEMORY} can be addressed")]
    MemoryTooLarge(ByteSize),
    /// Not whole pages.
    #[error("memory {memory} is not a multiple of {unit}")]
    MemoryUnaligned {
        /// What was asked for.
        memory: ByteSize,
        /// Size of a page of the backing.
        unit: ByteSize,
    },
    /// No or too many vCPUs.
    #[error("{0} CPUs: a guest has 1 to {MAX_CPUS}")]
    Cpus(u32),
    /// Only the software CPU can do the same each time.
    #[error("--deterministic works on the software CPU only: leave out `--backend {0}`, or say `--backend soft`")]
    DeterministicBackend(BackendChoice),
    /// Something was said about a deterministic run that is none.
    #[error("{0} is for --deterministic runs only")]
    NotDeterministic(&'static str),
    /// No turn, or too long a one.
    #[error("a quantum of {0} instructions: it can be 1 to {MAX_QUANTUM}")]
    Quantum(u64),
    /// A NUL byte would end the command line early.
    #[error("the kernel command line has a NUL byte at position {0}")]
    CmdlineNul(usize),
}

impl RunConfig {
    /// Lays `flags` over `file` and checks the result.
    ///
    /// # Errors
    /// The first value that can't be used.
    pub fn new(flags: Settings, file: Settings) -> Result<Self, ConfigError> {
        let settings = flags.over(file);
        let machine = MachineConfig::new(&settings)?;
        let cmdline = settings.cmdline.unwrap_or_else(|| DEFAULT_CMDLINE.to_owned());
        if let Some(position) = cmdline.bytes().position(|byte| byte == 0) {
            return Err(ConfigError::CmdlineNul(position));
        }
        Ok(Self {
            kernel: settings.kernel.ok_or(ConfigError::NoKernel)?,
            initrd: settings.initrd,
            cmdline,
            machine,
            boot_compressed: settings.boot_compressed.unwrap_or(false),
            reboot: !settings.no_reboot.unwrap_or(false),
        })
    }
}

impl MachineConfig {
    /// Fills in defaults and checks.
    ///
    /// # Errors
    /// The first value that can't be used.
    pub fn new(settings: &Settings) -> Result<Self, ConfigError> {
        let memory = settings.memory.unwrap_or(DEFAULT_MEMORY);
        if memory < MIN_MEMORY {
            return Err(ConfigError::MemoryTooSmall(memory));
        }
        if memory > MAX_MEMORY {
            return Err(ConfigError::MemoryTooLarge(memory));
        }
        let memory_backing = settings.memory_backing.clone().unwrap_or_default();
        let unit = if memory_backing == MemoryBacking::Hugetlb {
            HUGE_PAGE
        } else {
            umbra_memslots::PAGE_SIZE
        };
        if !memory.bytes().is_multiple_of(unit) {
            return Err(ConfigError::MemoryUnaligned {
                memory,
                unit: ByteSize::new(unit),
            });
        }
        let cpus = settings.cpus.unwrap_or(1);
        if !(1..=MAX_CPUS).contains(&cpus) {
            return Err(ConfigError::Cpus(cpus));
        }
        // Naming a file for the statistics asks for them.
        let stats = settings
            .stats
            .or(settings.stats_file.as_ref().map(|_| StatsFormat::Text));
        Ok(Self {
            memory,
            cpus,
            backend: settings.backend.unwrap_or_default(),
            kvm_device: settings
                .kvm_device
                .clone()
                .unwrap_or_else(|| settings::DEFAULT_KVM_DEVICE.into()),
            irqchip: settings.irqchip.unwrap_or_default(),
            memory_backing,
            mmio_cache: !settings.no_mmio_cache.unwrap_or(false),
            fallback: !settings.no_fallback.unwrap_or(false),
            deterministic: DeterministicConfig::new(settings)?,
            watch: settings.watch.unwrap_or(false),
            stats,
            stats_file: settings.stats_file.clone(),
            log: settings.log.clone(),
        })
    }
}

impl DeterministicConfig {
    /// Fills in defaults and checks, if a deterministic run is wanted.
    fn new(settings: &Settings) -> Result<Option<Self>, ConfigError> {
        if !settings.deterministic.unwrap_or(false) {
            let said = [
                ("--rtc", settings.rtc.is_some()),
                ("--quantum", settings.quantum.is_some()),
                ("--trace", settings.trace.is_some()),
            ];
            let said = said.into_iter().find(|(_, said)| *said);
            return said.map_or(Ok(None), |(flag, _)| Err(ConfigError::NotDeterministic(flag)));
        }
        match settings.backend.unwrap_or_default() {
            BackendChoice::Auto | BackendChoice::Soft => {}
            backend @ (BackendChoice::Kvm | BackendChoice::Shadow) => {
                return Err(ConfigError::DeterministicBackend(backend));
            }
        }
        let quantum = settings.quantum.unwrap_or(DEFAULT_QUANTUM);
        Ok(Some(Self {
            rtc: settings.rtc.unwrap_or_default(),
            quantum: NonZeroU64::new(quantum)
                .filter(|_| quantum <= MAX_QUANTUM)
                .ok_or(ConfigError::Quantum(quantum))?,
            trace: settings.trace.clone(),
        }))
    }
}

/// The body of the configuration's fuzz target: any bytes are either refused with a message in one line or give a
/// configuration whose values are within their limits.
///
/// # Panics
/// When that does not hold.
pub fn fuzz_body(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let config = file::parse(text, "fuzz.toml".as_ref()).and_then(|file| RunConfig::new(Settings::default(), file));
    match config {
        Ok(config) => {
            let machine = &config.machine;
            assert!((MIN_MEMORY..=MAX_MEMORY).contains(&machine.memory));
            assert!((1..=MAX_CPUS).contains(&machine.cpus));
            assert!(!config.cmdline.contains('\0'));
            assert!(machine.stats_file.is_none() || machine.stats.is_some());
            if let Some(deterministic) = &machine.deterministic {
                assert!((1..=MAX_QUANTUM).contains(&deterministic.quantum.get()));
            }
        }
        Err(error) => assert_eq!(error.to_string().lines().count(), 1, "{error}"),
    }
}

#[cfg(test)]
mod tests;
