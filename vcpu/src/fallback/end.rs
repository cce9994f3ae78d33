//! How a stretch in software ends ([`End`]), and how an instruction of it does ([`After`]).

use super::policy::Executed;
use crate::emulate::Request;

/// Why the core stops.
pub(super) enum End {
    /// The backend is to go on.
    GiveBack(GoOn),
    /// The backend is to go on, with its registers as they were.
    RunAgain,
    /// A request is to be answered; the core goes on then.
    Wait(Request),
    /// Somebody is in the way of an instruction that has begun; the core goes on with it in the next run.
    Interrupted,
    /// The vCPU waits for an interrupt.
    Halted,
    /// It has shut down.
    Shutdown,
    /// The core doesn't know the instruction either; the backend's registers are as they were.
    Unknown,
}

/// With what the backend goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum GoOn {
    /// With user code, or with a wait for an interrupt.
    Run,
    /// With an instruction or an interrupt that is its own to handle.
    Step,
}

/// What became of one instruction.
pub(super) enum After {
    Executed(Executed),
    /// Nothing: another CPU or a change of slots was in the way. The same is to be tried again.
    Contended,
    End(End),
}
