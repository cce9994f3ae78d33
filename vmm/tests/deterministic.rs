//! `--deterministic`: two runs that are the same, and how users get to see that they are.
#![expect(clippy::unwrap_used, reason = "helpers of tests outside of test functions")]

mod support;

use iced_x86::code_asm::*;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;
use support::guests::{self, debug_exit, multiboot, print};
use support::{Ended, assert_refused, file, finish, run, vmm};

const USAGE: i32 = 2;
const CANNOT_CONTINUE: i32 = 10;

/// What a run leaves behind.
struct Left {
    ended: Ended,
    trace: String,
    /// Its statistics of what can be compared.
    numbers: serde_json::Value,
}

impl Left {
    /// Of a run of `args` with this input from a file.
    fn of(args: &[&str], input: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let input = std::fs::File::open(file(&directory, "input", input)).unwrap();
        let (trace, stats) = (directory.path().join("trace"), directory.path().join("stats"));
        let mut command = vmm(args);
        command.args(["--deterministic", "--stats=json", "--trace"]).arg(&trace);
        let ended = run(command.arg("--stats-file").arg(&stats).stdin(input));
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        let stats: serde_json::Value = serde_json::from_str(&read(&stats)).unwrap();
        Self {
            ended,
            trace: read(&trace),
            numbers: stats["deterministic"].clone(),
        }
    }

    /// Of a run of this guest.
    fn of_guest(image: &[u8], flags: &[&str], input: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = file(&directory, "guest", image);
        let mut args = vec!["run", path.to_str().unwrap(), "--memory", "16M"];
        args.extend(flags);
        Self::of(&args, input)
    }

    fn assert_same(&self, other: &Self) {
        assert_eq!(self.trace, other.trace);
        assert_eq!(self.numbers, other.numbers);
        assert_eq!(self.ended.stdout, other.ended.stdout);
    }
}

#[test]
fn builtin_guest_does_the_same_twice() {
    let (one, other) = (Left::of(&[], b""), Left::of(&[], b""));
    assert_eq!(one.ended.status, Some(0), "{:?}", one.ended);
    // Its summary has times of the host in it.
    assert_eq!(one.trace, other.trace);
    assert_eq!(one.numbers, other.numbers);
    assert!(one.trace.lines().count() > 24_000 && one.trace.ends_with("end: debug exit\n"));
    assert!(
        one.numbers["instructions"].as_u64().unwrap() > 300_000,
        "{}",
        one.numbers
    );
    assert_eq!(one.numbers["digest"].as_str().unwrap().len(), 16);
    let slow = Left::of(&["--no-mmio-cache"], b"");
    assert_eq!(one.trace, slow.trace, "what is remembered makes no difference");
}

#[test]
fn input_from_a_file_comes_at_the_same_instruction() {
    let (one, other) = (
        Left::of_guest(&guests::echo(), &[], b"to umbraq"),
        Left::of_guest(&guests::echo(), &[], b"to umbraq"),
    );
    assert_eq!(
        (one.ended.status, one.ended.stdout.as_str()),
        (Some(1), "ready\nTO UMBRA"),
        "{:?}",
        one.ended
    );
    one.assert_same(&other);
    let different = Left::of_guest(&guests::echo(), &[], b"to umbrq");
    assert_ne!(one.numbers["digest"], different.numbers["digest"]);
}

#[test]
fn pipe_is_read_to_its_end_before_the_guest_starts() {
    let directory = tempfile::tempdir().unwrap();
    let path = file(&directory, "guest", &guests::echo());
    let trace = directory.path().join("trace");
    let mut command = vmm(&["run", path.to_str().unwrap(), "--memory", "16M", "--backend", "soft"]);
    command.args(["--deterministic", "--trace"]).arg(&trace);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    // It says what it waits for, if that takes a while.
    let mut said = String::new();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    stderr.read_line(&mut said).unwrap();
    assert!(said.contains("waits for the end of standard input"), "{said}");
    input.write_all(b"to umb").unwrap();
    input.write_all(b"raq").unwrap();
    drop(input);
    let ended = finish(child);
    assert_eq!((ended.status, ended.stdout.as_str()), (Some(1), "ready\nTO UMBRA"));
    let from_file = Left::of_guest(&guests::echo(), &[], b"to umbraq");
    assert_eq!(std::fs::read_to_string(trace).unwrap(), from_file.trace);
}

/// Says what is typed and resets the machine; ends at a `q`.
fn one_byte_each_life() -> Vec<u8> {
    multiboot(|a| {
        let (mut wait, mut quit, mut spin) = (a.create_label(), a.create_label(), a.create_label());
        print(a, "up ")?;
        a.set_label(&mut wait)?;
        a.mov(edx, 0x3fdu32)?;
        a.in_(al, dx)?;
        a.test(al, 1)?;
        a.jz(wait)?;
        a.mov(edx, 0x3f8u32)?;
        a.in_(al, dx)?;
        a.cmp(al, u32::from(b'q'))?;
        a.je(quit)?;
        a.out(dx, al)?;
        a.mov(al, 0xfeu32)?;
        a.out(0x64, al)?;
        a.set_label(&mut spin)?;
        a.jmp(spin)?;
        a.set_label(&mut quit)?;
        debug_exit(a, 0)
    })
}

