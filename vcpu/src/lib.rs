//! The vCPU: a value-in/value-out backend trait, our own registers, the run loop, and backends.
//!
//! Read in this order: [`exit`] (what a vCPU says and what it is told), [`backend`] (who says it), [`regs`]; then
//! [`handle`] (what to do about an exit), [`platform`] (what that asks of the machine), [`run_loop`] and [`control`]
//! (threads, pause and stop), [`turns`] (all vCPUs on one thread, always in the same way), [`shadow_counts`], [`stats`]
//! and [`report`] (what people get to see); then the backends: [`kvm`], [`soft`] and,
//! for tests, [`scripted`]; [`shadow`] runs CPL 3 code on shadow tables. [`emulate`] executes single instructions in
//! software, and [`fallback`] uses it where a backend can't; `paging` is what both tell the MMU of a CPU.

pub mod backend;
pub mod control;
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "an instruction set is arithmetic on truncated and reinterpreted words"
)]
pub mod emulate;
pub mod exit;
#[expect(
    clippy::cast_possible_truncation,
    reason = "lengths and offsets within one page, and values cut to their width"
)]
pub mod fallback;
pub mod handle;
pub mod hot_pages;
#[cfg(target_arch = "x86_64")]
pub mod kvm;
mod paging;
pub mod platform;
pub mod regs;
pub mod report;
pub mod run_loop;
pub mod scripted;
#[cfg(target_arch = "x86_64")]
pub mod shadow;
pub mod shadow_counts;
#[expect(
    clippy::cast_possible_truncation,
    reason = "lengths and offsets within one page, and values cut to their width"
)]
pub mod soft;
pub mod split;
pub mod stats;
pub mod turns;

// The README's examples are compiled and run like any other test.
#[cfg(all(doctest, target_arch = "x86_64"))]
#[doc = include_str!("../README.md")]
struct Readme;
