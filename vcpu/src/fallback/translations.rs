//! [`Translations`]: where the linear pages lie that the core has accessed in the present stretch.
//!
//! A translation may be kept until the guest asks for it to be dropped, and other vCPUs' changes are promised to be seen
//! only after an interrupt, which is taken after the stretch. So it is enough to forget everything at the stretch's end and
//! whenever the guest changes or invalidates anything.

use crate::emulate::{Access, AccessKind};
use umbra_memslots::{Gpa, Gva, PAGE_SIZE};

/// Places for translations.
const PLACES: usize = 256;
/// The tag of no page: not the address of a page with any rights.
const NONE: u64 = u64::MAX;

#[derive(Clone, Copy)]
struct Entry {
    /// The linear page, and in the bits below it how it was accessed.
    tag: u64,
    page: Gpa,
}

/// The translations.
pub struct Translations {
    entries: Box<[Entry; PLACES]>,
}

impl Default for Translations {
    fn default() -> Self {
        let empty = Entry {
            tag: NONE,
            page: Gpa::new(0),
        };
        Self {
            entries: Box::new([empty; PLACES]),
        }
    }
}

impl Translations {
    /// Where `at` lies, if it was accessed in this way before.
    #[inline]
    pub fn find(&self, at: Gva, access: Access) -> Option<Gpa> {
        let tag = tag(at, access);
        let entry = &self.entries[place(tag)];
        (entry.tag == tag).then(|| entry.page.wrapping_add(at.page_offset()))
    }

    /// `at` lies at `gpa`, for accesses of this kind.
    pub fn insert(&mut self, at: Gva, access: Access, gpa: Gpa) {
        let tag = tag(at, access);
        self.entries[place(tag)] = Entry {
            tag,
            page: gpa.gfn().base(),
        };
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        for entry in self.entries.iter_mut() {
            entry.tag = NONE;
        }
    }
}

fn tag(at: Gva, access: Access) -> u64 {
    let kind = match access.kind {
        AccessKind::Read => 0,
        AccessKind::Write => 1,
        AccessKind::Fetch => 2,
    };
    let rights = u64::from(access.user) | u64::from(access.implicit) << 1 | u64::from(access.alignment_flag) << 2;
    at.page_base().get() | rights << 2 | kind
}

fn place(tag: u64) -> usize {
    ((tag / PAGE_SIZE) ^ (tag << 5)) as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Access = Access {
        kind: AccessKind::Read,
        user: false,
        implicit: false,
        alignment_flag: false,
    };

    #[test]
    fn translation_holds_for_its_page_and_its_way_of_access() {
        let mut known = Translations::default();
        known.insert(Gva::new(0x7000_1234), READ, Gpa::new(0x5_0234));
        assert_eq!(known.find(Gva::new(0x7000_1ff8), READ), Some(Gpa::new(0x5_0ff8)));
        let others = [
            Access { user: true, ..READ },
            Access { implicit: true, ..READ },
            Access {
                alignment_flag: true,
                ..READ
            },
            Access {
                kind: AccessKind::Write,
                ..READ
            },
            Access {
                kind: AccessKind::Fetch,
                ..READ
            },
        ];
        for other in others {
            assert_eq!(known.find(Gva::new(0x7000_1234), other), None, "{other:?}");
        }
        assert_eq!(known.find(Gva::new(0x7000_2234), READ), None);
        known.clear();
        assert_eq!(known.find(Gva::new(0x7000_1234), READ), None);
        assert_eq!(
            known.find(Gva::new(u64::MAX), READ),
            None,
            "nothing is known of the last page"
        );
    }
}
