//! One counter of an 8254. Nothing ticks: counts and outputs are computed from the time of the last load.

/// The state of one counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent flip-flops of the chip")]
pub struct CounterState {
    /// Mode, 0 to 5.
    pub mode: u8,
    /// Which bytes are transferred: 1 the low one, 2 the high one, 3 both in this order.
    pub access: u8,
    /// Counts in decimal digits.
    pub decimal: bool,
    /// What is counted from: 1 to 0x10000 (or, in decimal digits, to 10000).
    pub reload: u32,
    /// The low byte of a count that is being written.
    pub low: Option<u8>,
    /// The next read gives the high byte.
    pub high_next: bool,
    /// The latched count.
    pub latched: Option<u16>,
    /// The latched status.
    pub status: Option<u8>,
    /// A count was loaded since the mode was set.
    pub loaded: bool,
    /// The gate.
    pub gate: bool,
    /// Ticks since it began to count; stands still while the gate is low.
    pub elapsed: u64,
    /// Edges of the output that were seen since then.
    pub seen: u64,
}

impl CounterState {
    /// After power-on, when nothing is defined: mode 3 and the longest count.
    pub(super) const fn new(gate: bool) -> Self {
        Self {
            mode: 3,
            access: 3,
            decimal: false,
            reload: 0x1_0000,
            low: None,
            high_next: false,
            latched: None,
            status: None,
            loaded: false,
            gate,
            elapsed: 0,
            seen: 0,
        }
    }

    /// Lets `ticks` pass.
    pub(super) fn advance(&mut self, ticks: u64) {
        if self.gate && self.loaded {
            self.elapsed = self.elapsed.saturating_add(ticks);
        }
    }

    fn periodic(self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// The present count.
    fn count(self) -> u16 {
        let reload = u64::from(self.reload);
        let span = if self.decimal { 10_000 } else { 0x1_0000 };
        let count = match self.mode {
            2 => reload - self.elapsed % reload,
            3 => reload - self.elapsed % reload * 2 % reload,
            // Goes on below zero.
            _ => reload + span - self.elapsed % span,
        } % span;
        let count = if self.decimal { to_digits(count) } else { count };
        u16::try_from(count).unwrap_or(0)
    }

    /// The output.
    pub(super) fn output(self) -> bool {
        let (reload, elapsed) = (u64::from(self.reload), self.elapsed);
        match self.mode {
            0 | 1 => self.loaded && elapsed >= reload,
            2 => elapsed % reload != reload - 1,
            3 => elapsed % reload < reload.div_ceil(2),
            _ => !self.loaded || elapsed != reload,
        }
    }

    /// Rising edges of the output since the load.
    fn edges(self) -> u64 {
        let periods = self.elapsed / u64::from(self.reload);
        match self.loaded {
            false => 0,
            true if self.periodic() => periods,
            true => periods.min(1),
        }
    }

    /// Whether there were edges since this was asked last.
    pub(super) fn take_edges(&mut self) -> bool {
        let edges = self.edges();
        std::mem::replace(&mut self.seen, edges) < edges
    }

    /// Ticks until the next edge.
    pub(super) fn until_edge(self) -> Option<u64> {
        let done = !self.periodic() && self.seen > 0;
        if !self.loaded || !self.gate || done {
            return None;
        }
        let next = (self.seen + 1).saturating_mul(u64::from(self.reload));
        Some(next.saturating_sub(self.elapsed))
    }

    /// A control word for this counter.
    pub(super) fn control(&mut self, byte: u8) {
        let access = byte >> 4 & 3;
        if access == 0 {
            self.latch_count();
            return;
        }
        *self = Self {
            access,
            // 6 and 7 are 2 and 3.
            mode: match byte >> 1 & 7 {
                mode @ 6.. => mode - 4,
                mode => mode,
            },
            decimal: byte & 1 != 0,
            reload: if byte & 1 != 0 { 10_000 } else { 0x1_0000 },
            ..Self::new(self.gate)
        };
    }

    pub(super) fn latch_count(&mut self) {
        if self.latched.is_none() {
            self.latched = Some(self.count());
        }
    }

    pub(super) fn latch_status(&mut self) {
        let output = u8::from(self.output()) << 7;
        let empty = u8::from(!self.loaded) << 6;
        let status = output | empty | self.access << 4 | self.mode << 1 | u8::from(self.decimal);
        self.status.get_or_insert(status);
    }

    pub(super) fn read(&mut self) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let [low, high] = self.latched.unwrap_or_else(|| self.count()).to_le_bytes();
        let takes_high = match self.access {
            1 => false,
            2 => true,
            _ => {
                self.high_next = !self.high_next;
                !self.high_next
            }
        };
        if takes_high || self.access == 1 {
            self.latched = None;
        }
        if takes_high { high } else { low }
    }

    pub(super) fn write(&mut self, byte: u8) {
        let value = match (self.access, self.low) {
            (1, _) => [byte, 0],
            (2, _) => [0, byte],
            (_, Some(low)) => [low, byte],
            (_, None) => {
                self.low = Some(byte);
                if self.mode == 0 {
                    // Counting stops until the count is whole.
                    self.loaded = false;
                }
                return;
            }
        };
        self.low = None;
        let value = u32::from(u16::from_le_bytes(value));
        let longest = if self.decimal { 10_000 } else { 0x1_0000 };
        let value = if self.decimal { from_digits(value) } else { value };
        self.reload = if value == 0 { longest } else { value };
        self.loaded = true;
        (self.elapsed, self.seen) = (0, 0);
    }

    pub(super) fn set_gate(&mut self, gate: bool) {
        // A rising gate starts over, except where it only lets go on.
        if gate && !self.gate && !matches!(self.mode, 0 | 4) {
            (self.elapsed, self.seen) = (0, 0);
        }
        self.gate = gate;
    }
}

fn to_digits(value: u64) -> u64 {
    (0..4).fold(0, |digits, place| {
        digits | (value / 10u64.pow(place) % 10) << (4 * place)
    })
}

fn from_digits(digits: u32) -> u32 {
    (0..4)
        .map(|place| (digits >> (4 * place) & 0xf) * 10u32.pow(place))
        .sum()
}
