//! The loop and its control, on vCPUs without a CPU.
#![expect(clippy::unwrap_used, reason = "test code")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use umbra_devices::bus::Bus;
use umbra_devices::{Device, Effect, IoOp, IoOutcome, IoSize, Port};
use umbra_memslots::{AddressSpaceId, Gfn, GfnRange, Gpa, NewSlot, SlotFlags, SlotLimits, SlotTable};
use umbra_mmu::direct::{DirectMmu, DirectOptions};
use umbra_mmu::shadow::{HostParams, SpteLayout};
use umbra_vcpu::backend::{BackendError, Kick, VcpuBackend};
use umbra_vcpu::control::Control;
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::handle::ExitHandler;
use umbra_vcpu::platform::Platform;
use umbra_vcpu::regs::{Regs, SystemRegs};
use umbra_vcpu::run_loop::{VcpuEnd, VcpuThreads, run_vcpu};
use umbra_vcpu::scripted::ScriptedVcpu;
use umbra_vcpu::stats::ExitKind;

mod support;
use support::TestRam;

const DEVICE: u64 = 0xd000_0000;
const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(20);

/// A machine without a backend.
struct Machine {
    slots: Mutex<SlotTable>,
    mmu: Arc<DirectMmu>,
    mmio: Bus<Gpa>,
    ports: Bus<Port>,
}

impl Machine {
    fn new() -> Arc<Self> {
        let layout = SpteLayout::new(HostParams::x86(46)).unwrap();
        Arc::new(Self {
            slots: Mutex::new(SlotTable::new(SlotLimits::default())),
            mmu: Arc::new(DirectMmu::new(DirectOptions::new(layout)).unwrap()),
            mmio: Bus::new(),
            ports: Bus::new(),
        })
    }

    fn claim(&self, at: u64, device: impl Device + 'static) {
        self.mmio.claim("test", Gpa::new(at), 0x1000, Arc::new(device)).unwrap();
    }

    fn handler(&self) -> ExitHandler {
        let reader = self.slots.lock().unwrap().reader(AddressSpaceId::Normal).unwrap();
        ExitHandler::new(Arc::clone(&self.mmu), reader, &self.mmio, &self.ports)
    }

    /// Runs one script to its end on this thread. The script must be used up.
    fn play(&self, mut vcpu: ScriptedVcpu, platform: &dyn Platform) -> (VcpuEnd, ExitHandler, Vec<VmEntry>) {
        let control = Control::new([vcpu.kick_handle()]);
        let mut handler = self.handler();
        let end = run_vcpu(0, &mut vcpu, &mut handler, platform, &control);
        let entries = vcpu.entries().to_vec();
        (end, handler, entries)
    }
}

/// Records what the loop asks of it.
#[derive(Default)]
struct Recorder {
    effects: Mutex<Vec<(u32, Effect)>>,
    vectors: Mutex<Vec<u8>>,
}

impl Platform for Recorder {
    fn apply(&self, vcpu: u32, effect: Effect) {
        self.effects.lock().unwrap().push((vcpu, effect));
    }

    fn end_of_interrupt(&self, vector: u8) {
        self.vectors.lock().unwrap().push(vector);
    }
}

/// A device made of a function.
struct Function<F>(F);

impl<F: Fn(u64, IoSize, IoOp) -> IoOutcome + Send + Sync> Device for Function<F> {
    fn access(&self, offset: u64, size: IoSize, op: IoOp) -> IoOutcome {
        self.0(offset, size, op)
    }

    fn reset(&self) {}
}

fn read(gpa: u64) -> VmExit {
    VmExit::Mmio {
        gpa: Gpa::new(gpa),
        size: IoSize::B4,
        op: IoOp::Read,
    }
}

fn write(gpa: u64, value: u64) -> VmExit {
    VmExit::Mmio {
        gpa: Gpa::new(gpa),
        size: IoSize::B4,
        op: IoOp::Write(value),
    }
}

