//! Which typed bytes are the guest's and which are ours: `Ctrl-a` and one more key.

/// `Ctrl-a`, the key that announces a command.
pub const PREFIX: u8 = 0x01;

/// What `Ctrl-a h` shows.
pub const HELP: &str = "\
Ctrl-a h  this help
Ctrl-a x  end the guest and leave
Ctrl-a s  statistics so far
Ctrl-a p  pause, and again to resume
Ctrl-a a  send Ctrl-a to the guest
";

/// What a typed byte turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    /// For the guest.
    Guest(u8),
    /// For us.
    Command(Command),
    /// The first half of a command, or a key after `Ctrl-a` that means nothing.
    Nothing,
}

/// Commands to the vmm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Show [`HELP`].
    Help,
    /// End the guest.
    Quit,
    /// Print statistics.
    Stats,
    /// Stop the vCPUs, or let them go on.
    PauseResume,
}

/// Tells the guest's bytes from ours. Remembers a `Ctrl-a` between reads.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    after_prefix: bool,
}

impl Keys {
    /// Takes the next typed byte.
    pub fn feed(&mut self, byte: u8) -> Key {
        if !std::mem::take(&mut self.after_prefix) {
            if byte == PREFIX {
                self.after_prefix = true;
                return Key::Nothing;
            }
            return Key::Guest(byte);
        }
        match byte.to_ascii_lowercase() {
            // A second Ctrl-a too, as screen and QEMU have it: one doesn't have to let go of Ctrl.
            b'a' | PREFIX => Key::Guest(PREFIX),
            b'h' | b'?' => Key::Command(Command::Help),
            b'x' => Key::Command(Command::Quit),
            b's' => Key::Command(Command::Stats),
            b'p' => Key::Command(Command::PauseResume),
            _ => Key::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed_all(bytes: &[u8]) -> Vec<Key> {
        let mut keys = Keys::default();
        bytes
            .iter()
            .map(|&byte| keys.feed(byte))
            .filter(|&key| key != Key::Nothing)
            .collect()
    }

    #[test]
    fn ordinary_bytes_are_the_guests_ctrl_c_too() {
        assert_eq!(feed_all(b"ls\r\x03"), b"ls\r\x03".map(Key::Guest));
    }

    #[test]
    fn prefix_makes_commands() {
        assert_eq!(feed_all(b"\x01x"), [Key::Command(Command::Quit)]);
        assert_eq!(feed_all(b"\x01H"), [Key::Command(Command::Help)]);
        assert_eq!(
            feed_all(b"\x01s\x01p"),
            [Key::Command(Command::Stats), Key::Command(Command::PauseResume)]
        );
    }

    #[test]
    fn literal_prefix_reaches_the_guest() {
        assert_eq!(
            feed_all(b"\x01a\x01\x01x"),
            [Key::Guest(1), Key::Guest(1), Key::Guest(b'x')]
        );
    }

    #[test]
    fn unknown_command_is_swallowed_and_the_next_byte_is_the_guests() {
        assert_eq!(feed_all(b"\x01zx"), [Key::Guest(b'x')]);
    }
}
