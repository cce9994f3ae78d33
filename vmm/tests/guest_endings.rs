//! How guests end, and that no guest takes the vmm with it.
#![expect(clippy::unwrap_used, reason = "helpers of tests outside of test functions")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;
use std::time::Duration;
use support::guests;
use support::{Ended, assert_refused, file, finish, kvm_usable, run, vmm};

const USAGE: i32 = 2;
const HOST: i32 = 4;
const TRIPLE_FAULT: i32 = 6;
const RESET_REFUSED: i32 = 12;
const OUTPUT_CLOSED: i32 = 14;

/// Runs an image with these further flags.
fn run_image(image: &[u8], flags: &[&str]) -> Ended {
    let directory = tempfile::tempdir().unwrap();
    let path = file(&directory, "guest", image);
    let mut args = vec!["run", path.to_str().unwrap(), "--memory", "16M", "--backend", "kvm"];
    args.extend(flags);
    run(&mut vmm(&args))
}

#[test]
fn debug_exit_status_is_qemus() {
    if !kvm_usable() {
        return;
    }
    for code in [0, 3, 0x7f] {
        let ended = run_image(&guests::hello(code), &[]);
        assert_eq!(ended.status, Some((code << 1 | 1).cast_signed()), "{ended:?}");
        assert_eq!(ended.stdout, "hello\n");
        assert_eq!(ended.stderr, "");
    }
}

#[test]
fn triple_fault_is_reported_with_where_it_was() {
    if !kvm_usable() {
        return;
    }
    let ended = run_image(&guests::triple_fault(), &["--no-reboot"]);
    assert_eq!(ended.status, Some(TRIPLE_FAULT), "{ended:?}");
    assert!(ended.stderr.to_lowercase().contains("triple fault"), "{ended:?}");
    assert!(ended.stderr.contains("rip"), "{ended:?}");
}

#[test]
fn reset_with_no_reboot_ends_the_run() {
    if !kvm_usable() {
        return;
    }
    for (how, image) in [
        ("keyboard controller", guests::reset()),
        ("jump to the BIOS", guests::bios_reset()),
    ] {
        let ended = run_image(&image, &["--no-reboot"]);
        assert_eq!(
            (ended.status, ended.stdout.as_str()),
            (Some(RESET_REFUSED), "up\n"),
            "{how}: {ended:?}"
        );
    }
}

#[test]
fn reset_starts_the_guest_again() {
    if !kvm_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = file(&directory, "guest", &guests::reset());
    let mut child = vmm(&["run", path.to_str().unwrap(), "--memory", "16M", "--backend", "kvm"])
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..3 {
        assert_eq!(lines.next().unwrap().unwrap(), "up");
    }
    terminate(child.id());
    let ended = finish(child);
    assert_eq!(ended.signal, Some(nix::libc::SIGTERM), "{ended:?}");
}

#[test]
fn unclaimed_accesses_in_a_loop_read_as_ones_and_are_counted() {
    if !kvm_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let stats = directory.path().join("stats.json");
    let flags = ["--stats=json", "--stats-file", stats.to_str().unwrap()];
    let ended = run_image(&guests::unclaimed_accesses(500), &flags);
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert_eq!(ended.stderr, "", "no line for each access");
    let stats: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(stats).unwrap()).unwrap();
    assert_eq!(stats["mmio_bus"]["unclaimed_reads"], 500, "{stats}");
    assert_eq!(stats["mmio_bus"]["unclaimed_writes"], 500, "{stats}");
    assert_eq!(stats["port_bus"]["unclaimed_reads"], 500, "{stats}");
    assert_eq!(stats["port_bus"]["unclaimed_writes"], 500, "{stats}");
    assert!(stats["mmio"]["cache_hits"].as_u64().unwrap() > 900, "{stats}");
}

#[test]
fn unclaimed_accesses_in_a_loop_are_logged_only_now_and_then() {
    if !kvm_usable() {
        return;
    }
    let ended = run_image(&guests::unclaimed_accesses(500), &["--log", "umbra_devices=debug"]);
    let lines = ended.stderr.lines().count();
    assert!((1..100).contains(&lines), "{lines} lines for 2000 accesses");
}

