//! What the host has, as data. Nothing here is an error: what can't be read is absent.

use crate::machine::choice::{self, Choice, GuestKind};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use umbra_vcpu::kvm::{Capability, HostCaps, Irqchip, KvmHost, KvmKind, KvmVm, VmOptions};

/// Everything `vmm doctor` found.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// The machine and its kernel.
    pub host: Host,
    /// What KVM can do, or why it can't be used.
    pub kvm: Kvm,
    /// What runs a guest if the user doesn't say (`--backend auto`).
    pub auto: Auto,
    /// Parameters of the kvm modules, by `module.parameter`.
    pub parameters: BTreeMap<String, String>,
    /// Huge pages.
    pub huge_pages: HugePages,
}

/// What `--backend auto` takes.
#[derive(Clone, Debug, Serialize)]
pub struct Auto {
    /// For `vmm run`.
    pub kernel: Choice,
    /// For the built-in guest.
    pub builtin: Choice,
}

/// The machine and its kernel.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// Kernel release.
    pub kernel: String,
    /// CPU model, as the kernel names it.
    pub cpu: Option<String>,
    /// Hardware virtualisation: `vmx`, `svm` or none.
    pub virtualisation: Option<&'static str>,
    /// Whether this is itself a virtual machine.
    pub is_guest: bool,
    /// CPUs that we may run on.
    pub cpus: usize,
    /// Memory in bytes.
    pub memory_total: u64,
    /// Memory that is free or easily freed, in bytes.
    pub memory_available: Option<u64>,
    /// Physical address bits.
    pub physical_bits: Option<u32>,
    /// CPU features that matter to a guest, and whether they are there.
    pub features: BTreeMap<&'static str, bool>,
}

/// What KVM can do, or why it can't be used.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Kvm {
    /// Why not.
    Unusable {
        /// The reason and what to do.
        unusable: String,
    },
    /// What it can do.
    Usable(Box<Usable>),
}

/// What a usable KVM can do.
#[derive(Clone, Debug, Serialize)]
pub struct Usable {
    /// The device.
    pub device: String,
    /// Which KVM.
    pub kind: KvmKind,
    /// Why no VM with a vCPU could be made, though the device is there.
    pub trial_failure: Option<String>,
    /// The capabilities that Umbra asks about.
    pub capabilities: Vec<CapabilityValue>,
}

/// A capability and its value here.
#[derive(Clone, Debug, Serialize)]
pub struct CapabilityValue {
    /// Short name.
    pub name: &'static str,
    /// What the kernel answers; 0 is "no".
    pub value: u32,
    /// What Umbra does with it.
    pub used_for: &'static str,
}

/// Huge pages.
#[derive(Clone, Debug, Serialize)]
pub struct HugePages {
    /// When transparent huge pages are used: `always`, `madvise` or `never`.
    pub transparent: Option<String>,
    /// Reserved pages of each size.
    pub reserved: Vec<Reserved>,
}

/// Reserved huge pages of one size.
#[derive(Clone, Debug, Serialize)]
pub struct Reserved {
    /// Size of one page in KiB.
    pub page_kib: u64,
    /// How many there are.
    pub total: u64,
    /// How many are free.
    pub free: u64,
}

impl Kvm {
    /// Whether a guest can be run.
    pub fn usable(&self) -> bool {
        matches!(self, Self::Usable(kvm) if kvm.trial_failure.is_none())
    }
}

impl Auto {
    /// What is taken where KVM is like this.
    pub fn with(kvm: &Kvm) -> Self {
        let choose = |guest| {
            let kind = match kvm {
                Kvm::Unusable { unusable } => Err(unusable.clone()),
                Kvm::Usable(kvm) => kvm.trial_failure.clone().map_or(Ok(kvm.kind), Err),
            };
            choice::choose(kind, guest, None)
        };
        Self {
            kernel: choose(GuestKind::Kernel),
            builtin: choose(GuestKind::Builtin),
        }
    }
}

impl Usable {
    /// The value of one capability.
    pub fn capability(&self, capability: Capability) -> u32 {
        self.capabilities
            .iter()
            .find(|each| each.name == capability.name())
            .map_or(0, |each| each.value)
    }
}

/// Looks at the host.
pub fn gather(kvm_device: &Path) -> Facts {
    let kvm = kvm(kvm_device);
    Facts {
        host: host(),
        auto: Auto::with(&kvm),
        kvm,
        parameters: parameters(),
        huge_pages: huge_pages(),
    }
}