#[test]
fn repeated_mmio_is_answered_by_the_device_without_another_search() {
    let machine = Machine::new();
    machine.claim(DEVICE, Function(|offset, _, _| IoOutcome::Value(0x100 + offset)));
    let script = ScriptedVcpu::new([
        read(DEVICE),
        read(DEVICE + 4),
        read(DEVICE),
        read(0xe000_0000),
        VmExit::Hlt,
    ]);
    let (end, handler, entries) = machine.play(script, &Recorder::default());
    assert!(matches!(end, VcpuEnd::Halted), "{end}");
    assert_eq!(
        entries[1..],
        [0x100, 0x104, 0x100, 0xffff_ffff].map(VmEntry::Value),
        "all ones where nobody answers"
    );
    let stats = handler.stats();
    assert_eq!((stats.mmio.searches, stats.mmio.cache_hits), (2, 2));
    assert_eq!(stats.exit(ExitKind::MmioRead).count, 4);
    assert_eq!(stats.mmio_bus.unclaimed_reads, 1);
    assert_eq!(
        (stats.mmio_bus.regions[0].name.as_str(), stats.mmio_bus.regions[0].reads),
        ("test", 3)
    );
}

#[test]
fn access_that_finds_memory_by_now_goes_to_the_memory() {
    let machine = Machine::new();
    let ram = TestRam::new(0x1000);
    ram.write(0, &0x1234_5678u32.to_le_bytes());
    let adding = Arc::clone(&machine);
    let memory = ram.clone();
    let script = ScriptedVcpu::new([read(DEVICE)])
        .then_call(move || {
            adding
                .slots
                .lock()
                .unwrap()
                .add(NewSlot::whole(Gpa::new(DEVICE), memory))
                .unwrap();
        })
        .then(read(DEVICE))
        .then(write(DEVICE + 4, 0xabcd))
        .then(VmExit::Hlt);
    let (_, handler, entries) = machine.play(script, &Recorder::default());
    assert_eq!(
        entries[1..],
        [
            VmEntry::Value(0xffff_ffff),
            VmEntry::Value(0x1234_5678),
            VmEntry::Resume
        ]
    );
    assert_eq!(ram.read_u64(0), 0x0000_abcd_1234_5678);
    assert_eq!(handler.stats().mmio.went_to_memory, 2);
}

#[test]
fn write_to_read_only_memory_goes_to_the_bus() {
    let machine = Machine::new();
    let ram = TestRam::new(0x1000);
    let rom = NewSlot::whole(Gpa::new(DEVICE), ram.clone()).with_flags(SlotFlags::READ_ONLY);
    machine.slots.lock().unwrap().add(rom).unwrap();
    let seen = Arc::new(AtomicU64::new(0));
    let device = Arc::clone(&seen);
    machine.claim(
        DEVICE,
        Function(move |_, _, op| {
            if let IoOp::Write(value) = op {
                device.store(value, Ordering::SeqCst);
            }
            IoOutcome::Done
        }),
    );
    machine.play(ScriptedVcpu::new([write(DEVICE, 7), VmExit::Hlt]), &Recorder::default());
    assert_eq!((seen.load(Ordering::SeqCst), ram.read_u64(0)), (7, 0));
}

#[test]
fn effects_are_applied_before_the_guest_goes_on_and_the_last_one_ends_it() {
    let machine = Machine::new();
    let range = GfnRange::single(Gfn::from_masked(0x1234));
    let map = Effect::MapRam {
        range,
        read_only: false,
    };
    let effect = Effect::All(vec![map.clone(), Effect::UnmapRam { range }]);
    machine.claim(
        DEVICE,
        Function(move |offset, _, _| match offset {
            0 => IoOutcome::Effect {
                value: 5,
                effect: Box::new(effect.clone()),
            },
            _ => IoOutcome::effect(Effect::Exit { code: 0x31 }),
        }),
    );
    let recorder = Recorder::default();
    let script = ScriptedVcpu::new([VmExit::IoapicEoi { vector: 9 }, read(DEVICE), write(DEVICE + 8, 0)]);
    let (end, _, entries) = machine.play(script, &recorder);
    assert!(matches!(end, VcpuEnd::Exit { code: 0x31 }), "{end}");
    assert_eq!(entries, [VmEntry::Resume, VmEntry::Resume, VmEntry::Value(5)]);
    assert_eq!(
        *recorder.effects.lock().unwrap(),
        [(0, map), (0, Effect::UnmapRam { range })]
    );
    assert_eq!(*recorder.vectors.lock().unwrap(), [9]);
}

