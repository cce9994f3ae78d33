//! The devices of a machine and where they answer.

use super::chipset::Legacy;
use crate::builtin::plan;
use crate::layout::{HOLE_START, IOAPIC_BASE, MemoryLayout};
use std::io::Write;
use std::sync::Arc;
use umbra_devices::Clock;
use umbra_devices::bus::{BusError, EventHandle};
use umbra_devices::irq::{Gsi, IrqLine, IrqPins, IrqSink};
use umbra_devices::models::cmos::{self, Cmos, MemorySize};
use umbra_devices::models::debug_console::{self, DebugConsole};
use umbra_devices::models::debug_exit::{self, DebugExit};
use umbra_devices::models::i8042::I8042;
use umbra_devices::models::ioapic::{self, IoApic};
use umbra_devices::models::pm::{self, PowerControl, ResetControl};
use umbra_devices::models::scratch::{self, Scratch};
use umbra_devices::models::serial::{self, Serial};
use umbra_devices::models::slot_control::{self, SlotControl};
use umbra_devices::{Bus, Port};
use umbra_memslots::Gpa;

/// A machine's buses with its devices on them.
pub struct Board {
    /// Devices in the guest's memory.
    pub mmio: Arc<Bus<Gpa>>,
    /// Devices at ports.
    pub ports: Arc<Bus<Port>>,
    /// The console.
    pub serial: Arc<Serial>,
    /// Signalled when the console has room for input again.
    pub room: EventHandle,
}

/// Why a board could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    /// The host has no file descriptor left.
    #[error("no event descriptor for the console: {0}")]
    Event(#[from] std::io::Error),
    /// Two devices want the same ports.
    #[error(transparent)]
    Ports(#[from] BusError<Port>),
    /// Two devices want the same addresses.
    #[error(transparent)]
    Mmio(#[from] BusError<Gpa>),
}

impl Board {
    /// A PC's devices as far as a guest needs them; the guest writes its console to `console`. Interrupts end in `sink`,
    /// or nowhere. The time of day is that of `clock`.
    ///
    /// # Errors
    /// [`BoardError`].
    pub fn new(
        layout: &MemoryLayout,
        console: impl Write + Clone + Send + 'static,
        sink: Option<Arc<dyn IrqSink>>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, BoardError> {
        let line = |gsi| {
            sink.as_ref()
                .map_or_else(IrqLine::detached, |sink| IrqPins::new(Arc::clone(sink)).line(gsi))
        };
        let room = EventHandle::new()?;
        let serial = Serial::new(console.clone(), line(Gsi(serial::regs::COM1_IRQ))).with_room_event(room.clone());
        let serial = Arc::new(serial);
        let below_4g = layout.bytes().min(HOLE_START.get());
        let memory = MemorySize {
            below_4g,
            above_4g: layout.bytes() - below_4g,
        };

        let ports = Arc::new(Bus::new());
        let claim = |name, first, len, device| ports.claim(name, Port::new(first), len, device).map(drop);
        claim("com1", serial::regs::COM1_PORT, serial::regs::LEN, serial.clone())?;
        claim(
            "cmos",
            cmos::regs::PORT,
            cmos::regs::LEN,
            Arc::new(Cmos::new(clock, memory)),
        )?;
        claim("power", pm::regs::PORT, pm::regs::LEN, Arc::new(PowerControl::new()))?;
        claim(
            "reset",
            pm::regs::RESET_CONTROL_PORT,
            ResetControl::LEN,
            Arc::new(ResetControl::new()),
        )?;
        claim(
            "debug-exit",
            debug_exit::regs::PORT,
            debug_exit::regs::LEN,
            Arc::new(DebugExit::new()),
        )?;
        let debug_console = Arc::new(DebugConsole::new(console));
        claim(
            "debug-console",
            debug_console::regs::PORT,
            debug_console::regs::LEN,
            debug_console,
        )?;
        Arc::new(I8042::new()).claim(&ports)?;
        Ok(Self {
            mmio: Arc::new(Bus::new()),
            ports,
            serial,
            room,
        })
    }

    /// Adds the 8259s, the timer and the ports for x87 errors that a machine without KVM's own needs.
    ///
    /// # Errors
    /// [`BoardError::Ports`].
    pub fn add_legacy(&self, legacy: &Legacy) -> Result<(), BoardError> {
        legacy.pic.claim(&self.ports)?;
        legacy.pit.claim(&self.ports)?;
        legacy.fpu_errors.claim(&self.ports)?;
        Ok(())
    }

    /// Adds the I/O APIC that a machine without KVM's own needs.
    ///
    /// # Errors
    /// [`BoardError::Mmio`].
    pub fn add_ioapic(&self, ioapic: &Arc<IoApic>) -> Result<(), BoardError> {
        self.mmio
            .claim("ioapic", IOAPIC_BASE, ioapic::regs::LEN, Arc::clone(ioapic) as _)?;
        Ok(())
    }

    /// Adds what the built-in guest plays with: the test device's pages and the slot control.
    ///
    /// # Errors
    /// [`BoardError::Mmio`].
    pub fn add_test_devices(&self) -> Result<(), BoardError> {
        for page in 0..u64::from(plan::SCRATCH_PAGES) {
            let start = plan::SCRATCH.wrapping_add(page * scratch::regs::LEN);
            self.mmio.claim(
                &format!("scratch{page}"),
                start,
                scratch::regs::LEN,
                Arc::new(Scratch::new()),
            )?;
        }
        self.mmio.claim(
            "slot-control",
            plan::SLOT_CONTROL,
            slot_control::regs::LEN,
            Arc::new(SlotControl::new()),
        )?;
        Ok(())
    }
}

const _: () = assert!(plan::DEBUG_EXIT_PORT == debug_exit::regs::PORT && plan::SERIAL_PORT == serial::regs::COM1_PORT);

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_devices::bus::AnsweredBy;
    use umbra_devices::{Effect, HostClock, IoSize};

    #[test]
    fn devices_answer_where_guests_look_for_them() {
        let board = Board::new(
            &MemoryLayout::plan(16 << 20, 48).unwrap(),
            Vec::new(),
            None,
            Arc::new(HostClock::new()),
        )
        .unwrap();
        board.add_test_devices().unwrap();
        let mut ports = board.ports.cursor();
        for port in [0x3f8, 0x3ff, 0x70, 0x71, 0x60, 0x64, 0xf4, 0xe9, 0x600, 0x604, 0xcf9] {
            let answer = ports.read(Port::new(port), IoSize::B1);
            assert!(!matches!(answer.by, AnsweredBy::Nobody), "port {port:#x}");
        }
        assert_eq!(
            ports.read(Port::new(0x2f8), IoSize::B1).by,
            AnsweredBy::Nobody,
            "no COM2"
        );
        let exit = ports.write(Port::new(0xf4), IoSize::B4, 5).effect;
        assert_eq!(exit, Some(Box::new(Effect::Exit { code: 5 })));
        let mut mmio = board.mmio.cursor();
        for gpa in [plan::SCRATCH, plan::SCRATCH.wrapping_add(0x3000), plan::SLOT_CONTROL] {
            let answer = mmio.read(gpa, IoSize::B8);
            assert!(matches!(answer.by, AnsweredBy::Region(_)), "{gpa}");
        }
    }
}
