//! How long a guest stays in software once its backend couldn't execute an instruction: a state machine without a clock or
//! a CPU of its own.
//!
//! A change of sides costs as much as some thousand instructions in software. So after a failure the core goes on for as
//! long as it was wrong to give back before: [`Policy`] keeps a *patience*, the number of instructions that the core
//! executes without meeting one of those that the backend failed at. If the backend fails again soon after it got the guest
//! back, leaving was a mistake and the patience grows; if it then runs the guest for long, the patience shrinks. A failure
//! now and then has a patience of nothing: the one instruction is executed, as without a policy.
//!
//! A backend that emulates the guest's kernel mode itself, and slower than the core does ([`Policy::of_emulator`]), gets
//! nothing back that it is bad at: there the patience is always the most, and what is the backend's own to do in kernel mode
//! it does in single steps ([`super::EmulationHost::single_step`]).
//!
//! Whatever the patience, the guest is given back ([`HandBack`]) when it comes to user code, which a backend can run if it
//! can run anything, and when it is about to wait for an interrupt. Interrupts are the backend's to deliver: while the guest
//! takes them, the backend is asked every [`ASK`] whether one waits. After [`LONGEST`] it is given the guest anyway, also one
//! that shuts interrupts out: an NMI or INIT may wait.

use std::time::Duration;

/// A failure so soon after the guest was given back makes the patience grow.
const SOON: Duration = Duration::from_millis(2);
/// A failure so long after that makes it shrink.
const LATE: Duration = Duration::from_millis(20);
/// The patience after the second failure of a row.
const FIRST: u32 = 64;
/// Patience is multiplied or divided by this.
const STEP: u32 = 8;
/// Most patience, in instructions.
const MOST: u32 = FIRST * STEP * STEP * STEP;
/// While the guest takes interrupts, the backend is asked for them this often.
pub const ASK: Duration = Duration::from_micros(250);
/// The guest is given back after this time, whatever it takes and the backend knows.
pub const LONGEST: Duration = Duration::from_millis(20);
/// Instructions between two looks at the clock.
const LOOK: u32 = 64;

/// What was learnt from the failures so far. Times are those of any clock that runs evenly.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Policy {
    patience: u32,
    least: u32,
    given_back: Option<Duration>,
}

/// Instructions that are executed in software in a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stretch {
    patience: u32,
    began: Duration,
    /// When the backend was asked for interrupts.
    asked: Duration,
    executed: u64,
    /// Instructions since one at which the backend failed.
    idle: u32,
    /// Instructions until the clock is looked at.
    look: u32,
    /// Whether the guest took interrupts after the instruction before.
    open: bool,
}

/// What the policy has to know of an instruction that was executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Executed {
    /// It is one that the backend has failed at.
    pub failing: bool,
    /// The next one is at privilege level 3.
    pub user: bool,
    /// Interrupts are taken before the next one.
    pub open: bool,
}

/// Why the guest is given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HandBack {
    /// It came to user code.
    User,
    /// It has not needed the core for long.
    Left,
    /// An interrupt waits, or may.
    Interrupts,
}

/// What the policy asks while it thinks.
pub trait Ask {
    /// The time, on the clock of [`Policy::failed`].
    fn now(&self) -> Duration;

    /// Whether an interrupt that the guest would take may wait in the backend.
    fn interrupt_waits(&mut self) -> bool;
}

impl Policy {
    /// For a backend that is slower than the core at what user code is not.
    pub fn of_emulator() -> Self {
        Self {
            patience: MOST,
            least: MOST,
            given_back: None,
        }
    }

    /// The backend failed, at this time: the stretch that begins with that instruction.
    pub fn failed(&mut self, now: Duration) -> Stretch {
        if let Some(given_back) = self.given_back {
            let alone = now.saturating_sub(given_back);
            if alone < SOON {
                self.patience = (self.patience * STEP).clamp(FIRST, MOST);
            } else if alone > LATE {
                self.patience = if self.patience > FIRST { self.patience / STEP } else { 0 }.max(self.least);
            }
        }
        Stretch {
            patience: self.patience,
            began: now,
            asked: now,
            executed: 0,
            idle: 0,
            look: LOOK,
            open: false,
        }
    }

