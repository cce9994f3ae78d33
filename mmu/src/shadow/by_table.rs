//! [`ByTable`]: what is kept about each table. Tables are named by small numbers, so finding it costs nothing.

use crate::tables::TableId;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// A map from tables. Grows to the highest one that was ever in it.
pub(super) struct ByTable<T>(Vec<Option<Box<T>>>);

impl<T> ByTable<T> {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn get(&self, table: TableId) -> Option<&T> {
        self.0.get(table.get() as usize)?.as_deref()
    }

    pub(super) fn get_mut(&mut self, table: TableId) -> Option<&mut T> {
        self.0.get_mut(table.get() as usize)?.as_deref_mut()
    }

    pub(super) fn insert(&mut self, table: TableId, value: T) {
        let index = table.get() as usize;
        if self.0.len() <= index {
            self.0.resize_with(index + 1, || None);
        }
        if let Some(place) = self.0.get_mut(index) {
            *place = Some(Box::new(value));
        }
    }

    pub(super) fn remove(&mut self, table: TableId) {
        if let Some(place) = self.0.get_mut(table.get() as usize) {
            *place = None;
        }
    }

    /// The tables in it, ascending.
    pub(super) fn tables(&self) -> impl Iterator<Item = TableId> {
        let all = (0u32..).zip(&self.0);
        all.filter_map(|(table, value)| value.is_some().then_some(TableId::new(table)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_is_found_until_it_is_removed() {
        let mut map = ByTable::new();
        let table = TableId::new;
        assert_eq!(map.get(table(3)), None);
        map.insert(table(3), 'c');
        map.insert(table(1), 'a');
        map.insert(table(3), 'd');
        map.remove(table(9));
        assert_eq!(
            (map.get(table(1)), map.get(table(2)), map.get(table(3))),
            (Some(&'a'), None, Some(&'d'))
        );
        *map.get_mut(table(1)).unwrap() = 'b';
        assert!(map.tables().eq([table(1), table(3)]));
        map.remove(table(1));
        assert_eq!(map.get(table(1)), None);
    }
}