#[test]
fn lives_of_a_machine_go_on_with_input_and_time() {
    let (one, other) = (
        Left::of_guest(&one_byte_each_life(), &[], b"abq"),
        Left::of_guest(&one_byte_each_life(), &[], b"abq"),
    );
    assert_eq!((one.ended.status, one.ended.stdout.as_str()), (Some(1), "up aup bup "));
    one.assert_same(&other);
    assert_eq!(one.trace.matches("end: reset").count(), 2, "{}", one.trace);
    let read = format!("{}", one.trace.matches(" in 0x3f8/1 0x62\n").count());
    assert_eq!(read, "1", "the second byte is read in the second life");
}

/// Prints registers of the clock, year, month and day, as they are.
fn date() -> Vec<u8> {
    multiboot(|a| {
        for register in [9, 8, 7] {
            a.mov(al, register)?;
            a.out(0x70, al)?;
            a.in_(al, 0x71)?;
            a.mov(edx, 0x3f8u32)?;
            a.mov(ah, al)?;
            a.shr(al, 4)?;
            a.add(al, i32::from(b'0'))?;
            a.out(dx, al)?;
            a.mov(al, ah)?;
            a.and(al, 0xf)?;
            a.add(al, i32::from(b'0'))?;
            a.out(dx, al)?;
        }
        debug_exit(a, 0)
    })
}

#[test]
fn date_is_what_was_said() {
    assert_eq!(Left::of_guest(&date(), &[], b"").ended.stdout, "260101");
    let flags = ["--rtc", "2031-05-17T23:59:59"];
    assert_eq!(Left::of_guest(&date(), &flags, b"").ended.stdout, "310517");
}

#[test]
fn guest_that_nothing_can_wake_is_ended() {
    let image = multiboot(|a| {
        print(a, "good night\n")?;
        a.cli()?;
        a.hlt()
    });
    let left = Left::of_guest(&image, &["--backend", "soft"], b"never read");
    assert_eq!(left.ended.status, Some(CANNOT_CONTINUE), "{:?}", left.ended);
    assert!(
        left.ended.stderr.contains("halted with nothing to wake it"),
        "{:?}",
        left.ended
    );
    assert!(left.trace.ends_with("end: halted for ever\n"), "{}", left.trace);
}

#[test]
fn auto_takes_the_software_cpu_and_says_so() {
    let ended = run(&mut vmm(&["--deterministic"]));
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    assert!(
        ended
            .stderr
            .contains("software CPU: nothing else can be --deterministic"),
        "{ended:?}"
    );
}

#[test]
fn what_cannot_be_deterministic_is_refused() {
    let kernel = env!("CARGO_BIN_EXE_vmm");
    for (flags, parts) in [
        (
            &["--deterministic", "--backend", "kvm"][..],
            &["--backend kvm", "--backend soft"][..],
        ),
        (&["--deterministic", "--backend", "shadow"], &["--backend shadow"]),
        (
            &["--deterministic", "--quantum", "0"],
            &["quantum of 0", "1 to 1000000000"],
        ),
        (&["--quantum", "10"], &["--quantum is for --deterministic"]),
        (&["--rtc", "2026-01-01"], &["--rtc is for --deterministic"]),
        (&["--trace", "t"], &["--trace is for --deterministic"]),
        (
            &["--deterministic", "--trace", "/nonexistent/t"],
            &["/nonexistent/t", "No such file"],
        ),
    ] {
        let mut args = vec!["run", kernel];
        args.extend(flags);
        assert_refused(&run(&mut vmm(&args)), USAGE, parts);
    }
    for date in ["tomorrow", "2026-02-30", "1969-12-31"] {
        let ended = run(&mut vmm(&["run", kernel, "--deterministic", "--rtc", date]));
        assert_refused(&ended, USAGE, &["--rtc <DATE>", date]);
    }
}

#[test]
fn irqchip_that_cannot_be_had_is_told_of() {
    let ended = run(&mut vmm(&["--deterministic", "--irqchip", "split"]));
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(
        ended.stderr.contains("--irqchip split changes nothing here"),
        "{ended:?}"
    );
}

#[test]
fn guests_end_is_told_before_the_trace_that_does_not_fit() {
    let directory = tempfile::tempdir().unwrap();
    let image = multiboot(|a| {
        a.cli()?;
        a.hlt()
    });
    let path = file(&directory, "guest", &image);
    let args = ["run", path.to_str().unwrap(), "--deterministic", "--backend", "soft"];
    let ended = run(vmm(&args).args(["--trace", "/dev/full"]));
    assert_eq!(ended.status, Some(CANNOT_CONTINUE), "{ended:?}");
    let said = |what: &str| ended.stderr.find(what).unwrap_or_else(|| panic!("{what} in {ended:?}"));
    assert!(said("halted with nothing to wake it") < said("cannot write the trace to /dev/full"));
}

#[test]
fn trace_that_does_not_fit_is_told_of() {
    let ended = run(&mut vmm(&["--deterministic", "--trace", "/dev/full"]));
    assert_eq!(ended.status, Some(USAGE), "{ended:?}");
    assert!(
        ended.stderr.contains("cannot write the trace to /dev/full"),
        "{ended:?}"
    );
}
