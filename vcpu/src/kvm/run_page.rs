//! The memory that KVM shares with us for one vCPU, and `KVM_RUN`: the only place that touches either.
//!
//! The `kvm_run` structure at its start is a C union of plain integers. Every accessor here copies integers out or
//! in, so each is safe whatever the exit reason is: reading a field that does not belong to the present exit yields a
//! meaningless number, never undefined behaviour. No Rust reference to the shared memory is ever made, because the
//! kick signal's handler writes `immediate_exit` while other code runs.

use super::coalesced::KeptWrite;
use super::kick::{Armed, KickState};
use kvm_bindings::{
    KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio, kvm_coalesced_mmio_ring, kvm_regs, kvm_run, kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{NonNull, addr_of, addr_of_mut};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// `KVM_RUN`, `_IO(0xae, 0x80)`.
const KVM_RUN: libc::c_ulong = 0xae80;
/// `KVM_INTERRUPT`, `_IOW(0xae, 0x86, struct kvm_interrupt)`.
const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;

/// The run page together with the vCPU it belongs to.
pub(super) struct RunPage {
    run: NonNull<kvm_run>,
    /// Bytes mapped from `run` on.
    size: usize,
    /// Owns the mapping that `run` points into.
    fd: VcpuFd,
}

// SAFETY: `run` points into a mapping that `fd`, owned by the same value, keeps alive; no thread-local is involved.
unsafe impl Send for RunPage {}

/// `kvm_run.mmio`.
#[derive(Clone, Copy)]
pub(super) struct MmioExit {
    pub gpa: u64,
    pub data: [u8; 8],
    pub length: u32,
    pub write: bool,
}

/// `kvm_run.io`.
#[derive(Clone, Copy)]
pub(super) struct PioExit {
    pub input: bool,
    pub size: u8,
    pub port: u16,
    pub count: u32,
    /// Offset of the data within the run mapping.
    pub offset: u64,
}

/// `kvm_run.internal`.
#[derive(Clone, Copy)]
pub(super) struct InternalError {
    pub suberror: u32,
    pub count: u32,
    pub data: [u64; 16],
}

/// Copies one field out of the run page.
macro_rules! load {
    ($page:expr, $($field:tt)+) => {{
        let run = $page.run.as_ptr();
        // SAFETY: the mapping is at least as large as `kvm_run` (checked in `new`) and lives as long as the page.
        let field = unsafe { addr_of!((*run).$($field)+) };
        // SAFETY: `field` is aligned, within the mapping, and of a type for which every bit pattern is a value.
        unsafe { field.read() }
    }};
}

/// Copies a value into one field of the run page.
macro_rules! store {
    ($page:expr, $value:expr, $($field:tt)+) => {{
        let run = $page.run.as_ptr();
        // SAFETY: the mapping is at least as large as `kvm_run` (checked in `new`) and lives as long as the page.
        let field = unsafe { addr_of_mut!((*run).$($field)+) };
        // SAFETY: `field` is aligned and within the mapping, and `&mut self` keeps other users of it away.
        unsafe { field.write($value) }
    }};
}

impl RunPage {
    /// Takes a vCPU whose run mapping is `size` bytes long (`KVM_GET_VCPU_MMAP_SIZE`).
    ///
    /// # Errors
    /// The mapping is smaller than the structure: a kernel older than these bindings can use.
    pub fn new(mut fd: VcpuFd, size: usize) -> io::Result<Self> {
        if size < size_of::<kvm_run>() {
            return Err(io::Error::other(format!(
                "the kernel maps {size} bytes per vCPU, {} needed",
                size_of::<kvm_run>()
            )));
        }
        let run = NonNull::from(fd.get_kvm_run());
        Ok(Self { run, size, fd })
    }

    /// The vCPU, for every other ioctl. Never for its `run` or `get_kvm_run`: those make references to the page.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// `KVM_RUN`, seen by kicks. With `finish_only` the kernel completes the instruction of the last exit and returns
    /// `EINTR` before the guest runs on.
    ///
    /// # Errors
    /// The errno as the kernel gave it.
    pub fn run(&mut self, kick: &KickState, finish_only: bool) -> io::Result<()> {
        let run = self.run.as_ptr();
        // SAFETY: within the mapping, see `load`.
        let immediate_exit = unsafe { addr_of!((*run).immediate_exit) }.cast::<AtomicU8>();
        // SAFETY: aligned (a byte) and alive as long as `self`; all of user space accesses it only atomically.
        let flag = unsafe { &*immediate_exit };
        flag.store(0, Ordering::Relaxed);
        // SAFETY: the guard is dropped below, before `self` can go away.
        let armed = unsafe { Armed::new(immediate_exit) };
        if finish_only || kick.is_requested() {
            flag.store(1, Ordering::Relaxed);
        }
        // SAFETY: a KVM vCPU descriptor; KVM_RUN takes no argument and writes only to the guest's memory slots and to
        // the run page.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_RUN, 0) };
        drop(armed);
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Whether the vCPU would take an interrupt of an 8259 now, as the kernel said at the last exit.
    pub fn is_ready_for_interrupt(&self) -> bool {
        load!(self, ready_for_interrupt_injection) != 0
    }

    /// Whether the kernel is to come out when the vCPU would take one.
    pub fn set_interrupt_window(&mut self, wanted: bool) {
        store!(self, u8::from(wanted), request_interrupt_window);
    }

    /// Gives the vCPU an interrupt of an 8259 that is not in the kernel.
    ///
    /// # Errors
    /// The errno as the kernel gave it; `EEXIST` if it has one already.
    pub fn interrupt(&mut self, vector: u8) -> io::Result<()> {
        let interrupt = kvm_bindings::kvm_interrupt { irq: vector.into() };
        // SAFETY: a KVM vCPU descriptor; the kernel reads one `kvm_interrupt` and keeps no pointer.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_INTERRUPT, &raw const interrupt) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    pub fn exit_reason(&self) -> u32 {
        load!(self, exit_reason)
    }

    pub fn mmio(&self) -> MmioExit {
        MmioExit {
            gpa: load!(self, __bindgen_anon_1.mmio.phys_addr),
            data: load!(self, __bindgen_anon_1.mmio.data),
            length: load!(self, __bindgen_anon_1.mmio.len),
            write: load!(self, __bindgen_anon_1.mmio.is_write) != 0,
        }
    }

    pub fn set_mmio_data(&mut self, data: [u8; 8]) {
        store!(self, data, __bindgen_anon_1.mmio.data);
    }

    pub fn pio(&self) -> PioExit {
        PioExit {
            input: u32::from(load!(self, __bindgen_anon_1.io.direction)) == kvm_bindings::KVM_EXIT_IO_IN,
            size: load!(self, __bindgen_anon_1.io.size),
            port: load!(self, __bindgen_anon_1.io.port),
            count: load!(self, __bindgen_anon_1.io.count),
            offset: load!(self, __bindgen_anon_1.io.data_offset),
        }
    }

    /// Reads `width` bytes (at most 8) at `offset` of the mapping, little-endian; 0 if they are not all within it.
    pub fn data(&self, offset: u64, width: usize) -> u64 {
        let mut bytes = [0; 8];
        if let Some(from) = self.data_at(offset, width) {
            // SAFETY: `data_at` checked that `width <= 8` bytes lie within the mapping; `bytes` has 8.
            unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), width) };
        }
        u64::from_le_bytes(bytes)
    }

    /// Writes the low `width` bytes (at most 8) of `value` at `offset` of the mapping, if they are all within it.
    pub fn set_data(&mut self, offset: u64, width: usize, value: u64) {
        if let Some(to) = self.data_at(offset, width) {
            // SAFETY: as in `data`, and `&mut self` keeps other users away.
            unsafe { std::ptr::copy_nonoverlapping(value.to_le_bytes().as_ptr(), to, width) };
        }
    }

    fn data_at(&self, offset: u64, width: usize) -> Option<*mut u8> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(width)?;
        if width > 8 || end > self.size {
            return None;
        }
        // SAFETY: `offset` lies within the mapping.
        Some(unsafe { self.run.as_ptr().cast::<u8>().add(offset) })
    }

    /// Takes the oldest write out of the ring of coalesced ones. One vCPU of a VM at a time may call this ([`Turns`]).
    ///
    /// [`Turns`]: super::coalesced::Turns
    pub fn take_kept_write(&mut self) -> Option<KeptWrite> {
        const RING: u64 = KVM_COALESCED_MMIO_PAGE_OFFSET as u64 * umbra_memslots::PAGE_SIZE;
        const HEAD: u64 = size_of::<kvm_coalesced_mmio_ring>() as u64;
        const ENTRY: u64 = size_of::<kvm_coalesced_mmio>() as u64;
        const ENTRIES: u64 = (umbra_memslots::PAGE_SIZE - HEAD) / ENTRY;
        // The kernel moves `last` after it wrote an entry and never moves `first`, which is ours.
        let last = u64::from(self.counter_at(RING + 4)?.load(Ordering::Acquire));
        let first = u64::from(self.counter_at(RING)?.load(Ordering::Relaxed));
        if first == last || first >= ENTRIES {
            return None;
        }
        let entry = RING + HEAD + first * ENTRY;
        let write = KeptWrite {
            address: self.data(entry, 8),
            length: u32::try_from(self.data(entry + 8, 4)).unwrap_or(0),
            port: self.data(entry + 12, 4) != 0,
            data: self.data(entry + 16, 8),
        };
        let next = u32::try_from((first + 1) % ENTRIES).unwrap_or(0);
        self.counter_at(RING)?.store(next, Ordering::Release);
        Some(write)
    }

    /// A counter that the kernel uses too; `None` if the mapping ends before it.
    fn counter_at(&self, offset: u64) -> Option<&AtomicU32> {
        let counter = self.data_at(offset, 4)?;
        // SAFETY: within the mapping, aligned (every offset used is a multiple of 4 and the mapping is page aligned),
        // and accessed only atomically while others may write it.
        Some(unsafe { AtomicU32::from_ptr(counter.cast()) })
    }

    /// Index and value of an MSR exit.
    pub fn msr(&self) -> (u32, u64) {
        (
            load!(self, __bindgen_anon_1.msr.index),
            load!(self, __bindgen_anon_1.msr.data),
        )
    }

    /// Answers an MSR exit; `fault` makes the instruction raise #GP(0).
    pub fn answer_msr(&mut self, value: u64, fault: bool) {
        store!(self, value, __bindgen_anon_1.msr.data);
        store!(self, u8::from(fault), __bindgen_anon_1.msr.error);
    }

    pub fn internal_error(&self) -> InternalError {
        InternalError {
            suberror: load!(self, __bindgen_anon_1.internal.suberror),
            count: load!(self, __bindgen_anon_1.internal.ndata),
            data: load!(self, __bindgen_anon_1.internal.data),
        }
    }

    /// Flags, length and bytes of an emulation failure that carries its instruction.
    pub fn emulation_failure(&self) -> (u64, u8, [u8; 15]) {
        (
            load!(self, __bindgen_anon_1.emulation_failure.flags),
            load!(
                self,
                __bindgen_anon_1
                    .emulation_failure
                    .__bindgen_anon_1
                    .__bindgen_anon_1
                    .insn_size
            ),
            load!(
                self,
                __bindgen_anon_1
                    .emulation_failure
                    .__bindgen_anon_1
                    .__bindgen_anon_1
                    .insn_bytes
            ),
        )
    }

    /// Reason and host CPU of a refused entry.
    pub fn fail_entry(&self) -> (u64, u32) {
        (
            load!(self, __bindgen_anon_1.fail_entry.hardware_entry_failure_reason),
            load!(self, __bindgen_anon_1.fail_entry.cpu),
        )
    }

    /// Linear RIP, DR6 and DR7 of a debug exit.
    pub fn debug(&self) -> (u64, u64, u64) {
        let arch = load!(self, __bindgen_anon_1.debug.arch);
        (arch.pc, arch.dr6, arch.dr7)
    }

    pub fn system_event(&self) -> u32 {
        load!(self, __bindgen_anon_1.system_event.type_)
    }

    pub fn eoi_vector(&self) -> u8 {
        load!(self, __bindgen_anon_1.eoi.vector)
    }

    /// Flags, gpa and size of a memory fault.
    pub fn memory_fault(&self) -> (u64, u64, u64) {
        (
            load!(self, __bindgen_anon_1.memory_fault.flags),
            load!(self, __bindgen_anon_1.memory_fault.gpa),
            load!(self, __bindgen_anon_1.memory_fault.size),
        )
    }

    /// Which register sets (`KVM_SYNC_X86_*`) the next exit copies into the page.
    pub fn set_valid_regs(&mut self, sets: u64) {
        store!(self, sets, kvm_valid_regs);
    }

    /// Which register sets the next entry takes from the page; the kernel clears it.
    pub fn set_dirty_regs(&mut self, sets: u64) {
        store!(self, sets, kvm_dirty_regs);
    }

    pub fn synced_regs(&self) -> kvm_regs {
        load!(self, s.regs.regs)
    }

    pub fn set_synced_regs(&mut self, regs: kvm_regs) {
        store!(self, regs, s.regs.regs);
    }

    pub fn synced_sregs(&self) -> kvm_sregs {
        load!(self, s.regs.sregs)
    }

    pub fn set_synced_sregs(&mut self, sregs: kvm_sregs) {
        store!(self, sregs, s.regs.sregs);
    }
}
