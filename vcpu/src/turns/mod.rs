//! A machine that does the same each time: all its vCPUs on one thread, one after the other, each for a number of
//! instructions, and time that is nothing but their count.
//!
//! A nanosecond passes with each instruction that any of them executes. A vCPU's turn ends when its quantum is used up,
//! when it rests in `hlt`, and when it says by `pause` that it waits for another. Timers ([`Alarms`]) go off between the
//! very two instructions at which they are due. When all vCPUs rest, time jumps to the next alarm. So what the guest does
//! is a function of its memory, its input and the quantum, and a [`Trace`] of it can be compared with another run's.
//!
//! Read in this order: here, [`bell`] (how the thread is woken, and the present turn cut short), [`trace`], `schedule`.

pub mod bell;
mod schedule;
pub mod trace;

pub use bell::Bell;
pub(crate) use bell::WeakBell;
pub(crate) use schedule::Turns;
pub use schedule::{Idle, TurnOptions};
pub use trace::{SharedTrace, Trace, TraceSummary};

use crate::backend::VcpuBackend;
use std::time::Duration;
use umbra_devices::models::lapic::CpuEvent;
use umbra_memslots::Gva;

/// A vCPU that counts what it executes. With each instruction it moves the machine's [`umbra_devices::ManualClock`] by a
/// nanosecond; the clock is right whenever a device is asked, and between two runs.
pub trait CountedVcpu: VcpuBackend {
    /// Instructions executed so far, of its own kind of counting; what matters is that it is always the same.
    fn executed(&self) -> u64;

    /// Has it come out as [`crate::exit::VmExit::Interrupted`] once so many more are executed. Where exactly depends on
    /// what the guest executes and on nothing else.
    fn stop_after(&mut self, instructions: u64);

    /// Whether it waits for an interrupt, and there is none: to run it would do nothing.
    fn rests(&self) -> bool;

    /// Whether the guest has said since the last time that it waits for another vCPU. It comes out when it says so.
    fn gives_way(&mut self) -> bool;

    /// Whether a kick has made it come out since the last time.
    fn was_kicked(&mut self) -> bool;

    /// Gives what was delivered since the last time, in order.
    fn take_deliveries(&mut self, take: &mut dyn FnMut(Delivery));

    /// It takes turns from now on, perhaps with `others`. `bell` is to ring when it is kicked and when an interrupt
    /// reaches it; it no longer sleeps in `hlt`, but comes out.
    fn join(&mut self, bell: &Bell, others: bool);
}

/// An interrupt or an exception, and when it came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delivery {
    /// Instructions that the vCPU had executed.
    pub executed: u64,
    /// What it was.
    pub what: Delivered,
}

/// What a vCPU was interrupted by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivered {
    /// An interrupt with this vector.
    Interrupt(u8),
    /// INIT, a start-up interrupt or an NMI.
    Event(CpuEvent),
    /// An exception.
    Exception {
        /// Its vector.
        vector: u8,
        /// Its error code, if it has one.
        error_code: Option<u32>,
        /// The faulting address of #PF.
        address: Option<Gva>,
    },
}

/// The timers of a machine, and whatever else happens at a time.
pub trait Alarms: Send + Sync {
    /// Does what is due, and says how long it is until there is more to do; `None`: nothing is set. Whoever sets something
    /// to happen earlier tells [`Bell::alarm_is_set`].
    ///
    /// It is called at the same moments in each run: between turns, when an alarm is due and after one was set.
    fn tick(&self) -> Option<Duration>;
}
