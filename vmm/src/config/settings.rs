//! What can be written in a configuration. One struct is both the flags of `vmm run` and the keys of the file, so that
//! the two cannot drift apart.

use crate::date::Date;
use crate::size::ByteSize;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The KVM device when none is named.
pub const DEFAULT_KVM_DEVICE: &str = "/dev/kvm";

/// Flags of `vmm run`, and with the same names the keys of the `--config` file. `None` is "not said".
#[derive(Clone, PartialEq, Eq, Debug, Default, clap::Args, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Kernel to boot: a Linux bzImage, an ELF vmlinux, or a multiboot1 image
    #[arg(value_name = "KERNEL")]
    pub kernel: Option<PathBuf>,

    /// Initial RAM disk (multiboot: the first module)
    #[arg(long, value_name = "FILE", help_heading = "Guest")]
    pub initrd: Option<PathBuf>,

    /// Kernel command line [default: console=ttyS0]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Guest")]
    pub cmdline: Option<String>,

    /// Guest RAM, with a unit: K, M, G or T [default: 512M]
    #[arg(long, short, value_name = "SIZE", help_heading = "Guest")]
    pub memory: Option<ByteSize>,

    /// Number of vCPUs, 1 to 254 [default: 1]
    #[arg(long, short, value_name = "N", help_heading = "Guest")]
    pub cpus: Option<u32>,

    /// Let a bzImage decompress itself inside the guest instead of decompressing it on the host
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Guest", hide_possible_values = true)]
    pub boot_compressed: Option<bool>,

    /// End when the guest asks for a reset, instead of starting it again
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Guest", hide_possible_values = true)]
    pub no_reboot: Option<bool>,

    /// What executes the guest: kvm, soft (a CPU in software), shadow (user mode on KVM with our page tables, the rest in
    /// software), or auto: kvm if it can run this guest, else soft, and why [default: auto]
    #[arg(long, value_name = "NAME", help_heading = "Machine")]
    pub backend: Option<BackendChoice>,

    /// KVM device [default: /dev/kvm]
    #[arg(long, value_name = "PATH", help_heading = "Machine")]
    pub kvm_device: Option<PathBuf>,

    /// Interrupt controllers: kernel (all in KVM) or split (local APICs in KVM, I/O APIC, 8259s and 8254 here) [default: kernel]
    #[arg(long, value_name = "WHERE", help_heading = "Machine")]
    pub irqchip: Option<IrqchipChoice>,

    /// Where guest RAM comes from: anon, memfd, hugetlb or file=PATH [default: anon]
    #[arg(long, value_name = "KIND", help_heading = "Machine")]
    pub memory_backing: Option<MemoryBacking>,

    /// Search slots and bus on every MMIO exit instead of remembering (to see what remembering is worth)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Machine", hide_possible_values = true)]
    pub no_mmio_cache: Option<bool>,

    /// Give up at an instruction that KVM can't execute instead of executing it in software
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Machine", hide_possible_values = true)]
    pub no_fallback: Option<bool>,

    /// Do the same each time: one thread, time is the count of executed instructions (1 ns each), input is read before the
    /// start unless it is a terminal. On the software CPU only
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Deterministic", hide_possible_values = true)]
    pub deterministic: Option<bool>,

    /// Date at which a deterministic guest begins, in UTC [default: 2026-01-01T00:00:00]
    #[arg(long, value_name = "DATE", help_heading = "Deterministic")]
    pub rtc: Option<Date>,

    /// Instructions that a deterministic vCPU executes before it is the next one's turn; another number is another order
    /// of events [default: 50000]
    #[arg(long, value_name = "N", help_heading = "Deterministic")]
    pub quantum: Option<u64>,

    /// Write each device access, interrupt and exception of a deterministic run to this file, a line each with the time
    /// and the count of instructions; two runs can be compared with `cmp`
    #[arg(long, value_name = "FILE", help_heading = "Deterministic")]
    pub trace: Option<PathBuf>,

    /// Show live what the MMU does, with the guest's console in a pane
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Report", hide_possible_values = true)]
    pub watch: Option<bool>,

    /// Print statistics at the end and on SIGUSR1: text or json [default when given alone: text]
    #[arg(long, value_name = "FORM", num_args = 0..=1, require_equals = true, default_missing_value = "text", help_heading = "Report")]
    pub stats: Option<StatsFormat>,

    /// Write the statistics to this file instead of standard error
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    pub stats_file: Option<PathBuf>,

    /// Log to standard error; a tracing filter such as debug or umbra_vcpu=trace,info
    #[arg(long, value_name = "FILTER", help_heading = "Report")]
    pub log: Option<String>,
}

