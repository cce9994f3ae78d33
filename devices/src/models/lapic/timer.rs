//! The local APIC's timer (SDM vol. 3A section 11.5.4). It counts nanoseconds, divided as the guest says.

/// Periods below this are lengthened, so that a guest can't have the host do nothing else.
const SHORTEST_PERIOD: u64 = 20_000;

/// What the timer does at its end; bits 18:17 of its local vector table entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimerMode {
    /// It stops.
    OneShot,
    /// It starts again.
    Periodic,
    /// It waits for a value of the time-stamp counter, once.
    Deadline,
}

impl TimerMode {
    /// The mode in an entry of the local vector table; the reserved one counts as a deadline, as nothing can be counted
    /// in it either.
    pub const fn of(entry: u32) -> Self {
        match entry >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            _ => Self::Deadline,
        }
    }
}

/// Registers and progress. Times are nanoseconds of the APIC's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Timer {
    /// Initial count.
    pub initial: u32,
    /// Divide configuration.
    pub divide: u32,
    /// When it is at its end, if it runs.
    pub end: Option<u64>,
    /// IA32_TSC_DEADLINE; 0 when it does not wait for one.
    pub deadline: u64,
}

impl Timer {
    /// What of the divide configuration can be written.
    pub const DIVIDE_WRITABLE: u32 = 0b1011;

    fn divisor(self) -> u64 {
        // Bits 3, 1 and 0; seven is one.
        let log = (self.divide >> 1 & 4 | self.divide & 3) + 1;
        1 << (log & 7)
    }

    fn period(self) -> u64 {
        u64::from(self.initial) * self.divisor()
    }

    /// Starts with this count; stops with 0.
    pub fn start(&mut self, count: u32, mode: TimerMode, now: u64) {
        if mode != TimerMode::Deadline {
            self.initial = count;
            self.end = (count != 0).then(|| now.saturating_add(self.period()));
        }
    }

    /// The present count.
    pub fn current(&self, mode: TimerMode, now: u64) -> u32 {
        match self.end {
            Some(end) if mode != TimerMode::Deadline => {
                let left = end.saturating_sub(now).div_ceil(self.divisor());
                u32::try_from(left).unwrap_or(u32::MAX)
            }
            _ => 0,
        }
    }

    /// Changes the divisor; the count goes on from where it is.
    pub fn set_divide(&mut self, divide: u32, mode: TimerMode, now: u64) {
        let count = self.current(mode, now);
        self.divide = divide & Self::DIVIDE_WRITABLE;
        if self.end.is_some() && mode != TimerMode::Deadline {
            self.end = Some(now.saturating_add(u64::from(count) * self.divisor()));
        }
    }

    /// The mode changes: to a deadline or from one, the timer stops.
    pub fn change_mode(&mut self, from: TimerMode, to: TimerMode) {
        if from != to && (from == TimerMode::Deadline || to == TimerMode::Deadline) {
            self.end = None;
            self.deadline = 0;
        }
    }

    /// Waits until the time-stamp counter, now `tsc` and `hz` per second, is `deadline`; for nothing if that is 0.
    pub fn set_deadline(&mut self, deadline: u64, tsc: u64, hz: u64, now: u64) {
        self.deadline = deadline;
        let ticks = u128::from(deadline.saturating_sub(tsc));
        let wait = ticks * 1_000_000_000 / u128::from(hz.max(1));
        let wait = u64::try_from(wait).unwrap_or(u64::MAX);
        self.end = (deadline != 0).then(|| now.saturating_add(wait));
    }

    /// Whether it has come to its end since the last time.
    pub fn tick(&mut self, mode: TimerMode, now: u64) -> bool {
        let Some(end) = self.end.filter(|end| *end <= now) else {
            return false;
        };
        self.deadline = 0;
        self.end = (mode == TimerMode::Periodic && self.initial != 0).then(|| {
            // Ends that were missed are one.
            let period = self.period();
            let missed = (now - end) / period;
            let next = end.saturating_add(missed.saturating_add(1).saturating_mul(period));
            if period < SHORTEST_PERIOD {
                next.max(now.saturating_add(SHORTEST_PERIOD))
            } else {
                next
            }
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisors_are_the_manuals() {
        for (bits, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
            let timer = Timer {
                divide: bits,
                ..Timer::default()
            };
            assert_eq!(timer.divisor(), divisor, "{bits:#b}");
        }
    }

    #[test]
    fn one_shot_counts_down_and_stops() {
        let mut timer = Timer {
            divide: 0b1001,
            ..Timer::default()
        };
        let mode = TimerMode::OneShot;
        timer.start(1000, mode, 500);
        assert_eq!(timer.current(mode, 500 + 64 * 400), 600);
        assert!(!timer.tick(mode, 500 + 64_000 - 1));
        assert!(timer.tick(mode, 500 + 64_000));
        assert!(!timer.tick(mode, u64::MAX));
        assert_eq!(timer.current(mode, 1 << 40), 0);
    }

    #[test]
    fn periodic_keeps_its_beat_and_missed_ends_are_one() {
        let mut timer = Timer {
            divide: 0b1011,
            ..Timer::default()
        };
        let mode = TimerMode::Periodic;
        timer.start(100_000, mode, 0);
        assert!(timer.tick(mode, 100_010));
        assert_eq!(timer.end, Some(200_000));
        assert!(timer.tick(mode, 730_000));
        assert_eq!(timer.end, Some(800_000));
        timer.start(1, mode, 0);
        assert!(timer.tick(mode, 10));
        assert_eq!(timer.end, Some(10 + SHORTEST_PERIOD));
        timer.start(0, mode, 20);
        assert!(!timer.tick(mode, 1 << 40));
    }

    #[test]
    fn deadline_in_the_past_is_now_and_zero_is_never() {
        let mut timer = Timer::default();
        timer.set_deadline(3_000, 1_000, 2_000_000_000, 50);
        assert_eq!(timer.end, Some(1_050));
        timer.set_deadline(1, 1_000, 2_000_000_000, 50);
        assert!(timer.tick(TimerMode::Deadline, 50));
        assert_eq!(timer.deadline, 0);
        timer.set_deadline(0, 1_000, 2_000_000_000, 50);
        assert_eq!(timer.end, None);
    }

    #[test]
    fn change_of_divisor_keeps_the_count_and_of_mode_stops() {
        let mut timer = Timer {
            divide: 0b1011,
            ..Timer::default()
        };
        timer.start(1000, TimerMode::OneShot, 0);
        timer.set_divide(0, TimerMode::OneShot, 400);
        assert_eq!(timer.current(TimerMode::OneShot, 400), 600);
        assert_eq!(timer.end, Some(400 + 1200));
        timer.change_mode(TimerMode::OneShot, TimerMode::Periodic);
        assert!(timer.end.is_some());
        timer.change_mode(TimerMode::Periodic, TimerMode::Deadline);
        assert_eq!(timer.end, None);
    }
}
