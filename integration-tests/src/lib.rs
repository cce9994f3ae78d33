//! Whole-system tests: guests, the lab, parity, benchmarks. See the README for how to run them.
//!
//! Read in this order: [`lab`] (a machine with stock KVM in it), [`matrix`] (what a test can run on), [`console`] (talking
//! with a guest), [`trace`] (what KVM says it did), [`vmlinux`] (guest kernels).

pub mod lab;
pub mod vmlinux;
