//! [`CodePages`]: which frames have decoded code, and what was written to them, by whichever vCPU.
//!
//! A vCPU that decodes code of a frame has the frame entered here, and then has all TLBs forget that it may be written:
//! from there on it is *watched*, writes take the slow path, which looks here. Until then, nobody relies on the entry, and
//! whoever else decodes code of the frame has TLBs flushed as well. Each vCPU finds out before its next block what has
//! changed, and forgets its own blocks of it. x86 promises no more: another CPU's new code is certain to be seen after a
//! serialising instruction (SDM vol. 3A 9.1.3), its own at once.

use super::sync::{AtomicU64, Lock, Ordering};
use std::collections::{HashMap, VecDeque};
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
    known: HashMap<Gfn, Frame>,
    /// Frames entered so far.
    entered: u64,
    /// The frames of the last changes.
    changed: VecDeque<Gfn>,
}

/// A frame with code.
struct Frame {
    /// Its lines that have code.
    lines: u64,
    /// Which entry it is: one that was thrown away and is made anew is another.
    entry: u64,
    /// No TLB has the right to write to it.
    watched: bool,
}

/// A frame that TLBs may know as writable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "TLBs are to be flushed"]
pub(super) struct Unwatched {
    gfn: Gfn,
    entry: u64,
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
        self.frames.lock().known.contains_key(&gfn)
    }

    /// Code of `bytes` bytes within a page is decoded. If TLBs may still know the frame as writable, the caller has them
    /// flushed, calls [`CodePages::watched`], and only then relies on what it read.
    pub fn add(&self, gpa: Gpa, bytes: usize) -> Option<Unwatched> {
        let gfn = gpa.gfn();
        let mut frames = self.frames.lock();
        let Frames { known, entered, .. } = &mut *frames;
        let frame = known.entry(gfn).or_insert_with(|| {
            *entered += 1;
            Frame {
                lines: 0,
                entry: *entered,
                watched: false,
            }
        });
        frame.lines |= mask(gpa, bytes);
        let entry = frame.entry;
        (!frame.watched).then_some(Unwatched { gfn, entry })
    }

    /// Since [`CodePages::add`] gave `frame`, each TLB has forgotten its right to write to it.
    pub fn watched(&self, frame: Unwatched) {
        let mut frames = self.frames.lock();
        // If it was written to meanwhile, TLBs may know the frame again.
        if let Some(present) = frames.known.get_mut(&frame.gfn)
            && present.entry == frame.entry
        {
            present.watched = true;
        }
    }

    /// Bytes within a page were written.
    pub fn written(&self, gpa: Gpa, bytes: usize) {
        let mut frames = self.frames.lock();
        let hit = |frame: &Frame| frame.lines & mask(gpa, bytes) != 0;
        if !frames.known.get(&gpa.gfn()).is_some_and(hit) {
            return;
        }
        frames.known.remove(&gpa.gfn());
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

// The model checker has tests of its own.
#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// The first code of a frame, whose watching begins.
    fn add(code: &CodePages, gpa: Gpa, bytes: usize) {
        let unwatched = code.add(gpa, bytes);
        unwatched.into_iter().for_each(|frame| code.watched(frame));
        assert!(unwatched.is_some());
    }

    #[test]
    fn frame_is_relied_on_only_when_flushes_are_done() {
        let (code, gpa) = (CodePages::default(), Gpa::new(0x1000));
        let first = code.add(gpa, 1).expect("new");
        // Another decodes before the first has had TLBs flushed.
        assert_eq!(code.add(gpa, 1), Some(first));
        code.written(gpa, 1);
        let second = code.add(gpa, 1).expect("new again");
        code.watched(first);
        assert_eq!(code.add(gpa, 1), Some(second), "the flush was too early for this entry");
        code.watched(second);
        assert_eq!(code.add(gpa, 1), None);
    }

    #[test]
    fn only_writes_to_decoded_lines_count() {
        let code = CodePages::default();
        let mut seen = Seen::default();
        add(&code, Gpa::new(0x1040), 64);
        assert_eq!(code.add(Gpa::new(0x1ffc), 4), None);
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
            add(&code, gpa(frame), 1);
            code.written(gpa(frame), 1);
            assert_eq!(code.catch_up(&mut quick), Changed::Frames(vec![gpa(frame).gfn()]));
        }
        add(&code, gpa(7), 1);
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
