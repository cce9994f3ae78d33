//! Opening `/dev/kvm`, with an explanation a person can act on when that fails.

use super::caps::{Capability, HostCaps};
use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Kvm;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Where the kernel offers KVM.
pub const DEVICE: &str = "/dev/kvm";

/// An open `/dev/kvm`: what virtual machines are made with.
pub struct KvmHost {
    kvm: Kvm,
}

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such file.
    #[error(
        "{} does not exist: this kernel has no KVM, its module (kvm_intel, kvm_amd) is not loaded, or the container or \
         virtual machine we are in was not given it", path.display()
    )]
    Missing {
        /// The device file.
        path: PathBuf,
    },
    /// The file may not be opened by this user.
    #[error("no permission to open {} (mode {mode:04o}, group {group}): {advice}", path.display())]
    NoPermission {
        /// The device file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The group it belongs to, by name if it has one.
        group: String,
        /// What to do about it.
        advice: String,
    },
    /// It is there but is not KVM.
    #[error("{} is not KVM's character device", path.display())]
    NotADevice {
        /// The file.
        path: PathBuf,
    },
    /// Opening failed for another reason.
    #[error("cannot open {}: {source}", path.display())]
    Other {
        /// The device file.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// A KVM from before 2007, or something that only looks like one.
    #[error("{} speaks KVM API version {found}, {expected} expected", path.display())]
    ApiVersion {
        /// The device file.
        path: PathBuf,
        /// What `KVM_GET_API_VERSION` said.
        found: i32,
        /// The only version there ever was since 2007.
        expected: u32,
    },
}

impl KvmHost {
    /// Opens [`DEVICE`].
    ///
    /// # Errors
    /// [`OpenError`], by cause.
    pub fn open() -> Result<Self, OpenError> {
        Self::open_at(Path::new(DEVICE))
    }

    /// Opens a device file at another place than [`DEVICE`].
    ///
    /// # Errors
    /// [`OpenError`], by cause.
    pub fn open_at(path: &Path) -> Result<Self, OpenError> {
        let other = |source| OpenError::Other {
            path: path.to_owned(),
            source,
        };
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| other(error.into()))?;
        let kvm =
            Kvm::new_with_path(&name).map_err(|error| explain(path, io::Error::from_raw_os_error(error.errno())))?;
        let is_device = fs::metadata(path).map_err(other)?.file_type().is_char_device();
        match kvm.get_api_version() {
            found if u32::try_from(found) == Ok(KVM_API_VERSION) => Ok(Self { kvm }),
            _ if !is_device => Err(OpenError::NotADevice { path: path.to_owned() }),
            found => Err(OpenError::ApiVersion {
                path: path.to_owned(),
                found,
                expected: KVM_API_VERSION,
            }),
        }
    }

    /// Asks for every capability that Umbra knows. A few dozen ioctls: for people, not for start-up.
    pub fn caps(&self) -> HostCaps {
        HostCaps::probe(&self.kvm)
    }

    /// The value of one capability, 0 if the kernel does not have it.
    pub fn cap(&self, capability: Capability) -> u32 {
        capability.probe(&self.kvm)
    }

    pub(super) fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// The CPUID leaves this host can give a guest.
    ///
    /// # Errors
    /// `KVM_GET_SUPPORTED_CPUID` failed.
    pub(super) fn supported_cpuid(&self) -> io::Result<CpuId> {
        self.kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }
}

fn explain(path: &Path, source: io::Error) -> OpenError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => OpenError::Missing { path },
        io::ErrorKind::PermissionDenied => no_permission(path, source),
        // The file is there but no driver answers.
        _ if matches!(source.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => OpenError::Missing { path },
        _ => OpenError::Other { path, source },
    }
}

fn no_permission(path: PathBuf, source: io::Error) -> OpenError {
    let Ok(metadata) = fs::metadata(&path) else {
        return OpenError::Other { path, source };
    };
    let gid = metadata.gid();
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let group = group_name(&groups, gid).map_or_else(|| gid.to_string(), str::to_owned);
    let mode = metadata.mode() & 0o7777;
    let advice = advice(mode, &group, is_member(&status, gid));
    OpenError::NoPermission {
        path,
        mode,
        group,
        advice,
    }
}

fn advice(mode: u32, group: &str, member: bool) -> String {
    if mode & 0o060 != 0o060 {
        return format!("its mode lets not even its group in; `sudo chmod 660 {DEVICE}` would");
    }
    if member {
        return format!(
            "this process is in group {group}, so something else forbids it (a sandbox, SELinux, a device cgroup)"
        );
    }
    format!(
        "this process is not in group {group}; `sudo usermod -aG {group} \"$USER\"`, then log in again (or `newgrp {group}`)"
    )
}

/// The name of a group in the text of `/etc/group`.
fn group_name(groups: &str, gid: u32) -> Option<&str> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let number = fields.nth(1)?;
        (number.parse() == Ok(gid)).then_some(name)
    })
}

/// Whether `gid` is among the groups in the text of `/proc/self/status`.
fn is_member(status: &str, gid: u32) -> bool {
    status
        .lines()
        .filter_map(|line| line.strip_prefix("Groups:").or_else(|| line.strip_prefix("Gid:")))
        .flat_map(str::split_whitespace)
        .any(|number| number.parse() == Ok(gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_device_says_so() {
        let error = KvmHost::open_at(Path::new("/nonexistent/kvm")).err().unwrap();
        assert!(matches!(error, OpenError::Missing { .. }), "{error}");
    }

    #[test]
    fn file_that_is_no_device_says_so() {
        let error = KvmHost::open_at(Path::new("/dev/null")).err().unwrap();
        assert!(matches!(error, OpenError::ApiVersion { found: -1, .. }), "{error}");
        let error = KvmHost::open_at(Path::new("/proc/self/comm")).err().unwrap();
        assert!(matches!(error, OpenError::NotADevice { .. }), "{error}");
    }

    #[test]
    fn permission_error_names_the_group_and_the_way_out() {
        let groups = "root:x:0:\nkvm:x:104:someone\n";
        assert_eq!(group_name(groups, 104), Some("kvm"));
        assert_eq!(group_name(groups, 7), None);
        assert!(is_member("Gid:\t100\t100\t100\t100\nGroups:\t4 104 \n", 104));
        assert!(!is_member("Gid:\t100\t100\t100\t100\nGroups:\t4 \n", 104));
        assert!(advice(0o660, "kvm", false).contains("usermod -aG kvm"));
        assert!(advice(0o660, "kvm", true).contains("something else"));
        assert!(advice(0o600, "kvm", true).contains("chmod"));
    }
}
