//! [`Turn`]: what a software CPU has more if its time is counted and it takes turns with others.

use super::signals::Signals;
use super::vcpu::SoftVcpu;
use super::world::World;
use crate::emulate::Exception;
use crate::turns::{Bell, CountedVcpu, Delivery};
use std::sync::Arc;
use std::time::Duration;
use umbra_devices::ManualClock;

/// The clock that this vCPU's instructions move, and what is told to whoever keeps the turns.
pub(super) struct Turn {
    clock: Arc<ManualClock>,
    /// How many of this vCPU's instructions the clock knows of.
    told: u64,
    signals: Arc<Signals>,
    /// Whether there are others who would have a turn.
    others: bool,
    gave_way: bool,
    /// Whether somebody takes them.
    joined: bool,
    deliveries: Vec<Delivery>,
}

/// Deliveries that are kept before it comes out.
const KEPT: usize = 1024;

impl Turn {
    /// Of a vCPU that has executed nothing yet.
    pub fn new(clock: Arc<ManualClock>, signals: Arc<Signals>) -> Self {
        Self {
            clock,
            told: 0,
            signals,
            others: false,
            gave_way: false,
            joined: false,
            deliveries: Vec::new(),
        }
    }

    /// The guest says that it waits for another vCPU.
    pub fn give_way(&mut self) {
        if self.others {
            self.gave_way = true;
            self.signals.kick();
        }
    }
}

impl World {
    /// Moves the clock to where [`World::now`] says.
    pub fn keep_clock(&mut self) {
        if let Some(turn) = &mut self.turn {
            let more = self.now.saturating_sub(std::mem::replace(&mut turn.told, self.now));
            turn.clock.advance(Duration::from_nanos(more));
        }
    }

    /// Notes that `delivery` begins when so many instructions are executed.
    #[inline]
    pub fn delivers(&mut self, executed: u64, delivery: impl FnOnce() -> crate::turns::Delivered) {
        if let Some(turn) = self.turn.as_mut().filter(|turn| turn.joined) {
            turn.deliveries.push(Delivery {
                executed,
                what: delivery(),
            });
            if turn.deliveries.len() >= KEPT {
                turn.signals.kick();
            }
        }
    }
}

impl From<Exception> for crate::turns::Delivered {
    fn from(exception: Exception) -> Self {
        Self::Exception {
            vector: exception.vector,
            error_code: exception.error_code,
            address: exception.cr2,
        }
    }
}

impl CountedVcpu for SoftVcpu {
    fn executed(&self) -> u64 {
        Self::executed(self)
    }

    fn stop_after(&mut self, instructions: u64) {
        Self::stop_after(self, instructions);
    }

    fn rests(&self) -> bool {
        self.waits() && !self.is_woken()
    }

    fn gives_way(&mut self) -> bool {
        let turn = self.turn();
        turn.is_some_and(|turn| std::mem::take(&mut turn.gave_way))
    }

    fn was_kicked(&mut self) -> bool {
        self.signals().take_answered()
    }

    fn take_deliveries(&mut self, take: &mut dyn FnMut(Delivery)) {
        if let Some(turn) = self.turn() {
            turn.deliveries.drain(..).for_each(take);
        }
    }

    fn join(&mut self, bell: &Bell, others: bool) {
        self.signals().set_bell(bell);
        if let Some(turn) = self.turn() {
            turn.joined = true;
            turn.others = others;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::VcpuBackend;
    use crate::soft::{SoftOptions, SoftVm};
    use umbra_memslots::{GuestRam, SlotLimits};

    #[test]
    fn vcpu_that_has_taken_turns_leaves_nothing_behind() {
        let clock = Arc::new(ManualClock::default());
        let vm = SoftVm::in_turns(SoftOptions { mmio_caching: true }, clock).unwrap();
        let mut vcpu = vm.create_vcpu(GuestRam::new(SlotLimits::X86_64).reader());
        let bell = Bell::new();
        vcpu.join(&bell, false);
        bell.set_kicks(Box::new([vcpu.kick_handle()]));
        let signals = Arc::downgrade(&vcpu.signals);
        drop(vcpu);
        assert!(signals.upgrade().is_some(), "the bell kicks it");
        drop(bell);
        assert!(signals.upgrade().is_none());
    }
}
