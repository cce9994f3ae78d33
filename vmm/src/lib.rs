//! Machine assembly, loaders, configuration.
//!
//! Read in this order: [`cli`] and [`config`] (what can be asked for), [`exit_status`] (how it can end).

pub mod cli;
pub mod config;
pub mod exit_status;
pub mod size;
