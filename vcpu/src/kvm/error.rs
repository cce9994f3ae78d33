//! What can go wrong while a virtual machine is made or changed.

use std::io;
use vmm_sys_util::errno;

/// A failure of KVM that is not about running a vCPU.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// An ioctl was refused.
    #[error("{operation} failed: {source}")]
    Ioctl {
        /// The ioctl's name, with what was asked if that helps.
        operation: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The host's KVM lacks something that was asked for or that Umbra cannot do without.
    #[error("this host's KVM lacks \"{name}\", needed for {purpose}")]
    Lacks {
        /// [`super::Capability::name`].
        name: &'static str,
        /// [`super::Capability::purpose`].
        purpose: &'static str,
    },
    /// A vCPU number out of range.
    #[error("vCPU {id} asked for, but this host's KVM takes {max} vCPUs at most")]
    TooManyVcpus {
        /// The number asked for, counted from 0.
        id: u32,
        /// How many there can be.
        max: u32,
    },
    /// The kernel took only some of the MSRs that a vCPU starts with.
    #[error("KVM refused MSR {index:#x} (value {value:#x}) of the start-up state")]
    Msr {
        /// MSR number.
        index: u32,
        /// Value that was to be set.
        value: u64,
    },
    /// More bytes, lines or routes than the interface can carry.
    #[error("{what}: {value} asked for, {max} at most")]
    TooMany {
        /// What was asked for.
        what: &'static str,
        /// How much.
        value: usize,
        /// The limit.
        max: usize,
    },
}

impl KvmError {
    /// Wraps an errno.
    pub(super) fn ioctl(operation: &'static str) -> impl Fn(errno::Error) -> Self {
        move |error| Self::Ioctl {
            operation,
            source: io::Error::from_raw_os_error(error.errno()),
        }
    }
}
