//! Debian's stock kernel on two software CPUs that take turns: it boots, answers what a file types, resets, boots again
//! and powers off, twice the same to the last instruction.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use umbra_integration_tests::lab::host::Host;
use umbra_integration_tests::lab::initramfs;

type TestResult = Result<(), Box<dyn std::error::Error>>;

/// For two boots on a machine with other things to do.
const PATIENCE: Duration = Duration::from_secs(900);
/// Typed while the first kernel goes down, so that it is no loss. A shell takes no longer line.
const MEANWHILE: usize = 900;

/// What a run leaves behind.
struct Left {
    console: Vec<u8>,
    trace: Vec<u8>,
    /// Instructions, time, events and digest.
    numbers: serde_json::Value,
}

fn run(vmm: &Path, kernel: &Path, directory: &Path) -> Result<Left, Box<dyn std::error::Error>> {
    let (console, trace, stats) = (
        directory.join("console"),
        directory.join("trace"),
        directory.join("stats"),
    );
    let mut child = Command::new(vmm)
        .arg("run")
        .arg(kernel)
        .arg("--initrd")
        .arg(directory.join("initrd"))
        .args(["--deterministic", "--cpus", "2", "--rtc", "2030-05-06"])
        .args(["--stats=json", "--stats-file"])
        .arg(&stats)
        .arg("--trace")
        .arg(&trace)
        .stdin(File::open(directory.join("input"))?)
        .stdout(File::create(&console)?)
        .spawn()?;
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if began.elapsed() > PATIENCE {
            child.kill()?;
            break child.wait()?;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let console = std::fs::read(console)?;
    assert_eq!(status.code(), Some(0), "{}", String::from_utf8_lossy(&console));
    let stats: serde_json::Value = serde_json::from_slice(&std::fs::read(stats)?)?;
    Ok(Left {
        console,
        trace: std::fs::read(trace)?,
        numbers: stats["deterministic"].clone(),
    })
}

#[test]
fn debian_on_two_cpus_does_the_same_twice() -> TestResult {
    // Without optimisation it takes ten times as long.
    let Some(vmm) = std::env::var_os("UMBRA_OPTIMISED_VMM").map(PathBuf::from) else {
        println!("skipped: UMBRA_OPTIMISED_VMM does not name a vmm that was built with --release");
        return Ok(());
    };
    let host = match Host::find() {
        Ok(host) => host,
        Err(missing) => {
            println!("skipped: {missing}");
            return Ok(());
        }
    };
    let directory = tempfile::tempdir()?;
    let archive = initramfs::build_guest(&host, include_bytes!("../lab/guest-init"))?;
    std::fs::write(directory.path().join("initrd"), archive)?;
    // Computed, so that the echo of what was typed is no answer.
    let input = format!(
        "echo first $((6 * 7)) of $(grep -c ^processor /proc/cpuinfo)\nreboot -f\n{}echo then $(date +%Y-%m-%d)\npoweroff -f\n",
        " ".repeat(MEANWHILE)
    );
    std::fs::write(directory.path().join("input"), input)?;

    let one = run(&vmm, &host.kernel, directory.path())?;
    let console = String::from_utf8_lossy(&one.console);
    for part in ["first 42 of 2", "then 2030-05-06", "Power down"] {
        assert!(console.contains(part), "{part}: {console}");
    }
    let trace = String::from_utf8_lossy(&one.trace);
    assert!(trace.contains(" start-up "), "no second CPU was started");
    assert_eq!(
        (trace.matches("end: reset\n").count(), trace.matches("end: ").count()),
        (1, 2)
    );
    assert!(
        one.numbers["instructions"].as_u64() > Some(1_000_000_000),
        "{}",
        one.numbers
    );

    let other = run(&vmm, &host.kernel, directory.path())?;
    assert_eq!(one.numbers, other.numbers);
    assert!(one.console == other.console, "the consoles differ");
    assert!(one.trace == other.trace, "the traces differ");
    Ok(())
}
