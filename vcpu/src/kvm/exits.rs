//! What a return from `KVM_RUN` means: the exit for the loop above, and what is owed to the kernel for it.

use super::coalesced::KeptWrite;
use super::run_page::{PioExit, RunPage};
use crate::exit::{FatalExit, InsnBytes, SystemEvent, VmExit};
use crate::split::{Piece, Transfer};
use kvm_bindings as kvm;
use std::io;
use umbra_devices::{IoOp, IoSize};
use umbra_memslots::Gpa;

/// What the next entry has to answer.
#[derive(Clone, Copy)]
pub(super) enum Pending {
    /// Nothing: any exit that needs no value.
    Nothing,
    /// A run of MMIO bytes, handed out in pieces.
    Mmio(Transfer),
    /// A (possibly repeated) port access, handed out element by element; `done` elements are.
    Pio { io: PioExit, size: IoSize, done: u32 },
    /// A read of an MSR.
    ReadMsr,
    /// A write to an MSR.
    WriteMsr,
}

impl Pending {
    /// The exit that asks for the next piece, if there is one.
    pub fn next_exit(&self, page: &RunPage) -> Option<VmExit> {
        match self {
            Self::Mmio(transfer) => transfer
                .piece()
                .map(|Piece { gpa, size, op }| VmExit::Mmio { gpa, size, op }),
            Self::Pio { io, size, done } if *done < io.count => {
                let op = if io.input {
                    IoOp::Read
                } else {
                    IoOp::Write(page.data(element_offset(io, *done), usize::from(io.size)))
                };
                Some(VmExit::Pio {
                    port: io.port,
                    size: *size,
                    op,
                })
            }
            _ => None,
        }
    }

    /// Takes `value` as the answer to the present piece. When the last piece was answered, what was read is in the
    /// run page.
    pub fn answer(&mut self, page: &mut RunPage, value: u64) {
        match self {
            Self::Mmio(transfer) => {
                transfer.answer(value);
                if transfer.is_read() && transfer.piece().is_none() {
                    page.set_mmio_data(transfer.value().to_le_bytes());
                }
            }
            Self::Pio { io, done, .. } => {
                if io.input {
                    page.set_data(element_offset(io, *done), usize::from(io.size), value);
                }
                *done += 1;
            }
            Self::ReadMsr => page.answer_msr(value, false),
            Self::WriteMsr => page.answer_msr(0, false),
            Self::Nothing => {}
        }
    }

    /// Whether only a value answers it.
    pub const fn wants_value(&self) -> bool {
        match self {
            Self::Mmio(transfer) => transfer.is_read(),
            Self::Pio { io, .. } => io.input,
            Self::ReadMsr => true,
            Self::WriteMsr | Self::Nothing => false,
        }
    }

    /// Whether it may be answered by a #GP.
    pub const fn may_fault(&self) -> bool {
        matches!(self, Self::ReadMsr | Self::WriteMsr)
    }
}

fn element_offset(io: &PioExit, index: u32) -> u64 {
    io.offset.saturating_add(u64::from(index) * u64::from(io.size))
}

/// Reads the exit that a successful `KVM_RUN` left in the page. `None`: an exit without meaning for us, run on.
pub(super) fn decode(page: &mut RunPage) -> Option<(VmExit, Pending)> {
    let exit = match page.exit_reason() {
        kvm::KVM_EXIT_MMIO => return Some(mmio(page)),
        kvm::KVM_EXIT_IO => return Some(pio(page)),
        kvm::KVM_EXIT_HLT => VmExit::Hlt,
        kvm::KVM_EXIT_INTR => VmExit::Interrupted,
        kvm::KVM_EXIT_SHUTDOWN => VmExit::Shutdown,
        kvm::KVM_EXIT_IRQ_WINDOW_OPEN => VmExit::IrqWindowOpen,
        kvm::KVM_EXIT_SYSTEM_EVENT => VmExit::SystemEvent(match page.system_event() {
            kvm::KVM_SYSTEM_EVENT_SHUTDOWN => SystemEvent::PowerOff,
            kvm::KVM_SYSTEM_EVENT_RESET => SystemEvent::Reset,
            kvm::KVM_SYSTEM_EVENT_CRASH => SystemEvent::Crash,
            other => SystemEvent::Other(other),
        }),
        kvm::KVM_EXIT_DEBUG => {
            let (rip, dr6, dr7) = page.debug();
            VmExit::Debug { rip, dr6, dr7 }
        }
        kvm::KVM_EXIT_X86_RDMSR => {
            let (index, _) = page.msr();
            // A stale value must not reach the guest if the answer is a fault.
            page.answer_msr(0, false);
            return Some((VmExit::ReadMsr { index }, Pending::ReadMsr));
        }
        kvm::KVM_EXIT_X86_WRMSR => {
            let (index, value) = page.msr();
            return Some((VmExit::WriteMsr { index, value }, Pending::WriteMsr));
        }
        kvm::KVM_EXIT_IOAPIC_EOI => VmExit::IoapicEoi {
            vector: page.eoi_vector(),
        },
        // Sent without an in-kernel local APIC when CR8 drops: nobody above has a use for it.
        kvm::KVM_EXIT_SET_TPR => return None,
        kvm::KVM_EXIT_INTERNAL_ERROR => internal_error(page),
        kvm::KVM_EXIT_FAIL_ENTRY => {
            let (reason, cpu) = page.fail_entry();
            VmExit::Fatal(FatalExit::FailEntry { reason, cpu })
        }
        reason => VmExit::Fatal(FatalExit::Unknown {
            reason,
            name: reason_name(reason),
        }),
    };
    Some((exit, Pending::Nothing))
}

