//! A PC's own interrupt controllers and timer, for a machine that has none in KVM.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use umbra_devices::HostClock;
use umbra_devices::irq::{Gsi, IrqPins, IrqSink};
use umbra_devices::models::pic::PicPair;
use umbra_devices::models::pit::{Pit, regs};

/// The controllers, and the timer with the thread that keeps its time.
pub struct Legacy {
    /// The interrupt controllers.
    pub pic: Arc<PicPair>,
    /// The timer.
    pub pit: Arc<Pit>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Legacy {
    /// Wires them together and starts the thread.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn new() -> io::Result<Self> {
        let pic = Arc::new(PicPair::new());
        // Nobody else has a line to the timer's input.
        let pins = IrqPins::new(Arc::clone(&pic) as Arc<dyn IrqSink>);
        let pit = Arc::new(Pit::new(Arc::new(HostClock::new()), pins.line(Gsi(regs::IRQ))));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name("pit".to_owned()).spawn({
            let (pit, stop) = (Arc::clone(&pit), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Acquire) {
                    match pit.tick() {
                        Some(wait) => thread::park_timeout(wait),
                        None => thread::park(),
                    }
                }
            }
        })?;
        let waker = thread.thread().clone();
        pit.set_waker(Box::new(move || waker.unpark()));
        Ok(Self {
            pic,
            pit,
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Legacy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}
