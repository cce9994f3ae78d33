//! Kicks are never lost: before, during and after `KVM_RUN`, in `hlt`, while waiting to be started, under load.
#![cfg(target_arch = "x86_64")]

mod support;

use iced_x86::code_asm::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::{Guest, MMIO, Random, in_full, run};
use umbra_devices::{IoOp, IoSize};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::kvm::{Irqchip, KvmVcpu};

/// More than enough for anything here that works at all.
const DEADLINE: Duration = Duration::from_secs(60);

fn spin_until(done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "a kick was lost");
        thread::yield_now();
    }
}

fn endless_loop(guest: &Guest, id: u32) -> KvmVcpu {
    guest.real_mode(id, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.jmp(again)
    })
}

#[test]
fn kick_before_the_first_run_and_between_runs_is_seen_by_the_next() {
    let Some(guest) = Guest::new(Irqchip::None, 1) else {
        return;
    };
    let mut vcpu = guest.real_mode(0, |a| {
        a.out(0x80, al)?;
        a.hlt()
    });
    let kick = vcpu.kick_handle();
    kick.kick();
    kick.kick();
    assert_eq!(run(&mut vcpu, VmEntry::Resume), VmExit::Interrupted);
    let out = VmExit::Pio {
        port: 0x80,
        size: IoSize::B1,
        op: IoOp::Write(0),
    };
    assert_eq!(run(&mut vcpu, VmEntry::Resume), out);
    // The exit waits for its answer; the kick does not make it be forgotten.
    kick.kick();
    assert_eq!(run(&mut vcpu, VmEntry::Resume), VmExit::Interrupted);
    assert_eq!(run(&mut vcpu, VmEntry::Resume), VmExit::Hlt);
}

#[test]
fn answer_to_a_read_survives_a_kick() {
    let Some(guest) = Guest::new(Irqchip::None, 1) else {
        return;
    };
    let mut vcpu = guest.long_mode(0, |a| {
        a.mov(rbx, MMIO)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.hlt()
    });
    run(&mut vcpu, VmEntry::Resume);
    vcpu.kick_handle().kick();
    assert_eq!(
        run(&mut vcpu, VmEntry::Value(0x0123_4567_89ab_cdef)),
        VmExit::Interrupted
    );
    assert_eq!(vcpu.regs().unwrap().rax, 0x0123_4567_89ab_cdef);
    assert_eq!(run(&mut vcpu, VmEntry::Resume), VmExit::Hlt);
}

#[test]
fn every_kick_of_a_storm_is_answered() {
    let Some(guest) = Guest::new(Irqchip::None, 1) else {
        return;
    };
    let mut vcpu = endless_loop(&guest, 0);
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let kicks = [vcpu.kick_handle(), vcpu.kick_handle()];
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                assert_eq!(run(&mut vcpu, VmEntry::Resume), VmExit::Interrupted);
                answered.fetch_add(1, Ordering::SeqCst);
            }
        });
        let storms: Vec<_> = kicks
            .iter()
            .map(|kick| {
                scope.spawn(|| {
                    for _ in 0..in_full(1000) {
                        let before = answered.load(Ordering::SeqCst);
                        kick.kick();
                        spin_until(|| answered.load(Ordering::SeqCst) > before);
                    }
                })
            })
            .collect();
        for storm in storms {
            storm.join().unwrap();
        }
        stop.store(true, Ordering::SeqCst);
        kicks[0].kick();
    });
}

#[test]
fn storm_neither_drops_nor_repeats_an_exit() {
    let Some(guest) = Guest::new(Irqchip::None, 1) else {
        return;
    };
    let mut vcpu = guest.long_mode(0, |a| {
        let mut again = a.create_label();
        a.mov(rbx, MMIO)?;
        a.xor(eax, eax)?;
        a.set_label(&mut again)?;
        a.inc(rax)?;
        a.mov(qword_ptr(rbx + 0xffd), rax)?;
        a.out(0x80, eax)?;
        a.jmp(again)
    });
    let (done, exits) = (AtomicBool::new(false), AtomicU64::new(0));
    let kick = vcpu.kick_handle();
    let interruptions = thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random::new("pauses between kicks");
            while !done.load(Ordering::SeqCst) {
                kick.kick();
                // Kicks that come faster than the guest can be entered would, on a slow machine, be all that ever happens.
                let enough = exits.load(Ordering::SeqCst) + random.below(3);
                spin_until(|| exits.load(Ordering::SeqCst) >= enough || done.load(Ordering::SeqCst));
            }
        });
        let mut interruptions = 0;
        for turn in 1..u64::from(in_full(2000)) {
            // 8 bytes across a page border in pieces, then the port.
            let mut bytes = Vec::new();
            loop {
                let exit = run(&mut vcpu, VmEntry::Resume);
                exits.fetch_add(u64::from(exit != VmExit::Interrupted), Ordering::SeqCst);
                match exit {
                    VmExit::Interrupted => interruptions += 1,
                    VmExit::Mmio {
                        size,
                        op: IoOp::Write(value),
                        ..
                    } => {
                        bytes.extend_from_slice(&value.to_le_bytes()[..usize::try_from(size.bytes()).unwrap()]);
                    }
                    exit => {
                        assert_eq!(
                            exit,
                            VmExit::Pio {
                                port: 0x80,
                                size: IoSize::B4,
                                op: IoOp::Write(turn)
                            }
                        );
                        break;
                    }
                }
            }
            assert_eq!(bytes, turn.to_le_bytes());
        }
        done.store(true, Ordering::SeqCst);
        interruptions
    });
    assert!(interruptions > 0);
}

