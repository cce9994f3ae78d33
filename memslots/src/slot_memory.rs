//! [`GuestMemory`] for a snapshot of slots.

use crate::addr::Gpa;
use crate::guest_memory::{EntrySize, Exchange, GuestMemory, MemoryFault};
use crate::host_access::HostRun;
use crate::snapshot::Memslots;

/// What an access wants to do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

impl Memslots {
    /// The bytes that are at `gpa` and can be had in one run, `bytes` at most.
    fn run(&self, gpa: Gpa, bytes: usize, access: Access) -> Result<HostRun<'_>, MemoryFault> {
        let slot = self.find_gpa(gpa).ok_or(MemoryFault::NoSlot { gpa })?;
        if slot.is_invalid() {
            return Err(MemoryFault::BeingRemoved { gpa });
        }
        if access == Access::Write && slot.is_read_only() {
            return Err(MemoryFault::ReadOnly { gpa });
        }
        HostRun::new(slot, gpa, bytes).ok_or(MemoryFault::NotMapped { gpa })
    }

    /// Calls `each` with the runs that make up the access, after making sure that all of them are there. `each` gets
    /// the run and where in the access it starts.
    fn for_each_run(
        &self,
        gpa: Gpa,
        bytes: usize,
        access: Access,
        mut each: impl FnMut(&HostRun<'_>, usize),
    ) -> Result<(), MemoryFault> {
        if bytes == 0 {
            return Ok(());
        }
        let first = self.run(gpa, bytes, access)?;
        let mut known = first.len();
        while known < bytes {
            known += self.next_run(gpa, known, bytes, access)?.len();
        }
        each(&first, 0);
        let mut done = first.len();
        while done < bytes {
            let run = self.next_run(gpa, done, bytes, access)?;
            each(&run, done);
            done += run.len();
        }
        Ok(())
    }

    /// The run that continues an access of which `done` bytes are covered.
    fn next_run(&self, gpa: Gpa, done: usize, bytes: usize, access: Access) -> Result<HostRun<'_>, MemoryFault> {
        let past_end = |end| MemoryFault::CrossesSlotEnd {
            gpa,
            bytes: bytes as u64,
            end,
        };
        // A slot never reaches the last page of the 64-bit space, so there always is a next address.
        let next = gpa.checked_add(done as u64).ok_or(past_end(Gpa::new(u64::MAX)))?;
        self.run(next, bytes - done, access).map_err(|fault| match fault {
            MemoryFault::NoSlot { gpa } => past_end(gpa),
            other => other,
        })
    }

    fn entry(&self, gpa: Gpa, size: EntrySize, access: Access) -> Result<HostRun<'_>, MemoryFault> {
        if !gpa.get().is_multiple_of(size.bytes()) {
            return Err(MemoryFault::Unaligned { gpa, size });
        }
        self.run(gpa, 8, access)
    }
}

impl GuestMemory for Memslots {
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), MemoryFault> {
        self.for_each_run(gpa, buffer.len(), Access::Read, |run, at| {
            run.copy_to(&mut buffer[at..at + run.len()]);
        })
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), MemoryFault> {
        self.for_each_run(gpa, data.len(), Access::Write, |run, at| {
            run.copy_from(&data[at..at + run.len()]);
        })
    }

    fn read_entry(&self, gpa: Gpa, size: EntrySize) -> Result<u64, MemoryFault> {
        self.entry(gpa, size, Access::Read)?
            .load_entry(size)
            .ok_or(MemoryFault::Unaligned { gpa, size })
    }

    fn compare_exchange_entry(
        &self,
        gpa: Gpa,
        size: EntrySize,
        current: u64,
        new: u64,
    ) -> Result<Exchange, MemoryFault> {
        let run = self.entry(gpa, size, Access::Write)?;
        run.exchange_entry(size, current, new)
            .ok_or(MemoryFault::Unaligned { gpa, size })
    }
}