#[test]
fn serial_flood_comes_out_whole() {
    if !kvm_usable() {
        return;
    }
    let ended = run_image(&guests::serial_flood(300), &[]);
    assert_eq!(ended.status, Some(1), "{:?}", ended.stderr);
    assert_eq!(ended.stdout.lines().filter(|line| line.len() == 63).count(), 300);
}

#[test]
fn serial_flood_into_a_pipe_nobody_reads_can_be_ended() {
    if !kvm_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = file(&directory, "guest", &guests::serial_flood(u32::MAX));
    let mut child = vmm(&["run", path.to_str().unwrap(), "--memory", "16M", "--backend", "kvm"])
        .spawn()
        .unwrap();
    let output = child.stdout.take();
    // Long enough for the pipe's 64 KiB to fill on any machine; if it doesn't, the test is only weaker.
    std::thread::sleep(Duration::from_millis(1500));
    terminate(child.id());
    let ended = finish(child);
    assert_eq!(ended.signal, Some(nix::libc::SIGTERM), "{ended:?}");
    drop(output);
}

#[test]
fn closed_output_ends_the_guest() {
    if !kvm_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = file(&directory, "guest", &guests::serial_flood(u32::MAX));
    let mut child = vmm(&["run", path.to_str().unwrap(), "--memory", "16M", "--backend", "kvm"])
        .spawn()
        .unwrap();
    let mut first = [0; 64];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let ended = finish(child);
    assert_eq!(ended.status, Some(OUTPUT_CLOSED), "{ended:?}");
    assert!(ended.stderr.contains("output"), "{ended:?}");
}

