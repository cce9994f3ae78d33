//! Saving and restoring a local APIC.

use super::{LapicState, LocalApic, regs};
use crate::device::{BadState, Persist};
use crate::sync::lock;

impl Persist for LocalApic {
    type State = LapicState;

    /// The timer's end is saved as the time that is left, so that the state can go to another machine's clock.
    fn save(&self) -> LapicState {
        let now = self.now(0).ns;
        let mut state = lock(&self.chip).clone();
        state.timer.end = state.timer.end.map(|end| end.saturating_sub(now));
        state
    }

    fn restore(&self, state: &LapicState) -> Result<(), BadState> {
        check(state)?;
        let now = self.now(0).ns;
        self.change(|chip| {
            *chip = state.clone();
            chip.timer.end = state.timer.end.map(|left| left.saturating_add(now));
        });
        Ok(())
    }
}

fn check(state: &LapicState) -> Result<(), BadState> {
    let bad = |field, value: u64, expected| {
        Err(BadState {
            model: "lapic",
            field,
            value,
            expected,
        })
    };
    if state.base & (regs::BASE_ON | regs::BASE_X2APIC) == regs::BASE_X2APIC {
        return bad("base", state.base, "an x2APIC that is on");
    }
    if state.svr & !regs::SVR_WRITABLE != 0 {
        return bad("svr", state.svr.into(), "bits that can be written");
    }
    for (entry, writable) in state.lvt.into_iter().zip(regs::LVT_WRITABLE) {
        if entry & !writable != 0 {
            return bad("lvt", entry.into(), "bits that can be written");
        }
    }
    if state.timer.divide & !super::timer::Timer::DIVIDE_WRITABLE != 0 {
        return bad("timer.divide", state.timer.divide.into(), "bits that can be written");
    }
    Ok(())
}
