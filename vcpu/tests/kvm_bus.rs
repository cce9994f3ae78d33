//! What the kernel does in our place: ioeventfds, writes kept back, interrupt lines.
#![cfg(target_arch = "x86_64")]

mod support;

use iced_x86::code_asm::*;
use std::sync::Arc;
use support::{Guest, MMIO, run};
use umbra_devices::bus::{Bus, EventHandle, EventMatch, IoEvent};
use umbra_devices::irq::{Gsi, IrqSink};
use umbra_devices::{BusRange, IoOp, IoSize, Port};
use umbra_memslots::Gpa;
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::kvm::{GsiRoute, Irqchip, RouteTarget};

/// How often an eventfd was signalled since the last time.
fn count(event: &EventHandle) -> u64 {
    event.eventfd().read().unwrap_or(0)
}

#[test]
fn ioeventfd_of_each_kind_takes_its_writes_and_no_others() {
    let Some(guest) = Guest::new(Irqchip::None, 1) else {
        return;
    };
    let (mmio, ports) = (Bus::<Gpa>::new(), Bus::<Port>::new());
    mmio.set_mirror(Arc::new(guest.vm.bus_mirror())).unwrap();
    ports.set_mirror(Arc::new(guest.vm.bus_mirror())).unwrap();
    let events: Vec<EventHandle> = (0..4).map(|_| EventHandle::new().unwrap()).collect();
    let at = |offset, matching, event: usize| IoEvent {
        addr: Gpa::new(MMIO + offset),
        matching,
        event: events[event].clone(),
    };
    mmio.assign_event(at(0x00, EventMatch::Anything, 0)).unwrap();
    mmio.assign_event(at(0x10, EventMatch::Size(IoSize::B4), 1)).unwrap();
    mmio.assign_event(at(0x20, EventMatch::Value(IoSize::B4, 7), 2))
        .unwrap();
    let event = events[3].clone();
    let port = IoEvent {
        addr: Port::new(0x90),
        matching: EventMatch::Value(IoSize::B1, 9),
        event,
    };
    ports.assign_event(port.clone()).unwrap();
    let mut vcpu = guest.long_mode(0, |a| {
        a.mov(rbx, MMIO)?;
        a.mov(ecx, 7)?;
        a.mov(byte_ptr(rbx), cl)?;
        a.mov(qword_ptr(rbx), rcx)?;
        a.mov(dword_ptr(rbx + 0x10), ecx)?;
        a.mov(word_ptr(rbx + 0x10), cx)?;
        a.mov(dword_ptr(rbx + 0x20), ecx)?;
        a.inc(ecx)?;
        a.mov(dword_ptr(rbx + 0x20), ecx)?;
        a.mov(al, 9)?;
        a.out(0x90, al)?;
        a.inc(al)?;
        a.out(0x90, al)?;
        a.mov(al, 9)?;
        a.out(0x90, al)?;
        a.hlt()
    });
    let write = |offset, size, value| VmExit::Mmio {
        gpa: Gpa::new(MMIO + offset),
        size,
        op: IoOp::Write(value),
    };
    let out = |value| VmExit::Pio {
        port: 0x90,
        size: IoSize::B1,
        op: IoOp::Write(value),
    };
    assert_eq!(run(&mut vcpu, VmEntry::Resume), write(0x10, IoSize::B2, 7));
    assert_eq!(run(&mut vcpu, VmEntry::Resume), write(0x20, IoSize::B4, 8));
    assert_eq!(run(&mut vcpu, VmEntry::Resume), out(10));
    assert_eq!(events.iter().map(count).collect::<Vec<_>>(), [2, 1, 1, 1]);
    // Given up, the write is an exit again.
    ports.deassign_event(&port).unwrap();
    assert_eq!(run(&mut vcpu, VmEntry::Resume), out(9));
    assert_eq!(run(&mut vcpu, VmEntry::Resume), VmExit::Hlt);
}

