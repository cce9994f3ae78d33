//! Boots the lab in QEMU and watches its console, never for ever: an overall limit, a limit on silence, and the death of
//! QEMU each end the wait.

use super::host::Host;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// What kind of machine to boot.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Nested paging: KVM's TDP MMU if true, its shadow MMU if not.
    pub npt: bool,
    /// Virtual CPUs of the lab. One, unless there is a reason: KVM's trace shows guests taking an interrupt twice
    /// that was injected once, and a guest that does so while it holds a lock waits for itself for ever. It seems that
    /// QEMU 7.2 keeps the vector that VMRUN injects and delivers it again if the CPU is asked to pause before the next
    /// exit. With one CPU, and without counted instructions, hardly anything asks it to.
    pub cpus: u32,
    /// RAM of the lab, in MiB.
    pub memory_mib: u32,
    /// One instruction per nanosecond of guest time and nothing from the host's clock: times are instruction counts.
    /// Needs `cpus == 1`.
    pub count_instructions: bool,
    /// The longest the whole run may take.
    pub limit: Duration,
    /// The longest the console may be silent.
    pub silence: Duration,
}

impl Machine {
    /// A machine with one CPU.
    #[must_use]
    pub fn single(npt: bool) -> Self {
        Self {
            npt,
            cpus: 1,
            memory_mib: 2048,
            count_instructions: false,
            limit: Duration::from_secs(900),
            silence: Duration::from_secs(200),
        }
    }

    /// The machine of the start-up figures: times are instruction counts.
    #[must_use]
    pub fn for_figures() -> Self {
        Self {
            count_instructions: true,
            ..Self::single(true)
        }
    }
}

/// How QEMU ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// The lab powered off, or its kernel panicked (which the report shows).
    Exited,
    /// Killed: over [`Machine::limit`], or more console output than any report is.
    TooLong,
    /// Killed: silent for [`Machine::silence`].
    Silent,
}

/// Bytes of console output after which something must have gone mad.
const CONSOLE_LIMIT: usize = 64 << 20;

/// What a boot left.
#[derive(Clone, Debug)]
pub struct Console {
    /// Everything the serial console said; bytes that are no UTF-8 replaced.
    pub text: String,
    /// How it ended.
    pub ending: Ending,
    /// Wall time.
    pub took: Duration,
    /// What QEMU itself said.
    pub qemu: String,
}

/// QEMU can't be run.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct QemuError {
    what: String,
    source: std::io::Error,
}