#[test]
fn typed_input_reaches_the_guest() {
    if !kvm_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = file(&directory, "guest", &guests::echo());
    let mut command = vmm(&["run", path.to_str().unwrap(), "--memory", "16M", "--backend", "kvm"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    // More than the UART's FIFO holds: the rest has to wait for room. Ctrl-a is an ordinary byte when it isn't typed.
    input
        .write_all(&[b"abc".repeat(100), b"\x01x-q".to_vec()].concat())
        .unwrap();
    let ended = finish(child);
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert_eq!(ended.stdout, format!("ready\n{}\x01X-", "ABC".repeat(100)));
}

#[test]
fn end_of_input_and_regular_files_are_no_trouble() {
    if !kvm_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = file(&directory, "guest", &guests::echo());
    let input = file(&directory, "input", b"file-q");
    let mut command = vmm(&["run", path.to_str().unwrap(), "--memory", "16M", "--backend", "kvm"]);
    let ended = run(command.stdin(std::fs::File::open(input).unwrap()));
    assert_eq!(
        (ended.status, ended.stdout.as_str()),
        (Some(1), "ready\nFILE-"),
        "{ended:?}"
    );
}

#[test]
fn stop_signals_end_the_run_and_are_passed_on() {
    if !kvm_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = file(&directory, "guest", &guests::spin());
    for cpus in ["1", "2"] {
        let mut child = vmm(&[
            "run",
            path.to_str().unwrap(),
            "--memory",
            "16M",
            "--backend",
            "kvm",
            "--cpus",
            cpus,
        ])
        .spawn()
        .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "spinning\n");
        terminate(child.id());
        let ended = finish(child);
        assert_eq!(
            (ended.status, ended.signal),
            (None, Some(nix::libc::SIGTERM)),
            "{ended:?}"
        );
        assert!(ended.stderr.is_empty(), "{ended:?}");
    }
}

#[test]
fn sigusr1_prints_statistics_and_the_guest_runs_on() {
    if !kvm_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = file(&directory, "guest", &guests::spin());
    let mut child = vmm(&["run", path.to_str().unwrap(), "--memory", "16M", "--backend", "kvm"])
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    for _ in 0..2 {
        signal(child.id(), nix::sys::signal::Signal::SIGUSR1);
        let mut line = String::new();
        BufReader::with_capacity(1, child.stderr.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        while !line.contains("exits in") {
            line.clear();
            BufReader::with_capacity(1, child.stderr.as_mut().unwrap())
                .read_line(&mut line)
                .unwrap();
        }
    }
    terminate(child.id());
    assert_eq!(finish(child).signal, Some(nix::libc::SIGTERM));
}

#[test]
fn images_that_are_no_kernels_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let ended = run(&mut vmm(&["run", missing.to_str().unwrap()]));
    assert_refused(&ended, USAGE, &["missing"]);
    if !kvm_usable() {
        return;
    }
    let whole = guests::hello(0);
    let elf_start = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0";
    for (image, what) in [
        (&b""[..], "empty"),
        (&b"#!/bin/sh\necho no kernel\n"[..], "not a kernel"),
        (&whole[..whole.len() - 5], "truncated"),
        (&elf_start[..], "truncated ELF"),
    ] {
        let ended = run_image(image, &[]);
        assert_refused(&ended, USAGE, &["guest"]);
        println!("{what}: {}", ended.stderr.trim_end());
    }
    assert_refused(&run(&mut vmm(&["run", directory.path().to_str().unwrap()])), USAGE, &[]);
}

#[test]
fn what_does_not_fit_is_refused() {
    if !kvm_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let initrd = file(&directory, "initrd", &vec![7; 17 << 20]);
    let ended = run_image(&guests::hello(0), &["--initrd", initrd.to_str().unwrap()]);
    assert_refused(&ended, USAGE, &["initrd"]);
    let ended = run_image(&guests::hello(0), &["--initrd", "/nonexistent/initrd"]);
    assert_refused(&ended, USAGE, &["/nonexistent/initrd"]);
    let ended = run_image(&guests::hello(0), &["--cmdline", &"x".repeat(100_000)]);
    assert_refused(&ended, USAGE, &["command line"]);
    let ended = run_image(&guests::hello(0), &["--memory", "31T"]);
    assert_refused(&ended, HOST, &["more than this host"]);
}

#[test]
fn every_memory_backing_runs_a_guest() {
    if !kvm_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file_backing = format!("file={}", directory.path().join("ram").display());
    for backing in ["anon", "memfd", &file_backing, &file_backing] {
        let ended = run_image(&guests::hello(0), &["--memory-backing", backing]);
        assert_eq!(
            (ended.status, ended.stdout.as_str()),
            (Some(1), "hello\n"),
            "{backing}: {ended:?}"
        );
    }
    let ended = run_image(&guests::hello(0), &["--memory-backing", "hugetlb"]);
    if ended.status != Some(1) {
        assert_refused(&ended, HOST, &["huge"]);
    }
}

#[test]
fn a_backend_that_was_left_to_the_vmm_is_named_in_one_line_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = file(&directory, "guest", &guests::hello(0));
    let path = path.to_str().unwrap();
    let lines = |flags: &[&str]| {
        let mut args = vec!["run", path, "--memory", "16M"];
        args.extend(flags);
        let ended = run(&mut vmm(&args));
        assert_eq!((ended.status, ended.stdout.as_str()), (Some(1), "hello\n"), "{ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
        ended.stderr
    };
    let without = lines(&["--kvm-device", "/nonexistent/kvm"]);
    assert!(
        without.starts_with("vmm: the guest runs on the software CPU: /nonexistent/kvm does not exist"),
        "{without}"
    );
    // What the doctor says is what happens.
    let doctor = run(&mut vmm(&["doctor"]));
    let here = lines(&[]);
    assert!(
        doctor.stdout.contains(here.trim_start_matches("vmm: ").trim_end()),
        "{here}{}",
        doctor.stdout
    );
    if doctor.status == Some(0) {
        let split = lines(&["--irqchip", "split"]);
        assert!(split.starts_with("vmm: the guest runs on KVM: "), "{split}");
    }
}

#[test]
fn split_irqchip_runs_a_guest() {
    if !kvm_usable() {
        return;
    }
    let ended = run_image(&guests::hello(0), &["--irqchip", "split"]);
    assert_eq!((ended.status, ended.stdout.as_str()), (Some(1), "hello\n"), "{ended:?}");
}

fn terminate(pid: u32) {
    signal(pid, nix::sys::signal::Signal::SIGTERM);
}

fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, signal).unwrap();
}
