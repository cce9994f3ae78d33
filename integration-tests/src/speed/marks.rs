//! Reads what the guest says (see [`guest`](super::guest)) and when it said it.

use super::guest::{FAREWELL, GREETING};
use super::rows::Row;
use std::time::{Duration, Instant};

/// One run of a loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// Which loop.
    pub row: Row,
    /// Between the marks before and behind it.
    pub time: Duration,
    /// What it computed.
    pub checksum: u32,
    /// What the guest's time-stamp counter counted meanwhile, its low half.
    pub ticks: u32,
}

/// The guest said something else.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MarkError {
    /// It took an exception.
    #[error("the guest took an exception (vector and RIP stand behind the `!`): {0:?}")]
    Exception(String),
    /// A line that is none of its own.
    #[error("not a line of the guest: {0:?}")]
    Line(String),
}

/// Listens.
#[derive(Debug, Default)]
pub struct Marks {
    greeted: bool,
    line: Vec<u8>,
    begun: Option<Instant>,
    ended: Option<Instant>,
    samples: Vec<Sample>,
    over: bool,
}

impl Marks {
    /// The guest has said these bytes, at this time.
    ///
    /// # Errors
    /// They aren't what the guest says. What a machine's firmware says before the guest's greeting is passed over.
    pub fn hear(&mut self, at: Instant, bytes: &[u8]) -> Result<(), MarkError> {
        for &byte in bytes {
            self.line.push(byte);
            if !self.greeted {
                if self.line.ends_with(GREETING.as_bytes()) {
                    self.greeted = true;
                    self.line.clear();
                }
                continue;
            }
            match byte {
                b'<' => self.begun = Some(at),
                b'>' => self.ended = Some(at),
                b'\n' => self.end_line()?,
                _ => {}
            }
        }
        Ok(())
    }

    fn end_line(&mut self) -> Result<(), MarkError> {
        let line = text(&std::mem::take(&mut self.line));
        if line.contains('!') {
            return Err(MarkError::Exception(line));
        }
        let times = self.begun.take().zip(self.ended.take());
        if line.trim_end() == FAREWELL {
            self.over = true;
            return Ok(());
        }
        let sample = sample(line.trim_end(), times).ok_or(MarkError::Line(line))?;
        self.samples.push(sample);
        Ok(())
    }

    /// All runs of loops so far, in the order they came.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// The guest has come to its end.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.over
    }
}

/// A line's sample, if it is as it should be.
fn sample(line: &str, times: Option<(Instant, Instant)>) -> Option<Sample> {
    let (begun, ended) = times?;
    let (letter, rest) = line.split_at_checked(1)?;
    let row = Row::of_letter(*letter.as_bytes().first()?)?;
    let (checksum, ticks) = rest.strip_prefix("<>")?.split_once(' ')?;
    let number = |text: &str| (text.len() == 8).then(|| u32::from_str_radix(text, 16).ok())?;
    Some(Sample {
        row,
        time: ended.saturating_duration_since(begun),
        checksum: number(checksum)?,
        ticks: number(ticks)?,
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_time_lies_between_the_marks() {
        let (start, mut marks) = (Instant::now(), Marks::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        marks.hear(at(0), b"firmware <>!\numbra-spe").expect("noise");
        marks.hear(at(1), b"ed\nI").expect("greeting");
        marks.hear(at(3), b"<").expect("mark");
        marks.hear(at(7), b">0123abcd 0000").expect("mark");
        marks.hear(at(9), b"00ff\r\n").expect("numbers");
        let sample = Sample {
            row: Row::Integer,
            time: Duration::from_secs(4),
            checksum: 0x0123_abcd,
            ticks: 255,
        };
        assert_eq!((marks.samples(), marks.is_over()), (&[sample][..], false));
        marks.hear(at(9), b".\n").expect("end");
        assert!(marks.is_over());
    }

    #[test]
    fn line_that_is_not_the_guests_is_an_error() {
        for line in [
            "I<>0123abcd\n",
            "Z<>01234567 01234567\n",
            "I>01234567 01234567\n",
            "\n",
            "I<>1 2\n",
        ] {
            let mut marks = Marks::default();
            marks.hear(Instant::now(), GREETING.as_bytes()).expect("greeting");
            let heard = marks.hear(Instant::now(), line.as_bytes());
            assert_eq!(heard, Err(MarkError::Line(line.to_owned())));
        }
    }

    #[test]
    fn exception_is_told() {
        let mut marks = Marks::default();
        marks.hear(Instant::now(), GREETING.as_bytes()).expect("greeting");
        let heard = marks.hear(Instant::now(), b"F<!0000000d 00107123\n");
        assert_eq!(heard, Err(MarkError::Exception("F<!0000000d 00107123\n".to_owned())));
    }
}
