//! Which parts of one region are free. Pure bookkeeping outside the shared memory, so that no reader and no
//! stray write can corrupt it.
//!
//! Pages that were never written cost twelve times a copy to touch, so the space is cut in two at `fresh`:
//! below it memory was handed out or warmed at least once, above it nothing was. Requests are met best-fit
//! from below first (of equal ranges the lowest), then by moving `fresh` up; every step is O(log n) in the
//! number of free ranges.

use std::collections::{BTreeMap, BTreeSet};

use crate::ALIGN;

/// The free ranges of one region. Offsets and lengths are multiples of [`ALIGN`], in bytes.
#[derive(Debug)]
pub(crate) struct Space {
    size: u64,
    used: u64,
    /// Everything from here on is free and untouched.
    fresh: u64,
    /// Free ranges below `fresh`, by offset; neighbours are always merged.
    by_offset: BTreeMap<u64, u64>,
    /// The same ranges as (length, offset).
    by_len: BTreeSet<(u64, u64)>,
}

/// The bytes that a request of `len` takes: rounded up to [`ALIGN`], at least one unit so that every
/// allocation has its own offset. `None` where that overflows.
pub(crate) fn rounded(len: u64) -> Option<u64> {
    len.max(1).checked_next_multiple_of(ALIGN as u64)
}

