//! The vCPU: a value-in/value-out backend trait, our own registers, the run loop, and backends.
//!
//! Read in this order: [`exit`] (what a vCPU says and what it is told), [`backend`] (who says it), [`regs`], then the
//! backends: [`kvm`] and, for tests, [`scripted`].

pub mod backend;
pub mod exit;
#[cfg(target_arch = "x86_64")]
pub mod kvm;
pub mod regs;
pub mod scripted;
pub mod split;
