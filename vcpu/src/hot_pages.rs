//! [`HotPages`]: which pages a vCPU accesses most, in a few words of memory.

use umbra_memslots::Gfn;

/// Pages that are remembered.
const PAGES: usize = 16;

/// A count of accesses by page that forgets the least used ones.
///
/// A page that comes in takes over the count of the one that it pushes out (Metwally's "space saving"): so a page that is
/// accessed more often than one time in 16 is always there, and no count is too low. Allocates nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HotPages {
    /// Roughly the most used first.
    pages: [Option<(Gfn, u64)>; PAGES],
}

impl HotPages {
    /// Counts an access.
    #[inline]
    pub fn count(&mut self, gfn: Gfn) {
        for at in 0..PAGES {
            match &mut self.pages[at] {
                Some((page, count)) if *page == gfn => {
                    *count += 1;
                    // One step to the front, so that what is used most is found first.
                    let count = *count;
                    if at > 0 && self.pages[at - 1].is_some_and(|(_, before)| before < count) {
                        self.pages.swap(at, at - 1);
                    }
                    return;
                }
                Some(_) => {}
                empty @ None => {
                    *empty = Some((gfn, 1));
                    return;
                }
            }
        }
        let least = self.pages.iter_mut().flatten().min_by_key(|(_, count)| *count);
        if let Some(least) = least {
            *least = (gfn, least.1 + 1);
        }
    }

    /// The pages and their counts, the most used first.
    pub fn hottest(&self) -> Vec<(Gfn, u64)> {
        let mut pages: Vec<_> = self.pages.iter().copied().flatten().collect();
        pages.sort_by_key(|(gfn, count)| (std::cmp::Reverse(*count), *gfn));
        pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u64) -> Gfn {
        Gfn::new(number).unwrap()
    }

    #[test]
    fn few_pages_are_counted_exactly() {
        let mut hot = HotPages::default();
        for number in 0..10 {
            for _ in 0..=number {
                hot.count(page(number));
            }
        }
        let expected: Vec<_> = (0..10).rev().map(|number| (page(number), number + 1)).collect();
        assert_eq!(hot.hottest(), expected);
    }

    #[test]
    fn page_used_often_survives_any_number_of_others() {
        let mut hot = HotPages::default();
        for other in 0..10_000 {
            hot.count(page(1 << 30 | other));
            if other % 8 == 0 {
                hot.count(page(7));
            }
        }
        let (gfn, count) = hot.hottest()[0];
        assert_eq!(gfn, page(7));
        assert!((1250..1250 + 11_250 / 16).contains(&count), "{count}");
    }
}
