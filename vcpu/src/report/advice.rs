//! What happened and what to try, in words, for each way a guest can fail.

use super::Report;
use crate::exit::FatalExit;
use crate::handle::GuestEnd;
use crate::regs::{Regs, SystemRegs};

/// One sentence on what happened.
pub fn headline(report: &Report) -> String {
    match &report.cause {
        GuestEnd::Crash => "the guest's kernel reported that it crashed".to_owned(),
        GuestEnd::Shutdown => {
            "triple fault: an exception could not be delivered, nor could the two that followed".to_owned()
        }
        GuestEnd::EmulationFailure { .. } => match report.code.first() {
            Some(line) => format!("the host could not execute `{}` for the guest", line.text),
            None => "the host could not fetch the guest's instruction".to_owned(),
        },
        GuestEnd::Debug { rip } => format!("a debug event at {rip:#x}, but no debugger is attached"),
        GuestEnd::Fatal(FatalExit::FailEntry { reason, cpu }) => {
            format!("the processor refused to enter the guest (reason {reason:#x}, on host CPU {cpu})")
        }
        GuestEnd::Fatal(FatalExit::Internal { suberror, data }) => {
            format!(
                "KVM internal error {suberror} ({}), data {data:x?}",
                suberror_name(*suberror)
            )
        }
        GuestEnd::Fatal(FatalExit::MemoryFault { gpa: Some(gpa), detail }) => {
            format!("the host has no memory for guest address {gpa}: {detail}")
        }
        GuestEnd::Fatal(FatalExit::MemoryFault { gpa: None, detail }) => {
            format!("the host has no memory for an access of the guest: {detail}")
        }
        GuestEnd::Fatal(FatalExit::Unknown { reason, name }) => format!("exit {reason} ({name}), which has no handler"),
        GuestEnd::PowerOff | GuestEnd::Reset | GuestEnd::Exit { .. } | GuestEnd::Halted => {
            "the guest ended by itself".to_owned()
        }
    }
}

/// What to try, one thought per entry.
pub fn advice(report: &Report) -> Vec<String> {
    let mut advice = match &report.cause {
        GuestEnd::EmulationFailure { .. } => emulation_failure(report),
        GuestEnd::Shutdown => triple_fault(report),
        GuestEnd::Crash => vec!["the reason is in the guest's own log: look at its console above".to_owned()],
        GuestEnd::Fatal(fatal) => fatal_advice(fatal),
        _ => Vec::new(),
    };
    if let Some(limits) = report.backend_limits {
        advice.push(limits.to_owned());
    }
    advice
}

fn emulation_failure(report: &Report) -> Vec<String> {
    if report.code.is_empty() {
        let place = match report.rip_walk.as_ref().map(|walk| walk.gpa) {
            Some(Some(gpa)) => format!("RIP leads to guest address {gpa}, where there is no memory"),
            Some(None) => "the guest's page tables do not map RIP".to_owned(),
            None => "the registers could not be read".to_owned(),
        };
        return vec![format!(
            "{place}: the guest jumped there by mistake (a wrong entry point or stack, a missing initrd), or has too \
             little RAM (--memory)"
        )];
    }
    vec![
        "KVM only has to execute an instruction for the guest when the processor can't: a device access, or code that \
         the processor won't run"
            .to_owned(),
    ]
}

fn triple_fault(report: &Report) -> Vec<String> {
    let mut advice = Vec::new();
    // KVM resets the vCPU when SVM's shutdown intercept fires, for the processor leaves its state undefined.
    let after_init = |(regs, system): (Regs, SystemRegs)| regs.rip == 0xfff0 && system.cs.base == 0xffff_0000;
    if report.regs.zip(report.system).is_some_and(after_init) {
        return vec![
            "an AMD processor loses its registers in a triple fault: those shown are the ones after INIT, so the place \
             is not known; to find it, run the guest on Intel or stop it earlier"
                .to_owned(),
        ];
    }
    if let Some(system) = &report.system {
        if system.idt.limit == 0 {
            advice.push(
                "there is no IDT yet: any exception at all ends like this. What raised the first one is at RIP"
                    .to_owned(),
            );
        }
        if system.cr2 != 0 {
            advice.push(format!(
                "CR2 is {:#x}: if the first exception was a page fault, that address is what the guest wanted",
                system.cr2
            ));
        }
    }
    if let Some(walk) = &report.rip_walk
        && walk.gpa.is_none()
    {
        advice.push("RIP is not mapped: the guest's page tables are wrong, or it jumped astray".to_owned());
    }
    advice.push(
        "Linux resets on purpose this way when nothing else is left (reboot=t); a kernel built for another CPU, or \
         entered by the wrong protocol, does it within its first instructions"
            .to_owned(),
    );
    advice
}

fn fatal_advice(fatal: &FatalExit) -> Vec<String> {
    let text = match fatal {
        // SDM vol. 3C section 27.8: bit 31 marks a failed entry, the basic reason is below it. SVM: VMEXIT_INVALID is -1.
        FatalExit::FailEntry { reason, .. } => match reason & 0xffff {
            _ if *reason == u64::MAX || *reason == 0xffff_ffff => {
                "VMEXIT_INVALID: the registers are in a combination that no processor can be in"
            }
            33 => {
                "invalid guest state: the segment or control registers are in a combination that no processor can be \
                 in; on Intel processors without \"unrestricted guest\" real mode is such a one"
            }
            34 => "an MSR of the guest could not be loaded: its value is not one this processor accepts",
            41 => "a machine check during entry: look at the host's kernel log for hardware errors",
            _ => "the host's kernel log may say more (dmesg)",
        },
        FatalExit::Internal { suberror: 2, .. } => {
            "two exceptions at once: mostly a page fault while the guest's interrupt stack or IDT is not mapped"
        }
        FatalExit::Internal { suberror: 3, .. } => {
            "an event could not be delivered because its IDT, TSS or stack lies where no memory is (it is MMIO): look \
             at the IDT's base and at RSP"
        }
        FatalExit::Internal { suberror: 4, .. } => {
            "the processor left the guest for a reason that this host's kernel does not know: data[0] is that reason; \
             a newer host kernel may know it"
        }
        FatalExit::Internal { .. } => "the host's kernel log may say more (dmesg)",
        FatalExit::MemoryFault { .. } => {
            "the memory behind the guest went away: a memory file that was truncated, huge pages that ran out, or a \
             hardware memory error (see the host's kernel log)"
        }
        FatalExit::Unknown { .. } => {
            "this program is older than the host's kernel, or asked it for something by mistake"
        }
    };
    vec![text.to_owned()]
}

fn suberror_name(suberror: u32) -> &'static str {
    match suberror {
        1 => "emulation failure",
        2 => "simultaneous exceptions",
        3 => "event delivery failed",
        4 => "unexpected exit reason",
        _ => "unknown",
    }
}
