//! Puts the lab's file system together: busybox, `/init`, KVM's modules, the programs to run and the plan.

use super::cpio::{Archive, Kind, TooLong};
use super::host::Host;
use crate::linux_init;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// One program that the lab runs.
#[derive(Clone, Debug)]
pub struct Program {
    /// Name in the report; also the file's name in the lab, so one word.
    pub name: String,
    /// The statically linked executable on this machine.
    pub executable: PathBuf,
    /// Arguments; none may hold a quote.
    pub arguments: Vec<String>,
    /// Seconds after which it is killed.
    pub timeout: u32,
}

impl Program {
    /// A test executable of Rust's harness: one test at a time, with the output of tests that pass (they say there
    /// what they skipped).
    #[must_use]
    pub fn tests(name: &str, executable: &Path, timeout: u32) -> Self {
        Self {
            name: name.to_owned(),
            executable: executable.to_owned(),
            arguments: ["--test-threads=1", "--show-output"].map(str::to_owned).to_vec(),
            timeout,
        }
    }
}

/// A file for the lab: where it goes and what it is.
#[derive(Clone, Debug)]
pub struct Extra {
    /// Path in the lab, without the leading slash.
    pub path: String,
    /// Content.
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// Building the archive failed.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// A file that should be in it can't be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Something doesn't fit the archive format.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// An argument that the plan, a shell script, can't carry.
    #[error("argument {argument:?} of {program} holds a quote")]
    Quote {
        /// The program.
        program: String,
        /// Its argument.
        argument: String,
    },
}

/// A file of this machine, whole.
///
/// # Errors
/// It can't be read.
pub fn read(path: &Path) -> Result<Vec<u8>, InitramfsError> {
    std::fs::read(path).map_err(|source| InitramfsError::Read {
        path: path.to_owned(),
        source,
    })
}

/// The lab's initramfs, not compressed: unpacking would be emulated.
///
/// # Errors
/// A file can't be read, or doesn't fit.
pub fn build(host: &Host, programs: &[Program], extras: &[Extra]) -> Result<Vec<u8>, InitramfsError> {
    let mut archive = Archive::new();
    add_base(&mut archive, host, include_bytes!("../../lab/init"))?;
    for module in &host.modules {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        archive.add(
            &format!("lab/modules/{name}"),
            Kind::File { mode: 0o644 },
            &read(module)?,
        )?;
    }
    for extra in extras {
        archive.add(&extra.path, Kind::File { mode: extra.mode }, &extra.content)?;
    }
    for program in programs {
        let path = format!("lab/programs/{}", program.name);
        archive.add(&path, Kind::File { mode: 0o755 }, &read(&program.executable)?)?;
    }
    archive.add("lab/plan", Kind::File { mode: 0o644 }, plan(programs)?.as_bytes())?;
    Ok(archive.finish()?)
}

/// A guest's initramfs: busybox and this `/init`.
///
/// # Errors
/// Busybox can't be read.
pub fn build_guest(host: &Host, init: &[u8]) -> Result<Vec<u8>, InitramfsError> {
    let mut archive = Archive::new();
    add_base(&mut archive, host, init)?;
    Ok(archive.finish()?)
}

/// A guest's initramfs with nothing but this `/init` and the kernel's log.
///
/// # Errors
/// The program doesn't fit.
pub fn build_tiny(init: &[u8]) -> Result<Vec<u8>, InitramfsError> {
    let mut archive = Archive::new();
    archive.add("init", Kind::File { mode: 0o755 }, init)?;
    archive.add(linux_init::LOG, Kind::CharDevice { major: 1, minor: 11 }, &[])?;
    Ok(archive.finish()?)
}

fn add_base(archive: &mut Archive, host: &Host, init: &[u8]) -> Result<(), InitramfsError> {
    archive.add("init", Kind::File { mode: 0o755 }, init)?;
    archive.add("bin/busybox", Kind::File { mode: 0o755 }, &read(&host.busybox)?)?;
    // The kernel opens it for /init before anything mounts devtmpfs.
    archive.add("dev/console", Kind::CharDevice { major: 5, minor: 1 }, &[])?;
    Ok(())
}

/// The plan: a shell script that `/init` sources.
fn plan(programs: &[Program]) -> Result<String, InitramfsError> {
    let mut plan = String::new();
    for program in programs {
        let _ = write!(plan, "run {0} {1} /lab/programs/{0}", program.name, program.timeout);
        for argument in &program.arguments {
            if argument.contains('\'') {
                return Err(InitramfsError::Quote {
                    program: program.name.clone(),
                    argument: argument.clone(),
                });
            }
            let _ = write!(plan, " '{argument}'");
        }
        plan.push('\n');
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_arguments_are_quoted() {
        let mut program = Program::tests("smoke", Path::new("/nowhere"), 60);
        program.arguments.push("a b".to_owned());
        assert_eq!(
            plan(&[program.clone()]).expect("no quote"),
            "run smoke 60 /lab/programs/smoke '--test-threads=1' '--show-output' 'a b'\n"
        );
        program.arguments.push("it's".to_owned());
        assert!(matches!(plan(&[program]), Err(InitramfsError::Quote { .. })));
    }
}
