//! One boot, to a shell script that ends it, and its statistics.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::NamedTempFile;
use umbra_integration_tests::console::Console;
use umbra_integration_tests::lab::host::Host;
use umbra_integration_tests::lab::initramfs;

/// Until the machine is off.
const LIMIT: Duration = Duration::from_secs(300);
/// What the guest says in the end.
const GREETING: &str = "linux-is-up";
/// The whole user space.
const INIT: &str = "#!/bin/busybox sh\n/bin/busybox echo linux-is-up\n/bin/busybox poweroff -f\n";

/// A kernel to boot.
pub struct Kernel {
    pub name: &'static str,
    pub path: PathBuf,
}

/// What one boot came to.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Figures {
    /// Accesses recognised by the vCPU's cache, by an MMIO SPTE, by a search.
    pub accesses: [u64; 3],
    /// Nanoseconds that each kind took in all.
    pub ns: [u64; 3],
    /// Nanoseconds in the guest.
    pub guest_ns: u64,
}

impl Figures {
    /// Reads the vmm's `--stats=json`.
    pub fn of(stats: &serde_json::Value) -> Result<Self, String> {
        let number = |value: &serde_json::Value, name: &str| {
            let number = value[name].as_u64();
            number.ok_or_else(|| format!("the statistics have no number {name}"))
        };
        let mmio = &stats["mmio"];
        Ok(Self {
            accesses: [
                number(mmio, "cache_hits")?,
                number(mmio, "spte_hits")?,
                number(mmio, "searches")?,
            ],
            ns: [
                number(mmio, "cache_ns")?,
                number(mmio, "spte_ns")?,
                number(mmio, "search_ns")?,
            ],
            guest_ns: number(stats, "guest_ns")?,
        })
    }

    /// All recognitions together.
    pub fn total_ns(&self) -> u64 {
        self.ns.iter().sum()
    }
}

/// The guest's user space.
pub fn initrd(host: &Host) -> Result<NamedTempFile, Box<dyn Error>> {
    let file = NamedTempFile::new()?;
    std::fs::write(file.path(), initramfs::build_guest(host, INIT.as_bytes())?)?;
    Ok(file)
}

/// Boots once, with MMIO remembered or not.
pub fn measure(vmm: &Path, kernel: &Kernel, initrd: &Path, remembers: bool) -> Result<Figures, Box<dyn Error>> {
    let stats = NamedTempFile::new()?;
    let (path, initrd, file) = (
        kernel.path.display().to_string(),
        initrd.display().to_string(),
        stats.path().display().to_string(),
    );
    let mut arguments = vec![
        "run",
        &path,
        "--initrd",
        &initrd,
        "--backend",
        "soft",
        "--memory",
        "256M",
        "--no-reboot",
    ];
    arguments.extend([
        "--cmdline",
        "console=ttyS0 panic=-1",
        "--stats=json",
        "--stats-file",
        &file,
    ]);
    if !remembers {
        arguments.push("--no-mmio-cache");
    }
    let mut console = Console::start(vmm, &arguments)?;
    console.expect(GREETING, LIMIT)?;
    let ended = console.end(LIMIT)?;
    if !ended.success() {
        return Err(format!("{}: {ended}\n{}", kernel.name, console.tail()).into());
    }
    Ok(Figures::of(&serde_json::from_str(&std::fs::read_to_string(
        stats.path(),
    )?)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_statistics() {
        let stats = serde_json::json!({
            "guest_ns": 9,
            "mmio": {
                "cache_hits": 3, "spte_hits": 2, "searches": 1,
                "cache_ns": 30, "spte_ns": 40, "search_ns": 100,
            },
        });
        let figures = Figures::of(&stats).unwrap();
        assert_eq!((figures.accesses, figures.ns), ([3, 2, 1], [30, 40, 100]));
        assert_eq!((figures.total_ns(), figures.guest_ns), (170, 9));
        assert!(Figures::of(&serde_json::json!({})).unwrap_err().contains("cache_hits"));
    }
}