#[test]
fn unknown_msr_faults_and_a_failing_host_ends_the_vcpu() {
    let machine = Machine::new();
    let script = ScriptedVcpu::new([
        VmExit::ReadMsr { index: 0x10a },
        VmExit::WriteMsr { index: 1, value: 2 },
    ])
    .then_fail(BackendError::Host {
        operation: "KVM_RUN",
        source: std::io::Error::from_raw_os_error(libc::EIO),
    });
    let (end, _, entries) = machine.play(script, &Recorder::default());
    assert!(matches!(end, VcpuEnd::Host(_)), "{end}");
    assert_eq!(entries[1..], [VmEntry::Fault, VmEntry::Fault]);
}

/// A guest that computes for ever and sees kicks, as KVM's would.
struct Spinner(Arc<Spin>);

#[derive(Default)]
struct Spin {
    kicked: Mutex<bool>,
    signal: Condvar,
    runs: AtomicU64,
}

impl Kick for Spin {
    fn kick(&self) {
        *self.kicked.lock().unwrap() = true;
        self.signal.notify_all();
    }
}

struct SpinKick(Arc<Spin>);

impl Kick for SpinKick {
    fn kick(&self) {
        self.0.kick();
    }
}

impl VcpuBackend for Spinner {
    fn run(&mut self, _: VmEntry) -> Result<VmExit, BackendError> {
        self.0.runs.fetch_add(1, Ordering::SeqCst);
        let mut kicked = self.0.kicked.lock().unwrap();
        while !*kicked {
            kicked = self.0.signal.wait(kicked).unwrap();
        }
        *kicked = false;
        Ok(VmExit::Interrupted)
    }

    fn regs(&mut self) -> Result<Regs, BackendError> {
        Ok(Regs::default())
    }

    fn set_regs(&mut self, _: &Regs) -> Result<(), BackendError> {
        Ok(())
    }

    fn system_regs(&mut self) -> Result<SystemRegs, BackendError> {
        Ok(SystemRegs::default())
    }

    fn set_system_regs(&mut self, _: &SystemRegs) -> Result<(), BackendError> {
        Ok(())
    }

    fn kick_handle(&self) -> Box<dyn Kick> {
        Box::new(SpinKick(Arc::clone(&self.0)))
    }
}

/// A vCPU of any kind.
type Any = Box<dyn VcpuBackend>;

fn spinners(machine: &Machine, count: usize) -> (Vec<(Spinner, ExitHandler)>, Vec<Arc<Spin>>) {
    let spins: Vec<Arc<Spin>> = (0..count).map(|_| Arc::default()).collect();
    (
        spins
            .iter()
            .map(|spin| (Spinner(Arc::clone(spin)), machine.handler()))
            .collect(),
        spins,
    )
}

#[test]
fn paused_vcpus_stand_still_until_resumed_however_often() {
    let machine = Machine::new();
    let (vcpus, spins) = spinners(&machine, 3);
    let threads = VcpuThreads::start(vcpus, Arc::new(Recorder::default())).unwrap();
    let runs = || {
        spins
            .iter()
            .map(|spin| spin.runs.load(Ordering::SeqCst))
            .collect::<Vec<_>>()
    };
    for _ in 0..200 {
        threads.control().pause(LONG).unwrap();
        let before = runs();
        for spin in &spins {
            spin.kick();
        }
        std::thread::yield_now();
        assert_eq!(runs(), before);
        // Statistics of a paused machine are to be had too.
        assert_eq!(threads.control().stats(LONG).unwrap().len(), 3);
        threads.control().resume();
    }
    threads.control().pause(LONG).unwrap();
    let stats = threads.finish(LONG).unwrap();
    assert!(stats.iter().all(|stats| stats.exit(ExitKind::Interrupted).count >= 1));
}

