//! Software CPUs that take turns on one thread: the same guest does the same each time, to the instruction, however it is
//! executed and whoever looks on.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how tests fail")]

#[path = "support/soft_machine.rs"]
mod soft_machine;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use soft_machine::{IDT, Machine};
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use umbra_devices::bus::Bus;
use umbra_devices::models::debug_exit::{self, DebugExit};
use umbra_devices::models::lapic::ApicBus;
use umbra_devices::{Clock, Effect, ManualClock, Port};
use umbra_memslots::{Gpa, GuestMemory};
use umbra_mmu::direct::{DirectMmu, DirectOptions};
use umbra_mmu::shadow::{HostParams, SpteLayout};
use umbra_vcpu::backend::{BackendError, Kick, VcpuBackend};
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::handle::ExitHandler;
use umbra_vcpu::platform::Platform;
use umbra_vcpu::regs::{Regs, SystemRegs};
use umbra_vcpu::run_loop::{VcpuEnd, VcpuThreads};
use umbra_vcpu::soft::SoftVm;
use umbra_vcpu::turns::{Alarms, Bell, CountedVcpu, Delivery, Idle, SharedTrace, TraceSummary, TurnOptions};

const RAM: u64 = 64 << 12;
const CODE: u64 = 0x1000;
const HANDLER: u64 = 0x2000;
/// Where the second CPU starts: page 3.
const START: u32 = 0x3000;
/// What both CPUs add to, without a lock.
const SHARED: u32 = 0x4000;
/// What the second CPU has seen of the time.
const SEEN: u32 = 0x4100;
const VECTOR: u32 = 0x1f;
/// Registers in the APIC's page.
const EOI: u32 = 0xfee0_00b0;
const SVR: u32 = 0xfee0_00f0;
const ICR: u32 = 0xfee0_0300;
const LVT_TIMER: u32 = 0xfee0_0320;
const INITIAL: u32 = 0xfee0_0380;
const DIVIDE: u32 = 0xfee0_03e0;
const PERIODIC: u32 = 1 << 17;
/// Nanoseconds between two interrupts of the timer: not so many that they always fall between two of the blocks below.
const PERIOD: u32 = 30_013;

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// A machine whose layout never changes.
struct Fixed;

impl Platform for Fixed {
    fn apply(&self, _vcpu: u32, _effect: Effect) {}
    fn end_of_interrupt(&self, _vector: u8) {}
}

/// The timers, and how often they were asked.
struct Timers(Arc<ApicBus>, AtomicU64);

impl Alarms for Timers {
    fn tick(&self) -> Option<Duration> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.tick()
    }
}

/// A file in memory.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a guest is executed.
#[derive(Clone, Copy)]
struct How {
    cpus: u32,
    quantum: u64,
    fast: bool,
    /// Somebody pauses it and asks for numbers all the time.
    disturbed: bool,
}

const USUAL: How = How {
    cpus: 2,
    quantum: 1000,
    fast: true,
    disturbed: false,
};

/// What came of it.
#[derive(Debug)]
struct Ran {
    end: VcpuEnd,
    trace: String,
    summary: TraceSummary,
    shared: u32,
    /// How often the timers were asked.
    asked: u64,
}

