//! Whole-system tests: guests, the lab, parity, benchmarks. See the README for how to run them.
//!
//! Read in this order: [`matrix`] (what a test can run on), [`console`] (talking with a guest), [`vmlinux`],
//! [`multiboot`] and [`linux_init`] (guests), [`lab`] (a machine with stock KVM in it), [`guest_files`] (what guests boot there),
//! [`trace`] (what KVM says it did), [`events`] (whether our shadow MMU does the same), [`speed`] (how fast machines in
//! software are), [`page`] (where figures stand).

pub mod console;
pub mod events;
pub mod guest_files;
pub mod lab;
pub mod linux_init;
pub mod matrix;
pub mod multiboot;
pub mod page;
pub mod speed;
pub mod trace;
pub mod vmlinux;