#[test]
fn vcpu_that_hangs_in_a_device_is_named_and_the_others_go_on() {
    let machine = Machine::new();
    let release = Arc::new(AtomicBool::new(false));
    let entered = Arc::new(AtomicBool::new(false));
    let (hold, inside) = (Arc::clone(&release), Arc::clone(&entered));
    machine.claim(
        DEVICE,
        Function(move |_, _, _| {
            inside.store(true, Ordering::SeqCst);
            while !hold.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            IoOutcome::effect(Effect::PowerOff)
        }),
    );
    let spin = Arc::<Spin>::default();
    let vcpus = vec![
        (Box::new(Spinner(Arc::clone(&spin))) as Any, machine.handler()),
        (Box::new(ScriptedVcpu::new([write(DEVICE, 0)])), machine.handler()),
    ];
    let threads = VcpuThreads::start(vcpus, Arc::new(Recorder::default())).unwrap();
    while !entered.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    let refused = threads.control().pause(SHORT).unwrap_err();
    assert_eq!(refused.vcpus, [1]);
    assert!(
        refused.to_string().starts_with("vCPU 1 did not answer within 50ms"),
        "{refused}"
    );
    // The one that did answer runs again.
    let before = spin.runs.load(Ordering::SeqCst);
    spin.kick();
    while spin.runs.load(Ordering::SeqCst) == before {
        std::thread::yield_now();
    }
    release.store(true, Ordering::SeqCst);
    assert_eq!(threads.control().wait_first(Some(LONG)), Some(1));
    threads.control().wait_all(LONG).unwrap();
    assert!(matches!(threads.control().take_end(1), Some(VcpuEnd::PowerOff)));
    assert!(matches!(threads.control().take_end(0), Some(VcpuEnd::Stopped)));
    threads.finish(LONG).unwrap();
}

#[test]
fn panicking_device_ends_every_vcpu_and_its_words_are_told() {
    let machine = Machine::new();
    machine.claim(DEVICE, Function(|_, _, _| panic!("the device is broken")));
    let vcpus = vec![
        (Box::new(Spinner(Arc::default())) as Any, machine.handler()),
        (Box::new(ScriptedVcpu::new([write(DEVICE, 0)])), machine.handler()),
        (Box::new(Spinner(Arc::default())) as Any, machine.handler()),
    ];
    let threads = VcpuThreads::start(vcpus, Arc::new(Recorder::default())).unwrap();
    assert_eq!(threads.control().wait_first(Some(LONG)), Some(1));
    let end = threads.control().take_end(1);
    assert!(
        matches!(&end, Some(VcpuEnd::Panicked(message)) if message == "the device is broken"),
        "{end:?}"
    );
    threads.finish(LONG).unwrap();
}

#[test]
fn failing_guest_leaves_a_report_and_the_threads_have_names() {
    let machine = Machine::new();
    let name = Arc::new(Mutex::new(String::new()));
    let asked = Arc::clone(&name);
    machine.claim(
        DEVICE,
        Function(move |_, _, _| {
            *asked.lock().unwrap() = std::thread::current().name().unwrap_or_default().to_owned();
            IoOutcome::Value(0)
        }),
    );
    let vcpus = vec![(ScriptedVcpu::new([read(DEVICE), VmExit::Shutdown]), machine.handler())];
    let threads = VcpuThreads::start(vcpus, Arc::new(Recorder::default())).unwrap();
    assert_eq!(threads.control().wait_first(None), Some(0));
    let Some(VcpuEnd::Failed(report)) = threads.control().take_end(0) else {
        panic!("no report")
    };
    assert!(report.to_string().starts_with("vCPU 0: triple fault"), "{report}");
    assert_eq!(*name.lock().unwrap(), "vcpu0");
    threads.finish(LONG).unwrap();
}
