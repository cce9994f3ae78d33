//! MXCSR: what it makes of an operation, and what an operation leaves in it (SDM vol. 1 sections 10.2.3, 11.5).

use super::super::Cpu;
use super::super::environment::{Memory, Platform, Stop};
use super::super::exception::{self, Exception};
use super::super::float::{Env, Mode, flag};
use super::super::state::cr4;

/// Denormals are zeros.
const DAZ: u32 = 1 << 6;
/// Flush to zero.
const FTZ: u32 = 1 << 15;

impl<E: Memory + Platform> Cpu<E> {
    /// An environment as MXCSR says.
    pub(super) fn sse_env(&self) -> Env {
        let mxcsr = self.state.fpu.mxcsr;
        Env {
            mode: Mode::of(mxcsr >> 13),
            masks: (mxcsr >> 7) as u16 & flag::ALL,
            daz: mxcsr & DAZ != 0,
            ftz: mxcsr & FTZ != 0,
            x87: false,
            flags: 0,
        }
    }

    /// Takes over the flags that an instruction raised. One that is not masked is an exception: the flags stay, and
    /// nothing else happens.
    pub(super) fn sse_flags(&mut self, env: &Env) -> Result<(), Stop> {
        let mut flags = env.flags & flag::ALL;
        let unmasked = flags & !env.masks;
        if unmasked & flag::BEFORE != 0 {
            // Nothing was computed in any lane.
            flags &= flag::BEFORE;
        }
        self.state.fpu.mxcsr |= u32::from(flags);
        if unmasked == 0 {
            return Ok(());
        }
        let reported = self.state.sys.cr4 & cr4::OSXMMEXCPT != 0;
        Err(if reported {
            Exception::new(exception::XM).into()
        } else {
            Exception::UD.into()
        })
    }
}
