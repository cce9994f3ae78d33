//! A few hundred cases that share one window of memory, run by the core and then by the silicon.

use super::compare;
use super::generate::{Case, Generator};
use super::layout::{WINDOW, WINDOW_SIZE};
use super::machine::{Ended, How, Machine, Registers};
use super::mode::Mode;
use super::model::Window;
#[cfg(target_env = "gnu")]
use super::process::Process;
use super::report::Report;
use super::rng::Rng;
use super::segments;
use super::vendor;
use umbra_vcpu::emulate::{Cpu, CpuState};

/// What runs cases on a real CPU.
pub trait Silicon {
    /// Puts a case into its slot.
    fn load(&mut self, index: usize, code: &[u8], input: &Registers);
    /// Runs slots `0..count`.
    fn run(&mut self, count: usize) -> Result<Vec<Ended>, String>;
    /// The memory that cases work on.
    fn window(&self) -> &[u8];
    fn set_window(&mut self, bytes: &[u8]);
    /// Whether, once in a few hundred thousand cases, KVM takes an instruction for its emulator's, which does not know it.
    fn makes_strange_ud(&self) -> bool;
}

macro_rules! silicon {
    ($kind:ty, $strange:expr) => {
        impl Silicon for $kind {
            fn load(&mut self, index: usize, code: &[u8], input: &Registers) {
                self.load(index, code, input);
            }

            fn run(&mut self, count: usize) -> Result<Vec<Ended>, String> {
                self.run(count)
            }

            fn window(&self) -> &[u8] {
                self.bytes(WINDOW, WINDOW_SIZE)
            }

            fn set_window(&mut self, bytes: &[u8]) {
                self.bytes_mut(WINDOW, WINDOW_SIZE).copy_from_slice(bytes);
            }

            fn makes_strange_ud(&self) -> bool {
                $strange
            }
        }
    };
}

silicon!(Machine, true);
#[cfg(target_env = "gnu")]
silicon!(Process, false);

pub struct Batch {
    mode: Mode,
    cases: Vec<(Case, Ended)>,
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Batch {
    /// Draws `count` cases and has the core run them.
    pub fn build(generator: &Generator, rng: &mut Rng, count: usize) -> Self {
        let mode = generator.mode();
        let template = mode.template();
        let mut window = Window::new(mode);
        for chunk in window.data.chunks_mut(16) {
            super::numbers::memory(rng, chunk);
        }
        let before = window.data.clone();
        let mut cpu = Cpu::new(template.clone(), window);
        let mut kept = before.clone();
        let mut cases = Vec::with_capacity(count);
        while cases.len() < count {
            let index = cases.len();
            let case = generator.case(rng, index);
            kept.copy_from_slice(&cpu.env.data);
            if let Some(ended) = run_core(&mut cpu, &template, &case, index) {
                cases.push((case, ended));
            } else {
                cpu.env.data.copy_from_slice(&kept);
            }
        }
        Self {
            mode,
            cases,
            before,
            after: cpu.env.data,
        }
    }

    /// Has the silicon run the cases and notes what differs.
    pub fn run(&self, machine: &mut dyn Silicon, report: &mut Report) {
        let mut run = self.run_silicon(machine);
        // KVM runs the same batch well afterwards. Nothing else is tried twice, and this not often.
        if machine.makes_strange_ud()
            && run.as_ref().is_ok_and(|ended| self.has_strange_ud(ended))
            && report.may_repeat()
        {
            run = self.run_silicon(machine);
        }
        let ended = match run {
            Ok(ended) => ended,
            Err(why) => return report.broken(&why),
        };
        for ((case, core), silicon) in self.cases.iter().zip(&ended) {
            report.note(case, silicon, &compare::differences(case, silicon, core));
        }
        if machine.window() != self.after {
            self.find_memory_difference(machine, report);
        }
    }

    fn run_silicon(&self, machine: &mut dyn Silicon) -> Result<Vec<Ended>, String> {
        machine.set_window(&self.before);
        for (index, (case, _)) in self.cases.iter().enumerate() {
            machine.load(index, &case.bytes, &case.input);
        }
        machine.run(self.cases.len())
    }

    /// Whether a case ended in #UD although the core executed it.
    fn has_strange_ud(&self, ended: &[Ended]) -> bool {
        let cases = self.cases.iter().zip(ended);
        cases
            .into_iter()
            .any(|((_, core), silicon)| compare::is_ud(silicon) && !matches!(core.how, How::Fault { .. }))
    }

    /// Runs the cases one by one to find the first that leaves memory different.
    fn find_memory_difference(&self, machine: &mut dyn Silicon, report: &mut Report) {
        let template = self.mode.template();
        let mut window = Window::new(self.mode);
        window.data.clone_from(&self.before);
        let mut cpu = Cpu::new(template.clone(), window);
        machine.set_window(&self.before);
        for index in 0..self.cases.len() {
            let (case, _) = &self.cases[index];
            run_core(&mut cpu, &template, case, index);
            // The case must stay in its slot, as its code knows where it lies; the slots before it do nothing.
            for earlier in 0..index {
                machine.load(earlier, &[0x90], &case.input);
            }
            machine.load(index, &case.bytes, &case.input);
            if let Err(why) = machine.run(index + 1) {
                return report.broken(&why);
            }
            let silicon = machine.window();
            if let Some(at) = (0..WINDOW_SIZE).find(|at| silicon[*at] != cpu.env.data[*at]) {
                let end = (at + 16).min(WINDOW_SIZE);
                let text = format!(
                    "memory at {:#x}: silicon {:02x?}, core {:02x?}",
                    WINDOW + at as u64,
                    &silicon[at..end],
                    &cpu.env.data[at..end]
                );
                return report.fail(case, &[text]);
            }
        }
        report.broken("memory differs after a batch but not after its cases one by one");
    }
}

fn run_core(cpu: &mut Cpu<Window>, template: &CpuState, case: &Case, index: usize) -> Option<Ended> {
    cpu.state = compare::state(case, template);
    let halved = vendor::pushes_wide_selector(case) && vendor::pushes_half();
    let before = halved.then(|| cpu.env.data.clone());
    let step = cpu.execute(&case.insn);
    let ended = compare::ended(step, &cpu.state, case, index)?;
    if let Some(before) = before
        && ended.how == How::Next
    {
        // The upper half of what was pushed stays as it was.
        let width = if segments::hidden(case.input.segments[2]).db {
            0xffff_ffff
        } else {
            0xffff
        };
        let base = segments::hidden(case.input.segments[2]).base;
        let upper = base + ((case.input.gpr[4].wrapping_sub(2)) & width);
        let start = usize::try_from(upper.checked_sub(WINDOW)?).ok()?;
        let old = before.get(start..start + 2)?;
        cpu.env.data[start..start + 2].copy_from_slice(old);
    }
    Some(ended)
}
