//! Whether an interrupt waits in the kernel's interrupt controllers for a vCPU that is not being run.
//!
//! The kernel tells the state of its local APIC, but not that the APIC's timer has expired while the vCPU was out: it enters
//! that into the registers only when the vCPU runs. So the timer's registers are looked at as well (SDM vol. 3A 11.5.4).

use super::vm::Irqchip;
use kvm_bindings::{KVM_IRQCHIP_PIC_MASTER, kvm_irqchip, kvm_lapic_state};

/// Offsets of registers (SDM vol. 3A table 11-1).
mod register {
    pub(super) const SPURIOUS: usize = 0xf0;
    pub(super) const REQUESTS: usize = 0x200;
    pub(super) const TIMER: usize = 0x320;
    pub(super) const LINT0: usize = 0x350;
    pub(super) const INITIAL_COUNT: usize = 0x380;
    pub(super) const CURRENT_COUNT: usize = 0x390;
}

const APIC_SOFTWARE_ENABLED: u32 = 1 << 8;
const MASKED: u32 = 1 << 16;
const DELIVERY_MODE: u32 = 7 << 8;
const EXTERNAL: u32 = 7 << 8;

/// What a local APIC's registers say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Apic {
    /// An interrupt is requested.
    pub requested: bool,
    /// Interrupts of the 8259s go to the CPU.
    pub takes_external: bool,
    pub timer: Timer,
}

/// What the local APIC's timer is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Timer {
    #[default]
    Off,
    /// Counts down once; so much is left.
    Once { left: u32 },
    /// Again and again.
    Periodic { left: u32 },
    /// Waits for a value of the time-stamp counter, which is in an MSR.
    Deadline,
}

impl Apic {
    pub fn of(state: &kvm_lapic_state) -> Self {
        let read = |at: usize| {
            let bytes = state.regs.get(at..at + 4).unwrap_or_default();
            bytes
                .iter()
                .rev()
                .fold(0, |word: u32, byte| word << 8 | u32::from(byte.cast_unsigned()))
        };
        let (timer, lint0) = (read(register::TIMER), read(register::LINT0));
        let enabled = read(register::SPURIOUS) & APIC_SOFTWARE_ENABLED != 0;
        let left = read(register::CURRENT_COUNT);
        let runs = timer & MASKED == 0 && read(register::INITIAL_COUNT) != 0;
        Self {
            requested: (0..8).any(|word| read(register::REQUESTS + 16 * word) != 0),
            takes_external: !enabled || (lint0 & MASKED == 0 && lint0 & DELIVERY_MODE == EXTERNAL),
            timer: match timer >> 17 & 3 {
                2 if timer & MASKED == 0 => Timer::Deadline,
                1 if runs => Timer::Periodic { left },
                0 if runs => Timer::Once { left },
                _ => Timer::Off,
            },
        }
    }
}

/// Whether the timer has expired since it was seen as `before`. A deadline is not seen here.
pub(super) fn has_expired(before: Timer, now: Timer) -> bool {
    match (before, now) {
        (Timer::Once { left: 0 }, Timer::Once { left: 0 }) => false,
        (_, Timer::Once { left }) => left == 0,
        (Timer::Periodic { left: before }, Timer::Periodic { left }) => left > before,
        _ => false,
    }
}

/// As what the timer is taken that is seen as `now` when the vCPU has just come out, and was last seen as `known`: one that
/// has counted down since may have done so after the vCPU came out, when nobody has entered its interrupt.
pub(super) fn on_coming_out(known: Timer, now: Timer) -> Timer {
    match now {
        Timer::Once { left: 0 } if known != now => Timer::Off,
        _ => now,
    }
}

/// Whether the first 8259 asks for the CPU, by what it has and masks.
pub(super) fn pic_asks(chip: &kvm_irqchip) -> bool {
    // SAFETY: the caller asked the kernel for this chip, which is of plain numbers.
    let pic = unsafe { chip.chip.pic };
    pic.irr & !pic.imr != 0
}

/// The chip to ask for, if the kernel has it.
pub(super) fn pic(irqchip: Irqchip) -> Option<kvm_irqchip> {
    (irqchip == Irqchip::Kernel).then(|| kvm_irqchip {
        chip_id: KVM_IRQCHIP_PIC_MASTER,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(words: &[(usize, u32)]) -> kvm_lapic_state {
        let mut state = kvm_lapic_state::default();
        for (at, word) in words {
            for (to, from) in state.regs[*at..].iter_mut().zip(word.to_le_bytes()) {
                *to = from.cast_signed();
            }
        }
        state
    }

    const ENABLED: (usize, u32) = (register::SPURIOUS, APIC_SOFTWARE_ENABLED);

    #[test]
    fn request_of_any_vector_is_seen() {
        let quiet = Apic::of(&state(&[ENABLED, (register::LINT0, MASKED)]));
        assert_eq!(
            (quiet.requested, quiet.takes_external, quiet.timer),
            (false, false, Timer::Off)
        );
        for word in 0..8 {
            assert!(Apic::of(&state(&[(register::REQUESTS + 16 * word, 1 << 31)])).requested);
        }
    }

    #[test]
    fn pic_is_heard_through_lint0_or_past_a_disabled_apic() {
        assert!(Apic::of(&state(&[ENABLED, (register::LINT0, EXTERNAL)])).takes_external);
        assert!(
            !Apic::of(&state(&[ENABLED, (register::LINT0, 4 << 8)])).takes_external,
            "an NMI"
        );
        assert!(Apic::of(&state(&[(register::LINT0, MASKED)])).takes_external);
    }

    #[test]
    fn expired_timer_is_seen_once() {
        let timer = |mode: u32, initial, left| {
            let words = [
                (register::TIMER, mode << 17),
                (register::INITIAL_COUNT, initial),
                (register::CURRENT_COUNT, left),
            ];
            Apic::of(&state(&words)).timer
        };
        let (half, done) = (timer(0, 100, 50), timer(0, 100, 0));
        assert!(!has_expired(half, timer(0, 100, 20)));
        assert!(has_expired(half, done));
        assert!(!has_expired(done, done), "that was delivered");
        let seen = on_coming_out(half, done);
        assert!(has_expired(seen, done), "perhaps while nobody looked");
        assert!(!has_expired(on_coming_out(done, done), done), "that was told before");
        assert_eq!(on_coming_out(done, half), half);
        assert!(!has_expired(timer(1, 100, 60), timer(1, 100, 5)));
        assert!(has_expired(timer(1, 100, 5), timer(1, 100, 60)), "and began again");
        assert_eq!(timer(0, 0, 0), Timer::Off);
        assert_eq!(timer(2, 0, 0), Timer::Deadline);
    }
}
