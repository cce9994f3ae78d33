//! [`IdPool`]: which slot ids of an address space are taken. Hands out the lowest free one, so ids are recycled and the
//! tables indexed by them stay as short as they can be.

use crate::slot::SlotId;
use alloc::vec::Vec;

#[derive(Clone)]
pub(crate) struct IdPool {
    /// One bit per id, set if taken; as long as the highest id ever taken needs.
    taken: Vec<u64>,
    /// Every word before this one is full.
    first_open: usize,
    limit: u16,
}

impl IdPool {
    pub(crate) fn new(limit: u16) -> Self {
        Self {
            taken: Vec::new(),
            first_open: 0,
            limit,
        }
    }

    /// The lowest free id, if one is left. Does not take it.
    pub(crate) fn lowest_free(&self) -> Option<SlotId> {
        let open = self.taken[self.first_open..].iter().position(|&word| word != u64::MAX);
        let word = open.map_or(self.taken.len(), |distance| self.first_open + distance);
        let bit = self.taken.get(word).map_or(0, |bits| bits.trailing_ones() as usize);
        let id = u16::try_from(word * 64 + bit).ok()?;
        (id < self.limit).then_some(SlotId::new(id))
    }

    /// Marks an id as taken, whoever chose it.
    pub(crate) fn take(&mut self, id: SlotId) {
        let (word, bit) = place(id);
        if word >= self.taken.len() {
            self.taken.resize(word + 1, 0);
        }
        self.taken[word] |= bit;
        while self.taken.get(self.first_open) == Some(&u64::MAX) {
            self.first_open += 1;
        }
    }

    /// Gives an id back.
    pub(crate) fn release(&mut self, id: SlotId) {
        let (word, bit) = place(id);
        if let Some(bits) = self.taken.get_mut(word) {
            *bits &= !bit;
            self.first_open = self.first_open.min(word);
        }
    }
}

fn place(id: SlotId) -> (usize, u64) {
    (usize::from(id.get() / 64), 1 << (id.get() % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowest_id_is_recycled_first() {
        let mut pool = IdPool::new(200);
        for expected in 0..200 {
            let id = pool.lowest_free().unwrap();
            assert_eq!(id.get(), expected);
            pool.take(id);
        }
        assert_eq!(pool.lowest_free(), None);
        pool.release(SlotId::new(130));
        pool.release(SlotId::new(7));
        assert_eq!(pool.lowest_free(), Some(SlotId::new(7)));
    }

    #[test]
    fn ids_chosen_by_the_caller_are_skipped() {
        let mut pool = IdPool::new(100);
        pool.take(SlotId::new(0));
        pool.take(SlotId::new(70));
        assert_eq!(pool.lowest_free(), Some(SlotId::new(1)));
        pool.release(SlotId::new(99));
        assert_eq!(pool.lowest_free(), Some(SlotId::new(1)));
    }
}
