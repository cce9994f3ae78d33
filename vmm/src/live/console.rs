//! [`ConsolePane`]: the last lines of a guest's console, as far as a plain pane can show them.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Lines that are kept.
const LINES: usize = 500;
/// Bytes of a line; a longer one goes on in the next.
const LINE: usize = 512;
const TAB: usize = 8;

/// A console that keeps its last lines. Clones are handles to the same.
///
/// Knows line feed, carriage return, backspace, tab and "erase to the end of the line"; swallows all other escape
/// sequences and control characters, so that nothing of the guest's reaches the real terminal as such.
#[derive(Clone, Debug, Default)]
pub struct ConsolePane(Arc<Mutex<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    done: VecDeque<Vec<u8>>,
    line: Vec<u8>,
    column: usize,
    escape: Escape,
}

/// How far an escape sequence (ECMA-48, 5.4) has been read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Escape {
    #[default]
    None,
    /// After ESC.
    Begun,
    /// After ESC \[.
    Control,
    /// After ESC \], P, X, ^ or _: a text that ends with BEL or ESC \\.
    Text,
}

impl ConsolePane {
    /// The last `rows` lines, the unfinished one included.
    pub fn tail(&self, rows: usize) -> Vec<String> {
        let lines = self.lock();
        let all = lines.done.len() + 1;
        let shown = lines.done.iter().chain([&lines.line]).skip(all.saturating_sub(rows));
        shown.map(|line| String::from_utf8_lossy(line).into_owned()).collect()
    }

    /// Adds a text of ours, on lines of its own.
    pub fn notice(&self, text: &str) {
        if text.trim().is_empty() {
            return;
        }
        let mut lines = self.lock();
        let unfinished = std::mem::take(&mut lines.line);
        let column = std::mem::take(&mut lines.column);
        let escape = std::mem::take(&mut lines.escape);
        for line in text.trim_matches('\n').lines() {
            lines.feed_all(line.as_bytes());
            lines.end_line();
        }
        (lines.line, lines.column, lines.escape) = (unfinished, column, escape);
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl io::Write for ConsolePane {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().feed_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn feed_all(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.feed(byte);
        }
    }

    fn feed(&mut self, byte: u8) {
        match (self.escape, byte) {
            (Escape::None, 0x1b) => self.escape = Escape::Begun,
            (Escape::None, _) => self.put(byte),
            (Escape::Begun, b'[') => self.escape = Escape::Control,
            (Escape::Begun, b']' | b'P' | b'X' | b'^' | b'_') => self.escape = Escape::Text,
            // Intermediate bytes, then a final one.
            (Escape::Begun, 0x20..=0x2f) => {}
            (Escape::Begun, _) => self.escape = Escape::None,
            (Escape::Control, 0x20..=0x3f) => {}
            (Escape::Control, last) => {
                if last == b'K' {
                    self.line.truncate(self.column);
                }
                self.escape = Escape::None;
            }
            (Escape::Text, 0x07) => self.escape = Escape::None,
            (Escape::Text, 0x1b) => self.escape = Escape::Begun,
            (Escape::Text, _) => {}
        }
    }

    fn put(&mut self, byte: u8) {
        match byte {
            b'\n' => self.end_line(),
            b'\r' => self.column = 0,
            0x08 => self.column = self.column.saturating_sub(1),
            b'\t' => {
                for _ in 0..TAB - self.column % TAB {
                    self.put(b' ');
                }
            }
            0..0x20 | 0x7f => {}
            _ => {
                if self.column == LINE {
                    self.end_line();
                }
                match self.line.get_mut(self.column) {
                    Some(place) => *place = byte,
                    None => self.line.push(byte),
                }
                self.column += 1;
            }
        }
    }

    fn end_line(&mut self) {
        if self.done.len() == LINES {
            self.done.pop_front();
        }
        self.done.push_back(std::mem::take(&mut self.line));
        self.column = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn shown(text: &[u8], rows: usize) -> Vec<String> {
        let mut pane = ConsolePane::default();
        pane.write_all(text).unwrap();
        pane.tail(rows)
    }

    #[test]
    fn lines_come_as_a_terminal_would_show_them() {
        assert_eq!(shown(b"one\r\ntwo", 5), ["one", "two"]);
        assert_eq!(shown(b"one\ntwo\nthree\n", 2), ["three", ""]);
        assert_eq!(shown(b"10 %\r20 %\rdone\x1b[K\n", 2), ["done", ""]);
        assert_eq!(shown(b"abc\x08\x08X\tY", 1), ["aX      Y"]);
        assert_eq!(shown("grün".as_bytes(), 1), ["grün"]);
    }

    #[test]
    fn escape_sequences_do_not_get_through() {
        let text = b"\x1b[1;31mred\x1b[0m \x1b]0;title\x07\x1bP1$r\x1b\\\x1b(B\x1b7ok\x00\x7f\x1b[2J";
        assert_eq!(shown(text, 1), ["red ok"]);
        assert!(!shown(b"\x1b", 1)[0].contains('\x1b'));
    }

    #[test]
    fn flood_keeps_a_bounded_number_of_bounded_lines() {
        let mut pane = ConsolePane::default();
        pane.write_all(&vec![b'x'; 4 * LINE * LINES]).unwrap();
        let lines = pane.tail(usize::MAX);
        assert_eq!(lines.len(), LINES + 1);
        assert!(lines.iter().all(|line| line.len() <= LINE));
    }

    #[test]
    fn notice_does_not_break_the_guests_line() {
        let mut pane = ConsolePane::default();
        pane.write_all(b"login: ").unwrap();
        pane.notice("\n[paused]\n");
        pane.write_all(b"root").unwrap();
        assert_eq!(pane.tail(5), ["[paused]", "login: root"]);
    }
}
