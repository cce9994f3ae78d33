//! The terminal: taken, used and given back, whatever happens. Each test has a pseudo-terminal of its own, whose
//! foreground job is the vmm.
#![expect(clippy::unwrap_used, reason = "helpers of tests outside of test functions")]

mod support;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use support::{file, guests, kvm_usable};

const QUIT: i32 = 16;

/// A vmm that has a terminal for itself.
struct Session {
    child: Child,
    ours: File,
    theirs: File,
    output: Receiver<Vec<u8>>,
    seen: String,
    _directory: tempfile::TempDir,
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

impl Session {
    /// Runs this image; `None` (said on the output) where that can't be done.
    fn run(image: &[u8]) -> Option<Self> {
        Self::run_with(image, &[])
    }

    /// The same with these flags.
    fn run_with(image: &[u8], flags: &[&str]) -> Option<Self> {
        if !kvm_usable() {
            return None;
        }
        let ours: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let theirs = OpenOptions::new()
            .read(true)
            .write(true)
            .open(name.to_str().unwrap())
            .unwrap();
        tcsetwinsize(&theirs, size(100, 30)).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let image = file(&directory, "guest", image);
        // setsid makes the terminal the session's own, which takes a system call that std has no name for.
        let mut command = Command::new("setsid");
        command.args([
            "--ctty",
            "--wait",
            env!("CARGO_BIN_EXE_vmm"),
            "run",
            image.to_str().unwrap(),
            "-m",
            "16M",
            "--backend",
            "kvm",
        ]);
        command.args(flags);
        let stream = || Stdio::from(theirs.try_clone().unwrap());
        let Ok(child) = command.stdin(stream()).stdout(stream()).stderr(stream()).spawn() else {
            println!("skipped: no setsid (util-linux)");
            return None;
        };
        let ours = File::from(ours);
        let (sender, output) = channel();
        let mut reader = ours.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        Some(Self {
            child,
            ours,
            theirs,
            output,
            seen: String::new(),
            _directory: directory,
        })
    }

    fn type_in(&mut self, keys: &str) {
        self.ours.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until the terminal has shown this.
    fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.seen.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            let bytes = self.output.recv_timeout(left);
            let bytes = bytes.unwrap_or_else(|_| unreachable!("waited for {text:?}, saw {:?}", self.seen));
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    /// Whether typed lines are edited and echoed: the terminal is as a shell wants it.
    fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.theirs).unwrap().local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    fn resize(&self, columns: u16, rows: u16) {
        tcsetwinsize(&self.theirs, size(columns, rows)).unwrap();
    }

