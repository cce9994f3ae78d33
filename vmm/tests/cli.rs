//! What users get to see for their mistakes, and for asking.

mod support;

use support::{assert_refused, file, run, vmm};

const USAGE: i32 = 2;
const HOST: i32 = 4;

#[test]
fn help_teaches_with_examples_and_exit_status() {
    let ended = run(&mut vmm(&["--help"]));
    assert_eq!(ended.status, Some(0));
    for part in ["Examples:", "vmm run bzImage", "Exit status:", "doctor"] {
        assert!(ended.stdout.contains(part), "{part}: {ended:?}");
    }
    assert_eq!(run(&mut vmm(&["--version"])).status, Some(0));
}

#[test]
fn unknown_flags_and_words_are_usage_errors() {
    for args in [
        &["--what"][..],
        &["rum"],
        &["run", "k", "--memroy", "1G"],
        &["run", "k", "--memory", "512"],
    ] {
        let ended = run(&mut vmm(args));
        assert_eq!(ended.status, Some(USAGE), "{args:?}: {ended:?}");
        assert!(!ended.stderr.contains("panicked"));
    }
}

#[test]
fn run_without_kernel_says_how_to_name_one() {
    assert_refused(&run(&mut vmm(&["run"])), USAGE, &["no kernel given", "vmm run KERNEL"]);
}

#[test]
fn impossible_machines_are_refused() {
    for (flag, value, part) in [
        ("--memory", "1K", "at least 2M"),
        ("--memory", "64T", "at most"),
        ("--cpus", "0", "1 to 254"),
        ("--cpus", "255", "1 to 254"),
        ("--cpus", "4000000000", "1 to 254"),
    ] {
        assert_refused(&run(&mut vmm(&["run", "k", flag, value])), USAGE, &[part]);
    }
}

#[test]
fn bad_configuration_file_is_refused_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let config = file(&directory, "guest.toml", b"kernel = \"k\"\nmemroy = \"1G\"\n");
    let ended = run(&mut vmm(&["run", "--config", config.to_str().unwrap()]));
    assert_refused(&ended, USAGE, &["guest.toml:2:1: unknown field `memroy`"]);
    let ended = run(&mut vmm(&["run", "--config", "/nonexistent.toml"]));
    assert_refused(&ended, USAGE, &["/nonexistent.toml", "No such file"]);
}

#[test]
fn bad_log_filter_is_refused() {
    assert_refused(&run(&mut vmm(&["--log", "umbra=[[["])), USAGE, &["--log"]);
}

#[test]
fn missing_kvm_says_so_in_one_line() {
    let kernel = env!("CARGO_BIN_EXE_vmm");
    for args in [
        &["--backend", "kvm", "--kvm-device", "/nonexistent/kvm"][..],
        &["run", kernel, "--backend", "kvm", "--kvm-device", "/nonexistent/kvm"],
    ] {
        let ended = run(&mut vmm(args));
        assert_refused(&ended, HOST, &["/nonexistent/kvm does not exist"]);
    }
}

#[test]
fn device_that_is_not_kvm_says_so() {
    assert_refused(
        &run(&mut vmm(&["--backend", "kvm", "--kvm-device", "/dev/null"])),
        HOST,
        &["/dev/null"],
    );
}

#[test]
fn shadow_backend_has_one_cpu() {
    if !support::kvm_usable() {
        return;
    }
    let ended = run(&mut vmm(&[
        "run",
        env!("CARGO_BIN_EXE_vmm"),
        "--backend",
        "shadow",
        "-c",
        "2",
    ]));
    assert_refused(&ended, USAGE, &["2 CPUs", "shadow backend has one"]);
}

#[test]
fn no_permission_names_the_group() {
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become somebody without permission");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let device = file(&directory, "kvm", b"");
    // Group 1 is `daemon` wherever there is an /etc/group.
    chown(&device, Some(0), Some(1)).unwrap();
    std::fs::set_permissions(&device, std::fs::Permissions::from_mode(0o660)).unwrap();
    // The binary may lie where only root can go: a copy doesn't.
    let copy = directory.path().join("vmm");
    std::fs::copy(env!("CARGO_BIN_EXE_vmm"), &copy).unwrap();
    let mut command = std::process::Command::new(&copy);
    command
        .args(["--backend", "kvm", "--kvm-device", device.to_str().unwrap()])
        .uid(65_534)
        .gid(65_534);
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let ended = run(&mut command);
    assert_refused(&ended, HOST, &["no permission", "group daemon", "usermod -aG daemon"]);
}

#[test]
fn doctor_reports_a_missing_device_and_fails() {
    let ended = run(&mut vmm(&["doctor", "--kvm-device", "/nonexistent/kvm"]));
    assert_eq!(ended.status, Some(HOST));
    assert!(ended.stdout.starts_with("KVM"), "{ended:?}");
    let ended = run(&mut vmm(&["doctor", "--json", "--kvm-device", "/nonexistent/kvm"]));
    let json: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert!(json["kvm"]["unusable"].is_string(), "{json}");
}

#[test]
fn doctor_into_a_closed_pipe_does_not_panic() {
    use std::process::Stdio;
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ended = run(vmm(&["doctor"]).stdout(Stdio::from(writer)));
    assert_eq!(ended.status, Some(14), "{ended:?}");
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
}

#[test]
fn watch_without_a_terminal_is_refused() {
    if !support::kvm_usable() {
        return;
    }
    assert_refused(&run(&mut vmm(&["--watch"])), USAGE, &["--watch draws on the terminal"]);
}
