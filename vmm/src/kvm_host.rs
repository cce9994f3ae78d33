//! Getting at `/dev/kvm`, and saying why not in words that help.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The only API version there has been since Linux 2.6.22.
pub const API_VERSION: i32 = 12;

/// Why KVM can't be used, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum KvmUnusable {
    /// There is no such device.
    #[error("{} does not exist: {advice}", path.display())]
    Missing {
        /// The device.
        path: PathBuf,
        /// What to do.
        advice: &'static str,
    },
    /// We may not open it.
    #[error("no permission to open {}: {advice}", path.display())]
    Permission {
        /// The device.
        path: PathBuf,
        /// What to do.
        advice: PermissionAdvice,
    },
    /// It isn't a KVM device.
    #[error("{} is not a KVM device", path.display())]
    NotKvm {
        /// The device.
        path: PathBuf,
    },
    /// It speaks another version of the API.
    #[error("{} speaks version {version} of the KVM API, {API_VERSION} is needed", path.display())]
    ApiVersion {
        /// The device.
        path: PathBuf,
        /// Its version.
        version: i32,
    },
    /// Anything else.
    #[error("cannot open {}: {source}", path.display())]
    Other {
        /// The device.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
}

/// Who may open the device, and how to become one of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PermissionAdvice {
    /// Members of this group may.
    JoinGroup(String),
    /// Only the owner may, by the file's mode.
    ChangeMode(u32),
    /// The file's mode lets us: something else (a container, a security module) forbids it.
    SomethingElse,
}

impl fmt::Display for PermissionAdvice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::JoinGroup(group) => {
                write!(
                    f,
                    "group `{group}` may; `sudo usermod -aG {group} $USER`, then log in again"
                )
            }
            Self::ChangeMode(mode) => write!(f, "its mode is {mode:03o}, so only its owner may"),
            Self::SomethingElse => {
                f.write_str("its mode would allow it; a container's device rules or a security module forbid it")
            }
        }
    }
}

/// Opens the device and checks that it is KVM.
///
/// # Errors
/// Why it can't be used.
pub fn open(path: &Path) -> Result<kvm_ioctls::Kvm, KvmUnusable> {
    let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|_| KvmUnusable::NotKvm { path: path.to_owned() })?;
    let kvm = kvm_ioctls::Kvm::new_with_path(name).map_err(|error| explain(path.to_owned(), error.into()))?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        // What a device that has never heard of the request answers.
        -1 => Err(KvmUnusable::NotKvm { path: path.to_owned() }),
        version => Err(KvmUnusable::ApiVersion {
            path: path.to_owned(),
            version,
        }),
    }
}

/// Why `path` couldn't be opened.
fn explain(path: PathBuf, source: io::Error) -> KvmUnusable {
    match source.kind() {
        io::ErrorKind::NotFound => KvmUnusable::Missing {
            path,
            advice: missing_advice(),
        },
        io::ErrorKind::IsADirectory => KvmUnusable::NotKvm { path },
        io::ErrorKind::PermissionDenied => {
            let advice = fs::metadata(&path).map_or(PermissionAdvice::SomethingElse, |metadata| permission(&metadata));
            KvmUnusable::Permission { path, advice }
        }
        _ if matches!(source.raw_os_error(), Some(ENXIO | ENODEV)) => KvmUnusable::Missing {
            path,
            advice: missing_advice(),
        },
        _ => KvmUnusable::Other { path, source },
    }
}

const ENXIO: i32 = rustix::io::Errno::NXIO.raw_os_error();
const ENODEV: i32 = rustix::io::Errno::NODEV.raw_os_error();

/// What keeps the device from existing.
fn missing_advice() -> &'static str {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag| crate::doctor::cpu_has(&cpuinfo, flag);
    if has("vmx") {
        "this CPU has VMX, so try `sudo modprobe kvm_intel`, or give a container `--device /dev/kvm`"
    } else if has("svm") {
        "this CPU has SVM, so try `sudo modprobe kvm_amd`, or give a container `--device /dev/kvm`"
    } else {
        "this CPU shows neither VMX nor SVM; enable virtualisation in the firmware, or nested virtualisation of the \
         virtual machine this runs in"
    }
}

fn permission(metadata: &fs::Metadata) -> PermissionAdvice {
    const GROUP_READ_WRITE: u32 = 0o060;
    const OTHER_READ_WRITE: u32 = 0o006;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & OTHER_READ_WRITE == OTHER_READ_WRITE {
        PermissionAdvice::SomethingElse
    } else if mode & GROUP_READ_WRITE == GROUP_READ_WRITE {
        PermissionAdvice::JoinGroup(group_name(metadata.gid()))
    } else {
        PermissionAdvice::ChangeMode(mode)
    }
}

/// The group's name, or its number when it has none.
fn group_name(gid: u32) -> String {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let found = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    });
    found.unwrap_or_else(|| gid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &str) -> String {
        match open(path.as_ref()) {
            Ok(_) => panic!("{path} opened as KVM"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn missing_device_says_what_to_do() {
        let message = refusal("/nonexistent/kvm");
        assert!(
            message.starts_with("/nonexistent/kvm does not exist: this CPU"),
            "{message}"
        );
    }

    #[test]
    fn other_files_are_not_kvm() {
        assert!(refusal("/dev/null").contains("not a KVM device"));
        assert!(refusal("/").contains("not a KVM device"));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(refusal(file.path().to_str().unwrap()).contains("not a KVM device"));
    }

    #[test]
    fn permission_advice_follows_the_mode() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let advice = |mode| {
            fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
            permission(&file.path().metadata().unwrap())
        };
        let group = group_name(file.path().metadata().unwrap().gid());
        assert_eq!(advice(0o660), PermissionAdvice::JoinGroup(group));
        assert_eq!(advice(0o600), PermissionAdvice::ChangeMode(0o600));
        assert_eq!(advice(0o666), PermissionAdvice::SomethingElse);
    }

    #[test]
    fn group_names_are_looked_up() {
        assert_eq!(group_name(0), "root");
        assert_eq!(group_name(4_000_000_000), "4000000000");
    }
}
