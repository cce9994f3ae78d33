//! The paravirtual clock that Linux knows as kvmclock: the guest learns how fast the time-stamp counter runs, and what
//! time it was when the machine started, without calibrating anything (Linux `Documentation/virt/kvm/x86/msr.rst`).
//!
//! Here the counter counts nanoseconds, so what is written once stays true until the guest moves its counter.

use std::time::Duration;
use umbra_memslots::Gpa;

/// Where the guest wants the wall clock: `MSR_KVM_WALL_CLOCK_NEW`.
pub(super) const WALL_CLOCK: u32 = 0x4b56_4d00;
/// Where this vCPU's clock is kept: `MSR_KVM_SYSTEM_TIME_NEW`. Bit 0 switches it on.
pub(super) const SYSTEM_TIME: u32 = 0x4b56_4d01;
/// CPUID leaf 0x40000001 EAX: the two MSRs, a clock that is the same on all vCPUs, and no need for delays after port
/// accesses.
pub(super) const FEATURES: u32 = 1 << 3 | 1 << 24 | 1 << 1;
/// The hypervisor's signature in leaf 0x40000000 that goes with them: EBX, ECX, EDX.
pub(super) const SIGNATURE: [u8; 12] = *b"KVMKVMKVM\0\0\0";

/// Bytes of a `pvclock_vcpu_time_info`.
pub(super) const BYTES: usize = 32;
/// All vCPUs see the same time (`PVCLOCK_TSC_STABLE_BIT`).
const STABLE: u8 = 1;
/// Time is `(tsc << SHIFT) * MULTIPLIER >> 32`, which is the counter itself.
const SHIFT: i8 = 1;
const MULTIPLIER: u32 = 1 << 31;

/// Where a write to [`SYSTEM_TIME`] wants the clock, if anywhere.
pub(super) fn place(value: u64) -> Option<Gpa> {
    (value & 1 != 0).then(|| Gpa::new(value & !3))
}

/// A `pvclock_vcpu_time_info`: when the guest's counter stands at `tsc`, the machine has run for `age`.
pub(super) fn system_time(tsc: u64, age: Duration) -> [u8; BYTES] {
    let nanoseconds = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
    let mut info = [0; BYTES];
    // Version 2: an even one, which means that nobody is writing.
    info[0] = 2;
    info[8..16].copy_from_slice(&tsc.to_le_bytes());
    info[16..24].copy_from_slice(&nanoseconds.to_le_bytes());
    info[24..28].copy_from_slice(&MULTIPLIER.to_le_bytes());
    info[28] = SHIFT.to_le_bytes()[0];
    info[29] = STABLE;
    info
}

/// A `pvclock_wall_clock`: the time of day when the machine, which has run for `age` now, was started. It is `since_1970`
/// now.
pub(super) fn wall_clock(since_1970: Duration, age: Duration) -> [u8; 12] {
    let start = since_1970.saturating_sub(age);
    let seconds = u32::try_from(start.as_secs()).unwrap_or(u32::MAX);
    let mut clock = [0; 12];
    clock[0] = 2;
    clock[4..8].copy_from_slice(&seconds.to_le_bytes());
    clock[8..].copy_from_slice(&start.subsec_nanos().to_le_bytes());
    clock
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `pvclock.rst` has it.
    fn guest_reads(info: [u8; BYTES], tsc: u64) -> u64 {
        let word = |at: usize| u64::from_le_bytes(info[at..at + 8].try_into().unwrap_or_default());
        let delta = tsc.wrapping_sub(word(8));
        let shifted = delta << info[28];
        let scaled = (u128::from(shifted) * u128::from(word(24) & 0xffff_ffff)) >> 32;
        word(16) + u64::try_from(scaled).unwrap_or(u64::MAX)
    }

    #[test]
    fn guest_time_is_the_age_of_the_machine() {
        let info = system_time(5_000, Duration::from_nanos(123));
        for later in [0, 1, 999_999_999, 1 << 40] {
            assert_eq!(guest_reads(info, 5_000 + later), 123 + later);
        }
    }

    #[test]
    fn wall_clock_is_the_start_of_the_machine() {
        let now = Duration::new(1_700_000_000, 500);
        let clock = wall_clock(now, Duration::new(10, 400));
        assert_eq!(clock[4..8], 1_699_999_990u32.to_le_bytes());
        assert_eq!(clock[8..], 100u32.to_le_bytes());
    }

    #[test]
    fn clock_that_is_switched_off_has_no_place() {
        assert_eq!(place(0x1000), None);
        assert_eq!(place(0x1041), Some(Gpa::new(0x1040)));
    }
}
