//! A report on a guest that can't go on, for the person who has to do something about it.
//!
//! Read in this order: [`Report`], [`walk`] (where RIP leads), [`code`] (what is there), [`mode`], `advice` (what to
//! try), `text` (how it looks).

mod advice;
pub mod code;
pub mod mode;
mod text;
pub mod walk;

use crate::backend::VcpuBackend;
use crate::handle::GuestEnd;
use crate::regs::{Regs, SystemRegs};
use code::CodeLine;
use mode::CpuMode;
use umbra_memslots::{GuestMemory, Gva};
use walk::Walk;

/// Why a guest can't go on, with everything that may help. `Display` is several lines of text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Which vCPU.
    pub vcpu: u32,
    /// What happened.
    pub cause: GuestEnd,
    /// Its registers, if the backend still tells them.
    pub regs: Option<Regs>,
    /// Its system registers, if the backend still tells them.
    pub system: Option<SystemRegs>,
    /// The mode it was in.
    pub mode: Option<CpuMode>,
    /// Where RIP leads through the guest's page tables.
    pub rip_walk: Option<Walk>,
    /// The instructions there, the one that failed first; none if there is no memory or no valid instruction.
    pub code: Vec<CodeLine>,
    /// What the backend can't do on this host, if that may be the reason.
    pub backend_limits: Option<&'static str>,
}

impl Report {
    /// Looks at a vCPU that stopped for `cause`. Never fails: what can't be had is left out.
    pub fn capture(vcpu: u32, backend: &mut impl VcpuBackend, memory: &impl GuestMemory, cause: GuestEnd) -> Self {
        let regs = backend.regs().ok();
        let system = backend.system_regs().ok();
        let mut report = Self {
            vcpu,
            cause,
            regs,
            system,
            mode: None,
            rip_walk: None,
            code: Vec::new(),
            backend_limits: backend.limits(),
        };
        if let (Some(regs), Some(system)) = (regs, system) {
            let mode = CpuMode::of(&system, regs.rflags);
            let linear = Gva::new(mode.linear(system.cs.base, regs.rip));
            report.mode = Some(mode);
            report.rip_walk = Some(Walk::of(linear, &system, memory));
            let mut bytes = code::bytes_at(linear, &system, memory);
            if let GuestEnd::EmulationFailure { bytes: told } = report.cause
                && bytes.is_empty()
            {
                bytes = told.to_vec();
            }
            report.code = code::disassemble(&bytes, regs.rip, mode);
        }
        report
    }

    /// One sentence on what happened.
    pub fn headline(&self) -> String {
        advice::headline(self)
    }

    /// What to try, one thought per entry.
    pub fn advice(&self) -> Vec<String> {
        advice::advice(self)
    }
}
