//! What a whole-system test can run on here: each backend, or why it can't, which is printed and never silently green.

use std::path::{Path, PathBuf};

/// What runs a guest's instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    /// The kernel's KVM, through `/dev/kvm`.
    Kvm,
    /// A KVM vCPU that walks Umbra's shadow tables.
    Shadow,
    /// The software CPU, which needs nothing.
    Soft,
}

impl Backend {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Kvm, Self::Shadow, Self::Soft];

    /// As `--backend` of the vmm has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Shadow => "shadow",
            Self::Soft => "soft",
        }
    }

    /// Why this backend can't be used here; `None` if it can.
    #[must_use]
    pub fn why_not(self) -> Option<String> {
        match self {
            Self::Kvm | Self::Shadow => match kvm_ioctls::Kvm::new() {
                Ok(kvm) if kvm.get_api_version() == 12 => None,
                Ok(kvm) => Some(format!("/dev/kvm has API version {}, not 12", kvm.get_api_version())),
                Err(error) => Some(format!("/dev/kvm: {error}")),
            },
            Self::Soft => None,
        }
    }

    /// The backends that can be used; prints `skipped: …` for each other one.
    pub fn usable() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|backend| {
            let why_not = backend.why_not();
            if let Some(why) = &why_not {
                println!("skipped: backend {}: {why}", backend.name());
            }
            why_not.is_none()
        })
    }
}

/// The `vmm` binary: the lab's, or one that cargo builds now for this machine.
///
/// # Errors
/// It doesn't build.
pub fn vmm() -> Result<PathBuf, crate::lab::build::BuildError> {
    let in_the_lab = Path::new(crate::guest_files::VMM);
    if in_the_lab.exists() {
        return Ok(in_the_lab.to_owned());
    }
    crate::lab::build::native_vmm("dev")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usable_backends_have_no_reason_against_them() {
        assert!(Backend::usable().all(|backend| backend.why_not().is_none()));
    }
}
