//! `vmm mmu dump` from outside.

mod support;

use support::{Ended, assert_refused, file, guests, kvm_usable, run, vmm};

const USAGE: i32 = 2;
const HOST: i32 = 4;

fn dump(flags: &[&str]) -> Ended {
    let mut args = vec!["mmu", "dump"];
    args.extend(flags);
    run(&mut vmm(&args))
}

#[test]
fn builtin_guest_is_dumped_with_its_mmio_marked_and_drawn() {
    if !kvm_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let drawing = directory.path().join("tables.svg");
    let ended = dump(&["--svg", drawing.to_str().unwrap()]);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    let text = &ended.stdout;
    assert!(text.starts_with("vCPU 0: 4-level paging, CR3 0x200000"), "{text}");
    assert!(text.contains("2048 × 2M → 0x0 xw-"), "{text}");
    // The device's first page came and went, so what is known of the others is out of date.
    assert!(text.contains("MMIO gfn 0xd0000 ") && text.contains(" fresh"), "{text}");
    assert!(
        text.contains("MMIO gfns 0xd0001–0xd0003 ") && text.contains(" stale"),
        "{text}"
    );
    assert!(
        text.lines()
            .any(|line| line.contains("2048 × 2M") && line.contains("MMIO gfn")),
        "{text}"
    );
    assert!(ended.stderr.contains("guest: "), "the guest's console: {ended:?}");
    let drawn = std::fs::read_to_string(&drawing).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.ends_with("</svg>\n"));
    assert!(drawn.contains("MMIO gfn 0xd0000 "), "{drawn}");
}

#[test]
fn software_cpu_is_dumped_with_the_tables_it_walks() {
    let ended = dump(&["--backend", "soft"]);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    let text = &ended.stdout;
    for part in [
        "the tables that the CPU walks",
        "0x300000 7 × 4K → 0x300000 xw-",
        "0xd0000000 MMIO gfn 0xd0000 ",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn guest_that_never_ends_is_stopped_after_its_time() {
    if !kvm_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = file(&directory, "guest", &guests::spin());
    let ended = dump(&[
        path.to_str().unwrap(),
        "-m",
        "16M",
        "--after",
        "300ms",
        "-c",
        "2",
        "--vcpu",
        "1",
    ]);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(ended.stdout.starts_with("vCPU 1: no paging"), "{ended:?}");
    assert!(ended.stdout.contains("no MMIO has been remembered"), "{ended:?}");
}

#[test]
fn guest_that_dies_is_dumped_all_the_same() {
    if !kvm_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = file(&directory, "guest", &guests::triple_fault());
    let ended = dump(&[path.to_str().unwrap(), "-m", "16M"]);
    assert_eq!(ended.status, Some(6), "{ended:?}");
    assert!(ended.stdout.starts_with("vCPU 0: "), "{ended:?}");
    assert!(ended.stderr.to_lowercase().contains("triple fault"), "{ended:?}");
}

#[test]
fn mistakes_are_told_before_a_guest_runs() {
    let refused = dump(&["--svg", "/nonexistent/tables.svg"]);
    assert_refused(
        &refused,
        USAGE,
        &["cannot write the drawing to /nonexistent/tables.svg"],
    );
    assert_refused(
        &dump(&["--vcpu", "1"]),
        USAGE,
        &["the guest has 1 vCPU, so there is no vCPU 1"],
    );
    assert_refused(&dump(&["/nonexistent/kernel"]), USAGE, &["/nonexistent/kernel"]);
    assert_refused(
        &dump(&["--backend", "kvm", "--kvm-device", "/nonexistent/kvm"]),
        HOST,
        &["/nonexistent/kvm"],
    );
    for (after, hint) in [
        ("2", "did you mean 2s?"),
        ("soon", "is not a time"),
        ("9999999m", "more than a day"),
    ] {
        let ended = dump(&["--after", after]);
        assert_eq!(ended.status, Some(USAGE), "{ended:?}");
        assert!(ended.stderr.contains(hint), "{ended:?}");
    }
}
