//! Histories of accesses, resets, saves and restores of one PC device, which the first byte chooses.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::io;
use std::sync::Arc;
use umbra_devices::models::cmos::{self, Cmos, MemorySize};
use umbra_devices::models::fpu_error::{self, FpuErrorLogic};
use umbra_devices::models::i8042::{self, I8042};
use umbra_devices::models::ioapic::{self, IoApic};
use umbra_devices::models::lapic::{self, ApicBus};
use umbra_devices::models::pm::{self, PowerControl, ResetControl};
use umbra_devices::models::serial::{self, Serial};
use umbra_devices::testing::RecordingMsiSink;
use umbra_devices::testing::fuzz::device;
use umbra_devices::{IrqLine, ManualClock};

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    match choice % 8 {
        0 => device(data, serial::regs::LEN, &Serial::new(io::sink(), IrqLine::detached())),
        1 => device(data, i8042::regs::LEN, &I8042::new()),
        2 => {
            let memory = MemorySize { below_4g: 1 << 30, above_4g: 1 << 32 };
            device(data, cmos::regs::LEN, &Cmos::new(Arc::new(ManualClock::default()), memory));
        }
        3 => device(data, pm::regs::LEN, &PowerControl::new()),
        4 => device(data, ioapic::regs::LEN, &IoApic::new(Arc::new(RecordingMsiSink::default()))),
        5 => {
            let bus = ApicBus::new(2, Arc::new(ManualClock::default()), 1);
            device(data, lapic::regs::LEN, &*bus.apics()[0]);
        }
        6 => device(data, fpu_error::regs::LEN, &FpuErrorLogic::new(IrqLine::detached())),
        _ => device(data, ResetControl::LEN, &ResetControl::new()),
    }
});