    /// The backend has the guest back since this time.
    pub fn given_back(&mut self, now: Duration) {
        self.given_back = Some(now);
    }
}

impl Stretch {
    /// Only the one instruction, whatever was learnt.
    #[must_use]
    pub fn of_one(self) -> Self {
        Self { patience: 0, ..self }
    }

    /// Whether more than one instruction may be executed.
    pub fn has_patience(&self) -> bool {
        self.patience > 0
    }

    /// Instructions executed so far.
    pub fn instructions(&self) -> u64 {
        self.executed
    }

    /// Takes note of an executed instruction. `Some`: the guest is given back now.
    pub fn executed(&mut self, what: Executed, ask: &mut impl Ask) -> Option<HandBack> {
        self.executed += 1;
        // The first is the one at which it failed, so that idleness begins after it.
        self.idle = if what.failing { 0 } else { self.idle + 1 };
        if what.user {
            return Some(HandBack::User);
        }
        if self.idle >= self.patience {
            return Some(HandBack::Left);
        }
        self.look = self.look.saturating_sub(1);
        let opened = what.open && !self.open;
        self.open = what.open;
        if opened || self.look == 0 {
            self.look = LOOK;
            if self.is_interrupted(what.open, ask) {
                return Some(HandBack::Interrupts);
            }
        }
        None
    }

    fn is_interrupted(&mut self, open: bool, ask: &mut impl Ask) -> bool {
        let now = ask.now();
        if now.saturating_sub(self.began) >= LONGEST {
            return true;
        }
        if !open || now.saturating_sub(self.asked) < ASK {
            return false;
        }
        self.asked = now;
        ask.interrupt_waits()
    }

