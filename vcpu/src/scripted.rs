//! A vCPU that plays a list: exits go in, entries are recorded, and the list must be used up.

use crate::backend::{BackendError, Kick, VcpuBackend};
use crate::exit::{VmEntry, VmExit};
use crate::regs::{Regs, SystemRegs};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A [`VcpuBackend`] without a CPU.
///
/// Each run checks that the entry answers the exit before, records it, and plays the next step. A kick is seen as
/// [`VmExit::Interrupted`] by the next run, before the script goes on.
///
/// # Panics
/// Dropping it while steps are left panics (unless the thread panics already): a test that ends early is a test that
/// did not test.
#[derive(Default)]
pub struct ScriptedVcpu {
    steps: VecDeque<Step>,
    last: Option<VmExit>,
    entries: Vec<VmEntry>,
    kicked: Arc<Flag>,
    /// What [`VcpuBackend::regs`] answers.
    pub regs: Regs,
    /// What [`VcpuBackend::system_regs`] answers.
    pub system_regs: SystemRegs,
}

enum Step {
    Exit(VmExit),
    Fail(BackendError),
    Call(Box<dyn FnOnce() + Send>),
}

#[derive(Default)]
struct Flag(AtomicBool);

impl ScriptedVcpu {
    /// A script of exits.
    pub fn new(exits: impl IntoIterator<Item = VmExit>) -> Self {
        exits.into_iter().fold(Self::default(), Self::then)
    }

    /// Adds an exit.
    #[must_use]
    pub fn then(mut self, exit: VmExit) -> Self {
        self.steps.push_back(Step::Exit(exit));
        self
    }

    /// Adds a failure of the host.
    #[must_use]
    pub fn then_fail(mut self, error: BackendError) -> Self {
        self.steps.push_back(Step::Fail(error));
        self
    }

    /// Adds something that happens while "the guest runs": before the next exit, on the vCPU's thread.
    #[must_use]
    pub fn then_call(mut self, action: impl FnOnce() + Send + 'static) -> Self {
        self.steps.push_back(Step::Call(Box::new(action)));
        self
    }

    /// The entries of all runs so far.
    pub fn entries(&self) -> &[VmEntry] {
        &self.entries
    }

    /// Whether nothing is left to play.
    pub fn is_used_up(&self) -> bool {
        self.steps.is_empty()
    }
}

impl VcpuBackend for ScriptedVcpu {
    fn run(&mut self, entry: VmEntry) -> Result<VmExit, BackendError> {
        let accepted = match &self.last {
            Some(exit) => exit.accepts(entry),
            // The first run answers nothing.
            None => VmExit::Interrupted.accepts(entry),
        };
        accepted.map_err(|expected| BackendError::WrongEntry { entry, expected })?;
        self.entries.push(entry);
        self.last = None;
        loop {
            if self.kicked.0.swap(false, Ordering::SeqCst) || matches!(entry, VmEntry::Complete(_)) {
                return Ok(VmExit::Interrupted);
            }
            match self.steps.pop_front() {
                Some(Step::Exit(exit)) => {
                    self.last = Some(exit.clone());
                    return Ok(exit);
                }
                Some(Step::Fail(error)) => return Err(error),
                Some(Step::Call(action)) => action(),
                None => return Err(BackendError::ScriptEnded),
            }
        }
    }

    fn regs(&mut self) -> Result<Regs, BackendError> {
        Ok(self.regs)
    }

    fn set_regs(&mut self, regs: &Regs) -> Result<(), BackendError> {
        self.regs = *regs;
        Ok(())
    }

    fn system_regs(&mut self) -> Result<SystemRegs, BackendError> {
        Ok(self.system_regs)
    }

    fn set_system_regs(&mut self, regs: &SystemRegs) -> Result<(), BackendError> {
        self.system_regs = *regs;
        Ok(())
    }

    fn kick_handle(&self) -> Box<dyn Kick> {
        Box::new(FlagKick(Arc::clone(&self.kicked)))
    }
}

struct FlagKick(Arc<Flag>);

impl Kick for FlagKick {
    fn kick(&self) {
        self.0.0.store(true, Ordering::SeqCst);
    }
}

impl Drop for ScriptedVcpu {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(
                self.is_used_up(),
                "{} steps of the script were not played",
                self.steps.len()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_devices::{IoOp, IoSize};

    const READ: VmExit = VmExit::Pio {
        port: 0x60,
        size: IoSize::B1,
        op: IoOp::Read,
    };

    #[test]
    fn script_plays_in_order_and_records_the_answers() {
        let mut vcpu = ScriptedVcpu::new([READ, VmExit::Hlt]);
        assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), READ);
        assert_eq!(vcpu.run(VmEntry::Value(7)).unwrap(), VmExit::Hlt);
        assert!(matches!(vcpu.run(VmEntry::Resume), Err(BackendError::ScriptEnded)));
        assert_eq!(vcpu.entries(), [VmEntry::Resume, VmEntry::Value(7), VmEntry::Resume]);
    }

    #[test]
    fn wrong_answer_is_refused() {
        let mut vcpu = ScriptedVcpu::new([READ]);
        assert!(vcpu.run(VmEntry::Value(0)).is_err());
        vcpu.run(VmEntry::Resume).unwrap();
        assert!(matches!(
            vcpu.run(VmEntry::Resume),
            Err(BackendError::WrongEntry { .. })
        ));
    }

    #[test]
    fn kick_before_or_during_a_run_is_seen_once() {
        let vcpu = ScriptedVcpu::new([]);
        let kick = vcpu.kick_handle();
        let mut vcpu = vcpu.then(VmExit::Hlt).then_call(move || kick.kick()).then(VmExit::Hlt);
        vcpu.kick_handle().kick();
        assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Interrupted);
        assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Hlt);
        assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Interrupted);
        assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Hlt);
    }

    #[test]
    #[should_panic(expected = "1 steps of the script were not played")]
    fn leftover_script_panics_on_drop() {
        drop(ScriptedVcpu::new([VmExit::Hlt]));
    }
}
