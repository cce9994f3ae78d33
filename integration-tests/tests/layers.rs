//! Dependencies run downwards only: the rule of `docs/layers.md`, read off `cargo metadata`.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// For each crate of the workspace, the crates of the workspace it may depend on.
const LAYERS: &[(&str, &[&str])] = &[
    ("umbra-memslots", &[]),
    ("umbra-mmu", &["umbra-memslots"]),
    ("umbra-devices", &["umbra-memslots"]),
    ("umbra-vcpu", &["umbra-memslots", "umbra-mmu", "umbra-devices"]),
    (
        "umbra-vmm",
        &["umbra-memslots", "umbra-mmu", "umbra-devices", "umbra-vcpu"],
    ),
    (
        "umbra-integration-tests",
        &[
            "umbra-memslots",
            "umbra-mmu",
            "umbra-devices",
            "umbra-vcpu",
            "umbra-vmm",
        ],
    ),
];

/// Crate name to the workspace crates it depends on, development dependencies left out.
fn workspace_dependencies(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let packages = metadata["packages"].as_array().expect("cargo metadata lists packages");
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"]
                .as_array()
                .expect("a package lists dependencies");
            let names = dependencies
                .iter()
                .filter(|dependency| dependency["kind"].as_str() != Some("dev"))
                .filter_map(|dependency| dependency["name"].as_str())
                .filter(|name| name.starts_with("umbra-"))
                .map(str::to_owned)
                .collect();
            (
                package["name"].as_str().expect("a package has a name").to_owned(),
                names,
            )
        })
        .collect()
}

/// Every dependency that `LAYERS` does not allow, and every crate it does not know.
fn violations(found: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = LAYERS.iter().copied().collect();
    let mut out = Vec::new();
    for (name, dependencies) in found {
        match allowed.get(name.as_str()) {
            None => out.push(format!("{name} has no place in docs/layers.md")),
            Some(below) => out.extend(
                dependencies
                    .iter()
                    .filter(|dependency| !below.contains(&dependency.as_str()))
                    .map(|dependency| format!("{name} must not depend on {dependency}")),
            ),
        }
    }
    out
}

#[test]
fn workspace_dependencies_run_downwards() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let found = workspace_dependencies(&metadata);
    assert_eq!(found.len(), LAYERS.len(), "a crate is missing: {:?}", found.keys());
    assert_eq!(violations(&found), Vec::<String>::new());
}

#[test]
fn upward_and_sideways_dependencies_are_reported() {
    let found = BTreeMap::from([
        ("umbra-mmu".to_owned(), BTreeSet::from(["umbra-devices".to_owned()])),
        ("umbra-memslots".to_owned(), BTreeSet::from(["umbra-vcpu".to_owned()])),
    ]);
    assert_eq!(
        violations(&found),
        [
            "umbra-memslots must not depend on umbra-vcpu",
            "umbra-mmu must not depend on umbra-devices"
        ]
    );
}