/// Explains a `KVM_RUN` that failed with `EFAULT` or `EHWPOISON`: the guest touched memory that the host can't give.
pub(super) fn memory_fault(page: &RunPage, error: &io::Error) -> VmExit {
    // Only with this reason is the structure about this failure (Documentation/virt/kvm/api.rst, KVM_EXIT_MEMORY_FAULT).
    if page.exit_reason() == kvm::KVM_EXIT_MEMORY_FAULT {
        let (flags, gpa, size) = page.memory_fault();
        let detail = format!("{error}; {size} bytes, flags {flags:#x}");
        return VmExit::Fatal(FatalExit::MemoryFault {
            gpa: Some(Gpa::new(gpa)),
            detail,
        });
    }
    VmExit::Fatal(FatalExit::MemoryFault {
        gpa: None,
        detail: error.to_string(),
    })
}

fn mmio(page: &mut RunPage) -> (VmExit, Pending) {
    let mmio = page.mmio();
    let gpa = Gpa::new(mmio.gpa);
    let transfer = if mmio.write {
        Transfer::write(gpa, mmio.length, u64::from_le_bytes(mmio.data))
    } else {
        // The kernel copies `length` bytes back whatever happens: none of an earlier access may be left there.
        page.set_mmio_data([0; 8]);
        Transfer::read(gpa, mmio.length)
    };
    hand_out(page, Pending::Mmio(transfer))
}

fn pio(page: &mut RunPage) -> (VmExit, Pending) {
    let io = page.pio();
    let Some(size) = IoSize::from_bytes(usize::from(io.size)) else {
        let exit = FatalExit::Unknown {
            reason: kvm::KVM_EXIT_IO,
            name: "KVM_EXIT_IO with a width no port has",
        };
        return (VmExit::Fatal(exit), Pending::Nothing);
    };
    if io.input {
        for index in 0..io.count {
            page.set_data(element_offset(&io, index), usize::from(io.size), 0);
        }
    }
    hand_out(page, Pending::Pio { io, size, done: 0 })
}

/// The first piece; a transfer of no bytes, which the kernel never makes, is passed over.
fn hand_out(page: &RunPage, pending: Pending) -> (VmExit, Pending) {
    match pending.next_exit(page) {
        Some(exit) => (exit, pending),
        None => (VmExit::Interrupted, Pending::Nothing),
    }
}

/// A write that the kernel kept back, as the exit that it would have been. `None` if no device could ever see such one.
pub(super) fn kept_write(page: &RunPage, write: KeptWrite) -> Option<(VmExit, Pending)> {
    if write.port {
        let size = IoSize::from_bytes(usize::try_from(write.length).ok()?)?;
        let port = u16::try_from(write.address).ok()?;
        let op = IoOp::Write(size.truncate(write.data));
        return Some((VmExit::Pio { port, size, op }, Pending::Nothing));
    }
    let pending = Pending::Mmio(Transfer::write(Gpa::new(write.address), write.length, write.data));
    pending.next_exit(page).map(|exit| (exit, pending))
}

fn internal_error(page: &RunPage) -> VmExit {
    let error = page.internal_error();
    let count = usize::try_from(error.count).unwrap_or(usize::MAX).min(error.data.len());
    if error.suberror != kvm::KVM_INTERNAL_ERROR_EMULATION {
        return VmExit::Fatal(FatalExit::Internal {
            suberror: error.suberror,
            data: error.data[..count].to_vec(),
        });
    }
    let (flags, size, bytes) = page.emulation_failure();
    let told = count >= 1 && flags & u64::from(kvm::KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
    let size = if told { usize::from(size).min(bytes.len()) } else { 0 };
    VmExit::EmulationFailure {
        bytes: InsnBytes::new(&bytes[..size]),
    }
}

/// The kernel's name of an exit reason that this backend gives no meaning to.
fn reason_name(reason: u32) -> &'static str {
    match reason {
        kvm::KVM_EXIT_UNKNOWN => "KVM_EXIT_UNKNOWN",
        kvm::KVM_EXIT_EXCEPTION => "KVM_EXIT_EXCEPTION",
        kvm::KVM_EXIT_HYPERCALL => "KVM_EXIT_HYPERCALL",
        kvm::KVM_EXIT_TPR_ACCESS => "KVM_EXIT_TPR_ACCESS",
        kvm::KVM_EXIT_NMI => "KVM_EXIT_NMI",
        kvm::KVM_EXIT_WATCHDOG => "KVM_EXIT_WATCHDOG",
        kvm::KVM_EXIT_HYPERV => "KVM_EXIT_HYPERV",
        kvm::KVM_EXIT_DIRTY_RING_FULL => "KVM_EXIT_DIRTY_RING_FULL",
        kvm::KVM_EXIT_AP_RESET_HOLD => "KVM_EXIT_AP_RESET_HOLD",
        kvm::KVM_EXIT_X86_BUS_LOCK => "KVM_EXIT_X86_BUS_LOCK",
        kvm::KVM_EXIT_XEN => "KVM_EXIT_XEN",
        kvm::KVM_EXIT_NOTIFY => "KVM_EXIT_NOTIFY",
        _ => "an exit reason newer than this program",
    }
}
