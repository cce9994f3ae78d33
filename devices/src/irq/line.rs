//! [`IrqLine`]: one device's wire to an interrupt input. Lines that share an input are OR-ed, and dropping a line lowers
//! it, so that a device that is unplugged can't leave its interrupt asserted.

use super::{Gsi, IrqSink};
use crate::sync::lock;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// The inputs of a sink, and who holds lines to them.
pub struct IrqPins {
    sink: Arc<dyn IrqSink>,
    pins: Mutex<BTreeMap<Gsi, Weak<Pin>>>,
}

impl IrqPins {
    /// The inputs of `sink`, all low.
    pub fn new(sink: Arc<dyn IrqSink>) -> Self {
        Self {
            sink,
            pins: Mutex::new(BTreeMap::new()),
        }
    }

    /// A new line to this input, low. The input is high while any of its lines is.
    pub fn line(&self, gsi: Gsi) -> IrqLine {
        let mut pins = lock(&self.pins);
        let existing = pins.get(&gsi).and_then(Weak::upgrade);
        let pin = existing.unwrap_or_else(|| {
            let pin = Arc::new(Pin {
                gsi,
                sink: Some(Arc::clone(&self.sink)),
                lines_high: Mutex::new(0),
            });
            pins.insert(gsi, Arc::downgrade(&pin));
            pin
        });
        IrqLine {
            pin,
            high: AtomicBool::new(false),
        }
    }
}

impl fmt::Debug for IrqPins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IrqPins")
            .field("used", &lock(&self.pins).keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// One input.
struct Pin {
    gsi: Gsi,
    /// `None` for a detached line.
    sink: Option<Arc<dyn IrqSink>>,
    /// How many lines are high. The sink is called under this lock, so that it sees the changes in their order.
    lines_high: Mutex<u32>,
}

impl Pin {
    fn tell(&self, high: bool) {
        if let Some(sink) = &self.sink {
            sink.set_level(self.gsi, high);
        }
    }
}

/// A device's line to an interrupt input. Not `Clone`: each holder has its own level, and they are OR-ed.
///
/// Level-triggered devices use [`IrqLine::set_level`] or [`IrqLine::update`], edge-triggered ones [`IrqLine::pulse`].
pub struct IrqLine {
    pin: Arc<Pin>,
    /// This line's level. Changed under the pin's lock only.
    high: AtomicBool,
}

impl IrqLine {
    /// A line that leads nowhere: for tests, and for a device whose interrupt is not wired.
    pub fn detached() -> Self {
        let pin = Pin {
            gsi: Gsi(u32::MAX),
            sink: None,
            lines_high: Mutex::new(0),
        };
        Self {
            pin: Arc::new(pin),
            high: AtomicBool::new(false),
        }
    }

    /// Raises or lowers the line.
    pub fn set_level(&self, high: bool) {
        self.update(|| high);
    }

    /// Sets the line to what `level` answers. `level` is asked under the input's lock: if two threads change a device
    /// and then update its line, the line ends at the later state, whoever comes first. It may lock the device.
    pub fn update(&self, level: impl FnOnce() -> bool) {
        let mut lines_high = lock(&self.pin.lines_high);
        let high = level();
        if self.high.swap(high, Ordering::Relaxed) == high {
            return;
        }
        if high {
            *lines_high += 1;
            if *lines_high == 1 {
                self.pin.tell(true);
            }
        } else {
            *lines_high -= 1;
            if *lines_high == 0 {
                self.pin.tell(false);
            }
        }
    }

    /// Raises the line for a moment: one edge, unless another line holds the input high. The line is low afterwards.
    pub fn pulse(&self) {
        let mut lines_high = lock(&self.pin.lines_high);
        if self.high.swap(false, Ordering::Relaxed) {
            *lines_high -= 1;
            if *lines_high == 0 {
                self.pin.tell(false);
            }
        }
        if *lines_high == 0 {
            self.pin.tell(true);
            self.pin.tell(false);
        }
    }

    /// This line's own level.
    pub fn is_high(&self) -> bool {
        self.high.load(Ordering::Relaxed)
    }
}

impl Drop for IrqLine {
    fn drop(&mut self) {
        self.set_level(false);
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pin.sink.is_none() {
            return f.write_str("IrqLine(detached)");
        }
        write!(
            f,
            "IrqLine({:?}, {})",
            self.pin.gsi,
            if self.is_high() { "high" } else { "low" }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::RecordingSink;

    fn pins() -> (Arc<RecordingSink>, IrqPins) {
        let sink = Arc::new(RecordingSink::default());
        (Arc::clone(&sink), IrqPins::new(sink))
    }

    #[test]
    fn sink_hears_of_changes_only() {
        let (sink, pins) = pins();
        let line = pins.line(Gsi(4));
        for high in [false, true, true, false, false] {
            line.set_level(high);
        }
        assert_eq!(sink.take(), [(Gsi(4), true), (Gsi(4), false)]);
    }

    #[test]
    fn shared_input_is_high_while_any_line_is() {
        let (sink, pins) = pins();
        let (a, b) = (pins.line(Gsi(9)), pins.line(Gsi(9)));
        a.set_level(true);
        b.set_level(true);
        a.set_level(false);
        assert_eq!(sink.take(), [(Gsi(9), true)]);
        b.pulse();
        assert_eq!(sink.take(), [(Gsi(9), false), (Gsi(9), true), (Gsi(9), false)]);
        a.set_level(true);
        b.pulse();
        assert_eq!(
            sink.take(),
            [(Gsi(9), true)],
            "no edge while another holds the input high"
        );
    }

    #[test]
    fn drop_lowers_the_line_and_the_input_can_be_held_again() {
        let (sink, pins) = pins();
        let line = pins.line(Gsi(1));
        line.set_level(true);
        drop(line);
        assert_eq!(sink.take(), [(Gsi(1), true), (Gsi(1), false)]);
        pins.line(Gsi(1)).pulse();
        assert_eq!(sink.take().len(), 2);
    }

    #[test]
    fn concurrent_updates_end_at_the_devices_last_state() {
        let (sink, pins) = pins();
        let line = pins.line(Gsi(3));
        let state = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        state.fetch_xor(true, Ordering::SeqCst);
                        line.update(|| state.load(Ordering::SeqCst));
                    }
                });
            }
        });
        assert_eq!(line.is_high(), state.load(Ordering::SeqCst));
        let log = sink.take();
        assert!(log.windows(2).all(|pair| pair[0].1 != pair[1].1), "levels alternate");
    }

    #[test]
    fn detached_line_does_nothing() {
        let line = IrqLine::detached();
        line.pulse();
        line.set_level(true);
        assert!(line.is_high());
        assert_eq!(format!("{line:?}"), "IrqLine(detached)");
    }
}