#[test]
fn kick_ends_a_halt_in_the_kernel() {
    let Some(guest) = Guest::new(Irqchip::Kernel, 1) else {
        return;
    };
    let mut vcpu = guest.real_mode(0, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.cli()?;
        a.hlt()?;
        a.jmp(again)
    });
    let kick = vcpu.kick_handle();
    let answered = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..50 {
                assert_eq!(run(&mut vcpu, VmEntry::Resume), VmExit::Interrupted);
                answered.fetch_add(1, Ordering::SeqCst);
            }
        });
        while answered.load(Ordering::SeqCst) < 50 {
            let before = answered.load(Ordering::SeqCst);
            kick.kick();
            spin_until(|| answered.load(Ordering::SeqCst) > before);
        }
    });
}

#[test]
fn kick_reaches_a_vcpu_that_waits_to_be_started_and_it_can_be_started_afterwards() {
    let Some(guest) = Guest::new(Irqchip::Kernel, 2) else {
        return;
    };
    // The application processor starts at vector << 12.
    guest.load(16, 0x2000, |a| {
        a.out(0x81, al)?;
        a.hlt()
    });
    // INIT, then a start-up interrupt with vector 2, to everybody else (SDM vol. 3A section 11.6.1).
    let mut boot = guest.real_mode(0, |a| {
        a.mov(dword_ptr(0x300), 0x000c_4500)?;
        a.mov(dword_ptr(0x300), 0x000c_4602)?;
        a.out(0x80, al)?;
        a.hlt()
    });
    let mut system = boot.system_regs().unwrap();
    system.ds.base = 0xfee0_0000;
    boot.set_system_regs(&system).unwrap();
    let mut other = guest.vm.create_vcpu(1).unwrap();
    let kick = other.kick_handle();
    let waiting = Arc::new(AtomicU64::new(0));
    thread::scope(|scope| {
        let seen = Arc::clone(&waiting);
        let application = scope.spawn(move || {
            for _ in 0..2 {
                assert_eq!(run(&mut other, VmEntry::Resume), VmExit::Interrupted);
                // Looked at while it waits: must not confuse its start.
                let regs = other.regs().unwrap();
                other.set_regs(&regs).unwrap();
                seen.fetch_add(1, Ordering::SeqCst);
            }
            run(&mut other, VmEntry::Resume)
        });
        for _ in 0..2 {
            let before = waiting.load(Ordering::SeqCst);
            kick.kick();
            spin_until(|| waiting.load(Ordering::SeqCst) > before);
        }
        let mut exit = run(&mut boot, VmEntry::Resume);
        while exit == VmExit::Interrupted {
            exit = run(&mut boot, VmEntry::Resume);
        }
        assert_eq!(
            exit,
            VmExit::Pio {
                port: 0x80,
                size: IoSize::B1,
                op: IoOp::Write(0)
            }
        );
        let started = application.join().unwrap();
        assert!(matches!(started, VmExit::Pio { port: 0x81, .. }), "{started:?}");
    });
}

#[test]
fn kick_follows_a_vcpu_from_thread_to_thread() {
    let Some(guest) = Guest::new(Irqchip::None, 1) else {
        return;
    };
    let mut vcpu = endless_loop(&guest, 0);
    let kick: Arc<dyn umbra_vcpu::backend::Kick> = vcpu.kick_handle().into();
    for _ in 0..100 {
        let kick = Arc::clone(&kick);
        let kicker = thread::spawn(move || kick.kick());
        vcpu = thread::spawn(move || {
            assert_eq!(run(&mut vcpu, VmEntry::Resume), VmExit::Interrupted);
            vcpu
        })
        .join()
        .unwrap();
        kicker.join().unwrap();
    }
    drop(vcpu);
    // Nobody there any more: no harm.
    kick.kick();
}
