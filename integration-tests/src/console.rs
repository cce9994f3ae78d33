//! Talks with a program over its standard input and output: waits for what it should say, answers, and never waits for
//! ever. With a guest's serial line there, this is a conversation with the guest.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// A program that is being talked with. Killed when this goes out of scope.
#[derive(Debug)]
pub struct Console {
    child: Child,
    stdin: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
    /// All it has said.
    heard: Vec<u8>,
    /// How much of that has been waited for.
    matched: usize,
}

/// The program did not say what it should.
#[derive(Debug, thiserror::Error)]
pub enum TalkError {
    /// It can't be started or written to.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Time is up.
    #[error("no {expected:?} within {waited:?}; the end of what it said:\n{heard}")]
    TimedOut {
        /// What was waited for.
        expected: String,
        /// For how long.
        waited: Duration,
        /// The last it said.
        heard: String,
    },
    /// It closed its output.
    #[error("ended without {expected:?}; the end of what it said:\n{heard}")]
    Ended {
        /// What was waited for.
        expected: String,
        /// The last it said.
        heard: String,
    },
}

/// How much of what was said an error shows.
const TAIL: usize = 3000;

impl Console {
    /// Starts a program; its standard error goes where its output goes.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(program: &Path, arguments: &[&str]) -> Result<Self, TalkError> {
        let failed = |source| TalkError::Host {
            what: program.display().to_string(),
            source,
        };
        // One pipe for both, so that they come in the order in which they were said.
        let (mut reader, writer) = std::io::pipe().map_err(failed)?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(writer.try_clone().map_err(failed)?)
            .stderr(writer)
            .spawn()
            .map_err(failed)?;
        let (sender, output) = sync_channel(64);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Some(count) = reader.read(&mut buffer).ok().filter(|count| *count > 0) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            stdin: child.stdin.take(),
            child,
            output,
            heard: Vec::new(),
            matched: 0,
        })
    }

    /// Waits until it says this, after what was waited for before, and gives what it said until then.
    ///
    /// # Errors
    /// It doesn't, within the time.
    pub fn expect(&mut self, text: &str, within: Duration) -> Result<String, TalkError> {
        let deadline = Instant::now() + within;
        loop {
            let new = &self.heard[self.matched..];
            if let Some(at) = new.windows(text.len()).position(|window| window == text.as_bytes()) {
                let before = String::from_utf8_lossy(&new[..at]).into_owned();
                self.matched += at + text.len();
                return Ok(before);
            }
            match self
                .output
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(more) => self.heard.extend_from_slice(&more),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(TalkError::TimedOut {
                        expected: text.to_owned(),
                        waited: within,
                        heard: self.tail(),
                    });
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(TalkError::Ended {
                        expected: text.to_owned(),
                        heard: self.tail(),
                    });
                }
            }
        }
    }

    /// Types a line.
    ///
    /// # Errors
    /// It has closed its input.
    pub fn say(&mut self, line: &str) -> Result<(), TalkError> {
        let stdin = self.stdin.as_mut();
        stdin
            .map_or(Ok(()), |stdin| stdin.write_all(format!("{line}\n").as_bytes()))
            .map_err(|source| TalkError::Host {
                what: format!("typing {line:?}"),
                source,
            })
    }

    /// Waits for its end, listening on.
    ///
    /// # Errors
    /// It doesn't end within the time.
    pub fn end(&mut self, within: Duration) -> Result<ExitStatus, TalkError> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left.min(Duration::from_millis(50))) {
                Ok(more) => self.heard.extend_from_slice(&more),
                Err(RecvTimeoutError::Timeout) => {}
                // Its output is closed; it is ending, or has handed the pipe to nobody.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(Duration::from_millis(5).min(left)),
            }
            let status = self.child.try_wait().map_err(|source| TalkError::Host {
                what: "waiting for its end".to_owned(),
                source,
            })?;
            if let Some(status) = status {
                self.heard.extend(self.output.try_iter().flatten());
                return Ok(status);
            }
            if left.is_zero() {
                return Err(TalkError::TimedOut {
                    expected: "<its end>".to_owned(),
                    waited: within,
                    heard: self.tail(),
                });
            }
        }
    }

    /// The process id, for looking at it in `/proc`.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The last it has said.
    #[must_use]
    pub fn tail(&self) -> String {
        String::from_utf8_lossy(&self.heard[self.heard.len().saturating_sub(TAIL)..]).into_owned()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // Both fail only if it has already ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    fn shell(script: &str) -> Console {
        Console::start(Path::new("/bin/sh"), &["-c", script]).expect("there is a shell")
    }

    #[test]
    fn conversation_question_and_answer() {
        let mut console = shell("echo who; read name; echo hello $name >&2; exit 3");
        assert_eq!(console.expect("who\n", SOON).expect("said"), "");
        console.say("umbra").expect("it listens");
        console.expect("hello umbra", SOON).expect("said");
        assert_eq!(console.end(SOON).expect("ends").code(), Some(3));
        assert_eq!(console.tail(), "who\nhello umbra\n");
    }

    #[test]
    fn expect_of_what_was_said_already_is_not_met_twice() {
        let mut console = shell("echo one one; echo two");
        assert_eq!(console.expect("one", SOON).expect("said"), "");
        assert_eq!(console.expect("one", SOON).expect("said"), " ");
        let error = console.expect("one", SOON).expect_err("only two");
        assert!(matches!(error, TalkError::Ended { .. }), "{error}");
    }

    #[test]
    fn silence_is_an_error_with_what_was_said() {
        let mut console = shell("echo before; exec sleep 60");
        let error = console.expect("after", Duration::from_millis(300)).expect_err("silent");
        assert!(
            matches!(&error, TalkError::TimedOut { heard, .. } if heard == "before\n"),
            "{error}"
        );
        assert!(console.end(Duration::from_millis(100)).is_err());
    }
}
