//! Builds the programs that go into the lab: statically linked, so that nothing else has to go in with them.

use serde_json::Value;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target the lab's programs are built for. Naming it keeps the flags away from build scripts and proc macros, and
/// the results away from the ordinary ones in the target directory.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// An executable that cargo built.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Executable {
    /// Package, e.g. `umbra-vcpu`.
    pub package: String,
    /// Target: name of the test file, the binary or the library.
    pub target: String,
    /// Cargo's kind of target: `lib`, `test`, `bin`.
    pub kind: String,
    /// The file.
    pub path: PathBuf,
}

/// Cargo failed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// It can't be run.
    #[error("cargo: {0}")]
    Run(#[from] std::io::Error),
    /// It reported errors.
    #[error("cargo {arguments} failed:\n{output}")]
    Failed {
        /// What it was asked.
        arguments: String,
        /// Its standard error.
        output: String,
    },
    /// It was content, but named no executable for this target.
    #[error("cargo built {target} and named no executable")]
    Unnamed {
        /// The target.
        target: &'static str,
    },
}

/// Builds the test executables of these packages for the lab.
///
/// # Errors
/// Cargo can't be run or fails.
pub fn test_executables(packages: &[&str]) -> Result<Vec<Executable>, BuildError> {
    let mut arguments = vec!["test", "--no-run", "--lib", "--tests"];
    for package in packages {
        arguments.extend(["-p", package]);
    }
    let mut executables = lab_cargo(&arguments)?;
    // Binaries of the same packages are built on the way; their unit tests stand in the library.
    executables.retain(|executable| executable.kind != "bin");
    Ok(executables)
}

/// Builds the `vmm` binary for the lab, with this profile.
///
/// # Errors
/// Cargo can't be run or fails.
pub fn vmm(profile: &str) -> Result<PathBuf, BuildError> {
    let arguments = ["build", "-p", "umbra-vmm", "--bin", "vmm", "--profile", profile];
    named("vmm", lab_cargo(&arguments)?)
}

/// Builds the program that measures how a `vmm` starts, for the lab.
///
/// # Errors
/// Cargo can't be run or fails.
pub fn startup() -> Result<PathBuf, BuildError> {
    let package = env!("CARGO_PKG_NAME");
    named("startup", lab_cargo(&["build", "-p", package, "--bin", "startup"])?)
}

/// Builds the `vmm` binary for this machine, with this profile.
///
/// # Errors
/// Cargo can't be run or fails.
pub fn native_vmm(profile: &str) -> Result<PathBuf, BuildError> {
    let arguments = ["build", "-p", "umbra-vmm", "--bin", "vmm", "--profile", profile];
    named("vmm", cargo(&arguments, |_| {})?)
}

fn named(target: &'static str, executables: Vec<Executable>) -> Result<PathBuf, BuildError> {
    let found = executables.into_iter().find(|executable| executable.target == target);
    found
        .map(|executable| executable.path)
        .ok_or(BuildError::Unnamed { target })
}

/// Cargo for the lab: static, without the debug information that would only be unpacked, and apart from what is built
/// for this machine.
fn lab_cargo(arguments: &[&str]) -> Result<Vec<Executable>, BuildError> {
    cargo(arguments, |command| {
        command
            .args(["--target", TARGET])
            // Takes precedence over RUSTFLAGS and configuration, so the lab is the same whatever the caller has set.
            .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\x1f-Cstrip=debuginfo");
    })
}

fn cargo(arguments: &[&str], more: impl FnOnce(&mut Command)) -> Result<Vec<Executable>, BuildError> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command
        .args(arguments)
        .arg("--message-format=json")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")));
    more(&mut command);
    let output = command.output()?;
    if !output.status.success() {
        return Err(BuildError::Failed {
            arguments: arguments.join(" "),
            output: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    }
    Ok(executables(&String::from_utf8_lossy(&output.stdout)))
}

/// Picks the executables out of cargo's JSON messages.
fn executables(messages: &str) -> Vec<Executable> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .filter_map(|message| {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            Some(Executable {
                package: package_name(message["package_id"].as_str()?).to_owned(),
                target: text(&message["target"]["name"])?,
                kind: text(&message["target"]["kind"][0])?,
                path: text(&message["executable"])?.into(),
            })
        })
        .collect()
}

/// The name in a package id: `path+file:///dir/vcpu#umbra-vcpu@0.1.0`, or `…/umbra-vcpu#0.1.0` if the directory has it.
fn package_name(id: &str) -> &str {
    let (path, fragment) = id.rsplit_once('#').unwrap_or((id, ""));
    match fragment.split_once('@') {
        Some((name, _)) => name,
        None => path.rsplit('/').next().unwrap_or(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_libraries_and_noise_are_left_out() {
        let messages = r#"{"reason":"compiler-artifact","package_id":"path+file:///w/vcpu#umbra-vcpu@0.1.0","target":{"kind":["lib"],"name":"umbra_vcpu"},"executable":null}
not json
{"reason":"compiler-artifact","package_id":"path+file:///w/vcpu#umbra-vcpu@0.1.0","target":{"kind":["test"],"name":"kvm_run"},"executable":"/t/kvm_run-1"}
{"reason":"build-finished","success":true}"#;
        let found = executables(messages);
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].package.as_str(), found[0].target.as_str()),
            ("umbra-vcpu", "kvm_run")
        );
    }

    #[test]
    fn package_name_both_forms_of_id() {
        assert_eq!(package_name("path+file:///w/vcpu#umbra-vcpu@0.1.0"), "umbra-vcpu");
        assert_eq!(package_name("path+file:///w/umbra-vcpu#0.1.0"), "umbra-vcpu");
    }
}
