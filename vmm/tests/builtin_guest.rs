//! What a bare `vmm` does.

mod support;

use support::{kvm_usable, run, vmm};

#[test]
fn bare_vmm_runs_the_builtin_guest_and_shows_a_summary() {
    if !kvm_usable() {
        return;
    }
    let ended = run(&mut vmm(&[]));
    assert_eq!(ended.status, Some(0), "{ended:?}");
    for part in [
        "guest: ",
        "Umbra",
        "✓",
        "5 133 primes",
        "MMIO accesses",
        "the vCPU's cache",
        "an MMIO SPTE",
    ] {
        assert!(ended.stdout.contains(part), "{part}: {}", ended.stdout);
    }
    assert!(
        !ended.stdout.contains('✗') && !ended.stdout.contains('\x1b'),
        "{}",
        ended.stdout
    );
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    assert!(ended.stderr.starts_with("vmm: the guest runs on KVM: "), "{ended:?}");
}

#[test]
fn mmio_is_recognised_as_planned() {
    if !kvm_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stats.json");
    let ended = run(&mut vmm(&["--stats=json", "--stats-file", path.to_str().unwrap()]));
    assert_eq!(ended.status, Some(0), "{ended:?}");
    let stats: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let mmio = |name: &str| stats["mmio"][name].as_u64().unwrap();
    assert!(mmio("cache_hits") > 16_000, "{stats}");
    assert!(mmio("spte_hits") > 8_000, "{stats}");
    assert!((1..200).contains(&mmio("searches")), "{stats}");
    assert!(mmio("stale") >= 16, "{stats}");
}

#[test]
fn without_the_cache_everything_is_searched() {
    if !kvm_usable() {
        return;
    }
    let ended = run(&mut vmm(&["--no-mmio-cache", "--irqchip", "split", "--stats=json"]));
    assert_eq!(ended.status, Some(0), "{ended:?}");
    let json = ended.stderr.lines().last().unwrap();
    let stats: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(stats["mmio"]["cache_hits"], 0, "{stats}");
    assert_eq!(stats["mmio"]["spte_hits"], 0, "{stats}");
    assert!(stats["mmio"]["searches"].as_u64().unwrap() > 24_000, "{stats}");
    assert!(ended.stdout.contains("--no-mmio-cache"), "{}", ended.stdout);
}

#[test]
fn software_cpu_runs_the_builtin_guest() {
    let ended = run(&mut vmm(&["--backend", "soft", "--stats=json"]));
    assert_eq!(ended.status, Some(0), "{ended:?}");
    for part in ["the built-in guest on the software CPU", "5 133 primes", "an MMIO SPTE"] {
        assert!(ended.stdout.contains(part), "{part}: {}", ended.stdout);
    }
    assert!(!ended.stdout.contains('✗'), "{}", ended.stdout);
    let stats: serde_json::Value = serde_json::from_str(ended.stderr.trim()).unwrap();
    assert_eq!(stats["backend"], "soft");
}

#[test]
fn shadow_tables_run_the_builtin_guest_in_user_mode() {
    if !kvm_usable() {
        return;
    }
    let ended = run(&mut vmm(&["--backend", "shadow", "--stats=json"]));
    assert_eq!(ended.status, Some(0), "{ended:?}");
    for part in [
        "user mode, on page tables",
        "the built-in guest on shadow tables",
        "5 133 primes",
    ] {
        assert!(ended.stdout.contains(part), "{part}: {}", ended.stdout);
    }
    assert!(!ended.stdout.contains('✗'), "{}", ended.stdout);
    let stats: serde_json::Value = serde_json::from_str(ended.stderr.trim()).unwrap();
    assert_eq!(stats["backend"], "shadow");
    let mmio = |name: &str| stats["mmio"][name].as_u64().unwrap();
    assert!(mmio("cache_hits") > 16_000 && mmio("spte_hits") > 8_000, "{stats}");
    assert!((1..200).contains(&mmio("searches")) && mmio("stale") >= 16, "{stats}");
}

#[test]
fn user_mode_works_on_kvm_as_well() {
    if !kvm_usable() {
        return;
    }
    let ended = run(&mut vmm(&["--user-mode"]));
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("user mode, on page tables"), "{}", ended.stdout);
}

#[test]
fn named_backend_needs_no_line() {
    for backend in ["kvm", "soft"] {
        if backend == "kvm" && !kvm_usable() {
            continue;
        }
        let ended = run(&mut vmm(&["--backend", backend]));
        assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    }
}

#[test]
fn without_kvm_the_software_cpu_takes_over_and_says_why() {
    let ended = run(&mut vmm(&["--kvm-device", "/nonexistent/kvm"]));
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    for part in ["software CPU", "/nonexistent/kvm does not exist"] {
        assert!(ended.stderr.contains(part), "{part}: {ended:?}");
    }
}