impl Settings {
    /// `self` where it says something, `below` where not.
    pub fn over(self, below: Self) -> Self {
        Self {
            kernel: self.kernel.or(below.kernel),
            initrd: self.initrd.or(below.initrd),
            cmdline: self.cmdline.or(below.cmdline),
            memory: self.memory.or(below.memory),
            cpus: self.cpus.or(below.cpus),
            boot_compressed: self.boot_compressed.or(below.boot_compressed),
            no_reboot: self.no_reboot.or(below.no_reboot),
            backend: self.backend.or(below.backend),
            kvm_device: self.kvm_device.or(below.kvm_device),
            irqchip: self.irqchip.or(below.irqchip),
            memory_backing: self.memory_backing.or(below.memory_backing),
            no_mmio_cache: self.no_mmio_cache.or(below.no_mmio_cache),
            no_fallback: self.no_fallback.or(below.no_fallback),
            deterministic: self.deterministic.or(below.deterministic),
            rtc: self.rtc.or(below.rtc),
            quantum: self.quantum.or(below.quantum),
            trace: self.trace.or(below.trace),
            watch: self.watch.or(below.watch),
            stats: self.stats.or(below.stats),
            stats_file: self.stats_file.or(below.stats_file),
            log: self.log.or(below.log),
        }
    }

    /// Makes relative paths relative to `base`.
    pub fn relative_to(mut self, base: &Path) -> Self {
        let paths = [
            &mut self.kernel,
            &mut self.initrd,
            &mut self.kvm_device,
            &mut self.stats_file,
            &mut self.trace,
        ];
        for path in paths.into_iter().flatten() {
            *path = base.join(&*path);
        }
        if let Some(MemoryBacking::File(path)) = &mut self.memory_backing {
            *path = base.join(&*path);
        }
        self
    }
}

/// A name that isn't one of the known ones.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{given}` is not one of {known}")]
pub struct UnknownName {
    given: String,
    known: &'static str,
}

/// An enum written as one of a few words, the same in flags and file.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident, $known:literal { $($(#[$variant_meta:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub enum $name { $($(#[$variant_meta])* $variant),+ }

        impl FromStr for $name {
            type Err = UnknownName;

            fn from_str(text: &str) -> Result<Self, UnknownName> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(UnknownName { given: text.to_owned(), known: $known }),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $(Self::$variant => $word),+ })
            }
        }

        deserialize_from_str!($name);
    };
}

macro_rules! deserialize_from_str {
    ($name:ident) => {
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

words! {
    /// What executes the guest.
    BackendChoice, "auto, kvm, shadow, soft" {
        /// The best there is on this host.
        #[default]
        Auto = "auto",
        /// The kernel's KVM.
        Kvm = "kvm",
        /// User code on KVM with shadow tables of ours, the rest in software.
        Shadow = "shadow",
        /// A CPU in software.
        Soft = "soft",
    }
}

words! {
    /// Where the interrupt controllers live.
    IrqchipChoice, "kernel, split" {
        /// PIC, I/O APIC and local APICs in KVM.
        #[default]
        Kernel = "kernel",
        /// Only the local APICs in KVM, the I/O APIC, the 8259s and the 8254 here.
        Split = "split",
    }
}

words! {
    /// Form of the statistics.
    StatsFormat, "text, json" {
        /// A table for people.
        #[default]
        Text = "text",
        /// One JSON object.
        Json = "json",
    }
}

/// Where guest RAM comes from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum MemoryBacking {
    /// Anonymous private memory.
    #[default]
    Anon,
    /// A memfd: anonymous, but can be shared with another process.
    Memfd,
    /// Huge pages reserved by the administrator.
    Hugetlb,
    /// A file, created or extended as needed; the guest's writes go to it.
    File(PathBuf),
}

impl FromStr for MemoryBacking {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        match (text, text.strip_prefix("file=")) {
            ("anon", _) => Ok(Self::Anon),
            ("memfd", _) => Ok(Self::Memfd),
            ("hugetlb", _) => Ok(Self::Hugetlb),
            (_, Some(path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err(UnknownName {
                given: text.to_owned(),
                known: "anon, memfd, hugetlb, file=PATH",
            }),
        }
    }
}

deserialize_from_str!(MemoryBacking);
deserialize_from_str!(Date);
