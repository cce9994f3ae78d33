//! Measures how a `vmm` starts, from inside the lab: from `exec` to the guest's first instruction and to the guest's
//! `/init`, and how much memory it needs beyond the guest's RAM. With QEMU's `-icount shift=0` a nanosecond in there
//! is an instruction, so these are instruction counts that come out the same each time.
//!
//! usage: startup NAME KERNEL [FLAG…]
//!
//! All times come from the kernel's trace: `sched_process_exec` and the first `kvm_entry` as they happen, and a mark
//! that this program writes when it reads on the serial line what `/init` says. Recording each entry costs instructions,
//! so the way to `/init` is measured in a run of its own. While the CPU idles the clock runs on without instructions:
//! that time is told apart (`KVM_CREATE_VM` waits for an RCU grace period, about 9 ms).

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;
use umbra_integration_tests::console::Console;
use umbra_integration_tests::{guest_files, linux_init};

const TRACING: &str = "/sys/kernel/tracing";
/// MiB of RAM of the guest.
const RAM_MIB: u64 = 256;
const MARK: &str = "umbra-init";
const LIMIT: Duration = Duration::from_secs(120);
/// The first run also fills the page cache, and is not counted.
const RUNS: usize = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, kernel, flags @ ..] = arguments.as_slice() else {
        return Err("usage: startup NAME KERNEL [FLAG…]".into());
    };
    for run in 0..RUNS {
        let first = measure(kernel, flags, Until::FirstEntry)?;
        let init = measure(kernel, flags, Until::Init)?;
        if run > 0 {
            println!(
                "FIGURES {name:<14} first instruction {:>6.2} M instructions (and {:.2} ms idle), /init {:>6.2} M (and {:.2} \
                 ms idle); {:.2} MiB beyond guest RAM",
                first.instructions, first.idle, init.instructions, init.idle, init.beyond_ram
            );
        }
    }
    Ok(())
}

/// What ends the measured stretch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    FirstEntry,
    Init,
}

struct Figures {
    /// Millions since `exec`.
    instructions: f64,
    /// Milliseconds of that stretch in which the CPU had nothing to do.
    idle: f64,
    /// MiB, once `/init` runs.
    beyond_ram: f64,
}

fn measure(kernel: &str, flags: &[String], until: Until) -> Result<Figures, Box<dyn Error>> {
    start_tracing(until)?;
    let memory = format!("{RAM_MIB}M");
    let mut arguments = vec![
        "run",
        kernel,
        "--initrd",
        guest_files::TINY_INITRD,
        "--memory",
        &memory,
        "--cmdline",
        "console=ttyS0 quiet",
    ];
    arguments.extend(flags.iter().map(String::as_str));
    let mut console = Console::start(Path::new(guest_files::VMM), &arguments)?;
    console.expect(linux_init::GREETING, LIMIT)?;
    write("trace_marker", MARK)?;
    let beyond_ram = beyond_ram(console.pid())?;
    let trace = std::fs::read_to_string(Path::new(TRACING).join("trace"))?;
    let exec = time_of(&trace, |event| {
        event.starts_with("sched_process_exec:") && event.contains(guest_files::VMM)
    })?;
    let end = match until {
        Until::FirstEntry => time_of(&trace, |event| event.starts_with("kvm_entry:"))?,
        Until::Init => time_of(&trace, |event| event.contains(MARK))?,
    };
    let idle = idle(&trace, exec, end);
    Ok(Figures {
        instructions: (end - exec - idle) * 1e3,
        idle: idle * 1e3,
        beyond_ram,
    })
}

/// An empty trace on the clock that icount drives.
fn start_tracing(until: Until) -> Result<(), Box<dyn Error>> {
    let entries = if until == Until::FirstEntry { "1" } else { "0" };
    write("trace_clock", "mono_raw")?;
    write("events/sched/sched_process_exec/enable", "1")?;
    write("events/sched/sched_switch/enable", "1")?;
    write("events/kvm/kvm_entry/enable", entries)?;
    write("trace", "")
}

fn write(file: &str, what: &str) -> Result<(), Box<dyn Error>> {
    let path = PathBuf::from(TRACING).join(file);
    std::fs::write(&path, what).map_err(|error| format!("{}: {error}", path.display()).into())
}

/// The events with their times in seconds. A line is `task-pid [cpu] flags time: event: fields`.
fn events(trace: &str) -> impl Iterator<Item = (f64, &str)> {
    trace.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (head, event) = line.split_once("] ")?.1.split_once(": ")?;
        Some((head.split_whitespace().last()?.parse().ok()?, event))
    })
}

/// Seconds of the first event like this.
fn time_of(trace: &str, wanted: impl Fn(&str) -> bool) -> Result<f64, Box<dyn Error>> {
    events(trace)
        .find(|(_, event)| wanted(event))
        .map(|(time, _)| time)
        .ok_or_else(|| format!("an event is missing in the trace:\n{trace}").into())
}

/// Seconds between these two times in which the only CPU ran its idle task.
fn idle(trace: &str, from: f64, to: f64) -> f64 {
    let (mut idle, mut since) = (0.0, None);
    for (time, event) in events(trace).filter(|(time, _)| (from..=to).contains(time)) {
        if event.contains("prev_comm=swapper/0") {
            idle += since.take().map_or(0.0, |since| time - since);
        }
        if event.contains("next_comm=swapper/0") {
            since = Some(time);
        }
    }
    idle
}

/// MiB that the process has resident outside the mapping that is the guest's RAM.
fn beyond_ram(pid: u32) -> Result<f64, Box<dyn Error>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let kib = |line: &str| {
        line.split_whitespace()
            .nth(1)
            .and_then(|number| number.parse::<u64>().ok())
    };
    let (mut total, mut in_ram, mut resident) = (0, false, 0);
    for line in maps.lines() {
        if let Some(size) = line.strip_prefix("Size:").and(kib(line)) {
            // The RAM's mapping may have merged with a smaller neighbour.
            in_ram = size >= RAM_MIB * 1024;
        } else if let Some(rss) = line.strip_prefix("Rss:").and(kib(line)) {
            total += rss;
            if !in_ram {
                resident += rss;
            }
        }
    }
    if total == resident {
        return Err(format!("no mapping is as large as the guest's RAM:\n{maps}").into());
    }
    Ok(resident as f64 / 1024.0)
}
