//! A few hundred cases that share one window of memory, run by the core and then by the silicon.

use super::compare;
use super::generate::{Case, Generator};
use super::machine::{Ended, How, Machine, WINDOW, WINDOW_SIZE};
use super::model::Window;
use super::report::Report;
use super::rng::Rng;
use umbra_vcpu::emulate::state::{cr0, cr4, efer};
use umbra_vcpu::emulate::{Cpu, CpuState};
use umbra_vcpu::regs::Segment;

pub struct Batch {
    cases: Vec<(Case, Ended)>,
    before: Vec<u8>,
    after: Vec<u8>,
}

fn template() -> CpuState {
    let mut state = CpuState::default();
    let sys = &mut state.sys;
    sys.cs = Segment {
        long: true,
        dpl: 3,
        present: true,
        non_system: true,
        kind: 11,
        selector: 0x33,
        ..Segment::default()
    };
    sys.ss = Segment {
        dpl: 3,
        present: true,
        non_system: true,
        kind: 3,
        selector: 0x2b,
        ..Segment::default()
    };
    (sys.ds, sys.es) = (sys.ss, sys.ss);
    sys.cr0 = cr0::PE | cr0::PG | cr0::WP | cr0::NE | cr0::ET | cr0::MP;
    sys.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
    sys.efer = efer::LMA | efer::LME | efer::SCE | efer::NXE;
    state
}

impl Batch {
    /// Draws `count` cases and has the core run them.
    pub fn build(generator: &Generator, rng: &mut Rng, count: usize) -> Self {
        let template = template();
        let mut window = Window::new();
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
            cases,
            before,
            after: cpu.env.data,
        }
    }

    /// Has the silicon run the cases and notes what differs.
    pub fn run(&self, machine: &mut Machine, report: &mut Report) {
        let mut run = self.run_silicon(machine);
        // Once in a few hundred thousand cases KVM takes an instruction for its emulator's, which does not know it. It
        // runs the same batch well afterwards.
        if run.as_ref().is_ok_and(|ended| self.has_strange_ud(ended)) {
            run = self.run_silicon(machine);
        }
        let ended = match run {
            Ok(ended) => ended,
            Err(why) => return report.broken(&why),
        };
        for ((case, core), silicon) in self.cases.iter().zip(&ended) {
            report.note(case, silicon, &compare::differences(case, silicon, core));
        }
        if machine.bytes(WINDOW, WINDOW_SIZE) != self.after {
            self.find_memory_difference(machine, report);
        }
    }

    fn run_silicon(&self, machine: &mut Machine) -> Result<Vec<Ended>, String> {
        machine.bytes_mut(WINDOW, WINDOW_SIZE).copy_from_slice(&self.before);
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
    fn find_memory_difference(&self, machine: &mut Machine, report: &mut Report) {
        let template = template();
        let mut window = Window::new();
        window.data.clone_from(&self.before);
        let mut cpu = Cpu::new(template.clone(), window);
        machine.bytes_mut(WINDOW, WINDOW_SIZE).copy_from_slice(&self.before);
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
            let silicon = machine.bytes(WINDOW, WINDOW_SIZE);
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
    let step = cpu.execute(&case.insn);
    compare::ended(step, &cpu.state, case, index)
}
