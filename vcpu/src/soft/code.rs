//! [`CodePages`]: which frames have decoded code, and what was written to them, by whichever vCPU.
//!
//! A vCPU that decodes code of a frame has the frame entered here, and then no TLB knows it as writable any more: writes
//! take the slow path, which looks here. Each vCPU finds out before its next block what has changed, and forgets its own
//! blocks of it. x86 promises no more: another CPU's new code is certain to be seen after a serialising instruction (SDM
//! vol. 3A 9.1.3), its own at once.

use super::sync::Lock;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use umbra_memslots::{Gfn, Gpa};

/// Bytes for which one bit stands.
const LINE: u64 = 64;
/// Changes that are remembered for vCPUs that have not seen them yet. Who is further behind forgets everything.
const REMEMBERED: usize = 64;

/// The frames from which code was decoded.
#[derive(Default)]
pub(super) struct CodePages {
    frames: Lock<Frames>,
    /// Changes so far.
    changes: AtomicU64,
}

#[derive(Default)]
struct Frames {
    /// The lines of each that have code.
    lines: HashMap<Gfn, u64>,
    /// The frames of the last changes.
    changed: VecDeque<Gfn>,
}

/// How far a vCPU has followed.
#[derive(Default)]
pub(super) struct Seen(u64);

/// What a vCPU must forget.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Changed {
    /// The blocks of these frames.
    Frames(Vec<Gfn>),
    /// All blocks.
    Everything,
}

impl CodePages {
    /// Whether code of this frame was decoded.
    pub fn contains(&self, gfn: Gfn) -> bool {
        self.frames.lock().lines.contains_key(&gfn)
    }

    /// Code of `bytes` bytes within a page is decoded. Says whether it is the first of its frame: then TLBs may know the
    /// frame as writable.
    pub fn add(&self, gpa: Gpa, bytes: usize) -> bool {
        let mut frames = self.frames.lock();
        let lines = frames.lines.entry(gpa.gfn()).or_default();
        let first = *lines == 0;
        *lines |= mask(gpa, bytes);
        first
    }

    /// Bytes within a page were written.
    pub fn written(&self, gpa: Gpa, bytes: usize) {
        let mut frames = self.frames.lock();
        let hit = |lines: &u64| lines & mask(gpa, bytes) != 0;
        if !frames.lines.get(&gpa.gfn()).is_some_and(hit) {
            return;
        }
        frames.lines.remove(&gpa.gfn());
        if frames.changed.len() == REMEMBERED {
            frames.changed.pop_front();
        }
        frames.changed.push_back(gpa.gfn());
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Whether there is changed code that the vCPU doesn't know of.
    #[inline]
    pub fn has_changed(&self, seen: &Seen) -> bool {
        self.changes.load(Ordering::Acquire) != seen.0
    }

    /// What has changed since.
    pub fn catch_up(&self, seen: &mut Seen) -> Changed {
        let frames = self.frames.lock();
        // With the lock held, as `written` moves it.
        let now = self.changes.load(Ordering::Acquire);
        let missed = usize::try_from(now - std::mem::replace(&mut seen.0, now)).unwrap_or(usize::MAX);
        match frames.changed.len().checked_sub(missed) {
            Some(known) => Changed::Frames(frames.changed.iter().skip(known).copied().collect()),
            None => Changed::Everything,
        }
    }
}

fn mask(gpa: Gpa, bytes: usize) -> u64 {
    let first = gpa.page_offset() / LINE;
    let last = (gpa.page_offset() + bytes.max(1) as u64 - 1).min(4095) / LINE;
    u64::MAX << first & u64::MAX >> (63 - last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writes_to_decoded_lines_count() {
        let code = CodePages::default();
        let mut seen = Seen::default();
        assert!(code.add(Gpa::new(0x1040), 64));
        assert!(!code.add(Gpa::new(0x1ffc), 4));
        code.written(Gpa::new(0x1000), 64);
        code.written(Gpa::new(0x1080), 8);
        code.written(Gpa::new(0x2040), 8);
        assert!(!code.has_changed(&seen));
        code.written(Gpa::new(0x103f), 2);
        assert!(code.has_changed(&seen) && !code.contains(Gpa::new(0x1000).gfn()));
        assert_eq!(code.catch_up(&mut seen), Changed::Frames(vec![Gpa::new(0x1000).gfn()]));
        assert!(!code.has_changed(&seen));
        assert_eq!(code.catch_up(&mut seen), Changed::Frames(vec![]));
    }

    #[test]
    fn each_follower_learns_of_each_change_once_or_forgets_everything() {
        let code = CodePages::default();
        let (mut quick, mut slow) = (Seen::default(), Seen::default());
        let gpa = |frame: u64| Gpa::new(frame << 12);
        for frame in 0..REMEMBERED as u64 {
            code.add(gpa(frame), 1);
            code.written(gpa(frame), 1);
            assert_eq!(code.catch_up(&mut quick), Changed::Frames(vec![gpa(frame).gfn()]));
        }
        code.add(gpa(7), 1);
        code.written(gpa(7), 1);
        assert_eq!(code.catch_up(&mut slow), Changed::Everything);
        assert_eq!(code.catch_up(&mut quick), Changed::Frames(vec![gpa(7).gfn()]));
    }

    #[test]
    fn mask_has_the_lines_of_an_access() {
        assert_eq!(mask(Gpa::new(0), 4096), u64::MAX);
        assert_eq!(mask(Gpa::new(0x40), 1), 2);
        assert_eq!(mask(Gpa::new(0x3f), 2), 3);
        assert_eq!(mask(Gpa::new(0xfff), 1), 1 << 63);
    }
}