fn run(first: Code, handler: Code, second: Code, how: How) -> Ran {
    let clock = Arc::new(ManualClock::at_unix_time(Duration::from_secs(1_000_000)));
    let machine = Machine::in_turns(RAM, Arc::clone(&clock));
    let bus = ApicBus::new(how.cpus, Arc::clone(&clock) as _, SoftVm::TSC_HZ);
    let bell = Bell::new();
    let waker = bell.clone();
    bus.set_waker(Box::new(move || waker.alarm_is_set()));
    for (bits, at, code) in [(32, CODE, first), (32, HANDLER, handler), (16, START.into(), second)] {
        let mut assembler = CodeAssembler::new(bits).unwrap();
        code(&mut assembler).unwrap();
        let bytes = assembler.assemble(at).unwrap();
        machine.ram.write(Gpa::new(at), &bytes).unwrap();
    }
    let gate = HANDLER & 0xffff | 8 << 16 | 0x8e00 << 32;
    let at = Gpa::new(IDT + 8 * u64::from(VECTOR));
    machine.ram.write(at, &gate.to_le_bytes()).unwrap();

    let (mmio, ports) = (Bus::<Gpa>::new(), Bus::<Port>::new());
    let exit = Arc::new(DebugExit::new());
    ports
        .claim("exit", Port::new(debug_exit::regs::PORT), debug_exit::regs::LEN, exit)
        .unwrap();
    let layout = SpteLayout::new(HostParams::x86(46)).unwrap();
    let mmu = Arc::new(DirectMmu::new(DirectOptions::new(layout)).unwrap());
    let vcpus = (0..how.cpus).map(|id| {
        let mut vcpu = machine.vcpu(CODE, 0x9000);
        let mut system = vcpu.system_regs().unwrap();
        vcpu.set_local_apic(bus.apic(id).unwrap(), how.cpus);
        if id == 0 {
            system.apic_base = bus.apic(0).unwrap().base();
            vcpu.set_system_regs(&system).unwrap();
        }
        vcpu.set_fast(how.fast);
        let handler = ExitHandler::new(Arc::clone(&mmu), machine.ram.reader(), &mmio, &ports);
        (vcpu, handler)
    });
    let lines = Lines::default();
    let trace = SharedTrace::to(lines.clone());
    let timers = Arc::new(Timers(Arc::clone(&bus), AtomicU64::new(0)));
    let options = TurnOptions {
        quantum: NonZeroU64::new(how.quantum).unwrap(),
        idle: Idle::Skip,
        clock,
        alarms: Arc::clone(&timers) as _,
        bell,
        trace: trace.clone(),
    };
    let threads = VcpuThreads::start_in_turns(vcpus.collect(), Arc::new(Fixed), options).unwrap();
    let control = Arc::clone(threads.control());
    while how.disturbed && control.wait_first(Some(Duration::ZERO)).is_none() {
        // Neither can be had of a machine that has ended meanwhile.
        let _ = control.stats(Duration::from_secs(10));
        let _ = control.pause(Duration::from_secs(10));
        control.resume();
    }
    let who = control.wait_first(Some(Duration::from_secs(300))).expect("it ends");
    let end = control.take_end(who).unwrap();
    threads.finish(Duration::from_secs(10)).unwrap();
    let mut shared = [0; 4];
    machine.ram.read(Gpa::new(SHARED.into()), &mut shared).unwrap();
    let trace_text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    Ran {
        end,
        trace: trace_text,
        summary: trace.summary(),
        shared: u32::from_le_bytes(shared),
        asked: timers.1.load(Ordering::Relaxed),
    }
}

fn poke(a: &mut CodeAssembler, register: u32, value: u32) -> Result<(), IcedError> {
    a.mov(dword_ptr(register), value)
}

/// Ends the run with the low bits of EAX.
fn end(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edx, u32::from(debug_exit::regs::PORT))?;
    a.out(dx, eax)
}

/// A timer that interrupts again and again; interrupts are on afterwards.
fn start_timer(a: &mut CodeAssembler) -> Result<(), IcedError> {
    poke(a, SVR, 0x1ff)?;
    poke(a, DIVIDE, 0b1011)?;
    poke(a, LVT_TIMER, PERIODIC | VECTOR)?;
    poke(a, INITIAL, PERIOD)?;
    a.sti()
}

/// Adds to what is shared in a way that loses additions of others: with fast instructions, one that only the core knows, and
/// a locked one.
fn race(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(eax, dword_ptr(SHARED))?;
    a.mov(ebp, eax)?;
    // What it looks up, somewhere in memory, is of no interest.
    a.xlatb()?;
    a.mov(eax, ebp)?;
    a.inc(eax)?;
    a.mov(dword_ptr(SHARED), eax)?;
    a.lock().inc(dword_ptr(SHARED + 64))
}

