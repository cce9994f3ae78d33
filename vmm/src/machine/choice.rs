//! What `--backend auto` takes, and why: a decision on facts, so that `vmm doctor` can tell it without running anything.

use std::fmt;
use umbra_vcpu::kvm::KvmKind;

/// What is to be run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestKind {
    /// The user's kernel: most of its work is in kernel mode, with any instruction of the CPU's.
    Kernel,
    /// The built-in guest: a second's work with instructions that every KVM knows.
    Builtin,
}

/// What was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Taken {
    /// KVM.
    Kvm,
    /// The software CPU.
    Soft,
}

/// A backend, and why this one.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Choice {
    /// The backend.
    pub backend: Taken,
    /// The reason: half a sentence.
    pub why: String,
}

/// Decides. `kvm` is what lies under a KVM that makes virtual machines, or what is the matter with it; `needs_kvm` an option
/// that only KVM understands, as the user wrote it.
pub fn choose(kvm: Result<KvmKind, String>, guest: GuestKind, needs_kvm: Option<&str>) -> Choice {
    let (backend, why) = match (kvm, needs_kvm, guest) {
        (Err(reason), None, _) => (Taken::Soft, reason),
        (Err(reason), Some(option), _) => (Taken::Soft, format!("{reason} ({option} changes nothing here)")),
        (Ok(KvmKind::Pagetable), None, GuestKind::Kernel) => (
            Taken::Soft,
            "this host's KVM has no hardware virtualisation under it and would emulate the kernel, slowly and not completely"
                .to_owned(),
        ),
        (Ok(KvmKind::Pagetable), Some(option), GuestKind::Kernel) => (
            Taken::Kvm,
            format!("{option} needs it, although kernel mode is emulated here, slowly and not completely"),
        ),
        (Ok(KvmKind::Pagetable), _, GuestKind::Builtin) => (
            Taken::Kvm,
            "kernel mode is emulated here, which does for the built-in guest".to_owned(),
        ),
        (Ok(KvmKind::Vmx), ..) => (Taken::Kvm, "guests run on the CPU (Intel VMX)".to_owned()),
        (Ok(KvmKind::Svm), ..) => (Taken::Kvm, "guests run on the CPU (AMD SVM)".to_owned()),
        (Ok(KvmKind::Unknown), ..) => (Taken::Kvm, "the device makes virtual machines".to_owned()),
    };
    Choice { backend, why }
}

impl Choice {
    /// What a deterministic run takes, on any host. `needs_kvm` as for [`choose`].
    pub fn deterministic(needs_kvm: Option<&str>) -> Self {
        let ignored = needs_kvm.map(|option| format!(" ({option} changes nothing here)"));
        Self {
            backend: Taken::Soft,
            why: format!("nothing else can be --deterministic{}", ignored.unwrap_or_default()),
        }
    }
}

impl fmt::Display for Choice {
    /// `the guest runs on KVM: guests run on the CPU (AMD SVM)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.backend {
            Taken::Kvm => "KVM",
            Taken::Soft => "the software CPU",
        };
        write!(f, "the guest runs on {name}: {}", self.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(kvm: Result<KvmKind, String>, guest: GuestKind, needs_kvm: Option<&str>) -> Taken {
        choose(kvm, guest, needs_kvm).backend
    }

    #[test]
    fn hardware_runs_everything() {
        for kind in [KvmKind::Vmx, KvmKind::Svm, KvmKind::Unknown] {
            for guest in [GuestKind::Kernel, GuestKind::Builtin] {
                assert_eq!(taken(Ok(kind), guest, None), Taken::Kvm);
            }
        }
    }

    #[test]
    fn an_emulating_kvm_gets_a_kernel_only_if_an_option_needs_it() {
        let kvm = || Ok(KvmKind::Pagetable);
        assert_eq!(taken(kvm(), GuestKind::Kernel, None), Taken::Soft);
        assert_eq!(taken(kvm(), GuestKind::Kernel, Some("--irqchip split")), Taken::Kvm);
        assert_eq!(taken(kvm(), GuestKind::Builtin, None), Taken::Kvm);
    }

    #[test]
    fn without_kvm_the_reason_is_told_in_one_line() {
        let choice = choose(
            Err("/dev/kvm does not exist".to_owned()),
            GuestKind::Kernel,
            Some("--irqchip split"),
        );
        assert_eq!(
            choice.to_string(),
            "the guest runs on the software CPU: /dev/kvm does not exist (--irqchip split changes nothing here)"
        );
    }
}
