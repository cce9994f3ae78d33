//! The doctor's facts for people: what matters first, details below.

use super::facts::{Facts, Kvm, Usable};
use crate::style::Style;
use std::fmt::Write;
use umbra_vcpu::kvm::{Capability, KvmKind};

/// The whole report.
pub fn render(facts: &Facts, style: Style) -> String {
    let mut out = String::new();
    let mut row = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{} {value}", style.bold(&format!("{name:<14}")));
    };
    match &facts.kvm {
        Kvm::Unusable { unusable } => row("KVM", &format!("{} {unusable}", style.bad("unusable:"))),
        Kvm::Usable(kvm) => {
            row("KVM", &verdict(kvm, style));
            row("", &style.dim(kind_means(kvm.kind)));
            row("Limits", &limits(kvm));
        }
    }
    if facts.kvm.usable() {
        row("Shadow tables", &style.dim(SHADOW_TABLES));
    }
    row("Software CPU", &style.dim(SOFTWARE_CPU));
    row("A kernel", &facts.auto.kernel.to_string());
    row("Built-in guest", &facts.auto.builtin.to_string());
    row("Host", &host(facts));
    row("CPU features", &features(facts, style));
    if let Some((value, means)) = mmio_caching(facts) {
        row("MMIO caching", value);
        row("", &style.dim(means));
    }
    row("Huge pages", &huge_pages(facts));
    if !facts.parameters.is_empty() {
        let list: Vec<String> = facts
            .parameters
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        row("Parameters", &list.join("  "));
    }
    if let Kvm::Usable(kvm) = &facts.kvm {
        capabilities(&mut out, kvm, style);
    }
    out
}

/// Whatever lies under KVM can walk them.
const SHADOW_TABLES: &str = "user mode on the CPU, on page tables of ours, the rest in software (--backend shadow): one CPU \
                             without interrupts";

/// There is nothing to look for: it is part of the program.
const SOFTWARE_CPU: &str = "always there (--backend soft): CPUs in software, which run whole operating systems, slowly";

fn verdict(kvm: &Usable, style: Style) -> String {
    let name = match kvm.kind {
        KvmKind::Vmx => "Intel VMX",
        KvmKind::Svm => "AMD SVM",
        KvmKind::Pagetable => "pagetable-VM",
        KvmKind::Unknown => "of a kind that can't be told",
    };
    match &kvm.trial_failure {
        None => format!("{} {}: {name}", style.good("usable:"), kvm.device),
        Some(reason) => format!("{} {}: {name}, but {reason}", style.bad("unusable:"), kvm.device),
    }
}

fn kind_means(kind: KvmKind) -> &'static str {
    match kind {
        KvmKind::Vmx | KvmKind::Svm => "guests run on the CPU, at full speed",
        KvmKind::Pagetable => {
            "no hardware virtualisation below: guest user mode runs natively, guest kernel mode is emulated, slow and \
             not complete"
        }
        KvmKind::Unknown => "none of kvm_intel, kvm_amd and kvm_pvm shows in /sys/module",
    }
}

fn limits(kvm: &Usable) -> String {
    format!(
        "{} vCPUs ({} recommended), {} memory slots",
        kvm.capability(Capability::MaxVcpus),
        kvm.capability(Capability::RecommendedVcpus),
        kvm.capability(Capability::Memslots)
    )
}

fn host(facts: &Facts) -> String {
    let host = &facts.host;
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
    let mut parts = vec![format!("Linux {}", host.kernel)];
    parts.extend(host.cpu.clone());
    parts.push(format!("{} CPUs", host.cpus));
    parts.push(match host.memory_available {
        Some(available) => format!("{} memory ({} available)", gib(host.memory_total), gib(available)),
        None => format!("{} memory", gib(host.memory_total)),
    });
    if host.is_guest {
        parts.push("itself a virtual machine".to_owned());
    }
    parts.join(", ")
}

