//! The screen, as a terminal would show it.

use super::draw::{Picture, Rate, draw};
use super::{ConsolePane, rates};
use crate::report::RunReport;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use std::io::Write;
use std::time::Duration;
use umbra_vcpu::stats::{ExitKind, ExitStat, HotPage, MmioStats, VcpuStats};

fn report(seconds: u64, reads: u64) -> RunReport {
    let stat = |count| ExitStat {
        count,
        ..ExitStat::default()
    };
    RunReport {
        backend: "kvm",
        vcpus: 2,
        wall: Duration::from_secs(seconds),
        slot_generation: 49,
        page_tables: 5,
        stats: VcpuStats {
            exits: vec![(ExitKind::MmioRead, stat(reads)), (ExitKind::PioWrite, stat(10))],
            mmio: MmioStats {
                cache_hits: 16_384,
                spte_hits: 8_192,
                searches: 1,
                stale: 7,
                ..MmioStats::default()
            },
            faults: [("mapped", 321), ("for the guest", 0)].into(),
            hot_pages: vec![HotPage {
                gfn: 0xd0000,
                accesses: 12_345,
            }],
            ..VcpuStats::default()
        },
        ..RunReport::default()
    }
}

fn screen(width: u16, height: u16, rates: &[Rate], console: &[u8]) -> String {
    let mut pane = ConsolePane::default();
    pane.write_all(console).unwrap();
    let report = report(2, 1000);
    let picture = Picture {
        report: &report,
        rates,
        console: &pane,
        notice: "Ctrl-a x ends the guest",
    };
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, &picture)).unwrap();
    terminal.backend().to_string()
}

#[test]
fn every_number_is_in_its_place() {
    let rates = rates(&report(1, 250), &report(2, 1000)).unwrap();
    let shown = screen(100, 24, &rates, b"booting\r\nlogin: ");
    for part in [
        "kvm · 2 vCPUs · 2.0 s · 1 010 exits · slot generation 49 · 5 shadow pages",
        "vCPU cache       16 384 ███████",
        "MMIO SPTE         8 192 ████",
        "search                1 █",
        "stale SPTEs met       7",
        "mapped              321",
        "MMIO read               750",
        "port write                0",
        "0x000d0000000      12 345",
        "│booting",
        "│login:",
        "Ctrl-a x ends the guest",
    ] {
        assert!(shown.contains(part), "`{part}` in\n{shown}");
    }
    let order = |part| shown.find(part).unwrap();
    assert!(order("MMIO read") < order("port write"), "the most frequent first");
}

#[test]
fn console_shows_its_end() {
    let text: Vec<u8> = (0..100).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
    let shown = screen(80, 24, &[], &text);
    assert!(shown.contains("line 99") && !shown.contains("line 50"), "{shown}");
}

#[test]
fn any_size_can_be_drawn_on() {
    for (width, height) in [(1, 1), (3, 2), (20, 5), (40, 8), (500, 3), (200, 100)] {
        screen(width, height, &[], b"text");
    }
}

#[test]
fn rates_begin_anew_after_a_reset_and_need_some_time() {
    let before = report(100, 50_000);
    let after = rates(&before, &report(1, 500)).unwrap();
    assert_eq!(after[0].per_second, 500.0);
    assert!(rates(&before, &before).is_none());
}