fn failed(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> QemuError {
    let what = what.into();
    move |source| QemuError { what, source }
}

/// QEMU, killed when this goes out of scope: a panicking test leaves nothing behind.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has already ended and been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots the lab with this initramfs and waits for its end. The console goes to `log` as it comes, for reading along.
///
/// # Errors
/// The initramfs or the log can't be written, or QEMU can't be started.
pub fn boot(host: &Host, machine: &Machine, initramfs: &[u8], log: &Path) -> Result<Console, QemuError> {
    let directory = log.parent().map_or_else(|| PathBuf::from("."), Path::to_owned);
    std::fs::create_dir_all(&directory).map_err(failed(directory.display().to_string()))?;
    let mut image = tempfile::NamedTempFile::new_in(&directory).map_err(failed("temporary initramfs"))?;
    image.write_all(initramfs).map_err(failed("temporary initramfs"))?;
    let mut log_file = std::fs::File::create(log).map_err(failed(log.display().to_string()))?;

    let started = Instant::now();
    let mut qemu = Running(
        command(host, machine, image.path())
            .spawn()
            .map_err(failed(host.qemu.display().to_string()))?,
    );
    if let Some(console) = qemu.0.stdin.take() {
        std::thread::spawn(move || poke(console));
    }
    // Bounded, so that a console gone mad is held back by the pipe and does not fill this machine's memory.
    let (sender, receiver) = sync_channel(16);
    let mut stdout = qemu.0.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Some(count) = stdout
            .as_mut()
            .and_then(|out| out.read(&mut buffer).ok())
            .filter(|n| *n > 0)
        {
            if sender.send(buffer[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut stderr = qemu.0.stderr.take();
    let complaints = std::thread::spawn(move || {
        let mut text = String::new();
        // Half a complaint is better than none.
        let _ = stderr.as_mut().map(|err| err.read_to_string(&mut text));
        text
    });

    let mut bytes = Vec::new();
    let ending = loop {
        let left = machine.limit.saturating_sub(started.elapsed());
        if left.is_zero() || bytes.len() > CONSOLE_LIMIT {
            break Ending::TooLong;
        }
        match receiver.recv_timeout(left.min(machine.silence)) {
            Ok(more) => {
                log_file.write_all(&more).map_err(failed(log.display().to_string()))?;
                bytes.extend_from_slice(&more);
            }
            Err(RecvTimeoutError::Disconnected) => break Ending::Exited,
            Err(RecvTimeoutError::Timeout) if left <= machine.silence => break Ending::TooLong,
            Err(RecvTimeoutError::Timeout) => break Ending::Silent,
        }
    };
    drop(qemu);
    drop(receiver);
    // Both end with QEMU's ends of the pipes, and neither can panic.
    let _ = reader.join();
    let complaints = complaints.join().unwrap_or_default();
    // The CPU model lists more than TCG emulates. It says so for each feature and CPU; KVM does without.
    let complaints = complaints
        .lines()
        .filter(|line| !line.contains("TCG doesn't support requested feature"))
        .fold(String::new(), |kept, line| kept + line + "\n");
    Ok(Console {
        text: String::from_utf8_lossy(&bytes).into_owned(),
        ending,
        took: started.elapsed(),
        qemu: complaints,
    })
}

/// Types a newline each second until QEMU is gone. QEMU 7.2 was seen to stop for good, with every thread asleep, as if the
/// lab's timer interrupt had been lost on the way: nothing wakes it then, unless an interrupt of the serial port does.
fn poke(mut console: impl Write) {
    while console.write_all(b"\n").is_ok() {
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn command(host: &Host, machine: &Machine, initramfs: &Path) -> Command {
    // `quiet` keeps all but errors off the console; the check of the timer fails if this machine is so busy that QEMU
    // gets no time. Parameters the kernel doesn't know become /init's environment.
    let npt = u8::from(machine.npt);
    let mut append = format!("console=ttyS0 panic=-1 quiet no_timer_check UMBRA_NPT={npt}");
    let mut command = Command::new(&host.qemu);
    command
        .args([
            "-machine",
            "q35",
            "-cpu",
            "EPYC,+svm,+npt",
            "-nodefaults",
            "-no-user-config",
        ])
        .args(["-display", "none", "-serial", "stdio", "-no-reboot"])
        .args(["-m", &machine.memory_mib.to_string()])
        .args(["-smp", &machine.cpus.to_string()]);
    if machine.count_instructions {
        command
            .args(["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"])
            .args(["-rtc", "base=2026-01-01,clock=vm", "-seed", "42"]);
        append.push_str(" nokaslr norandmaps");
    } else {
        command.args(["-accel", "tcg,thread=single"]);
    }
    command
        .arg("-kernel")
        .arg(&host.kernel)
        .arg("-initrd")
        .arg(initramfs)
        .arg("-append")
        .arg(append)
        // Counted instructions are to be the same each time: nothing from outside then.
        .stdin(if machine.count_instructions {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stand-in for QEMU: a shell script.
    fn host_with(script: &str, directory: &Path) -> Host {
        use std::os::unix::fs::PermissionsExt as _;
        let qemu = directory.join("qemu");
        std::fs::write(&qemu, format!("#!/bin/sh\n{script}\n")).expect("write");
        std::fs::set_permissions(&qemu, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        Host {
            qemu,
            kernel: PathBuf::from("/kernel"),
            modules: Vec::new(),
            busybox: PathBuf::new(),
        }
    }

    fn boot_script(script: &str, limit: u64, silence: u64) -> Console {
        let directory = tempfile::tempdir().expect("temporary directory");
        let machine = Machine {
            limit: Duration::from_millis(limit),
            silence: Duration::from_millis(silence),
            ..Machine::single(true)
        };
        boot(
            &host_with(script, directory.path()),
            &machine,
            b"",
            &directory.path().join("log"),
        )
        .expect("a script can be run")
    }

    #[test]
    fn boot_that_ends_gives_console_and_complaints() {
        let console = boot_script("echo LAB RESULT 0; echo no such cpu >&2", 60_000, 60_000);
        assert_eq!(console.ending, Ending::Exited);
        assert_eq!(console.text, "LAB RESULT 0\n");
        assert_eq!(console.qemu, "no such cpu\n");
    }

    #[test]
    fn boot_that_falls_silent_is_killed() {
        let console = boot_script("echo hello; exec sleep 60", 60_000, 300);
        assert_eq!((console.ending, console.text.as_str()), (Ending::Silent, "hello\n"));
    }

    #[test]
    fn boot_that_never_stops_talking_is_killed() {
        let console = boot_script("exec yes", 300, 60_000);
        assert_eq!(console.ending, Ending::TooLong);
        assert!(console.text.len() <= CONSOLE_LIMIT + 4096);
    }
}