const FEATURES: [&str; 12] = [
    "ept",
    "npt",
    "nx",
    "pdpe1gb",
    "la57",
    "smep",
    "smap",
    "pku",
    "x2apic",
    "tsc_deadline_timer",
    "invariant_tsc",
    "avx2",
];

fn host() -> Host {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    let info = rustix::system::sysinfo();
    let has = |flag: &str| match flag {
        // The kernel's names for it.
        "invariant_tsc" => cpu_has(&cpuinfo, "constant_tsc") && cpu_has(&cpuinfo, "nonstop_tsc"),
        _ => cpu_has(&cpuinfo, flag),
    };
    Host {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        cpu: field("model name"),
        virtualisation: ["vmx", "svm"].into_iter().find(|flag| cpu_has(&cpuinfo, flag)),
        is_guest: cpu_has(&cpuinfo, "hypervisor"),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_total: info.totalram.saturating_mul(info.mem_unit.into()),
        memory_available: meminfo("MemAvailable"),
        physical_bits: field("address sizes").and_then(|text| text.split_whitespace().next()?.parse().ok()),
        features: FEATURES.into_iter().map(|flag| (flag, has(flag))).collect(),
    }
}

/// A line of `/proc/meminfo`, in bytes.
fn meminfo(name: &str) -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

fn kvm(device: &Path) -> Kvm {
    let host = match KvmHost::open_at(device) {
        Ok(host) => host,
        Err(error) => {
            return Kvm::Unusable {
                unusable: error.to_string(),
            };
        }
    };
    let caps: HostCaps = host.caps();
    // The trial has what a guest needs and takes a few milliseconds.
    let options = VmOptions {
        irqchip: Irqchip::Kernel,
        ..VmOptions::default()
    };
    let trial = KvmVm::new(&host, options).and_then(|vm| vm.create_vcpu(0).map(drop));
    Kvm::Usable(Box::new(Usable {
        device: device.display().to_string(),
        kind: caps.kind,
        trial_failure: trial.err().map(|error| crate::app::explain(&error)),
        capabilities: caps
            .iter()
            .map(|(capability, value)| CapabilityValue {
                name: capability.name(),
                value,
                used_for: capability.purpose(),
            })
            .collect(),
    }))
}

/// Whether `/proc/cpuinfo` has this flag for the first CPU.
fn cpu_has(cpuinfo: &str, flag: &str) -> bool {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags"));
    flags.is_some_and(|flags| flags.split_whitespace().any(|word| word == flag))
}

const PARAMETERS: [(&str, &[&str]); 4] = [
    (
        "kvm",
        &[
            "mmio_caching",
            "tdp_mmu",
            "nx_huge_pages",
            "halt_poll_ns",
            "ignore_msrs",
        ],
    ),
    (
        "kvm_intel",
        &["ept", "unrestricted_guest", "enable_apicv", "nested", "pml"],
    ),
    ("kvm_amd", &["npt", "avic", "nested", "vgif"]),
    ("kvm_pvm", &[]),
];

fn parameters() -> BTreeMap<String, String> {
    let pairs = PARAMETERS
        .iter()
        .flat_map(|(module, names)| names.iter().map(move |name| (module, name)));
    pairs
        .filter_map(|(module, name)| {
            let value = fs::read_to_string(format!("/sys/module/{module}/parameters/{name}")).ok()?;
            Some((format!("{module}.{name}"), value.trim().to_owned()))
        })
        .collect()
}

fn huge_pages() -> HugePages {
    let transparent = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
        .ok()
        .and_then(|text| {
            // The one in force is in brackets.
            Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
        });
    let directories = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let mut reserved: Vec<Reserved> = directories
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let page_kib = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let number = |file: &str| fs::read_to_string(entry.path().join(file)).ok()?.trim().parse().ok();
            Some(Reserved {
                page_kib,
                total: number("nr_hugepages")?,
                free: number("free_hugepages")?,
            })
        })
        .collect();
    reserved.sort_by_key(|reserved| reserved.page_kib);
    HugePages { transparent, reserved }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_this_host_are_plausible() {
        let facts = gather("/dev/kvm".as_ref());
        assert!(facts.host.cpus >= 1);
        assert!(facts.host.memory_total > 64 << 20);
        assert!(!facts.host.kernel.is_empty());
    }

    #[test]
    fn unusable_kvm_is_a_fact_with_its_reason() {
        let facts = gather("/nonexistent/kvm".as_ref());
        assert!(!facts.kvm.usable());
        let json = serde_json::to_value(&facts).unwrap();
        assert!(json["kvm"]["unusable"].as_str().unwrap().contains("does not exist"));
        assert_eq!(json["auto"]["kernel"]["backend"], "soft");
    }
}
