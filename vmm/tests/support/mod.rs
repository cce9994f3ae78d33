//! Running the `vmm` binary and looking at how it ended.
#![allow(dead_code, reason = "each test binary uses a part of this")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper of tests: a panic is how they fail"
)]

pub mod guests;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A run takes well below a second on a quiet machine; this is "it hangs".
const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test, with nothing on standard input.
pub fn vmm(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env_remove("NO_COLOR");
    command
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    pub status: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        Self {
            status: output.status.code(),
            signal: output.status.signal(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs to the end; a run that doesn't end is killed and fails the test.
pub fn run(command: &mut Command) -> Ended {
    finish(command.spawn().expect("the vmm starts"))
}

/// Waits for a running vmm.
pub fn finish(mut child: Child) -> Ended {
    let reader = |stream: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // A stream that breaks off is as good as one that ends.
            let _ = stream.map(|mut stream| stream.read_to_end(&mut bytes));
            bytes
        })
    };
    let stdout = reader(child.stdout.take().map(|stream| Box::new(stream) as _));
    let stderr = reader(child.stderr.take().map(|stream| Box::new(stream) as _));
    let began = Instant::now();
    let status = loop {
        match child.try_wait().expect("the vmm can be waited for") {
            Some(status) => break status,
            None if began.elapsed() > PATIENCE => {
                child.kill().expect("the vmm can be killed");
                let status = child.wait().expect("the vmm can be waited for");
                let stderr = String::from_utf8_lossy(&stderr.join().unwrap()).into_owned();
                panic!("the vmm hung ({status}); it said: {stderr}");
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    Output {
        status,
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
    .into()
}

/// Whether guests can be run here; says so when not.
pub fn kvm_usable() -> bool {
    let usable = run(&mut vmm(&["doctor"])).status == Some(0);
    if !usable {
        println!("skipped: no usable /dev/kvm");
    }
    usable
}

/// A file with this content that goes away with the directory.
pub fn file(directory: &tempfile::TempDir, name: &str, content: &[u8]) -> PathBuf {
    let path = directory.path().join(name);
    std::fs::File::create(&path)
        .and_then(|mut file| file.write_all(content))
        .expect("a temporary file can be written");
    path
}

/// Asserts that a run was refused as the user's or the host's mistake: this status and one clear line.
pub fn assert_refused(ended: &Ended, status: i32, parts: &[&str]) {
    assert_eq!(ended.status, Some(status), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "one line: {ended:?}");
    assert!(ended.stderr.starts_with("vmm: "), "{ended:?}");
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "`{part}` in {ended:?}");
    }
}
