//! Machine assembly, loaders, configuration.
//!
//! Read in this order: [`cli`] and [`config`] (what can be asked for), [`exit_status`] (how it can end),
//! [`layout`] (where RAM is), [`acpi`] (what the guest is told of its hardware), [`boot`] (how a kernel gets there).

pub mod acpi;
pub mod app;
pub mod boot;
pub mod builtin;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod exit_status;
pub mod kvm_host;
pub mod layout;
pub mod signals;
pub mod size;
pub mod style;
pub mod terminal;
