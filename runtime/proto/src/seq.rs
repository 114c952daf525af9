//! A table by number.

use crate::IdMap;

/// Numbers that share a page.
const PAGE: usize = 8;

/// Values by numbers that count up. Neighbours share a page, which exists while any of them does: so a table of very
/// many is as large as what is in it, never stands still to grow, and is read in the order of the numbers from memory
/// that lies together.
#[derive(Debug)]
pub struct SeqMap<T> {
    pages: IdMap<u64, Page<T>>,
    len: usize,
}

#[derive(Debug)]
struct Page<T> {
    /// [`PAGE`] of them.
    slots: Box<[Option<T>]>,
    used: usize,
}

fn place(seq: u64) -> (u64, usize) {
    (seq / PAGE as u64, (seq % PAGE as u64) as usize)
}

impl<T> Default for SeqMap<T> {
    fn default() -> Self {
        Self { pages: IdMap::default(), len: 0 }
    }
}

impl<T> SeqMap<T> {
    /// The value of this number.
    #[inline]
    pub fn get(&self, seq: &u64) -> Option<&T> {
        let (page, slot) = place(*seq);
        self.pages.get(&page)?.slots[slot].as_ref()
    }

    /// The value of this number, to be changed.
    #[inline]
    pub fn get_mut(&mut self, seq: &u64) -> Option<&mut T> {
        let (page, slot) = place(*seq);
        self.pages.get_mut(&page)?.slots[slot].as_mut()
    }

    /// Whether the number has a value.
    pub fn contains_key(&self, seq: &u64) -> bool {
        self.get(seq).is_some()
    }

    /// Gives the number this value; returns the one that it had.
    pub fn insert(&mut self, seq: u64, value: T) -> Option<T> {
        let (page, slot) = place(seq);
        let page = self
            .pages
            .entry(page)
            .or_insert_with(|| Page { slots: std::iter::repeat_with(|| None).take(PAGE).collect(), used: 0 });
        let before = page.slots[slot].replace(value);
        if before.is_none() {
            page.used += 1;
            self.len += 1;
        }
        before
    }

    /// Takes the number's value out.
    pub fn remove(&mut self, seq: &u64) -> Option<T> {
        let (number, slot) = place(*seq);
        let page = self.pages.get_mut(&number)?;
        let value = page.slots[slot].take()?;
        page.used -= 1;
        if page.used == 0 {
            self.pages.remove(&number);
        }
        self.len -= 1;
        Some(value)
    }

    /// How many numbers have a value.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no number has a value.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Numbers and values; pages in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.pages.iter().flat_map(|(page, content)| {
            let slots = content.slots.iter().enumerate();
            slots.filter_map(move |(slot, value)| Some((page * PAGE as u64 + slot as u64, value.as_ref()?)))
        })
    }

    /// [`Self::iter`], to change the values.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        self.pages.iter_mut().flat_map(|(page, content)| {
            let slots = content.slots.iter_mut().enumerate();
            slots.filter_map(move |(slot, value)| Some((page * PAGE as u64 + slot as u64, value.as_mut()?)))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn it_is_a_map() {
        let mut map = SeqMap::default();
        let mut model = BTreeMap::new();
        // A generator of numbers close together and far apart, that is the same each time.
        let mut number = 1_u64;
        for round in 0..10_000 {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let seq = (number >> 40) % 100 + if number >> 63 == 0 { 0 } else { u64::MAX - 100 };
            if number >> 62 & 1 == 0 {
                assert_eq!(map.insert(seq, round), model.insert(seq, round));
            } else {
                assert_eq!(map.remove(&seq), model.remove(&seq));
            }
            assert_eq!((map.len(), map.is_empty()), (model.len(), model.is_empty()));
            assert_eq!(map.get(&seq), model.get(&seq));
            assert_eq!(map.get_mut(&seq), model.get_mut(&seq));
        }
        map.iter_mut().for_each(|(_, value)| *value += 1);
        let mut all: Vec<_> = map.iter().map(|(seq, value)| (seq, value - 1)).collect();
        all.sort_unstable();
        assert_eq!(all, model.clone().into_iter().collect::<Vec<_>>());
        for seq in model.keys() {
            assert!(map.contains_key(seq) && map.remove(seq).is_some() && !map.contains_key(seq));
        }
        assert!(map.is_empty() && map.pages.is_empty(), "a page that is empty is given back");
    }
}
