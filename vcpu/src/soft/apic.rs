//! A software CPU's local APIC: its page, its MSRs, and what CPUID says of it.

use super::cpuid::PHYSICAL_BITS;
use super::signals::Signals;
use super::world::World;
use crate::emulate::Request;
use std::sync::Arc;
use umbra_devices::models::lapic::{LocalApic, regs};
use umbra_devices::{Device, IoOp, IoOutcome};
use umbra_memslots::{Gfn, Gpa};

/// Leaf 1 EDX: an APIC that is on; several logical CPUs.
const APIC: u32 = 1 << 9;
const SEVERAL: u32 = 1 << 28;
/// Leaf 1 ECX: x2APIC; a timer that waits for the time-stamp counter.
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 0xb ECX bits 15:8: what a level is of.
const THREADS: u32 = 1 << 8;
const CORES: u32 = 2 << 8;

/// The APIC, and what is asked often.
pub(super) struct OwnApic {
    pub apic: Arc<LocalApic>,
    /// CPUs of the machine.
    cpus: u32,
    /// Where its page is, while it has one.
    page: Option<Gfn>,
    /// A non-maskable interrupt is being handled: others wait for an `iret` (SDM vol. 3A section 6.7.1).
    pub in_nmi: bool,
    signals: Arc<Signals>,
}

impl OwnApic {
    /// The APIC of one of so many CPUs.
    pub fn new(apic: Arc<LocalApic>, cpus: u32, signals: Arc<Signals>) -> Self {
        let mut own = Self {
            apic,
            cpus,
            page: None,
            in_nmi: false,
            signals,
        };
        own.look_up_page();
        own
    }

    /// The handler of a non-maskable interrupt is left. The next one may wait already, whose signal was taken for that of
    /// an interrupt if the handler let those in.
    pub fn leave_nmi(&mut self) {
        if std::mem::take(&mut self.in_nmi) && self.apic.has_event(true) {
            self.signals.raise();
        }
    }

    fn look_up_page(&mut self) {
        let base = self.apic.base();
        let has_page = base & (regs::BASE_ON | regs::BASE_X2APIC) == regs::BASE_ON;
        self.page = has_page.then(|| Gpa::new(base).gfn());
    }

    /// IA32_APIC_BASE is written. `false`: #GP.
    pub fn set_base(&mut self, value: u64) -> bool {
        let done = self.apic.set_base(value, PHYSICAL_BITS).is_ok();
        self.look_up_page();
        done
    }

    /// Whether this MSR is the APIC's.
    pub fn has_msr(index: u32) -> bool {
        let x2apic = regs::X2APIC_MSRS..regs::X2APIC_MSRS + regs::X2APIC_MSR_COUNT;
        index == regs::TSC_DEADLINE_MSR || x2apic.contains(&index)
    }

    /// Adds to CPUID what there is because of the APIC.
    fn adapt(&self, leaf: u32, subleaf: u32, answer: &mut [u32; 4]) {
        let (id, cpus) = (self.apic.id(), self.cpus);
        let [eax, ebx, ecx, edx] = answer;
        match (leaf, subleaf) {
            (1, _) => {
                let on = if self.apic.base() & regs::BASE_ON != 0 { APIC } else { 0 };
                *edx |= on | if cpus > 1 { SEVERAL } else { 0 };
                *ecx |= X2APIC | TSC_DEADLINE;
                *ebx = *ebx & 0xff00 | cpus.min(0xff) << 16 | id << 24;
            }
            // Each core is a thread of its own.
            (0xb, 0) => (*eax, *ebx, *ecx, *edx) = (0, 1, THREADS, id),
            (0xb, 1) => {
                *eax = cpus.next_power_of_two().trailing_zeros();
                (*ebx, *ecx, *edx) = (cpus, CORES | 1, id);
            }
            (0xb, _) => (*ecx, *edx) = (subleaf & 0xff, id),
            _ => {}
        }
    }
}

impl World {
    /// The answer to an access to the APIC's page, if it is one.
    pub fn ask_apic(&mut self, request: &Request) -> Option<u64> {
        self.keep_clock();
        let own = self.apic.as_ref()?;
        let Request::Mmio { gpa, size, op } = *request else {
            return None;
        };
        if Some(gpa.gfn()) != own.page {
            return None;
        }
        match (own.apic.access(gpa.page_offset(), size, op), op) {
            (IoOutcome::Value(value), IoOp::Read) => Some(size.truncate(value)),
            (_, IoOp::Read) => Some(size.all_ones()),
            (_, IoOp::Write(_)) => Some(0),
        }
    }

    /// CPUID with the APIC in it.
    pub fn adapt_cpuid(&self, leaf: u32, subleaf: u32, mut answer: [u32; 4]) -> [u32; 4] {
        if let Some(own) = &self.apic {
            own.adapt(leaf, subleaf, &mut answer);
        }
        answer
    }
}