/// Races until it has done so often enough, and says what the sum is then.
fn first(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    start_timer(a)?;
    poke(a, ICR, 0xc_4500)?;
    poke(a, ICR, 0xc_4600 | START >> 12)?;
    a.mov(ebx, 20_000)?;
    a.set_label(&mut again)?;
    race(a)?;
    a.mov(ecx, 100)?;
    a.mov(edi, 0x6000)?;
    a.rep().stosd()?;
    a.dec(ebx)?;
    a.jne(again)?;
    a.mov(ecx, 5000)?;
    a.mov(edi, 0x1_0000)?;
    a.rep().stosb()?;
    a.mov(eax, dword_ptr(SHARED))?;
    end(a)
}

/// Tells the time, to a port that nobody has.
fn tick(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.push(eax)?;
    a.push(edx)?;
    a.rdtsc()?;
    a.out(0x80, eax)?;
    a.mov(eax, dword_ptr(SEEN))?;
    a.out(0x81, eax)?;
    poke(a, EOI, 0)?;
    a.pop(edx)?;
    a.pop(eax)?;
    a.iretd()
}

/// In real mode: races, looks at the time, and sometimes says that it waits.
fn second(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut busy) = (a.create_label(), a.create_label());
    a.xor(ebx, ebx)?;
    a.set_label(&mut again)?;
    race(a)?;
    a.rdtsc()?;
    a.mov(dword_ptr(SEEN), eax)?;
    a.inc(ebx)?;
    a.test(ebx, 0xff)?;
    a.jne(busy)?;
    a.pause()?;
    a.set_label(&mut busy)?;
    a.jmp(again)
}

fn nothing(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.nop()
}

#[test]
fn two_runs_are_the_same_to_the_instruction() {
    let (one, other) = (run(first, tick, second, USUAL), run(first, tick, second, USUAL));
    assert!(matches!(one.end, VcpuEnd::Exit { .. }), "{}", one.end);
    let lines: Vec<_> = one.trace.lines().collect();
    let count = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
    assert!(
        count("interrupt 0x1f") > 10 && count("start-up 0x3") == 1,
        "{}",
        one.trace
    );
    assert!(
        one.shared < 40_000 && one.summary.instructions[1] > 100_000,
        "{:?}",
        one.summary
    );
    assert_eq!(one.trace, other.trace);
    assert_eq!((one.summary, one.shared), (other.summary, other.shared));
}

#[test]
fn another_quantum_is_another_run() {
    let one = run(first, tick, second, USUAL);
    let other = run(first, tick, second, How { quantum: 1001, ..USUAL });
    assert_ne!(one.summary.digest, other.summary.digest);
    assert_ne!((one.shared, one.trace), (other.shared, other.trace));
}

#[test]
fn way_in_which_instructions_are_executed_makes_no_difference() {
    let fast = run(first, tick, second, USUAL);
    let slow = run(first, tick, second, How { fast: false, ..USUAL });
    assert_eq!(fast.trace, slow.trace);
    assert_eq!((fast.summary, fast.shared), (slow.summary, slow.shared));
    // One after the other, where no block is executed as a whole.
    let step = How { quantum: 7, ..USUAL };
    let (fast, slow) = (
        run(first, tick, second, step),
        run(first, tick, second, How { fast: false, ..step }),
    );
    assert_eq!(fast.trace, slow.trace);
}

#[test]
fn who_pauses_it_and_asks_for_numbers_changes_nothing() {
    let alone = run(first, tick, second, USUAL);
    let disturbed = run(
        first,
        tick,
        second,
        How {
            disturbed: true,
            ..USUAL
        },
    );
    assert_eq!(alone.trace, disturbed.trace);
    assert_eq!((alone.summary, alone.shared), (disturbed.summary, disturbed.shared));
    // Alarms may do more than go off: they are asked at the same moments.
    assert_eq!(alone.asked, disturbed.asked);
}

