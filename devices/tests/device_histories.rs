//! The fuzz bodies of the device models, over random histories.
#![cfg(not(loom))]

use proptest::prelude::*;
use std::io;
use std::sync::Arc;
use umbra_devices::models::cmos::{self, Cmos, MemorySize};
use umbra_devices::models::fpu_error::{self, FpuErrorLogic};
use umbra_devices::models::i8042::{self, I8042};
use umbra_devices::models::ioapic::{self, IoApic};
use umbra_devices::models::lapic::{self, ApicBus};
use umbra_devices::models::pm::{self, PowerControl, ResetControl};
use umbra_devices::models::scratch::{self, Scratch};
use umbra_devices::models::serial::{self, Serial};
use umbra_devices::models::slot_control::{self, SlotControl};
use umbra_devices::testing::{RecordingMsiSink, fuzz};
use umbra_devices::{IrqLine, ManualClock};

proptest! {
    #[test]
    fn every_model_survives_random_histories(data in prop::collection::vec(any::<u8>(), 0..2000)) {
        fuzz::device(&data, serial::regs::LEN, &Serial::new(io::sink(), IrqLine::detached()));
        fuzz::device(&data, i8042::regs::LEN, &I8042::new());
        fuzz::device(&data, fpu_error::regs::LEN, &FpuErrorLogic::new(IrqLine::detached()));
        let memory = MemorySize { below_4g: 1 << 30, above_4g: 0 };
        fuzz::device(&data, cmos::regs::LEN, &Cmos::new(Arc::new(ManualClock::default()), memory));
        fuzz::device(&data, ioapic::regs::LEN, &IoApic::new(Arc::new(RecordingMsiSink::default())));
        let bus = ApicBus::new(2, Arc::new(ManualClock::default()), 1);
        fuzz::device(&data, lapic::regs::LEN, &*bus.apics()[0]);
        fuzz::device(&data, pm::regs::LEN, &PowerControl::new());
        fuzz::device(&data, ResetControl::LEN, &ResetControl::new());
        fuzz::device(&data, scratch::regs::LEN, &Scratch::new());
        fuzz::device(&data, slot_control::regs::LEN, &SlotControl::new());
    }

    #[test]
    fn local_apics_do_what_naive_ones_do(data in prop::collection::vec(any::<u8>(), 0..2000)) {
        fuzz::apics(&data);
    }
}