impl Space {
    /// All of `size` bytes (a multiple of [`ALIGN`]), free and untouched.
    pub(crate) fn new(size: u64) -> Self {
        debug_assert!(size.is_multiple_of(ALIGN as u64));
        Self { size, used: 0, fresh: 0, by_offset: BTreeMap::new(), by_len: BTreeSet::new() }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// Bytes below the highest that was ever handed out or warmed.
    pub(crate) fn touched(&self) -> u64 {
        self.fresh
    }

    /// Touched bytes that are free.
    pub(crate) fn touched_free(&self) -> u64 {
        self.fresh - self.used
    }

    /// The shortest touched free range of at least `len` bytes: how well this space fits.
    pub(crate) fn best_touched(&self, len: u64) -> Option<u64> {
        self.by_len.range((len, 0)..).next().map(|&(len, _)| len)
    }

    /// Whether `len` bytes fit at the end, some of them perhaps untouched.
    pub(crate) fn fits_at_end(&self, len: u64) -> bool {
        len <= self.size - self.tail()
    }

    /// Takes `len` bytes (rounded) and says where.
    pub(crate) fn allocate(&mut self, len: u64) -> Option<u64> {
        debug_assert!(len > 0 && len.is_multiple_of(ALIGN as u64));
        let offset = if let Some(&(found, offset)) = self.by_len.range((len, 0)..).next() {
            self.remove(offset, found);
            if found > len {
                self.insert(offset + len, found - len);
            }
            offset
        } else if self.fits_at_end(len) {
            let offset = self.tail();
            if offset < self.fresh {
                self.remove(offset, self.fresh - offset);
            }
            self.fresh = offset + len;
            offset
        } else {
            return None;
        };
        self.used += len;
        Some(offset)
    }

    /// Gives back what [`Self::allocate`] returned for the same `len`.
    pub(crate) fn free(&mut self, offset: u64, len: u64) {
        debug_assert!(offset + len <= self.fresh && len <= self.used, "freed what was not allocated");
        self.used -= len;
        self.insert_merged(offset, len);
    }

    /// Notes that all below `end` was touched.
    pub(crate) fn touch(&mut self, end: u64) {
        let (start, end) = (self.fresh, end.min(self.size));
        if end > start {
            self.fresh = end;
            self.insert_merged(start, end - start);
        }
    }

    /// Notes that nothing was touched from `start` (a multiple of [`ALIGN`]) on, as far as that is free.
    pub(crate) fn untouch(&mut self, start: u64) {
        let tail = self.tail();
        let start = start.max(tail);
        if start < self.fresh {
            self.remove(tail, self.fresh - tail);
            if start > tail {
                self.insert(tail, start - tail);
            }
            self.fresh = start;
        }
    }

    /// Where the free range that reaches the end of the space starts; `size` where there is none.
    fn tail(&self) -> u64 {
        match self.by_offset.last_key_value() {
            Some((&offset, &len)) if offset + len == self.fresh => offset,
            _ => self.fresh,
        }
    }

    fn insert_merged(&mut self, mut offset: u64, mut len: u64) {
        if let Some((&before, &before_len)) = self.by_offset.range(..offset).next_back() {
            debug_assert!(before + before_len <= offset, "freed twice");
            if before + before_len == offset {
                self.remove(before, before_len);
                (offset, len) = (before, before_len + len);
            }
        }
        if let Some((&after, &after_len)) = self.by_offset.range(offset..).next() {
            debug_assert!(offset + len <= after, "freed twice");
            if offset + len == after {
                self.remove(after, after_len);
                len += after_len;
            }
        }
        self.insert(offset, len);
    }

    fn insert(&mut self, offset: u64, len: u64) {
        self.by_offset.insert(offset, len);
        self.by_len.insert((len, offset));
    }

    fn remove(&mut self, offset: u64, len: u64) {
        self.by_offset.remove(&offset);
        self.by_len.remove(&(len, offset));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 64 * 1024;

    #[derive(Debug, Clone)]
    enum Step {
        Allocate(u64),
        Free(usize),
        Touch(u64),
        Untouch(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..6000u64).prop_map(Step::Allocate),
            3 => any::<usize>().prop_map(Step::Free),
            1 => (0..SIZE / 64).prop_map(|units| Step::Touch(units * 64)),
            1 => (0..SIZE / 64).prop_map(|units| Step::Untouch(units * 64)),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// ST-4: what is handed out is aligned, in bounds and never overlaps; all of it comes back whole.
        #[test]
        fn st_4_ranges_never_overlap_and_merge_again(steps in steps()) {
            let mut space = Space::new(SIZE);
            let mut live: Vec<(u64, u64)> = Vec::new();
            for step in steps {
                match step {
                    Step::Allocate(bytes) => {
                        let len = rounded(bytes).unwrap();
                        match space.allocate(len) {
                            Some(offset) => {
                                prop_assert!(offset % 64 == 0 && offset + len <= SIZE);
                                for &(other, other_len) in &live {
                                    prop_assert!(offset + len <= other || other + other_len <= offset);
                                }
                                live.push((offset, len));
                            }
                            None => {
                                // Refused only where no gap between live ranges is long enough.
                                let mut ends: Vec<_> = live.clone();
                                ends.sort_unstable();
                                let mut at = 0;
                                for (offset, other) in ends.into_iter().chain([(SIZE, 0)]) {
                                    prop_assert!(offset - at < len);
                                    at = offset + other;
                                }
                            }
                        }
                    }
                    Step::Free(_) if live.is_empty() => {}
                    Step::Free(which) => {
                        let (offset, len) = live.swap_remove(which % live.len());
                        space.free(offset, len);
                    }
                    Step::Untouch(start) => {
                        let (touched, used) = (space.touched(), space.used());
                        space.untouch(start);
                        prop_assert!(space.touched() <= touched && space.used() == used);
                        let most = live.iter().map(|(offset, len)| offset + len).max().unwrap_or(0);
                        prop_assert_eq!(space.touched(), touched.min(start.max(most)));
                    }
                    Step::Touch(end) => space.touch(end),
                }
                prop_assert_eq!(space.used(), live.iter().map(|(_, len)| len).sum::<u64>());
                prop_assert_eq!(space.touched_free(), space.by_offset.values().sum::<u64>());
                prop_assert_eq!(space.by_offset.len(), space.by_len.len());
            }
            for (offset, len) in live {
                space.free(offset, len);
            }
            prop_assert_eq!(space.used(), 0);
            prop_assert!(space.by_offset.len() <= 1);
            prop_assert_eq!(space.tail(), 0);
            prop_assert_eq!(space.allocate(SIZE), Some(0));
        }
    }

    #[test]
    fn touched_memory_is_reused_before_fresh_is_taken() {
        let mut space = Space::new(SIZE);
        let first = space.allocate(1024).unwrap();
        let second = space.allocate(1024).unwrap();
        space.free(first, 1024);
        assert_eq!(space.allocate(512), Some(first));
        assert_eq!(space.allocate(512), Some(first + 512));
        assert_eq!(space.touched(), 2048);
        assert_eq!(space.allocate(64), Some(2048));
        space.free(second, 1024);
        assert_eq!(space.best_touched(64), Some(1024));
        // A free range below the untouched end grows into it rather than being left behind.
        space.free(2048, 64);
        assert_eq!(space.allocate(4096), Some(second));
        assert_eq!(space.touched(), second + 4096);
    }

    #[test]
    fn rounding_neither_wraps_nor_vanishes() {
        assert_eq!(rounded(0), Some(64));
        assert_eq!(rounded(64), Some(64));
        assert_eq!(rounded(65), Some(128));
        assert_eq!(rounded(u64::MAX), None);
    }
}
