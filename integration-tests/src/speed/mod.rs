//! How fast machines in software run the same guest: Umbra's software CPU, Bochs, QEMU's TCG.
//!
//! Read in this order: [`rows`] (which loops), [`guest`] (their code), [`boot_sector`] (for a machine that boots from a
//! disk), [`marks`] (what the guest says), [`machine`] (who runs it), [`run`] (one run).

pub mod boot_sector;
pub mod guest;
pub mod machine;
pub mod marks;
pub mod rows;
pub mod run;
