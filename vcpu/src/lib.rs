//! The vCPU: a value-in/value-out backend trait, our own registers, the run loop, and backends.
//!
//! Read in this order: [`exit`] (what a vCPU says and what it is told), [`backend`] (who says it), [`regs`].

pub mod backend;
pub mod exit;
pub mod regs;
