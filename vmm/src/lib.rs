//! Machine assembly, loaders, configuration.
//!
//! Read in this order: [`cli`] and [`config`] (what can be asked for), [`exit_status`] (how it can end), [`app`] (from
//! the one to the other), [`layout`] (where RAM is), [`acpi`] (what the guest is told of its hardware), [`boot`] (how a
//! kernel gets there), [`terminal`] and [`signals`] (the user's side), [`machine`] (everything wired together), [`report`] (what is told afterwards), [`live`] (what is shown meanwhile),
//! [`builtin`] (the guest that is part of the binary), [`doctor`] (what the host can do), [`mmu_dump`] (page tables
//! to look at).

pub mod acpi;
pub mod app;
pub mod boot;
pub mod builtin;
pub mod cli;
pub mod config;
pub mod date;
pub mod delay;
pub mod doctor;
pub mod exit_status;
pub mod layout;
pub mod live;
pub mod logging;
pub mod machine;
pub mod mmu_dump;
pub mod report;
pub mod signals;
pub mod size;
pub mod style;
pub mod terminal;

// The README's example is compiled and run like any other test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