#[test]
fn timer_goes_off_between_the_two_instructions_at_which_it_is_due() {
    let spin: Code = |a| {
        let mut again = a.create_label();
        start_timer(a)?;
        a.mov(ebx, 200_000)?;
        a.set_label(&mut again)?;
        a.mov(ecx, ebx)?;
        a.shr(ecx, 3)?;
        a.add(ecx, 5)?;
        a.dec(ebx)?;
        a.jne(again)?;
        end(a)
    };
    let ran = run(
        spin,
        tick,
        nothing,
        How {
            cpus: 1,
            quantum: 9_973,
            ..USUAL
        },
    );
    let times: Vec<u64> = ran
        .trace
        .lines()
        .filter(|line| line.ends_with("interrupt 0x1f"))
        .map(|line| line.split(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(times.len() > 20, "{}", ran.trace);
    let apart: Vec<_> = times.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(apart.iter().all(|apart| *apart == u64::from(PERIOD)), "{apart:?}");
    // What the guest reads is the time too: it was interrupted six instructions ago (delivery, two pushes).
    let read = ran.trace.lines().find(|line| line.contains(" out 0x80/4 ")).unwrap();
    let told = u64::from_str_radix(read.rsplit("0x").next().unwrap(), 16).unwrap();
    assert_eq!(told, times[0] + 3, "{read}");
}

#[test]
fn timer_of_an_x2apic_counts_instructions_too() {
    let count: Code = |a| {
        let mut again = a.create_label();
        // To x2APIC; then the software enable, the divisor and the count.
        a.mov(ecx, 0x1bu32)?;
        a.rdmsr()?;
        a.or(eax, 0x400)?;
        a.wrmsr()?;
        for (msr, value) in [(0x80f, 0x1ff), (0x83e, 0b1011), (0x838, 1_000_000)] {
            a.mov(ecx, msr)?;
            a.mov(eax, value)?;
            a.xor(edx, edx)?;
            a.wrmsr()?;
        }
        a.mov(ebx, 1000)?;
        a.set_label(&mut again)?;
        a.dec(ebx)?;
        a.jne(again)?;
        a.mov(ecx, 0x839)?;
        a.rdmsr()?;
        end(a)
    };
    let ran = run(count, tick, nothing, How { cpus: 1, ..USUAL });
    // The `wrmsr` itself, 2002 to the next move and that.
    let left = 1_000_000 - 2003;
    assert!(
        matches!(ran.end, VcpuEnd::Exit { code } if code == left),
        "{} of {left}",
        ran.end
    );
}

#[test]
fn deadline_at_the_end_of_time_never_comes() {
    let sleep: Code = |a| {
        poke(a, SVR, 0x1ff)?;
        poke(a, LVT_TIMER, 0x4_0000 | VECTOR)?;
        a.mov(ecx, 0x6e0u32)?;
        a.mov(eax, u32::MAX)?;
        a.mov(edx, u32::MAX)?;
        a.wrmsr()?;
        a.sti()?;
        a.hlt()?;
        a.xor(eax, eax)?;
        end(a)
    };
    let ran = run(sleep, tick, nothing, How { cpus: 1, ..USUAL });
    assert!(matches!(ran.end, VcpuEnd::Halted), "{}", ran.end);
    assert!(ran.summary.time < Duration::from_secs(1), "{:?}", ran.summary);
}

/// A CPU that comes out at once whenever it is run, until it is told to end.
struct Stuck(Arc<AtomicBool>);

impl VcpuBackend for Stuck {
    fn run(&mut self, _entry: VmEntry) -> Result<VmExit, BackendError> {
        Ok(if self.0.load(Ordering::Relaxed) {
            VmExit::Hlt
        } else {
            VmExit::Interrupted
        })
    }
    fn regs(&mut self) -> Result<Regs, BackendError> {
        Ok(Regs::default())
    }
    fn set_regs(&mut self, _regs: &Regs) -> Result<(), BackendError> {
        Ok(())
    }
    fn system_regs(&mut self) -> Result<SystemRegs, BackendError> {
        Ok(SystemRegs::default())
    }
    fn set_system_regs(&mut self, _regs: &SystemRegs) -> Result<(), BackendError> {
        Ok(())
    }
    fn kick_handle(&self) -> Box<dyn Kick> {
        struct Nobody;
        impl Kick for Nobody {
            fn kick(&self) {}
        }
        Box::new(Nobody)
    }
}

impl CountedVcpu for Stuck {
    fn executed(&self) -> u64 {
        0
    }
    fn stop_after(&mut self, _instructions: u64) {}
    fn rests(&self) -> bool {
        false
    }
    fn gives_way(&mut self) -> bool {
        false
    }
    fn was_kicked(&mut self) -> bool {
        false
    }
    fn take_deliveries(&mut self, _take: &mut dyn FnMut(Delivery)) {}
    fn join(&mut self, _bell: &Bell, _others: bool) {}
}

/// Something that happens after a microsecond.
struct Later(Arc<ManualClock>, Arc<AtomicBool>);

impl Alarms for Later {
    fn tick(&self) -> Option<Duration> {
        let left = Duration::from_micros(1).saturating_sub(self.0.monotonic());
        self.1.store(left.is_zero(), Ordering::Relaxed);
        (!left.is_zero()).then_some(left)
    }
}

#[test]
fn cpu_that_gets_nowhere_does_not_stop_time() {
    let (clock, over) = (Arc::new(ManualClock::default()), Arc::new(AtomicBool::new(false)));
    let machine = Machine::in_turns(RAM, Arc::clone(&clock));
    let layout = SpteLayout::new(HostParams::x86(46)).unwrap();
    let mmu = Arc::new(DirectMmu::new(DirectOptions::new(layout)).unwrap());
    let handler = ExitHandler::new(mmu, machine.ram.reader(), &Bus::<Gpa>::new(), &Bus::<Port>::new());
    let options = TurnOptions {
        quantum: NonZeroU64::new(1000).unwrap(),
        idle: Idle::Skip,
        clock: Arc::clone(&clock),
        alarms: Arc::new(Later(clock, Arc::clone(&over))),
        bell: Bell::new(),
        trace: SharedTrace::to(Lines::default()),
    };
    let threads = VcpuThreads::start_in_turns(vec![(Stuck(over), handler)], Arc::new(Fixed), options).unwrap();
    let ended = threads.control().wait_first(Some(Duration::from_secs(30)));
    assert!(matches!(
        threads.control().take_end(ended.unwrap()),
        Some(VcpuEnd::Halted)
    ));
    threads.finish(Duration::from_secs(10)).unwrap();
}

#[test]
fn idle_time_takes_none() {
    // A deadline in ten minutes and nothing else to do.
    let sleep: Code = |a| {
        poke(a, SVR, 0x1ff)?;
        poke(a, LVT_TIMER, 0x4_0000 | VECTOR)?;
        a.mov(ecx, 0x6e0u32)?;
        a.mov(eax, 0xb2c9_7000u32)?;
        a.mov(edx, 0x8bu32)?;
        a.wrmsr()?;
        a.sti()?;
        a.hlt()?;
        a.rdtsc()?;
        a.mov(eax, edx)?;
        end(a)
    };
    let ran = run(sleep, tick, nothing, USUAL);
    assert!(matches!(ran.end, VcpuEnd::Exit { code: 0x8b }), "{}", ran.end);
    assert!(
        ran.summary.time > Duration::from_secs(600) && ran.summary.total() < 100,
        "{:?}",
        ran.summary
    );
}

#[test]
fn machine_that_nothing_can_wake_has_ended() {
    let stop: Code = |a| {
        a.cli()?;
        a.hlt()
    };
    let ran = run(stop, tick, nothing, USUAL);
    assert!(matches!(ran.end, VcpuEnd::Halted), "{}", ran.end);
    assert!(ran.trace.ends_with("end: halted for ever\n"), "{}", ran.trace);
}

#[test]
fn waiting_cpu_gives_way_at_once() {
    // The second one waits for the first, which takes its time: with turns as long as that, most of the time would be spent
    // waiting.
    let work: Code = |a| {
        let mut again = a.create_label();
        poke(a, SVR, 0x1ff)?;
        poke(a, ICR, 0xc_4500)?;
        poke(a, ICR, 0xc_4600 | START >> 12)?;
        a.mov(ebx, 100_000)?;
        a.set_label(&mut again)?;
        a.dec(ebx)?;
        a.jne(again)?;
        end(a)
    };
    let wait: Code = |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.pause()?;
        a.jmp(again)
    };
    let ran = run(work, tick, wait, USUAL);
    let [first, second] = ran.summary.instructions[..] else {
        panic!("{:?}", ran.summary)
    };
    assert!((200..2000).contains(&(first / second.max(1))), "{:?}", ran.summary);
}
