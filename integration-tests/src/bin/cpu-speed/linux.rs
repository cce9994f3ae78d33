//! From the start of the process to the guest's `/init`, on Umbra's software CPU and on QEMU's TCG.

use crate::median::Times;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use umbra_integration_tests::console::Console;
use umbra_integration_tests::lab::{host::Host, initramfs, plan};
use umbra_integration_tests::speed::machine::Machine;
use umbra_integration_tests::{linux_init, vmlinux};

/// With ACPI, QEMU's microvm has no timer but the local APIC's, and under TCG, which isn't KVM, a kernel finds nothing to
/// hold that against: it waits for ever for the first tick.
pub const QEMU_MACHINE: &str = "microvm,acpi=off";
/// Until it is there.
const LIMIT: Duration = Duration::from_secs(120);

/// A kernel and how long it took.
#[derive(Clone, Debug)]
pub struct Boot {
    /// What it is.
    pub kernel: String,
    /// MiB of RAM of the guest.
    pub memory: u32,
    /// On Umbra.
    pub umbra: Times,
    /// On QEMU, if that is there.
    pub qemu: Option<Times>,
}

/// All that was measured.
#[derive(Clone, Debug)]
pub struct Results {
    /// How often.
    pub runs: u32,
    /// What the kernels were told.
    pub cmdline: String,
    /// QEMU's name, if it is there.
    pub qemu: Option<String>,
    /// The kernels.
    pub boots: Vec<Boot>,
}

struct Kernel {
    name: String,
    file: PathBuf,
    memory: u32,
}

/// Boots each kernel `runs` times on each machine, in turns.
///
/// # Errors
/// A file can't be read or written, or a boot doesn't come to `/init`.
pub fn measure(vmm: &Path, runs: u32, cmdline: &str) -> Result<Results, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let initrd = folder.path().join("initrd");
    std::fs::write(&initrd, initramfs::build_tiny(&linux_init::program()?)?)?;
    let qemu = Machine::Qemu {
        count_instructions: false,
    };
    let qemu = qemu.title().inspect_err(|missing| println!("skipped: {missing}")).ok();
    let mut boots = Vec::new();
    for kernel in kernels(&folder)? {
        let (mut umbra_times, mut qemu_times) = (Vec::new(), Vec::new());
        let guest = Guest {
            kernel: &kernel,
            initrd: &initrd,
            cmdline,
        };
        for run in 0..runs {
            eprintln!("run {} of {runs}: {}", run + 1, kernel.name);
            umbra_times.push(to_init(vmm, &guest.on_umbra())?);
            if qemu.is_some() {
                qemu_times.push(to_init(Path::new("qemu-system-x86_64"), &guest.on_qemu())?);
            }
        }
        boots.push(Boot {
            kernel: kernel.name.clone(),
            memory: kernel.memory,
            umbra: Times::of(&umbra_times).ok_or("no runs")?,
            qemu: Times::of(&qemu_times),
        });
    }
    Ok(Results {
        runs,
        cmdline: cmdline.to_owned(),
        qemu,
        boots,
    })
}

/// The kernels that are there; says which aren't.
fn kernels(folder: &TempDir) -> Result<Vec<Kernel>, Box<dyn Error>> {
    let mut kernels = Vec::new();
    match plan::small_kernel() {
        Ok(small) => kernels.extend(["vmlinux", "bzImage"].map(|file| Kernel {
            name: format!("the small Linux, `{file}`"),
            file: small.join(file),
            memory: 256,
        })),
        Err(missing) => println!("skipped: {missing}"),
    }
    match Host::find() {
        Ok(host) => {
            let elf = folder.path().join("vmlinux");
            std::fs::write(&elf, vmlinux::extract(&std::fs::read(&host.kernel)?)?)?;
            kernels.extend([("bzImage", host.kernel), ("vmlinux", elf)].map(|(kind, file)| Kernel {
                name: format!("Debian's, `{kind}`"),
                file,
                memory: 512,
            }));
        }
        Err(missing) => println!("skipped: {missing}"),
    }
    Ok(kernels)
}

struct Guest<'a> {
    kernel: &'a Kernel,
    initrd: &'a Path,
    cmdline: &'a str,
}

impl Guest<'_> {
    fn on_umbra(&self) -> Vec<String> {
        let (kernel, initrd) = (self.kernel.file.display(), self.initrd.display());
        let memory = self.kernel.memory;
        let mut arguments: Vec<String> = format!("run --backend soft --memory {memory}M")
            .split(' ')
            .map(str::to_owned)
            .collect();
        arguments.extend([kernel.to_string(), "--initrd".to_owned(), initrd.to_string()]);
        arguments.extend(["--cmdline".to_owned(), self.cmdline.to_owned()]);
        arguments
    }

    fn on_qemu(&self) -> Vec<String> {
        let (kernel, initrd) = (self.kernel.file.display(), self.initrd.display());
        let memory = self.kernel.memory;
        let machine = format!(
            "-accel tcg -M {QEMU_MACHINE} -cpu max -m {memory} -nodefaults -no-user-config -no-reboot -display none \
             -monitor none -serial stdio"
        );
        let mut arguments: Vec<String> = machine.split(' ').map(str::to_owned).collect();
        arguments.extend([
            "-kernel".to_owned(),
            kernel.to_string(),
            "-initrd".to_owned(),
            initrd.to_string(),
        ]);
        arguments.extend(["-append".to_owned(), self.cmdline.to_owned()]);
        arguments
    }
}

/// From before the program is started until `/init` has spoken.
fn to_init(program: &Path, arguments: &[String]) -> Result<Duration, Box<dyn Error>> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let start = Instant::now();
    let mut console = Console::start(program, &arguments)?;
    console.expect(linux_init::GREETING, LIMIT)?;
    Ok(start.elapsed())
}
