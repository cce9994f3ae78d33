//! The `soft` backend: a CPU in software, for hosts without KVM.
//!
//! The instruction core ([`crate::emulate`]) executes; the paging unit is the model of the hardware walker
//! ([`umbra_mmu::hw_model`]) over shadow tables that [`umbra_mmu::shadow::ShadowMmu`] keeps, just as a real CPU would
//! walk them. So MMIO is met as a reserved bit in an MMIO SPTE, comes out as [`crate::exit::VmExit::Mmio`], and the
//! instruction is begun anew when the answer is known.
//!
//! Read in this order: [`vm`] (what vCPUs share), `gate` (how they wait for each other's TLBs), `cpuid`, `raw` and `host`
//! (guest RAM by host address), `tlb`, `walker` (what happens on a miss), `recognition` and `counts` (what is told of it),
//! `code` and `blocks` (the cache of decoded code), `fast` (the commonest instructions, made ready to run), `run` (executing
//! both), `world` and `platform` (what the core sees of it all), `pvclock`, `signals` (what other threads tell it), `turn`
//! (if it takes turns with others on one thread), [`vcpu`].
//!
//! Each vCPU may have a thread of its own, or all take turns on one ([`crate::turns`]), with counted instructions for their
//! time. Locked instructions are atomic for all of them, and an access has the order
//! that x86 promises if the host is an x86 too. A vCPU takes interrupts from its local
//! APIC (`apic`, and `startup` for INIT and start-up interrupts), or from whatever [`umbra_devices::IntrSource`] it is
//! given.

mod apic;
mod blocks;
mod code;
mod counts;
mod cpuid;
#[expect(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "registers are bits, and some instructions take them for signed numbers"
)]
mod fast;
mod finish;
pub mod fuzz;
mod gate;
#[expect(unsafe_code, reason = "guest RAM is reached by host address")]
mod host;
mod platform;
mod pvclock;
#[expect(unsafe_code, reason = "guest RAM is reached by host address")]
mod raw;
mod recognition;
mod run;
mod signals;
mod startup;
mod sync;
#[expect(
    unsafe_code,
    reason = "entries are host addresses, which the snapshot beside them keeps mapped"
)]
mod tlb;
mod turn;
pub mod vcpu;
pub mod vm;
mod walker;
mod world;

pub use counts::{SoftCounts, SoftRun};
pub use recognition::RecognitionTimes;
pub use vcpu::SoftVcpu;
pub use vm::{SoftError, SoftOptions, SoftVm};