fn features(facts: &Facts, style: Style) -> String {
    let host = &facts.host;
    let mut parts: Vec<String> = host.virtualisation.map(|flag| style.good(flag)).into_iter().collect();
    if parts.is_empty() {
        parts.push(style.warn("no vmx, no svm"));
    }
    parts.extend(
        host.features
            .iter()
            .filter(|(_, present)| **present)
            .map(|(name, _)| (*name).to_owned()),
    );
    parts.extend(host.physical_bits.map(|bits| format!("{bits} physical address bits")));
    parts.join(", ")
}

fn mmio_caching(facts: &Facts) -> Option<(&'static str, &'static str)> {
    match facts.parameters.get("kvm.mmio_caching")?.as_str() {
        "Y" => Some((
            "on in KVM",
            "KVM remembers MMIO pages in reserved-bit SPTEs; Umbra remembers them on its side of the exit",
        )),
        _ => Some((
            "off in KVM",
            "each MMIO access is looked up anew inside KVM (kvm.mmio_caching=N, or no spare address bit); Umbra still \
             remembers on its side of the exit",
        )),
    }
}

fn huge_pages(facts: &Facts) -> String {
    let pages = &facts.huge_pages;
    let mut parts = vec![format!(
        "transparent: {}",
        pages.transparent.as_deref().unwrap_or("not in this kernel")
    )];
    parts.extend(pages.reserved.iter().map(|reserved| {
        let size = crate::size::ByteSize::new(reserved.page_kib << 10);
        match reserved.total {
            0 => format!("{size}: none reserved"),
            total => format!("{size}: {} of {total} free", reserved.free),
        }
    }));
    parts.join(", ")
}

fn capabilities(out: &mut String, kvm: &Usable, style: Style) {
    let width = kvm.capabilities.iter().map(|cap| cap.name.len()).max().unwrap_or(0);
    let heading = format!("  {:<width$}  {:>8}  what for", "capability", "value");
    let _ = writeln!(out, "\n{}", style.bold(&heading));
    for cap in &kvm.capabilities {
        let mark = if cap.value > 0 {
            style.good("✓")
        } else {
            style.warn("–")
        };
        let name = format!("{:<width$}", cap.name);
        let name = if cap.value > 0 { name } else { style.dim(&name) };
        let _ = writeln!(out, "{mark} {name}  {:>8}  {}", cap.value, style.dim(cap.used_for));
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts;
    use super::*;

    #[test]
    fn unusable_kvm_comes_first_with_its_reason() {
        let text = render(&facts::gather("/nonexistent/kvm".as_ref()), Style::Plain);
        let first = text.lines().next().unwrap();
        assert!(
            first.starts_with("KVM") && first.contains("unusable: /nonexistent/kvm does not exist"),
            "{first}"
        );
        assert!(text.contains("Huge pages"));
    }

    #[test]
    fn plain_style_has_no_escape_sequences() {
        assert!(!render(&facts::gather("/dev/kvm".as_ref()), Style::Plain).contains('\x1b'));
    }

    #[test]
    fn kvm_that_makes_no_machine_is_unusable_with_the_reason() {
        let mut facts = facts::gather("/nonexistent/kvm".as_ref());
        facts.kvm = Kvm::Usable(Box::new(Usable {
            device: "/dev/kvm".into(),
            kind: KvmKind::Svm,
            trial_failure: Some("KVM_CREATE_VM failed: out of memory".into()),
            capabilities: vec![],
        }));
        assert!(!facts.kvm.usable());
        facts.auto = facts::Auto::with(&facts.kvm);
        let text = render(&facts, Style::Plain);
        assert!(
            text.contains("unusable: /dev/kvm: AMD SVM, but KVM_CREATE_VM failed"),
            "{text}"
        );
        let runs = "the guest runs on the software CPU: KVM_CREATE_VM failed: out of memory";
        assert_eq!(text.matches(runs).count(), 2, "a kernel and the built-in guest: {text}");
    }
}
