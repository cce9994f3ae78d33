//! System instructions at every privilege level and in every mode: random programs of a few of them, run by a stock KVM
//! (in the lab: kvm-amd on an emulated AMD processor) and by the instruction core from the same memory and state. All of
//! the architectural state must be equal afterwards.
//!
//! `UMBRA_SYSTEM_CASES` sets the number of programs, `UMBRA_SYSTEM_SEED` the seed, `UMBRA_SYSTEM_FIRST` the first of them
//! (to repeat one that failed).
#![cfg(target_arch = "x86_64")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    clippy::cast_lossless,
    reason = "a test that draws numbers and cuts them to size"
)]

mod compare;
mod deviations;
mod image;
mod machine;
mod mode;
mod program;
mod report;
#[path = "../emulate_silicon/rng.rs"]
mod rng;
#[path = "../support/mod.rs"]
mod support;
mod world;

use compare::{Frame, Outcome};
use image::Image;
use machine::{End, Machine};
use mode::Mode;
use report::Report;
use rng::Rng;
use umbra_vcpu::emulate::state::RSP;
use umbra_vcpu::emulate::{Cpu, CpuState, Event, Exception, Source, Step, Stop, exception};
use world::World;

const DEFAULT_CASES: u64 = 2000;
const DEFAULT_SEED: u64 = 0x7379_7374_656d;
/// A program that runs longer than this goes in circles.
const STEPS: usize = 300;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Case `index`: its mode follows from the number, everything else from the seed.
fn draw(seed: u64, index: u64) -> (Mode, Image) {
    let mode = Mode::ALL[index as usize % Mode::ALL.len()];
    let mut rng = Rng::new(seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut image = Image::new(mode, &mut rng);
    program::write(mode, &mut rng, &mut image);
    (mode, image)
}

/// Runs a program on the core. `None` if it does what the core (or its world here) does not offer.
fn run_core(image: &Image, trace: &mut Vec<String>) -> Option<Outcome> {
    let world = World::new(image.memory.clone(), &image.state);
    let mut cpu = Cpu::new(image.state.clone(), world);
    let mut frames = Vec::new();
    let mut second = None;
    for _ in 0..STEPS {
        // Single-stepping is another test's subject.
        if cpu.state.flag(umbra_vcpu::emulate::flags::TF) {
            return None;
        }
        let insn = cpu.fetch();
        trace.push(match &insn {
            Ok(insn) => format!("{:?} {:#x} {insn}", insn.mnemonic(), cpu.state.rip),
            Err(_) => "fetch".to_owned(),
        });
        let step = cpu.step();
        let exception = match step {
            Step::Fault(exception) => Some(exception),
            // What a task switch leaves to the new task, for example.
            Step::Done { trap: true } => cpu.due(),
            _ => None,
        };
        let end = match (step, exception) {
            (_, Some(exception)) => {
                let event = Event {
                    exception,
                    source: Source::Exception,
                };
                trace.push(format!("exception {exception:x?}"));
                let before = Cpu::new(cpu.state.clone(), cpu.env.clone());
                let delivered = cpu.deliver(event);
                let doubled = delivered == Err(Stop::TripleFault) || vector(&cpu.state) == Some(exception::DF);
                second = doubled.then(|| second_exception(before, exception)).flatten();
                match delivered {
                    Ok(()) => {
                        frames.extend(frame(&cpu.state));
                        continue;
                    }
                    Err(Stop::TripleFault) => End::ShutDown,
                    Err(_) => return None,
                }
            }
            (Step::Done { .. } | Step::Repeat, None) => continue,
            (Step::Halt, _) => End::Halted,
            (Step::TripleFault, _) => End::ShutDown,
            (Step::Fault(_) | Step::Pending(_) | Step::Unsupported(_), None) => return None,
        };
        return Some(Outcome {
            end,
            state: cpu.state,
            memory: cpu.env.memory,
            frames,
            second,
        });
    }
    None
}

/// The vector at whose handler the CPU is.
fn vector(state: &CpuState) -> Option<u8> {
    u8::try_from(state.rip.checked_sub(image::STUBS)? / 16).ok()
}

/// The vector of the exception that keeps `first` from being delivered: as an interrupt is met by it, which doubles
/// nothing.
fn second_exception(mut cpu: Cpu<World>, first: Exception) -> Option<u8> {
    let event = Event {
        exception: first,
        source: Source::External,
    };
    cpu.deliver(event).ok()?;
    vector(&cpu.state).filter(|second| *second != first.vector)
}

/// The frame that has just been pushed for the handler at which the CPU is; of 16 bits it has nothing that the comparison
/// looks for but the error code.
fn frame(state: &CpuState) -> Option<Frame> {
    let vector = vector(state)?;
    let has_code = matches!(vector, exception::DF | exception::TS..=exception::PF | exception::AC);
    let word = if state.long_mode() { 8 } else { 4 };
    let words = if has_code { 3 } else { 2 };
    let stack = state.stack_width().cut(state.gpr[RSP]);
    state.protected().then(|| Frame {
        flags: stack + words * word,
        code: (has_code && vector != exception::PF).then_some(stack),
    })
}

#[test]
fn kvm_and_core_agree_on_system_instructions() {
    let Some(mut machine) = Machine::new() else { return };
    if machine.emulates_kernel_code() {
        println!("skipped: this KVM emulates kernel code itself; the lab has one that does not");
        return;
    }
    let (seed, first) = (
        number("UMBRA_SYSTEM_SEED", DEFAULT_SEED),
        number("UMBRA_SYSTEM_FIRST", 0),
    );
    let cases = number("UMBRA_SYSTEM_CASES", DEFAULT_CASES);
    println!("UMBRA_SYSTEM_SEED={seed}, {cases} programs from number {first} on");
    let mut report = Report::default();
    for index in first..first + cases {
        let (mode, image) = draw(seed, index);
        let mut trace = Vec::new();
        let Some(core) = run_core(&image, &mut trace) else {
            report.left_out(mode);
            continue;
        };
        let (end, state, memory) = match machine.run(&image) {
            Ok(ended) => ended,
            Err(why) => {
                report.fail(mode, index, &[why], &trace);
                machine.renew();
                continue;
            }
        };
        let kvm = Outcome {
            end,
            state,
            memory,
            frames: Vec::new(),
            second: None,
        };
        let found = compare::differences(&kvm, &core, &trace);
        if found.is_empty() {
            report.equal(mode, &trace, core.end);
        } else if let Some(deviation) = deviations::explain(&found, &trace, &kvm, &core) {
            report.deviates(mode, &trace, deviation);
        } else {
            report.fail(mode, index, &found, &trace);
        }
        if end == End::ShutDown {
            machine.renew();
        }
        if report.failures.len() >= 60 {
            break;
        }
    }
    report.print();
    assert!(
        report.failures.is_empty(),
        "{} disagreements (UMBRA_SYSTEM_SEED={seed})",
        report.failures.len()
    );
    // Otherwise little would have been compared.
    let thin = report.thin();
    assert!(
        thin.is_empty(),
        "less than two thirds of the programs were equal: {thin:?}"
    );
}