    /// Whether it is time to look at other things that may end a stretch.
    pub fn looks(&self) -> bool {
        self.look == LOOK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Executed = Executed {
        failing: false,
        user: false,
        open: false,
    };
    const FAILING: Executed = Executed { failing: true, ..PLAIN };
    const OPEN: Executed = Executed { open: true, ..PLAIN };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A clock that stands, and a backend that has an interrupt or not.
    struct At(Duration, bool);

    impl Ask for At {
        fn now(&self) -> Duration {
            self.0
        }

        fn interrupt_waits(&mut self) -> bool {
            self.1
        }
    }

    /// Failures at these gaps after the guest was given back: the patience of the last stretch.
    fn patience(gaps: &[Duration]) -> u32 {
        let mut policy = Policy::default();
        let mut now = ms(1000);
        let mut last = policy.failed(now);
        for gap in gaps {
            policy.given_back(now);
            now += *gap;
            last = policy.failed(now);
        }
        last.patience
    }

    /// Nobody is to be asked.
    struct Never;

    impl Ask for Never {
        fn now(&self) -> Duration {
            panic!("the clock is not to be looked at")
        }

        fn interrupt_waits(&mut self) -> bool {
            panic!("the backend is not to be asked")
        }
    }

    #[test]
    fn first_failure_is_one_instruction() {
        let mut stretch = Policy::default().failed(ms(0));
        assert!(!stretch.has_patience());
        assert_eq!(stretch.executed(FAILING, &mut Never), Some(HandBack::Left));
        assert_eq!(stretch.instructions(), 1);
    }

    #[test]
    fn rare_failures_stay_one_instruction_each() {
        assert_eq!(patience(&[ms(500); 20]), 0);
        assert_eq!(patience(&[ms(10); 20]), 0, "neither soon nor late");
    }

    #[test]
    fn patience_grows_with_failures_in_a_row_up_to_a_bound() {
        let growth: Vec<_> = (1..=5).map(|failures| patience(&vec![ms(1); failures])).collect();
        assert_eq!(growth, [64, 512, 4096, 32_768, 32_768]);
    }

    #[test]
    fn patience_shrinks_step_by_step_when_the_backend_runs_long() {
        let shrink: Vec<_> = (0..=4)
            .map(|late| {
                let mut gaps = vec![ms(1); 4];
                gaps.extend(vec![ms(50); late]);
                patience(&gaps)
            })
            .collect();
        assert_eq!(shrink, [32_768, 4096, 512, 64, 0]);
        assert_eq!(patience(&[ms(1), ms(1), ms(10)]), 512, "in between it stays");
    }

    #[test]
    fn an_emulator_gets_the_guest_back_late_from_the_first_failure_on() {
        let mut policy = Policy::of_emulator();
        for failure in 0..10 {
            let now = ms(100 * failure);
            assert_eq!(policy.failed(now).patience, MOST);
            policy.given_back(now);
        }
    }

    #[test]
    fn failing_instructions_keep_the_guest_in_software() {
        let mut policy = Policy::default();
        policy.failed(ms(0));
        policy.given_back(ms(0));
        let mut stretch = policy.failed(ms(0));
        assert_eq!(stretch.patience, FIRST);
        let mut early = At(Duration::ZERO, true);
        for _ in 0..100 {
            assert_eq!(stretch.executed(FAILING, &mut early), None);
            for _ in 1..FIRST {
                assert_eq!(stretch.executed(PLAIN, &mut early), None);
            }
        }
        assert_eq!(stretch.executed(PLAIN, &mut early), Some(HandBack::Left));
        assert_eq!(stretch.instructions(), 100 * u64::from(FIRST) + 1);
    }

    fn patient() -> Stretch {
        Policy::of_emulator().failed(ms(0))
    }

    #[test]
    fn user_code_is_given_back_at_once() {
        let mut stretch = patient();
        assert_eq!(stretch.executed(FAILING, &mut Never), None);
        let user = Executed { user: true, ..PLAIN };
        assert_eq!(stretch.executed(user, &mut Never), Some(HandBack::User));
    }

    #[test]
    fn an_interrupt_that_waits_is_let_in_when_the_guest_takes_it() {
        let mut stretch = patient();
        for _ in 0..1000 {
            let closed = stretch.executed(PLAIN, &mut At(2 * ASK, true));
            assert_eq!(closed, None, "the guest shuts it out");
        }
        let mut stretch = patient();
        let waits = Some(HandBack::Interrupts);
        assert_eq!(stretch.executed(OPEN, &mut At(ASK, true)), waits);
        let mut stretch = patient();
        assert_eq!(stretch.executed(OPEN, &mut At(ASK, false)), None);
        let soon = (1..).find(|_| stretch.executed(OPEN, &mut At(2 * ASK, true)) == waits);
        assert_eq!(
            soon,
            Some(i32::try_from(LOOK).unwrap()),
            "not asked at each instruction"
        );
    }

    #[test]
    fn the_backend_is_not_asked_all_the_time_but_gets_the_guest_in_the_end() {
        let mut stretch = patient();
        for _ in 0..10 * LOOK {
            assert_eq!(stretch.executed(OPEN, &mut At(ASK / 2, true)), None);
        }
        let mut stretch = patient();
        assert_eq!(
            stretch.executed(OPEN, &mut At(LONGEST, false)),
            Some(HandBack::Interrupts)
        );
    }

    #[test]
    fn guest_that_shuts_interrupts_out_is_let_go_in_the_end() {
        let mut stretch = patient();
        let mut late = At(LONGEST, false);
        let given_back = (1..).find(|_| stretch.executed(PLAIN, &mut late) == Some(HandBack::Interrupts));
        assert_eq!(given_back, Some(LOOK));
    }

    #[test]
    fn one_instruction_can_be_demanded() {
        let mut stretch = patient().of_one();
        assert_eq!(stretch.executed(FAILING, &mut Never), Some(HandBack::Left));
    }
}
