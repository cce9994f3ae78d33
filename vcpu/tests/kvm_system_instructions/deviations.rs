//! Where KVM on QEMU's emulated AMD processor does something else than the manuals say.
//!
//! Others are not even drawn; `program` and `image` say so where it matters. What differs in bits that mean nothing is
//! left out in `compare`.

use super::compare::Outcome;
use super::machine::End;
use super::vector;
use umbra_vcpu::emulate::exception;
use umbra_vcpu::emulate::flags::ZF;
use umbra_vcpu::emulate::state::RSP;

/// The name of the deviation that explains all the differences that were found.
pub fn explain(found: &[String], trace: &[String], kvm: &Outcome, core: &Outcome) -> Option<&'static str> {
    let executed = |mnemonic: &str| trace.iter().any(|line| line.split(' ').next() == Some(mnemonic));
    let only = |parts: &[&str]| found.iter().all(|line| parts.iter().any(|part| line.starts_with(part)));
    let long = core.state.long_mode();
    // SDM vol. 3A section 8.7: in long mode there are no 16-bit task states.
    // The core's #GP is where the two part.
    let refused = || {
        let mut pairs = trace.iter().zip(trace.iter().skip(1));
        let protection = format!("exception Exception {{ vector: {:x},", exception::GP);
        pairs.any(|(line, next)| line.starts_with("Ltr ") && next.starts_with(&protection))
    };
    let task = found
        .iter()
        .any(|line| line.starts_with("tr: ") || line.starts_with("end: "));
    if long && task && refused() && matches!(kvm.state.sys.tr.kind, 1 | 3) {
        return Some("QEMU's ltr takes a 16-bit task state in long mode");
    }
    // SDM vol. 2, LAR and LSL: table of the types that are valid in long mode.
    let zero = (kvm.state.rflags & ZF != 0, core.state.rflags & ZF != 0);
    if (executed("Lar") || executed("Lsl")) && long && only(&["gpr 3", "rflags"]) && zero == (true, false) {
        return Some("QEMU's lar and lsl know 16-bit task states and gates in long mode");
    }
    // SDM vol. 3A section 6.14.4: SS becomes null when the level changes.
    if long && only(&["ss: kvm Segment { selector: 0,"]) {
        return Some("QEMU makes SS null when it takes a stack from the IST");
    }
    // SDM vol. 3A section 6.5: a fault returns to the instruction itself. (KVM sees #GP on processors of this kind, and has
    // to guess where an interrupted int n, into or int3 ended, without NRIP save.)
    let software = [("Int", 2), ("Into", 1), ("Int3", 1)];
    let returns_behind = |(mnemonic, length)| executed(mnemonic) && returns_later(kvm, core, length);
    if only(&["memory", "ss: kvm Segment { selector: 0,"]) && software.into_iter().any(returns_behind) {
        return Some("KVM has a fault of int n, into or int3 return behind it");
    }
    // SDM vol. 3A table 6-5: KVM injects what it has intercepted; what goes wrong then is a second exception, at whose
    // handler KVM's program ends.
    let doubled = vector(&core.state) == Some(exception::DF) || core.end == End::ShutDown;
    if doubled && kvm.end == End::Halted && core.second.is_some() && vector(&kvm.state) == core.second {
        return Some("QEMU makes no double fault of an exception while an injected one is delivered");
    }
    None
}

/// Whether KVM's frame, of an exception with error code, returns so many bytes further than the core's.
fn returns_later(kvm: &Outcome, core: &Outcome, bytes: u32) -> bool {
    let word = if core.state.long_mode() { 8 } else { 4 };
    let target = |outcome: &Outcome| {
        let at = usize::try_from(outcome.state.gpr[RSP]).ok()? + word;
        let target = outcome.memory.get(at..at + 4)?;
        Some(u32::from_le_bytes(target.try_into().ok()?))
    };
    target(core)
        .zip(target(kvm))
        .is_some_and(|(core, kvm)| core.wrapping_add(bytes) == kvm)
}
