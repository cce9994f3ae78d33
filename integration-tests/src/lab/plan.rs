//! What runs in the lab, and the files it needs there.

use super::LabError;
use super::build::{self, Executable};
use super::host::Host;
use super::initramfs::{self, Extra, Program};
use crate::multiboot::{self, Class};
use crate::{guest_files, linux_init, vmlinux};
use std::path::PathBuf;

/// Seconds one test executable may take in the lab: the emulated machine is some fifty times slower than this one,
/// and this one may be busy. A guard against hanging, not a measure of what they take.
const TESTS_LIMIT: u32 = 400;
/// The same for the executable that boots Linux several times.
const BOOT_LIMIT: u32 = 800;

/// Which of the test executables run together in one boot of the lab.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Suite {
    /// What needs a stock KVM.
    Kvm,
    /// What switches the kernel's tracepoints on.
    Trace,
    /// Guests that boot Linux.
    Boot,
}

impl Suite {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Kvm, Self::Trace, Self::Boot];

    /// One word, for the log file's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Trace => "trace",
            Self::Boot => "boot",
        }
    }

    fn has(self, executable: &Executable) -> bool {
        let target = executable.target.as_str();
        match (executable.package.as_str(), target) {
            ("umbra-vcpu", _) => self == Self::Kvm && target.starts_with("kvm_"),
            (_, "guest_mmio_trace" | "guest_events") => self == Self::Trace,
            (_, "guest_boot") => self == Self::Boot,
            _ => self == Self::Kvm && target.starts_with("guest_"),
        }
    }
}

/// Programs and files for one boot of the lab.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// What runs, in this order.
    pub programs: Vec<Program>,
    /// What it needs.
    pub files: Vec<Extra>,
}

/// Builds everything for a suite.
///
/// # Errors
/// Something doesn't build, or the host's kernel is not of the kind known here.
pub fn build(host: &Host, suite: Suite) -> Result<Plan, LabError> {
    let executables = build::test_executables(&["umbra-vcpu", "umbra-integration-tests"])?;
    let limit = if suite == Suite::Boot { BOOT_LIMIT } else { TESTS_LIMIT };
    let programs = executables
        .iter()
        .filter(|executable| suite.has(executable))
        .map(|executable| Program::tests(&executable.target, &executable.path, limit))
        .collect();
    let mut files = vec![vmm("dev")?];
    if suite == Suite::Boot {
        files.extend(guest_kernels(host)?);
    }
    Ok(Plan { programs, files })
}

/// Builds everything for the start-up figures: a release `vmm`, the small kernel and the program that measures.
///
/// # Errors
/// As [`build()`]; also if the small kernel has not been built.
pub fn figures(host: &Host) -> Result<Plan, LabError> {
    let small = small_kernel()?;
    let initrd = initramfs::build_tiny(&linux_init::program()?)?;
    let files = [
        (guest_files::SMALL_VMLINUX, initramfs::read(&small.join("vmlinux"))?),
        (guest_files::SMALL_BZIMAGE, initramfs::read(&small.join("bzImage"))?),
        (guest_files::BZIMAGE, initramfs::read(&host.kernel)?),
        (guest_files::TINY_INITRD, initrd),
    ];
    let executable = build::startup()?;
    let program = |name: &str, kernel: &str| Program {
        name: name.to_owned(),
        executable: executable.clone(),
        arguments: vec![name.to_owned(), kernel.to_owned()],
        timeout: TESTS_LIMIT,
    };
    Ok(Plan {
        programs: vec![
            program("small-vmlinux", guest_files::SMALL_VMLINUX),
            program("small-bzImage", guest_files::SMALL_BZIMAGE),
            program("debian-bzImage", guest_files::BZIMAGE),
        ],
        files: std::iter::once(vmm("release")?).chain(data(files)).collect(),
    })
}

/// Where `lab/build-small-kernel` leaves its results.
///
/// # Errors
/// It was never run.
pub fn small_kernel() -> Result<PathBuf, LabError> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .unwrap_or_default();
    let directory = cache.join("umbra/small-kernel");
    if directory.join("vmlinux").is_file() {
        Ok(directory)
    } else {
        Err(LabError::NoSmallKernel(directory))
    }
}

/// Files of the lab that nobody executes.
fn data<const N: usize>(files: [(&str, Vec<u8>); N]) -> impl Iterator<Item = Extra> {
    files.into_iter().map(|(path, content)| Extra {
        path: relative(path),
        content,
        mode: 0o644,
    })
}

/// The `vmm` as a file of the lab.
fn vmm(profile: &str) -> Result<Extra, LabError> {
    Ok(Extra {
        path: relative(guest_files::VMM),
        content: initramfs::read(&build::vmm(profile)?)?,
        mode: 0o755,
    })
}

/// What the guests boot.
fn guest_kernels(host: &Host) -> Result<Vec<Extra>, LabError> {
    let image = initramfs::read(&host.kernel)?;
    let elf = vmlinux::extract(&image)?;
    let files = [
        (guest_files::VMLINUX_64, vmlinux::without_pvh_note(&elf)),
        (guest_files::VMLINUX, elf),
        (guest_files::BZIMAGE, image),
        (
            guest_files::INITRD,
            initramfs::build_guest(host, include_bytes!("../../lab/guest-init"))?,
        ),
        (guest_files::MULTIBOOT_32, multiboot::kernel(Class::Elf32)?),
        (guest_files::MULTIBOOT_64, multiboot::kernel(Class::Elf64)?),
    ];
    Ok(data(files).collect())
}

/// A path in the lab as the archive has it.
fn relative(path: &str) -> String {
    path.trim_start_matches('/').to_owned()
}
