//! What of this machine the lab is made from: QEMU, Debian's cloud kernel with its modules, a static busybox.

use std::fmt;
use std::path::{Path, PathBuf};

/// Modules the lab loads, in this order; below `/lib/modules/<release>/kernel`. Whether `kvm-amd` needs `ccp` depends on
/// how the kernel is configured: it is loaded where it exists.
const MODULES: [(&str, Need); 4] = [
    ("virt/lib/irqbypass.ko", Need::Must),
    ("arch/x86/kvm/kvm.ko", Need::Must),
    ("drivers/crypto/ccp/ccp.ko", Need::IfThere),
    ("arch/x86/kvm/kvm-amd.ko", Need::Must),
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Need {
    Must,
    IfThere,
}

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Host {
    /// `qemu-system-x86_64`.
    pub qemu: PathBuf,
    /// The lab's own kernel, which is also the stock kernel that guests boot.
    pub kernel: PathBuf,
    /// The modules of that kernel that KVM on AMD is made of, in the order they are loaded.
    pub modules: Vec<PathBuf>,
    /// A statically linked busybox.
    pub busybox: PathBuf,
}

/// Something the lab needs is not installed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missing {
    what: &'static str,
    package: &'static str,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no {} (Debian package {}; integration-tests/lab/run installs it)",
            self.what, self.package
        )
    }
}

impl std::error::Error for Missing {}

impl Host {
    /// Looks for everything; the newest kernel whose modules are there as well.
    ///
    /// # Errors
    /// Names the first thing that is missing and the package that has it.
    pub fn find() -> Result<Self, Missing> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
        let program = |name: &str| directories.iter().map(|dir| dir.join(name)).find(|file| file.is_file());
        let qemu = program("qemu-system-x86_64").ok_or(Missing {
            what: "qemu-system-x86_64",
            package: "qemu-system-x86",
        })?;
        let busybox = program("busybox").filter(|file| is_static(file)).ok_or(Missing {
            what: "statically linked busybox",
            package: "busybox-static",
        })?;
        let (kernel, modules) = newest_kernel(Path::new("/boot"), Path::new("/lib/modules")).ok_or(Missing {
            what: "cloud kernel with KVM modules",
            package: "linux-image-cloud-amd64",
        })?;
        Ok(Self {
            qemu,
            kernel,
            modules,
            busybox,
        })
    }
}

/// The newest `vmlinuz-*-cloud-amd64` whose modules are all there.
fn newest_kernel(boot: &Path, modules: &Path) -> Option<(PathBuf, Vec<PathBuf>)> {
    let mut releases: Vec<String> = std::fs::read_dir(boot)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| Some(name.strip_prefix("vmlinuz-")?.to_owned()))
        .filter(|release| release.ends_with("-cloud-amd64"))
        .collect();
    releases.sort_by_key(|release| version_key(release));
    releases.into_iter().rev().find_map(|release| {
        let files: Vec<PathBuf> = MODULES
            .iter()
            .map(|(module, need)| (modules.join(&release).join("kernel").join(module), *need))
            .filter(|(file, need)| *need == Need::Must || file.is_file())
            .map(|(file, _)| file)
            .collect();
        let whole = files.iter().all(|file| file.is_file());
        whole.then(|| (boot.join(format!("vmlinuz-{release}")), files))
    })
}

/// The numbers in a release, so that 6.1.0-56 sorts after 6.1.0-9.
fn version_key(release: &str) -> Vec<u32> {
    release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// Whether an ELF file names no dynamic loader. Reads the program headers: `PT_INTERP` is type 3.
fn is_static(file: &Path) -> bool {
    let Ok(bytes) = std::fs::read(file) else { return false };
    let u16_at = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let interpreter = || {
        // ELF64: e_phoff at 32 (the low half is enough), e_phentsize at 54, e_phnum at 56.
        let (table, size, count) = (u32_at(32)?, u16_at(54)?, u16_at(56)?);
        Some((0..u32::from(count)).any(|index| u32_at((table + index * u32::from(size)) as usize) == Some(3)))
    };
    bytes.starts_with(b"\x7fELF\x02") && interpreter() == Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_key_two_digits_sort_after_one() {
        assert!(version_key("6.1.0-56-cloud-amd64") > version_key("6.1.0-9-cloud-amd64"));
        assert!(version_key("6.12.3-1-cloud-amd64") > version_key("6.1.0-56-cloud-amd64"));
    }

    #[test]
    fn newest_kernel_without_modules_is_passed_over() {
        let root = tempfile::tempdir().expect("temporary directory");
        let (boot, modules) = (root.path().join("boot"), root.path().join("modules"));
        std::fs::create_dir(&boot).expect("mkdir");
        for release in ["6.1.0-9-cloud-amd64", "6.1.0-56-cloud-amd64", "6.1.0-56-amd64"] {
            std::fs::write(boot.join(format!("vmlinuz-{release}")), b"").expect("write");
        }
        for (module, _) in MODULES.iter().filter(|(_, need)| *need == Need::Must) {
            let file = modules.join("6.1.0-9-cloud-amd64/kernel").join(module);
            std::fs::create_dir_all(file.parent().expect("has a parent")).expect("mkdir");
            std::fs::write(file, b"").expect("write");
        }
        let (kernel, files) = newest_kernel(&boot, &modules).expect("one is whole");
        assert_eq!(files.len(), 3);
        assert!(kernel.ends_with("vmlinuz-6.1.0-9-cloud-amd64"), "{}", kernel.display());
    }

    #[test]
    fn is_static_this_test_binary_and_text_are_not() {
        let own = std::env::current_exe().expect("has a path");
        assert_eq!(is_static(&own), cfg!(target_feature = "crt-static"));
        assert!(!is_static(Path::new("/proc/self/cmdline")));
    }
}