#[test]
fn kept_back_writes_come_before_the_exit_that_follows_them_and_in_order() {
    let Some(guest) = Guest::new(Irqchip::None, 1) else {
        return;
    };
    let mmio = Bus::<Gpa>::new();
    mmio.set_mirror(Arc::new(guest.vm.bus_mirror())).unwrap();
    let zone = BusRange::new(Gpa::new(MMIO), 0x100).unwrap();
    mmio.coalesce(zone).unwrap();
    // More than the kernel's ring holds: when it is full the write is an exit, behind those in the ring.
    let writes = 400u32;
    let mut vcpu = guest.long_mode(0, |a| {
        let mut again = a.create_label();
        a.mov(rbx, MMIO)?;
        a.xor(ecx, ecx)?;
        a.set_label(&mut again)?;
        a.mov(dword_ptr(rbx + 8), ecx)?;
        a.inc(ecx)?;
        a.cmp(ecx, i32::try_from(writes).unwrap_or(0))?;
        a.jne(again)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.mov(qword_ptr(rbx + 0xffd), rax)?;
        a.hlt()
    });
    for value in 0..writes {
        let write = VmExit::Mmio {
            gpa: Gpa::new(MMIO + 8),
            size: IoSize::B4,
            op: IoOp::Write(value.into()),
        };
        assert_eq!(run(&mut vcpu, VmEntry::Resume), write);
    }
    let read = VmExit::Mmio {
        gpa: Gpa::new(MMIO),
        size: IoSize::B8,
        op: IoOp::Read,
    };
    assert_eq!(run(&mut vcpu, VmEntry::Resume), read);
    // A kick does not disturb what is under way.
    vcpu.kick_handle().kick();
    assert_eq!(
        run(&mut vcpu, VmEntry::Value(0x8877_6655_4433_2211)),
        VmExit::Interrupted
    );
    let mut bytes = Vec::new();
    let mut exit = run(&mut vcpu, VmEntry::Resume);
    while let VmExit::Mmio {
        size,
        op: IoOp::Write(value),
        ..
    } = exit
    {
        bytes.extend_from_slice(&value.to_le_bytes()[..usize::try_from(size.bytes()).unwrap()]);
        exit = run(&mut vcpu, VmEntry::Resume);
    }
    assert_eq!(
        (bytes, exit),
        (0x8877_6655_4433_2211u64.to_le_bytes().to_vec(), VmExit::Hlt)
    );
    mmio.uncoalesce(zone).unwrap();
}

#[test]
fn line_raised_by_a_device_interrupts_the_guest() {
    let Some(guest) = Guest::new(Irqchip::Kernel, 1) else {
        return;
    };
    // Interrupt 0x24 is the first PIC's line 4 after the initialisation below.
    guest.load(16, 0x3000, |a| {
        a.mov(al, 0x55)?;
        a.out(0x80, al)?;
        a.mov(al, 0x20)?;
        a.out(0x20, al)?;
        a.iret()
    });
    guest.ram.write(4 * 0x24, &[0, 0x30, 0, 0]);
    let mut vcpu = guest.real_mode(0, |a| {
        for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xef)] {
            a.mov(al, value)?;
            a.out(port, al)?;
        }
        a.out(0x81, al)?;
        a.sti()?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.hlt()?;
        a.jmp(again)
    });
    let ready = run(&mut vcpu, VmEntry::Resume);
    assert!(matches!(ready, VmExit::Pio { port: 0x81, .. }), "{ready:?}");
    let sink = guest.vm.irq_sink();
    for _ in 0..3 {
        // Edge-triggered, as a PC's: up and down again.
        sink.set_level(Gsi(4), true);
        sink.set_level(Gsi(4), false);
        let answer = VmExit::Pio {
            port: 0x80,
            size: IoSize::B1,
            op: IoOp::Write(0x55),
        };
        assert_eq!(run(&mut vcpu, VmEntry::Resume), answer);
    }
    assert_eq!(sink.refused(), 0);
}

#[test]
fn routes_are_checked_and_lines_without_a_controller_are_counted() {
    let Some(guest) = Guest::new(Irqchip::Kernel, 1) else {
        return;
    };
    let route = |target| GsiRoute { gsi: Gsi(5), target };
    let msi = RouteTarget::Msi {
        address: 0xfee0_0000,
        data: 0x31,
    };
    guest
        .vm
        .set_gsi_routes(&[route(RouteTarget::PicMaster(5)), route(RouteTarget::IoApic(5))])
        .unwrap();
    guest
        .vm
        .set_gsi_routes(&[
            route(msi),
            GsiRoute {
                gsi: Gsi(40),
                target: msi,
            },
        ])
        .unwrap();
    assert!(guest.vm.set_gsi_routes(&[route(RouteTarget::IoApic(24))]).is_err());
    assert!(guest.vm.set_gsi_routes(&vec![route(msi); 5000]).is_err());
    let bare = Guest::new(Irqchip::None, 1).unwrap();
    let sink = bare.vm.irq_sink();
    sink.set_level(Gsi(4), true);
    assert_eq!(sink.refused(), 1);
}