    /// To the terminal's foreground job, which only the other end of the terminal may ask for.
    fn signal(&self, signal: nix::sys::signal::Signal) {
        let group = rustix::termios::tcgetpgrp(&self.ours).unwrap();
        let group = nix::unistd::Pid::from_raw(group.as_raw_nonzero().get());
        nix::sys::signal::killpg(group, signal).unwrap();
    }

    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status,
                None if Instant::now() > deadline => {
                    self.child.kill().unwrap();
                    unreachable!("the vmm hung; the terminal shows {:?}", self.seen);
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

#[test]
fn terminal_is_raw_while_the_guest_runs_and_given_back_when_it_ends() {
    let Some(mut session) = Session::run(&guests::echo()) else {
        return;
    };
    session.expect("ready");
    assert!(!session.is_cooked());
    // Ctrl-C is an ordinary byte for the guest; no newline is needed; `q` ends it.
    session.type_in("ab\x03c");
    session.expect("AB\x03C");
    session.type_in("q");
    assert_eq!(session.end().code(), Some(1), "{:?}", session.seen);
    assert!(session.is_cooked());
}

#[test]
fn quit_key_ends_a_guest_that_listens_to_nothing() {
    let Some(mut session) = Session::run(&guests::spin()) else {
        return;
    };
    session.expect("spinning");
    // More than the UART's FIFO takes from a guest that never reads it.
    session.type_in(&"x".repeat(500));
    session.type_in("\x01h");
    session.expect("Ctrl-a x");
    session.type_in("\x01x");
    assert_eq!(session.end().code(), Some(QUIT), "{:?}", session.seen);
    assert!(session.is_cooked());
}

#[test]
fn keys_pause_resume_and_show_statistics() {
    let Some(mut session) = Session::run(&guests::echo()) else {
        return;
    };
    session.expect("ready");
    session.type_in("\x01p");
    session.expect("[paused");
    session.type_in("xyz\x01s");
    session.expect("exits in");
    assert!(
        !session.seen.contains("XYZ"),
        "a paused guest answers nothing: {:?}",
        session.seen
    );
    session.type_in("\x01p");
    // Our own "[running]" may stand between the letters.
    session.expect("Z");
    session.type_in("\x01a");
    session.expect("\x01");
    session.type_in("q");
    assert_eq!(session.end().code(), Some(1), "{:?}", session.seen);
}

#[test]
fn signals_give_the_terminal_back() {
    for signal in [nix::sys::signal::Signal::SIGTERM, nix::sys::signal::Signal::SIGINT] {
        let Some(mut session) = Session::run(&guests::spin()) else {
            return;
        };
        session.expect("spinning");
        assert!(!session.is_cooked());
        session.signal(signal);
        let status = session.end();
        // setsid says 128 + n for a child that died by signal n, where it isn't the vmm itself.
        let number = signal as i32;
        assert!(
            status.signal() == Some(number) || status.code() == Some(128 + number),
            "{status:?}"
        );
        assert!(session.is_cooked());
    }
}

#[test]
fn triple_fault_gives_the_terminal_back() {
    let Some(mut session) = Session::run(&guests::triple_fault()) else {
        return;
    };
    session.expect("triple fault");
    assert_eq!(session.end().code(), Some(6), "{:?}", session.seen);
    assert!(session.is_cooked());
}

const SCREEN: &str = "\x1b[?1049h";
const NO_SCREEN: &str = "\x1b[?1049l";

/// Whether the screen was given back, and nothing but text followed.
fn screen_is_given_back(session: &mut Session) -> bool {
    while let Ok(bytes) = session.output.recv_timeout(Duration::from_millis(300)) {
        session.seen.push_str(&String::from_utf8_lossy(&bytes));
    }
    let seen = &session.seen;
    let last = |text| seen.rfind(text);
    last(NO_SCREEN) > last(SCREEN) && last("\x1b[?25h") > last("\x1b[?25l")
}

#[test]
fn watched_guest_has_its_console_in_a_pane_and_gets_what_is_typed() {
    let Some(mut session) = Session::run_with(&guests::echo(), &["--watch"]) else {
        return;
    };
    for part in [SCREEN, "console", "hottest", "generation", "outcome", "ready"] {
        session.expect(part);
    }
    assert!(!session.is_cooked());
    // A terminal that shrinks is drawn on anew.
    session.resize(60, 20);
    session.expect("\x1b[20;1H");
    session.type_in("ab");
    session.expect("AB");
    session.type_in("\x01p");
    session.expect("[paused");
    session.type_in("\x01p");
    session.type_in("q");
    session.expect("ended.");
    session.type_in("x");
    assert_eq!(session.end().code(), Some(1), "{:?}", session.seen);
    assert!(
        session.is_cooked() && screen_is_given_back(&mut session),
        "{:?}",
        session.seen
    );
}

#[test]
fn screen_is_given_back_however_a_watched_guest_ends() {
    for (image, ending) in [
        (guests::spin(), "quit"),
        (guests::spin(), "signal"),
        (guests::triple_fault(), "fault"),
    ] {
        let Some(mut session) = Session::run_with(&image, &["--watch"]) else {
            return;
        };
        match ending {
            "quit" => {
                session.expect("spinning");
                session.type_in("\x01x");
            }
            "signal" => {
                session.expect("spinning");
                session.signal(nix::sys::signal::Signal::SIGTERM);
            }
            _ => {
                session.expect("ended.");
                session.type_in("\n");
            }
        }
        session.end();
        assert!(session.is_cooked(), "{ending}");
        assert!(screen_is_given_back(&mut session), "{ending}: {:?}", session.seen);
        if ending == "fault" {
            let report = session.seen.rfind("triple fault");
            assert!(
                report > session.seen.rfind(NO_SCREEN),
                "the report stays to be read: {:?}",
                session.seen
            );
        }
    }
}

#[test]
fn deterministic_guest_takes_what_is_typed_when_it_comes() {
    let Some(mut session) = Session::run_with(&guests::echo(), &["--backend", "soft", "--deterministic"]) else {
        return;
    };
    session.expect("ready");
    session.type_in("umbra");
    session.expect("UMBRA");
    session.type_in("\x01p");
    session.expect("paused");
    session.type_in("\x01p");
    session.expect("running");
    session.type_in("again");
    session.expect("AGAIN");
    session.type_in("\x01x");
    assert_eq!(session.end().code(), Some(QUIT));
}
