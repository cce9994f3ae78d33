//! The machines that run the guest: how each is started, and where its serial line comes out.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A machine of this computer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Machine {
    /// The `vmm` of this project, with one of its backends.
    Umbra {
        /// The program.
        vmm: PathBuf,
        /// As `--backend` has it.
        backend: &'static str,
    },
    /// Bochs, an interpreter.
    Bochs,
    /// QEMU's TCG, which translates.
    Qemu {
        /// Its time is the number of instructions executed, in nanoseconds (and it is slower).
        count_instructions: bool,
    },
}

/// A machine is not installed, or not whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missing {
    what: &'static str,
    package: &'static str,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no {} (Debian package {})", self.what, self.package)
    }
}

impl std::error::Error for Missing {}

/// What Bochs on Debian is made from, and the package that has it.
const BOCHS_BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
const BOCHS_VGA_BIOS: &str = "/usr/share/vgabios/vgabios.bin";
const BOCHS_TERMINAL: &str = "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so";

/// The files a machine may start from, all made of the same guest.
#[derive(Clone, Debug)]
pub struct Media {
    /// The guest as a multiboot image.
    pub kernel: PathBuf,
    /// The disk that loads it.
    pub disk: PathBuf,
    /// A folder for what else a machine reads and writes.
    pub folder: PathBuf,
}

/// Which of a machine's streams its serial line comes out of; the other is written to a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line {
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

impl Machine {
    /// One word.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Umbra { .. } => "umbra",
            Self::Bochs => "bochs",
            Self::Qemu { .. } => "qemu",
        }
    }

    /// What it is, for a table's head: name and version.
    ///
    /// # Errors
    /// It isn't installed.
    pub fn title(&self) -> Result<String, Missing> {
        Ok(match self {
            Self::Umbra { backend, .. } => format!("Umbra, `--backend {backend}`"),
            Self::Bochs => {
                for (file, what, package) in [
                    (BOCHS_BIOS, "BIOS for bochs", "bochsbios"),
                    (BOCHS_VGA_BIOS, "VGA BIOS for bochs", "vgabios"),
                    (BOCHS_TERMINAL, "terminal display for bochs", "bochs-term"),
                ] {
                    if !Path::new(file).is_file() {
                        return Err(Missing { what, package });
                    }
                }
                let version = first_line("dpkg-query", &["-W", "-f=${Version}\\n", "bochs"]);
                find("bochs", "bochs")?;
                // The version up to what Debian has added.
                let version = version.split(['+', '-']).next().map(str::to_owned).unwrap_or_default();
                format!("Bochs {version}").trim_end().to_owned()
            }
            Self::Qemu { .. } => {
                find("qemu-system-x86_64", "qemu-system-x86")?;
                let line = first_line("qemu-system-x86_64", &["--version"]);
                let version = line.split_whitespace().nth(3).unwrap_or_default().to_owned();
                format!("QEMU {version} TCG")
            }
        })
    }

    /// How it is started on these files, and where its serial line comes out.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn command(&self, media: &Media) -> std::io::Result<(Command, Line)> {
        Ok(match self {
            Self::Umbra { vmm, backend } => {
                let mut command = Command::new(vmm);
                command
                    .arg("run")
                    .arg(&media.kernel)
                    .args(["--memory", "64M", "--backend", backend]);
                (command, Line::Output)
            }
            Self::Qemu { count_instructions } => {
                let mut command = Command::new("qemu-system-x86_64");
                command
                    .args("-accel tcg -M pc -cpu max -m 64 -nodefaults -no-user-config -no-reboot".split(' '))
                    .args("-display none -monitor none -serial stdio".split(' '))
                    .arg("-kernel")
                    .arg(&media.kernel);
                if *count_instructions {
                    command.args(["-icount", "shift=0,sleep=off"]);
                }
                (command, Line::Output)
            }
            Self::Bochs => {
                let (configuration, debugger) = (media.folder.join("bochsrc"), media.folder.join("bochs.debugger"));
                std::fs::write(&configuration, bochs_configuration(&media.disk))?;
                // Debian's is a debugger, which wants to be told to go on.
                std::fs::write(&debugger, "continue\n")?;
                let mut command = Command::new("bochs");
                // It locks the disk by a file that stays there when it is killed.
                command
                    .args(["-q", "-unlock", "-f"])
                    .arg(configuration)
                    .arg("-rc")
                    .arg(debugger);
                // Its display is a terminal that nobody looks at.
                command.env("TERM", "linux").env_remove("LTDL_LIBRARY_PATH");
                (command, Line::Error)
            }
        })
    }

    /// Standard input is empty for all.
    pub(super) fn quiet(command: &mut Command) -> &mut Command {
        command.stdin(Stdio::null())
    }
}

/// A PC with the disk and a serial line, which doesn't wait for the clock on the wall.
fn bochs_configuration(disk: &Path) -> String {
    format!(
        "config_interface: textconfig\n\
         display_library: term\n\
         romimage: file={BOCHS_BIOS}\n\
         vgaromimage: file={BOCHS_VGA_BIOS}\n\
         megs: 64\n\
         cpu: model=corei7_sandy_bridge_2600k, count=1, ips=100000000\n\
         clock: sync=none\n\
         ata0-master: type=disk, path={}, mode=flat\n\
         boot: disk\n\
         com1: enabled=1, mode=file, dev=/dev/stderr\n\
         log: /dev/null\n\
         panic: action=fatal\n\
         error: action=ignore\n\
         speaker: enabled=0\n\
         sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy\n",
        disk.display()
    )
}

fn find(program: &'static str, package: &'static str) -> Result<(), Missing> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    found.then_some(()).ok_or(Missing { what: program, package })
}

/// The first line a program prints; nothing if it can't be run.
fn first_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}
