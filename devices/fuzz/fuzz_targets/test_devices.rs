//! Histories of accesses, resets, saves and restores of one of the devices for tests, which the first byte chooses.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::io;
use umbra_devices::models::debug_console::{self, DebugConsole};
use umbra_devices::models::debug_exit::{self, DebugExit};
use umbra_devices::models::scratch::{self, Scratch};
use umbra_devices::models::slot_control::{self, SlotControl};
use umbra_devices::testing::fuzz::device;

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    match choice % 4 {
        0 => device(data, scratch::regs::LEN, &Scratch::new()),
        1 => device(data, slot_control::regs::LEN, &SlotControl::new()),
        2 => device(data, debug_exit::regs::LEN, &DebugExit::new()),
        _ => device(data, debug_console::regs::LEN, &DebugConsole::new(io::sink())),
    }
});
