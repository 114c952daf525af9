//! What fits into so much: needs sorted by each of their bounds, with sets of those up to a value.
//!
//! For each dimension ([`crate::stock::DIMS`]) the values are cut into ranges, and for each range there is the set of all
//! shapes that need no more than what is in it. What fits is what is in the sets of all dimensions: a few words are
//! looked at for each, however many shapes there are. A range has one value as long as there are few; with more, those
//! in the last range are looked at one by one.

use crate::{bits::Bits, stock::DIMS};

/// Most ranges of one dimension: what bounds the memory.
const RANGES_MAX: usize = 64;

#[derive(Debug)]
struct Range {
    /// The lowest value in it; the next range's is the first beyond it.
    from: i64,
    /// Whether it has other values, too.
    mixed: bool,
    /// Shapes in it.
    count: u32,
    /// Shapes in it and in those before.
    upto: Bits,
}

/// The needs of all shapes.
#[derive(Debug)]
pub(crate) struct Fit {
    dims: [Vec<Range>; DIMS],
}

impl Fit {
    pub fn new() -> Self {
        let first = || vec![Range { from: 0, mixed: false, count: 0, upto: Bits::new() }];
        Self { dims: std::array::from_fn(|_| first()) }
    }

    pub fn insert(&mut self, shape: u32, needs: &[i64; DIMS]) {
        for (ranges, need) in self.dims.iter_mut().zip(needs) {
            let mut at = range_of(ranges, *need);
            if ranges[at].from != *need {
                if ranges[at].mixed || ranges.len() == RANGES_MAX {
                    ranges[at].mixed = true;
                } else {
                    let upto = ranges[at].upto.clone();
                    at += 1;
                    ranges.insert(at, Range { from: *need, mixed: false, count: 0, upto });
                }
            }
            ranges[at].count += 1;
            ranges[at..].iter_mut().for_each(|range| range.upto.insert(shape));
        }
    }

    /// Forgets a shape, which was inserted with these needs.
    pub fn remove(&mut self, shape: u32, needs: &[i64; DIMS]) {
        for (ranges, need) in self.dims.iter_mut().zip(needs) {
            let at = range_of(ranges, *need);
            ranges[at].count = ranges[at].count.saturating_sub(1);
            ranges[at..].iter_mut().for_each(|range| range.upto.remove(shape));
            if ranges[at].count == 0 {
                ranges[at].mixed = false;
                if at > 0 {
                    ranges.remove(at);
                }
            }
        }
    }

    /// Keeps of `shapes` what may fit into `free`, and adds to `unsure` those of which it is not certain.
    pub fn keep(&self, shapes: &mut Bits, free: &[i64; DIMS], unsure: &mut Bits) {
        for (ranges, free) in self.dims.iter().zip(free) {
            if *free < 0 {
                return shapes.clear();
            }
            let at = range_of(ranges, *free);
            if at + 1 < ranges.len() {
                shapes.keep(&ranges[at].upto);
            }
            if ranges[at].mixed {
                let mut last = ranges[at].upto.clone();
                if at > 0 {
                    last.without(&ranges[at - 1].upto);
                }
                unsure.add(&last);
            }
        }
    }
}

/// The range of a value of at least 0.
fn range_of(ranges: &[Range], value: i64) -> usize {
    ranges.partition_point(|range| range.from <= value).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::sim::Random;

    #[test]
    fn what_fits_is_found() {
        for seed in 0..20 {
            let mut random = Random::new(seed);
            // With few values all is certain; with many some is not.
            let values = if seed % 2 == 0 { 10 } else { 1000 };
            let (mut fit, mut all) = (Fit::new(), BTreeMap::new());
            for _ in 0..1500 {
                let shape = random.below(400) as u32;
                let needs: [i64; DIMS] = std::array::from_fn(|_| random.below(values) as i64);
                match all.remove(&shape) {
                    Some(old) => fit.remove(shape, &old),
                    None => {
                        fit.insert(shape, &needs);
                        all.insert(shape, needs);
                    }
                }
                let free: [i64; DIMS] = std::array::from_fn(|_| random.below(2 * values) as i64 - 1);
                let fits = |needs: &[i64; DIMS]| needs.iter().zip(&free).all(|(need, free)| need <= free);
                let (mut found, mut unsure) = (Bits::new(), Bits::new());
                all.keys().for_each(|shape| found.insert(*shape));
                fit.keep(&mut found, &free, &mut unsure);
                for (shape, needs) in &all {
                    assert!(!fits(needs) || found.contains(*shape));
                    assert!(fits(needs) || !found.contains(*shape) || unsure.contains(*shape));
                }
                assert!(values > RANGES_MAX || unsure.is_empty());
            }
        }
    }
}
